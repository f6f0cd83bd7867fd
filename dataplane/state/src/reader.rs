//! Events from any cursor on, in order, each checked; the same files give the same events.
//!
//! A reader has a file and a window of it of its own: readers hold up neither each other nor the
//! writer, and a slow one loses nothing but what retention removes. What cannot be read is an error
//! that names the events; the call after it goes on behind them. The log's last batch is an
//! exception: while nothing says that it was whole, it is a write that is under way or that a crash
//! cut short, and the log ends before it for now.

mod error;

use crate::{
    Cursor, LogName,
    catalog::{Catalog, OpenError},
    disk::{Disk, DiskFile},
    event::{Event, Link},
    format::{
        BATCH_HEADER_BYTES, BatchHeader, Fault, IndexEntry, LogId, Record, SEGMENT_HEADER_BYTES,
        encode_index, index_name, is_zero, parse_index, segment_name, segment_of,
    },
    limits::{INDEX_BYTES_MAX, INDEX_EVERY_BYTES, READ_BYTES},
    sparse::{self, Sparse},
    walk::{self, Window},
};
pub use error::ReadError;
use std::{io, ops::Range};

/// A record that was found good, in the window.
#[derive(Clone, Debug)]
struct Place {
    offset: u64,
    time: u64,
    link: Link,
    payload: Range<usize>,
}

/// The batch that is read.
#[derive(Clone, Debug)]
struct Batch {
    header: BatchHeader,
    at: u64,
    /// The next record, from the batch's begin.
    from: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Reader<D: Disk> {
    disk: D,
    id: Option<LogId>,
    closed_end: u64,
    window: Window,
    file: Option<(u32, D::File)>,
    at: u64,
    batch: Option<Batch>,
    /// What compaction left of it.
    sparse: Sparse,
    /// An event that was found, and not given yet.
    found: Option<Place>,
    next: u64,
    /// Events below this offset, or older than this, are passed over.
    from: u64,
    from_time: u64,
    limit: u64,
    /// The segment and place that were read twice.
    looked_again: Option<(u32, u64)>,
    gone: Option<(u64, u64)>,
    /// See [`Reader::given`].
    given: Option<u64>,
}

impl<D: Disk> Reader<D> {
    /// Reads a log from a cursor on, as far as its files go. Whoever knows how far the log is
    /// acknowledged says so by [`Reader::set_limit`].
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(disk: D, name: &LogName, cursor: Cursor) -> Result<Self, OpenError> {
        let catalog = Catalog::read(&disk, name)?;
        let closed = catalog.manifest.as_ref().and_then(|m| m.closed);
        let mut reader = Self {
            disk,
            id: catalog.id,
            closed_end: closed.map_or(0, |(end, _)| end),
            window: Window::new(),
            file: None,
            at: 0,
            batch: None,
            sparse: Sparse::default(),
            found: None,
            next: 0,
            from: 0,
            from_time: 0,
            limit: u64::MAX,
            looked_again: None,
            gone: None,
            given: None,
        };
        reader.seek(&catalog, cursor)?;
        Ok(reader)
    }

    /// Events from this offset on are not given yet; those below are in the files, as the writer says: what is not is damaged.
    pub fn set_limit(&mut self, limit: u64) {
        if limit != self.limit {
            self.limit = limit;
            // What was read ahead may since have been written; an event that was found is in it.
            if self.found.is_none() {
                self.window.clear();
            }
        }
    }

    /// Which log it is; none of one that holds nothing that says so.
    #[must_use]
    pub const fn id(&self) -> Option<LogId> {
        self.id
    }

    /// Where the next call begins: at the next event, unless it is damaged, or at those that it says are gone.
    #[must_use]
    pub fn position(&self) -> u64 {
        let next = self.next.max(self.from);
        let next = self.found.as_ref().map_or(next, |found| found.offset);
        self.gone.map_or(next, |(from, _)| from)
    }

    /// Behind what was given last, an event or an error: from there to the next event nothing is missing but what compaction
    /// took. None while that is not known: before the first of a time.
    pub(crate) const fn given(&self) -> Option<u64> {
        self.given
    }

