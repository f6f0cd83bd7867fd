//! May this packet pass, and where to? One function, compiled into the NIC path and into user space.
//!
//! Order: malformed · ingress neighbour · echo · its subnet · handshake · guard · visibility · link tag · channel rate · Local ·
//! hop limit · route and next hop · too big · duplicate · Forward. What guard, policy and route decide
//! together is cached a flow; all else is decided a packet.
//!
//! A pair is judged by the exact set where the destination's subnet is one that this node knows all pairs of,
//! else by that subnet's own filter, as long as this is valid.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes and clocks are cut to slots and ticks on purpose"
)]

use core::cell::Cell;

use crate::{
    directory,
    flow::Flow,
    guard,
    header::{Fields, Flags, MAGIC, NodeId, Subnet, VERSION},
    limits::{
        HEADER_BYTES, SEEN_RUN, SEEN_SLOTS, SEEN_TICK_SHIFT, SEEN_WINDOW_NS,
        TRANSIT_HANDSHAKE_BURST, TRANSIT_HANDSHAKES_PER_SECOND,
    },
    pair_set,
    reason::Reason,
    subnet::{Visibility, may_cross},
    tables::{
        Address, ChannelPolicy, FILTER_OWN, NEIGHBOUR_UNKNOWN, Neighbour, NextHop, Pair,
        ROUTE_LOCAL, ROUTE_NONE, Route, Settings, Tables, filter_place, mix, neighbour_slots,
        rate_slot,
    },
    tag,
};

/// How a packet came in.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Interface it came in on; 0 where that is not known (user space).
    pub ifindex: u32,
    /// Its VLAN, see [`crate::tables::vlan_key`]; 0 in user space.
    pub vlan: u32,
    /// Outer source address.
    pub source: Address,
    /// Bytes of UDP payload, mesh header included.
    pub udp_payload_bytes: u32,
}

/// What shall become of a mesh packet.
#[derive(Clone, Copy, Debug)]
pub enum Verdict<'a> {
    /// It is for this node.
    Local,
    /// It is this node's own, came back from a neighbour, and is noted.
    Echo,
    /// Send it on to this next hop.
    Forward(&'a NextHop),
    /// Count it and drop it.
    Drop(Reason),
}

/// Whether a packet on our port is well formed: magic, version, priority, length, in this order.
///
/// # Errors
/// The first [`Reason`] that it is not.
#[inline(always)]
pub fn check<H: Fields>(header: &H, udp_payload_bytes: u32) -> Result<(), Reason> {
    if !header.starts_well() {
        return Err(if header.magic() != MAGIC {
            Reason::Magic
        } else if header.version() != VERSION {
            Reason::Version
        } else {
            Reason::Priority
        });
    }
    if header.payload_len() as u32 + HEADER_BYTES as u32 != udp_payload_bytes {
        return Err(Reason::Length);
    }
    Ok(())
}

/// The entry of the neighbour table for an address: a neighbour behind `ifindex`, or an own address
/// where `ifindex` is [`crate::tables::OWN_ADDRESS`].
#[inline(always)]
pub fn find<'a, T: Tables>(
    tables: &'a T,
    settings: &Settings,
    ifindex: u32,
    vlan: u32,
    address: Address,
) -> Option<&'a Neighbour> {
    let [first, second] = neighbour_slots(settings.neighbour_key, ifindex, vlan, address);
    let matches = |n: &&Neighbour| {
        n.used == 1 && n.ifindex == ifindex && n.vlan == vlan && n.address == address
    };
    match tables.neighbour(first).filter(matches) {
        Some(found) => Some(found),
        None => tables.neighbour(second).filter(matches),
    }
}

/// Decides. The caller has found `settings` and knows that the packet is on our port.
#[inline(always)]
pub fn decide<'a, T: Tables, H: Fields>(
    tables: &'a T,
    settings: &Settings,
    header: &H,
    arrival: &Arrival,
) -> Verdict<'a> {
    let Arrival {
        ifindex,
        vlan,
        source,
        ..
    } = *arrival;
    let neighbour = find(tables, settings, ifindex, vlan, source);
    let bytes = arrival.udp_payload_bytes;
    decide_from(tables, settings, header, bytes, neighbour)
}

