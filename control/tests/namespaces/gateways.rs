//! The three subnets of [`crate::subnets`], with gateways that sign what each admits, in native XDP. A token lets
//! a publish to b; its issuer is g2, and what is in front of g2 does not know of it. a is a sender that goes on
//! whatever it is told.

use std::{
    thread,
    time::{Duration, Instant},
};

use virga::{
    mesh::Mesh,
    rights::{Chain, Grant, List, Operation, Operations, Reach, Scope, revocation::Entry},
};
use virga_ebpf::hash;
use virga_transport::ChannelName;

use crate::{
    hosts::{Hosts, eventually},
    stage::{dropped, forwarded, forwarding, number, peer},
    subnets::{NODES, joined, now_s, peers_of},
};

const CHANNEL: &str = "test/across";
const THERE: &str = "2.0.0.0/8";
const LIFE_S: u64 = 9;

/// The nodes' files: in 2.0.0.0 and at a tokens are asked for, the others let only p publish.
fn configure(hosts: &Hosts, node: &str, subnet: &str, interfaces: &str) {
    let mut file = format!("subnet = \"{subnet}\"\n") + &forwarding("native", interfaces);
    // Without echoes, so that what is forwarded can be counted.
    file += "link_tags = \"off\"\nkeepalive_ms = 0\n";
    for (other, how) in peers_of(node) {
        // What is generated is of the root.
        let is_sender = (node, other) == ("g1", "a");
        let how = how.replace(
            "\"1.1.0.0\"",
            if is_sender {
                "\"1.1.0.0/0\""
            } else {
                "\"1.1.0.0\""
            },
        );
        file += &peer(other, &how);
    }
    if node != "a" && node != "p" {
        file += &format!("[subnets]\nfilter_life_s = {LIFE_S}\n");
        for (gateway, prefix) in [("g1", "1.1.0.0/16"), ("g0", "1.0.0.0/8"), ("g2", THERE)] {
            file += &format!(
                "[[subnet_gateways]]\nentity = \"{{{gateway}.entity}}\"\nsubnet = \"{prefix}\"\n"
            );
        }
    }
    let rule = match node {
        "a" | "g2" | "b" => "require_token = true\nissuers = [\"{g2.entity}\"]\n",
        _ => "publish = [\"{p.entity}\"]\nsubscribe = [\"{p.entity}\"]\n",
    };
    file += &format!("[[channels]]\nname = \"{CHANNEL}\"\n{rule}");
    hosts.configure(node, "0.0.0.0:4783", &file).unwrap();
}

fn topology() -> Hosts {
    let mut hosts = joined();
    for (name, subnet, interfaces) in NODES {
        configure(&hosts, name, subnet, interfaces);
    }
    for (name, ..) in NODES {
        hosts.start(name).unwrap();
    }
    hosts
}

fn token(hosts: &Hosts, holder: &str, operation: Operation) -> Chain {
    let name = ChannelName::parse(CHANNEL).unwrap();
    let grant = Grant {
        subject: hosts.host(holder).entity.public,
        scope: Scope::new(&name, Reach::Channel),
        operations: Operations::new(&[operation]).unwrap(),
        delegations: 0,
        not_before_s: now_s(),
        not_after_s: now_s() + 3_600,
        generation: 0,
        nonce: [0; 8],
    };
    Chain::issue(grant, &hosts.host("g2").entity)
}

/// What a node has heard of 2.0.0.0.
fn there(hosts: &Hosts, node: &str) -> serde_json::Value {
    let status = hosts.status(node).unwrap();
    let filters = status["admissions"]["filters"]["filters"]
        .as_array()
        .unwrap();
    let found = filters.iter().find(|one| one["subnet"] == THERE);
    found.unwrap().clone()
}

