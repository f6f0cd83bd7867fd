//! The service on the worker's thread: events of the node in, control messages and deliveries out.

use super::{
    command::Command,
    costs::Costs,
    delivery::{Outlet, SubscriberId},
    entry::{Entry, Index},
    follow::Directory,
    inbound::Inbound,
    loss::Losses,
    message::{Answer, Message, Pattern},
    presence::Presence,
    reason::{Reason, Reasons},
    rights::{Rights, Shown, Taken},
    routing::Routes,
    setup::Setup,
    subnets::Subnets,
    subscribe::{Local, Wanted},
    trace::Traces,
    tree::{Brings, Trees},
};
use crate::{
    admissions::Inbox, links::Links, moves::Moves, notices::Notices, reading::Reading, replicas,
    tags::Heard,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    num::NonZeroU64,
    sync::Arc,
};
use virga_ebpf::header::{NodeId, StreamId, Subnet};
use virga_transport::{ChannelName, Event, Node, Share, worker::Service};

/// Subscriptions that one peer may have here.
pub const PATTERNS_PER_PEER_MAX: usize = 4_096;
/// Control messages that wait for room towards one peer.
pub const OUTBOX_MAX: usize = 8_192;

const _: () = assert!(PATTERNS_PER_PEER_MAX <= OUTBOX_MAX);

/// How long subscribers have to connect by themselves before a node that has started does: sessions
/// begun from both ends at once would replace each other.
const GREET_AFTER_NS: u64 = 1_000_000_000;

/// A proven session.
pub(crate) struct Session {
    pub(crate) entity: [u8; 32],
    /// What it subscribed to here, and by which request.
    pub(crate) patterns: BTreeMap<Pattern, u32>,
    /// Where its node is configured.
    pub(crate) subnet: Subnet,
    /// What it asked for and could not have: what comes later may change that.
    pub(crate) unmet: BTreeMap<Pattern, u32>,
    pub(crate) shown: Shown,
    /// When it was shown everything a second time.
    pub(crate) shown_again_ns: u64,
    /// Channels whose stream it refused; asking again makes up for that.
    pub(crate) declined: BTreeSet<Index>,
    /// Streams that it opened and that were let in.
    pub(crate) inbound: BTreeMap<StreamId, Inbound>,
    /// What it was asked to bring of others.
    pub(crate) brings: Brings,
    /// Counts this worker's sessions.
    pub(crate) number: u64,
    /// Control messages that found no room.
    pub(crate) outbox: VecDeque<Vec<u8>>,
}

/// Channels on one node: see the [module](super).
pub struct ChannelService<O> {
    pub(crate) entity: [u8; 32],
    /// This worker's peers, and the entities that live there.
    pub(crate) peers: BTreeMap<NodeId, Vec<[u8; 32]>>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) names: BTreeMap<ChannelName, Index>,
    pub(crate) sessions: BTreeMap<NodeId, Session>,
    pub(crate) subscribers: BTreeMap<SubscriberId, Local<O>>,
    pub(crate) wanted: BTreeMap<Pattern, Wanted>,
    /// Channels whose publishers wait for room.
    pub(crate) blocked: BTreeSet<Index>,
    pub(crate) reasons: Reasons,
    pub(crate) share: Share,
    presence: Arc<Presence>,
    pub(crate) last_request: u32,
    /// Counts batches that are tallied.
    pub(crate) last_tallied: NonZeroU64,
    pub(crate) ask_again_ns: Option<u64>,
    /// While a local subscriber is slow.
    pub(crate) look_at_slow_ns: Option<u64>,
    greet_ns: Option<u64>,
    pub(crate) rights: Rights,
    /// While tokens may expire.
    pub(crate) look_at_rights_ns: Option<u64>,
    /// Revocation lists that were known before it started.
    known_revocations: Vec<Vec<u8>>,
    pub(crate) inbox: Inbox,
    pub(crate) neighbours: BTreeSet<NodeId>,
    /// Who is where.
    pub(crate) directory: Arc<Directory>,
    /// What was known of that before it started.
    known_directory: Option<Arc<Directory>>,
    pub(crate) notices: Notices,
    pub(crate) moves: Moves,
    pub(crate) links: Links,
    pub(crate) subnets: Subnets,
    /// Neighbours that there is always a session with.
    pub(crate) kept_up: BTreeSet<NodeId>,
    pub(crate) heard: Heard,
    pub(crate) routes: Routes,
    pub(crate) traces: Traces,
    pub(crate) losses: Losses,
    pub(crate) replicas: replicas::Replicas,
    pub(crate) reading: Reading,
    /// Peers whose logs are read here, and how often.
    pub(crate) reached: BTreeMap<NodeId, usize>,
    /// What each peer may still cost, also over sessions.
    pub(crate) costs: BTreeMap<NodeId, Costs>,
    pub(crate) trees: Trees,
    /// Nothing more is published.
    pub(crate) is_stopping: bool,
}

