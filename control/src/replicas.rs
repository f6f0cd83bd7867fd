//! Logs that are on several nodes: who holds which, and what nodes tell each other about them.
//!
//! The replicas themselves ([`virga_state::replica`]) are on the thread that owns the logs; workers bring what peers
//! say to them, and take what they say. Whoever publishes on such a channel submits its events to the replica that leads
//! and waits for the answer, before anybody is given them.
//!
//! - [`wire`]: what is said, in parts.

pub mod wire;

use crate::config::{Config, ReplicaNode};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{Notify, oneshot};
use virga_ebpf::header::NodeId;
use virga_state::replica::{Acks, group_hash};
use virga_transport::ChannelName;
use wire::{Answer, MESSAGE_BYTES_MAX, Part};

/// Bytes of one peer that wait for the logs' thread.
const PEER_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX;
/// Bytes of all peers that wait for it.
const ALL_BYTES_MAX: usize = 32 << 20;

const _: () = assert!(PEER_BYTES_MAX <= ALL_BYTES_MAX);

/// One log's nodes.
#[derive(Clone, Debug)]
pub struct Group {
    /// Where it is.
    pub nodes: Vec<ReplicaNode>,
    /// By which nodes see whether they mean the same ones.
    pub hash: u64,
    /// What publishers on this node wait for.
    pub acks: Acks,
    /// Whether this node is one of them.
    pub is_member: bool,
}

impl Group {
    /// Whether a node is one of them.
    #[must_use]
    pub fn has(&self, node: NodeId) -> bool {
        self.nodes.iter().any(|replica| replica.node == node)
    }

    /// What the file calls one of them.
    #[must_use]
    pub fn name(&self, node: NodeId) -> String {
        let known = self.nodes.iter().find(|replica| replica.node == node);
        known.map_or_else(|| node.to_string(), |replica| replica.name.clone())
    }
}

/// What a peer said, on its way to the logs' thread.
#[derive(Debug)]
pub struct Heard {
    /// Who.
    pub peer: NodeId,
    /// The entity of its session.
    pub entity: [u8; 32],
    /// What.
    pub part: Part,
}

