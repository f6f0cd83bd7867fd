//! What a log is asked when it is one of several that hold the same: where batches end, and to take another's
//! batches as they are.

use super::{Closing, Log};
use crate::{
    action::{AppendError, Segment},
    format::{
        BATCH_HEADER_BYTES, BatchHeader, Fault, Hash, IndexEntry, LogId, SEGMENT_HEADER_BYTES,
    },
    limits::COMMIT_BYTES_MAX,
    signatures::Content,
    walk,
};
use std::collections::VecDeque;
use thiserror::Error;

/// A place between two batches, and the hash of all that is before it: where two logs have the same chain,
/// they have the same events before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// Of the first event behind it.
    pub offset: u64,
    /// See [`crate::format`].
    pub chain: Hash,
}

/// Why another log's batch was not taken; the log is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BatchRefused {
    /// The log takes nothing now.
    #[error("{0}")]
    Append(#[from] AppendError),
    /// It is not the batch that comes next, or not as it was written or signed.
    #[error("a batch from another replica: {0}")]
    Fault(#[from] Fault),
}

impl Log {
    /// Has the log note where batches end from now on.
    pub(crate) fn note_ends(&mut self, known: VecDeque<Boundary>) {
        self.ends = Some(known);
    }

    /// Where batches end, as far as it was noted and is not forgotten, in order.
    pub(crate) fn ends(&self) -> impl DoubleEndedIterator<Item = &Boundary> + ExactSizeIterator {
        static NONE: VecDeque<Boundary> = VecDeque::new();
        self.ends.as_ref().unwrap_or(&NONE).iter()
    }

    /// Forgets what is before the last batch end at or before an offset.
    pub(crate) fn forget_ends(&mut self, below: u64) {
        let Some(ends) = &mut self.ends else {
            return;
        };
        while ends.get(1).is_some_and(|next| next.offset <= below) {
            ends.pop_front();
        }
    }

    /// No segment goes by retention that has anything at or behind an offset; later events do not count for it.
    pub(crate) fn retain_from(&mut self, offset: u64) {
        self.retain_from = Some(offset);
    }

    pub(super) fn note_end(&mut self) {
        let (offset, chain) = (self.end, self.chain);
        if let Some(ends) = &mut self.ends {
            ends.push_back(Boundary { offset, chain });
        }
    }

    /// The end of the last batch; events that were appended and belong to none yet are behind it.
    pub(crate) fn boundary(&self) -> Boundary {
        let open = self.filling.open_at.map_or(0, |_| self.filling.count);
        Boundary {
            offset: self.end - u64::from(open),
            chain: self.chain,
        }
    }

    /// Whether all that was appended is on disk for good.
    pub(crate) fn is_durable(&self) -> bool {
        self.durable == self.end && self.failure.is_none()
    }

    /// What tells it from other logs of the same name.
    #[must_use]
    pub const fn id(&self) -> &LogId {
        &self.id
    }

    pub(crate) fn segments(&self) -> &VecDeque<Segment> {
        &self.segments
    }

    /// Begins an empty log further on.
    pub(crate) fn begin_at(&mut self, begin: Boundary) {
        if self.segments.is_empty() && self.filling.is_empty() {
            (self.end, self.written, self.durable) = (begin.offset, begin.offset, begin.offset);
            self.chain = begin.chain;
            self.writing_end = begin.offset;
            self.filling.begin(begin.offset, begin.chain);
        }
    }

    /// Takes the first batch of `bytes`, checked, as it is: also its chain. Gives how many bytes it has.
    ///
    /// # Errors
    /// See [`BatchRefused`]; `Full` also where what the batch says is on disk has to be written here first.
    pub(crate) fn append_batch(&mut self, bytes: &[u8]) -> Result<usize, BatchRefused> {
        let header = BatchHeader::parse(bytes, &self.id)?;
        if header.sparse_bytes.is_some() {
            return Err(Fault::Compacted.into());
        }
        let batch = bytes.get(..BATCH_HEADER_BYTES + header.bytes);
        let batch = batch.ok_or(Fault::Short)?;
        self.check_append(0)?;
        if header.durable > header.first_offset {
            return Err(Fault::Number.into());
        }
        if header.first_offset != self.end || self.filling.open_at.is_some() {
            return Err(Fault::Order.into());
        }
        let is_room = SEGMENT_HEADER_BYTES + self.filling.waiting_bytes() + batch.len();
        if header.durable > self.durable || is_room > COMMIT_BYTES_MAX {
            return Err(AppendError::Full.into());
        }
        if !walk::check_hashes(&header, &self.chain, batch) {
            return Err(Fault::Hash.into());
        }
        let records = &batch[walk::records_range(&header)];
        walk::check_records(&header, records).map_err(|(_, fault)| fault)?;
        let content = Content::of(&header, records)?;
        if let Some(fault) = content.signed().find_map(|(_, signed)| signed.err()) {
            return Err(fault.into());
        }
        let at = self.filling.bytes.len() as u64;
        self.filling.bytes.extend_from_slice(batch);
        self.filling.batches.push(IndexEntry {
            offset: header.first_offset,
            at,
            time: header.first_time,
        });
        (self.end, self.chain) = (header.end(), header.chain);
        self.last_time = header.last_time.max(self.last_time);
        self.note_end();
        Ok(batch.len())
    }

    /// Whether it is being closed, or is.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing != Closing::No
    }
}
