//! Sessions: how they come about, what keeps strangers out, how they end.

use super::sim::{MS, SECOND, Sim, Weather, config, entity_key, node_key, peer, source, spec};
use crate::{
    CloseReason, ConfigError, DropReason, Event, Handled, Mode, Node, NodeLimits, PeerConfig,
    SessionState,
};
use virga_ebpf::{
    header::{Header, SessionId},
    limits::HEADER_BYTES,
};

fn limits() -> NodeLimits {
    NodeLimits::default()
}

fn header_of(datagram: &[u8]) -> Header {
    Header::decode(datagram[..HEADER_BYTES].try_into().unwrap())
}

/// A pair whose second node was configured otherwise.
fn unlike(change: impl Fn(&mut crate::NodeConfig)) -> Sim {
    let mut sim = Sim::new(1, 2, &limits(), Weather::CALM);
    let mut other = config(1, 2, 1, &limits());
    change(&mut other);
    sim.nodes[1] = Node::new(other, 0).unwrap();
    sim.ids[1] = sim.nodes[1].id();
    sim
}

fn connect_in_vain(sim: &mut Sim) {
    let id = sim.ids[1];
    sim.nodes[0].connect(0, id).unwrap();
    sim.run(30 * SECOND);
    assert!(!sim.is_connected(0, 1) && !sim.is_connected(1, 0));
    assert!(sim.told[1].is_empty());
}

#[test]
fn both_ends_learn_of_the_proven_entity() {
    let mut sim = Sim::new(1, 2, &limits(), Weather::CALM);
    let id = sim.ids[1];
    sim.nodes[0].connect(0, id).unwrap();
    sim.nodes[0].connect(0, id).unwrap();
    sim.run(SECOND);
    for (at, other) in [(0, 1u8), (1, 0u8)] {
        let peer_id = sim.ids[usize::from(other)];
        let entity = peer(other).entity_key;
        assert_eq!(
            sim.told[at],
            [Event::Connected {
                peer: peer_id,
                entity
            }]
        );
        assert_eq!(sim.nodes[at].counters().dropped_total(), 0);
        assert_eq!(sim.nodes[at].sessions().count(), 1, "nothing is left over");
    }
    assert_eq!(sim.nodes[0].counters().initiations_sent, 1);
}

#[test]
fn a_relay_sees_headers_and_forwards_a_handshake() {
    let mut sim = Sim::new(1, 3, &limits(), Weather::CALM);
    sim.keep_wire = true;
    sim.connect(0, 2);
    let stream = sim.open(0, 2, &spec("secret", Mode::Ordered));
    sim.send(0, 2, stream, b"the word is mesh").unwrap();
    sim.run(SECOND);
    assert_eq!(sim.messages(2), [b"the word is mesh"]);
    for (from, datagram) in sim.wire.clone() {
        let header = header_of(&datagram);
        assert_eq!(
            header.destination,
            sim.ids[2 - from],
            "all that a relay needs"
        );
        assert_eq!(header.origin_hash, sim.nodes[from].origin());
        assert!(!datagram.windows(8).any(|w| w == b"the word"));
        assert!(!datagram.windows(6).any(|w| w == b"secret"), "the channel");
        // A relay changes these three; nobody else may.
        let mut relayed = datagram.clone();
        relayed[5] -= 1;
        relayed[6] += 1;
        relayed[56..64].fill(7);
        let handled = sim.give(1, &relayed);
        assert_eq!(handled, Handled::Dropped(DropReason::NotForUs));
    }
}

