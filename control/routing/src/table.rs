//! What is known of each destination, and which neighbours may be used.

use crate::{
    allowance::Allowance,
    announcement::{Announcement, Destination},
    limits::{
        ALONE, ASK_AGAIN_NS, NUMBER_PAUSE_NS, NUMBERS_BURST, PASS_ON_AGAIN_NS, RISE_HELD_NS,
        RISE_PAUSE_NS, RISES_BURST, SWING_PAUSE_NS, SWINGS_BURST, UNREACHABLE,
    },
    message::Number,
    neighbour::{Liveness, Neighbour, Neighbours, Slot},
    scope::is_part,
};
use std::{collections::HashMap, sync::Arc};
use virga_ebpf::{
    header::{NodeId, Subnet},
    subnet::SubnetPrefix,
};

/// The neighbours that packets for a destination go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHops {
    /// Used while its link is alive.
    pub primary: NodeId,
    /// Used while the primary's is not.
    pub backup: Option<NodeId>,
}

/// How far it is. Better is a higher number, or a lower metric by the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Distance {
    pub(crate) seqno: u64,
    pub(crate) metric: u32,
}

impl Distance {
    fn is_better_than(self, own: NodeId, other: Self, others: NodeId) -> bool {
        let (ours, theirs) = ((self.metric, own), (other.metric, others));
        self.seqno > other.seqno || self.seqno == other.seqno && ours < theirs
    }
}

/// What a neighbour said last.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) from: Slot,
    pub(crate) metric: u32,
    pub(crate) announcement: Arc<Announcement>,
    /// When the announcement ends.
    pub(crate) until_ns: u64,
}

/// What is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) primary: Slot,
    pub(crate) backup: Option<Slot>,
    /// From here.
    pub(crate) metric: u32,
    pub(crate) seqno: u64,
}

/// This node is the destination, or one of its subnet's gateways.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    pub(crate) announced: u8,
    pub(crate) announcement: Arc<Announcement>,
    pub(crate) signed_ns: u64,
    /// Numbers that it may make because others ask for them.
    pub(crate) numbers: Allowance,
    /// A neighbour has not taken it, by this node's clock or its own.
    pub(crate) is_refused: bool,
}

/// A longer way is told as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// By this number, and no other.
    pub(crate) number: u64,
    pub(crate) until_ns: u64,
    /// Who was asked for a newer one last, and when.
    asked: Option<(Slot, u64)>,
    /// When the same neighbour is asked again.
    pause_ns: u64,
}

impl Held {
    pub(crate) const fn new(number: u64, now_ns: u64) -> Self {
        Self {
            number,
            until_ns: now_ns.saturating_add(RISE_HELD_NS),
            asked: None,
            pause_ns: ASK_AGAIN_NS,
        }
    }

    /// When that neighbour is to be asked: what it was asked before may have been lost with its own next hop.
    pub(crate) fn ask_ns(&self, primary: Slot) -> u64 {
        match self.asked {
            None => 0,
            Some((slot, at_ns)) if slot == primary => at_ns.saturating_add(self.pause_ns),
            Some((_, at_ns)) => at_ns.saturating_add(PASS_ON_AGAIN_NS),
        }
    }

    pub(crate) fn ask(&mut self, primary: Slot, now_ns: u64) {
        self.pause_ns = match self.asked {
            Some((slot, _)) if slot == primary => 2 * self.pause_ns,
            _ => ASK_AGAIN_NS,
        };
        self.asked = Some((primary, now_ns));
    }
}

