//! What a log costs in memory, counted by the allocator: while it is opened, appended to, read, followed and verified, one of
//! many times as many events costs no more than its segments' entries in lists.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs::{self, OpenOptions},
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};
use virga_ebpf::header::OriginHash;
use virga_state::{
    AppendError, Cursor, Durability, Link, LogName, Options, Reader,
    format::index_name,
    io::{
        clock,
        folder::Folder,
        open::{self, OpenLog},
    },
    limits::{
        READ_BYTES, READER_MEMORY_MAX, SEGMENT_ENTRY_BYTES, SEGMENT_OPENING_BYTES,
        WRITER_MEMORY_MAX,
    },
    verify::{Depth, verify},
};

/// Bytes that are allocated now, and the most that were since [`peak_of`] began.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator as it is; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the caller keeps `GlobalAlloc`'s rules for this call: a layout of some size.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let before = ALLOCATED.fetch_add(layout.size(), Relaxed);
        PEAK.fetch_max(before + layout.size(), Relaxed);
        // SAFETY: the caller keeps this function's contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the caller keeps `GlobalAlloc`'s rules: the memory came from here, with this layout.
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `memory` came from `alloc` above, with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that something has allocated at a time, beside what was before.
fn peak_of(done: impl FnOnce()) -> usize {
    let before = ALLOCATED.load(Relaxed);
    PEAK.store(before, Relaxed);
    done();
    PEAK.load(Relaxed) - before
}

const PAYLOAD: [u8; 1_000] = [b'x'; 1_000];
/// What else two logs may differ by.
const SLACK_BYTES: usize = 8 << 10;

/// How a log is made.
#[derive(Clone, Copy, Debug)]
struct Shape {
    segment_bytes: u64,
    /// Events of each commit; as many as there is room for where there is none.
    commit: Option<u64>,
    /// Of the smaller log.
    events: u64,
    /// How many times as many the larger has.
    times: u64,
}

/// What a step takes at most.
struct Peak {
    step: &'static str,
    bytes: usize,
    /// What a segment adds at most.
    entry: usize,
    slack: usize,
    bytes_max: usize,
}

fn name() -> LogName {
    LogName::parse("memory").unwrap()
}

fn open(logs: &Path, shape: Shape) -> OpenLog {
    let options = Options {
        // No sync is waited for that says nothing here.
        durability: Durability::Flushed,
        segment_bytes: shape.segment_bytes,
        ..Options::default()
    };
    OpenLog::open(logs, &name(), options, [7; 16]).unwrap()
}

fn read(logs: &Path) -> Folder {
    open::read(logs, &name()).unwrap()
}

/// Appends one commit.
fn append(open: &mut OpenLog, shape: Shape) {
    for _ in 0..shape.commit.unwrap_or(u64::MAX) {
        let link = Link {
            entity: OriginHash(1),
            observed: 0,
            parent: open.log.end(),
        };
        match open.log.append(clock::now_unix_ns(), &link, &PAYLOAD) {
            Ok(_) => {}
            Err(AppendError::Full) if shape.commit.is_none() => break,
            Err(error) => panic!("{error}"),
        }
    }
    open.settle();
    assert_eq!(open.log.failure(), None);
}

/// Reads what is there; how many events.
fn drain(reader: &mut Reader<Folder>) -> u64 {
    let mut events = 0;
    while let Some(event) = reader.next_event().unwrap() {
        assert_eq!(event.payload, &PAYLOAD[..]);
        events += 1;
    }
    events
}

