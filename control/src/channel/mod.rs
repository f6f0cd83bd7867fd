//! Channels: who has subscribed to what, and every event to each of them.
//!
//! A [`ChannelService`] runs on each worker's thread, above that worker's sessions, without any input or
//! output of its own. In the order in which an event meets them:
//!
//! - [`publish`]: the sending side: one stream a (peer, channel), opened on demand, back-pressure.
//! - [`command`]: what other threads ask of it.
//! - [`report`]: what a publisher is told.
//! - [`tally`]: what becomes of a publish at each subscribing node, for publishers that ask.
//! - [`message`]: what nodes tell each other on the control stream: subscribe, acknowledge, hold.
//! - `offer`: one event for one subscribing node.
//! - `owed`: what goes to a node before that.
//! - [`tree`]: nodes that pass a publisher's events on to others, where they and the publisher are asked to.
//! - [`service`]: the worker's events, in their order.
//! - `inbound`: the receiving side.
//! - [`roster`]: whom it lets in: may this entity publish or subscribe here, and is the channel the one
//!   that is configured?
//! - [`subscribe`]: local subscribers, and the subscriptions that they need at other nodes.
//! - [`stall`]: local subscribers that do not keep up, and how long the others wait for them.
//! - `signed`: channels whose events come in batches, under their entity's signature.
//! - [`delivery`]: what a local subscriber gets, and how it says that it is slow.
//! - [`presence`]: which of the node's workers a batch has to go to.
//! - [`rights`]: tokens, where a channel requires them; what ends when they do.
//! - [`capabilities`]: what is said about this node's entity and about peers, by issuers and by themselves.
//! - `costs`: how often peers may ask, and how much they may have verified.
//! - [`explain`]: who may do what and why not, in words.
//! - [`publications`]: what nodes tell each other about who may publish, for forwarders.
//! - [`subnets`]: where this node and its peers are, as far as issuers vouch for it.
//! - `timed`: what is timed of one channel's events while somebody asks.
//! - `loss`: how much is lost on the links to neighbours.
//! - `trace`: what neighbours ask each other about the way of packets.
//! - `replicas`: what nodes tell each other about logs that are on several of them.
//! - `reading`: what they tell each other about reading logs.
//! - `tagging`: what neighbours say of the link tags between them.
//! - [`setup`]: what it begins with.
//! - [`follow`]: entities that move or have another key, and what becomes of their sessions.
//! - [`declared`]: channels that come, change and go by command.
//! - [`reason`]: every refusal and every drop, by name.
//!
//! A reliable channel loses nothing and keeps its order while a session lasts. When the session ends,
//! what was on its way to that subscriber is lost with it; what is published next comes in order again.

pub mod capabilities;
pub mod command;
mod costs;
pub mod declared;
pub mod delivery;
mod discovery;
pub mod entry;
pub mod explain;
pub mod follow;
mod inbound;
mod late;
mod loss;
pub mod message;
mod nat;
mod offer;
mod owed;
pub mod presence;
pub mod publications;
pub mod publish;
mod reading;
pub mod reason;
mod replicas;
pub mod report;
pub mod rights;
mod roster;
mod routing;
pub mod service;
pub mod setup;
mod signed;
pub mod stall;
pub mod status;
pub mod subnets;
pub mod subscribe;
mod tagging;
pub mod tally;
mod timed;
mod trace;
pub mod tree;

#[cfg(test)]
mod tests;

pub use command::Command;
pub(crate) use costs::Rated;
pub use delivery::{Delivery, Fill, Offer, Outlet, Signature, SubscriberId};
pub(crate) use late::{LateCount, LateEvents};
pub use loss::Lost;
pub use message::Pattern;
pub use presence::{Part, Presence};
pub use publish::Batch;
pub use report::{PublishError, PublishReport};
pub use routing::Measured;
pub use service::ChannelService;
pub use setup::Setup;
pub(crate) use signed::{event_bytes_max, events_of};
pub use subnets::Subnets;
pub use subscribe::SubscribeError;
pub use tally::{FanOut, Plan, Policy, Tally};
pub use timed::BatchTimes;
