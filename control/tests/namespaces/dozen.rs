//! A dozen nodes that learn their ways: two rows of six, with a rung between each two. A link on the way falls silent,
//! another goes down, and both are mended; then the mesh falls into halves, and heals.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use virga::mesh::Mesh;

use crate::{
    diamond::{Hand, put_switch},
    failover::is_up,
    hosts::{Hosts, eventually},
    stage::{RELIABLE, Sink, assert_complete, at, channels, forwarding, peer, publishing, virga},
};

/// The upper row, and below each the one of the lower row.
const ROWS: [[&str; 6]; 2] = [
    ["a", "t2", "t3", "t4", "t5", "t6"],
    ["u1", "u2", "u3", "u4", "u5", "b"],
];
/// The links in the middle of the rows, one of which leads from a to b, and their switches.
const MIDDLE: [(&str, &str, &str); 2] = [("t3", "t4", "w1"), ("u3", "u4", "w2")];
/// Of each node's log, where something fails.
const LINES: usize = 60;
/// What only a failure takes.
const PATIENCE: Duration = Duration::from_secs(90);

/// Each link's ends.
fn links() -> Vec<(&'static str, &'static str)> {
    let rails = ROWS
        .iter()
        .flat_map(|row| row.windows(2).map(|two| (two[0], two[1])));
    let rungs = ROWS[0].into_iter().zip(ROWS[1]);
    rails.chain(rungs).collect()
}

fn interface(other: &str) -> String {
    format!("to-{other}")
}

fn ladder() -> Hosts {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    let all = ROWS.concat();
    for host in &all {
        hosts.add(host).unwrap();
    }
    // What each says of its neighbours: name, and address.
    let mut next: BTreeMap<&str, Vec<(&str, String)>> = BTreeMap::new();
    for (n, (one, other)) in links().into_iter().enumerate() {
        let (x, y) = (format!("10.82.{n}.1"), format!("10.82.{n}.2"));
        let (i, j) = (interface(other), interface(one));
        let (near, far) = (format!("{x}/24"), format!("{y}/24"));
        let (near, far) = ((one, &*i, &*near), (other, &*j, &*far));
        let mut middle = MIDDLE.iter();
        match middle.find(|(upper, lower, _)| (*upper, *lower) == (one, other)) {
            Some((.., switch)) => put_switch(&mut hosts, switch, near, far).unwrap(),
            None => hosts.join(near, far).unwrap(),
        }
        next.entry(one).or_default().push((other, y));
        next.entry(other).or_default().push((one, x));
    }
    for host in &all {
        let near = &next[host];
        let names: Vec<String> = near
            .iter()
            .map(|(other, _)| format!("\"{}\"", interface(other)))
            .collect();
        let mut rest = "[routing]\nenabled = true\n".to_owned();
        rest += &forwarding("native", &names.join(", "));
        for other in all.iter().filter(|other| *other != host) {
            let adjacent = near.iter().find(|(name, _)| name == other);
            let how = adjacent.map(|(_, address)| format!("address = \"{}\"", at(address)));
            rest += &peer(other, &how.unwrap_or_default());
        }
        hosts
            .configure(host, "0.0.0.0:4783", &(rest + &channels()))
            .unwrap();
    }
    for host in all {
        hosts.start(host).unwrap();
    }
    hosts
}

/// Where each node sends what is for each other one, and where else it could.
type Ways = BTreeMap<&'static str, BTreeMap<String, (String, Option<String>)>>;
/// A link.
type Link = (&'static str, &'static str);

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
fn path(ways: &Ways, from: &'static str, to: &str, cut: &[Link]) -> Option<Vec<&'static str>> {
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
async fn found<T>(
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
/// on a machine that is busy, costs change, and somebody is about to find another way at any time.
async fn whole(hosts: &Hosts, nodes: &[(&'static str, Mesh)], cut: &[Link]) -> Duration {
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
    found(hosts, nodes, look).await.0
}

/// Waits until no node of either half knows a way to any of the other, but over the links between them to their other
/// ends; how long that took.
async fn parted(hosts: &Hosts, nodes: &[(&'static str, Mesh)]) -> Duration {
    let half = |host: &str| ROWS.iter().any(|row| row[..3].contains(&host));
    let is_between = |from: &str, to: &str| {
        let mut middle = MIDDLE.iter();
        middle.any(|&(one, other, _)| (one, other) == (from, to) || (one, other) == (to, from))
    };
    let look = |ways: &Ways| {
        let mut across = ways.iter().flat_map(|(from, ways)| {
            let others = ways.keys().filter(|to| half(from) != half(to));
            others.filter(|to| !is_between(from, to))
        });
        across.next().is_none().then_some(())
    };
    found(hosts, nodes, look).await.0
}

/// Waits until both ends use their link again.
fn assert_mended(hosts: &Hosts, (one, other): Link) {
    let is_mended = || is_up(hosts, one, other) && is_up(hosts, other, one);
    assert!(eventually(is_mended), "{one} to {other}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_dozen_nodes_find_their_ways_around_each_cut_and_back_and_lose_no_reliable_event() {
    let hosts = ladder();
    let mut nodes = Vec::new();
    for host in ROWS.concat() {
        nodes.push((host, Mesh::open(hosts.socket(host)).await.unwrap()));
    }
    let formed = whole(&hosts, &nodes, &[]).await;
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let publishing = publishing(&hosts, RELIABLE, 200, Duration::from_secs(15));

    let middle = |ways: &Ways| {
        let way = path(ways, "a", "b", &[])?;
        let mut links = MIDDLE.into_iter();
        links.find(|(one, other, _)| way.windows(2).any(|two| two == [*one, *other]))
    };
    let (_, (one, other, switch)) = found(&hosts, &nodes, middle).await;
    let silent = (one, other);
    let mut hand = Hand::at(&hosts, switch).unwrap();
    assert!(eventually(|| is_up(&hosts, one, other)));
    hand.cut().unwrap();
    let around_silent = whole(&hosts, &nodes, &[silent]).await;
    hand.mend().unwrap();
    assert_mended(&hosts, silent);

    // Its second step, so that there is one beside it.
    let second = |ways: &Ways| path(ways, "a", "b", &[]).map(|way| (way[1], way[2]));
    let (_, down) = found(&hosts, &nodes, second).await;
    let set = |state: &str| {
        let link = interface(down.1);
        let arguments = ["link", "set", "dev", &link, state];
        hosts.ip(down.0, &arguments).unwrap();
    };
    set("down");
    let around_down = whole(&hosts, &nodes, &[down]).await;
    set("up");
    assert_mended(&hosts, down);

    let count = publishing.await.unwrap();
    assert_complete(&sink.numbers().await, count);

    let mut hands = MIDDLE.map(|(.., switch)| Hand::at(&hosts, switch).unwrap());
    for hand in &mut hands {
        hand.cut().unwrap();
    }
    let in_halves = parted(&hosts, &nodes).await;
    hands.iter_mut().for_each(|hand| hand.mend().unwrap());
    let healed = whole(&hosts, &nodes, &[]).await;
    println!(
        "12 nodes, {} links: each leads to each {} ms after the last had started; {silent:?} silent: each to each and \
         nowhere over it after {} ms, as asked of all twelve; {down:?} down: after {} ms; {count} reliable events, none lost; in halves: none leads to the other after {} ms, and \
         each to each {} ms after that was mended",
        links().len(),
        formed.as_millis(),
        around_silent.as_millis(),
        around_down.as_millis(),
        in_halves.as_millis(),
        healed.as_millis()
    );
}
