//! What nodes tell each other about evidence, on a session's control stream.
//!
//! ```text
//! evidence   version 1 | type 12 | kind 1, a token     | chain (see `rights::chain`)
//!                                | kind 2, a statement | an issuer's (see `capability::statement`)
//! digest     version 1 | type 13 | 64 times 8 bytes, one for each value of the ids' first 6 bits
//! have       version 1 | type 14 | those 6 bits | each: id 16
//! confirm    version 1 | type 15 | id 16 | verdict 1
//! afresh     version 1 | type 20 | 0: what was refused may be taken now, for channels are others
//! kinds      version 1 | type 21 | 2: the sender takes statements, too, and both count in what it compares
//! ```
//! And about the filters of subnets ([`crate::filters`]):
//! ```text
//! words      version 1 | type 17 | signed words of a gateway (see `filters::statement`)
//! versions   version 1 | type 18 | each gateway: signer 32, subnet 4, length 1, filter 8, withdrawn 8
//! ```

use super::store::{EVIDENCE_MAX, EvidenceId, Kind};
use crate::{
    capability::{Statement, statement::STATEMENT_BYTES_MAX as VOUCHED_BYTES_MAX},
    filters::{
        GATEWAYS_MAX,
        held::Versions,
        statement::{self, STATEMENT_BYTES_MAX},
    },
    rights::chain::CHAIN_BYTES_MAX,
};
use std::fmt;
use virga_ebpf::header::Subnet;

/// Parts of a digest.
pub const BUCKETS: usize = 64;
/// Bytes of a part's hash.
const PART_BYTES: usize = 8;
/// Bytes of an id.
const ID_BYTES: usize = 16;
/// The kinds of evidence.
const TOKEN: u8 = 1;
const STATEMENT: u8 = 2;
/// Ids in one message: so many of one part that nobody has more.
pub const IDS_MAX: usize = 8_192;
/// Bytes of the largest of these messages, after version and type.
pub const PUBLICATION_BYTES_MAX: usize = 1 + IDS_MAX * ID_BYTES;

const _: () = assert!(EVIDENCE_MAX / BUCKETS <= IDS_MAX);
const _: () = assert!(CHAIN_BYTES_MAX < PUBLICATION_BYTES_MAX);
const _: () = assert!(VOUCHED_BYTES_MAX < PUBLICATION_BYTES_MAX);
/// Bytes of one gateway's versions.
const VERSIONS_BYTES: usize = 32 + 4 + 1 + 2 * 8;

const _: () = assert!(STATEMENT_BYTES_MAX <= PUBLICATION_BYTES_MAX);
const _: () = assert!(GATEWAYS_MAX * VERSIONS_BYTES <= PUBLICATION_BYTES_MAX);
const _: () = assert!(BUCKETS * PART_BYTES <= PUBLICATION_BYTES_MAX);

/// What a node has, in short: equal digests mean equal evidence.
#[derive(Clone, PartialEq, Eq)]
pub struct Digest(pub [[u8; PART_BYTES]; BUCKETS]);

impl Default for Digest {
    fn default() -> Self {
        Self([[0; PART_BYTES]; BUCKETS])
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self.0.iter().filter(|part| **part != [0; PART_BYTES]);
        write!(f, "Digest({} parts)", used.count())
    }
}

impl Digest {
    /// The parts in which two differ.
    pub fn differing<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = usize> {
        (0..BUCKETS).filter(|&bucket| self.0[bucket] != other.0[bucket])
    }
}

/// What became of evidence at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Verdict {
    /// It is held, and what follows from it is in the guard.
    Admitted,
    /// It does not parse.
    Malformed,
    /// No channel there trusts its issuer.
    Issuer,
    /// It gives no right to publish.
    Operation,
    /// Its time is over.
    Ended,
    /// The node holds as much as it may, of that holder, of that grantee, of that issuer or in all.
    Full,
    /// The sender sent too much in a short time.
    Busy,
    /// It is held, and the guard could not be written.
    Guard,
    /// A signature is wrong, or a link gives more than the one before it.
    Forged,
    /// Its issuer has taken it back.
    Revoked,
    /// A later statement of the same issuer about the same entity is held.
    Replaced,
}

impl Verdict {
    /// All there are.
    pub const ALL: [Self; 11] = [
        Self::Admitted,
        Self::Malformed,
        Self::Issuer,
        Self::Operation,
        Self::Ended,
        Self::Full,
        Self::Busy,
        Self::Guard,
        Self::Forged,
        Self::Revoked,
        Self::Replaced,
    ];

    /// A word for counters and programs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Malformed => "malformed",
            Self::Issuer => "issuer",
            Self::Operation => "operation",
            Self::Ended => "ended",
            Self::Full => "full",
            Self::Busy => "busy",
            Self::Guard => "guard",
            Self::Forged => "forged",
            Self::Revoked => "revoked",
            Self::Replaced => "replaced",
        }
    }

    /// What it means, for whoever presented a token or a statement.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Admitted => "has it in its guard",
            Self::Malformed => "cannot read it",
            Self::Issuer => "no channel there trusts its issuer",
            Self::Operation => "needs no token that does not allow to publish",
            Self::Ended => "its time is over there",
            Self::Full => "holds as much as it may",
            Self::Busy => "was told too much in a short time; it is told again",
            Self::Guard => "could not write its guard, and tries again",
            Self::Forged => "finds a signature or a delegation wrong",
            Self::Revoked => "knows that its issuer has taken it back",
            Self::Replaced => "has a later one by the same issuer",
        }
    }

    /// Whether it may be another one later.
    #[must_use]
    pub const fn is_passing(self) -> bool {
        matches!(self, Self::Full | Self::Busy | Self::Guard)
    }
}

