//! What a log calls acknowledged is on the real disk: the kernel has no page of its files left to write.
//!
//! A process that is killed leaves the page cache as it is, so no kill shows that a sync was left out.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{fs::File, io, os::fd::AsRawFd as _, path::Path};
use virga_ebpf::header::OriginHash;
use virga_state::{
    Durability, Link, LogName, Options,
    io::{
        clock,
        driver::{Driver, Way},
        open::OpenLog,
    },
};

/// `cachestat(2)`, of Linux 6.5, with the same number for every architecture.
const CACHESTAT: libc::c_long = 451;

/// `struct cachestat` of the kernel.
#[repr(C)]
#[derive(Debug, Default)]
struct Pages {
    cached: u64,
    dirty: u64,
    under_way: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// How many pages of a file are not on disk.
fn unwritten(file: &Path) -> io::Result<u64> {
    let file = File::open(file)?;
    let whole = [0_u64; 2];
    let mut pages = Pages::default();
    // SAFETY: both pointers are to what the kernel reads and writes there, `struct cachestat_range` of two numbers and
    // `struct cachestat` of five, and live until it has answered.
    let failed = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_raw_fd(),
            whole.as_ptr(),
            &raw mut pages,
            0_u32,
        )
    };
    match failed {
        0 => Ok(pages.dirty + pages.under_way),
        _ => Err(io::Error::last_os_error()),
    }
}

fn open(folder: &Path, durability: Durability, log: usize) -> OpenLog {
    let options = Options {
        durability,
        // A segment that ends is cut, which leaves a page to write that says nothing new.
        segment_bytes: 1 << 20,
        ..Options::default()
    };
    let name = LogName::parse(&format!("synced/{log}")).unwrap();
    OpenLog::open(folder, &name, options, [7; 16]).unwrap()
}

fn append(logs: &mut [OpenLog], driver: &mut Driver) {
    for OpenLog { log, .. } in logs.iter_mut() {
        for _ in 0..3 {
            let link = Link {
                entity: OriginHash(1),
                observed: 0,
                parent: log.end(),
            };
            log.append(clock::now_unix_ns(), &link, &[b'x'; 500])
                .unwrap();
        }
    }
    driver.settle(logs);
    let is_whole = |open: &OpenLog| open.log.acknowledged() == open.log.end();
    assert!(logs.iter().all(is_whole));
}

/// The sum over a log's segments and its manifest.
fn unwritten_of(log: &OpenLog) -> io::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(log.files.disk().path())? {
        let path = entry?.path();
        let is_kept = path.ends_with("manifest") || path.extension().is_some_and(|e| e == "seg");
        if is_kept {
            sum += unwritten(&path)?;
        }
    }
    Ok(sum)
}

/// Whether this can be seen here: a log that is not synced has pages that are not on disk.
fn is_seen(folder: &Path) -> Result<(), String> {
    let mut logs = [open(folder, Durability::Flushed, 0)];
    let mut driver = Driver::open(Way::Plain);
    // The kernel may write them by itself, but hardly each time at once.
    for _ in 0..100 {
        append(&mut logs, &mut driver);
        match unwritten_of(&logs[0]) {
            Ok(0) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(format!("cachestat: {error}")),
        }
    }
    Err("this file system does not tell which pages are not on disk".to_owned())
}

#[test]
fn what_is_acknowledged_is_on_the_real_disk() {
    // Beside what is built: temporary files may be in memory.
    let folder = || tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let probe = folder();
    if let Err(why) = is_seen(probe.path()) {
        println!("not looked at: {why}");
        return;
    }
    // One log by system calls, two by the ring, and two by system calls.
    for (way, count) in [(Way::Auto, 1), (Way::Auto, 2), (Way::Plain, 2)] {
        let folder = folder();
        let mut driver = Driver::open(way);
        let open = |log| open(folder.path(), Durability::Synced, log);
        let mut logs: Vec<OpenLog> = (0..count).map(open).collect();
        for round in 0..80 {
            append(&mut logs, &mut driver);
            let unwritten: Vec<u64> = logs.iter().map(|log| unwritten_of(log).unwrap()).collect();
            let driver = driver.name();
            let none = vec![0; count];
            assert_eq!(unwritten, none, "{way:?} ({driver}), round {round}");
        }
    }
}
