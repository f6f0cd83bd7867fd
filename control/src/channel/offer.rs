//! One event for one subscribing node: onto its stream, or left to the node that brings it.

use super::{
    entry::{Entry, Remote},
    owed::Owed,
    publish::Partial,
    reason::{Reason, Reasons},
    signed::{events_of, span_of},
    tree::TAIL_BYTES_MAX,
};
use virga_ebpf::header::{NodeId, StreamId};
use virga_transport::{Fate, Mode, Node, OpenError, SendError, StreamSpec};

/// What a subscriber's stream did with an event.
pub(super) enum Taken {
    Yes,
    /// Another node brings it.
    Relayed,
    Full,
    Left,
    Lost(Reason),
}

impl Remote {
    /// Queues an event on the node's stream, unless as much as may is unacknowledged there.
    fn send(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (peer, stream): (NodeId, StreamId),
        partial: &Partial,
    ) -> Result<(), SendError> {
        let (event, deadline_ns) = (&partial.event, partial.deadline_ns);
        let Some(tallied) = &partial.tallied else {
            let taken = node.send_all(now_ns, peer, stream, [event], deadline_ns);
            return taken.refused.map_or(Ok(()), Err);
        };
        if self.pending.events() >= tallied.tally.in_flight_max() {
            return Err(SendError::Full);
        }
        let receipt = tallied.receipt;
        node.send_with_receipt(now_ns, (peer, stream), event, deadline_ns, receipt)?;
        tallied.tally.sent(peer);
        if tallied.tally.is_reliable() {
            self.pending.add(peer, tallied);
        }
        Ok(())
    }

    /// Its stream, which is opened with the first event.
    pub(super) fn stream(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (spec, peer): (&StreamSpec, NodeId),
    ) -> Result<StreamId, OpenError> {
        match self.stream {
            Some(stream) => Ok(stream),
            None => Ok(*self.stream.insert(node.open_stream(now_ns, peer, spec)?)),
        }
    }

    /// Sends what others did not bring, before anything else; whether that is all.
    ///
    /// # Errors
    /// The session or stream is gone: so many events are lost with it.
    pub(super) fn pay(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (spec, peer): (&StreamSpec, NodeId),
    ) -> Result<bool, u64> {
        if self.is_barred() {
            return Ok(self.owed.is_empty());
        }
        while let Some(owed) = self.owed.first() {
            let (batch, deadline_ns, receipt) =
                (owed.batch.clone(), owed.deadline_ns, owed.receipt);
            let stream = match self.stream(now_ns, node, (spec, peer)) {
                Ok(stream) => stream,
                // Finished streams that make room are acknowledged soon.
                Err(OpenError::TooMany { .. }) => return Ok(false),
                Err(OpenError::NoSession(_) | OpenError::Priority(_)) => return Err(self.give_up()),
            };
            let sent = match receipt {
                Some(receipt) => {
                    node.send_with_receipt(now_ns, (peer, stream), &batch, deadline_ns, receipt)
                }
                None => {
                    let taken = node.send_all(now_ns, peer, stream, [&batch], deadline_ns);
                    taken.refused.map_or(Ok(()), Err)
                }
            };
            match sent {
                Ok(()) => self.owed.pop(),
                Err(SendError::Full) => return Ok(false),
                Err(_) => return Err(self.give_up()),
            };
        }
        Ok(true)
    }

    /// Its stream is gone, and nothing more is heard of what was sent on it; how many events were still to be sent.
    fn give_up(&mut self) -> u64 {
        self.stream = None;
        self.end()
    }

    /// Nothing more goes to it, and nothing is heard of what did; how many events were still to be sent.
    pub(super) fn end(&mut self) -> u64 {
        self.pending.end(Reason::PeerGone);
        self.forgive()
    }

    /// Nobody brings what others did not; how many events that are.
    pub(super) fn forgive(&mut self) -> u64 {
        let mut events = 0;
        while let Some(owed) = self.owed.pop() {
            events += self.let_go(&owed);
        }
        events
    }

    /// Where it may be owed no more, lets go what nobody waits for any longer; how many events that are.
    fn make_room(&mut self, now_ns: u64, partial: &Partial) -> u64 {
        match self.is_full_for(partial) {
            true => self.expire(now_ns),
            false => 0,
        }
    }

    /// Lets go what nobody waits for any longer; how many events that are.
    pub(super) fn expire(&mut self, now_ns: u64) -> u64 {
        let mut events = 0;
        while let Some(owed) = self.owed.expire(now_ns) {
            events += self.let_go(&owed);
        }
        events
    }

    /// Whether it is owed, or has not acknowledged, as much as may be.
    pub(super) fn is_full_for(&self, partial: &Partial) -> bool {
        let tallied = partial.tallied.as_ref();
        self.owed.bytes() >= TAIL_BYTES_MAX
            || tallied.is_some_and(|t| self.pending.events() >= t.tally.in_flight_max())
    }

    /// Nobody brings a batch that it was owed; how many events that are.
    fn let_go(&mut self, owed: &Owed) -> u64 {
        if let Some(receipt) = owed.receipt {
            self.pending.settle(receipt, Fate::Expired);
        }
        events_of(Mode::Signed, &owed.batch)
    }
}

/// Hands an event to one subscriber's stream, or leaves it to the node that brings it there.
pub(super) fn offer(
    now_ns: u64,
    node: &mut Node,
    (entry, reasons): (&mut Entry, &mut Reasons),
    peer: NodeId,
    partial: &Partial,
) -> Taken {
    let Entry {
        spec,
        roster,
        tail,
        counters,
        fan_out,
        ..
    } = entry;
    let Some(remote) = roster.get_mut(&peer) else {
        return Taken::Left;
    };
    let expired = remote.make_room(now_ns, partial);
    counters.dropped += expired;
    reasons.add_many(Reason::Expired, expired);
    if let Some(taken) = remote.hold(now_ns, peer, partial) {
        return taken;
    }
    if let Some(taken) = remote.leave(now_ns, (peer, tail), partial) {
        return taken;
    }
    match remote.pay(now_ns, node, (spec, peer)) {
        Ok(true) => {}
        Ok(false) => return Taken::Full,
        Err(lost) => {
            counters.dropped += lost;
            reasons.add_many(Reason::PeerGone, lost);
        }
    }
    let stream = match remote.stream(now_ns, node, (spec, peer)) {
        Ok(stream) => stream,
        Err(OpenError::NoSession(_)) => return Taken::Lost(Reason::PeerGone),
        // Finished streams that make room are acknowledged soon.
        Err(OpenError::TooMany { .. }) if spec.mode.is_reliable() => return Taken::Full,
        Err(OpenError::TooMany { .. } | OpenError::Priority(_)) => {
            return Taken::Lost(Reason::StreamsFull);
        }
    };
    match remote.send(now_ns, node, (peer, stream), partial) {
        Ok(()) => {
            if *fan_out > 0 && remote.first.is_none() {
                remote.first = span_of(&partial.event).map(|span| span.start);
            }
            Taken::Yes
        }
        Err(SendError::Full) => Taken::Full,
        Err(SendError::TooLarge { .. }) => Taken::Lost(Reason::TooLarge),
        Err(SendError::NoSession | SendError::NoStream) => {
            remote.stream = None;
            remote.pending.end(Reason::PeerGone);
            Taken::Lost(Reason::PeerGone)
        }
    }
}
