//! Events that came before those that they follow: they wait, while these are asked for at other nodes.
//!
//! A signed batch names the head before it. Where a log lacks the events in front of a batch, since this node was away
//! say, the batch waits, with what its entity says next, and the nodes that may keep the channel are asked for those
//! events, from the last one on that the log has. What they give is taken if the same entity signed it and it follows that
//! head: nobody who gives it has to be believed. Other entities' events go on meanwhile. Where nobody has them, nobody
//! answers, or too much waits or is missing, the log goes on without them, and counts why; of such a feed nobody is asked
//! for a while. Of an entity that a log has nothing of, as
//! far back as is looked, the log begins with what comes.
//!
//! A batch also names what its entity had observed of other feeds. Where the log of such a feed's channel, if one is here,
//! ends before that, the nodes that may keep the channel are asked for the feed's events from there on, see [`names`], and
//! [`unknown`] where it is not known whose it is; the batch itself does not wait. What came so is behind it in the log. A
//! live copy that comes later is not appended again, as the newest batches of all logs are remembered; what was forgotten of
//! them would be.

mod back;
mod coming;
mod known;
mod names;
mod naming;
mod search;
mod unfound;
mod unknown;

use super::{places::Places, writer::Input};
pub(super) use back::Back;
use bytes::Bytes;
pub(super) use coming::Coming;
use known::Known;
pub(super) use names::Ended;
use names::{Entity, Names};
use naming::expect;
pub(super) use search::Mesh;
use search::{Around, How, Search, Silent, Times};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{runtime::Handle, sync::mpsc::WeakSender, task::AbortHandle, time::Instant};
pub use unfound::Unfound;
use virga_state::{
    LogName,
    batch::{FeedId, Statement, Verified},
    bundle,
    format::Hash,
    history::Wanted,
    io::clock,
    limits::CAUSAL_FEEDS_MAX,
};
use virga_transport::ChannelName;

/// Bytes of all events that wait.
const WAITING_BYTES_MAX: usize = 8 << 20;
/// Feeds whose events wait at a time.
const GAPS_MAX: usize = 128;
/// Of those, feeds of one entity.
const GAPS_PER_ENTITY_MAX: usize = 32;
/// Feeds of which somebody looks for what is missing at a time; the others wait for their turn.
const SEARCHES_MAX: usize = 16;
/// Of those, feeds of one entity.
const SEARCHES_PER_ENTITY_MAX: usize = 4;
/// A feed waits for its turn for so long.
const TURN_WITHIN: Duration = Duration::from_secs(120);
/// An event waits for so long, also where there are gaps behind gaps.
const WAITS_WITHIN: Duration = Duration::from_secs(TURN_WITHIN.as_secs() + 120);
/// What an entity says waits for so long for what it said before, where nothing of that came by itself: a log has had all
/// of it from other nodes, as others name it.
const FIRST_WITHIN: Duration = Duration::from_secs(10);
/// The same where none of it is there, if that many events are missing at the most; else it does not wait.
const FIRST_EVENTS_MAX: u64 = 10_000;
/// Feeds that entities known here would have on the channels of the logs here, beside those that there are.
const EXPECTED_MAX: usize = 16 << 10;
/// Bytes of missing events that are taken of a feed in [`FETCHED_WITHIN`]: its entity may publish no faster by leaving
/// events out.
const FETCHED_BYTES_MAX: usize = 256 << 20;
/// See [`FETCHED_BYTES_MAX`].
const FETCHED_WITHIN: Duration = Duration::from_secs(300);
/// So long nobody is asked for what is missing of a feed, once nothing came of it.
const PAUSE: Duration = Duration::from_secs(30);

/// What is to be done with a batch that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    /// It is appended.
    Next,
    /// It waits.
    Waits,
    /// It is appended, although events are missing in front of it.
    Without(Unfound),
    /// Too much waits: what does of a feed in a log is appended, and it is looked again.
    Evict(usize, FeedId),
}

/// Where a feed ends in its log.
#[derive(Clone, Copy, Debug)]
struct End {
    log: usize,
    count: u64,
    head: Hash,
    time_unix_ns: u64,
    /// Whether any of it came while no other node was asked for it, or all that others named of it is there.
    is_live: bool,
}

