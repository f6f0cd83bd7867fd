//! Whose turn it is to send: deficit round robin over the classes, round robin between the streams of
//! one class (Shreedhar and Varghese, 1995).
//!
//! Class 7 is not in here: control goes out before any stream does. Below it, each class that has
//! something to send may send as many packets a round as its number and one more: of 28 full packets
//! class 6 has 7 and class 0 has 1. So a higher class gets more, and none is ever starved.

use std::collections::VecDeque;
use virga_ebpf::header::{PRIORITY_CONTROL, StreamId};

/// Classes that streams can have.
pub(crate) const CLASSES: usize = PRIORITY_CONTROL as usize;

/// One class's streams in turn, and what it may still send in this round.
#[derive(Debug, Default)]
struct Class {
    row: VecDeque<StreamId>,
    /// Bytes; below 0 by less than a packet as large as the last, which is taken off the next round's.
    deficit: i64,
}

/// The streams that have something to send.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    classes: [Class; CLASSES],
    /// Whose turn it is.
    turn: usize,
}

impl Schedule {
    /// Puts a stream at the end of its class's row.
    pub(crate) fn push(&mut self, class: u8, stream: StreamId) {
        if let Some(class) = self.classes.get_mut(usize::from(class)) {
            class.row.push_back(stream);
        }
    }

    /// The next stream to serve. `has_something` says of each that is asked whether it has something
    /// to send; one that has not leaves the row. `packet_bytes` are those of a full packet. The stream
    /// stays the next one until [`Schedule::charge`].
    pub(crate) fn pick(
        &mut self,
        packet_bytes: usize,
        mut has_something: impl FnMut(StreamId) -> bool,
    ) -> Option<StreamId> {
        // The class whose turn it is may have sent all that it may: it comes again after the others.
        for _ in 0..=CLASSES {
            let class = &mut self.classes[self.turn];
            if class.deficit > 0 {
                while let Some(&stream) = class.row.front() {
                    if has_something(stream) {
                        return Some(stream);
                    }
                    class.row.pop_front();
                }
            }
            self.turn = self.turn.checked_sub(1).unwrap_or(CLASSES - 1);
            let packet = i64::try_from(packet_bytes).unwrap_or(i64::MAX);
            let quantum =
                i64::try_from(self.turn + 1).map_or(i64::MAX, |n| packet.saturating_mul(n));
            let class = &mut self.classes[self.turn];
            // What an idle class did not use is not saved up; and what was owed for packets larger than
            // today's is forgiven, so that a round always gives each class something.
            class.deficit = match class.row.is_empty() {
                true => 0,
                false => class.deficit.clamp(1 - packet, 0).saturating_add(quantum),
            };
        }
        None
    }

    /// The stream that was picked has sent a packet of `bytes`: the next of its class follows.
    pub(crate) fn charge(&mut self, bytes: usize) {
        let class = &mut self.classes[self.turn];
        class.deficit -= i64::try_from(bytes).unwrap_or(i64::MAX);
        class.row.rotate_left(usize::from(class.row.len() > 1));
    }

    /// Gives back room that nothing is in.
    pub(crate) fn give_back(&mut self) {
        for class in &mut self.classes {
            class.row.shrink_to_fit();
        }
    }

    /// Streams in all rows.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.classes.iter().map(|class| class.row.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that each stream was given of `packets`, all having something to send.
    fn shares(streams: &[(u8, u32)], packets: usize, bytes: impl Fn(u32) -> usize) -> Vec<usize> {
        let mut schedule = Schedule::default();
        for &(class, stream) in streams {
            schedule.push(class, StreamId(stream));
        }
        let mut got = vec![0; streams.len()];
        for _ in 0..packets {
            let stream = schedule.pick(1_200, |_| true).unwrap();
            schedule.charge(bytes(stream.0));
            let at = streams.iter().position(|s| s.1 == stream.0).unwrap();
            got[at] += bytes(stream.0);
        }
        got
    }

    #[test]
    fn classes_share_by_their_number_and_streams_of_one_class_alike() {
        let all: Vec<(u8, u32)> = (0..7).map(|class| (class, class.into())).collect();
        let got = shares(&all, 28 * 10, |_| 1_200);
        let expected: Vec<usize> = (1..=7).map(|n| n * 10 * 1_200).collect();
        assert_eq!(got, expected);
        let got = shares(&[(3, 1), (3, 2), (0, 3)], 900, |_| 1_200);
        assert_eq!(got, [360 * 1_200, 360 * 1_200, 180 * 1_200]);
    }

    /// A class of small packets gets as many bytes as one of full ones, not as many packets.
    #[test]
    fn shares_are_of_bytes() {
        let small = |stream| if stream == 1 { 100 } else { 1_200 };
        let got = shares(&[(2, 1), (2, 2)], 1_300, |_| 600);
        assert_eq!(got[0], got[1]);
        let got = shares(&[(1, 1), (1 + 1, 2)], 26_000, small);
        let ratio = got[1] * 100 / got[0];
        assert!((145..=155).contains(&ratio), "{got:?}");
    }

    /// A path that carried large packets and carries only small ones now keeps nobody waiting.
    #[test]
    fn packets_may_become_smaller() {
        let mut schedule = Schedule::default();
        schedule.push(0, StreamId(1));
        assert_eq!(schedule.pick(65_487, |_| true), Some(StreamId(1)));
        schedule.charge(65_487);
        schedule.charge(65_487);
        for _ in 0..10 {
            assert_eq!(schedule.pick(1_232, |_| true), Some(StreamId(1)));
            schedule.charge(1_232);
        }
    }

    #[test]
    fn who_has_nothing_leaves_and_saves_nothing_up() {
        let mut schedule = Schedule::default();
        schedule.push(6, StreamId(1));
        schedule.push(0, StreamId(2));
        for _ in 0..100 {
            assert_eq!(schedule.pick(1_200, |s| s.0 == 2), Some(StreamId(2)));
            schedule.charge(1_200);
        }
        assert_eq!(schedule.len(), 1);
        schedule.push(6, StreamId(1));
        let mut in_row = 0;
        while schedule.pick(1_200, |_| true) == Some(StreamId(1)) {
            schedule.charge(1_200);
            in_row += 1;
        }
        assert_eq!(in_row, 7, "one round's worth");
        assert_eq!(schedule.pick(1_200, |_| false), None);
        assert_eq!(schedule.len(), 0);
    }
}
