//! What the control plane tells the NIC path: the values of its maps, and how they are looked up.
//!
//! Every struct is `repr(C)` without implicit padding: user space writes the bytes that the NIC
//! path reads. [`Tables`] is the one interface between them and [`crate::decide`]; the XDP program
//! implements it over BPF maps, [`crate::memory::MemoryTables`] over plain memory.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes are cut to slots on purpose"
)]

use core::cell::Cell;

use crate::{
    directory::Line,
    flow::Flow,
    header::{ChannelHash, Header, NodeId, OriginHash, Subnet},
    limits::{NEIGHBOUR_SLOTS, RATE_BUCKETS, XSK_PORTS},
    pair_set,
    subnet::{Exports, SubnetPrefix, Visibility},
    tag::{TagKey, WORDS, link_tag_of},
};

/// An IP address; IPv4 as `::ffff:a.b.c.d` (RFC 4291), most significant half first.
///
/// The mapped prefix adds `0xffff` to a ones' complement sum, which is zero there, so the same sum
/// serves both families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Address {
    /// Upper 64 bits.
    pub high: u64,
    /// Lower 64 bits.
    pub low: u64,
}

impl Address {
    /// From the four bytes of an IPv4 header.
    #[inline(always)]
    #[must_use]
    pub const fn v4(bytes: [u8; 4]) -> Self {
        Self {
            high: 0,
            low: 0xffff_0000_0000 | u32::from_be_bytes(bytes) as u64,
        }
    }

    /// From the sixteen bytes of an IPv6 header.
    #[inline(always)]
    #[must_use]
    pub const fn v6(b: [u8; 16]) -> Self {
        Self {
            high: u64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            low: u64::from_be_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
        }
    }

    /// Whether this is a mapped IPv4 address.
    #[must_use]
    pub const fn is_v4(self) -> bool {
        self.high == 0 && self.low >> 32 == 0xffff
    }

    /// Sum of the address's 16-bit words, not folded.
    #[inline(always)]
    #[must_use]
    pub const fn sum(self) -> u64 {
        (self.high >> 32) + (self.high & 0xffff_ffff) + (self.low >> 32) + (self.low & 0xffff_ffff)
    }
}

