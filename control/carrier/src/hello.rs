//! Who is at the other end: shown by both, over fresh numbers, before any packet passes.
//!
//! ```text
//!  dials                                                                        listens
//!     │ LABEL (8) │ own node id (8) │ the other's (8) │ random (32)                 │
//!     │ ─────────────────────────────────────────────────────────────────────────► │
//!     │                                               random (32) │ proof (32)      │
//!     │ ◄───────────────────────────────────────────────────────────────────────── │
//!     │ proof (32)                                                                  │
//!     │ ─────────────────────────────────────────────────────────────────────────► │
//! ```
//!
//! A proof is a keyed BLAKE2s over all before and the prover's part; its key comes of the Diffie-Hellman of both node
//! keys, the network's PSK and its name. So a connection of somebody else costs a look-up and a MAC, replays prove
//! nothing, and no packet of a stranger's comes near a worker. Who sits on the way can write into the connection
//! afterwards, as it can write datagrams: each packet has its own seal. So this replaces nothing of the mesh's own
//! handshake, which runs inside unchanged and alone gives keys.

use std::{collections::BTreeMap, sync::Arc};
use virga_ebpf::{hash::keyed, header::NodeId};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// What a connection begins with; the digit is the version.
pub const LABEL: &[u8; 8] = b"virga-c1";
/// Bytes of the first message,
pub const FIRST_BYTES: usize = 56;
/// of the second,
pub const SECOND_BYTES: usize = 64;
/// and of the third.
pub const THIRD_BYTES: usize = 32;
const DOMAIN: &[u8] = b"virga carrier v1";

/// Which end speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Dials,
    Listens,
}

/// Why the other end is not who it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Not a carrier's first message.
    #[error("what it says is not what a carrier says")]
    Garbage,
    /// Not a neighbour, or another node is meant.
    #[error("it is no neighbour of this node's configuration, or means another node")]
    Unknown,
    /// The proof is wrong.
    #[error(
        "it has not proven its node key and the network's PSK: compare `virga id` and psk_file"
    )]
    Proof,
}

/// What this node and each neighbour prove to each other with. Cheap to clone.
#[derive(Clone)]
pub struct Keyring {
    own: NodeId,
    keys: Arc<BTreeMap<NodeId, Zeroizing<[u8; 32]>>>,
}

impl Keyring {
    /// The keys with these neighbours: their ids and node keys, public halves.
    #[must_use]
    pub fn new(
        (own, secret): (NodeId, &[u8; 32]),
        (network, psk): (&str, &[u8; 32]),
        neighbours: impl IntoIterator<Item = (NodeId, [u8; 32])>,
    ) -> Self {
        let secret = StaticSecret::from(*secret);
        let key = |public: [u8; 32]| {
            let shared = secret.diffie_hellman(&PublicKey::from(public));
            let parts: [&[u8]; 3] = [shared.as_bytes(), psk, network.as_bytes()];
            Zeroizing::new(keyed(DOMAIN, &parts))
        };
        let neighbours = neighbours.into_iter();
        let keys = neighbours.map(|(id, public)| (id, key(public)));
        Self {
            own,
            keys: Arc::new(keys.collect()),
        }
    }

    /// This node.
    #[must_use]
    pub const fn own(&self) -> NodeId {
        self.own
    }

    /// The dialling end's first message to `peer`.
    #[must_use]
    pub fn begin(&self, peer: NodeId, random: [u8; 32]) -> [u8; FIRST_BYTES] {
        let mut first = [0; FIRST_BYTES];
        first[..8].copy_from_slice(LABEL);
        first[8..16].copy_from_slice(&self.own.0.to_be_bytes());
        first[16..24].copy_from_slice(&peer.0.to_be_bytes());
        first[24..].copy_from_slice(&random);
        first
    }

    /// The listening end's answer, and who is to prove itself.
    ///
    /// # Errors
    /// [`HelloError`]; nothing is answered then.
    pub fn answer(
        &self,
        first: &[u8],
        random: [u8; 32],
    ) -> Result<(NodeId, [u8; SECOND_BYTES]), HelloError> {
        let id = |at: usize| {
            let bytes: Option<&[u8; 8]> = first.get(at..).and_then(<[u8]>::first_chunk);
            bytes.map(|bytes| NodeId(u64::from_be_bytes(*bytes)))
        };
        if first.len() != FIRST_BYTES || !first.starts_with(LABEL) {
            return Err(HelloError::Garbage);
        }
        let (Some(peer), Some(meant)) = (id(8), id(16)) else {
            return Err(HelloError::Garbage);
        };
        let key = self.keys.get(&peer).filter(|_| meant == self.own);
        let key = key.ok_or(HelloError::Unknown)?;
        let mut second = [0; SECOND_BYTES];
        second[..32].copy_from_slice(&random);
        let proof = proof(key, Role::Listens, first, &second[..32]);
        second[32..].copy_from_slice(&proof);
        Ok((peer, second))
    }

