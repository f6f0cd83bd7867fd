//! What comes is appended; what follows events that a log lacks waits for them.

use super::{Input, Thread};
use crate::{
    channel::{Delivery, Signature},
    hex,
    kept::ancestors::{Arrived, Back, Ended, Unfound},
};
use bytes::Bytes;
use std::{ops::Range, sync::atomic::Ordering, time::Duration};
use tokio::{runtime::Handle, sync::mpsc, time::Instant};
use virga_ebpf::hash::origin_hash;
use virga_state::{
    AppendError, Link, LogName, Retention,
    batch::{BatchError, FeedId},
    bundle,
    io::clock,
};

/// How long it is waited while a log takes nothing.
const RETRY: Duration = Duration::from_millis(50);
/// How often it is looked at most who is to be asked for what is named.
const NAMES_EVERY: Duration = Duration::from_millis(100);

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is in the log now.
    New,
    /// It was there.
    Known,
    /// It is not as it was signed, or another channel's: that is counted.
    Refused,
}

impl Thread {
    pub(super) fn append(&mut self, log: usize, deliveries: &[Delivery]) {
        for (at, delivery) in deliveries.iter().enumerate() {
            let appended = match &delivery.signature {
                // It comes with the batch's last event, all at once.
                Signature::Later => continue,
                Signature::Here(message) => self.append_arrived(log, message, Instant::now()),
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
    fn until_taken<T>(
        &mut self,
        log: usize,
        append: impl Fn(&mut Self) -> Result<T, AppendError>,
    ) -> Result<T, AppendError> {
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

    /// A batch that came then: it waits while events are missing in front of it.
    fn append_arrived(
        &mut self,
        log: usize,
        message: &Bytes,
        since: Instant,
    ) -> Result<(), AppendError> {
        loop {
            let arrived = match &self.signed[log] {
                Some(channel) => self.ancestors.arrived((log, channel), message, since),
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
        let taken = self.until_taken(log, |thread| thread.append_signed(log, message));
        taken.map(|_| ())
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
        self.named = None;
        match self.ancestors.name_ended(feed, number, found) {
            Ended::NotThis => {}
            Ended::Quiet => return,
            Ended::Told(why) => return self.count_unfound(log, why),
        }
        let since = self.ancestors.waits_since(feed);
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
        // More may be missing between them, and they have waited.
        let since = since.unwrap_or_else(Instant::now);
        for message in waiting {
            let appended = self.append_arrived(log, &message, since);
            self.lose_unless(log, &message, appended);
        }
    }

    /// Batches that were missing, each checked by who asked for them; whether the log has them.
    pub(super) fn fetched(&mut self, log: usize, feed: FeedId, messages: &[Bytes]) -> bool {
        if self.is_left(log) {
            return false;
        }
        for message in messages {
            // The log may have gone on without them.
            if !self.ancestors.is_next(log, feed, message) {
                if self.ancestors.is_behind(feed, message) {
                    continue;
                }
                return false;
            }
            let is_named = self.ancestors.is_named(feed);
            match self.until_taken(log, |thread| thread.append_signed(log, message)) {
                Ok(Taken::New) if self.ancestors.is_behind(feed, message) => {
                    let events = events_of(message);
                    self.ancestors.took(feed, message.len());
                    self.states[log].send_modify(|state| match is_named {
                        true => state.named += events,
                        false => state.repaired += events,
                    });
                }
                // It was refused, which is counted, or there is no room to know where the feed ends now.
                Ok(_) => return false,
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

    /// Nobody has what a batch of that log names, or may be asked for it.
    fn count_unfound(&self, log: usize, why: Unfound) {
        self.states[log].send_modify(|state| {
            let (channel, words) = (&state.channel, "events that others name are not to be had");
            match why {
                // They may be of a channel that is not kept here, or that this log is not to have.
                Unfound::Unknown | Unfound::Unsure => {
                    tracing::info!(%channel, why = why.name(), "{words}")
                }
                _ => tracing::warn!(%channel, why = why.name(), "{words}"),
            }
            *state.unfound.entry(why.name().to_owned()).or_default() += 1;
        });
    }

    /// Has somebody look for what is named, once it is known of all logs what they have; not at each turn, as there may be
    /// much of it.
    pub(super) fn begin_names(&mut self) {
        let now = Instant::now();
        let is_due = self.named.is_none_or(|last| now >= last + NAMES_EVERY);
        if is_due && self.early.is_empty() {
            self.named = Some(now);
            for (log, why) in self.ancestors.begin_names(now) {
                self.count_unfound(log, why);
            }
        }
    }

    pub(super) fn is_left(&self, log: usize) -> bool {
        self.states[log].borrow().is_left
    }

    /// The node keeps a log no more, by command, or again: what has come is appended, and nothing from then on.
    pub(super) fn leave(&mut self, log: usize, is_left: bool) {
        if is_left {
            self.append_early(log);
            self.signing.looked_through(log);
            while let Some(feed) = self.ancestors.any_of(log) {
                self.count_gap(log, Unfound::Failed);
                self.append_waiting(log, feed);
            }
            self.ancestors.leave(log);
        } else {
            self.ancestors.take_in(log);
        }
        self.states[log].send_modify(|state| state.is_left = is_left);
    }

    /// What was on its way when the node ceased to keep the log.
    pub(super) fn drop_late(&self, log: usize, events: usize) {
        self.states[log].send_modify(|state| state.lost += events as u64);
    }

    /// Has somebody look where feeds end in the logs that are on this node alone, one log after the other; what comes to
    /// them before that is known waits, and what is signed does, for a while.
    pub(super) fn look_back(&mut self, runtime: &Handle, of: Range<usize>) {
        let mut logs = Vec::new();
        for log in of {
            let open = &self.logs[log];
            let Some(channel) = &self.signed[log] else {
                continue;
            };
            if self.seats[log].is_some() {
                self.ancestors.replicated(channel);
                continue;
            }
            let Ok(name) = LogName::parse(channel.as_str()) else {
                continue;
            };
            match open.files.disk().share() {
                Ok(disk) => {
                    self.places.set_looking(channel, true);
                    logs.push((log, name, disk));
                }
                Err(error) => tell_of_ends(channel.as_str(), &error),
            }
        }
        self.early
            .extend(logs.iter().map(|&(log, ..)| (log, Vec::new())));
        self.signing.look_through(logs.iter().map(|&(log, ..)| log));
        let (to, places) = (self.to.clone(), self.places.clone());
        runtime.spawn_blocking(move || {
            for (log, name, disk) in logs {
                // Once the logs are being closed nobody waits for it.
                let is_waited_for = || to.strong_count() > 0;
                let back = Back::look(&disk, &name, &places, is_waited_for);
                let back = Box::new(back.unwrap_or_else(|error| {
                    tell_of_ends(name.as_str(), &error);
                    Back::default()
                }));
                let input = Input::LookedBack { log, back };
                let is_closed = |to: mpsc::Sender<Input>| to.blocking_send(input).is_err();
                if to.upgrade().is_none_or(is_closed) {
                    return;
                }
            }
        });
    }

    /// The same for a log that is begun while others are written: what is signed waits for this one, too.
    pub(super) fn look_back_begun(&mut self, runtime: &Handle, log: usize) {
        if self.signed[log].is_some() && self.logs[log].log.end() > 0 {
            self.signing.begin_looking();
        }
        self.look_back(runtime, log..log + 1);
    }

    /// It is known where a log's feeds end.
    pub(super) fn looked_back(&mut self, log: usize, mut back: Back) {
        let of_log = &self.logs[log].log;
        back.newest.is_whole &= back.newest.end == of_log.end();
        let has_bounds = of_log.options().retention != Retention::default();
        back.lets_go = has_bounds || self.compaction.has_rules(log);
        for last in &back.newest.last {
            // It is the first of its feed.
            let _no_fork = self.signing.observe(&last.batch, last.time_unix_ns);
        }
        if let Some(channel) = self.signed[log].clone() {
            self.ancestors.looked((log, &channel), back);
            self.places.set_looking(&channel, false);
        }
        if self.is_left(log) {
            self.ancestors.leave(log);
        }
        self.append_early(log);
        self.signing.looked_through(log);
    }

    /// Takes what came to a log before that was known.
    pub(super) fn append_early(&mut self, log: usize) {
        for (deliveries, room) in self.early.remove(&log).unwrap_or_default() {
            self.append(log, &deliveries);
            drop(room);
        }
    }

    /// Bytes of what came to a log before that.
    pub(super) fn early_bytes(&self, log: usize) -> u64 {
        let early = self.early.get(&log).into_iter().flatten();
        let deliveries = early.flat_map(|(deliveries, _)| deliveries);
        deliveries.map(|one| one.payload.len() as u64).sum()
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
    pub(super) fn append_signed(
        &mut self,
        log: usize,
        message: &[u8],
    ) -> Result<Taken, AppendError> {
        let (batch, payloads) = match bundle::parse(message) {
            Ok(parsed) => parsed,
            Err(error) => {
                self.refuse(log, 1, &error);
                return Ok(Taken::Refused);
            }
        };
        let is_alone = self.seats[log].is_none();
        if is_alone && self.ancestors.knows(&batch.signed.statement) {
            let events = batch.count() as u64;
            self.states[log].send_modify(|state| state.repeated += events);
            return Ok(Taken::Known);
        }
        let payloads: Vec<&[u8]> = payloads.into_iter().map(|range| &message[range]).collect();
        let (open, now_unix_ns) = (&mut self.logs[log].log, clock::now_unix_ns());
        let (offset, verified) = match open.append_signed(now_unix_ns, &batch, &payloads) {
            Ok(appended) => appended,
            Err(AppendError::Signature(error)) => {
                self.refuse(log, payloads.len(), &error);
                return Ok(Taken::Refused);
            }
            Err(error) => return Err(error),
        };
        if is_alone {
            self.ancestors.note((log, offset), &verified, now_unix_ns);
            if self.ancestors.names(log, &verified) {
                self.count_unfound(log, Unfound::Full);
            }
        } else {
            self.ancestors.note_entity(verified.statement().entity);
        }
        if let Some(fork) = self.signing.observe(&verified, now_unix_ns) {
            let (entity, from) = (hex::encode(&fork.one.statement.entity), fork.from());
            self.states[log].send_modify(|state| {
                tracing::error!(channel = %state.channel, %entity, from, "an entity signed two things that contradict each other; `virga log verify` has the proof");
                state.forks += 1;
            });
        }
        Ok(Taken::New)
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
    fn lose_unless<T>(&mut self, log: usize, message: &[u8], appended: Result<T, AppendError>) {
        if let Err(error) = appended {
            let events = usize::try_from(events_of(message)).unwrap_or(usize::MAX);
            self.lose(log, events, &error);
        }
    }
}

fn tell_of_ends(log: &str, error: &dyn std::error::Error) {
    tracing::warn!(%log, %error, "where the log's feeds end is not known: what it lacks is not asked for");
}

/// How many events a message has.
fn events_of(message: &[u8]) -> u64 {
    bundle::parse(message).map_or(0, |(batch, _)| batch.count() as u64)
}

#[cfg(test)]
mod tests;
