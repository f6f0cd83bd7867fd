//! What arrives on streams: bytes and events to the owner, credit back to the peer.

use super::{CONTROL, Data, Streams};
use crate::{
    event::{Event, Mode},
    frame::{Frame, Frames},
    keys::Role,
    limits::{
        EVENTS_UNREAD_MAX, MESSAGE_PREFIX_BYTES, SESSION_ENTRIES_MAX, SESSION_RAISE_BYTES,
        SESSION_WINDOW_BYTES, SHARED_BYTES_MAX, SHARED_MESSAGES_MAX,
    },
    name::ChannelName,
    reason::DropReason,
    recovery::Matter,
    session::{Context, Ends, Queued},
    stream::{Fragment, NO_DEADLINE, ReceiveBytes, ReceiveStream},
};
use bytes::Bytes;
use std::collections::VecDeque;
use virga_ebpf::{hash, header::StreamId};

impl Streams {
    pub(in crate::session) fn on_data(
        &mut self,
        ctx: &mut Context<'_>,
        ends: &Ends,
        data: &Data<'_>,
    ) -> Result<(), DropReason> {
        let is_peers = data.stream.0.is_multiple_of(2) == (self.role == Role::Responder);
        if !is_peers {
            return Err(DropReason::FrameMalformed);
        }
        if let Some((salt, _, name)) = data.open
            && hash::channel_hash(salt, name) != data.channel
        {
            return Err(DropReason::ChannelMismatch);
        }
        match self.receiving.get(&data.stream) {
            None if self.closed.contains(data.stream) || self.is_turned_away(data.stream) => {
                return Err(DropReason::StreamClosed);
            }
            Some(s) => {
                let same = |(salt, mode, name): (u32, Mode, &str)| {
                    (salt, mode, name) == (s.salt, s.mode, s.name.as_str())
                };
                if s.channel != data.channel || !data.open.is_none_or(same) {
                    return Err(DropReason::StreamChannel);
                }
            }
            None => self.accept(ctx, ends, data)?,
        }
        self.apply(ctx, ends, data)
    }

    /// Whether a stream was refused because the peer had too many: its packets need no repetition.
    pub(in crate::session) fn is_turned_away(&self, stream: StreamId) -> bool {
        self.turned_away.contains(&stream)
    }

    fn accept(
        &mut self,
        ctx: &mut Context<'_>,
        ends: &Ends,
        data: &Data<'_>,
    ) -> Result<(), DropReason> {
        let (salt, mode, name) = data.open.ok_or(DropReason::UnknownStream)?;
        let name = ChannelName::parse(name).map_err(|_| DropReason::FrameMalformed)?;
        if !self.closed.allows(data.stream, ctx.limits.streams_max) {
            return Err(DropReason::StreamsFull);
        }
        if self.receiving.len() >= ctx.limits.streams_max {
            self.turned_away.insert(data.stream);
            self.matters.insert(Matter::Refuse(data.stream));
            return Err(DropReason::StreamsFull);
        }
        if self.unread >= EVENTS_UNREAD_MAX {
            return Err(DropReason::StreamsFull);
        }
        let (peer, stream) = (ends.peer, data.stream);
        self.unread += 1;
        let event = Event::StreamOpened {
            peer,
            stream,
            name: name.clone(),
            salt,
            mode,
        };
        ctx.events.push_back(Queued::new(ends.own, event));
        let opened = ReceiveStream {
            name,
            salt,
            channel: data.channel,
            mode,
            bytes: ReceiveBytes::new(mode),
            end: None,
            is_refused: false,
            is_reset: false,
        };
        self.receiving.insert(stream, opened);
        Ok(())
    }

