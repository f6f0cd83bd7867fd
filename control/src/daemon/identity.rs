//! Where entities are: what they sign is kept, counts at all workers and in the forwarding path, and is
//! passed on.
//!
//! An object is kept before it counts: what has moved stays moved, whatever happens to this node. Channels that are
//! declared by command ([`declared`]) go the same way; one that a peer shows counts first, and is written as soon as
//! it can be, for it may take a right away.

mod punched;

use super::{DaemonError, declared, flood, path, unix_ns};
use crate::{
    channel::{follow::Directory, reason::Reason},
    config::{Config, PeerConfig, Reach, scopes},
    dispatch::{Dispatch, Ended, Service},
    hex,
    identity::{self, Book, Learned, Present, Rejected},
    notices::{Notices, Shown},
    rights::{
        Catalogue,
        catalogue::{Place, Standing},
        file::{self, FileError},
        identity::{Claim, IdentityError},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::task::block_in_place;
use virga_discovery::Adopted;
use virga_ebpf::header::NodeId;
use virga_transport::worker::Parts;

/// What of one peer's is looked at before workers and the forwarding path follow.
const TURN: usize = 256;
/// How often it is looked whether a succession has begun, or what an old key signed has ended.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Follows entities to where they are. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    /// As the file says.
    filed: Mutex<Arc<Config>>,
    /// The same with the nodes that were found.
    configured: Mutex<Arc<Config>>,
    /// One change at a time.
    state: tokio::sync::Mutex<State>,
    /// As it is now.
    config: Mutex<Arc<Config>>,
    dispatch: Dispatch,
    path: path::Asker,
    flood: flood::Asker,
    /// How many declarations count and are not on disk.
    unwritten: AtomicUsize,
    found: Mutex<Vec<Adopted>>,
    /// Where those are that are sent to straight through NATs.
    punched: Mutex<BTreeMap<NodeId, SocketAddr>>,
}

/// All that has been signed and counts, and what the workers were told of it last.
pub(super) struct State {
    book: Book,
    pub(super) catalogue: Catalogue,
    directory: Arc<Directory>,
    /// How the declared channels stood last.
    standings: BTreeMap<Place, Standing>,
    /// The second by which workers and the forwarding path go: what begins or ends later is not in there.
    looked_s: u64,
    /// Declarations that count, and are not on disk yet.
    pub(super) unwritten: Vec<Vec<u8>>,
}

impl State {
    /// The configuration as it is now, by what is known and the time.
    fn present(&mut self, configured: &Config) -> Present {
        let now_s = now_s();
        self.looked_s = now_s;
        self.catalogue.follow(self.book.retired(now_s), now_s);
        let (channels, standings) = self.catalogue.resolve();
        for (place, standing) in &standings {
            if self.standings.get(place) != Some(standing) {
                let (name, owner) = (&place.0, hex::encode(&place.1));
                tracing::info!(%name, %owner, "declared channel: {}", standing.words());
            }
        }
        self.standings = standings;
        let filed = configured.scopes.iter().cloned();
        let all = filed.chain(self.catalogue.scopes()).collect();
        let configured = Config {
            channels,
            scopes: scopes::sorted(all),
            ..configured.clone()
        };
        self.book.present(&configured, now_s)
    }

    /// Whether a succession has begun since the workers were told, or what an old key signed has ended; or the
    /// clock was set back.
    fn is_due(&self, now_s: u64) -> bool {
        let next_s = self.book.next_s(self.looked_s);
        now_s < self.looked_s || next_s.is_some_and(|next_s| next_s <= now_s)
    }

    /// What the workers have to be told.
    fn directory(&mut self, present: &Present) -> Arc<Directory> {
        let known = (&self.book, &self.catalogue);
        self.directory = Arc::new(Directory::of(present, known, &self.directory));
        Arc::clone(&self.directory)
    }
}

/// What was known when the node started.
pub(super) struct Start {
    configured: Arc<Config>,
    state: State,
    pub(super) present: Present,
    pub(super) directory: Arc<Directory>,
}

/// Why a placement or succession that was handed in does not count.
#[derive(Debug, thiserror::Error)]
pub enum NotFollowed {
    /// It counts for nothing.
    #[error("it does not count here: {0}")]
    Rejected(#[from] Rejected),
    /// It could not be kept, so it does not count.
    #[error("it does not count, because it cannot be kept: {0}")]
    NotKept(#[from] FileError),
    /// It counts, but the tables do not follow yet.
    #[error(
        "it counts and is kept, but the forwarding path does not follow yet and tries again: {0}"
    )]
    Path(String),
    /// The node is shutting down.
    #[error(transparent)]
    Ended(#[from] Ended),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_s() -> u64 {
    unix_ns() / 1_000_000_000
}

impl Start {
    /// Reads what was kept.
    ///
    /// # Errors
    /// [`DaemonError`]: something cannot be read, and without it the node might believe an entity where it is no
    /// more, or an older declaration of a channel.
    pub(super) fn read(configured: Config) -> Result<Self, DaemonError> {
        let claims = file::kept_identities(&configured.node.state);
        let book = identity::book(&configured, claims.map_err(DaemonError::Identities)?);
        let retired = book.retired(now_s());
        let catalogue = declared::kept(&configured, retired).map_err(DaemonError::Declared)?;
        let mut state = State {
            book,
            catalogue,
            directory: Arc::default(),
            standings: BTreeMap::new(),
            looked_s: 0,
            unwritten: Vec::new(),
        };
        let present = state.present(&configured);
        if let Some(why) = &present.config.absence {
            tracing::warn!(%why, "this node forwards, and speaks for no entity");
        }
        Ok(Self {
            directory: state.directory(&present),
            configured: Arc::new(configured),
            present,
            state,
        })
    }
}

impl Registry {
    pub(super) fn new(
        start: Start,
        dispatch: Dispatch,
        (path, flood): (path::Asker, flood::Asker),
    ) -> Self {
        Self(Arc::new(Shared {
            filed: Mutex::new(Arc::clone(&start.configured)),
            configured: Mutex::new(start.configured),
            state: tokio::sync::Mutex::new(start.state),
            config: Mutex::new(Arc::new(start.present.config)),
            dispatch,
            path,
            flood,
            unwritten: AtomicUsize::new(0),
            found: Mutex::default(),
            punched: Mutex::default(),
        }))
    }

    /// The configuration as it is now.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        let config = self.0.config.lock();
        Arc::clone(&config.unwrap_or_else(PoisonError::into_inner))
    }

    /// Has objects count here, keeps them, and passes them on to all peers; all of them, or none where one
    /// is rejected.
    ///
    /// # Errors
    /// [`NotFollowed`].
    pub async fn announce(&self, claims: &[Claim]) -> Result<Learned, NotFollowed> {
        let mut state = self.0.state.lock().await;
        let mut next = state.book.clone();
        let mut new = Vec::new();
        let configured = self.configured();
        for claim in claims {
            if next.learn(&configured, claim)? == Learned::New {
                new.push(claim);
            }
        }
        for claim in &new {
            file::keep_identity(&configured.node.state, claim)?;
        }
        if new.is_empty() {
            return Ok(Learned::Known);
        }
        state.book = next;
        self.follow(&mut state).await?;
        Ok(Learned::New)
    }

    /// As the file says.
    #[must_use]
    pub fn filed(&self) -> Arc<Config> {
        Arc::clone(&locked(&self.0.filed))
    }

    /// The same with the nodes that were found.
    #[must_use]
    pub fn configured(&self) -> Arc<Config> {
        Arc::clone(&locked(&self.0.configured))
    }

    /// All that has been signed and counts; nothing else changes while it is held.
    pub(super) async fn state(&self) -> tokio::sync::MutexGuard<'_, State> {
        self.0.state.lock().await
    }

    /// Goes by another configuration file from now on; where the forwarding path does not take it, by the one before.
    /// Sessions with peers that are gone from it, or are others by it, end.
    pub(super) async fn reload(&self, next: Config) -> Result<(), NotFollowed> {
        let mut state = self.0.state.lock().await;
        let before = self.configured();
        let filed = Arc::new(next);
        let next = self.with_all_found(&filed);
        let others = others(&self.with_found(&self.filed()), &self.with_found(&filed));
        let followed = self.change(&mut state, &next, &others).await;
        if let Err(NotFollowed::Path(_)) = &followed {
            // It is logged; the path tries again by itself.
            let _logged = self.log(self.change(&mut state, &before, &others).await);
        } else {
            *locked(&self.0.filed) = filed;
        }
        self.ask_all_to_show().await?;
        followed
    }

    /// Has these nodes, which were found, as peers beside those of the file from now on.
    pub(super) async fn set_found(&self, found: Vec<Adopted>) -> Result<(), Ended> {
        let mut state = self.0.state.lock().await;
        let before = self.configured();
        let located = self.with_found(&self.filed());
        *locked(&self.0.found) = before.peers_first(found);
        let next = self.with_all_found(&self.filed());
        if before.peers == next.peers {
            return Ok(());
        }
        let others = others(&located, &self.with_found(&self.filed()));
        self.log(self.change(&mut state, &next, &others).await)
    }

    async fn change(
        &self,
        state: &mut State,
        to: &Arc<Config>,
        others: &BTreeSet<String>,
    ) -> Result<(), NotFollowed> {
        let claims = state.book.claims().into_iter().cloned().collect();
        state.book = identity::book(to, claims);
        let authorities = to.channel_authorities.clone();
        state.catalogue.configure(to.channels.clone(), authorities);
        *locked(&self.0.configured) = Arc::clone(to);
        self.follow_anew(state, others).await
    }

    /// What was refused before, for want of a name or an authority, may count now.
    async fn ask_all_to_show(&self) -> Result<(), Ended> {
        let ask = |now_ns, parts: &mut Parts<Service>| {
            let (service, node) = (&mut parts.service, &mut parts.node);
            service.ask_all_to_show(now_ns, node);
        };
        self.0.dispatch.with_all(ask).await.map(drop)
    }

    /// Brings workers and the forwarding path to what is known now.
    pub(super) async fn follow(&self, state: &mut State) -> Result<(), NotFollowed> {
        self.follow_anew(state, &BTreeSet::new()).await
    }

    /// The same; of peers of these names nothing counts that was learned before, and their sessions end.
    async fn follow_anew(
        &self,
        state: &mut State,
        others: &BTreeSet<String>,
    ) -> Result<(), NotFollowed> {
        let before = self.config();
        let present = state.present(&self.configured());
        let both = before.peers.iter().chain(&present.config.peers);
        let ended = both.filter(|peer| others.contains(&peer.name));
        let ended: Arc<BTreeSet<NodeId>> = Arc::new(ended.map(|peer| peer.id).collect());
        state.directory = Arc::new(state.directory.without(&ended));
        if !ended.is_empty() {
            // By the routes that there are: the peers hear of it.
            let ended = Arc::clone(&ended);
            let leave = move |now_ns, parts: &mut Parts<Service>| {
                let (service, node) = (&mut parts.service, &mut parts.node);
                service.leave(now_ns, node, &ended);
            };
            self.0.dispatch.with_all(leave).await?;
        }
        if let Some(why) = &present.config.absence {
            tracing::warn!(%why, "this node forwards, and speaks for no entity");
        }
        let directory = state.directory(&present);
        self.0.dispatch.set_channels(&present.config.channels);
        self.0.flood.follow(&present).await?;
        let config = Arc::new(present.config);
        let shown = self.0.config.lock();
        *shown.unwrap_or_else(PoisonError::into_inner) = Arc::clone(&config);
        // New routes first: workers greet whoever has come.
        let retired = present.retired;
        let anew = ended.as_ref().clone();
        let path = self.0.path.set_config(config, retired, anew).await;
        let path = path.ok_or(Ended)?;
        let follow = move |now_ns, parts: &mut Parts<Service>| {
            let (service, node) = (&mut parts.service, &mut parts.node);
            // A peer may have begun another session meanwhile.
            service.leave(now_ns, node, &ended);
            service.follow(now_ns, node, &directory);
        };
        self.0.dispatch.with_all(follow).await?;
        path.map_err(NotFollowed::Path)
    }

    /// Follows what peers show, and the clock, until the workers end.
    pub(super) async fn run(self, notices: Notices) {
        let mut tick = tokio::time::interval(LOOK_AGAIN);
        loop {
            let done = tokio::select! {
                _ = tick.tick() => self.look_again(&notices).await,
                () = notices.shown() => self.hear(notices.take_shown(TURN)).await,
            };
            if done.is_err() {
                return;
            }
        }
    }

    /// A succession that has begun since counts from now on; what an old key signed may count no more. What was
    /// not written is tried again, and what found no room is asked for.
    async fn look_again(&self, notices: &Notices) -> Result<(), Ended> {
        let mut state = self.0.state.lock().await;
        if state.is_due(now_s()) {
            self.log(self.follow(&mut state).await)?;
        }
        block_in_place(|| self.write(&mut state));
        drop(state);
        let behind = notices.behind();
        if behind.is_empty() {
            return Ok(());
        }
        let ask = move |now_ns, parts: &mut Parts<Service>| {
            let (service, node) = (&mut parts.service, &mut parts.node);
            service.ask_to_show(now_ns, node, &behind);
        };
        self.0.dispatch.with_all(ask).await.map(drop)
    }

    /// Takes in what peers have shown: all of it, then the node follows once.
    async fn hear(&self, shown: Vec<(NodeId, Shown)>) -> Result<(), Ended> {
        let mut state = self.0.state.lock().await;
        let (mut is_new, mut refused) = (false, BTreeMap::<Reason, u64>::new());
        for (peer, shown) in shown {
            let learned = match &shown {
                Shown::Identity(signed) => self.learn_identity(&mut state, peer, signed),
                Shown::Channel(signed) => self.learn_channel(&mut state, signed),
            };
            match learned {
                Ok(learned) => is_new |= learned,
                Err(reason) => *refused.entry(reason).or_default() += 1,
            }
        }
        if is_new {
            block_in_place(|| self.write(&mut state));
            self.log(self.follow(&mut state).await)?;
        }
        drop(state);
        match refused.is_empty() {
            true => Ok(()),
            false => self.count(refused).await,
        }
    }

    /// Takes in a placement or succession that a peer has shown; whether it is new.
    fn learn_identity(
        &self,
        state: &mut State,
        peer: NodeId,
        signed: &[u8],
    ) -> Result<bool, Reason> {
        let claim = Claim::parse(signed).map_err(|error| reason(&Rejected::Broken(error)))?;
        let mut next = state.book.clone();
        match next.learn(&self.configured(), &claim) {
            Ok(Learned::Known) => return Ok(false),
            Ok(Learned::New) => {}
            Err(error) => return Err(reason(&error)),
        }
        let state_folder = self.configured().node.state.clone();
        if let Err(error) = block_in_place(|| file::keep_identity(&state_folder, &claim)) {
            tracing::error!(
                error = crate::cause::chain(&error),
                "where an entity is now, or which key it has, does not count, because it cannot be kept"
            );
            return Ok(false);
        }
        tracing::info!(%peer, "a peer has told where an entity is now, or which key it has");
        state.book = next;
        Ok(true)
    }

    /// Writes declarations that count already: one may take a right away, so that it counts whether or not it can be kept.
    fn write(&self, state: &mut State) {
        let before = self.unwritten();
        let due = std::mem::take(&mut state.unwritten);
        let mut failed = None;
        for signed in due {
            if let Err(error) = self.keep_channel(state, &signed) {
                state.unwritten.push(signed);
                failed = Some(error);
            }
        }
        let now = state.unwritten.len();
        self.0.unwritten.store(now, Ordering::Relaxed);
        match failed {
            Some(error) if before == 0 => tracing::error!(
                error = crate::cause::chain(&error),
                declarations = now,
                "channels that peers have shown count, and would be forgotten by a restart; writing it is tried again"
            ),
            None if before > 0 => tracing::info!("channels that peers have shown are written now"),
            _ => {}
        }
    }

    /// Peers' declarations that count, and that a restart would forget: they could not be written.
    #[must_use]
    pub fn unwritten(&self) -> usize {
        self.0.unwritten.load(Ordering::Relaxed)
    }

    /// Counts what became of objects of peers.
    async fn count(&self, refused: BTreeMap<Reason, u64>) -> Result<(), Ended> {
        let count = move |_, parts: &mut Parts<Service>| {
            if parts.share().worker() == 0 {
                for (&reason, &count) in &refused {
                    parts.service.count(reason, count);
                }
            }
        };
        self.0.dispatch.with_all(count).await.map(drop)
    }

    fn log(&self, done: Result<(), NotFollowed>) -> Result<(), Ended> {
        match done {
            Ok(()) => Ok(()),
            Err(NotFollowed::Ended(ended)) => Err(ended),
            Err(error) => {
                tracing::error!(
                    error = crate::cause::chain(&error),
                    "what was signed about entities and channels"
                );
                Ok(())
            }
        }
    }
}

