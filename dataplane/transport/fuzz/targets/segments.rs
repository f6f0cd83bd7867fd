//! A log whose files are changed behind its back, in any way and in several places, before it is compacted by key, and after: it
//! opens or says why not, and what it gives is what was appended, in order and once, whatever it also reports; then it goes on.

use super::disk::Memory;
use arbitrary::Arbitrary;
use virga_ebpf::header::OriginHash;
use virga_state::{
    Cursor, Link, Log, LogName, Options, Reader,
    compact::{self, Rules, Subject},
    files::Files,
    recover,
};

#[derive(Arbitrary, Debug)]
enum Change {
    Set {
        file: u8,
        at: u16,
        byte: u8,
    },
    Fill {
        file: u8,
        at: u16,
        count: u16,
        byte: u8,
    },
    Cut {
        file: u8,
        at: u16,
    },
    Put {
        file: u8,
        at: u16,
        bytes: Vec<u8>,
    },
    /// A part of the file once more, elsewhere in it.
    Copy {
        file: u8,
        from: u16,
        count: u16,
        to: u16,
    },
    /// Another file's content.
    Replace {
        file: u8,
        by: u8,
    },
}

#[derive(Arbitrary, Debug)]
struct Case {
    events: u8,
    is_closed: bool,
    before: Vec<Change>,
    is_compacted: bool,
    after: Vec<Change>,
}

const SECOND_NS: u64 = 1_000_000_000;

fn options() -> Options {
    Options {
        segment_bytes: 4_096,
        ..Options::default()
    }
}

const KEYS: u64 = 5;

/// An event of a key, now and then one that removes it, or has none.
fn payload(offset: u64) -> Vec<u8> {
    let (key, length) = (offset % KEYS, offset * 37 % 211);
    match offset % 13 {
        0 => format!("{{\"key\":{key}}}").into_bytes(),
        1 => (0..length)
            .map(|at| ((offset + at * 7) % 251) as u8)
            .collect(),
        _ => {
            let fill = "x".repeat(length as usize);
            format!("{{\"key\":{key},\"fill\":\"{fill}\"}}").into_bytes()
        }
    }
}

fn link(offset: u64) -> Link {
    Link {
        entity: OriginHash(offset % 3 + 1),
        observed: offset / 2,
        parent: offset / 3,
    }
}

/// Opens the log and appends; where it now ends, or none where it does not open.
fn append(disk: &Memory, name: &LogName, events: u64, is_closed: bool) -> Option<u64> {
    let (state, findings) = recover(disk, name, [7; 16]).ok()?;
    findings
        .iter()
        .for_each(|finding| assert!(!finding.to_string().is_empty()));
    let mut log = Log::new(state, options());
    let mut files = Files::open(disk.clone()).ok()?;
    for _ in 0..events {
        let offset = log.end();
        // Where nothing is acknowledged any more, nothing is promised.
        if log
            .append(SECOND_NS + offset, &link(offset), &payload(offset))
            .is_err()
        {
            break;
        }
        while files.step(&mut log, SECOND_NS + offset) {}
    }
    if is_closed {
        log.close();
        while files.step(&mut log, SECOND_NS) {}
    }
    Some(log.end())
}

/// Has compaction take all that it can; whether it came to the end.
fn compact(disk: &Memory, name: &LogName) -> bool {
    let Ok((state, _)) = recover(disk, name, [7; 16]) else {
        return false;
    };
    let mut log = Log::new(state, options());
    let Ok(mut files) = Files::open(disk.clone()) else {
        return false;
    };
    while files.step(&mut log, SECOND_NS) {}
    let subject = Subject {
        id: *log.id(),
        closed: log.closed(),
    };
    let rules = Rules {
        key: "key".to_owned(),
        after_ns: 0,
        removals_after_ns: Some(0),
    };
    let mut put = |rewritten| {
        let put = compact::put(&mut log, &mut files, &rewritten);
        Ok(put.expect("a disk in memory takes all"))
    };
    let outcome = compact::pass(disk, &subject, (&rules, u64::MAX), &|| true, &mut put);
    outcome.is_ok_and(|outcome| outcome.damaged.is_empty())
}