    fn apply(
        &mut self,
        ctx: &mut Context<'_>,
        ends: &Ends,
        data: &Data<'_>,
    ) -> Result<(), DropReason> {
        let mut verdict = Ok(());
        let Some(s) = self.receiving.get(&data.stream) else {
            return verdict;
        };
        let (mode, is_refused) = (s.mode, s.is_refused);
        for frame in Frames::new(data.payload).flatten() {
            match frame {
                Frame::Stream { offset, bytes } if mode.is_ordered() => {
                    self.on_bytes(ctx, ends, data.stream, (offset, 0), bytes)?;
                    if is_refused {
                        verdict = Err(DropReason::StreamClosed);
                    }
                }
                Frame::Part {
                    offset,
                    back,
                    bytes,
                } if mode == Mode::Unordered => {
                    self.on_bytes(ctx, ends, data.stream, (offset, back), bytes)?;
                    if is_refused {
                        verdict = Err(DropReason::StreamClosed);
                    }
                }
                Frame::Event { .. } | Frame::Events { .. } | Frame::Fragment { .. }
                    if mode == Mode::Unreliable =>
                {
                    if is_refused {
                        verdict = Err(DropReason::StreamClosed);
                    } else {
                        self.on_unreliable(ctx, ends, data.stream, &frame)?;
                    }
                }
                Frame::Fin { offset } => {
                    self.on_end(ctx, ends, data.stream, offset, false)?;
                    if !self.receiving.contains_key(&data.stream) {
                        break;
                    }
                }
                Frame::Open { .. } => {}
                _ => return Err(DropReason::FrameMalformed),
            }
        }
        verdict
    }

