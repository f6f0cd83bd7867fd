//! Brings tables to what an [`Image`] says, in an order that no packet can notice.
//!
//! | step | why there |
//! |---|---|
//! | other subnets' filters, beside those in use; pairs denied there flipped to | routes name them |
//! | destinations removed | none is cached anew while the rest is written |
//! | next hops, then routes, then destinations | a number is written before anything names it |
//! | export tables, then channel policies; neighbours | |
//! | exact set rebuilt beside the live one and flipped to, then the guard rebuilt beside the live one | the exact set confirms every hit |
//! | settings: guard and filters flipped; generation bumped if a cached verdict may be wrong | one write makes it so |
//! | next hops and filters that nothing names are cleared, and what filters no longer hold is no longer denied | no cached flow leads there any more |
//!
//! A destination, this node among them, that changes its subnet, or by which filter it is judged, may be held
//! to the other of old and new rules for the moment in between, if these change with it.
//!
//! Whatever fails or is killed on the way leaves a bump due, which the next image or the next daemon makes.
//! After a restart the tables themselves say what they hold ([`Publisher::recover`]), so nothing that stays
//! is touched.

extern crate std;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque, hash_map::Entry},
    vec,
    vec::Vec,
};

mod pairs;
mod places;
mod subnets;
mod ways;

pub use self::pairs::held_pairs;
use self::places::Places;
use crate::{
    directory::Line,
    guard::{Guard, lines_from},
    header::NodeId,
    image::{Image, Link, NextHopKey, Place},
    limits::{
        DENIED_MAX, EXPORTS_MAX, EXPORTS_PER_CHANNEL, FILTERS_MAX, LAYOUT_VERSION, NEIGHBOUR_SLOTS,
        NEIGHBOURS_MAX, NEXT_HOPS_MAX, OWN_ADDRESSES_MAX, PAIRS_MAX, ROUTES_MAX,
    },
    pair_set,
    publish::subnets::{Filters, Tables as ExportTables},
    subnet::{Exports, SubnetPrefix},
    tables::{
        Address, ChannelPolicy, Filter, Neighbour, NextHop, OWN_ADDRESS, Pair, Route, Settings,
        mix, neighbour_slots, split,
    },
};

/// What [`PublishError::Full`] calls the part of the neighbour table that holds own addresses.
const OWN_ADDRESSES: &str = "own addresses";

/// Where tables are written, and read back after a restart. Vectors hold every place, in order.
#[allow(missing_docs)]
pub trait Store {
    /// Why a table could not be read or written.
    type Error;
    /// Nanoseconds of one of [`crate::tables::Tables::jiffies`].
    fn jiffy_ns(&self) -> u32 {
        1
    }
    fn settings(&self) -> Result<Settings, Self::Error>;
    fn set_settings(&mut self, settings: &Settings) -> Result<(), Self::Error>;
    fn neighbours(&self) -> Result<Vec<Neighbour>, Self::Error>;
    fn set_neighbour(&mut self, slot: u32, neighbour: &Neighbour) -> Result<(), Self::Error>;
    fn set_guard_lines(&mut self, from: u32, lines: &[[u64; 8]]) -> Result<(), Self::Error>;
    fn filters(&self) -> Result<Vec<Filter>, Self::Error>;
    fn set_filter(&mut self, place: u32, filter: &Filter) -> Result<(), Self::Error>;
    fn pair_lines(&self, from: u32, count: u32) -> Result<Vec<pair_set::Line>, Self::Error>;
    fn set_pair_line(&mut self, line: u32, entries: &pair_set::Line) -> Result<(), Self::Error>;
    fn channels(&self) -> Result<Vec<ChannelPolicy>, Self::Error>;
    fn set_channel(&mut self, hash: u16, policy: &ChannelPolicy) -> Result<(), Self::Error>;
    fn exports(&self) -> Result<Vec<Exports>, Self::Error>;
    fn set_exports(&mut self, place: u32, exports: &Exports) -> Result<(), Self::Error>;
    fn destinations(&self) -> Result<Vec<Line>, Self::Error>;
    fn set_destinations(&mut self, line: u32, entries: &Line) -> Result<(), Self::Error>;
    fn routes(&self) -> Result<Vec<Route>, Self::Error>;
    fn set_route(&mut self, number: u32, route: &Route) -> Result<(), Self::Error>;
    fn next_hops(&self) -> Result<Vec<NextHop>, Self::Error>;
    fn set_next_hop(&mut self, number: u32, next_hop: &NextHop) -> Result<(), Self::Error>;
}

