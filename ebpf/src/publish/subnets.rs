//! Subnets: the filters of others, the pairs withdrawn from them, and what channels are exported to.
//!
//! A filter keeps its number as long as its subnet has one, so that a new publication moves no route: it is
//! written into the other of the number's two places, and the settings flip to it. What a filter no longer
//! holds stays denied until then. A number is given out again only when no route names it any more.

extern crate std;
use std::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use super::{PublishError, Publisher, Store, unused};
use crate::{
    guard::filter_lines_from,
    header::Subnet,
    image::{ChannelRules, ForeignGuard, Image, exports_of},
    limits::{EXPORT_PLACES, EXPORTS_MAX, FILTER_LINES_MAX, FILTERS_MAX, GUARD_LINES_PER_BANK},
    subnet::{Exports, SubnetPrefix, Visibility},
    tables::{
        ChannelPolicy, FILTER_NONE, FILTER_OWN, Filter, GuardInfo, Pair, Settings, filter_place,
    },
};

/// The filters that have a number.
pub(super) type Filters = BTreeMap<SubnetPrefix, Held>;

/// A filter as it was written.
#[derive(Debug)]
pub(super) struct Held {
    number: u32,
    /// The place that it was last written to.
    place: u32,
    /// `None` where an earlier publisher wrote it, or this one not to its end.
    filter: Option<ForeignGuard>,
}
/// Places of the export tables.
pub(super) type Tables = BTreeMap<Exports, u32>;

/// Of all places, two a number.
pub(super) fn recover_filters(settings: &Settings, places: &[Filter]) -> Filters {
    let held = |(number, two): (u32, &[Filter])| {
        let prefix = two.iter().find(|f| f.expires_ns != 0)?.prefix;
        let held = Held {
            number,
            place: filter_place(settings, number),
            filter: None,
        };
        Some((prefix, held))
    };
    (0..).zip(places.chunks(2)).filter_map(held).collect()
}

/// Of all places; one that is empty holds no prefix.
pub(super) fn recover_exports(places: Vec<Exports>) -> Tables {
    let numbered = places.into_iter().zip(0..);
    numbered
        .filter(|(table, _)| *table != Exports::default())
        .collect()
}

/// That every filter has whole banks, a power of two of them, and not too many.
pub(super) fn check_filters<E>(image: &Image) -> Result<(), PublishError<E>> {
    for (prefix, filter) in &image.filters {
        let (lines, bank) = (filter.lines.len(), GUARD_LINES_PER_BANK as usize);
        let is_whole = lines % bank == 0 && (lines / bank).is_power_of_two();
        if !is_whole || lines > FILTER_LINES_MAX as usize {
            return Err(PublishError::Filter(*prefix, lines));
        }
    }
    Ok(())
}

/// The value of a place.
fn value(prefix: SubnetPrefix, filter: &ForeignGuard) -> Filter {
    let banks = filter.lines.len() / GUARD_LINES_PER_BANK as usize;
    Filter {
        info: GuardInfo {
            salt: filter.salt,
            bank_mask: u32::try_from(banks).unwrap_or(1).wrapping_sub(1),
            reserved: 0,
        },
        // 0 is an empty place.
        expires_ns: filter.expires_ns.max(1),
        prefix,
    }
}

impl Publisher {
    /// Number of the filter that destinations in a subnet are judged by: the longest prefix that it lies in, this
    /// node's own among them.
    pub(super) fn filter_of(&self, image: &Image, subnet: Subnet) -> u32 {
        let own = SubnetPrefix {
            subnet: Subnet(image.subnet.0 & image.subnet_mask),
            mask: image.subnet_mask,
        };
        let prefixes = image.filters.keys().filter(|p| p.contains(subnet));
        let longest = prefixes.max_by_key(|p| p.mask);
        if own.contains(subnet) && longest.is_none_or(|prefix| prefix.mask <= own.mask) {
            return FILTER_OWN;
        }
        let held = longest.and_then(|prefix| self.filters.get(prefix));
        held.map_or(FILTER_NONE, |held| held.number)
    }

