//! Tokens: what this node's entity holds, what peers have shown, what issuers have taken back; and what
//! becomes of rosters and streams when a right ends.
//!
//! Where a channel asks for tokens or capabilities, its `publish` and `subscribe` lists say who may at
//! most, and what is shown says who may now. Each node asks for itself: a publisher at the subscription, a subscriber at the
//! publisher's stream, and all of them again each second and with each revocation.

use super::{
    delivery::Outlet,
    entry::{Entry, Index},
    message::{Answer, Message, Pattern},
    reason::Reason,
    report::PublishError,
    service::{ChannelService, Session},
};
use crate::{
    admissions::{Piece, Publication},
    capability::Statements,
    config::PeerSubnet,
    membership::{Memberships, Trust, Unvouched},
    notices::Notices,
    rights::{
        Authentic, Chain, Evidence, List, Operation, Refusal, Revocations, identity::Retired,
        revocation::Learned,
    },
};
use std::collections::BTreeMap;
use virga_ebpf::header::{NodeId, StreamId};
use virga_transport::{ChannelName, Node};

/// Tokens that one peer has in a session, worthless ones included: each costs signatures to verify.
/// One that has expired makes room.
pub const TOKENS_PER_PEER_MAX: usize = 64;
/// Rights are looked at again this often: tokens expire.
pub const LOOK_AGAIN_NS: u64 = 1_000_000_000;

/// Revocation lists that wait for a channel that names their issuer.
const EARLY_LISTS_MAX: usize = 1_024;

/// What the service knows of rights.
#[derive(Debug, Default)]
pub(crate) struct Rights {
    /// Tokens of this node's entity.
    own: Vec<Authentic>,
    /// What issuers say of it, and it of itself.
    pub(crate) own_statements: Statements,
    /// Where issuers say that its node is.
    pub(crate) own_memberships: Memberships,
    /// Who vouches for subnets; where there is nobody, nobody is asked.
    pub(crate) subnet_issuers: Vec<[u8; 32]>,
    pub(crate) revocations: Revocations,
    /// Each issuer's newest list as it was signed, to be passed on.
    lists: BTreeMap<[u8; 32], Vec<u8>>,
    /// The newest list of each issuer that no channel names yet: one may be declared.
    early: BTreeMap<[u8; 32], (u64, Vec<u8>)>,
    /// Unix time at the worker's time 0.
    unix_zero_ns: u64,
}

/// What a peer has shown in this session.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) tokens: Vec<Authentic>,
    /// What issuers say of it, and it of itself.
    pub(crate) statements: Statements,
    /// Where issuers say that its node is.
    pub(crate) memberships: Memberships,
    /// How many tokens were worthless.
    faults: usize,
    /// A stream of it was refused for want of a token.
    pub(crate) is_refused: bool,
}

impl Rights {
    pub(crate) fn new(own: Vec<Authentic>, own_statements: Statements, unix_zero_ns: u64) -> Self {
        Self {
            own,
            own_statements,
            unix_zero_ns,
            ..Self::default()
        }
    }

    /// Replaces what is known of keys whose place others have taken.
    pub(crate) fn set_retired(&mut self, retired: Retired) {
        self.revocations.set_retired(retired);
    }

    /// Whether a token's holder is this entity, by the key that it has now.
    fn is_of(&self, token: &Authentic, entity: &[u8; 32]) -> bool {
        self.revocations.current(token.holder()) == entity
    }

    fn note_early(&mut self, issuer: [u8; 32], version: u64, signed: &[u8]) {
        let is_full = self.early.len() >= EARLY_LISTS_MAX;
        match self.early.get_mut(&issuer) {
            Some(held) if held.0 >= version => {}
            Some(held) => *held = (version, signed.to_vec()),
            None if is_full => {}
            None => {
                self.early.insert(issuer, (version, signed.to_vec()));
            }
        }
    }

    pub(crate) const fn now_s(&self, now_ns: u64) -> u64 {
        (self.unix_zero_ns + now_ns) / 1_000_000_000
    }

