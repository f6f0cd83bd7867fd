//! Pacing (RFC 9002, 7.7): bytes go out at the congestion controller's rate, in bursts that are bounded
//! and yet worth a turn.

use crate::limits::{PACER_BURST_BYTES_MAX, PACER_BURST_NS, PACER_BURST_SEGMENTS};

/// A bucket of bytes that fills at the controller's rate.
#[derive(Debug)]
pub(crate) struct Pacer {
    /// Bytes that may go out; below 0 where a burst's last packet was larger than what was left.
    tokens: i64,
    filled_ns: u64,
    /// Set while the bucket was found empty: when it holds enough for a turn.
    due_ns: Option<u64>,
}

impl Pacer {
    pub(super) const fn new(now_ns: u64) -> Self {
        Self {
            tokens: i64::MAX,
            filled_ns: now_ns,
            due_ns: None,
        }
    }

    /// Bytes that the rate gives for one burst.
    fn timed(rate: u64) -> i64 {
        bytes_in(rate, PACER_BURST_NS).min(signed(PACER_BURST_BYTES_MAX))
    }

    /// Bytes of the largest burst.
    fn burst(rate: u64, segment: u64) -> i64 {
        Self::timed(rate).max(signed(PACER_BURST_SEGMENTS * segment))
    }

    /// Whether a packet of `segment` bytes may go out now, at `rate` bytes a second.
    pub(super) fn has_room(&mut self, now_ns: u64, rate: u64, segment: u64) -> bool {
        if self.due_ns.is_some_and(|due_ns| now_ns < due_ns) {
            return false;
        }
        let elapsed_ns = now_ns.saturating_sub(self.filled_ns);
        let added = bytes_in(rate, elapsed_ns);
        if added > 0 {
            let burst = Self::burst(rate, segment);
            self.tokens = self.tokens.saturating_add(added).min(burst);
            self.filled_ns = now_ns;
        }
        if self.tokens > 0 {
            self.due_ns = None;
            return true;
        }
        // Enough for a run of packets, where the path is fast enough for that in half a burst's time.
        let turn = (Self::timed(rate) / 2).max(1);
        let missing = u128::from(turn.saturating_sub(self.tokens).unsigned_abs());
        let wait_ns = (missing * 1_000_000_000).div_ceil(u128::from(rate.max(1)));
        let due_ns = self
            .filled_ns
            .saturating_add(u64::try_from(wait_ns).unwrap_or(u64::MAX));
        self.due_ns = Some(due_ns.max(now_ns + 1));
        false
    }

    pub(super) fn on_sent(&mut self, bytes: u64) {
        self.tokens = self.tokens.saturating_sub(signed(bytes));
    }

    /// When something that was held back may go out.
    pub(super) const fn due_ns(&self) -> Option<u64> {
        self.due_ns
    }

    /// The time has come, or nothing waits any more.
    pub(super) fn release(&mut self, now_ns: u64) {
        self.due_ns = self.due_ns.filter(|&due_ns| now_ns < due_ns);
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn bytes_in(rate: u64, elapsed_ns: u64) -> i64 {
    let bytes = u128::from(rate) * u128::from(elapsed_ns) / 1_000_000_000;
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Packets of 1,000 bytes in `for_ns`, and the longest burst of them.
    fn run(rate: u64, for_ns: u64) -> (u64, u64) {
        let mut pacer = Pacer::new(0);
        let (mut sent, mut longest, mut now_ns) = (0, 0, 0);
        pacer.on_sent(i64::MAX.unsigned_abs());
        while now_ns <= for_ns {
            let mut burst = 0;
            while pacer.has_room(now_ns, rate, 1_000) {
                pacer.on_sent(1_000);
                burst += 1;
            }
            sent += burst;
            longest = longest.max(burst);
            now_ns = pacer.due_ns().unwrap();
        }
        (sent, longest)
    }

    #[test]
    fn the_rate_is_kept_and_bursts_are_bounded() {
        for (rate, burst) in [(100_000, 1), (10_000_000, 10), (1_000_000_000, 131)] {
            let (sent, longest) = run(rate, 1_000 * MS);
            let expected = rate / 1_000;
            assert!(
                sent.abs_diff(expected) <= expected / 50 + 2,
                "{sent} at {rate}"
            );
            assert!(longest <= burst + 1, "{longest} at once at {rate}");
        }
    }

    #[test]
    fn after_a_pause_a_bounded_burst_goes_out_at_once() {
        let mut pacer = Pacer::new(0);
        pacer.on_sent(i64::MAX.unsigned_abs());
        let mut burst = 0;
        while pacer.has_room(10_000 * MS, 100_000, 1_000) {
            pacer.on_sent(1_000);
            burst += 1;
        }
        assert_eq!(burst, PACER_BURST_SEGMENTS);
    }
}
