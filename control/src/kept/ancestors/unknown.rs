//! Feeds that batches name and of which it is not known here whose they are, or on which channel: of an entity that nothing
//! came of yet, or on a channel that is not kept here at all.
//!
//! Nodes whose channels others observe name many of the latter in all that they say. So nobody is asked for a feed again at
//! once where nothing came of it, but less and less often, whoever names it; what else an entity names does not wait for
//! that. Entities take turns. So it is with what was named in vain for long of a feed that is known, or had no place there: a
//! batch names it once, and who has it may be away all that time. What several name is each one's in turn: nobody has what
//! another names forgotten by naming it first.

use super::names::Entity;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;
use virga_state::batch::FeedId;

/// Such feeds.
const UNKNOWN_MAX: usize = 4_096;
/// Of those, as one entity names them.
const UNKNOWN_PER_NAMER_MAX: usize = 256;
/// So long nobody is asked for a feed once nothing came of it; twice as long each time.
const VAIN_PAUSE: Duration = Duration::from_secs(60);
/// So often that is doubled: up to some 15 minutes. Who has it may be there again by then.
const DOUBLED_MAX: u32 = 4;
/// Entities besides the first of which it is known that they name a feed.
const OTHERS_MAX: usize = 3;

const _: () = assert!(UNKNOWN_PER_NAMER_MAX * 16 <= UNKNOWN_MAX);

/// Who names a feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct By {
    pub(super) namer: Entity,
    /// The log that has that batch.
    pub(super) log: usize,
    /// How many events.
    pub(super) most: u64,
    /// Whether somebody was asked for them in vain.
    in_vain: bool,
    /// It has its turn from then on.
    from: Instant,
}

/// Whether a feed has a place for what another entity names of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    /// It has one, and that entity did not name it before.
    New,
    /// It had one, or took that of one whose events nobody had.
    Known,
    /// It has none.
    Full,
}

/// What is named of a feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct One {
    /// Whose place it takes, and whose turn it is.
    pub(super) by: By,
    /// Who else names it, the next in turn first: each has it looked for sooner once, as what one names may never have been.
    others: [Option<By>; OTHERS_MAX],
    /// As many are looked for, or were last.
    asked: u64,
    /// Nobody is asked for it before that, whoever names it.
    not_before: Instant,
    /// It is looked from then on.
    from: Instant,
    /// How often nothing came of it.
    in_vain: u32,
    /// Whether it is known whose it is: it was asked for in vain as such, for long, or had no place there.
    is_late: bool,
    /// Whose turn was in vain as it was told of that it is not there.
    told: Option<Entity>,
    number: u64,
}

impl One {
    /// Who names it.
    pub(super) fn all(&self) -> impl Iterator<Item = By> {
        let first = [Some(self.by)];
        first.into_iter().chain(self.others).flatten()
    }

    /// What an entity names of it.
    fn of_mut(&mut self, namer: Entity) -> Option<&mut By> {
        let mut all = std::iter::once(&mut self.by).chain(self.others.iter_mut().flatten());
        all.find(|one| one.namer == namer)
    }

    fn drop_other(&mut self, is_it: impl Fn(&By) -> bool) {
        let others = self.others.into_iter().flatten();
        let mut left = others.filter(|other| !is_it(other));
        self.others = std::array::from_fn(|_| left.next());
    }

    /// Notes that an entity names it. Of more entities than there are places for, the last one's is taken that had its turn
    /// in vain: nobody has what another names forgotten, and that is asked for no sooner.
    fn note(&mut self, by: By) -> Noted {
        if let Some(one) = self.of_mut(by.namer) {
            one.most = one.most.max(by.most);
            return Noted::Known;
        }
        let mut places = self.others.iter_mut();
        if let Some(place) = places.find(|other| other.is_none()) {
            *place = Some(by);
            return Noted::New;
        }
        match self.others.last_mut() {
            Some(Some(last)) if last.in_vain => {
                *last = by;
                Noted::Known
            }
            _ => Noted::Full,
        }
    }
}

/// Why something waits here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// It is not known whose it is, or where.
    Unknown,
    /// There was no place for it among what is known.
    Late,
    /// Nothing came of it there for long, and that was told of.
    Told,
}