    /// Whether a channel lets an entity do something, by what it has shown.
    fn allow(
        &self,
        now_ns: u64,
        entry: &Entry,
        evidence: Evidence<'_>,
        operation: Operation,
    ) -> Result<(), Refusal> {
        let now_s = self.now_s(now_ns);
        let allowed = entry
            .policy
            .allows(evidence, operation, now_s, &self.revocations);
        allowed.map(|_until_s| ())
    }

    /// What this node's entity has to show.
    pub(crate) fn own_evidence<'a>(&'a self, entity: &'a [u8; 32]) -> Evidence<'a> {
        Evidence {
            holder: entity,
            tokens: &self.own,
            statements: &self.own_statements,
        }
    }

    /// The same for a peer; whether the channel's list names it is asked elsewhere.
    pub(crate) fn peer_may(
        &self,
        now_ns: u64,
        entry: &Entry,
        session: &Session,
        operation: Operation,
    ) -> Result<(), Refusal> {
        self.vouch(now_ns, session).map_err(Refusal::Membership)?;
        self.allow(now_ns, entry, session.evidence(), operation)
    }

    /// By what memberships of subnets are judged now.
    pub(crate) fn trust(&self, now_ns: u64) -> Trust<'_> {
        Trust {
            issuers: &self.subnet_issuers,
            now_s: self.now_s(now_ns),
            revocations: &self.revocations,
        }
    }

    /// Whether a peer is in the subnet that it is configured in.
    pub(crate) fn vouch(&self, now_ns: u64, session: &Session) -> Result<(), Unvouched> {
        // What it may carry is asked where packets of others come in.
        let asked = PeerSubnet {
            subnet: session.subnet,
            mask: u32::MAX,
        };
        let shown = &session.shown.memberships;
        shown.vouch(&session.entity, asked, &self.trust(now_ns))
    }

    /// Whether something that a channel asks for may end.
    pub(crate) fn asks(&self, entry: &Entry) -> bool {
        entry.policy.asks() || !self.subnet_issuers.is_empty()
    }

    /// The same for this node's entity.
    pub(crate) fn own_may(
        &self,
        now_ns: u64,
        entry: &Entry,
        entity: &[u8; 32],
        operation: Operation,
    ) -> Result<(), Refusal> {
        self.allow(now_ns, entry, self.own_evidence(entity), operation)
    }
}

impl Session {
    /// What the peer has shown.
    pub(crate) fn evidence(&self) -> Evidence<'_> {
        Evidence {
            holder: &self.entity,
            tokens: &self.shown.tokens,
            statements: &self.shown.statements,
        }
    }
}

/// What became of a revocation list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is the newest of this issuer, in this version, and counts from now on.
    New([u8; 32], u64),
    /// It counts already.
    Known,
    /// It was refused, and counted.
    No,
}

impl<O: Outlet> ChannelService<O> {
    /// Tells `notices` of revocation lists that peers sent.
    #[must_use]
    pub fn noting(mut self, notices: &Notices) -> Self {
        self.notices = notices.clone();
        self
    }

    /// Whether this node may publish on a channel now, and which one that is.
    pub(crate) fn may_publish(
        &self,
        now_ns: u64,
        name: &ChannelName,
    ) -> Result<Index, PublishError> {
        if self.is_stopping {
            return Err(PublishError::Stopping);
        }
        if let Some(why) = self.absence() {
            return Err(PublishError::Absent(why.to_owned()));
        }
        let index = self.names.get(name);
        let index = *index.ok_or_else(|| PublishError::UnknownChannel(name.clone()))?;
        let entry = &self.entries[index];
        if !entry.publishers.contains(&self.entity) {
            return Err(PublishError::NotAuthorised(name.clone()));
        }
        let rights = &self.rights;
        let right = rights.own_may(now_ns, entry, &self.entity, Operation::Publish);
        match right {
            Ok(_) => Ok(index),
            Err(refusal) => Err(PublishError::Token(name.clone(), refusal)),
        }
    }

