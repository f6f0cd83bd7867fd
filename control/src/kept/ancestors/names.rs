//! Events of other feeds that batches in a log name as observed and that no log here has: they wait until they are asked
//! for, few at a time.
//!
//! Whoever may publish can name what never was. So each entity that names has few places, a budget of its own for what
//! comes of it, and a pause once nothing did or it was more than may be taken; what nobody had is asked for once a minute at
//! most, whoever names it. What may be of no log here has places of its own, see [`Unknown`]. There goes, too, what has no
//! place here, or nobody had for long; what has none there either is forgotten, and told of once a minute.

mod due;

use super::{
    FETCHED_WITHIN, Unfound,
    unknown::{Came, One, Room, Unknown},
};
pub(super) use due::{Due, Which};
use std::{collections::BTreeMap, time::Duration};
use tokio::{task::AbortHandle, time::Instant};
use virga_state::{batch::FeedId, limits::CAUSAL_FEEDS_MAX};

/// Nobody is asked for so long: an event comes by itself a moment after one that names it, mostly.
pub(super) const NAMED_AFTER: Duration = Duration::from_secs(1);
/// Feeds that wait, as each entity names them.
const NAMES_MAX: usize = 4_096;
/// Of those, as one entity names them.
const NAMES_PER_NAMER_MAX: usize = 256;
/// Feeds that somebody looks for at a time.
const NAMED_SEARCHES_MAX: usize = 4;
/// Of those, as one entity names them.
const NAMED_SEARCHES_PER_NAMER_MAX: usize = 2;
/// Feeds that somebody looks for at a time and that may be of no log here: one of an entity.
const UNKNOWN_SEARCHES_MAX: usize = 2;
/// Bytes that are taken of what one entity names in [`FETCHED_WITHIN`].
const NAMED_BYTES_MAX: usize = 64 << 20;
/// The same of all.
const NAMED_BYTES_OF_ALL_MAX: usize = 256 << 20;
/// So long what an entity names waits, all turns and searches together; then it is asked for less and less often.
pub(super) const NAMED_WITHIN: Duration = Duration::from_secs(300);
/// So long nobody is asked for what an entity names, once nothing came of it.
const NAMER_PAUSE: Duration = Duration::from_secs(30);
/// So long nobody is asked for a feed of which nobody had what was named.
const VAIN_PAUSE: Duration = Duration::from_secs(60);
/// How often it is told that what an entity names has no place.
const TOLD_EVERY: Duration = Duration::from_secs(60);

const _: () = assert!(
    NAMED_SEARCHES_PER_NAMER_MAX < NAMED_SEARCHES_MAX
        && NAMES_PER_NAMER_MAX * 16 <= NAMES_MAX
        && NAMED_BYTES_MAX < NAMED_BYTES_OF_ALL_MAX
        && VAIN_PAUSE.as_secs() < NAMED_WITHIN.as_secs()
);

pub(super) type Entity = [u8; 32];

/// What an entity names of a feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// How many of its events are to be there when it is looked.
    pub(super) count: u64,
    /// It is looked from then on.
    from: Instant,
    /// How many are named by now.
    pub(super) most: u64,
    /// The log that has the batch that does.
    pub(super) log: usize,
    /// It waits here until then.
    pub(super) until: Instant,
    /// In which order they came.
    number: u64,
}

/// Who is asked for a feed.
struct Searched {
    namer: Entity,
    /// Where it goes.
    log: usize,
    number: u64,
    /// Whether it is of a log here.
    is_known: bool,
    /// Whether anything came of it.
    has_taken: bool,
    search: AbortHandle,
}

impl Drop for Searched {
    fn drop(&mut self) {
        self.search.abort();
    }
}

/// What came of what an entity named.
#[derive(Debug)]
struct Namer {
    began: Instant,
    bytes: usize,
    pause: Option<Instant>,
    told: Option<Instant>,
}

