//! Keys: from the handshake's split to packet keys, epoch by epoch; tokens a restarted node still
//! knows.
//!
//! Wiped on drop: the node's, the entity's and the network's keys, epoch secrets, reset and cookie
//! secrets, tokens that a session keeps. Not wiped: packet keys inside `ring`, the state of a handshake
//! inside `snow`, and copies that the compiler makes.
//!
//! ```text
//!  Noise split ──► epoch 0 secret ──┬─► epoch 1 secret ──┬─► …
//!                     │             │       │            │
//!              two packet keys   fresh DH   …         fresh DH
//!                                or ML-KEM
//! ```
//!
//! No packet key depends on the handshake hash, or on anything else that the wire shows.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use virga_ebpf::{
    hash::keyed,
    header::{Header, SessionId},
    limits::{HEADER_BYTES, TAG_BYTES},
};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

/// Which end of a session this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sent the initiation.
    Initiator,
    /// Answered it.
    Responder,
}

impl Role {
    /// The other end's.
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Initiator => Self::Responder,
            Self::Responder => Self::Initiator,
        }
    }

    /// Domain of what this role seals or signs.
    pub(crate) const fn label(self) -> &'static [u8] {
        match self {
            Self::Initiator => b"initiator",
            Self::Responder => b"responder",
        }
    }
}

/// The key of one direction in one epoch. `ring` wipes nothing, so the raw bytes never outlive
/// the constructor on our side.
pub struct PacketKey(LessSafeKey);

/// A seal that does not fit: forged, or changed in flight. The bytes are undefined afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forged;

impl PacketKey {
    /// The key of what `sealer` seals in the epoch of `secret`.
    #[must_use]
    pub fn new(secret: &[u8; 32], sealer: Role) -> Self {
        let mut raw = keyed(secret, &[b"virga packet key v1", sealer.label()]);
        let key = Self::from_raw(&raw);
        raw.zeroize();
        key
    }

    fn from_raw(raw: &[u8; 32]) -> Self {
        match UnboundKey::new(&CHACHA20_POLY1305, raw) {
            Ok(key) => Self(LessSafeKey::new(key)),
            Err(_) => unreachable!("a ChaCha20 key has 32 bytes (RFC 8439)"),
        }
    }

    /// Seals what follows the header in `packet`, whose last 16 bytes become the tag.
    ///
    /// Each sequence must be used once only; a session counts them. Panics on a packet without room for
    /// header and tag: only this node makes those.
    pub fn seal(&self, sequence: u64, packet: &mut [u8]) {
        let Some((header, rest)) = packet.split_first_chunk_mut::<HEADER_BYTES>() else {
            unreachable!("the packet is built with a header")
        };
        let Some((payload, tag)) = rest.split_last_chunk_mut::<TAG_BYTES>() else {
            unreachable!("the packet is built with room for the tag")
        };
        *tag = self.seal_with(nonce(sequence), &Header::associated_data(header), payload);
    }

    fn seal_with(&self, nonce: Nonce, associated: &[u8], payload: &mut [u8]) -> [u8; TAG_BYTES] {
        let sealed = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(associated), payload);
        let tag = sealed.ok().and_then(|tag| tag.as_ref().try_into().ok());
        match tag {
            Some(tag) => tag,
            None => unreachable!("a packet is far below the cipher's largest message"),
        }
    }

    /// Opens in place what follows the header, and gives the clear payload.
    ///
    /// # Errors
    /// [`Forged`]: nothing in `sealed` may be believed then.
    pub fn open<'a>(
        &self,
        header: &[u8; HEADER_BYTES],
        sequence: u64,
        sealed: &'a mut [u8],
    ) -> Result<&'a [u8], Forged> {
        self.open_with(nonce(sequence), &Header::associated_data(header), sealed)
    }

    fn open_with<'a>(
        &self,
        nonce: Nonce,
        associated: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a [u8], Forged> {
        match self.0.open_in_place(nonce, Aad::from(associated), sealed) {
            Ok(clear) => Ok(clear),
            Err(_) => Err(Forged),
        }
    }
}

