//! The signatures of a batch's events, behind its records.
//!
//! ```text
//! block: header 16 | signed batch, without its events: see `batch`
//!
//! block header
//!  0   4 CRC-32C of bytes 4 to the end
//!  4   4 bytes of the signed batch
//!  8   8 offset of its first event; the others follow, all in the batch that the block is in
//! ```

use crate::{
    batch::{Batch, Verified},
    format::{BatchHeader, Fault, Record, u32_at, u64_at},
    sparse::Sparse,
};
use std::ops::Range;

/// See the module.
pub const BLOCK_HEADER_BYTES: usize = 16;

const _: () = assert!(BLOCK_HEADER_BYTES == 4 + 4 + 8);

/// A block, still with the bytes that it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block<'a> {
    /// Of the first event that was signed.
    pub offset: u64,
    /// See the module.
    pub signed: &'a [u8],
}

impl<'a> Block<'a> {
    /// Appends a block.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let mut header = [0; BLOCK_HEADER_BYTES];
        // At most SIGNED_BYTES_MAX and a frontier.
        let bytes = u32::try_from(self.signed.len()).unwrap_or(u32::MAX);
        header[4..8].copy_from_slice(&bytes.to_be_bytes());
        header[8..].copy_from_slice(&self.offset.to_be_bytes());
        let checksum = crc32c::crc32c(&header[4..]);
        let checksum = crc32c::crc32c_append(checksum, self.signed);
        header[..4].copy_from_slice(&checksum.to_be_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(self.signed);
    }

    /// Reads the first of `bytes`, and gives what follows it.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), Fault> {
        let (header, rest) = bytes
            .split_first_chunk::<BLOCK_HEADER_BYTES>()
            .ok_or(Fault::Short)?;
        let length = usize::try_from(u32_at(header, 4)).map_err(|_| Fault::Number)?;
        let (signed, rest) = rest.split_at_checked(length).ok_or(Fault::Number)?;
        if crc32c::crc32c(&bytes[4..BLOCK_HEADER_BYTES + length]) != u32_at(header, 0) {
            return Err(Fault::Checksum);
        }
        let offset = u64_at(header, 8);
        Ok((Self { offset, signed }, rest))
    }
}

/// The events of a batch that was found good, and who signed them.
#[derive(Debug)]
pub struct Content<'a> {
    records: Vec<Record<'a>>,
    blocks: Vec<Block<'a>>,
    /// Whether events may be missing.
    is_compacted: bool,
}

impl<'a> Content<'a> {
    /// Of a batch whose records and blocks were checked.
    pub(crate) fn of(header: &BatchHeader, mut bytes: &'a [u8]) -> Result<Self, Fault> {
        let mut records = Vec::new();
        for _ in 0..header.count {
            let (record, rest) = Record::parse(bytes)?;
            records.push(record);
            bytes = rest;
        }
        Ok(Self {
            records,
            blocks: blocks(bytes)?,
            is_compacted: false,
        })
    }

    /// Of what compaction left of a batch.
    pub(crate) fn of_sparse(sparse: &'a Sparse) -> Result<Self, Fault> {
        let records = sparse.places.iter().map(|place| sparse.record(*place));
        Ok(Self {
            records: records.collect::<Result<_, _>>()?,
            blocks: blocks(sparse.blocks())?,
            is_compacted: true,
        })
    }

    /// The events that are there.
    pub(crate) fn records(&self) -> &[Record<'a>] {
        &self.records
    }

