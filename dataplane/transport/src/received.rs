//! Sequences that were opened, for acknowledgements: the newest ranges of them.

use crate::limits::ACK_RANGES_MAX;

/// Disjoint, non-adjacent half-open ranges, ascending: [`ACK_RANGES_MAX`] at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    ranges: Vec<(u64, u64)>,
}

impl Received {
    /// Ascending (start, end) pairs.
    pub(crate) fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// One past the newest sequence.
    pub(crate) fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |&(_, end)| end)
    }

    /// Adds a sequence; the oldest range goes where they are too many.
    pub(crate) fn insert(&mut self, sequence: u64) {
        let at = match self.ranges.last() {
            Some(&(start, _)) if start <= sequence => self.ranges.len() - 1,
            _ => self.ranges.partition_point(|&(_, end)| end < sequence),
        };
        match self.ranges.get_mut(at) {
            Some((start, end)) if (*start..*end).contains(&sequence) => {}
            Some((_, end)) if *end == sequence => {
                *end += 1;
                let new_end = *end;
                if let Some(&(next, next_end)) = self.ranges.get(at + 1)
                    && next == new_end
                {
                    self.ranges[at].1 = next_end;
                    self.ranges.remove(at + 1);
                }
            }
            Some((start, _)) if *start == sequence + 1 => *start = sequence,
            Some(&mut (start, _)) => {
                let at = if start < sequence { at + 1 } else { at };
                self.ranges.insert(at, (sequence, sequence + 1));
            }
            None => self.ranges.push((sequence, sequence + 1)),
        }
        if self.ranges.len() > ACK_RANGES_MAX {
            self.ranges.remove(0);
        }
    }

    /// Gives back room that nothing is in.
    pub(crate) fn give_back(&mut self) {
        self.ranges.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranges::RangeSet;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_keeps_the_newest_ranges(sequences in prop::collection::vec(0u64..200, 0..150)) {
            let (mut received, mut model) = (Received::default(), RangeSet::default());
            for sequence in sequences {
                received.insert(sequence);
                model.insert(sequence, sequence + 1);
                while model.len() > ACK_RANGES_MAX {
                    model.remove_first();
                }
                prop_assert!(model.iter().eq(received.ranges().iter().copied()));
                prop_assert_eq!(Some(received.end()), model.iter().last().map(|(_, end)| end));
            }
        }
    }
}
