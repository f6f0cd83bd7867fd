//! Signed batches: one channel's consecutive events of one entity, under one signature.
//!
//! What an entity says on a channel is its feed there: events 1, 2, 3 … Each event has a head, a hash over it
//! and over all of the feed before it, so that one head names all that led to it; and each batch says what
//! its entity had newly observed before it: its frontier, the heads of other feeds. The entity signs the head.
//!
//! ```text
//! feed          BLAKE3, domain "virga 2026 feed v1", of: bytes of the channel's name 1 | name | entity's key 32
//! head          of event n: BLAKE3, keyed by the head before it (the feed, where n is 1), of:
//!               n 8 | frontier's hash 32 | payload
//! frontier      hash: BLAKE3, domain "virga 2026 frontier v1", of its entries, in the order of their feeds
//!
//! batch         statement | ed25519 signature 64 over the statement | number of entries 4 | entries of 72
//!
//! statement                                    entry of the frontier
//!   0   5 "virga"                               0  32 feed, never the batch's own
//!   5   1 type 11                              32   8 how many of its events, 1 or more
//!   6   1 version 1                            40  32 the head after these
//!   7   2 length 32                            the 8-byte key of a frontier, as in an event's causal link, are
//!   9  32 the entity's ed25519 public key      the first 8 bytes of its hash, or 0 where it is empty
//!  41   2 length 8
//!  43   8 number of its first event, from 1
//!  51   2 length 4
//!  53   4 how many events, 1 or more
//!  57   2 length 32
//!  59  32 the head before its first event
//!  91   2 length 32
//!  93  32 the head after its last event
//! 125   2 length 32
//! 127  32 the frontier's hash
//! 159   2 length
//! 161     the channel's full name
//! ```
//!
//! Numbers are big-endian; there is one way to write each batch, and signatures are verified strictly. The
//! times at which events came are each log's own and not signed.
//!
//! Vectors, made with Python's `blake3` and `cryptography`, of the entity with the seed 00 01 … 1f, on the channel `metrics/edge-a`:
//!
//! | what | value |
//! |---|---|
//! | feed | `812bc1c8fbbba622af36176e2c9466c00f630973fa006239748544830202121e` |
//! | head after the event `a` | `3785f9d073a3bd9e56a5c30849aa4bed9b8f3153f87819ebcf650fef259e4c73` |
//! | head after `a`, `bc` | `6a75c2b5e326ed6a5a160ba4ea908a282c47f5810b12470392ec39f164442d77` |
//! | hash of the frontier of 5 events of the feed 11 … 11, head 22 … 22 | `fd4fd22517badd5afeb8ec9cde33554223f232b350ecceb92e599d4685239779` |
//! | BLAKE3 of the batch of `a`, `bc`, nothing observed | `3bb5684fdbb1928342352110c283f27f2059823b7c2facfdc771826f5d41b6c4` |
//! | BLAKE3 of the batch of `d` after it, with that frontier | `3356802297f46c1674772e74d46fcd2bc553a4ba5b78a0de5db771780729b1e2` |

use crate::{
    LogName,
    event::Link,
    format::{Hash, u32_at, u64_at},
    limits::{BATCH_EVENTS_MAX, FRONTIER_FEEDS_MAX},
};
use ed25519_dalek::{Signature, VerifyingKey};
use thiserror::Error;
use virga_ebpf::{hash::origin_hash, header::OriginHash};

#[cfg(test)]
mod tests;

/// Bytes of a statement before the channel's name.
pub const STATEMENT_BYTES_MIN: usize = 161;
/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;
/// Bytes of an entry of a frontier.
pub const OBSERVED_BYTES: usize = 72;

/// Where the key of a batch's entity stands, of 32 bytes.
pub const SIGNED_ENTITY_AT: usize = 9;
/// Where the number of a batch's first event stands, of 8 bytes.
pub const SIGNED_FIRST_AT: usize = 43;
/// Where the number of a batch's events stands, of 4 bytes.
pub const SIGNED_COUNT_AT: usize = 53;

const PREFIX: &[u8; 7] = b"virga\x0b\x01";
const FEED_DOMAIN: &str = "virga 2026 feed v1";
const FRONTIER_DOMAIN: &str = "virga 2026 frontier v1";
/// Where each length stands, and what it is.
const LENGTHS: [(usize, u16); 6] = [(7, 32), (41, 8), (51, 4), (57, 32), (91, 32), (125, 32)];