    /// Offset of the event that the next call gives.
    ///
    /// # Errors
    /// As of [`Reader::next_event`].
    pub(crate) fn peek(&mut self) -> Result<Option<u64>, ReadError> {
        if self.found.is_none() {
            self.found = self.find()?;
        }
        Ok(self.found.as_ref().map(|found| found.offset))
    }

    fn seek(&mut self, catalog: &Catalog, cursor: Cursor) -> Result<(), OpenError> {
        let used: Vec<_> = catalog.used().collect();
        let first = used.first().and_then(|found| found.first_offset());
        self.next = first.unwrap_or(0);
        let is_before = |found: &&&crate::catalog::Found| match cursor {
            Cursor::Start => false,
            Cursor::End => true,
            Cursor::Offset(offset) => found.first_offset().is_some_and(|o| o <= offset),
            Cursor::After(offset) => found.first_offset().is_some_and(|o| o <= offset),
            Cursor::Time(time) => found.first.is_ok_and(|batch| batch.first_time < time),
        };
        let chosen = used.iter().rev().find(is_before).or(used.first());
        match cursor {
            Cursor::Start | Cursor::End => {}
            Cursor::Offset(offset) => self.from = offset,
            Cursor::After(offset) => self.from = offset.saturating_add(1),
            Cursor::Time(time) => self.from_time = time,
        }
        self.given = match cursor {
            Cursor::Start => Some(self.next),
            Cursor::Offset(_) | Cursor::After(_) => Some(self.from),
            Cursor::End | Cursor::Time(_) => None,
        };
        if self.from < self.next && matches!(cursor, Cursor::Offset(_) | Cursor::After(_)) {
            self.gone = Some((self.from, self.next));
        }
        let Some(chosen) = chosen else {
            return Ok(());
        };
        let is_last = used.last().is_some_and(|last| last.number == chosen.number);
        self.enter(chosen.number)?;
        self.next = chosen.first_offset().unwrap_or(self.next);
        if !is_last {
            self.skip_by_index(chosen.number)?;
        }
        if cursor == Cursor::End {
            self.skip_to_end();
        }
        Ok(())
    }

    fn enter(&mut self, number: u32) -> Result<(), OpenError> {
        let name = segment_name(number);
        let file = self.disk.open(&name).map_err(OpenError::io(&name))?;
        self.file = Some((number, file));
        self.at = SEGMENT_HEADER_BYTES as u64;
        self.window.clear();
        self.batch = None;
        Ok(())
    }

    /// Begins at the last batch that the index has before what is looked for.
    fn skip_by_index(&mut self, number: u32) -> Result<(), OpenError> {
        let name = segment_name(number);
        let index = self.index(number).map_err(OpenError::io(&name))?;
        let (from, from_time) = (self.from, self.from_time);
        let is_before = |entry: &&IndexEntry| match from_time {
            0 => entry.offset <= from,
            time => entry.time < time,
        };
        let Some(entry) = index.iter().rev().find(is_before) else {
            return Ok(());
        };
        let (Some(id), Some((_, file))) = (self.id, &self.file) else {
            return Ok(());
        };
        let batch = walk::batch_at(&mut self.window, file, &id, entry.at);
        let batch = batch.map_err(OpenError::io(&name))?;
        // An index that does not fit its segment is passed over: reading begins further ahead.
        if batch.is_ok_and(|header| header.first_offset == entry.offset) {
            (self.at, self.next) = (entry.at, entry.offset);
        }
        Ok(())
    }

