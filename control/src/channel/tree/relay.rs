//! A relay: it passes on what it gets from a publisher, to nodes on its own roster that asked for it.

use super::{
    super::{
        delivery::Outlet,
        entry::{Entry, Index, Remote},
        reason::Reason,
        service::ChannelService,
        signed::{events_of, span_of},
    },
    MARK_PATIENCE_NS, PATIENCE_NS,
    wire::{What, Why},
};
use crate::rights::Operation;
use bytes::Bytes;
use virga_ebpf::header::{NodeId, StreamId};
use virga_transport::{Mode, Node, limits::STREAM_QUEUE_BYTES};

/// Bytes on a stream to a node once others' events are passed on in it: what is left is for this node's own.
const QUEUED_BYTES_MAX: usize = STREAM_QUEUE_BYTES / 4 * 3;

const _: () = assert!(super::TAIL_BYTES_MAX < QUEUED_BYTES_MAX);

/// What a node on the roster gets of another publisher. It ends with its place there.
#[derive(Debug)]
pub(crate) struct Feed {
    /// The publisher's entity, and the assignment, as the node named them.
    entity: [u8; 32],
    number: u64,
    /// By which the publisher's events come,
    publisher: NodeId,
    stream: StreamId,
    /// when it was asked what it had published when this began, and by which mark,
    since_ns: u64,
    mark: u64,
    /// and what it said: it has named this node to the other, which may have had no right to what is before that event.
    from: Option<u64>,
}

impl Feed {
    pub(super) const fn is_of(&self, number: u64) -> bool {
        self.number == number
    }

    pub(super) fn is_from(&self, publisher: NodeId) -> bool {
        self.publisher == publisher
    }

    pub(super) fn comes_by(&self, stream: (NodeId, StreamId)) -> bool {
        (self.publisher, self.stream) == stream
    }
}

#[cfg(test)]
impl Feed {
    pub(crate) const fn has_begun(&self) -> bool {
        self.from.is_some()
    }

    pub(crate) const fn set_from(&mut self, next: u64) {
        self.from = Some(next);
    }
}

impl<O: Outlet> ChannelService<O> {
    /// Tells a publisher whose stream has come that this node passes its events on.
    pub(crate) fn tell_able(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (publisher, stream): (NodeId, StreamId),
    ) {
        let session = self.sessions.get(&publisher);
        let Some(inbound) = session.and_then(|session| session.inbound.get(&stream)) else {
            return;
        };
        let (index, told) = (inbound.index, inbound.told_places);
        let fan_out = self.entries[index].fan_out;
        if fan_out == 0 {
            return;
        }
        self.trees.look_soon(now_ns);
        let places = match self.may_relay(now_ns, index) {
            true => u16::try_from(fan_out).unwrap_or(u16::MAX),
            false => 0,
        };
        // Where there is no room for it, it is told later.
        if places == told || !self.may_tell(publisher) {
            return;
        }
        let session = self.sessions.get_mut(&publisher);
        if let Some(inbound) = session.and_then(|session| session.inbound.get_mut(&stream)) {
            inbound.told_places = places;
        }
        self.tell_tree(now_ns, node, publisher, (index, 0, What::Able(places)));
    }

    /// The same to all, where it has changed: its right has begun or ended.
    pub(super) fn tell_all_able(&mut self, now_ns: u64, node: &mut Node) {
        let (sessions, entries) = (self.sessions.iter(), &self.entries);
        let streams = sessions.flat_map(|(&peer, session)| {
            let inbound = session.inbound.iter();
            let inbound = inbound.filter(|(_, inbound)| entries[inbound.index].fan_out > 0);
            inbound.map(move |(&stream, _)| (peer, stream))
        });
        for stream in streams.collect::<Vec<_>>() {
            self.tell_able(now_ns, node, stream);
        }
    }

    /// Whether this node may publish there itself, and passes on what others do.
    fn may_relay(&self, now_ns: u64, index: Index) -> bool {
        let entry = &self.entries[index];
        entry.fan_out > 0 && self.may_publish(now_ns, entry.name()) == Ok(index)
    }

