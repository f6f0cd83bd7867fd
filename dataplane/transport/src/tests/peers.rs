//! Peers that change while a node runs.

use super::sim::{MS, SECOND, Sim, Weather, config, entity_key, peer, spec};
use crate::{
    CloseReason, ConfigError, ConnectError, DropReason, Event, Mode, Node, NodeLimits, PeerConfig,
    Share,
};
use virga_ebpf::header::NodeId;

/// A node, as a peer that speaks for the entity of another one.
fn speaking_for(node: u8, entity: u8) -> PeerConfig {
    PeerConfig {
        entity_key: peer(entity).entity_key,
        ..peer(node)
    }
}

fn id(peer: &PeerConfig) -> NodeId {
    peer.node_key.id()
}

fn connected(sim: &Sim, at: usize) -> Vec<(NodeId, [u8; 32])> {
    let events = sim.told[at].iter().filter_map(|event| match event {
        Event::Connected { peer, entity } => Some((*peer, *entity)),
        _ => None,
    });
    events.collect()
}

/// Node 1's entity moves to node 2 in the middle of a stream to node 0.
#[test]
fn an_entity_is_believed_where_it_is_listed_and_nowhere_else() {
    let limits = NodeLimits::default();
    let mut sim = Sim::new(1, 3, &limits, Weather::CALM);
    sim.connect(1, 0);
    let stream = sim.open(1, 0, &spec("log", Mode::Ordered));
    for n in 0..50 {
        sim.send(1, 0, stream, &[n; 1_000]).unwrap();
    }
    sim.run(MS);
    let now = [peer(2), speaking_for(2, 1)];
    sim.nodes[0].set_peers(sim.now_ns, &now).unwrap();
    sim.run(SECOND);
    assert_eq!(sim.closed(0), [CloseReason::Removed]);
    assert_eq!(
        sim.closed(1),
        [CloseReason::Peer],
        "its stream is lost, and it is told"
    );
    let (came, now_ns) = (sim.messages(0).len(), sim.now_ns);

    // It does not take that for an answer.
    let id_0 = sim.ids[0];
    sim.nodes[1].connect(now_ns, id_0).unwrap();
    sim.run(5 * SECOND);
    assert!(sim.dropped(0, DropReason::HandshakePeer) > 1);
    assert!(!sim.is_connected(0, 1) && !sim.is_connected(1, 0));
    assert_eq!(sim.messages(0).len(), came);
    assert_eq!(
        sim.nodes[0].connect(sim.now_ns, sim.ids[1]),
        Err(ConnectError::UnknownPeer(sim.ids[1]))
    );

    // Node 2 may prove its own entity as before, or the one that came.
    sim.connect(2, 0);
    let mut moved = config(2, 3, 7, &limits);
    moved.entity_key = entity_key(1);
    moved.peers = vec![peer(0)];
    sim.nodes[2] = Node::new(moved, sim.now_ns).unwrap();
    sim.nodes[2].connect(sim.now_ns, id_0).unwrap();
    sim.run(5 * SECOND);
    assert_eq!(
        connected(&sim, 0).last(),
        Some(&(sim.ids[2], peer(1).entity_key))
    );
    let stream = sim.open(2, 0, &spec("log", Mode::Ordered));
    sim.send(2, 0, stream, b"from the new place").unwrap();
    sim.run(SECOND);
    assert_eq!(sim.messages(0).last().unwrap(), b"from the new place");
}

#[test]
fn sessions_of_peers_that_stay_go_on() {
    let mut sim = Sim::new(1, 3, &NodeLimits::default(), Weather::STORM);
    sim.connect(1, 0);
    let stream = sim.open(1, 0, &spec("log", Mode::Ordered));
    let sent: Vec<Vec<u8>> = (0..100).map(|n| vec![n; 700]).collect();
    for (n, message) in sent.iter().enumerate() {
        sim.send(1, 0, stream, message).unwrap();
        let peers: &[PeerConfig] = match n % 3 {
            0 => &[peer(1)],
            1 => &[peer(1), peer(2), speaking_for(1, 5)],
            _ => &[speaking_for(1, 6), peer(1)],
        };
        sim.nodes[0].set_peers(sim.now_ns, peers).unwrap();
        sim.run(10 * MS);
    }
    sim.run(60 * SECOND);
    assert!(sim.messages(0) == sent);
    assert_eq!(sim.closed(0), []);
}

/// Both start at once with a peer that came at run time, and one is taken away at any moment of the
/// handshake: there is one session, or none, and nothing is left over.
#[test]
fn peers_come_and_go_in_the_middle_of_crossing_handshakes() {
    for step in 0..40 {
        let limits = NodeLimits::default();
        let mut sim = Sim::new(step, 2, &limits, Weather::CALM);
        let ids = [sim.ids[0], sim.ids[1]];
        for (at, other) in [(0, 1), (1, 0)] {
            sim.nodes[at].set_peers(0, &[]).unwrap();
            assert!(sim.nodes[at].connect(0, ids[usize::from(other)]).is_err());
            sim.nodes[at].set_peers(0, &[peer(other)]).unwrap();
            sim.nodes[at].connect(0, ids[usize::from(other)]).unwrap();
        }
        for _ in 0..step {
            sim.step(sim.now_ns + SECOND);
        }
        sim.nodes[0].set_peers(sim.now_ns, &[peer(7)]).unwrap();
        sim.run(60 * SECOND);
        assert!(
            !sim.is_connected(0, 1) && !sim.is_connected(1, 0),
            "step {step}"
        );
        assert_eq!(sim.nodes[0].sessions().count(), 0, "step {step}");
        assert_eq!(
            sim.nodes[0].poll_timeout(),
            None,
            "step {step}: a timer is left over"
        );

        sim.nodes[0].set_peers(sim.now_ns, &[peer(1)]).unwrap();
        let both = |sim: &Sim| sim.is_connected(0, 1) && sim.is_connected(1, 0);
        assert!(
            sim.run_until(60 * SECOND, both),
            "step {step}: the other still tries"
        );
        sim.run(10 * SECOND);
        assert_eq!(sim.nodes[0].sessions().count(), 1, "step {step}");
    }
}

#[test]
fn each_worker_takes_what_it_owns() {
    let peers: Vec<PeerConfig> = (1..40).map(peer).collect();
    for share in Share::split(3) {
        let mut own = config(0, 1, 1, &NodeLimits::default());
        own.share = share;
        let mut node = Node::new(own, 0).unwrap();
        node.set_peers(0, &peers).unwrap();
        for peer in peers.iter().map(id) {
            assert_eq!(node.connect(0, peer).is_ok(), share.owns(peer), "{peer}");
        }
    }
}

#[test]
fn a_list_that_contradicts_itself_changes_nothing() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let weak = PeerConfig {
        entity_key: [2; 32],
        ..peer(2)
    };
    let own = sim.ids[0];
    for (peers, error) in [
        (
            vec![peer(2), peer(2)],
            ConfigError::DuplicatePeer(id(&peer(2))),
        ),
        (
            vec![peer(2), speaking_for(0, 3)],
            ConfigError::PeerIsSelf(own),
        ),
        (vec![weak], ConfigError::EntityKey(id(&peer(2)))),
    ] {
        assert_eq!(sim.nodes[0].set_peers(sim.now_ns, &peers), Err(error));
        sim.run(SECOND);
        assert!(sim.is_connected(0, 1));
    }
}
