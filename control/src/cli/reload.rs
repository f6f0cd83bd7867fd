//! `virga reload`: the running node reads its configuration file anew.

use super::{Failure, block_on, client::Target, counted, print_json};
use crate::{config::Config, mesh::MeshError};
use std::{
    io::{self, Write as _},
    path::PathBuf,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
    /// The node that runs by this file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["socket", "node"])]
    config: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut target = arguments.target.clone();
    if let Some(file) = &arguments.config {
        target.socket = Some(Config::load(file)?.node.socket);
    }
    block_on(async {
        let mesh = target.open().await?;
        let reloaded = match mesh.reload().await {
            // The file is at fault, and nothing was tried.
            Err(MeshError::Refused { code: 400, message }) => {
                return Err(Failure::Usage(message.into()));
            }
            reloaded => reloaded?,
        };
        if arguments.json {
            return print_json(&reloaded);
        }
        let mut out = io::stdout().lock();
        for change in &reloaded.changes {
            writeln!(out, "{change}")?;
        }
        let file = &reloaded.file;
        match reloaded.changes.len() {
            0 => writeln!(out, "{file}: nothing differs from what the node runs by")?,
            changes => writeln!(out, "{file}: {} in force", counted(changes, "change"))?,
        }
        Ok(())
    })
}
