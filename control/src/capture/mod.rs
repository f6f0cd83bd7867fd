//! Packets that a node decides upon, while somebody asks: from the NIC path and from the workers, by one interface.
//!
//! - [`asked`]: which packets, and how many.
//! - [`line`]: what is told of each.
//! - [`headers`]: how much of a frame that may be, when nobody asked for payload.
//! - [`run`]: the daemon's side: it turns samples on, renews them, and turns them off when the asker is gone.
//! - [`pcapng`]: what is told, as a file for Wireshark.
//! - [`origins`]: what is told, summed up by origin.

pub mod asked;
pub mod headers;
pub mod line;
pub mod origins;
pub mod pcapng;
pub mod run;
