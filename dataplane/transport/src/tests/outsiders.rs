//! What somebody without the network's key can bring about, with packets seen and made up.

use super::sim::{MS, SECOND, Sim, Weather, config, source, spec};
use crate::{
    CloseReason, DropReason, Event, Handled, Mode, Node, NodeLimits, Pattern,
    handshake::{Kind, Network, RESET_BYTES, Route, build},
};
use virga_ebpf::{
    header::{Flags, Header, SessionId, Subnet},
    limits::HEADER_BYTES,
};

fn limits() -> NodeLimits {
    NodeLimits::default()
}

/// The sender's session id in a handshake message.
fn session_of(handshake: &[u8]) -> SessionId {
    SessionId(u64::from_be_bytes(handshake[76..84].try_into().unwrap()))
}

/// A packet of `bytes` that claims to be of node `from`'s session with node `to`.
fn probe(sim: &Sim, from: usize, to: usize, session: SessionId, bytes: usize) -> Vec<u8> {
    let header = Header {
        destination: sim.ids[to],
        origin_hash: sim.nodes[from].origin(),
        session_id: session,
        payload_len: u16::try_from(bytes - HEADER_BYTES).unwrap(),
        ..Header::default()
    };
    let mut datagram = header.encode().to_vec();
    datagram.resize(bytes, 0);
    datagram
}

/// What node `at` has to send, without the network.
fn sent_by(sim: &mut Sim, at: usize) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut buf = Vec::new();
    while sim.nodes[at].poll_transmit(sim.now_ns, &mut buf).is_some() {
        all.push(std::mem::take(&mut buf));
    }
    all
}

/// An initiation names its session in clear. A reset about it, asked for before the response came,
/// would carry the very token that the session is ended with.
#[test]
fn a_session_to_come_is_not_reset_in_advance() {
    let mut sim = Sim::new(1, 2, &limits(), Weather::CALM);
    sim.keep_wire = true;
    let id = sim.ids[1];
    sim.nodes[0].connect(0, id).unwrap();
    sim.transmit();
    let promised = session_of(&sim.wire[0].1);
    let early = probe(&sim, 1, 0, promised, 1_000);
    let _ = sim.give(0, &early);
    assert_eq!(sent_by(&mut sim, 0), Vec::<Vec<u8>>::new());
    assert_eq!(sim.nodes[0].counters().resets_sent, 0);
    sim.run(SECOND);
    assert!(sim.is_connected(0, 1) && sim.is_connected(1, 0));
    let known = probe(&sim, 1, 0, promised, 1_000);
    let _ = sim.give(0, &known);
    assert_eq!(sim.nodes[0].counters().resets_sent, 0);

    // An attempt that was given up promises nothing.
    let (now_ns, other) = (sim.now_ns, sim.ids[1]);
    sim.nodes[0].close(now_ns, other);
    sim.run(60 * SECOND);
    let gone = probe(&sim, 1, 0, promised, 1_000);
    let _ = sim.give(0, &gone);
    assert_eq!(sim.nodes[0].counters().resets_sent, 1);
}

#[test]
fn a_reset_is_never_larger_than_its_cause() {
    let mut sim = Sim::new(1, 2, &limits(), Weather::CALM);
    for bytes in HEADER_BYTES..200 {
        sim.now_ns += SECOND;
        let probe = probe(&sim, 0, 1, SessionId(0x1200), bytes);
        let _ = sim.give(1, &probe);
        let sent: usize = sent_by(&mut sim, 1).iter().map(Vec::len).sum();
        let expected = if bytes < RESET_BYTES { 0 } else { RESET_BYTES };
        assert_eq!(sent, expected, "for {bytes} bytes");
    }
}

/// Nothing but pings goes out on an idle session: they are large enough to be answered.
#[test]
fn an_idle_session_finds_out_that_its_peer_restarted() {
    let mut sim = Sim::pair(&limits());
    sim.nodes[1] = Node::new(config(1, 2, 99, &limits()), sim.now_ns).unwrap();
    let keepalive_ns = limits().keepalive_ns;
    sim.run(keepalive_ns + 100 * MS);
    assert!(sim.is_connected(0, 1) && sim.is_connected(1, 0));
    assert_eq!(sim.nodes[0].counters().resets_received, 1);
}

/// The first initiation of each of `count` starts of node 0, none of which ever arrived.
fn captured(count: u64) -> Vec<Vec<u8>> {
    (0..count)
        .map(|start| {
            let mut sim = Sim::new(start, 2, &limits(), Weather::CALM);
            let id = sim.ids[1];
            sim.nodes[0].connect(0, id).unwrap();
            sent_by(&mut sim, 0).remove(0)
        })
        .collect()
}

