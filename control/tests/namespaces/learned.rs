//! Meshes whose nodes learn their ways: hosts with routers that know of each other where their neighbours are and nothing
//! else, and who leads where in them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use virga::mesh::Mesh;

use crate::{
    diamond::put_switch,
    hosts::Hosts,
    stage::{at, channels, forwarding, peer, virga},
};

/// Of each node's log, where something fails.
const LINES: usize = 60;
/// What only a failure takes.
const PATIENCE: Duration = Duration::from_secs(90);

/// A link by its ends.
pub type Link = (&'static str, &'static str);

/// What such a mesh is made of.
#[derive(Debug)]
pub struct Shape {
    pub hosts: Vec<&'static str>,
    pub links: Vec<Link>,
    /// Links with a switch in their middle, and its name.
    pub switches: Vec<(Link, &'static str)>,
    /// The subnets of all of them, which are one destination each to the others; or none.
    pub subnets: Vec<(&'static str, &'static str)>,
}

/// The interface that leads to another host.
pub fn interface(other: &str) -> String {
    format!("to-{other}")
}

impl Shape {
    fn subnet(&self, host: &str) -> Option<&str> {
        let mut subnets = self.subnets.iter();
        subnets
            .find(|(name, _)| *name == host)
            .map(|(_, subnet)| *subnet)
    }

    /// A node's file, whose neighbours have these names and addresses.
    fn file(&self, host: &str, near: &[(&str, String)]) -> String {
        let mut rest = self
            .subnet(host)
            .map_or_else(String::new, |subnet| format!("subnet = \"{subnet}\"\n"));
        let by_subnet = !self.subnets.is_empty();
        rest += &format!("[routing]\nenabled = true\nby_subnet = {by_subnet}\n");
        let names = near
            .iter()
            .map(|(other, _)| format!("\"{}\"", interface(other)));
        rest += &forwarding("native", &names.collect::<Vec<_>>().join(", "));
        for other in self.hosts.iter().filter(|other| **other != host) {
            let adjacent = near.iter().find(|(name, _)| name == other);
            let mut how = adjacent.map_or_else(String::new, |(_, address)| {
                format!("address = \"{}\"\n", at(address))
            });
            if let Some(subnet) = self.subnet(other) {
                // A neighbour brings what anybody sends.
                let carried = if adjacent.is_some() { "/0" } else { "" };
                how += &format!("subnet = \"{subnet}{carried}\"\n");
            }
            rest += &peer(other, &how);
        }
        rest + &channels()
    }

