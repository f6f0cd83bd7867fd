//! Compaction by key: of segments that are full and old enough, events go whose key a later event has.
//!
//! A key is what a named member of the event's JSON object says, a text or a number, as [`Latest`] has it. What has
//! none always stays. A removal is an object whose other members are all null, or that has none: where it is asked
//! for, it goes too once it is old enough, and no earlier event of its key is left to come up again.
//!
//! - The newest event of a key is looked for in segments that are full and on disk for good: what takes another's
//!   place cannot be lost to a crash.
//! - A segment is read whole and checked against its hashes before anything is taken; one with a fault is left as it is.
//! - What is left is written to a file of its own, synced, and put in the segment's place: a crash leaves either. The
//!   oldest segment is first, and is in its place for good before the next one is begun.
//! - Offsets, times, chains and digests stay: see `sparse`. Of a signed batch either all events go or none, as
//!   its entity signed them together. Bytes go in pieces of 1 KiB: an event stays where none would be free.
//! - A segment is only written anew where an eighth of it goes.
//! - At most [`COMPACTION_KEYS_MAX`] keys are held; where there are more, their hashes are gone through in parts.

use crate::{
    Log,
    disk::{Disk, DiskFile},
    files::Files,
    fold::ready::Latest,
    format::{
        BATCH_HEADER_BYTES, BatchHeader, COMPACTED_VERSION, Fault, Hash, IndexEntry, LogId, Record,
        SEGMENT_HEADER_BYTES, SegmentHeader, compacting_name, encode_index, index_name,
        segment_name, u32_at,
    },
    limits::{COMPACTION_KEYS_MAX, COMPACTION_PARTS_MAX, INDEX_EVERY_BYTES, SAVED_PART},
    log::Closed,
    signatures::Content,
    sparse::Sparse,
    walk::{self, Window},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};
use thiserror::Error;

/// Which events go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The member that has an event's key.
    pub key: String,
    /// Nanoseconds that events are left as they are.
    pub after_ns: u64,
    /// Nanoseconds after which a removal goes too, if ever.
    pub removals_after_ns: Option<u64>,
}

/// A segment without what went, in a file beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// Which segment.
    pub segment: u32,
    /// Its length now.
    pub bytes: u64,
    /// The content of its index.
    pub index: Vec<u8>,
    /// Events that went.
    pub removed_events: u64,
    /// Bytes that went.
    pub removed_bytes: u64,
}

/// What a pass came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Segments that were written anew.
    pub segments: u64,
    /// Events that went.
    pub removed_events: u64,
    /// Bytes that went.
    pub removed_bytes: u64,
    /// In how many parts the keys were gone through.
    pub parts: u32,
    /// Segments that are left as they are, as they have faults.
    pub damaged: BTreeSet<u32>,
}

/// Why a pass ended early; all before it stands.
#[derive(Debug, Error)]
pub enum CompactError {
    /// The system refused something.
    #[error("{file}: {source}")]
    Io {
        /// Which file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// There are more keys than can be gone through.
    #[error(
        "the log has more keys than {} : let retention remove more of it",
        COMPACTION_KEYS_MAX * COMPACTION_PARTS_MAX as usize
    )]
    Keys,
    /// Whoever has the log let the pass go.
    #[error("it was stopped")]
    Stopped,
}

impl CompactError {
    fn io(file: &str) -> impl FnOnce(io::Error) -> Self + use<> {
        let file = file.to_owned();
        |source| Self::Io { file, source }
    }
}

/// A log as a pass is to see it.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Which log.
    pub id: LogId,
    /// What is full and on disk for good, in order: see [`Log::closed`].
    pub closed: Vec<Closed>,
}

impl Rules {
    /// How many segments are old enough.
    #[must_use]
    pub fn due(&self, closed: &[Closed], now_unix_ns: u64) -> usize {
        let is_due =
            |closed: &Closed| now_unix_ns.saturating_sub(closed.newest_time) > self.after_ns;
        closed.partition_point(is_due)
    }
}

/// Goes through a log once. `put` is given each segment that was written anew, and puts it in its place by [`put`]
/// before it returns; false where it cannot go on. It is asked before each batch whether to go on.
///
/// # Errors
/// See [`CompactError`].
pub fn pass<D: Disk>(
    disk: &D,
    subject: &Subject,
    (rules, now_unix_ns): (&Rules, u64),
    goes_on: &dyn Fn() -> bool,
    put: &mut dyn FnMut(Rewritten) -> Result<(), CompactError>,
) -> Result<Outcome, CompactError> {
    let bound = COMPACTION_KEYS_MAX;
    pass_within(bound, disk, subject, (rules, now_unix_ns), goes_on, put)
}

