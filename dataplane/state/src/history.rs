//! The feeds in a log, found by going through its files: where each ends, and a feed's batches behind one event, as
//! messages that whoever gets them can check.

use crate::{
    Cursor, LogName,
    batch::{Batch, FeedId, Verified},
    bundle,
    catalog::{Catalog, Found, OpenError},
    disk::{Disk, DiskFile},
    format::{
        BatchHeader, IndexEntry, LogId, Record, SEGMENT_HEADER_BYTES, index_name, parse_index,
        segment_name,
    },
    limits::{CAUSAL_FEEDS_MAX, FETCH_BYTES, LOOK_BYTES},
    signatures::Content,
    sparse::Sparse,
    walk::{self, Window},
};
use std::{collections::BTreeMap, io, ops::ControlFlow};

/// The batch that a feed ends with in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Last {
    /// The batch.
    pub batch: Verified,
    /// When the log got it, in nanoseconds since 1970.
    pub time_unix_ns: u64,
}

/// What the newest segments of a log say of its feeds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Newest {
    /// Where each feed ends.
    pub last: Vec<Last>,
    /// Whether all that the log ever had below that offset was gone through: of a feed that is not among these it had
    /// nothing there.
    pub is_whole: bool,
    /// What is there or behind was not found.
    pub end: u64,
}

/// Events of a feed that are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whose, and on which channel.
    pub feed: FeedId,
    /// They are behind that many of its events.
    pub after: u64,
    /// Number of the last one.
    pub to: u64,
}

/// What was found of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Batches of them with their signatures, see [`crate::bundle`], each right behind the one before it. Nothing of them
    /// is checked.
    pub messages: Vec<Vec<u8>>,
    /// Offset where to look for the others; none where the log has no more.
    pub next: Option<u64>,
    /// Where that is in its files, for whoever looks on.
    pub place: Option<Place>,
}

/// Where a batch of the log begins in its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    segment: u32,
    at: u64,
    first_offset: u64,
}

/// Where each feed ends in the newest segments of a log: in the last one, which fills, and in so many before it that they
/// have that many bytes; of no more feeds than an index of causes knows. It stops where nobody waits for it. `each` hears
/// of every signed batch on the way, unchecked, with the offset of its first event.
///
/// # Errors
/// See [`OpenError`].
pub fn newest_of_feeds<D: Disk>(
    disk: &D,
    name: &LogName,
    bytes: u64,
    is_waited_for: impl Fn() -> bool,
    mut each: impl FnMut(u64, &Batch),
) -> Result<Newest, OpenError> {
    let catalog = Catalog::read(disk, name)?;
    let mut newest = catalog.used().collect::<Vec<&Found>>().into_iter().rev();
    let fills = newest.next();
    let mut counted = 0;
    let full = newest.take_while(|found| {
        let is_one = counted < bytes;
        counted += found.bytes;
        is_one
    });
    let from = full.last().or(fills).map_or(0, |found| found.number);
    let mut last: BTreeMap<FeedId, (Batch, u64)> = BTreeMap::new();
    let begin = (from, SEGMENT_HEADER_BYTES as u64);
    // What is skipped as damaged, or was taken by retention, leaves a hole in the offsets, or is before the first segment.
    let manifest = catalog.manifest.as_ref();
    let has_begin = manifest.is_none_or(|manifest| manifest.first_segment <= 1);
    let (mut is_whole, mut next) = (has_begin && catalog.manifest_fault.is_none(), 0);
    each_batch(disk, &catalog, begin, |header, records, _| {
        if !is_waited_for() {
            is_whole = false;
            return ControlFlow::Break(());
        }
        is_whole &= header.first_offset == next;
        next = header.end();
        if walk::check_records(header, records).is_err() {
            is_whole = false;
            return ControlFlow::Continue(());
        }
        each_signed(header, records, |offset, batch, _| {
            each(offset, &batch);
            let feed = batch.signed.statement.feed();
            let end = |batch: &Batch| batch.signed.statement.last();
            let is_last = match last.get(&feed) {
                Some((known, _)) => end(known) <= end(&batch),
                None => last.len() < CAUSAL_FEEDS_MAX,
            };
            if is_last {
                last.insert(feed, (batch, header.last_time));
            } else {
                is_whole &= last.contains_key(&feed);
            }
            ControlFlow::Continue(())
        })
    })?;
    let feeds = last.len();
    let checked = last.into_values().filter_map(|(batch, time_unix_ns)| {
        let batch = batch.verify_statement().ok()?;
        Some(Last {
            batch,
            time_unix_ns,
        })
    });
    let last: Vec<Last> = checked.collect();
    Ok(Newest {
        is_whole: is_whole && last.len() == feeds,
        last,
        end: next,
    })
}

