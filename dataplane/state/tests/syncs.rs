//! What the kernel is asked to sync, in which order, and what of it in one call: seen by a filter of system calls, as
//! neither a kill nor the page cache shows that the name of a file is on disk.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, unsafe_code)]

use std::{
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};
use virga_ebpf::header::OriginHash;
use virga_state::{
    Link, LogName, Options,
    disk::Disk as _,
    io::{
        clock,
        driver::{Driver, Way},
        folder::Folder,
        open::OpenLog,
    },
};

/// A system call that was made.
#[derive(Debug)]
struct Call {
    number: libc::c_long,
    arguments: [u64; 6],
    /// What the first argument is open on.
    path: PathBuf,
}

const WATCHED: [libc::c_long; 3] = [
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_io_uring_enter,
];

/// From now on the kernel asks before this thread makes one of these calls.
fn filter() -> io::Result<OwnedFd> {
    let code = |code: u32| u16::try_from(code).unwrap();
    let mut program = vec![libc::sock_filter {
        code: code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS),
        jt: 0,
        jf: 0,
        k: 0,
    }];
    for (left, number) in (0..WATCHED.len()).rev().zip(WATCHED) {
        program.push(libc::sock_filter {
            code: code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K),
            jt: u8::try_from(left).unwrap() + 1,
            jf: 0,
            k: u32::try_from(number).unwrap(),
        });
    }
    for answer in [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_USER_NOTIF] {
        program.push(libc::sock_filter {
            code: code(libc::BPF_RET | libc::BPF_K),
            jt: 0,
            jf: 0,
            k: answer,
        });
    }
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap(),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which lives until then, and gives a descriptor that nobody else has.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        let listener = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        );
        match RawFd::try_from(listener) {
            Ok(listener) if listener >= 0 => Ok(OwnedFd::from_raw_fd(listener)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Lets a thread go on with every call that it is asked about, until the thread has ended.
fn answer(listener: &OwnedFd) -> Vec<Call> {
    let mut calls = Vec::new();
    loop {
        let mut poll = libc::pollfd {
            fd: listener.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the kernel reads and writes what is declared here for it, which lives until it has answered; all zeros
        // is what it asks for.
        unsafe {
            if libc::poll(&raw mut poll, 1, -1) < 0 {
                continue;
            }
            if poll.revents & libc::POLLIN == 0 {
                return calls;
            }
            let mut asked: libc::seccomp_notif = std::mem::zeroed();
            let fd = listener.as_raw_fd();
            if libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked) != 0 {
                continue;
            }
            let path = fs::read_link(format!("/proc/self/fd/{}", asked.data.args[0]));
            calls.push(Call {
                number: asked.data.nr.into(),
                arguments: asked.data.args,
                path: path.unwrap_or_default(),
            });
            let mut go_on: libc::seccomp_notif_resp = std::mem::zeroed();
            go_on.id = asked.id;
            go_on.flags = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap();
            libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut go_on);
        }
    }
}

/// The calls that something makes; none where the system does not let them be watched.
fn calls_of(watched: impl FnOnce() + Send + 'static) -> Option<Vec<Call>> {
    let (tell, told) = mpsc::channel();
    let thread = thread::spawn(move || {
        let filter = filter();
        let is_filtered = filter.is_ok();
        tell.send(filter).unwrap();
        if is_filtered {
            watched();
        }
    });
    match told.recv().unwrap() {
        Ok(listener) => {
            let calls = answer(&listener);
            thread.join().unwrap();
            Some(calls)
        }
        Err(error) => {
            println!("not looked at: seccomp: {error}");
            None
        }
    }
}

/// What was synced, in its order.
fn synced(calls: &[Call]) -> Vec<&Path> {
    let is_sync = |call: &&Call| call.number != libc::SYS_io_uring_enter;
    let synced = calls.iter().filter(is_sync);
    synced.map(|call| call.path.as_path()).collect()
}

fn name(log: &str) -> LogName {
    LogName::parse(log).unwrap()
}

fn append(open: &mut OpenLog) {
    let link = Link {
        entity: OriginHash(1),
        observed: 0,
        parent: 0,
    };
    let appended = open.log.append(clock::now_unix_ns(), &link, b"event");
    appended.unwrap();
}

/// A temporary folder by the path that the kernel has for it.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap();
    (folder, path)
}

