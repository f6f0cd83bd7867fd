//! Where in its log each feed is, roughly: what other nodes ask for by its name is looked for there, or not at all.
//!
//! Of each feed some of its batches are noted as they come, evenly over the log; where there are too many, every second
//! one is forgotten. So a look begins not far before what is wanted, and of what was never noted nothing is looked for.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use virga_state::{
    Cursor,
    batch::{FeedId, Statement},
    history::{Looked, Wanted},
    limits::CAUSAL_FEEDS_MAX,
};
use virga_transport::ChannelName;

/// Places that are noted of one feed: those of all feeds have some 4 MiB.
const PLACES_MAX: usize = 64;

/// See the module. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// By their channels.
    logs: BTreeMap<String, OfLog>,
    /// Feeds of all logs.
    feeds: usize,
}

#[derive(Debug, Default)]
struct OfLog {
    feeds: BTreeMap<FeedId, Feed>,
    /// It is being gone through for them.
    is_looking: bool,
}

#[derive(Debug, Default)]
struct Feed {
    /// Numbers of events, each the first of a batch, and their offsets; both rise.
    places: Vec<(u64, u64)>,
    /// The next is noted so many offsets after the last.
    step: u64,
    /// Number of its last event, and the offset behind the first of its last batch.
    end: u64,
    end_offset: u64,
}

/// What is known of events that are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The log has none of them, as far as is known.
    Nothing,
    /// It is not known yet.
    Later,
    /// Those of them that the log has begin at one of these offsets.
    Within(Range<u64>, Wanted),
}

/// What is looked for, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Aim {
    pub(super) wanted: Wanted,
    pub(super) from: u64,
    /// The first of them begins before that offset.
    pub(super) first_before: u64,
}

impl Inner {
    fn log(&mut self, channel: &str) -> &mut OfLog {
        self.logs.entry(channel.to_owned()).or_default()
    }
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a batch that a log has.
    pub(super) fn note(&self, statement: &Statement, offset: u64) {
        let (feed, numbers) = (statement.feed(), (statement.first, statement.last()));
        self.note_of((statement.channel.as_str(), feed), numbers, offset);
    }

    fn note_of(&self, (channel, feed): (&str, FeedId), numbers: (u64, u64), offset: u64) {
        let mut inner = self.lock();
        let has_room = inner.feeds < CAUSAL_FEEDS_MAX;
        let log = inner.log(channel);
        let is_new = !log.feeds.contains_key(&feed);
        if has_room || !is_new {
            log.feeds.entry(feed).or_default().note(numbers, offset);
            inner.feeds += usize::from(is_new);
        }
    }

    /// Whether a log is gone through for them now.
    pub(super) fn set_looking(&self, channel: &ChannelName, is_looking: bool) {
        self.lock().log(channel.as_str()).is_looking = is_looking;
    }

    /// What is to be looked for in a log, and from where on, for a node that goes on there; else what that node is told:
    /// nothing, or that it may ask again.
    pub(super) fn aim(
        &self,
        (channel, cursor): (&ChannelName, Cursor),
        wanted: Wanted,
        is_coming: bool,
    ) -> Result<Aim, Looked> {
        let at = match cursor {
            Cursor::Offset(at) => at,
            _ => 0,
        };
        match self.find(channel, wanted) {
            // It was not where it can be: something of the log is damaged.
            Found::Within(offsets, _) if at >= offsets.end => Err(Looked::default()),
            Found::Within(offsets, wanted) => Ok(Aim {
                wanted,
                from: at.max(offsets.start),
                first_before: offsets.end,
            }),
            Found::Nothing if !is_coming => Err(Looked::default()),
            // It goes on where it is.
            Found::Nothing | Found::Later => Err(Looked {
                next: Some(at),
                ..Looked::default()
            }),
        }
    }

    /// Where a log has events, if it has any of them.
    pub(super) fn find(&self, channel: &ChannelName, wanted: Wanted) -> Found {
        let inner = self.lock();
        let Some(log) = inner.logs.get(channel.as_str()) else {
            return Found::Nothing;
        };
        if log.is_looking {
            return Found::Later;
        }
        let found = log.feeds.get(&wanted.feed).and_then(|feed| {
            let to = wanted.to.min(feed.end);
            let offsets = feed.around(wanted.after.checked_add(1)?)?;
            (wanted.after < to).then_some(Found::Within(offsets, Wanted { to, ..wanted }))
        });
        found.unwrap_or(Found::Nothing)
    }
}

