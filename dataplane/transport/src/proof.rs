//! Proof of an entity: its signature over the handshake, sealed on the control stream.

use crate::{frame::Proof, keys::Role};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use virga_ebpf::header::NodeId;

const DOMAIN: &[u8] = b"virga entity proof v1";

/// What a proof speaks of: the handshake's hash, and the two nodes by role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) hash: [u8; 32],
    pub(crate) initiator: NodeId,
    pub(crate) responder: NodeId,
}

impl Subject {
    fn message(&self, prover: Role) -> Vec<u8> {
        let mut message = DOMAIN.to_vec();
        message.extend_from_slice(&self.hash);
        message.extend_from_slice(prover.label());
        message.extend_from_slice(&self.initiator.0.to_be_bytes());
        message.extend_from_slice(&self.responder.0.to_be_bytes());
        message
    }

    /// The proof of the entity that holds `key`.
    pub(crate) fn prove(&self, prover: Role, key: &SigningKey, reset_token: [u8; 16]) -> Proof {
        Proof {
            entity: key.verifying_key().to_bytes(),
            signature: key.sign(&self.message(prover)).to_bytes(),
            reset_token,
        }
    }

    /// Whether `proof` is the one of `entity`, by strict verification (RFC 8032 with
    /// small-order keys refused).
    pub(crate) fn verify(&self, prover: Role, entity: &[u8; 32], proof: &Proof) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(entity) else {
            return false;
        };
        let signature = Signature::from_bytes(&proof.signature);
        proof.entity == *entity && key.verify_strict(&self.message(prover), &signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_one_handshake_one_role_one_pair_and_one_entity() {
        let subject = Subject {
            hash: [1; 32],
            initiator: NodeId(2),
            responder: NodeId(3),
        };
        let key = SigningKey::from_bytes(&[4; 32]);
        let entity = key.verifying_key().to_bytes();
        let proof = subject.prove(Role::Initiator, &key, [0; 16]);
        assert!(subject.verify(Role::Initiator, &entity, &proof));
        assert!(
            !subject.verify(Role::Responder, &entity, &proof),
            "no reflection"
        );
        let swapped = Subject {
            initiator: NodeId(3),
            responder: NodeId(2),
            ..subject
        };
        assert!(!swapped.verify(Role::Initiator, &entity, &proof));
        let another = Subject {
            hash: [9; 32],
            ..subject
        };
        assert!(
            !another.verify(Role::Initiator, &entity, &proof),
            "no replay"
        );
        let other = SigningKey::from_bytes(&[5; 32]).verifying_key().to_bytes();
        assert!(!subject.verify(Role::Initiator, &other, &proof));
    }

    /// A small-order key verifies anything under lax rules; strict ones refuse it.
    #[test]
    fn a_small_order_key_proves_nothing() {
        let mut entity = [0; 32];
        entity[0] = 1;
        let subject = Subject {
            hash: [1; 32],
            initiator: NodeId(2),
            responder: NodeId(3),
        };
        let mut signature = [0; 64];
        signature[0] = 1;
        let proof = Proof {
            entity,
            signature,
            reset_token: [0; 16],
        };
        assert!(!subject.verify(Role::Initiator, &entity, &proof));
    }
}
