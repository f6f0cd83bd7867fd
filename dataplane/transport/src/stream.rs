//! Streams: messages to bytes and back, in order, within what the receiver granted.
//!
//! A reliable stream is a row of bytes in which each message follows its length (4 bytes,
//! big-endian). An unreliable one is a queue of events.

use crate::{
    event::StreamSpec,
    limits::{
        EVENT_QUEUE_MAX, MESSAGE_BYTES_MAX, MESSAGE_PREFIX_BYTES, RECEIVE_RANGES_MAX,
        STREAM_QUEUE_BYTES, STREAM_RAISE_BYTES, STREAM_SPARE_BYTES, STREAM_WINDOW_BYTES,
        STREAMS_AHEAD_MAX,
    },
    name::ChannelName,
    ranges::RangeSet,
    reason::DropReason,
};
use std::collections::VecDeque;
use virga_ebpf::header::{ChannelHash, StreamId};

/// How far a stream's end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Nobody asked for it.
    Open,
    /// To be sent after all data.
    Wanted,
    /// On its way.
    Sent,
    /// Acknowledged.
    Acked,
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
    /// Where messages end, beyond `base`, ascending.
    ends: VecDeque<u64>,
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
    pub(crate) fn push(&mut self, message: &[u8]) {
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        self.buffer.extend(length.to_be_bytes());
        self.buffer.extend(message);
        self.ends.push_back(self.end());
    }

    /// Uses the session's `credit` for whole messages only: one that has begun can always be
    /// finished, so that streams never wait for each other.
    pub(crate) fn admit(&mut self, credit: &mut u64) {
        let from = self.ends.partition_point(|&end| end <= self.admitted);
        for &end in self.ends.range(from..) {
            let bytes = end - self.admitted;
            if bytes > *credit {
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
        let upto = |offset: u64| self.ends.partition_point(|&e| e <= offset);
        upto(end) - upto(start)
    }

    /// Forgets what the peer has.
    pub(crate) fn on_acked(&mut self, start: u64, end: u64) {
        if end <= self.base {
            return;
        }
        let start = start.max(self.base);
        self.acked.insert(start, end);
        self.lost.remove(start, end);
        let Some((first, done)) = self.acked.first() else {
            return;
        };
        if first == self.base {
            let bytes = usize::try_from(done - self.base).unwrap_or(usize::MAX);
            self.buffer.drain(..bytes.min(self.buffer.len()));
            self.base = done;
            self.acked.remove_first();
            while self.ends.front().is_some_and(|&e| e <= done) {
                self.ends.pop_front();
            }
        }
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

/// What a stream carries, and how.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Reliable(SendBytes),
    Events(VecDeque<Vec<u8>>),
}

/// A stream that this node opened.
#[derive(Debug)]
pub(crate) struct SendStream {
    pub(crate) spec: StreamSpec,
    pub(crate) channel: ChannelHash,
    pub(crate) outgoing: Outgoing,
    /// Whether the peer has the channel's name.
    pub(crate) is_open_acked: bool,
    pub(crate) end: End,
    /// Refused by the peer: only its reset is outstanding.
    pub(crate) is_reset: bool,
    /// Bytes of the session's credit that it had used by then.
    pub(crate) reset_offset: u64,
    /// Whether it stands in the session's row of streams to serve.
    pub(crate) is_queued: bool,
}

impl SendStream {
    pub(crate) fn new(spec: &StreamSpec) -> Self {
        let outgoing = if spec.reliable {
            Outgoing::Reliable(SendBytes::new())
        } else {
            Outgoing::Events(VecDeque::new())
        };
        Self {
            spec: spec.clone(),
            channel: spec.name.hash(spec.salt),
            outgoing,
            is_open_acked: false,
            end: End::Open,
            is_reset: false,
            reset_offset: 0,
            is_queued: false,
        }
    }

    /// Bytes held for sending.
    pub(crate) fn held(&self) -> usize {
        match &self.outgoing {
            Outgoing::Reliable(bytes) => bytes.held(),
            Outgoing::Events(events) => events.iter().map(Vec::len).sum(),
        }
    }

    /// Whether a message of `bytes` fits.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        match &self.outgoing {
            Outgoing::Reliable(held) => held.has_room(bytes + MESSAGE_PREFIX_BYTES),
            Outgoing::Events(events) => events.len() < EVENT_QUEUE_MAX,
        }
    }

    /// Whether there is something to send, and whether it takes of the congestion window.
    pub(crate) fn wants(&self) -> Wants {
        if self.is_reset {
            return Wants::Nothing;
        }
        match &self.outgoing {
            Outgoing::Events(events) if !events.is_empty() => Wants::Free,
            Outgoing::Events(_) if self.end == End::Wanted => Wants::Free,
            Outgoing::Events(_) => Wants::Nothing,
            Outgoing::Reliable(bytes) if bytes.has_chunk() => Wants::Window,
            Outgoing::Reliable(bytes) if self.end == End::Wanted && bytes.is_all_sent() => {
                Wants::Free
            }
            Outgoing::Reliable(_) => Wants::Nothing,
        }
    }

    /// Whether the peer has all of it.
    pub(crate) fn is_done(&self) -> bool {
        let is_empty = match &self.outgoing {
            Outgoing::Reliable(bytes) => bytes.is_all_acked(),
            Outgoing::Events(events) => events.is_empty(),
        };
        self.end == End::Acked && is_empty
    }
}

