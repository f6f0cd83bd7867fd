//! The daemon's side: times are taken while somebody asks, and no more when the asker is gone, however that came.
//!
//! One flow at a time. A task of its own gives every worker its part, reads what is told, sums it up, and takes the
//! parts back. It ends with whoever reads its reports.

use super::{Asked, Histograms, Path, Report};
use crate::{
    config::Config,
    dispatch::{self, Dispatch, Timed},
};
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use virga_ebpf::{hash::origin_hash, header::NodeId};
use virga_transport::{
    ChannelName,
    flow::{Flow, Noted, Wanted, notes},
};

/// How often times are looked for: their queue holds what comes in between.
const EVERY: Duration = Duration::from_millis(20);
/// How often they are told.
const REPORTS_EVERY: Duration = Duration::from_millis(250);
/// How long whoever reads may take for the last report.
const FAREWELL: Duration = Duration::from_secs(2);
/// Reports that wait for whoever reads; one that finds no room is followed by a newer one.
const REPORTS_MAX: usize = 4;

/// The daemon's flows.
#[derive(Clone)]
pub struct Flows {
    dispatch: Dispatch,
    stopping: watch::Receiver<()>,
    place: Arc<Semaphore>,
}

/// Why no flow is timed.
#[derive(Debug, thiserror::Error)]
pub enum NoFlow {
    /// What is asked for cannot be had.
    #[error("{0}")]
    Asked(String),
    /// There is no such channel.
    #[error("this node knows no channel {0}: `virga channel list` shows those that it knows")]
    Unknown(ChannelName),
    /// Another one is timed.
    #[error(
        "another flow is timed by `virga trace --flow`, and there is one at a time: wait until it ends"
    )]
    Busy,
    /// The node is shutting down.
    #[error(transparent)]
    Ended(#[from] dispatch::Ended),
}

/// Events of the channel since the node's start: published, sent, received.
type Totals = (u64, u64, u64);

/// One that is timed.
struct Timing {
    asked: Asked,
    channel: ChannelName,
    names: BTreeMap<NodeId, String>,
    noted: Noted,
    times: Histograms,
    before: Totals,
    began: Instant,
    report: Report,
    to: mpsc::Sender<Bytes>,
}

impl Flows {
    /// Flows through these workers, until the sender of `stopping` is dropped.
    #[must_use]
    pub fn new(dispatch: &Dispatch, stopping: &watch::Receiver<()>) -> Self {
        Self {
            dispatch: dispatch.clone(),
            stopping: stopping.clone(),
            place: Arc::new(Semaphore::new(1)),
        }
    }

    /// Begins one: its reports, a line of JSON each, until they are dropped.
    ///
    /// # Errors
    /// See [`NoFlow`]; nothing is timed then.
    pub async fn begin(
        &self,
        asked: Asked,
        config: &Config,
    ) -> Result<mpsc::Receiver<Bytes>, NoFlow> {
        let channel = ChannelName::parse(&asked.channel);
        let channel = channel.map_err(|error| NoFlow::Asked(error.to_string()))?;
        let entity = asked.entity(config).map_err(NoFlow::Asked)?;
        let own = config.node.origin;
        let wanted = Wanted {
            interval_ns: asked.interval_ns().map_err(NoFlow::Asked)?,
            is_own: entity.is_none_or(|entity| origin_hash(&entity) == own),
            channel,
            entity,
        };
        let place = Arc::clone(&self.place);
        let place = place.try_acquire_owned().map_err(|_| NoFlow::Busy)?;
        let peers = config.peers.iter();
        let names = peers.map(|peer| (peer.id, peer.name.clone())).collect();
        let (to, reports) = mpsc::channel(REPORTS_MAX);
        let (begun, answer) = oneshot::channel();
        let task = self.clone().run((asked, wanted), names, (to, begun), place);
        // Whoever asked may be gone before it is on: what is turned on is turned off all the same.
        tokio::spawn(task);
        answer.await.map_err(|_| dispatch::Ended)??;
        Ok(reports)
    }

    async fn run(
        self,
        (asked, wanted): (Asked, Wanted),
        names: BTreeMap<NodeId, String>,
        (to, begun): (mpsc::Sender<Bytes>, oneshot::Sender<Result<(), NoFlow>>),
        place: OwnedSemaphorePermit,
    ) {
        let mut timing = match self.turn_on((asked, wanted), names, to).await {
            Ok(timing) => timing,
            Err(error) => {
                self.turn_off().await;
                drop(place);
                let _gone = begun.send(Err(error));
                return;
            }
        };
        let _gone = begun.send(Ok(()));
        let why = self.follow(&mut timing).await;
        self.turn_off().await;
        timing.look();
        // With the workers, the daemon ends: what was known counts.
        let _ended = self.sum_up(&mut timing).await;
        tracing::info!(%why, channel = %timing.channel, "a flow is timed no more");
        timing.report.ended = Some(why);
        // Whoever reads the last report may begin another one.
        drop(place);
        // Nobody may be there any more.
        let _gone = timing.to.send_timeout(line(&timing.report), FAREWELL).await;
    }

