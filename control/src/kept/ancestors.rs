//! Events that came before those that they follow: they wait, while these are asked for at other nodes.
//!
//! A signed batch names the head before it. Where a log lacks the events in front of a batch, since this node was away
//! say, the batch waits, with what its entity says next, and the nodes that may keep the channel are asked for those
//! events, from the last one on that the log has. What they give is taken if the same entity signed it and it follows that
//! head: nobody who gives it has to be believed. Other entities' events go on meanwhile. Where nobody has them, nobody
//! answers, or too much waits, the log goes on without them, and counts why. Of an entity that a log has nothing of, as
//! far back as is looked, the log begins with what comes.

use super::writer::Input;
use crate::{
    dispatch::Dispatch,
    reading::{
        Outcome, Reading,
        remote::Keeper,
        wire::{Given, Refusal, Want, parse_batches},
    },
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{mpsc::WeakSender, oneshot},
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};
use virga_ebpf::header::NodeId;
use virga_state::{
    Cursor,
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
/// Feeds whose events wait at a time: of each, one answer is on its way at most.
const GAPS_MAX: usize = 16;
/// So long nothing of what is missing comes before a log goes on without it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one node may take for an answer before the next is asked.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How long it is waited before all are asked again; each pause doubles it.
const AGAIN: Duration = Duration::from_millis(100);
/// How often all have to say that they have nothing more: they may have to write it first.
const ROUNDS_MAX: usize = 3;
/// How much earlier than here another node may have got an event, by its own clock, to be found at once.
const CLOCKS_NS: u64 = 60_000_000_000;

/// Why a log went on without events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfound {
    /// No node that may keep the channel has them.
    Nobody,
    /// None that has them answered in time.
    Late,
    /// What was given is not what was signed, or does not follow what is there.
    Wrong,
    /// Too much waited.
    Full,
}

impl Unfound {
    /// Every one there is.
    pub const ALL: [Self; 4] = [Self::Nobody, Self::Late, Self::Wrong, Self::Full];

    /// Its label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Late => "late",
            Self::Wrong => "wrong",
            Self::Full => "full",
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
    /// It is appended behind those of its feed that wait: that is too much.
    Full(FeedId),
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
    /// Which one: a later one of the feed has another number.
    number: u64,
    log: usize,
    /// In the order in which they came.
    waiting: VecDeque<Bytes>,
    search: AbortHandle,
}

impl Drop for Gap {
    fn drop(&mut self) {
        self.search.abort();
    }
}

/// See the module.
pub(super) struct Ancestors {
    ends: BTreeMap<FeedId, End>,
    gaps: BTreeMap<FeedId, Gap>,
    waiting_bytes: usize,
    last_number: u64,
    dispatch: Dispatch,
    reading: Reading,
    to: WeakSender<Input>,
    runtime: Handle,
}

