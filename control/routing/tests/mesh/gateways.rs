//! Subnets that several gateways announce, each with numbers of its own.

use crate::{
    bad::request,
    world::{COST, Cut, MS, NETWORK, Random, SECOND, UNIX_S, World, key, node_key, stamp},
};
use virga_ebpf::{header::Subnet, subnet::SubnetPrefix};
use virga_routing::{
    Aggregation, Announcement, Claim, Destination, NextHops, Reason, limits, message::Item,
};

pub(crate) const INNER: Destination = Destination::Subnet(SubnetPrefix {
    subnet: Subnet(0x0100_0000),
    mask: 0xff00_0000,
});

/// A ring: 0 and 1 are in one subnet, and its gateways; 2 to 5 lie between them outside.
pub(crate) fn ring(seed: u64) -> World {
    let subnet = |node| Subnet(if node < 2 { 0x0100_0000 } else { 0x0500_0000 });
    let subnets: Vec<Subnet> = (0..6).map(subnet).collect();
    let mut world = World::in_subnets(seed, &subnets, Aggregation::BySubnet);
    // Node 4 is nearer to gateway 0 than 3 is to gateway 1.
    for (a, b, cost) in [
        (0, 1, COST),
        (1, 2, COST),
        (2, 3, COST),
        (3, 4, COST),
        (4, 5, COST / 3),
        (5, 0, COST),
    ] {
        world.add_link(a, b, MS, cost);
    }
    world.run_for(2 * SECOND);
    world.run_for(3 * SECOND);
    // From here on its gateways have unlike numbers.
    world.inject(2, 1, request(word(1, 2_000_000)));
    world.run_for(500 * MS);
    assert!(number(&world, 3) >= 2_000_000 && number(&world, 4) < 2_000_000);
    world
}

pub(crate) fn hops(world: &World, node: usize) -> Option<(usize, Option<usize>)> {
    let hops: &NextHops = world.nodes[node].table.get(&INNER)?;
    let backup = hops.backup.map(|id| world.ids[&id]);
    Some((world.ids[&hops.primary], backup))
}

pub(crate) fn number(world: &World, node: usize) -> u64 {
    let mut routes = world.nodes[node].router.as_ref().unwrap().routes();
    routes.find(|r| r.destination == INNER).unwrap().seqno
}

pub(crate) fn word(index: usize, seqno: u64) -> Announcement {
    let node_key = node_key(index);
    let claim = Claim {
        network: NETWORK,
        node_key,
        entity_key: node_key.map(|byte| !byte),
        subnet: Subnet(0x0100_0000),
        announced: 8,
        seqno,
        not_after_s: UNIX_S + 3_600,
    };
    Announcement::issue(&claim, |message| stamp(claim.entity_key, message)).unwrap()
}

#[test]
fn a_backup_that_leads_to_another_gateway_is_found_and_then_there_is_peace() {
    let mut world = ring(1);
    world.run_for(30 * SECOND);
    assert_eq!(hops(&world, 3), Some((2, Some(4))));
    assert_eq!(number(&world, 3), number(&world, 4));
    let before = world.messages;
    world.run_for(600 * SECOND);
    assert_eq!(world.messages, before, "nothing has changed");
    world.assert_right();
}

#[test]
fn a_gateway_that_is_no_member_any_more_starves_nobody() {
    let mut world = ring(2);
    let all = (0..6).filter(|&node| node != 1).map(|node| (node, 1));
    world.strangers.borrow_mut().extend(all);
    for peer in [0, 2] {
        world.cut(1, peer, Cut::Reported);
    }
    world.run_for(2 * SECOND);
    for node in 2..6 {
        let way = hops(&world, node);
        assert!(way.is_some(), "node {node} has no way");
        world.walk(node, 0).unwrap();
    }
}

#[test]
fn a_number_of_the_future_is_nobodys_and_binds_nobody() {
    for seqno in [u64::MAX, u64::MAX - 1, (UNIX_S + 4_000) * 1_000] {
        let mut world = ring(3);
        world.run_for(5 * SECOND);
        let before = number(&world, 2);
        world.nodes[1].is_evil = true;
        for metric in [0, 1] {
            let mut bytes = Vec::new();
            let announcement = word(1, seqno);
            Item::Route {
                metric,
                announcement,
            }
            .write(&mut bytes);
            world.inject(1, 2, bytes);
            world.run_for(100 * MS);
        }
        // A newer one may have been asked for meanwhile; none came from there.
        assert!((before..before + 16).contains(&number(&world, 2)));
        let router = world.nodes[2].router.as_ref().unwrap();
        assert_eq!(router.count(Reason::Ahead), 2);
        for peer in [0, 2] {
            world.cut(1, peer, Cut::Reported);
        }
        world.run_for(2 * SECOND);
        for node in 2..6 {
            world.walk(node, 0).unwrap();
        }
    }
}