#[cfg(not(target_arch = "bpf"))]
impl From<core::net::IpAddr> for Address {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(v4) => Self::v4(v4.octets()),
            core::net::IpAddr::V6(v6) => Self::v6(v6.octets()),
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
impl From<Address> for core::net::IpAddr {
    fn from(a: Address) -> Self {
        let v6 = core::net::Ipv6Addr::from((u128::from(a.high) << 64) | u128::from(a.low));
        v6.to_canonical()
    }
}

/// One step of the keyed, non-cryptographic hash that picks slots.
#[inline(always)]
#[must_use]
pub const fn mix(state: u64, word: u64) -> u64 {
    let h = (state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    h ^ (h >> 32)
}

/// A word's halves, the lower one first.
#[inline(always)]
#[must_use]
pub const fn split(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

/// The one entry of the settings map. Control writes all other maps first, then this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// This node: packets for it are Local.
    pub node_id: NodeId,
    /// Bumped when a cached verdict may have become wrong; never reused.
    pub generation: u64,
    /// Key of the hash that picks flow slots.
    pub flow_key: u64,
    /// Keys of the duplicate filter's fingerprints: a pair a word, for its halves.
    pub seen_keys: [[u32; 2]; 3],
    /// Key of the hash that picks neighbour slots.
    pub neighbour_key: u64,
    /// Which of the two guards is live, 0 or 1.
    pub live_guard: u32,
    /// The mesh's UDP port on this node.
    pub port: u32,
    /// [`crate::limits::LAYOUT_VERSION`] of whoever wrote the maps.
    pub layout: u32,
    /// Lines of the directory.
    pub destination_lines: u32,
    /// Key of the hash that picks its lines.
    pub destination_key: u64,
    /// Which of its two places each filter is in, a bit each.
    pub live_filters: u64,
    /// This node's subnet: that of packets for it.
    pub subnet: Subnet,
    /// 1 where the route says what a pair is judged by; 0 where the exact set holds for all routes.
    pub by_route: u32,
    /// Key of the hash that picks lines of the exact set.
    pub pair_key: u64,
    /// Which of the two exact sets is live, and its lines less one: see [`crate::pair_set::SECOND`].
    pub pairs: u32,
    /// Nanoseconds of one of [`Tables::jiffies`].
    pub jiffy_ns: u32,
    /// Salt and size of both guards.
    pub guards: [GuardInfo; 2],
}

impl Settings {
    /// The guard that is live.
    #[inline(always)]
    #[must_use]
    pub const fn guard(&self) -> &GuardInfo {
        &self.guards[(self.live_guard & 1) as usize]
    }
}

/// Entry of the neighbour table: an adjacent node, or (with `ifindex` [`OWN_ADDRESS`]) an address of
/// this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Neighbour {
    /// Outer source address of the neighbour, or an own address.
    pub address: Address,
    /// Interface it is reached through (0 where user space does not know), or [`OWN_ADDRESS`].
    pub ifindex: u32,
    /// 1 in a used slot, 0 in an empty one.
    pub used: u32,
    /// Number of the neighbour, part of a flow's key; names its handshake bucket.
    pub index: u32,
    /// What its packets' subnet must equal under `subnet_mask`.
    pub subnet: Subnet,
    /// Mask of the link's subnet; 0 allows any where `subnet` is 0, else none: then the neighbour may send
    /// handshakes and control traffic alone.
    pub subnet_mask: u32,
    /// VLAN id of its frames as they arrive, see [`vlan_key`]; 0 is untagged.
    pub vlan: u32,
    /// 1 if its packets must carry link tags.
    pub demands_tag: u32,
    /// Always 0.
    pub reserved: u32,
    /// The own address that it sends to; its own where none is known, which nothing comes from and goes to.
    pub own: Address,
    /// Keys of its link tags, by parity.
    pub tag_keys: [TagKey; 2],
}

/// What came back of one link's echoes.
///
/// An echo is a header alone ([`crate::header::Flags::ECHO`]) that a node sends to itself by way of a neighbour,
/// with one hop to go on: the neighbour's NIC path forwards it back as it would any packet, under its guard, with
/// the link tags of both directions, and nobody else's can. So it shows that the neighbour forwards, whether or
/// not its worker has a processor just now (as BFD's echo function does: RFC 5880, section 3.2). The sender's NIC
/// path notes it here. One packet brings back one, of its own size.
///
/// Fields of the header: `stream_id` is the place in the table, `session_id` the secret, `sequence` the number,
/// `event_count` whether user space forwarded it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Echo {
    /// What those of this link carry; 0 in an empty place.
    pub secret: u64,
    /// The neighbour that they come back from, and no other.
    pub from: Address,
    /// Number of the newest that came back: an old one says nothing of the link as it is.
    pub newest: u64,
    /// When one came back last that the neighbour's NIC path forwarded, and one that its user space did.
    pub heard_ns: [u64; 2],
}

impl Echo {
    /// What belongs in the place of a link with this secret, whose neighbour is at `from` and was sent `sent` echoes;
    /// none where it is there. A number that was never sent is a forgery, which must not outdo those to come.
    #[must_use]
    pub fn renewed(&self, secret: u64, from: Address, sent: u64) -> Option<Self> {
        let is_same = self.secret == secret;
        (!is_same || self.from != from || self.newest > sent).then(|| Self {
            secret,
            from,
            newest: if is_same { self.newest.min(sent) } else { 0 },
            heard_ns: [0; 2],
        })
    }
}

/// One number for the VLAN ids of a frame's tags, outermost first: 12 bits each.
#[inline(always)]
#[must_use]
pub const fn vlan_key(outer: u32, tci: u16) -> u32 {
    outer << 12 | (tci & 0xfff) as u32
}

