//! Where an entity lives, and which key follows another: signed by the entity itself.
//!
//! ```text
//! fields of type 9, placement   bytes
//!   entity                         32  ed25519 public key; its signature is the object's
//!   node                           32  X25519 public key of the node that it lives on
//!   version                         8  counts up
//!
//! fields of type 10, succession
//!   old                            32  ed25519 public key; its signature is the object's
//!   new                            32  ed25519 public key that takes its place
//!   from                            8  Unix seconds: from then on
//!   honoured                        8  Unix seconds: until then tokens count that `old` signed
//!   consent                        64  signature of `new` over all before this field
//! ```

use super::signed::{self, Fields, Kind, ObjectError, Writer};
use crate::{hex, keys::EntityKey};
use std::collections::BTreeMap;
use thiserror::Error;

/// Bytes of the longest of these objects.
pub const IDENTITY_BYTES_MAX: usize = signed::PREFIX_BYTES
    + 5 * signed::LENGTH_BYTES
    + (32 + 32 + 8 + 8 + 64)
    + signed::SIGNATURE_BYTES;

/// The node that an entity lives on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The entity's ed25519 public key.
    pub entity: [u8; 32],
    /// The node's X25519 public key.
    pub node_key: [u8; 32],
    /// Of two, the one with the higher version counts.
    pub version: u64,
}

/// The key that takes an entity key's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The ed25519 public key that goes.
    pub old: [u8; 32],
    /// The ed25519 public key that comes.
    pub new: [u8; 32],
    /// From this Unix second on.
    pub from_s: u64,
    /// Until this Unix second tokens count that the old key issued or delegated.
    pub honoured_until_s: u64,
}

/// Keys whose place others have taken, by successions that are in effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retired(BTreeMap<[u8; 32], Retirement>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Retirement {
    current: [u8; 32],
    honoured_until_s: u64,
}

impl Retired {
    /// Nobody's.
    #[must_use]
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// The key that has a key's place now: itself, unless it is retired.
    #[must_use]
    pub fn current<'a>(&'a self, key: &'a [u8; 32]) -> &'a [u8; 32] {
        self.0.get(key).map_or(key, |retired| &retired.current)
    }

    /// All whose place a key has now.
    pub fn before(&self, current: &[u8; 32]) -> impl Iterator<Item = [u8; 32]> {
        let retired = self.0.iter();
        retired
            .filter(move |(_, retired)| retired.current == *current)
            .map(|(&key, _)| key)
    }

    /// Until when tokens count that a retired key signed, in Unix seconds.
    #[must_use]
    pub fn honoured_until_s(&self, key: &[u8; 32]) -> Option<u64> {
        self.0.get(key).map(|retired| retired.honoured_until_s)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn add(&mut self, key: [u8; 32], current: [u8; 32], honoured_until_s: u64) {
        let retirement = Retirement {
            current,
            honoured_until_s,
        };
        self.0.insert(key, retirement);
    }
}

/// Either, as it was read: its form is right, and its signatures were not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    what: Identity,
    signed: Vec<u8>,
}

/// What a [`Claim`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Type 9.
    Placement(Placement),
    /// Type 10.
    Succession(Succession),
}

/// Why there is no such object.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// Its form is wrong.
    #[error("it is neither a placement nor a succession: {0}")]
    Object(#[from] ObjectError),
    /// A key succeeds itself.
    #[error("the new key {} is the old one", hex::encode(.0))]
    Same([u8; 32]),
    /// Whoever it speaks of did not sign it.
    #[error("it is not signed by {}", hex::encode(.0))]
    Signature([u8; 32]),
}

