use super::{
    forgetful::{Faults, Forgetful},
    world::{SECOND, World, assert_reads, link, small},
};
use crate::{
    AppendError, Cursor, Finding, OpenError, Options,
    disk::Disk as _,
    format::{segment_name, segment_of},
};
use std::io;

const FULL: Faults = Faults {
    is_full: true,
    sync_fails: false,
    sync_lies: false,
    write_bytes_max: None,
};

#[test]
fn a_full_disk_makes_the_log_wait() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    world.append(1);
    world.settle();
    disk.set(FULL);
    let mut appended = 1;
    while !world.log.is_disk_full() {
        world.append(1);
        appended += 1;
        world.settle();
        assert!(appended < 1_000);
    }
    assert_eq!(world.log.acknowledged(), appended - 1);
    let refused = world.log.append(world.now, &link(0), b"");
    assert_eq!(refused, Err(AppendError::DiskFull));
    disk.set(Faults::default());
    world.settle();
    assert_eq!(
        world.log.acknowledged(),
        appended - 1,
        "not asked again yet"
    );
    world.now += 2 * SECOND;
    world.settle();
    assert_eq!(world.log.acknowledged(), appended);
    world.append_each(10);
    assert_reads(&disk, Cursor::Start, 0..appended + 10);
}

/// A segment is made with room for all that is written to it.
#[test]
fn more_than_a_segment_takes_is_written_although_the_disk_is_full_then() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    world.append(200);
    // The segment is made.
    world.step();
    disk.set(FULL);
    world.settle();
    assert_eq!(world.log.acknowledged(), 200, "{:?}", world.log.failure());
    assert_reads(&disk, Cursor::Start, 0..200);
}

/// One that was made ahead has too little.
#[test]
fn with_more_than_a_segment_takes_a_log_waits_for_room() {
    let disk = Forgetful::default();
    let mut world = World::open(&disk, small());
    let made_ahead = || {
        let files = disk.list().unwrap();
        let mut segments = files.iter().filter(|file| segment_of(file).is_some());
        let is_empty = |file: &&String| disk.content(file).iter().all(|byte| *byte == 0);
        segments.any(|file| is_empty(&file))
    };
    while !made_ahead() {
        world.append_each(1);
    }
    let before = world.log.end();
    world.append(200);
    disk.set(FULL);
    world.settle();
    assert!(world.log.is_disk_full(), "{:?}", world.log.failure());
    assert_eq!(world.log.acknowledged(), before);
    disk.set(Faults::default());
    world.now += 2 * SECOND;
    world.settle();
    let end = before + 200;
    assert_eq!(world.log.acknowledged(), end);
    world.append_each(10);
    assert_reads(&disk, Cursor::Start, 0..end + 10);
    world.close();
    let world = World::open(&disk, small());
    assert_eq!((world.log.end(), world.findings.len()), (end + 10, 0));
}

/// A log of three events whose one segment has no room for more once it is opened with these options.
fn without_room(is_torn: bool) -> (Forgetful, Options) {
    let disk = Forgetful::default();
    World::open(&disk, small()).append_each(3);
    let raised = Options {
        segment_bytes: 4 * small().segment_bytes,
        ..small()
    };
    if is_torn {
        let mut content = disk.content(&segment_name(1));
        let end = content.iter().rposition(|&byte| byte != 0).unwrap() + 1;
        content[end..end + 50].fill(0xff);
        disk.put(&segment_name(1), content);
    }
    (disk, if is_torn { small() } else { raised })
}

/// Appends until the disk is full; how many events the log has then.
fn fill(world: &mut World) -> u64 {
    while !world.log.is_disk_full() {
        world.append_each(1);
        assert_eq!(world.log.failure(), None, "{}", world.log.end());
        assert!(world.log.end() < 1_000);
    }
    world.log.end()
}

#[test]
fn a_last_segment_without_room_makes_the_log_wait_on_a_full_disk() {
    for is_torn in [true, false] {
        let (disk, options) = without_room(is_torn);
        let mut world = World::open(&disk, options);
        assert_eq!(world.findings.len(), usize::from(is_torn));
        disk.set(FULL);
        // Nothing waits for it yet.
        world.settle();
        assert!(!world.log.is_disk_full());
        assert_eq!(fill(&mut world), 4);
        assert_eq!(world.log.acknowledged(), 3);
        disk.set(Faults::default());
        world.now += 2 * SECOND;
        world.settle();
        assert_eq!(world.log.acknowledged(), 4);
        world.append_each(100);
        assert_reads(&disk, Cursor::Start, 0..104);
    }
}

#[test]
fn a_last_segment_is_given_room_when_the_log_is_opened() {
    for is_torn in [true, false] {
        let (disk, options) = without_room(is_torn);
        let mut world = World::open(&disk, options);
        world.settle();
        assert_eq!(
            disk.content(&segment_name(1)).len() as u64,
            options.segment_bytes
        );
        disk.set(FULL);
        let end = fill(&mut world);
        // The last of them waits for the next segment.
        assert_eq!(world.log.acknowledged(), end - 1);
        assert_eq!(world.log.segments().len(), 2);
        assert_reads(&disk, Cursor::Start, 0..end - 1);
    }
}

#[test]
fn a_log_with_nothing_to_write_is_closed_although_the_disk_is_full() {
    let (disk, options) = without_room(true);
    let world = World::open(&disk, options);
    disk.set(FULL);
    world.close();
    disk.set(Faults::default());
    assert_reads(&disk, Cursor::Start, 0..3);
}

#[test]
fn a_torn_tail_is_not_cut_before_there_is_room_to_put_it_aside() {
    let (disk, options) = without_room(true);
    let before = disk.content(&segment_name(1));
    disk.set(FULL);
    let error = World::try_open(&disk, options).err();
    assert!(
        matches!(&error, Some(OpenError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull),
        "{error:?}"
    );
    assert_eq!(disk.content(&segment_name(1)), before);
    disk.set(Faults::default());
    let mut world = World::open(&disk, options);
    assert!(matches!(world.findings[..], [Finding::Torn { .. }]));
    world.append_each(10);
    assert_reads(&disk, Cursor::Start, 0..13);
}
