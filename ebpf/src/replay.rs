//! A frame to be made anew before every run of a measured program, see `virga_replay` in `src/traffic.rs`.

use crate::{
    frame::{ETHERNET_BYTES, IPV4_BYTES, UDP_BYTES},
    limits::HEADER_BYTES,
    tag::TagKey,
};

/// Where an untagged IPv4 frame's mesh header starts.
pub const MESH: usize = ETHERNET_BYTES + IPV4_BYTES + UDP_BYTES;
/// Bytes of the frame that are written anew: all outer headers and the mesh header of an untagged
/// IPv4 packet, in whole words.
pub const FRAME_BYTES: usize = 112;

/// The one value of the `replay` map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Replay {
    /// The frame's first bytes, in memory order.
    pub frame: [u64; FRAME_BYTES / 8],
    /// Sequence of the latest frame; counted up before each.
    pub sequence: u64,
    /// Destination of the frame, where `destination_mask` is 0.
    pub destination: u64,
    /// These bits of the sequence are added to the destination.
    pub destination_mask: u64,
    /// 1 if the frame has a link tag.
    pub tagged: u64,
    /// Key of that, and parity 0.
    pub tag_key: TagKey,
}

const _: () = assert!(FRAME_BYTES >= MESH + HEADER_BYTES && FRAME_BYTES.is_multiple_of(8));
const _: () = assert!(size_of::<Replay>() == FRAME_BYTES + 48);
