//! A process that appends, and one that also compacts its log by key, is killed again and again: every event that it was
//! told to be acknowledged, and that no later one of its key has taken the place of, is there, in order, once.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use virga_ebpf::header::OriginHash;
use virga_state::{
    Cursor, Durability, Link, LogName, Options, Reader,
    compact::{self, Rules, Subject},
    io::{
        clock,
        driver::{Driver, Way},
        open::{self, OpenLog},
    },
};

const ROUNDS: u32 = 300;
/// However slow the disk: fewer rounds then, and never less than this many.
const ROUNDS_MIN: u32 = 60;
/// The same where it compacts, which syncs many files.
const COMPACTED_ROUNDS_MIN: u32 = 12;
const ENOUGH: Duration = Duration::from_secs(25);
const FOLDER: &str = "VIRGA_KILLED_FOLDER";

fn name() -> LogName {
    LogName::parse("killed").unwrap()
}

/// Appends events that say their own offset, and tells of each acknowledgement.
#[test]
#[ignore = "the process that is killed"]
fn appends_until_it_is_killed() {
    let Ok(folder) = env::var(FOLDER) else {
        return;
    };
    let options = Options {
        durability: Durability::Flushed,
        segment_bytes: 16 << 10,
        ..Options::default()
    };
    let opened = OpenLog::open(Path::new(&folder), &name(), options, [3; 16]).unwrap();
    let mut logs = [opened];
    let way = [Way::Auto, Way::Plain][usize::try_from(logs[0].log.end() % 2).unwrap()];
    let mut driver = Driver::open(way);
    let mut out = std::io::stdout().lock();
    for batch in 0u64.. {
        for _ in 0..batch % 5 + 1 {
            let log = &mut logs[0].log;
            let offset = log.end();
            let link = Link {
                entity: OriginHash(1),
                observed: 0,
                parent: offset,
            };
            let text = format!(
                "{offset} {}",
                "x".repeat(usize::try_from(offset % 300).unwrap())
            );
            log.append(clock::now_unix_ns(), &link, text.as_bytes())
                .unwrap();
        }
        driver.settle(&mut logs);
        writeln!(out, "acknowledged {}", logs[0].log.acknowledged()).unwrap();
        out.flush().unwrap();
    }
}

/// How many keys its events have in turn.
const KEYS: u64 = 7;

