//! Where the peer is: which outer address its packets come from, and whether it can be reached there.
//!
//! ```text
//!  known: A     newest packet, from B, not forwarded by anybody
//!     │ ─────────────────────────────────────────────────────────► candidate B
//!     │                                                    challenge to B, three times at most
//!     │ ◄──── a newest packet from A: B was nothing ────────┤
//!  known: B ◄────────────── the challenge's token, from B ──┘
//! ```
//!
//! Until the answer comes nothing but challenges goes to B, each smaller than three times what caused
//! it: who sends from a false address makes nobody a target (RFC 9000, 8.1 and 9.3).

use crate::limits::{CHALLENGE_INTERVAL_NS, CHALLENGES_MAX, MOVE_INTERVAL_NS};
use std::net::SocketAddr;

/// An address that is not proven.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    address: SocketAddr,
    token: [u8; 8],
    challenges: u32,
}

/// A peer's outer address, where it is a neighbour.
#[derive(Debug, Default)]
pub(crate) struct Validation {
    known: Option<SocketAddr>,
    candidate: Option<Candidate>,
    /// Where the packet in hand came from; none where others forwarded it.
    arrival: Option<SocketAddr>,
    /// Before this no challenge goes out.
    challenge_at_ns: u64,
    /// The token of a challenge of the peer's that is to be answered.
    answer: Option<[u8; 8]>,
}

impl Validation {
    /// Where the peer's packets come from, as far as that is proven.
    pub(crate) const fn known(&self) -> Option<SocketAddr> {
        self.known
    }

    /// A packet was opened; it came from `source` unless others forwarded it. `token` is used where the
    /// newest of all comes from another address.
    pub(crate) fn on_packet(
        &mut self,
        source: Option<SocketAddr>,
        is_newest: bool,
        token: impl FnOnce() -> [u8; 8],
    ) {
        self.arrival = source;
        let Some(address) = source.filter(|_| is_newest) else {
            return;
        };
        match self.known {
            None => self.known = Some(address),
            Some(known) if known == address => self.candidate = None,
            Some(_) if self.candidate.is_some_and(|c| c.address == address) => {}
            Some(_) => {
                self.candidate = Some(Candidate {
                    address,
                    token: token(),
                    challenges: 0,
                });
            }
        }
    }

    /// When a challenge is due.
    pub(crate) fn due_ns(&self) -> Option<u64> {
        self.candidate.map(|_| self.challenge_at_ns)
    }

    /// The challenge to send now, and where to. After the last the candidate is given up.
    pub(crate) fn challenge(&mut self, now_ns: u64, wait_ns: u64) -> Option<(SocketAddr, [u8; 8])> {
        let candidate = self.candidate.as_mut()?;
        if now_ns < self.challenge_at_ns {
            return None;
        }
        if candidate.challenges == CHALLENGES_MAX {
            self.candidate = None;
            return None;
        }
        candidate.challenges += 1;
        self.challenge_at_ns = now_ns + wait_ns.max(CHALLENGE_INTERVAL_NS);
        Some((candidate.address, candidate.token))
    }

    /// The peer challenges: the answer goes the usual way.
    pub(crate) const fn on_challenge(&mut self, token: [u8; 8]) {
        self.answer = Some(token);
    }

    pub(crate) const fn has_answer(&self) -> bool {
        self.answer.is_some()
    }

    pub(crate) const fn take_answer(&mut self) -> Option<[u8; 8]> {
        self.answer.take()
    }

    /// An answer: the new address, and the old one, where it came from the challenged address.
    pub(crate) fn on_response(&mut self, token: [u8; 8]) -> Option<(SocketAddr, SocketAddr)> {
        let candidate = self.candidate?;
        let before = self.known?;
        if candidate.token != token || self.arrival != Some(candidate.address) {
            return None;
        }
        self.candidate = None;
        self.known = Some(candidate.address);
        // A move costs both ends their knowledge of the path: one that never rests is not followed.
        self.challenge_at_ns = self.challenge_at_ns.saturating_add(MOVE_INTERVAL_NS);
        Some((candidate.address, before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 4783))
    }

    /// Known at 1, and a candidate at 2 that was challenged at time 0.
    fn moved() -> Validation {
        let mut v = Validation::default();
        v.on_packet(Some(at(1)), true, || [1; 8]);
        v.on_packet(Some(at(2)), true, || [2; 8]);
        assert_eq!(v.challenge(0, 1), Some((at(2), [2; 8])));
        v
    }

    #[test]
    fn the_answer_counts_only_from_the_challenged_address() {
        let mut v = moved();
        v.on_packet(Some(at(3)), false, || [3; 8]);
        assert_eq!(v.on_response([2; 8]), None, "from elsewhere");
        v.on_packet(None, false, || [3; 8]);
        assert_eq!(v.on_response([2; 8]), None, "forwarded");
        v.on_packet(Some(at(2)), false, || [3; 8]);
        assert_eq!(v.on_response([9; 8]), None, "another token");
        assert_eq!(v.on_response([2; 8]), Some((at(2), at(1))));
        assert_eq!(v.known(), Some(at(2)));
        assert_eq!(v.on_response([2; 8]), None, "once");
        v.on_packet(Some(at(3)), true, || [3; 8]);
        assert_eq!(v.challenge(MOVE_INTERVAL_NS, 1), None, "not at once again");
        assert!(v.challenge(2 * MOVE_INTERVAL_NS, 1).is_some());
    }

    #[test]
    fn old_and_forwarded_packets_and_the_true_peer_make_no_candidate() {
        let mut v = Validation::default();
        v.on_packet(None, true, || [1; 8]);
        assert_eq!(v.known(), None);
        v.on_packet(Some(at(1)), true, || [1; 8]);
        v.on_packet(Some(at(2)), false, || [1; 8]);
        v.on_packet(None, true, || [1; 8]);
        assert_eq!((v.known(), v.due_ns()), (Some(at(1)), None));
        let mut v = moved();
        v.on_packet(Some(at(1)), true, || [3; 8]);
        assert_eq!(v.due_ns(), None, "the peer is where it was");
    }

    #[test]
    fn challenges_are_few_and_apart() {
        let mut v = moved();
        assert_eq!(v.challenge(1, 1), None);
        let mut now_ns = 0;
        for _ in 1..CHALLENGES_MAX {
            now_ns = v.due_ns().unwrap();
            assert!(v.challenge(now_ns, 1).is_some());
        }
        assert!(now_ns >= u64::from(CHALLENGES_MAX - 1) * CHALLENGE_INTERVAL_NS);
        assert_eq!(v.challenge(v.due_ns().unwrap(), 1), None);
        assert_eq!(v.due_ns(), None, "given up");
        // Others do not make more of them.
        let mut sent = 0;
        for n in 0..1_000u64 {
            v.on_packet(Some(at(u8::try_from(n % 200).unwrap() + 2)), true, || {
                [4; 8]
            });
            sent += u32::from(v.challenge(now_ns + n, 1).is_some());
        }
        assert!(sent <= 1, "{sent} challenges within a microsecond");
    }
}
