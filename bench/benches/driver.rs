//! What a datagram costs in each driver, on loopback, one thread sending runs and one receiving.
//!
//! Nanoseconds of each thread's own CPU time a datagram, so that what else runs on the machine
//! counts little; the medians of interleaved rounds, and beside them one `send` and one `recv` of the
//! standard library for each datagram. The slower thread is the limit, and `Mpps` what it allows.
//!
//! The limit: the kernel's part of a run (routing, one skb, loopback's soft interrupt, the
//! receiver's queue) is 4 to 5 µs, of which the call is a tenth; for 64 datagrams in a run that is
//! 60 to 80 ns a datagram on the sender's side, most of it in the sum over bytes and headers.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use virga_transport::io::{
    driver::{Batching, Choice, Driver, DriverConfig},
    socket::Socket,
    wake::Wake,
};

/// Datagrams of a run.
const RUN: usize = 64;
/// Rounds that the medians are of.
const ROUNDS: usize = 7;
/// How long a round lasts.
const ROUND: Duration = Duration::from_millis(300);

/// One way of moving datagrams, on one side.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Plain,
    Driver(DriverConfig),
}

const MMSG: Way = Way::Driver(DriverConfig {
    choice: Choice::Mmsg,
    busy_poll_us: None,
    batching: None,
});
const URING: Way = Way::Driver(DriverConfig {
    choice: Choice::Uring,
    busy_poll_us: None,
    batching: None,
});
const URING_BATCHED: Way = Way::Driver(DriverConfig {
    choice: Choice::Uring,
    busy_poll_us: None,
    batching: Some(Batching {
        completions: 8,
        within_us: 100,
    }),
});

/// CPU time of a thread and what it moved in that time.
#[derive(Clone, Copy, Debug)]
struct Spent {
    ns: u64,
    datagrams: u64,
}

impl Spent {
    fn ns_each(self) -> f64 {
        self.ns as f64 / self.datagrams.max(1) as f64
    }
}

fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let ns = time.tv_sec * 1_000_000_000 + time.tv_nsec;
    u64::try_from(ns).unwrap_or(0)
}

fn open(socket: UdpSocket, config: &DriverConfig) -> Driver {
    let wake = Arc::new(Wake::new().expect("an eventfd"));
    Driver::open(Socket::new(socket).expect("a socket"), wake, config)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn loopback() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").expect("a loopback address")
}

fn send(way: Way, to: SocketAddr, bytes: usize, stop: &AtomicBool) -> Spent {
    let payload = vec![0x56; bytes * RUN];
    let socket = loopback();
    let mut sent = 0;
    let began = cpu_ns();
    match way {
        Way::Plain => {
            while !stop.load(Ordering::Relaxed) {
                // A full queue at the receiver is no error here.
                sent += u64::from(socket.send_to(&payload[..bytes], to).is_ok());
            }
        }
        Way::Driver(config) => {
            let mut driver = open(socket, &config);
            while !stop.load(Ordering::Relaxed) {
                while let Some(run) = driver.room() {
                    run.extend_from_slice(&payload);
                    driver.commit(to, bytes);
                    if driver.sent().datagrams - sent >= 16 * RUN as u64 {
                        break;
                    }
                }
                let _full = driver.flush();
                sent = driver.sent().datagrams;
            }
        }
    }
    Spent {
        ns: cpu_ns() - began,
        datagrams: sent,
    }
}

fn receive(way: Way, socket: UdpSocket, stop: &AtomicBool) -> Spent {
    let mut received = 0;
    match way {
        Way::Plain => {
            let timeout = Duration::from_millis(1);
            socket.set_read_timeout(Some(timeout)).expect("a time-out");
            let mut buffer = [0; 65_536];
            let began = cpu_ns();
            while !stop.load(Ordering::Relaxed) {
                received += u64::from(socket.recv(&mut buffer).is_ok());
            }
            Spent {
                ns: cpu_ns() - began,
                datagrams: received,
            }
        }
        Way::Driver(config) => {
            let mut driver = open(socket, &config);
            let began = cpu_ns();
            while !stop.load(Ordering::Relaxed) {
                while driver.receive(|_, run| {
                    received += run.bytes.len().div_ceil(run.segment_bytes) as u64;
                }) {}
                let _ready = driver.wait(Some(1_000_000)).expect("a wait");
            }
            Spent {
                ns: cpu_ns() - began,
                datagrams: received,
            }
        }
    }
}

/// One round: what a datagram costs its sender and its receiver.
fn round(from: Way, to: Way, bytes: usize) -> (f64, f64) {
    let socket = loopback();
    let address = socket.local_addr().expect("an address");
    let stop = AtomicBool::new(false);
    let pin = |id| core_affinity::set_for_current(core_affinity::CoreId { id });
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            pin(1);
            receive(to, socket, &stop)
        });
        let sender = scope.spawn(|| {
            pin(0);
            send(from, address, bytes, &stop)
        });
        thread::sleep(ROUND);
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().expect("the sender");
        let received = receiver.join().expect("the receiver");
        (sent.ns_each(), received.ns_each())
    })
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn main() {
    let ways = [
        ("send, recv", Way::Plain, Way::Plain),
        ("mmsg to mmsg", MMSG, MMSG),
        ("uring to uring", URING, URING),
        ("uring to uring, 8 a wake", URING, URING_BATCHED),
    ];
    for bytes in [64, 1_000] {
        let mut costs = vec![(Vec::new(), Vec::new()); ways.len()];
        for _ in 0..ROUNDS {
            for (way, cost) in ways.iter().zip(&mut costs) {
                let (sender, receiver) = round(way.1, way.2, bytes);
                cost.0.push(sender);
                cost.1.push(receiver);
            }
        }
        println!(
            "{bytes} bytes, ns a datagram: sender, receiver; Mpps of the slower; times send, recv"
        );
        let mut plain = None;
        for (way, (sender, receiver)) in ways.iter().zip(costs) {
            let (sender, receiver) = (median(sender), median(receiver));
            let slower = sender.max(receiver);
            let plain = *plain.get_or_insert(slower);
            println!(
                "  {:<26} {sender:>8.1} {receiver:>8.1} {:>8.2} {:>8.1}",
                way.0,
                1_000.0 / slower,
                plain / slower
            );
        }
    }
}
