//! What sealed frames do. A packet is taken as a whole or not at all.

use super::{Context, Queued, Session, new_path, streams::Data};
use crate::{
    event::{CloseReason, Event, Mode, SessionState},
    frame::{Ack, Frame, Frames, Proof},
    reason::DropReason,
    recovery::{Matter, Standing},
};
use std::{collections::VecDeque, net::SocketAddr};
use virga_ebpf::header::{Flags, Header, StreamId};
use zeroize::Zeroizing;

/// What kinds of frames a packet holds.
#[derive(Clone, Copy, Debug, Default)]
struct Kinds<'a> {
    control: bool,
    data: bool,
    /// Frames that only a proven peer may send.
    after_proof: bool,
    /// Frames that ask for an acknowledgement.
    asks: bool,
    events: usize,
    /// The channel that the first open frame names.
    open: Option<(u32, Mode, &'a str)>,
}

impl<'a> Kinds<'a> {
    fn of(payload: &'a [u8]) -> Option<Self> {
        let mut kinds = Self::default();
        let (mut acks, mut credits) = (0, 0);
        for frame in Frames::new(payload) {
            let frame = frame.ok()?;
            acks += u32::from(matches!(frame, Frame::Ack(_)));
            credits += u32::from(matches!(frame, Frame::SessionCredit { .. }));
            let before_proof = matches!(
                frame,
                Frame::Ping | Frame::Ack(_) | Frame::Proof(_) | Frame::Kem { .. } | Frame::Close
            );
            kinds.after_proof |= !before_proof;
            kinds.asks |= !matches!(frame, Frame::Ack(_) | Frame::Close | Frame::Link(_));
            kinds.control |= frame.is_control();
            kinds.events += frame.events();
            kinds.data |= frame.is_data();
            if let Frame::Open { salt, mode, name } = frame {
                kinds.open.get_or_insert((salt, mode, name));
            }
        }
        // Each says all there is to say, and costs more than its bytes: one of a kind will do.
        if acks > 1 || credits > 1 {
            return None;
        }
        Some(kinds)
    }

    /// Whether header and frames agree on whether this is control.
    fn fits(&self, header: &Header) -> bool {
        if header.flags.contains(Flags::CONTROL) {
            let is_zero = header.stream_id == StreamId(0) && header.channel_hash.0 == 0;
            is_zero && !self.data
        } else {
            header.stream_id != StreamId(0)
                && header.channel_hash.0 != 0
                && !self.control
                && (self.events == 0 || self.events == usize::from(header.event_count))
        }
    }
}

impl Session {
    pub(super) fn handle_frames(
        &mut self,
        ctx: &mut Context<'_>,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let kinds = Kinds::of(payload).ok_or(DropReason::FrameMalformed)?;
        let is_unproven = !self.is_peer_proven || self.exchange.is_some();
        if is_unproven && (kinds.after_proof || !header.flags.contains(Flags::CONTROL)) {
            return Err(DropReason::BeforeProof);
        }
        if !kinds.fits(header) {
            return Err(DropReason::FrameMalformed);
        }
        if self.state == SessionState::Proving && kinds.after_proof {
            // Only an end that has our proof sends more than proofs.
            self.is_own_proof_acked = true;
            self.establish(ctx);
        }
        if header.flags.contains(Flags::CONTROL) {
            self.handle_control(ctx, payload)?;
        } else {
            let data = Data {
                stream: header.stream_id,
                channel: header.channel_hash,
                open: kinds.open,
                payload,
            };
            let verdict = self.streams.on_data(ctx, &self.ends, &data);
            if matches!(
                verdict,
                Err(DropReason::Credit | DropReason::Overlap | DropReason::Entries)
            ) {
                self.close(ctx, CloseReason::Violation);
            }
            self.raise_session();
            let is_taken = match verdict {
                Ok(()) | Err(DropReason::StreamClosed) => true,
                Err(DropReason::StreamsFull) => self.streams.is_turned_away(header.stream_id),
                Err(_) => false,
            };
            if !is_taken {
                return verdict;
            }
            self.note_received(ctx, header.sequence, kinds.asks);
            return verdict;
        }
        if self.state != SessionState::Draining {
            self.note_received(ctx, header.sequence, kinds.asks);
        }
        Ok(())
    }

