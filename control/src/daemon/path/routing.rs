//! Routes: what neighbours say goes to the router, what it decides into the tables, and only then what it says
//! to the neighbours.

use super::Path;
use crate::{
    channel::{Lost, Measured},
    config::{Config, Reach},
    dispatch::{Dispatch, Service},
    routes::{Heard, Inbox, LinkStatus, RouteStatus, RoutesStatus},
};
use ed25519_dalek::{Signer as _, SigningKey};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use virga_ebpf::{
    header::NodeId,
    image::{Image, NextHopKey, Via},
    limits::ROUTES_MAX,
};
use virga_routing::{
    Authority, Destination, Doubt, LinkCost, Liveness, NextHops, Now, Reason, Router, Setup,
    Speaker, limits,
};
use virga_transport::{PeerKey, worker::Parts};

/// What comes within this time is followed in one go: each time, all tables may have to be compared.
const FOLLOW_EVERY: Duration = Duration::from_millis(10);
/// For how long at once it follows what comes: whoever says much keeps nobody from noticing a dead link.
const FOLLOW_FOR: Duration = Duration::from_millis(10);
/// How often round-trip times and losses are looked at.
const MEASURE_EVERY: Duration = Duration::from_secs(1);
/// How long neighbours may take to learn that this node has restarted. Once all of them have a session with
/// it, they know.
const QUIET: Duration = Duration::from_secs(3);
/// Round-trip time of a link that was not measured yet.
const RTT_NS: u64 = 1_000_000;

/// Whose word counts: the peers' of the configuration.
#[derive(Debug)]
struct Keys {
    config: Arc<Config>,
    network: [u8; 32],
    /// Places in [`Config::peers`].
    places: BTreeMap<NodeId, usize>,
}

impl Keys {
    fn new(config: &Arc<Config>) -> Self {
        let peers = config.peers.iter().enumerate();
        Self {
            config: Arc::clone(config),
            network: virga_routing::announcement::network(&config.node.network),
            places: peers.map(|(place, peer)| (peer.id, place)).collect(),
        }
    }
}

impl Authority for Keys {
    fn network(&self) -> [u8; 32] {
        self.network
    }

    fn node_key(&self) -> [u8; 32] {
        self.config.keys.node.public
    }

    fn entity_key(&self) -> [u8; 32] {
        self.config.keys.entity.public
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        let key = SigningKey::from_bytes(self.config.keys.entity.seed.expose());
        key.sign(message).to_bytes()
    }

    fn knows(&self, speaker: &Speaker) -> Result<(), Doubt> {
        let origin = speaker.node();
        let (node, entity, subnet): (PeerKey, _, _) = match self.places.get(&origin) {
            Some(&place) => {
                let peer = &self.config.peers[place];
                (peer.node_key, peer.entity_key, peer.place().subnet)
            }
            // Of this node itself a neighbour may know a higher number than it does.
            None if origin == self.config.node.id => {
                let node = PeerKey::Known(self.node_key());
                (node, self.entity_key(), self.config.node.subnet)
            }
            None => return Err(Doubt::Stranger),
        };
        // A neighbour may know sooner that another entity is there.
        let is_node = node.known().is_none_or(|key| speaker.node_key == key);
        if !is_node || speaker.entity_key != entity {
            return Err(Doubt::Stranger);
        }
        match speaker.subnet == subnet {
            true => Ok(()),
            false => Err(Doubt::Elsewhere),
        }
    }
}

/// A neighbour that there is a session with.
#[derive(Debug)]
struct Neighbour {
    /// The session's number.
    session: u64,
    cost: LinkCost,
    rtt_us: Option<u64>,
    lost: Lost,
}

/// The router, and what it goes by.
#[derive(Debug)]
pub(super) struct Routing {
    router: Router<Keys>,
    inbox: Inbox,
    sessions: BTreeMap<NodeId, Neighbour>,
    routes: BTreeMap<Destination, NextHops>,
    /// What the router's time is counted from.
    since: Instant,
    followed: Instant,
    measured: Instant,
    /// Nodes of which it was said that another has their keys.
    torn: BTreeSet<String>,
}

impl Routing {
    /// None where the configuration says all.
    pub(super) fn new(config: &Arc<Config>) -> Option<Self> {
        if !config.routing.is_enabled {
            return None;
        }
        let unix_ns = crate::daemon::unix_ns();
        let setup = Setup {
            subnet: config.node.subnet,
            aggregation: config.routing.aggregation,
            seqno: unix_ns / 1_000_000,
            quiet_ns: u64::try_from(QUIET.as_nanos()).unwrap_or(u64::MAX),
            destinations_max: limits::DESTINATIONS_MAX,
        };
        let since = Instant::now();
        let now = Now {
            ns: 0,
            unix_s: unix_ns / 1_000_000_000,
        };
        Some(Self {
            router: Router::new(now, setup, Keys::new(config)),
            inbox: Inbox::default(),
            sessions: BTreeMap::new(),
            routes: BTreeMap::new(),
            since,
            followed: since,
            measured: since,
            torn: BTreeSet::new(),
        })
    }

