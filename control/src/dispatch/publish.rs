//! Publishing: a batch goes to every worker that has a subscriber, in one order for all of them.

use super::{Dispatch, Ended, Service, answered, command};
use crate::{
    api::outlet::Queue,
    channel::{
        Batch, BatchTimes, Command, FanOut, LateCount, Plan, Policy, PublishError, PublishReport,
        Tally, event_bytes_max, events_of,
    },
    signing::{SigningError, Turn},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use std::{
    collections::VecDeque,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, oneshot};
use virga_transport::{ChannelName, Mode, worker::Refused};

/// Batches of one channel that wait at its workers at most, whether or not their publishers still do;
/// more publishers wait for a place.
pub const BATCHES_WAITING_MAX: usize = 64;

/// Where the publishers of one channel queue up.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    /// Whoever has it hands its batch to the workers: all of them get one before the next.
    turn: Arc<Mutex<()>>,
    places: Arc<Semaphore>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            turn: Arc::default(),
            places: Arc::new(Semaphore::new(BATCHES_WAITING_MAX)),
        }
    }
}

/// What each worker still has to be asked, in order.
type Parts = VecDeque<(usize, Command<Queue>)>;
/// Messages, how many events were too large for one, and what the channel's next publisher has to wait for.
type Signed = (Vec<Bytes>, u64, Option<Turn>);
/// A place for a batch at the workers, and its turn.
type Passed = (OwnedSemaphorePermit, OwnedMutexGuard<()>);
/// A worker, and what it answers.
type Answer = (
    usize,
    oneshot::Receiver<Result<PublishReport, PublishError>>,
);

/// Unreliable events that wait at some workers only because nobody has told these that others are through.
struct Late<'a> {
    dispatch: &'a Dispatch,
    is_late: Arc<AtomicBool>,
    waiting: Vec<usize>,
}

impl Late<'_> {
    fn hurry(&self) {
        if !self.is_late.swap(true, Ordering::AcqRel) {
            for &worker in &self.waiting {
                self.dispatch.tell(worker, Command::Hurry);
            }
        }
    }
}

impl Drop for Late<'_> {
    /// The publisher has its answer, or has gone away: then nobody would tell them later.
    fn drop(&mut self) {
        self.hurry();
    }
}

impl Dispatch {
    /// Publishes a batch at every worker that has a subscriber, and waits until all of it is on its
    /// way; `too_long` events more were refused before. Events that wait longer than `within` are given up.
    ///
    /// Batches that are published on one channel at the same time reach all its subscribers in the same
    /// order. Dropped before its turn has come, the batch is published nowhere; later, at every worker
    /// where it has subscribers, and what becomes of it is counted but told to nobody.
    ///
    /// # Errors
    /// See [`PublishError`]; nothing of the batch was published then, but for [`PublishError::Stopping`]:
    /// a part of it may have been sent before the node stopped.
    pub async fn publish(
        &self,
        (channel, within): (&ChannelName, Option<Duration>),
        events: Vec<Bytes>,
        too_long: u64,
    ) -> Result<PublishReport, PublishError> {
        let since = Instant::now();
        let left = || within.map(|within| within.saturating_sub(since.elapsed()));
        let until = within.and_then(|within| since.checked_add(within));
        let times = self.times(channel, &events);
        let given = events.len() as u64;
        let Some((events, too_large, _turn)) = self.sign((channel, until), events).await? else {
            return Ok(self.late(channel, Mode::Signed, (given, too_long)));
        };
        let is_kept = self.keep((channel, left()), &events).await?;
        let too_long = too_long + too_large;
        let turn = self.turn((channel, left()), (&events, too_long)).await?;
        let mut report = match turn {
            Ok(passed) => {
                let (target, events) = ((channel, left()), (events, too_long));
                let published = self.publish_to(target, events, None, (times, passed));
                published.await?
            }
            Err(late) => late,
        };
        if is_kept {
            // The log heard it.
            report.unheard = 0;
        }
        Ok(report)
    }

