//! Folds of logs by way of nodes: a publishes, b keeps, and the state is the same on the router as on b.

use crate::stage::{Channel, Program, RELIABLE, Stage, eventually, in_time};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use virga::mesh::{Cursor, LiveError, Replayed, Which};
use virga_ebpf::header::OriginHash;
use virga_state::{
    Link, LogName, Options, Retention,
    fold::{
        Folding, Policy, Token,
        ready::{Counters, LastWriterWins},
        snapshot::SnapshotError,
    },
    io::open::{self, OpenLog},
};

const SUMS: Channel = Channel {
    subscribe: &["b", "router"],
    ..RELIABLE
};
const OTHERS: Channel = Channel {
    name: "test/others",
    ..SUMS
};

async fn stage() -> Stage {
    let mut stage = Stage::new(&[SUMS, OTHERS]);
    for channel in [SUMS, OTHERS] {
        let line = format!("name = \"{}\"\n", channel.name);
        stage.edit("b", &line, &format!("{line}persist = true\n"));
    }
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    for channel in [SUMS, OTHERS] {
        stage.subscribers(channel.name, 1).await;
    }
    stage
}

fn token(channel: &str, offset: u64) -> Token {
    let log = LogName::parse(channel).unwrap();
    Token { log, offset }
}

/// Adds to one of seven keys.
fn event(n: u64) -> String {
    json!({"key": format!("k{}", n % 7), "add": n}).to_string()
}

/// What `virga fold` makes of b's files.
fn by_files(stage: &Stage, arguments: &[&str]) -> Value {
    let logs = stage.node("b").file("state/logs");
    let folder = ["--logs", logs.to_str().unwrap(), "--json"];
    let output = Command::new(env!("CARGO_BIN_EXE_virga"))
        .args([arguments, &folder].concat())
        .output();
    serde_json::from_slice(&output.unwrap().stdout).unwrap()
}

/// Without who gave the logs.
fn without_nodes(mut folded: Value) -> Value {
    for log in folded["logs"].as_object_mut().unwrap().values_mut() {
        log.as_object_mut().unwrap().remove("node");
    }
    folded
}

/// Publishes such events, from a number on.
async fn add(stage: &Stage, channel: &str, from: u64, count: u64) {
    let events: Vec<String> = (from..from + count).map(event).collect();
    let mesh = stage.mesh("a").await;
    let published = in_time("publishing", mesh.publish_batch(channel, &events)).await;
    assert_eq!(published.unwrap().published, count);
}

/// Waits until b's log of a channel has so many events.
async fn has(stage: &Stage, channel: &str, events: u64) {
    has_at(stage, "b", channel, events).await;
}

