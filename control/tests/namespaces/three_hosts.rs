//! The example of three hosts, run as it is written: its addresses, interfaces and channels, on veth
//! pairs, with keys made for the run.

use std::{fs, path::Path, time::Duration};

use futures_util::StreamExt as _;
use virga::mesh::{Mesh, Subscription};

use crate::{
    hosts::{Hosts, eventually},
    stage::{dropped, forwarded, number, virga},
};

const NAMES: [&str; 3] = ["edge-a", "router", "edge-b"];
/// The bytes that each host's example keys repeat: node, entity.
const EXAMPLE_KEYS: [[&str; 2]; 3] = [["a1", "aa"], ["c1", "cc"], ["b1", "bb"]];

fn example(host: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/three-hosts");
    fs::read_to_string(folder.join(format!("{host}.toml"))).unwrap()
}

/// The address that a host's file gives a peer, without its port, in a network of 24 bits.
fn address_of(peer: &str, in_file_of: &str) -> String {
    let file: toml::Table = example(in_file_of).parse().unwrap();
    let mut peers = file["peers"].as_array().unwrap().iter();
    let peer = peers.find(|p| p["name"].as_str() == Some(peer)).unwrap();
    let (ip, port) = peer["address"].as_str().unwrap().split_once(':').unwrap();
    assert_eq!(port, "4783");
    format!("{ip}/24")
}

/// Gives a host its file: names, folder and keys are those of this run, all else as in the example.
fn configure(hosts: &Hosts, host: &str, example: &str) {
    let folder = hosts.folder.join(host);
    let socket = format!("socket = \"{}\"\nlisten = ", hosts.socket(host).display());
    let mut text = example
        .replace("/etc/virga", &folder.to_string_lossy())
        .replace("listen = ", &socket);
    for (name, examples) in NAMES.iter().zip(EXAMPLE_KEYS) {
        let known = hosts.host(name);
        for (example, key) in examples
            .iter()
            .zip([known.node.public, known.entity.public])
        {
            text = text.replace(&example.repeat(32), &virga::hex::encode(&key));
        }
        text = text.replace(
            &format!("\"{name}\""),
            &format!("\"{}\"", hosts.node_name(name)),
        );
    }
    fs::write(folder.join("node.toml"), text).unwrap();
}

async fn next(events: &mut Subscription) -> Vec<u8> {
    let delivery = tokio::time::timeout(Duration::from_secs(60), events.next());
    delivery.await.unwrap().unwrap().unwrap().payload.to_vec()
}

fn is_subscribed(hosts: &Hosts, at: &str, channel: usize) -> bool {
    number(
        hosts,
        at,
        &format!("/channels/{channel}/remote_subscribers"),
    ) == 1
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn the_example_of_three_hosts_works_as_it_says() {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    for name in NAMES {
        hosts.add(name).unwrap();
    }
    for (edge, interface) in [("edge-a", "eth0"), ("edge-b", "eth1")] {
        let (near, far) = (address_of(edge, "router"), address_of("router", edge));
        hosts
            .join((edge, "eth0", &near), ("router", interface, &far))
            .unwrap();
    }
    for name in NAMES {
        configure(&hosts, name, &example(name));
    }
    for name in ["router", "edge-b", "edge-a"] {
        hosts.start(name).unwrap();
        let status = hosts.status(name).unwrap();
        assert_eq!(
            status["forwarding"]["mode"],
            "native",
            "{}",
            hosts.log(name)
        );
    }
    let a = Mesh::open(hosts.socket("edge-a")).await.unwrap();
    let b = Mesh::open(hosts.socket("edge-b")).await.unwrap();
    let mut metrics = b.subscribe("metrics/edge-a").await.unwrap();
    let mut commands = a.subscribe("commands/edge-a").await.unwrap();
    assert!(eventually(|| is_subscribed(&hosts, "edge-a", 0)));
    assert!(eventually(|| is_subscribed(&hosts, "edge-b", 1)));
    for n in 0..100_u8 {
        a.publish("metrics/edge-a", &[n]).await.unwrap();
        b.publish("commands/edge-a", &[n]).await.unwrap();
    }
    for n in 0..100_u8 {
        assert_eq!(next(&mut metrics).await, [n]);
        assert_eq!(next(&mut commands).await, [n]);
    }
    assert!(forwarded(&hosts, "router") > 0);

    // Without a backup nothing gets through until the next hop is up again.
    let link = |state: &str| {
        let (router, peer) = (hosts.node_name("router"), hosts.node_name("edge-b"));
        let socket = hosts.socket("router");
        let program = virga().to_str().unwrap();
        let arguments = ["node", "link", &router, &peer, state, "--socket"];
        let socket = [socket.to_str().unwrap()];
        hosts
            .run("router", program, &[&arguments[..], &socket].concat())
            .unwrap();
    };
    link("down");
    a.publish("metrics/edge-a", b"meanwhile").await.unwrap();
    assert!(eventually(|| dropped(&hosts, "router", "next_hop_down") > 0));
    link("up");
    assert_eq!(next(&mut metrics).await, b"meanwhile");

    // A router that does not repeat a pair drops it.
    let full = example("router");
    let (without, _) = full.rsplit_once("[[channels]]").unwrap();
    configure(&hosts, "router", without);
    hosts.stop("router").unwrap();
    hosts.start("router").unwrap();
    let before = dropped(&hosts, "router", "unauthorised");
    b.publish("commands/edge-a", b"forgotten").await.unwrap();
    assert!(eventually(
        || dropped(&hosts, "router", "unauthorised") > before
    ));
}
