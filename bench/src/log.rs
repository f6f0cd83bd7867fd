//! The durable log, beside a program that only writes and syncs, beside fjall and beside SQLite.
//!
//! An event is acknowledged when it is on disk for good, so the disk sets the limit:
//!
//! That limit is a program that writes the same payloads and nothing else, by `write` and `fdatasync`, to places in one file
//! that was made before and where nothing was written yet. Ours writes 48 bytes more an event and 128 more a batch of up
//! to 256 KiB, and makes a segment every 64 MiB: that is ours to pay.
//!
//! - one writer, an event a commit: one write and one `fdatasync` an event. A disk that takes 1 ms for them takes
//!   1,000 events a second, whatever the program does in between; ours adds some microseconds.
//! - 64 writers, each with one event under way: what comes during a sync shares the next, so 64 times that.
//! - batched: 1,024 events of 1 KiB a commit, 1 MiB: at 1 GB/s 1 ms for the disk; on top come the copy, a CRC-32C a
//!   record and a BLAKE3 hash a batch, 0.3 to 0.5 ms at 2 to 4 GB/s for the three: that is what 0.9 leaves room for
//!   on a disk below 0.3 GB/s, not on a faster one.
//! - in memory: a record of 100 bytes has 148. A copy (10 ns), CRC-32C (10 to 20 ns) and BLAKE3 (at 3 GB/s 50 ns)
//!   are some 80 ns; `log.memory_append_ns` stands beside just these three.
//! - replay: a copy out of the page cache and a CRC-32C, both at 5 to 10 GB/s; the reference does these two in pieces
//!   of 1 MiB, ours gives each event for itself, which costs most where events are small.
//!
//! Writers are callers in the log's own thread, as the sessions of one worker are. Files lie below `TMPDIR`, or `/tmp`:
//! the page names their file system.

