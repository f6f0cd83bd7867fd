//! Handshake messages that arrive: initiations answered, responses taken, cookies, resets; `completions` has
//! XX's third message and refusals.

use super::{Attempt, Node, completions::Completion};
use crate::{
    cookie::{Admission, Age},
    event::CloseReason,
    handshake::{
        Agreed, Answer, Awaiting, Kind, Message, RESET_BYTES, Refused, build, made_ns, parse,
        respond,
    },
    hybrid::Exchange,
    keys::Role,
    limits::{HALF_OPEN_PER_PEER_MAX, OUTBOX_MAX},
    policy::Pattern,
    reason::DropReason,
    session::{Ends, Session},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};
use virga_ebpf::header::{Header, NodeId, SessionId};

/// A handshake message to send.
pub(super) struct Outbound {
    pub(super) destination: NodeId,
    pub(super) bytes: Vec<u8>,
}

/// A session that this node answered, whose peer has not proven its entity.
pub(super) struct HalfOpen {
    pub(super) peer: NodeId,
    pub(super) own: SessionId,
    pub(super) theirs: SessionId,
    source: IpAddr,
    pub(super) since_ns: u64,
    /// While the completion is missing there is no session yet.
    pub(super) awaiting: Option<Box<Awaiting>>,
    /// When its initiation was made, on the peer's clock.
    pub(super) made_ns: u64,
    /// The response, for when it was lost.
    response: Vec<u8>,
    /// Before this it is not sent again.
    repeat_at_ns: u64,
}

impl Node {
    pub(super) fn handle_handshake(
        &mut self,
        now_ns: u64,
        source: SocketAddr,
        header: &Header,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        let message = parse(&self.network, &self.tag_key, header, datagram)?;
        if message.kind == Kind::Introduction {
            return self.on_introduction(now_ns, source, &datagram[message.body]);
        }
        let known = self
            .peers
            .get(&message.sender)
            .ok_or(DropReason::HandshakePeer)?;
        if known.entity(header.origin_hash).is_none() {
            return Err(DropReason::HandshakePeer);
        }
        let body = &datagram[message.body.clone()];
        match message.kind {
            Kind::Initiation => self.on_initiation(now_ns, source, &message, body),
            Kind::Response => self.on_response(now_ns, header.session_id, &message, body),
            Kind::Cookie => self.on_cookie(now_ns, header.session_id, &message),
            Kind::Reset => self.on_reset(now_ns, &message, body),
            Kind::Completion => self.on_completion(now_ns, header.session_id, &message, body),
            Kind::Refusal => self.on_refusal(header.session_id, &message, body),
            // It was taken above.
            Kind::Introduction => Ok(()),
        }
    }

    /// Queues a handshake message; when too many wait it is dropped, as the network might.
    pub(super) fn post(
        &mut self,
        kind: (Kind, Pattern),
        peer: NodeId,
        session_id: SessionId,
        session: SessionId,
        body: &[u8],
        cookie: &[u8; 16],
    ) -> Vec<u8> {
        let route = self.route(peer);
        let bytes = build(
            &self.network,
            kind,
            &route,
            session_id,
            session,
            body,
            cookie,
        );
        self.post_again(peer, bytes.clone());
        bytes
    }

    pub(super) fn post_again(&mut self, destination: NodeId, bytes: Vec<u8>) {
        if self.outbox.len() >= OUTBOX_MAX {
            self.counters.outbox_full += 1;
            return;
        }
        self.outbox.push_back(Outbound { destination, bytes });
    }

