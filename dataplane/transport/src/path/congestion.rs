//! Congestion control: which controller, and what each is told and asked.

use super::{bbr::Bbr, cubic::Cubic, rate::RateSample};
use crate::config::Congestion;

/// A packet that was acknowledged and counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acked {
    pub(crate) now_ns: u64,
    pub(crate) sent_ns: u64,
    pub(crate) bytes: u64,
    /// The path's largest datagram.
    pub(crate) segment: u64,
    pub(crate) rtt_ns: u64,
    /// The owner gave less to send than the window allowed.
    pub(crate) is_limited_by_owner: bool,
}

/// All that one acknowledgement acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AckedAll {
    pub(crate) now_ns: u64,
    pub(crate) bytes: u64,
    /// On their way before it came.
    pub(crate) in_flight_before: u64,
    /// The latest round trip, where this brought a sample.
    pub(crate) rtt_ns: Option<u64>,
    pub(crate) rate: Option<RateSample>,
    /// Bytes that were ever acknowledged.
    pub(crate) delivered: u64,
}

/// The controller of one path.
#[derive(Debug)]
pub(crate) enum Controller {
    Cubic(Cubic),
    /// Several times as large.
    Bbr(Box<Bbr>),
}

impl Controller {
    pub(super) fn new(which: Congestion, segment: u64) -> Self {
        match which {
            Congestion::Cubic => Self::Cubic(Cubic::new(segment)),
            Congestion::Bbr => Self::Bbr(Box::new(Bbr::new(segment))),
        }
    }

    pub(super) fn window(&self) -> u64 {
        match self {
            Self::Cubic(cubic) => cubic.window(),
            Self::Bbr(bbr) => bbr.window(),
        }
    }

    /// Bytes a second that pacing lets out.
    pub(super) fn rate(&self, smoothed_rtt_ns: u64) -> u64 {
        let per_rtt = |percent: u64| {
            let bytes = u128::from(self.window()) * u128::from(percent) * 10_000_000;
            u64::try_from(bytes / u128::from(smoothed_rtt_ns.max(1))).unwrap_or(u64::MAX)
        };
        match self {
            // Twice the window while it doubles, else a quarter more: pacing shall not be what limits.
            Self::Cubic(cubic) if cubic.is_slow_start() => per_rtt(200),
            Self::Cubic(_) => per_rtt(125),
            Self::Bbr(bbr) => bbr.rate().unwrap_or_else(|| per_rtt(289)),
        }
    }

    /// A word for people.
    pub(super) fn phase(&self) -> &'static str {
        match self {
            Self::Cubic(cubic) if cubic.is_slow_start() => "slow start",
            Self::Cubic(_) => "avoidance",
            Self::Bbr(bbr) => bbr.phase(),
        }
    }

    pub(super) const fn which(&self) -> Congestion {
        match self {
            Self::Cubic(_) => Congestion::Cubic,
            Self::Bbr(_) => Congestion::Bbr,
        }
    }

    pub(super) fn set_segment(&mut self, segment: u64) {
        match self {
            Self::Cubic(cubic) => cubic.set_segment(segment),
            Self::Bbr(bbr) => bbr.set_segment(segment),
        }
    }

    /// The first packet goes out after the owner sent nothing.
    pub(super) const fn on_restart(&mut self) {
        match self {
            Self::Cubic(_) => {}
            Self::Bbr(bbr) => bbr.on_restart(),
        }
    }

    /// Whether it sends less than the path carries, to learn something else.
    pub(super) fn is_limiting(&self) -> bool {
        match self {
            Self::Cubic(_) => false,
            Self::Bbr(bbr) => bbr.is_probing_round_trip(),
        }
    }

    /// One packet was acknowledged.
    pub(super) fn on_acked(&mut self, acked: &Acked) {
        match self {
            Self::Cubic(cubic) => cubic.on_acked(acked),
            Self::Bbr(_) => {}
        }
    }

    /// An acknowledgement was taken in as a whole, its packets and losses told before.
    pub(super) fn on_ack_end(&mut self, all: &AckedAll, in_flight: u64) {
        match self {
            Self::Cubic(_) => {}
            Self::Bbr(bbr) => bbr.on_ack(all, in_flight),
        }
    }

    /// Packets were lost, the newest of them sent at `sent_ns`. `true` when that was answered by a
    /// reduction, which happens once a round trip.
    pub(super) fn on_lost(
        &mut self,
        now_ns: u64,
        sent_ns: u64,
        segment: u64,
        in_flight: u64,
    ) -> bool {
        match self {
            Self::Cubic(cubic) if cubic.is_recovering(sent_ns) => false,
            Self::Cubic(cubic) => {
                cubic.on_congestion(now_ns, segment);
                true
            }
            Self::Bbr(bbr) => bbr.on_lost(now_ns, sent_ns, in_flight),
        }
    }

    /// Nothing got through for long.
    pub(super) fn on_persistent(&mut self, segment: u64) {
        match self {
            Self::Cubic(cubic) => cubic.on_persistent(segment),
            Self::Bbr(bbr) => bbr.on_persistent(segment),
        }
    }

    /// All that the last reduction answered has arrived after all.
    pub(super) fn undo(&mut self) {
        match self {
            Self::Cubic(cubic) => cubic.undo(),
            Self::Bbr(bbr) => bbr.undo(),
        }
    }
}

/// Whole bytes; out of range becomes the nearest that fits.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Rust's cast of a float saturates
pub(super) fn whole(bytes: f64) -> u64 {
    bytes as u64
}
