//! A batch of which compaction has taken events.
//!
//! A batch's digest is the root of BLAKE3's tree over its records, in chunks of 1 KiB. What compaction takes out is
//! whole chunks; in their place stand the hashes of the largest subtrees without anything that is left. So digest and
//! chain are still computed from what is there, and every event that is left is shown to be the one that was
//! written, at its offset. Signatures stay, and so do the events of a signed batch of which any is left. Of one without
//! any, its entity's statement stays: the feed goes on over it.
//!
//! What no hash is of: which events are left, and where their records begin. Each record is in chunks that are there, and says
//! its own offset; and records stand one behind the other as far as their headers are there, with room for those between that are not.
//! Nor is any hash of whether there were signatures: of a batch of which nothing is left, whoever can write the file can leave out
//! what its entities signed, and so the proof that one of them contradicted itself.
//!
//! ```text
//! batch:   header 128 | size 8 | the rest
//!
//! header: as it was, but for its magic "vcmp"
//! size                                         the rest
//!  0   4 CRC-32C of bytes 4 to the end of all   0   4 how many events are left
//!  4   4 bytes of size and rest                 4   4 where signatures begin, as the records began at 0
//!                                               8   8 of each event: its number in the batch 4, where its record
//!                                                     begins 4
//!                                                   a bit a chunk, whether it is there, the first the lowest
//!                                                   hashes of 32, in the order of the bytes that they are of
//!                                                   the chunks that are there
//! ```

use crate::{
    format::{
        BATCH_HEADER_BYTES, BatchHeader, COMPACTED_MAGIC, Fault, Hash, RECORD_HEADER_BYTES, Record,
        u32_at, u64_at,
    },
    limits::BATCH_BYTES_MAX,
    signatures,
};
use blake3::{
    CHUNK_LEN, Hasher,
    hazmat::{
        HasherExt as _, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
    },
};
use std::ops::Range;

/// Bytes behind the header that say how many there are.
pub(crate) const SIZE_BYTES: usize = 8;
const COUNTS_BYTES: usize = 8;
const PLACE_BYTES: usize = 8;
const HASH_BYTES: usize = 32;
/// Bytes behind a header at most: no more than the records had, and a place for each.
pub(crate) const SPARSE_BYTES_MAX: usize = 2 * BATCH_BYTES_MAX;

/// A record has 48 bytes at least, its place 8, and there are no more hashes than chunks.
const _: () = assert!(PLACE_BYTES * 6 <= RECORD_HEADER_BYTES);
const _: () = assert!(HASH_BYTES * 8 <= CHUNK_LEN);
const _: () = assert!(SIZE_BYTES + COUNTS_BYTES < BATCH_BYTES_MAX / 2);

/// What is left of a batch, in its place: zeros where something was taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sparse {
    /// As the records were, with their signatures.
    pub(crate) bytes: Vec<u8>,
    /// Of each record that is left: its event's offset, and where it begins.
    pub(crate) places: Vec<(u64, usize)>,
    /// Where the signatures are.
    pub(crate) blocks_at: usize,
    chunks: Vec<bool>,
    hashes: Vec<Hash>,
}

fn chunks_of(bytes: usize) -> usize {
    bytes.div_ceil(CHUNK_LEN)
}

impl Sparse {
    /// Of a batch that is whole.
    pub(crate) fn whole(header: &BatchHeader, records: &[u8]) -> Result<Self, Fault> {
        let mut places = Vec::new();
        let mut rest = records;
        for offset in header.first_offset..header.end() {
            places.push((offset, records.len() - rest.len()));
            rest = Record::parse(rest)?.1;
        }
        Ok(Self {
            bytes: records.to_vec(),
            places,
            blocks_at: records.len() - rest.len(),
            chunks: vec![true; chunks_of(records.len())],
            hashes: Vec::new(),
        })
    }

