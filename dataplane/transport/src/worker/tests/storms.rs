//! Random lives of small meshes of real workers: streams of every mode between all of them, while the network, the
//! kernels' buffers and the processors do what they can. A seed that fails is printed with what it chose;
//! `VIRGA_WIRE_SEED=N cargo test -p virga-transport storms` lives that one again, datagram by datagram.

use super::world::{Shape, World};
use crate::{
    Congestion, Mode, NodeLimits,
    io::{counters::ErrorKind, simulated::Interface},
    limits::DATAGRAM_BYTES_MIN,
    random::Generator,
    sim::{MS, SECOND, Weather},
    tests::sim::source,
};
use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, RandomState},
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Lives of one test run,
const LIVES: u64 = 40;
/// and those that no run has lived before.
const NEW_LIVES: u64 = 10;

/// What happens to the network, or to a node.
#[derive(Clone, Copy, Debug)]
enum Incident {
    /// Nothing gets from one to the other, nor back, for so long.
    Parted((usize, usize), u64),
    /// What gets back does.
    OneWay((usize, usize), u64),
    /// No path carries larger datagrams from now on.
    Size(usize),
    /// A node reads nothing for so long.
    Asleep(usize, u64),
}

/// What a life consists of.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// So many messages of so many bytes.
    Say((usize, usize), Mode, usize, usize),
    Befall(Incident),
}

#[derive(Debug)]
struct Life {
    shape: Shape,
    /// Each with the time that passes after it.
    deeds: Vec<(Deed, u64)>,
}

/// A number below `bound`.
fn small(dice: &mut Generator, bound: u64) -> usize {
    usize::try_from(dice.below(bound)).unwrap()
}

fn interface(dice: &mut Generator) -> Interface {
    Interface {
        datagram_bytes: DATAGRAM_BYTES_MIN + small(dice, 8_000),
        rate: dice.below(3) * (300_000 + dice.below(5_000_000)),
        send_buffer_bytes: 3_000 + dice.below(60_000),
        receive_buffer_bytes: 12_000 + small(dice, 100_000),
        segments_max: [1, 64][small(dice, 2)],
        joins_max: 1 + small(dice, 64),
    }
}

fn weather(dice: &mut Generator) -> Weather {
    Weather {
        latency_ns: dice.below(30) * MS + 1,
        jitter_ns: dice.below(20) * MS,
        loss: dice.below(10),
        duplication: dice.below(15),
        corruption: dice.below(6),
        reordering: dice.below(10),
        late_ns: (1 + dice.below(50)) * MS,
        datagram_bytes: DATAGRAM_BYTES_MIN + small(dice, 8_000),
        rate: 0,
        queue_bytes: 0,
    }
}

impl Deed {
    fn any(dice: &mut Generator, nodes: usize) -> Self {
        let count = nodes as u64;
        let from = small(dice, count);
        let to = (from + 1 + small(dice, count - 1)) % nodes;
        let span_ns = (1 + dice.below(4_000)) * MS;
        match dice.below(24) {
            0 => Self::Befall(Incident::Parted((from, to), span_ns)),
            1 => Self::Befall(Incident::OneWay((from, to), span_ns)),
            2 => Self::Befall(Incident::Asleep(from, span_ns)),
            3 => Self::Befall(Incident::Size(DATAGRAM_BYTES_MIN + small(dice, 6_000))),
            n => {
                let mode = Mode::ALL[small(dice, 4)];
                let (most, large) = if n == 4 { (2, 200_000) } else { (40, 3_000) };
                let (messages, bytes) = (1 + small(dice, most), small(dice, large));
                Self::Say((from, to), mode, messages, bytes)
            }
        }
    }
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut key = [0x57; 32];
        key[..8].copy_from_slice(&seed.to_be_bytes());
        let mut dice = Generator::new(&key, b"storm");
        let count = 2 + small(&mut dice, 2);
        let nodes = (0..count).map(|_| (interface(&mut dice), 1 + small(&mut dice, 2)));
        let nodes = nodes.collect();
        let shape = Shape {
            weather: weather(&mut dice),
            nodes,
            is_line: dice.below(2) == 0,
            knows_links: dice.below(2) == 0,
            limits: NodeLimits {
                congestion: [Congestion::Cubic, Congestion::Bbr][small(&mut dice, 2)],
                rekey_after_packets: 50 + dice.below(500),
                handshakes_per_second: dice.below(3),
                ..NodeLimits::default()
            },
        };
        let deeds = (0..10 + dice.below(60)).map(|_| {
            let deed = Deed::any(&mut dice, count);
            (deed, dice.below(50) * MS)
        });
        let deeds = deeds.collect();
        Self { shape, deeds }
    }
}

