//! `virga gen` without root: captures, what other generators are given with them, and what it refuses.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    collections::HashSet,
    fs,
    path::Path,
    process::{Command, Output},
};

use virga::generate::pcap;
use virga_ebpf::{
    header::Header,
    sink::{Kind, kind, read},
};

const FIXED: [&str; 14] = [
    "gen",
    "--to",
    "10.0.0.1:4783",
    "--from",
    "10.0.0.2",
    "--from-mac",
    "02:00:00:00:00:01",
    "--to-mac",
    "02:00:00:00:00:02",
    "--destination",
    "2000",
    "--origin",
    "aaaa",
    "--destinations",
];

fn virga(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_virga"))
        .args(arguments)
        .output()
        .unwrap()
}

/// A capture made with further arguments.
fn capture(file: &Path, more: &[&str]) -> Vec<Vec<u8>> {
    let name = file.to_str().unwrap();
    let output = virga(&[&FIXED[..], &["--pcap", name], more].concat());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    pcap::read(fs::File::open(file).unwrap()).unwrap()
}

fn header(frame: &[u8]) -> Header {
    read(frame, 4783).unwrap().0
}

/// RFC 768 over an IPv4 frame: 0 where the checksum is right.
fn udp_residue(frame: &[u8]) -> u16 {
    let udp = &frame[34..];
    let length = u16::try_from(udp.len()).unwrap().to_be_bytes();
    let bytes = [&frame[26..34], &[0, 17], &length, udp].concat();
    let sum: u64 = bytes
        .chunks(2)
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    !virga_ebpf::rewrite::fold(sum)
}

#[test]
fn a_capture_holds_the_frames_that_were_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mix.pcap");
    let mix = ["--flows", "5", "--hostile", "40", "--size", "imix"];
    let frames = capture(&file, &[&mix[..], &["--count", "1200"]].concat());
    let of_size = |bytes| frames.iter().filter(|f| f.len() == bytes).count();
    assert_eq!(
        (of_size(122), of_size(590), of_size(1_514)),
        (700, 400, 100)
    );
    let headers: Vec<Header> = frames.iter().map(|f| header(f)).collect();
    let strangers = headers.iter().filter(|h| kind(h) == Kind::Stranger).count();
    assert_eq!(strangers, 480);
    let packets: HashSet<(u64, u64, u64)> = headers
        .iter()
        .map(|h| (h.origin_hash.0, h.destination.0, h.sequence))
        .collect();
    assert_eq!(packets.len(), frames.len(), "no packet twice");
    assert!(
        headers
            .iter()
            .all(|h| (0x2000..0x2005).contains(&h.destination.0))
    );
    assert!(frames.iter().all(|f| udp_residue(f) == 0));
}

/// In place of TRex's own library: keeps what a profile says, and prints it as JSON.
const RECORDER: &str = r#"
import json, sys
class Kept:
    def __init__(self, **said):
        self.said = said
class STLVmFlowVar(Kept): pass
class STLVmWrFlowVar(Kept): pass
class STLTXCont(Kept): pass
class STLPktBuilder(Kept): pass
class STLStream(Kept): pass
class STLScVmRaw:
    def __init__(self, steps):
        self.steps = [step.said for step in steps]
STLStreamDstMAC_PKT = 1
def show(streams):
    def one(stream):
        packet = stream.said["packet"].said
        return {"frame": list(packet["pkt_buffer"]), "steps": packet["vm"].steps}
    json.dump([one(stream) for stream in streams], sys.stdout)
"#;