    /// Reads what is behind the header of a compacted batch; its records are not looked at.
    pub(crate) fn parse(header: &BatchHeader, stored: &[u8]) -> Result<Self, Fault> {
        if stored.len() < SIZE_BYTES {
            return Err(Fault::Short);
        }
        if !is_intact(stored) {
            return Err(Fault::Checksum);
        }
        let (counts, rest) = stored
            .split_at_checked(SIZE_BYTES + COUNTS_BYTES)
            .ok_or(Fault::Short)?;
        let count = u32_at(counts, SIZE_BYTES) as usize;
        let blocks_at = u32_at(counts, SIZE_BYTES + 4) as usize;
        let is_room = header.count as usize <= header.bytes / RECORD_HEADER_BYTES;
        if !is_room || count > header.count as usize || blocks_at > header.bytes {
            return Err(Fault::Number);
        }
        let (table, rest) = rest
            .split_at_checked(count * PLACE_BYTES)
            .ok_or(Fault::Short)?;
        let place = |place: &[u8]| {
            let index = u64::from(u32_at(place, 0));
            let offset = header.first_offset.saturating_add(index);
            (offset, u32_at(place, 4) as usize)
        };
        let places: Vec<_> = table.chunks_exact(PLACE_BYTES).map(place).collect();
        let is_in_order = places
            .windows(2)
            .all(|two| two[0].0 < two[1].0 && two[0].1 < two[1].1);
        if !is_in_order || places.last().is_some_and(|last| last.0 >= header.end()) {
            return Err(Fault::Number);
        }
        let count = chunks_of(header.bytes);
        let (bits, mut rest) = rest
            .split_at_checked(count.div_ceil(8))
            .ok_or(Fault::Short)?;
        let chunks: Vec<bool> = (0..count)
            .map(|at| bits[at / 8] >> (at % 8) & 1 == 1)
            .collect();
        let mut hashes = Vec::new();
        for _ in 0..hashes_of(&chunks, header.bytes) {
            let (hash, behind) = rest.split_first_chunk::<HASH_BYTES>().ok_or(Fault::Short)?;
            hashes.push(*hash);
            rest = behind;
        }
        let mut bytes = vec![0; header.bytes];
        for (at, chunk) in bytes
            .chunks_mut(CHUNK_LEN)
            .enumerate()
            .filter(|(at, _)| chunks[*at])
        {
            let (there, behind) = rest.split_at_checked(chunk.len()).ok_or(Fault::Short)?;
            debug_assert!(chunks[at]);
            chunk.copy_from_slice(there);
            rest = behind;
        }
        match rest {
            [] => Ok(Self {
                bytes,
                places,
                blocks_at,
                chunks,
                hashes,
            }),
            _ => Err(Fault::Number),
        }
    }

