//! Members that are removed, or speak for another entity, and what they said before.

use crate::{
    bad::{count, route, true_word},
    gateways::{INNER, hops, number, ring as gateways, word},
    shapes::{line, ring},
    world::{Cut, SECOND, UNIX_S, World},
};
use virga_routing::{Destination, Liveness, Reason, limits};

/// Nobody knows a node any more, and all are told so.
fn remove(world: &mut World, gone: usize) {
    let others = (0..world.nodes.len()).filter(|&node| node != gone);
    let others: Vec<usize> = others.collect();
    let pairs = others.iter().map(|&node| (node, gone));
    world.strangers.borrow_mut().extend(pairs);
    for node in others {
        world.reconsider(node);
    }
}

#[test]
fn a_gateway_that_is_removed_keeps_no_route_though_a_neighbour_goes_on_leading_there() {
    let mut world = gateways(21);
    world.run_for(30 * SECOND);
    assert_eq!(hops(&world, 3), Some((2, Some(4))));
    // Node 2 hears nothing of that, or will not.
    world.nodes[2].is_evil = true;
    let said = word(1, number(&world, 3));
    world
        .strangers
        .borrow_mut()
        .extend([0, 3, 4, 5].map(|node| (node, 1)));
    for node in [0, 3, 4, 5] {
        world.reconsider(node);
    }
    world.run_for(SECOND);
    assert_eq!(hops(&world, 3), Some((4, None)));
    world.inject(2, 3, route(0, said));
    world.run_for(SECOND);
    assert!(count(&world, 3, Reason::Stranger) > 0);
    assert_eq!(hops(&world, 3), Some((4, None)));
    let mut routes = world.nodes[3].router.as_ref().unwrap().routes();
    let origin = routes.find(|r| r.destination == INNER).unwrap().origin;
    assert_eq!(world.ids[&origin], 0);
}

#[test]
fn a_node_that_is_removed_is_gone_at_once_and_is_there_again_when_it_is_known_again() {
    let mut world = line(22, 6);
    world.run_for(SECOND);
    remove(&mut world, 5);
    world.run_for(SECOND);
    for node in 0..5 {
        assert!(world.walk(node, 5).is_err(), "{node} still leads there");
    }
    world.strangers.borrow_mut().clear();
    for node in 0..6 {
        world.reconsider(node);
    }
    world.settle(SECOND);
}

#[test]
fn the_highest_number_that_a_removed_gateway_could_say_starves_nobody() {
    let mut world = gateways(23);
    world.run_for(5 * SECOND);
    let edge_s = world.now_of(2).unix_s + limits::AHEAD_S;
    world.inject(1, 2, route(0, word(1, edge_s * 1_000)));
    world.run_for(SECOND);
    assert_eq!(number(&world, 2), edge_s * 1_000);
    remove(&mut world, 1);
    for peer in [0, 2] {
        world.cut(1, peer, Cut::Reported);
    }
    world.run_for(2 * SECOND);
    for node in 2..6 {
        world.walk(node, 0).unwrap();
    }
}

#[test]
fn a_gateway_whose_clock_is_behind_follows_a_removed_ones_number_as_soon_as_it_may() {
    let mut world = gateways(24);
    world.nodes[0].clock_ahead_s = -100;
    world.run_for(5 * SECOND);
    let edge_s = world.now_of(2).unix_s + limits::AHEAD_S;
    world.inject(1, 2, route(0, word(1, edge_s * 1_000)));
    world.run_for(SECOND);
    remove(&mut world, 1);
    for peer in [0, 2] {
        world.cut(1, peer, Cut::Reported);
    }
    world.run_for(130 * SECOND);
    for node in 2..6 {
        world.walk(node, 0).unwrap();
    }
}

