//! The tables in plain memory: what user space decides by, with the same layouts and look-ups as the
//! NIC path's maps.

extern crate std;
use core::cell::Cell;
use core::convert::Infallible;
use std::{vec, vec::Vec};

use crate::{
    directory::{Line, lines_for},
    flow::Flow,
    header::ChannelHash,
    limits::{
        CHANNELS, DESTINATIONS_MAX, ECHO_SLOTS, EXPORT_PLACES, FILTER_PLACES, FLOW_SLOTS,
        LINES_MAX, NEIGHBOUR_SLOTS, NEXT_HOPS_MAX, PAIR_LINES_MAX, RATE_BUCKETS, ROUTES_MAX,
        SEEN_SLOTS,
    },
    pair_set,
    publish::Store,
    subnet::Exports,
    tables::{ChannelPolicy, Echo, Filter, Neighbour, NextHop, Route, Settings, Tables},
};

/// All tables of one node. Not shared between threads.
#[derive(Debug)]
pub struct MemoryTables {
    settings: Settings,
    now_ns: Cell<u64>,
    neighbours: Vec<Neighbour>,
    handshake_buckets: Vec<Cell<u64>>,
    echoes: Vec<Cell<Echo>>,
    filters: Vec<Filter>,
    guard_lines: Vec<[u64; 8]>,
    pairs: Vec<pair_set::Line>,
    channels: Vec<ChannelPolicy>,
    exports: Vec<Exports>,
    rate_buckets: Vec<Cell<u64>>,
    destinations: Vec<Line>,
    routes: Vec<Route>,
    next_hops: Vec<NextHop>,
    flows: Vec<Cell<Flow>>,
    seen: Vec<Cell<u64>>,
}

impl Default for MemoryTables {
    fn default() -> Self {
        Self::with_destinations(DESTINATIONS_MAX)
    }
}

impl MemoryTables {
    /// Empty tables: every packet is not ours.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Empty tables with room for so many destinations.
    #[must_use]
    pub fn with_destinations(most: u32) -> Self {
        Self {
            settings: Settings::default(),
            now_ns: Cell::new(0),
            neighbours: vec![Neighbour::default(); NEIGHBOUR_SLOTS as usize],
            handshake_buckets: vec![Cell::new(0); NEIGHBOUR_SLOTS as usize],
            echoes: vec![Cell::new(Echo::default()); ECHO_SLOTS as usize],
            filters: vec![Filter::default(); FILTER_PLACES as usize],
            guard_lines: vec![[0; 8]; LINES_MAX as usize],
            pairs: vec![[0; 8]; 2 * PAIR_LINES_MAX as usize],
            channels: vec![ChannelPolicy::default(); CHANNELS as usize],
            exports: vec![Exports::default(); EXPORT_PLACES as usize],
            rate_buckets: vec![Cell::new(0); RATE_BUCKETS as usize],
            destinations: vec![[0; 8]; lines_for(most) as usize],
            routes: vec![Route::default(); ROUTES_MAX as usize],
            next_hops: vec![NextHop::default(); NEXT_HOPS_MAX as usize],
            flows: vec![Cell::new(Flow::default()); FLOW_SLOTS as usize],
            seen: vec![Cell::new(0); SEEN_SLOTS as usize],
        }
    }

    /// The settings, by value, as [`crate::decide::decide`] wants them.
    #[must_use]
    pub fn current(&self) -> Settings {
        self.settings
    }

    /// Sets the time that rates and the duplicate filter go by.
    pub fn set_now(&self, now_ns: u64) {
        self.now_ns.set(now_ns);
    }

    /// Forgets cached flows, seen packets and spent rates, as a new NIC path would have none.
    pub fn forget(&mut self) {
        for cell in &self.flows {
            cell.set(Flow::default());
        }
        for cell in self
            .seen
            .iter()
            .chain(&self.rate_buckets)
            .chain(&self.handshake_buckets)
        {
            cell.set(0);
        }
    }
}