/// Looks for events from a place on, below an offset, the first of them in a batch of the log that begins before another;
/// not too far at a time, and gives not too many. Behind the first
/// batch of the log it ends where it `is_enough`: the next look goes on there. `place` is what the look before gave with
/// this offset.
///
/// # Errors
/// See [`OpenError`].
pub fn look<D: Disk>(
    disk: &D,
    name: &LogName,
    (cursor, first_before, limit): (Cursor, u64, u64),
    wanted: Wanted,
    (place, is_enough): (Option<Place>, impl Fn() -> bool),
) -> Result<Looked, OpenError> {
    let catalog = Catalog::read(disk, name)?;
    let mut search = Search {
        wanted,
        from: match cursor {
            Cursor::Offset(offset) => offset,
            Cursor::After(offset) => offset.saturating_add(1),
            Cursor::End => limit,
            Cursor::Start | Cursor::Time(_) => 0,
        },
        from_time: match cursor {
            Cursor::Time(time) => time,
            _ => 0,
        },
        first_before,
        limit,
        seen_bytes: 0,
        given_bytes: 0,
        looked: Looked::default(),
    };
    let mut is_first = true;
    if search.from >= limit {
        return Ok(search.looked);
    }
    let begin = match place.map(|place| search.is_there(disk, &catalog, place)) {
        Some(Ok(Some(begin))) => begin,
        _ => search.begin(disk, &catalog),
    };
    each_batch(disk, &catalog, begin, |header, records, place| {
        let is_over = !std::mem::take(&mut is_first) && is_enough();
        search.batch(header, records, (place, is_over))
    })?;
    Ok(search.looked)
}

struct Search {
    wanted: Wanted,
    from: u64,
    from_time: u64,
    first_before: u64,
    limit: u64,
    seen_bytes: u64,
    given_bytes: usize,
    looked: Looked,
}

impl Search {
    /// Segment and place where the look before ended, if the batch is there still: compaction may have moved it.
    fn is_there<D: Disk>(
        &self,
        disk: &D,
        catalog: &Catalog,
        place: Place,
    ) -> io::Result<Option<(u32, u64)>> {
        let mut used = catalog.used();
        let is_kept = used.any(|found| found.number == place.segment);
        let (Some(id), true) = (catalog.id, is_kept && place.first_offset <= self.from) else {
            return Ok(None);
        };
        let is_there = begins_at(disk, &id, place)?;
        Ok(is_there.then_some((place.segment, place.at)))
    }

    /// Segment and place of a batch before all that is looked for, not far from it.
    fn begin<D: Disk>(&self, disk: &D, catalog: &Catalog) -> (u32, u64) {
        let is_before = |found: &&&Found| {
            let is_older = found
                .first
                .is_ok_and(|batch| batch.first_time < self.from_time);
            let first = found.first_offset();
            let is_lower = first.is_some_and(|first| first <= self.from);
            is_lower && self.from > 0 || is_older
        };
        let used: Vec<&Found> = catalog.used().collect();
        let chosen = used.iter().rev().find(is_before).or(used.first());
        let number = chosen.map_or(0, |found| found.number);
        let is_last = used.last().is_none_or(|last| last.number == number);
        // Where there is no index, or not this segment's, all of it is gone through.
        let at = match (catalog.id, is_last) {
            (Some(id), false) => self.by_index(disk, &id, number).unwrap_or_default(),
            _ => None,
        };
        (number, at.unwrap_or(SEGMENT_HEADER_BYTES as u64))
    }

    /// The last batch that the index of a full segment has before what is looked for.
    fn by_index<D: Disk>(&self, disk: &D, id: &LogId, segment: u32) -> io::Result<Option<u64>> {
        let file = disk.open(&index_name(segment))?;
        let mut bytes = vec![0; usize::try_from(file.bytes()?).unwrap_or(0)];
        let read = file.read_full(0, &mut bytes)?;
        let index = parse_index(&bytes[..read]).unwrap_or_default();
        let is_before = |entry: &&IndexEntry| match self.from_time {
            0 => entry.offset <= self.from,
            time => entry.time < time,
        };
        let Some(entry) = index.iter().rev().find(is_before) else {
            return Ok(None);
        };
        let place = Place {
            segment,
            at: entry.at,
            first_offset: entry.offset,
        };
        Ok(begins_at(disk, id, place)?.then_some(entry.at))
    }

