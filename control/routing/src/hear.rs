//! What neighbours say is taken in.

use crate::{
    announcement::{Announcement, Authority, Destination, Doubt},
    limits::{
        AHEAD_S, FORGED_MAX, HOPS_MAX, LIFETIME_S, RENUMBER_NS, SKEW_S, TWIN_PAUSE_NS, TWINS_MAX,
        UNREACHABLE,
    },
    message::{self, Item, Number},
    neighbour::{Refused, Request, Slot},
    reason::Reason,
    router::{Now, Router},
    table::{Entry, Heard},
};
use std::sync::Arc;
use virga_ebpf::header::NodeId;

const SECOND_NS: u64 = 1_000_000_000;

impl<A: Authority> Router<A> {
    /// A neighbour said something, on the stream that there is to it since [`Router::neighbour_up`].
    pub fn handle(&mut self, now: Now, from: NodeId, bytes: &[u8]) {
        self.now = now;
        let Some(slot) = self.neighbours.slot(from) else {
            return;
        };
        let Ok(items) = message::parse(bytes) else {
            return self.reasons.add(Reason::Malformed);
        };
        for item in items {
            let forged = self.neighbours.at(slot).map_or(0, |n| n.forged);
            if forged >= FORGED_MAX {
                self.reasons.add(Reason::Muted);
                return;
            }
            match item {
                Item::Route {
                    metric,
                    announcement,
                } => self.on_route(slot, metric, announcement),
                Item::Metric {
                    metric,
                    destination,
                } => self.on_metric(slot, metric, destination),
                Item::Request {
                    hops,
                    number,
                    announcement,
                } => self.on_request(slot, (hops, number), announcement),
                Item::Again { destination } => self.on_again(slot, destination),
            }
        }
    }

    fn on_route(&mut self, from: Slot, metric: u32, announcement: Announcement) {
        let (destination, origin) = (announcement.destination(), announcement.origin());
        let (subnet, place) = (announcement.subnet(), self.setup.subnet);
        let known = self.table.place(destination);
        let entry = known.and_then(|place| self.table.at_mut(place));
        match (known, entry) {
            (Some(place), Some(entry)) if entry.own.is_some() => {
                return self.on_own(from, place, announcement);
            }
            _ => {}
        }
        let (speaker, from_s) = (announcement.speaker(), self.passes_from_s(&announcement));
        let taken = match self.setup.aggregation.tells(destination, subnet, place) {
            true => self.take(from, known, announcement),
            false => Err(Reason::Scope),
        };
        if let Some(entry) = known.and_then(|place| self.table.at_mut(place)) {
            let held = entry.heard.iter_mut().find(|heard| heard.from == from);
            match (&taken, held) {
                // It may be this node's clock that is wrong, and the neighbour's feasible distance has only got
                // better since: what it said before holds until it ends, no nearer than it is now.
                (Err(Reason::Expired | Reason::Ahead), Some(held)) => {
                    held.metric = held.metric.max(metric);
                }
                _ => {
                    entry.forget(from);
                }
            }
        }
        let neighbour = self.neighbours.at_mut(from);
        match (&taken, neighbour) {
            (Ok(_), Some(neighbour)) => neighbour.take(destination),
            (Err(reason), Some(neighbour)) if may_pass_later(*reason) => {
                // Its clock may have been set since it signed that.
                if matches!(reason, Reason::Expired | Reason::Ahead)
                    && origin == neighbour.id
                    && !neighbour.has_refused(destination)
                {
                    neighbour.ask_again(destination);
                    self.speaks_to = 0;
                }
                let refused = Refused {
                    why: *reason,
                    speaker: Some(speaker),
                    from_s,
                };
                neighbour.refuse(destination, refused);
            }
            _ => {}
        }
        let place = match taken {
            Ok((place, announcement, until_ns)) => {
                self.look_whether_old(from, place, &announcement);
                if let Some(entry) = self.table.at_mut(place) {
                    if !entry.is_old(&announcement) {
                        entry.taken = Some((Arc::clone(&announcement), until_ns));
                        entry.subnet = subnet;
                    }
                    entry.until_ns = entry.until_ns.max(until_ns + SKEW_S * SECOND_NS);
                    entry.heard.push(Heard {
                        from,
                        metric,
                        announcement,
                        until_ns,
                    });
                }
                Some(place)
            }
            Err(reason) => {
                self.is_crowded |= reason == Reason::Full;
                self.reasons.add(reason);
                known
            }
        };
        if let Some(place) = place {
            self.choose(place);
        }
    }

    /// A place for what the neighbour says, its announcement, verified, and when that ends.
    fn take(
        &mut self,
        from: Slot,
        known: Option<u32>,
        announcement: Announcement,
    ) -> Result<(u32, Arc<Announcement>, u64), Reason> {
        if self.is_ahead(announcement.destination(), announcement.seqno()) {
            return Err(Reason::Ahead);
        }
        let until_ns = self.until(known, &announcement).ok_or(Reason::Expired)?;
        if known.is_none() && self.table.len() >= self.setup.destinations_max {
            return Err(Reason::Full);
        }
        let entry = Entry::new(announcement.destination(), announcement.subnet());
        let announcement = match known {
            Some(place) => self.verified(from, place, announcement)?,
            None => self.check(from, announcement)?,
        };
        let place = known
            .or_else(|| self.table.add(entry))
            .ok_or(Reason::Full)?;
        Ok((place, announcement, until_ns))
    }

