//! An entity with a new key: the guard in the NIC lets that pass, and the old one no more.

use std::{fs, path::Path, time::Duration};

use futures_util::StreamExt;
use virga::mesh::{Mesh, Subscription};

use crate::{
    hosts::{Hosts, eventually},
    stage::{RELIABLE, V4, dropped, forwarded, is_subscribed, line},
};

/// Runs `virga` in a's namespace.
fn virga(hosts: &Hosts, arguments: &[&Path]) {
    let arguments: Vec<&str> = arguments.iter().map(|a| a.to_str().unwrap()).collect();
    let program = hosts.virga().to_str().unwrap();
    hosts.run("a", program, &arguments).unwrap();
}

/// How many placements and successions a host has kept.
fn kept(hosts: &Hosts, host: &str) -> usize {
    let files = fs::read_dir(hosts.folder.join(host).join("state/identity"));
    files.map_or(0, |files| {
        let names = files.map(|file| file.unwrap().path());
        names
            .filter(|path| path.extension().is_some_and(|e| e == "identity"))
            .count()
    })
}

/// What shall arrive has arrived by then on any machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// What shall not is waited for so long.
const MOMENT: Duration = Duration::from_secs(5);

/// Publishes at a; whether b has it by then.
async fn arrives(
    hosts: &Hosts,
    events: &mut Subscription,
    event: &'static [u8],
    patience: Duration,
) -> bool {
    let mesh = Mesh::open(hosts.socket("a")).await.unwrap();
    let publisher = mesh.publisher(RELIABLE).await.unwrap();
    let published = tokio::time::timeout(patience, publisher.publish(event));
    let arrived = tokio::time::timeout(patience, events.next());
    // Published or not: what counts is what arrives.
    let (_unheard, delivery) = tokio::join!(published, arrived);
    delivery.is_ok_and(|delivery| delivery.unwrap().unwrap().payload == event)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn the_guard_in_the_nic_follows_an_entity_to_its_new_key() {
    let mut hosts = line("native", &V4);
    let mesh = Mesh::open(hosts.socket("b")).await.unwrap();
    let mut events = mesh.subscribe(RELIABLE).await.unwrap();
    assert!(eventually(|| is_subscribed(&hosts, RELIABLE)));
    assert!(arrives(&hosts, &mut events, b"by the first key", PATIENCE).await);

    let file = |name: &str| hosts.folder.join("a").join(name);
    let (key, old, new) = (file("entity.key"), file("old.key"), file("entity.key.new"));
    let (node_key, out, state) = (file("node.key"), file("succession"), file("state/identity"));
    let words = ["entity", "rotate", "--honour", "0s", "--key"].map(Path::new);
    let files = [
        &key,
        Path::new("--node-key"),
        &node_key,
        Path::new("--out"),
        &out,
    ];
    virga(&hosts, &[&words[..], &files[..]].concat());
    let socket = hosts.socket("a");
    let words = ["entity", "announce"].map(Path::new);
    virga(
        &hosts,
        &[&words[..], &[&out, Path::new("--socket"), &socket]].concat(),
    );
    for host in ["router", "b"] {
        assert!(
            eventually(|| kept(&hosts, host) == 2),
            "{}",
            hosts.log(host)
        );
    }
    assert!(hosts.stop("a").unwrap());
    fs::copy(&key, &old).unwrap();
    fs::rename(&new, &key).unwrap();
    hosts.start("a").unwrap();
    assert!(
        eventually(|| is_subscribed(&hosts, RELIABLE)),
        "{}",
        hosts.log("b")
    );
    let before = forwarded(&hosts, "router");
    assert!(arrives(&hosts, &mut events, b"by the second key", PATIENCE).await);
    assert!(forwarded(&hosts, "router") > before, "through the NIC path");

    // Whoever has the old key and has heard of nothing.
    assert!(hosts.stop("a").unwrap());
    fs::copy(&old, &key).unwrap();
    fs::remove_dir_all(&state).unwrap();
    let before = dropped(&hosts, "router", "unauthorised");
    hosts.start("a").unwrap();
    assert!(!arrives(&hosts, &mut events, b"by the first key again", MOMENT).await);
    let refused = || dropped(&hosts, "router", "unauthorised") > before;
    assert!(eventually(refused), "in the NIC path");
}
