//! From one batch of a segment to the next.

use crate::{
    disk::DiskFile,
    format::{
        BATCH_HEADER_BYTES, BATCH_MAGIC, BatchHeader, COMPACTED_MAGIC, Fault, Hash, LogId, Record,
        digest, is_zero,
    },
    limits::{BATCH_BYTES_MAX, READ_BYTES},
    signatures,
    sparse::{self, SIZE_BYTES, Sparse},
};
use std::{io, ops::Range};

/// A part of a file, read ahead.
#[derive(Debug)]
pub(crate) struct Window {
    at: u64,
    filled: usize,
    bytes: Vec<u8>,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self {
            at: 0,
            filled: 0,
            bytes: Vec::new(),
        }
    }

    /// Forgets what it holds: it is another file's, or was written to since.
    pub(crate) fn clear(&mut self) {
        self.filled = 0;
    }

    /// The bytes of the file from there on, at least so many unless it ends before.
    pub(crate) fn read<F: DiskFile>(
        &mut self,
        file: &F,
        at: u64,
        bytes: usize,
    ) -> io::Result<&[u8]> {
        let skip = at
            .checked_sub(self.at)
            .and_then(|s| usize::try_from(s).ok());
        let skip = skip.filter(|skip| *skip <= self.filled);
        if let Some(skip) = skip
            && self.filled - skip >= bytes
        {
            return Ok(&self.bytes[skip..self.filled]);
        }
        // What is there already is kept.
        let kept = skip.map_or(0, |skip| {
            if skip > 0 {
                self.bytes.copy_within(skip..self.filled, 0);
            }
            self.filled - skip
        });
        self.at = at;
        self.filled = kept;
        let left = usize::try_from(file.bytes()?.saturating_sub(at)).unwrap_or(usize::MAX);
        let wanted = bytes.max(READ_BYTES).min(left).max(kept);
        if self.bytes.len() < wanted {
            self.bytes.resize(wanted, 0);
        }
        self.filled += file.read_full(at + kept as u64, &mut self.bytes[kept..wanted])?;
        Ok(&self.bytes[..self.filled])
    }

    /// What was read before of that range.
    pub(crate) fn held(&self, at: u64, bytes: usize) -> &[u8] {
        let skip = at
            .checked_sub(self.at)
            .and_then(|s| usize::try_from(s).ok());
        let range = skip.and_then(|skip| Some(skip..skip.checked_add(bytes)?));
        let held = range.and_then(|range| self.bytes[..self.filled].get(range));
        held.unwrap_or_default()
    }
}

/// The header at a place, and its records' bytes, which the window then holds. How many compaction left is outside the
/// header's checksum: it is only gone by where the checksum over it all is right.
pub(crate) fn batch_at<F: DiskFile>(
    window: &mut Window,
    file: &F,
    id: &LogId,
    at: u64,
) -> io::Result<Result<BatchHeader, Fault>> {
    let header =
        match BatchHeader::parse(window.read(file, at, BATCH_HEADER_BYTES + SIZE_BYTES)?, id) {
            Ok(header) => header,
            Err(fault) => return Ok(Err(fault)),
        };
    let bytes = records_range(&header).end;
    let held = window.read(file, at, bytes)?.get(records_range(&header));
    Ok(match held {
        None => Err(Fault::Short),
        Some(stored) if header.sparse_bytes.is_some() && !sparse::is_intact(stored) => {
            Err(Fault::Checksum)
        }
        Some(_) => Ok(header),
    })
}

/// Where a batch's records are, or what compaction left of them.
pub(crate) const fn records_range(header: &BatchHeader) -> Range<usize> {
    let bytes = match header.sparse_bytes {
        Some(sparse) => sparse,
        None => header.bytes,
    };
    BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + bytes
}

/// Whether every record of a batch, and every block behind them, is as it was written; else the first offset that is not.
pub(crate) fn check_records(header: &BatchHeader, mut records: &[u8]) -> Result<(), (u64, Fault)> {
    if header.sparse_bytes.is_some() {
        return sparse::check(header, records).map(drop);
    }
    for offset in header.first_offset..header.end() {
        match Record::parse(records) {
            Ok((record, rest)) if record.offset == offset => records = rest,
            Ok(_) => return Err((offset, Fault::Order)),
            Err(fault) => return Err((offset, fault)),
        }
    }
    signatures::check_blocks(header, records)
}

/// Whether a batch comes after a chain, and its records, or what is left of them, are those that were hashed.
pub(crate) fn check_hashes(header: &BatchHeader, before: &Hash, bytes: &[u8]) -> bool {
    let records = bytes.get(records_range(header)).unwrap_or_default();
    let is_content = match header.sparse_bytes {
        None => digest(records) == header.digest,
        Some(_) => Sparse::parse(header, records)
            .is_ok_and(|sparse| sparse.digest().is_none_or(|digest| digest == header.digest)),
    };
    header.continues(before, bytes) && is_content
}

/// The next place at or after `at` where a batch of this log begins, by its header alone.
pub(crate) fn next_batch<F: DiskFile>(
    window: &mut Window,
    file: &F,
    id: &LogId,
    mut at: u64,
) -> io::Result<Option<(u64, BatchHeader)>> {
    loop {
        let bytes = window.read(file, at, BATCH_BYTES_MAX.min(READ_BYTES))?;
        if bytes.len() < BATCH_HEADER_BYTES {
            return Ok(None);
        }
        let last = bytes.len() - BATCH_HEADER_BYTES;
        let is_begin =
            |bytes: &[u8]| bytes.starts_with(BATCH_MAGIC) || bytes.starts_with(COMPACTED_MAGIC);
        let begins = (0..=last).filter(|&from| is_begin(&bytes[from..]));
        let mut found = begins.filter_map(|from| {
            let header = BatchHeader::parse(&bytes[from..], id).ok()?;
            Some((at + from as u64, header))
        });
        if let Some(found) = found.next() {
            return Ok(Some(found));
        }
        // The size behind a header at the window's end is looked for with what follows.
        at += (last + 1).saturating_sub(SIZE_BYTES).max(1) as u64;
    }
}

/// Whether a batch at or after `at` knew of all events below an offset as on disk.
pub(crate) fn was_known<F: DiskFile>(
    file: &F,
    id: &LogId,
    mut at: u64,
    end: u64,
) -> io::Result<bool> {
    let mut window = Window::new();
    while let Some((found, header)) = next_batch(&mut window, file, id, at)? {
        if header.durable >= end {
            return Ok(true);
        }
        at = found + 1;
    }
    Ok(false)
}

/// The next batch behind `at`, if there is anything at all.
pub(crate) fn next_good_header<F: DiskFile>(
    window: &mut Window,
    file: &F,
    id: &LogId,
    at: u64,
) -> io::Result<Option<(u64, BatchHeader)>> {
    match used_end(window, file, at)? == at {
        true => Ok(None),
        false => next_batch(window, file, id, at + 1),
    }
}

/// The place after the last byte that is not zero, at or after `at`; `at` where all are.
pub(crate) fn used_end<F: DiskFile>(window: &mut Window, file: &F, at: u64) -> io::Result<u64> {
    let (mut end, mut from) = (at, at);
    loop {
        let bytes = window.read(file, from, READ_BYTES)?;
        if bytes.is_empty() {
            return Ok(end);
        }
        if !is_zero(bytes) {
            let last = bytes.iter().rposition(|&byte| byte != 0).unwrap_or(0);
            end = from + last as u64 + 1;
        }
        from += bytes.len() as u64;
    }
}
