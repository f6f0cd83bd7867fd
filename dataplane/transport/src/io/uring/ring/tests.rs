use super::*;
use crate::io::{
    driver::DriverConfig,
    uring::{Uring, buffers::BUFFERS_FIRST},
};
use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

/// A ring over a socket of loopback, or none where the kernel refuses.
fn open() -> Option<Uring> {
    let socket = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let wake = Arc::new(Wake::new().unwrap());
    let opened = Uring::open(socket, wake, &DriverConfig::default());
    opened
        .map_err(|(_, _, reason)| println!("skipped: {reason}"))
        .ok()
}

#[test]
fn a_send_that_finds_no_place_in_the_queue_goes_with_the_next_call() {
    let Some(mut driver) = open() else {
        return;
    };
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    other
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let ring = &mut driver.ring;
    loop {
        // SAFETY: it does nothing, and points to nothing.
        let pushed = unsafe { ring.uring.submission().push(&opcode::Nop::new().build()) };
        if pushed.is_err() {
            break;
        }
    }
    for text in [b"one", b"two"] {
        ring.room().unwrap().extend_from_slice(text);
        ring.commit(other.local_addr().unwrap(), 3);
    }
    ring.push_sends();
    assert!(!ring.sends.is_asked() && !ring.sends.is_empty());
    assert!(ring.flush());
    let read = || {
        let mut bytes = [0; 9];
        let count = other.recv(&mut bytes).unwrap();
        bytes[..count].to_vec()
    };
    assert_eq!([read(), read()], [b"one", b"two"]);
}

/// The socket has room again when the driver is about to sleep: what waited for that goes first.
#[test]
fn what_waited_for_the_socket_goes_before_a_sleep() {
    let Some(mut driver) = open() else {
        return;
    };
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    other
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let ring = &mut driver.ring;
    ring.room().unwrap().extend_from_slice(b"one");
    ring.commit(other.local_addr().unwrap(), 3);
    // The kernel was asked to send it, and found the socket full.
    assert_eq!(ring.sends.requests(SEND).count(), 1);
    ring.sends.complete(0, -libc::EAGAIN, &mut ring.socket);
    assert!(ring.sends.is_full());
    // The watch for room ends at once: in truth there is some.
    ring.arm();
    while ring.uring.completion().is_empty() {
        ring.enter(0, None);
    }
    let begun = Instant::now();
    let _ready = ring.wait(Some(60_000_000_000)).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(30), "it slept");
    assert!(ring.flush());
    let mut bytes = [0; 9];
    assert_eq!(other.recv(&mut bytes).unwrap(), 3);
}

#[test]
fn a_buffer_that_comes_with_an_error_is_given_back_and_counted_once() {
    let Some(mut driver) = open() else {
        return;
    };
    // Taken from the kernel in its own order: it gives out buffer 0 first.
    const BUFFER: u32 = 1;
    const MORE: u32 = 2;
    let before = driver.ring.figures.buffers_exhausted;
    driver.ring.take_received(-libc::EIO, BUFFER | MORE);
    driver.ring.take_received(-libc::ENOBUFS, MORE);
    assert_eq!(driver.ring.arrived.len(), 1);
    assert!(!driver.receive(|_, run| panic!("{run:?}")));
    let errors: u64 = driver.received().errors().map(|(_, count)| count).sum();
    assert_eq!(errors, 1);
    assert_eq!(driver.ring.figures.buffers_exhausted, before + 1);
    // What it took is back, and there are twice as many: they had not sufficed.
    assert_eq!(driver.buffers.used(), 2 * BUFFERS_FIRST);
    assert_eq!(driver.buffers.given(), 2 * BUFFERS_FIRST + 1);
}

#[test]
fn a_kernel_without_memory_is_asked_again_but_not_for_ever() {
    assert_eq!(then(Some(libc::ENOMEM), 0), Then::Pause);
    assert_eq!(then(Some(libc::ENOMEM), NO_MEMORY_MAX), Then::Fail);
    assert_eq!(then(Some(libc::ETIME), NO_MEMORY_MAX), Then::GoOn);
    assert_eq!(then(Some(libc::EBADF), 0), Then::Fail);
    assert_eq!(then(None, 0), Then::Fail);
}

#[test]
fn runs_go_out_a_few_at_a_time_and_the_same_memory_is_written_again() {
    let Some(mut driver) = open() else {
        return;
    };
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    let ring = &mut driver.ring;
    let mut buffers = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let buffer = ring.room().unwrap();
        buffers.insert(buffer.as_ptr());
        buffer.resize(60_000, 0);
        ring.commit(other.local_addr().unwrap(), 1_200);
    }
    // Nobody has asked for it: each third run made 128 KiB full.
    assert_eq!(ring.sent().datagrams, 39 * 50);
    assert_eq!(buffers.len(), 3);
}
