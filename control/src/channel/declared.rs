//! Channels that come, change and go while the node runs: declared by authorities, told to all peers.
//!
//! Which of them hold is decided for all workers together ([`crate::rights::catalogue`]), and told to each by
//! [`ChannelService::follow`].

use super::{
    delivery::Outlet,
    entry::{Entry, Index, Remote},
    message::{Answer, Message, Pattern},
    publish::Progress,
    reason::Reason,
    report::PublishError,
    service::{ChannelService, PATTERNS_PER_PEER_MAX},
};
use crate::{
    config::{ChannelConfig, Entity, Listed},
    notices::Shown,
    rights::identity::Retired,
};
use std::collections::BTreeSet;
use virga_ebpf::header::NodeId;
use virga_transport::{ChannelName, Node};

/// A policy by the keys that entities have now: two that are the same so differ in nothing but who has which key.
fn by_present_keys(channel: &ChannelConfig, retired: &Retired) -> ChannelConfig {
    let renew = |entities: &mut Vec<Entity>| {
        let mut keys: Vec<[u8; 32]> = entities.iter().map(|e| *retired.current(&e.key)).collect();
        keys.sort_unstable();
        keys.dedup();
        *entities = keys.into_iter().map(Entity::from_key).collect();
    };
    let mut channel = channel.clone();
    for listed in [&mut channel.publish, &mut channel.subscribe] {
        if let Listed::Only(entities) = listed {
            renew(entities);
        }
    }
    renew(&mut channel.issuers);
    renew(&mut channel.capabilities.issuers);
    for scope in &mut channel.scopes {
        for listed in [&mut scope.publish, &mut scope.subscribe] {
            if let Listed::Only(entities) = listed {
                renew(entities);
            }
        }
        renew(&mut scope.issuers);
        renew(&mut scope.capabilities.issuers);
    }
    channel
}

impl<O: Outlet> ChannelService<O> {
    /// A peer sends a declaration, its own or one that it has heard of: the control plane looks at it, unless it is
    /// known here.
    pub(crate) fn on_declaration(&mut self, peer: NodeId, signed: Vec<u8>) {
        let is_known = self.directory.declarations.contains(&signed);
        if !is_known && !self.notices.tell_shown(peer, Shown::Channel(signed)) {
            self.reasons.add(Reason::DeclarationsFull);
        }
    }

    /// Has these channels from now on, and no others. What changes begins anew: its streams end, and whoever has
    /// subscribed gets it by what it says now. Whether any is new or changed: then peers are to be let in by that.
    pub(crate) fn set_channels(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        (channels, retired): (&[ChannelConfig], &Retired),
    ) -> bool {
        let names: BTreeSet<&ChannelName> = channels.iter().map(|channel| &channel.name).collect();
        for index in 0..self.entries.len() {
            if !names.contains(self.entries[index].name()) {
                self.retire(now_ns, node, index);
            }
        }
        let mut is_changed = false;
        for channel in channels {
            let index = self.entries.iter().position(|e| *e.name() == channel.name);
            let is_same = |known: &ChannelConfig| {
                by_present_keys(known, retired) == by_present_keys(channel, retired)
            };
            match index {
                Some(index) if self.entries[index].config.as_ref().is_some_and(is_same) => {
                    self.entries[index].set_members(channel);
                    continue;
                }
                Some(index) => {
                    self.retire(now_ns, node, index);
                    let counters = self.entries[index].counters;
                    let sequence = self.entries[index].sequence;
                    self.entries[index] = Entry {
                        counters,
                        sequence,
                        ..Entry::new(channel)
                    };
                    self.names.insert(channel.name.clone(), index);
                }
                None => {
                    self.names.insert(channel.name.clone(), self.entries.len());
                    self.entries.push(Entry::new(channel));
                }
            }
            is_changed = true;
        }
        self.admit_locals(now_ns);
        self.end_locals(now_ns, node);
        is_changed
    }

