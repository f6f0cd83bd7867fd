//! The sending side: every event once to every subscriber, and back-pressure to the publisher.
//!
//! A reliable channel moves on only when every subscriber's stream took the event; until then its
//! publishers wait. An unreliable one waits only when no subscriber at all had room: a slow one among
//! several loses the event. What is lost is counted, and the publisher is told.

use super::{
    delivery::{Delivery, Outlet},
    entry::{Entry, Index},
    reason::Reason,
    service::ChannelService,
};
use crate::rights::{Operation, Refusal};
use bytes::Bytes;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use thiserror::Error;
use virga_ebpf::header::{NodeId, StreamId};
use virga_transport::{ChannelName, Node, OpenError, SendError, limits::MESSAGE_BYTES_MAX};

/// Why nothing of a batch was published.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PublishError {
    /// Not in the configuration.
    #[error("channel {0} is not configured on this node: add a [[channels]] block for it")]
    UnknownChannel(ChannelName),
    /// This node's entity is not in the channel's `publish` list.
    #[error("this node's entity may not publish on {0}: add it to the channel's `publish` list")]
    NotAuthorised(ChannelName),
    /// The channel requires a token, and this node has none that gives the right.
    #[error(
        "this node's entity may not publish on {0}: {1}; {fix}", fix = .1.fix()
    )]
    Token(ChannelName, Refusal),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Stopping,
}

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishReport {
    /// Events that were offered to every subscriber there was (perhaps none).
    pub published: u64,
    /// Of those, times that one did not get to one subscriber: its session ended, or (unreliable) it
    /// had no room.
    pub lost: u64,
    /// Events that went to nobody, because their deadline passed while they waited for subscribers.
    pub expired: u64,
    /// Events larger than the channel carries.
    pub refused: u64,
    /// Published events that went to nobody: there was no subscriber.
    pub unheard: u64,
    /// Subscribers, programs on this node and other nodes, that took the last event; where none was
    /// published, those that there are.
    pub subscribers: usize,
    /// Bytes of the largest event that the channel carries.
    pub event_bytes_max: usize,
}

impl PublishReport {
    /// What became of a batch of which another worker had a part.
    #[must_use]
    pub fn with(self, other: &Self) -> Self {
        Self {
            published: self.published.max(other.published),
            // What expired at one worker and not at the other was lost on the way to its subscribers.
            lost: self.lost + other.lost + self.expired.abs_diff(other.expired),
            expired: self.expired.min(other.expired),
            refused: self.refused.max(other.refused),
            unheard: self.unheard.min(other.unheard),
            subscribers: self.subscribers + other.subscribers,
            event_bytes_max: self.event_bytes_max.max(other.event_bytes_max),
        }
    }
}

/// Tells a publisher what became of its batch; called exactly once.
pub type Done = Box<dyn FnOnce(Result<PublishReport, PublishError>) + Send>;

/// What a worker does with a batch beside sending it to its own peers, where several get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Counts the events as published.
    pub is_counted: bool,
    /// Delivers them to the subscribers on this node.
    pub is_local: bool,
}

impl Part {
    /// Everything: no other worker gets the batch.
    pub const WHOLE: Self = Self {
        is_counted: true,
        is_local: true,
    };
}

/// Events that one publisher wants out, in order.
pub struct Batch {
    events: std::vec::IntoIter<Bytes>,
    report: PublishReport,
    part: Part,
    /// Set once another worker is through with the same unreliable events: they wait no more here.
    is_late: Option<Arc<AtomicBool>>,
    done: Done,
    /// How long each may wait to be sent.
    within: Option<Duration>,
    /// When that ends, on the node's own clock.
    deadline_ns: Option<u64>,
}

impl Batch {
    /// Events in order, and whom to tell.
    #[must_use]
    pub fn new(events: Vec<Bytes>, done: Done) -> Self {
        Self {
            events: events.into_iter(),
            report: PublishReport::default(),
            part: Part::WHOLE,
            is_late: None,
            done,
            within: None,
            deadline_ns: None,
        }
    }

    /// One worker's part of a batch that several get. Once `is_late` is set, and
    /// [`super::Command::Hurry`] has told so, unreliable events wait for nobody here.
    #[must_use]
    pub fn with_part(mut self, part: Part, is_late: Arc<AtomicBool>) -> Self {
        self.part = part;
        self.is_late = Some(is_late);
        self
    }

    /// Gives up what was not sent to a subscriber this long after the node got it.
    #[must_use]
    pub fn within(mut self, duration: Option<Duration>) -> Self {
        self.within = duration;
        self
    }

