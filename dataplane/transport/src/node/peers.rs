//! Peers: which session is theirs, and attempts to have one.

use super::{Node, Timer, completions::Completion, is_over};
use crate::{
    config::{ConfigError, PeerConfig},
    event::{CloseReason, Event},
    handshake::{Initiator, Kind, Other, Route},
    keys::Role,
    limits::PEERS_MAX,
    policy::{Conflict, HandshakePolicy},
    session::Queued,
};
use ed25519_dalek::VerifyingKey;
use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    net::SocketAddr,
};
use virga_ebpf::{
    hash,
    header::{NodeId, OriginHash, SessionId},
};

/// Sessions of a peer that were proven lately, as it names them: their initiations are replays.
const RECENT_MAX: usize = 8;

/// An initiation that waits for its response.
pub(super) struct Waiting {
    pub(super) initiator: Initiator,
    pub(super) session: SessionId,
    started_ns: u64,
    send_at_ns: u64,
    tries: u32,
    pub(super) cookie: [u8; 16],
    /// Before this no other cookie is taken.
    pub(super) cookie_at_ns: u64,
}

/// What this node does to have a session.
pub(super) enum Attempt {
    /// Nothing.
    None,
    /// Sent an initiation.
    Waiting(Box<Waiting>),
    /// Got the response; entities are being proven, and XX's completion perhaps travels again.
    Proving(SessionId, Option<Completion>),
}

/// One configured peer.
pub(super) struct Peer {
    pub(super) id: NodeId,
    /// None before the first contact.
    pub(super) node_key: Option<[u8; 32]>,
    pub(super) policy: HandshakePolicy,
    /// Why there is no session, as its owner was told.
    pub(super) conflict: Option<Conflict>,
    /// Why the last session with it ended, or the last attempt at one.
    pub(super) ended: Option<CloseReason>,
    /// Those that may prove themselves there, and what headers call them; never empty.
    pub(super) entities: Vec<(OriginHash, [u8; 32])>,
    /// The established session.
    pub(super) live: Option<SessionId>,
    pub(super) attempt: Attempt,
    pub(super) is_wanted: bool,
    pub(super) attempts_failed: u32,
    pub(super) recent: VecDeque<SessionId>,
    /// When the newest of its initiations that led to a proven session was made.
    pub(super) proven_made_ns: Option<u64>,
    timer_ns: Option<u64>,
}

impl Peer {
    pub(super) fn new(config: &PeerConfig, policy: HandshakePolicy) -> Self {
        Self {
            id: config.node_key.id(),
            node_key: config.node_key.known(),
            policy: config.handshake.unwrap_or(policy),
            conflict: None,
            ended: None,
            entities: vec![(hash::origin_hash(&config.entity_key), config.entity_key)],
            live: None,
            attempt: Attempt::None,
            is_wanted: false,
            attempts_failed: 0,
            recent: VecDeque::new(),
            proven_made_ns: None,
            timer_ns: None,
        }
    }

    pub(super) fn other(&self) -> Other {
        Other {
            id: self.id,
            key: self.node_key,
            policy: self.policy,
        }
    }

    /// The entity that a header names, where it may prove itself there.
    pub(super) fn entity(&self, origin: OriginHash) -> Option<[u8; 32]> {
        let mut entities = self.entities.iter();
        entities.find(|e| e.0 == origin).map(|e| e.1)
    }

    fn remember(&mut self, session: SessionId) {
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(session);
    }
}

/// The peers of a configuration, and by origin where each entity is: at the first node that is listed with it.
pub(super) type Known = (BTreeMap<NodeId, Peer>, BTreeMap<u64, NodeId>);

