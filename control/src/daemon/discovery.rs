//! Looks for nodes that the configuration does not name: what is heard goes to [`virga_discovery`], whom it
//! takes up become peers of this node, and what it says goes to the workers.

use super::{identity::Registry, monotonic_ns, unix_ns};
use crate::{
    config::{Admit, Config, DiscoverySection, Reach},
    discovery::{
        DiscoveryStatus, FoundStatus, Inbox, MemberStatus,
        lan::{self, LanStatus},
        lists::ListFile,
    },
    dispatch::{Dispatch, Ended, Service},
    routes::Heard,
};
use ed25519_dalek::{Signer as _, SigningKey};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle};
use virga_discovery::{
    Authority, Claim, Discovery, Found, MemberState, Notice, Now, Origin, Reason, Setup, Source,
    discovery::Configured, source::Listed,
};
use virga_ebpf::header::NodeId;
use virga_lan::Lan;
use virga_transport::worker::Parts;

/// How often sources are asked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What of a source is taken at a time.
const FOUND_MAX: usize = 64;
/// What peers say is followed for so long at a time; then it is said what comes of it.
const FOLLOWED_MAX: usize = 1_024;
/// How often the peers may change: each time, all tables are compared.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);

/// This node's word, and whom it admits.
struct Keys {
    config: Arc<Config>,
    admit: Admit,
}

impl Authority for Keys {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        let key = SigningKey::from_bytes(self.config.keys.entity.seed.expose());
        key.sign(message).to_bytes()
    }

    fn admits(&self, claim: &Claim) -> bool {
        let is_sound = !crate::config::is_low_order(&claim.node_key)
            && !crate::config::is_weak(&claim.entity_key);
        let is_named = || self.config.entity_name(&claim.entity_key).is_some();
        is_sound && (self.admit == Admit::Any || is_named())
    }
}

/// What is known. Cheap to clone.
#[derive(Clone, Default)]
pub struct Finder {
    discovery: Option<Arc<Mutex<Discovery<Keys>>>>,
    lan: Option<Arc<Mutex<Lan>>>,
}

/// All that the task has.
struct Task {
    finder: Arc<Mutex<Discovery<Keys>>>,
    admit: Admit,
    sources: Vec<Box<dyn Source>>,
    /// Until the node stops.
    lan: Option<Arc<Mutex<Lan>>>,
    inbox: Inbox,
    dispatch: Dispatch,
    registry: Registry,
    /// The file's configuration that it went by last.
    filed: Arc<Config>,
    followed: tokio::time::Instant,
    is_behind: bool,
    /// Peers become what was found, for as long as that takes: members are answered meanwhile.
    following: Option<JoinHandle<Result<(), Ended>>>,
    /// To whom this node is introduced when they are peers.
    introduced: Vec<NodeId>,
}

fn now() -> Now {
    Now {
        ns: monotonic_ns(),
        unix_s: unix_ns() / 1_000_000_000,
    }
}

/// The peers that the file has.
fn configured(config: &Config) -> BTreeMap<NodeId, Configured> {
    let peers = config.peers.iter();
    let one = |peer: &crate::config::PeerConfig| Configured {
        entities: vec![peer.entity_key],
        address: match &peer.reach {
            Reach::Adjacent { address, .. } => Some(*address),
            Reach::Via { .. } | Reach::Learned => None,
        },
    };
    peers.map(|peer| (peer.id, one(peer))).collect()
}

fn setup(config: &Config, section: &DiscoverySection) -> Result<Setup, std::io::Error> {
    let addresses = match section.advertise.is_empty() {
        true => vec![config.node.listen],
        false => section.advertise.clone(),
    };
    Ok(Setup {
        node_key: config.keys.node.public,
        entity_key: config.keys.entity.public,
        network: virga_discovery::record::network(&config.node.network),
        name: config.node.name.clone(),
        subnet: config.node.subnet,
        addresses,
        instance: crate::kept::random().map_err(std::io::Error::other)?,
        started_ms: unix_ns() / 1_000_000,
        exchanges: section.exchange,
        is_ipv4: config.node.listen.is_ipv4(),
        peers_max: section.peers_max,
        configured: configured(config),
        seed: crate::kept::random().map_err(std::io::Error::other)?,
    })
}

