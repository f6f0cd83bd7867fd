//! Whether all of a log is as it was written: checksums, hashes, order, nothing missing; and as it was signed:
//! signatures, feeds, forks.

use crate::{
    LogName,
    batch::{BatchError, Verified},
    catalog::{Catalog, Found, OpenError},
    causal::Index,
    disk::{Disk, DiskFile},
    fork::ForkProof,
    format::{BatchHeader, COMPACTED_VERSION, Fault, Hash, SEGMENT_HEADER_BYTES, segment_name},
    signatures::Content,
    sparse::{self, Sparse},
    walk::{self, Window},
};
use std::fmt;

/// Something that is not as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// In which segment.
    pub segment: u32,
    /// Where in it.
    pub at: u64,
    /// The first event that it concerns.
    pub offset: u64,
    /// What it is.
    pub fault: Fault,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            segment,
            at,
            offset,
            fault,
        } = self;
        write!(f, "segment {segment} at {at}, event {offset}: {fault}")
    }
}

/// Flaws that are listed; more are only counted.
pub const FLAWS_MAX: usize = 1_000;

/// What a log holds, and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Segments that are in use.
    pub segments: u64,
    /// Batches that are whole.
    pub batches: u64,
    /// Events in them.
    pub events: u64,
    /// Whether there are segments and no manifest that can be read.
    pub is_manifest_lost: bool,
    /// Segments that were compacted.
    pub compacted_segments: u64,
    /// Events of whole batches that compaction has taken.
    pub removed_events: u64,
    /// Bytes that it has taken.
    pub removed_bytes: u64,
    /// Bytes of all segments' files.
    pub bytes: u64,
    /// Of the first event that is kept.
    pub first_offset: u64,
    /// Of the next event.
    pub end: u64,
    /// When the first whole batch began.
    pub first_time: Option<u64>,
    /// When the last whole batch ended.
    pub last_time: Option<u64>,
    /// After the last whole batch: the same on all copies of the same log.
    pub chain: Option<Hash>,
    /// The first [`FLAWS_MAX`].
    pub flaws: Vec<Flaw>,
    /// All of them.
    pub flaw_count: u64,
    /// Bytes behind the last batch: a write that was cut short, or is under way.
    pub unfinished_bytes: u64,
    /// What is signed, where all of it was looked at.
    pub audit: Audit,
}

/// What is signed of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Events that their entity signed.
    pub signed_events: u64,
    /// Signatures of them.
    pub signed_batches: u64,
    /// Signatures that are not what they should be; each is one of the flaws.
    pub bad_signatures: u64,
    /// Signed batches that have no order, as what they say of others is not so, or there were too many to look at.
    pub refused_batches: u64,
    /// Signed batches that follow some that are not in this log.
    pub waiting_batches: u64,
    /// Where entities signed two things that contradict each other, one a feed; of a log with more batches
    /// than an index of causes holds, among those that are near to each other.
    pub forks: Vec<ForkProof>,
}

impl Report {
    fn flaw(&mut self, segment: u32, at: u64, offset: u64, fault: Fault) {
        self.flaw_count += 1;
        if self.flaws.len() < FLAWS_MAX {
            self.flaws.push(Flaw {
                segment,
                at,
                offset,
                fault,
            });
        }
    }

    fn add(&mut self, header: &BatchHeader, stored: &[u8]) {
        self.batches += 1;
        let count = u64::from(header.count);
        let left = match header.sparse_bytes {
            Some(_) => sparse::left(header, stored),
            None => count,
        };
        self.events += left;
        self.removed_events += count - left;
        let stored = header.sparse_bytes.unwrap_or(header.bytes);
        self.removed_bytes += header.bytes.saturating_sub(stored) as u64;
        self.end = header.end();
        self.first_time.get_or_insert(header.first_time);
        self.last_time = Some(header.last_time);
        self.chain = Some(header.chain);
    }
}

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Every byte.
    Content,
    /// Headers.
    Headers,
}