    /// Sets the clock that tokens are judged by: Unix time at the worker's time 0.
    pub fn set_clock(&mut self, unix_zero_ns: u64) {
        self.rights.unix_zero_ns = unix_zero_ns;
    }

    /// Holds one more token for this node's entity, and shows it to all peers.
    ///
    /// # Errors
    /// [`Refusal::Holder`]: it belongs to somebody else.
    pub fn take_token(
        &mut self,
        now_ns: u64,
        node: &mut Node,
        token: &Authentic,
    ) -> Result<(), Refusal> {
        if !self.rights.is_of(token, &self.entity) {
            return Err(Refusal::Holder(*token.holder()));
        }
        let now_s = self.rights.now_s(now_ns);
        self.rights
            .own
            .retain(|own| own.not_after_s() > now_s && own != token);
        self.rights.own.push(token.clone());
        self.admit_locals(now_ns);
        let peers: Vec<NodeId> = self.sessions.keys().copied().collect();
        for peer in peers {
            let chain = token.chain().encode();
            self.tell(now_ns, node, peer, &Message::Token(chain));
            // Also for channels that a subscription to many did not get before.
            self.ask_all(now_ns, node, peer);
        }
        self.look_at_rights(now_ns);
        Ok(())
    }

    /// Shows a new session all tokens, statements and revocation lists.
    pub(crate) fn show_rights(&mut self, now_ns: u64, node: &mut Node, peer: NodeId) {
        let lists = self
            .rights
            .lists
            .values()
            .cloned()
            .map(Message::Revocations);
        let own = self.rights.own.iter();
        let tokens = own.map(|token| Message::Token(token.chain().encode()));
        let statements = self.rights.own_statements.iter();
        let statements = statements.map(|one| Message::Statement(one.as_bytes().to_vec()));
        let memberships = self.rights.own_memberships.iter();
        let memberships = memberships.map(|one| Message::Membership(one.as_bytes().to_vec()));
        // Before all that is asked of the peer: without it, it would refuse.
        let shown = lists.chain(memberships).chain(tokens).chain(statements);
        let messages: Vec<Message> = shown.collect();
        for message in messages {
            self.tell(now_ns, node, peer, &message);
        }
    }

    /// Takes in what a peer shows.
    pub(crate) fn on_token(&mut self, now_ns: u64, node: &mut Node, peer: NodeId, chain: &[u8]) {
        let Some(session) = self.sessions.get_mut(&peer) else {
            return;
        };
        let entity = session.entity;
        let shown = &mut session.shown;
        let now_s = self.rights.now_s(now_ns);
        shown.tokens.retain(|token| token.not_after_s() > now_s);
        if shown.tokens.len() + shown.faults >= TOKENS_PER_PEER_MAX {
            return self.reasons.add(Reason::TokensFull);
        }
        let Ok(chain) = Chain::parse(chain) else {
            shown.faults += 1;
            return self.reasons.add(Reason::TokenMalformed);
        };
        if shown.tokens.iter().any(|token| *token.chain() == chain) {
            return;
        }
        if !self.costs.entry(peer).or_default().looks.take(now_ns) {
            return self.reasons.add(Reason::TokensFull);
        }
        match chain.authenticate() {
            Ok(token) if self.rights.is_of(&token, &entity) => {
                let evidence = Publication::Evidence(Piece::Token(token.chain().encode()));
                shown.tokens.push(token);
                let is_refused = std::mem::take(&mut shown.is_refused);
                self.hear(peer, evidence);
                self.look_at_rights(now_ns);
                if is_refused {
                    // What it could not send before it may send now, if it is asked to.
                    self.ask_all(now_ns, node, peer);
                }
            }
            Ok(_) => {
                shown.faults += 1;
                self.reasons.add(Reason::TokenHolder);
            }
            Err(refusal) => {
                shown.faults += 1;
                self.reasons.add(refusal.fault().into());
            }
        }
    }