    /// Counts events that whoever made the batch found too large to keep.
    #[must_use]
    pub fn with_refused(mut self, events: u64) -> Self {
        self.report.refused += events;
        self
    }

    /// Gives up the events that are left; how many they were.
    fn expire(&mut self) -> u64 {
        let events = std::mem::take(&mut self.events).len() as u64;
        self.report.expired += events;
        events
    }

    /// Tells its publisher what became of it.
    fn answer(mut self, subscribers: usize) {
        self.report.event_bytes_max = MESSAGE_BYTES_MAX;
        if self.report.published == 0 {
            self.report.subscribers = subscribers;
        }
        (self.done)(Ok(self.report));
    }

    pub(crate) fn fail(self, error: PublishError) {
        (self.done)(Err(error));
    }

    #[cfg(test)]
    pub(crate) fn events(&self) -> &[Bytes] {
        self.events.as_slice()
    }
}

/// How far the event at the head of a channel's queue is.
#[derive(Debug, Default)]
pub(crate) enum Progress {
    /// No event has been begun.
    #[default]
    Idle,
    /// It still has to go to some subscribers.
    Partial(Partial),
}

/// An event on its way out.
#[derive(Debug)]
pub(crate) struct Partial {
    event: Bytes,
    missing: Vec<NodeId>,
    taken: usize,
    lost: u64,
    deadline_ns: Option<u64>,
}

enum Begun {
    Nothing,
    Held,
    Event(Partial),
}

/// What a subscriber's stream did with an event.
enum Taken {
    Yes,
    Full,
    Left,
    Lost(Reason),
}

