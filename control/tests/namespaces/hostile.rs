//! Senders that mean no good: each packet meets its counted reason, and sessions keep flowing.

use std::time::{Duration, Instant};

use virga_ebpf::{hash, reason::Reason};

use crate::{
    hosts::{Hosts, eventually},
    stage::{
        LOSSY, RELIABLE, Sink, V4, assert_complete, at, channels, dropped, forwarded, forwarding,
        line, line_keyed, number, peer, publish, virga,
    },
};

pub fn flood(hosts: &Hosts, host: &str, to: &str, more: &[&str]) -> u64 {
    let destination = hosts.host("b").node.id.to_string();
    let fixed = [
        "gen",
        "--to",
        to,
        "--destination",
        &destination,
        "--json",
        "--seconds",
        "2",
    ];
    let rate = if more.contains(&"--rate") {
        &[][..]
    } else {
        &["--rate", "5000"]
    };
    let arguments = [&fixed[..], rate, more].concat();
    let output = hosts
        .run(host, &virga().to_string_lossy(), &arguments)
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    report["sent"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn floods_are_counted_by_reason_and_harm_nobody() {
    let hosts = line("native", &V4);
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let floods = async {
        tokio::task::block_in_place(|| {
            let sent = flood(&hosts, "a", "10.78.1.1:4783", &["--kind", "unauthorised"]);
            assert_eq!(dropped(&hosts, "router", Reason::Unauthorised.name()), sent);
            let sent = flood(&hosts, "b", "10.78.2.1:4783", &["--kind", "malformed"]);
            let malformed = Reason::ALL.iter().filter(|r| r.is_malformed());
            let counted: u64 = malformed.map(|r| dropped(&hosts, "router", r.name())).sum();
            assert_eq!(counted, sent);
        });
    };
    let (count, ()) = tokio::join!(
        publish(&hosts, RELIABLE, 500, Duration::from_secs(5)),
        floods
    );
    assert_complete(&sink.numbers().await, count);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn without_link_tags_a_copied_origin_gets_through_the_guard_and_no_further_than_the_end_node()
{
    let hosts = line_keyed("native", &V4, "link_tags = \"off\"\n");
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let origin = hosts.host("a").entity.origin.to_string();
    let opened = |hosts: &Hosts| {
        let status = hosts.status("b").unwrap();
        let drops = status["transport"]["drops"].as_object().unwrap();
        drops
            .values()
            .filter_map(serde_json::Value::as_u64)
            .sum::<u64>()
    };
    let before = opened(&hosts);
    let more = ["--kind", "plain", "--origin", &origin, "--channel", "0"];
    let sent = tokio::task::block_in_place(|| flood(&hosts, "a", "10.78.1.1:4783", &more));
    assert!(
        opened(&hosts) > before,
        "b refuses what it cannot open, with a reason"
    );
    println!(
        "{sent} forged packets; b dropped {}",
        opened(&hosts) - before
    );
    let count = publish(&hosts, RELIABLE, 500, Duration::from_secs(1)).await;
    assert_complete(&sink.numbers().await, count);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn garbage_on_an_end_nodes_socket_is_counted_and_forgotten() {
    let hosts = line("userspace", &V4);
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let before = number(&hosts, "b", "/userspace/drops/magic/packets");
    let output = hosts
        .run(
            "router",
            &virga().to_string_lossy(),
            &[
                "gen",
                "--to",
                "10.78.2.2:4783",
                "--kind",
                "malformed",
                "--destination",
                "0000000000000001",
                "--rate",
                "2000",
                "--seconds",
                "1",
            ],
        )
        .unwrap();
    assert!(output.status.success());
    assert!(number(&hosts, "b", "/userspace/drops/magic/packets") > before);
    let count = publish(&hosts, RELIABLE, 500, Duration::from_secs(1)).await;
    assert_complete(&sink.numbers().await, count);
}

/// An authorised publisher at five times its channel's rate: the router's NIC path lets through the rate,
/// and the tenth of a second's packets that a pause has saved up.
#[test]
#[ignore = "needs root: scripts/test runs it"]
fn a_channels_rate_holds_in_the_nic_and_a_channel_without_one_is_left_alone() {
    const RATE: u64 = 1_000;
    const RATED: &str = "test/rated";
    let mut hosts = line("native", &V4);
    let neighbour =
        |name: &str, address: &str| peer(name, &format!("address = \"{}\"", at(address)));
    let router = forwarding("native", "\"ma\", \"mb\"")
        + "link_tags = \"off\"\n"
        + &neighbour("a", V4.a)
        + &neighbour("b", V4.b)
        + &channels()
        + &format!(
            "[[channels]]\nname = \"{RATED}\"\nmax_rate_pps = {RATE}\npublish = [\"{{a.entity}}\"]\n"
        );
    hosts.configure("router", "0.0.0.0:4783", &router).unwrap();
    assert!(hosts.stop("router").unwrap());
    hosts.start("router").unwrap();

    let origin = hosts.host("a").entity.origin.to_string();
    // Packets sent, and not dropped for the rate; and how long it took.
    let run = |channel: &str| {
        let channel = format!("{:x}", hash::channel_hash(0, channel).0);
        let plain = [
            "--kind",
            "plain",
            "--origin",
            &origin,
            "--channel",
            &channel,
        ];
        let counted = || {
            let late = dropped(&hosts, "router", Reason::Rate.name());
            (forwarded(&hosts, "router"), late)
        };
        let (before, start) = (counted(), Instant::now());
        let sent = flood(&hosts, "a", "10.78.1.1:4783", &plain);
        let took = start.elapsed();
        let after = counted();
        let passed = sent - (after.1 - before.1);
        assert!(after.0 - before.0 >= passed, "what passes is sent on");
        (sent, passed, took)
    };
    let (sent, passed, took) = run(RATED);
    println!("{sent} packets at a rate of {RATE} in {took:?}: {passed} sent on");
    let most = RATE * u64::try_from(took.as_millis()).unwrap() / 1_000 + RATE / 10 + 1;
    assert!(passed <= most, "{passed} of at most {most}");
    // On a slow machine the generator pauses.
    assert!(sent > 0 && passed >= sent / 6, "{passed} of {sent}");
    let (sent, passed, _) = run(LOSSY);
    assert_eq!(passed, sent, "a channel without a rate");
}

/// Two routers that each think the other nearer to b.
fn loop_of_two() -> Hosts {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    for host in ["a", "r1", "r2", "b"] {
        hosts.add(host).unwrap();
    }
    hosts
        .join(("a", "m0", "10.78.1.2/24"), ("r1", "ma", "10.78.1.1/24"))
        .unwrap();
    hosts
        .join(("r1", "m2", "10.78.3.1/24"), ("r2", "m1", "10.78.3.2/24"))
        .unwrap();
    let next = |name: &str, address: &str| peer(name, &format!("address = \"{address}:4783\""));
    let r1 = forwarding("native", "\"ma\", \"m2\"")
        + &next("a", "10.78.1.2")
        + &next("r2", "10.78.3.2")
        + &peer("b", "via = [\"r2\"]");
    let r2 = forwarding("native", "\"m1\"")
        + &next("r1", "10.78.3.1")
        + &peer("a", "via = [\"r1\"]")
        + &peer("b", "via = [\"r1\"]");
    for (host, rest) in [("r1", r1), ("r2", r2)] {
        hosts
            .configure(host, "0.0.0.0:4783", &(rest + &channels()))
            .unwrap();
        hosts.start(host).unwrap();
    }
    hosts
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn a_routing_loop_ends_for_data_as_duplicate_and_for_handshakes_at_the_hop_limit() {
    let hosts = loop_of_two();
    let origin = hosts.host("a").entity.origin.to_string();
    let to = "10.78.1.1:4783";
    let run = |more: &[&str]| flood(&hosts, "a", to, &[&["--rate", "50"], more].concat());
    let sent = run(&["--kind", "plain", "--origin", &origin, "--channel", "0"]);
    let both = |reason: Reason| {
        dropped(&hosts, "r1", reason.name()) + dropped(&hosts, "r2", reason.name())
    };
    // The duplicate filter is a CPU's own: a packet that changed CPUs goes on to the hop limit.
    let ended = || both(Reason::Duplicate) + both(Reason::HopLimit);
    assert!(
        sent > 0 && eventually(|| ended() == sent),
        "{} of {sent}",
        ended()
    );
    assert!(both(Reason::Duplicate) > 0);
    let at_the_limit = both(Reason::HopLimit);
    let sent = run(&["--kind", "handshake", "--origin", &origin, "--channel", "0"]);
    assert!(eventually(|| both(Reason::HopLimit) > at_the_limit));
    println!(
        "{sent} handshakes: {} ended at the hop limit, {} at the handshake rate",
        both(Reason::HopLimit) - at_the_limit,
        both(Reason::HandshakeRate)
    );
}