impl<O: Outlet> ChannelService<O> {
    /// Begins with what is known of entities that have moved, or have another key.
    #[must_use]
    pub fn following(mut self, directory: &Arc<Directory>) -> Self {
        self.known_directory = directory.is_changed().then(|| Arc::clone(directory));
        self
    }

    /// A service without any session or subscriber.
    #[must_use]
    pub fn new(setup: &Setup) -> Self {
        let entries: Vec<Entry> = setup.channels.iter().map(Entry::new).collect();
        let names = entries.iter().enumerate();
        let mut peers: BTreeMap<NodeId, Vec<[u8; 32]>> = BTreeMap::new();
        for &(peer, entity) in &setup.peers {
            peers.entry(peer).or_default().push(entity);
        }
        Self {
            entity: setup.entity,
            peers,
            names: names.map(|(index, e)| (e.name().clone(), index)).collect(),
            entries,
            sessions: BTreeMap::new(),
            subscribers: BTreeMap::new(),
            wanted: BTreeMap::new(),
            blocked: BTreeSet::new(),
            reasons: Reasons::default(),
            share: setup.share,
            presence: Arc::clone(&setup.presence),
            last_request: 0,
            last_tallied: NonZeroU64::MIN,
            ask_again_ns: None,
            look_at_slow_ns: None,
            moves: Moves::default(),
            links: Links::default(),
            greet_ns: None,
            rights: Rights::new(
                setup.tokens.clone(),
                setup.statements.clone(),
                setup.unix_zero_ns,
            ),
            look_at_rights_ns: None,
            known_revocations: setup.revocations.clone(),
            directory: Arc::default(),
            known_directory: None,
            notices: Notices::default(),
            subnets: Subnets::default(),
            inbox: Inbox::default(),
            neighbours: setup.neighbours.clone(),
            kept_up: setup.kept_up.clone(),
            heard: Heard::default(),
            routes: Routes::default(),
            traces: Traces::default(),
            losses: Losses::default(),
            replicas: replicas::Replicas::default(),
            reading: Reading::default(),
            reached: BTreeMap::new(),
            costs: BTreeMap::new(),
            trees: Trees::default(),
            is_stopping: false,
        }
    }

    /// Connects to the peers that may subscribe here: subscribers of a node that has restarted learn
    /// of it so. (Publishers are connected to when there is a local subscriber.)
    pub(crate) fn greet(&mut self, now_ns: u64, node: &mut Node) {
        let is_greeted = |key: &[u8; 32]| self.published().any(|e| e.subscribers.contains(key));
        let peers = self.peers.iter();
        for (&peer, _) in peers.filter(|(_, keys)| keys.iter().any(is_greeted)) {
            // Every one of them is configured.
            let _known = node.connect(now_ns, peer);
        }
        self.connect_told(now_ns, node, |_| true);
    }

    /// Channels that this node may publish on: none while its entity is elsewhere.
    fn published(&self) -> impl Iterator<Item = &Entry> {
        let (own, is_here) = (&self.entity, self.absence().is_none());
        let entries = self.entries.iter();
        entries.filter(move |e| is_here && e.publishers.contains(own))
    }

