//! `virga fold`: what a fold makes of logs, in a folder or by way of a node, now and on with what comes.

mod live;

use super::{Failure, client::Target, log::log_name};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};
use virga_state::{
    Cursor, LogName, OpenError, Reader,
    fold::{
        Fold, FoldError, Folding, Policy, Progress, Token,
        ready::{AddWins, Counters, KeyChange, LastWriterWins, Latest},
        snapshot::SnapshotError,
    },
    format::LogId,
    io::open,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    fold: Which,
}

#[derive(Debug, clap::Subcommand)]
enum Which {
    /// Each key's sum, of events {"key": "a", "add": 3}.
    Counters(Logs),
    /// Each key's latest event; the key is a member of each event's JSON object.
    Latest {
        /// The member that is the key.
        #[arg(long, value_name = "MEMBER")]
        by: String,
        #[command(flatten)]
        logs: Logs,
    },
    /// Each key's value, of events {"key": "a", "value": 1, "time": 7}: the latest time counts; without a
    /// value the key is removed.
    LastWriterWins(Logs),
    /// Each key's value, of events {"add": "a", "value": 1} and {"remove": "a", "observed": ["LOG:OFFSET"]}:
    /// a removal takes away only the additions that it had observed.
    AddWins(Logs),
}

#[derive(Debug, clap::Args)]
struct Logs {
    /// The logs' names.
    #[arg(required = true, value_name = "LOG", value_parser = log_name)]
    names: Vec<LogName>,
    /// The folder that holds the logs; without it the node on this machine gives them, its own or another node's.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["socket", "node", "follow", "reach", "at", "log"])]
    logs: Option<PathBuf>,
    /// Fold the logs that NODE keeps: a peer's name, this node's own, or a node's id. Where several nodes keep one of their own, any is
    /// folded without it, and --json tells which.
    #[arg(long, value_name = "NODE")]
    at: Option<String>,
    /// Fold the log with this id, whatever node has it, as --json tells it: an offset is a place in that log and in no other.
    #[arg(long, value_name = "ID", value_parser = live::id)]
    log: Option<LogId>,
    #[command(flatten)]
    target: Target,
    /// Keep the state in this folder, and go on from it: only what came since is read.
    #[arg(long, value_name = "FOLDER", requires = "logs")]
    snapshots: Option<PathBuf>,
    /// Go on with what comes, and print each change.
    #[arg(long)]
    follow: bool,
    /// End after so many changes.
    #[arg(long, value_name = "N", requires = "follow")]
    count: Option<u64>,
    /// Wait until this event is in the state, by its log's name and its offset there.
    #[arg(long, value_name = "LOG:OFFSET", value_parser = live::token)]
    reach: Option<Token>,
    /// Pass over events that make no sense to the fold, and over those that a log cannot give, and count
    /// them; else the first of them ends the fold.
    #[arg(long)]
    skip: bool,
    /// Print one JSON object: the state, each log's place, and the state's hash, which is the same wherever
    /// the same places of the same logs were reached.
    #[arg(long)]
    json: bool,
}

/// Why there is no state.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// A log could not be opened.
    #[error("the log {name}: {source}")]
    Open { name: LogName, source: OpenError },
    /// The fold stands still.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// A snapshot does not fit.
    #[error("{}: {source}", file.display())]
    Snapshot {
        file: PathBuf,
        source: SnapshotError,
    },
    /// A snapshot could not be read or written.
    #[error("{}: {source}", file.display())]
    File { file: PathBuf, source: io::Error },
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let json = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap_or_default();
    match &arguments.fold {
        Which::Counters(logs) => logs.fold(
            Counters,
            |state| {
                let sums = state.iter();
                sums.map(|(key, sum)| (key.clone(), Value::from(*sum)))
                    .collect()
            },
            |change| with(change, Value::from),
        ),
        Which::Latest { by, logs } => logs.fold(
            Latest::by(by),
            |state| {
                let events = state.iter();
                events
                    .map(|(key, held)| (key.clone(), json(&held.value)))
                    .collect()
            },
            |change| with(change, |bytes| json(&bytes)),
        ),
        Which::LastWriterWins(logs) => logs.fold(
            LastWriterWins,
            |state| {
                let values = LastWriterWins::values(state);
                values
                    .map(|(key, value)| (key.to_owned(), value.clone()))
                    .collect()
            },
            |change| with(change, |value| value),
        ),
        Which::AddWins(logs) => logs.fold(
            AddWins,
            |state| {
                let values = state.values();
                values
                    .map(|(key, value)| (key.to_owned(), value.clone()))
                    .collect()
            },
            |change| with(change, |value| value),
        ),
    }
}

/// A change with its value as it is shown.
fn with<T>(change: KeyChange<T>, show: impl FnOnce(T) -> Value) -> KeyChange<Value> {
    KeyChange {
        key: change.key,
        value: change.value.map(show),
    }
}

