//! One try to reach one peer: a neighbour is asked for a meeting, then the peer for an answer.
//!
//! ```text
//! Asking ── meet ──► Probing ── its answer ──► reached ──┐
//!   │ no, or silence    │ ◄── heard from elsewhere       ├── both ──► adopted
//!   ▼                   ▼                                │
//! the next neighbour   failed       the peer's proven ───┘
//! ```

use super::{Act, Nat, Relation, Sight, Why};
use crate::{
    class::Filtering,
    limits::{MEETING_NS, PROBE_NS, PROBES_MAX, PROBES_TOLD, SECOND_NS},
    reason::Reason,
    wire::{Message, No},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};
use virga_ebpf::header::NodeId;

/// A try.
#[derive(Debug)]
pub(super) struct Meeting {
    /// What both ends and the neighbour call it.
    pub(super) number: u64,
    /// The neighbour that is asked.
    pub(super) via: NodeId,
    pub(super) stage: Stage,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// A neighbour is.
    Asking {
        /// This one, and those before it.
        asked: BTreeSet<NodeId>,
        until_ns: u64,
    },
    /// The peer is.
    Probing(Probing),
}

#[derive(Debug)]
pub(super) struct Probing {
    /// Where it is asked.
    address: SocketAddr,
    /// Whether that is not where it was told to be.
    is_heard: bool,
    /// Where its packets were seen to come from last.
    before: Option<SocketAddr>,
    /// The same as the try began: packets that come from there now show nothing new.
    was: Option<SocketAddr>,
    /// That address, where it was not told and is asked as well: its NAT may still have it so.
    also: Option<SocketAddr>,
    /// The address of its router's that leads to it, where it has one.
    mapped: Option<SocketAddr>,
    /// Packets to all addresses, and to this one.
    sent: (u32, u32),
    next_ns: u64,
    end_ns: u64,
    /// It has answered.
    reached: Option<SocketAddr>,
    /// It says that this node has.
    is_proven: bool,
    /// It was heard before anything was sent to it.
    is_unasked: bool,
}

impl Probing {
    const fn may_send(&self) -> bool {
        let is_told_out = !self.is_heard && self.sent.1 >= PROBES_TOLD;
        self.reached.is_none() && self.sent.0 < PROBES_MAX && !is_told_out
    }

    /// Where the next packet goes.
    fn target(&self) -> SocketAddr {
        let others = [self.mapped, self.also];
        let others = others.into_iter().flatten().filter(|_| !self.is_heard);
        let mut all: Vec<SocketAddr> = std::iter::once(self.address).chain(others).collect();
        let turn = usize::try_from(self.sent.1).unwrap_or_default() % all.len();
        all.swap_remove(turn)
    }

    /// Whether it was heard after this node had asked it alone, as far as that shows.
    pub(super) fn is_filtered(&self, reached: SocketAddr) -> bool {
        !self.is_unasked && self.was != Some(reached)
    }
}

impl Meeting {
    pub(super) fn due_ns(&self) -> u64 {
        match &self.stage {
            Stage::Asking { until_ns, .. } => *until_ns,
            Stage::Probing(probing) if probing.may_send() => probing.next_ns.min(probing.end_ns),
            Stage::Probing(probing) => probing.end_ns,
        }
    }

    /// Where the peer has answered, which it was told.
    pub(super) const fn promised(&self) -> Option<SocketAddr> {
        match &self.stage {
            Stage::Asking { .. } => None,
            Stage::Probing(probing) => probing.reached,
        }
    }

    pub(super) fn words(&self) -> String {
        match &self.stage {
            Stage::Asking { .. } => format!("{} is asked to have us meet", self.via),
            Stage::Probing(probing) => match probing.reached {
                Some(address) => format!("it has answered from {address}, and has to say the same"),
                None => format!("it is asked for an answer from {}", probing.address),
            },
        }
    }
}

