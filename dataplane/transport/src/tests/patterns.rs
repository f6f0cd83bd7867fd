//! Each Noise pattern, with ML-KEM and without: on paths that lose, when both ends begin, and when policies
//! contradict each other.

use super::sim::{MS, SECOND, Sim, Weather, config, spec};
use crate::{
    Conflict, DropReason, Event, Handled, HandshakePolicy, Mode, Node, NodeLimits, Pattern,
    PeerKey, Pq, SessionState, frame::Frame,
};
use std::collections::BTreeMap;
use virga_ebpf::header::{Flags, Header, SessionId};

const NAMED: [Option<Pattern>; 4] = [
    None,
    Some(Pattern::Nk),
    Some(Pattern::Ik),
    Some(Pattern::Xx),
];

fn policy(pattern: Option<Pattern>, pq: Pq) -> HandshakePolicy {
    HandshakePolicy { pattern, pq }
}

/// Two nodes with these policies.
fn sim(seed: u64, policies: [HandshakePolicy; 2], limits: &NodeLimits, weather: Weather) -> Sim {
    let mut sim = Sim::new(seed, 2, limits, weather);
    for (n, policy) in (0..).zip(policies) {
        let mut limits = limits.clone();
        limits.datagram_bytes_max = limits.datagram_bytes_max.min(weather.datagram_bytes);
        let mut config = config(n, 2, seed, &limits);
        config.handshake = policy;
        sim.nodes[usize::from(n)] = Node::new(config, 0).unwrap();
    }
    sim
}

fn begin(sim: &mut Sim, from: usize) {
    let (now_ns, id) = (sim.now_ns, sim.ids[1 - from]);
    sim.nodes[from].connect(now_ns, id).unwrap();
}

/// Pattern, ML-KEM and epoch of the established session at a node.
fn state(sim: &Sim, at: usize) -> Option<(Pattern, bool, u64)> {
    let mut sessions = sim.nodes[at].sessions();
    let live = sessions.find(|s| s.state == SessionState::Established)?;
    Some((live.pattern, live.is_hybrid, live.epoch))
}

fn conflicts(sim: &Sim, at: usize) -> Vec<Conflict> {
    let conflict = |event: &Event| match event {
        Event::Refused { conflict, .. } => Some(*conflict),
        _ => None,
    };
    sim.told[at].iter().filter_map(conflict).collect()
}

/// One message each way, on the session that there is.
fn talk(sim: &mut Sim) {
    for at in 0..2 {
        sim.told[at].clear();
    }
    for at in 0..2 {
        let stream = sim.open(at, 1 - at, &spec("talk", Mode::Ordered));
        sim.send(at, 1 - at, stream, &[7; 3_000]).unwrap();
    }
    let has_come = |sim: &Sim| (0..2).all(|at| sim.messages(at) == [vec![7; 3_000]]);
    assert!(sim.run_until(30 * SECOND, has_come));
}

#[test]
fn every_pair_of_policies_gives_a_session_or_tells_both_ends_why_not() {
    let (mut sessions, mut refusals) = (0, 0);
    for (a, b) in NAMED.iter().flat_map(|&a| NAMED.map(|b| (a, b))) {
        for (p, q) in Pq::ALL.iter().flat_map(|&p| Pq::ALL.map(|q| (p, q))) {
            let policies = [policy(a, p), policy(b, q)];
            let mut sim = sim(1, policies, &NodeLimits::default(), Weather::CALM);
            begin(&mut sim, 0);
            let pattern = a.unwrap_or(Pattern::Ik);
            let is_taken = pattern != Pattern::Nk || matches!(b, None | Some(Pattern::Nk));
            let is_pq_taken = !matches!((p, q), (Pq::Off, Pq::Required) | (Pq::Required, Pq::Off));
            sim.run(2 * SECOND);
            let case = format!("{policies:?}");
            if is_taken && is_pq_taken {
                let is_hybrid = p != Pq::Off && q != Pq::Off;
                let expected = Some((pattern, is_hybrid, u64::from(is_hybrid)));
                assert_eq!([state(&sim, 0), state(&sim, 1)], [expected; 2], "{case}");
                talk(&mut sim);
                for node in &sim.nodes {
                    let counters = node.counters();
                    assert_eq!(counters.established_by_pattern[pattern as usize], 1);
                    assert_eq!(counters.established_hybrid, u64::from(is_hybrid));
                }
                sessions += 1;
                continue;
            }
            assert_eq!([state(&sim, 0), state(&sim, 1)], [None; 2], "{case}");
            let expected = match (is_taken, p) {
                (false, _) => [Conflict::PatternRefusedThere, Conflict::PatternRefusedHere],
                (true, Pq::Off) => [Conflict::PqRequiredThere, Conflict::PqRequiredHere],
                (true, _) => [Conflict::PqRequiredHere, Conflict::PqRequiredThere],
            };
            for (at, expected) in expected.into_iter().enumerate() {
                assert_eq!(conflicts(&sim, at), [expected], "{case}: told once");
                let counters = sim.nodes[at].counters();
                let said = [counters.refusals_received, counters.refusals_sent][at];
                assert!(said > 1, "{case}: it goes on trying");
            }
            assert!(sim.dropped(1, DropReason::HandshakePolicy) > 1);
            refusals += 1;
        }
    }
    assert_eq!((sessions, refusals), (98, 46));
}

