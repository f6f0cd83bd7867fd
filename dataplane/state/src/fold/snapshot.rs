//! A fold's state in one log, as bytes; all numbers big-endian.
//!
//! ```text
//!  0   8 magic "virgafld"
//!  8   4 version 2
//! 12   4 version of the state
//! 16   8 next: events below are in it
//! 24   8 events that the fold could not apply
//! 32   8 events that the log could not give
//! 40   1 whether the mark is one
//! 41  32 mark: BLAKE3 of offset, time, link and payload of event next - 1
//! 73   1 bytes of the fold's name: its NAME, and behind a space its parameters, or their hash where
//!        they are long
//! 74   1 bytes of the log's name
//! 75   8 bytes of the state
//! 83  16 the log's id; zeros where that was not known
//! 99     the fold's name, the log's name, the state
//!     32 BLAKE3 of all before
//! ```
//! Version 1 has no id; what was made by it is gone on from all the same.

use super::{Fold, Progress};
use crate::{
    Cursor, Event, LogName, OpenError, ReadError, Reader,
    disk::Disk,
    event::Link,
    format::{Hash, LogId, u32_at, u64_at},
};
use thiserror::Error;

const MAGIC: &[u8; 8] = b"virgafld";
const VERSION: u32 = 2;
/// The one without a log's id.
const VERSION_WITHOUT_ID: u32 = 1;
const ID_AT: usize = 83;
const HEADER_BYTES: usize = 99;
const HASH_BYTES: usize = 32;
const NO_ID: LogId = [0; 16];

const _: () = assert!(ID_AT == 8 + 4 + 4 + 8 + 8 + 8 + 1 + HASH_BYTES + 1 + 1 + 8);
const _: () = assert!(HEADER_BYTES == ID_AT + NO_ID.len());

/// Why a snapshot is not gone on from. Without it the fold begins at the log's start.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// Not all of it is as it was written.
    #[error("the snapshot is damaged, or none: remove it, and the fold begins anew")]
    Damaged,
    /// A newer program wrote it.
    #[error(
        "the snapshot's version is {0}, this program knows {VERSION}: remove it, and the fold begins anew"
    )]
    Format(u32),
    /// It is another fold's.
    #[error("the snapshot is of the fold {found:?}, not of {wanted:?}")]
    Fold {
        /// By the snapshot.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// It is of another log.
    #[error("the snapshot is of the log {found:?}, not of {wanted}")]
    Log {
        /// By the snapshot.
        found: String,
        /// What was asked for.
        wanted: LogName,
    },
    /// It is of a log that had the same name before; now another has it, or none.
    #[error("the snapshot is of another log than {0} is now: remove it, and the fold begins anew")]
    OtherLog(LogName),
    /// The state's type has changed since, and nothing says what became of it.
    #[error(
        "the snapshot's state is of version {0}, which this fold does not take over: remove it, and the fold begins anew"
    )]
    Version(u32),
    /// The state's bytes are no state.
    #[error(
        "the snapshot's state cannot be read, though all of it is as it was written: remove it, and the fold begins anew"
    )]
    State,
    /// The log has another event in the place of the last one, or does not reach so far.
    #[error(
        "the log does not hold what the snapshot was made of: event {0} is missing, or another"
    )]
    OtherEvents(u64),
    /// The log cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// What a state is of, beside its place.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    /// Which log.
    pub(super) log: Option<LogId>,
    /// Its last applied event.
    pub(super) last: Option<Hash>,
}

/// What tells an event from all others.
pub(super) fn mark(event: &Event<'_>) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&event.offset.to_be_bytes());
    hasher.update(&event.time_unix_ns.to_be_bytes());
    hasher.update(&Link::encode(&event.link));
    hasher.update(event.payload);
    *hasher.finalize().as_bytes()
}

/// What the fold is called in a snapshot: at most 255 bytes.
fn called<F: Fold>(fold: &F) -> String {
    let (name, parameters) = (F::NAME, fold.parameters());
    if parameters.is_empty() {
        return name.to_owned();
    }
    match name.len() + 1 + parameters.len() {
        ..=255 => format!("{name} {parameters}"),
        _ => format!("{name} {}", blake3::hash(parameters.as_bytes())),
    }
}

