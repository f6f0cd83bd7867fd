//! What an index is asked, and what it answers.

use crate::{batch::FeedId, fork::ForkProof, format::Hash};
use thiserror::Error;

/// One event, by its feed and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// Whose, and on which channel.
    pub feed: FeedId,
    /// From 1.
    pub sequence: u64,
}

/// What has to be fetched: the batch whose events include that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Missing {
    /// Of which feed.
    pub feed: FeedId,
    /// Which event.
    pub sequence: u64,
    /// The head after it, where that is known.
    pub head: Option<Hash>,
}

/// How one event stands to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// It is the same.
    Same,
    /// It was observed by the other.
    Before,
    /// It has observed the other.
    After,
    /// Neither has observed the other.
    Concurrent,
    /// It cannot be said until these are fetched.
    Unknown(Vec<Missing>),
    /// The entity of this feed has signed two things there that contradict each other.
    Forked(FeedId),
}

/// Why a batch was not taken: it has no order. What it says is kept for a while, so that it proves forks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// As many feeds are known as may be.
    #[error("the index has as many feeds as it may")]
    Feeds,
    /// As much is pending as may be: what that waits for has to come first.
    #[error("as many batches wait for others as may")]
    Pending,
    /// It names a head behind another number of events than it is.
    #[error("it names a head that is not what it says")]
    Contradiction,
    /// Later events of its feed were held and are forgotten: whether it contradicts these is not known.
    #[error("as late or later events of its feed are forgotten")]
    Forgotten,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is in, with all that it follows.
    Held,
    /// It waits: see [`super::Index::missing`].
    Pending,
    /// It was there.
    Known,
}

/// See [`super::Index::insert`].
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// What became of the batch.
    pub place: Result<Place, Refused>,
    /// A fork that the batch proves and that was not known.
    pub fork: Option<Box<ForkProof>>,
}
