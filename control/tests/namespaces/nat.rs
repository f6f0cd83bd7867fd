//! Two sites behind NATs of the kernel's (nftables), and hubs with addresses of their own, configured as the guide says
//! (`docs/guides/nat.md`), whose commands are typed at a site. Behind one site there may be a node that it alone reaches.
//!
//! What nftables truly does: `masquerade` keeps the inner port as long as nobody else wants it, and gives an inner address
//! that has an outer one the same for other destinations, which is RFC 4787's endpoint-independent mapping; what comes in is let in by whole connections, which is
//! address- and port-dependent filtering. `masquerade random,fully-random` draws a port for each destination: address-
//! and port-dependent mapping, a symmetric NAT. What is emulated: towards the hubs, which are to find both sites where their
//! files say, a symmetric NAT has a fixed port for each hub; a cone that lets in everybody (endpoint-independent
//! filtering) is one with the port forwarded (`dnat`). NATs that filter by address alone are the simulator's
//! (`control/nat/tests`).

mod mapped;

use std::{fs, path::Path, process::Command};

use crate::{
    fallback::Flow,
    hosts::{Hosts, eventually},
    stage::{dropped, forwarded, number, peer, virga},
};

const THERE: &str = "test/there";
const BACK: &str = "test/back";
/// From a to b, and nothing sends again what is lost.
const LOOSE: &str = "test/loose";
/// From what is behind b to a.
const BEHIND: &str = "test/behind";
/// Events of a flow in a second.
const SECOND: u64 = 500;
/// A way that one end alone took, or that nobody left while it was silent, costs more events in a row: it is given up after
/// five seconds. One that is taken and left as it should be costs some keepalives' time, and what a busy machine adds.
const SILENCE: u64 = 4 * SECOND;
/// Where the hubs are.
const HUBS: [(&str, &str); 2] = [("hub", "192.0.2.1"), ("second", "192.0.2.2")];

struct Site {
    name: &'static str,
    nat: &'static str,
    /// Inner addresses: the node's, its NAT's.
    inner: [&'static str; 2],
    /// Outer ones: the NAT's, and that of the network between, and the interface there.
    outer: [&'static str; 2],
    port: &'static str,
}

const SITES: [Site; 2] = [
    Site {
        name: "a",
        nat: "na",
        inner: ["10.1.0.2", "10.1.0.1"],
        outer: ["203.0.113.10", "203.0.113.1"],
        port: "ma",
    },
    Site {
        name: "b",
        nat: "nb",
        inner: ["10.2.0.2", "10.2.0.1"],
        outer: ["198.51.100.20", "198.51.100.1"],
        port: "mb",
    },
];

/// What a site's NAT does.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// One outer address, answers alone come in.
    Cone,
    /// The same with the port forwarded.
    Forwarded,
    /// A random port for each destination; a fixed one for each hub.
    Symmetric,
}

impl Kind {
    fn rules(self, inner: &str) -> String {
        let masquerade = match self {
            Self::Cone | Self::Forwarded => "oifname w0 masquerade persistent".to_owned(),
            Self::Symmetric => format!(
                "oifname w0 ip daddr {} udp sport 4783 masquerade to :4783\n  oifname w0 ip daddr {} udp sport 4783 masquerade to :4799\n  \
                 oifname w0 masquerade random,fully-random",
                HUBS[0].1, HUBS[1].1
            ),
        };
        let forward = match self {
            Self::Forwarded => format!(
                " chain in {{ type nat hook prerouting priority -100;\n  iifname w0 udp dport 4783 dnat to {inner}\n }}\n"
            ),
            Self::Cone | Self::Symmetric => String::new(),
        };
        // What no connection explains is dropped before it becomes one of the NAT's own, which would keep the port.
        format!(
            "table ip nat {{\n{forward} chain out {{ type nat hook postrouting priority 100;\n  {masquerade}\n }}\n \
             chain own {{ type filter hook input priority 0;\n  iifname w0 udp dport 1-65535 drop\n }}\n}}\n"
        )
    }

