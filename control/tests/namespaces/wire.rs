//! `virga gen` and `virga sink` at both ends of a cable: what leaves is what was asked for, byte for byte, and what the
//! sink says of loss, order and latency is what became of it.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, sockopt};
use serde_json::Value;
use virga::generate::{
    live::{Attached, Generator, Mode, Plan, Sink, Until},
    pcap,
    plan::{Path, Sizes, Spread},
};
use virga_ebpf::{
    header::{ChannelHash, NodeId, OriginHash, Subnet},
    sink::{Kind, kind, read},
    workload::{Workload, write},
};

use crate::{
    hosts::{Hosts, eventually},
    stage::virga,
};

const PORT: u16 = 4783;
const FROM: &str = "10.78.1.2";
const TO: &str = "10.78.1.1";
/// All protocols, of linux/if_ether.h, in the order of the network.
const ETH_P_ALL: u16 = 0x0003_u16.to_be();

/// a and b at one cable, which is m0 at either end.
fn cable() -> Hosts {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    hosts.add("a").unwrap();
    hosts.add("b").unwrap();
    let [from, to] = [FROM, TO].map(|address| format!("{address}/24"));
    hosts.join(("a", "m0", &from), ("b", "m0", &to)).unwrap();
    hosts
}

fn plan(hosts: &Hosts) -> Plan {
    let path = Path {
        source_mac: hosts.mac("a", "m0").unwrap(),
        target_mac: hosts.mac("b", "m0").unwrap(),
        vlan: 0,
        source: FROM.parse().unwrap(),
        target: TO.parse().unwrap(),
        port: PORT,
    };
    Plan::new(path, NodeId(0x2000), OriginHash(0xaaaa), ChannelHash(7))
}

/// `virga gen` at a, of the packets of [`plan`].
fn generate(hosts: &Hosts, more: &[&str]) -> Value {
    let fixed = "--destination 2000 --origin aaaa --channel 7 --json";
    let to = format!("{TO}:{PORT}");
    let fixed: Vec<&str> = ["gen", "--to", &to]
        .into_iter()
        .chain(fixed.split(' '))
        .collect();
    said(hosts, &[&fixed[..], more].concat())
}

fn said(hosts: &Hosts, arguments: &[&str]) -> Value {
    let output = hosts.run("a", &virga().to_string_lossy(), arguments);
    serde_json::from_slice(&output.unwrap().stdout).unwrap()
}

/// `virga sink` at b, attached.
pub(crate) fn sink(hosts: &Hosts, more: &[&str]) -> Child {
    let fixed = ["sink", "--interface", "m0", "--seconds", "60", "--json"];
    let sink = hosts
        .command("b", &virga().to_string_lossy())
        .args(fixed)
        .args(more)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(eventually(|| {
        let shown = hosts.run("b", "ip", &["-details", "link", "show", "dev", "m0"]);
        String::from_utf8_lossy(&shown.unwrap().stdout).contains("prog/xdp")
    }));
    sink
}

