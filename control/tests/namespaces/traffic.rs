//! Generated traffic through a router's NIC path: each packet is received, or counted where it was
//! refused.

use std::{thread, time::Duration};

use virga::generate::{
    live::{Attached, Generator, Measured, Mode, Plan, Sent, Sink, Until},
    plan::{Path, Sizes, Spread},
};
use virga_ebpf::{header::ChannelHash, reason::Reason};

use crate::{
    hosts::Hosts,
    stage::{Addresses, LOSSY, V4, V6, at, channels, dropped, forwarded, forwarding, peer, virga},
    wire,
};

/// a -- router -- b, joined, nothing running.
fn joined(addresses: &Addresses) -> Hosts {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    for host in ["a", "router", "b"] {
        hosts.add(host).unwrap();
    }
    let with_prefix = |address: &str| format!("{address}/{}", addresses.prefix);
    for (edge, edge_address, interface, address) in [
        ("a", addresses.a, "ma", addresses.router_a),
        ("b", addresses.b, "mb", addresses.router_b),
    ] {
        hosts
            .join(
                (edge, "m0", &with_prefix(edge_address)),
                ("router", interface, &with_prefix(address)),
            )
            .unwrap();
    }
    hosts
}

/// The same with a node on the router.
pub fn line(addresses: &Addresses) -> Hosts {
    let mut hosts = joined(addresses);
    let next = |name: &str, address: &str| peer(name, &format!("address = \"{}\"", at(address)));
    // Without link tags the router has nothing to say to hosts on which no node runs.
    let router = forwarding("native", "\"ma\", \"mb\"")
        + "link_tags = \"off\"\n"
        + &next("a", addresses.a)
        + &next("b", addresses.b)
        + &channels();
    let any = if addresses.prefix == 24 {
        "0.0.0.0:4783"
    } else {
        "[::]:4783"
    };
    hosts.configure("router", any, &router).unwrap();
    hosts.start("router").unwrap();
    // The kernel at b answers for its address, and the router learns where to send.
    hosts
        .run("router", "ping", &["-c", "1", "-w", "5", addresses.b])
        .unwrap();
    hosts
}

/// From a by way of the router to b, on the channel that a may publish on.
pub fn plan(hosts: &Hosts, addresses: &Addresses) -> Plan {
    let path = Path {
        source_mac: hosts.mac("a", "m0").unwrap(),
        target_mac: hosts.mac("router", "ma").unwrap(),
        vlan: 0,
        source: addresses.a.parse().unwrap(),
        target: addresses.router_a.parse().unwrap(),
        port: 4783,
    };
    let (destination, origin) = (hosts.host("b").node.id, hosts.host("a").entity.origin);
    Plan::new(path, destination, origin, channel())
}

fn channel() -> ChannelHash {
    virga_ebpf::hash::channel_hash(0, LOSSY)
}

fn generate(hosts: &Hosts, plan: &Plan, cpus: &[u32], until: Until) -> Sent {
    hosts
        .inside("a", || {
            let mut generator = Generator::new("m0", plan, cpus).unwrap();
            generator.run(until).unwrap()
        })
        .unwrap()
}

fn sink(hosts: &Hosts, flows: u32) -> Sink {
    hosts
        .inside("b", || {
            Sink::attach("m0", 4783, flows, Mode::Native).unwrap()
        })
        .unwrap()
}

/// In so many looks in a row nothing is new: a machine that is busy lets frames wait for longer than one.
const LOOKS_ALIKE: u32 = 5;

/// What the sink has seen once it has seen nothing new for a while.
fn settled(sink: &Sink) -> Measured {
    let mut last = sink.read().unwrap();
    let mut alike = 0;
    while alike < LOOKS_ALIKE {
        thread::sleep(Duration::from_millis(100));
        let now = sink.read().unwrap();
        alike = if now == last { alike + 1 } else { 0 };
        last = now;
    }
    last
}

/// Every packet of the router's NIC path that it did not send on, by reason.
fn refusals(hosts: &Hosts) -> Vec<(Reason, u64)> {
    let counted = Reason::ALL
        .iter()
        .map(|r| (*r, dropped(hosts, "router", r.name())));
    counted.filter(|(_, count)| *count != 0).collect()
}