    /// Each signed batch's range of events, in order.
    pub(crate) fn signed_ranges(&self) -> Result<Vec<Range<u64>>, Fault> {
        let range = |block: &Block<'_>| {
            let batch = Batch::parse(block.signed).map_err(Fault::Signature)?;
            Ok(block.offset..block.offset.saturating_add(batch.count() as u64))
        };
        self.blocks.iter().map(range).collect()
    }

    /// Each signed batch that can be read, unchecked, with the offset of its first event.
    pub(crate) fn batches(&self) -> impl Iterator<Item = (u64, Batch)> {
        let blocks = self.blocks.iter();
        blocks.filter_map(|block| Some((block.offset, Batch::parse(block.signed).ok()?)))
    }

    /// The events of a range that are there.
    pub(crate) fn within(&self, range: &Range<u64>) -> &[Record<'a>] {
        let before = |end| self.records.partition_point(|record| record.offset < end);
        let (from, to) = (before(range.start), before(range.end));
        &self.records[from..to.max(from)]
    }

    /// Each signed batch with the offset of its first event; an error where it is not as it was signed, or has
    /// events that another has.
    pub(crate) fn signed(&self) -> impl Iterator<Item = (u64, Result<Verified, Fault>)> {
        let mut free = 0;
        self.blocks.iter().map(move |block| {
            let checked = match block.offset < free {
                true => Err(Fault::Order),
                false => self.check(block),
            };
            if let Ok(batch) = &checked {
                free = block.offset + batch.batch().count() as u64;
            }
            (block.offset, checked)
        })
    }

    fn check(&self, block: &Block<'_>) -> Result<Verified, Fault> {
        let batch = Batch::parse(block.signed).map_err(Fault::Signature)?;
        let end = block.offset.saturating_add(batch.count() as u64);
        let records = self.within(&(block.offset..end));
        if records.is_empty() && self.is_compacted {
            return batch.verify_statement().map_err(Fault::Signature);
        }
        // None is there twice: they are in the order of their offsets.
        if records.len() != batch.count() {
            return Err(Fault::Order);
        }
        let differs = |(link, record): &(crate::Link, &Record<'_>)| *link != record.link;
        if let Some((link, _)) = batch.links().zip(records).find(differs) {
            let number = link.parent.saturating_add(1);
            return Err(Fault::Signature(crate::batch::BatchError::Link(number)));
        }
        let payloads = records.iter().map(|record| record.payload);
        batch.verify(payloads).map_err(Fault::Signature)
    }
}

fn blocks(mut bytes: &[u8]) -> Result<Vec<Block<'_>>, Fault> {
    let mut blocks = Vec::new();
    while !bytes.is_empty() {
        let (block, rest) = Block::parse(bytes)?;
        blocks.push(block);
        bytes = rest;
    }
    Ok(blocks)
}

/// Whether blocks fill all of `bytes`, and are for events of the batch; else the first offset that is wrong.
pub(crate) fn check_blocks(header: &BatchHeader, mut bytes: &[u8]) -> Result<(), (u64, Fault)> {
    let mut next = header.first_offset;
    while !bytes.is_empty() {
        match Block::parse(bytes) {
            Ok((block, rest)) if (next..header.end()).contains(&block.offset) => {
                next = block.offset + 1;
                bytes = rest;
            }
            Ok(_) => return Err((next, Fault::Order)),
            Err(fault) => return Err((next, fault)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LogName, feed::FeedEnd};
    use ed25519_dalek::SigningKey;

    #[test]
    fn no_event_is_signed_twice() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let channel = LogName::parse("a").unwrap();
        let mut begin = FeedEnd::new(channel, key.verifying_key().to_bytes());
        let mut end = begin.clone();
        let payloads = [&b"a"[..], b"b"];
        let sign = |end: &mut FeedEnd, range: Range<usize>| {
            let payloads = payloads[range].iter().copied();
            end.sign(&key, Vec::new(), payloads).unwrap()
        };
        let whole = sign(&mut end, 0..2);
        let _first = sign(&mut begin, 0..1);
        let rest = sign(&mut begin, 1..2);
        let records = whole.links().zip(payloads).zip(0..);
        let records = records.map(|((link, payload), offset)| Record {
            offset,
            time: 0,
            link,
            payload,
        });
        let signed = [(0, whole.encode()), (1, rest.encode())];
        let blocks = signed.iter().map(|(offset, signed)| Block {
            offset: *offset,
            signed,
        });
        let content = Content {
            records: records.collect(),
            blocks: blocks.collect(),
            is_compacted: false,
        };
        let checked: Vec<_> = content
            .signed()
            .map(|(at, of)| (at, of.map(drop)))
            .collect();
        assert_eq!(checked, [(0, Ok(())), (1, Err(Fault::Order))]);
    }
}
