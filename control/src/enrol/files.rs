//! The files of a new node, and the blocks that make a peer known in a file that is there.

use super::exchange::ByEach;
use crate::{
    config::{Config, ConfigError},
    hex,
    keys::{self, Existing, KeyError, KeyKind, Keys},
};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown},
    path::{Path, PathBuf},
};

/// Name of the configuration in a node's folder.
pub const NODE_FILE: &str = "node.toml";
/// It holds no secret.
const NODE_FILE_MODE: u32 = 0o644;

/// Why files are not there, or not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// There is a node already.
    #[error(
        "{} exists already: a node is set up in this folder, and it is kept; --dir names another folder", path.display()
    )]
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// A key file.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// What would stand in the configuration breaks its rules.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The operating system refused.
    #[error("{}: cannot {operation}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// What it said.
        source: io::Error,
    },
}

fn failed(path: &Path, operation: &'static str) -> impl FnOnce(io::Error) -> FilesError {
    let path = path.to_path_buf();
    move |source| FilesError::Io {
        path,
        operation,
        source,
    }
}

/// What a new node's file says of itself.
#[derive(Clone, Debug)]
pub struct NodeFile<'a> {
    /// Its name.
    pub name: &'a str,
    /// The network's id.
    pub network: &'a str,
    /// Which generation of the network's PSK it has.
    pub psk_generation: u16,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its subnet, when that is not the root.
    pub subnet: Option<&'a str>,
    /// Where its API listens, when that is not the usual place.
    pub socket: Option<&'a Path>,
    /// Its state folder, when that is not the usual one.
    pub state: Option<&'a Path>,
    /// Interfaces that get the XDP program.
    pub interfaces: &'a [String],
    /// Whether neighbours tell each other who leads where.
    pub routing: Option<ByEach>,
}

/// A text as TOML has it: what JSON escapes, it takes.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl NodeFile<'_> {
    /// The file's text, up to the peers.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "# A Virga node. `virga check-config FILE` checks this file; every key there is: control/example.toml in\n\
             # Virga's source, /usr/share/doc/virga/example.toml where the package is installed.\n\n\
             [node]\nname = {}\nnetwork = {}\n",
            quoted(self.name),
            quoted(self.network)
        );
        for (key, kind) in [
            ("node_key_file", KeyKind::Node),
            ("entity_key_file", KeyKind::Entity),
            ("psk_file", KeyKind::Psk),
        ] {
            text += &format!("{key} = \"{}\"\n", kind.file_name());
        }
        if self.psk_generation != 0 {
            text += &format!("psk_generation = {}\n", self.psk_generation);
        }
        text += &format!("listen = \"{}\"\n", self.listen);
        text += "# A worker for each physical core, pinned to it.\nworkers = \"auto\"\n";
        if let Some(subnet) = self.subnet {
            text += &format!("subnet = {}\n", quoted(subnet));
        }
        for (key, path) in [("socket", self.socket), ("state", self.state)] {
            if let Some(path) = path {
                text += &format!("{key} = {}\n", quoted(&path.to_string_lossy()));
            }
        }
        let interfaces: Vec<String> = self.interfaces.iter().map(|name| quoted(name)).collect();
        text += &format!(
            "\n# Interfaces whose transit packets are forwarded in the NIC's driver.\n\
             [forwarding]\nmode = \"auto\"\ninterfaces = [{}]\n",
            interfaces.join(", ")
        );
        if let Some(routing) = self.routing {
            let by_subnet = routing == ByEach::Subnet;
            text += &format!("\n[routing]\nenabled = true\nby_subnet = {by_subnet}\n");
        }
        text
    }
}

/// The other end of an invitation.
#[derive(Clone, Debug)]
pub struct Other<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its node key.
    pub node_key: [u8; 32],
    /// Its entity's key.
    pub entity_key: [u8; 32],
    /// Where it is reached.
    pub address: SocketAddr,
    /// Its subnet, when that is not the root.
    pub subnet: Option<&'a str>,
}

/// The channel that a new node and the one that invited it may both use at once.
#[must_use]
pub fn channel(joiner: &str) -> String {
    format!("hello/{joiner}")
}

