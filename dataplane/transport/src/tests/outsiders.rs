//! What somebody without the network's key can bring about, with packets seen and made up.

use super::sim::{MS, SECOND, Sim, Weather, config};
use crate::{Node, NodeLimits, handshake::RESET_BYTES};
use virga_ebpf::{
    header::{Header, SessionId},
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
