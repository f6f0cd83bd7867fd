//! Looks for ways through NATs: what is seen and heard goes to [`virga_nat`]; whom it reaches becomes a neighbour of this
//! node in the session that there is, and routers lead to it again once it falls silent.

use super::{identity::Registry, mapping::Mapping, monotonic_ns, path::Asker};
use crate::{
    config::{Config, PeerConfig, Reach},
    dispatch::{Dispatch, Ended, Service},
    links::Found,
    moves::Moves,
    nat::{Heard, Inbox, NatStatus, PortMappingStatus, Seen},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;
use virga_ebpf::{header::NodeId, limits};
use virga_nat::{Act, Nat, Reason, Relation, Setup, Sight, Way, limits::SILENT_NS};
use virga_transport::{LinkState, worker::Parts};

/// How often sessions are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The same while a peer is asked for an answer.
const LOOK_SOON: Duration = Duration::from_millis(100);

/// A link that was found so many intervals of its keepalive ago and is not heard is silent, however long those are.
const KEEPALIVES_SILENT: u64 = 8;

/// What is known. Cheap to clone.
#[derive(Clone, Default)]
pub struct Crossing {
    nat: Option<Arc<Mutex<Nat>>>,
    mapping: Option<Arc<Mapping>>,
}

/// What the task goes by.
pub(super) struct Parted {
    /// The configuration, also after it was read anew.
    pub(super) registry: Registry,
    /// The workers.
    pub(super) dispatch: Dispatch,
    /// Who is carried.
    pub(super) moves: Moves,
    /// What is known of links.
    pub(super) links: watch::Receiver<BTreeMap<NodeId, Found>>,
    /// Knows where neighbours are.
    pub(super) path: Asker,
}

struct Task {
    nat: Arc<Mutex<Nat>>,
    mapping: Option<Arc<Mapping>>,
    inbox: Inbox,
    by: Parted,
    /// Those that are neighbours now, as the registry was told.
    punched: BTreeMap<NodeId, SocketAddr>,
}

fn locked(nat: &Mutex<Nat>) -> MutexGuard<'_, Nat> {
    nat.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Crossing {
    /// Looks for ways, where the configuration says so, until the workers have ended.
    pub(super) fn run(inbox: Option<Inbox>, by: Parted) -> Result<Self, std::io::Error> {
        let Some(inbox) = inbox else {
            return Ok(Self::default());
        };
        let config = by.registry.configured();
        let neighbours_max = limits::NEIGHBOURS_MAX.min(limits::NEXT_HOPS_MAX);
        let keepalive_ns = u64::from(config.forwarding.keepalive_ms) * 1_000_000;
        let nat = Nat::new(Setup {
            own: config.node.id,
            listen: config.node.listen,
            seed: crate::kept::random().map_err(std::io::Error::other)?,
            neighbours_max: usize::try_from(neighbours_max).unwrap_or(usize::MAX),
            silent_ns: SILENT_NS.max(KEEPALIVES_SILENT * keepalive_ns),
        });
        let nat = Arc::new(Mutex::new(nat));
        let seed = crate::kept::random().map_err(std::io::Error::other)?;
        let mapping = Mapping::run(&config, seed).map(Arc::new);
        if mapping.is_none() && config.routing.maps_ports {
            tracing::warn!(
                "no port of a router's is mapped: that is done for IPv4, and the node listens by IPv6"
            );
        }
        let task = Task {
            nat: Arc::clone(&nat),
            mapping: mapping.clone(),
            inbox,
            by,
            punched: BTreeMap::new(),
        };
        tokio::spawn(task.run());
        Ok(Self {
            nat: Some(nat),
            mapping,
        })
    }

    /// Has the router take back what it maps; the node stops.
    pub(super) async fn end(&self) {
        if let Some(mapping) = &self.mapping {
            mapping.end().await;
        }
    }

    /// Whether it is looked for ways at all.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.nat.is_some()
    }

    /// Whether packets to a peer go through NATs, and why; none where this has nothing to say of it.
    #[must_use]
    pub fn way(&self, peer: NodeId) -> Option<Way> {
        let nat = self.nat.as_ref()?;
        locked(nat).way(monotonic_ns(), peer)
    }

    /// All of it.
    #[must_use]
    pub fn status(&self) -> NatStatus {
        let Some(nat) = &self.nat else {
            return NatStatus::default();
        };
        let nat = locked(nat);
        let [arranged, reached, failed] = nat.counted();
        let evidence = nat.evidence();
        NatStatus {
            is_on: true,
            class: evidence.class().name().to_owned(),
            why: evidence.words(),
            addresses: evidence
                .addresses()
                .iter()
                .map(ToString::to_string)
                .collect(),
            arranged,
            reached,
            failed,
            refused: Reason::ALL
                .map(|reason| (reason.name().to_owned(), nat.refused(reason)))
                .into(),
            port_mapping: match &self.mapping {
                Some(mapping) => mapping.status(&evidence.addresses()),
                None => PortMappingStatus {
                    why: "the node listens at no port of IPv4".to_owned(),
                    ..PortMappingStatus::default()
                },
            },
        }
    }
}

