//! Liars, floods, and two nodes with one key.

use crate::world::{World, address, claim, entity, id, node_key, setup, signed};
use ed25519_dalek::Signer as _;
use std::net::SocketAddr;
use virga_discovery::{
    Discovery, Found, Notice, Origin, Reason, Record, Stage, source::Teller, wire::Message,
};
use virga_ebpf::header::NodeId;

fn tell(world: &mut World, at: usize, teller: u64, record: Record) {
    let now = world.now();
    let found = Found::Record {
        record: Box::new(record),
        seen_at: None,
        teller: Teller::Peer(NodeId(teller)),
    };
    world.nodes[at].core.found(now, Origin::Exchange, found);
}

#[test]
fn nobody_speaks_for_another_and_old_words_never_win() {
    let mut world = World::default();
    let at = world.start(1, &[]);
    let now = world.now();
    let count = |world: &World, reason| world.nodes[at].core.refused(reason);

    let forged = Record::issue(&claim(2, now, 5), |m| entity(3).sign(m).to_bytes()).unwrap();
    tell(&mut world, at, 9, forged);
    assert_eq!(count(&world, Reason::Forged), 1);
    let mut elsewhere = claim(2, now, 5);
    elsewhere.network = [1; 32];
    tell(&mut world, at, 9, signed(&elsewhere, 2));
    assert_eq!(count(&world, Reason::OtherNetwork), 1);
    for issued_s in [now.unix_s - 10_000, now.unix_s + 10_000] {
        let mut claim = claim(2, now, 5);
        claim.issued_s = issued_s;
        tell(&mut world, at, 9, signed(&claim, 2));
    }
    assert_eq!(count(&world, Reason::Expired), 2);
    assert_eq!(world.nodes[at].core.known().count(), 0);

    tell(&mut world, at, 9, signed(&claim(2, now, 5), 2));
    let mut older = claim(2, now, 4);
    older.addresses = vec![address(77)];
    tell(&mut world, at, 9, signed(&older, 2));
    assert_eq!(count(&world, Reason::Old), 1);
    world.run(1);
    assert_eq!(world.nodes[at].adopted[&id(2)].address, address(2));
    // A word under this node's own key and another entity's.
    let mut stolen = claim(3, now, 5);
    stolen.node_key = node_key(1);
    tell(&mut world, at, 9, signed(&stolen, 3));
    assert_eq!(count(&world, Reason::KeyTaken), 1);
}

#[test]
fn who_is_not_admitted_is_not_dialled() {
    let mut world = World::default();
    let at = world.start(1, &[]);
    let keys = crate::world::Keys {
        key: entity(1),
        admits: |claim| claim.name != "n2",
    };
    world.nodes[at].core.configure(keys, Default::default());
    let now = world.now();
    for number in [2, 3] {
        tell(&mut world, at, 9, signed(&claim(number, now, 5), number));
    }
    world.run(1);
    assert_eq!(world.nodes[at].core.refused(Reason::Unnamed), 1);
    assert!(world.nodes[at].adopted.keys().eq([&id(3)]));
}

/// Each of a hundred tellers makes up a thousand nodes.
#[test]
fn a_flood_of_unknown_nodes_takes_bounded_room_and_those_that_are_there_are_kept() {
    let mut world = World::default();
    let at = world.start(1, &[]);
    world.start(2, &[1]);
    world.start(3, &[1]);
    world.run_until("all have sessions", 30, World::is_whole);
    let most = 256;
    let mut largest = 0;
    for number in 1_000..11_000_u16 {
        let now = world.now();
        tell(
            &mut world,
            at,
            u64::from(number % 100),
            signed(&claim(number, now, 5), number),
        );
        largest = largest.max(world.nodes[at].core.known().count());
        if number % 500 == 0 {
            world.step();
        }
    }
    assert!(largest <= most + 3, "{largest}");
    let dialling = world.nodes[at].core.known();
    let dialling = dialling.filter(|known| matches!(known.stage(), Stage::Dialling { .. }));
    assert!(dialling.count() <= 16);
    let core = &world.nodes[at].core;
    assert!(core.refused(Reason::Full) + core.refused(Reason::TellerFull) > 8_000);
    assert!(world.is_whole_of(&[0, 1, 2]));
    // None of them was passed on.
    world.run(60);
    for other in [1, 2] {
        assert_eq!(world.nodes[other].core.known().count(), 2);
    }
    // And they are forgotten, so that others find room.
    world.run(1_200);
    world.start(4, &[1]);
    world.run_until("a fourth is found", 60, World::is_whole);
}

