//! The newest batches that logs have: what comes a second time is none of them twice.

use std::collections::{BTreeMap, BTreeSet};
use virga_state::{
    batch::{FeedId, Statement},
    format::Hash,
};

/// Batches that are remembered, some 60 bytes each: far more than are on their way at a time.
const KNOWN_MAX: usize = 64 << 10;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// By their first event and their head: what contradicts one of them is another.
    feeds: BTreeMap<FeedId, BTreeSet<(u64, Hash)>>,
    count: usize,
}

impl Known {
    /// Remembers a batch.
    pub(super) fn add(&mut self, statement: &Statement) {
        self.insert(statement.feed(), (statement.first, statement.head));
    }

    /// Remembers what another does.
    pub(super) fn add_all(&mut self, other: Self) {
        for (feed, batches) in other.feeds {
            for batch in batches {
                self.insert(feed, batch);
            }
        }
    }

    /// Forgets the older half of the feed that has most where there are too many, and one at least.
    fn insert(&mut self, feed: FeedId, batch: (u64, Hash)) {
        if self.count >= KNOWN_MAX {
            let most = self
                .feeds
                .iter_mut()
                .max_by_key(|(_, batches)| batches.len());
            if let Some((&most, batches)) = most {
                let (before, half) = (batches.len(), batches.len() / 2);
                let kept = batches.iter().nth(half.max(1)).copied();
                *batches = kept.map_or_else(BTreeSet::new, |first| batches.split_off(&first));
                self.count -= before - batches.len();
                if batches.is_empty() {
                    self.feeds.remove(&most);
                }
            }
        }
        if self.feeds.entry(feed).or_default().insert(batch) {
            self.count += 1;
        }
    }

    /// Whether that batch is remembered.
    pub(super) fn has(&self, statement: &Statement) -> bool {
        let of_feed = self.feeds.get(&statement.feed());
        of_feed.is_some_and(|known| known.contains(&(statement.first, statement.head)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virga_state::LogName;

    fn statement(entity: u8, first: u64) -> Statement {
        Statement {
            entity: [entity; 32],
            first,
            count: 1,
            parent: [0; 32],
            head: [1; 32],
            frontier: [0; 32],
            channel: LogName::parse("a").unwrap(),
        }
    }

    #[test]
    fn the_newest_are_remembered_and_the_feed_that_has_most_makes_room() {
        let mut known = Known::default();
        known.add(&statement(1, 7));
        let last = 2 * KNOWN_MAX as u64;
        for first in 1..=last {
            known.add(&statement(2, first));
            assert!(known.count <= KNOWN_MAX);
        }
        assert!(known.has(&statement(1, 7)));
        assert!(!known.has(&statement(2, 1)));
        let newest = last - KNOWN_MAX as u64 / 4;
        assert!((newest..=last).all(|first| known.has(&statement(2, first))));
        let counted: usize = known.feeds.values().map(BTreeSet::len).sum();
        assert_eq!(known.count, counted);
    }

    #[test]
    fn what_contradicts_a_batch_is_another() {
        let mut known = Known::default();
        let one = statement(1, 7);
        known.add(&one);
        known.add(&one);
        assert!(known.has(&one));
        assert_eq!(known.count, 1);
        let fork = Statement {
            head: [2; 32],
            ..one.clone()
        };
        let later = Statement { first: 8, ..one };
        assert!(!known.has(&fork) && !known.has(&later));
    }
}
