//! What goes into a bundle: from the files, the kernel and the running node, each as far as it can be had.

use super::{Bundle, Keep, redact};
use crate::{
    api::status::Status,
    cause,
    config::{Config, FILE_BYTES_MAX, SOCKET_DIRECTORY, secrets},
    doctor, drops, files, hex,
    keys::{self, KeyKind},
    metrics,
    nic::fill,
    tags,
};
use serde::Serialize;
use std::{
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::Command,
};
use virga_ebpf::limits::LAYOUT_VERSION;
use zeroize::Zeroizing;

/// Bytes of one of the kernel's files.
const KERNEL_FILE_BYTES_MAX: u64 = 256 << 10;
/// Lines of the journal.
const JOURNAL_LINES: &str = "--lines=5000";
/// What the kernel says of itself, the machine and its network.
const KERNEL: [&str; 20] = [
    "/etc/os-release",
    "/proc/version",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/proc/interrupts",
    "/proc/softirqs",
    "/proc/net/dev",
    "/proc/net/snmp",
    "/proc/net/snmp6",
    "/proc/net/softnet_stat",
    "/proc/net/udp",
    "/proc/net/udp6",
    "/proc/sys/net/core/bpf_jit_enable",
    "/proc/sys/net/core/netdev_max_backlog",
    "/proc/sys/net/core/rmem_max",
    "/proc/sys/net/core/wmem_max",
    "/proc/sys/kernel/unprivileged_bpf_disabled",
    "/sys/devices/system/cpu/online",
];
/// What it says of the node's process.
const PROCESS: [&str; 4] = ["status", "limits", "schedstat", "wchan"];

#[derive(Serialize)]
struct Versions<'a> {
    virga: &'static str,
    running: Option<&'a str>,
    map_layout: u32,
    target: &'static str,
}

/// One kind of drop, as `virga drops --json` has it.
#[derive(Serialize)]
struct Drop<'a> {
    #[serde(flatten)]
    kind: &'a drops::Kind,
    count: u64,
    meaning: &'static str,
    fix: Option<&'static str>,
}

/// The configuration, and the keys that it names, so that they are looked for in all else. Comes first.
pub fn configuration(bundle: &mut Bundle, path: &Path) -> Option<Config> {
    const NAME: &str = "config.json";
    let text = match read(path, FILE_BYTES_MAX, Keep::Beginning) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => {
            bundle.lack(NAME, format_args!("{}: {error}", path.display()));
            bundle.distrust_logs("the configuration that names the keys cannot be read");
            return None;
        }
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let table = text.parse::<toml::Table>().unwrap_or_default();
    let text_of = |key: &str| table.get("node")?.get(key)?.as_str();
    for (kind, key) in [
        (KeyKind::Node, "node_key_file"),
        (KeyKind::Entity, "entity_key_file"),
        (KeyKind::Psk, "psk_file"),
    ] {
        let learned = text_of(key)
            .ok_or_else(|| format!("{} names none by `{key}`", path.display()))
            .and_then(|file| secrets::file(folder, file).map_err(|fault| fault.to_string()))
            .and_then(|named| {
                let secret = match named.is_credential {
                    true => keys::read_credential(kind, &named.path),
                    false => keys::read(kind, &named.path),
                };
                secret.map_err(|error| cause::chain(&error))
            });
        match learned {
            Ok(secret) => bundle.redactor().learn(secret.expose()),
            Err(why) => bundle.distrust_logs(&why),
        }
    }
    let carried = table
        .get("fallback")
        .and_then(|it| it.get("certificate_key"));
    if let Some(file) = carried.and_then(toml::Value::as_str) {
        let text = secrets::file(folder, file)
            .map_err(|fault| fault.to_string())
            .and_then(|named| {
                let bytes = read(&named.path, FILE_BYTES_MAX, Keep::Beginning);
                bytes.map_err(|error| format!("{}: {error}", named.path.display()))
            });
        match text {
            Ok(bytes) => {
                let text = Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
                let lines = text.lines().filter(|line| !line.starts_with("-----"));
                lines.for_each(|line| bundle.redactor().learn_text(line.trim()));
            }
            Err(why) => bundle.distrust_logs(&why),
        }
    }
    let usual = |name| Path::new(SOCKET_DIRECTORY).join(format!("{name}.sock"));
    let socket = text_of("socket").map(PathBuf::from);
    if let Some(socket) = socket.or_else(|| text_of("name").map(usual)) {
        link_keys(bundle, &socket);
    }
    match redact::configuration(&text) {
        Some(value) => bundle.add_json(NAME, &value),
        None => bundle.lack(NAME, format_args!("{} is not TOML", path.display())),
    }
    match Config::load(path) {
        Ok(config) => Some(config),
        Err(error) => {
            let words = redact::without_long_runs(&cause::chain(&error));
            bundle.add("config-problems.txt", words.as_bytes(), Keep::Beginning);
            None
        }
    }
}

