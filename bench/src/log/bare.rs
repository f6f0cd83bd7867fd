//! The limits: what the disk and the memory do for a program that does nothing else.

use std::{
    fs::{self, File, OpenOptions},
    hint::black_box,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{FallocateFlags, fallocate};
use virga_state::{
    format::{RECORD_HEADER_BYTES, segment_of},
    limits::{BATCH_BYTES, READ_BYTES},
};

use super::{Round, Skip, failed};

/// Room of the file that is written to: made before, as a log's segments are.
const FILE_BYTES: u64 = 256 << 20;

/// Writes so many bytes at a time and syncs each time; each counts as so many events.
pub(super) fn write_and_sync(bytes: usize, events: usize, below: &Path) -> Result<Round, Skip> {
    let folder = tempfile::tempdir_in(below).map_err(failed)?;
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create_new(true)
        .open(folder.path().join("file"))
        .map_err(failed)?;
    match fallocate(&file, FallocateFlags::empty(), 0, FILE_BYTES) {
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(FILE_BYTES).map_err(failed)?,
        made => made.map_err(failed)?,
    }
    file.sync_all().map_err(failed)?;
    let content = vec![0x5a; bytes];
    let mut at = 0;
    Round::run(|| {
        if at + bytes as u64 > FILE_BYTES {
            at = 0;
        }
        file.write_all_at(&content, at).map_err(failed)?;
        file.sync_data().map_err(failed)?;
        at += bytes as u64;
        Ok(events)
    })
}

/// Copies a payload so many times behind a record's header, checks each record, and hashes batches.
pub(super) fn copy_check_and_hash(payload: &[u8], times: u32) -> Duration {
    // Memory that was touched before, as the log's own.
    let mut batch = vec![0; 2 * BATCH_BYTES];
    let begin = Instant::now();
    batch.clear();
    for _ in 0..times {
        let from = batch.len();
        batch.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
        batch.extend_from_slice(black_box(payload));
        black_box(crc32c::crc32c(&batch[from..]));
        if batch.len() >= BATCH_BYTES {
            black_box(blake3::hash(&batch));
            batch.clear();
        }
    }
    begin.elapsed()
}

/// A log's segments, in order.
pub(super) fn segments(log: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(log)? {
        let entry = entry?;
        if entry.file_name().to_str().and_then(segment_of).is_some() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Files that were read.
pub(super) struct Read {
    pub(super) bytes: u64,
    pub(super) took: Duration,
}

/// Copies files out of the page cache and checks them, in pieces.
pub(super) fn copy_and_check(files: &[PathBuf]) -> io::Result<Read> {
    let mut piece = vec![0; READ_BYTES];
    let mut bytes = 0;
    let begin = Instant::now();
    for file in files {
        let file = File::open(file)?;
        let mut at = 0;
        loop {
            let read = file.read_at(&mut piece, at)?;
            if read == 0 {
                break;
            }
            black_box(crc32c::crc32c(&piece[..read]));
            at += read as u64;
        }
        bytes += at;
    }
    let took = begin.elapsed();
    Ok(Read { bytes, took })
}

/// The file system that a folder lies on, in words.
pub(super) fn file_system(folder: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?, words.next()?, words.next()?))
    });
    let holds = fields.filter(|(_, place, _)| folder.starts_with(place));
    match holds.max_by_key(|(_, place, _)| place.len()) {
        Some((device, _, kind)) => format!("{kind}, {device}"),
        None => "an unknown file system".to_owned(),
    }
}
