//! Channels that are kept: each has a log on this node's disk, which is a subscriber like any other and
//! which others read from any place.
//!
//! - [`writer`]: the thread that owns the logs: whatever came for all of them during a sync shares the next.
//! - [`replicated`]: logs that are on several nodes: this node's replica of each.
//! - `compaction`: a thread beside it, which takes events out of segments that are full.
//! - [`ancestors`]: events that came before what they follow wait, while those are asked for at other nodes.
//! - `feed`: a log as one of its channel's subscribers.
//! - [`chosen`]: channels that are kept because a command said so, beside those of the configuration file.
//! - `places`: where each feed is in its log, for other nodes that ask for events which were named to them.
//! - [`follow`]: a reader that goes on where the log goes on, without asking again and again.
//!
//! A log that does not get its events to disk holds up reliable channels as any slow subscriber does, and
//! like one it is let go after the channel's `hold_max_s`: that is logged and counted, and the log subscribes
//! again. What comes on a channel whose events are signed is checked before it is kept, and the signatures are
//! kept with it. A log that is on several nodes is no subscriber: publishers submit to the one that leads, and what most
//! replicas have is read. After a failed write or sync it takes no more until the node is started again.

pub mod ancestors;
pub mod chosen;
mod compaction;
mod feed;
pub mod follow;
mod looks;
mod places;
pub mod replicated;
mod status;
mod writer;

use crate::{
    channel::Pattern,
    config::{Config, Replicated, keeping::KeepWords},
    dispatch::Dispatch,
    reading::{Reading, wire::Want},
    replicas::Replicas,
    signing::Signing,
};
use ancestors::Coming;
use chosen::Chosen;
use compaction::Compaction;
use feed::feed;
use follow::Follower;
use looks::{LOOK_WITHIN, Looks, WaitedFor};
use places::Places;
use replicated::Seat;
pub use status::LogStatus;
use status::{AllNotKept, describe};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use virga_ebpf::header::NodeId;
use virga_state::{
    Cursor, LogName, NameError, OpenError, Options, Reader,
    compact::Rules,
    format::LogId,
    history::{self, Looked, Place},
    io::open::{self, OpenLog},
    replica::NoGroup,
};
use virga_transport::{ChannelName, Mode};
use writer::{Input, Writer};

/// Batches on their way to the logs; what is beyond them waits in each log's queue.
const INPUTS_MAX: usize = 64;
/// How long writing out may take when the node stops.
const CLOSING: Duration = Duration::from_secs(5);

/// How a channel is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keeping {
    /// When an event counts as kept, how large segments are, and how much is kept.
    pub options: Options,
    /// Which events go once a later one has their key.
    pub compaction: Option<Rules>,
}

