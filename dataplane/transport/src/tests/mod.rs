//! Nodes against each other: the protocol as its users see it.

mod batches;
mod bounds;
mod classes;
mod crossing;
mod delivery;
mod endings;
mod fuzzed;
mod hostile;
mod introductions;
mod links;
mod lives;
mod outsiders;
mod paths;
mod patterns;
mod peers;
mod reasons;
mod sessions;
pub(crate) mod sim;
mod sizes;
