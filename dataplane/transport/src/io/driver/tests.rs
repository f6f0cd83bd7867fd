use super::*;
use crate::io::counters::ErrorKind;
use std::time::{Duration, Instant};

const SECOND_NS: u64 = 1_000_000_000;

fn open() -> (Driver, Arc<Wake>) {
    let socket = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let wake = Arc::new(Wake::new().unwrap());
    (Driver::open(socket, Arc::clone(&wake)), wake)
}

fn address(driver: &Driver) -> SocketAddr {
    driver.socket().address()
}

/// Every datagram that arrives until there are `count`.
fn datagrams(driver: &mut Driver, count: usize) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let give_up = Instant::now() + Duration::from_secs(10);
    while all.len() < count {
        assert!(Instant::now() < give_up, "{} of {count}", all.len());
        let _ready = driver.wait(Some(SECOND_NS)).unwrap();
        while driver.receive(|_, run| {
            all.extend(run.bytes.chunks(run.segment_bytes).map(<[u8]>::to_vec));
        }) {}
    }
    all
}

fn send(driver: &mut Driver, to: SocketAddr, run: &[u8], segment_bytes: usize) {
    driver.room().unwrap().extend_from_slice(run);
    driver.commit(to, segment_bytes);
    assert!(driver.flush());
}

fn errors(counters: &IoCounters, kind: ErrorKind) -> u64 {
    counters.errors().find(|(k, _)| *k == kind).unwrap().1
}

#[test]
fn a_run_arrives_as_its_datagrams_whatever_the_kernel_offloads() {
    let ((mut sender, _), (mut receiver, _)) = (open(), open());
    let run: Vec<u8> = (0..=10u8).flat_map(|i| [i; 100]).take(1_007).collect();
    send(&mut sender, address(&receiver), &run, 100);
    let arrived = datagrams(&mut receiver, 11);
    let sent: Vec<Vec<u8>> = run.chunks(100).map(<[u8]>::to_vec).collect();
    assert_eq!(arrived, sent);
    for counters in [sender.sent(), receiver.received()] {
        assert_eq!((counters.datagrams, counters.bytes), (11, 1_007));
    }
    if sender.socket().segments_max() > 1 {
        assert_eq!((sender.sent().batches, sender.sent().segments), (1, 11));
    }
}

#[test]
fn what_is_received_can_be_sent_on_at_once() {
    let ((mut sender, _), (mut relay, _), (mut receiver, _)) = (open(), open(), open());
    let to = address(&receiver);
    send(&mut sender, address(&relay), b"onetwo", 3);
    let mut relayed = 0;
    while relayed < 2 {
        assert!(relay.wait(Some(10 * SECOND_NS)).unwrap().readable);
        while relay.receive(|outlet, run| {
            relayed += run.bytes.len() / run.segment_bytes;
            assert_eq!(outlet.send(to, run.bytes, run.segment_bytes), Sent::Done);
        }) {}
        assert!(relay.flush());
    }
    assert_eq!(datagrams(&mut receiver, 2), [b"one", b"two"]);
    assert_eq!(relay.sent().datagrams, 2);
}

#[test]
fn too_large_a_datagram_is_counted_and_the_rest_still_travels() {
    let ((mut sender, _), (mut receiver, _)) = (open(), open());
    let to = address(&receiver);
    send(&mut sender, to, &[0; 65_530], 65_530);
    send(&mut sender, to, b"small", 5);
    assert_eq!(datagrams(&mut receiver, 1), [b"small"]);
    assert_eq!(errors(sender.sent(), ErrorKind::TooBig), 1);
}

#[test]
fn a_closed_port_stops_nothing() {
    let ((mut driver, _), (receiver, _)) = (open(), open());
    let to = address(&receiver);
    drop(receiver);
    for _ in 0..16 {
        send(&mut driver, to, b"x", 1);
        assert!(!driver.receive(|_, run| panic!("{run:?}")));
    }
    let own = address(&driver);
    send(&mut driver, own, b"y", 1);
    assert_eq!(datagrams(&mut driver, 1), [b"y"]);
}

#[test]
fn an_unroutable_address_is_an_error_of_that_datagram_alone() {
    let ((mut sender, _), (mut receiver, _)) = (open(), open());
    send(&mut sender, "[2001:db8::1]:9".parse().unwrap(), b"x", 1);
    send(&mut sender, address(&receiver), b"z", 1);
    assert_eq!(datagrams(&mut receiver, 1), [b"z"]);
    let errors: u64 = sender.sent().errors().map(|(_, count)| count).sum();
    assert_eq!(errors, 1);
}

#[test]
fn a_ring_ends_a_wait_and_is_forgotten_with_it() {
    let (mut driver, wake) = open();
    wake.ring();
    wake.ring();
    assert!(driver.wait(None).unwrap().woken);
    assert_eq!(driver.wait(Some(0)).unwrap(), Ready::default());
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        wake.ring();
    });
    assert!(driver.wait(None).unwrap().woken);
    thread.join().unwrap();
}

#[test]
fn a_wait_ends_with_its_time() {
    let (mut driver, _wake) = open();
    let begun = Instant::now();
    assert_eq!(driver.wait(Some(30_000_000)).unwrap(), Ready::default());
    assert!(begun.elapsed() >= Duration::from_millis(30));
}
