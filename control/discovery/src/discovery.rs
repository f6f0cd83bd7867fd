//! Finds nodes, tries to have sessions with them, and tells others of those that it has had one with.

mod exchange;
mod meet;

use crate::{
    book::{Known, Stage},
    limits::{
        ASK_SOON_NS, INTRODUCE_NS, INTRODUCE_NS_MAX, LIFETIME_S, RECORDS_BURST, RECORDS_PAUSE_NS,
        REISSUE_S, RENEW_S, TICK_NS, UNHEARD,
    },
    random::Random,
    reason::{Reason, Reasons},
    record::{Claim, Record, is_reachable},
    source::{Found, Origin, Teller},
    swim::{Change, MemberState, Swim},
    wire::Message,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
};
use virga_ebpf::header::{NodeId, Subnet};
use virga_routing::allowance::Allowance;

/// Notices that wait to be read.
const NOTICES_MAX: usize = 64;

/// The time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Of a clock that only goes forward.
    pub ns: u64,
    /// Unix time in seconds.
    pub unix_s: u64,
}

/// This node's word, and whom it admits.
pub trait Authority {
    /// A signature by this node's entity.
    fn sign(&self, message: &[u8]) -> [u8; 64];
    /// Whether sessions with such a node may be had at all, as far as its keys say it.
    fn admits(&self, claim: &Claim) -> bool;
}

/// What a node is, and how much it may know.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its X25519 public key.
    pub node_key: [u8; 32],
    /// Its entity's ed25519 public key.
    pub entity_key: [u8; 32],
    /// See [`crate::record::network`].
    pub network: [u8; 32],
    /// What it calls itself.
    pub name: String,
    /// Its subnet.
    pub subnet: Subnet,
    /// Where others reach it.
    pub addresses: Vec<SocketAddr>,
    /// Drawn when the node starts.
    pub instance: u64,
    /// Unix time in milliseconds when it starts: above what its earlier lives have said.
    pub started_ms: u64,
    /// Whether what is passed on is about other nodes too.
    pub exchanges: bool,
    /// Whether addresses are of IPv4: a socket speaks one family.
    pub is_ipv4: bool,
    /// Nodes that there is room for, beside those that are pinned.
    pub peers_max: usize,
    /// Peers that the configuration has anyway: their entities, and where they are if they are neighbours.
    pub configured: BTreeMap<NodeId, Configured>,
    /// For jitter.
    pub seed: u64,
}

/// A peer that the configuration has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configured {
    /// Its entities.
    pub entities: Vec<[u8; 32]>,
    /// Where it is, if it is a neighbour.
    pub address: Option<SocketAddr>,
}

/// A node that sessions are to be had with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// Its id.
    pub node: NodeId,
    /// X25519 public key.
    pub node_key: [u8; 32],
    /// ed25519 public key.
    pub entity_key: [u8; 32],
    /// What it calls itself, or the operator does; others may call themselves the same.
    pub name: String,
    /// Where it is.
    pub address: SocketAddr,
    /// The subnet that it says it is in.
    pub subnet: Subnet,
}

/// Something that people have to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Two nodes that run have the same keys.
    Twins {
        /// Which one.
        node: NodeId,
        /// Whether this node is one of them.
        is_own: bool,
    },
    /// A node was reached for the first time.
    Reached {
        /// Which one.
        node: NodeId,
        /// What it calls itself.
        name: String,
        /// Where it was found.
        origin: Origin,
    },
    /// A member is another thing than before.
    Member(Change),
}

/// A peer that there is a session with.
#[derive(Debug)]
struct Session {
    /// The entity that the peer has shown.
    entity_key: [u8; 32],
    records: Allowance,
    messages: Allowance,
    /// Whether it has said who it is here: only then it speaks this.
    has_spoken: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Discovery<A> {
    setup: Setup,
    authority: A,
    own: Record,
    /// Another life under this node's keys, and the highest number that it has said.
    rival: Option<(u64, u64)>,
    book: BTreeMap<[u8; 32], Known>,
    sessions: BTreeMap<NodeId, Session>,
    swim: Swim,
    /// Nodes whose records are to be passed on.
    news: VecDeque<NodeId>,
    ask_ns: u64,
    ask_from: u64,
    renew_s: u64,
    due_ns: u64,
    random: Random,
    reasons: Reasons,
    /// Of those that were refused for their keys, who was told of already.
    told: BTreeSet<NodeId>,
    is_changed: bool,
    out: VecDeque<(NodeId, Vec<u8>)>,
    introductions: VecDeque<NodeId>,
    notices: VecDeque<Notice>,
    messages: u64,
    introduced: u64,
}

impl<A: Authority> Discovery<A> {
    /// A node that knows nobody; none where its setup makes no record that counts.
    #[must_use]
    pub fn new(now: Now, setup: Setup, authority: A) -> Option<Self> {
        let own = issue(now, &setup, setup.started_ms, &authority)?;
        let mut random = Random::new(setup.seed);
        let swim = Swim::new(own.node(), setup.started_ms, random.number());
        Some(Self {
            authority,
            own,
            rival: None,
            book: BTreeMap::new(),
            sessions: BTreeMap::new(),
            swim,
            news: VecDeque::new(),
            ask_ns: now.ns + random.jittered(ASK_SOON_NS),
            ask_from: 0,
            renew_s: now.unix_s + RENEW_S,
            due_ns: now.ns,
            random,
            reasons: Reasons::default(),
            told: BTreeSet::new(),
            is_changed: false,
            out: VecDeque::new(),
            introductions: VecDeque::new(),
            notices: VecDeque::new(),
            messages: 0,
            introduced: 0,
            setup,
        })
    }

