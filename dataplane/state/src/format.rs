//! A log's files, byte by byte.
//!
//! A log is a folder: one `manifest`, segments `0000000001.seg`, `0000000002.seg` …, beside each
//! segment that is full its index (`.idx`), what recovery put aside (`.torn-POSITION-COPY`), what
//! compaction makes (`.compacting`), and of a log on several
//! nodes its `replica` and what was cut off (`.cut-POSITION-COPY`), see [`crate::replica`]. All numbers are
//! big-endian.
//!
//! ```text
//! segment:  header 76 | batch | batch | … | zeros (preallocated) in the last one
//! batch:    header 128 | record | record | … | signatures, see `signatures`; once compacted, see `sparse`
//! record:   header 48 | payload
//! index:    magic 8 | entries of 24 | checksum 4
//! manifest: slot 0 at 0 | slot 1 at 4096, each of 384 bytes, written in turn
//!
//! segment header                               batch header
//!  0   8 magic "virgaseg"                       0   4 magic "vbat"
//!  8   4 version 2; 3 once it is compacted      4   4 CRC-32C of bytes 8 to 128
//! 12   4 number, as in the file's name          8   4 bytes of its records and signatures
//! 16  16 the log's id                          12   4 how many records
//! 32   8 offset of its first event             16   8 offset of its first event
//! 40  32 chain before its first batch          24   8 durable: events below this were on disk
//! 72   4 CRC-32C of bytes 0 to 72                     for good when the batch was made
//!                                              32   8 time of its first event
//! record header                                40   8 time of its last event
//!  0   4 CRC-32C of bytes 4 to the end         48  16 the log's id
//!  4   4 bytes of the payload                  64  32 digest: BLAKE3 of these
//!  8   8 offset                                96  32 chain: BLAKE3, keyed, of the chain before
//! 16   8 time, nanoseconds since 1970                 and of bytes 8 to 96
//! 24  24 causal link, see `Link`
//!
//! index entry                                  manifest slot
//!  0   8 offset of a batch's first event        0   8 magic "virgalog"
//!  8   8 position of that batch                 8   4 version 1
//! 16   8 time of its first event               12   4 number of the first segment that is kept
//!                                              16  16 the log's id
//!                                              32   8 generation: the higher slot counts
//!                                              40   8 1 + the end, if the log was closed; else 0
//!                                              48  32 chain at that end
//!                                              80   1 bytes of the name
//!                                              81 255 the name, then zeros
//!                                             336  44 zeros
//!                                             380   4 CRC-32C of bytes 0 to 380
//! ```
//!
//! The chain before the first batch of a log is the keyed BLAKE3 of the log's id. Every later
//! version begins its segments and manifest slots with headers of these sizes, with magic, version
//! and checksum in these places, so that a newer version is told from damage. A segment of version 1
//! has no signatures; it is read as ever, and nothing more is written to it.

use crate::{
    batch::BatchError,
    event::{LINK_BYTES, Link},
    sparse::{SIZE_BYTES, SPARSE_BYTES_MAX},
};

/// See the module.
pub const SEGMENT_HEADER_BYTES: usize = 76;
/// See the module.
pub const BATCH_HEADER_BYTES: usize = 128;
/// See the module.
pub const RECORD_HEADER_BYTES: usize = 48;
/// See the module.
pub const INDEX_ENTRY_BYTES: usize = 24;
/// See the module.
pub const MANIFEST_SLOT_BYTES: usize = 384;
/// Where the slots begin; no write of one touches a sector of the other.
pub const MANIFEST_SLOTS_AT: [u64; 2] = [0, 4096];
/// The version of a manifest.
pub const VERSION: u32 = 1;
/// The version of a segment that is written.
pub const SEGMENT_VERSION: u32 = 2;
/// The version of a segment that compaction has made of one.
pub const COMPACTED_VERSION: u32 = 3;

const SEGMENT_MAGIC: &[u8; 8] = b"virgaseg";
pub(crate) const BATCH_MAGIC: &[u8; 4] = b"vbat";
pub(crate) const COMPACTED_MAGIC: &[u8; 4] = b"vcmp";
const INDEX_MAGIC: &[u8; 8] = b"virgaidx";
const MANIFEST_MAGIC: &[u8; 8] = b"virgalog";
const CHAIN_DOMAIN: &str = "virga 2026 log chain v1";

