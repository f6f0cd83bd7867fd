//! Nodes in one LAN that know nobody's address: they find each other by multicast, and whoever else is there gets nothing.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use serde_json::Value;
use virga::{
    keys::{self, Existing, KeyKind, Secret},
    mesh::Mesh,
};
use virga_discovery::{Claim, Record};
use virga_ebpf::header::Subnet;
use virga_lan::{limits::HEARD_MAX, message};

use crate::{
    hosts::{Hosts, eventually},
    stage::{RELIABLE, forwarding, number, virga},
};

const GROUP: (Ipv4Addr, u16) = (Ipv4Addr::new(224, 0, 0, 251), 5353);
const STRANGER: &str = "10.78.7.4";

/// a, b, c and a stranger at one switch: everybody's addresses, and nothing of anybody else's.
fn lan() -> Hosts {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    hosts.add("w").unwrap();
    let bridge = ["link", "add", "sw", "type", "bridge", "stp_state", "0"];
    hosts.ip("w", &bridge).unwrap();
    hosts.ip("w", &["link", "set", "dev", "sw", "up"]).unwrap();
    for (n, host) in (1..).zip(["a", "b", "c", "stranger"]) {
        hosts.add(host).unwrap();
        let port = format!("p{n}");
        let ends = [(host, "m0", n), ("w", &port, n + 100)];
        let [near, far] = ends.map(|(_, _, n)| format!("10.78.7.{n}/24"));
        hosts.join((host, "m0", &near), ("w", &port, &far)).unwrap();
        hosts.ip("w", &["address", "flush", "dev", &port]).unwrap();
        hosts
            .ip("w", &["link", "set", "dev", &port, "master", "sw"])
            .unwrap();
    }
    let names = |others: &[&str]| {
        let blocks = others.iter().map(|name| {
            format!("[[peers]]\nname = \"{name}\"\nentity_key = \"{{{name}.entity}}\"\n")
        });
        blocks.collect::<String>()
    };
    let channel = format!(
        "[[channels]]\nname = \"{RELIABLE}\"\nreliable = true\npublish = [\"{{a.entity}}\"]\n\
         subscribe = [\"{{b.entity}}\", \"{{c.entity}}\"]\n"
    );
    let looking = |more: &str| forwarding("userspace", "") + "[discovery]\nlan = true\n" + more;
    for (host, listen, rest) in [
        ("a", "10.78.7.1:4783", looking("") + &names(&["b", "c"])),
        (
            "b",
            "0.0.0.0:4783",
            looking("advertise = [\"10.78.7.2:4783\"]\n") + &names(&["a", "c"]),
        ),
        ("c", "10.78.7.3:4783", looking("admit = \"any\"\n")),
    ] {
        hosts.configure(host, listen, &(rest + &channel)).unwrap();
    }
    let any = looking("admit = \"any\"\n");
    hosts
        .configure("stranger", &format!("{STRANGER}:4783"), &any)
        .unwrap();
    let psk = hosts.folder.join("stranger").join(KeyKind::Psk.file_name());
    keys::write(
        KeyKind::Psk,
        &psk,
        &Secret::generate().unwrap(),
        Existing::Replace,
    )
    .unwrap();
    hosts
}

/// The session of a host with another one, if there is one that carries anything.
fn session(hosts: &Hosts, at: &str, of: &str) -> Option<Value> {
    let (status, id) = (
        hosts.status(at).unwrap(),
        hosts.host(of).node.id.to_string(),
    );
    let mut sessions = status["sessions"].as_array()?.iter();
    let is_it = |one: &&Value| one["peer"] == id.as_str() && one["state"] == "established";
    sessions.find(is_it).map(|one| one["session"].clone())
}

/// Waits until a host shows that, and fails with everybody's log.
#[track_caller]
fn wait(hosts: &Hosts, what: &str, condition: impl FnMut() -> bool) {
    let logs = || ["a", "b", "c", "stranger"].map(|host| format!("{host}:\n{}", hosts.log(host)));
    assert!(eventually(condition), "{what}\n{}", logs().join("\n"));
}

/// Publishes at a, and waits until b has it.
async fn arrives(hosts: &Hosts, event: &'static [u8]) {
    let mesh = Mesh::open(hosts.socket("b")).await.unwrap();
    let mut events = mesh.subscribe(RELIABLE).await.unwrap();
    wait(hosts, "b subscribes at a", || {
        number(hosts, "a", "/channels/0/remote_subscribers") > 0
    });
    let publisher = Mesh::open(hosts.socket("a")).await.unwrap();
    publisher.publish(RELIABLE, event).await.unwrap();
    let delivery = tokio::time::timeout(Duration::from_secs(60), events.next_delivery()).await;
    assert_eq!(&delivery.unwrap().unwrap().unwrap().payload[..], event);
}