/// A fifth is lost, some comes twice, changed, or late; the completion and each part of key and ciphertext among it.
#[test]
fn sessions_come_about_on_paths_that_lose() {
    for pattern in Pattern::ALL {
        for pq in [Pq::Off, Pq::Required] {
            for seed in 0..25 {
                let weather = Weather {
                    reordering: 10,
                    late_ns: 300 * MS,
                    ..Weather::STORM
                };
                let policies = [policy(Some(pattern), pq); 2];
                let mut sim = sim(seed, policies, &NodeLimits::default(), weather);
                begin(&mut sim, 0);
                let is_there = |sim: &Sim| sim.is_connected(0, 1) && sim.is_connected(1, 0);
                assert!(
                    sim.run_until(120 * SECOND, is_there),
                    "{pattern:?} {pq:?} seed {seed}"
                );
                assert_eq!(state(&sim, 0).map(|s| s.1), Some(pq != Pq::Off));
                talk(&mut sim);
            }
        }
    }
}

/// Whatever the two ends begin with, one session comes and stays.
#[test]
fn crossed_handshakes_of_all_patterns_converge_on_one_session() {
    for (a, b) in Pattern::ALL
        .iter()
        .flat_map(|&a| Pattern::ALL.map(|b| (a, b)))
    {
        for seed in 0..24 {
            let pq = [Pq::Off, Pq::Preferred][usize::try_from(seed % 2).unwrap()];
            // A node that names more than NK takes none: NK meets only `auto`.
            let named = |own: Pattern, other| match (own, other) {
                (Pattern::Ik, Pattern::Nk) => None,
                (own, _) => Some(own),
            };
            if (a, b) == (Pattern::Xx, Pattern::Nk) || (a, b) == (Pattern::Nk, Pattern::Xx) {
                continue;
            }
            let policies = [policy(named(a, b), pq), policy(named(b, a), pq)];
            let weather = Weather {
                latency_ns: (1 + seed * 3) * MS,
                ..Weather::CALM
            };
            let mut sim = sim(seed, policies, &NodeLimits::default(), weather);
            begin(&mut sim, 0);
            sim.run(seed % 8 * 10 * MS);
            begin(&mut sim, 1);
            sim.run(20 * SECOND);
            for at in 0..2 {
                let connected = |e: &&Event| matches!(e, Event::Connected { .. });
                let count = sim.told[at].iter().filter(connected).count();
                assert_eq!(count, 1, "{policies:?} seed {seed}: {:?}", sim.told[at]);
                assert_eq!(sim.nodes[at].sessions().count(), 1);
            }
            assert_eq!(state(&sim, 0), state(&sim, 1));
            talk(&mut sim);
        }
    }
}

/// The lower node begins with what the higher does not take, and the higher begins, too.
#[test]
fn a_refused_attempt_does_not_keep_the_peers_own_waiting() {
    let lower = usize::from({
        let sim = Sim::new(1, 2, &NodeLimits::default(), Weather::CALM);
        sim.ids[1] < sim.ids[0]
    });
    let mut policies = [policy(Some(Pattern::Ik), Pq::Off); 2];
    policies[lower].pattern = Some(Pattern::Nk);
    let mut sim = sim(1, policies, &NodeLimits::default(), Weather::CALM);
    begin(&mut sim, lower);
    sim.run(100 * MS);
    begin(&mut sim, 1 - lower);
    let is_there = |sim: &Sim| sim.is_connected(0, 1) && sim.is_connected(1, 0);
    assert!(sim.run_until(SECOND, is_there));
    assert_eq!(state(&sim, 0), Some((Pattern::Ik, false, 0)));
}

