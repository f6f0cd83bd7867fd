//! One daemon a node: whoever runs it holds a lock on the folder of what the node keeps, whatever its socket is called.

use crate::config::Config;
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// The lock's file in the state folder. It stays there: the lock ends with the process that holds it.
const FILE: &str = "lock";

/// Another daemon runs this node.
#[derive(Debug, thiserror::Error)]
#[error(
    "another daemon runs node {node}: it holds {}; stop that one first, or give this node another `name` and `state`", lock.display()
)]
pub struct Taken {
    /// The node's name.
    node: String,
    /// What is locked.
    lock: PathBuf,
}

/// Held while the daemon runs.
#[derive(Debug)]
pub(super) struct Lock {
    _file: Option<File>,
}

/// Takes the node's lock. Where the folder cannot be written, there is none, and nothing can be kept either.
///
/// # Errors
/// [`Taken`].
pub(super) fn take(config: &Config) -> Result<Lock, Taken> {
    let folder = config.node.state.as_path();
    match lock(folder) {
        Ok(Some(file)) => Ok(Lock { _file: Some(file) }),
        Ok(None) => Err(Taken {
            node: config.node.name.clone(),
            lock: folder.join(FILE),
        }),
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error,
                "the folder of what the node keeps cannot be locked: nothing keeps a second daemon of this node away, and what is learned may be forgotten at the next start");
            Ok(Lock { _file: None })
        }
    }
}

/// None: another has it.
fn lock(folder: &Path) -> io::Result<Option<File>> {
    fs::create_dir_all(folder)?;
    let mut options = File::options();
    let file = options.create(true).append(true).open(folder.join(FILE))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