    fn handle_control(&mut self, ctx: &mut Context<'_>, payload: &[u8]) -> Result<(), DropReason> {
        for frame in Frames::new(payload).flatten() {
            match frame {
                Frame::Ping => {}
                Frame::Ack(ack) => self.on_ack(ctx, &ack)?,
                Frame::Proof(proof) => self.on_proof(ctx, &proof)?,
                Frame::Kem { part, bytes } => self.on_kem(ctx, part, bytes)?,
                Frame::Rekey { epoch, public } => self.on_rekey(ctx, epoch, &public),
                Frame::RekeyAck { epoch, public } => self.on_rekey_ack(ctx, epoch, &public),
                Frame::RekeyWanted => self.on_rekey_wanted(ctx),
                Frame::PathChallenge { token } => {
                    let straight = ctx.limits.answers_straight;
                    self.validation.on_challenge(token, straight);
                }
                Frame::PathResponse { token } => {
                    let wait_ns = self.path.round_trip().probe_ns();
                    self.validation.on_response(ctx.now_ns, wait_ns, token);
                    if let Some(address) = self.validation.take_reached() {
                        let peer = self.ends.peer;
                        let event = Event::Reached { peer, address };
                        ctx.events.push_back(Queued::new(self.ends.own, event));
                    }
                }
                Frame::Link(link) => self.link_heard = Some(link),
                Frame::Close => self.end(ctx, CloseReason::Peer),
                Frame::SessionCredit { bytes } => self.streams.on_session_credit(bytes),
                Frame::StreamCredit { stream, bytes } => self.streams.on_credit(stream, bytes),
                Frame::Refuse { stream } => self.streams.on_refused(ctx, &self.ends, stream),
                Frame::Reset { stream, offset } => {
                    let verdict = self.streams.on_end(ctx, &self.ends, stream, offset, true);
                    self.close_on(ctx, verdict)?;
                    self.raise_session();
                }
                Frame::Stream { offset, bytes } => {
                    let verdict = self
                        .streams
                        .on_control_bytes(ctx, &self.ends, offset, bytes);
                    self.close_on(ctx, verdict)?;
                }
                Frame::Open { .. }
                | Frame::Part { .. }
                | Frame::Event { .. }
                | Frame::Events { .. }
                | Frame::Fragment { .. }
                | Frame::Fin { .. } => {}
            }
        }
        Ok(())
    }

    fn close_on(
        &mut self,
        ctx: &Context<'_>,
        verdict: Result<(), DropReason>,
    ) -> Result<(), DropReason> {
        if verdict.is_err_and(|reason| reason != DropReason::Fragments) {
            self.close(ctx, CloseReason::Violation);
        }
        verdict
    }

    /// The owner knows that the peer is at `address` from now on.
    pub(crate) fn set_address(&mut self, ctx: &Context<'_>, address: SocketAddr) {
        let before = self.validation.set_known(ctx.now_ns, address);
        if before.is_none_or(|before| before.ip() != address.ip()) {
            self.path = new_path(ctx.limits, ctx.now_ns, self.sequence);
        }
    }

    /// Follows a peer that is proven to be at another address. All that was known of the path is void,
    /// unless only the port is another (RFC 9000, 9.4).
    pub(super) fn follow_peer(&mut self, ctx: &mut Context<'_>) {
        let Some((address, before)) = self.validation.follow(ctx.now_ns) else {
            return;
        };
        if address.ip() != before.ip() {
            self.path = new_path(ctx.limits, ctx.now_ns, self.sequence);
        }
        let peer = self.ends.peer;
        ctx.events.push_back(Queued::new(
            self.ends.own,
            Event::AddressChanged { peer, address },
        ));
    }

    fn on_proof(&mut self, ctx: &mut Context<'_>, proof: &Proof) -> Result<(), DropReason> {
        if self.is_peer_proven {
            return Ok(());
        }
        let prover = self.ends.role.other();
        if !self.subject.verify(prover, &self.ends.peer_entity, proof) {
            self.close(ctx, CloseReason::Entity);
            return Err(DropReason::Proof);
        }
        self.is_peer_proven = true;
        self.peer_reset_token = Some(Zeroizing::new(proof.reset_token));
        if !self.is_own_proof_acked {
            self.standing.insert(Standing::PROOF);
        }
        self.establish_if_proven(ctx);
        self.agree(ctx)
    }

