//! What a worker's thread allocates once it is warm: nothing for a packet that passes, nothing for an
//! event that leaves, and for one that arrives no more than what carries it to its owner.

#![allow(unsafe_code, reason = "a global allocator is unsafe to implement")]
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]
#![allow(
    clippy::disallowed_methods,
    reason = "a test is outside the dataplane: it has sockets"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::UdpSocket,
    time::Duration,
};

use virga_ebpf::{hash, header::Header};
use virga_transport::{
    ChannelName, Mode, NodeLimits,
    flow::{Flow, Wanted, notes},
    io::clock::Clock,
    worker::{Parts, WorkerHandle},
};

mod ends;
use ends::{Application, id, look, peer, route, spawn};

/// Counts what each thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no counter any more.
    let _ending = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call goes to the system's allocator as it is; the counter allocates nothing itself.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the caller keeps `GlobalAlloc`'s rules for this call: a layout of some size.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the caller keeps `GlobalAlloc`'s rules: the memory came from here, with this layout.
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    // SAFETY: the caller keeps `GlobalAlloc`'s rules: the memory came from here, with this layout, and the new size is not 0.
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// How much may be under way before more is counted; what a warm worker has grown to.
const WARM_EVENTS: u64 = 30_000;
const EVENTS: u64 = 30_000;

/// Waits until `done`, looking now and then; gives what the worker's thread has allocated by then.
fn allocated(
    worker: &WorkerHandle<Application>,
    done: fn(&mut Parts<Application>) -> u64,
    enough: u64,
) -> u64 {
    for _ in 0..3_000 {
        let (count, made) = look(worker, move |parts| (done(parts), allocations()));
        if count >= enough {
            return made;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    panic!("{} of {enough}", look(worker, done));
}

/// Times what both ends send and receive, as often as anything happens; nobody reads it.
fn time(worker: &WorkerHandle<Application>) {
    let (notes, noted) = notes(Clock::start());
    let wanted = Wanted {
        channel: ChannelName::parse("a").unwrap(),
        entity: None,
        is_own: true,
        interval_ns: 0,
    };
    let flow = Some(Box::new(Flow::new(wanted, notes)));
    assert!(look(worker, move |parts| parts.set_flow(flow)).is_none());
    std::mem::forget(noted);
}

/// What sending and receiving allocate once both ends are warm, in hundredths of an allocation an event.
fn session(mode: Mode, is_timed: bool) -> (u64, u64) {
    let [source, sink] =
        [(1, 2), (2, 1)].map(|(own, other)| spawn(own, other, mode, NodeLimits::default()));
    route(&source, 1, 2, sink.address());
    route(&sink, 2, 1, source.address());
    if is_timed {
        time(&source);
        time(&sink);
    }
    let received = |parts: &mut Parts<Application>| parts.service.received;
    let taken = |parts: &mut Parts<Application>| u64::from(parts.service.to_send == 0);
    let mut made = [0; 2];
    for round in 1..=2 {
        let before = made;
        let events = if round == 1 { WARM_EVENTS } else { EVENTS };
        assert!(source.command(events).is_ok());
        made[0] = allocated(&source, taken, 1);
        // An unreliable event may be lost.
        let all = WARM_EVENTS + if round == 1 { 0 } else { EVENTS };
        let enough = if mode.is_reliable() { all } else { all / 2 };
        made[1] = allocated(&sink, received, enough);
        if round == 2 {
            made = [made[0] - before[0], made[1] - before[1]];
        }
    }
    source.stop();
    sink.stop();
    (made[0] * 100 / EVENTS, made[1] * 100 / EVENTS)
}

#[test]
fn a_warm_session_allocates_no_more_than_its_events() {
    for (mode, is_timed) in [
        (Mode::Ordered, false),
        (Mode::Unreliable, false),
        (Mode::Ordered, true),
        (Mode::Unreliable, true),
    ] {
        let (sending, receiving) = session(mode, is_timed);
        println!(
            "{mode:?}, timed {is_timed}: {sending} and {receiving} hundredths of an allocation an event"
        );
        assert!(sending <= 10, "{mode:?}: {sending} hundredths an event out");
        assert!(
            receiving <= 110,
            "{mode:?}: {receiving} hundredths an event in"
        );
    }
}

#[test]
fn a_packet_that_passes_allocates_nothing() {
    let through = spawn(1, 2, Mode::Ordered, NodeLimits::default());
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    route(&through, 1, 2, sink.local_addr().unwrap());
    // What it would do to have a session of its own is no packet that passes.
    look(&through, |parts| parts.node.give_up(id(2)));
    let source = UdpSocket::bind("127.0.0.1:0").unwrap();
    let origin = hash::origin_hash(&peer(2).entity_key);
    let mut sent = 0_u64;
    let mut send = |packets: u64| {
        for _ in 0..packets {
            let header = Header {
                destination: id(2),
                origin_hash: origin,
                payload_len: 16,
                sequence: sent,
                ..Header::default()
            };
            let mut packet = header.encode().to_vec();
            packet.extend([0; 16]);
            source.send_to(&packet, through.address()).unwrap();
            sent += 1;
            if sent.is_multiple_of(64) {
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
        sent
    };
    let forwarded = |parts: &mut Parts<Application>| parts.counters().forwarded;
    let warm = send(5_000);
    let before = allocated(&through, forwarded, warm / 2);
    let all = send(5_000);
    let after = allocated(&through, forwarded, all * 3 / 4);
    assert_eq!(after - before, 0, "for {} packets", all - warm);
    through.stop();
}
