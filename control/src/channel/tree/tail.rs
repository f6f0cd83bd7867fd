//! What a publisher keeps of a channel for nodes that others pass it on to: each batch that one of them has not confirmed.

use super::super::signed::span_of;
use bytes::Bytes;
use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

/// Bytes that one node may have unconfirmed, the last batch aside; then publishing waits for it.
pub const TAIL_BYTES_MAX: usize = 1024 * 1024;

/// One batch.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) span: Range<u64>,
    pub(crate) batch: Bytes,
    pub(crate) deadline_ns: Option<u64>,
    /// The publisher sends it to all by itself.
    pub(crate) is_direct: bool,
    /// When it was first offered to anybody.
    pub(crate) begun_ns: u64,
}

/// See the module. The last batch is always kept: it may be half way out.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    kept: VecDeque<Kept>,
    bytes: usize,
    /// Number of the event after all that were published.
    newest: u64,
    /// How many nodes have confirmed all events before each of these.
    haves: BTreeMap<u64, usize>,
}

impl Tail {
    pub(crate) const fn newest(&self) -> u64 {
        self.newest
    }

    /// A batch is published.
    pub(crate) fn push(
        &mut self,
        now_ns: u64,
        batch: &Bytes,
        (deadline_ns, is_direct): (Option<u64>, bool),
    ) {
        // Of a channel with a fan-out there are no others than signed ones.
        let Some(span) = span_of(batch) else { return };
        self.newest = self.newest.max(span.end);
        self.bytes += batch.len();
        self.kept.push_back(Kept {
            span,
            batch: batch.clone(),
            deadline_ns,
            is_direct,
            begun_ns: now_ns,
        });
        self.trim();
    }

    /// The last batch was given up before anybody got it.
    pub(crate) fn retract(&mut self, batch: &[u8]) {
        let is_last = self.kept.back().is_some_and(|last| last.batch == batch);
        if is_last && let Some(last) = self.kept.pop_back() {
            self.bytes -= last.batch.len();
        }
    }

    /// Whether the publisher sends the last batch to all by itself.
    pub(crate) fn is_last_direct(&self) -> bool {
        self.kept.back().is_some_and(|last| last.is_direct)
    }

    /// Where a node begins that gets what follows by another: it may miss the last batch yet.
    pub(crate) fn begin(&self) -> u64 {
        self.kept.back().map_or(self.newest, |last| last.span.start)
    }

    /// A node has confirmed all before `have`, or has begun there.
    pub(crate) fn add(&mut self, have: u64) {
        *self.haves.entry(have).or_default() += 1;
    }

    /// It has confirmed more, or gets them otherwise.
    pub(crate) fn remove(&mut self, have: u64) {
        if let Some(nodes) = self.haves.get_mut(&have) {
            *nodes -= 1;
            if *nodes == 0 {
                self.haves.remove(&have);
            }
        }
    }

    /// All nodes at once: some are gone.
    pub(crate) fn set(&mut self, haves: impl Iterator<Item = u64>) {
        self.haves.clear();
        for have in haves {
            self.add(have);
        }
        self.trim();
    }

    /// Forgets what every node has confirmed.
    pub(crate) fn trim(&mut self) {
        let first = self.haves.first_key_value().map_or(u64::MAX, |(&h, _)| h);
        while self.kept.len() > 1 && self.kept[0].span.end <= first {
            if let Some(kept) = self.kept.pop_front() {
                self.bytes -= kept.batch.len();
            }
        }
    }

    /// More is kept than any node may await: some are gone, and still counted.
    pub(crate) fn is_stale(&self) -> bool {
        self.bytes_before_last() >= 2 * TAIL_BYTES_MAX
    }

    /// Whether a node has so much unconfirmed that the last batch waits for it.
    pub(crate) fn is_full_for(&self, have: u64) -> bool {
        let awaits_first = self.kept.front().is_some_and(|kept| kept.span.end > have);
        awaits_first && self.bytes_before_last() >= TAIL_BYTES_MAX
    }

