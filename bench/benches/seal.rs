//! Sealing and opening a packet: ChaCha20-Poly1305 (RFC 8439) by `ring`, the 64-byte header as associated data.
//!
//! The limit, with AVX2 at 3 GHz: ChaCha20 makes eight blocks at once, 80 quarter rounds of 4 additions, 4
//! exclusive ors and 4 rotations (2 of them 3 instructions): 1,280 vector instructions for 512 bytes, three a
//! cycle: 0.83 cycles a byte. Poly1305 takes 4 blocks at once, 25 multiplications and some 45 other instructions
//! for 64 bytes, about 0.4 cycles a byte. So 1.2 to 1.3 cycles a byte, 0.42 ns. Beside that each packet costs one
//! block for Poly1305's key and at least one for the payload, in a chain (80 quarter rounds by SSE, 4 side by side,
//! 12 cycles each: 250 cycles), and five Poly1305 blocks for associated data and lengths (20 cycles each): 110 to
//! 130 ns. 1,400 bytes: about 0.7 µs, 2 GB/s; 64 bytes: about 0.15 µs. Opening is the same work, and comparing 16
//! bytes.
//!
//! `ring` takes 5.7 instructions a byte (what lies between 64 and 1,400 bytes in `budget.toml`) where this comes to
//! 4.

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use virga_bench::sealed::Sealed;
use virga_ebpf::limits::HEADER_BYTES;

/// Payloads: two small events, and what a 1,500-byte frame carries at most.
const PAYLOADS: [usize; 4] = [64, 256, 1_024, 1_400];

/// Packets made at once: as many as stay in the cache from there to their opening, like a worker's batch.
const WARM: BatchSize = BatchSize::NumIterations(64);

fn seal(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal");
    for payload_bytes in PAYLOADS {
        group.throughput(Throughput::Bytes(payload_bytes as u64));
        let sealed = Sealed::new(payload_bytes);
        let mut packet = sealed.packet.clone();
        let mut sequence = sealed.sequence;
        group.bench_function(BenchmarkId::new("seal", payload_bytes), |b| {
            b.iter(|| {
                sequence += 1;
                sealed.key.seal(sequence, black_box(&mut packet));
            });
        });
        group.bench_function(BenchmarkId::new("open", payload_bytes), |b| {
            b.iter_batched_ref(
                || sealed.packet[HEADER_BYTES..].to_vec(),
                |bytes| assert_eq!(sealed.open(bytes), payload_bytes),
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
    targets = seal
}
criterion_main!(benches);
