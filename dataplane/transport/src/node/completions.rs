//! XX's third message, from both ends; and policies that contradict each other.

use super::{Attempt, Node, Timer};
use crate::{
    config::NodeLimits,
    event::Event,
    handshake::{Kind, Message, Other, Refused},
    keys::Role,
    policy::{Conflict, Offer, Pattern},
    reason::DropReason,
    session::Queued,
};
use virga_ebpf::header::{NodeId, SessionId};

/// A completion that was sent: again and again, until the responder's first packet.
pub(super) struct Completion {
    bytes: Vec<u8>,
    pub(super) send_at_ns: u64,
    tries: u32,
}

impl Completion {
    pub(super) fn sent(now_ns: u64, bytes: Vec<u8>, limits: &NodeLimits) -> Self {
        Self {
            bytes,
            send_at_ns: now_ns + limits.handshake_retry_ns,
            tries: 1,
        }
    }
}

impl Node {
    /// A peer as a handshake sees it.
    pub(super) fn other(&self, peer: NodeId) -> Result<Other, DropReason> {
        let known = self.peers.get(&peer).ok_or(DropReason::HandshakePeer)?;
        Ok(known.other())
    }

    /// A session that the completion will begin: its id is taken, and for no longer than the deadline.
    pub(super) fn expect_completion(&mut self, now_ns: u64, own: SessionId) {
        let due_ns = now_ns + self.limits.handshake_deadline_ns;
        self.promised.insert(own);
        self.timers.insert((due_ns, Timer::HalfOpen(own)));
    }

    /// Forgets that a session is half open.
    pub(super) fn forget_half_open(&mut self, own: SessionId) {
        let Some(at) = self.half_open.iter().position(|half| half.own == own) else {
            return;
        };
        let half = self.half_open.remove(at);
        if half.awaiting.is_some() {
            self.stop_expecting(own, half.since_ns);
        }
    }

    /// Forgets all half-open sessions of a peer.
    pub(super) fn forget_half_open_of(&mut self, peer: NodeId) {
        while let Some(own) = self
            .half_open
            .iter()
            .find(|h| h.peer == peer)
            .map(|h| h.own)
        {
            self.forget_half_open(own);
        }
    }

    fn stop_expecting(&mut self, own: SessionId, since_ns: u64) {
        let due_ns = since_ns + self.limits.handshake_deadline_ns;
        self.promised.remove(&own);
        self.timers.remove(&(due_ns, Timer::HalfOpen(own)));
    }

    pub(super) fn on_completion(
        &mut self,
        now_ns: u64,
        own: SessionId,
        message: &Message,
        body: &[u8],
    ) -> Result<(), DropReason> {
        let (peer, theirs) = (message.sender, message.session);
        let other = self.other(peer)?;
        let is_full = self.sessions.len() >= self.limits.sessions_max;
        let half = self.half_open.iter_mut().find(|half| half.own == own);
        let half = half.filter(|half| half.peer == peer && half.theirs == theirs);
        let half = half.ok_or(DropReason::HandshakeUnasked)?;
        if is_full {
            return Err(DropReason::HandshakeFull);
        }
        let awaiting = half.awaiting.take();
        let awaiting = awaiting.ok_or(DropReason::HandshakeRepeated)?;
        let since_ns = half.since_ns;
        self.stop_expecting(own, since_ns);
        let agreed = match awaiting.finish(&other, body) {
            Ok(agreed) => agreed,
            Err(refused) => {
                self.forget_half_open(own);
                return Err(match refused {
                    Refused::Dropped(reason) => reason,
                    Refused::Conflict(_) => DropReason::HandshakePolicy,
                });
            }
        };
        let added = self.add_session(now_ns, own, message, Role::Responder, agreed);
        if added.is_err() {
            self.forget_half_open(own);
        }
        added
    }

    /// The completion may be lost: it is sent until the peer's first packet comes.
    pub(super) fn repeat_completion(&mut self, now_ns: u64, peer: NodeId) {
        let retry_ns = self.limits.handshake_retry_ns;
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        let Attempt::Proving(own, Some(completion)) = &mut known.attempt else {
            return self.set_peer_timer(peer, None);
        };
        if self.sessions.get(own).is_none_or(|s| s.has_heard()) {
            return self.set_peer_timer(peer, None);
        }
        completion.send_at_ns = now_ns + retry_ns.saturating_mul(1 << completion.tries.min(6));
        completion.tries += 1;
        let (bytes, due_ns) = (completion.bytes.clone(), completion.send_at_ns);
        self.post_again(peer, bytes);
        self.set_peer_timer(peer, Some(due_ns));
    }

    /// Says why there will be no session: with fewer bytes than came.
    pub(super) fn refuse(&mut self, message: &Message, conflict: Conflict) -> DropReason {
        let peer = message.sender;
        if let Some(known) = self.peers.get(&peer) {
            let offer = [known.policy.offer().byte()];
            let kind = (Kind::Refusal, message.pattern);
            self.counters.refusals_sent += 1;
            self.post(kind, peer, message.session, SessionId(0), &offer, &[0; 16]);
        }
        // All but IK's first message can be anybody's: it contradicts no session that there is.
        if message.pattern == Pattern::Ik || self.live(peer).is_none() {
            self.tell_conflict(peer, conflict);
        }
        DropReason::HandshakePolicy
    }

    /// The peer does not take what this node sent. That may be a lie: it is told, and the attempt goes on.
    pub(super) fn on_refusal(
        &mut self,
        own: SessionId,
        message: &Message,
        body: &[u8],
    ) -> Result<(), DropReason> {
        let peer = message.sender;
        let known = self.peers.get(&peer).ok_or(DropReason::HandshakePeer)?;
        let Attempt::Waiting(waiting) = &known.attempt else {
            return Err(DropReason::HandshakeUnasked);
        };
        if waiting.session != own {
            return Err(DropReason::HandshakeUnasked);
        }
        let theirs = body.first().and_then(|&byte| Offer::from_byte(byte));
        let theirs = theirs.ok_or(DropReason::HandshakeMalformed)?;
        let judged = known.policy.judge(waiting.initiator.pattern(), theirs);
        let conflict = judged.err().ok_or(DropReason::HandshakeUnasked)?;
        self.counters.refusals_received += 1;
        self.tell_conflict(peer, conflict);
        Ok(())
    }

    /// The response was authentic, and there can be no session: another attempt begins later.
    pub(super) fn abandon(
        &mut self,
        now_ns: u64,
        message: &Message,
        refused: Refused,
    ) -> DropReason {
        let peer = message.sender;
        self.set_attempt(peer, Attempt::None);
        self.retry_later(now_ns, peer);
        match refused {
            Refused::Dropped(reason) => reason,
            Refused::Conflict(conflict) => {
                self.tell_conflict(peer, conflict);
                DropReason::HandshakePolicy
            }
        }
    }

    /// Tells the owner, once until there is a session.
    fn tell_conflict(&mut self, peer: NodeId, conflict: Conflict) {
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        if known.conflict.replace(conflict) != Some(conflict) {
            let event = Event::Refused { peer, conflict };
            self.events.push_back(Queued::new(SessionId(0), event));
        }
    }
}
