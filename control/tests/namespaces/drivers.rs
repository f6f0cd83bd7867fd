//! The transport's drivers between processes, over a veth pair: whole runs both ways, fragments
//! forbidden, closed ports, a full socket. Every driver at either end.

use std::{
    net::SocketAddr,
    process::{Child, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use virga_transport::io::{
    counters::ErrorKind,
    driver::{Choice, Driver, DriverConfig, DriverError, Sent},
    socket::Socket,
    wake::Wake,
};

use crate::{hosts::Hosts, stage::virga};

/// Tells the process at the far end what to run: the driver's name and the address.
const FAR: &str = "VIRGA_TEST_FAR_END";
const SECOND_NS: u64 = 1_000_000_000;
const CHOICES: [Choice; 2] = [Choice::Mmsg, Choice::Uring];
const NEAR: &str = "10.79.0.1:7001";
const ECHO: &str = "10.79.0.2:7002";

fn try_open(choice: Choice, address: SocketAddr) -> Result<Driver, DriverError> {
    let config = DriverConfig {
        choice,
        ..DriverConfig::default()
    };
    let socket = Socket::bind(address).unwrap();
    Driver::open(socket, Arc::new(Wake::new().unwrap()), &config)
}

fn open(choice: Choice, address: SocketAddr) -> Driver {
    try_open(choice, address).unwrap()
}

/// The drivers that this machine has.
fn choices() -> Vec<Choice> {
    let runs = |choice: &Choice| {
        let opened = try_open(*choice, ([127, 0, 0, 1], 0).into());
        opened
            .inspect_err(|error| println!("skipped: {error}"))
            .is_ok()
    };
    CHOICES.into_iter().filter(runs).collect()
}

fn send(driver: &mut Driver, to: &str, run: &[u8], segment_bytes: usize) {
    driver.room().unwrap().extend_from_slice(run);
    driver.commit(to.parse().unwrap(), segment_bytes);
    assert!(driver.flush());
}

/// The datagrams that arrive until there are `count`, or for a time.
fn datagrams(driver: &mut Driver, count: usize, patience: Duration) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let give_up = Instant::now() + patience;
    while all.len() < count && Instant::now() < give_up {
        let _ready = driver.wait(Some(SECOND_NS / 10)).unwrap();
        while driver.receive(|_, run| {
            all.extend(run.bytes.chunks(run.segment_bytes).map(<[u8]>::to_vec));
        }) {}
    }
    all
}

fn echoed(driver: &mut Driver, run: &[u8], segment_bytes: usize) {
    send(driver, ECHO, run, segment_bytes);
    let expected: Vec<_> = run.chunks(segment_bytes).map(<[u8]>::to_vec).collect();
    let arrived = datagrams(driver, expected.len(), Duration::from_secs(10));
    assert!(arrived == expected, "{} arrived", arrived.len());
}

fn errors(driver: &Driver, kind: ErrorKind) -> u64 {
    let mut all = driver.sent().errors();
    all.find(|(k, _)| *k == kind).unwrap().1
}

/// Sends everything back until it is told to end, and then says what it received. It runs only as a
/// process of the test below; elsewhere it ends at once.
#[test]
#[ignore = "needs root: scripts/test runs it"]
fn far_end() {
    let Ok(told) = std::env::var(FAR) else {
        return;
    };
    let (name, address) = told.split_once(' ').unwrap();
    let choice = CHOICES.into_iter().find(|choice| choice.name() == name);
    let mut driver = open(choice.unwrap(), address.parse().unwrap());
    let mut is_over = false;
    while !is_over {
        let _ready = driver.wait(None).unwrap();
        while driver.receive(|outlet, run| {
            is_over |= run.bytes == b"end";
            let sent = outlet.send(run.source, run.bytes, run.segment_bytes);
            assert_eq!(sent, Sent::Done);
        }) {}
        assert!(driver.flush());
    }
    let received = driver.received();
    println!(
        "far end: {} received, {} in runs, {} sent",
        received.datagrams,
        received.segments,
        driver.sent().datagrams
    );
}

struct Far(Child);

impl Drop for Far {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn start_far(hosts: &Hosts, choice: Choice) -> Far {
    let this = std::env::current_exe().unwrap();
    let mut command = hosts.command("b", this.to_str().unwrap());
    command
        .args(["drivers::far_end", "--exact", "--ignored", "--nocapture"])
        .env(FAR, format!("{} {ECHO}", choice.name()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    Far(command.spawn().unwrap())
}

/// Everything that the near end tries; how many datagrams the far end must have received.
fn near_end(choice: Choice) -> u64 {
    let mut driver = open(choice, NEAR.parse().unwrap());
    let mut hellos = 0;
    let give_up = Instant::now() + Duration::from_secs(20);
    while datagrams(&mut driver, 1, Duration::from_millis(100)).is_empty() {
        assert!(Instant::now() < give_up, "the far end does not answer");
        send(&mut driver, ECHO, b"hello", 5);
        hellos += 1;
    }
    // What was answered late is none of the echoes.
    let _late = datagrams(&mut driver, usize::MAX, Duration::from_millis(300));
    let mut expected = 0;
    for n in 0..20u8 {
        let run: Vec<u8> = (0..30 * 1_200 + 77)
            .map(|i: u32| n ^ i.to_le_bytes()[1])
            .collect();
        echoed(&mut driver, &run, 1_200);
        expected += 31;
    }
    if driver.socket().segments_max() > 1 {
        assert_eq!(driver.sent().segments, 20 * 31);
        assert!(driver.received().segments > 0);
    }
    // Larger than the link carries: an error here, and no fragment there.
    send(&mut driver, ECHO, &[7; 2_000], 2_000);
    assert_eq!(errors(&driver, ErrorKind::TooBig), 1);
    for _ in 0..20 {
        send(&mut driver, "10.79.0.2:9", b"nobody", 6);
    }
    echoed(&mut driver, b"still here", 10);
    send(&mut driver, ECHO, b"end", 3);
    expected += 2;
    let all = driver.sent().datagrams;
    assert_eq!(all, hellos + expected + 20);
    hellos + expected
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn drivers_understand_each_other_over_a_link() {
    let hosts = link();
    for near in choices() {
        for far in choices() {
            println!("{} and {}", near.name(), far.name());
            let mut process = start_far(&hosts, far);
            let expected = hosts.inside("a", || near_end(near)).unwrap();
            let out = process.0.stdout.take().unwrap();
            assert!(process.0.wait().unwrap().success());
            let said = std::io::read_to_string(out).unwrap();
            let line = format!("far end: {expected} received, ");
            assert!(said.contains(&line), "not {expected}: {said}");
        }
    }
}

/// Two hosts and a link between them, with the offloads that a veth pair has.
fn link() -> Hosts {
    let mut hosts = Hosts::new("virga-drivers", virga()).unwrap();
    hosts.add("a").unwrap();
    hosts.add("b").unwrap();
    let ends = [("a", "v0", "10.79.0.1/24"), ("b", "v0", "10.79.0.2/24")];
    hosts.join(ends[0], ends[1]).unwrap();
    for host in ["a", "b"] {
        hosts
            .run(host, "ethtool", &["-K", "v0", "tx", "on"])
            .unwrap();
    }
    hosts
}

/// Sends where nobody answers for the address, whose packets the kernel keeps at the socket's
/// expense, until there is no room; then somebody has the address.
fn fill(hosts: &Hosts, choice: Choice) {
    let mut driver = open(choice, NEAR.parse().unwrap());
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
