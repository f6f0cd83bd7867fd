//! All of it: what is seen, said and tried, of all peers.

mod meeting;
mod said;
mod tries;
mod why;

use crate::{
    class::{Evidence, Filtering, Mapping},
    limits::{
        ASKS_BURST, ASKS_PAUSE_NS, HINTS_BURST, HINTS_PAUSE_NS, MET_BURST, MET_PAUSE_NS,
        PROBES_BURST, PROBES_PAUSE_NS, SAID_BURST, SAID_PAUSE_NS, STABLE_NS,
    },
    reason::Reason,
    wire::{Message, No},
};
use meeting::{Meeting, Stage};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
};
use tries::Tried;
use virga_ebpf::header::NodeId;
use virga_routing::allowance::Allowance;
use why::Why;

/// What a node is.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Its id.
    pub own: NodeId,
    /// Where its socket is: it sends to addresses of that family alone, and to loopback only from there.
    pub listen: SocketAddr,
    /// For jitter and numbers.
    pub seed: u64,
    /// Nodes that may be sent to straight at a time, those of the configuration among them.
    pub neighbours_max: usize,
    /// How long the link to a peer that was reached may be silent before that is taken back.
    pub silent_ns: u64,
}

/// What a peer is to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The configuration says where it is, and UDP reaches it.
    Neighbour,
    /// Routers relay its packets, and it may be sent to straight.
    Wanted,
    /// It is sent to straight since [`Act::Adopt`].
    Punched {
        /// Its link is found dead, or not found alive yet.
        is_silent: bool,
    },
    /// Nothing of that.
    Other,
}

/// A peer, as it is seen now.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// Which session there is with it: what was said before counts in no other one.
    pub session: u64,
    /// What it is to this node.
    pub relation: Relation,
    /// Where its packets come from, where they come straight.
    pub seen: Option<SocketAddr>,
    /// The address that this node itself has towards it.
    pub local: Option<SocketAddr>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Ask a peer, in the session with it, for an answer from there; [`Nat::reached`] tells when it comes.
    Probe {
        /// Whom.
        peer: NodeId,
        /// Where.
        address: SocketAddr,
    },
    /// Send to it straight from now on, and keep the relay for when that fails.
    Adopt {
        /// Whom.
        peer: NodeId,
        /// Where.
        address: SocketAddr,
    },
    /// Do that no more.
    Release {
        /// Whom.
        peer: NodeId,
    },
}

/// How packets get to a peer that the configuration has no address of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Over routers, for this reason.
    Relayed(String),
    /// Through the NATs, for this reason.
    Punched(String),
}

/// A peer that there is a session with.
#[derive(Debug)]
struct Peer {
    sight: Sight,
    /// What it says of its NAT; none: it does not do this.
    mapping: Option<Mapping>,
    /// What it was told last of this node's, and of itself.
    told: (Option<Mapping>, Option<SocketAddr>),
    /// When it was told all of it.
    told_ns: u64,
    /// And of where its router leads to it; none: nothing.
    told_mapped: Option<Option<SocketAddr>>,
    /// Where the peer's own router does, by its word.
    mapped: Option<SocketAddr>,
    /// How often that, of one that this node asks for meetings with, may bring the next one forward.
    hints: Allowance,
    said: Allowance,
    /// Meetings that it asks for, and that others ask for with it.
    asks: Allowance,
    met: Allowance,
}

impl Peer {
    const fn new(sight: Sight) -> Self {
        Self {
            sight,
            mapping: None,
            told: (None, None),
            told_ns: 0,
            told_mapped: None,
            mapped: None,
            hints: Allowance::new(HINTS_BURST, HINTS_PAUSE_NS),
            said: Allowance::new(SAID_BURST, SAID_PAUSE_NS),
            asks: Allowance::new(ASKS_BURST, ASKS_PAUSE_NS),
            met: Allowance::new(MET_BURST, MET_PAUSE_NS),
        }
    }

    /// Whether its packets come straight, from an address that lasts.
    const fn is_near(&self) -> bool {
        matches!(
            self.sight.relation,
            Relation::Neighbour | Relation::Punched { is_silent: false }
        )
    }

