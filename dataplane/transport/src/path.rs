//! One path to the peer: how large a packet may be on it.

use crate::limits::{DATAGRAM_BYTES_MAX, DATAGRAM_BYTES_MIN};

/// What is known of the path that a session's packets take.
#[derive(Debug)]
pub(crate) struct Path {
    datagram_bytes: usize,
}

impl Path {
    /// A path of which nothing is known: it carries what every path does.
    pub(crate) const fn new() -> Self {
        Self {
            datagram_bytes: DATAGRAM_BYTES_MIN,
        }
    }

    /// Largest datagram that may be sent now, mesh header and tag included; between
    /// [`DATAGRAM_BYTES_MIN`] and [`DATAGRAM_BYTES_MAX`], and another from call to call.
    pub(crate) const fn datagram_bytes(&self) -> usize {
        debug_assert!(self.datagram_bytes >= DATAGRAM_BYTES_MIN);
        debug_assert!(self.datagram_bytes <= DATAGRAM_BYTES_MAX);
        self.datagram_bytes
    }
}
