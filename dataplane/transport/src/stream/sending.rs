//! The sending half of a reliable stream.

use super::{Expired, Terms};
use crate::{
    event::{Payload, Receipt},
    limits::{MESSAGE_PREFIX_BYTES, SHARED_BYTES_MIN, STREAM_QUEUE_BYTES, STREAM_WINDOW_BYTES},
    ranges::RangeSet,
};
use bytes::Bytes;
use std::collections::VecDeque;

/// One message.
#[derive(Clone, Copy, Debug)]
struct Message {
    /// Where it ends.
    end: u64,
    terms: Terms,
}

/// Where the bytes of a piece of the stream are.
#[derive(Debug)]
enum Held {
    /// In `copied`: messages one after the other, each with its prefix. Where they begin, counted over all that
    /// was ever copied.
    Copied(u64),
    /// One large message, which the owner may share: it is copied once only, into the packet that carries it.
    Shared(Bytes),
}

/// Neighbouring bytes of the stream.
#[derive(Debug)]
struct Piece {
    start: u64,
    end: u64,
    held: Held,
}

/// The bytes of a reliable stream that the peer has not acknowledged.
#[derive(Debug, Default)]
pub(crate) struct SendBytes {
    base: u64,
    /// First byte never sent.
    next: u64,
    acked: RangeSet,
    lost: RangeSet,
    /// Messages that end beyond `base`, in order.
    messages: VecDeque<Message>,
    /// All bytes from before `base` on.
    pieces: VecDeque<Piece>,
    copied: VecDeque<u8>,
    /// Copied bytes that are forgotten.
    forgotten: u64,
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
        self.pieces.back().map_or(self.base, |last| last.end)
    }

    /// Bytes held.
    pub(crate) fn held(&self) -> usize {
        place(self.end() - self.base)
    }

    /// Whether `bytes` more fit, their prefix included.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.held() + bytes <= STREAM_QUEUE_BYTES
    }

    /// Appends a message; the caller has checked that it fits.
    pub(crate) fn push(&mut self, message: Payload<'_>, terms: Terms) {
        let length = message.bytes().len();
        let prefix = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        let start = self.end();
        let end = start + (prefix.len() + length) as u64;
        self.messages.push_back(Message { end, terms });
        if let Payload::Shared(shared) = message
            && length >= SHARED_BYTES_MIN
        {
            let held = Held::Shared(shared.clone());
            self.pieces.push_back(Piece { start, end, held });
            return;
        }
        match self.pieces.back_mut() {
            Some(last) if matches!(last.held, Held::Copied(_)) => last.end = end,
            _ => {
                let held = Held::Copied(self.forgotten + self.copied.len() as u64);
                self.pieces.push_back(Piece { start, end, held });
            }
        }
        self.copied.extend(&prefix);
        self.copied.extend(message.bytes());
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
        self.copied.shrink_to_fit();
        self.pieces.shrink_to_fit();
        self.messages.shrink_to_fit();
    }

    /// Bytes of its buffers, used or not.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        let shared = |piece: &Piece| match &piece.held {
            Held::Copied(_) => 0,
            Held::Shared(bytes) => bytes.len(),
        };
        self.copied.capacity() + self.pieces.iter().map(shared).sum::<usize>()
    }

    /// Whether all bytes were acknowledged.
    pub(crate) fn is_all_acked(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes below were sent.
    pub(crate) const fn sent_to(&self) -> u64 {
        self.next
    }

    /// Bytes below were acknowledged.
    pub(crate) const fn acked_to(&self) -> u64 {
        self.base
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
        let first = self.pieces.partition_point(|piece| piece.end <= start);
        for piece in self.pieces.range(first..) {
            if piece.start >= end {
                break;
            }
            let from = place(start.saturating_sub(piece.start));
            let to = place(end.min(piece.end) - piece.start);
            match &piece.held {
                Held::Copied(at) => {
                    let skipped = place(at + from as u64 - self.forgotten);
                    self.copy_copied(skipped, to - from, out);
                }
                Held::Shared(body) => {
                    let prefix = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
                    if from < prefix.len() {
                        out.extend_from_slice(&prefix[from..to.min(prefix.len())]);
                    }
                    if to > prefix.len() {
                        let from = from.saturating_sub(prefix.len());
                        out.extend_from_slice(&body[from..to - prefix.len()]);
                    }
                }
            }
        }
    }

    /// Appends so many of the copied bytes.
    fn copy_copied(&self, from: usize, bytes: usize, out: &mut Vec<u8>) {
        let to = from + bytes;
        let (first, second) = self.copied.as_slices();
        if from < first.len() {
            out.extend_from_slice(&first[from..to.min(first.len())]);
        }
        if to > first.len() {
            out.extend_from_slice(&second[from.saturating_sub(first.len())..to - first.len()]);
        }
    }

    /// Forgets the bytes before `base`, which moves there.
    fn forget(&mut self, base: u64) {
        self.base = base;
        let mut forgotten = self.forgotten;
        while let Some(first) = self.pieces.front()
            && first.start < base
        {
            if let Held::Copied(at) = first.held {
                forgotten = at + (first.end.min(base) - first.start);
            }
            if first.end > base {
                break;
            }
            self.pieces.pop_front();
        }
        self.copied.drain(..place(forgotten - self.forgotten));
        self.forgotten = forgotten;
    }

    /// Takes out the bytes from `start` on, where a message begins.
    fn truncate(&mut self, start: u64) {
        while let Some(last) = self.pieces.back_mut()
            && last.end > start
        {
            let kept = start.saturating_sub(last.start);
            if let Held::Copied(at) = last.held {
                self.copied.truncate(place(at + kept - self.forgotten));
            }
            last.end = last.start + kept;
            if kept == 0 {
                self.pieces.pop_back();
            }
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
        let mut unsent = Vec::new();
        self.copy(start, self.end(), &mut unsent);
        self.truncate(start);
        let mut from = start;
        for message in self.messages.split_off(first) {
            let bytes = &unsent[place(from - start)..place(message.end - start)];
            from = message.end;
            if message.terms.deadline_ns > now_ns {
                let body = &bytes[MESSAGE_PREFIX_BYTES..];
                self.push(body.into(), message.terms);
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
            self.forget(done);
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

/// A distance between offsets, as one in memory.
fn place(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}
