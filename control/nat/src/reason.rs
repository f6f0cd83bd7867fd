//! What was said, and not followed.

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It cannot be read.
    Malformed,
    /// The peer says too much.
    Rate,
    /// Only a neighbour may say it, and the peer is none.
    Stranger,
    /// A neighbour tells of a node that this one does not want to reach, or has reached.
    Unwanted,
    /// It belongs to no try that is under way.
    Late,
    /// An address that no node can be at.
    Address,
    /// No more packets may go out to addresses that others told of.
    Probes,
    /// As many tries as there may be are under way.
    Full,
    /// Another node that is sent to straight is at that IP address.
    Taken,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Malformed,
        Self::Rate,
        Self::Stranger,
        Self::Unwanted,
        Self::Late,
        Self::Address,
        Self::Probes,
        Self::Full,
        Self::Taken,
    ];

    /// Its name, the same everywhere.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Rate => "rate",
            Self::Stranger => "stranger",
            Self::Unwanted => "unwanted",
            Self::Late => "late",
            Self::Address => "address",
            Self::Probes => "probes",
            Self::Full => "full",
            Self::Taken => "taken",
        }
    }
}
