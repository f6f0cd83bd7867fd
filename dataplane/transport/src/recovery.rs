//! What is on its way: loss detection and congestion control by RFC 9002.

use crate::{
    frame::Ack,
    limits::{
        ACK_DELAY_NS, GRANULARITY_NS, INITIAL_RTT_NS, PACKET_THRESHOLD, PERSISTENT_CONGESTION,
        PROBE_BACKOFF_MAX, PROBE_NS_MAX, WINDOW_BYTES_INITIAL, WINDOW_BYTES_MAX, WINDOW_BYTES_MIN,
    },
    path::Path,
};
use std::collections::VecDeque;
use virga_ebpf::header::StreamId;

/// Matters of one stream that a control packet speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Matter {
    Credit(StreamId),
    Refuse(StreamId),
    Reset(StreamId),
}

/// Matters of streams in one control packet; the rest waits for the next.
pub(crate) const MATTERS_MAX: usize = 6;

/// Standing frames that a packet carried, as bits: they are made anew when it is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing(u8);

impl Standing {
    pub(crate) const PING: Self = Self(1);
    pub(crate) const PROOF: Self = Self(1 << 1);
    pub(crate) const REKEY: Self = Self(1 << 2);
    pub(crate) const REKEY_ACK: Self = Self(1 << 3);
    pub(crate) const REKEY_WANTED: Self = Self(1 << 4);
    pub(crate) const CREDIT: Self = Self(1 << 5);

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) const fn only(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(crate) fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub(crate) fn remove(&mut self, other: Self) {
        self.0 &= !other.0;
    }
}

/// What a packet carried: all that is needed to send it again, or to forget it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) stream: StreamId,
    pub(crate) open: bool,
    /// Bytes of the stream, start and end.
    pub(crate) range: (u64, u64),
    pub(crate) fin: bool,
    pub(crate) standing: Standing,
    pub(crate) matters: [Option<Matter>; MATTERS_MAX],
}

/// One packet that asked for an acknowledgement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) sequence: u64,
    pub(crate) time_ns: u64,
    /// What it takes of the congestion window; 0 when it does not count.
    pub(crate) window_bytes: u64,
    pub(crate) content: Content,
}

/// An acknowledgement of something that was never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NeverSent;

/// What a timer asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing yet.
    Nothing,
    /// Packets were declared lost.
    Lost,
    /// Nobody answers: send a probe.
    Probe,
}

/// Packets on their way in one direction of a session.
#[derive(Debug)]
pub(crate) struct Recovery {
    /// Ascending by sequence; `None` where a packet was acknowledged or lost.
    sent: VecDeque<(u64, Option<Sent>)>,
    outstanding: usize,
    in_flight_bytes: u64,
    largest_acked: Option<u64>,
    loss_at_ns: Option<u64>,
    last_sent_ns: u64,
    probes_in_row: u32,
    /// Packets that may go out beyond the window, to find out whether anybody answers.
    probes_allowed: u32,
    latest_rtt_ns: u64,
    smoothed_rtt_ns: u64,
    variation_rtt_ns: u64,
    least_rtt_ns: Option<u64>,
    window_bytes: u64,
    threshold_bytes: u64,
    recovery_since_ns: Option<u64>,
    /// When the round trip was first measured.
    first_sample_ns: Option<u64>,
}

impl Recovery {
    pub(crate) const fn new() -> Self {
        Self {
            sent: VecDeque::new(),
            outstanding: 0,
            in_flight_bytes: 0,
            largest_acked: None,
            loss_at_ns: None,
            last_sent_ns: 0,
            probes_in_row: 0,
            probes_allowed: 0,
            latest_rtt_ns: INITIAL_RTT_NS,
            smoothed_rtt_ns: INITIAL_RTT_NS,
            variation_rtt_ns: INITIAL_RTT_NS / 2,
            least_rtt_ns: None,
            window_bytes: WINDOW_BYTES_INITIAL,
            threshold_bytes: u64::MAX,
            recovery_since_ns: None,
            first_sample_ns: None,
        }
    }

    /// Smoothed round trip; assumed until one is measured.
    pub(crate) const fn rtt_ns(&self) -> u64 {
        self.smoothed_rtt_ns
    }

