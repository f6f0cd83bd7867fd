//! A pass over a log's segments, for one part of the keys, or for what was noted of all parts.

use super::{CompactError, Outcome, Rewritten, Rules, Subject, gone::Gone};
use crate::{
    disk::{Disk, DiskFile},
    fold::ready::Latest,
    format::{
        BATCH_HEADER_BYTES, BatchHeader, COMPACTED_VERSION, Fault, Hash, IndexEntry, Record,
        SEGMENT_HEADER_BYTES, SegmentHeader, compacting_name, encode_index, segment_name, u32_at,
    },
    limits::{INDEX_EVERY_BYTES, SAVED_PART},
    log::Closed,
    signatures::Content,
    sparse::Sparse,
    walk::{self, Window},
};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

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
    /// All where no piece would be free.
    keep: Vec<(u64, usize)>,
    /// Pieces that are there now, and would not be.
    freed: usize,
}

/// The newest event of a key.
struct Newest {
    offset: u64,
    /// Whether no other of that key is before it.
    is_only: bool,
}

/// What an event says of its key.
struct Key {
    hash: Hash,
    /// Whether no other key reads the same.
    is_exact: bool,
    /// Whether it is a removal that is old enough to go.
    is_removal: bool,
}

/// See the module.
pub(super) struct Pass<'a, D> {
    disk: &'a D,
    subject: &'a Subject,
    rules: &'a Rules,
    now: u64,
    goes_on: &'a dyn Fn() -> bool,
    keys_max: usize,
    part: (u32, u32),
    newest: BTreeMap<Hash, Newest>,
    /// Keys whose removals stay: another key reads the same.
    ambiguous: BTreeSet<Hash>,
    /// Whether events of any key may be, or have been, before a removal: a segment cannot be read.
    is_unknown_left: bool,
    /// What goes, where that was noted before.
    gone: Option<&'a Gone>,
    outcome: &'a mut Outcome,
}

/// What stands in a segment's way.
enum Stop {
    Fault,
    Gone,
    Error(CompactError),
}

