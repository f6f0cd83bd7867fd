use super::{
    forgetful::Forgetful,
    world::{World, assert_reads, drain, name, read, small},
};
use crate::{
    Cursor, Finding, LogName, OpenError, Options, ReadError, Reader,
    disk::Disk as _,
    format::{
        Fault, MANIFEST_NAME, MANIFEST_SLOTS_AT, Manifest, SEGMENT_HEADER_BYTES, segment_name,
        torn_name,
    },
    recover,
    verify::{Depth, verify},
};

fn closed(count: u64) -> Forgetful {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    world.append_each(count);
    world.close();
    disk
}

/// As after a crash behind the last acknowledgement.
fn crashed(count: u64) -> Forgetful {
    let disk = Forgetful::default();
    World::open(&disk, small()).append_each(count);
    disk.crash(|| false);
    disk
}

fn flaws(disk: &Forgetful) -> u64 {
    verify(disk, &name(), Depth::Content).unwrap().flaw_count
}

/// Bytes of a segment that are used.
fn used(disk: &Forgetful, segment: u32) -> usize {
    let content = disk.content(&segment_name(segment));
    content.iter().rposition(|b| *b != 0).unwrap() + 1
}

#[test]
fn a_new_log_is_empty() {
    let disk = Forgetful::default();
    let world = World::open(&disk, small());
    assert!(world.findings.is_empty());
    assert_eq!((world.log.first(), world.log.end()), (0, 0));
    assert_reads(&disk, Cursor::Start, 0..0);
    drop(world);
    assert!(World::open(&disk, small()).findings.is_empty());
}

#[test]
fn a_log_that_was_closed_goes_on_where_it_ended() {
    let disk = closed(50);
    for round in 0..3 {
        let mut world = World::open(&disk, small());
        assert!(world.findings.is_empty(), "{:?}", world.findings);
        assert_eq!(world.log.end(), 50 + round * 5);
        world.append_each(5);
        world.close();
    }
    assert_reads(&disk, Cursor::Start, 0..65);
    assert_eq!(flaws(&disk), 0);
}

#[test]
fn a_torn_tail_is_put_aside_and_cut() {
    let disk = crashed(10);
    let (file, end) = (segment_name(1), used(&disk, 1));
    let mut content = disk.content(&file);
    content[end..end + 100].fill(0xab);
    disk.put(&file, content);
    let mut world = World::open(&disk, small());
    let [
        Finding::Torn {
            segment: 1,
            at,
            bytes: 100,
            kept,
        },
    ] = &world.findings[..]
    else {
        panic!("{:?}", world.findings);
    };
    assert_eq!((*at, disk.content(kept)), (end as u64, vec![0xab; 100]));
    world.append_each(60);
    assert_reads(&disk, Cursor::Start, 0..70);
    assert_eq!(flaws(&disk), 0);
}

#[test]
fn what_was_put_aside_is_kept_where_its_number_is_used_again() {
    let disk = crashed(10);
    let next = segment_name(2);
    for byte in [0xab, 0xcd] {
        disk.put(&next, vec![byte; 50]);
        let world = World::open(&disk, small());
        assert!(
            matches!(
                &world.findings[..],
                [Finding::Torn {
                    segment: 2,
                    at: 0,
                    ..
                }]
            ),
            "{:?}",
            world.findings
        );
        assert!(!disk.list().unwrap().contains(&next));
    }
    let kept = [1, 2].map(|copy| disk.content(&torn_name(2, 0, copy)));
    assert_eq!(kept, [vec![0xab; 50], vec![0xcd; 50]]);
}

#[test]
fn a_flipped_bit_in_the_middle_is_reported_and_kept() {
    let disk = crashed(10);
    let content = disk.content(&segment_name(1));
    let at = used(&disk, 1) / 2;
    disk.flip(&segment_name(1), at, 1);
    let mut world = World::open(&disk, small());
    let [
        Finding::Damaged {
            segment: 1,
            from,
            to,
            ..
        },
    ] = world.findings[..]
    else {
        panic!("{:?}", world.findings);
    };
    assert!(from < to && to < 10, "{from} {to}");
    assert_eq!(world.log.end(), 10);
    world.append_each(10);
    let mut good: Vec<u64> = (0..20).collect();
    good.drain(usize::try_from(from).unwrap()..usize::try_from(to).unwrap());
    let (found, errors) = read(&disk, Cursor::Start);
    assert_eq!(found, good);
    assert!(
        matches!(errors[..], [ReadError::Damaged { from: f, to: t, .. }] if (f, t) == (from, to)),
        "{errors:?}"
    );
    assert!(flaws(&disk) > 0);
    // What is damaged was left as it is: a good copy of that byte makes it whole again.
    disk.flip(&segment_name(1), at, 1);
    assert_eq!(disk.content(&segment_name(1)), content);
    assert_reads(&disk, Cursor::Start, 0..20);
}

