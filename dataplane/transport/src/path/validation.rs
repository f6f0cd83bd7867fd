//! Where the peer is: which outer address its packets come from, and whether it can be reached there.
//!
//! ```text
//!  known: A     newest packet, from B, not forwarded by anybody
//!     │ ─────────────────────────────────────────────────────────► candidate B
//!     │                                     challenges to B and to A, three times at most
//!     │ ◄──── a newest packet from A: B was nothing ──────────────┤
//!     │ ◄──── A's token: what goes to A still arrives ────────────┤
//!     │                                                           │ B's token, from B
//!  known: B ◄──── and A's does not come for a while ──────────────┘
//! ```
//!
//! Until then nothing but challenges goes to B, each smaller than three times what caused it: who sends
//! from a false address makes nobody a target (RFC 9000, 8.1 and 9.3). And who sees packets and outruns
//! them with copies of his own moves nobody: the peer still gets what goes to A (9.3.3).

use crate::limits::{CHALLENGE_INTERVAL_NS, CHALLENGES_MAX, MOVE_INTERVAL_NS};
use std::net::SocketAddr;

/// An address that is not proven.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    address: SocketAddr,
    token: [u8; 8],
    /// Of the challenges to the address before.
    before_token: [u8; 8],
    /// A challenge to the address before is due.
    is_before_due: bool,
    challenges: u32,
    /// It has answered: when it is followed, unless the address before answers.
    follow_at_ns: Option<u64>,
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
    /// The same, where it came from another address than the known one, or is answered there in any case.
    answer_there: Option<(SocketAddr, [u8; 8])>,
    /// Another address that the owner asks about, and whether its challenge is still to be sent.
    probe: Option<Probe>,
    /// It has answered.
    reached: Option<SocketAddr>,
}

/// An address that the owner wants to know of.
#[derive(Clone, Copy, Debug)]
struct Probe {
    address: SocketAddr,
    token: [u8; 8],
    is_due: bool,
}

/// What is to be sent to one address, beside all that goes the usual way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aside {
    /// A challenge.
    Challenge([u8; 8]),
    /// The answer to the peer's.
    Response([u8; 8]),
}

impl Validation {
    /// Where the peer's packets come from, as far as that is proven.
    pub(crate) const fn known(&self) -> Option<SocketAddr> {
        self.known
    }

    /// Whether the packet in hand came straight from where the peer is known to be: who passes packets on may write
    /// that nobody did.
    pub(crate) fn is_direct(&self) -> bool {
        self.arrival.is_some() && self.arrival == self.known
    }