async fn has_at(stage: &Stage, name: &str, channel: &str, events: u64) {
    eventually("the log has all events", async || {
        let logs = stage.status(name).await.logs;
        let log = logs.iter().find(|log| log.channel == channel)?;
        (log.readable == events).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_logs_give_the_same_state_bit_for_bit_on_every_node() {
    let stage = stage().await;
    add(&stage, SUMS.name, 0, 3_000).await;
    add(&stage, OTHERS.name, 5_000, 40).await;
    has(&stage, SUMS.name, 3_000).await;
    has(&stage, OTHERS.name, 40).await;
    let fold = ["fold", "counters", SUMS.name, OTHERS.name, "--json"];
    let there = stage.node("router").json(&fold);
    assert_eq!(there["logs"][SUMS.name]["next"], 3_000);
    assert_eq!(there, stage.node("b").json(&fold));
    let sum = (0..3_000).chain(5_000..5_040).filter(|n| n % 7 == 3);
    assert_eq!(there["state"]["k3"], sum.sum::<u64>());
    let log = &there["logs"][SUMS.name];
    assert_eq!(log["node"], stage.node("b").id.to_string());
    assert_eq!(without_nodes(there), by_files(&stage, &fold[..4]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fold_goes_on_with_what_comes_and_says_what_changes() {
    let stage = stage().await;
    add(&stage, SUMS.name, 1, 10).await;
    has(&stage, SUMS.name, 10).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("said");
    let follow = [
        "fold", "counters", SUMS.name, "--json", "--follow", "--count", "3",
    ];
    let said = fs::File::create(&file).unwrap();
    let mut command = stage.node("router").command(&follow);
    let mut child = command
        .stdout(said)
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let lines = || -> Vec<Value> {
        let text = fs::read_to_string(&file).unwrap();
        let lines = text.lines().map(serde_json::from_str);
        lines.map_while(Result::ok).collect()
    };
    eventually("the state is there", async || {
        (lines().len() == 1).then_some(())
    })
    .await;
    let mesh = stage.mesh("router").await;
    let mut live = mesh
        .fold(Counters, Policy::Stop, &[SUMS.name])
        .await
        .unwrap();
    in_time("catching up", live.catch_up(|_, _| {}))
        .await
        .unwrap();
    assert_eq!(live.folding().next(&token(SUMS.name, 0).log), 10);
    let last = token(SUMS.name, 12);
    assert!(!live.folding().has_reached(&last));

    add(&stage, SUMS.name, 11, 3).await;
    // k4, k5 and k6 had 4, 5 and 6.
    let changed = [(10, "k4", 15), (11, "k5", 17), (12, "k6", 19)];
    let changes: Vec<_> = in_time("the changes", live.changes().take(3).collect()).await;
    for (change, (offset, key, value)) in changes.into_iter().zip(changed) {
        let (place, change) = change.unwrap();
        assert_eq!(place, token(SUMS.name, offset));
        assert_eq!((change.key.as_str(), change.value), (key, Some(value)));
    }
    assert!(live.folding().has_reached(&last));
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap());
    assert!(in_time("the command", ended).await.unwrap().success());
    let said = lines();
    assert_eq!(said[0]["logs"][SUMS.name]["next"], 10);
    for (line, (offset, key, value)) in said[1..].iter().zip(changed) {
        let expected = json!({"log": SUMS.name, "offset": offset, "key": key, "value": value});
        assert_eq!(*line, expected);
    }
    assert_eq!(said.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_knows_an_events_place_reads_what_it_did() {
    let stage = stage().await;
    add(&stage, SUMS.name, 0, 5).await;
    has(&stage, SUMS.name, 5).await;
    let mesh = stage.mesh("router").await;
    let mut live = mesh
        .fold(Counters, Policy::Stop, &[SUMS.name])
        .await
        .unwrap();
    let place = token(SUMS.name, 5);
    let mut waiting = Program::start(&mut stage.node("router").command(&[
        "fold",
        "counters",
        SUMS.name,
        "--reach",
        "test/reliable:5",
    ]));
    let reached = live.reach(&place, |_, _| {});
    tokio::select! {
        reached = reached => panic!("{reached:?}"),
        () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
    }
    add(&stage, SUMS.name, 70, 1).await;
    in_time("the event", live.reach(&place, |_, _| {}))
        .await
        .unwrap();
    assert_eq!(live.folding().view().state["k0"], 70);
    let (status, text, words) = waiting.wait();
    assert!(status.success(), "{words}");
    assert!(text.starts_with("k0\t70\n"), "{text}");
    let elsewhere = ["fold", "counters", SUMS.name, "--reach", "test/others:5"];
    let refused = stage.node("router").run(&elsewhere);
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(words.contains("name that log, too"), "{words}");
    // What makes no sense to the fold ends it, or is counted.
    let mut other = mesh
        .fold(LastWriterWins, Policy::Stop, &[SUMS.name])
        .await
        .unwrap();
    let stopped = in_time("the fold", other.catch_up(|_, _| {})).await;
    assert!(matches!(stopped, Err(LiveError::Fold(_))), "{stopped:?}");
    // It goes no further, as if the event had not been there.
    let first = token(SUMS.name, 0);
    let again = in_time("the fold", other.next_change()).await;
    assert!(matches!(again, Err(LiveError::Stopped(_))), "{again:?}");
    let again = in_time("the fold", other.reach(&first, |_, _| {})).await;
    assert!(matches!(again, Err(LiveError::Stopped(_))), "{again:?}");
    assert!(!other.folding().has_reached(&first));
    let skip = ["fold", "last-writer-wins", SUMS.name, "--skip", "--json"];
    let skipped = stage.node("router").json(&skip);
    assert_eq!(skipped["logs"][SUMS.name]["refused"], 6);
}

const CUT: Channel = Channel {
    name: "test/cut",
    ..SUMS
};
const MIDDLE: Channel = Channel {
    name: "test/middle",
    ..SUMS
};
const END: Channel = Channel {
    name: "test/end",
    ..SUMS
};

const EVENTS: u64 = 60;

/// Makes a log of b's, each event a batch of its own, in many segments.
fn make(stage: &Stage, channel: &str, events_max: Option<u64>) {
    let options = Options {
        segment_bytes: 4_096,
        retention: Retention {
            events_max,
            ..Retention::default()
        },
        ..Options::default()
    };
    let logs = stage.node("b").file("state/logs");
    let name = LogName::parse(channel).unwrap();
    let mut open = OpenLog::open(&logs, &name, options, [7; 16]).unwrap();
    for n in 0..EVENTS {
        let link = Link {
            entity: OriginHash(1),
            observed: n / 2,
            parent: n / 3,
        };
        open.log.append(n + 1, &link, event(n).as_bytes()).unwrap();
        open.settle();
    }
    open.close().unwrap();
}

/// Changes a byte of the last of b's segments of a log that have these.
fn damage(stage: &Stage, channel: &str, bytes: &[u8]) {
    let name = LogName::parse(channel).unwrap();
    let folder = stage.node("b").file("state/logs").join(name.folder());
    let files = fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "seg"));
    files.sort();
    let has = |file: &&PathBuf| place(file, bytes).is_some();
    let file = files.iter().rfind(has).unwrap();
    let mut content = fs::read(file).unwrap();
    content[place(file, bytes).unwrap()] ^= 1;
    fs::write(file, content).unwrap();
}

fn place(file: &Path, bytes: &[u8]) -> Option<usize> {
    let content = fs::read(file).unwrap();
    content.windows(bytes.len()).rposition(|w| w == bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_log_cannot_give_ends_a_fold_or_is_counted_and_nothing_behind_it_is_left_out() {
    let mut stage = Stage::new(&[CUT, MIDDLE, END]);
    for channel in [CUT, MIDDLE, END] {
        let line = format!("name = \"{}\"\n", channel.name);
        stage.edit("b", &line, &format!("{line}persist = true\n"));
        let events_max = (channel.name == CUT.name).then_some(20);
        make(&stage, channel.name, events_max);
    }
    damage(&stage, MIDDLE.name, event(31).as_bytes());
    // The header of the last batch: nothing in the files says that it was whole while b runs.
    damage(&stage, END.name, b"vbat");
    for name in ["router", "b"] {
        stage.start(name).await;
    }
    let mesh = stage.mesh("router").await;
    let mut folded = Vec::new();
    for (channel, missing) in [
        (CUT.name, 20..EVENTS),
        (MIDDLE.name, 1..2),
        (END.name, 1..2),
    ] {
        let names = [channel];
        let last = token(channel, EVENTS - 1);
        let stopping = mesh.fold(Counters, Policy::Stop, &names).await;
        let mut stopping = stopping.unwrap();
        let stopped = in_time("a gap", stopping.catch_up(|_, _| {})).await;
        assert!(matches!(stopped, Err(LiveError::Gap(_))), "{stopped:?}");
        let again = in_time("a gap", stopping.reach(&last, |_, _| {})).await;
        assert!(matches!(again, Err(LiveError::Stopped(_))), "{again:?}");
        assert!(!stopping.folding().has_reached(&last));

        let skipping = mesh.fold(Counters, Policy::Skip, &names).await;
        let mut skipping = skipping.unwrap();
        in_time("the end", skipping.catch_up(|_, _| {}))
            .await
            .unwrap();
        let folding = skipping.folding();
        let progress = folding.progress(&last.log);
        assert_eq!((progress.next, progress.refused), (EVENTS, 0));
        assert!(missing.contains(&progress.missing), "{progress:?}");
        let reaching = mesh.fold(Counters, Policy::Skip, &names).await;
        let mut reaching = reaching.unwrap();
        in_time("the last event", reaching.reach(&last, |_, _| {}))
            .await
            .unwrap();
        assert_eq!(reaching.folding().view(), folding.view());
        let fold = ["fold", "counters", channel, "--skip", "--json"];
        let there = stage.node("router").json(&fold);
        assert_eq!(there, stage.node("b").json(&fold));
        assert_eq!(there["logs"][channel]["missing"], progress.missing);
        let snapshot = folding.snapshot(&last.log).unwrap();
        folded.push((last.log, there, snapshot));
    }
    // Where b has closed its logs, its files say the same.
    stage.terminate("b");
    let logs = stage.node("b").file("state/logs");
    for (log, there, snapshot) in folded {
        let fold = ["fold", "counters", log.as_str(), "--skip"];
        assert_eq!(without_nodes(there), by_files(&stage, &fold));
        let mut folding = Folding::new(Counters, Policy::Skip);
        let mut reader = folding
            .restore(&log, &snapshot, open::read(&logs, &log).unwrap())
            .unwrap();
        folding.catch_up(&log, &mut reader, |_, _| {}).unwrap();
        assert_eq!(folding.next(&log), EVENTS);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_behind_a_reader_is_nothing_to_it_wherever_it_goes_on() {
    let mut stage = Stage::new(&[MIDDLE]);
    let line = format!("name = \"{}\"\n", MIDDLE.name);
    stage.edit("b", &line, &format!("{line}persist = true\n"));
    make(&stage, MIDDLE.name, None);
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let mesh = stage.mesh("router").await;
    let live = mesh.fold(Counters, Policy::Stop, &[MIDDLE.name]).await;
    let mut live = live.unwrap();
    let read = in_time("all of it", live.catch_up(|_, _| {})).await;
    read.unwrap();
    // In the segment that reading goes on in.
    stage.terminate("b");
    damage(&stage, MIDDLE.name, event(EVENTS - 2).as_bytes());
    stage.start("b").await;
    eventually("b's log has subscribed", async || {
        let subscriptions = stage.mesh("b").await.subscriptions().await.unwrap();
        let mut of_log = subscriptions.iter().filter(|s| s.name == MIDDLE.name);
        of_log.any(|s| s.state == "granted").then_some(())
    })
    .await;
    let mut ends = Vec::new();
    for name in ["b", "router"] {
        let mesh = stage.mesh(name).await;
        ends.push(mesh.replay_prefix("test", Cursor::End).await.unwrap());
    }
    add(&stage, MIDDLE.name, 1_000, 1).await;
    let last = token(MIDDLE.name, EVENTS);
    let read = in_time("the next event", live.reach(&last, |_, _| {})).await;
    read.unwrap();
    for end in &mut ends {
        let next = in_time("the next event", end.next_kept()).await;
        let is_it = matches!(&next, Some(Ok(Replayed::Event(event))) if event.offset == EVENTS);
        assert!(is_it, "{next:?}");
    }
    // Whoever reads it anew is told.
    let again = mesh.fold(Counters, Policy::Stop, &[MIDDLE.name]).await;
    let read = in_time("a gap", again.unwrap().catch_up(|_, _| {})).await;
    assert!(matches!(read, Err(LiveError::Gap(_))), "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_is_one_of_one_log_and_which_is_told() {
    let mut stage = Stage::new(&[SUMS]);
    for name in ["router", "b"] {
        let line = "name = \"test/reliable\"\n";
        stage.edit(name, line, &format!("{line}persist = true\n"));
    }
    // b begins later, so that its log has other offsets.
    for name in ["router", "a"] {
        stage.start(name).await;
    }
    stage.subscribers(SUMS.name, 1).await;
    add(&stage, SUMS.name, 0, 5).await;
    stage.start("b").await;
    stage.subscribers(SUMS.name, 2).await;
    add(&stage, SUMS.name, 5, 5).await;
    has_at(&stage, "router", SUMS.name, 10).await;
    has(&stage, SUMS.name, 5).await;

    let mesh = stage.mesh("router").await;
    let of = async |which: Which| {
        let channels = [(SUMS.name.to_owned(), which)];
        let mut live = mesh
            .fold_at(Counters, Policy::Stop, &channels)
            .await
            .unwrap();
        in_time("the end", live.catch_up(|_, _| {})).await.unwrap();
        let (_, opened) = live.logs().next().unwrap();
        let opened = opened.unwrap().clone();
        (live, opened)
    };
    let at_b = Which {
        node: Some("b".to_owned()),
        log: None,
    };
    let (own, opened) = of(Which::default()).await;
    let (mut other, of_b) = of(at_b.clone()).await;
    let ids = ["router", "b"].map(|name| stage.node(name).id);
    assert_eq!([opened.node, of_b.node], ids);
    assert_ne!(opened.log, of_b.log);
    let by_id = Which {
        node: None,
        log: Some(of_b.log),
    };
    assert_eq!(of(by_id).await.1, of_b);
    let place = token(SUMS.name, 7);
    assert!(own.folding().has_reached(&place));
    assert_eq!(other.folding().next(&place.log), 5);
    let reached = other.reach(&place, |_, _| {});
    tokio::select! {
        reached = reached => panic!("{reached:?}"),
        () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
    }
    // What was kept of one is not gone on from in the other.
    let snapshot = own.folding().snapshot(&place.log).unwrap();
    let logs = stage.node("b").file("state/logs");
    let disk = open::read(&logs, &place.log).unwrap();
    let restored = Folding::new(Counters, Policy::Stop).restore(&place.log, &snapshot, disk);
    assert!(matches!(restored, Err(SnapshotError::OtherLog(_))));

    let id = virga::hex::encode_bytes(&of_b.log);
    let fold = ["fold", "counters", SUMS.name, "--json"];
    let there = stage
        .node("router")
        .json(&[&fold[..], &["--at", "b"]].concat());
    assert_eq!(there["logs"][SUMS.name]["id"], id);
    assert_eq!(there["logs"][SUMS.name]["node"], of_b.node.to_string());
    assert_eq!(
        stage
            .node("router")
            .json(&[&fold[..], &["--log", &id]].concat()),
        there
    );
    let elsewhere = [&fold[..], &["--log", &id, "--at", "router"]].concat();
    let refused = stage.node("router").run(&elsewhere);
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(words.contains("another one than is meant"), "{words}");
    let twice = [&at_b, &Which::default()].map(|which| (SUMS.name.to_owned(), which.clone()));
    let twice = mesh.fold_at(Counters, Policy::Stop, &twice).await;
    assert!(matches!(twice, Err(LiveError::Twice(_))), "{twice:?}");
    let nothing = mesh.fold(Counters, Policy::Stop, &[]).await;
    assert!(matches!(nothing, Err(LiveError::Nothing)), "{nothing:?}");
}
