//! What is known of each node, and whom of them this one tries to reach.

use crate::{
    limits::{ADDRESSES_MAX, DIAL_NS, LOST_NS, REDIAL_NS, REDIAL_NS_MAX, ROUNDS_MAX},
    random::Random,
    record::Record,
    source::{Origin, Teller},
};
use std::{collections::BTreeMap, net::SocketAddr};
use virga_ebpf::header::NodeId;

/// How far this node is with another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It is dialled later.
    Waiting {
        /// Not before.
        at_ns: u64,
    },
    /// It is dialled.
    Dialling {
        /// How long it is tried at one address.
        until_ns: u64,
    },
    /// There is a session with it.
    Proven,
    /// The session has ended, or nobody hears of the node: it is waited for where it was.
    Lost {
        /// So long.
        until_ns: u64,
    },
}

impl Stage {
    /// Its name, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting { .. } => "waiting",
            Self::Dialling { .. } => "dialling",
            Self::Proven => "proven",
            Self::Lost { .. } => "lost",
        }
    }
}

/// A node.
#[derive(Clone, Debug)]
pub struct Known {
    pub(crate) node: NodeId,
    pub(crate) node_key: [u8; 32],
    pub(crate) entity_key: [u8; 32],
    pub(crate) name: String,
    pub(crate) origin: Origin,
    /// By the operator's word, and where that is; empty where it is not pinned.
    pub(crate) pinned: BTreeMap<Origin, Vec<SocketAddr>>,
    pub(crate) record: Option<Record>,
    pub(crate) seen_at: Option<SocketAddr>,
    pub(crate) teller: Option<Teller>,
    pub(crate) stage: Stage,
    /// Which of its addresses is tried.
    pub(crate) place: usize,
    /// The one that is used.
    pub(crate) address: Option<SocketAddr>,
    /// Dials that failed since the last session.
    pub(crate) failures: u32,
    /// When there was a session last.
    pub(crate) proven_ns: Option<u64>,
    /// When it is told who this node is, and how often it was.
    pub(crate) introduce_ns: u64,
    pub(crate) introductions: u32,
    /// The life of it that the present one came after.
    pub(crate) life_before: Option<u64>,
    /// Two nodes have its keys: until then nothing counts that is said under them.
    pub(crate) torn_until_ns: Option<u64>,
}

impl Known {
    pub(crate) fn new(
        (node, node_key, entity_key): (NodeId, [u8; 32], [u8; 32]),
        name: &str,
        origin: Origin,
        now_ns: u64,
    ) -> Self {
        Self {
            node,
            node_key,
            entity_key,
            name: name.to_owned(),
            origin,
            pinned: BTreeMap::new(),
            record: None,
            seen_at: None,
            teller: None,
            stage: Stage::Waiting { at_ns: now_ns },
            place: 0,
            address: None,
            failures: 0,
            proven_ns: None,
            introduce_ns: now_ns,
            introductions: 0,
            life_before: None,
            torn_until_ns: None,
        }
    }

    /// The node's id.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// What it calls itself, or the operator does.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it was found first.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        self.origin
    }

    /// How far this node is with it.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// Where it is tried, or was reached.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Whether two nodes have its keys.
    #[must_use]
    pub const fn is_torn(&self) -> bool {
        self.torn_until_ns.is_some()
    }

    pub(crate) fn is_pinned(&self) -> bool {
        !self.pinned.is_empty()
    }

    /// Whether sessions with it are to be had now.
    pub(crate) fn is_adopted(&self) -> bool {
        !self.is_torn() && !matches!(self.stage, Stage::Waiting { .. })
    }

    pub(crate) fn sequence(&self) -> u64 {
        let record = self.record.as_ref();
        record.map_or(0, |record| record.claim().sequence)
    }

    /// Where it may be: its own word first, for it is the newest.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let record = self.record.as_ref();
        let said = record.map(|record| &record.claim().addresses[..]);
        let said = said.unwrap_or_default().iter();
        let mut all: Vec<SocketAddr> = Vec::new();
        let pinned = self.pinned.values().flatten();
        for &address in said.chain(pinned).chain(&self.seen_at) {
            if !all.contains(&address) && all.len() < ADDRESSES_MAX {
                all.push(address);
            }
        }
        all
    }

    /// Begins to dial it at one of these addresses, its own that are free; whether there is one.
    pub(crate) fn dial(&mut self, now_ns: u64, free: &[SocketAddr]) -> bool {
        let Some(&address) = free.get(self.place.checked_rem(free.len()).unwrap_or(0)) else {
            return false;
        };
        self.address = Some(address);
        self.stage = Stage::Dialling {
            until_ns: now_ns + DIAL_NS,
        };
        (self.introduce_ns, self.introductions) = (now_ns, 0);
        true
    }

    /// Its dial was in vain: the next address comes later. Whether it is worth another one.
    pub(crate) fn failed(&mut self, now_ns: u64, random: &mut Random) -> bool {
        self.failures += 1;
        self.place = self.place.wrapping_add(1);
        let rounds = u32::try_from(self.addresses().len().max(1)).unwrap_or(u32::MAX);
        let doubled = REDIAL_NS << (self.failures - 1).min(16);
        self.stage = Stage::Waiting {
            at_ns: now_ns + random.jittered(doubled.min(REDIAL_NS_MAX)),
        };
        let is_trusted = self.is_pinned() || self.proven_ns.is_some();
        is_trusted || self.failures < rounds.saturating_mul(ROUNDS_MAX)
    }

    /// It cannot be dialled now, and that is not its fault.
    pub(crate) fn put_off(&mut self, now_ns: u64, random: &mut Random) {
        self.stage = Stage::Waiting {
            at_ns: now_ns + random.jittered(REDIAL_NS),
        };
    }

    /// Waits for it where it was.
    pub(crate) fn lose(&mut self, now_ns: u64) {
        self.stage = Stage::Lost {
            until_ns: now_ns + LOST_NS,
        };
        (self.introduce_ns, self.introductions) = (now_ns, 0);
    }
}
