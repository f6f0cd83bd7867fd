//! What is refused at first and may pass later: nodes that become known, clocks that are set, tables with room.

use crate::{
    bad::{count, request, true_word},
    shapes::{line, ring},
    world::{COST, Cut, MS, SECOND, World},
};
use virga_routing::{Destination, Reason, limits, message::Item};

fn knows(world: &World, node: usize, of: usize) -> bool {
    let to = Destination::Node(world.id(of));
    world.nodes[node].table.contains_key(&to)
}

#[test]
fn who_is_announced_before_it_is_known_is_reached_as_soon_as_it_is_known() {
    let mut world = line(1, 5);
    world.strangers.borrow_mut().extend([(2, 4), (1, 4)]);
    world.run_for(2 * SECOND);
    assert!(knows(&world, 3, 4) && !knows(&world, 2, 4) && !knows(&world, 0, 4));
    assert_eq!(count(&world, 2, Reason::Stranger), 1);
    world.strangers.borrow_mut().remove(&(2, 4));
    world.reconsider(2);
    world.run_for(200 * MS);
    assert!(knows(&world, 2, 4) && !knows(&world, 1, 4));
    world.strangers.borrow_mut().clear();
    world.reconsider(1);
    world.settle(200 * MS);
}

#[test]
fn a_node_that_begins_in_1970_is_there_when_its_clock_is_set() {
    let mut world = line(2, 4);
    let behind = -i64::try_from(crate::world::UNIX_S).unwrap();
    world.nodes[2].clock_ahead_s = behind;
    world.restart(2, 1);
    world.run_for(5 * SECOND);
    assert!(!knows(&world, 2, 0) && !knows(&world, 0, 2));
    world.nodes[2].clock_ahead_s = 0;
    // By the next time that it looks.
    world.settle(11 * SECOND);
}

#[test]
fn clocks_that_jump_take_no_route_away_while_what_was_said_before_holds() {
    let mut world = ring(3, 6);
    world.run_for(2 * SECOND);
    for (node, ahead) in [(1, 86_400), (2, -86_400), (4, 7 * 86_400)] {
        world.nodes[node].clock_ahead_s = ahead;
    }
    world.run_for(60 * SECOND);
    world.reset(1, 2);
    world.reset(4, 5);
    world.run_for(2 * SECOND);
    world.assert_right();
    // All have signed anew meanwhile.
    world.run_for(limits::RENEW_NS + 60 * SECOND);
    world.assert_right();
    for node in [1, 2, 4] {
        world.nodes[node].clock_ahead_s = 0;
    }
    world.run_for(20 * SECOND);
    world.assert_right();
    world.run_for(3 * limits::RENEW_NS);
    world.assert_right();
}

#[test]
fn what_found_no_room_is_taken_when_there_is_some() {
    let mut world = line(4, 6);
    world.setup.destinations_max = 5;
    // Node 0 is the only one with so small a table; it knows itself and four others.
    world.restart(0, 2_000);
    world.setup.destinations_max = limits::DESTINATIONS_MAX;
    world.run_for(2 * SECOND);
    assert_eq!((1..6).filter(|&n| knows(&world, 0, n)).count(), 4);
    let gone = (1..6).rev().find(|&n| knows(&world, 0, n)).unwrap();
    let left = (1..6).find(|&n| !knows(&world, 0, n)).unwrap();
    assert!(gone > 1 && left > 1);
    if gone > left {
        world.cut(gone - 1, gone, Cut::Reported);
        world.run_for((limits::LIFETIME_S + 2 * limits::SKEW_S) * SECOND);
        assert!(knows(&world, 0, left));
    }
}

#[test]
fn who_asks_as_fast_as_it_hears_makes_nobody_count_faster_than_its_pace() {
    let mut world = line(5, 4);
    world.run_for(2 * SECOND);
    world.nodes[0].is_evil = true;
    let seqno = |world: &World| {
        let to = Destination::Node(world.id(3));
        let mut routes = world.nodes[1].router.as_ref().unwrap().routes();
        routes.find(|route| route.destination == to).unwrap().seqno
    };
    let (before, messages) = (seqno(&world), world.messages);
    for _ in 0..1_000 {
        world.inject(0, 1, request(true_word(3, seqno(&world))));
        world.run_for(20 * MS);
    }
    let counted = seqno(&world) - before;
    let most = u64::from(limits::RENUMBER_BURST) + 21;
    assert!((3..=most).contains(&counted), "{counted} numbers in 20 s");
    let said = world.messages - messages - 1_000;
    assert!(said < 12 * most, "{said} messages");
    world.run_for(20 * SECOND);
    // Who really needs one gets it at once.
    let before = seqno(&world);
    world.inject(0, 1, request(true_word(3, before)));
    world.run_for(100 * MS);
    assert_eq!(seqno(&world), before + 1);
}

#[test]
fn a_metric_that_swings_is_told_no_faster_than_its_pace_and_in_the_end_as_it_is() {
    let mut world = line(6, 5);
    world.run_for(2 * SECOND);
    world.nodes[0].is_evil = true;
    let destination = Destination::Node(world.id(0));
    let said = |world: &World, node: usize| world.nodes[node].router.as_ref().unwrap().said();
    let before = [2, 3].map(|node| said(&world, node));
    for n in 0..500_u32 {
        let mut bytes = Vec::new();
        let metric = 1 + n % 2 * 5_000;
        Item::Metric {
            metric,
            destination,
        }
        .write(&mut bytes);
        world.inject(0, 1, bytes);
        world.run_for(20 * MS);
    }
    // Each swing is a way and its end, and so is each number that node 1 asks for meanwhile.
    let most = 2 * u64::from(limits::SWINGS_BURST + 21 + limits::RENUMBER_BURST + 11);
    for (node, before) in [2, 3].into_iter().zip(before) {
        let said = said(&world, node) - before;
        assert!(
            (16..=most).contains(&said),
            "{said} messages of node {node} in 10 s"
        );
    }
    let mut bytes = Vec::new();
    Item::Metric {
        metric: 1,
        destination,
    }
    .write(&mut bytes);
    world.inject(0, 1, bytes);
    world.run_for(3 * SECOND);
    let routes = |node: usize| world.nodes[node].router.as_ref().unwrap().routes();
    let metric = |node: usize| {
        routes(node)
            .find(|r| r.destination == destination)
            .unwrap()
            .metric
    };
    assert_eq!(metric(1), 1 + COST);
    assert_eq!(metric(4), 1 + 4 * COST);
}