pub(super) fn read_peers(
    own: NodeId,
    peers: &[PeerConfig],
    policy: HandshakePolicy,
) -> Result<Known, ConfigError> {
    if peers.len() > PEERS_MAX {
        return Err(ConfigError::TooManyPeers { peers: peers.len() });
    }
    let (mut known, mut by_origin) = (BTreeMap::new(), BTreeMap::new());
    for config in peers {
        let mut peer = Peer::new(config, policy);
        if peer.id == own {
            return Err(ConfigError::PeerIsSelf(own));
        }
        if VerifyingKey::from_bytes(&config.entity_key).is_err() {
            return Err(ConfigError::EntityKey(peer.id));
        }
        for &(origin, _) in &peer.entities {
            by_origin.entry(origin.0).or_insert(peer.id);
        }
        match known.entry(peer.id) {
            Entry::Vacant(place) => {
                place.insert(peer);
            }
            Entry::Occupied(mut place) => {
                let before: &mut Peer = place.get_mut();
                let is_known = peer.entities.iter().any(|e| before.entities.contains(e));
                if before.node_key != peer.node_key || is_known {
                    return Err(ConfigError::DuplicatePeer(peer.id));
                }
                before.entities.append(&mut peer.entities);
            }
        }
    }
    Ok((known, by_origin))
}

impl Node {
    /// Has these peers from now on, of which this node keeps its share. A session whose peer has proven, or
    /// is to prove, an entity that is not listed with it ends as [`CloseReason::Removed`]; all others go on.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing was changed then.
    pub fn set_peers(&mut self, now_ns: u64, peers: &[PeerConfig]) -> Result<(), ConfigError> {
        let (mut peers, by_origin) = read_peers(self.id, peers, self.handshake)?;
        peers.retain(|&peer, _| self.share.owns(peer));
        self.by_origin = by_origin;
        let is_gone = |id: &&NodeId| !peers.contains_key(id);
        let gone: Vec<NodeId> = self.peers.keys().filter(is_gone).copied().collect();
        for &peer in &gone {
            // Nothing more is tried; what there is of sessions ends below.
            self.give_up(peer);
            let attempt = self.peers.get(&peer).map(|known| &known.attempt);
            if matches!(attempt, Some(Attempt::Waiting(_))) {
                self.set_attempt(peer, Attempt::None);
                self.set_peer_timer(peer, None);
            }
        }
        // What was agreed on under another policy is agreed on anew.
        let is_changed = |id: &NodeId| {
            let old = self.peers.get(id).map(|known| known.policy);
            let new = peers.get(id).map(|peer| peer.policy);
            old.is_some() && new.is_some() && old != new
        };
        let changed: Vec<NodeId> = peers.keys().copied().filter(is_changed).collect();
        let is_waiting = |id: &NodeId| {
            let attempt = self.peers.get(id).map(|known| &known.attempt);
            matches!(attempt, Some(Attempt::Waiting(_)))
        };
        let asked: Vec<NodeId> = changed.iter().copied().filter(is_waiting).collect();
        for &peer in &asked {
            self.set_attempt(peer, Attempt::None);
        }
        for &peer in &changed {
            self.forget_half_open_of(peer);
        }
        let mut ended = Vec::new();
        for (&id, session) in &self.sessions {
            let ends = &session.ends;
            let peer = peers.get(&ends.peer);
            let entity = peer.and_then(|peer| peer.entity(ends.peer_origin));
            let is_kept = entity == Some(ends.peer_entity) && !changed.contains(&ends.peer);
            if !is_kept && !is_over(session.state()) {
                ended.push(id);
            }
        }
        for id in ended {
            let mark = self.events.len();
            self.with_session(now_ns, id, |session, ctx| {
                session.close(ctx, CloseReason::Removed)
            });
            self.settle(now_ns, id, mark);
        }
        for peer in gone {
            self.forget_half_open_of(peer);
            self.peers.remove(&peer);
        }
        for (id, peer) in peers {
            match self.peers.entry(id) {
                Entry::Vacant(place) => {
                    place.insert(peer);
                }
                Entry::Occupied(mut place) => {
                    let known = place.get_mut();
                    // What the first contact taught stays.
                    known.node_key = peer.node_key.or(known.node_key);
                    (known.policy, known.entities) = (peer.policy, peer.entities);
                }
            }
        }
        for peer in asked {
            self.retry_later(now_ns, peer);
        }
        Ok(())
    }

    pub(super) fn route(&self, receiver: NodeId) -> Route {
        Route {
            sender: self.id,
            origin: self.origin,
            subnet: self.subnet,
            receiver,
        }
    }

