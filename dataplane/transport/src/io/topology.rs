//! The machine's CPUs that this process may use, and in which order workers take them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
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

/// The CPUs that this process may use: what affinity and cgroup (cpuset) leave of the machine's that are online. The kernel
/// says it: a container's /sys may be another's.
///
/// # Errors
/// When the kernel does not tell the affinity.
pub fn allowed() -> io::Result<Vec<Cpu>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    let ids = (0..rustix::thread::CpuSet::MAX_CPU).filter(|&id| set.is_set(id));
    Ok(cpus_below(Path::new(SYS), ids))
}

/// What sysfs says of some CPUs; where it says nothing of one, it is a core of its own on NUMA node 0.
fn cpus_below(sys: &Path, ids: impl IntoIterator<Item = usize>) -> Vec<Cpu> {
    let nodes = nodes_below(sys);
    let cpu = |id: usize| {
        let topology = sys.join(format!("devices/system/cpu/cpu{id}/topology"));
        let number = |name: &str| -> Option<usize> {
            let text = fs::read_to_string(topology.join(name)).ok()?;
            text.trim().parse().ok()
        };
        let core = number("physical_package_id").zip(number("core_id"));
        Cpu {
            id,
            core: core.unwrap_or((usize::MAX, id)),
            numa: nodes.get(&id).copied().unwrap_or(0),
        }
    };
    ids.into_iter().map(cpu).collect()
}

/// The NUMA node of each CPU; none where the kernel knows of none.
fn nodes_below(sys: &Path) -> BTreeMap<usize, usize> {
    let folders = fs::read_dir(sys.join("devices/system/node"));
    let folders = folders.into_iter().flatten().filter_map(Result::ok);
    let nodes = folders.filter_map(|folder| {
        let name = folder.file_name().into_string().ok()?;
        let node: usize = name.strip_prefix("node")?.parse().ok()?;
        let cpus = fs::read_to_string(folder.path().join("cpulist")).ok()?;
        Some((node, listed(&cpus)))
    });
    let each = nodes.flat_map(|(node, cpus)| cpus.into_iter().map(move |cpu| (cpu, node)));
    each.collect()
}

/// The numbers of a list such as `0-3,6`, as far as it can be read.
fn listed(text: &str) -> BTreeSet<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let [first, last] = [first, last].map(|n| n.trim().parse::<usize>().ok());
        Some(first?..=last?)
    };
    let most = rustix::thread::CpuSet::MAX_CPU;
    let ranges = text.split(',').filter_map(range);
    ranges.flat_map(|range| range.take(most)).collect()
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

/// What there is to say of each of the cores that workers stay on: how near its memory is to the interfaces', and whether
/// it is a thread beside another one's.
#[must_use]
pub fn describe(cpus: &[Cpu], near: Option<usize>, cores: &[usize]) -> Vec<Seat> {
    let cpu = |core: usize| cpus.iter().find(|cpu| cpu.id == core);
    let seat = |(n, &core): (usize, &usize)| {
        let mut before = cores[..n].iter().filter_map(|&core| cpu(core));
        let own = cpu(core);
        let sibling = own.and_then(|own| before.find(|other| other.core == own.core));
        Seat {
            core,
            numa: own.map(|own| own.numa),
            near,
            sibling: sibling.map(|sibling| sibling.id),
        }
    };
    cores.iter().enumerate().map(seat).collect()
}

/// A core that a worker stays on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its number.
    pub core: usize,
    /// The NUMA node that it belongs to; none where this process may not use it.
    pub numa: Option<usize>,
    /// The one that the interfaces hang on.
    pub near: Option<usize>,
    /// The core of an earlier worker that is a thread of the same physical one.
    pub sibling: Option<usize>,
}

