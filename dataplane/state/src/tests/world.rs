//! A log on a disk that forgets, and what it should hold.

use super::forgetful::Forgetful;
use crate::{
    Cursor, Finding, Link, Log, LogName, OpenError, Options, ReadError, Reader, files::Files,
    recover,
};
use virga_ebpf::header::OriginHash;

pub(crate) const SECOND: u64 = 1_000_000_000;

pub(crate) fn name() -> LogName {
    LogName::parse("a/b").unwrap()
}

/// Small segments, so that a test has many.
pub(crate) fn small() -> Options {
    Options {
        segment_bytes: 4_096,
        ..Options::default()
    }
}

/// What the event at an offset says: of a length that differs from event to event.
pub(crate) fn payload(offset: u64) -> Vec<u8> {
    let length = usize::try_from(offset * 37 % 211).unwrap();
    let byte = |at: usize| u8::try_from((offset + at as u64 * 7) % 251).unwrap();
    (0..length).map(byte).collect()
}

pub(crate) fn link(offset: u64) -> Link {
    Link {
        entity: OriginHash(offset % 3 + 1),
        observed: offset / 2,
        parent: offset / 3,
    }
}

pub(crate) struct World {
    pub(crate) log: Log,
    pub(crate) files: Files<Forgetful>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) now: u64,
}

impl World {
    pub(crate) fn open(disk: &Forgetful, options: Options) -> Self {
        Self::try_open(disk, options).unwrap()
    }

    pub(crate) fn try_open(disk: &Forgetful, options: Options) -> Result<Self, OpenError> {
        let (state, findings) = recover(disk, &name(), [7; 16])?;
        Ok(Self {
            log: Log::new(state, options),
            files: Files::open(disk.clone()).unwrap(),
            findings,
            now: SECOND,
        })
    }

    /// Appends events, each a nanosecond later than the one before, without writing them.
    pub(crate) fn append(&mut self, count: u64) {
        for _ in 0..count {
            self.now += 1;
            let offset = self.log.end();
            let appended = self.log.append(self.now, &link(offset), &payload(offset));
            assert_eq!(appended, Ok(offset));
        }
    }

    pub(crate) fn step(&mut self) -> bool {
        self.files.step(&mut self.log, self.now)
    }

    /// The same, with events appended while it is under way.
    pub(crate) fn step_beside(&mut self, count: u64) {
        if let Some(action) = self.log.poll_action(self.now) {
            let done = self.files.perform(&action);
            self.append(count);
            self.log.complete(self.now, done);
        }
    }

    pub(crate) fn settle(&mut self) {
        while self.step() {}
    }

    /// Appends events, each written and acknowledged before the next.
    pub(crate) fn append_each(&mut self, count: u64) {
        for _ in 0..count {
            self.append(1);
            self.settle();
        }
    }

    pub(crate) fn close(mut self) {
        self.log.close();
        self.settle();
        assert!(self.log.is_closed());
    }
}

/// All that a reader gives from a cursor on: good events, checked, and errors.
pub(crate) fn read(disk: &Forgetful, cursor: Cursor) -> (Vec<u64>, Vec<ReadError>) {
    let mut reader = Reader::open(disk.clone(), &name(), cursor).unwrap();
    drain(&mut reader)
}

pub(crate) fn drain(reader: &mut Reader<Forgetful>) -> (Vec<u64>, Vec<ReadError>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    loop {
        match reader.next_event() {
            Ok(None) => return (good, bad),
            Ok(Some(event)) => {
                assert_eq!(event.payload, payload(event.offset), "{}", event.offset);
                assert_eq!(event.link, link(event.offset));
                good.push(event.offset);
            }
            Err(error) => bad.push(error),
        }
        assert!(bad.len() < 1_000);
    }
}

/// Asserts that a reader gives exactly these events.
#[track_caller]
pub(crate) fn assert_reads(disk: &Forgetful, cursor: Cursor, offsets: std::ops::Range<u64>) {
    let (good, bad) = read(disk, cursor);
    assert_eq!(good, offsets.collect::<Vec<_>>(), "{cursor}");
    assert!(bad.is_empty(), "{bad:?}");
}
