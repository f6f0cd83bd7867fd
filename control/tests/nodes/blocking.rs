//! The API without `async`, and a client that does not wait for ever.

use crate::stage::{RELIABLE, Stage, in_time};
use std::time::Duration;
use virga::mesh::blocking::Mesh;

#[tokio::test(flavor = "multi_thread")]
async fn the_same_without_async_publishes_subscribes_and_hands_back_what_is_too_much() {
    let stage = Stage::running(&[RELIABLE]).await;
    let [a, b] = ["a", "b"].map(|name| stage.node(name).socket());
    let program = tokio::task::spawn_blocking(move || {
        let (a, b) = (Mesh::open(a).unwrap(), Mesh::open(b).unwrap());
        let mut events = b.subscribe_prefix("test").unwrap();
        assert!(events.next_within(Duration::from_millis(1)).is_none());
        let patience = Duration::from_secs(90);
        let found = a.wait_for_subscribers(RELIABLE.name, 1, patience);
        assert_eq!(found.unwrap(), Some(1));
        let none = a.wait_for_subscribers(RELIABLE.name, 2, Duration::from_millis(60));
        assert_eq!(none.unwrap(), None);
        a.publish(RELIABLE.name, b"first").unwrap();
        let batch = a.publish_batch(RELIABLE.name, [b"second", b"third "]);
        assert_eq!(batch.unwrap().published, 2);
        let publisher = a.publisher(RELIABLE.name).unwrap();
        publisher.publish(b"fourth").unwrap();
        publisher.try_publish(&b"fifth"[..]).unwrap();
        assert_eq!(publisher.finish().unwrap().published, 2);
        let heard: Vec<_> = events
            .by_ref()
            .take(5)
            .map(|d| d.unwrap().payload)
            .collect();
        let all = ["first", "second", "third ", "fourth", "fifth"];
        assert_eq!(heard, all.map(str::as_bytes));
        assert_eq!(a.status().unwrap().channels[0].published, 5);
        assert_eq!(b.subscriptions().unwrap()[0].state, "granted");
        let unknown = a.publish("test/none", b"x").unwrap_err();
        assert!(unknown.to_string().contains("add a [[channels]] block"));
    });
    in_time("the program", program).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_answer_is_not_waited_for_without_end() {
    let stage = Stage::running(&[]).await;
    stage.signal("a", "-STOP");
    let output = stage.node("a").run(&["status"]);
    stage.signal("a", "-CONT");
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("has not answered for 10 s"), "{words}");
}
