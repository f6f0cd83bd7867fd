//! Whom a node lets in: subscriptions of others, granted and withdrawn, and their streams.

use super::{
    delivery::Outlet,
    entry::{Entry, Index, Remote},
    message::{Answer, Message, Pattern},
    reason::Reason,
    service::{ChannelService, PATTERNS_PER_PEER_MAX, Session},
};
use crate::rights::{Operation, Refusal};
use std::collections::BTreeMap;
use virga_ebpf::header::{NodeId, StreamId};
use virga_transport::{ChannelName, Mode, Node};

impl<O: Outlet> ChannelService<O> {
    /// A peer asks for channels.
    pub(crate) fn on_subscribe(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        peer: NodeId,
        (request, pattern): (u32, Pattern),
    ) {
        let entries = &self.entries;
        if let Some(session) = self.sessions.get_mut(&peer) {
            let is_meant = |index: &Index| pattern.matches(entries[*index].name());
            session.declined.retain(|index| !is_meant(index));
        }
        if !self.costs.entry(peer).or_default().asks.take(now_ns) {
            self.reasons.add(Reason::SubscribeRate);
            let answer = Answer::TooOften;
            return self.tell(now_ns, node, peer, &Message::Ack { request, answer });
        }
        let answer = self.grant(now_ns, peer, request, &pattern);
        if !matches!(answer, Answer::Granted(_)) {
            self.reasons.add(Reason::SubscribeRefused);
            self.note_unmet(peer, request, pattern);
        }
        self.tell(now_ns, node, peer, &Message::Ack { request, answer });
    }