/// Node 1 takes in 64 replays for each 64 runs that it sends, while node 0 wants nothing but data.
#[test]
fn replayed_initiations_do_not_starve_sessions() {
    for seed in [1, 1 << 60] {
        let mut sim = Sim::new(seed, 3, &limits(), Weather::CALM);
        let id = sim.ids[1];
        sim.nodes[2].connect(0, id).unwrap();
        let replay = sent_by(&mut sim, 2).remove(0);
        sim.nodes[2] = Node::new(config(2, 3, seed, &limits()), 0).unwrap();
        sim.connect(1, 0);
        let stream = sim.open(1, 0, &spec("log", Mode::Ordered));
        let (mut replies, mut data) = (0, 0);
        for turn in 0..2_000 {
            sim.now_ns += MS;
            if turn % 100 == 0 {
                sim.send(1, 0, stream, b"tick").unwrap();
            }
            for _ in 0..64 {
                let _ = sim.nodes[1].handle(sim.now_ns, source(2), &mut replay.clone());
            }
            sim.nodes[1].handle_timeout(sim.now_ns);
            for sent in sent_by(&mut sim, 1) {
                let header = Header::decode(sent[..HEADER_BYTES].try_into().unwrap());
                if header.is_handshake() {
                    replies += 1;
                    continue;
                }
                data += 1;
                let _ = sim.nodes[0].handle(sim.now_ns, source(1), &mut sent.clone());
            }
            for mut sent in sent_by(&mut sim, 0) {
                let _ = sim.nodes[1].handle(sim.now_ns, source(0), &mut sent);
            }
            sim.listen();
        }
        assert_eq!(sim.messages(0).len(), 20);
        assert!(data >= 20);
        assert!(replies <= 10, "{replies} replies in two seconds");
        assert!(sim.dropped(1, DropReason::HandshakeRepeated) > 100_000);
    }
}

/// Even a full outbox leaves every other turn to the sessions.
#[test]
fn handshakes_and_sessions_take_turns() {
    let always = NodeLimits {
        handshakes_per_second: 0,
        ..limits()
    };
    let mut sim = Sim::new(1, 3, &always, Weather::CALM);
    sim.connect(1, 0);
    let stream = sim.open(1, 0, &spec("log", Mode::Ordered));
    for _ in 0..8 {
        sim.send(1, 0, stream, &[1; 1_000]).unwrap();
    }
    let id = sim.ids[1];
    sim.nodes[2].connect(0, id).unwrap();
    let initiation = sent_by(&mut sim, 2).remove(0);
    for _ in 0..32 {
        let _ = sim.nodes[1].handle(sim.now_ns, source(2), &mut initiation.clone());
    }
    let mut buf = Vec::new();
    for _ in 0..2 {
        let _ = sim.nodes[1].poll_transmit(sim.now_ns, &mut buf).unwrap();
    }
    assert!(
        buf.len() > 1_000,
        "a run of the session is among the first two"
    );
    let rest = sent_by(&mut sim, 1);
    let cookies = rest.iter().filter(|sent| sent.len() < 200).count();
    assert!(cookies >= 31, "and the others follow: {cookies}");
}

/// Old initiations from the peer's own address, faster than a round trip: the true one stays.
#[test]
fn replays_do_not_push_out_the_true_attempt() {
    let old = captured(6);
    for (from, every_ns) in [(0, MS), (0, 2 * MS), (0, 5 * MS), (7, MS)] {
        let mut sim = Sim::new(99, 2, &limits(), Weather::CALM);
        for replay in &old {
            let _ = sim.nodes[1].handle(0, source(from), &mut replay.clone());
        }
        let id = sim.ids[1];
        sim.nodes[0].connect(0, id).unwrap();
        let mut turn = 0;
        while sim.now_ns < 200 * MS && !sim.is_connected(1, 0) {
            sim.run(every_ns);
            turn += 1;
            let mut replay = old[turn % old.len()].clone();
            let _ = sim.nodes[1].handle(sim.now_ns, source(from), &mut replay);
        }
        assert!(sim.is_connected(1, 0), "{every_ns} ns apart from {from}");
        assert!(sim.now_ns <= 50 * MS, "at the first attempt");
        // From now on they are known to be old: no state comes of them.
        sim.run(limits().handshake_deadline_ns);
        for replay in &old {
            let stale = Handled::Dropped(DropReason::HandshakeStale);
            assert_eq!(sim.give(1, replay), stale);
        }
        assert_eq!(sim.nodes[1].sessions().count(), 1);
    }
}

