//! The three secrets of a node, each in a file of one line: `virga-node-key-v1 <64 hex digits>`.
//!
//! | file | label | content |
//! |---|---|---|
//! | `node.key` | `virga-node-key-v1` | X25519 secret: who this machine is in the handshake |
//! | `entity.key` | `virga-entity-key-v1` | ed25519 seed: who publishes and subscribes here |
//! | `network.psk` | `virga-network-psk-v1` | the network's pre-shared key, the same on every node |
//!
//! A file is created with mode 0600 from its first byte, never overwritten unless asked, and
//! refused when anyone but its owner may read it. What root makes in a service's folder is the service's.

use crate::hex;
use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};
use virga_ebpf::{
    hash,
    header::{NodeId, OriginHash},
};
use zeroize::{Zeroize as _, Zeroizing};

/// Directory of the key files unless the configuration names others.
pub const DIRECTORY: &str = "/etc/virga";
/// Key files are one line; anything longer is something else.
const FILE_BYTES_MAX: usize = 256;
const MODE_PRIVATE: u32 = 0o600;
const MODE_OTHERS: u32 = 0o077;
/// Of a credential: the service's own access, which an access list gives, shows as its group's.
const MODE_OTHERS_CREDENTIAL: u32 = 0o037;

/// Which of the three secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KeyKind {
    /// X25519 secret of the node.
    Node,
    /// ed25519 seed of the entity.
    Entity,
    /// Pre-shared key of the network.
    Psk,
}

impl KeyKind {
    /// First word of the file.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Node => "virga-node-key-v1",
            Self::Entity => "virga-entity-key-v1",
            Self::Psk => "virga-network-psk-v1",
        }
    }

    /// Name of the file in [`DIRECTORY`].
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Node => "node.key",
            Self::Entity => "entity.key",
            Self::Psk => "network.psk",
        }
    }

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Entity => "entity",
            Self::Psk => "psk",
        }
    }

    /// What to do when the file is missing.
    fn remedy(self, path: &Path) -> String {
        let line = format!(
            "virga keygen --kind {} --out {}",
            self.name(),
            path.display()
        );
        match self {
            Self::Node | Self::Entity => format!("create it: {line}"),
            Self::Psk => {
                format!("copy it from another node, or create the network's first: {line}")
            }
        }
    }
}

/// 32 secret bytes: erased when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Takes the bytes over.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// 32 bytes from the operating system's generator.
    ///
    /// # Errors
    /// When it has none to give.
    pub fn generate() -> Result<Self, io::Error> {
        let mut secret = Self([0; 32]);
        getrandom::fill(&mut secret.0).map_err(io::Error::other)?;
        Ok(secret)
    }

    /// The bytes, for the operation that needs them.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A node's X25519 key pair.
#[derive(Clone, Debug)]
pub struct NodeKey {
    /// The secret half.
    pub secret: Secret,
    /// The public half.
    pub public: [u8; 32],
    /// What the header calls the node.
    pub id: NodeId,
}

impl From<Secret> for NodeKey {
    fn from(secret: Secret) -> Self {
        let scalar = x25519_dalek::StaticSecret::from(*secret.expose());
        let public = x25519_dalek::PublicKey::from(&scalar).to_bytes();
        Self {
            secret,
            public,
            id: hash::node_id(&public),
        }
    }
}

/// An entity's ed25519 key pair.
#[derive(Clone, Debug)]
pub struct EntityKey {
    /// The seed of the secret half.
    pub seed: Secret,
    /// The public half.
    pub public: [u8; 32],
    /// What the header calls the entity.
    pub origin: OriginHash,
}

impl From<Secret> for EntityKey {
    fn from(seed: Secret) -> Self {
        let signing = ed25519_dalek::SigningKey::from_bytes(seed.expose());
        let public = signing.verifying_key().to_bytes();
        Self {
            seed,
            public,
            origin: hash::origin_hash(&public),
        }
    }
}

/// All secrets of one node.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Who this machine is.
    pub node: NodeKey,
    /// Who publishes and subscribes here.
    pub entity: EntityKey,
    /// The network's pre-shared key.
    pub psk: Secret,
}

/// A key file that could not be read or written; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is none.
    #[error("{} does not exist; {}", path.display(), kind.remedy(path))]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// What it should hold.
        kind: KeyKind,
    },
    /// There is one already.
    #[error("{} exists already and is kept; to replace it for good, add --force", path.display())]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// Others may read it.
    #[error("{} may be read or written by others (mode {mode:04o}); run: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// Where.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Someone else could change it.
    #[error("{} belongs to user {owner}, neither to root nor to user {us} who runs this; run: chown {us} {}", path.display(), path.display())]
    Owner {
        /// Where.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose it should be.
        us: u32,
    },
    /// It holds something else.
    #[error("{}: {what}; expected one line, `{} <64 hex digits>`", path.display(), kind.label())]
    Content {
        /// Where.
        path: PathBuf,
        /// What it should hold.
        kind: KeyKind,
        /// What is wrong with it.
        what: String,
    },
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

