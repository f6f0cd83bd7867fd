//! A router with virtio NICs and native XDP, in the machine that `scripts/kernels` boots: two cables, each
//! between two NICs. There the kernel has what others leave out: netem, and pktgen with its scripts.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use virga_ebpf::reason::Reason;

use crate::{
    hosts::{Hosts, eventually},
    stage::{
        Addresses, End, LOSSY, RELIABLE, Sink, V4, V6, assert_complete, dropped, forwarded,
        line_over, number, publish, virga,
    },
    transit::crosses_in_the_nic,
    tune,
};

/// The NICs' addresses but for the last digit; 0 and 1, and 2 and 3, are at the same cable.
const MAC: &str = "52:54:00:56:00:0";
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/pktgen");
/// Flows that two queues are met by; of four queues, one in a million times not.
const FLOWS_MAX: u32 = 10;
/// Runs on an unreliable channel, of hundreds of packets of which each twentieth is lost.
const LOSSY_RUNS_MAX: u32 = 5;
/// Packets that one run of a script sends.
const PACKETS: u64 = 1_000;
/// So far apart that no queue on the way overflows.
const PACKET_NS: &str = "500000";

/// a -- router -- b with a NIC at each end; `None` with the reason printed where there are no such NICs.
fn machine(addresses: &Addresses, keys: &str) -> Option<Hosts> {
    is_guest().then(|| {
        line_over("native", addresses, keys, |hosts, edge, router| {
            let first = if edge.0 == "a" { 0 } else { 2 };
            plug(hosts, first, edge);
            plug(hosts, first + 1, router);
        })
    })
}

fn is_guest() -> bool {
    let is_guest = std::env::var_os("VIRGA_GUEST").is_some();
    if !is_guest {
        println!("skipped: this is not the machine that scripts/kernels boots");
    }
    is_guest
}

/// Gives a NIC to a host.
fn plug(hosts: &Hosts, nic: u32, (host, interface, address): End) {
    let mut name = None;
    // It comes back from the last test's namespace a while after that is gone.
    let is_here = eventually(|| {
        name = interface_of(&format!("{MAC}{nic}"));
        name.is_some()
    });
    assert!(is_here, "the machine has NIC {nic}");
    let namespace = hosts.host(host).namespace.as_deref().unwrap();
    let ip = |args: &[&str]| {
        let done = Command::new("ip").args(args).output();
        let done = done.unwrap();
        assert!(done.status.success(), "ip {args:?}: {done:?}");
    };
    let name = name.unwrap();
    ip(&[
        "link", "set", "dev", &name, "netns", namespace, "name", interface,
    ]);
    let there = |args: &[&str]| hosts.ip(host, args).unwrap();
    there(&["address", "add", address, "dev", interface, "nodad"]);
    there(&["link", "set", "dev", interface, "up"]);
}

/// The interface of this namespace that has a MAC address.
fn interface_of(mac: &str) -> Option<String> {
    let interfaces = fs::read_dir("/sys/class/net").unwrap().flatten();
    interfaces
        .filter(|i| fs::read_to_string(i.path().join("address")).is_ok_and(|a| a.trim() == mac))
        .map(|i| i.file_name().to_string_lossy().into_owned())
        .next()
}