    fn now(&self) -> Now {
        Now {
            ns: u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX),
            unix_s: crate::daemon::unix_ns() / 1_000_000_000,
        }
    }

    fn due(&self) -> Instant {
        let measure = self.measured + MEASURE_EVERY;
        let router = self.router.poll_timeout();
        router.map_or(measure, |ns| {
            measure.min(self.since + Duration::from_nanos(ns))
        })
    }

    /// Goes by another configuration's keys; the tables have to follow.
    pub(super) fn set_config(&mut self, config: &Arc<Config>) {
        self.router.set_authority(self.now(), Keys::new(config));
        let _all_follow = self.take_routes();
    }

    /// Takes up the ways that the router has chosen; whether one is another.
    fn take_routes(&mut self) -> bool {
        let mut is_changed = false;
        while let Some(change) = self.router.poll_route() {
            is_changed = true;
            match change.next_hops {
                Some(next_hops) => self.routes.insert(change.destination, next_hops),
                None => self.routes.remove(&change.destination),
            };
        }
        is_changed
    }

    /// Takes in what was heard, and does what is due; whether a route has changed.
    fn follow(&mut self, config: &Config, liveness: &BTreeMap<NodeId, Liveness>) -> bool {
        let now = self.now();
        let began = Instant::now();
        while began.elapsed() < FOLLOW_FOR
            && let Some((peer, heard)) = self.inbox.pop()
        {
            match heard {
                Heard::Began { session, .. } => {
                    let cost = LinkCost::new(RTT_NS, [0; 2]);
                    let subnet = config.peers.iter().find(|known| known.id == peer);
                    let subnet = subnet.map(|known| known.place().subnet).unwrap_or_default();
                    self.router.neighbour_up(now, peer, subnet, cost.used());
                    let neighbour = Neighbour {
                        session,
                        cost,
                        rtt_us: None,
                        lost: Lost::default(),
                    };
                    self.sessions.insert(peer, neighbour);
                }
                Heard::Said(items) => self.router.handle(now, peer, &items),
                Heard::Ended => {
                    self.router.neighbour_down(now, peer);
                    self.sessions.remove(&peer);
                }
            }
        }
        self.inbox.leave();
        for (&peer, &liveness) in liveness {
            self.router.set_liveness(now, peer, liveness);
        }
        if self.sessions.len() == liveness.len() {
            self.router.all_know(now);
        }
        self.router.handle_timeout(now);
        while let Some(peer) = self.router.poll_muted() {
            tracing::warn!(%peer, "too many route announcements that this neighbour passed on have a wrong signature: nothing that it says about routes counts until there is a new session; look at what runs on it");
        }
        self.take_routes()
    }

    /// What is to be said, and in which sessions.
    fn take_messages(&mut self) -> Vec<(NodeId, u64, Vec<u8>)> {
        let mut messages = Vec::new();
        while let Some((peer, items)) = self.router.poll_transmit() {
            if let Some(neighbour) = self.sessions.get(&peer) {
                messages.push((peer, neighbour.session, items));
            }
        }
        messages
    }

    fn measured(&mut self, peer: NodeId, measured: Measured) {
        let now = self.now();
        let Some(neighbour) = self.sessions.get_mut(&peer) else {
            return;
        };
        neighbour.rtt_us = Some(measured.rtt_us);
        neighbour.lost = measured.lost;
        let Lost { to_ppm, from_ppm } = measured.lost;
        let loss_ppm = [to_ppm, from_ppm].map(Option::unwrap_or_default);
        let rtt_ns = measured.rtt_us.saturating_mul(1_000);
        let cost = neighbour.cost.measured(now.ns, rtt_ns, loss_ppm);
        if let Some(cost) = cost {
            tracing::info!(%peer, cost, rtt_us = measured.rtt_us, loss_ppm = loss_ppm[0], loss_back_ppm = loss_ppm[1],
                "a link's cost has changed");
            self.router.set_cost(now, peer, cost);
        }
    }

    /// Says once of each node that another has its keys.
    fn warn_of_twins(&mut self) {
        let mut torn: BTreeSet<String> = self.router.torn().map(|d| d.to_string()).collect();
        if self.router.twins() > limits::TWINS_MAX {
            torn.insert(self.router.node().to_string());
        }
        for node in torn.difference(&self.torn) {
            tracing::warn!(%node, "two nodes announce themselves with this node's keys, and packets for it go to whichever is nearer: give one of them keys of its own (`virga keygen`)");
        }
        self.torn = torn;
    }

    /// Where packets for a peer go, as was learned.
    fn to(&self, config: &Config, place: usize) -> Option<(Destination, NextHops)> {
        let peer = &config.peers[place];
        let (subnet, own) = (peer.place().subnet, config.node.subnet);
        let followed = config.routing.aggregation.follows(peer.id, subnet, own);
        self.routes.get(&followed).map(|&hops| (followed, hops))
    }

    /// Adds the routes that were learned. To a neighbour packets go straight, and over another only while its
    /// link is dead; what the configuration says with `via` stays.
    pub(super) fn write(&self, config: &Config, image: &mut Image) {
        let adjacent = config.peers.iter().filter(|peer| peer.is_adjacent());
        let keys: BTreeMap<NodeId, NextHopKey> = adjacent
            .filter_map(|peer| Some((peer.id, image.routes.get(&peer.id)?.primary)))
            .collect();
        let pair = |via: &Via| (via.primary, via.backup);
        let mut pairs: BTreeSet<_> = image.routes.values().map(pair).collect();
        let room = usize::try_from(ROUTES_MAX).unwrap_or(usize::MAX);
        for (place, peer) in config.peers.iter().enumerate() {
            let Some((_, hops)) = self.to(config, place) else {
                continue;
            };
            let learned = [Some(hops.primary), hops.backup].map(|id| keys.get(&id?).copied());
            let via = match peer.reach {
                Reach::Via { .. } => continue,
                Reach::Adjacent { .. } => keys.get(&peer.id).map(|&primary| {
                    let others = learned.into_iter().flatten();
                    let backup = others.into_iter().find(|&key| key != primary);
                    Via { primary, backup }
                }),
                Reach::Learned => learned[0].map(|primary| {
                    let backup = learned[1].filter(|&key| key != primary);
                    Via { primary, backup }
                }),
            };
            let Some(mut via) = via else {
                continue;
            };
            // The table of routes holds each pair of next hops once.
            if pairs.len() >= room && !pairs.contains(&pair(&via)) {
                via.backup = None;
            }
            if pairs.len() < room || pairs.contains(&pair(&via)) {
                pairs.insert(pair(&via));
                image.routes.insert(peer.id, via);
            }
        }
    }

    fn status(&self, config: &Config) -> RoutesStatus {
        let names: BTreeMap<NodeId, &str> = config
            .peers
            .iter()
            .map(|peer| (peer.id, &*peer.name))
            .collect();
        let refused = Reason::ALL
            .iter()
            .map(|&r| (r.name().to_owned(), self.router.count(r)));
        let links = self.sessions.iter().map(|(id, neighbour)| LinkStatus {
            peer: names
                .get(id)
                .map_or_else(|| id.to_string(), |&name| name.to_owned()),
            cost: neighbour.cost.used(),
            rtt_us: neighbour.rtt_us,
            loss_ppm: neighbour.lost.to_ppm,
            loss_back_ppm: neighbour.lost.from_ppm,
        });
        RoutesStatus {
            is_enabled: true,
            is_quiet: self.router.is_quiet(),
            destinations: self.router.len().0,
            messages: self.router.said(),
            twins: self.torn.iter().cloned().collect(),
            links: links.collect(),
            refused: refused.filter(|&(_, count)| count > 0).collect(),
            routes: Vec::new(),
        }
    }
}

