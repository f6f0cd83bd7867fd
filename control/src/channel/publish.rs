//! The sending side: every event once to every subscriber, and back-pressure to the publisher.
//!
//! A reliable channel moves on only when every subscriber's stream took the event; until then its
//! publishers wait. An unreliable one waits only when no subscriber at all had room: a slow one among
//! several loses the event. What is lost is counted, and the publisher is told.

use super::{
    delivery::{Delivery, Outlet, Signature},
    entry::{Entry, Index, Remote},
    late::LateEvents,
    offer::{Taken, offer},
    presence::Part,
    reason::Reason,
    report::{PublishError, PublishReport},
    service::ChannelService,
    signed::{event_bytes_max, events_of},
    tally::{Tallied, Tally},
    timed::{self, BatchTimes},
};
use crate::rights::Refusal;
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use virga_ebpf::header::{NodeId, StreamId};
use virga_transport::{ChannelName, Mode, Node, flow::Stage, limits::MESSAGE_BYTES_MAX};

/// Tells a publisher what became of its batch; called exactly once.
pub type Done = Box<dyn FnOnce(Result<PublishReport, PublishError>) + Send>;

/// Events that one publisher wants out, in order.
pub struct Batch {
    events: std::vec::IntoIter<Bytes>,
    report: PublishReport,
    mode: Mode,
    part: Part,
    /// Set once another worker is through with the same unreliable events: they wait no more here.
    is_late: Option<Arc<AtomicBool>>,
    done: Done,
    /// How long each may wait to be sent.
    within: Option<Duration>,
    /// When that ends, on the node's own clock.
    deadline_ns: Option<u64>,
    /// Where it is told what becomes of it at each node.
    tally: Option<Arc<Tally>>,
    tallied: Option<Tallied>,
    /// While somebody asks how long it takes.
    pub(super) times: Option<BatchTimes>,
}

impl Batch {
    /// Events in order, and whom to tell.
    #[must_use]
    pub fn new(events: Vec<Bytes>, done: Done) -> Self {
        Self {
            events: events.into_iter(),
            report: PublishReport::default(),
            mode: Mode::Ordered,
            part: Part::WHOLE,
            is_late: None,
            done,
            within: None,
            deadline_ns: None,
            tally: None,
            tallied: None,
            times: None,
        }
    }

