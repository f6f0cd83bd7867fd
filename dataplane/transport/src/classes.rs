//! What a node counts of each class of streams; 7 is control.

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

/// All classes' counters, by class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Classes([ClassCounters; ALL]);

impl Classes {
    pub(crate) fn counted(&self) -> &[ClassCounters; ALL] {
        &self.0
    }

    fn of(&mut self, class: u8) -> &mut ClassCounters {
        &mut self.0[usize::from(class.min(PRIORITY_CONTROL))]
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