    /// The record at a place.
    pub(crate) fn record(&self, (offset, at): (u64, usize)) -> Result<Record<'_>, Fault> {
        let bytes = self.bytes.get(at..self.blocks_at).ok_or(Fault::Number)?;
        match Record::parse(bytes)? {
            (record, _) if record.offset == offset => Ok(record),
            _ => Err(Fault::Order),
        }
    }

    /// Bytes of a record with its header.
    pub(crate) fn length(record: &Record<'_>) -> usize {
        RECORD_HEADER_BYTES + record.payload.len()
    }

    /// Whether events stand where they can. No hash is of the places; but as far as the headers of records are there, from the
    /// first on, each says where the next begins. Behind one that is not there is room at least for what is missing.
    fn check_places(&self, header: &BatchHeader) -> Result<(), (u64, Fault)> {
        let mut places = self.places.iter().copied().peekable();
        let (mut at, mut is_known) = (0_usize, true);
        let fits = |at: usize, is_known, found: usize| match is_known {
            true => found == at,
            false => found >= at,
        };
        for offset in header.first_offset..header.end() {
            let listed = places.next_if(|place| place.0 == offset);
            if listed.is_some_and(|place| !fits(at, is_known, place.1)) {
                return Err((offset, Fault::Order));
            }
            at = listed.map_or(at, |place| place.1);
            is_known |= listed.is_some();
            let head = self.head(at).filter(|_| is_known);
            if head.is_some_and(|(found, _)| found != offset) {
                return Err((offset, Fault::Order));
            }
            is_known = head.is_some();
            at = at.saturating_add(head.map_or(RECORD_HEADER_BYTES, |(_, length)| length));
        }
        match fits(at, is_known, self.blocks_at) {
            true => Ok(()),
            false => Err((header.end() - 1, Fault::Order)),
        }
    }

    /// The offset and length of the record at a place, where its header is there.
    fn head(&self, at: usize) -> Option<(u64, usize)> {
        let end = at.checked_add(RECORD_HEADER_BYTES)?;
        let head = self.bytes.get(at..end.min(self.blocks_at))?;
        let chunks = at / CHUNK_LEN..chunks_of(end);
        let is_there =
            head.len() == RECORD_HEADER_BYTES && !self.chunks.get(chunks)?.contains(&false);
        let length = usize::try_from(u32_at(head, 4)).ok()?;
        is_there.then(|| (u64_at(head, 8), RECORD_HEADER_BYTES.saturating_add(length)))
    }

    /// The signatures.
    pub(crate) fn blocks(&self) -> &[u8] {
        self.bytes.get(self.blocks_at..).unwrap_or_default()
    }

    /// The digest of the whole batch, of what is left and the hashes of what is not; none where nothing is left.
    pub(crate) fn digest(&self) -> Option<Hash> {
        if !self.chunks.contains(&true) {
            return None;
        }
        if self.chunks.len() == 1 {
            return Some(crate::format::digest(&self.bytes));
        }
        let mut tree = Tree::of(self, &self.chunks);
        let (left, right) = tree.children(0..self.bytes.len(), Emit::Nothing);
        Some(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes())
    }

    /// Which chunks are needed for these records and the signatures.
    pub(crate) fn needed(&self, keep: &[(u64, usize)]) -> Vec<bool> {
        let mut needed = vec![false; self.chunks.len()];
        let mut need = |range: Range<usize>| {
            if !range.is_empty() {
                needed[range.start / CHUNK_LEN..chunks_of(range.end)].fill(true);
            }
        };
        for &place in keep {
            let length = self.record(place).map_or(0, |record| Self::length(&record));
            need(place.1..place.1 + length);
        }
        need(self.blocks_at..self.bytes.len());
        needed
    }

    /// How many chunks are there.
    pub(crate) fn chunks(&self) -> usize {
        self.chunks.iter().filter(|is_there| **is_there).count()
    }

    /// The batch with these of its events, behind its header, which is 128 bytes as it stands now.
    pub(crate) fn write(
        &self,
        header: (&BatchHeader, &[u8; BATCH_HEADER_BYTES]),
        keep: &[(u64, usize)],
        out: &mut Vec<u8>,
    ) {
        let (header, head) = header;
        let needed = self.needed(keep);
        out.extend_from_slice(COMPACTED_MAGIC);
        out.extend_from_slice(&head[4..]);
        let begun = out.len();
        // A batch has no more than BATCH_BYTES_MAX.
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
        out.extend_from_slice(&[0; SIZE_BYTES]);
        out.extend(number(keep.len()));
        out.extend(number(self.blocks_at));
        for (offset, at) in keep {
            let index = u32::try_from(offset - header.first_offset).unwrap_or(u32::MAX);
            out.extend(index.to_be_bytes());
            out.extend(number(*at));
        }
        let bits = needed.chunks(8).map(|eight| {
            let bits = eight.iter().enumerate();
            bits.fold(0, |byte, (at, is_there)| byte | u8::from(*is_there) << at)
        });
        out.extend(bits);
        let mut tree = Tree::of(self, &needed);
        if needed.contains(&true) && needed.len() > 1 {
            let _root = tree.children(0..self.bytes.len(), Emit::Hashes);
        }
        for hash in &tree.emitted {
            out.extend_from_slice(hash);
        }
        for (chunk, _) in self
            .bytes
            .chunks(CHUNK_LEN)
            .zip(&needed)
            .filter(|(_, is)| **is)
        {
            out.extend_from_slice(chunk);
        }
        let size = number(out.len() - begun);
        out[begun + 4..begun + 8].copy_from_slice(&size);
        let checksum = crc32c::crc32c(&out[begun + 4..]);
        out[begun..begun + 4].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Whether all that is left of a batch is as it was written.
pub(crate) fn check(header: &BatchHeader, stored: &[u8]) -> Result<Sparse, (u64, Fault)> {
    let at_first = |fault| (header.first_offset, fault);
    let sparse = Sparse::parse(header, stored).map_err(at_first)?;
    for place in &sparse.places {
        sparse.record(*place).map_err(|fault| (place.0, fault))?;
    }
    // What is not there is read as zeros, which no hash is of.
    let needed = sparse.needed(&sparse.places);
    let mut both = needed.iter().zip(&sparse.chunks);
    if both.any(|(is_needed, is_there)| *is_needed && !is_there) {
        return Err(at_first(Fault::Hash));
    }
    sparse.check_places(header)?;
    signatures::check_blocks(header, sparse.blocks())?;
    Ok(sparse)
}

/// Whether what is behind a header has the checksum that it says.
pub(crate) fn is_intact(stored: &[u8]) -> bool {
    let checked = stored.get(4..).unwrap_or_default();
    crc32c::crc32c(checked) == u32_at(stored, 0)
}

/// How many events are left of a batch, by what is behind its header alone.
pub(crate) fn left(header: &BatchHeader, stored: &[u8]) -> u64 {
    u64::from(u32_at(stored, SIZE_BYTES).min(header.count))
}

/// How many hashes stand for the chunks that are not there; none where nothing is.
fn hashes_of(chunks: &[bool], bytes: usize) -> usize {
    if !chunks.contains(&true) {
        return 0;
    }
    below(chunks, bytes)
}

fn below(chunks: &[bool], bytes: usize) -> usize {
    match (chunks.contains(&true), chunks.contains(&false)) {
        (false, _) => 1,
        (true, false) => 0,
        (true, true) => {
            let left = left_len(bytes);
            let (first, rest) = chunks.split_at(left / CHUNK_LEN);
            below(first, left) + below(rest, bytes - left)
        }
    }
}

/// Bytes of the left half of a subtree of more than a chunk.
fn left_len(bytes: usize) -> usize {
    usize::try_from(left_subtree_len(bytes as u64)).unwrap_or(bytes)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Emit {
    Nothing,
    Hashes,
}

/// BLAKE3's tree over a batch that may be sparse already.
struct Tree<'a> {
    sparse: &'a Sparse,
    needed: &'a [bool],
    used: usize,
    emitted: Vec<Hash>,
}

impl<'a> Tree<'a> {
    const fn of(sparse: &'a Sparse, needed: &'a [bool]) -> Self {
        Self {
            sparse,
            needed,
            used: 0,
            emitted: Vec::new(),
        }
    }

    fn children(&mut self, range: Range<usize>, emit: Emit) -> (Hash, Hash) {
        let middle = range.start + left_len(range.len());
        let left = self.hash(range.start..middle, emit);
        (left, self.hash(middle..range.end, emit))
    }

    /// The hash of a subtree, and notes those of the largest without anything that is needed.
    fn hash(&mut self, range: Range<usize>, emit: Emit) -> Hash {
        let chunks = range.start / CHUNK_LEN..chunks_of(range.end);
        let (there, needed) = (&self.sparse.chunks[chunks.clone()], &self.needed[chunks]);
        if emit == Emit::Hashes && !needed.contains(&true) {
            let hash = self.hash(range, Emit::Nothing);
            self.emitted.push(hash);
            return hash;
        }
        if !there.contains(&true) {
            let hash = self.sparse.hashes.get(self.used).copied();
            self.used += 1;
            return hash.unwrap_or_default();
        }
        let is_all_there = !there.contains(&false);
        if there.len() == 1 || is_all_there && (emit == Emit::Nothing || !needed.contains(&false)) {
            let mut hasher = Hasher::new();
            hasher.set_input_offset(range.start as u64);
            hasher.update(&self.sparse.bytes[range]);
            return hasher.finalize_non_root();
        }
        let (left, right) = self.children(range, emit);
        merge_subtrees_non_root(&left, &right, Mode::Hash)
    }
}

#[cfg(test)]
mod tests;