impl Placement {
    /// Signs it.
    #[must_use]
    pub fn sign(&self, entity: &EntityKey) -> Claim {
        debug_assert_eq!(entity.public, self.entity);
        let writer = Writer::new(Kind::Placement)
            .field(&self.entity)
            .field(&self.node_key)
            .field(&self.version.to_be_bytes());
        Claim {
            what: Identity::Placement(*self),
            signed: writer.sign(entity),
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, ObjectError> {
        let mut fields = Fields::of(Kind::Placement, bytes)?;
        let placement = Self {
            entity: fields.array("entity")?,
            node_key: fields.array("node")?,
            version: fields.u64("version")?,
        };
        fields.end()?;
        Ok(placement)
    }
}

impl Succession {
    /// Signs it with both keys.
    #[must_use]
    pub fn sign(&self, old: &EntityKey, new: &EntityKey) -> Claim {
        debug_assert_eq!((old.public, new.public), (self.old, self.new));
        let writer = Writer::new(Kind::Succession)
            .field(&self.old)
            .field(&self.new)
            .field(&self.from_s.to_be_bytes())
            .field(&self.honoured_until_s.to_be_bytes());
        let consent = writer.signature(new);
        Claim {
            what: Identity::Succession(*self),
            signed: writer.field(&consent).sign(old),
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, ObjectError> {
        let mut fields = Fields::of(Kind::Succession, bytes)?;
        let succession = Self {
            old: fields.array("old key")?,
            new: fields.array("new key")?,
            from_s: fields.u64("time")?,
            honoured_until_s: fields.u64("end of tokens")?,
        };
        fields.array::<{ signed::SIGNATURE_BYTES }>("consent")?;
        fields.end()?;
        Ok(succession)
    }
}

impl Claim {
    /// Reads an object, all of `bytes`; [`Claim::verify`] verifies its signatures.
    ///
    /// # Errors
    /// [`IdentityError::Object`], [`IdentityError::Same`].
    pub fn parse(bytes: &[u8]) -> Result<Self, IdentityError> {
        let what = match signed::kind(bytes) {
            Some(kind) if kind == Kind::Succession as u8 => {
                Identity::Succession(Succession::parse(bytes)?)
            }
            _ => Identity::Placement(Placement::parse(bytes)?),
        };
        match what {
            Identity::Succession(Succession { old, new, .. }) if old == new => {
                Err(IdentityError::Same(old))
            }
            what => Ok(Self {
                what,
                signed: bytes.to_vec(),
            }),
        }
    }

    /// What it says.
    #[must_use]
    pub const fn what(&self) -> Identity {
        self.what
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.signed
    }

    /// Whether everyone whom it speaks of has signed it.
    ///
    /// # Errors
    /// [`IdentityError::Signature`].
    pub fn verify(&self) -> Result<(), IdentityError> {
        let signer = match self.what {
            Identity::Placement(placement) => placement.entity,
            Identity::Succession(succession) => {
                let end = self.signed.len() - signed::SIGNATURE_BYTES;
                let consent = &self.signed[..end];
                // The field's length stands before the signature, and is not signed by it.
                let (body, signature) = consent.split_at(end - signed::SIGNATURE_BYTES);
                let body = &body[..body.len() - signed::LENGTH_BYTES];
                if !signed::is_signed_by(&[body, signature].concat(), &succession.new) {
                    return Err(IdentityError::Signature(succession.new));
                }
                succession.old
            }
        };
        match signed::is_signed_by(&self.signed, &signer) {
            true => Ok(()),
            false => Err(IdentityError::Signature(signer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Secret;

    fn key(number: u8) -> EntityKey {
        EntityKey::from(Secret::new([number; 32]))
    }

    fn placement() -> Claim {
        let placement = Placement {
            entity: key(1).public,
            node_key: [7; 32],
            version: 5,
        };
        placement.sign(&key(1))
    }

    fn succession() -> Claim {
        let succession = Succession {
            old: key(1).public,
            new: key(2).public,
            from_s: 10,
            honoured_until_s: 20,
        };
        succession.sign(&key(1), &key(2))
    }

    #[test]
    fn what_is_signed_is_read_and_verified() {
        for claim in [placement(), succession()] {
            let read = Claim::parse(claim.as_bytes()).unwrap();
            assert_eq!(read, claim);
            assert_eq!(read.verify(), Ok(()));
            assert!(claim.as_bytes().len() <= IDENTITY_BYTES_MAX);
        }
        assert_eq!(succession().as_bytes().len(), IDENTITY_BYTES_MAX);
    }

    #[test]
    fn no_changed_bit_cut_or_longer_object_counts() {
        for claim in [placement(), succession()] {
            let bytes = claim.as_bytes();
            let counts = |bytes: &[u8]| Claim::parse(bytes).is_ok_and(|c| c.verify().is_ok());
            assert!(counts(bytes));
            for bit in 0..bytes.len() * 8 {
                let mut changed = bytes.to_vec();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(!counts(&changed), "bit {bit}");
            }
            for cut in 0..bytes.len() {
                assert!(!counts(&bytes[..cut]), "{cut}");
            }
            assert!(!counts(&[bytes, &[0]].concat()));
        }
    }

    /// Neither key can bring a succession about alone.
    #[test]
    fn both_keys_must_sign() {
        let both = Succession {
            old: key(1).public,
            new: key(2).public,
            from_s: 0,
            honoured_until_s: 0,
        };
        let forged = |old: &EntityKey, new: &EntityKey| {
            let writer = Writer::new(Kind::Succession)
                .field(&both.old)
                .field(&both.new)
                .field(&both.from_s.to_be_bytes())
                .field(&both.honoured_until_s.to_be_bytes());
            let consent = writer.signature(new);
            let bytes = writer.field(&consent).sign(old);
            Claim::parse(&bytes).unwrap().verify()
        };
        assert_eq!(forged(&key(1), &key(2)), Ok(()));
        let missing = |who: u8| Err(IdentityError::Signature(key(who).public));
        assert_eq!(forged(&key(1), &key(1)), missing(2));
        assert_eq!(forged(&key(2), &key(2)), missing(1));
        let same = Succession {
            new: both.old,
            ..both
        };
        let same = Claim::parse(same.sign_alone(&key(1)).as_bytes());
        assert_eq!(same, Err(IdentityError::Same(both.old)));
    }

    impl Succession {
        fn sign_alone(&self, key: &EntityKey) -> Claim {
            let own = Self {
                old: key.public,
                new: key.public,
                ..*self
            };
            own.sign(key, key)
        }
    }
}
