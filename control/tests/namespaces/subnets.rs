//! Three subnets with gateways in native XDP: a in 1.1.0.0 behind g1, p in 1.0.0.0 at g0, b in 2.0.0.0 behind g2.
//!
//! ```text
//! a -- g1 -- g0 -- g2 -- b
//!            |
//!            p
//! ```
//! a publishes on a channel of each visibility; g1, p and b subscribe to all. A sender that skips its own
//! checks is one whose own file says that everything goes everywhere.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use virga::{
    config::PeerSubnet,
    membership::{Claim, Membership},
    mesh::Mesh,
};
use virga_ebpf::hash;

use crate::{
    hostile::flood,
    hosts::{Hosts, eventually},
    stage::{
        RELIABLE, Sink, V4, assert_complete, at, dropped, forwarding, line_keyed, number, peer,
        publishing, virga,
    },
};

/// Name, subnet, interfaces.
pub(crate) const NODES: [(&str, &str, &str); 6] = [
    ("a", "1.1.0.0", "\"m1\""),
    ("g1", "1.1.0.0", "\"ma\", \"m0\""),
    ("g0", "1.0.0.0", "\"m1\", \"mp\", \"m2\""),
    ("p", "1.0.0.0", "\"m0\""),
    ("g2", "2.0.0.0", "\"m0\", \"mb\""),
    ("b", "2.0.0.0", "\"m2\""),
];
/// Two ends: host, interface, address, and what the other end may bring from there.
const LINKS: [[(&str, &str, &str, &str); 2]; 5] = [
    [
        ("a", "m1", "10.80.1.1", "1.1.0.0"),
        ("g1", "ma", "10.80.1.2", "1.1.0.0/0"),
    ],
    [
        ("g1", "m0", "10.80.2.1", "1.1.0.0"),
        ("g0", "m1", "10.80.2.2", "1.0.0.0/0"),
    ],
    [
        ("g0", "mp", "10.80.3.1", "1.0.0.0/0"),
        ("p", "m0", "10.80.3.2", "1.0.0.0/32"),
    ],
    [
        ("g0", "m2", "10.80.4.1", "1.0.0.0/8"),
        ("g2", "m0", "10.80.4.2", "2.0.0.0"),
    ],
    [
        ("g2", "mb", "10.80.5.1", "2.0.0.0/0"),
        ("b", "m2", "10.80.5.2", "2.0.0.0/32"),
    ],
];
/// Name, visibility, and who of the subscribers gets it.
const CHANNELS: [(&str, &str, &[&str]); 4] = [
    ("test/local", "subnet-local", &["g1"]),
    ("test/parent", "parent-visible", &["g1", "p"]),
    ("test/exported", "exported", &["g1", "b"]),
    ("test/global", "global", &["g1", "p", "b"]),
];
const SUBSCRIBERS: [&str; 3] = ["g1", "p", "b"];
const EVENTS: usize = 20;

/// The neighbour that a node reaches another by.
fn next_hop<'a>(from: &'a str, to: &'a str) -> &'a str {
    let way = ["a", "g1", "g0", "g2", "b"];
    let place = |name| way.iter().position(|one| *one == name);
    match (place(from), place(to)) {
        (None, _) => "g0",
        // p is behind g0.
        (Some(at), to) => match to.unwrap_or(2).cmp(&at) {
            std::cmp::Ordering::Greater => way[at + 1],
            std::cmp::Ordering::Less => way[at - 1],
            std::cmp::Ordering::Equal => "p",
        },
    }
}

/// How a node's file has the channels; `everywhere`: it lets them go everywhere.
fn channels(everywhere: bool) -> String {
    let channel = |(name, visibility, _): &(&str, &str, &[&str])| {
        let visibility = if everywhere { "global" } else { visibility };
        let exported = if visibility == "exported" {
            "export_to = [\"2.0.0.0/8\"]\n"
        } else {
            ""
        };
        format!(
            "[[channels]]\nname = \"{name}\"\nreliable = false\nvisibility = \"{visibility}\"\n{exported}\
             publish = [\"{{a.entity}}\"]\nsubscribe = [\"{{g1.entity}}\", \"{{p.entity}}\", \"{{b.entity}}\"]\n"
        )
    };
    CHANNELS.iter().map(channel).collect()
}

/// A node's peers, and how it reaches each.
pub(crate) fn peers_of(node: &str) -> impl Iterator<Item = (&'static str, String)> {
    let others = NODES.iter().filter(move |(name, ..)| *name != node);
    others.map(move |(other, subnet, _)| {
        let ends = LINKS.iter().flat_map(|[one, two]| [(one, two), (two, one)]);
        let mut links = ends.filter(|(own, end)| own.0 == node && end.0 == *other);
        let how = match links.next() {
            Some((_, (_, _, address, carries))) => {
                format!("address = \"{}\"\nsubnet = \"{carries}\"", at(address))
            }
            None => format!(
                "via = [\"{}\"]\nsubnet = \"{subnet}\"",
                next_hop(node, other)
            ),
        };
        (*other, how)
    })
}

