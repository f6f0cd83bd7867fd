//! The dissector that `virga dissector` prints, in tshark: every field of every packet as the header has it.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    process::{Command, Output},
};

use virga::generate::pcap;
use virga_ebpf::{
    header::{Flags, Header, MAGIC},
    limits::HEADER_BYTES,
    sink,
};

const PORT: u16 = 4783;

fn virga(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_virga"))
        .args(arguments)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    output
}

/// A field as tshark names it, and its value in a header as tshark writes that.
type Shown = (&'static str, fn(&Header) -> String);

const FIELDS: [Shown; 23] = [
    ("virga.magic", |h| format!("{:#06x}", h.magic)),
    ("virga.version", |h| h.version.to_string()),
    ("virga.flags", |h| format!("{:#04x}", h.flags.0)),
    ("virga.flags.handshake", |h| flag(h, Flags::HANDSHAKE)),
    ("virga.flags.control", |h| flag(h, Flags::CONTROL)),
    ("virga.flags.reliable", |h| flag(h, Flags::RELIABLE)),
    ("virga.flags.fin", |h| flag(h, Flags::FIN)),
    ("virga.flags.echo", |h| flag(h, Flags::ECHO)),
    ("virga.priority", |h| h.priority.to_string()),
    ("virga.hop_limit", |h| h.hop_limit.to_string()),
    ("virga.hop_count", |h| h.hop_count.to_string()),
    ("virga.key_phase", |h| h.key_phase.to_string()),
    ("virga.subprotocol", |h| h.subprotocol.to_string()),
    ("virga.channel_hash", |h| format!("0x{}", h.channel_hash)),
    ("virga.subnet", |h| Ipv4Addr::from(h.subnet.0).to_string()),
    ("virga.destination", |h| format!("0x{}", h.destination)),
    ("virga.origin_hash", |h| format!("0x{}", h.origin_hash)),
    ("virga.session_id", |h| format!("0x{}", h.session_id)),
    ("virga.stream_id", |h| format!("0x{}", h.stream_id)),
    ("virga.payload_len", |h| h.payload_len.to_string()),
    ("virga.event_count", |h| h.event_count.to_string()),
    ("virga.sequence", |h| h.sequence.to_string()),
    ("virga.link_tag", |h| format!("{:#018x}", h.link_tag)),
];

fn flag(header: &Header, flag: Flags) -> String {
    u8::from(header.flags.contains(flag)).to_string()
}

/// What tshark says of each frame of a capture, a line each.
fn dissected(lua: &Path, capture: &Path) -> Vec<String> {
    let mut tshark = Command::new("tshark");
    let script = format!("lua_script:{}", lua.display());
    tshark.args(["-X", &script, "-T", "fields", "-r"]);
    tshark.arg(capture);
    for (name, _) in FIELDS {
        tshark.args(["-e", name]);
    }
    tshark.args(["-e", "virga.payload", "-e", "_ws.col.Protocol"]);
    let output = tshark.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let lines = String::from_utf8(output.stdout).unwrap();
    // Later ones write out what is true.
    let numbered = |line: &str| line.replace("True", "1").replace("False", "0");
    lines.lines().map(numbered).collect()
}

/// The same, of the header that this program reads.
fn expected(frame: &[u8]) -> String {
    let (header, bytes) = sink::read(frame, PORT).unwrap();
    let mut cells: Vec<String> = FIELDS.iter().map(|(_, value)| value(&header)).collect();
    let payload = &frame[bytes + HEADER_BYTES..];
    cells.push(payload.iter().map(|byte| format!("{byte:02x}")).collect());
    cells.push("Virga".to_owned());
    cells.join("\t")
}

#[test]
fn tshark_shows_every_field_as_the_header_has_it() {
    if Command::new("tshark").arg("--version").output().is_err() {
        println!("skipped: there is no tshark to run the dissector in");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let lua = folder.path().join("virga.lua");
    fs::write(&lua, virga(&["dissector"]).stdout).unwrap();
    let generated = folder.path().join("generated.pcap");
    let arguments = "gen --to 10.0.0.1:4783 --from 10.0.0.2 --from-mac 02:00:00:00:00:01 \
        --to-mac 02:00:00:00:00:02 --destination 0123456789abcdef --origin 00112233aabbccdd --channel 1f2e \
        --subnet 01020300 --flows 7 --destinations --hostile 30 --size imix --count 60 --pcap";
    let mut arguments: Vec<&str> = arguments.split_whitespace().collect();
    arguments.push(generated.to_str().unwrap());
    virga(&arguments);
    let mut frames = pcap::read(fs::File::open(&generated).unwrap()).unwrap();
    assert_eq!(frames.len(), 60);
    let lines: Vec<String> = frames.iter().map(|frame| expected(frame)).collect();
    assert_eq!(dissected(&lua, &generated), lines);

    // Each byte of the header its own value, and each flag set and not.
    let (_, at) = sink::read(frames[0].as_slice(), PORT).unwrap();
    frames.truncate(8);
    for (number, frame) in (0_u8..).zip(&mut frames) {
        for (place, byte) in (0_u8..).zip(&mut frame[at..at + HEADER_BYTES]) {
            *byte = place + 100 * number.min(1);
        }
        frame[at..at + 2].copy_from_slice(&MAGIC.to_be_bytes());
        frame[at + 3] = (1 << number) >> 1;
        // The UDP checksum is no longer right: 0 says that there is none.
        frame[at - 2..at].fill(0);
    }
    let made = folder.path().join("made.pcap");
    pcap::write(fs::File::create(&made).unwrap(), frames.iter().cloned(), 1).unwrap();
    let lines: Vec<String> = frames.iter().map(|frame| expected(frame)).collect();
    assert_eq!(dissected(&lua, &made), lines);

    // What is no mesh packet is left to others.
    frames[0][at] ^= 1;
    pcap::write(
        fs::File::create(&made).unwrap(),
        frames.into_iter().take(1),
        1,
    )
    .unwrap();
    let lines = dissected(&lua, &made);
    assert!(!lines[0].contains("Virga"), "{lines:?}");
}