    /// Takes in a revocation list from anyone: its issuer signed it. What it ends has ended when this
    /// returns, and all peers are told.
    pub fn on_revocations(&mut self, now_ns: u64, node: &mut Node, signed: &[u8]) -> Taken {
        if self.rights.lists.values().any(|known| known == signed) {
            return Taken::Known;
        }
        let Ok(list) = List::parse(signed) else {
            self.reasons.add(Reason::RevocationsMalformed);
            return Taken::No;
        };
        let issuer = *list.issuer();
        let is_trusted = self.entries.iter().any(|e| e.policy.trusts(&issuer));
        let version = list.version();
        if !is_trusted && !self.rights.subnet_issuers.contains(&issuer) {
            self.rights.note_early(issuer, version, signed);
            self.reasons.add(Reason::RevocationsIssuer);
            return Taken::No;
        }
        match self.rights.revocations.learn(list) {
            Learned::New => {}
            Learned::Known => return Taken::Known,
            Learned::Old => {
                self.reasons.add(Reason::RevocationsOld);
                return Taken::No;
            }
            Learned::Conflict => {
                self.reasons.add(Reason::RevocationsConflict);
                return Taken::No;
            }
        }
        self.rights.lists.insert(issuer, signed.to_vec());
        let peers: Vec<NodeId> = self.sessions.keys().copied().collect();
        for peer in peers {
            let message = Message::Revocations(signed.to_vec());
            self.tell(now_ns, node, peer, &message);
        }
        self.review(now_ns, node);
        Taken::New(issuer, version)
    }

    /// Takes in the lists that came before the channel, or the key, that makes their issuers count.
    pub(crate) fn take_early(&mut self, now_ns: u64, node: &mut Node) {
        for (_, signed) in std::mem::take(&mut self.rights.early).into_values() {
            // What still does not count waits on.
            if let Taken::New(issuer, version) = self.on_revocations(now_ns, node, &signed) {
                self.notices.tell(issuer, version, signed);
            }
        }
    }

    /// Has rights looked at again in a while.
    pub(crate) fn look_at_rights(&mut self, now_ns: u64) {
        self.look_at_rights_ns.get_or_insert(now_ns + LOOK_AGAIN_NS);
    }

    /// Takes everybody's place away whose right has ended.
    pub(crate) fn review(&mut self, now_ns: u64, node: &mut Node) {
        self.look_at_rights_ns = None;
        for index in 0..self.entries.len() {
            if !self.rights.asks(&self.entries[index]) {
                continue;
            }
            self.look_at_rights(now_ns);
            self.review_rosters(now_ns, node, index);
            self.review_streams(now_ns, node, index);
            self.review_own(now_ns, node, index);
            self.review_own_publishing(now_ns, node, index);
        }
        self.review_refused(now_ns, node);
        self.join_peers(now_ns, node);
        self.join_own(now_ns, node);
        self.pump_blocked(now_ns, node);
    }

    /// Asks publishers again that were refused and have a right now: it has begun, or the clock was
    /// set right.
    fn review_refused(&mut self, now_ns: u64, node: &mut Node) {
        let may_publish = |session: &Session| {
            let mut strict = self.entries.iter().filter(|e| self.rights.asks(e));
            strict.any(|entry| {
                let rights = &self.rights;
                let right = rights.peer_may(now_ns, entry, session, Operation::Publish);
                entry.publishers.contains(&session.entity) && right.is_ok()
            })
        };
        let sessions = self.sessions.iter();
        let again = sessions.filter(|(_, s)| s.shown.is_refused && may_publish(s));
        for peer in again.map(|(&peer, _)| peer).collect::<Vec<_>>() {
            if let Some(session) = self.sessions.get_mut(&peer) {
                session.shown.is_refused = false;
            }
            self.ask_all(now_ns, node, peer);
        }
    }

