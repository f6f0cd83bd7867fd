//! Capabilities, fewer with each phase of a daemon that is a process of its own.
//!
//! | phase | capabilities | what needs them |
//! |---|---|---|
//! | the NIC path is loaded | BPF, PERFMON, NET_ADMIN, NET_RAW | programs and maps |
//! | the workers begin | NET_ADMIN, NET_RAW | sockets' buffers above the system's limit, busy polling, AF_XDP |
//! | it serves | NET_ADMIN, where there is a NIC path or AF_XDP | neighbours that are kept resolved, interfaces that come back |
//! | | NET_RAW, where the driver is AF_XDP | sockets on interfaces that come back |
//!
//! Loaded programs and open maps need none. Capabilities belong to threads: each gives up its own, when it begins or
//! runs on. Whatever else a process of root's may do is left to it.

use crate::{config::Config, hw::Kernel};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use std::{
    cell::Cell,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use virga_transport::io::driver::Choice;

/// What is given up when nothing needs it any more.
const SHED: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_ADMIN);
/// Before this kernel, where loading is for the privileged alone, open maps are, too.
const MAPS_ARE_FREE_SINCE: Kernel = Kernel(5, 19);

thread_local! {
    /// What this thread has kept.
    static KEPT: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// What the threads of this process keep.
#[derive(Clone, Debug)]
pub(super) struct Privileges {
    kept: Arc<AtomicU64>,
}

impl Privileges {
    /// Everything, as the process was started.
    pub(super) fn all() -> Self {
        Self {
            kept: Arc::new(AtomicU64::new(u64::MAX)),
        }
    }

    /// The NIC path is loaded, or there is none: what follows loads nothing.
    pub(super) fn loaded(&self) {
        self.keep(CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW | maps(Kernel::running()));
    }

    /// The sockets are open. Other threads than this one follow when they run next.
    pub(super) fn opened(&self, config: &Config, has_nic: bool) {
        let kept = serving(config.node.driver.choice, has_nic) | maps(Kernel::running());
        self.keep(kept);
        let kept: Vec<String> = kept
            .iter_names()
            .map(|(name, _)| format!("CAP_{name}"))
            .collect();
        let kept = if kept.is_empty() {
            "none".into()
        } else {
            kept.join(" ")
        };
        tracing::info!(%kept, "capabilities that starting took are given up");
    }

    fn keep(&self, kept: CapabilitySet) {
        let kept = (kept | SHED.complement()).bits();
        self.kept.store(kept, Ordering::Relaxed);
        self.follow();
    }

    /// Has this thread give up what is not kept.
    pub(super) fn follow(&self) {
        let kept = self.kept.load(Ordering::Relaxed);
        if KEPT.replace(kept) == kept {
            return;
        }
        if let Err(error) = shed(CapabilitySet::from_bits_retain(kept)) {
            tracing::warn!(%error, "capabilities that are not needed any more cannot be given up");
        }
    }
}

/// What a daemon that serves needs.
fn serving(driver: Choice, has_nic: bool) -> CapabilitySet {
    match (driver, has_nic) {
        (Choice::Xsk, _) => CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW,
        (_, true) => CapabilitySet::NET_ADMIN,
        (_, false) => CapabilitySet::empty(),
    }
}

/// What open maps need.
fn maps(kernel: Option<Kernel>) -> CapabilitySet {
    match kernel.is_some_and(|kernel| kernel >= MAPS_ARE_FREE_SINCE) {
        true => CapabilitySet::empty(),
        false => CapabilitySet::BPF,
    }
}

/// Of the calling thread's; ambient capabilities go with the inheritable ones.
fn shed(kept: CapabilitySet) -> io::Result<()> {
    let mut sets = capabilities(None)?;
    for set in [
        &mut sets.effective,
        &mut sets.permitted,
        &mut sets.inheritable,
    ] {
        *set &= kept;
    }
    Ok(set_capabilities(None, sets)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gives_up_what_is_named_and_keeps_the_rest() {
        let own = |set: fn() -> io::Result<CapabilitySet>| {
            std::thread::spawn(set).join().unwrap().unwrap()
        };
        let before = own(|| Ok(capabilities(None)?.permitted));
        let after = own(|| {
            let privileges = Privileges::all();
            privileges.keep(CapabilitySet::NET_ADMIN);
            let sets = capabilities(None)?;
            assert_eq!(
                sets.effective & SHED.difference(CapabilitySet::NET_ADMIN),
                CapabilitySet::empty()
            );
            Ok(sets.permitted)
        });
        assert_eq!(
            after,
            before.difference(SHED.difference(CapabilitySet::NET_ADMIN))
        );
        assert_eq!(
            own(|| Ok(capabilities(None)?.permitted)),
            before,
            "others' are their own"
        );
    }

    #[test]
    fn what_is_kept_is_what_serving_takes() {
        let none = CapabilitySet::empty();
        assert_eq!(serving(Choice::Auto, false), none);
        assert_eq!(serving(Choice::Auto, true), CapabilitySet::NET_ADMIN);
        let both = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW;
        assert_eq!(serving(Choice::Xsk, true), both);
        for (kernel, kept) in [
            (Some(Kernel(6, 1)), none),
            (Some(Kernel(5, 15)), CapabilitySet::BPF),
            (None, CapabilitySet::BPF),
        ] {
            assert_eq!(maps(kernel), kept);
        }
    }
}
