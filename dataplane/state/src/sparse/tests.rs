//! A batch, and what is left of it.

use super::*;
use crate::{
    format::{digest, first_chain},
    tests::{crash::Random, world::link},
    walk,
};

const ID: [u8; 16] = [7; 16];

/// A batch of random events.
fn batch(random: &mut Random) -> Vec<u8> {
    let count = 1 + random.below(40);
    let mut records = Vec::new();
    for offset in 100..100 + count {
        let length = usize::try_from(random.below(1_500)).unwrap();
        let payload: Vec<u8> = (0..length)
            .map(|at| u8::try_from((at as u64 * 3 + offset) % 251).unwrap())
            .collect();
        let record = Record {
            offset,
            time: offset,
            link: link(offset),
            payload: &payload,
        };
        record.write(&mut records);
    }
    let header = BatchHeader {
        bytes: records.len(),
        sparse_bytes: None,
        count: u32::try_from(count).unwrap(),
        first_offset: 100,
        durable: 0,
        first_time: 100,
        last_time: 99 + count,
        id: ID,
        digest: digest(&records),
        chain: [0; 32],
    };
    let mut head = [0; BATCH_HEADER_BYTES];
    header.write(&first_chain(&ID), &mut head);
    [&head[..], &records].concat()
}

fn read(bytes: &[u8]) -> (BatchHeader, Sparse) {
    let header = BatchHeader::parse(bytes, &ID).unwrap();
    let stored = &bytes[walk::records_range(&header)];
    let sparse = match header.sparse_bytes {
        None => Sparse::whole(&header, stored),
        Some(_) => Sparse::parse(&header, stored),
    };
    (header, sparse.unwrap())
}

fn write(bytes: &[u8], keep: &[(u64, usize)]) -> Vec<u8> {
    let (header, sparse) = read(bytes);
    let mut out = Vec::new();
    sparse.write((&header, bytes.first_chunk().unwrap()), keep, &mut out);
    out
}

#[test]
fn what_is_left_is_shown_to_be_what_was_written() {
    for seed in 1..300 {
        let mut random = Random(seed * 0x9e37_79b9);
        let whole = batch(&mut random);
        let (_, all) = read(&whole);
        let density = random.below(5);
        let some: Vec<_> = all
            .places
            .iter()
            .copied()
            .filter(|_| random.below(4) < density)
            .collect();
        let fewer: Vec<_> = some
            .iter()
            .copied()
            .filter(|_| random.below(2) == 0)
            .collect();
        let left = write(&whole, &some);
        let (header, sparse) = read(&left);
        assert_eq!(sparse.places, some, "seed {seed}");
        for place in &some {
            assert_eq!(sparse.record(*place), all.record(*place), "seed {seed}");
        }
        assert!(
            walk::check_hashes(&header, &first_chain(&ID), &left),
            "seed {seed}"
        );
        assert_eq!(
            walk::check_records(&header, &left[walk::records_range(&header)]),
            Ok(())
        );
        assert!(sparse.digest().is_none_or(|found| found == header.digest));
        // In two steps it is the same, byte for byte.
        assert_eq!(write(&left, &fewer), write(&whole, &fewer), "seed {seed}");
    }
}

#[test]
fn an_event_that_was_changed_with_its_checksums_is_noticed_by_the_hash() {
    let whole = batch(&mut Random(77));
    let (_, all) = read(&whole);
    let keep = &all.places[all.places.len() - 1..];
    let left = write(&whole, keep);
    let (header, mut sparse) = read(&left);
    let (offset, at) = keep[0];
    let record = sparse.record(keep[0]).unwrap();
    let other: Vec<u8> = record.payload.iter().map(|byte| !byte).collect();
    let mut forged = Vec::new();
    Record {
        payload: &other,
        ..record
    }
    .write(&mut forged);
    assert!(!other.is_empty(), "{offset}");
    sparse.bytes[at..at + forged.len()].copy_from_slice(&forged);
    let mut out = Vec::new();
    sparse.write((&header, left.first_chunk().unwrap()), keep, &mut out);
    let (header, _) = read(&out);
    assert_eq!(
        walk::check_records(&header, &out[walk::records_range(&header)]),
        Ok(())
    );
    assert!(!walk::check_hashes(&header, &first_chain(&ID), &out));
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let whole = batch(&mut Random(5));
    let (_, all) = read(&whole);
    let keep: Vec<_> = all.places.iter().copied().step_by(5).collect();
    let left = write(&whole, &keep);
    let is_good = |bytes: &[u8]| {
        BatchHeader::parse(bytes, &ID).is_ok_and(|header| {
            let stored = bytes.get(walk::records_range(&header));
            stored.is_some_and(|stored| walk::check_records(&header, stored).is_ok())
        })
    };
    assert!(is_good(&left) && left.len() < whole.len());
    for at in 0..left.len() {
        let mut flipped = left.clone();
        flipped[at] ^= 1 << (at % 8);
        assert!(!is_good(&flipped), "at {at}");
        assert!(!is_good(&left[..at]), "cut at {at}");
    }
}
