//! A node: its peers, its sessions, and the five verbs over them.

mod completions;
mod handshakes;
mod introductions;
mod links;
mod peers;
mod streams;
mod transmit;

use crate::{
    classes::{self, ClassCounters, ClassTimes},
    config::{ConfigError, NodeConfig, NodeLimits},
    cookie::Gate,
    event::{CloseReason, ConnectError, Event, Handled, SessionState, SessionStatus},
    flow::Flow,
    handshake::{Network, parse},
    keys::ResetKey,
    limits::NETWORK_ID_BYTES_MAX,
    policy::{Conflict, HandshakePolicy},
    random::Generator,
    reason::{DropReason, NodeCounters},
    session::{Context, Outcome, Queued, Session},
    share::Share,
};
use ed25519_dalek::SigningKey;
use handshakes::{HalfOpen, Outbound};
use links::Links;
use peers::{Attempt, Peer, read_peers};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
};
use transmit::Turn;
use virga_ebpf::{
    hash,
    header::{Header, MAGIC, NodeId, OriginHash, SessionId, Subnet, VERSION},
    limits::{HEADER_BYTES, PRIORITY_MAX},
};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// Whose timer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Session(SessionId),
    Peer(NodeId),
    Link(NodeId),
    /// The completion is to have come by then.
    HalfOpen(SessionId),
}

/// The protocol of one node, without any input or output.
pub struct Node {
    id: NodeId,
    origin: OriginHash,
    subnet: Subnet,
    share: Share,
    node_key: Zeroizing<[u8; 32]>,
    entity_key: SigningKey,
    network: Network,
    handshake: HandshakePolicy,
    /// Key of the tags on handshakes to this node.
    tag_key: Zeroizing<[u8; 32]>,
    limits: NodeLimits,
    started_unix_ns: u64,
    /// When the last initiation was made.
    made_ns: u64,
    generator: Generator,
    gate: Gate,
    reset_key: ResetKey,
    /// Those of this worker's share.
    peers: BTreeMap<NodeId, Peer>,
    /// All peers, where each entity is: whoever gets a packet of a session that there is no more can say so.
    by_origin: BTreeMap<u64, NodeId>,
    sessions: BTreeMap<SessionId, Session>,
    half_open: Vec<HalfOpen>,
    /// Ids that initiations under way named: the response makes them sessions.
    promised: BTreeSet<SessionId>,
    timers: BTreeSet<(u64, Timer)>,
    /// Sessions that may have something to send.
    row: VecDeque<SessionId>,
    outbox: VecDeque<Outbound>,
    links: Links,
    turn: Turn,
    events: VecDeque<Queued>,
    counters: NodeCounters,
    /// While somebody asks how long a channel's messages take.
    flow: Option<Box<Flow>>,
    /// No session begins any more.
    is_stopping: bool,
}

impl Node {
    /// A node that has no session yet.
    ///
    /// # Errors
    /// When the configuration contradicts itself.
    pub fn new(mut config: NodeConfig, now_ns: u64) -> Result<Self, ConfigError> {
        config.limits.check()?;
        let bytes = config.network_id.len();
        if bytes == 0 || bytes > NETWORK_ID_BYTES_MAX {
            return Err(ConfigError::NetworkId { bytes });
        }
        let secret = StaticSecret::from(config.node_key);
        let id = hash::node_id(PublicKey::from(&secret).as_bytes());
        drop(secret);
        let entity_key = SigningKey::from_bytes(&config.entity_key);
        let network = Network {
            id: std::mem::take(&mut config.network_id),
            psk: config.psk,
            psk_generation: config.psk_generation,
        };
        let (mut peers, by_origin) = read_peers(id, &config.peers, config.handshake)?;
        peers.retain(|&peer, _| config.share.owns(peer));
        let limits = config.limits.part(config.share, peers.len());
        Ok(Self {
            id,
            origin: hash::origin_hash(entity_key.verifying_key().as_bytes()),
            subnet: config.subnet,
            share: config.share,
            node_key: Zeroizing::new(config.node_key),
            entity_key,
            tag_key: network.tag_key(id),
            network,
            handshake: config.handshake,
            generator: Generator::new(&config.seed, b"node"),
            gate: Gate::new(&limits, config.share, &config.seed, now_ns),
            reset_key: ResetKey::new(&config.node_key),
            started_unix_ns: config.started_unix_ns,
            made_ns: 0,
            limits,
            by_origin,
            peers,
            sessions: BTreeMap::new(),
            half_open: Vec::new(),
            promised: BTreeSet::new(),
            timers: BTreeSet::new(),
            row: VecDeque::new(),
            outbox: VecDeque::new(),
            links: Links::default(),
            turn: Turn::Handshakes,
            events: VecDeque::new(),
            counters: NodeCounters::default(),
            flow: None,
            is_stopping: false,
        })
    }

