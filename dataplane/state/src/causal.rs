//! Which event was before which: exact answers over signed batches, in bounded memory.
//!
//! An event is before another if that other's entity, when it signed, had observed it: in the same feed, in a
//! frontier of that feed, or in what was observed there, and so on. The index takes a batch in once all that it
//! names is in, so that what is in has all of its causes counted: for each of them, its clock says how many
//! events of each feed were before it. A batch whose causes are missing is pending, and says what to ask for;
//! any order of arrival gives the same index in the end.
//!
//! Of pending events it says what is certain: that one is before another if batches lead from one to the other.
//! What the index does not hold, or no longer (it forgets the oldest batches of the feed that has most of them,
//! for good), it does not guess: the answer is then [`Order::Unknown`], with what to fetch. Events of a feed that is
//! forked, from the fork on, have no order: the answer is [`Order::Forked`], and [`Index::forks`] has the proof.
//! A fork is looked for among what is held, what is pending, and what was refused, as much of that as is kept.
//! Other feeds' events that came after an event of either branch keep their order.

use crate::{
    batch::{FeedId, Observed, Signed, Statement, Verified},
    fork::ForkProof,
    format::Hash,
    limits::{
        CAUSAL_BATCHES_MAX, CAUSAL_CLOCK_ENTRIES_MAX, CAUSAL_FEEDS_MAX, CAUSAL_PENDING_ENTRIES_MAX,
        CAUSAL_REFUSED_MAX,
    },
};
pub use answer::{EventId, Inserted, Missing, Order, Place, Refused};
use feed::Feed;
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

mod answer;
mod feed;
#[cfg(test)]
mod tests;

/// How much an index holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Feeds; they are never forgotten.
    pub feeds: usize,
    /// Batches, beside those that are pending.
    pub batches: usize,
    /// Entries of all clocks.
    pub clock_entries: usize,
    /// Pending batches, and the entries of their frontiers.
    pub pending_entries: usize,
    /// Statements of refused batches.
    pub refused: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            feeds: CAUSAL_FEEDS_MAX,
            batches: CAUSAL_BATCHES_MAX,
            clock_entries: CAUSAL_CLOCK_ENTRIES_MAX,
            pending_entries: CAUSAL_PENDING_ENTRIES_MAX,
            refused: CAUSAL_REFUSED_MAX,
        }
    }
}

/// A feed's place in the index.
type Slot = u32;
/// How many events of each feed.
type Clock = BTreeMap<Slot, u64>;

/// Where a batch ends. Its entity may claim any head of another feed: a head names a batch in its feed alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct End {
    feed: FeedId,
    head: Hash,
}

impl End {
    fn of(statement: &Statement) -> Self {
        Self {
            feed: statement.feed(),
            head: statement.head,
        }
    }
}

#[derive(Debug)]
struct Held {
    slot: Slot,
    last: u64,
    /// What was before its first event, its own feed aside.
    clock: Arc<Clock>,
}

#[derive(Debug)]
struct Pending {
    batch: Verified,
    slot: Slot,
    waits_for: BTreeMap<End, Missing>,
}

impl Pending {
    fn entries(&self) -> usize {
        1 + self.batch.batch().frontier.len()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Index {
    bounds: Bounds,
    feeds: Vec<Feed>,
    slots: BTreeMap<FeedId, Slot>,
    held: HashMap<End, Held>,
    pending: BTreeMap<End, Pending>,
    pending_entries: usize,
    /// Which pending batches wait for one.
    waiters: BTreeMap<End, BTreeSet<End>>,
    clock_entries: usize,
    /// Of all feeds.
    refused: usize,
    refusals: u64,
}

impl Index {
    /// An empty one.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            ..Self::default()
        }
    }

    /// Takes a batch in, and the pending ones that waited for it alone.
    pub fn insert(&mut self, batch: Verified) -> Inserted {
        let statement = batch.statement();
        let Some(slot) = self.slot(statement.feed()) else {
            self.refusals += 1;
            return Inserted {
                place: Err(Refused::Feeds),
                fork: None,
            };
        };
        let key = (statement.first, statement.head);
        let feed = &mut self.feeds[slot as usize];
        if feed.batches.get(&key).map(|known| &known.statement) == Some(statement) {
            return Inserted {
                place: Ok(Place::Known),
                fork: None,
            };
        }
        let signed = batch.batch().signed.clone();
        let fork = feed.find_fork(&signed);
        let place = match self.is_cut_otherwise(slot, &batch) {
            true => Ok(Place::Known),
            false => self.place(slot, batch),
        };
        match place {
            Ok(_) => self.forgive(slot, key),
            Err(_) => self.refuse(slot, signed),
        }
        Inserted { place, fork }
    }

