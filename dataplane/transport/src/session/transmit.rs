//! What goes out: control first, then streams in turn, in runs of equal size.

mod probes;

use super::{Context, Session, streams::open_bytes};
use crate::{
    event::{
        CloseReason, Mode, OpenError, Payload, SendError, SessionState, StreamSpec, Taken, Toward,
    },
    frame::{
        Frame, PADDING, part_overhead, stream_overhead, write_ack, write_part_start,
        write_stream_start,
    },
    handshake::RESET_BYTES,
    limits::{
        DATAGRAM_BYTES_MAX, DATAGRAM_BYTES_MIN, TRANSMIT_BYTES_MAX, TRANSMIT_SEGMENTS_MAX,
        UNACKNOWLEDGED_MAX,
    },
    recovery::{Content, Matter, Sent, Standing},
    stream::{End, Outgoing, SendStream, Terms, Written},
};
use virga_ebpf::{
    header::{ChannelHash, Flags, Header, PRIORITY_CONTROL, StreamId},
    limits::{HEADER_BYTES, TAG_BYTES},
};

/// Bytes around the frames of a packet.
const AROUND: usize = HEADER_BYTES + TAG_BYTES;
/// A stream frame with fewer bytes than this is not worth its overhead.
const CHUNK_BYTES_MIN: usize = 16;

/// What is particular to one packet's header.
struct Label {
    flags: Flags,
    priority: u8,
    channel: ChannelHash,
    stream: StreamId,
    events: usize,
}

impl Label {
    const CONTROL: Self = Self {
        flags: Flags::CONTROL,
        priority: PRIORITY_CONTROL,
        channel: ChannelHash(0),
        stream: StreamId(0),
        events: 0,
    };
}

/// A run of datagrams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Which way it goes.
    pub(crate) toward: Toward,
    pub(crate) bytes: usize,
    /// Of each datagram but the last.
    pub(crate) segment_bytes: usize,
    pub(crate) count: u64,
}

impl Run {
    const fn one(bytes: usize) -> Self {
        Self {
            toward: Toward::Route,
            bytes,
            segment_bytes: bytes,
            count: 1,
        }
    }
}

impl Session {
    /// Appends the next run of datagrams.
    pub(crate) fn poll_transmit(
        &mut self,
        ctx: &mut Context<'_>,
        out: &mut Vec<u8>,
    ) -> Option<Run> {
        if self.state != SessionState::Draining && self.sequence >= ctx.limits.sequence_max {
            self.close(ctx, CloseReason::Exhausted);
        }
        if self.state == SessionState::Draining {
            if !std::mem::take(&mut self.close_wanted) {
                return None;
            }
            let bytes = self.build_close(ctx, out);
            return Some(Run::one(bytes));
        }
        self.recovery.choose_skip(self.sequence, ctx.generator);
        if self.is_established() {
            self.check_epoch(ctx);
            self.streams.expire(ctx, &self.ends);
        }
        if let Some(run) = self.build_aside(ctx, out) {
            return Some(run);
        }
        if let Some(bytes) = self.build_control(ctx, out) {
            return Some(Run::one(bytes));
        }
        if let Some(bytes) = self.build_mtu_probe(ctx, out) {
            return Some(Run::one(bytes));
        }
        let Some(segment) = self.build_data(ctx, out, None) else {
            self.path.note_idle(self.streams.held_bytes());
            return None;
        };
        let (mut total, mut count) = (segment, 1);
        while count < TRANSMIT_SEGMENTS_MAX && total + segment <= TRANSMIT_BYTES_MAX {
            let Some(bytes) = self.build_data(ctx, out, Some(segment)) else {
                break;
            };
            total += bytes;
            count += 1;
            if bytes < segment {
                break;
            }
        }
        Some(Run {
            toward: Toward::Route,
            bytes: total,
            segment_bytes: segment,
            count: count as u64,
        })
    }

    fn build_close(&mut self, ctx: &Context<'_>, out: &mut Vec<u8>) -> usize {
        let start = begin(out);
        Frame::Close.write(out);
        let flags = Flags::CONTROL.with(Flags::FIN);
        self.seal(
            ctx,
            out,
            start,
            &Label {
                flags,
                ..Label::CONTROL
            },
        )
    }

