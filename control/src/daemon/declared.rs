//! Channels by command, on a running node: what programs on this machine declare, what peers sent, and what must
//! outlive a restart.
//!
//! Declarations are files, one for each owner and name, in `channels/` of the node's state folder. A declaration is
//! on disk before it holds, and holds at all workers and in the forwarding path before whoever made it is told so.

use super::{
    identity::{NotFollowed, Registry, State},
    unix_ns,
};
use crate::{
    cause,
    channel::reason::Reason,
    config::Config,
    dispatch::Ended,
    hex,
    rights::{
        Catalogue,
        catalogue::{Denied, Learned, Place, Standing},
        file::{self, FileError},
        identity::Retired,
    },
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use virga_ebpf::hash::keyed;

const EXTENSION: &str = "channel";

/// Why a channel was not declared.
#[derive(Debug, thiserror::Error)]
pub enum NotDeclared {
    /// It does not count.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// It cannot be kept, and so it does not count.
    #[error("the channel would be forgotten when the node restarts, so nothing has changed: {0}")]
    NotKept(#[from] FileError),
    /// It is kept, and not all of the node has it.
    #[error("the channel: {0}")]
    Followed(#[from] NotFollowed),
}

fn folder(state: &Path) -> PathBuf {
    state.join("channels")
}

/// The channels of the configuration, and those that were kept.
///
/// # Errors
/// [`FileError`]: one cannot be read, and without it an older one might count again.
pub(super) fn kept(config: &Config, retired: Retired) -> Result<Catalogue, FileError> {
    let authorities = config.channel_authorities.clone();
    let mut catalogue = Catalogue::new(config.channels.clone(), authorities);
    catalogue.follow(retired, unix_ns() / 1_000_000_000);
    let folder = folder(&config.node.state);
    let io_error = |source| FileError::Io {
        path: folder.clone(),
        operation: "list",
        source,
    };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(catalogue),
        Err(error) => return Err(io_error(error)),
    };
    for entry in entries {
        let path = entry.map_err(io_error)?.path();
        // What a crash left half-written has another name.
        if path.extension().is_none_or(|e| e != EXTENSION) {
            continue;
        }
        match catalogue.recall(&file::read_channel(&path)?) {
            Ok(_) => {}
            Err(Denied::Declaration(error)) => return Err(FileError::Declaration { path, error }),
            Err(denied) => tracing::warn!(
                file = %path.display(),
                "a channel that was declared before does not count now: {denied}"
            ),
        }
    }
    Ok(catalogue)
}

/// One declaration, for people.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The channel and whose it is.
    pub place: Place,
    /// As it was signed.
    pub signed: Vec<u8>,
    /// How it stands.
    pub standing: Standing,
}

impl Registry {
    /// Has a declaration count here, keeps it, and passes it on to all peers; it holds when this returns.
    ///
    /// # Errors
    /// [`NotDeclared`].
    pub async fn declare(&self, signed: &[u8]) -> Result<(), NotDeclared> {
        let mut state = self.state().await;
        let mut next = state.catalogue.clone();
        next.declare(signed, unix_ns())?;
        self.take_over(&mut state, next, signed).await
    }

    /// All declarations, and how each stands.
    pub async fn declared(&self) -> Vec<Listed> {
        let catalogue = &self.state().await.catalogue;
        let (_, mut standings) = catalogue.resolve();
        let kept = catalogue.kept().iter();
        let listed = kept.filter_map(|(place, kept)| {
            Some(Listed {
                place: place.clone(),
                signed: kept.signed.clone(),
                standing: standings.remove(place)?,
            })
        });
        listed.collect()
    }

    /// From one catalogue to the next: kept, then told to all of the node, and to the peers.
    async fn take_over(
        &self,
        state: &mut State,
        next: Catalogue,
        signed: &[u8],
    ) -> Result<(), NotDeclared> {
        keep(&folder(&self.configured().node.state), &next, signed)?;
        let before = std::mem::replace(&mut state.catalogue, next).resolve().1;
        for (place, standing) in state.catalogue.resolve().1 {
            if before.get(&place) != Some(&standing) {
                let (name, owner) = (&place.0, hex::encode(&place.1));
                tracing::info!(%name, %owner, "declared channel: {}", standing.words());
            }
        }
        Ok(self.follow(state).await?)
    }

    /// A peer has shown a declaration.
    pub(super) async fn hear_channel(&self, signed: &[u8]) -> Result<(), Ended> {
        let mut state = self.state().await;
        let mut next = state.catalogue.clone();
        let reason = match next.learn(signed, unix_ns()) {
            Ok(Learned::Known) => return Ok(()),
            Ok(Learned::New) => {
                let done = self.take_over(&mut state, next, signed).await;
                return match done {
                    Err(NotDeclared::Followed(error)) => self.log(Err(error)),
                    Err(error) => {
                        tracing::error!(
                            error = cause::chain(&error),
                            "a peer has shown a channel that is not in place"
                        );
                        Ok(())
                    }
                    Ok(()) => Ok(()),
                };
            }
            Err(Denied::Declaration(_)) => Reason::DeclarationMalformed,
            Err(Denied::Authority { .. }) => Reason::DeclarationAuthority,
            Err(Denied::Old { .. }) => Reason::DeclarationOld,
            Err(_) => Reason::DeclarationsFull,
        };
        self.count(reason).await
    }
}

fn keep(folder: &Path, catalogue: &Catalogue, signed: &[u8]) -> Result<(), FileError> {
    let mut kept = catalogue.kept().iter();
    let Some(((name, owner), _)) = kept.find(|(_, kept)| kept.signed == signed) else {
        return Ok(());
    };
    fs::create_dir_all(folder).map_err(|source| FileError::Io {
        path: folder.into(),
        operation: "make this folder",
        source,
    })?;
    // Names are longer than file names may be.
    let place = keyed(owner, &[name.as_str().as_bytes()]);
    let path = folder.join(format!("{}.{EXTENSION}", hex::encode(&place)));
    file::replace(&path, &file::channel_line(signed))
}
