//! A neighbour that there is a stream to: what it was told, and what waits to be told.

use crate::{
    announcement::Announcement,
    limits::{NEIGHBOURS_MAX, REQUESTS_MAX},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};
use virga_ebpf::header::{NodeId, Subnet};

/// A neighbour's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(pub(crate) u16);

impl Slot {
    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Whether packets get to a neighbour over its link. The stream to it may outlive that, over others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// They do.
    Alive,
    /// They do not: nothing is sent there, and what it said is kept.
    Dead,
}

/// What it was told of one destination last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// None: that this node does not lead there, or nothing.
    pub(crate) announcement: Option<Arc<Announcement>>,
    pub(crate) metric: u32,
    pub(crate) is_queued: bool,
}

#[derive(Debug)]
pub(crate) struct Neighbour {
    pub(crate) id: NodeId,
    pub(crate) subnet: Subnet,
    pub(crate) cost: u32,
    pub(crate) liveness: Liveness,
    /// By the destination's place.
    told: Vec<Told>,
    pub(crate) queue: VecDeque<u32>,
    /// By the destination's place: neighbours that it may pass, and the number that is too low.
    pub(crate) requests: BTreeMap<u32, (u8, Arc<Announcement>)>,
    /// Messages that it may yet be sent in this tick.
    pub(crate) budget: u32,
    /// Forged announcements that it brought.
    pub(crate) forged: u32,
}

impl Neighbour {
    pub(crate) fn new(id: NodeId, subnet: Subnet, cost: u32) -> Self {
        Self {
            id,
            subnet,
            cost,
            liveness: Liveness::Alive,
            told: Vec::new(),
            queue: VecDeque::new(),
            requests: BTreeMap::new(),
            budget: 0,
            forged: 0,
        }
    }

    pub(crate) fn told(&mut self, place: u32) -> &mut Told {
        let index = place as usize;
        if self.told.len() <= index {
            self.told.resize(index + 1, Told::default());
        }
        &mut self.told[index]
    }

    pub(crate) fn was_told(&self, place: u32) -> bool {
        let told = self.told.get(place as usize);
        told.is_some_and(|told| told.announcement.is_some() || told.is_queued)
    }

    /// Whether there was room for the request.
    pub(crate) fn request(&mut self, place: u32, hops: u8, proof: &Arc<Announcement>) -> bool {
        let has_room = self.requests.len() < REQUESTS_MAX || self.requests.contains_key(&place);
        let is_newer = |(_, known): &(u8, Arc<Announcement>)| known.seqno() < proof.seqno();
        if has_room && self.requests.get(&place).is_none_or(is_newer) {
            self.requests.insert(place, (hops, Arc::clone(proof)));
        }
        has_room
    }

    pub(crate) fn has_to_say(&self) -> bool {
        !self.queue.is_empty() || !self.requests.is_empty()
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    slots: Vec<Option<Neighbour>>,
    places: BTreeMap<NodeId, Slot>,
}

impl Neighbours {
    pub(crate) fn slot(&self, id: NodeId) -> Option<Slot> {
        self.places.get(&id).copied()
    }

    pub(crate) fn at(&self, slot: Slot) -> Option<&Neighbour> {
        self.slots.get(slot.index())?.as_ref()
    }

    pub(crate) fn at_mut(&mut self, slot: Slot) -> Option<&mut Neighbour> {
        self.slots.get_mut(slot.index())?.as_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> + use<> {
        let slots: Vec<Slot> = self.places.values().copied().collect();
        slots.into_iter()
    }

    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut Neighbour> {
        self.slots.iter_mut().flatten()
    }

    /// None: there are too many.
    pub(crate) fn add(&mut self, neighbour: Neighbour) -> Option<Slot> {
        let free = self.slots.iter().position(Option::is_none);
        let index = free.unwrap_or(self.slots.len());
        if index >= NEIGHBOURS_MAX {
            return None;
        }
        let slot = Slot(u16::try_from(index).ok()?);
        self.places.insert(neighbour.id, slot);
        match free {
            Some(index) => self.slots[index] = Some(neighbour),
            None => self.slots.push(Some(neighbour)),
        }
        Some(slot)
    }

    pub(crate) fn remove(&mut self, id: NodeId) -> Option<Slot> {
        let slot = self.places.remove(&id)?;
        self.slots[slot.index()] = None;
        Some(slot)
    }
}
