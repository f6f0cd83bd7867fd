//! A log on three hosts, each joined to both others: what leads is cut off, and comes back.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::Value;
use virga::mesh::{Mesh, MeshError};

use crate::{
    hosts::{Hosts, eventually},
    stage::{at, forwarding, number, peer, virga},
};

const NAMES: [&str; 3] = ["one", "two", "three"];
const LOG: &str = "test/log";
/// Far above what publishing takes until so many are acknowledged.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(300);

/// The network of a link, by its ends' places.
fn address(own: usize, other: usize) -> String {
    let link = own.min(other) + own.max(other);
    format!("10.79.{link}.{}", own + 1)
}

fn interface(other: usize) -> String {
    format!("to{other}")
}

/// All hosts, running; each publishes and keeps.
fn triangle() -> Hosts {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    for name in NAMES {
        hosts.add(name).unwrap();
    }
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        let (near, far) = (address(a, b) + "/24", address(b, a) + "/24");
        let (to, from) = (interface(b), interface(a));
        let ends = ((NAMES[a], &*to, &*near), (NAMES[b], &*from, &*far));
        hosts.join(ends.0, ends.1).unwrap();
    }
    let entities = NAMES
        .map(|name| format!("\"{{{name}.entity}}\""))
        .join(", ");
    let replicas = NAMES.map(|name| format!("{:?}", hosts.host(name).node.id.to_string()));
    let channel = format!(
        "[[channels]]\nname = \"{LOG}\"\npublish = [{entities}]\nsubscribe = [{entities}]\n\
         persist = true\nreplicas = [{}]\n",
        replicas.join(", ")
    );
    for (own, name) in NAMES.iter().enumerate() {
        let mut text = forwarding("userspace", "");
        for (other, peer_name) in NAMES.iter().enumerate().filter(|(n, _)| *n != own) {
            let reach = format!("address = \"{}\"", at(&address(other, own)));
            text += &peer(peer_name, &reach);
        }
        hosts
            .configure(name, "0.0.0.0:4783", &(text + &channel))
            .unwrap();
    }
    for name in NAMES {
        hosts.start(name).unwrap();
    }
    hosts
}

fn set_links(hosts: &Hosts, name: &str, state: &str) {
    let own = NAMES.iter().position(|known| *known == name).unwrap();
    for other in (0..NAMES.len()).filter(|other| *other != own) {
        let link = interface(other);
        hosts.ip(name, &["link", "set", &link, state]).unwrap();
    }
}

/// Who leads by the word of all of these.
fn leader(hosts: &Hosts, names: &[&'static str]) -> &'static str {
    let mut leads = None;
    let agreed = eventually(|| {
        let of = |name: &&str| {
            let status = hosts.status(name).unwrap();
            let leader = status.pointer("/logs/0/replication/leader");
            leader.and_then(Value::as_str).map(str::to_owned)
        };
        let named: BTreeSet<Option<String>> = names.iter().map(of).collect();
        // A host calls itself by its node's name, and the others by what its file calls them.
        let is_it = |name: &&&'static str| {
            let node = hosts.node_name(name);
            let means = |named: &String| [node.as_str(), **name].contains(&named.as_str());
            named.iter().all(|named| named.as_ref().is_some_and(means))
        };
        leads = names.iter().find(is_it).copied();
        leads.is_some()
    });
    assert!(agreed, "{}", hosts.log(names[0]));
    leads.unwrap()
}

/// Publishes numbers one by one until so many are acknowledged; the others may be in the log.
async fn publish(hosts: &Hosts, name: &str, next: &mut u64, count: usize) -> Vec<String> {
    let mesh = Mesh::open(hosts.socket(name)).await.unwrap();
    let (start, mut told) = (Instant::now(), Vec::new());
    while told.len() < count {
        let missing = count - told.len();
        assert!(start.elapsed() < PUBLISHED_WITHIN, "{missing} are missing");
        let event = format!("event {next}");
        *next += 1;
        let published = mesh.publish(LOG, event.as_bytes());
        match tokio::time::timeout(PUBLISHED_WITHIN, published)
            .await
            .unwrap()
        {
            Ok(_) => told.push(event),
            Err(MeshError::Refused { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    told
}

/// What the command says about a host's log.
fn log(hosts: &Hosts, name: &str, command: &str) -> String {
    let logs = hosts.folder.join(name).join("state/logs");
    let words = ["log", command, LOG, "--logs", logs.to_str().unwrap()];
    let output = hosts.run(name, virga().to_str().unwrap(), &words).unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn publishing_goes_on_while_the_leader_is_cut_off_and_all_are_one_after() {
    let mut hosts = triangle();
    let (mut next, mut told) = (0, Vec::new());
    let first = leader(&hosts, &NAMES);
    let rest: Vec<&'static str> = NAMES.into_iter().filter(|n| *n != first).collect();
    told.extend(publish(&hosts, rest[0], &mut next, 50).await);
    set_links(&hosts, first, "down");
    // It has what was published, and nobody it could be kept with.
    let alone = Mesh::open(hosts.socket(first)).await.unwrap();
    let alone = tokio::spawn(async move { alone.publish(LOG, b"alone").await });
    told.extend(publish(&hosts, rest[0], &mut next, 100).await);
    assert_ne!(leader(&hosts, &rest), first);
    let alone = tokio::time::timeout(Duration::from_secs(60), alone).await;
    let alone = alone.unwrap().unwrap();
    assert!(matches!(alone, Err(MeshError::Refused { .. })), "{alone:?}");
    set_links(&hosts, first, "up");
    told.extend(publish(&hosts, rest[1], &mut next, 50).await);
    leader(&hosts, &NAMES);
    let are_even = || {
        let ends = NAMES.map(|name| {
            let of = |key| number(&hosts, name, &format!("/logs/0/{key}"));
            (of("end"), of("readable"))
        });
        ends.iter()
            .all(|(end, readable)| *end == ends[0].0 && end == readable)
    };
    assert!(eventually(are_even), "{}", hosts.log(first));
    for name in NAMES {
        assert!(hosts.stop(name).unwrap());
    }
    let chain = |name| {
        let said = log(&hosts, name, "verify");
        let chain = said.lines().find(|line| line.starts_with("chain "));
        chain.map(str::to_owned).expect("the hash over all of it")
    };
    assert_eq!(NAMES.map(chain), [(); 3].map(|()| chain("one")));
    let all = log(&hosts, "two", "cat");
    let all: Vec<&str> = all.lines().collect();
    let distinct: BTreeSet<&&str> = all.iter().collect();
    assert_eq!(distinct.len(), all.len(), "an event is there twice");
    let of = |event: &&&str| told.iter().any(|known| known == **event);
    let kept: Vec<&&str> = all.iter().filter(of).collect();
    assert!(
        kept.iter()
            .map(|event| **event)
            .eq(told.iter().map(String::as_str))
    );
}