pub(super) fn encode<F: Fold>(
    fold: &F,
    log: &LogName,
    (progress, mark): (&Progress, Mark),
    state: &[u8],
) -> Vec<u8> {
    let (log, called) = (log.as_str(), called(fold));
    let mut out =
        Vec::with_capacity(HEADER_BYTES + called.len() + log.len() + state.len() + HASH_BYTES);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(&F::VERSION.to_be_bytes());
    out.extend_from_slice(&progress.next.to_be_bytes());
    out.extend_from_slice(&progress.refused.to_be_bytes());
    out.extend_from_slice(&progress.missing.to_be_bytes());
    out.push(u8::from(mark.last.is_some()));
    out.extend_from_slice(&mark.last.unwrap_or_default());
    out.push(u8::try_from(called.len()).unwrap_or(u8::MAX));
    out.push(u8::try_from(log.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(&(state.len() as u64).to_be_bytes());
    out.extend_from_slice(&mark.log.unwrap_or(NO_ID));
    out.extend_from_slice(called.as_bytes());
    out.extend_from_slice(log.as_bytes());
    out.extend_from_slice(state);
    let hash = blake3::hash(&out);
    out.extend_from_slice(hash.as_bytes());
    out
}

type Decoded<'a> = (Progress, Mark, u32, &'a [u8]);

/// Place, mark, the state's version and bytes.
pub(super) fn decode<'a, F: Fold>(
    fold: &F,
    log: &LogName,
    bytes: &'a [u8],
) -> Result<Decoded<'a>, SnapshotError> {
    let (content, hash) = bytes
        .split_last_chunk::<HASH_BYTES>()
        .ok_or(SnapshotError::Damaged)?;
    if blake3::hash(content).as_bytes() != hash || !content.starts_with(MAGIC) {
        return Err(SnapshotError::Damaged);
    }
    let header_bytes = match u32_at(content, 8) {
        VERSION => HEADER_BYTES,
        VERSION_WITHOUT_ID => ID_AT,
        version => return Err(SnapshotError::Format(version)),
    };
    let (header, rest) = content
        .split_at_checked(header_bytes)
        .ok_or(SnapshotError::Damaged)?;
    let (fold_bytes, log_bytes) = (usize::from(header[73]), usize::from(header[74]));
    let (name_of_fold, rest) = rest
        .split_at_checked(fold_bytes)
        .ok_or(SnapshotError::Damaged)?;
    let (name, state) = rest
        .split_at_checked(log_bytes)
        .ok_or(SnapshotError::Damaged)?;
    if state.len() as u64 != u64_at(header, 75) {
        return Err(SnapshotError::Damaged);
    }
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let wanted = called(fold);
    if name_of_fold != wanted.as_bytes() {
        return Err(SnapshotError::Fold {
            found: text(name_of_fold),
            wanted,
        });
    }
    if name != log.as_str().as_bytes() {
        return Err(SnapshotError::Log {
            found: text(name),
            wanted: log.clone(),
        });
    }
    let progress = Progress {
        next: u64_at(header, 16),
        refused: u64_at(header, 24),
        missing: u64_at(header, 32),
    };
    let last = header
        .get(41..41 + HASH_BYTES)
        .and_then(|mark| mark.first_chunk());
    let log = header.get(ID_AT..).and_then(|id| id.first_chunk());
    let mark = Mark {
        log: log.copied().filter(|id| *id != NO_ID),
        last: last.copied().filter(|_| header[40] == 1),
    };
    Ok((progress, mark, u32_at(header, 12), state))
}

/// A reader at the place, of a log that holds what the snapshot was made of.
pub(super) fn check<D: Disk>(
    log: &LogName,
    (progress, mark): (&Progress, Mark),
    disk: D,
) -> Result<Reader<D>, SnapshotError> {
    let before = progress.next.saturating_sub(1);
    let other = SnapshotError::OtherEvents(before);
    let from = match mark.last {
        // Nothing was applied last that the log could show.
        None => progress.next,
        Some(_) => before,
    };
    let mut reader = Reader::open(disk, log, Cursor::Offset(from))?;
    if mark.log.is_some_and(|wanted| reader.id() != Some(wanted)) {
        return Err(SnapshotError::OtherLog(log.clone()));
    }
    if mark.last.is_none() {
        return Ok(reader);
    }
    match reader.peek() {
        // Compaction has taken it since: the reader is at the event behind.
        Ok(Some(offset)) if offset > before => Ok(reader),
        Ok(Some(_)) => match reader.next_event() {
            Ok(Some(event)) if Some(self::mark(&event)) == mark.last => Ok(reader),
            _ => Err(other),
        },
        Ok(None) => Err(other),
        // It alone was removed since.
        Err(ReadError::Gone { to, .. }) if to == progress.next => Ok(reader),
        Err(error) => Err(error.into()),
    }
}
