//! Who asks for what is missing: all nodes at once that may have it, then the one that gave some of it, and all again.

use super::{GAPS_MAX, Unfound};
use crate::{
    dispatch::Dispatch,
    kept::{looks::LOOK_WITHIN, writer::Input},
    reading::{
        Outcome, Reading,
        remote::Keeper,
        wire::{Given, Refusal, Want, parse_batches},
    },
};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use std::{
    collections::BTreeMap,
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
    /// One node takes for an answer before it is asked again.
    answer: Duration,
    /// One that gives batches takes for the next before the others are asked too.
    next: Duration,
    /// All are asked before it is looked who may keep the channel now.
    round: Duration,
    /// A node that answered nothing is not asked: one of an earlier version never does.
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
}

// A node that all gaps ask for something looks, and rests, once for each.
const _: () = assert!(
    Times::REAL.answer.as_millis() > GAPS_MAX as u128 * 2 * LOOK_WITHIN.as_millis()
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
pub(in crate::kept) trait Asking: Send + Sync {
    /// Waits for what it answers.
    fn ask(&self, wanted: Wanted, cursor: Cursor) -> impl Future<Output = Outcome> + Send;
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
    async fn ask(&self, wanted: Wanted, cursor: Cursor) -> Outcome {
        Self::ask(self, Want::Batches(wanted), None, cursor).await
    }
}

/// Nodes that answered nothing, and until when they are not asked.
#[derive(Debug, Default)]
pub(super) struct Silent(Mutex<BTreeMap<NodeId, Instant>>);

impl Silent {
    fn add(&self, node: NodeId, until: Instant) {
        let mut silent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        silent.insert(node, until);
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
    pub(super) channel: ChannelName,
    /// Behind what is there.
    pub(super) wanted: Wanted,
    /// After what is there.
    pub(super) head: Hash,
    /// When that came.
    pub(super) since_unix_ns: u64,
    /// Who signed it.
    pub(super) entity: [u8; 32],
    /// No more is taken.
    pub(super) bytes_left: usize,
    pub(super) silent: std::sync::Arc<Silent>,
    pub(super) log: usize,
    pub(super) number: u64,
    pub(super) to: WeakSender<Input>,
}

/// Why a node is asked no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Out {
    /// It keeps no log of the channel, or none for this node.
    HasNone,
    /// What it gave is not what was asked for.
    Wrong,
}

/// A node that is asked.
struct Asked<N> {
    node: N,
    cursor: Cursor,
    /// How many of [`EARLIER_NS`] were in vain.
    earlier: usize,
    pause: Duration,
    /// Whether it gave any batch: it has the next behind that, or nowhere.
    has_given: bool,
    /// Whether a question got no answer, and whether one did.
    is_late: bool,
    has_answered: bool,
    /// It looked through its log and has none.
    has_none: bool,
    /// When it last said that there may be some further on.
    went_on: Option<Instant>,
    out: Option<Out>,
}

/// Batches that a node gave, and where to go on.
type Batches = (Vec<Bytes>, u64);

impl<N: Asking> Asked<N> {
    fn new(node: N, since_unix_ns: u64) -> Self {
        Self {
            node,
            cursor: Cursor::Time(since_unix_ns.saturating_sub(EARLIER_NS[0])),
            earlier: 0,
            pause: AGAIN,
            has_given: false,
            is_late: false,
            has_answered: false,
            has_none: false,
            went_on: None,
            out: None,
        }
    }

    /// Asks until it gives batches; none when it is asked no more.
    async fn ask(
        &mut self,
        wanted: Wanted,
        (since_unix_ns, within): (u64, Duration),
    ) -> Option<Batches> {
        while self.out.is_none() {
            let Ok(outcome) = timeout(within, self.node.ask(wanted, self.cursor)).await else {
                self.is_late = true;
                continue;
            };
            self.has_answered |= matches!(outcome, Outcome::Given(_));
            match outcome {
                Outcome::Given(Given::Events { next, frames, .. }) => {
                    match self.given(next, &frames) {
                        Some(messages) if messages.is_empty() => {}
                        Some(messages) => return Some((messages, next)),
                        None => self.out = Some(Out::Wrong),
                    }
                }
                Outcome::Given(Given::Refused(Refusal::NoMore, _)) => {
                    if self.goes_back(since_unix_ns) {
                        continue;
                    }
                }
                Outcome::Lost
                | Outcome::Given(Given::Refused(Refusal::Full | Refusal::Failed, _)) => {}
                Outcome::Given(Given::Refused(..)) => self.out = Some(Out::HasNone),
            }
            sleep(self.pause).await;
            self.pause = (self.pause * 2).min(AGAIN_MAX);
        }
        None
    }

    /// What it gave; without batches it is asked further on, or there again. None where that has not its form.
    fn given(&mut self, next: u64, frames: &Bytes) -> Option<Vec<Bytes>> {
        let messages = parse_batches(frames)?;
        let further = match self.cursor {
            Cursor::Offset(from) if next < from => return None,
            Cursor::Offset(from) => next > from,
            _ => true,
        };
        if messages.is_empty() {
            (self.cursor, self.went_on) = (Cursor::Offset(next), Some(Instant::now()));
            self.has_none = false;
        }
        if further {
            self.pause = FURTHER;
        }
        Some(messages)
    }

    /// It has no more from there on: whether it is asked from an earlier place on now.
    fn goes_back(&mut self, since_unix_ns: u64) -> bool {
        if !self.has_given && self.earlier < EARLIER_NS.len() {
            self.earlier += 1;
            self.cursor = match EARLIER_NS.get(self.earlier) {
                Some(ns) => Cursor::Time(since_unix_ns.saturating_sub(*ns)),
                None => Cursor::Start,
            };
            return true;
        }
        // It may get them yet, as this node may: at its log's end.
        self.has_none = true;
        if !self.has_given {
            let now_unix_ns = virga_state::io::clock::now_unix_ns();
            self.cursor = Cursor::Time(now_unix_ns.saturating_sub(EARLIER_NS[0]));
        }
        self.pause = self.pause.max(AGAIN);
        false
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
            if asked.is_late && !asked.has_answered {
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
        let mut since = begun;
        let mut from: Option<NodeId> = None;
        while self.wanted.after < self.wanted.to {
            let may_keep = self.look_for_keepers(all).await?;
            let went_on = all.values().filter(|asked| asked.out.is_none());
            let went_on = went_on.filter_map(|asked| asked.went_on).max();
            let until = (since + times.patience)
                .max(went_on.map_or(since, |at| at + times.patience))
                .min(since + times.patience_max)
                .min(begun + times.whole);
            let is_over = may_keep > 0 && all.values().all(|asked| asked.out.is_some());
            if is_over || Instant::now() >= until {
                let is_any_silent = may_keep > all.len();
                return Err(why(all, is_any_silent));
            }
            let given = match from.take() {
                Some(node) => timeout(times.next, self.ask(all, Some(node))).await,
                None => {
                    let left = until.saturating_duration_since(Instant::now());
                    timeout(times.round.min(left), self.ask(all, None)).await
                }
            };
            let (node, (messages, next)) = match given {
                Ok(Some(given)) => given,
                Err(_) => continue,
                // Nobody is left to be asked, or known yet.
                Ok(None) => {
                    sleep(AGAIN).await;
                    continue;
                }
            };
            let Some(asked) = all.get_mut(&node) else {
                continue;
            };
            match self.take(messages).await? {
                Some(()) => {
                    (asked.cursor, asked.pause) = (Cursor::Offset(next), AGAIN);
                    (asked.has_given, asked.has_none) = (true, false);
                    (since, from) = (Instant::now(), Some(node));
                }
                None => asked.out = Some(Out::Wrong),
            }
        }
        Ok(())
    }

    /// Has all that may keep the channel among those that are asked, but those that answered nothing a moment ago, and no
    /// others; how many may keep it.
    async fn look_for_keepers(
        &self,
        all: &mut BTreeMap<NodeId, Asked<A::Node>>,
    ) -> Result<usize, Unfound> {
        let nodes = self.around.keepers(&self.channel).await?;
        // With those that are asked there is a session, or one is tried for.
        all.retain(|node, _| nodes.contains(node));
        for &node in &nodes {
            if !all.contains_key(&node) && !self.silent.has(node) {
                let reached = self.around.reach(node, &self.channel).await?;
                all.insert(node, Asked::new(reached, self.since_unix_ns));
            }
        }
        Ok(nodes.len())
    }

    /// Asks one node or all; the first batches that one gives.
    async fn ask(
        &self,
        all: &mut BTreeMap<NodeId, Asked<A::Node>>,
        only: Option<NodeId>,
    ) -> Option<(NodeId, Batches)> {
        let (wanted, how) = (self.wanted, (self.since_unix_ns, self.times.answer));
        let mut asking = FuturesUnordered::new();
        for (&node, asked) in all {
            if only.is_none_or(|only| only == node) {
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
    async fn take(&mut self, messages: Vec<Bytes>) -> Result<Option<()>, Unfound> {
        let bytes: usize = messages.iter().map(Bytes::len).sum();
        if bytes > self.bytes_left {
            return Err(Unfound::Full);
        }
        let at = (self.wanted, self.head);
        // Many signatures take their time.
        let checking = tokio::task::spawn_blocking(move || {
            let behind = messages.iter().try_fold(at, |at, one| follow(at, one));
            (behind, messages)
        });
        let (behind, messages) = checking.await.map_err(|_| Unfound::Failed)?;
        let Some((wanted, head)) = behind else {
            return Ok(None);
        };
        if !self.around.may_say(&self.channel, self.entity).await {
            return Err(Unfound::NoRight);
        }
        if !self.give(messages).await {
            return Err(Unfound::Failed);
        }
        self.bytes_left -= bytes;
        (self.wanted, self.head) = (wanted, head);
        Ok(Some(()))
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
fn why<N>(all: &BTreeMap<NodeId, Asked<N>>, is_any_silent: bool) -> Unfound {
    let mut looking = all.values().filter(|asked| asked.out.is_none());
    if all.values().any(|asked| asked.out == Some(Out::Wrong)) {
        Unfound::Wrong
    } else if is_any_silent || looking.any(|asked| !asked.has_none) {
        Unfound::Late
    } else {
        Unfound::Nobody
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
mod tests;
