//! What compaction asks a log: which segments nothing is written to any more.

use super::{Log, Step};

/// A segment that is full, with all of it on disk for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// As in its file's name.
    pub number: u32,
    /// Of its first event.
    pub first_offset: u64,
    /// Of the first event behind it.
    pub end: u64,
    /// No event of it is later; `u64::MAX` where that is not known.
    pub newest_time: u64,
    /// Its length.
    pub bytes: u64,
}

impl Log {
    /// The segments that are full and on disk for good, in order. None of a log that has ended, and none until what
    /// retention has let go of is gone for good: it would be there again after a crash.
    #[must_use]
    pub fn closed(&self) -> Vec<Closed> {
        let is_going = |step: &Step| matches!(step, Step::Mark | Step::Remove(_));
        if self.failure.is_some() || self.steps.iter().any(is_going) {
            return Vec::new();
        }
        let pairs = self.segments.iter().zip(self.segments.iter().skip(1));
        let mut closed: Vec<Closed> = Vec::new();
        let mut newest_time = u64::MAX;
        for (segment, next) in pairs.rev() {
            // Where the first batch is damaged there is none: the one of a later segment bounds it, too.
            if next.first_time > 0 {
                newest_time = next.first_time;
            }
            closed.push(Closed {
                number: segment.number,
                first_offset: segment.first_offset,
                end: next.first_offset,
                newest_time,
                bytes: segment.bytes,
            });
        }
        closed.reverse();
        closed.retain(|closed| self.is_closed_segment(closed));
        closed
    }

    fn is_closed_segment(&self, closed: &Closed) -> bool {
        let is_of = |step: &Step| matches!(step, Step::Finish(number, ..) | Step::Sync(number) if *number == closed.number);
        closed.end <= self.durable && !self.steps.iter().any(is_of)
    }

    /// Notes a segment's length after compaction.
    pub(crate) fn resize(&mut self, number: u32, bytes: u64) {
        for segment in self.segments.iter_mut().filter(|s| s.number == number) {
            segment.bytes = bytes;
        }
    }
}
