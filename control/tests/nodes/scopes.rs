//! Scopes around channels, over real daemons: what a broader scope takes away, nothing below it gives back.

use crate::stage::{Channel, RELIABLE, Stage, in_time};

const LAB: Channel = Channel {
    name: "test/lab/x",
    subscribe: &["b", "router"],
    ..RELIABLE
};

/// b's own file has no scope: it asks for everything, and gets what a's leaves.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_to_many_channels_gets_what_every_scope_leaves_and_why_names_the_one_that_refuses()
 {
    let mut stage = Stage::new(&[RELIABLE, LAB]);
    let block = format!("[[channels]]\nname = \"{}\"", LAB.name);
    let scopes = "[[scopes]]\nname = \"test\"\nsubscribe = [\"b\", \"router\"]\n\
                  [[scopes]]\nname = \"test/lab\"\nsubscribe = [\"router\"]\n";
    stage.edit("a", &block, &format!("{scopes}{block}"));
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let mut events = stage
        .mesh("b")
        .await
        .subscribe_prefix("test")
        .await
        .unwrap();
    let mut lab = stage
        .mesh("router")
        .await
        .subscribe(LAB.name)
        .await
        .unwrap();
    stage.subscribers(RELIABLE.name, 1).await;
    stage.subscribers(LAB.name, 1).await;
    for channel in [LAB.name, RELIABLE.name] {
        let publisher = stage.publisher(channel).await;
        publisher.publish(channel.as_bytes()).await.unwrap();
        publisher.finish().await.unwrap();
    }
    let first = in_time("an event at b", events.next_delivery()).await;
    assert_eq!(first.unwrap().unwrap().payload, RELIABLE.name.as_bytes());
    let first = in_time("an event at the router", lab.next_delivery()).await;
    assert_eq!(first.unwrap().unwrap().payload, LAB.name.as_bytes());

    let a = stage.node("a");
    let why = |entity| {
        let output = a.run(&["why", LAB.name, entity, "--to", "subscribe"]);
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (code, words) = why("b");
    assert_eq!(code, Some(1), "{words}");
    let refusal = "test/lab: its `subscribe` list does not name it";
    assert!(words.contains(refusal), "{words}");
    assert!(words.contains("test does not keep it out"), "{words}");
    let (code, words) = why("router");
    assert_eq!(code, Some(0), "{words}");
    let output = a.run(&["channel", "show", LAB.name]);
    let words = String::from_utf8(output.stdout).unwrap();
    assert!(
        words.contains("narrowed by the scopes: test, test/lab"),
        "{words}"
    );
}
