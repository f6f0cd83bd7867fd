//! What comes is appended; what follows events that a log lacks waits for them.

use super::Thread;
use crate::{
    channel::{Delivery, Signature},
    hex,
    kept::ancestors::{Arrived, LOOKED_BACK_BYTES, Unfound},
};
use bytes::Bytes;
use std::{sync::atomic::Ordering, time::Duration};
use virga_ebpf::hash::origin_hash;
use virga_state::{
    AppendError, Link, LogName,
    batch::{BatchError, FeedId},
    bundle, history,
    io::clock,
};

/// How long it is waited while a log takes nothing.
const RETRY: Duration = Duration::from_millis(50);

impl Thread {
    pub(super) fn append(&mut self, log: usize, deliveries: &[Delivery]) {
        for (at, delivery) in deliveries.iter().enumerate() {
            let appended = match &delivery.signature {
                // It comes with the batch's last event, all at once.
                Signature::Later => continue,
                Signature::Here(message) => self.append_arrived(log, message),
                Signature::None => {
                    let (entity, payload) = (&delivery.entity, &delivery.payload);
                    self.until_taken(log, |thread| thread.append_one(log, entity, payload))
                }
            };
            if let Err(error) = appended {
                return self.lose(log, deliveries.len() - at, &error);
            }
        }
    }

    /// Appends until the log has room, or is late.
    fn until_taken(
        &mut self,
        log: usize,
        append: impl Fn(&mut Self) -> Result<(), AppendError>,
    ) -> Result<(), AppendError> {
        loop {
            match append(self) {
                Err(AppendError::Full | AppendError::DiskFull)
                    if !self.is_late.load(Ordering::Acquire) =>
                {
                    self.settle();
                    if self.logs[log].log.is_disk_full() {
                        std::thread::sleep(RETRY);
                    }
                }
                appended => return appended,
            }
        }
    }

    /// A batch that came: it waits while events are missing in front of it.
    fn append_arrived(&mut self, log: usize, message: &Bytes) -> Result<(), AppendError> {
        loop {
            let arrived = match &self.signed[log] {
                Some(channel) => self.ancestors.arrived((log, channel), message),
                None => Arrived::Next,
            };
            match arrived {
                Arrived::Waits => return Ok(()),
                Arrived::Next => break,
                Arrived::Without(why) => {
                    self.count_gap(log, why);
                    break;
                }
                Arrived::Evict(of, feed) => {
                    self.count_gap(of, Unfound::Full);
                    self.append_waiting(of, feed);
                }
            }
        }
        self.until_taken(log, |thread| thread.append_signed(log, message))
    }

    /// Appends what waits of a feed, whatever is missing.
    pub(super) fn append_waiting(&mut self, log: usize, feed: FeedId) {
        for message in self.ancestors.give_up(feed) {
            let appended = self.until_taken(log, |thread| thread.append_signed(log, &message));
            self.lose_unless(log, &message, appended);
        }
    }

    /// Nobody looks any more for what is missing in front of what waits.
    pub(super) fn searched(
        &mut self,
        log: usize,
        (feed, number): (FeedId, u64),
        found: Result<(), Unfound>,
    ) {
        let mut waiting = self.ancestors.end(feed, number);
        let Some(first) = waiting.pop_front() else {
            return;
        };
        if let Err(why) = found {
            self.count_gap(log, why);
            self.ancestors.pause(feed);
        }
        let appended = self.until_taken(log, |thread| thread.append_signed(log, &first));
        self.lose_unless(log, &first, appended);
        // More may be missing between them.
        for message in waiting {
            let appended = self.append_arrived(log, &message);
            self.lose_unless(log, &message, appended);
        }
    }

    /// Batches that were missing, each checked by who asked for them; whether the log has them.
    pub(super) fn fetched(&mut self, log: usize, feed: FeedId, messages: &[Bytes]) -> bool {
        for message in messages {
            // The log may have gone on without them.
            if !self.ancestors.is_next(feed, message) {
                continue;
            }
            match self.until_taken(log, |thread| thread.append_signed(log, message)) {
                Ok(()) => {
                    let events = events_of(message);
                    self.ancestors.took(feed, message.len());
                    self.states[log].send_modify(|state| state.repaired += events);
                }
                // They are at the node that gave them.
                Err(error) => {
                    tracing::warn!(%error, "events that another node gave are not in the log");
                    return false;
                }
            }
        }
        true
    }

    pub(super) fn count_gap(&self, log: usize, why: Unfound) {
        self.states[log].send_modify(|state| {
            tracing::warn!(channel = %state.channel, why = why.name(), "the log goes on without events that later ones follow");
            *state.gaps.entry(why.name().to_owned()).or_default() += 1;
        });
    }

    /// Notes where feeds end in the logs that are on this node alone.
    pub(super) fn look_back(&mut self) {
        let alone = self.logs.iter().zip(&self.seats).zip(&self.signed);
        for ((open, seat), channel) in alone {
            let (Some(channel), None) = (channel, seat) else {
                continue;
            };
            let Ok(name) = LogName::parse(channel.as_str()) else {
                continue;
            };
            let disk = open.files.disk();
            match history::last_of_feeds(disk, &name, LOOKED_BACK_BYTES) {
                Ok(all) => {
                    for last in all {
                        self.ancestors.note(&last.batch, last.time_unix_ns);
                        // It is the first of its feed.
                        let _no_fork = self.signing.observe(&last.batch);
                    }
                }
                Err(error) => {
                    tracing::warn!(%channel, %error, "where its feeds end is not known: what it lacks is not asked for");
                }
            }
        }
    }

    /// An event without a link of its own: the log says whose it is.
    pub(super) fn append_one(
        &mut self,
        log: usize,
        entity: &[u8; 32],
        payload: &[u8],
    ) -> Result<(), AppendError> {
        let link = Link {
            entity: origin_hash(entity),
            observed: 0,
            parent: 0,
        };
        let log = &mut self.logs[log].log;
        let appended = log.append(clock::now_unix_ns(), &link, payload);
        appended.map(|_offset| ())
    }

    /// The events of a batch; what is not as it was signed is refused, and that is no failure of the log.
    pub(super) fn append_signed(&mut self, log: usize, message: &[u8]) -> Result<(), AppendError> {
        let (batch, payloads) = match bundle::parse(message) {
            Ok(parsed) => parsed,
            Err(error) => {
                self.refuse(log, 1, &error);
                return Ok(());
            }
        };
        let payloads: Vec<&[u8]> = payloads.into_iter().map(|range| &message[range]).collect();
        let (open, now_unix_ns) = (&mut self.logs[log].log, clock::now_unix_ns());
        let verified = match open.append_signed(now_unix_ns, &batch, &payloads) {
            Ok((_offset, verified)) => verified,
            Err(AppendError::Signature(error)) => {
                self.refuse(log, payloads.len(), &error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if self.seats[log].is_none() {
            self.ancestors.note(&verified, now_unix_ns);
        }
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

    /// A batch that had waited.
    fn lose_unless(&mut self, log: usize, message: &[u8], appended: Result<(), AppendError>) {
        if let Err(error) = appended {
            let events = usize::try_from(events_of(message)).unwrap_or(usize::MAX);
            self.lose(log, events, &error);
        }
    }
}

/// How many events a message has.
fn events_of(message: &[u8]) -> u64 {
    bundle::parse(message).map_or(0, |(batch, _)| batch.count() as u64)
}