const _: () = assert!(SEGMENT_HEADER_BYTES == 8 + 4 + 4 + 16 + 8 + 32 + 4);
const _: () = assert!(BATCH_HEADER_BYTES == 4 + 4 + 4 + 4 + 8 + 8 + 8 + 8 + 16 + 32 + 32);
const _: () = assert!(RECORD_HEADER_BYTES == 4 + 4 + 8 + 8 + LINK_BYTES);
const _: () = assert!(INDEX_ENTRY_BYTES == 8 + 8 + 8);
const _: () = assert!(MANIFEST_SLOT_BYTES == 8 + 4 + 4 + 16 + 8 + 8 + 32 + 1 + 255 + 44 + 4);
const _: () = assert!(MANIFEST_SLOTS_AT[0] + MANIFEST_SLOT_BYTES as u64 <= MANIFEST_SLOTS_AT[1]);

/// Tells a log's files from all others'; chosen at random when it is made.
pub type LogId = [u8; 16];
/// A full-width hash.
pub type Hash = [u8; 32];

/// Why bytes are not what should stand there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nothing was ever written there.
    #[error("nothing is written there")]
    Zero,
    /// The file ends before.
    #[error("the file ends there")]
    Short,
    /// It begins with other bytes.
    #[error("it does not begin as it should")]
    Magic,
    /// It was changed, or never fully written.
    #[error("its checksum is wrong")]
    Checksum,
    /// A newer program wrote it.
    #[error(
        "its version is {0}, which this program does not know: use the program that wrote it, or a newer one"
    )]
    Version(u32),
    /// It is from another log.
    #[error("it belongs to another log")]
    OtherLog,
    /// A length or number in it cannot be.
    #[error("a length or number in it cannot be")]
    Number,
    /// It does not continue what stands before it.
    #[error("it does not continue what stands before it")]
    Order,
    /// The hash of its content, or of all before it, is another.
    #[error("its hash is wrong")]
    Hash,
    /// Compaction has taken events that all would be needed of.
    #[error("compaction has taken events of it")]
    Compacted,
    /// It was kept as signed, and is not as its entity signed it.
    #[error("{0}")]
    Signature(BatchError),
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u32::from_be_bytes(*field.unwrap_or(&[0; 4]))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u64::from_be_bytes(*field.unwrap_or(&[0; 8]))
}

pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    *field.unwrap_or(&[0; N])
}

fn put<const N: usize>(out: &mut [u8], at: usize, value: [u8; N]) {
    out[at..at + N].copy_from_slice(&value);
}

/// Whether nothing was written there.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // A branch a chunk, not a byte: whole segments of zeros are looked at.
    let is_zero = |chunk: &[u8]| chunk.iter().fold(0, |any, byte| any | byte) == 0;
    bytes.chunks(256).all(is_zero)
}

/// The chain before the first batch of a log.
#[must_use]
pub fn first_chain(id: &LogId) -> Hash {
    blake3::derive_key(CHAIN_DOMAIN, id)
}

/// The chain after a batch with this header, of which `bytes` holds all but the chain.
fn next_chain(before: &Hash, bytes: &[u8; BATCH_HEADER_BYTES]) -> Hash {
    let mut hasher = blake3::Hasher::new_keyed(before);
    hasher.update(&bytes[8..96]);
    *hasher.finalize().as_bytes()
}

/// The hash of a batch's records.
#[must_use]
pub fn digest(records: &[u8]) -> Hash {
    *blake3::hash(records).as_bytes()
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// What may be in it: [`SEGMENT_VERSION`], [`COMPACTED_VERSION`], or 1.
    pub version: u32,
    /// As in the file's name.
    pub number: u32,
    /// Whose segment it is.
    pub id: LogId,
    /// Of its first event.
    pub first_offset: u64,
    /// Before its first batch.
    pub chain: Hash,
}

