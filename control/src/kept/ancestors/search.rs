//! Who asks for what is missing: all nodes at once that may have it, then the one that gave some of it, and all again.

mod asked;

use super::{SEARCHES_MAX, Unfound};
use crate::{
    dispatch::Dispatch,
    kept::{looks::LOOK_WITHIN, writer::Input},
    reading::{Outcome, Reading, remote::Keeper, wire::Want},
};
use asked::{Asked, Batches, Out};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    panic::AssertUnwindSafe,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{mpsc::WeakSender, oneshot},
    time::{Instant, sleep, timeout},
};
use virga_ebpf::header::NodeId;
use virga_state::{Cursor, bundle, format::Hash, history::Wanted};
use virga_transport::ChannelName;

/// How long it is waited before a node is asked again; each pause doubles it.
const AGAIN: Duration = Duration::from_millis(100);
/// The longest such pause.
const AGAIN_MAX: Duration = Duration::from_secs(1);
/// The pause before a node is asked to look further on: it looked for longer, or says so for nothing.
const FURTHER: Duration = Duration::from_millis(5);
/// How much earlier than here another node may have got an event, by its own clock: looked from the first on, then
/// from the next, and then through the whole log.
const EARLIER_NS: [u64; 3] = [60_000_000_000, 3_600_000_000_000, 24 * 3_600_000_000_000];

/// How long what is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// Nothing of what is missing comes for so long before a log goes on without it.
    patience: Duration,
    /// The same while nodes look through their logs for it, or get it themselves.
    patience_max: Duration,
    /// It is asked for, whatever comes.
    whole: Duration,
    /// One node takes for an answer before it counts as late.
    answer: Duration,
    /// One that gives batches takes for the next before the others are asked too, and one that answered nothing the last
    /// time for any answer.
    next: Duration,
    /// All are asked before it is looked who may keep the channel now.
    round: Duration,
    /// A node that answered nothing is not waited for: one of an earlier version never does.
    silent: Duration,
}

impl Times {
    pub(super) const REAL: Self = Self {
        patience: Duration::from_secs(5),
        patience_max: Duration::from_secs(20),
        whole: Duration::from_secs(120),
        answer: Duration::from_secs(3),
        next: Duration::from_secs(1),
        round: Duration::from_secs(4),
        silent: Duration::from_secs(60),
    };

    /// The same where nobody waits for it any more from a moment on.
    pub(super) fn until(end: Instant) -> Self {
        let left = end.saturating_duration_since(Instant::now());
        Self {
            whole: Self::REAL.whole.min(left),
            ..Self::REAL
        }
    }
}

/// Why events are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Those behind them came, from the same entity: nodes look through their logs.
    Followed,
    /// They are named: nodes give what they know to have, and look no further.
    Named,
}

// A node that all searches ask for something looks, and rests, once for each.
const _: () = assert!(
    Times::REAL.answer.as_millis() > SEARCHES_MAX as u128 * 2 * LOOK_WITHIN.as_millis()
        && Times::REAL.answer.as_millis() < Times::REAL.round.as_millis()
        && Times::REAL.round.as_millis() < Times::REAL.patience.as_millis()
);

/// The nodes around, as a search sees them.
pub(in crate::kept) trait Around: Send + Sync {
    /// One that is asked.
    type Node: Asking;

    /// Those that may keep a channel's log.
    fn keepers(
        &self,
        channel: &ChannelName,
    ) -> impl Future<Output = Result<Vec<NodeId>, Unfound>> + Send;

    /// Has a session with one.
    fn reach(
        &self,
        node: NodeId,
        channel: &ChannelName,
    ) -> impl Future<Output = Result<Self::Node, Unfound>> + Send;

    /// Whether what an entity signed may come onto a channel now.
    fn may_say(&self, channel: &ChannelName, entity: [u8; 32])
    -> impl Future<Output = bool> + Send;
}

/// See [`Around`].
pub(in crate::kept) trait Asking: Send + Sync + 'static {
    /// Waits for what it answers.
    fn ask(&self, want: Want, cursor: Cursor) -> impl Future<Output = Outcome> + Send;

    /// How many parts of its answers have come.
    fn arrived(&self) -> u64;
}

