//! One session: opens and seals its packets, proves entities, carries streams.
//!
//! In the order in which a packet meets them: `open` (here) checks and opens, `frames` acts on what
//! was sealed, `streams` holds the streams, `kem` and `rekey` the key epochs, `transmit` builds what goes out.

mod frames;
mod kem;
mod rekey;
mod streams;
mod transmit;

use crate::{
    config::NodeLimits,
    event::{CloseReason, Event, SessionState, SessionStatus},
    frame::LinkFrame,
    handshake::Agreed,
    hybrid::Exchange,
    keys::{Epoch, Role},
    limits::REST_NS,
    path::{Path, Validation},
    policy::Pattern,
    proof::Subject,
    random::Generator,
    reason::{DropReason, NodeCounters},
    received::Received,
    recovery::{Content, Due, Recovery, Standing},
    replay::{ReplayWindow, Seen},
    times::RoundTrips,
};
use bytes::Buf;
use ed25519_dalek::SigningKey;
use rekey::Proposal;
use std::{collections::VecDeque, net::SocketAddr};
use streams::Streams;
use virga_ebpf::{
    header::{Header, NodeId, OriginHash, SessionId, Subnet},
    limits::HEADER_BYTES,
};
use zeroize::Zeroizing;

/// An event for the owner, and what reading it gives back to its sender.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) session: SessionId,
    pub(crate) event: Event,
    /// Bytes of credit.
    pub(crate) credit: u64,
    /// Events that it stood for at first: several are messages one after the other in one buffer.
    pub(crate) count: usize,
    /// Bytes of each of several messages; 0 where each follows its length.
    pub(crate) size: usize,
}

impl Queued {
    /// One event that gives nothing back.
    pub(crate) const fn new(session: SessionId, event: Event) -> Self {
        Self {
            session,
            event,
            credit: 0,
            count: 1,
            size: 0,
        }
    }

    /// Takes the first of several messages out; the last of them stays, alone.
    pub(crate) fn split(&mut self) -> Option<Event> {
        let Event::Message {
            peer,
            stream,
            event,
        } = &mut self.event
        else {
            return None;
        };
        if self.count == 1 {
            return None;
        }
        let size = match self.size {
            0 => usize::try_from(event.try_get_u32().ok()?).ok()?,
            size => size,
        };
        (event.len() > size).then(|| Event::Message {
            peer: *peer,
            stream: *stream,
            event: event.split_to(size),
        })
    }
}

/// What a session needs of its node, for the length of one call.
pub(crate) struct Context<'a> {
    pub(crate) now_ns: u64,
    pub(crate) origin: OriginHash,
    pub(crate) subnet: Subnet,
    pub(crate) entity_key: &'a SigningKey,
    pub(crate) limits: &'a NodeLimits,
    pub(crate) generator: &'a mut Generator,
    pub(crate) events: &'a mut VecDeque<Queued>,
    pub(crate) counters: &'a mut NodeCounters,
    pub(crate) flow: Option<&'a mut crate::flow::Flow>,
}

/// Who is at the other end, and how this session came about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) own_node: NodeId,
    pub(crate) own: SessionId,
    pub(crate) peer: NodeId,
    pub(crate) peer_session: SessionId,
    pub(crate) peer_origin: OriginHash,
    pub(crate) peer_entity: [u8; 32],
    /// Its node key, where Noise proved it.
    pub(crate) peer_key: Option<[u8; 32]>,
    pub(crate) role: Role,
}

/// What a call brought about that concerns the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Both entities are proven.
    Established,
    /// It is over.
    Closed(CloseReason),
}

/// Packets and bytes, for people.
#[derive(Clone, Copy, Debug, Default)]
struct Traffic {
    sent_packets: u64,
    sent_bytes: u64,
    received_packets: u64,
    received_bytes: u64,
    retransmitted_packets: u64,
    retransmitted_bytes: u64,
}

