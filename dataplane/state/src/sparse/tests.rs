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
    sealed(records, count)
}

/// Records, from offset 100 on, behind a header.
fn sealed(records: Vec<u8>, count: u64) -> Vec<u8> {
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

/// A batch of these payloads, from offset 100 on.
fn batch_of(payloads: &[Vec<u8>]) -> Vec<u8> {
    let mut records = Vec::new();
    for (payload, offset) in payloads.iter().zip(100..) {
        let record = Record {
            offset,
            time: offset,
            link: link(offset),
            payload,
        };
        record.write(&mut records);
    }
    sealed(records, payloads.len() as u64)
}

/// A batch with the places that somebody says, under good checksums.
fn forge(bytes: &[u8], places: &[(u64, usize)], left: &[(u64, usize)]) -> Vec<u8> {
    let mut out = write(bytes, left);
    let table = BATCH_HEADER_BYTES + SIZE_BYTES + COUNTS_BYTES;
    assert_eq!(places.len(), left.len());
    for ((offset, at), place) in places.iter().zip(0..) {
        let from = table + place * PLACE_BYTES;
        let index = u32::try_from(offset - 100).unwrap();
        out[from..from + 4].copy_from_slice(&index.to_be_bytes());
        out[from + 4..from + 8].copy_from_slice(&u32::try_from(*at).unwrap().to_be_bytes());
    }
    with_checksum(out)
}

fn with_checksum(mut out: Vec<u8>) -> Vec<u8> {
    let checksum = crc32c::crc32c(&out[BATCH_HEADER_BYTES + 4..]);
    out[BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + 4].copy_from_slice(&checksum.to_be_bytes());
    out
}

fn checked(bytes: &[u8]) -> Result<(), (u64, Fault)> {
    let header = BatchHeader::parse(bytes, &ID).unwrap();
    assert!(walk::check_hashes(&header, &first_chain(&ID), bytes));
    check(&header, &bytes[walk::records_range(&header)]).map(drop)
}

/// What is not there is read as zeros, and a checksum of 32 bits says of many bytes that they are those.
#[test]
fn an_event_of_which_a_part_is_not_there_is_none() {
    let bytes = batch_of(&[vec![7; 100], vec![0; 5_000], vec![7; 100]]);
    let (_, all) = read(&bytes);
    let [first, long, last] = all.places[..] else {
        panic!("{:?}", all.places)
    };
    assert_eq!(
        checked(&forge(&bytes, &[first, last], &[first, last])),
        Ok(())
    );
    // The chunks of the first and the last event are there, with the long one's begin and end.
    let forged = forge(&bytes, &[first, long], &[first, last]);
    assert_eq!(checked(&forged), Err((100, Fault::Hash)));
}

/// A payload may hold what looks like a record.
#[test]
fn an_event_is_where_those_around_it_leave_room() {
    let mut inside = vec![5; 200];
    for offset in [101, 102] {
        let record = Record {
            offset,
            time: 9,
            link: link(9),
            payload: b"never said",
        };
        record.write(&mut inside);
    }
    let length = RECORD_HEADER_BYTES + b"never said".len();
    let from = RECORD_HEADER_BYTES + 200;
    for before in [0, 3_000] {
        let first = [vec![6; before], inside.clone()].concat();
        let mut payloads = vec![first];
        payloads.resize(5, vec![1; 60]);
        let bytes = batch_of(&payloads);
        let (_, all) = read(&bytes);
        let (at, second) = (all.places[0].1 + before + from, all.places[1]);
        let keep = &all.places[1..];
        assert_eq!(checked(&forge(&bytes, keep, keep)), Ok(()));
        // In place of the second event, and of the third.
        let mut forged = keep.to_vec();
        forged[0].1 = at;
        let refused = checked(&forge(&bytes, &forged, keep));
        assert!(
            matches!(refused, Err((101 | 102, Fault::Order))),
            "{refused:?}"
        );
        let hidden = [(102, at + length), all.places[3], all.places[4]];
        let refused = checked(&forge(&bytes, &hidden, &all.places[2..]));
        assert!(
            matches!(refused, Err((102 | 103, Fault::Order))),
            "{refused:?}"
        );
        // Where signatures begin is said there too.
        let mut cut = write(&bytes, &keep[..1]);
        let blocks_at = BATCH_HEADER_BYTES + SIZE_BYTES + 4;
        let end = u32::try_from(second.1 + 108).unwrap();
        cut[blocks_at..blocks_at + 4].copy_from_slice(&end.to_be_bytes());
        let refused = checked(&with_checksum(cut));
        assert_eq!(refused, Err((104, Fault::Order)));
    }
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    let bytes = batch_of(&[vec![1; 2_000], vec![2; 2_000]]);
    let (header, all) = read(&bytes);
    let left = write(&bytes, &all.places[..1]);
    let behind = walk::records_range(&BatchHeader::parse(&left, &ID).unwrap());
    let stored = &left[behind];
    // An offset behind the last there is.
    let late = BatchHeader {
        first_offset: u64::MAX - 2,
        ..header
    };
    let mut far = stored.to_vec();
    far[SIZE_BYTES + COUNTS_BYTES..SIZE_BYTES + COUNTS_BYTES + 4].fill(255);
    let checksum = crc32c::crc32c(&far[4..]).to_be_bytes();
    far[..4].copy_from_slice(&checksum);
    assert_eq!(Sparse::parse(&late, &far).map(drop), Err(Fault::Number));
    // More events than there is room for.
    let many = BatchHeader {
        count: u32::MAX,
        ..header
    };
    assert_eq!(Sparse::parse(&many, stored).map(drop), Err(Fault::Number));
}
