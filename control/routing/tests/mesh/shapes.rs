//! Meshes of known shapes.

use crate::world::{COST, MS, Random, SECOND, World};
use virga_routing::{Destination, Liveness};

pub(crate) fn line(seed: u64, nodes: usize) -> World {
    let mut world = World::new(seed, nodes);
    for node in 1..nodes {
        world.add_link(node - 1, node, MS, COST);
    }
    world
}

pub(crate) fn ring(seed: u64, nodes: usize) -> World {
    let mut world = line(seed, nodes);
    world.add_link(nodes - 1, 0, MS, COST);
    world
}

pub(crate) fn diamond(seed: u64) -> World {
    let mut world = World::new(seed, 4);
    for (a, b) in [(0, 1), (0, 2), (1, 3), (2, 3)] {
        world.add_link(a, b, MS, COST);
    }
    world
}

pub(crate) fn grid(seed: u64, side: usize) -> World {
    let mut world = World::new(seed, side * side);
    for node in 0..side * side {
        if node % side > 0 {
            world.add_link(node - 1, node, MS, COST);
        }
        if node >= side {
            world.add_link(node - side, node, MS, COST);
        }
    }
    world
}

/// Two rows, and a rung between each two.
pub(crate) fn ladder(seed: u64, rungs: usize) -> World {
    let mut world = World::new(seed, 2 * rungs);
    for node in 0..rungs {
        world.add_link(node, rungs + node, MS, COST);
        if node > 0 {
            world.add_link(node - 1, node, MS, COST);
            world.add_link(rungs + node - 1, rungs + node, MS, COST);
        }
    }
    world
}

/// A tree, and as many links again between random nodes, of random delays and costs.
pub(crate) fn random(seed: u64, nodes: usize) -> World {
    let mut world = World::new(seed, nodes);
    let mut random = Random(seed ^ 0x6d65_7368);
    for node in 1..nodes {
        let (to, delay) = (random.below(node), random.between(MS / 5, 10 * MS));
        let cost = COST + u32::try_from(delay / 10_000).unwrap();
        world.add_link(node, to, delay, cost);
    }
    for _ in 0..nodes {
        let (a, b) = (random.below(nodes), random.below(nodes));
        let delay = random.between(MS / 5, 10 * MS);
        let cost = COST + u32::try_from(delay / 10_000).unwrap();
        if a != b && !world.links.contains_key(&(a.min(b), a.max(b))) {
            world.add_link(a, b, delay, cost);
        }
    }
    world
}

/// Backups that there should be: every node that has a second neighbour that is nearer than it is itself, or as
/// near with the lower id.
fn assert_backups(world: &World) {
    for (from, node) in world.nodes.iter().enumerate() {
        let router = node.router.as_ref().unwrap();
        for route in router.routes() {
            let Destination::Node(to) = route.destination else {
                panic!("{}", route.destination);
            };
            let to = world.ids[&to];
            let metric = |node: usize| match node == to {
                true => Some(0),
                false => {
                    let router = world.nodes[node].router.as_ref().unwrap();
                    let mut routes = router.routes();
                    let found = routes.find(|r| r.destination == route.destination);
                    found
                        .filter(|r| world.ids[&r.next_hops.primary] != from)
                        .map(|r| r.metric)
                }
            };
            let primary = world.ids[&route.next_hops.primary];
            let nearer = world
                .peers(from)
                .into_iter()
                .filter(|&peer| peer != primary)
                .any(|peer| {
                    metric(peer)
                        .is_some_and(|m| (m, world.id(peer)) < (route.metric, world.id(from)))
                });
            assert_eq!(
                route.next_hops.backup.is_some(),
                nearer,
                "{from} to {to}: {route:?}"
            );
        }
    }
}

#[test]
fn every_node_has_a_way_to_every_other_and_a_backup_where_a_second_neighbour_is_nearer() {
    let shapes = [
        line(1, 6),
        ring(2, 5),
        ring(3, 8),
        diamond(4),
        grid(5, 5),
        random(6, 30),
    ];
    for mut world in shapes {
        world.settle(2 * SECOND);
        // Backups may have to be asked for.
        world.run_for(5 * SECOND);
        world.assert_right();
        assert_backups(&world);
    }
}

#[test]
fn in_a_diamond_both_ends_have_a_primary_and_a_backup_for_each_other() {
    let mut world = diamond(7);
    world.run_for(SECOND);
    for (from, to) in [(0, 3), (3, 0)] {
        let hops = world.nodes[from].table[&Destination::Node(world.id(to))];
        let both = [hops.primary, hops.backup.unwrap()].map(|id| world.ids[&id]);
        assert!(both == [1, 2] || both == [2, 1], "{both:?}");
    }
}

#[test]
fn a_link_that_is_dead_while_its_stream_lives_is_not_used_and_is_used_again_after() {
    let mut world = diamond(9);
    world.run_for(SECOND);
    let to = Destination::Node(world.id(3));
    let primary = |world: &World| world.ids[&world.nodes[0].table[&to].primary];
    let used = primary(&world);
    world.set_liveness(0, used, Liveness::Dead);
    world.run_for(SECOND);
    assert_eq!(primary(&world), 3 - used);
    assert_eq!(world.nodes[0].table[&to].backup, None);
    world.set_liveness(0, used, Liveness::Alive);
    world.run_for(3 * SECOND);
    let hops = world.nodes[0].table[&to];
    assert!(hops.backup.is_some(), "{hops:?}");
    world.assert_right();
}

#[test]
fn the_cheapest_way_is_taken_and_a_small_gain_moves_nothing() {
    let mut world = diamond(8);
    world.run_for(SECOND);
    let to = Destination::Node(world.id(3));
    let primary = |world: &World| world.ids[&world.nodes[0].table[&to].primary];
    let (used, other) = (primary(&world), 3 - primary(&world));
    world.set_cost(0, other, COST - 20);
    world.run_for(SECOND);
    assert_eq!(primary(&world), used, "5 % of a link is no reason");
    world.set_cost(0, used, 4 * COST);
    world.run_for(SECOND);
    assert_eq!(primary(&world), other);
    world.assert_right();
}