#[test]
fn what_a_relay_changes_is_accepted() {
    let mut sim = Sim::new(1, 2, &limits(), Weather::CALM);
    let id = sim.ids[1];
    sim.nodes[0].connect(0, id).unwrap();
    for _ in 0..6 {
        let (mut buf, now_ns) = (Vec::new(), sim.now_ns);
        for at in 0..2 {
            while let Some(run) = sim.nodes[at].poll_transmit(now_ns, &mut buf) {
                assert_eq!(run.bytes, run.segment_bytes);
                buf[5] -= 3;
                buf[6] += 3;
                buf[60] = 1;
                let handled = sim.nodes[1 - at].handle(now_ns, source(2), &mut buf);
                assert_eq!(handled, Handled::Accepted);
                buf.clear();
            }
        }
        sim.now_ns += MS;
    }
    assert!(sim.is_connected(0, 1) && sim.is_connected(1, 0));
}

#[test]
fn another_network_key_is_no_member() {
    let mut sim = unlike(|c| c.psk = [8; 32]);
    connect_in_vain(&mut sim);
    assert!(sim.dropped(1, DropReason::HandshakeTag) > 0);
}

#[test]
fn another_network_is_refused_by_noise() {
    let mut sim = unlike(|c| c.network_id = "other".into());
    connect_in_vain(&mut sim);
    assert!(sim.dropped(1, DropReason::HandshakeNoise) > 0);
}

#[test]
fn another_key_generation_is_refused() {
    let mut sim = unlike(|c| c.psk_generation = 2);
    connect_in_vain(&mut sim);
    assert!(sim.dropped(1, DropReason::HandshakePskGeneration) > 0);
}

#[test]
fn an_unknown_peer_is_refused() {
    let mut sim = unlike(|c| c.peers.clear());
    connect_in_vain(&mut sim);
    assert!(sim.dropped(1, DropReason::HandshakePeer) > 0);
}

/// The header claims the configured entity, but the proof cannot be made without its key.
#[test]
fn another_entity_cannot_prove_itself() {
    let mut sim = unlike(|c| c.entity_key = [55; 32]);
    let id = sim.ids[0];
    sim.nodes[1].connect(0, id).unwrap();
    sim.run(SECOND);
    assert!(
        sim.dropped(0, DropReason::HandshakePeer) > 0,
        "the origin already tells"
    );

    // A responder that lies about its origin is found out by its proof: here node 0 expects
    // another entity key than node 1 has, with the origin made to agree by hand.
    let mut sim = Sim::new(1, 2, &limits(), Weather::CALM);
    let mut forged = config(0, 2, 1, &limits());
    forged.peers = vec![PeerConfig {
        entity_key: peer(9).entity_key,
        ..peer(1)
    }];
    sim.nodes[0] = Node::new(forged, 0).unwrap();
    let id = sim.ids[1];
    let lie = virga_ebpf::hash::origin_hash(&peer(9).entity_key);
    sim.nodes[0].connect(0, id).unwrap();
    sim.nodes[1].lie_about_origin(lie);
    sim.run(5 * SECOND);
    assert!(sim.dropped(0, DropReason::Proof) > 0);
    assert!(sim.closed(0).contains(&CloseReason::Entity));
    assert!(!sim.is_connected(0, 1) && !sim.is_connected(1, 0));
}

#[test]
fn a_replayed_packet_and_a_reused_sequence_are_dropped() {
    let mut sim = Sim::pair(&limits());
    sim.keep_wire = true;
    let stream = sim.open(0, 1, &spec("log", Mode::Ordered));
    sim.send(0, 1, stream, b"once").unwrap();
    sim.run(50 * MS);
    let (_, captured) = sim
        .wire
        .iter()
        .find(|(from, d)| *from == 0 && header_of(d).stream_id == stream)
        .unwrap();
    let captured = captured.clone();
    assert_eq!(
        sim.give(1, &captured),
        Handled::Dropped(DropReason::Replayed)
    );
    let mut reused = captured.clone();
    *reused.last_mut().unwrap() ^= 1;
    assert_eq!(sim.give(1, &reused), Handled::Dropped(DropReason::Replayed));
    for _ in 0..5_000 {
        sim.send(0, 1, stream, &[0; 1_000]).unwrap();
        sim.run(MS / 4);
    }
    sim.run(5 * SECOND);
    assert_eq!(sim.give(1, &captured), Handled::Dropped(DropReason::TooOld));
    assert_eq!(sim.messages(1).len(), 5_001);
}

