//! A path whose second link takes smaller packets than its first: what sessions find out, and that nothing of theirs is
//! ever cut into IP fragments.

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::task::JoinHandle;
use virga::mesh::Mesh;

use crate::{
    hosts::{Hosts, eventually},
    stage::{RELIABLE, V4, at, channels, forwarding, is_subscribed, number, peer, virga},
};

/// What the second link takes, at first and later.
const MTU: u64 = 1_400;
const MTU_LATER: u64 = 1_300;
/// Of that, what IPv4 and UDP leave of a packet.
const OUTER: u64 = 28;
const MESSAGE_BYTES: usize = 60_000;

/// a -- router -- b, where the router is the kernel alone and knows nothing of the mesh.
fn stage() -> Hosts {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    for host in ["a", "router", "b"] {
        hosts.add(host).unwrap();
    }
    for (edge, own, interface, router) in [
        ("a", V4.a, "ma", V4.router_a),
        ("b", V4.b, "mb", V4.router_b),
    ] {
        let [own, next] = [own, router].map(|address| format!("{address}/{}", V4.prefix));
        hosts
            .join((edge, "m0", &own), ("router", interface, &next))
            .unwrap();
        let default = ["route", "add", "default", "via", router];
        hosts.ip(edge, &default).unwrap();
    }
    let forward = "echo 1 >/proc/sys/net/ipv4/ip_forward";
    hosts.run("router", "sh", &["-c", forward]).unwrap();
    set_mtu(&hosts, MTU);
    for (end, own, other, there) in [("a", V4.a, "b", V4.b), ("b", V4.b, "a", V4.a)] {
        let far = format!("address = \"{}\"", at(there));
        let rest = forwarding("userspace", "") + &peer(other, &far) + &channels();
        hosts.configure(end, &at(own), &rest).unwrap();
    }
    for end in ["b", "a"] {
        hosts.start(end).unwrap();
    }
    hosts
}

/// Of the second link, at both of its ends.
fn set_mtu(hosts: &Hosts, bytes: u64) {
    for (host, interface) in [("router", "mb"), ("b", "m0")] {
        let set = ["link", "set", "dev", interface, "mtu", &bytes.to_string()];
        hosts.ip(host, &set).unwrap();
    }
}

/// A count of IPv4's in a host's kernel.
fn ip_count(hosts: &Hosts, host: &str, name: &str) -> u64 {
    let output = hosts.run(host, "cat", &["/proc/net/snmp"]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let place = rows.next().unwrap().split(' ').position(|n| n == name);
    let value = rows.next().unwrap().split(' ').nth(place.unwrap());
    value.unwrap().parse().unwrap()
}

/// What a's session takes for the largest datagram of its path.
fn found(hosts: &Hosts) -> u64 {
    number(hosts, "a", "/sessions/0/path/datagram_bytes")
}

/// Publishes that many messages at a, each a number again and again.
fn publishing(hosts: &Hosts, count: u8) -> JoinHandle<()> {
    let socket = hosts.socket("a");
    tokio::spawn(async move {
        let mesh = Mesh::open(socket).await.unwrap();
        for number in 0..count {
            let message = vec![number; MESSAGE_BYTES];
            mesh.publish(RELIABLE, &message).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn the_paths_size_is_found_behind_a_router_and_again_when_it_shrinks_without_a_fragment() {
    let hosts = stage();
    let mesh = Mesh::open(hosts.socket("b")).await.unwrap();
    let mut deliveries = mesh.subscribe(RELIABLE).await.unwrap();
    assert!(eventually(|| is_subscribed(&hosts, RELIABLE)));
    for (mtu, floor) in [(MTU, MTU_LATER), (MTU_LATER, 1_200)] {
        set_mtu(&hosts, mtu);
        let count = 100;
        let published = publishing(&hosts, count);
        for number in 0..count {
            let next = tokio::time::timeout(Duration::from_secs(30), deliveries.next()).await;
            let delivery = next.expect("a message comes").unwrap().unwrap();
            let is_whole = delivery.payload.len() == MESSAGE_BYTES
                && delivery.payload.iter().all(|byte| *byte == number);
            assert!(is_whole, "message {number}, with {mtu} bytes a packet");
        }
        published.await.unwrap();
        let is_found = || (floor - OUTER..=mtu - OUTER).contains(&found(&hosts));
        assert!(eventually(is_found), "{} of {mtu}", found(&hosts));
    }
    // A packet that was too large got to the second link with DF set: the router refused to cut it.
    assert!(ip_count(&hosts, "router", "FragFails") > 0);
    for host in ["a", "router", "b"] {
        for name in ["FragCreates", "FragOKs", "ReasmReqds"] {
            assert_eq!(ip_count(&hosts, host, name), 0, "{host}: {name}");
        }
    }
}
