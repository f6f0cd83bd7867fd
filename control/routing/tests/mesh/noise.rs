//! A mesh of machines that are busy: costs that swing, links that die and come back, streams that begin anew.

use crate::{
    shapes::{ladder, random, ring},
    world::{MS, Random, SECOND, World, key},
};
use std::collections::{BTreeMap, BTreeSet};
use virga_routing::{Destination, LinkCost, Liveness};

/// How often round-trip times are looked at, as the daemon does.
const MEASURE_NS: u64 = SECOND;
/// Round-trip time of a link that was not measured yet, as the daemon has it.
const RTT_NS: u64 = MS;
/// How often something happens, and it is looked for who has no way.
const STEP_NS: u64 = 20 * MS;

/// An end of a link: the node, and with whom.
type End = (usize, usize);

/// Whether links do more than to swing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Links {
    /// What they cost changes, and no more.
    Swing,
    /// Either end finds them dead at times, and streams begin anew.
    Die,
}

/// What makes a mesh restless.
struct Noise {
    random: Random,
    links: Links,
    /// Round-trip times, and until when each is that.
    rtts: BTreeMap<End, (u64, u64)>,
    costs: BTreeMap<End, LinkCost>,
    /// Ends that have their link for dead, and until when.
    dead: BTreeMap<End, u64>,
    /// Since when there is no way, although there could be one.
    without: BTreeMap<End, u64>,
    measured_ns: u64,
    /// For how long a node was without a way at most, and which, and to where.
    longest: (u64, End),
    changes: u32,
}

impl Noise {
    fn new(seed: u64, links: Links) -> Self {
        Self {
            random: Random(seed ^ 0x6e6f_6973),
            links,
            rtts: BTreeMap::new(),
            costs: BTreeMap::new(),
            dead: BTreeMap::new(),
            without: BTreeMap::new(),
            measured_ns: 0,
            longest: (0, (0, 0)),
            changes: 0,
        }
    }

    /// Each end measures its own links, smoothes that and holds it back as the daemon does.
    fn measure(&mut self, world: &mut World) {
        let ends: Vec<End> = world.links.keys().copied().collect();
        for (a, b) in ends {
            let (_, until_ns) = self.rtts.get(&(a, b)).copied().unwrap_or_default();
            if until_ns <= world.now_ns {
                let rtt_ns = self.random.between(2 * MS, 18 * MS);
                let until_ns = world.now_ns + self.random.between(SECOND, 20 * SECOND);
                self.rtts.insert((a, b), (rtt_ns, until_ns));
            }
            let (rtt_ns, _) = self.rtts[&(a, b)];
            for (node, with) in [(a, b), (b, a)] {
                let seen_ns = rtt_ns * self.random.between(70, 130) / 100;
                let cost = self.costs.entry((node, with));
                let cost = cost.or_insert(LinkCost::new(RTT_NS, [0; 2]));
                if let Some(cost) = cost.measured(world.now_ns, seen_ns, [0; 2]) {
                    self.changes += 1;
                    world.set_cost(node, with, cost);
                }
            }
        }
    }

    /// Links that die at either end, and streams that begin anew.
    fn disturb(&mut self, world: &mut World) {
        let ends: Vec<End> = world.links.keys().copied().collect();
        for (a, b) in ends {
            for end in [(a, b), (b, a)] {
                if !self.dead.contains_key(&end) && self.random.below(1_500) == 0 {
                    let until_ns = world.now_ns + self.random.between(100 * MS, 2 * SECOND);
                    self.dead.insert(end, until_ns);
                    world.set_liveness(end.0, end.1, Liveness::Dead);
                }
            }
            if self.random.below(3_000) == 0 {
                world.reset(a, b);
                for end in [(a, b), (b, a)] {
                    self.dead.remove(&end);
                    self.costs.remove(&end);
                }
            }
        }
    }