#[test]
fn a_request_with_a_number_of_the_future_moves_no_gateway() {
    let mut world = ring(4);
    world.run_for(5 * SECOND);
    let before = number(&world, 5);
    let ahead = word(1, (UNIX_S + limits::AHEAD_S + 100) * 1_000);
    world.inject(5, 0, request(ahead));
    world.run_for(SECOND);
    assert_eq!(number(&world, 5), before);
}

#[test]
fn a_gateway_that_has_just_started_draws_nothing_until_it_leads_into_its_subnet() {
    let mut world = ring(5);
    world.run_for(30 * SECOND);
    // Its outer link comes first, and what it leads into later.
    world.restart(0, 3_000_000);
    world.cut(0, 1, Cut::Reported);
    for _ in 0..30 {
        world.run_for(10 * MS);
        // Over which gateway, packets for the other node get there, or are known not to.
        for node in 2..6 {
            assert!(!is_dropped_at(&world, node, 0), "{} ms", world.now_ns / MS);
        }
    }
    world.run_for(2 * SECOND);
    for node in 2..6 {
        world.walk(node, 1).unwrap();
    }
    world.join(0, 1);
    world.settle(3 * SECOND);
}

/// Whether packets for node 1 from a node end at that other, which has no way on.
fn is_dropped_at(world: &World, node: usize, end: usize) -> bool {
    let mut at = node;
    for _ in 0..world.nodes.len() {
        match world.nodes[at].table.get(&INNER) {
            Some(next) if world.links[&key(at, world.ids[&next.primary])].is_up => {
                at = world.ids[&next.primary];
            }
            _ => break,
        }
    }
    let inner = Destination::Node(world.id(1));
    at == end && !world.nodes[end].table.contains_key(&inner)
}

#[test]
fn a_gateway_that_is_cut_off_from_its_subnet_gives_way_to_the_other() {
    let subnet = |node| Subnet(if node < 3 { 0x0100_0000 } else { 0x0500_0000 });
    let subnets: Vec<Subnet> = (0..6).map(subnet).collect();
    let mut world = World::in_subnets(6, &subnets, Aggregation::BySubnet);
    for (a, b) in [(0, 1), (1, 2), (0, 3), (3, 4), (4, 5), (5, 2)] {
        world.add_link(a, b, MS, COST);
    }
    world.settle(2 * SECOND);
    world.cut(0, 1, Cut::Silent);
    world.run_for(2 * SECOND);
    for node in 3..6 {
        world.walk(node, 1).unwrap();
        world.walk(node, 2).unwrap();
    }
    world.join(0, 1);
    world.settle(2 * SECOND);
    // The only node of its subnet is reached, however long the way is said to be.
    for (a, b) in [(0, 1), (5, 2)] {
        world.cut(a, b, Cut::Silent);
    }
    world.run_for(2 * SECOND);
    world.walk(5, 0).unwrap();
}

#[test]
fn levels_of_0_in_the_middle_are_levels_like_others() {
    type Mesh = (&'static [u32], &'static [(usize, usize)]);
    let meshes: [Mesh; 3] = [
        (&[0x0100_0300, 0x0100_0000, 0x0105_0000], &[(0, 1), (1, 2)]),
        (
            &[0x0000_0300, 0, 0x0500_0000, 0x0000_0001],
            &[(0, 1), (1, 2), (1, 3)],
        ),
        // Both subnets of 1.0.0.0/16 hang together by a node of 1.0.0.0 only.
        (
            &[0x0100_0300, 0x0100_0000, 0x0105_0000, 0x0100_0400],
            &[(0, 1), (2, 3), (1, 3)],
        ),
    ];
    for (seed, (subnets, links)) in (10..).zip(meshes) {
        let subnets: Vec<Subnet> = subnets.iter().copied().map(Subnet).collect();
        let mut world = World::in_subnets(seed, &subnets, Aggregation::BySubnet);
        for &(a, b) in links {
            world.add_link(a, b, MS, COST);
        }
        world.run_for(2 * SECOND);
        world.assert_right();
    }
}

/// Three subnets of eight, tied with each other three times.
fn three(seed: u64) -> World {
    let subnets: Vec<Subnet> = (0..24_u32).map(|n| Subnet((n / 8 + 1) << 24)).collect();
    let mut world = World::in_subnets(seed, &subnets, Aggregation::BySubnet);
    let mut random = Random(seed);
    let inner = (0..3).flat_map(|s| (0..8).map(move |n| (8 * s + n, 8 * s + (n + 1) % 8)));
    let mut links: Vec<(usize, usize)> = inner.collect();
    for (one, other) in [(0, 1), (1, 2), (2, 0)] {
        for _ in 0..3 {
            links.push((8 * one + random.below(8), 8 * other + random.below(8)));
        }
    }
    for (a, b) in links {
        let delay = random.between(MS / 5, 5 * MS);
        if !world.links.contains_key(&key(a, b)) {
            world.add_link(a, b, delay, COST + u32::try_from(delay / 10_000).unwrap());
        }
    }
    world
}