/// What each receive queue of a NIC counts under a name.
fn queues(hosts: &Hosts, host: &str, interface: &str, counter: &str) -> Vec<u64> {
    let output = hosts.run(host, "ethtool", &["-S", interface]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let of_queue = |line: &str| {
        let (name, value) = line.trim().split_once(": ")?;
        let is_one = name.starts_with("rx") && name.contains(|c: char| c.is_ascii_digit());
        (is_one && name.ends_with(counter)).then(|| value.parse().unwrap())
    };
    let counts: Vec<u64> = text.lines().filter_map(of_queue).collect();
    assert!(!counts.is_empty(), "no {counter} in {text}");
    counts
}

/// Whether several queues counted something since `before`; a NIC that has but one has no more.
fn is_spread(before: &[u64], after: &[u64]) -> bool {
    let busy = before.iter().zip(after).filter(|(b, a)| a > b).count();
    println!("{busy} of {} receive queues took part", after.len());
    busy >= after.len().min(2)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the machine that scripts/kernels boots"]
async fn events_and_flows_cross_two_virtio_nics_natively() {
    // Generated packets have no link tags, and the router's own are counted.
    let keys = "link_tags = \"off\"\nkeepalive_ms = 0\n";
    let Some(hosts) = machine(&V4, keys) else {
        return;
    };
    let status = hosts.status("router").unwrap();
    assert_eq!(status["forwarding"]["mode"], "native");
    crosses_in_the_nic(&hosts).await;
    // Sessions have ports of their own, so that a NIC spreads them.
    let before = queues(&hosts, "router", "ma", "xdp_redirects");
    let is_met = || is_spread(&before, &queues(&hosts, "router", "ma", "xdp_redirects"));
    let release = rustix::system::uname();
    if release.release().to_bytes().starts_with(b"6.1.") {
        println!(
            "skipped: live frames, which Linux 6.1 leaves longer each time that virtio_net sent them"
        );
        let each = ["--rate", "200"];
        let is_met = (0..FLOWS_MAX).any(|_| {
            // Packets are duplicates of the last flow's until those are forgotten.
            std::thread::sleep(Duration::from_millis(1_500));
            flow(&hosts, &each);
            is_met()
        });
        assert!(is_met);
    } else {
        let all = ["--xdp", "--interface", "m0", "--flows", "64"];
        flow(
            &hosts,
            &[&all[..], &["--rate", "1000", "--count", "4000"]].concat(),
        );
        assert!(is_met());
    }
    // Copied by the kernel, which damages none of these; a queue a CPU.
    let queues = queues(&hosts, "a", "m0", "xdp_drops").len();
    let cores = queues.min(2).to_string();
    let all = [
        "--af-xdp",
        "--interface",
        "m0",
        "--flows",
        "64",
        "--cores",
        &cores,
    ];
    flow(
        &hosts,
        &[&all[..], &["--rate", "1000", "--count", "2000"]].concat(),
    );
}

/// Authorised packets from a to b, all of which the router forwards.
fn flow(hosts: &Hosts, how: &[&str]) {
    let (from, b) = (forwarded(hosts, "router"), hosts.host("b").node.id);
    let (origin, b) = (hosts.host("a").entity.origin.to_string(), b.to_string());
    let fixed = ["gen", "--json", "--to", "10.78.1.1:4783", "--channel", "0"];
    let what = ["--destination", &b, "--origin", &origin];
    let arguments = [&fixed[..], &what, how].concat();
    let output = hosts.run("a", &virga().to_string_lossy(), &arguments);
    let report: serde_json::Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    let sent = report["sent"].as_u64().unwrap();
    let count = || forwarded(hosts, "router") - from;
    assert!(eventually(|| count() >= sent), "{} of {sent}", count());
    println!("{sent} generated packets, all forwarded");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the machine that scripts/kernels boots"]
async fn a_reliable_channel_loses_nothing_on_links_that_lose_delay_and_reorder() {
    let Some(hosts) = machine(&V4, "") else {
        return;
    };
    let netem = "qdisc add dev m0 root netem loss 5% delay 10ms 3ms";
    let netem: Vec<&str> = netem.split(' ').collect();
    for host in ["a", "b"] {
        hosts.run(host, "tc", &netem).unwrap();
    }
    let from = forwarded(&hosts, "router");
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let count = publish(&hosts, RELIABLE, 300, Duration::from_secs(3)).await;
    assert_complete(&sink.numbers().await, count);
    let lost = ["a", "b"].map(|host| netem_drops(&hosts, host));
    assert!(lost.iter().all(|lost| *lost > 0), "{lost:?}");
    let packets = forwarded(&hosts, "router") - from;
    println!(
        "{count} events arrived, in order; {lost:?} packets were lost, {packets} forwarded natively"
    );

    // Several events may share a packet, so that now and then a run loses none.
    for _ in 0..LOSSY_RUNS_MAX {
        let (arrived, count) = lossy(&hosts).await;
        println!("{arrived} of {count} events arrived on the unreliable channel");
        assert!(arrived > count / 2, "{arrived} of {count}");
        if arrived < count {
            return;
        }
    }
    panic!("{LOSSY_RUNS_MAX} runs without a loss: the unreliable channel sends again what is lost");
}

/// How many of the events of an unreliable channel arrived, each once, and how many there were.
async fn lossy(hosts: &Hosts) -> (u64, u64) {
    let sink = Sink::subscribe(hosts, LOSSY).await;
    let count = publish(hosts, LOSSY, 300, Duration::from_secs(2)).await;
    let numbers = sink.numbers().await;
    assert!(
        numbers.is_sorted_by(|a, b| a < b),
        "none arrives twice: {numbers:?}"
    );
    (numbers.len() as u64, count)
}

/// Packets that netem threw away at a host.
fn netem_drops(hosts: &Hosts, host: &str) -> u64 {
    let output = hosts.run(host, "tc", &["-s", "qdisc", "show", "dev", "m0"]);
    let text = String::from_utf8_lossy(&output.unwrap().stdout).into_owned();
    let (_, rest) = text.split_once("dropped ").unwrap();
    rest.split(',').next().unwrap().parse().unwrap()
}

/// Runs a pktgen script in a's namespace, towards the router. Returns what it printed, or its words of
/// failure.
fn pktgen(hosts: &Hosts, script: &str, arguments: &str) -> Result<String, String> {
    let fixed = ["-i", "m0", "-d", V4.router_a];
    let arguments: Vec<&str> = fixed
        .into_iter()
        .chain(arguments.split_whitespace())
        .collect();
    match hosts.run("a", &format!("{SCRIPTS}/{script}"), &arguments) {
        Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
#[ignore = "needs the machine that scripts/kernels boots"]
fn every_packet_of_the_pktgen_scripts_meets_its_counter() {
    // What listens on IPv6 takes IPv4 as well.
    let Some(hosts) = machine(&V6, "") else {
        return;
    };
    for (host, address, interface) in [
        ("a", "10.78.1.2/24", "m0"),
        ("router", "10.78.1.1/24", "ma"),
    ] {
        let add = ["address", "add", address, "dev", interface];
        hosts.ip(host, &add).unwrap();
    }
    let cases = [
        ("-d fd78:1::1 -s 142 -k", Reason::Magic),
        ("-s 122 -k", Reason::Magic),
        ("-s 122", Reason::ZeroChecksum),
        ("-s 60 -k", Reason::Truncated),
        ("-s 1514 -k", Reason::Magic),
    ];
    for (arguments, reason) in cases {
        let before = dropped(&hosts, "router", reason.name());
        let paced = format!("-n {PACKETS} -w {PACKET_NS} {arguments}");
        let said = pktgen(&hosts, "pktgen_single.sh", &paced).unwrap();
        assert!(
            said.contains(&format!("total: {PACKETS} packets")),
            "{said}"
        );
        let counted = || dropped(&hosts, "router", reason.name()) - before;
        let is_all = eventually(|| counted() == PACKETS);
        assert!(is_all, "{arguments}: {} of {PACKETS}", counted());
        println!(
            "pktgen_single.sh {arguments}: {PACKETS} packets, each counted as {}",
            reason.name()
        );
    }
    let passed = || number(&hosts, "router", "/forwarding/nic/outcomes/pass/packets");
    let before = passed();
    pktgen(
        &hosts,
        "pktgen_single.sh",
        &format!("-n {PACKETS} -w {PACKET_NS} -p 9"),
    )
    .unwrap();
    assert!(
        eventually(|| passed() >= before + PACKETS),
        "another port passes"
    );
}

#[test]
#[ignore = "needs the machine that scripts/kernels boots"]
fn pktgen_of_several_threads_reaches_several_queues() {
    let Some(hosts) = machine(&V4, "") else {
        return;
    };
    let magic = || dropped(&hosts, "router", Reason::Magic.name());
    let queues = || queues(&hosts, "router", "ma", "xdp_drops");
    let (before, queues_before) = (magic(), queues());
    let paced = format!("-t 2 -k -n {PACKETS} -w {PACKET_NS}");
    let said = pktgen(&hosts, "pktgen_multi.sh", &paced).unwrap();
    assert!(
        said.contains(&format!("CPU 1: {PACKETS} packets")),
        "{said}"
    );
    let counted = || magic() - before;
    assert!(
        eventually(|| counted() == 2 * PACKETS),
        "{} of {}",
        counted(),
        2 * PACKETS
    );
    assert!(is_spread(&queues_before, &queues()));

    // As fast as it goes, the cable loses some. What arrives is counted, and nothing else is.
    let before = magic();
    let said = pktgen(&hosts, "pktgen_multi.sh", "-t 2 -k -n 20000 -b 8").unwrap();
    let sent = said.split("total: ").nth(1).unwrap();
    let sent: u64 = sent.split(' ').next().unwrap().parse().unwrap();
    assert!(
        (40_000..40_016).contains(&sent),
        "the last burst goes whole: {said}"
    );
    let counted = || magic() - before;
    assert!(eventually(|| counted() > 0) && counted() <= sent);
    println!("{}; {} counted as magic", said.trim(), counted());
}

/// A pktgen script that sends from two CPUs until it is told not to, and does.
fn endless(hosts: &Hosts) -> Child {
    let arguments = format!("-i m0 -d {} -t 2 -n 0 -w {PACKET_NS}", V4.router_a);
    let zero = || dropped(hosts, "router", Reason::ZeroChecksum.name());
    let before = zero();
    let sender = hosts
        .command("a", &format!("{SCRIPTS}/pktgen_multi.sh"))
        .args(arguments.split(' '))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(eventually(|| zero() > before + 100), "it sends");
    sender
}

fn kill(signal: &str, process: u32) {
    let done = Command::new("kill")
        .args([signal, &process.to_string()])
        .status();
    assert!(done.unwrap().success());
}

#[test]
#[ignore = "needs the machine that scripts/kernels boots"]
fn the_pktgen_scripts_clear_up_and_say_what_is_wrong() {
    let Some(hosts) = machine(&V4, "") else {
        return;
    };
    let zero = || dropped(&hosts, "router", Reason::ZeroChecksum.name());
    for signal in ["-INT", "-TERM", "-HUP"] {
        let mut sender = endless(&hosts);
        kill(signal, sender.id());
        assert!(
            eventually(|| sender.try_wait().unwrap().is_some()),
            "SIG{} ends it",
            &signal[1..]
        );
        let output = sender.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("total: "),
            "{signal}: {said}"
        );
        assert!(
            !fs::exists("/proc/net/pktgen").unwrap(),
            "{signal}: the module is unloaded"
        );
    }
    // One that is killed cannot clear up. Nothing is sent after it, and the next one, of one thread, sends by no other.
    let mut killed = endless(&hosts);
    kill("-KILL", killed.id());
    killed.wait().unwrap();
    let mut last = zero();
    let is_silent = eventually(|| {
        std::thread::sleep(Duration::from_millis(200));
        let before = std::mem::replace(&mut last, zero());
        before == last
    });
    assert!(is_silent, "it sends on after its script was killed");
    let paced = format!("-n {PACKETS} -w {PACKET_NS}");
    let said = pktgen(&hosts, "pktgen_multi.sh", &paced).unwrap();
    assert!(
        said.contains(&format!("total: {PACKETS} packets")),
        "{said}"
    );
    let unloaded = Command::new("modprobe").args(["-r", "pktgen"]).status();
    assert!(unloaded.unwrap().success());

    let refused = |arguments: &str, why: &str| {
        let said = pktgen(&hosts, "pktgen_single.sh", arguments).unwrap_err();
        assert!(said.contains(why), "{arguments}: {said}");
    };
    refused("-i m9", "there is no interface m9");
    refused("-d 10.78.1.99", "nobody at m0 answers for 10.78.1.99");
    refused("-s 20", "-s wants a number from 60");
    refused("-f 7", "there is no CPU 7");
    refused("-m here", "-m wants a MAC address");
    refused("-t 2", "pktgen_multi.sh has more");
    hosts
        .ip("a", &["link", "add", "v0", "up", "type", "veth"])
        .unwrap();
    hosts
        .ip("a", &["link", "set", "dev", "veth0", "up"])
        .unwrap();
    let to_veth = "-i v0 -m 02:00:00:00:00:01";
    refused(
        &format!("{to_veth} -c 10"),
        "cannot send a packet more than once",
    );
    hosts
        .ip("a", &["link", "set", "dev", "veth0", "down"])
        .unwrap();
    refused(to_veth, "v0 has no carrier");
    let nobody = [
        "--reuid",
        "65534",
        &format!("{SCRIPTS}/pktgen_single.sh"),
        "-i",
        "m0",
        "-d",
        V4.b,
    ];
    let said = hosts.run("a", "setpriv", &nobody).unwrap_err().to_string();
    assert!(said.contains("root is needed"), "{said}");
    hosts
        .ip("a", &["link", "set", "dev", "m0", "down"])
        .unwrap();
    refused("", "m0 is down");
}

#[test]
#[ignore = "needs the machine that scripts/kernels boots"]
fn what_is_tuned_on_a_virtio_nic_is_undone_to_the_letter() {
    if !is_guest() {
        return;
    }
    let mut hosts = Hosts::new("virga-tune", virga()).unwrap();
    hosts.add(tune::HOST).unwrap();
    plug(&hosts, 0, (tune::HOST, "v0", V4.a));
    let interrupts = || {
        let script = "grep . /proc/irq/*/smp_affinity_list";
        hosts.run(tune::HOST, "sh", &["-c", script]).unwrap().stdout
    };
    let before = (tune::settings(&hosts), interrupts());
    let (is_ok, said) = tune::tune(&hosts, &["v0", "--apply"]);
    println!("{said}");
    assert!(is_ok && said.contains("changed; --undo"), "{said}");
    let tuned = (tune::settings(&hosts), interrupts());
    assert_ne!(tuned.0, before.0);
    let (is_ok, said) = tune::tune(&hosts, &["v0", "--apply"]);
    assert!(is_ok && said.contains("nothing changed"), "{said}");
    assert_eq!((tune::settings(&hosts), interrupts()), tuned);
    let (is_ok, said) = tune::tune(&hosts, &["v0", "--undo"]);
    assert!(is_ok && said.contains("put back"), "{said}");
    assert_eq!((tune::settings(&hosts), interrupts()), before);
}

/// Settings of the whole machine, which the test of hosts must not touch elsewhere.
const OF_THE_MACHINE: [&str; 5] = [
    "/proc/sys/net/core/busy_poll",
    "/proc/sys/net/core/busy_read",
    "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
    "/sys/devices/virtual/workqueue/cpumask",
    "/proc/irq/default_smp_affinity",
];

#[test]
#[ignore = "needs the machine that scripts/kernels boots"]
fn rings_polling_huge_pages_and_isolation_are_set_and_put_back() {
    if !is_guest() {
        return;
    }
    let mut name = None;
    // It comes back from the last test's namespace a while after that is gone.
    let is_here = eventually(|| {
        name = interface_of(&format!("{MAC}3"));
        name.is_some()
    });
    assert!(is_here, "the machine has NIC 3");
    let name = name.unwrap();
    let ethtool = |arguments: &[&str]| {
        let output = Command::new("ethtool").args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    // What QEMU's card holds at most, 256, is less than a router wants.
    ethtool(&["-G", &name, "rx", "128", "tx", "64"]);
    let settings = || {
        let files = OF_THE_MACHINE.map(|path| fs::read_to_string(path).unwrap());
        (files, ethtool(&["-g", &name]))
    };
    let before = settings();
    let state = tempfile::tempdir().unwrap();
    let tune = |how: &[&str]| {
        let mut command = Command::new(virga());
        command.args(["tune", &name, "--state"]).arg(state.path());
        let output = command.args(how).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{how:?}: {said}");
        said
    };
    let said = tune(&["--apply", "--hugepages", "4", "--cpus", "1"]);
    println!("{said}");
    for line in [
        format!("ethtool -G {name} rx 256"),
        format!("ethtool -G {name} tx 256"),
        format!("echo 50 > {}", OF_THE_MACHINE[0]),
        format!("echo 50 > {}", OF_THE_MACHINE[1]),
        format!("echo 4 > {}", OF_THE_MACHINE[2]),
        format!("echo 1 > {}", OF_THE_MACHINE[3]),
        format!("echo 1 > {}", OF_THE_MACHINE[4]),
    ] {
        assert!(said.contains(&line), "{line}: {said}");
    }
    let (files, card) = settings();
    assert_eq!(files, ["50\n", "50\n", "4\n", "1\n", "1\n"]);
    let now = card.split("Current").nth(1).unwrap();
    assert_eq!(now.matches("256").count(), 2, "{now}");
    let again = tune(&["--apply", "--hugepages", "4", "--cpus", "1"]);
    assert!(again.contains("nothing changed"), "{again}");
    let undone = tune(&["--undo"]);
    assert!(undone.contains("put back"), "{undone}");
    assert_eq!(settings(), before);
    ethtool(&["-G", &name, "rx", "256", "tx", "256"]);
}
