//! Who may publish where, as far as tokens and issuers' statements say it: what forwarders have to know.
//!
//! Both are evidence that anyone can check and pass on. Each node holds all tokens that give a right to publish on a
//! channel that requires one, and all statements that count where a channel asks its publishers for capabilities. In
//! the order in which they meet it:
//!
//! - [`inbox`]: what peers sent, each peer's in a bounded queue of its own.
//! - [`wire`]: what nodes tell each other: new evidence, what they have, and that they have it.
//! - [`store`]: what was verified, and the exact pairs (entity, channel) that follow from it now.
//!
//! A node passes what is new to it on to its neighbours, once. Every so often, and when a
//! session begins, neighbours compare what they have ([`wire::Digest`]) and send what the other lacks: so
//! they agree again after any partition. What has been revoked or has expired goes, with its pairs.

pub mod inbox;
pub mod store;
pub mod wire;

#[cfg(test)]
mod tests;

pub use inbox::Inbox;
pub use store::{EvidenceId, Kind, Store};
pub use wire::{Piece, Publication, Verdict};
