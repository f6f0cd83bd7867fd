//! Logs of events with keys, compacted, also where the power goes meanwhile.

mod crash;
mod parts;
mod removals;

use super::*;
use crate::{
    Cursor, Options, ReadError, Reader,
    feed::FeedEnd,
    fold::{Folding, Policy, Token, ready::Latest},
    format::{SEGMENT_HEADER_BYTES, SegmentHeader, segment_of},
    io::folder::Folder,
    recover,
    tests::{
        crash::Random,
        forgetful::Forgetful,
        world::{SECOND, World, link, name},
    },
    verify::{self, Depth},
    walk::{self, Window},
};
use ed25519_dalek::SigningKey;
use std::{collections::BTreeMap, ops::Range};

const RULES: fn() -> Rules = || Rules {
    key: "key".to_owned(),
    after_ns: 0,
    removals_after_ns: None,
};

fn options() -> Options {
    Options {
        segment_bytes: 16 << 10,
        ..Options::default()
    }
}

fn event(key: u64, value: u64, fill: u64) -> Vec<u8> {
    let fill = "x".repeat(usize::try_from(fill).unwrap());
    format!("{{\"key\":\"k{key}\",\"value\":{value},\"fill\":\"{fill}\"}}").into_bytes()
}

/// Appends an event without writing it.
fn say(world: &mut World, payload: &[u8]) {
    world.now += 1;
    let offset = world.log.end();
    let said = world.log.append(world.now, &link(offset), payload);
    assert_eq!(said, Ok(offset));
}

/// A pass over a log whose last segment is much younger than all others.
fn compact_within(
    keys_max: usize,
    world: &mut World,
    rules: &Rules,
) -> Result<Outcome, CompactError> {
    compact_in((keys_max, COMPACTION_PAGES_MAX), world, rules)
}

/// The same where so many keys and pages are held.
fn compact_in(
    bounds: (usize, usize),
    world: &mut World,
    rules: &Rules,
) -> Result<Outcome, CompactError> {
    world.now += SECOND;
    let subject = Subject {
        id: *world.log.id(),
        closed: world.log.closed(),
    };
    let disk = world.files.disk().clone();
    let World {
        log, files, now, ..
    } = world;
    pass_within(
        bounds,
        &disk,
        &subject,
        (rules, *now),
        &|| true,
        &mut |rewritten| put(log, files, &rewritten).map_err(CompactError::io("put")),
    )
}

fn compact(world: &mut World, rules: &Rules) -> Result<Outcome, CompactError> {
    compact_within(COMPACTION_KEYS_MAX, world, rules)
}

fn latest<D: Disk>(disk: D) -> Folding<Latest> {
    let mut folding = Folding::new(Latest::by("key"), Policy::Stop);
    let mut reader = Reader::open(disk, &name(), Cursor::Start).unwrap();
    folding
        .catch_up(&name(), &mut reader, |_: &Token, _| {})
        .unwrap();
    folding
}

type Events = BTreeMap<u64, Vec<u8>>;

fn events<D: Disk>(disk: D, cursor: Cursor) -> (Events, Vec<ReadError>) {
    let mut reader = Reader::open(disk, &name(), cursor).unwrap();
    let (mut events, mut errors) = (Events::new(), Vec::new());
    loop {
        match reader.next_event() {
            Ok(None) => return (events, errors),
            Ok(Some(event)) => {
                assert_eq!(event.link, link(event.offset));
                let is_later = events
                    .keys()
                    .next_back()
                    .is_none_or(|last| *last < event.offset);
                assert!(is_later, "{}", event.offset);
                events.insert(event.offset, event.payload.to_vec());
            }
            Err(error) => errors.push(error),
        }
        assert!(errors.len() < 100);
    }
}

#[track_caller]
fn assert_whole(disk: &Forgetful) -> verify::Report {
    let report = verify::verify(disk, &name(), Depth::Content).unwrap();
    assert_eq!(report.flaws, []);
    report
}

