//! What the service shows to people.

use super::{delivery::Outlet, message::Answer, service::ChannelService};
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
    /// Whether this node's entity may publish on it.
    pub may_publish: bool,
    /// Whether this node's entity may subscribe to it.
    pub may_subscribe: bool,
    /// Nodes on the roster.
    pub remote_subscribers: usize,
    /// Nodes on the roster that asked for a pause.
    pub remote_holding: usize,
    /// Subscribers on this node.
    pub local_subscribers: usize,
    /// Batches that wait for room.
    pub batches_waiting: usize,
    /// Events that this node published.
    pub published: u64,
    /// Events handed to remote subscribers' streams.
    pub sent: u64,
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
    /// `connecting`, `asked`, `granted`, or why it was refused.
    pub state: String,
    /// Channels that were granted.
    pub granted: u32,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Every configured channel.
    pub channels: Vec<ChannelStatus>,
    /// Subscriptions at other nodes.
    pub subscriptions: Vec<SubscriptionStatus>,
    /// Refusals and drops, by reason.
    pub reasons: BTreeMap<String, u64>,
}

impl<O: Outlet> ChannelService<O> {
    /// A snapshot.
    #[must_use]
    pub fn status(&self) -> ServiceStatus {
        let channels = self.entries.iter().map(|entry| ChannelStatus {
            name: entry.name().to_string(),
            salt: entry.spec.salt,
            hash: entry.hash.to_string(),
            priority: entry.spec.priority,
            reliable: entry.spec.reliable,
            may_publish: entry.publishers.contains(&self.entity),
            may_subscribe: entry.subscribers.contains(&self.entity),
            remote_subscribers: entry.roster.len(),
            remote_holding: entry.roster.values().filter(|r| r.held).count(),
            local_subscribers: entry.local.len(),
            batches_waiting: entry.waiting.len(),
            published: entry.counters.published,
            sent: entry.counters.sent,
            received: entry.counters.received,
            delivered: entry.counters.delivered,
            dropped: entry.counters.dropped,
            publishes_blocked: entry.counters.publishes_blocked,
        });
        let reasons = self.reasons.iter();
        ServiceStatus {
            channels: channels.collect(),
            subscriptions: self.subscriptions(),
            reasons: reasons.map(|(r, n)| (r.name().to_owned(), n)).collect(),
        }
    }

    fn subscriptions(&self) -> Vec<SubscriptionStatus> {
        let mut all = Vec::new();
        for (pattern, wanted) in &self.wanted {
            for (peer, asked) in &wanted.asked {
                let state = match asked.answer {
                    Some(answer) => answer.name(),
                    None if self.sessions.contains_key(peer) => "asked",
                    None => "connecting",
                };
                all.push(SubscriptionStatus {
                    kind: pattern.kind().to_owned(),
                    name: pattern.name().to_string(),
                    peer: peer.to_string(),
                    state: state.to_owned(),
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
