//! A dozen nodes that learn their ways: two rows of six, with a rung between each two. A link on the way falls silent,
//! another goes down, and both are mended; then the mesh falls into halves, and heals.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use virga::mesh::Mesh;

use crate::{
    diamond::Hand,
    failover::is_up,
    hosts::{Hosts, eventually},
    learned::{Link, Shape, Ways, found, interface, nodes, path, whole},
    stage::{RELIABLE, Sink, assert_complete, publish_while},
};

/// The upper row, and below each the one of the lower row.
const ROWS: [[&str; 6]; 2] = [
    ["a", "t2", "t3", "t4", "t5", "t6"],
    ["u1", "u2", "u3", "u4", "u5", "b"],
];
/// The links in the middle of the rows, one of which leads from a to b, and their switches.
const MIDDLE: [(&str, &str, &str); 2] = [("t3", "t4", "w1"), ("u3", "u4", "w2")];
/// Ways around a cut are there by then on any machine: most of it is there for machines that are busy.
const AROUND: Duration = Duration::from_secs(30);

/// Each link's ends.
fn links() -> Vec<Link> {
    let rails = ROWS
        .iter()
        .flat_map(|row| row.windows(2).map(|two| (two[0], two[1])));
    let rungs = ROWS[0].into_iter().zip(ROWS[1]);
    rails.chain(rungs).collect()
}

fn ladder() -> Shape {
    let switches = MIDDLE.map(|(one, other, switch)| ((one, other), switch));
    Shape {
        hosts: ROWS.concat(),
        links: links(),
        switches: switches.to_vec(),
        subnets: Vec::new(),
    }
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
    let hosts = ladder().start();
    let nodes = nodes(&hosts, &ROWS.concat()).await;
    let formed = whole(&hosts, &nodes, &[]).await;
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let goes_on = Arc::new(AtomicBool::new(true));
    let (socket, is_on) = (hosts.socket("a"), Arc::clone(&goes_on));
    let publishing = tokio::spawn(async move {
        publish_while(&socket, RELIABLE, 200, || is_on.load(Ordering::Relaxed)).await
    });

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

    goes_on.store(false, Ordering::Relaxed);
    let count = publishing.await.unwrap();
    assert!(around_silent < AROUND && around_down < AROUND);
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
