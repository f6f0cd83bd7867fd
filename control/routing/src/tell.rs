//! What neighbours are told: what has changed since, once a tick.

use crate::{
    announcement::{Announcement, Authority, Destination},
    limits::{ALONE, HOPS_MAX, MESSAGE_BYTES_MAX, MESSAGES_PER_TICK, TICK_NS, UNREACHABLE},
    message::{Item, Number},
    neighbour::{Request, Slot},
    router::Router,
    table::Held,
};
use std::sync::Arc;
use virga_ebpf::header::NodeId;

impl<A: Authority> Router<A> {
    /// Settles what neighbours are told of all that has changed. From here on it counts as told, so what may
    /// be used is looked at again.
    pub(crate) fn flush(&mut self) {
        (self.flush_ns, self.flushed_ns) = (None, Some(self.now.ns));
        self.look_what_gateways_reach();
        let new: Vec<Slot> = self.neighbours.take_new().collect();
        for place in std::mem::take(&mut self.changed) {
            self.settle(place);
        }
        for slot in new {
            for place in self.table.taken() {
                self.settle_for(place, slot);
            }
        }
        // Choosing anew marked what was settled after it.
        self.flush_ns = None;
        self.changed.clear();
        self.speaks_to = 0;
        for neighbour in self.neighbours.all_mut() {
            neighbour.budget = MESSAGES_PER_TICK;
        }
    }

    /// Marks the prefixes of its own that it reaches others of, and has not said so, or the other way round.
    fn look_what_gateways_reach(&mut self) {
        for place in self.table.prefixes() {
            let said = self.table.at(place).and_then(|entry| entry.advert.as_ref());
            let said = said.map(|&(_, metric)| metric);
            if said != self.advert(place).map(|(_, metric)| metric) {
                self.changed.insert(place);
            }
        }
    }

    fn settle(&mut self, place: u32) {
        let advert = self.advert(place);
        match self.held_back(place, &advert) {
            Some(at_ns) => drop(self.later.insert(place, at_ns)),
            None => self.settle_advert(place, advert),
        }
        for slot in self.neighbours.slots() {
            self.settle_for(place, slot);
        }
    }

    /// When to look again, where it is not told yet that the way got longer. A newer number is asked for meanwhile, of
    /// whoever leads there, again and again: told by that, it takes nobody's way away, and those behind them need not
    /// ask for it with no way in the meantime.
    fn held_back(&mut self, place: u32, advert: &Option<(Arc<Announcement>, u32)>) -> Option<u64> {
        let (proof, metric) = advert.as_ref()?;
        let (number, now_ns) = (proof.seqno(), self.now.ns);
        let entry = self.table.at_mut(place)?;
        if entry.own.is_some() || !entry.takes_away(number, *metric, self.now.unix_s) {
            return None;
        }
        let primary = entry.chosen?.primary;
        let held = entry.held.filter(|held| held.number == number);
        let mut held = held.unwrap_or(Held::new(number, now_ns));
        if held.until_ns <= now_ns {
            return None;
        }
        let may_ns = entry.rises.next_ns(now_ns);
        let is_due = held.ask_ns(primary).max(may_ns) <= now_ns;
        if is_due {
            held.ask(primary, now_ns);
        }
        entry.held = Some(held);
        if is_due {
            let request = Request {
                hops: HOPS_MAX,
                number: Number::Higher,
                proof: Arc::clone(proof),
            };
            self.send_request(primary, place, request);
        }
        Some(held.until_ns.min(held.ask_ns(primary).max(may_ns)))
    }