/// Announces made-up nodes, as fast as it can.
fn flood(count: u64) {
    let socket = UdpSocket::bind((STRANGER, 5353)).unwrap();
    for sequence in 0..count {
        let mut key = [7; 32];
        key[..8].copy_from_slice(&sequence.to_be_bytes());
        let claim = Claim {
            node_key: key,
            entity_key: key,
            network: virga_discovery::record::network("demo"),
            subnet: Subnet(0),
            instance: 1,
            sequence,
            issued_s: sequence,
            lifetime_s: 1_800,
            name: "liar".into(),
            addresses: vec![SocketAddr::from(([10, 78, 7, 9], 4783))],
        };
        let record = Record::issue(&claim, |_| [0; 64]).unwrap();
        let words = message::announcement(&record).unwrap();
        socket.send_to(&words, GROUP).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn nodes_in_one_lan_find_each_other_and_a_stranger_gets_nothing() {
    let mut hosts = lan();
    // Another program has the port for itself where b is: b goes on without, and says so.
    let taken = hosts
        .inside("b", || UdpSocket::bind(("0.0.0.0", 5353)).unwrap())
        .unwrap();
    for host in ["a", "b", "c", "stranger"] {
        hosts.start(host).unwrap();
    }
    let problem = |hosts: &Hosts| {
        let status = hosts.status("b").unwrap();
        status["discovery"]["lan"]["places"][0]["problem"].clone()
    };
    wait(&hosts, "b says what is in the way", || {
        problem(&hosts)
            .as_str()
            .is_some_and(|problem| problem.contains("port 5353"))
    });
    assert!(hosts.log("b").contains("port 5353"), "{}", hosts.log("b"));
    drop(taken);
    for (at, of) in [
        ("a", "b"),
        ("b", "a"),
        ("a", "c"),
        ("c", "a"),
        ("b", "c"),
        ("c", "b"),
    ] {
        wait(&hosts, &format!("{at} has a session with {of}"), || {
            session(&hosts, at, of).is_some()
        });
    }
    assert_eq!(problem(&hosts), Value::Null);
    let found = hosts.status("c").unwrap()["discovery"]["nodes"].clone();
    let mut found = found.as_array().unwrap().iter();
    assert!(found.any(|node| node["origin"] == "lan"), "{found:?}");
    arrives(&hosts, b"from a to b").await;

    // Who is not named is not dialled; whoever dials it has no session, for want of the network's key.
    wait(&hosts, "the stranger is refused", || {
        number(&hosts, "a", "/discovery/refused/unnamed") > 0
    });
    wait(&hosts, "the stranger's handshakes are", || {
        number(&hosts, "c", "/transport/drops/handshake_tag") > 0
    });
    let stranger = hosts.host("stranger").node.id.to_string();
    let peers = hosts.status("a").unwrap()["peers"].clone();
    let mut peers = peers.as_array().unwrap().iter();
    assert!(peers.all(|peer| peer["id"] != stranger.as_str()));
    assert_eq!(session(&hosts, "c", "stranger"), None);

    // Who is killed is still announced, who leaves is not; sessions know nothing of either.
    let nodes = |hosts: &Hosts| number(hosts, "a", "/discovery/lan/nodes");
    wait(&hosts, "a hears of all", || nodes(&hosts) == 3);
    let before = session(&hosts, "a", "b");
    hosts.kill("c").unwrap();
    assert!(hosts.stop("stranger").unwrap());
    wait(&hosts, "a hears who leaves", || nodes(&hosts) == 2);

    hosts.inside("stranger", || flood(20_000)).unwrap();
    let refused = |hosts: &Hosts, reason: &str| {
        number(hosts, "a", &format!("/discovery/lan/refused/{reason}"))
    };
    wait(&hosts, "the flood is counted", || {
        refused(&hosts, "busy") + refused(&hosts, "sender_full") > 0
    });
    assert!(nodes(&hosts) <= u64::try_from(HEARD_MAX).unwrap());
    arrives(&hosts, b"after all of that").await;
    assert_eq!(session(&hosts, "a", "b"), before);
}
