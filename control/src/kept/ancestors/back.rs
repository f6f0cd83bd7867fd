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

/// See the module.
#[derive(Debug, Default)]
pub(in crate::kept) struct Back {
    pub(in crate::kept) newest: Newest,
    pub(super) known: Known,
    /// How many events of a feed an entity named; no more than are remembered.
    pub(super) named: BTreeMap<(FeedId, Entity), u64>,
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
                    let key = (observed.feed, statement.entity);
                    let has_room = back.named.len() < CAUSAL_FEEDS_MAX;
                    if has_room || back.named.contains_key(&key) {
                        let count = back.named.entry(key).or_default();
                        *count = observed.count.max(*count);
                    }
                }
            },
        )?;
        back.newest = newest;
        Ok(back)
    }
}
