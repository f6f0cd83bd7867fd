//! One daemon a node: whoever runs it holds a lock on the folder of what the node keeps, on the file of its key, and on its
//! name beside its socket. A NIC path's pins have one more ([`crate::nic::pins`]).
//!
//! A node whose socket is where sockets usually are has its name for itself on this machine: those elsewhere share a lock on
//! it there, so that several of them may be called the same, and none of them as one that is there.
//!
//! The files stay. Their locks end with the process that holds them, however it ends.

use crate::{
    config::{Config, NodeSection, SOCKET_DIRECTORY},
    files,
};
use rustix::fs::FlockOperation;
use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// The lock's file in the state folder.
const FILE: &str = "lock";
/// Whoever could open a lock's file could hold it.
const MODE: u32 = 0o600;

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
    name_in(&config.node, Path::new(SOCKET_DIRECTORY))
}

/// The same, where `usual` is the folder that sockets are usually in.
fn name_in(node: &NodeSection, usual: &Path) -> Result<Lock, Taken> {
    let name = format!("{}.lock", node.name);
    let own = node.socket.with_file_name(&name);
    let mut files = Vec::from_iter(hold(node, &own, made(&own))?);
    if !own.parent().is_some_and(|folder| is_same(folder, usual)) {
        let there = usual.join(name);
        match made(&there) {
            // No node has ever been there, or whoever starts this one has no part in those.
            Err(error) if is_others(&error) => {}
            opened => files.extend(held(node, &there, opened, Share::Shared)?),
        }
    }
    Ok(Lock { _files: files })
}

/// Whether two paths lead to one folder.
fn is_same(one: &Path, other: &Path) -> bool {
    let inode = |path: &Path| fs::metadata(path).map(|folder| (folder.dev(), folder.ino()));
    matches!((inode(one), inode(other)), (Ok(one), Ok(other)) if one == other)
}

fn is_others(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
    )
}

/// A lock's file, made where it is missing, for whoever its folder belongs to.
fn made(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    // The folder's owner could have put a link there, which root is not to follow.
    let options = options.append(true).custom_flags(libc::O_NOFOLLOW);
    match options.clone().create_new(true).mode(MODE).open(path) {
        Ok(file) => {
            if let Err(error) = files::settle(path, &file) {
                tracing::warn!(path = %path.display(), %error, "this file cannot be given to the owner of its folder, whose own daemon cannot lock it then");
            }
            Ok(file)
        }
        // It takes no more than reading to lock one that is there; over NFS it takes writing.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => options
            .open(path)
            .or_else(|error| files::open(path).map_err(|_| error)),
        Err(error) => Err(error),
    }
}

/// With whom a lock may be held.
#[derive(Clone, Copy)]
enum Share {
    /// Nobody.
    Alone,
    /// Those who hold it so, too.
    Shared,
}

fn hold(node: &NodeSection, path: &Path, opened: io::Result<File>) -> Result<Option<File>, Taken> {
    held(node, path, opened, Share::Alone)
}

fn held(
    node: &NodeSection,
    path: &Path,
    opened: io::Result<File>,
    share: Share,
) -> Result<Option<File>, Taken> {
    match opened.and_then(|file| lock(file, share)) {
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
fn lock(file: File, share: Share) -> io::Result<Option<File>> {
    let operation = match share {
        Share::Alone => FlockOperation::NonBlockingLockExclusive,
        Share::Shared => FlockOperation::NonBlockingLockShared,
    };
    match rustix::fs::flock(&file, operation) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Keys, Secret};
    use std::os::unix::fs::chown;

    /// A node with its socket in `folder`.
    fn node(name: &str, folder: &Path) -> NodeSection {
        let text = format!(
            "[node]\nname = \"{name}\"\nnetwork = \"test\"\nnode_key_file = \"n\"\nentity_key_file = \"e\"\n\
             psk_file = \"p\"\nlisten = \"127.0.0.1:4783\"\nsocket = \"{}\"\n",
            folder.join("api.sock").display()
        );
        let keys = Keys {
            node: Secret::new([1; 32]).into(),
            entity: Secret::new([2; 32]).into(),
            psk: Secret::new([3; 32]),
        };
        let config = Config::from_toml(&text, Path::new("/etc/virga/node.toml"), keys);
        config.unwrap().node
    }

    #[test]
    fn a_name_in_the_usual_folder_is_one_nodes_and_those_elsewhere_may_share_another() {
        let [usual, one, other] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let folders = [&usual, &one, &other].map(tempfile::TempDir::path);
        let [usual, one, other] = folders;
        let lock = |name, folder| name_in(&node(name, folder), usual);
        let taken = |name, folder| lock(name, folder).unwrap_err().to_string();
        let there = usual.join("a.lock").display().to_string();

        let held = lock("a", usual).unwrap();
        for folder in [usual, one, other] {
            let said = taken("a", folder);
            assert!(said.contains(&format!("it holds {there};")), "{said}");
        }
        lock("b", one).unwrap();
        drop(held);
        // The other way round, too; and a folder by another path is the same one.
        let elsewhere = [lock("a", one).unwrap(), lock("a", other).unwrap()];
        assert!(taken("a", usual).contains(&there));
        let own = one.join("a.lock").display().to_string();
        assert!(taken("a", one).contains(&own));
        drop(elsewhere);
        let link = other.join("link");
        std::os::unix::fs::symlink(usual, &link).unwrap();
        let held = lock("a", &link).unwrap();
        assert!(taken("a", one).contains(&there));
        drop(held);
    }

    #[test]
    fn a_lock_is_its_folders_owners_and_a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            chown(folder.path(), Some(1), Some(1)).unwrap();
        }
        let path = folder.path().join("lock");
        drop(made(&path).unwrap());
        let file = fs::metadata(&path).unwrap();
        assert_eq!(file.mode() & 0o7777, MODE);
        if is_root {
            assert_eq!(file.uid(), 1);
        }
        // One that can be read alone is locked all the same.
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
        let first = lock(made(&path).unwrap(), Share::Alone).unwrap();
        assert!(first.is_some());
        assert!(lock(made(&path).unwrap(), Share::Shared).unwrap().is_none());

        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        made(&link).unwrap_err();
        assert!(!target.exists());
    }
}
