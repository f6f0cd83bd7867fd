//! Entities that move or have another key: what becomes of sessions, rosters and streams.
//!
//! Where an entity is, the control plane decides ([`crate::identity`]) and tells each worker. Whoever still
//! claims an entity where it is no more gets what the entity has signed about that, and nothing else.

use super::{
    delivery::Outlet, message::Message, reason::Reason, service::ChannelService, subnets::Subnets,
};
use crate::{
    config::{ChannelConfig, Config},
    identity::{Book, Present},
    membership::Shown,
    notices,
    replicas::Replicas,
    rights::{Catalogue, identity::Retired},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use virga_ebpf::header::NodeId;
use virga_transport::{Node, PeerConfig, limits::PEERS_MAX};

/// How long whoever is at the wrong place has to take in why its session ends.
const FAREWELL_NS: u64 = 1_000_000_000;
/// A peer is shown everything again at most so often.
const SHOW_AGAIN_NS: u64 = 500_000_000;

/// Who is where, as the control plane tells all workers.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Where entities are, as sessions know them.
    homes: Vec<PeerConfig>,
    /// Sessions that may be had; those that are only to be told where an entity is now come last.
    nodes: Vec<PeerConfig>,
    /// Where entities are.
    peers: BTreeMap<NodeId, Vec<[u8; 32]>>,
    /// Next to this node, with an entity: they forward to whoever has moved, and are told of it also where
    /// nothing else is wanted of them.
    neighbours: BTreeSet<NodeId>,
    /// Those of them that were reached through NATs.
    punched: BTreeSet<NodeId>,
    /// Those of them that there is always a session with: link tags or routes are agreed on with them.
    kept_up: BTreeSet<NodeId>,
    subnets: Subnets,
    channels: Vec<ChannelConfig>,
    retired: Retired,
    /// Why this node speaks for nobody.
    absence: Option<String>,
    /// What entities have signed, to be passed on.
    claims: Vec<Vec<u8>>,
    /// Channels that authorities have declared, to be passed on.
    pub(crate) declarations: BTreeSet<Vec<u8>>,
    /// There are authorities, of whose declarations neighbours tell.
    pub(crate) heeds: bool,
}

impl Directory {
    /// What a node's workers have to know. Sessions with those that were elsewhere `before` end in peace.
    #[must_use]
    pub fn of(present: &Present, (book, catalogue): (&Book, &Catalogue), before: &Self) -> Self {
        let config = &present.config;
        let homes = nodes(config, &[]);
        let mut nodes = nodes(config, &present.former);
        for home in &before.homes {
            if !nodes.contains(home) {
                nodes.push(*home);
            }
        }
        nodes.truncate(PEERS_MAX);
        Self {
            homes,
            nodes,
            peers: peers(config),
            neighbours: neighbours(config),
            punched: config.punched.keys().copied().collect(),
            kept_up: kept_up(config),
            subnets: Subnets::configured(config, &Shown::default()),
            channels: config.channels.clone(),
            retired: present.retired.clone(),
            absence: config.absence.clone(),
            claims: book
                .claims()
                .iter()
                .map(|c| c.as_bytes().to_vec())
                .collect(),
            declarations: catalogue
                .kept()
                .values()
                .map(|k| k.signed.clone())
                .collect(),
            heeds: !config.channel_authorities.is_empty(),
        }
    }
}

impl Directory {
    /// The same, as if these nodes had never been peers: their sessions end at once.
    #[must_use]
    pub fn without(&self, ended: &BTreeSet<NodeId>) -> Self {
        let mut directory = self.clone();
        directory
            .homes
            .retain(|home| !ended.contains(&home.node_key.id()));
        directory
    }

    /// Whether it says anything that the configuration does not.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        !self.claims.is_empty() || !self.declarations.is_empty() || self.heeds
    }
}

/// The entities at each peer; none at those that are not there any more.
pub(crate) fn peers(config: &Config) -> BTreeMap<NodeId, Vec<[u8; 32]>> {
    let peers = config.peers.iter().filter(|peer| !peer.entities.is_empty());
    peers.map(|peer| (peer.id, peer.entities.clone())).collect()
}

/// Peers next to this node that an entity lives at: with others there are no sessions.
pub(crate) fn neighbours(config: &Config) -> BTreeSet<NodeId> {
    let peers = config.peers.iter();
    let told = peers.filter(|peer| peer.is_adjacent() && !peer.entities.is_empty());
    told.map(|peer| peer.id).collect()
}

/// Those of them that link tags are to be agreed on with, and whoever logs on several nodes are shared with.
pub(crate) fn kept_up(config: &Config) -> BTreeSet<NodeId> {
    let neighbours = neighbours(config);
    let replicas = Replicas::kept_up(config);
    if config.discovery.is_some() {
        return peers(config).into_keys().collect();
    }
    if config.routing.is_enabled {
        return neighbours.into_iter().chain(replicas).collect();
    }
    let tagged = config.tagged();
    let tagged = tagged.filter(|id| neighbours.contains(id));
    tagged.chain(replicas).collect()
}

