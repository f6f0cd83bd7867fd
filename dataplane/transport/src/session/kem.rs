//! ML-KEM's part in the keys: its frames, and the move to epoch 1 that establishes the session.

use super::{Context, Session};
use crate::{
    event::CloseReason,
    frame::Frame,
    hybrid::{PART_BYTES_MAX, PARTS},
    keys::Role,
    limits::DATAGRAM_BYTES_MIN,
    reason::DropReason,
    recovery::Standing,
};
use virga_ebpf::limits::TAG_BYTES;

/// Bytes of the largest frame of it, and of a ping.
const FRAME_BYTES: usize = 1 + 1 + 2 + PART_BYTES_MAX + 1;

impl Session {
    /// A part of the peer's key or ciphertext. Once the exchange is over, it is one that came again.
    pub(super) fn on_kem(
        &mut self,
        ctx: &mut Context<'_>,
        part: u8,
        bytes: &[u8],
    ) -> Result<(), DropReason> {
        let Some(exchange) = &mut self.exchange else {
            return Ok(());
        };
        if exchange.take(part, bytes).is_err() {
            self.close(ctx, CloseReason::Violation);
            return Err(DropReason::Kem);
        }
        self.agree(ctx)
    }

    /// Makes epoch 1 when the peer is proven and all of its parts are there.
    pub(super) fn agree(&mut self, ctx: &mut Context<'_>) -> Result<(), DropReason> {
        let Some(exchange) = &mut self.exchange else {
            return Ok(());
        };
        if !self.is_peer_proven || self.next.is_some() || !exchange.is_whole() {
            return Ok(());
        }
        let Ok(next) = exchange.agree(&self.current, &self.subject.hash) else {
            self.close(ctx, CloseReason::Violation);
            return Err(DropReason::Kem);
        };
        self.next = Some(Box::new(next));
        match self.ends.role {
            Role::Responder => self.standing.insert(Standing::KEM),
            Role::Initiator => {
                self.standing.insert(Standing::PING);
                self.move_on(ctx);
                self.proposal.is_confirmed = false;
            }
        }
        Ok(())
    }

    /// Moves to epoch 1. Nothing of epoch 0 is believed any more, which is without ML-KEM.
    fn move_on(&mut self, ctx: &mut Context<'_>) {
        self.exchange = None;
        self.standing.remove(Standing::KEM);
        self.advance(ctx);
        self.previous = None;
        self.establish_if_proven(ctx);
    }

    /// The initiator used epoch 1: it has our proof, and the ciphertext.
    pub(super) fn on_hybrid_used(&mut self, ctx: &mut Context<'_>) {
        self.is_own_proof_acked = true;
        self.standing.remove(Standing::PROOF);
        self.move_on(ctx);
    }

    /// Those parts of `standing` that there is no room for beside `used` bytes of a packet.
    pub(super) fn without_room(used: usize, standing: Standing) -> Standing {
        if used + FRAME_BYTES + TAG_BYTES > DATAGRAM_BYTES_MIN {
            standing.only(Standing::KEM)
        } else {
            Standing::default()
        }
    }

    pub(super) fn write_kem(&self, out: &mut Vec<u8>, standing: Standing) {
        let Some(exchange) = &self.exchange else {
            return;
        };
        for part in (0..PARTS).filter(|&part| standing.contains(Standing::kem(part))) {
            let bytes = exchange.part(part);
            Frame::Kem { part, bytes }.write(out);
        }
    }

    /// Parts that were lost travel again while the exchange goes on.
    pub(super) fn requeue_kem(&mut self, standing: Standing) {
        if self.exchange.is_some() {
            self.standing.insert(standing.only(Standing::KEM));
        }
    }
}
