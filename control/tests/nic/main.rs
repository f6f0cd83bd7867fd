//! The NIC path, as it is loaded: one table of fixtures through the library and through the kernel, and
//! mutated fixtures through both, which must agree.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod af_xdp;
mod boundaries;
mod differential;
mod echoes;
mod fixtures;
mod frames;
mod object;
mod paths;
mod samples;
mod verifier;
mod world;

use paths::{Fate, Kernel, Memory, NEVER_NS, neighbour_index};
use virga_ebpf::{limits::TRANSIT_HANDSHAKES_PER_SECOND, reason::Reason};

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

/// The neighbour whose handshakes are refused; its bucket is as full as the table wants it.
fn shaking(memory: &Memory) -> u32 {
    neighbour_index(memory, 0, world::address(world::NEIGHBOUR_SHAKING)).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn every_fixture_through_the_library() {
    let memory = Memory::new(&world::image());
    memory.set_handshake_bucket(shaking(&memory), NEVER_NS);
    memory.watch();
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
    kernel.set_handshake_bucket(shaking(&memory), NEVER_NS);
    kernel.watch();
    let table = fixtures::table(&memory);
    for fixture in &table {
        check(fixture, "kernel", |frame| kernel.run(frame));
    }
    println!("{} fixtures", table.len());
}

#[test]
fn each_handshake_of_a_neighbour_takes_its_share_of_the_bucket() {
    let (image, share_ns) = (
        world::image(),
        1_000_000_000 / TRANSIT_HANDSHAKES_PER_SECOND,
    );
    let Some(mut kernel) = Kernel::new(&image) else {
        return;
    };
    let frame = fixtures::handshake_of_shaking().build();
    let neighbour = shaking(&Memory::new(&image));
    let mut before = 0;
    for _ in 0..3 {
        assert_eq!(kernel.run(&frame).0, Fate::Redirect);
        let after = kernel.handshake_bucket(neighbour);
        assert!(after >= before + share_ns, "{before} {after}");
        before = after;
    }
    kernel.set_handshake_bucket(neighbour, NEVER_NS);
    assert_eq!(kernel.run(&frame).0, Fate::Drop(Reason::HandshakeRate));
    assert_eq!(kernel.handshake_bucket(neighbour), NEVER_NS, "none taken");
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
