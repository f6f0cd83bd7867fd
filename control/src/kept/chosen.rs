//! Channels that a node keeps because a command said so, beside those of its configuration file.
//!
//! They are noted in `kept.json` of the node's state folder, on disk before whoever asked is told so, and kept when the
//! node is started again. A channel that a command had it keep no more takes nothing into its log from then on; the
//! log's files stay, and are open until the node is started again. Which nodes hold a log together is settled when they
//! start: what a command says of that holds from then on.

use super::{
    AllKnown, AllNotKept, Keeping, KeptError, Known, State, describe,
    feed::feed,
    log_name, open_alone, replicated,
    writer::{Begun, Input},
};
use crate::{
    config::{Config, Replicated, keeping::KeepWords, may_hold, named_replicas, noted_replicas},
    dispatch::Dispatch,
    rights::file::{self, FileError},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};
use thiserror::Error;
use tokio::{
    sync::{Mutex, mpsc::WeakSender, oneshot, watch},
    task::AbortHandle,
};
use virga_state::{Catalog, LogName, format::LogId, io::open};
use virga_transport::ChannelName;

/// Channels that are kept by command at most: each has its own log, with its buffers.
pub const CHOSEN_MAX: usize = 64;
/// Bytes of the notes: names and words are short.
const NOTES_BYTES_MAX: u64 = 1 << 20;

/// Why nothing has changed.
#[derive(Debug, Error)]
pub enum NotKept {
    /// The configuration file has the say.
    #[error("the configuration file says how {0} is kept here: change it there")]
    InFile(ChannelName),
    /// No command had it kept.
    #[error("no command had {0} kept here")]
    Unknown(ChannelName),
    /// What was asked for cannot be.
    #[error("{0}")]
    Words(String),
    /// No more.
    #[error(
        "{CHOSEN_MAX} channels are kept here by command already: keep one of them no more first"
    )]
    Full,
    /// Its log cannot be opened.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// It cannot be noted.
    #[error("the node would forget it when it is started again, so nothing has changed: {0}")]
    NotNoted(#[from] FileError),
    /// The node is about to end.
    #[error("the node is shutting down")]
    Ended,
}

/// From when on holds what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holds {
    /// At once.
    Now,
    /// The channel is kept, and its log is open with what was asked before: from the node's next start on.
    AfterRestart,
}

/// What there is on disk.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Notes {
    channels: BTreeMap<String, KeepWords>,
}

/// Where things are.
pub(super) struct Place {
    config: Config,
    /// Logs that several nodes hold together, as the file says, or as commands did before the node was started.
    in_file: BTreeSet<ChannelName>,
    by_command: BTreeMap<ChannelName, KeepWords>,
}

impl Place {
    pub(super) fn of(config: &Config, notes: &BTreeMap<ChannelName, KeepWords>) -> Self {
        let those = |is_by_command: bool| {
            let all = config.replicated.iter();
            let those = all.filter(move |one| one.is_by_command == is_by_command);
            those.map(|one| one.channel.clone())
        };
        let words = |channel| notes.get(&channel).map(|words| (channel, words.clone()));
        Self {
            config: config.clone(),
            in_file: those(false).collect(),
            by_command: those(true).filter_map(words).collect(),
        }
    }

    /// Whether the log that there is can be kept as these words say, once the node is started again. Blocks.
    fn look(&self, channel: &ChannelName, words: &KeepWords) -> Result<(), NotKept> {
        let (node, name) = (&self.config.node, log_name(channel)?);
        if !words.is_on(node) {
            return Ok(());
        }
        let Ok(disk) = open::read(&node.logs, &name) else {
            return Ok(());
        };
        let found = Catalog::read(&disk, &name).ok().and_then(|found| found.id);
        let is_shared = found == Some(replicated::id(&self.config, &name));
        match words.replicas {
            None if is_shared => Err(shared(&node.logs, channel, &name).into()),
            Some(_) if found.is_some() && !is_shared => Err(NotKept::Words(format!(
                "there is a log of {channel} here that this node holds alone, in {}: end it (virga channel keep {channel} --end), stop the node and move that folder aside first",
                node.logs.join(name.folder()).display()
            ))),
            _ => Ok(()),
        }
    }
}