impl End {
    /// Of a feed of which a log has nothing.
    fn before_all(feed: FeedId, log: usize) -> Self {
        Self {
            log,
            count: 0,
            head: feed.0,
            time_unix_ns: clock::now_unix_ns(),
            is_live: false,
        }
    }
}

/// A log whose feeds are known.
struct Log {
    channel: ChannelName,
    name: LogName,
    /// What it never had anything of may come to it from the first event on: it is known what it had, and nothing is let
    /// go for it.
    takes_first: bool,
}

/// Batches that wait, and who looks for those before them.
struct Gap {
    entity: [u8; 32],
    /// Which one: a later one of the feed has another number.
    number: u64,
    log: usize,
    channel: ChannelName,
    /// Number of the last event that is missing.
    last: u64,
    since: Instant,
    /// Its events came then.
    begun: Instant,
    /// They wait until then at the longest.
    until: Instant,
    /// In the order in which they came.
    waiting: VecDeque<Bytes>,
    bytes: usize,
    /// None: its turn has not come.
    search: Option<AbortHandle>,
}

/// What came of asking for a feed's events.
struct Past {
    began: Instant,
    bytes: usize,
    /// Nobody is asked until then.
    pause: Option<Instant>,
}

impl Drop for Gap {
    fn drop(&mut self) {
        if let Some(search) = &self.search {
            search.abort();
        }
    }
}

/// See the module.
pub(super) struct Ancestors<A> {
    logs: BTreeMap<usize, Log>,
    /// Those that are kept no more, by command.
    left: BTreeMap<usize, Log>,
    ends: BTreeMap<FeedId, End>,
    entities: BTreeSet<Entity>,
    /// Feeds that may be named, and in which log they would be; none: in one that several nodes hold, which gets them by
    /// itself.
    expected: BTreeMap<FeedId, Option<usize>>,
    /// The logs that several nodes hold.
    replicated: Vec<LogName>,
    known: Known,
    places: Places,
    names: Names,
    /// How many feeds were known when it was looked last whose those are that are named.
    sorted: (usize, usize),
    /// What batches name that logs had when they were opened.
    remembered: Vec<(usize, (FeedId, Entity), u64)>,
    gaps: BTreeMap<FeedId, Gap>,
    past: BTreeMap<FeedId, Past>,
    silent: Arc<Silent>,
    /// Those that answer nothing about what is named.
    silent_of_names: Arc<Silent>,
    coming: Coming,
    waiting_bytes: usize,
    last_number: u64,
    around: A,
    to: WeakSender<Input>,
    runtime: Handle,
}

