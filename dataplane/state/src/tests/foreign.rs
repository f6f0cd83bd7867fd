//! Something else under the name of one of a log's files: it is refused, and what is behind it stays as it is.

use super::world::{link, payload};
use crate::{
    Cursor, LogName, OpenError, Options, Reader,
    disk::Disk as _,
    format::{MANIFEST_NAME, compacting_name, index_name, segment_name, torn_name},
    io::{
        folder::Folder,
        open::{self, OpenLog},
    },
    verify::{Depth, verify},
};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

fn name() -> LogName {
    LogName::parse("a").unwrap()
}

fn open(logs: &Path) -> Result<OpenLog, OpenError> {
    let options = Options {
        segment_bytes: 16 << 10,
        ..Options::default()
    };
    OpenLog::open(logs, &name(), options, [3; 16])
}

fn append(open: &mut OpenLog, count: u64) {
    for _ in 0..count {
        let offset = open.log.end();
        let appended = open.log.append(1, &link(offset), &payload(offset));
        assert_eq!(appended, Ok(offset));
        open.settle();
    }
}

/// A log of two segments, the last of which has a torn tail: to open it is to cut it.
fn torn_log(logs: &Path) -> PathBuf {
    let mut log = open(logs).unwrap();
    while !logs.join("a").join(index_name(1)).exists() {
        append(&mut log, 1);
    }
    append(&mut log, 5);
    drop(log);
    let last = logs.join("a").join(segment_name(2));
    let mut bytes = fs::read(&last).unwrap();
    let tail = bytes.len() - 100;
    bytes[tail..].fill(b'x');
    fs::write(&last, bytes).unwrap();
    logs.join("a")
}

/// Moves a file of the log elsewhere, and lets its name lead there.
fn lead_away(file: &Path, elsewhere: &Path) -> Vec<u8> {
    fs::rename(file, elsewhere).unwrap();
    symlink(elsewhere, file).unwrap();
    fs::read(elsewhere).unwrap()
}

#[track_caller]
fn assert_says(error: &str, path: &Path, what: &str) {
    let path = path.display().to_string();
    assert!(error.contains(&path) && error.contains(what), "{error}");
    assert!(error.contains("put the file itself there"), "{error}");
}

