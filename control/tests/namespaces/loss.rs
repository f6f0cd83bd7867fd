//! A link that loses a part of all packets, both ways, and never falls silent: routes leave it for one that loses none.

use crate::{
    diamond::{Middle, Ways, diamond_by},
    hosts::{Hosts, eventually},
    stage::virga,
};
use serde_json::Value;
use std::{fs, ops::RangeInclusive};

/// Half is lost, of a million: a link costs four times as much then, which no loaded machine's round-trip times outweigh.
const HALF: RangeInclusive<u64> = 300_000..=700_000;
/// No more is lost than where nobody takes packets out.
const LITTLE: u64 = 100_000;
/// The last byte of the header's `sequence`, behind IPv4 and UDP.
const SEQUENCE_END: usize = 20 + 8 + 55;

/// What `virga` prints on a host, as JSON; null where it fails.
fn shown(hosts: &Hosts, host: &str, arguments: &[&str]) -> Value {
    let program = virga().to_string_lossy().into_owned();
    let socket = hosts.socket(host).to_string_lossy().into_owned();
    let arguments = [arguments, &["--json", "--socket", &socket]].concat();
    let output = hosts.run(host, &program, &arguments);
    let read = |output: std::process::Output| serde_json::from_slice(&output.stdout).ok();
    output.ok().and_then(read).unwrap_or_default()
}

/// The one of an array with this name.
fn named(all: &Value, key: &str, name: &str) -> Value {
    let all = all.as_array().into_iter().flatten();
    all.clone()
        .find(|one| one[key] == name)
        .cloned()
        .unwrap_or_default()
}

fn to_b(hosts: &Hosts) -> Value {
    named(&shown(hosts, "r1", &["routes"])["routes"], "name", "b")
}

/// Has a router call a link dead only after twice as many keepalives: with half of them lost, some in a row are.
fn be_patient(hosts: &mut Hosts, host: &str) {
    assert!(hosts.stop(host).unwrap());
    let file = hosts.folder.join(host).join("node.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("[forwarding]\n"), "{text}");
    let text = text.replace("[forwarding]\n", "[forwarding]\ndetect_multiplier = 8\n");
    fs::write(&file, text).unwrap();
    hosts.start(host).unwrap();
}

/// Has the switch drop every second packet of each session and of the echoes, both ways.
fn lose_half(hosts: &Hosts) {
    for port in ["p1", "p2"] {
        let which = format!("u32 match u8 1 1 at {SEQUENCE_END}");
        for line in [
            format!("qdisc add dev {port} root handle 1: htb"),
            format!("class add dev {port} parent 1: classid 1:9 htb rate 1mbit"),
            format!("qdisc add dev {port} parent 1:9 bfifo limit 1"),
            format!("filter add dev {port} parent 1: protocol ip {which} flowid 1:9"),
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            hosts.run("w", "tc", &words).unwrap();
        }
    }
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn a_link_that_loses_half_of_its_packets_is_avoided_and_its_loss_is_shown() {
    let mut hosts = diamond_by(Ways::Learned, "virga-test", virga(), Middle::Switch).unwrap();
    for router in ["r1", "r2"] {
        be_patient(&mut hosts, router);
    }
    let hosts = hosts;
    let leads = |primary: &str, backup: &str| {
        eventually(|| {
            let route = to_b(&hosts);
            route["primary"] == primary && route["backup"] == backup
        })
    };
    let has_both = || to_b(&hosts)["backup"].is_string();
    assert!(eventually(has_both), "{}", hosts.log("r1"));
    let link = |key: &str| {
        let found = named(&shown(&hosts, "r1", &["routes"])["links"], "peer", "r2");
        found[key].as_u64()
    };
    let both = ["loss_ppm", "loss_back_ppm"];
    let is_small = |ppm: Option<u64>| ppm.is_some_and(|ppm| ppm < LITTLE);
    assert!(
        eventually(|| both.map(link).into_iter().all(is_small)),
        "{:?}",
        both.map(link)
    );
    let before = to_b(&hosts)["primary"].clone();
    lose_half(&hosts);
    let is_half = |ppm: Option<u64>| ppm.is_some_and(|ppm| HALF.contains(&ppm));
    assert!(
        eventually(|| both.map(link).into_iter().all(is_half)),
        "{:?}",
        both.map(link)
    );
    let of_peer = || named(&shown(&hosts, "r1", &["peers"]), "name", "r2");
    assert!(
        eventually(|| is_half(of_peer()["lost_ppm"].as_u64())),
        "{}",
        of_peer()
    );
    let traced = || shown(&hosts, "r1", &["trace", "r2"])["hops"][0].clone();
    assert!(
        eventually(|| is_half(traced()["loss_ppm"].as_u64())),
        "{}",
        traced()
    );
    assert!(leads("r3", "r2"), "{}", to_b(&hosts));
    let clean = || named(&shown(&hosts, "r1", &["peers"]), "name", "r3");
    assert!(
        eventually(|| is_small(clean()["lost_ppm"].as_u64())),
        "{}",
        clean()
    );
    println!(
        "before over {before}; {}",
        shown(&hosts, "r1", &["routes"])["links"]
    );
}
