//! The daemon's side of a capture: on while somebody asks, off when the asker is gone, however that came.
//!
//! One at a time: the NIC path goes by one order. A task of its own turns samples on, looks for them a hundred times
//! a second, renews the order, and turns them off. It ends with whoever reads its lines.

use super::{
    asked::{Asked, RATE},
    headers,
    line::{Begun, Counts, Ended, Line, Names, Place},
};
use crate::{
    config::Config,
    daemon::{monotonic_ns, path::Asker, unix_ns},
    dispatch::{self, Dispatch, Service},
    nic::{
        NicError,
        samples::{self, LEASE, Samples},
    },
};
use bytes::Bytes;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, futures::OwnedNotified, mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use virga_ebpf::{
    limits::HEADER_BYTES,
    sample::{Order, SampleHead, Tally},
};
use virga_transport::{
    tap::{self, Taken},
    worker::Parts,
};

/// How often samples are looked for: a ring holds what comes in between.
const EVERY: Duration = Duration::from_millis(10);
/// How often it is told how many there were.
const COUNTS_EVERY: Duration = Duration::from_millis(250);
/// How often the order is renewed, and a rate made to fit.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// What is under way when the order ends has ended by then.
const LAST_ONES: Duration = Duration::from_millis(20);
/// How long whoever reads may take for the last line.
const FAREWELL: Duration = Duration::from_secs(2);
/// Chunks of lines that wait for whoever reads.
const CHUNKS_MAX: usize = 64;

const _: () = assert!(RENEW_EVERY.as_millis() * 2 < LEASE.as_millis());

/// The daemon's captures.
#[derive(Clone)]
pub struct Captures {
    dispatch: Dispatch,
    path: Asker,
    stopping: watch::Receiver<()>,
    place: Arc<Semaphore>,
    end: Arc<Notify>,
}

/// Why there is no capture.
#[derive(Debug, thiserror::Error)]
pub enum NoCapture {
    /// What is asked for is not there.
    #[error("{0}")]
    Asked(String),
    /// Another one goes on.
    #[error(
        "another capture goes on (of virga capture, or virga drops --origins), and there is one at a time: end it, or have it ended by `virga capture --stop`"
    )]
    Busy,
    /// The forwarding path refuses.
    #[error("samples cannot be had: {0}")]
    Refused(String),
    /// The node is shutting down.
    #[error(transparent)]
    Ended(#[from] dispatch::Ended),
}

impl Captures {
    /// Captures of what this path and these workers decide, until the sender of `stopping` is dropped.
    #[must_use]
    pub fn new(dispatch: &Dispatch, path: &Asker, stopping: &watch::Receiver<()>) -> Self {
        Self {
            dispatch: dispatch.clone(),
            path: path.clone(),
            stopping: stopping.clone(),
            place: Arc::new(Semaphore::new(1)),
            end: Arc::default(),
        }
    }

    /// Ends the one that goes on, as if whoever reads had asked for no more. False: there is none.
    #[must_use]
    pub fn stop(&self) -> bool {
        let goes_on = self.place.available_permits() == 0;
        if goes_on {
            self.end.notify_waiters();
        }
        goes_on
    }

    /// Begins one: its lines, until they are dropped.
    ///
    /// # Errors
    /// See [`NoCapture`]; nothing is turned on then.
    pub async fn begin(
        &self,
        asked: Asked,
        config: &Config,
    ) -> Result<mpsc::Receiver<Bytes>, NoCapture> {
        let place = Arc::clone(&self.place);
        let place = place.try_acquire_owned().map_err(|_| NoCapture::Busy)?;
        // Whoever ends it may do so before it is on.
        let end = Arc::clone(&self.end).notified_owned();
        let interfaces = self.path.interfaces().await.ok_or(dispatch::Ended)?;
        let order = asked.order(config, &interfaces);
        let order = order.map_err(NoCapture::Asked)?;
        let names = Names::new(config, interfaces);
        let port = config.node.listen.port();
        let (to, lines) = mpsc::channel(CHUNKS_MAX);
        let (begun, answer) = oneshot::channel();
        let task = self
            .clone()
            .run((asked, order), (names, port), (to, begun), (place, end));
        // Whoever asked may be gone before it is on: what is turned on is turned off all the same.
        tokio::spawn(task);
        answer.await.map_err(|_| dispatch::Ended)??;
        Ok(lines)
    }