impl Task {
    async fn run(mut self) {
        let mut looked = tokio::time::Instant::now();
        loop {
            let (due, look_every) = {
                let nat = locked(&self.nat);
                let due_ns = nat.poll_timeout().unwrap_or(u64::MAX);
                let due = Duration::from_nanos(due_ns.saturating_sub(monotonic_ns()));
                let is_busy = nat.is_busy();
                (due, if is_busy { LOOK_SOON } else { LOOK_EVERY })
            };
            tokio::select! {
                () = self.inbox.changed() => self.hear(),
                () = tokio::time::sleep_until(looked + look_every) => {
                    looked = tokio::time::Instant::now();
                    if self.look().await.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(due.min(LOOK_EVERY)) => {}
            }
            self.follow_mapping();
            locked(&self.nat).handle_timeout(monotonic_ns());
            if self.act().await.is_err() {
                return;
            }
        }
    }

    /// Wants a port of the router's as the configuration does, and has neighbours told of the one that there is.
    fn follow_mapping(&self) {
        if let Some(mapping) = &self.mapping {
            mapping.want(self.by.registry.configured().routing.maps_ports);
            locked(&self.nat).set_mapped(monotonic_ns(), mapping.announced());
        }
    }

    fn hear(&self) {
        let config = self.by.registry.configured();
        let peers: BTreeSet<NodeId> = config.peers.iter().map(|peer| peer.id).collect();
        let mut nat = locked(&self.nat);
        for (peer, heard) in self.inbox.take() {
            match heard {
                _ if !peers.contains(&peer) => nat.handle_stranger(),
                Heard::Said(said) => nat.handle(monotonic_ns(), peer, &said),
                Heard::Reached(address) => nat.reached(monotonic_ns(), peer, address),
            }
        }
    }

    /// Shows what there is of sessions and links.
    async fn look(&self) -> Result<(), Ended> {
        let seen = |_: u64, parts: &mut Parts<Service>| parts.service.seen(&parts.node);
        let seen: Vec<Seen> = self
            .by
            .dispatch
            .with_all(seen)
            .await?
            .into_iter()
            .flatten()
            .collect();
        let places = self.by.path.places().await.ok_or(Ended)?;
        let config = self.by.registry.configured();
        let peers: BTreeMap<NodeId, &PeerConfig> =
            config.peers.iter().map(|peer| (peer.id, peer)).collect();
        let mut sights = BTreeMap::new();
        for one in &seen {
            let Some(peer) = peers.get(&one.peer) else {
                continue;
            };
            let relation = self.relation(peer);
            let sight = Sight {
                session: one.session,
                relation,
                seen: one.address,
                local: one
                    .address
                    .filter(|_| relation == Relation::Neighbour)
                    .and_then(|at| local(config.node.listen, at)),
            };
            sights.insert(one.peer, sight);
        }
        // What was punched through to may be without a session for a moment.
        for (node, peer) in self
            .punched
            .keys()
            .filter_map(|node| Some((*node, peers.get(node)?)))
        {
            sights.entry(node).or_insert_with(|| Sight {
                session: 0,
                relation: self.relation(peer),
                seen: None,
                local: None,
            });
        }
        locked(&self.nat).look(monotonic_ns(), &sights, &places);
        Ok(())
    }

    fn relation(&self, peer: &PeerConfig) -> Relation {
        match peer.reach {
            Reach::Adjacent { .. } if self.punched.contains_key(&peer.id) => {
                let found = self.by.links.borrow().get(&peer.id).copied();
                Relation::Punched {
                    is_silent: found.is_none_or(|found| found.state != LinkState::Up),
                }
            }
            Reach::Adjacent { .. } if self.by.moves.is_carried(peer.id) => Relation::Other,
            Reach::Adjacent { .. } => Relation::Neighbour,
            Reach::Learned => Relation::Wanted,
            Reach::Via { .. } => Relation::Other,
        }
    }

    /// Does what is to be done, and says what is to be said.
    async fn act(&mut self) -> Result<(), Ended> {
        let (mut said, mut acts) = (Vec::new(), Vec::new());
        let punched = {
            let mut nat = locked(&self.nat);
            said.extend(std::iter::from_fn(|| nat.poll_transmit()));
            acts.extend(std::iter::from_fn(|| nat.poll_act()));
            nat.punched()
        };
        let config = self.by.registry.configured();
        if !acts.is_empty() {
            let next = config.with_punched(&punched);
            acts.retain(|act| is_possible(&next, act));
        }
        if !said.is_empty() || !acts.is_empty() {
            let all = Arc::new((said, acts.clone()));
            let follow = move |now_ns, parts: &mut Parts<Service>| {
                let (said, acts) = &*all;
                parts.service.say_nat(now_ns, &mut parts.node, said);
                for act in acts {
                    match *act {
                        Act::Probe { peer, address } => parts.node.probe(now_ns, peer, address),
                        Act::Adopt { peer, address } if parts.node.has_session(peer) => {
                            parts.node.moved(now_ns, peer, address);
                        }
                        Act::Adopt { .. } | Act::Release { .. } => {}
                    }
                }
            };
            self.by.dispatch.with_all(follow).await?;
        }
        for act in &acts {
            tell(&config, act);
        }
        if punched != self.punched {
            self.punched.clone_from(&punched);
            self.by.registry.set_punched(punched).await?;
        }
        Ok(())
    }
}

/// Whether an act changes what it is to: one whose IP address another neighbour has stays relayed in this configuration,
/// and nothing of its session changes.
fn is_possible(config: &Config, act: &Act) -> bool {
    let Act::Adopt { peer, address } = act else {
        return true;
    };
    let mut peers = config.peers.iter();
    peers.any(|one| match &one.reach {
        Reach::Adjacent { address: at, .. } => one.id == *peer && at == address,
        Reach::Via { .. } | Reach::Learned => false,
    })
}

/// Logs what people have to know.
fn tell(config: &Config, act: &Act) {
    let name = |peer: NodeId| {
        let found = config.peers.iter().find(|known| known.id == peer);
        found.map_or_else(|| peer.to_string(), |known| known.name.clone())
    };
    match *act {
        Act::Probe { .. } => {}
        Act::Adopt { peer, address } => {
            tracing::info!(peer = name(peer), %address, "a way through the NATs: a peer is sent to straight");
        }
        Act::Release { peer } => {
            tracing::info!(
                peer = name(peer),
                "the way through the NATs is lost: routers lead to a peer again"
            );
        }
    }
}

/// The address that this node has itself towards another one; nothing is sent to find it.
fn local(listen: SocketAddr, towards: SocketAddr) -> Option<SocketAddr> {
    if !listen.ip().is_unspecified() {
        return Some(listen);
    }
    let socket = UdpSocket::bind(SocketAddr::new(listen.ip(), 0)).ok()?;
    socket.connect(towards).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    Some(SocketAddr::new(ip, listen.port()))
}
