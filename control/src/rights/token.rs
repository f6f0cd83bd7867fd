//! One link of a token: somebody gives a right to a subject.
//!
//! ```text
//! fields of type 1        bytes
//!   subject                  32  ed25519 public key
//!   scope               2 - 105  kind 1, then the channel's name or its digest (see `scope`)
//!   operations                1  publish 1, subscribe 2, admin 4, delegate 8
//!   delegations               1  how many more links may follow
//!   not_before                8  Unix time in seconds, from which on
//!   not_after                 8  and until which, exclusive
//!   generation                4  the issuer's, see `revocation`
//!   nonce                     8  so that two tokens with one content can be told apart
//! ```
//! Whoever signed it is not repeated in it: the issuer for the first link of a chain, the subject of
//! the link before it for all others.

use super::{
    scope::{NAME_BYTES_MAX, Operations, Scope},
    signed::{
        self, Fields, Kind, LENGTH_BYTES, ObjectError, PREFIX_BYTES, SIGNATURE_BYTES, Writer,
    },
};
use crate::{hex, keys::EntityKey};
use std::fmt;
use virga_ebpf::hash;

/// Bytes of the largest link.
pub const LINK_BYTES_MAX: usize = 256;
const FIELDS_BYTES_MAX: usize = 32 + (1 + NAME_BYTES_MAX) + 1 + 1 + 8 + 8 + 4 + 8;
const FIELDS: usize = 8;

const _: () = assert!(
    PREFIX_BYTES + FIELDS * LENGTH_BYTES + FIELDS_BYTES_MAX + SIGNATURE_BYTES <= LINK_BYTES_MAX
);

/// What a link gives, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Public key of the entity that gets the right.
    pub subject: [u8; 32],
    /// On which channels.
    pub scope: Scope,
    /// To do what.
    pub operations: Operations,
    /// How many more links may follow this one.
    pub delegations: u8,
    /// From when, in Unix seconds.
    pub not_before_s: u64,
    /// Until when, exclusive, in Unix seconds.
    pub not_after_s: u64,
    /// The issuer's generation of rights that this is one of.
    pub generation: u32,
    /// Tells two links with otherwise equal content apart.
    pub nonce: [u8; 8],
}

/// What a link is called: the first 16 bytes of BLAKE2s-MAC(key "virga link v1", all its bytes).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub [u8; 16]);

impl LinkId {
    /// Reads 32 hex digits.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut id = [0; 16];
        let is_hex = text.bytes().all(|digit| digit.is_ascii_hexdigit());
        if !is_hex || text.len() != 2 * id.len() {
            return Err(format!("{text:?} is not an id of 32 hex digits"));
        }
        for (byte, at) in id.iter_mut().zip((0..).step_by(2)) {
            let digits = &text[at..at + 2];
            *byte = u8::from_str_radix(digits, 16).map_err(|error| error.to_string())?;
        }
        Ok(Self(id))
    }
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode_bytes(&self.0))
    }
}

impl fmt::Debug for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkId({self})")
    }
}

/// A signed grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    grant: Grant,
    id: LinkId,
    bytes: Box<[u8]>,
}

impl Link {
    /// Signs a grant.
    #[must_use]
    pub fn sign(grant: Grant, signer: &EntityKey) -> Self {
        let bytes = Writer::new(Kind::Link)
            .field(&grant.subject)
            .field(&grant.scope.encode())
            .field(&[grant.operations.byte()])
            .field(&[grant.delegations])
            .field(&grant.not_before_s.to_be_bytes())
            .field(&grant.not_after_s.to_be_bytes())
            .field(&grant.generation.to_be_bytes())
            .field(&grant.nonce)
            .sign(signer);
        debug_assert!(bytes.len() <= LINK_BYTES_MAX);
        Self::with(grant, &bytes)
    }

    fn with(grant: Grant, bytes: &[u8]) -> Self {
        let digest = hash::keyed(b"virga link v1", &[bytes]);
        Self {
            grant,
            id: LinkId(std::array::from_fn(|i| digest[i])),
            bytes: bytes.into(),
        }
    }

    /// Reads a link; whether it is signed is asked of [`super::Chain::authenticate`].
    ///
    /// # Errors
    /// [`ObjectError`]: what is wrong with its form.
    pub fn parse(bytes: &[u8]) -> Result<Self, ObjectError> {
        let mut fields = Fields::of(Kind::Link, bytes)?;
        let grant = Grant {
            subject: fields.array("subject")?,
            scope: Scope::parse(fields.next("scope")?)?,
            operations: Operations::from_byte(fields.byte("operations")?)?,
            delegations: fields.byte("delegations")?,
            not_before_s: fields.u64("not_before")?,
            not_after_s: fields.u64("not_after")?,
            generation: fields.u32("generation")?,
            nonce: fields.array("nonce")?,
        };
        fields.end()?;
        Ok(Self::with(grant, bytes))
    }

    /// What it gives.
    #[must_use]
    pub const fn grant(&self) -> &Grant {
        &self.grant
    }

    /// All its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What it is called in revocation lists.
    #[must_use]
    pub const fn id(&self) -> LinkId {
        self.id
    }

    pub(super) fn is_signed_by(&self, signer: &[u8; 32]) -> bool {
        signed::is_signed_by(&self.bytes, signer)
    }
}
