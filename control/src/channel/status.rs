//! What the service shows to people.

use super::{
    delivery::{Outlet, SubscriberId},
    message::Answer,
    service::ChannelService,
    subscribe::Local,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelStatus {
    /// Full name.
    pub name: String,
    /// Configured salt.
    pub salt: u32,
    /// What headers call it, in hex.
    pub hash: String,
    /// Class 0 to 6.
    pub priority: u8,
    /// Whether lost events travel again.
    pub reliable: bool,
    /// Whether they are delivered in the order in which they were published.
    pub ordered: bool,
    /// Whether this node's entity may publish on it.
    pub may_publish: bool,
    /// Whether this node's entity may subscribe to it.
    pub may_subscribe: bool,
    /// Nodes on the roster.
    pub remote_subscribers: usize,
    /// Nodes on the roster that asked for a pause.
    pub remote_holding: usize,
    /// Nodes on the roster that get its events by others: the latter, and whom each of them serves, in hex.
    #[serde(default)]
    pub relayed: BTreeMap<String, Vec<String>>,
    /// Nodes that this one passes events on to for their publishers.
    #[serde(default)]
    pub children: usize,
    /// Subscribers on this node.
    pub local_subscribers: usize,
    /// For how long a subscriber on this node that does not keep up has paused it; only reliable
    /// channels pause.
    pub paused_ms: Option<u64>,
    /// Batches that wait for room.
    pub batches_waiting: usize,
    /// Events that this node published.
    pub published: u64,
    /// Events handed to remote subscribers' streams.
    pub sent: u64,
    /// Events handed to other nodes for their publishers.
    #[serde(default)]
    pub relayed_events: u64,
    /// Events that arrived.
    pub received: u64,
    /// Events handed to local subscribers.
    pub delivered: u64,
    /// Events that were not.
    pub dropped: u64,
    /// Times that a publisher had to wait.
    pub publishes_blocked: u64,
}

/// A subscription of this node at another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriptionStatus {
    /// `channel` or `prefix`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The node that was asked, in hex.
    pub peer: String,
    /// Its name in the configuration.
    pub peer_name: String,
    /// `connecting`, `asked`, `granted`, or why it was refused.
    pub state: String,
    /// Channels that were granted.
    pub granted: u32,
    /// What the publisher says of its refusal beyond `state`, or nothing.
    #[serde(default)]
    pub words: String,
}

/// A program on this node that has subscribed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriberStatus {
    /// Counts this node's subscribers from its start.
    pub id: u64,
    /// `channel` or `prefix`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Bytes of events that it has not taken yet, what they cost beside their payload included.
    pub queued_bytes: usize,
    /// For how long its queue has been too full; reliable channels pause for it.
    pub slow_ms: Option<u64>,
    /// For how long it has taken nothing, while it is slow.
    pub unread_ms: Option<u64>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Every configured channel.
    pub channels: Vec<ChannelStatus>,
    /// Subscriptions at other nodes.
    pub subscriptions: Vec<SubscriptionStatus>,
    /// Subscribers on this node.
    pub subscribers: Vec<SubscriberStatus>,
    /// Refusals and drops, by reason.
    pub reasons: BTreeMap<String, u64>,
}

impl ChannelStatus {
    /// Adds what another worker's service sees of the same channel. All of them have all subscribers of
    /// this node; a batch waits at each that it went to.
    fn add(&mut self, other: &Self) {
        self.remote_subscribers += other.remote_subscribers;
        self.remote_holding += other.remote_holding;
        for (relay, children) in &other.relayed {
            let all = self.relayed.entry(relay.clone()).or_default();
            all.extend(children.iter().cloned());
        }
        self.children += other.children;
        self.relayed_events += other.relayed_events;
        self.local_subscribers = self.local_subscribers.max(other.local_subscribers);
        self.paused_ms = self.paused_ms.max(other.paused_ms);
        self.batches_waiting = self.batches_waiting.max(other.batches_waiting);
        self.published += other.published;
        self.sent += other.sent;
        self.received += other.received;
        self.delivered += other.delivered;
        self.dropped += other.dropped;
        self.publishes_blocked += other.publishes_blocked;
    }
}