const _: () = assert!(PREFIX.len() == 7);
const _: () = assert!(STATEMENT_BYTES_MIN == 7 + 2 + 32 + 2 + 8 + 2 + 4 + 3 * (2 + 32) + 2);
const _: () = assert!(OBSERVED_BYTES == 32 + 8 + 32);

/// What an entity says on a channel, by a hash of both; the head before its first event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FeedId(pub Hash);

impl FeedId {
    /// An entity's, on a channel.
    #[must_use]
    pub fn of(channel: &LogName, entity: &[u8; 32]) -> Self {
        let name = channel.as_str().as_bytes();
        let mut hasher = blake3::Hasher::new_derive_key(FEED_DOMAIN);
        // A valid name has 1 to 255 bytes.
        hasher.update(&[u8::try_from(name.len()).unwrap_or(u8::MAX)]);
        hasher.update(name);
        hasher.update(entity);
        Self(*hasher.finalize().as_bytes())
    }
}

/// The head after an event.
#[must_use]
pub fn next_head(before: &Hash, sequence: u64, frontier: &Hash, payload: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new_keyed(before);
    hasher.update(&sequence.to_be_bytes());
    hasher.update(frontier);
    hasher.update(payload);
    *hasher.finalize().as_bytes()
}

/// Of another feed, all events up to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Observed {
    /// Which feed.
    pub feed: FeedId,
    /// How many of its events.
    pub count: u64,
    /// The head after these.
    pub head: Hash,
}

impl Observed {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.feed.0);
        out.extend(self.count.to_be_bytes());
        out.extend(self.head);
    }

    fn parse(bytes: &[u8]) -> Self {
        Self {
            feed: FeedId(hash_at(bytes, 0)),
            count: u64_at(bytes, 32),
            head: hash_at(bytes, 40),
        }
    }
}

/// The hash of a frontier.
#[must_use]
pub fn frontier_hash(frontier: &[Observed]) -> Hash {
    let mut bytes = Vec::with_capacity(frontier.len() * OBSERVED_BYTES);
    for observed in frontier {
        observed.write(&mut bytes);
    }
    blake3::derive_key(FRONTIER_DOMAIN, &bytes)
}

/// What is wrong with a batch; whoever made or changed it is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BatchError {
    /// It ends before it should.
    #[error("the signed batch ends in the middle")]
    Short,
    /// Bytes follow it.
    #[error("{0} bytes follow the signed batch")]
    Trailing(usize),
    /// It is another object, or one of a later version.
    #[error("it is no signed batch of version 1")]
    Kind,
    /// A field has a length that it cannot have.
    #[error("a field of the signed batch, at byte {0}, has another length than it should")]
    Length(usize),
    /// The channel's name is none, or another's.
    #[error("the signed batch names no channel, or another than it is on")]
    Channel,
    /// Its events are none, more than there may be, or have numbers that there are not.
    #[error(
        "the signed batch has {count} events from number {first}: 1 to {BATCH_EVENTS_MAX} from 1 on is what it may have"
    )]
    Events {
        /// Number of the first.
        first: u64,
        /// How many.
        count: u32,
    },
    /// Its frontier has more entries than it may, is not in order, or names the batch's own feed.
    #[error("the frontier of the signed batch is not in order at entry {0}")]
    Frontier(usize),
    /// The frontier is not the one that was signed.
    #[error("the frontier is not the one that was signed")]
    FrontierHash,
    /// The first batch of a feed does not begin with it.
    #[error("the signed batch begins a feed, and not with that feed's first head")]
    Genesis,
    /// The key is none, or the signature is not its.
    #[error("the signature is not the entity's")]
    Signature,
    /// There are more or fewer events than were signed.
    #[error("{found} events are there where {signed} were signed, from number {first}")]
    Count {
        /// Number of the first.
        first: u64,
        /// By the statement.
        signed: u32,
        /// What was given.
        found: usize,
    },
    /// The events are not those that were signed.
    #[error("events {first} to {last} of the feed are not those that were signed")]
    Head {
        /// Number of the first.
        first: u64,
        /// Number of the last.
        last: u64,
    },
    /// An event's causal link is not what was signed.
    #[error("event {0} of the feed has another causal link than was signed")]
    Link(u64),
}

/// What is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The entity's ed25519 public key.
    pub entity: [u8; 32],
    /// Number of the first event, from 1.
    pub first: u64,
    /// How many events.
    pub count: u32,
    /// The head before the first.
    pub parent: Hash,
    /// The head after the last.
    pub head: Hash,
    /// The frontier's hash.
    pub frontier: Hash,
    /// The channel's full name.
    pub channel: LogName,
}

