//! What is named and has its turn: in one shape, whether it is of a log here or may be of none.

use super::{Ended, Entity, Names};
use crate::kept::ancestors::{Unfound, names::NAMED_WITHIN};
use tokio::time::Instant;
use virga_state::batch::FeedId;

/// Of what is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kept::ancestors) enum Which {
    /// What is of logs here.
    Known,
    /// What may be of none.
    Unknown,
}

/// Something that has its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kept::ancestors) struct Due {
    which: Which,
    pub(in crate::kept::ancestors) feed: FeedId,
    pub(in crate::kept::ancestors) namer: Entity,
    /// How many events are named.
    pub(in crate::kept::ancestors) most: u64,
    /// The log that has the batch that does.
    pub(in crate::kept::ancestors) named_in: usize,
    /// Somebody looks for it until then at the most.
    pub(in crate::kept::ancestors) until: Instant,
}

impl Due {
    /// Where it is looked for if it is not known whose it is: it may be another entity's of the channel where it is named.
    pub(in crate::kept::ancestors) fn else_in(&self) -> Option<usize> {
        (self.which == Which::Unknown).then_some(self.named_in)
    }
}

impl Names {
    /// So many whose turn it is, the next first; see [`Names::next_few`].
    pub(in crate::kept::ancestors) fn due(
        &self,
        which: Which,
        (now, few): (Instant, usize),
        is_free: impl Fn(FeedId) -> bool,
    ) -> Vec<Due> {
        match which {
            Which::Known => {
                let next = self.next_few((now, few), is_free).into_iter();
                let due = next.map(|(feed, namer, name)| Due {
                    which,
                    feed,
                    namer,
                    most: name.most,
                    named_in: name.log,
                    until: name.until,
                });
                due.collect()
            }
            Which::Unknown => {
                let next = self.next_unknown((now, few), is_free).into_iter();
                let due = next.map(|(feed, one)| Due {
                    which,
                    feed,
                    namer: one.by.namer,
                    most: one.by.most,
                    named_in: one.by.log,
                    until: now + NAMED_WITHIN,
                });
                due.collect()
            }
        }
    }

    /// It is there, or of no log that is to have it.
    pub(in crate::kept::ancestors) fn pass_over(&mut self, due: &Due) {
        match due.which {
            Which::Known => self.forget(due.feed, due.namer),
            Which::Unknown => self.unknown.pass_over(due.feed),
        }
    }

    /// Nobody could be asked for it; why, where that is to be told of.
    pub(in crate::kept::ancestors) fn not_begun(
        &mut self,
        due: &Due,
        why: Unfound,
        now: Instant,
    ) -> Option<Unfound> {
        let looked = (due.feed, due.namer);
        match due.which {
            Which::Known => {
                self.forget(due.feed, due.namer);
                self.tells(due.namer, now).then_some(why)
            }
            Which::Unknown => match self.ended_in_vain(looked, why, now) {
                Ended::Told(why) => Some(why),
                Ended::Quiet | Ended::NotThis => None,
            },
        }
    }
}
