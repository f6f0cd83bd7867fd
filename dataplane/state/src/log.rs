//! The log without any input or output: what is appended becomes actions, and what became of them
//! becomes acknowledgements.
//!
//! Events gather in one buffer while another is written: whatever came during a sync shares the next
//! one. At most one action is under way. A failed write or sync ends the log until it is opened
//! again, since nobody knows what of it is on disk; a full disk, noticed when a segment is made or
//! given room, before anything depends on it, only makes it wait.

mod closed;
mod commit;
mod follow;
mod room;

use crate::{
    action::{Action, AppendError, Segment, State},
    batch::{Batch, BatchError, Verified},
    event::Link,
    format::{
        self, BATCH_HEADER_BYTES, BatchHeader, Hash, IndexEntry, LogId, Manifest,
        RECORD_HEADER_BYTES, Record, SEGMENT_HEADER_BYTES, SEGMENT_VERSION, SegmentHeader,
    },
    limits::{
        COMMIT_BYTES_MAX, EVENT_BYTES_MAX, INDEX_EVERY_BYTES, SEGMENT_NUMBER_MAX,
        SIGNED_BATCH_BYTES_MAX,
    },
    options::{Durability, Options},
    signatures::Block,
};
pub use closed::Closed;
use commit::Commit;
pub use follow::{BatchRefused, Boundary};
use std::{collections::VecDeque, io, mem, sync::Arc};

#[derive(Debug)]
enum Step {
    Create(u32),
    Reserve(u32),
    Write,
    Sync(u32),
    Finish(u32, u64, Vec<u8>),
    Mark,
    Remove(u32),
}

/// See the module.
#[derive(Debug)]
pub struct Log {
    options: Options,
    id: LogId,
    manifest: Manifest,
    segments: VecDeque<Segment>,
    /// The index of the last segment, while it is written to.
    active: Option<Vec<IndexEntry>>,
    prepared: Option<u32>,
    /// Whether the last segment, while it is written to, has room on the disk for all that it takes.
    has_room: bool,
    next_number: u32,
    filling: Commit,
    writing: Commit,
    /// What of `writing` is still to be written, and where to.
    write_from: usize,
    write_at: u64,
    writing_end: u64,
    steps: VecDeque<Step>,
    is_under_way: bool,
    chain: Hash,
    end: u64,
    written: u64,
    durable: u64,
    last_time: u64,
    disk_full_until_ns: Option<u64>,
    prepare_from_ns: u64,
    failure: Option<Arc<str>>,
    closing: Closing,
    /// Where batches end, with the chains there, while somebody wants to know.
    ends: Option<VecDeque<Boundary>>,
    /// Retention goes no further.
    retain_from: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    Asked,
    Marked,
}

impl Log {
    /// Goes on where recovery found the end.
    #[must_use]
    pub fn new(state: State, options: Options) -> Self {
        let mut filling = Commit::default();
        filling.begin(state.end, state.chain);
        let mut log = Self {
            options: options.bounded(),
            id: state.manifest.id,
            manifest: state.manifest,
            segments: state.segments,
            active: state.active,
            prepared: state.prepared,
            // Where recovery cut it, or it was made to take less, it has none.
            has_room: false,
            next_number: state.next_number,
            filling,
            writing: Commit::default(),
            write_from: 0,
            write_at: 0,
            writing_end: state.end,
            steps: VecDeque::new(),
            is_under_way: false,
            chain: state.chain,
            end: state.end,
            written: state.end,
            durable: state.end,
            last_time: state.last_time,
            disk_full_until_ns: None,
            prepare_from_ns: 0,
            failure: None,
            closing: Closing::No,
            ends: None,
            retain_from: None,
        };
        if log.manifest.closed.take().is_some() {
            log.push_mark();
        }
        log
    }

