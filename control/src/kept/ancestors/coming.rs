//! What logs get from other nodes at this moment.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use virga_state::batch::FeedId;
use virga_transport::ChannelName;

/// Feeds of which a log gets what it lacks from another node at this moment, and their channels: whoever asks this node for
/// that may ask again. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(in crate::kept) struct Coming(Arc<Mutex<BTreeMap<FeedId, ChannelName>>>);

impl Coming {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<FeedId, ChannelName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::kept) fn has(&self, channel: &ChannelName, feed: FeedId) -> bool {
        self.lock().get(&feed) == Some(channel)
    }

    pub(super) fn add(&self, channel: &ChannelName, feed: FeedId) {
        self.lock().insert(feed, channel.clone());
    }

    pub(super) fn remove(&self, feed: FeedId) {
        self.lock().remove(&feed);
    }
}
