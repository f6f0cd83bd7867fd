//! Folds for common cases. Their events are JSON objects:
//!
//! | fold | events | state |
//! |---|---|---|
//! | [`Latest`] | any, with the key in a member that is named when it is made | each key's latest event |
//! | [`Counters`] | `{"key": "a", "add": 3}` | each key's sum |
//! | [`LastWriterWins`] | `{"key": "a", "value": 1, "time": 7}`, without `value`: removed | each key's value of the latest `time`, whoever came first |
//! | [`AddWins`] | `{"add": "a", "value": 1}`, `{"remove": "a", "observed": ["LOG:OFFSET"]}` | each key's value; a removal takes away only what it had observed |
//!
//! Where stamps decide and are equal, the log's name and the offset do: the same on every node.

mod add_wins;
mod counters;
mod last_writer_wins;
mod latest;

pub use add_wins::AddWins;
pub use counters::Counters;
pub use last_writer_wins::LastWriterWins;
pub use latest::Latest;

use super::Sourced;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// Which of two events counts: the later; of the same time, by log and offset.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// In nanoseconds, or whatever writers count in.
    pub time: u64,
    /// The log's name.
    pub log: String,
    /// The event's place in it.
    pub offset: u64,
}

impl Stamp {
    fn of(time: u64, event: &Sourced<'_>) -> Self {
        Self {
            time,
            log: event.log.as_str().to_owned(),
            offset: event.event.offset,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        put_u64(out, self.time);
        put_bytes(out, self.log.as_bytes());
        put_u64(out, self.offset);
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        Some(Self {
            time: take_u64(bytes)?,
            log: take_text(bytes)?,
            offset: take_u64(bytes)?,
        })
    }
}

/// A value and since when it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamped<T> {
    /// Since when.
    pub stamp: Stamp,
    /// What it is.
    pub value: T,
}

/// What a key's value has become; none: it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange<T> {
    /// Which key.
    pub key: String,
    /// Its value now.
    pub value: Option<T>,
}

/// Takes a value where it is later than what is there; whether it was.
fn take_later<T: Clone>(
    into: &mut BTreeMap<String, Stamped<T>>,
    key: &str,
    found: &Stamped<T>,
) -> bool {
    match into.get_mut(key) {
        Some(held) if held.stamp >= found.stamp => false,
        Some(held) => {
            held.clone_from(found);
            true
        }
        None => {
            into.insert(key.to_owned(), found.clone());
            true
        }
    }
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, String> {
    serde_json::from_slice(payload).map_err(|error| error.to_string())
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_be_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_be_bytes(*number))
}

fn take_bytes<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_u64(bytes)?).ok()?;
    let (found, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(found)
}

fn take_text(bytes: &mut &[u8]) -> Option<String> {
    String::from_utf8(take_bytes(bytes)?.to_vec()).ok()
}

fn put_map<T>(out: &mut Vec<u8>, map: &BTreeMap<String, T>, put: impl Fn(&mut Vec<u8>, &T)) {
    put_u64(out, map.len() as u64);
    for (key, value) in map {
        put_bytes(out, key.as_bytes());
        put(out, value);
    }
}

fn take_map<T>(
    bytes: &mut &[u8],
    take: impl Fn(&mut &[u8]) -> Option<T>,
) -> Option<BTreeMap<String, T>> {
    let count = take_u64(bytes)?;
    let mut map = BTreeMap::new();
    for _ in 0..count {
        map.insert(take_text(bytes)?, take(bytes)?);
    }
    Some(map)
}

/// What was read, where nothing is left.
fn whole<T>(bytes: &[u8], found: T) -> Option<T> {
    bytes.is_empty().then_some(found)
}
