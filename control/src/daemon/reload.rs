//! The configuration file, read anew while the node runs: all that has changed applies, or nothing does.
//!
//! Whatever can fail is done first: the file is read and checked, what differs is held against the table of keys
//! ([`crate::config::settings`]), a new address for metrics is listened on. What the forwarding path refuses after
//! that is taken back.

use super::identity::{NotFollowed, Registry};
use crate::{
    api::Api,
    config::{
        Config, ConfigError, Replicated,
        settings::{self, Change, Effect, Setting},
    },
    dispatch::Ended,
    metrics::server::Server,
};
use serde::{Deserialize, Serialize};
use std::{io, net::SocketAddr, sync::Arc};
use tokio::{
    sync::{Mutex, mpsc, watch},
    task::block_in_place,
};

/// What a reload did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The file that was read.
    pub file: String,
    /// What it says otherwise than before, and holds now; nothing where it says the same.
    pub changes: Vec<Change>,
}

/// Why a node goes on as before.
#[derive(Debug, thiserror::Error)]
pub enum NotReloaded {
    /// The file is no valid configuration.
    #[error("nothing has changed: {0}")]
    Invalid(#[from] ConfigError),
    /// Something differs that a running node does not take up.
    #[error(
        "nothing has changed: restart the node for this to count, or take it back: {}", told(.0)
    )]
    Restart(Vec<Change>),
    /// Nothing can listen where metrics are to be had.
    #[error(
        "nothing has changed: cannot listen for metrics at {address}: {source}; give `listen` in [metrics] another address or port"
    )]
    Metrics {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The forwarding path does not take it.
    #[error("the forwarding path refuses it, and what was there before is in force again: {0}")]
    Path(String),
    /// The node is shutting down.
    #[error(transparent)]
    Ended(#[from] Ended),
}

fn told(changes: &[Change]) -> String {
    let words: Vec<String> = changes.iter().map(ToString::to_string).collect();
    words.join("; ")
}

/// Metrics and health at one address, until this is dropped.
struct Serving {
    address: SocketAddr,
    _stop: watch::Sender<()>,
}

/// What a reload replaces beside the configuration; whoever holds it is the only one.
#[derive(Default)]
pub struct Reloading(Mutex<Option<Serving>>);

impl Reloading {
    /// Has metrics answered from here on, where something listens.
    pub(super) async fn serve_metrics(api: &Arc<Api>, listening: Option<(SocketAddr, Server)>) {
        let serving = listening.map(|listening| serve(api, listening));
        *api.reloading.0.lock().await = serving;
    }
}

fn serve(api: &Arc<Api>, (address, server): (SocketAddr, Server)) -> Serving {
    let (stop, stopped) = watch::channel(());
    let api = Arc::clone(api);
    tokio::spawn(async move {
        let mut stopping = api.stopping.clone();
        tokio::select! {
            () = server.run(api, stopped) => {}
            // Nothing is ever sent: the daemon stops.
            _ = stopping.changed() => {}
        }
    });
    Serving {
        address,
        _stop: stop,
    }
}

/// Listens where the configuration has metrics answered, if it does.
///
/// # Errors
/// The address, and what the system said.
pub(super) async fn listen(
    address: Option<SocketAddr>,
) -> Result<Option<(SocketAddr, Server)>, (SocketAddr, io::Error)> {
    let Some(address) = address else {
        return Ok(None);
    };
    let server = Server::listen(address).await;
    let server = server.map_err(|source| (address, source))?;
    tracing::info!(%address, "metrics and health are to be had");
    Ok(Some((address, server)))
}

/// What the node runs by, key by key, as its file said it.
#[must_use]
pub fn running(identity: &Registry) -> Vec<Setting> {
    settings::of(&identity.filed())
}

/// Reads the node's file anew and applies it; logs what became of it.
///
/// # Errors
/// [`NotReloaded`].
pub async fn reload(api: &Arc<Api>) -> Result<Reloaded, NotReloaded> {
    let done = apply(api).await;
    match &done {
        Ok(Reloaded { file, changes }) if changes.is_empty() => {
            tracing::info!(%file, "the configuration was read anew: it says what it said before");
        }
        Ok(Reloaded { file, changes }) => {
            for change in changes {
                let (running, new) = (change.running.as_deref(), change.new.as_deref());
                tracing::info!(key = %change.key, was = running, is = new, "changed");
            }
            tracing::info!(%file, changes = changes.len(), "the configuration was read anew and holds");
        }
        Err(error) => tracing::error!(
            error = crate::cause::chain(error),
            "the configuration was not taken up, and the node goes on as before"
        ),
    }
    done
}

async fn apply(api: &Arc<Api>) -> Result<Reloaded, NotReloaded> {
    // One at a time.
    let mut serving = api.reloading.0.lock().await;
    let before = api.identity.filed();
    let mut next = block_in_place(|| Config::load(&before.path))?;
    for one in before.replicated.iter().filter(|one| one.is_by_command) {
        let is_same = |other: &Replicated| other.channel == one.channel;
        if !next.replicated.iter().any(is_same) {
            next.replicated.push(one.clone());
        }
    }
    let changes = settings::changes(&settings::of(&before), &settings::of(&next));
    let (fixed, changes): (Vec<Change>, Vec<Change>) = changes
        .into_iter()
        .partition(|change| change.effect == Effect::Restart);
    if !fixed.is_empty() {
        return Err(NotReloaded::Restart(fixed));
    }
    let file = before.path.display().to_string();
    if changes.is_empty() {
        return Ok(Reloaded { file, changes });
    }
    let is_elsewhere = next.metrics != serving.as_ref().map(|serving| serving.address);
    let listening = match is_elsewhere {
        true => listen(next.metrics).await,
        false => Ok(None),
    };
    let listening =
        listening.map_err(|(address, source)| NotReloaded::Metrics { address, source })?;
    match api.identity.reload(next).await {
        Ok(()) => {}
        Err(NotFollowed::Path(error)) => return Err(NotReloaded::Path(error)),
        Err(_) => return Err(NotReloaded::Ended(Ended)),
    }
    if is_elsewhere {
        *serving = listening.map(|listening| serve(api, listening));
    }
    Ok(Reloaded { file, changes })
}

/// Reloads whenever it is asked to: SIGHUP has come.
pub(super) async fn by_signal(api: Arc<Api>, mut asked: mpsc::Receiver<()>) {
    while asked.recv().await.is_some() {
        // It is logged, and nobody else waits for it.
        let _logged = reload(&api).await;
    }
}
