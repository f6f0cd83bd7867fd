//! Where nodes are found.
//!
//! Every source says what it finds by one trait; what becomes of that does not depend on the source, but for seeds
//! and files: their keys are the operator's word, and they are never forgotten.

use crate::{
    limits::{ADDRESSES_MAX, NAME_BYTES_MAX},
    record::Record,
};
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
};
use virga_ebpf::{hash, header::NodeId};

/// Where a node was found first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The configuration names it to begin with.
    Seed,
    /// A file lists it.
    File,
    /// A peer has told of it.
    Exchange,
    /// It has introduced itself.
    Introduction,
    /// It announces itself in the LAN.
    Lan,
    /// It is a peer by the configuration.
    Configured,
}

impl Origin {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Seed,
        Self::File,
        Self::Exchange,
        Self::Introduction,
        Self::Lan,
        Self::Configured,
    ];

    /// Its name, the same everywhere.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Seed => "seed",
            Self::File => "file",
            Self::Exchange => "exchange",
            Self::Introduction => "introduction",
            Self::Lan => "lan",
            Self::Configured => "configured",
        }
    }
}

/// A node by the operator's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// 1 to 32 of `a-z 0-9 -`.
    pub name: String,
    /// X25519 public key.
    pub node_key: [u8; 32],
    /// ed25519 public key.
    pub entity_key: [u8; 32],
    /// Where it is; at least one.
    pub addresses: Vec<SocketAddr>,
}

impl Pinned {
    /// The node's id.
    #[must_use]
    pub fn node(&self) -> NodeId {
        hash::node_id(&self.node_key)
    }

    /// Whether its name and addresses are what they should be.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        is_name(&self.name) && (1..=ADDRESSES_MAX).contains(&self.addresses.len())
    }
}

/// Whether a node may be called so.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The operator's word.
    Pinned(Pinned),
    /// A node's own word; whether that is true is not known yet.
    Record {
        /// What it says.
        record: Box<Record>,
        /// Where it came from, where that was seen.
        seen_at: Option<SocketAddr>,
        /// Who brought it.
        teller: Teller,
    },
    /// What the operator said before of these node and entity is said no more.
    Unpinned(NodeId),
}

/// Who brought a record: each has a share of the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Teller {
    /// A peer, in a session.
    Peer(NodeId),
    /// Whoever is at this address.
    Address(std::net::IpAddr),
}

/// A place where other nodes are found.
pub trait Source: Send {
    /// Which one.
    fn origin(&self) -> Origin;

    /// What was found since the last time, at most so much; the rest comes the next time.
    fn poll(&mut self, max: usize) -> Vec<Found>;
}

/// Nodes of the operator's list: the configuration's seeds, or those of a file that may change.
#[derive(Debug)]
pub struct Listed {
    origin: Origin,
    listed: BTreeMap<NodeId, Pinned>,
    changes: VecDeque<Found>,
}

impl Listed {
    /// An empty list.
    #[must_use]
    pub const fn new(origin: Origin) -> Self {
        Self {
            origin,
            listed: BTreeMap::new(),
            changes: VecDeque::new(),
        }
    }

    /// These are the nodes from now on; what differs from before is found.
    pub fn set(&mut self, all: Vec<Pinned>) {
        let all: BTreeMap<_, _> = all.into_iter().map(|one| (one.node(), one)).collect();
        let gone = self.listed.keys().filter(|node| !all.contains_key(node));
        self.changes.extend(gone.copied().map(Found::Unpinned));
        for (node, pinned) in &all {
            if self.listed.get(node) != Some(pinned) {
                self.changes.push_back(Found::Pinned(pinned.clone()));
            }
        }
        self.listed = all;
    }
}

impl Source for Listed {
    fn origin(&self) -> Origin {
        self.origin
    }

    fn poll(&mut self, max: usize) -> Vec<Found> {
        let count = self.changes.len().min(max);
        self.changes.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pinned(number: u8, port: u16) -> Pinned {
        Pinned {
            name: format!("n{number}"),
            node_key: [number; 32],
            entity_key: [number; 32],
            addresses: vec![SocketAddr::from(([10, 0, 0, number], port))],
        }
    }

    #[test]
    fn a_list_tells_what_differs_from_before_and_no_more_than_asked() {
        let mut listed = Listed::new(Origin::File);
        listed.set(vec![pinned(1, 1), pinned(2, 1)]);
        assert_eq!(listed.poll(1).len(), 1);
        assert_eq!(listed.poll(9).len(), 1);
        listed.set(vec![pinned(1, 2)]);
        let gone = Found::Unpinned(pinned(2, 1).node());
        assert_eq!(listed.poll(9), [gone, Found::Pinned(pinned(1, 2))]);
        listed.set(vec![pinned(1, 2)]);
        assert_eq!(listed.poll(9), []);
    }

    #[test]
    fn names_are_as_configurations_have_them() {
        assert!(
            is_name("edge-a2") && !is_name("") && !is_name("Edge") && !is_name(&"a".repeat(33))
        );
    }
}
