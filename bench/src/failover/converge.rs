//! Convergence: a hundred routers, simulated; a link falls silent, and how long it takes until everybody's primary
//! next hops lead to everybody again.
//!
//! The routers are those of the daemon; clock, links and their delays are the simulation's. A ring with half as many
//! chords, 0.2 to 10 ms a link; each end finds out after 25 to 50 ms, at random.

use virga_routing::Destination;

use crate::{
    mesh::{COST, Cut, MS, Random, SECOND, World, key},
    report::{Entry, Skip},
    rounds::median,
};

const NODES: usize = 100;
/// How often all ways are looked at.
const STEP_NS: u64 = MS;
/// Far above what anything here takes.
const PATIENCE_NS: u64 = 60 * SECOND;
/// What convergence may take.
const LIMIT_MS: f64 = 1_000.0;

/// Each round is another mesh, and another link of it.
pub(super) fn measure(rounds: u32) -> Result<Entry, Skip> {
    let all: Result<Vec<f64>, Skip> = (0..rounds.into()).map(round).collect();
    let all = all?;
    let entry = Entry::new("failover.converge_100_ms", "ms", median(&all));
    Ok(entry.spread(&all).limit(LIMIT_MS))
}

fn round(seed: u64) -> Result<f64, Skip> {
    let mut random = Random(seed ^ 0x636f_6e76);
    let mut world = ringed(seed, &mut random);
    until_whole(&mut world, 100 * STEP_NS)?;
    // Until nobody has anything more to say of how it began.
    world.run_for(10 * SECOND);
    let links: Vec<(usize, usize)> = world.links.keys().copied().collect();
    let (a, b) = links[random.below(links.len())];
    let cut_ns = world.now_ns;
    world.cut(a, b, Cut::Silent);
    until_whole(&mut world, STEP_NS)?;
    let took_us = u32::try_from((world.now_ns - cut_ns) / 1_000).unwrap_or(u32::MAX);
    Ok(f64::from(took_us) / 1e3)
}

/// No link of it is the only way to anywhere.
fn ringed(seed: u64, random: &mut Random) -> World {
    let mut world = World::new(seed, NODES);
    let ring = (0..NODES).map(|node| (node, (node + 1) % NODES));
    let mut ends: Vec<(usize, usize)> = ring.collect();
    ends.extend((0..NODES / 2).map(|_| (random.below(NODES), random.below(NODES))));
    for (a, b) in ends {
        let delay_ns = random.between(MS / 5, 10 * MS);
        let cost = COST + u32::try_from(delay_ns / 10_000).unwrap_or(u32::MAX);
        if a != b && !world.links.contains_key(&key(a, b)) {
            world.add_link(a, b, delay_ns, cost);
        }
    }
    world
}

fn until_whole(world: &mut World, step_ns: u64) -> Result<(), Skip> {
    let began_ns = world.now_ns;
    while !is_whole(world) {
        if world.now_ns - began_ns > PATIENCE_NS {
            return Err(Skip::Failed("some way is never found".to_owned()));
        }
        world.run_for(step_ns);
    }
    Ok(())
}

fn is_whole(world: &World) -> bool {
    let nodes = 0..world.nodes.len();
    nodes
        .clone()
        .all(|from| nodes.clone().all(|to| is_led(world, from, to)))
}

/// Whether primary next hops lead there, over links that carry packets.
fn is_led(world: &World, from: usize, to: usize) -> bool {
    let destination = Destination::Node(world.id(to));
    let mut at = from;
    for _ in 0..NODES {
        if at == to {
            return true;
        }
        let Some(hops) = world.nodes[at].table.get(&destination) else {
            return false;
        };
        let next = world.ids[&hops.primary];
        if !world.links[&key(at, next)].is_up {
            return false;
        }
        at = next;
    }
    false
}