/// Goes through all of a log; nothing is changed.
///
/// # Errors
/// See [`OpenError`].
pub fn verify<D: Disk>(disk: &D, name: &LogName, depth: Depth) -> Result<Report, OpenError> {
    let mut index = Index::default();
    let mut report = verify_with(disk, name, depth, |_, batch| {
        // What is refused or waits is looked at for forks all the same.
        let _place = index.insert(batch);
    })?;
    report.audit.refused_batches = index.refusals();
    report.audit.waiting_batches = index.pending() as u64;
    report.audit.forks = index.forks().cloned().collect();
    Ok(report)
}

/// The same, without looking for forks: gives each signed batch that is good, with the offset of its first event.
///
/// # Errors
/// See [`OpenError`].
pub fn verify_with<D: Disk>(
    disk: &D,
    name: &LogName,
    depth: Depth,
    signed: impl FnMut(u64, Verified),
) -> Result<Report, OpenError> {
    let mut pass = Pass {
        name,
        depth,
        signed,
    };
    let catalog = Catalog::read(disk, name)?;
    let mut report = Report {
        is_manifest_lost: catalog.manifest.is_none() && !catalog.segments.is_empty(),
        ..Report::default()
    };
    if let Some(fault) = catalog.manifest_fault {
        report.flaw(0, 0, 0, fault);
    }
    let used: Vec<&Found> = catalog.used().collect();
    let first = used.first().and_then(|found| found.first_offset());
    report.first_offset = first.unwrap_or(0);
    report.end = report.first_offset;
    let mut expected = catalog.manifest.as_ref().map(|m| m.first_segment);
    for (place, found) in used.iter().enumerate() {
        if expected.is_some_and(|number| number != found.number) {
            report.flaw(found.number, 0, report.end, Fault::Order);
        }
        expected = Some(found.number + 1);
        match found.header {
            Ok(header) => {
                let is_next = place == 0
                    || header.first_offset == report.end && report.chain == Some(header.chain);
                if !is_next {
                    report.flaw(found.number, 0, report.end, Fault::Order);
                }
                report.end = report.end.max(header.first_offset);
                report.chain = Some(header.chain);
            }
            Err(fault) => report.flaw(found.number, 0, report.end, fault),
        }
        let is_last = place + 1 == used.len();
        verify_segment(disk, &catalog, (found, is_last), &mut pass, &mut report)?;
    }
    let closed = catalog.manifest.as_ref().and_then(|m| m.closed);
    if let Some((end, chain)) = closed
        && (report.end < end || report.chain.is_some_and(|c| c != chain) && report.end == end)
    {
        let last = used.last().map_or(0, |found| found.number);
        report.flaw(last, 0, report.end, Fault::Order);
        report.end = report.end.max(end);
    }
    Ok(report)
}

/// How a log is gone through.
struct Pass<'a, F> {
    name: &'a LogName,
    depth: Depth,
    signed: F,
}