    /// A channel ends here; its place is kept, for the same name.
    fn retire(&mut self, now_ns: u64, node: &mut Node, index: Index) {
        if self.entries[index].config.is_none() {
            return;
        }
        let name = self.entries[index].name().clone();
        for peer in std::mem::take(&mut self.entries[index].holding) {
            self.tell(now_ns, node, peer, &Message::Release(name.clone()));
        }
        let entry = &mut self.entries[index];
        entry.retire();
        let mut roster = std::mem::take(&mut entry.roster);
        entry.progress = Progress::Idle;
        for batch in std::mem::take(&mut entry.waiting) {
            batch.fail(PublishError::UnknownChannel(name.clone()));
        }
        let lost = roster.values_mut().map(Remote::end).sum();
        entry.counters.dropped += lost;
        self.reasons.add_many(Reason::PeerGone, lost);
        for (peer, stream) in roster.into_iter().filter_map(|(p, r)| Some((p, r.stream?))) {
            // The session may have ended meanwhile, and the stream with it.
            let _gone = node.reset_stream(now_ns, peer, stream);
        }
        let sessions = self.sessions.iter();
        let streams = sessions.flat_map(|(&peer, s)| {
            s.streams_of(index)
                .into_iter()
                .map(move |stream| (peer, stream))
        });
        for (peer, stream) in streams.collect::<Vec<_>>() {
            self.end_inbound(now_ns, node, (peer, stream));
            let _gone = node.refuse_stream(now_ns, peer, stream);
        }
        self.names.remove(&name);
        self.blocked.remove(&index);
        self.note_presence(index);
    }

    /// Ends local subscribers that no channel is left for.
    fn end_locals(&mut self, now_ns: u64, node: &mut Node) {
        let has_any = |id| self.entries.iter().any(|e| e.local.contains(id));
        let ended = self.subscribers.keys().filter(|id| !has_any(id));
        for id in ended.copied().collect::<Vec<_>>() {
            let name = self.subscribers[&id].pattern.name().clone();
            if let Some(outlet) = self.unsubscribe(now_ns, node, id) {
                outlet.end(format!(
                    "no channel of {name} is left that this node's entity may subscribe to: it was removed or changed"
                ));
            }
        }
    }

    /// Subscriptions of peers, and those at peers, by what holds now.
    pub(crate) fn admit_peers(&mut self, now_ns: u64, node: &mut Node) {
        let mut asked = Vec::new();
        for (&peer, session) in &mut self.sessions {
            let unmet = std::mem::take(&mut session.unmet);
            let met = session
                .patterns
                .iter()
                .map(|(p, &request)| (p.clone(), request));
            asked.extend(
                met.chain(unmet)
                    .map(|(pattern, request)| (peer, pattern, request)),
            );
        }
        for (peer, pattern, request) in asked {
            let answer = self.grant(now_ns, peer, request, &pattern);
            match answer {
                Answer::Granted(_) => {
                    self.tell(now_ns, node, peer, &Message::Ack { request, answer });
                }
                // Another change may meet it.
                _ => self.note_unmet(peer, request, pattern),
            }
        }
        let patterns: Vec<Pattern> = self.wanted.keys().cloned().collect();
        for pattern in patterns {
            for peer in self.publishers_of(&self.allowed(now_ns, &pattern)) {
                // Every one of them is configured.
                let _known = node.connect(now_ns, peer);
                self.ask(now_ns, node, peer, &pattern);
            }
        }
    }

    /// Remembers what a peer may be granted once channels change.
    pub(crate) fn note_unmet(&mut self, peer: NodeId, request: u32, pattern: Pattern) {
        if let Some(session) = self.sessions.get_mut(&peer)
            && session.unmet.len() < PATTERNS_PER_PEER_MAX
        {
            session.unmet.insert(pattern, request);
        }
    }
}
