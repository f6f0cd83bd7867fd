//! The log's own work for an event, without the disk: appending, and reading it again from the page cache.
//!
//! The limit: a record of 100 bytes has 148. A copy (10 ns), CRC-32C (10 to 20 ns) and BLAKE3 of the batch (at 3 GB/s
//! 50 ns) are some 80 ns to append; a record of 1,024 bytes is 450 ns of BLAKE3 and 100 of the rest. Reading copies and
//! checks, and leaves the hash: 30 to 40 ns, and some 200. What a sync costs, and how it stands beside the bare disk, is
//! `scripts/bench log`'s.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;
use virga_ebpf::header::OriginHash;
use virga_state::{
    Cursor, Durability, Link, LogName, Options, Reader,
    io::{
        clock,
        driver::{Driver, Way},
        open::{self, OpenLog},
    },
};

/// Events of one turn: they fit into what a log gathers for one write.
const EVENTS: u32 = 1_000;

fn name() -> LogName {
    LogName::parse("bench").expect("a name")
}

/// A log in a folder of its own.
fn fresh() -> (TempDir, [OpenLog; 1]) {
    let folder = tempfile::tempdir().expect("a folder");
    let options = Options {
        durability: Durability::Memory,
        ..Options::default()
    };
    let log = OpenLog::open(folder.path(), &name(), options, [1; 16]).expect("a log");
    (folder, [log])
}

fn append_all(logs: &mut [OpenLog; 1], payload: &[u8]) {
    let mut time = clock::now_unix_ns();
    for _ in 0..EVENTS {
        time += 1;
        let log = &mut logs[0].log;
        let link = Link {
            entity: OriginHash(1),
            observed: 0,
            parent: log.end(),
        };
        log.append(time, &link, black_box(payload)).expect("room");
    }
}

fn logs(c: &mut Criterion) {
    let mut group = c.benchmark_group("log");
    group.throughput(Throughput::Elements(EVENTS.into()));
    for bytes in [100, 1_024] {
        let payload = vec![0x5a_u8; bytes];
        let (_appended, mut log) = fresh();
        let mut driver = Driver::open(Way::Auto);
        group.bench_function(format!("append/{bytes}"), |b| {
            // What a log gathered is written between two turns.
            b.iter_custom(|turns| {
                (0..turns).fold(Duration::ZERO, |took, _| {
                    driver.settle(&mut log);
                    let begin = Instant::now();
                    append_all(&mut log, &payload);
                    took + begin.elapsed()
                })
            });
        });
        let (folder, mut log) = fresh();
        append_all(&mut log, &payload);
        driver.settle(&mut log);
        let [log] = log;
        log.close().expect("closed");
        group.bench_function(format!("read/{bytes}"), |b| {
            let disk = || open::read(folder.path(), &name()).expect("a log");
            b.iter_batched(
                || Reader::open(disk(), &name(), Cursor::Start).expect("a reader"),
                |mut reader| {
                    let mut found = 0;
                    while let Some(event) = reader.next_event().expect("an event") {
                        black_box(event.payload);
                        found += 1;
                    }
                    assert_eq!(found, EVENTS);
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, logs);
criterion_main!(benches);
