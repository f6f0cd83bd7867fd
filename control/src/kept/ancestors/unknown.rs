//! Feeds that batches name and of which it is not known here whose they are, or on which channel: of an entity that nothing
//! came of yet, or on a channel that is not kept here at all.
//!
//! Nodes whose channels others observe name many of the latter in all that they say. So nobody is asked for a feed again at
//! once where nothing came of it, but less and less often, whoever names it; what else an entity names does not wait for
//! that. Entities take turns. So it is with what was named in vain for long of a feed that is known: a batch names it once,
//! and who has it may be away all that time.

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

/// What is named of a feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct One {
    pub(super) most: u64,
    /// Who named it first, and the log that has that batch.
    pub(super) namer: Entity,
    pub(super) log: usize,
    /// Who else did: each has it looked for sooner once, as what one names may never have been.
    others: [Option<Entity>; OTHERS_MAX],
    /// Nobody is asked for it before that, whoever names it.
    not_before: Instant,
    /// It is looked from then on.
    from: Instant,
    /// How often nothing came of it.
    in_vain: u32,
    /// Whether it is known whose it is: it was asked for in vain as such, for long.
    is_late: bool,
    number: u64,
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
        self.add((feed, count), (namer, log), (from, false))
    }

    /// The same of a feed that is known, where nothing came of it for long.
    pub(super) fn note_late(
        &mut self,
        named: (FeedId, u64),
        by: (Entity, usize),
        now: Instant,
    ) -> Room {
        self.add(named, by, (now + VAIN_PAUSE, true))
    }

    fn add(
        &mut self,
        (feed, count): (FeedId, u64),
        (namer, log): (Entity, usize),
        (from, is_late): (Instant, bool),
    ) -> Room {
        if let Some(known) = self.feeds.get_mut(&feed) {
            known.most = known.most.max(count);
            let is_other = known.namer != namer && !known.others.contains(&Some(namer));
            let mut places = known.others.iter_mut();
            let place = places.find(|other| other.is_none());
            if let Some(place) = place.filter(|_| is_other) {
                *place = Some(namer);
                known.from = known.from.min(from.max(known.not_before));
            }
            return Room::Is;
        }
        let of_namer = self.namers.get(&namer).map_or(0, |known| known.feeds);
        let is_full = of_namer >= UNKNOWN_PER_NAMER_MAX && !self.make_room_of(namer)
            || self.feeds.len() >= UNKNOWN_MAX && !self.make_room(of_namer);
        if is_full {
            let told = self.namers.get_mut(&namer);
            return match told.map(|known| std::mem::replace(&mut known.is_told, true)) {
                Some(true) => Room::Told,
                _ => Room::None,
            };
        }
        self.last_number += 1;
        let one = One {
            most: count,
            namer,
            log,
            others: [None; OTHERS_MAX],
            not_before: from,
            from,
            // That of a known one was told of.
            in_vain: is_late.into(),
            is_late,
            number: self.last_number,
        };
        self.feeds.insert(feed, one);
        self.namers.entry(namer).or_default().feeds += 1;
        Room::Is
    }

    /// Of what an entity names, what was asked for in vain most often makes room for something new: twice at the least.
    fn make_room_of(&mut self, namer: Entity) -> bool {
        if self
            .namers
            .get(&namer)
            .is_none_or(|known| known.in_vain == 0)
        {
            return false;
        }
        let of_namer = self.feeds.iter().filter(|(_, one)| one.namer == namer);
        let last = of_namer.max_by_key(|(_, one)| (one.in_vain, one.number));
        match last.map(|(feed, _)| *feed) {
            Some(feed) => self.forget(feed).is_some(),
            None => false,
        }
    }

    /// The entity that names most makes room for one that names that many, if that is fewer.
    fn make_room(&mut self, than: usize) -> bool {
        let most = self.namers.iter().max_by_key(|(_, known)| known.feeds);
        let Some((&most, _)) = most.filter(|(_, known)| known.feeds > than + 1) else {
            return false;
        };
        let of_namer = self.feeds.iter().filter(|(_, one)| one.namer == most);
        let last = of_namer.max_by_key(|(_, one)| (one.in_vain, one.number));
        match last.map(|(feed, _)| *feed) {
            Some(feed) => self.forget(feed).is_some(),
            None => false,
        }
    }

    /// The feed whose turn it is, of those that are free.
    pub(super) fn next(
        &self,
        now: Instant,
        is_free: impl Fn(FeedId, &One) -> bool,
    ) -> Option<(FeedId, One)> {
        let turn = |namer: &Entity| self.namers.get(namer).map_or(0, |known| known.turn);
        let due = self.feeds.iter();
        let due = due.filter(|(feed, one)| now >= one.from && is_free(**feed, one));
        let next = due.min_by_key(|(_, one)| (turn(&one.namer), one.in_vain, one.number));
        next.map(|(feed, one)| (*feed, *one))
    }

    /// Somebody looks for a feed from now on.
    pub(super) fn begin(&mut self, feed: FeedId) {
        self.last_number += 1;
        let one = self.feeds.get(&feed);
        if let Some(known) = one.and_then(|one| self.namers.get_mut(&one.namer)) {
            known.turn = self.last_number;
        }
    }

    /// Nothing came of looking for a feed; whether that is the first time.
    pub(super) fn in_vain(&mut self, feed: FeedId, now: Instant) -> bool {
        let Some(one) = self.feeds.get_mut(&feed) else {
            return false;
        };
        one.not_before = now + VAIN_PAUSE;
        one.from = now + VAIN_PAUSE * (1 << one.in_vain.min(DOUBLED_MAX));
        one.in_vain = one.in_vain.saturating_add(1);
        if one.in_vain == 2
            && let Some(known) = self.namers.get_mut(&one.namer)
        {
            known.in_vain += 1;
        }
        one.in_vain == 1
    }

    /// Whether a feed is among these.
    pub(super) fn has(&self, feed: FeedId) -> bool {
        self.feeds.contains_key(&feed)
    }

    /// Whether nobody was asked for it in vain yet.
    pub(super) fn is_new(&self, feed: FeedId) -> bool {
        self.feeds.get(&feed).is_some_and(|one| one.in_vain == 0)
    }

    pub(super) fn forget(&mut self, feed: FeedId) -> Option<One> {
        let one = self.feeds.remove(&feed)?;
        if let Some(known) = self.namers.get_mut(&one.namer) {
            known.feeds -= 1;
            known.in_vain -= usize::from(one.in_vain >= 2);
            if known.feeds == 0 {
                self.namers.remove(&one.namer);
            }
        }
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
        let of_log = self.feeds.iter().filter(|(_, one)| one.log == log);
        let of_log: Vec<FeedId> = of_log.map(|(feed, _)| *feed).collect();
        for feed in of_log {
            self.forget(feed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(number: usize) -> FeedId {
        let mut id = [7; 32];
        id[..8].copy_from_slice(&number.to_be_bytes());
        FeedId(id)
    }

    fn of(unknown: &mut Unknown, number: usize, namer: u16) -> Room {
        let mut entity = [0; 32];
        entity[..2].copy_from_slice(&namer.to_be_bytes());
        unknown.note((feed(number), 1), (entity, 0), Instant::now())
    }

    #[test]
    fn what_nobody_has_is_asked_for_less_and_less_often_however_often_it_is_named() {
        let (mut unknown, start) = (Unknown::default(), Instant::now());
        let (mut times, while_named) = (Vec::new(), Duration::from_secs(70 * 60));
        let mut now = start;
        while now < start + while_named {
            assert_eq!(unknown.note((feed(1), 1), ([1; 32], 0), now), Room::Is);
            if let Some((one, _)) = unknown.next(now, |_, _| true) {
                unknown.begin(one);
                assert_eq!(unknown.in_vain(one, now), times.is_empty());
                times.push(now - start);
            }
            now += Duration::from_secs(10);
        }
        let minutes: Vec<u64> = times.iter().map(|at| at.as_secs() / 60).collect();
        let doubled = (0..=DOUBLED_MAX).map(|doubled| (1_u64 << doubled) - 1);
        let later = [2_u64, 3, 4].map(|longest| (longest << DOUBLED_MAX) - 1);
        assert_eq!(minutes, doubled.chain(later).collect::<Vec<u64>>());
        assert_eq!(unknown.take_known(|one| one == feed(1)).len(), 1);
        assert!(!unknown.has(feed(1)) && unknown.namers.is_empty());
    }

    #[test]
    fn what_was_asked_for_in_vain_makes_room_for_what_the_same_entity_names_next() {
        let (mut unknown, now) = (Unknown::default(), Instant::now());
        for number in 0..UNKNOWN_PER_NAMER_MAX {
            assert_eq!(of(&mut unknown, number, 1), Room::Is);
        }
        unknown.in_vain(feed(7), now);
        assert_eq!(of(&mut unknown, 1_000_000, 1), Room::None, "once is little");
        unknown.in_vain(feed(7), now);
        assert_eq!(of(&mut unknown, 1_000_000, 1), Room::Is);
        assert!(!unknown.has(feed(7)) && unknown.has(feed(1_000_000)));
        assert_eq!(unknown.feeds.len(), UNKNOWN_PER_NAMER_MAX);
        assert_eq!(of(&mut unknown, 1_000_001, 1), Room::Told);
    }

    #[test]
    fn what_one_named_in_vain_is_asked_for_soon_as_another_names_it() {
        let (mut unknown, start) = (Unknown::default(), Instant::now());
        unknown.note((feed(1), u64::MAX), ([1; 32], 0), start);
        for _ in 0..9 {
            unknown.in_vain(feed(1), start);
        }
        let is_due = |unknown: &Unknown, at| unknown.next(at, |_, _| true).is_some();
        let soon = start + VAIN_PAUSE;
        unknown.note((feed(1), u64::MAX), ([1; 32], 0), start);
        assert!(!is_due(&unknown, soon), "its first namer is no other one");
        unknown.note((feed(1), 10), ([2; 32], 0), start);
        assert!(is_due(&unknown, soon) && !is_due(&unknown, soon - Duration::from_secs(1)));
        // Each has that once, and few do.
        for namer in 2..=u8::try_from(OTHERS_MAX).unwrap() + 1 {
            unknown.note((feed(1), 10), ([namer; 32], 0), start);
        }
        unknown.in_vain(feed(1), start);
        for namer in 1..9 {
            unknown.note((feed(1), 10), ([namer; 32], 0), start);
        }
        assert!(!is_due(&unknown, soon));
        assert!(is_due(&unknown, start + Duration::from_secs(16 * 60)));
    }

    #[test]
    fn entities_take_turns_and_who_names_most_makes_room() {
        let mut unknown = Unknown::default();
        for number in 0..UNKNOWN_PER_NAMER_MAX {
            assert_eq!(of(&mut unknown, number, 1), Room::Is);
        }
        assert_eq!(of(&mut unknown, 1_000_000, 1), Room::None);
        assert_eq!(of(&mut unknown, 1_000_001, 1), Room::Told);
        let mut number = UNKNOWN_PER_NAMER_MAX;
        while unknown.feeds.len() < UNKNOWN_MAX {
            let namer = u16::try_from(1 + number / UNKNOWN_PER_NAMER_MAX).unwrap();
            assert_eq!(of(&mut unknown, number, namer), Room::Is);
            number += 1;
        }
        // One that comes later has its place, and its turn next to the others'.
        for late in 0..UNKNOWN_PER_NAMER_MAX {
            let room = of(&mut unknown, number + late, 99);
            let has_fewer = late < UNKNOWN_PER_NAMER_MAX - 17;
            assert!(room == Room::Is || !has_fewer, "{late}");
            assert!(unknown.feeds.len() <= UNKNOWN_MAX);
        }
        let counted: usize = unknown.namers.values().map(|known| known.feeds).sum();
        assert_eq!(counted, unknown.feeds.len());
        let mut turns = Vec::new();
        for _ in 0..2 * unknown.namers.len() {
            let (next, one) = unknown.next(Instant::now(), |_, _| true).unwrap();
            unknown.begin(next);
            unknown.in_vain(next, Instant::now());
            turns.push(one.namer);
        }
        let (first, second) = turns.split_at(unknown.namers.len());
        assert_eq!(first, second);
        unknown.leave(0);
        assert!(unknown.feeds.is_empty() && unknown.namers.is_empty());
    }
}