/// Random appends and passes, with the power gone at any change of the disk.
#[test]
fn a_compacted_log_folds_to_the_same_state_whenever_the_power_goes() {
    let (mut crashes, mut removed) = (0, 0);
    for seed in 1..40 {
        let mut random = Random(seed * 0x9e37_79b9);
        let (disk, twin) = (Forgetful::default(), Forgetful::default());
        let mut said = Events::new();
        let mut world = World::open(&disk, options());
        let mut other = World::open(&twin, options());
        for round in 0..6 {
            for _ in 0..random.below(12) {
                for _ in 0..1 + random.below(20) {
                    let payload = match random.below(20) {
                        0 => b"no object".to_vec(),
                        _ => event(
                            random.below(1 + seed % 12),
                            random.next(),
                            random.below(900),
                        ),
                    };
                    said.insert(world.log.end(), payload.clone());
                    say(&mut world, &payload);
                    say(&mut other, &payload);
                }
                world.settle();
                other.settle();
            }
            let keys_max = 1 + usize::try_from(random.below(12)).unwrap();
            if random.below(3) > 0 {
                disk.die_after(random.below(60));
            }
            let pages_max = 1 + usize::try_from(random.below(3)).unwrap();
            match compact_in((keys_max, pages_max), &mut world, &RULES()) {
                Ok(outcome) => removed += outcome.removed_events,
                Err(error) => {
                    assert!(
                        matches!(error, CompactError::Io { .. } | CompactError::Keys),
                        "{error}"
                    );
                    crashes += 1;
                }
            }
            let keeps = random.below(5);
            drop(world);
            disk.crash(|| random.below(4) < keeps);
            world = World::open(&disk, options());
            let at = format!("seed {seed}, round {round}");
            assert!(world.findings.is_empty(), "{at}: {:?}", world.findings);
            assert_eq!(world.log.end(), said.len() as u64, "{at}");
            world.now = other.now;
            let report = assert_whole(&disk);
            let (found, errors) = events(disk.clone(), Cursor::Start);
            assert!(errors.is_empty(), "{at}: {errors:?}");
            assert!(
                found
                    .iter()
                    .all(|(offset, payload)| said[offset] == *payload),
                "{at}"
            );
            assert_eq!(report.events, found.len() as u64, "{at}");
            assert_eq!(
                report.events + report.removed_events,
                said.len() as u64,
                "{at}"
            );
            assert_eq!(report.chain, assert_whole(&twin).chain, "{at}");
            let keyless = |payload: &&Vec<u8>| payload.starts_with(b"no");
            let (left, all) = (
                found.values().filter(keyless),
                said.values().filter(keyless),
            );
            assert_eq!(left.count(), all.count(), "{at}");
            // The times of events decide too, and they are the same.
            let skip = |disk: &Forgetful| {
                let mut folding = Folding::new(Latest::by("key"), Policy::Skip);
                let mut reader = Reader::open(disk.clone(), &name(), Cursor::Start).unwrap();
                folding.catch_up(&name(), &mut reader, |_, _| {}).unwrap();
                folding.hash()
            };
            assert_eq!(skip(&disk), skip(&twin), "{at}");
        }
    }
    assert!(crashes > 10 && removed > 500, "{crashes} {removed}");
}

/// Two keys, many events; all but the last segment compacted.
fn compacted() -> (Forgetful, World, Outcome) {
    compacted_of(120)
}

fn compacted_of(count: u64) -> (Forgetful, World, Outcome) {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, options());
    for value in 0..count {
        say(
            &mut world,
            &event(value % 2 + value / 50, value, 200 + value % 7 * 60),
        );
        if value % 6 == 0 {
            world.settle();
        }
    }
    world.settle();
    let outcome = compact(&mut world, &RULES()).unwrap();
    assert!(
        outcome.segments > 0 && outcome.removed_events > 20,
        "{outcome:?}"
    );
    (disk, world, outcome)
}