impl SegmentHeader {
    /// The bytes of it.
    #[must_use]
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        put(&mut out, 0, *SEGMENT_MAGIC);
        put(&mut out, 8, self.version.to_be_bytes());
        put(&mut out, 12, self.number.to_be_bytes());
        put(&mut out, 16, self.id);
        put(&mut out, 32, self.first_offset.to_be_bytes());
        put(&mut out, 40, self.chain);
        let checksum = crc32c::crc32c(&out[..72]);
        put(&mut out, 72, checksum.to_be_bytes());
        out
    }

    /// Reads one.
    ///
    /// # Errors
    /// See [`Fault`]; `Zero` where the segment was made and never used.
    pub fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let bytes: &[u8; SEGMENT_HEADER_BYTES] = bytes.first_chunk().ok_or(Fault::Short)?;
        if is_zero(bytes) {
            return Err(Fault::Zero);
        }
        if &bytes[..8] != SEGMENT_MAGIC {
            return Err(Fault::Magic);
        }
        if crc32c::crc32c(&bytes[..72]) != u32_at(bytes, 72) {
            return Err(Fault::Checksum);
        }
        let version = u32_at(bytes, 8);
        if !(1..=COMPACTED_VERSION).contains(&version) {
            return Err(Fault::Version(version));
        }
        Ok(Self {
            version,
            number: u32_at(bytes, 12),
            id: array_at(bytes, 16),
            first_offset: u64_at(bytes, 32),
            chain: array_at(bytes, 40),
        })
    }
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Bytes of its records.
    pub bytes: usize,
    /// Bytes behind the header of one that is compacted: see `sparse`.
    pub sparse_bytes: Option<usize>,
    /// How many they are.
    pub count: u32,
    /// Offset of the first.
    pub first_offset: u64,
    /// Events below were on disk for good when it was made.
    pub durable: u64,
    /// Time of the first event.
    pub first_time: u64,
    /// Time of the last event.
    pub last_time: u64,
    /// Whose batch it is.
    pub id: LogId,
    /// Of its records.
    pub digest: Hash,
    /// After it.
    pub chain: Hash,
}

impl BatchHeader {
    /// Offset of the first event after it.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first_offset.saturating_add(self.count as u64)
    }

    /// Writes it with its chain, which it returns.
    pub(crate) fn write(&self, before: &Hash, out: &mut [u8; BATCH_HEADER_BYTES]) -> Hash {
        put(out, 0, *BATCH_MAGIC);
        // No batch is longer than BATCH_BYTES_MAX.
        let bytes = u32::try_from(self.bytes).unwrap_or(u32::MAX);
        put(out, 8, bytes.to_be_bytes());
        put(out, 12, self.count.to_be_bytes());
        put(out, 16, self.first_offset.to_be_bytes());
        put(out, 24, self.durable.to_be_bytes());
        put(out, 32, self.first_time.to_be_bytes());
        put(out, 40, self.last_time.to_be_bytes());
        put(out, 48, self.id);
        put(out, 64, self.digest);
        let chain = next_chain(before, out);
        put(out, 96, chain);
        let checksum = crc32c::crc32c(&out[8..]);
        put(out, 4, checksum.to_be_bytes());
        chain
    }

    /// Reads one of this log.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn parse(bytes: &[u8], id: &LogId) -> Result<Self, Fault> {
        let behind = bytes.get(BATCH_HEADER_BYTES..).unwrap_or_default();
        let bytes: &[u8; BATCH_HEADER_BYTES] = bytes.first_chunk().ok_or(Fault::Short)?;
        let is_compacted = &bytes[..4] == COMPACTED_MAGIC;
        if &bytes[..4] != BATCH_MAGIC && !is_compacted {
            return Err(if is_zero(bytes) {
                Fault::Zero
            } else {
                Fault::Magic
            });
        }
        if crc32c::crc32c(&bytes[8..]) != u32_at(bytes, 4) {
            return Err(Fault::Checksum);
        }
        if is_compacted && behind.len() < SIZE_BYTES {
            return Err(Fault::Short);
        }
        let header = Self {
            bytes: usize::try_from(u32_at(bytes, 8)).map_err(|_| Fault::Number)?,
            sparse_bytes: is_compacted.then(|| u32_at(behind, 4) as usize),
            count: u32_at(bytes, 12),
            first_offset: u64_at(bytes, 16),
            durable: u64_at(bytes, 24),
            first_time: u64_at(bytes, 32),
            last_time: u64_at(bytes, 40),
            id: array_at(bytes, 48),
            digest: array_at(bytes, 64),
            chain: array_at(bytes, 96),
        };
        if header.id != *id {
            return Err(Fault::OtherLog);
        }
        let is_sparse = |bytes: usize| (SIZE_BYTES..=SPARSE_BYTES_MAX).contains(&bytes);
        let is_bounded = header.bytes <= crate::limits::BATCH_BYTES_MAX
            && header.count > 0
            && header.sparse_bytes.is_none_or(is_sparse);
        match is_bounded
            && header
                .first_offset
                .checked_add(header.count.into())
                .is_some()
        {
            true => Ok(header),
            false => Err(Fault::Number),
        }
    }

    /// Whether a batch with this header and chain comes after a chain; `bytes` are the header's.
    pub(crate) fn continues(&self, before: &Hash, bytes: &[u8]) -> bool {
        let bytes = bytes.first_chunk();
        bytes.is_some_and(|bytes| next_chain(before, bytes) == self.chain)
    }
}

