//! How the files of a log are open: not so that io_uring would answer that they are not to be waited for.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{fs, path::Path};
use virga_ebpf::header::OriginHash;
use virga_state::{
    Cursor, Link, LogName, Options, Reader,
    io::open::{self, OpenLog},
};

/// The descriptors of this process on what is below a folder: their paths, and whether they have `O_NONBLOCK`.
fn descriptors(below: &Path) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let fd = entry.unwrap().file_name().into_string().unwrap();
        // Other threads open and close theirs.
        let Ok(path) = fs::read_link(format!("/proc/self/fd/{fd}")) else {
            continue;
        };
        let Ok(info) = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")) else {
            continue;
        };
        if path.starts_with(below) {
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            found.push((name.to_owned(), flags & libc::O_NONBLOCK != 0));
        }
    }
    found.sort();
    found
}

#[test]
fn the_files_of_a_log_are_to_be_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let top = folder.path().canonicalize().unwrap();
    // The flag is seen where it is.
    let told = {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut options = fs::OpenOptions::new();
        options
            .write(true)
            .create(true)
            .custom_flags(libc::O_NONBLOCK);
        let _held = options.open(top.join("held")).unwrap();
        descriptors(&top)
    };
    assert_eq!(told, [("held".to_owned(), true)]);
    let name = LogName::parse("a").unwrap();
    // First its files are made, then they are opened.
    for round in 0..2 {
        let mut open = OpenLog::open(&top, &name, Options::default(), [1; 16]).unwrap();
        let link = Link {
            entity: OriginHash(1),
            observed: 0,
            parent: 0,
        };
        open.log.append(1, &link, b"event").unwrap();
        open.settle();
        let mut reader = Reader::open(open::read(&top, &name).unwrap(), &name, Cursor::Start);
        assert!(reader.as_mut().unwrap().next_event().unwrap().is_some());
        let held = |name: &str| (name.to_owned(), false);
        let segment = || held("0000000001.seg");
        // The writer's and the reader's folder and segment.
        let expected = [
            segment(),
            segment(),
            held("a"),
            held("a"),
            held("lock"),
            held("manifest"),
        ];
        assert_eq!(descriptors(&top), expected, "round {round}");
    }
}
