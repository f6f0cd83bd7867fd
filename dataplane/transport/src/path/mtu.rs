//! Path MTU discovery without trusting any message but the peer's acknowledgement (RFC 8899).
//!
//! ```text
//!            a full packet was sent           acknowledged: that size holds
//!  every path's size ───► a probe goes out ───┬──► the next size is tried, up to the most
//!        ▲                                    └──► lost three times: sizes between are tried,
//!        │                                         then nothing for ten minutes
//!        └── larger packets are lost over and over, smaller ones arrive: a black hole
//! ```
//!
//! A size that was found by probes and carried no data is given up by half of what it is above those that did: who
//! acknowledges probes that never came, or takes no data as large, is sent smaller packets after few losses.
//!
//! A probe is a ping with padding. Its loss is no sign of congestion, and it carries nothing that
//! anybody would miss.

use crate::limits::{
    BLACK_HOLE_LOSSES, DATAGRAM_BYTES_MIN, MTU_PROBES_MAX, MTU_RAISE_NS, MTU_SIZES, MTU_STEP_BYTES,
};

/// A probe that is on its way.
#[derive(Clone, Copy, Debug)]
struct Probe {
    sequence: u64,
    bytes: usize,
    /// Its size is out of question meanwhile: what becomes of it tells nothing.
    is_void: bool,
}

/// How large a packet may be, and what is done to find out.
#[derive(Debug)]
pub(crate) struct Mtu {
    /// Largest size that was acknowledged.
    bytes: usize,
    /// Smallest size that was lost; one above `most` where none was.
    ceiling: usize,
    /// What the node's limits allow.
    allowed: usize,
    /// What its first link carries of that.
    most: usize,
    probe: Option<Probe>,
    /// Losses of the size that is being tried.
    failures: u32,
    /// Before this nothing is probed.
    probe_at_ns: u64,
    /// Whether full packets are sent: only then it is worth knowing.
    is_wanted: bool,
    /// Times that larger packets were lost since the last that arrived.
    losses: u32,
    /// Largest packet that was no probe and was acknowledged since the last black hole.
    carried: usize,
}

