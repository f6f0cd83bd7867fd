//! A child: it gets a publisher's events by a relay, and says to the publisher what is there.

use super::{
    super::{
        delivery::Outlet,
        entry::Index,
        inbound::{Came, Inbound},
        reason::Reason,
        service::{ChannelService, Session},
        signed::{entity_of, span_of},
        timed,
    },
    wire::{What, Why},
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};
use virga_ebpf::header::{NodeId, StreamId};
use virga_transport::Node;

/// What came is confirmed after so long,
const CONFIRM_NS: u64 = 50_000_000;
/// so many batches
const CONFIRM_BATCHES: usize = 64;
/// or so many bytes.
const CONFIRM_BYTES: usize = super::TAIL_BYTES_MAX / 4;
/// Bytes that wait while the publisher is asked whether something is missing before them: as many as it has out, and the
/// last batch.
const EARLY_BYTES_MAX: usize = 2 * super::TAIL_BYTES_MAX;

/// The node by which a stream's events come.
#[derive(Debug)]
pub(crate) struct Followed {
    relay: NodeId,
    number: u64,
    /// Nothing is missing between what came before and what comes by it.
    is_joined: bool,
    /// Not confirmed yet.
    batches: usize,
    bytes: usize,
    /// What the publisher was asked for,
    missing: Option<Range<u64>>,
    /// and what came behind it.
    early: VecDeque<Bytes>,
    early_bytes: usize,
}

impl Followed {
    const fn new(relay: NodeId, number: u64) -> Self {
        Self {
            relay,
            number,
            is_joined: false,
            batches: 0,
            bytes: 0,
            missing: None,
            early: VecDeque::new(),
            early_bytes: 0,
        }
    }

    fn is_by(&self, relay: NodeId, number: u64) -> bool {
        (self.relay, self.number) == (relay, number)
    }
}

impl Session {
    /// The newest stream on a channel that was let in.
    fn newest(&mut self, index: Index) -> Option<(StreamId, &mut Inbound)> {
        let mut inbound = self.inbound.iter_mut().rev();
        let (stream, inbound) = inbound.find(|(_, i)| i.index == index)?;
        Some((*stream, inbound))
    }

    /// Which one that is.
    pub(super) fn newest_of(&self, index: Index) -> Option<StreamId> {
        let mut inbound = self.inbound.iter().rev();
        let (stream, _) = inbound.find(|(_, i)| i.index == index)?;
        Some(*stream)
    }

    /// Whether there is one.
    pub(super) fn has_stream(&self, index: Index) -> bool {
        self.inbound.values().any(|i| i.index == index)
    }

    /// The same, and nobody else brings its events.
    pub(super) fn is_direct(&self, index: Index) -> bool {
        let mut inbound = self.inbound.values().filter(|i| i.index == index);
        self.has_stream(index) && inbound.all(|i| i.relay.is_none())
    }
}

/// Entities whose events a peer was asked for, on which channel, and where these are; none: it was, and is not any more.
#[derive(Debug, Default)]
pub(crate) struct Brings(BTreeMap<(Index, [u8; 32]), Option<NodeId>>);

impl Brings {
    /// The publisher of a message, where it is one of these.
    pub(crate) fn of(&self, index: Index, message: &[u8]) -> Option<Option<NodeId>> {
        match self.0.is_empty() {
            true => None,
            false => self.0.get(&(index, entity_of(message)?)).copied(),
        }
    }
}

/// What becomes of a batch that came by a relay.
enum Turn {
    Next,
    Known,
    /// The publisher still sends as well.
    Early,
    /// Something is missing before it, or was never published.
    Behind(Range<u64>),
}

impl<O: Outlet> ChannelService<O> {
    fn newest(&mut self, peer: NodeId, index: Index) -> Option<(StreamId, &mut Inbound)> {
        self.sessions.get_mut(&peer)?.newest(index)
    }

