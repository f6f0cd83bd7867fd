//! One suite over all drivers: each test runs over every driver that this kernel has, and those
//! with two ends over every pair of them.

use super::*;
use crate::io::{clock::unix_ns, counters::ErrorKind};
use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

const SECOND_NS: u64 = 1_000_000_000;
const LOOPBACK: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

/// A driver, and who can wake it.
struct End {
    driver: Driver,
    wake: Arc<Wake>,
}

impl End {
    fn try_open(config: &DriverConfig, address: &str) -> Result<Self, DriverError> {
        let socket = Socket::bind(address.parse().unwrap()).unwrap();
        let wake = Arc::new(Wake::new().unwrap());
        let driver = Driver::open(socket, Arc::clone(&wake), config)?;
        Ok(Self { driver, wake })
    }

    fn open(choice: Choice) -> Self {
        let config = DriverConfig {
            choice,
            ..DriverConfig::default()
        };
        Self::try_open(&config, LOOPBACK[0]).unwrap()
    }

    fn address(&self) -> SocketAddr {
        self.driver.socket().unwrap().address()
    }

    /// Sends a run, waiting for room as long as it takes.
    fn send(&mut self, to: SocketAddr, run: &[u8], segment_bytes: usize) {
        self.driver.room().unwrap().extend_from_slice(run);
        self.driver.commit(to, segment_bytes);
        assert!(self.driver.flush());
    }

    /// Every datagram that arrives until there are `count`, with its source.
    fn datagrams(&mut self, count: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut all = Vec::new();
        let give_up = Instant::now() + Duration::from_secs(60);
        while all.len() < count {
            assert!(Instant::now() < give_up, "{} of {count}", all.len());
            let _ready = self.driver.wait(Some(10 * SECOND_NS)).unwrap();
            while self.driver.receive(|_, run| {
                let datagrams = run.bytes.chunks(run.segment_bytes);
                all.extend(datagrams.map(|bytes| (run.source, bytes.to_vec())));
            }) {}
        }
        all
    }

    fn payloads(&mut self, count: usize) -> Vec<Vec<u8>> {
        let all = self.datagrams(count).into_iter();
        all.map(|(_, bytes)| bytes).collect()
    }

    fn figure(&self, name: &str) -> u64 {
        let figures = self.driver.figures();
        let found = figures.iter().find(|(label, _)| *label == name);
        found.unwrap_or_else(|| panic!("{name} in {figures:?}")).1
    }

    /// What only this kind of driver counts.
    fn own_work(&self) -> u64 {
        match self.driver.name() {
            "uring" => self.figure("completions"),
            _ => self.figure("waits"),
        }
    }
}

/// The drivers that run on this machine.
fn choices() -> Vec<Choice> {
    let named = [Choice::Xsk, Choice::Mmsg, Choice::Uring].into_iter();
    let runs = |choice: &Choice| {
        let config = DriverConfig {
            choice: *choice,
            ..DriverConfig::default()
        };
        match End::try_open(&config, LOOPBACK[0]) {
            Ok(end) => end.driver.name() == choice.name(),
            Err(error) => {
                println!("skipped: {error}");
                false
            }
        }
    };
    named.filter(runs).collect()
}

fn each(test: impl Fn(End)) {
    for choice in choices() {
        println!("{}", choice.name());
        test(End::open(choice));
    }
}

/// Sender and receiver, of every two kinds.
fn each_pair(test: impl Fn(End, End)) {
    for from in choices() {
        for to in choices() {
            println!("{} to {}", from.name(), to.name());
            test(End::open(from), End::open(to));
        }
    }
}

fn errors(counters: &IoCounters, kind: ErrorKind) -> u64 {
    counters.errors().find(|(k, _)| *k == kind).unwrap().1
}

fn all_errors(counters: &IoCounters) -> u64 {
    counters.errors().map(|(_, count)| count).sum()
}

#[test]
fn auto_takes_the_first_that_runs_and_says_why() {
    let end = End::open(Choice::Auto);
    let best = *choices().last().unwrap();
    assert_eq!(end.driver.name(), best.name());
    assert!(end.driver.why().len() > 10, "{}", end.driver.why());
    let asked = End::open(Choice::Mmsg);
    assert_eq!(asked.driver.why(), "the configuration asks for it");
}

