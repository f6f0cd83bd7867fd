//! Which neighbours are carried over TCP or WebSocket, and when: what [`virga_carrier`] decides, done.
//!
//! One task owns all connections. It looks at sessions and links a few times a second, has neighbours dialled that UDP
//! does not reach, and takes those that dial this node. A carried neighbour is at another address for the workers and
//! the forwarding path ([`crate::moves`]), and back at its own once UDP has answered: the session in between is the same.

mod known;
mod listening;
mod shown;

pub use listening::{ListenError, files, listen};
pub use shown::{FallbackStatus, Shown};

use crate::{
    cause,
    config::Config,
    daemon::identity::Registry,
    dispatch::{Dispatch, Service},
    links::Found,
    moves::Moves,
};
use known::{address_of, choices, free_place, is_neighbour, keyring, peer_of};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use virga_carrier::{
    Choice, Keyring, Kind, Reason, Target,
    choice::{Act, Seen},
    dial::{DialError, dial},
    limits::{BACKOFF_MIN, HELLO_TIME},
    listen::{Judge, Listener, Proven},
    relay::{Ask, Relay, Told},
    wire::Wire,
};
use virga_ebpf::header::NodeId;
use virga_transport::worker::Parts;

/// How often sessions and links are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Connections that have proven themselves, and ends of others, that wait for the task.
const WAITING_MAX: usize = 16;

/// A neighbour's connection.
struct Carried {
    /// Tells the ends of one connection from those of the next.
    number: u64,
    /// Tells its relay from those of other neighbours.
    place: u16,
    is_ours: bool,
    asks: mpsc::Sender<Ask>,
    /// Since when both ends are on their way back to UDP.
    leaving_since: Option<Instant>,
    task: JoinHandle<()>,
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the tasks beside this one have to say.
enum Done {
    Dialled {
        peer: NodeId,
        target: Target,
        result: Result<Wire, DialError>,
    },
    Leaves {
        peer: NodeId,
        number: u64,
    },
    Ended {
        peer: NodeId,
        number: u64,
        told: Told,
    },
}

/// What the task goes by.
pub struct Parted {
    /// The configuration, also after it was read anew.
    pub registry: Registry,
    /// The workers.
    pub dispatch: Dispatch,
    /// Where neighbours are.
    pub moves: Moves,
    /// What is known of their links.
    pub links: watch::Receiver<BTreeMap<NodeId, Found>>,
}

struct Manager {
    by: Parted,
    config: Arc<Config>,
    keyring: watch::Sender<Keyring>,
    shown: Shown,
    choices: BTreeMap<NodeId, Choice>,
    carried: BTreeMap<NodeId, Carried>,
    /// When a connection of each that has dialled this node was taken last.
    taken: BTreeMap<NodeId, Instant>,
    connections: u64,
    /// The relay's place that was given out last.
    place: u16,
    done: mpsc::Sender<Done>,
}

/// Carries neighbours until the runtime ends; what it shows.
#[must_use]
pub fn run(listeners: Vec<Listener>, by: Parted) -> Shown {
    let config = by.registry.config();
    let shown = Shown::default();
    let (keyring, keys) = watch::channel(keyring(&config));
    let (proven, came) = mpsc::channel(WAITING_MAX);
    let (done, ended) = mpsc::channel(WAITING_MAX);
    let judge = Judge::new(keys, Arc::clone(shown.counters()), proven);
    for listener in listeners {
        tokio::spawn(listener.run(judge.clone()));
    }
    let mut manager = Manager {
        by,
        choices: choices(&config, &BTreeMap::new()),
        config,
        keyring,
        shown: shown.clone(),
        carried: BTreeMap::new(),
        taken: BTreeMap::new(),
        connections: 0,
        place: 0,
        done,
    };
    manager.show_listed();
    // Ends with the runtime.
    tokio::spawn(async move {
        // Keeps the channel open where nothing listens.
        let _judge = judge;
        manager.run(came, ended).await;
    });
    shown
}

/// A random number of a thousand.
fn jitter() -> u32 {
    let mut bytes = [0; 2];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u32::from(u16::from_be_bytes(bytes)) % 1_001,
        Err(_) => 500,
    }
}

