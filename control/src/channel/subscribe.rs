//! The subscribing side: local subscribers, and what they need other nodes to send.

use super::{
    delivery::{Delivery, Offer, Outlet, SubscriberId},
    entry::{Entry, Index},
    message::{Answer, Message, Pattern},
    reason::Reason,
    service::ChannelService,
    stall::{LOOK_AGAIN_NS, Slow},
};
use crate::rights::{Operation, Refusal};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;
use virga_ebpf::header::NodeId;
use virga_transport::{ChannelName, Node};

/// Local subscribers of one node.
pub const SUBSCRIBERS_MAX: usize = 4_096;
/// A subscription that was not answered is sent again after this long.
pub const ASK_AGAIN_NS: u64 = 5_000_000_000;

/// Why there is no subscription.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SubscribeError {
    /// Nothing in the configuration matches.
    #[error("no channel {kind} {name} is configured on this node: add a [[channels]] block", kind = match .0 { Pattern::Channel(_) => "named", Pattern::Prefix(_) => "within" }, name = .0.name())]
    UnknownChannel(Pattern),
    /// This node's entity is in no matching channel's `subscribe` list.
    #[error("this node's entity may not subscribe to {}: add it to the channel's `subscribe` list", .0.name())]
    NotAuthorised(Pattern),
    /// The channel asks for a token or for capabilities, and this node has none that give the right.
    #[error("this node's entity may not subscribe to {0}: {1}; {fix}", fix = .1.fix())]
    Token(ChannelName, Refusal),
    /// The node speaks for no entity.
    #[error("this node may not subscribe: {0}")]
    Absent(String),
    /// The node has as many as it may.
    #[error("the node has {SUBSCRIBERS_MAX} local subscribers already: end one first")]
    TooMany,
}

/// Tells a subscriber whether it is one; called exactly once.
pub type Done = Box<dyn FnOnce(Result<(), SubscribeError>) + Send>;

/// A local subscriber.
pub(crate) struct Local<O> {
    pub(crate) outlet: O,
    pub(crate) pattern: Pattern,
    /// While its queue is too full.
    pub(crate) slow: Option<Slow>,
}

/// A pattern that local subscribers have, and the nodes that were asked for it.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) subscribers: usize,
    pub(crate) asked: BTreeMap<NodeId, Asked>,
}

/// What one node was asked for, and what it said.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) request: u32,
    pub(crate) answer: Option<Answer>,
}

impl<O: Outlet> ChannelService<O> {
    pub(crate) fn subscribe(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        id: SubscriberId,
        pattern: Pattern,
        outlet: O,
    ) -> Result<(), SubscribeError> {
        if let Some(why) = self.absence() {
            return Err(SubscribeError::Absent(why.to_owned()));
        }
        if self.subscribers.len() >= SUBSCRIBERS_MAX {
            return Err(SubscribeError::TooMany);
        }
        let mut matching = self
            .entries
            .iter()
            .filter(|e| !e.is_retired() && pattern.matches(e.name()));
        if matching.next().is_none() {
            return Err(SubscribeError::UnknownChannel(pattern));
        }
        let allowed = self.allowed(now_ns, &pattern);
        if allowed.is_empty() {
            return Err(self.refusal(now_ns, pattern));
        }
        for &index in &allowed {
            self.entries[index].local.insert(id);
            self.note_presence(index);
        }
        let local = Local {
            outlet,
            pattern: pattern.clone(),
            slow: None,
        };
        self.subscribers.insert(id, local);
        let wanted = self.wanted.entry(pattern.clone()).or_default();
        wanted.subscribers += 1;
        if wanted.subscribers == 1 {
            for peer in self.publishers_of(&allowed) {
                // Only configured peers are asked, and connecting twice does nothing.
                let _known = node.connect(now_ns, peer);
                self.ask(now_ns, node, peer, &pattern);
            }
        }
        Ok(())
    }

    /// Channels that a pattern means and this node's entity may have.
    pub(crate) fn allowed(&self, now_ns: u64, pattern: &Pattern) -> Vec<Index> {
        let entries = self.listed(pattern);
        entries
            .filter(|(_, e)| self.may_subscribe(now_ns, e).is_ok())
            .map(|(index, _)| index)
            .collect()
    }

    /// Channels that a pattern means and whose list names this node's entity.
    fn listed(&self, pattern: &Pattern) -> impl Iterator<Item = (Index, &Entry)> {
        let entries = self.entries.iter().enumerate();
        entries.filter(|(_, e)| pattern.matches(e.name()) && e.subscribers.contains(&self.entity))
    }

