//! The guard in user space: the filter, the exact set behind it, both as a decision asks them, and building.
//!
//! The limit: a probe hashes with two multiplications in a chain (3 to 4 cycles each, a shift and an exclusive or
//! between and after), loads its line's eight words and shifts and combines them: 25 to 30 cycles alone, but probes
//! do not depend on each other, so the multiplier and the load ports are what is left: 8 loads and some 30 other
//! instructions, 10 to 12 cycles, 3 to 4 ns at 3 GHz. A miss mostly ends after four words: 2 to 3 ns; one in 35
//! does not, which is guessed wrong: 5 ns more for that one. A hit asks
//! the exact set too: two multiplications and a line of five, 2 to 3 ns while it lies in L1 (1,800 pairs are 32 KiB
//! of lines), and the latency of L2 or beyond, 5 to 20 ns, where 100,000 pairs are 2 MiB.
//!
//! Building hashes each pair once for each size that is tried (doubling: 1 for 1,800 pairs, 7 for 100,000), 8 words
//! read and written a time, about 5 ns: 1,800 pairs in 10 µs, 100,000 in 3.5 ms, and memory beside that.

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use virga_bench::world;
use virga_ebpf::{
    decide::is_authorised,
    guard::Guard,
    pair_set,
    tables::{Pair, mix},
};

/// Pairs that are probed one after another, drawn from all: more than a branch predictor learns.
const DRAWS: u32 = 1 << 16;
/// One bank, and 64 of them.
const SIZES: [u64; 2] = [world::PAIRS, 100_000];

/// How many of `pairs` are `is_in`.
fn count(pairs: &[Pair], is_in: impl Fn(&Pair) -> bool) -> usize {
    pairs.iter().filter(|pair| is_in(pair)).count()
}

fn probe(c: &mut Criterion) {
    for size in SIZES {
        let mut image = world::image(1);
        image.pairs.extend((1..size).map(world::pair));
        let guard = Guard::build([1, 2], image.pairs.iter());
        let tables = world::tables(&image);
        let settings = tables.current();
        let draws = || (0..DRAWS).map(|n| 1 + mix(size, u64::from(n)) % (size - 1));
        let members: Vec<Pair> = draws().map(world::pair).collect();
        let strangers: Vec<Pair> = draws().map(world::stranger).collect();

        let mut group = c.benchmark_group(format!("guard/{size}"));
        group.throughput(Throughput::Elements(DRAWS.into()));
        for (name, pairs, is_in) in [("hit", &members, true), ("miss", &strangers, false)] {
            let wanted = if is_in { pairs.len() } else { 0 };
            let decided = count(pairs, |p| is_authorised(&tables, &settings, p));
            assert_eq!(decided, wanted, "{name}");
            group.bench_function(format!("filter_{name}"), |b| {
                b.iter(|| count(black_box(pairs), |p| guard.is_hit(p)));
            });
            group.bench_function(format!("exact_{name}"), |b| {
                b.iter(|| count(black_box(pairs), |p| pair_set::has(&tables, &settings, p)));
            });
            group.bench_function(name, |b| {
                b.iter(|| count(black_box(pairs), |p| is_authorised(&tables, &settings, p)));
            });
        }
        group.finish();
    }
}

fn build(c: &mut Criterion) {
    let mut group = c.benchmark_group("guard/build");
    for size in SIZES {
        let pairs: Vec<Pair> = (0..size).map(world::pair).collect();
        group.throughput(Throughput::Elements(size));
        group.bench_function(size.to_string(), |b| {
            b.iter(|| Guard::build(black_box([1, 2]), pairs.iter()));
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
    targets = probe, build
}
criterion_main!(benches);
