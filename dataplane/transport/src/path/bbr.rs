//! BBR, version 1 (draft-cardwell-iccrg-bbr-congestion-control-00).
//!
//! The path is modelled by the rate that it delivers at and its least round trip; pacing follows the rate,
//! and the window is twice their product. A loss bounds the window for a round trip, no more: a path that
//! loses packets at random keeps its rate.

use super::congestion::AckedAll;
use crate::limits::{WINDOW_BYTES_MAX, WINDOW_SEGMENTS_INITIAL};

/// 2 / ln 2, in thousandths: doubles the rate each round trip.
const HIGH_GAIN: u64 = 2_885;
const DRAIN_GAIN: u64 = 1_000_000 / HIGH_GAIN;
/// One round trip each: above, below, then at the rate.
const CYCLE: [u64; 8] = [1_250, 750, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000];
const WINDOW_GAIN: u64 = 2_000;
/// Round trips that a rate stays known.
const RATE_ROUNDS: u64 = 10;
/// Round trips without a quarter more that show the pipe full.
const FULL_ROUNDS: u32 = 3;
const LEAST_RTT_NS: u64 = 10_000_000_000;
const PROBE_RTT_NS: u64 = 200_000_000;
const WINDOW_SEGMENTS_LEAST: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Startup,
    Drain,
    ProbeRate,
    ProbeRtt,
}

/// The greatest of the last rounds: the best, the best after it, and the best after that (Nichols).
#[derive(Clone, Copy, Debug, Default)]
struct Greatest([(u64, u64); 3]);

impl Greatest {
    const fn best(&self) -> u64 {
        self.0[0].1
    }

    fn add(&mut self, round: u64, value: u64) {
        let now = (round, value);
        let [first, second, third] = &mut self.0;
        if value >= first.1 || round.saturating_sub(third.0) > RATE_ROUNDS {
            self.0 = [now; 3];
            return;
        }
        if value >= second.1 {
            (*second, *third) = (now, now);
        } else if value >= third.1 {
            *third = now;
        }
        if round.saturating_sub(first.0) > RATE_ROUNDS {
            self.0 = [self.0[1], self.0[2], now];
            if round.saturating_sub(self.0[0].0) > RATE_ROUNDS {
                self.0 = [self.0[1], now, now];
            }
        } else if second.0 == first.0 && round - first.0 > RATE_ROUNDS / 4 {
            (*second, *third) = (now, now);
        } else if third.0 == second.0 && round - first.0 > RATE_ROUNDS / 2 {
            *third = now;
        }
    }
}

/// State of one path.
#[derive(Debug)]
pub(crate) struct Bbr {
    phase: Phase,
    segment: u64,
    window: u64,
    /// The window before a loss or before the round trip is probed for.
    prior_window: u64,
    rates: Greatest,
    pacing_gain: u64,
    window_gain: u64,
    round: u64,
    /// A round ends once a packet is acknowledged that was sent after this much was delivered.
    round_end: u64,
    is_round_start: bool,
    full_rate: u64,
    full_rounds: u32,
    cycle: usize,
    cycle_since_ns: u64,
    least_rtt_ns: Option<u64>,
    least_rtt_since_ns: u64,
    probe_rtt_until_ns: Option<u64>,
    probe_rtt_round: u64,
    /// Losses are answered until a packet sent after this is acknowledged.
    recovery_since_ns: Option<u64>,
    recovery_round: u64,
    lost_since_ack: u64,
    /// Nothing was on its way, for the owner sent nothing: the pipe was empty without any probing.
    is_idle_restart: bool,
}

impl Bbr {
    pub(super) fn new(segment: u64) -> Self {
        Self {
            phase: Phase::Startup,
            segment,
            window: WINDOW_SEGMENTS_INITIAL * segment,
            prior_window: 0,
            rates: Greatest::default(),
            pacing_gain: HIGH_GAIN,
            window_gain: HIGH_GAIN,
            round: 0,
            round_end: 0,
            is_round_start: false,
            full_rate: 0,
            full_rounds: 0,
            cycle: 0,
            cycle_since_ns: 0,
            least_rtt_ns: None,
            least_rtt_since_ns: 0,
            probe_rtt_until_ns: None,
            probe_rtt_round: 0,
            recovery_since_ns: None,
            recovery_round: 0,
            lost_since_ack: 0,
            is_idle_restart: false,
        }
    }

