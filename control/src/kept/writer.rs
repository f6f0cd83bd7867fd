//! The thread that owns the logs; [`append`] is what it does with what comes.

mod append;

use super::{
    LogStatus,
    ancestors::{Ancestors, Back, Coming, Mesh, Unfound},
    compaction::{Answer as Put, Compaction},
    places::Places,
    replicated::{Drop, Seat},
};
use crate::{
    channel::Delivery,
    dispatch::Dispatch,
    reading::Reading,
    replicas::{
        Heard, Replicas,
        wire::{Answer, Assembly, Kind, Submission},
    },
    signing::Signing,
};
use append::Taken;
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    time::Instant,
};
use virga_ebpf::header::NodeId;
use virga_state::{
    AppendError,
    batch::FeedId,
    compact::{self, CompactError, Outcome, Rewritten, Rules},
    io::{
        clock,
        driver::{Driver, Way},
        open::OpenLog,
    },
};
use virga_transport::{ChannelName, Mode};

/// Inputs that are taken together.
const TOGETHER_MAX: usize = 64;
/// How often it is looked whether anything is due while nothing comes: retention by age, a disk that was
/// full.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What comes to a log.
pub(super) enum Input {
    /// Events, in order.
    Events {
        /// Which log.
        log: usize,
        /// What it gets.
        deliveries: Vec<Delivery>,
        /// Their room, until the log has them.
        room: OwnedSemaphorePermit,
    },
    /// A segment without what compaction has taken, to be put in its place.
    Compacted {
        /// Which log.
        log: usize,
        /// The segment.
        rewritten: Rewritten,
        /// Who waits for it.
        answer: Put,
    },
    /// Batches of a feed that were missing.
    Fetched {
        /// Which log.
        log: usize,
        /// Which feed.
        feed: FeedId,
        /// In order.
        messages: Vec<Bytes>,
        /// Told when it is known whether the log has them.
        done: oneshot::Sender<bool>,
    },
    /// Nobody looks for what is missing any more.
    Searched {
        /// Which log.
        log: usize,
        /// Which feed.
        feed: FeedId,
        /// Which gap.
        number: u64,
        /// Whether all came.
        found: Result<(), Unfound>,
    },
    /// It was looked where a log's feeds end.
    LookedBack {
        /// Which log.
        log: usize,
        /// What was found.
        back: Box<Back>,
    },
    /// One more log, on this node alone.
    Begin {
        /// The log.
        begun: Box<Begun>,
        /// Told its number.
        done: oneshot::Sender<usize>,
    },
    /// Whether the node keeps it no more, by command.
    Left {
        /// Which log.
        log: usize,
        /// Whether it does.
        is_left: bool,
        /// Told when it holds: nothing more is appended.
        done: oneshot::Sender<()>,
    },
    /// The channel went on without it.
    Interrupted {
        /// Which log.
        log: usize,
    },
}

/// A log that is begun while the others are written.
pub(super) struct Begun {
    pub(super) open: OpenLog,
    pub(super) channel: ChannelName,
    pub(super) rules: Option<Rules>,
    pub(super) state: watch::Sender<LogStatus>,
}

/// Events of a log, and their room.
type Early = (Vec<Delivery>, OwnedSemaphorePermit);

/// All logs, the replicas of those that are on several nodes, and where is told how they stand.
type Logs = (
    Vec<OpenLog>,
    Vec<Option<Seat>>,
    Vec<watch::Sender<LogStatus>>,
);

/// See the module.
pub(super) struct Writer {
    thread: JoinHandle<()>,
    is_late: Arc<AtomicBool>,
}

impl Writer {
    /// Starts it; it ends when all senders of `inputs` are gone. Within a runtime.
    pub(super) fn start(
        (logs, seats, states): Logs,
        signed: Vec<Option<ChannelName>>,
        signing: Signing,
        (replicas, dispatch, reading): (Replicas, Dispatch, Reading),
        (coming, places): (Coming, Places),
        (compaction, to): (Compaction, mpsc::WeakSender<Input>),
        inputs: mpsc::Receiver<Input>,
    ) -> io::Result<Self> {
        let (runtime, is_late) = (Handle::current(), Arc::new(AtomicBool::new(false)));
        // For which logs, the thread says once it runs.
        signing.begin_looking();
        let around = Mesh::new(dispatch.clone(), reading);
        let mut thread = Thread {
            logs,
            seats,
            states,
            signing,
            replicas,
            dispatch,
            begun: BTreeMap::new(),
            signed,
            ancestors: Ancestors::new(
                around,
                (coming, places.clone()),
                to.clone(),
                runtime.clone(),
            ),
            named: None,
            places,
            early: BTreeMap::new(),
            to,
            compaction,
            driver: Driver::open(Way::Auto),
            is_late: Arc::clone(&is_late),
        };
        let thread = std::thread::Builder::new()
            .name("virga-log".into())
            .spawn(move || thread.run(&runtime, inputs))?;
        Ok(Self { thread, is_late })
    }

