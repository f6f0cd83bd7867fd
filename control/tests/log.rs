//! `virga log` as an operator uses it.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

fn log(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_virga"))
        .arg("log")
        .args(arguments)
        .arg("--logs")
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Whoever refuses its arguments does not read.
    let _written = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[track_caller]
fn done(folder: &Path, arguments: &[&str], input: &str) -> String {
    let output = log(folder, arguments, input);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(folder: &Path, arguments: &[&str], input: &str, code: i32) -> String {
    let output = log(folder, arguments, input);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

#[test]
fn what_is_imported_is_exported_and_the_copy_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "{\"text\":\"one\"}\n{\"hex\":\"ff00\",\"entity\":\"00000000000000aa\",\"parent\":3}\n{\"text\":\"three\"}\n";
    done(folder.path(), &["import", "a/b"], lines);
    done(
        folder.path(),
        &["import", "a/b", "--segment-bytes", "4096"],
        lines,
    );
    let exported = done(folder.path(), &["export", "a/b"], "");
    assert_eq!(exported.lines().count(), 6);
    let second = exported.lines().nth(1).unwrap();
    assert!(
        second.starts_with("{\"offset\":1,\"time_unix_ns\":"),
        "{second}"
    );
    assert!(
        second.ends_with(
            "\"entity\":\"00000000000000aa\",\"observed\":0,\"parent\":3,\"hex\":\"ff00\"}"
        ),
        "{second}"
    );
    done(folder.path(), &["import", "copy"], &exported);
    assert_eq!(done(folder.path(), &["export", "copy"], ""), exported);
    let cat = ["cat", "a/b", "--from", "after:3", "--count", "2", "--raw"];
    let output = log(folder.path(), &cat, "");
    assert_eq!(output.stdout, b"\xff\x00three");
}

#[test]
fn logs_are_listed_checked_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "{\"text\":\"event\"}\n".repeat(500);
    done(
        folder.path(),
        &["import", "m/x", "--segment-bytes", "4096"],
        &lines,
    );
    done(folder.path(), &["import", "k"], "");
    let listed = done(folder.path(), &["ls"], "");
    let names: Vec<_> = listed
        .lines()
        .map(|l| l.split('\t').next().unwrap())
        .collect();
    assert_eq!(names, ["k", "m/x"]);
    assert!(listed.contains("m/x\t0..500\t"), "{listed}");
    let stats = done(folder.path(), &["stats", "m/x", "--json"], "");
    assert!(stats.contains("\"events\":500,"), "{stats}");
    let verified = done(folder.path(), &["verify", "m/x", "--json"], "");
    let signed = ",\"signed\":{\"events\":0,\"batches\":0,\"bad\":0,\"refused\":0,\"waiting\":0,\"forks\":0}}\n";
    assert_eq!(verified, stats.replace("}\n", signed));

    let segment = folder.path().join("m+x/0000000001.seg");
    let mut content = fs::read(&segment).unwrap();
    content[400] ^= 1;
    fs::write(&segment, content).unwrap();
    let flaws = refused(folder.path(), &["verify", "m/x"], "", 1);
    assert!(flaws.contains("segment 1 at "), "{flaws}");
    let errors = refused(folder.path(), &["cat", "m/x"], "", 1);
    assert!(errors.contains("checksum is wrong"), "{errors}");
    // What is signed of the rest is told all the same.
    let told = refused(folder.path(), &["export", "m/x", "--signed"], "", 1);
    assert!(
        told.contains("checksum is wrong") && told.contains(" unsigned event"),
        "{told}"
    );
}

#[test]
fn what_cannot_be_is_refused_with_words() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, input, code, words) in [
        (&["cat", "../../etc"][..], "", 2, "`.` or `..`"),
        (&["cat", "nothing"], "", 1, "there is no log here"),
        (
            &["cat", "a", "--from", "yesterday"],
            "",
            2,
            "no place in a log",
        ),
        (
            &["import", "a"],
            "{\"text\":\"x\",\"hex\":\"00\"}\n",
            1,
            "line 1: write the event as",
        ),
        (
            &["import", "a"],
            "{\"text\":\"x\"}\nnonsense\n",
            1,
            "line 2: it is no event",
        ),
        (
            &["import", "a"],
            "[null,null,null,0,0,\"x\",null]\n",
            1,
            "line 1: it is no event: an event is a JSON object",
        ),
        (
            &["import", "a"],
            "{\"text\":\"x\",\"entity\":\"+1\"}\n",
            1,
            "line 1: `entity` is 16 hexadecimal digits",
        ),
        (
            &["cat", "a", "--from", "-1"],
            "",
            2,
            "\"-1\" is no place in a log",
        ),
        (
            &["import", "a", "--durability", "some"],
            "",
            2,
            "synced, flushed or memory",
        ),
    ] {
        let said = refused(folder.path(), arguments, input, code);
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    // The line before the one that is no event is there.
    assert_eq!(done(folder.path(), &["cat", "a"], ""), "x\n");
}

