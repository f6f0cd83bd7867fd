//! A warm driver moves datagrams both ways without asking for memory.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::Arc,
};
use virga_transport::io::{
    driver::{Choice, Driver, DriverConfig, Sent},
    socket::Socket,
    wake::Wake,
};

/// The system's allocator, counting what each thread asks it for.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no count any more.
    let _ending = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

// SAFETY: every call goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the caller keeps `GlobalAlloc`'s rules for this call: a layout of some size.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the caller keeps `GlobalAlloc`'s rules: the memory came from here, with this layout.
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }

    // SAFETY: the caller keeps `GlobalAlloc`'s rules for this call: a layout of some size.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    // SAFETY: the caller keeps `GlobalAlloc`'s rules: the memory came from here, with this layout, and the new size is not 0.
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(memory, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn asked() -> u64 {
    ASKED.with(Cell::get)
}

/// Runs of one round, and datagrams of each.
const RUNS: usize = 8;
const DATAGRAMS: usize = 20;
const BYTES: usize = 1_000;

/// One round: runs from `near` to `far`, which sends them back out of its receive buffers.
fn round(near: &mut Driver, far: &mut Driver, payload: &[u8]) {
    let (here, there) = (
        near.socket().unwrap().address(),
        far.socket().unwrap().address(),
    );
    for _ in 0..RUNS {
        near.room().unwrap().extend_from_slice(payload);
        near.commit(there, BYTES);
    }
    assert!(near.flush());
    let mut echoed = 0;
    while echoed < RUNS * DATAGRAMS {
        assert!(far.wait(Some(10_000_000_000)).unwrap().readable);
        while far.receive(|outlet, run| {
            assert_eq!(outlet.send(here, run.bytes, run.segment_bytes), Sent::Done);
            echoed += run.bytes.len() / BYTES;
        }) {}
        assert!(far.flush());
    }
    let mut received = 0;
    while received < RUNS * DATAGRAMS {
        assert!(near.wait(Some(10_000_000_000)).unwrap().readable);
        while near.receive(|_, run| received += run.bytes.len() / BYTES) {}
    }
}

#[test]
fn a_warm_driver_allocates_nothing() {
    let payload = vec![7; DATAGRAMS * BYTES];
    for choice in [Choice::Mmsg, Choice::Uring] {
        let config = DriverConfig {
            choice,
            ..DriverConfig::default()
        };
        let open = || {
            let socket = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            Driver::open(socket, Arc::new(Wake::new().unwrap()), &config)
        };
        let (mut near, mut far) = match (open(), open()) {
            (Ok(near), Ok(far)) => (near, far),
            (Err(error), _) | (_, Err(error)) => {
                println!("skipped: {error}");
                continue;
            }
        };
        let cold = asked();
        for _ in 0..20 {
            round(&mut near, &mut far, &payload);
        }
        let warm = asked();
        for _ in 0..200 {
            round(&mut near, &mut far, &payload);
        }
        let name = near.name();
        assert_eq!(asked() - warm, 0, "{name}; {} before", warm - cold);
        let sent = near.sent().datagrams;
        assert_eq!(sent, (220 * RUNS * DATAGRAMS) as u64, "{name}");
        // The count counts: a figure for people is allocated.
        assert!(!near.figures().is_empty() && asked() > warm);
    }
}