    /// Whether this node tries to have a session with a peer: something is wanted of it, or it may
    /// subscribe here.
    pub(crate) fn needs(&self, peer: NodeId) -> bool {
        let is_asked = self.wanted.values().any(|w| w.asked.contains_key(&peer))
            || self.reached.contains_key(&peer);
        let entities = self.peers.get(&peer);
        let is_greeted = |key: &[u8; 32]| self.published().any(|e| e.subscribers.contains(key));
        let is_neighbour = self.is_told(peer) || self.kept_up.contains(&peer);
        let is_greeted = entities.is_some_and(|keys| keys.iter().any(is_greeted));
        is_asked || is_greeted || is_neighbour
    }

    /// Tells publishers who has subscribed to a channel now.
    pub(crate) fn note_presence(&self, index: Index) {
        let entry = &self.entries[index];
        let worker = usize::from(self.share.worker());
        self.presence
            .note(worker, index, entry.roster.len(), entry.local.len());
    }

    /// Sends a control message, now or when there is room.
    pub(crate) fn tell(&mut self, now_ns: u64, node: &mut Node, peer: NodeId, message: &Message) {
        let Some(session) = self.sessions.get_mut(&peer) else {
            return;
        };
        if session.outbox.len() >= OUTBOX_MAX {
            self.reasons.add(Reason::ControlFull);
            return;
        }
        session.outbox.push_back(message.encode());
        session.flush(now_ns, node, peer);
    }

    /// Whether there is room for another.
    pub(crate) fn may_tell(&self, peer: NodeId) -> bool {
        let session = self.sessions.get(&peer);
        session.is_some_and(|session| session.outbox.len() < OUTBOX_MAX)
    }

    fn on_connected(&mut self, now_ns: u64, node: &mut Node, peer: NodeId, entity: [u8; 32]) {
        self.on_closed(now_ns, node, peer);
        if self.is_stopping {
            return;
        }
        if !self.lives_at(peer, &entity) {
            return self.turn_away(now_ns, node, peer);
        }
        let session = Session {
            entity,
            subnet: self.subnets.of(peer),
            patterns: BTreeMap::new(),
            unmet: BTreeMap::new(),
            shown: Shown::default(),
            shown_again_ns: 0,
            declined: BTreeSet::new(),
            inbound: BTreeMap::new(),
            brings: Brings::default(),
            number: self.routes.next_session(),
            outbox: VecDeque::new(),
        };
        self.sessions.insert(peer, session);
        self.routes_began(now_ns, node, peer);
        self.inbox.connected(peer);
        self.heard.session_began(peer);
        self.losses.session_began(peer);
        self.show_identities(now_ns, node, peer);
        self.show_rights(now_ns, node, peer);
        self.ask_all(now_ns, node, peer);
    }

    /// Reaps all that the session had.
    pub(crate) fn on_closed(&mut self, now_ns: u64, node: &mut Node, peer: NodeId) {
        let Some(ended) = self.sessions.remove(&peer) else {
            return;
        };
        self.inbox.closed(peer);
        self.replicas.closed(peer);
        self.reading.closed(peer);
        self.heard.session_ended(peer);
        self.routes_ended(peer);
        for index in 0..self.entries.len() {
            let entry = &mut self.entries[index];
            entry.holding.remove(&peer);
            if let Some(mut removed) = entry.roster.remove(&peer) {
                self.note_presence(index);
                self.bar(now_ns, node, (index, peer), &mut removed);
            }
        }
        self.forget_answers(peer);
        self.tree_closed(now_ns, node, peer, &ended);
        self.pump_blocked(now_ns, node);
    }

