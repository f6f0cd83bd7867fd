//! A frame to be made anew before every run of a measured program, see `virga_replay` in `src/traffic.rs`.

use crate::{
    frame::{ETHERNET_BYTES, IPV4_BYTES, IPV6_BYTES, UDP_BYTES, VLAN_TAG_BYTES},
    header::offset,
    limits::HEADER_BYTES,
    tag::TagKey,
};

/// Where an untagged IPv4 frame's mesh header starts.
pub const MESH: usize = ETHERNET_BYTES + IPV4_BYTES + UDP_BYTES;
/// The same behind a VLAN tag.
pub const MESH_TAGGED: usize = MESH + VLAN_TAG_BYTES;
/// The same of an untagged IPv6 frame.
pub const MESH_IPV6: usize = ETHERNET_BYTES + IPV6_BYTES + UDP_BYTES;
/// Bytes of the frame that are written anew, in whole words: all that a forwarder changes, and all headers of an untagged IPv4
/// packet.
pub const FRAME_BYTES: usize = 112;
/// What the origin is mixed with, times the bits of the sequence that vary it: one far from the last.
pub const ORIGIN_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

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
    /// These bits of the sequence are written; none makes every frame a duplicate.
    pub sequence_mask: u64,
    /// Origin of the frame, where `origin_mask` is 0.
    pub origin: u64,
    /// These bits of the sequence, times [`ORIGIN_STEP`], are mixed into the origin.
    pub origin_mask: u64,
    /// Where the mesh header starts: [`MESH`], [`MESH_TAGGED`] or [`MESH_IPV6`].
    pub mesh: u64,
    /// 1 if the frame, an untagged one of IPv4, has a link tag.
    pub tagged: u64,
    /// Key of that, and parity 0.
    pub tag_key: TagKey,
}

const _: () = assert!(FRAME_BYTES >= MESH + HEADER_BYTES && FRAME_BYTES.is_multiple_of(8));
// The hop limit and count are within what is written anew.
const _: () = assert!(FRAME_BYTES >= MESH_IPV6 + offset::SEQUENCE);
const _: () = assert!(size_of::<Replay>() == FRAME_BYTES + 80);
