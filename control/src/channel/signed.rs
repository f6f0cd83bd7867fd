//! Channels whose events are signed: each message is a batch of them, see [`virga_state::bundle`].

use super::{
    delivery::{Delivery, Outlet, Signature},
    entry::{Entry, Index},
    service::ChannelService,
};
use bytes::Bytes;
use std::ops::Range;
use virga_state::{
    batch::{SIGNED_COUNT_AT, SIGNED_ENTITY_AT, SIGNED_FIRST_AT},
    bundle,
    limits::SIGNED_PAYLOADS_MAX,
};
use virga_transport::{Mode, Node, limits::MESSAGE_BYTES_MAX};

/// How many events a message is, which was signed here or was found to be well-formed.
pub(crate) fn events_of(mode: Mode, message: &[u8]) -> u64 {
    let count = message
        .get(SIGNED_COUNT_AT..)
        .and_then(|rest| rest.first_chunk());
    match (mode, count) {
        (Mode::Signed, Some(count)) => u32::from_be_bytes(*count).into(),
        _ => 1,
    }
}

/// The numbers of a message's events, which was signed here or was found to be well-formed.
pub(crate) fn span_of(message: &[u8]) -> Option<Range<u64>> {
    let first = message.get(SIGNED_FIRST_AT..)?.first_chunk()?;
    let first = u64::from_be_bytes(*first);
    Some(first..first.saturating_add(events_of(Mode::Signed, message)))
}

/// The entity that a message says it is of.
pub(crate) fn entity_of(message: &[u8]) -> Option<[u8; 32]> {
    message.get(SIGNED_ENTITY_AT..)?.first_chunk().copied()
}

/// Bytes of the largest event that a channel carries.
pub(crate) const fn event_bytes_max(mode: Mode) -> usize {
    match mode {
        Mode::Signed => SIGNED_PAYLOADS_MAX,
        Mode::Unreliable | Mode::Ordered | Mode::Unordered => MESSAGE_BYTES_MAX,
    }
}

impl Entry {
    /// The same, of a message that somebody else brings: none where its entity has not signed these events.
    pub(crate) fn verify(&self, message: &Bytes, entity: &[u8; 32]) -> Option<Vec<Bytes>> {
        let events = self.open(message, entity)?;
        let (batch, _) = bundle::parse(message).ok()?;
        let verified = batch.verify(events.iter().map(|event| &event[..]));
        verified.is_ok().then_some(events)
    }

    /// The events of a message; none where it is no batch of this channel by that entity.
    pub(crate) fn open(&self, message: &Bytes, entity: &[u8; 32]) -> Option<Vec<Bytes>> {
        let (batch, payloads) = bundle::parse(message).ok()?;
        let statement = &batch.signed.statement;
        let is_meant =
            statement.entity == *entity && statement.channel.as_str() == self.name().as_str();
        let payloads = payloads.into_iter().map(|range| message.slice(range));
        is_meant.then(|| payloads.collect())
    }
}

impl<O: Outlet> ChannelService<O> {
    /// Hands the events of a batch to every local subscriber, the signature with the last; `begin` has the
    /// message, and the number before the first event's. How many subscribers took the last one, and how many
    /// times one had no room.
    pub(crate) fn deliver_signed(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        index: Index,
        (begin, payloads): (Delivery, Vec<Bytes>),
    ) -> (usize, u64) {
        let message = begin.payload.clone();
        let (mut taken, mut lost) = (0, 0);
        let last = payloads.len();
        for (number, payload) in (1..).zip(payloads) {
            let delivery = Delivery {
                sequence: begin.sequence + number as u64,
                signature: match number == last {
                    true => Signature::Here(message.clone()),
                    false => Signature::Later,
                },
                payload,
                // Of a batch the last one is timed.
                queued_ns: if number == last { begin.queued_ns } else { 0 },
                ..begin.clone()
            };
            let (here, full) = self.deliver(now_ns, node, index, &delivery);
            (taken, lost) = (here, lost + full);
        }
        (taken, lost)
    }
}