    /// Keeps what a refused batch says, instead of the oldest of the feed that has most.
    fn refuse(&mut self, slot: Slot, signed: Signed) {
        self.refusals += 1;
        let key = (signed.statement.first, signed.statement.head);
        let feed = &mut self.feeds[slot as usize];
        if feed.refused.insert(key, signed).is_none() {
            self.refused += 1;
        }
        if self.refused > self.bounds.refused {
            let most = self.feeds.iter_mut().max_by_key(|feed| feed.refused.len());
            if most.and_then(|feed| feed.refused.pop_first()).is_some() {
                self.refused -= 1;
            }
        }
    }

    /// What was refused once is there now.
    fn forgive(&mut self, slot: Slot, key: (u64, Hash)) {
        let feed = &mut self.feeds[slot as usize];
        if feed.refused.remove(&key).is_some() {
            self.refused -= 1;
        }
    }

    /// Whether the same events are there under another cut, which only proves a fork. One that is pending
    /// makes way for one that is not.
    fn is_cut_otherwise(&mut self, slot: Slot, batch: &Verified) -> bool {
        let end = End::of(batch.statement());
        let is_whole = self
            .wanted(slot, batch)
            .is_ok_and(|wanted| wanted.is_empty());
        if is_whole {
            self.take_pending(&end);
        }
        self.held.contains_key(&end) || self.pending.contains_key(&end)
    }

    /// Takes out a batch that waits, with all that says so.
    fn take_pending(&mut self, end: &End) -> Option<Pending> {
        let pending = self.pending.remove(end)?;
        self.pending_entries -= pending.entries();
        let statement = pending.batch.statement();
        let key = (statement.first, statement.head);
        self.feeds[pending.slot as usize].batches.remove(&key);
        for wanted in pending.waits_for.keys() {
            if let Some(waiters) = self.waiters.get_mut(wanted) {
                waiters.remove(end);
                if waiters.is_empty() {
                    self.waiters.remove(wanted);
                }
            }
        }
        Some(pending)
    }

    fn slot(&mut self, id: FeedId) -> Option<Slot> {
        if let Some(slot) = self.slots.get(&id) {
            return Some(*slot);
        }
        if self.feeds.len() >= self.bounds.feeds {
            return None;
        }
        let slot = Slot::try_from(self.feeds.len()).ok()?;
        self.feeds.push(Feed::new(id));
        self.slots.insert(id, slot);
        Some(slot)
    }

    fn place(&mut self, slot: Slot, batch: Verified) -> Result<Place, Refused> {
        let waits_for = self.wanted(slot, &batch)?;
        if waits_for.is_empty() {
            let end = self.hold(slot, &batch)?;
            self.wake(end);
            return Ok(Place::Held);
        }
        let pending = Pending {
            batch,
            slot,
            waits_for,
        };
        if self.pending_entries + pending.entries() > self.bounds.pending_entries {
            return Err(Refused::Pending);
        }
        let (signed, statement) = (&pending.batch.batch().signed, pending.batch.statement());
        let (key, end) = ((statement.first, statement.head), End::of(statement));
        let feed = &mut self.feeds[slot as usize];
        feed.batches.insert(key, signed.clone());
        for wanted in pending.waits_for.keys() {
            self.waiters.entry(*wanted).or_default().insert(end);
        }
        self.pending_entries += pending.entries();
        self.pending.insert(end, pending);
        Ok(Place::Pending)
    }

    /// What a batch names and the index does not hold.
    fn wanted(&self, slot: Slot, batch: &Verified) -> Result<BTreeMap<End, Missing>, Refused> {
        if batch.statement().first <= self.feeds[slot as usize].forgotten {
            return Err(Refused::Forgotten);
        }
        let mut wanted = BTreeMap::new();
        for Observed { feed, count, head } in named(batch) {
            let end = End { feed, head };
            match self.held.get(&end) {
                Some(held) if held.last != count => return Err(Refused::Contradiction),
                Some(_) => {}
                None => {
                    let missing = Missing {
                        feed,
                        sequence: count,
                        head: Some(head),
                    };
                    wanted.insert(end, missing);
                }
            }
        }
        Ok(wanted)
    }