/// What an entity names.
#[derive(Clone, Copy, Debug, Default)]
struct OfNamer {
    feeds: usize,
    /// Of those, which were asked for in vain more than once.
    in_vain: usize,
    /// Its turn, which was its last.
    turn: u64,
    is_told: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Unknown {
    feeds: BTreeMap<FeedId, One>,
    namers: BTreeMap<Entity, OfNamer>,
    /// The logs of what made room and was asked of nobody: that is to be told of, once an entity.
    dropped: Vec<usize>,
    last_number: u64,
}

/// Whether there is a place for what an entity names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// It has one.
    Is,
    /// There is none, and that was told of.
    Told,
    /// There is none.
    None,
}

impl Unknown {
    /// An entity names events of such a feed; nobody is asked for them before that moment.
    pub(super) fn note(
        &mut self,
        (feed, count): (FeedId, u64),
        (namer, log): (Entity, usize),
        from: Instant,
    ) -> Room {
        self.add((feed, count), (namer, log), (from, Came::Unknown))
    }

    /// The same of a feed that is known.
    pub(super) fn note_late(
        &mut self,
        named: (FeedId, u64),
        by: (Entity, usize),
        (now, why): (Instant, Came),
    ) -> Room {
        self.add(named, by, (now + VAIN_PAUSE, why))
    }

    fn add(
        &mut self,
        (feed, count): (FeedId, u64),
        (namer, log): (Entity, usize),
        (from, why): (Instant, Came),
    ) -> Room {
        let by = By {
            namer,
            log,
            most: count,
            in_vain: why == Came::Told,
            from,
        };
        if let Some(known) = self.feeds.get_mut(&feed) {
            match known.note(by) {
                Noted::New => self.is_new_by(feed, from),
                Noted::Known => {}
                Noted::Full => return self.has_none(&namer),
            }
            return Room::Is;
        }
        let is_full = self.feeds_of(&namer) >= UNKNOWN_PER_NAMER_MAX && !self.make_room_of(namer)
            || self.feeds.len() >= UNKNOWN_MAX && !self.make_room(self.feeds_of(&namer));
        if is_full {
            return self.has_none(&namer);
        }
        self.last_number += 1;
        let one = One {
            by,
            others: [None; OTHERS_MAX],
            asked: 0,
            not_before: from,
            from,
            in_vain: u32::from(why == Came::Told),
            is_late: why != Came::Unknown,
            told: (why == Came::Told).then_some(namer),
            number: self.last_number,
        };
        self.feeds.insert(feed, one);
        self.namers.entry(namer).or_default().feeds += 1;
        Room::Is
    }

    /// One more names a feed from that moment on: whose turn was in vain before leaves it to the others.
    fn is_new_by(&mut self, feed: FeedId, from: Instant) {
        let Some(before) = self.feeds.get(&feed).copied() else {
            return;
        };
        if before.by.in_vain {
            self.pass_round(feed, |by| !by.in_vain);
        }
        if let Some(one) = self.feeds.get_mut(&feed).filter(|one| !one.by.in_vain) {
            one.from = before.from.min(from.max(one.not_before));
        }
    }

    /// There is no place for what an entity names.
    fn has_none(&mut self, namer: &Entity) -> Room {
        let told = self.namers.get_mut(namer);
        match told.map(|known| std::mem::replace(&mut known.is_told, true)) {
            Some(true) => Room::Told,
            _ => Room::None,
        }
    }

    fn feeds_of(&self, namer: &Entity) -> usize {
        self.namers.get(namer).map_or(0, |known| known.feeds)
    }

    /// Of what an entity names, what was asked for in vain most often makes room for something new: twice at the least. It
    /// is another's, if one names it, too.
    fn make_room_of(&mut self, namer: Entity) -> bool {
        if self
            .namers
            .get(&namer)
            .is_none_or(|known| known.in_vain == 0)
        {
            return false;
        }
        let of_namer = self.feeds.iter().filter(|(_, one)| one.by.namer == namer);
        let last = of_namer.max_by_key(|(_, one)| (one.in_vain, one.number));
        match last.map(|(feed, _)| *feed) {
            Some(feed) => self.pass_on(feed, |_| true).is_some() || self.forget(feed).is_some(),
            None => false,
        }
    }

    /// The entity that names most makes room for one that names that many, if that is fewer: by what no other names, if
    /// there is any.
    fn make_room(&mut self, than: usize) -> bool {
        let most = self.namers.iter().max_by_key(|(_, known)| known.feeds);
        let Some((&most, _)) = most.filter(|(_, known)| known.feeds > than + 1) else {
            return false;
        };
        let of_namer = self.feeds.iter().filter(|(_, one)| one.by.namer == most);
        let last = of_namer.max_by_key(|(_, one)| {
            let is_alone = one.others.iter().all(Option::is_none);
            (is_alone, one.in_vain, one.number)
        });
        let Some((&feed, one)) = last else {
            return false;
        };
        let (log, is_told) = (one.by.log, one.told.is_some());
        if let Some(known) = self.namers.get_mut(&most).filter(|_| !is_told)
            && !std::mem::replace(&mut known.is_told, true)
        {
            self.dropped.push(log);
        }
        self.forget(feed).is_some()
    }