/// Ends it a while after everything was sent, and returns what it says.
pub(crate) fn end(sink: Child) -> Value {
    std::thread::sleep(Duration::from_secs(1));
    let interrupted = Command::new("kill")
        .args(["-TERM", &sink.id().to_string()])
        .status();
    assert!(interrupted.unwrap().success());
    let output = sink.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

/// What a link that loses and reorders makes of frames: each tenth is gone, and of each flow's five in a row the first
/// two have changed places.
fn spoilt(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut left: Vec<Vec<u8>> = (0..)
        .zip(frames)
        .filter(|(n, _)| n % 10 != 3)
        .map(|(_, frame)| frame.clone())
        .collect();
    let mut of_flow: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (at, frame) in left.iter().enumerate() {
        if let Kind::Authorised(flow) = kind(&read(frame.as_slice(), PORT).unwrap().0) {
            of_flow.entry(flow).or_default().push(at);
        }
    }
    for places in of_flow.values() {
        for five in places.chunks_exact(5) {
            left.swap(five[0], five[1]);
        }
    }
    left
}

/// Packets missing before the last of each flow, and packets behind a later one of their flow.
fn lost_and_late(frames: &[Vec<u8>]) -> (u64, u64) {
    let mut of_flow: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for frame in frames {
        let header = read(frame.as_slice(), PORT).unwrap().0;
        if let Kind::Authorised(flow) = kind(&header) {
            let sequence = header.sequence & 0xffff_ffff;
            of_flow.entry(flow).or_default().push(sequence);
        }
    }
    let (mut lost, mut late) = (0, 0);
    for sequences in of_flow.values() {
        let last = *sequences.iter().max().unwrap();
        lost += last + 1 - sequences.len() as u64;
        let is_late = |n: &usize| sequences[..*n].iter().any(|s| *s > sequences[*n]);
        late += (0..sequences.len()).filter(is_late).count() as u64;
    }
    (lost, late)
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn the_sink_says_what_a_link_lost_and_reordered() {
    const SENT: usize = 2_000;
    let hosts = cable();
    let path = |name: &str| hosts.folder.join(name).to_string_lossy().into_owned();
    let (whole, edited) = (path("whole.pcap"), path("edited.pcap"));
    let mix = "--flows 20 --hostile 25 --size imix --vlan 5 --count";
    let count = SENT.to_string();
    let mix: Vec<&str> = mix.split(' ').chain([&*count, "--pcap", &whole]).collect();
    generate(&hosts, &mix);
    let frames = pcap::read(fs::File::open(&whole).unwrap()).unwrap();
    assert_eq!(lost_and_late(&frames), (0, 0));
    let left = spoilt(&frames);
    let (lost, late) = lost_and_late(&left);
    assert!(lost > 50 && late > 10, "{lost} lost, {late} late");
    pcap::write(fs::File::create(&edited).unwrap(), left.iter().cloned(), 0).unwrap();
    let is_stranger = |frame: &&Vec<u8>| {
        let header = read(frame.as_slice(), PORT).unwrap().0;
        kind(&header) == Kind::Stranger
    };
    let strangers = left.iter().filter(is_stranger).count() as u64;
    let bytes = left.iter().filter(|frame| !is_stranger(frame));
    let bytes: u64 = bytes.map(|frame| frame.len() as u64).sum();

    let (authorised, count) = (SENT as u64 * 3 / 4, left.len().to_string());
    for (mode, way) in [("native", None), ("generic", Some("--af-xdp"))] {
        let sent = authorised.to_string();
        let sink = sink(&hosts, &["--sent", &sent, "--mode", mode]);
        // A ring of 256 frames at the other end, and no hurry.
        let replay = format!("gen --interface m0 --json --rate 5000 --count {count} --from-pcap");
        let replay: Vec<&str> = replay.split(' ').chain([&*edited]).chain(way).collect();
        let told = said(&hosts, &replay);
        let measured = end(sink);
        println!("{told}\n{measured}");
        assert_eq!(number(&told["sent"]), left.len() as u64);
        // It makes up for 50 ms at most, 250 packets.
        let least_ns = (left.len() as u64 - 251) * 200_000;
        assert!(number(&told["elapsed_ns"]) >= least_ns, "{told}");
        let received = left.len() as u64 - strangers;
        assert_eq!(number(&measured["received"]), received);
        assert_eq!(number(&measured["bytes"]), bytes);
        assert_eq!(number(&measured["strangers"]), strangers);
        assert_eq!(number(&measured["lost"]), lost);
        assert_eq!(number(&measured["reordered"]), late);
        assert_eq!(number(&measured["missing"]), authorised - received);
    }
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn the_sinks_latency_is_the_time_since_a_packets_stamp() {
    const OLD: Duration = Duration::from_secs(60);
    const OLDER: Duration = Duration::from_secs(240);
    let hosts = cable();
    let attach = || Sink::attach("m0", PORT, 1, Mode::Native).unwrap();
    let sink = hosts.inside("b", attach).unwrap();
    let workload = Workload {
        stamped: 1,
        ..plan(&hosts).workload(1, 1).unwrap()
    };
    let mut lane = plan(&hosts).lanes(1).unwrap().pop().unwrap();
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec.try_into().unwrap());
    // Of a hundred, the last two are as old again and more.
    let frames: Vec<Vec<u8>> = (0..100)
        .map(|n| {
            let age = if n < 98 { OLD } else { OLDER };
            let step = lane.step(&workload);
            let mut frame = vec![0; usize::from(step.frame_bytes)];
            let stamp = u64::try_from((now.checked_sub(age).unwrap()).as_nanos()).unwrap();
            write(frame.as_mut_slice(), &workload, &step, stamp).unwrap();
            frame
        })
        .collect();
    hosts
        .inside("a", || {
            let mut generator = Generator::of_capture("m0", &frames, None, 0).unwrap();
            generator.run(Until::Count(100)).unwrap()
        })
        .unwrap();
    let is_all = eventually(|| sink.read().unwrap().received == 100);
    let measured = sink.read().unwrap();
    assert!(is_all, "{measured:?}");
    let latency = measured.latency.unwrap();
    println!("{latency:?}");
    assert_eq!(latency.samples, 100);
    // Buckets are a sixteenth wide; what a busy machine adds is far below the ages' difference.
    for (ns, age) in [
        (latency.p50_ns, OLD),
        (latency.p99_ns, OLDER),
        (latency.max_ns, OLDER),
    ] {
        let ns = Duration::from_nanos(ns);
        assert!(ns >= age - age / 16, "{latency:?}");
        assert!(ns <= age + age / 8 + Duration::from_secs(30), "{latency:?}");
    }
}

/// Hears all frames that reach an interface's host.
fn ear(hosts: &Hosts) -> OwnedFd {
    let open = || {
        let all = Protocol::from_raw(u32::from(ETH_P_ALL).try_into().unwrap());
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(all));
        let socket = socket.unwrap();
        // Each frame takes a page and more of it.
        sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20).unwrap();
        socket
    };
    hosts.inside("b", open).unwrap()
}

