//! The exact set: every authorised pair, and every pair withdrawn from another subnet's filter, in lines of
//! 64 bytes, so that a look-up waits for one of them, rarely for two.
//!
//! ```text
//! word 0-4   five origins
//! word 5-7   the rest of each pair, 32 bits, lowest first: 16 bits of channel, above them the number of the
//!            filter that it is withdrawn from and two, or 1 for a pair that is authorised; 0 is none
//! ```
//!
//! A pair has two lines (Pagh, Rodler: Cuckoo Hashing; lines of several: Dietzfelbinger, Weidling), of which the
//! second holds it only where the first was full. Lines are a power of two, as few as leave a fifth of the entries
//! free: 100,000 pairs are 2 MiB, and 5 in 100 of them lie in their second line. Only the largest set is filled to nine
//! tenths, still below the 0.98 at which placing fails with lines of five; who picks origins does not know the key.
//!
//! Two sets lie one after the other: a changed one is built beside the live one, and one word of the settings
//! flips to it.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes are cut to lines on purpose"
)]

use crate::{
    limits::PAIR_LINES_MAX,
    tables::{Pair, Settings, Tables, mix},
};

/// Eight words, see the module.
pub type Line = [u64; 8];

/// Entries of a line.
pub const ENTRIES: usize = 5;
/// Of [`Settings::pairs`]: the second of the two sets is live. Below it is the number of lines less one.
pub const SECOND: u32 = 1 << 31;

/// What is stored of a pair beside its origin; never 0.
#[inline(always)]
const fn rest(pair: &Pair) -> u64 {
    (pair.denied_by.wrapping_add(1) << 16 | pair.channel & 0xffff) as u64
}

/// What entry `n` holds beside its origin; 0 where it is unused.
#[inline(always)]
const fn rest_of(line: &Line, n: usize) -> u64 {
    line[ENTRIES + n / 2] >> (32 * (n % 2)) & 0xffff_ffff
}

/// The two lines that a pair may be in, among those of one set with so many less one.
#[inline(always)]
const fn lines_of(key: u64, mask: u32, pair: &Pair) -> [u32; 2] {
    let h = mix(mix(key, pair.origin.0), rest(pair));
    let mask = mask & (PAIR_LINES_MAX - 1);
    [h as u32 & mask, (h >> 40) as u32 & mask]
}

/// Whether a line holds a pair. In user space all entries are compared, without a branch between them: which one it is
/// no predictor learns, and a branch that it guessed wrong costs more than comparing the others. In the kernel, where a
/// flow's verdict is cached, it is the fewest instructions that count: the first that is the same ends it.
#[inline(always)]
const fn holds(line: &Line, pair: &Pair) -> bool {
    let rest = rest(pair);
    let mut differ = 1;
    let mut n = 0;
    while n < ENTRIES {
        if cfg!(target_arch = "bpf") {
            if line[n] == pair.origin.0 && rest_of(line, n) == rest {
                return true;
            }
        } else {
            let bits = line[n] ^ pair.origin.0 | rest_of(line, n) ^ rest;
            // The highest bit of a number or of its negative is set, but for 0.
            differ &= (bits | bits.wrapping_neg()) >> 63;
        }
        n += 1;
    }
    differ == 0
}

/// Whether the live set holds a pair.
#[inline(always)]
pub fn has<T: Tables>(tables: &T, settings: &Settings, pair: &Pair) -> bool {
    let live = settings.pairs;
    let from = (live >> 31) * PAIR_LINES_MAX;
    let [first, second] = lines_of(settings.pair_key, live, pair);
    let is_in = |line| matches!(tables.pair_line(from + line), Some(line) if holds(line, pair));
    is_in(first) || is_in(second)
}

#[cfg(not(target_arch = "bpf"))]
pub use build::{all_of, half_of};
#[cfg(not(target_arch = "bpf"))]
pub(crate) use build::{build, live};

#[cfg(not(target_arch = "bpf"))]
mod build {
    extern crate std;
    use std::{vec, vec::Vec};

    use super::{ENTRIES, Line, SECOND, lines_of, rest, rest_of};
    use crate::{
        header::OriginHash,
        limits::{PAIR_LINES_MAX, PAIR_LINES_MIN, PAIRS_PER_LINE},
        tables::Pair,
    };

    /// Moves before another size is tried: the longest way in a set of nine tenths is far below.
    const MOVES_MAX: usize = 1_000;

    /// What a set of these lines in this half is named in the settings.
    pub(crate) fn live(half: usize, lines: &[Line]) -> u32 {
        let mask = u32::try_from(lines.len()).unwrap_or(PAIR_LINES_MAX) - 1;
        if half == 0 { mask } else { mask | SECOND }
    }

    /// The half that the settings name, and its lines' number.
    #[must_use]
    pub fn half_of(live: u32) -> (usize, u32) {
        (usize::from(live & SECOND != 0), (live & !SECOND) + 1)
    }

