//! The same events through every driver, each at either end of a session with each other: between real daemons, with the
//! XDP program in veth's native mode, so that AF_XDP has a real queue.

use std::time::Duration;

use futures_util::StreamExt as _;
use virga::mesh::Mesh;

use crate::{
    hosts::Hosts,
    stage::{LOSSY, RELIABLE, Sink, V4, assert_complete, line_keyed, number, publish},
};

/// What only each driver counts, at the sending end and at the receiving one.
const DRIVERS: [(&str, [&str; 2]); 3] = [
    ("mmsg", ["waits", "waits"]),
    ("uring", ["completions", "completions"]),
    ("xsk", ["xsk_sent", "xsk_received"]),
];
/// A message that no packet takes whole.
const LARGE_BYTES: usize = 300_000;

/// Starts a node anew with a driver, and has it say which one runs.
fn restart(hosts: &mut Hosts, host: &str, driver: &str) {
    hosts.stop(host).unwrap();
    let file = hosts.folder.join(host).join("node.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let others = text.lines().filter(|line| !line.starts_with("driver = "));
    let text = others.collect::<Vec<_>>().join("\n");
    let text = text.replace("[node]\n", &format!("[node]\ndriver = \"{driver}\"\n"));
    std::fs::write(&file, text).unwrap();
    hosts.start(host).unwrap();
    let status = hosts.status(host).unwrap();
    assert_eq!(status["socket"]["driver"], driver, "{}", status["socket"]);
}

fn figure(hosts: &Hosts, host: &str, name: &str) -> u64 {
    number(hosts, host, &format!("/socket/figures/{name}"))
}

/// Everything that an application may notice of a driver.
async fn suite(hosts: &Hosts) -> u64 {
    let mut published = 0;
    for channel in [LOSSY, RELIABLE] {
        let sink = Sink::subscribe(hosts, channel).await;
        let count = publish(hosts, channel, 500, Duration::from_millis(700)).await;
        assert_complete(&sink.numbers().await, count);
        published += count;
    }
    let near = Mesh::open(hosts.socket("a")).await.unwrap();
    let far = Mesh::open(hosts.socket("b")).await.unwrap();
    let mut deliveries = far.subscribe(RELIABLE).await.unwrap();
    let patience = Duration::from_secs(20);
    let subscribed = tokio::time::timeout(patience, near.wait_for_subscribers(RELIABLE, 1)).await;
    subscribed.expect("b's subscription reaches a").unwrap();
    let message: Vec<u8> = (0..LARGE_BYTES).map(|n| n.to_le_bytes()[1]).collect();
    near.publish(RELIABLE, &message).await.unwrap();
    let next = tokio::time::timeout(patience, deliveries.next()).await;
    let delivery = next.expect("it comes").unwrap().unwrap();
    assert!(
        delivery.payload == message,
        "{} bytes",
        delivery.payload.len()
    );
    published
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn every_driver_carries_the_same_at_either_end_and_its_own_counters_move() {
    let mut hosts = line_keyed("native", &V4, "");
    let automatic = hosts.status("a").unwrap()["socket"]["driver"].clone();
    let has_rings = automatic == "uring";
    if !has_rings {
        println!("skipped with uring: this machine's is {automatic}");
    }
    let there = || DRIVERS.into_iter().filter(|d| has_rings || d.0 != "uring");
    for (from, [sending, _]) in there() {
        restart(&mut hosts, "a", from);
        for (to, [_, receiving]) in there() {
            restart(&mut hosts, "b", to);
            let before = [figure(&hosts, "a", sending), figure(&hosts, "b", receiving)];
            let count = suite(&hosts).await;
            let after = [figure(&hosts, "a", sending), figure(&hosts, "b", receiving)];
            for (name, (before, after)) in [sending, receiving]
                .iter()
                .zip(before.into_iter().zip(after))
            {
                // Several packets may come with one wait.
                let moved = after - before;
                assert!(
                    moved >= count / 20,
                    "{from} to {to}: {moved} {name} for {count}"
                );
            }
            for (host, driver) in [("a", from), ("b", to)] {
                let lost = figure(&hosts, host, "socket_lost") + figure(&hosts, host, "xsk_lost");
                assert_eq!(lost, 0, "{driver} at {host}, {from} to {to}");
            }
        }
    }
}
