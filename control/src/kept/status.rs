//! How the logs stand, and which of them should be there and are not.

use super::{ancestors::Unfound, replicated::ReplicationStatus};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use virga_state::{Durability, io::open::OpenLog};
use virga_transport::ChannelName;

/// How one log stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    /// The channel's full name.
    pub channel: String,
    /// When an event counts as kept: `synced`, `flushed` or `memory`.
    pub durability: String,
    /// Offset of the first event that is kept.
    pub first: u64,
    /// Offset of the next event.
    pub end: u64,
    /// Events below can be read.
    pub readable: u64,
    /// Events that the log had taken and could not write. What it had no room for, the channel counts.
    pub lost: u64,
    /// Events that it did not take, as they are not as their entity signed them.
    pub refused: u64,
    /// Batches whose entity had signed something that contradicts them.
    pub forks: u64,
    /// Events that it got from another node's log, since later ones follow them.
    #[serde(default)]
    pub repaired: u64,
    /// Events that it got from another node's log, since those of others name them.
    #[serde(default)]
    pub named: u64,
    /// How often such events were not to be had, by why: see [`super::ancestors::Unfound`].
    #[serde(default)]
    pub unfound: BTreeMap<String, u64>,
    /// Events that came although it had them.
    #[serde(default)]
    pub repeated: u64,
    /// How often it went on without events that later ones follow, by why: see [`super::ancestors::Unfound`].
    #[serde(default)]
    pub gaps: BTreeMap<String, u64>,
    /// Bytes of events that are in memory alone, as they wait for those in front of them, or for where the log's feeds end.
    #[serde(default)]
    pub waiting_bytes: u64,
    /// How often the channel went on without the log.
    pub interrupted: u64,
    /// Events that compaction has taken since the node was started.
    #[serde(default)]
    pub compacted_events: u64,
    /// Bytes that it has taken since then.
    #[serde(default)]
    pub compacted_bytes: u64,
    /// Why it is not compacted, or not all of it, although it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compaction_problem: Option<String>,
    /// What keeps it from taking events now.
    pub problem: Option<String>,
    /// Whether it takes no more until the node is started again.
    pub has_ended: bool,
    /// Of a log that is on several nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<ReplicationStatus>,
    /// Whether the node keeps it no more, by command.
    #[serde(skip)]
    pub(crate) is_left: bool,
}

impl LogStatus {
    /// Of one of which nothing is known yet.
    fn of(channel: &ChannelName) -> Self {
        Self {
            channel: channel.to_string(),
            durability: String::new(),
            first: 0,
            end: 0,
            readable: 0,
            lost: 0,
            refused: 0,
            forks: 0,
            repaired: 0,
            named: 0,
            unfound: Unfound::ALL.map(|why| (why.name().to_owned(), 0)).into(),
            repeated: 0,
            waiting_bytes: 0,
            gaps: Unfound::ALL.map(|why| (why.name().to_owned(), 0)).into(),
            compacted_events: 0,
            compacted_bytes: 0,
            compaction_problem: None,
            interrupted: 0,
            problem: None,
            has_ended: false,
            replication: None,
            is_left: false,
        }
    }
}

/// Channels that commands had the node keep when it started, and that it cannot, with why; no more is said of those that
/// were kept otherwise, or no more, since. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct AllNotKept(Arc<Mutex<BTreeMap<ChannelName, Option<String>>>>);

impl AllNotKept {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ChannelName, Option<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, channel: ChannelName, why: String) {
        tracing::error!(%channel, why, "the channel is not kept, although a command said so");
        self.lock().insert(channel, Some(why));
    }

    pub(super) fn has(&self, channel: &ChannelName) -> bool {
        self.lock().contains_key(channel)
    }

    /// Nothing is said of it any more; whether something was.
    pub(super) fn forget(&self, channel: &ChannelName) -> bool {
        self.lock()
            .get_mut(channel)
            .and_then(Option::take)
            .is_some()
    }

    pub(super) fn status(&self) -> Vec<LogStatus> {
        let all = self.lock();
        let status = |(channel, why): (&ChannelName, &String)| LogStatus {
            problem: Some(why.clone()),
            has_ended: true,
            ..LogStatus::of(channel)
        };
        let told = all
            .iter()
            .filter_map(|(channel, why)| Some((channel, why.as_ref()?)));
        told.map(status).collect()
    }
}

pub(super) fn describe(log: &OpenLog, channel: &ChannelName) -> LogStatus {
    let durability: Durability = log.log.options().durability;
    LogStatus {
        durability: durability.name().to_owned(),
        first: log.log.first(),
        end: log.log.end(),
        readable: log.log.readable(),
        ..LogStatus::of(channel)
    }
}
