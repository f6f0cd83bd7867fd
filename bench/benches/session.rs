//! Events through a session, both ends on one core and no network between: queued, sealed, opened, put in order,
//! read, acknowledged.
//!
//! The limit: an event of 64 bytes alone in its packet is sealed and opened once (0.15 µs each, see `seal`); every
//! eighth packet is answered by an acknowledgement of its own, which adds an eighth of that; the event is copied
//! and allocated for its reader (50 ns). All else (stream, ranges, timers, congestion window: ordered maps of a few
//! entries) should stay below the cipher: 0.6 to 0.7 µs, 1.5 million events a second for both ends of one core.
//! 1,024 bytes: 0.5 µs each to seal and open, 1.4 µs in all. In batches some 17 events of 64 bytes share a packet
//! and its cipher's fixed cost: 70 bytes at 0.42 ns twice, and its own bookkeeping of about 100 ns: 0.2 µs an
//! event.
//!
//! With every tenth datagram lost, a tenth of the work is done twice. A replayed packet costs the header, one look-
//! up of the session and one word of the window: 30 ns. A forged one is opened in vain: what opening costs.

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use virga_bench::session::Ends;
use virga_transport::{DropReason, Handled};

/// Events in flight at once, in a batch.
const BATCH: usize = 64;

/// Datagrams made at once: as many as stay in the cache from there to their reading, like a worker's batch.
const WARM: BatchSize = BatchSize::NumIterations(64);

fn events(c: &mut Criterion) {
    let mut group = c.benchmark_group("session");
    for event_bytes in [64, 1_024] {
        let event = vec![0x5a; event_bytes];
        let mut pass = |name: &str, mut ends: Ends, count: usize| {
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(format!("{name}/{event_bytes}"), |b| {
                b.iter(|| ends.pass(black_box(&event), count));
            });
        };
        pass("event", Ends::connect(), 1);
        pass("batch", Ends::connect(), BATCH);
        pass("batch_tenth_lost", Ends::connect_losing(10), BATCH);
    }
    group.finish();
}

fn refused(c: &mut Criterion) {
    let mut group = c.benchmark_group("session");
    let mut ends = Ends::connect();
    let mut datagram = ends.datagram(&[0x5a; 64]);
    let replayed = datagram.clone();
    assert_eq!(ends.hand(&mut datagram), Handled::Accepted);
    let mut forged = ends.datagram(&[0x5a; 64]);
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let cases = [
        ("replayed", replayed, DropReason::Replayed),
        ("forged", forged, DropReason::Forged),
    ];
    for (name, datagram, reason) in cases {
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || datagram.clone(),
                |datagram| assert_eq!(ends.hand(datagram), Handled::Dropped(reason)),
                WARM,
            );
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
    targets = events, refused
}
criterion_main!(benches);
