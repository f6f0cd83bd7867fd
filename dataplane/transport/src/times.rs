//! How long things take and wait: histograms that are always on, in memory that is taken once.

use hdrhistogram::{Counter, Histogram};

/// Times below this are counted as this.
const NS_MIN: u64 = 64;
/// Times above this are counted as this.
const NS_MAX: u64 = 60_000_000_000;
/// Digits that are kept of a time: 1 %.
const DIGITS: u8 = 2;
/// The same of a round trip, of which every session has its own: 7 %.
const ROUND_TRIP_DIGITS: u8 = 1;
/// Round trips are counted in microseconds, up to this many.
const ROUND_TRIP_US_MAX: u64 = 60_000_000;

/// One kind of times, each to 1 %, in 24 KiB that do not grow.
#[derive(Clone, Debug, PartialEq)]
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

/// A session's round trips, each to 7 %, in 1.5 KiB that do not grow.
#[derive(Clone, Debug)]
pub(crate) struct RoundTrips(Histogram<u32>);

impl Default for RoundTrips {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, ROUND_TRIP_US_MAX, ROUND_TRIP_DIGITS);
        Self(histogram.expect("the bounds are in order"))
    }
}

impl RoundTrips {
    /// Counts one.
    pub(crate) fn record(&mut self, ns: u64) {
        self.0.saturating_record((ns / 1_000).max(1));
    }

    /// What there is so far.
    pub(crate) fn summary(&self) -> TimesSummary {
        summary(&self.0, 1_000)
    }
}

/// What a histogram says whose unit is so many nanoseconds.
fn summary<C: Counter>(histogram: &Histogram<C>, unit_ns: u64) -> TimesSummary {
    let at = |quantile| histogram.value_at_quantile(quantile) * unit_ns;
    TimesSummary {
        count: histogram.len(),
        p50_ns: at(0.5),
        p99_ns: at(0.99),
        p999_ns: at(0.999),
        max_ns: histogram.max() * unit_ns,
    }
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
        summary(&self.0, 1)
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

    #[test]
    fn a_sessions_round_trips_are_within_a_fourteenth_and_small() {
        let mut times = RoundTrips::default();
        assert_eq!(times.summary(), TimesSummary::default());
        for n in 1..=1_000 {
            times.record(n * 100_000);
        }
        let summary = times.summary();
        let is_near = |ns: u64, expected: u64| ns.abs_diff(expected) * 14 <= expected;
        assert!(is_near(summary.p50_ns, 50_000_000), "{summary:?}");
        assert!(is_near(summary.p99_ns, 99_000_000), "{summary:?}");
        times.record(0);
        times.record(u64::MAX);
        assert_eq!(times.summary().count, 1_002);
        // What is left of the 8 KiB of a session that rests.
        assert!(times.0.distinct_values() * size_of::<u32>() <= 1_536);
    }
}
