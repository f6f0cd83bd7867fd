//! Link tags: who sends in a neighbour's name without its keys comes no further than the first router.

use std::time::Duration;

use virga_ebpf::reason::Reason;

use crate::{
    hostile::flood,
    hosts::{Hosts, eventually},
    stage::{
        LOSSY, RELIABLE, Sink, V4, assert_complete, at, channels, dropped, forwarding, line_keyed,
        peer, publish, publishing,
    },
};

/// What a host's status says of the link tags between it and a neighbour.
fn tags(hosts: &Hosts, host: &str, neighbour: &str) -> serde_json::Value {
    let status = hosts.status(host).unwrap();
    let links = status["forwarding"]["links"].as_array().unwrap();
    let link = links.iter().find(|link| link["peer"] == neighbour).unwrap();
    link["tags"].clone()
}

/// Waits until all packets between neighbours carry tags that are checked.
fn agreed(hosts: &Hosts) {
    for (host, neighbour) in [
        ("router", "a"),
        ("router", "b"),
        ("a", "router"),
        ("b", "router"),
    ] {
        let is_agreed = eventually(|| {
            let tags = tags(hosts, host, neighbour);
            tags["checked"] == true && tags["sent"] == true
        });
        let tags = tags(hosts, host, neighbour);
        assert!(
            is_agreed,
            "{host} and {neighbour}: {tags}\n{}",
            hosts.log(host)
        );
    }
}

/// Packets with the header of a's that the router would send on, from a's address, without a's keys.
fn inject(hosts: &Hosts) -> u64 {
    let origin = hosts.host("a").entity.origin.to_string();
    let more = ["--kind", "plain", "--origin", &origin, "--channel", "0"];
    tokio::task::block_in_place(|| flood(hosts, "a", "10.78.1.1:4783", &more))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_copied_origin_is_dropped_by_the_router_whatever_key_is_in_use_and_traffic_flows() {
    let mut hosts = line_keyed("native", &V4, "link_key_s = 5\n");
    let sink = Sink::subscribe(&hosts, LOSSY).await;
    agreed(&hosts);
    let published = publishing(&hosts, LOSSY, 500, Duration::from_secs(16));
    let refused = |hosts: &Hosts| dropped(hosts, "router", Reason::LinkTag.name());
    let sent = inject(&hosts);
    // The last of them may still wait in a ring.
    let are_refused = eventually(|| refused(&hosts) >= sent);
    assert!(
        are_refused && refused(&hosts) == sent,
        "{} of {sent}",
        refused(&hosts)
    );
    // A key gives way to the next, before a daemon is killed and after.
    tokio::time::sleep(Duration::from_secs(5)).await;
    hosts.kill("router").unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    hosts.start("router").unwrap();
    let again = inject(&hosts);
    let are_refused = eventually(|| refused(&hosts) >= sent + again);
    assert!(
        are_refused && refused(&hosts) == sent + again,
        "{} of {sent} and {again}: {}",
        refused(&hosts),
        hosts.log("router")
    );
    let count = published.await.unwrap();
    assert_complete(&sink.numbers().await, count);
    agreed(&hosts);
    println!(
        "{count} events over two keys and a kill -9: none lost; {} injected: none let in",
        sent + again
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_node_that_has_lost_its_keys_is_given_them_again() {
    let mut hosts = line_keyed("userspace", &V4, "");
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    agreed(&hosts);
    let count = publish(&hosts, RELIABLE, 200, Duration::from_secs(1)).await;
    assert_complete(&sink.numbers().await, count);
    for host in ["router", "b", "a"] {
        hosts.kill(host).unwrap();
        std::fs::remove_file(hosts.socket(host).with_extension("links")).unwrap();
        hosts.start(host).unwrap();
        let sink = Sink::subscribe(&hosts, RELIABLE).await;
        let count = publish(&hosts, RELIABLE, 200, Duration::from_secs(1)).await;
        assert_complete(&sink.numbers().await, count);
        agreed(&hosts);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_neighbour_that_has_them_off_is_let_in_without_and_both_say_so() {
    let mut hosts = line_keyed("native", &V4, "");
    agreed(&hosts);
    let off = forwarding("native", "\"m0\"")
        + "link_tags = \"off\"\n"
        + &peer("router", &format!("address = \"{}\"", at(V4.router_a)))
        + &peer("b", "via = [\"router\"]")
        + &channels();
    hosts.configure("a", &at(V4.a), &off).unwrap();
    assert!(hosts.stop("a").unwrap());
    hosts.start("a").unwrap();
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let count = publish(&hosts, RELIABLE, 200, Duration::from_secs(1)).await;
    assert_complete(&sink.numbers().await, count);
    let is_off = eventually(|| tags(&hosts, "router", "a")["checked"] == false);
    let router = tags(&hosts, "router", "a");
    assert!(is_off, "{router}");
    assert_eq!(router["checked_why"], "the neighbour sends none");
    assert_eq!(router["sent_why"], "the neighbour checks none");
    assert_eq!(
        tags(&hosts, "a", "router")["checked_why"],
        "the configuration says so"
    );
    assert_eq!(
        tags(&hosts, "router", "b")["checked"],
        true,
        "the other link keeps its own"
    );
}
