//! Two sites behind NATs, one of them with a second node, and routers with addresses of their own that relay between them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};
use virga_ebpf::header::NodeId;
use virga_nat::{Act, Nat, Relation, Setup, Sight, limits, nat::Way, wire::Message};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const S: u64 = 1_000 * MS;
/// How often sessions are looked at while something is tried.
const LOOK_SOON_NS: u64 = 100 * MS;
/// Between two packets of a link.
const KEEPALIVE_NS: u64 = 50 * MS;
/// More than there are.
pub(crate) const NEIGHBOURS_MAX: usize = 16;
/// A link that is silent for so long is dead.
const DEAD_NS: u64 = 500 * MS;

pub(crate) const A: NodeId = NodeId(10);
/// Beside it, behind the same NAT.
pub(crate) const C: NodeId = NodeId(15);
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

/// A NAT.
#[derive(Clone, Debug)]
struct Box {
    mapping: By,
    filtering: By,
    outer: IpAddr,
    next_port: u16,
    ports: BTreeMap<(NodeId, Option<SocketAddr>), u16>,
    sent_to: BTreeMap<u16, BTreeSet<Option<SocketAddr>>>,
    /// A port that leads to a node, whoever sends there; and who did: answers go out from it.
    mapped: Option<(u16, NodeId)>,
    came_by_it: BTreeSet<SocketAddr>,
}

impl Box {
    fn out(&mut self, from: NodeId, target: SocketAddr) -> SocketAddr {
        let by = self.mapped.filter(|(_, node)| *node == from);
        if let Some((port, _)) = by.filter(|_| self.came_by_it.contains(&target)) {
            return SocketAddr::new(self.outer, port);
        }
        let (mapping, filtering) = (self.mapping.part(target), self.filtering.part(target));
        let port = *self.ports.entry((from, mapping)).or_insert_with(|| {
            self.next_port += 7;
            self.next_port
        });
        self.sent_to.entry(port).or_default().insert(filtering);
        SocketAddr::new(self.outer, port)
    }