/// What became of something that was asked.
#[derive(Debug)]
pub enum Outcome {
    /// The replica says so.
    Answered(Answer),
    /// It was not sent: there is no session with the replica, or no room.
    Unsent,
    /// It was sent, and no answer will come.
    Lost,
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Replicas(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    own: NodeId,
    entity: [u8; 32],
    groups: BTreeMap<ChannelName, Group>,
    heard: Mutex<Waiting>,
    changed: Notify,
    asked: Mutex<BTreeMap<u64, Asked>>,
    last_number: AtomicU64,
    /// Who leads, as far as publishers here were told.
    leaders: Mutex<BTreeMap<ChannelName, NodeId>>,
}

impl Default for Replicas {
    /// No log is on several nodes.
    fn default() -> Self {
        Self(Arc::new(Shared::new(
            NodeId(0),
            [0; 32],
            BTreeMap::new(),
            0,
        )))
    }
}

impl Shared {
    fn new(
        own: NodeId,
        entity: [u8; 32],
        groups: BTreeMap<ChannelName, Group>,
        last_number: u64,
    ) -> Self {
        Self {
            own,
            entity,
            groups,
            heard: Mutex::default(),
            changed: Notify::new(),
            asked: Mutex::default(),
            last_number: AtomicU64::new(last_number),
            leaders: Mutex::default(),
        }
    }
}

#[derive(Debug, Default)]
struct Waiting {
    parts: VecDeque<Heard>,
    bytes: usize,
    of: BTreeMap<NodeId, usize>,
}

#[derive(Debug)]
struct Asked {
    channel: ChannelName,
    peer: NodeId,
    reply: oneshot::Sender<Outcome>,
}

/// A question that waits for its answer; dropping it is to wait no more.
#[derive(Debug)]
pub struct Question {
    replicas: Replicas,
    /// Comes back with the answer.
    pub number: u64,
    /// Where the outcome comes; it always does.
    pub outcome: oneshot::Receiver<Outcome>,
}

impl Drop for Question {
    fn drop(&mut self) {
        lock(&self.replicas.0.asked).remove(&self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Replicas {
    /// By a node's configuration; `first_number` is one that it has not used in an earlier life.
    #[must_use]
    pub fn new(config: &Config, first_number: u64) -> Self {
        let own = config.node.id;
        let groups = config.replicated.iter().map(|replicated| {
            let nodes: Vec<NodeId> = replicated.replicas.iter().map(|r| r.node).collect();
            let group = Group {
                hash: group_hash(&nodes),
                is_member: nodes.contains(&own),
                nodes: replicated.replicas.clone(),
                acks: replicated.acks,
            };
            (replicated.channel.clone(), group)
        });
        let (groups, entity) = (groups.collect(), config.keys.entity.public);
        Self(Arc::new(Shared::new(own, entity, groups, first_number)))
    }

    /// Of any node, for tests of what is above.
    #[cfg(test)]
    pub(crate) fn with(own: NodeId, groups: BTreeMap<ChannelName, Group>) -> Self {
        Self(Arc::new(Shared::new(own, [0; 32], groups, 0)))
    }

    /// This node.
    #[must_use]
    pub fn own(&self) -> NodeId {
        self.0.own
    }

    /// The nodes of a channel's log; none where it is not on several.
    #[must_use]
    pub fn group(&self, channel: &ChannelName) -> Option<&Group> {
        self.0.groups.get(channel)
    }

    /// A number for the next message.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.0.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Tells the logs' thread what a peer said; whether there was room.
    #[must_use]
    pub fn hear(&self, peer: NodeId, entity: [u8; 32], part: Part) -> bool {
        let mut heard = lock(&self.0.heard);
        let heard = &mut *heard;
        let bytes = size_of::<Heard>() + part.bytes.len();
        let of = heard.of.entry(peer).or_default();
        if *of + bytes > PEER_BYTES_MAX || heard.bytes + bytes > ALL_BYTES_MAX {
            return false;
        }
        *of += bytes;
        heard.bytes += bytes;
        heard.parts.push_back(Heard { peer, entity, part });
        self.0.changed.notify_one();
        true
    }

    /// The same for what this node says to itself.
    #[must_use]
    pub fn hear_own(&self, part: Part) -> bool {
        self.hear(self.0.own, self.0.entity, part)
    }

    /// Waits until something was heard.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// What was heard since the last time.
    #[must_use]
    pub fn take(&self) -> VecDeque<Heard> {
        std::mem::take(&mut *lock(&self.0.heard)).parts
    }

    /// Begins to wait for what a replica will answer.
    #[must_use]
    pub fn ask(&self, channel: &ChannelName, peer: NodeId) -> Question {
        let number = self.next_number();
        let (reply, outcome) = oneshot::channel();
        let asked = Asked {
            channel: channel.clone(),
            peer,
            reply,
        };
        lock(&self.0.asked).insert(number, asked);
        Question {
            replicas: self.clone(),
            number,
            outcome,
        }
    }

    /// A replica has answered; nobody may wait for it any more.
    pub fn answered(&self, peer: NodeId, number: u64, outcome: Outcome) {
        let mut asked = lock(&self.0.asked);
        if asked.get(&number).is_some_and(|asked| asked.peer == peer)
            && let Some(asked) = asked.remove(&number)
        {
            // Whoever asked may have given up meanwhile.
            let _given_up = asked.reply.send(outcome);
        }
    }

    /// Nothing more comes from a peer in this session.
    pub fn closed(&self, peer: NodeId) {
        self.lose(|asked| asked.peer == peer);
    }

    /// Another replica has begun to lead: who led before answers nothing any more.
    pub fn led_by(&self, channel: &ChannelName, leader: NodeId) {
        self.set_leader(channel, Some(leader));
        self.lose(|asked| asked.channel == *channel && asked.peer != leader);
    }

    fn lose(&self, is_lost: impl Fn(&Asked) -> bool) {
        let mut asked = lock(&self.0.asked);
        let lost = asked.iter().filter(|(_, asked)| is_lost(asked));
        for number in lost.map(|(&number, _)| number).collect::<Vec<_>>() {
            if let Some(asked) = asked.remove(&number) {
                // Whoever asked may have given up meanwhile.
                let _given_up = asked.reply.send(Outcome::Lost);
            }
        }
    }

    /// Who leads a channel's log, as far as is known.
    #[must_use]
    pub fn leader(&self, channel: &ChannelName) -> Option<NodeId> {
        lock(&self.0.leaders).get(channel).copied()
    }

    /// Has publishers begin with that one.
    pub fn set_leader(&self, channel: &ChannelName, leader: Option<NodeId>) {
        let mut leaders = lock(&self.0.leaders);
        match leader {
            Some(leader) => leaders.insert(channel.clone(), leader),
            None => leaders.remove(channel),
        };
    }

    /// The nodes that there is always a session with: replicas know of each other, and who publishes of them.
    pub fn kept_up(config: &Config) -> impl Iterator<Item = NodeId> + '_ {
        let entity = &config.keys.entity.public;
        let own = config.node.id;
        let publishes = |channel: &ChannelName| {
            let found = config.channels.iter().find(|c| c.name == *channel);
            found.is_some_and(|channel| channel.publish.contains(entity))
        };
        let concerns = move |one: &&crate::config::Replicated| {
            let is_member = one.replicas.iter().any(|replica| replica.node == own);
            // Who publishes on a declared channel is not in the file.
            is_member || one.is_by_command || publishes(&one.channel)
        };
        let needed = config.replicated.iter().filter(concerns);
        let nodes = needed.flat_map(|one| one.replicas.iter().map(|replica| replica.node));
        // A command's may be a peer's no more.
        let is_peer = |node: &NodeId| config.peers.iter().any(|peer| peer.id == *node);
        nodes.filter(move |node| *node != own && is_peer(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::Kind;

    fn name(text: &str) -> ChannelName {
        ChannelName::parse(text).unwrap()
    }

    #[test]
    fn a_peer_has_so_much_room_and_no_more() {
        let replicas = Replicas::default();
        let part = Part {
            kind: Kind::Between,
            channel: name("alarms"),
            number: 1,
            total: 1_000,
            at: 0,
            bytes: vec![0; 1_000],
        };
        let hear = |peer| replicas.hear(NodeId(peer), [0; 32], part.clone());
        let taken = (0..1_000_000).take_while(|_| hear(1)).count();
        assert!(taken * 1_000 < PEER_BYTES_MAX && taken * 1_500 > PEER_BYTES_MAX);
        assert!(hear(2));
        assert_eq!(replicas.take().len(), taken + 1);
        assert!(hear(1));
    }

    #[tokio::test]
    async fn who_asks_is_answered_once_by_the_one_that_was_asked() {
        let replicas = Replicas::default();
        let (alarms, others) = (name("alarms"), name("others"));
        let [one, two, three] = [1, 2, 3].map(NodeId);
        let mut asked = replicas.ask(&alarms, one);
        let kept = || Outcome::Answered(Answer::Kept);
        replicas.answered(two, asked.number, kept());
        assert!(asked.outcome.try_recv().is_err());
        replicas.answered(one, asked.number, kept());
        let outcome = asked.outcome.try_recv().unwrap();
        assert!(matches!(outcome, Outcome::Answered(Answer::Kept)));
        let mut lost = [
            replicas.ask(&alarms, one),
            replicas.ask(&others, one),
            replicas.ask(&others, two),
        ];
        replicas.led_by(&alarms, three);
        assert_eq!(replicas.leader(&alarms), Some(three));
        let is_lost = |asked: &mut Question| matches!(asked.outcome.try_recv(), Ok(Outcome::Lost));
        assert_eq!(lost.each_mut().map(is_lost), [true, false, false]);
        replicas.closed(one);
        assert_eq!(lost.each_mut().map(is_lost), [false, true, false]);
        drop(lost);
        assert!(lock(&replicas.0.asked).is_empty());
    }
}
