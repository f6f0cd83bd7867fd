//! Floods, worn keys, and random runs: nothing panics, nothing grows, data still flows.

use super::sim::{MS, SECOND, Sim, Weather, config, source, spec};
use crate::{
    CloseReason, DropReason, Handled, Mode, Node, NodeLimits, Pattern,
    handshake::{Initiator, Kind, Network, Other, Route, build},
    limits::COOKIES_PER_SECOND_PER_SOURCE,
    random::Generator,
};
use virga_ebpf::header::{Header, SessionId, Subnet};

fn limits() -> NodeLimits {
    NodeLimits::default()
}

#[test]
fn a_garbage_flood_is_counted_and_traffic_flows() {
    let mut sim = Sim::pair(&limits());
    sim.keep_wire = true;
    let stream = sim.open(0, 1, &spec("log", Mode::Ordered));
    sim.send(0, 1, stream, b"sample").unwrap();
    sim.run(50 * MS);
    let samples: Vec<Vec<u8>> = sim.wire.iter().map(|(_, bytes)| bytes.clone()).collect();
    let mut generator = Generator::new(&[3; 32], b"garbage");
    for n in 0..20_000u64 {
        let mut datagram = samples[usize::try_from(n).unwrap() % samples.len()].clone();
        let length = usize::try_from(generator.below(datagram.len() as u64)).unwrap();
        match n % 4 {
            0 => datagram.truncate(length),
            1 => datagram[length..].fill(0xff),
            2 => datagram[length] ^= 0x10,
            _ => datagram = generator.bytes_32().repeat(4),
        }
        if !samples.contains(&datagram) {
            let handled = sim.give(1, &datagram);
            let in_flight = n % 4 == 2 && matches!(length, 5 | 6 | 56..=63);
            assert!(
                in_flight || matches!(handled, Handled::Dropped(_)),
                "datagram {n}"
            );
        }
    }
    sim.send(0, 1, stream, b"still here").unwrap();
    sim.run(SECOND);
    assert_eq!(sim.messages(1).last().unwrap(), b"still here");
    let stopped = [DropReason::Forged, DropReason::Replayed].map(|r| sim.dropped(1, r));
    assert!(stopped[0] > 50 && stopped[1] > 1_000, "{stopped:?}");
}

/// Members' handshakes are the strongest flood: their tags are right. State stays bounded, and
/// the peer that comes by another way still gets in.
#[test]
fn a_million_half_open_handshakes_leave_bounded_state() {
    let few = NodeLimits {
        half_open_max: 64,
        handshakes_per_second: 100,
        ..limits()
    };
    let mut sim = Sim::new(1, 3, &few, Weather::CALM);
    let network = Network {
        id: "test".into(),
        psk: [9; 32],
        psk_generation: 1,
    };
    let victim = sim.ids[1];
    let route = Route {
        sender: sim.ids[0],
        origin: sim.nodes[0].origin(),
        subnet: Subnet(0),
        receiver: victim,
    };
    let other = Other {
        id: victim,
        key: super::sim::peer(1).node_key.known(),
        policy: config(0, 2, 1, &limits()).handshake,
    };
    let mut generator = Generator::new(&[4; 32], b"flood");
    let session = SessionId(0x100);
    let (own, key) = ((route.sender, session), super::sim::node_key(0));
    let started = Initiator::start(&network, &mut generator, &key, own, &other, 5);
    let body = started.unwrap().body().to_vec();
    let flood = 1_000_000u64;
    for n in 0..flood {
        let session = SessionId(n << 8 | 0x1_0000_0000);
        let none = [0; 16];
        let mut bytes = build(
            &network,
            (Kind::Initiation, Pattern::Nk),
            &route,
            SessionId(0),
            session,
            &body,
            &none,
        );
        let _ = sim.nodes[1].handle(sim.now_ns, source(0), &mut bytes);
        sim.now_ns += MS / 100;
    }
    assert!(sim.nodes[1].sessions().count() <= few.half_open_max);
    let cookies = sim.dropped(1, DropReason::HandshakeCookie);
    let per_second = COOKIES_PER_SECOND_PER_SOURCE;
    assert!(
        (per_second..=per_second * 11).contains(&cookies),
        "{cookies}"
    );
    assert!(sim.dropped(1, DropReason::HandshakeRate) > flood / 2);
    assert!(sim.nodes[1].counters().outbox_full > 0);
    let mut sent = Vec::new();
    while sim.nodes[1].poll_transmit(sim.now_ns, &mut sent).is_some() {}
    assert!(
        sent.len() < 256 * 200,
        "no more than the outbox is answered"
    );
    sim.connect(2, 1);
}

/// Real initiations (each costs a DH) beyond the bound push out those of the same source only.
#[test]
fn half_open_sessions_give_way_to_other_sources() {
    let mut sim = Sim::new(1, 2, &limits(), Weather::CALM);
    sim.keep_wire = true;
    let id = sim.ids[1];
    let mut initiations = Vec::new();
    for seed in 0..40 {
        sim.nodes[0] = Node::new(config(0, 2, seed, &limits()), 0).unwrap();
        sim.nodes[0].connect(0, id).unwrap();
        sim.transmit();
        initiations.push(sim.wire.pop().unwrap().1);
    }
    let calm = initiations.pop().unwrap();
    assert_eq!(
        sim.nodes[1].handle(0, source(7), &mut calm.clone()),
        Handled::Accepted
    );
    let kept = sim.nodes[1].sessions().next().unwrap().session;
    for mut bytes in initiations {
        let _ = sim.nodes[1].handle(0, source(8), &mut bytes);
        assert!(sim.nodes[1].sessions().count() <= 4);
    }
    assert!(
        sim.nodes[1].sessions().any(|s| s.session == kept),
        "the calm source's stays"
    );
    assert!(sim.nodes[1].counters().half_open_evicted > 30);
}