    fn on_control(&mut self, now_ns: u64, node: &mut Node, peer: NodeId, message: &[u8]) {
        let is_dismissed = !self.sessions.contains_key(&peer);
        match Message::parse(message) {
            // It may still know better where its entity is.
            Ok(Message::Identity(signed)) => self.on_identity(peer, signed),
            _ if is_dismissed => {}
            Err(_) => self.reasons.add(Reason::ControlMalformed),
            Ok(Message::Ack { request, answer }) => self.on_ack(peer, request, answer),
            Ok(Message::Subscribe { request, pattern }) => {
                self.on_subscribe(now_ns, node, peer, (request, pattern));
            }
            Ok(Message::Unsubscribe { request, pattern }) => {
                if let Some(session) = self.sessions.get_mut(&peer) {
                    session.unmet.remove(&pattern);
                }
                self.withdraw(now_ns, node, peer, &pattern);
                let answer = Answer::Granted(0);
                self.tell(now_ns, node, peer, &Message::Ack { request, answer });
                self.pump_blocked(now_ns, node);
            }
            Ok(Message::Hold(name)) => self.set_held(peer, &name, true),
            Ok(Message::Release(name)) => {
                self.set_held(peer, &name, false);
                self.pump_blocked(now_ns, node);
            }
            Ok(Message::Channel(signed)) => self.on_declaration(peer, signed),
            Ok(Message::Token(chain)) => self.on_token(now_ns, node, peer, &chain),
            Ok(Message::Statement(bytes)) => self.on_statement(now_ns, node, peer, &bytes),
            Ok(Message::Membership(bytes)) => self.on_membership(now_ns, node, peer, &bytes),
            Ok(Message::Publication(said)) => self.hear(peer, said),
            Ok(Message::Revocations(signed)) => {
                if let Taken::New(issuer, version) = self.on_revocations(now_ns, node, &signed) {
                    self.notices.tell(issuer, version, signed);
                }
            }
            Ok(Message::Again) => self.on_again(now_ns, node, peer),
            Ok(Message::LinkTags(said)) => self.heard.said(peer, said),
            Ok(Message::Routes(items)) => self.on_routes(now_ns, node, peer, items),
            Ok(Message::Discovery(said)) => self.on_discovery(peer, said),
            Ok(Message::Lost(ppm)) => self.on_lost(peer, ppm),
            Ok(Message::Nat(said)) => self.on_nat(now_ns, node, peer, said),
            Ok(Message::Trace(said)) => self.on_trace(now_ns, node, peer, said),
            Ok(Message::Replica(part)) => self.on_replica(now_ns, node, peer, part),
            Ok(Message::Tree(said)) => self.on_tree(now_ns, node, peer, said),
        }
    }

    fn set_held(&mut self, peer: NodeId, name: &ChannelName, held: bool) {
        let Some(&index) = self.names.get(name) else {
            return;
        };
        if let Some(remote) = self.entries[index].roster.get_mut(&peer) {
            remote.held = held;
        }
    }
}

impl<O: Outlet> Service for ChannelService<O> {
    type Command = Command<O>;

    fn start(&mut self, now_ns: u64, node: &mut Node) {
        self.greet_ns = Some(now_ns + GREET_AFTER_NS);
        if let Some(directory) = self.known_directory.take() {
            self.follow(now_ns, node, &directory);
        }
        // Of two neighbours that start together one begins at once.
        let own = node.id();
        self.connect_told(now_ns, node, |peer| own < peer);
        self.watch_links(now_ns, node);
        self.connect_kept_up(now_ns, node);
        for signed in std::mem::take(&mut self.known_revocations) {
            // An issuer that no channel names any more is counted.
            let _taken = self.on_revocations(now_ns, node, &signed);
        }
        // Also where nobody ever shows a token: this node's own expire.
        if self.entries.iter().any(|e| self.rights.asks(e)) {
            self.look_at_rights(now_ns);
        }
    }