/// The same where the neighbour that the packet is from has been looked up already. `udp_payload_bytes` has the mesh
/// header in it.
#[inline(always)]
pub fn decide_from<'a, T: Tables, H: Fields>(
    tables: &'a T,
    settings: &Settings,
    header: &H,
    udp_payload_bytes: u32,
    neighbour: Option<&Neighbour>,
) -> Verdict<'a> {
    match verdict(tables, settings, header, udp_payload_bytes, neighbour) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Drop(reason),
    }
}

#[inline(always)]
fn verdict<'a, T: Tables, H: Fields>(
    tables: &'a T,
    settings: &Settings,
    header: &H,
    udp_payload_bytes: u32,
    neighbour: Option<&Neighbour>,
) -> Result<Verdict<'a>, Reason> {
    check(header, udp_payload_bytes)?;
    let is_local = header.destination().0 == settings.node_id.0;
    if neighbour.is_none() && !is_local {
        return Err(Reason::Neighbour);
    }
    if is_local && header.flags().contains(Flags::ECHO) {
        return note(tables, header, neighbour).map(|()| Verdict::Echo);
    }
    if let Some(n) = neighbour
        && header.subnet().0 & n.subnet_mask != n.subnet.0
        && (n.subnet_mask != 0 || !is_of_no_channel(header))
    {
        return Err(Reason::Subnet);
    }
    if header.flags().contains(Flags::HANDSHAKE) {
        if is_local {
            return Ok(Verdict::Local);
        }
        admit_handshake(tables, neighbour)?;
        let number = route_to(tables, settings, header.destination());
        let way = Way::of(number, tables.route(number));
        return forward(tables, header, udp_payload_bytes, way).map(Verdict::Forward);
    }
    let index = match neighbour {
        Some(n) => n.index,
        None => NEIGHBOUR_UNKNOWN,
    };
    let (way, rated) = authorise(tables, settings, header, index)?;
    if let Some(n) = neighbour
        && is_forged(n, header, is_local)
    {
        return Err(Reason::LinkTag);
    }
    if rated {
        admit_rate(tables, settings, header, index)?;
    }
    if is_local {
        return Ok(Verdict::Local);
    }
    let next_hop = forward(tables, header, udp_payload_bytes, way)?;
    refuse_duplicate(tables, settings, header)?;
    Ok(Verdict::Forward(next_hop))
}

/// Notes an echo that came back: only one of a link that this node watches, from that link's neighbour, and newer
/// than all before it. Two CPUs that note at once leave the note of one of them.
#[inline(always)]
fn note<T: Tables, H: Fields>(
    tables: &T,
    header: &H,
    neighbour: Option<&Neighbour>,
) -> Result<(), Reason> {
    let neighbour = neighbour.ok_or(Reason::Neighbour)?;
    if neighbour.demands_tag == 1 && !tag::is_right(&neighbour.tag_keys, header) {
        return Err(Reason::LinkTag);
    }
    let place = tables.echo(header.stream_id().0).ok_or(Reason::Echo)?;
    let mut echo = place.get();
    let is_its =
        echo.secret != 0 && echo.secret == header.session_id().0 && echo.from == neighbour.address;
    if !is_its || header.sequence() <= echo.newest {
        return Err(Reason::Echo);
    }
    echo.newest = header.sequence();
    if header.event_count() == 0 {
        echo.heard_ns[0] = tables.exact_ns();
    } else {
        echo.heard_ns[1] = tables.exact_ns();
    }
    place.set(echo);
    Ok(())
}

/// Whether a packet lacks the link tag that its neighbour's packets must have. What two nodes need to agree
/// on keys passes without: handshakes, and for this node itself its peers' control traffic. A session proves
/// both, and a neighbour that has restarted has nothing else.
#[inline(always)]
fn is_forged<H: Fields>(neighbour: &Neighbour, header: &H, is_local: bool) -> bool {
    neighbour.demands_tag == 1
        && !(is_local && header.channel_hash().0 == 0)
        && !tag::is_right(&neighbour.tag_keys, header)
}

