//! Every number, with its invariant.

use crate::{
    batch::{OBSERVED_BYTES, SIGNATURE_BYTES, STATEMENT_BYTES_MIN},
    format::{BATCH_HEADER_BYTES, INDEX_ENTRY_BYTES, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES},
    signatures::BLOCK_HEADER_BYTES,
};

/// Bytes of the largest event: what the transport carries as one message.
pub const EVENT_BYTES_MAX: usize = 1 << 20;
/// A batch of so many bytes is ended, and the next begun: what is hashed at once, and what is lost
/// to the reader when a batch's header is damaged.
pub const BATCH_BYTES: usize = 256 << 10;
/// Bytes that wait for one write. A log holds so many twice and no more: those that gather, and
/// those that are written.
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
/// Events of a signed batch: with them its records fit a batch of the log.
pub const BATCH_EVENTS_MAX: usize = 512;
/// Feeds that one batch observes newly at most: its record then has 72 KiB.
pub const FRONTIER_FEEDS_MAX: usize = 1_024;
/// Bytes of a signed batch's record without its frontier, and with the longest name.
pub const SIGNED_BYTES_MAX: usize = STATEMENT_BYTES_MIN + NAME_BYTES_MAX + SIGNATURE_BYTES + 4;
/// Bytes of a signed batch's payloads at most: what the transport carries as one message, less the rest.
pub const SIGNED_PAYLOADS_MAX: usize = 896 << 10;
/// Feeds that an index of causes knows.
pub const CAUSAL_FEEDS_MAX: usize = 4_096;
/// Batches that an index of causes holds: a few hundred bytes each.
pub const CAUSAL_BATCHES_MAX: usize = 64 << 10;
/// Entries of the clocks of an index of causes, some 30 bytes each.
pub const CAUSAL_CLOCK_ENTRIES_MAX: usize = 2 << 20;
/// Pending batches of an index of causes, and the entries of their frontiers, at most some 900 bytes each.
pub const CAUSAL_PENDING_ENTRIES_MAX: usize = 32 << 10;
/// Refused batches that an index of causes looks for forks in, at most some 600 bytes each.
pub const CAUSAL_REFUSED_MAX: usize = 16 << 10;
/// Bytes of a log that are gone through at a time for the events of one feed: one batch more may be.
pub const LOOK_BYTES: u64 = 64 << 20;
/// Bytes of a log's name.
pub const NAME_BYTES_MAX: usize = 255;
/// Segments of one log: their numbers have ten digits, and the largest has no successor.
pub const SEGMENT_NUMBER_MAX: u32 = u32::MAX - 1;
/// Bytes of the index of the largest segment.
pub const INDEX_BYTES_MAX: u64 =
    8 + 4 + (SEGMENT_BYTES_MAX / INDEX_EVERY_BYTES + 1) * INDEX_ENTRY_BYTES as u64;
/// Bytes of memory that one log's writer takes at most, beside its segments' entries: two buffers, each of which may have
/// room for twice what it holds and is copied when it grows.
pub const WRITER_MEMORY_MAX: usize = 5 * COMMIT_BYTES_MAX;
/// The same of whatever reads a log, beside what it was asked to remember: a window, copied when it grows.
pub const READER_MEMORY_MAX: usize = 2 * (READ_BYTES + BATCH_BYTES_MAX);
/// Bytes of memory that a segment's entries in lists take at most, some half of it mostly, while a log is opened: all that
/// grows with the log.
pub const SEGMENT_OPENING_BYTES: usize = 2 << 10;
/// What of them a log's writer keeps.
pub const SEGMENT_ENTRY_BYTES: usize = 96;
/// Keys that compaction holds at a time, some 70 bytes each.
pub const COMPACTION_KEYS_MAX: usize = 256 << 10;
/// Parts that it goes through keys in, each with a pass over the log.
pub const COMPACTION_PARTS_MAX: u32 = 64;
/// Pages of 256 events that it holds at a time, where it goes through keys in parts: a bit an event, some 65 bytes a page of which any
/// goes. Where there are more, what comes behind is gone through next.
pub const COMPACTION_PAGES_MAX: usize = 1 << 20;
/// A segment is written anew where one part in so many of its bytes goes.
pub const SAVED_PART: u64 = 8;
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

/// Bytes that a signed batch takes in a log at most.
pub const SIGNED_BATCH_BYTES_MAX: usize = EVENT_BYTES_MAX
    + BATCH_EVENTS_MAX * RECORD_HEADER_BYTES
    + BLOCK_HEADER_BYTES
    + SIGNED_BYTES_MAX
    + FRONTIER_FEEDS_MAX * OBSERVED_BYTES;
const _: () = assert!(BATCH_BYTES + SIGNED_BATCH_BYTES_MAX <= BATCH_BYTES_MAX);
const _: () =
    assert!(SEGMENT_HEADER_BYTES + BATCH_HEADER_BYTES + SIGNED_BATCH_BYTES_MAX <= COMMIT_BYTES_MAX);
const _: () = assert!(FRONTIER_FEEDS_MAX < CAUSAL_PENDING_ENTRIES_MAX);
const _: () = assert!(FRONTIER_FEEDS_MAX <= CAUSAL_FEEDS_MAX);
const _: () = assert!(
    SIGNED_PAYLOADS_MAX
        + BATCH_EVENTS_MAX * 4
        + SIGNED_BYTES_MAX
        + FRONTIER_FEEDS_MAX * OBSERVED_BYTES
        <= EVENT_BYTES_MAX
);

/// Bytes of a batch's records at most: it is ended by the record that fills it.
pub const BATCH_BYTES_MAX: usize = 2 << 20;

/// Nodes that hold one log at most: a leader hears from each of them several times a second.
pub const REPLICAS_MAX: usize = 16;
/// How often a leader that has nothing to say says that it leads.
pub const LEADS_EVERY_NS: u64 = 250_000_000;
/// A replica that heard nothing of a leader for so long, and up to twice that, asks to lead.
pub const LEADERLESS_NS_MIN: u64 = 1_500_000_000;
/// How long a follower waits for what it asked for before it asks again.
pub const FETCH_AGAIN_NS: u64 = 750_000_000;
/// Bytes of batches in one answer: ended by the batch that fills it.
pub const FETCH_BYTES: usize = 256 << 10;
/// Batches that a leader takes before most have them; what is beyond waits with its publisher.
pub const UNCOMMITTED_BATCHES_MAX: usize = 16 << 10;
/// How far an epoch may be ahead of what a replica knows: they rise by one in [`LEADERLESS_NS_MIN`], so in a
/// lifetime no further.
pub const EPOCHS_AHEAD_MAX: u64 = 1 << 32;
/// Where another replica's log may begin: at a million events a second one is there in 36,000 years.
pub const BEGIN_MAX: u64 = 1 << 60;
/// A replica notes on disk how far the log is committed whenever that is so many events further.
pub const NOTE_COMMITTED_EVERY: u64 = 64 << 10;

const _: () = assert!(4 * LEADS_EVERY_NS < LEADERLESS_NS_MIN);
const _: () = assert!(LEADS_EVERY_NS < FETCH_AGAIN_NS && FETCH_AGAIN_NS < LEADERLESS_NS_MIN);
const _: () = assert!(FETCH_BYTES < COMMIT_BYTES_MAX);
