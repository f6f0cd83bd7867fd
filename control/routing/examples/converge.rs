//! How long a simulated mesh takes to form, and to be whole again after a link falls silent: a JSON object a line.
//! `cargo run --release -p virga-routing --example converge -- 100` takes seconds, 1000 a minute.
#![allow(clippy::unwrap_used, reason = "the simulator's, which is the tests'")]
#![allow(dead_code, reason = "what only the tests use of the simulator")]

#[path = "../tests/mesh/checks.rs"]
mod checks;
#[path = "../tests/mesh/growth.rs"]
mod growth;
#[path = "../tests/mesh/world.rs"]
mod world;

use virga_routing::Aggregation;

/// Links that are cut, one after another.
const CUTS: usize = 8;

fn main() {
    let mut sizes: Vec<usize> = Vec::new();
    for argument in std::env::args().skip(1) {
        match argument.parse() {
            Ok(nodes) if (20..=10_000).contains(&nodes) => sizes.push(nodes),
            _ => {
                eprintln!("{argument:?} is not a number of nodes from 20 to 10000");
                std::process::exit(2);
            }
        }
    }
    for nodes in sizes {
        let each = if nodes < 1_000 { 10 } else { nodes / 100 * 2 };
        // More are not known exactly.
        let exactly = (nodes <= 1_000).then_some(("exact", Aggregation::Exact));
        let aggregated = [("by_subnet", Aggregation::BySubnet)];
        for (name, aggregation) in exactly.into_iter().chain(aggregated) {
            let world = growth::clustered(1, nodes, each, aggregation);
            let grown = growth::grow(world, CUTS);
            println!("{}", grown.to_json(name));
        }
    }
}
