//! Streams: messages to bytes and back, in order, within what the receiver granted.
//!
//! A reliable stream is a row of bytes in which each message follows its length (4 bytes,
//! big-endian): `sending`, `receiving`; `unordered` finds messages that need not wait for those before
//! them. An unreliable stream is a queue of messages, which go out once: `events`, and `fragments` where one
//! is larger than a packet.

mod events;
mod fragments;
mod receiving;
mod sending;
mod unordered;

pub(crate) use events::{SendEvents, Written};
pub(crate) use fragments::{Fragment, Reassembly};
pub(crate) use receiving::{ReceiveBytes, StreamFault};
pub(crate) use sending::SendBytes;

use crate::{
    event::{Mode, Payload, Receipt, StreamSpec},
    limits::{
        EVENT_HELD_BYTES, EXPIRE_A_MESSAGE_NS, EXPIRE_EVERY_NS, MESSAGE_PREFIX_BYTES,
        STREAMS_AHEAD_MAX,
    },
    name::ChannelName,
    ranges::RangeSet,
};
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

/// Of a message that does not expire.
pub(crate) const NO_DEADLINE: u64 = u64::MAX;

/// What the owner wants of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// When it is given up, if nothing of it was sent by then.
    pub(crate) deadline_ns: u64,
    /// What the owner is told when it is acknowledged or given up; reliable streams only.
    pub(crate) receipt: Option<Receipt>,
}

impl Terms {
    /// It does not expire, and nobody is told of it.
    pub(crate) const NONE: Self = Self::until(NO_DEADLINE);

    /// Given up then.
    pub(crate) const fn until(deadline_ns: u64) -> Self {
        Self {
            deadline_ns,
            receipt: None,
        }
    }
}

/// The earliest of some deadlines, and how many there are.
fn earliest(deadlines: impl Iterator<Item = u64>) -> (u64, u64) {
    deadlines.fold((NO_DEADLINE, 0), |(next, messages), one| {
        (next.min(one), messages + 1)
    })
}

/// What was given up because its deadline had passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expired {
    pub(crate) messages: u64,
    /// Bytes that left the queue.
    pub(crate) bytes: usize,
    /// Bytes of the session's credit that were not used.
    pub(crate) credit: u64,
    /// Those of the messages.
    pub(crate) receipts: Vec<Receipt>,
}

/// What a stream carries, and how.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Reliable(SendBytes),
    Events(SendEvents),
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
    /// Messages that are followed until they are sent, and acknowledged.
    unsent: Option<Followed>,
    unacked: Option<Followed>,
}

/// One message on its way.
#[derive(Clone, Copy, Debug)]
struct Followed {
    /// Where it ends: in bytes of a reliable stream, in messages of another.
    end: u64,
    since_ns: u64,
    /// When all of it was sent, once that is so; of one that was not followed until then it stays unknown.
    sent_ns: Option<u64>,
}

/// How long a message was on its way that was followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acked {
    pub(crate) after_ns: u64,
    /// When all of it was sent, where that is known.
    pub(crate) sent_ns: Option<u64>,
}

impl Followed {
    /// It, once everything up to `to` has got there.
    fn arrived(followed: &mut Option<Self>, to: u64) -> Option<Self> {
        followed.take_if(|one| one.end <= to)
    }

    fn after_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.since_ns)
    }
}

impl SendStream {
    pub(crate) fn new(spec: &StreamSpec) -> Self {
        let outgoing = if spec.mode.is_reliable() {
            Outgoing::Reliable(SendBytes::new())
        } else {
            Outgoing::Events(SendEvents::default())
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
            unsent: None,
            unacked: None,
        }
    }

    /// Follows the newest message, where none is followed yet.
    pub(crate) fn follow(&mut self, now_ns: u64) {
        let (end, is_acked) = match &self.outgoing {
            Outgoing::Reliable(bytes) => (bytes.final_offset(), true),
            Outgoing::Events(events) => (events.end(), false),
        };
        let followed = Followed {
            end,
            since_ns: now_ns,
            sent_ns: None,
        };
        self.unsent.get_or_insert(followed);
        if is_acked {
            self.unacked.get_or_insert(followed);
        }
    }