/// What a stream would send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    Nothing,
    /// Bytes that take of the congestion window.
    Window,
    /// Events or an end, which do not.
    Free,
}

/// What a receiver holds of a reliable stream. Bounded by what it granted.
#[derive(Debug, Default)]
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
}

/// The peer's fault in the bytes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamFault {
    /// More than was granted.
    Credit,
    /// A message larger than any may be.
    Message,
    /// More holes than are kept track of: the bytes are to travel again.
    Fragments,
}

impl From<StreamFault> for DropReason {
    fn from(fault: StreamFault) -> Self {
        match fault {
            StreamFault::Credit | StreamFault::Message => Self::Credit,
            StreamFault::Fragments => Self::Fragments,
        }
    }
}

impl ReceiveBytes {
    pub(crate) fn new() -> Self {
        Self {
            granted: STREAM_WINDOW_BYTES,
            ..Self::default()
        }
    }

    /// Whether `start..end` stays within the grant.
    pub(crate) const fn allows(&self, end: u64) -> bool {
        end <= self.granted
    }

    /// Takes bytes in, wherever they stand; gives how far `highest` moved.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<u64, StreamFault> {
        let end = offset + bytes.len() as u64;
        if !self.allows(end) {
            return Err(StreamFault::Credit);
        }
        let start = offset.max(self.base);
        let next = self.base + self.ready() as u64;
        if start > next && self.received.len() >= RECEIVE_RANGES_MAX {
            return Err(StreamFault::Fragments);
        }
        let moved = end.saturating_sub(self.highest);
        self.highest = self.highest.max(end);
        if start >= end {
            return Ok(moved);
        }
        let to = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let (from, until) = (to(start - self.base), to(end - self.base));
        if self.buffer.len() < until {
            self.buffer.resize(until, 0);
        }
        let new = &bytes[to(start - offset)..];
        let (first, second) = self.buffer.as_mut_slices();
        let split = first.len();
        if from < split {
            let here = new.len().min(split - from);
            first[from..from + here].copy_from_slice(&new[..here]);
            second[..until.saturating_sub(split)].copy_from_slice(&new[here..]);
        } else {
            second[from - split..until - split].copy_from_slice(new);
        }
        self.received.insert(start, end);
        Ok(moved)
    }

    /// Bytes that are there without a hole.
    fn ready(&self) -> usize {
        match self.received.first() {
            Some((start, end)) if start == self.base => {
                usize::try_from(end - start).unwrap_or(usize::MAX)
            }
            _ => 0,
        }
    }

    /// The next whole message.
    pub(crate) fn read(&mut self) -> Result<Option<Vec<u8>>, StreamFault> {
        let ready = self.ready();
        if ready < MESSAGE_PREFIX_BYTES {
            return Ok(None);
        }
        let prefix: [u8; MESSAGE_PREFIX_BYTES] = core::array::from_fn(|i| self.buffer[i]);
        let length = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
        if length > MESSAGE_BYTES_MAX {
            return Err(StreamFault::Message);
        }
        let whole = MESSAGE_PREFIX_BYTES + length;
        if ready < whole {
            return Ok(None);
        }
        let (first, second) = self.buffer.as_slices();
        let split = first.len();
        let mut message = Vec::with_capacity(length);
        message.extend_from_slice(&first[MESSAGE_PREFIX_BYTES.min(split)..whole.min(split)]);
        let rest = MESSAGE_PREFIX_BYTES.saturating_sub(split)..whole.saturating_sub(split);
        message.extend_from_slice(&second[rest]);
        self.buffer.drain(..whole);
        let base = self.base + whole as u64;
        self.received.remove(self.base, base);
        self.base = base;
        let needed = self.buffer.len().max(STREAM_SPARE_BYTES);
        if self.buffer.capacity() > 2 * needed {
            self.buffer.shrink_to(needed);
        }
        Ok(Some(message))
    }

    /// Forgets all bytes: the owner refused the stream.
    pub(crate) fn discard(&mut self) {
        self.buffer = VecDeque::new();
        self.received = RangeSet::default();
    }

    /// Where the next message starts.
    pub(crate) const fn base(&self) -> u64 {
        self.base
    }

    /// Raises the grant once enough was read; `true` when the peer is to be told.
    pub(crate) fn raise(&mut self) -> bool {
        let wanted = self.consumed + STREAM_WINDOW_BYTES;
        if wanted - self.granted < STREAM_RAISE_BYTES {
            return false;
        }
        self.granted = wanted;
        true
    }

    /// Bytes granted in all.
    pub(crate) const fn granted(&self) -> u64 {
        self.granted
    }
}

