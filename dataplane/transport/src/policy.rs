//! How sessions begin: by which Noise pattern, and whether ML-KEM-768 is mixed into their keys.
//!
//! Each end sends its offer, one byte, as Noise payload of its first message: the transcript binds both, so
//! that whoever strips one leaves two ends that agree on nothing. Nothing is negotiated down: the initiator
//! chooses the pattern, the responder takes it or refuses, and an end that requires ML-KEM has no session
//! without it.
//!
//! ```text
//!  bits 0–1   ML-KEM-768: 0 off, 1 preferred, 2 required
//!  bit 2      takes NKpsk0 from its peer
//!  bits 3–7   0
//! ```

use thiserror::Error;
use virga_ebpf::header::NodeId;

/// A Noise pattern (revision 34, section 7.5, psk modifiers of section 9); all mix in the network's
/// pre-shared key, over 25519, ChaChaPoly and BLAKE2s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pattern {
    /// NKpsk0: the initiator knows the responder's node key, and proves none of its own.
    Nk,
    /// IKpsk1: the initiator knows the responder's node key, and proves its own at once.
    Ik,
    /// XXpsk3: neither needs the other's node key; both are proven before the session is. One message more.
    Xx,
}

impl Pattern {
    /// All of them; the place of each, counted from 1, is its suite on the wire.
    pub const ALL: [Self; 3] = [Self::Nk, Self::Ik, Self::Xx];

    /// As the configuration spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nk => "nk",
            Self::Ik => "ik",
            Self::Xx => "xx",
        }
    }

    pub(crate) const fn noise(self) -> &'static str {
        match self {
            Self::Nk => "Noise_NKpsk0_25519_ChaChaPoly_BLAKE2s",
            Self::Ik => "Noise_IKpsk1_25519_ChaChaPoly_BLAKE2s",
            Self::Xx => "Noise_XXpsk3_25519_ChaChaPoly_BLAKE2s",
        }
    }

    /// Where the pre-shared key is mixed in.
    pub(crate) const fn psk_at(self) -> u8 {
        match self {
            Self::Nk => 0,
            Self::Ik => 1,
            Self::Xx => 3,
        }
    }

    pub(crate) const fn suite(self) -> u8 {
        self as u8 + 1
    }

    pub(crate) fn from_suite(suite: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.suite() == suite)
    }
}

/// Whether sessions mix ML-KEM-768 (FIPS 203) into their keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Pq {
    /// Never.
    Off,
    /// Where the peer does not have it off.
    #[default]
    Preferred,
    /// Always: with a peer that has it off there is no session.
    Required,
}

impl Pq {
    /// All of them; the place of each is its number on the wire.
    pub const ALL: [Self; 3] = [Self::Off, Self::Preferred, Self::Required];

    /// As the configuration spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Preferred => "preferred",
            Self::Required => "required",
        }
    }
}

/// How sessions begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HandshakePolicy {
    /// What this node begins with. None: IK where it knows the peer's node key, XX where it does not. Without
    /// the key it is always XX. A node that names IK or XX takes no NK.
    pub pattern: Option<Pattern>,
    /// Whether ML-KEM-768 is mixed in.
    pub pq: Pq,
}

impl HandshakePolicy {
    /// What it begins a session with.
    pub(crate) const fn begins_with(self, is_key_known: bool) -> Pattern {
        match (self.pattern, is_key_known) {
            (_, false) => Pattern::Xx,
            (None, true) => Pattern::Ik,
            (Some(pattern), true) => pattern,
        }
    }

    /// What it tells its peer.
    pub(crate) const fn offer(self) -> Offer {
        Offer {
            pq: self.pq,
            takes_nk: matches!(self.pattern, None | Some(Pattern::Nk)),
        }
    }

    /// Whether a session that began by `pattern` mixes ML-KEM in, by this end's policy and the other's offer.
    pub(crate) fn judge(self, pattern: Pattern, theirs: Offer) -> Result<bool, Conflict> {
        let own = self.offer();
        match (own.pq, theirs.pq) {
            _ if pattern == Pattern::Nk && !own.takes_nk => Err(Conflict::PatternRefusedHere),
            _ if pattern == Pattern::Nk && !theirs.takes_nk => Err(Conflict::PatternRefusedThere),
            (Pq::Required, Pq::Off) => Err(Conflict::PqRequiredHere),
            (Pq::Off, Pq::Required) => Err(Conflict::PqRequiredThere),
            (Pq::Off, _) | (_, Pq::Off) => Ok(false),
            _ => Ok(true),
        }
    }
}

/// What an end tells the other of its policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) pq: Pq,
    pub(crate) takes_nk: bool,
}