    pub(super) fn set_peer_timer(&mut self, peer: NodeId, due_ns: Option<u64>) {
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        if let Some(old_ns) = std::mem::replace(&mut known.timer_ns, due_ns) {
            self.timers.remove(&(old_ns, Timer::Peer(peer)));
        }
        if let Some(due_ns) = due_ns {
            self.timers.insert((due_ns, Timer::Peer(peer)));
        }
    }

    /// A session id that is free: random, the low 8 bits naming this worker.
    pub(super) fn free_session_id(&mut self) -> SessionId {
        loop {
            let id = self.share.mark(SessionId(self.generator.number()));
            if id.0 != 0 && !self.sessions.contains_key(&id) && !self.is_promised(id) {
                return id;
            }
        }
    }

    /// Whether an initiation under way named this id: the response makes it a session.
    pub(super) fn is_promised(&self, id: SessionId) -> bool {
        self.promised.contains(&id)
    }

    /// Replaces what is done to have a session with `peer`; gives what it was.
    pub(super) fn set_attempt(&mut self, peer: NodeId, attempt: Attempt) -> Attempt {
        let Some(known) = self.peers.get_mut(&peer) else {
            return Attempt::None;
        };
        if let Attempt::Waiting(waiting) = &attempt {
            self.promised.insert(waiting.session);
        }
        let before = std::mem::replace(&mut known.attempt, attempt);
        if let Attempt::Waiting(waiting) = &before {
            self.promised.remove(&waiting.session);
        }
        before
    }

    /// Sends an initiation to `peer`, unless one of the peer's own was answered a moment ago: that has some time
    /// to become a session.
    pub(super) fn seek(&mut self, now_ns: u64, peer: NodeId) {
        let wait_ns = self.limits.handshake_retry_ns;
        let answered = self.half_open.iter().filter(|half| half.peer == peer);
        let answered_ns = answered.map(|half| half.since_ns);
        match answered_ns.max().map(|at_ns| at_ns + wait_ns) {
            Some(due_ns) if now_ns < due_ns => self.set_peer_timer(peer, Some(due_ns)),
            _ => self.start_attempt(now_ns, peer),
        }
    }

    /// Whether this node began the session that lives, lately: an initiation of the peer may have been on its
    /// way meanwhile, and the session that came of it would end this one.
    pub(super) fn has_begun(&self, now_ns: u64, peer: NodeId) -> bool {
        let live = self.live(peer).and_then(|id| self.sessions.get(&id));
        live.is_some_and(|session| {
            session.ends.role == Role::Initiator
                && now_ns.saturating_sub(session.established_ns) < self.limits.handshake_deadline_ns
        })
    }

    /// Sends an initiation to `peer`.
    fn start_attempt(&mut self, now_ns: u64, peer: NodeId) {
        if self.is_stopping {
            return;
        }
        let session = self.free_session_id();
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        let unix_ns = self.started_unix_ns.saturating_add(now_ns);
        self.made_ns = unix_ns.max(self.made_ns.saturating_add(1));
        let (other, made_ns) = (known.other(), self.made_ns);
        let (network, generator) = (&self.network, &mut self.generator);
        let (key, ends_own) = (&self.node_key, (self.id, session));
        let started = Initiator::start(network, generator, key, ends_own, &other, made_ns);
        let Some(initiator) = started else { return };
        let waiting = Waiting {
            initiator,
            session,
            started_ns: now_ns,
            send_at_ns: now_ns,
            tries: 0,
            cookie: [0; 16],
            cookie_at_ns: 0,
        };
        self.set_attempt(peer, Attempt::Waiting(Box::new(waiting)));
        self.send_initiation(now_ns, peer);
    }

    /// Sends the initiation under way (again), and sets the timer for the next time.
    pub(super) fn send_initiation(&mut self, now_ns: u64, peer: NodeId) {
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        let Attempt::Waiting(waiting) = &mut known.attempt else {
            return;
        };
        let wait_ns = self
            .limits
            .handshake_retry_ns
            .saturating_mul(1 << waiting.tries.min(6));
        waiting.tries += 1;
        waiting.send_at_ns = now_ns.saturating_add(wait_ns);
        let deadline_ns = waiting.started_ns + self.limits.handshake_deadline_ns;
        let due_ns = waiting.send_at_ns.min(deadline_ns);
        let (session, cookie) = (waiting.session, waiting.cookie);
        let body = waiting.initiator.body().to_vec();
        let pattern = waiting.initiator.pattern();
        self.counters.initiations_sent += 1;
        self.post(
            (Kind::Initiation, pattern),
            peer,
            SessionId(0),
            session,
            &body,
            &cookie,
        );
        self.set_peer_timer(peer, Some(due_ns));
    }