    /// Settles what is told, as far as its pace allows.
    fn settle_advert(&mut self, place: u32, advert: Option<(Arc<Announcement>, u32)>) {
        let now_ns = self.now.ns;
        let Some(entry) = self.table.at_mut(place) else {
            return;
        };
        let told = entry.advert.as_ref().map(|(told, _)| told);
        let told = told.or(entry.proof.as_ref());
        let is_same = |(now, metric): &(Arc<Announcement>, u32)| {
            let said = entry.advert.as_ref();
            said.is_some_and(|(told, at)| at == metric && told.bytes() == now.bytes())
        };
        let pace = match (&advert, told) {
            _ if entry.own.is_some() => None,
            (Some(now), Some(_)) if is_same(now) => None,
            (Some((now, _)), Some(told)) if told.bytes() == now.bytes() => Some(&mut entry.swings),
            (Some(_), Some(_)) => Some(&mut entry.numbers_told),
            _ => None,
        };
        // What swings is told as it was, for a while: who goes by that makes no loop either.
        let held_ns = pace.and_then(|pace| match pace.take(now_ns) {
            true => None,
            false => Some(pace.next_ns(now_ns)),
        });
        if held_ns.is_none() {
            let number = |advert: &Option<(Arc<Announcement>, u32)>| {
                advert.as_ref().map(|(proof, _)| proof.seqno())
            };
            let numbers = number(&entry.advert).zip(number(&advert));
            if numbers.is_some_and(|(told, now)| told < now) {
                entry.rises.take(now_ns);
            }
            entry.advert = advert;
            entry.held.take_if(|held| held.until_ns <= now_ns);
        }
        // Until it is over: what gets longer after that is held anew.
        let until_ns = entry.held.map(|held| held.until_ns);
        let until_ns = until_ns.filter(|&until_ns| until_ns > now_ns);
        if let Some(at_ns) = held_ns.into_iter().chain(until_ns).min() {
            self.later.insert(place, at_ns);
        }
    }

    /// Settles what one neighbour is told of one destination.
    fn settle_for(&mut self, place: u32, slot: Slot) {
        let wanted = self.wanted(place, slot);
        if let Some((announcement, metric)) = &wanted
            && let Some(entry) = self.table.at_mut(place)
            && entry.own.is_none()
            && entry.tell(announcement, *metric)
        {
            self.choose(place);
            // What was chosen first stays: it is strictly better than what is told of it.
        }
        let wanted = self.wanted(place, slot);
        let Some(neighbour) = self.neighbours.at_mut(slot) else {
            return;
        };
        let told = neighbour.told(place);
        if told.is_queued || !differs(&told.announcement, told.metric, &wanted) {
            return;
        }
        told.is_queued = true;
        match wanted {
            // What leads nowhere is told first.
            None => neighbour.queue.push_front(place),
            Some(_) => neighbour.queue.push_back(place),
        }
    }

    /// What this node can say of a destination.
    fn advert(&self, place: u32) -> Option<(Arc<Announcement>, u32)> {
        let entry = self.table.at(place)?;
        let is_quiet = self.quiet_until_ns.is_some();
        if let Some(own) = &entry.own {
            let metric = match entry.destination {
                Destination::Node(_) => 0,
                Destination::Subnet(_) if is_quiet => return None,
                Destination::Subnet(prefix) => match self.table.reaches(prefix) {
                    true => 0,
                    false => ALONE,
                },
            };
            return Some((Arc::clone(&own.announcement), metric));
        }
        let chosen = entry.chosen.filter(|_| !is_quiet)?;
        let heard = entry.from(chosen.primary)?;
        Some((Arc::clone(&heard.announcement), chosen.metric))
    }

    /// Whether a neighbour is told that this node leads there: not where this node would lead back to it, nor
    /// where the destination is none of its business.
    fn is_told(&self, place: u32, slot: Slot) -> bool {
        let (Some(entry), Some(neighbour)) = (self.table.at(place), self.neighbours.at(slot))
        else {
            return false;
        };
        let is_back = entry.chosen.is_some_and(|chosen| chosen.primary == slot);
        let aggregation = self.setup.aggregation;
        !is_back && aggregation.tells(entry.destination, entry.subnet, neighbour.subnet)
    }

    fn wanted(&self, place: u32, slot: Slot) -> Option<(Arc<Announcement>, u32)> {
        let advert = self.table.at(place)?.advert.clone()?;
        self.is_told(place, slot).then_some(advert)
    }

    /// The next message, and to whom.
    pub fn poll_transmit(&mut self) -> Option<(NodeId, Vec<u8>)> {
        debug_assert!(
            self.to_install.is_empty(),
            "routes are installed before they are told"
        );
        while let Some(slot) = self.neighbours.next(self.speaks_to) {
            self.speaks_to = slot.index();
            let next_ns = self.flushed_ns.unwrap_or(0).saturating_add(TICK_NS);
            if let Some(neighbour) = self.neighbours.at_mut(slot)
                && neighbour.has_to_say()
            {
                match neighbour.budget {
                    0 => {
                        self.flush_ns.get_or_insert(next_ns);
                    }
                    _ => {
                        neighbour.budget -= 1;
                        let id = neighbour.id;
                        let message = self.message(slot);
                        if !message.is_empty() {
                            self.said += 1;
                            return Some((id, message));
                        }
                    }
                }
            }
            self.speaks_to += 1;
        }
        None
    }