    /// Tells what becomes of it at each node.
    #[must_use]
    pub fn tallied(mut self, tally: Option<Arc<Tally>>) -> Self {
        self.tally = tally;
        self
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
    fn expire(&mut self, roster: &BTreeMap<NodeId, Remote>) -> u64 {
        let messages = std::mem::take(&mut self.events);
        self.tell_expired(roster, messages.len() as u64);
        let events = messages.map(|message| events_of(self.mode, &message)).sum();
        self.report.expired += events;
        self.times = None;
        events
    }

    /// Every node that would have got these messages.
    fn tell_expired(&self, roster: &BTreeMap<NodeId, Remote>, events: u64) {
        for (tallied, &peer) in self
            .tallied
            .iter()
            .flat_map(|t| roster.keys().map(move |p| (t, p)))
        {
            tallied.tally.failed(peer, Reason::Expired, (events, 0));
        }
    }

    /// Whether an event failed somewhere, and the others shall not be begun then; those are forgotten.
    fn is_withheld(&mut self) -> bool {
        let Some(tallied) = self.tallied.as_ref().filter(|t| t.tally.is_stopped()) else {
            return false;
        };
        tallied
            .tally
            .withheld(std::mem::take(&mut self.events).len() as u64);
        true
    }

    /// Tells its publisher what became of it.
    fn answer(mut self, now_ns: u64, subscribers: usize) {
        self.report.event_bytes_max = event_bytes_max(self.mode);
        if self.report.published == 0 {
            self.report.subscribers = subscribers;
        }
        if let Some(times) = &mut self.times {
            times.passed(Stage::Admit, now_ns);
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
    pub(super) event: Bytes,
    missing: Vec<NodeId>,
    taken: usize,
    lost: u64,
    pub(super) deadline_ns: Option<u64>,
    pub(super) tallied: Option<Tallied>,
}

impl Partial {
    /// Whether a node is still to be offered it.
    pub(super) fn misses(&self, peer: NodeId) -> bool {
        self.missing.contains(&peer)
    }
}

enum Begun {
    Nothing,
    Held,
    Event(Partial),
}

impl<O: Outlet> ChannelService<O> {
    pub(crate) fn publish(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        name: &ChannelName,
        mut batch: Batch,
    ) {
        let index = match self.may_publish(now_ns, name) {
            Ok(index) => index,
            Err(error) => {
                if let PublishError::Token(_, refusal) = &error {
                    self.reasons.add(refusal.fault().into());
                }
                return batch.fail(error);
            }
        };
        let entry = &mut self.entries[index];
        if let Some(times) = &mut batch.times {
            times.passed(Stage::HandOver, now_ns);
        }
        batch.mode = entry.spec.mode;
        self.reasons
            .add_many(Reason::TooLarge, batch.report.refused);
        let within_ns = batch
            .within
            .map(|d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
        batch.deadline_ns = within_ns.map(|within_ns| now_ns.saturating_add(within_ns));
        if let Some(tally) = batch.tally.take() {
            self.last_tallied = self.last_tallied.saturating_add(1);
            batch.tallied = Some(Tallied::new(tally, self.last_tallied, index));
        }
        entry.waiting.push_back(batch);
        if entry.waiting.len() == 1 {
            self.pump(now_ns, node, index);
        }
    }

    /// Pushes on with every channel that something was in the way of.
    pub(crate) fn pump_blocked(&mut self, now_ns: u64, node: &mut Node) {
        self.pay_owed(now_ns, node);
        for index in std::mem::take(&mut self.blocked) {
            self.pump(now_ns, node, index);
        }
    }

    /// Publishes what waits on a channel, until something is in the way.
    pub(crate) fn pump(&mut self, now_ns: u64, node: &mut Node, index: Index) {
        self.turn_over(now_ns, node);
        loop {
            let partial = match std::mem::take(&mut self.entries[index].progress) {
                Progress::Partial(partial) => partial,
                Progress::Idle => match self.begin(now_ns, index) {
                    Begun::Nothing => return,
                    Begun::Held => return self.block(index),
                    Begun::Event(partial) => {
                        self.serve_directly(now_ns, node, index);
                        partial
                    }
                },
            };
            if has_passed(now_ns, partial.deadline_ns) && partial.taken == 0 && partial.lost == 0 {
                self.expire(index, &partial.event);
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

    /// A message of the first batch is given up before anyone got it.
    fn expire(&mut self, index: Index, message: &[u8]) {
        let entry = &mut self.entries[index];
        entry.tail.retract(message);
        let events = events_of(entry.spec.mode, message);
        entry.counters.dropped += events;
        self.reasons.add_many(Reason::Expired, events);
        let Entry {
            waiting, roster, ..
        } = entry;
        if let Some(batch) = waiting.front_mut() {
            batch.report.expired += events;
            batch.tell_expired(roster, 1);
        }
    }

    /// Events were given up before any worker had them.
    pub(crate) fn count_late(&mut self, events: &LateEvents) {
        for (name, late) in events.take() {
            self.reasons.add_many(Reason::Expired, late.expired);
            self.reasons.add_many(Reason::TooLarge, late.refused);
            if let Some(&index) = self.names.get(&name) {
                self.entries[index].counters.dropped += late.expired;
            }
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
                let events = batch.expire(&entry.roster);
                entry.counters.dropped += events;
                self.reasons.add_many(Reason::Expired, events);
                let subscribers = entry.subscribers_of(batch.part);
                batch.answer(now_ns, subscribers);
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
            if batch.is_withheld() || batch.events.as_slice().is_empty() {
                if let Some(batch) = entry.waiting.pop_front() {
                    let subscribers = entry.subscribers_of(batch.part);
                    batch.answer(now_ns, subscribers);
                }
                continue;
            }
            if has_passed(now_ns, batch.deadline_ns) {
                let events = batch.expire(&entry.roster);
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
                    let partial = Partial {
                        event,
                        missing: entry.roster.keys().copied().collect(),
                        taken: 0,
                        lost: 0,
                        deadline_ns,
                        tallied: batch.tallied.clone(),
                    };
                    if entry.fan_out > 0 {
                        entry.keep(now_ns, &partial);
                        self.trees.look_soon(now_ns);
                    }
                    return Begun::Event(partial);
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
        let (mut taken, mut relayed, mut lost) = (0, 0, 0);
        let mut full = Vec::new();
        let is_late = has_passed(now_ns, partial.deadline_ns);
        for peer in std::mem::take(&mut partial.missing) {
            let offered = match is_late {
                true => Taken::Lost(Reason::Expired),
                false => offer(
                    now_ns,
                    node,
                    (&mut *entry, &mut self.reasons),
                    peer,
                    &partial,
                ),
            };
            if let (Some(tallied), Taken::Lost(reason)) = (&partial.tallied, &offered) {
                tallied.tally.failed(peer, *reason, (1, 0));
            }
            match offered {
                Taken::Yes => taken += 1,
                Taken::Relayed => relayed += 1,
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
            for peer in full.drain(..) {
                self.reasons.add(Reason::PeerFull);
                lost += 1;
                if let Some(tallied) = &partial.tallied {
                    tallied.tally.failed(peer, Reason::PeerFull, (1, 0));
                }
            }
        }
        entry.counters.sent += taken as u64;
        entry.counters.dropped += lost;
        partial.taken += taken + relayed;
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
        let events = events_of(entry.spec.mode, &sent.event);
        entry.counters.published += events * u64::from(part.is_counted);
        let before = entry.sequence;
        if part.is_local {
            entry.sequence += events;
        }
        sent.lost *= events;
        if part.is_local && !entry.local.is_empty() {
            let signed = match entry.spec.mode {
                Mode::Signed => entry.open(&sent.event, &self.entity),
                _ => None,
            };
            let delivery = Delivery {
                channel: entry.spec.name.clone(),
                entity: self.entity,
                sequence: before + u64::from(signed.is_none()),
                received_ns: now_ns,
                queued_ns: timed::stays(node, now_ns, &entry.spec.name),
                payload: sent.event,
                signature: Signature::None,
            };
            let (taken, lost) = match signed {
                None => self.deliver(now_ns, node, index, &delivery),
                Some(payloads) => self.deliver_signed(now_ns, node, index, (delivery, payloads)),
            };
            if let Some(tallied) = &sent.tallied {
                tallied.tally.programs(taken);
            }
            sent.taken += taken;
            sent.lost += lost;
        }
        if let Some(batch) = self.entries[index].waiting.front_mut() {
            if let Some(tallied) = sent.tallied.filter(|_| part.is_counted) {
                tallied.tally.published();
            }
            batch.report.published += events;
            batch.report.lost += sent.lost;
            batch.report.unheard += events * u64::from(sent.taken == 0 && sent.lost == 0);
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
        let reason = refusal.fault().into();
        entry.progress = Progress::Idle;
        for batch in entry.waiting.drain(..) {
            batch.fail(PublishError::Token(name.clone(), refusal.clone()));
        }
        for (&peer, remote) in &mut entry.roster {
            if let Some(stream) = remote.stream.take() {
                // The session may have ended meanwhile, and the stream with it.
                let _gone = node.reset_stream(now_ns, peer, stream);
            }
            remote.pending.end(reason);
        }
        let lost = entry.fell();
        entry.counters.dropped += lost;
        self.reasons.add_many(reason, lost);
        self.end_feeds(now_ns, node, index, |_| true);
        self.blocked.remove(&index);
    }

    /// Gives every waiting publisher its answer: the node is going away.
    pub(crate) fn fail_waiting(&mut self) {
        self.fail_all(&PublishError::Stopping);
    }

    /// The same: the node speaks for no entity any more.
    pub(crate) fn fail_absent(&mut self, why: &str) {
        self.fail_all(&PublishError::Absent(why.to_owned()));
    }

    fn fail_all(&mut self, error: &PublishError) {
        for entry in &mut self.entries {
            entry.progress = Progress::Idle;
            for batch in entry.waiting.drain(..) {
                batch.fail(error.clone());
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
}

/// Whether there is a deadline, and it is over.
fn has_passed(now_ns: u64, deadline_ns: Option<u64>) -> bool {
    deadline_ns.is_some_and(|deadline_ns| deadline_ns <= now_ns)
}