    /// This node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// What headers call the entity on this node.
    #[must_use]
    pub fn origin(&self) -> OriginHash {
        self.origin
    }

    /// Takes one datagram in; it is opened in place.
    pub fn handle(&mut self, now_ns: u64, source: SocketAddr, datagram: &mut [u8]) -> Handled {
        self.counters.received_datagrams += 1;
        match self.receive(now_ns, source, datagram) {
            Ok(()) => Handled::Accepted,
            Err(reason) => {
                self.counters.drop(reason);
                Handled::Dropped(reason)
            }
        }
    }

    /// Drops a handshake for this node that nobody who knows the network's secret made; whether it did.
    pub(crate) fn refuse_forged(&mut self, datagram: &[u8]) -> bool {
        let Some(header_bytes) = datagram.first_chunk() else {
            return false;
        };
        let header = Header::decode(header_bytes);
        let parsed = parse(&self.network, &self.tag_key, &header, datagram);
        if let Err(reason) = parsed {
            self.counters.received_datagrams += 1;
            self.counters.drop(reason);
        }
        parsed.is_err()
    }

    fn receive(
        &mut self,
        now_ns: u64,
        source: SocketAddr,
        datagram: &mut [u8],
    ) -> Result<(), DropReason> {
        let Some(header_bytes) = datagram.first_chunk::<HEADER_BYTES>().copied() else {
            return Err(DropReason::Truncated);
        };
        let header = Header::decode(&header_bytes);
        check(&header, datagram.len())?;
        if header.destination != self.id {
            return Err(DropReason::NotForUs);
        }
        if header.is_handshake() {
            return self.handle_handshake(now_ns, source, &header, datagram);
        }
        if header.subprotocol != 0 {
            return Err(DropReason::Subprotocol);
        }
        let id = header.session_id;
        if !self.sessions.contains_key(&id) {
            self.answer_unknown(now_ns, source.ip(), &header, datagram.len());
            return Err(DropReason::UnknownSession);
        }
        let mark = self.events.len();
        let sealed = &mut datagram[HEADER_BYTES..];
        let taken = self.with_session(now_ns, id, |session, ctx| {
            let taken = session.handle(ctx, source, &header, &header_bytes, sealed);
            (taken, session.take_link(), session.ends.peer)
        });
        self.settle(now_ns, id, mark);
        let Some((taken, (heard, is_direct), peer)) = taken else {
            return Err(DropReason::UnknownSession);
        };
        if taken.is_ok() && is_direct {
            self.on_link_packet(now_ns, (peer, id), heard);
        }
        taken
    }

    /// Runs `call` on a session with what it needs of the node.
    fn with_session<T>(
        &mut self,
        now_ns: u64,
        id: SessionId,
        call: impl FnOnce(&mut Session, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let session = self.sessions.get_mut(&id)?;
        let mut ctx = Context {
            now_ns,
            origin: self.origin,
            subnet: self.subnet,
            entity_key: &self.entity_key,
            limits: &self.limits,
            generator: &mut self.generator,
            events: &mut self.events,
            counters: &mut self.counters,
            flow: self.flow.as_deref_mut(),
        };
        Some(call(session, &mut ctx))
    }

    /// After a session was touched: acts on its outcome (events since `mark` are its own), queues it
    /// for sending, sets its timer.
    fn settle(&mut self, now_ns: u64, id: SessionId, mark: usize) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        match session.take_outcome() {
            Some(Outcome::Established) => self.on_established(now_ns, id, mark),
            Some(Outcome::Closed(reason)) => self.on_closed(now_ns, id, reason),
            None => {}
        }
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if !session.is_queued {
            session.is_queued = true;
            self.row.push_back(id);
        }
        let due_ns = session.timeout(&self.limits);
        if session.timer_ns != Some(due_ns) {
            if let Some(old_ns) = session.timer_ns.replace(due_ns) {
                self.timers.remove(&(old_ns, Timer::Session(id)));
            }
            self.timers.insert((due_ns, Timer::Session(id)));
        }
    }

    fn remove_session(&mut self, id: SessionId) {
        self.forget_half_open(id);
        let Some(session) = self.sessions.remove(&id) else {
            return;
        };
        if let Some(due_ns) = session.timer_ns {
            self.timers.remove(&(due_ns, Timer::Session(id)));
        }
    }