#[test]
fn every_cursor_gives_the_events_that_are_left_from_there_on() {
    let (disk, world, outcome) = compacted();
    let report = assert_whole(&disk);
    assert_eq!(report.removed_events, outcome.removed_events);
    assert_eq!(report.compacted_segments, outcome.segments);
    let (all, errors) = events(disk.clone(), Cursor::Start);
    assert!(errors.is_empty());
    for offset in 0..world.log.end() {
        let left: Events = all.range(offset..).map(|(o, p)| (*o, p.clone())).collect();
        let behind: Events = left
            .range(offset + 1..)
            .map(|(o, p)| (*o, p.clone()))
            .collect();
        assert_eq!(
            events(disk.clone(), Cursor::Offset(offset)).0,
            left,
            "{offset}"
        );
        assert_eq!(
            events(disk.clone(), Cursor::After(offset)).0,
            behind,
            "{offset}"
        );
        let time = SECOND + 1 + offset;
        assert_eq!(events(disk.clone(), Cursor::Time(time)).0, left, "{offset}");
    }
}

#[test]
fn a_second_pass_has_nothing_to_do() {
    let (disk, mut world, _) = compacted();
    let before = assert_whole(&disk);
    let again = compact(&mut world, &RULES()).unwrap();
    assert_eq!((again.segments, again.removed_events), (0, 0));
    assert_eq!(again.problem(), None);
    assert_eq!(assert_whole(&disk).bytes, before.bytes);
    world.close();
    assert_whole(&disk);
}

/// Where a segment's batches are, and which events.
fn batches(disk: &Forgetful, content: &[u8]) -> Vec<(Range<u64>, Range<u64>)> {
    let id = SegmentHeader::parse(content).unwrap().id;
    let file = disk.open(&segment_name(1)).unwrap();
    let (mut window, mut at) = (Window::new(), SEGMENT_HEADER_BYTES as u64);
    let mut batches = Vec::new();
    while at < content.len() as u64 {
        let header = walk::batch_at(&mut window, &file, &id, at);
        let header = header.unwrap().unwrap();
        let end = at + walk::records_range(&header).end as u64;
        batches.push((at..end, header.first_offset..header.end()));
        at = end;
    }
    batches
}

#[test]
fn every_flipped_byte_and_every_cut_of_a_compacted_segment_is_found() {
    let (disk, world, _) = compacted_of(60);
    drop(world);
    let (all, _) = events(disk.clone(), Cursor::Start);
    let file = segment_name(1);
    let content = disk.content(&file);
    let ranges = batches(&disk, &content);
    assert!(ranges.len() > 2);
    for at in 0..content.len() {
        let broken = |bytes: Vec<u8>| {
            let is_cut = bytes.len() < content.len();
            let copy = disk.copy_unsynced();
            copy.put(&file, bytes);
            let report = verify::verify(&copy, &name(), Depth::Content);
            let report = match report {
                Ok(report) => report,
                // Another version, or another log.
                Err(error) => return assert!(at < SEGMENT_HEADER_BYTES, "{at}: {error}"),
            };
            assert!(report.flaw_count > 0, "at {at}");
            let (found, _) = events(copy, Cursor::Start);
            assert!(
                found.iter().all(|(o, payload)| all.get(o) == Some(payload)),
                "at {at}"
            );
            // Of a flip, one batch at most is lost; of a cut, what is behind.
            for (begin, offsets) in &ranges {
                let is_hit = match is_cut {
                    true => begin.end > at as u64,
                    false => begin.contains(&(at as u64)),
                };
                let is_read = all
                    .range(offsets.clone())
                    .all(|(o, _)| found.contains_key(o));
                assert!(is_hit || is_read, "at {at}: {offsets:?}");
            }
        };
        let mut flipped = content.clone();
        flipped[at] ^= 1 << (at % 8);
        broken(flipped);
        if at % 7 == 0 && at > SEGMENT_HEADER_BYTES {
            broken(content[..at].to_vec());
        }
    }
}

