//! Signed batches in a log: kept with their signatures, whole or not at all.

use super::{
    forgetful::{Faults, Forgetful},
    world::{World, name, small},
};
use crate::{
    AppendError, Cursor, Event, Link, LogName, Reader,
    batch::{Batch, BatchError, FeedId, Observed},
    disk::{Disk, DiskFile},
    feed::FeedEnd,
    format::{BATCH_HEADER_BYTES, Fault, SEGMENT_HEADER_BYTES, digest},
    verify::{Depth, Report, verify},
};
use ed25519_dalek::SigningKey;

pub(crate) struct Author {
    key: SigningKey,
    pub(crate) end: FeedEnd,
}

impl Author {
    pub(crate) fn new(seed: u8, channel: &LogName) -> Self {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let end = FeedEnd::new(channel.clone(), key.verifying_key().to_bytes());
        Self { key, end }
    }

    pub(crate) fn sign(&mut self, payloads: &[&[u8]]) -> Batch {
        let signed = self
            .end
            .sign(&self.key, Vec::new(), payloads.iter().copied());
        signed.unwrap()
    }
}

fn append(world: &mut World, author: &mut Author, payloads: &[&[u8]]) -> u64 {
    world.now += 1;
    let batch = author.sign(payloads);
    world
        .log
        .append_signed(world.now, &batch, payloads)
        .unwrap()
        .0
}

/// Signed and unsigned events, in more than one batch of the log.
fn mixed(disk: &Forgetful) -> u64 {
    let mut world = World::open(disk, small());
    let (mut one, mut two) = (Author::new(1, &name()), Author::new(2, &name()));
    assert_eq!(append(&mut world, &mut one, &[b"a", b"", b"ccc"]), 0);
    world.append(2);
    assert_eq!(append(&mut world, &mut two, &[b"d"]), 5);
    assert_eq!(append(&mut world, &mut one, &[b"e", b"f"]), 6);
    world.settle();
    world.append(1);
    append(&mut world, &mut two, &[b"g"]);
    world.settle();
    assert_eq!(world.log.acknowledged(), 10);
    world.log.end()
}

fn report(disk: &Forgetful) -> Report {
    verify(disk, &name(), Depth::Content).unwrap()
}

fn events(disk: &Forgetful) -> Vec<(Link, Vec<u8>)> {
    let mut reader = Reader::open(disk.clone(), &name(), Cursor::Start).unwrap();
    let mut all = Vec::new();
    while let Some(Event { link, payload, .. }) = reader.next_event().unwrap() {
        all.push((link, payload.to_vec()));
    }
    all
}

#[test]
fn signed_events_are_kept_and_checked() {
    let disk = Forgetful::default();
    let end = mixed(&disk);
    let report = report(&disk);
    assert_eq!((report.end, report.flaw_count), (end, 0));
    let audit = &report.audit;
    assert_eq!((audit.signed_events, audit.signed_batches), (7, 4));
    assert_eq!((audit.bad_signatures, audit.forks.len()), (0, 0));
    let events = events(&disk);
    let expected = [&b"a"[..], b"", b"ccc"];
    assert!(
        events
            .iter()
            .zip(expected)
            .all(|((_, found), payload)| found == payload)
    );
    let parents: Vec<u64> = [0, 1, 2, 6, 7].map(|at: usize| events[at].0.parent).into();
    assert_eq!(parents, [0, 1, 2, 3, 4]);
    assert_eq!(events[0].0.entity, events[7].0.entity);
    assert_ne!(events[0].0.entity, events[5].0.entity);
}

#[test]
fn what_is_not_as_it_was_signed_is_not_kept() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    let mut author = Author::new(1, &name());
    let batch = author.sign(&[b"a", b"b"]);
    let changed = world.log.append_signed(world.now, &batch, &[b"a", b"c"]);
    let head = BatchError::Head { first: 1, last: 2 };
    assert_eq!(changed, Err(AppendError::Signature(head)));
    let mut elsewhere = Author::new(1, &LogName::parse("other").unwrap());
    let elsewhere = elsewhere.sign(&[b"a"]);
    let refused = world.log.append_signed(world.now, &elsewhere, &[b"a"]);
    assert_eq!(refused, Err(AppendError::Signature(BatchError::Channel)));
    assert_eq!(world.log.end(), 0);
}