    /// Acknowledgements, standing frames, matters of streams, and the control stream's bytes.
    fn build_control(&mut self, ctx: &mut Context<'_>, out: &mut Vec<u8>) -> Option<usize> {
        let is_ack_due = self.ack_at_ns.is_some_and(|at| at <= ctx.now_ns);
        let may_ask = self.may_ask();
        let may_chunk = self.is_established() && may_ask && self.may_fill(ctx.now_ns);
        let has_chunk = may_chunk && self.streams.control_out.has_chunk();
        // Beyond the bound only a probe goes out, and is not remembered: a peer that lives answers
        // it with all that it received.
        let mut standing = if may_ask {
            self.standing.for_one_packet()
        } else {
            self.standing.only(Standing::PING)
        };
        let has_matters = may_ask && self.streams.has_matters();
        let has_answer = self.validation.has_answer();
        if !is_ack_due && standing.is_empty() && !has_matters && !has_chunk && !has_answer {
            return None;
        }
        let start = begin(out);
        if self.ack_at_ns.is_some() {
            self.ack_at_ns = None;
            self.ack_after = 0;
            write_ack(
                out,
                self.received.ranges(),
                ctx.now_ns.saturating_sub(self.newest_ns) / 1_000,
            );
        }
        if let Some(token) = self.validation.take_answer() {
            Frame::PathResponse { token }.write(out);
        }
        let unasked_bytes = out.len();
        standing.remove(Self::without_room(unasked_bytes - start, standing));
        self.write_standing(ctx, out, standing);
        let mut content = Content {
            standing,
            ..Content::default()
        };
        if may_ask {
            for slot in &mut content.matters {
                *slot = self.write_matter(out);
            }
        }
        if may_chunk {
            content.range = self.write_control_chunk(out, start);
        }
        if out.len() == start + HEADER_BYTES {
            out.truncate(start);
            return None;
        }
        if standing.contains(Standing::PING) {
            pad(out, start);
        }
        let sequence = self.sequence;
        let asked = may_ask && out.len() > unasked_bytes;
        let bytes = self.seal(ctx, out, start, &Label::CONTROL);
        ctx.counters.classes.sent(PRIORITY_CONTROL, bytes, 0, 0);
        if asked {
            let has_bytes = content.range.0 < content.range.1;
            let window_bytes = if has_bytes { bytes as u64 } else { 0 };
            self.note_sent(ctx, sequence, bytes, window_bytes, content);
        }
        Some(bytes)
    }

    fn write_standing(&mut self, ctx: &Context<'_>, out: &mut Vec<u8>, standing: Standing) {
        self.standing.remove(standing);
        let (epoch, public) = (self.current.number + 1, self.proposal.public);
        if standing.contains(Standing::PING) {
            Frame::Ping.write(out);
        }
        if standing.contains(Standing::PROOF) {
            let proof = self
                .subject
                .prove(self.ends.role, ctx.entity_key, *self.reset_token);
            Frame::Proof(proof).write(out);
        }
        self.write_kem(out, standing);
        if standing.contains(Standing::REKEY) {
            Frame::Rekey { epoch, public }.write(out);
        }
        if standing.contains(Standing::REKEY_ACK) {
            Frame::RekeyAck { epoch, public }.write(out);
        }
        if standing.contains(Standing::REKEY_WANTED) {
            Frame::RekeyWanted.write(out);
        }
        if standing.contains(Standing::CREDIT) {
            Frame::SessionCredit {
                bytes: self.streams.receive_granted(),
            }
            .write(out);
        }
    }

    fn write_matter(&mut self, out: &mut Vec<u8>) -> Option<Matter> {
        let matter = self.streams.take_matter()?;
        match matter {
            Matter::Credit(stream) => {
                let bytes = self.streams.granted(stream)?;
                Frame::StreamCredit { stream, bytes }.write(out);
            }
            Matter::Refuse(stream) => Frame::Refuse { stream }.write(out),
            Matter::Reset(stream) => {
                let offset = self.streams.reset_offset(stream)?;
                Frame::Reset { stream, offset }.write(out);
            }
        }
        Some(matter)
    }