/// Learns the keys of link tags, both of a link together and each alone.
fn link_keys(bundle: &mut Bundle, socket: &Path) {
    let saved = std::fs::read_to_string(tags::file(socket)).unwrap_or_default();
    for key in saved
        .split_whitespace()
        .filter_map(|word| hex::decode(word).ok())
    {
        let (even, odd) = key.split_at(key.len() / 2);
        for secret in [&key, even, odd] {
            bundle.redactor().learn(secret);
        }
    }
}

/// What runs, what the machine lacks, and how full the maps are.
pub fn machine(bundle: &mut Bundle, config: Option<&Config>, status: Option<&Status>) {
    bundle.add_json(
        "versions.json",
        &Versions {
            virga: env!("CARGO_PKG_VERSION"),
            running: status.map(|status| status.node.version.as_str()),
            map_layout: LAYOUT_VERSION,
            target: std::env::consts::ARCH,
        },
    );
    bundle.add_json("doctor.json", &doctor::examine(&[], config));
    if let Some(config) = config {
        match fill::of(&config.node.name, config.forwarding.destinations_max) {
            Ok(maps) => bundle.add_json("maps.json", &maps),
            Err(error) => bundle.lack("maps.json", cause::chain(&error)),
        }
    }
    for path in KERNEL {
        kernel(bundle, path);
    }
    if let Some(status) = status {
        for file in PROCESS {
            kernel(bundle, &format!("/proc/{}/{file}", status.node.pid));
        }
    }
}

/// What a running node says.
pub fn running(bundle: &mut Bundle, status: &Status) {
    bundle.add_json("status.json", status);
    let counts = drops::counts(status);
    let counts = counts.iter().map(|(kind, &count)| Drop {
        kind,
        count,
        meaning: kind.meaning(),
        fix: kind.fix(),
    });
    bundle.add_json("drops.json", &counts.collect::<Vec<_>>());
    let metrics = metrics::text::of(status);
    bundle.add("metrics.txt", metrics.as_bytes(), Keep::Beginning);
}

/// The end of a log that was named.
pub fn log(bundle: &mut Bundle, path: &Path) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = format!("log/{name}");
    match read(path, super::LOG_BYTES_MAX as u64, Keep::End) {
        Ok(bytes) => bundle.add_log(&name, &bytes),
        Err(error) => bundle.lack(&name, format_args!("{}: {error}", path.display())),
    }
}

/// What the system's journal has of this program.
pub fn journal(bundle: &mut Bundle) {
    const NAME: &str = "log/journal.txt";
    let arguments = [
        "--no-pager",
        "--output=short-iso-precise",
        JOURNAL_LINES,
        "_COMM=virga",
    ];
    match Command::new("journalctl").args(arguments).output() {
        Ok(output) if output.status.success() => bundle.add_log(NAME, &output.stdout),
        Ok(output) => bundle.lack(NAME, String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => bundle.lack(NAME, format_args!("journalctl: {error}")),
    }
}

fn kernel(bundle: &mut Bundle, path: &str) {
    let name = format!("kernel{path}");
    match read(Path::new(path), KERNEL_FILE_BYTES_MAX, Keep::Beginning) {
        Ok(bytes) => bundle.add(&name, &bytes, Keep::Beginning),
        Err(error) => bundle.lack(&name, error),
    }
}

/// So many bytes of a file, and no more.
fn read(path: &Path, bytes_max: u64, keep: Keep) -> io::Result<Vec<u8>> {
    let mut file = files::open(path)?;
    if keep == Keep::End {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes_max)))?;
    }
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}
