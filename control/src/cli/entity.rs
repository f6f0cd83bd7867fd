//! `virga entity` and `virga node rotate-key`: where an entity lives, and which key it has.

use super::{
    Failure, block_on,
    client::Target,
    token::{entity_key, now_s, public_key, unix_s, written},
};
use crate::{
    hex,
    keys::{self, EntityKey, Existing, KeyKind, NodeKey, Secret},
    rights::{
        file,
        identity::{Claim, Identity, Placement, Succession},
    },
};
use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Say on which node an entity lives from now on.
    Move(Move),
    /// Make an entity a new key, and say that it takes the old one's place.
    Rotate(Rotate),
    /// Have what an entity has said about itself count at a running node, and at all that it reaches.
    Announce(Announce),
    /// Show what a file of placements and successions says.
    Inspect {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Move {
    /// The entity key file.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Node key of the node that it goes to (64 hex digits; `virga id` prints it there).
    #[arg(long, value_name = "KEY", value_parser = public_key)]
    to: [u8; 32],
    #[command(flatten)]
    written: Written,
}

#[derive(Debug, clap::Args)]
struct Written {
    /// Of two placements the one with the higher version counts. Default: Unix time in milliseconds.
    #[arg(long, value_name = "N")]
    version: Option<u64>,
    /// Write the objects there, not to standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Rotate {
    /// The entity key file. The new key is written beside it, as FILE.new.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The node's key file: the new key is said to live on this node.
    #[arg(long, value_name = "FILE")]
    node_key: PathBuf,
    /// How long tokens that the old key issued or delegated go on counting, such as 7days.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    honour: Duration,
    /// From when on (RFC 3339, UTC). Default: now.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    from: Option<SystemTime>,
    #[command(flatten)]
    written: Written,
}

#[derive(Debug, clap::Args)]
pub(super) struct RotateNode {
    /// The node key file. The new key is written beside it, as FILE.new.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The key file of the entity that lives there.
    #[arg(long, value_name = "FILE")]
    entity_key: PathBuf,
    #[command(flatten)]
    written: Written,
}

#[derive(Debug, clap::Args)]
pub(super) struct Announce {
    /// The file of placements and successions.
    file: PathBuf,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Move(arguments) => {
            let key = entity_key(&arguments.key)?;
            let placement = placement(&key, arguments.to, arguments.written.version);
            arguments.written.write(&[placement.sign(&key)])
        }
        Command::Rotate(arguments) => rotate(arguments),
        Command::Announce(Announce { file, target }) => {
            let claims = file::read_identities(file)?;
            block_on(async {
                let lines: String = claims.iter().map(file::identity_line).collect();
                Ok(target.open().await?.follow(&lines).await?)
            })
        }
        Command::Inspect { file } => inspect(&file::read_identities(file)?),
    }
}

/// `virga node rotate-key`.
pub(super) fn rotate_node(arguments: &RotateNode) -> Result<(), Failure> {
    keys::read(KeyKind::Node, &arguments.key)?;
    let entity = entity_key(&arguments.entity_key)?;
    let (new, file) = next(KeyKind::Node, &arguments.key)?;
    let new = NodeKey::from(new);
    let placement = placement(&entity, new.public, arguments.written.version);
    arguments.written.write(&[placement.sign(&entity)])?;
    let old = arguments.key.display();
    tell(format_args!(
        "{}: the new node key, public half {} (node id {}). Announce the placement, wait until peers have it, then stop the node, keep {old} aside, put the new file in its place, and start the node",
        file.display(),
        hex::encode(&new.public),
        new.id
    ))
}

fn rotate(arguments: &Rotate) -> Result<(), Failure> {
    let old = entity_key(&arguments.key)?;
    let node = NodeKey::from(keys::read(KeyKind::Node, &arguments.node_key)?);
    let from_s = arguments.from.map_or_else(now_s, unix_s);
    let (new, file) = next(KeyKind::Entity, &arguments.key)?;
    let new = EntityKey::from(new);
    let succession = Succession {
        old: old.public,
        new: new.public,
        from_s,
        honoured_until_s: from_s.saturating_add(arguments.honour.as_secs()),
    };
    let placement = placement(&new, node.public, arguments.written.version);
    let claims = [succession.sign(&old, &new), placement.sign(&new)];
    arguments.written.write(&claims)?;
    let path = arguments.key.display();
    tell(format_args!(
        "{}: the new entity key, public half {} (origin hash {}). Announce the succession, wait until peers have it, then stop the node, keep {path} aside, put the new file in its place, and start the node",
        file.display(),
        hex::encode(&new.public),
        new.origin
    ))
}

/// A new key in a file of its own, beside the one that it is to replace.
fn next(kind: KeyKind, path: &Path) -> Result<(Secret, PathBuf), Failure> {
    let mut name = path.as_os_str().to_os_string();
    name.push(".new");
    let (secret, file) = (Secret::generate()?, PathBuf::from(name));
    keys::write(kind, &file, &secret, Existing::Keep)?;
    Ok((secret, file))
}

fn placement(entity: &EntityKey, node_key: [u8; 32], version: Option<u64>) -> Placement {
    let now_ms = || {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        unix.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
    };
    Placement {
        entity: entity.public,
        node_key,
        version: version.unwrap_or_else(now_ms),
    }
}

/// For people; objects may be on standard output.
fn tell(words: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    Ok(writeln!(io::stderr(), "{words}")?)
}

impl Written {
    fn write(&self, claims: &[Claim]) -> Result<(), Failure> {
        let lines: String = claims.iter().map(file::identity_line).collect();
        match &self.out {
            Some(path) => Ok(file::replace(path, &lines)?),
            None => Ok(io::stdout().lock().write_all(lines.as_bytes())?),
        }
    }
}

fn inspect(claims: &[Claim]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    for claim in claims {
        match claim.what() {
            Identity::Placement(placement) => writeln!(
                out,
                "placement, version {}: entity {} lives on node {} ({})",
                placement.version,
                hex::encode(&placement.entity),
                hex::encode(&placement.node_key),
                virga_ebpf::hash::node_id(&placement.node_key)
            )?,
            Identity::Succession(succession) => writeln!(
                out,
                "succession: entity {} has the place of {} from {} on; tokens that the old key signed count until {}",
                hex::encode(&succession.new),
                hex::encode(&succession.old),
                written(succession.from_s),
                written(succession.honoured_until_s)
            )?,
        }
    }
    Ok(())
}
