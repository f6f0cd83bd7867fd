//! The same events through every driver, each at either end of a session with each other: between real daemons, with the
//! XDP program in veth's native mode, so that AF_XDP has a real queue.

use std::time::Duration;

use futures_util::StreamExt as _;
use virga::{
    flow::{Asked, StageTimes},
    mesh::{Flow, Mesh},
};

use crate::{
    hosts::Hosts,
    stage::{LOSSY, RELIABLE, Sink, V4, assert_complete, line_keyed, number, publish, publishing},
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
    let patience = Duration::from_secs(60);
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

/// Times b's part of the reliable channel's way.
async fn timed(hosts: &Hosts) -> Flow {
    let asked = Asked {
        channel: RELIABLE.to_owned(),
        ..Asked::default()
    };
    let mesh = Mesh::open(hosts.socket("b")).await.unwrap();
    mesh.flow(&asked).await.unwrap()
}

/// How long events waited at b to be read, once so many have come.
async fn waited(mut flow: Flow, events: u64) -> StageTimes {
    let patience = Duration::from_secs(60);
    loop {
        let next = tokio::time::timeout(patience, flow.next_report()).await;
        let mut report = next.expect("a report comes").unwrap().unwrap();
        if report.received >= events {
            return report.receiving.swap_remove(0);
        }
    }
}

/// What people see of that.
async fn table(hosts: &Hosts) -> String {
    let sink = Sink::subscribe(hosts, RELIABLE).await;
    let published = publishing(hosts, RELIABLE, 200, Duration::from_secs(4));
    let (program, socket) = (hosts.virga().to_str().unwrap(), hosts.socket("b"));
    let socket = socket.to_str().unwrap();
    let trace = ["trace", "--flow", RELIABLE, "--seconds", "2"];
    let output = hosts.run("b", program, &[&trace[..], &["--socket", socket]].concat());
    let count = published.await.unwrap();
    assert_complete(&sink.numbers().await, count);
    String::from_utf8(output.unwrap().stdout).unwrap()
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
            let flow = timed(&hosts).await;
            let count = suite(&hosts).await;
            let receive = waited(flow, count / 4).await;
            let untimed: Vec<_> = receive.why_not.keys().collect();
            match to {
                // The kernel has no time of what it did not see.
                "xsk" => assert!(receive.count == 0 && untimed == ["xsk"], "{receive:?}"),
                _ => assert!(receive.count > 0 && untimed.is_empty(), "{receive:?}"),
            }
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
    // The last one of them is xsk.
    let told = table(&hosts).await;
    let mut lines = told.lines();
    let receive = lines.find(|line| line.trim_start().starts_with("receive "));
    let row: Vec<_> = receive.unwrap().split_whitespace().take(6).collect();
    assert_eq!((row[1], &row[3..]), ("0", &["-"; 3][..]), "{told}");
    let why = lines.next().unwrap().trim_start();
    assert!(why.starts_with("not timed on xsk: "), "{told}");
}
