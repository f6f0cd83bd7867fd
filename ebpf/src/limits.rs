//! Every number of the NIC path, each with the invariant it must keep.

/// Bytes of the mesh header: one cache line.
pub const HEADER_BYTES: usize = 64;
/// Bytes of the AEAD tag that ends every sealed payload (RFC 8439).
pub const TAG_BYTES: usize = 16;
/// UDP port of the mesh, unless the node's settings name another.
pub const UDP_PORT: u16 = 4783;
/// First of the 2^14 UDP source ports over which sessions spread for RSS and ECMP.
pub const SOURCE_PORT_BASE: u16 = 49_152;
/// How many source ports sessions spread over; a power of two.
pub const SOURCE_PORTS: u16 = 16_384;
/// Forwarders clamp `hop_limit` to this, so that a loop ends after at most as many hops.
pub const HOP_LIMIT_MAX: u8 = 32;
/// Highest priority class.
pub const PRIORITY_MAX: u8 = 7;
/// Smallest path that every link must carry, in bytes of the outer IP packet (RFC 8200).
pub const OUTER_BYTES_MIN: usize = 1_280;
/// Bytes of the largest outer headers: IPv6 and UDP.
pub const OUTER_HEADERS_BYTES_MAX: usize = 48;

/// VLAN tags that are read through (802.1ad: one service and one customer tag).
pub const VLAN_TAGS_MAX: usize = 2;
/// IPv6 extension headers that are walked in search of our port; behind more of them a packet to this node's
/// own address is refused, any other is not ours.
pub const IPV6_EXTENSIONS_MAX: usize = 4;

/// Lines of 64 bytes in one guard bank of 4 KiB.
pub const GUARD_LINES_PER_BANK: u32 = 64;
/// Banks that one guard can grow to; a power of two. 256 banks hold about 500,000 pairs.
pub const GUARD_BANKS_MAX: u32 = 256;
/// Lines of one of the two guard buffers.
pub const GUARD_LINES_MAX: u32 = GUARD_LINES_PER_BANK * GUARD_BANKS_MAX;
/// A guard grows until its estimated false-positive rate is below this.
pub const GUARD_FALSE_POSITIVE_RATE_MAX: f64 = 0.001;
/// Authorised (origin, channel) pairs in the exact set.
pub const PAIRS_MAX: u32 = 524_288;
/// Lines of the smallest exact set; a power of two.
pub const PAIR_LINES_MIN: u32 = 64;
/// Lines of the largest; a power of two. Its five entries a line are used to nine tenths then.
pub const PAIR_LINES_MAX: u32 = 131_072;
/// Pairs that a line is counted for, of its five entries.
pub const PAIRS_PER_LINE: usize = 4;
/// Other subnets whose filters a gateway holds.
pub const FILTERS_MAX: u32 = 64;
/// Places of filters: two each, so that a new one is written beside the one in use.
pub const FILTER_PLACES: u32 = 2 * FILTERS_MAX;
/// Banks that another subnet's filter can have; a power of two. Eight hold about 16,000 pairs.
pub const FILTER_BANKS_MAX: u32 = 8;
/// Lines of one filter's place.
pub const FILTER_LINES_MAX: u32 = GUARD_LINES_PER_BANK * FILTER_BANKS_MAX;
/// Lines of both guards, and of all filters after them.
pub const LINES_MAX: u32 = 2 * GUARD_LINES_MAX + FILTER_PLACES * FILTER_LINES_MAX;
/// Pairs withdrawn from other subnets' filters.
pub const DENIED_MAX: u32 = 65_536;

/// Channel policies: one a value of the 16-bit hash, so that no look-up can miss.
pub const CHANNELS: u32 = 65_536;
/// Prefixes in one channel's export table: one cache line.
pub const EXPORTS_PER_CHANNEL: u32 = 8;
/// Distinct export tables that an image can name.
pub const EXPORTS_MAX: u32 = 1_024;
/// Places of export tables: two each, so that new ones are written beside those in use.
pub const EXPORT_PLACES: u32 = 2 * EXPORTS_MAX;
/// Rate buckets, one a (neighbour, origin, channel) that has a rate; a power of two.
pub const RATE_BUCKETS: u32 = 65_536;
/// Destinations that have a route, unless the loader asks for more.
pub const DESTINATIONS_MAX: u32 = 65_536;
/// Destinations that a line of six is counted for: half of it, so that nearly all lie in the first of their
/// two lines.
pub const DESTINATIONS_PER_LINE: u32 = 3;
/// Fewest lines: in fewer, chance could fill two of them with the same ids.
pub const DESTINATION_LINES_MIN: u32 = 64;
/// Distinct (primary, backup) routes.
pub const ROUTES_MAX: u32 = 4_096;
/// Next hops.
pub const NEXT_HOPS_MAX: u32 = 1_024;
/// Interfaces that packets can be redirected to.
pub const PORTS_MAX: u32 = 256;
/// Interfaces whose queues can have AF_XDP sockets; a power of two. Of two whose indexes are equal modulo
/// this, one can.
pub const XSK_PORTS: u32 = 256;
/// AF_XDP sockets of all interfaces.
pub const XSKS_MAX: u32 = 1_024;
/// Adjacent nodes.
pub const NEIGHBOURS_MAX: u32 = 1_024;
/// Addresses of this node.
pub const OWN_ADDRESSES_MAX: u32 = 512;
/// Slots of the neighbour table; a power of two, and more than twice what is placed there, so that two
/// choices place it (Pagh, Rodler: Cuckoo Hashing).
pub const NEIGHBOUR_SLOTS: u32 = 4_096;
/// Links of this node whose echoes are noted.
pub const ECHO_SLOTS: u32 = 2_048;
/// Slots of the flow cache, per CPU; a power of two.
pub const FLOW_SLOTS: u32 = 8_192;
/// Slots of the duplicate filter, per CPU; a power of two.
pub const SEEN_SLOTS: u32 = 32_768;
/// Slots that lie together: a per-CPU array reads a pointer for every value, and finds few pointers in
/// its caches where values are large. 4 KiB; the kernel takes at most 32 KiB.
pub const SEEN_SLOTS_PER_VALUE: u32 = 512;
/// The same of the flow cache; 3 KiB.
pub const FLOWS_PER_VALUE: u32 = 64;
/// Consecutive sequences of one stream whose slots share a cache line.
pub const SEEN_RUN: u64 = 8;
/// How long a packet counts as recently seen.
pub const SEEN_WINDOW_NS: u64 = 1_000_000_000;
/// One tick of the duplicate filter's clock is this many nanoseconds, as a power of two (0.27 s).
pub const SEEN_TICK_SHIFT: u32 = 28;

