//! What an entity had observed of another's events, and a log lacks, it gets from another node's log, and so it is known
//! which event was before which.

use crate::{
    numbered,
    stage::{Channel, RELIABLE, Stage, eventually, in_time},
};
use std::process::Command;
use virga::{
    kept::LogStatus,
    mesh::{Cursor, Replayed},
};

/// All publish; the router and b keep.
const SIGNED: Channel = Channel {
    publish: &["a", "router", "b"],
    subscribe: &["b", "router"],
    ..RELIABLE
};

/// Which a publishes on, and the router alone keeps.
const OTHER: Channel = Channel {
    name: "test/other",
    publish: &["a"],
    subscribe: &["router"],
    ..RELIABLE
};

fn stage() -> Stage {
    stage_of(&[(SIGNED, &["router", "b"])])
}

/// Channels, and who keeps each.
fn stage_of(channels: &[(Channel, &[&str])]) -> Stage {
    let all: Vec<Channel> = channels
        .iter()
        .map(|(channel, _)| channel.clone())
        .collect();
    let stage = Stage::new(&all);
    for (channel, keepers) in channels {
        let line = format!("name = \"{}\"\n", channel.name);
        for name in ["a", "router", "b"] {
            let keys = match keepers.contains(&name) {
                false => "signed = true\n",
                true => "signed = true\npersist = true\n",
            };
            stage.edit(name, &line, &format!("{line}{keys}"));
        }
    }
    stage
}

async fn publish(stage: &Stage, name: &str, events: &[Vec<u8>], heard_by: usize) {
    publish_on(SIGNED.name, stage, name, (events, heard_by)).await;
}

/// Publishes once so many other nodes hear it.
async fn publish_on(
    channel: &str,
    stage: &Stage,
    name: &str,
    (events, heard_by): (&[Vec<u8>], usize),
) {
    eventually("the logs have subscribed", async || {
        let status = stage.status(name).await;
        let channel = status.channels.iter().find(|c| c.name == channel)?;
        (channel.remote_subscribers == heard_by).then_some(())
    })
    .await;
    let mesh = stage.mesh(name).await;
    for some in events.chunks(20) {
        let published = in_time("publishing", mesh.publish_batch(channel, some)).await;
        assert_eq!(published.unwrap().published, some.len() as u64);
    }
}

/// Waits until a node's log has so many events.
async fn has(stage: &Stage, name: &str, events: u64) -> LogStatus {
    eventually("the log has all events", async || {
        let log = stage.status(name).await.logs.remove(0);
        assert_eq!((log.lost, log.refused, log.forks), (0, 0, 0));
        (log.readable == events).then_some(log)
    })
    .await
}