    /// A packet was opened; it came from `source` unless others forwarded it. `token` is used where the
    /// newest of all comes from another address.
    pub(crate) fn on_packet(
        &mut self,
        source: Option<SocketAddr>,
        is_newest: bool,
        mut token: impl FnMut() -> [u8; 8],
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
                    before_token: token(),
                    is_before_due: false,
                    challenges: 0,
                    follow_at_ns: None,
                });
            }
        }
    }

    /// The owner knows that the peer is at `address`; where it was known to be.
    pub(crate) const fn set_known(
        &mut self,
        now_ns: u64,
        address: SocketAddr,
    ) -> Option<SocketAddr> {
        self.candidate = None;
        // The peer's packets may come from where it was for a moment.
        self.challenge_at_ns = now_ns + MOVE_INTERVAL_NS;
        self.known.replace(address)
    }

    /// Finds out whether the peer answers from `address`.
    pub(crate) const fn probe(&mut self, address: SocketAddr, token: [u8; 8]) {
        self.probe = Some(Probe {
            address,
            token,
            is_due: true,
        });
    }

    /// The address that was asked about, once, if it has answered.
    pub(crate) const fn take_reached(&mut self) -> Option<SocketAddr> {
        self.reached.take()
    }

    /// What is to go to one address now.
    pub(crate) fn aside(&mut self, now_ns: u64, wait_ns: u64) -> Option<(SocketAddr, Aside)> {
        if let Some((address, token)) = self.answer_there.take() {
            return Some((address, Aside::Response(token)));
        }
        if let Some(probe) = self.probe.as_mut().filter(|probe| probe.is_due) {
            probe.is_due = false;
            return Some((probe.address, Aside::Challenge(probe.token)));
        }
        let (address, token) = self.challenge(now_ns, wait_ns)?;
        Some((address, Aside::Challenge(token)))
    }

    /// When [`Validation::aside`] or [`Validation::follow`] is due.
    pub(crate) fn due_ns(&self) -> Option<u64> {
        if self.answer_there.is_some() || self.probe.is_some_and(|probe| probe.is_due) {
            return Some(0);
        }
        let candidate = self.candidate?;
        if candidate.is_before_due {
            return Some(0);
        }
        Some(candidate.follow_at_ns.unwrap_or(self.challenge_at_ns))
    }

    /// The challenge to send now, and where to. After the last the candidate is given up.
    fn challenge(&mut self, now_ns: u64, wait_ns: u64) -> Option<(SocketAddr, [u8; 8])> {
        let candidate = self.candidate.as_mut()?;
        if std::mem::take(&mut candidate.is_before_due) {
            return Some((self.known?, candidate.before_token));
        }
        if now_ns < self.challenge_at_ns || candidate.follow_at_ns.is_some() {
            return None;
        }
        if candidate.challenges == CHALLENGES_MAX {
            self.candidate = None;
            return None;
        }
        candidate.challenges += 1;
        candidate.is_before_due = true;
        self.challenge_at_ns = now_ns + wait_ns.max(CHALLENGE_INTERVAL_NS);
        Some((candidate.address, candidate.token))
    }

    /// The peer challenges: the answer goes the usual way, and to where the challenge came from if that is elsewhere.
    /// Where the usual way may lead over routers, that is so at the known address as well.
    pub(crate) fn on_challenge(&mut self, token: [u8; 8], answers_straight: bool) {
        self.answer = Some(token);
        let there = self.arrival;
        let there = there.filter(|_| answers_straight || self.arrival != self.known);
        self.answer_there = there.map(|address| (address, token));
    }

    pub(crate) const fn has_answer(&self) -> bool {
        self.answer.is_some()
    }

    pub(crate) const fn take_answer(&mut self) -> Option<[u8; 8]> {
        self.answer.take()
    }

    /// An answer to a challenge, which took `wait_ns` at most unless it was lost.
    pub(crate) fn on_response(&mut self, now_ns: u64, wait_ns: u64, token: [u8; 8]) {
        let is_probes = |probe: &Probe| probe.token == token && self.arrival == Some(probe.address);
        if let Some(probe) = self.probe.take_if(|probe| is_probes(probe)) {
            self.reached = Some(probe.address);
            return;
        }
        let Some(candidate) = &mut self.candidate else {
            return;
        };
        if token == candidate.before_token {
            // Whoever is at the new address, it need not be the peer.
            self.candidate = None;
            self.challenge_at_ns = now_ns + MOVE_INTERVAL_NS;
        } else if token == candidate.token
            && self.arrival == Some(candidate.address)
            && candidate.follow_at_ns.is_none()
        {
            // Once more, in case that the first was lost.
            candidate.is_before_due = true;
            candidate.follow_at_ns = Some(now_ns + wait_ns.max(CHALLENGE_INTERVAL_NS));
        }
    }

    /// The new address and the one before, once it is proven that the peer is there and not where it was.
    pub(crate) fn follow(&mut self, now_ns: u64) -> Option<(SocketAddr, SocketAddr)> {
        let candidate = self.candidate?;
        let before = self.known?;
        if candidate.follow_at_ns.is_none_or(|at| now_ns < at) {
            return None;
        }
        self.candidate = None;
        self.known = Some(candidate.address);
        // A move costs both ends their knowledge of the path: one that never rests is not followed.
        self.challenge_at_ns = now_ns + MOVE_INTERVAL_NS;
        Some((candidate.address, before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 4783))
    }

    /// Numbers in a row, each eight times.
    fn tokens(first: u8) -> impl FnMut() -> [u8; 8] {
        let mut next = first;
        move || {
            next += 1;
            [next - 1; 8]
        }
    }

    /// Known at 1, and a candidate at 2; both were challenged at time 0.
    fn moved() -> Validation {
        let mut v = Validation::default();
        v.on_packet(Some(at(1)), true, || [1; 8]);
        v.on_packet(Some(at(2)), true, tokens(2));
        assert_eq!(v.challenge(0, 1), Some((at(2), [2; 8])));
        assert_eq!(v.due_ns(), Some(0));
        assert_eq!(v.challenge(0, 1), Some((at(1), [3; 8])));
        assert_eq!(v.challenge(0, 1), None);
        v
    }

    #[test]
    fn the_answer_counts_only_from_the_challenged_address() {
        const WAIT_NS: u64 = CHALLENGE_INTERVAL_NS;
        let mut v = moved();
        for (from, token) in [(Some(at(3)), 2), (None, 2), (Some(at(2)), 9)] {
            v.on_packet(from, false, || [7; 8]);
            v.on_response(0, 1, [token; 8]);
            assert_eq!(v.challenge(1, 1), None, "{from:?}, {token}");
        }
        v.on_packet(Some(at(2)), false, || [7; 8]);
        v.on_response(5, 1, [2; 8]);
        assert_eq!(v.challenge(5, 1), Some((at(1), [3; 8])), "once more");
        assert_eq!((v.challenge(6, 1), v.due_ns()), (None, Some(5 + WAIT_NS)));
        v.on_response(50, 1, [2; 8]);
        assert_eq!(v.follow(4 + WAIT_NS), None, "the one before may answer");
        assert_eq!(v.follow(5 + WAIT_NS), Some((at(2), at(1))));
        assert_eq!((v.known(), v.follow(u64::MAX)), (Some(at(2)), None));
        v.on_packet(Some(at(3)), true, || [3; 8]);
        let again_ns = 5 + WAIT_NS + MOVE_INTERVAL_NS;
        assert_eq!(v.challenge(again_ns - 1, 1), None, "not at once again");
        assert!(v.challenge(again_ns, 1).is_some());
    }

    /// All packets come from the new address, and still what goes to the one before arrives: somebody
    /// outruns the peer's packets with copies.
    #[test]
    fn an_address_that_answers_is_not_given_up() {
        for is_candidate_first in [false, true] {
            let mut v = moved();
            v.on_packet(Some(at(2)), true, || [7; 8]);
            if is_candidate_first {
                v.on_response(5, 1, [2; 8]);
            }
            v.on_response(6, 1, [3; 8]);
            assert_eq!((v.known(), v.follow(u64::MAX)), (Some(at(1)), None));
            v.on_packet(Some(at(2)), true, || [8; 8]);
            assert_eq!(v.challenge(MOVE_INTERVAL_NS, 1), None, "not at once again");
        }
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
    fn a_probed_address_has_answered_once_its_own_answer_comes_from_there() {
        let mut v = Validation::default();
        v.on_packet(Some(at(1)), true, || [1; 8]);
        v.probe(at(2), [9; 8]);
        assert_eq!(v.due_ns(), Some(0));
        assert_eq!(v.aside(0, 1), Some((at(2), Aside::Challenge([9; 8]))));
        assert_eq!((v.aside(0, 1), v.due_ns()), (None, None), "once");
        for (from, token) in [(at(1), 9), (at(2), 8), (at(3), 9)] {
            v.on_packet(Some(from), false, || [7; 8]);
            v.on_response(1, 1, [token; 8]);
            assert_eq!(v.take_reached(), None, "{from}, {token}");
        }
        v.on_packet(Some(at(2)), false, || [7; 8]);
        v.on_response(1, 1, [9; 8]);
        assert_eq!(v.take_reached(), Some(at(2)));
        assert_eq!((v.take_reached(), v.known()), (None, Some(at(1))));
    }

    #[test]
    fn what_the_owner_knows_needs_no_challenge() {
        let mut v = moved();
        assert_eq!(v.set_known(5, at(2)), Some(at(1)));
        assert_eq!((v.known(), v.due_ns()), (Some(at(2)), None));
        // One that was on its way still.
        v.on_packet(Some(at(1)), true, tokens(7));
        assert_eq!(v.challenge(5 + MOVE_INTERVAL_NS - 1, 1), None);
        v.on_packet(Some(at(2)), true, || [1; 8]);
        assert_eq!(v.due_ns(), None);
    }

    #[test]
    fn a_challenge_from_elsewhere_is_answered_there_too_and_any_where_that_is_wanted() {
        let mut v = Validation::default();
        v.on_packet(Some(at(1)), true, || [1; 8]);
        v.on_challenge([4; 8], false);
        assert_eq!((v.aside(0, 1), v.take_answer()), (None, Some([4; 8])));
        v.on_challenge([5; 8], true);
        assert_eq!(v.aside(0, 1), Some((at(1), Aside::Response([5; 8]))));
        assert_eq!((v.aside(0, 1), v.take_answer()), (None, Some([5; 8])));
        v.on_packet(Some(at(2)), false, || [1; 8]);
        v.on_challenge([6; 8], false);
        assert_eq!(v.due_ns(), Some(0));
        assert_eq!(v.aside(0, 1), Some((at(2), Aside::Response([6; 8]))));
        assert_eq!((v.aside(0, 1), v.take_answer()), (None, Some([6; 8])));
        // One that others forwarded shows no address.
        v.on_packet(None, true, || [1; 8]);
        v.on_challenge([7; 8], true);
        assert_eq!(v.aside(0, 1), None);
    }

    #[test]
    fn challenges_are_few_and_apart() {
        let mut v = moved();
        assert_eq!(v.challenge(1, 1), None);
        let mut now_ns = 0;
        for _ in 1..CHALLENGES_MAX {
            now_ns = v.due_ns().unwrap();
            assert_eq!(v.challenge(now_ns, 1).unwrap().0, at(2));
            assert_eq!(v.challenge(now_ns, 1).unwrap().0, at(1));
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
        assert!(sent <= 2, "{sent} challenges within a microsecond");
    }
}
