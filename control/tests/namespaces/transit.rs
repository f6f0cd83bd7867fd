//! Events cross the router, and only its NIC path sees them.

use std::time::Duration;

use crate::stage::{
    LOSSY, RELIABLE, Sink, Stream, V4, V6, assert_complete, forwarded, is_by, line, line_keyed,
    number, peer, publish,
};
use crate::{
    hosts::{Hosts, eventually},
    stage::{at, channels, forwarding, virga},
};

/// So few packets of the router's own that there are moments between them.
const UNWATCHED: &str = "keepalive_ms = 0\n";

/// Packets that the router's kernel stack saw, and those that its NIC path left to it as the router's own, at
/// a moment between two of the latter.
fn stack_and_own(hosts: &Hosts) -> (u64, u64) {
    let own = || number(hosts, "router", "/forwarding/nic/outcomes/local/packets");
    let mut before = own();
    for _ in 0..100 {
        let stack = hosts.stack_packets("router").unwrap();
        let after = own();
        if after == before {
            return (stack, after);
        }
        before = after;
    }
    panic!("the router took in packets of its own between each of 100 readings of its counters");
}

/// Sends both kinds of events, and checks that nothing but the router's NIC path carried them.
pub async fn crosses_in_the_nic(hosts: &Hosts) {
    for channel in [RELIABLE, LOSSY] {
        let sink = Sink::subscribe(hosts, channel).await;
        let (stack_before, own_before) = stack_and_own(hosts);
        let nic_before = forwarded(hosts, "router");
        let count = publish(hosts, channel, 1_000, Duration::from_secs(2)).await;
        assert_complete(&sink.numbers().await, count);
        let (stack, own) = stack_and_own(hosts);
        let own = own - own_before;
        assert_eq!(stack - stack_before, own, "only its own control packets");
        assert!(
            forwarded(hosts, "router") - nic_before >= count / 20,
            "events crossed the NIC path"
        );
        println!(
            "{channel}: {count} events; {} packets forwarded in the NIC, {own} own, 0 in the stack",
            forwarded(hosts, "router") - nic_before
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn events_cross_the_router_in_its_nic_over_ipv4() {
    crosses_in_the_nic(&line_keyed("native", &V4, UNWATCHED)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn events_cross_the_router_in_its_nic_over_ipv6() {
    crosses_in_the_nic(&line_keyed("native", &V6, UNWATCHED)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn generic_and_user_space_forward_as_well_and_say_so() {
    for mode in ["generic", "userspace"] {
        let hosts = line(mode, &V4);
        let status = hosts.status("router").unwrap();
        assert_eq!(status["forwarding"]["mode"], mode);
        assert!(!status["forwarding"]["why"].as_str().unwrap().is_empty());
        let sink = Sink::subscribe(&hosts, RELIABLE).await;
        let count = publish(&hosts, RELIABLE, 500, Duration::from_secs(1)).await;
        assert_complete(&sink.numbers().await, count);
        assert!(
            hosts.log("router").contains(mode),
            "one line of the log says which path"
        );
    }
}

fn diamond() -> Hosts {
    diamond_of("", |name, via| peer(name, &format!("via = [{via}]")))
}

/// a -- r1 -- {r2, r3} -- b: from r1 there are two ways to b. `via` makes the block of a peer that is no
/// neighbour, of its name and of what leads there.
pub fn diamond_of(head: &str, via: impl Fn(&str, &str) -> String) -> Hosts {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    for host in ["a", "r1", "r2", "r3", "b"] {
        hosts.add(host).unwrap();
    }
    let links = [
        ("a", "m0", "10.79.1.2", "r1", "ma", "10.79.1.1"),
        ("r1", "m2", "10.79.2.1", "r2", "m1", "10.79.2.2"),
        ("r1", "m3", "10.79.3.1", "r3", "m1", "10.79.3.2"),
        ("r2", "mb", "10.79.4.1", "b", "m2", "10.79.4.2"),
        ("r3", "mb", "10.79.5.1", "b", "m3", "10.79.5.2"),
    ];
    for (one, i, x, other, j, y) in links {
        hosts
            .join((one, i, &format!("{x}/24")), (other, j, &format!("{y}/24")))
            .unwrap();
    }
    let any = "0.0.0.0:4783";
    let next = |name: &str, address: &str| peer(name, &format!("address = \"{}\"", at(address)));
    let both = "\"r2\", \"r3\"";
    let a = forwarding("native", "\"m0\"") + &next("r1", "10.79.1.1") + &via("b", "\"r1\"");
    let r1 = forwarding("native", "\"ma\", \"m2\", \"m3\"")
        + &next("a", "10.79.1.2")
        + &next("r2", "10.79.2.2")
        + &next("r3", "10.79.3.2")
        + &via("b", both);
    let middle = |to_r1: &str, to_b: &str| {
        forwarding("native", "\"m1\", \"mb\"")
            + &next("r1", to_r1)
            + &next("b", to_b)
            + &via("a", "\"r1\"")
    };
    let b = forwarding("native", "\"m2\", \"m3\"")
        + &next("r2", "10.79.4.1")
        + &next("r3", "10.79.5.1")
        // Back to a over r3, so that r2 carries nothing but what r1 gives it.
        + &via("a", "\"r3\", \"r2\"");
    let files = [
        ("a", a),
        ("r1", r1),
        ("r2", middle("10.79.2.1", "10.79.4.2")),
        ("r3", middle("10.79.3.1", "10.79.5.2")),
        ("b", b),
    ];
    for (host, rest) in &files {
        hosts
            .configure(host, any, &(head.to_owned() + rest + &channels()))
            .unwrap();
    }
    for (host, _) in files {
        hosts.start(host).unwrap();
    }
    hosts
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn traffic_goes_on_over_the_backup_next_hop() {
    let mut hosts = diamond();
    let sink = Sink::subscribe(&hosts, LOSSY).await;
    let events = Stream::begin(&hosts, LOSSY, 1_000);
    let program = virga().to_string_lossy().into_owned();
    let socket = hosts.socket("r1").to_string_lossy().into_owned();
    let link = |hosts: &Hosts, state: &str| {
        let r1 = hosts.node_name("r1");
        let arguments = ["node", "link", &r1, "r2", state, "--socket", &socket];
        hosts.run("r1", &program, &arguments).unwrap();
    };
    // The links' echoes count as well, by either router.
    let carries = |hosts: &Hosts| is_by(hosts, "r2", "r3");
    assert!(
        eventually(|| carries(&hosts)),
        "the primary carries traffic"
    );
    link(&hosts, "down");
    assert!(eventually(|| !carries(&hosts)), "the backup carries it");
    hosts.stop("r1").unwrap();
    hosts.start("r1").unwrap();
    let is_left = eventually(|| !carries(&hosts));
    assert!(is_left, "also after a restart of the daemon");
    link(&hosts, "up");
    assert!(
        eventually(|| carries(&hosts)),
        "the primary carries it again"
    );
    let count = events.end().await;
    assert_complete(&sink.numbers().await, count);
    println!("{count} events on an unreliable stream, none lost");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_link_that_goes_down_gives_way_to_the_backup() {
    let hosts = diamond();
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let events = Stream::begin(&hosts, RELIABLE, 500);
    let carries = |router: &str| {
        let before = forwarded(&hosts, router);
        eventually(|| forwarded(&hosts, router) > before + 100)
    };
    assert!(carries("r2"), "the primary carries traffic");
    hosts
        .ip("r1", &["link", "set", "dev", "m2", "down"])
        .unwrap();
    assert!(carries("r3"), "the backup carries it");
    let count = events.end().await;
    assert_complete(&sink.numbers().await, count);
}
