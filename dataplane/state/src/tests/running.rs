use super::{
    forgetful::{Faults, Forgetful},
    world::{SECOND, World, assert_reads, drain, link, name, payload, read, small},
};
use crate::{
    AppendError, Cursor, Durability, Options, ReadError, Reader, Retention,
    disk::Disk as _,
    format::{
        BATCH_MAGIC, MANIFEST_NAME, SEGMENT_HEADER_BYTES, index_name, segment_name, segment_of,
    },
    limits::{COMMIT_BYTES_MAX, EVENT_BYTES_MAX},
    verify::{Depth, verify},
};

#[test]
fn what_is_appended_is_read_in_every_mode() {
    for durability in Durability::ALL {
        let disk = Forgetful::default();
        let options = Options {
            durability,
            ..small()
        };
        let mut world = World::open(&disk, options);
        for count in [1, 2, 30, 1, 200] {
            world.append(count);
            world.settle();
            assert_eq!(world.log.acknowledged(), world.log.end());
        }
        assert_reads(&disk, Cursor::Start, 0..234);
        let report = verify(&disk, &name(), Depth::Content).unwrap();
        assert_eq!((report.events, report.flaw_count), (234, 0));
        assert!(report.segments > 3, "{}", report.segments);
    }
}

#[test]
fn a_mode_says_when_an_event_is_acknowledged() {
    for (durability, appended, written) in [
        (Durability::Synced, 0, 5),
        (Durability::Flushed, 0, 5),
        (Durability::Memory, 5, 5),
    ] {
        let disk = Forgetful::default();
        let options = Options {
            durability,
            ..small()
        };
        let mut world = World::open(&disk, options);
        world.settle();
        let syncs = disk.syncs();
        world.append(5);
        assert_eq!(world.log.acknowledged(), appended, "{durability}");
        world.settle();
        assert_eq!(world.log.acknowledged(), written, "{durability}");
        let synced = u64::from(durability == Durability::Synced);
        assert_eq!(disk.syncs() - syncs, synced, "{durability}");
    }
}

#[test]
fn what_comes_during_a_write_shares_the_next_sync() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    world.settle();
    let syncs = disk.syncs();
    world.append(1);
    let action = world.log.poll_action(world.now).unwrap();
    let done = world.files.perform(&action);
    world.append(64);
    assert!(world.log.poll_action(world.now).is_none(), "one at a time");
    world.log.complete(world.now, done);
    assert_eq!(world.log.acknowledged(), 1);
    world.settle();
    assert_eq!(world.log.acknowledged(), 65);
    assert_eq!(disk.syncs() - syncs, 2);
}

#[test]
fn cursors_begin_where_they_say() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    world.append_each(200);
    assert_reads(&disk, Cursor::Start, 0..200);
    assert_reads(&disk, Cursor::End, 0..0);
    for offset in [0, 1, 57, 100, 199, 200, 5_000] {
        assert_reads(&disk, Cursor::Offset(offset), offset.min(200)..200);
        assert_reads(&disk, Cursor::After(offset), (offset + 1).min(200)..200);
        // The event at an offset has that time.
        let time = Cursor::Time(SECOND + offset + 1);
        assert_reads(&disk, time, offset.min(200)..200);
    }
    assert_reads(&disk, Cursor::Time(0), 0..200);
}

#[test]
fn an_index_that_is_lost_is_made_anew() {
    let disk = Forgetful::default();
    World::open(&disk, small()).append_each(200);
    let index = disk.content(&index_name(2));
    for broken in [
        None,
        Some(vec![]),
        Some(vec![0; index.len()]),
        Some(b"virgaidx".to_vec()),
    ] {
        match broken {
            None => disk.remove(&index_name(2)).unwrap(),
            Some(content) => disk.put(&index_name(2), content),
        }
        for offset in 20..60 {
            assert_reads(&disk, Cursor::Offset(offset), offset..200);
        }
        assert_eq!(disk.content(&index_name(2)), index);
    }
}

#[test]
fn a_reader_follows_the_writer_up_to_what_is_acknowledged() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    let mut reader = Reader::open(disk.clone(), &name(), Cursor::Start).unwrap();
    reader.set_limit(0);
    let mut expected = 0;
    for count in [1, 1, 3, 40, 1, 100] {
        world.append(count);
        assert!(matches!(reader.next_event(), Ok(None)));
        world.settle();
        reader.set_limit(world.log.readable());
        let (good, bad) = drain(&mut reader);
        assert!(bad.is_empty(), "{bad:?}");
        assert_eq!(good, (expected..expected + count).collect::<Vec<_>>());
        expected += count;
    }
}

