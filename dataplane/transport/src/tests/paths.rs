//! What sessions make of their paths: goodput under loss and reordering, packet sizes.

use super::sim::{MS, SECOND, Sim, Weather, source, spec};
use crate::{
    Congestion, Event, Handled, Mode, NodeLimits, SendError, Toward, event::PathStatus, limits,
};
use std::net::SocketAddr;
use virga_ebpf::header::StreamId;

/// A round trip of 20 ms.
const PATH: Weather = Weather {
    latency_ns: 10 * MS,
    datagram_bytes: 1_452,
    ..Weather::CALM
};
const MESSAGE_BYTES: usize = 16 * 1024;

fn path(sim: &Sim, at: usize) -> PathStatus {
    sim.nodes[at].sessions().next().unwrap().path
}

/// Node 0 sends as much as it can for `for_ns`; gives what node 1 was told, in bytes.
fn pour(sim: &mut Sim, stream: StreamId, for_ns: u64) -> usize {
    let end_ns = sim.now_ns + for_ns;
    let message = vec![7; MESSAGE_BYTES];
    let mut told = 0;
    while sim.now_ns < end_ns {
        loop {
            match sim.send(0, 1, stream, &message) {
                Ok(()) => {}
                Err(SendError::Full) => break,
                Err(error) => panic!("{error}"),
            }
        }
        sim.step(end_ns);
        for event in sim.told[1].drain(..) {
            if let Event::Message { event, .. } = event {
                assert!(event == message);
                told += event.len();
            }
        }
        sim.told[0].clear();
    }
    told
}

/// Bytes a second over ten seconds, after two to find the rate.
fn goodput(weather: Weather, congestion: Congestion) -> (u64, PathStatus) {
    let limits = NodeLimits {
        congestion,
        ..NodeLimits::default()
    };
    let mut sim = Sim::new(5, 2, &limits, weather);
    sim.connect(0, 1);
    let stream = sim.open(0, 1, &spec("bulk", Mode::Ordered));
    pour(&mut sim, stream, 2 * SECOND);
    let bytes = pour(&mut sim, stream, 10 * SECOND) as u64;
    (bytes / 10, path(&sim, 0))
}

/// A link of 10 MB/s with a queue of one round trip.
const LINK: Weather = Weather {
    rate: 10_000_000,
    queue_bytes: 200_000,
    ..PATH
};

#[test]
fn a_link_is_filled_and_its_queue_is_not_the_bound() {
    for congestion in [Congestion::Cubic, Congestion::Bbr] {
        let (goodput, path) = goodput(LINK, congestion);
        eprintln!("{congestion:?}: {goodput} B/s, {path:?}");
        assert!(
            goodput > 8_500_000,
            "{congestion:?}: {goodput} B/s, {path:?}"
        );
        assert_eq!(path.datagram_bytes, 1_452);
    }
}

#[test]
fn one_loss_in_a_hundred_leaves_good_goodput() {
    let lossy = Weather { loss: 1, ..LINK };
    // Reno's law, in segments a round trip: sqrt(1.5 / 0.01) = 12.2; CUBIC does no worse (RFC 9438, 4.3).
    for (congestion, least) in [(Congestion::Cubic, 750_000), (Congestion::Bbr, 7_500_000)] {
        let (goodput, path) = goodput(lossy, congestion);
        eprintln!("{congestion:?}: {goodput} B/s, {path:?}");
        assert!(goodput > least, "{congestion:?}: {goodput} B/s, {path:?}");
    }
}

#[test]
fn one_in_twenty_overtaken_costs_no_collapse() {
    for late_ns in [2 * MS, 8 * MS, 20 * MS] {
        for congestion in [Congestion::Cubic, Congestion::Bbr] {
            let reordered = Weather {
                reordering: 5,
                late_ns,
                ..LINK
            };
            let (goodput, path) = goodput(reordered, congestion);
            eprintln!("{congestion:?}, {late_ns} ns late: {goodput} B/s, {path:?}");
            assert!(
                goodput > 7_500_000,
                "{congestion:?}: {goodput} B/s, {path:?}"
            );
        }
    }
}

