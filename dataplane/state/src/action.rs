//! The words of the log's interface: what it is started with, what it asks for, what it refuses.

use crate::{
    batch::BatchError,
    format::{Hash, IndexEntry, MANIFEST_SLOT_BYTES, Manifest},
    limits::EVENT_BYTES_MAX,
};
use std::{collections::VecDeque, sync::Arc};
use thiserror::Error;

/// Why an event was not taken; the log is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AppendError {
    /// Its payload is larger than [`EVENT_BYTES_MAX`].
    #[error("an event has at most {EVENT_BYTES_MAX} bytes, not {0}")]
    TooLarge(usize),
    /// What came before has to be written first: try again after the next action.
    #[error("the log has no room until more is written")]
    Full,
    /// The disk is full; the log asks again by itself.
    #[error("the disk is full: make room, the log goes on by itself")]
    DiskFull,
    /// A write or sync failed: nothing is acknowledged any more until the log is opened again.
    #[error("the log ended: {0}; open it again when the cause is gone")]
    Failed(Arc<str>),
    /// It is not as it was signed.
    #[error("{0}")]
    Signature(#[from] BatchError),
    /// It is being closed.
    #[error("the log is being closed")]
    Closing,
}

/// What has to be done next; exactly one answer by [`Log::complete`] is due for each.
#[must_use]
#[derive(Debug)]
pub enum Action<'a> {
    /// Make this segment's file, of so many zeros, for good. Done: any number.
    Create {
        /// Which segment.
        segment: u32,
        /// Its length.
        bytes: u64,
    },
    /// Give this segment's file room for so many bytes, those that it has included: what is written to it then needs no more
    /// of the disk. Done: any number.
    Reserve {
        /// Which segment.
        segment: u32,
        /// Its length.
        bytes: u64,
    },
    /// Write, and sync where asked, in that order. Done: how many bytes were written; fewer than
    /// all only where they were not synced.
    Write {
        /// Which segment.
        segment: u32,
        /// Where in it.
        at: u64,
        /// What.
        bytes: &'a [u8],
        /// Whether what is written has to be on disk for good.
        sync: bool,
    },
    /// Have all that was written to a segment on disk for good. Done: any number.
    Sync {
        /// Which segment.
        segment: u32,
    },
    /// A segment is full: cut what it does not need, and store its index. Done: any number; errors
    /// are no harm.
    Finish {
        /// Which segment.
        segment: u32,
        /// Its length.
        bytes: u64,
        /// The content of its index.
        index: &'a [u8],
    },
    /// Write to the manifest and sync. Done: any number.
    Mark {
        /// Where in it.
        at: u64,
        /// What.
        bytes: Box<[u8; MANIFEST_SLOT_BYTES]>,
    },
    /// Remove a segment and its index. Done: any number; errors are no harm.
    Remove {
        /// Which segment.
        segment: u32,
    },
}

/// A segment that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// As in its file's name.
    pub number: u32,
    /// Of its first event.
    pub first_offset: u64,
    /// Of its first event.
    pub first_time: u64,
    /// Its length, as far as it is used.
    pub bytes: u64,
}

/// What recovery found: where the log goes on.
#[derive(Clone, Debug)]
pub struct State {
    /// What the manifest says.
    pub manifest: Manifest,
    /// All segments in order, the one that is written to last.
    pub segments: VecDeque<Segment>,
    /// Whether the last one has room, and the events in it are indexed by these.
    pub active: Option<Vec<IndexEntry>>,
    /// A segment that is made and not used yet.
    pub prepared: Option<u32>,
    /// The number of the next segment.
    pub next_number: u32,
    /// The next event's offset.
    pub end: u64,
    /// After the last batch.
    pub chain: Hash,
    /// Of the last event.
    pub last_time: u64,
}