/// What a stream's `n`th frame is: its two fields, written as they count.
fn nth(stream: &serde_json::Value, n: u64) -> Vec<u8> {
    let frame = stream["frame"].as_array().unwrap().iter();
    let mut frame: Vec<u8> = frame
        .map(|b| u8::try_from(b.as_u64().unwrap()).unwrap())
        .collect();
    for pair in stream["steps"].as_array().unwrap().chunks(2) {
        let number = |key: &str| pair[0][key].as_u64().unwrap();
        let moved = n * number("step");
        let value = match pair[0]["op"].as_str().unwrap() {
            "inc" => number("init_value") + moved,
            _ => number("init_value") - moved,
        };
        assert!((number("min_value")..=number("max_value")).contains(&value));
        // TRex refuses a range that a step does not divide.
        let values = number("max_value") - number("min_value") + 1;
        assert_eq!(values % number("step"), 0);
        assert_eq!(pair[0]["name"], pair[1]["fv_name"]);
        let at = usize::try_from(pair[1]["pkt_offset"].as_u64().unwrap()).unwrap();
        frame[at..at + 4].copy_from_slice(&u32::try_from(value).unwrap().to_be_bytes());
    }
    frame
}

#[test]
fn a_trex_profile_sends_every_flow_on_and_keeps_checksums_right() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: there is no python3 to run a TRex profile with");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mix.pcap");
    let mix = ["--flows", "7", "--hostile", "10", "--size", "imix"];
    let more = [&mix[..], &["--count", "100", "--profile", "trex"]].concat();
    let frames = capture(&file, &more);
    fs::create_dir(folder.path().join("trex_stl_lib")).unwrap();
    fs::write(folder.path().join("trex_stl_lib/__init__.py"), "").unwrap();
    fs::write(folder.path().join("trex_stl_lib/api.py"), RECORDER).unwrap();
    let script = "import mix, trex_stl_lib.api as api; api.show(mix.register().get_streams())";
    let output = Command::new("python3")
        .args(["-B", "-c", script])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let streams: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(streams.len(), frames.len());
    let mut packets = HashSet::new();
    for (stream, frame) in streams.iter().zip(&frames) {
        for n in [0, 1, 2, 999, 65_534, 65_535] {
            let sent = nth(stream, n);
            assert_eq!(udp_residue(&sent), 0);
            let (now, then) = (header(&sent), header(frame));
            assert!(packets.insert((now.origin_hash, now.session_id, now.sequence)));
            assert_eq!(now.sequence >> 32, then.sequence >> 32);
            let but_for_it = Header {
                sequence: then.sequence,
                ..now
            };
            assert_eq!(but_for_it, then);
        }
    }
}

#[test]
fn a_pktgen_file_sends_a_short_capture_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("once.pcap");
    capture(&file, &["--count", "321", "--profile", "dpdk"]);
    let text = fs::read_to_string(folder.path().join("once.pkt")).unwrap();
    let commands: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
    assert_eq!(
        commands,
        [
            "set 0 count 321",
            "set 0 rate 100",
            "enable 0 pcap",
            "clear 0 stats",
            "start 0"
        ]
    );
    assert!(text.contains("-s 0:once.pcap -f once.pkt"));
}

