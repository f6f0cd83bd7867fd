//! Compaction by key: of segments that are full and old enough, events go whose key a later event has.
//!
//! A key is what a named member of the event's JSON object says, a text or a number, as [`Latest`](crate::fold::ready::Latest) has it. What has
//! none always stays. A removal is an object whose other members are all null, or that has none: where it is asked
//! for, it goes too once it is old enough, in a pass that finds no earlier event of its key. So it never goes together
//! with what it hides: a reader that goes on in files of before the pass meets the removal.
//!
//! - The newest event of a key is looked for in segments that are full and on disk for good.
//! - A segment is read whole and checked against its hashes before anything is taken; one with a fault is left as it is.
//! - Offsets, times, chains and digests stay: see `sparse`. Of a signed batch either all events go or none, as
//!   its entity signed them together. Bytes go in pieces of 1 KiB: a batch of which none would be free stays as it is.
//! - A segment is only written anew where an eighth of it goes.
//! - A number that is no integer of 64 bits is no key: several may read as one. Where a text reads as such a number, the
//!   removals of that text stay.
//! - At most [`COMPACTION_KEYS_MAX`] keys are held; where there are more, their hashes are gone through in parts: of each it is
//!   noted which events go, a bit each, and all goes together then. Room for that is taken in pages, only of events where
//!   something goes. Where [`COMPACTION_PAGES_MAX`] are not enough, as many of the oldest segments are gone through as they are enough for,
//!   then those behind, of which removals stay until the next pass: for ever where what takes up the room is never worth
//!   taking.
//!
//! # Order of writes
//!
//! Of each segment in turn, the oldest first; `N` is its name. What a crash leaves that comes after a step, and before the next:
//!
//! | step | on disk after a crash |
//! |---|---|
//! | the later event that an event goes for is in a full segment, synced before the next was begun, or when the log was opened | the log as it was |
//! | `N.compacting` is made, and its name synced | the same; recovery removes that file |
//! | what is left is written there, the file cut and synced | the same |
//! | `N.idx` is removed | the same; where its index is gone, a reader makes it anew |
//! | `N.compacting` is renamed to `N.seg` | either of both, whole, with the old index or none; what of that does not fit is passed over |
//! | the folder is synced | the segment without what went, for good: only now the next one is begun |
//! | `N.idx` is stored | the same, with an index or none |
//!
//! So what is on disk is at any time a log of which a pass has gone through some of the oldest segments. An event that another
//! takes the place of goes where that one is on disk for good. A removal goes where all that it hides is gone for
//! good: what an earlier pass took of older segments, and what retention took, once the manifest that does not name it
//! is synced. While that is under way nothing is put in its place ([`Log::closed`] is empty), and a pass that was refused
//! a segment ends: what it would go on to take rests on it.

mod gone;
mod pass;
#[cfg(test)]
mod tests;

use crate::{
    Log,
    disk::Disk,
    files::Files,
    format::{LogId, compacting_name, index_name, segment_name},
    limits::{COMPACTION_KEYS_MAX, COMPACTION_PAGES_MAX, COMPACTION_PARTS_MAX},
    log::Closed,
};
use gone::Gone;
use pass::Pass;
use std::{collections::BTreeSet, io};
use thiserror::Error;

/// Which events go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The member that has an event's key.
    pub key: String,
    /// Nanoseconds that events are left as they are.
    pub after_ns: u64,
    /// Nanoseconds after which a removal goes too, if ever.
    pub removals_after_ns: Option<u64>,
}

/// A segment without what went, in a file beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// Which segment.
    pub segment: u32,
    /// Its length now.
    pub bytes: u64,
    /// The content of its index.
    pub index: Vec<u8>,
    /// Events that went.
    pub removed_events: u64,
    /// Bytes that went.
    pub removed_bytes: u64,
}

/// What a pass came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Segments that were written anew.
    pub segments: u64,
    /// Events that went.
    pub removed_events: u64,
    /// Bytes that went.
    pub removed_bytes: u64,
    /// In how many parts the keys were gone through.
    pub parts: u32,
    /// Segments that are left as they are, as they have faults.
    pub damaged: BTreeSet<u32>,
}

impl Outcome {
    /// Why not all went that could, if so.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        (!self.damaged.is_empty()).then(|| {
            format!(
                "segments {:?} are damaged, and left as they are: `virga log verify` says where",
                self.damaged
            )
        })
    }
}

/// Why a pass ended early; all before it stands.
#[derive(Debug, Error)]
pub enum CompactError {
    /// The system refused something.
    #[error("{file}: {source}")]
    Io {
        /// Which file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// There are more keys than can be gone through.
    #[error(
        "the log has more keys than {} : let retention remove more of it",
        COMPACTION_KEYS_MAX * COMPACTION_PARTS_MAX as usize
    )]
    Keys,
    /// Whoever has the log ended the pass, or did not put a segment in its place.
    #[error("it was stopped")]
    Stopped,
}

