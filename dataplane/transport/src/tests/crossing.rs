//! Both ends begin a session: after a restart, or at the same time. One of the two stays, and what was sent on it
//! arrives.

use super::sim::{MS, SECOND, Sim, Weather, config, spec};
use crate::{CloseReason, Event, Mode, Node, NodeLimits, random::Generator};

/// Messages that each end sends as soon as it is told of a session.
const GREETINGS: u8 = 20;

/// What both ends saw.
#[derive(Debug, Default)]
struct Seen {
    /// Sent after the incident, by the other end.
    sent: [Vec<Vec<u8>>; 2],
    came: [Vec<Vec<u8>>; 2],
    connected: [u8; 2],
    closed: [Vec<CloseReason>; 2],
}

impl Seen {
    fn take(&mut self, sim: &mut Sim) {
        for at in 0..2 {
            while let Some(event) = sim.told[at].pop_front() {
                match event {
                    Event::Connected { .. } => self.greet(sim, at),
                    Event::Message { event, .. } => self.came[at].push(event.to_vec()),
                    Event::Closed { reason, .. } => self.closed[at].push(reason),
                    _ => {}
                }
            }
        }
    }

    fn greet(&mut self, sim: &mut Sim, at: usize) {
        self.connected[at] += 1;
        let other = 1 - at;
        let stream = sim.open(at, other, &spec("greetings", Mode::Ordered));
        for n in 0..GREETINGS {
            let message = vec![u8::try_from(at).unwrap(), self.connected[at], n];
            sim.send(at, other, stream, &message).unwrap();
            self.sent[other].push(message);
        }
    }

    fn run(&mut self, sim: &mut Sim, for_ns: u64) {
        let end_ns = sim.now_ns + for_ns;
        self.take(sim);
        while sim.step(end_ns) {
            self.take(sim);
        }
    }
}

fn dice(seed: u64) -> Generator {
    let mut key = [0xc0; 32];
    key[..8].copy_from_slice(&seed.to_be_bytes());
    Generator::new(&key, b"crossing")
}

fn weather(dice: &mut Generator) -> Weather {
    Weather {
        latency_ns: (1 + dice.below(60)) * MS,
        jitter_ns: dice.below(10) * MS,
        ..Weather::CALM
    }
}

/// Both ends want a session; node 0 or 1 restarts, while the other sends, and connects some time later.
fn restart(seed: u64) -> Seen {
    let mut dice = dice(seed);
    let limits = NodeLimits::default();
    let mut sim = Sim::new(seed, 2, &limits, weather(&mut dice));
    let (id, other) = (sim.ids[0], sim.ids[1]);
    sim.nodes[1].connect(0, id).unwrap();
    sim.connect(0, 1);
    sim.run(20 * SECOND);
    let who = usize::from(dice.below(2) == 0);
    let stream = sim.open(1 - who, who, &spec("before", Mode::Ordered));
    for n in 0..30 {
        sim.send(1 - who, who, stream, &[n; 500]).unwrap();
        sim.run(dice.below(5) * MS);
    }
    let again = config(u8::try_from(who).unwrap(), 2, seed + 1, &limits);
    sim.nodes[who] = Node::new(again, sim.now_ns).unwrap();
    sim.told
        .iter_mut()
        .for_each(std::collections::VecDeque::clear);
    let mut seen = Seen::default();
    seen.run(&mut sim, dice.below(150) * MS);
    let now_ns = sim.now_ns;
    sim.nodes[who]
        .connect(now_ns, [id, other][1 - who])
        .unwrap();
    seen.run(&mut sim, 20 * SECOND);
    assert!(sim.is_connected(0, 1) && sim.is_connected(1, 0));
    seen
}

#[test]
fn after_a_restart_nothing_that_was_sent_on_a_new_session_is_lost() {
    for seed in 0..300 {
        let seen = restart(seed);
        assert_eq!(seen.connected, [1, 1], "seed {seed}: {:?}", seen.closed);
        assert_eq!(seen.came, seen.sent, "seed {seed}");
    }
}

#[test]
fn of_two_that_start_at_about_the_same_time_one_session_comes_and_stays() {
    for seed in 0..300 {
        let mut dice = dice(seed);
        let mut sim = Sim::new(seed, 2, &NodeLimits::default(), weather(&mut dice));
        let mut seen = Seen::default();
        let first = usize::from(dice.below(2) == 0);
        let ids = sim.ids.clone();
        sim.nodes[first].connect(0, ids[1 - first]).unwrap();
        seen.run(&mut sim, dice.below(300) * MS);
        let now_ns = sim.now_ns;
        sim.nodes[1 - first].connect(now_ns, ids[first]).unwrap();
        seen.run(&mut sim, 20 * SECOND);
        assert_eq!(seen.connected, [1, 1], "seed {seed}: {:?}", seen.closed);
        assert_eq!(seen.came, seen.sent, "seed {seed}");
    }
}

