//! The transport's drivers between processes, over a veth pair: whole runs both ways, fragments
//! forbidden, closed ports, a full socket. Every driver at either end, the one on AF_XDP with queues that the real XDP
//! program feeds.

use std::{
    net::SocketAddr,
    process::{Child, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use virga_ebpf::{
    header::{Header, NodeId, OriginHash, SessionId},
    limits::HEADER_BYTES,
};
use virga_transport::io::{
    counters::ErrorKind,
    driver::{Choice, Driver, DriverConfig, DriverError, Sent},
    socket::Socket,
    wake::Wake,
};

use self::fed::{Fed, Side};
use crate::{hosts::Hosts, stage::virga};

mod fed;
mod full;

/// Tells the process at the far end what to run: the driver's name, and where it is, in JSON.
const FAR: &str = "VIRGA_TEST_FAR_END";
const SECOND_NS: u64 = 1_000_000_000;
/// What only each driver counts, sending and receiving.
const DRIVERS: [(Choice, [&str; 2]); 3] = [
    (Choice::Mmsg, ["waits", "waits"]),
    (Choice::Uring, ["completions", "completions"]),
    (Choice::Xsk, ["xsk_sent", "xsk_received"]),
];
const NEAR: &str = "10.79.0.1:7001";
const ECHO: &str = "10.79.0.2:7002";
const NEAR_ID: NodeId = NodeId(0xa);
const ECHO_ID: NodeId = NodeId(0xb);
/// Whose packets they are: the XDP program lets no others through.
const MEMBER: OriginHash = OriginHash(0xaaaa);
/// Runs that are echoed, and the datagrams of each.
const RUNS: u64 = 20;
const RUN_DATAGRAMS: u64 = 31;

fn try_open(choice: Choice, address: SocketAddr) -> Result<Driver, DriverError> {
    let config = DriverConfig {
        choice,
        ..DriverConfig::default()
    };
    let socket = Socket::bind(address).unwrap();
    Driver::open(socket, Arc::new(Wake::new().unwrap()), &config)
}

/// A driver on its side, and what feeds it.
fn open(choice: Choice, side: &Side) -> (Driver, Option<Fed>) {
    let mut driver = try_open(choice, side.own).unwrap();
    let fed = (choice == Choice::Xsk).then(|| Fed::new(&mut driver, side));
    (driver, fed)
}

/// The drivers that this machine has.
fn choices() -> Vec<Choice> {
    let runs = |choice: &Choice| {
        let opened = try_open(*choice, ([127, 0, 0, 1], 0).into());
        opened
            .inspect_err(|error| println!("skipped: {error}"))
            .is_ok()
    };
    DRIVERS
        .map(|(choice, _)| choice)
        .into_iter()
        .filter(runs)
        .collect()
}

/// A run of mesh packets, as the XDP program passes them on: of `datagram_bytes` each, the last perhaps shorter.
fn run(to: NodeId, payload: &[u8], datagram_bytes: usize) -> Vec<u8> {
    let packet = |payload: &[u8]| {
        let header = Header {
            destination: to,
            origin_hash: MEMBER,
            session_id: SessionId(0x5e55),
            payload_len: payload.len().try_into().unwrap(),
            ..Header::default()
        };
        [&header.encode()[..], payload].concat()
    };
    let packets = payload.chunks(datagram_bytes - HEADER_BYTES).map(packet);
    packets.collect::<Vec<_>>().concat()
}

/// Addresses a packet to another node.
fn readdress(packet: &mut [u8], to: NodeId) {
    let bytes: &mut [u8; HEADER_BYTES] = packet.first_chunk_mut().unwrap();
    let header = Header {
        destination: to,
        ..Header::decode(bytes)
    };
    *bytes = header.encode();
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

fn echoed(driver: &mut Driver, payload: &[u8], datagram_bytes: usize) {
    send(
        driver,
        ECHO,
        &run(ECHO_ID, payload, datagram_bytes),
        datagram_bytes,
    );
    let expected = run(NEAR_ID, payload, datagram_bytes);
    let expected: Vec<_> = expected
        .chunks(datagram_bytes)
        .map(<[u8]>::to_vec)
        .collect();
    let arrived = datagrams(driver, expected.len(), Duration::from_secs(60));
    assert!(arrived == expected, "{} arrived", arrived.len());
}

fn errors(driver: &Driver, kind: ErrorKind) -> u64 {
    let mut all = driver.sent().errors();
    all.find(|(k, _)| *k == kind).unwrap().1
}

fn figure(driver: &Driver, name: &str) -> u64 {
    let figures = driver.figures();
    let found = figures.iter().find(|(label, _)| *label == name);
    found.unwrap_or_else(|| panic!("{name} in {figures:?}")).1
}

/// The driver's own counters moved: not the kernel's socket beside it, and not another driver, carried the runs.
fn assert_own_work(driver: &Driver, fed: Option<&Fed>) {
    let (choice, names) = DRIVERS
        .into_iter()
        .find(|(choice, _)| choice.name() == driver.name())
        .unwrap();
    // A wait or a completion may be for a whole run.
    let least = if choice == Choice::Xsk {
        RUNS * RUN_DATAGRAMS
    } else {
        RUNS
    };
    for name in names {
        let moved = figure(driver, name);
        assert!(moved >= least, "{name}: {moved} of {least}, {driver:?}");
    }
    let Some(fed) = fed else {
        return;
    };
    assert!(fed.handed_over() >= least, "by the XDP program");
    assert!(
        figure(driver, "xsk_wakeups") > 0,
        "a copying driver is told"
    );
    for name in ["xsk_lost", "xsk_unreadable", "xsk_queues_gone"] {
        assert_eq!(figure(driver, name), 0, "{name}");
    }
}

/// Sends everything back until it is told to end, and then says what it received. It runs only as a
/// process of the test below; elsewhere it ends at once.
#[test]
#[ignore = "needs root: scripts/test runs it"]
fn far_end() {
    let Ok(told) = std::env::var(FAR) else {
        return;
    };
    let (name, side) = told.split_once(' ').unwrap();
    let choice = Choice::ALL.iter().find(|choice| choice.name() == name);
    let (mut driver, fed) = open(*choice.unwrap(), &Side::from_json(side));
    let mut is_over = false;
    while !is_over {
        let _ready = driver.wait(None).unwrap();
        while driver.receive(|outlet, run| {
            for packet in run.bytes.chunks_mut(run.segment_bytes) {
                is_over |= packet[HEADER_BYTES..] == *b"end";
                readdress(packet, NEAR_ID);
            }
            let sent = outlet.send(run.source, run.bytes, run.segment_bytes);
            assert_eq!(sent, Sent::Done);
        }) {}
        assert!(driver.flush());
    }
    assert_own_work(&driver, fed.as_ref());
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
    let side = Side::far(hosts).to_json();
    command
        .args(["drivers::far_end", "--exact", "--ignored", "--nocapture"])
        .env(FAR, format!("{} {side}", choice.name()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    Far(command.spawn().unwrap())
}

/// Everything that the near end tries; how many datagrams the far end must have received. `is_plain`: neither end is on
/// AF_XDP, where a packet is one packet.
fn near_end(choice: Choice, side: &Side, is_plain: bool) -> u64 {
    let (mut driver, fed) = open(choice, side);
    let mut hellos = 0;
    let hello = run(ECHO_ID, b"hello", 100);
    let give_up = Instant::now() + Duration::from_secs(60);
    while datagrams(&mut driver, 1, Duration::from_millis(100)).is_empty() {
        assert!(Instant::now() < give_up, "the far end does not answer");
        send(&mut driver, ECHO, &hello, hello.len());
        hellos += 1;
    }
    // What was answered late is none of the echoes.
    let _late = datagrams(&mut driver, usize::MAX, Duration::from_millis(300));
    let mut expected = 0;
    for n in 0..RUNS {
        let n = u8::try_from(n).unwrap();
        let payload: Vec<u8> = (0..30 * (1_200 - 64) + 77)
            .map(|i: u32| n ^ i.to_le_bytes()[1])
            .collect();
        echoed(&mut driver, &payload, 1_200);
        expected += RUN_DATAGRAMS;
    }
    if is_plain && driver.socket().unwrap().segments_max() > 1 {
        assert_eq!(driver.sent().segments, RUNS * RUN_DATAGRAMS);
        assert!(driver.received().segments > 0);
    }
    // Larger than the link carries: an error here, and no fragment there.
    let large = run(ECHO_ID, &[7; 2_000], 3_000);
    send(&mut driver, ECHO, &large, large.len());
    assert_eq!(errors(&driver, ErrorKind::TooBig), 1);
    for _ in 0..20 {
        send(&mut driver, "10.79.0.2:9", b"nobody", 6);
    }
    echoed(&mut driver, b"still here", 100);
    let end = run(ECHO_ID, b"end", 100);
    send(&mut driver, ECHO, &end, end.len());
    expected += 2;
    let all = driver.sent().datagrams;
    assert_eq!(all, hellos + expected + 20);
    assert_own_work(&driver, fed.as_ref());
    hellos + expected
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn drivers_understand_each_other_over_a_link() {
    let hosts = link();
    let side = Side::near(&hosts);
    for near in choices() {
        for far in choices() {
            println!("{} and {}", near.name(), far.name());
            let is_plain = ![near, far].contains(&Choice::Xsk);
            let mut process = start_far(&hosts, far);
            let expected = hosts
                .inside("a", || near_end(near, &side, is_plain))
                .unwrap();
            let out = process.0.stdout.take().unwrap();
            let said = std::io::read_to_string(out).unwrap();
            assert!(process.0.wait().unwrap().success(), "{said}");
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

/// Every flow hits the queue that its hash names: one driver runs them all.
#[test]
#[ignore = "needs root: scripts/test runs it"]
fn a_driver_runs_every_queue_of_its_interface() {
    const FLOWS: usize = 64;
    const PACKETS: usize = 20;
    let hosts = link();
    // A veth sends by no more queues than its other end receives by.
    for direction in ["rx", "tx"] {
        for host in ["a", "b"] {
            hosts
                .run(host, "ethtool", &["-L", "v0", direction, "2"])
                .unwrap();
        }
    }
    let side = Side::far(&hosts).with_queues(2);
    let packet = run(ECHO_ID, b"of a flow", 100);
    let send_a_flow = || {
        let socket = std::net::UdpSocket::bind("10.79.0.1:0").unwrap();
        for _ in 0..PACKETS {
            assert_eq!(socket.send_to(&packet, ECHO).unwrap(), packet.len());
        }
    };
    hosts
        .inside("b", || {
            let (mut driver, fed) = open(Choice::Xsk, &side);
            // A veth's ring has 256 places: each flow is read before the next is sent.
            for _ in 0..FLOWS {
                hosts.inside("a", send_a_flow).unwrap();
                let all = datagrams(&mut driver, PACKETS, Duration::from_secs(20));
                assert_eq!(all.len(), PACKETS);
                assert!(all.iter().all(|one| *one == packet));
            }
            let count = (FLOWS * PACKETS) as u64;
            assert_eq!(figure(&driver, "xsk_received"), count);
            assert_eq!(fed.unwrap().handed_over(), count);
            assert_eq!(figure(&driver, "xsk_queues"), 2);
        })
        .unwrap();
    for queue in 0..2 {
        let moved = xdp_packets(&hosts, queue);
        assert!(moved >= PACKETS as u64, "queue {queue}: {moved}");
    }
}

/// Packets that an XDP program has seen on a queue of the far end.
fn xdp_packets(hosts: &Hosts, queue: u32) -> u64 {
    let shown = hosts.run("b", "ethtool", &["-S", "v0"]).unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let name = format!("rx_queue_{queue}_xdp_packets:");
    let mut lines = shown
        .lines()
        .filter_map(|line| line.trim().strip_prefix(&name));
    lines
        .next()
        .expect("veth counts by queue")
        .trim()
        .parse()
        .unwrap()
}