impl Manager {
    async fn run(&mut self, mut came: mpsc::Receiver<Proven>, mut ended: mpsc::Receiver<Done>) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let moves = self.by.moves.clone();
        loop {
            tokio::select! {
                _ = looks.tick() => self.look().await,
                Some(proven) = came.recv() => self.on_proven(proven).await,
                Some(done) = ended.recv() => self.on_done(done).await,
                reached = moves.reached() => for (peer, address) in reached {
                    self.on_reached(peer, address).await;
                },
            }
        }
    }

    fn name(&self, peer: NodeId) -> &str {
        peer_of(&self.config, peer).map_or("a node", |one| &one.name)
    }

    fn configured(&self, peer: NodeId) -> Option<SocketAddr> {
        peer_of(&self.config, peer).and_then(address_of)
    }

    fn show_listed(&self) {
        for peer in self.choices.keys() {
            self.shown.udp(*peer, "UDP is tried first".to_owned());
        }
    }

    async fn look(&mut self) {
        let config = self.by.registry.config();
        if !Arc::ptr_eq(&config, &self.config) {
            self.follow(config).await;
        }
        let now = Instant::now();
        let is_late = |one: &Carried| {
            let since = one.leaving_since;
            since.is_some_and(|since| now.duration_since(since) > HELLO_TIME)
        };
        let moves = &self.by.moves;
        let over: Vec<NodeId> = self
            .carried
            .iter()
            .filter(|(peer, one)| {
                is_late(one) || (one.leaving_since.is_none() && !moves.is_carried(**peer))
            })
            .map(|(peer, _)| *peer)
            .collect();
        for peer in over {
            self.on_left(peer);
        }
        if self.choices.is_empty() {
            return;
        }
        let peers: Arc<[NodeId]> = self.choices.keys().copied().collect();
        let look = move |_: u64, parts: &mut Parts<Service>| {
            let with = peers.iter().filter(|peer| parts.node.has_session(**peer));
            with.copied().collect::<Vec<_>>()
        };
        // With the workers, the node ends.
        let Ok(with) = self.by.dispatch.with_all(look).await else {
            return;
        };
        let mut acts = Vec::new();
        for (&peer, choice) in &mut self.choices {
            if self.carried.get(&peer).is_some_and(|one| !one.is_ours) {
                choice.on_other();
                continue;
            }
            let found = self.by.links.borrow().get(&peer).copied();
            let seen = Seen {
                has_session: with.iter().flatten().any(|one| *one == peer),
                is_dead: found.is_some_and(|found| found.state.is_dead()),
            };
            acts.push((peer, choice.step(now, seen, jitter())));
        }
        for (peer, act) in acts {
            match act {
                Act::Nothing => {}
                Act::Dial(target) => self.dial(peer, target),
                Act::Probe => self.probe(peer).await,
                Act::GiveUp => {
                    let words = "no session came up over it, or its link died".to_owned();
                    self.lose(peer, Reason::Useless, &words).await;
                }
            }
        }
    }

    /// Goes by another configuration: neighbours that are none any more are not carried, nor those that are dialled
    /// elsewhere, or nowhere, from now on.
    async fn follow(&mut self, config: Arc<Config>) {
        if config.peers == self.config.peers && config.fallback == self.config.fallback {
            self.config = config;
            return;
        }
        self.keyring.send_replace(keyring(&config));
        let before = std::mem::replace(&mut self.config, Arc::clone(&config));
        let targets = |config: &Config, peer: NodeId| {
            let found = peer_of(config, peer);
            found.map(|one| (one.fallback.clone(), one.is_adjacent()))
        };
        let is_as_before = |peer: NodeId| {
            targets(&config, peer).is_some_and(|now| Some(now) == targets(&before, peer))
        };
        self.choices.retain(|peer, _| is_as_before(*peer));
        let dialled: BTreeSet<NodeId> = self.choices.keys().copied().collect();
        self.choices = choices(&config, &self.choices);
        self.taken.retain(|peer, _| is_neighbour(&config, *peer));
        let is_over = |peer: NodeId, one: &Carried| match is_neighbour(&config, peer) {
            true => one.is_ours && !is_as_before(peer),
            false => true,
        };
        let carried = self.carried.iter();
        let over = carried.filter(|(peer, one)| is_over(**peer, one));
        for peer in over.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.carried.remove(&peer);
            match is_neighbour(&config, peer) {
                true => self.free(peer, None).await,
                false => self.free_renewed(peer, &before).await,
            }
        }
        for peer in &before.peers {
            if !self.choices.contains_key(&peer.id) && !self.carried.contains_key(&peer.id) {
                self.shown.forget(peer.id);
            }
        }
        for peer in self.choices.keys() {
            if !dialled.contains(peer) && !self.carried.contains_key(peer) {
                self.shown.udp(*peer, "UDP is tried first".to_owned());
            }
        }
    }

    /// One that was carried is no neighbour any more. Where it has another node key since, and so another id, the
    /// forwarding path may have taken the relay's address for the new one's.
    async fn free_renewed(&self, peer: NodeId, before: &Config) {
        let released = self.by.moves.release(peer, None);
        let named = peer_of(before, peer).and_then(|one| self.config.peer(&one.name));
        if let Some(renewed) = named.filter(|one| one.id != peer) {
            let address = released.or_else(|| self.by.moves.release(renewed.id, None));
            if let Some(address) = address.or_else(|| address_of(renewed)) {
                self.lead(renewed.id, address).await;
            }
        }
    }

    fn dial(&self, peer: NodeId, number: usize) {
        let found = peer_of(&self.config, peer);
        let target = found.and_then(|one| one.fallback.get(number));
        let Some(target) = target.cloned() else {
            return;
        };
        let (trust, keyring) = (
            self.config.fallback.trust.clone(),
            self.keyring.borrow().clone(),
        );
        self.shown
            .udp(peer, format!("no answer by UDP: dialling {target}"));
        let done = self.done.clone();
        tokio::spawn(async move {
            let result = dial(&target, &trust, (&keyring, peer)).await;
            let dialled = Done::Dialled {
                peer,
                target,
                result,
            };
            // Nobody listens when the node stops.
            let _stopping = done.send(dialled).await;
        });
    }

    async fn probe(&self, peer: NodeId) {
        let before = self.by.moves.before(peer);
        let Some(address) = before.or_else(|| self.configured(peer)) else {
            return;
        };
        let ask = move |now_ns: u64, parts: &mut Parts<Service>| {
            parts.node.probe(now_ns, peer, address);
        };
        // With the workers, the node ends.
        let _ended = self.by.dispatch.with_all(ask).await;
    }

    async fn on_proven(&mut self, proven: Proven) {
        let Proven {
            peer,
            wire,
            kind,
            from,
        } = proven;
        if !is_neighbour(&self.config, peer) {
            // It was one when it proved itself.
            return self.shown.counters().count(Reason::Stranger);
        }
        let (now, own) = (Instant::now(), self.config.node.id);
        let taken = self.taken.get(&peer);
        let is_soon = taken.is_some_and(|at| now.duration_since(*at) < BACKOFF_MIN);
        let is_dialled = self.carried.get(&peer).is_some_and(|one| one.is_ours);
        // Of two that both dialled, the one of the lower node id stays, at both ends.
        if is_soon || (is_dialled && own < peer) {
            return self.shown.counters().count(Reason::Second);
        }
        let why = format!("it has dialled this node, from {from}");
        if !self.take(peer, wire, (kind, false), why).await {
            return;
        }
        self.taken.insert(peer, now);
        if let Some(choice) = self.choices.get_mut(&peer) {
            choice.on_other();
        }
    }

    async fn on_done(&mut self, done: Done) {
        match done {
            Done::Dialled {
                peer,
                target,
                result: Ok(wire),
            } => {
                let own = self.config.node.id;
                let has_other = self.carried.get(&peer).is_some_and(|one| !one.is_ours);
                if has_other && peer < own {
                    if let Some(choice) = self.choices.get_mut(&peer) {
                        choice.on_other();
                    }
                    return self.shown.counters().count(Reason::Second);
                }
                let named = peer_of(&self.config, peer);
                if !named.is_some_and(|one| one.fallback.contains(&target)) {
                    // A configuration that was read meanwhile has it no more.
                    return self.shown.counters().count(Reason::Second);
                }
                let why = format!("no answer by UDP; over {target}");
                let is_taken = self.take(peer, wire, (target.kind, true), why).await;
                if let Some(choice) = self.choices.get_mut(&peer) {
                    match is_taken {
                        true => choice.on_connected(Instant::now(), jitter()),
                        false => choice.on_lost(Instant::now(), jitter()),
                    }
                }
            }
            Done::Dialled {
                peer,
                target,
                result: Err(error),
            } => {
                let error = cause::chain(&error);
                let name = self.name(peer);
                tracing::info!(peer = name, %target, %error, "neither UDP nor this reaches a neighbour");
                if let Some(choice) = self.choices.get_mut(&peer) {
                    choice.on_lost(Instant::now(), jitter());
                }
                if self.choices.contains_key(&peer) && !self.carried.contains_key(&peer) {
                    let why = format!("no answer by UDP, and {target} cannot be had: {error}");
                    self.shown.udp(peer, why);
                }
            }
            Done::Leaves { peer, number }
                if self.is_current(peer, number) && !self.is_leaving(peer) =>
            {
                self.free(peer, None).await;
                if let Some(one) = self.carried.get_mut(&peer) {
                    one.leaving_since = Some(Instant::now());
                    let _ended = one.asks.try_send(Ask::Bye);
                }
            }
            Done::Ended { peer, number, told } if self.is_current(peer, number) => match told {
                Told::Lost(reason, words) if !self.is_leaving(peer) => {
                    self.lose(peer, reason, &words).await;
                }
                Told::Lost(..) | Told::Left => self.on_left(peer),
            },
            Done::Leaves { .. } | Done::Ended { .. } => {}
        }
    }

    fn is_current(&self, peer: NodeId, number: u64) -> bool {
        let one = self.carried.get(&peer);
        one.is_some_and(|one| one.number == number)
    }

    fn is_leaving(&self, peer: NodeId) -> bool {
        let one = self.carried.get(&peer);
        one.is_some_and(|one| one.leaving_since.is_some())
    }

    /// Where a neighbour's relay may be, as no other's is; one that takes the place of another keeps its own.
    fn next_place(&mut self, peer: NodeId) -> Option<u16> {
        if let Some(one) = self.carried.get(&peer) {
            return Some(one.place);
        }
        let held: BTreeSet<u16> = self.carried.values().map(|one| one.place).collect();
        self.place = free_place(self.place, &held)?;
        Some(self.place)
    }

    /// Carries a neighbour from now on; whether it is.
    async fn take(
        &mut self,
        peer: NodeId,
        wire: Wire,
        (kind, is_ours): (Kind, bool),
        why: String,
    ) -> bool {
        let Some(place) = self.next_place(peer) else {
            tracing::warn!(peer = self.name(peer), "too many neighbours are carried");
            return false;
        };
        let bound = Relay::bind(place, self.config.node.listen).await;
        let relay = match bound {
            Ok(relay) => relay,
            Err(error) => {
                tracing::warn!(peer = self.name(peer), %error, "no socket on loopback to carry a neighbour by");
                return false;
            }
        };
        self.connections += 1;
        let (number, address) = (self.connections, relay.address());
        self.by.moves.carry(peer, address);
        self.lead(peer, address).await;
        let (asks, asked) = mpsc::channel(2);
        let (done, counters) = (self.done.clone(), Arc::clone(self.shown.counters()));
        let task = tokio::spawn(async move {
            let leaves = (done.clone(), || Done::Leaves { peer, number });
            let told = relay.run(wire, counters, asked, leaves).await;
            let _stopping = done.send(Done::Ended { peer, number, told }).await;
        });
        tracing::info!(peer = self.name(peer), by = kind.name(), %why, "a neighbour is carried");
        self.shown.carried(peer, kind, why, address);
        let carried = Carried {
            number,
            place,
            is_ours,
            asks,
            leaving_since: None,
            task,
        };
        self.carried.insert(peer, carried);
        true
    }

    /// Has the workers send a neighbour's packets there, and believe that it is there.
    async fn lead(&self, peer: NodeId, address: SocketAddr) {
        let lead = move |now_ns: u64, parts: &mut Parts<Service>| {
            parts.forwarder.follow(peer, address);
            parts.node.moved(now_ns, peer, address);
        };
        // With the workers, the node ends.
        let _ended = self.by.dispatch.with_all(lead).await;
    }

    /// A neighbour's packets go by UDP from now on: to `address`, or where it was before.
    async fn free(&self, peer: NodeId, address: Option<SocketAddr>) {
        let before = self.by.moves.release(peer, address);
        if let Some(address) = before.or_else(|| self.configured(peer)) {
            self.lead(peer, address).await;
        }
    }

    async fn on_reached(&mut self, peer: NodeId, address: SocketAddr) {
        let choice = self.choices.get_mut(&peer);
        if !self.carried.contains_key(&peer) || !choice.is_some_and(Choice::on_reached) {
            return;
        }
        self.free(peer, Some(address)).await;
        if let Some(one) = self.carried.get_mut(&peer) {
            one.leaving_since = Some(Instant::now());
            let _ended = one.asks.try_send(Ask::Leave);
        }
        tracing::info!(peer = self.name(peer), %address, "UDP works: a neighbour is carried no more");
    }

    /// A connection is over, and UDP was taken up before.
    fn on_left(&mut self, peer: NodeId) {
        let Some(one) = self.carried.remove(&peer) else {
            return;
        };
        if one.is_ours
            && let Some(choice) = self.choices.get_mut(&peer)
        {
            choice.on_left(Instant::now());
        }
        self.shown.udp(peer, "UDP works again".to_owned());
    }

    /// A connection was lost: UDP has its turn until there is another.
    async fn lose(&mut self, peer: NodeId, reason: Reason, words: &str) {
        self.shown.counters().count(reason);
        let is_ours = self.carried.remove(&peer).is_none_or(|one| one.is_ours);
        self.free(peer, None).await;
        tracing::info!(
            peer = self.name(peer),
            reason = reason.name(),
            error = words,
            "a neighbour's connection is over"
        );
        if is_ours && let Some(choice) = self.choices.get_mut(&peer) {
            choice.on_lost(Instant::now(), jitter());
        }
        self.shown
            .udp(peer, format!("its connection is over: {words}"));
    }
}
