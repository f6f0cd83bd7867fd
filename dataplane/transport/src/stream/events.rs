//! The sending half of an unreliable stream: messages that wait, and go out once.

use super::Expired;
use crate::{
    frame::{
        EVENT_OVERHEAD, events_in, fragment_overhead, write_event_start, write_events_start,
        write_fragment_start,
    },
    limits::{EVENT_HELD_BYTES, EVENTS_IN_PACKET_MAX, STREAM_QUEUE_BYTES},
};
use std::collections::VecDeque;

/// A fragment of fewer bytes than this, other than the last, is not worth its overhead.
const FRAGMENT_BYTES_MIN: usize = 64;

/// One message that waits.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    length: u32,
    deadline_ns: u64,
}

/// Messages of an unreliable stream that wait, one after the other in one buffer.
#[derive(Debug, Default)]
pub(crate) struct SendEvents {
    buffer: VecDeque<u8>,
    waiting: VecDeque<Waiting>,
    /// Number of the first, counted over the stream.
    number: u64,
    /// Bytes of the first that went out already, in fragments.
    sent: u32,
}

/// What went into a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Messages that end in it.
    pub(crate) messages: usize,
    /// Bytes by which the queue holds less.
    pub(crate) bytes: usize,
}

impl SendEvents {
    /// Bytes held: those of the messages, and what is kept of each.
    pub(crate) fn held(&self) -> usize {
        self.buffer.len() + self.waiting.len() * EVENT_HELD_BYTES
    }

    /// Whether half of what it may take is free.
    pub(crate) fn is_half_empty(&self) -> bool {
        self.held() <= STREAM_QUEUE_BYTES / 2
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Messages that were taken, over the stream.
    pub(crate) fn end(&self) -> u64 {
        self.number + self.waiting.len() as u64
    }

    /// Messages of which nothing waits any more.
    pub(crate) const fn sent_to(&self) -> u64 {
        self.number
    }

    /// Gives back room that nothing is in.
    pub(crate) fn give_back(&mut self) {
        self.buffer.shrink_to_fit();
        self.waiting.shrink_to_fit();
    }

    /// Bytes of its buffer, used or not.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Whether one more message of `bytes` fits.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.held() + EVENT_HELD_BYTES + bytes <= STREAM_QUEUE_BYTES
    }

    /// Appends a message; the caller has checked that it fits.
    pub(crate) fn push(&mut self, message: &[u8], deadline_ns: u64) {
        self.buffer.extend(message);
        self.waiting.push_back(Waiting {
            length: u32::try_from(message.len()).unwrap_or(u32::MAX),
            deadline_ns,
        });
    }

