//! Where entities are: what they sign is kept, counts at all workers and in the forwarding path, and is
//! passed on.
//!
//! An object is kept before it counts: what has moved stays moved, whatever happens to this node.

use super::{flood, path, unix_ns};
use crate::{
    channel::{follow::Directory, reason::Reason},
    config::Config,
    dispatch::{Dispatch, Ended, Service},
    identity::{self, Book, Learned, Present, Rejected},
    notices::Notices,
    rights::{
        file::{self, FileError},
        identity::{Claim, IdentityError},
    },
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use virga_ebpf::header::NodeId;
use virga_transport::worker::Parts;

/// How often it is looked whether a succession has begun.
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
struct State {
    book: Book,
    directory: Arc<Directory>,
}

/// What was known when the node started.
pub(super) struct Start {
    configured: Arc<Config>,
    book: Book,
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
    /// [`FileError`]: one cannot be read, and without it the node might believe an entity where it is no
    /// more.
    pub(super) fn read(configured: Config) -> Result<Self, FileError> {
        let claims = file::kept_identities(&configured.node.state)?;
        let book = identity::book(&configured, claims);
        let present = book.present(&configured, now_s());
        if let Some(why) = &present.config.absence {
            tracing::warn!(%why, "this node forwards, and speaks for no entity");
        }
        Ok(Self {
            directory: Arc::new(Directory::of(&present, &book, &Directory::default())),
            configured: Arc::new(configured),
            present,
            book,
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
            state: tokio::sync::Mutex::new(State {
                book: start.book,
                directory: start.directory,
            }),
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

    /// Brings workers and the forwarding path to what the book says now.
    async fn follow(&self, state: &mut State) -> Result<(), NotFollowed> {
        let present = state.book.present(&self.0.configured, now_s());
        if let Some(why) = &present.config.absence {
            tracing::warn!(%why, "this node forwards, and speaks for no entity");
        }
        let directory = Directory::of(&present, &state.book, &state.directory);
        let directory = Arc::new(directory);
        state.directory = Arc::clone(&directory);
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
                (peer, signed) = notices.identity() => self.hear(peer, &signed).await,
            };
            if done.is_err() {
                return;
            }
        }
    }

    /// A succession that has begun since counts from now on.
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
            Err(NotFollowed::Rejected(error)) => {
                let reason = reason(&error);
                let count = move |_, parts: &mut Parts<Service>| {
                    if parts.share().worker() == 0 {
                        parts.service.count(reason);
                    }
                };
                self.0.dispatch.with_all(count).await.map(drop)
            }
            other => self.log(other.map(drop)),
        }
    }

    fn log(&self, done: Result<(), NotFollowed>) -> Result<(), Ended> {
        match done {
            Ok(()) => Ok(()),
            Err(NotFollowed::Ended(ended)) => Err(ended),
            Err(error) => {
                tracing::error!(
                    error = crate::cause::chain(&error),
                    "where an entity is now"
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