    fn may_subscribe(&self, now_ns: u64, entry: &Entry) -> Result<(), Refusal> {
        let rights = &self.rights;
        rights.own_may(now_ns, entry, &self.entity, Operation::Subscribe)
    }

    /// Why this node's entity may have none of the channels that a pattern means.
    pub(crate) fn refusal(&self, now_ns: u64, pattern: Pattern) -> SubscribeError {
        let refused = self.listed(&pattern).find_map(|(_, entry)| {
            let refusal = self.may_subscribe(now_ns, entry).err()?;
            Some((entry.name().clone(), refusal))
        });
        match refused {
            Some((channel, refusal)) => SubscribeError::Token(channel, refusal),
            None => SubscribeError::NotAuthorised(pattern),
        }
    }

    /// Has local subscribers get the channels that they mean and that a new token allows.
    pub(crate) fn admit_locals(&mut self, now_ns: u64) {
        let patterns = self
            .subscribers
            .iter()
            .map(|(&id, l)| (id, l.pattern.clone()));
        for (id, pattern) in patterns.collect::<Vec<_>>() {
            for index in self.allowed(now_ns, &pattern) {
                if self.entries[index].local.insert(id) {
                    self.note_presence(index);
                }
            }
        }
    }

    /// The same for what begins by itself, of channels that ask for something; and asks who publishes there.
    pub(crate) fn join_own(&mut self, now_ns: u64, node: &mut Node) {
        let mut joined = BTreeSet::new();
        for index in 0..self.entries.len() {
            let entry = &self.entries[index];
            if entry.is_retired()
                || !self.rights.asks(entry)
                || !entry.subscribers.contains(&self.entity)
                || self.may_subscribe(now_ns, entry).is_err()
            {
                continue;
            }
            let missing = self.subscribers.iter().filter(|(id, local)| {
                !entry.local.contains(id) && local.pattern.matches(entry.name())
            });
            let missing: Vec<SubscriberId> = missing.map(|(&id, _)| id).collect();
            for id in &missing {
                self.entries[index].local.insert(*id);
                joined.insert(self.subscribers[id].pattern.clone());
            }
            if !missing.is_empty() {
                self.note_presence(index);
            }
        }
        for pattern in joined {
            for peer in self.publishers_of(&self.allowed(now_ns, &pattern)) {
                let wanted = self.wanted.get(&pattern);
                if wanted.is_some_and(|wanted| !wanted.asked.contains_key(&peer)) {
                    // Only configured peers are asked, and connecting twice does nothing.
                    let _known = node.connect(now_ns, peer);
                    self.ask(now_ns, node, peer, &pattern);
                }
            }
        }
    }

    /// Configured peers whose entity may publish on one of the channels.
    pub(crate) fn publishers_of(&self, channels: &[Index]) -> BTreeSet<NodeId> {
        let publishes = |key: &[u8; 32]| {
            channels
                .iter()
                .any(|&i| self.entries[i].publishers.contains(key))
        };
        let peers = self.peers.iter();
        let peers = peers.filter(|(_, entities)| entities.iter().any(publishes));
        peers.map(|(&peer, _)| peer).collect()
    }

    /// Sends a subscription, where there is a session; else it is sent when there is one.
    pub(crate) fn ask(&mut self, now_ns: u64, node: &mut Node, peer: NodeId, pattern: &Pattern) {
        let Some(wanted) = self.wanted.get_mut(pattern) else {
            return;
        };
        self.last_request = self.last_request.wrapping_add(1);
        let request = self.last_request;
        let asked = Asked {
            request,
            answer: None,
        };
        wanted.asked.insert(peer, asked);
        self.send_subscribe(now_ns, node, peer, pattern.clone(), request);
    }

    fn send_subscribe(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        peer: NodeId,
        pattern: Pattern,
        request: u32,
    ) {
        if self.sessions.contains_key(&peer) {
            self.tell(now_ns, node, peer, &Message::Subscribe { request, pattern });
            self.ask_again_ns.get_or_insert(now_ns + ASK_AGAIN_NS);
        }
    }

