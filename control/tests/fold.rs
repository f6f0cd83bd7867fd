//! `virga fold` as an operator uses it.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

fn virga(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_virga"))
        .args(arguments)
        .arg("--logs")
        .arg(folder.join("logs"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Whoever reads no input has none of it.
    let _written = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[track_caller]
fn done(folder: &Path, arguments: &[&str], input: &str) -> String {
    let output = virga(folder, arguments, input);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = virga(folder, arguments, "");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    said
}

/// A line that `log import` takes, of an event.
fn line(event: &str) -> String {
    format!("{}\n", serde_json::json!({ "text": event }))
}

#[test]
fn sums_go_on_from_where_they_were_kept() {
    let folder = tempfile::tempdir().unwrap();
    let import = |log: &str, events: &[&str]| {
        let lines: String = events.iter().map(|event| line(event)).collect();
        done(folder.path(), &["log", "import", log], &lines);
    };
    import(
        "m/a",
        &[r#"{"key":"x","add":2}"#, r#"{"key":"y","add":-1}"#],
    );
    import("m/b", &[r#"{"key":"x","add":40}"#]);
    let snapshots = folder.path().join("folds");
    let snapshots = snapshots.to_str().unwrap();
    let fold = ["fold", "counters", "m/a", "m/b", "--snapshots", snapshots];
    assert_eq!(done(folder.path(), &fold, ""), "x\t42\ny\t-1\n");
    import("m/a", &[r#"{"key":"y","add":1}"#]);
    let kept = done(folder.path(), &[&fold[..], &["--json"]].concat(), "");
    let anew = ["fold", "counters", "m/b", "m/a", "--json"];
    assert_eq!(done(folder.path(), &anew, ""), kept);
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(kept["state"], serde_json::json!({"x": 42, "y": 0}));
    assert_eq!(kept["logs"]["m/a"]["next"], 3);
    // A damaged snapshot is said, not used.
    let file = folder.path().join("folds/m+a.counters");
    let mut bytes = fs::read(&file).unwrap();
    bytes[20] ^= 1;
    fs::write(&file, bytes).unwrap();
    let said = refused(folder.path(), &fold);
    assert!(
        said.contains("m+a.counters: the snapshot is damaged"),
        "{said}"
    );
}

#[test]
fn what_makes_no_sense_ends_the_fold_or_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let lines =
        line(r#"{"host":"a","load":1}"#) + &line("no JSON") + &line(r#"{"host":"a","load":2}"#);
    done(folder.path(), &["log", "import", "m"], &lines);
    let fold = ["fold", "latest", "--by", "host", "m"];
    let said = refused(folder.path(), &fold);
    assert!(said.starts_with("virga: event 1 of m: "), "{said}");
    let output = virga(folder.path(), &[&fold[..], &["--skip"]].concat(), "");
    assert_eq!(output.stdout, b"a\t{\"host\":\"a\",\"load\":2}\n");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.starts_with("virga: m: events below 3, 1 refused, 0 missing\n"),
        "{said}"
    );
    let said = refused(folder.path(), &["fold", "counters", "none"]);
    assert!(
        said.contains("the log none: there is no log here"),
        "{said}"
    );
}

#[test]
fn maps_say_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let lines = line(r#"{"key":"a","value":1,"time":5}"#)
        + &line(r#"{"key":"a","value":2,"time":4}"#)
        + &line(r#"{"key":"b","time":9}"#);
    done(folder.path(), &["log", "import", "w"], &lines);
    assert_eq!(
        done(folder.path(), &["fold", "last-writer-wins", "w"], ""),
        "a\t1\n"
    );
    let lines = line(r#"{"add":"a","value":1}"#)
        + &line(r#"{"add":"a","value":2}"#)
        + &line(r#"{"remove":"a","observed":["s:0"]}"#);
    done(folder.path(), &["log", "import", "s"], &lines);
    assert_eq!(
        done(folder.path(), &["fold", "add-wins", "s"], ""),
        "a\t2\n"
    );
}
