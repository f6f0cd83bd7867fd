//! Folds: what applying an event costs, merging, and a snapshot.
//!
//! The limit: an event of some 50 bytes of JSON is parsed by serde (2 to 4 ns a byte, an allocation of 20 ns for each
//! text: 150 to 250 ns), its key is found in a map of 1,000 (ten comparisons with branches that nobody predicts, 60 to
//! 80 ns), and what was there is replaced (an allocation for the key, two more for a stamp: 60 ns). The mark of its place
//! is BLAKE3 of the event, one or two blocks: 80 ns. So 350 to 450 ns, 2.2 to 2.8 million a second on one core; `latest`
//! parses into a map of all members and keeps the whole event: 600 ns.
//!
//! A view merges 1,000 keys into an empty state: an insertion and two or three allocations each, 150 ns: 150 µs; so it
//! is taken when somebody looks, not for each event. A snapshot of 1,000 keys copies some 60 KB and hashes them (BLAKE3, 3
//! GB/s): 30 to 50 µs.

use std::{hint::black_box, time::Duration};

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use virga_ebpf::{header::OriginHash, tables::mix};
use virga_state::{
    Event, Link, LogName,
    fold::{
        Fold, Folding, Policy,
        ready::{AddWins, Counters, LastWriterWins, Latest},
    },
};

/// Events of one turn, and keys that they are about.
const EVENTS: u64 = 1_000;
const KEYS: u64 = 1_000;

/// Payloads, each about a key drawn from all.
fn payloads(of: impl Fn(u64, u64) -> String) -> Vec<Vec<u8>> {
    let one = |n| of(mix(0xf01d, n) % KEYS, n).into_bytes();
    (0..EVENTS).map(one).collect()
}

fn event(offset: u64, payload: &[u8]) -> Event<'_> {
    Event {
        offset,
        time_unix_ns: 1_800_000_000_000_000_000 + offset,
        link: Link {
            entity: OriginHash(1),
            observed: 0,
            parent: offset,
        },
        payload,
    }
}

fn one<F: Fold + Clone>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    fold: &F,
    payloads: &[Vec<u8>],
) {
    let log = LogName::parse("bench").expect("a name");
    let mut folding = Folding::new(fold.clone(), Policy::Stop);
    let mut changes = 0_u64;
    let mut apply_all = |folding: &mut Folding<F>| {
        for payload in payloads {
            let event = event(folding.next(&log), payload);
            let applied = folding.apply(&log, black_box(&event), |_, _| changes += 1);
            assert!(applied.expect("it makes sense to the fold"));
        }
    };
    apply_all(&mut folding);
    group.throughput(Throughput::Elements(EVENTS));
    group.bench_function(format!("apply/{name}"), |b| {
        b.iter(|| apply_all(&mut folding));
    });
    assert!(changes >= EVENTS, "events change something");
    group.throughput(Throughput::Elements(1));
    group.bench_function(format!("view/{name}"), |b| b.iter(|| folding.view()));
    group.bench_function(format!("snapshot/{name}"), |b| {
        b.iter(|| folding.snapshot(black_box(&log)).expect("it has a state"));
    });
}

fn folds(c: &mut Criterion) {
    let mut group = c.benchmark_group("fold");
    let counters = payloads(|key, n| format!(r#"{{"key": "sensor-{key:04}", "add": {n}}}"#));
    one(&mut group, "counters", &Counters, &counters);
    let latest = payloads(|key, n| {
        format!(r#"{{"sensor": "sensor-{key:04}", "value": {n}, "unit": "celsius"}}"#)
    });
    one(&mut group, "latest", &Latest::by("sensor"), &latest);
    let written =
        payloads(|key, n| format!(r#"{{"key": "sensor-{key:04}", "value": {n}, "time": {n}}}"#));
    one(&mut group, "last_writer_wins", &LastWriterWins, &written);
    group.finish();
}

/// Additions and removals, whose state would otherwise grow with each turn: a turn adds each key and takes it away.
fn add_wins(c: &mut Criterion) {
    let mut group = c.benchmark_group("fold");
    let log = LogName::parse("bench").expect("a name");
    let mut folding = Folding::new(AddWins, Policy::Stop);
    group.throughput(Throughput::Elements(EVENTS));
    group.bench_function("apply/add_wins", |b| {
        b.iter(|| {
            for n in 0..EVENTS / 2 {
                let offset = folding.next(&log);
                let key = mix(0xf01d, n) % KEYS;
                let added = format!(r#"{{"add": "sensor-{key:04}", "value": {n}}}"#);
                let removed =
                    format!(r#"{{"remove": "sensor-{key:04}", "observed": ["bench:{offset}"]}}"#);
                for (offset, payload) in [(offset, added), (offset + 1, removed)] {
                    let event = event(offset, payload.as_bytes());
                    let applied = folding.apply(&log, black_box(&event), |_, _| ());
                    assert!(applied.expect("it makes sense to the fold"));
                }
            }
        });
    });
    let view = folding.view();
    let left = view.state.values().next();
    assert_eq!(left, None, "what was added is removed");
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = folds, add_wins
}
criterion_main!(benches);
