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
        Outer, UDP_BYTES, VLAN_TAG_BYTES,
    },
    header::{Header, SessionId, offset},
    limits::{HOP_LIMIT_MAX, SOURCE_PORT_BASE, SOURCE_PORTS},
    tables::{NextHop, mix},
};

/// Hop limit of the outer IP packet.
const OUTER_HOP_LIMIT: u8 = 64;
const DONT_FRAGMENT: u8 = 0x40;

/// Folds a sum of 16-bit words to 16 bits, ones' complement.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
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

/// What the new UDP header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
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

/// What changes in UDP and mesh header on the way to this next hop.
#[inline(always)]
#[must_use]
pub fn sent(outer: &Outer, header: &Header, next_hop: &NextHop) -> Sent {
    let source_port = match next_hop.source_port {
        0 => source_port(header.session_id),
        fixed => fixed as u16,
    };
    let (hop_limit, hop_count) = hop(header.hop_limit, header.hop_count);
    let link_tag = next_hop.link_tag(&Header {
        hop_limit,
        hop_count,
        ..*header
    });
    let old = outer.source.sum()
        + outer.target.sum()
        + u64::from(outer.source_port)
        + u64::from(outer.target_port)
        + u64::from(header.hop_limit)
        + (u64::from(header.hop_count) << 8)
        + halves(header.link_tag);
    let new = u64::from(next_hop.sum)
        + u64::from(source_port)
        + u64::from(hop_limit)
        + (u64::from(hop_count) << 8)
        + halves(link_tag);
    let sum = u64::from(!outer.checksum) + u64::from(!fold(old)) + new;
    let checksum = match !fold(sum) {
        0 => 0xffff,
        checksum => checksum,
    };
    Sent {
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
    frame.put(mesh + offset::HOP_LIMIT, &[sent.hop_limit, sent.hop_count])?;
    frame.put(mesh + offset::LINK_TAG, &sent.link_tag.to_be_bytes())
}

/// What follows the link header's addresses: the EtherType of IPv4 or IPv6.
#[inline(always)]
const fn ethertype(is_ipv6: bool) -> [u8; 2] {
    if is_ipv6 {
        ETHERTYPE_IPV6.to_be_bytes()
    } else {
        ETHERTYPE_IPV4.to_be_bytes()
    }
}

/// The 802.1Q tag before the EtherType, where the next hop wants one.
#[inline(always)]
const fn tag(next_hop: &NextHop) -> [u8; VLAN_TAG_BYTES] {
    let [tag_high, tag_low] = ETHERTYPE_VLAN.to_be_bytes();
    let [tci_high, tci_low] = next_hop.vlan.to_be_bytes();
    [tag_high, tag_low, tci_high, tci_low]
}

/// The IPv4 header: no options, not to be fragmented.
#[inline(always)]
fn ipv4(outer: &Outer, next_hop: &NextHop) -> [u8; IPV4_BYTES] {
    let total = outer.udp_payload_bytes + (IPV4_BYTES + UDP_BYTES) as u16;
    let [total_high, total_low] = total.to_be_bytes();
    let s = (next_hop.source.low as u32).to_be_bytes();
    let t = (next_hop.target.low as u32).to_be_bytes();
    let words = 0x4500
        + u64::from(outer.traffic_class)
        + u64::from(total)
        + ((DONT_FRAGMENT as u64) << 8)
        + ((OUTER_HOP_LIMIT as u64) << 8)
        + 17
        + (next_hop.source.low & 0xffff_ffff)
        + (next_hop.target.low & 0xffff_ffff);
    let [sum_high, sum_low] = (!fold(words)).to_be_bytes();
    [
        0x45,
        outer.traffic_class,
        total_high,
        total_low,
        0,
        0,
        DONT_FRAGMENT,
        0,
        OUTER_HOP_LIMIT,
        17,
        sum_high,
        sum_low,
        s[0],
        s[1],
        s[2],
        s[3],
        t[0],
        t[1],
        t[2],
        t[3],
    ]
}

/// The fixed part of the IPv6 header; both addresses follow it.
#[inline(always)]
fn ipv6(outer: &Outer) -> [u8; 8] {
    let [high, low] = (outer.udp_payload_bytes + UDP_BYTES as u16).to_be_bytes();
    let class = outer.traffic_class;
    [
        0x60 | class >> 4,
        class << 4,
        0,
        0,
        high,
        low,
        17,
        OUTER_HOP_LIMIT,
    ]
}

/// The UDP header.
#[inline(always)]
fn udp(outer: &Outer, next_hop: &NextHop, sent: &Sent) -> [u8; UDP_BYTES] {
    let s = sent.source_port.to_be_bytes();
    let t = next_hop.port.to_be_bytes();
    let l = (outer.udp_payload_bytes + UDP_BYTES as u16).to_be_bytes();
    let c = sent.checksum.to_be_bytes();
    [s[0], s[1], t[0], t[1], l[0], l[1], c[0], c[1]]
}

/// A frame's bytes, to be written, each access checked.
pub trait Put {
    /// Writes `N` bytes at `offset`, if the frame has them.
    fn put<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()>;
}

impl Put for [u8] {
    fn put<const N: usize>(&mut self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        *self.get_mut(offset..)?.first_chunk_mut()? = *bytes;
        Some(())
    }
}

/// Writes link, IP and UDP header. Gives the offset of the mesh header; `None` where the frame is too
/// short.
#[inline(always)]
pub fn write_outer<F: Put + ?Sized>(
    frame: &mut F,
    outer: &Outer,
    next_hop: &NextHop,
    sent: &Sent,
) -> Option<usize> {
    const TAGGED: usize = ETHERNET_BYTES + VLAN_TAG_BYTES;
    match (next_hop.vlan == 0, next_hop.is(NextHop::IPV6)) {
        (true, false) => layers::<ETHERNET_BYTES, IPV4_BYTES, F>(frame, outer, next_hop, sent),
        (false, false) => layers::<TAGGED, IPV4_BYTES, F>(frame, outer, next_hop, sent),
        (true, true) => layers::<ETHERNET_BYTES, IPV6_BYTES, F>(frame, outer, next_hop, sent),
        (false, true) => layers::<TAGGED, IPV6_BYTES, F>(frame, outer, next_hop, sent),
    }
}

/// Link header of `LINK` bytes, IP header of `IP` bytes, UDP header.
#[inline(always)]
fn layers<const LINK: usize, const IP: usize, F: Put + ?Sized>(
    frame: &mut F,
    outer: &Outer,
    next_hop: &NextHop,
    sent: &Sent,
) -> Option<usize> {
    frame.put(0, &next_hop.target_mac)?;
    frame.put(6, &next_hop.source_mac)?;
    if LINK != ETHERNET_BYTES {
        frame.put(12, &tag(next_hop))?;
    }
    frame.put(LINK - 2, &ethertype(IP == IPV6_BYTES))?;
    if IP == IPV4_BYTES {
        frame.put(LINK, &ipv4(outer, next_hop))?;
    } else {
        frame.put(LINK, &ipv6(outer))?;
        frame.put(LINK + 8, &next_hop.source.high.to_be_bytes())?;
        frame.put(LINK + 16, &next_hop.source.low.to_be_bytes())?;
        frame.put(LINK + 24, &next_hop.target.high.to_be_bytes())?;
        frame.put(LINK + 32, &next_hop.target.low.to_be_bytes())?;
    }
    frame.put(LINK + IP, &udp(outer, next_hop, sent))?;
    Some(LINK + IP + UDP_BYTES)
}
