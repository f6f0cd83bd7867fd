//! `virga check-config`: everything that is wrong with a configuration file and the files that it names, and what of it a
//! running node has otherwise. Not looked at is `file` of `[discovery]`, which may come and go while a node runs.

use super::{Failure, block_on, print_json};
use crate::{
    api::channels::KeptView,
    cause,
    config::{
        Config, ConfigError, Listed, Problem, Reach,
        settings::{self, Change, Effect},
    },
    fallback,
    kept::chosen,
    mesh::{Mesh, MeshError},
};
use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};
use virga_transport::ChannelName;

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
    /// What differs from the node that runs by its socket; none where no node answers there.
    differs: Option<Vec<Change>>,
}

/// What is in the way of a node with this configuration.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The files that `[fallback]` names are read when the node starts, and no reload reads them.
    #[error("{}: {source}", path.display())]
    Fallback {
        path: PathBuf,
        source: Box<fallback::ListenError>,
    },
    /// What a command said before.
    #[error("channel {channel}, as {} says: {why}", path.display())]
    Chosen {
        path: PathBuf,
        channel: ChannelName,
        why: String,
    },
}

impl Wrong {
    fn problems(&self) -> &[Problem] {
        match self {
            Self::Config(error) => error.problems(),
            Self::Fallback { .. } | Self::Chosen { .. } => &[],
        }
    }
}

impl From<Wrong> for Failure {
    fn from(wrong: Wrong) -> Self {
        Self::Usage(wrong.into())
    }
}

fn check(file: &Path) -> Result<Config, Wrong> {
    let config = Config::load(file)?;
    if let Err(source) = fallback::files(&config) {
        return Err(Wrong::Fallback {
            path: file.into(),
            source: Box::new(source),
        });
    }
    // Whoever checks may not read them: that is said where the rest is described.
    for (channel, words) in chosen::read(&config.node.state).unwrap_or_default() {
        if let Some(why) = chosen::problem(&config, &channel, &words) {
            let path = chosen::path(&config.node.state);
            return Err(Wrong::Chosen { path, channel, why });
        }
    }
    Ok(config)
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match (check(&arguments.file), arguments.json) {
        (Ok(config), true) => block_on(async {
            print_json(&Verdict {
                ok: true,
                error: None,
                problems: &[],
                differs: differs(&config).await.ok(),
            })
        }),
        (Ok(config), false) => {
            describe(&config)?;
            block_on(async { Ok(compare(&config).await?) })
        }
        (Err(error), true) => {
            let problems = error.problems();
            print_json(&Verdict {
                ok: false,
                error: Some(cause::chain(&error)),
                problems,
                differs: None,
            })?;
            Err(Failure::Told(2))
        }
        (Err(error), false) => Err(error.into()),
    }
}

/// What the node that listens on the file's socket has otherwise.
async fn differs(config: &Config) -> Result<Vec<Change>, MeshError> {
    let running = Mesh::open(&config.node.socket).await?.settings().await?;
    Ok(settings::changes(&running, &settings::of(config)))
}

async fn compare(config: &Config) -> io::Result<()> {
    let differs = differs(config).await;
    let mut out = io::stdout().lock();
    let changes = match differs {
        Ok(changes) => changes,
        Err(error) => return writeln!(out, "not compared with a running node: {error}"),
    };
    if changes.is_empty() {
        return writeln!(out, "the running node has it just so");
    }
    writeln!(out, "the running node differs:")?;
    for change in &changes {
        writeln!(out, "  {change}")?;
    }
    let is_fixed = changes
        .iter()
        .any(|change| change.effect == Effect::Restart);
    match is_fixed {
        true => writeln!(out, "it takes a restart: a reload changes nothing"),
        false => writeln!(out, "`virga reload` applies all of it"),
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
    let chosen = chosen::read(&node.state);
    let chosen = match chosen {
        Ok(chosen) => chosen,
        Err(error) => return writeln!(out, "not looked at: {error}"),
    };
    for (channel, words) in chosen {
        let durability = match words.resolve() {
            Ok(keeping) if words.is_on(node) => keeping.options.durability.name().to_owned(),
            Ok(_) => String::new(),
            Err(why) => why,
        };
        let view = KeptView {
            by_command: true,
            problem: None,
            durability,
            words: words.shown(config),
        };
        writeln!(out, "channel {channel}: {}", view.words())?;
    }
    Ok(())
}
