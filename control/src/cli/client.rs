//! What `pub`, `sub`, `status` and `node link` share: finding the node's socket, and talking to it.

use super::counted;
use crate::{
    config::{SOCKET_DIRECTORY, valid_name},
    mesh::{Mesh, MeshError},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Which node on this machine.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Target {
    /// The node's socket; needed when several nodes run here, or one with a socket elsewhere.
    #[arg(long, value_name = "PATH", conflicts_with = "node")]
    pub(super) socket: Option<PathBuf>,
    /// The node's name, in place of its socket.
    #[arg(long, value_name = "NAME", value_parser = valid_name)]
    pub(super) node: Option<String>,
}

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// No node's socket is in its usual place.
    #[error(
        "no node runs on this machine (there is no socket in {SOCKET_DIRECTORY}): start one with `virga node run`, or say --socket PATH"
    )]
    NoNode,
    /// More than one is.
    #[error("several nodes run on this machine ({}): choose one with --node NAME", .0.join(", "))]
    SeveralNodes(Vec<String>),
    /// The node's answer.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// Reading or writing here failed.
    #[error("cannot {operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Not as many events came as were asked for.
    #[error("{arrived} of {wanted} events arrived in {seconds:.1} s")]
    Timeout {
        /// How many came.
        arrived: u64,
        /// How many were asked for.
        wanted: u64,
        /// How long it took.
        seconds: f64,
    },
    /// The node took the question and gave no answer.
    #[error(
        "the node has not answered for {seconds} s: it is stopped or stuck; look at its log, or restart it"
    )]
    Silent {
        /// How long it was waited.
        seconds: u64,
    },
    /// The node stopped.
    #[error("the node stopped after {arrived} events")]
    Stopped {
        /// How many came before.
        arrived: u64,
    },
    /// Too few subscribers.
    #[error(
        "nothing was published: after {seconds} s {channel} has {found} of the {wanted} subscribers asked for; `virga status` shows what this node knows of the channel"
    )]
    Subscribers {
        /// The channel.
        channel: String,
        /// How many there are.
        found: usize,
        /// How many were asked for.
        wanted: usize,
        /// How long it was waited.
        seconds: u64,
    },
    /// The node's answer came before the end of the events, or none came.
    #[error("{source} ({handed} had been handed to the node by then)", handed = counted(*.handed, "event"))]
    Interrupted {
        /// Events handed to the node.
        handed: u64,
        /// The node's words.
        source: MeshError,
    },
    /// Some events were too large.
    #[error(
        "not published: {}, larger than the {event_bytes_max} bytes that the channel carries", counted(*.refused, "event")
    )]
    Refused {
        /// How many.
        refused: u64,
        /// Bytes of the largest that it carries.
        event_bytes_max: usize,
    },
}

/// An error of the operating system, with what was tried.
pub(super) fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> ClientError {
    move |source| ClientError::Io { operation, source }
}

impl Target {
    /// The socket that is meant.
    ///
    /// # Errors
    /// When it was not said, and there is none or more than one.
    fn socket(&self) -> Result<PathBuf, ClientError> {
        if let Some(path) = &self.socket {
            return Ok(path.clone());
        }
        let directory = Path::new(SOCKET_DIRECTORY);
        match &self.node {
            Some(name) => Ok(directory.join(format!("{name}.sock"))),
            None => the_only_one(directory),
        }
    }

    /// Opens the node's socket.
    ///
    /// # Errors
    /// When nobody answers there.
    pub(super) async fn open(&self) -> Result<Mesh, ClientError> {
        Ok(Mesh::open(self.socket()?).await?)
    }
}

fn the_only_one(directory: &Path) -> Result<PathBuf, ClientError> {
    let entries = fs::read_dir(directory).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ClientError::NoNode,
        _ => failed("list the nodes' sockets in /run/virga")(error),
    })?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut sockets: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|e| e == "sock"))
        .collect();
    match (sockets.pop(), sockets.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(ClientError::NoNode),
        (Some(last), false) => {
            sockets.push(last);
            let stems = sockets.iter().filter_map(|path| path.file_stem());
            let mut names: Vec<String> = stems.map(|n| n.to_string_lossy().into_owned()).collect();
            names.sort();
            Err(ClientError::SeveralNodes(names))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_socket_needs_no_name_and_two_do() {
        let directory = tempfile::tempdir().unwrap();
        let only = |directory: &Path| the_only_one(directory).map_err(|e| e.to_string());
        assert!(only(directory.path()).unwrap_err().starts_with("no node"));
        assert!(
            only(&directory.path().join("none"))
                .unwrap_err()
                .starts_with("no node")
        );
        let first = directory.path().join("b.sock");
        fs::write(&first, "").unwrap();
        fs::write(directory.path().join("b.new"), "").unwrap();
        assert_eq!(only(directory.path()), Ok(first));
        fs::write(directory.path().join("a.sock"), "").unwrap();
        assert!(only(directory.path()).unwrap_err().contains("(a, b)"));
    }
}