    fn on_initiation(
        &mut self,
        now_ns: u64,
        source: SocketAddr,
        message: &Message,
        body: &[u8],
    ) -> Result<(), DropReason> {
        if self.is_stopping {
            return Err(DropReason::HandshakeStopping);
        }
        let (peer, theirs) = (message.sender, message.session);
        let answered = self
            .half_open
            .iter_mut()
            .find(|h| h.peer == peer && h.theirs == theirs);
        if let Some(half) = answered {
            if now_ns < half.repeat_at_ns {
                return Err(DropReason::HandshakeRepeated);
            }
            half.repeat_at_ns = now_ns + self.limits.handshake_retry_ns / 2;
            let response = half.response.clone();
            self.post_again(peer, response);
            return Ok(());
        }
        let known = self.peers.get(&peer).ok_or(DropReason::HandshakePeer)?;
        if known.recent.contains(&theirs) {
            return Err(DropReason::HandshakeReplayed);
        }
        // Where the peer does not take what this node sends, the peer's own attempt is the one to answer.
        let is_trying = !matches!(known.attempt, Attempt::None) && known.conflict.is_none();
        if is_trying && self.id < peer {
            return Err(DropReason::HandshakeSimultaneous);
        }
        let made_ns = made_ns(body);
        let (age, reason) = match known.proven_made_ns {
            Some(proven_ns) if made_ns <= proven_ns => (Age::Stale, DropReason::HandshakeStale),
            _ => (Age::New, DropReason::HandshakeCookie),
        };
        match self
            .gate
            .admit(now_ns, (peer, theirs), source, &message.cookie, age)
        {
            Admission::Admit => {}
            Admission::Refuse => return Err(DropReason::HandshakeRate),
            Admission::Cookie(cookie) => {
                self.counters.cookies_sent += 1;
                let kind = (Kind::Cookie, message.pattern);
                self.post(kind, peer, theirs, SessionId(0), &[], &cookie);
                return Err(reason);
            }
        }
        if self.has_begun(now_ns, peer) {
            // One that has forgotten it says so, and is answered when it asks again.
            self.probe_live(now_ns, peer);
            return Err(DropReason::HandshakeSimultaneous);
        }
        self.answer(now_ns, source, message, body)
    }

    /// The first DH, and a half-open session.
    fn answer(
        &mut self,
        now_ns: u64,
        source: SocketAddr,
        message: &Message,
        body: &[u8],
    ) -> Result<(), DropReason> {
        let (source, made_ns) = (source.ip(), made_ns(body));
        let victim = self.room_for(message.sender, source, made_ns)?;
        let other = self.other(message.sender)?;
        let own = self.free_session_id();
        let ends_own = (self.id, own);
        let (network, generator) = (&self.network, &mut self.generator);
        let key = &self.node_key;
        let (answer, response) =
            match respond(network, generator, key, ends_own, &other, message, body) {
                Ok(answered) => answered,
                Err(Refused::Dropped(reason)) => return Err(reason),
                Err(Refused::Conflict(conflict)) => return Err(self.refuse(message, conflict)),
            };
        if let Some(victim) = victim {
            self.counters.half_open_evicted += 1;
            self.remove_session(victim);
        }
        let (peer, theirs) = (message.sender, message.session);
        let awaiting = match answer {
            Answer::Agreed(agreed) => {
                self.add_session(now_ns, own, message, Role::Responder, *agreed)?;
                None
            }
            Answer::Awaiting(awaiting) => {
                self.expect_completion(now_ns, own);
                Some(awaiting)
            }
        };
        let kind = (Kind::Response, message.pattern);
        let bytes = self.post(kind, peer, theirs, own, &response, &[0; 16]);
        self.half_open.push(HalfOpen {
            peer,
            own,
            theirs,
            source,
            since_ns: now_ns,
            awaiting,
            made_ns,
            response: bytes,
            repeat_at_ns: now_ns + self.limits.handshake_retry_ns / 2,
        });
        self.counters.initiations_answered += 1;
        self.probe_live(now_ns, peer);
        Ok(())
    }

    /// A peer that starts anew may have forgotten the session that lives here: a ping brings its
    /// reset at once.
    fn probe_live(&mut self, now_ns: u64, peer: NodeId) {
        let Some(id) = self.live(peer) else { return };
        if let Some(session) = self.sessions.get_mut(&id) {
            session.probe();
        }
        self.settle(now_ns, id, self.events.len());
    }

