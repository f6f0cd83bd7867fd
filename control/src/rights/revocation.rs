//! What an issuer has taken back: one signed list an issuer, each version of which replaces the last.
//!
//! ```text
//! fields of type 2        bytes
//!   issuer                   32  ed25519 public key; its signature is the object's
//!   version                   8  counts up
//!   generation                4  tokens of earlier generations are void
//!   entries, each       24 or 41  1, link id 16, expiry 8  |  2, subject 32, expiry 8
//! ```
//! Entries are sorted, each once. An entry is left out after its expiry (Unix seconds), when the last
//! token that it could mean has ended. A list means only chains that begin with its issuer: every link
//! of them, so that a revoked link takes with it all that was delegated from it; and the issuer's own
//! statements about what others are and have (`capability::statement`), by their ids as if they were links.

use super::{
    identity::Retired,
    signed::{self, Fields, Kind, ObjectError, Writer},
    token::LinkId,
};
use crate::keys::EntityKey;
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};
use thiserror::Error;

/// Entries of the longest list.
pub const ENTRIES_MAX: usize = 4_096;
/// Bytes of the longest list.
pub const LIST_BYTES_MAX: usize = 256 + ENTRIES_MAX * (2 + 41);

/// What one entry takes back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// One link, and all that follow it; or one statement.
    Link(LinkId),
    /// All links to a subject, and all that follow them; and all statements about it.
    Subject([u8; 32]),
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(id) => write!(f, "link {id}"),
            Self::Subject(key) => write!(f, "subject {}", crate::hex::encode(key)),
        }
    }
}

/// By what a link was revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// By itself, or by its subject.
    Entry(Entry),
    /// It is of a generation that the issuer has given up.
    Generation {
        /// The link's.
        is: u32,
        /// The first that counts.
        least: u32,
    },
    /// Whoever signed it has had another key since, and what the old one signed counts no more.
    Retired {
        /// The old key.
        signer: [u8; 32],
        /// Until when it did, in Unix seconds.
        until_s: u64,
    },
}

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry(entry) => write!(f, "the issuer's list has {entry}"),
            Self::Generation { is, least } => {
                write!(
                    f,
                    "it is of generation {is}, and the issuer's begin with {least}"
                )
            }
            Self::Retired { signer, until_s } => {
                let signer = crate::hex::encode(signer);
                write!(
                    f,
                    "another key has taken the place of {signer}, which signed it and counted until {until_s} (Unix time)"
                )
            }
        }
    }
}

/// One version of an issuer's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    issuer: [u8; 32],
    version: u64,
    generation: u32,
    /// Until when each entry is kept, in Unix seconds.
    entries: BTreeMap<Entry, u64>,
}

/// Why there is no such list.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ListError {
    /// Its form is wrong.
    #[error("the revocation list cannot be read: {0}")]
    Object(#[from] ObjectError),
    /// Its issuer did not sign it.
    #[error("the revocation list is not signed by its issuer {}", crate::hex::encode(.0))]
    Signature([u8; 32]),
    /// It holds as many as it may.
    #[error(
        "the revocation list has {ENTRIES_MAX} entries already: begin a new generation (--generation), which makes all earlier tokens void and the list empty"
    )]
    Full,
    /// Generations only go up.
    #[error("the list is at generation {is} already")]
    Generation {
        /// Where it is.
        is: u32,
    },
}

impl List {
    /// An issuer's first: nothing is revoked.
    #[must_use]
    pub const fn new(issuer: [u8; 32]) -> Self {
        Self {
            issuer,
            version: 0,
            generation: 0,
            entries: BTreeMap::new(),
        }
    }

    /// Whose it is.
    #[must_use]
    pub const fn issuer(&self) -> &[u8; 32] {
        &self.issuer
    }

    /// Which one of the issuer's.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// The first generation of tokens that counts.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// What is taken back, and until when the entry is kept, in Unix seconds.
    pub fn entries(&self) -> impl Iterator<Item = (Entry, u64)> {
        self.entries
            .iter()
            .map(|(&entry, &until_s)| (entry, until_s))
    }

    /// The next version, with one more entry and without those that have expired.
    ///
    /// # Errors
    /// [`ListError::Full`].
    pub fn revoke(&self, entry: Entry, until_s: u64, now_s: u64) -> Result<Self, ListError> {
        let mut next = self.clone();
        next.version += 1;
        next.entries.retain(|_, until_s| *until_s > now_s);
        let kept = next.entries.entry(entry).or_insert(until_s);
        *kept = until_s.max(*kept);
        if next.entries.len() > ENTRIES_MAX {
            return Err(ListError::Full);
        }
        Ok(next)
    }

    /// The next version, that begins with a generation; single entries are no longer needed.
    ///
    /// # Errors
    /// [`ListError::Generation`].
    pub fn begin_generation(&self, generation: u32) -> Result<Self, ListError> {
        if generation <= self.generation {
            let is = self.generation;
            return Err(ListError::Generation { is });
        }
        Ok(Self {
            issuer: self.issuer,
            version: self.version + 1,
            generation,
            entries: BTreeMap::new(),
        })
    }

    /// Signs it.
    #[must_use]
    pub fn sign(&self, issuer: &EntityKey) -> Vec<u8> {
        debug_assert_eq!(issuer.public, self.issuer);
        let writer = Writer::new(Kind::RevocationList)
            .field(&self.issuer)
            .field(&self.version.to_be_bytes())
            .field(&self.generation.to_be_bytes());
        let entries = self.entries.iter();
        entries
            .fold(writer, |writer, (entry, until_s)| {
                let until_s = until_s.to_be_bytes();
                match entry {
                    Entry::Link(id) => writer.field(&[&[1], &id.0[..], &until_s].concat()),
                    Entry::Subject(key) => writer.field(&[&[2], &key[..], &until_s].concat()),
                }
            })
            .sign(issuer)
    }

