//! `virga capture` at a router whose NIC path forwards, drops and delivers: what it tells is what the counters say.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;
use virga::generate::live::{Generator, Until};

use crate::{
    hosts::{Hosts, eventually},
    stage::{V4, virga},
    traffic::{line, plan},
};

/// The programs on the router's interfaces.
fn programs(hosts: &Hosts) -> Vec<String> {
    let status = hosts.status("router").unwrap();
    let interfaces = status["forwarding"]["interfaces"].as_array().unwrap();
    let program = |one: &Value| one["program"].as_str().unwrap().to_owned();
    interfaces.iter().map(program).collect()
}

/// What the NIC path counts, by name.
fn counted(hosts: &Hosts) -> BTreeMap<String, u64> {
    let nic = &hosts.status("router").unwrap()["forwarding"]["nic"];
    let each = ["outcomes", "drops"].map(|kind| nic[kind].as_object().unwrap().clone());
    let packets = |(name, count): (String, Value)| (name, count["packets"].as_u64().unwrap());
    each.into_iter().flatten().map(packets).collect()
}

/// What becomes of the generator's packets.
const GENERATED: [&str; 2] = ["redirect", "unauthorised"];

/// What the NIC path counts once it has counted no more of the generator's for a while: frames wait in rings.
fn settled(hosts: &Hosts) -> BTreeMap<String, u64> {
    let mut last = counted(hosts);
    loop {
        thread::sleep(Duration::from_millis(100));
        let now = counted(hosts);
        if GENERATED.iter().all(|name| now[*name] == last[*name]) {
            return now;
        }
        last = now;
    }
}

/// A capture at the router that has begun, and its output.
fn capture(hosts: &Hosts, more: &[&str]) -> (Child, PathBuf) {
    let out = hosts.socket("router").with_extension("capture");
    let file = fs::File::create(&out).unwrap();
    let child = hosts
        .command("router", &virga().to_string_lossy())
        .args(["capture", "--json"])
        .args(more)
        .arg("--socket")
        .arg(hosts.socket("router"))
        .stdout(file)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(eventually(|| fs::read_to_string(&out)
        .unwrap()
        .contains("begun")));
    (child, out)
}