    /// A publisher says who brings its events.
    pub(super) fn on_redirect(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (index, (publisher, number)): (Index, (NodeId, u64)),
        relay: NodeId,
    ) {
        // Who has no part in trees gets everything from its publisher, and a relay is nobody's child.
        let has_part = self.entries[index].fan_out > 0;
        let may = has_part && relay != publisher && !self.passes_on(index, publisher);
        let has_session = self.sessions.contains_key(&relay);
        let entity = self.sessions.get(&publisher).map(|s| s.entity);
        // What was published last may still be on its way, and its stream with it: the publisher asks again.
        let session = self.sessions.get_mut(&publisher);
        let inbound = session.and_then(|session| session.newest(index));
        let (Some(entity), Some((_, inbound))) = (entity, inbound) else {
            return;
        };
        let followed = inbound.relay.as_ref();
        if followed.is_some_and(|followed| followed.is_by(relay, number)) {
            return;
        }
        // Each has another node asked, which is done for nobody without end.
        let costs = self.costs.entry(publisher).or_default();
        if !costs.redirects.take(now_ns) {
            return self.reasons.add(Reason::RelayRate);
        }
        let next = inbound.next.unwrap_or_default();
        let before = inbound.relay.take();
        inbound.is_tree = true;
        if may && has_session {
            inbound.relay = Some(Followed::new(relay, number));
        }
        if let Some(before) = before {
            self.leave_relay(now_ns, node, (index, entity), &before);
        }
        if !may || !has_session {
            let why = if may { Why::Gone } else { Why::Refused };
            let back = (index, number, What::Back(next, why));
            return self.tell_tree(now_ns, node, publisher, back);
        }
        if let Some(session) = self.sessions.get_mut(&relay) {
            session.brings.0.insert((index, entity), Some(publisher));
        }
        self.tell_tree(now_ns, node, relay, (index, number, What::Feed(entity)));
    }

    /// Takes no more from a relay, and tells it.
    fn leave_relay(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (index, entity): (Index, [u8; 32]),
        followed: &Followed,
    ) {
        if let Some(session) = self.sessions.get_mut(&followed.relay) {
            session.brings.0.insert((index, entity), None);
            let leave = (index, followed.number, What::Leave(entity));
            self.tell_tree(now_ns, node, followed.relay, leave);
        }
    }

    /// The publisher sends by itself from now on.
    pub(super) fn on_alone(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        publisher: NodeId,
        (index, number): (Index, u64),
    ) {
        let entity = self.sessions.get(&publisher).map(|s| s.entity);
        let inbound = self.newest(publisher, index);
        let followed = inbound.and_then(|(_, i)| i.relay.take_if(|f| f.number == number));
        if let (Some(entity), Some(followed)) = (entity, followed) {
            self.leave_relay(now_ns, node, (index, entity), &followed);
        }
    }

    /// A batch of a publisher came by another node, which was asked for it.
    pub(crate) fn on_relayed(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (relay, publisher, index): (NodeId, NodeId, Index),
        batch: Bytes,
    ) {
        let entity = self.sessions.get(&publisher).map(|s| s.entity);
        let session = self.sessions.get_mut(&publisher);
        let inbound = session.and_then(|session| session.newest(index));
        let inbound = inbound.and_then(|(_, inbound)| {
            let followed = inbound.relay.as_mut().filter(|f| f.relay == relay)?;
            Some((&mut inbound.next, &mut inbound.sequence, followed))
        });
        let (Some(entity), Some((next, sequence, followed))) = (entity, inbound) else {
            return self.reasons.add(Reason::RelayStranger);
        };
        let entry = &mut self.entries[index];
        let came_ns = timed::came(node, now_ns, (&entry.spec.name, &entity));
        let Some(span) = entry.open(&batch, &entity).and_then(|_| span_of(&batch)) else {
            return self.on_forged(now_ns, node, publisher, index);
        };
        let turn = match *next {
            Some(next) if span.start == next => Turn::Next,
            Some(next) if span.start < next => Turn::Known,
            Some(next) if followed.is_joined => Turn::Behind(next..span.start),
            _ => Turn::Early,
        };
        // The publisher is asked and told, and events are delivered, for nothing but what it has signed.
        let is_looked_at = match &turn {
            Turn::Next => true,
            Turn::Known => !followed.is_joined,
            Turn::Behind(_) => followed.missing.is_none(),
            Turn::Early => false,
        };
        let events = match is_looked_at.then(|| entry.verify(&batch, &entity)) {
            Some(None) => return self.on_forged(now_ns, node, publisher, index),
            looked_at => looked_at.flatten(),
        };
        let (is_first, is_next) = (!followed.is_joined, matches!(turn, Turn::Next));
        match turn {
            Turn::Early => return self.reasons.add(Reason::RelayEarly),
            Turn::Behind(missing) => {
                return self.on_behind(now_ns, node, (publisher, index), (missing, batch));
            }
            Turn::Known => self.reasons.add(Reason::RelayDuplicate),
            Turn::Next => *next = Some(span.end),
        }
        followed.is_joined = true;
        followed.batches += 1;
        followed.bytes += batch.len();
        let is_much =
            followed.batches >= CONFIRM_BATCHES || followed.bytes >= CONFIRM_BYTES || is_first;
        if let Some(events) = events.filter(|_| is_next) {
            let came = Came {
                peer: publisher,
                entity,
                index,
                before: *sequence,
                came_ns,
            };
            *sequence += events.len() as u64;
            self.take_in(now_ns, node, &came, (batch, Some(events)));
        }
        if is_much {
            self.confirm(now_ns, node, publisher, index);
        } else {
            self.trees.confirm_ns.get_or_insert(now_ns + CONFIRM_NS);
        }
    }

