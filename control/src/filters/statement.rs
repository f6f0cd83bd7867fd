//! What a gateway signs: which pairs its subnet admits, and which it does not any more.
//!
//! ```text
//! fields of both       bytes
//!   signer                32  ed25519 public key of a gateway; its signature is the object's
//!   subnet                 4
//!   length                 1  leading bits of it that count; the others are 0
//!   version                8  one sequence for both, of each gateway
//!   expires                8  Unix seconds; from then on it says nothing
//! then, type 6, a filter
//!   salt                  16
//!   lines                  -  of 1, 2, 4 or 8 banks, 64 lines of 64 bytes each
//! or, type 7, pairs that are withdrawn
//!   base                   8  version of the signer's filter that they go with; below the list's own
//!   pairs                  -  each: origin 8, channel 2; in order, each once
//! ```
//! The lines are a [`virga_ebpf::guard::Guard`] under the salt. A list names what that filter still holds, and what
//! another gateway's may hold; with an older filter than its base it says too little, so none counts then.

use crate::{
    capability::statement::Forged,
    keys::EntityKey,
    rights::signed::{self, Fields, Kind, ObjectError, Writer},
};
use std::collections::BTreeSet;
use virga_ebpf::{
    header::{ChannelHash, OriginHash, Subnet},
    limits::{DENIED_MAX, FILTER_LINES_MAX, FILTERS_MAX, GUARD_LINES_PER_BANK},
    subnet::SubnetPrefix,
    tables::Pair,
};

/// Pairs that one list holds; a gateway that has more to take back signs a filter instead.
pub const WITHDRAWN_MAX: usize = 1_024;
const PAIR_BYTES: usize = 10;
const LINE_BYTES: usize = 64;
const LINES_BYTES_MAX: usize = FILTER_LINES_MAX as usize * LINE_BYTES;
/// Bytes of the largest of them.
pub const STATEMENT_BYTES_MAX: usize = signed::PREFIX_BYTES
    + 7 * signed::LENGTH_BYTES
    + 32
    + 4
    + 1
    + 2 * 8
    + 16
    + LINES_BYTES_MAX
    + signed::SIGNATURE_BYTES;

const _: () = assert!(WITHDRAWN_MAX * FILTERS_MAX as usize <= DENIED_MAX as usize);
const _: () = assert!(LINES_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(WITHDRAWN_MAX * PAIR_BYTES <= LINES_BYTES_MAX);

/// What is said of a subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing else may publish there.
    Filter {
        /// Salt of its lines.
        salt: [u64; 2],
        /// Whole banks, a power of two of them.
        lines: Vec<[u64; 8]>,
    },
    /// These may not, whatever a filter says.
    Withdrawn {
        /// Version of the filter that the list goes with.
        base: u64,
        /// In order.
        pairs: BTreeSet<Pair>,
    },
}

/// Who says it of which subnet, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The gateway's entity key.
    pub signer: [u8; 32],
    /// The subnet, or all that lie in one.
    pub prefix: SubnetPrefix,
    /// A later one replaces it.
    pub version: u64,
    /// In Unix seconds, exclusive.
    pub expires_s: u64,
}

/// Words with their gateway's signature, which has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    head: Head,
    said: Said,
    bytes: Box<[u8]>,
}

/// What was read: its form is right, and nothing else is known of it.
#[derive(Clone, Debug)]
pub struct Unverified(Statement);

impl Statement {
    /// Signs one. The key is the signer's, and a list of pairs is not too long.
    #[must_use]
    pub fn sign(head: Head, said: Said, key: &EntityKey) -> Self {
        debug_assert_eq!(head.signer, key.public);
        let kind = match said {
            Said::Filter { .. } => Kind::SubnetFilter,
            Said::Withdrawn { .. } => Kind::SubnetWithdrawn,
        };
        let Head { prefix, .. } = head;
        let writer = Writer::new(kind)
            .field(&head.signer)
            .field(&prefix.subnet.0.to_be_bytes())
            .field(&[length(prefix)])
            .field(&head.version.to_be_bytes())
            .field(&head.expires_s.to_be_bytes());
        let writer = match &said {
            Said::Filter { salt, lines } => {
                let words = lines.iter().flatten().flat_map(|word| word.to_be_bytes());
                let salt: Vec<u8> = salt.iter().flat_map(|word| word.to_be_bytes()).collect();
                writer.field(&salt).field(&words.collect::<Vec<u8>>())
            }
            Said::Withdrawn { base, pairs } => {
                let mut bytes = Vec::with_capacity(pairs.len() * PAIR_BYTES);
                for pair in pairs {
                    bytes.extend(pair.origin.0.to_be_bytes());
                    bytes.extend(channel(pair).to_be_bytes());
                }
                writer.field(&base.to_be_bytes()).field(&bytes)
            }
        };
        let bytes = writer.sign(key).into();
        Self { head, said, bytes }
    }