    fn write_control_chunk(&mut self, out: &mut Vec<u8>, start: usize) -> (u64, u64) {
        let bytes = &mut self.streams.control_out;
        if !bytes.has_chunk() {
            return (0, 0);
        }
        let used = out.len() - start + TAG_BYTES + stream_overhead(bytes.next_offset());
        let room = DATAGRAM_BYTES_MIN.saturating_sub(used);
        if room < CHUNK_BYTES_MIN {
            return (0, 0);
        }
        let Some((from, to, again)) = bytes.take_chunk(room) else {
            return (0, 0);
        };
        write_stream_start(out, from, usize::try_from(to - from).unwrap_or(0));
        bytes.copy(from, to, out);
        if again {
            self.note_again(to - from);
        }
        (from, to)
    }

    fn note_again(&mut self, bytes: u64) {
        self.traffic.retransmitted_packets += 1;
        self.traffic.retransmitted_bytes += bytes;
    }

    /// Whether a full packet that counts may go out now.
    fn may_fill(&mut self, now_ns: u64) -> bool {
        self.recovery.may_probe() || self.path.may_send(now_ns)
    }

    /// Notes a packet of `bytes` that asks for an acknowledgement; it takes `window_bytes` of the
    /// congestion window.
    fn note_sent(
        &mut self,
        ctx: &Context<'_>,
        sequence: u64,
        bytes: usize,
        window_bytes: u64,
        content: Content,
    ) {
        let departure = self.path.on_sent(ctx.now_ns, bytes, window_bytes);
        self.recovery.on_sent(Sent {
            sequence,
            time_ns: ctx.now_ns,
            bytes,
            window_bytes,
            departure,
            content,
        });
    }

    /// Whether one more packet that asks for an acknowledgement may be on its way.
    fn may_ask(&self) -> bool {
        self.recovery.outstanding() < UNACKNOWLEDGED_MAX
    }

    /// One data packet, which is a run's first, or of at most the bytes of the `run`'s first.
    /// Reliable bytes only go out in full packets or as a run's first, so that one short packet never
    /// makes a run of short ones.
    fn build_data(
        &mut self,
        ctx: &mut Context<'_>,
        out: &mut Vec<u8>,
        run: Option<usize>,
    ) -> Option<usize> {
        if !self.is_established() || !self.may_ask() || self.sequence >= ctx.limits.sequence_max {
            return None;
        }
        let full = self.path.datagram_bytes();
        let may_fill = self.may_fill(ctx.now_ns);
        let stream = self.streams.pick(may_fill, full)?;
        let s = self.streams.sending.get_mut(&stream)?;
        let bytes_max = run.unwrap_or(full);
        if !has_fitting(s, bytes_max, full) {
            return None;
        }
        let start = begin(out);
        let filled = fill(stream, s, out, start + bytes_max - TAG_BYTES);
        if filled.content.open && bytes_max >= DATAGRAM_BYTES_MIN {
            pad(out, start);
        }
        let label = Label {
            flags: if s.spec.mode.is_reliable() {
                Flags::RELIABLE
            } else {
                Flags::NONE
            },
            priority: s.spec.priority,
            channel: s.channel,
            stream,
            events: filled.events,
        };
        let after_ns = s.sent_after(ctx.now_ns);
        if let (Some(after_ns), Some(flow)) = (after_ns, &mut ctx.flow) {
            flow.sent(&s.spec.name, ctx.now_ns, ctx.now_ns - after_ns);
        }
        let (sequence, content) = (self.sequence, filled.content);
        let bytes = self.seal(ctx, out, start, &label);
        let classes = &mut ctx.counters.classes;
        classes.sent(label.priority, bytes, filled.events, filled.again_bytes);
        classes.sent_after(label.priority, after_ns);
        self.streams.charge(may_fill, stream, bytes);
        if filled.is_cut_short {
            self.path.want_larger();
        }
        if filled.again_bytes > 0 {
            self.note_again(filled.again_bytes);
        }
        let has_range = content.range.0 < content.range.1;
        let has_events = filled.event_bytes > 0 || (filled.events > 0 && !has_range);
        let window_bytes = if has_range || has_events { bytes } else { 0 };
        self.note_sent(ctx, sequence, bytes, window_bytes as u64, content);
        if has_events {
            let (ends, gone) = (self.ends, (label.priority, filled.event_bytes));
            self.streams.on_events_sent(ctx, &ends, gone);
        }
        Some(bytes)
    }

