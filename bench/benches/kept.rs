//! What a log's node does beside writing it: which event was before which, what replicas tell each other until an event is
//! committed, and compaction. All in memory: what a disk costs is `scripts/bench log`'s.
//!
//! The limit: the index takes a batch in by its feed (two look-ups of 32 bytes in ordered maps, 50 ns each), by its end (a
//! hash map whose keys have 64 bytes: SipHash, 60 ns, a few times), and by what it observed: three look-ups more, and
//! clocks of 16 entries merged (10 ns an entry): 2 to 3 µs. Two events are compared by both feeds, both batches and an entry
//! of a clock each: 300 to 400 ns.
//!
//! An answer of 256 KiB between replicas is copied six times on its way (encoded, split, written, read, put together,
//! parsed), at 8 to 10 GB/s: 160 to 200 µs. A commit of 100 events of 100 bytes: the leader appends (80 ns an event) and
//! hashes 15 KB (BLAKE3, 3 GB/s: 5 µs), reads them again, each of two followers checks and appends the same, and six messages
//! go to and fro: 50 to 80 µs, 1.3 to 2 million events a second on one core for all three.
//!
//! Compaction checks every hash of a segment each time it goes through it (CRC-32C and BLAKE3, 2 GB/s together), and
//! parses each event's JSON for its key (2 to 4 ns a byte, with a map of its members: 600 ns of 130 bytes). That is twice:
//! 1.3 µs an event, and where nothing goes 0.2 µs more for a key of its own among 6,000. Where most goes, segments are gone
//! through a third time, keys are few, and little is hashed anew: 1.5 to 2 µs.

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use disk::Memory;
use ed25519_dalek::SigningKey;
use virga::replicas::wire::{Assembly, Kind, Part, split};
use virga_ebpf::{
    header::{NodeId, OriginHash},
    tables::mix,
};
use virga_state::{
    Link, Log, LogName, Options,
    batch::{Observed, Verified},
    causal::{Bounds, EventId, Index, Order},
    compact::{self, Rules, Subject},
    feed::FeedEnd,
    files::Files,
    format::LogId,
    limits::FETCH_BYTES,
    log::Boundary,
    recover,
    replica::{
        Acks, Group, Replica, Role, Store, log_id,
        message::{Batches, Body, Message},
    },
};
use virga_transport::ChannelName;

/// The disk of the fuzz targets.
#[allow(
    dead_code,
    unreachable_pub,
    reason = "targets change files behind the log's back"
)]
#[path = "../../dataplane/transport/fuzz/src/disk.rs"]
mod disk;

const MS: u64 = 1_000_000;

fn name() -> LogName {
    LogName::parse("bench").expect("a name")
}

fn link(offset: u64) -> Link {
    Link {
        entity: OriginHash(1),
        observed: 0,
        parent: offset,
    }
}

/// Feeds of a history, batches of each, and events of a batch.
const FEEDS: u64 = 16;
const BATCHES: u64 = 32;
const EVENTS: usize = 4;
/// Other feeds that a batch observes.
const OBSERVED: usize = 3;
/// Pairs of events that are compared.
const PAIRS: u64 = 1_000;

/// An entity, where its feed ends, and what others observe of it.
struct Author {
    key: SigningKey,
    end: FeedEnd,
    last: Option<Observed>,
}

impl Author {
    fn new(seed: u64) -> Self {
        let mut secret = [7; 32];
        secret[..8].copy_from_slice(&seed.to_be_bytes());
        let key = SigningKey::from_bytes(&secret);
        let end = FeedEnd::new(name(), key.verifying_key().to_bytes());
        Self {
            key,
            end,
            last: None,
        }
    }

    fn say(&mut self, mut frontier: Vec<Observed>) -> Verified {
        frontier.sort_unstable();
        let payloads = || [&b"an event"[..]; EVENTS].into_iter();
        let signed = self.end.sign(&self.key, frontier, payloads());
        let batch = signed.expect("in order").verify(payloads());
        let batch = batch.expect("as it was signed");
        let statement = batch.statement();
        self.last = Some(Observed {
            feed: statement.feed(),
            count: statement.last(),
            head: statement.head,
        });
        batch
    }
}

/// Batches of all feeds in turn, each after it has observed the newest of some others.
fn history() -> Vec<Verified> {
    let mut authors: Vec<Author> = (0..FEEDS).map(Author::new).collect();
    let mut all = Vec::new();
    for _ in 0..BATCHES {
        for at in 0..authors.len() {
            let others = (1..=OBSERVED).map(|n| (at + n) % authors.len());
            let frontier = others.filter_map(|other| authors[other].last).collect();
            all.push(authors[at].say(frontier));
        }
    }
    all
}

fn index_of(batches: impl IntoIterator<Item = Verified>) -> Index {
    let mut index = Index::new(Bounds::default());
    for batch in batches {
        let inserted = index.insert(batch);
        assert!(inserted.place.is_ok() && inserted.fork.is_none());
    }
    index
}