impl<O: Outlet> ChannelService<O> {
    pub(crate) fn publish(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        name: &ChannelName,
        mut batch: Batch,
    ) {
        if self.is_stopping {
            return batch.fail(PublishError::Stopping);
        }
        let Some(&index) = self.names.get(name) else {
            return batch.fail(PublishError::UnknownChannel(name.clone()));
        };
        let entry = &mut self.entries[index];
        if !entry.publishers.contains(&self.entity) {
            return batch.fail(PublishError::NotAuthorised(name.clone()));
        }
        let rights = &self.rights;
        let right = rights.own_may(now_ns, entry, &self.entity, Operation::Publish);
        if let Err(refusal) = right {
            self.reasons.add(refusal.fault().into());
            return batch.fail(PublishError::Token(name.clone(), refusal));
        }
        self.reasons
            .add_many(Reason::TooLarge, batch.report.refused);
        let within_ns = batch
            .within
            .map(|d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
        batch.deadline_ns = within_ns.map(|within_ns| now_ns.saturating_add(within_ns));
        entry.waiting.push_back(batch);
        if entry.waiting.len() == 1 {
            self.pump(now_ns, node, index);
        }
    }

    /// Pushes on with every channel that something was in the way of.
    pub(crate) fn pump_blocked(&mut self, now_ns: u64, node: &mut Node) {
        for index in std::mem::take(&mut self.blocked) {
            self.pump(now_ns, node, index);
        }
    }

    /// Publishes what waits on a channel, until something is in the way.
    fn pump(&mut self, now_ns: u64, node: &mut Node, index: Index) {
        loop {
            let partial = match std::mem::take(&mut self.entries[index].progress) {
                Progress::Partial(partial) => partial,
                Progress::Idle => match self.begin(now_ns, index) {
                    Begun::Nothing => return,
                    Begun::Held => return self.block(index),
                    Begun::Event(partial) => partial,
                },
            };
            if has_passed(now_ns, partial.deadline_ns) && partial.taken == 0 && partial.lost == 0 {
                self.expire(index, 1);
                continue;
            }
            match self.fan_out(now_ns, node, index, partial) {
                Ok(sent) => self.finish(now_ns, node, index, sent),
                Err(partial) => {
                    self.entries[index].progress = Progress::Partial(partial);
                    return self.block(index);
                }
            }
        }
    }

    /// Events of the first batch are given up before anyone got them.
    fn expire(&mut self, index: Index, events: u64) {
        let entry = &mut self.entries[index];
        entry.counters.dropped += events;
        self.reasons.add_many(Reason::Expired, events);
        if let Some(batch) = entry.waiting.front_mut() {
            batch.report.expired += events;
        }
    }

    /// When the next event that waits is to be given up.
    pub(crate) fn next_deadline_ns(&self) -> Option<u64> {
        let blocked = self.blocked.iter().map(|&index| &self.entries[index]);
        let waiting = blocked.flat_map(|entry| &entry.waiting);
        waiting.filter_map(|batch| batch.deadline_ns).min()
    }

    /// Gives up what has waited for too long, also behind a batch that may wait.
    pub(crate) fn expire_waiting(&mut self, now_ns: u64, node: &mut Node) {
        for &index in &self.blocked {
            let entry = &mut self.entries[index];
            for (place, mut batch) in std::mem::take(&mut entry.waiting).into_iter().enumerate() {
                // Of the first one an event may be half way out.
                if place == 0 || !has_passed(now_ns, batch.deadline_ns) {
                    entry.waiting.push_back(batch);
                    continue;
                }
                let events = batch.expire();
                entry.counters.dropped += events;
                self.reasons.add_many(Reason::Expired, events);
                let subscribers = entry.subscribers_of(batch.part);
                batch.answer(subscribers);
            }
        }
        self.pump_blocked(now_ns, node);
    }

    /// Messages on a subscriber's stream were given up unsent.
    pub(crate) fn on_expired(&mut self, peer: NodeId, stream: StreamId, messages: u64) {
        let is_meant = |e: &&mut Entry| {
            e.roster
                .get(&peer)
                .is_some_and(|r| r.stream == Some(stream))
        };
        if let Some(entry) = self.entries.iter_mut().find(is_meant) {
            entry.counters.dropped += messages;
        }
        self.reasons.add_many(Reason::Expired, messages);
    }

    fn block(&mut self, index: Index) {
        self.entries[index].counters.publishes_blocked += 1;
        self.blocked.insert(index);
    }

    /// The next event of a channel's queue; tells the publishers whose batches are through.
    fn begin(&mut self, now_ns: u64, index: Index) -> Begun {
        let is_held = self.is_held(index);
        let entry = &mut self.entries[index];
        loop {
            let Some(batch) = entry.waiting.front_mut() else {
                return Begun::Nothing;
            };
            if batch.events.as_slice().is_empty() {
                if let Some(batch) = entry.waiting.pop_front() {
                    let subscribers = entry.subscribers_of(batch.part);
                    batch.answer(subscribers);
                }
                continue;
            }
            if has_passed(now_ns, batch.deadline_ns) {
                let events = batch.expire();
                entry.counters.dropped += events;
                self.reasons.add_many(Reason::Expired, events);
                continue;
            }
            if is_held {
                return Begun::Held;
            }
            let deadline_ns = batch.deadline_ns;
            match batch.events.next() {
                Some(event) if event.len() <= MESSAGE_BYTES_MAX => {
                    return Begun::Event(Partial {
                        event,
                        missing: entry.roster.keys().copied().collect(),
                        taken: 0,
                        lost: 0,
                        deadline_ns,
                    });
                }
                _ => {
                    batch.report.refused += 1;
                    if batch.part.is_counted {
                        self.reasons.add(Reason::TooLarge);
                    }
                }
            }
        }
    }

    /// Whether a subscriber of a reliable channel asked for a pause.
    fn is_held(&self, index: Index) -> bool {
        let entry = &self.entries[index];
        entry.spec.mode.is_reliable()
            && (entry.roster.values().any(|remote| remote.held) || self.has_slow(index))
    }

    /// Offers the event to everyone that misses it; gives it back when it has to wait.
    fn fan_out(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        index: Index,
        mut partial: Partial,
    ) -> Result<Partial, Partial> {
        let entry = &mut self.entries[index];
        let (mut taken, mut lost) = (0, 0);
        let mut full = Vec::new();
        let is_late = has_passed(now_ns, partial.deadline_ns);
        for peer in std::mem::take(&mut partial.missing) {
            let offered = match is_late {
                true => Taken::Lost(Reason::Expired),
                false => offer(
                    now_ns,
                    node,
                    entry,
                    peer,
                    (&partial.event, partial.deadline_ns),
                ),
            };
            match offered {
                Taken::Yes => taken += 1,
                Taken::Left => {}
                Taken::Full => full.push(peer),
                Taken::Lost(reason) => {
                    self.reasons.add(reason);
                    lost += 1;
                }
            }
        }
        let waits = entry.spec.mode.is_reliable() || (taken == 0 && entry.waits_for_nodes());
        if !waits {
            for _ in full.drain(..) {
                self.reasons.add(Reason::PeerFull);
                lost += 1;
            }
        }
        entry.counters.sent += taken as u64;
        entry.counters.dropped += lost;
        partial.taken += taken;
        partial.lost += lost;
        if full.is_empty() {
            return Ok(partial);
        }
        partial.missing = full;
        Err(partial)
    }

    /// The event went out: local subscribers get it too, and it is counted.
    fn finish(&mut self, now_ns: u64, node: &mut Node, index: Index, mut sent: Partial) {
        let entry = &mut self.entries[index];
        let part = entry
            .waiting
            .front()
            .map_or(Part::WHOLE, |batch| batch.part);
        entry.counters.published += u64::from(part.is_counted);
        if part.is_local {
            entry.sequence += 1;
        }
        if part.is_local && !entry.local.is_empty() {
            let delivery = Delivery {
                channel: entry.spec.name.clone(),
                entity: self.entity,
                sequence: entry.sequence,
                received_ns: now_ns,
                payload: sent.event,
            };
            let (taken, lost) = self.deliver(now_ns, node, index, &delivery);
            sent.taken += taken;
            sent.lost += lost;
        }
        if let Some(batch) = self.entries[index].waiting.front_mut() {
            batch.report.published += 1;
            batch.report.lost += sent.lost;
            batch.report.unheard += u64::from(sent.taken == 0 && sent.lost == 0);
            batch.report.subscribers = sent.taken;
        }
    }

    /// Gives up what has not gone out on a channel, and what its streams have not sent.
    pub(crate) fn fail_channel(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        index: Index,
        refusal: &Refusal,
    ) {
        let entry = &mut self.entries[index];
        let name = entry.name().clone();
        entry.progress = Progress::Idle;
        for batch in entry.waiting.drain(..) {
            batch.fail(PublishError::Token(name.clone(), refusal.clone()));
        }
        for (&peer, remote) in &mut entry.roster {
            if let Some(stream) = remote.stream.take() {
                // The session may have ended meanwhile, and the stream with it.
                let _gone = node.reset_stream(now_ns, peer, stream);
            }
        }
        self.blocked.remove(&index);
    }

    /// Gives every waiting publisher its answer: the node is going away.
    pub(crate) fn fail_waiting(&mut self) {
        for entry in &mut self.entries {
            entry.progress = Progress::Idle;
            for batch in entry.waiting.drain(..) {
                batch.fail(PublishError::Stopping);
            }
        }
    }
}

impl Entry {
    /// Whether an unreliable event waits until a node has room for it: when nobody else gets it.
    fn waits_for_nodes(&self) -> bool {
        let Some(batch) = self.waiting.front() else {
            return false;
        };
        let is_late = |late: &Arc<AtomicBool>| late.load(Ordering::Acquire);
        let has_local = batch.part.is_local && !self.local.is_empty();
        !has_local && !batch.is_late.as_ref().is_some_and(is_late)
    }

