//! Two sites behind NATs, and routers with addresses of their own that relay between them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};
use virga_ebpf::header::NodeId;
use virga_nat::{Act, Nat, Relation, Setup, Sight, nat::Way};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const S: u64 = 1_000 * MS;
/// How often sessions are looked at while something is tried.
const LOOK_NS: u64 = 100 * MS;
/// Between two packets of a link.
const KEEPALIVE_NS: u64 = 50 * MS;
/// A link that is silent for so long is dead.
const DEAD_NS: u64 = 500 * MS;

pub(crate) const A: NodeId = NodeId(10);
pub(crate) const B: NodeId = NodeId(20);
pub(crate) const R: [NodeId; 2] = [NodeId(1), NodeId(30)];

/// On what a mapping, or what is let in, depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Endpoint,
    Address,
    Port,
}

impl By {
    pub(crate) const ALL: [Self; 3] = [Self::Endpoint, Self::Address, Self::Port];

    /// The part of an address that counts.
    fn part(self, of: SocketAddr) -> Option<SocketAddr> {
        match self {
            Self::Endpoint => None,
            Self::Address => Some(SocketAddr::new(of.ip(), 0)),
            Self::Port => Some(of),
        }
    }
}

/// A NAT with one inner address.
#[derive(Clone, Debug)]
pub(crate) struct Box {
    pub(crate) mapping: By,
    pub(crate) filtering: By,
    outer: IpAddr,
    next_port: u16,
    ports: BTreeMap<Option<SocketAddr>, u16>,
    sent_to: BTreeMap<u16, BTreeSet<Option<SocketAddr>>>,
}

impl Box {
    fn out(&mut self, target: SocketAddr) -> SocketAddr {
        let (mapping, filtering) = (self.mapping.part(target), self.filtering.part(target));
        let port = *self.ports.entry(mapping).or_insert_with(|| {
            self.next_port += 7;
            self.next_port
        });
        self.sent_to.entry(port).or_default().insert(filtering);
        SocketAddr::new(self.outer, port)
    }

    fn lets_in(&self, port: u16, source: SocketAddr) -> bool {
        let sent_to = self.sent_to.get(&port);
        sent_to.is_some_and(|sent_to| sent_to.contains(&self.filtering.part(source)))
    }

    /// Forgets all, and begins with other ports.
    fn rebind(&mut self) {
        (self.ports, self.sent_to) = Default::default();
        self.next_port += 1_000;
    }
}

/// What travels straight.
#[derive(Clone, Copy, Debug)]
enum Packet {
    Challenge(u64),
    Response(u64),
    Alive,
}

enum Event {
    /// From a node, at an outer source, to an outer target.
    Straight(NodeId, SocketAddr, SocketAddr, Packet),
    Said(NodeId, NodeId, Vec<u8>),
}

/// One end's part of a session.
#[derive(Default)]
struct End {
    seen: Option<SocketAddr>,
    probe: Option<(SocketAddr, u64)>,
    /// Where it is sent to straight, and when it was heard there.
    adopted: Option<(SocketAddr, Option<u64>)>,
}

pub(crate) struct Node {
    pub(crate) nat: Nat,
    inner: SocketAddr,
    pub(crate) behind: Option<Box>,
    ends: BTreeMap<NodeId, End>,
    /// Probes that went to each address.
    pub(crate) probed: BTreeMap<SocketAddr, u32>,
}

pub(crate) struct World {
    pub(crate) now_ns: u64,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    events: BTreeMap<(u64, u64), Event>,
    count: u64,
    pub(crate) latency_ns: u64,
    pub(crate) loss_percent: u64,
    random: u64,
    /// Nothing passes straight between the two sites.
    pub(crate) is_cut: bool,
    next_look_ns: u64,
    next_alive_ns: u64,
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(192, 0, 2, last), 4783))
}

