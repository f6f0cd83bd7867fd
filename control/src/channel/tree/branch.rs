//! By whom a subscriber gets the events of its publisher, at that.

use super::{
    super::{entry::Remote, offer::Taken, publish::Partial, signed::span_of},
    PATIENCE_NS, Tail,
};
use std::collections::{BTreeMap, VecDeque};
use virga_ebpf::header::NodeId;
use virga_transport::{Fate, Receipt};

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
    /// The child of each assignment, and whether it is off the roster: then nothing is sent to the relay for a while.
    pub(super) due: BTreeMap<u64, (NodeId, bool)>,
    /// Since when it has not answered.
    pub(super) since_ns: u64,
    /// Nothing is sent to it until then, or until it has answered for those that are off the roster.
    pub(super) holds_until_ns: u64,
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
    /// The subscriber was told to get them there; the publisher sends all the while. Since when something is published that
    /// the relay should have brought.
    Asked { waits_ns: Option<u64> },
    /// The relay alone sends.
    Relayed {
        /// All events before this one are there.
        have: u64,
        /// Of tallied batches that are not: the number of the event after each.
        receipts: VecDeque<(u64, Receipt)>,
    },
}

impl Branch {
    /// What it has confirmed, while a relay alone sends.
    pub(super) fn have(&self) -> Option<u64> {
        match &self.assigned.as_ref()?.step {
            Step::Relayed { have, .. } => Some(*have),
            Step::Asked { .. } => None,
        }
    }

    /// Whether it has not answered for as long as a relay may take for anything.
    pub(super) fn is_silent(&self, now_ns: u64) -> bool {
        let struck = self.struck.as_ref();
        struck.is_some_and(|struck| now_ns.saturating_sub(struck.since_ns) >= PATIENCE_NS)
    }

    pub(super) fn is_assigned(&self, number: u64) -> bool {
        self.assigned.as_ref().is_some_and(|a| a.number == number)
    }

    #[cfg(test)]
    pub(crate) fn number(&self) -> u64 {
        self.assigned.as_ref().map_or(0, |assigned| assigned.number)
    }
}

impl Remote {
    /// Whether nothing more may go to it yet: it might pass it on to a node that has no right to it any more.
    pub(in super::super) fn is_barred(&self, now_ns: u64) -> bool {
        let struck = self.branch.struck.as_ref();
        struck.is_some_and(|struck| {
            let mut due = struck.due.values();
            now_ns < struck.holds_until_ns && due.any(|(_, is_gone)| *is_gone)
        })
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
            Step::Asked { waits_ns } => {
                waits_ns.get_or_insert(now_ns);
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
