//! Where a log goes on after whatever happened to it.
//!
//! Only the last segment that was written to can have lost anything by a crash: the log has all of
//! it on disk before the next one is begun. What was acknowledged is told from what was not by the
//! batches themselves: each says up to where the log was on disk for good when it was made, and the
//! manifest says it of a log that was closed.
//!
//! | what is found | what it means | what is done | test |
//! |---|---|---|---|
//! | anything, after a process was killed | what it wrote may be with the kernel alone | manifest and last segment are synced before anything rests on them | `what_a_killed_process_wrote_is_on_disk_before_the_log_goes_on`, `a_manifest_that_a_killed_process_wrote_is_on_disk_before_segments_go` |
//! | no file | a new log | manifest made | `a_new_log_is_empty` |
//! | batches, then zeros | clean | the log goes on there | `a_log_that_was_closed_goes_on_where_it_ended` |
//! | bytes that are no batch, and no later batch knew of them as on disk | a write that a crash cut short, or that the disk lost part of | put aside in `.torn-POSITION-COPY`, cut, reported | `a_torn_tail_is_put_aside_and_cut`, `unsynced_writes_may_be_lost_in_any_subset` |
//! | the same, but a later batch, or the manifest of a closed log, knew of them | damage to acknowledged events | left in place, reported; the log goes on in a new segment behind the last event | `a_flipped_bit_in_the_middle_is_reported_and_kept`, `a_flipped_bit_in_the_tail_of_a_closed_log_is_reported_and_kept` |
//! | a segment's header that cannot be read, good batches behind it | damage to the header | reported; the batches say all it said | `a_flipped_bit_in_a_segment_header_loses_no_event` |
//! | a segment's file that is empty | a cut or removal that a crash cut short | removed | `an_emptied_segment_is_as_good_as_removed` |
//! | a segment's number missing | a file was removed | reported | `a_missing_segment_is_reported` |
//! | segments before the first one that the manifest names | a removal that a crash cut short | removed | `a_removal_that_was_cut_short_is_finished` |
//! | no manifest that can be read, segments with headers | damage to the manifest | made anew from them, reported | `a_manifest_that_is_lost_is_made_anew` |
//! | one slot of the manifest that cannot be read | a write cut short, or damage | the other counts; reported | `one_slot_of_the_manifest_is_enough` |
//! | an index that is missing or damaged | it was not written yet, or damage | made anew by the reader that wants it | `an_index_that_is_lost_is_made_anew` |
//! | a file of a compaction beside the segments | a compaction that a crash cut short | removed | `a_compaction_that_was_cut_short_is_forgotten` |
//! | a last segment that is compacted | the segments behind it were removed | the log goes on in a new segment | `nothing_is_written_to_a_compacted_segment` |
//! | a last segment with less room than segments take: its torn tail was cut, a crash came between its end and the next one, or segments were smaller | it was not made with room ahead | it is given that before anything is written to it; where the disk is full, the log waits | `a_last_segment_without_room_makes_the_log_wait_on_a_full_disk`, `a_full_file_system_makes_a_log_wait_that_was_opened_again` |
//! | a torn tail, and no room to put it aside | the disk is full | refused, nothing changed: it is opened when there is room | `a_torn_tail_is_not_cut_before_there_is_room_to_put_it_aside` |
//! | a later version | a newer program's log | refused, nothing changed | `a_newer_version_is_refused` |
//! | a last segment of version 1 | an older program's log | the log goes on in a new segment | `a_log_of_version_1_goes_on_in_a_segment_of_version_2` |
//! | a segment of another log, another name in the manifest | files were mixed up | refused, nothing changed | `files_of_another_log_are_refused` |
//! | the lock is taken | a second writer | refused | `one_process_writes_a_log` |
//!
//! While it runs: a write that takes less than all is continued (`a_short_write_is_continued`), a
//! full disk makes the log wait (`a_full_disk_makes_the_log_wait`), a failed write or sync ends it
//! until it is opened again (`after_a_failed_sync_nothing_is_acknowledged`).