    fn message(&mut self, slot: Slot) -> Vec<u8> {
        let mut message = Vec::new();
        // What leads nowhere any more, what this node needs, what it leads to.
        while self.is_taken_back_next(slot) && self.say_next(slot, &mut message) {}
        while self.ask_next(slot, &mut message) {}
        while self.say_next(slot, &mut message) {}
        message
    }

    fn is_taken_back_next(&self, slot: Slot) -> bool {
        let neighbour = self.neighbours.at(slot);
        let next = neighbour.and_then(|neighbour| neighbour.queue.front());
        next.is_some_and(|&place| self.wanted(place, slot).is_none())
    }

    /// Adds what it needs; whether there was something, and room for it.
    fn ask_next(&mut self, slot: Slot, message: &mut Vec<u8>) -> bool {
        let Some(neighbour) = self.neighbours.at_mut(slot) else {
            return false;
        };
        let item = match neighbour.again.first() {
            Some(&destination) => Item::Again { destination },
            None => match neighbour.requests.first_key_value() {
                Some((_, request)) => Item::Request {
                    hops: request.hops,
                    number: request.number,
                    announcement: Announcement::clone(&request.proof),
                },
                None => return false,
            },
        };
        if message.len() + item.len() > MESSAGE_BYTES_MAX {
            return false;
        }
        match item {
            Item::Again { .. } => drop(neighbour.again.pop_first()),
            _ => drop(neighbour.requests.pop_first()),
        }
        item.write(message);
        true
    }

    /// Adds what the neighbour is told of the next destination; whether there was one, and room for it.
    fn say_next(&mut self, slot: Slot, message: &mut Vec<u8>) -> bool {
        let next = self.neighbours.at(slot).and_then(|n| n.queue.front());
        let Some(&place) = next else {
            return false;
        };
        let wanted = self.wanted(place, slot);
        let entry = self.table.at(place);
        let (Some(neighbour), Some(entry)) = (self.neighbours.at_mut(slot), entry) else {
            return false;
        };
        // What has changed since it was settled, and would take a neighbour away, waits until it is settled.
        let is_settled = wanted.as_ref().is_none_or(|(announcement, metric)| {
            entry.own.is_some() || entry.covers(announcement, *metric)
        });
        let told = neighbour.told(place);
        if !is_settled {
            neighbour.queue.pop_front();
            neighbour.told(place).is_queued = false;
            self.mark(place);
            return true;
        }
        let item = match (&told.announcement, &wanted) {
            (None, None) => None,
            (Some(_), None) => Some((UNREACHABLE, None)),
            (Some(told), Some((now, metric))) if told.bytes() == now.bytes() => {
                Some((*metric, None))
            }
            (_, Some((now, metric))) => Some((*metric, Some(now))),
        };
        let item = item.map(|(metric, announcement)| match announcement {
            None => Item::Metric {
                metric,
                destination: entry.destination,
            },
            Some(announcement) => Item::Route {
                metric,
                announcement: Announcement::clone(announcement),
            },
        });
        let size = item.as_ref().map_or(0, Item::len);
        if message.len() + size > MESSAGE_BYTES_MAX {
            return false;
        }
        told.is_queued = false;
        told.metric = wanted.as_ref().map_or(UNREACHABLE, |(_, metric)| *metric);
        told.announcement = wanted.map(|(announcement, _)| announcement);
        neighbour.queue.pop_front();
        if let Some(item) = item {
            item.write(message);
        }
        true
    }
}

/// Whether what is to be told is another thing than what was told.
fn differs(
    told: &Option<Arc<Announcement>>,
    metric: u32,
    wanted: &Option<(Arc<Announcement>, u32)>,
) -> bool {
    match (told, wanted) {
        (None, None) => false,
        (Some(told), Some((now, now_metric))) => {
            metric != *now_metric || !Arc::ptr_eq(told, now) && told.bytes() != now.bytes()
        }
        _ => true,
    }
}