impl Seat {
    /// Whether its memory is further from the interfaces than another node's.
    #[must_use]
    pub fn is_far(&self) -> bool {
        self.near
            .is_some_and(|near| self.numa.is_some_and(|numa| numa != near))
    }
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.numa, self.near) {
            (None, _) => return f.write_str("not among those that this process may use"),
            (Some(numa), None) => write!(f, "NUMA node {numa} (no interface names one)")?,
            (Some(numa), Some(near)) if numa == near => {
                write!(f, "NUMA node {numa} (the interfaces' own)")?;
            }
            (Some(numa), Some(near)) => {
                write!(f, "NUMA node {numa} (the interfaces' is {near})")?;
            }
        }
        match self.sibling {
            None => f.write_str(", a physical core of its own"),
            Some(sibling) => write!(f, ", a thread of core {sibling}'s physical core"),
        }
    }
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

    /// A tree as the kernel shows it.
    struct Tree(tempfile::TempDir);

    impl Tree {
        /// CPUs by their package and core, each node's list of them, and the interfaces' nodes.
        fn new(cpus: &[(usize, usize)], nodes: &[&str], interfaces: &[(&str, &str)]) -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for (id, (package, core)) in cpus.iter().enumerate() {
                let topology = format!("devices/system/cpu/cpu{id}/topology");
                tree.put(
                    &format!("{topology}/physical_package_id"),
                    &format!("{package}\n"),
                );
                tree.put(&format!("{topology}/core_id"), &format!("{core}\n"));
            }
            for (node, cpus) in nodes.iter().enumerate() {
                tree.put(&format!("devices/system/node/node{node}/cpulist"), cpus);
            }
            for (interface, node) in interfaces {
                tree.put(&format!("class/net/{interface}/device/numa_node"), node);
            }
            tree
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// The cores that workers take, of those that this process may use, and what is said of each.
        fn take(
            &self,
            allowed: &[usize],
            interfaces: &[&str],
            workers: usize,
        ) -> Vec<(usize, String)> {
            let cpus = cpus_below(self.0.path(), allowed.iter().copied());
            let near = numa_below(self.0.path(), interfaces.iter().copied());
            let mut cores = order(&cpus, near);
            cores.truncate(workers);
            let seats = describe(&cpus, near, &cores);
            seats
                .iter()
                .map(|seat| (seat.core, seat.to_string()))
                .collect()
        }
    }

    /// Two packages, a node each, of two cores of two threads; one card on each.
    fn two_sockets() -> Tree {
        let cores = [(0, 0), (0, 1), (1, 0), (1, 1)].repeat(2);
        let interfaces = [("near0", "0\n"), ("near1", "1\n"), ("virtual", "-1\n")];
        Tree::new(&cores, &["0-1,4-5\n", "2-3,6-7\n"], &interfaces)
    }

    fn cores(taken: &[(usize, String)]) -> Vec<usize> {
        taken.iter().map(|(core, _)| *core).collect()
    }

    #[test]
    fn of_two_sockets_the_one_with_the_card_is_first_and_second_threads_are_last() {
        let all: Vec<usize> = (0..8).collect();
        let taken = two_sockets().take(&all, &["near1"], 8);
        assert_eq!(cores(&taken), [2, 3, 0, 1, 6, 7, 4, 5]);
        let own = "a physical core of its own";
        assert_eq!(
            taken[0].1,
            format!("NUMA node 1 (the interfaces' own), {own}")
        );
        let far = "NUMA node 0 (the interfaces' is 1)";
        assert_eq!(taken[2].1, format!("{far}, {own}"));
        assert!(taken[4].1.ends_with("a thread of core 2's physical core"));
        assert_eq!(cores(&two_sockets().take(&all, &["near0"], 2)), [0, 1]);
    }

    #[test]
    fn where_no_interface_names_a_node_cores_are_taken_as_they_come() {
        let all: Vec<usize> = (0..8).collect();
        for interfaces in [&["virtual"][..], &["absent"], &[]] {
            let taken = two_sockets().take(&all, interfaces, 4);
            assert_eq!(cores(&taken), [0, 1, 2, 3]);
            assert!(
                taken[0]
                    .1
                    .starts_with("NUMA node 0 (no interface names one)")
            );
        }
        // A kernel without NUMA has no such folder.
        let plain = Tree::new(&[(0, 0), (0, 1)], &[], &[("eth0", "-1\n")]);
        let taken = plain.take(&[0, 1], &["eth0"], 2);
        assert_eq!(cores(&taken), [0, 1]);
        assert!(taken[1].1.starts_with("NUMA node 0 ("));
    }

    #[test]
    fn cpus_that_are_offline_or_not_this_process_s_are_left_out() {
        let tree = two_sockets();
        // In a container, sysfs may count those that its quota is good for.
        tree.put("devices/system/cpu/online", "0-1\n");
        let all = [0, 1, 3, 4, 5, 6];
        // Of core 2's threads the second is left: it is that core's first now.
        assert_eq!(cores(&tree.take(&all, &["near1"], 8)), [3, 6, 0, 1, 4, 5]);
        // A cgroup of threads of the far node alone, two of one core.
        let taken = two_sockets().take(&[1, 4, 5], &["near1"], 3);
        assert_eq!(cores(&taken), [1, 4, 5]);
        assert!(taken[2].1.ends_with("a thread of core 1's physical core"));
        assert!(
            taken
                .iter()
                .all(|(_, why)| why.contains("the interfaces' is 1"))
        );
        let cpus = cpus_below(tree.0.path(), all);
        assert!(
            describe(&cpus, None, &[2])[0]
                .to_string()
                .starts_with("not among")
        );
    }

    #[test]
    fn most_interfaces_say_where_and_gaps_of_sysfs_are_no_fault() {
        let tree = two_sockets();
        let below = |names: &[&str]| numa_below(tree.0.path(), names.iter().copied());
        assert_eq!(below(&["virtual", "near1", "none"]), Some(1));
        assert_eq!(below(&["near1", "near0"]), Some(0));
        assert_eq!(below(&["virtual"]), None);
        let unknown = cpus_below(Path::new("/nowhere"), [4]);
        assert_eq!((unknown[0].core, unknown[0].numa), ((usize::MAX, 4), 0));
        assert_eq!(listed("0-2,5,x,7-\n"), BTreeSet::from([0, 1, 2, 5]));
        assert_eq!(listed("\n"), BTreeSet::new());
    }

    #[test]
    fn this_machine_has_a_core_for_a_worker() {
        let cpus = allowed().unwrap();
        let count = workers(&cpus);
        assert!(count >= 1 && count <= cpus.len());
        assert_eq!(order(&cpus, None).len(), cpus.len());
    }
}
