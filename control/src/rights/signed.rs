//! Signed objects: one deterministic binary encoding.
//!
//! ```text
//! offset  size  field
//!      0     5  "virga"
//!      5     1  type
//!      6     1  version, 1
//!      7     -  fields: length 2, bytes
//!    end    64  ed25519 signature (RFC 8032) over all before it
//! ```
//! Big-endian. A type has a fixed list of fields, so there is one way to write each object: what is
//! unknown, missing or left over is refused. Signatures are verified strictly: no small-order keys, no
//! malleable ones.

use crate::keys::EntityKey;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use thiserror::Error;

/// What an object begins with.
pub const MAGIC: &[u8; 5] = b"virga";
/// The version of all types that there are.
pub const VERSION: u8 = 1;
/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;
/// Bytes before the first field.
pub const PREFIX_BYTES: usize = MAGIC.len() + 2;
/// Bytes of a field's length.
pub const LENGTH_BYTES: usize = 2;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// [`super::token::Link`].
    Link = 1,
    /// [`super::revocation::List`].
    RevocationList = 2,
    /// [`crate::capability::Statement`], by an issuer.
    Statement = 3,
    /// [`crate::membership::Membership`].
    Membership = 4,
    /// [`super::declaration::Declaration`].
    Declaration = 5,
    /// [`crate::filters::Statement`]: who may publish in a subnet.
    SubnetFilter = 6,
    /// [`crate::filters::Statement`]: who may not any more.
    SubnetWithdrawn = 7,
    /// [`crate::capability::Statement`], by its subject.
    Announcement = 8,
    /// [`super::identity::Placement`].
    Placement = 9,
    /// [`super::identity::Succession`].
    Succession = 10,
    /// A batch of a channel's events: `virga_state::batch`.
    Batch = 11,
    /// What a destination says of its route: `virga_routing::announcement`.
    Route = 12,
}

/// Why bytes are not the object that they should be; whoever wrote them is at fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ObjectError {
    /// Ends before it should.
    #[error("it ends in the middle of its {0}")]
    Short(&'static str),
    /// Goes on after its last field.
    #[error("{0} bytes follow its last field")]
    Trailing(usize),
    /// It begins otherwise.
    #[error("it is not a signed object of Virga")]
    Magic,
    /// It is another object, or one of a later version.
    #[error(
        "it has type {kind}, version {version}, where type {expected}, version {VERSION}, is expected"
    )]
    Kind {
        /// Its type.
        kind: u8,
        /// Its version.
        version: u8,
        /// The type that was expected.
        expected: u8,
    },
    /// A field holds what it cannot.
    #[error("its {field} {what}")]
    Field {
        /// Which one.
        field: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

/// Writes one object.
#[derive(Debug)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new(kind: Kind) -> Self {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([kind as u8, VERSION]);
        Self(bytes)
    }

    /// # Panics
    /// When the field has more than 65,535 bytes: a bug of the caller, who bounds each.
    pub(crate) fn field(mut self, bytes: &[u8]) -> Self {
        let length = u16::try_from(bytes.len()).expect("fields are bounded by their types");
        self.0.extend(length.to_be_bytes());
        self.0.extend(bytes);
        self
    }

    /// A signature over what there is so far.
    pub(crate) fn signature(&self, key: &EntityKey) -> [u8; SIGNATURE_BYTES] {
        SigningKey::from_bytes(key.seed.expose())
            .sign(&self.0)
            .to_bytes()
    }

    pub(crate) fn sign(mut self, key: &EntityKey) -> Vec<u8> {
        let signature = self.signature(key);
        self.0.extend(signature);
        self.0
    }
}

/// The type that an object names.
pub(crate) fn kind(object: &[u8]) -> Option<u8> {
    object.strip_prefix(MAGIC)?.first().copied()
}

/// Whether the object ends in its signer's signature.
pub(crate) fn is_signed_by(object: &[u8], signer: &[u8; 32]) -> bool {
    let Some((message, signature)) = object.split_last_chunk::<SIGNATURE_BYTES>() else {
        return false;
    };
    let signature = Signature::from_bytes(signature);
    VerifyingKey::from_bytes(signer).is_ok_and(|key| key.verify_strict(message, &signature).is_ok())
}

/// Reads one object's fields, in order.
#[derive(Debug)]
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Looks at all but the signature, which [`is_signed_by`] verifies.
    pub(crate) fn of(kind: Kind, object: &'a [u8]) -> Result<Self, ObjectError> {
        let (body, _signature) = object
            .split_last_chunk::<SIGNATURE_BYTES>()
            .ok_or(ObjectError::Short("signature"))?;
        let (magic, rest) = body
            .split_at_checked(MAGIC.len())
            .ok_or(ObjectError::Magic)?;
        if magic != MAGIC {
            return Err(ObjectError::Magic);
        }
        let (&[found, version], rest) = rest
            .split_first_chunk()
            .ok_or(ObjectError::Short("type and version"))?;
        if found != kind as u8 || version != VERSION {
            let expected = kind as u8;
            return Err(ObjectError::Kind {
                kind: found,
                version,
                expected,
            });
        }
        Ok(Self(rest))
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn next(&mut self, name: &'static str) -> Result<&'a [u8], ObjectError> {
        let (length, rest) = self
            .0
            .split_first_chunk::<LENGTH_BYTES>()
            .ok_or(ObjectError::Short(name))?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (field, rest) = rest
            .split_at_checked(length)
            .ok_or(ObjectError::Short(name))?;
        self.0 = rest;
        Ok(field)
    }

    pub(crate) fn array<const N: usize>(
        &mut self,
        name: &'static str,
    ) -> Result<[u8; N], ObjectError> {
        let field = self.next(name)?;
        field.try_into().map_err(|_| ObjectError::Field {
            field: name,
            what: format!("has {} bytes, not {N}", field.len()),
        })
    }

    pub(crate) fn byte(&mut self, name: &'static str) -> Result<u8, ObjectError> {
        self.array::<1>(name).map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self, name: &'static str) -> Result<u32, ObjectError> {
        self.array(name).map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self, name: &'static str) -> Result<u64, ObjectError> {
        self.array(name).map(u64::from_be_bytes)
    }

    pub(crate) fn end(self) -> Result<(), ObjectError> {
        match self.0.len() {
            0 => Ok(()),
            trailing => Err(ObjectError::Trailing(trailing)),
        }
    }
}