/// One piece of evidence, as it was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A token.
    Token(Vec<u8>),
    /// What an issuer says of an entity.
    Statement(Vec<u8>),
}

impl Piece {
    /// What it is called.
    #[must_use]
    pub fn id(&self) -> EvidenceId {
        match self {
            Self::Token(token) => EvidenceId::of(token),
            Self::Statement(statement) => Statement::id_of(statement).into(),
        }
    }

    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Token(_) => Kind::Token,
            Self::Statement(_) => Kind::Statement,
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Token(bytes) | Self::Statement(bytes) => bytes,
        }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publication {
    /// Something that the sender holds.
    Evidence(Piece),
    /// What the sender holds, in short.
    Digest(Box<Digest>),
    /// What the sender holds in one part of its digest.
    Have {
        /// Which part.
        bucket: u8,
        /// Its ids, sorted.
        ids: Vec<EvidenceId>,
    },
    /// What became of evidence that the receiver sent.
    Confirm {
        /// Which.
        id: EvidenceId,
        /// What.
        verdict: Verdict,
    },
    /// The sender may take now what it has refused before: its channels are others.
    Afresh,
    /// The sender takes statements, too: earlier versions take tokens alone.
    Statements,
    /// What a gateway says of its subnet.
    Filter(Vec<u8>),
    /// Which versions of that the sender holds.
    Versions(Vec<Versions>),
}

impl Publication {
    /// Whether a message of this type is one.
    #[must_use]
    pub const fn is_type(kind: u8) -> bool {
        matches!(kind, 12..=15 | 17 | 18 | 20 | 21)
    }

    /// Writes its type and all that follows.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Evidence(piece) => {
                let kind = match piece.kind() {
                    Kind::Token => TOKEN,
                    Kind::Statement => STATEMENT,
                };
                out.extend([12, kind]);
                out.extend(piece.as_bytes());
            }
            Self::Digest(digest) => {
                out.push(13);
                out.extend(digest.0.as_flattened());
            }
            Self::Have { bucket, ids } => {
                out.extend([14, *bucket]);
                for id in ids {
                    out.extend(id.0);
                }
            }
            Self::Confirm { id, verdict } => {
                out.push(15);
                out.extend(id.0);
                out.push(*verdict as u8);
            }
            Self::Afresh => out.extend([20, 0]),
            Self::Statements => out.extend([21, STATEMENT]),
            Self::Filter(signed) => {
                out.push(17);
                out.extend(signed);
            }
            Self::Versions(all) => {
                out.push(18);
                for one in all {
                    out.extend(one.signer);
                    out.extend(one.prefix.subnet.0.to_be_bytes());
                    out.push(statement::length(one.prefix));
                    out.extend(one.filter.to_be_bytes());
                    out.extend(one.withdrawn.to_be_bytes());
                }
            }
        }
    }

    /// Reads what follows a type; `None` where it has another form.
    #[must_use]
    pub fn parse(kind: u8, body: &[u8]) -> Option<Self> {
        match kind {
            12 => match body.split_first()? {
                (_, []) => None,
                (&TOKEN, token) if token.len() <= CHAIN_BYTES_MAX => {
                    Some(Self::Evidence(Piece::Token(token.to_vec())))
                }
                (&STATEMENT, statement) if statement.len() <= VOUCHED_BYTES_MAX => {
                    Some(Self::Evidence(Piece::Statement(statement.to_vec())))
                }
                _ => None,
            },
            13 => {
                let (parts, rest) = body.as_chunks();
                let parts = <[[u8; PART_BYTES]; BUCKETS]>::try_from(parts).ok()?;
                rest.is_empty()
                    .then(|| Self::Digest(Box::new(Digest(parts))))
            }
            14 => {
                let (&bucket, ids) = body.split_first()?;
                let (ids, rest) = ids.as_chunks::<ID_BYTES>();
                let is_right = usize::from(bucket) < BUCKETS && ids.len() <= IDS_MAX;
                (is_right && rest.is_empty() && ids.is_sorted()).then(|| Self::Have {
                    bucket,
                    ids: ids.iter().map(|id| EvidenceId(*id)).collect(),
                })
            }
            15 => {
                let (id, verdict) = body.split_first_chunk::<ID_BYTES>()?;
                let &[code] = verdict else { return None };
                let verdict = *Verdict::ALL.get(usize::from(code))?;
                let id = EvidenceId(*id);
                Some(Self::Confirm { id, verdict })
            }
            20 => (*body == [0]).then_some(Self::Afresh),
            21 => (*body == [STATEMENT]).then_some(Self::Statements),
            17 if body.len() <= STATEMENT_BYTES_MAX => Some(Self::Filter(body.to_vec())),
            18 => {
                let (each, rest) = body.as_chunks::<VERSIONS_BYTES>();
                let is_right = rest.is_empty() && each.len() <= GATEWAYS_MAX;
                let all = is_right.then(|| each.iter().map(versions).collect::<Option<_>>())?;
                all.map(Self::Versions)
            }
            _ => None,
        }
    }
}

fn versions(bytes: &[u8; VERSIONS_BYTES]) -> Option<Versions> {
    let (&signer, rest) = bytes.split_first_chunk()?;
    let (&subnet, rest) = rest.split_first_chunk()?;
    let (&length, rest) = rest.split_first()?;
    let (&filter, rest) = rest.split_first_chunk()?;
    let withdrawn = *rest.first_chunk()?;
    Some(Versions {
        signer,
        prefix: statement::prefix(Subnet(u32::from_be_bytes(subnet)), length).ok()?,
        filter: u64::from_be_bytes(filter),
        withdrawn: u64::from_be_bytes(withdrawn),
    })
}
