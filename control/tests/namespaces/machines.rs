//! Machines whose `/etc`, `/run`, `/var/lib`, bpffs, name and network are a test's: what is typed there as README and documents
//! have it (the guides have a test of their own), and what the nodes of one machine must not share.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::stage::virga;

/// From two machines with nothing on them to an event from one to the other. It takes seconds.
const JOINED_WITHIN: Duration = Duration::from_secs(60);
/// What a machine has for itself; it is called `$1`, and keeps its `/etc` in a folder of that name.
const OWN: &str = r#"
set -euo pipefail
own() {
    mount --make-rprivate /
    mkdir "$1" && cp -a /etc "$1" && mount --bind "$1/etc" /etc && rm -rf /etc/virga
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /var/lib
    mount -t sysfs sysfs /sys
    mount -t bpf bpf /sys/fs/bpf
    echo "$1" >/proc/sys/kernel/hostname
    ip link set lo up
}
until_so() {
    local _
    for _ in $(seq 600); do if "$@" >/dev/null 2>&1; then return 0; fi; sleep 0.1; done
    echo "not within a minute: $*" >&2
    tail -n +1 said-* >&2 || true
    exit 1
}
"#;
/// Two machines, `a` and `b`, and a link between them.
const TWO: &str = r#"
unshare --mount --net --uts bash -c "$(declare -f own); own b && touch b/is-there; exec sleep infinity" &
b=$!
own a
until_so test -e b/is-there
at_a() { eval "$1"; }
at_b() { nsenter --target "$b" --mount --net --uts --wd="$PWD" bash -euo pipefail -c "$1"; }
ip link add eth0 numrxqueues 8 numtxqueues 8 type veth peer name eth0 numrxqueues 8 numtxqueues 8 netns "$b"
for at in "a 10.77.9.1 10.77.9.2" "b 10.77.9.2 10.77.9.1"; do
    read -r host address other <<<"$at"
    "at_$host" "ethtool -K eth0 tx off gro on >/dev/null"
    "at_$host" "ip addr add $address/24 dev eth0; ip link set eth0 up; ip route add default via $other"
done
"#;

/// Runs a script on a machine of its own, in a folder of its own; what it says.
fn typed(script: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    // For a user without rights, too.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), mode).unwrap();
    let path = folder.path().join("script");
    fs::write(&path, script).unwrap();
    let found = std::env::var("PATH").unwrap_or_default();
    let programs = virga().parent().unwrap().display().to_string();
    // When its first process ends, whatever it started ends.
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--uts", "--pid", "--fork"])
        .args(["--mount-proc", "--kill-child", "bash"])
        .arg(&path)
        .current_dir(folder.path())
        .env("PATH", format!("{programs}:{found}"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{told}");
    said
}

/// The lines of all blocks of commands of a document, or of one section of it.
fn lines(document: &str, section: Option<&str>) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join(document)).unwrap();
    let within = match section {
        None => &*text,
        Some(section) => {
            let (_, rest) = text.split_once(&format!("\n## {section}\n")).unwrap();
            rest.split("\n## ").next().unwrap()
        }
    };
    let blocks = within.split("```sh\n").skip(1);
    let lines = blocks.flat_map(|block| block.split("```").next().unwrap().lines());
    lines.map(str::to_owned).collect()
}

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn the_readmes_lines_join_two_empty_machines_within_a_minute() {
    let lines = lines("README.md", Some("Two machines in a minute"));
    let [init, invite, join, subscribe] = &lines[..] else {
        panic!("{lines:?}");
    };
    let (_, publish) = subscribe.split_once("at the first: ").unwrap();
    let (join, _) = join.split_once("AAAA").unwrap();
    assert_eq!(join, "virga init --join virga1:");
    let script = format!(
        r#"{OWN}{TWO}
began=$(date +%s%N)
at_a '{init}' | tee said-a-init
at_a "$(sed -n 's/^run it: //p' said-a-init)" 2>said-a &
at_a '{invite}' >line 2>said-a-invite &
invite=$!
until_so grep -q . line
grep -q '^{join}' line
at_b "$(cat line)" | tee said-b-init
at_b "$(sed -n 's/^run it: //p' said-b-init)" 2>said-b &
wait "$invite"
for host in a b; do until_so "at_$host" 'test -S /run/virga/*.sock'; done
at_b '{subscribe}' >heard 2>said-b-sub &
until_so grep -q '1 publisher has confirmed (a)' said-b-sub
at_a '{publish}'
until_so grep -q hello heard
echo "took $((($(date +%s%N) - began) / 1000000)) ms"
at_a 'virga status' >said-a-status
grep -q 'forwarding: native' said-a-status
"#
    );
    let began = Instant::now();
    let said = typed(&script);
    // Doctor has the last word at each.
    let doctor = said.matches("virga doctor says of this machine:").count();
    assert_eq!(doctor, 2, "{said}");
    let (_, took) = said.rsplit_once("took ").unwrap();
    let took = took.split(' ').next().unwrap().parse().unwrap();
    let took = Duration::from_millis(took);
    println!("by the README's lines: {took:?} of {:?}", began.elapsed());
    assert!(took < JOINED_WITHIN, "{said}");
}