    /// All of it, running.
    pub fn start(&self) -> Hosts {
        let mut hosts = Hosts::new("virga-test", virga()).unwrap();
        for host in &self.hosts {
            hosts.add(host).unwrap();
        }
        // What each says of its neighbours: name, and address.
        let mut next: BTreeMap<&str, Vec<(&str, String)>> = BTreeMap::new();
        for (n, &(one, other)) in self.links.iter().enumerate() {
            let (x, y) = (format!("10.82.{n}.1"), format!("10.82.{n}.2"));
            let (i, j) = (interface(other), interface(one));
            let (near, far) = (format!("{x}/24"), format!("{y}/24"));
            let (near, far) = ((one, &*i, &*near), (other, &*j, &*far));
            let mut switches = self.switches.iter();
            match switches.find(|(link, _)| *link == (one, other)) {
                Some((_, switch)) => put_switch(&mut hosts, switch, near, far).unwrap(),
                None => hosts.join(near, far).unwrap(),
            }
            next.entry(one).or_default().push((other, y));
            next.entry(other).or_default().push((one, x));
        }
        for host in &self.hosts {
            let file = self.file(host, &next[host]);
            hosts.configure(host, "0.0.0.0:4783", &file).unwrap();
        }
        for host in &self.hosts {
            hosts.start(host).unwrap();
        }
        hosts
    }
}

/// A connection to each node.
pub async fn nodes(hosts: &Hosts, names: &[&'static str]) -> Vec<(&'static str, Mesh)> {
    let mut nodes = Vec::new();
    for &name in names {
        nodes.push((name, Mesh::open(hosts.socket(name)).await.unwrap()));
    }
    nodes
}

/// Where each node sends what is for each other one, and where else it could.
pub type Ways = BTreeMap<&'static str, BTreeMap<String, (String, Option<String>)>>;
async fn ways(nodes: &[(&'static str, Mesh)]) -> Ways {
    let mut all = Ways::new();
    for (node, mesh) in nodes {
        let routes = mesh.routes().await.unwrap().routes;
        let led = routes
            .into_iter()
            .filter_map(|route| Some((route.name, (route.primary?, route.backup))));
        all.insert(node, led.collect());
    }
    all
}

/// The nodes from one to another, both with them; none where the ways do not lead there, or over what is cut.
pub fn path(ways: &Ways, from: &'static str, to: &str, cut: &[Link]) -> Option<Vec<&'static str>> {
    let mut path = vec![from];
    // As many steps as there are nodes: more are a loop.
    for _ in 0..ways.len() {
        let at = *path.last()?;
        if at == to {
            return Some(path);
        }
        let is_cut = |next: &str| {
            cut.iter()
                .any(|&cut| cut == (at, next) || cut == (next, at))
        };
        let (primary, backup) = ways[at].get(to)?;
        // To a neighbour the way is straight, and over another only while its link is dead.
        let next = match backup {
            Some(backup) if is_cut(primary) && primary == to => backup,
            _ => primary,
        };
        let (next, _) = ways.get_key_value(&**next)?;
        if is_cut(next) {
            return None;
        }
        path.push(next);
    }
    None
}

/// What all nodes know and did last, for whoever looks for the cause of a failure.
async fn told(hosts: &Hosts, nodes: &[(&'static str, Mesh)]) -> String {
    let mut told = String::new();
    for (node, mesh) in nodes {
        let status = mesh.routes().await.unwrap();
        told += &format!(
            "\n== {node}: quiet {}, {} messages, refused {:?}, problem {}\n",
            status.is_quiet,
            status.messages,
            status.refused,
            hosts.status(node).unwrap()["forwarding"]["problem"]
        );
        for link in status.links {
            told += &format!("{link:?}\n");
        }
        for route in status.routes {
            told += &format!(
                "{} over {:?} or {:?}: metric {:?}, number {:?}, for {:?} s\n",
                route.name, route.primary, route.backup, route.metric, route.seqno, route.age_s
            );
        }
        let log = hosts.log(node);
        let lines: Vec<&str> = log.lines().collect();
        told += &lines[lines.len().saturating_sub(LINES)..].join("\n");
    }
    told
}

/// Looks at the ways until what is looked for is there; how long that took.
pub async fn found<T>(
    hosts: &Hosts,
    nodes: &[(&'static str, Mesh)],
    mut look: impl FnMut(&Ways) -> Option<T>,
) -> (Duration, T) {
    let start = Instant::now();
    loop {
        let ways = ways(nodes).await;
        if let Some(found) = look(&ways) {
            return (start.elapsed(), found);
        }
        if start.elapsed() > PATIENCE {
            panic!("{ways:?}\n{}", told(hosts, nodes).await);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until each node has led to each other one, and not over what is cut; how long that took. Not all at one moment:
/// on a machine that is busy, costs change, and somebody is about to find another way at any time. Then until all do at
/// one moment, as a mesh does that comes to rest.
pub async fn whole(hosts: &Hosts, nodes: &[(&'static str, Mesh)], cut: &[Link]) -> Duration {
    let pair = |(from, _): &(&'static str, Mesh)| {
        let from = *from;
        let others = nodes.iter().filter(move |(to, _)| *to != from);
        others.map(move |(to, _)| (from, *to)).collect::<Vec<_>>()
    };
    let mut apart: Vec<_> = nodes.iter().flat_map(pair).collect();
    let look = |ways: &Ways| {
        apart.retain(|(from, to)| path(ways, from, to, cut).is_none());
        apart.is_empty().then_some(())
    };
    let (took, ()) = found(hosts, nodes, look).await;
    let all: Vec<_> = nodes.iter().flat_map(pair).collect();
    let look = |ways: &Ways| {
        let mut leads = all.iter().map(|(from, to)| path(ways, from, to, cut));
        leads.all(|path| path.is_some()).then_some(())
    };
    found(hosts, nodes, look).await;
    took
}
