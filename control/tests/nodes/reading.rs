//! Logs that another node keeps, read over the mesh: a publishes, b keeps, the router reads.

use crate::{
    numbered,
    stage::{Channel, Program, RELIABLE, Stage, eventually, in_time},
};
use std::path::Path;
use virga::mesh::{Cursor, MeshError, Replay, Replayed, Which};

const READ: Channel = Channel {
    subscribe: &["b", "router"],
    ..RELIABLE
};
/// Nobody keeps it.
const LIVE: Channel = Channel {
    name: "test/live",
    ..READ
};

/// Has a node keep the channel.
fn keep(stage: &Stage, name: &str) {
    let line = "name = \"test/reliable\"\n";
    stage.edit(name, line, &format!("{line}persist = true\n"));
}

async fn stage() -> Stage {
    let mut stage = Stage::new(&[READ, LIVE]);
    keep(&stage, "b");
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    is_heard(&stage).await;
    stage
}

/// Waits until b's log gets what a publishes, by b's own word: a may still count one that was killed.
async fn is_heard(stage: &Stage) {
    eventually("b's log has subscribed", async || {
        let subscriptions = stage.mesh("b").await.subscriptions().await.unwrap();
        let mut of_log = subscriptions.iter().filter(|s| s.name == READ.name);
        of_log.any(|s| s.state == "granted").then_some(())
    })
    .await;
}

async fn publish(stage: &Stage, events: &[Vec<u8>], end: u64) {
    let mesh = stage.mesh("a").await;
    let published = in_time("publishing", mesh.publish_batch(READ.name, events)).await;
    assert_eq!(
        published.unwrap().published,
        u64::try_from(events.len()).unwrap()
    );
    eventually("b's log has them", async || {
        let logs = stage.status("b").await.logs;
        (logs.first()?.readable == end).then_some(())
    })
    .await;
}

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

/// How a node refuses to give a log. An answer that begins before all were asked is given up, and asked for again.
async fn refusal(stage: &Stage, name: &str, channel: &str, which: &Which) -> (u16, String) {
    let mesh = stage.mesh(name).await;
    eventually("the refusal", async || {
        let replay = mesh.replay_at(channel, Cursor::Start, which);
        match in_time("the answer", replay).await {
            Err(MeshError::Refused { code, message }) => Some((code, message)),
            Err(other) => panic!("{other:?}"),
            Ok(_) => None,
        }
    })
    .await
}

