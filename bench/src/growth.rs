//! How the mesh grows: the daemon's routers in a simulated mesh of more and more nodes, in subnets of up to a hundred.
//!
//! Of each size: how much a node says until all is found, how many destinations it knows then, and, where a link falls
//! silent, after how long every way leads to its end again and how much all nodes say of it together. Four links of a
//! mesh are cut, one after another; a way is looked at each 10 ms, where there are many of a sample.

use virga_routing::Aggregation;

use crate::{
    interrupt,
    mesh::{Growth, clustered, grow},
    report::{Entry, Skip, skipped},
};

/// A mesh that is measured, and what its figures are called.
struct Size {
    nodes: usize,
    /// Nodes of a subnet.
    each: usize,
    aggregation: Aggregation,
    /// Converges in, messages of a node, messages of a cut, destinations of a node.
    names: [&'static str; 4],
}

const SIZES: [Size; 4] = [
    Size {
        nodes: 100,
        each: 10,
        aggregation: Aggregation::BySubnet,
        names: [
            "mesh.converge_100_ms",
            "mesh.messages_100",
            "mesh.cut_messages_100",
            "mesh.destinations_100",
        ],
    },
    Size {
        nodes: 1_000,
        each: 50,
        aggregation: Aggregation::BySubnet,
        names: [
            "mesh.converge_1000_ms",
            "mesh.messages_1000",
            "mesh.cut_messages_1000",
            "mesh.destinations_1000",
        ],
    },
    Size {
        nodes: 1_000,
        each: 50,
        aggregation: Aggregation::Exact,
        names: [
            "mesh.converge_1000_exact_ms",
            "mesh.messages_1000_exact",
            "mesh.cut_messages_1000_exact",
            "mesh.destinations_1000_exact",
        ],
    },
    Size {
        nodes: 10_000,
        each: 100,
        aggregation: Aggregation::BySubnet,
        names: [
            "mesh.converge_10000_ms",
            "mesh.messages_10000",
            "mesh.cut_messages_10000",
            "mesh.destinations_10000",
        ],
    },
];
/// Links that are cut, one after another.
const CUTS: usize = 4;
/// What convergence may take.
const LIMIT_MS: f64 = 1_000.0;
/// A larger mesh takes minutes and 4 GB: it is left out of runs of one round, which look whether all works.
const NODES_MAX_QUICK: usize = 1_000;

/// One mesh of each size: another run gives the same.
pub(crate) fn measure(rounds: u32) -> Result<Vec<Entry>, Skip> {
    let mut entries = Vec::new();
    for size in &SIZES {
        interrupt::check()?;
        if rounds == 1 && size.nodes > NODES_MAX_QUICK {
            let long = format!(
                "{} nodes take minutes and 4 GB: two rounds or more",
                size.nodes
            );
            size.names.iter().for_each(|name| skipped(name, &long));
            continue;
        }
        let mut world = clustered(2, size.nodes, size.each, size.aggregation);
        // The routers' tests look for loops.
        world.is_checked = false;
        let grown = grow(world, CUTS);
        let figures = figures(&grown).into_iter().zip(size.names);
        entries.extend(figures.map(|((unit, figure), name)| {
            let entry = Entry::new(name, unit, figure);
            match unit {
                "ms" => entry.limit(LIMIT_MS),
                _ => entry,
            }
        }));
    }
    Ok(entries)
}

/// In the order of [`Size::names`].
fn figures(grown: &Growth) -> [(&'static str, f64); 4] {
    let float = |figure: u64| f64::from(u32::try_from(figure).unwrap_or(u32::MAX));
    let known = u64::try_from(grown.known.1).unwrap_or(u64::MAX);
    [
        ("ms", float(grown.converged_ms_max)),
        ("messages", float(grown.messages_a_node)),
        ("messages", float(grown.messages_a_cut)),
        ("destinations", float(known)),
    ]
}