fn order(c: &mut Criterion) {
    let history = history();
    let mut group = c.benchmark_group("order");
    group.throughput(Throughput::Elements(history.len() as u64));
    // From the last to the first one, all but one wait for others.
    let backwards: Vec<Verified> = history.iter().rev().cloned().collect();
    for (name, batches) in [("insert", &history), ("insert_backwards", &backwards)] {
        group.bench_function(name, |b| {
            b.iter_batched(
                || batches.clone(),
                |batches| {
                    let count = batches.len();
                    let index = index_of(batches);
                    assert_eq!((index.held(), index.pending()), (count, 0));
                    index
                },
                BatchSize::LargeInput,
            );
        });
    }
    let feeds: Vec<_> = history
        .iter()
        .take(16)
        .map(|b| b.statement().feed())
        .collect();
    let index = index_of(history);
    let event = |n: u64| EventId {
        feed: feeds[usize::try_from(n % FEEDS).expect("few feeds")],
        sequence: 1 + (n >> 8) % (BATCHES * EVENTS as u64),
    };
    let pairs = (0..PAIRS).map(|n| (event(mix(1, n)), event(mix(2, n))));
    let pairs: Vec<(EventId, EventId)> = pairs.collect();
    let is_before = |order: &Order| *order == Order::Before;
    let mut concurrent = 0;
    for (one, other) in &pairs {
        let (there, back) = (index.order(*one, *other), index.order(*other, *one));
        assert!(!matches!(there, Order::Unknown(_) | Order::Forked(_)));
        assert_eq!(is_before(&there), back == Order::After);
        assert_eq!(there == Order::Concurrent, back == Order::Concurrent);
        concurrent += usize::from(there == Order::Concurrent);
    }
    assert!((1..pairs.len() / 2).contains(&concurrent), "{concurrent}");
    group.throughput(Throughput::Elements(PAIRS));
    group.bench_function("compare", |b| {
        b.iter(|| {
            for (one, other) in &pairs {
                black_box(index.order(*one, *other));
            }
        });
    });
    group.finish();
}

/// What replicas say, with its way in parts.
fn messages(c: &mut Criterion) {
    let channel = ChannelName::parse("bench").expect("a name");
    let answer = Message {
        group: 1,
        life: 2,
        to: 3,
        epoch: 4,
        body: Body::Batches(Batches {
            at: Boundary {
                offset: 5,
                chain: [6; 32],
            },
            begin: 0,
            committed: 5,
            round: 1,
            is_whole: true,
            bytes: vec![0x5a; FETCH_BYTES],
        }),
    };
    let mut group = c.benchmark_group("replicas");
    group.throughput(Throughput::Bytes(FETCH_BYTES as u64));
    group.bench_function("answer_in_parts", |b| {
        b.iter(|| {
            let bytes = black_box(&answer).encode();
            let (mut assembly, mut whole) = (Assembly::default(), None);
            for part in split(Kind::Between, &channel, 7, &bytes) {
                let mut said = Vec::new();
                part.write(&mut said);
                let heard = Part::parse(&said).expect("its form is right");
                whole = assembly.take(heard).expect("the next one");
            }
            let whole = whole.expect("all parts");
            let heard = Message::parse(&whole.bytes).expect("its form is right");
            assert_eq!(heard.body, answer.body);
        });
    });
    group.finish();
}

/// Replicas, events of one commit and their bytes, and commits of one turn.
const REPLICAS: u64 = 3;
const COMMIT_EVENTS: u64 = 100;
const EVENT_BYTES: usize = 100;
const COMMITS: u64 = 16;
/// Steps after which replicas that nobody asks anything have said all.
const STEPS_MAX: usize = 1_000;

fn id() -> LogId {
    log_id(b"bench", &name())
}

/// A log in memory, new.
fn fresh(segment_bytes: u64) -> (Memory, Log, Files<Memory>) {
    let disk = Memory::default();
    let (state, _) = recover(&disk, &name(), id()).expect("a new log");
    let options = Options {
        segment_bytes,
        ..Options::default()
    };
    let files = Files::open(disk.clone()).expect("a new folder");
    (disk, Log::new(state, options), files)
}

struct Node {
    id: NodeId,
    log: Log,
    files: Files<Memory>,
    replica: Replica<Memory>,
}

impl Node {
    fn new(number: u64) -> Self {
        let nodes: Vec<NodeId> = (1..=REPLICAS).map(NodeId).collect();
        let group = Group::new(NodeId(number), &nodes).expect("a group");
        let (_, mut log, mut files) = fresh(1 << 20);
        let mut store = Store {
            log: &mut log,
            files: &mut files,
        };
        let replica = Replica::open(MS, group, (&name(), id()), &[], number, &mut store);
        Self {
            id: NodeId(number),
            replica: replica.expect("a new replica"),
            log,
            files,
        }
    }