#[test]
fn subnets_whose_links_flap_and_whose_nodes_restart_make_no_loop_and_come_to_peace() {
    for seed in 0..6 {
        let mut world = three(seed);
        world.settle(5 * SECOND);
        let mut random = Random(seed);
        let ends: Vec<(usize, usize)> = world.links.keys().copied().collect();
        for n in 0..100 {
            let (a, b) = ends[random.below(ends.len())];
            match random.below(6) {
                0 => world.cut(a, b, Cut::Reported),
                1 => world.cut(a, b, Cut::Silent),
                2 => world.join(a, b),
                3 => world.reset(a, b),
                4 => world.restart(a, [1, 1_000, 100_000 + n][random.below(3)]),
                _ => world.set_cost(a, b, u32::try_from(random.between(100, 900)).unwrap()),
            }
            world.run_for(random.between(0, 60 * MS));
        }
        for &(a, b) in &ends {
            world.join(a, b);
        }
        world.settle(20 * SECOND);
        world.run_for(120 * SECOND);
        let before = world.messages;
        world.run_for(600 * SECOND);
        assert_eq!(world.messages, before, "seed {seed}: nothing has changed");
    }
}

#[test]
fn a_subnet_of_one_node_is_reached_by_the_better_way_too() {
    let subnets = [0x0100_0000, 0x0500_0000, 0x0500_0000, 0x0500_0000].map(Subnet);
    let mut world = World::in_subnets(11, &subnets, Aggregation::BySubnet);
    for (a, b) in [(0, 1), (0, 2), (1, 3), (2, 3)] {
        world.add_link(a, b, MS, COST);
    }
    world.settle(2 * SECOND);
    let (used, _) = hops(&world, 3).unwrap();
    world.set_cost(3, used, 20 * COST);
    world.run_for(SECOND);
    assert_eq!(hops(&world, 3).unwrap().0, 3 - used);
}

/// Node 0 is a subnet's only gateway, and 1 and 2 are outside, one behind the other.
fn behind_one_gateway(seed: u64) -> World {
    let subnets = [0x0100_0000, 0x0500_0000, 0x0500_0000].map(Subnet);
    let mut world = World::in_subnets(seed, &subnets, Aggregation::BySubnet);
    world.add_link(0, 1, MS, COST);
    world.add_link(1, 2, MS, COST);
    world.restart(0, UNIX_S * 1_000);
    world.settle(2 * SECOND);
    world
}

#[test]
fn a_gateway_whose_clock_goes_back_is_led_to_while_its_word_holds() {
    for back_s in [1_000, 86_400] {
        let mut world = behind_one_gateway(12);
        world.nodes[0].clock_ahead_s = -back_s;
        world.run_for(30 * SECOND);
        world.assert_right();
        // What it signs a day ago has ended.
        if back_s < 3_600 {
            let now = number(&world, 2);
            world.inject(1, 0, request(word(0, now)));
            world.run_for(SECOND);
            assert_eq!(number(&world, 2), now + 1);
            world.assert_right();
        }
        world.nodes[0].clock_ahead_s = 0;
        world.run_for(3 * limits::RENEW_NS);
        world.assert_right();
    }
}

#[test]
fn a_gateway_that_begins_with_a_clock_ahead_is_led_to_when_it_is_set() {
    let mut world = behind_one_gateway(13);
    world.nodes[0].clock_ahead_s = 86_400;
    world.restart(0, (UNIX_S + 86_400) * 1_000);
    world.run_for(5 * SECOND);
    assert_eq!(hops(&world, 2), None);
    world.nodes[0].clock_ahead_s = 0;
    // By the next time that it looks.
    world.settle(12 * SECOND);
}

#[test]
fn a_number_that_a_clock_finds_too_high_is_taken_as_soon_as_its_time_has_come() {
    let mut world = behind_one_gateway(14);
    world.nodes[1].clock_ahead_s = -100;
    world.restart(0, (UNIX_S + limits::AHEAD_S - 40) * 1_000);
    world.restart(1, 3_000);
    world.run_for(30 * SECOND);
    assert_eq!(hops(&world, 2), None);
    world.run_for(45 * SECOND);
    world.assert_right();
}

#[test]
fn gateways_that_sign_anew_are_followed_and_then_there_is_peace_again() {
    for seed in 0..6 {
        let mut world = three(seed);
        // Some subnets hang together no more, and some gateways are alone.
        let ends: Vec<(usize, usize)> = world.links.keys().copied().collect();
        let mut random = Random(seed);
        for _ in 0..2 * seed {
            let (a, b) = ends[random.below(ends.len())];
            world.cut(a, b, Cut::Reported);
        }
        world.run_for(60 * SECOND);
        let (mut busy_s, mut before) = (0, world.messages);
        for _ in 0..1_080 {
            world.run_for(10 * SECOND);
            busy_s += 10 * u64::from(world.messages != before);
            before = world.messages;
        }
        // Each signs anew every half an hour.
        assert!(busy_s <= 300, "seed {seed}: {busy_s} s of three hours");
    }
}
