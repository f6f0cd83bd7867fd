//! What is on its way: loss detection by RFC 9002.
//!
//! What was declared lost and arrives after all was only late: both thresholds rise to what the path
//! was seen to do (RFC 8985, 6.2), and the congestion controller takes its reduction back.

use crate::{
    frame::Ack,
    limits::{
        GRANULARITY_NS, LOST_KEPT_MAX, PACKET_THRESHOLD, PACKET_THRESHOLD_MAX,
        PERSISTENT_CONGESTION, PROBE_BACKOFF_MAX, PROBE_NS_MAX, REORDERING_EPISODES,
        TIME_THRESHOLD_EIGHTHS, TIME_THRESHOLD_EIGHTHS_MAX,
    },
    path::{Departure, Path},
    random::Generator,
    skipped::Skipped,
};
use std::collections::{BTreeMap, VecDeque};
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
    /// Both parts of this side's KEM key or ciphertext.
    pub(crate) const KEM: Self = Self(0b11 << 6);

    /// One of the parts.
    pub(crate) const fn kem(part: u8) -> Self {
        Self(Self::KEM.0 & 1 << (6 + part))
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) const fn only(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What one packet takes of it: one of the proof and the KEM's parts at most.
    pub(crate) const fn for_one_packet(self) -> Self {
        let large = self.0 & (Self::PROOF.0 | Self::KEM.0);
        Self(self.0 & !large | large & large.wrapping_neg())
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
    /// Of the whole datagram.
    pub(crate) bytes: usize,
    /// What it takes of the congestion window; 0 when it does not count.
    pub(crate) window_bytes: u64,
    /// What the path notes of it.
    pub(crate) departure: Departure,
    pub(crate) content: Content,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Flying,
    /// Declared lost; it is among the late ones now.
    Lost,
    Done,
}

/// An acknowledgement of something that was never sent: beyond what was, or left out.
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
    /// Ascending by sequence.
    sent: VecDeque<(Fate, Sent)>,
    outstanding: usize,
    /// Packets declared lost, by sequence, and when: they may only be late.
    late: BTreeMap<u64, (u64, Sent)>,
    skipped: Skipped,
    largest_acked: Option<u64>,
    loss_at_ns: Option<u64>,
    last_sent_ns: u64,
    probes_in_row: u32,
    /// Packets that may go out beyond the window, to find out whether anybody answers.
    probes_allowed: u32,
    first_sample_ns: Option<u64>,
    /// A packet is lost when one this many sequences newer was acknowledged.
    packet_threshold: u64,
    /// Or when this many eighths of a round trip have passed.
    time_threshold: u64,
    /// Times that losses were found since the last one that was none.
    episodes: u32,
}

impl Recovery {
    pub(crate) const fn new() -> Self {
        Self {
            sent: VecDeque::new(),
            outstanding: 0,
            late: BTreeMap::new(),
            skipped: Skipped::new(),
            largest_acked: None,
            loss_at_ns: None,
            last_sent_ns: 0,
            probes_in_row: 0,
            probes_allowed: 0,
            first_sample_ns: None,
            packet_threshold: PACKET_THRESHOLD,
            time_threshold: TIME_THRESHOLD_EIGHTHS,
            episodes: 0,
        }
    }

    /// Packets neither acknowledged nor lost.
    pub(crate) const fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Whether packets may go out beyond the window.
    pub(crate) const fn may_probe(&self) -> bool {
        self.probes_allowed > 0
    }

    /// Chooses what sequence to leave out; `sequence` is the next.
    pub(crate) fn choose_skip(&mut self, sequence: u64, generator: &mut Generator) {
        self.skipped.choose(sequence, generator);
    }

    /// The sequence after `sequence`, which a packet has just taken.
    pub(crate) fn next_sequence(&mut self, sequence: u64) -> u64 {
        self.skipped.after(sequence)
    }

    /// Remembers a packet that asks for an acknowledgement. Sequences ascend.
    pub(crate) fn on_sent(&mut self, sent: Sent) {
        if sent.window_bytes > 0 {
            self.probes_allowed = self.probes_allowed.saturating_sub(1);
        }
        self.outstanding += 1;
        self.last_sent_ns = sent.time_ns;
        self.sent.push_back((Fate::Flying, sent));
    }

