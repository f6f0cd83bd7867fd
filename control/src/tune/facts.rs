//! What there is to be tuned: a card's settings, its interrupts, the host's CPUs and files.

use super::{
    TuneError,
    setting::{Kind, Setting},
};
use crate::{
    doctor::interface::{self, Channels},
    hw::{self, Profile},
    io::ethtool::{Coalesce, Ethtool, Feature, Flow, Rings},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// More CPUs than this no kernel is built for.
const CPUS_MAX: u32 = 8_192;

/// The host's files that may be written; an interface's own and each interrupt's come on top.
pub(super) const BUSY_POLL: [&str; 2] = [
    "/proc/sys/net/core/busy_poll",
    "/proc/sys/net/core/busy_read",
];
/// Pages of 2 MiB.
pub(super) const HUGEPAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Masks of CPUs: where the kernel's work goes that is bound to none, and where interrupts go that nobody has placed yet.
pub(super) const WORK: &str = "/sys/devices/virtual/workqueue/cpumask";
pub(super) const NEW_INTERRUPTS: &str = "/proc/irq/default_smp_affinity";

/// All of it; what is not there is `None` or empty.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) interface: String,
    pub(super) ifindex: u32,
    pub(super) driver: String,
    pub(super) profile: Option<&'static Profile>,
    pub(super) online: Vec<u32>,
    /// CPUs that the running kernel was told at its start to keep other work from, and the clock's tick.
    pub(super) isolated: Vec<u32>,
    pub(super) tickless: Vec<u32>,
    pub(super) channels: Option<Channels>,
    pub(super) rings: Option<Rings>,
    pub(super) coalesce: Option<Coalesce>,
    pub(super) table: Option<Vec<u32>>,
    pub(super) hashes: Vec<(Flow, String)>,
    pub(super) features: Vec<Feature>,
    /// Numbers of the card's steering rules, where it says.
    pub(super) rules: Option<Vec<u32>>,
    pub(super) interrupts: Vec<Interrupt>,
    /// Whether /sys shows this interface, and not one of another namespace.
    pub(super) is_in_sysfs: bool,
    pub(super) has_irqbalance: bool,
    /// What the files say that may be written.
    pub(super) files: BTreeMap<PathBuf, String>,
}

/// An interrupt of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interrupt {
    pub(super) number: u32,
    pub(super) queue: u32,
}

impl Interrupt {
    pub(super) fn file(self) -> PathBuf {
        format!("/proc/irq/{}/smp_affinity_list", self.number).into()
    }
}

impl Facts {
    /// What cards are known to forget when others of their settings change.
    pub(super) fn fragile(&self) -> Vec<Setting> {
        let mut all = vec![
            Setting::Spread,
            Setting::FlowHash(Flow::Udp4),
            Setting::FlowHash(Flow::Udp6),
            Setting::Ring(Kind::Rx),
            Setting::Ring(Kind::Tx),
            Setting::RxUsecs,
            Setting::AdaptiveRx,
        ];
        let files = self.interrupts.iter().map(|interrupt| interrupt.file());
        all.extend(files.map(Setting::File));
        all
    }
}

/// The folder of an interface in sysfs.
pub(super) fn folder(interface: &str) -> PathBuf {
    Path::new("/sys/class/net").join(interface)
}

/// The file that says how a CPU chooses its clock.
pub(super) fn governor(cpu: u32) -> PathBuf {
    format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor").into()
}