    async fn turn_on(
        &self,
        (asked, wanted): (Asked, Wanted),
        names: BTreeMap<NodeId, String>,
        to: mpsc::Sender<Bytes>,
    ) -> Result<Timing, NoFlow> {
        let channel = wanted.channel.clone();
        let before = self.totals(&channel).await?;
        let before = before.ok_or_else(|| NoFlow::Unknown(channel.clone()))?;
        let workers = self.dispatch.with_all(|_, _| ()).await?.len();
        let (notes, noted) = notes(self.dispatch.clock());
        // Made here: a worker's thread takes no memory for it.
        let part = || Box::new(Flow::new(wanted.clone(), notes.clone()));
        let parts: Arc<Mutex<Vec<Box<Flow>>>> =
            Arc::new(Mutex::new((0..workers).map(|_| part()).collect()));
        let give = move |_: u64, all: &mut virga_transport::worker::Parts<dispatch::Service>| {
            let flow = parts.lock().ok().and_then(|mut parts| parts.pop());
            all.set_flow(flow).is_some()
        };
        self.dispatch.with_all(give).await?;
        self.dispatch.time(Some(Timed::new(&wanted, notes)));
        tracing::info!(?asked, "a flow is timed");
        Ok(Timing {
            asked,
            channel,
            names,
            noted,
            times: Histograms::default(),
            before,
            began: Instant::now(),
            report: Report::default(),
            to,
        })
    }

    async fn turn_off(&self) {
        self.dispatch.time(None);
        // What is taken back is let go of here, and with the workers, the daemon ends.
        let _ended = self
            .dispatch
            .with_all(|_, parts| parts.set_flow(None))
            .await;
    }

    async fn totals(&self, channel: &ChannelName) -> Result<Option<Totals>, dispatch::Ended> {
        let name = channel.clone();
        let each = self
            .dispatch
            .with_all(move |_, parts| parts.service.flow_totals(&name));
        let each = each.await?;
        let sum = |sum: Totals, one: Totals| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2);
        Ok(each.into_iter().flatten().reduce(sum))
    }

    /// Reads what is told, until it is over; why.
    async fn follow(&self, timing: &mut Timing) -> String {
        let mut stopping = self.stopping.clone();
        let mut told = Instant::now();
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = timing.to.closed() => return "whoever asked is gone".to_owned(),
                _ = stopping.changed() => return "the node stops".to_owned(),
            }
            timing.look();
            if let Some(why) = timing.over() {
                return why;
            }
            if told.elapsed() >= REPORTS_EVERY {
                told = Instant::now();
                if let Err(error) = self.sum_up(timing).await {
                    return error.to_string();
                }
                // Whoever is slow gets a newer one.
                let _slow = timing.to.try_send(line(&timing.report));
            }
        }
    }

    /// Brings the report up to date.
    async fn sum_up(&self, timing: &mut Timing) -> Result<(), dispatch::Ended> {
        // A channel that is removed meanwhile counts no further.
        let totals = self.totals(&timing.channel).await?;
        let (published, sent, received) = totals.unwrap_or(timing.before);
        let name = timing.channel.clone();
        let paths = self
            .dispatch
            .with_all(move |_, parts| parts.service.flow_paths(&parts.node, &name));
        let paths = paths.await?.into_iter().flatten();
        let paths = paths.map(|(node, rtt_us)| Path {
            node: node.to_string(),
            name: timing.names.get(&node).cloned(),
            rtt_us,
        });
        let report = &mut timing.report;
        report.paths = paths.collect();
        let elapsed = timing.began.elapsed().as_millis();
        report.elapsed_ms = u64::try_from(elapsed).unwrap_or(u64::MAX);
        report.published = published.saturating_sub(timing.before.0);
        report.sent = sent.saturating_sub(timing.before.1);
        report.received = received.saturating_sub(timing.before.2);
        timing.times.tell(report);
        Ok(())
    }
}

impl Timing {
    fn look(&mut self) {
        while let Some(note) = self.noted.next() {
            match note.ns {
                Ok(ns) => self.times.record(note.stage, ns),
                Err(why) => self.times.pass_over(why),
            }
        }
    }

    fn over(&self) -> Option<String> {
        let is_enough = |count| self.times.most() >= count;
        if self.asked.count.is_some_and(is_enough) {
            return Some("as many as asked for".to_owned());
        }
        let within = self.asked.seconds.map(Duration::from_secs);
        let is_late = within.is_some_and(|within| self.began.elapsed() >= within);
        is_late.then(|| "the time asked for is over".to_owned())
    }
}

fn line(report: &Report) -> Bytes {
    // A report is made of numbers and text alone.
    let mut line = serde_json::to_vec(report).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
