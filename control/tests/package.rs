//! What the package holds is what systemd, dpkg, man and shells take: its unit, its user, its scripts, its manual.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs, io,
    net::UdpSocket,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    thread,
    time::{Duration, Instant},
};

/// What `systemd-analyze security` may say at most; docs/operating.md says what it says.
const EXPOSURE_MAX: f64 = 3.0;
/// Far above what anything here takes; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a daemon with this limit gives a sign of life is a third of it.
const WATCHDOG: Duration = Duration::from_millis(900);

/// What the kernel calls capabilities (linux/capability.h): NET_ADMIN, NET_RAW, SYS_ADMIN, PERFMON, BPF.
const STARTING: u64 = 1 << 12 | 1 << 13 | 1 << 21 | 1 << 38 | 1 << 39;

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

/// Waits until it is so.
#[track_caller]
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(
            start.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// A daemon whose service manager is the test; it ends with it.
struct Daemon {
    place: tempfile::TempDir,
    manager: UnixDatagram,
    process: Child,
}

impl Daemon {
    /// In user space, started by `command`, which gets the daemon's own words behind it.
    fn start(command: &[&str]) -> Self {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
        let [folder, state, socket] = ["node", "state", "node.sock"].map(at);
        // Free a moment ago; nobody else here takes this address's.
        let listen = UdpSocket::bind("127.0.0.9:0").unwrap();
        let listen = listen.local_addr().unwrap().to_string();
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
        let words = [command, &[VIRGA, "node", "run", "--config"]].concat();
        let process = Command::new(words[0])
            .args(&words[1..])
            .arg(format!("{folder}/node.toml"))
            .env("NOTIFY_SOCKET", at("notify"))
            .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())
            .stderr(fs::File::create(at("log")).unwrap())
            .spawn();
        let process = process.unwrap();
        Self {
            place,
            manager,
            process,
        }
    }

    fn at(&self, name: &str) -> String {
        self.place.path().join(name).to_str().unwrap().to_owned()
    }

    /// What the manager is told next.
    fn hear(&self) -> String {
        let mut bytes = [0; 256];
        let length = self.manager.recv(&mut bytes);
        let length = length.unwrap_or_else(|error| panic!("{error}: {}", self.log()));
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    /// What it has been told and has not looked at.
    fn heard(&self) -> Vec<String> {
        self.manager.set_nonblocking(true).unwrap();
        let mut bytes = [0; 256];
        let next = || {
            let length = self.manager.recv(&mut bytes).ok()?;
            Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
        };
        let all = std::iter::from_fn(next).collect();
        self.manager.set_nonblocking(false).unwrap();
        all
    }

    fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap()
    }

    /// What a command of the node's says, which must succeed.
    fn ask(&self, command: &str) -> String {
        let output = run(VIRGA, &[command, "--socket", &self.at("node.sock")]).unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Its threads, by what they are called.
    fn threads(&self) -> Vec<(String, PathBuf)> {
        let entries = fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        // One that ends meanwhile is none.
        let named = entries.filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = fs::read_to_string(path.join("comm")).ok()?;
            Some((name.trim().to_owned(), path))
        });
        named.collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _waited = self.process.wait();
    }
}

#[test]
fn the_service_manager_hears_of_readiness_of_life_and_of_the_end() {
    let daemon = Daemon::start(&[]);
    assert_eq!(daemon.hear(), "READY=1\nSTATUS=forwarding: userspace\n");
    // Who is told so is answered.
    daemon.ask("reload");
    for _ in 0..3 {
        assert_eq!(daemon.hear(), "WATCHDOG=1\n");
    }
    daemon.signal(rustix::process::Signal::TERM);
    while daemon.hear() != "STOPPING=1\n" {}
}

/// One thread of a daemon that stands still, while the others run; it runs again when this is dropped.
struct Halted(libc::pid_t);

impl Halted {
    /// The first of that name; none where this machine lets nobody do so.
    fn one(daemon: &Daemon, name: &str) -> Option<Self> {
        let threads = daemon.threads();
        let found = threads.iter().find(|(thread, _)| thread.starts_with(name));
        let (_, path) = found.unwrap_or_else(|| panic!("{threads:?}"));
        let thread = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        if let Err(error) = trace(libc::PTRACE_SEIZE, thread) {
            println!("skipped: ptrace: {error}");
            return None;
        }
        let halted = Self(thread);
        trace(libc::PTRACE_INTERRUPT, thread).unwrap();
        // proc_pid_stat(5): a tracing stop.
        let stat = path.join("stat");
        eventually("the thread stands still", || {
            fs::read_to_string(&stat).unwrap().contains(") t ")
        });
        Some(halted)
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        // It may have ended.
        let _gone = trace(libc::PTRACE_DETACH, self.0);
    }
}

