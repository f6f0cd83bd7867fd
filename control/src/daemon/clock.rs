//! Unix time, by the workers' time: followed while the node runs, so that a clock that is set counts, and is told of.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// A clock that is set by more than this is told of; by less, it is being slewed.
const SET_NS: u64 = 2_000_000_000;

/// Unix time at the workers' time 0, in nanoseconds. Cheap to clone: all are the same one.
#[derive(Clone, Debug)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    pub(super) fn new(unix_zero_ns: u64) -> Self {
        Self(Arc::new(AtomicU64::new(unix_zero_ns)))
    }

    /// Unix time at one of the workers' times.
    #[must_use]
    pub fn unix_ns(&self, worker_ns: u64) -> u64 {
        self.0.load(Ordering::Relaxed).saturating_add(worker_ns)
    }

    /// Takes over what it is now, and tells of a clock that was set.
    pub(super) fn follow(&self, unix_zero_ns: u64) {
        let before = self.0.swap(unix_zero_ns, Ordering::Relaxed);
        if let Some(way) = set(before, unix_zero_ns) {
            let seconds = before.abs_diff(unix_zero_ns) / 1_000_000_000;
            tracing::warn!(
                "this machine's clock was set {way} by {seconds} s, or it slept: tokens, memberships and filters between \
                 subnets count from when until when they say, by the new time; sessions and links go on"
            );
        }
    }
}

/// Which way a clock was set; none where it was not.
fn set(before_ns: u64, now_ns: u64) -> Option<&'static str> {
    let is_set = before_ns.abs_diff(now_ns) > SET_NS;
    is_set.then_some(if now_ns > before_ns {
        "forward"
    } else {
        "back"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_told_of_and_one_that_is_slewed_is_not() {
        const S: u64 = 1_000_000_000;
        assert_eq!(set(100 * S, 100 * S + SET_NS), None);
        assert_eq!(set(100 * S, 103 * S), Some("forward"));
        assert_eq!(set(100 * S, 0), Some("back"));
        let clock = Clock::new(100 * S);
        let same = clock.clone();
        clock.follow(500 * S);
        assert_eq!(same.unix_ns(7 * S), 507 * S);
    }
}
