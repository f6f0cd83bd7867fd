//! How often something may happen: so many times at once, and one more after each pause.

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    left: u32,
    most: u32,
    pause_ns: u64,
    /// Until when the pauses are counted.
    counted_ns: u64,
}

impl Allowance {
    /// As many as may be, at first.
    #[must_use]
    pub const fn new(most: u32, pause_ns: u64) -> Self {
        Self {
            left: most,
            most,
            pause_ns,
            counted_ns: 0,
        }
    }

    fn count(&mut self, now_ns: u64) {
        let pauses = now_ns.saturating_sub(self.counted_ns) / self.pause_ns;
        self.counted_ns = self.counted_ns.saturating_add(pauses * self.pause_ns);
        let more = u32::try_from(pauses).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(more).min(self.most);
    }

    /// Whether it may happen now; it then counts as having happened.
    pub fn take(&mut self, now_ns: u64) -> bool {
        self.count(now_ns);
        let may = self.left > 0;
        self.left -= u32::from(may);
        may
    }

    /// When it may happen next.
    pub fn next_ns(&mut self, now_ns: u64) -> u64 {
        self.count(now_ns);
        match self.left {
            0 => self.counted_ns.saturating_add(self.pause_ns),
            _ => now_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_up_is_bounded_and_comes_back_one_a_pause() {
        let mut allowance = Allowance::new(3, 100);
        let mut taken = |now_ns| (0..9).filter(|_| allowance.take(now_ns)).count();
        assert_eq!(taken(10_000), 3);
        assert_eq!(taken(10_099), 0);
        assert_eq!(taken(10_100), 1);
        assert_eq!(taken(10_399), 2);
        assert_eq!(taken(90_000), 3);
        assert_eq!(allowance.next_ns(90_010), 90_100);
        assert_eq!(allowance.next_ns(90_150), 90_150);
        // Asking often earns no less.
        let mut often = Allowance::new(1, 100);
        assert_eq!(
            (20_000..20_800)
                .step_by(50)
                .filter(|&at| often.take(at))
                .count(),
            8
        );
    }
}
