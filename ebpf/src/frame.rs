//! From an Ethernet frame to the mesh header: VLAN tags, IPv4 or IPv6, UDP.
//!
//! Three outcomes: not ours (the kernel's stack shall have it), malformed (ours, and wrong), or a mesh
//! packet. A packet is ours when it is UDP for our port at one of this node's own addresses; traffic
//! that the host merely routes is left alone.

#![expect(
    clippy::cast_possible_truncation,
    reason = "header sizes are small constants"
)]

use crate::{
    decide::find,
    limits::{HEADER_BYTES, IPV6_EXTENSIONS_MAX, VLAN_TAGS_MAX},
    reason::Reason,
    tables::{Address, Neighbour, OWN_ADDRESS, Settings, Tables, vlan_key},
};

/// Bytes of an Ethernet header without tags.
pub const ETHERNET_BYTES: usize = 14;
/// Bytes of one VLAN tag.
pub const VLAN_TAG_BYTES: usize = 4;
/// Bytes of an IPv4 header without options.
pub const IPV4_BYTES: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub const IPV6_BYTES: usize = 40;
/// Bytes of a UDP header.
pub const UDP_BYTES: usize = 8;

/// Bytes of a UDP header and the mesh header behind it.
pub(crate) const MESH_BYTES: usize = UDP_BYTES + HEADER_BYTES;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of an 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad service tag.
pub const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

pub(crate) const PROTOCOL_UDP: u8 = 17;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// What is 0 in the fragment word of a whole packet.
pub(crate) const FRAGMENT: u16 = FRAGMENT_OFFSET | MORE_FRAGMENTS;

/// A frame's bytes, each access checked.
pub trait Bytes {
    /// `N` bytes at `offset`, if the frame has them.
    fn at<const N: usize>(&self, offset: usize) -> Option<&[u8; N]>;
    /// Bytes in the frame.
    fn len(&self) -> usize;
    /// Whether there is no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Bytes for [u8] {
    fn at<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.get(offset..)?.first_chunk()
    }
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }
}

/// What is outside the mesh header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Offset of the mesh header in the frame.
    pub mesh: usize,
    /// Source address.
    pub source: Address,
    /// Target address: one of this node's.
    pub target: Address,
    /// Sum of both, as the UDP checksum has them; see [`Address::sum`].
    pub addresses_sum: u64,
    /// UDP source port.
    pub source_port: u16,
    /// UDP target port: ours.
    pub target_port: u16,
    /// UDP checksum, never 0.
    pub checksum: u16,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Bytes of UDP payload.
    pub udp_payload_bytes: u16,
    /// Bytes after the IP packet: padding, which is not sent on.
    pub trailing: u16,
    /// The frame's VLAN, see [`vlan_key`].
    pub vlan: u32,
}

/// What is outside the mesh header, or where it is read.
pub trait Outside {
    /// Offset of the mesh header in the frame.
    fn mesh(&self) -> usize;
    /// Sum of both addresses and both ports, as the UDP checksum has them.
    fn ends_sum(&self) -> u64;
    /// UDP checksum.
    fn checksum(&self) -> u16;
    /// DSCP and ECN.
    fn traffic_class(&self) -> u8;
    /// Bytes of UDP payload.
    fn udp_payload_bytes(&self) -> u16;
    /// Bytes after the IP packet.
    fn trailing(&self) -> usize;
}

impl Outside for Outer {
    #[inline(always)]
    fn mesh(&self) -> usize {
        self.mesh
    }
    #[inline(always)]
    fn ends_sum(&self) -> u64 {
        self.addresses_sum + u64::from(self.source_port) + u64::from(self.target_port)
    }
    #[inline(always)]
    fn checksum(&self) -> u16 {
        self.checksum
    }
    #[inline(always)]
    fn traffic_class(&self) -> u8 {
        self.traffic_class
    }
    #[inline(always)]
    fn udp_payload_bytes(&self) -> u16 {
        self.udp_payload_bytes
    }
    #[inline(always)]
    fn trailing(&self) -> usize {
        usize::from(self.trailing)
    }
}