impl<'a, D: Disk> Pass<'a, D> {
    pub(super) const fn new(
        (disk, subject): (&'a D, &'a Subject),
        (rules, now): (&'a Rules, u64),
        goes_on: &'a dyn Fn() -> bool,
        (keys_max, part, parts): (usize, u32, u32),
        outcome: &'a mut Outcome,
    ) -> Self {
        Self {
            disk,
            subject,
            rules,
            now,
            goes_on,
            keys_max,
            part: (part, parts),
            newest: BTreeMap::new(),
            ambiguous: BTreeSet::new(),
            is_unknown_left: false,
            gone: None,
            outcome,
        }
    }

    /// By what was noted of all parts.
    pub(super) const fn of_marked(mut self, gone: &'a Gone) -> Self {
        self.gone = Some(gone);
        self
    }

    /// Takes no removals: what they hide may have gone in this very pass.
    pub(super) const fn keep_removals(&mut self) {
        self.is_unknown_left = true;
    }

    /// Notes which events go, of this part's keys.
    pub(super) fn mark(&mut self, due: &[Closed], gone: &mut Gone) -> Result<(), CompactError> {
        for closed in due {
            // What comes behind is for the next time.
            if closed.first_offset >= gone.limit() {
                break;
            }
            let walked = self.each_batch(closed, |batch| {
                for place in &batch.sparse.places {
                    let record = batch.sparse.record(*place).map_err(|_| Stop::Fault)?;
                    if self.goes(&record) {
                        gone.note(record.offset);
                    }
                }
                Ok(())
            });
            match walked {
                Ok(_) | Err(Stop::Gone) => {}
                Err(Stop::Fault) => {
                    self.outcome.damaged.insert(closed.number);
                }
                Err(Stop::Error(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Of each key of this part the newest event; false where there are too many.
    pub(super) fn find_newest(&mut self) -> Result<bool, CompactError> {
        for closed in &self.subject.closed {
            let keys_max = self.keys_max;
            let mut newest = std::mem::take(&mut self.newest);
            let mut ambiguous = std::mem::take(&mut self.ambiguous);
            let mut is_room = true;
            let walked = self.each_batch(closed, |batch| {
                for place in &batch.sparse.places {
                    let record = batch.sparse.record(*place).map_err(|_| Stop::Fault)?;
                    let Some(key) = self.key(&record) else {
                        continue;
                    };
                    let is_known = match key.is_exact {
                        true => newest.contains_key(&key.hash),
                        false => ambiguous.contains(&key.hash),
                    };
                    is_room &= is_known || newest.len() + ambiguous.len() < keys_max;
                    match key.is_exact {
                        _ if !is_room => {}
                        true => {
                            let (offset, is_only) = (record.offset, !is_known);
                            newest.insert(key.hash, Newest { offset, is_only });
                        }
                        false => {
                            ambiguous.insert(key.hash);
                        }
                    }
                }
                Ok(())
            });
            (self.newest, self.ambiguous) = (newest, ambiguous);
            match walked {
                Ok(_) | Err(Stop::Gone) => {}
                Err(Stop::Fault) => {
                    self.outcome.damaged.insert(closed.number);
                    self.is_unknown_left = true;
                }
                Err(Stop::Error(error)) => return Err(error),
            }
            if !is_room {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The key of an event, where that is one of this part.
    fn key(&self, record: &Record<'_>) -> Option<Key> {
        let object: Map<String, Value> = serde_json::from_slice(record.payload).ok()?;
        let member = &self.rules.key;
        let hash = *blake3::hash(Latest::key(&object, member)?.as_bytes()).as_bytes();
        if u32_at(&hash, 0) % self.part.1 != self.part.0 {
            return None;
        }
        let mut others = object.iter().filter(|(name, _)| *name != member);
        let age = self.now.saturating_sub(record.time);
        let is_old = self
            .rules
            .removals_after_ns
            .is_some_and(|after| age > after);
        Some(Key {
            hash,
            is_exact: !object.get(member).is_some_and(Value::is_f64),
            is_removal: is_old && others.all(|(_, value)| value.is_null()),
        })
    }

    pub(super) fn compact(
        &mut self,
        due: &[Closed],
        put: &mut dyn FnMut(Rewritten) -> Result<bool, CompactError>,
    ) -> Result<(), CompactError> {
        for closed in due {
            match self.compact_one(closed, put) {
                Ok(()) | Err(Stop::Gone) => {}
                Err(Stop::Fault) => {
                    self.outcome.damaged.insert(closed.number);
                }
                Err(Stop::Error(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn compact_one(
        &mut self,
        closed: &Closed,
        put: &mut dyn FnMut(Rewritten) -> Result<bool, CompactError>,
    ) -> Result<(), Stop> {
        if !self.look(closed)? {
            return Ok(());
        }
        let made = self.rewrite(closed).and_then(|rewritten| {
            let (events, bytes) = (rewritten.removed_events, rewritten.removed_bytes);
            match put(rewritten).map_err(Stop::Error)? {
                true => Ok((events, bytes)),
                false => Err(Stop::Error(CompactError::Stopped)),
            }
        });
        if made.is_err() {
            // The error says what is wrong; what cannot be removed now, recovery removes.
            let _removed = self.disk.remove(&compacting_name(closed.number));
        }
        let (events, bytes) = made?;
        self.outcome.segments += 1;
        self.outcome.removed_events += events;
        self.outcome.removed_bytes += bytes;
        Ok(())
    }

    /// Whether so much of a segment goes that it is worth it.
    fn look(&self, closed: &Closed) -> Result<bool, Stop> {
        let mut freed = 0;
        let bytes = self.each_batch(closed, |batch| {
            freed += self.fate(batch)?.freed as u64;
            Ok(())
        })?;
        let saved = freed * blake3::CHUNK_LEN as u64;
        Ok(saved > 0 && saved >= bytes / SAVED_PART)
    }

    /// Which events of a batch stay.
    fn fate(&self, batch: &Checked<'_>) -> Result<Fate, Stop> {
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
            if !records[at..end].iter().all(|record| self.goes(record)) {
                fate.keep.extend(&places[at..end]);
            }
            at = end;
        }
        let needed = batch.sparse.needed(&fate.keep);
        let needed = needed.iter().filter(|is_needed| **is_needed).count();
        fate.freed = batch.sparse.chunks().saturating_sub(needed);
        if fate.freed == 0 {
            fate.keep.clone_from(places);
        }
        Ok(fate)
    }

    /// Whether an event may go.
    fn goes(&self, record: &Record<'_>) -> bool {
        if let Some(gone) = self.gone {
            return gone.has(record.offset);
        }
        let Some(key) = self.key(record).filter(|key| key.is_exact) else {
            return false;
        };
        let Some(newest) = self.newest.get(&key.hash) else {
            return false;
        };
        let hides_nothing =
            newest.is_only && !self.is_unknown_left && !self.ambiguous.contains(&key.hash);
        newest.offset > record.offset || key.is_removal && hides_nothing
    }

    /// Writes what is left of a segment to a file beside it.
    fn rewrite(&self, closed: &Closed) -> Result<Rewritten, Stop> {
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
        let mut out = Vec::new();
        let before = self.each_batch(closed, |batch| {
            let fate = self.fate(batch)?;
            out.clear();
            match fate.freed {
                0 => out.extend_from_slice(batch.bytes),
                _ => {
                    let header = (&batch.header, batch.head);
                    batch.sparse.write(header, &fate.keep, &mut out);
                    removed += (batch.sparse.places.len() - fate.keep.len()) as u64;
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
        })?;
        file.cut(at).and_then(|()| file.sync()).map_err(failed())?;
        Ok(Rewritten {
            segment: closed.number,
            bytes: at,
            index: encode_index(&index),
            removed_events: removed,
            removed_bytes: before.saturating_sub(at),
        })
    }

    /// Goes through a segment, checking all of it; gives where its last batch ends.
    fn each_batch(
        &self,
        closed: &Closed,
        mut visit: impl FnMut(&Checked<'_>) -> Result<(), Stop>,
    ) -> Result<u64, Stop> {
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
            true => Ok(at),
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
