//! How the mesh grows: the daemon's routers in a simulated mesh of more and more nodes, in subnets of up to a hundred.
//!
//! Of each size: how much a node says until all is found, how many destinations it knows then, and, where a link falls
//! silent, after how long every way leads to its end again and how much all nodes say of it together. Four links of a
//! mesh are cut, one after another; a way is looked at each 10 ms, where there are many of a sample. Each figure's limit
//! comes of the mesh's own shape, by the arithmetic of [`asked`].

use std::collections::VecDeque;

use virga_routing::Aggregation;

use crate::{
    interrupt,
    mesh::{Growth, World, clustered, grow},
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
/// Subnets of one larger one, as [`clustered`] makes them.
const SUBNETS_OF_ONE: usize = 10;
/// Milliseconds that news may take over a link: its longest delay, and a tick.
const HOP_MS: f64 = 3.0 + 10.0;
/// Milliseconds within which the end of a link notices that it is silent.
const DETECT_MS: f64 = 50.0;
/// Nodes that the ways from are counted.
const SAMPLE: usize = 100;
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
        let ways = Ways::of(&world);
        let grown = grow(world, CUTS);
        let asked = asked(size, &ways);
        let all = figures(&grown).into_iter().zip(size.names).zip(asked);
        entries.extend(all.map(|(((unit, figure), name), (limit, because))| {
            Entry::new(name, unit, figure).limit(limit).because(because)
        }));
    }
    Ok(entries)
}

/// In the order of [`Size::names`].
fn figures(grown: &Growth) -> [(&'static str, f64); 4] {
    let count = |figure: u64| float(usize::try_from(figure).unwrap_or(usize::MAX));
    [
        ("ms", count(grown.converged_ms_max)),
        ("messages", count(grown.messages_a_node)),
        ("messages", count(grown.messages_a_cut)),
        ("destinations", float(grown.known.1)),
    ]
}

/// The shape of a mesh.
struct Ways {
    /// Links of a node.
    degree: f64,
    /// Links of the longest of the shortest ways from one node to another.
    longest: u32,
}

impl Ways {
    /// From some nodes, evenly spread, to all.
    fn of(world: &World) -> Self {
        let nodes = world.nodes.len();
        let mut neighbours = vec![Vec::new(); nodes];
        for &(a, b) in world.links.keys() {
            neighbours[a].push(b);
            neighbours[b].push(a);
        }
        let mut longest = 0;
        for from in (0..nodes).step_by(nodes.div_ceil(SAMPLE)) {
            let mut far = vec![None; nodes];
            let mut found = VecDeque::from([(from, 0_u32)]);
            while let Some((node, links)) = found.pop_front() {
                if far[node].is_some() {
                    continue;
                }
                far[node] = Some(links);
                found.extend(neighbours[node].iter().map(|&next| (next, links + 1)));
            }
            longest = longest.max(far.into_iter().flatten().max().unwrap_or(0));
        }
        Self {
            degree: 2.0 * float(world.links.len()) / float(nodes),
            longest,
        }
    }
}

fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// What is asked of a mesh, each with its arithmetic; in the order of [`Size::names`].
fn asked(size: &Size, ways: &Ways) -> [(f64, String); 4] {
    let (nodes, each) = (size.nodes, size.each);
    let (subnets, degree, longest) = (nodes / each, ways.degree, ways.longest);
    let (known, of) = match size.aggregation {
        Aggregation::Exact => (nodes, "each node is one".to_owned()),
        Aggregation::BySubnet => {
            let (beside, larger) = (
                subnets.min(SUBNETS_OF_ONE),
                subnets.div_ceil(SUBNETS_OF_ONE),
            );
            let words = format!(
                "{each} nodes of a node's own subnet, {beside} subnets of the larger one that this is in, {larger} of those"
            );
            (each + beside + larger, words)
        }
    };
    let (known, nodes) = (float(known), float(nodes));
    let found = DETECT_MS + 2.0 * f64::from(longest) * HOP_MS;
    [
        (
            LIMIT_MS,
            format!(
                "a silent link is found within {DETECT_MS} ms, and a request and the newer number that it asks for pass up to \
                 {longest} links each, {HOP_MS} ms a link: {found} ms"
            ),
        ),
        (
            known * degree,
            format!(
                "each of {known} destinations told once to each of {degree:.1} neighbours, in a message of its own (four fit one)"
            ),
        ),
        (
            2.0 * known * nodes,
            format!(
                "both ends lose their way to one in {degree:.1} of {known} destinations; the newer number of each is told by \
                 {nodes} nodes to {degree:.1} neighbours, in a message of its own (four fit one)"
            ),
        ),
        (known, of),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_counted_by_links() {
        let mut ring = World::new(1, 4);
        (0..4).for_each(|node| ring.add_link(node, (node + 1) % 4, 1, 1));
        let ways = Ways::of(&ring);
        assert_eq!((ways.degree, ways.longest), (2.0, 2));
    }

    #[test]
    fn a_small_mesh_keeps_to_the_arithmetic_of_its_limits() {
        for aggregation in [Aggregation::Exact, Aggregation::BySubnet] {
            let size = Size {
                nodes: 40,
                each: 10,
                aggregation,
                names: ["converges", "forms", "cut", "knows"],
            };
            let world = clustered(3, size.nodes, size.each, aggregation);
            let asked = asked(&size, &Ways::of(&world));
            let grown = grow(world, 2);
            let all = figures(&grown).into_iter().zip(&asked).zip(size.names);
            for (((unit, figure), (limit, because)), name) in all {
                println!("{name}: {figure} {unit} of {limit}: {because}");
                assert!(figure <= *limit, "{aggregation:?} {name}");
                // So loose that nothing could miss it is no limit.
                assert!(figure * 50.0 > *limit, "{aggregation:?} {name}");
            }
        }
    }
}