/// Why a node cannot keep what it should.
#[derive(Debug, Error)]
pub enum KeptError {
    /// Its log cannot be opened.
    #[error("the log of {channel} in {}: {source}", folder.display())]
    Open {
        /// Whose log.
        channel: ChannelName,
        /// The folder of all logs.
        folder: PathBuf,
        /// What is wrong.
        source: OpenError,
    },
    /// A channel's name is no log's.
    #[error("{channel} cannot be kept: {source}")]
    Name {
        /// The channel.
        channel: ChannelName,
        /// What is wrong with it.
        source: NameError,
    },
    /// Nodes cannot hold its log together.
    #[error("the log of {channel} on several nodes: {source}")]
    Group {
        /// Whose log.
        channel: ChannelName,
        /// What is wrong.
        source: NoGroup,
    },
    /// Several nodes hold its log together, or did: what one writes there alone would count among them.
    #[error(
        "the log of {channel} in {} is one that several nodes hold together, and this node is to hold it alone: say which nodes do (replicas in the file, or virga channel keep {channel} --replicas), or stop the node and move that folder aside first", folder.display()
    )]
    Shared {
        /// Whose log.
        channel: ChannelName,
        /// Its folder.
        folder: PathBuf,
    },
    /// Which channels are kept by command is not known.
    #[error(
        "the channels that are kept by command cannot be read from {}: {why}; remove the file, and none is, to start nevertheless", path.display()
    )]
    Notes {
        /// Where they are noted.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The system refused something.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// What is told of a log, newest first.
type State = watch::Receiver<LogStatus>;

/// A log that readers know.
#[derive(Clone, Debug)]
struct Known {
    state: State,
    id: LogId,
}

/// All that readers know. Cheap to clone.
#[derive(Clone, Debug, Default)]
struct AllKnown(Arc<RwLock<BTreeMap<ChannelName, Known>>>);

impl AllKnown {
    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<ChannelName, Known>) -> T) -> T {
        act(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn look<T>(&self, look: impl FnOnce(&BTreeMap<ChannelName, Known>) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn find(&self, channel: &ChannelName) -> Option<Known> {
        self.look(|all| all.get(channel).cloned())
    }
}

/// The logs of a node. Cheap to clone.
#[derive(Clone)]
pub struct Kept {
    folder: Arc<PathBuf>,
    logs: AllKnown,
    not_kept: AllNotKept,
    chosen: Arc<Chosen>,
    /// Who looks through a log for another node.
    looks: Arc<Looks>,
    coming: Coming,
    places: Places,
}

/// The logs, open, while nothing comes yet.
pub struct Opened {
    folder: PathBuf,
    /// In one order.
    channels: Vec<ChannelName>,
    logs: Vec<OpenLog>,
    /// Of those that are on several nodes.
    seats: Vec<Option<Seat>>,
    /// How each is compacted.
    rules: Vec<Option<Rules>>,
    /// The channel of each whose events are signed.
    signed: Vec<Option<ChannelName>>,
    states: Vec<watch::Sender<LogStatus>>,
    /// Those that are kept by command.
    notes: BTreeMap<ChannelName, KeepWords>,
    not_kept: AllNotKept,
    place: chosen::Place,
}

/// The logs while they are written.
pub struct Running {
    kept: Kept,
    writer: Writer,
    /// The writer goes on while there is this, also where no log is a subscriber.
    inputs: mpsc::Sender<Input>,
}

impl Kept {
    /// How each log stands, by name; last those that should be there and are not.
    #[must_use]
    pub fn status(&self) -> Vec<LogStatus> {
        let state = |log: &Known| log.state.borrow().clone();
        let mut all: Vec<LogStatus> = self.logs.look(|all| all.values().map(state).collect());
        all.extend(self.not_kept.status());
        all
    }

    /// The kept channels that a pattern means.
    #[must_use]
    pub fn matching(&self, pattern: &Pattern) -> Vec<ChannelName> {
        self.logs.look(|all| {
            let names = all.keys().filter(|name| pattern.matches(name));
            names.cloned().collect()
        })
    }

    /// The id of a channel's log; none where the channel is not kept.
    #[must_use]
    pub fn id(&self, channel: &ChannelName) -> Option<LogId> {
        self.logs.find(channel).map(|log| log.id)
    }

    /// The channels that are kept by command, and how that was said.
    pub async fn by_command(&self) -> BTreeMap<ChannelName, KeepWords> {
        self.chosen.notes().await
    }

    /// Keeps a channel from now on, and when the node is started again.
    ///
    /// # Errors
    /// See [`chosen::NotKept`].
    pub async fn keep(
        &self,
        channel: ChannelName,
        words: KeepWords,
    ) -> Result<chosen::Holds, chosen::NotKept> {
        self.chosen.keep(channel, words).await
    }

    /// Keeps a channel no more that a command had it keep. The log's files stay.
    ///
    /// # Errors
    /// See [`chosen::NotKept`].
    pub async fn leave(&self, channel: &ChannelName) -> Result<chosen::Holds, chosen::NotKept> {
        self.chosen.leave(channel).await
    }

    /// Events of a channel's log below that can be read; 0 where the channel is not kept.
    #[must_use]
    pub fn readable(&self, channel: &ChannelName) -> u64 {
        let log = self.logs.find(channel);
        log.map_or(0, |log| log.state.borrow().readable)
    }

    /// Reads a channel's log from a place on, and goes on with it. Blocks while it looks for the place.
    ///
    /// # Errors
    /// See [`KeptError`]; none where the channel is not kept.
    pub fn follow(
        &self,
        channel: &ChannelName,
        cursor: Cursor,
    ) -> Result<Option<Follower>, KeptError> {
        let Some(Known { state, .. }) = self.logs.find(channel) else {
            return Ok(None);
        };
        let failed = |source| KeptError::Open {
            channel: channel.clone(),
            folder: self.folder.to_path_buf(),
            source,
        };
        let name = log_name(channel)?;
        // Files may have more than can be read yet.
        let cursor = match cursor {
            Cursor::End => Cursor::Offset(state.borrow().readable),
            other => other,
        };
        let disk = open::read(&self.folder, &name).map_err(failed)?;
        let reader = Reader::open(disk, &name, cursor).map_err(failed)?;
        let follower = Follower::new(channel.clone(), reader, state);
        Ok(Some(follower))
    }

    /// Looks through a channel's log for batches of a feed for a node, a part of it at a time, and only as long as this
    /// is waited for; see [`looks`]. Of what the log gets itself at that moment, it may be asked again at its end. For what
    /// was named to the node it looks where the log has it, and nowhere else.
    ///
    /// # Errors
    /// See [`KeptError`]; none where the channel is not kept.
    pub(crate) async fn look(
        &self,
        (peer, channel): (NodeId, &ChannelName),
        (cursor, place): (Cursor, Option<Place>),
        want: Want,
    ) -> Result<Option<Looked>, KeptError> {
        let (wanted, cursor, first_before) = match want {
            Want::Batches(wanted) => (wanted, cursor, u64::MAX),
            Want::Named(wanted) => {
                let is_coming = self.coming.has(channel, wanted.feed);
                match self.places.aim((channel, cursor), wanted, is_coming) {
                    Ok(aim) => (aim.wanted, Cursor::Offset(aim.from), aim.first_before),
                    Err(looked) => return Ok(Some(looked)),
                }
            }
            Want::Open | Want::Events | Want::End => return Ok(None),
        };
        let (Some(known), Some(seat)) = (self.logs.find(channel), self.looks.place(peer).await)
        else {
            return Ok(None);
        };
        let waits = WaitedFor::default();
        let is_waited_for = waits.asker();
        let (folder, name) = (Arc::clone(&self.folder), log_name(channel)?);
        // Files may have more than can be read yet.
        let limit = known.state.borrow().readable;
        let looking = tokio::task::spawn_blocking(move || {
            let (_seat, began) = (seat, Instant::now());
            let disk = open::read(&folder, &name)?;
            let is_enough = || !is_waited_for() || began.elapsed() >= LOOK_WITHIN;
            let within = (cursor, first_before, limit);
            history::look(&disk, &name, within, wanted, (place, is_enough))
        });
        let failed = |source| KeptError::Open {
            channel: channel.clone(),
            folder: self.folder.to_path_buf(),
            source,
        };
        let looked = looking.await.ok().transpose().map_err(failed)?;
        Ok(looked.map(|mut looked| {
            let has_none = looked.next.is_none() && looked.messages.is_empty();
            let is_followed = matches!(want, Want::Batches(_));
            if is_followed && has_none && self.coming.has(channel, wanted.feed) {
                looked.next = Some(match cursor {
                    Cursor::Offset(from) => from.max(limit),
                    _ => limit,
                });
            }
            looked
        }))
    }
}

impl Opened {
    /// Opens the log of each channel that is kept, and makes it where there is none. Blocks.
    ///
    /// # Errors
    /// See [`KeptError`].
    pub fn open(config: &Config) -> Result<Self, KeptError> {
        let notes = chosen::read(&config.node.state)?;
        let mut opened = Self {
            folder: config.node.logs.clone(),
            channels: Vec::new(),
            logs: Vec::new(),
            seats: Vec::new(),
            rules: Vec::new(),
            signed: Vec::new(),
            states: Vec::new(),
            place: chosen::Place::of(config, &notes),
            notes,
            not_kept: AllNotKept::default(),
        };
        let kept = config.channels.iter();
        for (channel, keeping) in kept.filter_map(|c| Some((c, c.keep.as_ref()?))) {
            opened.add(
                config,
                (&channel.name, channel.mode == Mode::Signed),
                keeping,
            )?;
        }
        for (channel, words) in opened.notes.clone() {
            let is_in_file = |one: &Replicated| one.channel == channel && !one.is_by_command;
            if opened.channels.contains(&channel) || config.replicated.iter().any(is_in_file) {
                tracing::warn!(%channel, "the configuration file says how the channel is kept; what a command said does not count");
                opened.notes.remove(&channel);
                continue;
            }
            let keeping = words.resolve().map_err(|why| KeptError::Notes {
                path: chosen::path(&config.node.state),
                why: format!("{channel}: {why}"),
            })?;
            if !words.is_on(&config.node) {
                continue;
            }
            if let Some(why) = chosen::problem(config, &channel, &words) {
                opened.not_kept.add(channel, why);
                continue;
            }
            // Whether its events are signed is said by who declares it, at any time.
            match opened.add(config, (&channel, true), &keeping) {
                Err(error)
                    if words.replicas.is_some() || matches!(error, KeptError::Shared { .. }) =>
                {
                    opened.not_kept.add(channel, error.to_string());
                }
                added => added?,
            }
        }
        Ok(opened)
    }

    fn add(
        &mut self,
        config: &Config,
        (channel, is_signed): (&ChannelName, bool),
        keeping: &Keeping,
    ) -> Result<(), KeptError> {
        let (log, seat) = open(config, channel, keeping)?;
        let mut state = describe(&log, channel);
        if let Some(seat) = &seat {
            state.readable = seat.readable(&log);
        }
        self.states.push(watch::Sender::new(state));
        self.channels.push(channel.clone());
        self.logs.push(log);
        self.seats.push(seat);
        self.rules.push(keeping.compaction.clone());
        self.signed.push(is_signed.then(|| channel.clone()));
        Ok(())
    }

    /// Has them take their channels' events. Within a runtime.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn run(
        self,
        dispatch: &Dispatch,
        signing: &Signing,
        (replicas, reading): (&Replicas, &Reading),
    ) -> io::Result<Running> {
        let (to, inputs) = mpsc::channel(INPUTS_MAX);
        let (known, mut feeds) = (AllKnown::default(), BTreeMap::new());
        for (log, (channel, state)) in self.channels.iter().zip(&self.states).enumerate() {
            let state = state.subscribe();
            if self.seats[log].is_none() {
                let feed = feed(
                    dispatch.clone(),
                    channel.clone(),
                    state.clone(),
                    log,
                    to.clone(),
                );
                feeds.insert(channel.clone(), tokio::spawn(feed).abort_handle());
            }
            let id = *self.logs[log].log.id();
            let one = Known { state, id };
            known.with(|all| all.insert(channel.clone(), one));
        }
        let open = self.channels.iter().enumerate();
        let chosen = Chosen::new(
            (self.place, dispatch.clone()),
            (to.downgrade(), known.clone(), self.not_kept.clone()),
            self.notes,
            open.filter_map(|(log, channel)| Some((channel.clone(), log, feeds.remove(channel)?))),
        );
        let (coming, places) = (Coming::default(), Places::default());
        let writer = Writer::start(
            (self.logs, self.seats, self.states),
            self.signed,
            signing.clone(),
            (replicas.clone(), dispatch.clone(), reading.clone()),
            (coming.clone(), places.clone()),
            (Compaction::new(self.rules, to.downgrade()), to.downgrade()),
            inputs,
        )?;
        let kept = Kept {
            folder: Arc::new(self.folder),
            logs: known,
            not_kept: self.not_kept,
            chosen: Arc::new(chosen),
            looks: Arc::default(),
            coming,
            places,
        };
        Ok(Running {
            kept,
            writer,
            inputs: to,
        })
    }
}

impl Running {
    /// What readers need.
    #[must_use]
    pub const fn kept(&self) -> &Kept {
        &self.kept
    }

    /// After the workers have ended: writes out what came, and closes the logs.
    pub async fn stop(self) {
        drop(self.inputs);
        self.writer.stop(CLOSING).await;
    }
}

/// A name is a log's by the same rules, but for levels of dots alone.
fn log_name(channel: &ChannelName) -> Result<LogName, KeptError> {
    LogName::parse(channel.as_str()).map_err(|source| KeptError::Name {
        channel: channel.clone(),
        source,
    })
}

/// # Errors
/// When the system has none to give.
pub(crate) fn random() -> Result<u64, KeptError> {
    getrandom::u64().map_err(|error| KeptError::System {
        operation: "get random bytes",
        source: io::Error::other(error.to_string()),
    })
}

fn open(
    config: &Config,
    channel: &ChannelName,
    keeping: &Keeping,
) -> Result<(OpenLog, Option<Seat>), KeptError> {
    let name = log_name(channel)?;
    let mut replicated = config.replicated.iter();
    let id = replicated::id(config, &name);
    let Some(one) = replicated.find(|one| one.channel == *channel) else {
        return Ok((open_alone((&config.node.logs, id), channel, keeping)?, None));
    };
    let mut log = open_log(&config.node.logs, channel, keeping, id)?;
    let seat = Seat::open(config, (one, &name), &mut log)?;
    Ok((log, Some(seat)))
}

/// A log of this node alone, and not the one that several hold together.
fn open_alone(
    (logs, shared): (&Path, LogId),
    channel: &ChannelName,
    keeping: &Keeping,
) -> Result<OpenLog, KeptError> {
    let log = open_log(logs, channel, keeping, fresh_id()?)?;
    if *log.log.id() == shared {
        return Err(chosen::shared(logs, channel, &log_name(channel)?));
    }
    Ok(log)
}

/// A log's id that no other has.
fn fresh_id() -> Result<LogId, KeptError> {
    Ok((u128::from(random()?) << 64 | u128::from(random()?)).to_be_bytes())
}

fn open_log(
    folder: &Path,
    channel: &ChannelName,
    keeping: &Keeping,
    fresh_id: LogId,
) -> Result<OpenLog, KeptError> {
    let name = log_name(channel)?;
    let log = OpenLog::open(folder, &name, keeping.options, fresh_id);
    let log = log.map_err(|source| KeptError::Open {
        channel: channel.clone(),
        folder: folder.to_owned(),
        source,
    })?;
    for finding in &log.findings {
        tracing::warn!(log = %name, "{finding}");
    }
    Ok(log)
}