    /// Takes in a batch whose causes are all held.
    fn hold(&mut self, slot: Slot, batch: &Verified) -> Result<End, Refused> {
        let statement = batch.statement();
        let (end, last) = (End::of(statement), statement.last());
        let parent = self.held.get(&End {
            feed: end.feed,
            head: statement.parent,
        });
        let mut clock = parent
            .map(|held| Arc::clone(&held.clock))
            .unwrap_or_default();
        let mut is_own = false;
        for &Observed { feed, head, .. } in &batch.batch().frontier {
            let held = self.held.get(&End { feed, head });
            let held = held.ok_or(Refused::Contradiction)?;
            let merged = Arc::make_mut(&mut clock);
            is_own = true;
            for (&slot, &count) in held.clock.iter().chain([(&held.slot, &held.last)]) {
                let known = merged.entry(slot).or_default();
                *known = count.max(*known);
            }
        }
        if is_own {
            self.clock_entries += clock.len();
        }
        let signed = batch.batch().signed.clone();
        let feed = &mut self.feeds[slot as usize];
        feed.batches.insert((statement.first, end.head), signed);
        feed.held += 1;
        self.held.insert(end, Held { slot, last, clock });
        self.forget();
        Ok(end)
    }

    /// Takes in what waited for a batch alone, and what waited for that, and so on.
    fn wake(&mut self, end: End) {
        let mut ends = vec![end];
        while let Some(end) = ends.pop() {
            for waiter in self.waiters.remove(&end).unwrap_or_default() {
                let Some(pending) = self.pending.get_mut(&waiter) else {
                    continue;
                };
                pending.waits_for.remove(&end);
                if !pending.waits_for.is_empty() {
                    continue;
                }
                if let Some(Pending { batch, slot, .. }) = self.take_pending(&waiter) {
                    // Some of its causes may be forgotten again, or be not what it says.
                    let waits_for = self.wanted(slot, &batch);
                    let is_held = waits_for.is_ok_and(|waits_for| waits_for.is_empty())
                        && self.hold(slot, &batch).is_ok();
                    match is_held {
                        true => ends.push(waiter),
                        false => self.refuse(slot, batch.batch().signed.clone()),
                    }
                }
            }
        }
    }

    /// Forgets the oldest batches of the feeds that have most, while there is too much.
    fn forget(&mut self) {
        while self.held.len() > self.bounds.batches
            || self.clock_entries > self.bounds.clock_entries && self.held.len() > 1
        {
            let Some(feed) = self.feeds.iter_mut().max_by_key(|feed| feed.held) else {
                return;
            };
            let (held, id) = (&self.held, feed.id);
            let end = |head: Hash| End { feed: id, head };
            let oldest = feed
                .batches
                .keys()
                .find(|(_, head)| held.contains_key(&end(*head)));
            let Some(&oldest) = oldest else {
                return;
            };
            feed.batches.remove(&oldest);
            feed.held -= 1;
            let gone = self.held.remove(&end(oldest.1));
            let last = gone.as_ref().map_or(0, |held| held.last);
            feed.forgotten = feed.forgotten.max(last);
            let clock = gone.and_then(|held| Arc::into_inner(held.clock));
            self.clock_entries -= clock.map_or(0, |clock| clock.len());
        }
    }

    /// How one event stands to another.
    #[must_use]
    pub fn order(&self, one: EventId, other: EventId) -> Order {
        for event in [one, other] {
            if self.is_forked(event) {
                return Order::Forked(event.feed);
            }
        }
        let (found, against) = match (self.find(one), self.find(other)) {
            (Ok(found), Ok(against)) => (found, against),
            (found, against) => {
                let missing = [found, against].into_iter().filter_map(Result::err);
                let missing: BTreeSet<Missing> = missing.flatten().collect();
                let unknown = Order::Unknown(missing.into_iter().collect());
                return self.order_of_pending(one, other).unwrap_or(unknown);
            }
        };
        let has_seen = |held: &Held, slot: Slot, event: EventId| {
            held.clock
                .get(&slot)
                .is_some_and(|&count| count >= event.sequence)
        };
        if found.slot == against.slot {
            return by_number(one, other);
        }
        match (
            has_seen(against, found.slot, one),
            has_seen(found, against.slot, other),
        ) {
            (true, _) => Order::Before,
            (_, true) => Order::After,
            (false, false) => Order::Concurrent,
        }
    }

