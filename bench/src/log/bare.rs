//! The limits: what the disk and the memory do for a program that does nothing else.

use std::{
    fs::File,
    hint::black_box,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{self, FallocateFlags, Mode, OFlags, fallocate};
use virga_state::{
    format::{RECORD_HEADER_BYTES, segment_of},
    limits::{BATCH_BYTES, READ_BYTES, SEGMENT_BYTES},
};

use super::{Round, Skip, failed};

/// So many writes have room in the file: more than a disk syncs in a round.
const FILE_WRITES: u64 = 16 << 10;
/// And so many bytes at most, which a disk that takes 2.5 GB/s writes in a round.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Blocks of the disk, which writes past the page cache are made of, in memory that begins at such a place.
const BLOCK_BYTES: usize = 4_096;

/// Writes so many bytes at a time and syncs each time; each counts as so many events. They go into a file made before, as a
/// log's segments are, and each to where nothing was written yet: what is written again costs a disk less.
pub(super) fn write_and_sync(bytes: usize, events: usize, below: &Path) -> Result<Round, Skip> {
    write_and_sync_by(OFlags::empty(), bytes, events, below)
}

/// The same past the page cache, by whole blocks.
pub(super) fn write_direct_and_sync(bytes: usize, below: &Path) -> Result<Round, Skip> {
    write_and_sync_by(OFlags::DIRECT, bytes, 1, below)
}

fn write_and_sync_by(
    how: OFlags,
    bytes: usize,
    events: usize,
    below: &Path,
) -> Result<Round, Skip> {
    let folder = tempfile::tempdir_in(below).map_err(failed)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | how;
    let mode = Mode::RUSR | Mode::WUSR;
    let file = match fs::open(folder.path().join("file"), flags, mode) {
        Err(rustix::io::Errno::INVAL) if how == OFlags::DIRECT => {
            let words = "this file system writes nothing past the page cache";
            return Err(Skip::Missing(words.into()));
        }
        opened => File::from(opened.map_err(failed)?),
    };
    let file_bytes = (bytes as u64 * FILE_WRITES).clamp(SEGMENT_BYTES, FILE_BYTES_MAX);
    match fallocate(&file, FallocateFlags::empty(), 0, file_bytes) {
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(file_bytes).map_err(failed)?,
        made => made.map_err(failed)?,
    }
    file.sync_all().map_err(failed)?;
    let memory = vec![0x5a; bytes + BLOCK_BYTES];
    let from = memory.as_ptr().align_offset(BLOCK_BYTES);
    let content = &memory[from..from + bytes];
    let mut at = 0;
    Round::run(|| {
        if at + bytes as u64 > file_bytes {
            at = 0;
        }
        file.write_all_at(content, at).map_err(failed)?;
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
    for entry in std::fs::read_dir(log)? {
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

/// Copies files into a folder, in pieces, and syncs each.
pub(super) fn copy_and_sync(files: &[PathBuf], to: &Path) -> io::Result<Duration> {
    let mut piece = vec![0; READ_BYTES];
    let begin = Instant::now();
    for (number, file) in files.iter().enumerate() {
        let (from, to) = (
            File::open(file)?,
            File::create(to.join(number.to_string()))?,
        );
        let mut at = 0;
        loop {
            let read = from.read_at(&mut piece, at)?;
            if read == 0 {
                break;
            }
            to.write_all_at(&piece[..read], at)?;
            at += read as u64;
        }
        to.sync_all()?;
    }
    Ok(begin.elapsed())
}

/// The file system that a folder lies on, in words.
pub(super) fn file_system(folder: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
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
