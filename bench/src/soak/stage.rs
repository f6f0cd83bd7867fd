//! The mesh that is soaked: two edges, two routers that forward in their NICs' drivers, one node that keeps a log,
//! and a guest that comes and goes; every host is a network namespace, every node but the guest has two ways.

use std::{collections::BTreeMap, io, path::PathBuf};

use virga::keys::{EntityKey, NodeKey, Secret};

use crate::hosts::Hosts;

/// Every host, in the order in which they start.
pub(crate) const HOSTS: [&str; 6] = ["r1", "r2", "keeper", "a", "b", "guest"];
/// Keys of the kept channel: disk is flat once so much is there, and one segment more.
pub(crate) const KEEP_BYTES: u64 = 16 << 20;
/// Destinations that route tables have room for.
pub(crate) const DESTINATIONS: u32 = 4_096;

const LISTEN: &str = "0.0.0.0:4783";
/// Host, interface at the router and the part of the address that is its own; to both routers but for the guest.
const EDGES: [(&str, &str, u8); 4] = [
    ("a", "ma", 1),
    ("b", "mb", 2),
    ("keeper", "mk", 3),
    ("guest", "mg", 4),
];

/// Adds hosts and links, and writes every file; nothing runs yet.
///
/// # Errors
/// When a namespace or a link cannot be had.
pub(crate) fn build(hosts: &mut Hosts) -> io::Result<()> {
    for host in HOSTS {
        hosts.add(host)?;
    }
    for (edge, interface, place) in EDGES {
        for router in routers_of(edge) {
            let near = format!("10.80.{router}{place}.2/24");
            let far = format!("10.80.{router}{place}.1/24");
            hosts.join(
                (edge, &format!("m{router}"), &near),
                (&format!("r{router}"), interface, &far),
            )?;
        }
    }
    for host in HOSTS {
        hosts.configure(host, LISTEN, &file(host))?;
    }
    Ok(())
}

/// Writes the first router's file anew, with `more` behind it.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn rewrite_router(hosts: &Hosts, more: &str) -> io::Result<()> {
    hosts
        .configure("r1", LISTEN, &(file("r1") + more))
        .map(drop)
}

/// A neighbour that never answers, with keys of its own, and a channel of its own.
///
/// # Errors
/// When the system gives no random numbers.
pub(crate) fn stranger() -> io::Result<String> {
    let node = NodeKey::from(Secret::generate()?);
    let entity = EntityKey::from(Secret::generate()?);
    Ok(format!(
        "[[peers]]\nname = \"stranger\"\nnode_key = \"{}\"\nentity_key = \"{}\"\n\
         address = \"10.80.11.99:4783\"\n\
         [[channels]]\nname = \"soak/stranger\"\npublish = [\"stranger\"]\n",
        virga::hex::encode(&node.public),
        virga::hex::encode(&entity.public)
    ))
}

/// Where each node has its socket.
pub(crate) fn sockets(hosts: &Hosts) -> BTreeMap<&'static str, PathBuf> {
    HOSTS.map(|host| (host, hosts.socket(host))).into()
}

fn routers_of(edge: &str) -> &'static [u8] {
    if edge == "guest" { &[1] } else { &[1, 2] }
}

/// A host's file, but for `[node]`.
fn file(host: &str) -> String {
    let mut text = String::new();
    let interfaces: Vec<String> = match host {
        "r1" => EDGES.map(|(_, interface, _)| quoted(interface)).into(),
        "r2" => EDGES[..3].iter().map(|(_, i, _)| quoted(i)).collect(),
        edge => routers_of(edge)
            .iter()
            .map(|r| quoted(&format!("m{r}")))
            .collect(),
    };
    text += &format!(
        "[forwarding]\nmode = \"native\"\ninterfaces = [{}]\ndestinations_max = {DESTINATIONS}\nkeepalive_ms = 50\n\
         link_key_s = 60\n[routing]\nenabled = true\n",
        interfaces.join(", ")
    );
    for other in HOSTS.into_iter().filter(|other| *other != host) {
        text += &peer(other, &address(host, other));
    }
    text + &channels(host)
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

/// Where a host finds another that is its neighbour; empty where the neighbours say the way.
fn address(host: &str, other: &str) -> String {
    let place = |edge: &str| EDGES.iter().find(|e| e.0 == edge).map(|e| e.2);
    let router = |name: &str| name.strip_prefix('r').and_then(|n| n.parse::<u8>().ok());
    let (edge, number, end) = match (router(host), router(other)) {
        (None, Some(number)) => (host, number, 1),
        (Some(number), None) => (other, number, 2),
        _ => return String::new(),
    };
    match place(edge).filter(|_| routers_of(edge).contains(&number)) {
        Some(place) => format!("address = \"10.80.{number}{place}.{end}:4783\"\n"),
        None => String::new(),
    }
}

fn peer(name: &str, how: &str) -> String {
    format!(
        "[[peers]]\nname = \"{name}\"\nnode_key = \"{{{name}.node}}\"\nentity_key = \"{{{name}.entity}}\"\n{how}"
    )
}

fn channels(host: &str) -> String {
    let channel = |name: &str, publish: &str, subscribe: &[&str], more: &str| {
        let keys: Vec<String> = subscribe
            .iter()
            .map(|s| format!("\"{{{s}.entity}}\""))
            .collect();
        format!(
            "[[channels]]\nname = \"soak/{name}\"\npublish = [\"{{{publish}.entity}}\"]\nsubscribe = [{}]\n{more}",
            keys.join(", ")
        )
    };
    let kept = if host == "keeper" {
        format!("signed = true\npersist = true\nkeep_bytes = {KEEP_BYTES}\n")
    } else {
        "signed = true\n".to_owned()
    };
    let tokens = "[[channels]]\nname = \"soak/guarded\"\nrequire_token = true\nissuers = [\"{keeper.entity}\"]\n";
    [
        channel("reliable", "a", &["b"], "priority = 4\n"),
        channel("unreliable", "a", &["b"], "reliable = false\n"),
        channel("large", "b", &["a"], ""),
        channel("questions", "b", &["a"], ""),
        channel("answers", "a", &["b"], ""),
        channel("kept", "a", &["keeper"], &kept),
        channel("visited", "a", &["b", "guest"], "ordered = false\n"),
        tokens.to_owned(),
    ]
    .concat()
}
