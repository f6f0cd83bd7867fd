//! What neighbours are told: what has changed since, once a tick.

use crate::{
    announcement::{Announcement, Authority},
    limits::{MESSAGE_BYTES_MAX, MESSAGES_PER_TICK, TICK_NS, UNREACHABLE},
    message::Item,
    neighbour::Slot,
    router::Router,
};
use std::sync::Arc;
use virga_ebpf::header::NodeId;

impl<A: Authority> Router<A> {
    /// Settles what neighbours are told of all that has changed. From here on it counts as told, so what may
    /// be used is looked at again.
    pub(crate) fn flush(&mut self) {
        (self.flush_ns, self.flushed_ns) = (None, Some(self.now.ns));
        for place in std::mem::take(&mut self.changed) {
            self.settle(place);
        }
        // Choosing anew marked what was settled after it.
        self.flush_ns = None;
        self.changed.clear();
        for neighbour in self.neighbours.all_mut() {
            neighbour.budget = MESSAGES_PER_TICK;
        }
    }

    fn settle(&mut self, place: u32) {
        let advert = self.advert(place);
        let listeners: Vec<Slot> = self.neighbours.slots().collect();
        let Some(entry) = self.table.at_mut(place) else {
            return;
        };
        entry.advert = advert.clone();
        let is_own = entry.own.is_some();
        let is_told = |&&slot: &&Slot| self.is_told(place, slot);
        if let Some((announcement, metric)) = &advert
            && !is_own
            && listeners.iter().any(|slot| is_told(&slot))
        {
            if let Some(entry) = self.table.at_mut(place) {
                entry.tell(announcement, *metric);
            }
            self.choose(place);
        }
        for slot in listeners {
            let wanted = self.wanted(place, slot);
            let Some(neighbour) = self.neighbours.at_mut(slot) else {
                continue;
            };
            let told = neighbour.told(place);
            if told.is_queued || !differs(&told.announcement, told.metric, &wanted) {
                continue;
            }
            told.is_queued = true;
            match wanted {
                // What leads nowhere is told first.
                None => neighbour.queue.push_front(place),
                Some(_) => neighbour.queue.push_back(place),
            }
        }
    }

    /// What this node can say of a destination.
    fn advert(&self, place: u32) -> Option<(Arc<Announcement>, u32)> {
        let entry = self.table.at(place)?;
        if let Some(own) = &entry.own {
            return Some((Arc::clone(&own.announcement), 0));
        }
        let chosen = entry.chosen.filter(|_| self.quiet_until_ns.is_none())?;
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
        let mut is_left = false;
        for slot in self.neighbours.slots() {
            let Some(neighbour) = self.neighbours.at_mut(slot) else {
                continue;
            };
            if !neighbour.has_to_say() {
                continue;
            }
            if neighbour.budget == 0 {
                is_left = true;
                continue;
            }
            neighbour.budget -= 1;
            let id = neighbour.id;
            let message = self.message(slot);
            if !message.is_empty() {
                self.said += 1;
                return Some((id, message));
            }
        }
        if is_left {
            let next = self.flushed_ns.unwrap_or(0).saturating_add(TICK_NS);
            self.flush_ns.get_or_insert(next);
        }
        None
    }

    fn message(&mut self, slot: Slot) -> Vec<u8> {
        let mut message = Vec::new();
        while let Some(neighbour) = self.neighbours.at_mut(slot) {
            let item = if let Some((place, (hops, proof))) = neighbour.requests.pop_first() {
                let announcement = Announcement::clone(&proof);
                let item = Item::Request { hops, announcement };
                if message.len() + item.len() > MESSAGE_BYTES_MAX {
                    neighbour.requests.insert(place, (hops, proof));
                    break;
                }
                Some(item)
            } else if let Some(place) = neighbour.queue.pop_front() {
                let wanted = self.wanted(place, slot);
                let destination = self.table.at(place).map(|entry| entry.destination);
                let (Some(neighbour), Some(destination)) =
                    (self.neighbours.at_mut(slot), destination)
                else {
                    break;
                };
                let told = neighbour.told(place);
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
                        destination,
                    },
                    Some(announcement) => Item::Route {
                        metric,
                        announcement: Announcement::clone(announcement),
                    },
                });
                let size = item.as_ref().map_or(0, Item::len);
                if message.len() + size > MESSAGE_BYTES_MAX {
                    neighbour.queue.push_front(place);
                    break;
                }
                told.is_queued = false;
                told.metric = wanted.as_ref().map_or(UNREACHABLE, |(_, metric)| *metric);
                told.announcement = wanted.map(|(announcement, _)| announcement);
                item
            } else {
                break;
            };
            if let Some(item) = item {
                item.write(&mut message);
            }
        }
        message
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