    /// Smoothed round trip, once there is a measurement.
    pub(crate) fn measured_rtt_ns(&self) -> Option<u64> {
        self.least_rtt_ns.map(|_| self.smoothed_rtt_ns)
    }

    /// Packets neither acknowledged nor lost.
    pub(crate) const fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Whether a full packet of stream data may go out now.
    pub(crate) const fn may_send(&self, path: &Path) -> bool {
        let full = path.datagram_bytes() as u64;
        self.probes_allowed > 0
            || self.in_flight_bytes == 0
            || self.in_flight_bytes + full <= self.window_bytes
    }

    /// Remembers a packet that asks for an acknowledgement. Sequences ascend.
    pub(crate) fn on_sent(&mut self, sent: Sent) {
        if sent.window_bytes > 0 {
            self.probes_allowed = self.probes_allowed.saturating_sub(1);
        }
        self.in_flight_bytes += sent.window_bytes;
        self.outstanding += 1;
        self.last_sent_ns = sent.time_ns;
        self.sent.push_back((sent.sequence, Some(sent)));
    }

    /// Takes an acknowledgement in; `next` is the lowest sequence never sent.
    pub(crate) fn on_ack(
        &mut self,
        now_ns: u64,
        ack: &Ack<'_>,
        next: u64,
        path: &Path,
        acked: &mut Vec<Content>,
        lost: &mut Vec<Content>,
    ) -> Result<(), NeverSent> {
        if ack.largest >= next {
            return Err(NeverSent);
        }
        let before = acked.len();
        for (first, last) in ack.ranges() {
            let from = self.sent.partition_point(|&(sequence, _)| sequence < first);
            for at in from..self.sent.len() {
                if self.sent[at].0 > last {
                    break;
                }
                let Some(sent) = self.sent[at].1.take() else {
                    continue;
                };
                self.outstanding -= 1;
                if sent.sequence == ack.largest {
                    self.sample(now_ns.saturating_sub(sent.time_ns), ack.delay_us);
                    self.first_sample_ns.get_or_insert(now_ns);
                }
                self.grow(&sent, path);
                acked.push(sent.content);
            }
        }
        if acked.len() > before {
            self.probes_in_row = 0;
            self.probes_allowed = 0;
        }
        self.largest_acked = self.largest_acked.max(Some(ack.largest));
        self.detect(now_ns, lost);
        Ok(())
    }

    /// RFC 9002, 5.3.
    fn sample(&mut self, rtt_ns: u64, delay_us: u64) {
        self.latest_rtt_ns = rtt_ns.max(1);
        let Some(least) = self.least_rtt_ns else {
            self.least_rtt_ns = Some(self.latest_rtt_ns);
            self.smoothed_rtt_ns = self.latest_rtt_ns;
            self.variation_rtt_ns = self.latest_rtt_ns / 2;
            return;
        };
        let least = least.min(self.latest_rtt_ns);
        self.least_rtt_ns = Some(least);
        let delay_ns = delay_us.saturating_mul(1_000).min(ACK_DELAY_NS);
        let adjusted = match self.latest_rtt_ns.checked_sub(delay_ns) {
            Some(adjusted) if adjusted >= least => adjusted,
            _ => self.latest_rtt_ns,
        };
        let off = self.smoothed_rtt_ns.abs_diff(adjusted);
        self.variation_rtt_ns = (3 * self.variation_rtt_ns + off) / 4;
        self.smoothed_rtt_ns = (7 * self.smoothed_rtt_ns + adjusted) / 8;
    }

    /// RFC 9002, 7.3: slow start, then one packet a window.
    fn grow(&mut self, sent: &Sent, path: &Path) {
        let was_limited = self.in_flight_bytes * 2 >= self.window_bytes;
        self.in_flight_bytes -= sent.window_bytes;
        let recovering = self
            .recovery_since_ns
            .is_some_and(|since| sent.time_ns <= since);
        if recovering || !was_limited {
            return;
        }
        let step = if self.window_bytes < self.threshold_bytes {
            sent.window_bytes
        } else {
            path.datagram_bytes() as u64 * sent.window_bytes / self.window_bytes
        };
        self.window_bytes = (self.window_bytes + step).min(WINDOW_BYTES_MAX);
    }

