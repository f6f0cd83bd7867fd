//! Interfaces come and go, addresses change, attaching fails: the node follows, or says why not.

use std::time::Duration;

use crate::{
    hosts::{Hosts, eventually},
    stage::{RELIABLE, Sink, V4, assert_complete, forwarding, line, peer, publish, virga},
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn an_interface_that_disappears_and_returns_is_used_again() {
    let hosts = line("native", &V4);
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let during = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        hosts
            .ip("router", &["link", "delete", "dev", "mb"])
            .unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (b, router) = (
            ("b", "m0", "10.78.2.2/24"),
            ("router", "mb", "10.78.2.1/24"),
        );
        hosts.join(b, router).unwrap();
    };
    let (count, ()) = tokio::join!(
        publish(&hosts, RELIABLE, 200, Duration::from_secs(5)),
        during
    );
    assert_complete(&sink.numbers().await, count);
    let is_used = || {
        let status = hosts.status("router").unwrap();
        let interfaces = status["forwarding"]["interfaces"].as_array().unwrap();
        let mut interfaces = interfaces.iter();
        interfaces.any(|i| i["interface"] == "mb" && i["program"] == "virga")
    };
    assert!(eventually(is_used), "{}", hosts.log("router"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_neighbours_new_link_layer_address_is_followed() {
    let hosts = line("native", &V4);
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let during = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        for (host, interface) in [("b", "m0"), ("a", "m0")] {
            let address = format!("02:00:00:00:77:0{}", if host == "a" { 1 } else { 2 });
            hosts
                .ip(
                    host,
                    &["link", "set", "dev", interface, "address", &address],
                )
                .unwrap();
            hosts
                .run(
                    host,
                    "ping",
                    &[
                        "-c",
                        "1",
                        "-W",
                        "1",
                        if host == "a" {
                            "10.78.1.1"
                        } else {
                            "10.78.2.1"
                        },
                    ],
                )
                .ok();
        }
    };
    let (count, ()) = tokio::join!(
        publish(&hosts, RELIABLE, 200, Duration::from_secs(4)),
        during
    );
    assert_complete(&sink.numbers().await, count);
}

/// A host with one link and one configuration; `prepare` spoils something.
fn alone(mode: &str, interfaces: &str, prepare: impl FnOnce(&Hosts)) -> (Hosts, std::io::Error) {
    let mut hosts = one_link(mode, interfaces);
    prepare(&hosts);
    let error = hosts.start("router").expect_err("it must not start");
    (hosts, error)
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn native_mode_attaches_or_names_the_fix() {
    let (hosts, error) = alone("native", "\"mb\"", |hosts| {
        for (host, interface) in [("router", "mb"), ("b", "m0")] {
            hosts
                .ip(host, &["link", "set", "dev", interface, "mtu", "9000"])
                .unwrap();
        }
    });
    let text = error.to_string();
    assert!(
        text.contains("MTU of 9000") && text.contains("ip link set dev mb mtu"),
        "{text}"
    );
    drop(hosts);

    let (_hosts, error) = alone("native", "\"absent0\"", |_| {});
    assert!(
        error.to_string().contains("absent0 does not exist"),
        "{error}"
    );
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn auto_mode_falls_back_to_user_space_and_says_why() {
    let mut hosts = one_link("auto", "\"mb\"");
    for (host, interface) in [("router", "mb"), ("b", "m0")] {
        hosts
            .ip(host, &["link", "set", "dev", interface, "mtu", "9000"])
            .unwrap();
    }
    hosts.start("router").unwrap();
    let status = hosts.status("router").unwrap();
    assert_eq!(status["forwarding"]["mode"], "userspace");
    assert!(
        status["forwarding"]["why"]
            .as_str()
            .unwrap()
            .contains("9000")
    );
    assert!(eventually(|| hosts.log("router").contains("9000")));
    assert!(is_warned(&hosts, "9000"), "{}", hosts.log("router"));
    // There was no earlier path, and this start left nothing behind.
    let log = hosts.log("router");
    assert!(!log.contains("detached"), "{log}");
}

/// Whether the router has warned that it forwards in user space, with these words.
fn is_warned(hosts: &Hosts, words: &str) -> bool {
    let log = hosts.log("router");
    let mut lines = log.lines();
    lines.any(|l| l.contains("WARN") && l.contains("forwards in user space") && l.contains(words))
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn auto_mode_under_ip_netns_exec_warns_and_names_nsenter() {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    hosts.add("router").unwrap();
    hosts.add("b").unwrap();
    let (router, b) = (
        ("router", "mb", "10.78.2.1/24"),
        ("b", "m0", "10.78.2.2/24"),
    );
    hosts.join(router, b).unwrap();
    let rest = forwarding("auto", "\"mb\"")
        + &peer("b", "address = \"10.78.2.2:4783\"\ninterface = \"absent0\"");
    let config = hosts.configure("router", "0.0.0.0:4783", &rest).unwrap();
    hosts.start_by_netns_exec("router").unwrap();
    let namespace = hosts.host("router").namespace.clone().unwrap();
    let fix = format!("nsenter --net=/run/netns/{namespace} virga node run");
    assert!(is_warned(&hosts, &fix), "{}", hosts.log("router"));
    let log = hosts.log("router");
    let missing = log.lines().find(|line| line.contains("absent0"));
    assert!(missing.is_some_and(|line| line.contains("WARN")), "{log}");
    let why = hosts.status("router").unwrap()["forwarding"]["why"].clone();
    assert!(why.as_str().unwrap().contains(&fix), "{why}");

    let doctor = |command: &mut std::process::Command| {
        let output = command
            .args(["doctor", "--json", "--config"])
            .arg(&config)
            .output()
            .unwrap();
        let checks: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        move |name: &str| checks.iter().find(|c| c["name"] == name).unwrap().clone()
    };
    let program = virga().to_str().unwrap();
    let hidden = doctor(&mut hosts.netns_exec("router", program))("bpffs");
    assert_eq!(hidden["verdict"], "warn");
    assert!(
        hidden["fix"].as_str().unwrap().starts_with(&fix),
        "{hidden}"
    );
    let seen = doctor(&mut hosts.command("router", program));
    assert_eq!(seen("bpffs")["verdict"], "ok");
    let peer = seen("veth peer");
    assert_eq!(peer["verdict"], "info");
    let other = hosts.host("b").namespace.clone().unwrap();
    assert!(
        peer["found"]
            .as_str()
            .unwrap()
            .contains(&format!("of namespace {other}")),
        "{peer}"
    );

    // What the warning says helps.
    hosts.stop("router").unwrap();
    hosts.start("router").unwrap();
    assert_eq!(
        hosts.status("router").unwrap()["forwarding"]["mode"],
        "native"
    );
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn auto_mode_without_its_interface_warns_and_attaches_when_it_comes() {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    hosts.add("router").unwrap();
    hosts
        .configure("router", "0.0.0.0:4783", &forwarding("auto", "\"absent0\""))
        .unwrap();
    hosts.start("router").unwrap();
    assert!(
        is_warned(&hosts, "interface absent0 does not exist"),
        "{}",
        hosts.log("router")
    );
    let mode = |hosts: &Hosts| hosts.status("router").unwrap()["forwarding"]["mode"].clone();
    assert_eq!(mode(&hosts), "userspace");
    hosts.add("b").unwrap();
    let (router, b) = (
        ("router", "absent0", "10.78.2.1/24"),
        ("b", "m0", "10.78.2.2/24"),
    );
    hosts.join(router, b).unwrap();
    assert!(
        eventually(|| mode(&hosts) == "native"),
        "{}",
        hosts.log("router")
    );
}

/// A router with one link, not started.
fn one_link(mode: &str, interfaces: &str) -> Hosts {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    hosts.add("router").unwrap();
    hosts.add("b").unwrap();
    let (router, b) = (
        ("router", "mb", "10.78.2.1/24"),
        ("b", "m0", "10.78.2.2/24"),
    );
    hosts.join(router, b).unwrap();
    let rest = forwarding(mode, interfaces) + &peer("b", "address = \"10.78.2.2:4783\"");
    hosts.configure("router", "0.0.0.0:4783", &rest).unwrap();
    hosts
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn auto_mode_without_rights_falls_back_and_says_why() {
    let mut hosts = one_link("auto", "\"mb\"");
    let none = ["--bounding-set=-all", "--inh-caps=-all"];
    hosts.start_under("router", "setpriv", &none).unwrap();
    let forwarding = hosts.status("router").unwrap()["forwarding"].clone();
    assert_eq!(forwarding["mode"], "userspace");
    let why = forwarding["why"].as_str().unwrap();
    assert!(why.contains("not permitted"), "{why}");
    assert!(
        is_warned(&hosts, "not permitted"),
        "{}",
        hosts.log("router")
    );
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn memlock_that_cannot_be_raised_does_not_matter() {
    let mut hosts = one_link("native", "\"mb\"");
    let limited = ["--memlock=0:0", "setpriv", "--bounding-set=-sys_resource"];
    hosts.start_under("router", "prlimit", &limited).unwrap();
    let forwarding = hosts.status("router").unwrap()["forwarding"].clone();
    assert_eq!(forwarding["mode"], "native");
    assert_eq!(forwarding["interfaces"][0]["program"], "virga");
}
