//! Introductions between nodes of which one does not know the other.

use super::sim::{SECOND, Sim, Weather, peer, source};
use crate::{
    ConnectError, DropReason, Event, NodeLimits,
    handshake::INTRODUCTION_BYTES_MAX,
    limits::{INTRODUCTIONS_PER_SECOND, INTRODUCTIONS_PER_SECOND_PER_SOURCE},
};

/// What a node was told, and by whom.
fn introduced(sim: &Sim, at: usize) -> Vec<(std::net::SocketAddr, Vec<u8>)> {
    let told = sim.told[at].iter().filter_map(|event| match event {
        Event::Introduced { source, words } => Some((*source, words.to_vec())),
        _ => None,
    });
    told.collect()
}

#[test]
fn a_stranger_is_heard_with_where_it_is_and_gets_no_answer() {
    let mut sim = Sim::new(1, 2, &NodeLimits::default(), Weather::CALM);
    let (to, words) = (sim.ids[1], vec![7; INTRODUCTION_BYTES_MAX]);
    sim.nodes[1].set_peers(0, &[]).unwrap();
    sim.keep_wire = true;
    sim.nodes[0].introduce(to, &words).unwrap();
    sim.run(SECOND);
    assert_eq!(introduced(&sim, 1), [(source(0), words)]);
    assert_eq!(sim.wire.len(), 1, "only what was said went over the wire");
    let unknown = peer(9).node_key.id();
    let refused = sim.nodes[0].introduce(unknown, b"hello");
    assert_eq!(refused, Err(ConnectError::UnknownPeer(unknown)));
}

#[test]
fn who_does_not_know_the_networks_key_is_not_heard() {
    let mut sim = Sim::new(1, 2, &NodeLimits::default(), Weather::CALM);
    let to = sim.ids[1];
    sim.keep_wire = true;
    sim.nodes[0].introduce(to, b"hello").unwrap();
    sim.transmit();
    let (_, said) = sim.wire[0].clone();
    let before = introduced(&sim, 1).len();
    for at in 64..said.len() {
        let mut forged = said.clone();
        forged[at] ^= 1;
        let _ = sim.give(1, &forged);
    }
    sim.listen();
    assert_eq!(introduced(&sim, 1).len(), before);
    assert!(sim.dropped(1, DropReason::HandshakeTag) > 0);
}

#[test]
fn of_a_flood_each_source_has_its_share_and_all_together_theirs() {
    let mut sim = Sim::new(1, 2, &NodeLimits::default(), Weather::CALM);
    let to = sim.ids[1];
    sim.keep_wire = true;
    sim.nodes[0].introduce(to, b"hello").unwrap();
    sim.transmit();
    let (_, said) = sim.wire[0].clone();
    for _ in 0..1_000 {
        let _ = sim.give(1, &said);
    }
    sim.listen();
    let heard = introduced(&sim, 1).len() as u64;
    assert_eq!(heard, INTRODUCTIONS_PER_SECOND_PER_SOURCE);
    let now_ns = sim.now_ns;
    for n in 0..1_000u16 {
        let [high, low] = n.to_be_bytes();
        let from = std::net::SocketAddr::from(([10, 9, high, low], 4783));
        let _ = sim.nodes[1].handle(now_ns, from, &mut said.clone());
    }
    sim.listen();
    let heard = introduced(&sim, 1).len() as u64;
    assert_eq!(heard, INTRODUCTIONS_PER_SECOND);
    assert!(sim.dropped(1, DropReason::HandshakeRate) > 1_800);
}