#[test]
fn what_cannot_be_sent_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.pcap");
    let name = file.to_str().unwrap();
    let to_file = |more: &[&'static str]| [&FIXED[..], &["--pcap", name], more].concat();
    for (arguments, code, words) in [
        (to_file(&["--size", "64"]), 2, "they are 122 to"),
        (to_file(&["--size", "9000"]), 2, "they are 122 to"),
        (
            to_file(&["--kind", "malformed"]),
            2,
            "go through a socket only",
        ),
        (to_file(&["--stamp"]), 2, "--stamp"),
        (to_file(&["--cores", "2"]), 2, "--cores"),
        (to_file(&["--count", "5", "--seconds", "2"]), 2, "--seconds"),
        (to_file(&["--hostile", "101"]), 2, "not a percentage"),
        (vec!["gen", "--to-mac", "2:0"], 2, "six bytes"),
        (to_file(&["--flows", "0"]), 2, "--flows"),
        (
            to_file(&["--count", "10001", "--profile", "trex"]),
            2,
            "one stream a frame",
        ),
        (vec!["gen", "--destination", "1"], 2, "--to"),
        (vec!["gen", "--profile", "trex"], 2, "--pcap"),
        (vec!["gen", "--from-pcap", name], 2, "--interface"),
        (
            vec!["gen", "--from-pcap", "/dev/null", "--interface", "lo"],
            1,
            "/dev/null",
        ),
    ] {
        let output = virga(&arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        assert!(told.contains(words), "{arguments:?}: {told}");
    }
    let mixed = ["--from", "fd00::2", "--size", "256"];
    let fixed: Vec<&str> = FIXED
        .iter()
        .filter(|a| ![&"--from", &"10.0.0.2"].contains(a))
        .copied()
        .collect();
    let output = virga(&[&fixed[..], &["--pcap", name], &mixed].concat());
    assert!(String::from_utf8_lossy(&output.stderr).contains("different families"));
}

#[test]
fn options_of_another_mode_are_refused_instead_of_ignored() {
    let socket = ["gen", "--to", "127.0.0.1:9", "--destination", "1"];
    let xdp = [&socket[..], &["--xdp"]].concat();
    let replay = ["gen", "--from-pcap", "none.pcap", "--interface", "lo"];
    let only_frames: [&[&str]; 11] = [
        &["--count", "10"],
        &["--hostile", "50"],
        &["--size", "imix"],
        &["--flows", "2"],
        &["--destinations"],
        &["--vlan", "5"],
        &["--subnet", "1"],
        &["--from-mac", "02:00:00:00:00:01"],
        &["--interface", "lo"],
        &["--cores", "2"],
        &["--stamp"],
    ];
    let not_of_a_capture: [&[&str]; 9] = [
        &["--to", "127.0.0.1:9"],
        &["--destination", "1"],
        &["--kind", "plain"],
        &["--origin", "1"],
        &["--channel", "1"],
        &["--from", "127.0.0.1"],
        &["--hostile", "50"],
        &["--flows", "2"],
        &["--cores", "2"],
    ];
    let cases = only_frames
        .iter()
        .map(|more| [&socket[..], *more].concat())
        .chain(
            not_of_a_capture
                .iter()
                .map(|more| [&replay[..], *more].concat()),
        )
        .chain([
            [&xdp[..], &["--payload", "100"]].concat(),
            [&xdp[..], &["--count", "1", "--seconds", "1"]].concat(),
            [&xdp[..], &["--pcap", "x.pcap"]].concat(),
        ]);
    for arguments in cases {
        let output = virga(&arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
        assert!(told.contains("Usage: virga"), "{arguments:?}: {told}");
    }
}

#[test]
fn a_profile_never_stands_where_its_capture_does() {
    let folder = tempfile::tempdir().unwrap();
    for (name, profile) in [("x.pkt", "dpdk"), ("x.py", "trex")] {
        let file = folder.path().join(name);
        let name = file.to_str().unwrap();
        let more = ["--pcap", name, "--profile", profile, "--count", "3"];
        let output = virga(&[&FIXED[..], &more].concat());
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("profile's own file"), "{told}");
        assert!(output.status.code() == Some(2) && !file.exists());
    }
    // Without its capture no profile is left either.
    let file = folder.path().join("none/x.pcap");
    let more = ["--pcap", file.to_str().unwrap(), "--profile", "dpdk"];
    let output = virga(&[&FIXED[..], &more].concat());
    assert_eq!(output.status.code(), Some(1));
    let left = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn a_capture_that_is_none_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (fifo, empty) = (folder.path().join("fifo"), folder.path().join("empty.pcap"));
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    capture(&empty, &["--count", "0"]);
    for (file, words) in [(&fifo, "FIFO"), (&empty, "holds no frames")] {
        let name = file.to_str().unwrap();
        let output = virga(&["gen", "--from-pcap", name, "--interface", "lo"]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains(words), "{told}");
        assert_eq!(output.status.code(), Some(1), "{told}");
    }
}
