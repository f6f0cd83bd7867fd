//! Who may be in which subnet: an issuer vouches for an entity, whose node says it to its peers.
//!
//! ```text
//! fields of type 4     bytes
//!   issuer                32  ed25519 public key; its signature is the object's
//!   subject               32
//!   version                8
//!   not_before             8
//!   not_after              8
//!   generation             4
//!   subnet                 4
//!   length                 1  leading bits of it that all packets share that its node brings
//! ```
//! Times are Unix seconds, the last one exclusive. Of one issuer's memberships of a subject the one with the
//! highest version counts, so that a node that moves is in one subnet at a time. An issuer takes them back as
//! it does tokens and statements (`rights::revocation`).
//!
//! Where `[subnets]` names issuers, a peer is where its `[[peers]]` block says only as long as one of them
//! vouches for it; of a neighbour that nobody vouches for, the tables let nothing in but handshakes and control
//! traffic, and its entity has no right on any channel.

mod shown;
#[cfg(test)]
mod tests;

pub use shown::Shown;

use crate::{
    capability::statement::Forged,
    config::PeerSubnet,
    hex,
    keys::EntityKey,
    rights::{
        LinkId, Revocations,
        chain::CLOCK_SKEW_S_MAX,
        revocation::Revoked,
        signed::{self, Fields, Kind, ObjectError, Writer},
    },
};
use std::collections::BTreeMap;
use thiserror::Error;
use virga_ebpf::{hash, header::Subnet};

/// Bytes of each.
pub const MEMBERSHIP_BYTES: usize = signed::PREFIX_BYTES
    + 8 * signed::LENGTH_BYTES
    + 32
    + 32
    + 3 * 8
    + 4
    + 4
    + 1
    + signed::SIGNATURE_BYTES;
/// Memberships of one entity that a node has at a time, one an issuer.
pub const MEMBERSHIPS_MAX: usize = 8;

/// What is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Public key of the entity that it is about.
    pub subject: [u8; 32],
    /// A later one replaces it.
    pub version: u64,
    /// From when, in Unix seconds.
    pub not_before_s: u64,
    /// Until when, exclusive, in Unix seconds.
    pub not_after_s: u64,
    /// Where its node is, and what it may carry.
    pub place: PeerSubnet,
}

/// A claim with its issuer's signature, which has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    issuer: [u8; 32],
    /// The issuer's generation of rights that it is one of.
    generation: u32,
    claim: Claim,
    id: LinkId,
    bytes: Box<[u8]>,
}

/// A membership as it was read: its form is right, and nothing else is known of it.
#[derive(Clone, Debug)]
pub struct Unverified(Membership);

/// Why an entity's node is not where it is said to be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unvouched {
    /// There is nothing to go by.
    #[error("nobody has vouched for its subnet")]
    Nobody,
    /// Anybody can sign something.
    #[error("{} vouches for its subnet, who is none of [subnets] issuers", hex::encode(.0))]
    Issuer([u8; 32]),
    /// It may be in another place.
    #[error("it is vouched for in {said}, and configured in {asked}")]
    Elsewhere {
        /// Where it may be.
        said: PeerSubnet,
        /// Where it is said to be.
        asked: PeerSubnet,
    },
    /// It begins later.
    #[error("its membership of the subnet begins in {seconds} s")]
    NotYetValid {
        /// How much later.
        seconds: u64,
    },
    /// It has ended.
    #[error("its membership of the subnet ended {seconds} s ago")]
    Expired {
        /// How long ago.
        seconds: u64,
    },
    /// Its issuer has taken it back.
    #[error("its membership of the subnet was revoked: {0}")]
    Revoked(Revoked),
}

impl Membership {
    /// Signs one.
    #[must_use]
    pub fn issue(claim: Claim, generation: u32, issuer: &EntityKey) -> Self {
        let PeerSubnet { subnet, mask } = claim.place;
        let length = u8::try_from(mask.leading_ones()).unwrap_or(u8::MAX);
        let bytes = Writer::new(Kind::Membership)
            .field(&issuer.public)
            .field(&claim.subject)
            .field(&claim.version.to_be_bytes())
            .field(&claim.not_before_s.to_be_bytes())
            .field(&claim.not_after_s.to_be_bytes())
            .field(&generation.to_be_bytes())
            .field(&subnet.0.to_be_bytes())
            .field(&[length])
            .sign(issuer);
        Self::with(issuer.public, generation, claim, &bytes)
    }

    fn with(issuer: [u8; 32], generation: u32, claim: Claim, bytes: &[u8]) -> Self {
        debug_assert_eq!(bytes.len(), MEMBERSHIP_BYTES);
        let digest = hash::keyed(b"virga subnet v1", &[bytes]);
        Self {
            issuer,
            generation,
            claim,
            id: LinkId(std::array::from_fn(|i| digest[i])),
            bytes: bytes.into(),
        }
    }

    /// Reads one, all of `bytes`.
    ///
    /// # Errors
    /// [`ObjectError`]: what is wrong with its form.
    pub fn parse(bytes: &[u8]) -> Result<Unverified, ObjectError> {
        let mut fields = Fields::of(Kind::Membership, bytes)?;
        let (issuer, subject) = (fields.array("issuer")?, fields.array("subject")?);
        let version = fields.u64("version")?;
        let (not_before_s, not_after_s) = (fields.u64("not_before")?, fields.u64("not_after")?);
        let generation = fields.u32("generation")?;
        let subnet = Subnet(fields.u32("subnet")?);
        let length = fields.byte("length")?;
        fields.end()?;
        if length > 32 {
            let what = format!("is {length}, and a subnet has 32 bits");
            let field = "length";
            return Err(ObjectError::Field { field, what });
        }
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        let claim = Claim {
            subject,
            version,
            not_before_s,
            not_after_s,
            place: PeerSubnet { subnet, mask },
        };
        Ok(Unverified(Self::with(issuer, generation, claim, bytes)))
    }