    /// Waits until all is written, but no longer than `most` for a log that takes nothing.
    pub(super) async fn stop(self, most: Duration) {
        let joined = tokio::task::spawn_blocking(|| self.thread.join());
        let late = async {
            tokio::time::sleep(most).await;
            self.is_late.store(true, Ordering::Release);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            // One that panicked has said so.
            _ended = joined => {}
            () = late => {}
        }
    }
}

/// Tells of what keeps a log from taking events, or of its end.
fn tell(channel: &str, problem: Option<&str>) {
    match problem {
        Some(problem) => tracing::warn!(%channel, %problem, "the log takes no events for now"),
        None => tracing::info!(%channel, "the log takes events again"),
    }
}

fn tell_of_pass(state: &mut LogStatus, outcome: Result<Outcome, CompactError>) {
    let problem = match outcome {
        // Why it was stopped was said where that was.
        Err(CompactError::Stopped) => return,
        Err(error) => Some(error.to_string()),
        Ok(outcome) => outcome.problem(),
    };
    if let Some(problem) = problem
        .as_ref()
        .filter(|_| problem != state.compaction_problem)
    {
        tracing::warn!(channel = %state.channel, %problem, "the log is not compacted, or not all of it");
    }
    state.compaction_problem = problem;
}

struct Thread {
    logs: Vec<OpenLog>,
    seats: Vec<Option<Seat>>,
    /// The channel of each whose events are signed.
    signed: Vec<Option<ChannelName>>,
    states: Vec<watch::Sender<LogStatus>>,
    /// Is told of what is kept.
    signing: Signing,
    replicas: Replicas,
    dispatch: Dispatch,
    /// Of each peer, the message that is not whole.
    begun: BTreeMap<NodeId, Assembly>,
    /// What waits for events that are missing, in the logs that are on this node alone.
    ancestors: Ancestors<Mesh>,
    /// When it was looked last who is to be asked for what is named.
    named: Option<Instant>,
    /// Where feeds are in those logs.
    places: Places,
    /// What came to logs of which it is not known yet where their feeds end.
    early: BTreeMap<usize, Vec<Early>>,
    to: mpsc::WeakSender<Input>,
    compaction: Compaction,
    driver: Driver,
    /// What a log does not take now is given up.
    is_late: Arc<AtomicBool>,
}

impl Thread {
    fn run(&mut self, runtime: &Handle, mut inputs: mpsc::Receiver<Input>) {
        let mut taken = Vec::with_capacity(TOGETHER_MAX);
        self.settle();
        self.look_back(runtime, 0..self.logs.len());
        loop {
            if !runtime.block_on(self.wait(&mut inputs, &mut taken)) {
                break;
            }
            for input in taken.drain(..) {
                match input {
                    Input::Events {
                        log, deliveries, ..
                    } if self.is_left(log) => self.drop_late(log, deliveries.len()),
                    Input::Events {
                        log,
                        deliveries,
                        room,
                    } => match self.early.get_mut(&log) {
                        Some(early) => early.push((deliveries, room)),
                        None => {
                            self.append(log, &deliveries);
                            drop(room);
                        }
                    },
                    Input::LookedBack { log, back } => self.looked_back(log, *back),
                    Input::Begin { begun, done } => {
                        let log = self.begin(*begun);
                        self.look_back_begun(runtime, log);
                        // Who waits no more asks again.
                        let _gone = done.send(log);
                    }
                    Input::Left { log, is_left, done } => {
                        self.leave(log, is_left);
                        // Who waits no more asks again.
                        let _gone = done.send(());
                    }
                    Input::Compacted {
                        log,
                        rewritten,
                        answer,
                    } => {
                        // One that waits no more has ended.
                        let _gone = answer.send(self.put(log, &rewritten));
                    }
                    Input::Fetched {
                        log,
                        feed,
                        messages,
                        done,
                    } => {
                        // One that waits no more has ended.
                        let _gone = done.send(self.fetched(log, feed, &messages));
                    }
                    Input::Searched {
                        log,
                        feed,
                        number,
                        found,
                    } => {
                        self.searched(log, (feed, number), found);
                    }
                    Input::Interrupted { log } => {
                        self.states[log].send_modify(|state| state.interrupted += 1);
                    }
                }
            }
            for heard in self.replicas.take() {
                self.hear(heard);
            }
            while let Some((log, feed)) = self.ancestors.turn() {
                self.count_gap(log, Unfound::Full);
                self.append_waiting(log, feed);
            }
            self.begin_names();
            self.settle();
            self.compact();
        }
        drop(inputs);
        self.compaction.stop();
        while let Some((&log, _)) = self.early.first_key_value() {
            self.append_early(log);
        }
        while let Some((log, feed)) = self.ancestors.any() {
            self.count_gap(log, Unfound::Failed);
            self.append_waiting(log, feed);
        }
        for (open, state) in self.logs.drain(..).zip(&self.states) {
            let channel = state.borrow().channel.clone();
            if let Err(error) = open.close() {
                tracing::error!(%channel, %error, "the log could not be closed");
            }
        }
    }