    /// This node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.own.node()
    }

    /// What this node says of itself.
    #[must_use]
    pub const fn own(&self) -> &Record {
        &self.own
    }

    /// Whose word counts from now on, and which peers there are anyway.
    pub fn configure(&mut self, authority: A, configured: BTreeMap<NodeId, Configured>) {
        self.authority = authority;
        self.setup.configured = configured;
        self.is_changed = true;
        self.forget_unnamed();
    }

    /// Every node that is known.
    pub fn known(&self) -> impl Iterator<Item = &Known> {
        self.book.values()
    }

    /// Who lives.
    #[must_use]
    pub const fn swim(&self) -> &Swim {
        &self.swim
    }

    /// How often something was not taken.
    #[must_use]
    pub fn refused(&self, reason: Reason) -> u64 {
        self.reasons.count(reason)
    }

    /// Messages in sessions, and introductions, so far.
    #[must_use]
    pub const fn said(&self) -> (u64, u64) {
        (self.messages, self.introduced)
    }

    /// Whether [`Self::adopted`] gives others than the last time that this was asked.
    pub fn has_changed(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    /// Nodes that sessions are to be had with now, beside the configured ones. No two have the same address.
    #[must_use]
    pub fn adopted(&self) -> Vec<Adopted> {
        let all = self.book.values().filter(|known| known.is_adopted());
        let all = all.filter(|known| !self.setup.configured.contains_key(&known.node));
        all.filter_map(|known| {
            let record = known.record.as_ref();
            Some(Adopted {
                node: known.node,
                node_key: known.node_key,
                entity_key: known.entity_key,
                name: known.name.clone(),
                address: known.address?,
                subnet: record.map_or(Subnet(0), |record| record.claim().subnet),
            })
        })
        .collect()
    }

    /// What is to be said in whose session.
    pub fn poll_transmit(&mut self) -> Option<(NodeId, Vec<u8>)> {
        self.out.pop_front()
    }

    /// To whom [`Self::own`] is to be introduced.
    pub fn poll_introduction(&mut self) -> Option<NodeId> {
        self.introductions.pop_front()
    }

    /// What people have to know.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub const fn poll_timeout(&self) -> u64 {
        self.due_ns
    }

    /// Something was found.
    pub fn found(&mut self, now: Now, origin: Origin, found: Found) {
        match found {
            Found::Pinned(pinned) => self.pin(now, origin, pinned),
            Found::Unpinned(node) => self.unpin(origin, node),
            Found::Record {
                record,
                seen_at,
                teller,
            } => {
                let done = self.learn(now, origin, *record, (seen_at, teller));
                self.count(done);
            }
        }
    }

    /// Somebody has introduced itself from an address.
    pub fn introduced(&mut self, now: Now, source: SocketAddr, words: &[u8]) {
        let Some(record) = Record::parse(words) else {
            return self.reasons.add(Reason::Malformed);
        };
        let found = Found::Record {
            record: Box::new(record),
            seen_at: Some(source).filter(is_reachable),
            teller: Teller::Address(source.ip()),
        };
        self.found(now, Origin::Introduction, found);
    }

    /// There is a session with a node, that of such an entity.
    pub fn session_began(&mut self, now: Now, node: NodeId, entity_key: [u8; 32]) {
        let session = Session {
            entity_key,
            records: Allowance::new(RECORDS_BURST, RECORDS_PAUSE_NS),
            messages: Allowance::new(RECORDS_BURST, RECORDS_PAUSE_NS),
            has_spoken: false,
        };
        self.sessions.insert(node, session);
        let own = self.own.clone();
        self.say(node, &Message::Records(vec![own]));
        self.reach(now, node);
    }

    /// A session is over.
    pub fn session_ended(&mut self, now: Now, node: NodeId) {
        if let Some(known) = self.dialled_mut(node)
            && known.stage == Stage::Proven
        {
            known.proven_ns = Some(now.ns);
            known.lose(now.ns);
        }
        self.sessions.remove(&node);
    }