#[test]
fn a_file_that_a_link_leads_to_is_neither_cut_nor_read() {
    for file in [segment_name(1), segment_name(2), MANIFEST_NAME.to_owned()] {
        let (logs, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = torn_log(logs.path()).join(&file);
        let target = elsewhere.path().join("target");
        let bytes = lead_away(&path, &target);
        let error = open(logs.path()).unwrap_err().to_string();
        assert_says(&error, &path, "a symbolic link");
        let disk = open::read(logs.path(), &name()).unwrap();
        let error = verify(&disk, &name(), Depth::Content).unwrap_err();
        assert_says(&error.to_string(), &path, "a symbolic link");
        let error = Reader::open(disk, &name(), Cursor::Start).unwrap_err();
        assert_says(&error.to_string(), &path, "a symbolic link");
        assert_eq!(fs::read(&target).unwrap(), bytes, "{file}");
        // The same log without the link is cut and goes on.
        fs::rename(&target, &path).unwrap();
        assert_eq!(open(logs.path()).unwrap().findings.len(), 1);
    }
}

#[test]
fn an_index_that_is_a_link_is_made_anew_and_its_target_is_left_alone() {
    let (logs, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = torn_log(logs.path()).join(index_name(1));
    let target = elsewhere.path().join("target");
    lead_away(&path, &target);
    // An index that says nothing true.
    fs::write(&target, [b'x'; 500]).unwrap();
    let mut log = open(logs.path()).unwrap();
    append(&mut log, 10);
    let disk = open::read(logs.path(), &name()).unwrap();
    let mut reader = Reader::open(disk, &name(), Cursor::Offset(7)).unwrap();
    assert_eq!(reader.next_event().unwrap().unwrap().offset, 7);
    assert_eq!(fs::read(&target).unwrap(), [b'x'; 500]);
}

#[test]
fn nothing_is_written_through_a_link() {
    let (logs, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = logs.path().join("a");
    let disk = Folder::lock(&folder).unwrap();
    let target = elsewhere.path().join("target");
    fs::write(&target, "theirs").unwrap();
    for file in [
        segment_name(3),
        MANIFEST_NAME.to_owned(),
        torn_name(1, 64, 1),
        compacting_name(1),
    ] {
        let path = folder.join(&file);
        symlink(&target, &path).unwrap();
        let error = disk.make(&file, 4_096).unwrap_err();
        assert_says(&error.to_string(), &path, "a symbolic link");
        let error = disk.open(&file).unwrap_err();
        assert_says(&error.to_string(), &path, "a symbolic link");
        // What takes its place takes the place of the link.
        disk.store(&file, b"ours").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"ours");
        assert_eq!(fs::read(&target).unwrap(), b"theirs");
        assert!(path.symlink_metadata().unwrap().is_file());
    }
    let new = folder.join("0000000001.idx.new");
    symlink(&target, &new).unwrap();
    let error = disk.store(&index_name(1), b"ours").unwrap_err();
    assert_says(&error.to_string(), &new, "a symbolic link");
    drop(disk);
    let lock = folder.join("lock");
    fs::remove_file(&lock).unwrap();
    symlink(elsewhere.path().join("none"), &lock).unwrap();
    let error = Folder::lock(&folder).unwrap_err();
    assert_says(&error.to_string(), &lock, "a symbolic link");
    assert!(!elsewhere.path().join("none").exists());
    assert_eq!(fs::read(&target).unwrap(), b"theirs");
}

#[test]
fn a_link_that_compaction_would_write_to_is_removed_when_the_log_is_opened() {
    let (logs, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = torn_log(logs.path()).join(compacting_name(1));
    let target = elsewhere.path().join("target");
    fs::write(&target, "theirs").unwrap();
    symlink(&target, &path).unwrap();
    open(logs.path()).unwrap();
    assert!(path.symlink_metadata().is_err());
    assert_eq!(fs::read(&target).unwrap(), b"theirs");
}

/// Gives what is done, unless it waits for ever.
#[allow(clippy::disallowed_methods)] // only a thread can be found waiting
#[track_caller]
fn without_waiting<T: Send + 'static>(done: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(done()).is_ok());
    let told = told.recv_timeout(Duration::from_secs(60));
    told.expect("it waits for the other end of a FIFO")
}

#[test]
fn a_fifo_is_refused_and_not_waited_for() {
    for file in [
        segment_name(1),
        segment_name(2),
        MANIFEST_NAME.to_owned(),
        "lock".to_owned(),
    ] {
        let logs = tempfile::tempdir().unwrap();
        let path = torn_log(logs.path()).join(&file);
        fs::remove_file(&path).unwrap();
        let mode = Mode::from_raw_mode(0o600);
        mknodat(CWD, &path, FileType::Fifo, mode, 0).unwrap();
        let folder = logs.path().to_owned();
        let error = without_waiting(move || open(&folder).unwrap_err().to_string());
        assert_says(&error, &path, "a FIFO");
        if file == "lock" {
            continue;
        }
        let folder = logs.path().to_owned();
        let error = without_waiting(move || {
            let disk = open::read(&folder, &name()).unwrap();
            let verified = verify(&disk, &name(), Depth::Content);
            assert!(Reader::open(disk, &name(), Cursor::Start).is_err());
            verified.unwrap_err().to_string()
        });
        assert_says(&error, &path, "a FIFO");
    }
}

#[test]
fn a_log_whose_folder_is_a_fifo_is_not_waited_for() {
    let logs = tempfile::tempdir().unwrap();
    let mode = Mode::from_raw_mode(0o600);
    mknodat(CWD, logs.path().join("a"), FileType::Fifo, mode, 0).unwrap();
    without_waiting(move || {
        assert!(open(logs.path()).is_err());
        assert!(open::read(logs.path(), &name()).is_err());
        assert!(open::list(logs.path()).unwrap().is_empty());
    });
}