/// The sessions that a node may have.
pub(crate) fn nodes(config: &Config, former: &[(NodeId, [u8; 32])]) -> Vec<PeerConfig> {
    let mut nodes = Vec::new();
    for peer in &config.peers {
        let node_key = peer.node_key;
        let entities = peer.entities.iter();
        nodes.extend(entities.map(|&entity_key| PeerConfig {
            node_key,
            entity_key,
            handshake: Some(config.handshake_with(peer)),
        }));
    }
    for &(id, entity_key) in former {
        let peer = config.peers.iter().find(|peer| peer.id == id);
        nodes.extend(peer.map(|peer| PeerConfig {
            node_key: peer.node_key,
            entity_key,
            handshake: Some(config.handshake_with(peer)),
        }));
    }
    nodes.truncate(PEERS_MAX);
    nodes
}

impl<O: Outlet> ChannelService<O> {
    /// Follows entities to where they are now. Sessions with those that are elsewhere carry nothing more
    /// when this returns.
    pub fn follow(&mut self, now_ns: u64, node: &mut Node, directory: &Arc<Directory>) {
        let before = std::mem::replace(&mut self.directory, Arc::clone(directory));
        let has_news = self.pass_on(now_ns, node, &before);
        let channels = (&directory.channels[..], &directory.retired);
        let has_changed = self.set_channels(now_ns, node, channels);
        if has_changed {
            self.hear_again();
        }
        self.rights.set_retired(directory.retired.clone());
        let share = self.share;
        let peers = directory
            .peers
            .iter()
            .filter(|(peer, _)| share.owns(**peer));
        self.peers = peers.map(|(&peer, keys)| (peer, keys.clone())).collect();
        let neighbours = directory.neighbours.iter().copied();
        let neighbours = neighbours.filter(|&peer| share.owns(peer)).collect();
        let beside = self.beside();
        let neighbours_before = std::mem::replace(&mut self.neighbours, neighbours);
        self.routes.punched.clone_from(&directory.punched);
        self.neighbours_followed(now_ns, node, (&neighbours_before, &beside));
        let kept_up = directory.kept_up.iter().copied();
        let is_here = directory.absence.is_none();
        self.costs.retain(|peer, _| self.peers.contains_key(peer));
        self.kept_up = kept_up
            .filter(|&peer| is_here && share.owns(peer))
            .collect();
        self.subnets.follow(&directory.subnets);
        self.rights
            .subnet_issuers
            .clone_from(&directory.subnets.issuers);
        self.take_early(now_ns, node);
        self.forget_absent_publishers();
        // Where the list contradicts itself the node has its sessions as before; what they may carry is
        // judged here.
        let set = node.set_peers(now_ns, &directory.nodes);
        debug_assert_eq!(set, Ok(()));
        self.watch_links(now_ns, node);
        if directory.absence.is_some() {
            for &peer in self.peers.keys() {
                node.give_up(peer);
            }
        }
        if has_news {
            for &peer in &self.neighbours {
                // Every one of them was just set.
                let _known = node.connect(now_ns, peer);
            }
        }
        let sessions = self.sessions.iter();
        let elsewhere = sessions.filter(|(peer, session)| !self.lives_at(**peer, &session.entity));
        for peer in elsewhere.map(|(&peer, _)| peer).collect::<Vec<_>>() {
            self.reasons.add(Reason::EntityMoved);
            self.dismiss(now_ns, node, peer);
        }
        match &directory.absence {
            Some(why) => self.fall_silent(now_ns, node, why),
            None => {
                if has_changed {
                    self.admit_peers(now_ns, node);
                }
                self.ask_newcomers(now_ns, node);
                self.greet(now_ns, node);
                self.connect_kept_up(now_ns, node);
            }
        }
        self.review(now_ns, node);
    }

    /// Ends the sessions with these peers, and forgets what was found of their links; [`Self::follow`] says with whom
    /// another one begins.
    pub fn leave(&mut self, now_ns: u64, node: &mut Node, peers: &BTreeSet<NodeId>) {
        let share = self.share;
        for &peer in peers.iter().filter(|peer| share.owns(**peer)) {
            self.on_closed(now_ns, node, peer);
            node.close(now_ns, peer);
            self.costs.remove(&peer);
            for wanted in self.wanted.values_mut() {
                wanted.asked.remove(&peer);
            }
        }
    }

    /// Whether an entity is believed at a peer; nobody is while this node speaks for no entity itself.
    pub(crate) fn lives_at(&self, peer: NodeId, entity: &[u8; 32]) -> bool {
        let entities = self.peers.get(&peer);
        self.directory.absence.is_none() && entities.is_some_and(|keys| keys.contains(entity))
    }

    /// Why this node speaks for no entity.
    pub(crate) fn absence(&self) -> Option<&str> {
        self.directory.absence.as_deref()
    }