/// As above on paths that lose, repeat and delay much more: a session may give way to the other, of which both ends
/// are told, and what was sent on the one that stays arrives.
#[test]
fn on_a_lossy_path_one_session_stays_in_the_end_and_what_was_sent_on_it_arrives() {
    let mut given_up = 0;
    for seed in 0..200 {
        let mut dice = dice(seed);
        let latency_ms = 1 + dice.below(500);
        let weather = Weather {
            latency_ns: latency_ms * MS,
            jitter_ns: dice.below(latency_ms) * MS,
            ..Weather::STORM
        };
        let mut sim = Sim::new(seed, 2, &NodeLimits::default(), weather);
        let mut seen = Seen::default();
        let first = usize::from(dice.below(2) == 0);
        let ids = sim.ids.clone();
        sim.nodes[first].connect(0, ids[1 - first]).unwrap();
        seen.run(&mut sim, dice.below(3_000) * MS);
        let now_ns = sim.now_ns;
        sim.nodes[1 - first].connect(now_ns, ids[first]).unwrap();
        seen.run(&mut sim, 120 * SECOND);
        for at in 0..2 {
            assert!(
                sim.is_connected(at, 1 - at),
                "seed {seed}: {:?}",
                seen.closed
            );
            let last = seen.connected[1 - at];
            let of_the_last = |m: &&Vec<u8>| m[1] == last;
            assert!(
                seen.came[at]
                    .iter()
                    .filter(of_the_last)
                    .eq(seen.sent[at].iter().filter(of_the_last)),
                "seed {seed}: {:?}",
                seen.closed
            );
            given_up += last - 1;
        }
    }
    println!("{given_up} sessions gave way");
}

/// A peer that restarts right after a session came about is back within a moment, though its initiation looks
/// like one that crossed ours.
#[test]
fn a_peer_that_restarts_at_once_is_not_kept_waiting() {
    for restarts in [0, 1] {
        let limits = NodeLimits::default();
        let mut sim = Sim::new(3, 2, &limits, Weather::CALM);
        let ids = sim.ids.clone();
        sim.connect(1 - restarts, restarts);
        sim.run(SECOND);
        let again = config(u8::try_from(restarts).unwrap(), 2, 4, &limits);
        sim.nodes[restarts] = Node::new(again, sim.now_ns).unwrap();
        let now_ns = sim.now_ns;
        sim.nodes[restarts]
            .connect(now_ns, ids[1 - restarts])
            .unwrap();
        let connected = |at: usize| {
            move |sim: &Sim| {
                let is_connected = |e: &Event| matches!(e, Event::Connected { .. });
                sim.told[at].iter().any(is_connected)
            }
        };
        assert!(sim.run_until(SECOND, connected(restarts)));
        assert!(sim.run_until(SECOND, connected(1 - restarts)));
        assert_eq!(sim.closed(1 - restarts), [CloseReason::Reset]);
    }
}

/// A node that stops drains what it has, and no peer gets a session of it again.
#[test]
fn a_node_that_stops_takes_no_new_sessions() {
    let mut sim = Sim::new(1, 3, &NodeLimits::default(), Weather::CALM);
    sim.connect(1, 0);
    let ids = sim.ids.clone();
    let stream = sim.open(0, 1, &spec("last", Mode::Ordered));
    let last = vec![7; 100_000];
    sim.send(0, 1, stream, &last).unwrap();
    // One session is half open, and one is being asked for.
    sim.nodes[2].connect(sim.now_ns, ids[0]).unwrap();
    sim.run(7 * MS);
    let now_ns = sim.now_ns;
    sim.nodes[0].stop(now_ns, now_ns + 2 * SECOND);
    sim.nodes[0].connect(now_ns, ids[2]).unwrap();
    assert!(sim.nodes[0].is_draining());
    assert!(sim.run_until(2 * SECOND, |sim| !sim.nodes[0].is_draining()));
    sim.run(50 * MS);
    assert_eq!(sim.messages(1), [last]);
    assert_eq!(sim.closed(1), [CloseReason::Peer]);
    sim.told[1].clear();
    sim.run(20 * SECOND);
    assert_eq!(sim.nodes[0].sessions().count(), 0);
    let connected = |event: &Event| matches!(event, Event::Connected { .. });
    assert!(!sim.told.iter().flatten().any(connected), "none came back");
    assert!(sim.dropped(0, crate::DropReason::HandshakeStopping) > 1);
}