/// A frame, read.
#[derive(Clone, Copy, Debug)]
pub enum Frame<'f> {
    /// Nothing that concerns the mesh.
    NotOurs,
    /// For our port, and wrong.
    Malformed(Reason),
    /// A packet; its mesh header, of which nothing is checked yet; and the neighbour that it is from, if one is there.
    Mesh(Outer, &'f [u8; HEADER_BYTES], Option<&'f Neighbour>),
}

/// How far the IP layer has been read.
struct Network {
    /// Offset of the UDP header.
    udp: usize,
    /// Offset past the IP packet; it may lie before that.
    end: usize,
    source: Address,
    target: Address,
    addresses_sum: u64,
    traffic_class: u8,
    /// Set where the packet is refused if it turns out to be for our port.
    refusal: Option<Reason>,
    /// More extension headers than are walked: no port can be seen.
    is_unreadable: bool,
}

/// Reads a frame that came in on this interface.
#[inline(always)]
pub fn parse<'f, B: Bytes + ?Sized, T: Tables>(
    frame: &'f B,
    tables: &'f T,
    settings: &Settings,
    ifindex: u32,
) -> Frame<'f> {
    match read(frame, tables, settings, ifindex) {
        Some(Ok((outer, header, neighbour))) => Frame::Mesh(outer, header, neighbour),
        Some(Err(reason)) => Frame::Malformed(reason),
        None => Frame::NotOurs,
    }
}

/// What is outside the mesh header of a frame that the NIC path has handed over: port and addresses are right
/// already. `None` where it is not a well-formed packet.
#[cfg(not(target_arch = "bpf"))]
pub fn delivered<B: Bytes + ?Sized>(frame: &B) -> Option<Outer> {
    let (ethertype, at, vlan) = link(frame)?;
    let network = match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, at)?,
        ETHERTYPE_IPV6 => ipv6(frame, at)?,
        _ => return None,
    };
    let (outer, _) = mesh(frame.len(), &network, frame.at(network.udp)?).ok()?;
    Some(Outer { vlan, ..outer })
}

/// What is outside the mesh header, this, and the neighbour.
type Read<'f> = (Outer, &'f [u8; HEADER_BYTES], Option<&'f Neighbour>);

/// `None` is not ours.
#[inline(always)]
fn read<'f, B: Bytes + ?Sized, T: Tables>(
    frame: &'f B,
    tables: &'f T,
    settings: &Settings,
    ifindex: u32,
) -> Option<Result<Read<'f>, Reason>> {
    let (ethertype, at, vlan) = link(frame)?;
    let network = match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, at)?,
        ETHERTYPE_IPV6 => ipv6(frame, at)?,
        _ => return None,
    };
    if network.is_unreadable {
        // What no port can be seen of is refused at our own addresses, where it would reach the
        // socket around this path, and left alone elsewhere.
        find(tables, settings, OWN_ADDRESS, 0, network.target)?;
        return Some(Err(Reason::Ipv6Extension));
    }
    let is_ours = |port| u32::from(u16::from_be_bytes(port)) == settings.port;
    let is_own = || find(tables, settings, OWN_ADDRESS, 0, network.target).is_some();
    let Some(whole) = frame.at::<MESH_BYTES>(network.udp) else {
        let [_, _, high, low] = *frame.at(network.udp)?;
        let refusal = network.refusal.unwrap_or(Reason::Truncated);
        return (is_ours([high, low]) && is_own()).then_some(Err(refusal));
    };
    if !is_ours([whole[2], whole[3]]) {
        return None;
    }
    let neighbour = ends(
        tables,
        settings,
        (ifindex, vlan),
        network.source,
        network.target,
    )?;
    let read = mesh(frame.len(), &network, whole);
    Some(read.map(|(outer, header)| (Outer { vlan, ..outer }, header, neighbour)))
}