/// A stream that the peer opened.
#[derive(Debug)]
pub(crate) struct ReceiveStream {
    pub(crate) name: ChannelName,
    pub(crate) salt: u32,
    pub(crate) channel: ChannelHash,
    pub(crate) reliable: bool,
    pub(crate) bytes: ReceiveBytes,
    /// Where it ends, once the peer said so.
    pub(crate) end: Option<u64>,
    /// The owner wants no more of it.
    pub(crate) is_refused: bool,
}

impl ReceiveStream {
    /// Whether everything up to its end was read or is unwanted.
    pub(crate) fn is_done(&self) -> bool {
        self.end
            .is_some_and(|end| !self.reliable || self.is_refused || self.bytes.base() >= end)
    }
}

/// Streams of the peer that are over, as ranges of their index.
#[derive(Debug, Default)]
pub(crate) struct Closed {
    indices: RangeSet,
    count: u64,
}

impl Closed {
    /// The index of a stream among those of its opener.
    const fn index(stream: StreamId) -> u64 {
        (stream.0 / 2) as u64
    }

    pub(crate) fn contains(&self, stream: StreamId) -> bool {
        let index = Self::index(stream);
        self.indices.missing(index, index + 1).is_empty()
    }

    pub(crate) fn insert(&mut self, stream: StreamId) {
        if !self.contains(stream) {
            let index = Self::index(stream);
            self.indices.insert(index, index + 1);
            self.count += 1;
        }
    }

    /// Whether `stream` is near enough that the ranges stay few: an honest opener skips none, but
    /// it may have more open than this end lets it.
    pub(crate) fn allows(&self, stream: StreamId, streams_max: usize) -> bool {
        Self::index(stream) <= self.count + streams_max as u64 + STREAMS_AHEAD_MAX
    }
}

#[cfg(test)]
#[path = "tests/stream.rs"]
mod tests;