#[test]
fn the_path_s_packet_size_is_found_and_followed_down_and_up() {
    // The first link takes more than the path does.
    let first = Weather {
        datagram_bytes: 9_000,
        ..PATH
    };
    let mut sim = Sim::new(3, 2, &NodeLimits::default(), first);
    sim.network.weather = PATH;
    sim.connect(0, 1);
    let stream = sim.open(0, 1, &spec("bulk", Mode::Ordered));
    pour(&mut sim, stream, SECOND);
    assert_eq!(path(&sim, 0).datagram_bytes, 1_452);
    assert_eq!(path(&sim, 1).datagram_bytes, limits::DATAGRAM_BYTES_MIN);
    assert_eq!(path(&sim, 0).lost_packets, 0, "a probe's loss is no loss");
    // A black hole: no message says so.
    sim.network.weather.datagram_bytes = 1_300;
    let told = pour(&mut sim, stream, 2 * SECOND);
    let found = path(&sim, 0).datagram_bytes;
    assert!((1_280..=1_300).contains(&found), "{found}");
    assert!(told > 1_000_000, "{told} bytes through a black hole");
    // Ten minutes later the path carries more.
    sim.network.weather.datagram_bytes = 5_000;
    sim.run(601 * SECOND);
    pour(&mut sim, stream, SECOND);
    let found = path(&sim, 0).datagram_bytes;
    assert!((4_900..=5_000).contains(&found), "{found}");
}

/// No packet of small messages is quite full; a larger one takes more of them all the same.
#[test]
fn small_unreliable_messages_find_the_path_s_packet_size() {
    let mut sim = Sim::new(3, 2, &NodeLimits::default(), PATH);
    sim.connect(0, 1);
    let stream = sim.open(0, 1, &spec("metrics", Mode::Unreliable));
    let mut sent = 0;
    let mut send = |sim: &mut Sim, many: usize| {
        for _ in 0..many {
            sim.send(0, 1, stream, &[7; 64]).unwrap();
        }
        sent += many;
        sim.run(SECOND);
        assert_eq!(sim.messages(1).len(), sent);
        path(sim, 0).datagram_bytes
    };
    for few in [1, 16] {
        let found = send(&mut sim, few);
        assert_eq!(found, limits::DATAGRAM_BYTES_MIN, "nothing to gain");
    }
    assert_eq!(send(&mut sim, 2_000), 1_452);
}

#[test]
fn on_loopback_the_largest_datagrams_travel() {
    let loopback = Weather {
        latency_ns: MS / 20,
        datagram_bytes: limits::DATAGRAM_BYTES_MAX,
        ..Weather::CALM
    };
    let mut sim = Sim::new(3, 2, &NodeLimits::default(), loopback);
    sim.connect(0, 1);
    let stream = sim.open(0, 1, &spec("bulk", Mode::Ordered));
    pour(&mut sim, stream, SECOND / 10);
    assert_eq!(path(&sim, 0).datagram_bytes, limits::DATAGRAM_BYTES_MAX);
    let largest = sim
        .runs
        .iter()
        .map(|&(_, segment_bytes)| segment_bytes)
        .max();
    assert_eq!(largest, Some(limits::DATAGRAM_BYTES_MAX));
}

/// An idle session, and one with a few small messages, has no use for larger packets.
#[test]
fn nothing_is_probed_without_need() {
    let mut sim = Sim::new(3, 2, &NodeLimits::default(), PATH);
    sim.connect(0, 1);
    let stream = sim.open(0, 1, &spec("small", Mode::Ordered));
    for _ in 0..100 {
        sim.send(0, 1, stream, b"small").unwrap();
        sim.run(100 * MS);
    }
    let largest = sim
        .runs
        .iter()
        .map(|&(_, segment_bytes)| segment_bytes)
        .max();
    assert!(largest < Some(500), "{largest:?}");
}

/// What this machine knows of its own link is not searched for.
#[test]
fn the_first_link_s_limit_is_kept_at_once() {
    let mut sim = Sim::new(3, 2, &NodeLimits::default(), PATH);
    sim.connect(0, 1);
    let peer = sim.ids[1];
    let stream = sim.open(0, 1, &spec("bulk", Mode::Ordered));
    pour(&mut sim, stream, SECOND);
    sim.nodes[0].limit_datagrams(peer, 1_333);
    sim.runs.clear();
    pour(&mut sim, stream, SECOND);
    let largest = sim
        .runs
        .iter()
        .map(|&(_, segment_bytes)| segment_bytes)
        .max();
    assert_eq!(largest, Some(1_333));
    assert_eq!(path(&sim, 0).datagram_bytes, 1_333);
}

