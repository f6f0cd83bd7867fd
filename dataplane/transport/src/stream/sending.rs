//! The sending half of a reliable stream.

use super::{Expired, Terms};
use crate::{
    event::Receipt,
    limits::{STREAM_QUEUE_BYTES, STREAM_WINDOW_BYTES},
    ranges::RangeSet,
};
use std::collections::VecDeque;

/// One message.
#[derive(Clone, Copy, Debug)]
struct Message {
    /// Where it ends.
    end: u64,
    terms: Terms,
}

/// The bytes of a reliable stream that the peer has not acknowledged.
#[derive(Debug, Default)]
pub(crate) struct SendBytes {
    /// From `base` on.
    buffer: VecDeque<u8>,
    base: u64,
    /// First byte never sent.
    next: u64,
    acked: RangeSet,
    lost: RangeSet,
    /// Messages that end beyond `base`, in order.
    messages: VecDeque<Message>,
    /// Where the first of those starts.
    first_start: u64,
    /// Bytes that the session's credit was used for: whole messages.
    admitted: u64,
    /// Bytes that the peer granted this stream.
    credit: u64,
}

impl SendBytes {
    pub(crate) fn new() -> Self {
        Self {
            credit: STREAM_WINDOW_BYTES,
            ..Self::default()
        }
    }

    fn end(&self) -> u64 {
        self.base + self.buffer.len() as u64
    }

    /// Bytes held.
    pub(crate) fn held(&self) -> usize {
        self.buffer.len()
    }