/// Appends events that say their own offset and have one of few keys, and compacts its log in between.
#[test]
#[ignore = "the process that is killed"]
fn appends_and_compacts_until_it_is_killed() {
    let Ok(folder) = env::var(FOLDER) else {
        return;
    };
    let options = Options {
        durability: Durability::Flushed,
        segment_bytes: 16 << 10,
        ..Options::default()
    };
    let mut open = OpenLog::open(Path::new(&folder), &name(), options, [3; 16]).unwrap();
    let rules = Rules {
        key: "key".to_owned(),
        after_ns: 0,
        removals_after_ns: None,
    };
    let mut out = std::io::stdout().lock();
    loop {
        for _ in 0..60 {
            let offset = open.log.end();
            let link = Link {
                entity: OriginHash(1),
                observed: 0,
                parent: offset,
            };
            let fill = "x".repeat(usize::try_from(offset % 900).unwrap());
            let text = format!(
                "{{\"key\":{},\"at\":{offset},\"fill\":\"{fill}\"}}",
                offset % KEYS
            );
            let said = open
                .log
                .append(clock::now_unix_ns(), &link, text.as_bytes());
            assert_eq!(said, Ok(offset));
            open.settle();
        }
        writeln!(out, "acknowledged {}", open.log.acknowledged()).unwrap();
        out.flush().unwrap();
        let subject = Subject {
            id: *open.log.id(),
            closed: open.log.closed(),
        };
        let disk = open.files.disk().share().unwrap();
        let mut put =
            |rewritten| Ok(compact::put(&mut open.log, &mut open.files, &rewritten).unwrap());
        let rules = (&rules, clock::now_unix_ns());
        compact::pass(&disk, &subject, rules, &|| true, &mut put).unwrap();
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let (mut acknowledged, mut rounds) = (0, 0);
    while rounds < ROUNDS && (rounds < ROUNDS_MIN || began.elapsed() < ENOUGH) {
        rounds += 1;
        // Killed at another place each time.
        let place = (rounds % 7 + 1, Duration::ZERO);
        let told = kill("appends_until_it_is_killed", folder.path(), place);
        acknowledged = told.max(acknowledged);
        assert_read(folder.path(), acknowledged);
    }
    println!("{rounds} rounds, {acknowledged} events");
}

#[test]
fn what_has_no_successor_survives_kill_9_in_compaction() {
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let (mut acknowledged, mut rounds, mut left) = (0, 0, 0);
    while rounds < ROUNDS && (rounds < COMPACTED_ROUNDS_MIN || began.elapsed() < ENOUGH / 3) {
        rounds += 1;
        // In a pass, or behind one in what follows it.
        let after = Duration::from_micros(u64::from(rounds) * 1_310 % 20_000);
        let place = (1 + rounds % 2, after);
        let told = kill(
            "appends_and_compacts_until_it_is_killed",
            folder.path(),
            place,
        );
        acknowledged = told.max(acknowledged);
        left = assert_newest(folder.path(), acknowledged);
    }
    assert!(left < acknowledged / 2, "{left} of {acknowledged} are left");
    println!("{rounds} rounds, {left} of {acknowledged} events");
}

/// Starts a process and kills it, so long after it has told so often of acknowledged events; how many it told of.
fn kill(test: &str, folder: &Path, (times, after): (u32, Duration)) -> u64 {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut told, mut acknowledged) = (0, 0);
    while told < times {
        let line = lines.next().unwrap().unwrap();
        if let Some((_, count)) = line.split_once("acknowledged ") {
            acknowledged = count.parse().unwrap();
            told += 1;
        }
    }
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    for line in lines {
        if let Some((_, count)) = line.unwrap().split_once("acknowledged ") {
            // The line itself may be cut short.
            acknowledged = count.parse().unwrap_or(acknowledged).max(acknowledged);
        }
    }
    acknowledged
}

/// Each key's newest event is there, and nothing that was not said; how many events are left.
fn assert_newest(folder: &Path, acknowledged: u64) -> u64 {
    let disk = open::read(folder, &name()).unwrap();
    let mut reader = Reader::open(disk, &name(), Cursor::Start).unwrap();
    let (mut newest, mut end, mut count) = (BTreeMap::new(), 0, 0);
    while let Some(event) = reader.next_event().unwrap() {
        let said: serde_json::Value = serde_json::from_slice(event.payload).unwrap();
        let key = event.offset % KEYS;
        assert_eq!(
            (&said["at"], &said["key"]),
            (&event.offset.into(), &key.into())
        );
        assert!(event.offset >= end);
        newest.insert(key, event.offset);
        (end, count) = (event.offset + 1, count + 1);
    }
    assert!(end >= acknowledged, "{end} of {acknowledged}");
    let due = (end.saturating_sub(KEYS)..end).map(|offset| (offset % KEYS, offset));
    assert_eq!(newest, due.collect(), "end {end}");
    count
}

fn assert_read(folder: &Path, acknowledged: u64) {
    let disk = open::read(folder, &name()).unwrap();
    let mut reader = Reader::open(disk, &name(), Cursor::Start).unwrap();
    let mut next = 0;
    while let Some(event) = reader.next_event().unwrap() {
        let text = std::str::from_utf8(event.payload).unwrap();
        let said: u64 = text.split(' ').next().unwrap().parse().unwrap();
        assert_eq!((event.offset, said), (next, next));
        next += 1;
    }
    assert!(next >= acknowledged, "{next} of {acknowledged}");
}