    /// When [`Node::handle_timeout`] is due, on the clock of `now_ns`.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        self.timers.first().map(|&(due_ns, _)| due_ns)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now_ns: u64) {
        let due: Vec<Timer> = self
            .timers
            .iter()
            .take_while(|&&(due_ns, _)| due_ns <= now_ns)
            .map(|&(_, timer)| timer)
            .collect();
        for timer in due {
            match timer {
                Timer::Peer(peer) => self.handle_peer_timeout(now_ns, peer),
                Timer::Link(peer) => self.handle_link_timeout(now_ns, peer),
                Timer::HalfOpen(id) => self.forget_half_open(id),
                Timer::Session(id) => {
                    if self.sessions.get(&id).is_some_and(|s| s.is_drained(now_ns)) {
                        self.remove_session(id);
                        continue;
                    }
                    let mark = self.events.len();
                    self.with_session(now_ns, id, |session, ctx| session.handle_timeout(ctx));
                    self.settle(now_ns, id, mark);
                }
            }
        }
    }

    /// What happened since; reading a message gives its sender room for more.
    pub fn poll(&mut self) -> Option<Event> {
        if let Some(event) = self.events.front_mut()?.split() {
            return Some(event);
        }
        let queued = self.events.pop_front()?;
        let id = queued.session;
        if let Some(session) = self.sessions.get_mut(&id) {
            let has_to_tell = session.on_read(&mut self.events, &queued);
            if has_to_tell && !session.is_queued {
                session.is_queued = true;
                self.row.push_back(id);
            }
        }
        Some(queued.event)
    }

    /// Has a session with `peer` from now on: tries again, with capped and jittered back-off,
    /// until [`Node::close`] or [`Node::give_up`].
    ///
    /// # Errors
    /// When the peer is not configured.
    pub fn connect(&mut self, now_ns: u64, peer: NodeId) -> Result<(), ConnectError> {
        let known = self
            .peers
            .get_mut(&peer)
            .ok_or(ConnectError::UnknownPeer(peer))?;
        known.is_wanted = true;
        if known.live.is_none() && matches!(known.attempt, Attempt::None) {
            known.attempts_failed = 0;
            self.seek(now_ns, peer);
        }
        Ok(())
    }

    /// Ends the session with `peer` and stops trying for another.
    pub fn close(&mut self, now_ns: u64, peer: NodeId) {
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        known.is_wanted = false;
        let live = known.live;
        let attempt = self.set_attempt(peer, Attempt::None);
        self.set_peer_timer(peer, None);
        let proving = match attempt {
            Attempt::Proving(id, _) => Some(id),
            Attempt::None | Attempt::Waiting(_) => None,
        };
        for id in live.into_iter().chain(proving) {
            self.close_session(now_ns, id, CloseReason::Local);
        }
    }

    fn close_session(&mut self, now_ns: u64, id: SessionId, reason: CloseReason) {
        let mark = self.events.len();
        self.with_session(now_ns, id, |session, ctx| session.close(ctx, reason));
        self.settle(now_ns, id, mark);
    }

    /// Stops trying for a session with `peer`; one that there is stays until either end closes it.
    pub fn give_up(&mut self, peer: NodeId) {
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        known.is_wanted = false;
        if matches!(known.attempt, Attempt::Waiting(_)) {
            self.set_attempt(peer, Attempt::None);
        }
        self.set_peer_timer(peer, None);
    }

    /// The first link towards `peer` takes datagrams of `bytes` at most, as this machine itself knows:
    /// its session sends no larger ones, and asks again after ten minutes.
    pub fn limit_datagrams(&mut self, peer: NodeId, bytes: usize) {
        let live = self.live(peer);
        if let Some(session) = live.and_then(|id| self.sessions.get_mut(&id)) {
            session.limit_datagrams(bytes);
        }
    }

    /// Every session, for people.
    pub fn sessions(&self) -> impl Iterator<Item = SessionStatus> + '_ {
        self.sessions.values().map(Session::status)
    }

    /// Peers that there is no session with, because the two ends' policies contradict each other.
    pub fn conflicts(&self) -> impl Iterator<Item = (NodeId, Conflict)> + '_ {
        let peers = self.peers.values();
        peers.filter_map(|peer| Some((peer.id, peer.conflict?)))
    }

    /// Peers that there is no session with, and why the last one ended, or the last attempt at one.
    pub fn ended(&self) -> impl Iterator<Item = (NodeId, CloseReason)> + '_ {
        let without = self.peers.values().filter(|peer| peer.live.is_none());
        without.filter_map(|peer| Some((peer.id, peer.ended?)))
    }

    /// What was counted of each class of streams, and the bytes that its streams hold for sending now.
    pub fn classes(&self) -> impl Iterator<Item = (u8, ClassCounters, usize)> + '_ {
        let mut queued = [0; classes::ALL];
        for session in self.sessions.values() {
            for (sum, bytes) in queued.iter_mut().zip(session.queued_bytes()) {
                *sum += bytes;
            }
        }
        let counted = self.counters.classes.counted();
        let each = (0..).zip(counted).zip(queued);
        each.map(|((class, &counted), queued)| (class, counted, queued))
    }

    /// How long messages of each class took; the control stream's are not followed.
    pub fn class_times(&self) -> impl Iterator<Item = (u8, &ClassTimes)> {
        (0..).zip(self.counters.classes.times())
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &NodeCounters {
        &self.counters
    }

    /// Times messages from now on, or none any more; gives back what was there.
    pub(crate) fn set_flow(&mut self, flow: Option<Box<Flow>>) -> Option<Box<Flow>> {
        std::mem::replace(&mut self.flow, flow)
    }

    /// What times messages, where something does.
    pub fn flow_mut(&mut self) -> Option<&mut Flow> {
        self.flow.as_deref_mut()
    }
}

