//! The outer headers of a packet that is sent on.
//!
//! Nothing of the old outer headers is patched: link, IP and UDP headers are written whole for the
//! next hop, whatever family or tag the packet came with. The UDP checksum is updated from the old one
//! (RFC 1624, equation 3) over every field that changed; a result of 0 becomes 0xFFFF (RFC 768).

#![expect(
    clippy::cast_possible_truncation,
    reason = "sums are folded and lengths are at most the next hop's MTU, which is 16 bits"
)]

use crate::{
    frame::{
        ETHERNET_BYTES, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, IPV4_BYTES, IPV6_BYTES,
        Outside, UDP_BYTES, VLAN_TAG_BYTES,
    },
    header::{Fields, SessionId, offset},
    limits::{HEADER_BYTES, HOP_LIMIT_MAX, SOURCE_PORT_BASE, SOURCE_PORTS},
    tables::{NextHop, mix},
};

/// Hop limit of the outer IP packet.
const OUTER_HOP_LIMIT: u8 = 64;
const DONT_FRAGMENT: u8 = 0x40;

/// What any sum of less than 2^37 can be taken from: 0 to a ones' complement sum.
const MULTIPLE_OF_FFFF: u64 = 0xffff << 21;
/// Sum of an IPv4 header's words that never change: version and length, flags, hop limit and protocol.
#[cfg(not(target_arch = "bpf"))]
pub(crate) const IPV4_CONSTANTS_SUM: u64 =
    0x4500 + ((DONT_FRAGMENT as u64) << 8) + ((OUTER_HOP_LIMIT as u64) << 8) + PROTOCOL_UDP as u64;
const PROTOCOL_UDP: u8 = 17;

/// The hop limit and hop count in the header's first word.
const HOPS: u64 = 0xff << (8 * offset::HOP_LIMIT) | 0xff << (8 * offset::HOP_COUNT);

/// Folds a sum of 16-bit words to 16 bits, ones' complement. It must be less than 2^46.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The UDP source port a session travels under, so that RSS and ECMP spread sessions.
#[inline(always)]
#[must_use]
pub const fn source_port(session: SessionId) -> u16 {
    SOURCE_PORT_BASE + ((mix(0, session.0) >> 20) as u16 & (SOURCE_PORTS - 1))
}

/// Hop limit and hop count after this hop: one less, clamped, and one more, which never looks like none.
#[inline(always)]
#[must_use]
pub const fn hop(hop_limit: u8, hop_count: u8) -> (u8, u8) {
    let less = hop_limit.saturating_sub(1);
    (
        if less > HOP_LIMIT_MAX {
            HOP_LIMIT_MAX
        } else {
            less
        },
        hop_count.saturating_add(1),
    )
}

/// Bytes before the mesh header on the way to this next hop.
#[inline(always)]
#[must_use]
pub const fn headers_bytes(next_hop: &NextHop) -> usize {
    let tag = if next_hop.vlan == 0 {
        0
    } else {
        VLAN_TAG_BYTES
    };
    let ip = if next_hop.is(NextHop::IPV6) {
        IPV6_BYTES
    } else {
        IPV4_BYTES
    };
    ETHERNET_BYTES + tag + ip + UDP_BYTES
}

/// What the new headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Bytes of UDP payload.
    pub udp_payload_bytes: u16,
    /// UDP source port.
    pub source_port: u16,
    /// UDP checksum.
    pub checksum: u16,
    /// The mesh header's new hop limit.
    pub hop_limit: u8,
    /// The mesh header's new hop count.
    pub hop_count: u8,
    /// The mesh header's new link tag.
    pub link_tag: u64,
}

