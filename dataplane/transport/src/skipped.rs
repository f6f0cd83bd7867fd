//! Sequences that no packet has (RFC 9000, 21.4): who acknowledges one of them acknowledges what it has
//! not received, to be sent more than the path carries.

use crate::{
    limits::{SKIP_GAP_MAX, SKIP_GAP_MIN, SKIPPED_KEPT_MAX},
    random::Generator,
};
use std::collections::VecDeque;

/// The newest sequences that were left out, and the next that will be.
#[derive(Debug)]
pub(crate) struct Skipped {
    /// Ascending.
    newest: VecDeque<u64>,
    /// Not ahead: none is chosen.
    next: u64,
    gap: u64,
}

impl Skipped {
    pub(crate) const fn new() -> Self {
        Self {
            newest: VecDeque::new(),
            next: 0,
            gap: SKIP_GAP_MIN,
        }
    }

    /// Chooses the next sequence to leave out, where none is chosen beyond `sequence`, that of the next
    /// packet. Nobody else knows which.
    pub(crate) fn choose(&mut self, sequence: u64, generator: &mut Generator) {
        if self.next > sequence {
            return;
        }
        self.next = sequence + 1 + generator.below(self.gap);
        self.gap = (2 * self.gap).min(SKIP_GAP_MAX);
    }

    /// The sequence after `sequence`, which a packet has just taken.
    pub(crate) fn after(&mut self, sequence: u64) -> u64 {
        let next = sequence + 1;
        if next != self.next {
            return next;
        }
        if self.newest.len() == SKIPPED_KEPT_MAX {
            self.newest.pop_front();
        }
        self.newest.push_back(next);
        next + 1
    }

    /// Forgets them: nothing is on its way.
    pub(crate) fn forget(&mut self) {
        self.newest = VecDeque::new();
    }

    /// How many of `first..=last` were left out, as far as is remembered.
    pub(crate) fn count(&self, first: u64, last: u64) -> u64 {
        let from = self.newest.partition_point(|&s| s < first);
        let until = self.newest.partition_point(|&s| s <= last);
        until.saturating_sub(from) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_left_out_and_known_and_not_many() {
        let mut generator = Generator::new(&[7; 32], b"skipped");
        let mut skipped = Skipped::new();
        let (mut sequence, mut packets, mut left_out) = (0, 0u64, Vec::new());
        while packets < 100_000 {
            skipped.choose(sequence, &mut generator);
            let next = skipped.after(sequence);
            packets += 1;
            if next > sequence + 1 {
                assert_eq!(next, sequence + 2);
                left_out.push(sequence + 1);
            }
            assert_eq!(skipped.count(sequence, sequence), 0);
            sequence = next;
        }
        let total = left_out.len() as u64;
        assert!((150..=250).contains(&total), "{total} of {packets}");
        assert!(left_out[0] <= SKIP_GAP_MIN, "the first comes early");
        let known = &left_out[left_out.len() - SKIPPED_KEPT_MAX..];
        assert!(known.iter().all(|&s| skipped.count(s, s) == 1));
        let all = SKIPPED_KEPT_MAX as u64;
        assert_eq!((skipped.count(0, u64::MAX), skipped.count(0, 0)), (all, 0));
        assert_eq!(skipped.count(known[1], known[3]), 3);
        assert_eq!(skipped.count(known[1] + 1, known[3] - 1), 1);
    }
}