    /// The index of a segment that is full; made anew, and stored if that can be, where there is none.
    fn index(&mut self, number: u32) -> io::Result<Vec<IndexEntry>> {
        let name = index_name(number);
        let mut bytes = Vec::new();
        if let Ok(file) = self.disk.open(&name) {
            // One that is longer is no segment's: what is read of it has no checksum at its end.
            let length = usize::try_from(file.bytes()?.min(INDEX_BYTES_MAX)).unwrap_or(0);
            bytes.resize(length, 0);
            let read = file.read_full(0, &mut bytes)?;
            bytes.truncate(read);
        }
        if let Ok(index) = parse_index(&bytes) {
            return Ok(index);
        }
        let mut index: Vec<IndexEntry> = Vec::new();
        let (Some(id), Some((_, file))) = (self.id, &self.file) else {
            return Ok(index);
        };
        let mut at = SEGMENT_HEADER_BYTES as u64;
        while let Some((found, header)) = walk::next_batch(&mut self.window, file, &id, at)? {
            if index
                .last()
                .is_none_or(|last| found - last.at >= INDEX_EVERY_BYTES)
            {
                index.push(IndexEntry {
                    offset: header.first_offset,
                    at: found,
                    time: header.first_time,
                });
            }
            at = found + walk::records_range(&header).end as u64;
        }
        // Who may not write makes it anew the next time.
        let _stored = self.disk.store(&name, &encode_index(&index));
        Ok(index)
    }

    /// Passes over all that is there, good or not.
    fn skip_to_end(&mut self) {
        loop {
            match self.load() {
                Ok(true) => {
                    let Some(batch) = self.batch.take() else {
                        continue;
                    };
                    self.leave(&batch);
                }
                Ok(false) | Err(ReadError::Io { .. }) => {
                    self.window.clear();
                    return;
                }
                Err(_) => {}
            }
        }
    }

    fn leave(&mut self, batch: &Batch) {
        self.at = batch.at + walk::records_range(&batch.header).end as u64;
        self.next = batch.header.end();
        self.batch = None;
    }

    /// The next event; none where the log ends for now: a later call looks again.
    ///
    /// # Errors
    /// See [`ReadError`]; the call after it goes on.
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>, ReadError> {
        let found = match self.found.take() {
            Some(found) => Some(found),
            None => self.find()?,
        };
        let Some(place) = found else {
            return Ok(None);
        };
        self.given = Some(place.offset.saturating_add(1));
        let payload = self.batch.as_ref().map_or(&[][..], |batch| {
            let held = match batch.header.sparse_bytes {
                Some(_) => &self.sparse.bytes,
                None => self.window.held(batch.at, place.payload.end),
            };
            held.get(place.payload.clone()).unwrap_or_default()
        });
        Ok(Some(Event {
            offset: place.offset,
            time_unix_ns: place.time,
            link: place.link,
            payload,
        }))
    }

    fn find(&mut self) -> Result<Option<Place>, ReadError> {
        let asked = self.from;
        loop {
            let mut found = self.next_place();
            match &mut found {
                // Reading begins at a batch in front of the cursor: what is wrong there was not asked for.
                Err(ReadError::Damaged { to, .. }) if *to <= asked => continue,
                Err(ReadError::Damaged { from, to, .. }) => {
                    *from = asked.max(*from);
                    self.given = Some(*to);
                }
                Err(ReadError::Gone { to, .. }) => self.given = Some(*to),
                _ => {}
            }
            return found;
        }
    }

    fn next_place(&mut self) -> Result<Option<Place>, ReadError> {
        if let Some((from, to)) = self.gone.take() {
            return Err(ReadError::Gone { from, to });
        }
        loop {
            let Some(batch) = &self.batch else {
                if self.next >= self.limit || !self.load()? {
                    self.window.clear();
                    return Ok(None);
                }
                continue;
            };
            // Signatures may follow the last record.
            if self.next >= batch.header.end() {
                self.leave(&batch.clone());
                continue;
            }
            let place = match batch.header.sparse_bytes {
                Some(_) => self.next_left(&batch.clone())?,
                None => self.next_record()?,
            };
            if place.is_some() {
                return Ok(place);
            }
        }
    }

