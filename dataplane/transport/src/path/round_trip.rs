//! The round trip: smoothed, its variation, and the least (RFC 9002, 5).

use crate::limits::{ACK_DELAY_NS, GRANULARITY_NS, INITIAL_RTT_NS};

/// What was measured of the round trip.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoundTrip {
    latest_ns: u64,
    smoothed_ns: u64,
    variation_ns: u64,
    least_ns: Option<u64>,
}

impl RoundTrip {
    pub(super) const fn new() -> Self {
        Self {
            latest_ns: INITIAL_RTT_NS,
            smoothed_ns: INITIAL_RTT_NS,
            variation_ns: INITIAL_RTT_NS / 2,
            least_ns: None,
        }
    }

    /// The latest sample.
    pub(crate) const fn latest_ns(&self) -> u64 {
        self.latest_ns
    }

    /// Smoothed; assumed until one is measured.
    pub(crate) const fn smoothed_ns(&self) -> u64 {
        self.smoothed_ns
    }

    /// How much it varies.
    pub(crate) const fn variation_ns(&self) -> u64 {
        self.variation_ns
    }

    /// The least that was measured.
    pub(crate) const fn least_ns(&self) -> Option<u64> {
        self.least_ns
    }

    /// Probe time-out without back-off (RFC 9002, 6.2.1).
    pub(crate) fn probe_ns(&self) -> u64 {
        let variation_ns = (4 * self.variation_ns).max(GRANULARITY_NS);
        self.smoothed_ns + variation_ns + ACK_DELAY_NS
    }

    /// RFC 9002, 5.3.
    pub(super) fn sample(&mut self, rtt_ns: u64, delay_us: u64) {
        self.latest_ns = rtt_ns.max(1);
        let Some(least) = self.least_ns else {
            self.least_ns = Some(self.latest_ns);
            self.smoothed_ns = self.latest_ns;
            self.variation_ns = self.latest_ns / 2;
            return;
        };
        let least = least.min(self.latest_ns);
        self.least_ns = Some(least);
        let delay_ns = delay_us.saturating_mul(1_000).min(ACK_DELAY_NS);
        let adjusted = match self.latest_ns.checked_sub(delay_ns) {
            Some(adjusted) if adjusted >= least => adjusted,
            _ => self.latest_ns,
        };
        let off = self.smoothed_ns.abs_diff(adjusted);
        self.variation_ns = (3 * self.variation_ns + off) / 4;
        self.smoothed_ns = (7 * self.smoothed_ns + adjusted) / 8;
    }
}
