//! Forwarding in user space: the NIC path's decision over a UDP socket, where XDP is not available.
//!
//! The tables have the same layouts and the decision is the same source ([`virga_ebpf::decide`]). What
//! differs: the kernel has read the outer headers and writes new ones. A neighbour is known by its
//! interface, or by its address alone where the image names interface 0.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use virga_ebpf::{
    decide::{Arrival, Verdict, decide, find, route_to},
    header::{Header, NodeId, offset},
    image::Image,
    limits::{DESTINATIONS_MAX, HEADER_BYTES},
    memory::MemoryTables,
    publish::{GuardStatus, PublishError, Publisher},
    reason::{COUNTERS, Counter, Outcome, Reason},
    rewrite,
    tables::{NextHop, Tables},
};

/// What shall become of a datagram.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// It is for this node.
    Local,
    /// Send it to this address; hop limit and hop count are rewritten in place.
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
        }
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
        self.publisher.apply(&mut self.tables, image, entropy)
    }

    /// A neighbour is at another address than the tables say: packets to it, and those that others send
    /// through it, go there until the next [`Forwarder::apply`]. Only who is a next hop itself is
    /// followed: a node that others lead to would take their place.
    pub fn follow(&mut self, neighbour: NodeId, address: SocketAddr) {
        if let Some(&told) = self.adjacent.get(&neighbour) {
            self.moved.insert(told, address);
        }
    }

    /// Where a next hop is.
    fn address(&self, next_hop: &NextHop) -> SocketAddr {
        let told = address_of(next_hop);
        self.moved.get(&told).copied().unwrap_or(told)
    }

    fn next_hop(&self, destination: NodeId) -> Option<&NextHop> {
        let number = route_to(&self.tables, &self.tables.current(), destination)?;
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
        let (counter, forwarding) = self.decide(ingress_ifindex, source, datagram);
        let counter = &mut self.counters[counter as usize];
        counter.packets += 1;
        counter.bytes += bytes as u64;
        forwarding
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
        let source = source.ip().into();
        let is_known_there = find(&self.tables, &settings, ifindex, 0, source).is_some();
        let arrival = Arrival {
            ifindex: if is_known_there { ifindex } else { 0 },
            vlan: 0,
            source,
            udp_payload_bytes,
        };
        match decide(&self.tables, &settings, &header, &arrival) {
            Verdict::Local => (Outcome::Local.counter(), Forwarding::Local),
            Verdict::Drop(reason) => drop(reason),
            Verdict::Forward(next_hop) => {
                let (hop_limit, hop_count) = rewrite::hop(header.hop_limit, header.hop_count);
                datagram[offset::HOP_LIMIT] = hop_limit;
                datagram[offset::HOP_COUNT] = hop_count;
                let to = self.address(next_hop);
                (Outcome::Redirect.counter(), Forwarding::Forward { to })
            }
        }
    }

    /// Where packets that this node itself sends to `destination` go: the primary next hop, or the
    /// backup while the primary is not alive.
    #[must_use]
    pub fn way(&self, destination: NodeId) -> Option<Way> {
        let next_hop = self.next_hop(destination)?;
        let bytes = next_hop.mtu.saturating_sub(next_hop.outer_bytes(0));
        Some(Way {
            to: self.address(next_hop),
            datagram_bytes_max: usize::try_from(bytes).unwrap_or(usize::MAX),
        })
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

fn address_of(next_hop: &NextHop) -> SocketAddr {
    SocketAddr::new(IpAddr::from(next_hop.target), next_hop.port)
}

#[cfg(test)]
mod tests {
    use virga_ebpf::{
        header::{ChannelHash, OriginHash},
        image::{Link, Place, Via},
        tables::Pair,
    };

    use super::*;

    const HERE: NodeId = NodeId(1);
    const THERE: NodeId = NodeId(2);
    const ORIGIN: OriginHash = OriginHash(3);
    const CHANNEL: ChannelHash = ChannelHash(4);

    fn neighbour() -> SocketAddr {
        "127.0.0.2:5000".parse().unwrap()
    }

    fn image(primary: u32, backup: u32) -> Image {
        let mut image = Image {
            node_id: HERE,
            port: 4783,
            ..Image::default()
        };
        image
            .neighbours
            .insert(Place::new(0, neighbour().ip().into()), Link::default());
        image.pairs.insert(Pair::new(ORIGIN, CHANNEL));
        let mut hop = |ip: &str, flags| {
            let target = ip.parse::<IpAddr>().unwrap().into();
            image.add_next_hop(NextHop {
                target,
                port: 4783,
                mtu: 1500,
                flags,
                ..NextHop::default()
            })
        };
        let via = Via {
            primary: hop("127.0.0.3", primary),
            backup: Some(hop("::1", backup)),
        };
        image.routes.insert(THERE, via);
        image
    }

    fn forwarder(image: &Image) -> Forwarder {
        let mut forwarder = Forwarder::new();
        let mut n = 0;
        forwarder
            .apply(image, || {
                n += 1;
                n
            })
            .unwrap();
        forwarder
    }

    fn datagram(sequence: u64) -> Vec<u8> {
        let header = Header {
            destination: THERE,
            origin_hash: ORIGIN,
            channel_hash: CHANNEL,
            payload_len: 16,
            sequence,
            ..Header::default()
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn forwards_to_the_primary_and_counts_the_hop() {
        let mut f = forwarder(&image(NextHop::ALIVE, NextHop::ALIVE));
        let mut d = datagram(0);
        let to = "127.0.0.3:4783".parse().unwrap();
        assert_eq!(
            f.handle(1, 0, neighbour(), &mut d),
            Forwarding::Forward { to }
        );
        assert_eq!((d[offset::HOP_LIMIT], d[offset::HOP_COUNT]), (31, 1));
        assert_eq!(
            f.counters()[Outcome::Redirect.counter() as usize].packets,
            1
        );
        let way = f.way(THERE).unwrap();
        assert_eq!((way.to, way.datagram_bytes_max), (to, 1_500 - 28));
    }

    #[test]
    fn a_neighbour_that_moved_is_followed_until_the_next_image() {
        let mut image = image(NextHop::ALIVE, NextHop::ALIVE);
        let told: SocketAddr = "127.0.0.3:4783".parse().unwrap();
        // Another node than its next hop moves nobody's place.
        let mut f = forwarder(&image);
        f.follow(THERE, "127.0.0.66:666".parse().unwrap());
        assert_eq!(f.way(THERE).unwrap().to, told);
        image.adjacent.insert(THERE, told);
        let mut f = forwarder(&image);
        let to = "127.0.0.77:999".parse().unwrap();
        f.follow(THERE, to);
        assert_eq!(f.way(THERE).map(|way| way.to), Some(to));
        let verdict = f.handle(1, 0, neighbour(), &mut datagram(0));
        assert_eq!(verdict, Forwarding::Forward { to });
        f.apply(&image, || 1).unwrap();
        let told = "127.0.0.3:4783".parse().unwrap();
        assert_eq!(f.way(THERE).map(|way| way.to), Some(told));
    }

    #[test]
    fn a_dead_primary_gives_way_to_the_backup_and_two_dead_ones_to_a_reason() {
        let mut f = forwarder(&image(0, NextHop::ALIVE));
        let to = "[::1]:4783".parse().unwrap();
        assert_eq!(
            f.handle(1, 0, neighbour(), &mut datagram(0)),
            Forwarding::Forward { to }
        );
        assert_eq!(f.way(THERE).map(|way| way.to), Some(to));
        let mut f = forwarder(&image(0, 0));
        let verdict = f.handle(1, 0, neighbour(), &mut datagram(0));
        assert_eq!(verdict, Forwarding::Drop(Reason::NextHopDown));
        assert_eq!(f.way(THERE), None);
    }

    #[test]
    fn a_short_datagram_is_truncated_and_a_stranger_is_no_neighbour() {
        let mut f = forwarder(&image(NextHop::ALIVE, 0));
        let short = f.handle(1, 0, neighbour(), &mut [0; 63]);
        assert_eq!(short, Forwarding::Drop(Reason::Truncated));
        let stranger = "127.0.0.9:4783".parse().unwrap();
        let verdict = f.handle(1, 0, stranger, &mut datagram(0));
        assert_eq!(verdict, Forwarding::Drop(Reason::Neighbour));
    }
}