use crate::{
    LogName,
    action::{Segment, State},
    catalog::{Catalog, Found, OpenError},
    disk::{Disk, DiskFile},
    format::{
        BatchHeader, Fault, Hash, IndexEntry, LogId, MANIFEST_NAME, MANIFEST_SLOT_BYTES,
        MANIFEST_SLOTS_AT, Manifest, SEGMENT_HEADER_BYTES, SEGMENT_VERSION, first_chain,
        index_name, segment_name, torn_name,
    },
    limits::INDEX_EVERY_BYTES,
    walk::{self, Window},
};
use std::{collections::VecDeque, fmt, io, ops::Range};

/// What recovery found beside the log's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A slot of the manifest, or all of it.
    Manifest {
        /// What is wrong with it.
        fault: Fault,
        /// Whether the segments had to say what it said.
        is_lost: bool,
    },
    /// Segments are not there.
    Missing {
        /// The first.
        from: u32,
        /// The first after them that is there.
        to: u32,
    },
    /// A segment's header cannot be read.
    Header {
        /// Which segment.
        segment: u32,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A write that nobody was told of did not get whole to disk; it was put aside.
    Torn {
        /// Which segment.
        segment: u32,
        /// Where in it.
        at: u64,
        /// How much was cut.
        bytes: u64,
        /// Where it is now.
        kept: String,
    },
    /// Acknowledged events are damaged; they were left in place.
    Damaged {
        /// Which segment.
        segment: u32,
        /// Where in it.
        at: u64,
        /// The first event that cannot be read.
        from: u64,
        /// The first after it that can, or can be written.
        to: u64,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest { fault, is_lost } => {
                let then = match is_lost {
                    true => "it was made anew from the segments",
                    false => "its other slot counts",
                };
                write!(f, "manifest: {fault}; {then}")
            }
            Self::Missing { from, to } if from + 1 == *to => {
                write!(f, "segment {from} is missing")
            }
            Self::Missing { from, to } => write!(f, "segments {from} to {} are missing", to - 1),
            Self::Header { segment, fault } => write!(
                f,
                "the header of segment {segment} is damaged: {fault}; its batches are read without it"
            ),
            Self::Torn {
                segment,
                at,
                bytes,
                kept,
            } => write!(
                f,
                "the last write to segment {segment} did not get whole to disk: {bytes} bytes at {at} were put aside in {kept}"
            ),
            Self::Damaged {
                segment,
                at,
                from,
                to,
            } => write!(
                f,
                "segment {segment} is damaged at {at}: events {from} to {} may not be readable; they are left in place",
                to.saturating_sub(1)
            ),
        }
    }
}

/// Finds a log's end, makes it good where that is possible, and makes the log where there is none.
///
/// # Errors
/// See [`OpenError`].
pub fn recover<D: Disk>(
    disk: &D,
    name: &LogName,
    fresh_id: LogId,
) -> Result<(State, Vec<Finding>), OpenError> {
    let catalog = Catalog::read(disk, name)?;
    let mut findings = Vec::new();
    let manifest = manifest(disk, name, &catalog, fresh_id, &mut findings)?;
    for number in &catalog.leftovers {
        remove_segment(disk, *number)?;
    }
    for file in &catalog.compacting {
        disk.remove(file).map_err(OpenError::io(file))?;
    }
    let used = used(disk, &catalog)?;
    list_missing(&used, &manifest, &mut findings);
    for found in &used {
        if let Err(fault) = found.header {
            let segment = found.number;
            findings.push(Finding::Header { segment, fault });
        }
    }
    let tail = Tail::new(disk, &manifest, findings);
    tail.into_state(manifest, used)
}

/// The segments that hold anything. One that was made ahead holds nothing, and is made again.
fn used<D: Disk>(disk: &D, catalog: &Catalog) -> Result<Vec<Found>, OpenError> {
    let mut used = Vec::new();
    let mut window = Window::new();
    for found in &catalog.segments {
        let name = segment_name(found.number);
        let is_used = found.is_used() || {
            let file = disk.open(&name).map_err(OpenError::io(&name))?;
            window.clear();
            let end = walk::used_end(&mut window, &file, 0);
            end.map_err(OpenError::io(&name))? > 0
        };
        match is_used {
            true => used.push(*found),
            false => remove_segment(disk, found.number)?,
        }
    }
    Ok(used)
}