#[test]
fn younger_events_stay_as_they_are() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, options());
    for value in 0..100 {
        say(&mut world, &event(1, value, 500));
        world.settle();
    }
    let rules = Rules {
        after_ns: 10 * SECOND,
        ..RULES()
    };
    let outcome = compact(&mut world, &rules).unwrap();
    assert_eq!((outcome.segments, outcome.parts), (0, 1));
    world.now += 10 * SECOND;
    assert!(compact(&mut world, &rules).unwrap().segments > 0);
}

#[test]
fn events_next_to_a_damaged_batch_stay_until_they_are_old() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, options());
    for value in 0..100 {
        say(&mut world, &event(1, value, 500));
        world.settle();
    }
    let times = |world: &World| -> Vec<u64> {
        let closed = world.log.closed();
        closed.iter().map(|closed| closed.newest_time).collect()
    };
    let before = times(&world);
    drop(world);
    disk.flip(&segment_name(2), SEGMENT_HEADER_BYTES + 40, 1);
    let world = World::open(&disk, options());
    let after = times(&world);
    assert!(before.len() > 2 && after.len() == before.len());
    assert_eq!((after[0], &after[1..]), (before[1], &before[1..]));
    // Behind the last there is none that bounds it.
    let last = world.log.segments().back().unwrap().number;
    drop(world);
    disk.flip(&segment_name(last), SEGMENT_HEADER_BYTES + 40, 1);
    let world = World::open(&disk, options());
    let newest = |number| {
        let mut closed = world.log.closed().into_iter();
        closed.find(|c| c.number == number).map(|c| c.newest_time)
    };
    assert_eq!(newest(last - 1), Some(u64::MAX));
    let due = RULES().due(&world.log.closed(), u64::MAX);
    assert_eq!(due, usize::try_from(last).unwrap() - 2);
}

#[test]
fn a_damaged_segment_is_left_as_it_is() {
    for keys_max in [COMPACTION_KEYS_MAX, 1] {
        let disk = Forgetful::default();
        let mut world = World::open(&disk, options());
        for value in 0..100 {
            say(&mut world, &event(value % 2, value, 500));
            world.settle();
        }
        let file = segment_name(2);
        disk.flip(&file, 3_000, 4);
        let before = disk.content(&file);
        let outcome = compact_within(keys_max, &mut world, &RULES()).unwrap();
        assert_eq!(outcome.parts > 1, keys_max == 1);
        assert_eq!(outcome.damaged, BTreeSet::from([2]));
        let problem = outcome.problem().unwrap();
        assert!(problem.starts_with("segments {2} are damaged"));
        assert_eq!(disk.content(&file), before);
        assert!(outcome.segments > 0);
    }
}

#[test]
fn a_compaction_that_was_cut_short_is_forgotten() {
    let (disk, world, _) = compacted();
    drop(world);
    disk.put(&compacting_name(2), vec![1; 300]);
    disk.put("0000000002.compacting.mine", vec![1; 3]);
    let world = World::open(&disk, options());
    assert!(world.findings.is_empty());
    let files = disk.list().unwrap();
    assert!(!files.contains(&compacting_name(2)));
    assert!(files.contains(&"0000000002.compacting.mine".to_owned()));
}

#[test]
fn nothing_is_written_to_a_compacted_segment() {
    let (disk, world, _) = compacted();
    drop(world);
    for file in disk.list().unwrap() {
        if segment_of(&file).is_some_and(|number| number > 1) {
            disk.remove(&file).unwrap();
        }
    }
    let before = disk.content(&segment_name(1));
    let mut world = World::open(&disk, options());
    let end = world.log.end();
    say(&mut world, &event(1, 1, 1));
    world.settle();
    assert_eq!(disk.content(&segment_name(1)), before);
    assert_eq!(world.log.closed().len(), 1);
    assert_whole(&disk);
    assert!(events(disk, Cursor::Start).0.contains_key(&end));
}