    /// Completes the header of the packet that starts at `start`, and seals it.
    fn seal(&mut self, ctx: &Context<'_>, out: &mut Vec<u8>, start: usize, label: &Label) -> usize {
        out.extend_from_slice(&[0; TAG_BYTES]);
        let bytes = out.len() - start;
        debug_assert!(bytes <= DATAGRAM_BYTES_MAX, "a packet of {bytes} bytes");
        let header = Header {
            flags: label.flags,
            priority: label.priority,
            key_phase: self.current.phase(),
            channel_hash: label.channel,
            subnet: ctx.subnet,
            destination: self.ends.peer,
            origin_hash: ctx.origin,
            session_id: self.ends.peer_session,
            stream_id: label.stream,
            payload_len: u16::try_from(bytes - HEADER_BYTES).unwrap_or(u16::MAX),
            event_count: u16::try_from(label.events).unwrap_or(u16::MAX),
            sequence: self.sequence,
            ..Header::default()
        };
        out[start..start + HEADER_BYTES].copy_from_slice(&header.encode());
        self.current.sealing.seal(self.sequence, &mut out[start..]);
        self.sequence = self.recovery.next_sequence(self.sequence);
        self.last_sent_ns = ctx.now_ns;
        self.traffic.sent_packets += 1;
        self.traffic.sent_bytes += bytes as u64;
        bytes
    }

    pub(crate) fn open_stream(
        &mut self,
        ctx: &Context<'_>,
        spec: &StreamSpec,
    ) -> Result<StreamId, OpenError> {
        self.streams
            .open(self.ends.peer, spec, ctx.limits.streams_max)
    }

    pub(crate) fn send<'e>(
        &mut self,
        now_ns: u64,
        stream: StreamId,
        messages: impl Iterator<Item = Payload<'e>>,
        terms: Terms,
    ) -> Taken {
        self.streams.send(now_ns, stream, messages, terms)
    }

    pub(crate) fn send_control(&mut self, message: &[u8]) -> Result<(), SendError> {
        self.streams.send_control(message)
    }

    pub(crate) fn queued_on(&self, stream: StreamId) -> usize {
        self.streams.queued_on(stream)
    }

    pub(crate) fn finish_stream(&mut self, stream: StreamId) -> Result<(), SendError> {
        self.streams.finish(stream)
    }

    pub(crate) fn reset_stream(
        &mut self,
        ctx: &mut Context<'_>,
        stream: StreamId,
    ) -> Result<(), SendError> {
        self.streams.reset(ctx, &self.ends, stream)
    }

    /// Takes nothing new, and closes once the peer has all that is queued, at `by_ns` at the latest.
    pub(crate) fn finish(&mut self, ctx: &Context<'_>, by_ns: u64) {
        self.finish_by_ns = Some(by_ns);
        self.streams.finish_all();
        self.close_if_finished(ctx);
    }

    /// Closes a session that was to be finished and is, or whose time for that is over.
    pub(super) fn close_if_finished(&mut self, ctx: &Context<'_>) {
        let Some(by_ns) = self.finish_by_ns else {
            return;
        };
        if self.streams.is_all_acked() {
            self.close(ctx, CloseReason::Local);
        } else if ctx.now_ns >= by_ns {
            self.close(ctx, CloseReason::Unfinished);
        }
    }
}

/// Largest end frame.
const FIN_BYTES: usize = 9;

