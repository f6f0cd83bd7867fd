//! A neighbour that there is a stream to: what it was told, and what waits to be told.

use crate::{
    allowance::Allowance,
    announcement::{Announcement, Destination, Speaker},
    limits::{
        ASKED_BURST, ASKED_PAUSE_NS, NEIGHBOURS_MAX, REFUSED_MAX, RENUMBER_BURST,
        RENUMBER_PAUSE_NS, REQUESTS_MAX,
    },
    message::Number,
    reason::Reason,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
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
    /// They do, and what it sends on for others is not let in: what is meant for itself goes there.
    Barred,
}

/// What was refused, and may be taken later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused {
    pub(crate) why: Reason,
    /// Whose word it was; none: the word was not said.
    pub(crate) speaker: Option<Speaker>,
    /// By the wall clock it may be taken from then on.
    pub(crate) from_s: u64,
}

/// What it was told of one destination last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// None: that this node does not lead there, or nothing.
    pub(crate) announcement: Option<Arc<Announcement>>,
    pub(crate) metric: u32,
    pub(crate) is_queued: bool,
}

/// What is asked of it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Neighbours that it may pass.
    pub(crate) hops: u8,
    pub(crate) number: Number,
    /// What the number is measured by.
    pub(crate) proof: Arc<Announcement>,
}

impl Request {
    fn wanted(&self) -> Option<u64> {
        self.number.than(self.proof.seqno())
    }
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
    /// By the destination's place.
    pub(crate) requests: BTreeMap<u32, Request>,
    /// Messages that it may yet be sent in this tick.
    pub(crate) budget: u32,
    /// Forged announcements that it brought.
    pub(crate) forged: u32,
    /// It has come since the last flush: nothing was settled for it.
    pub(crate) is_new: bool,
    /// What it said of these was refused.
    refused: BTreeMap<Destination, Refused>,
    /// It is to say again what it says of these.
    pub(crate) again: BTreeSet<Destination>,
    /// What it may ask.
    pub(crate) asked: Allowance,
    /// How many of its requests are passed on, by the destination's place.
    passed: BTreeMap<u32, Allowance>,
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
            is_new: true,
            refused: BTreeMap::new(),
            again: BTreeSet::new(),
            asked: Allowance::new(ASKED_BURST, ASKED_PAUSE_NS),
            passed: BTreeMap::new(),
        }
    }

    /// What it said was refused, and may pass another time.
    pub(crate) fn refuse(&mut self, destination: Destination, refused: Refused) {
        if self.refused.len() < REFUSED_MAX || self.refused.contains_key(&destination) {
            self.refused.insert(destination, refused);
        }
    }

    /// What it said was taken, or it takes it back.
    pub(crate) fn take(&mut self, destination: Destination) {
        self.refused.remove(&destination);
    }

    pub(crate) fn has_refused(&self, destination: Destination) -> bool {
        self.refused.contains_key(&destination)
    }

    /// What it says of it was not taken, or not kept.
    pub(crate) fn ask_again(&mut self, destination: Destination) {
        if self.again.len() < REFUSED_MAX {
            self.again.insert(destination);
        }
    }

    /// Some of what was refused may pass now; whether it has to be asked for.
    pub(crate) fn reconsider(&mut self, may_pass: impl Fn(&Refused) -> bool) -> bool {
        let again = &mut self.again;
        self.refused.retain(|&destination, refused| {
            let is_asked_for = may_pass(refused);
            if is_asked_for {
                again.insert(destination);
            }
            !is_asked_for
        });
        !again.is_empty()
    }

    /// Whether another request of its for that destination may be passed on.
    pub(crate) fn may_pass_on(&mut self, place: u32, now_ns: u64) -> bool {
        let allowance = self.passed.entry(place);
        allowance
            .or_insert(Allowance::new(RENUMBER_BURST, RENUMBER_PAUSE_NS))
            .take(now_ns)
    }

    /// There is no such destination any more.
    pub(crate) fn forget(&mut self, place: u32) {
        self.requests.remove(&place);
        self.passed.remove(&place);
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
    pub(crate) fn request(&mut self, place: u32, request: Request) -> bool {
        let has_room = self.requests.len() < REQUESTS_MAX || self.requests.contains_key(&place);
        let is_newer = |known: &Request| known.wanted() < request.wanted();
        if has_room && self.requests.get(&place).is_none_or(is_newer) {
            self.requests.insert(place, request);
        }
        has_room
    }

    pub(crate) fn has_to_say(&self) -> bool {
        !self.queue.is_empty() || !self.requests.is_empty() || !self.again.is_empty()
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

    /// The first at or behind a place.
    pub(crate) fn next(&self, from: usize) -> Option<Slot> {
        let index = self.slots.iter().skip(from).position(Option::is_some)?;
        u16::try_from(from + index).ok().map(Slot)
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> + use<> {
        let slots: Vec<Slot> = self.places.values().copied().collect();
        slots.into_iter()
    }

    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut Neighbour> {
        self.slots.iter_mut().flatten()
    }

    /// Those that have come since the last time.
    pub(crate) fn take_new(&mut self) -> impl Iterator<Item = Slot> {
        let slots = (0_u16..).zip(&mut self.slots);
        slots.filter_map(|(place, neighbour)| {
            let is_new = neighbour.as_mut().map(|n| &mut n.is_new)?;
            std::mem::take(is_new).then_some(Slot(place))
        })
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