    /// Looks through a batch of the log, unless it is over.
    fn batch(
        &mut self,
        header: &BatchHeader,
        records: &[u8],
        (place, is_over): (Place, bool),
    ) -> ControlFlow<()> {
        let has_none = self.looked.messages.is_empty();
        if header.end() > self.limit || has_none && header.first_offset >= self.first_before {
            return ControlFlow::Break(());
        }
        if is_over || self.seen_bytes >= LOOK_BYTES {
            // Batches that are only passed over do not move the offset, but the place.
            let next = header.first_offset.max(self.from);
            (self.looked.next, self.looked.place) = (Some(next), Some(place));
            return ControlFlow::Break(());
        }
        if header.end() <= self.from {
            return ControlFlow::Continue(());
        }
        self.seen_bytes += records.len() as u64;
        if header.last_time >= self.from_time && walk::check_records(header, records).is_ok() {
            let given = self.looked.messages.len();
            let ended = each_signed(header, records, |offset, batch, records| {
                self.signed(offset, &batch, records)
            });
            if ended.is_break() || self.looked.messages.len() > given {
                self.looked.place = self.looked.next.map(|_| place);
            }
            ended?;
        }
        // What is behind that, in a segment that fills, is nothing yet.
        match header.end() < self.limit {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    }

    /// Looks at a signed batch: takes it if it is the next that is wanted.
    fn signed(&mut self, offset: u64, batch: &Batch, records: &[Record<'_>]) -> ControlFlow<()> {
        let statement = &batch.signed.statement;
        let wanted = &mut self.wanted;
        if offset < self.from || statement.last() <= wanted.after || statement.feed() != wanted.feed
        {
            return ControlFlow::Continue(());
        }
        let is_next = statement.first == wanted.after + 1 && statement.last() <= wanted.to;
        if !is_next || records.len() != batch.count() {
            self.looked.next = None;
            return ControlFlow::Break(());
        }
        let payloads: Vec<&[u8]> = records.iter().map(|record| record.payload).collect();
        let message = bundle::encode(batch, &payloads);
        let is_one = self.looked.messages.is_empty();
        if !is_one && self.given_bytes + message.len() > FETCH_BYTES {
            self.looked.next = Some(offset);
            return ControlFlow::Break(());
        }
        self.given_bytes += message.len();
        wanted.after = statement.last();
        self.looked.messages.push(message);
        self.looked.next = Some(offset + batch.count() as u64);
        match wanted.after < wanted.to {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    }
}

/// Whether a batch of the log begins there, and is the one that it should be.
fn begins_at<D: Disk>(disk: &D, id: &LogId, place: Place) -> io::Result<bool> {
    let file = disk.open(&segment_name(place.segment))?;
    let batch = walk::batch_at(&mut Window::new(), &file, id, place.at)?;
    Ok(batch.is_ok_and(|header| header.first_offset == place.first_offset))
}

/// Goes through the batches of a log, from a place in a segment on. Their headers are as they were written.
fn each_batch<D: Disk>(
    disk: &D,
    catalog: &Catalog,
    (from, from_at): (u32, u64),
    mut each: impl FnMut(&BatchHeader, &[u8], Place) -> ControlFlow<()>,
) -> Result<(), OpenError> {
    let Some(id) = catalog.id else {
        return Ok(());
    };
    let mut window = Window::new();
    for found in catalog.used().filter(|found| found.number >= from) {
        let name = segment_name(found.number);
        let failed = || OpenError::io(&name);
        let file = match disk.open(&name) {
            Ok(file) => file,
            // Retention took it since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed()(error)),
        };
        window.clear();
        let mut at = match found.number == from {
            true => from_at,
            false => SEGMENT_HEADER_BYTES as u64,
        };
        loop {
            let batch = walk::batch_at(&mut window, &file, &id, at).map_err(failed())?;
            let Ok(header) = batch else {
                let next = walk::next_good_header(&mut window, &file, &id, at);
                match next.map_err(failed())? {
                    Some((next, _)) => at = next,
                    None => break,
                }
                continue;
            };
            let range = walk::records_range(&header);
            let end = range.end;
            let records = window.held(at, end).get(range).unwrap_or_default();
            let place = Place {
                segment: found.number,
                at,
                first_offset: header.first_offset,
            };
            if each(&header, records, place).is_break() {
                return Ok(());
            }
            at += end as u64;
        }
    }
    Ok(())
}

/// Goes through the signed batches in one of the log's: with the offset of their first event, and with the events that are
/// there.
fn each_signed(
    header: &BatchHeader,
    records: &[u8],
    mut each: impl FnMut(u64, Batch, &[Record<'_>]) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let sparse = header
        .sparse_bytes
        .and_then(|_| Sparse::parse(header, records).ok());
    let content = match (&sparse, header.sparse_bytes) {
        (Some(sparse), _) => Content::of_sparse(sparse),
        (None, None) => Content::of(header, records),
        (None, Some(_)) => return ControlFlow::Continue(()),
    };
    // What was checked can be read.
    let Ok(content) = content else {
        return ControlFlow::Continue(());
    };
    for (offset, batch) in content.batches() {
        let end = offset.saturating_add(batch.count() as u64);
        each(offset, batch, content.within(&(offset..end)))?;
    }
    ControlFlow::Continue(())
}

#[cfg(test)]
mod tests;
