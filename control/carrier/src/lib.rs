//! Mesh datagrams over TCP and WebSocket, for networks that block UDP. In the order in which a connection meets them:
//!
//! - [`target`]: where a peer is dialled, as the configuration writes it; [`dial`] does it, with [`tls`] for `wss`.
//! - [`listen`]: takes connections, so many at once and from one source, and gives each a bounded time.
//! - [`hello`]: both ends prove their node keys and the network's PSK over fresh numbers, before any packet passes.
//! - [`wire`]: one mesh datagram after the other, unchanged, as frames.
//! - [`relay`]: passes them between the connection and the node's own UDP port, through a socket on loopback.
//! - [`choice`]: when a peer is dialled, and when UDP is tried and taken again; without any I/O.
//! - [`counters`]: every reason for which something is dropped. [`limits`]: every number.
//!
//! Why a socket on loopback, and no driver of the workers': a session sees just another address of its peer, whose
//! changes it survives already, so nothing of the packet path knows of carriers and nothing of it is slower. What a
//! carried packet costs beside is a pass through the loopback device; TCP's own work is more.
//!
//! No open relay: what comes over a connection goes to this node's UDP port and nowhere else, and only after the other
//! end has proven to be one of the configured neighbours. There it is judged as any packet of that neighbour's is.

pub mod choice;
pub mod counters;
pub mod dial;
pub mod hello;
pub mod limits;
pub mod listen;
pub mod relay;
pub mod target;
pub mod tls;
pub mod wire;

pub use choice::Choice;
pub use counters::{Counters, Reason};
pub use hello::Keyring;
pub use target::{Kind, Target};