/// In place of an interface: the address is this node's own.
pub const OWN_ADDRESS: u32 = u32::MAX;
/// Number of a neighbour that is not known; packets from it can only be Local.
pub const NEIGHBOUR_UNKNOWN: u32 = u32::MAX;

/// The two slots that an address may be in. Only configured addresses are inserted, so the words
/// may be hashed side by side.
#[inline(always)]
#[must_use]
pub const fn neighbour_slots(key: u64, ifindex: u32, vlan: u32, address: Address) -> [u32; 2] {
    let link = ((vlan as u64) << 32 | ifindex as u64).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let high = address.high.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    let h = (key ^ link ^ high ^ address.low).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    [
        (h >> 52) as u32 & (NEIGHBOUR_SLOTS - 1),
        (h >> 40) as u32 & (NEIGHBOUR_SLOTS - 1),
    ]
}

/// Which guard is probed how; see [`crate::guard`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GuardInfo {
    /// Salt of this publication.
    pub salt: [u64; 2],
    /// Number of banks less one; banks are a power of two.
    pub bank_mask: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Key of the exact set: a pair that is authorised, or one that is withdrawn from another subnet's filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Pair {
    /// The entity.
    pub origin: OriginHash,
    /// The channel it may publish on.
    pub channel: u32,
    /// 0, or the number and one of the filter that it is withdrawn from.
    pub denied_by: u32,
}

impl Pair {
    /// The pair of an entity and a channel.
    #[inline(always)]
    #[must_use]
    pub const fn new(origin: OriginHash, channel: ChannelHash) -> Self {
        Self {
            origin,
            channel: channel.0 as u32,
            denied_by: 0,
        }
    }

    /// The same pair, withdrawn from a filter.
    #[inline(always)]
    #[must_use]
    pub const fn denied_by(self, filter: u32) -> Self {
        Self {
            denied_by: filter.wrapping_add(1),
            ..self
        }
    }
}

/// Which pairs another subnet admits, as that said it; see [`crate::guard`]. A filter has two places, of
/// which the settings say the one in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Filter {
    /// Salt and size.
    pub info: GuardInfo,
    /// Monotonic nanoseconds from which on it says nothing any more; 0 in an empty place.
    pub expires_ns: u64,
    /// The subnets that it speaks for.
    pub prefix: SubnetPrefix,
}

/// In place of a filter's number: the exact set says who may send there.
pub const FILTER_OWN: u32 = u32::MAX;
/// In place of a filter's number: nobody knows who may.
pub const FILTER_NONE: u32 = u32::MAX - 1;

/// Place of a filter.
#[inline(always)]
#[must_use]
pub const fn filter_place(settings: &Settings, filter: u32) -> u32 {
    filter.wrapping_mul(2) | (settings.live_filters >> (filter & 63)) as u32 & 1
}

/// What the NIC path enforces for a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ChannelPolicy {
    /// Nanoseconds that one packet costs; 0 is no limit.
    pub interval_ns: u64,
    /// Nanoseconds of credit that a pause may save up.
    pub tolerance_ns: u64,
    /// Two bits of [`Visibility`], and above them the place of the export table: one word, so that no reader
    /// meets one channel's visibility with another's table.
    pub scope: u32,
    /// Always 0.
    pub reserved: u32,
}

impl ChannelPolicy {
    /// The word of a visibility and the place of an export table.
    #[inline(always)]
    #[must_use]
    pub const fn scope(visibility: Visibility, exports: u32) -> u32 {
        exports << 2 | visibility as u32
    }

    /// How far the channel's packets go.
    #[inline(always)]
    #[must_use]
    pub const fn visibility(&self) -> Visibility {
        match self.scope & 3 {
            0 => Visibility::SubnetLocal,
            1 => Visibility::ParentVisible,
            2 => Visibility::Exported,
            _ => Visibility::Global,
        }
    }