/// Handshakes and a member's control traffic: all that a neighbour may send whose subnet nobody vouches for.
#[inline(always)]
fn is_of_no_channel<H: Fields>(header: &H) -> bool {
    header.flags().contains(Flags::HANDSHAKE) || header.channel_hash().0 == 0
}

/// Whether the pair may publish within this node's own subnet: the guard, then the exact set.
#[inline(always)]
pub fn is_authorised<T: Tables>(tables: &T, settings: &Settings, pair: &Pair) -> bool {
    admit_pair(tables, settings, FILTER_OWN, pair).is_ok()
}

/// The tick until which the pair may publish: by the guard and the exact set, or by another subnet's filter
/// and the exact set of what was withdrawn from it.
#[inline(always)]
fn admit_pair<T: Tables>(
    tables: &T,
    settings: &Settings,
    filter: u32,
    pair: &Pair,
) -> Result<u32, Reason> {
    let is_own = filter == FILTER_OWN;
    let (which, place) = (settings.live_guard & 1, filter_place(settings, filter));
    let (info, until) = if is_own {
        (settings.guard(), Flow::NO_END)
    } else {
        let filter = tables.filter(place).ok_or(Reason::SubnetUnknown)?;
        if tables.now_ns() >= filter.expires_ns {
            return Err(Reason::SubnetUnknown);
        }
        (&filter.info, Flow::tick(filter.expires_ns))
    };
    let hash = guard::key_hash(info.salt, pair);
    let (line, asked) = if is_own {
        (guard::line_of(which, info, hash), *pair)
    } else {
        let line = guard::filter_line_of(place, info, hash);
        (line, pair.denied_by(filter))
    };
    let line = tables.guard_line(line).ok_or(Reason::Unauthorised)?;
    if guard::is_hit(line, hash) && pair_set::has(tables, settings, &asked) == is_own {
        Ok(until)
    } else {
        Err(Reason::Unauthorised)
    }
}

/// Whether the pair may be in the guard, by half of its bits: what tells nearly all strangers.
#[inline(always)]
fn may_pass<T: Tables>(tables: &T, settings: &Settings, pair: &Pair) -> bool {
    let which = settings.live_guard & 1;
    let info = settings.guard();
    let hash = guard::key_hash(info.salt, pair);
    let line = tables.guard_line(guard::line_of(which, info, hash));
    matches!(line, Some(line) if guard::may_hit(line, hash))
}

/// Guard, exact set, policy and route of a flow, from the cache where they stand there. The route is
/// [`ROUTE_NONE`] where there is none; such a flow is not cached.
///
/// Half of the guard comes before the cache: its lines are few and near, while a stranger's slot of the cache is in
/// no CPU's nearest. In the NIC path this takes half the time off a miss of ever other strangers, and puts some
/// 3 ns on a cached flow (`scripts/bench xdp`).
#[inline(always)]
fn authorise<T: Tables, H: Fields>(
    tables: &T,
    settings: &Settings,
    header: &H,
    neighbour: u32,
) -> Result<(Way, bool), Reason> {
    let pair = Pair::new(header.origin_hash(), header.channel_hash());
    let is_by_route = settings.by_route != 0;
    if !is_by_route && !may_pass(tables, settings, &pair) {
        return Err(Reason::Unauthorised);
    }
    let generation = settings.generation;
    let slot = tables.flow(Flow::slot(settings.flow_key, header));
    if let Some(slot) = slot {
        let cached = slot.get();
        let lasts = |until| until == Flow::NO_END || Flow::tick(tables.now_ns()) < until;
        if cached.is_of(generation, header, neighbour) && lasts(cached.until) {
            let way = Way {
                route: cached.route,
                primary: cached.primary,
            };
            return Ok((way, cached.rated != 0));
        }
    }
    let (way, to, filter) = way(tables, settings, header);
    let filter = if is_by_route { filter } else { FILTER_OWN };
    let until = admit_pair(tables, settings, filter, &pair)?;
    let policy = tables.channel(header.channel_hash());
    if let Some(to) = to {
        cross(tables, policy, header, to)?;
    }
    let rated = matches!(policy, Some(policy) if policy.interval_ns != 0);
    if let Some(slot) = slot
        && way.route != ROUTE_NONE
    {
        slot.set(Flow {
            generation,
            header: Flow::words(header),
            neighbour,
            route: way.route,
            primary: way.primary,
            rated: u16::from(rated),
            until,
        });
    }
    Ok((way, rated))
}

