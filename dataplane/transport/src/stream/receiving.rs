//! The receiving half of a reliable stream.

use super::unordered::Unordered;
use crate::{
    event::Mode,
    limits::{
        MESSAGE_BYTES_MAX, MESSAGE_PREFIX_BYTES, RECEIVE_RANGES_MAX, SHARED_BYTES_MAX,
        SHARED_MESSAGES_MAX, STREAM_RAISE_BYTES, STREAM_SPARE_BYTES, STREAM_WINDOW_BYTES,
    },
    ranges::RangeSet,
    reason::DropReason,
};
use bytes::Bytes;
use std::collections::VecDeque;

/// The peer's fault in the bytes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamFault {
    /// More than was granted.
    Credit,
    /// A message larger than any may be.
    Message,
    /// Messages that overlap.
    Overlap,
    /// More holes than are kept track of: the bytes are to travel again.
    Fragments,
}

impl From<StreamFault> for DropReason {
    fn from(fault: StreamFault) -> Self {
        match fault {
            StreamFault::Credit | StreamFault::Message => Self::Credit,
            StreamFault::Overlap => Self::Overlap,
            StreamFault::Fragments => Self::Fragments,
        }
    }
}

/// What a receiver holds of a reliable stream. Bounded by what it granted.
#[derive(Debug)]
pub(crate) struct ReceiveBytes {
    /// From `base` on, with holes where `received` has none.
    buffer: VecDeque<u8>,
    base: u64,
    received: RangeSet,
    /// One past the highest byte seen.
    pub(crate) highest: u64,
    /// Bytes that the owner has read.
    pub(crate) consumed: u64,
    granted: u64,
    /// Where messages start, when they need not wait for each other.
    unordered: Option<Box<Unordered>>,
    /// Entries that the session's total holds of this stream.
    counted: usize,
}

impl ReceiveBytes {
    pub(crate) fn new(mode: Mode) -> Self {
        Self {
            buffer: VecDeque::new(),
            base: 0,
            received: RangeSet::default(),
            highest: 0,
            consumed: 0,
            granted: STREAM_WINDOW_BYTES,
            unordered: (mode == Mode::Unordered).then(Box::default),
            counted: 0,
        }
    }

    /// Whether `start..end` stays within the grant.
    pub(crate) const fn allows(&self, end: u64) -> bool {
        end <= self.granted
    }

    /// Takes bytes in, wherever they stand; gives how far `highest` moved. `back` is how far before
    /// `offset` the message that they begin in starts; of no meaning where messages are in order.
    pub(crate) fn write(
        &mut self,
        offset: u64,
        back: u64,
        bytes: &[u8],
    ) -> Result<u64, StreamFault> {
        let end = offset + bytes.len() as u64;
        if !self.allows(end) {
            return Err(StreamFault::Credit);
        }
        let start = offset.max(self.base);
        let next = self.base + self.ready() as u64;
        if start > next && self.is_full() {
            return Err(StreamFault::Fragments);
        }
        let moved = end.saturating_sub(self.highest);
        self.highest = self.highest.max(end);
        if start >= end {
            return Ok(moved);
        }
        self.put(start, &bytes[place(start - offset)..]);
        self.received.insert(start, end);
        if self.unordered.is_some() {
            self.find_whole(offset.saturating_sub(back), start, end)?;
        }
        Ok(moved)
    }