impl Namer {
    fn bytes(&self, now: Instant) -> usize {
        match now < self.began + FETCHED_WITHIN {
            true => self.bytes,
            false => 0,
        }
    }

    fn is_paused(&self, now: Instant) -> bool {
        self.pause.is_some_and(|until| now < until)
    }

    fn is_over(&self, now: Instant) -> bool {
        let is_past = |since: Option<Instant>, after| since.is_none_or(|at| now >= at + after);
        now >= self.began + FETCHED_WITHIN
            && is_past(self.pause, Duration::ZERO)
            && is_past(self.told, TOLD_EVERY)
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Names {
    waiting: BTreeMap<(FeedId, Entity), Name>,
    /// How many of those each entity names.
    counts: BTreeMap<Entity, usize>,
    searched: BTreeMap<FeedId, Searched>,
    namers: BTreeMap<Entity, Namer>,
    /// Until when nobody is asked for a feed.
    vain: BTreeMap<FeedId, Instant>,
    pub(super) unknown: Unknown,
    last_number: u64,
}

/// What came of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kept) enum Ended {
    /// It was not for what is named, or another one is.
    NotThis,
    /// What was looked for is there, or it was told of before that it is not.
    Quiet,
    /// It is to be told that it is not there.
    Told(Unfound),
}

impl Names {
    /// An entity names events that are not there; whether it is to be told that there is no place for that.
    pub(super) fn note(
        &mut self,
        (feed, count): (FeedId, u64),
        (namer, log): (Entity, usize),
        now: Instant,
    ) -> bool {
        if let Some(known) = self.waiting.get_mut(&(feed, namer)) {
            known.most = known.most.max(count);
            return false;
        }
        let of_namer = self.counts.get(&namer).copied().unwrap_or(0);
        if self.waiting.len() >= NAMES_MAX || of_namer >= NAMES_PER_NAMER_MAX {
            let why = (now, Came::Late);
            let room = self.unknown.note_late((feed, count), (namer, log), why);
            return room != Room::Is && self.tells(namer, now);
        }
        self.last_number += 1;
        let name = Name {
            count,
            from: now + NAMED_AFTER,
            most: count,
            log,
            until: now + NAMED_WITHIN,
            number: self.last_number,
        };
        self.waiting.insert((feed, namer), name);
        *self.counts.entry(namer).or_default() += 1;
        false
    }

    /// The same of a feed of which it is not known whose it is, or where.
    pub(super) fn note_unknown(
        &mut self,
        named: (FeedId, u64),
        (namer, log): (Entity, usize),
        now: Instant,
    ) -> bool {
        let from = now + NAMED_AFTER;
        match self.unknown.note(named, (namer, log), from) {
            Room::Is | Room::Told => false,
            Room::None => self.tells(namer, now),
        }
    }

    fn namer(&mut self, namer: Entity, now: Instant) -> Option<&mut Namer> {
        if !self.namers.contains_key(&namer) && self.namers.len() >= CAUSAL_FEEDS_MAX {
            self.namers.retain(|_, namer| !namer.is_over(now));
            if self.namers.len() >= CAUSAL_FEEDS_MAX {
                return None;
            }
        }
        let known = self.namers.entry(namer).or_insert_with(|| Namer {
            began: now,
            bytes: 0,
            pause: None,
            told: None,
        });
        if now >= known.began + FETCHED_WITHIN {
            (known.began, known.bytes) = (now, 0);
        }
        Some(known)
    }

    /// Whether what comes of what an entity names can be counted.
    pub(super) fn can_count(&mut self, namer: Entity, now: Instant) -> bool {
        self.namer(namer, now).is_some()
    }

    /// Whether it is to be told now that something that an entity names is forgotten.
    pub(super) fn tells(&mut self, namer: Entity, now: Instant) -> bool {
        let Some(known) = self.namer(namer, now) else {
            return false;
        };
        let is_due = known.told.is_none_or(|told| now >= told + TOLD_EVERY);
        if is_due {
            known.told = Some(now);
        }
        is_due
    }