impl Path {
    /// Where the workers tell what neighbours say about routes.
    #[must_use]
    pub fn routes_inbox(&self) -> Option<&Inbox> {
        self.routing.as_ref().map(|routing| &routing.inbox)
    }

    /// Waits until something was said about routes, or something about them is due.
    pub(super) async fn routing_due(&self) {
        let Some(routing) = &self.routing else {
            return pending().await;
        };
        tokio::time::sleep_until(routing.followed + FOLLOW_EVERY).await;
        tokio::select! {
            () = routing.inbox.changed() => {}
            () = tokio::time::sleep_until(routing.due()) => {}
        }
    }

    /// Whether packets get to the neighbours over their links, as far as this machine, its operator and the links'
    /// keepalive know; and whether what they send on is let in.
    fn liveness(&self) -> BTreeMap<NodeId, Liveness> {
        let peers = self.config.peers.iter().enumerate();
        let adjacent = peers.filter(|(_, peer)| peer.is_adjacent());
        let of = |index: usize| {
            let link = self.facts.links.get(&index);
            let interface = link.and_then(|link| self.facts.interfaces.get(&link.ifindex));
            // Without any facts the kernel is trusted to find a way.
            let is_up = self.facts.interfaces.is_empty() || interface.is_some_and(|i| i.is_up);
            let is_dead = self.dead.contains(&self.config.peers[index].id);
            match is_up && !is_dead && !self.down.contains(&index) {
                true if self.members.is_barred(self.config.peers[index].id) => Liveness::Barred,
                true => Liveness::Alive,
                false => Liveness::Dead,
            }
        };
        adjacent.map(|(index, peer)| (peer.id, of(index))).collect()
    }

