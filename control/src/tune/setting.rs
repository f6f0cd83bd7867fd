//! One thing of a host or a card that can be read and set.

use super::facts::NEW_INTERRUPTS;
use crate::io::ethtool::{Ethtool, Flow};
use std::{
    fmt, fs, io,
    path::{Component, Path, PathBuf},
    process::Command,
};
use virga_ebpf::limits::UDP_PORT;

/// What is set. Values are text, as the tool or the file takes them.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Setting {
    /// `ethtool -L`: how many queues of a kind.
    Channels(Kind),
    /// `ethtool -G`: how many frames a ring of a kind holds.
    Ring(Kind),
    /// `ethtool -K`: a feature by the kernel's name of it, on or off.
    Feature(String),
    /// `ethtool -C`: microseconds until an interrupt.
    RxUsecs,
    /// `ethtool -C`: whether the card changes that by itself, on or off.
    AdaptiveRx,
    /// `ethtool -X`: over how many queues the indirection table spreads, evenly.
    Spread,
    /// `ethtool -N … rx-flow-hash`: which fields a flow is hashed by.
    FlowHash(Flow),
    /// `ethtool -N`: the rule that sends the mesh to a queue: `none`, `queue N`, or `rule ID` once it is there.
    Steer(Flow),
    /// A file below /sys or /proc.
    File(PathBuf),
}

/// A kind of queue or ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Receives.
    Rx,
    /// Sends.
    Tx,
    /// Does both.
    Combined,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rx => "rx",
            Self::Tx => "tx",
            Self::Combined => "combined",
        })
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp4 => "udp4",
            Self::Udp6 => "udp6",
        })
    }
}

/// What changes a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A program and its arguments.
    Run(Vec<String>),
    /// A text into a file.
    Write(PathBuf, String),
    /// Nothing needs doing.
    Nothing,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(words) => f.write_str(&words.join(" ")),
            Self::Write(path, text) => write!(f, "echo {text} > {}", path.display()),
            Self::Nothing => f.write_str("true"),
        }
    }
}

impl Setting {
    /// Its value now; `None` where it is not there or cannot be put into a word.
    pub(crate) fn read(&self, ethtool: &Ethtool) -> Option<String> {
        let on_off = |is_on| String::from(if is_on { "on" } else { "off" });
        match self {
            Self::Channels(kind) => {
                let channels = ethtool.channels().ok()?;
                Some(match kind {
                    Kind::Rx => channels.rx.to_string(),
                    Kind::Tx => channels.tx.to_string(),
                    Kind::Combined => channels.combined.to_string(),
                })
            }
            Self::Ring(kind) => {
                let rings = ethtool.rings().ok()?;
                match kind {
                    Kind::Rx => Some(rings.rx.to_string()),
                    Kind::Tx => Some(rings.tx.to_string()),
                    Kind::Combined => None,
                }
            }
            Self::Feature(name) => {
                let features = ethtool.feature_list().ok()?;
                let feature = features.into_iter().find(|f| f.name == *name)?;
                Some(on_off(feature.is_active))
            }
            Self::RxUsecs => Some(ethtool.coalesce().ok()?.rx_usecs.to_string()),
            Self::AdaptiveRx => Some(on_off(ethtool.coalesce().ok()?.is_adaptive_rx)),
            Self::Spread => spread(&ethtool.indirection().ok()?).map(|n| n.to_string()),
            Self::FlowHash(flow) => ethtool.flow_hash(*flow).ok(),
            Self::Steer(_) => None,
            Self::File(path) => Some(fs::read_to_string(path).ok()?.trim().to_owned()),
        }
    }

    /// What sets it.
    pub(crate) fn action(&self, interface: &str, value: &str) -> Action {
        let run = |line: String| {
            let words = line.split(' ').map(str::to_owned);
            Action::Run(std::iter::once("ethtool".to_owned()).chain(words).collect())
        };
        match self {
            Self::Channels(kind) => run(format!("-L {interface} {kind} {value}")),
            Self::Ring(kind) => run(format!("-G {interface} {kind} {value}")),
            Self::Feature(name) => run(format!("-K {interface} {name} {value}")),
            Self::RxUsecs => run(format!("-C {interface} rx-usecs {value}")),
            Self::AdaptiveRx => run(format!("-C {interface} adaptive-rx {value}")),
            Self::Spread => run(format!("-X {interface} equal {value}")),
            Self::FlowHash(flow) => run(format!("-N {interface} rx-flow-hash {flow} {value}")),
            Self::Steer(flow) => match value.split_once(' ') {
                Some(("queue", queue)) => run(format!(
                    "-N {interface} flow-type {flow} dst-port {UDP_PORT} action {queue}"
                )),
                Some(("rule", id)) => run(format!("-N {interface} delete {id}")),
                _ => Action::Nothing,
            },
            Self::File(path) => Action::Write(path.clone(), value.to_owned()),
        }
    }

    /// Whether it goes when the interface goes: an interrupt's number may then be another card's.
    pub(crate) fn is_of_the_interface(&self) -> bool {
        match self {
            Self::File(path) if path == Path::new(NEW_INTERRUPTS) => false,
            Self::File(path) => path.starts_with("/sys/class/net") || path.starts_with("/proc/irq"),
            _ => true,
        }
    }
}

