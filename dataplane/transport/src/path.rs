//! One path to the peer: its round trip, how much may be on its way, how fast, in packets how large.

mod bbr;
mod congestion;
mod cubic;
mod mtu;
mod pacer;
mod rate;
mod round_trip;
mod validation;

use crate::{
    config::Congestion,
    event::PathStatus,
    limits::{DATAGRAM_BYTES_MAX, DATAGRAM_BYTES_MIN},
    recovery::Sent,
};
use congestion::{Acked, AckedAll, Controller};
use mtu::Mtu;
use pacer::Pacer;
pub(crate) use rate::Departure;
use rate::Meter;
pub(crate) use round_trip::RoundTrip;
use std::net::SocketAddr;
pub(crate) use validation::{Aside, Validation};

/// What an acknowledgement, or a turn of loss detection, has brought so far.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    in_flight_before: u64,
    is_limited_by_owner: bool,
    acked_bytes: u64,
    rtt_ns: Option<u64>,
    /// Packets lost that count, and when the newest of them was sent.
    lost: u64,
    newest_lost_ns: u64,
    /// One of those lost was larger than what every path carries.
    is_larger_lost: bool,
}

/// What is known of the path that a session's packets take.
#[derive(Debug)]
pub(crate) struct Path {
    round_trip: RoundTrip,
    controller: Controller,
    pacer: Pacer,
    meter: Meter,
    mtu: Mtu,
    /// Packets with lower sequences took another path: they say nothing of this one.
    first_sequence: u64,
    in_flight: u64,
    /// Bytes a second that pacing lets out.
    rate: u64,
    /// Nothing was acknowledged since a probe time-out: what goes out now must get through.
    is_silent: bool,
    turn: Turn,
    /// When the last reduction was, and how many of those that were lost since have not arrived.
    reduced_ns: u64,
    reduced_lost: u64,
    /// When the path's last black hole was seen.
    hole_ns: u64,
    lost_packets: u64,
    spurious_losses: u64,
}

impl Path {
    /// A path of which nothing is known: it carries what every path does. Its largest datagram is
    /// `most` at most; packets from `first_sequence` on take it.
    pub(crate) fn new(
        now_ns: u64,
        congestion: Congestion,
        most: usize,
        first_sequence: u64,
    ) -> Self {
        let mtu = Mtu::new(most.min(DATAGRAM_BYTES_MAX));
        let mut path = Self {
            round_trip: RoundTrip::new(),
            controller: Controller::new(congestion, mtu.bytes() as u64),
            pacer: Pacer::new(now_ns),
            meter: Meter::new(),
            mtu,
            first_sequence,
            in_flight: 0,
            rate: 0,
            is_silent: false,
            turn: Turn::default(),
            reduced_ns: 0,
            reduced_lost: 0,
            hole_ns: 0,
            lost_packets: 0,
            spurious_losses: 0,
        };
        path.set_rate();
        path
    }

    /// Largest datagram that may be sent now, mesh header and tag included; between
    /// [`DATAGRAM_BYTES_MIN`] and [`DATAGRAM_BYTES_MAX`], and another from call to call.
    pub(crate) const fn datagram_bytes(&self) -> usize {
        if self.is_silent {
            DATAGRAM_BYTES_MIN
        } else {
            self.mtu.bytes()
        }
    }

    pub(crate) const fn round_trip(&self) -> &RoundTrip {
        &self.round_trip
    }

    fn segment(&self) -> u64 {
        self.mtu.bytes() as u64
    }

    fn set_rate(&mut self) {
        self.rate = self.controller.rate(self.round_trip.smoothed_ns());
    }

    /// Whether a full packet that counts may go out now: the window has room, and pacing lets it.
    pub(crate) fn may_send(&mut self, now_ns: u64) -> bool {
        let full = self.datagram_bytes() as u64;
        let has_room = self.in_flight == 0 || self.in_flight + full <= self.controller.window();
        has_room && self.pacer.has_room(now_ns, self.rate, full)
    }

    /// When a packet that pacing held back may go out.
    pub(crate) const fn due_ns(&self) -> Option<u64> {
        self.pacer.due_ns()
    }

    /// The time of [`Path::due_ns`] may have come.
    pub(crate) fn release(&mut self, now_ns: u64) {
        self.pacer.release(now_ns);
    }

    /// Nothing more is sent now, with `held_bytes` waiting or on their way: where the window has room
    /// and nothing waits, the owner limits the rate.
    pub(crate) fn note_idle(&mut self, held_bytes: u64) {
        let is_free = self.in_flight + self.segment() <= self.controller.window();
        if is_free && held_bytes <= self.in_flight && self.pacer.due_ns().is_none() {
            self.meter.note_idle(self.in_flight);
        }
    }

