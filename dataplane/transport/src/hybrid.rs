//! ML-KEM-768 (FIPS 203) beside Noise: who records a session and breaks X25519 later reads nothing.
//!
//! Key and ciphertext are larger than a datagram of 1,280 bytes has room for beside a handshake. So they
//! travel sealed, in two parts each, after Noise and before the session is established: lost parts travel
//! again as any frame does, and nobody is sent more than what came from an address that has answered.
//!
//! ```text
//!  initiator                                      responder
//!     │ ── epoch 0: PROOF, KEM 0, KEM 1 (key) ──►   │  the proof holds: encapsulates, holds epoch 1
//!     │ ◄── epoch 0: PROOF, KEM 0, KEM 1 ────────   │  (ciphertext and confirmation)
//!  decapsulates, current = epoch 1                  │
//!     │ ── epoch 1: anything ───────────────────►   │  current = epoch 1, epoch 0 is dropped
//!
//!  secret 1 = BLAKE2s(key: secret 0, "virga hybrid v1" ‖ handshake hash ‖ key ‖ ciphertext ‖ KEM's secret)
//! ```
//!
//! A combiner as in draft-ietf-tls-hybrid-design and RFC 9370: as long as one of the two secrets is unknown,
//! so is the result. The handshake hash, the key and the ciphertext bind it to this transcript. Noise's own KEM
//! extension (HFS) mixes the KEM's secret into the chaining key instead; its messages would not fit a datagram.

use crate::{
    keys::{Epoch, Role},
    random::Generator,
};
use ml_kem::{
    B32, Decapsulate, KeyExport, Seed,
    ml_kem_768::{Ciphertext, DecapsulationKey, EncapsulationKey},
};
use zeroize::{Zeroize, Zeroizing};

const KEY_BYTES: usize = 1_184;
const CIPHERTEXT_BYTES: usize = 1_088;
const CONFIRMATION_BYTES: usize = 16;
/// Parts that each side's bytes travel in.
pub(crate) const PARTS: u8 = 2;
/// Bytes of one part at most.
pub(crate) const PART_BYTES_MAX: usize = KEY_BYTES / PARTS as usize;

const _: () = assert!(KEY_BYTES.is_multiple_of(PARTS as usize));
const _: () = assert!((CIPHERTEXT_BYTES + CONFIRMATION_BYTES).is_multiple_of(PARTS as usize));
const _: () = assert!(
    CIPHERTEXT_BYTES + CONFIRMATION_BYTES <= KEY_BYTES,
    "the answer is no larger than what asked for it"
);

/// The peer's bytes are no key or no ciphertext, or it does not share the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Invalid;

enum Own {
    Initiator(Box<DecapsulationKey>),
    /// What the encapsulation draws from.
    Responder(Zeroizing<[u8; 32]>),
}

/// The exchange of one session, on either side.
pub(crate) struct Exchange {
    own: Own,
    /// What this side sends; the responder's after [`Exchange::agree`].
    sending: Vec<u8>,
    received: Vec<u8>,
    /// Which parts were received, as bits.
    have: u8,
}

impl Exchange {
    pub(crate) fn new(role: Role, generator: &mut Generator) -> Self {
        let (own, sending, awaited_bytes) = match role {
            Role::Initiator => {
                let mut seed = Seed::default();
                for half in seed.chunks_mut(32) {
                    half.copy_from_slice(&*Zeroizing::new(generator.bytes_32()));
                }
                let key = Box::new(DecapsulationKey::from_seed(seed));
                seed.zeroize();
                let public = key.encapsulation_key().to_bytes().to_vec();
                let awaited_bytes = CIPHERTEXT_BYTES + CONFIRMATION_BYTES;
                (Own::Initiator(key), public, awaited_bytes)
            }
            Role::Responder => {
                let drawn = Zeroizing::new(generator.bytes_32());
                (Own::Responder(drawn), Vec::new(), KEY_BYTES)
            }
        };
        Self {
            own,
            sending,
            received: vec![0; awaited_bytes],
            have: 0,
        }
    }

    /// A part of what this side sends; empty before there is any.
    pub(crate) fn part(&self, number: u8) -> &[u8] {
        let half = self.sending.len() / usize::from(PARTS);
        let start = half * usize::from(number);
        self.sending.get(start..start + half).unwrap_or(&[])
    }

    /// Takes a part of the peer's; the same again changes nothing.
    pub(crate) fn take(&mut self, number: u8, bytes: &[u8]) -> Result<(), Invalid> {
        let half = self.received.len() / usize::from(PARTS);
        let start = half * usize::from(number);
        let place = self.received.get_mut(start..start + half);
        let place = place.filter(|place| place.len() == bytes.len());
        place.ok_or(Invalid)?.copy_from_slice(bytes);
        self.have |= 1 << number;
        Ok(())
    }

    /// Whether all of the peer's has come.
    pub(crate) fn is_whole(&self) -> bool {
        self.have == (1 << PARTS) - 1
    }

    /// The epoch after `current`, with the KEM's secret mixed in; the responder may then send its parts.
    pub(crate) fn agree(&mut self, current: &Epoch, hash: &[u8; 32]) -> Result<Epoch, Invalid> {
        match &self.own {
            Own::Initiator(key) => {
                let (ciphertext, confirmation) = self.received.split_at(CIPHERTEXT_BYTES);
                let given = Ciphertext::try_from(ciphertext).map_err(|_| Invalid)?;
                let mut shared = key.decapsulate(&given);
                let transcript: [&[u8]; 3] = [hash, &self.sending, ciphertext];
                let next = current.hybrid(&transcript, shared.as_ref(), Role::Initiator);
                shared.zeroize();
                let confirmation = confirmation.try_into().map_err(|_| Invalid)?;
                let is_shared = crate::keys::same(&next.confirmation(), confirmation);
                is_shared.then_some(next).ok_or(Invalid)
            }
            Own::Responder(drawn) => {
                let key = self.received.as_slice().try_into().map_err(|_| Invalid)?;
                let key = EncapsulationKey::new(key).map_err(|_| Invalid)?;
                let mut drawn = B32::from(**drawn);
                let (ciphertext, mut shared) = key.encapsulate_deterministic(&drawn);
                drawn.zeroize();
                let transcript: [&[u8]; 3] = [hash, &self.received, &ciphertext];
                let next = current.hybrid(&transcript, shared.as_ref(), Role::Responder);
                shared.zeroize();
                self.sending = [&ciphertext[..], &next.confirmation()].concat();
                Ok(next)
            }
        }
    }
}

#[cfg(test)]
#[path = "tests/hybrid.rs"]
mod tests;
