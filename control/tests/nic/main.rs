//! The NIC path, as it is loaded: one table of fixtures through the library and through the kernel, and
//! mutated fixtures through both, which must agree.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod differential;
mod fixtures;
mod frames;
mod object;
mod paths;
mod world;

use paths::{Fate, Kernel, Memory};

/// What the kernel's verifier may walk through for the whole program; of a million.
const VERIFIED_INSTRUCTIONS_MAX: u32 = 60_000;

fn check(fixture: &fixtures::Fixture, path: &str, mut run: impl FnMut(&[u8]) -> (Fate, Vec<u8>)) {
    let (last, before) = fixture.frames.split_last().unwrap();
    for frame in before {
        run(&frame.build());
    }
    let (fate, out) = run(&last.build());
    assert_eq!(fate, fixture.fate, "{path}: {}", fixture.name);
    if let Some(expected) = &fixture.out {
        assert_eq!(
            hex(&out),
            hex(&expected.build()),
            "{path}: {}",
            fixture.name
        );
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn every_fixture_through_the_library() {
    let memory = Memory::new(&world::image());
    for fixture in fixtures::table(&memory) {
        check(&fixture, "library", |frame| memory.run(frame));
    }
}

#[test]
fn every_fixture_through_the_loaded_program() {
    let image = world::image();
    let memory = Memory::new(&image);
    let Some(mut kernel) = Kernel::new(&image) else {
        return;
    };
    let table = fixtures::table(&memory);
    for fixture in &table {
        check(fixture, "kernel", |frame| kernel.run(frame));
    }
    println!(
        "{} fixtures; {} verified instructions",
        table.len(),
        kernel.instructions
    );
    assert!(
        kernel.instructions <= VERIFIED_INSTRUCTIONS_MAX,
        "the verifier's work grew"
    );
}

#[test]
fn the_table_reaches_every_fate() {
    let memory = Memory::new(&world::image());
    let reached: Vec<Fate> = fixtures::table(&memory).iter().map(|f| f.fate).collect();
    for fate in Fate::all() {
        assert!(
            reached.contains(&fate),
            "no fixture ends as {}",
            fate.name()
        );
    }
}