impl Ancestors {
    pub(super) fn new(
        (dispatch, reading): (Dispatch, Reading),
        to: WeakSender<Input>,
        runtime: Handle,
    ) -> Self {
        Self {
            ends: BTreeMap::new(),
            gaps: BTreeMap::new(),
            waiting_bytes: 0,
            last_number: 0,
            dispatch,
            reading,
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
        let (feed, first) = (statement.feed(), statement.first);
        if !self.gaps.contains_key(&feed) {
            let Some(end) = self.ends.get(&feed).copied() else {
                return Arrived::Next;
            };
            let payloads = payloads.into_iter().map(|range| &message[range]);
            // What is not as it was signed is refused where it is appended.
            if first <= end.count.saturating_add(1) || batch.verify(payloads).is_err() {
                return Arrived::Next;
            }
            if self.gaps.len() >= GAPS_MAX {
                return Arrived::Full(feed);
            }
            self.begin((log, channel), feed, (end, first - 1));
        }
        if self.waiting_bytes + message.len() > WAITING_BYTES_MAX {
            return Arrived::Full(feed);
        }
        self.waiting_bytes += message.len();
        if let Some(gap) = self.gaps.get_mut(&feed) {
            gap.waiting.push_back(message.clone());
        }
        Arrived::Waits
    }

    /// Has somebody look for the events between a feed's end and one, with which that is.
    fn begin(&mut self, (log, channel): (usize, &ChannelName), feed: FeedId, to: (End, u64)) {
        let (end, last) = to;
        self.last_number += 1;
        let search = Search {
            dispatch: self.dispatch.clone(),
            reading: self.reading.clone(),
            channel: channel.clone(),
            wanted: Wanted {
                feed,
                after: end.count,
                to: last,
            },
            head: end.head,
            since_unix_ns: end.time_unix_ns,
            until: Instant::now() + PATIENCE,
            log,
            number: self.last_number,
            to: self.to.clone(),
        };
        tracing::info!(%channel, after = end.count, to = last, "events are missing before those that came: asking other nodes for them");
        let gap = Gap {
            number: self.last_number,
            log,
            waiting: VecDeque::new(),
            search: self.runtime.spawn(search.run()).abort_handle(),
        };
        self.gaps.insert(feed, gap);
    }

    /// Whether a log has all that is before a batch of that feed, and nothing of it.
    pub(super) fn is_next(&self, feed: FeedId, message: &[u8]) -> bool {
        let count = self.ends.get(&feed).map_or(0, |end| end.count);
        bundle::parse(message).is_ok_and(|(batch, _)| {
            let statement = &batch.signed.statement;
            statement.feed() == feed && Some(statement.first) == count.checked_add(1)
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
        let gap = self.gaps.remove(&feed);
        let waiting = gap.map(|mut gap| std::mem::take(&mut gap.waiting));
        let waiting = waiting.unwrap_or_default();
        self.waiting_bytes -= waiting.iter().map(Bytes::len).sum::<usize>();
        waiting
    }

    /// A feed that waits, and in which log.
    pub(super) fn any(&self) -> Option<(usize, FeedId)> {
        let gap = self.gaps.first_key_value();
        gap.map(|(feed, gap)| (gap.log, *feed))
    }
}

/// What a node that was asked said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// It gave all that was missing.
    All,
    /// It has no more.
    No,
    /// It gave something else.
    Wrong,
    /// It may have more.
    Nothing,
}

/// Who asks for what is missing.
struct Search {
    dispatch: Dispatch,
    reading: Reading,
    channel: ChannelName,
    /// Behind what is there.
    wanted: Wanted,
    /// After what is there.
    head: Hash,
    /// When that came.
    since_unix_ns: u64,
    until: Instant,
    log: usize,
    number: u64,
    to: WeakSender<Input>,
}

impl Search {
    async fn run(mut self) {
        let found = self.find().await;
        let (log, feed, number) = (self.log, self.wanted.feed, self.number);
        if let Some(to) = self.to.upgrade() {
            // Where the logs are closed nobody waits for it.
            let _closed = to
                .send(Input::Searched {
                    log,
                    feed,
                    number,
                    found,
                })
                .await;
        }
    }

    async fn find(&mut self) -> Result<(), Unfound> {
        let mut keepers: BTreeMap<NodeId, Keeper> = BTreeMap::new();
        let (mut pause, mut rounds) = (AGAIN, 0);
        loop {
            let nodes = self.dispatch.keepers(&self.channel).await;
            let nodes = nodes.map_err(|_| Unfound::Nobody)?;
            // Those that are asked no more are left; with the others there is a session, or one is tried for.
            keepers.retain(|node, _| nodes.contains(node));
            let mut all = Vec::new();
            for node in nodes {
                if !keepers.contains_key(&node) {
                    let around = (&self.dispatch, &self.reading);
                    let keeper = Keeper::reach(around, node, &self.channel).await;
                    keepers.insert(node, keeper.map_err(|_| Unfound::Nobody)?);
                }
                let said = match keepers.get(&node) {
                    Some(keeper) => self.ask(keeper).await,
                    None => Said::No,
                };
                if said == Said::All {
                    return Ok(());
                }
                all.push(said);
            }
            match all.contains(&Said::Nothing) {
                true => rounds = 0,
                false => rounds += 1,
            }
            if rounds >= ROUNDS_MAX {
                return Err(match all.contains(&Said::Wrong) {
                    true => Unfound::Wrong,
                    false => Unfound::Nobody,
                });
            }
            if Instant::now() + pause > self.until {
                return Err(Unfound::Late);
            }
            sleep(pause).await;
            pause *= 2;
        }
    }

    /// Asks a node for all that is missing, as much as it has at a time.
    async fn ask(&mut self, keeper: &Keeper) -> Said {
        let mut cursor = Cursor::Time(self.since_unix_ns.saturating_sub(CLOCKS_NS));
        let mut is_by_time = true;
        while Instant::now() < self.until {
            let asked = keeper.ask(Want::Batches(self.wanted), None, cursor);
            let Ok(outcome) = timeout(ANSWER_WITHIN, asked).await else {
                return Said::Nothing;
            };
            let (next, frames) = match outcome {
                Outcome::Given(Given::Events { next, frames, .. }) => (next, frames),
                // Its clock may be far from this node's.
                Outcome::Given(Given::Refused(Refusal::NoMore, _)) if is_by_time => {
                    (cursor, is_by_time) = (Cursor::Start, false);
                    continue;
                }
                Outcome::Lost | Outcome::Given(Given::Refused(Refusal::Full, _)) => {
                    return Said::Nothing;
                }
                Outcome::Given(Given::Refused(..)) => return Said::No,
            };
            let messages = parse_batches(&frames);
            let Some(messages) = messages.filter(|messages| self.take(messages).is_some()) else {
                return Said::Wrong;
            };
            if !messages.is_empty() {
                is_by_time = false;
                self.until = Instant::now() + PATIENCE;
                if !self.give(messages).await {
                    return Said::No;
                }
            }
            if self.wanted.after == self.wanted.to {
                return Said::All;
            }
            if matches!(cursor, Cursor::Offset(from) if next <= from) {
                return Said::Wrong;
            }
            cursor = Cursor::Offset(next);
        }
        Said::Nothing
    }

    /// Goes on behind batches, if they are what is missing.
    fn take(&mut self, messages: &[Bytes]) -> Option<()> {
        let (mut wanted, mut head) = (self.wanted, self.head);
        for message in messages {
            (wanted, head) = follow((wanted, head), message)?;
        }
        (self.wanted, self.head) = (wanted, head);
        Some(())
    }

    /// Hands batches to the log, and waits until it took them; whether there is one.
    async fn give(&self, messages: Vec<Bytes>) -> bool {
        let Some(to) = self.to.upgrade() else {
            return false;
        };
        let (done, taken) = oneshot::channel();
        let input = Input::Fetched {
            log: self.log,
            feed: self.wanted.feed,
            messages,
            done,
        };
        to.send(input).await.is_ok() && taken.await.is_ok()
    }
}

/// What is missing after a batch, and the head after it; none where the batch is not the first that is missing, or not as
/// it was signed.
fn follow((wanted, head): (Wanted, Hash), message: &[u8]) -> Option<(Wanted, Hash)> {
    let (batch, payloads) = bundle::parse(message).ok()?;
    let statement = &batch.signed.statement;
    let (last, after_it) = (statement.last(), statement.head);
    let is_next = statement.feed() == wanted.feed
        && statement.first.checked_sub(1) == Some(wanted.after)
        && statement.parent == head
        && last <= wanted.to;
    let payloads = payloads.into_iter().map(|range| &message[range]);
    batch.verify(payloads).ok().filter(|_| is_next)?;
    let wanted = Wanted {
        after: last,
        ..wanted
    };
    Some((wanted, after_it))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;
    use virga_state::{LogName, feed::FeedEnd};

    fn sign(feed: &mut FeedEnd, key: &SigningKey, payload: &[u8]) -> Vec<u8> {
        let batch = feed.sign(key, Vec::new(), [payload].into_iter()).unwrap();
        bundle::encode(&batch, &[payload])
    }

    #[test]
    fn only_the_next_batch_of_that_entity_is_taken() {
        let channel = LogName::parse("alarms").unwrap();
        let keys = [1, 2].map(|seed| SigningKey::from_bytes(&[seed; 32]));
        let entity = |key: &SigningKey| key.verifying_key().to_bytes();
        let mut feed = FeedEnd::new(channel.clone(), entity(&keys[0]));
        let mut other = FeedEnd::new(channel.clone(), entity(&keys[1]));
        let first = sign(&mut feed, &keys[0], b"one");
        let (_, head) = feed.end();
        let mut twin = feed.clone();
        let second = sign(&mut feed, &keys[0], b"two");
        let third = sign(&mut feed, &keys[0], b"three");
        let wanted = Wanted {
            feed: FeedId::of(&channel, &entity(&keys[0])),
            after: 1,
            to: 3,
        };
        let at = (wanted, head);
        let behind = follow(at, &second).unwrap();
        assert_eq!(behind.0.after, 2);
        assert_eq!(
            follow(behind, &third).unwrap(),
            (Wanted { after: 3, ..wanted }, feed.end().1)
        );
        // What is there, what is further on, and another's.
        for wrong in [&first, &third, &sign(&mut other, &keys[1], b"two")] {
            assert_eq!(follow(at, wrong), None);
        }
        // A second one that follows something else than what is there.
        let twin_second = sign(&mut twin, &keys[0], b"other");
        assert!(follow(at, &twin_second).is_some());
        let twin_third = sign(&mut twin, &keys[0], b"three");
        assert_eq!(follow(behind, &twin_third), None);
        // More than was asked for.
        let short = (Wanted { to: 1, ..wanted }, head);
        assert_eq!(follow(short, &second), None);
        for place in 0..second.len() {
            let mut changed = second.clone();
            changed[place] ^= 1;
            assert_eq!(follow(at, &changed), None, "byte {place}");
        }
    }
}