impl ServiceStatus {
    /// What the services of all workers together are to the node; each has all its channels.
    #[must_use]
    pub fn of_node(services: Vec<Self>) -> Self {
        let mut services = services.into_iter();
        let mut all = services.next().unwrap_or_default();
        for other in services {
            for (channel, more) in all.channels.iter_mut().zip(&other.channels) {
                channel.add(more);
            }
            all.subscriptions.extend(other.subscriptions);
            for more in other.subscribers {
                match all.subscribers.iter_mut().find(|one| one.id == more.id) {
                    None => all.subscribers.push(more),
                    Some(one) => {
                        one.slow_ms = one.slow_ms.max(more.slow_ms);
                        one.unread_ms = one.unread_ms.max(more.unread_ms);
                    }
                }
            }
            for (reason, count) in other.reasons {
                *all.reasons.entry(reason).or_default() += count;
            }
        }
        all
    }
}

impl<O: Outlet> ChannelService<O> {
    /// A snapshot.
    #[must_use]
    pub fn status(&self, now_ns: u64) -> ServiceStatus {
        let since_ms = |since_ns: u64| now_ns.saturating_sub(since_ns) / 1_000_000;
        let channels = self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, e)| !e.is_retired());
        let channels = channels.map(|(index, entry)| ChannelStatus {
            name: entry.name().to_string(),
            salt: entry.spec.salt,
            hash: entry.hash.to_string(),
            priority: entry.spec.priority,
            reliable: entry.spec.mode.is_reliable(),
            ordered: entry.spec.mode.is_ordered(),
            may_publish: entry.publishers.contains(&self.entity),
            may_subscribe: entry.subscribers.contains(&self.entity),
            remote_subscribers: entry.roster.len(),
            remote_holding: entry.roster.values().filter(|r| r.held).count(),
            relayed: entry.relayed(),
            children: self.children(index),
            local_subscribers: entry.local.len(),
            paused_ms: self
                .slow_since_ns(index)
                .filter(|_| entry.spec.mode.is_reliable())
                .map(since_ms),
            batches_waiting: entry.waiting.len(),
            published: entry.counters.published,
            sent: entry.counters.sent,
            relayed_events: entry.counters.relayed,
            received: entry.counters.received,
            delivered: entry.counters.delivered,
            dropped: entry.counters.dropped,
            publishes_blocked: entry.counters.publishes_blocked,
        });
        let reasons = self.reasons.iter();
        ServiceStatus {
            channels: channels.collect(),
            subscriptions: self.subscriptions(),
            subscribers: self.subscribers(since_ms),
            reasons: reasons.map(|(r, n)| (r.name().to_owned(), n)).collect(),
        }
    }

    fn subscribers(&self, since_ms: impl Fn(u64) -> u64) -> Vec<SubscriberStatus> {
        let status = |(id, local): (&SubscriberId, &Local<O>)| SubscriberStatus {
            id: id.0,
            kind: local.pattern.kind().to_owned(),
            name: local.pattern.name().to_string(),
            queued_bytes: local.outlet.fill().queued_bytes,
            slow_ms: local.slow.map(|slow| since_ms(slow.since_ns)),
            unread_ms: local.slow.map(|slow| since_ms(slow.read_ns)),
        };
        self.subscribers.iter().map(status).collect()
    }

    /// Subscriptions at other nodes; who knows the names of peers adds them.
    #[must_use]
    pub fn subscriptions(&self) -> Vec<SubscriptionStatus> {
        let mut all = Vec::new();
        for (pattern, wanted) in &self.wanted {
            for (peer, asked) in &wanted.asked {
                let state = match &asked.answer {
                    Some(answer) => answer.name(),
                    None if self.sessions.contains_key(peer) => "asked",
                    None => "connecting",
                };
                all.push(SubscriptionStatus {
                    kind: pattern.kind().to_owned(),
                    name: pattern.name().to_string(),
                    peer: peer.to_string(),
                    peer_name: String::new(),
                    state: state.to_owned(),
                    words: match &asked.answer {
                        Some(Answer::Capability(words)) => words.clone(),
                        _ => String::new(),
                    },
                    granted: match asked.answer {
                        Some(Answer::Granted(channels)) => channels,
                        _ => 0,
                    },
                });
            }
        }
        all
    }
}
