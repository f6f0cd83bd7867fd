//! How long a worker's work takes and waits: histograms that are always on.

use hdrhistogram::Histogram;

/// Times below this are counted as this.
const NS_MIN: u64 = 64;
/// Times above this are counted as this.
const NS_MAX: u64 = 60_000_000_000;
/// Digits that are kept of a time: 1 %.
const DIGITS: u8 = 2;

/// One kind of times, each to 1 %, in memory that does not grow.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

/// What a histogram says, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimesSummary {
    /// How many times were taken.
    pub count: u64,
    /// Half of them were at most this.
    pub p50_ns: u64,
    /// 99 of 100.
    pub p99_ns: u64,
    /// 999 of 1,000.
    pub p999_ns: u64,
    /// All of them.
    pub max_ns: u64,
}

impl Default for Times {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(NS_MIN, NS_MAX, DIGITS);
        Self(histogram.expect("the bounds are in order"))
    }
}

impl Times {
    /// Counts one.
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(NS_MIN));
    }

    /// What there is so far.
    #[must_use]
    pub fn summary(&self) -> TimesSummary {
        let at = |quantile| self.0.value_at_quantile(quantile);
        TimesSummary {
            count: self.0.len(),
            p50_ns: at(0.5),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            max_ns: self.0.max(),
        }
    }
}

/// What a worker times.
#[derive(Clone, Debug, Default)]
pub struct WorkerTimes {
    /// A turn's received datagrams: from the first one's reading until all are opened, sent on, and told
    /// to the service.
    pub handling: Times,
    /// A command's wait in the worker's queue.
    pub command_wait: Times,
    /// A datagram's wait in the ring from another worker.
    pub hand_over_wait: Times,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_hundredth_and_extremes_are_kept_in_bounds() {
        let mut times = Times::default();
        assert_eq!(times.summary(), TimesSummary::default());
        for n in 1..=1_000 {
            times.record(n * 1_000);
        }
        let summary = times.summary();
        let is_near = |ns: u64, expected: u64| ns.abs_diff(expected) * 100 <= expected;
        assert!(is_near(summary.p50_ns, 500_000), "{summary:?}");
        assert!(is_near(summary.p99_ns, 990_000), "{summary:?}");
        assert!(is_near(summary.max_ns, 1_000_000), "{summary:?}");
        times.record(0);
        times.record(u64::MAX);
        let summary = times.summary();
        assert_eq!(summary.count, 1_002);
        assert!(is_near(summary.max_ns, NS_MAX), "{summary:?}");
    }
}
