//! What must hold once a mesh has come to rest.

use super::world::{MS, World, key};
use std::collections::{BTreeMap, BTreeSet};
use virga_routing::Destination;

impl World {
    /// Nodes that can be reached over links that are up and nodes that are honest.
    pub(crate) fn reachable(&self, from: usize) -> BTreeSet<usize> {
        let mut adjacent: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (&(a, b), _) in self.links.iter().filter(|(_, link)| link.is_up) {
            adjacent.entry(a).or_default().push(b);
            adjacent.entry(b).or_default().push(a);
        }
        let (mut seen, mut next) = (BTreeSet::from([from]), vec![from]);
        while let Some(node) = next.pop() {
            for &peer in adjacent.get(&node).into_iter().flatten() {
                if !self.nodes[peer].is_evil && seen.insert(peer) {
                    next.push(peer);
                }
            }
        }
        seen
    }

    /// Where packets of a node for another end up by primaries alone: there, or on the way.
    pub(crate) fn walk(&self, from: usize, to: usize) -> Result<usize, String> {
        let (mut at, mut hops) = (from, 0);
        while at != to {
            let (id, subnet) = (self.id(to), self.nodes[to].subnet);
            let followed = self
                .setup
                .aggregation
                .follows(id, subnet, self.nodes[at].subnet);
            let next = self.nodes[at].table.get(&followed);
            let next = next.ok_or_else(|| format!("node {at} has no route to {followed}"))?;
            let peer = self.ids[&next.primary];
            if !self.links[&key(at, peer)].is_up {
                return Err(format!("the link {at} {peer} is down"));
            }
            (at, hops) = (peer, hops + 1);
            if hops > self.nodes.len() {
                return Err("a loop".into());
            }
        }
        Ok(hops)
    }

    fn has_fault(&self) -> bool {
        !self.faults(1).is_empty()
    }

    /// What is wrong, or the first of it: an honest node without a way to one that can be reached, or with one to one that cannot.
    pub(crate) fn faults(&self, most: usize) -> Vec<String> {
        let mut faults = Vec::new();
        for (from, node) in self.nodes.iter().enumerate() {
            if node.is_evil {
                continue;
            }
            if faults.len() >= most {
                break;
            }
            let reachable = self.reachable(from);
            for (to, other) in self.nodes.iter().enumerate() {
                if to == from || other.is_evil {
                    continue;
                }
                let walked = self.walk(from, to);
                let is_right = walked.is_ok() == reachable.contains(&to);
                if !is_right {
                    faults.push(format!("{from} to {to}: {walked:?}"));
                }
                let has_route = node.table.contains_key(&Destination::Node(self.id(to)));
                if has_route && !reachable.contains(&to) {
                    faults.push(format!(
                        "{from} has a route to {to}, which cannot be reached"
                    ));
                }
            }
        }
        faults
    }

    pub(crate) fn assert_right(&self) {
        let faults = self.faults(usize::MAX);
        let first: Vec<&String> = faults.iter().take(8).collect();
        assert!(
            faults.is_empty(),
            "seed {:#x}, at {} ms: {} faults, such as {first:#?}",
            self.seed,
            self.now_ns / MS,
            faults.len()
        );
    }

    /// Runs on until nothing is wrong; how long that took.
    pub(crate) fn settle(&mut self, most_ns: u64) -> u64 {
        let began = self.now_ns;
        while self.has_fault() && self.now_ns < began + most_ns {
            self.run_for(10 * MS);
        }
        self.assert_right();
        self.now_ns - began
    }
}
