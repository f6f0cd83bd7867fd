//! Six nodes in a ring that learn their ways, in three subnets of two, each of which is one destination to the others: a
//! link between two subnets falls silent, and while it is mended another goes down; each time traffic goes round by the
//! other side.
//!
//! ```text
//!     r1 -- r2          r1, r2: 2.0.0.0
//!    /        \
//!   a          b        a, r5:  1.0.0.0
//!    \        /
//!     r5 -- r4          b, r4:  3.0.0.0
//! ```

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
    learned::{Shape, interface, nodes, whole},
    stage::{RELIABLE, Sink, assert_complete, forwarded, publish_while},
};

const SWITCH: &str = "w";

fn ring() -> Shape {
    let all = [
        ("a", "1.0.0.0"),
        ("r1", "2.0.0.0"),
        ("r2", "2.0.0.0"),
        ("b", "3.0.0.0"),
        ("r4", "3.0.0.0"),
        ("r5", "1.0.0.0"),
    ];
    let hosts = all.map(|(host, _)| host);
    let next = |(n, host)| (host, hosts[(n + 1) % hosts.len()]);
    Shape {
        hosts: hosts.to_vec(),
        links: hosts.into_iter().enumerate().map(next).collect(),
        switches: vec![(("r2", "b"), SWITCH)],
        subnets: all.to_vec(),
    }
}

/// What a node goes by on its way to each other one that is not a neighbour.
async fn followed(node: &Mesh) -> Vec<(String, Option<String>)> {
    let routes = node.routes().await.unwrap().routes.into_iter();
    let learned = routes.filter(|route| route.by == "learned");
    learned.map(|route| (route.name, route.follows)).collect()
}

/// Waits until a router forwards events.
fn assert_carries(hosts: &Hosts, router: &str) {
    let before = forwarded(hosts, router);
    let carries = eventually(|| forwarded(hosts, router) > before + 100);
    assert!(carries, "{router} carries nothing: {}", hosts.log(router));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn in_a_ring_of_three_subnets_traffic_goes_round_by_the_other_side_of_each_cut() {
    let hosts = ring().start();
    let nodes = nodes(&hosts, &ring().hosts).await;
    whole(&hosts, &nodes, &[]).await;
    let mut to_others = followed(&nodes[0].1).await;
    to_others.sort_unstable();
    let expected = [("b", "3.0.0.0/8"), ("r2", "2.0.0.0/8"), ("r4", "3.0.0.0/8")];
    let expected = expected.map(|(name, subnet)| (name.to_owned(), Some(subnet.to_owned())));
    assert_eq!(to_others, expected, "a goes by subnets, not by nodes");

    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let goes_on = Arc::new(AtomicBool::new(true));
    let (socket, is_on) = (hosts.socket("a"), Arc::clone(&goes_on));
    let publishing = tokio::spawn(async move {
        publish_while(&socket, RELIABLE, 200, || is_on.load(Ordering::Relaxed)).await
    });
    assert!(eventually(|| is_up(&hosts, "r2", "b")));
    let mut hand = Hand::at(&hosts, SWITCH).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    hand.cut().unwrap();
    let around_silent = whole(&hosts, &nodes, &[("r2", "b")]).await;
    assert_carries(&hosts, "r5");
    hand.mend().unwrap();
    assert!(eventually(
        || is_up(&hosts, "r2", "b") && is_up(&hosts, "b", "r2")
    ));

    let link = interface("r5");
    hosts
        .ip("r4", &["link", "set", "dev", &link, "down"])
        .unwrap();
    let around_down = whole(&hosts, &nodes, &[("r4", "r5")]).await;
    assert_carries(&hosts, "r1");
    goes_on.store(false, Ordering::Relaxed);
    let count = publishing.await.unwrap();
    assert_complete(&sink.numbers().await, count);
    println!(
        "six nodes, three subnets: each leads to each {} ms after a link fell silent, {} ms after one went down; {count} \
         reliable events, none lost",
        around_silent.as_millis(),
        around_down.as_millis()
    );
}