    /// The pairs of some lines.
    pub fn all_of(lines: &[Line]) -> impl Iterator<Item = Pair> + '_ {
        let entries = |line| (0..ENTRIES).filter_map(move |n| pair(line, n));
        lines.iter().flat_map(entries)
    }

    /// The pair in entry `n`.
    fn pair(line: &Line, n: usize) -> Option<Pair> {
        let rest = rest_of(line, n) as u32;
        let denied_by = (rest >> 16).checked_sub(1)?;
        Some(Pair {
            origin: OriginHash(line[n]),
            channel: rest & 0xffff,
            denied_by,
        })
    }

    fn set(line: &mut Line, n: usize, pair: &Pair) {
        let (word, shift) = (ENTRIES + n / 2, 32 * (n % 2));
        line[n] = pair.origin.0;
        line[word] = line[word] & !(0xffff_ffff << shift) | rest(pair) << shift;
    }

    /// The smallest set of so many pairs; `None` where no size can hold them.
    pub(crate) fn build<'a>(
        key: u64,
        count: usize,
        pairs: impl Iterator<Item = &'a Pair> + Clone,
    ) -> Option<Vec<Line>> {
        let mut lines = PAIR_LINES_MIN as usize;
        while count > lines * PAIRS_PER_LINE && lines < PAIR_LINES_MAX as usize {
            lines *= 2;
        }
        while lines <= PAIR_LINES_MAX as usize {
            let mut set = vec![[0; 8]; lines];
            if pairs.clone().all(|pair| place(&mut set, key, *pair)) {
                return Some(set);
            }
            lines *= 2;
        }
        None
    }

    /// Puts a pair into one of its lines; where both are full, another moves to its own other line.
    fn place(lines: &mut [Line], key: u64, mut pair: Pair) -> bool {
        let mask = (lines.len() - 1) as u32;
        let mut from = None;
        for moved in 0..MOVES_MAX {
            let [first, second] = lines_of(key, mask, &pair);
            for at in [first, second] {
                let line = &mut lines[at as usize];
                if let Some(n) = (0..ENTRIES).find(|n| rest_of(line, *n) == 0) {
                    set(line, n, &pair);
                    return true;
                }
            }
            let at = if from == Some(first) { second } else { first };
            let line = &mut lines[at as usize];
            let n = moved % ENTRIES;
            if let Some(other) = self::pair(line, n) {
                set(line, n, &pair);
                pair = other;
            }
            from = Some(at);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, vec::Vec};

    use super::*;
    use crate::{
        header::{ChannelHash, OriginHash},
        limits::{DENIED_MAX, PAIRS_MAX},
    };

    const KEY: u64 = 0x5e7;

    /// Few channels and filters, so that pairs differ in all of their parts.
    fn pair(n: u64) -> Pair {
        let pair = Pair::new(OriginHash(mix(1, n / 4)), ChannelHash((n % 2) as u16));
        if n % 4 < 2 { pair } else { pair.denied_by(63) }
    }

    fn is_in(lines: &[Line], pair: &Pair) -> bool {
        let mask = lines.len() as u32 - 1;
        let lines_of = lines_of(KEY, mask, pair);
        lines_of
            .into_iter()
            .any(|n| holds(&lines[n as usize], pair))
    }

    #[test]
    fn a_set_of_any_size_holds_what_was_put_in_and_nothing_else() {
        for count in [
            0,
            1,
            255,
            256,
            257,
            20_000,
            u64::from(PAIRS_MAX + DENIED_MAX),
        ] {
            let pairs: BTreeSet<Pair> = (0..count).map(pair).collect();
            let lines = build(KEY, pairs.len(), pairs.iter()).expect("room");
            assert!(lines.len() <= PAIR_LINES_MAX as usize, "{count}");
            assert!(pairs.iter().all(|p| is_in(&lines, p)), "{count}");
            assert!((count..count + 10_000).all(|n| !is_in(&lines, &pair(n))));
            assert_eq!(all_of(&lines).collect::<BTreeSet<_>>(), pairs);
        }
    }

    #[test]
    fn nearly_all_lie_in_their_first_line() {
        let pairs: Vec<Pair> = (0..100_000).map(pair).collect();
        let lines = build(KEY, pairs.len(), pairs.iter()).expect("room");
        assert_eq!(lines.len(), 32_768);
        let first = |p: &&Pair| holds(&lines[lines_of(KEY, 32_767, p)[0] as usize], p);
        let first = pairs.iter().filter(first).count();
        assert!(first > 94_000, "{first} of 100,000");
    }

    #[test]
    fn an_empty_entry_is_no_pair() {
        for channel in [0, 1] {
            let pair = Pair::new(OriginHash(0), ChannelHash(channel));
            assert!(!holds(&[0; 8], &pair));
        }
    }
}
