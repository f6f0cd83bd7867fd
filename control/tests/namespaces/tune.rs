//! `virga tune` over a veth: what it prints, what it changes, and that undoing puts all of it back.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::{hosts::Hosts, stage::virga};

pub(crate) const HOST: &str = "a";

/// A host with a veth pair, v0 and v1.
fn stage() -> Hosts {
    let mut hosts = Hosts::new("virga-tune", virga()).unwrap();
    hosts.add(HOST).unwrap();
    make_pair(&hosts);
    hosts
}

fn make_pair(hosts: &Hosts) {
    for line in [
        "link add v0 type veth peer name v1",
        "link set dev v0 up",
        "link set dev v1 up",
    ] {
        hosts
            .ip(HOST, &line.split(' ').collect::<Vec<_>>())
            .unwrap();
    }
}

/// A program in the namespace, with that namespace's /sys.
fn inside(hosts: &Hosts, program: &str, arguments: &[&str]) -> Output {
    let namespace = hosts.host(HOST).namespace.clone().unwrap();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &namespace, program]);
    command.args(arguments).env("VIRGA", virga());
    command.output().unwrap()
}

fn state(hosts: &Hosts) -> PathBuf {
    hosts.folder.join("tune")
}

/// `hw/tune v0 …`: whether it succeeded, and all that it said.
pub(crate) fn tune(hosts: &Hosts, arguments: &[&str]) -> (bool, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hw/tune");
    let (script, state) = (script.display().to_string(), state(hosts));
    let state = state.display().to_string();
    let arguments = [arguments, &["--state", &state]].concat();
    let output = inside(hosts, &script, &arguments);
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

/// Everything of v0, and of v1, that tuning v0 may touch.
pub(crate) fn settings(hosts: &Hosts) -> String {
    let mut all = String::new();
    for (program, arguments) in [
        ("ethtool", &["-k", "v0"][..]),
        ("ethtool", &["-l", "v0"]),
        ("ethtool", &["-k", "v1"]),
        ("ethtool", &["-l", "v1"]),
        ("ethtool", &["-g", "v0"]),
        ("ethtool", &["-c", "v0"]),
        ("ethtool", &["-x", "v0"]),
        ("cat", &["/sys/class/net/v0/napi_defer_hard_irqs"]),
        ("cat", &["/sys/class/net/v0/gro_flush_timeout"]),
    ] {
        let output = inside(hosts, program, arguments);
        all += &String::from_utf8(output.stdout).unwrap();
    }
    assert!(all.contains("tx-checksum-ip-generic: "), "{all}");
    all
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn a_dry_run_prints_commands_and_reasons_and_changes_nothing() {
    let hosts = stage();
    let before = settings(&hosts);
    let (is_ok, said) = tune(&hosts, &["v0"]);
    assert!(is_ok, "{said}");
    for line in [
        "ethtool -K v0 tx-checksum-ip-generic off",
        "# on -> off: a veth has no hardware to finish checksums",
        "ethtool -K v0 rx-gro on",
        "echo 20000 > /sys/class/net/v0/gro_flush_timeout",
        "none made: add --apply",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert_eq!(settings(&hosts), before);
    assert!(!state(&hosts).exists());
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn what_is_applied_is_undone_to_the_letter() {
    let hosts = stage();
    let before = settings(&hosts);
    let (is_ok, said) = tune(&hosts, &["v0", "--apply"]);
    assert!(is_ok && said.contains("changed; --undo"), "{said}");
    let tuned = settings(&hosts);
    let (_, dry) = tune(&hosts, &["v0"]);
    assert!(dry.ends_with("nothing to change\n"), "{dry}");
    let output = inside(&hosts, "ethtool", &["-k", "v0"]);
    let features = String::from_utf8(output.stdout).unwrap();
    for line in [
        "tx-checksum-ip-generic: off",
        "generic-receive-offload: on",
        "rx-vlan-offload: off",
    ] {
        assert!(features.contains(line), "{line}: {features}");
    }
    let queues = inside(&hosts, "ethtool", &["-l", "v0"]);
    let queues = String::from_utf8(queues.stdout).unwrap();
    let cpus = std::thread::available_parallelism().unwrap();
    let now = queues.split("Current").nth(1).unwrap();
    let receiving = now.lines().find(|line| line.starts_with("RX:")).unwrap();
    assert_eq!(
        receiving.split_whitespace().last(),
        Some(&*cpus.to_string())
    );

    // A second time changes nothing, and forgets nothing.
    let (is_ok, said) = tune(&hosts, &["v0", "--apply"]);
    assert!(is_ok && said.contains("nothing changed"), "{said}");
    assert_eq!(settings(&hosts), tuned);

    let (is_ok, said) = tune(&hosts, &["v0", "--undo"]);
    assert!(is_ok && said.contains("put back"), "{said}");
    assert_eq!(settings(&hosts), before);
    assert!(!state(&hosts).join("v0.json").exists());
    let (is_ok, said) = tune(&hosts, &["v0", "--undo"]);
    assert!(is_ok && said.contains("nothing put back"), "{said}");
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn only_the_groups_that_are_named_are_changed_and_undone_together() {
    let hosts = stage();
    let before = settings(&hosts);
    let (is_ok, said) = tune(&hosts, &["v0", "--apply", "--only", "offloads"]);
    assert!(is_ok && !said.contains("gro_flush_timeout"), "{said}");
    let (is_ok, said) = tune(&hosts, &["v0", "--apply", "--skip", "offloads,queues"]);
    assert!(is_ok && said.contains("gro_flush_timeout"), "{said}");
    assert!(!said.contains("ethtool -L"), "{said}");
    assert_ne!(settings(&hosts), before);
    let (is_ok, said) = tune(&hosts, &["v0", "--undo"]);
    assert!(is_ok, "{said}");
    assert_eq!(settings(&hosts), before);
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn what_cannot_be_meant_is_refused_with_what_to_do() {
    let hosts = stage();
    let refused = |arguments: &[&str], said: &str| {
        let (is_ok, text) = tune(&hosts, arguments);
        assert!(!is_ok && text.contains(said), "{arguments:?}: {text}");
    };
    refused(&["absent0"], "no interface of that name");
    refused(&["../../etc"], "no interface of that name");
    refused(&["v0", "--only", "everything"], "everything");
    refused(&["v0", "--cpus", "8000"], "CPU 8000 is not online");
    refused(&["v0", "--cpus", "one"], "a list such as");
    refused(&["v0", "--apply", "--undo"], "cannot be used with");
    if hosts
        .ip(HOST, &["link", "add", "b0", "type", "bridge"])
        .is_ok()
    {
        refused(&["b0"], "driver bridge runs no XDP programs");
    }
    // With another namespace's /sys, files of an interface of the same name are not touched.
    let mut outside = hosts.command(HOST, &virga().display().to_string());
    let output = outside.args(["tune", "v0"]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("/sys shows another namespace"), "{said}");
    assert!(!said.contains("gro_flush_timeout"), "{said}");

    // A state of a former interface of this name.
    assert!(tune(&hosts, &["v0", "--apply"]).0);
    hosts.ip(HOST, &["link", "delete", "dev", "v0"]).unwrap();
    make_pair(&hosts);
    let anew = settings(&hosts);
    refused(&["v0", "--apply"], "virga tune v0 --undo");
    let (is_ok, said) = tune(&hosts, &["v0", "--undo"]);
    assert!(is_ok && said.contains("went with the interface"), "{said}");
    assert_eq!(settings(&hosts), anew);
    assert!(tune(&hosts, &["v0", "--apply"]).0);
    std::fs::write(state(&hosts).join("v0.json"), "torn").unwrap();
    refused(&["v0", "--undo"], "v0.json cannot be used");
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn a_setting_that_the_card_refuses_is_told_of_and_the_rest_is_done() {
    let hosts = stage();
    let before = settings(&hosts);
    let (is_ok, said) = tune(&hosts, &["v0", "--apply", "--steer", "1"]);
    assert!(!is_ok, "{said}");
    let refused = "virga: refused: ethtool -N v0 flow-type udp6 dst-port 4783 action 1: ";
    assert!(said.contains(refused), "{said}");
    assert!(said.contains("changed; --undo"), "{said}");
    let kept = std::fs::read_to_string(state(&hosts).join("v0.json")).unwrap();
    assert!(!kept.contains("steer"), "{kept}");
    assert_ne!(settings(&hosts), before);
    assert!(tune(&hosts, &["v0", "--undo"]).0);
    assert_eq!(settings(&hosts), before);
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn what_was_changed_elsewhere_or_before_a_boot_is_not_taken_for_this_interface() {
    let hosts = stage();
    let before = settings(&hosts);
    assert!(tune(&hosts, &["v0", "--apply"]).0);
    let file = state(&hosts).join("v0.json");
    let kept = std::fs::read_to_string(&file).unwrap();
    // This machine's own namespace has no v0, and is another than the one that the state is of.
    let folder = state(&hosts).display().to_string();
    let outside = |more: &str| {
        let mut command = Command::new(virga());
        let output = command
            .args(["tune", "v0", more, "--state", &folder])
            .output();
        let output = output.unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), told)
    };
    let (code, told) = outside("--undo");
    assert!(
        code == Some(2) && told.contains("another network namespace"),
        "{told}"
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), kept);
    let other = hosts.folder.join("other").display().to_string();
    let mut command = Command::new(virga());
    let output = command
        .args(["tune", "virga-none", "--undo", "--state", &other])
        .output();
    let told = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(told.contains("no interface of that name"), "{told}");

    // Another boot has undone everything.
    let mut booted: serde_json::Value = serde_json::from_str(&kept).unwrap();
    booted["of"]["boot"] = "another".into();
    std::fs::write(&file, booted.to_string()).unwrap();
    let tuned = settings(&hosts);
    let (is_ok, said) = tune(&hosts, &["v0"]);
    assert!(is_ok && said.contains("booted"), "{said}");
    let (is_ok, said) = tune(&hosts, &["v0", "--undo"]);
    assert!(
        is_ok && said.contains("booted") && said.contains("nothing put back"),
        "{said}"
    );
    assert!(!file.exists());
    assert_eq!(settings(&hosts), tuned);

    std::fs::write(&file, &kept).unwrap();
    assert!(tune(&hosts, &["v0", "--undo"]).0);
    assert_eq!(settings(&hosts), before);
    std::fs::write(&file, &kept).unwrap();
    let (is_ok, said) = tune(&hosts, &["v0", "--forget"]);
    assert!(
        is_ok && said.contains("forgotten") && !file.exists(),
        "{said}"
    );
    assert_eq!(settings(&hosts), before);
}
