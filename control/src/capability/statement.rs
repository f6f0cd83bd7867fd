//! Signed words about what an entity is and has: an issuer's statement, or its own announcement.
//!
//! ```text
//! statement, type 3         bytes     announcement, type 8      bytes
//!   issuer                     32
//!   subject                    32       subject                    32
//!   version                     8       version                     8
//!   not_before                  8       not_before                  8
//!   not_after                   8       not_after                   8
//!   generation                  4
//!   each capability       2 - 129       each capability       2 - 129
//! ```
//! A capability is the length of its key (1 byte), the key, and its value; a tag has none. They are sorted
//! by key, each once. Times are Unix seconds, the last one exclusive. The issuer signs a statement, the
//! subject an announcement. Of each issuer's statements about a subject, and of a subject's announcements,
//! the one with the highest version counts. An issuer takes a statement back by the list that takes back
//! its tokens, by the statement's id, its subject, or its generation (`rights::revocation`).

use super::value::{Capabilities, Capability, CapabilityError, Key, Value};
use crate::{
    keys::EntityKey,
    rights::{
        LinkId, Revocations,
        chain::CLOCK_SKEW_S_MAX,
        revocation::Revoked,
        signed::{self, Fields, Kind, ObjectError, Writer},
    },
};
use std::{collections::BTreeMap, fmt};
use thiserror::Error;
use virga_ebpf::hash;

/// Bytes of the largest one.
pub const STATEMENT_BYTES_MAX: usize = signed::PREFIX_BYTES
    + 6 * signed::LENGTH_BYTES
    + 32
    + 32
    + 8
    + 8
    + 8
    + 4
    + super::value::CAPABILITIES_MAX
        * (signed::LENGTH_BYTES + 1 + super::value::KEY_BYTES_MAX + super::value::VALUE_BYTES_MAX)
    + signed::SIGNATURE_BYTES;

/// Who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// The subject itself: for others to find it, and never a reason to let it in.
    Itself,
    /// An issuer.
    Issuer([u8; 32]),
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Public key of the entity that it is about.
    pub subject: [u8; 32],
    /// A later one replaces it.
    pub version: u64,
    /// From when, in Unix seconds.
    pub not_before_s: u64,
    /// Until when, exclusive, in Unix seconds.
    pub not_after_s: u64,
    /// What the subject is and has.
    pub capabilities: Capabilities,
}

/// A claim with its signer's signature, which has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    by: By,
    /// The issuer's generation of rights that it is one of.
    generation: u32,
    claim: Claim,
    id: LinkId,
    bytes: Box<[u8]>,
}

/// A statement as it was read: its form is right, and nothing else is known of it.
#[derive(Clone, Debug)]
pub struct Unverified(Statement);

/// Whoever should have signed it did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("it is not signed by {}", crate::hex::encode(.0))]
pub struct Forged(pub [u8; 32]);

/// Why a statement is no reason to let anyone in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discounted {
    /// The entity says it of itself.
    Itself,
    /// The channel does not trust its issuer.
    Issuer([u8; 32]),
    /// It begins later.
    NotYetValid {
        /// How much later.
        seconds: u64,
    },
    /// It has ended.
    Expired {
        /// How long ago.
        seconds: u64,
    },
    /// Its issuer has taken it back.
    Revoked(Revoked),
}

impl fmt::Display for Discounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Itself => f.write_str("it only says so itself"),
            Self::Issuer(key) => {
                let issuer = crate::hex::encode(key);
                write!(
                    f,
                    "{issuer} says so, whom the channel does not trust with it"
                )
            }
            Self::NotYetValid { seconds } => {
                write!(f, "a statement that says so begins in {seconds} s")
            }
            Self::Expired { seconds } => {
                write!(f, "a statement that says so ended {seconds} s ago")
            }
            Self::Revoked(what) => write!(f, "a statement that says so was revoked: {what}"),
        }
    }
}

impl Statement {
    /// An issuer's statement.
    #[must_use]
    pub fn issue(claim: Claim, generation: u32, issuer: &EntityKey) -> Self {
        let by = By::Issuer(issuer.public);
        Self::sign(by, generation, claim, issuer)
    }

    /// An entity's own announcement; the subject is the signer, whatever the claim says.
    #[must_use]
    pub fn announce(mut claim: Claim, entity: &EntityKey) -> Self {
        claim.subject = entity.public;
        Self::sign(By::Itself, 0, claim, entity)
    }

