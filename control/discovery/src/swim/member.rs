//! A member, as this node sees it.

use std::collections::BTreeSet;
use virga_ebpf::header::NodeId;

/// What is thought of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberState {
    /// It lives.
    Alive,
    /// It may not.
    Suspect,
    /// It does not.
    Dead,
}

impl MemberState {
    /// Its name, the same everywhere.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
        }
    }
}

/// A member is another thing than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which one.
    pub node: NodeId,
    /// What it is now.
    pub state: MemberState,
    /// By the incarnation that this is about.
    pub incarnation: u64,
}

/// A member, as this node sees it.
#[derive(Clone, Debug)]
pub struct Member {
    /// What is thought of it.
    pub state: MemberState,
    /// Its incarnation.
    pub incarnation: u64,
    /// Since when it is so.
    pub since_ns: u64,
    /// Whoever has found by itself that it does not answer.
    pub(super) accusers: BTreeSet<NodeId>,
}