use std::{
    hint::black_box,
    io,
    path::Path,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tempfile::TempDir;
use virga_ebpf::header::OriginHash;
use virga_state::{
    AppendError, Cursor, Durability, Link, LogName, Options, Reader,
    io::{
        clock,
        driver::{Driver, Way},
        open::{self, OpenLog},
    },
};

use crate::{
    interrupt,
    report::{self, Entry, Skip, failed},
    rounds::median,
};

mod bare;
mod compaction;
mod direct;
mod large;
mod stores;

/// Rounds of what takes half a second each.
const ROUNDS_MAX: u32 = 9;
/// What one side of one round takes.
const ROUND: Duration = Duration::from_millis(400);
/// Events of one round in memory: they fit into what a log gathers for one write.
const IN_MEMORY: u32 = 20_000;
/// Bytes of the log that is replayed.
const REPLAYED_BYTES: usize = 128 << 20;

/// What is acknowledged after a sync: so many events of so many bytes by one commit.
pub(crate) struct Synced {
    name: &'static str,
    bytes: usize,
    together: usize,
}

const SYNCED: [Synced; 6] = [
    Synced {
        name: "log.synced_single_100b",
        bytes: 100,
        together: 1,
    },
    Synced {
        name: "log.synced_single_1k",
        bytes: 1_024,
        together: 1,
    },
    Synced {
        name: "log.synced_64w_100b",
        bytes: 100,
        together: 64,
    },
    Synced {
        name: "log.synced_64w_1k",
        bytes: 1_024,
        together: 64,
    },
    Synced {
        name: "log.synced_batch_100b",
        bytes: 100,
        together: 1_024,
    },
    Synced {
        name: "log.synced_batch_1k",
        bytes: 1_024,
        together: 1_024,
    },
];

/// Measures.
pub(crate) fn measure(rounds: u32) -> Result<Vec<Entry>, Skip> {
    let rounds = rounds.min(ROUNDS_MAX);
    let folder = tempfile::tempdir().map_err(failed)?;
    report::remark("log", format!("on {}", bare::file_system(folder.path())));
    let mut entries = Vec::new();
    for case in &SYNCED {
        entries.extend(synced(case, rounds, folder.path())?);
    }
    entries.push(memory_append(rounds, folder.path())?);
    entries.push(replay("log.replay", 1_024, rounds, folder.path())?);
    entries.push(replay("log.replay_100b", 100, rounds, folder.path())?);
    entries.push(compaction::measure(rounds, folder.path())?);
    entries.extend(direct::measure(rounds, folder.path())?);
    entries.extend(stores::measure(rounds, folder.path())?);
    entries.extend(large::measure(rounds, folder.path())?);
    Ok(entries)
}

fn link(offset: u64) -> Link {
    Link {
        entity: OriginHash(1),
        observed: 0,
        parent: offset,
    }
}

/// A log of its own folder below another.
fn fresh(below: &Path, durability: Durability) -> Result<(TempDir, [OpenLog; 1]), Skip> {
    let folder = tempfile::tempdir_in(below).map_err(failed)?;
    let options = Options {
        durability,
        ..Options::default()
    };
    let log = OpenLog::open(folder.path(), &name()?, options, [1; 16]).map_err(failed)?;
    Ok((folder, [log]))
}

fn name() -> Result<LogName, Skip> {
    LogName::parse("bench").map_err(failed)
}

/// What a side of a round gave: events a second, and how long each took.
pub(crate) struct Round {
    rate: f64,
    latency_ns: Histogram<u64>,
}

impl Round {
    /// Commits until the round is over; each says how many events it took.
    fn run(mut commit: impl FnMut() -> Result<usize, Skip>) -> Result<Self, Skip> {
        let mut latency_ns = Histogram::new(3).map_err(failed)?;
        let begin = Instant::now();
        let mut events = 0_u64;
        let mut last = begin;
        while begin.elapsed() < ROUND {
            let taken = commit()? as u64;
            let now = Instant::now();
            let took = u64::try_from((now - last).as_nanos()).unwrap_or(u64::MAX);
            latency_ns.record_n(took, taken).map_err(failed)?;
            last = now;
            events += taken;
        }
        interrupt::check()?;
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let rate = events as f64 / begin.elapsed().as_secs_f64();
        Ok(Self { rate, latency_ns })
    }

    /// Microseconds that one event in a thousand takes longer than.
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds far below 2^52")]
    fn p999_us(&self) -> f64 {
        self.latency_ns.value_at_quantile(0.999) as f64 / 1e3
    }
}

/// One round of ours.
fn ours(case: &Synced, below: &Path) -> Result<Round, Skip> {
    let (_folder, mut logs) = fresh(below, Durability::Synced)?;
    let mut driver = Driver::open(Way::Auto);
    let payload = vec![0x5a; case.bytes];
    // The first segment is there.
    driver.settle(&mut logs);
    Round::run(|| {
        let log = &mut logs[0].log;
        for _ in 0..case.together {
            let offset = log.end();
            log.append(clock::now_unix_ns(), &link(offset), &payload)
                .map_err(failed)?;
        }
        let end = log.end();
        while logs[0].log.acknowledged() < end {
            if !driver.round(&mut logs) {
                let why = logs[0].log.failure().unwrap_or("nothing is left to do");
                return Err(failed(format!("the log does not acknowledge: {why}")));
            }
        }
        Ok(case.together)
    })
}

fn synced(case: &Synced, rounds: u32, below: &Path) -> Result<Vec<Entry>, Skip> {
    let (mut rates, mut limits, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut slow, mut slow_limit) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let ours = ours(case, below)?;
        let limit = bare::write_and_sync(case.bytes * case.together, case.together, below)?;
        rates.push(ours.rate);
        limits.push(limit.rate);
        ratios.push(ours.rate / limit.rate);
        slow.push(ours.p999_us());
        slow_limit.push(limit.p999_us());
    }
    let mut entries = vec![
        Entry::new(case.name, "events/s", median(&rates))
            .beside(median(&limits))
            .ratio(median(&ratios))
            .limit(0.9)
            .spread(&ratios),
    ];
    if case.name == "log.synced_64w_100b" {
        let p999 = Entry::new("log.synced_64w_p999_us", "us", median(&slow));
        entries.push(p999.beside(median(&slow_limit)));
    }
    Ok(entries)
}