    fn begin(&mut self, begun: Begun) -> usize {
        self.logs.push(begun.open);
        self.seats.push(None);
        self.states.push(begun.state);
        self.signed.push(Some(begun.channel));
        self.compaction.add(begun.rules);
        self.logs.len() - 1
    }

    /// Waits until something came or is due; whether anything more can come.
    async fn wait(&self, inputs: &mut mpsc::Receiver<Input>, taken: &mut Vec<Input>) -> bool {
        let seats = self.seats.iter().flatten();
        let due_ns = seats.map(Seat::due_in_ns).min().unwrap_or(u64::MAX);
        let due = LOOK_AGAIN.min(Duration::from_nanos(due_ns));
        tokio::select! {
            biased;
            count = inputs.recv_many(taken, TOGETHER_MAX) => count > 0,
            () = self.replicas.changed() => true,
            () = tokio::time::sleep(due) => true,
        }
    }

    /// A part of what a node says about a log that is on several.
    fn hear(&mut self, heard: Heard) {
        let Heard { peer, entity, part } = heard;
        let mut channels = self.seats.iter().map(|seat| Some(seat.as_ref()?.channel()));
        let Some(log) = channels.position(|channel| channel == Some(&part.channel)) else {
            return;
        };
        let whole = match self.begun.entry(peer).or_default().take(part) {
            Ok(None) => return,
            Ok(Some(whole)) => whole,
            Err(_) => return self.drop_one(log, Drop::Missing),
        };
        self.begun.remove(&peer);
        match (whole.kind, &mut self.seats[log]) {
            (Kind::Between, Some(seat)) => seat.handle(peer, &whole.bytes, &mut self.logs[log]),
            (Kind::Submission, Some(_)) => {
                let to = (peer, whole.number);
                if let Some(answer) = self.submit(log, entity, (to, whole.bytes)) {
                    self.answer(log, to, answer);
                }
            }
            _ => {}
        }
    }

    /// Puts a segment in its place that compaction made anew; whether compaction may go on.
    fn put(&mut self, log: usize, rewritten: &Rewritten) -> bool {
        // What retention is letting go of has to be gone first.
        self.settle();
        let open = &mut self.logs[log];
        let put = compact::put(&mut open.log, &mut open.files, rewritten);
        self.states[log].send_modify(|state| match &put {
            Ok(true) => {
                state.compacted_events += rewritten.removed_events;
                state.compacted_bytes += rewritten.removed_bytes;
            }
            // Retention was first: what the pass would take next may rest on what that has not done yet.
            Ok(false) => {}
            Err(error) => {
                let problem = format!("{error}: it goes on when the node is started again");
                tracing::error!(channel = %state.channel, %problem, "the log is not compacted");
                state.compaction_problem = Some(problem);
            }
        });
        if put.is_err() {
            self.compaction.give_up(log);
        }
        matches!(put, Ok(true))
    }

    /// Hears of a pass that has ended, and begins the next.
    fn compact(&mut self) {
        if let Some((log, outcome)) = self.compaction.ended() {
            self.states[log].send_modify(|state| tell_of_pass(state, outcome));
        }
        if let Err(error) = self.compaction.begin(&self.logs, clock::now_unix_ns()) {
            tracing::warn!(%error, "no log is compacted for now");
        }
    }

    fn drop_one(&mut self, log: usize, why: Drop) {
        if let Some(seat) = &mut self.seats[log] {
            seat.drop_one(why);
        }
    }

    fn answer(&mut self, log: usize, to: (NodeId, u64), answer: Answer) {
        if let Some(seat) = &mut self.seats[log] {
            seat.answer(to, answer, &self.replicas, &self.dispatch);
        }
    }