/// Reads a key file.
///
/// # Errors
/// [`KeyError`]: missing, readable by others, owned by someone else, or not a key of this kind.
pub fn read(kind: KeyKind, path: &Path) -> Result<Secret, KeyError> {
    read_within(kind, path, MODE_OTHERS)
}

/// Reads a key file that the service manager hands over, in a folder that nobody else gets into.
///
/// # Errors
/// As [`read`].
pub fn read_credential(kind: KeyKind, path: &Path) -> Result<Secret, KeyError> {
    read_within(kind, path, MODE_OTHERS_CREDENTIAL)
}

fn read_within(kind: KeyKind, path: &Path, mode_others: u32) -> Result<Secret, KeyError> {
    let io_error = |operation, source| KeyError::Io {
        path: path.into(),
        operation,
        source,
    };
    let file = crate::files::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => KeyError::Missing {
            path: path.into(),
            kind,
        },
        _ => io_error("open", error),
    })?;
    check_private(path, &file, mode_others)?;
    // Large enough never to move, which would leave a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * FILE_BYTES_MAX));
    file.take(FILE_BYTES_MAX as u64 + 1)
        .read_to_string(&mut text)
        .map_err(|error| io_error("read", error))?;
    parse(kind, &text).map_err(|what| KeyError::Content {
        path: path.into(),
        kind,
        what,
    })
}

/// Looks at the open file, not at the path, so that nothing can be exchanged in between.
fn check_private(path: &Path, file: &File, mode_others: u32) -> Result<(), KeyError> {
    let metadata = file.metadata().map_err(|source| KeyError::Io {
        path: path.into(),
        operation: "inspect",
        source,
    })?;
    let us = rustix::process::geteuid().as_raw();
    let owner = metadata.uid();
    // Root may look into the keys of a service, in that service's own folder.
    let is_services = us == 0 && crate::files::is_settled(path, owner);
    if owner != 0 && owner != us && !is_services {
        return Err(KeyError::Owner {
            path: path.into(),
            owner,
            us,
        });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & mode_others != 0 {
        let path = path.into();
        return Err(KeyError::Exposed { path, mode });
    }
    Ok(())
}

/// Reads the one line; the error never repeats what might be a secret.
fn parse(kind: KeyKind, text: &str) -> Result<Secret, String> {
    let line = text.trim_end_matches(['\n', '\r']);
    let Some((label, digits)) = line.split_once(' ') else {
        return Err("is not a key file".into());
    };
    if label != kind.label() {
        let kinds = [KeyKind::Node, KeyKind::Entity, KeyKind::Psk];
        return Err(match kinds.iter().find(|other| other.label() == label) {
            Some(other) => format!("holds a key of another kind ({})", other.name()),
            None => "is not a key file".into(),
        });
    }
    let key = Secret(hex::decode(digits).map_err(|error| match error {
        hex::HexError::Length { .. } => error.to_string(),
        hex::HexError::Digit { position, .. } => format!("digit {position} is not a hex digit"),
    })?);
    if key.0 == [0; 32] {
        return Err("is all zeros".into());
    }
    Ok(key)
}

/// What to do with a key file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave it and fail.
    Keep,
    /// Replace it, atomically.
    Replace,
}

/// Writes a key file with mode 0600 from its first byte, and syncs it.
///
/// # Errors
/// [`KeyError::Exists`] when there is one to keep; [`KeyError::Io`].
pub fn write(
    kind: KeyKind,
    path: &Path,
    secret: &Secret,
    existing: Existing,
) -> Result<(), KeyError> {
    let mut digits = hex::encode(secret.expose());
    let line = Zeroizing::new(format!("{} {digits}\n", kind.label()));
    digits.zeroize();
    match existing {
        Existing::Keep => create(path, line.as_bytes()),
        Existing::Replace => {
            let mut name = path.as_os_str().to_os_string();
            name.push(format!(".new-{}", std::process::id()));
            let new = PathBuf::from(name);
            create(&new, line.as_bytes())?;
            std::fs::rename(&new, path).map_err(|source| KeyError::Io {
                path: path.into(),
                operation: "replace",
                source,
            })
        }
    }
}

fn create(path: &Path, content: &[u8]) -> Result<(), KeyError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE_PRIVATE)
        .open(path)
        .map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists { path: path.into() },
            _ => KeyError::Io {
                path: path.into(),
                operation: "create",
                source,
            },
        })?;
    file.write_all(content)
        .and_then(|()| crate::files::settle(path, &file))
        .and_then(|()| file.sync_all())
        .map_err(|source| KeyError::Io {
            path: path.into(),
            operation: "write",
            source,
        })
}

#[cfg(test)]
mod tests;
