//! What this node sends on streams: queued, in turn, within the peer's credit, until acknowledged.

use super::{CONTROL, Streams};
use crate::{
    event::{Event, Fate, OpenError, Payload, Receipt, SendError, StreamSpec, Taken},
    keys::Role,
    limits::{CLASS_QUEUE_BYTES, MESSAGE_BYTES_MAX, MESSAGE_PREFIX_BYTES, STREAM_QUEUE_BYTES},
    recovery::{Content, Matter},
    session::{Context, Ends, Queued},
    stream::{End, NO_DEADLINE, Outgoing, SendEvents, SendStream, Terms, Wants},
};
use std::collections::BTreeMap;
use virga_ebpf::header::{NodeId, StreamId};

impl Streams {
    pub(in crate::session) fn open(
        &mut self,
        peer: NodeId,
        spec: &StreamSpec,
        streams_max: usize,
    ) -> Result<StreamId, OpenError> {
        if spec.priority >= virga_ebpf::header::PRIORITY_CONTROL {
            return Err(OpenError::Priority(spec.priority));
        }
        if self.is_finishing {
            return Err(OpenError::NoSession(peer));
        }
        let too_many = OpenError::TooMany { max: streams_max };
        if self.sending.len() >= streams_max {
            self.is_open_refused = true;
            return Err(too_many);
        }
        let parity = match self.role {
            Role::Initiator => 2,
            Role::Responder => 1,
        };
        let number = self
            .opened
            .checked_mul(2)
            .and_then(|n| n.checked_add(parity));
        let stream = StreamId(number.ok_or(too_many)?);
        if stream.0 > u32::MAX - 2 {
            return Err(OpenError::NoSession(peer));
        }
        self.opened += 1;
        self.sending.insert(stream, SendStream::new(spec));
        Ok(stream)
    }