/// Over how many queues a table spreads evenly, as `ethtool -X … equal N` makes it.
pub(crate) fn spread(table: &[u32]) -> Option<u32> {
    let queues = table.iter().max()?.checked_add(1)?;
    let is_even = table.iter().zip((0..queues).cycle()).all(|(a, b)| *a == b);
    is_even.then_some(queues)
}

impl Action {
    /// Does it; what a program said, on success.
    pub(crate) fn perform(&self) -> io::Result<String> {
        match self {
            Self::Nothing => Ok(String::new()),
            Self::Write(path, text) => {
                if !is_kernels(path) {
                    let said = format!("{} is not below /sys or /proc", path.display());
                    return Err(io::Error::other(said));
                }
                fs::write(path, text).map(|()| String::new())
            }
            Self::Run(words) => {
                let (program, arguments) = words.split_first().ok_or(io::ErrorKind::NotFound)?;
                let output = Command::new(program).args(arguments).output();
                let output = output.map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => io::Error::other(format!(
                        "{program} is not installed: apt install {program}"
                    )),
                    _ => error,
                })?;
                if output.status.success() {
                    return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
                }
                let said = String::from_utf8_lossy(&output.stderr);
                Err(io::Error::other(said.trim().replace('\n', "; ")))
            }
        }
    }
}

/// A state file names paths; none but the kernel's are written.
fn is_kernels(path: &Path) -> bool {
    let is_below = path.starts_with("/sys") || path.starts_with("/proc");
    is_below && !path.components().any(|part| part == Component::ParentDir)
}

/// The rule's number in a value such as `rule 1023`.
pub(crate) fn rule_of(value: &str) -> Option<u32> {
    value.strip_prefix("rule ")?.parse().ok()
}

/// Whether a value tells of a rule that the card does not have, where it says which it has.
pub(crate) fn is_missing_rule(value: &str, rules: Option<&[u32]>) -> bool {
    match (rule_of(value), rules) {
        (Some(id), Some(rules)) => !rules.contains(&id),
        _ => false,
    }
}

/// The rule's number in what `ethtool -N` prints: `Added rule with ID 1023`.
pub(crate) fn rule_id(said: &str) -> Option<u32> {
    let (_, id) = said.split_once("rule with ID ")?;
    id.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_tables_are_told_from_others() {
        assert_eq!(spread(&[0, 1, 2, 0, 1, 2, 0]), Some(3));
        assert_eq!(spread(&[0, 0, 0]), Some(1));
        assert_eq!(spread(&[0, 1, 1, 0]), None);
        assert_eq!(spread(&[1, 0]), None);
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[u32::MAX]), None);
    }

    #[test]
    fn commands_are_what_an_operator_would_type() {
        let line = |setting: Setting, value| setting.action("eth0", value).to_string();
        let combined = Setting::Channels(Kind::Combined);
        assert_eq!(line(combined, "8"), "ethtool -L eth0 combined 8");
        assert_eq!(
            line(Setting::Ring(Kind::Rx), "2048"),
            "ethtool -G eth0 rx 2048"
        );
        assert_eq!(
            line(Setting::FlowHash(Flow::Udp6), "sdfn"),
            "ethtool -N eth0 rx-flow-hash udp6 sdfn"
        );
        let steer = Setting::Steer(Flow::Udp4);
        assert_eq!(
            line(steer.clone(), "queue 3"),
            "ethtool -N eth0 flow-type udp4 dst-port 4783 action 3"
        );
        assert_eq!(
            line(steer.clone(), "rule 1023"),
            "ethtool -N eth0 delete 1023"
        );
        assert_eq!(steer.action("eth0", "none"), Action::Nothing);
        let file = Setting::File("/proc/irq/30/smp_affinity_list".into());
        assert_eq!(line(file, "2"), "echo 2 > /proc/irq/30/smp_affinity_list");
        assert_eq!(rule_id("Added rule with ID 1023\n"), Some(1_023));
        assert_eq!(rule_id("nothing"), None);
        assert_eq!(rule_of("rule 1023"), Some(1_023));
        assert_eq!(rule_of("queue 3"), None);
        assert!(is_missing_rule("rule 5", Some(&[4])));
        assert!(!is_missing_rule("rule 5", Some(&[4, 5])));
        assert!(!is_missing_rule("rule 5", None) && !is_missing_rule("none", Some(&[])));
    }

    #[test]
    fn what_a_new_card_has_anew_is_of_the_interface() {
        for (path, goes) in [
            ("/sys/class/net/eth0/gro_flush_timeout", true),
            ("/proc/irq/30/smp_affinity_list", true),
            ("/proc/irq/default_smp_affinity", false),
            ("/proc/sys/net/core/busy_poll", false),
        ] {
            let setting = Setting::File(path.into());
            assert_eq!(setting.is_of_the_interface(), goes, "{path}");
        }
    }

    #[test]
    fn only_the_kernels_files_are_written() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().join("x"), "/sys/../tmp/virga-x".into()] {
            let refused = Action::Write(path.clone(), "1".into()).perform();
            assert!(refused.is_err() && !path.exists(), "{}", path.display());
        }
    }
}