    /// Who vouches.
    #[must_use]
    pub const fn issuer(&self) -> &[u8; 32] {
        &self.issuer
    }

    /// What is said.
    #[must_use]
    pub const fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The issuer's generation of rights.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// What it is called in revocation lists: the first 16 bytes of BLAKE2s-MAC(key "virga subnet v1", all
    /// its bytes).
    #[must_use]
    pub const fn id(&self) -> LinkId {
        self.id
    }

    /// All its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether it says that its subject's node is there.
    ///
    /// # Errors
    /// [`Unvouched`]: the first thing that is in the way.
    pub fn counts(&self, asked: PeerSubnet, trust: &Trust<'_>) -> Result<(), Unvouched> {
        let claim = &self.claim;
        if !trust.issuers.contains(&self.issuer) {
            return Err(Unvouched::Issuer(self.issuer));
        }
        if trust.now_s.saturating_add(CLOCK_SKEW_S_MAX) < claim.not_before_s {
            let seconds = claim.not_before_s - trust.now_s;
            return Err(Unvouched::NotYetValid { seconds });
        }
        if trust.now_s >= claim.not_after_s {
            let seconds = trust.now_s - claim.not_after_s;
            return Err(Unvouched::Expired { seconds });
        }
        let (subject, generation) = (&claim.subject, self.generation);
        let revocations = trust.revocations;
        let revoked = revocations.revoke(&self.issuer, subject, generation, self.id);
        if let Some(what) = revoked.or_else(|| revocations.retire(&self.issuer, trust.now_s)) {
            return Err(Unvouched::Revoked(what));
        }
        let said = claim.place;
        // All that it carries there it may carry.
        match said.subnet == asked.subnet && said.mask & asked.mask == said.mask {
            true => Ok(()),
            false => Err(Unvouched::Elsewhere { said, asked }),
        }
    }

    /// Orders memberships of one subject by one issuer, so that of any two that differ one is later.
    fn rank(&self) -> (u64, &[u8]) {
        (self.claim.version, &self.bytes)
    }
}

impl Unverified {
    /// What it claims to be, to be looked at before the signature is.
    #[must_use]
    pub const fn claimed(&self) -> &Membership {
        &self.0
    }

    /// Verifies its signature.
    ///
    /// # Errors
    /// [`Forged`].
    pub fn verify(self) -> Result<Membership, Forged> {
        match signed::is_signed_by(&self.0.bytes, &self.0.issuer) {
            true => Ok(self.0),
            false => Err(Forged(self.0.issuer)),
        }
    }
}

/// By what memberships are judged.
#[derive(Clone, Copy, Debug)]
pub struct Trust<'a> {
    /// Whose word counts; where there is nobody, nobody is asked.
    pub issuers: &'a [[u8; 32]],
    /// Unix time in seconds.
    pub now_s: u64,
    /// What they have taken back.
    pub revocations: &'a Revocations,
}

/// The latest membership of each subject by each issuer. However they come, the same ones are left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memberships(BTreeMap<([u8; 32], [u8; 32]), Membership>);

impl Memberships {
    /// Takes one in, and says whether it is later than what was known of its issuer and subject.
    pub fn learn(&mut self, membership: Membership) -> bool {
        let is_later = !self.has(&membership);
        if is_later {
            let place = (membership.claim.subject, membership.issuer);
            self.0.insert(place, membership);
        }
        is_later
    }

    /// Forgets what has ended.
    pub fn expire(&mut self, now_s: u64) {
        self.0.retain(|_, one| one.claim.not_after_s > now_s);
    }

    /// Whether this one, or a later one in its place, is known.
    #[must_use]
    pub fn has(&self, membership: &Membership) -> bool {
        let known = self.0.get(&(membership.claim.subject, membership.issuer));
        known.is_some_and(|known| known.rank() >= membership.rank())
    }

    /// Whether one more of its subject and issuer would take another's place.
    #[must_use]
    pub fn replaces(&self, membership: &Membership) -> bool {
        let place = (membership.claim.subject, membership.issuer);
        self.0.contains_key(&place)
    }

    /// Whether an issuer vouches for a subject there.
    ///
    /// # Errors
    /// [`Unvouched`]: what is in the way of the last one that was looked at.
    pub fn vouch(
        &self,
        subject: &[u8; 32],
        asked: PeerSubnet,
        trust: &Trust<'_>,
    ) -> Result<(), Unvouched> {
        if trust.issuers.is_empty() {
            return Ok(());
        }
        // By the key that it has now, or one that it had.
        let keys = [*subject]
            .into_iter()
            .chain(trust.revocations.before(subject));
        let all = keys.flat_map(|key| self.0.range((key, [0; 32])..=(key, [u8::MAX; 32])));
        let mut found = Err(Unvouched::Nobody);
        for (_, membership) in all {
            found = membership.counts(asked, trust);
            if found.is_ok() {
                break;
            }
        }
        found
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, by subject.
    pub fn iter(&self) -> impl Iterator<Item = &Membership> {
        self.0.values()
    }
}
