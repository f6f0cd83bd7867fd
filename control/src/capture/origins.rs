//! Drops summed up by origin, out of samples of them.
//!
//! Each sample stands for as many as it was picked out of, by chance, so the sum over an origin's samples is an
//! estimate of its drops; its error is that of a poll. Samples of origins beyond the places that there are, as a
//! flood of made-up ones gives, are counted together.

use super::line::{Counts, Packet, Place};
use serde::Serialize;
use std::collections::BTreeMap;

/// 95 of 100 estimates are within so many standard deviations.
const DEVIATIONS: f64 = 1.96;
/// Origins that have a place.
pub const ORIGINS_MAX: usize = 16_384;

/// Whose drops they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Who {
    /// Where they were dropped.
    pub place: Place,
    /// Why.
    pub reason: String,
    /// What headers call the entity, in hex; none of packets without a header.
    pub origin: Option<String>,
    /// What the configuration calls it.
    pub origin_name: Option<String>,
    /// The channel's name, or its hash in hex.
    pub channel: Option<String>,
}

/// How many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Share {
    /// Samples of it.
    pub samples: u64,
    /// How many packets they stand for.
    pub packets: u64,
    /// 95 of 100 times it is no further from the truth than this; 0 where every packet was seen. None where packets
    /// were missed: each CPU and worker has a rate of its own, so that those of a busy one stand for too few.
    pub error: Option<u64>,
}

/// How many of the packets of some time samples were picked out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Each one is a sample.
    All,
    /// Others were passed over or missed.
    Some {
        /// Packets in all,
        matched: u64,
        /// and those that nothing was drawn for.
        missed: u64,
    },
}

impl Seen {
    /// Of what was counted since `before`.
    #[must_use]
    pub fn between(before: &Counts, now: &Counts) -> Self {
        let missed = now.missed().saturating_sub(before.missed());
        match now.passed_over == before.passed_over && missed == 0 {
            true => Self::All,
            false => Self::Some {
                matched: now.matched.saturating_sub(before.matched),
                missed,
            },
        }
    }
}

/// Drops of some time.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    all: BTreeMap<Who, Share>,
    samples: u64,
    packets: u64,
    /// Samples of origins that had no place.
    pub without_place: u64,
}

impl Origins {
    /// Counts a sample.
    pub fn note(&mut self, packet: &Packet) {
        let header = packet.header.as_ref();
        let channel = |h: &super::line::Fields| h.channel_name.clone().unwrap_or(h.channel.clone());
        let who = Who {
            place: packet.place,
            reason: packet.reason.clone(),
            origin: header.map(|h| h.origin.clone()),
            origin_name: header.and_then(|h| h.origin_name.clone()),
            channel: header.map(channel),
        };
        self.samples += 1;
        self.packets += u64::from(packet.one_in);
        if self.all.len() >= ORIGINS_MAX && !self.all.contains_key(&who) {
            self.without_place += 1;
            return;
        }
        let share = self.all.entry(who).or_default();
        share.samples += 1;
        share.packets += u64::from(packet.one_in);
    }

    /// Those with the most, the most first.
    #[must_use]
    pub fn top(&self, many: usize, seen: Seen) -> Vec<(Who, Share)> {
        let mut all: Vec<(Who, Share)> = (self.all.iter())
            .map(|(who, share)| (who.clone(), self.scaled(*share, seen)))
            .collect();
        all.sort_by_key(|(_, share)| std::cmp::Reverse(share.packets));
        all.truncate(many);
        all
    }

    /// What samples stand for, so that all of them together are as many as were counted.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate, far below 2^52"
    )]
    fn scaled(&self, share: Share, seen: Seen) -> Share {
        let Seen::Some { matched, missed } = seen else {
            // As many as there are, whatever an order that had none passed over would have had them stand for.
            return Share {
                packets: share.samples,
                error: Some(0),
                ..share
            };
        };
        let part = share.packets as f64 / self.packets.max(1) as f64;
        let deviation = (part * (1.0 - part) / self.samples.max(1) as f64).sqrt();
        let error = DEVIATIONS * deviation * matched as f64;
        Share {
            samples: share.samples,
            packets: (part * matched as f64).round() as u64,
            error: (missed == 0).then_some(error.ceil() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::line::Fields, *};

    fn packet(origin: u64, one_in: u32) -> Packet {
        let header = Fields {
            origin: format!("{origin:016x}"),
            origin_name: None,
            channel: "0001".into(),
            channel_name: Some("metrics".into()),
            destination: String::new(),
            session: String::new(),
            stream: 0,
            sequence: 0,
        };
        Packet {
            unix_ns: 0,
            place: Place::Nic,
            interface: String::new(),
            ifindex: 0,
            verdict: "drop".into(),
            reason: "rate".into(),
            bytes: 100,
            one_in,
            cpu: 0,
            source: None,
            header: Some(header),
            data: String::new(),
        }
    }

    #[test]
    fn where_every_packet_was_seen_the_sum_is_exact() {
        let mut origins = Origins::default();
        for origin in [1, 1, 2, 1] {
            origins.note(&packet(origin, 1));
        }
        // A packet that came after the last look is counted before its sample is read.
        let now = Counts {
            matched: 5,
            ..Counts::default()
        };
        let seen = Seen::between(&Counts::default(), &now);
        let top = origins.top(5, seen);
        let told: Vec<_> = top.iter().map(|(_, s)| (s.packets, s.error)).collect();
        assert_eq!(told, [(3, Some(0)), (1, Some(0))]);
        assert_eq!(top[0].0.channel.as_deref(), Some("metrics"));
        assert_eq!(origins.top(1, seen).len(), 1);
    }

    #[test]
    fn no_error_is_told_where_packets_were_missed() {
        let mut origins = Origins::default();
        for origin in [1, 1, 2, 1] {
            origins.note(&packet(origin, 1));
        }
        let now = Counts {
            matched: 8,
            over_rate: 4,
            ..Counts::default()
        };
        let top = origins.top(5, Seen::between(&Counts::default(), &now));
        let told: Vec<_> = top.iter().map(|(_, s)| (s.packets, s.error)).collect();
        assert_eq!(told, [(6, None), (2, None)]);
    }

    #[test]
    fn an_estimate_is_within_its_error() {
        // 70 of 100 packets are of one origin, 30 of another; one in ten is picked.
        let (mut origins, mut state, mut picked) = (Origins::default(), 1_u32, 0);
        let packets = 100_000_u64;
        for n in 0..packets {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            if (u64::from(state) * 10) >> 32 == 0 {
                origins.note(&packet(if n % 10 < 7 { 1 } else { 2 }, 10));
                picked += 1;
            }
        }
        assert!(picked > 9_000);
        let now = Counts {
            matched: packets,
            passed_over: packets - picked,
            ..Counts::default()
        };
        for (who, share) in origins.top(2, Seen::between(&Counts::default(), &now)) {
            let error = share.error.unwrap();
            let truth = if who.origin.as_deref() == Some("0000000000000001") {
                70_000
            } else {
                30_000
            };
            let off = share.packets.abs_diff(truth);
            assert!(off <= 2 * error, "{share:?} instead of {truth}");
            assert!(error < 1_200, "{share:?}");
        }
    }

    #[test]
    fn a_flood_of_origins_takes_only_so_many_places() {
        let mut origins = Origins::default();
        for origin in 0..2 * ORIGINS_MAX as u64 {
            origins.note(&packet(origin, 1));
        }
        assert_eq!(origins.without_place, ORIGINS_MAX as u64);
        assert_eq!(origins.all.len(), ORIGINS_MAX);
    }
}
