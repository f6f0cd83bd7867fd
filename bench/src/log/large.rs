//! How long a log of 10 GiB takes to open, which is what a router waits for when it comes back: headers of all its
//! segments (160, a page each), and after a crash the last segment as a whole, 64 MiB that are read and hashed.

use std::{
    fs::File,
    path::Path,
    time::{Duration, Instant},
};

use rustix::fs::{Advice, fadvise};
use virga_state::{
    AppendError, Durability, Options,
    io::{
        clock,
        driver::{Driver, Way},
        open::OpenLog,
    },
    limits::EVENT_BYTES_MAX,
};

use super::{bare, free_bytes, fresh, link, name};
use crate::{
    interrupt,
    report::{self, Entry, Skip, failed},
    rounds::median,
};

const LOG_BYTES: u64 = 10 << 30;
/// What has to be free besides.
const SPARE_BYTES: u64 = 2 << 30;
const OPENINGS: usize = 5;

/// Rounds below which nobody waits for so much to be written.
const ROUNDS_MIN: u32 = 3;

/// Measures, where the disk has room.
pub(super) fn measure(rounds: u32, below: &Path) -> Result<Vec<Entry>, Skip> {
    if rounds < ROUNDS_MIN {
        let reason = format!("with fewer than {ROUNDS_MIN} rounds no 10 GiB are written");
        report::skipped("log.open_10gib_ms", reason);
        return Ok(Vec::new());
    }
    let free = free_bytes(below).map_err(failed)?;
    if free < LOG_BYTES + SPARE_BYTES {
        let reason = format!(
            "{} GiB are free in {}, {} are needed",
            free >> 30,
            below.display(),
            (LOG_BYTES + SPARE_BYTES) >> 30
        );
        report::skipped("log.open_10gib_ms", reason);
        return Ok(Vec::new());
    }
    let (folder, mut logs) = fresh(below, Durability::Memory)?;
    let mut driver = Driver::open(Way::Auto);
    let payload = vec![0x5a; EVENT_BYTES_MAX];
    let mut written = 0;
    while written < LOG_BYTES {
        let offset = logs[0].log.end();
        let now = clock::now_unix_ns();
        match logs[0].log.append(now, &link(offset), &payload) {
            Ok(_) => written += payload.len() as u64,
            Err(AppendError::Full) => driver.settle(&mut logs),
            Err(error) => return Err(failed(error)),
        }
        interrupt::check()?;
    }
    driver.settle(&mut logs);
    let events = logs[0].log.end();
    // As a crash leaves it: nothing says where it ends.
    drop(logs);
    let path = folder.path().join(name()?.folder());
    let segments = bare::segments(&path).map_err(failed)?;
    for segment in &segments {
        File::open(segment)
            .and_then(|s| s.sync_all())
            .map_err(failed)?;
    }
    let (mut warm, mut cold) = (Vec::new(), Vec::new());
    for _ in 0..OPENINGS {
        warm.push(open_ms(folder.path(), events)?);
        for segment in &segments {
            let file = File::open(segment).map_err(failed)?;
            fadvise(&file, 0, None, Advice::DontNeed).map_err(failed)?;
        }
        cold.push(open_ms(folder.path(), events)?);
        interrupt::check()?;
    }
    Ok(vec![
        Entry::new("log.open_10gib_ms", "ms", median(&warm))
            .limit(100.0)
            .spread(&warm),
        Entry::new("log.open_10gib_cold_ms", "ms", median(&cold)).spread(&cold),
    ])
}

/// Opens it after a crash, without an event being lost.
fn open_ms(logs: &Path, events: u64) -> Result<f64, Skip> {
    let begin = Instant::now();
    let log = OpenLog::open(logs, &name()?, Options::default(), [1; 16]).map_err(failed)?;
    let took: Duration = begin.elapsed();
    match log.log.end() {
        end if end == events => Ok(took.as_secs_f64() * 1e3),
        end => Err(failed(format!("{end} events found of {events}"))),
    }
}