    /// So many feeds whose turn it is, the next first, and who named them; none without a place. Once somebody looks for
    /// one, the others' turns may be another time.
    pub(super) fn next_few(
        &self,
        (now, few): (Instant, usize),
        is_free: impl Fn(FeedId) -> bool,
    ) -> Vec<(FeedId, Entity, Name)> {
        let known = self.searched.values().filter(|one| one.is_known);
        let has_places = known.count() < NAMED_SEARCHES_MAX;
        if self.waiting.is_empty() || !has_places || self.bytes_left_of_all(now) == 0 {
            return Vec::new();
        }
        let may_name = |namer: &Entity| {
            let searched = self.searched.values();
            let of_namer = searched.filter(|one| one.is_known && one.namer == *namer);
            let of_namer = of_namer.count();
            !self.is_paused(namer, now) && of_namer < NAMED_SEARCHES_PER_NAMER_MAX
        };
        let free = self.waiting.iter().filter(|((feed, namer), name)| {
            let is_vain = self.vain.get(feed).is_some_and(|until| now < *until);
            now >= name.from
                && !self.searched.contains_key(feed)
                && !is_vain
                && may_name(namer)
                && self.bytes_left_of(namer, now) > 0
                && is_free(*feed)
        });
        let free = free.map(|((feed, namer), name)| (*feed, *namer, *name));
        let mut free: Vec<_> = free.collect();
        free.sort_unstable_by_key(|(.., name)| name.number);
        free.truncate(few);
        free
    }

    #[cfg(test)]
    fn next(
        &self,
        now: Instant,
        is_free: impl Fn(FeedId) -> bool,
    ) -> Option<(FeedId, Entity, Name)> {
        self.next_few((now, 1), is_free).pop()
    }

    /// The same of those that may be of no log here.
    pub(super) fn next_unknown(
        &self,
        (now, few): (Instant, usize),
        is_free: impl Fn(FeedId) -> bool,
    ) -> Vec<(FeedId, One)> {
        let searched = || self.searched.values().filter(|one| !one.is_known);
        if searched().count() >= UNKNOWN_SEARCHES_MAX || self.bytes_left_of_all(now) == 0 {
            return Vec::new();
        }
        self.unknown.next_few((now, few), |feed, one| {
            !self.searched.contains_key(&feed)
                && !self.is_waiting(feed)
                && searched().all(|other| other.namer != one.by.namer)
                && !self.is_paused(&one.by.namer, now)
                && self.bytes_left_of(&one.by.namer, now) > 0
                && is_free(feed)
        })
    }

    /// Whether nobody is asked now for what an entity names.
    fn is_paused(&self, namer: &Entity, now: Instant) -> bool {
        let known = self.namers.get(namer);
        known.is_some_and(|known| known.is_paused(now))
    }

    /// Who has taken all that it may, or is paused, keeps nobody else from what both name.
    pub(super) fn pass_by(&mut self, now: Instant) {
        let namers = &self.namers;
        self.unknown.pass_by(now, |namer| {
            let known = namers.get(namer);
            known.is_some_and(|known| known.is_paused(now) || known.bytes(now) >= NAMED_BYTES_MAX)
        });
    }

    /// How much may be taken now of what an entity names.
    pub(super) fn bytes_left(&self, namer: &Entity, now: Instant) -> usize {
        self.bytes_left_of(namer, now)
            .min(self.bytes_left_of_all(now))
    }

    fn bytes_left_of(&self, namer: &Entity, now: Instant) -> usize {
        let known = self.namers.get(namer);
        NAMED_BYTES_MAX.saturating_sub(known.map_or(0, |known| known.bytes(now)))
    }

    fn bytes_left_of_all(&self, now: Instant) -> usize {
        let bytes: usize = self.namers.values().map(|known| known.bytes(now)).sum();
        NAMED_BYTES_OF_ALL_MAX.saturating_sub(bytes)
    }