    /// All links that are due are alive again.
    fn revive(&mut self, world: &mut World, until_ns: u64) {
        let is_due = |(&end, &at_ns): (&End, &u64)| (at_ns <= until_ns).then_some(end);
        let due: Vec<End> = self.dead.iter().filter_map(is_due).collect();
        for (node, with) in due {
            self.dead.remove(&(node, with));
            world.set_liveness(node, with, Liveness::Alive);
        }
    }

    /// Where a node's packets could get over links that are alive at both ends.
    fn reachable(&self, world: &World, from: usize) -> BTreeSet<usize> {
        let is_dead = |a, b| self.dead.contains_key(&(a, b)) || self.dead.contains_key(&(b, a));
        let (mut seen, mut next) = (BTreeSet::from([from]), vec![from]);
        while let Some(node) = next.pop() {
            for peer in world.peers(node) {
                if world.links[&key(node, peer)].is_up && !is_dead(node, peer) && seen.insert(peer)
                {
                    next.push(peer);
                }
            }
        }
        seen
    }

    fn look(&mut self, world: &World) {
        for (from, node) in world.nodes.iter().enumerate() {
            let reachable = self.reachable(world, from);
            for to in 0..world.nodes.len() {
                let led = Destination::Node(world.id(to));
                if from == to || node.table.contains_key(&led) || !reachable.contains(&to) {
                    self.without.remove(&(from, to));
                    continue;
                }
                let since_ns = *self.without.entry((from, to)).or_insert(world.now_ns);
                let lasted_ns = world.now_ns - since_ns + STEP_NS;
                self.longest = self.longest.max((lasted_ns, (from, to)));
            }
        }
    }

    fn run_for(&mut self, world: &mut World, ns: u64) {
        let until_ns = world.now_ns + ns;
        while world.now_ns < until_ns {
            world.run_for(STEP_NS);
            if self.measured_ns + MEASURE_NS <= world.now_ns {
                self.measured_ns = world.now_ns;
                self.measure(world);
            }
            if self.links == Links::Die {
                self.disturb(world);
            }
            self.revive(world, world.now_ns);
            self.look(world);
        }
        self.revive(world, u64::MAX);
    }
}

/// Machines that are busy: what is said takes its time, and so do they.
fn busy(mut world: World, late_ns: u64) -> World {
    world.late_ns = late_ns;
    for link in world.links.values_mut() {
        (link.delay_ns, link.jitter_ns) = (5 * MS, late_ns);
    }
    world
}

fn shapes(seed: u64) -> [World; 3] {
    [ladder(seed, 6), ring(seed, 12), random(seed, 16)]
}

#[test]
fn costs_that_swing_take_no_way_from_anybody() {
    for (seed, late_ns) in [(51, 30 * MS), (52, 200 * MS), (53, 600 * MS)] {
        for world in shapes(seed) {
            let mut world = busy(world, late_ns);
            world.settle(60 * SECOND);
            let mut noise = Noise::new(seed, Links::Swing);
            noise.run_for(&mut world, 60 * SECOND);
            let (longest_ns, ends) = noise.longest;
            println!(
                "{seed:#x}: {} changes of costs, {} ms without a way",
                noise.changes,
                longest_ns / MS
            );
            assert!(noise.changes > 50, "{}", noise.changes);
            assert_eq!(longest_ns, 0, "seed {seed:#x}: {ends:?}");
        }
    }
}

#[test]
fn nobody_is_without_a_way_for_long_where_links_die_and_streams_begin_anew() {
    for seed in 54..56 {
        for world in shapes(seed) {
            let mut world = busy(world, 40 * MS);
            world.settle(20 * SECOND);
            let mut noise = Noise::new(seed, Links::Die);
            noise.run_for(&mut world, 60 * SECOND);
            let (longest_ns, ends) = noise.longest;
            println!("{seed:#x}: {} ms without a way: {ends:?}", longest_ns / MS);
            assert!(
                longest_ns < 2 * SECOND,
                "seed {seed:#x}: {ends:?} {longest_ns} ns"
            );
            world.settle(3 * SECOND);
        }
    }
}