/// Waits until the router's log of a channel has so many events.
async fn router_has(stage: &Stage, channel: &str, events: u64) {
    eventually("the router's log has all events", async || {
        let logs = stage.status("router").await.logs;
        let log = logs.into_iter().find(|log| log.channel == channel)?;
        (log.readable == events).then_some(())
    })
    .await;
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

/// How two events of b's log stand to each other.
fn order(stage: &Stage, one: usize, other: usize) -> String {
    let place = |offset| format!("{}:{offset}", SIGNED.name);
    virga_log(stage, &["order", &place(one), &place(other)])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_had_observed_a_log_gets_and_its_order_is_known() {
    let mut stage = stage();
    let (sent, said) = (numbered(300), [b"one".to_vec(), b"two".to_vec()]);
    for name in ["a", "router"] {
        stage.start(name).await;
    }
    publish(&stage, "a", &sent[..200], 1).await;
    has(&stage, "router", 200).await;
    // b has never heard of a, which has gone, and hears of what the router says alone.
    stage.terminate("a");
    stage.start("b").await;
    publish(&stage, "router", &said[..1], 1).await;
    let log = has(&stage, "b", 201).await;
    assert_eq!((log.named, log.repaired, log.repeated), (200, 0, 0));
    assert_eq!(
        log.unfound.values().chain(log.gaps.values()).sum::<u64>(),
        0
    );
    let expected = [&said[..1], &sent[..200]].concat();
    assert_eq!(read(&stage, 201).await, expected);
    assert_eq!(order(&stage, 0, 200), "after\n");
    assert_eq!(order(&stage, 1, 200), "before\n");

    // Away once more, it gets what a said since.
    stage.kill("b");
    stage.start("a").await;
    publish(&stage, "a", &sent[200..280], 1).await;
    has(&stage, "router", 281).await;
    stage.terminate("a");
    stage.start("b").await;
    publish(&stage, "router", &said[1..], 1).await;
    let log = has(&stage, "b", 282).await;
    assert_eq!((log.named, log.repaired, log.repeated), (80, 0, 0));
    let expected = [&expected[..], &said[1..], &sent[200..280]].concat();
    assert_eq!(read(&stage, 282).await, expected);
    // What the router said first was not observed by a, nor had it observed that.
    assert_eq!(order(&stage, 0, 281), "concurrent\n");
    assert_eq!(order(&stage, 201, 281), "after\n");

    // What a says then follows that.
    stage.start("a").await;
    publish(&stage, "a", &sent[280..], 2).await;
    let log = has(&stage, "b", 302).await;
    assert_eq!((log.named, log.repaired, log.repeated), (80, 0, 0));
    assert_eq!(log.gaps.values().sum::<u64>(), 0);
    assert_eq!(order(&stage, 281, 282), "before\n");
    assert_eq!(order(&stage, 201, 282), "concurrent\n");
    let verified = virga_log(&stage, &["verify", SIGNED.name, "--signed"]);
    assert!(
        verified.contains("302 of 302 events are signed"),
        "{verified}"
    );
    let status = stage.node("b").run(&["status"]);
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(
        status.contains("80 got from another node's log, as others name them"),
        "{status}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_could_give_is_unknown_until_it_is_asked_for_at_the_next_start() {
    let mut stage = stage();
    let (sent, said) = (numbered(160), [b"one".to_vec(), b"two".to_vec()]);
    for name in ["a", "router", "b"] {
        stage.start(name).await;
    }
    publish(&stage, "a", &sent[..100], 2).await;
    for name in ["router", "b"] {
        has(&stage, name, 100).await;
    }
    stage.kill("b");
    publish(&stage, "a", &sent[100..], 1).await;
    has(&stage, "router", 160).await;
    stage.terminate("a");
    // b and the router each say something that the other has not observed. By b's file, no other node may keep the channel.
    stage.terminate("router");
    let (all, only_b) = (r#"subscribe = ["b", "router"]"#, r#"subscribe = ["b"]"#);
    stage.edit("b", all, only_b);
    stage.start("b").await;
    publish(&stage, "b", &said[..1], 0).await;
    has(&stage, "b", 101).await;
    stage.start("router").await;
    publish(&stage, "router", &said[1..], 1).await;
    has(&stage, "b", 102).await;
    let log = eventually("nobody gives what is named", async || {
        let log = stage.status("b").await.logs.remove(0);
        (log.unfound.values().sum::<u64>() > 0).then_some(log)
    })
    .await;
    assert_eq!((log.readable, log.named), (102, 0));
    let unknown = order(&stage, 100, 101);
    assert!(
        unknown.starts_with("unknown until fetched: event 160 of test/reliable of entity"),
        "{unknown}"
    );

    stage.kill("b");
    stage.edit("b", only_b, all);
    stage.start("b").await;
    let log = has(&stage, "b", 162).await;
    assert_eq!((log.named, log.unfound.values().sum::<u64>()), (60, 0));
    assert_eq!(order(&stage, 100, 101), "concurrent\n");
    assert_eq!(order(&stage, 101, 161), "after\n");
    assert_eq!(order(&stage, 100, 161), "concurrent\n");
    let all = [&sent[..100], &said, &sent[100..]].concat();
    assert_eq!(read(&stage, 162).await, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_of_another_channel_or_from_before_a_log_with_bounds_began_is_told_of_once() {
    let mut stage = stage_of(&[(SIGNED, &["router", "b"]), (OTHER, &["router"])]);
    for name in ["a", "router", "b"] {
        stage.start(name).await;
    }
    let (sent, said) = (numbered(60), [b"one", b"two"].map(|word| word.to_vec()));
    // What the router says names what it has of a channel that b does not keep.
    publish_on(OTHER.name, &stage, "a", (&sent[..20], 1)).await;
    router_has(&stage, OTHER.name, 20).await;
    publish(&stage, "router", &said[..1], 1).await;
    let log = eventually("nobody has what is named", async || {
        let log = stage.status("b").await.logs.remove(0);
        (log.unfound.values().sum::<u64>() > 0).then_some(log)
    })
    .await;
    assert_eq!((log.readable, log.unfound["unknown"]), (1, 1));
    publish_on(OTHER.name, &stage, "a", (&sent[20..40], 1)).await;
    router_has(&stage, OTHER.name, 40).await;
    publish(&stage, "router", &said[1..], 1).await;
    let log = has(&stage, "b", 2).await;
    assert_eq!(log.unfound.values().sum::<u64>(), 1);

    // b hears nothing of what a says on the channel that it keeps, and keeps so many events alone.
    stage.kill("b");
    let line = "persist = true\n";
    stage.edit("b", line, &format!("{line}keep_events = 1000\n"));
    publish(&stage, "a", &sent[40..], 1).await;
    router_has(&stage, SIGNED.name, 22).await;
    stage.terminate("a");
    stage.start("b").await;
    publish(&stage, "router", &[b"three".to_vec()], 1).await;
    let log = eventually("b's log is not to have what is named", async || {
        let log = stage.status("b").await.logs.remove(0);
        (log.unfound["unsure"] == 2).then_some(log)
    })
    .await;
    assert_eq!((log.readable, log.named), (3, 0));
    assert_eq!(log.unfound.values().sum::<u64>(), 2);
}