#[test]
fn keys_change_under_loss_in_both_directions_and_no_data_is_lost() {
    for worn in 0..2 {
        let quick = NodeLimits {
            rekey_after_packets: 40,
            ..limits()
        };
        let mut sim = Sim::new(11, 2, &limits(), Weather::STORM);
        sim.nodes[worn] = Node::new(config(u8::try_from(worn).unwrap(), 2, 11, &quick), 0).unwrap();
        sim.connect(0, 1);
        let there = sim.open(0, 1, &spec("log", Mode::Ordered));
        let back = sim.open(1, 0, &spec("log", Mode::Ordered));
        let sent: Vec<Vec<u8>> = (0..600u32).map(|n| n.to_be_bytes().repeat(50)).collect();
        for bytes in &sent {
            sim.send(0, 1, there, bytes).unwrap();
            sim.send(1, 0, back, bytes).unwrap();
            sim.run(5 * MS);
        }
        let done = sim.run_until(120 * SECOND, |s| {
            s.messages(0).len() == sent.len() && s.messages(1).len() == sent.len()
        });
        assert!(done, "node {worn} wears its keys");
        assert_eq!((sim.messages(0), sim.messages(1)), (sent.clone(), sent));
        assert!(sim.epoch(0) >= 3, "node {worn}: {} epochs", sim.epoch(0));
        assert!(sim.epoch(0).abs_diff(sim.epoch(1)) <= 1);
        assert!(sim.closed(0).is_empty() && sim.closed(1).is_empty());
    }
}

#[test]
fn keys_change_with_time_and_the_phase_wraps() {
    let quick = NodeLimits {
        rekey_after_ns: SECOND,
        ..limits()
    };
    let mut sim = Sim::pair(&quick);
    let stream = sim.open(0, 1, &spec("log", Mode::Ordered));
    for n in 0..300u32 {
        sim.send(0, 1, stream, &n.to_be_bytes()).unwrap();
        sim.run(SECOND);
    }
    assert!(
        sim.epoch(0) > 256 && sim.epoch(0) == sim.epoch(1),
        "{}",
        sim.epoch(0)
    );
    assert_eq!(sim.messages(1).len(), 300);
    assert_eq!(sim.nodes[1].counters().dropped_total(), 0);
}

#[test]
fn an_old_epoch_is_refused_before_the_seal() {
    let mut sim = Sim::pair(&NodeLimits {
        rekey_after_ns: SECOND,
        ..limits()
    });
    sim.keep_wire = true;
    let stream = sim.open(0, 1, &spec("log", Mode::Ordered));
    sim.send(0, 1, stream, b"x").unwrap();
    sim.run(50 * MS);
    let old = sim.wire[0].1.clone();
    sim.run(10 * SECOND);
    assert_eq!(sim.give(1, &old), Handled::Dropped(DropReason::KeyPhase));
}

#[test]
fn failed_opens_change_the_keys_and_then_end_the_session() {
    let strict = NodeLimits {
        failed_opens_rekey: 10,
        failed_opens_close: 100,
        ..limits()
    };
    let mut sim = Sim::pair(&strict);
    sim.keep_wire = true;
    let stream = sim.open(0, 1, &spec("log", Mode::Ordered));
    let forge = |sim: &mut Sim, times: u64| {
        sim.send(0, 1, stream, b"x").unwrap();
        sim.transmit();
        let (_, mut forged) = sim
            .wire
            .iter()
            .rfind(|(from, _)| *from == 0)
            .unwrap()
            .clone();
        let header = Header::decode(forged[..64].try_into().unwrap());
        for n in 1..=times {
            forged[48..56].copy_from_slice(&(header.sequence + 500 + n).to_be_bytes());
            let _ = sim.give(1, &forged);
        }
    };
    forge(&mut sim, 10);
    sim.run(SECOND);
    assert_eq!(
        (sim.epoch(0), sim.epoch(1)),
        (1, 1),
        "the responder asked for new keys"
    );
    forge(&mut sim, 100);
    sim.run(100 * MS);
    assert_eq!(sim.closed(1), [CloseReason::Exhausted]);
    assert!(
        sim.run_until(60 * SECOND, |s| s.is_connected(0, 1)),
        "and a new session comes"
    );
}

#[test]
fn a_session_ends_before_its_sequences_do() {
    let few = NodeLimits {
        sequence_max: 200,
        ..limits()
    };
    let mut sim = Sim::pair(&few);
    sim.keep_wire = true;
    let stream = sim.open(0, 1, &spec("metrics", Mode::Unreliable));
    for _ in 0..400 {
        let _ = sim.send(0, 1, stream, b"x");
        sim.run(MS);
    }
    assert_eq!(sim.closed(0)[0], CloseReason::Exhausted);
    let sequences = sim
        .wire
        .iter()
        .map(|(_, d)| Header::decode(d[..64].try_into().unwrap()));
    assert!(sequences.map(|h| h.sequence).max().unwrap() <= 201);
}