/// A log that several nodes hold together, or did, which this one is to hold alone.
pub(super) fn shared(logs: &Path, channel: &ChannelName, name: &LogName) -> KeptError {
    KeptError::Shared {
        channel: channel.clone(),
        folder: logs.join(name.folder()),
    }
}

/// Why this node cannot hold a log with others as a command said.
#[must_use]
pub fn problem(config: &Config, channel: &ChannelName, words: &KeepWords) -> Option<String> {
    let nodes = named_replicas(words.replicas.as_deref()?, config);
    let may = nodes.and_then(|nodes| may_hold(&nodes, channel, config));
    let why = may.err().filter(|_| words.is_on(&config.node))?;
    Some(format!(
        "{why}; say anew which nodes hold it (virga channel keep {channel} --replicas), or --end, and start the node again"
    ))
}

/// The same configuration, and with it the logs that commands had several nodes hold together. Of those that name a node
/// which is none, nothing is known here; [`problem`] says why.
///
/// # Errors
/// [`KeptError::Notes`].
pub fn join(mut config: Config) -> Result<Config, KeptError> {
    for (channel, words) in read(&config.node.state)? {
        let mut in_file = config.channels.iter();
        let is_in_file = in_file.any(|c| c.name == channel && c.keep.is_some())
            || config.replicated.iter().any(|one| one.channel == channel);
        let Some(named) = words.replicas.as_ref().filter(|_| !is_in_file) else {
            continue;
        };
        let failed = |why| KeptError::Notes {
            path: path(&config.node.state),
            why: format!("{channel}: {why}"),
        };
        words.resolve().map_err(failed)?;
        let replicas = match noted_replicas(named, &config) {
            Ok(replicas) => replicas,
            Err(why) => {
                tracing::error!(%channel, why, "which nodes hold the channel's log by command is not known");
                continue;
            }
        };
        config.replicated.push(Replicated {
            channel,
            replicas,
            acks: words.acks(),
            is_by_command: true,
        });
    }
    Ok(config)
}

/// Where it is noted.
#[must_use]
pub fn path(state: &Path) -> PathBuf {
    state.join("kept.json")
}

/// The channels that a node with this state folder keeps by command.
///
/// # Errors
/// [`KeptError::Notes`].
pub fn read(state: &Path) -> Result<BTreeMap<ChannelName, KeepWords>, KeptError> {
    let path = path(state);
    let failed = |why: String| KeptError::Notes {
        path: path.clone(),
        why,
    };
    let length = match fs::metadata(&path) {
        Ok(data) => data.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed(error.to_string())),
    };
    if length > NOTES_BYTES_MAX {
        return Err(failed(format!("it has {length} bytes")));
    }
    let text = fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?;
    let notes: Notes = serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
    if notes.channels.len() > CHOSEN_MAX {
        return Err(failed(format!("it names more than {CHOSEN_MAX} channels")));
    }
    let named = notes.channels.into_iter().map(|(name, words)| {
        let channel = ChannelName::parse(&name);
        Ok((channel.map_err(|error| failed(error.to_string()))?, words))
    });
    named.collect()
}

fn write(state: &Path, notes: &BTreeMap<ChannelName, KeepWords>) -> Result<(), FileError> {
    let named = notes.iter();
    let notes = Notes {
        channels: named
            .map(|(channel, words)| (channel.to_string(), words.clone()))
            .collect(),
    };
    let path = path(state);
    let text = serde_json::to_string_pretty(&notes);
    let text = text.map_err(|error| FileError::Io {
        path: path.clone(),
        operation: "write",
        source: io::Error::other(error),
    })?;
    file::replace(&path, &(text + "\n"))
}