#[test]
fn a_flipped_bit_in_the_tail_of_a_closed_log_is_reported_and_kept() {
    let disk = closed(10);
    disk.flip(&segment_name(1), used(&disk, 1) - 1, 0x80);
    let (good, bad) = read(&disk, Cursor::Start);
    assert_eq!((good.len(), bad.len()), (9, 1));
    let mut world = World::open(&disk, small());
    let damaged = &world.findings[..];
    assert!(
        matches!(
            damaged,
            [Finding::Damaged {
                segment: 1,
                from: 9,
                to: 10,
                ..
            }]
        ),
        "{damaged:?}"
    );
    world.append_each(1);
    assert_eq!(world.log.end(), 11, "no offset is used twice");
    let (good, bad) = read(&disk, Cursor::Start);
    assert_eq!(good, [0, 1, 2, 3, 4, 5, 6, 7, 8, 10]);
    assert!(
        matches!(
            bad[..],
            [ReadError::Damaged {
                from: 9,
                to: 10,
                ..
            }]
        ),
        "{bad:?}"
    );
}

/// A log that goes on has no mark of where it was closed any more, and nothing behind the damage yet: its writer knows.
#[test]
fn what_is_damaged_at_the_end_of_a_running_log_is_told_to_who_follows_it() {
    for is_opened_again in [true, false] {
        let disk = Forgetful::default();
        let mut world = World::open(&disk, small());
        world.append_each(9);
        let last_batch = used(&disk, 1);
        world.append_each(1);
        if is_opened_again {
            world.close();
            world = World::open(&disk, small());
            world.settle();
        }
        disk.flip(&segment_name(1), last_batch, 0x80);
        let mut reader = Reader::open(disk.clone(), &name(), Cursor::Start).unwrap();
        reader.set_limit(world.log.readable());
        let (good, bad) = drain(&mut reader);
        assert_eq!(good, (0..9).collect::<Vec<_>>());
        let is_told = matches!(
            bad[..],
            [ReadError::Damaged {
                from: 9,
                to: 10,
                ..
            }]
        );
        assert!(is_told, "{bad:?}");
        assert_eq!(reader.position(), 10);
        // It goes on behind.
        world.append_each(2);
        reader.set_limit(world.log.readable());
        let (good, bad) = drain(&mut reader);
        assert!(good == [10, 11] && bad.is_empty(), "{good:?} {bad:?}");
    }
}

#[test]
fn a_flipped_bit_in_a_segment_header_loses_no_event() {
    for (log, segments) in [
        (closed(100), 1..=4),
        (crashed(100), 1..=4),
        (crashed(3), 1..=1),
    ] {
        for segment in segments {
            let disk = log.copy_unsynced();
            let count = World::open(&disk.copy_unsynced(), small()).log.end();
            disk.flip(&segment_name(segment), SEGMENT_HEADER_BYTES - 1, 4);
            let mut world = World::open(&disk, small());
            let of = |f: &Finding| matches!(f, Finding::Header { segment: s, .. } if *s == segment);
            assert!(world.findings.iter().all(of), "{:?}", world.findings);
            assert_eq!(world.findings.len(), 1);
            world.append_each(5);
            assert_reads(&disk, Cursor::Start, 0..count + 5);
            assert!(flaws(&disk) > 0);
        }
    }
}

#[test]
fn an_emptied_segment_is_as_good_as_removed() {
    let disk = Forgetful::default();
    World::open(&disk, small()).append_each(100);
    let segments = World::open(&disk, small()).log.segments().clone();
    // The two last ones of those that hold events.
    let [first, last] = [segments.len() - 2, segments.len() - 1].map(|at| segments[at]);
    for segment in [first, last] {
        disk.put(&segment_name(segment.number), Vec::new());
    }
    let mut world = World::open(&disk, small());
    assert_eq!(world.findings, []);
    assert_eq!(world.log.end(), first.first_offset);
    world.append_each(3);
    assert_reads(&disk, Cursor::Start, 0..first.first_offset + 3);
}

