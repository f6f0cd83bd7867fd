//! A simulated mesh: routers, links with delays, tables, and a clock; a seed replays all of it.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    rc::Rc,
};
use virga_ebpf::{
    hash,
    header::{NodeId, Subnet},
};
use virga_routing::{
    Aggregation, Announcement, Authority, Destination, Doubt, Liveness, NextHops, Now, Router,
    Setup, Speaker, limits,
};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000 * MS;
/// A link that falls silent is noticed within this.
pub(crate) const DETECT_NS: u64 = 50 * MS;
/// Wall clock at time 0.
pub(crate) const UNIX_S: u64 = 1_800_000_000;
/// Cost of a link where nothing else is said.
pub(crate) const COST: u32 = 300;

/// splitmix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }
}

/// The mesh's name, hashed.
pub(crate) const NETWORK: [u8; 32] = [0x33; 32];

/// Signatures that only look like some: the key's owner is who knows how. Real ones are in a test of their own.
pub(crate) fn stamp(entity_key: [u8; 32], message: &[u8]) -> [u8; 64] {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for &byte in entity_key.iter().chain(message) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let mut random = Random(hash);
    let mut out = [0; 64];
    for chunk in out.chunks_mut(8) {
        chunk.copy_from_slice(&random.next().to_be_bytes());
    }
    out
}

pub(crate) fn node_key(index: usize) -> [u8; 32] {
    let mut key = [7; 32];
    key[..8].copy_from_slice(&(index as u64).to_be_bytes());
    key
}

/// Whom a node knows: those whose entity key follows from the node key.
#[derive(Clone, Debug)]
pub(crate) struct Cheap {
    pub(crate) index: usize,
    pub(crate) known_below: usize,
    pub(crate) strangers: Strangers,
    pub(crate) entities: Entities,
}

/// Who does not know whom, or not yet, or not any more.
pub(crate) type Strangers = Rc<RefCell<BTreeSet<(usize, usize)>>>;

/// Which entity one node takes another one's for, where it is not the first.
pub(crate) type Entities = Rc<RefCell<BTreeMap<(usize, usize), u8>>>;

impl Cheap {
    fn entity_of(&self, index: usize, node_key: [u8; 32]) -> [u8; 32] {
        let which = self.entities.borrow().get(&(self.index, index)).copied();
        node_key.map(|byte| !byte ^ which.unwrap_or(0))
    }
}

impl Authority for Cheap {
    fn network(&self) -> [u8; 32] {
        NETWORK
    }

    fn node_key(&self) -> [u8; 32] {
        node_key(self.index)
    }

    fn entity_key(&self) -> [u8; 32] {
        self.entity_of(self.index, self.node_key())
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        stamp(self.entity_key(), message)
    }

    fn knows(&self, speaker: &Speaker) -> Result<(), Doubt> {
        let key = speaker.node_key;
        let index = u64::from_be_bytes(key[..8].try_into().unwrap());
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let is_known =
            index < self.known_below && !self.strangers.borrow().contains(&(self.index, index));
        // Another entity may have come to the node, and this one not know it yet.
        match is_known && key[8..] == [7; 24] && speaker.entity_key == self.entity_of(index, key) {
            true => Ok(()),
            false => Err(Doubt::Stranger),
        }
    }

    fn is_signed(&self, announcement: &Announcement) -> bool {
        announcement.signature() == stamp(announcement.entity_key(), announcement.signed())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Both ends are told at once.
    Reported,
    /// Both ends find out.
    Silent,
}

#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) delay_ns: u64,
    /// Lost packets come later.
    pub(crate) jitter_ns: u64,
    pub(crate) cost: u32,
    pub(crate) is_up: bool,
    /// Counts the streams between both ends: what belongs to an earlier one arrives no more.
    stream: u64,
    /// When the last message of each direction arrives.
    busy_until: [u64; 2],
}

pub(crate) struct Node {
    pub(crate) router: Option<Router<Cheap>>,
    pub(crate) table: BTreeMap<Destination, NextHops>,
    pub(crate) subnet: Subnet,
    /// Streams as this node sees them.
    streams: BTreeMap<usize, u64>,
    pub(crate) clock_ahead_s: i64,
    pub(crate) is_evil: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Message {
        from: usize,
        to: usize,
        stream: u64,
        bytes: Vec<u8>,
    },
    Up {
        node: usize,
        with: usize,
        stream: u64,
    },
    Down {
        node: usize,
        with: usize,
        stream: u64,
    },
    Timer {
        node: usize,
    },
}

