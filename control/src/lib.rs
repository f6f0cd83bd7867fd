//! The control plane: who this node is, whom it talks to, and what may pass.
//!
//! - [`hex`], [`keys`]: the node's secrets and their files.
//! - [`config`]: the configuration file, checked as a whole and resolved.
#![deny(unsafe_code)]

pub mod config;
pub mod hex;
pub mod image;
pub mod keys;
pub mod nic;