#[test]
fn a_missing_segment_is_reported() {
    let log = closed(100);
    let all = log.list().unwrap();
    let last = u32::try_from(all.iter().filter(|f| f.ends_with(".seg")).count()).unwrap();
    for segment in 1..=last {
        let disk = log.copy_unsynced();
        if World::open(&log.copy_unsynced(), small()).log.end() != 100 {
            panic!("the log itself is whole");
        }
        disk.remove(&segment_name(segment)).unwrap();
        let was_used = !verify(&disk, &name(), Depth::Content)
            .unwrap()
            .flaws
            .is_empty();
        let mut world = World::open(&disk, small());
        assert_eq!(
            world.findings.len(),
            usize::from(was_used),
            "{segment}: {:?}",
            world.findings
        );
        assert_eq!(world.log.end(), 100);
        world.append_each(1);
        let (good, bad) = read(&disk, Cursor::Offset(0));
        assert_eq!(
            (good.last(), bad.len()),
            (Some(&100), usize::from(was_used)),
            "{segment}"
        );
        assert!(was_used || segment == last);
    }
}

#[test]
fn a_removal_that_was_cut_short_is_finished() {
    let disk = closed(100);
    let mut manifest = Manifest::parse(&disk.content(MANIFEST_NAME)[manifest_at(&disk)..]).unwrap();
    manifest.first_segment = 3;
    manifest.generation += 1;
    let mut content = disk.content(MANIFEST_NAME);
    let at = usize::try_from(manifest.at()).unwrap();
    content[at..at + 384].copy_from_slice(&manifest.encode());
    disk.put(MANIFEST_NAME, content);
    let (good, _) = read(&disk, Cursor::Start);
    let world = World::open(&disk, small());
    assert!(world.findings.is_empty(), "{:?}", world.findings);
    assert!(disk.open(&segment_name(2)).is_err());
    assert_reads(&disk, Cursor::Start, good[0]..100);
}

/// Where the newest slot is.
fn manifest_at(disk: &Forgetful) -> usize {
    let content = disk.content(MANIFEST_NAME);
    let slots = MANIFEST_SLOTS_AT.map(|at| usize::try_from(at).unwrap());
    let generation = |at: &usize| Manifest::parse(&content[*at..]).map_or(0, |m| m.generation);
    slots.into_iter().max_by_key(generation).unwrap()
}

#[test]
fn a_manifest_that_is_lost_is_made_anew() {
    for broken in [None, Some(vec![]), Some(vec![0xff; 5_000])] {
        let disk = crashed(100);
        match broken {
            None => disk.remove(MANIFEST_NAME).unwrap(),
            Some(content) => disk.put(MANIFEST_NAME, content),
        }
        let world = World::open(&disk, small());
        assert!(
            matches!(
                world.findings[..],
                [Finding::Manifest { is_lost: true, .. }]
            ),
            "{:?}",
            world.findings
        );
        assert_reads(&disk, Cursor::Start, 0..100);
        drop(world);
        assert!(World::open(&disk, small()).findings.is_empty());
    }
}

#[test]
fn one_slot_of_the_manifest_is_enough() {
    let disk = closed(30);
    let newest = manifest_at(&disk);
    disk.flip(MANIFEST_NAME, newest + 50, 1);
    let world = World::open(&disk, small());
    let is_slot = matches!(
        world.findings[..],
        [Finding::Manifest { is_lost: false, .. }]
    );
    assert!(is_slot, "{:?}", world.findings);
    assert_reads(&disk, Cursor::Start, 0..30);
}

/// Writes a version into a header, and its checksum anew.
fn set_version(content: &mut [u8], header_bytes: usize) {
    content[8..12].copy_from_slice(&9u32.to_be_bytes());
    let checksum = crc32c::crc32c(&content[..header_bytes - 4]);
    content[header_bytes - 4..header_bytes].copy_from_slice(&checksum.to_be_bytes());
}

#[test]
fn a_newer_version_is_refused() {
    for (file, header_bytes) in [(segment_name(2), 76), (MANIFEST_NAME.to_owned(), 384)] {
        let disk = crashed(100);
        let mut content = disk.content(&file);
        let at = if header_bytes == 384 {
            manifest_at(&disk)
        } else {
            0
        };
        set_version(&mut content[at..], header_bytes);
        disk.put(&file, content);
        let before: Vec<_> = disk
            .list()
            .unwrap()
            .iter()
            .map(|f| disk.content(f))
            .collect();
        let refused = World::try_open(&disk, small()).err().unwrap();
        let words = refused.to_string();
        assert!(
            words.contains("version is 9") && words.contains(&file),
            "{words}"
        );
        let after: Vec<_> = disk
            .list()
            .unwrap()
            .iter()
            .map(|f| disk.content(f))
            .collect();
        assert_eq!(before, after, "nothing was changed");
    }
}

