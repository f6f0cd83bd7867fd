//! Events that came before those that they follow: they wait, while these are asked for at other nodes.
//!
//! A signed batch names the head before it. Where a log lacks the events in front of a batch, since this node was away
//! say, the batch waits, with what its entity says next, and the nodes that may keep the channel are asked for those
//! events, from the last one on that the log has. What they give is taken if the same entity signed it and it follows that
//! head: nobody who gives it has to be believed. Other entities' events go on meanwhile. Where nobody has them, nobody
//! answers, or too much waits or is missing, the log goes on without them, and counts why; of such a feed nobody is asked
//! for a while. Of an entity that a log has nothing of, as
//! far back as is looked, the log begins with what comes.

mod search;

use super::writer::Input;
use bytes::Bytes;
pub(super) use search::Mesh;
use search::{Around, Search, Silent, Times};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{runtime::Handle, sync::mpsc::WeakSender, task::AbortHandle, time::Instant};
use virga_state::{
    batch::{FeedId, Verified},
    bundle,
    format::Hash,
    history::Wanted,
    limits::CAUSAL_FEEDS_MAX,
};
use virga_transport::ChannelName;

/// Bytes of each log's newest segments that are looked through for where feeds end, when the node starts.
pub(super) const LOOKED_BACK_BYTES: u64 = 256 << 20;
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
/// Bytes of missing events that are taken of a feed in [`FETCHED_WITHIN`]: its entity may publish no faster by leaving
/// events out.
const FETCHED_BYTES_MAX: usize = 256 << 20;
/// See [`FETCHED_BYTES_MAX`].
const FETCHED_WITHIN: Duration = Duration::from_secs(300);
/// So long nobody is asked for what is missing of a feed, once nothing came of it.
const PAUSE: Duration = Duration::from_secs(30);

/// Why a log went on without events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfound {
    /// No node that may keep the channel has them.
    Nobody,
    /// None that has them answered in time.
    Late,
    /// What was given is not what was signed, or does not follow what is there.
    Wrong,
    /// Too much waited, or is missing.
    Full,
    /// Nothing came of asking for events of the same feed a moment ago.
    Often,
    /// Its entity may not publish there any more.
    NoRight,
    /// The log could not take them, or the node stopped.
    Failed,
}

impl Unfound {
    /// Every one there is.
    pub const ALL: [Self; 7] = [
        Self::Nobody,
        Self::Late,
        Self::Wrong,
        Self::Full,
        Self::Often,
        Self::NoRight,
        Self::Failed,
    ];

    /// Its label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Late => "late",
            Self::Wrong => "wrong",
            Self::Full => "full",
            Self::Often => "often",
            Self::NoRight => "no_right",
            Self::Failed => "failed",
        }
    }
}

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

/// Feeds of which a log gets what it lacks from another node at this moment: whoever asks this node for that may ask
/// again. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Coming(Arc<Mutex<BTreeSet<FeedId>>>);

impl Coming {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<FeedId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has(&self, feed: FeedId) -> bool {
        self.lock().contains(&feed)
    }
}

/// Where a feed ends in its log.
#[derive(Clone, Copy, Debug)]
struct End {
    count: u64,
    head: Hash,
    time_unix_ns: u64,
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
    ends: BTreeMap<FeedId, End>,
    gaps: BTreeMap<FeedId, Gap>,
    past: BTreeMap<FeedId, Past>,
    silent: Arc<Silent>,
    coming: Coming,
    waiting_bytes: usize,
    last_number: u64,
    around: A,
    to: WeakSender<Input>,
    runtime: Handle,
}

impl<A: Around + Clone + 'static> Ancestors<A> {
    pub(super) fn new(around: A, coming: Coming, to: WeakSender<Input>, runtime: Handle) -> Self {
        Self {
            ends: BTreeMap::new(),
            gaps: BTreeMap::new(),
            past: BTreeMap::new(),
            silent: Arc::default(),
            coming,
            waiting_bytes: 0,
            last_number: 0,
            around,
            to,
            runtime,
        }
    }

    /// Notes what a log has of a feed.
    pub(super) fn note(&mut self, batch: &Verified, time_unix_ns: u64) {
        let statement = batch.statement();
        let (feed, end) = (
            statement.feed(),
            End {
                count: statement.last(),
                head: statement.head,
                time_unix_ns,
            },
        );
        let is_new = match self.ends.get(&feed) {
            Some(known) => known.count < end.count,
            None => self.ends.len() < CAUSAL_FEEDS_MAX,
        };
        if is_new {
            self.ends.insert(feed, end);
        }
    }

    /// Looks whether a log has what a batch follows; what waits is kept here.
    pub(super) fn arrived(
        &mut self,
        (log, channel): (usize, &ChannelName),
        message: &Bytes,
    ) -> Arrived {
        let Ok((batch, payloads)) = bundle::parse(message) else {
            return Arrived::Next;
        };
        let statement = &batch.signed.statement;
        let (feed, first, entity) = (statement.feed(), statement.first, statement.entity);
        if !self.gaps.contains_key(&feed) {
            let Some(end) = self.ends.get(&feed).copied() else {
                return Arrived::Next;
            };
            let payloads = payloads.into_iter().map(|range| &message[range]);
            // What is not as it was signed is refused where it is appended.
            if first <= end.count.saturating_add(1) || batch.verify(payloads).is_err() {
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
            self.last_number += 1;
            let gap = Gap {
                entity,
                number: self.last_number,
                log,
                channel: channel.clone(),
                last: first - 1,
                since: Instant::now(),
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
        if self.gaps.contains_key(&feed) {
            self.coming.lock().insert(feed);
        }
        self.past(feed).bytes += bytes;
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
        let (Some(gap), Some(end)) = (self.gaps.get_mut(&feed), self.ends.get(&feed)) else {
            return false;
        };
        let (channel, last) = (&gap.channel, gap.last);
        tracing::info!(%channel, after = end.count, to = last, "events are missing before those that came: asking other nodes for them");
        let search = Search {
            around: self.around.clone(),
            times: Times::REAL,
            channel: channel.clone(),
            wanted: Wanted {
                feed,
                after: end.count,
                to: last,
            },
            head: end.head,
            since_unix_ns: end.time_unix_ns,
            entity: gap.entity,
            bytes_left,
            silent: Arc::clone(&self.silent),
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
        let late = late.find(|(_, gap)| now >= gap.since + TURN_WITHIN);
        late.map(|(feed, gap)| (gap.log, *feed))
    }

    /// Whether a log has all that is before a batch of that feed, and nothing of it.
    pub(super) fn is_next(&self, feed: FeedId, message: &[u8]) -> bool {
        let Some(end) = self.ends.get(&feed) else {
            return false;
        };
        bundle::parse(message).is_ok_and(|(batch, _)| {
            let statement = &batch.signed.statement;
            let is_after = Some(statement.first) == end.count.checked_add(1);
            statement.feed() == feed && is_after && statement.parent == end.head
        })
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
        self.coming.lock().remove(&feed);
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
mod tests;
