//! Why a session ended.

use std::fmt;

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// [`crate::Node::close`] was called here, or [`crate::Node::drain`] and all is through.
    Local,
    /// [`crate::Node::drain`] was called here, and the peer did not have everything in time.
    Unfinished,
    /// The peer closed it.
    Peer,
    /// Nothing was heard of the peer for too long.
    Idle,
    /// The peer does not know the session any more: it restarted.
    Reset,
    /// A newer, proven session with the same peer took its place.
    Superseded,
    /// Too many packets failed to open, or sequences ran out.
    Exhausted,
    /// The peer broke the protocol in sealed, authentic packets.
    Violation,
    /// The peer could not prove the configured entity.
    Entity,
    /// [`crate::Node::set_peers`] was called here, and the entity that the peer has proven may prove
    /// itself there no more.
    Removed,
    /// The handshake was not finished in time.
    Deadline,
}

impl CloseReason {
    /// All of them, in their order.
    pub const ALL: [Self; 11] = [
        Self::Local,
        Self::Unfinished,
        Self::Peer,
        Self::Idle,
        Self::Reset,
        Self::Superseded,
        Self::Exhausted,
        Self::Violation,
        Self::Entity,
        Self::Removed,
        Self::Deadline,
    ];

    /// The counter's label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Unfinished => "unfinished",
            Self::Peer => "peer",
            Self::Idle => "idle",
            Self::Reset => "reset",
            Self::Superseded => "superseded",
            Self::Exhausted => "exhausted",
            Self::Violation => "violation",
            Self::Entity => "entity",
            Self::Removed => "removed",
            Self::Deadline => "deadline",
        }
    }
}

/// For an operator, after "the last one ended: ".
impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "this node closed it",
            Self::Unfinished => "this node closed it, and the peer did not take everything in time",
            Self::Peer => "the peer closed it",
            Self::Idle => "nothing was heard of the peer for too long",
            Self::Reset => "the peer restarted and does not know it any more",
            Self::Superseded => "a newer one with the same peer took its place",
            Self::Exhausted => "too many packets failed to open, or its sequences ran out",
            Self::Violation => "the peer broke the protocol in packets that were its own",
            Self::Entity => "the peer could not prove the entity that the configuration names",
            Self::Removed => "its entity may prove itself at that peer no more",
            Self::Deadline => "the handshake was not finished in time",
        })
    }
}