fn remove_segment<D: Disk>(disk: &D, number: u32) -> Result<(), OpenError> {
    for file in [segment_name(number), index_name(number)] {
        disk.remove(&file).map_err(OpenError::io(&file))?;
    }
    Ok(())
}

fn manifest<D: Disk>(
    disk: &D,
    name: &LogName,
    catalog: &Catalog,
    fresh_id: LogId,
    findings: &mut Vec<Finding>,
) -> Result<Manifest, OpenError> {
    if let Some(manifest) = &catalog.manifest {
        let synced = disk.open(MANIFEST_NAME).and_then(|file| file.sync());
        synced.map_err(OpenError::io(MANIFEST_NAME))?;
        if let Some(fault) = catalog.manifest_fault {
            let is_lost = false;
            findings.push(Finding::Manifest { fault, is_lost });
        }
        return Ok(manifest.clone());
    }
    let first = catalog.segments.first();
    let manifest = Manifest {
        first_segment: first.map_or(1, |found| found.number),
        id: catalog.id.unwrap_or(fresh_id),
        generation: 1,
        closed: None,
        name: name.clone(),
    };
    if catalog.used().next().is_some() || catalog.manifest_fault.is_some() {
        findings.push(Finding::Manifest {
            fault: catalog.manifest_fault.unwrap_or(Fault::Zero),
            is_lost: true,
        });
    }
    let bytes = MANIFEST_SLOTS_AT[1] + MANIFEST_SLOT_BYTES as u64;
    let made = disk.create(MANIFEST_NAME, bytes).and_then(|file| {
        file.write_full(manifest.at(), &manifest.encode())?;
        file.sync()
    });
    made.map_err(OpenError::io(MANIFEST_NAME))?;
    Ok(manifest)
}

fn list_missing(used: &[Found], manifest: &Manifest, findings: &mut Vec<Finding>) {
    let mut expected = manifest.first_segment;
    for found in used {
        if found.number > expected {
            let (from, to) = (expected, found.number);
            findings.push(Finding::Missing { from, to });
        }
        expected = found.number + 1;
    }
}

fn segments(used: &[Found]) -> VecDeque<Segment> {
    let mut next_offset = 0;
    let segment = |found: &Found| {
        let first_offset = found.first_offset().unwrap_or(next_offset);
        next_offset = first_offset;
        Segment {
            number: found.number,
            first_offset,
            first_time: found.first.map_or(0, |batch| batch.first_time),
            bytes: found.bytes,
        }
    };
    used.iter().map(segment).collect()
}

/// What a scan of a segment gives.
struct Scanned {
    /// Where the next batch may be written; none where the segment is left as it is.
    goes_on_at: Option<u64>,
    index: Vec<IndexEntry>,
    /// What is behind its last batch, and was never acknowledged.
    torn: Option<Range<u64>>,
}

/// The end of the log, as far as it is known.
struct Tail<'d, D> {
    disk: &'d D,
    id: LogId,
    closed: Option<(u64, Hash)>,
    window: Window,
    end: Option<u64>,
    /// Unknown behind what cannot be read.
    chain: Option<Hash>,
    last_time: u64,
    findings: Vec<Finding>,
}

impl<'d, D: Disk> Tail<'d, D> {
    fn new(disk: &'d D, manifest: &Manifest, findings: Vec<Finding>) -> Self {
        Self {
            disk,
            id: manifest.id,
            closed: manifest.closed,
            window: Window::new(),
            end: None,
            chain: None,
            last_time: 0,
            findings,
        }
    }