    /// Asks a node for all that local subscribers want of it: the session is new.
    pub(crate) fn ask_all(&mut self, now_ns: u64, node: &mut Node, peer: NodeId) {
        let patterns: Vec<Pattern> = self.wanted.keys().cloned().collect();
        for pattern in patterns {
            if self
                .publishers_of(&self.allowed(now_ns, &pattern))
                .contains(&peer)
            {
                self.ask(now_ns, node, peer, &pattern);
            }
        }
    }

    /// Asks again what was not answered, or refused for want of a token that may be valid by now; under
    /// the same number: a late answer is one, too.
    pub(crate) fn ask_again(&mut self, now_ns: u64, node: &mut Node) {
        self.ask_again_ns = None;
        let mut unanswered = Vec::new();
        for (pattern, wanted) in &self.wanted {
            let silent = wanted.asked.iter().filter(|(_, asked)| {
                let answer = asked.answer.as_ref();
                matches!(
                    answer,
                    None | Some(Answer::Token(_) | Answer::Capability(_) | Answer::TooOften)
                )
            });
            unanswered.extend(silent.map(|(&peer, asked)| (peer, pattern.clone(), asked.request)));
        }
        for (peer, pattern, request) in unanswered {
            self.send_subscribe(now_ns, node, peer, pattern, request);
        }
    }

    /// The answers of a node whose session ended are void.
    pub(crate) fn forget_answers(&mut self, peer: NodeId) {
        for wanted in self.wanted.values_mut() {
            if let Some(asked) = wanted.asked.get_mut(&peer) {
                asked.answer = None;
            }
        }
    }

    pub(crate) fn on_ack(&mut self, peer: NodeId, request: u32, answer: Answer) {
        for wanted in self.wanted.values_mut() {
            match wanted.asked.get_mut(&peer) {
                Some(asked) if asked.request == request => {
                    asked.answer = Some(answer);
                    return;
                }
                _ => {}
            }
        }
    }

    /// Lets a local subscriber go, and gives back its queue.
    pub(crate) fn unsubscribe(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        id: SubscriberId,
    ) -> Option<O> {
        let local = self.subscribers.remove(&id)?;
        for index in 0..self.entries.len() {
            if self.entries[index].local.remove(&id) {
                self.note_presence(index);
                self.release(now_ns, node, index);
            }
        }
        let wanted = self.wanted.get_mut(&local.pattern);
        if wanted.is_some_and(|wanted| {
            wanted.subscribers -= 1;
            wanted.subscribers == 0
        }) {
            self.want_no_more(now_ns, node, local.pattern);
        }
        Some(local.outlet)
    }

    /// Tells every node that was asked for a pattern that nobody here has it any more, and no longer
    /// tries to reach those that nothing else is wanted of.
    fn want_no_more(&mut self, now_ns: u64, node: &mut Node, pattern: Pattern) {
        let asked = self.wanted.remove(&pattern).unwrap_or_default().asked;
        for peer in asked.into_keys() {
            self.last_request = self.last_request.wrapping_add(1);
            let message = Message::Unsubscribe {
                request: self.last_request,
                pattern: pattern.clone(),
            };
            self.tell(now_ns, node, peer, &message);
            if !self.needs(peer) {
                node.give_up(peer);
            }
        }
    }

    /// Hands an event to every local subscriber of a channel: how many took it, and how many had no
    /// room.
    pub(crate) fn deliver(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        index: Index,
        delivery: &Delivery,
    ) -> (usize, u64) {
        let entry = &mut self.entries[index];
        if entry.local.is_empty() {
            entry.counters.dropped += 1;
            self.reasons.add(Reason::NoSubscriber);
        }
        let (mut taken, mut lost) = (0, 0);
        let mut gone = Vec::new();
        for &id in &entry.local {
            let Some(local) = self.subscribers.get_mut(&id) else {
                continue;
            };
            match local.outlet.offer(delivery) {
                Offer::Taken => taken += 1,
                Offer::TakenSlow => {
                    taken += 1;
                    if local.slow.is_none() {
                        local.slow = Some(Slow::new(now_ns, local.outlet.fill()));
                    }
                    self.look_at_slow_ns.get_or_insert(now_ns + LOOK_AGAIN_NS);
                }
                Offer::Full => {
                    lost += 1;
                    self.reasons.add(Reason::SubscriberFull);
                }
                Offer::Gone => gone.push(id),
            }
        }
        entry.counters.delivered += taken as u64;
        entry.counters.dropped += lost;
        for id in gone {
            drop(self.unsubscribe(now_ns, node, id));
        }
        (taken, lost)
    }
}
