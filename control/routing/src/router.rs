//! A node's router: what happens goes in, route changes and messages come out.
//!
//! Whoever drives it calls one of the inputs, then takes all of [`Router::poll_route`] and brings that into
//! the tables, then takes all of [`Router::poll_transmit`] and sends it, and calls [`Router::handle_timeout`]
//! when [`Router::poll_timeout`] says.

use crate::{
    allowance::Allowance,
    announcement::{Announcement, Authority, Claim, Destination},
    ask::Asking,
    keep::Mended,
    limits::{COST_MAX, LIFETIME_S, RENUMBER_BURST, RENUMBER_PAUSE_NS, SWEEP_NS, TICK_NS},
    neighbour::{Liveness, Neighbour, Neighbours},
    reason::{Reason, Reasons},
    scope::Aggregation,
    table::{Entry, NextHops, Own, Table},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use virga_ebpf::{
    hash,
    header::{NodeId, Subnet},
};

/// What time it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// On a clock that never goes back.
    pub ns: u64,
    /// On the wall, in Unix seconds; it may be set at any time.
    pub unix_s: u64,
}

/// What a router begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// This node's subnet.
    pub subnet: Subnet,
    /// Whether other subnets are one destination each; the same in the whole mesh.
    pub aggregation: Aggregation,
    /// Higher than any that this node has used before: the milliseconds of Unix time at its start. It corrects
    /// itself where the mesh knows a higher one. A subnet's is not believed far above the time, see
    /// [`crate::limits::AHEAD_S`].
    pub seqno: u64,
    /// How long neighbours may take to know that this node has restarted. Until then it leads nowhere but to
    /// its neighbours themselves.
    pub quiet_ns: u64,
    /// Destinations that it knows at most.
    pub destinations_max: usize,
}

/// A change for the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteChange {
    /// Where to.
    pub destination: Destination,
    /// Over which neighbours; none: it is not reached.
    pub next_hops: Option<NextHops>,
}

/// A route, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteView {
    /// Where to.
    pub destination: Destination,
    /// Over which neighbours.
    pub next_hops: NextHops,
    /// How far.
    pub metric: u32,
    /// The destination's number.
    pub seqno: u64,
    /// The node that announced it.
    pub origin: NodeId,
    /// Since when these neighbours, on the clock that never goes back.
    pub since_ns: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Router<A> {
    pub(crate) authority: A,
    pub(crate) setup: Setup,
    pub(crate) node: NodeId,
    pub(crate) table: Table,
    pub(crate) neighbours: Neighbours,
    /// Places of which neighbours may have to be told.
    pub(crate) changed: BTreeSet<u32>,
    /// Places of which the tables may have to be told.
    pub(crate) to_install: BTreeSet<u32>,
    pub(crate) asking: BTreeMap<u32, Asking>,
    /// Nothing is asked for before.
    pub(crate) ask_ns: u64,
    /// The neighbour that is told next, by its place.
    pub(crate) speaks_to: usize,
    /// Neighbours that are not listened to any more, and that nobody was told of yet.
    pub(crate) muted: BTreeSet<NodeId>,
    /// When both clocks were last compared.
    pub(crate) compared: Now,
    /// Something was refused because there was no room.
    pub(crate) is_crowded: bool,
    /// Own places that get another number: which, and when.
    pub(crate) renumbered: BTreeMap<u32, (u64, u64)>,
    /// Places of which another metric is told later, and when.
    pub(crate) later: BTreeMap<u32, u64>,
    pub(crate) flush_ns: Option<u64>,
    pub(crate) flushed_ns: Option<u64>,
    pub(crate) quiet_until_ns: Option<u64>,
    sweep_ns: u64,
    pub(crate) now: Now,
    pub(crate) reasons: Reasons,
    /// Announcements under this node's own keys that it has not made.
    pub(crate) twins: u64,
    pub(crate) said: u64,
}

impl<A: Authority> Router<A> {
    /// A router without any neighbour.
    #[must_use]
    pub fn new(now: Now, setup: Setup, authority: A) -> Self {
        let node = hash::node_id(&authority.node_key());
        let mut router = Self {
            authority,
            setup,
            node,
            table: Table::default(),
            neighbours: Neighbours::default(),
            changed: BTreeSet::new(),
            to_install: BTreeSet::new(),
            asking: BTreeMap::new(),
            ask_ns: u64::MAX,
            speaks_to: 0,
            muted: BTreeSet::new(),
            compared: now,
            is_crowded: false,
            renumbered: BTreeMap::new(),
            later: BTreeMap::new(),
            flush_ns: None,
            flushed_ns: None,
            quiet_until_ns: (setup.quiet_ns > 0).then(|| now.ns.saturating_add(setup.quiet_ns)),
            sweep_ns: now.ns.saturating_add(SWEEP_NS),
            now,
            reasons: Reasons::default(),
            twins: 0,
            said: 0,
        };
        for announced in setup.aggregation.announced(setup.subnet) {
            router.add_own(announced);
        }
        router
    }

