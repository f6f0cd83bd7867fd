//! Which event was before which: exact answers over signed batches, in bounded memory.
//!
//! An event is before another if that other's entity, when it signed, had observed it: in the same feed, in a
//! frontier of that feed, or in what was observed there, and so on. The index takes a batch in once all that it
//! names is in, so that what is in has all of its causes counted: for each of them, its clock says how many
//! events of each feed were before it. A batch whose causes are missing is pending, and says what to ask for;
//! any order of arrival gives the same index in the end.
//!
//! Of pending events it says what is certain: that one is before another if batches lead from one to the other.
//! What the index does not hold, or no longer (it forgets the oldest batches of the feed that has most of them),
//! it does not guess: the answer is then [`Order::Unknown`], with what to fetch. Events of a feed that is
//! forked, from the fork on, have no order: the answer is [`Order::Forked`], and [`Index::forks`] has the proof.
//! A fork is looked for among what is held and what is pending. Other feeds' events that came after an event of
//! either branch keep their order.

use crate::{
    batch::{FeedId, Observed, Signed, Verified},
    fork::ForkProof,
    format::Hash,
    limits::{
        BATCH_EVENTS_MAX, CAUSAL_BATCHES_MAX, CAUSAL_CLOCK_ENTRIES_MAX, CAUSAL_FEEDS_MAX,
        CAUSAL_PENDING_ENTRIES_MAX,
    },
};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};
use thiserror::Error;

#[cfg(test)]
mod tests;

/// One event, by its feed and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// Whose, and on which channel.
    pub feed: FeedId,
    /// From 1.
    pub sequence: u64,
}

/// What has to be fetched: the batch whose events include that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Missing {
    /// Of which feed.
    pub feed: FeedId,
    /// Which event.
    pub sequence: u64,
    /// The head after it, where that is known.
    pub head: Option<Hash>,
}

/// How one event stands to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// It is the same.
    Same,
    /// It was observed by the other.
    Before,
    /// It has observed the other.
    After,
    /// Neither has observed the other.
    Concurrent,
    /// It cannot be said until these are fetched.
    Unknown(Vec<Missing>),
    /// The entity of this feed has signed two things there that contradict each other.
    Forked(FeedId),
}

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
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            feeds: CAUSAL_FEEDS_MAX,
            batches: CAUSAL_BATCHES_MAX,
            clock_entries: CAUSAL_CLOCK_ENTRIES_MAX,
            pending_entries: CAUSAL_PENDING_ENTRIES_MAX,
        }
    }
}

/// Why a batch was not taken; the index is as it was, but for a fork that the batch proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// As many feeds are known as may be.
    #[error("the index has as many feeds as it may")]
    Feeds,
    /// As much is pending as may be: what that waits for has to come first.
    #[error("as many batches wait for others as may")]
    Pending,
    /// It names a head as another feed's, or behind another number of events, than it is.
    #[error("it names a head that is not what it says")]
    Contradiction,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is in, with all that it follows.
    Held,
    /// It waits: see [`Index::missing`].
    Pending,
    /// It was there.
    Known,
}

/// See [`Index::insert`].
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// What became of the batch.
    pub place: Result<Place, Refused>,
    /// A fork that the batch proves and that was not known.
    pub fork: Option<Box<ForkProof>>,
}

/// A feed's place in the index.
type Slot = u32;
/// How many events of each feed.
type Clock = BTreeMap<Slot, u64>;

