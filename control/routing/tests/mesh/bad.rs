//! Members that forge, replay and lie.

use crate::{
    shapes::{line, random},
    world::{
        Cheap, Cut, Entities, MS, NETWORK, Random, SECOND, Strangers, UNIX_S, World, node_key,
        stamp,
    },
};
use virga_ebpf::header::{NodeId, Subnet};
use virga_routing::{
    Announcement, Authority, Claim, Destination, Reason, limits,
    message::{Item, Number},
};

fn claim(index: usize, seqno: u64) -> Claim {
    let node_key = node_key(index);
    Claim {
        network: NETWORK,
        node_key,
        entity_key: node_key.map(|byte| !byte),
        subnet: Subnet(0),
        announced: 0,
        seqno,
        not_after_s: UNIX_S + 3_600,
    }
}

pub(crate) fn route(metric: u32, announcement: Announcement) -> Vec<u8> {
    let mut bytes = Vec::new();
    Item::Route {
        metric,
        announcement,
    }
    .write(&mut bytes);
    bytes
}

pub(crate) fn request(announcement: Announcement) -> Vec<u8> {
    let mut bytes = Vec::new();
    Item::Request {
        hops: 9,
        number: Number::Higher,
        announcement,
    }
    .write(&mut bytes);
    bytes
}

/// By the destination itself.
pub(crate) fn true_word(index: usize, seqno: u64) -> Announcement {
    let claim = claim(index, seqno);
    Announcement::issue(&claim, |message| stamp(claim.entity_key, message)).unwrap()
}

fn false_word(index: usize, seqno: u64) -> Announcement {
    Announcement::issue(&claim(index, seqno), |message| stamp([1; 32], message)).unwrap()
}

pub(crate) fn count(world: &World, node: usize, reason: Reason) -> u64 {
    world.nodes[node].router.as_ref().unwrap().count(reason)
}

#[test]
fn nobody_makes_a_number_but_the_destination() {
    let mut world = line(1, 5);
    world.run_for(SECOND);
    let before = world.nodes[2].table.clone();
    // Node 1 says that it is nearer to node 4 than anybody.
    world.inject(1, 2, route(0, false_word(4, 5_000)));
    world.run_for(SECOND);
    assert_eq!(world.nodes[2].table, before);
    assert_eq!(count(&world, 2, Reason::Forged), 1);
    world.assert_right();
}

#[test]
fn who_forges_too_much_is_not_listened_to_until_the_next_stream() {
    let mut world = line(2, 5);
    world.run_for(SECOND);
    for n in 0..100 {
        world.inject(1, 2, route(0, false_word(4, 5_000 + n)));
    }
    world.run_for(SECOND);
    assert_eq!(
        count(&world, 2, Reason::Forged),
        u64::from(limits::FORGED_MAX)
    );
    assert!(count(&world, 2, Reason::Muted) > 50);
    assert!(
        !world.nodes[2]
            .table
            .contains_key(&Destination::Node(world.id(0)))
    );
    world.walk(2, 4).unwrap();
    world.reset(1, 2);
    world.settle(2 * SECOND);
}

#[test]
fn an_old_announcement_does_not_win_however_near_it_is_said_to_be() {
    let mut world = line(3, 5);
    world.run_for(SECOND);
    let old = true_word(4, 1_000);
    // Its number has gone up since.
    world.restart(4, 2_000);
    world.settle(2 * SECOND);
    world.inject(1, 2, route(0, old));
    world.run_for(SECOND);
    assert_eq!(count(&world, 2, Reason::Old), 1);
    world.assert_right();
    let to = Destination::Node(world.id(4));
    assert_eq!(world.ids[&world.nodes[2].table[&to].primary], 3);
}

#[test]
fn what_has_ended_or_holds_for_too_long_is_refused() {
    let mut world = line(4, 3);
    world.run_for(SECOND);
    for (n, not_after_s) in [UNIX_S - 400, UNIX_S + 86_400].into_iter().enumerate() {
        let claim = Claim {
            not_after_s,
            ..claim(2, 9_000)
        };
        let word = Announcement::issue(&claim, |m| stamp(claim.entity_key, m)).unwrap();
        world.inject(0, 1, route(0, word));
        world.run_for(100 * MS);
        assert_eq!(count(&world, 1, Reason::Expired), n as u64 + 1);
    }
    world.settle(SECOND);
}

#[test]
fn a_flood_of_nodes_that_nobody_knows_fills_no_table() {
    let mut world = line(5, 3);
    world.run_for(SECOND);
    for index in 1_000..3_000 {
        world.inject(0, 1, route(0, true_word(index, 1)));
    }
    world.run_for(SECOND);
    assert_eq!(count(&world, 1, Reason::Stranger), 2_000);
    assert_eq!(world.nodes[1].router.as_ref().unwrap().len(), (3, 2));
    world.assert_right();
}