    /// Signs that this node is there, by a number.
    fn sign(&self, announced: u8, seqno: u64) -> Option<Announcement> {
        let claim = Claim {
            network: self.authority.network(),
            node_key: self.authority.node_key(),
            entity_key: self.authority.entity_key(),
            subnet: self.setup.subnet,
            announced,
            seqno,
            not_after_s: self.now.unix_s.saturating_add(LIFETIME_S),
        };
        Announcement::issue(&claim, |message| self.authority.sign(message))
    }

    fn add_own(&mut self, announced: u8) {
        let Some(announcement) = self.sign(announced, self.setup.seqno) else {
            return;
        };
        let mut entry = Entry::new(announcement.destination(), self.setup.subnet);
        entry.own = Some(Own {
            announced,
            announcement: Arc::new(announcement),
            signed_ns: self.now.ns,
            numbers: Allowance::new(RENUMBER_BURST, RENUMBER_PAUSE_NS),
            is_refused: false,
        });
        if let Some(place) = self.table.add(entry) {
            self.mark(place);
        }
    }

    /// Signs that a place of its own has another number.
    pub(crate) fn renumber(&mut self, place: u32, seqno: u64) {
        let own = self.table.at(place).and_then(|entry| entry.own.as_ref());
        let Some(announced) = own.map(|own| own.announced) else {
            return;
        };
        let signed = self.sign(announced, seqno).map(Arc::new);
        let (signed_ns, entry) = (self.now.ns, self.table.at_mut(place));
        let own = entry.and_then(|entry| entry.own.as_mut());
        if let (Some(announcement), Some(own)) = (signed, own) {
            (own.announcement, own.signed_ns) = (announcement, signed_ns);
            own.is_refused = false;
        }
        self.mark(place);
    }

    /// Neighbours may have to be told of it.
    pub(crate) fn mark(&mut self, place: u32) {
        self.changed.insert(place);
        self.flush_soon();
    }

    pub(crate) fn flush_soon(&mut self) {
        let next = self.flushed_ns.map_or(0, |at| at.saturating_add(TICK_NS));
        self.flush_ns.get_or_insert(next.max(self.now.ns));
    }

    /// This node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// There is a stream to a neighbour, which is in a subnet, from its beginning on. Not more than
    /// [`crate::limits::NEIGHBOURS_MAX`] are taken.
    pub fn neighbour_up(&mut self, now: Now, id: NodeId, subnet: Subnet, cost: u32) {
        self.neighbour_down(now, id);
        if id == self.node {
            return;
        }
        let cost = cost.clamp(1, COST_MAX);
        if self
            .neighbours
            .add(Neighbour::new(id, subnet, cost))
            .is_none()
        {
            self.reasons.add(Reason::Full);
        }
        self.flush_soon();
    }

    /// The stream to a neighbour has ended, or its link is dead.
    pub fn neighbour_down(&mut self, now: Now, id: NodeId) {
        self.now = now;
        let Some(slot) = self.neighbours.slot(id) else {
            return;
        };
        for place in self.table.taken() {
            let entry = self.table.at_mut(place);
            if entry.is_some_and(|entry| entry.forget(slot)) {
                self.choose(place);
            }
        }
        self.neighbours.remove(id);
    }

    /// A link has another cost.
    pub fn set_cost(&mut self, now: Now, id: NodeId, cost: u32) {
        self.now = now;
        let Some(slot) = self.neighbours.slot(id) else {
            return;
        };
        if let Some(neighbour) = self.neighbours.at_mut(slot) {
            neighbour.cost = cost.clamp(1, COST_MAX);
        }
        for place in self.table.taken() {
            if self
                .table
                .at(place)
                .is_some_and(|entry| entry.from(slot).is_some())
            {
                self.choose(place);
            }
        }
    }

    /// Packets get to a neighbour over its link, or do not.
    pub fn set_liveness(&mut self, now: Now, id: NodeId, liveness: Liveness) {
        self.now = now;
        let Some(slot) = self.neighbours.slot(id) else {
            return;
        };
        match self.neighbours.at_mut(slot) {
            Some(neighbour) if neighbour.liveness != liveness => neighbour.liveness = liveness,
            _ => return,
        }
        for place in self.table.taken() {
            let entry = self.table.at(place);
            if entry.is_some_and(|entry| entry.from(slot).is_some()) {
                self.choose(place);
            }
        }
    }

    /// All neighbours that there are know that this node has started: it need not be quiet any longer.
    pub fn all_know(&mut self, now: Now) {
        self.now = now;
        if self.quiet_until_ns.take().is_some() {
            for place in self.table.taken() {
                self.choose(place);
                self.mark(place);
            }
        }
    }

