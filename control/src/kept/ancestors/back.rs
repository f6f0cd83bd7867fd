//! What the newest segments of a log say when it is opened: where its feeds end, where they are, which batches came last,
//! and what those name of other feeds.

use super::{known::Known, names::Entity};
use crate::kept::places::Places;
use std::collections::BTreeMap;
use virga_state::{
    LogName, OpenError,
    batch::FeedId,
    disk::Disk,
    history::{self, Newest},
    limits::CAUSAL_FEEDS_MAX,
};

/// Bytes of each log's newest segments that are looked through.
const LOOKED_BACK_BYTES: u64 = 256 << 20;

/// How many events of feeds entities named. Where there is no room for all, each entity has the same share: none takes all
/// places before others name anything.
#[derive(Debug, Default)]
pub(super) struct Named {
    of: BTreeMap<Entity, BTreeMap<FeedId, u64>>,
    count: usize,
    /// None: there is room for all so far.
    share: Option<usize>,
}

impl Named {
    pub(super) fn note(&mut self, feed: FeedId, namer: Entity, count: u64) {
        let of = self.of.get_mut(&namer);
        if let Some(known) = of.and_then(|of| of.get_mut(&feed)) {
            *known = count.max(*known);
            return;
        }
        while self.count >= CAUSAL_FEEDS_MAX && self.share != Some(1) {
            self.halve();
        }
        let of_namer = self.of.get(&namer).map_or(0, BTreeMap::len);
        let has_share = self.share.is_none_or(|share| of_namer < share);
        if self.count < CAUSAL_FEEDS_MAX && has_share {
            self.of.entry(namer).or_default().insert(feed, count);
            self.count += 1;
        }
    }

    fn halve(&mut self) {
        let share = self.share.unwrap_or(CAUSAL_FEEDS_MAX) / 2;
        self.share = Some(share);
        for of_namer in self.of.values_mut() {
            while of_namer.len() > share {
                of_namer.pop_last();
                self.count -= 1;
            }
        }
    }

    pub(super) fn into_each(self) -> impl Iterator<Item = ((FeedId, Entity), u64)> {
        let of = self.of.into_iter();
        of.flat_map(|(namer, feeds)| {
            let feeds = feeds.into_iter();
            feeds.map(move |(feed, count)| ((feed, namer), count))
        })
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::kept) struct Back {
    pub(in crate::kept) newest: Newest,
    pub(super) known: Known,
    pub(super) named: Named,
    /// Whether the log keeps some alone of what comes: by retention, or compaction.
    pub(in crate::kept) lets_go: bool,
}

impl Back {
    /// Looks through a log, as long as it is waited for. Blocks.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub(in crate::kept) fn look<D: Disk>(
        disk: &D,
        name: &LogName,
        places: &Places,
        is_waited_for: impl Fn() -> bool,
    ) -> Result<Self, OpenError> {
        let mut back = Self::default();
        let newest = history::newest_of_feeds(
            disk,
            name,
            LOOKED_BACK_BYTES,
            is_waited_for,
            |offset, batch| {
                let statement = &batch.signed.statement;
                back.known.add(statement);
                places.note(statement, offset);
                for observed in &batch.frontier {
                    let (feed, namer) = (observed.feed, statement.entity);
                    back.named.note(feed, namer, observed.count);
                }
            },
        )?;
        back.newest = newest;
        Ok(back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(number: u64) -> FeedId {
        let mut id = [7; 32];
        id[..8].copy_from_slice(&number.to_be_bytes());
        FeedId(id)
    }

    #[test]
    fn who_names_much_leaves_others_their_share() {
        let mut named = Named::default();
        let most = CAUSAL_FEEDS_MAX as u64;
        for number in 0..most {
            named.note(feed(number), [0; 32], 1);
        }
        assert_eq!(
            named.count, CAUSAL_FEEDS_MAX,
            "as long as nobody else names any"
        );
        for namer in 1..=100 {
            for number in 0..3 * most / 100 {
                named.note(feed(number), [namer; 32], 1);
                named.note(feed(number), [namer; 32], 9);
                named.note(feed(number), [namer; 32], 2);
                assert!(named.count <= CAUSAL_FEEDS_MAX);
            }
        }
        let of_each = named.of.values().map(BTreeMap::len);
        let (least, all) = (of_each.clone().min(), of_each.sum::<usize>());
        assert!(named.of.len() == 101 && least >= Some(CAUSAL_FEEDS_MAX / 101 / 2));
        assert_eq!(named.count, all);
        let mut counts = named
            .into_each()
            .filter(|((_, namer), _)| *namer != [0; 32]);
        assert!(counts.all(|(_, count)| count == 9));
    }
}