    /// Deadlines of all that waits.
    pub(crate) fn deadlines(&self) -> impl Iterator<Item = u64> + '_ {
        self.waiting.iter().map(|waiting| waiting.deadline_ns)
    }

    /// Gives up messages whose deadline has passed; also the rest of one that is partly sent, which
    /// nobody can use any more.
    pub(crate) fn expire(&mut self, now_ns: u64) -> Expired {
        let mut expired = Expired::default();
        if self.deadlines().all(|deadline_ns| deadline_ns > now_ns) {
            return expired;
        }
        let held = self.held();
        let buffer = std::mem::take(&mut self.buffer);
        let (mut rest, mut at) = (Vec::from(buffer), 0);
        let mut kept_bytes = 0;
        let sent = std::mem::take(&mut self.sent);
        let mut first_sent = sent;
        self.waiting.retain(|waiting| {
            let bytes = usize::try_from(waiting.length - first_sent).unwrap_or(usize::MAX);
            let is_kept = waiting.deadline_ns > now_ns;
            if is_kept {
                rest.copy_within(at..at + bytes, kept_bytes);
                kept_bytes += bytes;
                self.sent += first_sent;
            } else {
                expired.messages += 1;
            }
            self.number += u64::from(first_sent > 0 && !is_kept);
            first_sent = 0;
            at += bytes;
            is_kept
        });
        rest.truncate(kept_bytes);
        self.buffer = rest.into();
        expired.bytes = held - self.held();
        expired
    }

    /// Bytes of the first message that did not go out yet.
    fn rest(&self) -> Option<usize> {
        let length = self.waiting.front()?.length;
        usize::try_from(length - self.sent).ok()
    }

    /// Whether something of the first message goes into `room` bytes, of which a full packet has
    /// `full`: all of it, or a fragment where no full packet takes it whole.
    pub(crate) fn fits(&self, room: usize, full: usize) -> bool {
        let Some(rest) = self.rest() else {
            return false;
        };
        let is_whole = self.sent == 0 && EVENT_OVERHEAD + rest <= room;
        let is_cut = self.sent > 0 || EVENT_OVERHEAD + rest > full;
        is_whole || (is_cut && room == full)
    }

    /// Writes as many messages as there is room for up to `end`; one that no packet like this takes
    /// whole is cut.
    pub(crate) fn write(&mut self, out: &mut Vec<u8>, end: usize) -> Written {
        let mut written = Written::default();
        while let Some(rest) = self.rest() {
            let room = end.saturating_sub(out.len());
            let most = EVENTS_IN_PACKET_MAX - written.messages;
            if most == 0 {
                break;
            }
            if self.sent == 0 && EVENT_OVERHEAD + rest <= room {
                let count = self.write_whole(out, rest, (room, most));
                written.messages += count;
                written.bytes += count * (rest + EVENT_HELD_BYTES);
            } else if rest > 0 && (self.sent > 0 || written == Written::default()) {
                let bytes = self.write_fragment(out, rest, room);
                written.bytes += bytes;
                if bytes < rest {
                    break;
                }
                written.messages += 1;
                written.bytes += EVENT_HELD_BYTES;
            } else {
                break;
            }
        }
        written
    }

    /// The first message, and those after it that are as long and fit into `room` bytes, `most` in all;
    /// gives how many.
    fn write_whole(
        &mut self,
        out: &mut Vec<u8>,
        length: usize,
        (room, most): (usize, usize),
    ) -> usize {
        // Empty ones stand alone: their bytes do not tell how many there are.
        let most = match length {
            0 => 1,
            _ => events_in(room, length).min(most),
        };
        let same = self.waiting.front().map(|first| first.length);
        let alike = self.waiting.iter().take(most);
        let is_alike = |next: &&Waiting| Some(next.length) == same;
        let count = alike.take_while(is_alike).count().max(1);
        if count == 1 {
            write_event_start(out, length);
        } else {
            write_events_start(out, length, count);
        }
        self.move_out(out, count * length);
        self.waiting.drain(..count);
        self.number += count as u64;
        count
    }

    /// A fragment of the first message; gives how many bytes of it.
    fn write_fragment(&mut self, out: &mut Vec<u8>, rest: usize, room: usize) -> usize {
        let length = self.waiting.front().map_or(0, |first| first.length);
        let (offset, total) = (u64::from(self.sent), u64::from(length));
        let overhead = fragment_overhead(self.number, total, offset);
        let bytes = rest.min(room.saturating_sub(overhead));
        if bytes < rest.min(FRAGMENT_BYTES_MIN) {
            return 0;
        }
        write_fragment_start(out, self.number, total, offset, bytes);
        self.move_out(out, bytes);
        if bytes == rest {
            self.waiting.pop_front();
            self.number += 1;
            self.sent = 0;
        } else {
            self.sent += u32::try_from(bytes).unwrap_or(u32::MAX);
        }
        bytes
    }

    /// Moves the first `bytes` out of the buffer.
    fn move_out(&mut self, out: &mut Vec<u8>, bytes: usize) {
        let (first, second) = self.buffer.as_slices();
        let here = bytes.min(first.len());
        out.extend_from_slice(&first[..here]);
        out.extend_from_slice(&second[..bytes - here]);
        self.buffer.drain(..bytes);
    }
}