    fn on_metric(&mut self, from: Slot, metric: u32, destination: Destination) {
        if let Some(neighbour) = self.neighbours.at_mut(from)
            && metric == UNREACHABLE
        {
            neighbour.take(destination);
        }
        let place = self.table.place(destination);
        let entry = place.and_then(|place| self.table.at_mut(place));
        let (Some(place), Some(entry)) = (place, entry) else {
            return self.unannounced(from, metric, destination);
        };
        let is_known = match metric {
            UNREACHABLE => entry.forget(from),
            _ => match entry.heard.iter_mut().find(|heard| heard.from == from) {
                Some(heard) => {
                    heard.metric = metric;
                    true
                }
                None => false,
            },
        };
        match is_known {
            true => self.choose(place),
            false => self.unannounced(from, metric, destination),
        }
    }

    /// How far something is that was not taken. If it is not known why, it is to be said again.
    fn unannounced(&mut self, from: Slot, metric: u32, destination: Destination) {
        self.reasons.add(Reason::Unannounced);
        let Some(neighbour) = self.neighbours.at_mut(from) else {
            return;
        };
        if metric != UNREACHABLE && !neighbour.has_refused(destination) {
            let refused = Refused {
                why: Reason::Unannounced,
                speaker: None,
                from_s: u64::MAX,
            };
            neighbour.refuse(destination, refused);
            neighbour.ask_again(destination);
            self.speaks_to = 0;
            self.flush_soon();
        }
    }

    fn is_refused(&mut self, place: u32) {
        let own = self.table.at_mut(place).and_then(|e| e.own.as_mut());
        if let Some(own) = own {
            own.is_refused = true;
        }
    }

    /// What a neighbour was told it has not taken, and asks for again.
    fn on_again(&mut self, from: Slot, destination: Destination) {
        if !self.may_ask(from) {
            return self.reasons.add(Reason::Busy);
        }
        let Some(place) = self.table.place(destination) else {
            return;
        };
        let entry = self.table.at(place);
        if let Some(own) = entry.and_then(|entry| entry.own.as_ref()) {
            let next = own.announcement.seqno().saturating_add(1);
            let now = self.now.unix_s.saturating_mul(1_000);
            match self.is_ahead(destination, next) {
                // Signed while the clock was ahead: nobody believes it.
                true => self.renumber_soon(place, now, RENUMBER_NS),
                false if self.fits(&own.announcement) => self.is_refused(place),
                false => self.renumber_soon(place, next, RENUMBER_NS),
            }
        }
        if let Some(neighbour) = self.neighbours.at_mut(from) {
            neighbour.told(place).announcement = None;
            self.mark(place);
        }
    }

    /// If its number is lower than one that this node has told others, whoever leads there has to learn of the
    /// higher one: the destination may have lost its memory. Until then it is of no use.
    fn look_whether_old(&mut self, from: Slot, place: u32, announcement: &Announcement) {
        let entry = self.table.at(place);
        let entry = entry.filter(|entry| entry.is_old(announcement));
        let Some(proof) = entry.and_then(|entry| entry.proof.clone()) else {
            return;
        };
        self.reasons.add(Reason::Old);
        let request = Request {
            hops: HOPS_MAX,
            // A subnet's gateways come to one number; a node has lost its memory, and goes on from there.
            number: match announcement.destination() {
                Destination::Node(_) => Number::Higher,
                Destination::Subnet(_) => Number::AsHigh,
            },
            proof,
        };
        self.send_request(from, place, request);
    }

    /// Whether a number is above what the time allows. A node's own numbers are its own business, a subnet's
    /// are its gateways' in common.
    pub(crate) fn is_ahead(&self, destination: Destination, seqno: u64) -> bool {
        let most = self.now.unix_s.saturating_add(AHEAD_S);
        matches!(destination, Destination::Subnet(_)) && seqno > most.saturating_mul(1_000)
    }

    /// Until when it holds, on the clock that never goes back. Of what was taken before, that is known however
    /// the wall clock was set since.
    fn until(&self, known: Option<u32>, announcement: &Announcement) -> Option<u64> {
        let entry = known.and_then(|place| self.table.at(place));
        let until_ns = entry.and_then(|entry| entry.until(announcement));
        if let Some(until_ns) = until_ns.filter(|&until_ns| until_ns > self.now.ns) {
            return Some(until_ns);
        }
        let left_s = announcement.not_after_s().checked_sub(self.now.unix_s);
        let left_s = match left_s {
            // The others' clocks may be behind.
            None | Some(0) => {
                let over_s = self.now.unix_s - announcement.not_after_s();
                SKEW_S.checked_sub(over_s).filter(|&left_s| left_s > 0)?
            }
            Some(left_s) if left_s > LIFETIME_S + SKEW_S => return None,
            Some(left_s) => left_s,
        };
        Some(self.now.ns.saturating_add(left_s * SECOND_NS))
    }