    fn review_rosters(&mut self, now_ns: u64, node: &mut Node, index: Index) {
        let entry = &self.entries[index];
        let mut ended = Vec::new();
        for &peer in entry.roster.keys() {
            let session = self.sessions.get(&peer);
            let right = session.map_or(Err(Refusal::Missing), |session| {
                self.rights
                    .peer_may(now_ns, entry, session, Operation::Subscribe)
            });
            if let Err(refusal) = right {
                ended.push((peer, refusal));
            }
        }
        for (peer, refusal) in ended {
            self.reasons.add(refusal.fault().into());
            let mut removed = self.entries[index].roster.remove(&peer);
            self.note_presence(index);
            if let Some(removed) = &mut removed {
                self.bar(now_ns, node, (index, peer), removed);
            }
            if let Some(stream) = removed.and_then(|remote| remote.stream) {
                // The session may have ended meanwhile, and the stream with it.
                let _gone = node.reset_stream(now_ns, peer, stream);
            }
            for (pattern, request) in self.void(peer) {
                let answer = Answer::refused(&refusal);
                if let Some(session) = self.sessions.get_mut(&peer) {
                    session.patterns.remove(&pattern);
                }
                self.tell(now_ns, node, peer, &Message::Ack { request, answer });
            }
        }
    }

    /// A peer's subscriptions that have no channel any more.
    fn void(&self, peer: NodeId) -> Vec<(Pattern, u32)> {
        let Some(session) = self.sessions.get(&peer) else {
            return Vec::new();
        };
        let is_void = |pattern: &Pattern| {
            let mut entries = self.entries.iter();
            !entries.any(|e| pattern.matches(e.name()) && e.roster.contains_key(&peer))
        };
        let patterns = session.patterns.iter();
        let void = patterns.filter(|(pattern, _)| is_void(pattern));
        void.map(|(pattern, &request)| (pattern.clone(), request))
            .collect()
    }

    fn review_streams(&mut self, now_ns: u64, node: &mut Node, index: Index) {
        let mut ended: Vec<(NodeId, StreamId, Refusal)> = Vec::new();
        let entry = &self.entries[index];
        for (&peer, session) in &self.sessions {
            let streams = session.streams_of(index);
            if streams.is_empty() {
                continue;
            }
            let right = self
                .rights
                .peer_may(now_ns, entry, session, Operation::Publish);
            if let Err(refusal) = right {
                ended.extend(streams.into_iter().map(|s| (peer, s, refusal.clone())));
            }
        }
        for (peer, stream, refusal) in ended {
            self.reasons.add(refusal.fault().into());
            self.end_inbound(now_ns, node, (peer, stream));
            if let Some(session) = self.sessions.get_mut(&peer) {
                session.shown.is_refused = true;
            }
            // The session may have ended meanwhile, and the stream with it.
            let _gone = node.refuse_stream(now_ns, peer, stream);
        }
    }

    /// Local subscribers of a channel that this node's entity has no right to any more.
    fn review_own(&mut self, now_ns: u64, node: &mut Node, index: Index) {
        let entry = &self.entries[index];
        let right = self
            .rights
            .own_may(now_ns, entry, &self.entity, Operation::Subscribe);
        let Err(refusal) = right else { return };
        let channel = entry.name().clone();
        for id in std::mem::take(&mut self.entries[index].local) {
            self.reasons.add(refusal.fault().into());
            if self.entries.iter().any(|e| e.local.contains(&id)) {
                continue;
            }
            if let Some(outlet) = self.unsubscribe(now_ns, node, id) {
                outlet.end(format!(
                    "this node's entity may not subscribe to {channel} any more: {refusal}"
                ));
            }
        }
        self.note_presence(index);
        self.release(now_ns, node, index);
    }

    /// What waits to be published on a channel that this node's entity has no right to any more, and what
    /// is on its way to subscribers.
    fn review_own_publishing(&mut self, now_ns: u64, node: &mut Node, index: Index) {
        let entry = &self.entries[index];
        let streams = entry.roster.values().filter_map(|remote| remote.stream);
        if entry.waiting.is_empty() && streams.count() == 0 {
            return;
        }
        let rights = &self.rights;
        let right = rights.own_may(now_ns, entry, &self.entity, Operation::Publish);
        if let Err(refusal) = right {
            self.reasons.add(refusal.fault().into());
            self.fail_channel(now_ns, node, index, &refusal);
        }
    }
}
