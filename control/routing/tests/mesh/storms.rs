//! Members that make others talk, and what nobody should talk about.

use crate::{
    bad::{route, true_word},
    shapes::line,
    world::{COST, Cut, MS, SECOND, World},
};
use virga_routing::{
    Destination, Liveness, limits,
    message::{Item, Number},
};

fn said(world: &World, node: usize) -> u64 {
    world.nodes[node].router.as_ref().unwrap().said()
}

fn number(world: &World, node: usize, of: usize) -> u64 {
    let to = Destination::Node(world.id(of));
    let mut routes = world.nodes[node].router.as_ref().unwrap().routes();
    routes.find(|route| route.destination == to).unwrap().seqno
}

#[test]
fn a_member_that_counts_as_fast_as_it_can_is_told_on_no_faster_than_its_pace() {
    let mut world = line(41, 6);
    world.run_for(2 * SECOND);
    world.nodes[0].is_evil = true;
    let before = [1, 3].map(|node| said(&world, node));
    for n in 0..1_000 {
        world.inject(0, 1, route(0, true_word(0, 10_000 + n)));
        world.run_for(10 * MS);
    }
    let most = u64::from(limits::NUMBERS_BURST) + 10 * SECOND / limits::NUMBER_PAUSE_NS + 5;
    for (node, before) in [1, 3].into_iter().zip(before) {
        let said = said(&world, node) - before;
        assert!(said <= most, "{said} messages of node {node} in 10 s");
    }
    world.run_for(4 * SECOND);
    assert_eq!(number(&world, 5, 0), 10_999);
    // And nobody else's words wait for that.
    world.cut(4, 5, Cut::Reported);
    world.run_for(100 * MS);
    assert!(world.walk(1, 5).is_err());
    world.join(4, 5);
    world.run_for(200 * MS);
    world.walk(1, 5).unwrap();
}

#[test]
fn who_asks_without_end_keeps_nobody_else_from_asking() {
    for hops in [1, 2] {
        let mut world = World::new(42, 5);
        for (a, b) in [(0, 1), (1, 2), (2, 3), (4, 1)] {
            world.add_link(a, b, MS, COST);
        }
        world.run_for(2 * SECOND);
        let ask = |number: u64, hops: u8| {
            let mut bytes = Vec::new();
            Item::Request {
                hops,
                number: Number::Higher,
                announcement: true_word(3, number),
            }
            .write(&mut bytes);
            bytes
        };
        let before = number(&world, 1, 3);
        for n in 0..1_000 {
            // None of these gets as far as to node 3.
            world.inject(0, 1, ask(before, hops));
            if n > 800 && n % 20 == 10 {
                world.inject(4, 1, ask(before, 9));
            }
            world.run_for(5 * MS);
        }
        assert_eq!(number(&world, 1, 3), before + 1, "{hops}");
    }
}

#[test]
fn nobody_is_asked_for_a_way_over_a_link_that_is_dead() {
    let mut world = line(43, 5);
    world.run_for(2 * SECOND);
    world.set_liveness(1, 2, Liveness::Dead);
    world.run_for(2 * SECOND);
    let (before, at) = (world.messages, number(&world, 2, 4));
    world.run_for(100 * SECOND);
    assert_eq!((world.messages, number(&world, 2, 4)), (before, at));
    world.set_liveness(1, 2, Liveness::Alive);
    world.settle(SECOND);
}

#[test]
fn a_member_whose_way_gets_longer_again_and_again_makes_nobody_count_faster_than_its_pace() {
    let mut world = line(44, 6);
    world.run_for(2 * SECOND);
    world.nodes[2].is_evil = true;
    let destination = Destination::Node(world.id(0));
    let (number_before, said_before) = (number(&world, 1, 0), said(&world, 3));
    for n in 0..500_u32 {
        let mut bytes = Vec::new();
        // As near as it is, and so much farther that node 3 may still use it.
        let metric = 2 * COST + n % 2 * (COST - 20);
        Item::Metric {
            metric,
            destination,
        }
        .write(&mut bytes);
        world.inject(2, 3, bytes);
        world.run_for(20 * MS);
    }
    let most = u64::from(limits::RENUMBER_BURST) + 11;
    let counted = number(&world, 1, 0) - number_before;
    assert!((2..=most).contains(&counted), "{counted} numbers in 10 s");
    // A question for each number, and what is told by it; and what swings.
    let said = said(&world, 3) - said_before;
    let swings = u64::from(limits::SWINGS_BURST) + 10 * SECOND / limits::SWING_PAUSE_NS;
    assert!(
        said <= 2 * most + swings,
        "{said} messages of node 3 in 10 s"
    );
    world.run_for(limits::RISE_HELD_NS + SECOND);
    world.walk(5, 0).unwrap();
}