    /// Reads one, all of `bytes`.
    ///
    /// # Errors
    /// [`ObjectError`]: what is wrong with its form.
    pub fn parse(bytes: &[u8]) -> Result<Unverified, ObjectError> {
        let is_filter = signed::kind(bytes) == Some(Kind::SubnetFilter as u8);
        let kind = match is_filter {
            true => Kind::SubnetFilter,
            false => Kind::SubnetWithdrawn,
        };
        let mut fields = Fields::of(kind, bytes)?;
        let signer = fields.array("signer")?;
        let subnet = Subnet(fields.u32("subnet")?);
        let prefix = prefix(subnet, fields.byte("length")?)?;
        let (version, expires_s) = (fields.u64("version")?, fields.u64("expires")?);
        let head = Head {
            signer,
            prefix,
            version,
            expires_s,
        };
        let said = match is_filter {
            true => Said::Filter {
                salt: salt(fields.array("salt")?),
                lines: lines(fields.next("lines")?)?,
            },
            false => Said::Withdrawn {
                base: base(fields.u64("base")?, version)?,
                pairs: pairs(fields.next("pairs")?)?,
            },
        };
        fields.end()?;
        let bytes = bytes.into();
        Ok(Unverified(Self { head, said, bytes }))
    }

    /// Who says it of what.
    #[must_use]
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// What it says.
    #[must_use]
    pub const fn said(&self) -> &Said {
        &self.said
    }

    /// All its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
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
        let signer = self.0.head.signer;
        match signed::is_signed_by(&self.0.bytes, &signer) {
            true => Ok(self.0),
            false => Err(Forged(signer)),
        }
    }
}

/// Leading bits of a subnet that count.
pub(crate) fn length(prefix: SubnetPrefix) -> u8 {
    u8::try_from(prefix.mask.leading_ones()).unwrap_or(u8::MAX)
}

/// Of a subnet's leading bits, which are all that it has.
pub(crate) fn prefix(subnet: Subnet, length: u8) -> Result<SubnetPrefix, ObjectError> {
    let field = "length";
    if length > 32 {
        let what = format!("is {length}, and a subnet has 32 bits");
        return Err(ObjectError::Field { field, what });
    }
    let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
    if subnet.0 & !mask != 0 {
        let what = format!("is {length}, and its subnet has bits set after those");
        return Err(ObjectError::Field { field, what });
    }
    Ok(SubnetPrefix { subnet, mask })
}

/// Channels are 16 bits, held in 32.
fn channel(pair: &Pair) -> u16 {
    u16::try_from(pair.channel).unwrap_or(0)
}

fn salt(bytes: [u8; 16]) -> [u64; 2] {
    let both = u128::from_be_bytes(bytes);
    let low = u64::try_from(both & u128::from(u64::MAX)).unwrap_or(0);
    [u64::try_from(both >> 64).unwrap_or(0), low]
}

fn lines(bytes: &[u8]) -> Result<Vec<[u64; 8]>, ObjectError> {
    let (words, rest) = bytes.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_be_bytes(*word)).collect();
    let (lines, words_left) = words.as_chunks::<8>();
    let bank = GUARD_LINES_PER_BANK as usize;
    let is_whole = rest.is_empty()
        && words_left.is_empty()
        && lines.len().is_multiple_of(bank)
        && (lines.len() / bank).is_power_of_two();
    if !is_whole || bytes.len() > LINES_BYTES_MAX {
        let what = format!(
            "has {} bytes, which are not 1, 2, 4 or 8 banks",
            bytes.len()
        );
        let field = "lines";
        return Err(ObjectError::Field { field, what });
    }
    Ok(lines.to_vec())
}

fn base(base: u64, version: u64) -> Result<u64, ObjectError> {
    let (field, what) = (
        "base",
        format!("is {base}, and the list's own is {version}"),
    );
    match base < version {
        true => Ok(base),
        false => Err(ObjectError::Field { field, what }),
    }
}

fn pairs(bytes: &[u8]) -> Result<BTreeSet<Pair>, ObjectError> {
    let wrong = |what: &str| ObjectError::Field {
        field: "pairs",
        what: what.to_owned(),
    };
    let (each, rest) = bytes.as_chunks::<PAIR_BYTES>();
    if !rest.is_empty() || each.is_empty() {
        return Err(wrong("is not whole pairs, one at least"));
    }
    if each.len() > WITHDRAWN_MAX {
        return Err(wrong("holds too many pairs"));
    }
    if !each.is_sorted_by(|a, b| a < b) {
        return Err(wrong("is not in order, each pair once"));
    }
    let pair = |[a, b, c, d, e, f, g, h, high, low]: [u8; PAIR_BYTES]| {
        let origin = OriginHash(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
        Pair::new(origin, ChannelHash(u16::from_be_bytes([high, low])))
    };
    Ok(each.iter().map(|bytes| pair(*bytes)).collect())
}
