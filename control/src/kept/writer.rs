//! The thread that owns the logs.

use super::LogStatus;
use crate::{
    channel::{Delivery, Signature},
    hex,
    signing::Signing,
};
use std::{
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
    sync::{mpsc, watch},
};
use virga_ebpf::hash::origin_hash;
use virga_state::{
    AppendError, Link,
    batch::BatchError,
    bundle,
    io::{
        clock,
        driver::{Driver, Way},
        open::OpenLog,
    },
};

/// Inputs that are taken together.
const TOGETHER_MAX: usize = 64;
/// How often it is looked whether anything is due while nothing comes: retention by age, a disk that was
/// full.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long it is waited while a log takes nothing.
const RETRY: Duration = Duration::from_millis(50);

/// What comes to a log.
pub(super) enum Input {
    /// Events, in order.
    Events {
        /// Which log.
        log: usize,
        /// What it gets.
        deliveries: Vec<Delivery>,
    },
    /// The channel went on without it.
    Interrupted {
        /// Which log.
        log: usize,
    },
}

/// See the module.
pub(super) struct Writer {
    thread: JoinHandle<()>,
    is_late: Arc<AtomicBool>,
}

impl Writer {
    /// Starts it; it ends when all senders of `inputs` are gone. Within a runtime.
    pub(super) fn start(
        (logs, states): (Vec<OpenLog>, Vec<watch::Sender<LogStatus>>),
        signing: Signing,
        inputs: mpsc::Receiver<Input>,
    ) -> io::Result<Self> {
        let (runtime, is_late) = (Handle::current(), Arc::new(AtomicBool::new(false)));
        let mut thread = Thread {
            logs,
            states,
            signing,
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

struct Thread {
    logs: Vec<OpenLog>,
    states: Vec<watch::Sender<LogStatus>>,
    /// Is told of what is kept.
    signing: Signing,
    driver: Driver,
    /// What a log does not take now is given up.
    is_late: Arc<AtomicBool>,
}

impl Thread {
    fn run(&mut self, runtime: &Handle, mut inputs: mpsc::Receiver<Input>) {
        let mut taken = Vec::with_capacity(TOGETHER_MAX);
        self.settle();
        loop {
            let more = inputs.recv_many(&mut taken, TOGETHER_MAX);
            let more = runtime.block_on(async { tokio::time::timeout(LOOK_AGAIN, more).await });
            if matches!(more, Ok(0)) {
                break;
            }
            for input in taken.drain(..) {
                match input {
                    Input::Events { log, deliveries } => self.append(log, &deliveries),
                    Input::Interrupted { log } => {
                        self.states[log].send_modify(|state| state.interrupted += 1);
                    }
                }
            }
            self.settle();
        }
        for (open, state) in self.logs.drain(..).zip(&self.states) {
            let channel = state.borrow().channel.clone();
            if let Err(error) = open.close() {
                tracing::error!(%channel, %error, "the log could not be closed");
            }
        }
    }

    fn append(&mut self, log: usize, deliveries: &[Delivery]) {
        for (at, delivery) in deliveries.iter().enumerate() {
            loop {
                let appended = match &delivery.signature {
                    // It comes with the batch's last event, all at once.
                    Signature::Later => break,
                    Signature::Here(message) => self.append_signed(log, message),
                    Signature::None => self.append_one(log, delivery),
                };
                match appended {
                    Ok(()) => break,
                    Err(AppendError::Full | AppendError::DiskFull)
                        if !self.is_late.load(Ordering::Acquire) =>
                    {
                        self.settle();
                        if self.logs[log].log.is_disk_full() {
                            std::thread::sleep(RETRY);
                        }
                    }
                    Err(error) => {
                        let lost = deliveries.len() - at;
                        return self.lose(log, lost, &error);
                    }
                }
            }
        }
    }

    /// An event without a link of its own: the log says whose it is.
    fn append_one(&mut self, log: usize, delivery: &Delivery) -> Result<(), AppendError> {
        let link = Link {
            entity: origin_hash(&delivery.entity),
            observed: 0,
            parent: 0,
        };
        let log = &mut self.logs[log].log;
        let appended = log.append(clock::now_unix_ns(), &link, &delivery.payload);
        appended.map(|_offset| ())
    }

    /// The events of a batch; what is not as it was signed is refused, and that is no failure of the log.
    fn append_signed(&mut self, log: usize, message: &[u8]) -> Result<(), AppendError> {
        let (batch, payloads) = match bundle::parse(message) {
            Ok(parsed) => parsed,
            Err(error) => {
                self.refuse(log, 1, &error);
                return Ok(());
            }
        };
        let payloads: Vec<&[u8]> = payloads.into_iter().map(|range| &message[range]).collect();
        let open = &mut self.logs[log].log;
        let verified = match open.append_signed(clock::now_unix_ns(), &batch, &payloads) {
            Ok((_offset, verified)) => verified,
            Err(AppendError::Signature(error)) => {
                self.refuse(log, payloads.len(), &error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if let Some(fork) = self.signing.observe(&verified) {
            let (entity, from) = (hex::encode(&fork.one.statement.entity), fork.from());
            self.states[log].send_modify(|state| {
                tracing::error!(channel = %state.channel, %entity, from, "an entity signed two things that contradict each other; `virga log verify` has the proof");
                state.forks += 1;
            });
        }
        Ok(())
    }

    fn refuse(&self, log: usize, events: usize, error: &BatchError) {
        self.states[log].send_modify(|state| {
            tracing::warn!(channel = %state.channel, events, %error, "not kept: not as they were signed");
            state.refused += events as u64;
        });
    }

    fn lose(&mut self, log: usize, lost: usize, error: &AppendError) {
        self.states[log].send_modify(|state| {
            tracing::error!(channel = %state.channel, lost, %error, "events are not in the log");
            state.lost += u64::try_from(lost).unwrap_or(u64::MAX);
        });
    }

    /// Does all that is to be done now, and tells of it.
    fn settle(&mut self) {
        self.driver.settle(&mut self.logs);
        for (open, state) in self.logs.iter().zip(&self.states) {
            let log = &open.log;
            let is_full = log.is_disk_full();
            let full = is_full.then_some("the disk is full: make room, the log goes on by itself");
            let problem = log.failure().or(full).map(str::to_owned);
            let has_ended = log.failure().is_some();
            state.send_if_modified(|state| {
                let is_same = (state.first, state.end, state.readable)
                    == (log.first(), log.end(), log.readable())
                    && state.problem == problem;
                (state.first, state.end, state.readable) = (log.first(), log.end(), log.readable());
                (state.problem, state.has_ended) = (problem, has_ended);
                !is_same
            });
        }
    }
}
