//! A log on three nodes: what was acknowledged survives the loss of any of them.

use crate::stage::{Channel, Stage, eventually, in_time};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};
use virga::{
    kept::{LogStatus, replicated::ReplicationStatus},
    mesh::{Cursor, MeshError, Replayed},
};

const NAMES: [&str; 3] = ["a", "router", "b"];
const LOG: Channel = Channel {
    name: "test/replicated",
    reliable: true,
    hold_max_s: 30,
    publish: &NAMES,
    subscribe: &NAMES,
};

/// How often a test tries again what a change of leader came between.
const ROUNDS: usize = 5;
/// Far above what publishing takes until so many are acknowledged.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(300);

/// All are next to each other and hold the log.
fn stage() -> Stage {
    stage_with("")
}

/// The same with more keys in the channel's block.
fn stage_with(more: &str) -> Stage {
    let stage = Stage::new(&[LOG]);
    for (name, other) in [("a", "b"), ("b", "a")] {
        let address = format!("address = \"{}\"", stage.node(other).listen);
        stage.edit(name, "via = [\"router\"]", &address);
    }
    for name in NAMES {
        let line = "name = \"test/replicated\"\n";
        let keys = "persist = true\nreplicas = [\"a\", \"router\", \"b\"]\n";
        stage.edit(name, line, &format!("{line}{keys}{more}"));
    }
    stage
}

async fn start(stage: &mut Stage) {
    for name in NAMES {
        stage.start(name).await;
    }
}

async fn log(stage: &Stage, name: &str) -> Option<(LogStatus, ReplicationStatus)> {
    let log = stage.status(name).await.logs.into_iter().next()?;
    let replication = log.replication.clone()?;
    Some((log, replication))
}