    pub(super) fn handle_peer_timeout(&mut self, now_ns: u64, peer: NodeId) {
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        match &known.attempt {
            Attempt::Waiting(waiting) => {
                if now_ns >= waiting.started_ns + self.limits.handshake_deadline_ns {
                    self.set_attempt(peer, Attempt::None);
                    self.retry_later(now_ns, peer);
                } else {
                    self.send_initiation(now_ns, peer);
                }
            }
            Attempt::None if known.is_wanted && known.live.is_none() => {
                self.seek(now_ns, peer);
            }
            Attempt::Proving(..) => self.repeat_completion(now_ns, peer),
            Attempt::None => self.set_peer_timer(peer, None),
        }
    }

    /// The owner knows that `peer` is at `address` from now on, and nobody needs to be asked: a session goes by it at
    /// once, and an attempt to have one goes on without waiting.
    pub fn moved(&mut self, now_ns: u64, peer: NodeId, address: SocketAddr) {
        if let Some(id) = self.live(peer) {
            self.with_session(now_ns, id, |session, ctx| session.set_address(ctx, address));
            return self.settle(now_ns, id, self.events.len());
        }
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        match &known.attempt {
            Attempt::Waiting(_) => self.send_initiation(now_ns, peer),
            Attempt::None if known.is_wanted => {
                known.attempts_failed = 0;
                self.seek(now_ns, peer);
            }
            Attempt::None | Attempt::Proving(..) => {}
        }
    }

    /// Whether there is a session with `peer`, proven by both.
    #[must_use]
    pub fn has_session(&self, peer: NodeId) -> bool {
        self.live(peer).is_some()
    }

    /// Asks a peer that there is a session with to answer from `address`: [`Event::Reached`] tells when it does. What
    /// the two exchange goes the usual way meanwhile, and afterwards.
    pub fn probe(&mut self, now_ns: u64, peer: NodeId, address: SocketAddr) {
        let Some(id) = self.live(peer) else { return };
        self.with_session(now_ns, id, |session, ctx| {
            session.probe_address(ctx, address);
        });
        self.settle(now_ns, id, self.events.len());
    }

    /// Waits with capped, jittered back-off before the next attempt, if one is wanted.
    pub(super) fn retry_later(&mut self, now_ns: u64, peer: NodeId) {
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        if !known.is_wanted || known.live.is_some() || !matches!(known.attempt, Attempt::None) {
            return self.set_peer_timer(peer, None);
        }
        let doubled = self
            .limits
            .backoff_ns_min
            .saturating_mul(1 << known.attempts_failed.min(24));
        let most_ns = doubled.min(self.limits.backoff_ns_max);
        known.attempts_failed = known.attempts_failed.saturating_add(1);
        let wait_ns = most_ns / 2 + self.generator.below(most_ns / 2 + 1);
        self.set_peer_timer(peer, Some(now_ns + wait_ns));
    }

    /// Which node started a session.
    fn initiator_of(&self, id: SessionId) -> Option<NodeId> {
        let ends = self.sessions.get(&id)?.ends;
        Some(if ends.role == Role::Initiator {
            self.id
        } else {
            ends.peer
        })
    }

