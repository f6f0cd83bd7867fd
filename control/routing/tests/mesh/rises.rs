//! Ways that get longer: nobody is left without one meanwhile.

use crate::{
    bad::{request, true_word},
    gateways::{INNER, hops, number},
    world::{COST, Cut, MS, SECOND, World},
};
use virga_ebpf::header::Subnet;
use virga_routing::{Aggregation, Destination, Liveness, limits};

/// How long a message is on its way.
const DELAY_NS: u64 = 5 * MS;

fn assert_leads(world: &mut World, node: usize, to: Destination, for_ns: u64) {
    let until_ns = world.now_ns + for_ns;
    while world.now_ns < until_ns {
        world.run_for(MS);
        assert!(
            world.nodes[node].table.contains_key(&to),
            "node {node} has no way to {to} at {} ms",
            world.now_ns / MS
        );
    }
}

#[test]
fn a_way_that_gets_hardly_longer_is_held_too_for_who_has_it_as_a_second_best() {
    let mut world = World::new(61, 4);
    for (a, b, cost) in [(0, 1, 400), (1, 2, 300), (0, 3, 256), (3, 2, 256)] {
        world.add_link(a, b, DELAY_NS, cost);
    }
    world.run_for(5 * SECOND);
    // Node 2 told node 1 of its way over node 3, which is lost; that of node 1 gets longer at the same time.
    let to = Destination::Node(world.id(0));
    world.set_liveness(2, 3, Liveness::Dead);
    world.set_cost(1, 0, 600);
    assert_leads(&mut world, 2, to, 3 * SECOND);
}

#[test]
fn a_longer_way_to_another_gateway_of_the_same_number_is_held_too() {
    let subnet = |node| Subnet(if node < 2 { 0x0100_0000 } else { 0x0500_0000 });
    let subnets: Vec<Subnet> = (0..5).map(subnet).collect();
    let mut world = World::in_subnets(62, &subnets, Aggregation::BySubnet);
    for (a, b, cost) in [
        (0, 1, COST),
        (2, 1, COST),
        (2, 0, 2 * COST + 100),
        (3, 2, COST),
        (4, 3, COST),
    ] {
        world.add_link(a, b, DELAY_NS, cost);
    }
    world.run_for(10 * SECOND);
    assert_eq!(hops(&world, 2), Some((1, Some(0))));
    let before = number(&world, 2);
    world.set_liveness(2, 1, Liveness::Dead);
    assert_eq!(hops(&world, 2), Some((0, None)));
    assert_eq!(number(&world, 2), before);
    assert_leads(&mut world, 3, INNER, 3 * SECOND);
    assert!(number(&world, 3) > before);
}

/// A line of four, its messages as slow.
fn slow_line(seed: u64) -> World {
    let mut world = World::new(seed, 4);
    for node in 1..4 {
        world.add_link(node - 1, node, DELAY_NS, COST);
    }
    world.run_for(5 * SECOND);
    world
}

fn number_of_0(world: &World, at: usize) -> u64 {
    let to = Destination::Node(world.id(0));
    let mut routes = world.nodes[at].router.as_ref().unwrap().routes();
    routes.find(|route| route.destination == to).unwrap().seqno
}

#[test]
fn who_holds_a_way_back_asks_the_next_one_where_whom_it_asked_is_gone() {
    let mut world = World::new(63, 6);
    for (a, b, cost) in [
        (0, 1, 500),
        (0, 2, 350),
        (0, 3, 350),
        (1, 2, 400),
        (1, 3, 500),
        (1, 4, 300),
        (4, 5, 300),
    ] {
        world.add_link(a, b, DELAY_NS, cost);
    }
    world.run_for(5 * SECOND);
    let to = Destination::Node(world.id(0));
    let primary = |world: &World| world.ids[&world.nodes[1].table[&to].primary];
    let before = number_of_0(&world, 4);
    world.set_liveness(1, 0, Liveness::Dead);
    world.run_for(MS);
    assert_eq!(primary(&world), 2);
    // What it asks node 2 is on its way.
    world.cut(1, 2, Cut::Reported);
    assert_leads(&mut world, 4, to, limits::RISE_HELD_NS + SECOND);
    assert_eq!(primary(&world), 3);
    assert!(number_of_0(&world, 4) > before);
}

#[test]
fn who_holds_a_way_back_asks_again_where_nobody_answers() {
    let mut world = slow_line(64);
    let to = Destination::Node(world.id(0));
    let before = number_of_0(&world, 2);
    let silent = world.nodes[0].router.take();
    world.set_cost(1, 0, 4 * COST);
    assert_leads(&mut world, 2, to, SECOND);
    world.nodes[0].router = silent;
    assert_leads(&mut world, 2, to, limits::RISE_HELD_NS + SECOND);
    assert!(number_of_0(&world, 2) > before);
}

#[test]
fn a_way_that_got_shorter_again_while_it_was_held_is_held_another_time() {
    let mut world = slow_line(65);
    let to = Destination::Node(world.id(0));
    let silent = world.nodes[0].router.take();
    // No more is left of what may be told by one number.
    for less in 1..=limits::SWINGS_BURST {
        world.set_cost(1, 0, COST - less);
        world.run_for(2 * limits::TICK_NS);
    }
    world.set_cost(1, 0, 4 * COST);
    world.run_for(2 * limits::TICK_NS);
    world.set_cost(1, 0, COST - 2 * limits::SWINGS_BURST);
    world.run_for(limits::RISE_HELD_NS + SECOND);
    world.nodes[0].router = silent;
    world.set_cost(1, 0, 4 * COST);
    assert_leads(&mut world, 2, to, 3 * SECOND);
}

#[test]
fn a_way_that_gets_longer_again_and_again_leaves_numbers_to_those_who_have_none() {
    let mut world = slow_line(66);
    let before = number_of_0(&world, 1);
    let seconds = 30;
    for n in 0..seconds * 5_u32 {
        world.set_cost(1, 0, if n % 2 == 0 { 3 * COST } else { COST });
        world.run_for(SECOND / 5);
    }
    let now = number_of_0(&world, 1);
    let most = limits::RISES_BURST + seconds / 2 + 3;
    assert!((2..=u64::from(most)).contains(&(now - before)), "{now}");
    // So who needs some is answered at once, one after another.
    for n in 0..4 {
        world.inject(1, 0, request(true_word(0, now + n)));
        world.run_for(100 * MS);
    }
    assert!(number_of_0(&world, 1) >= now + 4);
}