/// A session that ends before its peer was proven leaves nothing, so that the bounds on half-open
/// ones hold for all that strangers to the entity can bring about.
#[test]
fn sessions_that_end_unproven_leave_nothing() {
    let few = NodeLimits {
        half_open_max: 4,
        sessions_max: 8,
        ..limits()
    };
    let mut sim = Sim::new(1, 3, &few, Weather::CALM);
    let id = sim.ids[1];
    for start in 2..50 {
        sim.nodes[0] = Node::new(config(0, 3, start, &few), sim.now_ns).unwrap();
        sim.nodes[0].connect(sim.now_ns, id).unwrap();
        for (at, to) in [(0, 1), (1, 0)] {
            for mut sent in sent_by(&mut sim, at) {
                let _ = sim.nodes[to].handle(sim.now_ns, source(at), &mut sent);
            }
        }
        assert_eq!(sim.nodes[1].sessions().count(), 1);
        sim.nodes[0].close(sim.now_ns, id);
        for mut sent in sent_by(&mut sim, 0) {
            let _ = sim.nodes[1].handle(sim.now_ns, source(0), &mut sent);
        }
        assert_eq!(sim.nodes[1].sessions().count(), 0, "start {start}");
    }
    sim.connect(2, 1);
}

/// Who was not proven in time is told so.
#[test]
fn a_handshake_past_its_deadline_is_closed_aloud() {
    let mut sim = Sim::new(1, 2, &limits(), Weather::CALM);
    let id = sim.ids[1];
    sim.nodes[0].connect(0, id).unwrap();
    sim.run_until(SECOND, |s| s.nodes[1].sessions().count() == 1);
    sim.network.is_cut = true;
    sim.keep_wire = true;
    sim.run(limits().handshake_deadline_ns);
    let is_close = |(from, sent): &&(usize, Vec<u8>)| {
        let header = Header::decode(sent[..HEADER_BYTES].try_into().unwrap());
        *from == 1 && header.flags.contains(Flags::FIN)
    };
    assert_eq!(sim.wire.iter().filter(is_close).count(), 1);
    assert_eq!(sim.nodes[1].sessions().count(), 0);
}

/// The owner learns that the old session's streams are gone before it hears of the new one.
#[test]
fn a_superseded_session_is_closed_before_the_next_is_connected() {
    let mut sim = Sim::pair(&limits());
    sim.run(20 * SECOND);
    sim.nodes[1] = Node::new(config(1, 2, 99, &limits()), sim.now_ns).unwrap();
    // Strangers use up the resets, so that the newcomer's initiation is what tells.
    for n in 1..=crate::limits::RESETS_PER_SECOND_PER_SOURCE {
        let mut unknown = probe(&sim, 0, 1, SessionId(n << 8), 200);
        let _ = sim.nodes[1].handle(sim.now_ns, source(0), &mut unknown);
    }
    let _ = sent_by(&mut sim, 1);
    let (now_ns, peer) = (sim.now_ns, sim.ids[0]);
    sim.nodes[1].connect(now_ns, peer).unwrap();
    sim.run(50 * MS);
    let (peer, entity) = (sim.ids[1], super::sim::peer(1).entity_key);
    let reason = CloseReason::Superseded;
    let expected = [
        Event::Closed { peer, reason },
        Event::Connected { peer, entity },
    ];
    assert_eq!(sim.told[0], expected);
}

/// A member may forge cookies; each attempt answers one in a retry interval.
#[test]
fn a_shower_of_cookies_makes_no_shower_of_initiations() {
    let mut sim = Sim::new(1, 2, &limits(), Weather::CALM);
    let id = sim.ids[1];
    sim.nodes[0].connect(0, id).unwrap();
    let initiation = sent_by(&mut sim, 0).remove(0);
    let network = Network {
        id: "test".into(),
        psk: [9; 32],
        psk_generation: 1,
    };
    let route = Route {
        sender: id,
        origin: sim.nodes[1].origin(),
        subnet: Subnet(0),
        receiver: sim.ids[0],
    };
    let session = session_of(&initiation);
    for n in 1..=100 {
        let (kind, none) = ((Kind::Cookie, Pattern::Nk), SessionId(0));
        let forged = build(&network, kind, &route, session, none, &[], &[n; 16]);
        let _ = sim.give(0, &forged);
    }
    assert_eq!(sim.nodes[0].counters().initiations_sent, 2);
    assert_eq!(sim.dropped(0, DropReason::HandshakeUnasked), 99);
    sim.run(SECOND);
    assert!(sim.is_connected(0, 1) && sim.is_connected(1, 0));
}