    /// A node asks for what an entity publishes.
    pub(super) fn on_feed(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (index, (child, number)): (Index, (NodeId, u64)),
        entity: [u8; 32],
    ) {
        let (publisher, stream) = match self.may_feed(now_ns, index, child, &entity) {
            Ok(stream) => stream,
            Err(why) => {
                self.reasons.add(Reason::RelayRefused);
                let ended = (index, number, What::Ended(entity, why));
                return self.tell_tree(now_ns, node, child, ended);
            }
        };
        let mark = self.trees.next();
        let feed = Feed {
            entity,
            number,
            publisher,
            stream,
            since_ns: now_ns,
            mark,
            from: None,
        };
        if let Some(remote) = self.entries[index].roster.get_mut(&child) {
            remote.feeds.insert(publisher, feed);
        }
        let asked = (index, mark, What::Mark(child, number));
        self.tell_tree(now_ns, node, publisher, asked);
        self.trees.look_soon(now_ns);
    }

    /// The publisher of what a node on the roster may have from here, and its stream.
    fn may_feed(
        &mut self,
        now_ns: u64,
        index: Index,
        child: NodeId,
        entity: &[u8; 32],
    ) -> Result<(NodeId, StreamId), Why> {
        if !self.may_relay(now_ns, index) {
            return Err(Why::Refused);
        }
        if !self.costs.entry(child).or_default().feeds.take(now_ns) {
            return Err(Why::Full);
        }
        let entry = &self.entries[index];
        let session = self.sessions.get(&child).ok_or(Why::Gone)?;
        let subscribe = Operation::Subscribe;
        let is_in = entry.roster.contains_key(&child)
            && entry.subscribers.contains(&session.entity)
            && self
                .rights
                .peer_may(now_ns, entry, session, subscribe)
                .is_ok();
        if !is_in {
            return Err(Why::Refused);
        }
        let mut publishers = self.sessions.iter().filter(|(_, s)| s.entity == *entity);
        let stream = publishers.find_map(|(&peer, s)| Some((peer, s.newest_of(index)?)));
        let (publisher, stream) = stream.ok_or(Why::Gone)?;
        match self.may_bring(index, publisher, child) {
            true => Ok((publisher, stream)),
            false => Err(Why::Refused),
        }
    }

    /// Whether a publisher's events come here from itself, and go from its subnet and from this node's to the other's.
    fn may_bring(&self, index: Index, publisher: NodeId, child: NodeId) -> bool {
        let (entry, subnets) = (&self.entries[index], &self.subnets);
        let to = subnets.of(child);
        let is_direct = self
            .sessions
            .get(&publisher)
            .is_some_and(|s| s.is_direct(index));
        publisher != child
            && is_direct
            && entry.crosses(subnets.own, to)
            && entry.crosses(subnets.of(publisher), to)
    }

    /// A node wants it no more.
    pub(super) fn on_leave(&mut self, child: NodeId, index: Index, entity: &[u8; 32]) {
        if let Some(remote) = self.entries[index].roster.get_mut(&child) {
            remote.feeds.retain(|_, feed| feed.entity != *entity);
        }
    }

    /// The publisher has named this node to another, and says what it has published by now: a place is taken.
    pub(super) fn on_newest(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (publisher, (index, mark)): (NodeId, (Index, u64)),
        next: u64,
    ) {
        let Entry {
            roster, fan_out, ..
        } = &mut self.entries[index];
        let feeds = roster.values().flat_map(|remote| remote.feeds.values());
        let has_place = feeds.filter(|feed| feed.from.is_some()).count() < *fan_out;
        let asked = roster.iter_mut().find_map(|(&child, remote)| {
            let feed = remote.feeds.get_mut(&publisher)?;
            (feed.mark == mark && feed.from.is_none()).then_some((child, feed))
        });
        let Some((child, feed)) = asked else { return };
        if has_place {
            feed.from = Some(next);
            return;
        }
        self.reasons.add(Reason::RelayRefused);
        self.end_feed(now_ns, node, (index, child, publisher), Why::Full);
    }

