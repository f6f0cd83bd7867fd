//! Large meshes: how long they take to form and to heal, what is said, and what is kept.

use super::world::{COST, Cut, MS, Random, SECOND, World};
use virga_ebpf::header::Subnet;
use virga_routing::Aggregation;

/// Nodes in subnets of so many each, tied within as a ring with chords, and subnets among each other alike.
pub(crate) fn clustered(seed: u64, nodes: usize, each: usize, aggregation: Aggregation) -> World {
    let subnet = |node: usize| {
        // Ten subnets of two levels in each of one.
        let cluster = u32::try_from(node / each).unwrap();
        Subnet(((cluster / 10 + 1) << 24) | ((cluster % 10 + 1) << 16))
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
        // Three ways out; what lies in one of one level hangs together.
        let next = match cluster % 10 {
            9 => cluster - 9,
            _ => cluster + 1,
        };
        for to in [
            next.min(clusters - 1),
            (cluster + 10) % clusters,
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

/// Ways that are wrong: of all of a small mesh, of a sample of a large one.
pub(crate) fn wrong(world: &World, seed: u64) -> usize {
    let mut random = Random(seed);
    let nodes = world.nodes.len();
    let all = nodes * nodes;
    let pairs = (0..all.min(10_000)).map(|n| match all <= 10_000 {
        true => (n / nodes, n % nodes),
        false => (random.below(nodes), random.below(nodes)),
    });
    pairs
        .filter(|&(from, to)| world.walk(from, to).is_err())
        .count()
}

/// Runs until no way is wrong; how long that took.
pub(crate) fn settle(world: &mut World, most_ns: u64) -> u64 {
    let step_ns = match world.nodes.len() {
        0..=100 => 2 * MS,
        _ => 10 * MS,
    };
    let began = world.now_ns;
    while wrong(world, 1) > 0 {
        assert!(
            world.now_ns < began + most_ns,
            "{} ways are wrong, such as {:?}",
            wrong(world, 1),
            world.faults(1)
        );
        world.run_for(step_ns);
    }
    world.now_ns - began
}

/// How a mesh has formed, and healed after links fell silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Growth {
    pub(crate) nodes: usize,
    pub(crate) links: usize,
    pub(crate) formed_ms: u64,
    /// Until the mesh was whole, each.
    pub(crate) messages_a_node: u64,
    pub(crate) bytes_a_node: u64,
    /// Destinations that a node knows: on average, and at most.
    pub(crate) known: (usize, usize),
    /// From the cut, its detection included.
    pub(crate) converged_ms_max: u64,
    /// In all the mesh.
    pub(crate) messages_a_cut: u64,
}

impl Growth {
    /// As a JSON object.
    pub(crate) fn to_json(self, aggregation: &str) -> String {
        let Self {
            nodes,
            links,
            formed_ms,
            messages_a_node,
            bytes_a_node,
            known: (known, known_max),
            converged_ms_max,
            messages_a_cut,
        } = self;
        format!(
            "{{\"aggregation\":\"{aggregation}\",\"nodes\":{nodes},\"links\":{links},\"formed_ms\":{formed_ms},\
             \"converge_ms\":{converged_ms_max},\"messages_a_node\":{messages_a_node},\
             \"bytes_a_node\":{bytes_a_node},\"messages_a_cut\":{messages_a_cut},\
             \"destinations_a_node\":{known},\"destinations_a_node_max\":{known_max}}}"
        )
    }
}

/// Forms a mesh and cuts some of its links silently, one after another.
pub(crate) fn grow(mut world: World, cuts: usize) -> Growth {
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
    for n in 0..cuts {
        let (a, b) = ends[n * ends.len() / cuts];
        let before = world.messages;
        world.cut(a, b, Cut::Silent);
        worst = worst.max(settle(&mut world, 5 * SECOND));
        world.run_for(2 * SECOND);
        cut_messages += (world.messages - before) / cuts as u64;
        world.join(a, b);
        world.run_for(5 * SECOND);
    }
    assert_eq!(wrong(&world, 2), 0);
    Growth {
        nodes,
        links: world.links.len(),
        formed_ms: formed / MS,
        messages_a_node: messages / nodes as u64,
        bytes_a_node: bytes / nodes as u64,
        known: (sum / nodes, most),
        converged_ms_max: worst / MS,
        messages_a_cut: cut_messages,
    }
}
