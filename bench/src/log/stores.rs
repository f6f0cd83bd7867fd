//! Other stores, each in the process of `virga-peers-store`: 64 events by one commit.

use std::{path::Path, process::Command};

use super::{ROUND, Synced, ours};
use crate::{
    report::{self, Entry, Skip, failed},
    rounds::median,
};

const CASE: Synced = Synced {
    name: "",
    bytes: 100,
    together: 64,
};

/// Measures. Without the other program the figures are left out.
pub(super) fn measure(rounds: u32, below: &Path) -> Result<Vec<Entry>, Skip> {
    let mut entries = Vec::new();
    for (name, store) in [
        ("log.vs_fjall", "fjall"),
        ("log.vs_sqlite", "sqlite"),
        ("log.vs_rocksdb", "rocksdb"),
    ] {
        match beside(name, store, rounds, below) {
            Ok(entry) => entries.push(entry),
            Err(Skip::Missing(reason)) => report::skipped(name, reason),
            Err(failure) => return Err(failure),
        }
    }
    Ok(entries)
}

fn beside(name: &'static str, store: &str, rounds: u32, below: &Path) -> Result<Entry, Skip> {
    let (mut rates, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let ours = ours(&CASE, below)?.rate;
        let their = other(store, below)?;
        rates.push(ours);
        theirs.push(their);
        ratios.push(ours / their);
    }
    Ok(Entry::new(name, "events/s", median(&rates))
        .beside(median(&theirs))
        .ratio(median(&ratios))
        .spread(&ratios))
}

/// Events a second of another store.
fn other(store: &str, below: &Path) -> Result<f64, Skip> {
    let here = std::env::current_exe().map_err(failed)?;
    let program = here.with_file_name("virga-peers-store");
    let folder = tempfile::tempdir_in(below).map_err(failed)?;
    let output = Command::new(&program)
        .arg(store)
        .arg(folder.path())
        .args([CASE.bytes, CASE.together].map(|number| number.to_string()))
        .arg(ROUND.as_millis().to_string())
        .output()
        .map_err(|e| Skip::Missing(format!("{}: {e}", program.display())))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let failure = String::from_utf8_lossy(&output.stderr);
    if failure.contains("is not built in") {
        return Err(Skip::Missing(failure.trim().to_owned()));
    }
    match said.trim().parse() {
        Ok(rate) if output.status.success() => Ok(rate),
        _ => Err(failed(format!("{}: {said}{failure}", program.display()))),
    }
}
