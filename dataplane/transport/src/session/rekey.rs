//! Key epochs: the initiator proposes, the responder answers, both move on.
//!
//! ```text
//!  initiator                          responder
//!     │ ── REKEY e+1, X ──────────────►  │  next = f(secret e, DH), still seals with e
//!     │ ◄────────── REKEY ACK e+1, Y ──  │
//!  current = e+1                         │
//!     │ ── anything sealed with e+1 ──►  │  current = e+1: the initiator surely has it
//! ```
//!
//! The responder, when it wants new keys, asks the initiator to propose. So no two proposals cross.

use super::{Context, Session};
use crate::{event::CloseReason, keys::Role, limits::PREVIOUS_EPOCH_NS, recovery::Standing};
use x25519_dalek::{PublicKey, StaticSecret};

/// The proposal under way, on either side.
pub(super) struct Proposal {
    /// The initiator's, until it is answered.
    secret: Option<StaticSecret>,
    /// This side's public key, for as long as it may have to travel again.
    pub(super) public: [u8; 32],
    /// Whether the peer was heard in the current epoch: only then may the next begin.
    pub(super) is_confirmed: bool,
    /// The responder asked for new keys already.
    is_asked: bool,
}

impl Proposal {
    pub(super) const fn new() -> Self {
        Self {
            secret: None,
            public: [0; 32],
            is_confirmed: true,
            is_asked: false,
        }
    }

    /// Whether the initiator waits for an answer.
    pub(super) const fn is_waiting(&self) -> bool {
        self.secret.is_some()
    }

    /// The question was lost: it may be asked again.
    pub(super) fn forget_asking(&mut self) {
        self.is_asked = false;
    }
}

impl Session {
    /// Whether this side may ask for new keys now.
    pub(super) fn may_propose(&self) -> bool {
        self.is_established()
            && self.next.is_none()
            && !self.proposal.is_waiting()
            && self.proposal.is_confirmed
            && !self.proposal.is_asked
    }

    /// When the epoch before is dropped. A peer that was not heard in the current one may not have heard of it, and seals
    /// with the one before: it may have moved, and is found by nothing else.
    pub(super) fn previous_until_ns(&self) -> Option<u64> {
        let is_over = self.previous.is_some() && self.proposal.is_confirmed;
        is_over.then_some(self.epoch_since_ns + PREVIOUS_EPOCH_NS)
    }

    /// Drops what is too old, and asks for new keys when these are worn.
    pub(super) fn check_epoch(&mut self, ctx: &mut Context<'_>) {
        let age_ns = ctx.now_ns.saturating_sub(self.epoch_since_ns);
        if self.previous_until_ns().is_some_and(|at| ctx.now_ns >= at) {
            self.previous = None;
        }
        let packets = self.sequence - self.epoch_first_sequence;
        let bytes = self.traffic.sent_bytes - self.epoch_first_bytes;
        let is_worn = self.ends.role == Role::Initiator && age_ns >= ctx.limits.rekey_after_ns
            || packets >= ctx.limits.rekey_after_packets
            || bytes >= ctx.limits.rekey_after_bytes
            || self.failed_opens >= ctx.limits.failed_opens_rekey;
        if is_worn && self.may_propose() {
            self.want_rekey(ctx);
        }
    }

    fn want_rekey(&mut self, ctx: &mut Context<'_>) {
        match self.ends.role {
            Role::Initiator => {
                let secret = StaticSecret::from(ctx.generator.bytes_32());
                self.proposal.public = PublicKey::from(&secret).to_bytes();
                self.proposal.secret = Some(secret);
                self.standing.insert(Standing::REKEY);
            }
            Role::Responder => {
                self.proposal.is_asked = true;
                self.standing.insert(Standing::REKEY_WANTED);
            }
        }
    }

    /// The responder asks for new keys.
    pub(super) fn on_rekey_wanted(&mut self, ctx: &mut Context<'_>) {
        if self.ends.role == Role::Initiator && self.may_propose() {
            self.want_rekey(ctx);
        }
    }

    /// The initiator proposes. A proposal that was answered already changes nothing.
    pub(super) fn on_rekey(&mut self, ctx: &mut Context<'_>, epoch: u64, public: &[u8; 32]) {
        if self.ends.role != Role::Responder
            || epoch != self.current.number + 1
            || self.next.is_some()
        {
            return;
        }
        let secret = StaticSecret::from(ctx.generator.bytes_32());
        let Some(next) = self.current.next(&secret, public, self.ends.role) else {
            return self.close(ctx, CloseReason::Violation);
        };
        self.next = Some(Box::new(next));
        self.proposal.public = PublicKey::from(&secret).to_bytes();
        self.standing.remove(Standing::REKEY_WANTED);
        self.standing.insert(Standing::REKEY_ACK);
    }

    /// The responder answered: it holds the next epoch, so this side may seal with it.
    pub(super) fn on_rekey_ack(&mut self, ctx: &mut Context<'_>, epoch: u64, public: &[u8; 32]) {
        if epoch != self.current.number + 1 {
            return;
        }
        let Some(secret) = self.proposal.secret.take() else {
            return;
        };
        let Some(next) = self.current.next(&secret, public, self.ends.role) else {
            return self.close(ctx, CloseReason::Violation);
        };
        self.next = Some(Box::new(next));
        self.standing.remove(Standing::REKEY);
        self.standing.insert(Standing::PING);
        self.advance(ctx);
        self.proposal.is_confirmed = false;
    }

    /// A packet opened with epoch `number`.
    pub(super) fn on_opened_with(&mut self, ctx: &mut Context<'_>, number: u64) {
        if self.next.as_ref().is_some_and(|next| next.number == number) {
            if self.exchange.is_some() {
                self.on_hybrid_used(ctx);
            } else {
                self.standing.remove(Standing::REKEY_ACK);
                self.advance(ctx);
            }
        }
        if number == self.current.number {
            self.proposal.is_confirmed = true;
        }
    }

    pub(super) fn advance(&mut self, ctx: &mut Context<'_>) {
        let Some(next) = self.next.take() else { return };
        self.previous = Some(std::mem::replace(&mut self.current, next));
        self.epoch_since_ns = ctx.now_ns;
        self.epoch_first_sequence = self.sequence;
        self.epoch_first_bytes = self.traffic.sent_bytes;
        self.failed_opens = 0;
        self.proposal.is_asked = false;
        ctx.counters.epochs_advanced += 1;
    }

    /// Failed opens are bounded: new keys, then the end (RFC 9001, 6.6).
    pub(super) fn on_failed_open(&mut self, ctx: &mut Context<'_>) {
        self.failed_opens += 1;
        if self.failed_opens >= ctx.limits.failed_opens_close {
            self.close(ctx, CloseReason::Exhausted);
        } else if self.is_established() && self.failed_opens >= ctx.limits.failed_opens_rekey {
            self.check_epoch(ctx);
        }
    }
}