    /// Notes a packet that goes out. `window_bytes` is 0 for one that does not count.
    pub(crate) fn on_sent(&mut self, now_ns: u64, bytes: usize, window_bytes: u64) -> Departure {
        if bytes >= self.mtu.bytes() {
            self.mtu.want();
        }
        if window_bytes == 0 {
            return Departure::default();
        }
        if self.in_flight == 0 && self.meter.is_limited_by_owner() {
            self.controller.on_restart();
        }
        let departure = self.meter.on_sent(now_ns, self.in_flight);
        self.in_flight += window_bytes;
        self.pacer.on_sent(window_bytes);
        departure
    }

    /// Larger packets would be of use, also where those that are sent are not full.
    pub(crate) const fn want_larger(&mut self) {
        self.mtu.want();
    }

    /// Bytes of the probe of a larger packet size that should go out now.
    pub(crate) fn wants_mtu_probe(&mut self, now_ns: u64) -> Option<usize> {
        if self.is_silent {
            return None;
        }
        self.mtu.wants_probe(now_ns)
    }

    pub(crate) fn on_mtu_probe_sent(&mut self, sequence: u64, bytes: usize) {
        self.mtu.on_probe_sent(sequence, bytes);
    }

    /// The first link takes datagrams of `most` bytes at most.
    pub(crate) fn limit(&mut self, most: usize) {
        self.mtu.limit(most);
    }

    pub(crate) fn on_ack_begin(&mut self) {
        self.turn = Turn {
            in_flight_before: self.in_flight,
            is_limited_by_owner: self.in_flight * 2 < self.controller.window(),
            ..Turn::default()
        };
    }

    /// A sample of the round trip: the newest packet of an acknowledgement.
    pub(crate) fn sample(&mut self, sent: &Sent, rtt_ns: u64, delay_us: u64) {
        if sent.sequence >= self.first_sequence {
            self.round_trip.sample(rtt_ns, delay_us);
            self.turn.rtt_ns = Some(rtt_ns.max(1));
        }
    }

    /// The round trip that the last acknowledgement measured, if it did.
    pub(crate) const fn sampled_ns(&self) -> Option<u64> {
        self.turn.rtt_ns
    }

    pub(crate) fn on_acked(&mut self, now_ns: u64, sent: &Sent) {
        if sent.sequence < self.first_sequence {
            return;
        }
        if self.mtu.on_acked(sent.sequence, sent.bytes) {
            self.controller.set_segment(self.segment());
        }
        if sent.window_bytes == 0 {
            return;
        }
        self.in_flight -= sent.window_bytes;
        self.turn.acked_bytes += sent.window_bytes;
        self.meter
            .on_acked(now_ns, sent.time_ns, sent.window_bytes, sent.departure);
        self.controller.on_acked(&Acked {
            now_ns,
            sent_ns: sent.time_ns,
            bytes: sent.window_bytes,
            segment: self.mtu.bytes() as u64,
            rtt_ns: self.round_trip.smoothed_ns(),
            is_limited_by_owner: self.turn.is_limited_by_owner,
        });
    }

    /// The acknowledgement was taken in, and what it made lost was told.
    pub(crate) fn on_ack_end(&mut self, now_ns: u64) {
        let least_ns = self.round_trip.least_ns().unwrap_or(0);
        let all = AckedAll {
            now_ns,
            bytes: self.turn.acked_bytes,
            in_flight_before: self.turn.in_flight_before,
            rtt_ns: self.turn.rtt_ns,
            rate: self.meter.take_sample(least_ns),
            delivered: self.meter.delivered(),
        };
        if all.bytes > 0 {
            self.controller.on_ack_end(&all, self.in_flight);
            if self.controller.is_limiting() {
                self.meter.note_idle(self.in_flight);
            }
        }
        self.set_rate();
    }

    pub(crate) fn on_lost(&mut self, sent: &Sent) {
        if sent.sequence < self.first_sequence || self.mtu.on_lost(sent.sequence) {
            return;
        }
        self.lost_packets += 1;
        // What was sent before a black hole was seen tells nothing of the size after it.
        self.turn.is_larger_lost |= sent.bytes > DATAGRAM_BYTES_MIN && sent.time_ns >= self.hole_ns;
        if sent.window_bytes > 0 {
            self.in_flight -= sent.window_bytes;
            self.turn.lost += 1;
            self.turn.newest_lost_ns = self.turn.newest_lost_ns.max(sent.time_ns);
        }
    }

