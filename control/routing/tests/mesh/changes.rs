//! Links and nodes that come and go.

use crate::{
    shapes::{diamond, grid, line, random},
    world::{Cut, MS, Random, SECOND, World},
};
use virga_routing::Destination;

fn first_link(world: &World, skip: usize) -> (usize, usize) {
    let up = world.links.iter().filter(|(_, link)| link.is_up);
    up.map(|(&ends, _)| ends).nth(skip).unwrap()
}

#[test]
fn a_mesh_of_a_hundred_nodes_has_converged_in_under_a_second_after_any_cut() {
    for (cut, seed) in [(Cut::Reported, 1), (Cut::Silent, 2)] {
        for mut world in [random(seed, 100), grid(seed, 10)] {
            world.settle(3 * SECOND);
            world.run_for(3 * SECOND);
            for n in 0..4 {
                let (a, b) = first_link(&world, n * 29);
                let messages = world.messages;
                world.cut(a, b, cut);
                let took = world.settle(SECOND - MS);
                println!(
                    "{cut:?} {a} {b}: {} ms, {} messages",
                    took / MS,
                    world.messages - messages
                );
                world.run_for(2 * SECOND);
                world.join(a, b);
                world.run_for(3 * SECOND);
                world.assert_right();
            }
        }
    }
}

#[test]
fn the_backup_is_there_before_the_cut_and_used_in_the_same_instant() {
    let mut world = diamond(5);
    world.run_for(3 * SECOND);
    let to = Destination::Node(world.id(3));
    let hops = world.nodes[0].table[&to];
    let (used, backup) = (world.ids[&hops.primary], hops.backup.unwrap());
    world.cut(0, used, Cut::Reported);
    world.run_for(MS);
    assert_eq!(world.nodes[0].table[&to].primary, backup);
}

#[test]
fn links_that_flap_make_no_loop_and_leave_nothing_behind() {
    for seed in 0..8 {
        let mut world = random(seed, 24);
        world.run_for(SECOND);
        let mut random = Random(seed);
        let ends: Vec<(usize, usize)> = world.links.keys().copied().collect();
        for _ in 0..150 {
            let (a, b) = ends[random.below(ends.len())];
            match random.below(4) {
                0 => world.cut(a, b, Cut::Reported),
                1 => world.cut(a, b, Cut::Silent),
                2 => world.join(a, b),
                _ => world.reset(a, b),
            }
            world.run_for(random.between(0, 60 * MS));
        }
        world.settle(5 * SECOND);
        for &(a, b) in &ends {
            world.join(a, b);
        }
        world.settle(5 * SECOND);
    }
}

#[test]
fn costs_that_change_all_the_time_make_no_loop() {
    for seed in 0..4 {
        let mut world = random(seed, 24);
        world.run_for(SECOND);
        let mut random = Random(seed);
        let ends: Vec<(usize, usize)> = world.links.keys().copied().collect();
        for _ in 0..300 {
            let (a, b) = ends[random.below(ends.len())];
            let cost = u32::try_from(random.between(1, 5_000)).unwrap();
            // One direction of it.
            world.set_cost(a, b, cost);
            world.run_for(random.between(0, 30 * MS));
        }
        world.settle(5 * SECOND);
    }
}

#[test]
fn messages_that_take_their_time_make_no_loop() {
    for seed in 0..4 {
        let mut world = random(seed, 24);
        let ends: Vec<(usize, usize)> = world.links.keys().copied().collect();
        for (n, ends) in ends.iter().enumerate() {
            // What is lost in one direction is sent again: it comes later, and so does all behind it.
            world.links.get_mut(ends).unwrap().jitter_ns =
                if n % 3 == 0 { 300 * MS } else { 5 * MS };
        }
        world.settle(10 * SECOND);
        let mut random = Random(seed);
        for _ in 0..40 {
            let (a, b) = ends[random.below(ends.len())];
            world.cut(a, b, Cut::Silent);
            world.run_for(random.between(0, 200 * MS));
            world.join(a, b);
            world.run_for(random.between(0, 200 * MS));
        }
        world.settle(20 * SECOND);
    }
}

#[test]
fn what_cannot_be_reached_has_no_route_and_a_partition_of_hours_heals() {
    let mut world = line(9, 8);
    world.run_for(2 * SECOND);
    world.cut(3, 4, Cut::Silent);
    world.settle(SECOND);
    // Longer than any announcement holds.
    world.run_for(3 * 3_600 * SECOND);
    world.assert_right();
    for node in &world.nodes {
        assert!(node.router.as_ref().unwrap().len().0 <= 8);
    }
    world.join(3, 4);
    world.settle(2 * SECOND);
}

#[test]
fn what_has_been_gone_for_long_is_forgotten() {
    let mut world = line(10, 4);
    world.run_for(2 * SECOND);
    world.cut(2, 3, Cut::Reported);
    world.run_for(3 * 3_600 * SECOND);
    let known = |world: &World, node: usize| world.nodes[node].router.as_ref().unwrap().len().0;
    assert_eq!((known(&world, 0), known(&world, 3)), (3, 1));
}

#[test]
fn nodes_that_lose_their_memory_make_no_loop_and_are_found_again_whatever_number_they_begin_with() {
    for seed in 0..6 {
        let mut world = random(seed, 20);
        world.run_for(2 * SECOND);
        let mut random = Random(seed);
        for n in 0..25 {
            let node = random.below(20);
            // The clock may have been set back meanwhile.
            let seqno = [1, 1_000, 1_000_000 + n][random.below(3)];
            world.restart(node, seqno);
            world.run_for(random.between(0, 150 * MS));
        }
        world.settle(10 * SECOND);
    }
}

#[test]
fn a_mesh_in_peace_says_next_to_nothing() {
    let mut world = random(12, 50);
    world.run_for(30 * SECOND);
    let before = world.messages;
    world.run_for(600 * SECOND);
    assert_eq!(world.messages, before, "nothing has changed");
}