/// See the module.
pub(super) struct Chosen {
    place: Place,
    dispatch: Dispatch,
    to: WeakSender<Input>,
    known: AllKnown,
    not_kept: AllNotKept,
    /// One command at a time.
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    notes: BTreeMap<ChannelName, KeepWords>,
    /// Of those, and of those that are kept no more and open still.
    logs: BTreeMap<ChannelName, Log>,
}

/// A log that the writer has.
struct Log {
    number: usize,
    id: LogId,
    state: State,
    keeping: Keeping,
    /// What brings it events; none where it is kept no more.
    feed: Option<AbortHandle>,
}

impl Chosen {
    /// `open` says which logs are open, their numbers, and what brings them events.
    pub(super) fn new(
        (place, dispatch): (Place, Dispatch),
        (to, known, not_kept): (WeakSender<Input>, AllKnown, AllNotKept),
        notes: BTreeMap<ChannelName, KeepWords>,
        open: impl Iterator<Item = (ChannelName, usize, AbortHandle)>,
    ) -> Self {
        let logs = open.filter_map(|(channel, number, feed)| {
            let (words, Known { state, id }) = (notes.get(&channel)?, known.find(&channel)?);
            let log = Log {
                number,
                id,
                state,
                // They were looked at when it was opened.
                keeping: words.resolve().ok()?,
                feed: Some(feed),
            };
            Some((channel, log))
        });
        let logs = logs.collect();
        Self {
            place,
            dispatch,
            to,
            known,
            not_kept,
            all: Mutex::new(All { notes, logs }),
        }
    }

    pub(super) async fn notes(&self) -> BTreeMap<ChannelName, KeepWords> {
        self.all.lock().await.notes.clone()
    }

    pub(super) async fn keep(
        &self,
        channel: ChannelName,
        words: KeepWords,
    ) -> Result<Holds, NotKept> {
        let keeping = words.resolve().map_err(NotKept::Words)?;
        let mut all = self.all.lock().await;
        let is_noted = all.notes.contains_key(&channel);
        let at_start = self.place.by_command.get(&channel);
        let is_shared = at_start.is_some();
        let is_elsewhere = self.known.find(&channel).is_some() && !is_noted && !is_shared;
        if is_elsewhere || self.place.in_file.contains(&channel) {
            return Err(NotKept::InFile(channel));
        }
        if !is_noted && all.notes.len() >= CHOSEN_MAX {
            return Err(NotKept::Full);
        }
        if words.replicas.is_some() || is_shared {
            tokio::task::block_in_place(|| self.place.look(&channel, &words))?;
            let mut notes = all.notes.clone();
            notes.insert(channel.clone(), words.clone());
            write(&self.place.config.node.state, &notes)?;
            all.notes = notes;
            // One that could not be kept is not until the node is started again.
            return Ok(
                match at_start == Some(&words) && !self.not_kept.has(&channel) {
                    true => Holds::Now,
                    false => Holds::AfterRestart,
                },
            );
        }
        // What cannot be opened is not noted.
        let mut log = match all.logs.remove(&channel) {
            Some(log) => log,
            None => self.begin(&channel, keeping.clone()).await?,
        };
        let mut notes = all.notes.clone();
        notes.insert(channel.clone(), words);
        let noted = write(&self.place.config.node.state, &notes);
        if noted.is_ok() {
            all.notes = notes;
            self.take_in(&channel, &mut log).await?;
            self.not_kept.forget(&channel);
        }
        let holds = match log.keeping == keeping {
            true => Holds::Now,
            false => Holds::AfterRestart,
        };
        all.logs.insert(channel, log);
        noted?;
        Ok(holds)
    }