impl CompactError {
    fn io(file: &str) -> impl FnOnce(io::Error) -> Self + use<> {
        let file = file.to_owned();
        |source| Self::Io { file, source }
    }
}

/// A log as a pass is to see it.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Which log.
    pub id: LogId,
    /// What is full and on disk for good, in order: see [`Log::closed`].
    pub closed: Vec<Closed>,
}

impl Rules {
    /// How many segments are old enough.
    #[must_use]
    pub fn due(&self, closed: &[Closed], now_unix_ns: u64) -> usize {
        let is_due =
            |closed: &&Closed| now_unix_ns.saturating_sub(closed.newest_time) > self.after_ns;
        // A clock that was set back leaves them in no order.
        closed.iter().take_while(|closed| is_due(closed)).count()
    }
}

/// Goes through a log once. `put` is given each segment that was written anew, and puts it in its place by [`put`]
/// before it returns; false where that was refused, which ends the pass. `goes_on` is asked before each batch.
///
/// # Errors
/// See [`CompactError`].
pub fn pass<D: Disk>(
    disk: &D,
    subject: &Subject,
    (rules, now_unix_ns): (&Rules, u64),
    goes_on: &dyn Fn() -> bool,
    put: &mut dyn FnMut(Rewritten) -> Result<bool, CompactError>,
) -> Result<Outcome, CompactError> {
    let bounds = (COMPACTION_KEYS_MAX, COMPACTION_PAGES_MAX);
    pass_within(bounds, disk, subject, (rules, now_unix_ns), goes_on, put)
}

fn pass_within<D: Disk>(
    (keys_max, pages_max): (usize, usize),
    disk: &D,
    subject: &Subject,
    (rules, now_unix_ns): (&Rules, u64),
    goes_on: &dyn Fn() -> bool,
    put: &mut dyn FnMut(Rewritten) -> Result<bool, CompactError>,
) -> Result<Outcome, CompactError> {
    let mut outcome = Outcome::default();
    let due = &subject.closed[..rules.due(&subject.closed, now_unix_ns)];
    // Segments before are gone through.
    let (mut from, mut parts) = (0, 1);
    loop {
        let mut gone = Gone::within(pages_max);
        let mut part = 0;
        while part < parts {
            let mut pass = Pass::new(
                (disk, subject),
                (rules, now_unix_ns),
                goes_on,
                (keys_max, part, parts),
                &mut outcome,
            );
            if !pass.find_newest()? {
                (part, parts) = (0, parts * 2);
                gone = Gone::within(pages_max);
                if parts > COMPACTION_PARTS_MAX {
                    return Err(CompactError::Keys);
                }
                continue;
            }
            if parts == 1 {
                pass.compact(due, put)?;
                outcome.parts = parts;
                return Ok(outcome);
            }
            if from > 0 {
                pass.keep_removals();
            }
            pass.mark(&due[from..], &mut gone)?;
            part += 1;
        }
        let fit = due.partition_point(|closed| closed.end <= gone.limit());
        // A part of what goes of a segment may go, too.
        let to = fit.max(from + 1).min(due.len());
        let pass = Pass::new(
            (disk, subject),
            (rules, now_unix_ns),
            goes_on,
            (keys_max, 0, parts),
            &mut outcome,
        );
        pass.of_marked(&gone).compact(&due[from..to], put)?;
        if to == due.len() {
            outcome.parts = parts;
            return Ok(outcome);
        }
        from = to;
    }
}

/// Puts a segment that was written anew in its place; false where the log has let go of it meanwhile, or is letting go of
/// others: the pass cannot go on.
///
/// # Errors
/// What the system said: it is not known which of both files is there after a crash, and nothing more may be
/// compacted before the log is opened again.
pub fn put<D: Disk>(
    log: &mut Log,
    files: &mut Files<D>,
    rewritten: &Rewritten,
) -> io::Result<bool> {
    let number = rewritten.segment;
    let (segment, file) = (segment_name(number), compacting_name(number));
    if !log.closed().iter().any(|closed| closed.number == number) {
        files.disk().remove(&file)?;
        return Ok(false);
    }
    files.let_go(number);
    let disk = files.disk();
    // One that does not fit its segment is passed over; one that is missing is made anew.
    disk.remove(&index_name(number))?;
    disk.replace(&segment, &file)?;
    log.resize(number, rewritten.bytes);
    let _stored = disk.store(&index_name(number), &rewritten.index);
    Ok(true)
}