    /// Appends what a node publishes; an answer where that is known at once.
    fn submit(
        &mut self,
        log: usize,
        entity: [u8; 32],
        (to, message): ((NodeId, u64), Vec<u8>),
    ) -> Option<Answer> {
        let seat = self.seats[log].as_mut()?;
        let Some(submission) = Submission::parse(message) else {
            seat.drop_one(Drop::Malformed);
            return Some(Answer::Refused("it cannot be read".to_owned()));
        };
        if submission.group != seat.group().hash {
            seat.drop_one(Drop::OtherGroup);
            return Some(Answer::OtherGroup);
        }
        if let Some(answer) = seat.refusal(&self.logs[log]) {
            return Some(answer);
        }
        let before = self.logs[log].log.end();
        for event in submission.events {
            if let Err(answer) = self.append_submitted(log, entity, event) {
                let is_any = self.logs[log].log.end() > before;
                return Some(if is_any { Answer::Unknown } else { answer });
            }
        }
        let seat = self.seats[log].as_mut()?;
        seat.wait(&self.logs[log], submission.acks, to);
        None
    }

    fn append_submitted(
        &mut self,
        log: usize,
        entity: [u8; 32],
        event: Bytes,
    ) -> Result<(), Answer> {
        // Who declares the channel says so, at any time.
        let channel = self.seats[log].as_ref().map(Seat::channel);
        let mode = channel.and_then(|channel| self.dispatch.mode(channel));
        let Some(mode) = mode else {
            let words = "the channel is not known there".to_owned();
            return Err(Answer::Refused(words));
        };
        loop {
            let appended = match mode == Mode::Signed {
                true => self.append_signed(log, &event),
                false => self.append_one(log, &entity, &event).map(|()| Taken::New),
            };
            match appended {
                Ok(Taken::Refused) => {
                    let words = "they are not as their entity signed them".to_owned();
                    return Err(Answer::Refused(words));
                }
                Ok(Taken::New | Taken::Known) => return Ok(()),
                // The replica hears nothing meanwhile: it leads as before.
                Err(AppendError::Full) => self.driver.settle(&mut self.logs),
                Err(AppendError::DiskFull | AppendError::Closing) => return Err(Answer::Full),
                Err(error) => return Err(Answer::Refused(error.to_string())),
            }
        }
    }

    /// Does all that is to be done now, and tells of it.
    fn settle(&mut self) {
        self.driver.settle(&mut self.logs);
        if self.seats.iter().any(Option::is_some) {
            self.settle_replicas();
        }
        let own = self.replicas.own();
        for (at, ((open, seat), state)) in
            (self.logs.iter().zip(&self.seats).zip(&self.states)).enumerate()
        {
            let log = &open.log;
            let waiting_bytes = self.ancestors.waiting_bytes(at) + self.early_bytes(at);
            let is_full = log.is_disk_full();
            let full = is_full.then_some("the disk is full: make room, the log goes on by itself");
            let ended = seat.as_ref().and_then(Seat::failure);
            let problem = log.failure().or(ended).or(full).map(str::to_owned);
            let has_ended = log.failure().or(ended).is_some();
            let readable = seat
                .as_ref()
                .map_or(log.readable(), |seat| seat.readable(open));
            let replication = seat.as_ref().map(|seat| seat.status(open, own));
            state.send_if_modified(|state| {
                let is_same = (state.first, state.end, state.readable)
                    == (log.first(), log.end(), readable)
                    && state.problem == problem
                    && state.waiting_bytes == waiting_bytes
                    && state.replication == replication;
                (state.first, state.end, state.readable) = (log.first(), log.end(), readable);
                // One that has ended is told of by who brings it events.
                if state.problem != problem && !has_ended {
                    tell(&state.channel, problem.as_deref());
                }
                (state.problem, state.has_ended) = (problem, has_ended);
                state.replication = replication;
                state.waiting_bytes = waiting_bytes;
                !is_same
            });
        }
    }

    /// What replicas append is written before they go on; then they speak.
    fn settle_replicas(&mut self) {
        loop {
            for (seat, open) in self.seats.iter_mut().zip(&mut self.logs) {
                if let Some(seat) = seat {
                    seat.go_on(open);
                }
            }
            if !self.driver.round(&mut self.logs) {
                break;
            }
            self.driver.settle(&mut self.logs);
        }
        for (seat, open) in self.seats.iter_mut().zip(&self.logs) {
            if let Some(seat) = seat {
                seat.speak(open, &self.replicas, &self.dispatch);
            }
        }
    }
}
