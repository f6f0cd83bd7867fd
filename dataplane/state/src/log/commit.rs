//! What gathers for one write.

use crate::{
    format::{BATCH_HEADER_BYTES, Hash, IndexEntry, Record, SEGMENT_HEADER_BYTES},
    limits::BATCH_BYTES,
};

/// The batches that gather for one write, behind room for a segment's header.
#[derive(Debug, Default)]
pub(super) struct Commit {
    pub(super) bytes: Vec<u8>,
    /// What goes behind the open batch's records.
    pub(super) blocks: Vec<u8>,
    /// Where the open batch begins.
    pub(super) open_at: Option<usize>,
    pub(super) count: u32,
    pub(super) first_time: u64,
    /// Before its first batch.
    pub(super) chain: Hash,
    /// Of its first event.
    pub(super) first_offset: u64,
    /// Its batches, by their positions in `bytes`.
    pub(super) batches: Vec<IndexEntry>,
}

impl Commit {
    pub(super) fn begin(&mut self, first_offset: u64, chain: Hash) {
        self.bytes.clear();
        self.bytes.resize(SEGMENT_HEADER_BYTES, 0);
        self.blocks.clear();
        self.batches.clear();
        self.open_at = None;
        self.first_offset = first_offset;
        self.chain = chain;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() <= SEGMENT_HEADER_BYTES
    }

    /// Bytes that wait to be written, a batch's header aside.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.bytes.len() + self.blocks.len() - SEGMENT_HEADER_BYTES
    }

    /// Adds a record to the open batch, which is begun where there is none.
    pub(super) fn push(&mut self, record: &Record<'_>) {
        if self.open_at.is_none() {
            let begun = self.bytes.len();
            self.open_at = Some(begun);
            self.count = 0;
            self.first_time = record.time;
            self.batches.push(IndexEntry {
                offset: record.offset,
                at: begun as u64,
                time: record.time,
            });
            self.bytes.resize(begun + BATCH_HEADER_BYTES, 0);
        }
        record.write(&mut self.bytes);
        self.count += 1;
    }

    /// Whether the open batch has as much as it should.
    pub(super) fn is_batch_full(&self) -> bool {
        let begun = self.open_at.unwrap_or(self.bytes.len());
        let records = self.bytes.len().saturating_sub(begun + BATCH_HEADER_BYTES);
        records + self.blocks.len() >= BATCH_BYTES
    }
}
