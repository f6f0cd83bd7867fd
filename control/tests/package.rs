//! What the package holds is what systemd, dpkg, man and shells take: its unit, its user, its scripts, its manual.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    fs,
    net::UdpSocket,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    time::Duration,
};

/// What `systemd-analyze security` may say at most; docs/operating.md says what it says.
const EXPOSURE_MAX: f64 = 3.0;
/// Far above what anything here takes; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a daemon with this limit gives a sign of life is a third of it.
const WATCHDOG: Duration = Duration::from_millis(900);

const VIRGA: &str = env!("CARGO_BIN_EXE_virga");

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("package")
}

fn read(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

/// What a program says; none where the machine has no such program.
fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("skipped: {program}: {error}");
            None
        }
    }
}

fn text(output: &Output) -> String {
    let [said, told] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    format!("{said}{told}")
}

#[test]
fn systemd_takes_the_unit_as_it_is() {
    let place = tempfile::tempdir().unwrap();
    // The package's program is not where the unit says, here.
    let unit = read("virga.service").replace("/usr/bin/virga", VIRGA);
    let path = place.path().join("virga.service");
    fs::write(&path, unit).unwrap();
    let path = path.to_str().unwrap();
    if let Some(output) = run("systemd-analyze", &["verify", "--man=no", path]) {
        let told = text(&output);
        // What other units of this machine lack is not ours.
        let ours = told.lines().find(|line| line.contains("virga"));
        assert!(output.status.success() && ours.is_none(), "{told}");
    }
}

#[test]
fn the_service_is_no_more_exposed_than_the_documents_say() {
    let path = folder().join("virga.service");
    let arguments = [
        "security",
        "--no-pager",
        "--offline=true",
        path.to_str().unwrap(),
    ];
    let Some(output) = run("systemd-analyze", &arguments) else {
        return;
    };
    let told = text(&output);
    if told.contains("unrecognized option '--offline") {
        println!(
            "skipped: this machine's systemd-analyze takes no unit that is not installed: {told}"
        );
        return;
    }
    let (_, rest) = told
        .split_once("exposure level for virga.service: ")
        .expect(&told);
    let exposure = rest.split(' ').next().unwrap();
    assert!(exposure.parse::<f64>().unwrap() <= EXPOSURE_MAX, "{told}");
    // Other versions of systemd weigh by other tables.
    let version = text(&run("systemctl", &["--version"]).unwrap());
    if !version.starts_with("systemd 252") {
        println!("skipped: docs/operating.md has the figure of systemd 252, and this is {version}");
        return;
    }
    let operating = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operating.md");
    let operating = fs::read_to_string(operating).unwrap();
    let words = format!("systemd-analyze security` gives it {exposure}");
    assert!(operating.contains(&words), "docs/operating.md: {words}");
}

#[test]
fn user_and_folders_are_made_as_they_are_said() {
    let root = tempfile::tempdir().unwrap();
    for name in ["etc", "var/lib", "sys/fs/bpf"] {
        fs::create_dir_all(root.path().join(name)).unwrap();
    }
    let at = format!("--root={}", root.path().display());
    let users = folder().join("virga.sysusers");
    if let Some(output) = run("systemd-sysusers", &[&at, users.to_str().unwrap()]) {
        assert!(output.status.success(), "{}", text(&output));
        let made = fs::read_to_string(root.path().join("etc/passwd")).unwrap();
        let user = made.lines().find(|line| line.starts_with("virga:"));
        assert!(
            user.unwrap().ends_with(":/var/lib/virga:/usr/sbin/nologin"),
            "{made}"
        );
        let folders = folder().join("virga.tmpfiles");
        // Only root gives files to others.
        if rustix::process::geteuid().is_root() {
            let output = run(
                "systemd-tmpfiles",
                &["--create", &at, folders.to_str().unwrap()],
            );
            let output = output.unwrap();
            assert!(output.status.success(), "{}", text(&output));
            for name in ["etc/virga", "sys/fs/bpf/virga"] {
                assert!(root.path().join(name).is_dir(), "{name}");
            }
        }
    }
}