impl<A: Around + Clone + 'static> Ancestors<A> {
    pub(super) fn new(
        around: A,
        (coming, places): (Coming, Places),
        to: WeakSender<Input>,
        runtime: Handle,
    ) -> Self {
        Self {
            logs: BTreeMap::new(),
            left: BTreeMap::new(),
            ends: BTreeMap::new(),
            entities: BTreeSet::new(),
            expected: BTreeMap::new(),
            replicated: Vec::new(),
            known: Known::default(),
            places,
            names: Names::default(),
            sorted: (0, 0),
            remembered: Vec::new(),
            gaps: BTreeMap::new(),
            past: BTreeMap::new(),
            silent: Arc::default(),
            silent_of_names: Arc::default(),
            coming,
            waiting_bytes: 0,
            last_number: 0,
            around,
            to,
            runtime,
        }
    }

    /// Notes what a log has of a feed: a batch that it took, at that offset.
    pub(super) fn note(
        &mut self,
        (log, offset): (usize, u64),
        batch: &Verified,
        time_unix_ns: u64,
    ) {
        let statement = batch.statement();
        self.known.add(statement);
        self.places.note(statement, offset);
        self.note_end(log, statement, time_unix_ns);
    }

    fn note_end(&mut self, log: usize, statement: &Statement, time_unix_ns: u64) {
        let feed = statement.feed();
        let is_asked_for = self.names.is_searched(feed) || self.gaps.contains_key(&feed);
        let known = self.ends.get(&feed);
        let end = End {
            log,
            count: statement.last(),
            head: statement.head,
            time_unix_ns,
            is_live: !is_asked_for || known.is_some_and(|known| known.is_live),
        };
        let is_new = match known {
            Some(known) => known.count < end.count,
            None => self.ends.len() < CAUSAL_FEEDS_MAX,
        };
        if is_new {
            self.ends.insert(feed, end);
        }
        self.note_entity(statement.entity);
    }

    /// An entity says something on a channel that is kept here.
    pub(super) fn note_entity(&mut self, entity: Entity) {
        if self.entities.len() < CAUSAL_FEEDS_MAX && self.entities.insert(entity) {
            let logs = self.logs.iter();
            let logs = logs.map(|(log, place)| (Some(*log), &place.name));
            let replicated = self.replicated.iter().map(|name| (None, name));
            let all = replicated.chain(logs);
            expect(&mut self.expected, all, [&entity].into_iter());
        }
    }

    /// Several nodes hold a log, of which this is one: nobody is asked for what it has not got yet.
    pub(super) fn replicated(&mut self, channel: &ChannelName) {
        if let Ok(name) = LogName::parse(channel.as_str()) {
            let of_log = [(None, &name)].into_iter();
            expect(&mut self.expected, of_log, self.entities.iter());
            self.replicated.push(name);
        }
    }

    /// A log was looked through when it was opened.
    pub(super) fn looked(&mut self, (log, channel): (usize, &ChannelName), back: Back) {
        for last in &back.newest.last {
            self.note_end(log, last.batch.statement(), last.time_unix_ns);
        }
        self.known.add_all(back.known);
        let named = back.named.into_each();
        self.remembered
            .extend(named.map(|(key, count)| (log, key, count)));
        let Ok(name) = LogName::parse(channel.as_str()) else {
            return;
        };
        let of_log = [(Some(log), &name)].into_iter();
        expect(&mut self.expected, of_log, self.entities.iter());
        let place = Log {
            channel: channel.clone(),
            name,
            takes_first: back.newest.is_whole && !back.lets_go,
        };
        self.logs.insert(log, place);
    }

    /// Whether a batch is among the newest that the logs have.
    pub(super) fn knows(&self, statement: &Statement) -> bool {
        self.known.has(statement)
    }

    /// Where a feed ends; of one that is named, and that the log never had anything of, before its first event.
    fn end_in(&self, feed: FeedId, log: usize) -> Option<End> {
        let known = self.ends.get(&feed).copied();
        known.or_else(|| {
            let waits = || self.gaps.contains_key(&feed);
            let is_first = waits() || self.names.has(feed) && self.takes_first(log);
            is_first.then(|| End::before_all(feed, log))
        })
    }

    /// Whether a feed that a log never had anything of may come to it from its first event on.
    fn takes_first(&self, log: usize) -> bool {
        let has_room = self.ends.len() < CAUSAL_FEEDS_MAX;
        has_room && self.logs.get(&log).is_some_and(|log| log.takes_first)
    }

    /// Looks whether a log has what a batch follows, which waits since then; what waits is kept here.
    pub(super) fn arrived(
        &mut self,
        (log, channel): (usize, &ChannelName),
        message: &Bytes,
        since: Instant,
    ) -> Arrived {
        let Ok((batch, payloads)) = bundle::parse(message) else {
            return Arrived::Next;
        };
        let statement = &batch.signed.statement;
        let (feed, first, entity) = (statement.feed(), statement.first, statement.entity);
        if !self.gaps.contains_key(&feed) {
            let Some(end) = self.end_in(feed, log) else {
                return Arrived::Next;
            };
            let payloads = payloads.into_iter().map(|range| &message[range]);
            // What is not as it was signed is refused where it is appended.
            if first <= end.count.saturating_add(1) || batch.verify(payloads).is_err() {
                return Arrived::Next;
            }
            // Nobody has what an entity says wait for long by naming what it said long ago.
            if end.count == 0 && first - 1 > FIRST_EVENTS_MAX {
                self.names.suspend(feed);
                self.coming.remove(feed);
                return Arrived::Next;
            }
            let of_entity = self.gaps.values();
            let of_entity = of_entity.filter(|gap| gap.entity == entity);
            if self.gaps.len() >= GAPS_MAX || of_entity.count() >= GAPS_PER_ENTITY_MAX {
                return Arrived::Without(Unfound::Full);
            }
            if let Err(why) = self.bytes_left(feed) {
                return Arrived::Without(why);
            }
            let until = since
                + match end.is_live {
                    true => WAITS_WITHIN,
                    false => FIRST_WITHIN,
                };
            if Instant::now() >= until {
                return Arrived::Without(Unfound::Late);
            }
            // What it follows is looked for now, and more of it is not.
            self.names.suspend(feed);
            self.last_number += 1;
            let gap = Gap {
                entity,
                number: self.last_number,
                log,
                channel: channel.clone(),
                last: first - 1,
                since: Instant::now(),
                until,
                begun: since,
                waiting: VecDeque::new(),
                bytes: 0,
                search: None,
            };
            self.gaps.insert(feed, gap);
            self.begin_next();
        }
        if self.waiting_bytes + message.len() > WAITING_BYTES_MAX {
            // The one that takes most makes room for the others.
            let mut gaps = self.gaps.iter();
            let first = gaps.next();
            let most = gaps.fold(first, |most, gap| {
                let is_more = most.is_none_or(|(_, most)| gap.1.bytes > most.bytes);
                if is_more { Some(gap) } else { most }
            });
            if let Some((&most, gap)) = most {
                let log = gap.log;
                self.pause(most);
                return Arrived::Evict(log, most);
            }
        }
        self.waiting_bytes += message.len();
        if let Some(gap) = self.gaps.get_mut(&feed) {
            gap.bytes += message.len();
            gap.waiting.push_back(message.clone());
        }
        Arrived::Waits
    }

    /// How much of a feed's missing events may be taken now.
    fn bytes_left(&mut self, feed: FeedId) -> Result<usize, Unfound> {
        let now = Instant::now();
        self.past.retain(|_, past| {
            now < past.began + FETCHED_WITHIN || past.pause.is_some_and(|until| now < until)
        });
        match self.past.get(&feed) {
            Some(past) if past.pause.is_some_and(|until| now < until) => Err(Unfound::Often),
            Some(past) if past.bytes >= FETCHED_BYTES_MAX => Err(Unfound::Full),
            Some(past) => Ok(FETCHED_BYTES_MAX - past.bytes),
            // Whom it knows it knows for a few minutes.
            None if self.past.len() >= CAUSAL_FEEDS_MAX => Err(Unfound::Full),
            None => Ok(FETCHED_BYTES_MAX),
        }
    }

    fn past(&mut self, feed: FeedId) -> &mut Past {
        self.past.entry(feed).or_insert_with(|| Past {
            began: Instant::now(),
            bytes: 0,
            pause: None,
        })
    }

    /// Nothing came of asking for a feed's events.
    pub(super) fn pause(&mut self, feed: FeedId) {
        self.past(feed).pause = Some(Instant::now() + PAUSE);
    }

    /// Missing events of a feed were taken.
    pub(super) fn took(&mut self, feed: FeedId, bytes: usize) {
        // More of them come, as long as somebody looks for them.
        let named = self.names.searched_for(feed);
        let named = named.and_then(|log| self.logs.get(&log));
        let gap = self.gaps.get(&feed).map(|gap| &gap.channel);
        if let Some(channel) = gap.or(named.map(|log| &log.channel)) {
            self.coming.add(channel, feed);
        }
        self.names.took(feed, bytes, Instant::now());
        self.past(feed).bytes += bytes;
    }

    /// Whether a feed is looked for as others name it, and nothing waits for it.
    pub(super) fn is_named(&self, feed: FeedId) -> bool {
        self.names.is_searched(feed)
    }

    /// Bytes that wait in front of a log.
    pub(super) fn waiting_bytes(&self, log: usize) -> u64 {
        let gaps = self.gaps.values().filter(|gap| gap.log == log);
        gaps.map(|gap| gap.bytes as u64).sum()
    }

    /// Has somebody look for what is missing of the feeds whose turn has come.
    fn begin_next(&mut self) {
        loop {
            let mut searches = BTreeMap::<[u8; 32], usize>::new();
            for gap in self.gaps.values().filter(|gap| gap.search.is_some()) {
                *searches.entry(gap.entity).or_default() += 1;
            }
            if searches.values().sum::<usize>() >= SEARCHES_MAX {
                return;
            }
            let of_entity = |gap: &Gap| searches.get(&gap.entity).copied().unwrap_or(0);
            let waiting = self.gaps.iter().filter(|(_, gap)| {
                gap.search.is_none() && of_entity(gap) < SEARCHES_PER_ENTITY_MAX
            });
            let next = waiting.min_by_key(|(_, gap)| gap.number);
            let Some(feed) = next.map(|(feed, _)| *feed) else {
                return;
            };
            if !self.begin(feed) {
                return;
            }
        }
    }

    /// Has somebody look for the events between a feed's end and what waits of it; whether there is anything to look for.
    fn begin(&mut self, feed: FeedId) -> bool {
        let bytes_left = self.bytes_left(feed).unwrap_or(0);
        // Whose events wait has an end here.
        let log = self.gaps.get(&feed).map(|gap| gap.log);
        let end = log.and_then(|log| self.end_in(feed, log));
        let (Some(gap), Some(end)) = (self.gaps.get_mut(&feed), end) else {
            return false;
        };
        let (channel, last) = (&gap.channel, gap.last);
        tracing::info!(%channel, after = end.count, to = last, "events are missing before those that came: asking other nodes for them");
        let how = match end.count {
            0 => How::Named,
            _ => How::Followed,
        };
        let search = Search {
            around: self.around.clone(),
            times: Times::until(gap.until),
            how,
            channel: channel.clone(),
            wanted: Wanted {
                feed,
                after: end.count,
                to: last,
            },
            head: end.head,
            since_unix_ns: end.time_unix_ns,
            bytes_left,
            silent: match how {
                How::Followed => Arc::clone(&self.silent),
                How::Named => Arc::clone(&self.silent_of_names),
            },
            log: gap.log,
            number: gap.number,
            to: self.to.clone(),
        };
        gap.search = Some(self.runtime.spawn(search.run()).abort_handle());
        true
    }

    /// Has somebody look for what is missing where there is a place again; a feed whose turn did not come in time, and in
    /// which log.
    pub(super) fn turn(&mut self) -> Option<(usize, FeedId)> {
        self.begin_next();
        let now = Instant::now();
        let mut late = self.gaps.iter().filter(|(_, gap)| gap.search.is_none());
        let late = late.find(|(_, gap)| now >= gap.until.min(gap.since + TURN_WITHIN));
        late.map(|(feed, gap)| (gap.log, *feed))
    }

    /// Whether a log has all that is before a batch of that feed, and nothing of it.
    pub(super) fn is_next(&self, log: usize, feed: FeedId, message: &[u8]) -> bool {
        let Some(end) = self.end_in(feed, log) else {
            return false;
        };
        bundle::parse(message).is_ok_and(|(batch, _)| {
            let statement = &batch.signed.statement;
            let is_after = Some(statement.first) == end.count.checked_add(1);
            statement.feed() == feed && is_after && statement.parent == end.head
        })
    }

    /// Whether a feed ends behind a batch, or with it.
    pub(super) fn is_behind(&self, feed: FeedId, message: &[u8]) -> bool {
        let end = self.ends.get(&feed).map_or(0, |end| end.count);
        bundle::parse(message).is_ok_and(|(batch, _)| batch.signed.statement.last() <= end)
    }

    /// Since when what waits of a feed does.
    pub(super) fn waits_since(&self, feed: FeedId) -> Option<Instant> {
        Some(self.gaps.get(&feed)?.begun)
    }

    /// Gives what waits of a feed, where it is that gap; none looks for what is before it any more.
    pub(super) fn end(&mut self, feed: FeedId, number: u64) -> VecDeque<Bytes> {
        match self.gaps.get(&feed) {
            Some(gap) if gap.number == number => self.give_up(feed),
            _ => VecDeque::new(),
        }
    }

    /// The same whichever it is.
    pub(super) fn give_up(&mut self, feed: FeedId) -> VecDeque<Bytes> {
        let Some(mut gap) = self.gaps.remove(&feed) else {
            return VecDeque::new();
        };
        self.coming.remove(feed);
        self.waiting_bytes -= gap.bytes;
        std::mem::take(&mut gap.waiting)
    }

    /// A feed that waits, and in which log.
    pub(super) fn any(&self) -> Option<(usize, FeedId)> {
        let gap = self.gaps.first_key_value();
        gap.map(|(feed, gap)| (gap.log, *feed))
    }
}

#[cfg(test)]
pub(super) mod tests;
