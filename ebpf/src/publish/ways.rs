//! Ways: the next hops, the routes that name them by number, and the destinations that name routes.
//!
//! A number is written before anything names it. It is given out again only when nothing names it any
//! more and the generation was bumped since, so that no cached flow does either. Old and new stand side by
//! side where they fit; where they do not, as many as fit are written, what then leads nowhere is given up,
//! and so on. Only where that frees nothing either are the destinations that have yet to move taken out for
//! the moment: the tables are full of what they name.

extern crate std;
use std::{collections::BTreeSet, vec::Vec};

use super::{PublishError, Publisher, Store, unused};
use crate::{
    header::NodeId,
    image::{Image, NextHopKey},
    limits::{NEXT_HOPS_MAX, ROUTES_MAX},
    tables::{Address, NEXT_HOP_NONE, NextHop, Route},
};

/// A next hop whose new key is in place and not yet used, where it is about to be: a packet that meets the
/// change has a tag of one key or of the other, and of no mixture.
fn with_new_keys(held: &NextHop, next_hop: &NextHop) -> Option<NextHop> {
    const WHICH: u32 = NextHop::TAGGED | NextHop::ODD;
    let is_turned = (held.flags ^ next_hop.flags) & WHICH != 0;
    is_turned.then_some(NextHop {
        flags: next_hop.flags & !WHICH | held.flags & WHICH,
        ..*next_hop
    })
}

impl Publisher {
    /// Has routes that have another next hop do without this neighbour, by one write of its next hop's
    /// liveness, until an image says otherwise.
    ///
    /// # Errors
    /// When a table cannot be written.
    pub fn avoid<S: Store>(
        &mut self,
        store: &mut S,
        target: Address,
        port: u16,
    ) -> Result<(), S::Error> {
        for (key, (number, next_hop)) in &mut self.next_hops {
            let is_it = key.is_avoidable && (key.target, key.port) == (target, port);
            if is_it && next_hop.is(NextHop::ALIVE) {
                let dead = NextHop {
                    flags: next_hop.flags & !NextHop::ALIVE,
                    ..*next_hop
                };
                store.set_next_hop(*number, &dead)?;
                *next_hop = dead;
            }
        }
        Ok(())
    }

    /// Removes, writes and moves destinations, with all that they name.
    pub(super) fn apply_ways<S: Store>(
        &mut self,
        store: &mut S,
        image: &Image,
    ) -> Result<(), PublishError<S::Error>> {
        if self.destinations.is_unchecked() {
            self.destinations
                .check(&mut |line, entries: &_| store.set_destinations(line, entries))?;
        }
        self.remove_destinations(store, |_, destination, _| {
            !image.routes.contains_key(&destination)
        })?;
        while let Some(full) = self.write_ways(store, image)? {
            self.bump(store)?;
            if !self.forget_unused(store, image)?
                && !self.remove_destinations(store, |held, destination, number| {
                    held.wanted(image, destination) != Some(number)
                })?
            {
                return Err(full);
            }
        }
        Ok(())
    }

    /// Writes what there are numbers for; the table that has too few, if one has.
    fn write_ways<S: Store>(
        &mut self,
        store: &mut S,
        image: &Image,
    ) -> Result<Option<PublishError<S::Error>>, PublishError<S::Error>> {
        let mut full = None;
        // Liveness is read for every packet, so no cached flow becomes wrong by a next hop that changes.
        let mut numbers = unused(
            self.next_hops.values().map(|(n, _)| *n).collect(),
            NEXT_HOPS_MAX,
        );
        for (key, next_hop) in &image.next_hops {
            let number = match self.next_hops.get(key) {
                Some((_, held)) if held == next_hop => continue,
                Some((number, _)) => Some(*number),
                None => numbers.next(),
            };
            let Some(number) = number else {
                full = Some(PublishError::Full("next hops", NEXT_HOPS_MAX));
                continue;
            };
            if let Some((_, held)) = self.next_hops.get(key)
                && let Some(between) = with_new_keys(held, next_hop)
            {
                store.set_next_hop(number, &between)?;
            }
            store.set_next_hop(number, next_hop)?;
            self.next_hops.insert(*key, (number, *next_hop));
        }
        let mut numbers = unused(self.routes.values().copied().collect(), ROUTES_MAX);
        for destination in image.routes.keys() {
            // One whose next hop has no number yet waits for it.
            let Some(route) = self.route(image, *destination) else {
                continue;
            };
            let number = match self.routes.get(&route) {
                Some(number) => *number,
                None => {
                    let Some(number) = numbers.next() else {
                        full = Some(PublishError::Full("routes", ROUTES_MAX));
                        continue;
                    };
                    store.set_route(number, &route)?;
                    self.routes.insert(route, number);
                    number
                }
            };
            let held = self.destinations.get(*destination);
            if held != Some(number) {
                self.bump_due |= held.is_some();
                let mut write = |line, entries: &_| store.set_destinations(line, entries);
                if !self.destinations.set(&mut write, *destination, number)? {
                    let most = self.destinations.capacity();
                    full = Some(PublishError::Full("destinations", most));
                }
            }
        }
        Ok(full)
    }