    /// Takes an acknowledgement in; `next` is the lowest sequence never sent.
    pub(crate) fn on_ack(
        &mut self,
        now_ns: u64,
        ack: &Ack<'_>,
        next: u64,
        path: &mut Path,
        acked: &mut Vec<Content>,
        lost: &mut Vec<Content>,
    ) -> Result<(), NeverSent> {
        if ack.largest >= next {
            return Err(NeverSent);
        }
        let before = acked.len();
        path.on_ack_begin();
        let flying = self.sent.front().map_or(u64::MAX, |(_, s)| s.sequence);
        let late = self.late.first_key_value().map_or(u64::MAX, |(&s, _)| s);
        for (first, last) in ack.ranges() {
            if self.skipped.count(first, last) > 0 {
                return Err(NeverSent);
            }
            // Newest first: the others were dealt with before.
            if last < flying.min(late) {
                break;
            }
            if last >= flying {
                self.take_flying(now_ns, (first, last), ack, path, acked);
            }
            self.take_late(now_ns, (first, last), path, acked);
        }
        if acked.len() > before {
            self.probes_in_row = 0;
            self.probes_allowed = 0;
            path.set_answering();
        }
        self.largest_acked = self.largest_acked.max(Some(ack.largest));
        self.detect(now_ns, path, lost);
        path.on_ack_end(now_ns);
        Ok(())
    }

    /// Acknowledged sequences, first and last, of which some are on their way.
    fn take_flying(
        &mut self,
        now_ns: u64,
        (first, last): (u64, u64),
        ack: &Ack<'_>,
        path: &mut Path,
        acked: &mut Vec<Content>,
    ) {
        let from = self.sent.partition_point(|(_, sent)| sent.sequence < first);
        for at in from..self.sent.len() {
            if self.sent[at].1.sequence > last {
                break;
            }
            if let Some(content) = self.take(now_ns, at, ack, path) {
                acked.push(content);
            }
        }
    }

    /// The packet at `at` was acknowledged; gives what it carried unless that was known.
    fn take(&mut self, now_ns: u64, at: usize, ack: &Ack<'_>, path: &mut Path) -> Option<Content> {
        let (fate, sent) = &mut self.sent[at];
        if *fate != Fate::Flying {
            return None;
        }
        *fate = Fate::Done;
        self.outstanding -= 1;
        if sent.sequence == ack.largest {
            let rtt_ns = now_ns.saturating_sub(sent.time_ns);
            path.sample(sent, rtt_ns, ack.delay_us);
            self.first_sample_ns.get_or_insert(now_ns);
        }
        path.on_acked(now_ns, sent);
        Some(sent.content)
    }

    /// Acknowledged sequences, first and last, of which some may have been declared lost.
    fn take_late(
        &mut self,
        now_ns: u64,
        (first, last): (u64, u64),
        path: &mut Path,
        acked: &mut Vec<Content>,
    ) {
        while let Some((&sequence, _)) = self.late.range(first..=last).next() {
            let Some((at_ns, sent)) = self.late.remove(&sequence) else {
                return;
            };
            path.on_spurious(&sent, at_ns);
            self.note_late(now_ns, sequence, sent.time_ns, path);
            acked.push(sent.content);
        }
    }

    /// A packet that was declared lost was only late: from now on one waits as long as that took.
    fn note_late(&mut self, now_ns: u64, sequence: u64, sent_ns: u64, path: &Path) {
        self.episodes = 0;
        let distance = self.largest_acked.unwrap_or(0).saturating_sub(sequence) + 1;
        self.packet_threshold = self
            .packet_threshold
            .max(distance)
            .min(PACKET_THRESHOLD_MAX);
        let rtt_ns = path.round_trip().smoothed_ns().max(1);
        let eighths = (now_ns.saturating_sub(sent_ns).saturating_mul(8)).div_ceil(rtt_ns);
        self.time_threshold = self
            .time_threshold
            .max(eighths.min(self.time_threshold + 1))
            .min(TIME_THRESHOLD_EIGHTHS_MAX);
    }

    /// How long a packet may be late.
    fn patience_ns(&self, path: &Path) -> u64 {
        let round_trip = path.round_trip();
        let rtt_ns = round_trip.latest_ns().max(round_trip.smoothed_ns());
        (rtt_ns * self.time_threshold / 8).max(GRANULARITY_NS)
    }

