//! Where entities are: what they sign is kept, counts at all workers and in the forwarding path, and is
//! passed on.
//!
//! An object is kept before it counts: what has moved stays moved, whatever happens to this node. Channels that
//! are declared by command ([`declared`]) go the same way.

use super::{DaemonError, declared, flood, path, unix_ns};
use crate::{
    channel::{follow::Directory, reason::Reason},
    config::Config,
    dispatch::{Dispatch, Ended, Service},
    identity::{self, Book, Learned, Present, Rejected},
    notices::{Notices, Shown},
    rights::{
        Catalogue,
        file::{self, FileError},
        identity::{Claim, IdentityError},
    },
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::MutexGuard;
use virga_ebpf::header::NodeId;
use virga_transport::worker::Parts;

/// How often it is looked whether a succession has begun, or what an old key signed has ended.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Follows entities to where they are. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    /// As the file says.
    configured: Arc<Config>,
    /// One change at a time.
    state: tokio::sync::Mutex<State>,
    /// As it is now.
    config: Mutex<Arc<Config>>,
    dispatch: Dispatch,
    path: path::Asker,
    flood: flood::Asker,
}

/// All that has been signed and counts, and what the workers were told of it last.
pub(super) struct State {
    book: Book,
    pub(super) catalogue: Catalogue,
    directory: Arc<Directory>,
}

impl State {
    /// The configuration as it is now, by what is known and the time.
    fn present(&mut self, configured: &Config) -> Present {
        let now_s = now_s();
        self.catalogue.follow(self.book.retired(now_s), now_s);
        let channels = self.catalogue.resolve().0;
        let configured = Config {
            channels,
            ..configured.clone()
        };
        self.book.present(&configured, now_s)
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
            configured: start.configured,
            state: tokio::sync::Mutex::new(start.state),
            config: Mutex::new(Arc::new(start.present.config)),
            dispatch,
            path,
            flood,
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
        for claim in claims {
            if next.learn(&self.0.configured, claim)? == Learned::New {
                new.push(claim);
            }
        }
        for claim in &new {
            file::keep_identity(&self.0.configured.node.state, claim)?;
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
    pub fn configured(&self) -> &Config {
        &self.0.configured
    }

    /// All that has been signed and counts; nothing else changes while it is held.
    pub(super) async fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().await
    }

    /// Brings workers and the forwarding path to what is known now.
    pub(super) async fn follow(&self, state: &mut State) -> Result<(), NotFollowed> {
        let present = state.present(&self.0.configured);
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
        let path = self.0.path.set_config(config, retired).await;
        let path = path.ok_or(Ended)?;
        let follow = move |now_ns, parts: &mut Parts<Service>| {
            let (service, node) = (&mut parts.service, &mut parts.node);
            service.follow(now_ns, node, &directory);
        };
        self.0.dispatch.with_all(follow).await?;
        path.map_err(NotFollowed::Path)
    }

    /// Follows what peers show, and the clock, until the workers end.
    pub(super) async fn run(self, notices: Notices) {
        let mut tick = tokio::time::interval(LOOK_AGAIN);
        let mut looked_s = now_s();
        loop {
            let done = tokio::select! {
                _ = tick.tick() => {
                    let since_s = std::mem::replace(&mut looked_s, now_s());
                    self.look_again(since_s, looked_s).await
                }
                (peer, shown) = notices.shown() => match shown {
                    Shown::Identity(signed) => self.hear(peer, &signed).await,
                    Shown::Channel(signed) => self.hear_channel(&signed).await,
                },
            };
            if done.is_err() {
                return;
            }
        }
    }

    /// A succession that has begun since counts from now on; what an old key signed may count no more.
    async fn look_again(&self, since_s: u64, now_s: u64) -> Result<(), Ended> {
        let mut state = self.0.state.lock().await;
        match state.book.next_s(since_s) {
            Some(from_s) if from_s <= now_s => self.log(self.follow(&mut state).await),
            _ => Ok(()),
        }
    }

    async fn hear(&self, peer: NodeId, signed: &[u8]) -> Result<(), Ended> {
        let announced = match Claim::parse(signed) {
            Ok(claim) => self.announce(&[claim]).await,
            Err(error) => Err(Rejected::Broken(error).into()),
        };
        match announced {
            Ok(Learned::Known) => Ok(()),
            Ok(Learned::New) => {
                tracing::info!(%peer, "a peer has told where an entity is now, or which key it has");
                Ok(())
            }
            Err(NotFollowed::Rejected(error)) => self.count(reason(&error)).await,
            other => self.log(other.map(drop)),
        }
    }

    /// Counts what became of an object of a peer.
    pub(super) async fn count(&self, reason: Reason) -> Result<(), Ended> {
        let count = move |_, parts: &mut Parts<Service>| {
            if parts.share().worker() == 0 {
                parts.service.count(reason);
            }
        };
        self.0.dispatch.with_all(count).await.map(drop)
    }

    pub(super) fn log(&self, done: Result<(), NotFollowed>) -> Result<(), Ended> {
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