    /// Tells all peers what is new; whether there is something.
    fn pass_on(&mut self, now_ns: u64, node: &mut Node, before: &Directory) -> bool {
        let directory = Arc::clone(&self.directory);
        let claims = directory.claims.iter();
        let claims = claims.filter(|claim| !before.claims.contains(claim));
        let claims = claims.cloned().map(Message::Identity);
        let declarations = directory.declarations.difference(&before.declarations);
        let declarations = declarations.cloned().map(Message::Channel);
        let peers: Vec<NodeId> = self.sessions.keys().copied().collect();
        let mut has_news = false;
        for message in claims.chain(declarations) {
            has_news = true;
            for &peer in &peers {
                self.tell(now_ns, node, peer, &message);
            }
        }
        has_news
    }

    /// Shows a new session all that is known.
    pub(crate) fn show_identities(&mut self, now_ns: u64, node: &mut Node, peer: NodeId) {
        let directory = Arc::clone(&self.directory);
        for claim in &directory.claims {
            self.tell(now_ns, node, peer, &Message::Identity(claim.clone()));
        }
        for declaration in &directory.declarations {
            let message = Message::Channel(declaration.clone());
            self.tell(now_ns, node, peer, &message);
        }
    }

    /// A peer had no room for all that it was shown.
    pub(crate) fn on_again(&mut self, now_ns: u64, node: &mut Node, peer: NodeId) {
        let Some(session) = self.sessions.get_mut(&peer) else {
            return;
        };
        if now_ns >= session.shown_again_ns + SHOW_AGAIN_NS {
            session.shown_again_ns = now_ns;
            self.show_identities(now_ns, node, peer);
        }
    }

    /// Has all peers show again what they know.
    pub fn ask_all_to_show(&mut self, now_ns: u64, node: &mut Node) {
        let peers: Vec<NodeId> = self.sessions.keys().copied().collect();
        self.ask_to_show(now_ns, node, &peers);
    }

    /// Has peers show again what found no room.
    pub fn ask_to_show(&mut self, now_ns: u64, node: &mut Node, peers: &[NodeId]) {
        for &peer in peers {
            if self.sessions.contains_key(&peer) {
                self.tell(now_ns, node, peer, &Message::Again);
            }
        }
    }

    /// Ends a session of somebody who is elsewhere: it is told why, and nothing else goes either way.
    pub(crate) fn dismiss(&mut self, now_ns: u64, node: &mut Node, peer: NodeId) {
        for entry in &self.entries {
            let remote = entry.roster.get(&peer);
            if let Some(stream) = remote.and_then(|remote| remote.stream) {
                // What was queued for it is not for it any more.
                let _gone = node.reset_stream(now_ns, peer, stream);
            }
        }
        self.on_closed(now_ns, node, peer);
        self.part(now_ns, node, peer);
    }

    /// A session that is to carry nothing: its peer is told why.
    pub(crate) fn turn_away(&mut self, now_ns: u64, node: &mut Node, peer: NodeId) {
        self.reasons.add(Reason::EntityMoved);
        for claim in &self.directory.claims {
            let message = Message::Identity(claim.clone()).encode();
            if node.send_control(now_ns, peer, &message).is_err() {
                break;
            }
        }
        self.part(now_ns, node, peer);
    }

    /// Has a session end in a moment, and no other one begin unless something is wanted of the peer.
    fn part(&self, now_ns: u64, node: &mut Node, peer: NodeId) {
        if !self.needs(peer) {
            node.give_up(peer);
        }
        // Where there is none any more, it ended by itself.
        let _ended = node.drain(now_ns, peer, now_ns + FAREWELL_NS);
    }

    /// This node's entity is elsewhere: local programs are told.
    fn fall_silent(&mut self, now_ns: u64, node: &mut Node, why: &str) {
        self.fail_absent(why);
        for id in self.subscribers.keys().copied().collect::<Vec<_>>() {
            if let Some(outlet) = self.unsubscribe(now_ns, node, id) {
                outlet.end(why.to_owned());
            }
        }
    }

    /// Asks those who publish now what local subscribers want, and were not asked before.
    fn ask_newcomers(&mut self, now_ns: u64, node: &mut Node) {
        let asked = |peer: &NodeId| self.wanted.values().any(|w| w.asked.contains_key(peer));
        let peers = self.peers.keys().filter(|peer| !asked(peer));
        for peer in peers.copied().collect::<Vec<_>>() {
            self.ask_all(now_ns, node, peer);
            if self.needs(peer) {
                // Every one of them was just set.
                let _known = node.connect(now_ns, peer);
            }
        }
    }

    fn forget_absent_publishers(&mut self) {
        let peers = &self.peers;
        for wanted in self.wanted.values_mut() {
            wanted.asked.retain(|peer, _| peers.contains_key(peer));
        }
    }

    /// A peer's object: the control plane looks at it, unless it is known here.
    pub(crate) fn on_identity(&mut self, peer: NodeId, signed: Vec<u8>) {
        let is_known = self.directory.claims.contains(&signed);
        if !is_known
            && !self
                .notices
                .tell_shown(peer, notices::Shown::Identity(signed))
        {
            self.reasons.add(Reason::IdentityFull);
        }
    }

    /// Counts what became of so many objects of peers.
    pub fn count(&mut self, reason: Reason, count: u64) {
        self.reasons.add_many(reason, count);
    }
}
