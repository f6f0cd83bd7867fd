//! When a peer is tried, and whose meeting is asked for.

use super::{
    Nat, Peer, Relation, Why,
    meeting::{Meeting, Stage},
};
use crate::{
    limits::{
        ANSWER_NS, MEETINGS_MAX, PUNCHED_MAX, RETRY_NS, RETRY_NS_MAX, SETTLE_NS, SYMMETRIC_NS_MAX,
    },
    wire::{Message, No},
};
use std::collections::BTreeSet;
use virga_ebpf::header::NodeId;

/// What became of a peer that is to be sent to straight.
#[derive(Debug)]
pub(super) struct Tried {
    pub(super) count: u32,
    /// Those of them that the pause before the next one goes by.
    pub(super) in_vain: u32,
    /// A port was mapped while a try was under way, which may not have known of it.
    pub(super) is_overtaken: bool,
    pub(super) next_ns: u64,
    pub(super) why: Why,
    /// The neighbour that was asked last: the next try begins with the one behind it.
    pub(super) via: Option<NodeId>,
}

impl Nat {
    /// Asks for meetings with those that it is time for.
    pub(super) fn begin_tries(&mut self, now_ns: u64) {
        let wanted = self.peers.iter();
        let wanted = wanted.filter(|(_, known)| known.sight.relation == Relation::Wanted);
        for peer in wanted.map(|(&peer, _)| peer).collect::<Vec<_>>() {
            if self.meetings.contains_key(&peer) || self.punched.contains_key(&peer) {
                continue;
            }
            let is_theirs = peer < self.setup.own;
            let tried = self.tried.entry(peer).or_insert(Tried {
                count: 0,
                in_vain: 0,
                is_overtaken: false,
                next_ns: now_ns + SETTLE_NS,
                why: if is_theirs { Why::Theirs } else { Why::Fresh },
                via: None,
            });
            if is_theirs || now_ns < tried.next_ns || !self.has_room() {
                continue;
            }
            let number = self.number();
            self.ask_next(now_ns, peer, number, BTreeSet::new(), Why::Nobody);
        }
    }

    pub(super) fn has_room(&self) -> bool {
        let many = self.meetings.len() + self.punched.len();
        let places = self.places.iter().map(|(node, _)| *node);
        let nodes: BTreeSet<NodeId> = places.chain(self.punched.keys().copied()).collect();
        self.meetings.len() < MEETINGS_MAX
            && many < PUNCHED_MAX
            && nodes.len() + self.meetings.len() < self.setup.neighbours_max
    }

    /// Asks the next neighbour for a meeting, the one behind that of the last try first; after all of them the try has
    /// failed.
    pub(super) fn ask_next(
        &mut self,
        now_ns: u64,
        peer: NodeId,
        number: u64,
        mut asked: BTreeSet<NodeId>,
        why: Why,
    ) {
        let is_next = |(node, known): &(&NodeId, &Peer)| {
            known.is_neighbour() && known.mapping.is_some() && !asked.contains(node)
        };
        let last = self.tried.get(&peer).and_then(|tried| tried.via);
        let behind = self.peers.iter().filter(|(node, _)| Some(**node) > last);
        let found = behind.chain(&self.peers).find(is_next);
        let Some(via) = found.map(|(&via, _)| via) else {
            return self.fail(now_ns, peer, why);
        };
        asked.insert(via);
        self.out
            .push_back((via, Message::Ask { number, node: peer }));
        let stage = Stage::Asking {
            asked,
            until_ns: now_ns + ANSWER_NS,
        };
        self.meetings.insert(peer, Meeting { number, via, stage });
    }

    /// A try is over: the next one comes later.
    pub(super) fn fail(&mut self, now_ns: u64, peer: NodeId, why: Why) {
        let over = self.meetings.remove(&peer);
        let is_real = why != Why::Nobody;
        self.counted[2] += u64::from(is_real);
        let before = self.tried.get(&peer);
        let (count, in_vain) = before.map_or((0, 0), |tried| (tried.count, tried.in_vain));
        let last = before.and_then(|tried| tried.via);
        let is_overtaken = before.is_some_and(|tried| tried.is_overtaken);
        let cap_ns = match why {
            Why::No(No::Symmetric) => SYMMETRIC_NS_MAX,
            _ => RETRY_NS_MAX,
        };
        let most_ns = (RETRY_NS << in_vain.min(16)).min(cap_ns);
        let wait_ns = match is_overtaken {
            true => SETTLE_NS,
            false => most_ns / 2 + self.number() % (most_ns / 2 + 1),
        };
        let tried = Tried {
            count: count.saturating_add(is_real.into()),
            in_vain: in_vain.saturating_add(is_real.into()),
            is_overtaken: false,
            next_ns: now_ns + wait_ns,
            why,
            via: over.map_or(last, |over| Some(over.via)),
        };
        self.tried.insert(peer, tried);
    }

    /// There may be a new way to a peer: the next try is now, and the pauses behind it are as after so many in vain at most.
    pub(super) fn hurry(&mut self, now_ns: u64, peer: NodeId, in_vain_max: u32) {
        let is_under_way = self.meetings.contains_key(&peer);
        if !self.punched.contains_key(&peer)
            && let Some(tried) = self.tried.get_mut(&peer)
        {
            tried.in_vain = tried.in_vain.min(in_vain_max);
            tried.is_overtaken = is_under_way;
            tried.next_ns = tried.next_ns.min(now_ns + SETTLE_NS);
        }
    }
}
