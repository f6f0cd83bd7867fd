//! `virga check-config`: everything that is wrong with a configuration file.

use super::{Failure, print_json};
use crate::{
    cause,
    config::{Config, Listed, Problem, Reach},
};
use std::{
    io::{self, Write as _},
    path::PathBuf,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file.
    file: PathBuf,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Verdict<'a> {
    ok: bool,
    error: Option<String>,
    problems: &'a [Problem],
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match (Config::load(&arguments.file), arguments.json) {
        (Ok(_), true) => print_json(&Verdict {
            ok: true,
            error: None,
            problems: &[],
        }),
        (Ok(config), false) => Ok(describe(&config)?),
        (Err(error), true) => {
            let problems = error.problems();
            print_json(&Verdict {
                ok: false,
                error: Some(cause::chain(&error)),
                problems,
            })?;
            Err(Failure::Told(2))
        }
        (Err(error), false) => Err(error.into()),
    }
}

/// What the file says, as the node will understand it.
fn describe(config: &Config) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let node = &config.node;
    writeln!(out, "{}: valid", config.path.display())?;
    writeln!(
        out,
        "node {} of network {:?}: id {}, origin {}, listens on {}",
        node.name, node.network, node.id, node.origin, node.listen
    )?;
    let forwarding = &config.forwarding;
    match forwarding.interfaces.as_slice() {
        [] => writeln!(out, "forwarding: {}, no interfaces", forwarding.mode)?,
        names => writeln!(
            out,
            "forwarding: {} on {}",
            forwarding.mode,
            names.join(", ")
        )?,
    }
    for peer in &config.peers {
        let name = |index: usize| {
            config
                .peers
                .get(index)
                .map_or("", |peer| peer.name.as_str())
        };
        let way = match &peer.reach {
            Reach::Adjacent { address, .. } => format!("at {address}"),
            Reach::Via {
                primary,
                backup: None,
            } => format!("via {}", name(*primary)),
            Reach::Via {
                primary,
                backup: Some(backup),
            } => {
                format!("via {}, backup {}", name(*primary), name(*backup))
            }
            Reach::Learned => "as neighbours say".to_owned(),
        };
        writeln!(
            out,
            "peer {}: id {}, origin {}, {way}",
            peer.name, peer.id, peer.origin
        )?;
    }
    for channel in &config.channels {
        let count = |listed: &Listed| match listed {
            Listed::Only(entities) => entities.len().to_string(),
            Listed::Anyone => "whoever shows that it may".to_owned(),
        };
        writeln!(
            out,
            "channel {}: hash {}, {} may publish, {} may subscribe",
            channel.name,
            channel.hash,
            count(&channel.publish),
            count(&channel.subscribe)
        )?;
    }
    Ok(())
}
