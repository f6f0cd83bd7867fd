//! Machines that join a network by one line, by the commands that a user types: what they end up with, and that what
//! is wrong with a line, a name, an address or a file leaves no node behind.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Output, Stdio},
    thread,
};

const VIRGA: &str = env!("CARGO_BIN_EXE_virga");

/// A machine: a folder, and an address of loopback's that it listens on.
struct Machine {
    name: &'static str,
    listen: String,
    folder: tempfile::TempDir,
    node: Option<Child>,
}

impl Machine {
    fn new(name: &'static str, ip: &str) -> Self {
        // The port stays free unless someone takes it within a moment: on an address of its own.
        let free = UdpSocket::bind((ip, 0)).unwrap();
        Self {
            name,
            listen: free.local_addr().unwrap().to_string(),
            folder: tempfile::tempdir().unwrap(),
            node: None,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(VIRGA);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// `virga init`, with what keeps machines on one host apart.
    fn init(&self, more: &[&str]) -> Output {
        let (dir, socket, state) = (
            self.text("etc"),
            self.text("run/node.sock"),
            self.text("state"),
        );
        let mut arguments = vec![
            "init",
            "--dir",
            &dir,
            "--socket",
            &socket,
            "--state",
            &state,
            "--listen",
            &self.listen,
        ];
        arguments.extend(more);
        if !more.contains(&"--name") {
            arguments.extend(["--name", self.name]);
        }
        self.command(&arguments).output().unwrap()
    }

    fn founded(self) -> Self {
        let output = self.init(&[]);
        assert!(output.status.success(), "{}", said(&output));
        self
    }

    fn config(&self) -> String {
        self.text("etc/node.toml")
    }

    /// What of a node is here; the folder itself stays.
    fn files(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("etc")) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    fn run(&mut self) {
        let log = fs::File::create(self.path("log")).unwrap();
        let node = self
            .command(&["node", "run", "--config", &self.config()])
            .stderr(log)
            .spawn();
        self.node = Some(node.unwrap());
    }

    fn stop(&mut self) {
        if let Some(mut node) = self.node.take() {
            // It may have ended by itself.
            let _ended = node.kill();
            let _reaped = node.wait();
        }
    }

    /// A client of this machine's node, which may only just have started.
    fn client(&self, arguments: &[&str]) -> Output {
        let socket = self.text("run/node.sock");
        let arguments = [arguments, &["--socket", &socket]].concat();
        for _ in 0..1_800 {
            if fs::symlink_metadata(&socket).is_ok() {
                break;
            }
            thread::sleep(std::time::Duration::from_millis(50));
        }
        self.command(&arguments).output().unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
        if thread::panicking() {
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            eprintln!("--- {}\n{log}", self.name);
        }
    }
}

/// `virga invite`, waiting; it does not outlive the test.
struct Inviting {
    process: Child,
    out: BufReader<ChildStdout>,
    line: String,
}

impl Inviting {
    fn at(machine: &Machine, more: &[&str]) -> Self {
        let config = machine.config();
        let arguments = [&["invite", "--config", &config], more].concat();
        let mut process = machine
            .command(&arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let line = line.trim().strip_prefix("virga init --join ");
        let line = line.expect("one line to be copied").to_owned();
        Self { process, out, line }
    }

    /// How it ended, and what it wrote after the line, to standard output and to standard error.
    fn end(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut errors) = (String::new(), String::new());
        self.out.read_to_string(&mut out).unwrap();
        let stderr = self.process.stderr.take();
        stderr.unwrap().read_to_string(&mut errors).unwrap();
        (self.process.wait().unwrap().code(), out, errors)
    }
}

impl Drop for Inviting {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

#[track_caller]
fn assert_ended(output: &Output, code: i32, words: &str) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(words), "{words:?} is not in: {said}");
}

#[test]
fn one_line_makes_two_nodes_that_talk_both_ways() {
    let mut a = Machine::new("a", "127.0.0.2").founded();
    let mut b = Machine::new("b", "127.0.0.3");
    let inviting = Inviting::at(&a, &[]);
    let output = b.init(&["--join", &inviting.line]);
    assert_ended(&output, 0, "with a as its peer");
    assert!(said(&output).contains("virga doctor says"));
    let (code, out, errors) = inviting.end();
    assert_eq!(code, Some(0), "{errors}");
    assert!(out.contains("b has joined"), "{out}");

    let psk = |machine: &Machine| fs::read(machine.path("etc/network.psk")).unwrap();
    assert_eq!(psk(&a), psk(&b));
    for machine in [&a, &b] {
        let files = ["entity.key", "network.psk", "node.key", "node.toml"];
        assert_eq!(machine.files(), files);
        for key in &files[..3] {
            let mode = fs::metadata(machine.path("etc").join(key)).unwrap().mode();
            assert_eq!(mode & 0o7777, 0o600, "{key}");
        }
    }
    // Neither has the other's secret keys.
    for key in ["node.key", "entity.key"] {
        let secret = |machine: &Machine| fs::read_to_string(machine.path("etc").join(key)).unwrap();
        assert_ne!(secret(&a), secret(&b));
    }

    a.run();
    b.run();
    for (from, to) in [(&a, &b), (&b, &a)] {
        let arrived = thread::scope(|scope| {
            let listening = scope.spawn(|| to.client(&["sub", "hello/b", "--count", "1", "--raw"]));
            let data = format!("from {}", from.name);
            let published = from.client(&[
                "pub",
                "hello/b",
                "--data",
                &data,
                "--subscribers",
                "1",
                "--timeout",
                "30",
            ]);
            assert!(published.status.success(), "{}", said(&published));
            listening.join().unwrap()
        });
        assert_ended(&arrived, 0, &format!("from {}", from.name));
    }
}

#[test]
fn a_line_that_is_none_leaves_nothing_behind() {
    let a = Machine::new("a", "127.0.0.2").founded();
    let b = Machine::new("b", "127.0.0.3");
    let inviting = Inviting::at(&a, &[]);
    let line = inviting.line.clone();
    let digit = if line.ends_with('A') { "B" } else { "A" };
    let changed = format!("{}{digit}", &line[..line.len() - 1]);
    for (wrong, words) in [
        (changed.as_str(), "was damaged"),
        (&line[..line.len() - 3], "is not whole"),
        (&line[3..], "this is no invitation"),
        ("", "this is no invitation"),
    ] {
        assert_ended(&b.init(&["--join", wrong]), 2, words);
        assert!(b.files().is_empty());
    }
    assert_ended(
        &b.init(&["--join", &line, "--network", "x"]),
        2,
        "cannot be used with",
    );
    // The right one is still good, from standard input too.
    let listen = b.listen.as_str();
    let (dir, socket, state) = (b.text("etc"), b.text("run/node.sock"), b.text("state"));
    let mut joining = Command::new(VIRGA)
        .args(["init", "--join", "-", "--name", "b", "--listen", listen])
        .args(["--dir", &dir, "--socket", &socket, "--state", &state])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = joining.stdin.take().unwrap();
    writeln!(input, "{line}").unwrap();
    drop(input);
    assert!(joining.wait().unwrap().success());
    assert_eq!(inviting.end().0, Some(0));
}

#[test]
fn a_line_serves_once_and_until_its_time_is_over() {
    let a = Machine::new("a", "127.0.0.2").founded();
    let [b, c] = [("b", "127.0.0.3"), ("c", "127.0.0.4")].map(|(name, ip)| Machine::new(name, ip));
    let used = Inviting::at(&a, &[]);
    let line = used.line.clone();
    assert_ended(&b.init(&["--join", &line]), 0, "as its peer");
    assert_eq!(used.end().0, Some(0));
    assert_ended(&c.init(&["--join", &line]), 1, "nobody waits at");
    assert!(c.files().is_empty());
    // Nor does it at the next invitation, which goes on.
    let next = Inviting::at(&a, &[]);
    assert_ended(
        &c.init(&["--join", &line]),
        1,
        "did not take this invitation",
    );
    assert!(c.files().is_empty());
    assert_ended(&c.init(&["--join", &next.line]), 0, "as its peer");
    let (code, _, errors) = next.end();
    assert_eq!(code, Some(0));
    assert!(
        errors.contains("not sealed with this invitation's secret"),
        "{errors}"
    );
    // Both are known.
    let text = fs::read_to_string(a.config()).unwrap();
    assert_eq!(text.matches("[[peers]]").count(), 2, "{text}");

    let short = Inviting::at(&a, &["--for", "1s"]);
    let line = short.line.clone();
    let (code, _, errors) = short.end();
    assert_eq!(code, Some(1));
    assert!(errors.contains("nobody has joined within 1s"), "{errors}");
    let d = Machine::new("d", "127.0.0.5");
    assert_ended(&d.init(&["--join", &line]), 1, "its time was over at");
    assert!(d.files().is_empty());
    for life in ["0s", "8days", "soon"] {
        let config = a.config();
        let output = a.command(&["invite", "--config", &config, "--for", life]);
        assert_ended(&{ output }.output().unwrap(), 2, "--for");
    }
}

#[test]
fn a_node_that_is_there_is_kept() {
    let a = Machine::new("a", "127.0.0.2").founded();
    let all = |a: &Machine| -> Vec<Vec<u8>> {
        let read = |name: &String| fs::read(a.path("etc").join(name)).unwrap();
        a.files().iter().map(read).collect()
    };
    let before = all(&a);
    assert_ended(&a.init(&[]), 2, "exists already");
    let inviting = Inviting::at(&a, &[]);
    assert_ended(&a.init(&["--join", &inviting.line]), 2, "exists already");
    assert_eq!(all(&a), before);
    // One key alone is enough to be kept.
    let b = Machine::new("b", "127.0.0.3");
    fs::create_dir(b.path("etc")).unwrap();
    fs::write(b.path("etc/entity.key"), "kept").unwrap();
    assert_ended(
        &b.init(&["--join", &inviting.line]),
        2,
        "entity.key exists already",
    );
    assert_eq!(b.files(), ["entity.key"]);
}

#[test]
fn what_the_inviting_node_cannot_take_is_refused_with_the_reason_and_it_waits_on() {
    let a = Machine::new("a", "127.0.0.2").founded();
    let b = Machine::new("b", "127.0.0.3");
    let inviting = Inviting::at(&a, &[]);
    let join = |more: &[&str]| b.init(&[&["--join", &inviting.line], more].concat());
    assert_ended(&join(&["--name", "a"]), 1, "knows a node called a already");
    let at_a = a.listen.clone();
    assert_ended(&join(&["--address", &at_a]), 1, "is the same as that of");
    assert!(b.files().is_empty());
    // Whoever connects and knows nothing changes nothing.
    for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 2], &[0xff; 300], &[]] {
        let mut stream = TcpStream::connect(&a.listen).unwrap();
        stream.write_all(noise).unwrap();
        drop(stream);
    }
    // A file that somebody breaks meanwhile is not written to.
    let good = fs::read_to_string(a.config()).unwrap();
    fs::write(a.config(), format!("{good}nonsense = true\n")).unwrap();
    assert_ended(&join(&[]), 1, "nonsense");
    assert!(b.files().is_empty());
    fs::write(a.config(), &good).unwrap();
    assert_ended(&join(&[]), 0, "with a as its peer");
    let (code, _, errors) = inviting.end();
    assert_eq!(code, Some(0), "{errors}");
    assert!(errors.contains("has not joined"), "{errors}");
    let text = fs::read_to_string(a.config()).unwrap();
    assert!(
        text.starts_with(&good) && text.matches("[[peers]]").count() == 1,
        "{text}"
    );
}