/// One record, still with the bytes that it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// See the module.
    pub offset: u64,
    /// See the module.
    pub time: u64,
    /// See the module.
    pub link: Link,
    /// See the module.
    pub payload: &'a [u8],
}

impl<'a> Record<'a> {
    /// Appends a record.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let mut header = [0; RECORD_HEADER_BYTES];
        // No payload is longer than EVENT_BYTES_MAX.
        let bytes = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        put(&mut header, 4, bytes.to_be_bytes());
        put(&mut header, 8, self.offset.to_be_bytes());
        put(&mut header, 16, self.time.to_be_bytes());
        put(&mut header, 24, self.link.encode());
        let checksum = crc32c::crc32c(&header[4..]);
        let checksum = crc32c::crc32c_append(checksum, self.payload);
        put(&mut header, 0, checksum.to_be_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(self.payload);
    }

    /// Reads the first of `bytes`, and gives what follows it.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), Fault> {
        let (header, rest) = bytes
            .split_first_chunk::<RECORD_HEADER_BYTES>()
            .ok_or(Fault::Short)?;
        let length = usize::try_from(u32_at(header, 4)).map_err(|_| Fault::Number)?;
        let (payload, rest) = rest.split_at_checked(length).ok_or(Fault::Number)?;
        let record = &bytes[4..RECORD_HEADER_BYTES + length];
        if crc32c::crc32c(record) != u32_at(header, 0) {
            return Err(Fault::Checksum);
        }
        let record = Self {
            offset: u64_at(header, 8),
            time: u64_at(header, 16),
            link: Link::parse(&array_at(header, 24)),
            payload,
        };
        Ok((record, rest))
    }
}

/// Where a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Of its first event.
    pub offset: u64,
    /// In its segment.
    pub at: u64,
    /// Of its first event.
    pub time: u64,
}

/// The bytes of an index.
#[must_use]
pub fn encode_index(entries: &[IndexEntry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + entries.len() * INDEX_ENTRY_BYTES + 4);
    out.extend_from_slice(INDEX_MAGIC);
    for entry in entries {
        out.extend(entry.offset.to_be_bytes());
        out.extend(entry.at.to_be_bytes());
        out.extend(entry.time.to_be_bytes());
    }
    let checksum = crc32c::crc32c(&out);
    out.extend(checksum.to_be_bytes());
    out
}

/// Reads an index.
///
/// # Errors
/// See [`Fault`]; it is then made anew from its segment.
pub fn parse_index(bytes: &[u8]) -> Result<Vec<IndexEntry>, Fault> {
    let (body, checksum) = bytes.split_last_chunk::<4>().ok_or(Fault::Short)?;
    if crc32c::crc32c(body) != u32::from_be_bytes(*checksum) {
        return Err(Fault::Checksum);
    }
    let entries = body.strip_prefix(INDEX_MAGIC).ok_or(Fault::Magic)?;
    if entries.len() % INDEX_ENTRY_BYTES != 0 {
        return Err(Fault::Number);
    }
    let entry = |bytes: &[u8]| IndexEntry {
        offset: u64_at(bytes, 0),
        at: u64_at(bytes, 8),
        time: u64_at(bytes, 16),
    };
    Ok(entries.chunks(INDEX_ENTRY_BYTES).map(entry).collect())
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Number of the first segment that is kept.
    pub first_segment: u32,
    /// Whose manifest it is.
    pub id: LogId,
    /// Of two slots the higher counts.
    pub generation: u64,
    /// End and chain, if the log was closed.
    pub closed: Option<(u64, Hash)>,
    /// What the log is called.
    pub name: crate::LogName,
}