/// One session with one peer.
pub(crate) struct Session {
    pub(crate) ends: Ends,
    pub(crate) pattern: Pattern,
    /// Whether ML-KEM is mixed in before it is established.
    pub(crate) is_hybrid: bool,
    /// Until that is done.
    exchange: Option<Box<Exchange>>,
    state: SessionState,
    pub(crate) since_ns: u64,
    pub(crate) established_ns: u64,
    outcome: Option<Outcome>,

    previous: Option<Box<Epoch>>,
    current: Box<Epoch>,
    /// Held by the responder until the initiator uses it.
    next: Option<Box<Epoch>>,
    proposal: Proposal,
    epoch_since_ns: u64,
    epoch_first_sequence: u64,
    epoch_first_bytes: u64,
    failed_opens: u64,

    subject: Subject,
    reset_token: Zeroizing<[u8; 16]>,
    peer_reset_token: Option<Zeroizing<[u8; 16]>>,
    is_peer_proven: bool,
    is_own_proof_acked: bool,

    sequence: u64,
    replay: ReplayWindow,
    received: Received,
    newest_ns: u64,
    ack_after: u32,
    ack_at_ns: Option<u64>,

    path: Path,
    validation: Validation,
    /// What the packet in hand says of the link.
    link_heard: Option<LinkFrame>,
    recovery: Recovery,
    standing: Standing,
    streams: Streams,
    last_sent_ns: u64,
    last_heard_ns: u64,
    /// Nothing new is taken, and by then it closes.
    finish_by_ns: Option<u64>,
    /// A close frame is to be sent.
    close_wanted: bool,
    drain_until_ns: u64,
    traffic: Traffic,
    /// Since it was established, whatever path.
    round_trips: Option<Box<RoundTrips>>,
    pub(crate) timer_ns: Option<u64>,
    pub(crate) is_queued: bool,
    acked: Vec<Content>,
    lost: Vec<Content>,
}

/// A path that packets from `first_sequence` on take.
fn new_path(limits: &NodeLimits, now_ns: u64, first_sequence: u64) -> Path {
    let (congestion, most) = (limits.congestion, limits.datagram_bytes_max);
    Path::new(now_ns, congestion, most, first_sequence)
}

impl Session {
    pub(crate) fn new(
        ends: Ends,
        agreed: Agreed,
        exchange: Option<Exchange>,
        reset_token: [u8; 16],
        limits: &NodeLimits,
        now_ns: u64,
    ) -> Self {
        let (initiator, responder) = match ends.role {
            Role::Initiator => (ends.own_node, ends.peer),
            Role::Responder => (ends.peer, ends.own_node),
        };
        let mut standing = Standing::default();
        if ends.role == Role::Initiator {
            standing.insert(Standing::PROOF);
            if exchange.is_some() {
                standing.insert(Standing::KEM);
            }
        }
        Self {
            ends,
            pattern: agreed.pattern,
            is_hybrid: agreed.is_hybrid,
            exchange: exchange.map(Box::new),
            state: SessionState::Proving,
            since_ns: now_ns,
            established_ns: now_ns,
            outcome: None,
            previous: None,
            current: Box::new(agreed.epoch),
            next: None,
            proposal: Proposal::new(),
            epoch_since_ns: now_ns,
            epoch_first_sequence: 0,
            epoch_first_bytes: 0,
            failed_opens: 0,
            subject: Subject {
                hash: agreed.hash,
                initiator,
                responder,
            },
            reset_token: Zeroizing::new(reset_token),
            peer_reset_token: None,
            is_peer_proven: false,
            is_own_proof_acked: false,
            sequence: 0,
            replay: ReplayWindow::new(),
            received: Received::default(),
            newest_ns: now_ns,
            ack_after: 0,
            ack_at_ns: None,
            path: new_path(limits, now_ns, 0),
            validation: Validation::default(),
            link_heard: None,
            recovery: Recovery::new(),
            standing,
            streams: Streams::new(ends.role),
            last_sent_ns: now_ns,
            last_heard_ns: now_ns,
            finish_by_ns: None,
            close_wanted: false,
            drain_until_ns: u64::MAX,
            traffic: Traffic::default(),
            round_trips: None,
            timer_ns: None,
            is_queued: false,
            acked: Vec::new(),
            lost: Vec::new(),
        }
    }

