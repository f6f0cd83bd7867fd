//! Nodes, and a network between them that keeps time. A session is there while both ends have each other as a peer, by
//! the right keys and at the right address.

use ed25519_dalek::{Signer as _, SigningKey};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};
use virga_discovery::{
    Adopted, Authority, Claim, Discovery, Found, MemberState, Notice, Now, Origin, Pinned, Setup,
    limits::SECOND_NS, record,
};
use virga_ebpf::{hash, header::NodeId, header::Subnet};

pub(crate) const STEP_NS: u64 = SECOND_NS / 20;
/// When what was lost is sent again first, and then after twice as long.
const RESEND_NS: u64 = SECOND_NS / 5;
/// How long an end has a session with a node that is gone.
const SILENCE_NS: u64 = 10 * SECOND_NS;
const UNIX_S: u64 = 1_800_000_000;

pub(crate) struct Keys {
    pub(crate) key: SigningKey,
    pub(crate) admits: fn(&Claim) -> bool,
}

impl Authority for Keys {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }

    fn admits(&self, claim: &Claim) -> bool {
        (self.admits)(claim)
    }
}

pub(crate) struct Node {
    id: NodeId,
    entity_key: [u8; 32],
    pub(crate) address: SocketAddr,
    pub(crate) core: Discovery<Keys>,
    pub(crate) adopted: BTreeMap<NodeId, Adopted>,
    /// With whom, by place.
    pub(crate) sessions: BTreeSet<usize>,
    pub(crate) notices: Vec<Notice>,
    pub(crate) is_running: bool,
    /// It does nothing until then.
    pub(crate) stopped_until_ns: u64,
    waiting: Vec<Mail>,
}

enum Mail {
    Said(usize, Vec<u8>),
    Introduced(SocketAddr, Vec<u8>),
}

pub(crate) struct World {
    pub(crate) now_ns: u64,
    pub(crate) nodes: Vec<Node>,
    /// Pairs that do not hear each other.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// Sessions whose other end is gone, until they are over.
    silent: BTreeMap<(usize, usize), u64>,
    pub(crate) said: u64,
    pub(crate) introduced: u64,
    pub(crate) dialled: u64,
    /// Of a hundred packets from one place to another so many are lost. In a session they are sent again, and what follows
    /// waits for them.
    pub(crate) loss: fn(usize, usize) -> u64,
    random: u64,
    /// What is under way, and when it is there.
    flying: Vec<(u64, usize, Mail)>,
    /// When the last message from one place is at another.
    last_ns: BTreeMap<(usize, usize), u64>,
    /// Nodes whose sessions may change.
    changed: BTreeSet<usize>,
    /// As it was the last time.
    cut_before: BTreeSet<(usize, usize)>,
}

pub(crate) fn entity(number: u16) -> SigningKey {
    let mut seed = [7; 32];
    seed[..2].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_bytes(&seed)
}

pub(crate) fn entity_key(number: u16) -> [u8; 32] {
    entity(number).verifying_key().to_bytes()
}

pub(crate) fn node_key(number: u16) -> [u8; 32] {
    hash::keyed(b"test node", &[&number.to_be_bytes()])
}

pub(crate) fn id(number: u16) -> NodeId {
    hash::node_id(&node_key(number))
}

pub(crate) fn address(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    SocketAddr::from(([10, 0, high, low], 4783))
}

pub(crate) fn pinned(number: u16) -> Pinned {
    Pinned {
        name: format!("n{number}"),
        node_key: node_key(number),
        entity_key: entity_key(number),
        addresses: vec![address(number)],
    }
}

pub(crate) fn setup(number: u16, address: SocketAddr, now: Now) -> Setup {
    Setup {
        node_key: node_key(number),
        entity_key: entity_key(number),
        network: record::network("test"),
        name: format!("n{number}"),
        subnet: Subnet(0),
        addresses: vec![address],
        instance: (u64::from(number) << 32)
            | (now.ns / STEP_NS)
            | (u64::from(address.port()) << 16),
        started_ms: now.unix_s * 1_000 + now.ns / 1_000_000 % 1_000,
        exchanges: true,
        is_ipv4: true,
        peers_max: 256,
        configured: BTreeMap::new(),
        seed: u64::from(number) + now.ns,
    }
}