impl Statement {
    /// Whose feed it belongs to.
    #[must_use]
    pub fn feed(&self) -> FeedId {
        FeedId::of(&self.channel, &self.entity)
    }

    /// Number of its last event.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.first + (self.count as u64) - 1
    }

    /// The bytes that are signed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let name = self.channel.as_str().as_bytes();
        let mut out = Vec::with_capacity(STATEMENT_BYTES_MIN + name.len());
        out.extend(PREFIX);
        let mut field = |bytes: &[u8]| {
            // No field is longer than a name, of 255 bytes.
            let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
            out.extend(length.to_be_bytes());
            out.extend_from_slice(bytes);
        };
        field(&self.entity);
        field(&self.first.to_be_bytes());
        field(&self.count.to_be_bytes());
        field(&self.parent);
        field(&self.head);
        field(&self.frontier);
        field(name);
        out
    }

    /// Reads one from the front of `bytes`, and gives what follows it.
    fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), BatchError> {
        let (fixed, rest) = bytes
            .split_at_checked(STATEMENT_BYTES_MIN)
            .ok_or(BatchError::Short)?;
        if !fixed.starts_with(PREFIX) {
            return Err(BatchError::Kind);
        }
        for (at, length) in LENGTHS {
            if u16_at(fixed, at) != length {
                return Err(BatchError::Length(at));
            }
        }
        let name = usize::from(u16_at(fixed, STATEMENT_BYTES_MIN - 2));
        let (name, rest) = rest.split_at_checked(name).ok_or(BatchError::Short)?;
        let name = std::str::from_utf8(name).map_err(|_| BatchError::Channel)?;
        let statement = Self {
            entity: hash_at(fixed, 9),
            first: u64_at(fixed, 43),
            count: u32_at(fixed, SIGNED_COUNT_AT),
            parent: hash_at(fixed, 59),
            head: hash_at(fixed, 93),
            frontier: hash_at(fixed, 127),
            channel: LogName::parse(name).map_err(|_| BatchError::Channel)?,
        };
        statement.check_events()?;
        Ok((statement, rest))
    }

    /// Whether its events have numbers that there are, and are not too many.
    fn check_events(&self) -> Result<(), BatchError> {
        let (first, count) = (self.first, self.count);
        let is_counted = (1..=BATCH_EVENTS_MAX).contains(&(count as usize));
        match is_counted && first > 0 && first.checked_add(count.into()).is_some() {
            true => Ok(()),
            false => Err(BatchError::Events { first, count }),
        }
    }
}

/// A statement and its entity's signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// What is signed.
    pub statement: Statement,
    /// By the statement's entity.
    pub signature: [u8; SIGNATURE_BYTES],
}

impl Signed {
    /// The bytes of it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.statement.encode();
        out.extend(self.signature);
        out
    }

    fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), BatchError> {
        let (statement, rest) = Statement::parse(bytes)?;
        let (signature, rest) = rest.split_first_chunk().ok_or(BatchError::Short)?;
        let signature = *signature;
        let signed = Self {
            statement,
            signature,
        };
        Ok((signed, rest))
    }

    /// Whether the statement's entity signed it.
    ///
    /// # Errors
    /// [`BatchError::Signature`].
    pub fn check(&self) -> Result<(), BatchError> {
        let signature = Signature::from_bytes(&self.signature);
        let is_signed = VerifyingKey::from_bytes(&self.statement.entity).is_ok_and(|key| {
            let statement = self.statement.encode();
            key.verify_strict(&statement, &signature).is_ok()
        });
        match is_signed {
            true => Ok(()),
            false => Err(BatchError::Signature),
        }
    }
}

/// A batch without its events, as it was read: nothing of it is believed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// What its entity signed.
    pub signed: Signed,
    /// What its entity had newly observed before it, in the order of the feeds.
    pub frontier: Vec<Observed>,
}