    /// What a relay brings is not what the publisher signed.
    fn on_forged(&mut self, now_ns: u64, node: &mut Node, publisher: NodeId, index: Index) {
        self.entries[index].counters.dropped += 1;
        self.reasons.add(Reason::RelayForged);
        self.go_back(now_ns, node, (publisher, index), Why::Forged);
    }

    /// A batch comes behind something that has not come: it waits until the publisher says whether that was published.
    fn on_behind(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (publisher, index): (NodeId, Index),
        (missing, batch): (Range<u64>, Bytes),
    ) {
        let inbound = self.newest(publisher, index);
        let Some(followed) = inbound.and_then(|(_, i)| i.relay.as_mut()) else {
            return;
        };
        followed.early_bytes += batch.len();
        followed.early.push_back(batch);
        let number = followed.number;
        if followed.early_bytes > EARLY_BYTES_MAX {
            return self.go_back(now_ns, node, (publisher, index), Why::Gap);
        }
        if followed.missing.is_none() {
            followed.missing = Some(missing.clone());
            let gap = (index, number, What::Gap(missing));
            self.tell_tree(now_ns, node, publisher, gap);
        }
    }

    /// What seemed to be missing was never published.
    pub(super) fn on_hole(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (index, (publisher, number)): (Index, (NodeId, u64)),
        hole: &Range<u64>,
    ) {
        let Some((_, inbound)) = self.newest(publisher, index) else {
            return;
        };
        let Some(followed) = inbound.relay.as_mut().filter(|f| f.number == number) else {
            return;
        };
        if followed
            .missing
            .take_if(|missing| *missing == *hole)
            .is_none()
        {
            return;
        }
        if inbound.next == Some(hole.start) {
            inbound.next = Some(hole.end);
        }
        let relay = followed.relay;
        followed.early_bytes = 0;
        for batch in std::mem::take(&mut followed.early) {
            self.on_relayed(now_ns, node, (relay, publisher, index), batch);
        }
    }

    /// Tells a publisher what is there.
    fn confirm(&mut self, now_ns: u64, node: &mut Node, publisher: NodeId, index: Index) {
        let Some((_, inbound)) = self.newest(publisher, index) else {
            return;
        };
        let (Some(followed), Some(next)) = (&mut inbound.relay, inbound.next) else {
            return;
        };
        (followed.batches, followed.bytes) = (0, 0);
        let have = (index, followed.number, What::Have(next));
        self.tell_tree(now_ns, node, publisher, have);
    }