#[test]
fn every_folder_that_is_made_for_a_log_is_there_for_good() {
    let (_folder, top) = folder();
    let log = top.join("new/logs/a");
    let path = log.clone();
    let made = calls_of(move || drop(Folder::lock(&path).unwrap()));
    let Some(made) = made else { return };
    let above = top.parent().unwrap();
    assert_eq!(
        synced(&made),
        [above, &top, &top.join("new"), &top.join("new/logs")]
    );
    // A crash may have cut that short, the last step too.
    let path = log.clone();
    let again = calls_of(move || drop(Folder::lock(&path).unwrap()));
    assert_eq!(synced(&again.unwrap()), [top.join("new/logs")]);
}

#[test]
fn a_file_that_is_made_is_synced() {
    let (_folder, top) = folder();
    let disk = Folder::lock(&top.join("a")).unwrap();
    let calls = calls_of(move || drop(disk.make("file", 4_096).unwrap()));
    let Some(calls) = calls else { return };
    assert_eq!(synced(&calls), [top.join("a/file")]);
}

#[test]
fn the_name_of_a_file_is_synced() {
    let (_folder, top) = folder();
    let disk = Folder::lock(&top.join("a")).unwrap();
    let calls = calls_of(move || disk.sync_folder().unwrap());
    let Some(calls) = calls else { return };
    assert_eq!(synced(&calls), [top.join("a")]);
}

#[test]
fn manifest_and_segment_are_there_for_good_before_the_first_event_is_acknowledged() {
    let (_folder, top) = folder();
    let logs = top.clone();
    let calls = calls_of(move || {
        let opened = OpenLog::open(&logs, &name("a"), Options::default(), [1; 16]);
        let mut opened = [opened.unwrap()];
        append(&mut opened[0]);
        let mut driver = Driver::open(Way::Plain);
        while opened[0].log.acknowledged() == 0 {
            assert!(driver.round(&mut opened));
        }
    });
    let Some(calls) = calls else { return };
    let log = top.join("a");
    let (manifest, segment) = (log.join("manifest"), log.join("0000000001.seg"));
    assert_eq!(
        synced(&calls),
        [
            // The log's folder.
            top.parent().unwrap(),
            &top,
            // The manifest's file, its name, its content.
            &manifest,
            &log,
            &manifest,
            // The same of the segment.
            &segment,
            &log,
            &segment,
        ]
    );
}

/// One log is written by system calls also where there is a ring.
#[test]
fn what_is_written_without_the_ring_is_synced_before_it_is_acknowledged() {
    for (way, count) in [(Way::Auto, 1), (Way::Plain, 1), (Way::Plain, 2)] {
        let (_folder, top) = folder();
        let mut driver = Driver::open(way);
        let open = |log: u64| {
            let name = name(&format!("log/{log}"));
            OpenLog::open(&top, &name, Options::default(), [1; 16]).unwrap()
        };
        let mut logs: Vec<OpenLog> = (0..count).map(open).collect();
        // Their segments are made.
        logs.iter_mut().for_each(append);
        driver.settle(&mut logs);
        let of = |open: &OpenLog| open.files.disk().path().join("0000000001.seg");
        let segments: Vec<PathBuf> = logs.iter().map(of).collect();
        logs.iter_mut().for_each(append);
        let calls = calls_of(move || {
            assert!(driver.round(&mut logs));
            assert!(logs.iter().all(|open| open.log.acknowledged() == 2));
        });
        let Some(calls) = calls else { return };
        assert_eq!(synced(&calls), segments, "{way:?}, {count} logs");
    }
}

#[test]
fn writes_and_syncs_of_several_logs_are_one_call() {
    const LOGS: u64 = 5;
    let (_folder, top) = folder();
    let mut driver = Driver::open(Way::Auto);
    if driver.name() != "uring" {
        println!("not looked at: {:?}", driver.refusal());
        return;
    }
    let open = |log: u64| {
        let name = name(&format!("log/{log}"));
        OpenLog::open(&top, &name, Options::default(), [1; 16]).unwrap()
    };
    let mut logs: Vec<OpenLog> = (0..LOGS).map(open).collect();
    // Their segments are made one by one.
    logs.iter_mut().for_each(append);
    driver.settle(&mut logs);
    logs.iter_mut().for_each(append);
    let calls = calls_of(move || {
        assert!(driver.round(&mut logs));
        assert!(logs.iter().all(|open| open.log.acknowledged() == 2));
    });
    let Some(calls) = calls else { return };
    assert_eq!(synced(&calls), [] as [&Path; 0]);
    let first = calls.first().unwrap();
    // A write and a sync each are handed over, and all of them waited for.
    assert_eq!(first.arguments[1..3], [2 * LOGS, 2 * LOGS]);
    // One that is interrupted only waits again.
    assert!(calls.iter().skip(1).all(|call| call.arguments[1] == 0));
}
