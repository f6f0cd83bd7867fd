//! Forwarding in user space: the NIC path's decision over a UDP socket, where XDP is not available.
//!
//! The tables have the same layouts and the decision is the same source ([`virga_ebpf::decide`]). What
//! differs: the kernel has read the outer headers and writes new ones. A neighbour is known by its
//! interface, or by its address alone where the image names interface 0; one that another transport carries by
//! its port as well, since any program of this machine can have the address.

use crate::{
    event::{Heard, Watch},
    limits::CARRIED_NETWORK,
    tap::Tap,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use virga_ebpf::{
    decide::{Verdict, decide_from, find, route_to},
    header::{Header, NodeId, offset},
    image::Image,
    limits::{DESTINATIONS_MAX, HEADER_BYTES},
    memory::MemoryTables,
    publish::{GuardStatus, PublishError, Publisher},
    reason::{COUNTERS, Counter, Outcome, Reason},
    rewrite,
    tables::{Address, NextHop, Tables},
};

/// What shall become of a datagram.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// It is for this node.
    Local,
    /// It is an echo of this node's that came back, and is noted.
    Echo,
    /// Send it to this address; hop limit, hop count and link tag are rewritten in place.
    Forward {
        /// The next hop.
        to: SocketAddr,
    },
    /// Counted; drop it.
    Drop(Reason),
}

/// How to reach another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The next hop.
    pub to: SocketAddr,
    /// Bytes of the largest datagram that its link takes.
    pub datagram_bytes_max: usize,
    next_hop: NextHop,
}

impl Way {
    /// Writes the link tag that the next hop wants into each of some datagrams of this node's own.
    pub fn tag(&self, datagrams: &mut [u8], segment_bytes: usize) {
        if !self.next_hop.is(NextHop::TAGGED) {
            return;
        }
        for datagram in datagrams.chunks_mut(segment_bytes.max(1)) {
            if let Some(bytes) = datagram.first_chunk_mut::<HEADER_BYTES>() {
                let link_tag = self.next_hop.link_tag(|| Header::decode(bytes));
                bytes[offset::LINK_TAG..].copy_from_slice(&link_tag.to_be_bytes());
            }
        }
    }
}

/// A forwarder's tables, counters and their writer. One a worker, not shared: a channel's rate, the
/// handshakes that a neighbour may send through this node and the duplicates that are remembered are each
/// worker's own. Packets of one session come to one worker, so they cannot be divided without taking from
/// honest senders: an origin whose sessions spread over several workers has its rate at each.
#[derive(Debug)]
pub struct Forwarder {
    tables: MemoryTables,
    publisher: Publisher,
    counters: Vec<Counter>,
    /// Next hops that answer from another address than the tables say, until these say so too.
    moved: BTreeMap<SocketAddr, SocketAddr>,
    /// The neighbours that are next hops, and where.
    adjacent: BTreeMap<NodeId, SocketAddr>,
    /// Those places of neighbours where a carrier can be, moved ones too.
    carried: BTreeSet<SocketAddr>,
    /// The links to them.
    links: BTreeMap<NodeId, NextHop>,
    /// While somebody asks for samples.
    tap: Option<Box<Tap>>,
}

