//! The Unix socket: who may open it, and what happens to one that an earlier daemon left behind.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};
use thiserror::Error;

/// The directory's mode when it is made here.
const DIRECTORY_MODE: u32 = 0o750;
/// The socket's mode: its owner and its group, nobody else.
const SOCKET_MODE: u32 = 0o660;

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another daemon answers on it.
    #[error(
        "{} is in use by a running node: stop that one first, or give this node another name or `socket`", .0.display()
    )]
    InUse(PathBuf),
    /// It is another user's, who lets nobody find out whether a daemon answers on it.
    #[error(
        "{} belongs to user {owner}, as whom another daemon was started: stop that one, and remove the file if it is still there", path.display()
    )]
    Another {
        /// The socket.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Something that is not a socket is in its place.
    #[error("{} exists and is not a socket: move it away", .0.display())]
    NotASocket(PathBuf),
    /// The configured group does not exist.
    #[error("there is no group {0:?}: create it (groupadd {0}) or change `socket_group`")]
    Group(String),
    /// The operating system refused.
    #[error("{}: cannot {operation}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// What it said.
        source: io::Error,
    },
}

/// Where a socket goes, and who may open it.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its file.
    pub path: PathBuf,
    /// The group that may open it, beside its owner.
    pub group: Option<String>,
}

/// The file of a listening socket; removed when this is dropped.
#[derive(Debug)]
pub struct Socket {
    /// Where it is.
    pub place: Place,
    /// Device and inode, by which it is told from a file that took its place. The system does not
    /// give the inode to another file while the socket is open.
    file: (u64, u64),
}

impl Socket {
    /// Whether the file is still there, and still this socket.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        identity(&self.place.path).is_ok_and(|file| file == self.file)
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Makes the socket and its directory. The socket appears under its name only with its final owner
/// and mode, so nobody else can open it in between. The listener does not block.
///
/// # Errors
/// See [`SocketError`].
pub fn listen(place: &Place) -> Result<(Socket, UnixListener), SocketError> {
    let path = place.path.as_path();
    let io = |path: &Path, operation: &'static str| {
        let path = path.to_path_buf();
        move |source| SocketError::Io {
            path,
            operation,
            source,
        }
    };
    let group = place.group.as_deref().map(group_id).transpose()?;
    if let Some(directory) = path.parent().filter(|d| !d.is_dir()) {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(DIRECTORY_MODE);
        builder.create(directory).map_err(io(
            directory,
            "create the directory of the socket (`socket` under [node] names another)",
        ))?;
        chown(directory, None, group).map_err(io(directory, "change the group of"))?;
    }
    remove_stale(path)?;
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(io(&new, "remove")(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&new).map_err(io(path, "listen on"))?;
    let settle = || {
        fs::set_permissions(&new, fs::Permissions::from_mode(SOCKET_MODE))?;
        chown(&new, None, group)?;
        listener.set_nonblocking(true)?;
        let file = identity(&new)?;
        fs::rename(&new, path)?;
        Ok(file)
    };
    match settle() {
        Ok(file) => {
            let place = place.clone();
            Ok((Socket { place, file }, listener))
        }
        Err(error) => {
            let _already_failing = fs::remove_file(&new);
            Err(io(path, "set up")(error))
        }
    }
}

/// Removes the socket of a daemon that is gone; one that answers is left alone.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |operation| {
        move |source| SocketError::Io {
            path: path.to_path_buf(),
            operation,
            source,
        }
    };
    let owner = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("inspect")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_path_buf()));
        }
        Ok(metadata) => metadata.uid(),
    };
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.to_path_buf())),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove the stale socket"))
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(SocketError::Another {
            path: path.to_path_buf(),
            owner,
        }),
        Err(error) => Err(failed("try the old socket")(error)),
    }
}

/// Looks a group up in the system's list.
fn group_id(name: &str) -> Result<u32, SocketError> {
    let missing = || SocketError::Group(name.to_owned());
    let list = fs::read_to_string("/etc/group").map_err(|source| SocketError::Io {
        path: "/etc/group".into(),
        operation: "read",
        source,
    })?;
    let mut fields = list.lines().map(|line| line.split(':'));
    let found = fields.find_map(|mut fields| {
        let matches = fields.next() == Some(name);
        matches.then(|| fields.nth(1)).flatten()
    });
    found.and_then(|id| id.parse().ok()).ok_or_else(missing)
}

impl Drop for Socket {
    fn drop(&mut self) {
        // What took its place is not this daemon's to remove.
        if self.is_in_place() {
            let _gone = fs::remove_file(&self.place.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &Path, group: Option<&str>) -> Place {
        Place {
            path: path.to_path_buf(),
            group: group.map(str::to_owned),
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_directory_and_the_socket_are_for_owner_and_group_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/a.sock");
        let socket = listen(&place(&path, Some("root"))).unwrap();
        assert_eq!(mode(path.parent().unwrap()), 0o750);
        assert_eq!(mode(&path), 0o660);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = listen(&place(&path, None)).unwrap();
        assert!(matches!(
            listen(&place(&path, None)),
            Err(SocketError::InUse(_))
        ));
        assert!(UnixStream::connect(&path).is_ok());
        drop(socket);
    }

    #[test]
    fn a_socket_knows_its_file_and_leaves_what_took_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let (first, _listener) = listen(&place(&path, None)).unwrap();
        assert!(first.is_in_place());
        fs::remove_file(&path).unwrap();
        assert!(!first.is_in_place());
        let (second, _listener) = listen(&place(&path, None)).unwrap();
        assert!(!first.is_in_place() && second.is_in_place());
        drop(first);
        assert!(second.is_in_place());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_in_its_place_and_an_unknown_group_are_errors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        fs::write(&path, "not a socket").unwrap();
        assert!(matches!(
            listen(&place(&path, None)),
            Err(SocketError::NotASocket(_))
        ));
        assert!(matches!(
            listen(&place(&path, Some("no-such-group-here"))),
            Err(SocketError::Group(_))
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "not a socket");
    }
}
