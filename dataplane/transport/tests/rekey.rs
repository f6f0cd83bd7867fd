//! New keys while a session is busy, over real sockets: by packets, and by bytes. Nothing waits for them: no packet meets
//! an end that lacks its keys, and none is lost.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]
#![allow(
    clippy::disallowed_methods,
    reason = "a test is outside the dataplane: it has sockets"
)]

use std::time::Duration;

use virga_transport::{DropReason, Mode, NodeLimits, worker::WorkerHandle};

mod ends;
use ends::{Application, id, look, peer, route, spawn};

/// Some 5,000 packets of 1,472 bytes.
const EVENTS: u64 = 100_000;

/// What a worker says of its session.
#[derive(Debug)]
struct Seen {
    received: u64,
    epoch: u64,
    advanced: u64,
    /// Packets that were dropped because their keys were not there.
    without_keys: u64,
    sessions: u64,
}

fn seen(worker: &WorkerHandle<Application>) -> Seen {
    look(worker, |parts| {
        let counters = parts.node.counters();
        let keys = |reason| matches!(reason, DropReason::KeyPhase | DropReason::Forged);
        let drops = counters.drops().filter(|(reason, _)| keys(*reason));
        Seen {
            received: parts.service.received,
            epoch: parts.node.sessions().map(|s| s.epoch).max().unwrap_or(0),
            advanced: counters.epochs_advanced,
            without_keys: drops.map(|(_, count)| count).sum(),
            sessions: counters.sessions_established,
        }
    })
}

/// Both ends' sights once all events have come.
fn busy(limits: &NodeLimits) -> [Seen; 2] {
    let limits = NodeLimits {
        datagram_bytes_max: 1_472,
        ..limits.clone()
    };
    // One begins alone, so that there is one session.
    let [source, sink] =
        [(1, 2), (2, 1)].map(|(own, other)| spawn(own, other, Mode::Ordered, limits.clone()));
    look(&sink, |parts| parts.node.give_up(id(1)));
    route(&source, 1, 2, sink.address());
    route(&sink, 2, 1, source.address());
    assert!(source.command(EVENTS).is_ok());
    for _ in 0..3_000 {
        if seen(&sink).received == EVENTS {
            let both = [seen(&source), seen(&sink)];
            source.stop();
            sink.stop();
            return both;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    panic!("{:?} of {EVENTS} for {:?}", seen(&sink), peer(1).node_key);
}

#[test]
fn a_busy_session_gets_new_keys_by_packets_and_by_bytes_and_nothing_waits() {
    let cases = [
        NodeLimits {
            rekey_after_packets: 200,
            ..NodeLimits::default()
        },
        NodeLimits {
            rekey_after_bytes: 200_000,
            ..NodeLimits::default()
        },
    ];
    for limits in cases {
        let [source, sink] = busy(&limits);
        println!("{source:?}\n{sink:?}");
        // Not with each 200th packet: an epoch begins when both ends have confirmed the one before.
        assert!(
            source.epoch >= 3 && sink.advanced >= 3,
            "{source:?} {sink:?}"
        );
        assert!(
            source.epoch.abs_diff(sink.epoch) <= 1,
            "{source:?} {sink:?}"
        );
        for end in [&source, &sink] {
            assert_eq!((end.without_keys, end.sessions), (0, 1), "{end:?}");
        }
        assert_eq!(sink.received, EVENTS);
    }
    // Without either limit the same events need no new keys.
    let [source, sink] = busy(&NodeLimits::default());
    assert_eq!(source.advanced, sink.advanced);
    let first = source.epoch;
    assert!(first <= 1, "one at most, for ML-KEM: {source:?}");
}
