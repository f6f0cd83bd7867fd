//! Nodes against each other: the protocol as its users see it.

mod delivery;
mod sessions;
pub(crate) mod sim;