#[test]
fn a_replayed_initiation_changes_nothing() {
    let mut sim = Sim::new(1, 2, &limits(), Weather::CALM);
    sim.keep_wire = true;
    sim.connect(0, 1);
    let initiation = sim.wire[0].1.clone();
    let before = sim.nodes[1].sessions().next().unwrap().session;
    assert_eq!(
        sim.give(1, &initiation),
        Handled::Dropped(DropReason::HandshakeReplayed)
    );
    // To a restarted node it is new: a half-open session comes of it, and goes.
    sim.nodes[1] = Node::new(config(1, 2, 77, &limits()), sim.now_ns).unwrap();
    assert_eq!(sim.give(1, &initiation), Handled::Accepted);
    let repeated = Handled::Dropped(DropReason::HandshakeRepeated);
    assert_eq!(sim.give(1, &initiation), repeated);
    sim.now_ns += limits().handshake_retry_ns / 2;
    assert_eq!(
        sim.give(1, &initiation),
        Handled::Accepted,
        "it is answered alike"
    );
    assert_eq!(sim.give(1, &initiation), repeated);
    assert_eq!(sim.nodes[1].sessions().count(), 1);
    assert_ne!(sim.nodes[1].sessions().next().unwrap().session, before);
}

/// A captured initiation, replayed while the session lives, does not displace it.
#[test]
fn an_unconfirmed_handshake_displaces_nothing() {
    let mut sim = Sim::new(1, 2, &limits(), Weather::CALM);
    sim.keep_wire = true;
    let id = sim.ids[1];
    sim.nodes[0].connect(0, id).unwrap();
    sim.network.is_cut = true;
    sim.transmit();
    let first = sim.wire[0].1.clone();
    // The node starts anew, with other keys; its first initiation was never answered.
    sim.nodes[0] = Node::new(config(0, 2, 5, &limits()), 0).unwrap();
    sim.network.is_cut = false;
    sim.connect(0, 1);
    let stream = sim.open(0, 1, &spec("log", Mode::Ordered));
    let stale = Handled::Dropped(DropReason::HandshakeStale);
    assert_eq!(sim.give(1, &first), stale, "older than what was proven");
    // One that the node's next start made, and that could be new.
    let mut next = Node::new(config(0, 2, 1 << 60, &limits()), 0).unwrap();
    next.connect(0, id).unwrap();
    let mut newer = Vec::new();
    let _ = next.poll_transmit(0, &mut newer).unwrap();
    assert_eq!(sim.give(1, &newer), Handled::Accepted);
    assert_eq!(sim.nodes[1].sessions().count(), 2);
    sim.send(0, 1, stream, b"still here").unwrap();
    sim.run(60 * SECOND);
    assert_eq!(sim.messages(1), [b"still here"]);
    assert_eq!(
        sim.nodes[1].sessions().count(),
        1,
        "the half-open one is gone"
    );
    assert!(sim.closed(1).is_empty());
}

/// Its initiations look like replays: a cookie shows that they are not.
#[test]
fn a_peer_whose_clock_went_back_is_let_in() {
    let mut sim = Sim::new(1 << 60, 2, &limits(), Weather::CALM);
    sim.connect(0, 1);
    sim.nodes[0] = Node::new(config(0, 2, 1, &limits()), sim.now_ns).unwrap();
    sim.connect(0, 1);
    assert_eq!(sim.dropped(1, DropReason::HandshakeStale), 1);
    assert_eq!(sim.nodes[1].counters().cookies_sent, 1);
    assert_eq!(sim.nodes[1].counters().resets_sent, 0);
}