impl Tables for MemoryTables {
    #[inline]
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }
    #[inline]
    fn jiffies(&self) -> u64 {
        self.now_ns.get()
    }
    #[inline]
    fn neighbour(&self, slot: u32) -> Option<&Neighbour> {
        self.neighbours.get(slot as usize)
    }
    #[inline]
    fn handshake_bucket(&self, neighbour: u32) -> Option<&Cell<u64>> {
        self.handshake_buckets.get(neighbour as usize)
    }
    #[inline]
    fn exact_ns(&self) -> u64 {
        self.now_ns.get()
    }
    #[inline]
    fn echo(&self, place: u32) -> Option<&Cell<Echo>> {
        self.echoes.get(place as usize)
    }
    #[inline]
    fn filter(&self, place: u32) -> Option<&Filter> {
        self.filters.get(place as usize)
    }
    #[inline]
    fn guard_line(&self, line: u32) -> Option<&[u64; 8]> {
        self.guard_lines.get(line as usize)
    }
    #[inline]
    fn pair_line(&self, line: u32) -> Option<&pair_set::Line> {
        self.pairs.get(line as usize)
    }
    #[inline]
    fn channel(&self, hash: ChannelHash) -> Option<&ChannelPolicy> {
        self.channels.get(usize::from(hash.0))
    }
    #[inline]
    fn exports(&self, place: u32) -> Option<&Exports> {
        self.exports.get(place as usize)
    }
    #[inline]
    fn rate_bucket(&self, slot: u32) -> Option<&Cell<u64>> {
        self.rate_buckets.get(slot as usize)
    }
    #[inline]
    fn destinations(&self, line: u32) -> Option<&Line> {
        self.destinations.get(line as usize)
    }
    #[inline]
    fn route(&self, number: u32) -> Option<&Route> {
        self.routes.get(number as usize)
    }
    #[inline]
    fn next_hop(&self, number: u32) -> Option<&NextHop> {
        self.next_hops.get(number as usize)
    }
    #[inline]
    fn flow(&self, slot: u32) -> Option<&Cell<Flow>> {
        self.flows.get(slot as usize)
    }
    #[inline]
    fn seen(&self, slot: u32) -> Option<&Cell<u64>> {
        self.seen.get(slot as usize)
    }
}

impl Store for MemoryTables {
    type Error = Infallible;

    fn settings(&self) -> Result<Settings, Infallible> {
        Ok(self.settings)
    }
    fn set_settings(&mut self, settings: &Settings) -> Result<(), Infallible> {
        self.settings = *settings;
        Ok(())
    }
    fn neighbours(&self) -> Result<Vec<Neighbour>, Infallible> {
        Ok(self.neighbours.clone())
    }
    fn set_neighbour(&mut self, slot: u32, neighbour: &Neighbour) -> Result<(), Infallible> {
        self.neighbours[slot as usize] = *neighbour;
        Ok(())
    }
    fn set_guard_lines(&mut self, from: u32, lines: &[[u64; 8]]) -> Result<(), Infallible> {
        let from = from as usize;
        self.guard_lines[from..from + lines.len()].copy_from_slice(lines);
        Ok(())
    }
    fn filters(&self) -> Result<Vec<Filter>, Infallible> {
        Ok(self.filters.clone())
    }
    fn set_filter(&mut self, place: u32, filter: &Filter) -> Result<(), Infallible> {
        self.filters[place as usize] = *filter;
        Ok(())
    }
    fn pair_lines(&self, from: u32, count: u32) -> Result<Vec<pair_set::Line>, Infallible> {
        let lines = self.pairs.iter().skip(from as usize);
        Ok(lines.take(count as usize).copied().collect())
    }
    fn set_pair_line(&mut self, line: u32, entries: &pair_set::Line) -> Result<(), Infallible> {
        self.pairs[line as usize] = *entries;
        Ok(())
    }
    fn channels(&self) -> Result<Vec<ChannelPolicy>, Infallible> {
        Ok(self.channels.clone())
    }
    fn set_channel(&mut self, hash: u16, policy: &ChannelPolicy) -> Result<(), Infallible> {
        self.channels[usize::from(hash)] = *policy;
        Ok(())
    }
    fn exports(&self) -> Result<Vec<Exports>, Infallible> {
        Ok(self.exports.clone())
    }
    fn set_exports(&mut self, place: u32, exports: &Exports) -> Result<(), Infallible> {
        self.exports[place as usize] = *exports;
        Ok(())
    }
    fn destinations(&self) -> Result<Vec<Line>, Infallible> {
        Ok(self.destinations.clone())
    }
    fn set_destinations(&mut self, line: u32, entries: &Line) -> Result<(), Infallible> {
        self.destinations[line as usize] = *entries;
        Ok(())
    }
    fn routes(&self) -> Result<Vec<Route>, Infallible> {
        Ok(self.routes.clone())
    }
    fn set_route(&mut self, number: u32, route: &Route) -> Result<(), Infallible> {
        self.routes[number as usize] = *route;
        Ok(())
    }
    fn next_hops(&self) -> Result<Vec<NextHop>, Infallible> {
        Ok(self.next_hops.clone())
    }
    fn set_next_hop(&mut self, number: u32, next_hop: &NextHop) -> Result<(), Infallible> {
        self.next_hops[number as usize] = *next_hop;
        Ok(())
    }
}