impl Offer {
    pub(crate) const fn byte(self) -> u8 {
        self.pq as u8 | (self.takes_nk as u8) << 2
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        let pq = *Pq::ALL.get(usize::from(byte & 3))?;
        let takes_nk = byte & 4 != 0;
        (byte & !7 == 0).then_some(Self { pq, takes_nk })
    }
}

/// Why two policies give no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Conflict {
    /// The peer began with NK, or this node would against its own policy.
    #[error("the session was begun with pattern nk, and this node's policy asks for more")]
    PatternRefusedHere,
    /// The peer takes no NK.
    #[error("this node begins with pattern nk, and the peer's policy asks for more")]
    PatternRefusedThere,
    /// The peer has ML-KEM off.
    #[error("this node requires ML-KEM-768 (pq = \"required\"), and the peer has it off")]
    PqRequiredHere,
    /// This node has ML-KEM off.
    #[error("the peer requires ML-KEM-768 (pq = \"required\"), and this node has it off")]
    PqRequiredThere,
}

impl Conflict {
    /// What an operator of this node can do about it.
    #[must_use]
    pub const fn fix(self) -> &'static str {
        match self {
            Self::PatternRefusedHere => {
                "set `pattern` to \"auto\", \"ik\" or \"xx\" on the peer, or to \"auto\" or \"nk\" for it here"
            }
            Self::PatternRefusedThere => {
                "set `pattern` to \"auto\", \"ik\" or \"xx\" for the peer here"
            }
            Self::PqRequiredHere => {
                "set `pq` to \"preferred\" or \"required\" on the peer, or to \"preferred\" for it here"
            }
            Self::PqRequiredThere => "set `pq` to \"preferred\" or \"required\" for the peer here",
        }
    }
}

/// A peer's node: by its key, or before the first contact by its id alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerKey {
    /// Its X25519 public key.
    Known([u8; 32]),
    /// What its key hashes to: the first session begins with XX, which tells the key. What is trusted is the
    /// entity's signature over that handshake, not the id.
    Id(NodeId),
}

impl PeerKey {
    /// What headers call the node.
    #[must_use]
    pub fn id(&self) -> NodeId {
        match self {
            Self::Known(key) => virga_ebpf::hash::node_id(key),
            Self::Id(id) => *id,
        }
    }

    /// The key, where it is known.
    #[must_use]
    pub const fn known(&self) -> Option<[u8; 32]> {
        match self {
            Self::Known(key) => Some(*key),
            Self::Id(_) => None,
        }
    }
}

impl From<[u8; 32]> for PeerKey {
    fn from(key: [u8; 32]) -> Self {
        Self::Known(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(pattern: Option<Pattern>, pq: Pq) -> HandshakePolicy {
        HandshakePolicy { pattern, pq }
    }

    #[test]
    fn an_offer_is_one_byte_and_no_other_byte_is_an_offer() {
        let mut read = 0;
        for byte in 0..=u8::MAX {
            if let Some(offer) = Offer::from_byte(byte) {
                assert_eq!(offer.byte(), byte);
                read += 1;
            }
        }
        assert_eq!(read, 6);
    }

    #[test]
    fn both_ends_come_to_the_same_or_to_mirrored_conflicts() {
        let patterns = [
            None,
            Some(Pattern::Nk),
            Some(Pattern::Ik),
            Some(Pattern::Xx),
        ];
        let mut conflicts = 0;
        for (a, b) in patterns.iter().flat_map(|&a| patterns.map(|b| (a, b))) {
            for (p, q) in Pq::ALL.iter().flat_map(|&p| Pq::ALL.map(|q| (p, q))) {
                let (a, b) = (policy(a, p), policy(b, q));
                for pattern in Pattern::ALL {
                    let (here, there) = (a.judge(pattern, b.offer()), b.judge(pattern, a.offer()));
                    assert_eq!(here.is_ok(), there.is_ok(), "{a:?} {b:?} {pattern:?}");
                    if let (Ok(here), Ok(there)) = (here, there) {
                        assert_eq!(here, there);
                        assert_eq!(here, p != Pq::Off && q != Pq::Off);
                    } else {
                        conflicts += 1;
                    }
                }
            }
        }
        assert!(conflicts > 0);
    }

    #[test]
    fn without_the_key_it_is_xx_and_with_it_as_configured() {
        for pattern in [
            None,
            Some(Pattern::Nk),
            Some(Pattern::Ik),
            Some(Pattern::Xx),
        ] {
            let policy = policy(pattern, Pq::Off);
            assert_eq!(policy.begins_with(false), Pattern::Xx);
            assert_eq!(policy.begins_with(true), pattern.unwrap_or(Pattern::Ik));
        }
    }
}
