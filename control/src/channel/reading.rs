//! What nodes tell each other about reading logs: the worker looks whether a peer may, when it asks and again when it is
//! given something.

use super::{
    delivery::Outlet,
    message::{Message, Pattern},
    reason::Reason,
    replicas::WAITING_MAX,
    service::ChannelService,
    subscribe::SubscribeError,
};
use crate::{
    reading::{
        Reading, Said, Sent,
        wire::{Ask, Given, Refusal, Want},
    },
    replicas::wire::{Kind, Part, split},
    rights::Operation,
};
use virga_ebpf::header::NodeId;
use virga_transport::{ChannelName, Node};

/// Why something is not given, as it is counted and as the peer is told.
type Refused = (Reason, Refusal, String);

impl<O: Outlet> ChannelService<O> {
    /// Passes on to `reading` what peers ask and give.
    #[must_use]
    pub fn reading(mut self, reading: &Reading) -> Self {
        self.reading = reading.clone();
        self
    }

    /// A peer asks for a log's events, or gives some.
    pub(crate) fn on_reading(&mut self, now_ns: u64, node: &mut Node, peer: NodeId, part: Part) {
        if part.kind == Kind::Given {
            if !self.reading.given(peer, part) {
                self.reasons.add(Reason::ControlMalformed);
            }
            return;
        }
        let is_whole = part.at == 0 && part.bytes.len() == part.total as usize;
        let Some(ask) = Ask::parse(&part.bytes).filter(|_| is_whole) else {
            return self.reasons.add(Reason::ControlMalformed);
        };
        let (channel, number) = (part.channel, part.number);
        let refused = match ask.want {
            Want::End => Ok(()),
            Want::Open | Want::Events | Want::Batches(_) | Want::Named(_) => {
                self.may_read(now_ns, peer, &channel)
            }
        };
        let refused = refused.and_then(|()| {
            let costs = self.costs.entry(peer).or_default();
            let asked = (number, ask);
            let is_heard =
                costs.reads.take(now_ns) && self.reading.hear(peer, channel.clone(), asked);
            let words = || "it has too much else to do".to_owned();
            is_heard
                .then_some(())
                .ok_or_else(|| (Reason::ReadFull, Refusal::Full, words()))
        });
        let Err((reason, refusal, words)) = refused else {
            return;
        };
        self.reasons.add(reason);
        let given = Given::Refused(refusal, words).encode();
        for part in split(Kind::Given, &channel, number, &given) {
            self.tell(now_ns, node, peer, &Message::Replica(part));
        }
    }

    /// Whether a peer may have what a channel's log holds: as if it subscribed to what is published here.
    fn may_read(&self, now_ns: u64, peer: NodeId, channel: &ChannelName) -> Result<(), Refused> {
        let refused = |reason: Reason, words: String| Err((reason, Refusal::NoRight, words));
        let entry = self.names.get(channel).map(|&index| &self.entries[index]);
        let session = self.sessions.get(&peer);
        let (Some(entry), Some(session)) = (entry.filter(|e| !e.is_retired()), session) else {
            let words = "it has no such channel".to_owned();
            return Err((Reason::ReadRefused, Refusal::NotKept, words));
        };
        if let Some(why) = self.absence() {
            return refused(Reason::ReadRefused, why.to_owned());
        }
        if !entry.subscribers.contains(&session.entity) {
            let words = "the reader's entity may not subscribe there".to_owned();
            return refused(Reason::ReadRefused, words);
        }
        if !entry.crosses(self.subnets.own, self.subnets.of(peer)) {
            let words = "the channel does not go to the reader's subnet".to_owned();
            return refused(Reason::SubscribeSubnet, words);
        }
        let rights = &self.rights;
        let right = rights.peer_may(now_ns, entry, session, Operation::Subscribe);
        right.or_else(|refusal| refused(refusal.fault().into(), refusal.to_string()))
    }