#[test]
fn maintainer_scripts_are_shell() {
    for name in ["postinst", "prerm", "postrm"] {
        let path = folder().join(name);
        let output = run("sh", &["-n", path.to_str().unwrap()]).unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
    let path = folder().join("test");
    let output = run("bash", &["-n", path.to_str().unwrap()]).unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

/// Commands that a help lists, and those below them: each as the words that call it.
fn commands(words: &[String]) -> Vec<Vec<String>> {
    let output = Command::new(VIRGA)
        .args(words)
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let Some((_, list)) = help.split_once("\nCommands:\n") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for line in list.lines().take_while(|line| !line.is_empty()) {
        let name = line.trim_start().split(' ').next().unwrap();
        // Only what is indented least names a command.
        if line.starts_with("   ") || name == "help" {
            continue;
        }
        let words = [words, &[name.to_owned()]].concat();
        found.extend(commands(&words));
        found.push(words);
    }
    found
}

#[test]
fn the_manual_has_a_page_of_every_command_and_every_key() {
    let place = tempfile::tempdir().unwrap();
    let output = run(VIRGA, &["man", place.path().to_str().unwrap()]).unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let commands = commands(&[]);
    assert!(commands.len() > 40, "{commands:?}");
    for words in &commands {
        let page = place.path().join(format!("virga-{}.1", words.join("-")));
        assert!(page.exists(), "{}", page.display());
    }
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("example.toml");
    let example = fs::read_to_string(example).unwrap();
    let page = fs::read_to_string(place.path().join("virga.toml.5")).unwrap();
    let mut keys = 0;
    for line in example.lines().filter(|line| line.contains("  # re")) {
        let key = line.split(' ').next().unwrap();
        let heading = format!("\\fB{key} = ");
        assert!(page.contains(&heading), "{key}");
        keys += 1;
    }
    assert!(keys > 50, "{keys}");
    // What man itself makes of them.
    for entry in fs::read_dir(place.path()).unwrap() {
        let path = entry.unwrap().path();
        let arguments = ["-man", "-ww", "-z", path.to_str().unwrap()];
        let Some(output) = run("groff", &arguments) else {
            return;
        };
        assert!(output.status.success(), "{}", text(&output));
    }
}

#[test]
fn shells_complete_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(VIRGA, &["completions", shell]).unwrap();
        let script = text(&output);
        assert!(output.status.success(), "{script}");
        for words in commands(&[]) {
            assert!(script.contains(words.last().unwrap()), "{shell}: {words:?}");
        }
    }
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("virga");
    fs::write(&path, run(VIRGA, &["completions", "bash"]).unwrap().stdout).unwrap();
    let completed =
        "COMP_WORDS=(virga rel) COMP_CWORD=1; _virga virga rel virga; echo \"${COMPREPLY[@]}\"";
    let script = format!("source {}; {completed}", path.display());
    let output = run("bash", &["-c", &script]).unwrap();
    assert_eq!(text(&output).trim(), "reload");
}

/// A daemon that is ended with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _waited = self.0.wait();
    }
}

#[test]
fn the_service_manager_hears_of_readiness_of_life_and_of_the_end() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let [folder, state, socket] = ["node", "state", "node.sock"].map(at);
    // Free a moment ago; nobody else here takes this address's.
    let listen = UdpSocket::bind("127.0.0.9:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let listen = listen.to_string();
    let made = run(
        VIRGA,
        &[
            "init",
            "--name",
            "told",
            "--dir",
            &folder,
            "--state",
            &state,
            "--socket",
            &socket,
            "--listen",
            &listen,
            "--no-service",
        ],
    );
    let made = made.unwrap();
    assert!(made.status.success(), "{}", text(&made));
    let manager = UnixDatagram::bind(at("notify")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let config = format!("{folder}/node.toml");
    let daemon = Command::new(VIRGA)
        .args(["node", "run", "--config", &config])
        .env("NOTIFY_SOCKET", at("notify"))
        .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())
        .spawn();
    let daemon = Daemon(daemon.unwrap());
    let hear = || {
        let mut bytes = [0; 256];
        let length = manager.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    assert_eq!(hear(), "READY=1\nSTATUS=forwarding: userspace\n");
    // Who is told so is answered.
    let reloaded = run(VIRGA, &["reload", "--config", &config]).unwrap();
    assert!(reloaded.status.success(), "{}", text(&reloaded));
    for _ in 0..3 {
        assert_eq!(hear(), "WATCHDOG=1\n");
    }
    let pid = rustix::process::Pid::from_child(&daemon.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    while hear() != "STOPPING=1\n" {}
}