    pub(crate) fn state(&self) -> SessionState {
        self.state
    }

    pub(crate) fn is_established(&self) -> bool {
        self.state == SessionState::Established
    }

    /// What the last calls brought about; asked once.
    pub(crate) fn take_outcome(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }

    /// Whether `token` says that the peer lost this session.
    pub(crate) fn is_reset_by(&self, token: &[u8; 16]) -> bool {
        self.peer_reset_token
            .as_ref()
            .is_some_and(|expected| crate::keys::same(expected, token))
    }

    /// Takes one packet in. Cheap checks, open in place, mark: in this order.
    pub(crate) fn handle(
        &mut self,
        ctx: &mut Context<'_>,
        source: SocketAddr,
        header: &Header,
        header_bytes: &[u8; HEADER_BYTES],
        sealed: &mut [u8],
    ) -> Result<(), DropReason> {
        if header.origin_hash != self.ends.peer_origin {
            return Err(DropReason::Origin);
        }
        let datagram_bytes = (HEADER_BYTES + sealed.len()) as u64;
        let clear = self.open(ctx, header, header_bytes, sealed)?;
        self.traffic.received_packets += 1;
        self.traffic.received_bytes += datagram_bytes;
        let (class, events) = (header.priority, header.event_count);
        ctx.counters.classes.received(class, datagram_bytes, events);
        let heard_ns = std::mem::replace(&mut self.last_heard_ns, ctx.now_ns);
        self.link_heard = None;
        let source = (header.hop_count == 0).then_some(source);
        let is_newest = self.replay.is_newest(header.sequence);
        let token = || ctx.generator.number().to_be_bytes();
        self.validation.on_packet(source, is_newest, token);
        if self.state == SessionState::Draining {
            return self.handle_draining(ctx, clear);
        }
        let taken = self.handle_frames(ctx, header, clear);
        if self.link_heard.is_some() {
            // The link's keepalive is beside the session's: neither keeps it open, nor from resting.
            self.last_heard_ns = heard_ns;
        }
        taken
    }

    /// What the packet that was handled last says of the link, and whether it came straight over it.
    pub(crate) fn take_link(&mut self) -> (Option<LinkFrame>, bool) {
        (self.link_heard.take(), self.validation.is_direct())
    }