    /// What a destination's route shall be; `None` while one of its next hops has no number.
    fn route(&self, image: &Image, destination: NodeId) -> Option<Route> {
        let (via, subnet) = (
            image.routes.get(&destination)?,
            image.subnet_of(destination),
        );
        let number = |key: &NextHopKey| match self.next_hops.get(key) {
            _ if !image.next_hops.contains_key(key) => Some(NEXT_HOP_NONE),
            held => held.map(|(number, _)| *number),
        };
        Some(Route {
            primary: number(&via.primary)?,
            backup: via.backup.as_ref().map_or(Some(NEXT_HOP_NONE), number)?,
            subnet,
            filter: self.filter_of(image, subnet),
        })
    }

    /// Number of the route that a destination shall have, if that has one.
    fn wanted(&self, image: &Image, destination: NodeId) -> Option<u32> {
        let route = self.route(image, destination)?;
        self.routes.get(&route).copied()
    }

    /// Removes the destinations that `is_gone` says, of this, a destination and its route's number.
    /// Whether there were any.
    fn remove_destinations<S: Store>(
        &mut self,
        store: &mut S,
        is_gone: impl Fn(&Self, NodeId, u32) -> bool,
    ) -> Result<bool, PublishError<S::Error>> {
        let held = self.destinations.iter();
        let gone: Vec<NodeId> = held
            .filter(|(destination, number)| is_gone(self, *destination, *number))
            .map(|(destination, _)| destination)
            .collect();
        for destination in &gone {
            self.bump_due = true;
            let mut write = |line, entries: &_| store.set_destinations(line, entries);
            self.destinations.remove(&mut write, *destination)?;
        }
        Ok(!gone.is_empty())
    }

    /// Ends what is cached, should it contradict what was written. Before the first image nothing is cached.
    pub(super) fn bump<S: Store>(&mut self, store: &mut S) -> Result<(), PublishError<S::Error>> {
        if self.bump_due && self.settings.generation != 0 {
            self.settings.generation += 1;
            self.store_settings(store)?;
            self.bump_due = false;
        }
        Ok(())
    }

    /// Gives up the numbers that nothing names any more, after a bump. Whether there were any.
    pub(super) fn forget_unused<S: Store>(
        &mut self,
        store: &mut S,
        image: &Image,
    ) -> Result<bool, PublishError<S::Error>> {
        let before = self.routes.len() + self.next_hops.len();
        let named: BTreeSet<u32> = self.destinations.iter().map(|(_, n)| n).collect();
        self.routes.retain(|_, number| named.contains(number));
        let routes = self.routes.keys();
        let named: BTreeSet<u32> = routes.flat_map(|r| [r.primary, r.backup]).collect();
        let unused: Vec<(NextHopKey, u32)> = self
            .next_hops
            .iter()
            .filter(|(key, (number, _))| {
                !image.next_hops.contains_key(key) && !named.contains(number)
            })
            .map(|(key, (number, _))| (*key, *number))
            .collect();
        for (key, number) in unused {
            store.set_next_hop(number, &NextHop::default())?;
            self.next_hops.remove(&key);
        }
        Ok(self.routes.len() + self.next_hops.len() < before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{header::Header, tag::TagKey};

    #[test]
    fn a_new_key_is_in_place_before_it_is_used() {
        let [old, new, next] = [TagKey([1, 2]), TagKey([3, 4]), TagKey([5, 6])];
        let hop = |flags, tag_keys| NextHop {
            flags: NextHop::ALIVE | flags,
            tag_keys,
            mtu: flags,
            ..NextHop::default()
        };
        const ODD: u32 = NextHop::TAGGED | NextHop::ODD;
        let steps = [
            hop(0, [TagKey::default(); 2]),
            hop(NextHop::TAGGED, [old, TagKey::default()]),
            hop(ODD, [old, new]),
            hop(NextHop::TAGGED, [next, new]),
            hop(0, [TagKey::default(); 2]),
        ];
        let header = Header::default();
        for [held, wanted] in steps.windows(2).filter_map(|w| w.first_chunk()) {
            let between = with_new_keys(held, wanted).unwrap();
            let tags = [held, &between, wanted].map(|hop| hop.link_tag(|| header));
            // The last step takes tags off; nobody checks them then.
            if wanted.is(NextHop::TAGGED) {
                assert_eq!(tags[0], tags[1]);
            }
            assert_ne!(tags[1], tags[2]);
            assert_eq!(
                (between.tag_keys, between.mtu),
                (wanted.tag_keys, wanted.mtu)
            );
            assert_eq!(with_new_keys(wanted, wanted), None);
        }
    }
}
