//! Filters over capabilities: asking one, and parsing it.
//!
//! The limit: a key is found among 16 sorted ones in four or five comparisons, each a call that compares some 14
//! bytes behind a pointer, with a branch that nobody predicts: 8 to 12 ns each, 40 to 60 ns. Comparing two
//! versions is a few more. So a filter of one key costs at most 60 ns, and one of four keys of which three are
//! looked at 180 ns; one that fails at its first part as much as that part. That is asked at a subscription and
//! each second, never for a packet. Parsing allocates each key and value (20 to 40 ns each) and reads versions and
//! numbers (100 to 150 ns each): some 1 us for four keys.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use virga::capability::{Capabilities, Capability, Filter};

const FOUR_KEYS: &str =
    "hardware.gpu and (software.cuda >= 12 or software.rocm >= 6) and tier = production";

fn owned() -> Capabilities {
    let others = (0..13).map(|n| format!("hardware.other-{n:02}={n}"));
    let own = ["hardware.gpu", "software.cuda=12.4.1", "tier=production"];
    let all = others.chain(own.map(str::to_owned));
    let all = all.map(|text| Capability::parse(&text).expect("a capability"));
    Capabilities::new(all.collect()).expect("each once")
}

fn filters(c: &mut Criterion) {
    let has = owned();
    let mut group = c.benchmark_group("capability");
    for (name, text, holds) in [
        ("one_key", "hardware.gpu", true),
        ("one_version", "software.cuda >= 12", true),
        ("four_keys", FOUR_KEYS, true),
        (
            "fails_at_first",
            "hardware.fpga and tier = production",
            false,
        ),
    ] {
        let filter = Filter::parse(text).expect("a filter");
        assert_eq!(filter.holds(&has), holds, "{text}");
        group.bench_function(name, |b| b.iter(|| filter.holds(black_box(&has))));
    }
    group.bench_function("parse_four_keys", |b| {
        b.iter(|| Filter::parse(black_box(FOUR_KEYS)))
    });
    group.finish();
}

criterion_group!(benches, filters);
criterion_main!(benches);
