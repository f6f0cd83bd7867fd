//! What other nodes send here: their streams, let in or refused, and every event of them to local subscribers.

use super::{
    delivery::{Delivery, Outlet, Signature},
    entry::Index,
    reason::Reason,
    service::{ChannelService, Session},
    signed::span_of,
    timed,
    tree::Followed,
};
use bytes::Bytes;
use virga_ebpf::header::{NodeId, StreamId};
use virga_transport::{ChannelName, Mode, Node, SendError};

/// A stream that a peer opened and that was let in.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub(crate) index: Index,
    /// Counts its events.
    pub(crate) sequence: u64,
    /// Where its events are signed: the number of the one that comes next.
    pub(crate) next: Option<u64>,
    /// Some of its events came, or may come, by another node: what comes twice is delivered once.
    pub(crate) is_tree: bool,
    /// By which node they come.
    pub(crate) relay: Option<Followed>,
    /// How many nodes its publisher was told that this one passes them on to.
    pub(crate) told_places: u16,
}

impl Inbound {
    const fn new(index: Index) -> Self {
        Self {
            index,
            sequence: 0,
            next: None,
            is_tree: false,
            relay: None,
            told_places: 0,
        }
    }

    /// Counts an event, or the batch of some; the number before them.
    pub(crate) fn count(&mut self, signed: Option<&[Bytes]>) -> u64 {
        let before = self.sequence;
        self.sequence += signed.map_or(1, |events| events.len() as u64);
        before
    }
}

/// Where an event is from.
#[derive(Debug)]
pub(crate) struct Came {
    /// Its publisher,
    pub(crate) peer: NodeId,
    /// and that one's entity.
    pub(crate) entity: [u8; 32],
    pub(crate) index: Index,
    /// The number before it, on its publisher's stream.
    pub(crate) before: u64,
    /// Where it is timed.
    pub(crate) came_ns: u64,
}

impl<O: Outlet> ChannelService<O> {
    pub(crate) fn on_stream(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (peer, stream): (NodeId, StreamId),
        (name, salt, mode): (&ChannelName, u32, Mode),
    ) {
        let admitted = match self.sessions.get(&peer) {
            Some(session) => self.admit(now_ns, session, name, salt, mode),
            None => Err(Reason::UnknownStream),
        };
        match (admitted, self.sessions.get_mut(&peer)) {
            (Ok(index), Some(session)) => {
                session.inbound.insert(stream, Inbound::new(index));
                self.tell_able(now_ns, node, (peer, stream));
            }
            (admitted, _) => {
                let reason = admitted.err().unwrap_or(Reason::UnknownStream);
                self.reasons.add(reason);
                if let Some(session) = self.sessions.get_mut(&peer) {
                    session.shown.is_refused |= reason.is_of_right();
                }
                // Where the session is gone, the stream is too.
                let _gone = node.refuse_stream(now_ns, peer, stream);
            }
        }
    }

    pub(crate) fn on_message(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (peer, stream): (NodeId, StreamId),
        event: Bytes,
    ) {
        let session = self.sessions.get_mut(&peer);
        let known = session.and_then(|s| Some((s.entity, &s.brings, s.inbound.get_mut(&stream)?)));
        let Some((entity, brings, inbound)) = known else {
            self.reasons.add(Reason::UnknownStream);
            return;
        };
        let index = inbound.index;
        match brings.of(index, &event) {
            None => {}
            Some(Some(publisher)) => {
                return self.on_relayed(now_ns, node, (peer, publisher, index), event);
            }
            Some(None) => return self.reasons.add(Reason::RelayStranger),
        }
        let entry = &mut self.entries[index];
        let came_ns = timed::came(node, now_ns, (&entry.spec.name, &entity));
        let signed = match entry.spec.mode {
            Mode::Signed => match entry.open(&event, &entity) {
                Some(events) => Some(events),
                None => {
                    entry.counters.dropped += 1;
                    return self.reasons.add(Reason::Unsigned);
                }
            },
            _ => None,
        };
        if signed.is_some()
            && let Some(span) = span_of(&event)
        {
            if inbound.is_tree && inbound.next.is_some_and(|next| span.start < next) {
                return self.reasons.add(Reason::RelayDuplicate);
            }
            inbound.next = Some(span.end);
        }
        let came = Came {
            peer,
            entity,
            index,
            before: inbound.count(signed.as_deref()),
            came_ns,
        };
        let passed_on = (entry.fan_out > 0).then(|| event.clone());
        self.take_in(now_ns, node, &came, (event, signed));
        if let Some(batch) = passed_on {
            self.relay(now_ns, node, (index, peer, stream), &batch);
        }
    }

    /// Delivers an event, or the batch of some.
    pub(crate) fn take_in(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        came: &Came,
        (event, signed): (Bytes, Option<Vec<Bytes>>),
    ) {
        let Came {
            peer,
            entity,
            index,
            before,
            came_ns,
        } = *came;
        let entry = &mut self.entries[index];
        entry.counters.received += signed.as_ref().map_or(1, |events| events.len() as u64);
        let delivery = Delivery {
            channel: entry.spec.name.clone(),
            entity,
            sequence: before + u64::from(signed.is_none()),
            received_ns: now_ns,
            queued_ns: timed::checked(node, came_ns),
            payload: event,
            signature: Signature::None,
        };
        // Both are counted there.
        let _taken_and_lost = match signed {
            None => self.deliver(now_ns, node, index, &delivery),
            Some(events) => self.deliver_signed(now_ns, node, index, (delivery, events)),
        };
        self.hold(now_ns, node, index, peer);
    }
}

impl Session {
    /// Streams on a channel that were let in.
    pub(crate) fn streams_of(&self, index: Index) -> Vec<StreamId> {
        let inbound = self.inbound.iter().filter(|(_, i)| i.index == index);
        inbound.map(|(&stream, _)| stream).collect()
    }

    pub(crate) fn flush(&mut self, now_ns: u64, node: &mut Node, peer: NodeId) {
        while let Some(message) = self.outbox.front() {
            if node.send_control(now_ns, peer, message) == Err(SendError::Full) {
                return;
            }
            self.outbox.pop_front();
        }
    }
}
