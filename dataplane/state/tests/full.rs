//! A log on a real file system that is full: it waits for room, also where the segment that it goes on in has none ahead.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
};
use virga_ebpf::header::OriginHash;
use virga_state::{
    Cursor, Link, LogName, Options, Reader,
    format::segment_name,
    io::{
        clock,
        open::{self, OpenLog},
    },
};

const FOLDER: &str = "VIRGA_FULL_FOLDER";
const SEGMENT_BYTES: u64 = 256 << 10;
/// So many events fill a segment by more than half, as each has a page at most.
const EVENTS: u64 = SEGMENT_BYTES / 4_096 / 2;
const PAYLOAD: [u8; 4_000] = [b'x'; 4_000];
/// Longer than a log waits before it asks a full disk again.
const LATER_NS: u64 = 2_000_000_000;

/// Why the last segment has no room ahead.
#[derive(Clone, Copy, Debug)]
enum Lacks {
    /// Its torn tail was cut.
    Torn,
    /// It was made when segments were smaller.
    Raised,
}

fn name() -> LogName {
    LogName::parse("full").unwrap()
}

fn open(logs: &Path, segment_bytes: u64) -> OpenLog {
    let options = Options {
        segment_bytes,
        ..Options::default()
    };
    OpenLog::open(logs, &name(), options, [7; 16]).unwrap()
}

/// A log that was opened again, and that nothing was done to yet.
fn reopened(logs: &Path, lacks: Lacks) -> OpenLog {
    let mut log = match lacks {
        Lacks::Torn => open(logs, SEGMENT_BYTES),
        Lacks::Raised => open(logs, 16 << 10),
    };
    append(&mut log);
    drop(log);
    let segment = logs.join(name().folder()).join(segment_name(1));
    if let Lacks::Torn = lacks {
        let content = fs::read(&segment).unwrap();
        let end = content.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let file = OpenOptions::new().write(true).open(&segment).unwrap();
        file.write_all_at(&[0xff; 50], end as u64).unwrap();
    }
    let log = open(logs, SEGMENT_BYTES);
    assert!(segment.metadata().unwrap().len() < SEGMENT_BYTES);
    log
}

fn append(open: &mut OpenLog) {
    let offset = open.log.end();
    let link = Link {
        entity: OriginHash(1),
        observed: 0,
        parent: offset,
    };
    let now = clock::now_unix_ns();
    assert_eq!(open.log.append(now, &link, &PAYLOAD), Ok(offset));
    open.settle();
    assert_eq!(open.log.failure(), None, "event {offset}");
}

/// Takes all the room that is left.
fn fill(file: &Path) {
    let mut file = File::create(file).unwrap();
    let full = loop {
        if let Err(error) = file.write_all(&[0xff; 4_096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::StorageFull);
}

/// Asserts that exactly so many events are in the files.
fn assert_holds(logs: &Path, events: u64) {
    let mut reader =
        Reader::open(open::read(logs, &name()).unwrap(), &name(), Cursor::Start).unwrap();
    for offset in 0..events {
        let event = reader.next_event().unwrap().unwrap();
        assert_eq!((event.offset, event.payload), (offset, &PAYLOAD[..]));
    }
    assert!(reader.next_event().unwrap().is_none());
}

fn waits_for_room(disk: &Path, lacks: Lacks) {
    let logs = disk.join("logs");
    let mut open = reopened(&logs, lacks);
    let taken = disk.join("taken");
    fill(&taken);
    append(&mut open);
    assert!(open.log.is_disk_full(), "{lacks:?}");
    assert_eq!(open.log.acknowledged(), 1);
    fs::remove_file(taken).unwrap();
    let later = clock::now_unix_ns() + LATER_NS;
    while open.files.step(&mut open.log, later) {}
    assert_eq!(open.log.acknowledged(), 2, "{lacks:?}");
    append(&mut open);
    assert_holds(&logs, 3);
}

fn goes_on_with_the_room_it_has(disk: &Path, lacks: Lacks) {
    let logs = disk.join("logs");
    let mut open = reopened(&logs, lacks);
    open.settle();
    fill(&disk.join("taken"));
    while !open.log.is_disk_full() {
        append(&mut open);
    }
    // The last of them waits for the next segment.
    let acknowledged = open.log.acknowledged();
    assert_eq!(acknowledged, open.log.end() - 1);
    assert!(acknowledged > EVENTS, "{lacks:?}: {acknowledged}");
    assert_holds(&logs, acknowledged);
}

#[test]
#[ignore = "the process that has the file system"]
fn on_a_file_system_of_its_own() {
    let Some(disk) = env::var_os(FOLDER) else {
        return;
    };
    for lacks in [Lacks::Torn, Lacks::Raised] {
        for check in [waits_for_room, goes_on_with_the_room_it_has] {
            let disk = Path::new(&disk);
            check(disk, lacks);
            fs::remove_dir_all(disk.join("logs")).unwrap();
            // Of one of the two.
            let _ = fs::remove_file(disk.join("taken"));
        }
    }
}

#[test]
fn a_full_file_system_makes_a_log_wait_that_was_opened_again() {
    for (system, mount) in [
        ("tmpfs", "mount -t tmpfs -o size=1m tmpfs \"$0\""),
        (
            "ext4",
            "mkfs.ext4 -q -m 0 -b 4096 \"$0.image\" 16m && mount -o loop \"$0.image\" \"$0\"",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        fs::create_dir(&disk).unwrap();
        let run = |flags: &[&str]| {
            let script = format!("{mount} && exec \"$@\"");
            let mut command = Command::new("unshare");
            command.args(flags).args(["sh", "-c", &script]);
            command.arg(&disk).arg(env::current_exe().unwrap());
            command.args(["--exact", "on_a_file_system_of_its_own", "--ignored"]);
            command.env(FOLDER, &disk).output().unwrap()
        };
        let mut output = run(&["--mount"]);
        if output.stdout.is_empty() && !output.status.success() {
            // Whoever is not root may be so among processes of its own.
            output = run(&["--mount", "--map-root-user"]);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        // The process says that it runs before anything else.
        if output.stdout.is_empty() && !output.status.success() {
            println!("not looked at: {system}: {said}");
            continue;
        }
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{system}: {told}{said}");
        assert!(told.contains("1 passed"), "{system}: {told}{said}");
    }
}
