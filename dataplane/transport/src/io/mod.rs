//! All that touches the operating system: the clock, the UDP socket, waking and waiting.
//!
//! Everything else in this crate takes the time and the bytes as arguments.

pub mod clock;
pub mod udp;
pub mod wake;