fn trace(request: libc::c_uint, thread: libc::pid_t) -> io::Result<()> {
    let none: *mut libc::c_void = std::ptr::null_mut();
    // SAFETY: these requests read and write no memory of this process; address and data are to be null.
    match unsafe { libc::ptrace(request, thread, none, none) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[test]
fn a_worker_that_hangs_costs_the_node_its_signs_of_life_until_it_goes_on() {
    const NO_ANSWER: &str = "the service manager gets no sign of life";
    let daemon = Daemon::start(&[]);
    assert_eq!(daemon.hear(), "READY=1\nSTATUS=forwarding: userspace\n");
    assert_eq!(daemon.hear(), "WATCHDOG=1\n");
    let Some(halted) = Halted::one(&daemon, "virga-worker") else {
        return;
    };
    let missed = || daemon.log().matches(NO_ANSWER).count();
    let before = missed();
    // What was asked before it stood still may have been answered; nothing is from here on.
    eventually("a sign is missed", || missed() > before);
    daemon.heard();
    let first = missed();
    eventually("the next ones are", || missed() > first + 2);
    assert_eq!(daemon.heard(), [""; 0]);
    drop(halted);
    assert_eq!(daemon.hear(), "WATCHDOG=1\n");
}

/// A set of capabilities, as the kernel shows it of a thread.
fn capabilities(status: &Path, set: &str) -> Option<u64> {
    let status = fs::read_to_string(status).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(set))?;
    u64::from_str_radix(line.trim_start_matches(':').trim(), 16).ok()
}

#[test]
fn no_thread_of_a_node_in_user_space_keeps_what_starting_took() {
    let own = capabilities(Path::new("/proc/self/status"), "CapEff").unwrap();
    if own & STARTING != STARTING {
        return println!("skipped: this test has none of them itself: {own:x}");
    }
    let daemon = Daemon::start(&[]);
    assert_eq!(daemon.hear(), "READY=1\nSTATUS=forwarding: userspace\n");
    let keep = |set: &str| {
        let threads = daemon.threads();
        let kept = threads
            .iter()
            .filter_map(|(name, path)| Some((name, capabilities(&path.join("status"), set)?)));
        let kept: Vec<_> = kept.filter(|(_, kept)| kept & STARTING != 0).collect();
        (!kept.is_empty()).then(|| format!("{kept:x?}"))
    };
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        // A thread that sleeps gives up when it wakes.
        eventually(set, || {
            daemon.ask("status");
            keep(set).is_none()
        });
    }
}

/// The system calls of a set of systemd's, and of those in it.
fn calls(set: &str) -> Option<BTreeSet<String>> {
    let output = run("systemd-analyze", &["syscall-filter", "--no-pager", set])?;
    assert!(output.status.success(), "{}", text(&output));
    let mut all = BTreeSet::new();
    for name in text(&output).lines().skip(1).map(str::trim) {
        match name.chars().next() {
            Some('@') => all.extend(calls(name)?),
            Some('#') | None => {}
            Some(_) => {
                all.insert(name.to_owned());
            }
        }
    }
    Some(all)
}

/// Those that the unit lets through.
fn let_through() -> Option<BTreeSet<String>> {
    // Whatever a list of those that may be made says (systemd.exec(5)).
    let mut all = calls("@default")?;
    let unit = read("virga.service");
    for line in unit.lines() {
        let Some(words) = line.strip_prefix("SystemCallFilter=") else {
            continue;
        };
        let (refuses, words) = match words.strip_prefix('~') {
            Some(words) => (true, words),
            None => (false, words),
        };
        for word in words.split(' ') {
            let these = match word.starts_with('@') {
                true => calls(word)?,
                false => BTreeSet::from([word.to_owned()]),
            };
            match refuses {
                true => all.retain(|call| !these.contains(call)),
                false => all.extend(these),
            }
        }
    }
    Some(all)
}

#[test]
fn a_node_in_user_space_makes_no_system_call_that_the_unit_refuses() {
    let Some(allowed) = let_through() else { return };
    assert!(
        allowed.contains("bpf") && !allowed.contains("mount"),
        "{allowed:?}"
    );
    let place = tempfile::tempdir().unwrap();
    let traced = place.path().join("calls");
    // strace beside the daemon, which stays this process's child; a table at the end.
    let strace = ["strace", "-D", "-f", "-qq", "-c", "-o"];
    let strace = [&strace[..], &[traced.to_str().unwrap()]].concat();
    let probe = [&strace[1..], &["true"]].concat();
    match run(strace[0], &probe) {
        Some(output) if output.status.success() => {}
        Some(output) => return println!("skipped: strace: {}", text(&output)),
        None => return,
    }
    let table = || fs::read_to_string(&traced).unwrap_or_default();
    eventually("strace's table", || table().contains("total"));
    fs::remove_file(&traced).unwrap();
    let mut daemon = Daemon::start(&strace);
    assert_eq!(daemon.hear(), "READY=1\nSTATUS=forwarding: userspace\n");
    daemon.ask("status");
    daemon.ask("reload");
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.process.wait().unwrap().success());
    eventually("strace's table", || table().contains("total"));
    let table = table();
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| !line.starts_with('-'));
    let made: BTreeSet<&str> = rows
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    assert!(made.len() > 30 && made.contains("bind"), "{table}");
    let refused: Vec<&&str> = made
        .iter()
        .filter(|call| !allowed.contains(**call))
        .collect();
    assert!(refused.is_empty(), "{refused:?}\n{table}");
}
