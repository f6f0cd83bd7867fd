//! A node starts while an interface is away or taken: the others forward, and it follows when it comes.

use std::{path::Path, time::Duration};

use serde_json::Value;
use tokio::task::JoinHandle;

use crate::{
    hosts::{Hosts, eventually},
    stage::{LOSSY, RELIABLE, Sink, V4, assert_complete, line, publish, publishing, virga},
};

/// Restarts the router in a mode, with those interfaces.
fn restart(hosts: &mut Hosts, mode: &str, interfaces: &str) -> std::io::Result<()> {
    let file = hosts.folder.join("router/node.toml");
    let text = std::fs::read_to_string(&file)?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for line in &mut lines {
        if line.starts_with("mode = ") {
            *line = format!("mode = \"{mode}\"");
        }
        if line.starts_with("interfaces = ") {
            *line = format!("interfaces = [{interfaces}]");
        }
    }
    hosts.stop("router")?;
    std::fs::write(&file, lines.join("\n"))?;
    hosts.start("router")
}

pub(crate) fn of_router(hosts: &Hosts, name: &str) -> Value {
    hosts.status("router").unwrap()["forwarding"][name].clone()
}

pub(crate) fn problem(hosts: &Hosts) -> String {
    of_router(hosts, "problem")
        .as_str()
        .unwrap_or("")
        .to_owned()
}

pub(crate) fn is_forwarding(hosts: &Hosts, interface: &str) -> bool {
    let all = of_router(hosts, "interfaces");
    let all = all.as_array().unwrap();
    all.iter()
        .any(|i| i["interface"] == interface && i["program"] == "virga")
}

/// Another link of the router: `mc`, to a host of its own.
fn third_link(hosts: &Hosts) {
    let (router, c) = (
        ("router", "mc", "10.78.3.1/24"),
        ("c", "m0", "10.78.3.2/24"),
    );
    hosts.join(router, c).unwrap();
}

/// Sets the MTU of that link.
fn set_mtu(hosts: &Hosts, bytes: &str) {
    for (host, interface) in [("router", "mc"), ("c", "m0")] {
        let set = ["link", "set", "dev", interface, "mtu", bytes];
        hosts.ip(host, &set).unwrap();
    }
}

/// Puts on an interface of the router a program that is not its own.
fn take(hosts: &Hosts, interface: &str) {
    let pin = Path::new("/sys/fs/bpf/virga").join(hosts.node_name("a"));
    let pin = pin.join("programs/virga_pass");
    let pin = pin.to_string_lossy();
    let take = ["link", "set", "dev", interface, "xdpdrv", "pinned", &pin];
    hosts.ip("router", &take).unwrap();
}