/// A writer that was killed, or that is just writing, has left the begin of a batch.
#[test]
fn the_log_ends_before_a_batch_that_is_not_all_there_yet() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    world.append_each(3);
    let [before, after] = [0, 5].map(|count| {
        world.append(count);
        world.settle();
        disk.content(&segment_name(1))
    });
    let used = before.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    let end = after.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    for cut in used..end {
        let mut content = after.clone();
        content[cut..end].fill(0);
        let disk = Forgetful::default();
        disk.put(MANIFEST_NAME, world.files.disk().content(MANIFEST_NAME));
        disk.put(&segment_name(1), content);
        let mut reader = Reader::open(disk.clone(), &name(), Cursor::Start).unwrap();
        let mut follower = Reader::open(disk.clone(), &name(), Cursor::End).unwrap();
        let (mut good, bad) = drain(&mut reader);
        assert!(bad.is_empty(), "cut at {cut}: {bad:?}");
        let report = verify(&disk, &name(), Depth::Content).unwrap();
        // What a cut takes away may have been zeros.
        let is_whole = report.end == 8;
        assert_eq!(report.flaw_count, 0, "cut at {cut}");
        // Nothing of it is given before all of it is there: the writer may put other events in its place.
        let given = if is_whole { 8 } else { 3 };
        assert_eq!(good.len(), given, "cut at {cut}");
        disk.put(&segment_name(1), after.clone());
        let (rest, bad) = drain(&mut reader);
        assert!(bad.is_empty(), "cut at {cut}: {bad:?}");
        good.extend(rest);
        assert_eq!(good, (0..8).collect::<Vec<_>>(), "cut at {cut}");
        let (followed, bad) = drain(&mut follower);
        assert!(bad.is_empty(), "cut at {cut}: {bad:?}");
        let expected: Vec<u64> = if is_whole { vec![] } else { (3..8).collect() };
        assert_eq!(followed, expected, "cut at {cut}");
    }
}

#[test]
fn a_short_write_is_continued() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    disk.set(Faults {
        write_bytes_max: Some(100),
        ..Faults::default()
    });
    world.append(50);
    world.settle();
    assert_eq!(world.log.acknowledged(), 50);
    disk.crash(|| false);
    assert_reads(&disk, Cursor::Start, 0..50);
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    world.append_each(10);
    disk.set(Faults {
        sync_fails: true,
        ..Faults::default()
    });
    world.append(1);
    world.settle();
    disk.set(Faults::default());
    world.settle();
    assert_eq!(world.log.acknowledged(), 10);
    assert!(world.log.failure().unwrap().contains("sync failed"));
    let refused = world.log.append(world.now, &link(0), b"");
    assert!(matches!(refused, Err(AppendError::Failed(_))));
    disk.crash(|| false);
    let mut again = World::open(&disk, small());
    again.append_each(5);
    assert_reads(&disk, Cursor::Start, 0..15);
}

#[test]
fn retention_removes_whole_segments_and_says_so_to_readers() {
    let of = |retention| Options {
        retention,
        ..small()
    };
    let none = Retention::default();
    for (retention, at_least, at_most) in [
        (none, 400, 400),
        (
            Retention {
                events_max: Some(100),
                ..none
            },
            100,
            150,
        ),
        (
            Retention {
                bytes_max: Some(20_000),
                ..none
            },
            60,
            150,
        ),
        (
            Retention {
                age_ns_max: Some(100),
                ..none
            },
            100,
            150,
        ),
    ] {
        let disk = Forgetful::default();
        let mut world = World::open(&disk, of(retention));
        world.append_each(400);
        let first = world.log.first();
        let kept = 400 - first;
        assert!(
            (at_least..=at_most).contains(&kept),
            "{retention:?}: {kept}"
        );
        let segments = disk.list().unwrap();
        let segments = segments.iter().filter(|f| segment_of(f).is_some()).count();
        assert!(
            segments <= usize::try_from(kept / 10 + 2).unwrap(),
            "{segments}"
        );
        assert_reads(&disk, Cursor::Start, first..400);
        if first > 0 {
            let (good, bad) = read(&disk, Cursor::Offset(0));
            assert_eq!(good.len() as u64, kept);
            assert!(matches!(bad[..], [ReadError::Gone { from: 0, to }] if to == first));
        }
        drop(world);
        let again = World::open(&disk, of(retention));
        assert!(again.findings.is_empty(), "{:?}", again.findings);
        assert_eq!((again.log.first(), again.log.end()), (first, 400));
    }
}