/// New keys every 100,000 bytes, a hundred packets, or a tenth of a second: nobody waits for them.
#[test]
fn a_stream_under_load_does_not_pause_for_new_keys() {
    let plain = NodeLimits::default();
    let limits = [
        NodeLimits {
            rekey_after_bytes: 100_000,
            ..plain.clone()
        },
        NodeLimits {
            rekey_after_packets: 100,
            ..plain.clone()
        },
        NodeLimits {
            rekey_after_ns: SECOND / 10,
            ..plain
        },
    ];
    for (limits, epochs) in limits.into_iter().zip([60, 60, 20]) {
        let mut sim = Sim::new(7, 2, &limits, PATH);
        sim.connect(0, 1);
        let stream = sim.open(0, 1, &spec("bulk", Mode::Ordered));
        pour(&mut sim, stream, SECOND);
        for _ in 0..125 {
            // One round trip each.
            let told = pour(&mut sim, stream, 20 * MS);
            assert!(told >= 150_000, "{told} bytes in a round trip");
        }
        assert!(sim.epoch(0) > epochs, "{} epochs", sim.epoch(0));
        assert_eq!(path(&sim, 0).spurious_losses, 0);
    }
}

/// The peer's outer address changes in the middle of a stream: nothing is lost, and the path is new.
#[test]
fn a_peer_that_moves_is_followed() {
    let moved = SocketAddr::from(([10, 9, 9, 9], 40_000));
    for mover in 0..2 {
        let mut sim = Sim::new(7, 2, &NodeLimits::default(), LINK);
        sim.connect(0, 1);
        let stream = sim.open(0, 1, &spec("bulk", Mode::Ordered));
        pour(&mut sim, stream, SECOND);
        let before = path(&sim, 1 - mover);
        assert_eq!(before.address, Some(source(mover)));
        sim.addresses[mover] = moved;
        let told = pour(&mut sim, stream, 2 * SECOND);
        assert!(told > 5_000_000, "{told} bytes while node {mover} moved");
        assert_eq!(path(&sim, 1 - mover).address, Some(moved));
        assert_eq!(sim.next_hops[1 - mover][mover], moved);
        assert!(sim.closed(0).is_empty() && sim.closed(1).is_empty());
    }
}

/// New keys are made, and the answerer moves before it hears of them: it seals with those before, for longer than these
/// are kept otherwise, and is found by nothing but its packets.
#[test]
fn a_peer_that_moves_before_it_uses_new_keys_is_found_however_long_that_takes() {
    let moved = SocketAddr::from(([10, 9, 9, 9], 40_000));
    let limits = NodeLimits {
        rekey_after_ns: SECOND,
        ..NodeLimits::default()
    };
    let mut sim = Sim::new(7, 2, &limits, PATH);
    sim.connect(0, 1);
    let stream = sim.open(1, 0, &spec("log", Mode::Ordered));
    sim.send(1, 0, stream, b"before").unwrap();
    assert!(sim.run_until(5 * SECOND, |sim| sim.epoch(0) == 1));
    sim.network.parted.extend([(0, 1), (1, 0)]);
    sim.run(limits::PREVIOUS_EPOCH_NS + SECOND);
    assert_eq!((sim.epoch(0), sim.epoch(1)), (1, 0));
    sim.addresses[1] = moved;
    sim.network.parted.clear();
    sim.send(1, 0, stream, b"after").unwrap();
    assert!(sim.run_until(20 * SECOND, |sim| sim.next_hops[0][1] == moved));
    sim.run(SECOND);
    assert_eq!(sim.epoch(1), sim.epoch(0));
    let came = sim.told[0].iter().filter_map(|event| match event {
        Event::Message { event, .. } => Some(&event[..]),
        _ => None,
    });
    assert!(came.eq([&b"before"[..], b"after"]));
    assert!(sim.closed(0).is_empty() && sim.closed(1).is_empty());
}

/// Somebody sees a peer's packets, outruns each with a copy from his own address, and passes on what is
/// sent there: nothing goes his way while the peer is where it was, and all does once it is not.
#[test]
fn who_outruns_a_peer_s_packets_moves_nobody() {
    let copies = SocketAddr::from(([10, 6, 6, 6], 4783));
    let mut sim = Sim::new(7, 2, &NodeLimits::default(), LINK);
    sim.connect(0, 1);
    let stream = sim.open(0, 1, &spec("bulk", Mode::Ordered));
    pour(&mut sim, stream, SECOND);
    sim.addresses[0] = copies;
    sim.also = Some((source(0), 0));
    pour(&mut sim, stream, 10 * SECOND);
    assert_eq!(path(&sim, 1).address, Some(source(0)));
    assert_eq!(sim.next_hops[1][0], source(0));
    sim.also = None;
    pour(&mut sim, stream, 3 * SECOND);
    assert_eq!(sim.next_hops[1][0], copies);
    assert!(sim.closed(0).is_empty() && sim.closed(1).is_empty());
}

