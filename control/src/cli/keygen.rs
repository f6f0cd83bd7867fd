//! `virga keygen`: the secrets of a node.

use super::Failure;
use crate::{
    hex,
    keys::{self, EntityKey, Existing, KeyError, KeyKind, NodeKey, Secret},
};
use std::{
    fs::DirBuilder,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Folder for node.key and entity.key; made when it is missing.
    #[arg(long, value_name = "FOLDER", default_value = keys::DIRECTORY)]
    dir: PathBuf,
    /// Make network.psk too: on the first node of a network only, then copy it to the others.
    #[arg(long)]
    psk: bool,
    /// Make one key alone, in the file that --out names.
    #[arg(long, value_name = "KIND", requires = "out", conflicts_with_all = ["dir", "psk"])]
    kind: Option<KeyKind>,
    /// The file for --kind.
    #[arg(long, value_name = "FILE", requires = "kind")]
    out: Option<PathBuf>,
    /// Replace keys that are there. Whoever knew this node by them no longer will.
    #[arg(long)]
    force: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut files: Vec<(KeyKind, PathBuf)> = Vec::new();
    if let (Some(kind), Some(out)) = (arguments.kind, &arguments.out) {
        files.push((kind, out.clone()));
    } else {
        let kinds = [KeyKind::Node, KeyKind::Entity].into_iter();
        let kinds = kinds.chain(arguments.psk.then_some(KeyKind::Psk));
        files.extend(kinds.map(|kind| (kind, arguments.dir.join(kind.file_name()))));
        make_folder(&arguments.dir)?;
    }
    let existing = if arguments.force {
        Existing::Replace
    } else {
        Existing::Keep
    };
    if existing == Existing::Keep {
        // All or nothing: a new node key beside an old entity key helps nobody.
        if let Some((_, path)) = files
            .iter()
            .find(|(_, path)| path.symlink_metadata().is_ok())
        {
            return Err(KeyError::Exists { path: path.clone() }.into());
        }
    }
    let mut out = io::stdout().lock();
    for (kind, path) in files {
        let secret = Secret::generate()?;
        keys::write(kind, &path, &secret, existing)?;
        writeln!(out, "{}: {}", path.display(), describe(kind, secret))?;
    }
    Ok(())
}

pub(super) fn make_folder(folder: &Path) -> Result<(), Failure> {
    const MODE: u32 = 0o755;
    let made = DirBuilder::new().recursive(true).mode(MODE).create(folder);
    made.map_err(|source| {
        let (path, operation) = (
            folder.to_path_buf(),
            "make this folder (--dir names another)",
        );
        KeyError::Io {
            path,
            operation,
            source,
        }
        .into()
    })
}

/// The public side of a new key.
fn describe(kind: KeyKind, secret: Secret) -> String {
    match kind {
        KeyKind::Node => {
            let key = NodeKey::from(secret);
            format!(
                "node key, public half {} (node id {})",
                hex::encode(&key.public),
                key.id
            )
        }
        KeyKind::Entity => {
            let key = EntityKey::from(secret);
            let public = hex::encode(&key.public);
            format!(
                "entity key, public half {public} (origin hash {})",
                key.origin
            )
        }
        KeyKind::Psk => "the network's pre-shared key; copy it to every node".into(),
    }
}