    fn sign(by: By, generation: u32, claim: Claim, signer: &EntityKey) -> Self {
        let writer = match by {
            By::Issuer(issuer) => Writer::new(Kind::Statement).field(&issuer),
            By::Itself => Writer::new(Kind::Announcement),
        };
        let writer = writer
            .field(&claim.subject)
            .field(&claim.version.to_be_bytes())
            .field(&claim.not_before_s.to_be_bytes())
            .field(&claim.not_after_s.to_be_bytes());
        let writer = match by {
            By::Issuer(_) => writer.field(&generation.to_be_bytes()),
            By::Itself => writer,
        };
        let all = claim.capabilities.as_slice().iter();
        let bytes = all.fold(writer, |writer, one| writer.field(&encode(one)));
        Self::with(by, generation, claim, bytes.sign(signer))
    }

    fn with(by: By, generation: u32, claim: Claim, bytes: Vec<u8>) -> Self {
        debug_assert!(bytes.len() <= STATEMENT_BYTES_MAX);
        Self {
            by,
            generation,
            claim,
            id: Self::id_of(&bytes),
            bytes: bytes.into(),
        }
    }

    /// What a statement of these bytes is called: see [`Statement::id`].
    #[must_use]
    pub fn id_of(bytes: &[u8]) -> LinkId {
        let digest = hash::keyed(b"virga statement v1", &[bytes]);
        LinkId(std::array::from_fn(|i| digest[i]))
    }

    /// Reads a statement or an announcement, all of `bytes`.
    ///
    /// # Errors
    /// [`ObjectError`]: what is wrong with its form.
    pub fn parse(bytes: &[u8]) -> Result<Unverified, ObjectError> {
        let kind = match bytes.get(signed::MAGIC.len()) {
            Some(&kind) if kind == Kind::Announcement as u8 => Kind::Announcement,
            _ => Kind::Statement,
        };
        let mut fields = Fields::of(kind, bytes)?;
        let by = match kind {
            Kind::Announcement => By::Itself,
            _ => By::Issuer(fields.array("issuer")?),
        };
        let subject = fields.array("subject")?;
        let version = fields.u64("version")?;
        let (not_before_s, not_after_s) = (fields.u64("not_before")?, fields.u64("not_after")?);
        let generation = match by {
            By::Itself => 0,
            By::Issuer(_) => fields.u32("generation")?,
        };
        let mut all: Vec<Capability> = Vec::new();
        while !fields.is_empty() {
            let one = decode(fields.next("capability")?)?;
            if all.last().is_some_and(|last| last.key >= one.key) {
                return Err(fault("is out of order"));
            }
            all.push(one);
        }
        let claim = Claim {
            subject,
            version,
            not_before_s,
            not_after_s,
            capabilities: Capabilities::new(all).map_err(|error| fault(&error.to_string()))?,
        };
        Ok(Unverified(Self::with(
            by,
            generation,
            claim,
            bytes.to_vec(),
        )))
    }

    /// Who says it.
    #[must_use]
    pub const fn by(&self) -> By {
        self.by
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

    /// What it is called in revocation lists: the first 16 bytes of BLAKE2s-MAC(key "virga statement v1",
    /// all its bytes).
    #[must_use]
    pub const fn id(&self) -> LinkId {
        self.id
    }

    /// All its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether it is a reason to let its subject in, where these issuers are trusted.
    ///
    /// # Errors
    /// [`Discounted`]: the first thing that is in the way.
    pub fn counts(
        &self,
        issuers: &[[u8; 32]],
        now_s: u64,
        revocations: &Revocations,
    ) -> Result<(), Discounted> {
        let By::Issuer(issuer) = self.by else {
            return Err(Discounted::Itself);
        };
        if !issuers.contains(&issuer) {
            return Err(Discounted::Issuer(issuer));
        }
        self.is_valid_at(now_s)?;
        match self.revoked(now_s, revocations) {
            Some(what) => Err(Discounted::Revoked(what)),
            None => Ok(()),
        }
    }

    /// What takes it back, if anything does: a list of its issuer, or that issuer's later key.
    #[must_use]
    pub fn revoked(&self, now_s: u64, revocations: &Revocations) -> Option<Revoked> {
        let By::Issuer(issuer) = self.by else {
            return None;
        };
        let (subject, generation) = (&self.claim.subject, self.generation);
        let revoked = revocations.revoke(&issuer, subject, generation, self.id);
        revoked.or_else(|| revocations.retire(&issuer, now_s))
    }

    /// Whether its time is now.
    ///
    /// # Errors
    /// [`Discounted::NotYetValid`], [`Discounted::Expired`].
    pub const fn is_valid_at(&self, now_s: u64) -> Result<(), Discounted> {
        let claim = &self.claim;
        if now_s.saturating_add(CLOCK_SKEW_S_MAX) < claim.not_before_s {
            let seconds = claim.not_before_s - now_s;
            return Err(Discounted::NotYetValid { seconds });
        }
        if now_s >= claim.not_after_s {
            let seconds = now_s - claim.not_after_s;
            return Err(Discounted::Expired { seconds });
        }
        Ok(())
    }

    /// When it counts no more: at its end, or earlier where its issuer has had another key since.
    #[must_use]
    pub fn ends_s(&self, revocations: &Revocations) -> u64 {
        let honoured_s = match &self.by {
            By::Issuer(issuer) => revocations.honoured_until_s(issuer),
            By::Itself => None,
        };
        self.claim.not_after_s.min(honoured_s.unwrap_or(u64::MAX))
    }

    /// Orders statements of one signer about one subject, so that of any two that differ one is later.
    fn rank(&self) -> (u64, &[u8]) {
        (self.claim.version, &self.bytes)
    }
}

impl Unverified {
    /// What it claims to be, to be looked at before the signature is.
    #[must_use]
    pub const fn claimed(&self) -> &Statement {
        &self.0
    }