    /// Takes an event; gives its offset. It is acknowledged once [`Log::acknowledged`] is greater.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub fn append(
        &mut self,
        now_unix_ns: u64,
        link: &Link,
        payload: &[u8],
    ) -> Result<u64, AppendError> {
        self.check_append(payload.len())?;
        let offset = self.end;
        self.push(now_unix_ns.max(self.last_time), *link, payload);
        if self.filling.is_batch_full() {
            self.end_batch();
        }
        Ok(offset)
    }

    /// Takes the events of a signed batch together with their signature, whole or not at all; gives the
    /// first one's offset.
    ///
    /// # Errors
    /// See [`AppendError`]: also where they are not as they were signed.
    pub fn append_signed(
        &mut self,
        now_unix_ns: u64,
        batch: &Batch,
        payloads: &[&[u8]],
    ) -> Result<(u64, Verified), AppendError> {
        let payload_bytes: usize = payloads.iter().map(|payload| payload.len()).sum();
        self.check_append(payload_bytes)?;
        self.check_room(SIGNED_BATCH_BYTES_MAX)?;
        if batch.signed.statement.channel != self.manifest.name {
            return Err(BatchError::Channel.into());
        }
        let verified = batch.clone().verify(payloads.iter().copied())?;
        let offset = self.end;
        let time = now_unix_ns.max(self.last_time);
        for (link, payload) in batch.links().zip(payloads) {
            self.push(time, link, payload);
        }
        let signed = &batch.encode();
        let block = Block { offset, signed };
        block.write(&mut self.filling.blocks);
        if self.filling.is_batch_full() {
            self.end_batch();
        }
        Ok((offset, verified))
    }

    fn push(&mut self, time: u64, link: Link, payload: &[u8]) {
        self.filling.push(&Record {
            offset: self.end,
            time,
            link,
            payload,
        });
        self.end += 1;
        self.last_time = time;
    }

    fn check_append(&self, payload_bytes: usize) -> Result<(), AppendError> {
        if let Some(failure) = &self.failure {
            return Err(AppendError::Failed(failure.clone()));
        }
        if self.closing != Closing::No {
            return Err(AppendError::Closing);
        }
        if self.disk_full_until_ns.is_some() {
            return Err(AppendError::DiskFull);
        }
        if payload_bytes > EVENT_BYTES_MAX {
            return Err(AppendError::TooLarge(payload_bytes));
        }
        self.check_room(RECORD_HEADER_BYTES + payload_bytes)
    }

    fn check_room(&self, bytes: usize) -> Result<(), AppendError> {
        let needed = SEGMENT_HEADER_BYTES + BATCH_HEADER_BYTES + bytes;
        match self.filling.waiting_bytes() + needed > COMMIT_BYTES_MAX {
            true => Err(AppendError::Full),
            false => Ok(()),
        }
    }

    /// Puts the header before the open batch.
    fn end_batch(&mut self) {
        let commit = &mut self.filling;
        let Some(open_at) = commit.open_at.take() else {
            return;
        };
        commit.bytes.append(&mut commit.blocks);
        let (header, records) = commit.bytes[open_at..].split_at_mut(BATCH_HEADER_BYTES);
        let batch = BatchHeader {
            bytes: records.len(),
            sparse_bytes: None,
            count: commit.count,
            first_offset: self.end - u64::from(commit.count),
            durable: self.durable,
            first_time: commit.first_time,
            last_time: self.last_time,
            id: self.id,
            digest: format::digest(records),
            chain: [0; 32],
        };
        if let Some(header) = header.first_chunk_mut() {
            self.chain = batch.write(&self.chain, header);
        }
        self.note_end();
    }

    /// What has to be done next; none while one is under way, or while nothing is to be done.
    pub fn poll_action(&mut self, now_unix_ns: u64) -> Option<Action<'_>> {
        if self.is_under_way || self.failure.is_some() {
            return None;
        }
        if self
            .disk_full_until_ns
            .is_some_and(|until| now_unix_ns < until)
        {
            return None;
        }
        if self.steps.is_empty() {
            self.plan(now_unix_ns);
        }
        if self.failure.is_some() {
            return None;
        }
        let step = self.steps.front()?;
        self.is_under_way = true;
        Some(match step {
            Step::Create(segment) => Action::Create {
                segment: *segment,
                bytes: self.room_for(*segment),
            },
            Step::Reserve(segment) => Action::Reserve {
                segment: *segment,
                bytes: self.options.segment_bytes,
            },
            Step::Write => Action::Write {
                segment: self.segments.back().map_or(0, |s| s.number),
                at: self.write_at,
                bytes: &self.writing.bytes[self.write_from..],
                sync: self.options.durability == Durability::Synced,
            },
            Step::Sync(segment) => Action::Sync { segment: *segment },
            Step::Finish(segment, bytes, index) => Action::Finish {
                segment: *segment,
                bytes: *bytes,
                index,
            },
            Step::Mark => Action::Mark {
                at: self.manifest.at(),
                bytes: Box::new(self.manifest.encode()),
            },
            Step::Remove(segment) => Action::Remove { segment: *segment },
        })
    }

    /// Says what became of the action that was given last.
    pub fn complete(&mut self, now_unix_ns: u64, result: io::Result<usize>) {
        if !mem::take(&mut self.is_under_way) {
            return;
        }
        let Some(step) = self.steps.front() else {
            return;
        };
        let done = match (step, result) {
            (Step::Finish(..) | Step::Remove(_), _) => 0,
            (Step::Create(_) | Step::Reserve(_), Err(error)) if room::is_disk_full(&error) => {
                return self.wait_for_room(now_unix_ns);
            }
            (_, Ok(done)) => done,
            (_, Err(error)) => return self.fail(&error),
        };
        self.disk_full_until_ns = None;
        match step {
            Step::Create(number) => {
                let is_used = self.segments.back().is_some_and(|s| s.number == *number);
                self.prepared = (!is_used).then_some(*number);
            }
            Step::Reserve(_) => self.has_room = true,
            Step::Write => {
                self.write_from += done;
                self.write_at += done as u64;
                if done == 0 {
                    return self.fail(&io::ErrorKind::WriteZero.into());
                }
                if self.write_from < self.writing.bytes.len() {
                    return;
                }
                self.written = self.writing_end;
                if self.options.durability == Durability::Synced {
                    self.durable = self.written;
                }
            }
            Step::Sync(_) => self.durable = self.written,
            Step::Mark if self.closing == Closing::Asked && self.manifest.closed.is_some() => {
                self.closing = Closing::Marked;
            }
            Step::Finish(..) | Step::Mark | Step::Remove(_) => {}
        }
        self.steps.pop_front();
    }

    fn fail(&mut self, error: &io::Error) {
        let what = match self.steps.front() {
            Some(Step::Create(_)) => "a segment could not be made",
            Some(Step::Reserve(_)) => "a segment could not be given room",
            Some(Step::Sync(_)) => "a sync failed",
            Some(Step::Mark) => "the manifest could not be written",
            _ => "a write or its sync failed",
        };
        self.failure = Some(format!("{what}: {error}").into());
    }

    fn plan(&mut self, now_unix_ns: u64) {
        if !self.filling.is_empty() {
            self.end_batch();
            return self.plan_write(now_unix_ns);
        }
        self.plan_retention(now_unix_ns);
        if self.steps.is_empty() && self.closing == Closing::Asked {
            match self.segments.back() {
                Some(last) if self.durable < self.written => {
                    self.steps.push_back(Step::Sync(last.number));
                }
                _ => {
                    self.manifest.closed = Some((self.end, self.chain));
                    self.push_mark();
                }
            }
        }
        let is_wanted = self.closing == Closing::No && now_unix_ns >= self.prepare_from_ns;
        if self.steps.is_empty() && is_wanted {
            self.plan_room();
        }
        let is_nearly_full = self.segments.back().is_none_or(|last| {
            self.active.is_none() || last.bytes > self.options.segment_bytes / 4 * 3
        });
        let is_wanted = is_wanted && self.prepared.is_none();
        if self.steps.is_empty() && is_nearly_full && is_wanted {
            self.push_create();
        }
    }

    fn plan_write(&mut self, now_unix_ns: u64) {
        let next = self.end;
        mem::swap(&mut self.filling, &mut self.writing);
        self.filling.begin(next, self.chain);
        self.writing_end = next;
        let bytes = (self.writing.bytes.len() - SEGMENT_HEADER_BYTES) as u64;
        let is_room = |last: &&Segment| {
            self.active.is_some() && last.bytes + bytes <= self.options.segment_bytes
        };
        let (at, is_new) = match self.segments.back().filter(is_room) {
            Some(last) => (last.bytes, false),
            None => (SEGMENT_HEADER_BYTES as u64, true),
        };
        if is_new {
            self.rotate();
        } else {
            self.plan_room();
        }
        self.steps.push_back(Step::Write);
        self.write_from = if is_new { 0 } else { SEGMENT_HEADER_BYTES };
        self.write_at = if is_new { 0 } else { at };
        if let Some(last) = self.segments.back_mut() {
            last.bytes = at + bytes;
        }
        let index = self.active.get_or_insert_default();
        for batch in &self.writing.batches {
            let at = batch.at - SEGMENT_HEADER_BYTES as u64 + at;
            let is_due = index
                .last()
                .is_none_or(|entry| at - entry.at >= INDEX_EVERY_BYTES);
            if is_due {
                index.push(IndexEntry { at, ..*batch });
            }
        }
        if is_new {
            self.plan_retention(now_unix_ns);
        }
    }

    /// Begins the next segment: what came before is on disk for good before anything is written there.
    fn rotate(&mut self) {
        let full = self.active.take();
        let old = self.segments.back().copied();
        if let Some(old) = old
            && self.durable < self.written
        {
            self.steps.push_back(Step::Sync(old.number));
        }
        let is_too_large = self.writing.bytes.len() as u64 > self.options.segment_bytes;
        match self.prepared {
            None => self.push_create(),
            Some(number) if is_too_large => self.steps.push_back(Step::Create(number)),
            Some(_) => {}
        }
        if let (Some(old), Some(index)) = (old, full) {
            let index = format::encode_index(&index);
            self.steps
                .push_back(Step::Finish(old.number, old.bytes, index));
        }
        // The step that makes it, where it is not there yet, comes before the write.
        let number = self.prepared.take().unwrap_or(self.next_number - 1);
        let header = SegmentHeader {
            version: SEGMENT_VERSION,
            number,
            id: self.id,
            first_offset: self.writing.first_offset,
            chain: self.writing.chain,
        };
        self.writing.bytes[..SEGMENT_HEADER_BYTES].copy_from_slice(&header.encode());
        self.has_room = true;
        self.segments.push_back(Segment {
            number,
            first_offset: self.writing.first_offset,
            first_time: self.writing.batches.first().map_or(0, |b| b.time),
            bytes: SEGMENT_HEADER_BYTES as u64,
        });
    }

    fn push_create(&mut self) {
        if self.next_number > SEGMENT_NUMBER_MAX {
            self.failure = Some("it has as many segments as there can be".into());
            return;
        }
        self.steps.push_back(Step::Create(self.next_number));
        self.next_number += 1;
    }

    fn push_mark(&mut self) {
        self.manifest.generation += 1;
        self.steps.push_back(Step::Mark);
    }

    /// Lets go of the oldest segments, the manifest first: what it names is never missing.
    fn plan_retention(&mut self, now_unix_ns: u64) {
        let mut gone = Vec::new();
        while self.segments.len() > 1 && self.is_oldest_due(now_unix_ns) {
            gone.extend(self.segments.pop_front());
        }
        let Some(first) = self.segments.front().filter(|_| !gone.is_empty()) else {
            return;
        };
        self.manifest.first_segment = first.number;
        self.push_mark();
        let removals = gone.iter().map(|segment| Step::Remove(segment.number));
        self.steps.extend(removals);
    }

    fn is_oldest_due(&self, now_unix_ns: u64) -> bool {
        let retention = &self.options.retention;
        let Some(next) = self.segments.get(1) else {
            return false;
        };
        let older = self.segments.iter().take(self.segments.len() - 1);
        let bytes = || older.map(|segment| segment.bytes).sum::<u64>();
        let end = self.retain_from.unwrap_or(self.end);
        if next.first_offset > end {
            return false;
        }
        let events = end - next.first_offset;
        // Where the first batch behind it is damaged that has no time: the one of a later segment bounds it, too.
        let mut times = self.segments.iter().skip(1).map(|later| later.first_time);
        let behind = times.find(|time| *time > 0);
        let age_ns = behind.map_or(0, |time| now_unix_ns.saturating_sub(time));
        retention.bytes_max.is_some_and(|max| bytes() > max)
            || retention.events_max.is_some_and(|max| events >= max)
            || retention.age_ns_max.is_some_and(|max| age_ns > max)
    }

    /// Events below are acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        match self.options.durability {
            Durability::Synced => self.durable,
            Durability::Flushed => self.written,
            Durability::Memory => self.end,
        }
    }

    /// Events below can be read from the files.
    #[must_use]
    pub fn readable(&self) -> u64 {
        match self.options.durability {
            Durability::Synced => self.durable,
            Durability::Flushed | Durability::Memory => self.written,
        }
    }

    /// Offset of the first event that is kept.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.segments.front().map_or(self.end, |s| s.first_offset)
    }

    /// Offset of the next event.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Bytes that wait to be written.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.filling.waiting_bytes()
    }

    /// Whether anything is left to be done, now or later.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.steps.is_empty() && self.filling.is_empty()
    }

    /// Why it ended, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Whether the disk was full when it was last asked.
    #[must_use]
    pub const fn is_disk_full(&self) -> bool {
        self.disk_full_until_ns.is_some()
    }

    /// How it keeps what it keeps.
    #[must_use]
    pub const fn options(&self) -> &Options {
        &self.options
    }

    /// Takes no more events; the actions that follow end with a mark of where the log ends.
    pub fn close(&mut self) {
        if self.closing == Closing::No {
            self.closing = Closing::Asked;
        }
    }

    /// Whether it is closed, with all that was appended on disk.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closing == Closing::Marked
    }
}