pub(crate) struct World {
    pub(crate) now_ns: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) links: BTreeMap<(usize, usize), Link>,
    pub(crate) random: Random,
    pub(crate) setup: Setup,
    pub(crate) ids: HashMap<NodeId, usize>,
    /// By the node.
    id_of: Vec<NodeId>,
    pub(crate) messages: u64,
    pub(crate) message_bytes: u64,
    pub(crate) last_change_ns: u64,
    pub(crate) is_checked: bool,
    /// Nodes are late by up to this with what is due.
    pub(crate) late_ns: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    /// What each node is woken for next: when that is due, and when it is.
    timers: BTreeMap<usize, (u64, u64)>,
    sequence: u64,
    pub(crate) seed: u64,
    known_below: usize,
    pub(crate) strangers: Strangers,
    pub(crate) entities: Entities,
}

pub(crate) const SETUP: Setup = Setup {
    subnet: Subnet(0),
    aggregation: Aggregation::Exact,
    seqno: 1_000,
    quiet_ns: 0,
    destinations_max: limits::DESTINATIONS_MAX,
};

pub(crate) fn key(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl World {
    /// Nodes that have just started, without any link.
    pub(crate) fn new(seed: u64, nodes: usize) -> Self {
        Self::in_subnets(seed, &vec![Subnet(0); nodes], Aggregation::Exact)
    }

    pub(crate) fn in_subnets(seed: u64, subnets: &[Subnet], aggregation: Aggregation) -> Self {
        let mut world = Self {
            now_ns: 0,
            nodes: Vec::new(),
            links: BTreeMap::new(),
            random: Random(seed),
            setup: Setup {
                aggregation,
                ..SETUP
            },
            ids: HashMap::new(),
            id_of: Vec::new(),
            messages: 0,
            message_bytes: 0,
            last_change_ns: 0,
            is_checked: true,
            late_ns: 0,
            events: BinaryHeap::new(),
            timers: BTreeMap::new(),
            sequence: 0,
            seed,
            known_below: subnets.len(),
            strangers: Strangers::default(),
            entities: Entities::default(),
        };
        for (index, &subnet) in subnets.iter().enumerate() {
            world.nodes.push(Node {
                router: None,
                table: BTreeMap::new(),
                subnet,
                streams: BTreeMap::new(),
                clock_ahead_s: 0,
                is_evil: false,
            });
            let id = hash::node_id(&node_key(index));
            world.ids.insert(id, index);
            world.id_of.push(id);
            // Where several nodes announce one thing, each has numbers of its own.
            let own = match aggregation {
                Aggregation::Exact => 0,
                Aggregation::BySubnet => index as u64,
            };
            world.boot(index, world.setup.seqno + own, 0);
        }
        world
    }

    fn boot(&mut self, index: usize, seqno: u64, quiet_ns: u64) {
        let subnet = self.nodes[index].subnet;
        let setup = Setup {
            subnet,
            seqno,
            quiet_ns,
            ..self.setup
        };
        let authority = self.authority(index);
        let router = Router::new(self.now_of(index), setup, authority);
        self.nodes[index].router = Some(router);
        self.drain(index);
    }

    pub(crate) fn id(&self, index: usize) -> NodeId {
        self.id_of[index]
    }

    pub(crate) fn now_of(&self, index: usize) -> Now {
        let unix_s =
            (UNIX_S + self.now_ns / SECOND).saturating_add_signed(self.nodes[index].clock_ahead_s);
        Now {
            ns: self.now_ns,
            unix_s,
        }
    }

    fn push(&mut self, at_ns: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at_ns, self.sequence, event)));
    }

    pub(crate) fn add_link(&mut self, a: usize, b: usize, delay_ns: u64, cost: u32) {
        let link = Link {
            delay_ns,
            jitter_ns: 0,
            cost,
            is_up: false,
            stream: 0,
            busy_until: [0; 2],
        };
        self.links.insert(key(a, b), link);
        self.join(a, b);
    }

    /// The link is there (again), and a new stream begins.
    pub(crate) fn join(&mut self, a: usize, b: usize) {
        let link = self.links.get_mut(&key(a, b)).unwrap();
        if link.is_up {
            return;
        }
        link.is_up = true;
        link.stream += 1;
        let (stream, delay_ns) = (link.stream, link.delay_ns);
        link.busy_until = [0; 2];
        self.push(
            self.now_ns + delay_ns,
            Event::Up {
                node: a,
                with: b,
                stream,
            },
        );
        self.push(
            self.now_ns + 2 * delay_ns,
            Event::Up {
                node: b,
                with: a,
                stream,
            },
        );
    }

    pub(crate) fn cut(&mut self, a: usize, b: usize, cut: Cut) {
        let link = self.links.get_mut(&key(a, b)).unwrap();
        link.is_up = false;
        let stream = link.stream;
        for (node, with) in [(a, b), (b, a)] {
            let after = match cut {
                Cut::Reported => self.random.between(0, MS),
                Cut::Silent => self.random.between(DETECT_NS / 2, DETECT_NS),
            };
            self.push(self.now_ns + after, Event::Down { node, with, stream });
        }
    }

    /// The stream between two ends breaks and begins anew, and nothing else.
    pub(crate) fn reset(&mut self, a: usize, b: usize) {
        self.cut(a, b, Cut::Reported);
        self.join(a, b);
    }

    /// A node loses its memory and its tables, and starts anew: its neighbours find out.
    pub(crate) fn restart(&mut self, index: usize, seqno: u64) {
        let peers = self.peers(index);
        for &peer in &peers {
            self.cut(index, peer, Cut::Silent);
        }
        self.nodes[index].table.clear();
        self.nodes[index].streams.clear();
        self.boot(index, seqno, 2 * DETECT_NS);
        for peer in peers {
            self.join(index, peer);
        }
    }

    /// A node goes by what it now knows of the others.
    pub(crate) fn reconsider(&mut self, index: usize) {
        let (now, authority) = (self.now_of(index), self.authority(index));
        if let Some(router) = &mut self.nodes[index].router {
            router.set_authority(now, authority);
        }
        self.drain(index);
    }

    fn authority(&self, index: usize) -> Cheap {
        Cheap {
            index,
            known_below: self.known_below,
            strangers: Rc::clone(&self.strangers),
            entities: Rc::clone(&self.entities),
        }
    }

    pub(crate) fn peers(&self, index: usize) -> Vec<usize> {
        let of = |(&(a, b), _): (&(usize, usize), &Link)| {
            (a == index || b == index).then_some(if a == index { b } else { a })
        };
        self.links.iter().filter_map(of).collect()
    }

    pub(crate) fn set_cost(&mut self, node: usize, with: usize, cost: u32) {
        let (now, id) = (self.now_of(node), self.id(with));
        if let Some(router) = &mut self.nodes[node].router {
            router.set_cost(now, id, cost);
        }
        self.drain(node);
    }

    pub(crate) fn set_liveness(&mut self, node: usize, with: usize, liveness: Liveness) {
        let (now, id) = (self.now_of(node), self.id(with));
        if let Some(router) = &mut self.nodes[node].router {
            router.set_liveness(now, id, liveness);
        }
        self.drain(node);
    }

    /// Something is said to a node that no router of the mesh has said.
    pub(crate) fn inject(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        self.send(from, to, bytes);
    }

    fn send(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        let Some(&stream) = self.nodes[from].streams.get(&to) else {
            return;
        };
        self.messages += 1;
        self.message_bytes += bytes.len() as u64;
        let link = self.links.get_mut(&key(from, to)).unwrap();
        let jitter = match link.jitter_ns {
            0 => 0,
            most => self.random.between(0, most),
        };
        let busy = &mut link.busy_until[usize::from(from > to)];
        let at = (self.now_ns + link.delay_ns + jitter).max(*busy);
        *busy = at;
        self.push(
            at,
            Event::Message {
                from,
                to,
                stream,
                bytes,
            },
        );
    }

    /// Brings what a router says into its table, and then to its neighbours.
    fn drain(&mut self, index: usize) {
        let mut changes = Vec::new();
        let mut out = Vec::new();
        let mut due = None;
        if let Some(router) = &mut self.nodes[index].router {
            changes.extend(std::iter::from_fn(|| router.poll_route()));
            out.extend(std::iter::from_fn(|| router.poll_transmit()));
            due = router.poll_timeout();
        }
        for change in changes {
            self.last_change_ns = self.now_ns;
            let table = &mut self.nodes[index].table;
            match change.next_hops {
                Some(next_hops) => table.insert(change.destination, next_hops),
                None => table.remove(&change.destination),
            };
            if self.is_checked && !self.nodes[index].is_evil {
                self.check_no_loop_from(index, change.destination);
            }
        }
        for (to, bytes) in out {
            self.send(index, self.ids[&to], bytes);
        }
        let waits = self.timers.get(&index).copied();
        let waits = waits.filter(|&(_, at)| at > self.now_ns);
        if let Some(due) = due
            && waits.is_none_or(|(known, _)| due < known)
        {
            let late = match self.late_ns {
                0 => 0,
                most => self.random.between(0, most),
            };
            let at = due.max(self.now_ns) + late;
            let at = waits.map_or(at, |(_, known)| known.min(at));
            self.timers.insert(index, (due, at));
            self.push(at, Event::Timer { node: index });
        }
    }

    /// No walk over primaries and backups of honest nodes comes back to where the table has just changed.
    fn check_no_loop_from(&self, start: usize, destination: Destination) {
        let mut seen = BTreeSet::new();
        let mut next = vec![start];
        while let Some(node) = next.pop() {
            let Some(hops) = self.nodes[node].table.get(&destination) else {
                continue;
            };
            for hop in std::iter::once(hops.primary).chain(hops.backup) {
                let hop = self.ids[&hop];
                assert_ne!(
                    hop,
                    start,
                    "seed {:#x}: at {} ms a loop to {destination} over node {start}",
                    self.seed,
                    self.now_ns / MS
                );
                if !self.nodes[hop].is_evil && seen.insert(hop) {
                    next.push(hop);
                }
            }
        }
    }

    pub(crate) fn run_until(&mut self, until_ns: u64) {
        while self
            .events
            .peek()
            .is_some_and(|Reverse((at, ..))| *at <= until_ns)
        {
            let Some(Reverse((at, _, event))) = self.events.pop() else {
                break;
            };
            self.now_ns = at;
            self.step(event);
        }
        self.now_ns = until_ns;
    }

    pub(crate) fn run_for(&mut self, ns: u64) {
        self.run_until(self.now_ns + ns);
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Message {
                from,
                to,
                stream,
                bytes,
            } => {
                let is_live =
                    self.links[&key(from, to)].stream == stream && self.links[&key(from, to)].is_up;
                if !is_live {
                    return;
                }
                // The stream's other end is there before anything comes over it.
                self.up(to, from, stream);
                let (now, id) = (self.now_of(to), self.id(from));
                if let Some(router) = &mut self.nodes[to].router {
                    router.handle(now, id, &bytes);
                }
                self.drain(to);
            }
            Event::Up { node, with, stream } => {
                let link = &self.links[&key(node, with)];
                if link.stream == stream && link.is_up {
                    self.up(node, with, stream);
                }
            }
            Event::Down { node, with, stream } => {
                if self.nodes[node].streams.get(&with) == Some(&stream) {
                    self.nodes[node].streams.remove(&with);
                    let (now, id) = (self.now_of(node), self.id(with));
                    if let Some(router) = &mut self.nodes[node].router {
                        router.neighbour_down(now, id);
                    }
                    self.drain(node);
                }
            }
            Event::Timer { node } => {
                if self
                    .timers
                    .get(&node)
                    .is_none_or(|&(_, at)| at > self.now_ns)
                {
                    return;
                }
                self.timers.remove(&node);
                let now = self.now_of(node);
                if let Some(router) = &mut self.nodes[node].router {
                    router.handle_timeout(now);
                }
                self.drain(node);
            }
        }
    }

    fn up(&mut self, node: usize, with: usize, stream: u64) {
        if self.nodes[node].streams.get(&with) == Some(&stream) {
            return;
        }
        self.nodes[node].streams.insert(with, stream);
        let cost = self.links[&key(node, with)].cost;
        let (now, id, subnet) = (self.now_of(node), self.id(with), self.nodes[with].subnet);
        if let Some(router) = &mut self.nodes[node].router {
            router.neighbour_up(now, id, subnet, cost);
        }
        self.drain(node);
    }
}