    /// Verifies its signature.
    ///
    /// # Errors
    /// [`Forged`].
    pub fn verify(self) -> Result<Statement, Forged> {
        let signer = match self.0.by {
            By::Itself => self.0.claim.subject,
            By::Issuer(issuer) => issuer,
        };
        match signed::is_signed_by(&self.0.bytes, &signer) {
            true => Ok(self.0),
            false => Err(Forged(signer)),
        }
    }
}

fn encode(one: &Capability) -> Vec<u8> {
    let key = one.key.as_str().as_bytes();
    let value = one.value.as_ref().map_or("", Value::as_str).as_bytes();
    // A key has no more than KEY_BYTES_MAX.
    let length = u8::try_from(key.len()).unwrap_or(u8::MAX);
    [&[length], key, value].concat()
}

fn fault(what: &str) -> ObjectError {
    ObjectError::Field {
        field: "capability",
        what: what.to_owned(),
    }
}

fn decode(field: &[u8]) -> Result<Capability, ObjectError> {
    let wrong = |error: CapabilityError| fault(&format!("cannot be read: {error}"));
    let (&length, rest) = field.split_first().ok_or_else(|| fault("is empty"))?;
    let (key, value) = rest
        .split_at_checked(length.into())
        .ok_or_else(|| fault("has a key that is cut short"))?;
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| fault("is not text"));
    let key = Key::parse(text(key)?).map_err(wrong)?;
    let value = match text(value)? {
        "" => None,
        value => Some(Value::parse(value).map_err(wrong)?),
    };
    Ok(Capability { key, value })
}

/// The latest statement of each signer about each subject. However they come, and however often, the same
/// ones are left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statements(BTreeMap<([u8; 32], By), Statement>);

impl Statements {
    /// Takes one in, and says whether it is later than what was known of its signer and subject.
    pub fn learn(&mut self, statement: Statement) -> bool {
        let place = (statement.claim.subject, statement.by);
        let known = self.0.get(&place);
        let is_later = known.is_none_or(|known| known.rank() < statement.rank());
        if is_later {
            self.0.insert(place, statement);
        }
        is_later
    }

    /// Takes all of the others in.
    pub fn merge(&mut self, others: Self) {
        for statement in others.0.into_values() {
            self.learn(statement);
        }
    }

    /// Forgets what has ended.
    pub fn expire(&mut self, now_s: u64) {
        self.0.retain(|_, one| one.claim.not_after_s > now_s);
    }

    /// Whether this one, or a later one in its place, is known.
    #[must_use]
    pub fn has(&self, statement: &Statement) -> bool {
        let known = self.0.get(&(statement.claim.subject, statement.by));
        known.is_some_and(|known| known.rank() >= statement.rank())
    }

    /// Whether one of the same signer and subject is known.
    #[must_use]
    pub fn replaces(&self, statement: &Statement) -> bool {
        let place = (statement.claim.subject, statement.by);
        self.0.contains_key(&place)
    }

    /// Whether anything of this signer about this subject is known.
    #[must_use]
    pub fn has_of(&self, subject: &[u8; 32], by: By) -> bool {
        self.of(subject, by).is_some()
    }

    /// What is known of this signer about this subject.
    #[must_use]
    pub fn of(&self, subject: &[u8; 32], by: By) -> Option<&Statement> {
        self.0.get(&(*subject, by))
    }

    /// What is said about one subject: its own words first.
    pub fn about<'a>(
        &'a self,
        subject: &[u8; 32],
    ) -> impl Iterator<Item = &'a Statement> + use<'a> {
        let (first, last) = (By::Itself, By::Issuer([u8::MAX; 32]));
        self.0
            .range((*subject, first)..=(*subject, last))
            .map(|(_, statement)| statement)
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
    pub fn iter(&self) -> impl Iterator<Item = &Statement> {
        self.0.values()
    }
}