impl Nat {
    /// A neighbour says where a peer is, and has told it the same of this node.
    pub(super) fn on_meet(
        &mut self,
        now_ns: u64,
        via: NodeId,
        (number, peer): (u64, NodeId),
        address: SocketAddr,
    ) {
        let known = self.peers.get(&peer).map(|known| known.sight);
        let is_wanted = |at: Relation| matches!(at, Relation::Wanted | Relation::Punched { .. });
        let Some(sight) = known.filter(|sight| is_wanted(sight.relation)) else {
            return self.refuse(Reason::Unwanted);
        };
        if !self.is_possible(address) {
            return self.refuse(Reason::Address);
        }
        let is_first = self.setup.own < peer;
        if let Some(one) = self.punched.get(&peer).filter(|_| !is_first) {
            // Who asks for a meeting has given the way up.
            if one.silent_ns.is_none() {
                self.say_no(peer, number, No::Busy);
                return self.refuse(Reason::Late);
            }
            self.release(now_ns, peer, Why::Closed);
        }
        let meeting = self.meetings.get(&peer);
        let is_asked = meeting.is_some_and(|meeting| {
            let is_asking = matches!(meeting.stage, Stage::Asking { .. });
            is_asking && (meeting.number, meeting.via) == (number, via)
        });
        // The one with the lower id asks, the other one waits for it.
        if is_asked != is_first
            || (!is_first && meeting.is_some())
            || self.punched.contains_key(&peer)
        {
            return self.refuse(Reason::Late);
        }
        if !is_first && !self.has_room() {
            self.say_no(peer, number, No::Busy);
            return self.refuse(Reason::Full);
        }
        if self.is_taken(peer, address.ip()) {
            self.refuse(Reason::Taken);
            self.say_no(peer, number, No::Taken);
            if is_first {
                self.fail(now_ns, peer, Why::Taken(address.ip()));
            }
            return;
        }
        let was = sight.seen;
        let also = was.filter(|&at| at != address && self.is_possible(at));
        let stage = Stage::Probing(Probing {
            address,
            is_heard: false,
            before: was,
            was,
            also: also.filter(|at| !self.is_taken(peer, at.ip())),
            mapped: None,
            sent: (0, 0),
            next_ns: now_ns + if is_first { 0 } else { SECOND_NS },
            end_ns: now_ns + MEETING_NS,
            reached: None,
            is_proven: false,
            is_unasked: false,
        });
        self.meetings.insert(peer, Meeting { number, via, stage });
        self.go_on(now_ns, peer);
    }

    /// The neighbour that has this node meet a peer says where its router passes on to it what comes.
    pub(super) fn on_also(&mut self, via: NodeId, number: u64, address: SocketAddr) {
        let (is_possible, mut meetings) = (self.is_possible(address), self.meetings.iter_mut());
        let of_this = |meeting: &Meeting| (meeting.number, meeting.via) == (number, via);
        let found = meetings.find(|(_, meeting)| of_this(meeting));
        let Some((
            _,
            Meeting {
                stage: Stage::Probing(probing),
                ..
            },
        )) = found
        else {
            return self.refuse(Reason::Late);
        };
        // Where it was heard by now, that is better.
        if probing.is_heard {
            return self.refuse(Reason::Late);
        }
        // At the IP address that it was told of, so that nobody else is asked.
        if !is_possible || address.ip() != probing.address.ip() {
            return self.refuse(Reason::Address);
        }
        probing.mapped = Some(address);
    }

    /// A peer is told that it is not sent to straight.
    pub(super) fn say_no(&mut self, peer: NodeId, number: u64, why: No) {
        self.out.push_back((peer, Message::No { number, why }));
    }

    /// A neighbour has no meeting for this node; or the peer that was to be met will not send straight.
    pub(super) fn on_no(&mut self, now_ns: u64, via: NodeId, number: u64, why: No) {
        let meeting = self.meetings.get(&via);
        if meeting.is_some_and(|meeting| meeting.number == number) {
            return self.fail(now_ns, via, Why::No(why));
        }
        let punched = self.punched.get(&via);
        if punched.is_some_and(|punched| punched.number == number) {
            return self.release(now_ns, via, Why::No(why));
        }
        let mut meetings = self.meetings.iter_mut();
        let found = meetings.find(|(_, meeting)| (meeting.number, meeting.via) == (number, via));
        let Some((
            &peer,
            Meeting {
                stage: Stage::Asking { asked, .. },
                ..
            },
        )) = found
        else {
            return self.refuse(Reason::Late);
        };
        let asked = std::mem::take(asked);
        match why {
            No::Symmetric => self.fail(now_ns, peer, Why::No(why)),
            No::NotCommon | No::Busy | No::Taken => {
                self.ask_next(now_ns, peer, number, asked, Why::No(why))
            }
        }
    }