    /// The next record of a batch; none where it is passed over, or read again.
    fn next_record(&mut self) -> Result<Option<Place>, ReadError> {
        let Some(batch) = &mut self.batch else {
            return Ok(None);
        };
        let end = walk::records_range(&batch.header).end;
        let held = self.window.held(batch.at, end);
        let bytes = held.get(batch.from..).unwrap_or_default();
        let fault = match Record::parse(bytes) {
            Ok((record, rest)) if record.offset == self.next => {
                let payload = end - rest.len() - record.payload.len()..end - rest.len();
                let place = Place {
                    offset: record.offset,
                    time: record.time,
                    link: record.link,
                    payload,
                };
                batch.from = end - rest.len();
                self.next += 1;
                let is_wanted = place.offset >= self.from && place.time >= self.from_time;
                return Ok(is_wanted.then_some(place));
            }
            Ok(_) => Fault::Order,
            Err(fault) => fault,
        };
        let (from, batch) = (self.next, batch.clone());
        if self.looks_again(batch.at) {
            self.batch = None;
            return Ok(None);
        }
        // Where the next record begins is not known for sure.
        let at = batch.at + batch.from as u64;
        self.leave(&batch);
        Err(self.damaged(at, from, fault))
    }

    /// The next record that compaction left; none where there is none, or it is passed over.
    fn next_left(&mut self, batch: &Batch) -> Result<Option<Place>, ReadError> {
        let places = &self.sparse.places;
        let at = places.partition_point(|(offset, _)| *offset < self.next);
        let Some(&place) = places.get(at) else {
            self.leave(batch);
            return Ok(None);
        };
        let record = match self.sparse.record(place) {
            Ok(record) => record,
            Err(fault) => {
                let from = self.next;
                self.leave(batch);
                return Err(self.damaged(batch.at, from, fault));
            }
        };
        let end = place.1 + Sparse::length(&record);
        let place = Place {
            offset: record.offset,
            time: record.time,
            link: record.link,
            payload: end - record.payload.len()..end,
        };
        self.next = place.offset + 1;
        let is_wanted = place.offset >= self.from && place.time >= self.from_time;
        Ok(is_wanted.then_some(place))
    }

    /// Reads what compaction left of a batch; what is wrong with it, if that cannot be.
    fn read_sparse(&mut self, header: &BatchHeader) -> Result<(), Fault> {
        let range = walk::records_range(header);
        let stored = self.window.held(self.at, range.end).get(range);
        let checked = sparse::check(header, stored.unwrap_or_default());
        self.sparse = checked.map_err(|(_, fault)| fault)?;
        Ok(())
    }

    /// Before anything is called damaged, it is read once more: what was read ahead may have been written
    /// only in part then.
    fn looks_again(&mut self, at: u64) -> bool {
        let place = self.file.as_ref().map(|(number, _)| (*number, at));
        let is_first = self.looked_again != place;
        if is_first {
            self.looked_again = place;
            self.window.clear();
        }
        is_first
    }

    /// Whether a batch may be read: all of it is there, or something says that it once was, so that what
    /// is not is damaged: the writer by the limit, the manifest of a log that was closed, a later batch
    /// that knew of it as on disk, or a later segment.
    fn is_readable(&mut self, at: u64, header: &BatchHeader) -> Result<bool, ReadError> {
        let end = header.end();
        let is_told = self.limit != u64::MAX && end <= self.limit;
        let range = walk::records_range(header);
        let behind = at + range.end as u64;
        let held = self.window.held(at, range.end);
        let records = held.get(range).unwrap_or_default();
        if is_told || end <= self.closed_end || walk::check_records(header, records).is_ok() {
            return Ok(true);
        }
        let (Some(id), Some((number, file))) = (self.id, &self.file) else {
            return Ok(false);
        };
        let was_known = walk::was_known(file, &id, behind, end);
        Ok(was_known.map_err(read_failed(*number))? || self.used_behind(*number)?.is_some())
    }

    fn damaged(&self, at: u64, from: u64, fault: Fault) -> ReadError {
        ReadError::Damaged {
            segment: self.file.as_ref().map_or(0, |(number, _)| *number),
            at,
            from,
            to: self.next,
            fault,
        }
    }

