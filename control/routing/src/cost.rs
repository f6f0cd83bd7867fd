//! What a link costs, from its round-trip time and loss, and when that has changed.
//!
//! Every hop costs [`HOP`], and a millisecond of round-trip time 100 more; a packet that is lost in either
//! direction has to be sent again, so the sum is divided by the share that arrives, of each direction. Measurements are
//! smoothed, and a route changes only if the cost has left a quarter around the one that is used for
//! [`HOLD_NS`] without a break: what swings does not move traffic to and fro.

use crate::limits::COST_MAX;

/// What each hop costs.
pub const HOP: u32 = 256;
/// How long a cost must be another one.
pub const HOLD_NS: u64 = 2_000_000_000;
/// Loss in millionths that counts as all.
const LOSS_MAX: u64 = 900_000;
const MILLION: u64 = 1_000_000;

/// A link's cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkCost {
    used: u32,
    smoothed: u32,
    /// Since when it is another one than what is used.
    since_ns: Option<u64>,
}

/// The cost of one measurement. `loss_ppm`: how many of a million packets are lost there, and how many back.
#[must_use]
pub fn of(rtt_ns: u64, loss_ppm: [u32; 2]) -> u32 {
    let cost = u64::from(HOP)
        .saturating_add(rtt_ns / 10_000)
        .min(u64::from(COST_MAX));
    let [there, back] = loss_ppm.map(|ppm| MILLION - u64::from(ppm).min(LOSS_MAX));
    let again = cost * MILLION / there * MILLION / back;
    u32::try_from(again).unwrap_or(COST_MAX).min(COST_MAX)
}

impl LinkCost {
    /// By a first measurement.
    #[must_use]
    pub fn new(rtt_ns: u64, loss_ppm: [u32; 2]) -> Self {
        let cost = of(rtt_ns, loss_ppm);
        Self {
            used: cost,
            smoothed: cost,
            since_ns: None,
        }
    }

    /// What is used.
    #[must_use]
    pub const fn used(&self) -> u32 {
        self.used
    }

    /// Takes another measurement in; the new cost, if it is used from now on.
    pub fn measured(&mut self, now_ns: u64, rtt_ns: u64, loss_ppm: [u32; 2]) -> Option<u32> {
        let (before, now) = (u64::from(self.smoothed), u64::from(of(rtt_ns, loss_ppm)));
        self.smoothed = u32::try_from((7 * before + now).div_ceil(8)).unwrap_or(COST_MAX);
        let is_another = self.smoothed.abs_diff(self.used) > self.used / 4;
        if !is_another {
            self.since_ns = None;
            return None;
        }
        let since_ns = *self.since_ns.get_or_insert(now_ns);
        if now_ns.saturating_sub(since_ns) < HOLD_NS {
            return None;
        }
        (self.used, self.since_ns) = (self.smoothed, None);
        Some(self.used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn time_and_loss_cost_and_nothing_costs_more_than_the_most() {
        assert_eq!(of(0, [0; 2]), HOP);
        assert_eq!(of(10 * MS, [0; 2]), HOP + 1_000);
        assert_eq!(of(0, [500_000; 2]), 4 * HOP);
        assert_eq!(of(0, [500_000, 0]), 2 * HOP);
        assert_eq!(of(0, [0, 500_000]), 2 * HOP);
        assert!(of(0, [1_000_000; 2]) <= COST_MAX && of(0, [u32::MAX; 2]) <= COST_MAX);
        assert_eq!(of(u64::MAX, [1_000_000; 2]), COST_MAX);
    }

    #[test]
    fn what_swings_changes_nothing_and_what_stays_changes_it_once() {
        let mut cost = LinkCost::new(10 * MS, [0; 2]);
        let used = cost.used();
        for n in 0..1_000 {
            let swing = if n % 20 < 10 { 8 * MS } else { 14 * MS };
            assert_eq!(cost.measured(n * 100 * MS, swing, [0; 2]), None, "{n}");
        }
        let later = |n: u64| (1_000 + n) * 100 * MS;
        let changes: Vec<u64> = (0..100)
            .filter(|&n| cost.measured(later(n), 40 * MS, [0; 2]).is_some())
            .collect();
        assert!(
            matches!(changes[..], [first, ..] if (20..30).contains(&first)),
            "{changes:?}"
        );
        assert!(changes.len() <= 2 && cost.used() > 3 * used, "{cost:?}");
    }
}
