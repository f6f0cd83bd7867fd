//! Messages of a stream that need not wait for each other: found as soon as they are whole.
//!
//! They stand in one row of bytes, as those of an ordered stream do, and travel, are acknowledged and
//! take credit alike. Each frame says where the message starts that its first byte belongs to; from
//! there the lengths lead on to the next.

use super::StreamFault;
use crate::{limits::RECEIVE_STARTS_MAX, ranges::RangeSet};
use std::collections::BTreeMap;

/// Where messages of an unordered stream start, and which of them were read.
#[derive(Debug, Default)]
pub(crate) struct Unordered {
    /// Messages that are not whole, by start: where they end, once their length is there.
    starts: BTreeMap<u64, Option<u64>>,
    /// Bytes of messages that are whole.
    whole: RangeSet,
    /// Those of them that were not read.
    unread: RangeSet,
    /// Bytes beyond the base that were read.
    read: RangeSet,
    read_bytes: u64,
}

impl Unordered {
    /// Looks for messages that the bytes `from..to` have made whole. `look` gives where the message at
    /// an offset ends and whether all of it is there, once its length is.
    pub(super) fn find(
        &mut self,
        base: u64,
        anchor: u64,
        from: u64,
        to: u64,
        look: impl Fn(u64) -> Result<Option<(u64, bool)>, StreamFault>,
    ) -> Result<(), StreamFault> {
        self.begin(base, anchor)?;
        let mut until = to;
        let before = self.starts.range(..=from).next_back();
        let mut at = before.map_or(from, |(&start, _)| start);
        while let Some((&start, &known)) = self.starts.range(at..until).next() {
            at = start + 1;
            let Some((end, is_whole)) = look(start)? else {
                continue;
            };
            if known.is_none() {
                let is_cut_short = self.starts.range(at..end).next().is_some();
                if is_cut_short || self.whole.intersects(start, end) {
                    return Err(StreamFault::Overlap);
                }
                // The next message starts here; its bytes may have come before.
                self.begin(base, end)?;
                until = until.max(end + 1);
            }
            if is_whole {
                self.starts.remove(&start);
                self.whole.insert(start, end);
                self.unread.insert(start, end);
            } else {
                self.starts.insert(start, Some(end));
            }
        }
        Ok(())
    }

    /// A message starts at `start`.
    fn begin(&mut self, base: u64, start: u64) -> Result<(), StreamFault> {
        if start < base || self.whole.covers(start, start + 1) || self.starts.contains_key(&start) {
            return Ok(());
        }
        let before = self.starts.range(..start).next_back();
        let is_within = before.is_some_and(|(_, end)| end.is_some_and(|end| end > start));
        if is_within {
            return Err(StreamFault::Overlap);
        }
        self.starts.insert(start, None);
        Ok(())
    }

    /// Whether there is no room for the starts of one more range of bytes.
    pub(super) fn is_full(&self) -> bool {
        self.starts.len() + 2 > RECEIVE_STARTS_MAX
    }

    /// Ranges and starts that are kept.
    pub(super) fn entries(&self) -> usize {
        self.starts.len() + self.whole.len() + self.unread.len() + self.read.len()
    }

    /// Where the first whole message starts that was not read.
    pub(super) fn next_whole(&self) -> Option<u64> {
        self.unread.first().map(|(start, _)| start)
    }

    /// A message was read: before which offset all were.
    pub(super) fn on_read(&mut self, base: u64, start: u64, end: u64) -> u64 {
        self.unread.remove(start, end);
        self.read.insert(start, end);
        self.read_bytes += end - start;
        match self.read.first() {
            Some((first, done)) if first == base => {
                self.read.remove_first();
                self.whole.remove(base, done);
                self.read_bytes -= done - base;
                done
            }
            _ => base,
        }
    }

    /// Bytes beyond the base that were read.
    pub(super) const fn read_ahead(&self) -> u64 {
        self.read_bytes
    }
}