/// A destination.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) destination: Destination,
    /// Where it is, as it says.
    pub(crate) subnet: Subnet,
    /// One a neighbour at most.
    pub(crate) heard: Vec<Heard>,
    pub(crate) chosen: Option<Chosen>,
    /// What the tables were told, and since when.
    pub(crate) installed: Option<NextHops>,
    pub(crate) installed_ns: u64,
    /// What neighbours are told.
    pub(crate) advert: Option<(Arc<Announcement>, u32)>,
    pub(crate) held: Option<Held>,
    /// Newer numbers that were told: where there were many of late, none is asked for only because the way got longer.
    pub(crate) rises: Allowance,
    /// How often they are told of another metric, or again of what was taken back, by the same announcement.
    pub(crate) swings: Allowance,
    /// How often they are told of another announcement.
    pub(crate) numbers_told: Allowance,
    /// The best that any was ever told, and the announcement that it was told with.
    pub(crate) feasible: Option<Distance>,
    pub(crate) proof: Option<Arc<Announcement>>,
    /// The longest that any of its announcements holds.
    pub(crate) until_ns: u64,
    /// Since when it is known to lead nowhere, and nobody is told otherwise.
    pub(crate) silent_ns: Option<u64>,
    /// Someone needs a number at least as high.
    pub(crate) wanted: u64,
    /// When a request of another was last passed on.
    pub(crate) passed_on_ns: Option<u64>,
    /// The last announcement that was taken, and when it ends.
    pub(crate) taken: Option<(Arc<Announcement>, u64)>,
    pub(crate) own: Option<Own>,
    /// The lowest and the highest number that neighbours had at the last sweep.
    pub(crate) numbers: Option<(u64, u64)>,
    /// They were the same two for a whole sweep: two nodes announce it, each on its own.
    pub(crate) is_torn: bool,
}

/// A neighbour that may be used.
struct Candidate {
    slot: Slot,
    id: NodeId,
    metric: u32,
    seqno: u64,
    origin: NodeId,
    /// It has not the number that someone needs.
    is_old: bool,
}

impl Entry {
    pub(crate) fn new(destination: Destination, subnet: Subnet) -> Self {
        Self {
            destination,
            subnet,
            heard: Vec::new(),
            chosen: None,
            installed: None,
            installed_ns: 0,
            advert: None,
            held: None,
            rises: Allowance::new(RISES_BURST, RISE_PAUSE_NS),
            swings: Allowance::new(SWINGS_BURST, SWING_PAUSE_NS),
            numbers_told: Allowance::new(NUMBERS_BURST, NUMBER_PAUSE_NS),
            feasible: None,
            proof: None,
            until_ns: 0,
            silent_ns: None,
            wanted: 0,
            passed_on_ns: None,
            taken: None,
            own: None,
            numbers: None,
            is_torn: false,
        }
    }

    /// Looks whether neighbours go on having different numbers. Where one node makes them, all have the same
    /// soon; a subnet's gateways make each their own.
    pub(crate) fn look_whether_torn(&mut self) {
        let numbers = || self.heard.iter().map(|heard| heard.announcement.seqno());
        let ends = numbers().min().zip(numbers().max());
        let is_one_node = matches!(self.destination, Destination::Node(_));
        let ends = ends.filter(|(low, high)| is_one_node && low != high);
        self.is_torn = ends.is_some() && ends == self.numbers;
        self.numbers = ends;
    }

    pub(crate) fn from(&self, slot: Slot) -> Option<&Heard> {
        self.heard.iter().find(|heard| heard.from == slot)
    }

    /// Whether something was taken away.
    pub(crate) fn forget(&mut self, slot: Slot) -> bool {
        let before = self.heard.len();
        self.heard.retain(|heard| heard.from != slot);
        self.heard.len() < before
    }

    /// Whether this number is lower than one that others were told.
    pub(crate) fn is_old(&self, announcement: &Announcement) -> bool {
        let proof = self.proof.as_ref();
        proof.is_some_and(|proof| announcement.seqno() < proof.seqno())
    }

    /// The same announcement, if it was verified before.
    pub(crate) fn known(&self, announcement: &Announcement) -> Option<Arc<Announcement>> {
        let heard = self.heard.iter().map(|heard| &heard.announcement);
        let own = self.own.iter().map(|own| &own.announcement);
        let taken = self.taken.iter().map(|(announcement, _)| announcement);
        let mut all = heard.chain(&self.proof).chain(own).chain(taken);
        all.find(|known| known.bytes() == announcement.bytes())
            .cloned()
    }

    /// When the same announcement ends, if it was taken before.
    pub(crate) fn until(&self, announcement: &Announcement) -> Option<u64> {
        let heard = self.heard.iter().map(|h| (&h.announcement, h.until_ns));
        let mut all = heard.chain(
            self.taken
                .iter()
                .map(|(taken, until_ns)| (taken, *until_ns)),
        );
        let same = all.find(|(known, _)| known.bytes() == announcement.bytes());
        same.map(|(_, until_ns)| until_ns)
    }