/// Nanoseconds of an append that is acknowledged at once, beside copy, checksum and hash alone.
fn memory_append(rounds: u32, below: &Path) -> Result<Entry, Skip> {
    let payload = [0x5a_u8; 100];
    let (_folder, mut logs) = fresh(below, Durability::Memory)?;
    let mut driver = Driver::open(Way::Auto);
    let (mut figures, mut floors) = (Vec::new(), Vec::new());
    let mut time = clock::now_unix_ns();
    // The first rounds meet memory that was never touched.
    for round in 0..rounds + 2 {
        let log = &mut logs[0].log;
        let begin = Instant::now();
        for _ in 0..IN_MEMORY {
            time += 1;
            let offset = log.end();
            log.append(time, &link(offset), black_box(&payload))
                .map_err(failed)?;
        }
        let took = begin.elapsed();
        driver.settle(&mut logs);
        let floor = bare::copy_check_and_hash(&payload, IN_MEMORY);
        if round >= 2 {
            figures.push(took.as_secs_f64() * 1e9 / f64::from(IN_MEMORY));
            floors.push(floor.as_secs_f64() * 1e9 / f64::from(IN_MEMORY));
        }
    }
    Ok(Entry::new("log.memory_append_ns", "ns", median(&figures))
        .beside(median(&floors))
        .limit(120.0)
        .spread(&figures))
}

/// A log out of the page cache, event by event, beside the same files copied and checked.
fn replay(figure: &'static str, bytes: usize, rounds: u32, below: &Path) -> Result<Entry, Skip> {
    let (folder, mut logs) = fresh(below, Durability::Flushed)?;
    let mut driver = Driver::open(Way::Auto);
    let payload = vec![0x5a; bytes];
    for _ in 0..REPLAYED_BYTES / bytes {
        let offset = logs[0].log.end();
        let now = clock::now_unix_ns();
        match logs[0].log.append(now, &link(offset), &payload) {
            Ok(_) => {}
            Err(AppendError::Full) => driver.settle(&mut logs),
            Err(error) => return Err(failed(error)),
        }
    }
    driver.settle(&mut logs);
    let events = logs[0].log.end();
    let [log] = logs;
    log.close().map_err(failed)?;
    let name = name()?;
    let segments = bare::segments(&folder.path().join(name.folder())).map_err(failed)?;
    let (mut rates, mut limits, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..=rounds {
        let begin = Instant::now();
        let disk = open::read(folder.path(), &name).map_err(failed)?;
        let mut reader = Reader::open(disk, &name, Cursor::Start).map_err(failed)?;
        let mut found = 0;
        while let Some(event) = reader.next_event().map_err(failed)? {
            black_box(event.payload);
            found += 1;
        }
        let took = begin.elapsed();
        if found != events {
            return Err(failed(format!("{found} events read of {events}")));
        }
        let limit = bare::copy_and_check(&segments).map_err(failed)?;
        rates.push(gigabytes(limit.bytes, took));
        limits.push(gigabytes(limit.bytes, limit.took));
        ratios.push(limit.took.as_secs_f64() / took.as_secs_f64());
        interrupt::check()?;
    }
    // The first round has filled the page cache.
    let measured = 1..;
    let ratios = &ratios[measured.clone()];
    Ok(Entry::new(figure, "GB/s", median(&rates[measured.clone()]))
        .beside(median(&limits[measured]))
        .ratio(median(ratios))
        .limit(0.8)
        .spread(ratios))
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn gigabytes(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64() / 1e9
}

/// What is left of the disk that a folder lies on, in bytes.
fn free_bytes(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail * stat.f_frsize)
}