    /// Says something about reading to a peer, if it may have that.
    pub(crate) fn say_reading(&mut self, now_ns: u64, node: &mut Node, said: Said) {
        let Said { peer, parts, done } = said;
        let Some(session) = self.sessions.get(&peer) else {
            return done(Sent::NoSession);
        };
        // Refusals, and that a reader is gone, are few and short.
        let first = parts.first();
        let has_to_wait = first.is_some_and(|part| match part.kind {
            Kind::Given => Given::has_events(&part.bytes),
            _ => Ask::parse(&part.bytes).is_some_and(|ask| ask.want != Want::End),
        });
        if has_to_wait && session.outbox.len() >= WAITING_MAX {
            return done(Sent::NoRoom(parts));
        }
        if let Some(part) = first.filter(|part| Given::has_events(&part.bytes))
            && part.kind == Kind::Given
            && let Err((reason, refusal, words)) = self.may_read(now_ns, peer, &part.channel)
        {
            self.reasons.add(reason);
            return done(Sent::Refused(refusal, words));
        }
        for part in parts {
            self.tell(now_ns, node, peer, &Message::Replica(part));
        }
        done(Sent::Taken);
    }

    /// Somebody here wants to read at a peer.
    pub(crate) fn reach(&mut self, now_ns: u64, node: &mut Node, peer: NodeId) {
        *self.reached.entry(peer).or_default() += 1;
        // Only configured peers are asked, and connecting twice does nothing.
        let _known = node.connect(now_ns, peer);
    }

    /// One wants to no more.
    pub(crate) fn let_go(&mut self, node: &mut Node, peer: NodeId) {
        let Some(readers) = self.reached.get_mut(&peer) else {
            return;
        };
        *readers -= 1;
        if *readers == 0 {
            self.reached.remove(&peer);
            if !self.needs(peer) {
                node.give_up(peer);
            }
        }
    }

    /// The peers of this worker that may keep a channel's log: those that hold it together, or else all that may
    /// subscribe.
    pub(crate) fn keepers(
        &self,
        now_ns: u64,
        channel: &ChannelName,
    ) -> Result<Vec<NodeId>, SubscribeError> {
        let pattern = || Pattern::Channel(channel.clone());
        if let Some(why) = self.absence() {
            return Err(SubscribeError::Absent(why.to_owned()));
        }
        let entry = self.names.get(channel).map(|&index| &self.entries[index]);
        let entry = entry.filter(|entry| !entry.is_retired());
        let entry = entry.ok_or_else(|| SubscribeError::UnknownChannel(pattern()))?;
        if self.allowed(now_ns, &pattern()).is_empty() {
            return Err(self.refusal(now_ns, pattern()));
        }
        let group = self.replicas.group(channel);
        let keeps = |(peer, entities): &(&NodeId, &Vec<[u8; 32]>)| match group {
            Some(group) => group.has(**peer),
            None => entities.iter().any(|key| entry.subscribers.contains(key)),
        };
        let keepers = self.peers.iter().filter(keeps);
        Ok(keepers.map(|(&peer, _)| peer).collect())
    }

    /// Whether what an entity signed may come onto a channel now, as far as this worker knows: a peer's right is looked
    /// at where there is a session with it.
    pub(crate) fn may_say(&self, now_ns: u64, channel: &ChannelName, entity: &[u8; 32]) -> bool {
        let entry = self.names.get(channel).map(|&index| &self.entries[index]);
        let Some(entry) = entry.filter(|entry| !entry.is_retired()) else {
            return false;
        };
        let mut sessions = self.sessions.values().filter(|s| s.entity == *entity);
        let rights = &self.rights;
        let may = |session| rights.peer_may(now_ns, entry, session, Operation::Publish);
        entry.publishers.contains(entity) && sessions.all(|session| may(session).is_ok())
    }

    /// The channels that a pattern means and this node's entity may have.
    pub(crate) fn subscribable(&self, now_ns: u64, pattern: &Pattern) -> Vec<ChannelName> {
        let allowed = self.allowed(now_ns, pattern).into_iter();
        let names = allowed.map(|index| self.entries[index].name().clone());
        names.collect()
    }
}
