//! What a publisher is told of its batch.

use crate::rights::Refusal;
use thiserror::Error;
use virga_transport::ChannelName;

/// Why nothing of a batch was published.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PublishError {
    /// Not in the configuration.
    #[error("channel {0} is not configured on this node: add a [[channels]] block for it")]
    UnknownChannel(ChannelName),
    /// This node's entity is not in the channel's `publish` list.
    #[error("this node's entity may not publish on {0}: add it to the channel's `publish` list")]
    NotAuthorised(ChannelName),
    /// The channel requires a token, and this node has none that gives the right.
    #[error(
        "this node's entity may not publish on {0}: {1}; {fix}", fix = .1.fix()
    )]
    Token(ChannelName, Refusal),
    /// Fewer nodes have subscribed than it shall arrive at.
    #[error("nothing was published: {1} nodes have subscribed to {0}, and it was to arrive at {2}")]
    Quorum(ChannelName, usize, usize),
    /// The channel's events are signed, and these could not be.
    #[error("what is published on {0} is signed, and that failed: {1}")]
    Unsigned(ChannelName, String),
    /// The channel's log is on several nodes, and none of the events is in it.
    #[error("nothing was published on {0}: the replicas of its log did not take it: {1}")]
    NotKept(ChannelName, String),
    /// The same, and nobody knows whether they are.
    #[error("it is not known whether what was to be published on {0} is in its log: {1}")]
    Unconfirmed(ChannelName, String),
    /// The node speaks for no entity.
    #[error("this node may not publish: {0}")]
    Absent(String),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Stopping,
}

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishReport {
    /// Events that were offered to every subscriber there was (perhaps none).
    pub published: u64,
    /// Of those, times that one did not get to one subscriber: its session ended, or (unreliable) it
    /// had no room.
    pub lost: u64,
    /// Events that went to nobody, because their deadline passed while they waited for subscribers.
    pub expired: u64,
    /// Events larger than the channel carries.
    pub refused: u64,
    /// Published events that went to nobody: there was no subscriber.
    pub unheard: u64,
    /// Subscribers, programs on this node and other nodes, that took the last event; where none was
    /// published, those that there are.
    pub subscribers: usize,
    /// Bytes of the largest event that the channel carries.
    pub event_bytes_max: usize,
}

impl PublishReport {
    /// What became of a batch of which another worker had a part.
    #[must_use]
    pub fn with(self, other: &Self) -> Self {
        Self {
            published: self.published.max(other.published),
            // What expired at one worker and not at the other was lost on the way to its subscribers.
            lost: self.lost + other.lost + self.expired.abs_diff(other.expired),
            expired: self.expired.min(other.expired),
            refused: self.refused.max(other.refused),
            unheard: self.unheard.min(other.unheard),
            subscribers: self.subscribers + other.subscribers,
            event_bytes_max: self.event_bytes_max.max(other.event_bytes_max),
        }
    }
}