fn pass_within<D: Disk>(
    keys_max: usize,
    disk: &D,
    subject: &Subject,
    (rules, now_unix_ns): (&Rules, u64),
    goes_on: &dyn Fn() -> bool,
    put: &mut dyn FnMut(Rewritten) -> Result<(), CompactError>,
) -> Result<Outcome, CompactError> {
    let mut outcome = Outcome::default();
    let (mut part, mut parts) = (0, 1);
    while part < parts {
        let mut pass = Pass {
            disk,
            subject,
            rules,
            now: now_unix_ns,
            goes_on,
            keys_max,
            part: (part, parts),
            newest: BTreeMap::new(),
            lingering: BTreeSet::new(),
            is_unknown_left: false,
            outcome: &mut outcome,
        };
        if !pass.find_newest()? {
            (part, parts) = (0, parts * 2);
            if parts > COMPACTION_PARTS_MAX {
                return Err(CompactError::Keys);
            }
            continue;
        }
        pass.compact(put)?;
        part += 1;
    }
    outcome.parts = parts;
    Ok(outcome)
}

/// Puts a segment that was written anew in its place; false where the log has let go of it meanwhile.
///
/// # Errors
/// What the system said: it is not known which of both files is there after a crash, and nothing more may be
/// compacted before the log is opened again.
pub fn put<D: Disk>(
    log: &mut Log,
    files: &mut Files<D>,
    rewritten: &Rewritten,
) -> io::Result<bool> {
    let number = rewritten.segment;
    let (segment, file) = (segment_name(number), compacting_name(number));
    if !log.closed().iter().any(|closed| closed.number == number) {
        files.disk().remove(&file)?;
        return Ok(false);
    }
    files.let_go(number);
    let disk = files.disk();
    // One that does not fit its segment is passed over; one that is missing is made anew.
    disk.remove(&index_name(number))?;
    disk.replace(&segment, &file)?;
    log.resize(number, rewritten.bytes);
    let _stored = disk.store(&index_name(number), &rewritten.index);
    Ok(true)
}

/// A batch that was checked.
struct Checked<'a> {
    header: BatchHeader,
    head: &'a [u8; BATCH_HEADER_BYTES],
    /// Header and all that is behind it.
    bytes: &'a [u8],
    sparse: Sparse,
}

/// What becomes of a batch's events.
#[derive(Default)]
struct Fate {
    keep: Vec<(u64, usize)>,
    gone: Vec<Hash>,
}

struct Pass<'a, D> {
    disk: &'a D,
    subject: &'a Subject,
    rules: &'a Rules,
    now: u64,
    goes_on: &'a dyn Fn() -> bool,
    keys_max: usize,
    part: (u32, u32),
    newest: BTreeMap<Hash, u64>,
    /// Keys of which an event is left that should be gone.
    lingering: BTreeSet<Hash>,
    /// Whether there may be such of any key.
    is_unknown_left: bool,
    outcome: &'a mut Outcome,
}

/// What stands in a segment's way.
enum Stop {
    Fault,
    Gone,
    Error(CompactError),
}

