//! Who leads the next epoch.

use super::{Part, Replica, Store, message::Body};
use crate::{
    disk::Disk,
    limits::{FETCH_AGAIN_NS, LEADERLESS_NS_MIN},
};
use virga_ebpf::header::NodeId;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// Whether there would be votes.
    Trial,
    /// Votes.
    Vote,
}

/// Who said yes so far.
#[derive(Debug)]
pub(super) struct Asking {
    round: Round,
    /// And whether each of them is whole.
    votes: Vec<(NodeId, bool)>,
}

impl<D: Disk> Replica<D> {
    /// Asks all others whether they would have this one lead.
    pub(super) fn try_out(&mut self, now_ns: u64, store: &mut Store<'_, D>) {
        self.put_off(now_ns);
        if !store.log.is_durable() {
            // It says where its log ends: that has to be true after a crash too.
            self.due_ns = now_ns.saturating_add(FETCH_AGAIN_NS);
            return;
        }
        self.begin(Round::Trial);
        let (settled, end) = (self.promise.settled, store.log.end());
        self.say_all(&Body::Try { settled, end });
        self.count_votes(now_ns, store);
    }

    /// One more can be asked now: a trial that is under way is due again.
    pub(super) fn try_again(&mut self) {
        if matches!(&self.part, Part::Asks(asking) if asking.round == Round::Trial) {
            self.due_ns = 0;
        }
    }

    fn begin(&mut self, round: Round) {
        let votes = vec![(self.group.me, self.promise.is_whole)];
        self.part = Part::Asks(Asking { round, votes });
    }

    /// Asks all others to lead the next epoch.
    fn ask(&mut self, now_ns: u64, store: &mut Store<'_, D>) {
        self.put_off(now_ns);
        let me = self.group.me;
        let Some(epoch) = self.promise.epoch.checked_add(1) else {
            self.end("there is no later epoch".to_owned());
            return;
        };
        if !self.enter(now_ns, epoch, Some(me)) {
            return;
        }
        self.begin(Round::Vote);
        let (settled, end) = (self.promise.settled, store.log.end());
        self.say_all(&Body::Ask { settled, end });
        self.count_votes(now_ns, store);
    }

    /// Whether there is a leader, as far as this replica knows.
    fn has_leader(&self, now_ns: u64) -> bool {
        let is_recent = |heard_ns| now_ns < LEADERLESS_NS_MIN.saturating_add(heard_ns);
        matches!(self.part, Part::Leads(_)) || self.heard_ns.is_some_and(is_recent)
    }

    pub(super) fn handle_try(
        &mut self,
        now_ns: u64,
        from: NodeId,
        asks: (u64, u64),
        store: &Store<'_, D>,
    ) {
        let own = (self.promise.settled, store.log.acknowledged());
        let granted = !self.has_leader(now_ns) && asks >= own;
        let is_whole = self.promise.is_whole;
        self.say(from, Body::Would { granted, is_whole });
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

    /// An answer, and whether its sender is whole, where it says yes.
    pub(super) fn handle_vote(
        &mut self,
        now_ns: u64,
        from: NodeId,
        (round, granted): (Round, Option<bool>),
        store: &mut Store<'_, D>,
    ) {
        let (Part::Asks(asking), Some(is_whole)) = (&mut self.part, granted) else {
            return;
        };
        if asking.round != round {
            return;
        }
        if asking.votes.iter().all(|(voter, _)| *voter != from) {
            asking.votes.push((from, is_whole));
        }
        self.count_votes(now_ns, store);
    }

    fn count_votes(&mut self, now_ns: u64, store: &mut Store<'_, D>) {
        let Part::Asks(Asking { round, votes }) = &self.part else {
            return;
        };
        let whole = votes.iter().filter(|(_, is_whole)| *is_whole).count();
        let is_all = votes.len() == self.group.count();
        if !is_all && whole < self.group.quorum() {
            return;
        }
        match round {
            Round::Trial => self.ask(now_ns, store),
            Round::Vote => {
                // Who has the votes of all knows what any of them promised.
                self.promise.is_whole |= is_all;
                self.lead(now_ns, store);
            }
        }
    }
}
