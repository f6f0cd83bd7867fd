//! `virga capture` and `virga drops --origins` at running nodes, which forward in user space.

use crate::stage::{Node, Program, RELIABLE, Stage, eventually};
use serde_json::Value;
use std::{
    fs,
    net::UdpSocket,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// Datagrams sent at once: half of what a sample's rate lets through at once.
const GROUP: usize = 16;
/// Within so long a rate of 1000 a second, the usual one, has room for another group.
const APART: Duration = Duration::from_millis(20);

/// Sends datagrams to a node, a group when it has counted those before as dropped for that reason.
async fn send(stage: &Stage, node: &Node, reason: &str, datagrams: &[Vec<u8>]) {
    let socket = UdpSocket::bind(("127.0.0.7", 0)).unwrap();
    let mut counted = dropped(stage, node.name, reason).await;
    for group in datagrams.chunks(GROUP) {
        for datagram in group {
            socket.send_to(datagram, node.listen).unwrap();
        }
        counted += group.len() as u64;
        eventually("the drops are counted", async || {
            (dropped(stage, node.name, reason).await >= counted).then_some(())
        })
        .await;
        tokio::time::sleep(APART).await;
    }
}

/// Sends datagrams that are no packets of the mesh.
async fn send_garbage(stage: &Stage, node: &Node, count: usize) {
    send(stage, node, "magic", &vec![vec![0x41; 100]; count]).await;
}

/// Packets of the mesh's form, of one origin that nobody knows.
async fn send_strange(stage: &Stage, node: &Node, origin: u64, count: u64) {
    let packet = |sequence| {
        let header = virga_ebpf::header::Header {
            destination: node.id,
            origin_hash: virga_ebpf::header::OriginHash(origin),
            channel_hash: virga_ebpf::header::ChannelHash(9),
            payload_len: 16,
            sequence,
            ..Default::default()
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend([0x42; 16]);
        bytes
    };
    let packets: Vec<Vec<u8>> = (0..count).map(packet).collect();
    send(stage, node, "unauthorised", &packets).await;
}

/// Drops that a node counts for a reason.
async fn dropped(stage: &Stage, name: &str, reason: &str) -> u64 {
    stage.status(name).await.userspace.drops[reason].packets
}

/// A capture that has begun: its file is begun with its first line.
async fn begun(node: &Node, file: &Path, more: &[&str]) -> Program {
    let mut command = node.command(&["capture"]);
    command.args(more).arg("-w").arg(file);
    let program = Program::start(&mut command);
    eventually("the capture begins", async || {
        let is_begun = fs::metadata(file).is_ok_and(|file| file.len() > 0);
        is_begun.then_some(())
    })
    .await;
    program
}

/// Waits until a capture has begun at a node that had none before.
async fn has_begun(node: &Node) {
    eventually("the capture begins", async || {
        let log = node.log();
        log.contains("a capture has begun").then_some(())
    })
    .await;
}

/// Ends the capture that goes on at a node.
fn stop(node: &Node) {
    let stopped = node.run(&["capture", "--stop"]);
    let words = String::from_utf8_lossy(&stopped.stderr);
    assert!(stopped.status.success(), "{words}");
}

fn tshark(lua: &Path, file: &Path, fields: &[&str]) -> Vec<String> {
    let mut command = Command::new("tshark");
    command.args(["-X", &format!("lua_script:{}", lua.display())]);
    command.args(["-T", "fields"]).arg("-r").arg(file);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_has_every_drop_that_is_counted_and_ends_with_what_there_was() {
    let stage = Stage::running(&[RELIABLE]).await;
    let router = stage.node("router");
    let file = router.file("drops.pcapng");
    let asked = ["--reason", "magic,unauthorised", "--rate", "10000"];
    let mut capture = begun(router, &file, &asked).await;
    send_garbage(&stage, router, 50).await;
    send_strange(&stage, router, 0xabcd, 30).await;
    capture.signal("-INT");
    let (status, _, told) = capture.wait();
    assert!(status.success(), "{told}");
    assert!(
        told.contains("80 packets captured of 80 that were asked for\n"),
        "{told}"
    );

    if Command::new("tshark").arg("--version").output().is_err() {
        println!("skipped: there is no tshark to read the capture with");
        return;
    }
    let lua = router.file("virga.lua");
    let printed = Command::new(env!("CARGO_BIN_EXE_virga"))
        .args(["dissector", "--port", &router.listen.port().to_string()])
        .output();
    fs::write(&lua, printed.unwrap().stdout).unwrap();
    let fields = [
        "frame.comment",
        "ip.src",
        "virga.origin_hash",
        "frame.interface_name",
    ];
    let lines = tshark(&lua, &file, &fields);
    assert_eq!(lines.len(), 80, "{lines:?}");
    let of = |wanted: &str| lines.iter().filter(|line| *line == wanted).count();
    let magic = lines
        .iter()
        .filter(|l| l.starts_with("drop magic, userspace\t"));
    assert_eq!(magic.count(), 50, "{lines:?}");
    let strange = lines
        .iter()
        .filter(|l| l.contains("\t0x000000000000abcd\t"));
    assert_eq!(strange.count(), 30, "{lines:?}");
    assert_eq!(of(""), 0);
    // Headers alone: of what is none, as many bytes as a header has.
    let capture = fs::read(&file).unwrap();
    assert!(!capture.windows(65).any(|bytes| bytes == [0x41; 65]));
    assert!(!capture.windows(16).any(|bytes| bytes == [0x42; 16]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_asker_that_is_killed_and_one_whose_disk_is_full_leave_the_node_as_it_was() {
    let stage = Stage::running(&[RELIABLE]).await;
    let router = stage.node("router");
    let mut capture = begun(router, &router.file("killed.pcapng"), &[]).await;
    let refused = router.run(&["capture", "--seconds", "1"]);
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(words.contains("another capture goes on"), "{words}");
    capture.signal("-KILL");
    capture.wait();
    eventually("its place is free", async || {
        let other = router.run(&["capture", "--seconds", "1"]);
        other.status.success().then_some(())
    })
    .await;

    // A device that takes nothing, as a full disk does.
    let full = router.run(&["capture", "-w", "/dev/full"]);
    let told = String::from_utf8(full.stderr).unwrap();
    assert_eq!(full.status.code(), Some(1), "{told}");
    assert!(
        told.contains("cannot write /dev/full: No space left"),
        "{told}"
    );
    let stopped = eventually("the capture has ended", async || {
        let output = router.run(&["capture", "--stop"]);
        let words = String::from_utf8(output.stderr).unwrap();
        words
            .contains("no capture goes on")
            .then_some(output.status)
    })
    .await;
    assert_eq!(stopped.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_and_not_there_is_told_and_limits_hold() {
    let stage = Stage::running(&[RELIABLE]).await;
    let router = stage.node("router");
    for (arguments, expected) in [
        (["--reason", "magick"], "there is no reason"),
        (["--verdict", "dropped"], "there is no verdict"),
        (["--channel", "none/such"], "knows no channel none/such"),
        (["--origin", "nobody"], "neither an entity"),
        (["--interface", "none0"], "there is no interface none0"),
        (["--rate", "10001"], "from 1 to 10000"),
        (["--session", "7"], "no session's id"),
    ] {
        let output = router.run(&[&["capture"][..], &arguments].concat());
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && words.contains(expected),
            "{words}"
        );
    }
    let capture = ["capture", "--json", "--reason", "magic", "--rate", "40"];
    let start = Instant::now();
    let mut capture = Program::start(&mut router.command(&capture));
    has_begun(router).await;
    send_garbage(&stage, router, 500).await;
    stop(router);
    let (status, lines, told) = capture.wait();
    assert!(status.success(), "{told}");
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let packets = lines.iter().filter(|line| line["kind"] == "packet").count();
    let last = lines.last().unwrap();
    assert_eq!(last["kind"], "ended", "{last}");
    let count = |name: &str| last["counts"][name].as_u64().unwrap();
    assert_eq!(count("told"), packets as u64);
    // In each second that has begun.
    let most = 40 * (start.elapsed().as_secs() + 1);
    assert!((1..=most).contains(&count("told")), "{most}: {last}");
    assert_eq!(count("matched"), 500, "{last}");
    let missed = count("over_rate") + count("no_room") + count("unread");
    assert_eq!(count("matched"), count("told") + missed, "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn drops_are_told_by_origin() {
    let stage = Stage::running(&[RELIABLE]).await;
    let router = stage.node("router");
    let watch = ["drops", "--origins", "--json"];
    let mut watching = Program::start(&mut router.command(&watch));
    has_begun(router).await;
    send_strange(&stage, router, 0xaaaa, 90).await;
    send_strange(&stage, router, 0xbbbb, 10).await;
    stop(router);
    let (status, lines, told) = watching.wait();
    assert!(status.success(), "{told}");
    let of = |origin: &str| -> u64 {
        let tables = lines
            .lines()
            .map(|l| serde_json::from_str::<Value>(l).unwrap());
        let rows = tables.flat_map(|table| table["origins"].as_array().unwrap().clone());
        let of_it: Vec<Value> = rows.filter(|row| row["origin"] == origin).collect();
        let told = |row: &Value| (row["reason"] == "unauthorised", row["channel"] == "0009");
        assert!(of_it.iter().all(|row| told(row) == (true, true)), "{lines}");
        of_it
            .iter()
            .map(|row| row["packets"].as_u64().unwrap())
            .sum()
    };
    // Fewer than the rate in all: every one is seen.
    assert_eq!(of("000000000000aaaa"), 90, "{lines}");
    assert_eq!(of("000000000000bbbb"), 10, "{lines}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_is_stopped_while_it_begins_ends_and_the_next_finds_its_place_free() {
    let stage = Stage::running(&[RELIABLE]).await;
    let router = stage.node("router");
    for _ in 0..20 {
        let asked = ["capture", "--json", "--seconds", "60"];
        let mut capture = Program::start(&mut router.command(&asked));
        eventually("there is one to stop", async || {
            let stopped = router.run(&["capture", "--stop"]);
            stopped.status.success().then_some(())
        })
        .await;
        let (status, lines, told) = capture.wait();
        assert!(status.success(), "{told}");
        let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        assert_eq!(last["why"], "it was stopped", "{last}");
    }
}
