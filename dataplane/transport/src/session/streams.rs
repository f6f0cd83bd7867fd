//! A session's streams in both directions, and the credit over all of them.

mod receiving;

use super::{Context, Ends, Queued};
use crate::{
    event::{Event, Mode, OpenError, SendError, StreamSpec},
    frame::{Frame, Frames},
    keys::Role,
    limits::{
        EVENT_QUEUE_MAX, MESSAGE_BYTES_MAX, MESSAGE_PREFIX_BYTES, SESSION_QUEUE_BYTES,
        SESSION_WINDOW_BYTES, STREAM_QUEUE_BYTES,
    },
    recovery::{Content, Matter},
    stream::{
        Closed, End, Outgoing, Reassembly, ReceiveBytes, ReceiveStream, SendBytes, SendEvents,
        SendStream, Wants,
    },
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use virga_ebpf::header::{ChannelHash, Header, NodeId, StreamId};

const CONTROL: StreamId = StreamId(0);

/// A data packet: whose stream, on which channel, and its frames.
pub(super) struct Data<'a> {
    stream: StreamId,
    channel: ChannelHash,
    open: Option<(u32, Mode, &'a str)>,
    payload: &'a [u8],
}

impl<'a> Data<'a> {
    pub(super) fn of(header: &Header, payload: &'a [u8]) -> Self {
        let open = Frames::new(payload)
            .flatten()
            .find_map(|frame| match frame {
                Frame::Open { salt, mode, name } => Some((salt, mode, name)),
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
    /// One more stream was refused, because there were as many as may be.
    is_open_refused: bool,
    receiving: BTreeMap<StreamId, ReceiveStream>,
    closed: Closed,
    /// Streams that came when the peer had as many as it may: refused, their reset outstanding.
    turned_away: BTreeSet<StreamId>,
    control_in: ReceiveBytes,
    receive_highest: u64,
    receive_consumed: u64,
    receive_granted: u64,
    /// Events that the owner has not read: messages, and openings of streams.
    unread: usize,
    /// Streams whose messages wait until the owner has read more.
    stalled: BTreeSet<StreamId>,
    matters: BTreeSet<Matter>,
    reassembly: Reassembly,
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
            is_open_refused: false,
            receiving: BTreeMap::new(),
            closed: Closed::default(),
            turned_away: BTreeSet::new(),
            control_in: ReceiveBytes::new(Mode::Ordered),
            receive_highest: 0,
            receive_consumed: 0,
            receive_granted: SESSION_WINDOW_BYTES,
            unread: 0,
            stalled: BTreeSet::new(),
            matters: BTreeSet::new(),
            reassembly: Reassembly::default(),
        }
    }

    pub(super) fn sending(&self) -> usize {
        self.sending.len()
    }

    /// Bytes that wait, or are on their way.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes as u64
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

    pub(super) fn send(&mut self, stream: StreamId, message: &[u8]) -> Result<(), SendError> {
        let held = self.held_bytes + message.len() + MESSAGE_PREFIX_BYTES;
        let s = self
            .sending
            .get_mut(&stream)
            .filter(|s| s.end == End::Open && !s.is_reset);
        let s = s.ok_or(SendError::NoStream)?;
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(SendError::TooLarge {
                max_bytes: MESSAGE_BYTES_MAX,
            });
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
                events.push(message);
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

    /// The peer refused a stream: the owner is told, and that the others have more room.
    pub(super) fn on_refused(&mut self, ctx: &mut Context<'_>, ends: &Ends, stream: StreamId) {
        let Some(s) = self.sending.get_mut(&stream).filter(|s| !s.is_reset) else {
            return;
        };
        s.is_reset = true;
        self.held_bytes -= s.held();
        let admitted = match &s.outgoing {
            Outgoing::Reliable(bytes) => bytes.admitted(),
            Outgoing::Events(_) => 0,
        };
        s.outgoing = Outgoing::Events(SendEvents::default());
        s.reset_offset = admitted;
        self.full.remove(&stream);
        self.matters.insert(Matter::Reset(stream));
        let event = Event::StreamRefused {
            peer: ends.peer,
            stream,
        };
        ctx.events.push_back(Queued {
            session: ends.own,
            event,
            credit: 0,
        });
        self.tell_writable(ctx, ends);
    }

    pub(super) fn reset_offset(&self, stream: StreamId) -> Option<u64> {
        self.sending
            .get(&stream)
            .filter(|s| s.is_reset)
            .map(|s| s.reset_offset)
    }

    /// Bytes of messages left the queue for good.
    pub(super) fn on_events_sent(&mut self, ctx: &mut Context<'_>, ends: &Ends, bytes: usize) {
        self.held_bytes -= bytes;
        self.tell_writable(ctx, ends);
    }

    pub(super) fn on_acked(&mut self, ctx: &mut Context<'_>, ends: &Ends, content: &Content) {
        for matter in content.matters.into_iter().flatten() {
            if let Matter::Reset(stream) = matter {
                self.sending.remove(&stream);
                self.matters.remove(&matter);
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
        if start < end || self.is_open_refused {
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

    /// After a refusal, says once that half the room is free again, or that a stream may be opened.
    fn tell_writable(&mut self, ctx: &mut Context<'_>, ends: &Ends) {
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
            ctx.events.push_back(Queued {
                session: ends.own,
                event,
                credit: 0,
            });
        }
    }

    /// Whether half the room of what refused a message is free.
    fn has_room_again(&self) -> bool {
        if self.held_bytes > SESSION_QUEUE_BYTES / 2 {
            return false;
        }
        self.full
            .iter()
            .any(|stream| match self.sending.get(stream) {
                Some(s) => match &s.outgoing {
                    Outgoing::Reliable(bytes) => bytes.held() <= STREAM_QUEUE_BYTES / 2,
                    Outgoing::Events(events) => {
                        events.len() <= EVENT_QUEUE_MAX / 2
                            && events.held() <= STREAM_QUEUE_BYTES / 2
                    }
                },
                None => *stream != CONTROL || self.control_out.held() <= STREAM_QUEUE_BYTES / 2,
            })
    }

    // What is to be told.

    pub(super) fn requeue(&mut self, matter: Matter) {
        if self.is_live(matter) {
            self.matters.insert(matter);
        }
    }

    pub(super) fn has_matters(&self) -> bool {
        !self.matters.is_empty()
    }

    /// The next matter that still is one.
    pub(super) fn take_matter(&mut self) -> Option<Matter> {
        while let Some(matter) = self.matters.pop_first() {
            if self.is_live(matter) {
                return Some(matter);
            }
        }
        None
    }

    fn is_live(&self, matter: Matter) -> bool {
        match matter {
            Matter::Credit(stream) => self.granted(stream).is_some(),
            Matter::Refuse(stream) => {
                self.receiving.contains_key(&stream) || self.is_turned_away(stream)
            }
            Matter::Reset(stream) => self.reset_offset(stream).is_some(),
        }
    }

    /// A stream of the peer is over: there is nothing more to tell of it.
    fn forget_received(&mut self, stream: StreamId) {
        self.matters.remove(&Matter::Credit(stream));
        self.matters.remove(&Matter::Refuse(stream));
    }
}

#[cfg(any(test, fuzzing))]
impl Streams {
    /// Matters to tell.
    pub(super) fn matters(&self) -> usize {
        self.matters.len()
    }

    /// Messages of which fragments are missing, and the bytes that they take.
    pub(super) fn unfinished(&self) -> (usize, usize) {
        self.reassembly.held()
    }
}

/// Bytes of the open frame of a stream.
pub(super) fn open_bytes(spec: &StreamSpec) -> usize {
    7 + spec.name.as_str().len()
}
