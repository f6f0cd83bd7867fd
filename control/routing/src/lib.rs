//! Routing: which neighbour leads to which destination, loop-free at every instant.
//!
//! A distance vector protocol with the feasibility condition of Babel (RFC 8966, 3.5.1), on the ordered and
//! authenticated streams that neighbours have between them anyway, so that there are no hellos, no
//! acknowledgements and no repeats here. No I/O and no clock: [`Router`] takes what happened and [`Now`], and
//! gives route changes and messages.
//!
//! - [`limits`]: every number.
//! - [`announcement`]: what a destination says of itself, signed by itself.
//! - [`message`]: what neighbours tell each other.
//! - [`cost`]: what a link costs, from its round-trip time and loss.
//! - [`scope`]: who hears of what where subnets are announced as one.
//! - [`table`]: what is known of a destination, and which neighbours may be used.
//! - [`router`]: all of it.
//!
//! **Why there are no loops.** Each node has, for each destination, a feasible distance: the best (sequence
//! number, metric) that it ever told anybody, a higher number before a lower metric. It sends packets to a
//! neighbour, be it the primary or the backup, only while (number, metric, node id) as that neighbour told it
//! is strictly better than its own feasible distance with its own id. So along every next hop of every node
//! the feasible distance gets strictly better, and no walk over primaries and backups, in whatever mixture,
//! comes back. Four things are asked of whoever drives a router: route changes are in the tables, and what
//! was cached by the old ones counts no more, before the
//! messages that were asked for after them are sent; a neighbour's stream that breaks is a neighbour that is
//! down; what is sent has arrived, or its stream broken, before [`limits::FORGET_NS`] is over; and a router that
//! has lost its memory is quiet ([`Setup::quiet_ns`]) until its neighbours know.
//!
//! **Why ways that get longer take none away.** By the same number a neighbour whose metric has risen above a
//! node's feasible distance leads there no more, for that node and for those behind it. So a router whose way got
//! longer, over whatever neighbour and to whatever gateway, asks for a newer number first, and tells what it told before until that has come, or
//! [`limits::RISE_HELD_NS`] is over. What it told before is no better than its feasible distance, and its next hop
//! is, so what is said above holds meanwhile.
//!
//! **Who is believed.** Only a destination makes its announcement and its sequence number: both are under its
//! own signature, so a router can invent neither. The metric changes at every hop and is nobody's to sign: a
//! member that lies about it draws packets to itself, and may drop them. It makes no loop among others.
//!
//! **What a subnet's route is.** A router says of a subnet as a whole which neighbours lead there. Tables that
//! go by the node are filled by whoever drives it, who knows which node is in which subnet
//! ([`Aggregation::follows`]): announcements and messages are few by that, such tables are not smaller.
#![deny(unsafe_code)]

pub mod allowance;
pub mod announcement;
mod ask;
pub mod cost;
mod hear;
mod keep;
pub mod limits;
pub mod message;
mod neighbour;
pub mod reason;
pub mod router;
pub mod scope;
pub mod table;
mod tell;

pub use announcement::{Announcement, Authority, Claim, Destination, Doubt, Speaker};
pub use cost::LinkCost;
pub use neighbour::Liveness;
pub use reason::Reason;
pub use router::{Now, RouteChange, RouteView, Router, Setup};
pub use scope::Aggregation;
pub use table::NextHops;