/// What went into a data packet.
#[derive(Default)]
struct Filled {
    content: Content,
    /// Events, or messages that end in this packet.
    events: usize,
    /// Bytes of events, which leave the queue for good.
    event_bytes: usize,
    /// Bytes that travel again.
    again_bytes: u64,
    /// Whether a larger packet would have taken more.
    is_cut_short: bool,
}

/// Whether the next of a stream fits a packet of `bytes_max`; a full one has `full`.
fn has_fitting(s: &SendStream, bytes_max: usize, full: usize) -> bool {
    let around = AROUND
        + if s.is_open_acked {
            0
        } else {
            open_bytes(&s.spec)
        };
    match &s.outgoing {
        Outgoing::Reliable(_) => bytes_max == full,
        Outgoing::Events(events) if events.is_empty() => around + FIN_BYTES <= bytes_max,
        Outgoing::Events(events) => events.fits(
            bytes_max.saturating_sub(around),
            full.saturating_sub(around),
        ),
    }
}

/// Writes the frames of a data packet up to `end` of `out`.
fn fill(stream: StreamId, s: &mut SendStream, out: &mut Vec<u8>, end: usize) -> Filled {
    let mut filled = Filled::default();
    filled.content.stream = stream;
    if !s.is_open_acked {
        let (salt, mode) = (s.spec.salt, s.spec.mode);
        Frame::Open {
            salt,
            mode,
            name: s.spec.name.as_str(),
        }
        .write(out);
        filled.content.open = true;
    }
    let (is_last, offset) = match &mut s.outgoing {
        Outgoing::Reliable(bytes) => {
            let offset = bytes.next_offset();
            let back = match s.spec.mode {
                Mode::Unordered => Some(offset - bytes.message_start(offset)),
                Mode::Ordered | Mode::Signed | Mode::Unreliable => None,
            };
            let overhead = back.map_or(stream_overhead(offset), |back| part_overhead(offset, back));
            if let Some((from, to, again)) =
                bytes.take_chunk(end.saturating_sub(out.len() + overhead))
            {
                let length = usize::try_from(to - from).unwrap_or(0);
                match back {
                    Some(back) => write_part_start(out, from, back, length),
                    None => write_stream_start(out, from, length),
                }
                bytes.copy(from, to, out);
                filled.content.range = (from, to);
                filled.events = bytes.messages_in(from, to);
                filled.again_bytes = if again { to - from } else { 0 };
            }
            (bytes.is_all_sent(), bytes.final_offset())
        }
        Outgoing::Events(queue) => {
            let Written { messages, bytes } = queue.write(out, end);
            (filled.events, filled.event_bytes) = (messages, bytes);
            filled.is_cut_short = !queue.is_empty();
            (queue.is_empty(), 0)
        }
    };
    if s.end == End::Wanted && is_last && out.len() + FIN_BYTES <= end {
        Frame::Fin { offset }.write(out);
        s.end = End::Sent;
        filled.content.fin = true;
    }
    filled
}

/// Makes room for a header; gives where the packet starts.
fn begin(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    start
}

/// Makes the packet that starts at `start` as large as a reset: a peer that lost the session
/// answers with no more bytes than came.
fn pad(out: &mut Vec<u8>, start: usize) {
    let least = start + RESET_BYTES - TAG_BYTES;
    if out.len() < least {
        out.resize(least, PADDING);
    }
}

#[cfg(any(test, fuzzing, feature = "sim"))]
impl Session {
    /// Seals any payload under any stream: what a member with a broken or hostile program sends.
    pub(crate) fn seal_raw(
        &mut self,
        ctx: &Context<'_>,
        (flags, stream, channel, events): (Flags, u32, u16, usize),
        payload: &[u8],
    ) -> Vec<u8> {
        let mut out = Vec::new();
        let start = begin(&mut out);
        out.extend_from_slice(payload);
        let (stream, channel) = (StreamId(stream), ChannelHash(channel));
        self.seal(
            ctx,
            &mut out,
            start,
            &Label {
                flags,
                priority: 4,
                channel,
                stream,
                events,
            },
        );
        out
    }
}