#[test]
fn a_number_that_its_node_cannot_exceed_binds_others_for_minutes_and_not_for_an_hour() {
    let mut world = line(25, 5);
    world.run_for(SECOND);
    // Another that had the node's keys for a moment.
    world.nodes[1].is_evil = true;
    world.inject(1, 2, route(0, true_word(4, u64::MAX)));
    world.run_for(SECOND);
    world.cut(1, 2, Cut::Reported);
    world.run_for(SECOND);
    assert!(world.walk(2, 4).is_err());
    world.run_for(limits::FORGET_NS + 60 * SECOND);
    world.walk(2, 4).unwrap();
    world.walk(3, 4).unwrap();
}

#[test]
fn what_stays_unknown_is_not_said_again_at_each_declaration() {
    let mut world = line(26, 12);
    let unknown = (5..12).map(|node| (0, node));
    world.strangers.borrow_mut().extend(unknown);
    world.run_for(5 * SECOND);
    let before = world.messages;
    for _ in 0..50 {
        world.reconsider(0);
        world.run_for(SECOND);
    }
    assert_eq!(world.messages, before);
    world.strangers.borrow_mut().remove(&(0, 8));
    world.reconsider(0);
    world.run_for(SECOND);
    world.walk(0, 8).unwrap();
    assert!(world.messages - before <= 2, "{}", world.messages - before);
}

#[test]
fn a_node_that_speaks_for_another_entity_says_so_at_once() {
    for is_known_first in [true, false] {
        let mut world = ring(27, 6);
        world.run_for(5 * SECOND);
        let order: Vec<usize> = match is_known_first {
            true => vec![0, 1, 3, 4, 5, 2],
            false => vec![2, 5, 4, 3, 1, 0],
        };
        for node in order {
            world.entities.borrow_mut().insert((node, 2), 1);
            world.reconsider(node);
            world.run_for(SECOND / 2);
        }
        world.run_for(SECOND);
        world.assert_right();
        // Who has heard nothing before believes it.
        world.restart(3, 5_000);
        world.settle(3 * SECOND);
    }
}

#[test]
fn removed_and_readmitted_gateways_under_flapping_links_make_no_loop() {
    for seed in 0..4 {
        let mut world = gateways(30 + seed);
        let mut random = crate::world::Random(seed);
        let ends: Vec<(usize, usize)> = world.links.keys().copied().collect();
        for _ in 0..120 {
            let (a, b) = ends[random.below(ends.len())];
            let (node, of) = (random.below(6), random.below(2));
            match random.below(6) {
                0 => world.cut(a, b, Cut::Silent),
                1 => world.reset(a, b),
                2 | 3 => {
                    world.strangers.borrow_mut().insert((node, of));
                    world.reconsider(node);
                }
                4 => {
                    world.strangers.borrow_mut().clear();
                    world.reconsider(node);
                }
                _ => world.restart(a, (UNIX_S + random.between(0, 400)) * 1_000),
            }
            world.run_for(random.between(0, 90 * crate::world::MS));
        }
        world.strangers.borrow_mut().clear();
        for node in 0..6 {
            world.reconsider(node);
        }
        for (a, b) in ends {
            world.join(a, b);
        }
        // A number may be as far ahead as the time allows.
        world.run_for((limits::AHEAD_S + 20) * SECOND);
        world.settle(20 * SECOND);
    }
}

#[test]
fn over_a_neighbour_that_is_barred_only_what_is_for_itself_goes() {
    let mut world = crate::shapes::diamond(34);
    world.run_for(2 * SECOND);
    let id = |world: &World, node: usize| Destination::Node(world.id(node));
    let used = world.ids[&world.nodes[0].table[&id(&world, 3)].primary];
    world.set_liveness(0, used, Liveness::Barred);
    world.run_for(2 * SECOND);
    let to = |world: &World, node: usize| {
        let hops = world.nodes[0].table[&id(world, node)];
        (world.ids[&hops.primary], hops.backup.is_some())
    };
    assert_eq!(to(&world, 3), (3 - used, false));
    assert_eq!(to(&world, used).0, used);
    world.set_liveness(0, used, Liveness::Alive);
    world.run_for(3 * SECOND);
    assert!(to(&world, 3).1);
}
