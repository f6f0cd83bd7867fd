//! A scrape of the metrics: rendering what a node tells about itself, after the workers have copied it out.
//!
//! The limit: a series' value of one peer or channel is a line of some 60 bytes. Its labels are allocated (30 ns each)
//! and put into a map in order (60 ns), escaped, and written with the name (100 ns): 250 to 300 ns a line. A node of a
//! hundred series without labels and 1,000 sessions with a dozen series each, which is what one worker of a hub has,
//! comes to 12,000 lines: 3 to 4 ms, on a thread of the control plane, once every 15 s: 0.03 % of a core. The idle
//! node is some 300 lines: 80 to 100 µs.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use virga::{
    api::status::{PathStatus, SessionStatus, Status},
    metrics::text,
};

/// A node with that many established sessions.
fn status(sessions: u64) -> Status {
    let session = |n: u64| SessionStatus {
        peer: format!("{n:016x}"),
        name: format!("peer-{n:04}"),
        state: "established".to_owned(),
        pattern: "ik".to_owned(),
        sent_packets: n * 1_000,
        sent_bytes: n * 1_000_000,
        rtt_us: Some(n),
        path: PathStatus {
            rtt_least_us: Some(n),
            datagram_bytes: 1_472,
            congestion: "cubic".to_owned(),
            phase: "avoidance".to_owned(),
            window_bytes: n * 1_472,
            ..PathStatus::default()
        },
        ..SessionStatus::default()
    };
    Status {
        sessions: (0..sessions).map(session).collect(),
        ..Status::default()
    }
}

fn scrapes(c: &mut Criterion) {
    let mut group = c.benchmark_group("metrics");
    for sessions in [0, 10, 1_000] {
        let status = status(sessions);
        let text = text::of(&status);
        let lines = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(lines as u64 > 4 * sessions, "each session has series");
        assert!(sessions == 0 || text.contains("peer=\"peer-0001\""));
        group.throughput(Throughput::Elements(lines as u64));
        group.bench_function(BenchmarkId::new("sessions", sessions), |b| {
            b.iter(|| text::of(black_box(&status)));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = scrapes
}
criterion_main!(benches);
