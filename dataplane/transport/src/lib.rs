//! Encrypted bytes between nodes.
//!
//! [`Node`] is the protocol without any input or output: five verbs (`handle`, `poll_transmit`,
//! `poll_timeout`, `handle_timeout`, `poll`), with the time as an argument. In the order in which a
//! datagram meets them:
//!
//! - [`node`]: checks the header, finds the session, or answers a handshake.
//! - `handshake`: Noise NKpsk0, IKpsk1 or XXpsk3 as [`policy`] says, checked by a keyed tag first; `cookie`
//!   asks for proof of address under load, `proof` for the entity's signature once packets are sealed, and
//!   `hybrid` mixes ML-KEM-768 in.
//! - `session`: replay check, open in place, mark (`replay`, `keys`); then [`frame`] by frame.
//! - `schedule`: whose turn it is to send; `stream`: bytes put in order and cut into messages;
//!   `recovery`: what was lost goes again; `path`: round trip, congestion control, pacing, packet size.
//! - `link`: whether the link to a neighbour carries packets.
//! - [`event`], [`config`], [`name`], [`reason`]: the words of its interface.
//! - [`times`]: histograms of how long things take; [`flow`]: how long one channel's messages take, while somebody asks.
//! - [`forward`]: forwarding in user space, by the NIC path's own decision.
//! - [`share`]: which worker a peer and its datagrams belong to.
//! - [`worker`]: the thread that owns all of it; [`io`]: the system's clock, sockets and waiting.
//! - `sim` (a feature): a network that is not there, for tests and measurements, a driver on it and workers that are
//!   given their turns; and a node seals what it is told to.
//! - [`limits`]: every number, with its invariant.
#![deny(unsafe_code)]

mod classes;
mod close;
pub mod config;
mod cookie;
pub mod event;
pub mod flow;
pub mod forward;
pub mod frame;
mod handshake;
mod hybrid;
#[allow(clippy::disallowed_methods)] // the one place that touches clock, sockets and files
pub mod io;
pub mod keys;
pub mod limits;
mod link;
pub mod name;
pub mod node;
mod path;
pub mod policy;
mod proof;
mod random;
mod ranges;
pub mod reason;
mod received;
mod recovery;
mod replay;
mod schedule;
mod session;
pub mod share;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod skipped;
mod stream;
pub mod tap;
pub mod times;
pub mod worker;

pub use classes::{ClassCounters, ClassTimes};
pub use config::{ConfigError, Congestion, NodeConfig, NodeLimits, PeerConfig};
pub use event::{
    Answers, CloseReason, ConnectError, Event, Fate, Handled, Heard, LinkState, LinkStatus, Mode,
    OpenError, PathStatus, Payload, Receipt, SendError, SessionState, SessionStatus, StreamSpec,
    Taken, Toward, Transmit, Watch,
};
pub use handshake::INTRODUCTION_BYTES_MAX;
pub use name::{ChannelName, NameError};
pub use node::Node;
pub use policy::{Conflict, HandshakePolicy, Pattern, PeerKey, Pq};
pub use reason::{DropReason, NodeCounters};
pub use share::Share;

#[cfg(test)]
mod tests;