/// Names of peers that only one of two configurations has, or that are others by the other one: a session with
/// them begins anew. Ways through NATs come and go without that: the configurations are those without them.
fn others(before: &Config, now: &Config) -> BTreeSet<String> {
    let is_same = |peer: &PeerConfig| {
        let (Some(one), Some(other)) = (before.peer(&peer.name), now.peer(&peer.name)) else {
            return false;
        };
        let reach = match (&one.reach, &other.reach) {
            (Reach::Adjacent { address, .. }, Reach::Adjacent { address: at, .. }) => address == at,
            (Reach::Via { .. }, Reach::Via { .. }) | (Reach::Learned, Reach::Learned) => true,
            _ => false,
        };
        let keys = |peer: &PeerConfig| (peer.node_key, peer.entity_key, peer.subnet);
        reach
            && keys(one) == keys(other)
            && before.link_tags(one) == now.link_tags(other)
            && before.handshake_with(one) == now.handshake_with(other)
    };
    let peers = before.peers.iter().chain(&now.peers);
    let others = peers.filter(|peer| !is_same(peer));
    others.map(|peer| peer.name.clone()).collect()
}

fn reason(rejected: &Rejected) -> Reason {
    match rejected {
        Rejected::Broken(IdentityError::Same(_)) | Rejected::Conflict(_) => {
            Reason::IdentityConflict
        }
        Rejected::Broken(_) | Rejected::NodeKey => Reason::IdentityBroken,
        Rejected::Unknown(_) => Reason::IdentityUnknown,
        Rejected::Old { .. } => Reason::IdentityOld,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        keys::{EntityKey, Keys, Secret},
        rights::identity::Succession,
    };
    use std::path::Path;

    fn entity(number: u8) -> EntityKey {
        Secret::new([number; 32]).into()
    }

    #[test]
    fn what_begins_while_a_node_starts_is_due_and_so_is_what_a_clock_that_is_set_back_undoes() {
        let text = format!(
            "[node]\nname = \"n\"\nnetwork = \"test\"\nnode_key_file = \"n\"\nentity_key_file = \"e\"\n\
             psk_file = \"p\"\nlisten = \"10.0.0.1:4783\"\n[[peers]]\nname = \"old\"\nentity_key = \"{}\"\n",
            hex::encode(&entity(2).public)
        );
        let keys = Keys {
            node: Secret::new([5; 32]).into(),
            entity: entity(1),
            psk: Secret::new([9; 32]),
        };
        let config = Config::from_toml(&text, Path::new("/nowhere/n.toml"), keys).unwrap();
        let starts_s = now_s();
        let succession = Succession {
            old: entity(2).public,
            new: entity(3).public,
            from_s: starts_s + 100,
            honoured_until_s: starts_s + 200,
        };
        let mut book = Book::default();
        let claim = succession.sign(&entity(2), &entity(3));
        book.learn(&config, &claim).unwrap();
        let mut state = State {
            book,
            catalogue: Catalogue::new(Vec::new(), Vec::new()),
            directory: Arc::default(),
            standings: BTreeMap::new(),
            looked_s: 0,
            unwritten: Vec::new(),
        };
        // The workers are given this; it may be long until they run.
        let _present = state.present(&config);
        assert!(!state.is_due(starts_s + 99));
        assert!(state.is_due(starts_s + 100) && state.is_due(starts_s + 150));
        state.looked_s = starts_s + 150;
        assert!(!state.is_due(starts_s + 160));
        assert!(state.is_due(starts_s + 50));
    }
}