    async fn run(
        self,
        (asked, order): (Asked, Order),
        (names, port): (Names, u16),
        (to, begun): (mpsc::Sender<Bytes>, oneshot::Sender<Result<(), NoCapture>>),
        (place, end): (OwnedSemaphorePermit, OwnedNotified),
    ) {
        let mut capture = match self.turn_on(asked, order, (names, port), to).await {
            Ok(capture) => capture,
            Err(error) => {
                self.turn_off().await;
                drop(place);
                let _gone = begun.send(Err(error));
                return;
            }
        };
        let _gone = begun.send(Ok(()));
        let why = self.follow(&mut capture, end).await;
        capture.end_order();
        // The workers let go of what tells their samples when it is gone; this is sooner.
        let _ended = self.untap().await;
        sleep(LAST_ONES).await;
        capture.look(self.dispatch.now_ns());
        self.turn_off().await;
        tracing::info!(%why, told = capture.told, "a capture has ended");
        capture.conclude(why);
        // Whoever reads the last line may begin another one.
        drop(place);
        capture.say_goodbye().await;
    }

    async fn turn_on(
        &self,
        asked: Asked,
        order: Order,
        (names, port): (Names, u16),
        to: mpsc::Sender<Bytes>,
    ) -> Result<Capture, NoCapture> {
        let wants = |place| asked.place.is_none_or(|only| only == place);
        let (mut nic, mut taken, mut nic_refused) = (None, None, None);
        if wants(Place::Nic) {
            let leased = leased(order);
            let sampling = self.path.sample(leased).await.ok_or(dispatch::Ended)?;
            match sampling {
                Ok(samples) => nic = samples,
                // The workers are seen all the same, and the first line says what is not.
                Err(why @ NicError::NoSamples(_)) if asked.place.is_none() => {
                    tracing::warn!(%why, "a capture goes without the NIC path");
                    nic_refused = Some(why.to_string());
                }
                Err(why) => return Err(NoCapture::Refused(why.to_string())),
            }
        }
        if wants(Place::Userspace) {
            taken = Some(self.tap(&order).await?);
        }
        let running = self.path.status().await.ok_or(dispatch::Ended)?;
        let names_of = running.interfaces.into_iter();
        let nic_interfaces = names_of
            .filter(|one| nic.is_some() && one.program == crate::nic::SAMPLE)
            .map(|one| one.interface);
        let begun = Begun {
            nic: nic_interfaces.collect(),
            userspace: taken.is_some(),
            nic_refused,
            port,
        };
        let mut capture = Capture {
            limits: Limits::new(&asked),
            with_payload: asked.payload == Some(true),
            order,
            names,
            port,
            nic,
            nic_tally: Tally::default(),
            taken,
            to,
            told: 0,
            unread: 0,
            beyond: 0,
            matched: 0,
            lines: Vec::new(),
        };
        capture.push(&Line::Begun(begun));
        capture.send();
        tracing::info!(?asked, "a capture has begun");
        Ok(capture)
    }

    async fn turn_off(&self) {
        // With the workers, the daemon ends.
        let _ended = self.untap().await;
        self.path.no_samples().await;
    }

    async fn tap(&self, order: &Order) -> Result<Taken, NoCapture> {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(|error| NoCapture::Refused(error.to_string()))?;
        let seed = u64::from_ne_bytes(seed);
        let workers = self.dispatch.with_all(|_, _| ()).await?.len();
        let order = Order {
            until_ns: u64::MAX,
            ..*order
        };
        let (taps, taken) = tap::taps(&order, workers, seed);
        let taps = Arc::new(Mutex::new(taps));
        let give = move |_, parts: &mut Parts<Service>| {
            let mut tap = taps.lock().ok().and_then(|mut taps| taps.pop());
            if let Some(tap) = &mut tap {
                tap.set_worker(u32::from(parts.share().worker()));
            }
            parts.forwarder.set_tap(tap.map(Box::new));
        };
        self.dispatch.with_all(give).await?;
        Ok(taken)
    }

    async fn untap(&self) -> Result<(), dispatch::Ended> {
        let take = |_, parts: &mut Parts<Service>| {
            parts.forwarder.set_tap(None);
        };
        self.dispatch.with_all(take).await.map(drop)
    }

