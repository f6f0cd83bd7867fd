//! Fan-out trees: where a signed channel has a `fan_out` of N at its publisher, and more than N nodes subscribe, those
//! beyond N get the events by relays: nodes that may publish there themselves, subscribe, and have a `fan_out` of their own,
//! which is how many they take.
//!
//! Each node decides for itself. A child subscribes with the relay as with any publisher and stands on its roster; the relay
//! looks at its right as at anybody's, when it comes, each second and with each revocation, and what ends its place there
//! ends with the same step the stream and what was passed on in it. The publisher only proposes.
//!
//! ```text
//! publisher             relay               child
//!   | <---------- able 8  |                  |
//!   | redirect to relay -------------------> |       sends to both all the while
//!   |                     | <----------- feed |       on its roster, with a right: taken
//!   | <------- mark child |                  |
//!   | newest 40 --------> |                  |       it is meant; what is older it may have had no right to
//!   |                     | == events =====> |       twice now: each is delivered once
//!   | <---------------------------- have 42 |       all before 42, and what follows comes by the relay
//!   |                     | == events =====> |       not from the publisher any more
//!   | strike child -----> |                  |       nothing more by the relay: nothing goes to it
//!   | <------------ struck|                  |       before it has said so, where the child has no right any more
//! ```
//! Nobody has a part in this without a `fan_out` of its own: who has none passes nothing on, has nothing passed on, and gets
//! nothing by others.
//!
//! Events travel from relay to child on the relay's own stream of the channel, under its own right to publish, as they were
//! signed: forwarders, rates and gateways see them like the relay's own. What a child has not confirmed the publisher keeps,
//! and waits where that is too much. When the relay is gone, ends it, lies or is slow, the publisher sends that by itself:
//! nothing is lost while the child's session with it lasts.

mod branch;
mod child;
mod look;
mod relay;
mod strike;
mod tail;
pub mod wire;

pub(crate) use branch::Branch;
use branch::{Step, receipt_of};
pub(crate) use child::{Brings, Followed};
pub(crate) use relay::Feed;
pub use tail::TAIL_BYTES_MAX;
pub(crate) use tail::Tail;

use super::{
    delivery::Outlet,
    entry::{Entry, Index},
    message::Message,
    owed::Owed,
    publish::{Partial, Progress},
    reason::Reason,
    service::ChannelService,
};
use crate::{config::FAN_OUT_MAX, rights::Operation};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};
use virga_ebpf::header::NodeId;
use virga_transport::{Fate, Mode, Node};
use wire::{Said, What};

/// How often trees are looked at, while something is published.
const LOOK_NS: u64 = 500_000_000;
/// The longest pause before a node is told again whom to ask: twice as long each time, until something is published.
const PAUSE_NS_MAX: u64 = 64 * LOOK_NS;
/// How old a batch gets that a relay alone brings and that is not confirmed,
const PATIENCE_NS: u64 = 5_000_000_000;
/// and how long the first confirmation is waited for while the publisher sends as well.
const BEGIN_PATIENCE_NS: u64 = 10_000_000_000;
/// How long a node is served directly after a relay has failed it: twice as long after each that fails it soon after,
const AGAIN_NS: u64 = 5_000_000_000;
/// which is within so long,
const SOON_NS: u64 = 60_000_000_000;
/// and not more often than this.
const AGAIN_DOUBLED_MAX: u32 = 7;
/// What has less time than this until its deadline the publisher sends by itself, to all: with more there is time to notice
/// that a relay does not bring it, and to send it then.
const DIRECT_NS: u64 = PATIENCE_NS + 2 * LOOK_NS;
/// How long a relay is waited for that is to say that it passes nothing more on to somebody. Then it gets what follows in
/// another stream, of which it passes nothing on.
const STRIKE_PATIENCE_NS: u64 = 1_000_000_000;
/// How long a relay waits for a publisher's word that it is to pass on to somebody.
const MARK_PATIENCE_NS: u64 = 2_000_000_000;

