//! One daemon a node: whoever runs it holds a lock on the folder of what the node keeps, on the file of its key, and on its
//! name beside its socket. A NIC path's pins have one more ([`crate::nic::pins`]).
//!
//! The files stay. Their locks end with the process that holds them, however it ends.

use crate::{
    config::{Config, NodeSection},
    files,
};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// The lock's file in the state folder.
const FILE: &str = "lock";

/// Another daemon runs this node.
#[derive(Debug, thiserror::Error)]
#[error(
    "another daemon runs node {node}: it holds {}; stop it first, or give this node a `name`, `state`, `socket` and keys of its own", lock.display()
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
    _files: Vec<File>,
}

/// Locks what the node keeps, and its key. What cannot be locked is told of, and does without.
///
/// # Errors
/// [`Taken`].
pub(super) fn take(config: &Config) -> Result<Lock, Taken> {
    let node = &config.node;
    let (state, key) = (node.state.join(FILE), node.node_key_file.as_path());
    let made = fs::create_dir_all(&node.state).and_then(|()| made(&state));
    let mut files = Vec::from_iter(hold(node, &state, made)?);
    // Of a node that a program brings along, the key is perhaps in no file.
    if key.exists() {
        files.extend(hold(node, key, files::open(key))?);
    }
    Ok(Lock { _files: files })
}

/// Locks the node's name where its socket is; the folder is there once the socket is.
///
/// # Errors
/// [`Taken`].
pub(super) fn take_name(config: &Config) -> Result<Lock, Taken> {
    let node = &config.node;
    let path = node.socket.with_file_name(format!("{}.lock", node.name));
    let held = hold(node, &path, made(&path))?;
    Ok(Lock {
        _files: Vec::from_iter(held),
    })
}

fn made(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

fn hold(node: &NodeSection, path: &Path, opened: io::Result<File>) -> Result<Option<File>, Taken> {
    match opened.and_then(lock) {
        Ok(Some(file)) => Ok(Some(file)),
        Ok(None) => Err(Taken {
            node: node.name.clone(),
            lock: path.to_path_buf(),
        }),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error,
                "this file cannot be locked: it keeps no second daemon of this node away; where it is in the folder `state`, what is learned may be forgotten at the next start");
            Ok(None)
        }
    }
}

/// None: another has it.
fn lock(file: File) -> io::Result<Option<File>> {
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