    pub(super) fn add_session(
        &mut self,
        now_ns: u64,
        own: SessionId,
        message: &Message,
        role: Role,
        agreed: Agreed,
    ) -> Result<(), DropReason> {
        let known = self.peers.get(&message.sender);
        let peer_entity = known.and_then(|known| known.entity(message.origin));
        let peer_entity = peer_entity.ok_or(DropReason::HandshakePeer)?;
        let ends = Ends {
            own_node: self.id,
            own,
            peer: message.sender,
            peer_session: message.session,
            peer_origin: message.origin,
            peer_entity,
            peer_key: agreed.peer_key,
            role,
        };
        let token = self.reset_key.token(own);
        let is_hybrid = agreed.is_hybrid;
        let exchange = is_hybrid.then(|| Exchange::new(role, &mut self.generator));
        let session = Session::new(ends, agreed, exchange, token, &self.limits, now_ns);
        self.sessions.insert(own, session);
        self.settle(now_ns, own, self.events.len());
        Ok(())
    }

    /// Bounded state: whether another half-open session fits, and which one gives way to it.
    fn room_for(
        &self,
        peer: NodeId,
        source: IpAddr,
        made_ns: u64,
    ) -> Result<Option<SessionId>, DropReason> {
        let of_peer = self.half_open.iter().filter(|h| h.peer == peer);
        if of_peer.clone().count() >= HALF_OPEN_PER_PEER_MAX {
            let victim = oldest_of_peer(of_peer, source, made_ns);
            return victim.map(Some).ok_or(DropReason::HandshakeFull);
        }
        if self.half_open.len() < self.limits.half_open_max
            && self.sessions.len() < self.limits.sessions_max
        {
            return Ok(None);
        }
        let victim = first_of_loudest(&self.half_open);
        victim.map(Some).ok_or(DropReason::HandshakeFull)
    }

    fn on_response(
        &mut self,
        now_ns: u64,
        own: SessionId,
        message: &Message,
        body: &[u8],
    ) -> Result<(), DropReason> {
        let other = self.other(message.sender)?;
        let known = self
            .peers
            .get_mut(&message.sender)
            .ok_or(DropReason::HandshakePeer)?;
        let Attempt::Waiting(waiting) = &mut known.attempt else {
            return Err(DropReason::HandshakeUnasked);
        };
        if waiting.session != own {
            return Err(DropReason::HandshakeUnasked);
        }
        if self.sessions.len() >= self.limits.sessions_max {
            return Err(DropReason::HandshakeFull);
        }
        let peer = message.sender;
        let finished = waiting
            .initiator
            .finish(&self.network, &other, message, body);
        let (agreed, completion) = match finished {
            Ok(finished) => finished,
            Err(Refused::Dropped(reason @ DropReason::HandshakeNoise)) => return Err(reason),
            Err(refused) => return Err(self.abandon(now_ns, message, refused)),
        };
        let completion = completion.map(|body| {
            let kind = (Kind::Completion, message.pattern);
            let bytes = self.post(kind, peer, message.session, own, &body, &[0; 16]);
            Completion::sent(now_ns, bytes, &self.limits)
        });
        let again_ns = completion.as_ref().map(|c| c.send_at_ns);
        self.set_attempt(peer, Attempt::Proving(own, completion));
        self.set_peer_timer(peer, again_ns);
        self.add_session(now_ns, own, message, Role::Initiator, agreed)
    }

    fn on_cookie(
        &mut self,
        now_ns: u64,
        own: SessionId,
        message: &Message,
    ) -> Result<(), DropReason> {
        let known = self
            .peers
            .get_mut(&message.sender)
            .ok_or(DropReason::HandshakePeer)?;
        let Attempt::Waiting(waiting) = &mut known.attempt else {
            return Err(DropReason::HandshakeUnasked);
        };
        if waiting.session != own || now_ns < waiting.cookie_at_ns {
            return Err(DropReason::HandshakeUnasked);
        }
        waiting.cookie = message.cookie;
        waiting.cookie_at_ns = now_ns + self.limits.handshake_retry_ns;
        self.send_initiation(now_ns, message.sender);
        Ok(())
    }

