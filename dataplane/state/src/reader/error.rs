//! What a reader says where it gives no event.

use crate::format::Fault;
use std::io;
use thiserror::Error;

/// Why an event is not given.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The system refused something; the call can be made again.
    #[error("{file}: {source}")]
    Io {
        /// Which file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// Events are damaged or missing.
    #[error("{}: {fault}, at {at} of segment {segment}; the next call goes on behind", Events(*from, *to))]
    Damaged {
        /// Which segment.
        segment: u32,
        /// Where in it.
        at: u64,
        /// The first event that cannot be read.
        from: u64,
        /// The next that perhaps can.
        to: u64,
        /// What is wrong.
        fault: Fault,
    },
    /// Retention has removed them.
    #[error("{} were removed by retention; the next call goes on with {to}", Events(*from, *to))]
    Gone {
        /// The first that was asked for.
        from: u64,
        /// The first that is kept.
        to: u64,
    },
}

struct Events(u64, u64);

impl std::fmt::Display for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.1.saturating_sub(self.0) {
            0 | 1 => write!(f, "event {}", self.0),
            _ => write!(f, "events {} to {}", self.0, self.1 - 1),
        }
    }
}