#[derive(serde::Serialize)]
struct Place {
    next: u64,
    refused: u64,
    missing: u64,
    #[serde(flatten)]
    of: Option<Found>,
}

impl Place {
    fn of(progress: &Progress, of: Option<&Found>) -> Self {
        Self {
            next: progress.next,
            refused: progress.refused,
            missing: progress.missing,
            of: of.cloned(),
        }
    }
}

/// Which log it is.
#[derive(Clone, serde::Serialize)]
struct Found {
    id: String,
    /// The node that gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

type FoundLogs = BTreeMap<LogName, Found>;

#[derive(serde::Serialize)]
struct Shown {
    fold: &'static str,
    hash: String,
    logs: BTreeMap<String, Place>,
    state: BTreeMap<String, Value>,
}

impl Logs {
    fn fold<F: Fold>(
        &self,
        fold: F,
        show: impl Fn(&F::State) -> BTreeMap<String, Value>,
        change: impl Fn(F::Change) -> KeyChange<Value>,
    ) -> Result<(), Failure> {
        let policy = match self.skip {
            true => Policy::Skip,
            false => Policy::Stop,
        };
        let Some(logs) = &self.logs else {
            return super::block_on(self.live(fold, policy, show, change));
        };
        let mut folding = Folding::new(fold, policy);
        let mut found = FoundLogs::new();
        for name in &self.names {
            let id = self.catch_up(&mut folding, logs, name);
            if let Some(id) = id.map_err(Failure::runtime)? {
                let (id, node) = (crate::hex::encode_bytes(&id), None);
                found.insert(name.clone(), Found { id, node });
            }
        }
        self.show(&folding, &found, show)
    }

    /// The state now.
    fn show<F: Fold>(
        &self,
        folding: &Folding<F>,
        found: &FoundLogs,
        show: impl Fn(&F::State) -> BTreeMap<String, Value>,
    ) -> Result<(), Failure> {
        let view = folding.view();
        let shown = Shown {
            fold: F::NAME,
            hash: crate::hex::encode(&folding.hash()),
            logs: view
                .places
                .iter()
                .map(|(log, at)| (log.to_string(), Place::of(at, found.get(log))))
                .collect(),
            state: show(&view.state),
        };
        if self.json {
            return super::print_json(&shown);
        }
        let mut out = io::BufWriter::new(io::stdout().lock());
        for (key, value) in &shown.state {
            let key = super::subscribe::shown(key.as_bytes());
            writeln!(out, "{key}\t{value}")?;
        }
        out.flush()?;
        for (log, at) in &shown.logs {
            let passed = match at.refused + at.missing {
                0 => String::new(),
                _ => format!(", {} refused, {} missing", at.refused, at.missing),
            };
            let node = at.of.as_ref().and_then(|of| of.node.as_deref());
            let by = node.map_or_else(String::new, |node| format!(", by node {node}"));
            writeln!(
                io::stderr(),
                "virga: {log}: events below {}{passed}{by}",
                at.next
            )?;
        }
        Ok(writeln!(io::stderr(), "virga: hash {}", shown.hash)?)
    }

    /// One log, from its snapshot or its begin to its end; its id.
    fn catch_up<F: Fold>(
        &self,
        folding: &mut Folding<F>,
        logs: &Path,
        name: &LogName,
    ) -> Result<Option<LogId>, Error> {
        let failed = |source| Error::Open {
            name: name.clone(),
            source,
        };
        let file = self.snapshots.as_ref();
        let file = file.map(|folder| folder.join(format!("{}.{}", name.folder(), F::NAME)));
        let disk = open::read(logs, name).map_err(failed)?;
        let kept = file.as_deref().map(load).transpose()?.flatten();
        let mut reader = match (&file, kept) {
            (Some(file), Some(bytes)) => {
                let restored = folding.restore(name, &bytes, disk);
                restored.map_err(|source| Error::Snapshot {
                    file: file.clone(),
                    source,
                })?
            }
            // What retention has removed is a gap.
            _ => Reader::open(disk, name, Cursor::Offset(0)).map_err(failed)?,
        };
        let caught_up = folding.catch_up(name, &mut reader, |_, _| {});
        if let (Some(file), Some(bytes)) = (&file, folding.snapshot(name)) {
            save(file, &bytes)?;
        }
        caught_up?;
        Ok(reader.id())
    }
}

fn load(file: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File {
            file: file.to_owned(),
            source,
        }),
    }
}

/// Whole or not at all.
fn save(file: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    let written = file.parent().map_or(Ok(()), fs::create_dir_all);
    let written = written
        .and_then(|()| fs::File::create(&new))
        .and_then(|mut out| out.write_all(bytes).and_then(|()| out.sync_all()))
        .and_then(|()| fs::rename(&new, file));
    written.map_err(|source| Error::File {
        file: file.to_owned(),
        source,
    })
}