    /// What is published on a channel, signed where its events are; how many of these are too large, and what the
    /// channel's next publisher has to wait for. None if it could not be signed until that moment: nothing was.
    async fn sign(
        &self,
        (channel, until): (&ChannelName, Option<Instant>),
        events: Vec<Bytes>,
    ) -> Result<Option<Signed>, PublishError> {
        if self.presence.mode(channel) != Some(Mode::Signed) || events.is_empty() {
            return Ok(Some((events, 0, None)));
        }
        let failed = |why: String| PublishError::Unsigned(channel.clone(), why);
        let signing = self.signing.as_ref();
        let signing = signing.ok_or_else(|| failed("this node signs nothing".into()))?;
        // What is refused is not signed: it would be missing from the feed.
        self.may_publish(channel).await?;
        let until = until.map(tokio::time::Instant::from_std);
        if signing.is_looking() {
            signing.looked(until).await;
            // By now the node may have stopped, or lost the right.
            self.may_publish(channel).await?;
        }
        match signing.sign(channel, events, until).await {
            Ok((messages, too_large, turn)) => Ok(Some((messages, too_large, Some(turn)))),
            Err(SigningError::Late) => Ok(None),
            Err(SigningError::Stopping) => Err(PublishError::Stopping),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// What no worker got in time is given up, and counted there; so is what was too large.
    fn late(
        &self,
        channel: &ChannelName,
        mode: Mode,
        (expired, refused): (u64, u64),
    ) -> PublishReport {
        if self.late.add(channel, LateCount { expired, refused }) {
            // One of them counts for all.
            self.tell(0, Command::Late(Arc::clone(&self.late)));
        }
        PublishReport {
            expired,
            refused,
            event_bytes_max: event_bytes_max(mode),
            ..PublishReport::default()
        }
    }

    /// Whether this node may publish there.
    pub(super) async fn may_publish(&self, channel: &ChannelName) -> Result<(), PublishError> {
        let name = channel.clone();
        let allowed = self.with_all(move |now_ns, parts| {
            let allowed = parts.service.may_publish(now_ns, &name);
            allowed.map(|_| ())
        });
        let allowed = allowed.await.map_err(|Ended| PublishError::Stopping)?;
        allowed.into_iter().collect()
    }

    /// Waits until it is a batch's turn on a channel. If it was not in time, it is counted as late, which the report says: it
    /// is to be published nowhere then.
    async fn turn(
        &self,
        (channel, within): (&ChannelName, Option<Duration>),
        (events, too_long): (&[Bytes], u64),
    ) -> Result<Result<Passed, PublishReport>, PublishError> {
        let unknown = || PublishError::UnknownChannel(channel.clone());
        let gate = self.presence.index(channel).ok_or_else(unknown)?;
        let mode = self.presence.mode(channel).ok_or_else(unknown)?;
        let gate = self.gate(gate);
        Ok(gate.pass(within).await.ok_or_else(|| {
            let expired = events.iter().map(|event| events_of(mode, event)).sum();
            self.late(channel, mode, (expired, too_long))
        }))
    }

    /// Has the workers publish a batch whose turn it is, telling a tally what becomes of it at each node.
    async fn publish_to(
        &self,
        (channel, within): (&ChannelName, Option<Duration>),
        (events, too_long): (Vec<Bytes>, u64),
        tally: Option<&Arc<Tally>>,
        (times, (place, turn)): (Option<BatchTimes>, Passed),
    ) -> Result<PublishReport, PublishError> {
        let unknown = || PublishError::UnknownChannel(channel.clone());
        let is_late = Arc::default();
        let prepared = self.prepare(
            (channel, within),
            (events, too_long),
            &is_late,
            (tally, times),
            place,
        );
        let (parts, answers) = prepared.ok_or_else(unknown)?;
        let late = (self.presence.is_reliable(channel) == Some(false)).then(|| Late {
            dispatch: self,
            is_late,
            waiting: answers.iter().map(|(worker, _)| *worker).collect(),
        });
        let stopping = |Ended| PublishError::Stopping;
        self.hand_out(turn, parts).await.map_err(stopping)?;
        join(answers, late).await
    }

    /// Publishes a batch as a plan says, and tells what became of it at each subscribing node: as soon as
    /// the plan's policy is met or cannot be, and when its time is over at the latest. On a channel whose events
    /// are signed their batches are counted.
    ///
    /// # Errors
    /// See [`PublishError`]; nothing was published then, but for [`PublishError::Stopping`].
    pub async fn fan_out(
        &self,
        channel: &ChannelName,
        events: Vec<Bytes>,
        plan: Plan,
    ) -> Result<FanOut, PublishError> {
        let unknown = || PublishError::UnknownChannel(channel.clone());
        let is_reliable = self.presence.is_reliable(channel).ok_or_else(unknown)?;
        let found = self.presence.nodes(channel);
        if let Policy::Quorum(wanted) = plan.policy
            && found < wanted
        {
            let channel = channel.clone();
            return Err(PublishError::Quorum(channel, found, wanted));
        }
        let since = Instant::now();
        let left = || plan.within.saturating_sub(since.elapsed());
        let until = since.checked_add(plan.within);
        let times = self.times(channel, &events);
        let given = events.len() as u64;
        let Some((events, _too_large, _turn)) = self.sign((channel, until), events).await? else {
            self.late(channel, Mode::Signed, (given, 0));
            return Ok(Tally::new(plan, given, is_reliable).now());
        };
        self.keep((channel, Some(left())), &events).await?;
        let tally = Arc::new(Tally::new(plan, events.len() as u64, is_reliable));
        let turn = self.turn((channel, Some(left())), (&events, 0)).await?;
        let Ok(passed) = turn else {
            return Ok(tally.now());
        };
        let target = (channel, Some(left()));
        let failed = async {
            let times = (times, passed);
            let published = self.publish_to(target, (events, 0), Some(&tally), times);
            match published.await {
                Ok(_) => {
                    tally.handed_out();
                    std::future::pending().await
                }
                Err(error) => error,
            }
        };
        tokio::select! {
            biased;
            error = failed => Err(error),
            result = tally.decided() => Ok(result),
            () = tokio::time::sleep(left()) => Ok(tally.now()),
        }
    }

    /// A batch begins its way: where that is timed.
    fn times(&self, channel: &ChannelName, events: &[Bytes]) -> Option<BatchTimes> {
        // Without any event it only asks whether it may.
        match events {
            [] => None,
            _ => self.timing.batch(channel),
        }
    }

    /// Where the publishers of a channel queue up.
    pub(super) fn gate(&self, channel: usize) -> Gate {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if gates.len() <= channel {
            gates.resize_with(channel + 1, Gate::default);
        }
        gates[channel].clone()
    }

    /// Each worker's part of a batch, and where its answer comes.
    fn prepare(
        &self,
        (channel, within): (&ChannelName, Option<Duration>),
        (events, too_long): (Vec<Bytes>, u64),
        is_late: &Arc<AtomicBool>,
        (tally, mut times): (Option<&Arc<Tally>>, Option<BatchTimes>),
        place: OwnedSemaphorePermit,
    ) -> Option<(Parts, Vec<Answer>)> {
        if let Some(times) = &mut times {
            times.handed();
        }
        let targets = self.presence.targets(channel)?;
        // Given back when the last worker is through with its part.
        let place = Arc::new(place);
        let (mut parts, mut answers) = (Parts::new(), Vec::new());
        for target in &targets {
            let (reply, answer) = oneshot::channel();
            let place = Arc::clone(&place);
            let done = Box::new(move |report| {
                drop(place);
                // Whoever asked may have given up meanwhile.
                let _given_up = reply.send(report);
            });
            let mut batch = Batch::new(events.clone(), done)
                .within(within)
                .tallied(tally.cloned())
                .timed(times.clone());
            if targets.len() > 1 {
                batch = batch.with_part(target.part, Arc::clone(is_late));
            }
            if target.part.is_counted {
                batch = batch.with_refused(too_long);
            }
            let channel = channel.clone();
            parts.push_back((target.worker, Command::Publish { channel, batch }));
            answers.push((target.worker, answer));
        }
        Some((parts, answers))
    }

    /// Hands every worker its part before the next batch gets its turn. Once one has its part, the others
    /// get theirs, whether or not anybody waits for it.
    async fn hand_out(&self, turn: OwnedMutexGuard<()>, mut parts: Parts) -> Result<(), Ended> {
        while let Some((worker, part)) = parts.pop_front() {
            match self.commanders[worker].command(part) {
                Ok(()) => {}
                Err(Refused::Ended(_)) => return Err(Ended),
                Err(Refused::Full(again)) => {
                    parts.push_front((worker, again));
                    break;
                }
            }
        }
        if parts.is_empty() {
            return Ok(());
        }
        let commanders =
            Arc::<[virga_transport::worker::Commander<Service>]>::clone(&self.commanders);
        let rest = tokio::spawn(async move {
            for (worker, part) in parts {
                command(&commanders[worker], part).await?;
            }
            drop(turn);
            Ok(())
        });
        // Without a runtime the node has ended.
        rest.await.unwrap_or(Err(Ended))
    }
}

impl Gate {
    /// None within the time that it may wait.
    pub(super) async fn pass(&self, within: Option<Duration>) -> Option<Passed> {
        let both = async {
            let place = Arc::clone(&self.places).acquire_owned().await;
            let turn = Arc::clone(&self.turn).lock_owned().await;
            (place.expect("nobody closes it"), turn)
        };
        match within {
            None => Some(both.await),
            Some(within) => tokio::time::timeout(within, both).await.ok(),
        }
    }
}

/// Waits for all answers.
async fn join(
    answers: Vec<Answer>,
    mut late: Option<Late<'_>>,
) -> Result<PublishReport, PublishError> {
    let each = answers.into_iter();
    let each = each.map(|(worker, answer)| async move { (worker, answered(answer).await) });
    let mut answers: FuturesUnordered<_> = each.collect();
    let mut total: Option<PublishReport> = None;
    while let Some((worker, answer)) = answers.next().await {
        let report = answer.map_err(|Ended| PublishError::Stopping)??;
        if let Some(late) = &mut late {
            late.waiting.retain(|&other| other != worker);
            late.hurry();
        }
        total = Some(match total {
            None => report,
            Some(total) => total.with(&report),
        });
    }
    Ok(total.unwrap_or_default())
}
