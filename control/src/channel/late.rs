//! Events that no worker got before their publishers' deadline: summed until a worker counts them, so that of however many
//! one command is on its way.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};
use virga_transport::ChannelName;

/// Such events of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LateCount {
    /// How many.
    pub(crate) expired: u64,
    /// How many beside these were too large.
    pub(crate) refused: u64,
}

/// See the module. There are no more channels than the configuration has had.
#[derive(Debug, Default)]
pub struct LateEvents(Mutex<BTreeMap<ChannelName, LateCount>>);

impl LateEvents {
    /// There are some more; whether a worker is to be told, as it was not of others that it has not counted.
    pub(crate) fn add(&self, channel: &ChannelName, more: LateCount) -> bool {
        let mut late = self.lock();
        let is_first = late.is_empty();
        let of_channel = late.entry(channel.clone()).or_default();
        of_channel.expired += more.expired;
        of_channel.refused += more.refused;
        is_first
    }

    /// All of them, to be counted now.
    pub(crate) fn take(&self) -> BTreeMap<ChannelName, LateCount> {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ChannelName, LateCount>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