/// The mesh frames that it heard so far.
fn heard(ear: &OwnedFd) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut buffer = vec![0; 4_096];
    while let Ok((bytes, _)) = rustix::net::recv(ear, &mut buffer[..], RecvFlags::empty()) {
        if read(&buffer[..bytes], PORT).is_some() {
            frames.push(buffer[..bytes].to_vec());
        }
    }
    frames
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn each_byte_that_leaves_is_the_plans_whichever_way_it_goes() {
    const COUNT: usize = 120;
    let hosts = cable();
    // A veth takes redirected frames while a program runs at its other end.
    let pass = || Attached::null("m0", Mode::Native).unwrap();
    let _pass = hosts.inside("b", pass).unwrap();
    let (all, strangers) = ("--hostile 30", "--kind unauthorised");
    for (way, who, permille) in [
        ("--xdp", all, 300),
        ("--af-xdp", all, 300),
        ("--xdp", strangers, 1_000),
        ("--af-xdp", strangers, 1_000),
    ] {
        let ear = ear(&hosts);
        let plan = Plan {
            spread: Spread::Destinations,
            flows: 7,
            subnet: Subnet(0x0102_0300),
            hostile_permille: permille,
            sizes: Sizes::Imix,
            ..plan(&hosts)
        };
        let how = format!(
            "{way} {who} --flows 7 --destinations --subnet 01020300 --size imix --rate 2000 --count {COUNT}"
        );
        let how: Vec<&str> = how.split(' ').collect();
        let told = generate(&hosts, &how);
        let mut frames = Vec::new();
        assert!(
            eventually(|| {
                frames.extend(heard(&ear));
                frames.len() >= COUNT
            }),
            "{} of {COUNT} heard; {told}",
            frames.len()
        );
        let run = read(frames[0].as_slice(), PORT).unwrap().0.sequence >> 32;
        let planned = plan.frames(run.try_into().unwrap()).unwrap();
        for (n, (frame, planned)) in frames.iter().zip(planned.take(COUNT)).enumerate() {
            assert_eq!(*frame, planned, "{way} {who}: frame {n}");
        }
        assert_eq!(frames.len(), COUNT);
        let bytes: usize = frames.iter().map(Vec::len).sum();
        assert_eq!(number(&told["bytes"]), bytes as u64);
    }
}