    fn bytes_before_last(&self) -> usize {
        let last = self.kept.back().map_or(0, |last| last.batch.len());
        self.bytes - last
    }

    /// What a node has not confirmed.
    pub(crate) fn after(&self, have: u64) -> impl DoubleEndedIterator<Item = &Kept> {
        let at = self.kept.partition_point(|kept| kept.span.end <= have);
        self.kept.range(at..)
    }

    /// Whether nothing was published of what a node misses between two batches, the second of which was. All is kept since
    /// `have` alone: what was sent before may still be on its way to it.
    pub(crate) fn is_hole(&self, have: u64, missing: &Range<u64>) -> bool {
        if missing.start < have {
            return false;
        }
        let next = self.after(missing.start).next();
        next.is_some_and(|kept| kept.span.start == missing.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virga_state::{LogName, bundle, feed::FeedEnd};

    /// Batches of one event each.
    fn batches(count: usize) -> Vec<Bytes> {
        let key = ed25519_dalek::SigningKey::from_bytes(&[1; 32]);
        let channel = LogName::parse("a").unwrap();
        let mut feed = FeedEnd::new(channel, key.verifying_key().to_bytes());
        let mut batch = || {
            let payloads = [&[0; 1_000][..]];
            let batch = feed.sign(&key, Vec::new(), payloads.into_iter()).unwrap();
            bundle::encode(&batch, &payloads).into()
        };
        (0..count).map(|_| batch()).collect()
    }

    fn starts(tail: &Tail, have: u64) -> Vec<u64> {
        tail.after(have).map(|kept| kept.span.start).collect()
    }

    #[test]
    fn what_the_slowest_has_not_confirmed_is_kept_and_nothing_before_it() {
        let mut tail = Tail::default();
        let all = batches(10);
        tail.push(0, &all[0], (None, false));
        tail.push(0, &all[1], (None, false));
        assert_eq!(starts(&tail, 0), [2], "nobody awaits any, the last aside");
        assert_eq!((tail.begin(), tail.newest()), (2, 3));
        tail.add(2);
        tail.add(2);
        for batch in &all[2..5] {
            tail.push(0, batch, (None, false));
        }
        tail.remove(2);
        tail.add(5);
        tail.trim();
        assert_eq!(starts(&tail, 0), [2, 3, 4, 5], "the other one awaits them");
        assert_eq!(starts(&tail, 4), [4, 5]);
        tail.set([5].into_iter());
        assert_eq!(starts(&tail, 0), [5]);
        tail.retract(&all[4]);
        assert_eq!(starts(&tail, 0), [0; 0]);
    }

    #[test]
    fn a_hole_is_what_was_never_published() {
        let mut tail = Tail::default();
        tail.add(1);
        let all = batches(6);
        for at in [0, 1, 4, 5] {
            tail.push(0, &all[at], (None, false));
        }
        assert!(tail.is_hole(1, &(3..5)));
        assert!(tail.is_hole(3, &(3..5)));
        assert!(!tail.is_hole(4, &(3..5)), "it may be on its way");
        for missing in [2..5, 3..6, 1..3, 5..9, 7..9] {
            assert!(!tail.is_hole(1, &missing), "{missing:?}");
        }
    }

    #[test]
    fn a_node_that_confirms_nothing_is_waited_for_and_others_are_not() {
        let mut tail = Tail::default();
        tail.add(1);
        let mut number = 0;
        for batch in batches(2_000) {
            if tail.is_full_for(1) {
                break;
            }
            number += 1;
            tail.push(0, &batch, (None, false));
        }
        let kept: usize = tail.after(0).map(|kept| kept.batch.len()).sum();
        assert!((TAIL_BYTES_MAX..TAIL_BYTES_MAX + 4_000).contains(&kept));
        assert!(!tail.is_full_for(number), "it has all but the last one");
        assert!(!tail.is_stale());
    }
}