/// Another node's word, as that node would sign it.
pub(crate) fn claim(number: u16, now: Now, sequence: u64) -> Claim {
    Claim {
        node_key: node_key(number),
        entity_key: entity_key(number),
        network: record::network("test"),
        subnet: Subnet(0),
        instance: 1,
        sequence,
        issued_s: now.unix_s,
        lifetime_s: 1_800,
        name: format!("n{number}"),
        addresses: vec![address(number)],
    }
}

pub(crate) fn signed(claim: &Claim, number: u16) -> virga_discovery::Record {
    virga_discovery::Record::issue(claim, |m| entity(number).sign(m).to_bytes()).unwrap()
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Default for World {
    fn default() -> Self {
        Self {
            now_ns: 0,
            nodes: Vec::new(),
            cut: BTreeSet::new(),
            silent: BTreeMap::new(),
            said: 0,
            introduced: 0,
            dialled: 0,
            loss: |_, _| 0,
            random: 1,
            flying: Vec::new(),
            last_ns: BTreeMap::new(),
            changed: BTreeSet::new(),
            cut_before: BTreeSet::new(),
        }
    }
}

impl World {
    /// Whether a packet is lost.
    fn loses(&mut self, from: usize, to: usize) -> bool {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % 100 < (self.loss)(from, to)
    }

    /// Sends a message in a session.
    fn send(&mut self, from: usize, to: usize, message: Vec<u8>) {
        let (mut at_ns, mut again_ns) = (self.now_ns, RESEND_NS);
        while self.loses(from, to) {
            at_ns += again_ns;
            again_ns *= 2;
        }
        let last_ns = self.last_ns.entry((from, to)).or_default();
        *last_ns = at_ns.max(*last_ns);
        self.flying.push((*last_ns, to, Mail::Said(from, message)));
    }

    pub(crate) fn now(&self) -> Now {
        Now {
            ns: self.now_ns,
            unix_s: UNIX_S + self.now_ns / SECOND_NS,
        }
    }

    /// Starts a node that knows these seeds; its place.
    pub(crate) fn start(&mut self, number: u16, seeds: &[u16]) -> usize {
        self.start_with(number, address(number), seeds, |_| {})
    }

    pub(crate) fn start_with(
        &mut self,
        number: u16,
        address: SocketAddr,
        seeds: &[u16],
        change: impl FnOnce(&mut Setup),
    ) -> usize {
        let now = self.now();
        let mut setup = setup(number, address, now);
        change(&mut setup);
        let keys = Keys {
            key: entity(number),
            admits: |_| true,
        };
        let mut core = Discovery::new(now, setup, keys).unwrap();
        for &seed in seeds {
            core.found(now, Origin::Seed, Found::Pinned(pinned(seed)));
        }
        self.nodes.push(Node {
            id: id(number),
            entity_key: entity_key(number),
            address,
            core,
            adopted: BTreeMap::new(),
            sessions: BTreeSet::new(),
            notices: Vec::new(),
            is_running: true,
            stopped_until_ns: 0,
            waiting: Vec::new(),
        });
        self.nodes.len() - 1
    }

    /// The others have their sessions with it for a while.
    pub(crate) fn kill(&mut self, place: usize) {
        self.nodes[place].is_running = false;
        for other in std::mem::take(&mut self.nodes[place].sessions) {
            self.silent.insert((other, place), self.now_ns + SILENCE_NS);
        }
    }

    fn at(&self, address: SocketAddr) -> Option<usize> {
        let mut nodes = self.nodes.iter();
        nodes.position(|node| node.is_running && node.address == address)
    }

    fn hears(&self, a: usize, b: usize) -> bool {
        !self.cut.contains(&pair(a, b))
    }

    /// Whether `a` would take a session with `b`.
    fn takes(&self, a: usize, b: usize) -> bool {
        let (from, to) = (&self.nodes[a], &self.nodes[b]);
        let adopted = from.adopted.get(&to.id);
        adopted.is_some_and(|peer| peer.address == to.address && peer.entity_key == to.entity_key)
    }

    fn end(&mut self, a: usize, b: usize) {
        let now = self.now();
        if self.nodes[a].sessions.remove(&b) {
            let node = self.nodes[b].id;
            self.nodes[a].core.session_ended(now, node);
        }
    }

    fn follow_sessions(&mut self) {
        let now = self.now();
        let over: Vec<_> = self
            .silent
            .iter()
            .filter(|(_, until)| **until <= self.now_ns)
            .map(|(&p, _)| p)
            .collect();
        for (at, gone) in over {
            self.silent.remove(&(at, gone));
            self.end_one(at, gone);
        }
        if self.cut != self.cut_before {
            self.cut_before = self.cut.clone();
            self.changed.extend(0..self.nodes.len());
        }
        let places = self.nodes.iter().enumerate();
        let running = places.filter(|(_, node)| node.is_running);
        let at: BTreeMap<SocketAddr, usize> =
            running.map(|(place, node)| (node.address, place)).collect();
        for a in std::mem::take(&mut self.changed) {
            let wants: Vec<SocketAddr> = self.nodes[a]
                .adopted
                .values()
                .map(|one| one.address)
                .collect();
            let mut with: BTreeSet<usize> = wants
                .iter()
                .filter_map(|address| at.get(address).copied())
                .collect();
            with.extend(self.nodes[a].sessions.iter().copied());
            for b in with {
                let is_on = self.nodes[a].sessions.contains(&b);
                let are_running = self.nodes[a].is_running && self.nodes[b].is_running;
                let is_wanted =
                    are_running && self.takes(a, b) && self.takes(b, a) && self.hears(a, b);
                if is_on && are_running && !is_wanted {
                    self.end(a, b);
                    self.end(b, a);
                }
                if !is_on && is_wanted && a != b {
                    self.dialled += 1;
                    for (at, other) in [(a, b), (b, a)] {
                        // A new session takes an old one's place.
                        let (node, entity_key) =
                            (self.nodes[other].id, self.nodes[other].entity_key);
                        let twins: Vec<usize> = self.nodes[at]
                            .sessions
                            .iter()
                            .copied()
                            .filter(|&s| self.nodes[s].id == node)
                            .collect();
                        for twin in twins {
                            self.silent.remove(&(at, twin));
                            self.end(at, twin);
                        }
                        self.nodes[at].sessions.insert(other);
                        self.nodes[at].core.session_began(now, node, entity_key);
                    }
                }
            }
        }
    }

    fn end_one(&mut self, at: usize, gone: usize) {
        let node = self.nodes[gone].id;
        let others = self.nodes[at].sessions.iter();
        let has_another = others
            .filter(|&&s| s != gone)
            .any(|&s| self.nodes[s].id == node);
        if !has_another {
            let now = self.now();
            self.nodes[at].sessions.remove(&gone);
            self.nodes[at].core.session_ended(now, node);
        }
    }

    pub(crate) fn step(&mut self) {
        self.now_ns += STEP_NS;
        let now = self.now();
        for (at_ns, to, mail) in std::mem::take(&mut self.flying) {
            if at_ns > self.now_ns {
                self.flying.push((at_ns, to, mail));
            } else if self.nodes[to].is_running {
                self.nodes[to].waiting.push(mail);
            }
        }
        for place in 0..self.nodes.len() {
            if !self.nodes[place].is_running || self.nodes[place].stopped_until_ns > self.now_ns {
                continue;
            }
            for mail in std::mem::take(&mut self.nodes[place].waiting) {
                match mail {
                    Mail::Said(from, message) if self.nodes[place].sessions.contains(&from) => {
                        let node = self.nodes[from].id;
                        self.nodes[place].core.handle(now, node, &message);
                    }
                    Mail::Said(..) => {}
                    Mail::Introduced(source, words) => {
                        self.nodes[place].core.introduced(now, source, &words);
                    }
                }
            }
            self.nodes[place].core.handle_timeout(now);
            self.collect(place);
        }
        self.follow_sessions();
        for place in 0..self.nodes.len() {
            if self.nodes[place].is_running && self.nodes[place].stopped_until_ns <= self.now_ns {
                self.collect(place);
            }
        }
    }

    fn collect(&mut self, place: usize) {
        while let Some(notice) = self.nodes[place].core.poll_notice() {
            self.nodes[place].notices.push(notice);
        }
        if self.nodes[place].core.has_changed() {
            self.changed.insert(place);
            let adopted = self.nodes[place].core.adopted();
            let addresses: BTreeSet<_> = adopted.iter().map(|one| one.address).collect();
            assert_eq!(
                addresses.len(),
                adopted.len(),
                "each has an address of its own"
            );
            self.nodes[place].adopted = adopted.into_iter().map(|one| (one.node, one)).collect();
        }
        while let Some((to, message)) = self.nodes[place].core.poll_transmit() {
            self.said += 1;
            let sessions = self.nodes[place].sessions.iter();
            let to = sessions.copied().find(|&s| self.nodes[s].id == to);
            if let Some(to) = to.filter(|&to| self.hears(place, to)) {
                self.send(place, to, message);
            }
        }
        while let Some(to) = self.nodes[place].core.poll_introduction() {
            self.introduced += 1;
            let words = self.nodes[place].core.own().bytes().to_vec();
            let at = self.nodes[place].adopted.get(&to).map(|one| one.address);
            let to = at.and_then(|at| self.at(at));
            if let Some(to) = to.filter(|&to| self.hears(place, to))
                && !self.loses(place, to)
            {
                let source = self.nodes[place].address;
                let mail = Mail::Introduced(source, words);
                self.flying.push((self.now_ns, to, mail));
            }
        }
    }

    pub(crate) fn run(&mut self, seconds: u64) {
        let end_ns = self.now_ns + seconds * SECOND_NS;
        while self.now_ns < end_ns {
            self.step();
        }
    }

    /// Runs until that is so; how many seconds that took.
    pub(crate) fn run_until(
        &mut self,
        what: &str,
        seconds: u64,
        is_so: impl Fn(&Self) -> bool,
    ) -> u64 {
        let begin_ns = self.now_ns;
        while !is_so(self) {
            assert!(
                self.now_ns - begin_ns < seconds * SECOND_NS,
                "{what}: not within {seconds} s"
            );
            self.step();
        }
        (self.now_ns - begin_ns) / SECOND_NS
    }

    /// Whether all that run have sessions with each other.
    pub(crate) fn is_whole(&self) -> bool {
        let running = self.nodes.iter().filter(|node| node.is_running).count();
        let mut nodes = self.nodes.iter().filter(|node| node.is_running);
        nodes.all(|node| {
            let living = node.sessions.iter().filter(|&&s| self.nodes[s].is_running);
            living.count() + 1 == running
        })
    }

    pub(crate) fn state(&self, at: usize, of: usize) -> Option<MemberState> {
        let members = self.nodes[at].core.swim().members();
        members.get(&self.nodes[of].id).map(|member| member.state)
    }

    /// Times that somebody was called dead by anybody.
    pub(crate) fn deaths(&self) -> usize {
        let notices = self.nodes.iter().flat_map(|node| &node.notices);
        let is_death = |notice: &&Notice| matches!(notice, Notice::Member(change) if change.state == MemberState::Dead);
        notices.filter(is_death).count()
    }
}

impl World {
    /// Whether these have sessions with each other.
    pub(crate) fn is_whole_of(&self, places: &[usize]) -> bool {
        let all = places.iter();
        all.clone().all(|&a| {
            all.clone()
                .all(|b| a == *b || self.nodes[a].sessions.contains(b))
        })
    }
}