    /// How long the message that is followed was held until all of it was sent; once.
    pub(crate) fn sent_after(&mut self, now_ns: u64) -> Option<u64> {
        let to = match &self.outgoing {
            Outgoing::Reliable(bytes) => bytes.sent_to(),
            Outgoing::Events(events) => events.sent_to(),
        };
        let sent = Followed::arrived(&mut self.unsent, to)?;
        if let Some(same) = self.unacked.as_mut().filter(|one| one.end == sent.end) {
            same.sent_ns = Some(now_ns);
        }
        Some(sent.after_ns(now_ns))
    }

    /// The same until the peer had it.
    pub(crate) fn acked_after(&mut self, now_ns: u64) -> Option<Acked> {
        let Outgoing::Reliable(bytes) = &self.outgoing else {
            return None;
        };
        let acked = Followed::arrived(&mut self.unacked, bytes.acked_to())?;
        Some(Acked {
            after_ns: acked.after_ns(now_ns),
            sent_ns: acked.sent_ns,
        })
    }

    /// Whether it takes messages.
    pub(crate) fn is_open(&self) -> bool {
        self.end == End::Open && !self.is_reset
    }

    /// Bytes that a message of `bytes` will hold.
    pub(crate) fn cost(&self, bytes: usize) -> usize {
        match &self.outgoing {
            Outgoing::Reliable(_) => bytes + MESSAGE_PREFIX_BYTES,
            Outgoing::Events(_) => bytes + EVENT_HELD_BYTES,
        }
    }

    /// Appends a message; the caller has checked that it fits.
    pub(crate) fn push(&mut self, message: Payload<'_>, terms: Terms) {
        match &mut self.outgoing {
            Outgoing::Reliable(bytes) => bytes.push(message, terms),
            Outgoing::Events(events) => events.push(message.bytes(), terms.deadline_ns),
        }
    }

    /// Gives up messages whose deadline has passed before any of their bytes went out.
    pub(crate) fn expire(&mut self, now_ns: u64) -> Expired {
        let expired = match &mut self.outgoing {
            Outgoing::Reliable(bytes) => bytes.expire(now_ns),
            Outgoing::Events(events) => events.expire(now_ns),
        };
        if expired.messages > 0 {
            // What is behind has another place now.
            (self.unsent, self.unacked) = (None, None);
        }
        expired
    }

    /// The earliest deadline of a message of which nothing went out, but not at once again: the more
    /// messages wait, the later.
    pub(crate) fn next_deadline_ns(&self, now_ns: u64) -> u64 {
        let (next_ns, messages) = match &self.outgoing {
            Outgoing::Reliable(bytes) => earliest(bytes.deadlines()),
            Outgoing::Events(events) => earliest(events.deadlines()),
        };
        if next_ns == NO_DEADLINE {
            return NO_DEADLINE;
        }
        next_ns.max(now_ns + EXPIRE_EVERY_NS.max(messages * EXPIRE_A_MESSAGE_NS))
    }

    /// Bytes held for sending.
    pub(crate) fn held(&self) -> usize {
        match &self.outgoing {
            Outgoing::Reliable(bytes) => bytes.held(),
            Outgoing::Events(events) => events.held(),
        }
    }

    /// Whether a message of `bytes` fits.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        match &self.outgoing {
            Outgoing::Reliable(held) => held.has_room(bytes + MESSAGE_PREFIX_BYTES),
            Outgoing::Events(events) => events.has_room(bytes),
        }
    }

    /// Whether there is something to send, and whether it takes of the congestion window.
    pub(crate) fn wants(&self) -> Wants {
        if self.is_reset {
            return Wants::Nothing;
        }
        match &self.outgoing {
            Outgoing::Events(events) if !events.is_empty() => Wants::Window,
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
    /// An end, which does not.
    Free,
}

/// A stream that the peer opened.
#[derive(Debug)]
pub(crate) struct ReceiveStream {
    pub(crate) name: ChannelName,
    pub(crate) salt: u32,
    pub(crate) channel: ChannelHash,
    pub(crate) mode: Mode,
    pub(crate) bytes: ReceiveBytes,
    /// Where it ends, once the peer said so.
    pub(crate) end: Option<u64>,
    /// The owner wants no more of it.
    pub(crate) is_refused: bool,
    /// The peer gave it up.
    pub(crate) is_reset: bool,
}

impl ReceiveStream {
    /// Whether everything up to its end was read or is unwanted.
    pub(crate) fn is_done(&self) -> bool {
        self.end.is_some_and(|end| {
            !self.mode.is_reliable() || self.is_refused || self.bytes.base() >= end
        })
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
        self.indices.covers(index, index + 1)
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