/// What a worker has to do for trees.
#[derive(Debug, Default)]
pub(crate) struct Trees {
    /// When it looks at them.
    look_ns: Option<u64>,
    /// When it is confirmed what came by relays.
    confirm_ns: Option<u64>,
    /// Counts assignments and marks.
    last: u64,
    /// Nodes that are still to be sent what a relay did not bring.
    owing: BTreeSet<(Index, NodeId)>,
    /// Relays that may be sent nothing more in their stream, and until when publishing waits for each.
    barred: BTreeMap<(Index, NodeId), Option<u64>>,
}

impl Trees {
    pub(crate) fn due_ns(&self) -> Option<u64> {
        let barred = self.barred.values().copied();
        let timers = barred.chain([self.look_ns, self.confirm_ns]);
        timers.flatten().min()
    }

    pub(crate) fn look_soon(&mut self, now_ns: u64) {
        self.look_ns.get_or_insert(now_ns + LOOK_NS);
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

impl Entry {
    /// Nodes that get events by others, by these.
    pub(crate) fn relayed(&self) -> BTreeMap<String, Vec<String>> {
        let mut relayed: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (child, remote) in &self.roster {
            let assigned = remote.branch.assigned.as_ref();
            if let Some(assigned) = assigned.filter(|_| remote.branch.have().is_some()) {
                let children = relayed.entry(assigned.relay.to_string());
                children.or_default().push(child.to_string());
            }
        }
        relayed
    }

    /// A batch is published; where others pass it on, it is kept for them.
    pub(super) fn keep(&mut self, now_ns: u64, partial: &Partial) {
        let is_urgent = |deadline_ns| deadline_ns < now_ns.saturating_add(DIRECT_NS);
        let is_direct = partial.deadline_ns.is_some_and(is_urgent);
        if is_direct {
            self.direct_until_ns = now_ns + AGAIN_NS;
        }
        let terms = (partial.deadline_ns, is_direct);
        self.tail.push(now_ns, &partial.event, terms);
        if self.tail.is_stale() {
            self.recount();
        }
    }

    /// Counts anew what its nodes have confirmed: some of them are gone.
    fn recount(&mut self) {
        let haves = self.roster.values().filter_map(|r| r.branch.have());
        self.tail.set(haves);
    }

    /// Nobody gets its events by others any more; how many events nobody gets who was owed them.
    pub(super) fn fell(&mut self) -> u64 {
        let mut lost = 0;
        for remote in self.roster.values_mut() {
            remote.branch.assigned = None;
            lost += remote.forgive();
        }
        self.recount();
        lost
    }
}

impl<O: Outlet> ChannelService<O> {
    pub(crate) fn on_tree(&mut self, now_ns: u64, node: &mut Node, peer: NodeId, said: Said) {
        let Some(&index) = self.names.get(&said.channel) else {
            return;
        };
        if self.entries[index].spec.mode != Mode::Signed {
            return;
        }
        // Else it neither has children nor is one: it says so to whoever takes it for either.
        let is_asked = matches!(said.what, What::Redirect(_) | What::Feed(_));
        if self.entries[index].fan_out == 0 && !is_asked {
            return;
        }
        let number = said.number;
        let (at, by) = ((index, number), (peer, number));
        match said.what {
            What::Able(places) => self.on_able(now_ns, node, (index, peer), places),
            What::Mark(child, assignment) => {
                self.on_mark(now_ns, node, (peer, at), (child, assignment));
            }
            What::Have(next) => self.on_have(now_ns, node, (index, peer, number), next),
            What::Back(next, _) => self.on_back(now_ns, node, (index, peer, number), next),
            What::Gap(missing) => self.on_gap(now_ns, node, (index, peer, number), missing),
            What::Feed(entity) => self.on_feed(now_ns, node, (index, by), entity),
            What::Leave(entity) => self.on_leave(peer, index, &entity),
            What::Newest(next) => self.on_newest(now_ns, node, (peer, at), next),
            What::Redirect(relay) => self.on_redirect(now_ns, node, (index, by), relay),
            What::Ended(entity, _) => self.on_ended(now_ns, node, (index, by), &entity),
            What::Alone => self.on_alone(now_ns, node, peer, at),
            What::Hole(missing) => self.on_hole(now_ns, node, (index, by), &missing),
            What::Strike(child) => self.on_strike(now_ns, node, (index, by), child),
            What::Struck => self.on_struck(now_ns, node, (index, by)),
        }
    }

    /// Says something about a channel's tree.
    fn tell_tree(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        peer: NodeId,
        (index, number, what): (Index, u64, What),
    ) {
        let channel = self.entries[index].name().clone();
        let said = Said {
            channel,
            number,
            what,
        };
        self.tell(now_ns, node, peer, &Message::Tree(said));
    }

    /// Whether an assignment is this node's, and holds.
    fn is_child(&self, peer: NodeId, (index, number): (Index, u64)) -> bool {
        let remote = self.entries[index].roster.get(&peer);
        remote.is_some_and(|remote| remote.branch.is_assigned(number))
    }

    /// A subscriber passes events on.
    fn on_able(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (index, peer): (Index, NodeId),
        places: u16,
    ) {
        let entry = &mut self.entries[index];
        let Some(remote) = entry.roster.get_mut(&peer).filter(|_| entry.fan_out > 0) else {
            return;
        };
        remote.branch.places = places.min(FAN_OUT_MAX.into()).into();
        if remote.branch.assigned.is_some() && self.is_relay(now_ns, index, peer) {
            // A relay is served by the publisher, for a while also where it changes its mind.
            if let Some(remote) = self.entries[index].roster.get_mut(&peer) {
                remote.branch.again_ns = remote.branch.again_ns.max(now_ns + AGAIN_NS);
            }
            self.take_back(now_ns, node, (index, peer), Blame::Nobody);
            self.settle_trees(now_ns, node, index);
        }
        self.trees.look_soon(now_ns);
    }

    /// Whether a node passes this node's events on: it says so, and may publish itself.
    fn is_relay(&self, now_ns: u64, index: Index, peer: NodeId) -> bool {
        let entry = &self.entries[index];
        let remote = entry.roster.get(&peer);
        let publish = Operation::Publish;
        remote.is_some_and(|remote| remote.branch.places > 0)
            && self.sessions.get(&peer).is_some_and(|session| {
                let right = self.rights.peer_may(now_ns, entry, session, publish);
                entry.publishers.contains(&session.entity) && right.is_ok()
            })
    }

    /// A relay asks what was published before it takes somebody: it is told where it was named to that one, and else passes
    /// nothing on.
    fn on_mark(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (relay, (index, mark)): (NodeId, (Index, u64)),
        (child, assignment): (NodeId, u64),
    ) {
        let Entry { roster, tail, .. } = &self.entries[index];
        let assigned = roster.get(&child).and_then(|r| r.branch.assigned.as_ref());
        if assigned.is_some_and(|a| a.number == assignment && a.relay == relay) {
            let newest = What::Newest(tail.newest());
            self.tell_tree(now_ns, node, relay, (index, mark, newest));
        }
    }

    /// A child says what is there.
    fn on_have(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (index, child, number): (Index, NodeId, u64),
        next: u64,
    ) {
        if !self.is_child(child, (index, number)) {
            return;
        }
        let Entry { roster, tail, .. } = &mut self.entries[index];
        if next > tail.newest() {
            self.reasons.add(Reason::RelayClaim);
            self.take_back(now_ns, node, (index, child), Blame::Relay);
        } else if let Some(remote) = roster.get_mut(&child) {
            remote.confirm(tail, next);
        }
        self.settle_trees(now_ns, node, index);
    }

    /// A child wants to be served by its publisher.
    fn on_back(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (index, child, number): (Index, NodeId, u64),
        next: u64,
    ) {
        if !self.is_child(child, (index, number)) {
            return;
        }
        let remote = self.entries[index].roster.get(&child);
        // While the publisher sends as well, nothing is missing.
        if remote.is_some_and(|remote| remote.branch.have().is_some()) {
            self.on_have(now_ns, node, (index, child, number), next);
        }
        if self.is_child(child, (index, number)) {
            self.take_back(now_ns, node, (index, child), Blame::Relay);
            self.settle_trees(now_ns, node, index);
        }
    }

    /// A child misses something between two batches that its relay brought.
    fn on_gap(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (index, child, number): (Index, NodeId, u64),
        missing: Range<u64>,
    ) {
        if !self.is_child(child, (index, number)) {
            return;
        }
        let Entry { roster, tail, .. } = &self.entries[index];
        let have = roster.get(&child).and_then(|r| r.branch.have());
        if have.is_some_and(|have| tail.is_hole(have, &missing)) {
            return self.tell_tree(now_ns, node, child, (index, number, What::Hole(missing)));
        }
        self.take_back(now_ns, node, (index, child), Blame::Relay);
        self.settle_trees(now_ns, node, index);
    }

    /// A node is served by its publisher from now on, and is owed what it has not confirmed.
    fn take_back(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (index, child): (Index, NodeId),
        blame: Blame,
    ) {
        let entry = &mut self.entries[index];
        let Some(remote) = entry.roster.get_mut(&child) else {
            return;
        };
        let Some(assigned) = remote.branch.assigned.take() else {
            return;
        };
        if let Blame::Relay = blame {
            let branch = &mut remote.branch;
            let is_soon = now_ns.saturating_sub(assigned.since_ns) < SOON_NS;
            let doubled = if is_soon { branch.failures } else { 0 };
            branch.failures = (doubled + 1).min(AGAIN_DOUBLED_MAX);
            branch.refused = Some(assigned.relay);
            branch.again_ns = now_ns + (AGAIN_NS << doubled);
        }
        if let Step::Relayed { have, mut receipts } = assigned.step {
            self.reasons.add(Reason::RelayFailed);
            // What is half way out and was not offered to it yet is not owed.
            let begun = match &entry.progress {
                Progress::Partial(partial) if partial.misses(child) => Some(&partial.event),
                Progress::Partial(_) | Progress::Idle => None,
            };
            let unsaid = entry.tail.after(have).filter(|kept| !kept.is_direct);
            for kept in unsaid.filter(|kept| Some(&kept.batch) != begun) {
                let receipt = receipt_of(&mut receipts, kept.span.end);
                remote.owed.push(Owed {
                    batch: kept.batch.clone(),
                    deadline_ns: kept.deadline_ns,
                    receipt,
                });
            }
            for (_, receipt) in receipts {
                remote.pending.settle(receipt, Fate::Expired);
            }
            entry.tail.remove(have);
            entry.tail.trim();
            self.trees.owing.insert((index, child));
        }
        let alone = (index, assigned.number, What::Alone);
        self.tell_tree(now_ns, node, child, alone);
        let place = (assigned.relay, assigned.number);
        self.strike(now_ns, node, (index, child), place);
    }

    /// Sends what is owed, and what may have waited for that.
    fn settle_trees(&mut self, now_ns: u64, node: &mut Node, index: Index) {
        self.pay_owed(now_ns, node);
        if self.blocked.remove(&index) {
            self.pump(now_ns, node, index);
        }
    }

    /// Where the next batch has no time for relays, all are served by this node from now on.
    pub(super) fn serve_directly(&mut self, now_ns: u64, node: &mut Node, index: Index) {
        let entry = &self.entries[index];
        if entry.fan_out == 0 || !entry.tail.is_last_direct() {
            return;
        }
        let roster = entry.roster.iter();
        let relayed = roster.filter(|(_, remote)| remote.branch.assigned.is_some());
        for child in relayed.map(|(&child, _)| child).collect::<Vec<_>>() {
            self.take_back(now_ns, node, (index, child), Blame::Nobody);
        }
        self.pay_owed(now_ns, node);
    }

    /// Sends what relays did not bring, as far as there is room.
    pub(crate) fn pay_owed(&mut self, now_ns: u64, node: &mut Node) {
        self.turn_over(now_ns, node);
        for (index, peer) in std::mem::take(&mut self.trees.owing) {
            let Entry {
                spec,
                roster,
                counters,
                ..
            } = &mut self.entries[index];
            let Some(remote) = roster.get_mut(&peer) else {
                continue;
            };
            match remote.pay(now_ns, node, (spec, peer)) {
                Ok(true) => {}
                Ok(false) => {
                    self.trees.owing.insert((index, peer));
                }
                Err(lost) => {
                    counters.dropped += lost;
                    self.reasons.add_many(Reason::PeerGone, lost);
                }
            }
        }
    }
}

/// Whether a relay is not asked again at once.
#[derive(Clone, Copy, Debug)]
enum Blame {
    Relay,
    Nobody,
}