/// The nodes of the mesh. Cheap to clone.
#[derive(Clone)]
pub(in crate::kept) struct Mesh {
    dispatch: Dispatch,
    reading: Reading,
}

impl Mesh {
    pub(in crate::kept) const fn new(dispatch: Dispatch, reading: Reading) -> Self {
        Self { dispatch, reading }
    }
}

impl Around for Mesh {
    type Node = Keeper;

    async fn keepers(&self, channel: &ChannelName) -> Result<Vec<NodeId>, Unfound> {
        let nodes = self.dispatch.keepers(channel).await;
        nodes.map_err(|_| Unfound::Nobody)
    }

    async fn reach(&self, node: NodeId, channel: &ChannelName) -> Result<Keeper, Unfound> {
        let around = (&self.dispatch, &self.reading);
        let keeper = Keeper::reach(around, node, channel).await;
        keeper.map_err(|_| Unfound::Failed)
    }

    async fn may_say(&self, channel: &ChannelName, entity: [u8; 32]) -> bool {
        let may = self.dispatch.may_say(channel, entity).await;
        may.unwrap_or(false)
    }
}

impl Asking for Keeper {
    async fn ask(&self, want: Want, cursor: Cursor) -> Outcome {
        Self::ask(self, want, None, cursor).await
    }

    fn arrived(&self) -> u64 {
        Self::arrived(self)
    }
}

/// Nodes that answered nothing, and until when they are not waited for.
#[derive(Debug, Default)]
pub(super) struct Silent(Mutex<BTreeMap<NodeId, Instant>>);

impl Silent {
    fn add(&self, node: NodeId, until: Instant) {
        let mut silent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        silent.insert(node, until);
    }

    fn remove(&self, node: NodeId) {
        let mut silent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        silent.remove(&node);
    }

    fn has(&self, node: NodeId) -> bool {
        let mut silent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        silent.retain(|_, until| Instant::now() < *until);
        silent.contains_key(&node)
    }
}

/// See the module.
pub(super) struct Search<A> {
    pub(super) around: A,
    pub(super) times: Times,
    pub(super) how: How,
    pub(super) channel: ChannelName,
    /// Behind what is there.
    pub(super) wanted: Wanted,
    /// After what is there.
    pub(super) head: Hash,
    /// When that came.
    pub(super) since_unix_ns: u64,
    /// No more is taken.
    pub(super) bytes_left: usize,
    pub(super) silent: std::sync::Arc<Silent>,
    pub(super) log: usize,
    pub(super) number: u64,
    pub(super) to: WeakSender<Input>,
}

/// Who of those that may have what is missing is asked.
#[derive(Clone, Copy, Debug)]
enum Whom {
    All,
    Only(NodeId),
    But(NodeId),
}

/// Who gives what is missing, since when, and behind which of the events.
#[derive(Clone, Copy, Debug)]
struct Giver {
    node: NodeId,
    since: Instant,
    after: u64,
}

impl Giver {
    /// Whether all comes in time if it goes on like that, as far as can be said.
    fn is_enough(&self, wanted: Wanted, (now, end): (Instant, Instant), trial: Duration) -> bool {
        let (took, left) = (now - self.since, end.saturating_duration_since(now));
        let (given, missing) = (wanted.after - self.after, wanted.to - wanted.after);
        took < trial
            || took.as_millis() * u128::from(missing) <= left.as_millis() * u128::from(given)
    }
}

