//! Requests for a higher sequence number: what a router that may use none of its neighbours can do about it
//! (RFC 8966, 3.8.2). Each carries the number that is too low under the destination's own signature, so
//! that nobody can make a destination count up further than to the next one.

use crate::{
    announcement::{Announcement, Authority},
    limits::{
        ASK_AGAIN_NS, ASK_AGAIN_NS_MAX, BACKUP_AFTER_NS, BACKUP_TRIES_MAX, HOPS_MAX,
        PASS_ON_AGAIN_NS, RENUMBER_NS,
    },
    message::Number,
    neighbour::{Request, Slot},
    reason::Reason,
    router::Router,
};

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
    /// There is a way, and no backup; this neighbour would be one.
    Backup(Slot),
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
                    Need::Backup(_) => (BACKUP_AFTER_NS, ASK_AGAIN_NS_MAX),
                };
                let asking = Asking {
                    at_ns: self.now.ns.saturating_add(after_ns),
                    pause_ns,
                    need,
                    tries: 0,
                };
                self.ask_ns = self.ask_ns.min(asking.at_ns);
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
            None => {
                let is_any = entry.usable(&self.neighbours).next().is_some();
                is_any.then_some(Need::Way)
            }
            Some(_) => {
                let lacks = entry.lacks_backup(self.node, &self.neighbours);
                lacks.map(|(backup, ..)| Need::Backup(backup))
            }
        }
    }

    pub(crate) fn ask_due(&mut self) {
        let now_ns = self.now.ns;
        if self.ask_ns > now_ns {
            return;
        }
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
            if asking.tries == BACKUP_TRIES_MAX && matches!(asking.need, Need::Backup(_)) {
                asking.at_ns = u64::MAX;
            }
            let Some(entry) = self.table.at(place) else {
                continue;
            };
            let Some(proof) = entry.proof.clone() else {
                continue;
            };
            let lacks = entry.lacks_backup(self.node, &self.neighbours);
            let asked = lacks.map(|(_, asked, number)| (asked, number));
            let asked = asked.or_else(|| {
                let asked = self.whom_to_ask(place, None, tries)?;
                Some((asked, Number::Higher))
            });
            let Some((slot, number)) = asked else {
                self.reasons.add(Reason::NowhereToAsk);
                continue;
            };
            let request = Request {
                hops: HOPS_MAX,
                number,
                proof,
            };
            self.send_request(slot, place, request);
        }
        let next = self.asking.values().map(|asking| asking.at_ns).min();
        self.ask_ns = next.unwrap_or(u64::MAX);
    }

    /// The primary, or one of those that may not be used, the nearest first and then in turn.
    fn whom_to_ask(&self, place: u32, but: Option<Slot>, tries: usize) -> Option<Slot> {
        let entry = self.table.at(place)?;
        let primary = entry.chosen.map(|chosen| chosen.primary);
        if primary.is_some() && primary != but {
            return primary;
        }
        let others = entry.usable(&self.neighbours);
        let others = others.filter(|(heard, _)| Some(heard.from) != but);
        let mut others: Vec<(u32, Slot)> = others
            .map(|(heard, link)| (heard.metric.saturating_add(link.cost), heard.from))
            .collect();
        others.sort_unstable();
        let turn = tries.checked_rem(others.len())?;
        others.get(turn).map(|&(_, slot)| slot)
    }

    pub(crate) fn send_request(&mut self, slot: Slot, place: u32, request: Request) {
        let has_room = match self.neighbours.at_mut(slot) {
            Some(neighbour) => neighbour.request(place, request),
            None => return,
        };
        match has_room {
            true => {
                self.speaks_to = 0;
                self.flush_soon();
            }
            false => self.reasons.add(Reason::Busy),
        }
    }

    /// A neighbour needs another number than it has.
    pub(crate) fn on_request(
        &mut self,
        from: Slot,
        (hops, number): (u8, Number),
        announcement: Announcement,
    ) {
        if !self.may_ask(from) {
            return self.reasons.add(Reason::Busy);
        }
        let place = self.table.place(announcement.destination());
        let entry = place.and_then(|place| self.table.at(place));
        let (Some(place), Some(entry)) = (place, entry) else {
            return self.reasons.add(Reason::NowhereToAsk);
        };
        let Some(wanted) = number.than(announcement.seqno()) else {
            return;
        };
        let own = entry.own.as_ref().map(|own| own.announcement.seqno());
        let advert = entry.advert.as_ref().map(|(told, _)| told.seqno());
        // What is told with such a number, the neighbour hears anyway.
        if own.or(advert).is_some_and(|has| has >= wanted) {
            return;
        }
        let proof = match self.proven(from, place, announcement) {
            Ok(proof) => proof,
            Err(reason) => return self.reasons.add(reason),
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
        let neighbour = self.neighbours.at_mut(from);
        if hops > 1 && !neighbour.is_some_and(|n| n.may_pass_on(place, now_ns)) {
            return self.reasons.add(Reason::Busy);
        }
        entry.wanted = entry.wanted.max(wanted);
        self.choose(place);
        match self.whom_to_ask(place, Some(from), 0) {
            Some(slot) if hops > 1 => {
                if let Some(entry) = self.table.at_mut(place) {
                    entry.passed_on_ns = Some(now_ns);
                }
                let request = Request {
                    hops: hops - 1,
                    number,
                    proof,
                };
                self.send_request(slot, place, request);
            }
            _ => self.reasons.add(Reason::NowhereToAsk),
        }
    }

    pub(crate) fn may_ask(&mut self, from: Slot) -> bool {
        let now_ns = self.now.ns;
        let neighbour = self.neighbours.at_mut(from);
        neighbour.is_some_and(|neighbour| neighbour.asked.take(now_ns))
    }

    /// This destination of the node's own gets a higher number, so long after its last one.
    pub(crate) fn renumber_soon(&mut self, place: u32, seqno: u64, after_ns: u64) {
        let now_ns = self.now.ns;
        let own = self.table.at_mut(place).and_then(|e| e.own.as_mut());
        let Some(own) = own else {
            return;
        };
        let may_ns = own.numbers.next_ns(now_ns);
        let at_ns = own.signed_ns.saturating_add(after_ns).max(may_ns);
        let due = self.renumbered.entry(place).or_insert((at_ns, seqno));
        due.1 = due.1.max(seqno);
    }
}