/// Packets that a host's interface dropped instead of sending.
fn refused(hosts: &Hosts, host: &str, interface: &str) -> u64 {
    let shown = hosts.run(
        host,
        "ip",
        &["-json", "-statistics", "link", "show", "dev", interface],
    );
    let shown: serde_json::Value = serde_json::from_slice(&shown.unwrap().stdout).unwrap();
    shown[0]["stats64"]["tx"]["dropped"].as_u64().unwrap()
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn every_generated_packet_is_received_or_counted_where_it_was_refused() {
    for (addresses, cpus) in [(&V4, &[0][..]), (&V6, &[1]), (&V4, &[0, 1])] {
        let hosts = line(addresses);
        let plan = Plan {
            flows: 50,
            hostile_permille: 300,
            sizes: Sizes::Imix,
            ..plan(&hosts, addresses)
        };
        let sink = sink(&hosts, plan.flows);
        let before = forwarded(&hosts, "router");
        let sent = generate(&hosts, &plan, cpus, Until::Count(100_000));
        assert_eq!((sent.authorised, sent.hostile), (70_000, 30_000));
        let measured = settled(&sink);
        let forwarded = forwarded(&hosts, "router") - before;
        println!("{sent:?}\n{measured:?}\n{:?}", refusals(&hosts));
        let [(Reason::Unauthorised, unauthorised)] = refusals(&hosts)[..] else {
            panic!("{:?}", refusals(&hosts));
        };
        // A veth's ring may be full; it says so, on either link.
        assert_eq!(sent.packets(), forwarded + unauthorised);
        let full = refused(&hosts, "router", "mb");
        assert_eq!(forwarded, measured.received + full);
        assert!(measured.received + measured.lost <= sent.authorised);
        assert_eq!(measured.strangers, 0);
        // The hosts' own kernels look for routers and neighbours meanwhile.
        assert!(measured.others < 100, "{measured:?}");
        if sent.refused + full == 0 {
            assert_eq!((forwarded, unauthorised), (70_000, 30_000));
            assert_eq!((measured.lost, measured.reordered), (0, 0));
        }
        assert!(measured.received > 10_000);
    }
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn a_paced_run_keeps_its_rate_and_the_sink_measures_latency() {
    let hosts = joined(&V4);
    // As in a namespace that nobody has touched.
    for host in ["a", "router", "b"] {
        hosts.ip(host, &["link", "set", "lo", "down"]).unwrap();
    }
    let redirect = hosts
        .inside("router", || {
            Attached::redirect("ma", "mb", Mode::Native).unwrap()
        })
        .unwrap();
    let mut sink = sink(&hosts, 1_000);
    let plan = Plan {
        flows: 1_000,
        spread: Spread::Destinations,
        rate: Some(50_000),
        is_stamped: true,
        ..plan(&hosts, &V4)
    };
    let sent = generate(&hosts, &plan, &[1], Until::Elapsed(Duration::from_secs(2)));
    let measured = settled(&sink);
    println!("{sent:?}\n{measured:?}");
    // It cannot keep it where the machine has no time for it, and never exceeds it for long.
    let due = 50_000 * sent.elapsed_ns / 1_000_000_000;
    assert!(sent.packets() > 1_000, "{sent:?}");
    assert!(sent.packets() <= due + due / 20 + 1_000, "{sent:?}");
    assert_eq!(measured.received, sent.packets());
    assert_eq!(
        (measured.lost, measured.reordered, measured.untracked),
        (0, 0, 0)
    );
    let latency = measured.latency.unwrap();
    assert_eq!(latency.samples, measured.received);
    assert!(
        latency.p50_ns > 100 && latency.p50_ns <= latency.p99_ns,
        "{latency:?}"
    );
    assert!(latency.p999_ns <= latency.max_ns);

    // Nobody takes frames off the wire any more: what is sent is lost, and seen to be, flow by flow.
    drop(redirect);
    sink.clear().unwrap();
    let plan = Plan { rate: None, ..plan };
    let counts = hosts
        .inside("a", || {
            let mut generator = Generator::new("m0", &plan, &[1]).unwrap();
            let lost = generator.run(Until::Count(5_000)).unwrap();
            let _redirect = hosts
                .inside("router", || {
                    Attached::redirect("ma", "mb", Mode::Native).unwrap()
                })
                .unwrap();
            (lost, generator.run(Until::Count(2_000)).unwrap())
        })
        .unwrap();
    let measured = settled(&sink);
    println!("{counts:?}\n{measured:?}");
    assert_eq!((measured.received, measured.lost), (2_000, 5_000));
}

/// `virga gen` at a, with what tells the router that it is authorised.
fn gen_command(hosts: &Hosts, more: &[&str]) -> serde_json::Value {
    let destination = hosts.host("b").node.id.to_string();
    let origin = hosts.host("a").entity.origin.to_string();
    let channel = channel().to_string();
    let fixed = [
        "gen",
        "--to",
        "10.78.1.1:4783",
        "--destination",
        &destination,
        "--origin",
        &origin,
        "--channel",
        &channel,
        "--json",
    ];
    let output = hosts.run(
        "a",
        &virga().to_string_lossy(),
        &[&fixed[..], more].concat(),
    );
    serde_json::from_slice(&output.unwrap().stdout).unwrap()
}

fn number(value: &serde_json::Value) -> u64 {
    value.as_u64().unwrap()
}

/// Packets that the router refused, or that a full ring behind it did.
fn accounted(hosts: &Hosts) -> u64 {
    let refused_by_reason: u64 = refusals(hosts).iter().map(|(_, count)| count).sum();
    refused_by_reason + refused(hosts, "router", "mb")
}

/// Each packet that left is received or accounted for at the router, where `before` were before. How many
/// met a full ring: on one CPU none should, but the kernel may put off the receiving side's work.
fn conserved(
    hosts: &Hosts,
    sent: &serde_json::Value,
    measured: &serde_json::Value,
    before: u64,
) -> u64 {
    let here = accounted(hosts) - before;
    assert_eq!(number(&sent["sent"]), number(&measured["received"]) + here);
    number(&sent["refused"]) + refused(hosts, "router", "mb")
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn the_commands_send_and_count_and_a_capture_sends_the_same_again() {
    let hosts = line(&V4);
    let receiver = wire::sink(&hosts, &[]);
    let mix = ["--flows", "20", "--hostile", "25", "--size", "imix"];
    let count = ["--count", "40000"];
    let sent = gen_command(&hosts, &[&["--xdp", "--stamp"], &mix[..], &count].concat());
    assert_eq!(
        (&sent["authorised"], &sent["hostile"]),
        (&30_000.into(), &10_000.into())
    );
    let measured = wire::end(receiver);
    println!("{sent}\n{measured}");
    let full = conserved(&hosts, &sent, &measured, 0);
    if full == 0 {
        assert_eq!(number(&measured["received"]), 30_000);
        assert_eq!(number(&measured["lost"]), 0);
        assert_eq!(number(&measured["latency"]["samples"]), 30_000);
        assert_eq!(refusals(&hosts), [(Reason::Unauthorised, 10_000)]);
    }
    assert_eq!(number(&measured["reordered"]), 0);

    let file = hosts.folder.join("mix.pcap");
    let file = file.to_str().unwrap();
    let written = gen_command(
        &hosts,
        &[&["--pcap", file], &mix[..], &["--count", "4000"]].concat(),
    );
    assert_eq!(written["written"], 4_000);
    let before = accounted(&hosts);
    let receiver = wire::sink(&hosts, &[]);
    let replay = ["gen", "--from-pcap", file, "--interface", "m0", "--json"];
    let replay = [&replay[..], &["--count", "8000"]].concat();
    let sent = hosts.run("a", &virga().to_string_lossy(), &replay).unwrap();
    let sent: serde_json::Value = serde_json::from_slice(&sent.stdout).unwrap();
    let measured = wire::end(receiver);
    println!("{sent}\n{measured}");
    assert_eq!(sent["authorised"], 8_000);
    if conserved(&hosts, &sent, &measured, before) + full > 0 {
        println!("skipped: which packets are duplicates: some met a full ring");
        return;
    }
    // The second pass comes within a second of the first: the router takes it for duplicates, but for those
    // whose place in its filter another packet has taken since.
    let again = number(&measured["received"]) - 3_000;
    assert!(again < 3_000 / 4, "{again} of 3,000 got through");
    assert_eq!(number(&measured["lost"]), 0);
    assert_eq!(number(&measured["reordered"]), again);
    assert_eq!(
        refusals(&hosts),
        [
            (Reason::Unauthorised, 12_000),
            (Reason::Duplicate, 3_000 - again)
        ]
    );
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn frames_that_the_interface_cannot_take_are_refused_before_they_are_lost() {
    let hosts = joined(&V4);
    let sink = hosts
        .inside("router", || {
            Sink::attach("ma", 4783, 1, Mode::Native).unwrap()
        })
        .unwrap();
    let run = |more: &[&str], words: &str, wanted: i32| {
        let fixed = "gen --xdp --interface m0 --to 10.78.1.1:4783 --from 10.78.1.2 --destination 1 --count 1000 \
                     --from-mac 02:00:00:00:00:01 --to-mac 02:00:00:00:00:02 --json";
        let mut command = hosts.command("a", &virga().to_string_lossy());
        let output = command.args(fixed.split_whitespace()).args(more).output();
        let output = output.unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(words), "{more:?}: {told}");
        assert_eq!(output.status.code(), Some(wanted), "{more:?}: {told}");
        output.stdout
    };
    let refused = |more: &[&str], words: &str| run(more, words, 1);
    let sent = run(&["--size", "1518"], "", 0);
    let sent: serde_json::Value = serde_json::from_slice(&sent).unwrap();
    assert_eq!(sent["sent"], 1_000);
    refused(
        &["--size", "3000"],
        "with its MTU of 1500, m0 sends at most 1518",
    );
    hosts
        .ip("router", &["link", "set", "dev", "ma", "down"])
        .unwrap();
    refused(&[], "m0 has no carrier");
    hosts
        .ip("a", &["link", "set", "dev", "m0", "down"])
        .unwrap();
    refused(&[], "m0 is down");
    drop(sink);
    for (host, interface) in [("a", "m0"), ("router", "ma")] {
        hosts
            .ip(host, &["link", "set", "dev", interface, "up"])
            .unwrap();
    }
    // AF_XDP needs no program at the other end.
    let sent = run(&[], "takes no redirected frames now", 0);
    let sent: serde_json::Value = serde_json::from_slice(&sent).unwrap();
    assert_eq!(sent["by"], "af-xdp, copied");
    assert_eq!(sent["sent"], 1_000);
    // The kernel has some packets of its own to send.
    assert!(number(&sent["counted"]) >= 1_000, "{sent}");
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn af_xdp_sends_the_same_packets_at_the_rate_asked_for() {
    let hosts = line(&V4);
    let (mix, way) = (
        ["--flows", "20", "--hostile", "25", "--size", "imix"],
        ["--af-xdp", "--stamp"],
    );
    let receiver = wire::sink(&hosts, &[]);
    let sent = gen_command(&hosts, &[&way[..], &mix, &["--count", "40000"]].concat());
    let measured = wire::end(receiver);
    println!("{sent}\n{measured}");
    assert_eq!(
        (&sent["authorised"], &sent["hostile"]),
        (&30_000.into(), &10_000.into())
    );
    if conserved(&hosts, &sent, &measured, 0) == 0 {
        assert_eq!(number(&measured["received"]), 30_000);
        // Seven of 122 bytes, four of 590 and one of 1,514 in each twelve.
        assert_eq!(number(&measured["bytes"]), 30_000 / 12 * 4_728);
        assert_eq!(number(&measured["lost"]), 0);
        assert_eq!(number(&measured["latency"]["samples"]), 30_000);
        assert_eq!(refusals(&hosts), [(Reason::Unauthorised, 10_000)]);
    }
    assert_eq!(number(&measured["reordered"]), 0);

    let before = accounted(&hosts);
    let receiver = wire::sink(&hosts, &[]);
    let sent = gen_command(&hosts, &["--af-xdp", "--rate", "20000", "--seconds", "2"]);
    let measured = wire::end(receiver);
    println!("{sent}\n{measured}");
    conserved(&hosts, &sent, &measured, before);
    let (packets, elapsed_ns) = (number(&sent["authorised"]), number(&sent["elapsed_ns"]));
    assert!(elapsed_ns >= 2_000_000_000);
    let due = elapsed_ns / 50_000;
    // Of a pause it makes up for 50 ms.
    assert!(
        (1_000..=due + 1_001).contains(&packets),
        "{packets} of {due}"
    );

    let file = hosts.folder.join("mix.pcap");
    let file = file.to_str().unwrap();
    gen_command(
        &hosts,
        &[&["--pcap", file], &mix[..], &["--count", "4000"]].concat(),
    );
    let before = accounted(&hosts);
    let receiver = wire::sink(&hosts, &[]);
    let replay = [
        "gen",
        "--af-xdp",
        "--from-pcap",
        file,
        "--interface",
        "m0",
        "--json",
        "--count",
        "4000",
    ];
    let sent = hosts.run("a", &virga().to_string_lossy(), &replay).unwrap();
    let sent: serde_json::Value = serde_json::from_slice(&sent.stdout).unwrap();
    let measured = wire::end(receiver);
    println!("{sent}\n{measured}");
    if conserved(&hosts, &sent, &measured, before) == 0 {
        assert_eq!(number(&measured["received"]), 3_000);
    }
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn two_cpus_share_the_flows_and_the_rate_out_of_the_kernel_and_through_af_xdp() {
    const EACH: u64 = 10_000;
    const FLOWS: u32 = 32;
    if thread::available_parallelism().unwrap().get() < 2 {
        println!("skipped: this machine has one CPU");
        return;
    }
    let hosts = joined(&V4);
    // A veth sends by no more queues than its other end receives by.
    for direction in ["rx", "tx"] {
        for (host, interface) in [("a", "m0"), ("router", "ma")] {
            let set = ["-L", interface, direction, "2"];
            hosts.run(host, "ethtool", &set).unwrap();
        }
    }
    // It follows the first half of the flows: what it does not follow is all of the second CPU's.
    let attach = || Sink::attach("ma", 4783, FLOWS, Mode::Native).unwrap();
    let mut sink = hosts.inside("router", attach).unwrap();
    let (flows, count) = ((2 * FLOWS).to_string(), (2 * EACH).to_string());
    let shared = ["--cores", "2", "--flows", &flows, "--size", "imix"];
    let paced = ["--rate", "20000", "--count", &count];
    for (way, by) in [("--xdp", "xdp"), ("--af-xdp", "af-xdp, copied")] {
        sink.clear().unwrap();
        let sent = gen_command(&hosts, &[&[way], &shared[..], &paced].concat());
        let measured = settled(&sink);
        println!("{sent}\n{measured:?}");
        assert_eq!(sent["by"], by);
        let cores = sent["cores"].as_array().unwrap();
        let of = |name: &str| -> Vec<u64> { cores.iter().map(|c| number(&c[name])).collect() };
        assert_eq!(of("authorised"), [EACH; 2]);
        assert_eq!((of("flows"), of("first_flow")), (vec![32; 2], vec![0, 32]));
        assert_ne!(of("cpu")[0], of("cpu")[1]);
        assert_eq!(of("bytes").iter().sum::<u64>(), number(&sent["bytes"]));
        // One packet each 50 us is both CPUs' share; so many of each would take half as long.
        let elapsed_ns = number(&sent["elapsed_ns"]);
        assert!(elapsed_ns > 2 * EACH * 50_000 * 9 / 10, "{elapsed_ns} ns");

        // A veth's ring may be full, which it says.
        let full = number(&sent["refused"]);
        assert_eq!(measured.received, 2 * EACH - full);
        let second = EACH.saturating_sub(full)..=EACH;
        assert!(second.contains(&measured.untracked), "{measured:?}");
        assert!(measured.lost <= full, "{measured:?}");
        assert_eq!((measured.reordered, measured.strangers), (0, 0));
    }
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn af_xdp_says_what_an_interface_does_not_have() {
    let hosts = joined(&V4);
    let said = |more: &[&str]| {
        let fixed = "gen --af-xdp --interface m0 --to 10.78.1.1:4783 --from 10.78.1.2 --destination 1 --count 1000 \
                     --from-mac 02:00:00:00:00:01 --to-mac 02:00:00:00:00:02 --flows 64";
        let mut command = hosts.command("a", &virga().to_string_lossy());
        let output = command.args(fixed.split_whitespace()).args(more).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(1), "{more:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let copy = said(&["--zero-copy"]);
    assert!(copy.contains("m0 does not send without a copy"), "{copy}");
    if thread::available_parallelism().unwrap().get() > 1 {
        let queues = said(&["--cores", "2"]);
        assert!(queues.contains("m0 has 1 of the 2 queues"), "{queues}");
    }
    let large = said(&["--size", "3000"]);
    assert!(large.contains("sends at most 1518"), "{large}");
    hosts
        .ip("a", &["link", "set", "dev", "m0", "down"])
        .unwrap();
    let down = said(&[]);
    assert!(down.contains("m0 is down"), "{down}");
}