#[test]
fn runs_arrive_as_their_datagrams_and_both_ends_count_them() {
    each_pair(|mut sender, mut receiver| {
        let before = (sender.own_work(), receiver.own_work());
        let run: Vec<u8> = (0..=10u8).flat_map(|i| [i; 100]).take(1_007).collect();
        sender.send(receiver.address(), &run, 100);
        let expected: Vec<_> = run
            .chunks(100)
            .map(|bytes| (sender.address(), bytes.to_vec()))
            .collect();
        assert_eq!(receiver.datagrams(11), expected);
        let (sent, received) = (sender.driver.sent(), receiver.driver.received());
        for counters in [sent, received] {
            assert_eq!((counters.datagrams, counters.bytes), (11, 1_007));
            assert!(counters.batches >= 1);
        }
        if sender.driver.socket().unwrap().segments_max() > 1 {
            assert_eq!((sent.batches, sent.segments), (1, 11));
        }
        assert_eq!((all_errors(sent), all_errors(received)), (0, 0));
        let _ready = sender.driver.wait(Some(0)).unwrap();
        assert!(sender.own_work() > before.0);
        assert!(receiver.own_work() > before.1);
    });
}

#[test]
fn all_sizes_arrive_in_order_over_both_families() {
    for address in LOOPBACK {
        for choice in choices() {
            let config = DriverConfig {
                choice,
                ..DriverConfig::default()
            };
            let mut sender = End::try_open(&config, address).unwrap();
            let mut receiver = End::try_open(&config, address).unwrap();
            let to = receiver.address();
            // Bytes of a run, and of its segments: singles, an odd tail, the most of both.
            for (bytes, segment) in [
                (1usize, 1usize),
                (64, 64),
                (64 * 64, 64),
                (1_999, 500),
                (1_200, 1_200),
                (54 * 1_200, 1_200),
                (9_000, 9_000),
                (65_507 - 20, 65_507 - 20),
            ] {
                let run: Vec<u8> = (0..bytes)
                    .map(|i| (i / 7 % 251).try_into().unwrap())
                    .collect();
                sender.send(to, &run, segment);
                let arrived = receiver.payloads(bytes.div_ceil(segment));
                let expected: Vec<_> = run.chunks(segment).map(<[u8]>::to_vec).collect();
                assert!(arrived == expected, "{bytes} of {segment} to {to}");
            }
            assert_eq!(all_errors(sender.driver.sent()), 0);
        }
    }
}

#[test]
fn many_runs_are_queued_before_they_are_flushed_and_keep_their_order() {
    each_pair(|mut sender, mut receiver| {
        let to = receiver.address();
        for n in 0..200u8 {
            // A full socket, if it ever is, has room again once the receiver reads.
            let run = sender.driver.room().unwrap();
            run.extend_from_slice(&[n; 30]);
            sender.driver.commit(to, 10);
        }
        assert!(sender.driver.flush());
        let expected: Vec<_> = (0..200u8).flat_map(|n| [[n; 10]; 3]).collect();
        assert_eq!(receiver.payloads(600), expected);
    });
}

/// Sends a run and reads it a while later; its stamps, and the host's clock as it was sent and when it was there.
fn stamps(sender: &mut End, receiver: &mut End) -> (Vec<Stamp>, [u64; 2]) {
    let (mut stamps, mut datagrams) = (Vec::new(), 0);
    let sent_ns = unix_ns();
    sender.send(receiver.address(), b"onetwo", 3);
    let there_ns = unix_ns();
    std::thread::sleep(Duration::from_millis(5));
    while datagrams < 2 {
        let ready = receiver.driver.wait(Some(10 * SECOND_NS)).unwrap();
        assert!(ready.readable, "{datagrams} of 2");
        while receiver.driver.receive(|_, run| {
            datagrams += run.bytes.len() / run.segment_bytes;
            stamps.push(run.stamp);
        }) {}
    }
    (stamps, [sent_ns, there_ns])
}

#[test]
fn a_run_says_when_the_kernel_got_it_while_that_is_asked_for() {
    for address in LOOPBACK {
        for choice in choices() {
            println!("{} at {address}", choice.name());
            let open = |choice| {
                let config = DriverConfig {
                    choice,
                    ..DriverConfig::default()
                };
                End::try_open(&config, address).unwrap()
            };
            let (mut sender, mut receiver) = (open(Choice::Mmsg), open(choice));
            let (before, _) = stamps(&mut sender, &mut receiver);
            assert!(before.iter().all(|s| *s == Stamp::Untold), "{before:?}");
            receiver.driver.set_stamped(true);
            // What comes before the kernel has begun to note it is stamped as it is read.
            let give_up = Instant::now() + Duration::from_secs(60);
            loop {
                let (stamps, [sent_ns, there_ns]) = stamps(&mut sender, &mut receiver);
                let is_then = |stamp: &Stamp| matches!(stamp, Stamp::At(ns) if (sent_ns..=there_ns).contains(ns));
                if stamps.iter().all(is_then) {
                    break;
                }
                assert!(
                    Instant::now() < give_up,
                    "{stamps:?} of {sent_ns} to {there_ns}"
                );
            }
            receiver.driver.set_stamped(false);
            let (after, _) = stamps(&mut sender, &mut receiver);
            assert!(after.iter().all(|s| *s == Stamp::Untold), "{after:?}");
        }
    }
}