fn change(disk: &Memory, change: &Change) {
    let names = disk.names();
    let named = |n: u8| &names[usize::from(n) % names.len()];
    match change {
        Change::Set { file, at, byte } => disk.change(named(*file), |content| {
            if let Some(there) = content.get_mut(usize::from(*at)) {
                *there = *byte;
            }
        }),
        Change::Fill {
            file,
            at,
            count,
            byte,
        } => disk.change(named(*file), |content| {
            let from = usize::from(*at).min(content.len());
            let to = (from + usize::from(*count)).min(content.len());
            content[from..to].fill(*byte);
        }),
        Change::Cut { file, at } => {
            disk.change(named(*file), |content| content.truncate(usize::from(*at)))
        }
        Change::Put { file, at, bytes } => disk.change(named(*file), |content| {
            for (n, byte) in bytes.iter().enumerate() {
                if let Some(there) = content.get_mut(usize::from(*at) + n) {
                    *there = *byte;
                }
            }
        }),
        Change::Copy {
            file,
            from,
            count,
            to,
        } => disk.change(named(*file), |content| {
            let from = usize::from(*from).min(content.len());
            let end = (from + usize::from(*count)).min(content.len());
            let part = content[from..end].to_vec();
            for (n, byte) in part.into_iter().enumerate() {
                if let Some(there) = content.get_mut(usize::from(*to) + n) {
                    *there = byte;
                }
            }
        }),
        Change::Replace { file, by } => {
            let mut other = Vec::new();
            disk.change(named(*by), |content| other.clone_from(content));
            disk.change(named(*file), |content| *content = other);
        }
    }
}

/// All that can be read is what was appended, in order and once; gives the offsets.
fn check(disk: &Memory, name: &LogName) -> Vec<u64> {
    let mut read = Vec::new();
    let Ok(mut reader) = Reader::open(disk.clone(), name, Cursor::Start) else {
        return read;
    };
    let (mut next, mut faults) = (0, 0);
    loop {
        match reader.next_event() {
            Ok(None) => return read,
            Ok(Some(event)) => {
                assert!(event.offset >= next, "{} comes after {next}", event.offset);
                assert_eq!(event.payload, payload(event.offset), "{}", event.offset);
                assert_eq!(event.link, link(event.offset), "{}", event.offset);
                next = event.offset + 1;
                read.push(event.offset);
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                faults += 1;
                assert!(
                    faults < 1_000,
                    "the reader goes on after what it cannot read, or ends"
                );
            }
        }
    }
}

/// Whether an event has neither a later one of its key, nor is a removal.
fn is_last(offset: u64, end: u64) -> bool {
    let has_key = |offset: u64| offset % 13 != 1;
    let is_same = |later: u64| later % KEYS == offset % KEYS && has_key(later);
    !has_key(offset) || !offset.is_multiple_of(13) && !(offset + 1..end).any(is_same)
}

/// Does what an input says.
pub fn run(input: &[u8]) {
    let Some(case) = super::read::<Case>(input) else {
        return;
    };
    let name = LogName::parse("a/b").expect("a name");
    let disk = Memory::default();
    let events = u64::from(case.events % 64);
    let end = append(&disk, &name, events, case.is_closed).expect("a new log opens");
    for one in case.before.iter().take(16) {
        change(&disk, one);
    }
    check(&disk, &name);
    if case.is_compacted && append(&disk, &name, 0, false).is_some() {
        // What has no successor stays, and nothing else comes up.
        let before = check(&disk, &name);
        let is_whole = compact(&disk, &name);
        let after = check(&disk, &name);
        assert!(is_whole || !case.before.is_empty());
        assert!(after.iter().all(|offset| before.contains(offset)));
        let mut last = before.iter().filter(|offset| is_last(**offset, end));
        assert!(last.all(|offset| after.contains(offset)));
    }
    for one in case.after.iter().take(16) {
        change(&disk, one);
    }
    check(&disk, &name);
    if append(&disk, &name, 3, true).is_some() {
        check(&disk, &name);
    }
}
