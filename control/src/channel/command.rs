//! What other threads ask of a worker's service.

use super::{
    delivery::SubscriberId, late::LateEvents, message::Pattern, publish::Batch, subscribe::Done,
};
use crate::{reading::Said, replicas::wire::Part};
use std::sync::Arc;
use virga_ebpf::header::NodeId;
use virga_transport::ChannelName;

/// See the module.
pub enum Command<O> {
    /// Publish a batch on a channel.
    Publish {
        /// Full name.
        channel: ChannelName,
        /// The events, and whom to tell.
        batch: Batch,
    },
    /// Count the events that no worker got before their publishers' deadline.
    Late(Arc<LateEvents>),
    /// Be given the events of one or many channels.
    Subscribe {
        /// What the subscriber is called: the same at all workers of this node.
        id: SubscriberId,
        /// Which ones.
        pattern: Pattern,
        /// Where they go.
        outlet: O,
        /// Whom to tell.
        done: Done,
    },
    /// After [`super::Offer::TakenSlow`]: there is room again.
    Drained(SubscriberId),
    /// Unreliable events of which another worker is through with its part wait no more.
    Hurry,
    /// Say something to a peer about a log that is on several nodes.
    Replicate {
        /// Whom.
        peer: NodeId,
        /// What.
        parts: Vec<Part>,
    },
    /// Say something to a peer about reading a log.
    Read(Said),
    /// Have a session with a peer, one time more.
    Reach(NodeId),
    /// One time less.
    Leave(NodeId),
    /// No more events.
    Unsubscribe(SubscriberId),
}