/// Waits until one of these leads and the others follow it.
async fn leader(stage: &Stage, names: &[&'static str]) -> &'static str {
    eventually("one leads and the others follow", async || {
        let mut leaders = BTreeSet::new();
        for name in names {
            leaders.insert(log(stage, name).await?.1.leader?);
        }
        let leader = leaders.pop_first().filter(|_| leaders.is_empty())?;
        names.iter().copied().find(|name| **name == *leader)
    })
    .await
}

/// Numbers of the events: no two are the same.
static EVENTS: AtomicU32 = AtomicU32::new(0);

/// What one publisher was told.
#[derive(Default)]
struct Told {
    /// How much longer its events are than what is in them.
    padding: usize,
    acknowledged: Vec<String>,
    /// Whether they are in the log nobody knows.
    unknown: BTreeSet<String>,
}

impl Told {
    /// Publishes events one after the other until so many are acknowledged.
    async fn publish(&mut self, stage: &Stage, name: &str, count: usize) {
        let start = Instant::now();
        let wanted = self.acknowledged.len() + count;
        while self.acknowledged.len() < wanted {
            let missing = wanted - self.acknowledged.len();
            assert!(start.elapsed() < PUBLISHED_WITHIN, "{missing} are missing");
            self.publish_at_once(stage, name, 1).await;
        }
    }

    /// Publishes events as one batch; whether they are acknowledged.
    async fn publish_at_once(&mut self, stage: &Stage, name: &str, count: usize) -> bool {
        let mesh = stage.mesh(name).await;
        let event = |_| {
            let number = EVENTS.fetch_add(1, Ordering::Relaxed);
            let padding = " ".repeat(self.padding);
            format!("event {number} by {name}{padding}")
        };
        let events: Vec<String> = (0..count).map(event).collect();
        let published = mesh.publish_batch(LOG.name, &events);
        match in_time("publishing", published).await {
            Ok(published) => {
                assert_eq!(usize::try_from(published.published), Ok(count));
                self.acknowledged.extend(events);
                return true;
            }
            Err(MeshError::Refused { message, .. }) if message.contains("not known") => {
                self.unknown.extend(events);
            }
            Err(MeshError::Refused { message, .. }) => {
                assert!(message.contains("did not take it"), "{message}");
            }
            Err(other) => panic!("{other}"),
        }
        false
    }
}

async fn events(stage: &Stage, name: &str, count: u64) -> Vec<String> {
    let mesh = stage.mesh(name).await;
    let mut replay = mesh.replay(LOG.name, Cursor::Start).await.unwrap();
    let mut events = Vec::new();
    for offset in 0..count {
        let next = in_time("the log's next event", replay.next_kept()).await;
        match next.unwrap().unwrap() {
            Replayed::Event(event) => {
                assert_eq!(event.offset, offset);
                events.push(String::from_utf8(event.payload.to_vec()).unwrap());
            }
            Replayed::Gap(why) => panic!("{why}"),
        }
    }
    events
}

/// Waits until all three have the same, whole, and looks whether every acknowledged event is there, in order, once.
async fn look(stage: &Stage, told: &[&Told]) {
    let count = eventually("all have the same", async || {
        let mut ends = BTreeSet::new();
        for name in NAMES {
            let (log, replication) = log(stage, name).await?;
            assert_eq!(log.problem, None);
            let is_whole = replication.is_whole && log.readable == log.end;
            ends.insert((log.end, is_whole));
        }
        let (end, is_whole) = ends.pop_first()?;
        (ends.is_empty() && is_whole).then_some(end)
    })
    .await;
    let all = events(stage, "a", count).await;
    for name in ["router", "b"] {
        assert_eq!(events(stage, name, count).await, all, "{name} has others");
    }
    let unknown: BTreeSet<&String> = told.iter().flat_map(|one| &one.unknown).collect();
    let distinct: BTreeSet<&String> = all.iter().collect();
    assert_eq!(distinct.len(), all.len(), "an event is there twice");
    for one in told {
        let of = |event: &&String| one.acknowledged.contains(event);
        assert!(all.iter().filter(of).eq(&one.acknowledged), "{all:?}");
    }
    let is_told = |event: &&String| {
        unknown.contains(event) || told.iter().any(|one| one.acknowledged.contains(event))
    };
    assert!(all.iter().all(|event| is_told(&event)));
}

fn others(leader: &str) -> Vec<&'static str> {
    NAMES.into_iter().filter(|name| *name != leader).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_survives_the_leader() {
    let mut stage = stage();
    start(&mut stage).await;
    let first = leader(&stage, &NAMES).await;
    let rest = others(first);
    let (mut one, mut own) = (Told::default(), Told::default());
    own.publish(&stage, first, 20).await;
    one.publish(&stage, rest[0], 30).await;
    stage.kill(first);
    one.publish(&stage, rest[0], 30).await;
    let second = leader(&stage, &rest).await;
    assert_ne!(second, first);
    stage.start(first).await;
    one.publish(&stage, rest[0], 10).await;
    look(&stage, &[&one, &own]).await;
    // One that stood still while others elected thinks that it leads.
    let second = leader(&stage, &NAMES).await;
    let rest = others(second);
    stage.signal(second, "-STOP");
    let mut two = Told::default();
    two.publish(&stage, rest[0], 20).await;
    stage.signal(second, "-CONT");
    let mut late = Told::default();
    late.publish(&stage, second, 5).await;
    look(&stage, &[&one, &own, &two, &late]).await;
    let status = stage.node(second).run(&["log", "replicas", LOG.name]);
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(status.status.success() && text.contains("led by"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minority_acknowledges_nothing_and_an_emptied_copy_is_filled() {
    let mut stage = stage();
    start(&mut stage).await;
    let leads = leader(&stage, &NAMES).await;
    let rest = others(leads);
    let mut told = Told::default();
    told.publish(&stage, rest[0], 20).await;
    // Emptied while the others go on.
    stage.kill(rest[1]);
    std::fs::remove_dir_all(stage.node(rest[1]).file("state/logs")).unwrap();
    told.publish(&stage, rest[0], 20).await;
    stage.start(rest[1]).await;
    look(&stage, &[&told]).await;
    // Nobody but the one that leads.
    let (leads, before) = alone(&mut stage, &mut told).await;
    let rest = others(leads);
    // The end of what can be read: behind it is what nobody may read yet.
    let mesh = stage.mesh(leads).await;
    let mut from_end = mesh.replay(LOG.name, Cursor::End).await.unwrap();
    for name in rest {
        stage.start(name).await;
    }
    leader(&stage, &NAMES).await;
    told.publish(&stage, leads, 5).await;
    match in_time("the next event", from_end.next_kept()).await {
        Some(Ok(Replayed::Event(event))) => assert_eq!(event.offset, before),
        other => panic!("{other:?}"),
    }
    drop(from_end);
    look(&stage, &[&told]).await;
    stage.terminate(leads);
    verify(&stage, leads, &[]);
}

/// Leaves the leader alone with an event that nobody else has; who that is, and how many events most have.
async fn alone(stage: &mut Stage, told: &mut Told) -> (&'static str, u64) {
    for round in 0..ROUNDS {
        let leads = leader(stage, &NAMES).await;
        let before = log(stage, leads).await.unwrap().1.committed;
        let rest = others(leads);
        for name in &rest {
            stage.kill(name);
        }
        let event = format!("alone {round}");
        let mesh = stage.mesh(leads).await;
        let published = in_time("publishing", mesh.publish(LOG.name, event.as_bytes())).await;
        assert!(
            matches!(published, Err(MeshError::Refused { .. })),
            "{published:?}"
        );
        told.unknown.insert(event);
        let (status, replication) = log(stage, leads).await.unwrap();
        assert_eq!((status.readable, replication.committed), (before, before));
        if status.end > before {
            return (leads, before);
        }
        // Without the others it leads for some seconds, which were over.
        for name in rest {
            stage.start(name).await;
        }
        look(stage, &[told]).await;
    }
    panic!("no leader took an event while it was alone");
}

/// What `virga log verify` says of a node's log.
fn verify(stage: &Stage, name: &str, arguments: &[&str]) -> Value {
    let logs = stage.node(name).file("state/logs");
    let verify = ["log", "verify", LOG.name, "--json", "--logs"];
    let output = Command::new(env!("CARGO_BIN_EXE_virga"))
        .args(verify)
        .arg(logs)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Looks whether the three have one log, by the hash over all of it.
fn are_one(stage: &Stage, arguments: &[&str]) {
    let one = verify(stage, "a", arguments);
    assert!(one["chain"].is_string(), "{one}");
    for name in ["router", "b"] {
        let other = verify(stage, name, arguments);
        for key in ["end", "chain", "signed"] {
            assert_eq!(other[key], one[key], "{name}: {other} is not {one}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_the_leader_needs_no_other() {
    let mut stage = stage_with("acks = \"leader\"\n");
    start(&mut stage).await;
    let mut told = Told::default();
    told.publish(&stage, "a", 10).await;
    look(&stage, &[&told]).await;
    let mut round = 0;
    let (leads, before) = loop {
        assert!(round < ROUNDS, "no leader took events while it was alone");
        round += 1;
        let leads = leader(&stage, &NAMES).await;
        let before = log(&stage, leads).await.unwrap().0.end;
        for name in others(leads) {
            stage.kill(name);
        }
        if told.publish_at_once(&stage, leads, 10).await {
            break (leads, before);
        }
        // Without the others it leads for some seconds, which were over.
        for name in others(leads) {
            stage.start(name).await;
        }
        look(&stage, &[&told]).await;
    };
    eventually("the leader has them", async || {
        let end = log(&stage, leads).await?.0.end;
        (end == before + 10).then_some(())
    })
    .await;
    let (status, replication) = log(&stage, leads).await.unwrap();
    let most_have = (status.readable, replication.committed);
    assert_eq!(
        most_have,
        (before, before),
        "nobody reads what most have not"
    );
    // Of two, one of which has more, that one leads: the other one alone could not.
    let [second, third] = others(leads)[..] else {
        panic!("there are three");
    };
    stage.start(second).await;
    leader(&stage, &[leads, second]).await;
    stage.start(third).await;
    look(&stage, &[&told]).await;
    are_one(&stage, &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_all_is_told_when_all_have_it() {
    let mut stage = stage_with("acks = \"all\"\n");
    start(&mut stage).await;
    let leads = leader(&stage, &NAMES).await;
    let rest = others(leads);
    let mut told = Told::default();
    told.publish(&stage, rest[0], 10).await;
    for name in NAMES {
        let on_disk = verify(&stage, name, &[])["end"].as_u64();
        assert!(on_disk >= Some(10), "{name}: {on_disk:?}");
    }
    look(&stage, &[&told]).await;
    let leads = leader(&stage, &NAMES).await;
    let rest = others(leads);
    let before = log(&stage, leads).await.unwrap().1.committed;
    stage.kill(rest[1]);
    // Most have it, and one has not.
    let mesh = stage.mesh(rest[0]).await;
    let publishing = in_time("publishing", mesh.publish(LOG.name, b"most have it"));
    match publishing.await {
        Err(MeshError::Refused { message, .. }) => {
            assert!(message.contains("not known"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    told.unknown.insert("most have it".into());
    eventually("most have it for good", async || {
        let (_, replication) = log(&stage, leads).await?;
        (replication.committed == before + 1).then_some(())
    })
    .await;
    stage.start(rest[1]).await;
    told.publish(&stage, rest[0], 10).await;
    look(&stage, &[&told]).await;
    are_one(&stage, &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_events_are_kept_as_they_were_signed_over_a_change_of_leader() {
    let mut stage = stage_with("signed = true\n");
    start(&mut stage).await;
    let first = leader(&stage, &NAMES).await;
    let rest = others(first);
    let (mut one, mut own) = (Told::default(), Told::default());
    own.publish(&stage, first, 20).await;
    one.publish(&stage, rest[0], 20).await;
    stage.kill(first);
    one.publish(&stage, rest[0], 20).await;
    stage.start(first).await;
    own.publish(&stage, first, 20).await;
    look(&stage, &[&one, &own]).await;
    for name in NAMES {
        assert!(stage.terminate(name).success());
    }
    are_one(&stage, &["--signed"]);
    let signed = verify(&stage, "b", &["--signed"])["signed"].clone();
    assert_eq!((&signed["bad"], &signed["forks"]), (&0.into(), &0.into()));
    assert!(signed["events"].as_u64() >= Some(80), "{signed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn submissions_are_under_the_channels_rate() {
    let mut stage = stage_with("max_rate_pps = 20\n");
    start(&mut stage).await;
    let leads = leader(&stage, &NAMES).await;
    let publisher = others(leads)[0];
    // By its own file it may send as fast as it can.
    assert!(stage.terminate(publisher).success());
    stage.edit(publisher, "max_rate_pps = 20\n", "");
    stage.start(publisher).await;
    // Each as much as three seconds let go, of which one may go ahead.
    let large = || Told {
        padding: 64_000,
        ..Told::default()
    };
    let (mut told, mut own) = (large(), large());
    let least = Duration::from_secs(4);
    let mut round = 0;
    loop {
        assert!(round < ROUNDS, "no leader stayed one for long enough");
        round += 1;
        let leads = leader(&stage, &NAMES).await;
        if leads == publisher {
            stage.kill(publisher);
            leader(&stage, &others(publisher)).await;
            stage.start(publisher).await;
            continue;
        }
        let epoch = log(&stage, leads).await.unwrap().1.epoch;
        let before = refused(&stage).await;
        let start = Instant::now();
        told.publish(&stage, publisher, 3).await;
        let of_stranger = (start.elapsed(), refused(&stage).await);
        // Who knows the rate waits for it.
        let start = Instant::now();
        own.publish(&stage, leads, 3).await;
        let of_leader = (start.elapsed(), refused(&stage).await);
        // Each leader counts for itself.
        let later = leader(&stage, &NAMES).await;
        let epoch_later = log(&stage, later).await.unwrap().1.epoch;
        if (later, epoch_later) != (leads, epoch) {
            continue;
        }
        assert!(of_stranger.0 >= least && of_stranger.1 > before);
        assert!(of_leader.0 >= least, "{of_leader:?}");
        assert_eq!(of_leader.1, of_stranger.1);
        break;
    }
    look(&stage, &[&told, &own]).await;
}

/// Submissions that all of them refused for the rate.
async fn refused(stage: &Stage) -> u64 {
    let mut all = 0;
    for name in NAMES {
        all += stage.status(name).await.channel_reasons["submission_rate"];
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_disagree_on_the_replicas_refuse_each_other() {
    let mut stage = stage();
    let all = "replicas = [\"a\", \"router\", \"b\"]\n";
    stage.edit("b", all, "replicas = [\"a\", \"b\"]\n");
    stage.edit("router", &format!("persist = true\n{all}"), "");
    start(&mut stage).await;
    // b means a and itself alone; a means the router too, which holds no log.
    let mesh = stage.mesh("b").await;
    let published = in_time("publishing", mesh.publish(LOG.name, b"x")).await;
    assert!(
        matches!(published, Err(MeshError::Refused { .. })),
        "{published:?}"
    );
    eventually("they are counted", async || {
        let (_, replication) = log(&stage, "a").await?;
        let stranger = stage.status("router").await.channel_reasons["replica_stranger"];
        (replication.dropped["other_group"] > 0 && stranger > 0).then_some(())
    })
    .await;
    assert_eq!(log(&stage, "b").await.unwrap().0.end, 0);
}