#[test]
fn one_teller_has_a_share_of_the_room() {
    let mut world = World::default();
    let at = world.start(1, &[]);
    let now = world.now();
    for number in 1_000..1_500_u16 {
        tell(&mut world, at, 7, signed(&claim(number, now, 5), number));
    }
    assert_eq!(world.nodes[at].core.known().count(), 64);
    tell(&mut world, at, 8, signed(&claim(2, now, 5), 2));
    assert_eq!(world.nodes[at].core.known().count(), 65);
}

#[test]
fn a_peer_that_says_too_much_is_not_listened_to_for_a_while() {
    let mut world = World::default();
    world.start(1, &[]);
    world.start(2, &[1]);
    world.run_until("both have a session", 30, World::is_whole);
    let now = world.now();
    let message = Message::Records(vec![signed(&claim(3, now, 5), 3)]).encode();
    for _ in 0..1_000 {
        world.nodes[0].core.handle(now, id(2), &message);
        world.nodes[0].core.handle(now, id(2), b"nonsense");
    }
    assert!(world.nodes[0].core.refused(Reason::Busy) > 1_000);
    assert!(world.nodes[0].core.refused(Reason::Malformed) > 0);
    world.run(30);
    assert!(world.is_whole_of(&[0, 1]));
}

/// A copy of a node's disk is started on another machine.
#[test]
fn two_nodes_with_one_key_are_refused_and_that_is_said() {
    let mut world = World::default();
    for number in 1..=4 {
        world.start(number, &[if number == 1 { 2 } else { 1 }]);
    }
    world.run_until("all have sessions", 60, World::is_whole);
    let mut elsewhere = address(4);
    elsewhere.set_port(1_000);
    world.start_with(4, elsewhere, &[1], |_| {});
    let is_said = |world: &World, at: usize| {
        let notices = world.nodes[at].notices.iter();
        notices
            .filter(|n| matches!(n, Notice::Twins { node, .. } if *node == id(4)))
            .count()
            > 0
    };
    world.run_until("it is said", 300, |world| is_said(world, 0));
    world.step();
    assert!(!world.nodes[0].adopted.contains_key(&id(4)));
    let known = world.nodes[0].core.known();
    assert!(
        known
            .filter(|known| known.node() == id(4))
            .all(|known| known.is_torn())
    );
    world.run(120);
    assert!(world.nodes[0].core.refused(Reason::Twin) > 1);
    assert!(!world.nodes[0].adopted.contains_key(&id(4)));
    assert!(world.is_whole_of(&[0, 1, 2]), "the others go on");
}

/// A node whose clock was ahead in an earlier life is believed all the same, and is no twin of itself.
#[test]
fn a_clock_that_was_set_back_makes_no_twin() {
    let mut world = World::default();
    world.start(1, &[]);
    world.start(2, &[1]);
    let ahead = world.start_with(3, address(3), &[1], |setup| setup.started_ms += 60_000_000);
    world.run_until("all have sessions", 60, World::is_whole);
    world.kill(ahead);
    world.run(5);
    world.start(3, &[1]);
    world.run_until("all have sessions again", 120, World::is_whole);
    world.run(60);
    let notices = world.nodes.iter().flat_map(|node| &node.notices);
    assert_eq!(
        notices
            .filter(|n| matches!(n, Notice::Twins { .. }))
            .count(),
        0
    );
}

/// Another entity claims a node's key first; the node itself is found all the same.
#[test]
fn a_key_that_somebody_else_claims_is_its_holders() {
    let mut world = World::default();
    let at = world.start(1, &[]);
    let now = world.now();
    let mut stolen = claim(9, now, 5);
    stolen.node_key = node_key(2);
    tell(&mut world, at, 9, signed(&stolen, 9));
    world.start(2, &[1]);
    world.run_until("both have a session", 120, World::is_whole);
    tell(&mut world, at, 9, signed(&claim_of(stolen, 6), 9));
    assert!(world.nodes[at].core.refused(Reason::KeyTaken) > 0);
    assert!(world.is_whole());
}

fn claim_of(mut claim: virga_discovery::Claim, sequence: u64) -> virga_discovery::Claim {
    claim.sequence = sequence;
    claim
}

#[test]
fn an_address_that_nobody_can_be_at_makes_no_record() {
    let world = World::default();
    for bad in ["0.0.0.0:1", "224.0.0.1:1", "10.0.0.1:0", "[fe80::1]:1"] {
        let mut setup = setup(1, address(1), world.now());
        setup.addresses = vec![bad.parse::<SocketAddr>().unwrap()];
        let keys = crate::world::Keys {
            key: entity(1),
            admits: |_| true,
        };
        assert!(Discovery::new(world.now(), setup, keys).is_none(), "{bad}");
    }
}
