//! One configured channel: its policy, its remote subscribers, and what waits to be published.

use super::{
    delivery::SubscriberId,
    owed::Debt,
    presence::Part,
    publish::{Batch, Progress},
    tally::Pending,
    tree::{Branch, Feed, Tail},
};
use crate::{
    config::{ChannelConfig, Listed},
    rights::{Operation, Policy},
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use virga_ebpf::{
    header::{ChannelHash, NodeId, StreamId, Subnet},
    image::exports_of,
    subnet::{SubnetPrefix, Visibility, may_cross},
};
use virga_transport::{ChannelName, Mode, StreamSpec};

/// A channel's place in the service's table.
pub(crate) type Index = usize;

/// A node that gets this channel's events.
#[derive(Debug, Default)]
pub(crate) struct Remote {
    /// How many of its subscriptions mean this channel.
    pub(crate) patterns: usize,
    /// The stream to it, once the first event went out.
    pub(crate) stream: Option<StreamId>,
    /// It asked for a pause.
    pub(crate) held: bool,
    /// What it has not acknowledged of batches that are tallied.
    pub(crate) pending: Pending,
    /// The number of the first event of this node that it took: none before that is meant for it.
    pub(crate) first: Option<u64>,
    /// By whom it gets the events of this node.
    pub(crate) branch: Branch,
    /// What nobody brought it: goes first, on its stream.
    pub(crate) owed: Debt,
    /// The publishers whose events it gets by this node.
    pub(crate) feeds: BTreeMap<NodeId, Feed>,
}

/// What was counted on one channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelCounters {
    /// Events that this node published.
    pub published: u64,
    /// Events handed to remote subscribers' streams.
    pub sent: u64,
    /// Events handed to other nodes for the publisher, in a fan-out tree.
    pub relayed: u64,
    /// Events that arrived from other nodes.
    pub received: u64,
    /// Events handed to local subscribers.
    pub delivered: u64,
    /// Events that were not, whatever the reason.
    pub dropped: u64,
    /// Times that a publisher had to wait.
    pub publishes_blocked: u64,
}

/// Whom a channel's list names, for quick look-up.
pub(crate) enum Members {
    /// There is no list: tokens and capabilities alone decide.
    Anyone,
    Only(BTreeSet<[u8; 32]>),
}

impl Members {
    pub(crate) fn of(listed: &Listed) -> Self {
        match listed {
            Listed::Anyone => Self::Anyone,
            Listed::Only(entities) => Self::Only(entities.iter().map(|e| e.key).collect()),
        }
    }

    pub(crate) fn contains(&self, key: &[u8; 32]) -> bool {
        match self {
            Self::Anyone => true,
            Self::Only(keys) => keys.contains(key),
        }
    }
}

/// One channel.
pub(crate) struct Entry {
    /// What it was made of; none once the channel is removed, and only its place is left.
    pub(crate) config: Option<ChannelConfig>,
    pub(crate) spec: StreamSpec,
    pub(crate) hash: ChannelHash,
    /// How long a local subscriber that does not read may hold it up; none where it waits for nobody.
    pub(crate) hold_max_ns: Option<u64>,
    pub(crate) publishers: Members,
    pub(crate) subscribers: Members,
    /// What is asked beside a place in the lists.
    pub(crate) policy: Policy,
    /// How far it goes among subnets, and where to if it is exported.
    pub(crate) visibility: Visibility,
    pub(crate) exports: BTreeSet<SubnetPrefix>,
    /// Remote subscribers.
    pub(crate) roster: BTreeMap<NodeId, Remote>,
    /// Local subscribers.
    pub(crate) local: BTreeSet<SubscriberId>,
    /// Publishers that were asked to pause because a local subscriber is slow.
    pub(crate) holding: BTreeSet<NodeId>,
    /// What publishers on this node wait for.
    pub(crate) waiting: VecDeque<Batch>,
    /// How far the first event of the first batch is.
    pub(crate) progress: Progress,
    pub(crate) counters: ChannelCounters,
    /// Nodes that this one serves itself, and nodes that it passes the events of others on to; 0: all, and none.
    pub(crate) fan_out: usize,
    /// What is kept for nodes that others bring it.
    pub(crate) tail: Tail,
    /// Until then all are served by this node itself: its events have no time for others.
    pub(crate) direct_until_ns: u64,
    /// Events published, as local subscribers count them.
    pub(crate) sequence: u64,
}

impl Entry {
    pub(crate) fn new(config: &ChannelConfig) -> Self {
        Self {
            config: Some(config.clone()),
            spec: StreamSpec {
                name: config.name.clone(),
                salt: config.salt,
                priority: config.priority,
                mode: config.mode,
            },
            hash: config.hash,
            hold_max_ns: config
                .mode
                .is_reliable()
                .then(|| u64::from(config.hold_max_s) * 1_000_000_000),
            publishers: Members::of(&config.publish),
            subscribers: Members::of(&config.subscribe),
            policy: Policy::of(config),
            visibility: config.visibility,
            exports: config.export_to.clone(),
            roster: BTreeMap::new(),
            local: BTreeSet::new(),
            holding: BTreeSet::new(),
            waiting: VecDeque::new(),
            progress: Progress::default(),
            counters: ChannelCounters::default(),
            fan_out: match config.mode {
                Mode::Signed => config.fan_out.into(),
                _ => 0,
            },
            tail: Tail::default(),
            direct_until_ns: 0,
            sequence: 0,
        }
    }

    /// Has other keys in its place: who may what here, and nothing else.
    pub(crate) fn set_members(&mut self, config: &ChannelConfig) {
        self.publishers = Members::of(&config.publish);
        self.subscribers = Members::of(&config.subscribe);
        self.policy = Policy::of(config);
        self.config = Some(config.clone());
    }

    /// The channel is removed: nobody may do anything there any more.
    pub(crate) fn retire(&mut self) {
        self.config = None;
        self.publishers = Members::Only(BTreeSet::new());
        self.subscribers = Members::Only(BTreeSet::new());
        self.local.clear();
        self.fan_out = 0;
        self.tail = Tail::default();
    }

    /// Whether only its place is left.
    pub(crate) const fn is_retired(&self) -> bool {
        self.config.is_none()
    }

    /// Whether the list of an operation does not keep an entity out.
    pub(crate) fn lists(&self, entity: &[u8; 32], operation: Operation) -> bool {
        match operation {
            Operation::Publish => self.publishers.contains(entity),
            Operation::Subscribe => self.subscribers.contains(entity),
            Operation::Admin | Operation::Delegate => false,
        }
    }

    /// Whether its packets go from one subnet to another, as every gateway decides.
    pub(crate) fn crosses(&self, from: Subnet, to: Subnet) -> bool {
        let exports = exports_of(&self.exports);
        may_cross(self.hash, self.visibility, || Some(&exports), from, to)
    }

    /// Subscribers that a part of a batch goes to.
    pub(crate) fn subscribers_of(&self, part: Part) -> usize {
        let here = if part.is_local { self.local.len() } else { 0 };
        self.roster.len() + here
    }

    pub(crate) const fn name(&self) -> &ChannelName {
        &self.spec.name
    }
}