#[test]
fn every_changed_byte_of_signed_events_is_found() {
    let disk = Forgetful::default();
    let end = mixed(&disk);
    let segment = "0000000001.seg";
    let bytes = disk.content(segment);
    let last = bytes.iter().rposition(|&byte| byte != 0).unwrap();
    for at in SEGMENT_HEADER_BYTES..=last {
        disk.flip(segment, at, 0x10);
        let report = report(&disk);
        let is_found = report.flaw_count > 0 || report.unfinished_bytes > 0;
        assert!(is_found, "byte {at}");
        disk.flip(segment, at, 0x10);
    }
    assert_eq!((report(&disk).flaw_count, report(&disk).end), (0, end));
}

/// A log whose writer lied: all hashes are right, the signature is not.
#[test]
fn a_signature_that_is_wrong_is_found_though_all_hashes_are_right() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    let mut author = Author::new(1, &name());
    append(&mut world, &mut author, &[b"a"]);
    append(&mut world, &mut author, &[b"b"]);
    world.settle();
    let file = disk.open("0000000001.seg").unwrap();
    let mut bytes = vec![0; 4_096];
    let read = file.read_full(0, &mut bytes).unwrap();
    bytes.truncate(read);
    // The two payloads change places, with checksums, digest and chain made anew.
    let begin = SEGMENT_HEADER_BYTES;
    let mut header: [u8; BATCH_HEADER_BYTES] = *bytes[begin..].first_chunk().unwrap();
    let records = begin + BATCH_HEADER_BYTES;
    for (at, payload) in [(records, b'b'), (records + 49, b'a')] {
        bytes[at + 48] = payload;
        let checksum = crc32c::crc32c(&bytes[at + 4..at + 49]);
        bytes[at..at + 4].copy_from_slice(&checksum.to_be_bytes());
    }
    let length = usize::try_from(u32::from_be_bytes(*header[8..].first_chunk().unwrap())).unwrap();
    header[64..96].copy_from_slice(&digest(&bytes[records..records + length]));
    let before: &[u8; 32] = bytes[40..].first_chunk().unwrap();
    let mut chain = blake3::Hasher::new_keyed(before);
    chain.update(&header[8..96]);
    header[96..].copy_from_slice(chain.finalize().as_bytes());
    let checksum = crc32c::crc32c(&header[8..]);
    header[4..8].copy_from_slice(&checksum.to_be_bytes());
    bytes[begin..records].copy_from_slice(&header);
    file.write_full(0, &bytes).unwrap();
    let report = report(&disk);
    let faults: Vec<(u64, Fault)> = report.flaws.iter().map(|f| (f.offset, f.fault)).collect();
    let head = |at| {
        Fault::Signature(BatchError::Head {
            first: at,
            last: at,
        })
    };
    assert_eq!(faults, [(0, head(1)), (1, head(2))]);
    assert_eq!(
        (report.audit.bad_signatures, report.audit.signed_events),
        (2, 0)
    );
}

#[test]
fn a_fork_in_a_log_is_reported_with_its_proof() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    let mut author = Author::new(1, &name());
    append(&mut world, &mut author, &[b"a"]);
    let mut twin = Author::new(1, &name());
    twin.end = author.end.clone();
    append(&mut world, &mut author, &[b"b"]);
    append(&mut world, &mut twin, &[b"c"]);
    world.settle();
    let report = report(&disk);
    assert_eq!(report.flaw_count, 0);
    let [fork] = &report.audit.forks[..] else {
        panic!("{:?}", report.audit);
    };
    assert_eq!(fork.verify().unwrap().1, 2);
}

