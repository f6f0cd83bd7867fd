//! A session's streams in both directions, and the credit over all of them.

use super::{Context, Ends, Queued};
use crate::{
    event::{Event, OpenError, SendError, StreamSpec},
    frame::{Frame, Frames},
    keys::Role,
    limits::{
        EVENT_QUEUE_MAX, EVENTS_UNREAD_MAX, MESSAGE_BYTES_MAX, MESSAGE_PREFIX_BYTES,
        PAYLOAD_BYTES_MAX, SESSION_QUEUE_BYTES, SESSION_WINDOW_BYTES, STREAM_QUEUE_BYTES,
    },
    name::ChannelName,
    reason::DropReason,
    recovery::{Content, Matter},
    stream::{Closed, End, Outgoing, ReceiveBytes, ReceiveStream, SendBytes, SendStream, Wants},
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use virga_ebpf::{
    hash,
    header::{ChannelHash, Header, NodeId, StreamId},
};

const CONTROL: StreamId = StreamId(0);

/// A data packet: whose stream, on which channel, and its frames.
pub(super) struct Data<'a> {
    stream: StreamId,
    channel: ChannelHash,
    open: Option<(u32, bool, &'a str)>,
    payload: &'a [u8],
}

impl<'a> Data<'a> {
    pub(super) fn of(header: &Header, payload: &'a [u8]) -> Self {
        let open = Frames::new(payload)
            .flatten()
            .find_map(|frame| match frame {
                Frame::Open {
                    salt,
                    reliable,
                    name,
                } => Some((salt, reliable, name)),
                _ => None,
            });
        Self {
            stream: header.stream_id,
            channel: header.channel_hash,
            open,
            payload,
        }
    }
}

/// All streams of one session.
pub(super) struct Streams {
    role: Role,
    opened: u32,
    pub(super) sending: BTreeMap<StreamId, SendStream>,
    /// Streams to serve, in turn.
    row: VecDeque<StreamId>,
    pub(super) control_out: SendBytes,
    /// Bytes of the peer's session credit that are left.
    send_credit: u64,
    send_granted: u64,
    held_bytes: usize,
    /// Streams that refused a message for want of room.
    full: BTreeSet<StreamId>,
    receiving: BTreeMap<StreamId, ReceiveStream>,
    closed: Closed,
    control_in: ReceiveBytes,
    receive_highest: u64,
    receive_consumed: u64,
    receive_granted: u64,
    unread_events: usize,
    matters: BTreeSet<Matter>,
}

impl Streams {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            opened: 0,
            sending: BTreeMap::new(),
            row: VecDeque::new(),
            control_out: SendBytes::new(),
            send_credit: SESSION_WINDOW_BYTES,
            send_granted: SESSION_WINDOW_BYTES,
            held_bytes: 0,
            full: BTreeSet::new(),
            receiving: BTreeMap::new(),
            closed: Closed::default(),
            control_in: ReceiveBytes::new(),
            receive_highest: 0,
            receive_consumed: 0,
            receive_granted: SESSION_WINDOW_BYTES,
            unread_events: 0,
            matters: BTreeSet::new(),
        }
    }

    pub(super) fn sending(&self) -> usize {
        self.sending.len()
    }

    pub(super) fn receiving(&self) -> usize {
        self.receiving.len()
    }

    // Sending.

    pub(super) fn open(
        &mut self,
        peer: NodeId,
        spec: &StreamSpec,
        streams_max: usize,
    ) -> Result<StreamId, OpenError> {
        if spec.priority >= virga_ebpf::header::PRIORITY_CONTROL {
            return Err(OpenError::Priority(spec.priority));
        }
        let too_many = OpenError::TooMany { max: streams_max };
        if self.sending.len() >= streams_max {
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

    /// Largest event beside the stream's open frame.
    fn event_bytes_max(spec: &StreamSpec) -> usize {
        PAYLOAD_BYTES_MAX - open_bytes(spec) - EVENT_OVERHEAD
    }

    pub(super) fn send(&mut self, stream: StreamId, message: &[u8]) -> Result<(), SendError> {
        let held = self.held_bytes + message.len() + MESSAGE_PREFIX_BYTES;
        let s = self
            .sending
            .get_mut(&stream)
            .filter(|s| s.end == End::Open && !s.is_reset);
        let s = s.ok_or(SendError::NoStream)?;
        let max_bytes = match s.outgoing {
            Outgoing::Reliable(_) => MESSAGE_BYTES_MAX,
            Outgoing::Events(_) => Self::event_bytes_max(&s.spec),
        };
        if message.len() > max_bytes {
            return Err(SendError::TooLarge { max_bytes });
        }
        if held > SESSION_QUEUE_BYTES || !s.has_room(message.len()) {
            self.full.insert(stream);
            return Err(SendError::Full);
        }
        match &mut s.outgoing {
            Outgoing::Reliable(bytes) => {
                bytes.push(message);
                self.held_bytes = held;
            }
            Outgoing::Events(events) => {
                events.push_back(message.to_vec());
                self.held_bytes += message.len();
            }
        }
        self.queue(stream);
        Ok(())
    }

    pub(super) fn send_control(&mut self, message: &[u8]) -> Result<(), SendError> {
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
        self.control_out.push(message);
        self.control_out.admit_all();
        Ok(())
    }

    pub(super) fn finish(&mut self, stream: StreamId) -> Result<(), SendError> {
        let s = self
            .sending
            .get_mut(&stream)
            .filter(|s| s.end == End::Open && !s.is_reset);
        s.ok_or(SendError::NoStream)?.end = End::Wanted;
        self.queue(stream);
        Ok(())
    }

    fn queue(&mut self, stream: StreamId) {
        if let Some(s) = self.sending.get_mut(&stream)
            && !s.is_queued
        {
            s.is_queued = true;
            self.row.push_back(stream);
        }
    }

    /// The next stream to serve; `may_fill` says whether the congestion window has room.
    pub(super) fn pick(&mut self, may_fill: bool) -> Option<StreamId> {
        for _ in 0..self.row.len() {
            let stream = self.row.pop_front()?;
            let Some(s) = self.sending.get_mut(&stream) else {
                continue;
            };
            if let Outgoing::Reliable(bytes) = &mut s.outgoing {
                bytes.admit(&mut self.send_credit);
            }
            let wants = s.wants();
            if wants == Wants::Nothing {
                s.is_queued = false;
                continue;
            }
            self.row.push_back(stream);
            if wants == Wants::Free || may_fill {
                return Some(stream);
            }
        }
        None
    }

    pub(super) fn on_session_credit(&mut self, bytes: u64) {
        let more = bytes.saturating_sub(self.send_granted);
        if more == 0 {
            return;
        }
        self.send_credit += more;
        self.send_granted = bytes;
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

    pub(super) fn on_credit(&mut self, stream: StreamId, bytes: u64) {
        if stream == CONTROL {
            self.control_out.grant(bytes);
        } else if let Some(s) = self.sending.get_mut(&stream)
            && let Outgoing::Reliable(held) = &mut s.outgoing
        {
            held.grant(bytes);
            self.queue(stream);
        }
    }

    /// The peer refused a stream; `true` when that is news.
    pub(super) fn on_refused(&mut self, stream: StreamId) -> bool {
        let Some(s) = self.sending.get_mut(&stream).filter(|s| !s.is_reset) else {
            return false;
        };
        s.is_reset = true;
        self.held_bytes -= s.held();
        let admitted = match &s.outgoing {
            Outgoing::Reliable(bytes) => bytes.admitted(),
            Outgoing::Events(_) => 0,
        };
        s.outgoing = Outgoing::Events(VecDeque::new());
        s.reset_offset = admitted;
        self.full.remove(&stream);
        self.matters.insert(Matter::Reset(stream));
        true
    }

    pub(super) fn reset_offset(&self, stream: StreamId) -> Option<u64> {
        self.sending
            .get(&stream)
            .filter(|s| s.is_reset)
            .map(|s| s.reset_offset)
    }

    /// An event left the queue.
    pub(super) fn on_event_sent(&mut self, ctx: &mut Context<'_>, ends: &Ends, bytes: usize) {
        self.held_bytes -= bytes;
        self.tell_writable(ctx, ends);
    }

    pub(super) fn on_acked(&mut self, ctx: &mut Context<'_>, ends: &Ends, content: &Content) {
        for matter in content.matters.into_iter().flatten() {
            if let Matter::Reset(stream) = matter {
                self.sending.remove(&stream);
            }
        }
        let (start, end) = content.range;
        if content.stream == CONTROL {
            self.control_out.on_acked(start, end);
        } else if let Some(s) = self.sending.get_mut(&content.stream)
            && !s.is_reset
        {
            s.is_open_acked |= content.open;
            if let Outgoing::Reliable(bytes) = &mut s.outgoing {
                let held = bytes.held();
                bytes.on_acked(start, end);
                self.held_bytes -= held - bytes.held();
            }
            if content.fin {
                s.end = End::Acked;
            }
            if s.is_done() {
                self.sending.remove(&content.stream);
            }
        }
        if start < end {
            self.tell_writable(ctx, ends);
        }
    }

    /// Queues again what a lost packet carried of a stream.
    pub(super) fn on_lost(&mut self, content: &Content) {
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

    /// After a refusal, says once that half the room is free again.
    fn tell_writable(&mut self, ctx: &mut Context<'_>, ends: &Ends) {
        if self.full.is_empty() || self.held_bytes > SESSION_QUEUE_BYTES / 2 {
            return;
        }
        let has_room = self
            .full
            .iter()
            .any(|stream| match self.sending.get(stream) {
                Some(s) => match &s.outgoing {
                    Outgoing::Reliable(bytes) => bytes.held() <= STREAM_QUEUE_BYTES / 2,
                    Outgoing::Events(events) => events.len() <= EVENT_QUEUE_MAX / 2,
                },
                None => *stream != CONTROL || self.control_out.held() <= STREAM_QUEUE_BYTES / 2,
            });
        if has_room {
            self.full.clear();
            let event = Event::Writable { peer: ends.peer };
            ctx.events.push_back(Queued {
                session: ends.own,
                event,
                credit: 0,
            });
        }
    }

    // Receiving.

    pub(super) fn on_data(
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
        if self.closed.contains(data.stream) {
            return Err(DropReason::StreamClosed);
        }
        match self.receiving.get(&data.stream) {
            Some(s) => {
                let same = |(salt, reliable, name): (u32, bool, &str)| {
                    (salt, reliable, name) == (s.salt, s.reliable, s.name.as_str())
                };
                if s.channel != data.channel || !data.open.is_none_or(same) {
                    return Err(DropReason::StreamChannel);
                }
            }
            None => self.accept(ctx, ends, data)?,
        }
        self.apply(ctx, ends, data)
    }

    fn accept(
        &mut self,
        ctx: &mut Context<'_>,
        ends: &Ends,
        data: &Data<'_>,
    ) -> Result<(), DropReason> {
        let (salt, reliable, name) = data.open.ok_or(DropReason::UnknownStream)?;
        let streams_max = ctx.limits.streams_max;
        if self.receiving.len() >= streams_max || !self.closed.allows(data.stream, streams_max) {
            return Err(DropReason::StreamsFull);
        }
        let name = ChannelName::parse(name).map_err(|_| DropReason::FrameMalformed)?;
        let (peer, stream) = (ends.peer, data.stream);
        let event = Event::StreamOpened {
            peer,
            stream,
            name: name.clone(),
            salt,
            reliable,
        };
        ctx.events.push_back(Queued {
            session: ends.own,
            event,
            credit: 0,
        });
        let opened = ReceiveStream {
            name,
            salt,
            channel: data.channel,
            reliable,
            bytes: ReceiveBytes::new(),
            end: None,
            is_refused: false,
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
        for frame in Frames::new(data.payload).flatten() {
            let Some(s) = self.receiving.get(&data.stream) else {
                break;
            };
            let is_refused = s.is_refused;
            match frame {
                Frame::Stream { offset, bytes } if s.reliable => {
                    self.on_bytes(ctx, ends, data.stream, offset, bytes)?;
                    if is_refused {
                        verdict = Err(DropReason::StreamClosed);
                    }
                }
                Frame::Event { bytes } if !s.reliable => {
                    if is_refused {
                        verdict = Err(DropReason::StreamClosed);
                    } else {
                        self.on_event(ctx, ends, data.stream, bytes);
                    }
                }
                Frame::Fin { offset } => self.on_end(ctx, ends, data.stream, offset, false)?,
                Frame::Open { .. } => {}
                _ => return Err(DropReason::FrameMalformed),
            }
        }
        verdict
    }

    fn on_event(&mut self, ctx: &mut Context<'_>, ends: &Ends, stream: StreamId, bytes: &[u8]) {
        if self.unread_events >= EVENTS_UNREAD_MAX {
            ctx.counters.drop(DropReason::EventQueueFull);
            return;
        }
        self.unread_events += 1;
        let event = Event::Message {
            peer: ends.peer,
            stream,
            event: bytes.to_vec(),
        };
        ctx.events.push_back(Queued {
            session: ends.own,
            event,
            credit: 0,
        });
    }

    fn on_bytes(
        &mut self,
        ctx: &mut Context<'_>,
        ends: &Ends,
        stream: StreamId,
        offset: u64,
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
            s.bytes
                .write(offset, bytes)
                .map_err(|_| DropReason::Credit)?;
        }
        self.receive_highest = session_end;
        if !s.is_refused {
            while let Some(event) = s.bytes.read().map_err(|_| DropReason::Credit)? {
                let credit = (event.len() + MESSAGE_PREFIX_BYTES) as u64;
                let event = Event::Message {
                    peer: ends.peer,
                    stream,
                    event,
                };
                ctx.events.push_back(Queued {
                    session: ends.own,
                    event,
                    credit,
                });
            }
        }
        self.remove_if_done(ctx, ends, stream);
        Ok(())
    }

    /// The peer's end of a stream, after its last byte or (`is_reset`) instead of the rest.
    pub(super) fn on_end(
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
        let reliable = self.receiving.get(&stream).is_none_or(|s| s.reliable);
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
        match self.receiving.get_mut(&stream) {
            Some(s) => {
                if is_reset && !s.is_refused {
                    self.receive_consumed += s.bytes.highest - s.bytes.base();
                }
                s.end = Some(offset);
                s.is_refused |= is_reset;
            }
            None => self.closed.insert(stream),
        }
        self.remove_if_done(ctx, ends, stream);
        Ok(())
    }

    fn remove_if_done(&mut self, ctx: &mut Context<'_>, ends: &Ends, stream: StreamId) {
        if !self
            .receiving
            .get(&stream)
            .is_some_and(ReceiveStream::is_done)
        {
            return;
        }
        self.receiving.remove(&stream);
        self.closed.insert(stream);
        let event = Event::StreamFinished {
            peer: ends.peer,
            stream,
        };
        ctx.events.push_back(Queued {
            session: ends.own,
            event,
            credit: 0,
        });
    }

    pub(super) fn on_control_bytes(
        &mut self,
        ctx: &mut Context<'_>,
        ends: &Ends,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), DropReason> {
        self.control_in
            .write(offset, bytes)
            .map_err(|_| DropReason::Credit)?;
        while let Some(message) = self.control_in.read().map_err(|_| DropReason::Credit)? {
            let credit = (message.len() + MESSAGE_PREFIX_BYTES) as u64;
            let event = Event::Control {
                peer: ends.peer,
                message,
            };
            ctx.events.push_back(Queued {
                session: ends.own,
                event,
                credit,
            });
        }
        Ok(())
    }

    /// The owner read a message of `credit` bytes (0: an unreliable event); `true` when the
    /// session's grant is to be told.
    pub(super) fn on_read(&mut self, stream: StreamId, credit: u64) -> bool {
        if credit == 0 {
            self.unread_events = self.unread_events.saturating_sub(1);
            return false;
        }
        let bytes = if stream == CONTROL {
            Some(&mut self.control_in)
        } else {
            self.receiving.get_mut(&stream).map(|s| &mut s.bytes)
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
        self.raise_session()
    }

    /// Raises the session's grant once half a window was read.
    pub(super) fn raise_session(&mut self) -> bool {
        let wanted = self.receive_consumed + SESSION_WINDOW_BYTES;
        if wanted - self.receive_granted < SESSION_WINDOW_BYTES / 2 {
            return false;
        }
        self.receive_granted = wanted;
        true
    }

    pub(super) fn receive_granted(&self) -> u64 {
        self.receive_granted
    }

    pub(super) fn granted(&self, stream: StreamId) -> Option<u64> {
        if stream == CONTROL {
            return Some(self.control_in.granted());
        }
        self.receiving.get(&stream).map(|s| s.bytes.granted())
    }

    pub(super) fn refuse(&mut self, stream: StreamId) -> bool {
        let Some(s) = self.receiving.get_mut(&stream).filter(|s| !s.is_refused) else {
            return false;
        };
        s.is_refused = true;
        self.receive_consumed += s.bytes.highest - s.bytes.base();
        s.bytes.discard();
        true
    }

    // What is to be told.

    pub(super) fn requeue(&mut self, matter: Matter) {
        self.matters.insert(matter);
    }

    pub(super) fn has_matters(&self) -> bool {
        !self.matters.is_empty()
    }

    /// The next matter that still is one.
    pub(super) fn take_matter(&mut self) -> Option<Matter> {
        while let Some(matter) = self.matters.pop_first() {
            let is_live = match matter {
                Matter::Credit(stream) => self.granted(stream).is_some(),
                Matter::Refuse(stream) => self.receiving.contains_key(&stream),
                Matter::Reset(stream) => self.reset_offset(stream).is_some(),
            };
            if is_live {
                return Some(matter);
            }
        }
        None
    }
}

/// Bytes of an event frame beside the event.
pub(super) const EVENT_OVERHEAD: usize = 3;

/// Bytes of the open frame of a stream.
pub(super) fn open_bytes(spec: &StreamSpec) -> usize {
    7 + spec.name.as_str().len()
}