/// Nodes called `same` in user space, each with a folder, keys, a port and a network of its own; `usual` has its socket in
/// `/run/virga`, which belongs to the user that the service has.
const SAME: &str = r#"
own machine
mkdir /run/virga /run/nodes && chown 12345:12345 /run/virga /run/nodes && chmod 750 /run/virga
touch /run/program && mount --bind "$(command -v virga)" /run/program
# The words that make somebody run what is behind them.
as() {
    case $1 in
        root) words=(env) ;;
        *) words=(setpriv --reuid "$1" --regid "$1" --clear-groups) ;;
    esac
}
made() {
    local socket=/run/nodes/$2/api.sock
    [ "$2" != usual ] || socket=/run/virga/same.sock
    as "$1"
    "${words[@]}" /run/program init --name same --dir "/run/nodes/$2" --socket "$socket" --state "/run/nodes/$2/state" \
        --listen "127.0.0.1:$3" --no-service >/dev/null
}
# In the background, once it answers.
run() {
    local said=said-${2##*/}
    rm -f "$said"
    as "$1"
    "${words[@]}" /run/program node run --config "/run/nodes/$2/node.toml" 2>"$said" &
    running=$!
    until_so grep -q 'node is running' "$said"
    ! grep 'cannot be locked' "$said" >&2
}
stop() { kill "$1" && wait "$1"; }
refused() {
    local status=0
    as "$1"
    "${words[@]}" timeout 60 /run/program node run --config "/run/nodes/$2/node.toml" 2>said || status=$?
    cat said >&2
    [ "$status" = 1 ] && grep -qF "$3" said
}
taken() { refused "$1" "$2" "another daemon runs node same: it holds /run/virga/same.lock; stop it first"; }
"#;

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn a_name_is_one_nodes_on_a_machine_whoever_runs_it_and_wherever() {
    let script = format!(
        r#"{OWN}{SAME}
made 12345 usual 4001
made root elsewhere 4002
made root another 4003
# Root by hand makes the lock, and the service's user holds it the next time.
run root usual
stop "$running"
[ "$(stat -c '%u %a' /run/virga/same.lock)" = "12345 600" ]
# What a daemon of root's that was killed has left cannot be tried by that user, who is told what to do.
run root usual
kill -KILL "$running" && ! wait "$running"
chown -R 12345 /run/nodes/usual
refused 12345 usual '/run/virga/same.sock belongs to user 0'
rm /run/virga/same.sock
run 12345 usual
usual=$running
taken root elsewhere
taken root another
# The first goes on, and whoever asks for it by its name finds it.
kill -0 "$usual"
as 12345
"${{words[@]}}" /run/program status --node same >status
grep -q same status
stop "$usual"
# Begun before: those elsewhere get along with each other, and keep the name from the usual place.
run root elsewhere
elsewhere=$running
run root another
taken 12345 usual
stop "$elsewhere"
taken 12345 usual
stop "$running"
run 12345 usual
# A user who may not look into /run/virga has no part in it.
install -d -o 54321 /run/nodes/others
made 54321 others/node 4004
run 54321 others/node
"#
    );
    typed(&script);
}

/// A node that keeps a channel, with an event in it, and logs beside it that are signed.
const KEEPING: &str = r#"
own machine
virga init --name edge-a --listen 127.0.0.1:4783 --no-service >/dev/null
cat >>/etc/virga/node.toml <<'TOML'

[[channels]]
name = "metrics/edge-a"
publish = ["edge-a"]
subscribe = ["edge-a"]
persist = true
TOML
for _ in $(seq 50); do echo '{"text": "{\"key\": \"a\", \"add\": 3}"}'; done >events.ndjson
for log in alarms metrics/edge-a; do
    virga log import "$log" --logs logs --sign-with /etc/virga/entity.key <events.ndjson
done
virga node run --config /etc/virga/node.toml 2>said-edge-a &
until_so test -S /run/virga/edge-a.sock
virga pub metrics/edge-a --data hello
"#;

#[test]
#[ignore = "needs root: scripts/test runs it"]
fn the_commands_about_logs_work_as_they_are_written() {
    let mut script = format!("{OWN}{KEEPING}");
    let lines = lines("docs/logs.md", None);
    for line in &lines {
        // A comment may have an apostrophe.
        let typed = line.split(" # ").next().unwrap();
        script += &match line.split(' ').take(3).collect::<Vec<_>>()[..] {
            // They do not end by themselves.
            ["virga", "log", "tail"] => {
                format!("timeout 2 bash -c '{typed}' || [ $? = 124 ]\n")
            }
            ["virga", "sub", _] => {
                format!(
                    "rm -f heard; bash -c '{typed}' >heard 2>said-sub &\nuntil_so grep -q hello heard; kill $!\n"
                )
            }
            _ => format!("{line}\n"),
        };
    }
    let said = typed(&(script + "wc -l <exported.ndjson\n"));
    assert!(said.ends_with("100\n"), "{said}");
    assert!(lines.len() >= 11, "{lines:?}");
    assert!(said.contains("50 of 100 events are signed"), "{said}");
    assert!(said.contains("a\t450"), "{said}");
}
