//! Numbers that keep nodes from doing the same at the same time; nothing secret comes of them.

/// SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`; 0 where that is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX);
        let number = self.number().checked_rem(end).unwrap_or(0);
        usize::try_from(number).unwrap_or(0)
    }

    /// From half of `span_ns` to all of it.
    pub(crate) const fn jittered(&mut self, span_ns: u64) -> u64 {
        let half = span_ns / 2;
        half + self.number() % (half + 1)
    }

    /// Takes out at most `count`, any of them.
    pub(crate) fn some<T>(&mut self, mut all: Vec<T>, count: usize) -> Vec<T> {
        let mut taken = Vec::new();
        while taken.len() < count && !all.is_empty() {
            let at = self.below(all.len());
            taken.push(all.swap_remove(at));
        }
        taken
    }

    /// Any order.
    pub(crate) fn shuffled<T>(&mut self, all: Vec<T>) -> Vec<T> {
        let count = all.len();
        self.some(all, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_is_within_bounds_and_nothing_is_drawn_twice() {
        let mut random = Random::new(7);
        for _ in 0..1_000 {
            assert!(random.below(5) < 5);
            assert!((50..=100).contains(&random.jittered(100)));
        }
        assert_eq!(random.below(0), 0);
        assert!(random.some((0..9).collect(), 3).len() == 3);
        let mut all = random.shuffled((0..50).collect());
        assert_ne!(all, (0..50).collect::<Vec<_>>());
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
    }
}
