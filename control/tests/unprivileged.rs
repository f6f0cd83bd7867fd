//! What an ordinary user is told who may not do what was asked: what, where, and what to do.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Mutex, PoisonError},
};

/// Held by whoever makes pins: they are all in one folder.
static PINS: Mutex<()> = Mutex::new(());
/// The user that owns nothing.
const NOBODY: u32 = 65_534;

/// A folder that anyone may enter, with the program in it: where it was built is perhaps not for all.
struct User {
    folder: tempfile::TempDir,
    is_root: bool,
}

impl User {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // Another process copies it: a file that this one has open for writing, whoever is started
        // meanwhile has too, and then it cannot be run.
        let copied = Command::new("cp")
            .arg(env!("CARGO_BIN_EXE_virga"))
            .arg(folder.path())
            .status();
        assert!(copied.unwrap().success());
        let is_root = rustix::process::geteuid().is_root();
        Self { folder, is_root }
    }

    /// Runs the program as a user without rights.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(self.path("virga"));
        if self.is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.args(arguments).output().unwrap()
    }

    /// Runs what must fail with `code`, and returns what it said.
    #[track_caller]
    fn refused(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {words}");
        words
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A folder in which this user may do no more than `mode` says.
    fn locked(&self, name: &str, mode: u32) -> String {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Keys that this user may read, and a configuration.
    fn node(&self, rest: &str) -> String {
        let folder = self.path("node");
        let text = folder.to_str().unwrap();
        let made = Command::new(self.path("virga"))
            .args(["keygen", "--dir", text, "--psk"])
            .output();
        assert!(made.unwrap().status.success());
        let config = folder.join("node.toml");
        let words = format!(
            "[node]\nname = \"unprivileged\"\nnetwork = \"test\"\nnode_key_file = \"node.key\"\n\
             entity_key_file = \"entity.key\"\npsk_file = \"network.psk\"\n\
             listen = \"127.0.0.19:4783\"\n{rest}"
        );
        fs::write(&config, words).unwrap();
        if self.is_root {
            for file in ["", "node.key", "entity.key", "network.psk", "node.toml"] {
                chown(folder.join(file), Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        config.to_str().unwrap().to_owned()
    }
}

#[test]
fn keygen_names_the_folder_and_what_to_do() {
    let user = User::new();
    let locked = user.locked("locked", 0o555);
    let words = user.refused(&["keygen", "--dir", &format!("{locked}/keys")], 1);
    assert_eq!(
        words,
        format!(
            "virga: {locked}/keys: cannot make this folder (--dir names another): Permission denied \
             (os error 13); run as root (sudo virga ...), or as a user who may\n"
        )
    );
    let words = user.refused(&["keygen", "--dir", &locked], 1);
    assert!(
        words.contains(&locked) && words.contains("run as root"),
        "{words}"
    );
}

#[test]
fn init_names_the_folder_and_invite_the_key() {
    let user = User::new();
    let locked = user.locked("locked", 0o555);
    for dir in [&locked, &format!("{locked}/virga")] {
        let words = user.refused(&["init", "--name", "n", "--dir", dir], 1);
        assert!(
            words.contains(dir.as_str()) && words.contains("run as root"),
            "{words}"
        );
    }
    let config = user.node("");
    let key = Path::new(&config).with_file_name("network.psk");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o000)).unwrap();
    let words = user.refused(&["invite", "--config", &config], 2);
    let place = format!("{}: cannot open: Permission denied", key.display());
    assert!(words.contains(&place), "{words}");
}

#[test]
fn a_key_that_may_not_be_read_is_named() {
    let user = User::new();
    let config = user.node("");
    let key = Path::new(&config).with_file_name("node.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o000)).unwrap();
    for command in [
        &["node", "run", "--config", &config][..],
        &["doctor", "--config", &config],
        &["check-config", &config],
    ] {
        let words = user.refused(command, 2);
        let place = format!(
            "{}: cannot open: Permission denied (os error 13); run as root",
            key.display()
        );
        assert!(words.contains(&place), "{words}");
    }
}

#[test]
fn a_socket_that_may_not_be_opened_or_made_is_named() {
    let user = User::new();
    let locked = user.locked("locked", 0o000);
    let socket = format!("{locked}/a.sock");
    let words = user.refused(&["status", "--socket", &socket], 1);
    assert!(
        words.contains("run as root, or as a member of the node's `socket_group`"),
        "{words}"
    );

    let config = user.node(&format!("socket = \"{locked}/run/a.sock\"\n"));
    let words = user.refused(&["node", "run", "--config", &config], 1);
    assert!(
        words.contains("/locked/run: cannot create the directory of the socket (`socket` under [node] names another): Permission denied"),
        "{words}"
    );
    assert!(words.contains("run as root"), "{words}");
}

#[test]
fn a_nic_path_takes_rights_that_are_named() {
    let _pins = PINS.lock().unwrap_or_else(PoisonError::into_inner);
    let user = User::new();
    let socket = user.path("node").join("a.sock");
    let config = user.node(&format!(
        "socket = \"{}\"\n[forwarding]\nmode = \"native\"\ninterfaces = [\"lo\"]\n",
        socket.display()
    ));
    let words = user.refused(&["node", "run", "--config", &config], 1);
    if words.contains("no BPF file system") {
        return println!("skipped: {words}");
    }
    assert!(
        words.contains("run as root, or with CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON"),
        "{words}"
    );
    let output = user.run(&["doctor", "--interface", "lo"]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        table.contains("without CAP_NET_ADMIN and CAP_BPF"),
        "{table}"
    );
    assert!(table.contains("-> run as root"), "{table}");
}

/// The folder of all nodes' pins is the root user's alone: who may not look must not say "nothing".
#[test]
fn detaching_what_may_not_be_seen_is_an_error() {
    let _pins = PINS.lock().unwrap_or_else(PoisonError::into_inner);
    let user = User::new();
    let pins = Path::new("/sys/fs/bpf/virga");
    let name = "virga-unseen";
    if !user.is_root || fs::create_dir_all(pins.join(name)).is_err() {
        return println!("skipped: this user may not make {}", pins.display());
    }
    fs::set_permissions(pins, fs::Permissions::from_mode(0o700)).unwrap();
    let words = user.refused(&["node", "detach", name], 1);
    assert!(
        words.contains(
            "/sys/fs/bpf/virga/virga-unseen: Permission denied (os error 13); run as root"
        ),
        "{words}"
    );
    let detached = Command::new(user.path("virga"))
        .args(["node", "detach", name])
        .output();
    assert!(detached.unwrap().status.success());
    assert!(!pins.join(name).exists());
}