#[test]
fn both_start_at_once_and_one_session_stays() {
    for seed in 0..20 {
        let weather = Weather {
            jitter_ns: 20 * MS,
            ..Weather::CALM
        };
        let mut sim = Sim::new(seed, 2, &limits(), weather);
        for (from, to) in [(0, 1), (1, 0)] {
            let id = sim.ids[to];
            let now_ns = sim.now_ns;
            sim.nodes[from].connect(now_ns, id).unwrap();
            sim.run((seed % 5) * 4 * MS);
        }
        sim.run(30 * SECOND);
        assert!(
            sim.is_connected(0, 1) && sim.is_connected(1, 0),
            "seed {seed}"
        );
        for node in &sim.nodes {
            assert_eq!(node.sessions().count(), 1, "seed {seed}");
        }
        let stream = sim.open(1, 0, &spec("log", Mode::Ordered));
        sim.send(1, 0, stream, b"x").unwrap();
        sim.run(SECOND);
        assert_eq!(sim.messages(0), [b"x"], "seed {seed}");
    }
}

#[test]
fn a_lost_response_is_sent_again() {
    for seed in 0..30 {
        let mut sim = Sim::new(
            seed,
            2,
            &limits(),
            Weather {
                loss: 40,
                ..Weather::STORM
            },
        );
        let id = sim.ids[1];
        sim.nodes[0].connect(0, id).unwrap();
        let both = |s: &Sim| s.is_connected(0, 1) && s.is_connected(1, 0);
        assert!(sim.run_until(120 * SECOND, both), "seed {seed}");
    }
}

#[test]
fn an_absent_peer_is_tried_again_with_growing_pauses() {
    let mut sim = Sim::new(1, 2, &limits(), Weather::CALM);
    sim.network.is_cut = true;
    let id = sim.ids[1];
    sim.nodes[0].connect(0, id).unwrap();
    sim.run(600 * SECOND);
    let tries = sim.nodes[0].counters().initiations_sent;
    assert!(
        (40..300).contains(&tries),
        "{tries} initiations in ten minutes"
    );
    sim.network.is_cut = false;
    assert!(sim.run_until(60 * SECOND, |s| s.is_connected(0, 1)));
}

#[test]
fn an_idle_session_stays_and_a_dead_one_goes() {
    let mut sim = Sim::pair(&limits());
    sim.run(600 * SECOND);
    assert!(sim.is_connected(0, 1) && sim.closed(0).is_empty());
    let packets = sim.nodes[0].sessions().next().unwrap().sent_packets;
    assert!(
        packets < 500,
        "{packets} packets to keep it alive ten minutes"
    );
    sim.network.is_cut = true;
    sim.run(60 * SECOND);
    assert_eq!(
        (sim.closed(0), sim.closed(1)),
        (vec![CloseReason::Idle], vec![CloseReason::Idle])
    );
    sim.network.is_cut = false;
    assert!(sim.run_until(60 * SECOND, |s| s.is_connected(0, 1)
        && s.is_connected(1, 0)));
}

#[test]
fn close_is_told_drains_and_leaves_nothing() {
    let mut sim = Sim::pair(&limits());
    let stream = sim.open(1, 0, &spec("log", Mode::Ordered));
    sim.send(1, 0, stream, b"late").unwrap();
    let (now_ns, id) = (sim.now_ns, sim.ids[1]);
    sim.nodes[0].close(now_ns, id);
    sim.keep_wire = true;
    sim.run(100 * MS);
    assert_eq!(
        (sim.closed(0), sim.closed(1)),
        (vec![CloseReason::Local], vec![CloseReason::Peer])
    );
    assert!(
        sim.nodes[0]
            .sessions()
            .all(|s| s.state == SessionState::Draining)
    );
    let (_, close) = sim.wire.iter().find(|(from, _)| *from == 0).unwrap();
    assert_eq!(header_of(close).flags.0 & 0b1010, 0b1010, "control and fin");
    assert!(sim.dropped(0, DropReason::Draining) > 0);
    sim.run(60 * SECOND);
    for node in &sim.nodes {
        assert_eq!(node.sessions().count(), 0);
        assert_eq!(node.poll_timeout(), None, "no timer is left");
    }
    sim.connect(0, 1);
}

