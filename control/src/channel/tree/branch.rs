//! By whom a subscriber gets the events of its publisher, at that.

use super::{
    super::{entry::Remote, offer::Taken, owed::Owed, publish::Partial, signed::span_of},
    LOOK_NS, PATIENCE_NS, PAUSE_NS_MAX, STRIKE_PATIENCE_NS, Tail,
};
use std::collections::{BTreeMap, VecDeque};
use virga_ebpf::header::{NodeId, StreamId};
use virga_transport::{Fate, Node, Receipt};

/// A subscriber's place with a publisher.
#[derive(Debug, Default)]
pub(crate) struct Branch {
    /// How many nodes it takes as a relay, if it may publish itself.
    pub(super) places: usize,
    /// As a relay it was told to pass nothing more on to somebody, and has not said yet that it does not.
    pub(super) struck: Option<Struck>,
    /// By whom it gets events, or is to.
    pub(super) assigned: Option<Assigned>,
    /// The relay that failed it last,
    pub(super) refused: Option<NodeId>,
    /// and how many have one soon after the other.
    pub(super) failures: u32,
    /// It is served directly until then.
    pub(super) again_ns: u64,
}

/// What a relay was told to stop, and has not said that it did.
#[derive(Debug)]
pub(super) struct Struck {
    /// The child of each assignment, and what of it.
    pub(super) due: BTreeMap<u64, (NodeId, Due)>,
    /// Since when it has not answered.
    pub(super) since_ns: u64,
    /// Since when one of those is off the roster.
    pub(super) barred_since_ns: Option<u64>,
}

impl Struck {
    /// Until when publishing waits for it, or until it has answered for all that are off the roster: as long as for one,
    /// whoever follows.
    fn holds_until_ns(&self) -> Option<u64> {
        Some(self.barred_since_ns?.saturating_add(STRIKE_PATIENCE_NS))
    }

    /// A child is off the roster; whether nothing more may go to the relay for that.
    pub(super) fn bar(&mut self, now_ns: u64, child: NodeId) -> bool {
        let due = self.due.values_mut();
        let mut is_one = false;
        for (_, due) in due.filter(|one| **one == (child, Due::Served)) {
            (*due, is_one) = (Due::Gone, true);
        }
        if is_one {
            self.barred_since_ns.get_or_insert(now_ns);
        }
        is_one
    }

    /// It has answered; whether that was due.
    pub(super) fn answered(&mut self, now_ns: u64, number: u64) -> bool {
        let is_due = self.due.remove(&number).is_some();
        if is_due {
            self.since_ns = now_ns;
        }
        if !self.due.values().any(|(_, due)| *due == Due::Gone) {
            self.barred_since_ns = None;
        }
        is_due
    }

    /// Whether it has not answered for as long as a relay may take for anything, or for as long as it is waited for.
    fn is_late(&self, now_ns: u64) -> bool {
        let is_cut = self.due.values().any(|(_, due)| *due == Due::Over);
        let is_awaited_no_more = self.holds_until_ns().is_some_and(|until| now_ns >= until);
        let is_silent = now_ns.saturating_sub(self.since_ns) >= PATIENCE_NS;
        is_cut || is_awaited_no_more || is_silent
    }
}

/// A node that a relay was to pass nothing more on to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// It gets events from their publisher.
    Served,
    /// It is off the roster: nothing is sent to the relay in this stream any more.
    Gone,
    /// That stream is finished, and what is passed on with it.
    Over,
}

/// Who passes events on to a subscriber.
#[derive(Debug)]
pub(super) struct Assigned {
    pub(super) relay: NodeId,
    pub(super) number: u64,
    pub(super) since_ns: u64,
    pub(super) step: Step,
}

#[derive(Debug)]
pub(super) enum Step {
    /// The subscriber was told to get them there; the publisher sends all the while.
    Asked {
        /// Since when something is published that the relay should have brought.
        waits_ns: Option<u64>,
        again: Again,
    },
    /// The relay alone sends.
    Relayed {
        /// All events before this one are there.
        have: u64,
        /// Of tallied batches that are not: the number of the event after each.
        receipts: VecDeque<(u64, Receipt)>,
    },
}

/// When something is said again that may have been lost, or come too early.
#[derive(Debug)]
pub(super) struct Again {
    due_ns: u64,
    pause_ns: u64,
}

impl Again {
    /// It is said now.
    pub(super) const fn said(now_ns: u64) -> Self {
        Self {
            due_ns: now_ns.saturating_add(LOOK_NS),
            pause_ns: LOOK_NS,
        }
    }

    /// Whether it is now, and then again in twice the time.
    pub(super) fn is_due(&mut self, now_ns: u64) -> bool {
        let is_due = self.due_ns <= now_ns;
        if is_due {
            self.pause_ns = (2 * self.pause_ns).min(PAUSE_NS_MAX);
            self.due_ns = now_ns.saturating_add(self.pause_ns);
        }
        is_due
    }
}

impl Branch {
    /// What it has confirmed, while a relay alone sends.
    pub(super) fn have(&self) -> Option<u64> {
        match &self.assigned.as_ref()?.step {
            Step::Relayed { have, .. } => Some(*have),
            Step::Asked { .. } => None,
        }
    }

    /// Whether it has not answered for too long.
    pub(super) fn is_silent(&self, now_ns: u64) -> bool {
        let struck = self.struck.as_ref();
        struck.is_some_and(|struck| struck.is_late(now_ns))
    }

