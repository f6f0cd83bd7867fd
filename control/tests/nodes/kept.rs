//! Channels with a log on a node's disk: read from any place, over restarts and kills.

use crate::{
    numbered,
    stage::{Channel, RELIABLE, Stage, eventually, in_time},
};
use std::process::{Command, Output};
use virga::mesh::{Cursor, MeshError, Replay, Replayed};

/// Both are kept at b.
const ALARMS: Channel = Channel {
    name: "test/alarms",
    ..RELIABLE
};

/// A stage whose b keeps the channels, with more lines in their blocks.
fn keeping(channels: &[Channel], lines: &str) -> Stage {
    let stage = Stage::new(channels);
    let reads = "subscribe = [\"b\"]";
    stage.edit("b", reads, &format!("{reads}\npersist = true\n{lines}"));
    stage
}

async fn start(stage: &mut Stage) {
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    eventually("b's log has subscribed", async || {
        let mesh = stage.mesh("a").await;
        (mesh.subscribers(RELIABLE.name).await.unwrap() == 1).then_some(())
    })
    .await;
}

async fn publish(stage: &Stage, channel: &str, events: &[Vec<u8>]) {
    let publishing = stage.mesh("a").await;
    let publishing = publishing.publish_batch(channel, events);
    let published = in_time("publishing", publishing).await.unwrap();
    assert_eq!(published.published, u64::try_from(events.len()).unwrap());
}

/// Waits until b's log holds so many events of the channel for good.
async fn is_kept(stage: &Stage, channel: &str, events: u64) {
    eventually("the log has all events", async || {
        let status = stage.status("b").await;
        let log = status.logs.iter().find(|log| log.channel == channel)?;
        assert_eq!((log.lost, log.problem.as_deref()), (0, None));
        (log.readable == events).then_some(())
    })
    .await;
}

/// The next events: their offsets and payloads.
async fn events(replay: &mut Replay, count: usize) -> Vec<(u64, Vec<u8>)> {
    let mut all = Vec::new();
    while all.len() < count {
        let next = in_time("the log's next event", replay.next_kept()).await;
        match next.unwrap().unwrap() {
            Replayed::Event(event) => all.push((event.offset, event.payload.to_vec())),
            Replayed::Gap(why) => panic!("{why}"),
        }
    }
    all
}

