//! Which node's socket a command talks to.

use super::Failure;
use crate::{config::SOCKET_DIRECTORY, mesh::Mesh};
use std::path::{Path, PathBuf};

/// Names the node on this machine; the only one that runs here unless told.
#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// The node's socket.
    #[arg(long, value_name = "PATH", global = true, conflicts_with = "node")]
    socket: Option<PathBuf>,
    /// The node's name, when its socket is in /run/virga.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
}

impl Target {
    /// Connects to the node.
    pub(super) async fn open(&self) -> Result<Mesh, Failure> {
        Ok(Mesh::open(self.path()?).await?)
    }

    fn path(&self) -> Result<PathBuf, Failure> {
        match (&self.socket, &self.node) {
            (Some(socket), _) => Ok(socket.clone()),
            (None, Some(name)) => Ok(socket_of(name)),
            (None, None) => only_socket(Path::new(SOCKET_DIRECTORY)),
        }
    }
}

/// Where a node of that name listens unless its configuration says otherwise.
pub(super) fn socket_of(name: &str) -> PathBuf {
    Path::new(SOCKET_DIRECTORY).join(format!("{name}.sock"))
}

fn only_socket(directory: &Path) -> Result<PathBuf, Failure> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let is_socket = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "sock")
    };
    let mut sockets: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(is_socket)
        .collect();
    sockets.sort();
    match sockets.as_slice() {
        [socket] => Ok(socket.clone()),
        [] => Err(Failure::usage(format!(
            "no node has a socket in {}; start one (virga node run --config FILE), or name its \
             socket with --socket PATH",
            directory.display()
        ))),
        several => {
            let names = several.iter().filter_map(|path| path.file_stem());
            let names: Vec<_> = names.map(|name| name.to_string_lossy()).collect();
            Err(Failure::usage(format!(
                "several nodes run here; choose with --node: {}",
                names.join(", ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_socket_is_taken_and_several_must_be_chosen_from() {
        let folder = tempfile::tempdir().unwrap();
        let message = |result: Result<PathBuf, Failure>| match result {
            Err(Failure::Usage(error)) => error.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(message(only_socket(folder.path())).contains("no node has a socket"));
        assert!(message(only_socket(Path::new("/nowhere"))).contains("/nowhere"));
        std::fs::write(folder.path().join("a.sock"), "").unwrap();
        std::fs::write(folder.path().join("a.lock"), "").unwrap();
        assert_eq!(
            only_socket(folder.path()).unwrap(),
            folder.path().join("a.sock")
        );
        std::fs::write(folder.path().join("b.sock"), "").unwrap();
        assert!(message(only_socket(folder.path())).ends_with("a, b"));
    }
}