#[test]
fn a_line_without_end_is_read_no_further_than_an_event_can_be() {
    let folder = tempfile::tempdir().unwrap();
    let longest = format!("{{\"text\":\"{}\"}}\n", "\\u0001".repeat(1 << 20));
    done(folder.path(), &["import", "a"], &longest);
    let endless = format!("{{\"text\":\"x\"}}\n{{\"text\":\"{}", "x".repeat(8 << 20));
    let said = refused(folder.path(), &["import", "a"], &endless, 1);
    assert!(
        said.contains("line 2: it is longer than 6295552 bytes"),
        "{said}"
    );
}

#[test]
fn what_is_in_front_of_a_line_that_is_no_event_is_signed_and_in_the_log() {
    let (folder, keys) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let key = entity(keys.path(), "a");
    let import = ["import", "a", "--sign-with", &key];
    let lines = "{\"text\":\"one\"}\n{\"text\":\"two\"}\nnonsense\n";
    let said = refused(folder.path(), &import, lines, 1);
    assert!(
        said.contains("line 3: it is no event") && said.contains("before it are in the log"),
        "{said}"
    );
    assert_eq!(done(folder.path(), &["cat", "a"], ""), "one\ntwo\n");
    done(folder.path(), &["verify", "a", "--signed"], "");
}

/// Makes an entity's key; its file.
fn entity(folder: &Path, name: &str) -> String {
    let path = folder.join(name);
    let made = Command::new(env!("CARGO_BIN_EXE_virga"))
        .args(["keygen", "--kind", "entity", "--out"])
        .arg(&path)
        .output();
    assert!(made.unwrap().status.success());
    path.to_str().unwrap().to_owned()
}

#[test]
fn signed_events_are_checked_and_ordered() {
    let (folder, keys) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [a, b] = ["a", "b"].map(|name| entity(keys.path(), name));
    let import = |log: &str, key: &str, lines: &str| {
        done(folder.path(), &["import", log, "--sign-with", key], lines);
    };
    let lines = |count: usize| "{\"text\":\"x\"}\n".repeat(count);
    import("m/x", &a, &lines(600));
    import("m/x", &b, &lines(2));
    done(folder.path(), &["import", "m/x"], &lines(1));
    import("m/x", &a, &lines(3));
    import("other", &b, &lines(1));
    let order = |one: &str, other: &str| done(folder.path(), &["order", one, other], "");
    assert_eq!(order("m/x:0", "m/x:599"), "before\n");
    assert_eq!(order("m/x:0", "m/x:600"), "before\n");
    assert_eq!(order("m/x:605", "m/x:601"), "after\n");
    assert_eq!(order("m/x:601", "m/x:601"), "same\n");
    // Who signs in one log has not looked into the other.
    assert_eq!(order("other:0", "m/x:0"), "concurrent\n");
    let unsigned = refused(folder.path(), &["order", "m/x:602", "m/x:0"], "", 1);
    assert!(
        unsigned.contains("no signed event at offset 602"),
        "{unsigned}"
    );
    let checked = done(folder.path(), &["verify", "m/x"], "");
    let line = "605 of 606 events are signed, in 4 batches\n";
    assert!(checked.contains(line), "{checked}");
    let told = refused(folder.path(), &["verify", "m/x", "--signed"], "", 1);
    assert!(told.contains("1 unsigned event"), "{told}");
    done(folder.path(), &["verify", "other", "--signed"], "");
    let exported = done(folder.path(), &["export", "other", "--signed"], "");
    assert_eq!(exported.lines().count(), 1);
    let told = refused(folder.path(), &["export", "m/x", "--signed"], "", 1);
    assert!(told.contains("1 unsigned event"), "{told}");
    let again = ["import", "m/x", "--sign-with", &a];
    let links = "{\"text\":\"z\",\"parent\":3}\n";
    let told = refused(folder.path(), &again, links, 1);
    assert!(told.contains("leave them out"), "{told}");
}