    /// Whether any destination is not judged by the exact set.
    pub(super) fn is_by_route(&self, image: &Image) -> bool {
        let subnets: BTreeSet<Subnet> = image.routes.keys().map(|d| image.subnet_of(*d)).collect();
        subnets
            .into_iter()
            .any(|subnet| self.filter_of(image, subnet) != FILTER_OWN)
    }

    /// Writes filters beside those in use. From here on routes say what judges, if any shall.
    pub(super) fn apply_filters<S: Store>(
        &mut self,
        store: &mut S,
        image: &Image,
    ) -> Result<(), PublishError<S::Error>> {
        let new = image
            .filters
            .keys()
            .filter(|p| !self.filters.contains_key(p));
        if self.filters.len() + new.count() > FILTERS_MAX as usize {
            // Those that are gone make room first.
            self.apply_ways(store, image)?;
            self.bump(store)?;
            self.forget_unused(store, image)?;
            self.forget_filters(store, image)?;
        }
        for (prefix, filter) in &image.filters {
            self.write_filter(store, *prefix, filter)?;
        }
        self.deny(store, image)?;
        // Only now: what a new filter holds may be denied.
        for Held { number, place, .. } in self.filters.values() {
            self.settings.live_filters &= !(1 << number);
            self.settings.live_filters |= u64::from(place & 1) << number;
        }
        if self.stored.by_route == 0 && self.stored.generation != 0 && self.is_by_route(image) {
            self.settings.by_route = 1;
            self.store_settings(store)?;
        }
        Ok(())
    }

    fn write_filter<S: Store>(
        &mut self,
        store: &mut S,
        prefix: SubnetPrefix,
        filter: &ForeignGuard,
    ) -> Result<(), PublishError<S::Error>> {
        let is_same = |old: &ForeignGuard| old.salt == filter.salt && old.lines == filter.lines;
        let (number, place) = match self.filters.get(&prefix) {
            Some(held) => match &held.filter {
                Some(old) if old == filter => return Ok(()),
                Some(old) if is_same(old) => {
                    // What was cached lasts as long as the old one did.
                    self.bump_due |= filter.expires_ns < old.expires_ns;
                    (held.number, held.place)
                }
                _ => {
                    self.bump_due = true;
                    (held.number, filter_place(&self.stored, held.number) ^ 1)
                }
            },
            // No route names it yet: its place need not be flipped to.
            None => {
                let used = self.filters.values().map(|held| held.number).collect();
                let number = unused(used, FILTERS_MAX)
                    .next()
                    .ok_or(PublishError::Full("filters", FILTERS_MAX))?;
                (number, filter_place(&self.stored, number))
            }
        };
        // Until it is written whole, nobody knows what is there.
        let held = self.filters.entry(prefix).or_insert(Held {
            number,
            place,
            filter: None,
        });
        held.filter = None;
        store.set_guard_lines(filter_lines_from(place), &filter.lines)?;
        store.set_filter(place, &value(prefix, filter))?;
        (held.place, held.filter) = (place, Some(filter.clone()));
        Ok(())
    }

    /// Denies what was withdrawn.
    fn deny<S: Store>(
        &mut self,
        store: &mut S,
        image: &Image,
    ) -> Result<(), PublishError<S::Error>> {
        let mut wanted = self.denials(image);
        if !wanted.is_subset(&self.denied) || self.set_due {
            self.bump_due = true;
            self.denied.append(&mut wanted);
            self.write_set(store)?;
        }
        Ok(())
    }

    /// What is to be denied, by the numbers of the filters.
    fn denials(&self, image: &Image) -> BTreeSet<Pair> {
        let numbered = |(prefix, pair): &(SubnetPrefix, Pair)| {
            let held = self.filters.get(prefix)?;
            Some(pair.denied_by(held.number))
        };
        image.denied.iter().filter_map(numbered).collect()
    }