    /// What is certain though causes are missing: one is before another if batches lead from that to it, head by
    /// head.
    fn order_of_pending(&self, one: EventId, other: EventId) -> Option<Order> {
        let (end, other_end) = (self.around(one)?, self.around(other)?);
        match () {
            () if end == other_end => Some(by_number(one, other)),
            () if self.leads(other_end, end) => Some(Order::Before),
            () if self.leads(end, other_end) => Some(Order::After),
            () => None,
        }
    }

    /// Whether a batch follows another, by way of others that are pending or held.
    fn leads(&self, from: End, to: End) -> bool {
        let goal = self.held.get(&to);
        let (mut ends, mut seen) = (vec![from], HashSet::from([from]));
        while let Some(end) = ends.pop() {
            let held = self.held.get(&end).zip(goal);
            let has_seen = held.is_some_and(|(held, goal)| {
                let before = held.clock.get(&goal.slot).copied().unwrap_or(0);
                let own = if held.slot == goal.slot { held.last } else { 0 };
                before.max(own) >= goal.last
            });
            if has_seen || end == to {
                return true;
            }
            let pending = self.pending.get(&end).into_iter();
            let named = pending.flat_map(|pending| named(&pending.batch));
            let named = named.map(|Observed { feed, head, .. }| End { feed, head });
            ends.extend(named.filter(|end| seen.insert(*end)));
        }
        false
    }

    fn is_forked(&self, event: EventId) -> bool {
        let slot = self.slots.get(&event.feed);
        let fork = slot.and_then(|slot| self.feeds[*slot as usize].fork.as_ref());
        fork.is_some_and(|fork| event.sequence >= fork.from())
    }

    /// The batch that an event is in, held or pending.
    fn around(&self, event: EventId) -> Option<End> {
        let EventId { feed, sequence } = event;
        let slot = self.slots.get(&feed)?;
        let head = self.feeds[*slot as usize].around(sequence)?;
        Some(End { feed, head })
    }

    /// The batch that holds an event; else what to fetch.
    fn find(&self, event: EventId) -> Result<&Held, BTreeSet<Missing>> {
        let Some(end) = self.around(event) else {
            let (EventId { feed, sequence }, head) = (event, None);
            return Err(BTreeSet::from([Missing {
                feed,
                sequence,
                head,
            }]));
        };
        self.held.get(&end).ok_or_else(|| self.missing_for(end))
    }

    /// What a pending batch waits for, by way of others that are pending too.
    fn missing_for(&self, end: End) -> BTreeSet<Missing> {
        let (mut missing, mut seen) = (BTreeSet::new(), BTreeSet::from([end]));
        let mut ends = vec![end];
        while let Some(pending) = ends.pop().and_then(|end| self.pending.get(&end)) {
            for (&end, wanted) in &pending.waits_for {
                match self.pending.contains_key(&end) {
                    true if seen.insert(end) => ends.push(end),
                    true => {}
                    false => {
                        missing.insert(*wanted);
                    }
                }
            }
        }
        missing
    }

    /// What to ask others for, so that nothing is pending.
    pub fn missing(&self) -> impl Iterator<Item = Missing> + '_ {
        let wanted = self.pending.values().flat_map(|p| &p.waits_for);
        let wanted = wanted.filter(|(end, _)| !self.pending.contains_key(*end));
        let wanted: BTreeSet<Missing> = wanted.map(|(_, missing)| *missing).collect();
        wanted.into_iter()
    }

    /// The forks that are known, one a feed.
    pub fn forks(&self) -> impl Iterator<Item = &ForkProof> {
        self.feeds.iter().filter_map(|feed| feed.fork.as_ref())
    }

    /// Batches that are in.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Batches that wait.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// How often a batch was refused, at once or after it had waited.
    #[must_use]
    pub const fn refusals(&self) -> u64 {
        self.refusals
    }
}

/// How two events of one feed stand to each other.
fn by_number(one: EventId, other: EventId) -> Order {
    match one.sequence.cmp(&other.sequence) {
        Ordering::Less => Order::Before,
        Ordering::Equal => Order::Same,
        Ordering::Greater => Order::After,
    }
}

/// All heads that a batch follows: its parent, and its frontier's.
fn named(batch: &Verified) -> impl Iterator<Item = Observed> {
    let statement = batch.statement();
    let parent = (statement.first > 1).then(|| Observed {
        feed: statement.feed(),
        count: statement.first - 1,
        head: statement.parent,
    });
    let frontier = batch.batch().frontier.iter().copied();
    frontier.chain(parent)
}