/// Makes a log and goes through all of it; how many segments it has, and what that took.
fn measure(shape: Shape, events: u64) -> (u64, Vec<Peak>) {
    let folder = tempfile::tempdir().unwrap();
    let logs = folder.path();
    let appending = peak_of(|| {
        let mut open = open(logs, shape);
        while open.log.end() < events / 2 {
            append(&mut open, shape);
        }
        open.close().unwrap();
    });
    let mut end = 0;
    let following = peak_of(|| {
        let mut open = open(logs, shape);
        let mut reader = Reader::open(read(logs), &name(), Cursor::End).unwrap();
        let begin = open.log.end();
        let mut read = 0;
        while open.log.end() < events {
            append(&mut open, shape);
            reader.set_limit(open.log.readable());
            read += drain(&mut reader);
        }
        end = open.log.end();
        assert_eq!(read, end - begin);
        open.close().unwrap();
    });
    let opening = peak_of(|| {
        let mut open = open(logs, shape);
        open.settle();
        assert_eq!(open.log.end(), end);
    });
    let from = |cursor| Reader::open(read(logs), &name(), cursor).unwrap();
    let reading = peak_of(|| assert_eq!(drain(&mut from(Cursor::Start)), end));
    let seeking = peak_of(|| {
        // Anywhere in segments: how much is read depends on it.
        for part in 0..20 {
            let offset = part * end / 20;
            let event = from(Cursor::Offset(offset))
                .next_event()
                .unwrap()
                .unwrap()
                .time_unix_ns;
            let mut reader = from(Cursor::Time(event));
            assert!(reader.next_event().unwrap().unwrap().offset <= offset);
        }
    });
    let mut segments = 0;
    let verifying = peak_of(|| {
        let report = verify(&read(logs), &name(), Depth::Content).unwrap();
        assert_eq!((report.events, report.flaw_count), (end, 0));
        segments = report.segments;
    });
    let writes = |step, bytes| Peak {
        step,
        bytes,
        entry: SEGMENT_OPENING_BYTES,
        slack: SLACK_BYTES,
        bytes_max: WRITER_MEMORY_MAX,
    };
    let reads = |step, bytes| Peak {
        bytes_max: READER_MEMORY_MAX,
        ..writes(step, bytes)
    };
    let peaks = vec![
        // It begins with no segment.
        Peak {
            entry: SEGMENT_ENTRY_BYTES,
            ..writes("appending", appending)
        },
        writes("opening", opening),
        Peak {
            bytes_max: WRITER_MEMORY_MAX + READER_MEMORY_MAX,
            ..writes("following", following)
        },
        reads("reading", reading),
        // How much is read behind a place depends on where in its segment it is.
        Peak {
            slack: READ_BYTES,
            ..reads("seeking", seeking)
        },
        reads("verifying", verifying),
    ];
    (segments, peaks)
}

#[test]
fn memory_is_bounded_whatever_the_size_of_a_log() {
    for shape in [
        // The largest commits.
        Shape {
            segment_bytes: 1 << 20,
            commit: None,
            events: 16_000,
            times: 3,
        },
        // Many events.
        Shape {
            segment_bytes: 1 << 20,
            commit: Some(10),
            events: 2_000,
            times: 16,
        },
        // Many segments.
        Shape {
            segment_bytes: 4 << 10,
            commit: Some(1),
            events: 60,
            times: 16,
        },
    ] {
        let (few, small) = measure(shape, shape.events);
        let (many, large) = measure(shape, shape.times * shape.events);
        assert!(many > few * shape.times / 2, "{many} segments, {few}");
        for (small, large) in small.iter().zip(&large) {
            let said = format!(
                "{shape:?}, {}: of {few} segments {}, of {many} {}",
                large.step, small.bytes, large.bytes
            );
            println!("{said}");
            let entries = |segments| large.entry * usize::try_from(segments).unwrap();
            let grown = small.bytes + entries(many - few) + large.slack;
            assert!(large.bytes <= grown, "{said}");
            assert!(large.bytes <= large.bytes_max + entries(many), "{said}");
        }
    }
    an_index_of_any_length_takes_no_more();
}

/// What is longer than an index of the largest segment is not taken for one.
fn an_index_of_any_length_takes_no_more() {
    let shape = Shape {
        segment_bytes: 1 << 20,
        commit: Some(200),
        events: 4_000,
        times: 1,
    };
    let folder = tempfile::tempdir().unwrap();
    let mut open = open(folder.path(), shape);
    while open.log.end() < shape.events {
        append(&mut open, shape);
    }
    let index = open.files.disk().path().join(index_name(3));
    let file = OpenOptions::new().write(true).open(&index).unwrap();
    let made = fs::read(&index).unwrap();
    // All but its begin is a hole.
    file.set_len(256 << 20).unwrap();
    let peak = peak_of(|| {
        let disk = open.files.disk().share().unwrap();
        let cursor = Cursor::Offset(shape.events / 2);
        let mut reader = Reader::open(disk, &name(), cursor).unwrap();
        assert_eq!(drain(&mut reader), shape.events / 2);
    });
    assert!(peak <= READER_MEMORY_MAX, "{peak}");
    // It is made anew.
    assert_eq!(index.metadata().unwrap().len(), made.len() as u64);
    assert_eq!(fs::read(&index).unwrap(), made);
}