    /// Loads the batch that has the next event; false where the log ends for now.
    fn load(&mut self) -> Result<bool, ReadError> {
        loop {
            if self.file.is_none() && !self.find_first()? {
                return Ok(false);
            }
            let (Some(id), Some((number, file))) = (self.id, &self.file) else {
                return Ok(false);
            };
            let failed = read_failed(*number);
            let fault =
                match walk::batch_at(&mut self.window, file, &id, self.at).map_err(failed)? {
                    Ok(header) if header.end() <= self.next => {
                        self.at += walk::records_range(&header).end as u64;
                        continue;
                    }
                    Ok(header) => return self.begin(header),
                    Err(fault) => fault,
                };
            // The segment ends here, or something is wrong with it.
            let from = (self.at, self.next);
            let failed = read_failed(*number);
            let found = walk::next_good_header(&mut self.window, file, &id, self.at);
            if let Some((at, header)) = found.map_err(failed)? {
                if self.looks_again(from.0) {
                    continue;
                }
                self.at = at;
                if header.first_offset <= self.next {
                    continue;
                }
                self.next = header.first_offset;
                return Err(self.damaged(from.0, from.1, fault));
            }
            if self.next_segment(*number)? {
                continue;
            }
            let known_end = match self.limit {
                u64::MAX => self.closed_end,
                limit => limit,
            };
            if known_end <= self.next {
                return Ok(false);
            }
            if self.limit != u64::MAX && self.looks_again(from.0) {
                continue;
            }
            self.next = known_end;
            return Err(self.damaged(from.0, from.1, fault));
        }
    }

    fn begin(&mut self, header: BatchHeader) -> Result<bool, ReadError> {
        let from = self.next;
        if header.first_offset > from {
            // What was there is in no file.
            self.next = header.first_offset;
            return Err(self.damaged(self.at, from, Fault::Order));
        }
        if !self.is_readable(self.at, &header)? {
            return Ok(false);
        }
        if header.sparse_bytes.is_some()
            && let Err(fault) = self.read_sparse(&header)
        {
            if self.looks_again(self.at) {
                return Ok(true);
            }
            let at = self.at;
            self.at += walk::records_range(&header).end as u64;
            self.next = header.end();
            return Err(self.damaged(at, from, fault));
        }
        // The records before the next event are passed over unchecked, all or none.
        self.batch = Some(Batch {
            header,
            at: self.at,
            from: BATCH_HEADER_BYTES,
        });
        self.next = header.first_offset;
        self.from = self.from.max(from);
        Ok(true)
    }

    /// The first segment, of a log that had none.
    fn find_first(&mut self) -> Result<bool, ReadError> {
        self.next_segment(0)
    }

    /// Goes on to the next segment behind that is in use.
    fn next_segment(&mut self, number: u32) -> Result<bool, ReadError> {
        let next = self.used_behind(number)?;
        let is_there = next.is_some();
        if is_there {
            self.window.clear();
            self.file = next;
            self.at = SEGMENT_HEADER_BYTES as u64;
        }
        Ok(is_there)
    }

    /// The first segment behind one that is in use.
    fn used_behind(&self, number: u32) -> Result<Option<(u32, D::File)>, ReadError> {
        let files = self.disk.list().map_err(read_failed(number))?;
        let behind = files.iter().filter_map(|file| segment_of(file));
        let mut behind: Vec<u32> = behind.filter(|n| *n > number).collect();
        behind.sort_unstable();
        for next in behind {
            let file = match self.disk.open(&segment_name(next)) {
                Ok(file) => file,
                // Removed since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(read_failed(next)(error)),
            };
            let mut window = Window::new();
            let begin = window.read(&file, 0, READ_BYTES);
            // Else it was made ahead, and is not in use yet.
            if !is_zero(begin.map_err(read_failed(next))?) {
                return Ok(Some((next, file)));
            }
        }
        Ok(None)
    }
}

fn read_failed(number: u32) -> impl FnOnce(io::Error) -> ReadError {
    move |source| ReadError::Io {
        file: segment_name(number),
        source,
    }
}