impl World {
    fn act(&mut self, deed: Deed) {
        match deed {
            Deed::Say(way, mode, messages, bytes) => {
                (0..messages).for_each(|_| self.say(way, mode, bytes));
            }
            Deed::Befall(Incident::Parted((from, to), span_ns)) => {
                self.wire.part(source(from), source(to));
                self.wire.part(source(to), source(from));
                self.run(span_ns);
                self.wire.mend();
            }
            Deed::Befall(Incident::OneWay((from, to), span_ns)) => {
                self.wire.part(source(from), source(to));
                self.run(span_ns);
                self.wire.mend();
            }
            Deed::Befall(Incident::Size(bytes)) => {
                self.wire
                    .set_weather(|weather| weather.datagram_bytes = bytes);
            }
            Deed::Befall(Incident::Asleep(node, span_ns)) => self.put_to_sleep(node, span_ns),
        }
    }

    /// What this life was good for.
    fn seen(&self) -> BTreeMap<&'static str, u64> {
        let mut seen = BTreeMap::new();
        for (_, parts) in self.parts() {
            let (driver, counters) = (parts.driver(), parts.counters());
            let (sent, received) = (driver.sent(), driver.received());
            let figures = driver.figures().into_iter();
            let lost = figures.filter(|(label, _)| *label == "socket_lost");
            let refused = sent.errors().filter(|(kind, _)| *kind == ErrorKind::TooBig);
            for (what, count) in [
                ("sent", sent.datagrams),
                ("received", received.datagrams),
                ("segmented", sent.segments),
                ("joined", received.segments),
                ("blocked", sent.would_block),
                ("unread", lost.map(|(_, n)| n).sum()),
                ("refused", refused.map(|(_, n)| n).sum()),
                ("too_big", counters.too_big),
                ("forwarded", counters.forwarded),
                ("handed_over", counters.handed_over),
                ("taken_over", counters.taken_over),
                ("epochs", parts.node.sessions().map(|s| s.epoch).sum()),
                (
                    "lost",
                    parts.node.sessions().map(|s| s.path.lost_packets).sum(),
                ),
            ] {
                *seen.entry(what).or_default() += count;
            }
        }
        let came = self.pairs().into_iter().flat_map(|pair| {
            let count = move |mode: &Mode| (mode.name(), self.came(pair, *mode).len() as u64);
            Mode::ALL.iter().map(count).collect::<Vec<_>>()
        });
        for (mode, count) in came {
            *seen.entry(mode).or_default() += count;
        }
        seen
    }
}

/// Lives one life to its end; what it was good for, and a digest of all that happened on the wire.
fn live(seed: u64) -> (BTreeMap<&'static str, u64>, [u8; 32]) {
    let life = Life::new(seed);
    let lived = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, &life.shape);
        world.connect(120 * SECOND);
        for &(deed, pause_ns) in &life.deeds {
            world.act(deed);
            world.run(pause_ns);
        }
        assert!(
            world.run_until(600 * SECOND, World::is_told),
            "something reliable did not arrive"
        );
        world.wire.set_weather(|weather| {
            let datagram_bytes = weather.datagram_bytes;
            *weather = Weather {
                datagram_bytes,
                ..Weather::CALM
            };
        });
        assert!(
            world.run_until(120 * SECOND, World::is_settled),
            "something is kept, or credit is lost"
        );
        world.check();
        let seen = world.seen();
        world.stop(10 * SECOND);
        (seen, world.wire.trace())
    }));
    lived.unwrap_or_else(|_| panic!("VIRGA_WIRE_SEED={seed} failed: {life:?}"))
}