impl Manifest {
    /// Where it is written.
    #[must_use]
    pub const fn at(&self) -> u64 {
        MANIFEST_SLOTS_AT[(self.generation % 2) as usize]
    }

    /// The bytes of it.
    #[must_use]
    pub fn encode(&self) -> [u8; MANIFEST_SLOT_BYTES] {
        let mut out = [0; MANIFEST_SLOT_BYTES];
        put(&mut out, 0, *MANIFEST_MAGIC);
        put(&mut out, 8, VERSION.to_be_bytes());
        put(&mut out, 12, self.first_segment.to_be_bytes());
        put(&mut out, 16, self.id);
        put(&mut out, 32, self.generation.to_be_bytes());
        if let Some((end, chain)) = self.closed {
            put(&mut out, 40, end.saturating_add(1).to_be_bytes());
            put(&mut out, 48, chain);
        }
        let name = self.name.as_str().as_bytes();
        // A valid name has 1 to 255 bytes.
        out[80] = u8::try_from(name.len()).unwrap_or(u8::MAX);
        out[81..81 + name.len()].copy_from_slice(name);
        let checksum = crc32c::crc32c(&out[..380]);
        put(&mut out, 380, checksum.to_be_bytes());
        out
    }

    /// Reads one slot.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let bytes: &[u8; MANIFEST_SLOT_BYTES] = bytes.first_chunk().ok_or(Fault::Short)?;
        if is_zero(bytes) {
            return Err(Fault::Zero);
        }
        if &bytes[..8] != MANIFEST_MAGIC {
            return Err(Fault::Magic);
        }
        if crc32c::crc32c(&bytes[..380]) != u32_at(bytes, 380) {
            return Err(Fault::Checksum);
        }
        match u32_at(bytes, 8) {
            VERSION => {}
            version => return Err(Fault::Version(version)),
        }
        let name = bytes[81..].get(..bytes[80].into()).ok_or(Fault::Number)?;
        let name = std::str::from_utf8(name).map_err(|_| Fault::Number)?;
        let closed = u64_at(bytes, 40).checked_sub(1);
        Ok(Self {
            first_segment: u32_at(bytes, 12),
            id: array_at(bytes, 16),
            generation: u64_at(bytes, 32),
            closed: closed.map(|end| (end, array_at(bytes, 48))),
            name: crate::LogName::parse(name).map_err(|_| Fault::Number)?,
        })
    }
}

/// The file of a segment.
#[must_use]
pub fn segment_name(number: u32) -> String {
    format!("{number:010}.seg")
}

/// The file of a segment's index.
#[must_use]
pub fn index_name(number: u32) -> String {
    format!("{number:010}.idx")
}

/// The file of what recovery cut off a segment: a segment's number is used again where nothing else was in it.
#[must_use]
pub fn torn_name(number: u32, at: u64, copy: u32) -> String {
    format!("{number:010}.torn-{at}-{copy}")
}

/// The file that compaction makes of a segment, before it takes that one's place.
#[must_use]
pub fn compacting_name(number: u32) -> String {
    format!("{number:010}.compacting")
}

/// Whether a file is one that compaction was making.
#[must_use]
pub fn is_compacting(name: &str) -> bool {
    let number = name
        .strip_suffix(".compacting")
        .and_then(|number| number.parse().ok());
    number.is_some_and(|number| compacting_name(number) == name)
}

/// Which segment's file has this name.
#[must_use]
pub fn segment_of(name: &str) -> Option<u32> {
    let number: u32 = name.strip_suffix(".seg")?.parse().ok()?;
    (number > 0 && segment_name(number) == name).then_some(number)
}

/// The file that says what log it is.
pub const MANIFEST_NAME: &str = "manifest";
