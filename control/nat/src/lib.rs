//! NAT traversal: how two nodes whose packets a router relays come to send to each other straight.
//!
//! No I/O and no clock: [`Nat`] takes what is seen of sessions, what peers say in them, and the time; it gives
//! messages for sessions, addresses to be asked by a path challenge inside the session with a peer, and whom to
//! send to straight from now on.
//!
//! - [`limits`]: every number.
//! - [`wire`]: what nodes tell each other in their sessions.
//! - [`class`]: what NAT this node is behind, by what others see of its address.
//! - [`reason`]: what was said and not followed.
//! - [`nat`]: all of it; `meeting` is one try to reach one peer.
//!
//! **The way.** Two nodes have a session, over routers: that is the relay, and it always works. Each neighbour tells
//! a node at which address it sees it. The one of the two with the lower node id asks its neighbours, one after the
//! other, for a meeting; one that has sessions with both as neighbours tells each of them at the same time where it sees
//! the other. Both then ask the other for an answer from there, a few times and further and further apart: each packet
//! opens its own NAT for the other's. Who hears the peer from another address than it was told asks there, and where it has
//! heard it before, for a NAT may give out the same port again. Once both have
//! told each other that they had an answer, each sends straight; one that cannot, since another node is at the peer's IP
//! address and packets would not tell which of them they are from, says no instead. The session is the same all the while,
//! and whoever drives this keeps the relay as the way until the link is heard, and for when it is silent.
//!
//! **Who can.** With names of RFC 4787: where both NATs map one inner address to one outer address, whatever the
//! destination (a cone), always. Where one maps for each destination anew (symmetric), if the other's NAT takes packets
//! from other ports of an address that it has sent to. Where both do: it is not tried, for that would be guessing ports; unless
//! the router of one of them passes on to it all that comes to one port ([`Nat::set_mapped`]): neighbours are told of that
//! address, and have it asked beside the one where they see the node. A peer that waits to ask for the next meeting is told
//! of a new one as well, and asks at once.
//!
//! **Whom it can be turned against.** Addresses come from neighbours that the configuration or discovery names, in proven
//! sessions, and each is one that the neighbour itself has had packets of that node's session from; and from packets of the
//! peer itself, while it is asked or before. The port alone is the node's own word where its router maps one: the IP address has
//! to be the one where the neighbour sees it. One that was punched through to says nothing of others. A neighbour that lies, or a peer
//! that sends from a false address, makes a node send [`limits::PROBES_MAX`] packets of some 120 bytes a try, for a peer
//! that the node wants to reach anyway, and all together [`limits::PROBES_BURST`] of them and one more each
//! [`limits::PROBES_PAUSE_NS`]; nothing of what comes back goes anywhere. A neighbour that has many members meet can occupy
//! the [`limits::MEETINGS_MAX`] tries that a node has at a time: others are told no until those end. A peer that is relayed
//! can have this node try it sooner, once each [`limits::HINTS_PAUSE_NS`] and where its neighbours see it. Strangers can say
//! nothing.
#![deny(unsafe_code)]

pub mod class;
pub mod limits;
pub mod nat;
pub mod reason;
pub mod wire;

pub use class::{Class, Evidence, Filtering, Mapping};
pub use nat::{Act, Nat, Relation, Setup, Sight, Way};
pub use reason::Reason;