/// Why an image was not published. What was written until then is consistent.
#[derive(Debug, PartialEq, Eq)]
pub enum PublishError<E> {
    /// A table is full; its name and size.
    Full(&'static str, u32),
    /// The filter of a subnet has so many lines, which no filter has.
    Filter(SubnetPrefix, usize),
    /// A table could not be read or written.
    Store(E),
}

impl<E: core::fmt::Display> core::fmt::Display for PublishError<E> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Full(OWN_ADDRESSES, size) => write!(
                f,
                "this node has more than {size} addresses: let it listen on the one that peers know"
            ),
            Self::Full(table, size) => write!(
                f,
                "the {table} table holds at most {size} entries: configure fewer, or raise its limit"
            ),
            Self::Filter(SubnetPrefix { subnet, .. }, lines) => write!(
                f,
                "the filter of subnet {:x} has {lines} lines: who published it must build it in fewer, of whole banks",
                subnet.0
            ),
            Self::Store(error) => write!(f, "{error}"),
        }
    }
}

impl<E: core::fmt::Debug + core::fmt::Display> core::error::Error for PublishError<E> {}

impl<E> From<E> for PublishError<E> {
    fn from(error: E) -> Self {
        Self::Store(error)
    }
}

/// How full and how sharp the live guard is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuardStatus {
    /// Pairs it holds.
    pub pairs: usize,
    /// Banks of 4 KiB.
    pub banks: u32,
    /// Share of bits set.
    pub fill: f64,
    /// Estimated share of strangers that hit.
    pub false_positive_rate: f64,
}

/// What the tables hold now, with every number and place.
#[derive(Debug)]
pub struct Publisher {
    settings: Settings,
    /// What the settings' table holds.
    stored: Settings,
    neighbours: Vec<Neighbour>,
    pairs: BTreeSet<Pair>,
    /// The lines that each of the two exact sets is known to hold.
    sets: [Vec<pair_set::Line>; 2],
    /// The live one does not hold what it shall.
    set_due: bool,
    filters: Filters,
    denied: BTreeSet<Pair>,
    channels: BTreeMap<u16, ChannelPolicy>,
    exports: ExportTables,
    destinations: Places,
    routes: HashMap<Route, u32>,
    next_hops: BTreeMap<NextHopKey, (u32, NextHop)>,
    guard: Option<GuardStatus>,
    /// Something was written since the last bump that a cached verdict may contradict, or may have been.
    bump_due: bool,
}

impl Publisher {
    /// Reads back what the tables hold; empty tables are a fresh start.
    ///
    /// # Errors
    /// When the tables cannot be read.
    pub fn recover<S: Store>(store: &S) -> Result<Self, S::Error> {
        let mut channels = BTreeMap::new();
        for (hash, policy) in (0..=u16::MAX).zip(store.channels()?) {
            if policy != ChannelPolicy::default() {
                channels.insert(hash, policy);
            }
        }
        let (pairs, denied) = held_pairs(store)?
            .into_iter()
            .partition(|p| p.denied_by == 0);
        let next_hops: Vec<NextHop> = store.next_hops()?;
        let routes: Vec<Route> = store.routes()?;
        let used = |n: &NextHop| n.ifindex != 0 || n.target != Address::default();
        let settings = store.settings()?;
        let destinations = Places::recover(store.destinations()?, settings.destination_key);
        let named: BTreeSet<u32> = destinations.iter().map(|(_, number)| number).collect();
        Ok(Self {
            settings,
            stored: settings,
            neighbours: store.neighbours()?,
            pairs,
            sets: Default::default(),
            set_due: false,
            filters: subnets::recover_filters(&settings, &store.filters()?),
            denied,
            exports: subnets::recover_exports(store.exports()?),
            channels,
            routes: (0..)
                .zip(routes)
                .filter(|(n, _)| named.contains(n))
                .map(|(n, r)| (r, n))
                .collect(),
            destinations,
            next_hops: (0..)
                .zip(next_hops)
                .filter(|(_, n)| used(n))
                .map(|(number, n)| (NextHopKey::from(&n), (number, n)))
                .collect(),
            guard: None,
            bump_due: true,
        })
    }

