//! All that touches the operating system: folders, io_uring, the clock.
//!
//! - [`folder`]: a log's folder on a real disk, locked by its one writer.
//! - [`driver`]: performs what logs ask for: several logs' writes and syncs in one call of io_uring, or
//!   one after the other where io_uring is refused; a single one by system calls.
//! - [`open`]: a log by its name below a folder; [`clock`]: what time it is.
//!
//! What several logs share is the call and the wait, not the sync: each has a request to write and one to sync of its own,
//! all are handed to the kernel at once, and none is told of its own before all are done. It is the disk that makes fewer
//! flushes of syncs that come together. Segments are made, and their names synced, one log after the other.
//!
//! Writes go through the page cache, and a sync follows: a commit begins and ends anywhere. Past the cache (`O_DIRECT`) it
//! would have to begin and end at whole blocks of 4 KiB, so that the last block of one is written again by the next, and a
//! single event of 100 bytes writes 40 times as much. `scripts/bench log` measures what the disk makes of both:
//! `log.direct_4k` stands for single events, `log.direct_1m` for the largest commits.

pub mod clock;
pub mod driver;
pub mod folder;
pub mod open;
mod ring;