/// Packets of an origin to b, beside all checks of a's own node.
fn send(hosts: &Hosts, origin: &str, seconds: &str) -> u64 {
    let (destination, channel) = (
        hosts.host("b").node.id.to_string(),
        format!("{:x}", hash::channel_hash(0, CHANNEL).0),
    );
    let arguments = [
        "gen",
        "--to",
        "10.80.1.2:4783",
        "--destination",
        &destination,
        "--kind",
        "plain",
        "--origin",
        origin,
        "--channel",
        &channel,
        "--rate",
        "500",
        "--seconds",
        seconds,
        "--json",
    ];
    let virga = crate::stage::virga();
    let output = hosts
        .run("a", &virga.to_string_lossy(), &arguments)
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    report["sent"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn what_a_subnet_does_not_admit_ends_at_the_first_gateway_of_another() {
    let mut hosts = topology();
    for node in ["g1", "g0", "b"] {
        let heard = eventually(|| there(&hosts, node)["version"].as_u64() > Some(0));
        assert!(heard, "{node}: {}", hosts.log(node));
    }
    let (a, b) = (hosts.socket("a"), hosts.socket("b"));
    let (a, b) = (Mesh::open(a).await.unwrap(), Mesh::open(b).await.unwrap());
    let subscribe = token(&hosts, "b", Operation::Subscribe);
    b.present(&subscribe).await.unwrap();
    let mut events = b.subscribe(CHANNEL).await.unwrap();
    let before = there(&hosts, "g1")["version"].as_u64();
    a.present(&token(&hosts, "a", Operation::Publish))
        .await
        .unwrap();
    let on_roster = || number(&hosts, "a", "/channels/0/remote_subscribers") == 1;
    assert!(eventually(on_roster), "{}", hosts.log("a"));
    let told = eventually(|| there(&hosts, "g1")["version"].as_u64() > before);
    assert!(told, "{}", hosts.log("g1"));
    assert_eq!(number(&hosts, "g1", "/admissions/pairs"), 0);
    let publisher = a.publisher(CHANNEL).await.unwrap();
    publisher.publish(b"across").await.unwrap();
    let event = tokio::time::timeout(Duration::from_secs(60), events.next_delivery()).await;
    assert_eq!(
        &event.expect("it arrives").unwrap().unwrap().payload[..],
        b"across"
    );
    drop(publisher);

    let unauthorised = |node| dropped(&hosts, node, "unauthorised");
    let (stranger, granted) = (
        "00c0ffee00c0ffee",
        hosts.host("a").entity.origin.to_string(),
    );
    let (first, second) = (unauthorised("g1"), unauthorised("g0"));
    let sent = tokio::task::block_in_place(|| send(&hosts, stranger, "1"));
    assert_eq!(unauthorised("g1") - first, sent, "strangers end at g1");
    assert_eq!(unauthorised("g0"), second);

    let onward = forwarded(&hosts, "g1");
    let sent_granted = tokio::task::block_in_place(|| send(&hosts, &granted, "1"));
    let passed = forwarded(&hosts, "g1") - onward;
    let is_most = sent_granted > 0 && passed * 5 >= sent_granted * 3;
    assert!(
        is_most,
        "what was granted passes: {passed} of {sent_granted}"
    );
    let took = revoked(&hosts, &granted);
    println!(
        "revoked at g2, dropped at g1 after {took:?}; {sent} of {sent} of a stranger's dropped there"
    );
    // Before the old filter ends by itself.
    assert!(took < Duration::from_secs(LIFE_S), "{took:?}");

    // Nobody says any more what 2.0.0.0 admits.
    hosts.stop("g2").unwrap();
    let ended = eventually(|| there(&hosts, "g1")["expires_in_s"].is_null());
    assert!(ended, "{}", hosts.log("g1"));
    let unknown = |hosts: &Hosts| dropped(hosts, "g1", "subnet_unknown");
    let before = unknown(&hosts);
    let sent = tokio::task::block_in_place(|| send(&hosts, &granted, "1"));
    assert!(unknown(&hosts) - before >= sent, "all is refused");
    let onward = forwarded(&hosts, "g1");
    tokio::task::block_in_place(|| send(&hosts, &granted, "1"));
    let passed = forwarded(&hosts, "g1") - onward;
    // Handshakes go on, and what g1's neighbours themselves say.
    assert!(passed < 100, "{passed}");
}

/// How long it takes from g2's word until g1 drops what a sends all along.
fn revoked(hosts: &Hosts, granted: &str) -> Duration {
    let before = dropped(hosts, "g1", "unauthorised");
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(hosts, granted, "15"));
        thread::sleep(Duration::from_secs(1));
        assert_eq!(dropped(hosts, "g1", "unauthorised"), before);
        let issuer = &hosts.host("g2").entity;
        let subject = Entry::Subject(hosts.host("a").entity.public);
        let list = List::new(issuer.public);
        let list = list.revoke(subject, now_s() + 3_600, now_s()).unwrap();
        let signed = list.sign(issuer);
        let announced = scope.spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let mesh = Mesh::open(hosts.socket("g2")).await.unwrap();
                let start = Instant::now();
                mesh.announce(&signed).await.unwrap();
                start
            })
        });
        let is_dropped = eventually(|| dropped(hosts, "g1", "unauthorised") > before);
        let end = Instant::now();
        assert!(is_dropped, "{}", hosts.log("g1"));
        let start = announced.join().unwrap();
        assert!(sender.join().unwrap() > 0);
        end - start
    })
}