#[test]
fn forty_random_lives_of_real_workers() {
    if let Ok(seed) = std::env::var("VIRGA_WIRE_SEED") {
        println!("{:?}", live(seed.parse().unwrap()));
        return;
    }
    let mut seen: BTreeMap<&'static str, u64> = BTreeMap::new();
    for (what, count) in (0..LIVES).flat_map(|seed| live(seed).0) {
        *seen.entry(what).or_default() += count;
    }
    println!("{seen:?}");
    // Else the lives have become too quiet to prove anything.
    for (what, count) in seen {
        assert!(count > 50, "{what}: {count}");
    }
}

#[test]
fn ten_lives_of_real_workers_that_nobody_has_lived() {
    if std::env::var_os("VIRGA_WIRE_SEED").is_some() {
        return println!("that seed's life is the other test's");
    }
    let first = RandomState::new().hash_one("a seed of this run");
    println!("seeds {first} and the next {}", NEW_LIVES - 1);
    (0..NEW_LIVES).for_each(|n| drop(live(first.wrapping_add(n))));
}

/// Every datagram of every worker at the same moment, and each with the same fate.
#[test]
fn a_seed_lives_the_same_life_of_workers_again() {
    let again = [3, 3, 4].map(live);
    assert_eq!(again[0], again[1]);
    assert_ne!(again[0].1, again[2].1);
}

/// A worker whose socket is full waits for room, not for its timers, and does not spin.
#[test]
fn a_worker_with_a_slow_link_has_a_turn_when_there_is_room_and_no_other() {
    const BYTES: usize = 1_000_000;
    let mut shape = Shape::calm(2);
    shape.nodes[0].0 = Interface {
        rate: 1_000_000,
        send_buffer_bytes: 10_000,
        segments_max: 1,
        ..Interface::FAST
    };
    let mut world = World::new(7, &shape);
    world.connect(SECOND);
    let turns = world.turns;
    (0..10).for_each(|_| world.say((0, 1), Mode::Ordered, BYTES / 10));
    assert!(world.run_until(20 * SECOND, World::is_told));
    let sent = world.at(0, 1).driver().sent();
    assert!(sent.would_block > 100, "{sent:?}");
    // A turn or two for what goes out, for what comes in, for each timer.
    let most = 6 * (BYTES as u64 / 1_000);
    assert!(world.turns - turns < most, "{} turns", world.turns - turns);
}

/// It holds up what is for it, and nobody else; what its socket had no room for travels again.
#[test]
fn a_node_that_stops_reading_holds_up_itself_alone() {
    let mut shape = Shape::calm(3);
    shape.nodes[1].0.receive_buffer_bytes = 10_000;
    let mut world = World::new(7, &shape);
    world.connect(SECOND);
    world.put_to_sleep(1, 5 * SECOND);
    for _ in 0..100 {
        world.say((0, 1), Mode::Ordered, 4_000);
        world.say((0, 2), Mode::Ordered, 4_000);
        world.say((1, 2), Mode::Ordered, 400);
    }
    world.run(4 * SECOND);
    assert_eq!(world.came((0, 2), Mode::Ordered).len(), 100);
    assert_eq!(world.came((0, 1), Mode::Ordered).len(), 0);
    assert_eq!(world.came((1, 2), Mode::Ordered).len(), 0);
    assert!(world.run_until(60 * SECOND, World::is_told));
    world.check();
    assert!(world.seen()["unread"] > 0, "its socket was full");
}