    /// Place of its export table, if it is exported.
    #[inline(always)]
    #[must_use]
    pub const fn exports(&self) -> u32 {
        self.scope >> 2
    }
}

/// Primary and backup next hop of a destination, and what is judged by its subnet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Route {
    /// Number of the primary next hop.
    pub primary: u32,
    /// Number of the backup next hop, or [`NEXT_HOP_NONE`].
    pub backup: u32,
    /// The destination's subnet.
    pub subnet: Subnet,
    /// Number of that subnet's filter, [`FILTER_OWN`] or [`FILTER_NONE`].
    pub filter: u32,
}

/// No next hop.
pub const NEXT_HOP_NONE: u32 = u32::MAX;
/// In place of a route's number: no way there.
pub const ROUTE_NONE: u32 = u32::MAX;
/// In place of a route's number: the flow ends here.
pub const ROUTE_LOCAL: u32 = u32::MAX - 1;

/// The AF_XDP sockets of an interface. Which of them exist, the kernel knows: one that closes is no longer
/// found, and its packets take the way through the kernel's stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct XskPort {
    /// The interface; 0 in an empty entry.
    pub ifindex: u32,
    /// Place of its first queue's socket; those of the others follow.
    pub first: u32,
    /// Queues that can have one; 0 is an interface without AF_XDP.
    pub queues: u32,
    /// Always 0.
    pub reserved: u32,
}

impl XskPort {
    /// The entry that an interface may be in.
    #[inline(always)]
    #[must_use]
    pub const fn entry(ifindex: u32) -> u32 {
        ifindex & (XSK_PORTS - 1)
    }

    /// Place of the socket for packets that came in by a queue of an interface, if there can be one.
    #[inline(always)]
    #[must_use]
    pub const fn socket(&self, ifindex: u32, queue: u32) -> Option<u32> {
        if self.ifindex == ifindex && queue < self.queues {
            Some(self.first.wrapping_add(queue))
        } else {
            None
        }
    }
}

/// Where and how a packet is sent on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NextHop {
    /// Outer source address: this node's on that link.
    pub source: Address,
    /// Outer target address: the neighbour's.
    pub target: Address,
    /// Link-layer target.
    pub target_mac: [u8; 6],
    /// Link-layer source: it follows the target, as in a frame.
    pub source_mac: [u8; 6],
    /// VLAN tag control information to send with; 0 is untagged.
    pub vlan: u16,
    /// The neighbour's UDP port.
    pub port: u16,
    /// Egress interface.
    pub ifindex: u32,
    /// Place of the egress interface in the device map.
    pub egress: u32,
    /// Largest outer IP packet, bytes.
    pub mtu: u32,
    /// See [`NextHop::ALIVE`] and its siblings.
    pub flags: u32,
    /// Folded sum of both addresses and the target port, for the UDP checksum.
    pub sum: u16,
    /// Folded sum of what all IPv4 headers on the way there have in common.
    pub ipv4_sum: u16,
    /// UDP source port; 0 spreads sessions over [`crate::limits::SOURCE_PORTS`]. A node behind NAT
    /// keeps one.
    pub source_port: u32,
    /// Keys of the link tags that it asked for, by parity.
    pub tag_keys: [TagKey; 2],
}

impl NextHop {
    /// Its link is up and its link-layer address is known.
    pub const ALIVE: u32 = 1;
    /// Outer packet is IPv6.
    pub const IPV6: u32 = 1 << 1;
    /// It wants link tags.
    pub const TAGGED: u32 = 1 << 2;
    /// Under the second of the two keys.
    pub const ODD: u32 = 1 << 3;

    /// Whether every bit of `flag` is set.
    #[inline(always)]
    #[must_use]
    pub const fn is(&self, flag: u32) -> bool {
        self.flags & flag == flag
    }