    /// A feed is from now on another's that names it and has room for it, one that was not asked for in vain before the
    /// others, and of these the one whose turn is first, and no more whose it was; none if there is no such one.
    fn pass_on(&mut self, feed: FeedId, is_one: impl Fn(&By) -> bool) -> Option<By> {
        let others = self.feeds.get(&feed)?.others;
        let has_room = |by: &By| self.feeds_of(&by.namer) < UNKNOWN_PER_NAMER_MAX;
        let next = others.into_iter().flatten();
        let next = next.filter(|by| has_room(by) && is_one(by));
        let next = next.min_by_key(|by| (by.in_vain, by.from))?;
        let one = self.feeds.get_mut(&feed)?;
        let before = std::mem::replace(&mut one.by, next);
        one.from = next.from.max(one.not_before);
        let mut left = others.into_iter().flatten().filter(|other| *other != next);
        one.others = std::array::from_fn(|_| left.next());
        let in_vain = usize::from(one.in_vain >= 2);
        self.leaves(before.namer, in_vain);
        let known = self.namers.entry(next.namer).or_default();
        known.feeds += 1;
        known.in_vain += in_vain;
        Some(before)
    }

    /// An entity names one feed less.
    fn leaves(&mut self, namer: Entity, in_vain: usize) {
        if let Some(known) = self.namers.get_mut(&namer) {
            known.feeds -= 1;
            known.in_vain -= in_vain;
            if known.feeds == 0 {
                self.namers.remove(&namer);
            }
        }
    }