/// Until an address has answered, it is sent no more bytes than came from it; and nothing but handshakes and
/// control goes out before the session is established.
#[test]
fn nothing_is_amplified_and_no_data_goes_before_completion() {
    for pattern in Pattern::ALL {
        for pq in [Pq::Off, Pq::Required] {
            let policies = [policy(Some(pattern), pq); 2];
            let mut sim = sim(3, policies, &NodeLimits::default(), Weather::CALM);
            sim.keep_wire = true;
            begin(&mut sim, 0);
            let id = sim.ids[1];
            while !sim.is_connected(0, 1) {
                let refused = sim.nodes[0].open_stream(sim.now_ns, id, &spec("a", Mode::Ordered));
                assert!(refused.is_err());
                assert!(sim.step(SECOND));
            }
            let mut bytes = BTreeMap::new();
            for (from, datagram) in &sim.wire {
                let header = Header::decode(datagram[..64].try_into().unwrap());
                let is_control = header.flags.contains(Flags::CONTROL);
                assert!(is_control || header.is_handshake(), "{pattern:?} {pq:?}");
                assert!(datagram.len() <= crate::limits::DATAGRAM_BYTES_MIN);
                *bytes.entry(*from).or_insert(0) += datagram.len();
                assert!(bytes.get(&1) <= bytes.get(&0), "{pattern:?} {pq:?}");
            }
        }
    }
}

/// Data that is sealed before ML-KEM is mixed in is not taken, at either end.
#[test]
fn epoch_0_of_a_hybrid_session_carries_no_data() {
    for at in 0..2 {
        let policies = [policy(Some(Pattern::Ik), Pq::Required); 2];
        let mut sim = sim(4, policies, &NodeLimits::default(), Weather::CALM);
        begin(&mut sim, 0);
        while sim.nodes[1 - at].sessions().count() == 0 || sim.nodes[at].sessions().count() == 0 {
            assert!(sim.step(SECOND));
        }
        let mut payload = Vec::new();
        Frame::SessionCredit { bytes: 1 << 40 }.write(&mut payload);
        let id = sim.ids[1 - at];
        let packet = sim.nodes[at].seal_raw(id, (Flags::CONTROL, 0, 0, 0), &payload);
        let given = sim.give(1 - at, &packet);
        assert_eq!(given, Handled::Dropped(DropReason::BeforeProof), "{at}");
        assert!(sim.run_until(SECOND, |sim| sim.is_connected(0, 1)));
        sim.run(SECOND);
        let again = sim.give(1 - at, &packet);
        assert_eq!(again, Handled::Dropped(DropReason::KeyPhase), "{at}");
        talk(&mut sim);
    }
}

/// A peer that is known by its id alone is begun with XX; the key that it proved is used from then on.
#[test]
fn the_first_contact_teaches_the_key_and_the_second_uses_it() {
    let mut sim = Sim::new(1, 2, &NodeLimits::default(), Weather::CALM);
    for n in 0..2u8 {
        let mut config = config(n, 2, 1, &NodeLimits::default());
        config.handshake = HandshakePolicy::default();
        for peer in &mut config.peers {
            peer.node_key = PeerKey::Id(peer.node_key.id());
        }
        sim.nodes[usize::from(n)] = Node::new(config, 0).unwrap();
    }
    for expected in [Pattern::Xx, Pattern::Ik, Pattern::Ik] {
        begin(&mut sim, 0);
        assert!(sim.run_until(SECOND, |sim| sim.is_connected(0, 1)));
        sim.run(SECOND);
        assert_eq!(state(&sim, 1), Some((expected, true, 1)));
        let (now_ns, id) = (sim.now_ns, sim.ids[1]);
        sim.nodes[0].close(now_ns, id);
        sim.run(5 * SECOND);
        if expected == Pattern::Ik {
            // The same list again forgets nothing.
            let mut peers = config(0, 2, 1, &NodeLimits::default()).peers.clone();
            peers[0].node_key = PeerKey::Id(id);
            sim.nodes[0].set_peers(sim.now_ns, &peers).unwrap();
        }
    }
}

/// A responder holds what waits for completions within its bounds, and forgets it in time.
#[test]
fn completions_that_never_come_leave_nothing() {
    let limits = NodeLimits::default();
    let policies = [policy(Some(Pattern::Xx), Pq::Preferred); 2];
    let mut sim = sim(5, policies, &limits, Weather::CALM);
    begin(&mut sim, 0);
    sim.transmit();
    sim.run(6 * MS);
    sim.network.is_cut = true;
    assert_eq!(sim.nodes[1].sessions().count(), 0);
    assert!(sim.nodes[1].poll_timeout().is_some());
    sim.run(limits.handshake_deadline_ns);
    assert_eq!(sim.nodes[1].poll_timeout(), None, "nothing is left");
    sim.network.is_cut = false;
    let is_there = |sim: &Sim| sim.is_connected(0, 1) && sim.is_connected(1, 0);
    assert!(sim.run_until(60 * SECOND, is_there));
}

