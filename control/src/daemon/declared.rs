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
    channel::reason::Reason,
    config::Config,
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
        keep(&folder(&self.configured().node.state), &next, signed)?;
        state.catalogue = next;
        Ok(self.follow(&mut state).await?)
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

    /// Takes in a declaration that a peer has shown; whether it is new. One that cannot be written counts all the
    /// same, for it may take a right away, and is written later.
    pub(super) fn learn_channel(&self, state: &mut State, signed: &[u8]) -> Result<bool, Reason> {
        match state.catalogue.learn(signed, unix_ns()) {
            Ok(Learned::Known) => Ok(false),
            Ok(Learned::New) => {
                state.unwritten.push(signed.to_vec());
                Ok(true)
            }
            Err(Denied::Declaration(_)) => Err(Reason::DeclarationMalformed),
            Err(Denied::Authority { .. }) => Err(Reason::DeclarationAuthority),
            Err(Denied::Old { .. }) => Err(Reason::DeclarationOld),
            Err(_) => Err(Reason::DeclarationsFull),
        }
    }

    /// Writes a declaration, if it is still the newest of its owner.
    pub(super) fn keep_channel(&self, state: &State, signed: &[u8]) -> Result<(), FileError> {
        keep(
            &folder(&self.configured().node.state),
            &state.catalogue,
            signed,
        )
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
    file::sync_folder(folder).map_err(|source| FileError::Io {
        path: folder.into(),
        operation: "sync the folder of",
        source,
    })?;
    // Names are longer than file names may be.
    let place = keyed(owner, &[name.as_str().as_bytes()]);
    let path = folder.join(format!("{}.{EXTENSION}", hex::encode(&place)));
    file::replace(&path, &file::channel_line(signed))
}