impl Batch {
    /// The bytes of it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.signed.encode();
        // At most FRONTIER_FEEDS_MAX.
        let entries = u32::try_from(self.frontier.len()).unwrap_or(u32::MAX);
        out.extend(entries.to_be_bytes());
        for observed in &self.frontier {
            observed.write(&mut out);
        }
        out
    }

    /// Reads one.
    ///
    /// # Errors
    /// See [`BatchError`]: whatever can be seen without the events and without the signer's key.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        match Self::parse_first(bytes)? {
            (batch, []) => Ok(batch),
            (_, rest) => Err(BatchError::Trailing(rest.len())),
        }
    }

    /// Reads one from the front of `bytes`, and gives what follows it.
    ///
    /// # Errors
    /// As [`Batch::parse`].
    pub fn parse_first(bytes: &[u8]) -> Result<(Self, &[u8]), BatchError> {
        let (signed, rest) = Signed::parse(bytes)?;
        let (entries, rest) = rest.split_first_chunk().ok_or(BatchError::Short)?;
        let entries = u32::from_be_bytes(*entries) as usize;
        if entries > FRONTIER_FEEDS_MAX {
            return Err(BatchError::Frontier(FRONTIER_FEEDS_MAX));
        }
        let length = entries * OBSERVED_BYTES;
        let (entries, rest) = rest.split_at_checked(length).ok_or(BatchError::Short)?;
        let frontier = entries.chunks_exact(OBSERVED_BYTES).map(Observed::parse);
        let frontier = frontier.collect();
        let batch = Self { signed, frontier };
        batch.check_frontier()?;
        Ok((batch, rest))
    }

    pub(crate) fn check_frontier(&self) -> Result<(), BatchError> {
        let statement = &self.signed.statement;
        let (feed, mut before) = (statement.feed(), None);
        for (at, observed) in self.frontier.iter().enumerate() {
            let is_next = before.is_none_or(|before| before < observed.feed);
            if !is_next || observed.feed == feed || observed.count == 0 {
                return Err(BatchError::Frontier(at));
            }
            before = Some(observed.feed);
        }
        if frontier_hash(&self.frontier) != statement.frontier {
            return Err(BatchError::FrontierHash);
        }
        match statement.first == 1 && statement.parent != feed.0 {
            true => Err(BatchError::Genesis),
            false => Ok(()),
        }
    }

    /// Checks it against its events.
    ///
    /// # Errors
    /// See [`BatchError`]: which check failed, at which events.
    pub fn verify<'a>(
        self,
        payloads: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<Verified, BatchError> {
        let statement = &self.signed.statement;
        statement.check_events()?;
        if self.frontier.len() > FRONTIER_FEEDS_MAX {
            return Err(BatchError::Frontier(FRONTIER_FEEDS_MAX));
        }
        let (first, signed) = (statement.first, statement.count);
        let found = payloads.len();
        if found != signed as usize {
            return Err(BatchError::Count {
                first,
                signed,
                found,
            });
        }
        let numbered = (first..).zip(payloads);
        let head = numbered.fold(statement.parent, |before, (sequence, payload)| {
            next_head(&before, sequence, &statement.frontier, payload)
        });
        if head != statement.head {
            let last = statement.last();
            return Err(BatchError::Head { first, last });
        }
        self.check_frontier()?;
        self.signed.check()?;
        Ok(Verified(self))
    }

    /// Checks what its entity signed, where the log has none of its events any more.
    ///
    /// # Errors
    /// See [`BatchError`].
    pub(crate) fn verify_statement(self) -> Result<Verified, BatchError> {
        self.signed.statement.check_events()?;
        self.check_frontier()?;
        self.signed.check()?;
        Ok(Verified(self))
    }

    /// The causal links of its events, in order.
    pub fn links(&self) -> impl Iterator<Item = Link> + use<> {
        let statement = &self.signed.statement;
        let observed = match self.frontier.is_empty() {
            true => 0,
            false => u64_at(&statement.frontier, 0),
        };
        let entity: OriginHash = origin_hash(&statement.entity);
        (statement.first..=statement.last()).map(move |sequence| Link {
            entity,
            observed,
            parent: sequence - 1,
        })
    }

    /// Its events' number.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.signed.statement.count as usize
    }
}

/// A batch whose signature, frontier and events were checked; of one whose events compaction has taken, the first two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified(Batch);

impl Verified {
    /// The batch.
    #[must_use]
    pub const fn batch(&self) -> &Batch {
        &self.0
    }

    /// What its entity signed.
    #[must_use]
    pub const fn statement(&self) -> &Statement {
        &self.0.signed.statement
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u16::from_be_bytes(*field.unwrap_or(&[0; 2]))
}

fn hash_at(bytes: &[u8], at: usize) -> Hash {
    crate::format::array_at(bytes, at)
}