    /// The dialling end's own proof, once `peer` has proven itself.
    ///
    /// # Errors
    /// [`HelloError`].
    pub fn finish(
        &self,
        peer: NodeId,
        first: &[u8; FIRST_BYTES],
        second: &[u8; SECOND_BYTES],
    ) -> Result<[u8; THIRD_BYTES], HelloError> {
        let key = self.keys.get(&peer).ok_or(HelloError::Unknown)?;
        let expected = proof(key, Role::Listens, first, &second[..32]);
        if !is_same(&expected, &second[32..]) {
            return Err(HelloError::Proof);
        }
        Ok(proof(key, Role::Dials, first, second))
    }

    /// The listening end's last look: whether `peer` has proven itself.
    ///
    /// # Errors
    /// [`HelloError`].
    pub fn check(
        &self,
        peer: NodeId,
        first: &[u8],
        second: &[u8; SECOND_BYTES],
        third: &[u8],
    ) -> Result<(), HelloError> {
        let key = self.keys.get(&peer).ok_or(HelloError::Unknown)?;
        match is_same(&proof(key, Role::Dials, first, second), third) {
            true => Ok(()),
            false => Err(HelloError::Proof),
        }
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Keyring({} neighbours)", self.keys.len())
    }
}

fn proof(key: &[u8; 32], role: Role, first: &[u8], second: &[u8]) -> [u8; 32] {
    let role: &[u8] = match role {
        Role::Dials => b"dials",
        Role::Listens => b"listens",
    };
    keyed(key, &[role, first, second])
}

/// In a time that does not depend on where they differ.
fn is_same(expected: &[u8; 32], told: &[u8]) -> bool {
    told.len() == 32
        && expected
            .iter()
            .zip(told)
            .fold(0, |all, (a, b)| all | (a ^ b))
            == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [NodeId; 2] = [NodeId(1), NodeId(2)];

    fn public(secret: [u8; 32]) -> [u8; 32] {
        PublicKey::from(&StaticSecret::from(secret)).to_bytes()
    }

    /// The keyring of node `at` (0 or 1), whose secret is `own`, and which believes the other's to be `others`.
    fn keyring(at: usize, own: u8, others: u8, network: &str, psk: u8) -> Keyring {
        let other = (IDS[1 - at], public([others; 32]));
        Keyring::new((IDS[at], &[own; 32]), (network, &[psk; 32]), [other])
    }

    fn meet(dials: &Keyring, listens: &Keyring) -> Result<(), HelloError> {
        let first = dials.begin(IDS[1], [5; 32]);
        let (peer, second) = listens.answer(&first, [6; 32])?;
        assert_eq!(peer, IDS[0]);
        let third = dials.finish(IDS[1], &first, &second)?;
        listens.check(peer, &first, &second, &third)
    }

    #[test]
    fn two_that_know_each_other_meet_and_no_others() {
        let listens = keyring(1, 11, 10, "net", 3);
        assert_eq!(meet(&keyring(0, 10, 11, "net", 3), &listens), Ok(()));
        for wrong in [
            keyring(0, 9, 11, "net", 3),
            keyring(0, 10, 9, "net", 3),
            keyring(0, 10, 11, "ten", 3),
            keyring(0, 10, 11, "net", 4),
        ] {
            assert_eq!(meet(&wrong, &listens), Err(HelloError::Proof));
        }
        let stranger = Keyring::new((IDS[1], &[11; 32]), ("net", &[3; 32]), []);
        let dials = keyring(0, 10, 11, "net", 3);
        assert_eq!(meet(&dials, &stranger), Err(HelloError::Unknown));
    }

    #[test]
    fn a_proof_counts_for_one_meeting_and_one_end() {
        let (dials, listens) = (keyring(0, 10, 11, "net", 3), keyring(1, 11, 10, "net", 3));
        let first = dials.begin(IDS[1], [5; 32]);
        let (peer, second) = listens.answer(&first, [6; 32]).unwrap();
        let third = dials.finish(IDS[1], &first, &second).unwrap();
        let (_, again) = listens.answer(&first, [7; 32]).unwrap();
        let replayed = listens.check(peer, &first, &again, &third);
        assert_eq!(replayed, Err(HelloError::Proof));
        let reflected = listens.check(peer, &first, &second, &second[32..]);
        assert_eq!(reflected, Err(HelloError::Proof));
        let elsewhere = dials.begin(NodeId(3), [5; 32]);
        let meant = listens.answer(&elsewhere, [6; 32]);
        assert_eq!(meant, Err(HelloError::Unknown));
    }

    #[test]
    fn anything_else_is_garbage() {
        let listens = keyring(1, 11, 10, "net", 3);
        let first = keyring(0, 10, 11, "net", 3).begin(IDS[1], [5; 32]);
        for bytes in [&first[..55], b"GET / HTTP/1.1\r\n", &[0; FIRST_BYTES], b""] {
            assert_eq!(listens.answer(bytes, [0; 32]), Err(HelloError::Garbage));
        }
    }
}