    /// RFC 9002, 6.1: declares lost what is late by sequence or by time. When nothing got through for
    /// long (7.6), the window starts anew.
    fn detect(&mut self, now_ns: u64, path: &mut Path, lost: &mut Vec<Content>) {
        self.loss_at_ns = None;
        let Some(largest) = self.largest_acked else {
            return;
        };
        let delay_ns = self.patience_ns(path);
        let persistent_ns = PERSISTENT_CONGESTION * path.round_trip().probe_ns();
        let first_sample_ns = self.first_sample_ns.unwrap_or(u64::MAX);
        // When the first was sent of those that were lost in a row, none acknowledged in between.
        let mut row_since_ns = None;
        let mut is_persistent = false;
        let before = lost.len();
        for (fate, sent) in &mut self.sent {
            if sent.sequence >= largest {
                break;
            }
            if *fate != Fate::Flying {
                row_since_ns = row_since_ns.filter(|_| *fate != Fate::Done);
                continue;
            }
            let due_ns = sent.time_ns + delay_ns;
            let newer = largest - sent.sequence - self.skipped.count(sent.sequence, largest);
            if newer < self.packet_threshold && now_ns < due_ns {
                self.loss_at_ns = Some(self.loss_at_ns.map_or(due_ns, |at| at.min(due_ns)));
                row_since_ns = None;
                continue;
            }
            if sent.time_ns > first_sample_ns {
                let since_ns = *row_since_ns.get_or_insert(sent.time_ns);
                is_persistent |= sent.time_ns - since_ns > persistent_ns;
            }
            *fate = Fate::Lost;
            self.outstanding -= 1;
            self.late.insert(sent.sequence, (now_ns, *sent));
            path.on_lost(sent);
            lost.push(sent.content);
        }
        if lost.len() > before {
            self.episodes += 1;
            if self.episodes >= REORDERING_EPISODES {
                self.packet_threshold = PACKET_THRESHOLD;
                self.time_threshold = TIME_THRESHOLD_EIGHTHS;
            }
            path.on_lost_end(now_ns, is_persistent);
        }
        self.forget(now_ns, path);
    }

    /// Lets go of what nobody will ask for: done, or lost for so long that it will not arrive.
    fn forget(&mut self, now_ns: u64, path: &Path) {
        while let Some((Fate::Lost | Fate::Done, _)) = self.sent.front() {
            self.sent.pop_front();
        }
        let kept_ns = 2 * path.round_trip().probe_ns();
        while let Some((_, &(at_ns, _))) = self.late.first_key_value()
            && (now_ns >= at_ns.saturating_add(kept_ns) || self.late.len() > LOST_KEPT_MAX)
        {
            self.late.pop_first();
        }
    }

    /// Whether memory is held that nothing needs.
    pub(crate) fn has_spare(&self) -> bool {
        self.outstanding == 0 && self.sent.capacity() > 0
    }

    /// Gives memory back while nothing is on its way.
    pub(crate) fn rest(&mut self) {
        if self.outstanding == 0 {
            self.late = BTreeMap::new();
            self.skipped.forget();
            self.sent = VecDeque::new();
        }
    }

    /// Probe time-out, RFC 9002, 6.2.1.
    fn probe_ns(&self, path: &Path) -> u64 {
        let base_ns = path.round_trip().probe_ns();
        (base_ns << self.probes_in_row.min(PROBE_BACKOFF_MAX)).min(PROBE_NS_MAX)
    }

    /// When [`Recovery::on_timeout`] is due.
    pub(crate) fn timeout(&self, path: &Path) -> Option<u64> {
        if self.loss_at_ns.is_some() {
            return self.loss_at_ns;
        }
        (self.outstanding > 0).then(|| self.last_sent_ns + self.probe_ns(path))
    }

    /// Declares lost what is due; or, when nobody answers, gives the oldest packets' content once
    /// more (they still count as on their way).
    pub(crate) fn on_timeout(
        &mut self,
        now_ns: u64,
        path: &mut Path,
        lost: &mut Vec<Content>,
    ) -> Due {
        if self.timeout(path).is_none_or(|at| now_ns < at) {
            return Due::Nothing;
        }
        if self.loss_at_ns.is_some() {
            self.detect(now_ns, path, lost);
            return Due::Lost;
        }
        self.probes_in_row = self.probes_in_row.saturating_add(1);
        self.probes_allowed = 2;
        self.last_sent_ns = now_ns;
        path.set_silent();
        lost.extend(
            self.sent
                .iter()
                .filter(|(fate, _)| *fate == Fate::Flying)
                .take(2)
                .map(|(_, sent)| sent.content),
        );
        Due::Probe
    }
}

#[cfg(test)]
#[path = "tests/recovery.rs"]
mod tests;