    /// Who gets what comes to a port.
    fn lets_in(&self, port: u16, source: SocketAddr) -> Option<NodeId> {
        if let Some((_, node)) = self.mapped.filter(|(mapped, _)| *mapped == port) {
            return Some(node);
        }
        let is_let_in = self
            .sent_to
            .get(&port)?
            .contains(&self.filtering.part(source));
        let mut ports = self.ports.iter().filter(|_| is_let_in);
        Some(ports.find(|(_, at)| **at == port)?.0.0)
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
    /// It may not be a neighbour, whatever was done.
    is_refused: bool,
    /// Where it is sent to straight, and when it was heard there.
    adopted: Option<(SocketAddr, Option<u64>)>,
}

pub(crate) struct Node {
    pub(crate) nat: Nat,
    inner: SocketAddr,
    /// Which of the NATs.
    behind: Option<usize>,
    ends: BTreeMap<NodeId, End>,
    /// Where others are that the configuration names.
    pub(crate) places: BTreeSet<(NodeId, IpAddr)>,
    pub(crate) next_look_ns: u64,
    /// Probes that went to each address.
    pub(crate) probed: BTreeMap<SocketAddr, u32>,
    /// What was said to each.
    pub(crate) told: BTreeMap<NodeId, u32>,
}

pub(crate) struct World {
    pub(crate) now_ns: u64,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    boxes: Vec<Box>,
    events: BTreeMap<(u64, u64), Event>,
    count: u64,
    /// When what was said last from one to another is heard.
    said_ns: BTreeMap<(NodeId, NodeId), u64>,
    pub(crate) latency_ns: u64,
    pub(crate) loss_percent: u64,
    /// Of what this node sends alone.
    pub(crate) lossy: Option<NodeId>,
    random: u64,
    /// Nothing passes straight between the two sites.
    pub(crate) is_cut: bool,
    /// The addresses that this router tells of are false.
    pub(crate) liar: Option<NodeId>,
    /// And only this node is told them.
    pub(crate) lied_to: Option<NodeId>,
    /// Who began to send to whom straight, and when.
    pub(crate) adoptions: Vec<(u64, NodeId, NodeId)>,
    /// How often sessions are looked at while nothing is tried.
    pub(crate) look_every_ns: u64,
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
            boxes: Vec::new(),
            events: BTreeMap::new(),
            count: 0,
            said_ns: BTreeMap::new(),
            latency_ns: 20 * MS,
            loss_percent: 0,
            lossy: None,
            random: 7,
            is_cut: false,
            liar: None,
            lied_to: None,
            adoptions: Vec::new(),
            look_every_ns: LOOK_SOON_NS,
            next_alive_ns: 0,
        };
        for (site, ((id, kind), last)) in (0..).zip([A, B].into_iter().zip(kinds).zip([10, 20])) {
            let behind = kind.map(|(mapping, filtering)| {
                world.boxes.push(Box {
                    mapping,
                    filtering,
                    outer: address(last).ip(),
                    next_port: 40_000,
                    ports: BTreeMap::new(),
                    sent_to: BTreeMap::new(),
                    mapped: None,
                    came_by_it: BTreeSet::new(),
                });
                world.boxes.len() - 1
            });
            let inner = match kind {
                Some(_) => SocketAddr::from(([10, 0, site, 2], 4783)),
                None => address(last),
            };
            world.add(id, inner, behind);
        }
        for (&id, last) in R[..routers].iter().zip(1..) {
            world.add(id, address(last), None);
        }
        for site in [A, B] {
            world.meet_routers(site);
        }
        world.end(A, B);
        world.end(B, A);
        world
    }

    fn meet_routers(&mut self, site: NodeId) {
        for router in R {
            let Some(at) = self.nodes.get(&router).map(|node| node.inner) else {
                continue;
            };
            let seen = self.outer(site, at);
            self.end(router, site).seen = Some(seen);
            self.end(site, router).seen = Some(at);
        }
    }

    /// Another node behind the NAT of the first site, which wants the second one, too.
    pub(crate) fn add_beside_a(&mut self) {
        let behind = self.node(A).behind;
        self.add(C, SocketAddr::from(([10, 0, 0, 3], 4783)), behind);
        self.meet_routers(C);
        self.end(C, B);
        self.end(B, C);
    }

    fn add(&mut self, id: NodeId, inner: SocketAddr, behind: Option<usize>) {
        let setup = Setup {
            own: id,
            listen: inner,
            seed: id.0,
            neighbours_max: NEIGHBOURS_MAX,
            silent_ns: limits::SILENT_NS,
        };
        let node = Node {
            nat: Nat::new(setup),
            inner,
            behind,
            ends: BTreeMap::new(),
            places: BTreeSet::new(),
            next_look_ns: 0,
            probed: BTreeMap::new(),
            told: BTreeMap::new(),
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
        let node = &self.nodes[&id];
        match node.behind {
            Some(nat) => self.boxes[nat].out(id, target),
            None => node.inner,
        }
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
        let mut at_ns = self.now_ns + self.latency_ns + jitter;
        // What is said in a session is heard in its order.
        if let Event::Said(from, to, _) = event {
            let last_ns = self.said_ns.entry((from, to)).or_default();
            at_ns = at_ns.max(*last_ns);
            *last_ns = at_ns;
        }
        self.events.insert((at_ns, self.count), event);
    }

    fn send(&mut self, from: NodeId, target: SocketAddr, packet: Packet) {
        let source = self.outer(from, target);
        let is_kept = self.number() % 100 >= self.loss_percent;
        if is_kept || self.lossy.is_some_and(|lossy| lossy != from) {
            self.later(Event::Straight(from, source, target, packet));
        }
    }

    /// Whoever gets what goes to an outer address.
    fn receiver(&self, source: SocketAddr, target: SocketAddr) -> Option<NodeId> {
        let mut boxes = self.boxes.iter();
        if let Some(nat) = boxes.find(|nat| nat.outer == target.ip()) {
            return nat.lets_in(target.port(), source);
        }
        let mut nodes = self.nodes.iter();
        let found = nodes.find(|(_, node)| node.behind.is_none() && node.inner == target);
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
        let mut boxes = self.boxes.iter_mut();
        if let Some(nat) = boxes.find(|nat| nat.outer == target.ip())
            && nat.mapped.is_some_and(|(port, _)| port == target.port())
        {
            nat.came_by_it.insert(source);
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
        let adopted = node.ends.iter().filter_map(|(&peer, end)| {
            let (at, _) = end.adopted?;
            Some((peer, at.ip()))
        });
        let places = adopted.chain(node.places.iter().copied()).collect();
        node.nat.look(now_ns, &sights, &places);
        node.next_look_ns = match node.nat.is_busy() {
            true => now_ns + LOOK_SOON_NS,
            false => now_ns + self.look_every_ns,
        };
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
                    self.adoptions.push((now_ns, id, peer));
                    let end = self.end(id, peer);
                    end.adopted = Some((address, None)).filter(|_| !end.is_refused);
                }
                Act::Release { peer } => self.end(id, peer).adopted = None,
            }
        }
        while let Some((peer, said)) = self.node(id).nat.poll_transmit() {
            *self.node(id).told.entry(peer).or_default() += 1;
            let said = match Message::parse(&said) {
                Some(Message::Meet { number, node, .. })
                    if self.liar == Some(id) && self.lied_to.is_none_or(|to| to == peer) =>
                {
                    let address = address(200);
                    Message::Meet {
                        number,
                        node,
                        address,
                    }
                    .encode()
                }
                _ => said,
            };
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
                for (id, peer) in [(A, B), (B, A), (C, B), (B, C)] {
                    let end = self.nodes.get(&id).and_then(|node| node.ends.get(&peer));
                    if let Some((at, _)) = end.and_then(|end| end.adopted) {
                        self.send(id, at, Packet::Alive);
                    }
                }
                // Sessions with routers are kept open as well.
                for (id, router) in [A, B, C].into_iter().flat_map(|id| R.map(|r| (id, r))) {
                    let is_there = |id| self.nodes.contains_key(&id);
                    if is_there(id) && is_there(router) && !self.is_cut {
                        let at = self.nodes[&router].inner;
                        self.send(id, at, Packet::Alive);
                    }
                }
            }
            for &id in &ids {
                self.act(id);
                if self.now_ns >= self.nodes[&id].next_look_ns {
                    self.look(id);
                }
            }
            for id in ids {
                self.act(id);
            }
        }
    }

    /// Whether both sites send to each other straight, and it is heard.
    pub(crate) fn is_punched(&mut self) -> bool {
        self.are_punched(A, B)
    }

    /// The same of any two.
    pub(crate) fn are_punched(&mut self, one: NodeId, other: NodeId) -> bool {
        let now_ns = self.now_ns;
        [(one, other), (other, one)].into_iter().all(|(id, peer)| {
            let way = self.node(id).nat.way(now_ns, peer);
            let adopted = self.end(id, peer).adopted;
            let heard = adopted.and_then(|(_, heard)| heard);
            matches!(way, Some(Way::Punched(_))) && heard.is_some_and(|at| now_ns <= at + DEAD_NS)
        })
    }

    /// Whether a node sends to another one straight, heard or not.
    pub(crate) fn has_adopted(&mut self, id: NodeId, peer: NodeId) -> bool {
        self.end(id, peer).adopted.is_some()
    }

    /// A node cannot have another one as a neighbour from now on.
    pub(crate) fn refuse(&mut self, id: NodeId, peer: NodeId) {
        let end = self.end(id, peer);
        (end.is_refused, end.adopted) = (true, None);
    }

    /// A peer's packets come from elsewhere.
    pub(crate) fn see(&mut self, id: NodeId, peer: NodeId, at: SocketAddr) {
        self.end(id, peer).seen = Some(at);
    }

    /// Why the first site relays to the second one; none where it does not.
    pub(crate) fn why(&mut self) -> Option<String> {
        self.why_of(A)
    }

    /// The same of another node.
    pub(crate) fn why_of(&mut self, id: NodeId) -> Option<String> {
        let now_ns = self.now_ns;
        match self.node(id).nat.way(now_ns, B)? {
            Way::Relayed(why) => Some(why),
            Way::Punched(_) => None,
        }
    }

    /// The router of a site maps a port to it, or none any more, and the site knows.
    pub(crate) fn map_port(&mut self, id: NodeId, port: Option<u16>) {
        self.give_port(id, port);
        self.say_port(id, port);
    }

    /// The router does so; the site does not know.
    pub(crate) fn give_port(&mut self, id: NodeId, port: Option<u16>) {
        let nat = self.node(id).behind.expect("a NAT");
        let nat = &mut self.boxes[nat];
        nat.mapped = port.map(|port| (port, id));
        nat.came_by_it.clear();
    }

    /// The site is told so, whatever the router does.
    pub(crate) fn say_port(&mut self, id: NodeId, port: Option<u16>) {
        let nat = self.node(id).behind.expect("a NAT");
        let at = port.map(|port| SocketAddr::new(self.boxes[nat].outer, port));
        let now_ns = self.now_ns;
        self.node(id).nat.set_mapped(now_ns, at);
    }

    /// The NAT of a site gives out other addresses from now on.
    pub(crate) fn rebind(&mut self, id: NodeId) {
        let nat = self.node(id).behind.expect("a NAT");
        self.boxes[nat].rebind();
    }
}