    /// Whether packets may go to a neighbour that is that far away: see the [crate].
    fn is_feasible(&self, own: NodeId, neighbour: NodeId, distance: Distance) -> bool {
        let is_better = |&told: &Distance| distance.is_better_than(neighbour, told, own);
        self.feasible.as_ref().is_none_or(is_better)
    }

    /// Whether packets for this destination may go over a link, as far as the link is concerned.
    pub(crate) fn may_lead(&self, link: &Neighbour) -> bool {
        match link.liveness {
            Liveness::Alive => true,
            Liveness::Dead => false,
            Liveness::Barred => self.destination == Destination::Node(link.id),
        }
    }

    /// What was heard from neighbours that would be used if their distance allowed it.
    pub(crate) fn usable<'a>(
        &'a self,
        links: &'a Neighbours,
    ) -> impl Iterator<Item = (&'a Heard, &'a Neighbour)> {
        let known = self
            .heard
            .iter()
            .filter_map(|h| Some((h, links.at(h.from)?)));
        known.filter(|(heard, link)| {
            self.may_lead(link) && heard.metric.saturating_add(link.cost) != UNREACHABLE
        })
    }

    fn candidates(&self, own: NodeId, links: &Neighbours, is_quiet: bool) -> Vec<Candidate> {
        let mut found = Vec::with_capacity(self.heard.len());
        for heard in &self.heard {
            let link = links.at(heard.from);
            let Some(link) = link.filter(|link| self.may_lead(link)) else {
                continue;
            };
            let metric = heard.metric.saturating_add(link.cost);
            let seqno = heard.announcement.seqno();
            let distance = Distance {
                seqno,
                metric: heard.metric,
            };
            // There the packet ends, whatever others do.
            let is_its_end = heard.metric == 0 && heard.announcement.origin() == link.id;
            if metric != UNREACHABLE
                && (is_its_end || !is_quiet)
                && self.is_feasible(own, link.id, distance)
            {
                found.push(Candidate {
                    slot: heard.from,
                    id: link.id,
                    metric,
                    seqno,
                    origin: heard.announcement.origin(),
                    is_old: seqno < self.wanted,
                });
            }
        }
        found.sort_by_key(|c| (c.is_old, c.metric, c.id));
        found
    }

    /// Which neighbours are to be used now. What is used stays, unless another is better by an eighth.
    pub(crate) fn choose(&self, own: NodeId, links: &Neighbours, is_quiet: bool) -> Option<Chosen> {
        let candidates = self.candidates(own, links, is_quiet);
        let stay = |used: Option<Slot>, best: &Candidate| {
            let is_near = |c: &&Candidate| {
                // Over another way to the same node that is alone, it is as far; another that is alone is no nearer.
                let way = match c.origin == best.origin {
                    true => best.metric.checked_sub(ALONE).unwrap_or(best.metric),
                    false => best.metric,
                };
                c.is_old == best.is_old && c.metric <= best.metric.saturating_add(way / 8)
            };
            let used = candidates.iter().find(|c| Some(c.slot) == used);
            used.filter(is_near).map(|c| c.slot)
        };
        let best = candidates.first()?;
        let primary = stay(self.chosen.map(|c| c.primary), best).unwrap_or(best.slot);
        let used = candidates.iter().find(|c| c.slot == primary)?;
        let others = || candidates.iter().filter(|c| c.slot != primary);
        let backup = others().min_by_key(|c| (c.metric, c.id)).map(|best| {
            let stays = stay(self.chosen.and_then(|c| c.backup), best);
            stays.filter(|&slot| slot != primary).unwrap_or(best.slot)
        });
        Some(Chosen {
            primary,
            backup,
            metric: used.metric,
            seqno: used.seqno,
        })
    }

    /// Whether a neighbour is nearer than this node and may nevertheless not be the backup that there is none
    /// of, because this node was nearer once.
    ///
    /// That neighbour, whom to ask, and for what: the primary; or the neighbour, where it leads to another gateway that
    /// has a lower number, as what the primary can do raises only the one's.
    pub(crate) fn lacks_backup(
        &self,
        own: NodeId,
        links: &Neighbours,
    ) -> Option<(Slot, Slot, Number)> {
        let chosen = self.chosen.filter(|chosen| chosen.backup.is_none())?;
        let used = self.from(chosen.primary)?.announcement.origin();
        let near = self.usable(links).filter(|(heard, link)| {
            heard.from != chosen.primary && (heard.metric, link.id) < (chosen.metric, own)
        });
        let (heard, _) = near.min_by_key(|(heard, link)| (heard.metric, link.id))?;
        let told = self.feasible.map_or(0, |told| told.seqno);
        let said = &heard.announcement;
        let (asked, number) = match said.origin() != used && said.seqno() < told {
            true => (heard.from, Number::AsHigh),
            false => (chosen.primary, Number::Higher),
        };
        Some((heard.from, asked, number))
    }

    /// Whether telling this to anybody takes no neighbour away.
    pub(crate) fn covers(&self, announcement: &Announcement, metric: u32) -> bool {
        let seqno = announcement.seqno();
        let is_better =
            |best: Distance| seqno > best.seqno || seqno == best.seqno && metric < best.metric;
        !self.feasible.is_none_or(is_better)
    }

    /// Whether somebody may have to do without this node, told this after what was told by the same number, which still
    /// holds. How much longer the way got says nothing: a neighbour that goes by this node now may have told others of
    /// a way of another's that was hardly longer than what it was told here.
    pub(crate) fn takes_away(&self, number: u64, metric: u32, now_s: u64) -> bool {
        let is_longer = |(told, at): &(Arc<Announcement>, u32)| {
            told.seqno() == number && *at < metric && told.not_after_s() > now_s
        };
        metric < ALONE && self.advert.as_ref().is_some_and(is_longer)
    }

    /// Someone is told this from now on; whether that may take a neighbour away.
    pub(crate) fn tell(&mut self, announcement: &Arc<Announcement>, metric: u32) -> bool {
        let seqno = announcement.seqno();
        let is_covered = self.covers(announcement, metric);
        if !is_covered {
            self.feasible = Some(Distance { seqno, metric });
            self.proof = Some(Arc::clone(announcement));
        }
        if seqno >= self.wanted {
            self.wanted = 0;
        }
        !is_covered
    }
}