/// A route, and its primary next hop, so that only the backup takes reading the route.
#[derive(Clone, Copy)]
struct Way {
    route: u32,
    primary: u16,
}

impl Way {
    #[inline(always)]
    fn of(number: u32, route: Option<&Route>) -> Self {
        let primary = match route {
            Some(route) => route.primary as u16,
            None => Flow::NO_HOP,
        };
        Self {
            route: number,
            primary,
        }
    }
}

/// Where a packet goes: its way, the destination's subnet, and what judges pairs there. Without a route
/// there is no subnet.
#[inline(always)]
fn way<T: Tables, H: Fields>(
    tables: &T,
    settings: &Settings,
    header: &H,
) -> (Way, Option<Subnet>, u32) {
    if header.destination().0 == settings.node_id.0 {
        let here = Way::of(ROUTE_LOCAL, None);
        return (here, Some(settings.subnet), FILTER_OWN);
    }
    let number = route_to(tables, settings, header.destination());
    let route = tables.route(number);
    let (to, filter) = match route {
        Some(route) => (Some(route.subnet), route.filter),
        None => (None, FILTER_OWN),
    };
    (Way::of(number, route), to, filter)
}

/// Whether the packet may go from its sender's subnet to another.
#[inline(always)]
fn cross<T: Tables, H: Fields>(
    tables: &T,
    policy: Option<&ChannelPolicy>,
    header: &H,
    to: Subnet,
) -> Result<(), Reason> {
    let (visibility, place) = match policy {
        Some(policy) => (policy.visibility(), policy.exports()),
        None => (Visibility::SubnetLocal, 0),
    };
    let exports = || tables.exports(place);
    if may_cross(
        header.channel_hash(),
        visibility,
        exports,
        header.subnet(),
        to,
    ) {
        Ok(())
    } else {
        Err(Reason::Visibility)
    }
}

/// Number of the route to a destination, or [`ROUTE_NONE`]. Not an option: the compiler would leave the number undefined
/// where there is none, and the verifier refuses what copies that.
#[inline(always)]
pub fn route_to<T: Tables>(tables: &T, settings: &Settings, destination: NodeId) -> u32 {
    let (key, lines) = (settings.destination_key, settings.destination_lines);
    let [first, second] = directory::lines_of(key, lines, destination);
    let find = |line| match tables.destinations(line) {
        Some(line) => directory::find(line, destination),
        None => 0,
    };
    let stored = match find(first) {
        0 => find(second),
        stored => stored,
    };
    stored.wrapping_sub(1)
}

/// Hop limit, route, liveness and size: what is decided for every packet that goes on.
#[inline(always)]
fn forward<'a, T: Tables, H: Fields>(
    tables: &'a T,
    header: &H,
    udp_payload_bytes: u32,
    way: Way,
) -> Result<&'a NextHop, Reason> {
    if header.hop_limit() <= 1 {
        return Err(Reason::HopLimit);
    }
    let alive = |n: &&NextHop| n.is(NextHop::ALIVE);
    let next_hop = match tables.next_hop(way.primary as u32).filter(alive) {
        Some(primary) => primary,
        None => {
            let route = tables.route(way.route).ok_or(Reason::NoRoute)?;
            let backup = tables.next_hop(route.backup).filter(alive);
            backup.ok_or(Reason::NextHopDown)?
        }
    };
    if next_hop.outer_bytes(udp_payload_bytes) > next_hop.mtu {
        return Err(Reason::TooBig);
    }
    Ok(next_hop)
}

/// Takes one packet out of a bucket that refills at one packet per `interval_ns` (GCRA, ITU-T I.371).
///
/// The bucket is one word, shared by all CPUs and written without a lock: packets that meet in the
/// same nanoseconds on several CPUs can count as one.
#[inline(always)]
fn admit(bucket: &Cell<u64>, now_ns: u64, interval_ns: u64, tolerance_ns: u64) -> bool {
    let empty_at = bucket.get();
    let from = if empty_at > now_ns { empty_at } else { now_ns };
    if from - now_ns > tolerance_ns {
        return false;
    }
    bucket.set(from.wrapping_add(interval_ns));
    true
}

