//! What the owner of a node does with its sessions' streams.

use super::Node;
use crate::{
    event::{CloseReason, OpenError, Payload, Receipt, SendError, StreamSpec, Taken},
    session::Session,
    stream::{NO_DEADLINE, Terms},
};
use virga_ebpf::header::{NodeId, SessionId, StreamId};

impl Node {
    /// Queues a message on the session's control stream: reliable, ordered.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was queued then.
    pub fn send_control(
        &mut self,
        now_ns: u64,
        peer: NodeId,
        message: &[u8],
    ) -> Result<(), SendError> {
        self.on_live(now_ns, peer, |session| session.send_control(message))
    }

    /// Opens a stream to `peer`; the first message tells the peer so.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_stream(
        &mut self,
        now_ns: u64,
        peer: NodeId,
        spec: &StreamSpec,
    ) -> Result<StreamId, OpenError> {
        let id = self.live(peer).ok_or(OpenError::NoSession(peer))?;
        self.with_session(now_ns, id, |session, ctx| session.open_stream(ctx, spec))
            .unwrap_or(Err(OpenError::NoSession(peer)))
    }

    /// Queues a message on a stream that this node opened.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was queued then.
    pub fn send(
        &mut self,
        now_ns: u64,
        peer: NodeId,
        stream: StreamId,
        event: &[u8],
    ) -> Result<(), SendError> {
        let taken = self.send_all(now_ns, peer, stream, std::iter::once(event), None);
        taken.refused.map_or(Ok(()), Err)
    }

    /// Queues messages on a stream that this node opened, until one finds no room. One of which
    /// nothing is sent by `deadline_ns` (to a millisecond) is given up, and [`Event::Expired`] says so;
    /// one that has begun to travel on a reliable stream arrives.
    pub fn send_all<'e>(
        &mut self,
        now_ns: u64,
        peer: NodeId,
        stream: StreamId,
        events: impl IntoIterator<Item = impl Into<Payload<'e>>>,
        deadline_ns: Option<u64>,
    ) -> Taken {
        let terms = Terms::until(deadline_ns.unwrap_or(NO_DEADLINE));
        self.send_on(now_ns, peer, stream, events, terms)
    }

    /// Queues a message as [`Node::send_all`] does; [`Event::Receipt`] says when the peer has it, or that it
    /// was given up. An unreliable stream's messages are not acknowledged: nothing is told of them.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was queued then.
    pub fn send_with_receipt<'e>(
        &mut self,
        now_ns: u64,
        (peer, stream): (NodeId, StreamId),
        event: impl Into<Payload<'e>>,
        deadline_ns: Option<u64>,
        receipt: Receipt,
    ) -> Result<(), SendError> {
        let terms = Terms {
            receipt: Some(receipt),
            ..Terms::until(deadline_ns.unwrap_or(NO_DEADLINE))
        };
        let taken = self.send_on(now_ns, peer, stream, std::iter::once(event), terms);
        taken.refused.map_or(Ok(()), Err)
    }

    fn send_on<'e>(
        &mut self,
        now_ns: u64,
        peer: NodeId,
        stream: StreamId,
        events: impl IntoIterator<Item = impl Into<Payload<'e>>>,
        terms: Terms,
    ) -> Taken {
        let refused = |error| Taken {
            messages: 0,
            refused: Some(error),
        };
        let Some(id) = self.live(peer) else {
            return refused(SendError::NoSession);
        };
        let Some(session) = self.sessions.get_mut(&id) else {
            return refused(SendError::NoSession);
        };
        let taken = session.send(now_ns, stream, events.into_iter().map(Into::into), terms);
        self.counters.sends_refused += u64::from(taken.refused == Some(SendError::Full));
        if taken.messages > 0 && terms.deadline_ns != NO_DEADLINE {
            self.settle(now_ns, id, self.events.len());
        } else if taken.messages > 0 && !session.is_queued {
            // No timer changes before something is sent.
            session.is_queued = true;
            self.row.push_back(id);
        }
        taken
    }

    /// Bytes queued on a stream that this node opened, or not acknowledged yet; 0 where there is none.
    #[must_use]
    pub fn queued_on(&self, peer: NodeId, stream: StreamId) -> usize {
        let session = self.live(peer).and_then(|id| self.sessions.get(&id));
        session.map_or(0, |session| session.queued_on(stream))
    }

    /// Finishes a stream that this node opened, after what is queued.
    ///
    /// # Errors
    /// [`SendError::NoSession`] or [`SendError::NoStream`].
    pub fn finish_stream(
        &mut self,
        now_ns: u64,
        peer: NodeId,
        stream: StreamId,
    ) -> Result<(), SendError> {
        self.on_live(now_ns, peer, |session| session.finish_stream(stream))
    }

    /// Gives a stream that this node opened up: what is queued is not sent, and the peer is told.
    ///
    /// # Errors
    /// [`SendError::NoSession`] or [`SendError::NoStream`].
    pub fn reset_stream(
        &mut self,
        now_ns: u64,
        peer: NodeId,
        stream: StreamId,
    ) -> Result<(), SendError> {
        let id = self.live(peer).ok_or(SendError::NoSession)?;
        let mark = self.events.len();
        let done = self.with_session(now_ns, id, |session, ctx| session.reset_stream(ctx, stream));
        self.settle(now_ns, id, mark);
        done.unwrap_or(Err(SendError::NoSession))
    }

    /// Refuses a stream that the peer opened: later messages are counted and dropped, and the peer
    /// is told.
    ///
    /// # Errors
    /// [`SendError::NoSession`] or [`SendError::NoStream`].
    pub fn refuse_stream(
        &mut self,
        now_ns: u64,
        peer: NodeId,
        stream: StreamId,
    ) -> Result<(), SendError> {
        self.on_live(now_ns, peer, |session| {
            if session.refuse(stream) {
                Ok(())
            } else {
                Err(SendError::NoStream)
            }
        })
    }

    pub(super) fn live(&self, peer: NodeId) -> Option<SessionId> {
        self.peers.get(&peer)?.live
    }

    /// Runs `call` on the established session with `peer`, and queues it for sending.
    fn on_live(
        &mut self,
        now_ns: u64,
        peer: NodeId,
        call: impl FnOnce(&mut Session) -> Result<(), SendError>,
    ) -> Result<(), SendError> {
        let id = self.live(peer).ok_or(SendError::NoSession)?;
        let session = self.sessions.get_mut(&id).ok_or(SendError::NoSession)?;
        let done = call(session);
        match done {
            Ok(()) => self.settle(now_ns, id, self.events.len()),
            Err(SendError::Full) => self.counters.sends_refused += 1,
            Err(_) => {}
        }
        done
    }

    /// Ends the session with `peer` once the peer has all that is queued here, at `deadline_ns` at the
    /// latest, and stops trying for another. Until then nothing new is taken;
    /// [`Event::Closed`] says whether all came through.
    ///
    /// # Errors
    /// [`SendError::NoSession`]: then this did what [`Node::close`] does.
    pub fn drain(&mut self, now_ns: u64, peer: NodeId, deadline_ns: u64) -> Result<(), SendError> {
        let Some(id) = self.live(peer) else {
            self.close(now_ns, peer);
            return Err(SendError::NoSession);
        };
        self.give_up(peer);
        let mark = self.events.len();
        self.with_session(now_ns, id, |session, ctx| session.finish(ctx, deadline_ns));
        self.settle(now_ns, id, mark);
        Ok(())
    }

    /// Ends every session as [`Node::drain`] does; none begins any more, from either end.
    pub fn stop(&mut self, now_ns: u64, deadline_ns: u64) {
        self.is_stopping = true;
        let peers: Vec<NodeId> = self.peers.keys().copied().collect();
        for peer in peers {
            // Without a session, nothing was accepted for it.
            let _closed = self.drain(now_ns, peer, deadline_ns);
        }
        let half_open: Vec<SessionId> = self.half_open.iter().map(|half| half.own).collect();
        for id in half_open {
            if self.sessions.contains_key(&id) {
                self.close_session(now_ns, id, CloseReason::Local);
            } else {
                self.forget_half_open(id);
            }
        }
    }

    /// Whether a session that [`Node::drain`] ends goes on.
    pub(crate) fn is_draining(&self) -> bool {
        self.sessions.values().any(Session::is_finishing)
    }
}
