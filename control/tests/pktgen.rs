//! What the pktgen scripts do without the kernel's pktgen: the process that it sends for ends with its script, however that
//! ends. All else `scripts/kernels` runs, where there is a kernel with it.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const FUNCTIONS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../scripts/pktgen/functions.sh"
);
/// Sends by a pgctrl that nobody reads: whoever writes to it waits, as in the kernel.
const SCRIPT: &str = r#"set -eu; . "$1"; proc=$2 verbose=; trap clean EXIT; send; echo sent"#;
const PATIENCE: Duration = Duration::from_secs(30);

fn eventually(mut is_so: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if is_so() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Whether a process is there and has not ended.
fn is_alive(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().unwrap_or_default();
    !state.is_empty() && !state.starts_with(['Z', 'X'])
}

/// The process that writes, once it does: it says so itself within a while, or is the script's only one.
fn writer(script: &mut Child) -> u32 {
    const WHILE: Duration = Duration::from_secs(5);
    let (id, start) = (script.id(), Instant::now());
    let mut found = None;
    let writes = eventually(|| {
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let children = children.unwrap_or_default();
        found = children.split_whitespace().find_map(|child| {
            let words = fs::read_to_string(format!("/proc/{child}/cmdline")).ok()?;
            let is_it = words.contains("pgctrl") && words.starts_with("bash");
            (is_it || start.elapsed() > WHILE).then(|| child.parse().ok())?
        });
        found.is_some()
    });
    if !writes {
        let _ended = script.kill();
    }
    assert!(writes, "nothing writes to pgctrl");
    found.unwrap()
}

#[test]
fn what_sends_ends_with_its_script_however_that_ends() {
    if Command::new("setpriv").arg("--version").output().is_err() {
        println!("skipped: there is no setpriv, which the scripts need");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new("mkfifo")
        .arg(folder.path().join("pgctrl"))
        .status();
    assert!(made.unwrap().success());
    // SIGINT is ignored where this test runs in the background of a script.
    for (signal, said) in [("-TERM", "sent\n"), ("-HUP", "sent\n"), ("-KILL", "")] {
        let mut script = Command::new("bash")
            .args(["-c", SCRIPT, "pktgen", FUNCTIONS])
            .arg(folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let writer = writer(&mut script);
        let kill = [signal, &script.id().to_string()];
        assert!(Command::new("kill").args(kill).status().unwrap().success());
        let ended = eventually(|| !is_alive(writer));
        if !ended {
            let _left = Command::new("kill").arg(writer.to_string()).status();
        }
        let output = script.wait_with_output().unwrap();
        assert!(ended, "{signal}: it sends on after its script has ended");
        assert_eq!(String::from_utf8_lossy(&output.stdout), said, "{signal}");
    }
}
