//! Links that lose more one way than the other, and a router that draws packets and forwards none.

use crate::{
    bad::{route, true_word},
    shapes::{diamond, random},
    world::{MS, Random, SECOND, World},
};
use std::collections::BTreeSet;
use virga_routing::{Destination, LinkCost, Liveness};

/// Round-trip time of a link.
const RTT_NS: u64 = 2 * MS;

/// The node that one's packets for another go to first.
fn next(world: &World, from: usize, to: usize) -> Option<usize> {
    let hops = world.nodes[from]
        .table
        .get(&Destination::Node(world.id(to)))?;
    Some(world.ids[&hops.primary])
}

#[test]
fn a_link_that_loses_one_direction_alone_is_left_by_both_ends_and_nobody_is_without_a_way() {
    for seed in 60..64 {
        let mut world = diamond(seed);
        world.settle(3 * SECOND);
        let used = next(&world, 0, 3).unwrap();
        let other = 3 - used;
        // What is lost is sent again, and comes later.
        world.links.get_mut(&(0, used)).unwrap().jitter_ns = 300 * MS;
        let ends = [(0, used), (used, 0)];
        let mut costs = ends.map(|_| LinkCost::new(RTT_NS, [0; 2]));
        // How many of a million are lost on the way there, as the first end sees it.
        for (seconds, ppm) in [(30, 800_000), (60, 0)] {
            for _ in 0..seconds {
                world.run_for(SECOND);
                let lost = [[ppm, 0], [0, ppm]];
                for (((node, with), lost), cost) in ends.into_iter().zip(lost).zip(&mut costs) {
                    if let Some(cost) = cost.measured(world.now_ns, RTT_NS, lost) {
                        world.set_cost(node, with, cost);
                    }
                }
                world.assert_right();
            }
            if ppm > 0 {
                let led = [
                    next(&world, 0, 3),
                    next(&world, 3, 0),
                    next(&world, 0, used),
                ];
                assert_eq!(led, [Some(other); 3], "seed {seed:#x}");
            }
        }
        assert_eq!(next(&world, 0, used), Some(used), "seed {seed:#x}");
    }
}

/// Says to all its neighbours that a node is next to everybody, as that node's own router has heard of them last.
fn say_near(world: &mut World, evil: usize) {
    let router = world.nodes[evil].router.as_ref().unwrap();
    let known: Vec<(usize, u64)> = router
        .routes()
        .filter_map(|route| match route.destination {
            Destination::Node(id) => Some((world.ids[&id], route.seqno)),
            _ => None,
        })
        .collect();
    for peer in world.peers(evil) {
        for &(about, seqno) in known
            .iter()
            .filter(|(about, _)| ![evil, peer].contains(about))
        {
            world.inject(evil, peer, route(0, true_word(about, seqno)));
        }
    }
}

/// The pairs of honest nodes that could do without a node, and whose packets come to it.
fn drawn(world: &World, evil: usize) -> usize {
    let mut drawn = 0;
    for from in (0..world.nodes.len()).filter(|&from| from != evil) {
        let without = world.reachable(from);
        for &to in without.iter().filter(|&&to| to != from) {
            let (mut at, mut seen) = (from, BTreeSet::new());
            while at != to && at != evil && seen.insert(at) {
                at = next(world, at, to).unwrap_or(evil);
            }
            drawn += usize::from(at == evil);
        }
    }
    drawn
}

/// Nothing finds out who forwards nothing; what helps is that its neighbours take their links to it out of use.
#[test]
fn a_router_that_is_near_to_all_by_its_word_draws_packets_until_its_links_are_out_of_use() {
    for seed in 0..4 {
        let mut world = random(seed, 20);
        world.settle(5 * SECOND);
        let evil = Random(seed).below(20);
        let before = {
            world.nodes[evil].is_evil = true;
            drawn(&world, evil)
        };
        say_near(&mut world, evil);
        world.run_for(2 * SECOND);
        let lured = drawn(&world, evil);
        assert!(lured > before, "seed {seed:#x}: {before}, {lured}");
        for peer in world.peers(evil) {
            world.set_liveness(peer, evil, Liveness::Dead);
        }
        for _ in 0..5 {
            say_near(&mut world, evil);
            world.run_for(2 * SECOND);
        }
        assert_eq!(drawn(&world, evil), 0, "seed {seed:#x}");
    }
}