    pub(super) fn establish_if_proven(&mut self, ctx: &Context<'_>) {
        let is_proven = self.is_peer_proven && self.is_own_proof_acked;
        if self.state == SessionState::Proving && is_proven && self.exchange.is_none() {
            self.establish(ctx);
        }
    }

    fn on_ack(&mut self, ctx: &mut Context<'_>, ack: &Ack<'_>) -> Result<(), DropReason> {
        if self.state == SessionState::Draining {
            return Ok(());
        }
        let mut acked = std::mem::take(&mut self.acked);
        let mut lost = std::mem::take(&mut self.lost);
        let (next, path) = (self.sequence, &mut self.path);
        let known = self
            .recovery
            .on_ack(ctx.now_ns, ack, next, path, &mut acked, &mut lost);
        for content in acked.drain(..) {
            if content.standing.contains(Standing::PROOF) {
                self.is_own_proof_acked = true;
                self.standing.remove(Standing::PROOF);
                self.establish_if_proven(ctx);
            }
            self.streams.on_acked(ctx, &self.ends, &content);
        }
        (self.acked, self.lost) = (acked, lost);
        self.requeue_lost();
        if known.is_err() {
            self.close(ctx, CloseReason::Violation);
            return Err(DropReason::NeverSent);
        }
        if let (Some(times), Some(rtt_ns)) = (&mut self.round_trips, self.path.sampled_ns()) {
            times.record(rtt_ns);
        }
        self.close_if_finished(ctx);
        Ok(())
    }

    /// What was lost and still matters goes out again, under new sequences.
    pub(super) fn requeue_lost(&mut self) {
        let mut lost = std::mem::take(&mut self.lost);
        for content in lost.drain(..) {
            let standing = content.standing;
            if standing.contains(Standing::PROOF) && !self.is_own_proof_acked {
                self.standing.insert(Standing::PROOF);
            }
            self.requeue_kem(standing);
            if standing.contains(Standing::REKEY) && self.proposal.is_waiting() {
                self.standing.insert(Standing::REKEY);
            }
            if standing.contains(Standing::REKEY_ACK) && self.next.is_some() {
                self.standing.insert(Standing::REKEY_ACK);
            }
            if standing.contains(Standing::REKEY_WANTED) {
                self.proposal.forget_asking();
            }
            if standing.contains(Standing::CREDIT) {
                self.standing.insert(Standing::CREDIT);
            }
            for matter in content.matters.into_iter().flatten() {
                self.streams.requeue(matter);
            }
            self.streams.on_lost(&content);
        }
        self.lost = lost;
    }

    /// The owner read all events of `queued`: that makes room for more. Whether the peer is to be told
    /// something.
    pub(crate) fn on_read(&mut self, events: &mut VecDeque<Queued>, queued: &Queued) -> bool {
        let stream = match &queued.event {
            Event::Message { stream, .. } | Event::StreamOpened { stream, .. } => *stream,
            Event::Control { .. } => StreamId(0),
            _ => return false,
        };
        let (count, credit) = (queued.count, queued.credit);
        let ends = &self.ends;
        if self.streams.on_read(events, ends, stream, count, credit) {
            self.standing.insert(Standing::CREDIT);
        }
        !self.standing.is_empty() || self.streams.has_matters()
    }

    /// Finds out whether the peer still knows this session.
    pub(crate) fn probe(&mut self) {
        self.standing.insert(Standing::PING);
    }

    /// Finds out whether packets pass between this node and the peer at `address`.
    pub(crate) fn probe_address(&mut self, ctx: &mut Context<'_>, address: SocketAddr) {
        let token = ctx.generator.number().to_be_bytes();
        self.validation.probe(address, token);
    }

    /// The owner wants no more of a stream that the peer opened.
    pub(crate) fn refuse(&mut self, stream: StreamId) -> bool {
        let refused = self.streams.refuse(stream);
        if refused {
            self.streams.requeue(Matter::Refuse(stream));
            self.raise_session();
        }
        refused
    }

    /// Bytes that nobody will read give their credit back, too.
    fn raise_session(&mut self) {
        if self.streams.raise_session() {
            self.standing.insert(Standing::CREDIT);
        }
    }
}