#[test]
fn what_is_empty_is_not_sent_and_an_empty_datagram_is_a_run_of_none() {
    each(|mut end| {
        let to = end.address();
        end.driver.room().unwrap().clear();
        end.driver.commit(to, 10);
        assert!(end.driver.flush());
        let other = UdpSocket::bind(LOOPBACK[0]).unwrap();
        other.send_to(&[], to).unwrap();
        other.send_to(b"x", to).unwrap();
        assert_eq!(end.payloads(1), [b"x"]);
        assert_eq!(end.driver.received().datagrams, 2);
        assert_eq!(end.driver.sent().datagrams, 0);
    });
}

#[test]
fn what_is_received_can_be_sent_on_at_once() {
    each_pair(|mut relay, mut receiver| {
        let mut sender = End::open(Choice::Mmsg);
        let to = receiver.address();
        sender.send(relay.address(), b"onetwo", 3);
        let mut relayed = 0;
        while relayed < 2 {
            assert!(relay.driver.wait(Some(10 * SECOND_NS)).unwrap().readable);
            while relay.driver.receive(|outlet, run| {
                relayed += run.bytes.len() / run.segment_bytes;
                assert_eq!(outlet.send(to, run.bytes, run.segment_bytes), Sent::Done);
            }) {}
            assert!(relay.driver.flush());
        }
        assert_eq!(receiver.payloads(2), [b"one", b"two"]);
        assert_eq!(relay.driver.sent().datagrams, 2);
    });
}

#[test]
fn a_driver_that_does_not_read_loses_nothing_that_its_socket_holds() {
    each(|mut end| {
        let to = end.address();
        let other = UdpSocket::bind(LOOPBACK[0]).unwrap();
        // More than a driver has buffers for, less than a socket holds.
        for n in 0..150u8 {
            other.send_to(&[n; 100], to).unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
        let expected: Vec<_> = (0..150u8).map(|n| [n; 100]).collect();
        assert_eq!(end.payloads(150), expected);
        if end.driver.name() == "uring" {
            assert!(end.figure("buffers_exhausted") > 0, "{:?}", end.driver);
            assert!(end.figure("receives_armed") > 1);
        }
    });
}

#[test]
fn what_the_sockets_buffer_has_no_room_for_is_counted() {
    each(|mut end| {
        let to = end.address();
        let other = UdpSocket::bind(LOOPBACK[0]).unwrap();
        assert_eq!(end.figure("socket_lost"), 0);
        assert_eq!(end.driver.socket().unwrap().queued_bytes(), [0, 0]);
        // Four times what a socket holds at most.
        for _ in 0..4_000 {
            other.send_to(&[0; 8_000], to).unwrap();
        }
        let lost = end.figure("socket_lost");
        assert!(lost > 0, "{}", end.driver.name());
        let kept = usize::try_from(4_000 - lost).unwrap();
        // io_uring has taken the first ones into its own buffers.
        let [queued_bytes, _] = end.driver.socket().unwrap().queued_bytes();
        assert!(queued_bytes > 1_000_000, "{queued_bytes}");
        assert_eq!(end.payloads(kept).len(), kept);
    });
}

#[test]
fn too_large_a_datagram_is_counted_and_the_rest_still_travels() {
    each_pair(|mut sender, mut receiver| {
        let to = receiver.address();
        sender.send(to, &[0; 65_530], 65_530);
        sender.send(to, b"small", 5);
        assert_eq!(receiver.payloads(1), [b"small"]);
        assert_eq!(errors(sender.driver.sent(), ErrorKind::TooBig), 1);
    });
}

#[test]
fn a_run_that_cannot_be_segmented_goes_one_by_one() {
    each_pair(|mut sender, mut receiver| {
        // More segments than one send takes.
        let run: Vec<u8> = (0..200u8).flat_map(|n| [n; 2]).collect();
        sender.send(receiver.address(), &run, 2);
        let expected: Vec<_> = (0..200u8).map(|n| [n; 2]).collect();
        assert_eq!(receiver.payloads(200), expected);
        assert_eq!(sender.driver.sent().datagrams, 200);
        // The next run is segmented again.
        let batches = sender.driver.sent().batches;
        sender.send(receiver.address(), b"onetwo", 3);
        assert_eq!(receiver.payloads(2), [b"one", b"two"]);
        assert_eq!(sender.driver.sent().batches, batches + 1);
    });
}

#[test]
fn a_closed_port_stops_nothing() {
    each(|mut end| {
        let gone = UdpSocket::bind(LOOPBACK[0]).unwrap().local_addr().unwrap();
        for _ in 0..40 {
            end.send(gone, b"x", 1);
            assert!(!end.driver.receive(|_, run| panic!("{run:?}")));
        }
        let own = end.address();
        end.send(own, b"y", 1);
        assert_eq!(end.payloads(1), [b"y"]);
    });
}

#[test]
fn an_unroutable_address_is_an_error_of_that_datagram_alone() {
    each_pair(|mut sender, mut receiver| {
        sender.send("[2001:db8::1]:9".parse().unwrap(), b"x", 1);
        sender.send(receiver.address(), b"z", 1);
        assert_eq!(receiver.payloads(1), [b"z"]);
        assert_eq!(all_errors(sender.driver.sent()), 1);
        assert_eq!(sender.driver.sent().datagrams, 1);
    });
}

#[test]
fn a_ring_ends_a_wait_and_is_forgotten_with_it() {
    each(|mut end| {
        for _ in 0..3 {
            end.wake.ring();
            end.wake.ring();
            assert!(end.driver.wait(None).unwrap().woken);
            assert_eq!(end.driver.wait(Some(0)).unwrap(), Ready::default());
        }
        let wake = Arc::clone(&end.wake);
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            wake.ring();
        });
        assert!(end.driver.wait(None).unwrap().woken);
        thread.join().unwrap();
        assert_eq!(end.driver.wait(Some(0)).unwrap(), Ready::default());
    });
}