#[test]
fn a_restarted_peer_is_recognised_at_once() {
    let mut sim = Sim::pair(&limits());
    sim.nodes[1] = Node::new(config(1, 2, 99, &limits()), sim.now_ns).unwrap();
    let stream = sim.open(0, 1, &spec("log", Mode::Ordered));
    sim.send(0, 1, stream, b"to the old one").unwrap();
    let start_ns = sim.now_ns;
    assert!(sim.run_until(SECOND, |s| s.is_connected(1, 0) && s.is_connected(0, 1)));
    assert!(
        sim.now_ns - start_ns < 60 * MS,
        "three round trips of 10 ms"
    );
    assert_eq!(sim.closed(0), [CloseReason::Reset]);
    assert_eq!(sim.nodes[0].counters().resets_received, 1);
    assert!(matches!(sim.told[0].back(), Some(Event::Connected { .. })));
}

/// Even when this end has nothing to say: the newcomer's initiation makes it ask.
#[test]
fn a_restarted_peer_that_connects_first_is_let_in_at_once() {
    for restarted in 0..2u8 {
        let at = usize::from(restarted);
        let mut sim = Sim::pair(&limits());
        sim.nodes[at] = Node::new(config(restarted, 2, 99, &limits()), sim.now_ns).unwrap();
        let (now_ns, id) = (sim.now_ns, sim.ids[1 - at]);
        sim.nodes[at].connect(now_ns, id).unwrap();
        sim.run(3 * SECOND);
        assert!(sim.is_connected(0, 1) && sim.is_connected(1, 0));
        let stream = sim.open(at, 1 - at, &spec("log", Mode::Ordered));
        sim.send(at, 1 - at, stream, b"back").unwrap();
        sim.run(SECOND);
        assert_eq!(sim.messages(1 - at), [b"back"], "node {restarted}");
    }
}

#[test]
fn a_forged_reset_does_nothing() {
    let mut sim = Sim::pair(&limits());
    sim.keep_wire = true;
    let old = Node::new(config(1, 2, 99, &limits()), sim.now_ns).unwrap();
    let alive = std::mem::replace(&mut sim.nodes[1], old);
    let stream = sim.open(0, 1, &spec("log", Mode::Ordered));
    sim.send(0, 1, stream, b"x").unwrap();
    sim.transmit();
    let packet = sim.wire[0].1.clone();
    sim.nodes[1] = alive;
    // A reset about another session, with that one's true token.
    let mut other = Node::new(config(1, 2, 98, &limits()), sim.now_ns).unwrap();
    let mut foreign = packet.clone();
    foreign[36] ^= 1;
    let _ = other.handle(sim.now_ns, source(0), &mut foreign);
    let mut reset = Vec::new();
    let _ = other.poll_transmit(sim.now_ns, &mut reset).unwrap();
    assert_eq!(
        sim.give(0, &reset),
        Handled::Dropped(DropReason::HandshakeUnasked)
    );
    // A member's reset about the right session with a made-up token.
    let made_up = other.forge_reset(sim.nodes[0].id(), header_of(&packet).session_id);
    assert_eq!(
        sim.give(0, &made_up),
        Handled::Dropped(DropReason::ResetToken)
    );
    reset[90] ^= 1;
    assert_eq!(
        sim.give(0, &reset),
        Handled::Dropped(DropReason::HandshakeTag)
    );
    sim.run(SECOND);
    assert_eq!(sim.messages(1), [b"x"]);
}

