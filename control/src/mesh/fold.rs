//! Live state out of kept channels: what a fold makes of their logs, wherever these are, and on with what comes.
//!
//! ```
//! use virga::mesh::Mesh;
//! use virga_state::fold::{Policy, ready::Counters};
//!
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/one_node.rs"));
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let mesh = Mesh::start(one_node(folder.path(), 6)?).await?;
//! # /*
//! let mesh = Mesh::open("/run/virga/edge-a.sock").await?;
//! # */
//! let mut sums = mesh.fold(Counters, Policy::Stop, &["metrics/here"]).await?;
//! mesh.publish("metrics/here", br#"{"key": "a", "add": 3}"#).await?;
//! let (place, change) = sums.next_change().await?;
//! println!("{}:{}: {} is {:?}", place.log, place.offset, change.key, change.value);
//! assert_eq!(sums.folding().view().state["a"], 3);
//! # mesh.stop().await?;
//! # Ok(())
//! # }
//! ```

use super::{Cursor, KeptEvent, LogOpened, Mesh, MeshError, Replay, Replayed, Which, replay::Item};
use futures_core::Stream;
use futures_util::stream;
use std::task::{Context, Poll, ready};
use thiserror::Error;
use virga_state::{
    Event, Link, LogName,
    fold::{Fold, FoldError, Folding, Policy, Token},
};
use virga_transport::ChannelName;

/// Why a fold does not go on. What was folded before is as it was.
#[derive(Debug, Error)]
pub enum LiveError {
    /// The node does not give the events.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// The fold stands still.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// The log cannot give events, and what came of it goes no further.
    #[error("{0}")]
    Gap(String),
    /// It had ended before, and goes no further.
    #[error("the fold has ended: {0}")]
    Stopped(String),
    /// The channel's name is no log's.
    #[error("{0} is no log's name")]
    Name(ChannelName),
    /// There is nothing to fold.
    #[error("no channel to fold was named")]
    Nothing,
    /// A state is of one log of each channel.
    #[error("{0} was named twice, each time with another of its logs: fold one at a time")]
    Twice(ChannelName),
    /// The node stops.
    #[error("the node that is read from has stopped")]
    Ended,
}

/// A log that is folded.
#[derive(Debug)]
struct Source {
    log: LogName,
    channel: ChannelName,
    which: Which,
    events: Replay,
    /// Events that it could not give are in front of the next.
    has_gap: bool,
    /// Where it ended when it was found.
    goal: Option<u64>,
}

/// See the module. Dropping it ends the replays.
///
/// Of each channel one log is read, whatever node gives it ([`Live::logs`] tells which): a [`Token`] is a place in that log, and in no other
/// of the same channel. Events come without what their entities had observed: their links have 0 there.
pub struct Live<F: Fold> {
    folding: Folding<F>,
    policy: Policy,
    sources: Vec<Source>,
    /// Which one is asked first.
    turn: usize,
    /// Why it goes no further.
    stopped: Option<String>,
}

impl<F: Fold> std::fmt::Debug for Live<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live")
            .field("sources", &self.sources)
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

/// What came of a log.
type Step<C> = Result<Option<(Token, C)>, LiveError>;

impl Mesh {
    /// Folds kept channels from their first event on: each log by itself, in its order.
    ///
    /// # Errors
    /// As of [`Mesh::replay`], and where no channel is named.
    pub async fn fold<F: Fold>(
        &self,
        fold: F,
        policy: Policy,
        channels: &[&str],
    ) -> Result<Live<F>, LiveError> {
        let any = |name: &&str| ((*name).to_owned(), Which::default());
        let channels: Vec<_> = channels.iter().map(any).collect();
        self.fold_at(fold, policy, &channels).await
    }

    /// The same of one of several logs of each channel: whoever appended to it reads its own write there, and in no other.
    ///
    /// # Errors
    /// The same.
    pub async fn fold_at<F: Fold>(
        &self,
        fold: F,
        policy: Policy,
        channels: &[(String, Which)],
    ) -> Result<Live<F>, LiveError> {
        let mut sources: Vec<Source> = Vec::new();
        for (name, which) in channels {
            let channel = self.channel_name(name).await?;
            if let Some(same) = sources.iter().find(|source| source.channel == channel) {
                match same.which == *which {
                    true => continue,
                    false => return Err(LiveError::Twice(channel)),
                }
            }
            // What retention has removed is a gap.
            let from = Cursor::Offset(0);
            let events = self.replay_with_places(channel.as_str(), from, which);
            let log = LogName::parse(channel.as_str());
            sources.push(Source {
                log: log.map_err(|_| LiveError::Name(channel.clone()))?,
                events: events.await?,
                channel,
                which: which.clone(),
                has_gap: false,
                goal: None,
            });
        }
        if sources.is_empty() {
            return Err(LiveError::Nothing);
        }
        Ok(Live {
            folding: Folding::new(fold, policy),
            policy,
            sources,
            turn: 0,
            stopped: None,
        })
    }
}

impl<F: Fold> Live<F> {
    /// The state, its places and its hash.
    #[must_use]
    pub const fn folding(&self) -> &Folding<F> {
        &self.folding
    }