impl Forwarder {
    /// A forwarder without any route: all that is not for this node is dropped, and nothing is for it
    /// until [`Forwarder::apply`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_destinations(DESTINATIONS_MAX)
    }

    /// The same with room for so many destinations.
    #[must_use]
    pub fn with_destinations(most: u32) -> Self {
        let tables = MemoryTables::with_destinations(most);
        let publisher = match Publisher::recover(&tables) {
            Ok(publisher) => publisher,
            Err(never) => match never {},
        };
        let counters = vec![Counter::default(); COUNTERS as usize];
        Self {
            tables,
            publisher,
            counters,
            moved: BTreeMap::new(),
            adjacent: BTreeMap::new(),
            carried: BTreeSet::new(),
            links: BTreeMap::new(),
            tap: None,
        }
    }

    /// Has samples taken of what is decided from now on, or no more.
    pub fn set_tap(&mut self, tap: Option<Box<Tap>>) {
        self.tap = tap;
    }

    /// What takes samples now.
    pub fn tap_mut(&mut self) -> Option<&mut Tap> {
        self.tap.as_deref_mut()
    }

    /// Brings the tables to `image`. `entropy` gives 64 random bits a call.
    ///
    /// # Errors
    /// When a table is full.
    pub fn apply(
        &mut self,
        image: &Image,
        entropy: impl FnMut() -> u64,
    ) -> Result<(), PublishError<core::convert::Infallible>> {
        self.moved.clear();
        self.adjacent.clone_from(&image.adjacent);
        self.note_carried();
        self.links = links_of(image);
        self.publisher.apply(&mut self.tables, image, entropy)
    }

    /// A neighbour is at another address than the tables say: packets to it, and those that others send
    /// through it, go there until the next [`Forwarder::apply`]. Only who is a next hop itself is
    /// followed: a node that others lead to would take their place.
    pub fn follow(&mut self, neighbour: NodeId, address: SocketAddr) {
        if let Some(&told) = self.adjacent.get(&neighbour) {
            self.moved.insert(told, address);
            self.note_carried();
        }
    }

    fn note_carried(&mut self) {
        let places = self.adjacent.values().chain(self.moved.values()).copied();
        self.carried = places.filter(|at| is_carriers(at.ip())).collect();
    }

    /// A neighbour's link is dead: until the next [`Forwarder::apply`] its packets, and those that others send
    /// through it, go over the backup, where there is one.
    pub fn avoid(&mut self, neighbour: NodeId) {
        if let Some(&told) = self.adjacent.get(&neighbour) {
            let avoided = self
                .publisher
                .avoid(&mut self.tables, told.ip().into(), told.port());
            match avoided {
                Ok(()) => {}
                Err(never) => match never {},
            }
        }
    }

    /// Where a neighbour's packets come from.
    #[must_use]
    pub fn neighbours_address(&self, neighbour: NodeId) -> Option<Address> {
        let told = self.adjacent.get(&neighbour)?;
        let at = self.moved.get(told).unwrap_or(told);
        Some(at.ip().into())
    }

    /// Where a next hop is.
    fn address(&self, next_hop: &NextHop) -> SocketAddr {
        let told = address_of(next_hop);
        self.moved.get(&told).copied().unwrap_or(told)
    }

    fn next_hop(&self, destination: NodeId) -> Option<&NextHop> {
        let number = route_to(&self.tables, &self.tables.current(), destination);
        let route = self.tables.route(number)?;
        [route.primary, route.backup]
            .into_iter()
            .filter_map(|number| self.tables.next_hop(number))
            .find(|next_hop| next_hop.is(NextHop::ALIVE))
    }

    /// Decides about one datagram that the socket received, and counts it.
    pub fn handle(
        &mut self,
        now_ns: u64,
        ingress_ifindex: u32,
        source: SocketAddr,
        datagram: &mut [u8],
    ) -> Forwarding {
        self.tables.set_now(now_ns);
        let bytes = datagram.len();
        // What is sent on is rewritten in place.
        let is_tapped = self.tap.is_some();
        let came = is_tapped.then(|| datagram.first_chunk::<HEADER_BYTES>().copied());
        let (counter, forwarding) = self.decide(ingress_ifindex, source, datagram);
        if let (Some(tap), Some(header)) = (&mut self.tap, came) {
            let arrival = (now_ns, ingress_ifindex, source);
            if !tap.note(arrival, (header.as_ref(), datagram), counter) {
                self.tap = None;
            }
        }
        let counter = &mut self.counters[counter as usize];
        counter.packets += 1;
        counter.bytes += bytes as u64;
        forwarding
    }

    /// Whether the neighbour at an address is carried there by another transport.
    #[must_use]
    pub fn is_carried(&self, source: SocketAddr) -> bool {
        self.carried.contains(&source)
    }

    /// Whether another program of this machine sent a packet from the address that a neighbour's carrier has.
    fn is_impostor(&self, source: SocketAddr) -> bool {
        let at = |port| SocketAddr::new(source.ip(), port);
        // Where none is, whoever is at `::1` is no carrier.
        is_carriers(source.ip())
            && !self.carried.contains(&at(source.port()))
            && self.carried.range(at(0)..=at(u16::MAX)).next().is_some()
    }

    fn decide(&self, ifindex: u32, source: SocketAddr, datagram: &mut [u8]) -> (u32, Forwarding) {
        let drop = |reason: Reason| (reason.counter(), Forwarding::Drop(reason));
        let (Some(bytes), Ok(udp_payload_bytes)) = (
            datagram.first_chunk::<HEADER_BYTES>(),
            u32::try_from(datagram.len()),
        ) else {
            return drop(Reason::Truncated);
        };
        let header = Header::decode(bytes);
        let settings = self.tables.current();
        // What is for this node, its sessions judge.
        if header.destination != settings.node_id && self.is_impostor(source) {
            return drop(Reason::Neighbour);
        }
        let at = |ifindex| find(&self.tables, &settings, ifindex, 0, source.ip().into());
        let neighbour = at(ifindex).or_else(|| at(0));
        match decide_from(
            &self.tables,
            &settings,
            &header,
            udp_payload_bytes,
            neighbour,
        ) {
            Verdict::Local => (Outcome::Local.counter(), Forwarding::Local),
            Verdict::Echo => (Outcome::Echo.counter(), Forwarding::Echo),
            Verdict::Drop(reason) => drop(reason),
            Verdict::Forward(next_hop) => {
                let (hop_limit, hop_count) = rewrite::hop(header.hop_limit, header.hop_count);
                let mut sent = Header {
                    hop_limit,
                    hop_count,
                    ..header
                };
                if header.is_echo() {
                    sent.event_count = 1;
                    datagram[offset::EVENT_COUNT..offset::SEQUENCE]
                        .copy_from_slice(&sent.event_count.to_be_bytes());
                }
                let link_tag = next_hop.link_tag(|| sent).to_be_bytes();
                datagram[offset::HOP_LIMIT] = hop_limit;
                datagram[offset::HOP_COUNT] = hop_count;
                datagram[offset::LINK_TAG..HEADER_BYTES].copy_from_slice(&link_tag);
                let to = self.address(next_hop);
                (Outcome::Redirect.counter(), Forwarding::Forward { to })
            }
        }
    }

    /// Where packets that this node itself sends to `destination` go: the primary next hop, or the
    /// backup while the primary is not alive.
    #[must_use]
    pub fn way(&self, destination: NodeId) -> Option<Way> {
        Some(self.over(self.next_hop(destination)?))
    }

    /// Where packets over the very link to a neighbour go, unless this machine knows that link to be down.
    #[must_use]
    pub fn link(&self, neighbour: NodeId) -> Option<Way> {
        let next_hop = self.links.get(&neighbour)?;
        next_hop.is(NextHop::ALIVE).then(|| self.over(next_hop))
    }

    fn over(&self, next_hop: &NextHop) -> Way {
        let bytes = next_hop.mtu.saturating_sub(next_hop.outer_bytes(0));
        Way {
            to: self.address(next_hop),
            datagram_bytes_max: usize::try_from(bytes).unwrap_or(usize::MAX),
            next_hop: *next_hop,
        }
    }

    /// What came back of a link's echoes through this forwarder, from a neighbour at `from`; those of another link are
    /// forgotten. All of them had a worker in between: this one.
    pub fn heard(&self, watch: &Watch, from: Address) -> Heard {
        let Some(cell) = self.tables.echo(watch.place) else {
            return Heard::default();
        };
        let echo = cell.get();
        if let Some(renewed) = echo.renewed(watch.secret, from, watch.sent) {
            cell.set(renewed);
            return Heard::default();
        }
        let [of_nic_ns, of_worker_ns] = echo.heard_ns;
        Heard {
            nic_ns: 0,
            worker_ns: of_nic_ns.max(of_worker_ns),
        }
    }

    /// Counters by [`Outcome`] and [`Reason`].
    #[must_use]
    pub fn counters(&self) -> &[Counter] {
        &self.counters
    }

    /// The live guard.
    #[must_use]
    pub fn guard(&self) -> Option<GuardStatus> {
        self.publisher.guard()
    }
}

impl Default for Forwarder {
    fn default() -> Self {
        Self::new()
    }
}

/// The next hop of each neighbour that its link's liveness does not concern.
fn links_of(image: &Image) -> BTreeMap<NodeId, NextHop> {
    let link = |at: &SocketAddr| {
        let mut there = image.next_hops.values();
        there.find(|n| address_of(n) == *at && !n.is(NextHop::AVOIDABLE))
    };
    let adjacent = image.adjacent.iter();
    adjacent
        .filter_map(|(peer, at)| Some((*peer, *link(at)?)))
        .collect()
}

/// Whether a carrier can be there.
fn is_carriers(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..2] == CARRIED_NETWORK,
        IpAddr::V6(ip) => ip.is_loopback(),
    }
}

fn address_of(next_hop: &NextHop) -> SocketAddr {
    SocketAddr::new(IpAddr::from(next_hop.target), next_hop.port)
}

#[cfg(test)]
mod tests;