    fn open<'a>(
        &mut self,
        ctx: &mut Context<'_>,
        header: &Header,
        header_bytes: &[u8; HEADER_BYTES],
        sealed: &'a mut [u8],
    ) -> Result<&'a [u8], DropReason> {
        let held = [
            Some(&*self.current),
            self.next.as_deref(),
            self.previous.as_deref(),
        ];
        let epoch = held
            .into_iter()
            .flatten()
            .find(|epoch| epoch.phase() == header.key_phase);
        let epoch = epoch.ok_or(DropReason::KeyPhase)?;
        match self.replay.check(header.sequence) {
            Seen::New if header.sequence <= crate::limits::SEQUENCE_MAX => {}
            Seen::New | Seen::TooOld => return Err(DropReason::TooOld),
            Seen::Replayed => return Err(DropReason::Replayed),
        }
        let number = epoch.number;
        let Ok(clear) = epoch.opening.open(header_bytes, header.sequence, sealed) else {
            self.on_failed_open(ctx);
            return Err(DropReason::Forged);
        };
        self.replay.mark(header.sequence);
        self.on_opened_with(ctx, number);
        Ok(clear)
    }

    /// Only a close is of interest; anything else is told again that this is over.
    fn handle_draining(&mut self, ctx: &Context<'_>, clear: &[u8]) -> Result<(), DropReason> {
        let is_close = crate::frame::Frames::new(clear)
            .any(|frame| matches!(frame, Ok(crate::frame::Frame::Close)));
        if !is_close && ctx.now_ns >= self.last_sent_ns + self.path.round_trip().smoothed_ns() {
            self.close_wanted = true;
        }
        Err(DropReason::Draining)
    }

    /// Notes a packet whose frames were taken, for the next acknowledgement.
    fn note_received(&mut self, ctx: &Context<'_>, sequence: u64, asks: bool) {
        let newest = self.received.end();
        if sequence >= newest {
            self.newest_ns = ctx.now_ns;
        }
        self.received.insert(sequence);
        if !asks {
            return;
        }
        self.ack_after += 1;
        let at_once = self.ack_after >= crate::limits::ACK_AFTER_PACKETS
            || sequence != newest
            || self.state != SessionState::Established
            || self.outcome == Some(Outcome::Established);
        let due_ns = if at_once {
            ctx.now_ns
        } else {
            ctx.now_ns + crate::limits::ACK_WAIT_NS
        };
        self.ack_at_ns = Some(self.ack_at_ns.map_or(due_ns, |at| at.min(due_ns)));
    }

    /// Both ends are proven: data may flow.
    fn establish(&mut self, ctx: &Context<'_>) {
        self.state = SessionState::Established;
        self.round_trips = Some(Box::default());
        self.established_ns = ctx.now_ns;
        self.outcome = Some(Outcome::Established);
    }

    /// Ends the session from this side; the peer is told once, and again when it goes on sending.
    pub(crate) fn close(&mut self, ctx: &Context<'_>, reason: CloseReason) {
        if self.state == SessionState::Draining {
            return;
        }
        self.close_wanted = true;
        self.end(ctx, reason);
    }

    /// Ends the session without a word: the peer closed it, or is not there.
    fn end(&mut self, ctx: &Context<'_>, reason: CloseReason) {
        if self.state == SessionState::Draining {
            return;
        }
        self.state = SessionState::Draining;
        self.outcome = Some(Outcome::Closed(reason));
        self.drain_until_ns = ctx.now_ns + ctx.limits.drain_ns;
        self.streams = Streams::new(self.ends.role);
        self.round_trips = None;
        self.recovery = Recovery::new();
        self.path = new_path(ctx.limits, ctx.now_ns, self.sequence);
        self.standing = Standing::default();
        self.exchange = None;
        self.ack_at_ns = None;
    }

    /// Whether any packet of the peer's opened.
    pub(crate) fn has_heard(&self) -> bool {
        self.traffic.received_packets > 0
    }

    /// Whether nothing of it needs to be remembered any more.
    pub(crate) fn is_drained(&self, now_ns: u64) -> bool {
        self.state == SessionState::Draining && now_ns >= self.drain_until_ns
    }

    /// When what a busy time left is given back.
    fn rest_ns(&self) -> Option<u64> {
        let quiet_ns = self.last_sent_ns.max(self.last_heard_ns);
        self.recovery.has_spare().then_some(quiet_ns + REST_NS)
    }

    /// When [`Session::handle_timeout`] is due.
    pub(crate) fn timeout(&self, limits: &NodeLimits) -> u64 {
        match self.state {
            SessionState::Draining => return self.drain_until_ns,
            SessionState::Proving => {
                let deadline_ns = self.since_ns + limits.handshake_deadline_ns;
                return [self.recovery.timeout(&self.path), self.ack_at_ns]
                    .into_iter()
                    .flatten()
                    .fold(deadline_ns, u64::min);
            }
            SessionState::Established => {}
        }
        let previous = self.previous_until_ns();
        let rekey = (self.ends.role == Role::Initiator && self.may_propose())
            .then_some(self.epoch_since_ns + limits.rekey_after_ns);
        let keepalive = (!self.standing.contains(Standing::PING))
            .then_some(self.last_sent_ns + limits.keepalive_ns);
        [
            self.recovery.timeout(&self.path),
            self.path.due_ns(),
            self.validation.due_ns(),
            self.rest_ns(),
            self.streams.timeout(),
            self.finish_by_ns,
            self.ack_at_ns,
            previous,
            rekey,
            keepalive,
        ]
        .into_iter()
        .flatten()
        .fold(self.last_heard_ns + limits.idle_ns_max, u64::min)
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, ctx: &mut Context<'_>) {
        let now_ns = ctx.now_ns;
        match self.state {
            SessionState::Draining => return,
            SessionState::Proving if now_ns >= self.since_ns + ctx.limits.handshake_deadline_ns => {
                return self.close(ctx, CloseReason::Deadline);
            }
            SessionState::Established if now_ns >= self.last_heard_ns + ctx.limits.idle_ns_max => {
                return self.close(ctx, CloseReason::Idle);
            }
            SessionState::Proving | SessionState::Established => {}
        }
        self.follow_peer(ctx);
        self.path.release(now_ns);
        let due = self
            .recovery
            .on_timeout(now_ns, &mut self.path, &mut self.lost);
        if due == Due::Probe {
            self.standing.insert(Standing::PING);
        }
        self.requeue_lost();
        if self.rest_ns().is_some_and(|at| at <= now_ns) {
            self.recovery.rest();
            // All of it stays: what was told of the older ones may have been lost, and that is asked for again.
            self.received.give_back();
            self.streams.give_back();
            (self.acked, self.lost) = (Vec::new(), Vec::new());
        }
        if self.state == SessionState::Established {
            self.streams.on_timeout(ctx, &self.ends);
            self.close_if_finished(ctx);
            if now_ns >= self.last_sent_ns + ctx.limits.keepalive_ns {
                self.standing.insert(Standing::PING);
            }
            self.check_epoch(ctx);
        }
    }

    /// See [`crate::Node::limit_datagrams`].
    pub(crate) fn limit_datagrams(&mut self, bytes: usize) {
        self.path.limit(bytes);
    }

    /// Whether it goes on only until the peer has all that is queued.
    pub(crate) fn is_finishing(&self) -> bool {
        self.finish_by_ns.is_some() && self.state == SessionState::Established
    }

    /// Bytes that its streams hold for sending, by class.
    pub(crate) fn queued_bytes(&self) -> &[usize] {
        self.streams.held_bytes_by_class()
    }

    pub(crate) fn status(&self) -> SessionStatus {
        SessionStatus {
            peer: self.ends.peer,
            entity: self.ends.peer_entity,
            session: self.ends.own,
            state: self.state,
            pattern: self.pattern,
            is_hybrid: self.is_hybrid,
            epoch: self.current.number,
            sent_packets: self.traffic.sent_packets,
            sent_bytes: self.traffic.sent_bytes,
            received_packets: self.traffic.received_packets,
            received_bytes: self.traffic.received_bytes,
            retransmitted_packets: self.traffic.retransmitted_packets,
            retransmitted_bytes: self.traffic.retransmitted_bytes,
            path: self.path.status(self.validation.known()),
            since_ns: self.since_ns,
            queued_bytes: self.streams.held_bytes(),
            round_trips: self.round_trips.as_ref().map(|times| times.summary()),
            streams_sending: self.streams.sending(),
            streams_receiving: self.streams.receiving(),
        }
    }
}

#[cfg(any(test, fuzzing, feature = "sim"))]
impl Session {
    /// Packets on their way, and matters to tell.
    pub(crate) fn kept(&self) -> (usize, usize) {
        (self.recovery.outstanding(), self.streams.matters())
    }

    /// Credit used as a sender; used, and read, as a receiver.
    pub(crate) fn credit(&self) -> (u64, u64, u64) {
        self.streams.credit()
    }

    /// Messages of which fragments are missing, and the bytes that they take.
    pub(crate) fn unfinished(&self) -> (usize, usize) {
        self.streams.unfinished()
    }

    /// Streams of which only the end is to be sent.
    #[cfg(test)]
    pub(crate) fn ends_to_send(&self) -> usize {
        self.streams.ends()
    }

    /// Bytes of the buffers of all queues, used or not.
    #[cfg(test)]
    pub(crate) fn queue_bytes(&self) -> usize {
        self.streams.queue_bytes()
    }

    /// Leaves sequences out.
    pub(crate) fn skip(&mut self, sequences: u64) {
        self.sequence += sequences;
    }
}