    /// Tells what there is, until it is over; why.
    async fn follow(&self, capture: &mut Capture, end: OwnedNotified) -> String {
        let mut stopping = self.stopping.clone();
        tokio::pin!(end);
        let began = Instant::now();
        let (mut counted, mut renewed) = (began, began);
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = capture.to.closed() => return "whoever asked is gone".to_owned(),
                () = &mut end => return "it was stopped".to_owned(),
                _ = stopping.changed() => return "the node stops".to_owned(),
            }
            capture.look(self.dispatch.now_ns());
            let now = Instant::now();
            if now.duration_since(counted) >= COUNTS_EVERY {
                counted = now;
                let counts = Line::Counts(capture.counts());
                capture.push(&counts);
            }
            capture.send();
            if now.duration_since(renewed) >= RENEW_EVERY {
                renewed = now;
                if let Err(why) = self.renew(capture).await {
                    return why;
                }
            }
            if let Some(why) = capture.limits.over(capture.told, began.elapsed()) {
                return why;
            }
        }
    }

    /// The order goes on, and fits what comes where it is to fit.
    async fn renew(&self, capture: &mut Capture) -> Result<(), String> {
        let changed = capture.fit();
        if let Some(nic) = &capture.nic {
            let order = leased(capture.order);
            let renewed = samples::lock(nic).set_order(&order);
            renewed.map_err(|error| error.to_string())?;
        }
        if changed && capture.taken.is_some() {
            let order = Order {
                until_ns: u64::MAX,
                ..capture.order
            };
            let set = move |_, parts: &mut Parts<Service>| {
                if let Some(tap) = parts.forwarder.tap_mut() {
                    tap.set_order(&order);
                }
            };
            let told = self.dispatch.with_all(set).await;
            told.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// The order, for as long as nobody need renew it.
fn leased(order: Order) -> Order {
    let lease_ns = u64::try_from(LEASE.as_nanos()).unwrap_or(u64::MAX);
    Order {
        until_ns: monotonic_ns().saturating_add(lease_ns),
        ..order
    }
}

/// Keeps what was read. What cannot be read for once stays as it was: a count that fell would rise again as if all of
/// it had come since, and have nearly every packet passed over.
fn keep<E>(tally: &mut Tally, read: Result<Tally, E>) {
    if let Ok(read) = read {
        *tally = read;
    }
}

/// When a capture is over by itself, and how many it tells a second.
#[derive(Debug)]
struct Limits {
    count: Option<u64>,
    within: Option<Duration>,
    rate: u64,
    /// Whether one in so many follows what comes.
    is_fitted: bool,
    window: Instant,
    told_in_window: u64,
}

impl Limits {
    fn new(asked: &Asked) -> Self {
        Self {
            count: asked.count,
            within: asked.seconds.map(Duration::from_secs),
            rate: u64::from(asked.rate.unwrap_or(RATE)),
            is_fitted: asked.one_in == Some(0),
            window: Instant::now(),
            told_in_window: 0,
        }
    }

    /// Whether there are as many as were asked for.
    fn is_reached(&self, told: u64) -> bool {
        self.count.is_some_and(|count| told >= count)
    }

    fn over(&self, told: u64, elapsed: Duration) -> Option<String> {
        if self.is_reached(told) {
            return Some("as many as asked for".to_owned());
        }
        let is_late = self.within.is_some_and(|within| elapsed >= within);
        is_late.then(|| "the time asked for is over".to_owned())
    }

    /// Whether another one may be told: each CPU and worker has the rate, and all of them together too.
    fn admits(&mut self) -> bool {
        let now = Instant::now();
        if now.duration_since(self.window) >= Duration::from_secs(1) {
            (self.window, self.told_in_window) = (now, 0);
        }
        let admitted = self.told_in_window < self.rate;
        self.told_in_window += u64::from(admitted);
        admitted
    }
}

/// One that goes on.
struct Capture {
    limits: Limits,
    with_payload: bool,
    order: Order,
    names: Names,
    port: u16,
    nic: Option<Arc<Mutex<Samples>>>,
    /// What the NIC path had counted when it was last read.
    nic_tally: Tally,
    taken: Option<Taken>,
    to: mpsc::Sender<Bytes>,
    told: u64,
    unread: u64,
    /// Above the rate of all together.
    beyond: u64,
    /// As of the last look whether the rate fits.
    matched: u64,
    /// Told to nobody yet.
    lines: Vec<u8>,
}

impl Capture {
    fn push(&mut self, line: &Line) {
        // A line is made of numbers and text alone, and a Vec takes it.
        if serde_json::to_writer(&mut self.lines, line).is_ok() {
            self.lines.push(b'\n');
        }
    }

    /// Has whoever reads get the lines; where it does not keep up, packets are counted instead.
    fn send(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        let lines = std::mem::take(&mut self.lines);
        if let Err(error) = self.to.try_send(Bytes::from(lines)) {
            let lines = error.into_inner();
            let is_packet = |line: &&[u8]| line.starts_with(b"{\"kind\":\"packet\"");
            let lost = lines.split(|byte| *byte == b'\n').filter(is_packet).count();
            let lost = u64::try_from(lost).unwrap_or(u64::MAX);
            self.told -= lost;
            self.unread += lost;
        }
    }

    /// Takes what there is.
    fn look(&mut self, worker_now_ns: u64) {
        let unix_ns = unix_ns();
        let kernel_zero_ns = unix_ns.saturating_sub(monotonic_ns());
        while let Some(told) = self.nic.as_ref().and_then(|nic| samples::lock(nic).read()) {
            let head = told.head;
            let bytes = headers::bytes(&told.bytes, self.port);
            let bytes = self.shown(&told.bytes, bytes);
            let mesh = headers::mesh(&told.bytes, self.port);
            let at = kernel_zero_ns.saturating_add(head.at_ns);
            self.note((Place::Nic, None), &head, at, (bytes, mesh));
        }
        let worker_zero_ns = unix_ns.saturating_sub(worker_now_ns);
        while let Some(seen) = self.taken.as_ref().and_then(Taken::next) {
            let head = seen.sample.head;
            let kept = &seen.sample.bytes[..seen.kept];
            let bytes = self.shown(kept, HEADER_BYTES);
            let at = worker_zero_ns.saturating_add(head.at_ns);
            let source = Some(seen.source);
            self.note((Place::Userspace, source), &head, at, (bytes, Some(0)));
        }
    }

    /// What may be told of a frame that begins with so many bytes of headers.
    fn shown<'a>(&self, kept: &'a [u8], headers: usize) -> &'a [u8] {
        match self.with_payload {
            true => kept,
            false => &kept[..headers.min(kept.len())],
        }
    }

    fn note(
        &mut self,
        place: (Place, Option<std::net::SocketAddr>),
        head: &SampleHead,
        unix_ns: u64,
        (bytes, mesh): (&[u8], Option<usize>),
    ) {
        if self.limits.is_reached(self.told) {
            return;
        }
        if !self.limits.admits() {
            self.beyond += 1;
            return;
        }
        let packet = self.names.packet(place, head, unix_ns, (bytes, mesh));
        self.push(&Line::Packet(Box::new(packet)));
        self.told += 1;
    }

    fn counts(&mut self) -> Counts {
        if let Some(nic) = &self.nic {
            let read = samples::lock(nic).tally();
            keep(&mut self.nic_tally, read);
        }
        let userspace = self.taken.as_ref().map(Taken::tally);
        let mut counts = Counts::of(self.nic_tally, userspace.unwrap_or_default());
        (counts.told, counts.unread) = (self.told, self.unread);
        counts.over_rate += self.beyond;
        counts
    }

    /// Has one in so many be what the rate takes of what came within the last second. Whether that changed.
    fn fit(&mut self) -> bool {
        if !self.limits.is_fitted {
            return false;
        }
        let matched = self.counts().matched;
        let came = matched.saturating_sub(std::mem::replace(&mut self.matched, matched));
        let one_in = came.div_ceil(self.limits.rate).max(1);
        let one_in = u32::try_from(one_in).unwrap_or(u32::MAX);
        std::mem::replace(&mut self.order.one_in, one_in) != one_in
    }

    fn end_order(&self) {
        if let Some(nic) = &self.nic {
            // It ends by itself otherwise, and the program with it.
            let _soon = samples::lock(nic).set_order(&Order::default());
        }
    }

    /// The last line. The next capture counts anew.
    fn conclude(&mut self, why: String) {
        let counts = self.counts();
        self.push(&Line::Ended(Ended { why, counts }));
    }

    async fn say_goodbye(mut self) {
        let lines = Bytes::from(std::mem::take(&mut self.lines));
        // Nobody may be there any more.
        let _gone = self.to.send_timeout(lines, FAREWELL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_that_cannot_be_read_for_once_does_not_fall_and_rise_again() {
        let counted = |matched| Tally {
            matched,
            ..Tally::default()
        };
        let mut tally = Tally::default();
        let mut before = 0;
        let mut came = |read: Result<Tally, ()>| {
            keep(&mut tally, read);
            tally.matched - std::mem::replace(&mut before, tally.matched)
        };
        assert_eq!(came(Ok(counted(1_000_000))), 1_000_000);
        assert_eq!(came(Err(())), 0);
        assert_eq!(came(Ok(counted(1_000_100))), 100);
    }
}
