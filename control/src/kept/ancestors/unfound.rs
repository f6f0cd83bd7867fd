//! Why a log is without events.

/// Why a log went on without events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfound {
    /// No node that may keep the channel has them.
    Nobody,
    /// None that has them answered in time.
    Late,
    /// What was given is not what was signed, or does not follow what is there.
    Wrong,
    /// Too much waited, or is missing.
    Full,
    /// Nothing came of asking for events of the same feed a moment ago.
    Often,
    /// Its entity may not publish there any more.
    NoRight,
    /// The log could not take them, the node stopped, or keeps the channel no more.
    Failed,
    /// Whether the log had them before is not known, as not all of it was gone through when it was opened; or it lets go of
    /// some for others, and takes none from before it began.
    Unsure,
    /// Whose they are, or on which channel, is not known here, and nobody has them where they are named.
    Unknown,
}

impl Unfound {
    /// Every one there is.
    pub const ALL: [Self; 9] = [
        Self::Nobody,
        Self::Late,
        Self::Wrong,
        Self::Full,
        Self::Often,
        Self::NoRight,
        Self::Failed,
        Self::Unsure,
        Self::Unknown,
    ];

    /// Its label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Late => "late",
            Self::Wrong => "wrong",
            Self::Full => "full",
            Self::Often => "often",
            Self::NoRight => "no_right",
            Self::Failed => "failed",
            Self::Unsure => "unsure",
            Self::Unknown => "unknown",
        }
    }
}
