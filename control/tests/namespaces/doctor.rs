//! `virga doctor` over the interfaces that a namespace can have: a veth, a macvlan and a bridge.

use serde_json::Value;

use crate::{hosts::Hosts, stage::virga};

const HOST: &str = "a";

/// A host with a veth pair, v0 and v1, and what can be had of a bridge b0 and a macvlan m0 on v0.
fn stage() -> (Hosts, Vec<&'static str>) {
    let mut hosts = Hosts::new("virga-doctor", virga()).unwrap();
    hosts.add(HOST).unwrap();
    let ip = |line: &str| hosts.ip(HOST, &line.split(' ').collect::<Vec<_>>());
    ip("link add v0 type veth peer name v1").unwrap();
    let mut there = vec!["v0"];
    for (name, line) in [
        ("b0", "link add b0 type bridge"),
        ("m0", "link add m0 link v0 type macvlan"),
    ] {
        match ip(line) {
            Ok(()) => there.push(name),
            Err(error) => eprintln!("skipped {name}: this kernel refuses `ip {line}`: {error}"),
        }
    }
    for name in there.iter().chain(&["v1"]) {
        ip(&format!("link set dev {name} up")).unwrap();
    }
    (hosts, there)
}

/// The checks of some interfaces.
fn doctor(hosts: &Hosts, names: &[&str]) -> Vec<Value> {
    let mut command = hosts.command(HOST, &virga().display().to_string());
    command.args(["doctor", "--json"]);
    for name in names {
        command.args(["--interface", name]);
    }
    let output = command.output().unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Verdict and finding of one check.
fn check(checks: &[Value], interface: &str, name: &str) -> (String, String) {
    let found = checks
        .iter()
        .find(|check| check["interface"] == interface && check["name"] == name)
        .unwrap_or_else(|| panic!("no {name} of {interface}: {checks:#?}"));
    let text = |field: &str| found[field].as_str().unwrap().to_owned();
    (text("verdict"), text("found"))
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn doctor_knows_a_veth_a_macvlan_and_a_bridge() {
    let (hosts, there) = stage();
    let checks = doctor(&hosts, &there);
    for (name, driver) in [("b0", "bridge"), ("m0", "macvlan")] {
        if !there.contains(&name) {
            continue;
        }
        assert_eq!(check(&checks, name, "up").0, "ok");
        let native = check(&checks, name, "native XDP");
        assert_eq!(native, ("fail".into(), format!("driver {driver} has none")));
        let (verdict, found) = check(&checks, name, "redirect target");
        assert_eq!(verdict, "fail");
        let said = format!("driver {driver} takes none");
        assert!(found.contains(&said), "{found}");
    }
    let (verdict, found) = check(&checks, "v0", "native XDP");
    assert_eq!(verdict, "ok", "{found}");
    assert!(found.contains("driver veth"), "{found}");
    let (verdict, found) = check(&checks, "v0", "MTU");
    assert_eq!(verdict, "ok");
    assert!(found.contains("at most 3498"), "{found}");
    // Nothing readies the other end for redirected frames, and checksums are left unfinished.
    assert_eq!(check(&checks, "v0", "veth peer").0, "fail");
    assert_eq!(check(&checks, "v0", "TX checksums").0, "warn");
    assert!(check(&checks, "v0", "VLAN tags").1.contains("v0 rxvlan"));
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn what_doctor_says_of_a_veth_follows_its_settings() {
    let (hosts, _) = stage();
    for arguments in [["-K", "v1", "gro", "on"], ["-K", "v0", "tx", "off"]] {
        hosts.run(HOST, "ethtool", &arguments).unwrap();
    }
    let checks = doctor(&hosts, &["v0"]);
    assert_eq!(check(&checks, "v0", "veth peer").0, "ok");
    assert_eq!(check(&checks, "v0", "TX checksums").0, "ok");
    assert_eq!(
        check(&checks, "v0", "redirect target"),
        ("ok".into(), "takes redirected frames".into())
    );
    for name in ["v0", "v1"] {
        hosts
            .ip(HOST, &["link", "set", "dev", name, "mtu", "9000"])
            .unwrap();
    }
    let checks = doctor(&hosts, &["v0"]);
    assert_eq!(check(&checks, "v0", "MTU").0, "fail");
}