fn placed(events: &[Vec<u8>], from: usize) -> Vec<(u64, Vec<u8>)> {
    let numbered = (0..).zip(events.iter().cloned());
    numbered.skip(from).collect()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_channel_is_read_from_any_place_and_on() {
    let mut stage = keeping(&[RELIABLE, ALARMS], "");
    start(&mut stage).await;
    let sent = numbered(3_000);
    publish(&stage, RELIABLE.name, &sent[..2_000]).await;
    is_kept(&stage, RELIABLE.name, 2_000).await;
    let mesh = stage.mesh("b").await;
    let mut from_start = mesh.replay(RELIABLE.name, Cursor::Start).await.unwrap();
    assert_eq!(
        events(&mut from_start, 2_000).await,
        placed(&sent[..2_000], 0)
    );
    let mut from_end = mesh.replay(RELIABLE.name, Cursor::End).await.unwrap();
    let mut after = mesh
        .replay(RELIABLE.name, Cursor::After(1_998))
        .await
        .unwrap();
    let mut below = mesh.replay_prefix("test", Cursor::End).await.unwrap();
    // What comes is given to all of them.
    publish(&stage, RELIABLE.name, &sent[2_000..]).await;
    for reader in [&mut from_start, &mut from_end, &mut below] {
        assert_eq!(events(reader, 1_000).await, placed(&sent, 2_000));
    }
    assert_eq!(events(&mut after, 1_001).await, placed(&sent, 1_999));
    publish(&stage, ALARMS.name, &sent[..1]).await;
    assert_eq!(events(&mut below, 1).await, placed(&sent[..1], 0));
    let origin = stage.node("a").origin;
    let line = stage.node("b").run(&[
        "sub",
        RELIABLE.name,
        "--from",
        "2999",
        "--count",
        "1",
        "--json",
        "--timeout",
        "60",
    ]);
    let line = String::from_utf8(line.stdout).unwrap();
    let start = format!(
        "{{\"channel\":\"test/reliable\",\"offset\":2999,\"origin\":\"{origin}\",\"time_unix_ns\":"
    );
    assert!(
        line.starts_with(&start) && line.ends_with("\"text\":\"event 2999\"}\n"),
        "{line}"
    );
    let status = stage.node("b").run(&["status"]);
    let status = String::from_utf8(status.stdout).unwrap();
    let line =
        "logs:\n  test/alarms (synced): events 0..1\n  test/reliable (synced): events 0..3000\n";
    assert!(status.contains(line), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_goes_on_where_it_was_over_kills_of_node_and_reader() {
    let mut stage = keeping(&[RELIABLE], "");
    start(&mut stage).await;
    let sent = numbered(400);
    let place = tempfile::tempdir().unwrap();
    let place = place.path().join("place");
    let read = |stage: &Stage, count: usize| {
        let count = count.to_string();
        let place = place.to_str().unwrap();
        let output = stage.node("b").run(&[
            "sub",
            RELIABLE.name,
            "--position",
            place,
            "--count",
            &count,
            "--timeout",
            "60",
        ]);
        assert!(output.status.success(), "{}", words(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let lines = |events: &[Vec<u8>]| {
        let lines = events
            .iter()
            .map(|e| format!("{}\n", String::from_utf8_lossy(e)));
        lines.collect::<String>()
    };
    publish(&stage, RELIABLE.name, &sent[..100]).await;
    is_kept(&stage, RELIABLE.name, 100).await;
    assert_eq!(read(&stage, 60), lines(&sent[..60]));
    stage.kill("b");
    stage.start("b").await;
    assert_eq!(read(&stage, 40), lines(&sent[60..100]));
    // Killed while events come: whatever the log had said that it holds is there, each once.
    eventually("b's log has subscribed", async || {
        let mesh = stage.mesh("a").await;
        (mesh.subscribers(RELIABLE.name).await.unwrap() == 1).then_some(())
    })
    .await;
    publish(&stage, RELIABLE.name, &sent[100..]).await;
    is_kept(&stage, RELIABLE.name, 400).await;
    stage.kill("b");
    stage.start("b").await;
    assert_eq!(read(&stage, 300), lines(&sent[100..]));
    stage.terminate("b");
    let logs = stage.node("b").file("state/logs");
    let logs = logs.to_str().unwrap();
    let verified = ["log", "verify", RELIABLE.name, "--logs", logs];
    let verified = Command::new(env!("CARGO_BIN_EXE_virga"))
        .args(verified)
        .output()
        .unwrap();
    assert!(verified.status.success(), "{}", words(&verified));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_kept_is_refused_and_what_was_removed_is_said() {
    let mut stage = keeping(&[RELIABLE], "keep_bytes = 1\n");
    start(&mut stage).await;
    let refusal = async |name: &str, channel: &str, from| match stage
        .mesh(name)
        .await
        .replay(channel, from)
        .await
    {
        Err(MeshError::Refused { code, message }) => (code, message),
        other => panic!("{other:?}"),
    };
    let (code, message) = refusal("a", RELIABLE.name, Cursor::Start).await;
    assert_eq!(code, 403);
    assert_eq!(
        message,
        "this node's entity may not subscribe to test/reliable: add it to the channel's `subscribe` list"
    );
    let mesh = stage.mesh("b").await;
    let offset = mesh.replay_prefix("test", Cursor::Offset(1)).await;
    assert!(
        matches!(&offset, Err(MeshError::Refused { code: 400, message }) if message.contains("one log")),
        "{offset:?}"
    );
    // Two segments and more: the first is removed.
    let large = vec![vec![7; 900_000]; 100];
    for some in large.chunks(10) {
        publish(&stage, RELIABLE.name, some).await;
    }
    is_kept(&stage, RELIABLE.name, 100).await;
    let mut replay = mesh.replay(RELIABLE.name, Cursor::Offset(0)).await.unwrap();
    let first = in_time("the gap", replay.next_kept())
        .await
        .unwrap()
        .unwrap();
    let Replayed::Gap(why) = first else {
        panic!("{first:?}");
    };
    assert!(
        why.starts_with("test/reliable: events 0 to ") && why.contains("retention"),
        "{why}"
    );
    let kept = stage.status("b").await.logs[0].first;
    assert!(kept > 0);
    let rest = events(&mut replay, usize::try_from(100 - kept).unwrap()).await;
    assert_eq!(rest[0].0, kept);
}

/// What `virga log` says of b's log of the channel.
fn log(stage: &Stage, arguments: &[&str]) -> Output {
    let logs = stage.node("b").file("state/logs");
    let output = Command::new(env!("CARGO_BIN_EXE_virga"))
        .arg("log")
        .args(arguments)
        .args(["--logs", logs.to_str().unwrap()])
        .output();
    output.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_are_kept_and_checked_and_a_fork_is_proven() {
    let mut stage = keeping(&[RELIABLE], "");
    for name in ["a", "b"] {
        let line = "name = \"test/reliable\"";
        stage.edit(name, line, &format!("{line}\nsigned = true"));
    }
    start(&mut stage).await;
    let sent = numbered(1_300);
    let mesh = stage.mesh("b").await;
    let mut live = mesh.subscribe(RELIABLE.name).await.unwrap();
    publish(&stage, RELIABLE.name, &sent[..1_000]).await;
    is_kept(&stage, RELIABLE.name, 1_000).await;
    for event in &sent[..1_000] {
        let next = in_time("a live event", live.next_delivery()).await;
        assert_eq!(next.unwrap().unwrap().payload.to_vec(), *event);
    }
    drop(live);
    // What a signs next goes on from there, also after it was killed.
    stage.kill("a");
    stage.start("a").await;
    eventually("b's log has subscribed", async || {
        let mesh = stage.mesh("a").await;
        (mesh.subscribers(RELIABLE.name).await.unwrap() == 1).then_some(())
    })
    .await;
    publish(&stage, RELIABLE.name, &sent[1_000..1_200]).await;
    is_kept(&stage, RELIABLE.name, 1_200).await;
    let mut replay = mesh.replay(RELIABLE.name, Cursor::Start).await.unwrap();
    assert_eq!(events(&mut replay, 1_200).await, placed(&sent[..1_200], 0));
    let verified = log(&stage, &["verify", RELIABLE.name, "--signed"]);
    assert!(verified.status.success(), "{}", words(&verified));
    let said = String::from_utf8(verified.stdout).unwrap();
    assert!(said.contains("1200 of 1200 events are signed"), "{said}");
    let order = ["order", "test/reliable:3", "test/reliable:1199"];
    assert_eq!(log(&stage, &order).stdout, b"before\n");
    let status = stage.status("b").await;
    assert_eq!((status.logs[0].refused, status.logs[0].forks), (0, 0));
    // An entity that forgets what it signed contradicts it, and that is proven.
    stage.kill("a");
    std::fs::remove_dir_all(stage.node("a").file("state/feeds")).unwrap();
    stage.start("a").await;
    eventually("b's log has subscribed", async || {
        let mesh = stage.mesh("a").await;
        (mesh.subscribers(RELIABLE.name).await.unwrap() == 1).then_some(())
    })
    .await;
    publish(&stage, RELIABLE.name, &sent[1_200..]).await;
    is_kept(&stage, RELIABLE.name, 1_300).await;
    let verified = log(&stage, &["verify", RELIABLE.name]);
    assert_eq!(verified.status.code(), Some(1));
    let said = words(&verified);
    let from = "signed two things that contradict each other, from its event 1 on";
    assert!(said.contains(from), "{said}");
    let order = log(&stage, &order).stdout;
    let order = String::from_utf8(order).unwrap();
    assert!(
        order.starts_with("forked: test/reliable of entity "),
        "{order}"
    );
}

/// Segments have 64 MiB: so many events fill one and begin the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_compacted_by_key_and_reads_the_same_over_a_kill() {
    let lines = "compact_by = \"id\"\ncompact_after = \"1s\"\n";
    let mut stage = keeping(&[RELIABLE], lines);
    start(&mut stage).await;
    let fill = "x".repeat(900_000);
    let event = |number: u32| {
        format!(
            "{{\"id\":{},\"n\":{number},\"fill\":\"{fill}\"}}",
            number % 3
        )
    };
    let sent: Vec<Vec<u8>> = (0..100).map(|number| event(number).into_bytes()).collect();
    for some in sent.chunks(10) {
        publish(&stage, RELIABLE.name, some).await;
    }
    is_kept(&stage, RELIABLE.name, 100).await;
    let removed = eventually("the first segment is compacted", async || {
        let log = stage.status("b").await.logs.remove(0);
        assert_eq!(log.compaction_problem, None);
        (log.compacted_events > 0).then_some(log.compacted_events)
    })
    .await;
    assert!((50..97).contains(&removed), "{removed}");
    let mut read = Vec::new();
    for kill in [false, true] {
        if kill {
            stage.kill("b");
            stage.start("b").await;
        }
        let mesh = stage.mesh("b").await;
        let mut replay = mesh.replay(RELIABLE.name, Cursor::Start).await.unwrap();
        let left = events(&mut replay, 100 - usize::try_from(removed).unwrap()).await;
        let as_sent = |(offset, payload): &(u64, Vec<u8>)| {
            sent[usize::try_from(*offset).unwrap()] == *payload
        };
        assert!(left.iter().all(as_sent));
        // The newest of each key, and the end.
        let last = left.last().map(|(offset, _)| *offset);
        assert_eq!(last, Some(99));
        read.push(left.iter().map(|(offset, _)| *offset).collect::<Vec<_>>());
    }
    assert_eq!(read[0], read[1]);
    stage.terminate("b");
    let verified = log(&stage, &["verify", RELIABLE.name]);
    assert!(verified.status.success(), "{}", words(&verified));
    let said = log(&stage, &["stats", RELIABLE.name, "--json"]).stdout;
    let said: serde_json::Value = serde_json::from_slice(&said).unwrap();
    assert_eq!(said["removed_events"], removed);
    assert_eq!(
        (&said["compacted_segments"], &said["end"]),
        (&1.into(), &100.into())
    );
    // The last segment's file has its full length.
    assert!(said["bytes"].as_u64().unwrap() < 90_000_000, "{said}");
}
