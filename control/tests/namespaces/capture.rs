//! `virga capture` at a router whose NIC path forwards, drops and delivers: what it tells is what the counters say.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::Duration,
};

use serde_json::Value;
use virga::generate::live::{Generator, Plan, Until};
use virga_ebpf::header::OriginHash;

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

/// In so many looks in a row nothing is new: a machine that is busy lets frames wait for longer than one.
const LOOKS_ALIKE: u32 = 5;

/// What the NIC path counts once it has counted no more of the generator's for a while: frames wait in rings.
fn settled(hosts: &Hosts) -> BTreeMap<String, u64> {
    let mut last = counted(hosts);
    let mut alike = 0;
    while alike < LOOKS_ALIKE {
        thread::sleep(Duration::from_millis(100));
        let now = counted(hosts);
        let is_alike = GENERATED.iter().all(|name| now[*name] == last[*name]);
        alike = if is_alike { alike + 1 } else { 0 };
        last = now;
    }
    last
}

/// `virga` at the router, its output and its words in files.
fn virga_at_router(hosts: &Hosts, arguments: &[&str]) -> (Child, PathBuf) {
    let out = hosts.socket("router").with_extension("capture");
    let file = fs::File::create(&out).unwrap();
    let said = fs::File::create(out.with_extension("said")).unwrap();
    let child = hosts
        .command("router", &virga().to_string_lossy())
        .args(arguments)
        .arg("--socket")
        .arg(hosts.socket("router"))
        .stdout(file)
        .stderr(said)
        .spawn()
        .unwrap();
    (child, out)
}

/// A capture at the router that has begun, and its output.
fn capture(hosts: &Hosts, more: &[&str]) -> (Child, PathBuf) {
    let (child, out) = virga_at_router(hosts, &[&["capture", "--json"], more].concat());
    assert!(eventually(|| fs::read_to_string(&out)
        .unwrap()
        .contains("begun")));
    (child, out)
}

/// A capture's lines once it was interrupted and has ended.
fn ended(running: (Child, PathBuf)) -> Vec<Value> {
    let id = running.0.id().to_string();
    let told = Command::new("kill").args(["-INT", &id]).status();
    assert!(told.unwrap().success());
    finished(running)
}

/// The lines of what ends by itself.
fn finished((mut child, out): (Child, PathBuf)) -> Vec<Value> {
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
    let plan = Plan {
        flows: 20,
        hostile_permille: 300,
        rate: Some(rate),
        ..plan(hosts, &V4)
    };
    send(hosts, packets, &plan);
}