impl<A: Around> Search<A> {
    /// Until all is there, or the log goes on without it; whatever happens, it hears of that.
    pub(super) async fn run(mut self) {
        let (log, feed, number) = (self.log, self.wanted.feed, self.number);
        let to = self.to.clone();
        let mut asked = BTreeMap::new();
        let found = AssertUnwindSafe(self.find(&mut asked)).catch_unwind().await;
        let found = found.unwrap_or(Err(Unfound::Failed));
        for (node, asked) in &asked {
            if asked.has_answered {
                self.silent.remove(*node);
            } else if asked.is_silent() {
                self.silent.add(*node, Instant::now() + self.times.silent);
            }
        }
        if let Some(to) = to.upgrade() {
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

    async fn find(&mut self, all: &mut BTreeMap<NodeId, Asked<A::Node>>) -> Result<(), Unfound> {
        let (begun, times) = (Instant::now(), self.times);
        let end = begun + times.whole;
        let mut since = begun;
        let (mut whom, mut giver) = (Whom::All, None::<Giver>);
        while self.wanted.after < self.wanted.to {
            let may_keep = self.look_for_keepers(all).await?;
            all.values_mut().for_each(Asked::look);
            let now = Instant::now();
            let until = self.until(all, since).min(end);
            let is_passed_over = all.values().all(Asked::is_passed_over);
            let is_any_left = all.values().any(|asked| asked.out.is_none());
            // Who was silent before has a moment to answer all the same.
            let is_over = is_passed_over && (!is_any_left || now >= begun + times.next);
            if may_keep > 0 && is_over || now >= until {
                return Err(why(all));
            }
            let most = match whom {
                Whom::Only(_) => times.next,
                Whom::All | Whom::But(_) => times.round.min(until - now),
            };
            let most = match is_passed_over {
                true => most.min(times.next),
                false => most,
            };
            let given = timeout(most, self.ask(all, whom)).await;
            let asked = std::mem::replace(&mut whom, Whom::All);
            let (node, batches) = match given {
                Ok(Some(given)) => given,
                // The others have nothing: the one that is slow is better than none.
                Err(_) | Ok(None) if matches!(asked, Whom::But(_)) => {
                    giver = None;
                    continue;
                }
                Err(_) => continue,
                // Nobody is left to be asked, or known yet.
                Ok(None) => {
                    sleep(AGAIN).await;
                    continue;
                }
            };
            let (next, before) = (batches.next, self.wanted.after);
            let taken = self.take(batches).await?;
            let Some(asked) = all.get_mut(&node) else {
                continue;
            };
            if taken.is_none() {
                asked.out = Some(Out::Wrong);
                continue;
            }
            (asked.cursor, asked.pause) = (Cursor::Offset(next), AGAIN);
            (asked.has_given, asked.has_none) = (true, false);
            if self.wanted.after == before {
                continue;
            }
            since = Instant::now();
            let one = match giver.filter(|giver| giver.node == node) {
                Some(giver) => giver,
                None => Giver {
                    node,
                    since: now,
                    after: before,
                },
            };
            giver = Some(one);
            let is_enough = one.is_enough(self.wanted, (since, end), times.patience);
            let mut others = all.iter().filter(|(other, _)| **other != node);
            let has_others = others.any(|(_, other)| other.out.is_none() && !other.has_none);
            whom = match is_enough || !has_others {
                true => Whom::Only(node),
                false => Whom::But(node),
            };
        }
        Ok(())
    }

    /// How long it is waited for more of what is missing.
    fn until(&self, all: &BTreeMap<NodeId, Asked<A::Node>>, since: Instant) -> Instant {
        let times = self.times;
        let asked = all.values().filter(|asked| asked.out.is_none());
        let went_on = asked.clone().filter_map(|asked| asked.went_on).max();
        let arrived = asked.filter_map(|asked| asked.arrived).max();
        let looks = went_on.map_or(since, |at| at + times.patience);
        let comes = arrived.map_or(since, |at| at + times.patience);
        (since + times.patience)
            .max(looks.min(since + times.patience_max))
            .max(comes)
    }

    /// Has all that may keep the channel among those that are asked, and no others; how many may keep it.
    async fn look_for_keepers(
        &self,
        all: &mut BTreeMap<NodeId, Asked<A::Node>>,
    ) -> Result<usize, Unfound> {
        let nodes = self.around.keepers(&self.channel).await?;
        // With those that are asked there is a session, or one is tried for.
        all.retain(|node, _| nodes.contains(node));
        for &node in &nodes {
            if let Entry::Vacant(place) = all.entry(node) {
                let reached = self.around.reach(node, &self.channel).await?;
                let was_silent = self.silent.has(node);
                let asked = Asked::new(reached, (self.how, self.since_unix_ns), was_silent);
                place.insert(asked);
            }
        }
        Ok(nodes.len())
    }

    /// Asks some; the first batches that one gives.
    async fn ask(
        &self,
        all: &mut BTreeMap<NodeId, Asked<A::Node>>,
        whom: Whom,
    ) -> Option<(NodeId, Batches)> {
        let (wanted, how) = (self.wanted, (self.since_unix_ns, self.times.answer));
        let mut asking = FuturesUnordered::new();
        for (&node, asked) in all {
            let is_asked = match whom {
                Whom::All => true,
                Whom::Only(only) => node == only,
                Whom::But(but) => node != but,
            };
            if is_asked {
                asking.push(async move { Some((node, asked.ask(wanted, how).await?)) });
            }
        }
        while let Some(given) = asking.next().await {
            if given.is_some() {
                return given;
            }
        }
        None
    }

    /// Goes on behind batches, and has the log take them, if they are what is missing; none if they are something else.
    async fn take(&mut self, batches: Batches) -> Result<Option<()>, Unfound> {
        let mut messages = batches.messages;
        if batches.after < self.wanted.after {
            // Another node gave some of them meanwhile.
            let known = messages.iter().take_while(|one| self.is_there(one)).count();
            messages.drain(..known);
        }
        if messages.is_empty() {
            return Ok(Some(()));
        }
        let (at, channel) = ((self.wanted, self.head), self.channel.clone());
        // Many signatures take their time.
        let checking = tokio::task::spawn_blocking(move || {
            let mut all = messages.iter();
            let behind = all.try_fold(at, |at, one| follow(&channel, at, one));
            // All of them are the same entity's.
            let entity = messages.first().and_then(|one| entity_of(one));
            (behind.zip(entity), messages)
        });
        let (checked, mut messages) = checking.await.map_err(|_| Unfound::Failed)?;
        let Some(((wanted, head), entity)) = checked else {
            return Ok(None);
        };
        if !self.around.may_say(&self.channel, entity).await {
            return Err(Unfound::NoRight);
        }
        // Only now: what is too much and not what is missing ends nothing, another node may have what is.
        let is_all = self.keep_fitting(&mut messages);
        if !messages.is_empty() && !self.give(messages).await {
            return Err(Unfound::Failed);
        }
        if !is_all {
            return Err(Unfound::Full);
        }
        (self.wanted, self.head) = (wanted, head);
        Ok(Some(()))
    }

    /// Keeps those of the batches that may still be taken, from the first on; whether that is all.
    fn keep_fitting(&mut self, messages: &mut Vec<Bytes>) -> bool {
        let count = messages.len();
        let mut left = self.bytes_left;
        let fitting = messages.iter().take_while(|one| {
            let rest = left.checked_sub(one.len());
            left = rest.unwrap_or(left);
            rest.is_some()
        });
        messages.truncate(fitting.count());
        self.bytes_left = left;
        messages.len() == count
    }

    /// Whether a batch is of what came since a node was asked.
    fn is_there(&self, message: &[u8]) -> bool {
        bundle::parse(message).is_ok_and(|(batch, _)| {
            let statement = &batch.signed.statement;
            statement.feed() == self.wanted.feed && statement.last() <= self.wanted.after
        })
    }

    /// Hands batches to the log, and waits until it took them; whether it did.
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
        to.send(input).await.is_ok() && taken.await.unwrap_or(false)
    }
}

/// Why a log goes on without what is missing, by what nodes said that were asked.
fn why<N: Asking>(all: &BTreeMap<NodeId, Asked<N>>) -> Unfound {
    let is_any_silent = all.values().any(Asked::is_silent);
    let mut looking = all.values().filter(|asked| asked.out.is_none());
    if all.values().any(|asked| asked.out == Some(Out::Wrong)) {
        Unfound::Wrong
    } else if is_any_silent || looking.any(|asked| !asked.has_none) {
        Unfound::Late
    } else {
        Unfound::Nobody
    }
}

/// Who signed a batch.
fn entity_of(message: &[u8]) -> Option<[u8; 32]> {
    let (batch, _) = bundle::parse(message).ok()?;
    Some(batch.signed.statement.entity)
}

/// What is missing after a batch, and the head after it; none where the batch is not the first that is missing, or another
/// channel's, or not as it was signed.
fn follow(
    channel: &ChannelName,
    (wanted, head): (Wanted, Hash),
    message: &[u8],
) -> Option<(Wanted, Hash)> {
    let (batch, payloads) = bundle::parse(message).ok()?;
    let statement = &batch.signed.statement;
    let (last, after_it) = (statement.last(), statement.head);
    let is_next = statement.feed() == wanted.feed
        && statement.channel.as_str() == channel.as_str()
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
mod tests;