#[derive(Debug)]
struct Feed {
    id: FeedId,
    /// All batches that are held or pending, by their first event and their head.
    batches: BTreeMap<(u64, Hash), Signed>,
    held: usize,
    fork: Option<ForkProof>,
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
    waits_for: BTreeMap<Hash, Missing>,
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
    /// By the head after their last event.
    held: HashMap<Hash, Held>,
    pending: BTreeMap<Hash, Pending>,
    pending_entries: usize,
    /// Which pending batches wait for a head.
    waiters: BTreeMap<Hash, BTreeSet<Hash>>,
    clock_entries: usize,
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
        let mut inserted = Inserted {
            place: Ok(Place::Known),
            fork: None,
        };
        let statement = batch.statement();
        let Some(slot) = self.slot(statement.feed()) else {
            inserted.place = Err(Refused::Feeds);
            return inserted;
        };
        let key = (statement.first, statement.head);
        let feed = &mut self.feeds[slot as usize];
        if feed.batches.get(&key).map(|known| &known.statement) == Some(statement) {
            return inserted;
        }
        inserted.fork = feed.find_fork(&batch.batch().signed);
        if !self.is_cut_otherwise(slot, &batch) {
            inserted.place = self.place(slot, batch);
        }
        inserted
    }

    /// Whether the same events are there under another cut, which only proves a fork. One that is pending
    /// makes way for one that is not.
    fn is_cut_otherwise(&mut self, slot: Slot, batch: &Verified) -> bool {
        let head = batch.statement().head;
        let is_whole = self.wanted(batch).is_ok_and(|wanted| wanted.is_empty());
        if is_whole && let Some(pending) = self.pending.remove(&head) {
            self.pending_entries -= pending.entries();
            self.drop_batch(slot, &pending.batch);
        }
        self.held.contains_key(&head) || self.pending.contains_key(&head)
    }

    fn slot(&mut self, id: FeedId) -> Option<Slot> {
        if let Some(slot) = self.slots.get(&id) {
            return Some(*slot);
        }
        if self.feeds.len() >= self.bounds.feeds {
            return None;
        }
        let slot = Slot::try_from(self.feeds.len()).ok()?;
        self.feeds.push(Feed {
            id,
            batches: BTreeMap::new(),
            held: 0,
            fork: None,
        });
        self.slots.insert(id, slot);
        Some(slot)
    }

    fn place(&mut self, slot: Slot, batch: Verified) -> Result<Place, Refused> {
        let waits_for = self.wanted(&batch)?;
        if waits_for.is_empty() {
            let head = self.hold(slot, &batch)?;
            self.wake(head);
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
        let (first, head) = (statement.first, statement.head);
        self.feeds[slot as usize]
            .batches
            .insert((first, head), signed.clone());
        for wanted in pending.waits_for.keys() {
            self.waiters.entry(*wanted).or_default().insert(head);
        }
        self.pending_entries += pending.entries();
        self.pending.insert(head, pending);
        Ok(Place::Pending)
    }

    /// What a batch names and the index does not hold.
    fn wanted(&self, batch: &Verified) -> Result<BTreeMap<Hash, Missing>, Refused> {
        let mut wanted = BTreeMap::new();
        for named in named(batch) {
            match self.held.get(&named.head) {
                Some(held) => {
                    let feed = self.feeds[held.slot as usize].id;
                    if (feed, held.last) != (named.feed, named.count) {
                        return Err(Refused::Contradiction);
                    }
                }
                None => {
                    let missing = Missing {
                        feed: named.feed,
                        sequence: named.count,
                        head: Some(named.head),
                    };
                    wanted.insert(named.head, missing);
                }
            }
        }
        Ok(wanted)
    }

    /// Takes in a batch whose causes are all held.
    fn hold(&mut self, slot: Slot, batch: &Verified) -> Result<Hash, Refused> {
        let statement = batch.statement();
        let (first, head, last) = (statement.first, statement.head, statement.last());
        let parent = self.held.get(&statement.parent);
        let mut clock = parent
            .map(|held| Arc::clone(&held.clock))
            .unwrap_or_default();
        let mut is_own = false;
        for observed in &batch.batch().frontier {
            let held = self
                .held
                .get(&observed.head)
                .ok_or(Refused::Contradiction)?;
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
        feed.batches.insert((first, head), signed);
        feed.held += 1;
        self.held.insert(head, Held { slot, last, clock });
        self.forget();
        Ok(head)
    }

    /// Takes in what waited for a head alone, and what waited for that, and so on.
    fn wake(&mut self, head: Hash) {
        let mut heads = vec![head];
        while let Some(head) = heads.pop() {
            for waiter in self.waiters.remove(&head).unwrap_or_default() {
                let Some(pending) = self.pending.get_mut(&waiter) else {
                    continue;
                };
                pending.waits_for.remove(&head);
                if !pending.waits_for.is_empty() {
                    continue;
                }
                if let Some(pending) = self.pending.remove(&waiter) {
                    self.pending_entries -= pending.entries();
                    // Some of its causes may be forgotten again, or be not what it says.
                    let waits_for = self.wanted(&pending.batch);
                    let is_held = waits_for.is_ok_and(|waits_for| waits_for.is_empty())
                        && self.hold(pending.slot, &pending.batch).is_ok();
                    match is_held {
                        true => heads.push(waiter),
                        false => self.drop_batch(pending.slot, &pending.batch),
                    }
                }
            }
        }
    }

    fn drop_batch(&mut self, slot: Slot, batch: &Verified) {
        let statement = batch.statement();
        let key = (statement.first, statement.head);
        self.feeds[slot as usize].batches.remove(&key);
    }

    /// Forgets the oldest batches of the feeds that have most, while there is too much.
    fn forget(&mut self) {
        while self.held.len() > self.bounds.batches
            || self.clock_entries > self.bounds.clock_entries && self.held.len() > 1
        {
            let Some(feed) = self.feeds.iter_mut().max_by_key(|feed| feed.held) else {
                return;
            };
            let held = &self.held;
            let oldest = feed
                .batches
                .keys()
                .find(|(_, head)| held.contains_key(head));
            let Some(&oldest) = oldest else {
                return;
            };
            feed.batches.remove(&oldest);
            feed.held -= 1;
            let gone = self.held.remove(&oldest.1);
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
        let (head, other_head) = (self.around(one)?, self.around(other)?);
        match () {
            () if head == other_head => Some(by_number(one, other)),
            () if self.leads(other_head, head) => Some(Order::Before),
            () if self.leads(head, other_head) => Some(Order::After),
            () => None,
        }
    }

    /// Whether a batch follows another, by way of others that are pending or held.
    fn leads(&self, from: Hash, to: Hash) -> bool {
        let goal = self.held.get(&to);
        let (mut heads, mut seen) = (vec![from], HashSet::from([from]));
        while let Some(head) = heads.pop() {
            let held = self.held.get(&head).zip(goal);
            let has_seen = held.is_some_and(|(held, goal)| {
                let before = held.clock.get(&goal.slot).copied().unwrap_or(0);
                let own = if held.slot == goal.slot { held.last } else { 0 };
                before.max(own) >= goal.last
            });
            if has_seen || head == to {
                return true;
            }
            let pending = self.pending.get(&head);
            let named = pending
                .into_iter()
                .flat_map(|pending| named(&pending.batch));
            heads.extend(
                named
                    .map(|named| named.head)
                    .filter(|head| seen.insert(*head)),
            );
        }
        false
    }

    fn is_forked(&self, event: EventId) -> bool {
        let slot = self.slots.get(&event.feed);
        let fork = slot.and_then(|slot| self.feeds[*slot as usize].fork.as_ref());
        fork.is_some_and(|fork| event.sequence >= fork.from())
    }

    /// The head of the batch that an event is in, held or pending.
    fn around(&self, event: EventId) -> Option<Hash> {
        let slot = self.slots.get(&event.feed)?;
        self.feeds[*slot as usize].around(event.sequence)
    }

    /// The batch that holds an event; else what to fetch.
    fn find(&self, event: EventId) -> Result<&Held, BTreeSet<Missing>> {
        let Some(head) = self.around(event) else {
            let (EventId { feed, sequence }, head) = (event, None);
            return Err(BTreeSet::from([Missing {
                feed,
                sequence,
                head,
            }]));
        };
        self.held.get(&head).ok_or_else(|| self.missing_for(head))
    }

    /// What a pending batch waits for, by way of others that are pending too.
    fn missing_for(&self, head: Hash) -> BTreeSet<Missing> {
        let (mut missing, mut seen) = (BTreeSet::new(), BTreeSet::from([head]));
        let mut heads = vec![head];
        while let Some(pending) = heads.pop().and_then(|head| self.pending.get(&head)) {
            for (&head, wanted) in &pending.waits_for {
                match self.pending.contains_key(&head) {
                    true if seen.insert(head) => heads.push(head),
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
        let wanted = wanted.filter(|(head, _)| !self.pending.contains_key(*head));
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

impl Feed {
    /// The head of the batch that an event is in.
    fn around(&self, sequence: u64) -> Option<Hash> {
        let before = self.batches.range(..=(sequence, [u8::MAX; 32]));
        let nearest = before
            .rev()
            .take_while(|((first, _), _)| sequence - first < BATCH_EVENTS_MAX as u64);
        let mut around = nearest.filter(|(_, signed)| signed.statement.last() >= sequence);
        around.next().map(|((_, head), _)| *head)
    }

    /// Notes the fork that a statement proves against what is there, the one that begins first; gives it if it
    /// was not known.
    fn find_fork(&mut self, signed: &Signed) -> Option<Box<ForkProof>> {
        let statement = &signed.statement;
        let from = statement.first.saturating_sub(BATCH_EVENTS_MAX as u64);
        let near = (from, [0; 32])..=(statement.last() + 1, [u8::MAX; 32]);
        let near = self.batches.range(near).map(|(_, signed)| signed);
        let proofs = near.filter_map(|known| ForkProof::of(known, signed));
        let proof = proofs.min_by_key(ForkProof::from)?;
        let is_new = match &self.fork {
            None => true,
            Some(known) => proof.from() < known.from(),
        };
        if is_new {
            self.fork = Some(proof.clone());
        }
        is_new.then(|| Box::new(proof))
    }
}
