//! How the control plane reaches the node's workers: all of them, or those that a batch concerns.

use crate::{
    api::outlet::{Drain, Queue, queue},
    channel::{
        ChannelService, Command, Delivery, LateEvents, Pattern, Presence, Rated, SubscribeError,
        SubscriberId,
    },
    config::ChannelConfig,
    replicas::Replicas,
    signing::Signing,
};
use futures_util::future::try_join_all;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::oneshot;
use virga_transport::{
    ChannelName, Mode,
    io::clock::Clock,
    worker::{Commander, Parts, Refused, Task, Times},
};

mod keep;
mod publish;
mod read;
mod timing;
pub use publish::BATCHES_WAITING_MAX;
use publish::Gate;
pub use read::Reached;
pub use timing::Timed;
use timing::Timing;

/// The service that each worker runs.
pub type Service = ChannelService<Queue>;

/// How long a busy worker is left alone before it is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// The workers have ended: the node is shutting down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node is shutting down")]
pub struct Ended;

/// Why there is no subscription.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSubscription {
    /// The services refuse it.
    #[error(transparent)]
    Refused(#[from] SubscribeError),
    /// They have ended.
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// All workers of a node. Cheap to clone.
#[derive(Clone)]
pub struct Dispatch {
    commanders: Arc<[Commander<Service>]>,
    presence: Arc<Presence>,
    /// One for each channel.
    gates: Arc<Mutex<Vec<Gate>>>,
    last_subscriber: Arc<AtomicU64>,
    clock: Clock,
    delivery_wait: Arc<Mutex<Times>>,
    timing: Timing,
    /// What no worker got in time, until one counts it.
    late: Arc<LateEvents>,
    /// Where there are channels whose events are signed.
    signing: Option<Signing>,
    /// Whose logs are on several nodes.
    replicas: Replicas,
    /// What this node has submitted to them, where channels have a rate.
    submitted: Arc<Mutex<BTreeMap<ChannelName, Rated>>>,
}

/// A program's subscription at all workers; dropping it ends it.
pub struct Subscribed {
    dispatch: Dispatch,
    id: SubscriberId,
    /// What they deliver.
    pub drain: Drain,
}

async fn answered<T>(answer: oneshot::Receiver<T>) -> Result<T, Ended> {
    answer.await.map_err(|_| Ended)
}

/// Has a worker do something; waits while it is busy.
async fn command(commander: &Commander<Service>, mut command: Command<Queue>) -> Result<(), Ended> {
    loop {
        match commander.command(command) {
            Ok(()) => return Ok(()),
            Err(Refused::Ended(_)) => return Err(Ended),
            Err(Refused::Full(again)) => command = again,
        }
        tokio::time::sleep(BUSY_PAUSE).await;
    }
}

async fn run(commander: &Commander<Service>, mut task: Task<Service>) -> Result<(), Ended> {
    loop {
        match commander.run(task) {
            Ok(()) => return Ok(()),
            Err(Refused::Ended(_)) => return Err(Ended),
            Err(Refused::Full(again)) => task = again,
        }
        tokio::time::sleep(BUSY_PAUSE).await;
    }
}

impl Dispatch {
    /// Reaches these workers; `presence` is what their services write to, `clock` what they go by.
    #[must_use]
    pub fn new(
        commanders: impl IntoIterator<Item = Commander<Service>>,
        presence: Arc<Presence>,
        clock: Clock,
    ) -> Self {
        Self {
            commanders: commanders.into_iter().collect(),
            gates: Arc::default(),
            presence,
            last_subscriber: Arc::default(),
            clock,
            delivery_wait: Arc::default(),
            timing: Timing::default(),
            late: Arc::default(),
            signing: None,
            replicas: Replicas::default(),
            submitted: Arc::default(),
        }
    }

    /// Signs what is published on channels whose events are signed.
    #[must_use]
    pub fn signing(mut self, signing: Signing) -> Self {
        self.signing = Some(signing);
        self
    }

    /// Has what is published on channels whose log is on several nodes kept there first.
    #[must_use]
    pub fn replicating(mut self, replicas: Replicas) -> Self {
        self.replicas = replicas;
        self
    }

    /// What is promised of a channel's events; none where there is no such channel.
    #[must_use]
    pub fn mode(&self, channel: &ChannelName) -> Option<Mode> {
        self.presence.mode(channel)
    }

    /// These are the channels from now on, before the workers' services are told the same.
    pub fn set_channels(&self, channels: &[ChannelConfig]) {
        self.presence.set(channels);
    }

    /// Does something with what each worker owns, on its thread; the results in the workers' order.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn with_all<T: Send + 'static>(
        &self,
        call: impl Fn(u64, &mut Parts<Service>) -> T + Clone + Send + 'static,
    ) -> Result<Vec<T>, Ended> {
        let calls = self.commanders.iter().map(|commander| {
            let (reply, answer) = oneshot::channel();
            let call = call.clone();
            let task: Task<Service> = Box::new(move |now_ns, parts| {
                // Whoever asked may have given up meanwhile.
                let _given_up = reply.send(call(now_ns, parts));
            });
            async move {
                run(commander, task).await?;
                answered(answer).await
            }
        });
        try_join_all(calls).await
    }

    /// Subscribes a program at all workers.
    ///
    /// # Errors
    /// See [`NoSubscription`]; there is none then.
    pub async fn subscribe(&self, pattern: &Pattern) -> Result<Subscribed, NoSubscription> {
        let (outlet, drain) = queue();
        let id = SubscriberId(self.last_subscriber.fetch_add(1, Ordering::Relaxed) + 1);
        // From here on whatever was begun is undone when it is dropped.
        let subscribed = Subscribed {
            dispatch: self.clone(),
            id,
            drain,
        };
        let calls = self.commanders.iter().map(|commander| {
            let (reply, answer) = oneshot::channel();
            let subscribe = Command::Subscribe {
                id,
                pattern: pattern.clone(),
                outlet: outlet.clone(),
                done: Box::new(move |result| {
                    // Whoever asked may have given up meanwhile.
                    let _given_up = reply.send(result);
                }),
            };
            async move {
                command(commander, subscribe).await?;
                Ok::<_, NoSubscription>(answered(answer).await??)
            }
        });
        try_join_all(calls).await?;
        Ok(subscribed)
    }

    /// The workers' time.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// The clock that their time is of.
    #[must_use]
    pub const fn clock(&self) -> Clock {
        self.clock
    }

    /// Times batches of a channel, and events of it that programs take; or none any more.
    pub fn time(&self, timed: Option<Timed>) {
        self.timing.set(timed);
    }

    /// Reads how long events waited from their arrival at a worker until a program's subscription had
    /// taken them.
    pub fn delivery_wait<T>(&self, read: impl FnOnce(&Times) -> T) -> T {
        let times = self.delivery_wait.lock();
        read(&times.unwrap_or_else(PoisonError::into_inner))
    }

    fn note_taken(&self, deliveries: &[Delivery]) {
        let now_ns = self.clock.now_ns();
        let times = self.delivery_wait.lock();
        let mut times = times.unwrap_or_else(PoisonError::into_inner);
        for delivery in deliveries {
            times.record(now_ns.saturating_sub(delivery.received_ns));
        }
        drop(times);
        self.timing.taken(now_ns, deliveries);
    }

    /// Tells a worker something; while it is busy, until it takes that.
    fn tell(&self, worker: usize, asked: Command<Queue>) {
        let commander = &self.commanders[worker];
        let Err(Refused::Full(again)) = commander.command(asked) else {
            return;
        };
        // Without a runtime the node has ended.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let commander = commander.clone();
            runtime.spawn(async move {
                // With the worker, whatever it was told about has ended.
                let _ended = command(&commander, again).await;
            });
        }
    }
}

impl Subscribed {
    /// Waits for events and takes all there are, at most `max`. None: the subscription has ended.
    pub async fn take(&mut self, max: usize) -> Vec<Delivery> {
        let deliveries = self.drain.take(max).await;
        self.dispatch.note_taken(&deliveries);
        if self.drain.has_drained() {
            for commander in self.dispatch.commanders.iter() {
                // When the workers have ended, so does this, with the queue's other ends.
                let _ended = command(commander, Command::Drained(self.id)).await;
            }
        }
        deliveries
    }
}

impl Drop for Subscribed {
    /// Reliable channels that wait for this subscriber would wait on.
    fn drop(&mut self) {
        for worker in 0..self.dispatch.commanders.len() {
            self.dispatch.tell(worker, Command::Unsubscribe(self.id));
        }
    }
}

#[cfg(test)]
mod tests;
