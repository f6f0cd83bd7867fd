//! What has no room: a socket's buffer, and the transmit ring of a queue. Both are told to the caller, and lose nothing.

use std::{
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use virga_transport::io::driver::{Choice, Driver};

use super::{
    ECHO, ECHO_ID, NEAR, SECOND_NS, choices,
    fed::{Side, next_hop, queues},
    figure, link, run, try_open,
};
use crate::hosts::Hosts;

/// Sends where nobody answers for the address, whose packets the kernel keeps at the socket's
/// expense, until there is no room; then somebody has the address.
fn fill(hosts: &Hosts, choice: Choice) {
    let mut driver = try_open(choice, NEAR.parse().unwrap()).unwrap();
    let mut runs = 0;
    while let Some(run) = driver.room() {
        run.resize(40 * 1_200, 7);
        driver.commit("10.79.0.9:7".parse().unwrap(), 1_200);
        runs += 1;
        assert!(runs < 2_000, "{runs} runs found room");
    }
    assert!(!driver.flush());
    assert!(driver.sent().would_block > 0);
    assert!(!driver.wait(Some(SECOND_NS / 20)).unwrap().writable);
    let neighbour = [
        "neigh",
        "replace",
        "10.79.0.9",
        "lladdr",
        "02:00:00:00:00:09",
    ];
    let neighbour = [&neighbour[..], &["dev", "v0", "nud", "permanent"]].concat();
    hosts.ip("a", &neighbour).unwrap();
    let give_up = Instant::now() + Duration::from_secs(10);
    while !driver.flush() {
        assert!(Instant::now() < give_up, "no room after all: {driver:?}");
        let _ready = driver.wait(Some(SECOND_NS)).unwrap();
    }
    assert!(driver.room().is_some());
    assert_eq!(driver.sent().datagrams, runs * 40);
    hosts
        .ip("a", &["neigh", "del", "10.79.0.9", "dev", "v0"])
        .unwrap();
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn a_full_socket_gives_back_pressure_and_nothing_is_lost() {
    let hosts = link();
    // As much as any socket holds, and for as long as this takes.
    let keep = "echo 100000000 >/proc/sys/net/ipv4/neigh/v0/unres_qlen_bytes; \
                echo 100 >/proc/sys/net/ipv4/neigh/v0/mcast_solicit";
    hosts.run("a", "sh", &["-c", keep]).unwrap();
    for choice in choices() {
        println!("{}", choice.name());
        hosts.inside("a", || fill(&hosts, choice)).unwrap();
    }
}

/// Frames that a queue has for sending, and one run more that the driver holds.
const HELD: usize = virga_transport::io::xsk::queue::FRAMES as usize + 1;
/// Packets so large that a few of them are all that the kernel takes of a socket at a time.
const PACKET_BYTES: usize = 1_200;

/// A device whose packets wait in the queue of the one below it, which sends next to nothing: the kernel takes a few, the ring
/// holds the others. Whether this kernel has all that it takes.
fn hold(hosts: &Hosts) -> bool {
    let above = [
        "link", "add", "link", "v0", "name", "x0", "type", "macvlan", "mode", "private",
    ];
    let shaped = [
        "qdisc", "add", "dev", "v0", "root", "tbf", "rate", "200bit", "burst", "1600", "limit",
        "20mb",
    ];
    let made = hosts
        .ip("a", &above)
        .and_then(|()| hosts.run("a", "tc", &shaped).map(drop));
    if let Err(error) = made {
        println!("skipped: this kernel holds no packets back: {error}");
        return false;
    }
    hosts.ip("a", &["link", "set", "dev", "x0", "up"]).unwrap();
    true
}

/// Lets go what is held back.
fn let_go(hosts: &Hosts) {
    let shaped = [
        "qdisc", "change", "dev", "v0", "root", "tbf", "rate", "200mbit", "burst", "15000",
        "limit", "20mb",
    ];
    hosts.run("a", "tc", &shaped).unwrap();
    // Its clock is set for the next packet at the old rate: another packet has it look.
    let other = std::net::UdpSocket::bind("10.79.0.1:0").unwrap();
    other.send_to(b"x", "10.79.0.2:9").unwrap();
}

fn numbered(n: usize) -> Vec<u8> {
    let mut payload = vec![7; PACKET_BYTES - 64];
    payload[..8].copy_from_slice(&n.to_be_bytes());
    run(ECHO_ID, &payload, PACKET_BYTES)
}

/// Waits with a full ring: that costs next to no calls, however long it lasts.
fn wait_for_room(driver: &mut Driver) {
    const PAUSE_NS: u128 = 100_000;
    let calls = |driver: &Driver| figure(driver, "xsk_wakeups");
    let (begun, before) = (Instant::now(), calls(driver));
    for _ in 0..5 {
        let ready = driver.wait(Some(SECOND_NS / 20)).unwrap();
        assert!(!ready.writable, "{ready:?}");
        assert!(driver.room().is_none());
    }
    let elapsed = begun.elapsed();
    assert!(elapsed >= Duration::from_millis(250), "{elapsed:?}");
    let asked = u128::from(calls(driver) - before);
    let looks = elapsed.as_nanos() / PAUSE_NS;
    // Each look calls twice, each turn some times more.
    assert!(asked <= 2 * looks + 100, "{asked} calls in {looks} looks");
}

/// Fills the ring at the near end, waits, and has it emptied until all has arrived; how many packets were sent.
fn fill_ring(hosts: &Hosts, side: &Side, arrived: &AtomicUsize) -> usize {
    let mut driver = try_open(Choice::Xsk, side.own).unwrap();
    driver.run_queues(queues(side, 1), "a queue that is held back");
    driver.set_next_hops(vec![next_hop(side)]);
    let mut runs = 0;
    while let Some(run) = driver.room() {
        run.extend_from_slice(&numbered(runs));
        driver.commit(ECHO.parse().unwrap(), PACKET_BYTES);
        runs += 1;
        assert!(runs < 2 * HELD, "{runs} runs found room");
    }
    // The first went out at once.
    assert!((HELD..HELD + 10).contains(&runs), "{runs}");
    assert!(!driver.flush());
    assert!(driver.sent().would_block > 0);
    wait_for_room(&mut driver);
    let_go(hosts);
    let give_up = Instant::now() + Duration::from_secs(60);
    while !driver.flush() {
        assert!(Instant::now() < give_up, "no room after all: {driver:?}");
        assert!(driver.wait(Some(10 * SECOND_NS)).unwrap().writable);
    }
    // What the kernel had no room for goes without another run to push it.
    while arrived.load(Ordering::Acquire) < runs && Instant::now() < give_up {
        let _ready = driver.wait(Some(SECOND_NS)).unwrap();
    }
    assert_eq!(driver.sent().datagrams, u64::try_from(runs).unwrap());
    assert_eq!(figure(&driver, "xsk_sent"), u64::try_from(runs).unwrap());
    assert_eq!(
        driver.sent().errors().map(|(_, count)| count).sum::<u64>(),
        0
    );
    runs
}

/// Receives until so many have arrived, and gives their numbers.
fn numbers(
    expected: &AtomicUsize,
    arrived: &AtomicUsize,
    is_bound: &mpsc::Sender<()>,
) -> Vec<usize> {
    let mut driver = try_open(Choice::Mmsg, ECHO.parse().unwrap()).unwrap();
    is_bound.send(()).unwrap();
    let mut numbers = Vec::new();
    let give_up = Instant::now() + Duration::from_secs(120);
    while numbers.len() < expected.load(Ordering::Acquire) && Instant::now() < give_up {
        let _ready = driver.wait(Some(SECOND_NS / 10)).unwrap();
        while driver.receive(|_, run| {
            for packet in run.bytes.chunks(run.segment_bytes) {
                let number = packet[64..72].try_into().unwrap();
                numbers.push(usize::from_be_bytes(number));
            }
        }) {}
        arrived.store(numbers.len(), Ordering::Release);
    }
    numbers
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn a_full_transmit_ring_gives_back_pressure_is_slept_for_and_loses_nothing() {
    let hosts = link();
    if !hold(&hosts) {
        return;
    }
    let side = Side::near(&hosts).on(&hosts, "x0");
    let (expected, arrived) = (AtomicUsize::new(usize::MAX), AtomicUsize::new(0));
    let (bound, is_bound) = mpsc::channel();
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let bound = bound;
            hosts.inside("b", || numbers(&expected, &arrived, &bound))
        });
        is_bound.recv().unwrap();
        let sent = hosts.inside("a", || fill_ring(&hosts, &side, &arrived));
        let sent = sent.unwrap();
        expected.store(sent, Ordering::Release);
        let numbers = receiver.join().unwrap().unwrap();
        assert!(
            numbers.iter().copied().eq(0..sent),
            "{} of {sent}",
            numbers.len()
        );
    });
}