    /// The next hops that the tables hold.
    pub fn next_hops(&self) -> impl Iterator<Item = NextHop> + '_ {
        self.next_hops.values().map(|(_, next_hop)| *next_hop)
    }

    /// The live guard; `None` before the first image.
    #[must_use]
    pub fn guard(&self) -> Option<GuardStatus> {
        self.guard
    }

    /// Brings the tables to `image`. `entropy` gives 64 random bits a call.
    ///
    /// # Errors
    /// When a table is full or cannot be written; nothing that names a missing entry was written.
    pub fn apply<S: Store>(
        &mut self,
        store: &mut S,
        image: &Image,
        mut entropy: impl FnMut() -> u64,
    ) -> Result<(), PublishError<S::Error>> {
        self.check_sizes::<S>(image)?;
        if self.settings.generation == 0 {
            self.pick_keys(&mut entropy);
        }
        self.apply_filters(store, image)?;
        self.apply_ways(store, image)?;
        self.apply_channels(store, image)?;
        self.apply_neighbours(store, image)?;
        if self.apply_pairs(store, image)? || self.guard.is_none() {
            self.build_guard(store, [entropy(), entropy()])?;
        }
        let here = (self.settings.node_id, self.settings.subnet);
        if self.bump_due || here != (image.node_id, image.subnet) {
            self.settings.generation += 1;
        }
        self.settings.node_id = image.node_id;
        self.settings.subnet = image.subnet;
        self.settings.by_route = u32::from(self.is_by_route(image));
        self.settings.port = u32::from(image.port);
        self.settings.layout = LAYOUT_VERSION;
        self.settings.jiffy_ns = store.jiffy_ns();
        self.store_settings(store)?;
        self.bump_due = false;
        self.forget_unused(store, image)?;
        self.forget_filters(store, image)?;
        Ok(())
    }

    /// Keys that nobody else knows, before the first image.
    fn pick_keys(&mut self, mut entropy: impl FnMut() -> u64) {
        self.bump_due = true;
        self.settings.flow_key = entropy();
        self.settings.seen_keys = core::array::from_fn(|_| split(mix(0, entropy())));
        self.settings.neighbour_key = entropy();
        self.settings.destination_key = entropy();
        self.settings.pair_key = entropy();
        self.set_due = true;
        self.settings.destination_lines = self.destinations.lines();
        self.destinations.key = self.settings.destination_key;
    }

    fn store_settings<S: Store>(&mut self, store: &mut S) -> Result<(), S::Error> {
        store.set_settings(&self.settings)?;
        self.stored = self.settings;
        Ok(())
    }

    /// Builds the guard beside the live one; the settings, written next, flip to it.
    fn build_guard<S: Store>(
        &mut self,
        store: &mut S,
        salt: [u64; 2],
    ) -> Result<(), PublishError<S::Error>> {
        let guard = Guard::build(salt, self.pairs.iter());
        self.guard = None;
        let which = self.stored.live_guard ^ 1;
        store.set_guard_lines(lines_from(which), &guard.lines)?;
        // What it is probed by stands before anybody is told to.
        for settings in [&mut self.stored, &mut self.settings] {
            settings.guards[which as usize & 1] = guard.info;
        }
        store.set_settings(&self.stored)?;
        self.settings.live_guard = which;
        self.guard = Some(GuardStatus {
            pairs: self.pairs.len(),
            banks: guard.info.bank_mask + 1,
            fill: guard.fill(),
            false_positive_rate: guard.false_positive_rate(),
        });
        Ok(())
    }

    /// Refuses what cannot fit before anything is written.
    fn check_sizes<S: Store>(&self, image: &Image) -> Result<(), PublishError<S::Error>> {
        let subnet = |d: &NodeId| image.subnet_of(*d);
        let routes: BTreeSet<_> = (image.routes.iter())
            .map(|(destination, via)| (via.primary, via.backup, subnet(destination)))
            .collect();
        let exported = || image.channels.values().map(|rules| &rules.exports);
        let exports: BTreeSet<_> = exported().collect();
        let longest = exported().map(BTreeSet::len).max().unwrap_or(0);
        subnets::check_filters(image)?;
        let sizes = [
            ("pairs", image.pairs.len(), PAIRS_MAX),
            ("filters", image.filters.len(), FILTERS_MAX),
            ("denied pairs", image.denied.len(), DENIED_MAX),
            ("export", exports.len(), EXPORTS_MAX),
            ("export (of one channel)", longest, EXPORTS_PER_CHANNEL),
            ("neighbours", image.neighbours.len(), NEIGHBOURS_MAX),
            (OWN_ADDRESSES, image.addresses.len(), OWN_ADDRESSES_MAX),
            ("next hops", image.next_hops.len(), NEXT_HOPS_MAX),
            ("routes", routes.len(), ROUTES_MAX),
            (
                "destinations",
                image.routes.len(),
                self.destinations.capacity(),
            ),
        ];
        match sizes
            .into_iter()
            .find(|(_, have, most)| *have > *most as usize)
        {
            Some((table, _, most)) => Err(PublishError::Full(table, most)),
            None => Ok(()),
        }
    }

    fn apply_neighbours<S: Store>(
        &mut self,
        store: &mut S,
        image: &Image,
    ) -> Result<(), PublishError<S::Error>> {
        let mut wanted: BTreeMap<Place, Neighbour> = BTreeMap::new();
        let own = image
            .addresses
            .iter()
            .map(|a| (Place::new(OWN_ADDRESS, *a), Link::default()));
        for (place, link) in image.neighbours.iter().map(|(p, l)| (*p, *l)).chain(own) {
            let Place {
                ifindex,
                vlan,
                address,
            } = place;
            let Link {
                subnet,
                mask: subnet_mask,
                demands_tag,
                tag_keys,
            } = link;
            let entry = Neighbour {
                address,
                ifindex,
                used: 1,
                index: 0,
                subnet,
                subnet_mask,
                vlan,
                demands_tag: u32::from(demands_tag),
                reserved: 0,
                own: image.own_towards(&place),
                tag_keys,
            };
            wanted.insert(place, entry);
        }
        for slot in 0..NEIGHBOUR_SLOTS {
            let held = self.neighbours[slot as usize];
            if held.used == 0 {
                continue;
            }
            let place = Place {
                ifindex: held.ifindex,
                vlan: held.vlan,
                address: held.address,
            };
            // What a first image that failed has left was placed by another key.
            let is_found = self.slots(&held).contains(&slot);
            let new = is_found.then(|| wanted.remove(&place)).flatten();
            let new = new
                .map(|n| Neighbour {
                    index: if is_own(&n) { 0 } else { held.index },
                    ..n
                })
                .unwrap_or_default();
            if new != held {
                // Link tags are checked for every packet.
                self.bump_due |= without_tags(new) != without_tags(held);
                self.write_neighbour(store, slot, new)?;
            }
        }
        let held = self.neighbours.iter();
        let used = held.filter(|n| n.used == 1 && !is_own(n));
        let mut numbers = unused(used.map(|n| n.index).collect(), NEIGHBOURS_MAX);
        for (_, mut neighbour) in wanted {
            if !is_own(&neighbour) {
                neighbour.index = numbers
                    .next()
                    .ok_or(PublishError::Full("neighbours", NEIGHBOURS_MAX))?;
            }
            self.place(store, neighbour)?;
        }
        Ok(())
    }

    /// The two slots that an entry may be in.
    fn slots(&self, n: &Neighbour) -> [u32; 2] {
        neighbour_slots(self.settings.neighbour_key, n.ifindex, n.vlan, n.address)
    }

    /// Writes an entry; one for another address is marked used only when the rest of it stands.
    fn write_neighbour<S: Store>(
        &mut self,
        store: &mut S,
        slot: u32,
        neighbour: Neighbour,
    ) -> Result<(), PublishError<S::Error>> {
        let held = &mut self.neighbours[slot as usize];
        if neighbour.used == 1 && (held.used == 0 || held.address != neighbour.address) {
            store.set_neighbour(
                slot,
                &Neighbour {
                    used: 0,
                    ..neighbour
                },
            )?;
        }
        store.set_neighbour(slot, &neighbour)?;
        *held = neighbour;
        Ok(())
    }

    /// Cuckoo insertion (Pagh, Rodler) along the shortest way to a free slot. Entries move there from
    /// the far end first, so that each is somewhere at any time.
    fn place<S: Store>(
        &mut self,
        store: &mut S,
        neighbour: Neighbour,
    ) -> Result<(), PublishError<S::Error>> {
        let path = self
            .path_for(&neighbour)
            .ok_or(PublishError::Full("neighbours", NEIGHBOURS_MAX))?;
        for i in (1..path.len()).rev() {
            let moved = self.neighbours[path[i - 1] as usize];
            self.write_neighbour(store, path[i], moved)?;
        }
        self.write_neighbour(store, path[0], neighbour)
    }

    /// Slots from one of the entry's own to a free one, each the other slot of what is in the one before.
    fn path_for(&self, neighbour: &Neighbour) -> Option<Vec<u32>> {
        let mut came_from: HashMap<u32, Option<u32>> = HashMap::new();
        let mut queue: VecDeque<u32> = VecDeque::new();
        for slot in self.slots(neighbour) {
            if came_from.insert(slot, None).is_none() {
                queue.push_back(slot);
            }
        }
        while let Some(at) = queue.pop_front() {
            let held = &self.neighbours[at as usize];
            if held.used == 0 {
                let mut path = vec![at];
                while let Some(Some(before)) = path.last().and_then(|slot| came_from.get(slot)) {
                    path.push(*before);
                }
                path.reverse();
                return Some(path);
            }
            for next in self.slots(held) {
                if let Entry::Vacant(unseen) = came_from.entry(next) {
                    unseen.insert(Some(at));
                    queue.push_back(next);
                }
            }
        }
        None
    }
}

/// Whether an entry is an own address; such a one has no number.
fn is_own(entry: &Neighbour) -> bool {
    entry.ifindex == OWN_ADDRESS
}

/// What flows that are cached go by.
fn without_tags(entry: Neighbour) -> Neighbour {
    Neighbour {
        demands_tag: 0,
        tag_keys: Default::default(),
        ..entry
    }
}

/// The numbers below `most` that are not among `used`, smallest first.
fn unused(used: BTreeSet<u32>, most: u32) -> impl Iterator<Item = u32> {
    (0..most).filter(move |n| !used.contains(n))
}