#[inline(always)]
fn admit_rate<T: Tables, H: Fields>(
    tables: &T,
    settings: &Settings,
    header: &H,
    neighbour: u32,
) -> Result<(), Reason> {
    let channel = header.channel_hash();
    let slot = rate_slot(settings.flow_key, neighbour, header.origin_hash(), channel);
    let (Some(policy), Some(bucket)) = (tables.channel(channel), tables.rate_bucket(slot)) else {
        return Err(Reason::Rate);
    };
    if admit(
        bucket,
        tables.now_ns(),
        policy.interval_ns,
        policy.tolerance_ns,
    ) {
        Ok(())
    } else {
        Err(Reason::Rate)
    }
}

#[inline(always)]
fn admit_handshake<T: Tables>(tables: &T, neighbour: Option<&Neighbour>) -> Result<(), Reason> {
    const INTERVAL_NS: u64 = 1_000_000_000 / TRANSIT_HANDSHAKES_PER_SECOND;
    const TOLERANCE_NS: u64 = INTERVAL_NS * TRANSIT_HANDSHAKE_BURST;
    let neighbour = neighbour.ok_or(Reason::Neighbour)?;
    let bucket = tables
        .handshake_bucket(neighbour.index)
        .ok_or(Reason::HandshakeRate)?;
    if admit(bucket, tables.now_ns(), INTERVAL_NS, TOLERANCE_NS) {
        Ok(())
    } else {
        Err(Reason::HandshakeRate)
    }
}

/// One term of the NH hash: the halves of word and key added, and multiplied.
#[inline(always)]
const fn product(word: u64, [first, second]: [u32; 2]) -> u64 {
    let low = (word as u32).wrapping_add(first);
    let high = ((word >> 32) as u32).wrapping_add(second);
    (low as u64).wrapping_mul(high as u64)
}

/// The slot of a packet whose run of sequences hashes to `h`: a run fills one cache line, from a place
/// of its own on.
#[inline(always)]
const fn seen_slot(h: u64, sequence: u64) -> u32 {
    const WITHIN: u64 = SEEN_RUN - 1;
    let line = h & (SEEN_SLOTS as u64 - 1) & !WITHIN;
    (line | (h >> 56).wrapping_add(sequence) & WITHIN) as u32
}

/// Checks and inserts the packet's fingerprint: 55 bits of its run's hash and an 8-bit tick, in a slot
/// that the hash and the place in the run name. It is of destination, session and sequence: a session's packets to one
/// side have one count, which is never used again, and whoever can copy these can copy all else. The hash is NH (Black,
/// Halevi, Krawczyk, Krovetz, Rogaway: "UMAC"), under keys that nobody else knows: two packets have the same with a
/// chance of 2^-32.
/// Best effort: a slot's later packet displaces the earlier.
#[inline(always)]
fn refuse_duplicate<T: Tables, H: Fields>(
    tables: &T,
    settings: &Settings,
    header: &H,
) -> Result<(), Reason> {
    /// No packet's fingerprint is that of an empty slot.
    const SEEN_USED: u64 = 1 << 63;
    const TICKS: u8 = (SEEN_WINDOW_NS >> SEEN_TICK_SHIFT) as u8 + 1;
    let sequence = header.sequence();
    let [destination, session, run] = settings.seen_keys;
    let h = product(header.word(2), destination)
        .wrapping_add(product(header.word(4), session))
        .wrapping_add(product(sequence / SEEN_RUN, run));
    let h = mix(h, 0) | SEEN_USED;
    let place = seen_slot(h, sequence);
    let Some(slot) = tables.seen(place) else {
        return Ok(());
    };
    let now_ns = tables.jiffies().wrapping_mul(settings.jiffy_ns as u64);
    let tick = (now_ns >> SEEN_TICK_SHIFT) as u8;
    let seen = slot.get();
    let is_same = (seen ^ h) & !0xff == 0;
    if is_same && tick.wrapping_sub(seen as u8) <= TICKS {
        return Err(Reason::Duplicate);
    }
    slot.set(h & !0xff | tick as u64);
    Ok(())
}
