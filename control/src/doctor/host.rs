//! The kernel, and what this process may do.

use super::{Check, Need, Verdict};
use crate::{
    config::{Config, Workers},
    hw::Kernel,
    io::probe,
    nic::pins::{self, Absent},
    placement,
};
use std::{fs, io, path::Path};
use virga_transport::io::topology::Seat;

/// Kernels that the NIC path's program was tried on start here.
const KERNEL_TRIED: (u32, u32) = (6, 1);
/// Before this, the program is refused: it reads the coarse clock (`bpf_ktime_get_coarse_ns`). Since
/// then, BPF memory is counted in the cgroup and not against memlock.
const KERNEL_MIN: (u32, u32) = (5, 11);
/// Places of the capabilities in the kernel's set (`linux/capability.h`).
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;
const WORKER_CORES: &str = "worker cores";
/// What to do about cores that were named.
const NAME_NONE: &str = "under [node]: workers = \"auto\", without worker_cores";

/// Looks at the host.
#[must_use]
pub fn examine(need: Need, config: Option<&Config>) -> Vec<Check> {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let version = version(&release);
    let mut checks = vec![
        kernel(&release, version, need),
        btf(),
        bpffs(need),
        memlock(),
        capabilities(
            &fs::read_to_string("/proc/self/status").unwrap_or_default(),
            need,
        ),
        bpf(&probe::bpf(), need),
        jit(),
        io_uring(&probe::io_uring()),
        ip_forwarding(),
    ];
    checks.extend(config.and_then(worker_cores));
    checks
}

/// Major and minor number of a release such as `6.1.0-25-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    Kernel::of_release(release).map(|kernel| (kernel.0, kernel.1))
}

fn kernel(release: &str, version: Option<(u32, u32)>, need: Need) -> Check {
    const FIX: &str = "install a kernel of 6.1 or later";
    match version {
        None => Check::new("kernel", Verdict::Unknown, release, FIX),
        Some(version) if version >= KERNEL_TRIED => Check::ok("kernel", release),
        Some(version) if version >= KERNEL_MIN => Check::new(
            "kernel",
            Verdict::Warn.min(need.lack()),
            format!("{release}: not tried"),
            FIX,
        ),
        Some(_) => Check::new(
            "kernel",
            need.lack(),
            format!("{release}: refuses the program, which reads the coarse clock"),
            FIX,
        ),
    }
}

fn btf() -> Check {
    let found = match Path::new("/sys/kernel/btf/vmlinux").exists() {
        true => "there (not needed)",
        false => "none (not needed: the program uses no kernel types)",
    };
    Check::ok("BTF", found)
}

fn bpffs(need: Need) -> Check {
    match pins::is_mounted() {
        true => Check::ok("bpffs", "mounted at /sys/fs/bpf"),
        false => {
            let absent = Absent::find();
            let found = match &absent {
                Absent::NotMounted => "not mounted at /sys/fs/bpf",
                Absent::Hidden(_) => "hidden at /sys/fs/bpf by `ip netns exec`",
            };
            let found = format!("{found}: maps and links cannot be pinned");
            Check::new("bpffs", need.lack(), found, absent.fix())
        }
    }
}

fn memlock() -> Check {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let limit = limit.map_or_else(
        || "unlimited".into(),
        |bytes| format!("{} KiB", bytes / 1_024),
    );
    Check::ok("memlock", format!("{limit} (not needed since kernel 5.11)"))
}

/// `status` is the text of `/proc/self/status`.
fn capabilities(status: &str, need: Need) -> Check {
    const NAME: &str = "capabilities";
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(set) = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()) else {
        return Check::new(
            NAME,
            Verdict::Unknown,
            "/proc/self/status does not say",
            "sudo virga doctor",
        );
    };
    let has = |capability: u32| set >> capability & 1 == 1;
    let mut missing = Vec::new();
    if !has(CAP_NET_ADMIN) {
        missing.push("CAP_NET_ADMIN");
    }
    if !has(CAP_BPF) && !has(CAP_SYS_ADMIN) {
        missing.push("CAP_BPF");
    }
    if missing.is_empty() {
        return Check::ok(NAME, "CAP_NET_ADMIN and CAP_BPF");
    }
    let found = format!("without {}: no NIC path", missing.join(" and "));
    Check::new(
        NAME,
        need.lack(),
        found,
        "run as root, or in the service: AmbientCapabilities=CAP_NET_ADMIN CAP_BPF CAP_PERFMON",
    )
}

fn bpf(result: &io::Result<()>, need: Need) -> Check {
    const NAME: &str = "bpf system call";
    match result {
        Ok(()) => Check::ok(NAME, "allowed"),
        Err(error) => {
            let fix = "run as root; in a container: docker run --cap-add NET_ADMIN --cap-add BPF --cap-add PERFMON";
            Check::new(NAME, need.lack(), error.to_string(), fix)
        }
    }
}