#[test]
fn files_of_another_log_are_refused() {
    let disk = crashed(100);
    let other = LogName::parse("other").unwrap();
    let refused = recover(&disk, &other, [1; 16]);
    assert!(matches!(refused, Err(OpenError::Name { .. })));
    let theirs = Forgetful::default();
    recover(&theirs, &name(), [1; 16]).unwrap();
    theirs.put(&segment_name(1), disk.content(&segment_name(1)));
    let refused = World::try_open(&theirs, small()).err();
    assert!(matches!(
        refused,
        Some(OpenError::Fault {
            fault: Fault::OtherLog,
            ..
        })
    ));
}

/// Reads and opens a log that was changed: whether anything noticed. `read` has asserted of every
/// event that it is as it was appended.
fn is_noticed(disk: &Forgetful, count: u64) -> bool {
    let mut is_noticed = flaws(disk) > 0;
    match Reader::open(disk.clone(), &name(), Cursor::Start) {
        Err(_) => is_noticed = true,
        Ok(mut reader) => {
            let (good, bad) = drain(&mut reader);
            assert!(good.is_sorted_by(|a, b| a < b));
            is_noticed |= !bad.is_empty();
        }
    }
    match World::try_open(disk, small()) {
        Err(_) => is_noticed = true,
        Ok(world) => {
            assert!(world.log.end() <= count || !world.findings.is_empty());
            is_noticed |= !world.findings.is_empty();
        }
    }
    is_noticed
}

#[test]
fn every_flipped_byte_is_noticed_and_never_given() {
    for log in [closed(40), crashed(40)] {
        for segment in 1..=3 {
            let file = segment_name(segment);
            for at in 0..log.content(&file).len() {
                let disk = log.copy_unsynced();
                disk.flip(&file, at, 1 << (at % 8));
                assert!(is_noticed(&disk, 40), "{file} at {at}");
            }
        }
    }
}

#[test]
fn truncation_anywhere_gives_what_was_before_it() {
    for log in [closed(40), crashed(40)] {
        for segment in 1..=3 {
            let file = segment_name(segment);
            let content = log.content(&file);
            for bytes in 0..used(&log, segment) {
                let disk = log.copy_unsynced();
                disk.put(&file, content[..bytes].to_vec());
                let (good, _) = read(&disk, Cursor::Start);
                let whole = good.iter().zip(0..).take_while(|(a, b)| *a == b).count() as u64;
                let mut world = World::open(&disk, small());
                let end = world.log.end();
                assert!(end >= whole && end <= 40, "{file} cut to {bytes}: {end}");
                world.append_each(2);
                let (again, _) = read(&disk, Cursor::Start);
                assert_eq!(
                    again[..good.len().min(again.len())],
                    good[..good.len().min(again.len())]
                );
                assert_eq!(again.last(), Some(&(end + 1)));
            }
        }
    }
}

#[test]
fn a_log_with_everything_broken_is_left_as_it_is() {
    let disk = crashed(5);
    disk.put(MANIFEST_NAME, vec![1; 9]);
    disk.put(&segment_name(1), vec![2; 4_096]);
    let refused = World::try_open(&disk, Options::default()).err();
    assert!(matches!(refused, Some(OpenError::Identity)), "{refused:?}");
    assert_eq!(disk.content(&segment_name(1)), vec![2; 4_096]);
}

#[test]
fn what_is_damaged_in_front_of_the_cursor_is_not_told() {
    for is_end in [false, true] {
        let disk = closed(10);
        let at = match is_end {
            true => used(&disk, 1) - 1,
            false => used(&disk, 1) / 2,
        };
        disk.flip(&segment_name(1), at, 1);
        let (_, errors) = read(&disk, Cursor::Start);
        let [ReadError::Damaged { from, to, .. }] = errors[..] else {
            panic!("{errors:?}");
        };
        assert_eq!(is_end, to == 10);
        for offset in to..12 {
            assert_reads(&disk, Cursor::Offset(offset), offset..10);
            assert_reads(&disk, Cursor::After(offset - 1), offset..10);
        }
        // What is in it is.
        for offset in from..to {
            let (good, errors) = read(&disk, Cursor::Offset(offset));
            assert_eq!(good, (to..10).collect::<Vec<_>>());
            let is_told = matches!(errors[..], [ReadError::Damaged { from: f, to: t, .. }] if (f, t) == (offset, to));
            assert!(is_told, "{errors:?}");
        }
    }
}