    /// Queues messages until one finds no room.
    pub(in crate::session) fn send<'e>(
        &mut self,
        now_ns: u64,
        stream: StreamId,
        messages: impl Iterator<Item = Payload<'e>>,
        terms: Terms,
    ) -> Taken {
        let mut taken = Taken::default();
        let open = self.sending.get_mut(&stream).filter(|s| s.is_open());
        let Some(s) = open else {
            taken.refused = Some(SendError::NoStream);
            return taken;
        };
        let held = &mut self.held_bytes[usize::from(s.spec.priority)];
        for message in messages {
            let message_bytes = message.bytes().len();
            if message_bytes > MESSAGE_BYTES_MAX {
                taken.refused = Some(SendError::TooLarge {
                    max_bytes: MESSAGE_BYTES_MAX,
                });
                break;
            }
            let bytes = s.cost(message_bytes);
            if *held + bytes > CLASS_QUEUE_BYTES || !s.has_room(message_bytes) {
                self.full.insert(stream);
                taken.refused = Some(SendError::Full);
                break;
            }
            s.push(message, terms);
            *held += bytes;
            taken.messages += 1;
        }
        if taken.messages > 0 {
            s.follow(now_ns);
            self.expires_ns = self.expires_ns.min(terms.deadline_ns);
            self.queue(stream);
        }
        taken
    }

    pub(in crate::session) fn send_control(&mut self, message: &[u8]) -> Result<(), SendError> {
        if self.is_finishing {
            return Err(SendError::NoSession);
        }
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(SendError::TooLarge {
                max_bytes: MESSAGE_BYTES_MAX,
            });
        }
        if !self
            .control_out
            .has_room(message.len() + MESSAGE_PREFIX_BYTES)
        {
            self.full.insert(CONTROL);
            return Err(SendError::Full);
        }
        self.control_out.push(message.into(), Terms::NONE);
        self.control_out.admit_all();
        Ok(())
    }

    pub(in crate::session) fn finish(&mut self, stream: StreamId) -> Result<(), SendError> {
        let open = self.sending.get_mut(&stream).filter(|s| s.is_open());
        open.ok_or(SendError::NoStream)?.end = End::Wanted;
        self.queue(stream);
        Ok(())
    }

    /// Takes nothing new, and finishes every stream after what is queued.
    pub(in crate::session) fn finish_all(&mut self) {
        self.is_finishing = true;
        let open: Vec<StreamId> = self.sending.keys().copied().collect();
        for stream in open {
            // Those that are finished or given up already stay so.
            let _over = self.finish(stream);
        }
    }

    /// Whether the peer has all that was ever queued here.
    pub(in crate::session) fn is_all_acked(&self) -> bool {
        self.sending.is_empty() && self.control_out.is_all_acked()
    }

    /// Gives back the room of queues that are empty: nothing was sent for long.
    pub(in crate::session) fn give_back(&mut self) {
        self.control_out.give_back();
        self.schedule.give_back();
        // A map that has become empty keeps room for eleven streams.
        if self.sending.is_empty() {
            self.sending = BTreeMap::new();
        }
        if self.receiving.is_empty() {
            self.receiving = BTreeMap::new();
        }
        for s in self.sending.values_mut() {
            match &mut s.outgoing {
                Outgoing::Reliable(bytes) => bytes.give_back(),
                Outgoing::Events(events) => events.give_back(),
            }
        }
    }

    fn queue(&mut self, stream: StreamId) {
        let Some(s) = self.sending.get_mut(&stream) else {
            return;
        };
        if s.wants() == Wants::Free {
            self.ends.insert(stream);
        }
        if !s.is_queued {
            s.is_queued = true;
            self.schedule.push(s.spec.priority, stream);
        }
    }

    /// The next stream to serve; `may_fill` says whether the congestion window has room for a full
    /// packet, of `packet_bytes`. Where it has none, only a stream's end can go out.
    pub(in crate::session) fn pick(
        &mut self,
        may_fill: bool,
        packet_bytes: usize,
    ) -> Option<StreamId> {
        let Self {
            sending,
            schedule,
            ends,
            send_credit,
            ..
        } = self;
        if !may_fill {
            while let Some(&stream) = ends.first() {
                let wants = sending.get(&stream).map(SendStream::wants);
                if wants == Some(Wants::Free) {
                    return Some(stream);
                }
                ends.pop_first();
            }
            return None;
        }
        schedule.pick(packet_bytes, |stream| {
            let Some(s) = sending.get_mut(&stream) else {
                return false;
            };
            if let Outgoing::Reliable(bytes) = &mut s.outgoing {
                bytes.admit(packet_bytes, send_credit);
            }
            s.is_queued = s.wants() != Wants::Nothing;
            s.is_queued
        })
    }

    /// The stream that was picked has sent a packet of `bytes`.
    pub(in crate::session) fn charge(&mut self, may_fill: bool, stream: StreamId, bytes: usize) {
        if may_fill {
            self.schedule.charge(bytes);
        }
        let sent = self.sending.get(&stream);
        if sent.is_some_and(|s| s.wants() == Wants::Free) {
            self.ends.insert(stream);
        }
    }

    /// Gives up messages whose deadline has passed before any of their bytes went out, and tells the
    /// owner how many.
    pub(in crate::session) fn expire(&mut self, ctx: &mut Context<'_>, ends: &Ends) {
        if ctx.now_ns < self.expires_ns {
            return;
        }
        self.expires_ns = NO_DEADLINE;
        let mut shorter = Vec::new();
        for (&stream, s) in &mut self.sending {
            let expired = s.expire(ctx.now_ns);
            self.expires_ns = self.expires_ns.min(s.next_deadline_ns(ctx.now_ns));
            if expired.messages == 0 {
                continue;
            }
            shorter.push(stream);
            self.held_bytes[usize::from(s.spec.priority)] -= expired.bytes;
            self.send_credit += expired.credit;
            ctx.counters.messages_expired += expired.messages;
            let event = Event::Expired {
                peer: ends.peer,
                stream,
                messages: expired.messages,
            };
            ctx.events.push_back(Queued::new(ends.own, event));
            tell_receipts(ctx, ends, stream, expired.receipts, Fate::Expired);
        }
        if !shorter.is_empty() {
            // Their end may be all that is left.
            for stream in shorter {
                self.queue(stream);
            }
            self.queue_waiting();
            self.tell_writable(ctx, ends);
        }
    }

    pub(in crate::session) fn on_session_credit(&mut self, bytes: u64) {
        let more = bytes.saturating_sub(self.send_granted);
        if more == 0 {
            return;
        }
        self.send_credit += more;
        self.send_granted = bytes;
        self.queue_waiting();
    }

    /// Streams that wait for the session's credit may have some now.
    fn queue_waiting(&mut self) {
        let waiting: Vec<StreamId> = self
            .sending
            .iter()
            .filter(|(_, s)| matches!(&s.outgoing, Outgoing::Reliable(b) if b.waits_for_credit()))
            .map(|(&stream, _)| stream)
            .collect();
        for stream in waiting {
            self.queue(stream);
        }
    }

    pub(in crate::session) fn on_credit(&mut self, stream: StreamId, bytes: u64) {
        if stream == CONTROL {
            self.control_out.grant(bytes);
        } else if let Some(s) = self.sending.get_mut(&stream)
            && let Outgoing::Reliable(held) = &mut s.outgoing
        {
            held.grant(bytes);
            self.queue(stream);
        }
    }

    /// The peer refused a stream: the owner is told, and that the others have more room.
    pub(in crate::session) fn on_refused(
        &mut self,
        ctx: &mut Context<'_>,
        ends: &Ends,
        stream: StreamId,
    ) {
        if self.give_up(stream) {
            // What it acknowledged in the same packet, it throws away.
            let is_receipt =
                |event: &Event| matches!(event, Event::Receipt { stream: of, .. } if *of == stream);
            ctx.events
                .retain(|queued| queued.session != ends.own || !is_receipt(&queued.event));
            let event = Event::StreamRefused {
                peer: ends.peer,
                stream,
            };
            ctx.events.push_back(Queued::new(ends.own, event));
            self.tell_writable(ctx, ends);
        }
    }

    /// The owner gives a stream up: what is queued is forgotten, and the peer is told.
    pub(in crate::session) fn reset(
        &mut self,
        ctx: &mut Context<'_>,
        ends: &Ends,
        stream: StreamId,
    ) -> Result<(), SendError> {
        if !self.give_up(stream) {
            return Err(SendError::NoStream);
        }
        self.tell_writable(ctx, ends);
        Ok(())
    }

    /// Forgets what a stream holds: only its reset is outstanding. Whether there was such a stream.
    fn give_up(&mut self, stream: StreamId) -> bool {
        let Some(s) = self.sending.get_mut(&stream).filter(|s| !s.is_reset) else {
            return false;
        };
        s.is_reset = true;
        self.held_bytes[usize::from(s.spec.priority)] -= s.held();
        s.reset_offset = match &s.outgoing {
            Outgoing::Reliable(bytes) => bytes.admitted(),
            Outgoing::Events(_) => 0,
        };
        s.outgoing = Outgoing::Events(SendEvents::default());
        self.full.remove(&stream);
        self.matters.insert(Matter::Reset(stream));
        true
    }

    pub(in crate::session) fn reset_offset(&self, stream: StreamId) -> Option<u64> {
        self.sending
            .get(&stream)
            .filter(|s| s.is_reset)
            .map(|s| s.reset_offset)
    }

    /// Bytes of unreliable messages left the queue for good.
    pub(in crate::session) fn on_events_sent(
        &mut self,
        ctx: &mut Context<'_>,
        ends: &Ends,
        (class, bytes): (u8, usize),
    ) {
        self.held_bytes[usize::from(class)] -= bytes;
        self.tell_writable(ctx, ends);
    }

    pub(in crate::session) fn on_acked(
        &mut self,
        ctx: &mut Context<'_>,
        ends: &Ends,
        content: &Content,
    ) {
        for matter in content.matters.into_iter().flatten() {
            if let Matter::Reset(stream) = matter {
                self.sending.remove(&stream);
                self.ends.remove(&stream);
                self.matters.remove(&matter);
            }
        }
        let (start, end) = content.range;
        if content.stream == CONTROL {
            // Nobody asks for receipts of control messages.
            let _none = self.control_out.on_acked(start, end);
        } else if let Some(s) = self.sending.get_mut(&content.stream)
            && !s.is_reset
        {
            s.is_open_acked |= content.open;
            if let Outgoing::Reliable(bytes) = &mut s.outgoing {
                let held = bytes.held();
                let receipts = bytes.on_acked(start, end);
                tell_receipts(ctx, ends, content.stream, receipts, Fate::Acknowledged);
                self.held_bytes[usize::from(s.spec.priority)] -= held - bytes.held();
            }
            let (class, acked) = (s.spec.priority, s.acked_after(ctx.now_ns));
            let after_ns = acked.map(|acked| acked.after_ns);
            ctx.counters.classes.acked_after(class, after_ns);
            if let (Some(sent_ns), Some(flow)) = (acked.and_then(|a| a.sent_ns), &mut ctx.flow) {
                flow.acknowledged(&s.spec.name, ctx.now_ns, sent_ns);
            }
            if content.fin {
                s.end = End::Acked;
            }
            if s.is_done() {
                self.sending.remove(&content.stream);
                self.ends.remove(&content.stream);
            }
        }
        if start < end || self.is_open_refused {
            self.tell_writable(ctx, ends);
        }
    }

    /// Queues again what a lost packet carried of a stream.
    pub(in crate::session) fn on_lost(&mut self, content: &Content) {
        let (start, end) = content.range;
        if content.stream == CONTROL {
            self.control_out.on_lost(start, end);
            return;
        }
        let Some(s) = self.sending.get_mut(&content.stream) else {
            return;
        };
        if let Outgoing::Reliable(bytes) = &mut s.outgoing {
            bytes.on_lost(start, end);
        }
        if content.fin && s.end == End::Sent {
            s.end = End::Wanted;
        }
        self.queue(content.stream);
    }

    /// After a refusal, says once that half the room is free again, or that a stream may be opened.
    fn tell_writable(&mut self, ctx: &mut Context<'_>, ends: &Ends) {
        if self.full.is_empty() && !self.is_open_refused {
            return;
        }
        let may_open = self.is_open_refused && self.sending.len() < ctx.limits.streams_max;
        if may_open {
            self.is_open_refused = false;
        }
        let has_room = self.has_room_again();
        if has_room {
            self.full.clear();
        }
        if may_open || has_room {
            let event = Event::Writable { peer: ends.peer };
            ctx.events.push_back(Queued::new(ends.own, event));
        }
    }

    /// Whether half the room of what refused a message is free.
    fn has_room_again(&self) -> bool {
        self.full.iter().any(|stream| {
            let Some(s) = self.sending.get(stream) else {
                return *stream != CONTROL || self.control_out.held() <= STREAM_QUEUE_BYTES / 2;
            };
            let is_half_empty = match &s.outgoing {
                Outgoing::Reliable(bytes) => bytes.held() <= STREAM_QUEUE_BYTES / 2,
                Outgoing::Events(events) => events.is_half_empty(),
            };
            let held = self.held_bytes[usize::from(s.spec.priority)];
            is_half_empty && held <= CLASS_QUEUE_BYTES / 2
        })
    }
}

/// Tells the owner what became of messages that it wanted to hear of.
fn tell_receipts(
    ctx: &mut Context<'_>,
    ends: &Ends,
    stream: StreamId,
    receipts: Vec<Receipt>,
    fate: Fate,
) {
    for receipt in receipts {
        let event = Event::Receipt {
            peer: ends.peer,
            stream,
            receipt,
            fate,
        };
        ctx.events.push_back(Queued::new(ends.own, event));
    }
}
