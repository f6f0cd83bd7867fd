//! CUBIC (RFC 9438).
//!
//! After a loss the window falls to 0.7 of what it was, and grows again along a cubic of the time since
//! then, flat where the last loss was; where the path is short, as Reno would (4.3). Windows are in
//! bytes, a segment is the path's largest datagram.

use super::{Acked, congestion::whole};
use crate::limits::{WINDOW_BYTES_MAX, WINDOW_SEGMENTS_INITIAL, WINDOW_SEGMENTS_MIN};

/// RFC 9438, 4.6.
const BETA: f64 = 0.7;
/// In segments per second cubed (RFC 9438, 5).
const C: f64 = 0.4;
/// RFC 9438, 4.3.
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

/// What a reduction changed, so that it can be undone (RFC 9438, 4.9).
#[derive(Clone, Copy, Debug)]
struct Before {
    window: f64,
    threshold: f64,
    most: f64,
    prior: f64,
    estimate: f64,
    epoch_ns: u64,
    k_s: f64,
}

/// State of one path.
#[derive(Debug)]
pub(crate) struct Cubic {
    window: f64,
    /// Where slow start ends.
    threshold: f64,
    /// The window before the last reduction, less where others need room.
    most: f64,
    /// The window before the last reduction.
    prior: f64,
    /// What Reno would have.
    estimate: f64,
    /// When the last reduction was.
    epoch_ns: u64,
    /// Seconds from there until the window is at `most` again.
    k_s: f64,
    /// When the window was last in use: time without use does not count.
    used_ns: u64,
    /// Packets sent before belong to the loss that was answered.
    recovery_since_ns: Option<u64>,
    before: Option<Before>,
}

impl Cubic {
    #[allow(clippy::cast_precision_loss)] // bytes of one window
    pub(super) fn new(segment: u64) -> Self {
        let window = (WINDOW_SEGMENTS_INITIAL * segment) as f64;
        Self {
            window,
            threshold: f64::INFINITY,
            most: 0.0,
            prior: 0.0,
            estimate: 0.0,
            epoch_ns: 0,
            k_s: 0.0,
            used_ns: 0,
            recovery_since_ns: None,
            before: None,
        }
    }

    pub(super) fn window(&self) -> u64 {
        whole(self.window)
    }

    pub(super) fn is_slow_start(&self) -> bool {
        self.window < self.threshold
    }

    pub(super) fn is_recovering(&self, sent_ns: u64) -> bool {
        self.recovery_since_ns
            .is_some_and(|since_ns| sent_ns <= since_ns)
    }

    /// A segment of another size: the least window follows.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn set_segment(&mut self, segment: u64) {
        self.window = self.window.max((WINDOW_SEGMENTS_MIN * segment) as f64);
    }

    /// RFC 9438, 4.2 to 4.5.
    #[allow(clippy::cast_precision_loss)] // bytes and nanoseconds far below 2^53
    pub(super) fn on_acked(&mut self, acked: &Acked) {
        if self.is_recovering(acked.sent_ns) {
            return;
        }
        if acked.is_limited_by_owner {
            // RFC 9438, 5.8: what is not used does not grow, nor does its time pass.
            return;
        }
        let idle_ns = acked.now_ns.saturating_sub(self.used_ns);
        if self.used_ns > 0 && idle_ns > 2 * acked.rtt_ns {
            self.epoch_ns = self.epoch_ns.saturating_add(idle_ns).min(acked.now_ns);
        }
        self.used_ns = acked.now_ns;
        let bytes = acked.bytes as f64;
        if self.is_slow_start() {
            self.window = (self.window + bytes).min(WINDOW_BYTES_MAX as f64);
            return;
        }
        let segment = acked.segment as f64;
        let share = bytes / self.window;
        let alpha = if self.estimate >= self.prior {
            1.0
        } else {
            ALPHA
        };
        self.estimate += alpha * segment * share;
        let t_s = acked.now_ns.saturating_sub(self.epoch_ns) as f64 / 1e9;
        let cubic = |t_s: f64| C * segment * (t_s - self.k_s).powi(3) + self.most;
        if cubic(t_s) < self.estimate {
            self.window = self.window.max(self.estimate);
        } else {
            let target = cubic(t_s + acked.rtt_ns as f64 / 1e9);
            let target = target.clamp(self.window, 1.5 * self.window);
            self.window += (target - self.window) * share;
        }
        self.window = self.window.min(WINDOW_BYTES_MAX as f64);
    }

    /// A loss: once a round trip (RFC 9438, 4.6 and 4.7).
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn on_congestion(&mut self, now_ns: u64, segment: u64) {
        let segment = segment as f64;
        self.before = Some(Before {
            window: self.window,
            threshold: self.threshold,
            most: self.most,
            prior: self.prior,
            estimate: self.estimate,
            epoch_ns: self.epoch_ns,
            k_s: self.k_s,
        });
        self.most = if self.window < self.most {
            self.window * (1.0 + BETA) / 2.0
        } else {
            self.window
        };
        self.prior = self.window;
        self.window = (self.window * BETA).max(WINDOW_SEGMENTS_MIN as f64 * segment);
        self.threshold = self.window;
        self.estimate = self.window;
        self.epoch_ns = now_ns;
        self.used_ns = now_ns;
        self.k_s = ((self.most - self.window).max(0.0) / segment / C).cbrt();
        self.recovery_since_ns = Some(now_ns);
    }

    /// Nothing got through for long (RFC 9002, 7.6).
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn on_persistent(&mut self, segment: u64) {
        self.window = (WINDOW_SEGMENTS_MIN * segment) as f64;
        self.recovery_since_ns = None;
        self.before = None;
    }

    /// What was taken for lost has arrived: all is as before (RFC 9438, 4.9.2).
    pub(super) fn undo(&mut self) {
        let Some(before) = self.before.take() else {
            return;
        };
        self.window = self.window.max(before.window);
        self.threshold = before.threshold;
        self.most = before.most;
        self.prior = before.prior;
        self.estimate = before.estimate;
        self.epoch_ns = before.epoch_ns;
        self.k_s = before.k_s;
        self.recovery_since_ns = None;
    }
}

#[cfg(test)]
#[path = "../tests/cubic.rs"]
mod tests;