#[test]
fn a_lie_about_others_hides_no_fork() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    let (mut other, mut liar) = (Author::new(1, &name()), Author::new(2, &name()));
    append(&mut world, &mut other, &[b"a"]);
    let mut twin = Author::new(2, &name());
    twin.end = liar.end.clone();
    let lie = Observed {
        feed: FeedId::of(&name(), other.key.verifying_key().as_bytes()),
        count: 7,
        head: other.end.end().1,
    };
    let payloads = [&b"b"[..]];
    let batch = liar.end.sign(&liar.key, vec![lie], payloads.into_iter());
    let appended = world
        .log
        .append_signed(world.now, &batch.unwrap(), &payloads);
    assert_eq!(appended.unwrap().0, 1);
    append(&mut world, &mut twin, &[b"c"]);
    twin.end = FeedEnd::at(
        name(),
        twin.key.verifying_key().to_bytes(),
        Some((9, [9; 32])),
    );
    append(&mut world, &mut twin, &[b"d"]);
    world.settle();
    let audit = report(&disk).audit;
    assert_eq!((audit.forks.len(), audit.signed_events), (1, 4));
    assert_eq!((audit.refused_batches, audit.waiting_batches), (1, 1));
}

#[test]
fn signatures_are_passed_over_without_reading_anything_again() {
    let read = |is_signed: bool| {
        let disk = Forgetful::default();
        let mut options = small();
        options.segment_bytes = 256 << 10;
        let mut world = World::open(&disk, options);
        let mut author = Author::new(1, &name());
        for _ in 0..40 {
            match is_signed {
                true => drop(append(&mut world, &mut author, &[b"a"])),
                false => world.append(1),
            }
            world.settle();
        }
        let before = disk.read_bytes();
        assert_eq!(events(&disk).len(), 40);
        disk.read_bytes() - before
    };
    // A signed event is some 600 bytes, another some 200.
    let (signed, plain) = (read(true), read(false));
    assert!(signed < 6 * plain, "{signed} {plain}");
}

#[test]
fn a_crash_leaves_a_signed_batch_whole_or_takes_it_whole() {
    let mut random = 1u64;
    let mut whole = 0;
    for _ in 0..200 {
        let disk = Forgetful::default();
        let mut world = World::open(&disk, small());
        let mut author = Author::new(1, &name());
        append(&mut world, &mut author, &[b"a", b"b"]);
        world.settle();
        let payload = [7; 700];
        append(&mut world, &mut author, &[&payload[..], b"d", &payload[..]]);
        // Power goes while it is written.
        disk.set(Faults {
            sync_lies: true,
            ..Faults::default()
        });
        world.settle();
        drop(world);
        disk.crash(|| {
            // Marsaglia: xorshift.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            !random.is_multiple_of(4)
        });
        let world = World::open(&disk, small());
        let left = world.log.end();
        assert!(left == 2 || left == 5, "{left} events are left");
        whole += u64::from(left == 5);
        assert_eq!(events(&disk).len() as u64, left);
        let report = report(&disk);
        assert_eq!((report.flaw_count, report.audit.signed_events), (0, left));
    }
    assert!((10..190).contains(&whole), "{whole}");
}

#[test]
fn a_log_of_version_1_goes_on_in_a_segment_of_version_2() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    world.append(3);
    world.log.close();
    world.settle();
    drop(world);
    let file = disk.open("0000000001.seg").unwrap();
    let mut header = [0; SEGMENT_HEADER_BYTES];
    file.read_full(0, &mut header).unwrap();
    header[8..12].copy_from_slice(&1u32.to_be_bytes());
    let checksum = crc32c::crc32c(&header[..72]);
    header[72..].copy_from_slice(&checksum.to_be_bytes());
    file.write_full(0, &header).unwrap();
    let before = events(&disk);
    assert_eq!(before.len(), 3);
    let mut world = World::open(&disk, small());
    assert_eq!(world.findings, []);
    append(&mut world, &mut Author::new(1, &name()), &[b"x"]);
    world.settle();
    let report = report(&disk);
    assert_eq!((report.flaw_count, report.segments, report.end), (0, 2, 4));
    assert_eq!(report.audit.signed_events, 1);
    assert_eq!(events(&disk)[..3], before);
    file.read_full(0, &mut header).unwrap();
    assert_eq!(header[8..12], 1u32.to_be_bytes());
}
