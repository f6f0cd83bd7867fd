//! What a node counts of each class of streams; 7 is control.

use crate::times::Times;
use virga_ebpf::header::PRIORITY_CONTROL;

/// Classes, control among them.
pub(crate) const ALL: usize = PRIORITY_CONTROL as usize + 1;

/// What was counted of one class over all sessions; never reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassCounters {
    /// Packets sealed.
    pub sent_packets: u64,
    /// Their bytes, mesh headers included.
    pub sent_bytes: u64,
    /// Events that began in them.
    pub sent_events: u64,
    /// Packets opened.
    pub received_packets: u64,
    /// Their bytes, mesh headers included.
    pub received_bytes: u64,
    /// Events that began in them, as their senders say.
    pub received_events: u64,
    /// Packets in which data travelled again.
    pub retransmitted_packets: u64,
    /// Bytes of streams that travelled again.
    pub retransmitted_bytes: u64,
}

/// How long messages of one class took, over all streams of all sessions. Of each stream one message at a time is
/// followed: the last of a call, until it is there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClassTimes {
    /// From the call that queued it until all of it was sealed into packets.
    pub sent_after: Times,
    /// From that call until the peer had acknowledged all of it; reliable streams alone.
    pub acked_after: Times,
}

/// All classes' counters and times, by class; the control stream's messages are not followed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Classes {
    counted: [ClassCounters; ALL],
    times: Box<[ClassTimes; PRIORITY_CONTROL as usize]>,
}

impl Default for Classes {
    fn default() -> Self {
        Self {
            counted: [ClassCounters::default(); ALL],
            times: Box::new(std::array::from_fn(|_| ClassTimes::default())),
        }
    }
}

impl Classes {
    pub(crate) fn counted(&self) -> &[ClassCounters; ALL] {
        &self.counted
    }

    pub(crate) fn times(&self) -> &[ClassTimes] {
        &*self.times
    }

    fn of(&mut self, class: u8) -> &mut ClassCounters {
        &mut self.counted[usize::from(class.min(PRIORITY_CONTROL))]
    }

    /// A message that was followed is sent, if it is: after so long.
    pub(crate) fn sent_after(&mut self, class: u8, ns: Option<u64>) {
        if let (Some(ns), Some(times)) = (ns, self.times.get_mut(usize::from(class))) {
            times.sent_after.record(ns);
        }
    }

    /// A message that was followed is acknowledged, if it is: after so long.
    pub(crate) fn acked_after(&mut self, class: u8, ns: Option<u64>) {
        if let (Some(ns), Some(times)) = (ns, self.times.get_mut(usize::from(class))) {
            times.acked_after.record(ns);
        }
    }

    /// A packet was sealed; `again_bytes` of its data had been sent before.
    pub(crate) fn sent(&mut self, class: u8, bytes: usize, events: usize, again_bytes: u64) {
        let class = self.of(class);
        class.sent_packets += 1;
        class.sent_bytes += bytes as u64;
        class.sent_events += events as u64;
        class.retransmitted_packets += u64::from(again_bytes > 0);
        class.retransmitted_bytes += again_bytes;
    }

    /// A packet was opened.
    pub(crate) fn received(&mut self, class: u8, bytes: u64, events: u16) {
        let class = self.of(class);
        class.received_packets += 1;
        class.received_bytes += bytes;
        class.received_events += u64::from(events);
    }
}