    /// Which log of each channel it is, and the node that gives it now; none before that was found.
    pub fn logs(&self) -> impl Iterator<Item = (&LogName, Option<&LogOpened>)> {
        let logs = self.sources.iter();
        logs.map(|source| (&source.log, source.events.log(&source.channel)))
    }

    /// Waits for the next change, and the event that made it.
    ///
    /// # Errors
    /// See [`LiveError`]; every later call fails, too.
    pub async fn next_change(&mut self) -> Result<(Token, F::Change), LiveError> {
        std::future::poll_fn(|context| {
            loop {
                if let Some(change) = ready!(self.poll_step(context))? {
                    return Poll::Ready(Ok(change));
                }
            }
        })
        .await
    }

    /// All changes from here on, as they come.
    pub fn changes(&mut self) -> impl Stream<Item = Result<(Token, F::Change), LiveError>> {
        stream::unfold(Some(self), |live| async {
            let live = live?;
            let next = live.next_change().await;
            let goes_on = next.is_ok().then_some(live);
            Some((next, goes_on))
        })
    }

    /// Goes on until each log was read as far as it went when this began to read it; `changed` is told of each change.
    ///
    /// # Errors
    /// See [`LiveError`]; what was not reached by then never is.
    pub async fn catch_up(
        &mut self,
        changed: impl FnMut(&Token, F::Change),
    ) -> Result<(), LiveError> {
        self.until(Self::is_caught_up, changed).await
    }

    /// Goes on until what that event did is in the state: whoever appended it to this log then reads its own write. Of
    /// one that is passed over, until it is.
    ///
    /// # Errors
    /// See [`LiveError`]; what was not reached by then never is.
    pub async fn reach(
        &mut self,
        token: &Token,
        changed: impl FnMut(&Token, F::Change),
    ) -> Result<(), LiveError> {
        self.until(|live| live.folding.has_reached(token), changed)
            .await
    }

    fn is_caught_up(&self) -> bool {
        let is_there = |source: &Source| {
            let goal = source.goal;
            goal.is_some_and(|goal| self.folding.next(&source.log) >= goal)
        };
        self.sources.iter().all(is_there)
    }

    async fn until(
        &mut self,
        is_there: impl Fn(&Self) -> bool,
        mut changed: impl FnMut(&Token, F::Change),
    ) -> Result<(), LiveError> {
        std::future::poll_fn(|context| {
            while !is_there(self) {
                if let Some((token, change)) = ready!(self.poll_step(context))? {
                    changed(&token, change);
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Applies what comes next of any log. What it could not apply, or was not given, it does not leave out by going on.
    fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Step<F::Change>> {
        if let Some(why) = &self.stopped {
            return Poll::Ready(Err(LiveError::Stopped(why.clone())));
        }
        let step = ready!(self.poll_sources(context));
        if let Err(error) = &step {
            self.stopped = Some(error.to_string());
        }
        Poll::Ready(step)
    }

    fn poll_sources(&mut self, context: &mut Context<'_>) -> Poll<Step<F::Change>> {
        let count = self.sources.len();
        for at in 0..count {
            let place = (self.turn + at) % count;
            let Poll::Ready(next) = self.sources[place].events.poll_item(context) else {
                continue;
            };
            self.turn = place + 1;
            let source = &mut self.sources[place];
            return Poll::Ready(match next {
                Some(Ok(Item::Given(Replayed::Event(event)))) => self.apply(place, &event),
                Some(Ok(Item::Given(Replayed::Gap(why)))) => match self.policy {
                    Policy::Stop => Err(LiveError::Gap(why)),
                    Policy::Skip => {
                        source.has_gap = true;
                        Ok(None)
                    }
                },
                Some(Ok(Item::Place(at))) => {
                    source.goal.get_or_insert(at.end);
                    self.go_to(place, at.next);
                    Ok(None)
                }
                Some(Err(error)) => Err(error.into()),
                None => Err(LiveError::Ended),
            });
        }
        Poll::Pending
    }

    /// Goes on at a place of a log that was given up to there.
    fn go_to(&mut self, place: usize, next: u64) {
        let source = &mut self.sources[place];
        match std::mem::take(&mut source.has_gap) {
            true => self.folding.pass(&source.log, next),
            false if next <= self.folding.next(&source.log) => {}
            // What compaction took says nothing that a later event does not.
            false => self.folding.go_to(&source.log, next),
        }
    }

    fn apply(&mut self, place: usize, kept: &KeptEvent) -> Step<F::Change> {
        self.go_to(place, kept.offset);
        let source = &self.sources[place];
        let log = &source.log;
        let event = Event {
            offset: kept.offset,
            time_unix_ns: kept.time_unix_ns,
            link: Link {
                entity: kept.origin,
                observed: 0,
                parent: 0,
            },
            payload: &kept.payload,
        };
        let mut change = None;
        self.folding.apply(log, &event, |token, made| {
            change = Some((token.clone(), made));
        })?;
        if let Some(opened) = source.events.log(&source.channel) {
            self.folding.identify(log, opened.log);
        }
        Ok(change)
    }
}