/// Passes what comes to `listener` on to `to` from another address, until the test ends.
fn translate(listener: TcpListener, to: String) {
    thread::spawn(move || {
        for inside in listener.incoming() {
            let socket = socket_from("127.0.0.9");
            let to = to.parse::<std::net::SocketAddr>().unwrap();
            rustix::net::connect(&socket, &to).unwrap();
            let (inside, outside) = (inside.unwrap(), TcpStream::from(socket));
            let copies = [
                (inside.try_clone().unwrap(), outside.try_clone().unwrap()),
                (outside, inside),
            ];
            for (mut from, mut to) in copies {
                thread::spawn(move || {
                    // Either end closes when it likes.
                    let _closed = std::io::copy(&mut from, &mut to);
                    let _closed = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
}

fn socket_from(ip: &str) -> std::os::fd::OwnedFd {
    use rustix::net::{AddressFamily, SocketType, bind, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let local: std::net::SocketAddr = format!("{ip}:0").parse().unwrap();
    bind(&socket, &local).unwrap();
    socket
}

#[test]
fn a_translation_of_addresses_is_noticed_and_the_outer_address_can_be_said() {
    let a = Machine::new("a", "127.0.0.2").founded();
    // It does not say where it is: others go by where it calls from.
    let mut b = Machine::new("b", "127.0.0.3");
    let port = b.listen.split(':').nth(1).unwrap().to_owned();
    b.listen = format!("0.0.0.0:{port}");
    let front = TcpListener::bind("127.0.0.5:0").unwrap();
    let seen = front.local_addr().unwrap().to_string();
    translate(front, a.listen.clone());
    let inviting = Inviting::at(&a, &["--address", &seen]);
    let join = |more: &[&str]| b.init(&[&["--join", &inviting.line], more].concat());
    assert_ended(&join(&[]), 1, "addresses are translated between the two");
    assert!(b.files().is_empty());
    assert_ended(
        &join(&["--address", "127.0.0.9:4999"]),
        0,
        "with a as its peer",
    );
    assert_eq!(inviting.end().0, Some(0));
    let ours = fs::read_to_string(a.config()).unwrap();
    assert!(ours.contains("address = \"127.0.0.9:4999\""), "{ours}");
    let theirs = fs::read_to_string(b.config()).unwrap();
    assert!(
        theirs.contains(&format!("address = \"{seen}\"")),
        "{theirs}"
    );
}

#[test]
fn where_nothing_can_be_written_nobody_is_asked() {
    let a = Machine::new("a", "127.0.0.2").founded();
    let inviting = Inviting::at(&a, &[]);
    let output = Command::new(VIRGA)
        .args([
            "init",
            "--dir",
            "/proc/virga",
            "--name",
            "b",
            "--join",
            &inviting.line,
        ])
        .output()
        .unwrap();
    assert_ended(&output, 1, "virga: /proc/virga: cannot make this folder");
    // It was not even tried, so nothing is told.
    let b = Machine::new("b", "127.0.0.3");
    assert_ended(&b.init(&["--join", &inviting.line]), 0, "as its peer");
    let (_, _, errors) = inviting.end();
    assert!(!errors.contains("has not joined"), "{errors}");
    let v6 = ["invite", "--config", &a.config(), "--address", "[::1]:4783"];
    assert_ended(&a.command(&v6).output().unwrap(), 2, "is not of the family");
}
