//! How messages and state grow with the mesh. `scripts/bench mesh` measures larger ones.

use crate::{
    growth::{clustered, grow, settle},
    world::{Cut, SECOND},
};
use virga_routing::Aggregation;

#[test]
fn the_mesh_grows_and_stays_whole_and_what_is_said_and_kept_is_bounded() {
    for nodes in [30, 100, 300] {
        let exact = grow(clustered(1, nodes, 10, Aggregation::Exact), 4);
        let by_subnet = grow(clustered(1, nodes, 10, Aggregation::BySubnet), 4);
        println!("{}", exact.to_json("exact"));
        println!("{}", by_subnet.to_json("by_subnet"));
        assert!(exact.converged_ms_max < 1_000 && by_subnet.converged_ms_max < 1_000);
        assert_eq!(exact.known, (nodes, nodes));
        // Its own subnet's nodes, what lies beside that, and what lies beside those.
        assert!(
            by_subnet.known.1 <= 10 + 10 + nodes / 100 + 2,
            "{by_subnet:?}"
        );
        assert!(by_subnet.messages_a_node <= exact.messages_a_node);
    }
}

#[test]
fn a_thousand_nodes_in_subnets_lead_everywhere_within_a_second_of_a_cut_and_each_knows_few() {
    let growth = grow(clustered(2, 1_000, 50, Aggregation::BySubnet), 2);
    println!("{}", growth.to_json("by_subnet"));
    assert!(growth.converged_ms_max < 1_000, "{growth:?}");
    // Its own subnet's nodes, the ten of the same larger subnet, the two of those.
    assert!(growth.known.1 <= 50 + 10 + 2, "{growth:?}");
}

#[test]
fn a_subnet_is_found_over_any_of_its_gateways() {
    let mut world = clustered(4, 60, 10, Aggregation::BySubnet);
    settle(&mut world, 5 * SECOND);
    let gateways: Vec<(usize, usize)> = world
        .links
        .keys()
        .copied()
        .filter(|&(a, b)| (a < 10) != (b < 10))
        .collect();
    assert!(gateways.len() >= 3, "{gateways:?}");
    for &(a, b) in &gateways[1..] {
        world.cut(a, b, Cut::Silent);
        world.run_for(SECOND);
        settle(&mut world, 5 * SECOND);
    }
    for (a, b) in gateways {
        world.join(a, b);
    }
    settle(&mut world, 5 * SECOND);
}
