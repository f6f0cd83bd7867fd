//! The examples, run: against daemons, and with a node of their own.

use crate::stage::{Channel, RELIABLE, Stage, in_time};
use std::time::Duration;
use virga::{
    config::Config,
    mesh::{Mesh, MeshError},
};

// Their `main` reads the command line.
#[allow(dead_code)]
#[path = "../../examples/blocking.rs"]
mod blocking;
#[allow(dead_code)]
#[path = "../../examples/embedded.rs"]
mod embedded;
#[allow(dead_code)]
#[path = "../../examples/publish.rs"]
mod publish;
#[allow(dead_code)]
#[path = "../../examples/subscribe.rs"]
mod subscribe;

/// From b to a.
const ANSWERS: Channel = Channel {
    name: "test/answers",
    publish: &["b"],
    subscribe: &["a"],
    ..RELIABLE
};

fn texts(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("event {n}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_publishes_what_the_other_subscribes_to() {
    let stage = Stage::running(&[RELIABLE]).await;
    let [a, b] = ["a", "b"].map(|name| stage.node(name).socket());
    let sent = texts(0..20);
    let publishing = publish::publish(&a, RELIABLE.name, &sent);
    let subscribing = subscribe::subscribe(&b, "test", 20);
    let both = async { tokio::join!(publishing, subscribing) };
    let (heard, got) = in_time("both", both).await;
    assert_eq!(heard.unwrap(), 20);
    let got = got.unwrap();
    let payloads: Vec<&[u8]> = got.iter().map(|event| &event.payload[..]).collect();
    assert_eq!(
        payloads,
        sent.iter().map(String::as_bytes).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_without_async_is_answered() {
    let stage = Stage::running(&[RELIABLE, ANSWERS]).await;
    let b = stage.mesh("b").await;
    let mut questions = b.subscribe(RELIABLE.name).await.unwrap();
    let a = stage.node("a").socket();
    let channels = (RELIABLE.name, ANSWERS.name);
    let asking = tokio::task::spawn_blocking(move || {
        blocking::ask(&a, channels, "how much?").map_err(|error| error.to_string())
    });
    let question = in_time("the question", questions.next_delivery()).await;
    assert_eq!(question.unwrap().unwrap().payload, &b"how much?"[..]);
    let subscriber = b.wait_for_subscribers(ANSWERS.name, 1);
    in_time("who asks", subscriber).await.unwrap();
    b.publish(ANSWERS.name, b"so much").await.unwrap();
    let answer = in_time("the answer", asking).await.unwrap();
    assert_eq!(answer.unwrap(), b"so much");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_in_the_programs_own_process_is_one_of_the_mesh() {
    let mut stage = Stage::new(&[RELIABLE]);
    for name in ["router", "b"] {
        stage.start(name).await;
    }
    let b = stage.node("b").socket();
    let config = Config::load(&stage.node("a").config()).unwrap();
    let sent = texts(0..500);
    let publishing = embedded::publish_alone(config.clone(), RELIABLE.name, &sent);
    let subscribing = subscribe::subscribe(&b, "test", 500);
    let both = async { tokio::join!(publishing, subscribing) };
    let (published, got) = in_time("both", both).await;
    published.unwrap();
    let got = got.unwrap();
    assert_eq!(got.len(), 500);
    assert!(
        got.iter()
            .zip(&sent)
            .all(|(got, sent)| got.payload == sent.as_bytes())
    );
    // It is gone: b knows, and its address is free for another.
    assert!(Mesh::open(stage.node("a").socket()).await.is_err());
    let again = in_time("another", Mesh::start(config)).await.unwrap();
    // Other programs reach it as they reach a daemon.
    let outside = stage.mesh("a").await;
    assert_eq!(outside.status().await.unwrap().node.name, "a");
    in_time("the end", again.stop()).await.unwrap();
    in_time("the end, again", again.stop()).await.unwrap();
    let ended = again.publish(RELIABLE.name, b"x").await.unwrap_err();
    assert!(matches!(ended, MeshError::Broken(_)), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_start_here_says_why_and_a_dropped_one_ends() {
    let both = Channel {
        subscribe: &["a", "b"],
        ..RELIABLE
    };
    let mut stage = Stage::new(&[both]);
    let config = Config::load(&stage.node("a").config()).unwrap();
    let first = Mesh::start(config.clone()).await.unwrap();
    let second = Mesh::start(config).await.unwrap_err();
    assert!(
        second.to_string().contains("another daemon runs node a"),
        "{second}"
    );
    let socket = stage.node("a").socket();
    assert!(socket.exists());
    // Who subscribes needs no more than the subscription.
    let mut subscription = first.subscribe(RELIABLE.name).await.unwrap();
    drop(first);
    let outside = Mesh::open(&socket).await.unwrap();
    let publisher = outside.publisher(RELIABLE.name).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    publisher.publish(b"still here").await.unwrap();
    let delivery = in_time("a delivery", subscription.next_delivery()).await;
    assert_eq!(delivery.unwrap().unwrap().payload, &b"still here"[..]);
    in_time("its answer", publisher.finish()).await.unwrap();
    drop(subscription);
    let gone = async {
        while socket.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time("its end", gone).await;
    stage.start("a").await;
}