    pub(super) const fn window(&self) -> u64 {
        self.window
    }

    /// Bytes a second; none before the first sample.
    pub(super) const fn rate(&self) -> Option<u64> {
        match self.rates.best() {
            0 => None,
            rate => Some(rate.saturating_mul(self.pacing_gain) / 1_000),
        }
    }

    pub(super) const fn phase(&self) -> &'static str {
        match self.phase {
            Phase::Startup => "startup",
            Phase::Drain => "drain",
            Phase::ProbeRate => "probe rate",
            Phase::ProbeRtt => "probe rtt",
        }
    }

    /// Whether little is sent so that the pipe empties: what it delivers then tells no rate (4.3.5).
    pub(super) fn is_probing_round_trip(&self) -> bool {
        self.phase == Phase::ProbeRtt
    }

    const fn least_window(&self) -> u64 {
        WINDOW_SEGMENTS_LEAST * self.segment
    }

    pub(super) fn set_segment(&mut self, segment: u64) {
        self.segment = segment;
        self.window = self.window.max(self.least_window());
    }

    /// Bytes that fill the path, times `gain` thousandths; three bursts more for what the ends batch.
    fn target(&self, gain: u64) -> u64 {
        let Some(least_rtt_ns) = self.least_rtt_ns.filter(|_| self.rates.best() > 0) else {
            return WINDOW_SEGMENTS_INITIAL * self.segment;
        };
        let product = u128::from(self.rates.best()) * u128::from(least_rtt_ns) / 1_000_000_000;
        let bytes = product * u128::from(gain) / 1_000;
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        bytes.saturating_add(3 * self.segment)
    }

    pub(super) fn on_ack(&mut self, all: &AckedAll, in_flight: u64) {
        self.update_round(all);
        let is_full = self.full_rounds >= FULL_ROUNDS;
        self.check_full(all);
        self.update_cycle(all, is_full);
        self.check_drain(all.now_ns, in_flight);
        self.update_least_rtt(all, in_flight);
        self.update_window(all, in_flight);
        self.lost_since_ack = 0;
        self.is_idle_restart = false;
    }

    /// The first packet after the owner sent nothing (4.3.4.4).
    pub(super) const fn on_restart(&mut self) {
        self.is_idle_restart = true;
    }

    /// Rounds, and the rate (4.1.1).
    fn update_round(&mut self, all: &AckedAll) {
        self.is_round_start = false;
        let Some(sample) = all.rate else { return };
        if sample.delivered_before >= self.round_end {
            self.round_end = all.delivered;
            self.round += 1;
            self.is_round_start = true;
        }
        if sample.rate >= self.rates.best() || !sample.is_limited_by_owner {
            self.rates.add(self.round, sample.rate);
        }
    }

    /// Whether start-up has filled the pipe (4.3.2.2).
    fn check_full(&mut self, all: &AckedAll) {
        let is_limited = all.rate.is_none_or(|sample| sample.is_limited_by_owner);
        if self.full_rounds >= FULL_ROUNDS || !self.is_round_start || is_limited {
            return;
        }
        if self.rates.best() >= self.full_rate.saturating_mul(5) / 4 {
            self.full_rate = self.rates.best();
            self.full_rounds = 0;
        } else {
            self.full_rounds += 1;
        }
    }

    fn check_drain(&mut self, now_ns: u64, in_flight: u64) {
        if self.phase == Phase::Startup && self.full_rounds >= FULL_ROUNDS {
            self.phase = Phase::Drain;
            self.pacing_gain = DRAIN_GAIN;
            self.window_gain = HIGH_GAIN;
        }
        if self.phase == Phase::Drain && in_flight <= self.target(1_000) {
            self.enter_probe_rate(now_ns);
        }
    }

    fn enter_probe_rate(&mut self, now_ns: u64) {
        self.phase = Phase::ProbeRate;
        self.window_gain = WINDOW_GAIN;
        // Any but the one below the rate (4.3.4.2): sessions start at times of their own.
        self.cycle = 2;
        self.cycle_since_ns = now_ns;
        self.pacing_gain = CYCLE[self.cycle];
    }

    /// The cycle of gains (4.3.4.3).
    fn update_cycle(&mut self, all: &AckedAll, is_full: bool) {
        if self.phase != Phase::ProbeRate || !is_full {
            return;
        }
        let least_rtt_ns = self.least_rtt_ns.unwrap_or(u64::MAX);
        let is_over = all.now_ns.saturating_sub(self.cycle_since_ns) > least_rtt_ns;
        let is_next = match self.pacing_gain {
            1_000 => is_over,
            gain if gain > 1_000 => {
                is_over && (self.lost_since_ack > 0 || all.in_flight_before >= self.target(gain))
            }
            _ => is_over || all.in_flight_before <= self.target(1_000),
        };
        if is_next {
            self.cycle = (self.cycle + 1) % CYCLE.len();
            self.cycle_since_ns = all.now_ns;
            self.pacing_gain = CYCLE[self.cycle];
        }
    }

    /// The least round trip, and looking for it with an empty pipe (4.1.2, 4.3.5).
    fn update_least_rtt(&mut self, all: &AckedAll, in_flight: u64) {
        let is_stale = all.now_ns.saturating_sub(self.least_rtt_since_ns) > LEAST_RTT_NS;
        if let Some(rtt_ns) = all.rtt_ns
            && (is_stale || self.least_rtt_ns.is_none_or(|least_ns| rtt_ns <= least_ns))
        {
            self.least_rtt_ns = Some(rtt_ns);
            self.least_rtt_since_ns = all.now_ns;
        }
        let is_due = is_stale && !self.is_idle_restart && self.least_rtt_ns.is_some();
        if is_due && self.phase != Phase::ProbeRtt {
            self.phase = Phase::ProbeRtt;
            self.pacing_gain = 1_000;
            self.window_gain = 1_000;
            self.prior_window = self.prior_window.max(self.window);
            self.probe_rtt_until_ns = None;
        }
        if self.phase != Phase::ProbeRtt {
            return;
        }
        match self.probe_rtt_until_ns {
            None if in_flight <= self.least_window() => {
                self.probe_rtt_until_ns = Some(all.now_ns + PROBE_RTT_NS);
                self.probe_rtt_round = self.round + 1;
            }
            Some(until_ns) if all.now_ns > until_ns && self.round >= self.probe_rtt_round => {
                self.least_rtt_since_ns = all.now_ns;
                self.phase = Phase::ProbeRate;
                self.restore();
                if self.full_rounds >= FULL_ROUNDS {
                    self.enter_probe_rate(all.now_ns);
                } else {
                    self.phase = Phase::Startup;
                    self.pacing_gain = HIGH_GAIN;
                    self.window_gain = HIGH_GAIN;
                }
            }
            _ => {}
        }
    }

    /// 4.2.3.4 to 4.2.3.6.
    fn update_window(&mut self, all: &AckedAll, in_flight: u64) {
        if self.recovery_since_ns.is_some() && self.round > self.recovery_round {
            self.recovery_since_ns = None;
            self.restore();
        }
        let target = self.target(self.window_gain);
        if self.recovery_since_ns.is_some() {
            // One packet out for one that arrived.
            self.window = self.window.max(in_flight + all.bytes);
        } else if self.full_rounds >= FULL_ROUNDS {
            self.window = (self.window + all.bytes).min(target);
        } else if self.window < target || all.delivered < WINDOW_SEGMENTS_INITIAL * self.segment {
            self.window += all.bytes;
        }
        let least = self.least_window();
        self.window = self.window.clamp(least, WINDOW_BYTES_MAX.max(least));
        if self.phase == Phase::ProbeRtt {
            self.window = self.window.min(least);
        }
    }

    /// Takes the window up again that was before a loss, or before the round trip was probed for. It is
    /// kept until neither goes on.
    fn restore(&mut self) {
        self.window = self.window.max(self.prior_window);
        if self.phase != Phase::ProbeRtt && self.recovery_since_ns.is_none() {
            self.prior_window = 0;
        }
    }

    pub(super) fn on_lost(&mut self, now_ns: u64, sent_ns: u64, in_flight: u64) -> bool {
        self.lost_since_ack += 1;
        if self
            .recovery_since_ns
            .is_some_and(|since_ns| sent_ns <= since_ns)
        {
            return false;
        }
        let is_first = self.recovery_since_ns.is_none();
        self.recovery_since_ns = Some(now_ns);
        if is_first {
            self.prior_window = self.prior_window.max(self.window);
            self.window = in_flight.max(self.least_window());
            self.recovery_round = self.round;
        }
        is_first
    }

    pub(super) fn on_persistent(&mut self, segment: u64) {
        self.prior_window = 0;
        self.recovery_since_ns = None;
        self.window = WINDOW_SEGMENTS_LEAST * segment;
    }

    pub(super) fn undo(&mut self) {
        if self.recovery_since_ns.take().is_some() {
            self.restore();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_of_ten_rounds_is_known_and_no_older_one() {
        let mut greatest = Greatest::default();
        let values: Vec<u64> = (0..200u64).map(|n| (n * 7_919) % 1_000).collect();
        for (round, &value) in values.iter().enumerate() {
            greatest.add(round as u64, value);
            let exact = |rounds: usize| {
                let from = round.saturating_sub(rounds);
                values[from..=round].iter().copied().max().unwrap()
            };
            let best = greatest.best();
            assert!(
                best >= exact(2) && best <= exact(10),
                "round {round}: {best}"
            );
        }
    }

    const MS: u64 = 1_000_000;
    const SEGMENT: u64 = 1_000;
    /// What the path delivers in a second, and in a round trip.
    const RATE: u64 = 100_000_000;
    const RTT_NS: u64 = 20 * MS;
    const PIPE: u64 = RATE / 50;

    /// A controller at work, told of one round trip's packets at a time.
    struct Line {
        bbr: Bbr,
        now_ns: u64,
        delivered: u64,
    }

    impl Line {
        /// One whose pipe is full.
        fn full() -> Self {
            let mut line = Self {
                bbr: Bbr::new(SEGMENT),
                now_ns: 0,
                delivered: 0,
            };
            for _ in 0..100 {
                line.round();
            }
            assert_eq!(line.bbr.phase, Phase::ProbeRate);
            assert!(line.bbr.window() > PIPE, "{}", line.bbr.window());
            line
        }

        fn round(&mut self) {
            self.now_ns += RTT_NS;
            let bytes = self.bbr.window().min(PIPE);
            let rate = super::super::rate::RateSample {
                rate: bytes * 50,
                delivered_before: self.delivered,
                is_limited_by_owner: self.bbr.is_probing_round_trip(),
            };
            self.delivered += bytes;
            let all = AckedAll {
                now_ns: self.now_ns,
                bytes,
                in_flight_before: bytes,
                // Never as short as the first.
                rtt_ns: Some(RTT_NS + u64::from(self.delivered > bytes)),
                rate: Some(rate),
                delivered: self.delivered,
            };
            self.bbr.on_ack(&all, 0);
        }
    }

    /// After ten seconds without a shorter round trip the pipe is emptied to measure it; a pause has
    /// emptied it already.
    #[test]
    fn a_pause_is_no_reason_to_pause() {
        for is_idle in [false, true] {
            let mut line = Line::full();
            line.now_ns += 2 * LEAST_RTT_NS;
            if is_idle {
                line.bbr.on_restart();
            }
            line.round();
            assert_eq!(line.bbr.phase == Phase::ProbeRtt, !is_idle);
            assert_eq!(line.bbr.window() > PIPE, is_idle);
            line.round();
            assert_eq!(line.bbr.phase == Phase::ProbeRtt, !is_idle);
        }
    }

    /// Recovery from a loss that ends while the round trip is probed for takes nothing from what follows,
    /// nor does probing that ends during recovery.
    #[test]
    fn the_window_before_outlives_what_ends_first() {
        for is_lost_before in [true, false] {
            let mut line = Line::full();
            let before = line.bbr.window();
            line.now_ns += 2 * LEAST_RTT_NS;
            if is_lost_before {
                let now_ns = line.now_ns;
                assert!(line.bbr.on_lost(now_ns, now_ns, PIPE));
            }
            line.round();
            assert_eq!(line.bbr.phase, Phase::ProbeRtt);
            while line.bbr.phase == Phase::ProbeRtt {
                assert!(line.bbr.window() <= 4 * SEGMENT);
                line.round();
                if !is_lost_before && line.bbr.phase == Phase::ProbeRtt {
                    let now_ns = line.now_ns;
                    line.bbr.on_lost(now_ns, now_ns, SEGMENT);
                }
            }
            for _ in 0..4 {
                line.round();
            }
            assert_eq!(line.bbr.recovery_since_ns, None);
            assert!(
                line.bbr.window() >= before,
                "{} of {before}",
                line.bbr.window()
            );
        }
    }
}
