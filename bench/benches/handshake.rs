//! Handshakes: two nodes that have not met, until each knows that the other has proven itself; both ends on one core,
//! no network between them.
//!
//! The limit: X25519 takes some 35 µs a multiplication (curve25519-dalek, AVX2), of which NK needs six for both ends
//! (each makes a key, and takes part in `es` and `ee`), IK ten (`ss` and `se` beside) and XX eight (`se` beside): 210,
//! 350 and 280 µs. Each end then signs with ed25519 (15 µs) and verifies the other's signature (45 µs): 120 µs. So 330
//! µs for NK, 3,000 a second for both ends of one core, twice that for each; 470 µs for IK; 400 for XX. Cipher and
//! hashes are 3 µs a message, and five to eight messages.
//!
//! ML-KEM-768 makes a key (25 µs without AVX2 code), encapsulates (25) and decapsulates (30), its packets are two more a
//! direction, and what they carry is hashed once: 90 µs.

use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use virga_bench::session::Ends;
use virga_transport::{HandshakePolicy, Pattern, Pq};

fn handshakes(c: &mut Criterion) {
    let mut group = c.benchmark_group("handshake");
    group.throughput(Throughput::Elements(1));
    for pattern in Pattern::ALL {
        for (name, pq) in [("x25519", Pq::Off), ("ml_kem_768", Pq::Required)] {
            let policy = HandshakePolicy {
                pattern: Some(pattern),
                pq,
            };
            group.bench_function(format!("{}/{name}", pattern.name()), |b| {
                b.iter_batched_ref(|| Ends::unmet(policy), Ends::meet, BatchSize::SmallInput);
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = handshakes
}
criterion_main!(benches);
