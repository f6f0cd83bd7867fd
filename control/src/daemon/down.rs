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
    fs::write(file(config), names.collect::<String>())
}

/// Those that were taken down before this daemon was started.
pub(super) fn read(config: &Config) -> Down {
    let names = fs::read_to_string(file(config)).unwrap_or_default();
    let index = |name: &str| config.peers.iter().position(|peer| peer.name == name);
    let down: Down = names.lines().filter_map(index).collect();
    for index in &down {
        let peer = &config.peers[*index].name;
        tracing::info!(peer, "next hop stays down, as the operator left it");
    }
    down
}