    /// Where a hub sees the site.
    fn seen_port(self, hub: usize) -> u16 {
        match (self, hub) {
            (Self::Symmetric, 1) => 4799,
            _ => 4783,
        }
    }
}

/// The guide's blocks of a language, in their order: what all nodes say, the hub, and a site; commands.
fn blocks(language: &str) -> Vec<String> {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guides/nat.md");
    let text = fs::read_to_string(guide).unwrap();
    let fence = format!("\n```{language}\n");
    let blocks = text.split(&fence).skip(1);
    blocks
        .map(|block| block.split_once("\n```").unwrap().0.to_owned() + "\n")
        .collect()
}

/// a -- na -- net -- nb -- b, and as many hubs at net; both NATs drop what they do not expect. None without nftables.
fn stage(kinds: [Kind; 2], hubs: usize) -> Option<Hosts> {
    let mut hosts = wired(kinds, hubs)?;
    configure(&hosts, kinds, &HUBS[..hubs], |_, rest| rest);
    for (host, _) in &HUBS[..hubs] {
        hosts.start(host).unwrap();
    }
    Some(hosts)
}

/// The same without any node.
fn wired(kinds: [Kind; 2], hubs: usize) -> Option<Hosts> {
    if let Err(error) = Command::new("nft").arg("--version").output() {
        println!("skipped: nft cannot be run: {error} (Debian's package nftables)");
        return None;
    }
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    let hubs = &HUBS[..hubs];
    for host in ["a", "na", "net", "nb", "b"] {
        hosts.add(host).unwrap();
    }
    let wide = |address: &str| format!("{address}/24");
    for ((name, address), gateway) in hubs.iter().zip(["192.0.2.65", "192.0.2.129"]) {
        hosts.add(name).unwrap();
        let [own, next] = [address, &gateway].map(|address| format!("{address}/32"));
        hosts
            .join((name, "m0", &own), ("net", name, &next))
            .unwrap();
        let route = |host: &str, to: &str, by: &str| {
            hosts.ip(host, &["route", "add", to, "dev", by]).unwrap();
        };
        route(name, &next, "m0");
        route("net", &own, name);
        let default = ["route", "add", "default", "via", gateway];
        hosts.ip(name, &default).unwrap();
    }
    for (site, kind) in SITES.iter().zip(kinds) {
        let ends = [site.inner, site.outer].map(|ends| ends.map(wide));
        hosts
            .join(
                (site.name, "m0", &ends[0][0]),
                (site.nat, "m0", &ends[0][1]),
            )
            .unwrap();
        hosts
            .join(
                (site.nat, "w0", &ends[1][0]),
                ("net", site.port, &ends[1][1]),
            )
            .unwrap();
        for (host, via) in [(site.name, site.inner[1]), (site.nat, site.outer[1])] {
            let default = ["route", "add", "default", "via", via];
            hosts.ip(host, &default).unwrap();
        }
        let file = hosts.folder.join(site.nat).join("rules.nft");
        fs::write(&file, kind.rules(site.inner[0])).unwrap();
        let file = file.to_string_lossy();
        hosts.run(site.nat, "nft", &["-f", &file]).unwrap();
    }
    for host in ["na", "net", "nb"] {
        let forward = "echo 1 >/proc/sys/net/ipv4/ip_forward";
        hosts.run(host, "sh", &["-c", forward]).unwrap();
    }
    Some(hosts)
}

/// As the guide says, and what `with` makes of each host's file.
fn configure(
    hosts: &Hosts,
    kinds: [Kind; 2],
    hubs: &[(&str, &str)],
    with: impl Fn(&str, String) -> String,
) {
    let [mut all, at_hub, at_site]: [String; 3] = blocks("toml").try_into().unwrap();
    all += &format!(
        "[[channels]]\nname = \"{LOOSE}\"\nreliable = false\npublish = [\"{{a.entity}}\"]\nsubscribe = [\"{{b.entity}}\"]\n"
    );
    for (place, (name, address)) in hubs.iter().enumerate() {
        let mut rest = all.clone() + &at_hub;
        for (site, kind) in SITES.iter().zip(kinds) {
            let port = kind.seen_port(place);
            let outer = site.outer[0];
            rest = rest.replace(&format!("{outer}:4783"), &format!("{outer}:{port}"));
        }
        hosts
            .configure(name, &format!("{address}:4783"), &with(name, rest))
            .unwrap();
    }
    let (first, other) = at_site.split_once("\n\n").unwrap();
    for (site, far) in [("a", "b"), ("b", "a")] {
        let mut rest = all.clone();
        for (name, address) in hubs {
            rest += &first.replace("hub", name).replace(HUBS[0].1, address);
            rest += "\n\n";
        }
        let far = format!("\"{far}\"");
        let keys = other
            .replace("\"b\"", &far)
            .replace("{b.", &format!("{{{}.", far.trim_matches('"')));
        hosts
            .configure(site, "0.0.0.0:4783", &with(site, rest + &keys))
            .unwrap();
    }
}

/// What else the files say where d is behind b: subnets, of which b carries its own and that of d.
fn with_one_behind(host: &str, rest: String) -> String {
    let carries = "2.2.0.0/8";
    let d = |how: &str| peer("d", &format!("{how}subnet = \"2.1.0.0\""));
    let said = match host {
        "a" => format!("subnet = \"1.0.0.0\"\n{rest}subnet = \"{carries}\"\n") + &d(""),
        "b" => {
            let nic = "mode = \"native\"\ninterfaces = [\"m0\", \"m1\"]";
            let rest = rest.replace("mode = \"userspace\"", nic);
            format!("subnet = \"2.2.0.0\"\n{rest}subnet = \"1.0.0.0\"\n")
                + &d("address = \"10.3.0.2:4783\"\n")
        }
        _ => {
            let [a, b] = SITES.map(|site| format!("address = \"{}:4783\"", site.outer[0]));
            let rest = rest.replace(&a, &format!("{a}\nsubnet = \"1.0.0.0\""));
            rest.replace(&b, &format!("{b}\nsubnet = \"{carries}\"")) + &d("")
        }
    };
    said + &behind_channel()
}

fn behind_channel() -> String {
    format!(
        "[[channels]]\nname = \"{BEHIND}\"\nreliable = true\npublish = [\"{{d.entity}}\"]\nsubscribe = [\"{{a.entity}}\"]\n"
    )
}

/// d -- b: b forwards in its NIC path.
fn add_one_behind(hosts: &mut Hosts) {
    hosts.add("d").unwrap();
    hosts
        .join(("d", "m0", "10.3.0.2/24"), ("b", "m1", "10.3.0.1/24"))
        .unwrap();
    // A veth end takes in redirected frames where its other end polls.
    for host in ["d", "nb"] {
        let gro = ["-K", "m0", "gro", "on"];
        hosts.run(host, "ethtool", &gro).unwrap();
    }
    let [all, ..]: [String; 3] = blocks("toml").try_into().unwrap();
    let rest = format!("subnet = \"2.1.0.0\"\n{all}")
        + &peer("b", "address = \"10.3.0.1:4783\"\nsubnet = \"2.2.0.0/0\"")
        + &peer("a", "subnet = \"1.0.0.0\"")
        + &peer("hub", "")
        + &behind_channel();
    hosts.configure("d", "10.3.0.2:4783", &rest).unwrap();
}

/// The neighbour that a's packets for a node go to first.
fn over(hosts: &Hosts, node: &str) -> String {
    let status = hosts.status("a").unwrap();
    let mut peers = status["peers"].as_array().unwrap().iter();
    let peer = peers.find(|peer| peer["name"] == node).unwrap();
    peer["over"].as_str().unwrap_or(node).to_owned()
}

/// Whether a's packets to b have link tags, and what comes from there is checked for them.
fn are_tagged(hosts: &Hosts) -> bool {
    let status = hosts.status("a").unwrap();
    let mut links = status["forwarding"]["links"].as_array().unwrap().iter();
    let link = links.find(|link| link["peer"] == "b");
    link.is_some_and(|link| link["tags"]["checked"] == true && link["tags"]["sent"] == true)
}

/// Nothing passes straight between both NATs, or it does again.
fn cut(hosts: &Hosts, how: &str) {
    let [a, b] = SITES.map(|site| site.outer[0]);
    for (from, to) in [(a, b), (b, a)] {
        let rule = ["rule", how, "from", from, "to", to, "blackhole"];
        hosts.ip("net", &rule).unwrap();
    }
}

/// How packets go from a host to another, and why.
fn path(hosts: &Hosts, host: &str, other: &str) -> (String, String) {
    let status = hosts.status(host).unwrap();
    let mut peers = status["peers"].as_array().unwrap().iter();
    let peer = peers.find(|peer| peer["name"] == other).unwrap();
    let word = |key: &str| peer[key].as_str().unwrap().to_owned();
    (word("path"), word("path_why"))
}

/// Both sites come to say so of the other, and one of them why.
#[track_caller]
fn assert_path(hosts: &Hosts, how: &str, why: &str) {
    let paths = || [("a", "b"), ("b", "a")].map(|(host, other)| path(hosts, host, other));
    let is_so = || {
        let paths = paths();
        paths.iter().all(|(path, _)| path == how)
            && paths.iter().any(|(_, said)| said.contains(why))
    };
    assert!(
        eventually(is_so),
        "{how}, {why}: {:?}\na:\n{}\nb:\n{}",
        paths(),
        hosts.log("a"),
        hosts.log("b")
    );
}

/// How many sessions a host has had.
fn sessions(hosts: &Hosts, host: &str) -> u64 {
    let status = hosts.status(host).unwrap();
    status["transport"]["sessions_established"]
        .as_u64()
        .unwrap()
}

/// What NAT a site says it is behind.
#[track_caller]
fn assert_class(hosts: &Hosts, host: &str, class: &str) {
    let is_so = || hosts.status(host).unwrap()["nat"]["class"] == class;
    let status = || hosts.status(host).unwrap()["nat"].clone();
    assert!(eventually(is_so), "{host}: {class}: {}", status());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn sites_behind_nats_are_relayed_then_meet_and_lose_nothing_when_the_hole_closes() {
    let Some(mut hosts) = stage([Kind::Cone; 2], 1) else {
        return;
    };
    cut(&hosts, "add");
    for host in ["b", "a"] {
        hosts.start(host).unwrap();
    }
    let there = Flow::start(&hosts, THERE, "a", "b").await;
    let back = Flow::start(&hosts, BACK, "b", "a").await;
    let loose = Flow::start(&hosts, LOOSE, "a", "b").await;
    there.assert_flows(200);
    back.assert_flows(200);
    assert_path(&hosts, "relayed", "");
    let before = ["a", "b"].map(|host| sessions(&hosts, host));
    cut(&hosts, "del");
    assert_path(&hosts, "punched", "had us meet");
    there.assert_flows(200);
    back.assert_flows(200);
    loose.assert_flows(200);
    // Routers lead there until both hear each other straight.
    assert!(loose.longest_loss() < SILENCE, "{}", loose.longest_loss());
    assert!(eventually(|| are_tagged(&hosts)), "{}", hosts.log("a"));
    // What a reload changes, it changes; the way is no part of that.
    let file = hosts.folder.join("a/node.toml");
    let text = fs::read_to_string(&file).unwrap();
    let more = "[[channels]]\nname = \"test/more\"\npublish = [\"b\"]\nsubscribe = [\"hub\"]\n";
    fs::write(&file, text + more).unwrap();
    let socket = hosts.socket("a");
    let reload = ["reload", "--socket", socket.to_str().unwrap()];
    hosts.run("a", virga().to_str().unwrap(), &reload).unwrap();
    there.assert_flows(200);
    assert_path(&hosts, "punched", "had us meet");
    for command in blocks("sh").iter().flat_map(|block| block.lines()) {
        let words: Vec<&str> = command.split(' ').skip(1).collect();
        let socket = hosts.socket("a").display().to_string();
        let program = virga().to_str().unwrap();
        let said = hosts.run("a", program, &[&words[..], &["--socket", &socket]].concat());
        let said = String::from_utf8(said.unwrap().stdout).unwrap();
        let is_told = said.contains("punched") && said.contains("198.51.100.20:4783");
        assert!(is_told || words == ["routes"], "{command}: {said}");
    }
    // The hole closes.
    cut(&hosts, "add");
    assert_path(&hosts, "relayed", "");
    there.assert_flows(200);
    back.assert_flows(200);
    loose.assert_flows(200);
    // Not only once the way was given up.
    assert!(loose.longest_loss() < SILENCE, "{}", loose.longest_loss());
    there.assert_complete().await;
    back.assert_complete().await;
    let after = ["a", "b"].map(|host| sessions(&hosts, host));
    assert_eq!(after, before, "the same sessions all the while");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn sites_behind_symmetric_nats_stay_relayed_and_say_why() {
    let Some(mut hosts) = stage([Kind::Symmetric; 2], 2) else {
        return;
    };
    for host in ["b", "a"] {
        hosts.start(host).unwrap();
    }
    let there = Flow::start(&hosts, THERE, "a", "b").await;
    assert_class(&hosts, "a", "symmetric");
    assert_class(&hosts, "b", "symmetric");
    assert_path(&hosts, "relayed", "both of us are behind symmetric NATs");
    there.assert_flows(200);
    there.assert_complete().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_site_behind_a_symmetric_nat_meets_one_whose_port_is_forwarded_and_again_after_a_cut() {
    let Some(mut hosts) = stage([Kind::Symmetric, Kind::Forwarded], 2) else {
        return;
    };
    for host in ["b", "a"] {
        hosts.start(host).unwrap();
    }
    let there = Flow::start(&hosts, THERE, "a", "b").await;
    assert_class(&hosts, "a", "symmetric");
    assert_class(&hosts, "b", "cone");
    assert_path(&hosts, "punched", "had us meet");
    there.assert_flows(200);
    let before = ["a", "b"].map(|host| sessions(&hosts, host));
    cut(&hosts, "add");
    assert_path(&hosts, "relayed", "");
    there.assert_flows(200);
    // The symmetric NAT gives out the same port again.
    cut(&hosts, "del");
    assert_path(&hosts, "punched", "had us meet");
    there.assert_flows(200);
    there.assert_complete().await;
    let after = ["a", "b"].map(|host| sessions(&hosts, host));
    assert_eq!(after, before, "the same sessions all the while");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn what_is_behind_a_site_is_reached_through_the_nats_as_well_and_over_the_hub_again() {
    let kinds = [Kind::Cone; 2];
    let Some(mut hosts) = wired(kinds, 1) else {
        return;
    };
    add_one_behind(&mut hosts);
    configure(&hosts, kinds, &HUBS[..1], with_one_behind);
    cut(&hosts, "add");
    for host in ["hub", "b", "a", "d"] {
        hosts.start(host).unwrap();
    }
    let flow = Flow::start(&hosts, BEHIND, "d", "a").await;
    flow.assert_flows(200);
    assert_eq!(over(&hosts, "d"), "hub");
    cut(&hosts, "del");
    assert_path(&hosts, "punched", "had us meet");
    let is_straight = || over(&hosts, "d") == "b";
    assert!(eventually(is_straight), "{}", hosts.log("a"));
    let before = forwarded(&hosts, "b");
    flow.assert_flows(500);
    assert!(forwarded(&hosts, "b") > before, "{}", hosts.log("b"));
    cut(&hosts, "add");
    let is_relayed = || over(&hosts, "d") == "hub";
    assert!(eventually(is_relayed), "{}", hosts.log("a"));
    flow.assert_flows(200);
    flow.assert_complete().await;
    assert_eq!(dropped(&hosts, "b", "subnet"), 0);
    // It is a that checks what b may pass on to it.
    assert_eq!(number(&hosts, "a", "/userspace/drops/subnet/packets"), 0);
}