    /// The same for all that was not told for a while.
    pub(super) fn confirm_all(&mut self, now_ns: u64, node: &mut Node) {
        let mut unsaid = Vec::new();
        for (&publisher, session) in &self.sessions {
            let inbound = session.inbound.values();
            let has_some = |i: &&Inbound| i.relay.as_ref().is_some_and(|f| f.batches > 0);
            unsaid.extend(inbound.filter(has_some).map(|i| (publisher, i.index)));
        }
        for (publisher, index) in unsaid {
            self.confirm(now_ns, node, publisher, index);
        }
    }

    /// A relay passes a publisher's events on no more, or never did.
    pub(super) fn on_ended(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (index, (relay, number)): (Index, (NodeId, u64)),
        entity: &[u8; 32],
    ) {
        let session = self.sessions.get(&relay);
        let brings = session.and_then(|s| s.brings.0.get(&(index, *entity)));
        let Some(&Some(publisher)) = brings else {
            return;
        };
        let inbound = self.newest(publisher, index);
        let followed = inbound.and_then(|(_, i)| i.relay.as_ref());
        if followed.is_some_and(|f| f.is_by(relay, number)) {
            self.go_back(now_ns, node, (publisher, index), Why::Gone);
        }
    }

    /// Asks the publisher to send by itself.
    fn go_back(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (publisher, index): (NodeId, Index),
        why: Why,
    ) {
        let entity = self.sessions.get(&publisher).map(|s| s.entity);
        let inbound = self.newest(publisher, index);
        let followed = inbound.and_then(|(_, i)| Some((i.next, i.relay.take()?)));
        let (Some(entity), Some((next, followed))) = (entity, followed) else {
            return;
        };
        let back = What::Back(next.unwrap_or_default(), why);
        self.tell_tree(now_ns, node, publisher, (index, followed.number, back));
        self.leave_relay(now_ns, node, (index, entity), &followed);
    }

    /// A peer's stream is let in no more: nothing comes in it for others, and nobody else brings what it had.
    pub(crate) fn end_inbound(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (peer, stream): (NodeId, StreamId),
    ) {
        let Some(session) = self.sessions.get_mut(&peer) else {
            return;
        };
        let Some(inbound) = session.inbound.remove(&stream) else {
            return;
        };
        let (index, entity) = (inbound.index, session.entity);
        let mut brought = Vec::new();
        if !session.has_stream(index) {
            let of = |at: &Index| *at == index;
            let brings = session.brings.0.iter().filter(|((at, _), _)| of(at));
            brought.extend(brings.filter_map(|(_, publisher)| *publisher));
            session.brings.0.retain(|(at, _), _| !of(at));
        }
        if let Some(followed) = &inbound.relay {
            self.leave_relay(now_ns, node, (index, entity), followed);
        }
        for publisher in brought {
            self.back_from(now_ns, node, (publisher, index), peer);
        }
        self.end_feeds(now_ns, node, index, |feed| feed.comes_by((peer, stream)));
    }

    /// Goes back from one relay.
    fn back_from(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (publisher, index): (NodeId, Index),
        relay: NodeId,
    ) {
        let inbound = self.newest(publisher, index);
        let followed = inbound.and_then(|(_, i)| i.relay.as_ref());
        if followed.is_some_and(|f| f.relay == relay) {
            self.go_back(now_ns, node, (publisher, index), Why::Gone);
        }
    }

    /// A session has ended: what came by it is asked for elsewhere, and what was passed on of it ends.
    pub(crate) fn tree_closed(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        peer: NodeId,
        ended: &Session,
    ) {
        for ((index, _), publisher) in &ended.brings.0 {
            if let Some(publisher) = publisher {
                self.back_from(now_ns, node, (*publisher, *index), peer);
            }
        }
        for inbound in ended.inbound.values() {
            if let Some(followed) = &inbound.relay {
                let of = (inbound.index, ended.entity);
                self.leave_relay(now_ns, node, of, followed);
            }
        }
        for index in 0..self.entries.len() {
            self.end_feeds(now_ns, node, index, |feed| feed.is_from(peer));
        }
        if self.entries.iter().any(|entry| entry.fan_out > 0) {
            // It may have brought events to others.
            self.trees.look_ns = Some(now_ns);
        }
    }
}
