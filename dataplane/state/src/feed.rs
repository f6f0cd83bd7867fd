//! Where feeds end: the own, where the next batch is signed, and others', which it observes.

use crate::{
    LogName,
    batch::{
        Batch, BatchError, FeedId, Observed, Signed, Statement, Verified, frontier_hash, next_head,
    },
    fork::ForkProof,
    format::Hash,
    limits::{BATCH_EVENTS_MAX, CAUSAL_FEEDS_MAX, FRONTIER_FEEDS_MAX},
};
use ed25519_dalek::{Signer as _, SigningKey};
use std::collections::BTreeMap;

/// Where an entity's feed on a channel goes on: what whoever signs has to keep, on disk for good, before a
/// signature leaves it; to sign twice behind one head is a fork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedEnd {
    channel: LogName,
    entity: [u8; 32],
    count: u64,
    head: Hash,
}

impl FeedEnd {
    /// Of a feed that nothing was said on.
    #[must_use]
    pub fn new(channel: LogName, entity: [u8; 32]) -> Self {
        Self::at(channel, entity, None)
    }

    /// Behind that many events, which have that head.
    #[must_use]
    pub fn at(channel: LogName, entity: [u8; 32], end: Option<(u64, Hash)>) -> Self {
        let (count, head) = end.unwrap_or_else(|| (0, FeedId::of(&channel, &entity).0));
        Self {
            channel,
            entity,
            count,
            head,
        }
    }

    /// How many events were signed, and the head after these.
    #[must_use]
    pub const fn end(&self) -> (u64, Hash) {
        (self.count, self.head)
    }

    /// Signs the next events.
    ///
    /// # Errors
    /// [`BatchError::Events`], [`BatchError::Frontier`], and [`BatchError::Signature`] where the key is another
    /// entity's: the feed is as it was.
    pub fn sign<'a>(
        &mut self,
        key: &SigningKey,
        frontier: Vec<Observed>,
        payloads: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<Batch, BatchError> {
        let first = self.count.saturating_add(1);
        let count = u32::try_from(payloads.len()).unwrap_or(u32::MAX);
        let is_counted = (1..=BATCH_EVENTS_MAX).contains(&payloads.len());
        if !is_counted || first.checked_add(count.into()).is_none() {
            return Err(BatchError::Events { first, count });
        }
        if key.verifying_key().as_bytes() != &self.entity {
            return Err(BatchError::Signature);
        }
        if frontier.len() > FRONTIER_FEEDS_MAX {
            return Err(BatchError::Frontier(FRONTIER_FEEDS_MAX));
        }
        let hash = frontier_hash(&frontier);
        let numbered = (first..).zip(payloads);
        let head = numbered.fold(self.head, |before, (sequence, payload)| {
            next_head(&before, sequence, &hash, payload)
        });
        let statement = Statement {
            entity: self.entity,
            first,
            count,
            parent: self.head,
            head,
            frontier: hash,
            channel: self.channel.clone(),
        };
        let signature = key.sign(&statement.encode()).to_bytes();
        let signed = Signed {
            statement,
            signature,
        };
        let batch = Batch { signed, frontier };
        batch.check_frontier()?;
        (self.count, self.head) = (batch.signed.statement.last(), head);
        Ok(batch)
    }
}

/// How far feeds were seen: what the next batch of one of them has to say that it observed.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    feeds: BTreeMap<FeedId, Signed>,
    /// When each was heard of last.
    new: BTreeMap<FeedId, u64>,
}

impl Seen {
    /// Notes a batch, unless more of its feed was seen, or more feeds than an index of causes knows: the greater `heard`, a
    /// time or a place in a log, the later it was heard of. Gives the proof if it contradicts the batch that goes furthest of
    /// those seen.
    pub fn note(&mut self, batch: &Verified, heard: u64) -> Option<Box<ForkProof>> {
        let (signed, statement) = (&batch.batch().signed, batch.statement());
        let feed = statement.feed();
        let known = self.feeds.get(&feed);
        let is_new = match known {
            None => self.feeds.len() < CAUSAL_FEEDS_MAX,
            Some(known) => known.statement.last() < statement.last(),
        };
        let fork = known.and_then(|known| ForkProof::of(known, signed));
        if is_new {
            self.feeds.insert(feed, signed.clone());
            self.new.insert(feed, heard);
        }
        fork.map(Box::new)
    }

    /// How many events of a feed were seen, and the head after these.
    #[must_use]
    pub fn end(&self, feed: &FeedId) -> Option<(u64, Hash)> {
        let seen = self.feeds.get(feed);
        seen.map(|seen| (seen.statement.last(), seen.statement.head))
    }

    /// What was seen of other feeds since this was asked for last: of more than fit a frontier those that were heard of
    /// last, and the others the next time.
    #[must_use]
    pub fn take_new(&mut self, own: &FeedId) -> Vec<Observed> {
        self.new.remove(own);
        let new = self.new.iter();
        let mut new: Vec<(u64, FeedId)> = new.map(|(&feed, &heard)| (heard, feed)).collect();
        if new.len() > FRONTIER_FEEDS_MAX {
            new.select_nth_unstable_by(FRONTIER_FEEDS_MAX, |one, other| other.cmp(one));
            new.truncate(FRONTIER_FEEDS_MAX);
        }
        new.sort_unstable_by_key(|&(_, feed)| feed);
        let observed = |(_, feed)| {
            let (count, head) = self.end(&feed)?;
            Some(Observed { feed, count, head })
        };
        let frontier: Vec<Observed> = new.into_iter().filter_map(observed).collect();
        for observed in &frontier {
            self.new.remove(&observed.feed);
        }
        frontier
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn of_more_than_fit_those_are_named_first_that_were_heard_of_last() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let (mut seen, mut newest) = (Seen::default(), BTreeSet::new());
        let (all, fits) = (FRONTIER_FEEDS_MAX + 76, FRONTIER_FEEDS_MAX);
        for number in 0..all {
            let channel = LogName::parse(&format!("a/{number}")).unwrap();
            let mut feed = FeedEnd::new(channel, key.verifying_key().to_bytes());
            let payloads = || [b"x".as_slice()].into_iter();
            let batch = feed.sign(&key, Vec::new(), payloads()).unwrap();
            let batch = batch.verify(payloads()).unwrap();
            // The older ones are noted last.
            let heard = all - number;
            assert_eq!(seen.note(&batch, heard as u64), None);
            if number < fits {
                newest.insert(batch.statement().feed());
            }
        }
        let own = FeedId([0; 32]);
        let feeds = |named: Vec<Observed>| named.into_iter().map(|one| one.feed);
        let first: Vec<FeedId> = feeds(seen.take_new(&own)).collect();
        assert!(first.is_sorted());
        assert!(first.into_iter().collect::<BTreeSet<FeedId>>() == newest);
        let rest: Vec<FeedId> = feeds(seen.take_new(&own)).collect();
        assert_eq!(rest.len(), all - fits);
        assert!(rest.iter().all(|feed| !newest.contains(feed)));
        assert!(seen.take_new(&own).is_empty());
    }
}