    pub(super) async fn leave(&self, channel: &ChannelName) -> Result<Holds, NotKept> {
        let mut all = self.all.lock().await;
        let mut notes = all.notes.clone();
        if notes.remove(channel).is_none() {
            return Err(match self.known.find(channel) {
                Some(_) if !self.place.by_command.contains_key(channel) => {
                    NotKept::InFile(channel.clone())
                }
                _ => NotKept::Unknown(channel.clone()),
            });
        }
        write(&self.place.config.node.state, &notes)?;
        all.notes = notes;
        if self.not_kept.forget(channel) {
            return Ok(Holds::Now);
        }
        if self.place.by_command.contains_key(channel) {
            return Ok(Holds::AfterRestart);
        }
        self.known.with(|known| known.remove(channel));
        let Some(log) = all.logs.get_mut(channel) else {
            return Ok(Holds::Now);
        };
        if let Some(feed) = log.feed.take() {
            feed.abort();
        }
        let log = log.number;
        self.set_left(log, true).await?;
        Ok(Holds::Now)
    }

    async fn tell(&self, input: Input) -> Result<(), NotKept> {
        let to = self.to.upgrade().ok_or(NotKept::Ended)?;
        to.send(input).await.map_err(|_| NotKept::Ended)
    }

    /// Tells whether a log is left, and waits until that holds; not for long, as a disk may be full.
    async fn set_left(&self, log: usize, is_left: bool) -> Result<(), NotKept> {
        let (done, holds) = oneshot::channel();
        self.tell(Input::Left { log, is_left, done }).await?;
        // It holds once the log has taken what came before.
        let _late = tokio::time::timeout(super::CLOSING, holds).await;
        Ok(())
    }

    /// Opens a log and gives it to the writer.
    async fn begin(&self, channel: &ChannelName, keeping: Keeping) -> Result<Log, NotKept> {
        let config = &self.place.config;
        let shared = replicated::id(config, &log_name(channel)?);
        let (logs, name, how) = (config.node.logs.clone(), channel.clone(), keeping.clone());
        let opening = tokio::task::spawn_blocking(move || open_alone((&logs, shared), &name, &how));
        let open = opening.await.map_err(|_| NotKept::Ended)??;
        let id = *open.log.id();
        let state = watch::Sender::new(describe(&open, channel));
        let told = state.subscribe();
        let begun = Box::new(Begun {
            open,
            channel: channel.clone(),
            rules: keeping.compaction.clone(),
            state,
        });
        let (done, number) = oneshot::channel();
        self.tell(Input::Begin { begun, done }).await?;
        Ok(Log {
            number: number.await.map_err(|_| NotKept::Ended)?,
            id,
            state: told,
            keeping,
            feed: None,
        })
    }

    /// Has a log take its channel's events, and be read, if it is not so.
    async fn take_in(&self, channel: &ChannelName, log: &mut Log) -> Result<(), NotKept> {
        if log.feed.is_some() {
            return Ok(());
        }
        let (number, to) = (log.number, self.to.upgrade().ok_or(NotKept::Ended)?);
        self.set_left(number, false).await?;
        let feed = feed(
            self.dispatch.clone(),
            channel.clone(),
            log.state.clone(),
            number,
            to,
        );
        log.feed = Some(tokio::spawn(feed).abort_handle());
        let known = Known {
            state: log.state.clone(),
            id: log.id,
        };
        self.known.with(|all| all.insert(channel.clone(), known));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_as_they_are_written_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        assert_eq!(read(state).unwrap(), BTreeMap::new());
        let channel = |name| ChannelName::parse(name).unwrap();
        let words = KeepWords {
            durability: Some("flushed".into()),
            keep_events: Some(7),
            keep_for: Some("2h".into()),
            ..KeepWords::default()
        };
        let notes: BTreeMap<ChannelName, KeepWords> = [
            (channel("a/b"), words),
            (channel("plain"), KeepWords::default()),
        ]
        .into();
        write(state, &notes).unwrap();
        assert_eq!(read(state).unwrap(), notes);
        for wrong in [
            "",
            "{}",
            "{\"channels\": {\"a b\": {}}}",
            "{\"channels\": {\"a\": {\"keep\": 1}}}",
            "{\"channels\": {}, \"more\": 1}",
        ] {
            fs::write(path(state), wrong).unwrap();
            let words = read(state).unwrap_err().to_string();
            assert!(
                words.contains("kept.json") && words.contains("remove the file"),
                "{words}"
            );
        }
    }
}
