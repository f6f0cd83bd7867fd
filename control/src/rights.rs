//! Rights that are signed: who may do what on which channel, said by whom, until when.
//!
//! - [`signed`]: the one encoding of everything that is signed and passed on.
//! - [`scope`]: what a right is for: a channel or a subtree, and the operations on it.
//! - [`token`]: one signed link: an issuer, or a holder who may delegate, gives a right to a subject.
//! - [`chain`]: links from an issuer to the holder, each of which can only narrow the one before it.
//! - [`revocation`]: an issuer takes back single links, all of a subject, or all of a generation.
//! - [`declaration`]: a channel that was made by command, as its owner signed it.
//! - [`catalogue`]: every channel that a node knows of, and which of them hold.
//! - [`identity`]: where an entity lives, and which key follows another.
//! - [`policy`]: the one question that is asked of all of it: may this entity do that here, now?
//! - [`file`]: how tokens and revocation lists look as files.
//!
//! Nothing here reads a clock, a socket or a file but [`file`]: the time is an argument.

pub mod catalogue;
pub mod chain;
pub mod declaration;
pub mod file;
pub mod identity;
pub mod policy;
pub mod revocation;
pub mod scope;
pub mod signed;
pub mod token;

#[cfg(test)]
mod tests;

pub use catalogue::Catalogue;
pub use chain::{Authentic, Chain, Fault, Question, Refusal};
pub use declaration::Declaration;
pub use policy::{Evidence, Policy};
pub use revocation::{List, Revocations};
pub use scope::{Levels, Operation, Operations, Reach, Scope};
pub use token::{Grant, Link, LinkId};