/// 4 zero bytes and the sequence.
fn nonce(sequence: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&sequence.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// One key epoch: its number, its secret, and both directions' keys.
pub(crate) struct Epoch {
    pub(crate) number: u64,
    secret: Zeroizing<[u8; 32]>,
    pub(crate) sealing: PacketKey,
    pub(crate) opening: PacketKey,
}

impl Epoch {
    fn new(number: u64, secret: Zeroizing<[u8; 32]>, role: Role) -> Self {
        let sealing = PacketKey::new(&secret, role);
        let opening = PacketKey::new(&secret, role.other());
        Self {
            number,
            secret,
            sealing,
            opening,
        }
    }

    /// Epoch 0, from both halves of the Noise split; `context` is what else both ends must have
    /// seen alike.
    pub(crate) fn first(split: &([u8; 32], [u8; 32]), context: &[u8], role: Role) -> Self {
        let secret = keyed(&split.0, &[b"virga epoch 0 v1", &split.1, context]);
        Self::new(0, Zeroizing::new(secret), role)
    }

    /// The next epoch: the old secret keys a hash of a fresh DH. `None` when the peer's public key
    /// is one that makes the DH a constant.
    pub(crate) fn next(&self, own: &StaticSecret, peer: &[u8; 32], role: Role) -> Option<Self> {
        let shared = own.diffie_hellman(&PublicKey::from(*peer));
        if !shared.was_contributory() {
            return None;
        }
        let number = self.number + 1;
        let number_bytes = number.to_be_bytes();
        let message: [&[u8]; 3] = [b"virga epoch v1", &number_bytes, shared.as_bytes()];
        Some(Self::new(
            number,
            Zeroizing::new(keyed(&*self.secret, &message)),
            role,
        ))
    }

    /// The next epoch, with the secret of a KEM mixed in: see [`crate::hybrid`].
    pub(crate) fn hybrid(&self, transcript: &[&[u8]; 3], shared: &[u8], role: Role) -> Self {
        let [hash, key, ciphertext] = *transcript;
        let message = [b"virga hybrid v1", hash, key, ciphertext, shared];
        let secret = Zeroizing::new(keyed(&*self.secret, &message));
        Self::new(self.number + 1, secret, role)
    }

    /// Tells the peer that this end has the epoch's secret, and nobody else anything.
    pub(crate) fn confirmation(&self) -> [u8; 16] {
        first_16(&keyed(&*self.secret, &[b"virga hybrid confirm v1"]))
    }

    /// What headers carry as `key_phase`.
    pub(crate) const fn phase(&self) -> u8 {
        self.number.to_le_bytes()[0]
    }
}

/// Makes reset tokens: from the node's own secret key, so that it still can after a restart.
pub(crate) struct ResetKey(Zeroizing<[u8; 32]>);

impl ResetKey {
    pub(crate) fn new(node_key: &[u8; 32]) -> Self {
        Self(Zeroizing::new(keyed(node_key, &[b"virga reset key v1"])))
    }

    /// The token that says "I no longer know `session`".
    pub(crate) fn token(&self, session: SessionId) -> [u8; 16] {
        first_16(&keyed(
            &*self.0,
            &[b"virga reset v1", &session.0.to_be_bytes()],
        ))
    }
}

/// The first half of a hash.
pub(crate) fn first_16(hash: &[u8; 32]) -> [u8; 16] {
    core::array::from_fn(|i| hash[i])
}

/// Compares without telling by its time where two secrets differ.
#[must_use]
pub(crate) fn same(a: &[u8; 16], b: &[u8; 16]) -> bool {
    let differing = a.iter().zip(b).fold(0, |all, (x, y)| all | (x ^ y));
    core::hint::black_box(differing) == 0
}

#[cfg(test)]
#[path = "tests/keys.rs"]
mod tests;
