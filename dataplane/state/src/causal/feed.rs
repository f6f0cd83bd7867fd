//! One feed of an index: its batches, held, pending and refused, and its fork.

use crate::{
    batch::{FeedId, Signed},
    fork::ForkProof,
    format::Hash,
    limits::BATCH_EVENTS_MAX,
};
use std::collections::BTreeMap;

/// By their first event and their head.
pub(super) type Statements = BTreeMap<(u64, Hash), Signed>;

#[derive(Debug)]
pub(super) struct Feed {
    pub(super) id: FeedId,
    /// All batches that are held or pending.
    pub(super) batches: Statements,
    /// What was refused: it has no order, but it proves forks.
    pub(super) refused: Statements,
    pub(super) held: usize,
    /// Of the events up to this one, some were held and are forgotten.
    pub(super) forgotten: u64,
    pub(super) fork: Option<ForkProof>,
}

impl Feed {
    pub(super) fn new(id: FeedId) -> Self {
        Self {
            id,
            batches: Statements::new(),
            refused: Statements::new(),
            held: 0,
            forgotten: 0,
            fork: None,
        }
    }

    /// The head of the batch that an event is in.
    pub(super) fn around(&self, sequence: u64) -> Option<Hash> {
        let before = self.batches.range(..=(sequence, [u8::MAX; 32]));
        let nearest = before
            .rev()
            .take_while(|((first, _), _)| sequence - first < BATCH_EVENTS_MAX as u64);
        let mut around = nearest.filter(|(_, signed)| signed.statement.last() >= sequence);
        around.next().map(|((_, head), _)| *head)
    }

    /// Notes the fork that a statement proves against what is there, the one that begins first; gives it if it
    /// begins before what was known.
    pub(super) fn find_fork(&mut self, signed: &Signed) -> Option<Box<ForkProof>> {
        let statement = &signed.statement;
        let from = statement.first.saturating_sub(BATCH_EVENTS_MAX as u64);
        let known = self.fork.as_ref().map(ForkProof::from);
        let to = match known {
            // Only what begins before that is news.
            Some(known) if known <= statement.first => known - 1,
            _ => statement.last() + 1,
        };
        if from > to {
            return None;
        }
        let near = (from, [0; 32])..=(to, [u8::MAX; 32]);
        // The first that contradicts begins first.
        let first = |all: &Statements| {
            let mut near = all.range(near.clone()).map(|(_, signed)| signed);
            near.find_map(|known| ForkProof::of(known, signed))
        };
        let proofs = [&self.batches, &self.refused].into_iter();
        let proof = proofs.filter_map(first).min_by_key(ForkProof::from)?;
        let is_new = known.is_none_or(|known| proof.from() < known);
        is_new.then(|| {
            self.fork = Some(proof.clone());
            Box::new(proof)
        })
    }
}
