//! The next hops that an operator took down, remembered beside the socket: gone with the machine's next
//! start, as the links' states are then looked at anew.

use crate::{config::Config, image::Down};
use std::{fs, io, path::PathBuf};

/// Where they are written down.
pub(super) fn file(config: &Config) -> PathBuf {
    config.node.socket.with_extension("down")
}

/// Writes them down, so that a restart or an upgrade keeps to it.
///
/// # Errors
/// When the file cannot be written or removed.
pub(super) fn write(config: &Config, down: &Down) -> io::Result<()> {
    if down.is_empty() {
        return match fs::remove_file(file(config)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    let names = down
        .iter()
        .map(|index| format!("{}\n", config.peers[*index].name));
    // A machine that loses its power keeps the old file or the new one, whole.
    let new = file(config).with_extension("down.new");
    fs::write(&new, names.collect::<String>())?;
    fs::rename(&new, file(config))
}

/// Those that were taken down before this daemon was started.
pub(super) fn read(config: &Config) -> Down {
    let path = file(config);
    let names = match fs::read_to_string(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let path = path.display();
            tracing::warn!(%path, %error, "which next hops an operator took down cannot be read: all are in use");
            String::new()
        }
        names => names.unwrap_or_default(),
    };
    let index = |name: &str| config.peers.iter().position(|peer| peer.name == name);
    let down: Down = names.lines().filter_map(index).collect();
    for index in &down {
        let peer = &config.peers[*index].name;
        tracing::info!(peer, "next hop stays down, as the operator left it");
    }
    down
}