impl Feed {
    fn note(&mut self, (first, last): (u64, u64), offset: u64) {
        self.end = self.end.max(last);
        self.end_offset = self.end_offset.max(offset.saturating_add(1));
        let is_due = self
            .places
            .last()
            .is_none_or(|&(number, at)| first > number && offset >= at.saturating_add(self.step));
        if !is_due {
            return;
        }
        if self.places.len() >= PLACES_MAX {
            let mut at = 0;
            self.places.retain(|_| {
                at += 1;
                at % 2 == 1
            });
            let span = self.places.first().map_or(0, |&(_, first)| offset - first);
            self.step = span / (PLACES_MAX as u64 / 2);
        }
        self.places.push((first, offset));
    }

    /// From the last place that is noted at an event or before it, up to the first behind it.
    fn around(&self, number: u64) -> Option<Range<u64>> {
        let behind = self.places.partition_point(|&(first, _)| first <= number);
        let (_, from) = self.places.get(behind.checked_sub(1)?)?;
        let to = self
            .places
            .get(behind)
            .map_or(self.end_offset, |&(_, to)| to);
        Some(*from..to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_begins_not_far_before_what_is_wanted() {
        let mut feed = Feed::default();
        // Batches of two events, each 10 offsets after the last.
        let batches = 10_000_u64;
        for batch in 0..batches {
            feed.note((2 * batch + 1, 2 * batch + 2), 10 * batch + 5);
            assert!(feed.places.len() <= PLACES_MAX);
        }
        assert_eq!(feed.end, 2 * batches);
        for batch in (0..batches).step_by(7) {
            let (first, offset) = (2 * batch + 1, 10 * batch + 5);
            for number in [first, first + 1] {
                let around = feed.around(number).unwrap();
                assert!(around.contains(&offset), "{number}: {around:?}");
                let from = around.start;
                assert!(offset - from <= 10 * batches / 8, "{number}: {from}");
            }
        }
        assert_eq!(Feed::default().around(1), None);
        // What comes again, or goes back, changes nothing.
        let places = feed.places.clone();
        feed.note((1, 2), 10 * batches + 5_000);
        assert_eq!((feed.places, feed.end), (places, 2 * batches));
    }

    #[test]
    fn what_was_never_noted_is_not_looked_for() {
        let (places, channel) = (Places::default(), ChannelName::parse("a").unwrap());
        let feed = FeedId([1; 32]);
        let wanted = |after, to| Wanted { feed, after, to };
        assert_eq!(places.find(&channel, wanted(0, 9)), Found::Nothing);
        places.note_of(("a", feed), (5, 8), 40);
        // Not more than there is: nothing behind it is gone through for the others.
        let found = Found::Within(40..41, wanted(4, 8));
        assert_eq!(places.find(&channel, wanted(4, u64::MAX)), found);
        for (after, to) in [(3, 8), (8, 9), (u64::MAX, u64::MAX), (7, 7)] {
            assert_eq!(places.find(&channel, wanted(after, to)), Found::Nothing);
        }
        // Another channel's log is none of its business, although it is asked for there.
        let other = ChannelName::parse("b").unwrap();
        assert_eq!(places.find(&other, wanted(4, 8)), Found::Nothing);
        places.note_of(("b", FeedId([2; 32])), (1, 8), 7);
        assert_eq!(places.find(&other, wanted(4, 8)), Found::Nothing);
        assert_eq!(places.lock().feeds, 2);
        places.set_looking(&other, true);
        assert_eq!(places.find(&channel, wanted(4, 8)), found);
        places.set_looking(&channel, true);
        assert_eq!(places.find(&channel, wanted(4, 8)), Found::Later);
        places.set_looking(&channel, false);
        assert_eq!(places.find(&channel, wanted(4, 8)), found);
    }

    #[test]
    fn who_goes_on_does_so_within_where_it_can_be() {
        let (places, channel) = (Places::default(), ChannelName::parse("a").unwrap());
        let feed = FeedId([1; 32]);
        for batch in 0..9 {
            places.note_of(("a", feed), (batch + 1, batch + 1), 10 * batch);
        }
        let wanted = Wanted {
            feed,
            after: 4,
            to: 7,
        };
        let aim = |cursor| places.aim((&channel, cursor), wanted, false);
        let from = |from| {
            Ok(Aim {
                wanted,
                from,
                first_before: 50,
            })
        };
        assert_eq!(aim(Cursor::Start), from(40));
        assert_eq!(aim(Cursor::Offset(45)), from(45));
        // Nobody has it go through the log elsewhere, before it or behind.
        for before in [0, 39] {
            assert_eq!(aim(Cursor::Offset(before)), from(40));
        }
        for behind in [50, u64::MAX] {
            assert_eq!(aim(Cursor::Offset(behind)), Err(Looked::default()));
        }
        let none = Wanted { after: 9, ..wanted };
        let asked = (&channel, Cursor::Offset(7));
        let nothing = Looked::default();
        assert_eq!(places.aim(asked, none, false), Err(nothing.clone()));
        let again = Looked {
            next: Some(7),
            ..nothing
        };
        assert_eq!(places.aim(asked, none, true), Err(again));
    }
}