    /// A peer has said something in its session.
    pub fn handle(&mut self, now: Now, from: NodeId, message: &[u8]) {
        let Some(session) = self.sessions.get_mut(&from) else {
            return;
        };
        if !session.messages.take(now.ns) {
            return self.reasons.add(Reason::Busy);
        }
        match Message::parse(message) {
            None => self.reasons.add(Reason::Malformed),
            Some(Message::Records(records)) => self.on_records(now, from, records),
            Some(Message::Ask(ask)) => self.on_ask(now, from, &ask),
            Some(Message::Swim(said)) => {
                self.swim.handle(now, from, &said);
                self.follow_swim(now);
            }
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        if now.ns < self.due_ns {
            return;
        }
        self.due_ns = now.ns + TICK_NS;
        self.swim.handle_timeout(now);
        self.follow_swim(now);
        if now.unix_s >= self.renew_s {
            self.renew(now, self.own.claim().sequence + 1);
        }
        self.expire(now);
        self.follow_dials(now);
        self.begin_dials(now);
        self.introduce(now);
        self.pass_on(now);
        self.ask(now);
    }

    /// Says anew what this node is.
    fn renew(&mut self, now: Now, sequence: u64) {
        self.reissue(now, sequence);
        self.announce(self.own.node());
    }

    fn reissue(&mut self, now: Now, sequence: u64) {
        self.renew_s = now.unix_s + RENEW_S;
        let sequence = sequence.max(now.unix_s.saturating_mul(1_000));
        if let Some(own) = issue(now, &self.setup, sequence, &self.authority) {
            self.own = own;
        }
    }

    /// Takes up what members have become.
    fn follow_swim(&mut self, now: Now) {
        while let Some((to, said)) = self.swim.poll_transmit() {
            self.say(to, &Message::Swim(said));
        }
        while let Some(change) = self.swim.poll_change() {
            let has_session = self.sessions.contains_key(&change.node);
            if let Some(known) = self.dialled_mut(change.node) {
                match (change.state, known.stage) {
                    (MemberState::Dead, Stage::Proven) => known.lose(now.ns),
                    (MemberState::Alive, Stage::Lost { .. }) if has_session => {
                        known.stage = Stage::Proven;
                    }
                    _ => {}
                }
            }
            self.notice(Notice::Member(change));
        }
    }

    /// Tells those that may not know this node who it is.
    fn introduce(&mut self, now: Now) {
        let mut is_unheard = false;
        for known in self.book.values_mut() {
            let is_tried = matches!(known.stage, Stage::Dialling { .. } | Stage::Lost { .. });
            let is_configured = self.setup.configured.contains_key(&known.node);
            if !is_tried || known.is_torn() || is_configured || now.ns < known.introduce_ns {
                continue;
            }
            let doubled = INTRODUCE_NS << known.introductions.min(16);
            known.introductions += 1;
            is_unheard |= known.introductions > UNHEARD;
            known.introduce_ns = now.ns + self.random.jittered(doubled.min(INTRODUCE_NS_MAX));
            self.introductions.push_back(known.node);
            self.introduced += 1;
        }
        // Another life under these keys may be believed there: it shows that this one is lived now.
        let own = self.own.claim();
        if is_unheard && now.unix_s >= own.issued_s + REISSUE_S {
            self.reissue(now, own.sequence + 1);
        }
    }

    fn say(&mut self, to: NodeId, message: &Message) {
        if self.sessions.contains_key(&to) {
            self.messages += 1;
            self.out.push_back((to, message.encode()));
        }
    }

    fn notice(&mut self, notice: Notice) {
        if self.notices.len() < NOTICES_MAX {
            self.notices.push_back(notice);
        }
    }

    fn count(&mut self, done: Result<(), Reason>) {
        if let Err(reason) = done {
            self.reasons.add(reason);
        }
    }

    /// Of those that claim a node, the one that is dialled or was reached; where there is a session, the one that it proves.
    fn dialled_mut(&mut self, node: NodeId) -> Option<&mut Known> {
        let shown = self.sessions.get(&node).map(|session| session.entity_key);
        let is_shown = |known: &Known| shown.is_none_or(|key| key == known.entity_key);
        let all = self.book.values_mut();
        let mut all = all.filter(|known| known.node == node && is_shown(known));
        all.find(|known| !matches!(known.stage, Stage::Waiting { .. }))
    }
}

fn issue(now: Now, setup: &Setup, sequence: u64, authority: &impl Authority) -> Option<Record> {
    let claim = Claim {
        node_key: setup.node_key,
        entity_key: setup.entity_key,
        network: setup.network,
        subnet: setup.subnet,
        instance: setup.instance,
        sequence,
        issued_s: now.unix_s,
        lifetime_s: LIFETIME_S,
        name: setup.name.clone(),
        addresses: setup.addresses.clone(),
    };
    Record::issue(&claim, |message| authority.sign(message))
}