/// Captured packets from other addresses, sealed and newest: challenges, few of them, and nothing else.
#[test]
fn spoofed_sources_change_nothing() {
    let mut sim = Sim::new(7, 2, &NodeLimits::default(), PATH);
    sim.connect(0, 1);
    let stream = sim.open(0, 1, &spec("log", Mode::Ordered));
    sim.run(SECOND);
    sim.keep_wire = true;
    let mut received_bytes = 0;
    for n in 0..100u8 {
        sim.network.is_cut = true;
        sim.wire.clear();
        sim.send(0, 1, stream, b"x").unwrap();
        sim.transmit();
        sim.network.is_cut = false;
        // It arrives from elsewhere before it arrives from its sender.
        for (_, datagram) in std::mem::take(&mut sim.wire) {
            received_bytes += datagram.len();
            let from = SocketAddr::from(([172, 16, 0, n], 4783));
            let now_ns = sim.now_ns;
            let _ = sim.nodes[1].handle(now_ns, from, &mut datagram.clone());
        }
        sim.run(30 * MS);
    }
    sim.run(SECOND);
    assert_eq!(sim.messages(1).len(), 100);
    assert_eq!(path(&sim, 1).address, Some(source(0)));
    assert_eq!(sim.next_hops[1][0], source(0));
    let challenged: usize = sim.elsewhere_bytes;
    assert!(challenged > 0, "nobody was challenged");
    assert!(challenged <= 3 * received_bytes, "{challenged} bytes");
    assert!(challenged <= 100 * 100 / 2, "{challenged} bytes");
}

/// A silence takes the last acknowledgements with it; the next one lists what they did.
#[test]
fn what_came_before_a_silence_is_not_taken_for_lost_after_it() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let there = sim.open(0, 1, &spec("there", Mode::Ordered));
    let back = sim.open(1, 0, &spec("back", Mode::Ordered));
    sim.send(1, 0, back, b"so that there is something to give back")
        .unwrap();
    sim.send(0, 1, there, b"first").unwrap();
    sim.run(300 * MS);
    // Packets arrive, with sequences left out between them, and no acknowledgement gets back.
    sim.network.parted.insert((1, 0));
    let id = sim.ids[1];
    for n in 0..4 {
        sim.send(0, 1, there, &[n; 100]).unwrap();
        sim.run(2 * MS);
        sim.nodes[0].skip(id, 2);
    }
    sim.run(10 * MS);
    assert_eq!(sim.messages(1).len(), 5);
    sim.network.is_cut = true;
    sim.keep_wire = true;
    sim.run(4 * SECOND);
    let in_silence = sim.wire.iter().filter(|(from, _)| *from == 0).count() as u64;
    sim.network.is_cut = false;
    sim.network.parted.clear();
    sim.run(20 * SECOND);
    assert_eq!(sim.nodes[0].kept(id), (0, 0));
    let lost = path(&sim, 0).lost_packets;
    assert!(
        lost <= in_silence,
        "{lost} of {in_silence}: others had arrived"
    );
}

/// A probe finds whether packets pass between two addresses that the session does not use, and moves nobody.
#[test]
fn a_probed_address_is_told_when_the_peer_answers_from_there() {
    let mut sim = Sim::pair(&NodeLimits::default());
    sim.open(0, 1, &spec("c", Mode::Ordered));
    sim.run(SECOND);
    let (elsewhere, peer) = (SocketAddr::from(([172, 16, 0, 1], 4783)), sim.ids[1]);
    let now_ns = sim.now_ns;
    sim.nodes[0].probe(now_ns, peer, elsewhere);
    let mut buffer = Vec::new();
    let sent = sim.nodes[0].poll_transmit(now_ns, &mut buffer).unwrap();
    assert_eq!(sent.toward, Toward::Address(elsewhere));
    // It gets there from another address than the known one, and is answered to that one.
    let ours = SocketAddr::from(([172, 16, 0, 9], 4783));
    assert!(matches!(
        sim.nodes[1].handle(now_ns, ours, &mut buffer),
        Handled::Accepted
    ));
    let answer = loop {
        let mut buffer = Vec::new();
        let sent = sim.nodes[1].poll_transmit(now_ns, &mut buffer).unwrap();
        if sent.toward == Toward::Address(ours) && buffer.len() < 200 {
            break buffer;
        }
    };
    let _ = sim.nodes[0].handle(now_ns, elsewhere, &mut answer.clone());
    let mut told = Vec::new();
    while let Some(event) = sim.nodes[0].poll() {
        if let Event::Reached { peer, address } = event {
            told.push((peer, address));
        }
    }
    assert_eq!(told, [(peer, elsewhere)]);
    assert_eq!(path(&sim, 0).address, Some(source(1)), "nobody has moved");
}