    /// Whether `bytes` more fit, their prefix included.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.buffer.len() + bytes <= STREAM_QUEUE_BYTES
    }

    /// Appends a message; the caller has checked that it fits.
    pub(crate) fn push(&mut self, message: &[u8], terms: Terms) {
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        self.buffer.extend(&length.to_be_bytes());
        self.buffer.extend(message);
        self.messages.push_back(Message {
            end: self.end(),
            terms,
        });
    }

    /// Uses the session's `credit` for what the next `bytes` are of, and for whole messages only: one
    /// that has begun can always be finished, so that streams never wait for each other.
    pub(crate) fn admit(&mut self, bytes: usize, credit: &mut u64) {
        let wanted = self.end().min(self.next + bytes as u64);
        if self.admitted >= wanted {
            return;
        }
        let from = self.messages.partition_point(|m| m.end <= self.admitted);
        for &Message { end, .. } in self.messages.range(from..) {
            let bytes = end - self.admitted;
            if bytes > *credit || self.admitted >= wanted {
                return;
            }
            *credit -= bytes;
            self.admitted = end;
        }
    }

    /// Admits everything: the control stream has no session credit.
    pub(crate) fn admit_all(&mut self) {
        self.admitted = self.end();
    }

    /// Bytes of the session's credit that this stream has used.
    pub(crate) const fn admitted(&self) -> u64 {
        self.admitted
    }

    /// Raises the peer's grant.
    pub(crate) fn grant(&mut self, bytes: u64) {
        self.credit = self.credit.max(bytes);
    }

    fn sendable_end(&self) -> u64 {
        self.admitted.min(self.credit)
    }

    /// Whether a chunk could go out now, window permitting.
    pub(crate) fn has_chunk(&self) -> bool {
        !self.lost.is_empty() || self.next < self.sendable_end()
    }

    /// Whether bytes wait for the session's credit.
    pub(crate) fn waits_for_credit(&self) -> bool {
        self.admitted < self.end()
    }

    /// Whether all bytes were sent at least once, and none is to be sent again.
    pub(crate) fn is_all_sent(&self) -> bool {
        self.next == self.end() && self.lost.is_empty()
    }

    /// Gives back room that nothing is in.
    pub(crate) fn give_back(&mut self) {
        self.buffer.shrink_to_fit();
        self.messages.shrink_to_fit();
    }

    /// Bytes of its buffer, used or not.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Whether all bytes were acknowledged.
    pub(crate) fn is_all_acked(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Where the stream ends so far.
    pub(crate) fn final_offset(&self) -> u64 {
        self.end()
    }

    /// Offset of the next chunk: lost bytes first.
    pub(crate) fn next_offset(&self) -> u64 {
        self.lost.first().map_or(self.next, |(start, _)| start)
    }

    /// The next chunk of at most `bytes_max`, as start, end, and whether it travels again.
    pub(crate) fn take_chunk(&mut self, bytes_max: usize) -> Option<(u64, u64, bool)> {
        let most = bytes_max as u64;
        if most == 0 {
            return None;
        }
        if let Some((start, lost_end)) = self.lost.first() {
            let end = lost_end.min(start + most);
            self.lost.remove(start, end);
            return Some((start, end, true));
        }
        let end = self.sendable_end().min(self.next + most);
        if end <= self.next {
            return None;
        }
        let start = self.next;
        self.next = end;
        Some((start, end, false))
    }

    /// Appends the bytes of a chunk.
    pub(crate) fn copy(&self, start: u64, end: u64, out: &mut Vec<u8>) {
        let place = |offset: u64| usize::try_from(offset - self.base).unwrap_or(usize::MAX);
        let (from, to) = (place(start), place(end));
        let (first, second) = self.buffer.as_slices();
        if from < first.len() {
            out.extend_from_slice(&first[from..to.min(first.len())]);
        }
        if to > first.len() {
            out.extend_from_slice(&second[from.saturating_sub(first.len())..to - first.len()]);
        }
    }

    /// Messages that end within a chunk.
    pub(crate) fn messages_in(&self, start: u64, end: u64) -> usize {
        let upto = |offset: u64| self.messages.partition_point(|m| m.end <= offset);
        upto(end) - upto(start)
    }

    /// Where the message starts that the byte at `offset` belongs to.
    pub(crate) fn message_start(&self, offset: u64) -> u64 {
        let before = self.messages.partition_point(|m| m.end <= offset);
        self.start_of(before)
    }

    /// Where a message starts.
    fn start_of(&self, message: usize) -> u64 {
        match message.checked_sub(1) {
            Some(before) => self.messages[before].end,
            None => self.first_start,
        }
    }

    /// The first message of which nothing was sent.
    fn first_unsent(&self) -> usize {
        let first = self.messages.partition_point(|m| m.end <= self.next);
        let is_partly_sent = self.start_of(first) < self.next;
        (first + usize::from(is_partly_sent)).min(self.messages.len())
    }

    /// Deadlines of messages of which nothing was sent.
    pub(crate) fn deadlines(&self) -> impl Iterator<Item = u64> + '_ {
        let unsent = self.messages.range(self.first_unsent()..);
        unsent.map(|message| message.terms.deadline_ns)
    }

    /// Gives up messages whose deadline has passed before any of their bytes were sent.
    pub(crate) fn expire(&mut self, now_ns: u64) -> Expired {
        let mut expired = Expired::default();
        if self.deadlines().all(|deadline_ns| deadline_ns > now_ns) {
            return expired;
        }
        let first = self.first_unsent();
        let start = self.start_of(first);
        let place = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let unsent = Vec::from(self.buffer.split_off(place(start - self.base)));
        let mut from = start;
        for message in self.messages.split_off(first) {
            let bytes = &unsent[place(from - start)..place(message.end - start)];
            from = message.end;
            if message.terms.deadline_ns > now_ns {
                self.buffer.extend(bytes);
                let end = self.end();
                self.messages.push_back(Message { end, ..message });
            } else {
                expired.messages += 1;
                expired.receipts.extend(message.terms.receipt);
                expired.bytes += bytes.len();
                if message.end <= self.admitted {
                    expired.credit += bytes.len() as u64;
                }
            }
        }
        self.admitted -= expired.credit;
        expired
    }

    /// Forgets what the peer has; gives the receipts of messages that it has with all before them.
    pub(crate) fn on_acked(&mut self, start: u64, end: u64) -> Vec<Receipt> {
        let mut receipts = Vec::new();
        if end <= self.base {
            return receipts;
        }
        let start = start.max(self.base);
        self.acked.insert(start, end);
        self.lost.remove(start, end);
        let Some((first, done)) = self.acked.first() else {
            return receipts;
        };
        if first == self.base {
            let bytes = usize::try_from(done - self.base).unwrap_or(usize::MAX);
            self.buffer.drain(..bytes.min(self.buffer.len()));
            self.base = done;
            self.acked.remove_first();
            while let Some(&Message { end, terms }) = self.messages.front()
                && end <= done
            {
                self.first_start = end;
                receipts.extend(terms.receipt);
                self.messages.pop_front();
            }
        }
        receipts
    }

    /// Queues what the peer does not have, once more; gives how many bytes that is.
    pub(crate) fn on_lost(&mut self, start: u64, end: u64) -> u64 {
        let start = start.max(self.base);
        if start >= end {
            return 0;
        }
        let missing = self.acked.missing(start, end);
        for &(start, end) in &missing {
            self.lost.insert(start, end);
        }
        missing.iter().map(|(start, end)| end - start).sum()
    }
}
