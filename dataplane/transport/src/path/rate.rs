//! How fast the path delivers: one sample an acknowledgement (draft-cheng-iccrg-delivery-rate-estimation).

/// What is noted with a packet as it goes out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Departure {
    delivered: u64,
    delivered_ns: u64,
    first_sent_ns: u64,
    is_limited_by_owner: bool,
}

/// A rate that the path was seen to deliver at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RateSample {
    /// Bytes a second.
    pub(crate) rate: u64,
    /// What had been delivered when the newest packet of the sample was sent.
    pub(crate) delivered_before: u64,
    pub(crate) is_limited_by_owner: bool,
}

/// Counts what is delivered.
#[derive(Debug)]
pub(crate) struct Meter {
    delivered: u64,
    delivered_ns: u64,
    first_sent_ns: u64,
    /// Until this much is delivered the owner gave too little to send; 0 where it gave enough.
    limited_until: u64,
    /// Of the newest packet that the acknowledgement in hand acknowledges.
    newest: Option<(Departure, u64)>,
}

impl Meter {
    pub(super) const fn new() -> Self {
        Self {
            delivered: 0,
            delivered_ns: 0,
            first_sent_ns: 0,
            limited_until: 0,
            newest: None,
        }
    }

    /// Bytes delivered.
    pub(super) const fn delivered(&self) -> u64 {
        self.delivered
    }

    pub(super) fn on_sent(&mut self, now_ns: u64, in_flight: u64) -> Departure {
        if in_flight == 0 {
            self.first_sent_ns = now_ns;
            self.delivered_ns = now_ns;
        }
        Departure {
            delivered: self.delivered,
            delivered_ns: self.delivered_ns,
            first_sent_ns: self.first_sent_ns,
            is_limited_by_owner: self.is_limited_by_owner(),
        }
    }

    /// Whether the owner gave too little to send.
    pub(super) const fn is_limited_by_owner(&self) -> bool {
        self.limited_until > 0
    }

    /// There was room to send, and nothing to send.
    pub(super) fn note_idle(&mut self, in_flight: u64) {
        self.limited_until = (self.delivered + in_flight).max(1);
    }

    pub(super) fn on_acked(&mut self, now_ns: u64, sent_ns: u64, bytes: u64, left: Departure) {
        self.delivered += bytes;
        self.delivered_ns = now_ns;
        let is_newer = self
            .newest
            .is_none_or(|(newest, _)| left.delivered >= newest.delivered);
        if is_newer {
            self.newest = Some((left, sent_ns));
            self.first_sent_ns = sent_ns;
        }
    }

    /// The sample of the acknowledgement that was taken in; none where the time was too short to tell.
    pub(super) fn take_sample(&mut self, least_rtt_ns: u64) -> Option<RateSample> {
        if self.limited_until > 0 && self.delivered > self.limited_until {
            self.limited_until = 0;
        }
        let (left, sent_ns) = self.newest.take()?;
        let sending_ns = sent_ns.saturating_sub(left.first_sent_ns);
        let acking_ns = self.delivered_ns.saturating_sub(left.delivered_ns);
        let interval_ns = sending_ns.max(acking_ns);
        if interval_ns < least_rtt_ns.max(1) {
            return None;
        }
        let bytes = u128::from(self.delivered - left.delivered) * 1_000_000_000;
        Some(RateSample {
            rate: u64::try_from(bytes / u128::from(interval_ns)).unwrap_or(u64::MAX),
            delivered_before: left.delivered,
            is_limited_by_owner: left.is_limited_by_owner,
        })
    }
}
