//! What the driver writes on a real disk, of one log by system calls and of several by the ring: there once and in order,
//! and not acknowledged behind a write that fails.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{fs, os::unix::fs::symlink, path::Path};
use virga_ebpf::header::OriginHash;
use virga_state::{
    AppendError, Cursor, Link, LogName, Options, Reader,
    format::segment_name,
    io::{
        clock,
        driver::{Driver, Way},
        open::{self, OpenLog},
    },
};

fn name(log: usize) -> LogName {
    LogName::parse(&format!("driver/{log}")).unwrap()
}

fn open(folder: &Path, log: usize) -> OpenLog {
    let options = Options {
        segment_bytes: 8 << 10,
        ..Options::default()
    };
    OpenLog::open(folder, &name(log), options, [5; 16]).unwrap()
}

fn payload(log: usize, offset: u64) -> Vec<u8> {
    let said = format!("{log} {offset} ");
    said.repeat(usize::try_from(offset % 40).unwrap() + 1)
        .into_bytes()
}

fn link(offset: u64) -> Link {
    Link {
        entity: OriginHash(1),
        observed: 0,
        parent: offset,
    }
}

fn append(open: &mut OpenLog, log: usize, count: u64) {
    for _ in 0..count {
        let offset = open.log.end();
        let said = payload(log, offset);
        let appended = open.log.append(clock::now_unix_ns(), &link(offset), &said);
        assert_eq!(appended, Ok(offset));
    }
}

/// Asserts that exactly these events are in the files.
#[track_caller]
fn assert_holds(folder: &Path, log: usize, end: u64) {
    let disk = open::read(folder, &name(log)).unwrap();
    let mut reader = Reader::open(disk, &name(log), Cursor::Start).unwrap();
    let mut next = 0;
    while let Some(event) = reader.next_event().unwrap() {
        assert_eq!(event.offset, next);
        assert_eq!(event.payload, payload(log, next), "log {log}, event {next}");
        next += 1;
    }
    assert_eq!(next, end, "log {log}");
}

/// One log is written by system calls, two by the ring, and more than it has room for in several calls of it.
#[test]
fn what_is_acknowledged_is_in_the_files() {
    for (way, count) in [
        (Way::Auto, 1),
        (Way::Auto, 2),
        (Way::Auto, 150),
        (Way::Plain, 2),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut logs: Vec<OpenLog> = (0..count).map(|log| open(folder.path(), log)).collect();
        let mut driver = Driver::open(way);
        for turn in 1..4 {
            for (log, open) in logs.iter_mut().enumerate() {
                append(open, log, 40);
            }
            driver.settle(&mut logs);
            let is_whole = |open: &OpenLog| open.log.acknowledged() == 40 * turn;
            assert!(logs.iter().all(is_whole), "{way:?}, {count} logs, {turn}");
        }
        for log in 0..count {
            assert_holds(folder.path(), log, 120);
        }
    }
}

#[test]
fn behind_a_write_that_fails_nothing_is_acknowledged_until_the_log_is_opened_again() {
    for (way, count) in [(Way::Auto, 1), (Way::Auto, 2), (Way::Plain, 2)] {
        let folder = tempfile::tempdir().unwrap();
        let open_all =
            || -> Vec<OpenLog> { (0..count).map(|log| open(folder.path(), log)).collect() };
        let mut logs = open_all();
        let mut driver = Driver::open(way);
        for (log, open) in logs.iter_mut().enumerate() {
            append(open, log, 3);
        }
        driver.settle(&mut logs);
        drop(logs);
        let mut logs = open_all();
        let segment = folder.path().join(name(0).folder()).join(segment_name(1));
        let aside = folder.path().join("aside");
        fs::rename(&segment, &aside).unwrap();
        // What is there now is not written to: the write fails.
        symlink("/dev/full", &segment).unwrap();
        for (log, open) in logs.iter_mut().enumerate() {
            append(open, log, 2);
        }
        driver.settle(&mut logs);
        let log = &mut logs[0].log;
        assert_eq!(log.acknowledged(), 3, "{way:?}, {count} logs");
        let link = link(log.end());
        let refused = log.append(clock::now_unix_ns(), &link, b"more");
        assert!(
            matches!(refused, Err(AppendError::Failed(_))),
            "{refused:?}"
        );
        // The other logs go on.
        let mut others = logs.iter().skip(1);
        assert!(others.all(|open| open.log.acknowledged() == 5));
        drop(logs);
        fs::remove_file(&segment).unwrap();
        fs::rename(&aside, &segment).unwrap();
        let mut logs = open_all();
        append(&mut logs[0], 0, 1);
        driver.settle(&mut logs);
        assert_eq!(logs[0].log.acknowledged(), 4);
        drop(logs);
        assert_holds(folder.path(), 0, 4);
    }
}