/// Looks at an interface and its host.
pub(super) fn gather(interface: &str) -> Result<Facts, TuneError> {
    let facts = interface::facts(interface)
        .map_err(|error| TuneError::Interface(interface.to_owned(), error))?;
    let driver = facts.driver.or(facts.kind).unwrap_or_default();
    let ethtool = Ethtool::open(interface).map_err(TuneError::Ethtool)?;
    // A file that is not there, or names none, is an empty list.
    let cpus = |name: &str| {
        let list = read(Path::new("/sys/devices/system/cpu").join(name));
        list.and_then(|list| cpu_list(&list)).unwrap_or_default()
    };
    let online = cpus("online");
    let is_in_sysfs = is_in_sysfs(interface, facts.ifindex, &ethtool);
    let interrupts = if is_in_sysfs {
        interrupts(interface)
    } else {
        Vec::new()
    };
    let mut paths: Vec<PathBuf> = BUSY_POLL.iter().map(PathBuf::from).collect();
    paths.extend([HUGEPAGES, WORK, NEW_INTERRUPTS].map(PathBuf::from));
    paths.extend(interrupts.iter().map(|interrupt| interrupt.file()));
    paths.extend(online.iter().map(|cpu| governor(*cpu)));
    if is_in_sysfs {
        let names = ["napi_defer_hard_irqs", "gro_flush_timeout"];
        paths.extend(names.map(|name| folder(interface).join(name)));
    }
    let files = paths.into_iter().filter_map(|path| {
        let text = read(&path)?;
        Some((path, text))
    });
    let hash = |flow| Some((flow, ethtool.flow_hash(flow).ok()?));
    Ok(Facts {
        interface: interface.to_owned(),
        ifindex: facts.ifindex,
        profile: hw::profile(&driver),
        driver,
        online,
        isolated: cpus("isolated"),
        tickless: cpus("nohz_full"),
        channels: facts.channels,
        rings: ethtool.rings().ok(),
        coalesce: ethtool.coalesce().ok(),
        table: ethtool.indirection().ok(),
        hashes: [Flow::Udp4, Flow::Udp6]
            .into_iter()
            .filter_map(hash)
            .collect(),
        features: ethtool.feature_list().unwrap_or_default(),
        rules: ethtool.rules().ok(),
        interrupts,
        is_in_sysfs,
        has_irqbalance: has_irqbalance(),
        files: files.collect(),
    })
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// /sys may be mounted for another namespace, with an interface of the same name in it.
fn is_in_sysfs(interface: &str, ifindex: u32, ethtool: &Ethtool) -> bool {
    let folder = folder(interface);
    let index = read(folder.join("ifindex"));
    let address = ethtool.address().map(|address| {
        let bytes = address.iter().map(|byte| format!("{byte:02x}"));
        bytes.collect::<Vec<_>>().join(":")
    });
    index == Some(ifindex.to_string())
        && address.is_ok_and(|a| read(folder.join("address")) == Some(a))
}

/// Numbers of a list such as `0-3,6`; `None` when it is none.
pub(crate) fn cpu_list(list: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= CPUS_MAX {
            return None;
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}

/// The interrupts of an interface's queues.
fn interrupts(interface: &str) -> Vec<Interrupt> {
    let device = folder(interface).join("device");
    // A virtio device's interrupts are those of the PCI device above it.
    let own = ["msi_irqs", "../msi_irqs"]
        .iter()
        .find_map(|name| fs::read_dir(device.join(name)).ok());
    let numbers = own.into_iter().flatten().flatten();
    let numbers: Vec<u32> = numbers
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    let table = fs::read_to_string("/proc/interrupts").unwrap_or_default();
    let named = table.lines().filter_map(|line| {
        let number = line.split_once(':')?.0.trim().parse().ok()?;
        let queue = queue_of(line.split_whitespace().last()?)?;
        numbers
            .contains(&number)
            .then_some(Interrupt { number, queue })
    });
    named.collect()
}

/// The queue that an interrupt's name tells of: `eth0-TxRx-3`, `ens5-Tx-Rx-3`, `mlx5_comp3@pci:…`,
/// `gve-ntfy-blk3@pci:…`, `virtio2-input.3`. Interrupts that are about the card as a whole have none.
fn queue_of(name: &str) -> Option<u32> {
    const ABOUT_THE_CARD: [&str; 7] = [
        "async", "config", "control", "event", "fdir", "mgmnt", "misc",
    ];
    let name = name.split('@').next()?;
    if ABOUT_THE_CARD.iter().any(|word| name.contains(word)) {
        return None;
    }
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    name.get(name.len() - digits..)?.parse().ok()
}

/// Whether a daemon runs that moves interrupts.
fn has_irqbalance() -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .into_iter()
        .any(|process| read(process.path().join("comm")).is_some_and(|name| name == "irqbalance"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(cpu_list("0-3,6,1"), Some(vec![0, 1, 2, 3, 6]));
        assert_eq!(cpu_list("0"), Some(vec![0]));
        for wrong in ["", "a", "3-1", "0-", "0,,1", "0-4294967295"] {
            assert_eq!(cpu_list(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_of_interrupts_tell_their_queue() {
        for (name, queue) in [
            ("eth0-TxRx-3", Some(3)),
            ("ice-eth0-TxRx-12", Some(12)),
            ("ens5-Tx-Rx-0", Some(0)),
            ("mlx5_comp7@pci:0000:01:00.0", Some(7)),
            ("gve-ntfy-blk4@pci:0000:00:04.0", Some(4)),
            ("virtio2-input.1", Some(1)),
            ("virtio2-config", None),
            ("mlx5_async0@pci:0000:01:00.0", None),
            ("ens5-mgmnt@pci", None),
            ("i40e-0000:01:00.0:misc", None),
        ] {
            assert_eq!(queue_of(name), queue, "{name}");
        }
    }

    #[test]
    fn loopback_is_looked_at_without_privilege() {
        let facts = gather("lo").unwrap();
        assert!(facts.is_in_sysfs && facts.interrupts.is_empty());
        assert!(!facts.online.is_empty());
        assert!(
            facts
                .files
                .contains_key(&folder("lo").join("gro_flush_timeout"))
        );
        assert!(matches!(
            gather("virga-none"),
            Err(TuneError::Interface(..))
        ));
    }
}