fn placed(events: &[Vec<u8>], from: usize) -> Vec<(u64, Vec<u8>)> {
    (0..).zip(events.iter().cloned()).skip(from).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_another_node_is_read_from_any_place_and_on() {
    let stage = stage().await;
    let sent = numbered(3_000);
    publish(&stage, &sent[..2_000], 2_000).await;
    let mesh = stage.mesh("router").await;
    let replay = async |from| mesh.replay(READ.name, from).await.unwrap();
    let mut start = replay(Cursor::Start).await;
    // There is a session with b from then on.
    assert_eq!(events(&mut start, 2_000).await, placed(&sent[..2_000], 0));
    let mut end = replay(Cursor::End).await;
    let mut offset = replay(Cursor::Offset(1_500)).await;
    let mut after = replay(Cursor::After(1_998)).await;
    let mut time = replay(Cursor::Time(1)).await;
    let mut future = replay(Cursor::Time(u64::MAX)).await;
    let mut prefix = mesh.replay_prefix("test", Cursor::End).await.unwrap();
    assert_eq!(
        events(&mut offset, 500).await,
        placed(&sent[..2_000], 1_500)
    );
    assert_eq!(events(&mut after, 1).await, placed(&sent[..2_000], 1_999));
    assert_eq!(events(&mut time, 2_000).await, placed(&sent[..2_000], 0));
    publish(&stage, &sent[2_000..], 3_000).await;
    let all_others = async {
        for reader in [&mut start, &mut end, &mut offset, &mut after, &mut prefix] {
            assert_eq!(events(reader, 1_000).await, placed(&sent, 2_000));
        }
    };
    tokio::select! {
        given = future.next_kept() => panic!("{given:?}"),
        () = all_others => {}
    }
    let channel = virga_transport::ChannelName::parse(READ.name).unwrap();
    let log = start.log(&channel).unwrap().clone();
    assert_eq!(log.node, stage.node("b").id);
    // The same log by its id and its node, and no other.
    let which = |node: &str, log| Which {
        node: Some(node.to_owned()),
        log,
    };
    let named = which("b", Some(log.log));
    let replay = mesh.replay_at(READ.name, Cursor::Start, &named).await;
    assert_eq!(events(&mut replay.unwrap(), 1).await, placed(&sent[..1], 0));
    for (which, code) in [
        (which("b", Some([9; 16])), 404),
        (which("a", None), 404),
        (which("router", None), 404),
        (which("nobody", None), 404),
    ] {
        let refused = refusal(&stage, "router", READ.name, &which).await;
        assert_eq!(refused.0, code, "{which:?}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_nowhere_or_for_others_is_refused() {
    let stage = stage().await;
    let any = Which::default();
    let (code, message) = refusal(&stage, "router", LIVE.name, &any).await;
    assert_eq!(code, 404);
    assert!(
        message.contains("b: it does not keep the channel"),
        "{message}"
    );
    let (code, message) = refusal(&stage, "a", READ.name, &any).await;
    assert_eq!(code, 403);
    assert!(message.contains("may not subscribe"), "{message}");
    // Who is let in by its own file alone is refused where the log is.
    let mut stage = stage;
    stage.terminate("a");
    stage.edit("a", "[\"b\", \"router\"]", "[\"b\", \"router\", \"a\"]");
    stage.start("a").await;
    let (code, message) = refusal(&stage, "a", READ.name, &any).await;
    assert_eq!(code, 404);
    assert!(
        message.contains("the reader's entity may not subscribe there"),
        "{message}"
    );
    let refused = stage.status("b").await.channel_reasons["read_refused"];
    assert!(refused > 0);
}

/// Reads so many events with a file that says where it was.
fn read(stage: &Stage, place: &Path, count: usize) -> String {
    let count = count.to_string();
    let place = place.to_str().unwrap();
    let arguments = ["sub", READ.name, "--position", place];
    let more = ["--count", &count, "--timeout", "600"];
    let output = stage.node("router").run(&[&arguments[..], &more].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

fn lines(events: &[Vec<u8>]) -> String {
    let lines = events
        .iter()
        .map(|e| format!("{}\n", String::from_utf8_lossy(e)));
    lines.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_goes_on_over_kills_of_the_keeper_the_reader_and_its_node() {
    let mut stage = stage().await;
    let sent = numbered(700);
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("place");
    publish(&stage, &sent[..100], 100).await;
    assert_eq!(read(&stage, &place, 60), lines(&sent[..60]));
    let mesh = stage.mesh("router").await;
    let mut open = mesh.replay(READ.name, Cursor::Start).await.unwrap();
    assert_eq!(events(&mut open, 100).await, placed(&sent[..100], 0));
    // One that waits for what comes, while the node that keeps the log is killed.
    let position = place.to_str().unwrap();
    let arguments = ["sub", READ.name, "--position", position];
    let count = ["--count", "240", "--timeout", "600"];
    let waiting = [&arguments[..], &count].concat();
    let mut waiting = Program::start(&mut stage.node("router").command(&waiting));
    for (from, to) in [(100, 200), (200, 300)] {
        stage.kill("b");
        stage.start("b").await;
        is_heard(&stage).await;
        publish(&stage, &sent[from..to], u64::try_from(to).unwrap()).await;
        assert_eq!(events(&mut open, 100).await, placed(&sent[..to], from));
    }
    let (status, text, words) = waiting.wait();
    assert!(status.success(), "{words}");
    assert_eq!(text, lines(&sent[60..300]));
    drop(open);
    // The reader's node is killed, and comes up before the one that keeps the log.
    stage.kill("router");
    stage.kill("b");
    stage.start("router").await;
    let mut waiting = [&arguments[..], &["--count", "1", "--timeout", "600"]].concat();
    waiting.push("--json");
    let mut waiting = Program::start(&mut stage.node("router").command(&waiting));
    stage.start("b").await;
    is_heard(&stage).await;
    publish(&stage, &sent[300..], 700).await;
    let (status, text, words) = waiting.wait();
    assert!(status.success(), "{words}");
    assert!(text.contains("\"offset\":300,"), "{text}");
    assert_eq!(read(&stage, &place, 399), lines(&sent[301..]));
    // A log that was begun anew is another one: the place is in none.
    stage.kill("b");
    std::fs::remove_dir_all(stage.node("b").file("state/logs")).unwrap();
    stage.start("b").await;
    let more = ["--count", "1", "--timeout", "600"];
    let output = stage.node("router").run(&[&arguments[..], &more].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("another one than what was read"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_holds_up_nobody_and_misses_nothing() {
    let stage = stage().await;
    let mesh = stage.mesh("router").await;
    let mut slow = mesh.replay(READ.name, Cursor::Start).await.unwrap();
    // Far more than is on its way to a reader at a time.
    let large: Vec<Vec<u8>> = (0..40_u8).map(|n| vec![n; 500_000]).collect();
    for (n, some) in large.chunks(10).enumerate() {
        let end = u64::try_from((n + 1) * 10).unwrap();
        publish(&stage, some, end).await;
    }
    assert_eq!(events(&mut slow, 40).await, placed(&large, 0));
}

/// What comes before it answers is not given: of several logs, one that is not to be had for so long is read from where it
/// then ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_from_the_end_begins_where_a_log_ends_once_its_node_answers() {
    let mut stage = stage().await;
    let sent = numbered(400);
    publish(&stage, &sent[..100], 100).await;
    stage.kill("b");
    let mesh = stage.mesh("router").await;
    let mut prefix = mesh.replay_prefix("test", Cursor::End).await.unwrap();
    stage.start("b").await;
    is_heard(&stage).await;
    publish(&stage, &sent[100..200], 200).await;
    // The first that is given is the next that came once b's log was found, and all behind it are given.
    let mut next = 200;
    let first = loop {
        publish(&stage, &sent[next..=next], next as u64 + 1).await;
        next += 1;
        let given = tokio::time::timeout(std::time::Duration::from_millis(900), prefix.next_kept());
        match given.await {
            Err(_) => assert!(next < 300, "b's log is not found"),
            Ok(given) => match given.unwrap().unwrap() {
                Replayed::Event(event) => break usize::try_from(event.offset).unwrap(),
                Replayed::Gap(why) => panic!("{why}"),
            },
        }
    };
    assert!((100..next).contains(&first), "{first}");
    publish(&stage, &sent[next..], 400).await;
    let rest = events(&mut prefix, 400 - first - 1).await;
    assert_eq!(rest, placed(&sent, first + 1));
}
