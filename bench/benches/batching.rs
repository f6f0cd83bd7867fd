//! Small events that are handed over together share packets: what one costs, by how many there are.
//!
//! The limit: a packet of its own costs an event what `session` says, 0.6 to 0.7 µs for both ends. Of 64 bytes, with
//! its frame's 6, some 17 share a datagram of 1,280 bytes: sealing and opening its 1,200 bytes takes 2 × (120 + 1,200 ×
//! 0.42) ns = 1.25 µs, 73 ns an event; each event is copied, allocated for its reader and told of, 50 ns; the packet's own
//! bookkeeping (stream, ranges, acknowledgement) is 400 ns, 25 ns an event. So 150 ns with 17 and more, a quarter of what
//! an event alone costs; with 4, half of it.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use virga_bench::session::Ends;

fn batches(c: &mut Criterion) {
    let mut group = c.benchmark_group("batching");
    let event = [0x5a; 64];
    for count in [1, 4, 17, 64, 256] {
        let mut ends = Ends::connect();
        // Their windows have grown by then.
        (0..64).for_each(|_| ends.pass_all(&event, count));
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| ends.pass_all(black_box(&event), count));
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
    targets = batches
}
criterion_main!(benches);
