//! A process that appends is killed again and again: every event that it was told to be acknowledged
//! is there, in order, once.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use virga_ebpf::header::OriginHash;
use virga_state::{
    Cursor, Durability, Link, LogName, Options, Reader,
    io::{
        clock,
        driver::{Driver, Way},
        open::{self, OpenLog},
    },
};

const ROUNDS: u32 = 300;
/// However slow the disk: fewer rounds then, and never less than this many.
const ROUNDS_MIN: u32 = 60;
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

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let (mut acknowledged, mut rounds) = (0, 0);
    while rounds < ROUNDS && (rounds < ROUNDS_MIN || began.elapsed() < ENOUGH) {
        rounds += 1;
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "appends_until_it_is_killed",
                "--ignored",
                "--nocapture",
            ])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Killed at another place each time.
        let mut told = 0;
        while told < rounds % 7 + 1 {
            let line = lines.next().unwrap().unwrap();
            if let Some((_, count)) = line.split_once("acknowledged ") {
                acknowledged = count.parse().unwrap();
                told += 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines {
            if let Some((_, count)) = line.unwrap().split_once("acknowledged ") {
                // The line itself may be cut short.
                acknowledged = count.parse().unwrap_or(acknowledged).max(acknowledged);
            }
        }
        assert_read(folder.path(), acknowledged);
    }
    println!("{rounds} rounds, {acknowledged} events");
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
