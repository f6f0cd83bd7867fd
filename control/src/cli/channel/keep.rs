//! `virga channel keep`: has a node keep a log of a channel, or no more.

use super::{Failure, Target, expand};
use crate::{config::keeping::KeepWords, kept::chosen::Holds, mesh::Mesh};
use std::io::{self, Write as _};
use virga_transport::ChannelName;

#[derive(Debug, clap::Args)]
pub(crate) struct Keep {
    /// The channel's full name; `$node` stands for the name of the node that is asked.
    name: String,
    /// Keep it no more: its log takes nothing from now on, and its files stay.
    #[arg(long)]
    end: bool,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    target: Target,
}

/// As the keys of a `[[channels]]` block.
#[derive(Debug, clap::Args)]
pub(crate) struct How {
    /// When an event counts as kept: synced (on disk; the default), flushed or memory.
    #[arg(long, value_name = "WORD")]
    durability: Option<String>,
    /// How many events are kept.
    #[arg(long, value_name = "N")]
    keep_events: Option<u64>,
    /// How many bytes are kept, the newest segment aside.
    #[arg(long, value_name = "N")]
    keep_bytes: Option<u64>,
    /// For how long events are kept, such as 30days.
    #[arg(long, value_name = "TIME")]
    keep_for: Option<String>,
    /// Only the last event of each key is kept: the member of the events that has it.
    #[arg(long, value_name = "MEMBER")]
    compact_by: Option<String>,
    /// How long events are left as they are before that, such as 1day.
    #[arg(long, value_name = "TIME")]
    compact_after: Option<String>,
    /// How long removals are.
    #[arg(long, value_name = "TIME")]
    compact_removals_after: Option<String>,
    /// The nodes that hold one log together: say the same on each of them and on all that publish there.
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    replicas: Option<Vec<String>>,
    /// When what this node publishes there counts as published: leader, quorum (the default) or all.
    #[arg(long, value_name = "WORD")]
    acks: Option<String>,
}

impl How {
    /// What is said, if it fits.
    pub(super) fn words(&self, is_kept: bool) -> Result<KeepWords, Failure> {
        let words = KeepWords {
            durability: self.durability.clone(),
            keep_events: self.keep_events,
            keep_bytes: self.keep_bytes,
            keep_for: self.keep_for.clone(),
            compact_by: self.compact_by.clone(),
            compact_after: self.compact_after.clone(),
            compact_removals_after: self.compact_removals_after.clone(),
            replicas: self.replicas.clone(),
            acks: self.acks.clone(),
        };
        if !is_kept && words != KeepWords::default() {
            let what = "how a log is kept belongs to a channel that is: say --persist to create it so, and no --end";
            return Err(Failure::Usage(what.into()));
        }
        words.resolve().map_err(|why| Failure::Usage(why.into()))?;
        Ok(words)
    }
}

pub(super) async fn run(asked: &Keep) -> Result<(), Failure> {
    let words = asked.how.words(!asked.end)?;
    let mesh = asked.target.open().await?;
    let name = expand(&asked.name, &mesh.channels().await?)?;
    match asked.end {
        true => end(&mesh, &name).await,
        false => begin(&mesh, &name, &words).await,
    }
}

/// Has the node keep it.
pub(super) async fn begin(
    mesh: &Mesh,
    name: &ChannelName,
    words: &KeepWords,
) -> Result<(), Failure> {
    let when = match mesh.keep(name, words).await? {
        Holds::Now => "from now on",
        Holds::AfterRestart if words.replicas.is_some() => {
            "on its replicas once this node is started again; say so on each of them and on all that publish there, too"
        }
        Holds::AfterRestart => {
            "its log is open with what was said before: what is said now holds once the node is started again"
        }
    };
    Ok(writeln!(io::stdout(), "this node keeps {name}: {when}")?)
}

/// Has the node keep it no more.
pub(super) async fn end(mesh: &Mesh, name: &ChannelName) -> Result<(), Failure> {
    let since = match mesh.leave(name).await? {
        Holds::Now => {
            "its log takes nothing from now on; the log's files stay, open until the node is started again"
        }
        Holds::AfterRestart => {
            "it takes part in its replicas until it is started again; the log's files stay"
        }
    };
    Ok(writeln!(
        io::stdout(),
        "this node keeps {name} no more: {since}"
    )?)
}
