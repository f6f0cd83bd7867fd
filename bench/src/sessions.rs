//! `virga-sessions`: bytes that a node has allocated for each of 10,000 sessions that rest, by an allocator that
//! counts. A program of its own, so that nothing else is slowed by the counting.
//!
//! The sessions are real ones: handshake, proofs, one message on a stream that was finished. The other end of each is
//! dropped then; the node's clock goes on until acknowledgements and streams are done with.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
};

use virga_bench::session::{Hub, public};
use virga_transport::NodeLimits;

/// Sessions.
const SESSIONS: u32 = 10_000;

/// The system's allocator, counting what is held.
struct Counting;

static HELD_BYTES: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator as it is; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the caller keeps `GlobalAlloc`'s rules for this call: a layout of some size.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD_BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc`'s rules.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the caller keeps `GlobalAlloc`'s rules: the memory came from here, with this layout.
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD_BYTES.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc`'s rules.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    let peers = (1..=SESSIONS).map(public).collect();
    let limits = NodeLimits {
        handshakes_per_second: u64::from(SESSIONS) * 10,
        ..NodeLimits::default()
    };
    let mut hub = Hub::new(peers, limits);
    let before = HELD_BYTES.load(Ordering::Relaxed);
    for number in 1..=SESSIONS {
        hub.visit(number);
    }
    hub.rest();
    let held = HELD_BYTES.load(Ordering::Relaxed).saturating_sub(before);
    if hub.sessions() != SESSIONS as usize {
        eprintln!(
            "virga-sessions: {} of {SESSIONS} sessions are left",
            hub.sessions()
        );
        return ExitCode::FAILURE;
    }
    println!("{}", held / u64::from(SESSIONS));
    ExitCode::SUCCESS
}
