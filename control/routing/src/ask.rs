//! Requests for a higher sequence number: what a router that may use none of its neighbours can do about it
//! (RFC 8966, 3.8.2). Each carries the number that is too low under the destination's own signature, so
//! that nobody can make a destination count up further than to the next one.

use crate::{
    announcement::{Announcement, Authority},
    limits::{
        ASK_AGAIN_NS, ASK_AGAIN_NS_MAX, BACKUP_AFTER_NS, HOPS_MAX, PASS_ON_AGAIN_NS, RENUMBER_NS,
        UNREACHABLE,
    },
    neighbour::Slot,
    reason::Reason,
    router::Router,
};
use std::sync::Arc;

/// What is asked for, and when again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asking {
    pub(crate) at_ns: u64,
    pause_ns: u64,
    need: Need,
    tries: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// No neighbour may be used.
    Way,
    /// There is a way, and no backup.
    Backup,
}

impl<A: Authority> Router<A> {
    pub(crate) fn look_whether_to_ask(&mut self, place: u32) {
        let need = self.need(place);
        let asking = self.asking.get(&place).copied();
        match (need, asking) {
            (None, _) => {
                self.asking.remove(&place);
            }
            (Some(need), Some(asking)) if asking.need == need => {}
            (Some(need), _) => {
                let (after_ns, pause_ns) = match need {
                    Need::Way => (0, ASK_AGAIN_NS),
                    Need::Backup => (BACKUP_AFTER_NS, ASK_AGAIN_NS_MAX),
                };
                let asking = Asking {
                    at_ns: self.now.ns.saturating_add(after_ns),
                    pause_ns,
                    need,
                    tries: 0,
                };
                self.asking.insert(place, asking);
            }
        }
    }

    fn need(&self, place: u32) -> Option<Need> {
        let entry = self.table.at(place)?;
        entry.proof.as_ref()?;
        if entry.own.is_some() || self.quiet_until_ns.is_some() {
            return None;
        }
        match entry.chosen {
            None if entry.heard.is_empty() => None,
            None => Some(Need::Way),
            Some(_) => entry
                .lacks_backup(self.node, &self.neighbours)
                .then_some(Need::Backup),
        }
    }

    pub(crate) fn ask_due(&mut self) {
        let now_ns = self.now.ns;
        let due = self
            .asking
            .iter()
            .filter(|(_, asking)| asking.at_ns <= now_ns);
        let due: Vec<u32> = due.map(|(&place, _)| place).collect();
        for place in due {
            let Some(asking) = self.asking.get_mut(&place) else {
                continue;
            };
            let tries = asking.tries;
            asking.tries += 1;
            asking.at_ns = now_ns.saturating_add(asking.pause_ns);
            asking.pause_ns = (2 * asking.pause_ns).min(ASK_AGAIN_NS_MAX);
            let Some(proof) = self.table.at(place).and_then(|entry| entry.proof.clone()) else {
                continue;
            };
            match self.whom_to_ask(place, None, tries) {
                Some(slot) => self.send_request(slot, place, HOPS_MAX, &proof),
                None => self.reasons.add(Reason::NowhereToAsk),
            }
        }
    }

    /// The primary, or one of those that may not be used, the nearest first and then in turn.
    fn whom_to_ask(&self, place: u32, but: Option<Slot>, tries: usize) -> Option<Slot> {
        let entry = self.table.at(place)?;
        let primary = entry.chosen.map(|chosen| chosen.primary);
        if primary.is_some() && primary != but {
            return primary;
        }
        let mut others: Vec<(u32, Slot)> = entry
            .heard
            .iter()
            .filter(|heard| Some(heard.from) != but)
            .filter_map(|heard| {
                let cost = self.neighbours.at(heard.from)?.cost;
                Some((heard.metric.saturating_add(cost), heard.from))
            })
            .filter(|&(metric, _)| metric != UNREACHABLE)
            .collect();
        others.sort_unstable();
        let turn = tries.checked_rem(others.len())?;
        others.get(turn).map(|&(_, slot)| slot)
    }

    pub(crate) fn send_request(
        &mut self,
        slot: Slot,
        place: u32,
        hops: u8,
        proof: &Arc<Announcement>,
    ) {
        let has_room = match self.neighbours.at_mut(slot) {
            Some(neighbour) => neighbour.request(place, hops, proof),
            None => return,
        };
        match has_room {
            true => self.flush_soon(),
            false => self.reasons.add(Reason::Busy),
        }
    }

    /// A neighbour needs a higher number than the announcement's.
    pub(crate) fn on_request(&mut self, from: Slot, hops: u8, announcement: Announcement) {
        let place = self.table.place(announcement.destination());
        let entry = place.and_then(|place| self.table.at(place));
        let (Some(place), Some(entry)) = (place, entry) else {
            return self.reasons.add(Reason::NowhereToAsk);
        };
        let low = announcement.seqno();
        let own = entry.own.as_ref().map(|own| own.announcement.seqno());
        let has_it = entry
            .advert
            .as_ref()
            .is_some_and(|(told, _)| told.seqno() > low);
        // What is told with a higher number, the neighbour hears anyway.
        if own.is_some_and(|own| own > low) || own.is_none() && has_it {
            return;
        }
        let proof = match self.verified(from, place, announcement) {
            Ok(proof) => proof,
            Err(reason) => return self.reasons.add(reason),
        };
        let Some(wanted) = low.checked_add(1) else {
            return;
        };
        if own.is_some() {
            return self.renumber_soon(place, wanted, RENUMBER_NS);
        }
        let now_ns = self.now.ns;
        let Some(entry) = self.table.at_mut(place) else {
            return;
        };
        let is_again = |at: u64| now_ns < at.saturating_add(PASS_ON_AGAIN_NS);
        if entry.wanted >= wanted && entry.passed_on_ns.is_some_and(is_again) {
            return;
        }
        entry.wanted = entry.wanted.max(wanted);
        entry.passed_on_ns = Some(now_ns);
        self.choose(place);
        let hops = hops - 1;
        match self.whom_to_ask(place, Some(from), 0) {
            Some(slot) if hops > 0 => self.send_request(slot, place, hops, &proof),
            _ => self.reasons.add(Reason::NowhereToAsk),
        }
    }

    /// This destination of the node's own gets a higher number, so long after its last one.
    pub(crate) fn renumber_soon(&mut self, place: u32, seqno: u64, after_ns: u64) {
        let own = self.table.at(place).and_then(|entry| entry.own.as_ref());
        let Some(own) = own else {
            return;
        };
        let at_ns = own.signed_ns.saturating_add(after_ns).max(self.now.ns);
        let due = self.renumbered.entry(place).or_insert((at_ns, seqno));
        due.1 = due.1.max(seqno);
    }
}
