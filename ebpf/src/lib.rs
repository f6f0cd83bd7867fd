//! What a Virga packet's header says, and whether it may pass.
//!
//! The same source is compiled into the NIC (`src/main.rs`, an XDP program) and into user space
//! (the forwarder of hosts without XDP, and the end nodes). In the order in which a packet meets it:
//!
//! - [`header`]: the 64 bytes that every mesh packet starts with.
//! - [`hash`]: the keyed hashes that the header's names are.
//! - [`limits`]: every number, with its invariant.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

#[cfg(not(target_arch = "bpf"))]
pub mod hash;
pub mod header;
pub mod limits;