impl Finder {
    /// Looks for nodes as the configuration says, until the workers have ended; not at all where it does not.
    pub(super) fn run(
        inbox: Option<Inbox>,
        dispatch: &Dispatch,
        registry: &Registry,
        stopping: watch::Receiver<()>,
    ) -> Result<Self, std::io::Error> {
        let filed = registry.filed();
        let (Some(inbox), Some(section)) = (inbox, filed.discovery.clone()) else {
            return Ok(Self::default());
        };
        let keys = Keys {
            config: Arc::clone(&filed),
            admit: section.admit,
        };
        let discovery = Discovery::new(now(), setup(&filed, &section)?, keys);
        let discovery = discovery.ok_or_else(|| {
            let what =
                "what this node would say of itself is not valid: look at [discovery] advertise";
            std::io::Error::other(what)
        })?;
        let mut seeds = Listed::new(Origin::Seed);
        seeds.set(section.seeds.clone());
        let mut sources: Vec<Box<dyn Source>> = vec![Box::new(seeds)];
        if let Some(path) = &section.file {
            sources.push(Box::new(ListFile::new(path)));
        }
        let lan = match section.lan {
            true => {
                let seed = crate::kept::random().map_err(std::io::Error::other)?;
                let lan = Lan::new(discovery.own(), lan::addresses(&filed, &section), seed);
                Some(Arc::new(Mutex::new(lan)))
            }
            false => None,
        };
        let finder = Arc::new(Mutex::new(discovery));
        let task = Task {
            finder: Arc::clone(&finder),
            admit: section.admit,
            sources,
            lan: lan.clone(),
            inbox,
            dispatch: dispatch.clone(),
            registry: registry.clone(),
            filed,
            followed: tokio::time::Instant::now(),
            is_behind: false,
            following: None,
            introduced: Vec::new(),
        };
        tokio::spawn(task.run(stopping));
        Ok(Self {
            discovery: Some(finder),
            lan,
        })
    }

    /// What is known now; `config` says what members are called.
    #[must_use]
    pub fn status(&self, config: &Config) -> DiscoveryStatus {
        let Some(finder) = &self.discovery else {
            return DiscoveryStatus::default();
        };
        let lan = self.lan.as_ref().map(|lan| LanStatus::from(&*locked(lan)));
        let discovery = locked(finder);
        let nodes = discovery.known().map(|known| FoundStatus {
            name: known.name().to_owned(),
            id: known.node().to_string(),
            origin: known.origin().name().to_owned(),
            stage: known.stage().name().to_owned(),
            address: known.address().map(|address| address.to_string()),
            is_twin: known.is_torn(),
        });
        let now_ns = monotonic_ns();
        let swim = discovery.swim();
        let members = swim.members().iter().map(|(&node, member)| {
            let peer = config.peers.iter().find(|peer| peer.id == node);
            MemberStatus {
                name: peer.map_or_else(|| node.to_string(), |peer| peer.name.clone()),
                id: node.to_string(),
                state: member.state.name().to_owned(),
                since_s: now_ns.saturating_sub(member.since_ns) / 1_000_000_000,
            }
        });
        let (messages, introductions) = discovery.said();
        let refused = Reason::ALL.iter();
        DiscoveryStatus {
            is_on: true,
            nodes: nodes.collect(),
            members: members.collect(),
            slowness: swim.health(),
            refuted: swim.refuted(),
            ignored: swim.ignored(),
            messages,
            introductions,
            refused: refused
                .map(|&reason| (reason.name().to_owned(), discovery.refused(reason)))
                .collect(),
            lan: lan.unwrap_or_default(),
        }
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Task {
    async fn run(mut self, mut stopping: watch::Receiver<()>) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            let due = {
                let due_ns = locked(&self.finder).poll_timeout();
                let lan_ns = self.lan.as_ref().map(|lan| locked(lan).due_ns());
                let due_ns = due_ns.min(lan_ns.unwrap_or(u64::MAX));
                Duration::from_nanos(due_ns.saturating_sub(monotonic_ns()))
            };
            tokio::select! {
                () = self.inbox.sessions.changed() => self.hear(),
                () = self.inbox.introduced() => self.hear_strangers(),
                _ = look.tick() => self.look(),
                () = tokio::time::sleep(due) => {}
                // Nothing is ever sent: the node stops.
                _ = stopping.changed(), if self.lan.is_some() => {
                    if let Some(lan) = self.lan.take() {
                        locked(&lan).leave();
                    }
                }
            }
            if let Some(lan) = &self.lan {
                let own = locked(&self.finder).own().clone();
                locked(lan).tick(monotonic_ns(), &own);
            }
            locked(&self.finder).handle_timeout(now());
            if self.say().await.is_err() {
                return;
            }
        }
    }