    /// The link tag of a header on its way there; 0 where none is wanted.
    #[inline(always)]
    #[must_use]
    pub fn link_tag(&self, header: impl FnOnce() -> Header) -> u64 {
        self.link_tag_of(|| header().words())
    }

    /// The same of the header's words.
    #[inline(always)]
    #[must_use]
    pub fn link_tag_of(&self, words: impl FnOnce() -> [u64; WORDS]) -> u64 {
        if self.is(Self::TAGGED) {
            link_tag_of(&self.tag_keys, self.is(Self::ODD) as u64, &words())
        } else {
            0
        }
    }

    /// Bytes of outer IP packet that a mesh packet with this payload becomes.
    #[inline(always)]
    #[must_use]
    pub const fn outer_bytes(&self, udp_payload_bytes: u32) -> u32 {
        let ip = if self.is(Self::IPV6) { 40 } else { 20 };
        ip + 8 + udp_payload_bytes
    }
}

/// The bucket that a neighbour's packets of one origin on one channel draw from. Flows that share a
/// slot by chance share its rate.
#[inline(always)]
#[must_use]
pub const fn rate_slot(key: u64, neighbour: u32, origin: OriginHash, channel: ChannelHash) -> u32 {
    let link = (neighbour as u64) << 32 | channel.0 as u64;
    (mix(mix(key, origin.0), link) >> 16) as u32 & (RATE_BUCKETS - 1)
}

macro_rules! no_padding {
    ($($name:ty: $bytes:literal),* $(,)?) => {
        $(const _: () = assert!(core::mem::size_of::<$name>() == $bytes);)*
    };
}
no_padding! {
    Settings: 160, Neighbour: 96, GuardInfo: 24, Pair: 16, ChannelPolicy: 24, Route: 16, NextHop: 104,
    Address: 16, XskPort: 16, Filter: 40, Exports: 64,
    Echo: 48,
}

/// The NIC path's maps, as [`crate::decide`] reads them. A missing entry is `None`.
pub trait Tables {
    /// Monotonic nanoseconds; a few milliseconds coarse.
    fn now_ns(&self) -> u64;
    /// A clock that is read without a call, from where it likes, in units of [`Settings::jiffy_ns`].
    fn jiffies(&self) -> u64;
    /// Slot of the neighbour table.
    fn neighbour(&self, slot: u32) -> Option<&Neighbour>;
    /// Time at which the neighbour's handshake bucket is empty.
    fn handshake_bucket(&self, neighbour: u32) -> Option<&Cell<u64>>;
    /// Monotonic nanoseconds, exact.
    fn exact_ns(&self) -> u64;
    /// A place of the echoes.
    fn echo(&self, place: u32) -> Option<&Cell<Echo>>;
    /// A place of the filters.
    fn filter(&self, place: u32) -> Option<&Filter>;
    /// A line of both guards' and all filters' lines, one after the other.
    fn guard_line(&self, line: u32) -> Option<&[u64; 8]>;
    /// A line of both exact sets' lines, see [`crate::pair_set`].
    fn pair_line(&self, line: u32) -> Option<&pair_set::Line>;
    /// The channel's policy.
    fn channel(&self, hash: ChannelHash) -> Option<&ChannelPolicy>;
    /// A place of the export tables.
    fn exports(&self, place: u32) -> Option<&Exports>;
    /// Slot of the rate buckets: the time at which it is empty.
    fn rate_bucket(&self, slot: u32) -> Option<&Cell<u64>>;
    /// A line of the directory, see [`crate::directory`].
    fn destinations(&self, line: u32) -> Option<&Line>;
    /// A route by its number.
    fn route(&self, number: u32) -> Option<&Route>;
    /// A next hop by its number.
    fn next_hop(&self, number: u32) -> Option<&NextHop>;
    /// Slot of the flow cache.
    fn flow(&self, slot: u32) -> Option<&Cell<Flow>>;
    /// Slot of the duplicate filter.
    fn seen(&self, slot: u32) -> Option<&Cell<u64>>;
}