/// What every node can tell from the header alone.
fn check(header: &Header, datagram_bytes: usize) -> Result<(), DropReason> {
    if header.magic != MAGIC {
        return Err(DropReason::Magic);
    }
    if header.version != VERSION {
        return Err(DropReason::Version);
    }
    if header.priority > PRIORITY_MAX {
        return Err(DropReason::Priority);
    }
    if usize::from(header.payload_len) != datagram_bytes - HEADER_BYTES {
        return Err(DropReason::PayloadLength);
    }
    Ok(())
}

/// Whether a session may still be displaced or used.
const fn is_over(state: SessionState) -> bool {
    matches!(state, SessionState::Draining)
}

#[cfg(any(test, fuzzing, feature = "sim"))]
impl Node {
    /// Seals any payload under any stream of the first session with `peer`: what a member with a broken
    /// or hostile program sends. Panics without a session.
    pub fn seal_raw(
        &mut self,
        peer: NodeId,
        label: (virga_ebpf::header::Flags, u32, u16, usize),
        payload: &[u8],
    ) -> Vec<u8> {
        let id = self.first_session(peer);
        self.with_session(0, id, |session, ctx| session.seal_raw(ctx, label, payload))
            .expect("a session")
    }

    /// What the first session with `peer` keeps: packets on their way, and matters to tell.
    pub fn kept(&self, peer: NodeId) -> (usize, usize) {
        self.sessions[&self.first_session(peer)].kept()
    }

    /// Messages that the first session with `peer` has fragments of, and the bytes that they take.
    pub fn unfinished(&self, peer: NodeId) -> (usize, usize) {
        self.sessions[&self.first_session(peer)].unfinished()
    }

    /// Streams of the first session with `peer` of which only the end is to be sent.
    #[cfg(test)]
    pub(crate) fn ends_to_send(&self, peer: NodeId) -> usize {
        self.sessions[&self.first_session(peer)].ends_to_send()
    }

    /// Bytes of the buffers of all queues of the first session with `peer`, used or not.
    #[cfg(test)]
    pub(crate) fn queue_bytes(&self, peer: NodeId) -> usize {
        self.sessions[&self.first_session(peer)].queue_bytes()
    }

    /// Credit in the first session with `peer`: of the peer's, bytes used; of this node's, bytes used and
    /// bytes read.
    pub fn credit(&self, peer: NodeId) -> (u64, u64, u64) {
        self.sessions[&self.first_session(peer)].credit()
    }

    /// Events that wait for the owner.
    pub fn unread(&self) -> usize {
        self.events.iter().map(|queued| queued.count).sum()
    }

    /// Leaves out sequences of the first session with `peer`. Panics without one.
    pub fn skip(&mut self, peer: NodeId, sequences: u64) {
        let id = self.first_session(peer);
        self.with_session(0, id, |session, _| session.skip(sequences))
            .expect("a session");
    }

    fn first_session(&self, peer: NodeId) -> SessionId {
        *self
            .sessions
            .iter()
            .find(|(_, s)| s.ends.peer == peer)
            .expect("a session")
            .0
    }
}
