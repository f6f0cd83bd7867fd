//! The exact set of user space: every authorised pair, one cache line a look-up in nearly every case.
//!
//! Open addressing with linear probing, at most half full; a removal moves later pairs back (Knuth,
//! volume 3, 6.4, algorithm R), so that no look-up ever steps over the removed.

extern crate std;
use std::{vec, vec::Vec};

use crate::{
    header::OriginHash,
    tables::{Pair, mix},
};

const SLOTS_MIN: usize = 64;

/// A pair as it lies in the table: two words, so that one comparison tells two pairs apart.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    origin: u64,
    /// [`Slot::USED`], what it is denied by, and the channel; 0 in an unused slot.
    channel: u64,
}

impl Slot {
    const USED: u64 = 1 << 63;
    const DENIED_BY_SHIFT: u32 = 32;

    #[inline]
    fn new(pair: &Pair) -> Self {
        Self {
            origin: pair.origin.0,
            channel: Self::USED
                | u64::from(pair.denied_by) << Self::DENIED_BY_SHIFT
                | u64::from(pair.channel),
        }
    }

    #[inline]
    fn is(&self, other: &Self) -> bool {
        (self.origin ^ other.origin) | (self.channel ^ other.channel) == 0
    }

    #[inline]
    fn is_used(&self) -> bool {
        self.channel != 0
    }

    #[expect(clippy::cast_possible_truncation, reason = "the halves are two fields")]
    fn pair(&self) -> Pair {
        Pair {
            origin: OriginHash(self.origin),
            channel: self.channel as u32,
            denied_by: ((self.channel & !Self::USED) >> Self::DENIED_BY_SHIFT) as u32,
        }
    }
}

/// A set of pairs.
#[derive(Clone, Debug)]
pub(crate) struct PairSet {
    /// A power of two.
    slots: Vec<Slot>,
    pairs: usize,
}

impl Default for PairSet {
    fn default() -> Self {
        Self {
            slots: vec![Slot::default(); SLOTS_MIN],
            pairs: 0,
        }
    }
}

impl PairSet {
    /// Whether the pair is in the set.
    #[inline]
    pub(crate) fn contains(&self, pair: &Pair) -> bool {
        let wanted = Slot::new(pair);
        let mut at = self.home(&wanted);
        loop {
            match self.slots.get(at) {
                Some(slot) if slot.is(&wanted) => return true,
                Some(slot) if slot.is_used() => at = self.after(at),
                _ => return false,
            }
        }
    }

    /// Adds a pair; one that is there already stays.
    pub(crate) fn insert(&mut self, pair: &Pair) {
        if self.contains(pair) {
            return;
        }
        if 2 * (self.pairs + 1) > self.slots.len() {
            let larger = vec![Slot::default(); 2 * self.slots.len()];
            let smaller = core::mem::replace(&mut self.slots, larger);
            for slot in smaller.into_iter().filter(Slot::is_used) {
                self.place(slot);
            }
        }
        self.place(Slot::new(pair));
        self.pairs += 1;
    }

    /// Removes a pair, if it is there.
    pub(crate) fn remove(&mut self, pair: &Pair) {
        let wanted = Slot::new(pair);
        let mut hole = self.home(&wanted);
        while !self.slots[hole].is(&wanted) {
            if !self.slots[hole].is_used() {
                return;
            }
            hole = self.after(hole);
        }
        self.pairs -= 1;
        let mask = self.slots.len() - 1;
        let mut later = self.after(hole);
        while self.slots[later].is_used() {
            let from_home = later.wrapping_sub(self.home(&self.slots[later])) & mask;
            let from_hole = later.wrapping_sub(hole) & mask;
            if from_home >= from_hole {
                self.slots[hole] = self.slots[later];
                hole = later;
            }
            later = self.after(later);
        }
        self.slots[hole] = Slot::default();
    }

    /// Every pair, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Pair> {
        self.slots.iter().filter(|s| s.is_used()).map(Slot::pair)
    }

    fn place(&mut self, slot: Slot) {
        let mut at = self.home(&slot);
        while self.slots[at].is_used() {
            at = self.after(at);
        }
        self.slots[at] = slot;
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }

    /// Where a pair lies if nothing is in its way.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "hashes are cut to slots")]
    fn home(&self, slot: &Slot) -> usize {
        mix(slot.channel.rotate_right(16), slot.origin) as usize & (self.slots.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::header::{ChannelHash, OriginHash};

    #[test]
    fn it_agrees_with_the_standard_set_over_a_long_life() {
        let (mut ours, mut model) = (PairSet::default(), BTreeSet::new());
        for step in 0..60_000_u64 {
            let random = mix(0x5e7, step);
            // Few origins and channels, so that pairs come again and chains form.
            let pair = Pair::new(
                OriginHash(mix(1, random & 0x7ff)),
                ChannelHash(u16::try_from(random >> 20 & 1).unwrap()),
            );
            if random >> 40 & 3 == 0 {
                ours.remove(&pair);
                model.remove(&pair);
            } else {
                ours.insert(&pair);
                model.insert(pair);
            }
            assert_eq!(ours.contains(&pair), model.contains(&pair), "step {step}");
        }
        assert!(model.len() > 1_000);
        assert!(ours.iter().collect::<BTreeSet<_>>() == model);
        for pair in &model {
            ours.remove(pair);
            assert!(!ours.contains(pair));
        }
        assert_eq!(ours.iter().count(), 0);
    }

    #[test]
    fn pairs_that_share_a_home_are_told_apart() {
        let mut set = PairSet::default();
        let home = set.home(&Slot::default());
        let neighbours: Vec<Pair> = (0..100_000)
            .map(|n| Pair::new(OriginHash(n), ChannelHash(0)))
            .filter(|p| set.home(&Slot::new(p)) == home)
            .take(20)
            .collect();
        for pair in &neighbours[..10] {
            set.insert(pair);
        }
        set.remove(&neighbours[3]);
        for (n, pair) in neighbours.iter().enumerate() {
            assert_eq!(set.contains(pair), n < 10 && n != 3, "pair {n}");
        }
    }
}