/// What the headers say on the way to this next hop.
#[inline(always)]
#[must_use]
pub fn sent<O: Outside, H: Fields>(outside: &O, header: &H, next_hop: &NextHop) -> Sent {
    let source_port = match next_hop.source_port {
        0 => source_port(header.session_id()),
        fixed => fixed as u16,
    };
    let (old_limit, old_count) = (header.hop_limit(), header.hop_count());
    let (hop_limit, hop_count) = hop(old_limit, old_count);
    let link_tag = next_hop.link_tag_of(|| {
        let hops = u64::from(hop_limit) << (8 * offset::HOP_LIMIT)
            | u64::from(hop_count) << (8 * offset::HOP_COUNT);
        let [first, a, b, c, d, e, f] = header.words();
        [first & !HOPS | hops, a, b, c, d, e, f]
    });
    let old = outside.ends_sum()
        + u64::from(old_limit)
        + (u64::from(old_count) << 8)
        + halves(header.link_tag());
    let new = u64::from(next_hop.sum)
        + u64::from(source_port)
        + u64::from(hop_limit)
        + (u64::from(hop_count) << 8)
        + halves(link_tag);
    let sum = u64::from(!outside.checksum()) + new + (MULTIPLE_OF_FFFF - old);
    let checksum = match !fold(sum) {
        0 => 0xffff,
        checksum => checksum,
    };
    Sent {
        traffic_class: outside.traffic_class(),
        udp_payload_bytes: outside.udp_payload_bytes(),
        source_port,
        checksum,
        hop_limit,
        hop_count,
        link_tag,
    }
}

/// A word's two halves, added: the same to a ones' complement sum as its four 16-bit words.
#[inline(always)]
pub(crate) const fn halves(word: u64) -> u64 {
    (word >> 32) + (word & 0xffff_ffff)
}

/// Writes what changes in the mesh header at `mesh`. `None` where the frame is too short.
#[inline(always)]
pub fn write_mesh<F: Put + ?Sized>(frame: &mut F, mesh: usize, sent: &Sent) -> Option<()> {
    let header = frame.window::<HEADER_BYTES>(mesh)?;
    header[offset::HOP_LIMIT] = sent.hop_limit;
    header[offset::HOP_COUNT] = sent.hop_count;
    header[offset::LINK_TAG..].copy_from_slice(&sent.link_tag.to_be_bytes());
    Some(())
}

/// A frame's bytes, to be written, each access checked.
pub trait Put {
    /// `N` bytes at `offset`, if the frame has them.
    fn window<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]>;

    /// Writes `N` bytes at `offset`, if the frame has them.
    #[inline(always)]
    fn put<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        *self.window(offset)? = *bytes;
        Some(())
    }
}

impl Put for [u8] {
    fn window<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        self.get_mut(offset..)?.first_chunk_mut()
    }
}

/// Writes link, IP and UDP header. Gives the offset of the mesh header; `None` where the frame is too
/// short.
#[inline(always)]
pub fn write_outer<F: Put + ?Sized>(
    frame: &mut F,
    next_hop: &NextHop,
    sent: &Sent,
) -> Option<usize> {
    const TAGGED: usize = ETHERNET_BYTES + VLAN_TAG_BYTES;
    const IPV4: usize = IPV4_BYTES + UDP_BYTES;
    const IPV6: usize = IPV6_BYTES + UDP_BYTES;
    let written = match (next_hop.vlan == 0, next_hop.is(NextHop::IPV6)) {
        (true, false) => {
            let to = frame.window::<{ ETHERNET_BYTES + IPV4 }>(0)?;
            layers::<ETHERNET_BYTES>(to, next_hop, sent)
        }
        (false, false) => {
            let to = frame.window::<{ TAGGED + IPV4 }>(0)?;
            layers::<TAGGED>(to, next_hop, sent)
        }
        (true, true) => {
            let to = frame.window::<{ ETHERNET_BYTES + IPV6 }>(0)?;
            layers::<ETHERNET_BYTES>(to, next_hop, sent)
        }
        (false, true) => {
            let to = frame.window::<{ TAGGED + IPV6 }>(0)?;
            layers::<TAGGED>(to, next_hop, sent)
        }
    };
    Some(written)
}

