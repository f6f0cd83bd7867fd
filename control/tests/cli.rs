//! The `virga` binary as an operator uses it: keys, identity, configuration, doctor.
#![allow(clippy::unwrap_used)]

use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::{Command, Output},
};

const VIRGA: &str = env!("CARGO_BIN_EXE_virga");

fn virga(arguments: &[&str]) -> Output {
    Command::new(VIRGA).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn done(arguments: &[&str]) -> String {
    let output = virga(arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        stderr(&output)
    );
    assert_eq!(stderr(&output), "");
    stdout(&output)
}

/// Runs a command that must fail with `code`, and says what it wrote to standard error.
#[track_caller]
fn refused(arguments: &[&str], code: i32) -> String {
    let output = virga(arguments);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {}",
        stderr(&output)
    );
    stderr(&output)
}

/// A folder with all three keys.
fn keys() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys").to_str().unwrap().to_owned();
    done(&["keygen", "--dir", &path, "--psk"]);
    (folder, path)
}

fn write_config(folder: &str, extra: &str) -> String {
    let path = format!("{folder}/node.toml");
    let text = format!(
        "[node]\nname = \"us\"\nnetwork = \"test\"\nnode_key_file = \"node.key\"\n\
         entity_key_file = \"entity.key\"\npsk_file = \"network.psk\"\nlisten = \"127.0.0.1:4783\"\n{extra}"
    );
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn keygen_makes_private_files_once() {
    let (_guard, keys) = keys();
    for (file, label) in [
        ("node.key", "virga-node-key-v1 "),
        ("entity.key", "virga-entity-key-v1 "),
        ("network.psk", "virga-network-psk-v1 "),
    ] {
        let path = Path::new(&keys).join(file);
        assert_eq!(
            fs::metadata(&path).unwrap().mode() & 0o7777,
            0o600,
            "{file}"
        );
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with(label) && text.len() == label.len() + 65,
            "{file}"
        );
    }
    let read = || fs::read(format!("{keys}/node.key")).unwrap();
    let before = read();
    let message = refused(&["keygen", "--dir", &keys], 2);
    assert!(
        message.starts_with("virga: ") && message.contains("--force"),
        "{message}"
    );
    assert_eq!(read(), before);
    done(&["keygen", "--dir", &keys, "--force"]);
    assert_ne!(read(), before);
}

/// What may write no byte, and is ended for trying, leaves each file as it made it.
#[test]
fn a_key_file_is_private_before_its_first_byte() {
    let (_guard, keys) = keys();
    for (arguments, begins) in [
        ("keygen --kind entity --out made.key", "made.key"),
        (
            "keygen --force --kind entity --out node.key",
            "node.key.new-",
        ),
        (
            "entity rotate --honour 0s --key entity.key --node-key node.key --out claims",
            "entity.key.new",
        ),
        (
            "node rotate-key --key node.key --entity-key entity.key --out claims",
            "node.key.new",
        ),
    ] {
        let script = format!("umask 000; ulimit -c 0; ulimit -f 0; exec \"$0\" {arguments}");
        let mut command = Command::new("sh");
        command.current_dir(&keys).args(["-c", &script, VIRGA]);
        assert!(!command.output().unwrap().status.success(), "{arguments}");
        let files = fs::read_dir(&keys).unwrap().map(Result::unwrap);
        let empty = files.filter(|file| file.metadata().unwrap().len() == 0);
        let [made] = &empty.collect::<Vec<_>>()[..] else {
            panic!("{arguments}: one file is empty");
        };
        let name = made.file_name().into_string().unwrap();
        assert!(name.starts_with(begins), "{arguments}: {name}");
        let mode = made.metadata().unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{arguments}");
        fs::remove_file(made.path()).unwrap();
    }
}

