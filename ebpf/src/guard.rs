//! The guard: a split-block bloom filter of the authorised (origin, channel) pairs.
//!
//! A bank is 4 KiB: 64 lines of 64 bytes. A key probes one line, with one bit in each of its eight
//! 64-bit words (Putze, Sanders, Singler: "Cache-, Hash- and Space-Efficient Bloom Filters"). Of the
//! key's 64-bit hash, bits 0–47 pick the eight bits, 48–53 the line, 54–63 the bank. The hash is
//! salted anew at every publication, so that passing pairs cannot be found offline for long.
//!
//! Two guards lie one after the other; the settings say which is live. A miss is certain; a hit is
//! confirmed against the exact set. After them lie the filters of other subnets, each made by one of that
//! subnet's nodes in the same way; a hit there is as sure as the filter's estimated rate says, and the pairs
//! that were withdrawn since it was made are told by an exact set of their own.

use crate::{
    limits::{FILTER_BANKS_MAX, FILTER_LINES_MAX, GUARD_LINES_MAX, GUARD_LINES_PER_BANK},
    tables::{GuardInfo, Pair, mix},
};

/// Hash of a pair under a publication's salt.
#[inline(always)]
#[must_use]
pub const fn key_hash(salt: [u64; 2], pair: &Pair) -> u64 {
    mix(mix(salt[0], pair.origin.0), salt[1] ^ pair.channel as u64)
}

/// Place of the key's line among both guards' lines.
#[inline(always)]
#[must_use]
pub const fn line_of(which: u32, info: &GuardInfo, hash: u64) -> u32 {
    let bank = (hash >> 54) as u32 & info.bank_mask;
    let line = (hash >> 48) as u32 & (GUARD_LINES_PER_BANK - 1);
    lines_from(which) + bank * GUARD_LINES_PER_BANK + line
}

/// Place of the first line of a guard.
#[inline(always)]
#[must_use]
pub const fn lines_from(which: u32) -> u32 {
    (which & 1) * GUARD_LINES_MAX
}

/// Place of the key's line among all lines, for the filter in a place.
#[inline(always)]
#[must_use]
pub const fn filter_line_of(place: u32, info: &GuardInfo, hash: u64) -> u32 {
    let bank = (hash >> 54) as u32 & info.bank_mask & (FILTER_BANKS_MAX - 1);
    let line = (hash >> 48) as u32 & (GUARD_LINES_PER_BANK - 1);
    filter_lines_from(place) + bank * GUARD_LINES_PER_BANK + line
}

/// Place of the first line of the filter in a place.
#[inline(always)]
#[must_use]
pub const fn filter_lines_from(place: u32) -> u32 {
    (2 * GUARD_LINES_MAX).wrapping_add(place.wrapping_mul(FILTER_LINES_MAX))
}

/// Whether the first four of the key's eight bits are set in its line. A stranger's seldom are: once in 35 times at
/// the fill that a guard grows at.
#[inline(always)]
#[must_use]
pub const fn may_hit(line: &[u64; 8], hash: u64) -> bool {
    let first = (line[0] >> (hash & 63))
        & (line[1] >> ((hash >> 6) & 63))
        & (line[2] >> ((hash >> 12) & 63))
        & (line[3] >> ((hash >> 18) & 63));
    first & 1 == 1
}

/// Whether all eight bits of the key are set in its line.
#[inline(always)]
#[must_use]
pub const fn is_hit(line: &[u64; 8], hash: u64) -> bool {
    let last = (line[4] >> ((hash >> 24) & 63))
        & (line[5] >> ((hash >> 30) & 63))
        & (line[6] >> ((hash >> 36) & 63))
        & (line[7] >> ((hash >> 42) & 63));
    may_hit(line, hash) && last & 1 == 1
}

#[cfg(not(target_arch = "bpf"))]
pub use build::Guard;

#[cfg(not(target_arch = "bpf"))]
mod build {
    extern crate std;
    use std::{vec, vec::Vec};

    use super::{GuardInfo, Pair, is_hit, key_hash, line_of};
    use crate::limits::{GUARD_BANKS_MAX, GUARD_FALSE_POSITIVE_RATE_MAX, GUARD_LINES_PER_BANK};

    /// A guard or a filter as the control plane builds it, ready to be published.
    #[derive(Clone, Debug)]
    pub struct Guard {
        /// Salt and size.
        pub info: GuardInfo,
        /// Its lines, bank after bank.
        pub lines: Vec<[u64; 8]>,
    }

    impl Guard {
        /// The smallest guard of `pairs` whose estimated false-positive rate is below
        /// [`GUARD_FALSE_POSITIVE_RATE_MAX`], or the largest there is.
        pub fn build<'a>(salt: [u64; 2], pairs: impl Iterator<Item = &'a Pair> + Clone) -> Self {
            Self::build_within(GUARD_BANKS_MAX, salt, pairs)
        }