    /// The logs whose batches name what made room for others, where that is to be told of.
    pub(super) fn take_dropped(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.dropped)
    }

    /// So many feeds whose turn it is, of those that are free, the next first.
    pub(super) fn next_few(
        &self,
        (now, few): (Instant, usize),
        is_free: impl Fn(FeedId, &One) -> bool,
    ) -> Vec<(FeedId, One)> {
        let turn = |namer: &Entity| self.namers.get(namer).map_or(0, |known| known.turn);
        let due = self.feeds.iter();
        let due = due.filter(|(feed, one)| now >= one.from && is_free(**feed, one));
        let due = due.map(|(feed, one)| {
            let at = (turn(&one.by.namer), one.in_vain, one.number);
            (at, *feed)
        });
        let mut due: Vec<_> = due.collect();
        due.sort_unstable_by_key(|(at, _)| *at);
        let next = due.into_iter().take(few);
        next.filter_map(|(_, feed)| Some((feed, *self.feeds.get(&feed)?)))
            .collect()
    }

    #[cfg(test)]
    fn next(&self, now: Instant, is_free: impl Fn(FeedId, &One) -> bool) -> Option<(FeedId, One)> {
        self.next_few((now, 1), is_free).pop()
    }

    /// Somebody looks for a feed from now on.
    pub(super) fn begin(&mut self, feed: FeedId) {
        self.last_number += 1;
        let Some(one) = self.feeds.get_mut(&feed) else {
            return;
        };
        one.asked = one.by.most;
        if let Some(known) = self.namers.get_mut(&one.by.namer) {
            known.turn = self.last_number;
        }
    }

    /// Nothing came of looking for a feed as an entity named it: the next one's that names it has it looked for next. None if
    /// that was told of before; else whether the feed is known.
    pub(super) fn in_vain(
        &mut self,
        (feed, namer): (FeedId, Entity),
        now: Instant,
    ) -> Option<bool> {
        let one = self.feeds.get_mut(&feed)?;
        let next = now + VAIN_PAUSE * (1 << one.in_vain.min(DOUBLED_MAX));
        one.not_before = now + VAIN_PAUSE;
        one.from = one.from.max(one.not_before);
        // None: it made room for another's meanwhile.
        let by = one.of_mut(namer)?;
        (by.in_vain, by.from) = (true, next);
        one.in_vain = one.in_vain.saturating_add(1);
        let (owner, is_first) = (one.by.namer, one.told.is_none());
        let told = is_first.then_some(one.is_late);
        if is_first {
            one.told = Some(namer);
        }
        if one.in_vain == 2
            && let Some(known) = self.namers.get_mut(&owner)
        {
            known.in_vain += 1;
        }
        if owner == namer {
            self.pass_round(feed, |_| true);
            // Whose turn was never in vain does not wait for what others named that was.
            if let Some(one) = self.feeds.get_mut(&feed).filter(|one| one.by.in_vain) {
                one.from = next;
            }
        }
        told
    }

    /// A feed is the next one's that names it, of those; whose it was is behind the others.
    fn pass_round(&mut self, feed: FeedId, is_one: impl Fn(&By) -> bool) {
        if let Some(before) = self.pass_on(feed, is_one)
            && let Some(one) = self.feeds.get_mut(&feed)
        {
            let mut places = one.others.iter_mut();
            if let Some(last) = places.find(|other| other.is_none()) {
                *last = Some(before);
            }
        }
    }

    /// All was taken that may be of what an entity names: that waits until then, and another that names the feed has its turn.
    pub(super) fn wait(&mut self, (feed, namer): (FeedId, Entity), until: Instant) {
        let Some(one) = self.feeds.get_mut(&feed) else {
            return;
        };
        if let Some(by) = one.of_mut(namer) {
            by.from = until;
        }
        if one.by.namer == namer {
            one.from = until;
            self.pass_round(feed, |by| by.from < until);
        }
    }

    /// What is due and is of an entity for which nobody is asked now is another's that names it.
    pub(super) fn pass_by(&mut self, now: Instant, is_out: impl Fn(&Entity) -> bool) {
        let is_next = |by: &By| now >= by.from && !is_out(&by.namer);
        let due = self.feeds.iter().filter(|(_, one)| {
            let mut others = one.others.iter().flatten();
            now >= one.from && is_out(&one.by.namer) && others.any(is_next)
        });
        let due: Vec<FeedId> = due.map(|(feed, _)| *feed).collect();
        for feed in due {
            self.pass_round(feed, is_next);
        }
    }

    /// What was looked for as an entity named it is there; what the same entity named meanwhile, or another names, is looked
    /// for in its turn. That what another named is not there stays told.
    pub(super) fn came(&mut self, (feed, namer): (FeedId, Entity)) {
        let Some(one) = self.feeds.get_mut(&feed) else {
            return;
        };
        one.told = one.told.filter(|told| *told != namer);
        let (asked, is_its_turn) = (one.asked, one.by.namer == namer);
        match one.of_mut(namer) {
            Some(by) if by.most > asked => by.in_vain = false,
            _ if is_its_turn => self.pass_over(feed),
            // It made room for another's meanwhile.
            _ => one.drop_other(|other| other.namer == namer),
        }
    }

    /// What the entity names whose turn it is of a feed is there, or is of no log that is to have it.
    pub(super) fn pass_over(&mut self, feed: FeedId) {
        if self.pass_on(feed, |_| true).is_none() {
            self.forget(feed);
        }
    }

    /// Whether a feed is among these.
    pub(super) fn has(&self, feed: FeedId) -> bool {
        self.feeds.contains_key(&feed)
    }

    /// Whether nobody was asked for it in vain yet.
    pub(super) fn is_new(&self, feed: FeedId) -> bool {
        let one = self.feeds.get(&feed);
        one.is_some_and(|one| one.in_vain == 0 && !one.is_late)
    }

    pub(super) fn forget(&mut self, feed: FeedId) -> Option<One> {
        let one = self.feeds.remove(&feed)?;
        self.leaves(one.by.namer, usize::from(one.in_vain >= 2));
        Some(one)
    }

    /// Gives those that are known by now, and were not before.
    pub(super) fn take_known(&mut self, is_known: impl Fn(FeedId) -> bool) -> Vec<(FeedId, One)> {
        let known = self.feeds.iter();
        let known = known.filter(|(feed, one)| !one.is_late && is_known(**feed));
        let known: Vec<FeedId> = known.map(|(feed, _)| *feed).collect();
        let known = known.into_iter();
        known
            .filter_map(|feed| Some((feed, self.forget(feed)?)))
            .collect()
    }

    /// Forgets what a log's batches name.
    pub(super) fn leave(&mut self, log: usize) {
        let mut of_log = Vec::new();
        for (feed, one) in &mut self.feeds {
            one.drop_other(|other| other.log == log);
            if one.by.log == log {
                of_log.push(*feed);
            }
        }
        for feed in of_log {
            self.pass_over(feed);
        }
    }
}

#[cfg(test)]
mod tests;