    /// The peer no longer knows a session: believed only with the token that it gave, sealed.
    fn on_reset(&mut self, now_ns: u64, message: &Message, body: &[u8]) -> Result<(), DropReason> {
        let peer = message.sender;
        let id = self.live(peer).ok_or(DropReason::HandshakeUnasked)?;
        let session = self.sessions.get(&id).ok_or(DropReason::HandshakeUnasked)?;
        if session.ends.peer_session != message.session {
            return Err(DropReason::HandshakeUnasked);
        }
        let token = <&[u8; 16]>::try_from(body).map_err(|_| DropReason::HandshakeMalformed)?;
        if !session.is_reset_by(token) {
            return Err(DropReason::ResetToken);
        }
        self.counters.resets_received += 1;
        self.remove_session(id);
        if let Some(known) = self.peers.get_mut(&peer) {
            known.live = None;
        }
        self.tell_closed(id, peer, CloseReason::Reset);
        if matches!(
            self.peers.get(&peer).map(|p| &p.attempt),
            Some(Attempt::None)
        ) {
            self.seek(now_ns, peer);
        }
        Ok(())
    }

    /// A packet for a session that this node does not have: perhaps it restarted. The configured
    /// peer whose entity the packet names is told, at a bounded rate (to each source its share) and
    /// never with more bytes than came. An id that a response may yet bring to life is not spoken of:
    /// its token would end it.
    pub(super) fn answer_unknown(
        &mut self,
        now_ns: u64,
        source: IpAddr,
        header: &Header,
        datagram_bytes: usize,
    ) {
        let Some(&peer) = self.by_origin.get(&header.origin_hash.0) else {
            return;
        };
        if datagram_bytes < RESET_BYTES
            || self.is_promised(header.session_id)
            || !self.gate.admit_reset(now_ns, source)
        {
            return;
        }
        self.counters.resets_sent += 1;
        let token = self.reset_key.token(header.session_id);
        self.post(
            (Kind::Reset, Pattern::Nk),
            peer,
            SessionId(0),
            header.session_id,
            &token,
            &[0; 16],
        );
    }
}

/// How many half-open sessions each source holds.
fn held_by_source<'a>(half_open: impl Iterator<Item = &'a HalfOpen>) -> BTreeMap<IpAddr, usize> {
    let mut held = BTreeMap::new();
    for half in half_open {
        *held.entry(half.source).or_insert(0) += 1;
    }
    held
}

/// Of one peer's: the earliest made of the sources that hold most, the newcomer counted in. `None`
/// when that is the newcomer. Replays are old, so the peer's true attempt stays.
fn oldest_of_peer<'a>(
    of_peer: impl Iterator<Item = &'a HalfOpen> + Clone,
    source: IpAddr,
    made_ns: u64,
) -> Option<SessionId> {
    let mut held = held_by_source(of_peer.clone());
    *held.entry(source).or_insert(0) += 1;
    let most = held.values().copied().max();
    let holds_most = |source: &IpAddr| held.get(source).copied() == most;
    let oldest = of_peer
        .filter(|half| holds_most(&half.source))
        .min_by_key(|half| half.made_ns)?;
    (!holds_most(&source) || oldest.made_ns < made_ns).then_some(oldest.own)
}

/// Of all peers', whose clocks cannot be compared: the first of the source that holds most.
fn first_of_loudest(half_open: &[HalfOpen]) -> Option<SessionId> {
    let held = held_by_source(half_open.iter());
    let most = held.values().copied().max()?;
    half_open
        .iter()
        .find(|half| held.get(&half.source) == Some(&most))
        .map(|half| half.own)
}

#[cfg(test)]
impl Node {
    /// Claims another entity in every header, as a liar would.
    pub(crate) fn lie_about_origin(&mut self, origin: virga_ebpf::header::OriginHash) {
        self.origin = origin;
    }

    /// Says that it is another node, as a liar would.
    pub(crate) fn lie_about_id(&mut self, id: NodeId) {
        self.id = id;
    }

    /// A reset with a made-up token, as any member could send it.
    pub(crate) fn forge_reset(&mut self, peer: NodeId, session: SessionId) -> Vec<u8> {
        let kind = (Kind::Reset, Pattern::Nk);
        self.post(kind, peer, SessionId(0), session, &[1; 16], &[0; 16])
    }
}
