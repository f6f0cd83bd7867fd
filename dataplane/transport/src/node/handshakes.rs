//! Handshake messages that arrive: initiations answered, responses taken, cookies, resets.

use super::{Attempt, Node};
use crate::{
    cookie::Admission,
    event::{CloseReason, Event},
    handshake::{Kind, Message, RESET_BYTES, build, parse, respond},
    keys::Role,
    limits::{HALF_OPEN_PER_PEER_MAX, OUTBOX_MAX},
    reason::DropReason,
    session::{Ends, Queued, Session},
};
use std::net::{IpAddr, SocketAddr};
use virga_ebpf::header::{Header, NodeId, SessionId};

/// A handshake message to send.
pub(super) struct Outbound {
    pub(super) destination: NodeId,
    pub(super) session: SessionId,
    pub(super) bytes: Vec<u8>,
}

/// A session that this node answered, whose peer has not proven its entity.
pub(super) struct HalfOpen {
    peer: NodeId,
    pub(super) own: SessionId,
    theirs: SessionId,
    source: IpAddr,
    /// The response, for when it was lost.
    response: Vec<u8>,
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
        let known = self
            .peers
            .get(&message.sender)
            .ok_or(DropReason::HandshakePeer)?;
        if known.origin != header.origin_hash {
            return Err(DropReason::HandshakePeer);
        }
        let body = &datagram[message.body.clone()];
        match message.kind {
            Kind::Initiation => self.on_initiation(now_ns, source, &message, body),
            Kind::Response => self.on_response(now_ns, header.session_id, &message, body),
            Kind::Cookie => self.on_cookie(now_ns, header.session_id, &message),
            Kind::Reset => self.on_reset(now_ns, &message, body),
        }
    }

    /// Queues a handshake message; when too many wait it is dropped, as the network might.
    pub(super) fn post(
        &mut self,
        kind: Kind,
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
        self.post_again(peer, session_id, bytes.clone());
        bytes
    }

    fn post_again(&mut self, destination: NodeId, session: SessionId, bytes: Vec<u8>) {
        if self.outbox.len() < OUTBOX_MAX {
            self.outbox.push_back(Outbound {
                destination,
                session,
                bytes,
            });
        }
    }

    fn on_initiation(
        &mut self,
        now_ns: u64,
        source: SocketAddr,
        message: &Message,
        body: &[u8],
    ) -> Result<(), DropReason> {
        let (peer, theirs) = (message.sender, message.session);
        let answered = self
            .half_open
            .iter()
            .find(|h| h.peer == peer && h.theirs == theirs);
        if let Some(half) = answered {
            let response = half.response.clone();
            self.post_again(peer, theirs, response);
            return Ok(());
        }
        let known = self.peers.get(&peer).ok_or(DropReason::HandshakePeer)?;
        if known.recent.contains(&theirs) {
            return Err(DropReason::HandshakeReplayed);
        }
        if !matches!(known.attempt, Attempt::None) && self.id < peer {
            return Err(DropReason::HandshakeSimultaneous);
        }
        match self
            .gate
            .admit(now_ns, peer, theirs, source, &message.cookie)
        {
            Admission::Admit => {}
            Admission::Refuse => return Err(DropReason::HandshakeRate),
            Admission::Cookie(cookie) => {
                self.counters.cookies_sent += 1;
                self.post(Kind::Cookie, peer, theirs, SessionId(0), &[], &cookie);
                return Err(DropReason::HandshakeCookie);
            }
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
        let own = self.free_session_id();
        let ends_own = (self.id, own);
        let (network, generator) = (&self.network, &mut self.generator);
        let (agreed, response) =
            respond(network, generator, &self.node_key, ends_own, message, body)?;
        self.make_room(message.sender)?;
        let (peer, theirs) = (message.sender, message.session);
        self.add_session(now_ns, own, peer, theirs, Role::Responder, agreed)?;
        let bytes = self.post(Kind::Response, peer, theirs, own, &response, &[0; 16]);
        let source = source.ip();
        self.half_open.push(HalfOpen {
            peer,
            own,
            theirs,
            source,
            response: bytes,
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

    fn add_session(
        &mut self,
        now_ns: u64,
        own: SessionId,
        peer: NodeId,
        theirs: SessionId,
        role: Role,
        agreed: crate::handshake::Agreed,
    ) -> Result<(), DropReason> {
        let known = self.peers.get(&peer).ok_or(DropReason::HandshakePeer)?;
        let ends = Ends {
            own_node: self.id,
            own,
            peer,
            peer_session: theirs,
            peer_origin: known.origin,
            peer_entity: known.config.entity_key,
            role,
        };
        let token = self.reset_key.token(own);
        let session = Session::new(ends, agreed, token, now_ns);
        self.sessions.insert(own, session);
        self.settle(now_ns, own, self.events.len());
        Ok(())
    }

    /// Bounded state: beyond the bounds the oldest half-open session of the source that has most
    /// of them gives way.
    fn make_room(&mut self, peer: NodeId) -> Result<(), DropReason> {
        let of_peer = self.half_open.iter().filter(|h| h.peer == peer).count();
        let victim = if of_peer >= HALF_OPEN_PER_PEER_MAX {
            self.victim(|half| half.peer == peer)
        } else if self.half_open.len() >= self.limits.half_open_max
            || self.sessions.len() >= self.limits.sessions_max
        {
            Some(self.victim(|_| true).ok_or(DropReason::HandshakeFull)?)
        } else {
            None
        };
        if let Some(own) = victim {
            self.counters.half_open_evicted += 1;
            self.remove_session(own);
        }
        Ok(())
    }

    fn victim(&self, counts: impl Fn(&HalfOpen) -> bool) -> Option<SessionId> {
        let share = |source: IpAddr| {
            self.half_open
                .iter()
                .filter(|h| counts(h) && h.source == source)
                .count()
        };
        let mut victim: Option<(&HalfOpen, usize)> = None;
        for half in self.half_open.iter().filter(|h| counts(h)) {
            let same_source = victim.is_some_and(|(v, _)| v.source == half.source);
            if same_source {
                continue;
            }
            let held = share(half.source);
            if victim.is_none_or(|(_, most)| held > most) {
                victim = Some((half, held));
            }
        }
        victim.map(|(half, _)| half.own)
    }

    fn on_response(
        &mut self,
        now_ns: u64,
        own: SessionId,
        message: &Message,
        body: &[u8],
    ) -> Result<(), DropReason> {
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
        let agreed = waiting.initiator.finish(&self.network, message, body)?;
        self.set_attempt(message.sender, Attempt::Proving(own));
        self.set_peer_timer(message.sender, None);
        self.add_session(
            now_ns,
            own,
            message.sender,
            message.session,
            Role::Initiator,
            agreed,
        )
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
        if waiting.session != own || waiting.cookie == message.cookie {
            return Err(DropReason::HandshakeUnasked);
        }
        waiting.cookie = message.cookie;
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
        let event = Event::Closed {
            peer,
            reason: CloseReason::Reset,
        };
        self.events.push_back(Queued {
            session: id,
            event,
            credit: 0,
        });
        if matches!(
            self.peers.get(&peer).map(|p| &p.attempt),
            Some(Attempt::None)
        ) {
            self.start_attempt(now_ns, peer);
        }
        Ok(())
    }

    /// A packet for a session that this node does not have: perhaps it restarted. The configured
    /// peer whose entity the packet names is told, at a bounded rate and never with more bytes than
    /// came. An id that a response may yet bring to life is not spoken of: its token would end it.
    pub(super) fn answer_unknown(&mut self, now_ns: u64, header: &Header, datagram_bytes: usize) {
        let Some(&peer) = self.by_origin.get(&header.origin_hash.0) else {
            return;
        };
        if datagram_bytes < RESET_BYTES
            || self.is_promised(header.session_id)
            || !self.resets.take(now_ns)
        {
            return;
        }
        self.counters.resets_sent += 1;
        let token = self.reset_key.token(header.session_id);
        self.post(
            Kind::Reset,
            peer,
            SessionId(0),
            header.session_id,
            &token,
            &[0; 16],
        );
    }
}

#[cfg(test)]
impl Node {
    /// Claims another entity in every header, as a liar would.
    pub(crate) fn lie_about_origin(&mut self, origin: virga_ebpf::header::OriginHash) {
        self.origin = origin;
    }

    /// A reset with a made-up token, as any member could send it.
    pub(crate) fn forge_reset(&mut self, peer: NodeId, session: SessionId) -> Vec<u8> {
        self.post(Kind::Reset, peer, SessionId(0), session, &[1; 16], &[0; 16])
    }
}