    /// Chooses anew which neighbours lead to a destination.
    pub(crate) fn choose(&mut self, place: u32) {
        let is_quiet = self.quiet_until_ns.is_some();
        let Some(entry) = self.table.at_mut(place) else {
            return;
        };
        if entry.own.is_some() {
            return;
        }
        let chosen = entry.choose(self.node, &self.neighbours, is_quiet);
        entry.chosen = chosen;
        self.to_install.insert(place);
        self.mark(place);
        self.look_whether_to_ask(place);
    }

    /// When it wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        let numbers = self.renumbered.values().map(|&(at_ns, _)| at_ns).min();
        let timers = [
            self.flush_ns,
            self.quiet_until_ns,
            (!self.asking.is_empty()).then_some(self.ask_ns),
            numbers,
            self.later.values().copied().min(),
            Some(self.sweep_ns),
        ];
        timers.into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        self.now = now;
        if self.quiet_until_ns.is_some_and(|at| at <= now.ns) {
            self.all_know(now);
        }
        let is_set_anew = self.is_set_anew();
        if is_set_anew {
            self.reconsider(Mended::Clock);
        }
        if self.sweep_ns <= now.ns || is_set_anew {
            self.sweep_ns = now.ns.saturating_add(SWEEP_NS);
            self.sweep();
            self.reconsider(Mended::Time);
        }
        let numbers = self
            .renumbered
            .iter()
            .filter(|(_, (at_ns, _))| *at_ns <= now.ns);
        let numbers: Vec<(u32, u64)> = numbers.map(|(&place, &(_, n))| (place, n)).collect();
        for (place, seqno) in numbers {
            self.renumbered.remove(&place);
            let own = self.table.at_mut(place).and_then(|e| e.own.as_mut());
            if own.is_some_and(|own| own.numbers.take(now.ns)) {
                self.renumber(place, seqno);
            }
        }
        let later = self.later.iter().filter(|(_, at_ns)| **at_ns <= now.ns);
        let later: Vec<u32> = later.map(|(&place, _)| place).collect();
        for place in later {
            self.later.remove(&place);
            self.mark(place);
        }
        self.ask_due();
        if self.flush_ns.is_some_and(|at| at <= now.ns) {
            self.flush();
        }
    }

    /// The next change for the tables.
    pub fn poll_route(&mut self) -> Option<RouteChange> {
        while let Some(place) = self.to_install.pop_first() {
            let Some(entry) = self.table.at_mut(place) else {
                continue;
            };
            let id = |slot| self.neighbours.at(slot).map(|n| n.id);
            let next_hops = entry.chosen.and_then(|chosen| {
                Some(NextHops {
                    primary: id(chosen.primary)?,
                    backup: chosen.backup.and_then(id),
                })
            });
            if entry.installed != next_hops {
                (entry.installed, entry.installed_ns) = (next_hops, self.now.ns);
                return Some(RouteChange {
                    destination: entry.destination,
                    next_hops,
                });
            }
        }
        None
    }

    /// All routes.
    pub fn routes(&self) -> impl Iterator<Item = RouteView> {
        self.table.taken().filter_map(|place| {
            let entry = self.table.at(place)?;
            let chosen = entry.chosen?;
            Some(RouteView {
                destination: entry.destination,
                next_hops: entry.installed?,
                metric: chosen.metric,
                seqno: chosen.seqno,
                origin: entry.from(chosen.primary)?.announcement.origin(),
                since_ns: entry.installed_ns,
            })
        })
    }

    /// Destinations that it knows of, and neighbours that there are.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        (self.table.len(), self.neighbours.len())
    }

    /// Whether it knows of nothing, not even of itself.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    /// Whether it still waits for its neighbours to know that it has restarted.
    #[must_use]
    pub const fn is_quiet(&self) -> bool {
        self.quiet_until_ns.is_some()
    }

    /// How often something that a neighbour said was not taken.
    #[must_use]
    pub fn count(&self, reason: Reason) -> u64 {
        self.reasons.count(reason)
    }

    /// Announcements that this node's keys have signed and this node has not, since it started. One may be of
    /// an earlier life; more are of another node that has its keys.
    #[must_use]
    pub const fn twins(&self) -> u64 {
        self.twins
    }

    /// Nodes of which neighbours go on saying different numbers: two have the same keys, and each is taken for
    /// it by those that are nearer to it.
    pub fn torn(&self) -> impl Iterator<Item = Destination> {
        let entries = self.table.taken().filter_map(|place| self.table.at(place));
        entries
            .filter(|entry| entry.is_torn)
            .map(|entry| entry.destination)
    }

    /// A neighbour that is not listened to any more in this session, as too much of what it said was forged.
    pub fn poll_muted(&mut self) -> Option<NodeId> {
        self.muted.pop_first()
    }

    /// Messages that it has made.
    #[must_use]
    pub const fn said(&self) -> u64 {
        self.said
    }
}
