//! Messages through a stream, from `send` to `poll`, both ends on one core and no network between: queued, put
//! into packets, sealed, opened, taken out, read; acknowledgements included.
//!
//! The limit is the AEAD (see `seal`): 110 to 130 ns a packet and 0.42 ns a byte, for each of sealing and opening.
//! One event of 64 bytes alone is a packet of 67: 0.15 µs each way, 0.3 µs in all, and every eighth packet costs an
//! acknowledgement of as much: 0.34 µs. 64 events of 64 bytes are one run of equal size: 4 packets of 17 events where
//! a packet has 1,232 bytes, so 64 × 64 bytes × 0.42 ns and 4 × 120 ns, twice: 4.4 µs, 69 ns an event; in one packet
//! of 4.2 KB 3.7 µs, 58 ns an event. What an event adds beside that is to be copied in (5 ns), out with its
//! neighbours (1 ns), and handed to the reader as a slice of one buffer (20 ns). 1 KiB ordered: 1,028 bytes of a
//! stream whose packets carry some 1,140: 0.43 + 0.11 µs, twice: 1.1 µs; two copies at either end at 10 GB/s add
//! 0.4 µs.
//!
//! Each side has a core of its own in use: there half of this is what limits.

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use virga_bench::session::Ends;
use virga_transport::Mode;

/// Messages handed over in one call.
const BATCH: usize = 64;

fn streams(c: &mut Criterion) {
    let mut group = c.benchmark_group("stream");
    for mode in Mode::ALL {
        for (event_bytes, count) in [(64, 1), (64, BATCH), (1_024, 1), (1_024, BATCH)] {
            let event = vec![0x5a; event_bytes];
            let mut ends = Ends::connect_by(mode);
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(format!("{}/{count}x{event_bytes}", mode.name()), |b| {
                b.iter(|| ends.pass_all(black_box(&event), count));
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = streams
}
criterion_main!(benches);