impl<D: Disk> Pass<'_, D> {
    /// Of each key of this part the newest event; false where there are too many.
    fn find_newest(&mut self) -> Result<bool, CompactError> {
        for closed in &self.subject.closed {
            let keys_max = self.keys_max;
            let mut newest = std::mem::take(&mut self.newest);
            let mut is_room = true;
            let walked = self.each_batch(closed, |batch| {
                for place in &batch.sparse.places {
                    let record = batch.sparse.record(*place).map_err(|_| Stop::Fault)?;
                    let Some((key, _)) = self.key(&record) else {
                        continue;
                    };
                    is_room &= newest.len() < keys_max || newest.contains_key(&key);
                    if is_room {
                        newest.insert(key, record.offset);
                    }
                }
                Ok(())
            });
            self.newest = newest;
            match walked {
                Ok(()) | Err(Stop::Gone) => {}
                Err(Stop::Fault) => {
                    self.outcome.damaged.insert(closed.number);
                }
                Err(Stop::Error(error)) => return Err(error),
            }
            if !is_room {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The key of an event of this part, and whether it is a removal that is old enough to go.
    fn key(&self, record: &Record<'_>) -> Option<(Hash, bool)> {
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(record.payload).ok()?;
        let key = Latest::key(&object, &self.rules.key)?;
        let key = *blake3::hash(key.as_bytes()).as_bytes();
        if u32_at(&key, 0) % self.part.1 != self.part.0 {
            return None;
        }
        let mut others = object.iter().filter(|(name, _)| **name != self.rules.key);
        let age = self.now.saturating_sub(record.time);
        let is_old = self
            .rules
            .removals_after_ns
            .is_some_and(|after| age > after);
        Some((key, is_old && others.all(|(_, value)| value.is_null())))
    }

    fn compact(
        &mut self,
        put: &mut dyn FnMut(Rewritten) -> Result<(), CompactError>,
    ) -> Result<(), CompactError> {
        let due = self.rules.due(&self.subject.closed, self.now);
        for closed in &self.subject.closed[..due] {
            let name = compacting_name(closed.number);
            match self.look(closed).and_then(|is_due| match is_due {
                true => self.rewrite(closed).map(Some),
                false => Ok(None),
            }) {
                Ok(Some(rewritten)) => {
                    let (events, bytes) = (rewritten.removed_events, rewritten.removed_bytes);
                    put(rewritten)?;
                    self.outcome.segments += 1;
                    self.outcome.removed_events += events;
                    self.outcome.removed_bytes += bytes;
                }
                Ok(None) | Err(Stop::Gone) => {}
                Err(Stop::Fault) => {
                    self.outcome.damaged.insert(closed.number);
                    self.is_unknown_left = true;
                }
                Err(Stop::Error(error)) => {
                    // The error before says what is wrong; recovery removes what is left.
                    let _removed = self.disk.remove(&name);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Whether so much of a segment goes that it is worth it.
    fn look(&mut self, closed: &Closed) -> Result<bool, Stop> {
        let (mut chunks, mut left) = (0, BTreeSet::new());
        let mut gone = Vec::new();
        self.each_batch(closed, |batch| {
            let fate = self.fate(batch, &mut left)?;
            let needed = batch.sparse.needed(&fate.keep);
            let needed = needed.iter().filter(|is_needed| **is_needed).count();
            chunks += batch.sparse.chunks().saturating_sub(needed) as u64;
            gone.extend(fate.gone);
            Ok(())
        })?;
        let saved = chunks * blake3::CHUNK_LEN as u64 * u64::from(self.part.1);
        let is_due = saved > 0 && saved >= closed.bytes / SAVED_PART;
        if !is_due {
            self.lingering.extend(gone);
            self.lingering.append(&mut left);
        }
        Ok(is_due)
    }

    /// Which events of a batch stay; keys of which one stays that should go are added to `left`.
    fn fate(&self, batch: &Checked<'_>, left: &mut BTreeSet<Hash>) -> Result<Fate, Stop> {
        let content = Content::of_sparse(&batch.sparse).map_err(|_| Stop::Fault)?;
        let mut signed = content
            .signed_ranges()
            .map_err(|_| Stop::Fault)?
            .into_iter()
            .peekable();
        let mut fate = Fate::default();
        let (places, records) = (&batch.sparse.places, content.records());
        let mut at = 0;
        while let Some(record) = records.get(at) {
            while signed
                .peek()
                .is_some_and(|range| range.end <= record.offset)
            {
                signed.next();
            }
            let unit = signed.peek().filter(|range| range.contains(&record.offset));
            let together = unit.map_or(1, |range| content.within(range).len()).max(1);
            let end = at.saturating_add(together).min(records.len());
            let going: Vec<Option<Hash>> = records[at..end]
                .iter()
                .map(|record| self.goes(record, left))
                .collect();
            let is_gone = going.iter().all(Option::is_some);
            match is_gone {
                true => fate.gone.extend(going.into_iter().flatten()),
                false => {
                    fate.keep.extend(&places[at..end]);
                    left.extend(going.into_iter().flatten());
                }
            }
            at = end;
        }
        Ok(fate)
    }

    /// The key of an event that goes.
    fn goes(&self, record: &Record<'_>, left: &BTreeSet<Hash>) -> Option<Hash> {
        let (key, is_removal) = self.key(record)?;
        let newest = self.newest.get(&key).copied()?;
        let is_last =
            !self.is_unknown_left && !self.lingering.contains(&key) && !left.contains(&key);
        (newest > record.offset || is_removal && is_last).then_some(key)
    }

    /// Writes what is left of a segment to a file beside it.
    fn rewrite(&mut self, closed: &Closed) -> Result<Rewritten, Stop> {
        let name = compacting_name(closed.number);
        let failed = || Stop::io(&name);
        let file = self.disk.create(&name, closed.bytes).map_err(failed())?;
        let old = self
            .disk
            .open(&segment_name(closed.number))
            .map_err(Stop::open(closed.number))?;
        let header = segment_header(&old, closed)?;
        let header = SegmentHeader {
            version: COMPACTED_VERSION,
            ..header
        };
        file.write_full(0, &header.encode()).map_err(failed())?;
        let (mut at, mut removed) = (SEGMENT_HEADER_BYTES as u64, 0);
        let mut index: Vec<IndexEntry> = Vec::new();
        let mut lingering = std::mem::take(&mut self.lingering);
        let mut out = Vec::new();
        let walked = self.each_batch(closed, |batch| {
            let fate = self.fate(batch, &mut lingering)?;
            out.clear();
            let needed = batch.sparse.needed(&fate.keep);
            let is_less =
                needed.iter().filter(|is_needed| **is_needed).count() < batch.sparse.chunks();
            match is_less {
                true => {
                    batch
                        .sparse
                        .write((&batch.header, batch.head), &fate.keep, &mut out);
                    removed += (batch.sparse.places.len() - fate.keep.len()) as u64;
                }
                false => {
                    out.extend_from_slice(batch.bytes);
                    lingering.extend(fate.gone);
                }
            }
            file.write_full(at, &out).map_err(failed())?;
            if index
                .last()
                .is_none_or(|last| at - last.at >= INDEX_EVERY_BYTES)
            {
                let (offset, time) = (batch.header.first_offset, batch.header.first_time);
                index.push(IndexEntry { offset, at, time });
            }
            at += out.len() as u64;
            Ok(())
        });
        self.lingering.append(&mut lingering);
        walked?;
        file.cut(at).and_then(|()| file.sync()).map_err(failed())?;
        Ok(Rewritten {
            segment: closed.number,
            bytes: at,
            index: encode_index(&index),
            removed_events: removed,
            removed_bytes: closed.bytes.saturating_sub(at),
        })
    }

    /// Goes through a segment, checking all of it.
    fn each_batch(
        &self,
        closed: &Closed,
        mut visit: impl FnMut(&Checked<'_>) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let name = segment_name(closed.number);
        let file = self.disk.open(&name).map_err(Stop::open(closed.number))?;
        let header = segment_header(&file, closed)?;
        let (mut next, mut chain) = (header.first_offset, header.chain);
        let (mut window, mut at) = (Window::new(), SEGMENT_HEADER_BYTES as u64);
        while next < closed.end {
            if !(self.goes_on)() {
                return Err(Stop::Error(CompactError::Stopped));
            }
            let batch = walk::batch_at(&mut window, &file, &self.subject.id, at);
            let header = batch.map_err(Stop::io(&name))?.map_err(|_| Stop::Fault)?;
            let range = walk::records_range(&header);
            let bytes = window.held(at, range.end);
            let stored = bytes.get(range.clone()).unwrap_or_default();
            if header.first_offset != next
                || !walk::check_hashes(&header, &chain, bytes)
                || walk::check_records(&header, stored).is_err()
            {
                return Err(Stop::Fault);
            }
            let sparse = match header.sparse_bytes {
                None => Sparse::whole(&header, stored),
                Some(_) => Sparse::parse(&header, stored),
            };
            let sparse = sparse.map_err(|_| Stop::Fault)?;
            let head = bytes.first_chunk().ok_or(Stop::Fault)?;
            visit(&Checked {
                header,
                head,
                bytes,
                sparse,
            })?;
            (next, chain) = (header.end(), header.chain);
            at += range.end as u64;
        }
        let end = walk::used_end(&mut window, &file, at).map_err(Stop::io(&name))?;
        match next == closed.end && end == at {
            true => Ok(()),
            false => Err(Stop::Fault),
        }
    }
}

fn segment_header<F: DiskFile>(file: &F, closed: &Closed) -> Result<SegmentHeader, Stop> {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    let read = file.read_full(0, &mut header);
    let read = read.map_err(Stop::io(&segment_name(closed.number)))?;
    let header: Result<_, Fault> = SegmentHeader::parse(&header[..read]);
    let is_it = |header: &SegmentHeader| header.first_offset == closed.first_offset;
    header.ok().filter(is_it).ok_or(Stop::Fault)
}

impl Stop {
    fn io(file: &str) -> impl FnOnce(io::Error) -> Self + use<> {
        let failed = CompactError::io(file);
        |source| Self::Error(failed(source))
    }

    /// A segment that is not there was removed by retention.
    fn open(number: u32) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::NotFound => Self::Gone,
            _ => Self::io(&segment_name(number))(source),
        }
    }
}

#[cfg(test)]
mod tests;