    /// Subscribers that a part of a batch goes to.
    fn subscribers_of(&self, part: Part) -> usize {
        let here = if part.is_local { self.local.len() } else { 0 };
        self.roster.len() + here
    }
}

/// Whether there is a deadline, and it is over.
fn has_passed(now_ns: u64, deadline_ns: Option<u64>) -> bool {
    deadline_ns.is_some_and(|deadline_ns| deadline_ns <= now_ns)
}

/// Hands an event to one subscriber's stream, which is opened with the first.
fn offer(
    now_ns: u64,
    node: &mut Node,
    entry: &mut Entry,
    peer: NodeId,
    (event, deadline_ns): (&[u8], Option<u64>),
) -> Taken {
    let Some(remote) = entry.roster.get_mut(&peer) else {
        return Taken::Left;
    };
    let stream = match remote.stream {
        Some(stream) => stream,
        None => match node.open_stream(now_ns, peer, &entry.spec) {
            Ok(stream) => *remote.stream.insert(stream),
            Err(OpenError::NoSession(_)) => return Taken::Lost(Reason::PeerGone),
            // Finished streams that make room are acknowledged soon.
            Err(OpenError::TooMany { .. }) if entry.spec.mode.is_reliable() => return Taken::Full,
            Err(OpenError::TooMany { .. } | OpenError::Priority(_)) => {
                return Taken::Lost(Reason::StreamsFull);
            }
        },
    };
    let sent = node.send_all(now_ns, peer, stream, [event], deadline_ns);
    match sent.refused {
        None => Taken::Yes,
        Some(SendError::Full) => Taken::Full,
        Some(SendError::TooLarge { .. }) => Taken::Lost(Reason::TooLarge),
        Some(SendError::NoSession | SendError::NoStream) => {
            remote.stream = None;
            Taken::Lost(Reason::PeerGone)
        }
    }
}
