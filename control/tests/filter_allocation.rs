//! Asking a filter allocates nothing; parsing one does.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};
use virga::capability::{Capabilities, Capability, Filter};

/// The system's, which counts what this thread asks for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends has nothing to count.
    let _ended = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: everything is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the caller keeps `GlobalAlloc`'s rules for this call: a layout of some size.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the same promise to us.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the caller keeps `GlobalAlloc`'s rules: the memory came from here, with this layout.
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the same promise to us.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations<T>(run: impl FnOnce() -> T) -> (T, u64) {
    let before = ALLOCATIONS.get();
    let result = run();
    (result, ALLOCATIONS.get() - before)
}

#[test]
fn asking_a_filter_allocates_nothing() {
    let all = [
        "hardware.gpu",
        "software.cuda=12.4.1-prerelease.with.a.long.name",
        "tier=production",
        "load=0.25",
    ];
    let all = all.map(|text| Capability::parse(text).unwrap());
    let has = Capabilities::new(all.to_vec()).unwrap();
    let text = "hardware.gpu and (software.cuda >= 12 or software.cuda > v12.3) and not tier = test \
                and load < 0.5";
    let (filter, parsing) = allocations(|| Filter::parse(text).unwrap());
    assert!(parsing > 0, "the allocator counts");
    let (holds, asking) = allocations(|| (0..100).all(|_| filter.holds(&has)));
    assert!(holds);
    assert_eq!(asking, 0);
}