impl Mtu {
    pub(super) fn new(most: usize) -> Self {
        let most = most.max(DATAGRAM_BYTES_MIN);
        Self {
            bytes: DATAGRAM_BYTES_MIN,
            ceiling: most + 1,
            allowed: most,
            most,
            probe: None,
            failures: 0,
            probe_at_ns: 0,
            is_wanted: false,
            losses: 0,
            carried: DATAGRAM_BYTES_MIN,
        }
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// A packet of the largest size was sent: a larger one would be of use.
    pub(super) const fn want(&mut self) {
        self.is_wanted = true;
    }

    /// The size to try next: the next usual one, then halves of what is left between.
    fn next_size(&self) -> Option<usize> {
        let usual = MTU_SIZES
            .iter()
            .copied()
            .chain([self.most])
            .find(|&size| size > self.bytes && size <= self.most);
        if let Some(size) = usual.filter(|&size| size < self.ceiling) {
            return Some(size);
        }
        let gap = self.ceiling - self.bytes;
        (gap > MTU_STEP_BYTES.max(self.bytes / 64)).then_some(self.bytes + gap / 2)
    }

    /// Bytes of the probe that should go out now.
    pub(super) fn wants_probe(&mut self, now_ns: u64) -> Option<usize> {
        if !self.is_wanted || self.probe.is_some() || now_ns < self.probe_at_ns {
            return None;
        }
        let size = self.next_size();
        if size.is_none() {
            // Found. What failed may work later: the path may have changed.
            self.most = self.allowed;
            self.ceiling = self.most + 1;
            self.failures = 0;
            self.probe_at_ns = if self.bytes == self.most {
                u64::MAX
            } else {
                now_ns.saturating_add(MTU_RAISE_NS)
            };
        }
        size
    }

    pub(super) fn on_probe_sent(&mut self, sequence: u64, bytes: usize) {
        self.probe = Some(Probe {
            sequence,
            bytes,
            is_void: false,
        });
    }

    fn take_probe(&mut self, sequence: u64) -> Option<Probe> {
        let probe = self.probe.filter(|probe| probe.sequence == sequence)?;
        self.probe = None;
        Some(probe)
    }

    /// A packet was acknowledged; `true` where another size holds from now on.
    pub(super) fn on_acked(&mut self, sequence: u64, bytes: usize) -> bool {
        if bytes > DATAGRAM_BYTES_MIN {
            self.losses = 0;
        }
        let Some(probe) = self.take_probe(sequence) else {
            self.carried = self.carried.max(bytes);
            return false;
        };
        self.failures = 0;
        let grows = probe.bytes > self.bytes && !probe.is_void;
        if grows {
            self.bytes = probe.bytes;
        }
        grows
    }

    /// Whether a packet that was lost was a probe: then it says nothing of congestion, nor of a black hole.
    pub(super) fn on_lost(&mut self, sequence: u64) -> bool {
        let Some(probe) = self.take_probe(sequence) else {
            return false;
        };
        if probe.is_void {
            return true;
        }
        self.failures += 1;
        if self.failures >= MTU_PROBES_MAX {
            self.failures = 0;
            self.ceiling = probe.bytes.min(self.ceiling);
        }
        true
    }

    /// Larger packets than every path carries were lost, at one time. `true` when that has happened
    /// so often, none arriving in between, that the path seems to carry them no more (RFC 8899, 4.3).
    pub(super) fn on_larger_lost(&mut self) -> bool {
        if self.bytes == DATAGRAM_BYTES_MIN {
            return false;
        }
        self.losses += 1;
        if self.losses < BLACK_HOLE_LOSSES {
            return false;
        }
        self.ceiling = self.bytes - self.bytes.saturating_sub(self.carried) / 2;
        self.bytes = DATAGRAM_BYTES_MIN;
        self.carried = DATAGRAM_BYTES_MIN;
        self.void(0);
        self.failures = 0;
        self.losses = 0;
        self.probe_at_ns = 0;
        true
    }

    /// The first link takes datagrams of `most` bytes at most, as this machine itself knows.
    pub(super) fn limit(&mut self, most: usize) {
        self.most = most.clamp(DATAGRAM_BYTES_MIN, self.allowed);
        self.bytes = self.bytes.min(self.most);
        self.ceiling = self.ceiling.min(self.most + 1);
        self.void(self.most);
    }

    /// Expects nothing of a probe on its way that is larger than `most`.
    fn void(&mut self, most: usize) {
        if let Some(probe) = &mut self.probe {
            probe.is_void |= probe.bytes > most;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends what it wants over a path that carries `most`; gives how many probes that took.
    fn search(mtu: &mut Mtu, now_ns: u64, most: usize) -> u64 {
        let mut probes = 0;
        mtu.want();
        while let Some(bytes) = mtu.wants_probe(now_ns) {
            assert!(bytes > mtu.bytes(), "{bytes}");
            probes += 1;
            mtu.on_probe_sent(probes, bytes);
            if bytes <= most {
                assert!(mtu.on_acked(probes, bytes));
            } else {
                assert!(mtu.on_lost(probes));
            }
            assert!(probes < 100);
        }
        probes
    }

    #[test]
    fn every_path_s_largest_packet_is_found_nearly() {
        for most in [
            1_232, 1_300, 1_372, 1_452, 1_472, 4_000, 8_952, 8_972, 20_000, 65_507,
        ] {
            let mut mtu = Mtu::new(65_507);
            let probes = search(&mut mtu, 0, most);
            let short = most - mtu.bytes();
            assert!(short <= 16.max(most / 64), "{} of {most}", mtu.bytes());
            assert!(probes <= 40, "{probes} probes to find {most}");
            let usual = MTU_SIZES.contains(&most) || most == 65_507;
            assert!(!usual || short == 0, "{} of {most}", mtu.bytes());
            assert_eq!(search(&mut mtu, MTU_RAISE_NS - 1, 65_507), 0);
            search(&mut mtu, MTU_RAISE_NS, 65_507);
            assert_eq!(mtu.bytes(), 65_507, "the path grew");
        }
    }

    #[test]
    fn the_first_link_bounds_it() {
        let mut mtu = Mtu::new(65_507);
        mtu.limit(1_472);
        assert!(search(&mut mtu, 0, 65_507) <= 4);
        assert_eq!(mtu.bytes(), 1_472);
        mtu.limit(1_400);
        assert_eq!(mtu.bytes(), 1_400);
        mtu.limit(0);
        assert_eq!(mtu.bytes(), DATAGRAM_BYTES_MIN);
        assert_eq!(search(&mut mtu, u64::MAX - 1, 65_507), 0);
    }

    /// A probe that this machine itself refused to send is lost as any probe.
    #[test]
    fn a_probe_that_the_first_link_does_not_take_is_no_larger_packet_s_loss() {
        let mut mtu = Mtu::new(65_507);
        mtu.limit(1_472);
        search(&mut mtu, 0, 65_507);
        let bytes = mtu.wants_probe(MTU_RAISE_NS).unwrap();
        assert!(bytes > 1_472);
        mtu.on_probe_sent(1_000, bytes);
        mtu.limit(1_472);
        assert!(mtu.on_lost(1_000), "it was a probe");
        assert_eq!((mtu.bytes(), mtu.failures, mtu.losses), (1_472, 0, 0));
        assert_eq!(
            mtu.wants_probe(MTU_RAISE_NS),
            None,
            "nothing is left to try"
        );
    }

    #[test]
    fn nothing_is_probed_unless_full_packets_are_sent() {
        assert_eq!(Mtu::new(65_507).wants_probe(0), None);
    }

    #[test]
    fn a_black_hole_is_left_and_its_size_not_tried_at_once() {
        let mut mtu = Mtu::new(65_507);
        search(&mut mtu, 0, 8_972);
        for _ in 1..BLACK_HOLE_LOSSES {
            assert!(!mtu.on_larger_lost());
        }
        mtu.on_acked(1_000, 1_452);
        for _ in 1..BLACK_HOLE_LOSSES {
            assert!(
                !mtu.on_larger_lost(),
                "one that arrived makes it begin anew"
            );
        }
        assert!(mtu.on_larger_lost());
        assert_eq!(mtu.bytes(), DATAGRAM_BYTES_MIN);
        search(&mut mtu, 0, 1_452);
        assert_eq!(mtu.bytes(), 1_452);
    }

    /// Probes are acknowledged whatever their size, and data above a size is lost: from the largest datagrams to those
    /// that carry data it takes few black holes.
    #[test]
    fn a_size_that_carries_no_data_is_halved() {
        const CARRIED: usize = 1_400;
        let mut mtu = Mtu::new(65_507);
        let mut holes = 0;
        loop {
            search(&mut mtu, 0, usize::MAX);
            if mtu.bytes() <= CARRIED {
                break;
            }
            // What was sent while the search was at smaller sizes arrived.
            mtu.on_acked(u64::MAX, 1_372);
            while !mtu.on_larger_lost() {}
            holes += 1;
            assert!(holes < 16, "still {} bytes", mtu.bytes());
        }
        assert!(mtu.bytes() >= 1_372, "{}", mtu.bytes());
    }

    /// Who acknowledges what never arrived gets what it asked for, and no more than this end's limits and
    /// links allow: not with packets that were no probes, and not with a probe that its link refused.
    #[test]
    fn a_liar_gains_nothing_beyond_the_limits() {
        let mut mtu = Mtu::new(9_000);
        mtu.want();
        assert!(!mtu.on_acked(77, 9_000), "not a probe");
        assert_eq!(mtu.bytes(), DATAGRAM_BYTES_MIN);
        let bytes = mtu.wants_probe(0).unwrap();
        mtu.on_probe_sent(1, bytes);
        assert!(!mtu.on_acked(2, bytes), "not that probe");
        mtu.limit(1_300);
        assert!(!mtu.on_acked(1, bytes), "the link does not take it");
        assert_eq!(mtu.bytes(), DATAGRAM_BYTES_MIN);
        search(&mut mtu, 0, usize::MAX);
        assert_eq!(mtu.bytes(), 1_300);
        search(&mut mtu, MTU_RAISE_NS, usize::MAX);
        assert_eq!(mtu.bytes(), 9_000, "what the limits allow, and no more");
    }
}