/// Handshakes a second that one neighbour may send through this node.
pub const TRANSIT_HANDSHAKES_PER_SECOND: u64 = 256;
/// Handshakes a neighbour may send at once after a pause.
pub const TRANSIT_HANDSHAKE_BURST: u64 = 64;

/// Bytes of a frame that a sample can keep: a whole one of a usual link.
pub const SAMPLE_BYTES_MAX: usize = 1_536;
/// Bytes of the ring that samples are told by; a power of two, of whole pages.
pub const SAMPLE_RING_BYTES: u32 = 1 << 19;
/// Samples that may be taken at once after a pause, as a power of two.
pub const SAMPLE_BURST_SHIFT: u32 = 5;
/// Samples a second that can be asked for, of each CPU.
pub const SAMPLES_PER_SECOND_MAX: u32 = 10_000;

/// Changes when a map's layout or the meaning of its values changes; part of the pin path.
pub const LAYOUT_VERSION: u32 = 10;

const _: () = assert!(HEADER_BYTES.is_power_of_two());
const _: () =
    assert!(SAMPLE_RING_BYTES.is_power_of_two() && SAMPLE_RING_BYTES.is_multiple_of(4_096));
const _: () = assert!(
    SAMPLE_RING_BYTES as usize >= (2 * SAMPLE_BYTES_MAX) << SAMPLE_BURST_SHIFT,
    "a burst has room"
);
const _: () = assert!(SOURCE_PORTS.is_power_of_two());
const _: () = assert!(SOURCE_PORT_BASE.checked_add(SOURCE_PORTS - 1).is_some());
const _: () = assert!(GUARD_BANKS_MAX.is_power_of_two() && GUARD_BANKS_MAX <= 1 << 10);
const _: () = assert!(
    GUARD_LINES_PER_BANK == 64,
    "6 bits of the key's hash pick the line"
);
const _: () = assert!(PAIR_LINES_MIN.is_power_of_two() && PAIR_LINES_MAX.is_power_of_two());
const _: () = assert!(PAIRS_PER_LINE < crate::pair_set::ENTRIES);
const _: () = assert!(
    (PAIRS_MAX + DENIED_MAX) as usize / 9
        <= PAIR_LINES_MAX as usize * crate::pair_set::ENTRIES / 10,
    "placing fails beyond"
);
const _: () = assert!(FILTER_BANKS_MAX.is_power_of_two() && FILTER_BANKS_MAX <= GUARD_BANKS_MAX);
const _: () = assert!(
    FILTERS_MAX <= 64,
    "one word says which place of each filter is in use"
);
const _: () = assert!(EXPORTS_PER_CHANNEL * 8 == 64);
const _: () = assert!(
    EXPORT_PLACES < 1 << 30,
    "a channel's word has 30 bits for its table"
);
const _: () = assert!(
    NEIGHBOUR_SLOTS.is_power_of_two() && NEIGHBOUR_SLOTS > 2 * (NEIGHBOURS_MAX + OWN_ADDRESSES_MAX)
);
const _: () = assert!(
    ROUTES_MAX < 1 << 16,
    "a line holds 16 bits of a route's number and one"
);
const _: () = assert!(DESTINATIONS_PER_LINE as usize * 2 <= crate::directory::ENTRIES);
const _: () = assert!(RATE_BUCKETS.is_power_of_two() && XSK_PORTS.is_power_of_two());
const _: () = assert!(FLOW_SLOTS.is_power_of_two() && SEEN_SLOTS.is_power_of_two());
const _: () = assert!(SEEN_SLOTS >= SEEN_SLOTS_PER_VALUE && FLOW_SLOTS >= FLOWS_PER_VALUE);
const _: () = assert!(SEEN_SLOTS_PER_VALUE.is_power_of_two() && FLOWS_PER_VALUE.is_power_of_two());
const _: () = assert!(SEEN_RUN * 8 == 64, "a run is a cache line of words");
const _: () = assert!(
    SEEN_SLOTS >= 256,
    "the slot must hold the 8 bits that the tick replaces"
);
const _: () = assert!(
    SEEN_WINDOW_NS >> SEEN_TICK_SHIFT < 128,
    "a tick is one byte and wraps"
);