#[test]
fn keygen_without_psk_makes_none_and_all_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    fs::write(folder.path().join("entity.key"), "kept").unwrap();
    refused(&["keygen", "--dir", path], 2);
    assert!(!folder.path().join("node.key").exists());
    fs::remove_file(folder.path().join("entity.key")).unwrap();
    let output = done(&["keygen", "--dir", path]);
    assert!(!folder.path().join("network.psk").exists());
    let secret = fs::read_to_string(folder.path().join("node.key")).unwrap();
    let secret = secret.trim().split(' ').nth(1).unwrap();
    assert!(!output.contains(secret));
}

#[test]
fn keygen_in_a_place_that_cannot_be() {
    assert!(refused(&["keygen", "--dir", "/proc/virga"], 1).starts_with("virga: /proc/virga: "));
    refused(&["keygen", "--kind", "node"], 2);
    refused(
        &["keygen", "--kind", "node", "--out", "/x", "--dir", "/y"],
        2,
    );
}

#[test]
fn id_prints_a_block_that_another_node_accepts() {
    let (_us, ours) = keys();
    let (_them, theirs) = keys();
    let block = done(&[
        "id",
        "--dir",
        &theirs,
        "--name",
        "them",
        "--address",
        "127.0.0.1:4784",
    ]);
    let config = write_config(&ours, &block);
    let summary = done(&["check-config", &config]);
    assert!(summary.contains("peer them: "), "{summary}");
    assert!(summary.contains("at 127.0.0.1:4784"), "{summary}");

    let json = done(&[
        "id",
        "--dir",
        &theirs,
        "--name",
        "them",
        "--address",
        "127.0.0.1:4784",
        "--json",
    ]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(block.ends_with(json["peer"].as_str().unwrap()));
    for key in ["node_id", "origin_hash"] {
        assert_eq!(json[key].as_str().unwrap().len(), 16);
        assert!(summary.contains(json[key].as_str().unwrap()), "{key}");
    }
    for key in ["node_key", "entity_key"] {
        assert_eq!(json[key].as_str().unwrap().len(), 64);
    }
}

#[test]
fn id_takes_name_and_address_from_a_configuration() {
    let (_guard, keys) = keys();
    let config = write_config(&keys, "");
    let json: serde_json::Value =
        serde_json::from_str(&done(&["id", "--config", &config, "--json"])).unwrap();
    assert_eq!(
        (json["name"].as_str(), json["address"].as_str()),
        (Some("us"), Some("127.0.0.1:4783"))
    );
    let by_folder = done(&["id", "--dir", &keys]);
    assert!(by_folder.contains(json["node_key"].as_str().unwrap()));
    assert!(by_folder.contains("# address"), "{by_folder}");
    refused(&["id", "--dir", &keys, "--name", "No Name"], 2);
    refused(&["id", "--dir", &keys, "--address", "localhost"], 2);
}

#[test]
fn a_missing_key_file_names_the_line_that_makes_it_and_the_line_works() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let config = write_config(path, "");
    let message = refused(&["check-config", &config], 2);
    let lines: Vec<&str> = message
        .lines()
        .filter_map(|line| line.split("virga keygen ").nth(1))
        .collect();
    assert_eq!(lines.len(), 3, "{message}");
    for line in lines {
        let mut arguments = vec!["keygen"];
        arguments.extend(line.split(' '));
        done(&arguments);
    }
    assert!(done(&["check-config", &config]).contains("node.toml: valid"));
}

#[test]
fn a_key_file_that_others_may_read_is_refused_with_the_line_that_fixes_it() {
    let (_guard, keys) = keys();
    let config = write_config(&keys, "");
    let key = format!("{keys}/network.psk");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let message = refused(&["check-config", &config], 2);
    assert!(
        message.contains("node.toml:6:12: node.psk_file: "),
        "{message}"
    );
    assert!(
        message.contains(&format!("run: chmod 600 {key}")),
        "{message}"
    );
    assert_eq!(refused(&["node", "run", "--config", &config], 2), message);
}

