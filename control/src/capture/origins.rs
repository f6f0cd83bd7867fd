//! Drops summed up by origin, out of samples of them.
//!
//! Each sample stands for as many as it was picked out of, by chance, so the sum over an origin's samples is an
//! estimate of its drops; its error is that of a poll. Samples of origins beyond the places that there are, as a
//! flood of made-up ones gives, are counted together.

use super::line::{Packet, Place};
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
    /// 95 of 100 times it is no further from the truth than this; 0 where every packet was seen.
    pub error: u64,
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

    /// Those with the most, the most first; of all together there were `matched`, if every one was counted.
    #[must_use]
    pub fn top(&self, many: usize, matched: u64) -> Vec<(Who, Share)> {
        let is_whole = self.samples == matched;
        let mut all: Vec<(Who, Share)> = (self.all.iter())
            .map(|(who, share)| (who.clone(), self.scaled(*share, matched, is_whole)))
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
    fn scaled(&self, share: Share, matched: u64, is_whole: bool) -> Share {
        if is_whole || self.packets == 0 {
            return share;
        }
        let part = share.packets as f64 / self.packets as f64;
        let deviation = (part * (1.0 - part) / self.samples as f64).sqrt();
        Share {
            samples: share.samples,
            packets: (part * matched as f64).round() as u64,
            error: (DEVIATIONS * deviation * matched as f64).ceil() as u64,
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
        let top = origins.top(5, 4);
        let told: Vec<_> = top.iter().map(|(_, s)| (s.packets, s.error)).collect();
        assert_eq!(told, [(3, 0), (1, 0)]);
        assert_eq!(top[0].0.channel.as_deref(), Some("metrics"));
        assert_eq!(origins.top(1, 4).len(), 1);
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
        for (who, share) in origins.top(2, packets) {
            let truth = if who.origin.as_deref() == Some("0000000000000001") {
                70_000
            } else {
                30_000
            };
            let off = share.packets.abs_diff(truth);
            assert!(off <= 2 * share.error, "{share:?} instead of {truth}");
            assert!(share.error < 1_200, "{share:?}");
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
