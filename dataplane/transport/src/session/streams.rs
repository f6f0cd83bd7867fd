//! A session's streams in both directions, and the credit over all of them.

mod receiving;
mod sending;

use crate::{
    event::{Mode, StreamSpec},
    keys::Role,
    limits::SESSION_WINDOW_BYTES,
    recovery::Matter,
    schedule::{CLASSES, Schedule},
    stream::{
        Closed, NO_DEADLINE, Outgoing, Reassembly, ReceiveBytes, ReceiveStream, SendBytes,
        SendStream,
    },
};
use std::collections::{BTreeMap, BTreeSet};
use virga_ebpf::header::{ChannelHash, StreamId};

const CONTROL: StreamId = StreamId(0);

/// A data packet: whose stream, on which channel, and its frames.
pub(super) struct Data<'a> {
    pub(super) stream: StreamId,
    pub(super) channel: ChannelHash,
    pub(super) open: Option<(u32, Mode, &'a str)>,
    pub(super) payload: &'a [u8],
}

/// All streams of one session.
pub(super) struct Streams {
    role: Role,
    opened: u32,
    pub(super) sending: BTreeMap<StreamId, SendStream>,
    /// Streams that have something to send.
    schedule: Schedule,
    /// Those of which only the end is to be sent: it needs no room in the window.
    ends: BTreeSet<StreamId>,
    pub(super) control_out: SendBytes,
    /// Bytes of the peer's session credit that are left.
    send_credit: u64,
    send_granted: u64,
    /// Bytes that the streams of each class hold for sending.
    held_bytes: [usize; CLASSES],
    /// No message's deadline is before this.
    expires_ns: u64,
    /// Nothing new is taken: all that is queued goes out, and then the session ends.
    is_finishing: bool,
    /// Streams that refused a message for want of room.
    full: BTreeSet<StreamId>,
    /// One more stream was refused, because there were as many as may be.
    is_open_refused: bool,
    receiving: BTreeMap<StreamId, ReceiveStream>,
    closed: Closed,
    /// Streams that came when the peer had as many as it may: refused, their reset outstanding.
    turned_away: BTreeSet<StreamId>,
    control_in: ReceiveBytes,
    /// What is kept beside the bytes of all streams that were received.
    entries: usize,
    receive_highest: u64,
    receive_consumed: u64,
    receive_granted: u64,
    /// Events that the owner has not read: messages, and openings of streams.
    unread: usize,
    /// Streams whose messages wait until the owner has read more.
    stalled: BTreeSet<StreamId>,
    matters: BTreeSet<Matter>,
    reassembly: Reassembly,
}

impl Streams {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            opened: 0,
            sending: BTreeMap::new(),
            schedule: Schedule::default(),
            ends: BTreeSet::new(),
            control_out: SendBytes::new(),
            send_credit: SESSION_WINDOW_BYTES,
            send_granted: SESSION_WINDOW_BYTES,
            held_bytes: [0; CLASSES],
            expires_ns: NO_DEADLINE,
            is_finishing: false,
            full: BTreeSet::new(),
            is_open_refused: false,
            receiving: BTreeMap::new(),
            closed: Closed::default(),
            turned_away: BTreeSet::new(),
            control_in: ReceiveBytes::new(Mode::Ordered),
            entries: 0,
            receive_highest: 0,
            receive_consumed: 0,
            receive_granted: SESSION_WINDOW_BYTES,
            unread: 0,
            stalled: BTreeSet::new(),
            matters: BTreeSet::new(),
            reassembly: Reassembly::default(),
        }
    }

    pub(super) fn sending(&self) -> usize {
        self.sending.len()
    }

    /// Bytes that wait, or are on their way, by class.
    pub(super) fn held_bytes_by_class(&self) -> &[usize; CLASSES] {
        &self.held_bytes
    }

    /// Bytes that wait, or are on their way.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes.iter().sum::<usize>() as u64
    }

    pub(super) fn receiving(&self) -> usize {
        self.receiving.len()
    }

    pub(super) fn requeue(&mut self, matter: Matter) {
        if self.is_live(matter) {
            self.matters.insert(matter);
        }
    }

    pub(super) fn has_matters(&self) -> bool {
        !self.matters.is_empty()
    }

    /// The next matter that still is one.
    pub(super) fn take_matter(&mut self) -> Option<Matter> {
        while let Some(matter) = self.matters.pop_first() {
            if self.is_live(matter) {
                return Some(matter);
            }
        }
        None
    }

    fn is_live(&self, matter: Matter) -> bool {
        match matter {
            Matter::Credit(stream) => self.granted(stream).is_some(),
            Matter::Refuse(stream) => {
                self.receiving.contains_key(&stream) || self.is_turned_away(stream)
            }
            Matter::Reset(stream) => self.reset_offset(stream).is_some(),
        }
    }

    /// A stream of the peer is over: there is nothing more to tell of it.
    fn forget_received(&mut self, stream: StreamId) {
        self.matters.remove(&Matter::Credit(stream));
        self.matters.remove(&Matter::Refuse(stream));
    }

    /// Bytes that one stream holds.
    pub(super) fn queued_on(&self, stream: StreamId) -> usize {
        self.sending.get(&stream).map_or(0, |s| match &s.outgoing {
            Outgoing::Reliable(bytes) => bytes.held(),
            Outgoing::Events(events) => events.held(),
        })
    }
}

#[cfg(any(test, fuzzing, feature = "sim"))]
impl Streams {
    /// Matters to tell.
    pub(super) fn matters(&self) -> usize {
        self.matters.len()
    }

    /// Streams of which only the end is to be sent.
    #[cfg(test)]
    pub(super) fn ends(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of all queues' buffers, used or not.
    #[cfg(test)]
    pub(super) fn queue_bytes(&self) -> usize {
        let held = self.sending.values().map(|s| match &s.outgoing {
            Outgoing::Reliable(bytes) => bytes.capacity(),
            Outgoing::Events(events) => events.capacity(),
        });
        held.sum::<usize>() + self.control_out.capacity()
    }

    /// Credit used as a sender; used, and read, as a receiver.
    pub(super) fn credit(&self) -> (u64, u64, u64) {
        let used = self.send_granted - self.send_credit;
        (used, self.receive_highest, self.receive_consumed)
    }

    /// Messages of which fragments are missing, and the bytes that they take.
    pub(super) fn unfinished(&self) -> (usize, usize) {
        self.reassembly.held()
    }
}

/// Bytes of the open frame of a stream.
pub(super) fn open_bytes(spec: &StreamSpec) -> usize {
    7 + spec.name.as_str().len()
}
