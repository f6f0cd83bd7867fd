//! `virga id`: who this node is, as others must know it.

use super::{Failure, print_json};
use crate::{
    config::{Config, valid_address, valid_name},
    hex,
    keys::{self, EntityKey, KeyKind, NodeKey},
};
use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Take key files, name and address from this configuration.
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    config: Option<PathBuf>,
    /// Folder with node.key and entity.key.
    #[arg(long, value_name = "FOLDER", default_value = keys::DIRECTORY)]
    dir: PathBuf,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
    /// Name for the [[peers]] block.
    #[arg(long, value_parser = valid_name)]
    name: Option<String>,
    /// Address for the [[peers]] block, such as 10.77.1.1:4783.
    #[arg(long, value_parser = valid_address)]
    address: Option<SocketAddr>,
}

#[derive(serde::Serialize)]
struct Identity {
    name: Option<String>,
    node_id: String,
    node_key: String,
    origin_hash: String,
    entity_key: String,
    address: Option<SocketAddr>,
    /// The block for other nodes' configuration.
    peer: String,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (node, entity, name, address) = match &arguments.config {
        Some(path) => {
            let config = Config::load(path)?;
            let listen = config.node.listen;
            let address = (!listen.ip().is_unspecified()).then_some(listen);
            (
                config.keys.node,
                config.keys.entity,
                Some(config.node.name),
                address,
            )
        }
        None => {
            let read = |kind: KeyKind| keys::read(kind, &arguments.dir.join(kind.file_name()));
            let node = NodeKey::from(read(KeyKind::Node)?);
            (node, EntityKey::from(read(KeyKind::Entity)?), None, None)
        }
    };
    let name = arguments.name.clone().or(name);
    let address = arguments.address.or(address);
    let (node_key, entity_key) = (hex::encode(&node.public), hex::encode(&entity.public));
    let peer = peer_block(name.as_deref(), &node_key, &entity_key, address);
    let identity = Identity {
        name,
        node_id: node.id.to_string(),
        node_key,
        origin_hash: entity.origin.to_string(),
        entity_key,
        address,
        peer,
    };
    if arguments.json {
        return print_json(&identity);
    }
    let Identity {
        node_id,
        origin_hash,
        peer,
        ..
    } = &identity;
    let mut out = io::stdout().lock();
    writeln!(out, "# node id {node_id}, origin hash {origin_hash}")?;
    Ok(write!(out, "{peer}")?)
}

fn peer_block(
    name: Option<&str>,
    node_key: &str,
    entity_key: &str,
    address: Option<SocketAddr>,
) -> String {
    let name = name.map_or_else(
        || "name = \"\"  # choose one, or: virga id --name NAME".into(),
        |name| format!("name = \"{name}\""),
    );
    let address = address.map_or_else(
        || {
            "# address = \"IP:4783\"  # for its neighbours; others set: via = [\"a neighbour\"]"
                .into()
        },
        |address| {
            format!(
                "address = \"{address}\"  # for its neighbours; others set: via = [\"a neighbour\"]"
            )
        },
    );
    format!(
        "[[peers]]\n{name}\nnode_key = \"{node_key}\"\nentity_key = \"{entity_key}\"\n{address}\n"
    )
}