    /// The neighbour that packets for a node go to now, as the tables have it.
    pub(super) fn next_hop(&self, destination: NodeId) -> Option<NodeId> {
        let image = self.image();
        let via = image.routes.get(&destination)?;
        let liveness = self.liveness();
        let alive = |key: NextHopKey| {
            let adjacent = self.config.peers.iter().filter(|peer| peer.is_adjacent());
            let mut to = adjacent.filter(|peer| {
                let own = image.routes.get(&peer.id).map(|via| via.primary);
                let is_its = own.is_some_and(|own| own.leads_where(&key));
                is_its && liveness.get(&peer.id) != Some(&Liveness::Dead)
            });
            to.next().map(|peer| peer.id)
        };
        alive(via.primary).or_else(|| via.backup.and_then(alive))
    }

    pub(super) async fn follow_routing(&mut self, dispatch: &Dispatch) {
        self.measure(dispatch).await;
        let liveness = self.liveness();
        let Some(routing) = &mut self.routing else {
            return;
        };
        routing.followed = Instant::now();
        if routing.follow(&self.config, &liveness) {
            // It is logged, shown in `status` and tried again.
            let _shown = self.apply(dispatch).await;
        }
        // What neighbours are told, the tables hold.
        let routing = self.routing.as_mut().filter(|_| !self.tables_behind);
        let Some(messages) = routing.map(Routing::take_messages) else {
            return;
        };
        if messages.is_empty() {
            return;
        }
        let messages = Arc::new(messages);
        let say = move |now_ns: u64, parts: &mut Parts<Service>| {
            for (peer, session, items) in messages.iter() {
                // The worker that has the session says it.
                let to = (*peer, *session);
                parts
                    .service
                    .say_routes(now_ns, &mut parts.node, to, items.clone());
            }
        };
        // With the workers, the node ends.
        let _ended = dispatch.with_all(say).await;
    }

    async fn measure(&mut self, dispatch: &Dispatch) {
        let Some(routing) = &mut self.routing else {
            return;
        };
        if routing.measured.elapsed() < MEASURE_EVERY {
            return;
        }
        routing.measured = Instant::now();
        routing.warn_of_twins();
        let measured = dispatch
            .with_all(|_, parts| parts.service.measured(&parts.node))
            .await;
        for (peer, measured) in measured.into_iter().flatten().flatten() {
            routing.measured(peer, measured);
        }
    }

    /// Who leads where, and by whose word.
    pub(super) fn routes(&self) -> RoutesStatus {
        let config = &self.config;
        let routing = self.routing.as_ref();
        let mut status = routing
            .map(|routing| routing.status(config))
            .unwrap_or_default();
        let name = |id: NodeId| {
            let peer = config.peers.iter().find(|peer| peer.id == id);
            peer.map_or_else(|| id.to_string(), |peer| peer.name.clone())
        };
        let views: BTreeMap<_, _> = routing
            .into_iter()
            .flat_map(|routing| routing.router.routes())
            .map(|view| (view.destination, view))
            .collect();
        for (place, peer) in config.peers.iter().enumerate() {
            let learned = routing.and_then(|routing| routing.to(config, place));
            let hops = learned.map(|(_, hops)| hops);
            let ids = hops
                .into_iter()
                .flat_map(|h| [Some(h.primary), h.backup])
                .flatten();
            let (primary, backup, by) = match peer.reach {
                Reach::Adjacent { .. } => {
                    let backup = ids.into_iter().find(|&id| id != peer.id).map(name);
                    (Some(peer.name.clone()), backup, "adjacent")
                }
                Reach::Via { primary, backup } => {
                    let name = |place: usize| config.peers[place].name.clone();
                    (Some(name(primary)), backup.map(name), "static")
                }
                Reach::Learned => {
                    let mut names = ids.map(name);
                    (names.next(), names.next(), "learned")
                }
            };
            let view = learned.and_then(|(followed, _)| views.get(&followed));
            let view = view.filter(|_| by != "static");
            let since = routing.zip(view).map(|(routing, view)| {
                routing
                    .since
                    .elapsed()
                    .saturating_sub(Duration::from_nanos(view.since_ns))
            });
            status.routes.push(RouteStatus {
                destination: peer.id.to_string(),
                name: peer.name.clone(),
                primary,
                backup,
                by: by.to_owned(),
                follows: view.map(|view| view.destination.to_string()),
                metric: view.map(|view| view.metric),
                seqno: view.map(|view| view.seqno),
                age_s: since.map(|since| since.as_secs()),
            });
        }
        status
    }
}