    /// Messages of an unreliable stream, or a piece of one.
    fn on_unreliable(
        &mut self,
        ctx: &mut Context<'_>,
        ends: &Ends,
        stream: StreamId,
        frame: &Frame<'_>,
    ) -> Result<(), DropReason> {
        match *frame {
            Frame::Event { bytes } => {
                self.on_event(ctx, ends, stream, Bytes::copy_from_slice(bytes));
            }
            Frame::Events { size, bytes } => self.on_events(ctx, ends, stream, size, bytes),
            Frame::Fragment {
                message,
                total,
                offset,
                bytes,
            } => {
                let fragment = Fragment {
                    message,
                    total,
                    offset,
                    bytes,
                };
                let taken = self.reassembly.insert(ctx.now_ns, stream, fragment);
                let (whole, given_up) = taken.map_err(|_| DropReason::Overlap)?;
                ctx.counters.drop_many(DropReason::Unfinished, given_up);
                if let Some(event) = whole {
                    self.on_event(ctx, ends, stream, event);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// When [`Streams::on_timeout`] is due.
    pub(in crate::session) fn timeout(&self) -> Option<u64> {
        let expires_ns = Some(self.expires_ns).filter(|&at_ns| at_ns != NO_DEADLINE);
        [self.reassembly.timeout(), expires_ns]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due.
    pub(in crate::session) fn on_timeout(&mut self, ctx: &mut Context<'_>, ends: &Ends) {
        self.expire(ctx, ends);
        let given_up = self.reassembly.on_timeout(ctx.now_ns);
        ctx.counters.drop_many(DropReason::Unfinished, given_up);
    }

    fn on_event(&mut self, ctx: &mut Context<'_>, ends: &Ends, stream: StreamId, event: Bytes) {
        if self.unread >= EVENTS_UNREAD_MAX {
            ctx.counters.drop(DropReason::EventQueueFull);
            return;
        }
        self.unread += 1;
        let event = Event::Message {
            peer: ends.peer,
            stream,
            event,
        };
        ctx.events.push_back(Queued::new(ends.own, event));
    }

    /// Messages of `size` bytes each, one after the other. They share buffers, small ones: whoever keeps
    /// one keeps little else.
    fn on_events(
        &mut self,
        ctx: &mut Context<'_>,
        ends: &Ends,
        stream: StreamId,
        size: usize,
        bytes: &[u8],
    ) {
        let came = bytes.len() / size;
        let taken = came.min(EVENTS_UNREAD_MAX.saturating_sub(self.unread));
        ctx.counters
            .drop_many(DropReason::EventQueueFull, (came - taken) as u64);
        self.unread += taken;
        let together = (SHARED_BYTES_MAX / size).clamp(1, SHARED_MESSAGES_MAX);
        for several in bytes[..taken * size].chunks(together * size) {
            let event = Event::Message {
                peer: ends.peer,
                stream,
                event: Bytes::copy_from_slice(several),
            };
            ctx.events.push_back(Queued {
                count: several.len() / size,
                size,
                ..Queued::new(ends.own, event)
            });
        }
    }

    fn on_bytes(
        &mut self,
        ctx: &mut Context<'_>,
        ends: &Ends,
        stream: StreamId,
        (offset, back): (u64, u64),
        bytes: &[u8],
    ) -> Result<(), DropReason> {
        let Some(s) = self.receiving.get_mut(&stream) else {
            return Ok(());
        };
        let end = offset + bytes.len() as u64;
        let moves = end.saturating_sub(s.bytes.highest);
        let session_end = self.receive_highest + moves;
        let past_end = s.end.is_some_and(|last| end > last);
        if past_end || session_end > self.receive_granted {
            return Err(DropReason::Credit);
        }
        if s.is_refused {
            if !s.bytes.allows(end) {
                return Err(DropReason::Credit);
            }
            s.bytes.highest += moves;
            self.receive_consumed += moves;
        } else {
            let room = EVENTS_UNREAD_MAX.saturating_sub(self.unread);
            let is_passed = s.bytes.pass(offset, bytes, room, |event, count| {
                self.unread += count;
                // Several have their lengths with them.
                let alone = if count == 1 { MESSAGE_PREFIX_BYTES } else { 0 };
                let credit = (event.len() + alone) as u64;
                let event = Event::Message {
                    peer: ends.peer,
                    stream,
                    event,
                };
                ctx.events.push_back(Queued {
                    credit,
                    count,
                    ..Queued::new(ends.own, event)
                });
            })?;
            if !is_passed {
                s.bytes.write(offset, back, bytes)?;
            }
        }
        self.receive_highest = session_end;
        let delivered = self.deliver(ctx.events, ends, stream);
        if let Some(flow) = &mut ctx.flow
            && let Some(s) = self.receiving.get(&stream)
            && s.mode.is_ordered()
            && !s.is_refused
            && flow.is_heard(&s.name, &ends.peer_entity)
        {
            flow.came(ctx.now_ns, (ends.own, stream), (end, s.bytes.base()));
        }
        delivered
    }

    /// The peer's end of a stream, after its last byte or (`is_reset`) instead of the rest.
    pub(in crate::session) fn on_end(
        &mut self,
        ctx: &mut Context<'_>,
        ends: &Ends,
        stream: StreamId,
        offset: u64,
        is_reset: bool,
    ) -> Result<(), DropReason> {
        if self.closed.contains(stream) {
            return Ok(());
        }
        let highest = self.receiving.get(&stream).map_or(0, |s| s.bytes.highest);
        let is_reliable = |s: &ReceiveStream| s.mode.is_reliable();
        let reliable = self.receiving.get(&stream).is_none_or(is_reliable);
        let is_discarded = is_reset || self.receiving.get(&stream).is_some_and(|s| s.is_refused);
        if reliable {
            let moves = offset.checked_sub(highest).ok_or(DropReason::Credit)?;
            if self.receive_highest + moves > self.receive_granted {
                return Err(DropReason::Credit);
            }
            if is_discarded {
                self.receive_highest += moves;
                self.receive_consumed += moves;
            }
        }
        if !self.closed.allows(stream, ctx.limits.streams_max) {
            return Err(DropReason::StreamsFull);
        }
        let given_up = self.reassembly.on_stream_over(stream);
        ctx.counters.drop_many(DropReason::Unfinished, given_up);
        match self.receiving.get_mut(&stream) {
            Some(s) => {
                s.is_reset = is_reset && !s.is_refused;
                if is_reset && !s.is_refused {
                    self.receive_consumed += s.bytes.unread();
                }
                s.end = Some(offset);
                s.is_refused |= is_reset;
            }
            None => {
                self.turned_away.remove(&stream);
                self.closed.insert(stream);
                self.forget_received(stream);
            }
        }
        self.remove_if_done(ctx.events, ends, stream);
        Ok(())
    }

    fn remove_if_done(&mut self, events: &mut VecDeque<Queued>, ends: &Ends, stream: StreamId) {
        if !self
            .receiving
            .get(&stream)
            .is_some_and(ReceiveStream::is_done)
        {
            return;
        }
        let mut is_reset = false;
        if let Some(mut s) = self.receiving.remove(&stream) {
            s.bytes.discard();
            s.bytes.recount(&mut self.entries);
            is_reset = s.is_reset;
        }
        self.closed.insert(stream);
        self.forget_received(stream);
        let peer = ends.peer;
        let event = match is_reset {
            true => Event::StreamReset { peer, stream },
            false => Event::StreamFinished { peer, stream },
        };
        events.push_back(Queued::new(ends.own, event));
    }

    pub(in crate::session) fn on_control_bytes(
        &mut self,
        ctx: &mut Context<'_>,
        ends: &Ends,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), DropReason> {
        self.control_in.write(offset, 0, bytes)?;
        self.deliver(ctx.events, ends, CONTROL)
    }

    /// Hands whole messages to the owner, as many as it may have unread.
    fn deliver(
        &mut self,
        events: &mut VecDeque<Queued>,
        ends: &Ends,
        stream: StreamId,
    ) -> Result<(), DropReason> {
        let (session, peer) = (ends.own, ends.peer);
        let bytes = if stream == CONTROL {
            &mut self.control_in
        } else {
            match self.receiving.get_mut(&stream) {
                Some(s) if !s.is_refused => &mut s.bytes,
                _ => {
                    self.remove_if_done(events, ends, stream);
                    return Ok(());
                }
            }
        };
        let is_stalled = loop {
            if self.unread >= EVENTS_UNREAD_MAX {
                break true;
            }
            let Some(message) = bytes.read().map_err(|_| DropReason::Credit)? else {
                break false;
            };
            self.unread += 1;
            let credit = (message.len() + MESSAGE_PREFIX_BYTES) as u64;
            let event = if stream == CONTROL {
                Event::Control { peer, message }
            } else {
                Event::Message {
                    peer,
                    stream,
                    event: message,
                }
            };
            events.push_back(Queued {
                credit,
                ..Queued::new(session, event)
            });
        };
        bytes.recount(&mut self.entries);
        if self.entries > SESSION_ENTRIES_MAX {
            return Err(DropReason::Entries);
        }
        if is_stalled {
            self.stalled.insert(stream);
            return Ok(());
        }
        self.remove_if_done(events, ends, stream);
        Ok(())
    }

    /// The owner read `count` events: messages of `credit` bytes in all, or (0) unreliable ones or a
    /// stream's opening. `true` when the session's grant is to be told.
    pub(in crate::session) fn on_read(
        &mut self,
        events: &mut VecDeque<Queued>,
        ends: &Ends,
        stream: StreamId,
        count: usize,
        credit: u64,
    ) -> bool {
        self.unread = self.unread.saturating_sub(count);
        let bytes = match (credit, stream) {
            (0, _) => None,
            (_, CONTROL) => Some(&mut self.control_in),
            _ => self.receiving.get_mut(&stream).map(|s| &mut s.bytes),
        };
        if let Some(bytes) = bytes {
            bytes.consumed += credit;
            if bytes.raise() {
                self.matters.insert(Matter::Credit(stream));
            }
        }
        if stream != CONTROL {
            self.receive_consumed += credit;
        }
        if self.unread <= EVENTS_UNREAD_MAX / 2 && !self.stalled.is_empty() {
            for stalled in std::mem::take(&mut self.stalled) {
                // A message that is too large ends its stream's reading for good.
                let _ = self.deliver(events, ends, stalled);
            }
        }
        self.raise_session()
    }

    /// Raises the session's grant once enough was read; `true` when the peer is to be told.
    pub(in crate::session) fn raise_session(&mut self) -> bool {
        let wanted = self.receive_consumed + SESSION_WINDOW_BYTES;
        if wanted - self.receive_granted < SESSION_RAISE_BYTES {
            return false;
        }
        self.receive_granted = wanted;
        true
    }

    pub(in crate::session) fn receive_granted(&self) -> u64 {
        self.receive_granted
    }

    pub(in crate::session) fn granted(&self, stream: StreamId) -> Option<u64> {
        if stream == CONTROL {
            return Some(self.control_in.granted());
        }
        self.receiving.get(&stream).map(|s| s.bytes.granted())
    }

    pub(in crate::session) fn refuse(&mut self, stream: StreamId) -> bool {
        let Some(s) = self.receiving.get_mut(&stream).filter(|s| !s.is_refused) else {
            return false;
        };
        s.is_refused = true;
        self.receive_consumed += s.bytes.unread();
        // What is missing before an end that is known need not come any more: the stream may be over with this.
        if let Some(end) = s.end.filter(|_| s.mode.is_reliable()) {
            let missing = end.saturating_sub(s.bytes.highest);
            s.bytes.highest += missing;
            self.receive_highest += missing;
            self.receive_consumed += missing;
        }
        s.bytes.discard();
        s.bytes.recount(&mut self.entries);
        self.reassembly.on_stream_over(stream);
        true
    }
}