    fn on_event(&mut self, now_ns: u64, node: &mut Node, event: Event) {
        match event {
            // The status says so for as long as it is true.
            Event::Refused { .. } => {}
            Event::Connected { peer, entity } => self.on_connected(now_ns, node, peer, entity),
            Event::Closed { peer, .. } => self.on_closed(now_ns, node, peer),
            Event::Control { peer, message } => self.on_control(now_ns, node, peer, &message),
            Event::StreamOpened {
                peer,
                stream,
                name,
                salt,
                mode,
            } => {
                self.on_stream(now_ns, node, (peer, stream), (&name, salt, mode));
            }
            Event::Message {
                peer,
                stream,
                event,
            } => {
                self.on_message(now_ns, node, (peer, stream), event);
            }
            Event::StreamFinished { peer, stream } | Event::StreamReset { peer, stream } => {
                self.end_inbound(now_ns, node, (peer, stream));
            }
            Event::Expired {
                peer,
                stream,
                messages,
            } => self.on_expired(peer, stream, messages),
            Event::Receipt {
                peer,
                receipt,
                fate,
                ..
            } => self.on_receipt(now_ns, node, peer, (receipt, fate)),
            Event::StreamRefused { peer, stream } => {
                self.on_refused(now_ns, node, peer, stream);
                self.pump_blocked(now_ns, node);
            }
            Event::Introduced { source, words } => self.on_introduced(source, words),
            Event::AddressChanged { peer, address } => self.moves.tell(peer, address),
            Event::Reached { peer, address } => self.on_reached(peer, address),
            Event::Link {
                peer,
                state,
                gap_ns,
            } => self.links.tell(peer, state, gap_ns),
            Event::Writable { peer } => {
                if let Some(session) = self.sessions.get_mut(&peer) {
                    session.flush(now_ns, node, peer);
                }
                self.pump_blocked(now_ns, node);
            }
        }
    }

    fn on_command(&mut self, now_ns: u64, node: &mut Node, command: Command<O>) {
        match command {
            Command::Publish { channel, batch } => self.publish(now_ns, node, &channel, batch),
            Command::Late(events) => self.count_late(&events),
            Command::Subscribe {
                id,
                pattern,
                outlet,
                done,
            } => {
                done(self.subscribe(now_ns, node, id, pattern, outlet));
            }
            Command::Replicate { peer, parts } => self.say_replica(now_ns, node, peer, parts),
            Command::Read(said) => self.say_reading(now_ns, node, said),
            Command::Reach(peer) => self.reach(now_ns, node, peer),
            Command::Leave(peer) => self.let_go(node, peer),
            Command::Hurry => self.pump_blocked(now_ns, node),
            Command::Drained(id) => self.drained(now_ns, node, id),
            Command::Unsubscribe(id) => {
                // Its queue's other end is gone already.
                drop(self.unsubscribe(now_ns, node, id));
                self.pump_blocked(now_ns, node);
            }
        }
    }

    fn poll_timeout(&self) -> Option<u64> {
        let timers = [
            self.ask_again_ns,
            self.greet_ns,
            self.look_at_slow_ns,
            self.look_at_rights_ns,
            self.losses.due_ns(),
            self.trees.due_ns(),
            self.next_deadline_ns(),
        ];
        timers.into_iter().flatten().min()
    }

    fn handle_timeout(&mut self, now_ns: u64, node: &mut Node) {
        if self.greet_ns.is_some_and(|due| due <= now_ns) {
            self.greet_ns = None;
            self.greet(now_ns, node);
        }
        if self.ask_again_ns.is_some_and(|due| due <= now_ns) {
            self.ask_again(now_ns, node);
        }
        if self.next_deadline_ns().is_some_and(|due| due <= now_ns) {
            self.expire_waiting(now_ns, node);
        }
        if self.look_at_rights_ns.is_some_and(|due| due <= now_ns) {
            self.review(now_ns, node);
        }
        if self.look_at_slow_ns.is_some_and(|due| due <= now_ns) {
            self.look_at_slow(now_ns, node);
        }
        if self.losses.due_ns().is_some_and(|due| due <= now_ns) {
            self.look_at_losses(now_ns, node);
        }
        if self.trees.due_ns().is_some_and(|due| due <= now_ns) {
            self.look_at_trees(now_ns, node);
        }
    }

    fn stop(&mut self, now_ns: u64, node: &mut Node) {
        self.is_stopping = true;
        self.fail_waiting();
        self.end_trees(now_ns, node);
    }
}
