//! Room on the disk, before anything is written to it: what a segment is made with, and what is done where there is none.

use super::{Log, Step};
use crate::limits::DISK_FULL_RETRY_NS;
use std::io;

impl Log {
    /// What a segment is made with: room for what is written to it first, also where that is more than a segment takes.
    pub(super) fn room_for(&self, segment: u32) -> u64 {
        let last = self.segments.back().filter(|s| s.number == segment);
        let first = last.map_or(0, |segment| segment.bytes);
        first.max(self.options.segment_bytes)
    }

    /// Plans to give the segment that the log goes on in what a new one is made with.
    pub(super) fn plan_room(&mut self) {
        let last = self.segments.back().filter(|_| self.active.is_some());
        let last = last.filter(|last| last.bytes < self.options.segment_bytes);
        if let Some(last) = last
            && !self.has_room
        {
            self.steps.push_back(Step::Reserve(last.number));
        }
    }

    /// A segment that events wait for is asked for again later; one that was made ahead is not
    /// missed yet.
    pub(super) fn wait_for_room(&mut self, now_unix_ns: u64) {
        let until = now_unix_ns.saturating_add(DISK_FULL_RETRY_NS);
        if self.steps.len() > 1 {
            self.disk_full_until_ns = Some(until);
        } else {
            if let Some(Step::Create(_)) = self.steps.pop_front() {
                self.next_number -= 1;
            }
            self.prepare_from_ns = until;
        }
    }
}

pub(super) fn is_disk_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
