//! Writes past the page cache (`O_DIRECT`) beside writes through it, with a sync each: what the log could gain by them, and no figure of the
//! log itself. It writes through the cache: its commits begin and end anywhere, while such a write takes whole blocks of 4 KiB at such places, so
//! that the last block of each commit would be written again by the next.

use std::path::Path;

use super::{Entry, Skip, bare};
use crate::{report, rounds::median};

const CASES: [(&str, usize); 3] = [
    ("log.direct_4k", 4 << 10),
    ("log.direct_64k", 64 << 10),
    ("log.direct_1m", 1 << 20),
];

/// Commits a second. Where the file system has no such writes the figures are left out.
pub(super) fn measure(rounds: u32, below: &Path) -> Result<Vec<Entry>, Skip> {
    let mut entries = Vec::new();
    for (name, bytes) in CASES {
        match beside(name, bytes, rounds, below) {
            Ok(entry) => entries.push(entry),
            Err(Skip::Missing(reason)) => report::skipped(name, reason),
            Err(failure) => return Err(failure),
        }
    }
    Ok(entries)
}

fn beside(name: &'static str, bytes: usize, rounds: u32, below: &Path) -> Result<Entry, Skip> {
    let (mut direct, mut cached, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let past = bare::write_direct_and_sync(bytes, below)?.rate;
        let through = bare::write_and_sync(bytes, 1, below)?.rate;
        direct.push(past);
        cached.push(through);
        ratios.push(past / through);
    }
    Ok(Entry::new(name, "commits/s", median(&direct))
        .beside(median(&cached))
        .ratio(median(&ratios))
        .spread(&ratios))
}