    /// Takes in bytes that follow all that is here, and gives the messages that they make whole to `take`
    /// without keeping them first, `most` at most: several in one buffer, each after its length, and how
    /// many; or one alone. Does nothing, and says `false`, where that cannot be done.
    pub(crate) fn pass(
        &mut self,
        offset: u64,
        bytes: &[u8],
        most: usize,
        mut take: impl FnMut(Bytes, usize),
    ) -> Result<bool, StreamFault> {
        let held = self.buffer.len();
        let follows = offset == self.base + held as u64 && self.ready() == held;
        if !follows || self.unordered.is_some() || most == 0 {
            return Ok(false);
        }
        let new = offset + bytes.len() as u64;
        let first = whole_message(&self.buffer, bytes, 0)?;
        let Some(mut end) = first.filter(|&end| end > held && self.allows(new)) else {
            return Ok(false);
        };
        let (mut start, mut count, mut left) = (0, 1, most - 1);
        loop {
            let next = match left {
                0 => None,
                _ => whole_message(&self.buffer, bytes, end)?,
            };
            left -= usize::from(next.is_some());
            if let Some(next) = next
                && next - start <= SHARED_BYTES_MAX
                && count < SHARED_MESSAGES_MAX
            {
                (end, count) = (next, count + 1);
                continue;
            }
            let alone = if count == 1 { MESSAGE_PREFIX_BYTES } else { 0 };
            take(joined(&self.buffer, bytes, start + alone, end), count);
            let Some(next) = next else { break };
            (start, end, count) = (end, next, 1);
        }
        let rest = &bytes[end - held..];
        let base = self.base + end as u64;
        self.received.insert(base, new);
        self.received.remove(self.base, offset);
        self.base = base;
        self.highest = new;
        self.buffer.clear();
        self.buffer.extend(rest);
        self.give_back();
        Ok(true)
    }

    /// Whether bytes that leave one more hole are to travel again.
    fn is_full(&self) -> bool {
        self.received.len() >= RECEIVE_RANGES_MAX
            || self.unordered.as_ref().is_some_and(|u| u.is_full())
    }

    /// Brings a session's total up to date with what is kept here beside the bytes.
    pub(crate) fn recount(&mut self, total: &mut usize) {
        let unordered = self.unordered.as_ref().map_or(0, |u| u.entries());
        let entries = self.received.len() + unordered;
        *total = *total - self.counted + entries;
        self.counted = entries;
    }

    /// Copies bytes to where they belong.
    fn put(&mut self, start: u64, new: &[u8]) {
        let from = place(start - self.base);
        let until = from + new.len();
        let held = self.buffer.len();
        if from >= held {
            self.buffer.resize(from, 0);
            self.buffer.extend(new);
            return;
        }
        if held < until {
            self.buffer.extend(&new[held - from..]);
        }
        let new = &new[..new.len().min(held - from)];
        let until = from + new.len();
        let (first, second) = self.buffer.as_mut_slices();
        let split = first.len();
        if from < split {
            let here = new.len().min(split - from);
            first[from..from + here].copy_from_slice(&new[..here]);
            second[..until.saturating_sub(split)].copy_from_slice(&new[here..]);
        } else {
            second[from - split..until - split].copy_from_slice(new);
        }
    }

    /// Bytes that are there without a hole.
    fn ready(&self) -> usize {
        match self.received.first() {
            Some((start, end)) if start == self.base => place(end - start),
            _ => 0,
        }
    }

    /// Where the message at `start` ends, once its length is there.
    fn end_of(&self, start: u64) -> Result<Option<u64>, StreamFault> {
        let prefix_end = start + MESSAGE_PREFIX_BYTES as u64;
        if !self.received.covers(start, prefix_end) {
            return Ok(None);
        }
        let at = place(start - self.base);
        let prefix: [u8; MESSAGE_PREFIX_BYTES] = core::array::from_fn(|i| self.buffer[at + i]);
        let length = u64::from(u32::from_be_bytes(prefix));
        if length > MESSAGE_BYTES_MAX as u64 {
            return Err(StreamFault::Message);
        }
        Ok(Some(prefix_end + length))
    }

    /// Looks for messages that the bytes `from..to` have made whole; `anchor` is where one starts.
    fn find_whole(&mut self, anchor: u64, from: u64, to: u64) -> Result<(), StreamFault> {
        let Some(mut unordered) = self.unordered.take() else {
            return Ok(());
        };
        let found = unordered.find(self.base, anchor, from, to, |start| {
            let Some(end) = self.end_of(start)? else {
                return Ok(None);
            };
            Ok(Some((end, self.received.covers(start, end))))
        });
        self.unordered = Some(unordered);
        found
    }

