use super::world::{link, payload};
use crate::{
    Cursor, LogName, OpenError, Options, Reader,
    io::{
        clock,
        driver::{Driver, Way},
        open::{self, OpenLog},
    },
    verify::{Depth, verify},
};
use std::{os::unix::fs::PermissionsExt as _, path::Path};

fn open(logs: &Path, name: &str) -> Result<OpenLog, OpenError> {
    let name = LogName::parse(name).unwrap();
    let options = Options {
        segment_bytes: 64 << 10,
        ..Options::default()
    };
    OpenLog::open(
        logs,
        &name,
        options,
        [u8::try_from(name.as_str().len()).unwrap(); 16],
    )
}

#[test]
fn several_logs_are_driven_together_with_and_without_a_ring() {
    for way in [Way::Auto, Way::Plain] {
        let folder = tempfile::tempdir().unwrap();
        let mut driver = Driver::open(way);
        assert_eq!(
            way == Way::Plain,
            driver.name() == "plain" && driver.refusal().is_none()
        );
        let mut logs = ["a", "a/b", "a/b/c"].map(|name| open(folder.path(), name).unwrap());
        for _ in 0..30 {
            for open in &mut logs {
                for _ in 0..50 {
                    let offset = open.log.end();
                    let now = clock::now_unix_ns();
                    open.log
                        .append(now, &link(offset), &payload(offset))
                        .unwrap();
                }
            }
            driver.settle(&mut logs);
            assert!(
                logs.iter()
                    .all(|open| open.log.acknowledged() == open.log.end())
            );
        }
        let names = open::list(folder.path()).unwrap();
        assert_eq!(
            names.iter().map(LogName::as_str).collect::<Vec<_>>(),
            ["a", "a/b", "a/b/c"]
        );
        let [first, ..] = logs;
        first.close().unwrap();
        for name in names {
            let disk = open::read(folder.path(), &name).unwrap();
            let report = verify(&disk, &name, Depth::Content).unwrap();
            assert_eq!((report.events, report.flaw_count), (1_500, 0), "{name}");
            assert!(report.segments > 2);
            let mut reader = Reader::open(disk, &name, Cursor::Offset(700)).unwrap();
            for offset in 700..1_500 {
                let event = reader.next_event().unwrap().unwrap();
                assert_eq!(
                    (event.offset, event.payload),
                    (offset, &payload(offset)[..])
                );
            }
            assert!(reader.next_event().unwrap().is_none());
        }
    }
}

#[test]
fn one_process_writes_a_log() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path(), "a").unwrap();
    let second = open(folder.path(), "a");
    assert!(matches!(second, Err(OpenError::Locked)));
    drop(first);
    assert!(open(folder.path(), "a").is_ok());
}

#[test]
fn a_folder_without_permission_is_said_so() {
    let folder = tempfile::tempdir().unwrap();
    // Root may write anywhere but below a file.
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let words = open(&file, "a").err().unwrap().to_string();
    assert!(words.contains("file/a"), "{words}");
    assert!(matches!(
        open::read(folder.path(), &LogName::parse("no").unwrap()),
        Err(OpenError::None)
    ));
    drop(open(folder.path(), "a").unwrap());
    let mode = |name: &str| {
        folder
            .path()
            .join(name)
            .metadata()
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode("a"), mode("a/manifest")), (0o700, 0o600));
}
