//! Liars, floods, and two nodes with one key.

use crate::world::{
    Keys, World, address, claim, entity, entity_key, id, node_key, pinned, setup, signed,
};
use ed25519_dalek::Signer as _;
use std::{collections::BTreeMap, net::SocketAddr};
use virga_discovery::{
    Discovery, Found, Notice, Origin, Reason, Record, Stage, discovery::Configured, source::Teller,
    wire::Message,
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
    let keys = Keys {
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

/// The keys of node 1, which admits nobody of whom its file says nothing.
fn unnamed() -> Keys {
    Keys {
        key: entity(1),
        admits: |_| false,
    }
}

#[test]
fn a_seed_or_a_line_of_a_list_that_is_taken_away_is_not_dialled_again() {
    let mut world = World::default();
    let at = world.start(1, &[2]);
    world.nodes[at].core.configure(unnamed(), BTreeMap::new());
    world.start(2, &[1]);
    world.run_until("both have a session", 30, World::is_whole);
    let now = world.now();
    let core = &mut world.nodes[at].core;
    core.found(now, Origin::File, Found::Pinned(pinned(2)));
    core.found(now, Origin::File, Found::Unpinned(id(2)));
    world.run(30);
    assert!(world.is_whole(), "it is a seed still");
    let now = world.now();
    let core = &mut world.nodes[at].core;
    core.found(now, Origin::Seed, Found::Unpinned(id(2)));
    world.run(600);
    assert_eq!(world.nodes[at].core.known().count(), 0);
    assert!(world.nodes[at].adopted.is_empty() && world.nodes[at].sessions.is_empty());
    assert!(world.nodes[at].core.refused(Reason::Unnamed) > 0);
}

/// A peer of the file, which was reached.
fn with_peer(world: &mut World, at: usize, number: u16) {
    let now = world.now();
    let peer = Configured {
        entities: vec![entity_key(number)],
        address: Some(address(number)),
    };
    let core = &mut world.nodes[at].core;
    core.configure(unnamed(), [(id(number), peer)].into());
    core.session_began(now, id(number), entity_key(number));
    let words = Message::Records(vec![signed(&claim(number, now, 5), number)]);
    core.handle(now, id(number), &words.encode());
    assert!(core.known().all(|known| known.stage() == Stage::Proven));
}

#[test]
fn a_peer_that_is_taken_out_of_the_file_is_not_dialled_again() {
    let mut world = World::default();
    let at = world.start(1, &[]);
    with_peer(&mut world, at, 3);
    assert_eq!(world.nodes[at].core.known().count(), 1);
    let now = world.now();
    let core = &mut world.nodes[at].core;
    core.configure(unnamed(), BTreeMap::new());
    core.session_ended(now, id(3));
    world.run(60);
    assert_eq!(world.nodes[at].core.known().count(), 0);
    assert!(world.nodes[at].adopted.is_empty());
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

/// By a record that claims another one's node key.
fn stolen(world: &World, number: u16, instance: u64, sequence: u64) -> Record {
    let mut stolen = claim(9, world.now(), sequence);
    (stolen.node_key, stolen.instance) = (node_key(number), instance);
    signed(&stolen, 9)
}

#[test]
fn who_claims_anothers_key_and_two_lives_is_refused_alone() {
    let mut world = World::default();
    let at = world.start(1, &[]);
    let now = world.now();
    tell(&mut world, at, 7, signed(&claim(2, now, 5), 2));
    for (instance, sequence) in [(1, 5), (2, 6), (1, 7)] {
        let record = stolen(&world, 2, instance, sequence);
        tell(&mut world, at, 9, record);
    }
    let core = &world.nodes[at].core;
    assert_eq!(core.refused(Reason::Twin), 1);
    let torn = core.known().filter(|known| known.is_torn()).count();
    assert_eq!((core.known().count(), torn), (2, 1));
    world.start(2, &[]);
    world.run_until("its holder is reached", 60, |world| {
        world.nodes[at].sessions.len() == 1
    });
}

#[test]
fn a_session_proves_the_entity_that_was_shown_in_it_and_no_other() {
    let mut world = World::default();
    let at = world.start(1, &[]);
    let record = stolen(&world, 2, 1, 5);
    tell(&mut world, at, 9, record);
    world.run(1);
    let now = world.now();
    let core = &mut world.nodes[at].core;
    let is_dialled =
        |known: &virga_discovery::Known| matches!(known.stage(), Stage::Dialling { .. });
    assert!(core.known().all(is_dialled));
    core.session_began(now, id(2), entity_key(2));
    assert!(core.known().all(is_dialled));
    core.session_began(now, id(2), entity_key(9));
    assert!(core.known().all(|known| known.stage() == Stage::Proven));
}

#[test]
fn a_node_at_whose_address_another_one_is_is_tried_when_that_is_gone() {
    let mut world = World::default();
    let at = world.start(1, &[]);
    let any = || Keys {
        key: entity(1),
        admits: |_| true,
    };
    let peer = Configured {
        entities: vec![entity_key(3)],
        address: Some(address(2)),
    };
    world.nodes[at]
        .core
        .configure(any(), [(id(3), peer)].into());
    let now = world.now();
    tell(&mut world, at, 9, signed(&claim(2, now, 5), 2));
    world.run(300);
    assert_eq!(world.nodes[at].core.known().count(), 1);
    assert!(world.nodes[at].adopted.is_empty());
    world.nodes[at].core.configure(any(), BTreeMap::new());
    world.run(5);
    assert!(world.nodes[at].adopted.contains_key(&id(2)));
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
        let keys = Keys {
            key: entity(1),
            admits: |_| true,
        };
        assert!(Discovery::new(world.now(), setup, keys).is_none(), "{bad}");
    }
}
