//! What goes wrong on a machine while its node runs: an interface under another name or elsewhere, a full disk, a clock
//! that is set, a second daemon, rights that are missing. The node goes on, and says what and why.

use std::{path::Path, time::Duration};

use serde_json::Value;
use virga::{
    keys::{EntityKey, NodeKey, Secret},
    mesh::{Cursor, Mesh, Replayed},
    nic::fill::{self, Fill},
};
use virga_ebpf::{limits::PORTS_MAX, reason::Reason};

use crate::{
    hosts::{Hosts, eventually},
    stage::{
        LOSSY, RELIABLE, Sink, V4, assert_complete, at, channels, dropped, forwarding,
        is_subscribed, line, line_with, peer, publish, publishing, virga,
    },
    starting::{is_forwarding, of_router, problem},
};

/// Events cross, each once and in order.
async fn crosses(hosts: &Hosts) {
    let sink = Sink::subscribe(hosts, RELIABLE).await;
    let count = publish(hosts, RELIABLE, 200, Duration::from_secs(1)).await;
    assert_complete(&sink.numbers().await, count);
}

/// Gives the router's link to b another name, and its addresses and state back, which the kernel takes.
fn rename(hosts: &Hosts, from: &str, to: &str) {
    let ip = |arguments: &[&str]| hosts.ip("router", arguments).unwrap();
    ip(&["link", "set", "dev", from, "down"]);
    ip(&["link", "set", "dev", from, "name", to]);
    ip(&["link", "set", "dev", to, "up"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn an_interface_with_another_name_is_missed_by_its_own_and_events_still_cross() {
    let hosts = line("native", &V4);
    crosses(&hosts).await;
    rename(&hosts, "mb", "other0");
    let is_told = eventually(|| problem(&hosts).contains("interface mb does not exist"));
    assert!(is_told, "{}", problem(&hosts));
    assert!(is_forwarding(&hosts, "ma") && !is_forwarding(&hosts, "mb"));
    // In user space, over the socket.
    crosses(&hosts).await;
    rename(&hosts, "other0", "mb");
    let is_back = eventually(|| is_forwarding(&hosts, "mb") && problem(&hosts).is_empty());
    assert!(is_back, "{}", problem(&hosts));
    crosses(&hosts).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn an_interface_that_is_moved_to_another_namespace_is_missed_and_taken_again() {
    let mut hosts = line("native", &V4);
    hosts.add("elsewhere").unwrap();
    let namespace = |host: &str| hosts.host(host).namespace.clone().unwrap();
    let (here, elsewhere) = (namespace("router"), namespace("elsewhere"));
    hosts
        .ip("router", &["link", "set", "dev", "mb", "netns", &elsewhere])
        .unwrap();
    let is_told = eventually(|| problem(&hosts).contains("interface mb does not exist"));
    assert!(is_told, "{}", problem(&hosts));
    assert!(is_forwarding(&hosts, "ma"));
    let log = hosts.log("router");
    assert!(log.contains("interface mb does not exist"), "{log}");
    hosts
        .ip("elsewhere", &["link", "set", "dev", "mb", "netns", &here])
        .unwrap();
    for arguments in [
        &["address", "add", "10.78.2.1/24", "dev", "mb"][..],
        &["link", "set", "dev", "mb", "up"],
    ] {
        hosts.ip("router", arguments).unwrap();
    }
    let is_back = eventually(|| is_forwarding(&hosts, "mb") && problem(&hosts).is_empty());
    assert!(is_back, "{}", problem(&hosts));
    crosses(&hosts).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_second_daemon_of_a_nodes_name_is_refused_and_the_first_goes_on() {
    let mut hosts = line("native", &V4);
    // The same name on the same machine, and nothing else the same: keys, socket, state, namespace.
    hosts.add("second").unwrap();
    let file = hosts.folder.join("second/node.toml");
    hosts
        .configure("second", "0.0.0.0:4783", &forwarding("native", "\"lo\""))
        .unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let (own, taken) = (hosts.node_name("second"), hosts.node_name("router"));
    let name = |name: &str| format!("name = \"{name}\"");
    std::fs::write(&file, text.replace(&name(&own), &name(&taken))).unwrap();
    let refused = hosts.start("second").unwrap_err().to_string();
    let words = format!("another daemon runs node {taken}");
    assert!(refused.contains(&words), "{refused}");
    // The very file of the first.
    let first = hosts.folder.join("router/node.toml");
    let first = first.to_string_lossy();
    let run = [
        "60",
        virga().to_str().unwrap(),
        "node",
        "run",
        "--config",
        &first,
    ];
    let again = hosts.run("router", "timeout", &run);
    let again = again.unwrap_err().to_string();
    assert!(again.contains(&words), "{again}");
    assert!(is_forwarding(&hosts, "ma") && is_forwarding(&hosts, "mb"));
    crosses(&hosts).await;
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn each_right_that_the_nic_path_lacks_is_named_and_auto_mode_goes_on_without() {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    hosts.add("router").unwrap();
    hosts.add("b").unwrap();
    let (router, b) = (
        ("router", "mb", "10.78.2.1/24"),
        ("b", "m0", "10.78.2.2/24"),
    );
    hosts.join(router, b).unwrap();
    let rest =
        |mode| forwarding(mode, "\"mb\"") + &peer("b", &format!("address = \"{}\"", at(V4.b)));
    for lacking in [
        "-net_admin,-sys_admin",
        "-bpf,-sys_admin",
        "-perfmon,-sys_admin",
    ] {
        let bounding = format!("--bounding-set={lacking}");
        let without = [bounding.as_str(), "--inh-caps=-all"];
        hosts
            .configure("router", "0.0.0.0:4783", &rest("native"))
            .unwrap();
        let refused = hosts.start_under("router", "setpriv", &without);
        let refused = refused.expect_err(lacking).to_string();
        assert!(
            refused.contains("CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON"),
            "{lacking}: {refused}"
        );
        hosts
            .configure("router", "0.0.0.0:4783", &rest("auto"))
            .unwrap();
        hosts.start_under("router", "setpriv", &without).unwrap();
        assert_eq!(of_router(&hosts, "mode"), "userspace", "{lacking}");
        let why = of_router(&hosts, "why").as_str().unwrap().to_owned();
        assert!(why.contains("CAP_NET_ADMIN"), "{lacking}: {why}");
        assert!(hosts.stop("router").unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn auto_mode_that_cannot_take_over_what_is_attached_leaves_it_forwarding() {
    let mut hosts = line("auto", &V4);
    assert_eq!(of_router(&hosts, "mode"), "native");
    let sink = Sink::subscribe(&hosts, LOSSY).await;
    let published = publishing(&hosts, LOSSY, 1_000, Duration::from_secs(4));
    hosts.stop("router").unwrap();
    let without = ["--bounding-set=-bpf,-sys_admin", "--inh-caps=-all"];
    let refused = hosts.start_under("router", "setpriv", &without);
    let refused = refused.unwrap_err().to_string();
    let name = hosts.node_name("router");
    for words in [
        "goes on forwarding",
        "CAP_BPF",
        &format!("virga node detach {name}"),
    ] {
        assert!(refused.contains(words), "{words}: {refused}");
    }
    assert_complete(&sink.numbers().await, published.await.unwrap());
    let detach = ["node", "detach", &name];
    hosts
        .run("router", &virga().to_string_lossy(), &detach)
        .unwrap();
    hosts.start_under("router", "setpriv", &without).unwrap();
    assert_eq!(of_router(&hosts, "mode"), "userspace");
    crosses(&hosts).await;
}

fn filled(hosts: &Hosts) -> Vec<Fill> {
    fill::of(&hosts.node_name("router"), 65_536).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn what_a_reload_takes_out_is_gone_from_the_nic_path() {
    let mut hosts = line("native", &V4);
    hosts.add("c").unwrap();
    crosses(&hosts).await;
    let file = hosts.folder.join("router/node.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    let socket = hosts.socket("router");
    let reload = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let reload = ["reload", "--socket", socket.to_str().unwrap()];
        hosts
            .run("router", virga().to_str().unwrap(), &reload)
            .unwrap();
    };
    let own = filled(&hosts);
    let used = |fills: &[Fill], map: &str| fills.iter().find(|f| f.map == map).unwrap().used;
    // A neighbour beside a, a node behind it, and a channel of its own.
    hosts
        .configure(
            "c",
            "0.0.0.0:4783",
            &peer("c", "address = \"10.78.1.77:4783\""),
        )
        .unwrap();
    let c = std::fs::read_to_string(hosts.folder.join("c/node.toml")).unwrap();
    let block = &c[c.find("[[peers]]").unwrap()..];
    let channel = "[[channels]]\nname = \"test/of-c\"\npublish = [\"c\"]\nsubscribe = [\"b\"]\n";
    reload(&(before.clone() + block + channel));
    let grown = filled(&hosts);
    for map in ["neighbours", "destinations", "channels"] {
        assert!(
            used(&grown, map) > used(&own, map),
            "{map}: {grown:?} {own:?}"
        );
    }
    reload(&before);
    assert_eq!(filled(&hosts), own);
    // And what is taken out is let in no more, while the rest passes.
    let text = before.replace("10.78.1.2:4783", "10.78.1.66:4783");
    reload(&text);
    let destination = hosts.host("b").node.id.to_string();
    let from_a = [
        "gen",
        "--to",
        "10.78.1.1:4783",
        "--destination",
        &destination,
        "--rate",
        "500",
        "--json",
    ];
    let neighbour = || dropped(&hosts, "router", Reason::Neighbour.name());
    let before_it = neighbour();
    let sent = hosts.run("a", virga().to_str().unwrap(), &from_a).unwrap();
    let sent: Value = serde_json::from_slice(&sent.stdout).unwrap();
    let sent = sent["sent"].as_u64().unwrap();
    let is_refused = || sent > 0 && neighbour() - before_it >= sent;
    assert!(
        eventually(is_refused),
        "{sent}: {}",
        hosts.status("router").unwrap()
    );
    reload(&before);
    assert!(
        eventually(|| filled(&hosts) == own),
        "{:?} {own:?}",
        filled(&hosts)
    );
    crosses(&hosts).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_reload_that_the_nic_path_has_no_room_for_is_taken_back_while_events_cross() {
    let hosts = line("native", &V4);
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let published = publishing(&hosts, RELIABLE, 200, Duration::from_secs(8));
    let file = hosts.folder.join("router/node.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    // Neighbours behind more interfaces than its table has places: that is found when half of it is done.
    let (mut text, mut links) = (before.clone(), String::new());
    for n in 0..=PORTS_MAX / 2 {
        links += &format!("link add x{n} type veth peer name y{n}\n");
        for (end, side) in [("x", 1), ("y", 2)] {
            let link = format!("{end}{n}");
            let (own, other) = (
                format!("10.{}.{side}.1", 100 + n),
                format!("10.{}.{side}.2", 100 + n),
            );
            links += &format!(
                "address add {own}/24 dev {link}\nlink set dev {link} up\n\
                 neighbour add {other} lladdr 02:00:00:00:0{side}:{n:02x} dev {link}\n"
            );
            let node = NodeKey::from(Secret::generate().unwrap());
            let entity = EntityKey::from(Secret::generate().unwrap());
            text += &format!(
                "[[peers]]\nname = \"{link}\"\nnode_key = \"{}\"\nentity_key = \"{}\"\naddress = \"{other}:4783\"\n",
                virga::hex::encode(&node.public),
                virga::hex::encode(&entity.public),
            );
        }
    }
    let batch = hosts.folder.join("links");
    std::fs::write(&batch, links).unwrap();
    hosts
        .ip("router", &["-batch", batch.to_str().unwrap()])
        .unwrap();
    // The new links' own addresses are the router's.
    let is_known = |fills: &[Fill]| {
        fills
            .iter()
            .any(|f| f.map == "neighbours" && f.used > PORTS_MAX)
    };
    let mut own = Vec::new();
    assert!(eventually(|| {
        let before = std::mem::replace(&mut own, filled(&hosts));
        is_known(&own) && before == own
    }));
    std::fs::write(&file, text).unwrap();
    let socket = hosts.socket("router");
    let reload = ["reload", "--socket", socket.to_str().unwrap()];
    let refused = hosts.run("router", virga().to_str().unwrap(), &reload);
    let refused = refused.unwrap_err().to_string();
    for words in [
        "what was there before is in force again",
        "more than 256 egress interfaces: name fewer",
    ] {
        assert!(refused.contains(words), "{refused}");
    }
    assert_eq!(filled(&hosts), own);
    assert_eq!(
        hosts.status("router").unwrap()["peers"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert!(problem(&hosts).is_empty(), "{}", problem(&hosts));
    assert_complete(&sink.numbers().await, published.await.unwrap());
    std::fs::write(&file, before).unwrap();
    hosts
        .run("router", virga().to_str().unwrap(), &reload)
        .unwrap();
}

/// A log that is kept at b on a disk of its own, with room for one segment of 64 MiB and not for another.
const DISK: &str = "96m";
/// Events of 900 KiB: more than there is room for on the disk and on the way to the log, which is bounded in bytes.
const EVENTS: usize = 150;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_full_disk_costs_the_log_its_events_and_nobody_else_anything() {
    let rest = channels().replace("reliable = true\n", "reliable = true\nhold_max_s = 10\n");
    let mut hosts = line_with("native", &V4, &rest);
    assert!(hosts.stop("b").unwrap());
    let file = hosts.folder.join("b/node.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let kept = text.replace("hold_max_s = 10\n", "hold_max_s = 10\npersist = true\n");
    std::fs::write(&file, kept).unwrap();
    let logs = hosts.folder.join("b/state/logs");
    std::fs::create_dir_all(&logs).unwrap();
    // The disk is the daemon's alone, and ends with it.
    let mounted = format!(
        "mount -t tmpfs -o size={DISK} tmpfs {} && exec \"$0\" \"$@\"",
        logs.display()
    );
    hosts
        .start_under("b", "unshare", &["--mount", "sh", "-c", &mounted])
        .unwrap();

    let mesh = Mesh::open(hosts.socket("b")).await.unwrap();
    let mut live = mesh.subscribe(RELIABLE).await.unwrap();
    let lossy = Sink::subscribe(&hosts, LOSSY).await;
    assert!(eventually(|| is_subscribed(&hosts, RELIABLE)));
    let log = |hosts: &Hosts| hosts.status("b").unwrap()["logs"][0].clone();
    let publishing = Mesh::open(hosts.socket("a")).await.unwrap();
    let publisher = publishing.publisher(RELIABLE).await.unwrap();
    let event = vec![0x56; 900 << 10];
    let taken = tokio::spawn(async move {
        let mut count = 0;
        while let Some(delivery) = live.next_delivery().await {
            if delivery.unwrap().payload.len() == 4 {
                break;
            }
            count += 1;
        }
        count
    });
    for _ in 0..EVENTS {
        publisher.publish(&event).await.unwrap();
    }
    let is_full = eventually(|| {
        log(&hosts)["problem"]
            .as_str()
            .is_some_and(|p| p.contains("full"))
    });
    assert!(is_full, "{}", log(&hosts));
    let said = hosts.log("b");
    let said = said
        .lines()
        .find(|line| line.contains("the disk is full: make room"));
    assert!(
        said.is_some_and(|line| line.contains("WARN")),
        "{}",
        hosts.log("b")
    );
    // Whoever listens has had everything, and other channels do not notice.
    publisher.publish(b"done").await.unwrap();
    publisher.finish().await.unwrap();
    let taken = tokio::time::timeout(Duration::from_secs(90), taken).await;
    assert_eq!(taken.unwrap().unwrap(), EVENTS);
    let count = publish(&hosts, LOSSY, 200, Duration::from_secs(1)).await;
    assert_complete(&lossy.numbers().await, count);

    let pid = hosts.pid("b").unwrap().to_string();
    let logs = logs.to_str().unwrap();
    let more = [
        "--mount",
        "--target",
        &pid,
        "mount",
        "-o",
        "remount,size=400m",
        logs,
    ];
    hosts.run("b", "nsenter", &more).unwrap();
    assert!(
        eventually(|| log(&hosts)["problem"].is_null()),
        "{}",
        log(&hosts)
    );
    assert!(
        eventually(|| log(&hosts)["interrupted"].as_u64() > Some(0)),
        "{}",
        log(&hosts)
    );
    let end = log(&hosts)["end"].as_u64().unwrap();
    // It subscribes anew: what comes before is not kept.
    let again = tokio::spawn(async move {
        loop {
            publishing.publish(RELIABLE, b"after").await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    let mut replay = mesh.replay(RELIABLE, Cursor::Offset(end)).await.unwrap();
    // What had waited comes first.
    for offset in end.. {
        let next = tokio::time::timeout(Duration::from_secs(60), replay.next_kept()).await;
        let Some(Ok(Replayed::Event(next))) = next.unwrap() else {
            panic!("the log goes on where it was: {}", log(&hosts));
        };
        assert_eq!(next.offset, offset);
        if &next.payload[..] == b"after" {
            break;
        }
    }
    again.abort();
    assert!(
        hosts.log("b").contains("the log takes events again"),
        "{}",
        hosts.log("b")
    );
}

/// libfaketime, which gives a program another clock; a file says which, and may be written while it runs.
fn faketime() -> Option<String> {
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
    Path::new(library).exists().then(|| library.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_clock_that_is_set_ends_no_session_and_is_told_of() {
    let Some(library) = faketime() else {
        return println!("skipped: libfaketime is not installed (Debian's package faketime)");
    };
    let mut hosts = line("native", &V4);
    let file = hosts.folder.join("clock");
    let set = |offset: &str| std::fs::write(&file, offset).unwrap();
    set("+0");
    assert!(hosts.stop("b").unwrap());
    let (preload, from) = (
        format!("LD_PRELOAD={library}"),
        format!("FAKETIME_TIMESTAMP_FILE={}", file.display()),
    );
    let clock = [
        &*preload,
        &*from,
        "FAKETIME_NO_CACHE=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
    ];
    hosts.start_under("b", "env", &clock).unwrap();
    let mesh = Mesh::open(hosts.socket("b")).await.unwrap();
    let mut events = mesh.subscribe(RELIABLE).await.unwrap();
    assert!(eventually(|| is_subscribed(&hosts, RELIABLE)));
    let publishing = Mesh::open(hosts.socket("a")).await.unwrap();
    let session = |hosts: &Hosts| {
        let status = hosts.status("b").unwrap();
        let sessions = status["sessions"].as_array().unwrap().clone();
        let to_a = sessions.into_iter().find(|session| session["name"] == "a");
        to_a.unwrap()["session"].clone()
    };
    let first = session(&hosts);
    let mut last_ns = 0;
    for (offset, way) in [("+3d", "forward"), ("-2d", "back")] {
        set(offset);
        let words = format!("clock was set {way} by");
        assert!(
            eventually(|| hosts.log("b").contains(&words)),
            "{}",
            hosts.log("b")
        );
        publishing.publish(RELIABLE, b"on").await.unwrap();
        let event = tokio::time::timeout(Duration::from_secs(60), events.next_delivery()).await;
        let event = event.unwrap().unwrap().unwrap();
        assert_eq!(&event.payload[..], b"on");
        // By the clock as it is now.
        let is_later = event.received_unix_ns > last_ns;
        assert_eq!(is_later, way == "forward", "{offset}");
        last_ns = event.received_unix_ns;
    }
    assert_eq!(session(&hosts), first);
    crosses(&hosts).await;
}