    /// Whether it is one whose word for where others are counts, and for whom others are told where it is.
    const fn is_neighbour(&self) -> bool {
        matches!(self.sight.relation, Relation::Neighbour)
    }
}

/// A peer that is sent to straight.
#[derive(Clone, Copy, Debug)]
struct Punched {
    address: SocketAddr,
    number: u64,
    via: NodeId,
    since_ns: u64,
    silent_ns: Option<u64>,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Nat {
    setup: Setup,
    peers: BTreeMap<NodeId, Peer>,
    tried: BTreeMap<NodeId, Tried>,
    meetings: BTreeMap<NodeId, Meeting>,
    punched: BTreeMap<NodeId, Punched>,
    /// Where nodes are that are sent to straight, or were and may be again.
    places: BTreeSet<(NodeId, IpAddr)>,
    evidence: Evidence,
    /// Where this node's router passes on to it what comes.
    mapped: Option<SocketAddr>,
    probes: Allowance,
    random: u64,
    /// What was said by those whose session was not seen yet.
    early: Vec<(NodeId, Vec<u8>)>,
    out: VecDeque<(NodeId, Message)>,
    acts: VecDeque<Act>,
    refused: [u64; Reason::ALL.len()],
    /// Meetings of others that were arranged here, and tries of this node that succeeded and failed.
    counted: [u64; 3],
}

impl Nat {
    /// A node that knows of nobody.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        Self {
            random: setup.seed,
            setup,
            peers: BTreeMap::new(),
            tried: BTreeMap::new(),
            meetings: BTreeMap::new(),
            punched: BTreeMap::new(),
            places: BTreeSet::new(),
            evidence: Evidence::default(),
            mapped: None,
            probes: Allowance::new(PROBES_BURST, PROBES_PAUSE_NS),
            early: Vec::new(),
            out: VecDeque::new(),
            acts: VecDeque::new(),
            refused: [0; Reason::ALL.len()],
            counted: [0; 3],
        }
    }

    /// SplitMix64: nothing secret comes of it.
    fn number(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn refuse(&mut self, reason: Reason) {
        self.refused[reason as usize] += 1;
    }

    /// How often.
    #[must_use]
    pub const fn refused(&self, reason: Reason) -> u64 {
        self.refused[reason as usize]
    }

    /// Meetings of others that were arranged here; tries of this node that succeeded; and that failed.
    #[must_use]
    pub const fn counted(&self) -> [u64; 3] {
        self.counted
    }

    /// What is known of the NAT that this node is behind.
    #[must_use]
    pub const fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// This node's router passes on to it what comes there; or does so no more. Neighbours are told, and whoever is relayed
    /// may be reached now: it is tried again at once.
    pub fn set_mapped(&mut self, now_ns: u64, mapped: Option<SocketAddr>) {
        if self.mapped == mapped {
            return;
        }
        self.mapped = mapped;
        if mapped.is_some() {
            for peer in self.tried.keys().copied().collect::<Vec<_>>() {
                self.hurry(now_ns, peer, 0);
            }
        }
        self.tell(now_ns);
    }

    /// Whether sessions have to be looked at often: the sooner it is seen where a peer is heard from, the better.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.meetings.is_empty() || !self.early.is_empty()
    }

    /// Where those are that are sent to straight.
    #[must_use]
    pub fn punched(&self) -> BTreeMap<NodeId, SocketAddr> {
        let all = self.punched.iter();
        all.map(|(&peer, one)| (peer, one.address)).collect()
    }

    /// How packets get to a peer; none where this has nothing to say of it.
    #[must_use]
    pub fn way(&self, now_ns: u64, peer: NodeId) -> Option<Way> {
        if let Some(one) = self.punched.get(&peer) {
            let why = format!(
                "both of us have answered, it from {}; {} had us meet",
                one.address, one.via
            );
            return Some(Way::Punched(why));
        }
        let relation = self.peers.get(&peer)?.sight.relation;
        if relation != Relation::Wanted {
            return None;
        }
        Some(Way::Relayed(
            match (self.meetings.get(&peer), self.tried.get(&peer)) {
                (Some(meeting), _) => meeting.words(),
                (None, Some(tried)) if self.setup.own < peer => {
                    let in_s = tried.next_ns.saturating_sub(now_ns).div_ceil(1_000_000_000);
                    format!(
                        "{}; tried {} times, next in {in_s} s",
                        tried.why, tried.count
                    )
                }
                (None, Some(tried)) => tried.why.to_string(),
                (None, None) => Why::Fresh.to_string(),
            },
        ))
    }

    /// Whether another node is at an IP address, or is about to be: packets are told apart by it alone, so that there
    /// is one. Who was there first stays, but for one that the configuration names.
    fn is_taken(&self, peer: NodeId, ip: IpAddr) -> bool {
        let is_other = |other: NodeId, at: IpAddr| other != peer && at == ip;
        let seen = self.peers.iter();
        let mut seen = seen.filter_map(|(&other, known)| {
            let at = known.sight.seen.filter(|_| known.is_neighbour())?;
            Some((other, at.ip()))
        });
        let mut punched = self.punched.iter();
        let mut meetings = self.meetings.iter();
        self.places.iter().any(|&(other, at)| is_other(other, at))
            || seen.any(|(other, at)| is_other(other, at))
            || punched.any(|(&other, one)| is_other(other, one.address.ip()))
            || meetings.any(|(&other, meeting)| {
                meeting
                    .promised()
                    .is_some_and(|at| is_other(other, at.ip()))
            })
    }

    /// A node that the configuration does not have says something: that is counted.
    pub fn handle_stranger(&mut self) {
        self.refuse(Reason::Stranger);
    }

    /// These are the peers that there are sessions with now, and all that were punched through to; `places` are the IP
    /// addresses of all that are sent to straight, or were and may be again. All acts were done before, or were refused:
    /// the relation of a peer shows which.
    pub fn look(
        &mut self,
        now_ns: u64,
        sights: &BTreeMap<NodeId, Sight>,
        places: &BTreeSet<(NodeId, IpAddr)>,
    ) {
        self.places.clone_from(places);
        let is_same = |peer: &NodeId, known: &Peer| {
            let sight = sights.get(peer);
            sight.is_some_and(|sight| sight.session == known.sight.session)
        };
        self.peers.retain(|peer, known| is_same(peer, known));
        for (&peer, &sight) in sights {
            let known = self.peers.entry(peer).or_insert_with(|| Peer::new(sight));
            known.sight = sight;
        }
        self.look_at_punched(now_ns, sights);
        let relation = |peer: &NodeId| sights.get(peer).map(|sight| sight.relation);
        self.meetings
            .retain(|peer, _| relation(peer) == Some(Relation::Wanted));
        let punched = &self.punched;
        self.tried.retain(|peer, _| {
            punched.contains_key(peer) || relation(peer) == Some(Relation::Wanted)
        });
        self.look_for_heard(now_ns, sights);
        let near = |peer: NodeId| self.peers.get(&peer).is_some_and(Peer::is_near);
        self.evidence.retain(near);
        let locals = sights
            .values()
            .filter(|sight| sight.relation == Relation::Neighbour);
        self.evidence
            .set_locals(locals.filter_map(|sight| sight.local).collect());
        for (peer, said) in std::mem::take(&mut self.early) {
            match self.peers.contains_key(&peer) {
                true => self.handle(now_ns, peer, &said),
                false => self.refuse(Reason::Stranger),
            }
        }
        self.tell(now_ns);
    }

    /// Takes back what is silent, or is none any more.
    fn look_at_punched(&mut self, now_ns: u64, sights: &BTreeMap<NodeId, Sight>) {
        let (mut over, mut refused) = (Vec::new(), Vec::new());
        for (&peer, one) in &mut self.punched {
            match sights.get(&peer).map(|sight| sight.relation) {
                Some(Relation::Punched { is_silent: false }) => one.silent_ns = None,
                Some(Relation::Punched { is_silent: true }) => {
                    let since_ns = *one.silent_ns.get_or_insert(now_ns);
                    if now_ns >= since_ns + self.setup.silent_ns {
                        over.push(peer);
                    }
                }
                Some(Relation::Wanted) => refused.push((peer, *one)),
                // The configuration says something else by now.
                Some(Relation::Neighbour | Relation::Other) | None => over.push(peer),
            }
        }
        for peer in over {
            self.release(now_ns, peer, Why::Closed);
        }
        for (peer, one) in refused {
            let ip = one.address.ip();
            let (why, no) = match self.is_taken(peer, ip) {
                true => (Why::Taken(ip), No::Taken),
                false => (Why::Full, No::Busy),
            };
            self.release(now_ns, peer, why);
            self.say_no(peer, one.number, no);
        }
        let all = self.punched.iter();
        let all: Vec<_> = all.map(|(&peer, one)| (peer, *one)).collect();
        for (peer, one) in all {
            // It may have moved since.
            let now = self.places.iter().find(|(node, _)| *node == peer);
            let seen = sights.get(&peer).and_then(|sight| sight.seen);
            let ips = [one.address.ip()].into_iter().chain(now.map(|(_, ip)| *ip));
            let mut ips = ips.chain(seen.map(|at| at.ip()));
            if let Some(ip) = ips.find(|&ip| self.is_taken(peer, ip)) {
                self.release(now_ns, peer, Why::Taken(ip));
                self.say_no(peer, one.number, No::Taken);
            }
        }
    }

    /// A peer is not sent to straight any more.
    fn release(&mut self, now_ns: u64, peer: NodeId, why: Why) {
        let Some(one) = self.punched.remove(&peer) else {
            return;
        };
        self.acts.push_back(Act::Release { peer });
        if now_ns.saturating_sub(one.since_ns) >= STABLE_NS {
            self.tried.remove(&peer);
        }
        self.fail(now_ns, peer, why);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now_ns: u64) {
        self.begin_tries(now_ns);
        let all: Vec<NodeId> = self.meetings.keys().copied().collect();
        for peer in all {
            self.go_on(now_ns, peer);
        }
    }

    /// Both ends have said that the other has answered. Another node may have come to be there since this one did.
    fn adopt(&mut self, now_ns: u64, peer: NodeId, address: SocketAddr) {
        let Some(meeting) = self.meetings.remove(&peer) else {
            return;
        };
        if self.is_taken(peer, address.ip()) {
            self.refuse(Reason::Taken);
            self.say_no(peer, meeting.number, No::Taken);
            return self.fail(now_ns, peer, Why::Taken(address.ip()));
        }
        if let Stage::Probing(probing) = &meeting.stage
            && self.setup.own > peer
            && probing.is_filtered(address)
        {
            // The other one had begun sooner, and its first packets did not come in.
            self.evidence.set_filtering(Filtering::Filtered);
        }
        self.counted[1] += 1;
        let punched = Punched {
            address,
            number: meeting.number,
            via: meeting.via,
            since_ns: now_ns,
            silent_ns: None,
        };
        self.punched.insert(peer, punched);
        if let Some(tried) = self.tried.get_mut(&peer) {
            tried.is_overtaken = false;
        }
        self.acts.push_back(Act::Adopt { peer, address });
    }

    /// When [`Nat::handle_timeout`] is due; none before the next [`Nat::look`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        let meetings = self.meetings.values().map(Meeting::due_ns);
        let has_room = self.has_room();
        let waits = |peer: &NodeId| {
            *peer > self.setup.own
                && has_room
                && !self.meetings.contains_key(peer)
                && !self.punched.contains_key(peer)
        };
        let tries = self.tried.iter().filter(|(peer, _)| waits(peer));
        meetings.chain(tries.map(|(_, tried)| tried.next_ns)).min()
    }

    /// What is to be said, to whom.
    pub fn poll_transmit(&mut self) -> Option<(NodeId, Vec<u8>)> {
        let (peer, message) = self.out.pop_front()?;
        Some((peer, message.encode()))
    }

    /// What is to be done.
    pub fn poll_act(&mut self) -> Option<Act> {
        self.acts.pop_front()
    }
}