#[test]
fn a_segment_in_front_of_a_damaged_batch_goes_when_it_is_old_and_not_before() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    world.now = 1_000 * SECOND;
    world.append_each(200);
    drop(world);
    for number in [2, 3] {
        disk.flip(&segment_name(number), SEGMENT_HEADER_BYTES + 40, 1);
    }
    let options = Options {
        retention: Retention {
            age_ns_max: Some(10 * SECOND),
            ..Retention::default()
        },
        ..small()
    };
    for (seconds, goes) in [(1_005, false), (1_020, true)] {
        let mut world = World::open(&disk, options);
        world.now = seconds * SECOND;
        world.settle();
        assert_eq!(world.log.first() > 0, goes, "{seconds}");
    }
}

#[test]
fn time_never_goes_back_in_a_log() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    world.now = 100 * SECOND;
    world.append(1);
    world.settle();
    drop(world);
    // Opened again, on a machine whose clock was set back.
    let mut world = World::open(&disk, small());
    world.now = 5;
    world.append(2);
    world.settle();
    let mut reader = Reader::open(disk.clone(), &name(), Cursor::Start).unwrap();
    let mut times = Vec::new();
    while let Some(event) = reader.next_event().unwrap() {
        times.push(event.time_unix_ns);
    }
    assert_eq!(times, [100 * SECOND + 1; 3]);
}

#[test]
fn what_is_too_large_or_too_much_is_given_back() {
    let disk = Forgetful::default();
    let options = Options {
        segment_bytes: 8 << 20,
        ..Options::default()
    };
    let mut world = World::open(&disk, options);
    let largest = vec![1; EVENT_BYTES_MAX + 1];
    let refused = world.log.append(1, &link(0), &largest);
    assert_eq!(refused, Err(AppendError::TooLarge(EVENT_BYTES_MAX + 1)));
    let mut taken = 0;
    while world.log.append(1, &link(0), &largest[1..]).is_ok() {
        taken += 1;
    }
    assert_eq!(taken, COMMIT_BYTES_MAX / EVENT_BYTES_MAX - 1);
    let refused = world.log.append(1, &link(0), &largest[1..]);
    assert_eq!(refused, Err(AppendError::Full));
    world.settle();
    assert_eq!(world.log.acknowledged(), taken as u64);
    assert!(world.log.append(1, &link(0), &payload(3)).is_ok());
    world.log.close();
    let refused = world.log.append(1, &link(0), b"");
    assert_eq!(refused, Err(AppendError::Closing));
    world.settle();
    let report = verify(&disk, &name(), Depth::Content).unwrap();
    assert_eq!((report.events, report.flaw_count), (taken as u64 + 1, 0));
    assert!(disk.content(MANIFEST_NAME).len() < 8_192);
}

/// Power was lost: of two writes that were not synced, the later is whole and the earlier is not.
#[test]
fn a_later_batch_that_did_not_know_of_an_earlier_one_is_no_proof_of_it() {
    let disk = Forgetful::default();
    let options = Options {
        durability: Durability::Flushed,
        ..small()
    };
    let mut world = World::open(&disk, options);
    for _ in 0..3 {
        world.append(2);
        world.settle();
    }
    let content = disk.content(&segment_name(1));
    let used = content.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    let begins: Vec<usize> = (0..used)
        .filter(|&at| content[at..].starts_with(BATCH_MAGIC))
        .collect();
    let mut torn = content.clone();
    torn[begins[2] - 8..begins[2]].fill(0xff);
    disk.put(&segment_name(1), torn);
    let mut reader = Reader::open(disk.clone(), &name(), Cursor::Start).unwrap();
    let (good, bad) = drain(&mut reader);
    assert_eq!(good, [0, 1]);
    assert!(bad.is_empty(), "{bad:?}");
    let report = verify(&disk, &name(), Depth::Content).unwrap();
    assert_eq!((report.flaw_count, report.end), (0, 2));
    // Recovery sees it the same way, and the reader goes on with what is written then.
    drop(world);
    let mut world = World::open(&disk, options);
    assert_eq!(world.log.end(), 2);
    world.append_each(3);
    let (good, bad) = drain(&mut reader);
    assert_eq!(good, [2, 3, 4]);
    assert!(bad.is_empty(), "{bad:?}");
}