/// The neighbour behind an interface and VLAN that a packet is from, if one is there. `None`: it is for none of this
/// node's addresses.
#[inline(always)]
pub(crate) fn ends<'t, T: Tables>(
    tables: &'t T,
    settings: &Settings,
    (ifindex, vlan): (u32, u32),
    source: Address,
    target: Address,
) -> Option<Option<&'t Neighbour>> {
    // A neighbour sends to the address that its own entry says: one look-up is enough.
    let neighbour = find(tables, settings, ifindex, vlan, source);
    let is_there = matches!(neighbour, Some(n) if n.own == target);
    if !is_there && find(tables, settings, OWN_ADDRESS, 0, target).is_none() {
        return None;
    }
    Some(neighbour)
}

/// EtherType and offset of the network header, VLAN tags read through; and the VLAN. Frames to a
/// group of hosts are not ours: nothing in the mesh is sent so, and a router does not send it on.
#[inline(always)]
fn link<B: Bytes + ?Sized>(frame: &B) -> Option<(u16, usize, u32)> {
    let ethernet = frame.at::<ETHERNET_BYTES>(0)?;
    if ethernet[0] & 1 == 1 {
        return None;
    }
    let mut ethertype = u16::from_be_bytes([ethernet[12], ethernet[13]]);
    let mut at = ETHERNET_BYTES;
    let mut vlan = 0;
    for _ in 0..VLAN_TAGS_MAX {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_SERVICE_VLAN {
            break;
        }
        let tag = frame.at::<VLAN_TAG_BYTES>(at)?;
        vlan = vlan_key(vlan, u16::from_be_bytes([tag[0], tag[1]]));
        ethertype = u16::from_be_bytes([tag[2], tag[3]]);
        at += VLAN_TAG_BYTES;
    }
    Some((ethertype, at, vlan))
}

/// RFC 791. `None` is not ours.
#[inline(always)]
fn ipv4<B: Bytes + ?Sized>(frame: &B, at: usize) -> Option<Network> {
    let ip = frame.at::<IPV4_BYTES>(at)?;
    if ip[9] != PROTOCOL_UDP {
        return None;
    }
    let fragment = u16::from_be_bytes([ip[6], ip[7]]);
    let (header_bytes, refusal) = if ip[0] == 0x45 && fragment & FRAGMENT == 0 {
        (IPV4_BYTES, None)
    } else {
        let (header_bytes, reason) = refused(ip[0], fragment)?;
        (header_bytes, Some(reason))
    };
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let [source, target] = [
        [ip[12], ip[13], ip[14], ip[15]],
        [ip[16], ip[17], ip[18], ip[19]],
    ];
    Some(Network {
        udp: at + header_bytes,
        end: at + total,
        source: Address::v4(source),
        target: Address::v4(target),
        addresses_sum: u64::from(u32::from_be_bytes(source))
            + u64::from(u32::from_be_bytes(target)),
        traffic_class: ip[1],
        refusal,
        is_unreadable: false,
    })
}

/// Bytes of an IPv4 header that has options or is a fragment's, and why the packet is refused if it is for our port.
/// `None` is not ours.
#[inline(always)]
fn refused(first: u8, fragment: u16) -> Option<(usize, Reason)> {
    let header_bytes = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header_bytes < IPV4_BYTES || fragment & FRAGMENT_OFFSET != 0 {
        return None;
    }
    let reason = match fragment & MORE_FRAGMENTS {
        0 => Reason::IpOptions,
        _ => Reason::IpFragment,
    };
    Some((header_bytes, reason))
}

