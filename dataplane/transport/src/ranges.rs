//! Sets of numbers kept as disjoint ranges: sequences received, bytes acknowledged or lost.

use std::collections::BTreeMap;

/// Disjoint, non-adjacent half-open ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RangeSet {
    /// Start to end.
    map: BTreeMap<u64, u64>,
}

impl RangeSet {
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Ascending (start, end) pairs.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        self.map.iter().map(|(&start, &end)| (start, end))
    }

    pub(crate) fn first(&self) -> Option<(u64, u64)> {
        self.map
            .first_key_value()
            .map(|(&start, &end)| (start, end))
    }

    pub(crate) fn remove_first(&mut self) {
        self.map.pop_first();
    }

    /// Adds `start..end`, joining what it touches.
    pub(crate) fn insert(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        if let Some((&before, &before_end)) = self.map.range(..=start).next_back()
            && before_end >= start
        {
            start = before;
            end = end.max(before_end);
        }
        while let Some((&next, &next_end)) = self.map.range(start..=end).next() {
            end = end.max(next_end);
            self.map.remove(&next);
        }
        self.map.insert(start, end);
    }

    /// Takes `start..end` out.
    pub(crate) fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some((&before, &before_end)) = self.map.range(..start).next_back()
            && before_end > start
        {
            self.map.insert(before, start);
            if before_end > end {
                self.map.insert(end, before_end);
                return;
            }
        }
        while let Some((&next, &next_end)) = self.map.range(start..end).next() {
            self.map.remove(&next);
            if next_end > end {
                self.map.insert(end, next_end);
            }
        }
    }

    /// Whether all of `start..end` is in the set.
    pub(crate) fn covers(&self, start: u64, end: u64) -> bool {
        let before = self.map.range(..=start).next_back();
        start >= end || before.is_some_and(|(_, &before_end)| before_end >= end)
    }

    /// Whether any of `start..end` is in the set.
    pub(crate) fn intersects(&self, start: u64, end: u64) -> bool {
        let before = self.map.range(..end).next_back();
        start < end && before.is_some_and(|(_, &before_end)| before_end > start)
    }

    /// The parts of `start..end` that are not in the set, ascending.
    pub(crate) fn missing(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut gaps = Self::default();
        gaps.insert(start, end);
        let from = self
            .map
            .range(..=start)
            .next_back()
            .map_or(start, |(&s, _)| s);
        if from < end {
            for (&s, &e) in self.map.range(from..end) {
                gaps.remove(s, e);
            }
        }
        gaps.iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(ops in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..16), 0..60)) {
            let mut set = RangeSet::default();
            let mut model = BTreeSet::new();
            for (add, start, len) in ops {
                if add {
                    set.insert(start, start + len);
                    model.extend(start..start + len);
                } else {
                    set.remove(start, start + len);
                    model.retain(|&n| n < start || n >= start + len);
                }
                let kept: BTreeSet<u64> = set.iter().flat_map(|(s, e)| s..e).collect();
                prop_assert_eq!(&kept, &model);
                let apart = set.iter().zip(set.iter().skip(1)).all(|(a, b)| a.1 < b.0);
                prop_assert!(apart, "adjacent ranges must be joined: {:?}", set);
                let gaps: BTreeSet<u64> =
                    set.missing(10, 40).into_iter().flat_map(|(s, e)| s..e).collect();
                let expected: BTreeSet<u64> = (10..40).filter(|n| !model.contains(n)).collect();
                prop_assert_eq!(gaps, expected);
                for (from, to) in [(start, start + len), (10, 12)] {
                    let is_in = |n: u64| model.contains(&n);
                    prop_assert_eq!(set.covers(from, to), (from..to).all(is_in));
                    prop_assert_eq!(set.intersects(from, to), (from..to).any(is_in));
                }
            }
        }
    }
}
