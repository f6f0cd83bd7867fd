//! Two hosts with nothing of Virga on them, joined by one line that is copied.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    hosts::Hosts,
    stage::{number, virga},
};

/// From two empty machines to events between them. It takes seconds.
const JOINED_WITHIN: Duration = Duration::from_secs(60);

/// Ends with the test.
struct Inviting(Child);

impl Drop for Inviting {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn run(hosts: &Hosts, host: &str, arguments: &[&str]) -> Output {
    let program = virga().to_str().unwrap();
    let mut command = hosts.command(host, program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn done(hosts: &Hosts, host: &str, arguments: &[&str]) -> String {
    let output = run(hosts, host, arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// `virga init`, with what two hosts on one machine must not share.
fn init(hosts: &Hosts, host: &str, more: &[&str]) -> String {
    let folder = hosts.folder.join(host);
    // The stage has made keys: this host begins with nothing.
    fs::remove_dir_all(&folder).unwrap();
    let (name, socket) = (hosts.node_name(host), hosts.socket(host));
    let state = folder.join("state");
    let [dir, socket, state] = [&folder, &socket, &state].map(|path| path.to_str().unwrap());
    let arguments = [
        "init",
        "--name",
        &name,
        "--dir",
        dir,
        "--socket",
        socket,
        "--state",
        state,
        "--interface",
        "m0",
    ];
    done(hosts, host, &[&arguments, more].concat())
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn two_empty_hosts_are_joined_by_one_line_within_a_minute() {
    let mut hosts = Hosts::new("virga-test", virga()).unwrap();
    for host in ["a", "b"] {
        hosts.add(host).unwrap();
    }
    let (a, b) = ("10.78.9.1", "10.78.9.2");
    hosts
        .join(
            ("a", "m0", &format!("{a}/24")),
            ("b", "m0", &format!("{b}/24")),
        )
        .unwrap();
    let start = Instant::now();
    let made = init(&hosts, "a", &[]);
    hosts.start("a").unwrap();
    let config = hosts.folder.join("a/node.toml");
    let config = config.to_str().unwrap();
    // Nothing says where others reach it.
    let untold = run(&hosts, "a", &["invite", "--config", config]);
    let words = String::from_utf8_lossy(&untold.stderr);
    assert!(words.contains("say --address"), "{words}");
    let mut inviting = hosts.command("a", virga().to_str().unwrap());
    let inviting = inviting
        .args([
            "invite",
            "--config",
            config,
            "--address",
            &format!("{a}:4783"),
        ])
        .stdout(Stdio::piped())
        .spawn();
    let mut inviting = Inviting(inviting.unwrap());
    let (mut line, mut told) = (String::new(), String::new());
    let mut out = BufReader::new(inviting.0.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    let line = line.trim().strip_prefix("virga init --join ").unwrap();
    let joined = init(&hosts, "b", &["--join", line]);
    out.read_to_string(&mut told).unwrap();
    assert!(inviting.0.wait().unwrap().success());
    // a runs on, and knows b.
    assert!(told.contains("the node has read its file again"), "{told}");
    hosts.start("b").unwrap();
    // Doctor has the last word, of the interface that was named, too.
    for said in [&made, &joined] {
        let (_, found) = said
            .split_once("virga doctor says of this machine:")
            .unwrap();
        assert!(found.contains("m0"), "{said}");
    }

    let channel = format!("hello/{}", hosts.node_name("b"));
    for (from, to) in [("a", "b"), ("b", "a")] {
        let socket = |host| hosts.socket(host).to_str().unwrap().to_owned();
        let (ours, theirs) = (socket(from), socket(to));
        let arrived = thread::scope(|scope| {
            let listening = scope.spawn(|| {
                let arguments = [
                    "sub", &channel, "--count", "1", "--raw", "--socket", &theirs,
                ];
                done(&hosts, to, &arguments)
            });
            let arguments = [
                "pub",
                &channel,
                "--data",
                from,
                "--subscribers",
                "1",
                "--timeout",
                "30",
                "--socket",
                &ours,
            ];
            done(&hosts, from, &arguments);
            listening.join().unwrap()
        });
        assert_eq!(arrived, from);
    }
    let took = start.elapsed();
    println!("from two empty folders to an event each way: {took:?}");
    assert!(took < JOINED_WITHIN, "{took:?}");
    for host in ["a", "b"] {
        let sessions = hosts.status(host).unwrap()["sessions"]
            .as_array()
            .unwrap()
            .len();
        assert_eq!(sessions, 1);
        // In the NIC's driver: the interface was named.
        assert!(number(&hosts, host, "/forwarding/nic/outcomes/local/packets") > 0);
    }
}
