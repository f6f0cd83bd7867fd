//! How a log keeps what it keeps.

use crate::limits::{SEGMENT_BYTES, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use std::fmt;
use thiserror::Error;

/// When an event is acknowledged, and so what survives what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// When it is on disk: survives loss of power.
    #[default]
    Synced,
    /// When the kernel has it: survives the process being killed, not loss of power.
    Flushed,
    /// When the log has it in memory: survives neither; written by and by.
    Memory,
}

impl Durability {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Synced, Self::Flushed, Self::Memory];

    /// Its word in configuration and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Synced => "synced",
            Self::Flushed => "flushed",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that is no durability.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("durability is synced, flushed or memory, not {0:?}")]
pub struct NoDurability(String);

impl std::str::FromStr for Durability {
    type Err = NoDurability;

    fn from_str(word: &str) -> Result<Self, NoDurability> {
        let found = Self::ALL.into_iter().find(|d| d.name() == word);
        found.ok_or_else(|| NoDurability(word.to_owned()))
    }
}

/// How much is kept: whole segments go once everything in them is beyond one of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Events at most.
    pub events_max: Option<u64>,
    /// Bytes on disk at most, the newest segment aside.
    pub bytes_max: Option<u64>,
    /// Nanoseconds since the event at most.
    pub age_ns_max: Option<u64>,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// See [`Durability`].
    pub durability: Durability,
    /// A segment takes no more when it has so many bytes.
    pub segment_bytes: u64,
    /// See [`Retention`].
    pub retention: Retention,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::default(),
            segment_bytes: SEGMENT_BYTES,
            retention: Retention::default(),
        }
    }
}

impl Options {
    /// With segments of a size that there can be.
    pub(crate) fn bounded(mut self) -> Self {
        self.segment_bytes = self
            .segment_bytes
            .clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        self
    }
}