        /// The same with at most so many banks, a power of two.
        pub fn build_within<'a>(
            banks_max: u32,
            salt: [u64; 2],
            pairs: impl Iterator<Item = &'a Pair> + Clone,
        ) -> Self {
            let mut banks = 1;
            loop {
                let mut guard = Self::empty(salt, banks);
                for pair in pairs.clone() {
                    guard.insert(pair);
                }
                if guard.false_positive_rate() < GUARD_FALSE_POSITIVE_RATE_MAX || banks >= banks_max
                {
                    return guard;
                }
                banks *= 2;
            }
        }

        fn empty(salt: [u64; 2], banks: u32) -> Self {
            let lines = vec![[0; 8]; (banks * GUARD_LINES_PER_BANK) as usize];
            Self {
                info: GuardInfo {
                    salt,
                    bank_mask: banks - 1,
                    reserved: 0,
                },
                lines,
            }
        }

        fn insert(&mut self, pair: &Pair) {
            let hash = key_hash(self.info.salt, pair);
            let line = &mut self.lines[line_of(0, &self.info, hash) as usize];
            for (i, word) in line.iter_mut().enumerate() {
                *word |= 1 << ((hash >> (6 * i)) & 63);
            }
        }

        /// Whether the guard lets the pair through to the exact set.
        #[must_use]
        pub fn is_hit(&self, pair: &Pair) -> bool {
            let hash = key_hash(self.info.salt, pair);
            is_hit(&self.lines[line_of(0, &self.info, hash) as usize], hash)
        }

        /// Share of pairs never inserted that hit all the same, computed from the bits that are set:
        /// the mean over the lines of the product of their words' fills.
        #[must_use]
        pub fn false_positive_rate(&self) -> f64 {
            let sum: f64 = self
                .lines
                .iter()
                .map(|line| {
                    line.iter()
                        .map(|w| f64::from(w.count_ones()) / 64.0)
                        .product::<f64>()
                })
                .sum();
            sum / f64::from(self.info.bank_mask + 1) / f64::from(GUARD_LINES_PER_BANK)
        }

        /// Share of bits that are set.
        #[must_use]
        pub fn fill(&self) -> f64 {
            let ones: u64 = self
                .lines
                .iter()
                .flatten()
                .map(|w| u64::from(w.count_ones()))
                .sum();
            let bits = u64::from(self.info.bank_mask + 1) * u64::from(GUARD_LINES_PER_BANK) * 512;
            // Both are far below 2^52: the division is exact enough for a share.
            #[allow(clippy::cast_precision_loss)]
            let share = ones as f64 / bits as f64;
            share
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::{ChannelHash, OriginHash};

    fn pair(n: u64) -> Pair {
        let origin = OriginHash(mix(0x1234, n));
        Pair::new(origin, ChannelHash(u16::try_from(n % 60_000).unwrap() + 1))
    }

    fn built(n: u64) -> Guard {
        let pairs: Vec<Pair> = (0..n).map(pair).collect();
        Guard::build([7, 11], pairs.iter())
    }

    #[test]
    fn what_was_inserted_always_hits() {
        for n in [0, 1, 100, 2_000, 20_000] {
            let guard = built(n);
            assert!((0..n).all(|i| guard.is_hit(&pair(i))), "{n} pairs");
        }
    }

    #[test]
    fn one_bank_holds_about_two_thousand_pairs_and_more_grow_it() {
        assert_eq!(built(1_800).info.bank_mask, 0);
        assert!(built(4_000).info.bank_mask >= 1);
        let large = built(100_000);
        assert!(large.false_positive_rate() < crate::limits::GUARD_FALSE_POSITIVE_RATE_MAX);
    }

    #[test]
    fn the_estimated_and_the_measured_false_positive_rate_agree() {
        for n in [1_500, 10_000, 60_000] {
            let guard = built(n);
            let tries = 2_000_000;
            let hits = (0..tries)
                .filter(|i| guard.is_hit(&pair(1_000_000_000 + i)))
                .count();
            let measured = f64::from(u32::try_from(hits).unwrap()) / 2_000_000.0;
            let estimate = guard.false_positive_rate();
            assert!(
                (measured - estimate).abs() < 0.3 * estimate,
                "{n} pairs: estimated {estimate:.6}, measured {measured:.6}"
            );
        }
    }

    #[test]
    fn another_salt_gives_other_false_positives() {
        let pairs: Vec<Pair> = (0..1_800).map(pair).collect();
        let (one, two) = (
            Guard::build([1, 2], pairs.iter()),
            Guard::build([3, 4], pairs.iter()),
        );
        let strangers = || (0..1_000_000).map(|i| pair(5_000_000_000 + i));
        let both = strangers()
            .filter(|p| one.is_hit(p) && two.is_hit(p))
            .count();
        assert!(
            both < 20,
            "{both} strangers of a million pass under both salts"
        );
    }
}