    /// All that is lost at one time was told.
    pub(crate) fn on_lost_end(&mut self, now_ns: u64, is_persistent: bool) {
        let Turn {
            lost,
            newest_lost_ns,
            is_larger_lost,
            ..
        } = self.turn;
        (self.turn.lost, self.turn.is_larger_lost) = (0, false);
        if is_larger_lost && self.mtu.on_larger_lost() {
            self.hole_ns = now_ns;
            self.controller.set_segment(self.segment());
        }
        let segment = self.segment();
        if lost > 0 {
            let is_answered =
                self.controller
                    .on_lost(now_ns, newest_lost_ns, segment, self.in_flight);
            if is_answered {
                self.reduced_ns = now_ns;
                self.reduced_lost = lost;
            } else {
                self.reduced_lost += lost;
            }
        }
        if is_persistent && lost > 0 {
            self.controller.on_persistent(segment);
        }
        self.set_rate();
    }

    /// A packet that was declared lost at `lost_ns` has arrived.
    pub(crate) fn on_spurious(&mut self, sent: &Sent, lost_ns: u64) {
        if sent.sequence < self.first_sequence {
            return;
        }
        self.spurious_losses += 1;
        if sent.window_bytes == 0 || lost_ns < self.reduced_ns || self.reduced_lost == 0 {
            return;
        }
        self.reduced_lost -= 1;
        if self.reduced_lost == 0 {
            self.controller.undo();
        }
    }

    /// A probe time-out: nobody answers.
    pub(crate) const fn set_silent(&mut self) {
        self.is_silent = true;
    }

    pub(crate) const fn set_answering(&mut self) {
        self.is_silent = false;
    }

    pub(crate) fn status(&self, address: Option<SocketAddr>) -> PathStatus {
        PathStatus {
            address,
            rtt_us: self
                .round_trip
                .least_ns()
                .map(|_| self.round_trip.smoothed_ns() / 1_000),
            rtt_least_us: self.round_trip.least_ns().map(|ns| ns / 1_000),
            rtt_variation_us: self.round_trip.variation_ns() / 1_000,
            datagram_bytes: self.datagram_bytes(),
            congestion: self.controller.which(),
            phase: self.controller.phase(),
            window_bytes: self.controller.window(),
            in_flight_bytes: self.in_flight,
            pacing_bytes_per_second: self.rate,
            lost_packets: self.lost_packets,
            spurious_losses: self.spurious_losses,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::BLACK_HOLE_LOSSES;
    use crate::recovery::Content;

    const LARGE: usize = 8_972;

    fn sent(sequence: u64, time_ns: u64) -> Sent {
        Sent {
            sequence,
            time_ns,
            bytes: LARGE,
            window_bytes: 0,
            departure: Departure::default(),
            content: Content::default(),
        }
    }

    /// Probes of every size up to `most` are acknowledged.
    fn search(path: &mut Path, now_ns: u64, most: usize) {
        path.want_larger();
        let mut sequence = 1_000_000;
        while let Some(bytes) = path.wants_mtu_probe(now_ns) {
            sequence += 1;
            path.on_mtu_probe_sent(sequence, bytes);
            let probe = Sent {
                bytes,
                ..sent(sequence, now_ns)
            };
            match bytes <= most {
                true => path.on_acked(now_ns, &probe),
                false => path.on_lost(&probe),
            }
        }
    }

    /// Each of some packets is lost at a time of its own.
    fn lose(path: &mut Path, now_ns: u64, sent_ns: u64) {
        for sequence in 0..u64::from(BLACK_HOLE_LOSSES) {
            path.on_lost(&sent(sequence, sent_ns));
            path.on_lost_end(now_ns + sequence, false);
        }
    }

    #[test]
    fn late_losses_of_before_a_black_hole_count_nothing_against_the_size_after_it() {
        let mut path = Path::new(0, Congestion::Cubic, LARGE, 0);
        search(&mut path, 1, usize::MAX);
        assert_eq!(path.datagram_bytes(), LARGE);
        lose(&mut path, 100, 50);
        assert_eq!(path.datagram_bytes(), DATAGRAM_BYTES_MIN);
        search(&mut path, 200, 1_472);
        let found = path.datagram_bytes();
        assert!(found > 1_372, "{found}");
        // Some that were on their way when it was seen are told to be lost one by one now.
        lose(&mut path, 300, 99);
        assert_eq!(path.datagram_bytes(), found);
        lose(&mut path, 400, 250);
        assert_eq!(
            path.datagram_bytes(),
            DATAGRAM_BYTES_MIN,
            "those are its own"
        );
    }
}