impl World {
    /// Kinds of both sites' NATs, mapping and filtering; none: it has none. So many routers.
    pub(crate) fn new(kinds: [Option<(By, By)>; 2], routers: usize) -> Self {
        let mut world = Self {
            now_ns: 0,
            nodes: BTreeMap::new(),
            events: BTreeMap::new(),
            count: 0,
            latency_ns: 20 * MS,
            loss_percent: 0,
            random: 7,
            is_cut: false,
            next_look_ns: 0,
            next_alive_ns: 0,
        };
        for (site, ((id, kind), last)) in [A, B].into_iter().zip(kinds).zip([10, 20]).enumerate() {
            let inner = match kind {
                Some(_) => SocketAddr::from(([10, 0, u8::try_from(site).unwrap_or(0), 2], 4783)),
                None => address(last),
            };
            world.add(
                id,
                inner,
                kind.map(|(mapping, filtering)| Box {
                    mapping,
                    filtering,
                    outer: address(last).ip(),
                    next_port: 40_000,
                    ports: BTreeMap::new(),
                    sent_to: BTreeMap::new(),
                }),
            );
        }
        for (&id, last) in R[..routers].iter().zip(1..) {
            world.add(id, address(last), None);
            for site in [A, B] {
                let seen = world.outer(site, address(last));
                world.end(id, site).seen = Some(seen);
                world.end(site, id).seen = Some(address(last));
            }
        }
        world.end(A, B);
        world.end(B, A);
        world
    }

    fn add(&mut self, id: NodeId, inner: SocketAddr, behind: Option<Box>) {
        let setup = Setup {
            own: id,
            listen: inner,
            seed: id.0,
        };
        let node = Node {
            nat: Nat::new(setup),
            inner,
            behind,
            ends: BTreeMap::new(),
            probed: BTreeMap::new(),
        };
        self.nodes.insert(id, node);
    }