fn verify_segment<D: Disk>(
    disk: &D,
    catalog: &Catalog,
    (found, is_last): (&Found, bool),
    pass: &mut Pass<'_, impl FnMut(u64, Verified)>,
    report: &mut Report,
) -> Result<(), OpenError> {
    let name = segment_name(found.number);
    let failed = || OpenError::io(&name);
    let file = disk.open(&name).map_err(failed())?;
    let Some(id) = catalog.id else {
        return Ok(());
    };
    report.segments += 1;
    report.bytes += found.bytes;
    let is_compacted = found
        .header
        .is_ok_and(|header| header.version == COMPACTED_VERSION);
    report.compacted_segments += u64::from(is_compacted);
    let mut window = Window::new();
    let mut at = SEGMENT_HEADER_BYTES as u64;
    loop {
        let fault = match walk::batch_at(&mut window, &file, &id, at).map_err(failed())? {
            Ok(header) => {
                let end = walk::records_range(&header).end;
                if pass.depth == Depth::Content
                    && is_last
                    && is_unfinished(&window, &file, catalog, (at, &header)).map_err(failed())?
                {
                    let used_end = walk::used_end(&mut window, &file, at);
                    report.unfinished_bytes = used_end.map_err(failed())? - at;
                    return Ok(());
                }
                let bytes = window.held(at, end);
                if header.first_offset != report.end {
                    report.flaw(found.number, at, report.end, Fault::Order);
                }
                if pass.depth == Depth::Content {
                    check(&header, bytes, (found.number, at), pass, report);
                }
                let range = walk::records_range(&header);
                report.add(&header, bytes.get(range).unwrap_or_default());
                at += end as u64;
                continue;
            }
            Err(fault) => fault,
        };
        let next = walk::next_good_header(&mut window, &file, &id, at).map_err(failed())?;
        if let Some((next_at, next)) = next {
            report.flaw(found.number, at, report.end, fault);
            report.end = next.first_offset;
            report.chain = None;
            at = next_at;
            continue;
        }
        let used_end = walk::used_end(&mut window, &file, at).map_err(failed())?;
        match is_last {
            true => report.unfinished_bytes = used_end - at,
            false if used_end > at => report.flaw(found.number, at, report.end, fault),
            false => {}
        }
        return Ok(());
    }
}

/// Whether the log's last batch is a write that was cut short or is under way: it is not all there,
/// and neither a later batch nor the manifest of a log that was closed says that it once was.
fn is_unfinished<F: DiskFile>(
    window: &Window,
    file: &F,
    catalog: &Catalog,
    (at, header): (u64, &BatchHeader),
) -> std::io::Result<bool> {
    let range = walk::records_range(header);
    let behind = at + range.end as u64;
    let records = window.held(at, range.end).get(range).unwrap_or_default();
    let closed = catalog.manifest.as_ref().and_then(|m| m.closed);
    if walk::check_records(header, records).is_ok()
        || closed.is_some_and(|(end, _)| header.end() <= end)
    {
        return Ok(false);
    }
    let Some(id) = catalog.id else {
        return Ok(false);
    };
    Ok(!walk::was_known(file, &id, behind, header.end())?)
}

fn check(
    header: &BatchHeader,
    bytes: &[u8],
    (segment, at): (u32, u64),
    pass: &mut Pass<'_, impl FnMut(u64, Verified)>,
    report: &mut Report,
) {
    let records = bytes.get(walk::records_range(header)).unwrap_or_default();
    if let Err((offset, fault)) = walk::check_records(header, records) {
        report.flaw(segment, at, offset, fault);
    } else if let Some(before) = report.chain
        && !walk::check_hashes(header, &before, bytes)
    {
        report.flaw(segment, at, header.first_offset, Fault::Hash);
    }
    let sparse = match header.sparse_bytes {
        Some(_) => Sparse::parse(header, records),
        None => Ok(Sparse::default()),
    };
    let content =
        sparse
            .as_ref()
            .map_err(|fault| *fault)
            .and_then(|sparse| match header.sparse_bytes {
                Some(_) => Content::of_sparse(sparse),
                None => Content::of(header, records),
            });
    let Ok(content) = content else {
        // It was found above.
        return;
    };
    for (offset, checked) in content.signed() {
        let here = |batch: &Verified| batch.statement().channel == *pass.name;
        match checked {
            Ok(batch) if here(&batch) => {
                let end = offset + u64::from(batch.statement().count);
                report.audit.signed_events += content.within(&(offset..end)).len() as u64;
                report.audit.signed_batches += 1;
                (pass.signed)(offset, batch);
            }
            checked => {
                let elsewhere = Fault::Signature(BatchError::Channel);
                report.audit.bad_signatures += 1;
                report.flaw(segment, at, offset, checked.err().unwrap_or(elsewhere));
            }
        }
    }
}
