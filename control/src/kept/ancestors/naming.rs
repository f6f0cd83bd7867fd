//! What batches in the logs name of other feeds, and who is asked for that.

use super::{
    Ancestors, Around, EXPECTED_MAX, End, FETCHED_BYTES_MAX, FETCHED_WITHIN, Past, Unfound,
    names::{Due, Ended, Entity, Which},
    search::{How, Search, Times},
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::time::Instant;
use virga_state::{
    LogName,
    batch::{FeedId, Observed, Verified},
    history::Wanted,
};

/// Turns that feeds have at a time, of each kind: there may be so many that the logs would wait for that.
const TURNS_MAX: usize = 64;
/// So often it is looked whose turn it is for that: each search that begins may change it.
const LOOKS_MAX: usize = 8;

/// Where a feed that is named would be.
enum Whose {
    /// In a log that is on this node alone.
    Log(usize),
    /// In none that gets it from other nodes so: in one that several nodes hold, or that is kept no more.
    Elsewhere,
    /// That is not known.
    Unknown,
}

/// Notes which feeds entities would have in logs.
pub(super) fn expect<'a>(
    expected: &mut BTreeMap<FeedId, Option<usize>>,
    logs: impl Iterator<Item = (Option<usize>, &'a LogName)>,
    entities: impl Iterator<Item = &'a [u8; 32]> + Clone,
) {
    for (log, name) in logs {
        for entity in entities.clone() {
            if expected.len() >= EXPECTED_MAX {
                return;
            }
            expected.insert(FeedId::of(name, entity), log);
        }
    }
}

/// How much of a feed may still be taken; none while nobody is asked for it.
fn bytes_left(past: Option<&Past>, now: Instant) -> usize {
    match past {
        Some(past) if past.pause.is_some_and(|until| now < until) => 0,
        Some(past) if now < past.began + FETCHED_WITHIN => {
            FETCHED_BYTES_MAX.saturating_sub(past.bytes)
        }
        _ => FETCHED_BYTES_MAX,
    }
}

impl<A: Around + Clone + 'static> Ancestors<A> {
    /// A batch in a log names what its entity had observed; what of it no log here has is asked for in its turn. Whether
    /// it is to be told that there is no place for some of it.
    pub(in crate::kept) fn names(&mut self, log: usize, batch: &Verified) -> bool {
        let (now, namer) = (Instant::now(), batch.statement().entity);
        let mut is_told = false;
        for &Observed { feed, count, .. } in &batch.batch().frontier {
            is_told |= self.note_name((feed, count), (namer, log), now);
        }
        is_told
    }

    fn note_name(
        &mut self,
        (feed, count): (FeedId, u64),
        by: (Entity, usize),
        now: Instant,
    ) -> bool {
        match self.whose(feed) {
            _ if self.has(feed, count) => false,
            Whose::Log(_) => self.names.note((feed, count), by, now),
            Whose::Unknown => self.names.note_unknown((feed, count), by, now),
            Whose::Elsewhere => false,
        }
    }

    fn has(&self, feed: FeedId, count: u64) -> bool {
        self.ends.get(&feed).is_some_and(|end| end.count >= count)
    }

    fn whose(&self, feed: FeedId) -> Whose {
        let known = self.ends.get(&feed).map(|end| Some(end.log));
        match known.or_else(|| self.expected.get(&feed).copied()) {
            Some(Some(log)) if self.logs.contains_key(&log) => Whose::Log(log),
            Some(_) => Whose::Elsewhere,
            None => Whose::Unknown,
        }
    }

    /// Has somebody look for what is named, where there is a place for it, once it is known of all logs what they have.
    /// What is not to be had, that is to be told of: the log whose batch names it, and why.
    pub(in crate::kept) fn begin_names(&mut self, now: Instant) -> Vec<(usize, Unfound)> {
        let mut told = self.sort_names(now);
        let ends = &self.ends;
        let is_there = |feed, count| ends.get(&feed).is_some_and(|end| end.count >= count);
        self.names.come(now, is_there);
        let late = self.names.forget_late(now, is_there);
        told.extend(late.into_iter().map(|log| (log, Unfound::Late)));
        self.names.pass_by(now);
        for which in [Which::Known, Which::Unknown] {
            let mut turns = TURNS_MAX;
            for _ in 0..LOOKS_MAX {
                turns = match turns {
                    0 => break,
                    _ => self.begin_few(which, (now, turns), &mut told),
                };
            }
        }
        let dropped = self.names.unknown.take_dropped().into_iter();
        told.extend(dropped.map(|log| (log, Unfound::Full)));
        told
    }

    /// So many turns at most, until one is looked for; how many are left.
    fn begin_few(
        &mut self,
        which: Which,
        (now, mut turns): (Instant, usize),
        told: &mut Vec<(usize, Unfound)>,
    ) -> usize {
        let (gaps, past) = (&self.gaps, &self.past);
        let is_free = |feed| !gaps.contains_key(&feed) && bytes_left(past.get(&feed), now) > 0;
        let mut is_passed = false;
        for due in self.names.due(which, (now, turns), is_free) {
            turns -= 1;
            let log = match self.whose(due.feed) {
                _ if self.has(due.feed, due.most) => None,
                Whose::Log(log) => Some(log),
                Whose::Unknown => due.else_in(),
                Whose::Elsewhere => None,
            };
            let Some(log) = log else {
                self.names.pass_over(&due);
                is_passed = true;
                continue;
            };
            let Err(why) = self.begin_name(log, &due, now) else {
                return turns;
            };
            if let Some(why) = self.names.not_begun(&due, why, now) {
                told.push((due.named_in, why));
            }
        }
        // What was passed over may be another's turn, at once; those that are left wait for the next time.
        turns * usize::from(is_passed)
    }

    /// Notes what logs named when they were opened, and looks again whose feeds are, where more is known of that now. For
    /// what there is no place, and in which logs it is named.
    fn sort_names(&mut self, now: Instant) -> Vec<(usize, Unfound)> {
        let mut named = std::mem::take(&mut self.remembered);
        let known = (self.ends.len(), self.expected.len());
        if std::mem::replace(&mut self.sorted, known) != known {
            let (ends, expected) = (&self.ends, &self.expected);
            let is_known = |feed| ends.contains_key(&feed) || expected.contains_key(&feed);
            for (feed, one) in self.names.unknown.take_known(is_known) {
                let by = one.all();
                named.extend(by.map(|by| (by.log, (feed, by.namer), by.most)));
            }
        }
        let mut told = Vec::new();
        for (log, (feed, namer), count) in named {
            if self.note_name((feed, count), (namer, log), now) {
                told.push((log, Unfound::Full));
            }
        }
        told
    }

    /// Has somebody look for the events behind a feed's end in a log, or all from its first on, up to what is named.
    fn begin_name(&mut self, log: usize, due: &Due, now: Instant) -> Result<(), Unfound> {
        let (feed, namer, to) = (due.feed, due.namer, due.most);
        if !self.names.can_count(namer, now) {
            return Err(Unfound::Full);
        }
        let place = self.logs.get(&log).ok_or(Unfound::Failed)?;
        let end = match self.ends.get(&feed) {
            Some(end) => *end,
            None if self.takes_first(log) => End::before_all(feed, log),
            None => return Err(Unfound::Unsure),
        };
        self.last_number += 1;
        let of_feed = bytes_left(self.past.get(&feed), now);
        tracing::info!(channel = %place.channel, after = end.count, to, "events are named that are not here: asking other nodes for them");
        let search = Search {
            around: self.around.clone(),
            times: Times::until(due.until),
            how: How::Named,
            channel: place.channel.clone(),
            wanted: Wanted {
                feed,
                after: end.count,
                to,
            },
            head: end.head,
            since_unix_ns: end.time_unix_ns,
            bytes_left: of_feed.min(self.names.bytes_left(&namer, now)),
            silent: Arc::clone(&self.silent_of_names),
            log,
            number: self.last_number,
            to: self.to.clone(),
        };
        let search = self.runtime.spawn(search.run()).abort_handle();
        let into = (log, self.last_number);
        self.names.begin((feed, namer), into, search);
        Ok(())
    }

    /// Nobody looks for what is named any more.
    pub(in crate::kept) fn name_ended(
        &mut self,
        feed: FeedId,
        number: u64,
        found: Result<(), Unfound>,
    ) -> Ended {
        let ended = self.names.ended((feed, number), found, Instant::now());
        if ended == Ended::NotThis {
            return ended;
        }
        if !self.gaps.contains_key(&feed) {
            self.coming.remove(feed);
        }
        // The log is where others are: from here on it follows the feed as any that came by itself.
        let end = self.ends.get_mut(&feed).filter(|_| found.is_ok());
        if let Some(end) = end {
            end.is_live = true;
        }
        ended
    }

    /// A log is kept no more: nobody is asked for what it lacks. What waits in front of it is given up by who has it.
    pub(in crate::kept) fn leave(&mut self, log: usize) {
        for feed in self.names.leave(log) {
            if !self.gaps.contains_key(&feed) {
                self.coming.remove(feed);
            }
        }
        self.remembered.retain(|(of, ..)| *of != log);
        if let Some(place) = self.logs.remove(&log) {
            self.left.insert(log, place);
        }
    }

    /// A log that was kept no more is kept again.
    pub(in crate::kept) fn take_in(&mut self, log: usize) {
        if let Some(place) = self.left.remove(&log) {
            let of_log = [(Some(log), &place.name)].into_iter();
            expect(&mut self.expected, of_log, self.entities.iter());
            self.logs.insert(log, place);
        }
    }

    /// A feed that waits in front of a log.
    pub(in crate::kept) fn any_of(&self, log: usize) -> Option<FeedId> {
        let mut gaps = self.gaps.iter();
        let gap = gaps.find(|(_, gap)| gap.log == log);
        gap.map(|(feed, _)| *feed)
    }
}

#[cfg(test)]
mod tests;
