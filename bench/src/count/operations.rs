//! What is counted: each operation many times over, on inputs made beforehand.

use std::hint::black_box;

use virga_bench::{
    sealed::Sealed,
    session::Ends,
    world::{self, Scene},
};
use virga_ebpf::{
    decide::{Verdict, check, is_authorised},
    header::{Header, OriginHash},
    limits::{HEADER_BYTES, UDP_PORT},
    reason::Reason,
    tables::Pair,
};

/// Calls of each operation that one count is over.
pub(crate) const CALLS: u64 = 1_024;
/// Name of the function that callgrind counts in, and of the one that ends a count.
pub(crate) const COUNTED: &str = "counted_calls";
pub(crate) const END: &str = "end_of_count";
/// Events that a session passes before it is counted: its windows have grown by then.
const WARM_UP_EVENTS: u64 = 4_096;

/// The operations, in the order in which [`run`] has them counted.
pub(crate) const NAMES: [&str; 11] = [
    "header.decode_check",
    "guard.hit",
    "guard.miss",
    "decide.forward",
    "decide.stranger",
    "seal.64",
    "seal.1400",
    "open.64",
    "open.1400",
    "session.64",
    "session.1024",
];

/// Callgrind counts anew from here on, up to [`end_of_count`].
#[inline(never)]
fn counted_calls<T>(inputs: impl Iterator<Item = T>, mut operation: impl FnMut(T)) {
    for input in inputs {
        operation(input);
    }
    end_of_count();
}

/// Callgrind writes what it has counted.
#[inline(never)]
fn end_of_count() {
    black_box(());
}

/// Runs all operations, in the order of [`NAMES`]; each result is asserted.
pub(crate) fn run() {
    header();
    guard();
    decide();
    sealing();
    opening();
    session();
}

fn header() {
    let headers: Vec<[u8; HEADER_BYTES]> = (0..CALLS)
        .map(|sequence| {
            let header = Header {
                sequence,
                ..world::header()
            };
            header.encode()
        })
        .collect();
    counted_calls(headers.iter(), |bytes| {
        let header = Header::decode(bytes);
        let checked = check(black_box(&header), world::UDP_PAYLOAD_BYTES);
        assert!(checked.is_ok());
    });
}

fn guard() {
    let tables = world::tables(&world::image(1));
    let settings = tables.current();
    let members: Vec<Pair> = (1..=CALLS).map(world::pair).collect();
    let strangers: Vec<Pair> = (1..=CALLS).map(world::stranger).collect();
    counted_calls(members.iter(), |pair| {
        assert!(is_authorised(&tables, &settings, black_box(pair)));
    });
    counted_calls(strangers.iter(), |pair| {
        assert!(!is_authorised(&tables, &settings, black_box(pair)));
    });
}

/// Frames of one flow, each with a sequence of its own: a repeated packet would be a duplicate.
fn frames(origin_hash: OriginHash) -> Vec<Vec<u8>> {
    let frame = |sequence| {
        let header = Header {
            sequence,
            origin_hash,
            ..world::header()
        };
        world::frame(&header, UDP_PORT)
    };
    (0..=CALLS).map(frame).collect()
}

fn decide() {
    let scene = Scene::new(1);
    let frames_of = frames(world::MEMBER);
    let (first, rest) = frames_of.split_at(1);
    // The first packet of a flow fills the cache.
    assert!(matches!(scene.verdict(&first[0]), Verdict::Forward(_)));
    counted_calls(rest.iter(), |frame| {
        let verdict = scene.verdict(black_box(frame));
        assert!(matches!(verdict, Verdict::Forward(_)));
    });
    let strangers = frames(world::STRANGER);
    counted_calls(strangers.iter().skip(1), |frame| {
        let verdict = scene.verdict(black_box(frame));
        assert!(matches!(verdict, Verdict::Drop(Reason::Unauthorised)));
    });
}

fn sealing() {
    for payload_bytes in [64, 1_400] {
        let sealed = Sealed::new(payload_bytes);
        let mut packet = sealed.packet.clone();
        let sequences = (1..=CALLS).map(|n| sealed.sequence + n);
        counted_calls(sequences, |sequence| {
            sealed.key.seal(sequence, black_box(&mut packet));
        });
    }
}

fn opening() {
    for payload_bytes in [64, 1_400] {
        let sealed = Sealed::new(payload_bytes);
        let mut copies: Vec<Vec<u8>> = (0..CALLS)
            .map(|_| sealed.packet[HEADER_BYTES..].to_vec())
            .collect();
        counted_calls(copies.iter_mut(), |bytes| {
            assert_eq!(sealed.open(black_box(bytes)), payload_bytes);
        });
    }
}

fn session() {
    for event_bytes in [64, 1_024] {
        let mut ends = Ends::connect();
        let event = vec![0x5a; event_bytes];
        for _ in 0..WARM_UP_EVENTS {
            ends.pass(&event, 1);
        }
        counted_calls(0..CALLS, |_| ends.pass(black_box(&event), 1));
    }
}