#[test]
fn a_wait_ends_with_its_time_and_not_before() {
    each(|mut end| {
        let begun = Instant::now();
        assert_eq!(end.driver.wait(Some(30_000_000)).unwrap(), Ready::default());
        assert!(begun.elapsed() >= Duration::from_millis(30));
        assert_eq!(end.driver.wait(Some(0)).unwrap(), Ready::default());
        assert!(begun.elapsed() < Duration::from_secs(10));
    });
}

#[test]
fn a_batching_wait_takes_what_comes_and_is_not_late_for_one() {
    for choice in choices() {
        let config = DriverConfig {
            choice,
            batching: Some(Batching {
                completions: 8,
                within_us: 20_000,
            }),
            ..DriverConfig::default()
        };
        let mut end = End::try_open(&config, LOOPBACK[0]).unwrap();
        let is_told = end.driver.why().contains("8 completions, or 20000 µs");
        assert_eq!(is_told, end.driver.name() == "uring");
        let to = end.address();
        let other = UdpSocket::bind(LOOPBACK[0]).unwrap();
        let begun = Instant::now();
        other.send_to(b"x", to).unwrap();
        assert_eq!(end.payloads(1), [b"x"]);
        // One that waits for more ends with its time.
        assert!(begun.elapsed() < Duration::from_secs(9));
        // Within the time, and after it.
        assert_eq!(end.driver.wait(Some(1_000_000)).unwrap(), Ready::default());
        assert_eq!(end.driver.wait(Some(40_000_000)).unwrap(), Ready::default());
        end.wake.ring();
        assert!(end.driver.wait(None).unwrap().woken);
    }
}

#[test]
fn busy_polling_says_what_became_of_it() {
    for choice in choices() {
        let config = DriverConfig {
            choice,
            busy_poll_us: Some(20),
            ..DriverConfig::default()
        };
        let mut end = End::try_open(&config, LOOPBACK[0]).unwrap();
        let why = end.driver.why().to_owned();
        let by_socket = why.contains("(SO_BUSY_POLL = 20 µs)");
        assert_eq!(
            end.driver.socket().unwrap().busy_poll_us() == 20,
            by_socket,
            "{why}"
        );
        let by_ring = why.contains("waits poll the NIC for 20 µs");
        assert!(by_socket || by_ring || why.contains("refused"), "{why}");
        // Only a ring polls while it waits, whatever the system's own setting is.
        assert!(!by_ring || end.driver.name() == "uring", "{why}");
        let to = end.address();
        end.send(to, b"x", 1);
        assert_eq!(end.payloads(1), [b"x"]);
    }
}

#[test]
fn the_kernel_took_the_options_that_forbid_fragments() {
    each(|end| assert!(end.driver.socket().unwrap().forbids_fragments()));
}

#[test]
fn the_address_is_free_once_the_driver_is_gone() {
    each(|mut end| {
        let (own, choice) = (end.address(), end.driver.name());
        end.send(own, b"unread", 6);
        drop(end);
        let again = UdpSocket::bind(own);
        assert!(again.is_ok(), "{choice}: {again:?}");
    });
}