    pub(crate) fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node of this world")
    }

    fn end(&mut self, id: NodeId, peer: NodeId) -> &mut End {
        self.node(id).ends.entry(peer).or_default()
    }

    /// Where a node's packets to a target come from.
    fn outer(&mut self, id: NodeId, target: SocketAddr) -> SocketAddr {
        let node = self.node(id);
        let inner = node.inner;
        node.behind.as_mut().map_or(inner, |nat| nat.out(target))
    }

    fn number(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn later(&mut self, event: Event) {
        self.count += 1;
        let jitter = self.number() % MS;
        let at = (self.now_ns + self.latency_ns + jitter, self.count);
        self.events.insert(at, event);
    }

    fn send(&mut self, from: NodeId, target: SocketAddr, packet: Packet) {
        let source = self.outer(from, target);
        if self.number() % 100 >= self.loss_percent {
            self.later(Event::Straight(from, source, target, packet));
        }
    }

    /// Whoever gets what goes to an outer address.
    fn receiver(&self, source: SocketAddr, target: SocketAddr) -> Option<NodeId> {
        let found = self.nodes.iter().find(|(_, node)| match &node.behind {
            None => node.inner == target,
            Some(nat) => nat.outer == target.ip() && nat.lets_in(target.port(), source),
        });
        found.map(|(&id, _)| id)
    }

    fn arrive(&mut self, from: NodeId, source: SocketAddr, target: SocketAddr, packet: Packet) {
        let Some(to) = self.receiver(source, target) else {
            return;
        };
        // It is of a session between the two, or nobody can open it.
        if self.is_cut && from != to || !self.nodes[&to].ends.contains_key(&from) {
            return;
        }
        let now_ns = self.now_ns;
        let end = self.end(to, from);
        end.seen = Some(source);
        match packet {
            Packet::Challenge(token) => self.send(to, source, Packet::Response(token)),
            Packet::Response(token) if end.probe == Some((source, token)) => {
                end.probe = None;
                self.node(to).nat.reached(now_ns, from, source);
            }
            Packet::Response(_) => {}
            Packet::Alive => {
                if let Some((_, heard)) = &mut end.adopted {
                    *heard = Some(now_ns);
                }
            }
        }
    }

    pub(crate) fn look(&mut self, id: NodeId) {
        let now_ns = self.now_ns;
        let node = self.nodes.get_mut(&id).expect("a node of this world");
        let inner = node.inner;
        let sights = node.ends.iter().map(|(&peer, end)| {
            let relation = match end.adopted {
                _ if R.contains(&peer) || R.contains(&id) => Relation::Neighbour,
                Some((_, heard)) => Relation::Punched {
                    is_silent: heard.is_none_or(|heard| now_ns > heard + DEAD_NS),
                },
                None => Relation::Wanted,
            };
            let sight = Sight {
                session: 1,
                relation,
                seen: end.seen,
                local: Some(inner),
            };
            (peer, sight)
        });
        let sights = sights.collect();
        node.nat.look(now_ns, &sights);
    }

    fn act(&mut self, id: NodeId) {
        let now_ns = self.now_ns;
        self.node(id).nat.handle_timeout(now_ns);
        while let Some(act) = self.node(id).nat.poll_act() {
            match act {
                Act::Probe { peer, address } => {
                    let token = self.number();
                    *self.node(id).probed.entry(address).or_default() += 1;
                    self.end(id, peer).probe = Some((address, token));
                    self.send(id, address, Packet::Challenge(token));
                }
                Act::Adopt { peer, address } => {
                    self.end(id, peer).adopted = Some((address, None));
                }
                Act::Release { peer } => self.end(id, peer).adopted = None,
            }
        }
        while let Some((peer, said)) = self.node(id).nat.poll_transmit() {
            self.later(Event::Said(id, peer, said));
        }
    }

    /// What a node says to another in their session.
    pub(crate) fn say(&mut self, from: NodeId, to: NodeId, said: Vec<u8>) {
        let now_ns = self.now_ns;
        self.node(to).nat.handle(now_ns, from, &said);
        self.act(to);
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, for_ns: u64) {
        let end_ns = self.now_ns + for_ns;
        while self.now_ns < end_ns {
            self.now_ns += 5 * MS;
            let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
            while let Some(entry) = self
                .events
                .first_entry()
                .filter(|e| e.key().0 <= self.now_ns)
            {
                match entry.remove() {
                    Event::Straight(from, source, target, packet) => {
                        self.arrive(from, source, target, packet);
                    }
                    Event::Said(from, to, said) => {
                        let now_ns = self.now_ns;
                        if let Some(node) = self.nodes.get_mut(&to) {
                            node.nat.handle(now_ns, from, &said);
                        }
                    }
                }
            }
            if self.now_ns >= self.next_alive_ns {
                self.next_alive_ns = self.now_ns + KEEPALIVE_NS;
                for (id, peer) in [(A, B), (B, A)] {
                    if let Some((at, _)) = self.end(id, peer).adopted {
                        self.send(id, at, Packet::Alive);
                    }
                }
                // Sessions with routers are kept open as well.
                for (id, router) in [A, B].into_iter().flat_map(|id| R.map(|r| (id, r))) {
                    if self.nodes.contains_key(&router) && !self.is_cut {
                        let at = self.nodes[&router].inner;
                        self.send(id, at, Packet::Alive);
                    }
                }
            }
            if self.now_ns >= self.next_look_ns {
                self.next_look_ns = self.now_ns + LOOK_NS;
                for &id in &ids {
                    self.look(id);
                }
            }
            for id in ids {
                self.act(id);
            }
        }
    }

    /// Whether both send to each other straight, and it is heard.
    pub(crate) fn is_punched(&mut self) -> bool {
        let now_ns = self.now_ns;
        [(A, B), (B, A)].into_iter().all(|(id, peer)| {
            let way = self.node(id).nat.way(now_ns, peer);
            let adopted = self.end(id, peer).adopted;
            let heard = adopted.and_then(|(_, heard)| heard);
            matches!(way, Some(Way::Punched(_))) && heard.is_some_and(|at| now_ns <= at + DEAD_NS)
        })
    }

    /// Why the first of the two is relayed; none where it is not.
    pub(crate) fn why(&mut self) -> Option<String> {
        let now_ns = self.now_ns;
        match self.node(A).nat.way(now_ns, B)? {
            Way::Relayed(why) => Some(why),
            Way::Punched(_) => None,
        }
    }

    /// The NAT of a site gives out other addresses from now on.
    pub(crate) fn rebind(&mut self, id: NodeId) {
        self.node(id).behind.as_mut().expect("a NAT").rebind();
    }
}