/// The stage with events under way; no restart may cost one.
async fn busy_line() -> (Hosts, Sink, JoinHandle<u64>) {
    let mut hosts = line("native", &V4);
    hosts.add("c").unwrap();
    let sink = Sink::subscribe(&hosts, LOSSY).await;
    let published = publishing(&hosts, LOSSY, 1_000, Duration::from_secs(7));
    tokio::time::sleep(Duration::from_millis(500)).await;
    (hosts, sink, published)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_node_starts_without_an_interface_and_takes_it_when_it_comes() {
    for mode in ["native", "auto"] {
        let (mut hosts, sink, published) = busy_line().await;
        restart(&mut hosts, mode, "\"ma\", \"mb\", \"mc\"").unwrap();
        assert_eq!(of_router(&hosts, "mode"), "native");
        let told = problem(&hosts);
        assert!(told.contains("interface mc does not exist"), "{told}");
        assert!(is_forwarding(&hosts, "ma") && is_forwarding(&hosts, "mb"));
        // What an operator asks for is done and remembered all the same.
        let (name, socket) = (hosts.node_name("router"), hosts.socket("router"));
        let socket = socket.to_string_lossy();
        let up = ["node", "link", &name, "a", "up", "--socket", &socket];
        let up = hosts.run("router", &virga().to_string_lossy(), &up);
        up.expect("an interface that is away keeps nothing else from being applied");
        third_link(&hosts);
        assert!(
            eventually(|| is_forwarding(&hosts, "mc")),
            "{}",
            hosts.log("router")
        );
        assert!(
            eventually(|| problem(&hosts).is_empty()),
            "{}",
            problem(&hosts)
        );
        hosts
            .ip("router", &["link", "delete", "dev", "mc"])
            .unwrap();
        assert!(eventually(|| problem(&hosts).contains("mc does not exist")));
        assert_complete(&sink.numbers().await, published.await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn an_interface_that_refuses_costs_the_others_nothing() {
    let (mut hosts, sink, published) = busy_line().await;
    third_link(&hosts);
    set_mtu(&hosts, "9000");
    restart(&mut hosts, "auto", "\"ma\", \"mb\", \"mc\"").unwrap();
    let told = problem(&hosts);
    assert!(
        told.contains("cannot attach to mc") && told.contains("9000"),
        "{told}"
    );
    assert!(is_forwarding(&hosts, "ma") && is_forwarding(&hosts, "mb"));
    set_mtu(&hosts, "1500");
    assert!(
        eventually(|| is_forwarding(&hosts, "mc")),
        "{}",
        problem(&hosts)
    );
    assert!(
        eventually(|| problem(&hosts).is_empty()),
        "{}",
        problem(&hosts)
    );
    assert_complete(&sink.numbers().await, published.await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn what_comes_in_where_another_program_runs_is_forwarded_in_user_space() {
    let mut hosts = line("native", &V4);
    hosts.stop("router").unwrap();
    let name = hosts.node_name("router");
    let detach = ["node", "detach", &name];
    hosts
        .run("router", &virga().to_string_lossy(), &detach)
        .unwrap();
    take(&hosts, "mb");
    restart(&mut hosts, "native", "\"ma\", \"mb\"").unwrap();
    let told = problem(&hosts);
    assert!(told.contains("another XDP program is attached"), "{told}");
    assert!(is_forwarding(&hosts, "ma") && !is_forwarding(&hosts, "mb"));
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let count = publish(&hosts, RELIABLE, 200, Duration::from_secs(1)).await;
    assert_complete(&sink.numbers().await, count);
    hosts
        .ip("router", &["link", "set", "dev", "mb", "xdpdrv", "off"])
        .unwrap();
    assert!(
        eventually(|| is_forwarding(&hosts, "mb")),
        "{}",
        problem(&hosts)
    );
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let count = publish(&hosts, RELIABLE, 200, Duration::from_secs(1)).await;
    assert_complete(&sink.numbers().await, count);
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn an_interface_that_refuses_another_mode_keeps_the_earlier_one() {
    let mut hosts = line("generic", &V4);
    hosts.add("c").unwrap();
    third_link(&hosts);
    // Above what native XDP takes.
    set_mtu(&hosts, "9000");
    restart(&mut hosts, "generic", "\"mc\"").unwrap();
    let shown = |hosts: &Hosts| {
        let shown = hosts.run("router", "ip", &["link", "show", "dev", "mc"]);
        String::from_utf8(shown.unwrap().stdout).unwrap()
    };
    assert!(shown(&hosts).contains("xdpgeneric"), "{}", shown(&hosts));
    let refused = restart(&mut hosts, "native", "\"mc\"").unwrap_err();
    assert!(refused.to_string().contains("MTU of 9000"), "{refused}");
    assert!(shown(&hosts).contains("xdpgeneric"), "{}", shown(&hosts));
    restart(&mut hosts, "generic", "\"mc\"").unwrap();
    assert!(is_forwarding(&hosts, "mc"));
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn an_interrupt_at_the_terminal_does_not_reach_what_runs_on_a_host() {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    hosts.add("a").unwrap();
    for mut command in [hosts.command("a", "sleep"), hosts.netns_exec("a", "sleep")] {
        let mut child = command.arg("60").spawn().unwrap();
        let id = i32::try_from(child.id()).unwrap();
        let group = rustix::process::getpgid(rustix::process::Pid::from_raw(id));
        child.kill().unwrap();
        child.wait().unwrap();
        // A terminal's interrupt goes to the group in its foreground: the one that this process is in.
        assert_eq!(group.unwrap().as_raw_nonzero().get(), id);
    }
}

/// NET_ADMIN, NET_RAW, SYS_ADMIN, PERFMON and BPF (linux/capability.h), and of them NET_ADMIN alone.
const STARTING: u64 = 1 << 12 | 1 << 13 | 1 << 21 | 1 << 38 | 1 << 39;
const SERVING: u64 = 1 << 12;

/// What threads of a process may do, of what its start took.
fn capabilities(process: u32) -> Vec<u64> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let all = tasks.filter_map(|task| {
        // A thread that ends meanwhile is none.
        let status = std::fs::read_to_string(task.ok()?.path().join("status")).ok()?;
        let mut lines = status.lines();
        let set = lines.find_map(|line| line.strip_prefix("CapEff:"))?;
        Some(u64::from_str_radix(set.trim(), 16).unwrap() & STARTING)
    });
    all.collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn once_it_is_attached_every_thread_of_a_router_keeps_net_admin_alone() {
    let mut hosts = line("native", &V4);
    let keeps = |hosts: &Hosts, capabilities_kept: u64| {
        eventually(|| {
            // A thread that sleeps gives up when it wakes.
            hosts.status("router").unwrap();
            let all = capabilities(hosts.pid("router").unwrap());
            all.len() > 2 && all.iter().all(|kept| *kept == capabilities_kept)
        })
    };
    let of = |hosts: &Hosts| capabilities(hosts.pid("router").unwrap());
    assert!(keeps(&hosts, SERVING), "{:x?}", of(&hosts));
    // It forwards with what it has kept.
    assert_crosses(&hosts).await;
    restart(&mut hosts, "userspace", "").unwrap();
    assert!(keeps(&hosts, 0), "{:x?}", of(&hosts));
    assert_crosses(&hosts).await;
}

async fn assert_crosses(hosts: &Hosts) {
    let sink = Sink::subscribe(hosts, RELIABLE).await;
    let count = publish(hosts, RELIABLE, 200, Duration::from_secs(1)).await;
    assert_complete(&sink.numbers().await, count);
}