    fn into_state(
        mut self,
        manifest: Manifest,
        mut used: Vec<Found>,
    ) -> Result<(State, Vec<Finding>), OpenError> {
        let mut next_number = manifest.first_segment.max(1);
        if let Some(last) = used.last() {
            next_number = last.number + 1;
        } else if let Some((end, chain)) = self.closed.filter(|(end, _)| *end > 0) {
            let (from, to) = (next_number, next_number + 1);
            self.findings.push(Finding::Missing { from, to });
            (self.end, self.chain) = (Some(end), Some(chain));
            next_number = to;
        } else {
            self.chain = Some(first_chain(&self.id));
        }
        let count = used.len();
        let mut scanned = self.scan_last(&mut used)?;
        if used.len() < count {
            // What was put aside has its number free again: else it would be missed.
            next_number = used.last().map_or(next_number - 1, |last| last.number + 1);
        }
        let last = used.last().and_then(|last| last.header.ok());
        if last.is_some_and(|header| header.version != SEGMENT_VERSION)
            && let Some(scanned) = &mut scanned
        {
            scanned.goes_on_at = None;
        }
        if let Some(last) = used.last() {
            let name = segment_name(last.number);
            let synced = self.disk.open(&name).and_then(|file| file.sync());
            synced.map_err(OpenError::io(&name))?;
        }
        let mut segments = segments(&used);
        let goes_on_at = scanned.as_ref().and_then(|scanned| scanned.goes_on_at);
        if let (Some(last), Some(at)) = (segments.back_mut(), goes_on_at) {
            last.bytes = at;
        }
        let state = State {
            segments,
            active: scanned.filter(|s| s.goes_on_at.is_some()).map(|s| s.index),
            prepared: None,
            next_number,
            end: self.end.unwrap_or(0),
            chain: self.chain.unwrap_or(first_chain(&self.id)),
            last_time: self.last_time,
            manifest,
        };
        Ok((state, self.findings))
    }

    /// Scans the last segment, and the one before where the last does not say what it follows.
    fn scan_last(&mut self, used: &mut Vec<Found>) -> Result<Option<Scanned>, OpenError> {
        let Some((last, before)) = used.split_last() else {
            return Ok(None);
        };
        let is_headed = self.start_at(last);
        let before = match before.last().filter(|_| !is_headed) {
            Some(before) => {
                self.start_at(before);
                let closed = self.closed.take();
                let scanned = self.scan(before)?;
                self.closed = closed;
                Some(scanned)
            }
            None => None,
        };
        let mut scanned = self.scan(last)?;
        let torn = scanned.torn.take();
        let is_nothing_left =
            !is_headed && scanned.index.is_empty() && scanned.goes_on_at.is_some();
        if is_nothing_left {
            // The log goes on in the segment before.
            let file = segment_name(last.number);
            let opened = self.disk.open(&file).map_err(OpenError::io(&file))?;
            self.window.clear();
            let end = walk::used_end(&mut self.window, &opened, 0);
            let end = end.map_err(OpenError::io(&file))?;
            if end > 0 {
                self.put_aside(last.number, 0..end)?;
            }
            remove_segment(self.disk, last.number)?;
            let of_last = |finding: &Finding| matches!(finding, Finding::Header { segment, .. } if *segment == last.number);
            self.findings.retain(|finding| !of_last(finding));
            used.pop();
            return Ok(before);
        }
        if let Some(torn) = torn {
            self.put_aside(last.number, torn)?;
        }
        Ok(Some(scanned))
    }

    /// Whether the segment's header says what is before it.
    fn start_at(&mut self, found: &Found) -> bool {
        if let Ok(header) = found.header {
            (self.end, self.chain) = (Some(header.first_offset), Some(header.chain));
        }
        found.header.is_ok()
    }