fn configure(hosts: &Hosts, node: &str, subnet: &str, everywhere: bool) {
    let (_, _, interfaces) = NODES.iter().find(|(name, ..)| *name == node).unwrap();
    let mut rest = format!("subnet = \"{subnet}\"\n") + &forwarding("native", interfaces);
    for (other, how) in peers_of(node) {
        rest += &peer(other, &how);
    }
    let file = rest + &channels(everywhere);
    hosts.configure(node, "0.0.0.0:4783", &file).unwrap();
}

fn restart(hosts: &mut Hosts, node: &str, subnet: &str) {
    configure(hosts, node, subnet, true);
    assert!(hosts.stop(node).unwrap());
    hosts.start(node).unwrap();
}

/// The hosts and their links; nothing runs there yet.
pub(crate) fn joined() -> Hosts {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    for (name, ..) in NODES {
        hosts.add(name).unwrap();
    }
    for link in LINKS {
        let [one, two] =
            link.map(|(host, interface, address, _)| (host, interface, format!("{address}/24")));
        hosts
            .join((one.0, one.1, &one.2), (two.0, two.1, &two.2))
            .unwrap();
    }
    hosts
}

fn topology() -> Hosts {
    let mut hosts = joined();
    for (name, subnet, _) in NODES {
        configure(&hosts, name, subnet, false);
    }
    for (name, ..) in NODES {
        hosts.start(name).unwrap();
    }
    hosts
}

/// Host and channel.
type Place = (&'static str, &'static str);

/// What each subscriber got of each channel: the events' texts.
#[derive(Clone, Default)]
struct Got(Arc<Mutex<BTreeMap<Place, Vec<String>>>>);

impl Got {
    async fn subscribe(&self, hosts: &Hosts, host: &'static str) {
        let mesh = Mesh::open(hosts.socket(host)).await.unwrap();
        for (channel, ..) in CHANNELS {
            let mut events = mesh.subscribe(channel).await.unwrap();
            let got = self.clone();
            tokio::spawn(async move {
                while let Some(Ok(event)) = events.next_delivery().await {
                    let text = String::from_utf8_lossy(&event.payload).into_owned();
                    let mut all = got.0.lock().unwrap();
                    all.entry((host, channel)).or_default().push(text);
                }
            });
        }
    }

    fn count(&self, host: &'static str, channel: &'static str, run: &str) -> usize {
        let all = self.0.lock().unwrap();
        let texts = all.get(&(host, channel)).into_iter().flatten();
        texts.filter(|text| text.starts_with(run)).count()
    }

