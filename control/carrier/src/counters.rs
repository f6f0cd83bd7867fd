//! Why connections were closed and packets dropped, and how many.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why something did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A connection: too many at once had not proven who they are, most of them from its source; it was the oldest.
    Full,
    /// A connection: it has not proven who it is in time.
    Slow,
    /// A connection: what it said first is not what a carrier says.
    Garbage,
    /// A connection: no neighbour of the configuration, or it could not prove to be that one.
    Stranger,
    /// A connection: the neighbour is reached by another one, or was a moment ago.
    Second,
    /// A connection: it was cut, or silent for too long.
    Broken,
    /// A connection: a frame that is no mesh packet, or larger than one, or that is not said twice.
    Malformed,
    /// A connection: no session came up over it.
    Useless,
    /// A packet: the connection takes less than the session sends.
    Queue,
    /// A packet, or an empty frame: more a second than one connection may bring.
    Rate,
    /// A packet: this node's own socket took no more.
    Local,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Full,
        Self::Slow,
        Self::Garbage,
        Self::Stranger,
        Self::Second,
        Self::Broken,
        Self::Malformed,
        Self::Useless,
        Self::Queue,
        Self::Rate,
        Self::Local,
    ];

    /// As counters call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Slow => "slow",
            Self::Garbage => "garbage",
            Self::Stranger => "stranger",
            Self::Second => "second",
            Self::Broken => "broken",
            Self::Malformed => "malformed",
            Self::Useless => "useless",
            Self::Queue => "queue",
            Self::Rate => "rate",
            Self::Local => "local",
        }
    }
}

/// How many of each; and what passed.
#[derive(Debug, Default)]
pub struct Counters {
    dropped: [AtomicU64; Reason::ALL.len()],
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counters {
    /// Counts one more.
    pub fn count(&self, reason: Reason) {
        self.dropped[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    #[must_use]
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.dropped[reason as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn count_sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_received(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    /// Packets that were put on connections.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Packets that came over them and were passed on.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter_and_name() {
        let counters = Counters::default();
        for (n, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, n);
            for _ in 0..=n {
                counters.count(reason);
            }
        }
        for (count, reason) in (1..).zip(Reason::ALL) {
            assert_eq!(counters.dropped(reason), count, "{}", reason.name());
        }
        let names: std::collections::BTreeSet<_> = Reason::ALL.map(Reason::name).into();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
