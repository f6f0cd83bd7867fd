//! What an entity is and has: tags such as `hardware.gpu`, and values such as `software.cuda=12.4`.
//!
//! - [`value`]: keys and values, and how values compare.
//! - [`filter`]: the words in which a channel says what it asks for.
//! - [`statement`]: signed words about an entity, by an issuer or by itself.
//!
//! Nothing here reads a clock, a socket or a file: the time is an argument.

pub mod filter;
pub mod statement;
pub mod value;

#[cfg(test)]
mod tests;

pub use filter::{Filter, FilterError};
pub use statement::{Statement, Statements};
pub use value::{Capabilities, Capability, Key, Value};