/// RFC 8200. `None` is not ours.
#[inline(always)]
fn ipv6<B: Bytes + ?Sized>(frame: &B, at: usize) -> Option<Network> {
    let ip = frame.at::<IPV6_BYTES>(at)?;
    if ip[0] >> 4 != 6 {
        return None;
    }
    let source = Address::v6(*frame.at::<16>(at + 8)?);
    let target = Address::v6(*frame.at::<16>(at + 24)?);
    if source.is_v4() || target.is_v4() {
        // A mapped address is no address on the wire (RFC 4291, 2.5.5.2): the kernel drops it.
        return None;
    }
    let traffic_class = ip[0] << 4 | ip[1] >> 4;
    let payload = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    let (extensions, refusal, is_unreadable) = if ip[6] == PROTOCOL_UDP {
        (0, None, false)
    } else {
        match extensions(frame, at + IPV6_BYTES, ip[6])? {
            Extensions::Udp { bytes, reason } => (bytes, Some(reason), false),
            Extensions::TooMany => (0, None, true),
        }
    };
    Some(Network {
        udp: at + IPV6_BYTES + extensions,
        end: at + IPV6_BYTES + payload,
        source,
        target,
        addresses_sum: source.sum() + target.sum(),
        traffic_class,
        refusal,
        is_unreadable,
    })
}

/// What a walk along extension headers came to.
enum Extensions {
    /// A UDP header, after so many bytes; and why such a packet is refused if it is for our port.
    Udp { bytes: usize, reason: Reason },
    /// More of them than are walked.
    TooMany,
}

/// Walks along the extension headers. `None` where they lead to something other than UDP, or where a
/// later fragment shows no port.
#[inline(always)]
fn extensions<B: Bytes + ?Sized>(frame: &B, at: usize, first: u8) -> Option<Extensions> {
    let mut next = first;
    let mut bytes = 0;
    let mut reason = Reason::Ipv6Extension;
    for _ in 0..IPV6_EXTENSIONS_MAX {
        let extension = frame.at::<4>(at + bytes)?;
        bytes += match next {
            // Hop-by-hop options, routing, destination options, mobility: in units of 8 bytes.
            0 | 43 | 60 | 135 => usize::from(extension[1]) * 8 + 8,
            // Authentication header (RFC 4302): in units of 4 bytes.
            51 => usize::from(extension[1]) * 4 + 8,
            44 => {
                if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0 {
                    return None;
                }
                reason = Reason::IpFragment;
                8
            }
            _ => return None,
        };
        next = extension[0];
        if next == PROTOCOL_UDP {
            return Some(Extensions::Udp { bytes, reason });
        }
    }
    match next {
        0 | 43 | 44 | 51 | 60 | 135 => Some(Extensions::TooMany),
        _ => None,
    }
}

/// UDP (RFC 768) and the mesh header, of a packet for our port; `whole` is both.
#[inline(always)]
fn mesh<'f>(
    frame_bytes: usize,
    network: &Network,
    whole: &'f [u8; MESH_BYTES],
) -> Result<(Outer, &'f [u8; HEADER_BYTES]), Reason> {
    if let Some(reason) = network.refusal {
        return Err(reason);
    }
    if network.end < network.udp + MESH_BYTES || network.end > frame_bytes {
        return Err(Reason::Truncated);
    }
    let (udp, header) = whole.split_at(UDP_BYTES);
    let header = header.first_chunk().ok_or(Reason::Truncated)?;
    let length = u16::from_be_bytes([udp[4], udp[5]]);
    if usize::from(length) != network.end - network.udp {
        return Err(Reason::Length);
    }
    let checksum = u16::from_be_bytes([udp[6], udp[7]]);
    if checksum == 0 {
        return Err(Reason::ZeroChecksum);
    }
    let outer = Outer {
        mesh: network.udp + UDP_BYTES,
        source: network.source,
        target: network.target,
        addresses_sum: network.addresses_sum,
        source_port: u16::from_be_bytes([udp[0], udp[1]]),
        target_port: u16::from_be_bytes([udp[2], udp[3]]),
        checksum,
        traffic_class: network.traffic_class,
        udp_payload_bytes: length - UDP_BYTES as u16,
        trailing: (frame_bytes - network.end).min(u16::MAX as usize) as u16,
        vlan: 0,
    };
    Ok((outer, header))
}