    /// Sends what is due, or ends it.
    pub(super) fn go_on(&mut self, now_ns: u64, peer: NodeId) {
        let Some(meeting) = self.meetings.get_mut(&peer) else {
            return;
        };
        let number = meeting.number;
        match &mut meeting.stage {
            Stage::Asking { until_ns, .. } if now_ns < *until_ns => {}
            Stage::Asking { asked, .. } => {
                let asked = std::mem::take(asked);
                self.ask_next(now_ns, peer, number, asked, Why::Unanswered);
            }
            Stage::Probing(probing) if now_ns >= probing.end_ns => {
                let address = probing.address;
                self.fail(now_ns, peer, Why::Vain(address));
            }
            Stage::Probing(probing) if now_ns >= probing.next_ns && probing.may_send() => {
                let wait_ns = PROBE_NS << probing.sent.1;
                probing.next_ns = now_ns + wait_ns;
                if !self.probes.take(now_ns) {
                    return self.refuse(Reason::Probes);
                }
                let address = probing.target();
                probing.sent = (probing.sent.0 + 1, probing.sent.1 + 1);
                self.acts.push_back(Act::Probe { peer, address });
            }
            Stage::Probing(_) => {}
        }
    }

    /// Peers that are heard straight, of those that are asked.
    pub(super) fn look_for_heard(&mut self, now_ns: u64, sights: &BTreeMap<NodeId, Sight>) {
        let listen = self.setup.listen;
        let all: Vec<NodeId> = self.meetings.keys().copied().collect();
        for peer in all {
            let Some(seen) = sights.get(&peer).and_then(|sight| sight.seen) else {
                continue;
            };
            let is_taken = self.is_taken(peer, seen.ip());
            let meeting = self.meetings.get_mut(&peer);
            let Some(Stage::Probing(probing)) = meeting.map(|meeting| &mut meeting.stage) else {
                continue;
            };
            if probing.before == Some(seen) || probing.reached.is_some() {
                continue;
            }
            probing.before = Some(seen);
            if is_taken {
                self.refuse(Reason::Taken);
                continue;
            }
            if probing.sent.0 == 0 {
                probing.is_unasked = true;
                probing.next_ns = now_ns;
                self.evidence.set_filtering(Filtering::Unfiltered);
            }
            if seen != probing.address && seen.is_ipv4() == listen.is_ipv4() {
                (probing.address, probing.is_heard) = (seen, true);
                (probing.sent.1, probing.next_ns) = (0, now_ns);
            }
        }
    }

    /// A peer has answered from where it was asked. It is told so, unless packets from there are another's.
    pub fn reached(&mut self, now_ns: u64, peer: NodeId, address: SocketAddr) {
        let is_taken = self.is_taken(peer, address.ip());
        let Some(meeting) = self.meetings.get_mut(&peer) else {
            return;
        };
        let number = meeting.number;
        let Stage::Probing(probing) = &mut meeting.stage else {
            return;
        };
        if probing.reached.is_some() || probing.sent.0 == 0 {
            return;
        }
        if is_taken {
            self.refuse(Reason::Taken);
            self.say_no(peer, number, No::Taken);
            return self.fail(now_ns, peer, Why::Taken(address.ip()));
        }
        probing.reached = Some(address);
        let is_proven = probing.is_proven;
        self.out
            .push_back((peer, Message::Proven { number, address }));
        if is_proven {
            self.adopt(now_ns, peer, address);
        }
    }

    /// A peer says that this node has answered it.
    pub(super) fn on_proven(
        &mut self,
        now_ns: u64,
        peer: NodeId,
        number: u64,
        seen_at: SocketAddr,
    ) {
        let meeting = self.meetings.get_mut(&peer);
        let meeting = meeting.filter(|meeting| meeting.number == number);
        let Some(Stage::Probing(probing)) = meeting.map(|meeting| &mut meeting.stage) else {
            return self.refuse(Reason::Late);
        };
        probing.is_proven = true;
        let (from, reached) = (probing.address.ip(), probing.reached);
        if self.is_possible(seen_at) {
            self.evidence.note(peer, from, seen_at);
        }
        if let Some(address) = reached {
            self.adopt(now_ns, peer, address);
        }
    }
}
