//! Packets with mesh headers, for tests, demonstrations and measurements. Payloads are not sealed: no end
//! node opens them, forwarders cannot tell.
//!
//! - [`socket`]: through a UDP socket, at moderate rates; also broken packets.
//! - [`plan`]: what is sent otherwise: frames with all their headers, sizes, flows, strangers.
//! - [`live`]: those frames from inside the kernel, at the highest rate the machine gives, and the sink
//!   that measures what arrives.
//! - [`xsk`]: those frames through AF_XDP sockets, where they cannot come from inside the kernel.
//! - [`pcap`]: frames in files; [`profile`]: those files for other generators.

pub mod live;
pub mod pcap;
pub mod plan;
pub mod profile;
pub mod socket;
pub mod xsk;
