use super::*;
use crate::{io::driver::Driver, sim::MS};

const HERE: &str = "10.0.0.1:4783";
const THERE: &str = "10.0.0.2:4783";

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn open(wire: &Wire, address: &str, interface: Interface) -> (Driver, Arc<Wake>) {
    let wake = Arc::new(Wake::new().unwrap());
    let end = wire.attach(at(address), interface, Arc::clone(&wake));
    (Driver::simulated(end), wake)
}

fn send(driver: &mut Driver, run: &[u8], segment_bytes: usize) {
    driver.room().unwrap().extend_from_slice(run);
    driver.commit(at(THERE), segment_bytes);
}

/// Runs that are there: bytes of each, and of each one's segments.
fn runs(driver: &mut Driver) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    while driver.receive(|_, run| {
        assert_eq!(run.source, at(HERE));
        all.push((run.bytes.len(), run.segment_bytes));
    }) {}
    all
}

fn figure(driver: &Driver, name: &str) -> u64 {
    let figures = driver.figures();
    figures.iter().find(|(label, _)| *label == name).unwrap().1
}

fn too_big(driver: &Driver) -> u64 {
    let mut errors = driver.sent().errors();
    errors
        .find(|(kind, _)| *kind == ErrorKind::TooBig)
        .unwrap()
        .1
}

#[test]
fn a_run_arrives_as_its_datagrams_when_the_clock_says_so() {
    let wire = Wire::new(1, Weather::CALM);
    let plain = Interface {
        joins_max: 1,
        ..Interface::FAST
    };
    let (mut source, _) = open(&wire, HERE, Interface::FAST);
    let (mut sink, _) = open(&wire, THERE, plain);
    send(&mut source, &[7; 1_007], 100);
    assert_eq!(source.sent().batches, 1);
    assert_eq!(source.sent().segments, 11);
    assert_eq!((sink.due_ns(None), runs(&mut sink).len()), (None, 0));
    let lands_ns = wire.next_ns().unwrap();
    assert_eq!(lands_ns, 1 + 5 * MS);
    wire.advance(lands_ns);
    assert_eq!(sink.due_ns(None), Some(lands_ns));
    let came = runs(&mut sink);
    assert_eq!(came[..10], [(100, 100); 10]);
    assert_eq!(came[10..], [(7, 7)]);
    assert_eq!(
        (sink.received().datagrams, sink.received().bytes),
        (11, 1_007)
    );
    assert_eq!(sink.due_ns(Some(lands_ns + 3)), Some(lands_ns + 3));
}

#[test]
fn what_arrives_together_is_joined_as_far_as_the_kernel_joins() {
    let wire = Wire::new(1, Weather::CALM);
    let (mut source, _) = open(&wire, HERE, Interface::FAST);
    let (mut sink, _) = open(&wire, THERE, Interface::FAST);
    for _ in 0..40 {
        send(&mut source, &[7; 1_007], 100);
    }
    wire.advance(wire.next_ns().unwrap());
    let came = runs(&mut sink);
    assert!(came.iter().any(|&(bytes, segment)| bytes > segment));
    assert!(came.iter().all(|&(bytes, segment)| bytes <= 11 * segment));
    let bytes: usize = came.iter().map(|(bytes, _)| bytes).sum();
    assert_eq!((bytes, sink.received().datagrams), (40 * 1_007, 440));
    assert!(sink.received().segments > 0);
}

#[test]
fn a_full_socket_blocks_until_its_link_has_taken_some() {
    let wire = Wire::new(1, Weather::CALM);
    let slow = Interface {
        rate: 1_000_000,
        send_buffer_bytes: 10_000,
        segments_max: 1,
        ..Interface::FAST
    };
    let (mut source, _) = open(&wire, HERE, slow);
    let (mut sink, _) = open(&wire, THERE, Interface::FAST);
    send(&mut source, &[7; 20_000], 1_000);
    assert!(source.room().is_none() && !source.flush());
    // The buffer takes ten, and one more while it is not above its size.
    assert_eq!(source.sent().datagrams, 11);
    assert!(source.sent().would_block > 0);
    let room_ns = source.due_ns(Some(u64::MAX)).unwrap();
    assert_eq!(room_ns, 1 + MS);
    assert!(!source.wait(None).unwrap().writable);
    wire.advance(room_ns);
    assert!(source.wait(None).unwrap().writable);
    for _ in 0..8 {
        assert!(source.room().is_none());
        wire.advance(source.due_ns(None).unwrap());
    }
    assert!(source.flush() && source.room().is_some());
    assert_eq!(source.due_ns(None), None);
    // The link has a rate: they do not come before it has carried them.
    wire.advance(wire.clock().now_ns() + 30 * MS);
    let bytes: usize = runs(&mut sink).iter().map(|(bytes, _)| bytes).sum();
    assert_eq!(bytes, 20_000);
}

#[test]
fn what_the_link_does_not_take_is_refused_and_what_nobody_reads_is_lost() {
    let wire = Wire::new(1, Weather::CALM);
    let small = Interface {
        datagram_bytes: 1_400,
        receive_buffer_bytes: 5_000,
        ..Interface::FAST
    };
    let (mut source, _) = open(&wire, HERE, small);
    let (mut sink, _) = open(&wire, THERE, small);
    send(&mut source, &[7; 4_200], 1_401);
    assert_eq!((too_big(&source), source.sent().datagrams), (3, 0));
    assert_eq!(wire.next_ns(), None);
    for _ in 0..4 {
        send(&mut source, &[7; 1_232], 1_232);
        send(&mut source, &[7; 1_232], 1_232);
    }
    wire.advance(6 * MS);
    assert_eq!(figure(&sink, "socket_lost"), 4);
    let bytes: usize = runs(&mut sink).iter().map(|(bytes, _)| bytes).sum();
    assert_eq!(bytes, 4 * 1_232);
}

#[test]
fn a_ring_ends_a_wait_and_is_forgotten_with_it() {
    let wire = Wire::new(1, Weather::CALM);
    let (mut driver, wake) = open(&wire, HERE, Interface::FAST);
    assert_eq!(driver.due_ns(None), None);
    wake.ring();
    assert_eq!(driver.due_ns(None), Some(1));
    assert!(driver.wait(None).unwrap().woken);
    assert!(!driver.wait(None).unwrap().woken);
    assert_eq!(driver.due_ns(None), None);
}

#[test]
fn nothing_passes_where_it_is_parted_and_each_of_several_at_one_address_gets_some() {
    let wire = Wire::new(1, Weather::CALM);
    let (mut source, _) = open(&wire, HERE, Interface::FAST);
    let mut sinks = [0; 2].map(|_| open(&wire, THERE, Interface::FAST).0);
    wire.part(at(HERE), at(THERE));
    send(&mut source, &[7; 1_000], 100);
    assert_eq!(wire.next_ns(), None);
    let parted = wire.trace();
    wire.mend();
    send(&mut source, &[7; 6_400], 100);
    wire.advance(wire.next_ns().unwrap());
    let came = sinks.each_mut().map(|sink| {
        runs(sink);
        sink.received().datagrams
    });
    assert!(came.iter().all(|&n| n > 10), "{came:?}");
    assert_eq!(came.iter().sum::<u64>(), 64);
    assert_ne!(wire.trace(), parted);
}