    /// That of a run's events each subscriber has got all of a channel that goes there, and no other.
    fn assert_as_visible(&self, hosts: &Hosts, run: &str, subscribers: &[&'static str]) {
        for (channel, visibility, reaches) in CHANNELS {
            for host in subscribers {
                let expected = if reaches.contains(host) { EVENTS } else { 0 };
                let is_so = eventually(|| self.count(host, channel, run) == expected);
                let count = self.count(host, channel, run);
                assert!(
                    is_so,
                    "{run}: {host} got {count} of {channel} ({visibility}), not {expected}\n{}",
                    hosts.log("a")
                );
            }
        }
    }
}

/// Waits until so many nodes are on a's roster of each channel.
fn subscribed(hosts: &Hosts, counts: [usize; 4]) {
    let rosters = || {
        let status = hosts.status("a").unwrap();
        let channels = status["channels"].as_array().unwrap().clone();
        let count = |channel: &serde_json::Value| channel["remote_subscribers"].as_u64().unwrap();
        channels.iter().map(count).collect::<Vec<_>>()
    };
    let expected = counts.map(|count| count as u64);
    let there = eventually(|| rosters() == expected);
    assert!(
        there,
        "{:?}, not {expected:?}\n{}",
        rosters(),
        hosts.log("a")
    );
}

async fn publish(hosts: &Hosts, run: &str) {
    let mesh = Mesh::open(hosts.socket("a")).await.unwrap();
    for (channel, ..) in CHANNELS {
        let publisher = mesh.publisher(channel).await.unwrap();
        for number in 0..EVENTS {
            let event = format!("{run} {number}");
            publisher.publish(event.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        publisher.finish().await.unwrap();
    }
    // What is on its way gets there, wherever it should not.
    tokio::time::sleep(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn what_must_not_leave_a_subnet_does_not_whoever_skips_its_own_checks() {
    let mut hosts = topology();
    let got = Got::default();
    for host in SUBSCRIBERS {
        got.subscribe(&hosts, host).await;
    }
    let visibility = |hosts: &Hosts, host| dropped(hosts, host, "visibility");

    // a keeps to what is configured: nothing is sent that would be dropped.
    subscribed(&hosts, [1, 2, 2, 3]);
    publish(&hosts, "honest").await;
    got.assert_as_visible(&hosts, "honest", &SUBSCRIBERS);
    assert_eq!(visibility(&hosts, "g1"), 0);
    assert!(number(&hosts, "a", "/channel_reasons/subscribe_subnet") >= 4);

    // a lets everybody have everything: its gateway drops it.
    restart(&mut hosts, "a", "1.1.0.0");
    subscribed(&hosts, [3; 4]);
    publish(&hosts, "eager").await;
    got.assert_as_visible(&hosts, "eager", &SUBSCRIBERS);
    let at_g1 = visibility(&hosts, "g1");
    assert!(at_g1 > 0);
    assert_eq!(visibility(&hosts, "g0"), 0);

    // Its gateway does so too: the next one drops it.
    restart(&mut hosts, "g1", "1.1.0.0");
    got.subscribe(&hosts, "g1").await;
    subscribed(&hosts, [3; 4]);
    publish(&hosts, "both").await;
    got.assert_as_visible(&hosts, "both", &["p", "b"]);
    let at_g0 = visibility(&hosts, "g0");
    assert!(at_g0 > 0);

    // a says that it is in the subnet that all of it may go to: nothing of it leaves the link.
    restart(&mut hosts, "a", "2.0.0.0");
    let is_refused = eventually(|| dropped(&hosts, "g1", "subnet") > 0);
    assert!(is_refused, "{}", hosts.log("g1"));
    subscribed(&hosts, [0; 4]);
    println!("{at_g1} packets dropped at g1, {at_g0} at g0 when g1 let them pass");
}

pub(crate) fn now_s() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    unix.unwrap().as_secs()
}

/// Has a host show that the router's entity vouches for it in the root, for so long.
async fn vouch(hosts: &Hosts, host: &str, lasts_s: u64) {
    let now_s = now_s();
    let claim = Claim {
        subject: hosts.host(host).entity.public,
        version: now_s,
        not_before_s: now_s,
        not_after_s: now_s + lasts_s,
        place: PeerSubnet::ALL,
    };
    let membership = Membership::issue(claim, 0, &hosts.host("router").entity);
    let mesh = Mesh::open(hosts.socket(host)).await.unwrap();
    let given = mesh.present_membership(&membership).await.unwrap();
    assert_eq!(given.useless, None);
}

/// Why the router lets nothing of a's pass but control traffic.
fn unvouched(hosts: &Hosts) -> Option<String> {
    let status = hosts.status("router").unwrap();
    let links = status["forwarding"]["links"].as_array().unwrap();
    let link = links.iter().find(|link| link["peer"] == "a").unwrap();
    link["unvouched"].as_str().map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn without_a_membership_a_neighbours_events_end_in_the_nic_and_with_it_they_pass_for_its_time()
 {
    let issuers = "[subnets]\nissuers = [\"{router.entity}\"]\n";
    let hosts = line_keyed("native", &V4, issuers);
    for host in ["router", "b"] {
        vouch(&hosts, host, 3_600).await;
    }
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let subnet = |hosts: &Hosts| dropped(hosts, "router", "subnet");
    let published = publishing(&hosts, RELIABLE, 100, Duration::from_secs(1));
    assert!(eventually(|| subnet(&hosts) > 0), "{}", hosts.log("router"));
    let nobody = unvouched(&hosts);
    assert_eq!(nobody.as_deref(), Some("nobody has vouched for its subnet"));
    vouch(&hosts, "a", 30).await;
    let count = published.await.unwrap();
    assert_complete(&sink.numbers().await, count);
    let before = subnet(&hosts);

    let has_ended = || unvouched(&hosts).is_some_and(|why| why.contains("ended"));
    assert!(eventually(has_ended), "{:?}", unvouched(&hosts));
    assert_eq!(subnet(&hosts), before, "all passed in its time");
    // b has ended a's stream by now: packets of a sender that goes on regardless.
    let origin = hosts.host("a").entity.origin.to_string();
    let channel = format!("{:x}", hash::channel_hash(0, RELIABLE).0);
    let plain = [
        "--kind",
        "plain",
        "--origin",
        &origin,
        "--channel",
        &channel,
    ];
    let sent = tokio::task::block_in_place(|| flood(&hosts, "a", "10.78.1.1:4783", &plain));
    assert_eq!(subnet(&hosts) - before, sent, "{}", hosts.log("router"));
    println!("{before} packets dropped before it was vouched for, {sent} of {sent} after its time");
}