#[test]
fn check_config_lists_everything_at_once() {
    let (_guard, keys) = keys();
    let config = write_config(
        &keys,
        "lisen = 1\nworker_cores = [-1]\n[forwarding]\nmode = \"nativ\"\n",
    );
    let message = refused(&["check-config", &config], 2);
    assert!(
        message.starts_with("virga: 3 problems in the configuration file "),
        "{message}"
    );
    for say in [
        "node.toml:8:1: node.lisen: unknown key; did you mean `listen`?",
        "node.toml:9:17: node.worker_cores: -1 is out of range; use 0 to 1023",
        "node.toml:11:8: forwarding.mode: \"nativ\" is not a forwarding mode; did you mean `native`?",
    ] {
        assert!(message.contains(say), "{message}");
    }
    let output = virga(&["check-config", &config, "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let json: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["ok"], false);
    assert_eq!(json["problems"].as_array().unwrap().len(), 3);
    assert_eq!(json["problems"][0]["line"], 8);
}

#[test]
fn usage_errors_are_code_2_and_missing_nodes_say_what_to_do() {
    refused(&["frobnicate"], 2);
    refused(&["node", "link", "a", "b", "sideways"], 2);
    for command in [
        &["node", "detach", "../x"][..],
        &["node", "link", "../x", "b", "up"],
        &["node", "link", "a", "../x", "up"],
        &["status", "--node", "../x"],
        &["sub", "a", "--node", "../x"],
        &["pub", "a", "--node", "../x"],
    ] {
        let message = refused(command, 2);
        assert!(message.contains("'../x'"), "{message}");
    }
    let message = refused(&["check-config", "/nowhere/node.toml"], 2);
    assert!(
        message.contains("/nowhere/node.toml: No such file"),
        "{message}"
    );
    let message = refused(&["status", "--socket", "/nowhere/node.sock"], 1);
    assert!(message.contains("is it running"), "{message}");
    let message = refused(
        &["pub", "a", "--data", "x", "--socket", "/nowhere/node.sock"],
        1,
    );
    assert!(message.contains("/nowhere/node.sock"), "{message}");
    assert_eq!(virga(&["--version"]).status.code(), Some(0));
}

#[test]
fn doctor_judges_the_host_and_loopback() {
    let output = virga(&[
        "doctor",
        "--interface",
        "lo",
        "--interface",
        "virga-none",
        "--json",
    ]);
    assert!(matches!(output.status.code(), Some(0 | 1)));
    let checks: Vec<serde_json::Value> = serde_json::from_str(&stdout(&output)).unwrap();
    let find = |interface: Option<&str>, name: &str| {
        let found = checks
            .iter()
            .find(|c| c["interface"].as_str() == interface && c["name"] == name);
        found.unwrap_or_else(|| panic!("no check {name}"))
    };
    for name in [
        "kernel",
        "BTF",
        "bpffs",
        "memlock",
        "capabilities",
        "bpf system call",
        "io_uring",
    ] {
        find(None, name);
    }
    assert_eq!(find(Some("lo"), "up")["verdict"], "ok");
    // Before 6.3 the kernel does not say.
    if find(Some("lo"), "native XDP")["verdict"] == "fail" {
        assert_eq!(find(Some("lo"), "MTU")["verdict"], "ok", "nothing to fit");
    }
    assert_eq!(find(Some("virga-none"), "exists")["verdict"], "fail");
    for check in checks.iter().filter(|check| check["verdict"] != "ok") {
        assert!(check["fix"].is_string(), "{check}");
    }
    let table = virga(&["doctor", "--interface", "lo"]);
    assert!(
        stdout(&table)
            .lines()
            .any(|line| line.starts_with("ok") && line.contains("kernel"))
    );
}

#[test]
fn doctor_is_content_with_user_space() {
    let (_guard, keys) = keys();
    let config = write_config(&keys, "[forwarding]\nmode = \"userspace\"\n");
    let output = virga(&["doctor", "--config", &config]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
}

/// In a network namespace of its own, which ends with the command.
#[test]
fn doctor_sees_what_is_wrong_with_a_veth_and_its_fixes_work() {
    let script = format!(
        "set -e
         ip link add va type veth peer name vb mtu 9000
         ip link set va mtu 9000
         {VIRGA} doctor --interface va --json || true
         ip link set va up; ip link set vb up
         ip link set dev va mtu 3498
         ethtool -K vb gro on >/dev/null
         ethtool -K va tx off >/dev/null
         {VIRGA} doctor --interface va --json || true"
    );
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", &script])
        .output();
    let output = match output {
        Ok(output) if output.status.success() => output,
        Ok(output) => {
            return println!(
                "skipped: the namespace could not be set up: {}",
                stderr(&output)
            );
        }
        Err(error) => return println!("skipped: no unshare: {error}"),
    };
    let text = stdout(&output);
    let reports: Vec<Vec<serde_json::Value>> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let verdict = |report: usize, name: &str| {
        let found = reports[report]
            .iter()
            .find(|c| c["interface"] == "va" && c["name"] == name);
        found
            .map(|check| check["verdict"].as_str().unwrap().to_owned())
            .unwrap()
    };
    let names = ["up", "MTU", "veth peer", "TX checksums"];
    assert_eq!(
        names.map(|name| verdict(0, name)),
        ["fail", "fail", "fail", "warn"]
    );
    assert_eq!(names.map(|name| verdict(1, name)), ["ok", "ok", "ok", "ok"]);
    assert_eq!(verdict(1, "native XDP"), "ok");
}

#[test]
fn a_node_warns_of_a_veth_that_leaves_checksums_unfinished() {
    let (_guard, keys) = keys();
    let socket = format!("socket = \"{keys}/api.sock\"\nstate = \"{keys}/state\"\n");
    let forwarding = "[forwarding]\nmode = \"userspace\"\ninterfaces = [\"va\", \"vb\"]\n";
    let config = write_config(&keys, &(socket + forwarding));
    let script = format!(
        "set -e
         ip link set lo up
         ip link add va type veth peer name vb
         ethtool -K vb tx off >/dev/null
         {VIRGA} node run --config {config} 2>{keys}/log & daemon=$!
         for _ in $(seq 600); do grep -q 'node is running' {keys}/log && break; sleep 0.1; done
         kill $daemon
         wait $daemon || true
         cat {keys}/log >&2"
    );
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", &script])
        .output();
    let output = match output {
        Ok(output) if output.status.success() => output,
        Ok(output) => {
            return println!(
                "skipped: the namespace could not be set up: {}",
                stderr(&output)
            );
        }
        Err(error) => return println!("skipped: no unshare: {error}"),
    };
    let log = stderr(&output);
    assert!(log.contains("node is running"), "{log}");
    let warns = |fix: &str| {
        let mut lines = log.lines().filter(|line| line.contains("WARN"));
        lines.any(|line| line.contains(fix))
    };
    assert!(warns("ethtool -K va tx off"), "{log}");
    assert!(!warns("ethtool -K vb tx off"), "{log}");
}

#[test]
fn a_file_larger_than_any_configuration_is_refused_unread() {
    let (_guard, keys) = keys();
    let config = write_config(&keys, "");
    let file = fs::File::options().write(true).open(&config).unwrap();
    file.set_len(1 << 40).unwrap();
    for command in [&["check-config"][..], &["node", "run", "--config"]] {
        let message = refused(&[command, &[&config]].concat(), 2);
        assert!(
            message.contains(&format!("{config}: larger than the 16 MiB")),
            "{message}"
        );
    }
}

#[test]
fn a_fifo_in_a_files_place_is_refused_at_once() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let (_guard, keys) = keys();
    let config = write_config(&keys, "");
    let fifo = |path: &str| {
        fs::remove_file(path).unwrap();
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    };
    let key = format!("{keys}/node.key");
    fifo(&key);
    let why = "it is a FIFO (named pipe), not a regular file";
    for command in [&["check-config"][..], &["node", "run", "--config"]] {
        let message = refused(&[command, &[&config]].concat(), 2);
        assert!(
            message.contains(&format!("{key}: cannot open: {why}")),
            "{message}"
        );
    }
    fifo(&config);
    for command in [&["check-config"][..], &["node", "run", "--config"]] {
        let message = refused(&[command, &[&config]].concat(), 2);
        assert!(
            message.contains("cannot read the configuration file"),
            "{message}"
        );
        assert!(message.contains(why), "{message}");
    }
}

#[test]
fn keys_come_as_credentials_of_the_service_and_never_in_the_configuration() {
    let (folder, keys) = keys();
    let config = write_config(&keys, "");
    let text = fs::read_to_string(&config).unwrap();
    let with = |value: &str| text.replace("\"network.psk\"", &format!("{value:?}"));
    fs::write(&config, with("credential:psk")).unwrap();
    let message = refused(&["check-config", &config], 2);
    let say = "node.psk_file: names the credential psk, and this process was given none";
    assert!(message.contains(say), "{message}");

    // As systemd hands them over: in a folder of the service, read-only, for a group where an access list says so.
    let credentials = folder.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    let psk = credentials.join("psk");
    fs::copy(format!("{keys}/network.psk"), &psk).unwrap();
    let check = |mode| {
        fs::set_permissions(&psk, fs::Permissions::from_mode(mode)).unwrap();
        let mut command = Command::new(VIRGA);
        command.env("CREDENTIALS_DIRECTORY", &credentials);
        command.args(["check-config", &config]).output().unwrap()
    };
    for mode in [0o400, 0o440] {
        let output = check(mode);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stdout(&output).contains("node.toml: valid"));
    }
    let output = check(0o444);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("may be read or written by others"));

    // A key where its file's name belongs is not told once more.
    let key = fs::read_to_string(format!("{keys}/network.psk")).unwrap();
    let digits = key.trim_end().rsplit(' ').next().unwrap();
    for value in [digits, key.trim_end()] {
        fs::write(&config, with(value)).unwrap();
        let message = refused(&["check-config", &config], 2);
        assert!(
            message.contains("node.psk_file: is a key itself"),
            "{message}"
        );
        assert!(!message.contains(&digits[..16]), "{message}");
    }
}

