//! Forks: what an entity signed twice.

use crate::batch::{BatchError, FeedId, Signed};
use thiserror::Error;

/// Two things that an entity signed and that cannot both belong to one feed: their events overlap, or the later
/// does not follow the earlier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkProof {
    /// What begins first.
    pub one: Signed,
    /// The other.
    pub other: Signed,
}

/// Why two signed statements prove no fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoFork {
    /// One is not signed.
    #[error("one of the two statements is not signed: {0}")]
    Unsigned(#[from] BatchError),
    /// They can both be true.
    #[error("the two statements do not contradict each other")]
    Compatible,
}

impl ForkProof {
    /// The proof, if the two contradict each other; signatures are not looked at.
    #[must_use]
    pub fn of(one: &Signed, other: &Signed) -> Option<Self> {
        let (one, other) = match one.statement.first <= other.statement.first {
            true => (one, other),
            false => (other, one),
        };
        let (a, b) = (&one.statement, &other.statement);
        let is_one_feed = a.entity == b.entity && a.channel == b.channel;
        let overlaps = b.first <= a.last() && a != b;
        let is_apart = b.first == a.last() + 1 && b.parent != a.head;
        (is_one_feed && (overlaps || is_apart)).then(|| Self {
            one: one.clone(),
            other: other.clone(),
        })
    }

    /// Checks it by itself; gives the feed that is forked, and the number of the first event concerned.
    ///
    /// # Errors
    /// See [`NoFork`].
    pub fn verify(&self) -> Result<(FeedId, u64), NoFork> {
        Self::of(&self.one, &self.other).ok_or(NoFork::Compatible)?;
        self.one.check()?;
        self.other.check()?;
        Ok((self.one.statement.feed(), self.from()))
    }

    /// Number of the first event that is perhaps not on both branches.
    #[must_use]
    pub fn from(&self) -> u64 {
        let (one, other) = (&self.one.statement, &self.other.statement);
        one.first.min(other.first)
    }
}
