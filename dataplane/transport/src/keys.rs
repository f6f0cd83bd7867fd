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
        let key = UnboundKey::new(&CHACHA20_POLY1305, &raw);
        raw.zeroize();
        match key {
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
        let associated = Aad::from(Header::associated_data(header));
        let sealed = self
            .0
            .seal_in_place_separate_tag(nonce(sequence), associated, payload);
        match sealed {
            Ok(made) => tag.copy_from_slice(made.as_ref()),
            Err(_) => unreachable!("a packet is far below the cipher's largest message"),
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
        let associated = Aad::from(Header::associated_data(header));
        match self.0.open_in_place(nonce(sequence), associated, sealed) {
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
mod tests {
    use super::*;

    /// RFC 8439, 2.8.2: the AEAD itself.
    #[test]
    fn rfc_8439_vector() {
        let key: [u8; 32] = core::array::from_fn(|i| 0x80 + u8::try_from(i).unwrap());
        let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &key).unwrap());
        let nonce = [7, 0, 0, 0, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47];
        let aad = [
            0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7,
        ];
        let mut text = *b"Ladies and Gentlemen of the class of '99: If I could offer you \
            only one tip for the future, sunscreen would be it.";
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key
            .seal_in_place_separate_tag(nonce, Aad::from(aad), &mut text)
            .unwrap();
        assert_eq!(text[..8], [0xd3, 0x1a, 0x8d, 0x34, 0x64, 0x8e, 0x60, 0xdb]);
        let expected = [
            0x1a, 0xe1, 0x0b, 0x59, 0x4f, 0x09, 0xe2, 0x6a, 0x7e, 0x90, 0x2e, 0xcb, 0xd0, 0x60,
            0x06, 0x91,
        ];
        assert_eq!(tag.as_ref(), expected);
    }

    fn packet(sequence: u64) -> Vec<u8> {
        let header = Header {
            sequence,
            payload_len: 16 + 5,
            ..Header::default()
        };
        [&header.encode()[..], b"hello", &[0; 16]].concat()
    }

    fn open(key: &PacketKey, sequence: u64, packet: &[u8]) -> Result<Vec<u8>, Forged> {
        let header = packet[..64].try_into().unwrap();
        key.open(&header, sequence, &mut packet[64..].to_vec())
            .map(<[u8]>::to_vec)
    }

    #[test]
    fn what_changes_in_flight_is_not_sealed_and_the_rest_is() {
        let split = ([1; 32], [2; 32]);
        let a = Epoch::first(&split, b"", Role::Initiator);
        let b = Epoch::first(&split, b"", Role::Responder);
        let mut sealed = packet(9);
        a.sealing.seal(9, &mut sealed);
        assert_eq!(open(&b.opening, 9, &sealed).unwrap(), b"hello");
        assert_eq!(open(&b.opening, 8, &sealed), Err(Forged));
        assert_eq!(
            open(&a.opening, 9, &sealed),
            Err(Forged),
            "directions have their own keys"
        );
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            let in_flight = matches!(at, 5 | 6 | 56..=63);
            assert_eq!(
                open(&b.opening, 9, &changed).is_ok(),
                in_flight,
                "byte {at}"
            );
        }
    }

    #[test]
    fn epochs_agree_only_with_the_same_history() {
        let a0 = Epoch::first(&([1; 32], [2; 32]), b"", Role::Initiator);
        let b0 = Epoch::first(&([1; 32], [2; 32]), b"", Role::Responder);
        let c0 = Epoch::first(&([1; 32], [3; 32]), b"", Role::Responder);
        let (x, y) = (StaticSecret::from([5; 32]), StaticSecret::from([6; 32]));
        let (px, py) = (
            PublicKey::from(&x).to_bytes(),
            PublicKey::from(&y).to_bytes(),
        );
        let a1 = a0.next(&x, &py, Role::Initiator).unwrap();
        let b1 = b0.next(&y, &px, Role::Responder).unwrap();
        let c1 = c0.next(&y, &px, Role::Responder).unwrap();
        let mut sealed = packet(0);
        a1.sealing.seal(0, &mut sealed);
        assert!(open(&b1.opening, 0, &sealed).is_ok());
        assert!(
            open(&c1.opening, 0, &sealed).is_err(),
            "the old secret is mixed in"
        );
        assert!(open(&b0.opening, 0, &sealed).is_err());
        assert!(
            a0.next(&x, &[0; 32], Role::Initiator).is_none(),
            "a low-order point"
        );
    }

    #[test]
    fn reset_tokens_are_of_one_node_and_one_session() {
        let key = ResetKey::new(&[1; 32]);
        let token = key.token(SessionId(7));
        assert!(same(&token, &ResetKey::new(&[1; 32]).token(SessionId(7))));
        assert!(!same(&token, &key.token(SessionId(8))));
        assert!(!same(&token, &ResetKey::new(&[2; 32]).token(SessionId(7))));
    }
}