    /// Goes through a segment to where it ends.
    fn scan(&mut self, found: &Found) -> Result<Scanned, OpenError> {
        let name = segment_name(found.number);
        let failed = || OpenError::io(&name);
        let file = self.disk.open(&name).map_err(failed())?;
        self.window.clear();
        let mut at = SEGMENT_HEADER_BYTES as u64;
        let mut index: Vec<IndexEntry> = Vec::new();
        let mut is_damaged = false;
        loop {
            if let Some(header) = self.good_batch(&file, at).map_err(failed())? {
                let is_due = index
                    .last()
                    .is_none_or(|last| at - last.at >= INDEX_EVERY_BYTES);
                if is_due {
                    let (offset, time) = (header.first_offset, header.first_time);
                    index.push(IndexEntry { offset, at, time });
                }
                (self.end, self.chain) = (Some(header.end()), Some(header.chain));
                self.last_time = header.last_time;
                at += walk::records_range(&header).end as u64;
                continue;
            }
            let end = self.end.unwrap_or(0);
            let used_end = walk::used_end(&mut self.window, &file, at).map_err(failed())?;
            let (next, mut known) = self.look_ahead(&file, at..used_end).map_err(failed())?;
            known = known.max(self.closed.map_or(0, |(end, _)| end));
            let damaged = |to| Finding::Damaged {
                segment: found.number,
                at,
                from: end,
                to,
            };
            match next {
                Some((next_at, next)) if is_damaged || known > end => {
                    is_damaged = true;
                    if next.first_offset > end {
                        self.findings.push(damaged(next.first_offset));
                    }
                    (self.end, self.chain) = (Some(next.first_offset), None);
                    at = next_at;
                }
                None if known > end => {
                    self.findings.push(damaged(known));
                    self.end = Some(known);
                    self.chain = self.closed.map(|(_, chain)| chain);
                    is_damaged = true;
                }
                _ => {
                    return Ok(Scanned {
                        goes_on_at: (!is_damaged).then_some(at),
                        index,
                        torn: (!is_damaged && used_end > at).then_some(at..used_end),
                    });
                }
            }
        }
    }

    /// The batch there, if it is whole and comes next.
    fn good_batch(&mut self, file: &D::File, at: u64) -> io::Result<Option<BatchHeader>> {
        let Ok(header) = walk::batch_at(&mut self.window, file, &self.id, at)? else {
            return Ok(None);
        };
        let bytes = self.window.held(at, walk::records_range(&header).end);
        let records = bytes.get(walk::records_range(&header)).unwrap_or_default();
        let is_next = self.end.is_none_or(|end| end == header.first_offset)
            && self
                .chain
                .is_none_or(|chain| header.continues(&chain, bytes))
            && walk::check_records(&header, records).is_ok();
        Ok(is_next.then_some(header))
    }

    /// The next batch in a range that can follow what was read, and up to where any batch in it
    /// knew the log to be on disk.
    fn look_ahead(
        &mut self,
        file: &D::File,
        range: Range<u64>,
    ) -> io::Result<(Option<(u64, BatchHeader)>, u64)> {
        let (mut first, mut known) = (None, 0);
        let mut at = range.start + 1;
        while at < range.end
            && let Some(found) = walk::next_batch(&mut self.window, file, &self.id, at)?
        {
            let (found_at, header) = found;
            if self.end.is_none_or(|end| header.first_offset >= end) {
                first = first.or(Some(found));
                known = known.max(header.durable);
            }
            at = found_at + 1;
        }
        Ok((first, known))
    }

    /// Copies a torn tail beside the segment, and cuts it off.
    fn put_aside(&mut self, segment: u32, torn: Range<u64>) -> Result<(), OpenError> {
        let name = segment_name(segment);
        let names = self.disk.list();
        let names = names.map_err(OpenError::io("the log's folder"))?;
        let mut free = (1..u32::MAX)
            .map(|copy| torn_name(segment, torn.start, copy))
            .filter(|name| !names.contains(name));
        let kept = free.next().ok_or(io::ErrorKind::AlreadyExists.into());
        let kept = kept.map_err(OpenError::io(&name))?;
        let file = self.disk.open(&name).map_err(OpenError::io(&name))?;
        let bytes = torn.end - torn.start;
        let copy = self
            .disk
            .create(&kept, bytes)
            .map_err(OpenError::io(&kept))?;
        let mut at = torn.start;
        self.window.clear();
        while at < torn.end {
            let read = self
                .window
                .read(&file, at, 1)
                .map_err(OpenError::io(&name))?;
            let left = usize::try_from(torn.end - at).unwrap_or(usize::MAX);
            let part = &read[..read.len().min(left)];
            if part.is_empty() {
                break;
            }
            let written = copy.write_full(at - torn.start, part);
            written.map_err(OpenError::io(&kept))?;
            at += part.len() as u64;
        }
        copy.sync().map_err(OpenError::io(&kept))?;
        let cut = file.cut(torn.start).and_then(|()| file.sync());
        cut.map_err(OpenError::io(&name))?;
        let at = torn.start;
        self.findings.push(Finding::Torn {
            segment,
            at,
            bytes,
            kept,
        });
        Ok(())
    }
}
