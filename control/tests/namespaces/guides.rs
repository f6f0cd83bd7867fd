//! The guides' commands, typed as they are written, on a machine of their own: a router whose `/etc`, `/run`, `/var/lib`, bpffs
//! and network are this test's. What is for elsewhere is typed at the far end of its first link.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use serde_json::Value;

use crate::stage::virga;

/// In an order in which they can be followed: cards are tuned before the node starts. That of sites behind NATs wants five
/// machines, which `nat.rs` has.
const GUIDES: [&str; 5] = ["tuning", "deploy", "sizing", "upgrade", "drops"];
/// The machine: `eth0` and `eth1` lead to two networks, as in the example of three hosts.
const MACHINE: &str = r#"
set -euo pipefail
mount --make-rprivate /
mkdir etc && cp -a /etc/. etc && mount --bind etc /etc
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
for n in 0 1; do
    ip link add "eth$n" numrxqueues 8 numtxqueues 8 type veth peer name "far$n" numrxqueues 8 numtxqueues 8
    ethtool -K "eth$n" tx off >/dev/null && ethtool -K "far$n" tx off gro on >/dev/null
    ip addr add "10.77.$((n + 1)).1/24" dev "eth$n"
    ip link set "eth$n" up && ip link set "far$n" up
done
ip netns add other
ip link set far0 netns other
ip addr add 192.0.2.1/24 dev eth0
nsenter --net=/run/netns/other ip addr add 192.0.2.2/24 dev far0
nsenter --net=/run/netns/other ip link set far0 up
sudo() { "$@"; }
export -f sudo
elsewhere() { nsenter --net=/run/netns/other bash -euo pipefail -c "$1"; }
command -v tshark >/dev/null || tshark() { echo "skipped: tshark is not installed"; }
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
"#;
/// Waits for what was started in the background.
const STARTED: &str = r#"
for _ in $(seq 300); do [ -S /run/virga/router.sock ] && break; sleep 0.1; done
"#;

/// The commands of a guide that are for this machine, and those for the one beside it, as they are typed.
fn commands(guide: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join(format!("docs/guides/{guide}.md"))).unwrap();
    let mut found = Vec::new();
    for block in text.split("\n```sh").skip(1) {
        let (class, rest) = block.split_once('\n').unwrap();
        let lines = rest.split_once("\n```").unwrap().0.lines();
        let lines = lines.filter(|line| !line.is_empty());
        for line in lines {
            match class.trim() {
                "" => found.push((line.to_owned(), line.to_owned())),
                "elsewhere" => found.push((line.to_owned(), format!("elsewhere '{line}'"))),
                _ => {}
            }
        }
    }
    found
}

/// What the bundle that a guide's command has left says of the maps.
fn maps(folder: &Path) -> Value {
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut bundles = files.filter(|path| path.extension().is_some_and(|e| e == "gz"));
    let reader = flate2::read::GzDecoder::new(fs::File::open(bundles.next().unwrap()).unwrap());
    let mut archive = tar::Archive::new(reader);
    let mut entries = archive.entries().unwrap().map(Result::unwrap);
    let maps = entries.find(|entry| entry.path().unwrap().ends_with("maps.json"));
    serde_json::from_reader(maps.unwrap()).unwrap()
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn every_command_of_the_guides_works_as_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for name in ["control", "hw"] {
        symlink(root.join(name), folder.path().join(name)).unwrap();
    }
    let guides = fs::read_dir(root.join("docs/guides")).unwrap();
    assert_eq!(guides.count(), GUIDES.len() + 1, "every guide is read");
    let mut script = MACHINE.to_owned();
    let mut typed = 0;
    for guide in GUIDES {
        for (command, typing) in commands(guide) {
            typed += 1;
            script += &format!(
                "echo \"+ {guide}: {}\"\n{typing}\n",
                command.replace(['"', '$'], "")
            );
            if command.ends_with('&') {
                script += STARTED;
            }
        }
    }
    assert!(typed >= 20, "{typed}");
    let path = folder.path().join("commands");
    fs::write(&path, script).unwrap();
    let found = std::env::var("PATH").unwrap_or_default();
    let programs = virga().parent().unwrap().display().to_string();
    // When its first process ends, whatever it started ends.
    let output = Command::new("unshare")
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            "bash",
        ])
        .arg(&path)
        .current_dir(folder.path())
        .env("PATH", format!("{programs}:{found}"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{words}");
    // The router of the guide forwards in its NIC, and its bundle counts what is in the maps.
    assert!(said.contains("\"mode\":\"native\""), "{said}\n{words}");
    let maps = maps(folder.path());
    let used = |map: &str| {
        let one = maps
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["map"] == map);
        one.unwrap()["used"].as_u64().unwrap()
    };
    assert!(used("neighbours") >= 2 && used("pairs") >= 1, "{maps}");
    println!("{typed} commands of {} guides", GUIDES.len());
}