    /// Both ends are proven. The newer session takes the older one's place, unless both were
    /// started at about the same time from both ends: then the one that the lower node id started
    /// stays, at both ends alike.
    pub(super) fn on_established(&mut self, now_ns: u64, id: SessionId, mark: usize) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let ends = session.ends;
        let (pattern, is_hybrid) = (session.pattern, session.is_hybrid);
        let answered = self.half_open.iter().find(|half| half.own == id);
        let made_ns = answered.map(|half| half.made_ns);
        self.half_open.retain(|half| half.own != id);
        let Some(known) = self.peers.get_mut(&ends.peer) else {
            return;
        };
        known.remember(ends.peer_session);
        known.proven_made_ns = known.proven_made_ns.max(made_ns);
        let live = known.live;
        if matches!(known.attempt, Attempt::Proving(own, _) if own == id) {
            self.set_attempt(ends.peer, Attempt::None);
        }
        if let Some(old) = live {
            let age_ns = self
                .sessions
                .get(&old)
                .map_or(u64::MAX, |s| now_ns.saturating_sub(s.established_ns));
            let is_crossing = age_ns < self.limits.handshake_deadline_ns
                && self.initiator_of(old) != self.initiator_of(id);
            if is_crossing && self.initiator_of(old) < self.initiator_of(id) {
                self.events.truncate(mark);
                let superseded = CloseReason::Superseded;
                self.with_session(now_ns, id, |session, ctx| session.close(ctx, superseded));
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.take_outcome();
                }
                return;
            }
        }
        let Some(known) = self.peers.get_mut(&ends.peer) else {
            return;
        };
        known.live = Some(id);
        known.attempts_failed = 0;
        let began = (ends.peer, Some(id));
        known.conflict = None;
        known.node_key = known.node_key.or(ends.peer_key);
        if matches!(known.attempt, Attempt::Waiting(_)) {
            self.set_attempt(ends.peer, Attempt::None);
        }
        self.set_peer_timer(ends.peer, None);
        self.counters.sessions_established += 1;
        self.counters.established_by_pattern[pattern as usize] += 1;
        self.counters.established_hybrid += u64::from(is_hybrid);
        let later = self.events.split_off(mark.min(self.events.len()));
        if let Some(old) = live {
            let superseded = CloseReason::Superseded;
            self.with_session(now_ns, old, |session, ctx| session.close(ctx, superseded));
            self.settle(now_ns, old, self.events.len());
            self.tell_closed(old, ends.peer, superseded);
        }
        let event = Event::Connected {
            peer: ends.peer,
            entity: ends.peer_entity,
        };
        self.events.push_back(Queued::new(id, event));
        self.events.extend(later);
        self.on_link_session(now_ns, began);
    }

    /// Tells the peer of a session that is about to be forgotten.
    fn post_close(&mut self, now_ns: u64, id: SessionId) {
        let mut bytes = Vec::new();
        let built = self.with_session(now_ns, id, |session, ctx| {
            let sent = session.poll_transmit(ctx, &mut bytes);
            sent.map(|_| session.ends.peer)
        });
        if let Some(Some(peer)) = built {
            self.post_again(peer, bytes);
        }
    }

    /// Tells the owner, counts, and remembers it for who asks why there is no session.
    pub(super) fn tell_closed(&mut self, id: SessionId, peer: NodeId, reason: CloseReason) {
        self.counters.closed[reason as usize] += 1;
        if let Some(known) = self.peers.get_mut(&peer) {
            known.ended = Some(reason);
        }
        let event = Event::Closed { peer, reason };
        self.events.push_back(Queued::new(id, event));
    }

    /// A session ended: its owner is told if it ever knew of it, and a wanted one is tried again.
    pub(super) fn on_closed(&mut self, now_ns: u64, id: SessionId, reason: CloseReason) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        debug_assert!(is_over(session.state()), "a closed session drains");
        let peer = session.ends.peer;
        let is_unproven = self.half_open.iter().any(|half| half.own == id);
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        let was_live = known.live == Some(id);
        let was_attempt = matches!(known.attempt, Attempt::Proving(own, _) if own == id);
        if was_live {
            known.live = None;
        }
        if was_attempt {
            self.set_attempt(peer, Attempt::None);
        }
        if is_unproven || reason == CloseReason::Deadline {
            // It never carried anything: nothing late is to be recognised, and what strangers can
            // bring about must not stay beyond its bounds.
            self.post_close(now_ns, id);
            self.remove_session(id);
        }
        if was_live {
            self.on_link_session(now_ns, (peer, None));
        }
        if was_live || was_attempt {
            self.tell_closed(id, peer, reason);
            if matches!(
                self.peers.get(&peer).map(|p| &p.attempt),
                Some(Attempt::None)
            ) {
                self.retry_later(now_ns, peer);
            }
        }
    }
}