    /// Reads a list and verifies its signature.
    ///
    /// # Errors
    /// [`ListError::Object`], [`ListError::Signature`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ListError> {
        let mut fields = Fields::of(Kind::RevocationList, bytes)?;
        let mut list = Self {
            issuer: fields.array("issuer")?,
            version: fields.u64("version")?,
            generation: fields.u32("generation")?,
            entries: BTreeMap::new(),
        };
        let fault = |what: &str| ObjectError::Field {
            field: "entry",
            what: what.to_owned(),
        };
        while !fields.is_empty() {
            let (entry, until_s) =
                entry(fields.next("entry")?).ok_or_else(|| fault("is of no known form"))?;
            let is_next = list
                .entries
                .last_key_value()
                .is_none_or(|(last, _)| *last < entry);
            if !is_next {
                return Err(fault("is out of order").into());
            }
            if list.entries.len() == ENTRIES_MAX {
                return Err(fault("is one too many").into());
            }
            list.entries.insert(entry, until_s);
        }
        match signed::is_signed_by(bytes, &list.issuer) {
            true => Ok(list),
            false => Err(ListError::Signature(list.issuer)),
        }
    }

    /// Whether something that this issuer has signed, or that was delegated from it, is revoked.
    fn revokes(&self, subject: &[u8; 32], is: u32, id: LinkId) -> Option<Revoked> {
        let least = self.generation;
        if is < least {
            return Some(Revoked::Generation { is, least });
        }
        let entries = [Entry::Subject(*subject), Entry::Link(id)];
        let found = entries.into_iter().find(|e| self.entries.contains_key(e));
        found.map(Revoked::Entry)
    }
}

fn entry(field: &[u8]) -> Option<(Entry, u64)> {
    let (body, until_s) = field.split_last_chunk()?;
    let (&kind, body) = body.split_first()?;
    let entry = match kind {
        1 => Entry::Link(LinkId(body.try_into().ok()?)),
        2 => Entry::Subject(body.try_into().ok()?),
        _ => return None,
    };
    Some((entry, u64::from_be_bytes(*until_s)))
}

/// What became of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// It is the newest, and counts from now on.
    New,
    /// It was known already.
    Known,
    /// A later one is known: an old one was sent again.
    Old,
    /// It has the same version as another one, and other content: its issuer signed both.
    Conflict,
}

/// The newest list of each issuer, and the keys whose place others have taken.
#[derive(Clone, Debug, Default)]
pub struct Revocations {
    lists: HashMap<[u8; 32], List>,
    retired: Retired,
}

impl Revocations {
    /// Takes a list in, unless a later one is known.
    pub fn learn(&mut self, list: List) -> Learned {
        let Some(known) = self.lists.get(&list.issuer) else {
            self.lists.insert(list.issuer, list);
            return Learned::New;
        };
        match list.version.cmp(&known.version) {
            std::cmp::Ordering::Less => Learned::Old,
            std::cmp::Ordering::Equal if list == *known => Learned::Known,
            std::cmp::Ordering::Equal => Learned::Conflict,
            std::cmp::Ordering::Greater => {
                self.lists.insert(list.issuer, list);
                Learned::New
            }
        }
    }

    /// Replaces what is known of keys whose place others have taken.
    pub fn set_retired(&mut self, retired: Retired) {
        self.retired = retired;
    }

    /// The key that has an entity key's place now: itself, unless it is retired.
    #[must_use]
    pub fn current<'a>(&'a self, key: &'a [u8; 32]) -> &'a [u8; 32] {
        self.retired.current(key)
    }

    /// All keys whose place an entity key has now.
    pub fn before(&self, current: &[u8; 32]) -> impl Iterator<Item = [u8; 32]> {
        self.retired.before(current)
    }

    /// When what `signer` signed counts no more, because another key has its place, in Unix seconds.
    #[must_use]
    pub fn honoured_until_s(&self, signer: &[u8; 32]) -> Option<u64> {
        self.retired.honoured_until_s(signer)
    }

    /// Whether what `signer` signed counts no more, because another key has its place.
    #[must_use]
    pub fn retire(&self, signer: &[u8; 32], now_s: u64) -> Option<Revoked> {
        let until_s = self.retired.honoured_until_s(signer)?;
        let signer = *signer;
        (now_s >= until_s).then_some(Revoked::Retired { signer, until_s })
    }

    /// The newest list of an issuer.
    #[must_use]
    pub fn of(&self, issuer: &[u8; 32]) -> Option<&List> {
        self.lists.get(issuer)
    }

    /// Whether a link of a chain that begins with `issuer`, or a statement of that issuer's, is revoked,
    /// and by what. Whoever has a key's place now speaks for it, and who is named by the later key is meant
    /// by the earlier one too.
    #[must_use]
    pub fn revoke(
        &self,
        issuer: &[u8; 32],
        subject: &[u8; 32],
        generation: u32,
        id: LinkId,
    ) -> Option<Revoked> {
        let mut lists = [issuer, self.current(issuer)].into_iter();
        lists.find_map(|issuer| {
            let list = self.lists.get(issuer)?;
            let of = |subject| list.revokes(subject, generation, id);
            of(subject).or_else(|| of(self.current(subject)))
        })
    }
}
