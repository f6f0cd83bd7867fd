//! How messages and state grow with the mesh. The large ones are run with `--ignored --nocapture`.

use crate::world::{COST, Cut, MS, Random, SECOND, World};
use virga_ebpf::header::Subnet;
use virga_routing::Aggregation;

/// Nodes in subnets of so many each, tied within as a ring with chords, and subnets among each other alike.
fn clustered(seed: u64, nodes: usize, each: usize, aggregation: Aggregation) -> World {
    let subnet = |node: usize| {
        let cluster = u32::try_from(node / each).unwrap();
        Subnet(((cluster / 100 + 1) << 24) | ((cluster % 100 + 1) << 16))
    };
    let subnets: Vec<Subnet> = (0..nodes).map(subnet).collect();
    let mut world = World::in_subnets(seed, &subnets, aggregation);
    world.is_checked = nodes <= 1_000;
    let mut random = Random(seed);
    let mut link = |world: &mut World, a: usize, b: usize| {
        let delay = random.between(MS / 2, 3 * MS);
        if a != b && !world.links.contains_key(&(a.min(b), a.max(b))) {
            world.add_link(a, b, delay, COST + u32::try_from(delay / 10_000).unwrap());
        }
    };
    let mut random = Random(seed ^ 1);
    let clusters = nodes / each;
    for cluster in 0..clusters {
        for n in 0..each {
            let at = cluster * each;
            link(&mut world, at + n, at + (n + 1) % each);
            if n % 2 == 0 {
                link(&mut world, at + n, at + random.below(each));
            }
        }
        // Three ways out.
        for to in [
            (cluster + 1) % clusters,
            random.below(clusters),
            random.below(clusters),
        ] {
            if to != cluster {
                let ends = [cluster, to].map(|c| c * each + random.below(each));
                link(&mut world, ends[0], ends[1]);
            }
        }
    }
    world
}

/// A sample of ways, as there are too many to walk them all each time.
fn wrong(world: &World, seed: u64) -> usize {
    let mut random = Random(seed);
    let nodes = world.nodes.len();
    let pairs = (0..4_000).map(|_| (random.below(nodes), random.below(nodes)));
    pairs
        .filter(|&(from, to)| world.walk(from, to).is_err())
        .count()
}

fn settle(world: &mut World, most_ns: u64) -> u64 {
    let began = world.now_ns;
    while wrong(world, 1) > 0 {
        assert!(
            world.now_ns < began + most_ns,
            "{} of 4,000 ways are wrong",
            wrong(world, 1)
        );
        world.run_for(20 * MS);
    }
    world.now_ns - began
}

fn grow(name: &str, mut world: World) {
    let nodes = world.nodes.len();
    let formed = settle(&mut world, 60 * SECOND);
    world.run_for(5 * SECOND);
    let (messages, bytes) = (world.messages, world.message_bytes);
    let known = world
        .nodes
        .iter()
        .map(|n| n.router.as_ref().unwrap().len().0);
    let (most, sum) = known.fold((0, 0), |(most, sum), n| (n.max(most), sum + n));
    let ends: Vec<(usize, usize)> = world.links.keys().copied().collect();
    let (mut worst, mut cut_messages) = (0, 0);
    for n in 0..4 {
        let (a, b) = ends[n * ends.len() / 4];
        let before = world.messages;
        world.cut(a, b, Cut::Silent);
        // As long as it takes until it is noticed, some ways lead there.
        world.run_for(20 * MS);
        worst = worst.max(20 * MS + settle(&mut world, 5 * SECOND));
        world.run_for(2 * SECOND);
        cut_messages += (world.messages - before) / 4;
        world.join(a, b);
        world.run_for(5 * SECOND);
    }
    println!(
        "{name}: {nodes} nodes, {} links: formed in {} ms with {} messages a node ({} kB); {} destinations a \
         node (at most {most}); a silent cut: whole again in {} ms at most, {cut_messages} messages in all",
        world.links.len(),
        formed / MS,
        messages / nodes as u64,
        bytes / nodes as u64 / 1_000,
        sum / nodes,
        worst / MS,
    );
    assert_eq!(wrong(&world, 2), 0);
}

#[test]
fn the_mesh_grows_and_stays_whole() {
    for nodes in [30, 100, 300] {
        grow("exact", clustered(1, nodes, 10, Aggregation::Exact));
        grow("by subnet", clustered(1, nodes, 10, Aggregation::BySubnet));
    }
}

#[test]
#[ignore = "a minute or more"]
fn a_thousand_nodes_are_known_exactly() {
    grow("exact", clustered(2, 1_000, 50, Aggregation::Exact));
    grow("by subnet", clustered(2, 1_000, 50, Aggregation::BySubnet));
}

#[test]
#[ignore = "some minutes"]
fn ten_thousand_nodes_in_subnets() {
    grow(
        "by subnet",
        clustered(3, 10_000, 100, Aggregation::BySubnet),
    );
}

#[test]
fn a_subnet_is_found_over_any_of_its_gateways() {
    let mut world = clustered(4, 60, 10, Aggregation::BySubnet);
    world.settle_walks();
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
        world.settle_walks();
    }
    for (a, b) in gateways {
        world.join(a, b);
    }
    world.settle_walks();
}

impl World {
    fn settle_walks(&mut self) {
        settle(self, 5 * SECOND);
    }
}
