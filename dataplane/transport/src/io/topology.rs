//! The machine's CPUs that this process may use, and in which order workers take them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    num::NonZeroUsize,
    path::Path,
};

/// Where the kernel tells of CPUs and interfaces.
const SYS: &str = "/sys";

/// One logical CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpu {
    /// Its number.
    pub id: usize,
    /// The physical core that it is a thread of: package and core within it.
    pub core: (usize, usize),
    /// The NUMA node that it belongs to.
    pub numa: usize,
}

/// The CPUs that this process may use: what affinity and cgroup (cpuset) leave of the machine's.
///
/// # Errors
/// When the kernel does not tell the affinity.
pub fn allowed() -> io::Result<Vec<Cpu>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    let ids = (0..rustix::thread::CpuSet::MAX_CPU).filter(|&id| set.is_set(id));
    Ok(ids.map(|id| read(Path::new(SYS), id)).collect())
}

/// What sysfs says of a CPU; where it says nothing, a core of its own on NUMA node 0.
fn read(sys: &Path, id: usize) -> Cpu {
    let cpu = sys.join(format!("devices/system/cpu/cpu{id}"));
    let number = |name: &str| -> Option<usize> {
        let text = fs::read_to_string(cpu.join("topology").join(name)).ok()?;
        text.trim().parse().ok()
    };
    let numa = fs::read_dir(&cpu).ok().and_then(|entries| {
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut nodes = names.filter_map(|name| name.strip_prefix("node")?.parse().ok());
        nodes.next()
    });
    let core = number("physical_package_id").zip(number("core_id"));
    Cpu {
        id,
        core: core.unwrap_or((usize::MAX, id)),
        numa: numa.unwrap_or(0),
    }
}

/// The NUMA node that most of the interfaces hang on; none where the kernel knows of none.
#[must_use]
pub fn numa_of_interfaces<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<usize> {
    numa_below(Path::new(SYS), names)
}

fn numa_below<'a>(sys: &Path, names: impl IntoIterator<Item = &'a str>) -> Option<usize> {
    let mut nodes: BTreeMap<usize, usize> = BTreeMap::new();
    for name in names {
        let file = sys.join("class/net").join(name).join("device/numa_node");
        // The kernel writes -1 where it does not know.
        let node = fs::read_to_string(file).ok();
        if let Some(node) = node.and_then(|text| text.trim().parse().ok()) {
            *nodes.entry(node).or_default() += 1;
        }
    }
    let most = nodes
        .into_iter()
        .max_by_key(|&(node, n)| (n, usize::MAX - node));
    most.map(|(node, _)| node)
}

/// The CPUs in the order in which workers take them: the `near` NUMA node's first, then node by node;
/// one thread of each physical core before any second one.
#[must_use]
pub fn order(cpus: &[Cpu], near: Option<usize>) -> Vec<usize> {
    let mut threads_before: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let mut sorted = cpus.to_vec();
    sorted.sort_by_key(|cpu| cpu.id);
    let mut ranked: Vec<_> = sorted
        .into_iter()
        .map(|cpu| {
            let thread = threads_before.entry(cpu.core).or_default();
            let rank = (*thread, Some(cpu.numa) != near, cpu.numa, cpu.id);
            *thread += 1;
            rank
        })
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().map(|(_, _, _, id)| id).collect()
}

/// How many workers such CPUs are good for: one a physical core, and no more than the cgroup's quota
/// of CPU time lets run at once.
#[must_use]
pub fn workers(cpus: &[Cpu]) -> usize {
    let cores: BTreeSet<_> = cpus.iter().map(|cpu| cpu.core).collect();
    let at_once = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    cores.len().min(at_once).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two packages (a NUMA node each) of two cores of two threads, numbered as Linux does: first all
    /// first threads.
    fn machine() -> Vec<Cpu> {
        let cpu = |id: usize| Cpu {
            id,
            core: (id % 4 / 2, id % 2),
            numa: id % 4 / 2,
        };
        (0..8).map(cpu).collect()
    }

    #[test]
    fn physical_cores_first_and_those_near_the_interface_before_them() {
        assert_eq!(order(&machine(), None), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(order(&machine(), Some(1)), [2, 3, 0, 1, 6, 7, 4, 5]);
        // What a cpuset leaves: both threads of one core, and one of another.
        let left: Vec<Cpu> = machine().into_iter().filter(|c| c.id % 4 < 2).collect();
        let left = [left[0], left[2], left[3]];
        assert_eq!(left.map(|cpu| cpu.id), [0, 4, 5]);
        assert_eq!(order(&left, None), [0, 5, 4]);
    }

    #[test]
    fn sysfs_is_read_and_its_gaps_are_no_fault() {
        let sys = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = sys.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("devices/system/cpu/cpu3/topology/core_id", "1\n");
        put("devices/system/cpu/cpu3/topology/physical_package_id", "2");
        put("devices/system/cpu/cpu3/node5/x", "");
        let cpu = Cpu {
            id: 3,
            core: (2, 1),
            numa: 5,
        };
        assert_eq!(read(sys.path(), 3), cpu);
        let unknown = read(sys.path(), 4);
        assert_eq!((unknown.core, unknown.numa), ((usize::MAX, 4), 0));
        put("class/net/a/device/numa_node", "1\n");
        put("class/net/b/device/numa_node", "-1\n");
        assert_eq!(numa_below(sys.path(), ["b", "a", "none"]), Some(1));
        assert_eq!(numa_below(sys.path(), ["b"]), None);
    }

    #[test]
    fn this_machine_has_a_core_for_a_worker() {
        let cpus = allowed().unwrap();
        let count = workers(&cpus);
        assert!(count >= 1 && count <= cpus.len());
        assert_eq!(order(&cpus, None).len(), cpus.len());
    }
}