fn send(hosts: &Hosts, packets: u64, plan: &Plan) {
    hosts
        .inside("a", || {
            let mut generator = Generator::new("m0", plan, &[0]).unwrap();
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

/// Fields of each packet of a capture, as tshark shows them with our dissector, a line each.
fn dissected(hosts: &Hosts, file: &Path, fields: &[&str]) -> Vec<String> {
    let lua = hosts.folder.join("virga.lua");
    let printed = Command::new(virga()).arg("dissector").output().unwrap();
    fs::write(&lua, printed.stdout).unwrap();
    let mut tshark = Command::new("tshark");
    tshark.args(["-X", &format!("lua_script:{}", lua.display())]);
    tshark.args(["-T", "fields"]).arg("-r").arg(file);
    for field in fields {
        tshark.args(["-e", field]);
    }
    let output = tshark.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(str::to_owned).collect()
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn tshark_shows_verdict_reason_and_header_of_what_the_nic_path_decided() {
    if Command::new("tshark").arg("--version").output().is_err() {
        return println!("skipped: there is no tshark to read the capture with");
    }
    let hosts = line(&V4);
    let file = hosts.folder.join("nic.pcapng");
    let asked = "capture --place nic --verdict forward,drop --rate 10000 -w";
    let mut arguments: Vec<&str> = asked.split(' ').collect();
    let path = file.to_string_lossy().into_owned();
    arguments.push(&path);
    let running = virga_at_router(&hosts, &arguments);
    assert!(eventually(|| fs::metadata(&file).is_ok_and(|f| f.len() > 0)));
    let before = counted(&hosts);
    generate(&hosts, 400, 200);
    let after = settled(&hosts);
    let said = running.1.with_extension("said");
    ended(running);

    let fields = ["frame.comment", "frame.interface_name", "_ws.col.Protocol"];
    let header = ["virga.origin_hash", "virga.destination", "udp.dstport"];
    let lines = dissected(&hosts, &file, &[fields, header].concat());
    let [ours, destination] = [
        hosts.host("a").entity.origin.to_string(),
        hosts.host("b").node.id.to_string(),
    ];
    let told = |comment: &str, is_ours: bool| {
        let of_it = lines.iter().filter(|line| {
            let cells: Vec<&str> = line.split('\t').collect();
            let is_header = cells[1..3] == ["ma", "Virga"] && cells[5] == "4783";
            let is_for_b = cells[4] == format!("0x{destination}");
            cells[0] == comment
                && is_header
                && is_for_b
                && (cells[3] == format!("0x{ours}")) == is_ours
        });
        of_it.count() as u64
    };
    // Each by what became of it: of the entity that may, forwarded; of strangers, dropped.
    let forwarded = told("forward redirect, nic", true);
    let dropped = told("drop unauthorised, nic", false);
    assert_eq!(forwarded + dropped, lines.len() as u64, "{lines:?}");
    let said = fs::read_to_string(said).unwrap();
    let is_whole = said.contains(&format!(
        "{0} packets captured of {0} that were asked for",
        lines.len()
    ));
    for (name, told) in [("redirect", forwarded), ("unauthorised", dropped)] {
        let new = after[name] - before[name];
        assert!(told >= 50 && told <= new, "{name}: {told} of {new}");
        // A machine that was busy lets the generator make up for it: those above the rate are counted as missed.
        assert!(!is_whole || told == new, "{name}: {told} of {new}: {said}");
    }
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn drops_of_the_nic_path_are_told_by_origin() {
    let hosts = line(&V4);
    let running = virga_at_router(&hosts, &["drops", "--origins", "--json"]);
    let has_begun = || hosts.log("router").contains("a capture has begun");
    assert!(eventually(has_begun));
    let before = counted(&hosts);
    for (origin, packets) in [(0xaaaa, 300), (0xbbbb, 100)] {
        let plan = Plan {
            origin: OriginHash(origin),
            rate: Some(200),
            burst: Duration::from_millis(1),
            ..plan(&hosts, &V4)
        };
        send(&hosts, packets, &plan);
    }
    let after = settled(&hosts);
    let socket = hosts.socket("router").to_string_lossy().into_owned();
    let stop = ["capture", "--stop", "--socket", &socket];
    hosts
        .run("router", &virga().to_string_lossy(), &stop)
        .unwrap();
    let tables = finished(running);
    let missed: u64 = (tables.iter())
        .map(|table| table["missed"].as_u64().unwrap())
        .sum();
    let rows: Vec<&Value> = (tables.iter())
        .flat_map(|table| table["origins"].as_array().unwrap())
        .filter(|row| row["place"] == "nic" && row["reason"] == "unauthorised")
        .collect();
    let told = |origin: &str| -> u64 {
        let of_it = rows.iter().filter(|row| row["origin"] == origin);
        of_it.map(|row| row["packets"].as_u64().unwrap()).sum()
    };
    let [one, other] = ["000000000000aaaa", "000000000000bbbb"].map(told);
    let new = after["unauthorised"] - before["unauthorised"];
    println!("{one} and {other} of {new}, {missed} missed");
    assert!(one > other && other > 0, "{tables:?}");
    if missed == 0 {
        assert_eq!(one + other, new, "{tables:?}");
        assert!((300..=new - 100).contains(&one), "{tables:?}");
    }
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
    let mut compiler = Command::new("cc");
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