    /// Passes a batch on, that came from its publisher itself.
    pub(crate) fn relay(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (index, publisher, stream): (Index, NodeId, StreamId),
        batch: &Bytes,
    ) {
        if !self.passes_on(index, publisher) || !self.may_relay(now_ns, index) {
            return;
        }
        let Some(span) = span_of(batch) else { return };
        let Entry {
            spec,
            roster,
            counters,
            ..
        } = &mut self.entries[index];
        let mut full = Vec::new();
        // Its publisher sends by itself what is not there after that.
        let deadline_ns = Some(now_ns.saturating_add(PATIENCE_NS));
        for (&child, remote) in roster.iter_mut() {
            let feed = remote.feeds.get(&publisher).filter(|f| f.stream == stream);
            let from = feed.and_then(|feed| feed.from);
            if from.is_none_or(|from| span.start < from) {
                continue;
            }
            // A relay of this node's own events has not answered in time: its stream is to drain.
            let to = match remote.is_overdue(now_ns) {
                true => None,
                false => remote.stream(now_ns, node, (spec, child)).ok(),
            };
            let is_taken = to.is_some_and(|to| {
                node.queued_on(child, to) + batch.len() <= QUEUED_BYTES_MAX
                    && node
                        .send_all(now_ns, child, to, [batch], deadline_ns)
                        .refused
                        .is_none()
            });
            match is_taken {
                true => counters.relayed += events_of(Mode::Signed, batch),
                false => full.push(child),
            }
        }
        for child in full {
            self.reasons.add(Reason::RelayFull);
            self.end_feed(now_ns, node, (index, child, publisher), Why::Full);
        }
    }

    /// A publisher's events are not passed on to a node any more, which is told.
    fn end_feed(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (index, child, publisher): (Index, NodeId, NodeId),
        why: Why,
    ) {
        let remote = self.entries[index].roster.get_mut(&child);
        if let Some(feed) = remote.and_then(|remote| remote.feeds.remove(&publisher)) {
            let ended = (index, feed.number, What::Ended(feed.entity, why));
            self.tell_tree(now_ns, node, child, ended);
        }
    }

    /// Ends what cannot be passed on any more, or was never asked for by its publisher.
    pub(super) fn look_at_feeds(&mut self, now_ns: u64, node: &mut Node, index: Index) {
        let may_relay = self.may_relay(now_ns, index);
        let is_over = |service: &Self, child: NodeId, feed: &Feed| {
            let waited_ns = now_ns.saturating_sub(feed.since_ns);
            let is_unasked = feed.from.is_none() && waited_ns >= MARK_PATIENCE_NS;
            !may_relay || is_unasked || !service.may_bring(index, feed.publisher, child)
        };
        let roster = self.entries[index].roster.iter();
        let feeds = roster.flat_map(|(&child, r)| r.feeds.values().map(move |feed| (child, feed)));
        let over = feeds.filter(|(child, feed)| is_over(self, *child, feed));
        let over: Vec<_> = over.map(|(child, feed)| (child, feed.publisher)).collect();
        for (child, publisher) in over {
            self.end_feed(now_ns, node, (index, child, publisher), Why::Gone);
        }
    }

    /// Nothing more comes by these.
    pub(crate) fn end_feeds(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        index: Index,
        is_over: impl Fn(&Feed) -> bool,
    ) {
        if self.entries[index].fan_out == 0 {
            return;
        }
        let roster = self.entries[index].roster.iter();
        let feeds = roster.flat_map(|(&child, r)| r.feeds.values().map(move |feed| (child, feed)));
        let over = feeds.filter(|(_, feed)| is_over(feed));
        let over: Vec<_> = over.map(|(child, feed)| (child, feed.publisher)).collect();
        for (child, publisher) in over {
            self.end_feed(now_ns, node, (index, child, publisher), Why::Gone);
        }
    }

    /// Nodes that a channel's events are passed on to.
    pub(crate) fn children(&self, index: Index) -> usize {
        let is_fed = |remote: &&Remote| !remote.feeds.is_empty();
        self.entries[index].roster.values().filter(is_fed).count()
    }

    /// Whether a publisher's events are passed on from here.
    pub(super) fn passes_on(&self, index: Index, publisher: NodeId) -> bool {
        let mut roster = self.entries[index].roster.values();
        roster.any(|remote| remote.feeds.contains_key(&publisher))
    }
}