#[test]
fn a_log_is_followed_while_another_process_writes_it() {
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), &["import", "a"], "{\"text\":\"before\"}\n");
    let follow = |from: &[&str], count: &str| {
        Command::new(env!("CARGO_BIN_EXE_virga"))
            .args(["log", "tail", "a", "--count", count, "--logs"])
            .arg(folder.path())
            .args(from)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let whole = follow(&["--from", "start"], "3");
    for text in ["one", "two"] {
        let line = format!("{{\"text\":\"{text}\"}}\n");
        done(folder.path(), &["import", "a"], &line);
    }
    let output = whole.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"before\none\ntwo\n");
    // It has begun at the end once the first of these is not given any more.
    let mut late = follow(&[], "1");
    for number in 0.. {
        let line = format!("{{\"text\":\"late {number}\"}}\n");
        done(folder.path(), &["import", "a"], &line);
        if late.try_wait().unwrap().is_some() {
            break;
        }
    }
    let output = late.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("late "), "{said}");
}

#[test]
fn a_log_without_its_manifest_is_listed_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "{\"text\":\"event\"}\n".repeat(3);
    for log in ["lost", "whole"] {
        done(folder.path(), &["import", log], &lines);
    }
    fs::remove_file(folder.path().join("lost/manifest")).unwrap();
    let listed = done(folder.path(), &["ls"], "");
    let [lost, whole]: [&str; 2] = listed.lines().collect::<Vec<_>>().try_into().unwrap();
    assert!(lost.starts_with("lost\t0..3\t"), "{lost}");
    assert!(lost.contains("\tno manifest: "), "{lost}");
    assert!(!whole.contains("manifest"), "{whole}");
    let listed = done(folder.path(), &["ls", "--json"], "");
    assert!(listed.contains("\"missing\":\"manifest\"}\n"), "{listed}");
    assert_eq!(listed.matches("missing").count(), 1);
    assert_eq!(done(folder.path(), &["cat", "lost"], "").lines().count(), 3);
    // Written, it has one again.
    done(folder.path(), &["import", "lost"], &lines);
    assert!(!done(folder.path(), &["ls"], "").contains("no manifest"));
}

#[test]
fn a_link_in_place_of_a_segment_is_refused_by_every_command() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    done(folder.path(), &["import", "a"], "{\"text\":\"one\"}\n");
    let segment = folder.path().join("a/0000000001.seg");
    let target = elsewhere.path().join("target");
    fs::rename(&segment, &target).unwrap();
    // A tail that recovery would cut.
    let mut bytes = fs::read(&target).unwrap();
    let tail = bytes.len() - 100;
    bytes[tail..].fill(b'x');
    fs::write(&target, &bytes).unwrap();
    std::os::unix::fs::symlink(&target, &segment).unwrap();
    for arguments in [
        &["import", "a"][..],
        &["cat", "a"],
        &["verify", "a"],
        &["ls"],
    ] {
        let said = refused(folder.path(), arguments, "{\"text\":\"two\"}\n", 1);
        let path = segment.display().to_string();
        assert!(said.contains(&path), "{arguments:?}: {said}");
        assert!(said.contains("is a symbolic link"), "{said}");
    }
    assert_eq!(fs::read(&target).unwrap(), bytes);
}

#[test]
fn a_time_far_ahead_is_refused_and_later_events_have_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let lines = format!(
        "{{\"text\":\"one\"}}\n{{\"text\":\"two\",\"time_unix_ns\":{}}}\n",
        u64::MAX
    );
    let said = refused(folder.path(), &["import", "a"], &lines, 1);
    assert!(
        said.contains("line 2: `time_unix_ns` 18446744073709551615"),
        "{said}"
    );
    assert!(said.contains("a day ahead"), "{said}");
    // A clock that is some minutes ahead is nobody's fault.
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    let soon = now + 10 * 60 * 1_000_000_000;
    let line = format!("{{\"text\":\"two\",\"time_unix_ns\":{soon}}}\n");
    done(folder.path(), &["import", "a"], &line);
    let listed = done(folder.path(), &["export", "a"], "");
    assert!(
        listed.contains(&format!("\"time_unix_ns\":{soon},")),
        "{listed}"
    );
    assert!(!listed.contains("18446744073709551615"), "{listed}");
}