fn jit() -> Check {
    match sysctl("net/core/bpf_jit_enable").as_deref() {
        Some("0") => Check::new(
            "BPF JIT",
            Verdict::Warn,
            "off: programs are interpreted",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(_) => Check::ok("BPF JIT", "on"),
        // Kernels that are built to always compile have no switch.
        None => Check::ok(
            "BPF JIT",
            "no switch: always on, or not shown in this namespace",
        ),
    }
}

fn io_uring(result: &io::Result<()>) -> Check {
    const NAME: &str = "io_uring";
    let Err(error) = result else {
        return Check::ok(NAME, "allowed (not used yet)");
    };
    let disabled = sysctl("kernel/io_uring_disabled");
    let fix = match disabled.as_deref() {
        Some("1" | "2") => "sysctl -w kernel.io_uring_disabled=0",
        _ => {
            "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile"
        }
    };
    Check::new(NAME, Verdict::Warn, format!("{error} (not used yet)"), fix)
}

fn ip_forwarding() -> Check {
    let state = |name| match sysctl(name).as_deref() {
        Some("0") => "off",
        Some(_) => "on",
        None => "unknown",
    };
    let (v4, v6) = (
        state("net/ipv4/ip_forward"),
        state("net/ipv6/conf/all/forwarding"),
    );
    Check::ok(
        "IP forwarding",
        format!("IPv4 {v4}, IPv6 {v6} (not needed: the kernel forwards nothing)"),
    )
}

/// Where the workers are, or would be for this process; none where the kernel decides.
fn worker_cores(config: &Config) -> Option<Check> {
    if let Workers::Cores(cores) = &config.node.workers {
        let online = fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
        let online = online.trim();
        if let Some(core) = cores.iter().find(|&&core| !is_in(core, online)) {
            let found = format!("core {core} is not among {online}");
            return Some(Check::new(WORKER_CORES, Verdict::Fail, found, NAME_NONE));
        }
    }
    let seats = placement::seats(config).ok()?;
    let is_named = matches!(config.node.workers, Workers::Cores(_));
    (!seats.is_empty()).then(|| seated(&seats, is_named))
}

/// What there is to say of the workers' cores; where they are named, others may be better.
fn seated(seats: &[Seat], is_named: bool) -> Check {
    let found = seats
        .iter()
        .map(|seat| format!("core {}: {seat}", seat.core));
    let found = found.collect::<Vec<_>>().join("; ");
    let is_poor = |seat: &Seat| seat.numa.is_none() || seat.is_far() || seat.sibling.is_some();
    match is_named && seats.iter().any(is_poor) {
        true => Check::new(WORKER_CORES, Verdict::Warn, found, NAME_NONE),
        false => Check::ok(WORKER_CORES, found),
    }
}

/// Whether a list such as `0-3,6` holds a number.
fn is_in(number: usize, list: &str) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&number),
            _ => false,
        }
    })
}

fn sysctl(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
    Some(text.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_what_follows() {
        assert_eq!(version("6.1.0-25-amd64"), Some((6, 1)));
        assert_eq!(version("6.18"), Some((6, 18)));
        assert_eq!(version("strange"), None);
        let judged = |version| kernel("x", version, Need::Required).verdict;
        assert_eq!(judged(Some((6, 12))), Verdict::Ok);
        assert_eq!(judged(Some((5, 15))), Verdict::Warn);
        assert_eq!(judged(Some((5, 11))), Verdict::Warn);
        assert_eq!(judged(Some((5, 10))), Verdict::Fail);
        assert_eq!(judged(None), Verdict::Unknown);
    }

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let with = |set: &str| capabilities(&format!("Name:\tx\nCapEff:\t{set}\n"), Need::Required);
        assert_eq!(with("000001ffffffffff").verdict, Verdict::Ok);
        assert_eq!(with("0000008000001000").verdict, Verdict::Ok);
        assert_eq!(
            with("0000000000201000").verdict,
            Verdict::Ok,
            "CAP_SYS_ADMIN is more than CAP_BPF"
        );
        assert!(with("0000008000000000").found.contains("CAP_NET_ADMIN:"));
        assert!(
            with("0000000000000000")
                .found
                .contains("CAP_NET_ADMIN and CAP_BPF")
        );
        assert_eq!(capabilities("", Need::Required).verdict, Verdict::Unknown);
        assert_eq!(
            capabilities("CapEff: 0", Need::Preferred).verdict,
            Verdict::Warn
        );
    }

    #[test]
    fn refused_system_calls_come_with_what_to_do() {
        let refused = || Err(io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(bpf(&refused(), Need::Required).verdict, Verdict::Fail);
        assert_eq!(bpf(&refused(), Need::None).verdict, Verdict::Ok);
        let io_uring = io_uring(&refused());
        assert_eq!(io_uring.verdict, Verdict::Warn);
        assert!(io_uring.fix.is_some());
    }

    #[test]
    fn lists_of_cores() {
        assert!(is_in(0, "0") && is_in(3, "0-3,6") && is_in(6, "0-3,6"));
        assert!(!is_in(4, "0-3,6") && !is_in(0, "") && !is_in(0, "a-b"));
    }

    #[test]
    fn named_cores_are_warned_of_where_others_are_nearer_or_whole() {
        let seat = |core, numa, sibling| Seat {
            core,
            numa: Some(numa),
            near: Some(0),
            sibling,
        };
        let (good, far) = (seat(0, 0, None), seat(5, 1, None));
        let check = seated(&[good, far], true);
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(
            check
                .found
                .contains("core 5: NUMA node 1 (the interfaces' is 0)")
        );
        assert_eq!(check.fix.as_deref(), Some(NAME_NONE));
        assert_eq!(
            seated(&[good, seat(4, 0, Some(0))], true).verdict,
            Verdict::Warn
        );
        assert_eq!(seated(&[good], true).verdict, Verdict::Ok);
        // What "auto" took is what there is.
        assert_eq!(seated(&[good, far], false).verdict, Verdict::Ok);
    }
}