    /// Puts a peer on the roster of every channel that the pattern means and its entity may have.
    pub(crate) fn grant(
        &mut self,
        now_ns: u64,
        peer: NodeId,
        request: u32,
        pattern: &Pattern,
    ) -> Answer {
        let Some(session) = self.sessions.get_mut(&peer) else {
            return Answer::NotAuthorised;
        };
        let (from, to) = (self.subnets.own, self.subnets.of(peer));
        let mut answer = Answer::UnknownChannel;
        let mut refused: Option<Refusal> = None;
        let mut granted = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.is_retired() || !pattern.matches(entry.name()) {
                continue;
            }
            let publishes = entry.publishers.contains(&self.entity);
            let subscribes = entry.subscribers.contains(&session.entity);
            if publishes && subscribes && !entry.crosses(from, to) {
                // What is sent there would be dropped on the way, and hold up all others.
                self.reasons.add(Reason::SubscribeSubnet);
                answer = Answer::NotAuthorised;
                continue;
            }
            match (publishes, subscribes) {
                (true, true) => {
                    match self
                        .rights
                        .peer_may(now_ns, entry, session, Operation::Subscribe)
                    {
                        Ok(()) => granted.push(index),
                        Err(refusal) => {
                            let is_nearer = |known: &Refusal| refusal.fault() > known.fault();
                            if refused.as_ref().is_none_or(is_nearer) {
                                refused = Some(refusal);
                            }
                        }
                    }
                }
                (_, false) => answer = Answer::NotAuthorised,
                (false, true) if answer == Answer::UnknownChannel => answer = Answer::NotPublished,
                (false, true) => {}
            }
        }
        if granted.is_empty() {
            return match refused {
                Some(refusal) => {
                    self.reasons.add(refusal.fault().into());
                    Answer::refused(&refusal)
                }
                None => answer,
            };
        }
        let is_new = !session.patterns.contains_key(pattern);
        if is_new && session.patterns.len() >= PATTERNS_PER_PEER_MAX {
            return Answer::TooMany;
        }
        session.patterns.insert(pattern.clone(), request);
        for &index in &granted {
            let Entry { spec, roster, .. } = &mut self.entries[index];
            // A peer that refused the stream is off the roster; it may ask for the channel again.
            match roster.get_mut(&peer) {
                Some(remote) => remote.patterns += usize::from(is_new),
                None => {
                    let meant = session.patterns.keys().filter(|p| p.matches(&spec.name));
                    let remote = Remote {
                        patterns: meant.count(),
                        ..Remote::default()
                    };
                    roster.insert(peer, remote);
                }
            }
        }
        for &index in &granted {
            self.note_presence(index);
        }
        Answer::Granted(u32::try_from(granted.len()).unwrap_or(u32::MAX))
    }

    /// Puts peers on the rosters of channels that a subscription of theirs to many means, and that they have a right
    /// to by now: it has begun, or what narrowed it has ended.
    pub(crate) fn join_peers(&mut self, now_ns: u64, node: &mut Node) {
        let mut joining = BTreeMap::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let is_ours = !entry.is_retired() && entry.publishers.contains(&self.entity);
            if !is_ours || !self.rights.asks(entry) {
                continue;
            }
            let meaning: Vec<Pattern> = Pattern::around(entry.name()).collect();
            for (&peer, session) in &self.sessions {
                if entry.roster.contains_key(&peer) || session.declined.contains(&index) {
                    continue;
                }
                let mut meant = meaning
                    .iter()
                    .filter_map(|pattern| session.patterns.get_key_value(pattern));
                let Some((pattern, &request)) = meant.next() else {
                    continue;
                };
                let (rights, subscribe) = (&self.rights, Operation::Subscribe);
                if entry.subscribers.contains(&session.entity)
                    && entry.crosses(self.subnets.own, self.subnets.of(peer))
                    && rights.peer_may(now_ns, entry, session, subscribe).is_ok()
                {
                    joining.insert((peer, pattern.clone()), request);
                }
            }
        }
        for ((peer, pattern), request) in joining {
            let answer = self.grant(now_ns, peer, request, &pattern);
            if matches!(answer, Answer::Granted(_)) {
                self.tell(now_ns, node, peer, &Message::Ack { request, answer });
            }
        }
    }

    /// Takes a peer off the rosters that only this subscription kept it on.
    pub(crate) fn withdraw(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        peer: NodeId,
        pattern: &Pattern,
    ) {
        let Some(session) = self.sessions.get_mut(&peer) else {
            return;
        };
        if session.patterns.remove(pattern).is_none() {
            return;
        }
        for index in 0..self.entries.len() {
            let entry = &mut self.entries[index];
            if !pattern.matches(&entry.spec.name) {
                continue;
            }
            let Some(remote) = entry.roster.get_mut(&peer) else {
                continue;
            };
            remote.patterns = remote.patterns.saturating_sub(1);
            if remote.patterns == 0 {
                let mut removed = entry.roster.remove(&peer);
                self.note_presence(index);
                if let Some(removed) = &mut removed {
                    self.bar(now_ns, node, (index, peer), removed);
                }
                if let Some(stream) = removed.and_then(|remote| remote.stream) {
                    // Finished already, or the session is gone: there is nothing left to finish.
                    let _gone = node.finish_stream(now_ns, peer, stream);
                }
            }
        }
    }

    /// The peer does not want the channel after all.
    pub(crate) fn on_refused(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        peer: NodeId,
        stream: StreamId,
    ) {
        for index in 0..self.entries.len() {
            let roster = &mut self.entries[index].roster;
            if roster.get(&peer).is_some_and(|r| r.stream == Some(stream)) {
                if let Some(mut remote) = roster.remove(&peer) {
                    remote.pending.end(Reason::PeerRefused);
                    self.bar(now_ns, node, (index, peer), &mut remote);
                }
                self.note_presence(index);
                self.reasons.add(Reason::PeerRefused);
                if let Some(session) = self.sessions.get_mut(&peer) {
                    session.declined.insert(index);
                }
            }
        }
    }

    /// Why a stream must not be let in, or the channel that it is for.
    pub(crate) fn admit(
        &self,
        now_ns: u64,
        session: &Session,
        name: &ChannelName,
        salt: u32,
        mode: Mode,
    ) -> Result<Index, Reason> {
        let index = *self.names.get(name).ok_or(Reason::StreamUnknownChannel)?;
        let entry = &self.entries[index];
        if entry.spec.salt != salt {
            return Err(Reason::StreamSalt);
        }
        if entry.spec.mode != mode {
            return Err(Reason::StreamMode);
        }
        if !entry.publishers.contains(&session.entity) {
            return Err(Reason::StreamPublisher);
        }
        if !entry.subscribers.contains(&self.entity) {
            return Err(Reason::StreamSubscriber);
        }
        let right = self
            .rights
            .peer_may(now_ns, entry, session, Operation::Publish);
        right.map_err(|refusal| Reason::from(refusal.fault()))?;
        Ok(index)
    }
}