/// Writes a PEM file.
fn pem(path: &str, label: &str, der: &[u8]) {
    let text = STANDARD.encode(der);
    let pem = format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
    fs::write(path, pem).unwrap();
}

#[test]
fn a_certificate_or_key_that_no_node_would_start_with_is_found_before_as_the_start_finds_it() {
    let (folder, keys) = keys();
    let made = [0; 2].map(|_| rcgen::generate_simple_self_signed(["us".to_owned()]).unwrap());
    let [certificate, key] = ["cert.pem", "cert.key"].map(|name| format!("{keys}/{name}"));
    pem(&certificate, "CERTIFICATE", made[0].cert.der());
    pem(&key, "PRIVATE KEY", &made[0].signing_key.serialize_der());
    let config = write_config(
        &keys,
        &format!(
            "socket = \"{0}/us.sock\"\nstate = \"{0}/state\"\n[fallback]\nlisten_ws = \"127.0.0.1:4784\"\n\
             certificate = \"cert.pem\"\ncertificate_key = \"cert.key\"\n",
            folder.path().display()
        ),
    );
    assert!(done(&["check-config", &config]).contains("node.toml: valid"));
    let wrong = |words: &[&str]| {
        let message = refused(&["check-config", &config], 2);
        let start = refused(&["node", "run", "--config", &config], 1);
        let output = virga(&["check-config", &config, "--json"]);
        assert_eq!(output.status.code(), Some(2));
        let verdict: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(verdict["ok"], false);
        let told = verdict["error"].as_str().unwrap();
        for words in words {
            for said in [&*message, &*start, told] {
                assert!(said.contains(words), "{words}: {said}");
            }
        }
    };
    pem(&key, "PRIVATE KEY", &made[1].signing_key.serialize_der());
    wrong(&[&certificate, &key, "the key that it was made for"]);
    fs::write(&key, "no key").unwrap();
    wrong(&["the certificate in [fallback]", &key]);
    fs::remove_file(&key).unwrap();
    wrong(&[&key]);
    pem(&key, "PRIVATE KEY", &made[0].signing_key.serialize_der());
    fs::write(&certificate, "").unwrap();
    wrong(&[&certificate, "holds no certificate"]);
}
