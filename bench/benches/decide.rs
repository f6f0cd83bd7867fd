//! From the first byte of a frame to its verdict, over the tables of user space.
//!
//! The limit, of one packet alone at 3 GHz: reading the outer headers is some 20 loads and 15 predicted branches,
//! and one look-up of the own address (a hash of 4 multiplications in a chain, a line): 15 ns, and decoding 3 to 5.
//! A decision hashes and reads the neighbour (5 ns), half of a line of the guard (3 ns), then the flow (7
//! multiplications and a line, 8 ns) and, where that is cached, route, next hop and the duplicate slot (5
//! multiplications that overlap, three lines, 10 ns): a warm forward is 40 to 45 ns. Packets do not depend on each
//! other: by the 410 instructions of `budget.toml`, at four to five a cycle, 30 ns are left where one overlaps the
//! next, as here. Without the flow come the guard's other half (2 ns), the policy's line and one of the exact set (5
//! ns, and a cache miss of 5 to 80 each once the tables outgrow L2). A stranger ends at the guard: two thirds of a
//! forward. A local packet ends after the flow: two thirds.

use std::{cell::Cell, hint::black_box, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use virga_bench::world::{self, Scene};
use virga_ebpf::{
    decide::Verdict,
    header::{Header, NodeId, offset},
    reason::Reason,
};

/// Destinations that the uncached walk goes over: eight times the flow cache.
const WALK: u64 = 65_536;
const _: () = assert!(WALK.is_power_of_two());

/// Which verdict every run of a case must have.
type Expected = fn(&Verdict<'_>) -> bool;

fn decide(c: &mut Criterion) {
    let scene = Scene::new(WALK);
    let sent = world::header();
    let (local, stranger) = (world::local_header(), world::strangers_header());
    let forward: Expected = |verdict| matches!(verdict, Verdict::Forward(_));
    let cases: [(&str, Header, u64, Expected); 4] = [
        ("forward", sent, 1, forward),
        ("forward_uncached", sent, WALK, forward),
        ("stranger", stranger, 1, |verdict| {
            matches!(verdict, Verdict::Drop(Reason::Unauthorised))
        }),
        ("local", local, 1, |verdict| {
            matches!(verdict, Verdict::Local)
        }),
    ];
    let mut group = c.benchmark_group("decide");
    let sequence = Cell::new(0);
    for (name, header, destinations, expected) in cases {
        let mut frame = world::frame(&header, virga_ebpf::limits::UDP_PORT);
        let mesh = frame.len() - world::UDP_PAYLOAD_BYTES as usize;
        group.bench_function(name, |b| {
            b.iter(|| {
                // A repeated packet would be a duplicate.
                let n: u64 = sequence.replace(sequence.get() + 1);
                let at = mesh + offset::SEQUENCE;
                frame[at..at + 8].copy_from_slice(&n.to_be_bytes());
                if destinations > 1 {
                    let NodeId(to) = world::FIRST_DESTINATION;
                    let at = mesh + offset::DESTINATION;
                    frame[at..at + 8]
                        .copy_from_slice(&(to + (n & (destinations - 1))).to_be_bytes());
                }
                let verdict = scene.verdict(black_box(&frame));
                assert!(expected(&verdict), "{verdict:?}");
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = decide
}
criterion_main!(benches);