#[test]
fn unknown_sessions_are_answered_at_a_bounded_rate() {
    let mut sim = Sim::pair(&limits());
    let mut header = Header {
        destination: sim.ids[1],
        payload_len: 80,
        ..Header::default()
    };
    header.origin_hash = sim.nodes[0].origin();
    for n in 0..1_000u64 {
        header.session_id.0 = n << 8;
        let datagram = [&header.encode()[..], &[0; 80]].concat();
        assert_eq!(
            sim.give(1, &datagram),
            Handled::Dropped(DropReason::UnknownSession)
        );
    }
    let share = crate::limits::RESETS_PER_SECOND_PER_SOURCE;
    assert_eq!(sim.nodes[1].counters().resets_sent, share);
    // Other sources have theirs, and all together a bound.
    let mut datagram = [&header.encode()[..], &[0; 80]].concat();
    let _ = sim.nodes[1].handle(sim.now_ns, source(0), &mut datagram);
    assert_eq!(sim.nodes[1].counters().resets_sent, share + 1);
    for n in 0..100_000u32 {
        let from = (std::net::Ipv4Addr::from(n), 4783).into();
        let _ = sim.nodes[1].handle(sim.now_ns, from, &mut datagram);
    }
    assert_eq!(
        sim.nodes[1].counters().resets_sent,
        crate::limits::RESETS_PER_SECOND
    );
}

/// Who picks the worker by the session id that he makes up is answered no more often.
#[test]
fn four_workers_answer_unknown_sessions_no_more_often_than_one() {
    let mut resets = Vec::new();
    for workers in [1, 4] {
        let mut sent = 0;
        for share in crate::Share::split(workers) {
            let mut of_this = config(1, 2, 1, &limits());
            of_this.share = share;
            let mut node = Node::new(of_this, 0).unwrap();
            let mut header = Header {
                destination: node.id(),
                payload_len: 80,
                ..Header::default()
            };
            header.origin_hash = Sim::new(1, 2, &limits(), Weather::CALM).nodes[0].origin();
            for n in 0..20_000u32 {
                header.session_id = share.mark(SessionId(u64::from(n) << 8));
                let from = (std::net::Ipv4Addr::from(n), 4783).into();
                let mut datagram = [&header.encode()[..], &[0; 80]].concat();
                let _ = node.handle(0, from, &mut datagram);
            }
            sent += node.counters().resets_sent;
        }
        resets.push(sent);
    }
    assert_eq!(resets, [crate::limits::RESETS_PER_SECOND; 2]);
}

#[test]
fn under_load_a_cookie_is_asked_for_and_returned() {
    let limits = NodeLimits {
        handshakes_per_second: 0,
        ..limits()
    };
    let mut sim = Sim::new(1, 2, &limits, Weather::CALM);
    sim.connect(0, 1);
    assert_eq!(sim.dropped(1, DropReason::HandshakeCookie), 1);
    assert_eq!(sim.nodes[1].counters().cookies_sent, 1);
    assert_eq!(sim.nodes[0].counters().initiations_sent, 2);
}

#[test]
fn a_configuration_that_contradicts_itself_is_refused() {
    let fail = |change: &dyn Fn(&mut crate::NodeConfig)| {
        let mut config = config(0, 3, 1, &limits());
        change(&mut config);
        Node::new(config, 0).err()
    };
    assert_eq!(fail(&|_| {}), None);
    assert_eq!(
        fail(&|c| c.network_id.clear()),
        Some(ConfigError::NetworkId { bytes: 0 })
    );
    let own = peer(0).node_key.id();
    assert_eq!(
        fail(&|c| c.peers.push(peer(0))),
        Some(ConfigError::PeerIsSelf(own))
    );
    let twice = fail(&|c| c.peers.push(peer(1)));
    assert!(matches!(twice, Some(ConfigError::DuplicatePeer(_))));
    let endless = fail(&|c| c.limits.idle_ns_max = u64::MAX);
    assert!(matches!(endless, Some(ConfigError::Limit { .. })));
    let broken = fail(&|c| c.limits.keepalive_ns = c.limits.idle_ns_max);
    assert!(matches!(
        broken,
        Some(ConfigError::Limit {
            limit: "keepalive_ns",
            ..
        })
    ));
    assert_ne!(node_key(0), entity_key(0));
}
