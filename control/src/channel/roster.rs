//! Whom a node lets in: subscriptions of others, granted and withdrawn, and their streams.

use super::{
    delivery::Outlet,
    entry::{Entry, Index, Remote},
    message::{Answer, Pattern},
    reason::Reason,
    service::{ChannelService, PATTERNS_PER_PEER_MAX, Session},
};
use crate::rights::{Operation, Refusal};
use virga_ebpf::header::NodeId;
use virga_transport::{ChannelName, Mode, Node};

impl<O: Outlet> ChannelService<O> {
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
                let stream = remote.stream;
                entry.roster.remove(&peer);
                self.note_presence(index);
                if let Some(stream) = stream {
                    // Finished already, or the session is gone: there is nothing left to finish.
                    let _gone = node.finish_stream(now_ns, peer, stream);
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