/// Packets that overtake the completion are not answered with a reset that would end their session.
#[test]
fn what_overtakes_the_completion_is_sent_again() {
    let policies = [policy(Some(Pattern::Xx), Pq::Preferred); 2];
    let mut sim = sim(6, policies, &NodeLimits::default(), Weather::CALM);
    sim.keep_wire = true;
    begin(&mut sim, 0);
    while sim.nodes[0].sessions().count() == 0 {
        assert!(sim.step(SECOND));
    }
    sim.network.is_cut = true;
    sim.transmit();
    sim.network.is_cut = false;
    let lost = sim.wire.iter().filter(|(from, _)| *from == 0);
    let lost: Vec<_> = lost.map(|(_, bytes)| bytes.clone()).collect();
    let header = |bytes: &&Vec<u8>| Header::decode(bytes[..64].try_into().unwrap());
    let is_completion =
        |bytes: &&Vec<u8>| header(bytes).is_handshake() && header(bytes).session_id != SessionId(0);
    let completion = lost.iter().find(is_completion).unwrap();
    let sealed = lost.iter().find(|bytes| !header(bytes).is_handshake());
    let sealed = sealed.unwrap();
    assert_eq!(
        sim.give(1, sealed),
        Handled::Dropped(DropReason::UnknownSession)
    );
    assert_eq!(sim.nodes[1].counters().resets_sent, 0);
    assert_eq!(sim.give(1, completion), Handled::Accepted);
    assert_eq!(
        sim.give(1, completion),
        Handled::Dropped(DropReason::HandshakeRepeated)
    );
    let is_there = |sim: &Sim| sim.is_connected(0, 1) && sim.is_connected(1, 0);
    assert!(sim.run_until(5 * SECOND, is_there));
    talk(&mut sim);
}

/// XX's first message proves nothing: any member can make one in another's name.
#[test]
fn a_live_session_is_not_contradicted_by_what_anybody_can_say() {
    let policies = [policy(None, Pq::Required); 2];
    let mut sim = sim(5, policies, &NodeLimits::default(), Weather::CALM);
    begin(&mut sim, 0);
    assert!(sim.run_until(10 * SECOND, |sim| sim.is_connected(1, 0)));
    let mut liar = config(0, 2, 77, &NodeLimits::default());
    liar.handshake = policy(Some(Pattern::Xx), Pq::Off);
    let mut liar = Node::new(liar, sim.now_ns).unwrap();
    liar.connect(sim.now_ns, sim.ids[1]).unwrap();
    let mut said = Vec::new();
    let _sent = liar.poll_transmit(sim.now_ns, &mut said).unwrap();
    let from = sim.addresses[0];
    let taken = sim.nodes[1].handle(sim.now_ns, from, &mut said);
    assert_eq!(taken, Handled::Dropped(DropReason::HandshakePolicy));
    sim.run(SECOND);
    assert_eq!(conflicts(&sim, 1), []);
    assert_eq!(sim.nodes[1].conflicts().count(), 0);
    talk(&mut sim);
}

/// A session that a new policy would refuse does not outlive it.
#[test]
fn a_changed_policy_is_that_of_the_sessions_there_are() {
    for is_waiting in [false, true] {
        let policies = [policy(None, Pq::Off), policy(None, Pq::Preferred)];
        let mut sim = sim(6, policies, &NodeLimits::default(), Weather::CALM);
        begin(&mut sim, 0);
        if is_waiting {
            sim.transmit();
        } else {
            assert!(sim.run_until(10 * SECOND, |sim| sim.is_connected(0, 1)));
            assert_eq!(state(&sim, 0).map(|s| s.1), Some(false));
        }
        let mut peers = config(0, 2, 6, &NodeLimits::default()).peers.clone();
        for peer in &mut peers {
            peer.handshake = Some(policy(None, Pq::Required));
        }
        let now_ns = sim.now_ns;
        sim.nodes[0].set_peers(now_ns, &peers).unwrap();
        let is_hybrid = |sim: &Sim| [0, 1].map(|at| state(sim, at).map(|s| s.1)) == [Some(true); 2];
        assert!(sim.run_until(120 * SECOND, is_hybrid), "{is_waiting}");
        talk(&mut sim);
    }
}
