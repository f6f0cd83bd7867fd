//! Random lives of small meshes. Every choice comes from a seed, and a seed that fails is printed with
//! what it chose; `VIRGA_SIM_SEED=N cargo test -p virga-transport lives` lives that one again. Most seeds are the same
//! in every run, some are new.

use super::sim::{MS, SECOND, Sim, Weather, spec};
use crate::{
    Congestion, Event, Mode, NodeLimits, SendError, limits::DATAGRAM_BYTES_MIN, random::Generator,
};
use std::{
    hash::{BuildHasher as _, RandomState},
    panic::{AssertUnwindSafe, catch_unwind},
};
use virga_ebpf::header::StreamId;

/// Lives of one test run: some 20 s.
const LIVES: u64 = 200;
/// Those that no run has lived before: 5 s more.
const NEW_LIVES: u64 = 50;

/// What happens between two messages.
#[derive(Clone, Copy, Debug)]
enum Incident {
    None,
    /// Nothing gets through for so long.
    Parted(u64),
    /// Nothing gets through in one direction.
    OneWay(u64),
    /// The path carries datagrams of this size from now on.
    Size(usize),
    /// The receiver's owner reads nothing for so long.
    Deaf(u64),
}

#[derive(Debug)]
struct Life {
    weather: Weather,
    congestion: Congestion,
    rekey_after_packets: u64,
    rekey_after_ns: u64,
    handshakes_per_second: u64,
    nodes: u8,
    mode: Mode,
    /// Message sizes, what happens after each, and how long that takes.
    messages: Vec<(usize, Incident, u64)>,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut key = [0x5a; 32];
        key[..8].copy_from_slice(&seed.to_be_bytes());
        let mut dice = Generator::new(&key, b"life");
        let small = |dice: &mut Generator, bound| usize::try_from(dice.below(bound)).unwrap();
        let weather = Weather {
            latency_ns: dice.below(50) * MS + 1,
            jitter_ns: dice.below(40) * MS,
            loss: dice.below(25),
            duplication: dice.below(20),
            corruption: dice.below(10),
            reordering: dice.below(10),
            late_ns: (1 + dice.below(50)) * MS,
            datagram_bytes: DATAGRAM_BYTES_MIN + small(&mut dice, 2_000),
            rate: dice.below(2) * (500_000 + dice.below(20_000_000)),
            queue_bytes: 20_000 + dice.below(500_000),
        };
        let mut life = Self {
            weather,
            congestion: [Congestion::Cubic, Congestion::Bbr][small(&mut dice, 2)],
            rekey_after_packets: 20 + dice.below(200),
            rekey_after_ns: (1 + dice.below(20)) * SECOND,
            handshakes_per_second: dice.below(3),
            nodes: 2 + u8::try_from(dice.below(2)).unwrap(),
            mode: [Mode::Ordered, Mode::Unordered][small(&mut dice, 2)],
            messages: Vec::new(),
        };
        for _ in 0..dice.below(60) {
            let large = if dice.below(20) == 0 { 200_000 } else { 4_000 };
            let bytes = 1 + small(&mut dice, large);
            let span_ns = (1 + dice.below(4_000)) * MS;
            let incident = match dice.below(40) {
                0 => Incident::Parted(span_ns),
                1 => Incident::OneWay(span_ns),
                2 => Incident::Size(DATAGRAM_BYTES_MIN + small(&mut dice, 3_000)),
                3 => Incident::Deaf(span_ns),
                _ => Incident::None,
            };
            life.messages.push((bytes, incident, dice.below(30) * MS));
        }
        life
    }

    fn limits(&self) -> NodeLimits {
        NodeLimits {
            congestion: self.congestion,
            rekey_after_packets: self.rekey_after_packets,
            rekey_after_ns: self.rekey_after_ns,
            handshakes_per_second: self.handshakes_per_second,
            ..NodeLimits::default()
        }
    }

    fn live(&self, seed: u64) {
        let mut sim = Sim::new(seed, self.nodes, &self.limits(), self.weather);
        let last = usize::from(self.nodes) - 1;
        let id = sim.ids[last];
        sim.nodes[0].connect(0, id).unwrap();
        let both = |s: &Sim| s.is_connected(0, last) && s.is_connected(last, 0);
        assert!(sim.run_until(300 * SECOND, both), "never connected");
        sim.run(SECOND);
        let stream = sim.open(0, last, &spec("log", self.mode));
        let mut sent = Vec::new();
        for (n, &(bytes, incident, pause_ns)) in self.messages.iter().enumerate() {
            sent.push(vec![u8::try_from(n).unwrap(); bytes]);
            send(&mut sim, last, stream, sent.last().unwrap());
            befall(&mut sim, last, incident);
            sim.run(pause_ns);
        }
        let now_ns = sim.now_ns;
        sim.nodes[0].finish_stream(now_ns, id, stream).unwrap();
        let finished = |e: &Event| matches!(e, Event::StreamFinished { .. });
        let done = sim.run_until(600 * SECOND, |s| s.told[last].iter().any(finished));
        let mut came = sim.messages(last);
        assert!(done, "{} of {} messages", came.len(), sent.len());
        if self.mode == Mode::Unordered {
            came.sort();
            sent.sort();
        }
        assert!(came == sent, "{} of {} messages", came.len(), sent.len());
        let now_ns = sim.now_ns;
        sim.nodes[0].close(now_ns, id);
        sim.network.weather = Weather::CALM;
        sim.run(300 * SECOND);
        for node in &sim.nodes {
            assert_eq!(node.sessions().count(), 0, "nothing is left over");
        }
    }
}