/// All destinations, each at a place of its own.
#[derive(Debug, Default)]
pub(crate) struct Table {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// Places of subnets that this node announces.
    prefixes: Vec<u32>,
    places: HashMap<Destination, u32>,
}

impl Table {
    pub(crate) fn place(&self, destination: Destination) -> Option<u32> {
        self.places.get(&destination).copied()
    }

    pub(crate) fn at(&self, place: u32) -> Option<&Entry> {
        self.entries.get(place as usize)?.as_ref()
    }

    pub(crate) fn at_mut(&mut self, place: u32) -> Option<&mut Entry> {
        self.entries.get_mut(place as usize)?.as_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// Places that are taken.
    pub(crate) fn taken(&self) -> impl Iterator<Item = u32> + use<> {
        let taken: Vec<u32> = (0_u32..)
            .zip(&self.entries)
            .filter_map(|(place, entry)| entry.as_ref().map(|_| place))
            .collect();
        taken.into_iter()
    }

    /// Subnets that this node announces.
    pub(crate) fn prefixes(&self) -> Vec<u32> {
        self.prefixes.clone()
    }

    /// Whether there is a way to another node of a prefix.
    pub(crate) fn reaches(&self, prefix: SubnetPrefix) -> bool {
        let mut all = self.entries.iter().flatten();
        all.any(|entry| entry.chosen.is_some() && is_part(prefix, entry.destination, entry.subnet))
    }

    pub(crate) fn add(&mut self, entry: Entry) -> Option<u32> {
        let destination = entry.destination;
        let is_prefix = entry.own.is_some() && matches!(destination, Destination::Subnet(_));
        let place = match self.free.pop() {
            Some(place) => {
                self.entries[place as usize] = Some(entry);
                place
            }
            None => {
                let place = u32::try_from(self.entries.len()).ok()?;
                self.entries.push(Some(entry));
                place
            }
        };
        self.places.insert(destination, place);
        if is_prefix {
            self.prefixes.push(place);
        }
        Some(place)
    }

    pub(crate) fn remove(&mut self, place: u32) {
        if let Some(entry) = self.entries.get_mut(place as usize).and_then(Option::take) {
            self.places.remove(&entry.destination);
            self.free.push(place);
        }
    }
}