    fn with(&mut self, act: impl FnOnce(&mut Replica<Memory>, &mut Store<'_, Memory>)) {
        let mut store = Store {
            log: &mut self.log,
            files: &mut self.files,
        };
        act(&mut self.replica, &mut store);
    }
}

/// Replicas of one log, and a network that loses nothing.
struct Cluster {
    nodes: Vec<Node>,
    now: u64,
}

impl Cluster {
    /// One in which somebody leads.
    fn new() -> Self {
        let mut cluster = Self {
            nodes: (1..=REPLICAS).map(Node::new).collect(),
            now: MS,
        };
        cluster.settle();
        for _ in 0..STEPS_MAX {
            if cluster.leader().is_some() {
                return cluster;
            }
            cluster.now += 10 * MS;
            let now = cluster.now;
            for node in &mut cluster.nodes {
                node.with(|replica, store| {
                    if replica.poll_timeout() <= now {
                        replica.handle_timeout(now, store);
                    }
                });
            }
            cluster.settle();
        }
        panic!("nobody leads");
    }

    fn leader(&mut self) -> Option<&mut Node> {
        let mut nodes = self.nodes.iter_mut();
        nodes.find(|node| node.replica.takes_events(&node.log))
    }

    /// Writes, sends and hears until there is nothing left of it.
    fn settle(&mut self) {
        let now = self.now;
        for _ in 0..STEPS_MAX {
            let (mut post, mut is_idle) = (Vec::new(), true);
            for node in &mut self.nodes {
                while node.files.step(&mut node.log, now) {
                    is_idle = false;
                }
                node.with(|replica, store| replica.handle_log(now, store));
                while node.replica.poll().is_some() {}
                while let Some((to, message)) = node.replica.poll_transmit() {
                    post.push((node.id, to, message.encode()));
                }
            }
            if is_idle && post.is_empty() {
                return;
            }
            for (from, to, bytes) in post {
                let message = Message::parse(&bytes).expect("its form is right");
                let node = self.nodes.iter_mut().find(|node| node.id == to);
                let node = node.expect("one of them");
                node.with(|replica, store| replica.handle(now, from, message, store));
            }
        }
        panic!("the replicas do not stop talking");
    }

    /// Appends at the leader and waits until most have it.
    fn commit(&mut self) {
        self.now += MS;
        let now = self.now;
        let leader = self.leader().expect("one that leads");
        for _ in 0..COMMIT_EVENTS {
            let link = link(leader.log.end());
            let appended = leader.log.append(now, &link, &[0x5a; EVENT_BYTES]);
            appended.expect("room");
        }
        let end = leader.log.end();
        self.settle();
        let leader = self.leader().expect("it leads still");
        assert_eq!(leader.replica.role(), Role::Leader);
        assert_eq!(leader.replica.acknowledged(&leader.log, Acks::Quorum), end);
        assert!(self.nodes.iter().all(|node| node.log.end() == end));
    }
}

fn commits(c: &mut Criterion) {
    let mut group = c.benchmark_group("replicas");
    group.throughput(Throughput::Elements(COMMITS * COMMIT_EVENTS));
    group.bench_function("commit", |b| {
        b.iter_batched(
            Cluster::new,
            |mut cluster| {
                (0..COMMITS).for_each(|_| cluster.commit());
                cluster
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// Full segments that are compacted, and their size.
const SEGMENTS: usize = 4;
const SEGMENT_BYTES: u64 = 256 << 10;

/// A log of full segments whose events are about so many keys.
fn full(keys: u64) -> (Memory, Log) {
    let (disk, mut log, mut files) = fresh(SEGMENT_BYTES);
    let mut now = MS;
    while log.closed().len() < SEGMENTS {
        for _ in 0..100 {
            now += 1;
            let offset = log.end();
            let event = format!(
                r#"{{"key": "sensor-{:06}", "value": {offset}, "unit": "celsius", "place": "hall 7, row 12", "by": "edge-a"}}"#,
                offset % keys
            );
            let appended = log.append(now, &link(offset), event.as_bytes());
            appended.expect("room");
        }
        while files.step(&mut log, now) {}
    }
    (disk, log)
}

fn compaction(c: &mut Criterion) {
    let mut group = c.benchmark_group("compaction");
    let rules = Rules {
        key: "key".to_owned(),
        after_ns: 0,
        removals_after_ns: None,
    };
    for (name, keys) in [("nothing_goes", u64::MAX), ("most_goes", 100)] {
        let (disk, log) = full(keys);
        let subject = Subject {
            id: *log.id(),
            closed: log.closed(),
        };
        let events = subject.closed.last().map_or(0, |last| last.end);
        let expected = if keys < events { SEGMENTS as u64 } else { 0 };
        group.throughput(Throughput::Elements(events));
        group.bench_function(name, |b| {
            b.iter(|| {
                let now = (&rules, u64::MAX);
                // What is left is not put in its place, so that the next turn finds the same.
                let outcome = compact::pass(&disk, &subject, now, &|| true, &mut |_| Ok(true));
                let outcome = outcome.expect("a pass");
                assert_eq!((outcome.segments, outcome.damaged.len()), (expected, 0));
                assert_eq!(outcome.removed_events > events / 2, expected > 0);
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    targets = order, messages, commits, compaction
}
criterion_main!(benches);
