//! What subnets tell each other of who may publish in them.
//!
//! A node holds the exact pairs (origin, channel) of its own subnet. Of every other subnet it holds what one of
//! that subnet's gateways has signed: a filter of the pairs that are admitted there ([`virga_ebpf::guard`]), and
//! the pairs that were withdrawn since. A packet to another subnet is judged by that one's filter at the first
//! node that forwards it, and by the exact pairs where it arrives. Which entity is a gateway of which subnet the
//! configuration says, `[[subnet_gateways]]`; where it names none, nothing of this is done.
//!
//! - [`statement`]: both signed objects.
//! - [`held`]: the newest of each gateway, and the tables that follow from them.
//! - [`signer`]: what a gateway says of its own subnet, and when.
//!
//! A gateway signs a filter at its start, when a pair is added, and again after a third of the filter's life;
//! what is taken back in between goes out as a list of exact pairs. The next filter ends it, but for pairs that this
//! or another gateway's filter lets through: they go on a list that is sent before it. A list counts with the filter
//! that it names or a later one; where that is missing the subnet is closed, and neighbours are asked. Every node
//! that names gateways passes what is new to it on to its neighbours, once; when a session begins and every so
//! often neighbours compare versions, and send what the other lacks. An older version never replaces a newer
//! one. Where there is no filter of a subnet, or its time is over, nothing but handshakes goes there.

pub mod held;
pub mod signer;
pub mod statement;

#[cfg(test)]
mod tests;

pub use held::{FilterStatus, Filters, FiltersStatus, Foreign, Now, Refused, Taken};
pub use signer::Signer;
pub use statement::{Said, Statement};

/// Gateways that a node can name.
pub const GATEWAYS_MAX: usize = 256;
/// A filter counts for so long at most.
pub const LIFE_S_MAX: u32 = 86_400;
/// And for so long at least.
pub const LIFE_S_MIN: u32 = 3;
/// Where the configuration does not say how long.
pub const LIFE_S_DEFAULT: u32 = 300;
