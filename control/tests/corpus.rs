//! The inputs that fuzzing has found and that are kept, through the targets that `scripts/fuzz` runs; through those of them
//! that forge what a member seals, the transport's own tests run them.
#![allow(clippy::unwrap_used)]

#[path = "../../dataplane/transport/fuzz/src/lib.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    clippy::cast_possible_truncation,
    reason = "a crate elsewhere: scripts/fuzz builds it, and shares with it what benchmarks measure with"
)]
mod fuzz;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Of all targets together.
const CORPUS_BYTES_MAX: u64 = 1 << 20;
/// Of one target.
const INPUTS: std::ops::RangeInclusive<usize> = 5..=99;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn inputs(target: &str) -> Vec<PathBuf> {
    let folder = root().join("dataplane/transport/fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// The targets that the script runs.
fn listed() -> Vec<String> {
    let script = fs::read_to_string(root().join("scripts/fuzz")).unwrap();
    let (_, rest) = script.split_once("targets=(").unwrap();
    let (listed, _) = rest.split_once(')').unwrap();
    listed.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn every_input_that_is_kept_ends_well() {
    for (name, target) in fuzz::TARGETS {
        for input in inputs(name) {
            // Whatever fails says which input it was.
            println!("{}", input.display());
            target(&fs::read(&input).unwrap());
        }
    }
}

#[test]
fn every_target_is_run_by_the_script_and_has_a_corpus_and_all_are_small() {
    let listed = listed();
    for (name, _) in fuzz::TARGETS {
        assert!(listed.iter().any(|one| one == name), "{name}");
    }
    let forging = root().join("dataplane/transport/src/tests/fuzzed.rs");
    let forging = fs::read_to_string(forging).unwrap();
    for name in &listed {
        let is_here = fuzz::TARGETS.iter().any(|(one, _)| one == name);
        let is_there = forging.contains(&format!("(\"{name}\", {name}::run)"));
        assert!(is_here != is_there, "{name}: its inputs are run once");
    }
    let mut bytes = 0;
    for name in &listed {
        let inputs = inputs(name);
        assert!(INPUTS.contains(&inputs.len()), "{name}: {}", inputs.len());
        let sizes = inputs.iter().map(|input| input.metadata().unwrap().len());
        bytes += sizes.sum::<u64>();
    }
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes}");
    let folders = fs::read_dir(root().join("dataplane/transport/fuzz/corpus")).unwrap();
    assert_eq!(folders.count(), listed.len());
}