    /// Somebody looks for a feed from now on.
    pub(super) fn begin(
        &mut self,
        (feed, namer): (FeedId, Entity),
        (log, number): (usize, u64),
        search: AbortHandle,
    ) {
        let is_known = self.is_waiting(feed) || !self.unknown.has(feed);
        let searched = Searched {
            namer,
            log,
            number,
            is_known,
            has_taken: false,
            search,
        };
        if !is_known {
            self.unknown.begin(feed);
        }
        self.searched.insert(feed, searched);
    }

    /// Whether somebody looks for a feed.
    pub(super) fn is_searched(&self, feed: FeedId) -> bool {
        self.searched.contains_key(&feed)
    }

    /// Which log somebody looks for a feed for.
    pub(super) fn searched_for(&self, feed: FeedId) -> Option<usize> {
        self.searched.get(&feed).map(|searched| searched.log)
    }

    /// Whether somebody named events of a known feed a while ago at the most.
    fn is_waiting(&self, feed: FeedId) -> bool {
        let of_feed = (feed, [0; 32])..=(feed, [u8::MAX; 32]);
        self.waiting.range(of_feed).next().is_some()
    }

    /// Whether a feed is named, and is looked for, or will be soon.
    pub(super) fn has(&self, feed: FeedId) -> bool {
        self.is_waiting(feed) || self.is_searched(feed) || self.unknown.is_new(feed)
    }

    /// Some of a feed that somebody looks for was taken.
    pub(super) fn took(&mut self, feed: FeedId, bytes: usize, now: Instant) {
        let namer = self.searched.get_mut(&feed).map(|searched| {
            searched.has_taken = true;
            searched.namer
        });
        if let Some(namer) = namer.and_then(|namer| self.namer(namer, now)) {
            namer.bytes += bytes;
        }
    }

    /// Nobody looks for a feed any more, but it is named as before.
    pub(super) fn suspend(&mut self, feed: FeedId) {
        self.searched.remove(&feed);
    }

    /// It was looked for a feed.
    pub(super) fn ended(
        &mut self,
        (feed, number): (FeedId, u64),
        found: Result<(), Unfound>,
        now: Instant,
    ) -> Ended {
        let is_this = |searched: &Searched| searched.number == number;
        if !self.searched.get(&feed).is_some_and(is_this) {
            return Ended::NotThis;
        }
        let Some(searched) = self.searched.remove(&feed) else {
            return Ended::NotThis;
        };
        let (namer, is_known) = (searched.namer, searched.is_known);
        let Err(why) = found else {
            self.came(feed, namer, now);
            // Of a known feed more may be named there.
            if !is_known {
                self.unknown.came((feed, namer));
            }
            return Ended::Quiet;
        };
        if why == Unfound::Full {
            // What may not be taken costs as much to ask for as what is not there.
            self.pause(namer, now);
            if searched.has_taken {
                self.wait(feed, namer, now);
                return Ended::Quiet;
            }
        }
        if !is_known && self.unknown.has(feed) {
            return self.ended_in_vain((feed, namer), why, now);
        }
        if !is_known && !self.waiting.contains_key(&(feed, namer)) {
            // It made room for another one.
            return Ended::Quiet;
        }
        // Somebody may have it later: it waits behind the others.
        self.last_number += 1;
        if let Some(name) = self.waiting.get_mut(&(feed, namer)) {
            name.number = self.last_number;
        }
        self.vain.retain(|_, until| now < *until);
        // There are few searches in a minute.
        if self.vain.len() < NAMES_MAX {
            self.vain.insert(feed, now + VAIN_PAUSE);
        }
        self.pause(namer, now);
        Ended::Told(why)
    }

    fn pause(&mut self, namer: Entity, now: Instant) {
        if let Some(known) = self.namer(namer, now) {
            known.pause = Some(now + NAMER_PAUSE);
        }
    }

