//! Events through AF_XDP: between real daemons, whatever becomes of them.

use std::time::Duration;

use virga_ebpf::header::{Header, SessionId};

use crate::{
    hosts::{Hosts, eventually},
    stage::{
        Addresses, LOSSY, RELIABLE, Sink, Stream, V4, V6, assert_complete, dropped, forwarded,
        line, number, publish, publishing,
    },
};

/// All three with the driver, on their veth ends.
fn xsk_line(addresses: &Addresses) -> Hosts {
    xsk_line_after(addresses, |_| {})
}

/// The same where `change` was done to the hosts before the daemons ran.
fn xsk_line_after(addresses: &Addresses, change: impl Fn(&Hosts)) -> Hosts {
    let mut hosts = line("native", addresses);
    for host in ["a", "b", "router"] {
        hosts.stop(host).unwrap();
        let file = hosts.folder.join(host).join("node.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.replace("[node]\n", "[node]\ndriver = \"xsk\"\n");
        std::fs::write(&file, text).unwrap();
    }
    change(&hosts);
    for host in ["router", "b", "a"] {
        hosts.start(host).unwrap();
    }
    hosts
}

/// What the host's driver counted.
fn figure(hosts: &Hosts, host: &str, name: &str) -> u64 {
    number(hosts, host, &format!("/socket/figures/{name}"))
}

/// Packets for the host itself, that its NIC path handed to a socket of AF_XDP.
fn handed_over(hosts: &Hosts, host: &str) -> u64 {
    number(hosts, host, "/forwarding/nic/outcomes/xsk/packets")
}