/// Queues a message, once there is room.
fn send(sim: &mut Sim, last: usize, stream: StreamId, message: &[u8]) {
    loop {
        match sim.send(0, last, stream, message) {
            Ok(()) => return,
            Err(SendError::Full) => sim.run(100 * MS),
            Err(error) => panic!("{error}"),
        }
    }
}

fn befall(sim: &mut Sim, last: usize, incident: Incident) {
    match incident {
        Incident::None => {}
        Incident::Parted(span_ns) => {
            sim.network.is_cut = true;
            sim.run(span_ns);
            sim.network.is_cut = false;
        }
        Incident::OneWay(span_ns) => {
            sim.network.parted.insert((last, 0));
            sim.run(span_ns);
            sim.network.parted.clear();
        }
        Incident::Size(bytes) => sim.network.weather.datagram_bytes = bytes,
        Incident::Deaf(span_ns) => {
            sim.deaf.push(last);
            sim.run(span_ns);
            sim.deaf.clear();
        }
    }
}

fn live(seed: u64) {
    let life = Life::new(seed);
    let lived = catch_unwind(AssertUnwindSafe(|| life.live(seed)));
    assert!(lived.is_ok(), "VIRGA_SIM_SEED={seed} failed: {life:?}");
}

#[test]
fn two_hundred_random_lives() {
    match std::env::var("VIRGA_SIM_SEED") {
        Ok(seed) => live(seed.parse().unwrap()),
        Err(_) => (0..LIVES).for_each(live),
    }
}

#[test]
fn fifty_lives_that_nobody_has_lived() {
    if std::env::var_os("VIRGA_SIM_SEED").is_some() {
        return println!("that seed's life is the other test's");
    }
    let first = RandomState::new().hash_one("a seed of this run");
    println!("seeds {first} and the next {}", NEW_LIVES - 1);
    (0..NEW_LIVES).for_each(|n| live(first.wrapping_add(n)));
}

/// The same seed makes the same life, to the last datagram.
#[test]
fn a_seed_lives_the_same_life_again() {
    let traffic = |seed| {
        let life = Life::new(seed);
        let mut sim = Sim::new(seed, life.nodes, &life.limits(), life.weather);
        sim.keep_wire = true;
        let id = sim.ids[1];
        sim.nodes[0].connect(0, id).unwrap();
        sim.run(60 * SECOND);
        sim.wire
    };
    let wire = traffic(3);
    assert!(wire.len() > 10);
    assert!(wire == traffic(3));
    assert!(wire != traffic(4));
}
