//! Who leads the next epoch.

use super::{Part, Replica, Store, message::Body};
use crate::{disk::Disk, limits::FETCH_AGAIN_NS};
use virga_ebpf::header::NodeId;

impl<D: Disk> Replica<D> {
    /// Asks all others to lead the next epoch.
    pub(super) fn ask(&mut self, now_ns: u64, store: &mut Store<'_, D>) {
        self.put_off(now_ns);
        if !store.log.is_durable() {
            // It says where its log ends: that has to be true after a crash too.
            self.due_ns = now_ns.saturating_add(FETCH_AGAIN_NS);
            return;
        }
        let me = self.group.me;
        let Some(epoch) = self.promise.epoch.checked_add(1) else {
            self.end("there is no later epoch".to_owned());
            return;
        };
        if !self.enter(now_ns, epoch, Some(me)) {
            return;
        }
        self.part = Part::Asks(vec![(me, self.promise.is_whole)]);
        let (settled, end) = (self.promise.settled, store.log.end());
        self.say_all(&Body::Ask { settled, end });
        self.count_votes(now_ns, store);
    }

    pub(super) fn handle_ask(
        &mut self,
        now_ns: u64,
        from: NodeId,
        epoch: u64,
        asks: (u64, u64),
        store: &Store<'_, D>,
    ) {
        let is_newer = epoch > self.promise.epoch;
        let is_free = is_newer || self.promise.voted.is_none_or(|voted| voted == from);
        let own = (self.promise.settled, store.log.acknowledged());
        let granted = is_free && asks >= own;
        let voted = granted.then_some(from);
        if (is_newer || granted && self.promise.voted != voted) && !self.enter(now_ns, epoch, voted)
        {
            return;
        }
        if granted {
            self.put_off(now_ns);
        }
        let is_whole = self.promise.is_whole;
        self.say(from, Body::Vote { granted, is_whole });
    }

    /// A vote, and whether the voter is whole, where it was granted.
    pub(super) fn handle_vote(
        &mut self,
        now_ns: u64,
        from: NodeId,
        granted: Option<bool>,
        store: &mut Store<'_, D>,
    ) {
        let (Part::Asks(votes), Some(is_whole)) = (&mut self.part, granted) else {
            return;
        };
        if votes.iter().all(|(voter, _)| *voter != from) {
            votes.push((from, is_whole));
        }
        self.count_votes(now_ns, store);
    }

    fn count_votes(&mut self, now_ns: u64, store: &mut Store<'_, D>) {
        let Part::Asks(votes) = &self.part else {
            return;
        };
        let whole = votes.iter().filter(|(_, is_whole)| *is_whole).count();
        let is_all = votes.len() == self.group.count();
        if is_all || whole >= self.group.quorum() {
            // Who has the votes of all knows what any of them promised.
            self.promise.is_whole |= is_all;
            self.lead(now_ns, store);
        }
    }
}
