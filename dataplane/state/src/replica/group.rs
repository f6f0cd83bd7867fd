//! Which nodes hold a log, and when a publisher is told that they do.

use crate::{
    LogName,
    format::{LogId, array_at, u64_at},
    limits::REPLICAS_MAX,
};
use std::fmt;
use thiserror::Error;
use virga_ebpf::header::NodeId;

/// When a publisher is told that its events are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// The leader has them on disk: they are lost where it is lost before others have them.
    Leader,
    /// Most replicas have them on disk.
    #[default]
    Quorum,
    /// All replicas have them on disk.
    All,
}

impl Acks {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Leader, Self::Quorum, Self::All];

    /// Its word in configuration and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Quorum => "quorum",
            Self::All => "all",
        }
    }
}

impl fmt::Display for Acks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which nodes hold a log, and which of them this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub(super) me: NodeId,
    pub(super) others: Vec<NodeId>,
    pub(super) hash: u64,
}

/// Nodes that cannot hold a log together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoGroup {
    /// There are none, or more than [`REPLICAS_MAX`].
    #[error("a log has 1 to {REPLICAS_MAX} replicas, not {0}")]
    Count(usize),
    /// One is named twice.
    #[error("a replica is named twice: {0}")]
    Twice(NodeId),
    /// This node is none of them.
    #[error("this node is none of the replicas")]
    Stranger,
}

impl Group {
    /// Of these nodes, in any order.
    ///
    /// # Errors
    /// See [`NoGroup`].
    pub fn new(me: NodeId, replicas: &[NodeId]) -> Result<Self, NoGroup> {
        if !(1..=REPLICAS_MAX).contains(&replicas.len()) {
            return Err(NoGroup::Count(replicas.len()));
        }
        let mut numbers: Vec<u64> = replicas.iter().map(|node| node.0).collect();
        numbers.sort_unstable();
        if let Some(twice) = numbers.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(NoGroup::Twice(NodeId(twice[0])));
        }
        if !numbers.contains(&me.0) {
            return Err(NoGroup::Stranger);
        }
        let hash = members_hash(&numbers);
        let others = numbers.into_iter().map(NodeId).filter(|node| *node != me);
        Ok(Self {
            me,
            others: others.collect(),
            hash,
        })
    }

    /// All that hold the log, in the order of their ids.
    #[must_use]
    pub fn members(&self) -> Vec<NodeId> {
        let mut members = self.others.clone();
        members.push(self.me);
        members.sort_unstable_by_key(|node| node.0);
        members
    }

    /// How many hold the log.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.others.len() + 1
    }

    /// How many are enough.
    #[must_use]
    pub const fn quorum(&self) -> usize {
        self.count() / 2 + 1
    }
}

fn members_hash(numbers: &[u64]) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("virga 2026 log replicas v1");
    for number in numbers {
        hasher.update(&number.to_be_bytes());
    }
    u64_at(hasher.finalize().as_bytes(), 0)
}

/// The hash by which nodes see whether they mean the same replicas, in any order.
#[must_use]
pub fn group_hash(replicas: &[NodeId]) -> u64 {
    let mut numbers: Vec<u64> = replicas.iter().map(|node| node.0).collect();
    numbers.sort_unstable();
    members_hash(&numbers)
}

/// The id that all replicas of a log have.
#[must_use]
pub fn log_id(network: &[u8], name: &LogName) -> LogId {
    let mut hasher = blake3::Hasher::new_derive_key("virga 2026 replicated log v1");
    hasher.update(blake3::hash(network).as_bytes());
    hasher.update(name.as_str().as_bytes());
    array_at(hasher.finalize().as_bytes(), 0)
}