    /// From when on, by the wall clock, it is not ahead of the time any more; it never is where it has ended.
    fn passes_from_s(&self, announcement: &Announcement) -> u64 {
        if announcement.not_after_s() <= self.now.unix_s {
            return u64::MAX;
        }
        let lasts = announcement.not_after_s();
        let number_s = (announcement.seqno() / 1_000).saturating_add(1);
        let from_s = lasts.saturating_sub(LIFETIME_S + SKEW_S);
        match announcement.destination() {
            Destination::Node(_) => from_s,
            Destination::Subnet(_) => from_s.max(number_s.saturating_sub(AHEAD_S)),
        }
    }

    /// The announcement, if it is the destination's own word; each signature is verified once.
    pub(crate) fn verified(
        &mut self,
        from: Slot,
        place: u32,
        announcement: Announcement,
    ) -> Result<Arc<Announcement>, Reason> {
        let entry = self.table.at(place);
        let known = entry.and_then(|entry| entry.known(&announcement));
        match known.filter(|known| self.authority.knows(&known.speaker()).is_ok()) {
            Some(known) => Ok(known),
            None => self.check(from, announcement),
        }
    }

    /// The proof that a number is needed, if who it says has signed it. A subnet's may be of a gateway that is
    /// not known here, or not any more: others announced it too, and have to exceed it.
    pub(crate) fn proven(
        &mut self,
        from: Slot,
        place: u32,
        announcement: Announcement,
    ) -> Result<Arc<Announcement>, Reason> {
        let (destination, seqno) = (announcement.destination(), announcement.seqno());
        let own = self.table.at(place).and_then(|entry| entry.own.as_ref());
        // This node's clock may have been set back since it said that itself.
        let is_said = own.is_some_and(|own| seqno <= own.announcement.seqno());
        if !is_said && self.is_ahead(destination, seqno) {
            return Err(Reason::Ahead);
        }
        let is_shared = matches!(destination, Destination::Subnet(_));
        let proof = announcement.clone();
        match self.verified(from, place, announcement) {
            Err(Reason::Stranger | Reason::Elsewhere)
                if is_shared && self.authority.is_signed(&proof) =>
            {
                Ok(Arc::new(proof))
            }
            verified => verified,
        }
    }

    fn check(
        &mut self,
        from: Slot,
        announcement: Announcement,
    ) -> Result<Arc<Announcement>, Reason> {
        if announcement.network() != self.authority.network() {
            return Err(Reason::OtherNetwork);
        }
        match self.authority.check(&announcement) {
            Ok(()) => return Ok(Arc::new(announcement)),
            Err(Doubt::Stranger) => return Err(Reason::Stranger),
            Err(Doubt::Elsewhere) => return Err(Reason::Elsewhere),
            Err(Doubt::Forged) => {}
        }
        if let Some(neighbour) = self.neighbours.at_mut(from) {
            neighbour.forged += 1;
            if neighbour.forged == FORGED_MAX {
                self.mute(from);
            }
        }
        Err(Reason::Forged)
    }

    /// Nothing that it said counts any more.
    fn mute(&mut self, slot: Slot) {
        self.muted.extend(self.neighbours.at(slot).map(|n| n.id));
        for place in self.table.taken() {
            if self
                .table
                .at_mut(place)
                .is_some_and(|entry| entry.forget(slot))
            {
                self.choose(place);
            }
        }
    }

    /// An announcement of what this node itself announces. A higher number than its own is of its earlier
    /// life, or of a node that has its keys: it counts on from there.
    fn on_own(&mut self, from: Slot, place: u32, announcement: Announcement) {
        let own = self.table.at(place).and_then(|entry| entry.own.as_ref());
        let is_higher = own.is_some_and(|own| own.announcement.seqno() < announcement.seqno());
        if !is_higher {
            return;
        }
        let (destination, subnet) = (announcement.destination(), announcement.subnet());
        let aggregation = self.setup.aggregation;
        // A subnet is not announced to those within: no honest neighbour says that.
        if !aggregation.tells(destination, subnet, self.setup.subnet) {
            return self.reasons.add(Reason::Scope);
        }
        if self.until(None, &announcement).is_none() {
            return self.reasons.add(Reason::Expired);
        }
        let announcement = match self.verified(from, place, announcement) {
            Ok(announcement) => announcement,
            Err(reason) => return self.reasons.add(reason),
        };
        let mut after_ns = RENUMBER_NS;
        if announcement.origin() == self.node {
            self.twins += 1;
            if self.twins > TWINS_MAX {
                after_ns = TWIN_PAUSE_NS;
            }
        }
        if let Some(seqno) = announcement.seqno().checked_add(1) {
            self.renumber_soon(place, seqno, after_ns);
        }
    }
}

/// Whether what was refused may be taken when more is known, the clock is set, or there is room.
const fn may_pass_later(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Stranger | Reason::Elsewhere | Reason::Expired | Reason::Ahead | Reason::Full
    )
}
