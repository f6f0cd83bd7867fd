//! Every number, with its invariant.

use crate::format::{BATCH_HEADER_BYTES, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES};

/// Bytes of the largest event: what the transport carries as one message.
pub const EVENT_BYTES_MAX: usize = 1 << 20;
/// A batch of so many bytes is ended, and the next begun: what is hashed at once, and what is lost
/// to the reader when a batch's header is damaged.
pub const BATCH_BYTES: usize = 256 << 10;
/// Bytes that wait for one write. A log holds two buffers of that size and no more: one that
/// fills, one that is written.
pub const COMMIT_BYTES_MAX: usize = 4 << 20;
/// Bytes of a segment where nothing else is asked for: what a scan at opening reads at most.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// Bytes of the smallest segment that may be asked for.
pub const SEGMENT_BYTES_MIN: u64 = 4 << 10;
/// Bytes of the largest segment that may be asked for.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// The index has an entry for every so many bytes of a segment.
pub const INDEX_EVERY_BYTES: u64 = 64 << 10;
/// Bytes that a reader reads at once where a batch is no longer.
pub const READ_BYTES: usize = 1 << 20;
/// How long a log waits before it asks a full disk again.
pub const DISK_FULL_RETRY_NS: u64 = 1_000_000_000;
/// Bytes of a log's name.
pub const NAME_BYTES_MAX: usize = 255;
/// Segments of one log: their numbers have ten digits, and the largest has no successor.
pub const SEGMENT_NUMBER_MAX: u32 = u32::MAX - 1;
/// Requests that a ring submits at once.
pub const RING_REQUESTS: u32 = 128;

const _: () = assert!(
    SEGMENT_HEADER_BYTES + BATCH_HEADER_BYTES + RECORD_HEADER_BYTES + EVENT_BYTES_MAX
        <= COMMIT_BYTES_MAX
);
const _: () = assert!(BATCH_BYTES + RECORD_HEADER_BYTES + EVENT_BYTES_MAX <= BATCH_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX <= COMMIT_BYTES_MAX);
const _: () = assert!(SEGMENT_BYTES >= SEGMENT_BYTES_MIN && SEGMENT_BYTES <= SEGMENT_BYTES_MAX);
const _: () = assert!(COMMIT_BYTES_MAX as u64 + SEGMENT_BYTES_MAX < u32::MAX as u64);

/// Bytes of a batch's records at most: it is ended by the record that fills it.
pub const BATCH_BYTES_MAX: usize = 2 << 20;