    /// Ends denials that are not needed any more, and gives up the numbers of filters that are gone.
    pub(super) fn forget_filters<S: Store>(
        &mut self,
        store: &mut S,
        image: &Image,
    ) -> Result<(), PublishError<S::Error>> {
        let is_gone = |prefix: &SubnetPrefix| !image.filters.contains_key(prefix);
        let held = self.filters.iter();
        let gone: Vec<(SubnetPrefix, u32)> = held
            .filter(|(prefix, _)| is_gone(prefix))
            .map(|(prefix, held)| (*prefix, held.number))
            .collect();
        let needed = self.denials(image);
        let is_over = |pair: &Pair| {
            !needed.contains(pair)
                || gone
                    .iter()
                    .any(|(_, n)| n.wrapping_add(1) == pair.denied_by)
        };
        let before = self.denied.len();
        self.denied.retain(|pair| !is_over(pair));
        if self.denied.len() != before || self.set_due {
            self.write_set(store)?;
        }
        for (prefix, number) in gone {
            for place in [2 * number, 2 * number + 1] {
                store.set_filter(place, &Filter::default())?;
            }
            self.filters.remove(&prefix);
        }
        Ok(())
    }

    pub(super) fn apply_channels<S: Store>(
        &mut self,
        store: &mut S,
        image: &Image,
    ) -> Result<(), PublishError<S::Error>> {
        self.forget_exports();
        let held = self.channels.keys();
        let hashes: BTreeSet<u16> = held.chain(image.channels.keys()).copied().collect();
        for hash in hashes {
            let wanted = match image.channels.get(&hash) {
                Some(rules) => self.policy(store, rules)?,
                None => ChannelPolicy::default(),
            };
            let held = self.channels.get(&hash).copied().unwrap_or_default();
            if held != wanted {
                self.bump_due = true;
                store.set_channel(hash, &wanted)?;
                self.channels.insert(hash, wanted);
            }
        }
        self.channels
            .retain(|_, policy| *policy != ChannelPolicy::default());
        self.forget_exports();
        Ok(())
    }

    /// What a channel's entry shall be; its export table is written.
    fn policy<S: Store>(
        &mut self,
        store: &mut S,
        rules: &ChannelRules,
    ) -> Result<ChannelPolicy, PublishError<S::Error>> {
        let place = match rules.visibility {
            Visibility::Exported if !rules.exports.is_empty() => {
                let table = exports_of(&rules.exports);
                match self.exports.get(&table) {
                    Some(place) => *place,
                    None => self.write_exports(store, table)?,
                }
            }
            _ => 0,
        };
        let ChannelRules {
            interval_ns,
            tolerance_ns,
            visibility,
            ..
        } = *rules;
        // Exported to nowhere is local, whatever lies in the first table.
        let visibility = match visibility {
            Visibility::Exported if rules.exports.is_empty() => Visibility::SubnetLocal,
            other => other,
        };
        Ok(ChannelPolicy {
            interval_ns,
            tolerance_ns,
            scope: ChannelPolicy::scope(visibility, place),
            reserved: 0,
        })
    }

    fn write_exports<S: Store>(
        &mut self,
        store: &mut S,
        table: Exports,
    ) -> Result<u32, PublishError<S::Error>> {
        let free = |held: &Tables| unused(held.values().copied().collect(), EXPORT_PLACES).next();
        let mut place = free(&self.exports);
        if place.is_none() {
            self.forget_exports();
            place = free(&self.exports);
        }
        let place = place.ok_or(PublishError::Full("export", EXPORTS_MAX))?;
        store.set_exports(place, &table)?;
        self.exports.insert(table, place);
        Ok(place)
    }

    /// Gives up the places of export tables that no channel names.
    fn forget_exports(&mut self) {
        let exported = |p: &&ChannelPolicy| p.visibility() == Visibility::Exported;
        let named: BTreeSet<u32> = (self.channels.values().filter(exported))
            .map(ChannelPolicy::exports)
            .collect();
        self.exports.retain(|_, place| named.contains(place));
    }
}