impl Other<'_> {
    /// What makes it known: its block, and the channel of the two, which has the joiner's name.
    #[must_use]
    pub fn blocks(&self, own: &str, joiner: &str) -> String {
        let subnet = self.subnet.map_or_else(String::new, |subnet| {
            format!("subnet = {}\n", quoted(subnet))
        });
        let [channel, own, name] = [&channel(joiner), own, self.name].map(quoted);
        format!(
            "\n[[peers]]\nname = {name}\nnode_key = \"{}\"\nentity_key = \"{}\"\naddress = \"{}\"\n{subnet}\n\
             [[channels]]\nname = {channel}\npublish = [{own}, {name}]\nsubscribe = [{own}, {name}]\n",
            hex::encode(&self.node_key),
            hex::encode(&self.entity_key),
            self.address,
        )
    }
}

/// The files of a new node, while it is not certain that it will be one: dropped before
/// [`keep`](Self::keep), they are gone again.
#[derive(Debug)]
pub struct NewNode {
    folder: PathBuf,
    written: Vec<PathBuf>,
}

impl NewNode {
    /// Looks whether `folder` is free of a node.
    ///
    /// # Errors
    /// [`FilesError::Exists`]
    pub fn begin(folder: &Path) -> Result<Self, FilesError> {
        let keys = [KeyKind::Node, KeyKind::Entity, KeyKind::Psk].map(KeyKind::file_name);
        for name in keys.into_iter().chain([NODE_FILE]) {
            let path = folder.join(name);
            if path.symlink_metadata().is_ok() {
                return Err(FilesError::Exists { path });
            }
        }
        Ok(Self {
            folder: folder.into(),
            written: Vec::new(),
        })
    }

    /// Where the configuration is.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.join(NODE_FILE)
    }

    /// Writes one key's file.
    ///
    /// # Errors
    /// [`FilesError::Key`]
    pub fn write_key(&mut self, kind: KeyKind, secret: &keys::Secret) -> Result<(), FilesError> {
        let path = self.folder.join(kind.file_name());
        keys::write(kind, &path, secret, Existing::Keep)?;
        self.written.push(path);
        Ok(())
    }

    /// Writes the configuration, when it is one.
    ///
    /// # Errors
    /// [`FilesError::Config`] where it breaks a rule, [`FilesError::Io`].
    pub fn write_config(&mut self, text: &str, keys: Keys) -> Result<Config, FilesError> {
        let path = self.config();
        let config = Config::from_toml(text, &path, keys)?;
        write_new(&path, text, NODE_FILE_MODE).map_err(failed(&path, "create"))?;
        self.written.push(path);
        Ok(config)
    }

    /// It is a node from now on.
    pub fn keep(mut self) {
        self.written.clear();
    }
}

impl Drop for NewNode {
    fn drop(&mut self) {
        for path in &self.written {
            if let Err(error) = fs::remove_file(path) {
                // Without standard error there is nobody to tell.
                let _nobody = writeln!(
                    io::stderr(),
                    "virga: cannot remove {} again: {error}",
                    path.display()
                );
            }
        }
    }
}

fn write_new(path: &Path, text: &str, mode: u32) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| crate::files::settle(path, &file))
        .and_then(|()| file.sync_all());
    match written {
        Ok(()) => Ok(file),
        Err(error) => {
            // Half a file is none.
            let _failing = fs::remove_file(path);
            Err(error)
        }
    }
}

/// The text of a configuration file with blocks after it, when that is a configuration.
///
/// # Errors
/// [`FilesError`]; the file is as it was.
pub fn with_blocks(config: &Config, blocks: &str) -> Result<String, FilesError> {
    let path = &config.path;
    let mut text = fs::read_to_string(path).map_err(failed(path, "read"))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(blocks);
    Config::from_toml(&text, path, config.keys.clone())?;
    Ok(text)
}

/// Puts a text in a file's place, as whole as the old one was until then; owner and mode stay.
///
/// # Errors
/// [`FilesError::Io`]
pub fn replace(path: &Path, text: &str) -> Result<(), FilesError> {
    // Where a link stands, what it points to is meant.
    let path = path.canonicalize().map_err(failed(path, "find"))?;
    let mut name = path.as_os_str().to_os_string();
    name.push(format!(".new-{}", std::process::id()));
    let new = PathBuf::from(name);
    let put = || {
        let old = fs::metadata(&path)?;
        let file = write_new(&new, text, NODE_FILE_MODE)?;
        file.set_permissions(old.permissions())?;
        let written = file.metadata()?;
        if (written.uid(), written.gid()) != (old.uid(), old.gid()) {
            chown(&new, Some(old.uid()), Some(old.gid()))?;
        }
        fs::rename(&new, &path)?;
        path.parent()
            .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    put().map_err(|source| {
        // It may not be there.
        let _failing = fs::remove_file(&new);
        failed(&path, "replace")(source)
    })
}

#[cfg(test)]
mod tests;