    /// Whether it is to get events by a relay.
    pub(super) fn is_by(&self, relay: NodeId) -> bool {
        self.assigned.as_ref().is_some_and(|a| a.relay == relay)
    }

    pub(super) fn is_assigned(&self, number: u64) -> bool {
        self.assigned.as_ref().is_some_and(|a| a.number == number)
    }

    #[cfg(test)]
    pub(crate) const fn is_struck(&self) -> bool {
        self.struck.is_some()
    }

    #[cfg(test)]
    pub(crate) fn number(&self) -> u64 {
        self.assigned.as_ref().map_or(0, |assigned| assigned.number)
    }
}

impl Remote {
    /// Until when publishing waits for it, where nothing more may go to it yet.
    pub(super) fn holds_until_ns(&self) -> Option<u64> {
        self.branch.struck.as_ref()?.holds_until_ns()
    }

    /// Whether nothing more may go to it yet: it might pass it on to a node that has no right to it any more.
    pub(in super::super) fn is_barred(&self) -> bool {
        self.holds_until_ns().is_some()
    }

    /// Keeps an event for it until it may have it: publishing waits, or it is owed where that was long enough.
    pub(in super::super) fn hold(
        &mut self,
        now_ns: u64,
        peer: NodeId,
        partial: &Partial,
    ) -> Option<Taken> {
        let is_awaited = now_ns < self.holds_until_ns()?;
        if is_awaited || self.is_full_for(partial) {
            return Some(Taken::Full);
        }
        let receipt = partial.tallied.as_ref().map(|tallied| {
            tallied.tally.sent(peer);
            self.pending.add(peer, tallied);
            tallied.receipt
        });
        self.owed.push(Owed {
            batch: partial.event.clone(),
            deadline_ns: partial.deadline_ns,
            receipt,
        });
        Some(Taken::Relayed)
    }

    /// Whether it has not answered in time: its stream is to drain.
    pub(super) fn is_overdue(&self, now_ns: u64) -> bool {
        self.holds_until_ns().is_some_and(|until| now_ns >= until)
    }

    /// Whether it is to get what follows in another stream: all of the one before is there.
    pub(super) fn is_to_turn(&self, now_ns: u64, node: &Node, peer: NodeId) -> bool {
        let is_on_its_way = |stream: StreamId| node.queued_on(peer, stream) > 0;
        self.is_overdue(now_ns) && !self.stream.is_some_and(is_on_its_way)
    }

    /// Has it get that in another stream: what a relay passes on comes in one, and ends with that.
    pub(super) fn turn_over(&mut self, now_ns: u64, node: &mut Node, peer: NodeId) {
        if let Some(struck) = &mut self.branch.struck {
            struck.barred_since_ns = None;
            for (_, due) in struck.due.values_mut() {
                *due = Due::Over;
            }
        }
        if let Some(stream) = self.stream.take() {
            // Where the session is gone, the stream is too.
            let _gone = node.finish_stream(now_ns, peer, stream);
        }
    }

    /// Leaves an event to the relay that brings it, if one does.
    pub(in super::super) fn leave(
        &mut self,
        now_ns: u64,
        (peer, tail): (NodeId, &Tail),
        partial: &Partial,
    ) -> Option<Taken> {
        let assigned = self.branch.assigned.as_mut()?;
        let (have, receipts) = match &mut assigned.step {
            Step::Asked { waits_ns, again } => {
                if waits_ns.is_none() {
                    // From now on it matters.
                    (*waits_ns, *again) = (Some(now_ns), Again::said(now_ns));
                }
                return None;
            }
            Step::Relayed { have, receipts } => (*have, receipts),
        };
        if tail.is_last_direct() {
            return None;
        }
        if tail.is_full_for(have) {
            return Some(Taken::Full);
        }
        let Some(tallied) = &partial.tallied else {
            return Some(Taken::Relayed);
        };
        if self.pending.events() >= tallied.tally.in_flight_max() {
            return Some(Taken::Full);
        }
        let end = span_of(&partial.event)?.end;
        tallied.tally.sent(peer);
        self.pending.add(peer, tallied);
        match end <= have {
            // It came while it was not its turn here.
            true => self.pending.settle(tallied.receipt, Fate::Acknowledged),
            false => receipts.push_back((end, tallied.receipt)),
        }
        Some(Taken::Relayed)
    }

    /// It has all events before `next`, by a relay.
    pub(super) fn confirm(&mut self, tail: &mut Tail, next: u64) {
        let Some(assigned) = &mut self.branch.assigned else {
            return;
        };
        if matches!(assigned.step, Step::Asked { .. }) {
            // What was published before it was let in is not meant for it.
            let first = self.first.unwrap_or_else(|| tail.newest());
            let have = tail.begin().max(first);
            tail.add(have);
            let receipts = VecDeque::new();
            assigned.step = Step::Relayed { have, receipts };
        }
        let Step::Relayed { have, receipts } = &mut assigned.step else {
            return;
        };
        if next <= *have {
            return;
        }
        tail.remove(*have);
        tail.add(next);
        *have = next;
        while let Some(&(end, receipt)) = receipts.front()
            && end <= next
        {
            receipts.pop_front();
            self.pending.settle(receipt, Fate::Acknowledged);
        }
        tail.trim();
    }
}

/// Of receipts in order, that of the batch that ends there.
pub(super) fn receipt_of(receipts: &mut VecDeque<(u64, Receipt)>, end: u64) -> Option<Receipt> {
    match receipts.front() {
        Some(&(of, receipt)) if of == end => {
            receipts.pop_front();
            Some(receipt)
        }
        _ => None,
    }
}
