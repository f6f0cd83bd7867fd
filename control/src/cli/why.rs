//! `virga why`: what an entity may do on a channel, and which check refuses what it may not.

use super::{Failure, block_on, client::Target, print_json};
use crate::{
    api::why::{Why, WhyOperation},
    channel::explain::Outcome,
};
use std::io::{self, Write};
use virga_transport::ChannelName;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The channel's full name.
    #[arg(value_parser = super::token::channel_name)]
    channel: ChannelName,
    /// The entity: its name in the node's configuration, or its public key (64 hex digits).
    entity: String,
    /// Ask for that one alone. Default: both, and success where one of them is allowed.
    #[arg(long, value_name = "OPERATION")]
    to: Option<To>,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum To {
    Publish,
    Subscribe,
}

impl To {
    const fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    block_on(async {
        let mesh = arguments.target.open().await?;
        let mut why = mesh
            .why(arguments.channel.as_str(), &arguments.entity)
            .await?;
        if let Some(to) = arguments.to {
            why.operations.retain(|one| one.operation == to.name());
        }
        match arguments.json {
            true => print_json(&why)?,
            false => {
                let mut text = Vec::new();
                write(&mut text, &why)?;
                io::stdout().lock().write_all(&text)?;
            }
        }
        match why.operations.iter().any(|one| one.is_allowed) {
            true => Ok(()),
            false => Err(Failure::Told(1)),
        }
    })
}

fn write(out: &mut impl Write, why: &Why) -> io::Result<()> {
    let name = why.entity_name.as_deref().unwrap_or("entity");
    writeln!(out, "{name} {} on {}", why.entity, why.channel)?;
    for WhyOperation {
        operation,
        is_allowed,
        checks,
    } in &why.operations
    {
        let may = if *is_allowed { "may" } else { "may not" };
        writeln!(out, "{may} {operation}")?;
        for check in checks {
            let mark = match check.outcome {
                Outcome::Passed => "✓",
                Outcome::Failed => "✗",
                Outcome::Told => "·",
            };
            writeln!(out, "  {mark} {:<12} {}", check.name, check.words)?;
        }
    }
    Ok(())
}