    fn hear(&mut self) {
        let mut discovery = locked(&self.finder);
        for _ in 0..FOLLOWED_MAX {
            let Some((peer, heard)) = self.inbox.sessions.pop() else {
                break;
            };
            match heard {
                Heard::Began { entity, .. } => discovery.session_began(now(), peer, entity),
                Heard::Said(said) => discovery.handle(now(), peer, &said),
                Heard::Ended => discovery.session_ended(now(), peer),
            }
        }
        self.inbox.sessions.leave();
    }

    fn hear_strangers(&mut self) {
        let mut discovery = locked(&self.finder);
        for (source, words) in self.inbox.take_introduced() {
            discovery.introduced(now(), source, &words);
        }
    }

    /// Asks the sources, and goes by the file that there is now.
    fn look(&mut self) {
        let filed = self.registry.filed();
        if !Arc::ptr_eq(&filed, &self.filed) {
            self.filed = filed;
            let keys = Keys {
                config: Arc::clone(&self.filed),
                admit: self.admit,
            };
            locked(&self.finder).configure(keys, configured(&self.filed));
        }
        let found: Vec<(Origin, Vec<Found>)> = tokio::task::block_in_place(|| {
            let sources = self.sources.iter_mut();
            sources
                .map(|source| (source.origin(), source.poll(FOUND_MAX)))
                .collect()
        });
        let heard = self.lan.as_ref().map(|lan| {
            let mut lan = locked(lan);
            (lan.origin(), lan.poll(FOUND_MAX))
        });
        let mut discovery = locked(&self.finder);
        for (origin, found) in found.into_iter().chain(heard) {
            for one in found {
                discovery.found(now(), origin, one);
            }
        }
    }

    /// Has peers and words follow what was found.
    async fn say(&mut self) -> Result<(), Ended> {
        let mut introduced = Vec::new();
        if let Some(followed) = self.following.take_if(|task| task.is_finished()) {
            // One that panicked is begun again when there is something new.
            followed.await.unwrap_or(Ok(()))?;
            self.followed = tokio::time::Instant::now();
            introduced = std::mem::take(&mut self.introduced);
        }
        let (mut said, mut notices) = (Vec::new(), Vec::new());
        let (words, found) = {
            let mut discovery = locked(&self.finder);
            while let Some(one) = discovery.poll_transmit() {
                said.push(one);
            }
            while let Some(notice) = discovery.poll_notice() {
                notices.push(notice);
            }
            self.is_behind |= discovery.has_changed();
            let is_following = self.following.is_some();
            let is_due = self.is_behind && !is_following && self.followed.elapsed() >= FOLLOW_EVERY;
            let found = is_due.then(|| discovery.adopted());
            // To whom they are has to be a peer by then.
            while (is_due || !self.is_behind && !is_following)
                && let Some(node) = discovery.poll_introduction()
            {
                match is_due {
                    true => self.introduced.push(node),
                    false => introduced.push(node),
                }
            }
            (discovery.own().bytes().to_vec(), found)
        };
        for notice in notices {
            tell(&notice);
        }
        if let Some(found) = found {
            self.is_behind = false;
            let registry = self.registry.clone();
            let follow = async move { registry.set_found(found).await };
            self.following = Some(tokio::spawn(follow));
        }
        if said.is_empty() && introduced.is_empty() {
            return Ok(());
        }
        let all = Arc::new((said, introduced, words));
        let say = move |now_ns, parts: &mut Parts<Service>| {
            let (said, introduced, words) = &*all;
            let (service, node) = (&mut parts.service, &mut parts.node);
            service.say_discovery(now_ns, node, said, (introduced, words));
        };
        self.dispatch.with_all(say).await.map(drop)
    }
}

/// Logs what people have to know.
fn tell(notice: &Notice) {
    match notice {
        Notice::Twins { node, is_own } => {
            let whose = if *is_own { "this node's" } else { "a node's" };
            tracing::warn!(%node, "two nodes run with {whose} keys, and nobody has sessions with either until one of them is stopped or has keys of its own (`virga keygen`)");
        }
        Notice::Reached { node, name, origin } => {
            tracing::info!(%node, %name, found = origin.name(), "there is a session with a node that was found");
        }
        Notice::Member(change) => match change.state {
            MemberState::Alive => tracing::info!(node = %change.node, "a member lives"),
            MemberState::Suspect => {
                tracing::debug!(node = %change.node, "a member does not answer");
            }
            MemberState::Dead => tracing::warn!(node = %change.node, "a member is dead"),
        },
    }
}