/// Publishes for a while; nothing is lost, and AF_XDP carried it at both ends.
async fn crosses_af_xdp(hosts: &Hosts, channel: &'static str) {
    let sink = Sink::subscribe(hosts, channel).await;
    let before = [
        figure(hosts, "a", "xsk_sent"),
        figure(hosts, "b", "xsk_received"),
        handed_over(hosts, "b"),
    ];
    let count = publish(hosts, channel, 1_000, Duration::from_secs(2)).await;
    assert_complete(&sink.numbers().await, count);
    let after = [
        figure(hosts, "a", "xsk_sent"),
        figure(hosts, "b", "xsk_received"),
        handed_over(hosts, "b"),
    ];
    for (name, (before, after)) in ["sent", "received", "handed over"]
        .into_iter()
        .zip(before.into_iter().zip(after))
    {
        let moved = after - before;
        assert!(moved >= count / 20, "{channel}: {moved} {name} for {count}");
    }
    for host in ["a", "b"] {
        assert_eq!(figure(hosts, host, "xsk_lost"), 0, "{host}");
        assert_eq!(figure(hosts, host, "xsk_unreadable"), 0, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn events_go_through_af_xdp_at_both_ends_and_status_says_so() {
    for addresses in [&V4, &V6] {
        let hosts = xsk_line(addresses);
        for channel in [RELIABLE, LOSSY] {
            crosses_af_xdp(&hosts, channel).await;
        }
        let status = hosts.status("b").unwrap();
        assert_eq!(status["socket"]["driver"], "xsk", "{status}");
        let why = status["socket"]["why"].as_str().unwrap();
        assert!(why.contains("m0: 1 queues, all that it has"), "{why}");
        assert!(forwarded(&hosts, "router") > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn without_a_nic_path_the_kernels_socket_carries_everything_and_status_says_why() {
    let hosts = xsk_line_after(&V4, |hosts| {
        for host in ["a", "b", "router"] {
            let file = hosts.folder.join(host).join("node.toml");
            let text = std::fs::read_to_string(&file).unwrap();
            std::fs::write(&file, text.replace("\"native\"", "\"userspace\"")).unwrap();
        }
    });
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let count = publish(&hosts, RELIABLE, 500, Duration::from_secs(1)).await;
    assert_complete(&sink.numbers().await, count);
    assert_eq!(figure(&hosts, "a", "xsk_sent"), 0);
    let status = hosts.status("a").unwrap();
    let why = status["socket"]["why"].as_str().unwrap();
    assert!(why.contains("no interface runs the XDP program"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_router_that_is_killed_goes_on_in_its_nic_and_its_own_packets_reach_the_next_daemon() {
    let mut hosts = xsk_line(&V4);
    let sink = Sink::subscribe(&hosts, LOSSY).await;
    let published = publishing(&hosts, LOSSY, 1_000, Duration::from_secs(6));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(figure(&hosts, "router", "xsk_queues"), 2);
    hosts.kill("router").unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    // With the sockets gone, what is for the router itself takes the way through the kernel's stack.
    send_forged(&hosts, "a", "router", "10.78.1.1:4783");
    tokio::time::sleep(Duration::from_secs(1)).await;
    hosts.start("router").unwrap();
    let local = "/forwarding/nic/outcomes/local/packets";
    let stack = || number(&hosts, "router", local);
    assert!(
        eventually(|| stack() >= FORGED / 2),
        "{}: where nobody listens, some sends fail",
        stack()
    );
    let before = figure(&hosts, "router", "xsk_received");
    send_forged(&hosts, "a", "router", "10.78.1.1:4783");
    let received = || figure(&hosts, "router", "xsk_received") - before;
    assert!(eventually(|| received() >= FORGED), "{}", received());
    let count = published.await.unwrap();
    assert_complete(&sink.numbers().await, count);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn an_end_node_that_is_killed_is_known_again_and_served_by_af_xdp() {
    let mut hosts = xsk_line(&V4);
    crosses_af_xdp(&hosts, RELIABLE).await;
    hosts.kill("b").unwrap();
    hosts.start("b").unwrap();
    crosses_af_xdp(&hosts, RELIABLE).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_link_that_goes_down_and_comes_back_is_served_by_af_xdp_again() {
    let hosts = xsk_line(&V4);
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let events = Stream::begin(&hosts, RELIABLE, 500);
    assert!(eventually(|| events.next() > 300));
    let set = |state| hosts.ip("a", &["link", "set", "dev", "m0", state]).unwrap();
    set("down");
    tokio::time::sleep(Duration::from_millis(700)).await;
    let is_felt = eventually(|| number(&hosts, "a", "/socket/sent/errors/unreachable") > 0);
    set("up");
    assert!(is_felt, "nothing was sent while it was down");
    let queues = || ["xsk_queues", "xsk_queues_gone"].map(|name| figure(&hosts, "a", name));
    assert!(eventually(|| queues() == [1, 0]), "{:?}", queues());
    let count = events.end().await;
    assert_complete(&sink.numbers().await, count);
    crosses_af_xdp(&hosts, RELIABLE).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn zero_copy_is_asked_of_listed_drivers_only_and_status_says_so() {
    let hosts = xsk_line_after(&V4, |hosts| {
        let file = hosts.folder.join("a").join("node.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(
            &file,
            text.replace("[node]\n", "[node]\nzero_copy = true\n"),
        )
        .unwrap();
    });
    crosses_af_xdp(&hosts, RELIABLE).await;
    let status = hosts.status("a").unwrap();
    let why = status["socket"]["why"].as_str().unwrap();
    let told = "copied: its profile lists no kernel up to";
    assert!(why.contains(told), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn packets_that_a_stopped_daemon_does_not_read_are_shown_as_lost() {
    let hosts = xsk_line(&V4);
    let signal = |signal: &str| {
        let pid = hosts.pid("router").unwrap().to_string();
        let done = std::process::Command::new("kill")
            .args([signal, &pid])
            .status();
        assert!(done.unwrap().success());
    };
    signal("-STOP");
    // More than a queue's frames.
    for _ in 0..3 {
        send_forged(&hosts, "a", "router", "10.78.1.1:4783");
    }
    signal("-CONT");
    let lost = || figure(&hosts, "router", "xsk_lost");
    assert!(eventually(|| lost() > 0), "{}", lost());
    let socket = hosts.socket("router").display().to_string();
    let virga = hosts.virga().display().to_string();
    let shown = hosts
        .run("router", &virga, &["status", "--socket", &socket])
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("xsk_lost"), "{shown}");
    let config = hosts.folder.join("router").join("node.toml");
    let config = config.display().to_string();
    let found = hosts
        .command("router", &virga)
        .args(["doctor", "--config", &config])
        .output();
    let found = String::from_utf8(found.unwrap().stdout).unwrap();
    assert!(
        found.contains("lost before its workers read them: "),
        "{found}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn every_queue_of_an_interface_has_a_socket() {
    let hosts = xsk_line_after(&V4, |hosts| {
        let ends = [("a", "m0"), ("b", "m0"), ("router", "ma"), ("router", "mb")];
        // A veth sends by no more queues than its other end receives by.
        for direction in ["rx", "tx"] {
            for (host, interface) in ends {
                let channels = ["-L", interface, direction, "2"];
                hosts.run(host, "ethtool", &channels).unwrap();
            }
        }
    });
    assert_eq!(figure(&hosts, "a", "xsk_queues"), 2, "{}", hosts.log("a"));
    assert_eq!(figure(&hosts, "router", "xsk_queues"), 4);
    for channel in [RELIABLE, LOSSY] {
        crosses_af_xdp(&hosts, channel).await;
    }
    let wakeups = figure(&hosts, "a", "xsk_wakeups");
    assert!(
        wakeups > 0,
        "a copying driver is told of what is to be sent"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn the_queues_of_an_interface_are_dealt_to_the_workers() {
    let hosts = xsk_line_after(&V4, |hosts| {
        for direction in ["rx", "tx"] {
            for (host, interface) in [("a", "m0"), ("b", "m0"), ("router", "ma"), ("router", "mb")]
            {
                let channels = ["-L", interface, direction, "2"];
                hosts.run(host, "ethtool", &channels).unwrap();
            }
        }
        let file = hosts.folder.join("b").join("node.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("[node]\n", "[node]\nworkers = 2\n")).unwrap();
    });
    for channel in [RELIABLE, LOSSY] {
        crosses_af_xdp(&hosts, channel).await;
    }
    let of_worker = |worker: usize, name: &str| {
        let figure = format!("/workers/{worker}/socket/figures/{name}");
        number(&hosts, "b", &figure)
    };
    for worker in [0, 1] {
        assert_eq!(of_worker(worker, "xsk_queues"), 1, "worker {worker}");
    }
    // One session's packets come by one queue, whichever: its worker gets them all the same.
    let received: u64 = [0, 1].map(|n| of_worker(n, "xsk_received")).iter().sum();
    let handed_over: u64 = [0, 1]
        .map(|n| number(&hosts, "b", &format!("/workers/{n}/worker/handed_over")))
        .iter()
        .sum();
    assert!(
        received > 0 && handed_over <= received,
        "{received}, {handed_over}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn larger_packets_go_where_the_interfaces_mtu_lets_them() {
    let hosts = xsk_line_after(&V4, |hosts| {
        for (host, interface) in [("a", "m0"), ("b", "m0"), ("router", "ma"), ("router", "mb")] {
            hosts
                .ip(host, &["link", "set", "dev", interface, "mtu", "3400"])
                .unwrap();
        }
    });
    crosses_af_xdp(&hosts, RELIABLE).await;
    assert_eq!(number(&hosts, "a", "/socket/sent/errors/too_big"), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn hostile_packets_are_dropped_before_the_sockets_or_by_the_node() {
    let hosts = xsk_line(&V4);
    let sink = Sink::subscribe(&hosts, LOSSY).await;
    let published = publishing(&hosts, LOSSY, 500, Duration::from_secs(4));
    let before = dropped(&hosts, "b", "magic");
    let noise = send_noise(&hosts, "router", "10.78.2.2:4783");
    send_forged(&hosts, "router", "b", "10.78.2.2:4783");
    let count = published.await.unwrap();
    assert_complete(&sink.numbers().await, count);
    let refused = || dropped(&hosts, "b", "magic") - before;
    assert!(
        eventually(|| refused() >= noise * 9 / 10),
        "{} of {noise}",
        refused()
    );
    // Whoever knows a member's public name gets as far as the node, which has no such session.
    let reached = figure(&hosts, "b", "xsk_received");
    assert!(reached >= count / 20 + FORGED * 9 / 10, "{reached}");
    assert_eq!(figure(&hosts, "b", "xsk_lost"), 0);
}

/// Packets that [`send_forged`] sends.
const FORGED: u64 = 1_000;

/// What is no mesh packet, from a host to a node's port; how many.
fn send_noise(hosts: &Hosts, from: &str, to: &str) -> u64 {
    let noise = |n: u64| {
        let byte = |at: u64| u8::try_from((n * 31 + at * 7) % 256).unwrap();
        (0..64 + n % 900).map(byte).collect::<Vec<u8>>()
    };
    send(hosts, from, to, (0..1_000).map(noise).collect())
}

/// Packets to a node with the public name of a's entity, which is a member, and without a session.
fn send_forged(hosts: &Hosts, from: &str, node: &str, to: &str) -> u64 {
    let (member, target) = (hosts.host("a").entity.origin, hosts.host(node).node.id);
    let forged = |n: u64| {
        let header = Header {
            destination: target,
            origin_hash: member,
            session_id: SessionId(n << 8),
            sequence: n,
            payload_len: 16,
            ..Header::default()
        };
        [&header.encode()[..], &[0x5a; 16]].concat()
    };
    send(hosts, from, to, (0..FORGED).map(forged).collect())
}

fn send(hosts: &Hosts, from: &str, to: &str, packets: Vec<Vec<u8>>) -> u64 {
    let sent = hosts.inside(from, || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        let mut sent = 0;
        for packet in &packets {
            // Where nobody listens, the next call tells of it.
            sent += u64::from(socket.send_to(packet, to).is_ok());
            if sent.is_multiple_of(100) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok::<u64, std::io::Error>(sent)
    });
    sent.unwrap().unwrap()
}