#[test]
fn a_signed_batch_goes_whole_and_its_statement_stays() {
    let key = SigningKey::from_bytes(&[1; 32]);
    let mut feed = FeedEnd::new(name(), key.verifying_key().to_bytes());
    let disk = Forgetful::default();
    let mut world = World::open(&disk, options());
    for value in 0..60 {
        let payloads = [
            event(value % 2, value, 600),
            event(2, value, 300),
            event(3 + value / 20, value, 10),
        ];
        let payloads: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
        let batch = feed
            .sign(&key, Vec::new(), payloads.iter().copied())
            .unwrap();
        world.now += 1;
        world
            .log
            .append_signed(world.now, &batch, &payloads)
            .unwrap();
        world.settle();
    }
    let before = verify::verify(&disk, &name(), Depth::Content).unwrap();
    let state = latest(disk.clone()).hash();
    let outcome = compact(&mut world, &RULES()).unwrap();
    assert!(
        outcome.removed_events > 60 && outcome.removed_events.is_multiple_of(3),
        "{outcome:?}"
    );
    let report = assert_whole(&disk);
    assert_eq!(report.audit.signed_batches, before.audit.signed_batches);
    assert_eq!(report.audit.signed_events, report.events);
    assert_eq!(
        (report.audit.waiting_batches, report.audit.forks.len()),
        (0, 0)
    );
    assert_eq!(latest(disk).hash(), state);
}

#[test]
fn a_fold_goes_on_from_its_snapshot_over_a_compaction() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, options());
    let say_some = |world: &mut World, values: Range<u64>| {
        for value in values {
            say(world, &event(value % 3, value, 500));
            world.settle();
        }
    };
    say_some(&mut world, 0..40);
    let snapshot = latest(disk.clone()).snapshot(&name()).unwrap();
    say_some(&mut world, 40..120);
    compact(&mut world, &RULES()).unwrap();
    assert!(!events(disk.clone(), Cursor::Start).0.contains_key(&39));
    let mut folding = Folding::new(Latest::by("key"), Policy::Stop);
    let mut reader = folding.restore(&name(), &snapshot, disk.clone()).unwrap();
    folding.catch_up(&name(), &mut reader, |_, _| {}).unwrap();
    assert_eq!(folding.hash(), latest(disk).hash());
    assert_eq!(folding.next(&name()), 120);
}

/// A reader that is in the middle of a segment goes on in the file that it has.
#[test]
fn a_reader_on_a_real_disk_goes_on_over_a_compaction() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Folder::lock(folder.path()).unwrap();
    let (state, _) = recover(&disk, &name(), [7; 16]).unwrap();
    let mut log = Log::new(state, options());
    let mut files = Files::open(disk.share().unwrap()).unwrap();
    for value in 0..200 {
        log.append(SECOND + value, &link(value), &event(1, value, 300))
            .unwrap();
        while files.step(&mut log, SECOND + value) {}
    }
    let read = || Folder::read(folder.path()).unwrap();
    let mut reader = Reader::open(read(), &name(), Cursor::Offset(3)).unwrap();
    let first = reader.next_event().unwrap().map(|event| event.offset);
    assert_eq!(first, Some(3));
    let subject = Subject {
        id: *log.id(),
        closed: log.closed(),
    };
    let rules = RULES();
    let outcome = pass(
        &disk,
        &subject,
        (&rules, 9 * SECOND),
        &|| true,
        &mut |rewritten| Ok(put(&mut log, &mut files, &rewritten).unwrap()),
    );
    assert!(outcome.unwrap().segments > 1);
    let mut last = 3;
    while let Some(event) = reader.next_event().unwrap() {
        assert!(event.offset > last && event.payload == event_of(event.offset));
        last = event.offset;
    }
    assert_eq!(last, 199);
    let (left, errors) = events(read(), Cursor::Start);
    assert!(errors.is_empty() && left.len() < 100, "{}", left.len());
    let found = std::fs::read_dir(folder.path()).unwrap();
    let names: Vec<_> = found.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        !names
            .iter()
            .any(|name| name.to_string_lossy().contains("compacting"))
    );
}

fn event_of(value: u64) -> Vec<u8> {
    event(1, value, 300)
}
