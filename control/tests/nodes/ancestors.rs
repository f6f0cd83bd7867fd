//! What a log lacks of an entity's signed events it gets from another node's log, before what follows them.

use crate::{
    numbered,
    stage::{Channel, RELIABLE, Stage, eventually, in_time},
};
use std::process::Command;
use virga::{
    kept::LogStatus,
    mesh::{Cursor, Replay, Replayed, Which},
};

/// a publishes; the others may keep it.
const SIGNED: Channel = Channel {
    subscribe: &["b", "router"],
    ..RELIABLE
};

/// Some of the nodes keep the channel.
fn stage(channel: Channel, keepers: &[&str]) -> Stage {
    let stage = Stage::new(&[channel]);
    let line = "name = \"test/reliable\"\n";
    for name in ["a", "router", "b"] {
        let keys = match keepers.contains(&name) {
            true => "signed = true\npersist = true\n",
            false => "signed = true\n",
        };
        stage.edit(name, line, &format!("{line}{keys}"));
    }
    stage
}

/// Starts a node whose log gets what a publishes once this returns.
async fn start(stage: &mut Stage, name: &str) {
    stage.start(name).await;
    eventually("the log has subscribed", async || {
        let subscriptions = stage.mesh(name).await.subscriptions().await.unwrap();
        let mut of_log = subscriptions.iter().filter(|s| s.name == SIGNED.name);
        of_log.any(|s| s.state == "granted").then_some(())
    })
    .await;
}

async fn publish(stage: &Stage, events: &[Vec<u8>]) {
    let mesh = stage.mesh("a").await;
    let published = in_time("publishing", mesh.publish_batch(SIGNED.name, events)).await;
    assert_eq!(
        published.unwrap().published,
        u64::try_from(events.len()).unwrap()
    );
}

async fn log(stage: &Stage, name: &str) -> LogStatus {
    stage.status(name).await.logs.remove(0)
}

/// Waits until a node's log has so many events.
async fn has(stage: &Stage, name: &str, events: u64) -> LogStatus {
    eventually("the log has all events", async || {
        let log = log(stage, name).await;
        assert_eq!((log.lost, log.refused, log.forks), (0, 0, 0));
        (log.readable == events).then_some(log)
    })
    .await
}

/// All that b's log has, in its order.
async fn read(stage: &Stage, count: usize) -> Vec<Vec<u8>> {
    let mesh = stage.mesh("b").await;
    let mut replay = mesh.replay(SIGNED.name, Cursor::Start).await.unwrap();
    let mut all = Vec::new();
    while all.len() < count {
        let next = in_time("the log's next event", replay.next_kept()).await;
        match next.unwrap().unwrap() {
            Replayed::Event(event) => all.push(event.payload.to_vec()),
            Replayed::Gap(why) => panic!("{why}"),
        }
    }
    all
}

/// Reading there, b has a session with the router, and keeps it.
async fn reads_at_the_router(stage: &Stage) -> Replay {
    let mesh = stage.mesh("b").await;
    let at_router = Which {
        node: Some("router".to_owned()),
        log: None,
    };
    let reading = mesh.replay_at(SIGNED.name, Cursor::Start, &at_router);
    let mut there = in_time("the router's log", reading).await.unwrap();
    let first = in_time("its first event", there.next_kept()).await;
    assert!(matches!(first, Some(Ok(Replayed::Event(_)))), "{first:?}");
    there
}

/// What `virga log` says of b's log.
fn virga_log(stage: &Stage, arguments: &[&str]) -> String {
    let logs = stage.node("b").file("state/logs");
    let output = Command::new(env!("CARGO_BIN_EXE_virga"))
        .arg("log")
        .args(arguments)
        .args(["--logs", logs.to_str().unwrap()])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_away_gets_what_it_lacks_before_what_follows_that() {
    let mut stage = stage(SIGNED, &["router", "b"]);
    stage.start("a").await;
    for name in ["router", "b"] {
        start(&mut stage, name).await;
    }
    let sent = numbered(900);
    publish(&stage, &sent[..200]).await;
    for name in ["router", "b"] {
        has(&stage, name, 200).await;
    }
    // b hears nothing of these; what it hears then follows them.
    stage.kill("b");
    for some in sent[200..800].chunks(20) {
        publish(&stage, some).await;
    }
    has(&stage, "router", 800).await;
    start(&mut stage, "b").await;
    let there = reads_at_the_router(&stage).await;
    publish(&stage, &sent[800..850]).await;
    let log = has(&stage, "b", 850).await;
    drop(there);
    assert_eq!((log.repaired, log.gaps.values().sum::<u64>()), (600, 0));
    assert_eq!(read(&stage, 850).await, sent[..850]);
    let order = ["order", "test/reliable:100", "test/reliable:849"];
    assert_eq!(virga_log(&stage, &order), "before\n");
    let verified = virga_log(&stage, &["verify", SIGNED.name, "--signed"]);
    assert!(
        verified.contains("850 of 850 events are signed"),
        "{verified}"
    );
    let status = stage.node("b").run(&["status"]);
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(
        status.contains("600 got from another node's log"),
        "{status}"
    );

    // What nobody has is missing, and what is before and after it in no known order.
    stage.terminate("router");
    stage.kill("b");
    publish(&stage, &sent[850..860]).await;
    start(&mut stage, "router").await;
    start(&mut stage, "b").await;
    publish(&stage, &sent[860..]).await;
    let log = has(&stage, "b", 890).await;
    assert_eq!((log.repaired, log.gaps.values().sum::<u64>()), (0, 1));
    let expected = [&sent[..850], &sent[860..]].concat();
    assert_eq!(read(&stage, 890).await, expected);
    let order = virga_log(&stage, &["order", "test/reliable:849", "test/reliable:850"]);
    assert!(
        order.starts_with("unknown until fetched: event 860 of test/reliable of entity"),
        "{order}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_hangs_does_not_keep_a_log_from_what_another_has() {
    let held = Channel {
        subscribe: &["a", "b", "router"],
        ..SIGNED
    };
    let mut stage = stage(held, &["a", "router", "b"]);
    // The router may hang without being in the way.
    for (name, peer) in [("a", "b"), ("b", "a")] {
        let address = format!("address = \"{}\"", stage.node(peer).listen);
        stage.edit(name, "via = [\"router\"]", &address);
    }
    stage.start("a").await;
    for name in ["router", "b"] {
        start(&mut stage, name).await;
    }
    let sent = numbered(350);
    publish(&stage, &sent[..100]).await;
    for name in ["a", "router", "b"] {
        has(&stage, name, 100).await;
    }
    stage.kill("b");
    publish(&stage, &sent[100..300]).await;
    for name in ["a", "router"] {
        has(&stage, name, 300).await;
    }
    start(&mut stage, "b").await;
    let there = reads_at_the_router(&stage).await;
    stage.signal("router", "-STOP");
    publish(&stage, &sent[300..]).await;
    let log = has(&stage, "b", 350).await;
    drop(there);
    assert_eq!((log.repaired, log.gaps.values().sum::<u64>()), (200, 0));
    assert_eq!(read(&stage, 350).await, sent);
}