/// A capture's lines once it was interrupted and has ended.
fn ended((mut child, out): (Child, PathBuf)) -> Vec<Value> {
    let id = child.id().to_string();
    let told = std::process::Command::new("kill")
        .args(["-INT", &id])
        .status();
    assert!(told.unwrap().success());
    let mut status = None;
    let has_ended = eventually(|| {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    if !has_ended {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
    let lines = fs::read_to_string(out).unwrap();
    let line = |line: &str| serde_json::from_str(line).unwrap();
    lines.lines().map(line).collect()
}

fn generate(hosts: &Hosts, packets: u64, rate: u64) {
    let plan = virga::generate::live::Plan {
        flows: 20,
        hostile_permille: 300,
        rate: Some(rate),
        ..plan(hosts, &V4)
    };
    hosts
        .inside("a", || {
            let mut generator = Generator::new("m0", &plan, &[0]).unwrap();
            generator.run(Until::Count(packets)).unwrap();
        })
        .unwrap();
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn what_a_capture_tells_is_what_the_nic_path_counts() {
    let hosts = line(&V4);
    assert!(programs(&hosts).contains(&"virga".to_owned()));
    let all = "forward,local,echo,drop,pass";
    let running = capture(
        &hosts,
        &["--place", "nic", "--verdict", all, "--rate", "10000"],
    );
    let while_on = programs(&hosts);
    assert!(while_on.contains(&"virga_sample".to_owned()));
    assert!(!while_on.contains(&"virga".to_owned()), "{while_on:?}");
    let before = counted(&hosts);
    generate(&hosts, 3_000, 2_000);
    let after = settled(&hosts);
    let lines = ended(running);

    let mut told: BTreeMap<String, u64> = BTreeMap::new();
    for packet in lines.iter().filter(|line| line["kind"] == "packet") {
        let reason = packet["reason"].as_str().unwrap().to_owned();
        *told.entry(reason).or_default() += 1;
        let is_mesh = packet["header"].is_object();
        // Ethernet, IPv4, UDP and the mesh's header, and nothing after it.
        assert!(!is_mesh || packet["data"].as_str().unwrap().len() == 2 * (14 + 20 + 8 + 64));
    }
    let last = lines.last().unwrap();
    let count = |name: &str| last["counts"][name].as_u64().unwrap();
    println!("{told:?}\n{last}");
    assert_eq!(count("told"), told.values().sum::<u64>());
    let missed = count("over_rate") + count("no_room") + count("unread");
    assert_eq!(count("matched"), count("told") + missed);
    for name in GENERATED {
        let new = after[name] - before[name];
        let told = told.get(name).copied().unwrap_or(0);
        assert!(new >= 800, "{name}: {new}");
        // A machine that had no time for the generator lets it make up for it: those above the rate are counted.
        assert!(
            told <= new && told + missed >= new,
            "{name}: {told} of {new}"
        );
        if missed == 0 {
            assert_eq!(told, new, "{name}");
        }
    }
    assert!(
        programs(&hosts).contains(&"virga".to_owned()),
        "the usual one again"
    );
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn a_capture_whose_asker_or_daemon_is_killed_leaves_the_usual_program() {
    let mut hosts = line(&V4);
    let is_usual = |hosts: &Hosts| {
        let programs = programs(hosts);
        programs.contains(&"virga".to_owned()) && !programs.contains(&"virga_sample".to_owned())
    };
    let (mut child, _) = capture(&hosts, &["--reason", "unauthorised"]);
    assert!(!is_usual(&hosts));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(eventually(|| is_usual(&hosts)), "the asker was killed");

    let (mut child, _) = capture(&hosts, &["--reason", "unauthorised"]);
    assert!(!is_usual(&hosts));
    let before = counted(&hosts)["redirect"];
    hosts.kill("router").unwrap();
    child.wait().unwrap();
    generate(&hosts, 1_000, 5_000);
    hosts.start("router").unwrap();
    assert!(is_usual(&hosts), "the next daemon has put it back");
    // The counters are pinned, and go on.
    let through = counted(&hosts)["redirect"] - before;
    assert!(through >= 500, "no packet waits for a daemon: {through}");
}

/// What the kernel refuses where it refuses the program that takes samples.
const REFUSED: &str = "the NIC path shows no packets to captures: the kernel's verifier refuses program `virga_sample`";

/// A library that has the kernel refuse that program and no other to whoever is started with it.
const REFUSING: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/bpf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
long syscall(long number, ...) {
    static long (*next)(long, ...);
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_bpf && a[0] == BPF_PROG_LOAD) {
        const union bpf_attr *attr = (const union bpf_attr *)a[1];
        if (!strncmp(attr->prog_name, "virga_sample", BPF_OBJ_NAME_LEN)) {
            errno = EINVAL;
            return -1;
        }
    }
    if (!next) next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
"#;

/// `virga` at the router for a second: what it prints, and what it says.
fn for_a_second(hosts: &Hosts, arguments: &[&str]) -> (String, String) {
    let output = hosts
        .command("router", &virga().to_string_lossy())
        .args(arguments)
        .args(["--seconds", "1", "--socket"])
        .arg(hosts.socket("router"))
        .output()
        .unwrap();
    let [out, said] = [output.stdout, output.stderr].map(|all| String::from_utf8(all).unwrap());
    assert!(output.status.success(), "{said}");
    (out, said)
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn who_asks_where_the_nic_path_cannot_be_sampled_is_told_why() {
    let mut hosts = line(&V4);
    let [source, library] = ["refusing.c", "refusing.so"].map(|name| hosts.folder.join(name));
    fs::write(&source, REFUSING).unwrap();
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library);
    let compiled = compiler.arg(&source).arg("-ldl").status();
    assert!(compiled.unwrap().success());
    hosts.stop("router").unwrap();
    let preload = format!("LD_PRELOAD={}", library.display());
    hosts.start_under("router", "env", &[&preload]).unwrap();
    assert!(programs(&hosts).contains(&"virga".to_owned()));

    let (lines, said) = for_a_second(&hosts, &["capture", "--json"]);
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["nic"].as_array().unwrap().len(), 0, "{first}");
    assert_eq!(first["userspace"], true, "{first}");
    let why = first["nic_refused"].as_str().unwrap();
    assert!(why.starts_with(REFUSED), "{why}");
    assert!(said.lines().any(|line| line == why), "{said}");
    let file = hosts.folder.join("headers.pcapng");
    for_a_second(&hosts, &["capture", "-w", &file.to_string_lossy()]);
    let bytes = fs::read(&file).unwrap();
    assert!(bytes.windows(why.len()).any(|part| part == why.as_bytes()));
    let (_, said) = for_a_second(&hosts, &["drops", "--origins"]);
    assert!(said.lines().any(|line| line == why), "{said}");

    // Of the NIC path alone there is nothing to begin.
    let refused = hosts
        .command("router", &virga().to_string_lossy())
        .args(["capture", "--place", "nic", "--socket"])
        .arg(hosts.socket("router"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains(REFUSED),
        "{said}"
    );
}
