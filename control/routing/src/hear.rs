//! What neighbours say is taken in.

use crate::{
    announcement::{Announcement, Authority, Destination, Doubt},
    limits::{
        FORGED_MAX, HOPS_MAX, LIFETIME_S, RENUMBER_NS, SKEW_S, TWIN_PAUSE_NS, TWINS_MAX,
        UNREACHABLE,
    },
    message::{self, Item},
    neighbour::Slot,
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
                Item::Request { hops, announcement } => self.on_request(slot, hops, announcement),
            }
        }
    }

    fn on_route(&mut self, from: Slot, metric: u32, announcement: Announcement) {
        let destination = announcement.destination();
        let (subnet, place) = (announcement.subnet(), self.setup.subnet);
        let known = self.table.place(destination);
        let entry = known.and_then(|place| self.table.at_mut(place));
        match (known, entry) {
            (Some(place), Some(entry)) if entry.own.is_some() => {
                return self.on_own(from, place, announcement);
            }
            // Whatever becomes of it, what the neighbour said before holds no more.
            (_, Some(entry)) => {
                entry.forget(from);
            }
            _ => {}
        }
        let taken = match self.setup.aggregation.tells(destination, subnet, place) {
            true => self.take(from, known, announcement),
            false => Err(Reason::Scope),
        };
        let place = match taken {
            Ok((place, announcement, until_ns)) => {
                if let Some(entry) = self.table.at_mut(place) {
                    entry.subnet = subnet;
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
        if known.is_some_and(|place| self.is_old(from, place, &announcement)) {
            return Err(Reason::Old);
        }
        let until_ns = self.until(&announcement).ok_or(Reason::Expired)?;
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
        let place = self.table.place(destination);
        let entry = place.and_then(|place| self.table.at_mut(place));
        let (Some(place), Some(entry)) = (place, entry) else {
            return self.reasons.add(Reason::Unannounced);
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
            false => self.reasons.add(Reason::Unannounced),
        }
    }

    /// Whether its number is lower than one that this node has told others. If so, whoever leads there has
    /// to learn of the higher one: the destination may have lost its memory.
    fn is_old(&mut self, from: Slot, place: u32, announcement: &Announcement) -> bool {
        let proof = self.table.at(place).and_then(|entry| entry.proof.clone());
        let Some(proof) = proof.filter(|proof| announcement.seqno() < proof.seqno()) else {
            return false;
        };
        self.send_request(from, place, HOPS_MAX, &proof);
        true
    }

    /// Until when it holds, on the clock that never goes back.
    fn until(&self, announcement: &Announcement) -> Option<u64> {
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

    /// The announcement, if it is the destination's own word; each is verified once.
    pub(crate) fn verified(
        &mut self,
        from: Slot,
        place: u32,
        announcement: Announcement,
    ) -> Result<Arc<Announcement>, Reason> {
        let known = self
            .table
            .at(place)
            .and_then(|entry| entry.known(&announcement));
        known.map_or_else(|| self.check(from, announcement), Ok)
    }

    fn check(
        &mut self,
        from: Slot,
        announcement: Announcement,
    ) -> Result<Arc<Announcement>, Reason> {
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