    /// RFC 9002, 6.1: declares lost what is late by sequence or by time. When nothing got through for
    /// long (7.6), the window starts anew.
    fn detect(&mut self, now_ns: u64, lost: &mut Vec<Content>) {
        self.loss_at_ns = None;
        let Some(largest) = self.largest_acked else {
            return;
        };
        let rtt_ns = self.latest_rtt_ns.max(self.smoothed_rtt_ns);
        let delay_ns = (rtt_ns * 9 / 8).max(GRANULARITY_NS);
        let persistent_ns = PERSISTENT_CONGESTION * self.probe_base_ns();
        let first_sample_ns = self.first_sample_ns.unwrap_or(u64::MAX);
        let mut newest_lost_ns = None;
        // When the first was sent of those that were lost in a row, none acknowledged in between.
        let mut row_since_ns = None;
        let mut is_persistent = false;
        for (sequence, slot) in &mut self.sent {
            if *sequence >= largest {
                break;
            }
            let Some(sent) = slot else {
                row_since_ns = None;
                continue;
            };
            let due_ns = sent.time_ns + delay_ns;
            if largest - *sequence < PACKET_THRESHOLD && now_ns < due_ns {
                self.loss_at_ns = Some(self.loss_at_ns.map_or(due_ns, |at| at.min(due_ns)));
                row_since_ns = None;
                continue;
            }
            if sent.time_ns > first_sample_ns {
                let since_ns = *row_since_ns.get_or_insert(sent.time_ns);
                is_persistent |= sent.time_ns - since_ns > persistent_ns;
            }
            self.outstanding -= 1;
            self.in_flight_bytes -= sent.window_bytes;
            if sent.window_bytes > 0 {
                newest_lost_ns = newest_lost_ns.max(Some(sent.time_ns));
            }
            lost.push(sent.content);
            *slot = None;
        }
        while self.sent.front().is_some_and(|(_, slot)| slot.is_none()) {
            self.sent.pop_front();
        }
        if let Some(time_ns) = newest_lost_ns
            && self.recovery_since_ns.is_none_or(|since| time_ns > since)
        {
            self.recovery_since_ns = Some(now_ns);
            self.threshold_bytes = (self.window_bytes / 2).max(WINDOW_BYTES_MIN);
            self.window_bytes = self.threshold_bytes;
        }
        if is_persistent {
            self.window_bytes = WINDOW_BYTES_MIN;
            self.recovery_since_ns = None;
        }
    }

    /// Probe time-out without back-off.
    fn probe_base_ns(&self) -> u64 {
        let variation_ns = (4 * self.variation_rtt_ns).max(GRANULARITY_NS);
        self.smoothed_rtt_ns + variation_ns + ACK_DELAY_NS
    }

    /// Probe time-out, RFC 9002, 6.2.1.
    pub(crate) fn probe_ns(&self) -> u64 {
        (self.probe_base_ns() << self.probes_in_row.min(PROBE_BACKOFF_MAX)).min(PROBE_NS_MAX)
    }

    /// When [`Recovery::on_timeout`] is due.
    pub(crate) fn timeout(&self) -> Option<u64> {
        if self.loss_at_ns.is_some() {
            return self.loss_at_ns;
        }
        (self.outstanding > 0).then(|| self.last_sent_ns + self.probe_ns())
    }

    /// Declares lost what is due; or, when nobody answers, gives the oldest packets' content once
    /// more (they still count as on their way).
    pub(crate) fn on_timeout(&mut self, now_ns: u64, lost: &mut Vec<Content>) -> Due {
        if self.timeout().is_none_or(|at| now_ns < at) {
            return Due::Nothing;
        }
        if self.loss_at_ns.is_some() {
            self.detect(now_ns, lost);
            return Due::Lost;
        }
        self.probes_in_row = self.probes_in_row.saturating_add(1);
        self.probes_allowed = 2;
        self.last_sent_ns = now_ns;
        lost.extend(
            self.sent
                .iter()
                .filter_map(|(_, s)| s.as_ref())
                .take(2)
                .map(|s| s.content),
        );
        Due::Probe
    }
}

#[cfg(test)]
#[path = "tests/recovery.rs"]
mod tests;
