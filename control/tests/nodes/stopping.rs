//! What a node that is stopped still does for its peers.

use crate::{
    payloads,
    stage::{RELIABLE, Stage, in_time},
};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_before_sigterm_arrives() {
    let mut stage = Stage::running(&[RELIABLE]).await;
    let mut events = stage.subscribed(RELIABLE.name).await;
    let a = stage.mesh("a").await;
    stage.signal("b", "-STOP");
    let sent: Vec<Vec<u8>> = (0..1_000)
        .map(|n| format!("{n:01000}").into_bytes())
        .collect();
    let publishing = a.publish_batch(RELIABLE.name, &sent);
    let published = in_time("all are accepted", publishing).await.unwrap();
    assert_eq!((published.published, published.lost), (1_000, 0));
    // Most of it waits at a for acknowledgements.
    stage.signal("a", "-TERM");
    tokio::time::sleep(Duration::from_millis(300)).await;
    stage.signal("b", "-CONT");
    let arrived = payloads(&mut events, sent.len()).await;
    assert!(arrived == sent, "out of order");
    assert!(stage.terminate("a").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_acknowledges_nothing_holds_up_the_end_for_a_bounded_time() {
    let mut stage = Stage::running(&[RELIABLE]).await;
    let _events = stage.subscribed(RELIABLE.name).await;
    let a = stage.mesh("a").await;
    stage.signal("b", "-STOP");
    let publishing = a.publish(RELIABLE.name, b"never heard");
    in_time("it is accepted", publishing).await.unwrap();
    let begun = std::time::Instant::now();
    assert!(stage.terminate("a").success());
    let took = begun.elapsed();
    assert!(
        took > Duration::from_secs(1),
        "nothing was waited for: {took:?}"
    );
    assert!(took < Duration::from_secs(15), "{took:?}");
    stage.signal("b", "-CONT");
}
