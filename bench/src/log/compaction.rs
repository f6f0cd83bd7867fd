//! Compaction by key, beside a plain copy of the same files with a sync each: it reads all of a segment three times (for the newest
//! event of each key, for what is worth it, and to write it anew), parses each event twice, checks every hash, and writes and syncs what is left.

use std::{path::Path, time::Instant};

use virga_state::{
    AppendError, Durability, Options,
    compact::{self, CompactError, Rules, Subject},
    io::{
        clock,
        driver::{Driver, Way},
        open::OpenLog,
    },
};

use super::{Entry, Skip, bare, failed, gigabytes, link, name};
use crate::{interrupt, rounds::median};

const SEGMENT_BYTES: u64 = 16 << 20;
/// Full ones, which are compacted.
const SEGMENTS: usize = 4;
const KEYS: u64 = 1_000;
/// Of an event, about.
const EVENT_BYTES: usize = 1_024;

/// Bytes a second that are gone through, of events of 1 KiB of which few stay.
pub(super) fn measure(rounds: u32, below: &Path) -> Result<Entry, Skip> {
    let (mut rates, mut copies, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let folder = tempfile::tempdir_in(below).map_err(failed)?;
        let mut open = full(folder.path())?;
        let subject = Subject {
            id: *open.log.id(),
            closed: open.log.closed(),
        };
        let segments = bare::segments(&folder.path().join(name()?.folder())).map_err(failed)?;
        let segments = &segments[..subject.closed.len()];
        let copied = tempfile::tempdir_in(below).map_err(failed)?;
        let copy = bare::copy_and_sync(segments, copied.path()).map_err(failed)?;
        let rules = Rules {
            key: "id".to_owned(),
            after_ns: 0,
            removals_after_ns: None,
        };
        let disk = open.files.disk().share().map_err(failed)?;
        let OpenLog { log, files, .. } = &mut open;
        let begin = Instant::now();
        let outcome = compact::pass(
            &disk,
            &subject,
            (&rules, clock::now_unix_ns()),
            &|| true,
            &mut |rewritten| {
                compact::put(log, files, &rewritten).map_err(|source| CompactError::Io {
                    file: format!("segment {}", rewritten.segment),
                    source,
                })
            },
        );
        let took = begin.elapsed();
        let outcome = outcome.map_err(failed)?;
        let closed = &subject.closed;
        let events = closed.last().map_or(0, |last| last.end);
        let is_whole = outcome.segments == closed.len() as u64;
        // The newest of each key stay, and what shares a piece with one.
        if !is_whole || outcome.removed_events < events / 2 {
            return Err(failed(format!("{outcome:?} of {events} events")));
        }
        let bytes = closed.iter().map(|closed| closed.bytes).sum();
        rates.push(gigabytes(bytes, took));
        copies.push(gigabytes(bytes, copy));
        ratios.push(copy.as_secs_f64() / took.as_secs_f64());
        interrupt::check()?;
    }
    Ok(Entry::new("log.compaction", "GB/s", median(&rates))
        .beside(median(&copies))
        .ratio(median(&ratios))
        .spread(&ratios))
}

/// A log with so many full segments, all on disk.
fn full(logs: &Path) -> Result<OpenLog, Skip> {
    let options = Options {
        durability: Durability::Flushed,
        segment_bytes: SEGMENT_BYTES,
        ..Options::default()
    };
    let open = OpenLog::open(logs, &name()?, options, [1; 16]).map_err(failed)?;
    let mut logs = [open];
    let mut driver = Driver::open(Way::Auto);
    let fill = "x".repeat(EVENT_BYTES - 64);
    while logs[0].log.closed().len() < SEGMENTS {
        let offset = logs[0].log.end();
        let event = format!(
            "{{\"id\":{},\"n\":{offset},\"fill\":\"{fill}\"}}",
            offset % KEYS
        );
        let now = clock::now_unix_ns();
        match logs[0].log.append(now, &link(offset), event.as_bytes()) {
            Ok(_) => {}
            Err(AppendError::Full) => driver.settle(&mut logs),
            Err(error) => return Err(failed(error)),
        }
    }
    driver.settle(&mut logs);
    let [open] = logs;
    Ok(open)
}