#[test]
fn a_table_that_is_full_keeps_what_it_has() {
    use virga_routing::{Now, Router, Setup};
    let now = Now {
        ns: 0,
        unix_s: UNIX_S,
    };
    let setup = Setup {
        destinations_max: 10,
        ..crate::world::SETUP
    };
    let mut router = Router::new(
        now,
        setup,
        Cheap {
            index: 0,
            known_below: 100,
            strangers: Strangers::default(),
            entities: Entities::default(),
        },
    );
    router.neighbour_up(now, NodeId(1), Subnet(0), 300);
    for index in 1..100 {
        router.handle(now, NodeId(1), &route(300, true_word(index, 1)));
        while router.poll_route().is_some() {}
    }
    assert_eq!(router.len(), (10, 1));
    assert_eq!(router.count(Reason::Full), 90);
    assert_eq!(router.routes().count(), 9);
}

#[test]
fn a_router_that_lies_draws_packets_and_makes_no_loop_among_others() {
    for seed in 0..6 {
        let mut world = random(seed, 20);
        world.run_for(2 * SECOND);
        let evil = Random(seed).below(20);
        world.nodes[evil].is_evil = true;
        world.nodes[evil].table.clear();
        let mut random = Random(seed);
        for _ in 0..200 {
            let (to, about) = (random.below(20), random.below(20));
            let metric = u32::try_from(random.between(0, 400)).unwrap();
            let seqno = 1_000 + random.between(0, 3) * 2;
            if world.peers(evil).contains(&to) {
                world.inject(evil, to, route(metric, true_word(about, seqno)));
            }
            let ends: Vec<_> = world.links.keys().copied().collect();
            let (a, b) = ends[random.below(ends.len())];
            match random.below(3) {
                0 => world.cut(a, b, Cut::Silent),
                _ => world.join(a, b),
            }
            world.run_for(random.between(0, 40 * MS));
        }
        // Whom the others have a way to without it, they find.
        let ends: Vec<(usize, usize)> = world.links.keys().copied().collect();
        for (a, b) in ends {
            match evil == a || evil == b {
                true => world.cut(a, b, Cut::Reported),
                false => world.join(a, b),
            }
        }
        world.settle(10 * SECOND);
    }
}

#[test]
fn requests_make_nobody_count_further_than_to_the_next_number() {
    let mut world = line(6, 3);
    world.run_for(SECOND);
    let seqno = |world: &World| {
        let to = Destination::Node(world.id(2));
        let mut routes = world.nodes[0].router.as_ref().unwrap().routes();
        routes.find(|route| route.destination == to).unwrap().seqno
    };
    let before = seqno(&world);
    for _ in 0..50 {
        world.inject(1, 2, request(true_word(2, before)));
    }
    world.run_for(SECOND);
    assert_eq!(seqno(&world), before + 1);
    world.inject(1, 2, request(false_word(2, u64::MAX - 1)));
    world.run_for(SECOND);
    assert_eq!(seqno(&world), before + 1);
    assert_eq!(count(&world, 2, Reason::Forged), 1);
}

#[test]
fn a_node_whose_keys_another_has_counts_on_and_makes_no_storm() {
    let mut world = line(7, 5);
    world.run_for(SECOND);
    for n in 0..1_000 {
        world.inject(3, 4, route(300, true_word(4, 2_000 + 2 * n)));
        world.run_for(20 * MS);
    }
    let router = world.nodes[4].router.as_ref().unwrap();
    let (twins, said) = (router.twins(), router.said());
    assert!(twins > limits::TWINS_MAX, "{twins}");
    assert!(said < 60, "{said} messages in 20 s");
}

#[test]
fn two_nodes_with_one_key_are_noticed_where_their_announcements_meet() {
    let mut world = line(7, 6);
    world.run_for(60 * SECOND);
    let torn = |world: &World| {
        let routers = world.nodes.iter().map(|node| node.router.as_ref().unwrap());
        routers
            .flat_map(|router| router.torn().collect::<Vec<_>>())
            .collect::<Vec<_>>()
    };
    assert_eq!(torn(&world), []);
    // Behind node 0 there is another that has node 5's keys.
    world.nodes[0].is_evil = true;
    world.inject(0, 1, route(0, true_word(5, 2_000)));
    world.run_for(60 * SECOND);
    assert!(torn(&world).contains(&Destination::Node(world.id(5))));
    world.reset(0, 1);
    world.run_for(60 * SECOND);
    assert_eq!(torn(&world), []);
}

#[test]
fn bytes_of_whatever_kind_end_no_router() {
    let mut world = line(8, 3);
    world.run_for(SECOND);
    let mut random = Random(8);
    let authority = Cheap {
        index: 2,
        known_below: 3,
        strangers: Strangers::default(),
        entities: Entities::default(),
    };
    assert_eq!(authority.node_key(), node_key(2));
    let valid = route(7, true_word(2, 1_001));
    for n in 0..5_000 {
        let mut bytes = match n % 2 {
            0 => (0..random.below(400))
                .map(|_| u8::try_from(random.below(4)).unwrap())
                .collect(),
            _ => valid.clone(),
        };
        if let Some(byte) = (!bytes.is_empty()).then(|| random.below(bytes.len())) {
            bytes[byte] ^= 1 << random.below(8);
        }
        world.inject(1, 0, bytes);
        if n % 100 == 0 {
            world.reset(0, 1);
            world.run_for(100 * MS);
        }
    }
    world.reset(0, 1);
    world.settle(2 * SECOND);
}