    /// The next whole message.
    pub(crate) fn read(&mut self) -> Result<Option<Bytes>, StreamFault> {
        let start = match &self.unordered {
            Some(unordered) => unordered.next_whole(),
            None => Some(self.base),
        };
        let Some(start) = start else {
            return Ok(None);
        };
        let end = self.end_of(start)?;
        let Some(end) = end.filter(|&end| self.received.covers(start, end)) else {
            return Ok(None);
        };
        let message = self.copy(start + MESSAGE_PREFIX_BYTES as u64, end);
        let base = match &mut self.unordered {
            Some(unordered) => unordered.on_read(self.base, start, end),
            None => end,
        };
        if base > self.base {
            self.advance(base);
        }
        Ok(Some(message))
    }

    /// The bytes `start..end`, which are there.
    fn copy(&self, start: u64, end: u64) -> Bytes {
        let (from, to) = (place(start - self.base), place(end - self.base));
        let (first, second) = self.buffer.as_slices();
        let split = first.len();
        if to <= split {
            return Bytes::copy_from_slice(&first[from..to]);
        }
        let mut message = Vec::with_capacity(to - from);
        message.extend_from_slice(&first[from.min(split)..]);
        message.extend_from_slice(&second[from.saturating_sub(split)..to - split]);
        message.into()
    }

    /// Forgets what is before `base`, and gives back the room that it took.
    fn advance(&mut self, base: u64) {
        self.buffer.drain(..place(base - self.base));
        self.received.remove(self.base, base);
        self.base = base;
        self.give_back();
    }

    /// Gives back room that nothing is in, but for some.
    fn give_back(&mut self) {
        let needed = self.buffer.len().max(STREAM_SPARE_BYTES);
        if self.buffer.capacity() > 2 * needed {
            self.buffer.shrink_to(needed);
        }
    }

    /// Forgets all bytes: the owner refused the stream.
    pub(crate) fn discard(&mut self) {
        self.buffer = VecDeque::new();
        self.received = RangeSet::default();
        self.unordered = None;
    }

    /// Bytes of messages that nobody will read: beyond those that became events.
    pub(crate) fn unread(&self) -> u64 {
        let read = self.unordered.as_ref().map_or(0, |u| u.read_ahead());
        self.highest - self.base - read
    }

    /// Before this every message was read.
    pub(crate) const fn base(&self) -> u64 {
        self.base
    }

    /// Raises the grant once enough was read; `true` when the peer is to be told.
    pub(crate) fn raise(&mut self) -> bool {
        let wanted = self.consumed.min(self.base) + STREAM_WINDOW_BYTES;
        if wanted < self.granted + STREAM_RAISE_BYTES {
            return false;
        }
        self.granted = wanted;
        true
    }

    /// Bytes granted in all.
    pub(crate) const fn granted(&self) -> u64 {
        self.granted
    }

    #[cfg(test)]
    pub(crate) fn buffered(&self) -> &VecDeque<u8> {
        &self.buffer
    }
}

/// Where the message ends that starts at `at` of `held` and, behind that, `bytes`; none where it goes on
/// beyond.
fn whole_message(
    held: &VecDeque<u8>,
    bytes: &[u8],
    at: usize,
) -> Result<Option<usize>, StreamFault> {
    let total = held.len() + bytes.len();
    if at + MESSAGE_PREFIX_BYTES > total {
        return Ok(None);
    }
    let byte = |at: usize| match at.checked_sub(held.len()) {
        Some(at) => bytes[at],
        None => held[at],
    };
    let prefix: [u8; MESSAGE_PREFIX_BYTES] = core::array::from_fn(|i| byte(at + i));
    let length = place(u32::from_be_bytes(prefix).into());
    if length > MESSAGE_BYTES_MAX {
        return Err(StreamFault::Message);
    }
    let end = at + MESSAGE_PREFIX_BYTES + length;
    Ok((end <= total).then_some(end))
}

/// The bytes `start..end` of `held` and, behind that, `bytes`.
fn joined(held: &VecDeque<u8>, bytes: &[u8], start: usize, end: usize) -> Bytes {
    let before = held.len();
    let mut joined = Vec::with_capacity(end - start);
    joined.extend(held.range(start.min(before)..end.min(before)));
    joined.extend_from_slice(&bytes[start.saturating_sub(before)..end.saturating_sub(before)]);
    joined.into()
}

/// A distance between offsets, as one in memory.
fn place(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}