/// Link header of `LINK` bytes, and what fills the rest: an IPv4 or an IPv6 header, and a UDP header. Gives the bytes of
/// all. Where `to` has a length that the compiler knows, no access is checked again.
#[inline(always)]
fn layers<const LINK: usize>(to: &mut [u8], next_hop: &NextHop, sent: &Sent) -> usize {
    // Two words, of what lies side by side in the next hop: six bytes and six would be copied byte by byte.
    let [target, source] = [&next_hop.target_mac, &next_hop.source_mac];
    let first = [
        target[0], target[1], target[2], target[3], target[4], target[5], source[0], source[1],
    ];
    to[..8].copy_from_slice(&first);
    to[8..12].copy_from_slice(&[source[2], source[3], source[4], source[5]]);
    if LINK != ETHERNET_BYTES {
        to[12..14].copy_from_slice(&ETHERTYPE_VLAN.to_be_bytes());
        to[14..16].copy_from_slice(&next_hop.vlan.to_be_bytes());
    }
    let is_ipv6 = to.len() == LINK + IPV6_BYTES + UDP_BYTES;
    let ethertype = if is_ipv6 {
        ETHERTYPE_IPV6
    } else {
        ETHERTYPE_IPV4
    };
    to[LINK - 2..LINK].copy_from_slice(&ethertype.to_be_bytes());
    let udp = to.len() - UDP_BYTES;
    if is_ipv6 {
        ipv6(&mut to[LINK..udp], sent, next_hop);
    } else {
        ipv4(&mut to[LINK..udp], sent, next_hop);
    }
    let length = sent.udp_payload_bytes + UDP_BYTES as u16;
    to[udp..udp + 2].copy_from_slice(&sent.source_port.to_be_bytes());
    to[udp + 2..udp + 4].copy_from_slice(&next_hop.port.to_be_bytes());
    to[udp + 4..udp + 6].copy_from_slice(&length.to_be_bytes());
    to[udp + 6..udp + 8].copy_from_slice(&sent.checksum.to_be_bytes());
    to.len()
}

/// The IPv4 header: no options, not to be fragmented.
#[inline(always)]
fn ipv4(to: &mut [u8], sent: &Sent, next_hop: &NextHop) {
    let total = sent.udp_payload_bytes + (IPV4_BYTES + UDP_BYTES) as u16;
    let words = u32::from(next_hop.ipv4_sum) + u32::from(sent.traffic_class) + u32::from(total);
    let words = (words & 0xffff) + (words >> 16);
    let checksum = !((words & 0xffff) + (words >> 16)) as u16;
    to[..2].copy_from_slice(&[0x45, sent.traffic_class]);
    to[2..4].copy_from_slice(&total.to_be_bytes());
    to[4..8].copy_from_slice(&[0, 0, DONT_FRAGMENT, 0]);
    to[8..10].copy_from_slice(&[OUTER_HOP_LIMIT, PROTOCOL_UDP]);
    to[10..12].copy_from_slice(&checksum.to_be_bytes());
    to[12..16].copy_from_slice(&(next_hop.source.low as u32).to_be_bytes());
    to[16..20].copy_from_slice(&(next_hop.target.low as u32).to_be_bytes());
}

/// The IPv6 header.
#[inline(always)]
fn ipv6(to: &mut [u8], sent: &Sent, next_hop: &NextHop) {
    let length = sent.udp_payload_bytes + UDP_BYTES as u16;
    let class = sent.traffic_class;
    to[..4].copy_from_slice(&[0x60 | class >> 4, class << 4, 0, 0]);
    to[4..6].copy_from_slice(&length.to_be_bytes());
    to[6..8].copy_from_slice(&[PROTOCOL_UDP, OUTER_HOP_LIMIT]);
    to[8..16].copy_from_slice(&next_hop.source.high.to_be_bytes());
    to[16..24].copy_from_slice(&next_hop.source.low.to_be_bytes());
    to[24..32].copy_from_slice(&next_hop.target.high.to_be_bytes());
    to[32..40].copy_from_slice(&next_hop.target.low.to_be_bytes());
}