    /// Some came of what an entity names, and more is there than may be taken now: it is looked for again once it may.
    fn wait(&mut self, feed: FeedId, namer: Entity, now: Instant) {
        let began = self.namer(namer, now).map_or(now, |known| known.began);
        let again = began + FETCHED_WITHIN;
        self.unknown.wait((feed, namer), again);
        if let Some(name) = self.waiting.get_mut(&(feed, namer)) {
            (name.from, name.until) = (again, again + NAMED_WITHIN);
        }
    }

    /// Nothing came of looking for a feed of which it is not known whose it is, or where: that is told of once.
    pub(super) fn ended_in_vain(
        &mut self,
        looked: (FeedId, Entity),
        why: Unfound,
        now: Instant,
    ) -> Ended {
        match (self.unknown.in_vain(looked, now), why) {
            (None, _) => Ended::Quiet,
            (Some(false), Unfound::Nobody | Unfound::Late) => Ended::Told(Unfound::Unknown),
            (Some(_), why) => Ended::Told(why),
        }
    }

    /// What was named a moment ago came by itself, if it is there.
    pub(super) fn come(&mut self, now: Instant, is_there: impl Fn(FeedId, u64) -> bool) {
        let there = self.waiting.iter().filter(|((feed, _), name)| {
            now >= name.from && !self.searched.contains_key(feed) && is_there(*feed, name.count)
        });
        let there: Vec<_> = there.map(|(key, _)| *key).collect();
        for (feed, namer) in there {
            self.came(feed, namer, now);
        }
    }

    /// What an entity named of a feed when it was looked for is there: what it named since is left, for a moment.
    pub(super) fn came(&mut self, feed: FeedId, namer: Entity, now: Instant) {
        match self.waiting.get_mut(&(feed, namer)) {
            Some(name) if name.most > name.count => {
                (name.count, name.from) = (name.most, now + NAMED_AFTER);
                // What was named so far is there: the rest has its own time.
                name.until = now + NAMED_WITHIN;
            }
            _ => self.forget(feed, namer),
        }
    }

    pub(super) fn forget(&mut self, feed: FeedId, namer: Entity) {
        if self.waiting.remove(&(feed, namer)).is_none() {
            return;
        }
        if let Some(count) = self.counts.get_mut(&namer) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&namer);
            }
        }
    }

    /// What waited for too long is asked for less and less often; in which logs it is to be told that it is not there.
    pub(super) fn forget_late(
        &mut self,
        now: Instant,
        is_there: impl Fn(FeedId, u64) -> bool,
    ) -> Vec<usize> {
        let late = self.waiting.iter().filter(|((feed, namer), name)| {
            let searched = self.searched.get(feed);
            let is_searched = searched.is_some_and(|searched| searched.namer == *namer);
            now >= name.until && !is_searched
        });
        let late: Vec<_> = late.map(|(key, name)| (*key, *name)).collect();
        let mut told = Vec::new();
        for ((feed, namer), name) in late {
            self.forget(feed, namer);
            if is_there(feed, name.most) {
                continue;
            }
            // Where there is no room that is told of with it.
            let by = (namer, name.log);
            let why = (now, Came::Told);
            let _room = self.unknown.note_late((feed, name.most), by, why);
            if self.tells(namer, now) {
                told.push(name.log);
            }
        }
        told
    }

    /// Nobody looks any more for what would go into a log, and what its batches name is forgotten; which feeds somebody
    /// looked for.
    pub(super) fn leave(&mut self, log: usize) -> Vec<FeedId> {
        let named = self.waiting.iter().filter(|(_, name)| name.log == log);
        let named: Vec<(FeedId, Entity)> = named.map(|(key, _)| *key).collect();
        for (feed, namer) in named {
            self.forget(feed, namer);
        }
        self.unknown.leave(log);
        let into = self.searched.iter().filter(|(_, one)| one.log == log);
        let into: Vec<FeedId> = into.map(|(feed, _)| *feed).collect();
        for feed in &into {
            self.suspend(*feed);
        }
        into
    }
}

#[cfg(test)]
mod tests;
