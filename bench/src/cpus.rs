//! CPUs that this process may use, and threads that stay on one.

use std::io;

use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// The first `count` CPUs that this process may run on.
///
/// # Errors
/// When it may run on fewer.
pub(crate) fn allowed_cpus(count: usize) -> io::Result<Vec<u32>> {
    let allowed = sched_getaffinity(None)?;
    let cpus: Vec<u32> = (0..CpuSet::MAX_CPU)
        .filter(|&cpu| allowed.is_set(cpu))
        .take(count)
        .filter_map(|cpu| u32::try_from(cpu).ok())
        .collect();
    if cpus.len() < count {
        let said = format!(
            "{count} CPUs are needed, this process may use {}",
            cpus.len()
        );
        return Err(io::Error::other(said));
    }
    Ok(cpus)
}

/// Keeps a thread on a CPU; `None` is the calling one.
pub(crate) fn pin_to(thread: Option<Pid>, cpu: u32) -> io::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu as usize);
    Ok(sched_setaffinity(thread, &cpus)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_pinned_alone() {
        let before = sched_getaffinity(None).unwrap();
        let cpu = allowed_cpus(1).unwrap()[0];
        std::thread::spawn(move || {
            pin_to(None, cpu).unwrap();
            assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
        })
        .join()
        .unwrap();
        assert_eq!(sched_getaffinity(None).unwrap(), before);
        assert!(allowed_cpus(CpuSet::MAX_CPU + 1).is_err());
    }
}
