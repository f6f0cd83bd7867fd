//! Folds: live state out of logs.
//!
//! A [`Fold`] says what one event does to a state. It is pure: the same events in the same order give the
//! same state, bit for bit, on every node. [`Folding`] applies it to one or many logs:
//!
//! - Each log has a state of its own, since nothing says in which order events of different logs come
//!   together; [`Folding::view`] merges them in the order of the logs' names, so that what is seen depends
//!   on the places alone that were reached, never on who was read first.
//! - [`Folding::snapshot`] and [`Folding::restore`]: the state as bytes, so that a restart reads only what
//!   came since. A snapshot of another fold, another log, a later place than the log has, or a state of
//!   another type is refused or migrated, not misread ([`snapshot`] draws the bytes). It is told by the log's id
//!   and the last event that was applied: where that was a gap, or retention or compaction has removed it since, by the id
//!   alone.
//! - [`Token`]: an event's place. Whoever appended it reads its own write once [`Folding::has_reached`].
//! - An event that the fold cannot apply, and events that a log cannot give, go by the fold's [`Policy`].
//!
//! [`ready`] has folds for common cases.

pub mod ready;
pub mod snapshot;

use crate::{
    Event, LogName, ReadError, Reader,
    disk::Disk,
    format::{Hash, LogId},
};
use snapshot::{Mark, SnapshotError};
use std::collections::BTreeMap;
use thiserror::Error;

/// How events become state. Pure: no clock, no randomness, no order of a hash map.
pub trait Fold {
    /// What comes out.
    type State: Clone;
    /// What an event changed, for whoever follows.
    type Change;

    /// What the state is called in snapshots; another fold has another name.
    const NAME: &'static str;
    /// What else tells its states from others': folds with other parameters do not go on from each other's.
    fn parameters(&self) -> String {
        String::new()
    }

    /// Of the state's encoding: goes up whenever that, or what events do to it, changes.
    const VERSION: u32;

    /// The state before any event.
    fn begin(&self) -> Self::State;

    /// What an event does: changes the state, and says how. On an error the state is as it was.
    ///
    /// # Errors
    /// Why the event makes no sense to the fold.
    fn apply(
        &self,
        state: &mut Self::State,
        event: &Sourced<'_>,
    ) -> Result<Option<Self::Change>, String>;

    /// Adds what another log's state holds: called in the order of the logs' names.
    fn merge(&self, into: &mut Self::State, other: &Self::State);

    /// The state as bytes: equal states give equal bytes.
    fn encode(&self, state: &Self::State, out: &mut Vec<u8>);

    /// The state from its bytes; none where they are no state.
    fn decode(&self, bytes: &[u8]) -> Option<Self::State>;

    /// A state from the bytes of an earlier version; none: that version's snapshots are refused.
    fn migrate(&self, version: u32, bytes: &[u8]) -> Option<Self::State> {
        let _ = (version, bytes);
        None
    }
}

/// An event, and the log that it is from.
#[derive(Clone, Copy, Debug)]
pub struct Sourced<'a> {
    /// Whose event it is.
    pub log: &'a LogName,
    /// What it is.
    pub event: Event<'a>,
}

/// What becomes of an event that cannot be applied, and of events that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The fold stands still before it, until it is told otherwise.
    #[default]
    Stop,
    /// It is passed over, and counted.
    Skip,
}

/// An event's place, to wait for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token {
    /// In which log.
    pub log: LogName,
    /// Where in it.
    pub offset: u64,
}

/// Where a fold is in one log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Events below are applied, or passed over.
    pub next: u64,
    /// Events that the fold could not apply.
    pub refused: u64,
    /// Events that the log could not give.
    pub missing: u64,
}

/// Why a fold stands still.
#[derive(Debug, Error)]
pub enum FoldError {
    /// An event makes no sense to it.
    #[error("event {offset} of {log}: {why}")]
    Refused {
        /// Which log.
        log: LogName,
        /// Which event.
        offset: u64,
        /// Why.
        why: String,
    },
    /// The log cannot give events.
    #[error("{log}: {source}")]
    Read {
        /// Which log.
        log: LogName,
        /// Which events, and why.
        source: ReadError,
    },
    /// Events came in another order than their offsets say.
    #[error("{log}: event {found} came where {wanted} is next")]
    Order {
        /// Which log.
        log: LogName,
        /// Which event was due.
        wanted: u64,
        /// Which came.
        found: u64,
    },
}

/// One log's part.
#[derive(Clone, Debug)]
struct Part<S> {
    state: S,
    progress: Progress,
    mark: Mark,
}

/// A fold on its way through logs.
#[derive(Clone, Debug)]
pub struct Folding<F: Fold> {
    fold: F,
    policy: Policy,
    parts: BTreeMap<LogName, Part<F::State>>,
}

impl<F: Fold> Folding<F> {
    /// Before any event.
    #[must_use]
    pub const fn new(fold: F, policy: Policy) -> Self {
        Self {
            fold,
            policy,
            parts: BTreeMap::new(),
        }
    }

    /// Applies what a log gives, as far as it goes for now; `changed` is told of each change. How many
    /// events were applied. The reader begins at [`Folding::next`], or before.
    ///
    /// # Errors
    /// See [`FoldError`]; all before it is applied. A reader that begins at [`Folding::next`] meets the same
    /// event again.
    pub fn catch_up<D: Disk>(
        &mut self,
        log: &LogName,
        reader: &mut Reader<D>,
        mut changed: impl FnMut(&Token, F::Change),
    ) -> Result<u64, FoldError> {
        let applied = self.read(log, reader, &mut changed);
        if let Some(part) = self.parts.get_mut(log) {
            part.mark.log = reader.id();
        }
        applied
    }

    fn read<D: Disk>(
        &mut self,
        log: &LogName,
        reader: &mut Reader<D>,
        changed: &mut impl FnMut(&Token, F::Change),
    ) -> Result<u64, FoldError> {
        let mut applied = 0;
        loop {
            let read_failed = |source| FoldError::Read {
                log: log.clone(),
                source,
            };
            let given = reader.given();
            match reader.next_event() {
                Ok(None) => return Ok(applied),
                Ok(Some(event)) if event.offset < self.next(log) => {}
                Ok(Some(event)) => {
                    // What compaction took between says nothing that a later event does not. What could not be read, or
                    // applied, is not passed over so.
                    if given.is_some_and(|given| given <= self.next(log)) {
                        self.go_to(log, event.offset);
                    }
                    applied += u64::from(self.apply(log, &event, &mut *changed)?);
                }
                Err(error) => match (&error, self.policy) {
                    (ReadError::Damaged { to, .. } | ReadError::Gone { to, .. }, Policy::Skip) => {
                        self.pass(log, *to);
                    }
                    _ => return Err(read_failed(error)),
                },
            }
        }
    }

    /// Applies one event; whether it was applied, and not passed over.
    ///
    /// # Errors
    /// See [`FoldError`]; nothing has changed then.
    pub fn apply(
        &mut self,
        log: &LogName,
        event: &Event<'_>,
        mut changed: impl FnMut(&Token, F::Change),
    ) -> Result<bool, FoldError> {
        let part = self.parts.entry(log.clone());
        let part = part.or_insert_with(|| Part::begin(&self.fold));
        let offset = event.offset;
        if offset != part.progress.next {
            return Err(FoldError::Order {
                log: log.clone(),
                wanted: part.progress.next,
                found: offset,
            });
        }
        let sourced = Sourced { log, event: *event };
        let is_applied = match (self.fold.apply(&mut part.state, &sourced), self.policy) {
            (Ok(change), _) => {
                if let Some(change) = change {
                    let log = log.clone();
                    changed(&Token { log, offset }, change);
                }
                true
            }
            (Err(_), Policy::Skip) => {
                part.progress.refused += 1;
                false
            }
            (Err(why), Policy::Stop) => {
                let log = log.clone();
                return Err(FoldError::Refused { log, offset, why });
            }
        };
        part.progress.next = offset + 1;
        part.mark.last = Some(snapshot::mark(event));
        Ok(is_applied)
    }

    /// Goes on at an event: the log holds none between.
    pub fn go_to(&mut self, log: &LogName, offset: u64) {
        let part = self.parts.entry(log.clone());
        let part = part.or_insert_with(|| Part::begin(&self.fold));
        part.progress.next = part.progress.next.max(offset);
    }

    /// Goes on behind events that the log does not give, which are counted.
    pub fn pass(&mut self, log: &LogName, to: u64) {
        let part = self.parts.entry(log.clone());
        let part = part.or_insert_with(|| Part::begin(&self.fold));
        part.progress.missing += to.saturating_sub(part.progress.next);
        part.progress.next = part.progress.next.max(to);
        part.mark.last = None;
    }

    /// Says which log it is, where no reader does: its snapshot then tells it by the id alone.
    pub fn identify(&mut self, log: &LogName, id: LogId) {
        if let Some(part) = self.parts.get_mut(log) {
            part.mark = Mark {
                log: Some(id),
                last: None,
            };
        }
    }

    /// The event of a log that is next.
    #[must_use]
    pub fn next(&self, log: &LogName) -> u64 {
        self.progress(log).next
    }

    /// Where it is in a log.
    #[must_use]
    pub fn progress(&self, log: &LogName) -> Progress {
        self.parts
            .get(log)
            .map_or_else(Progress::default, |part| part.progress)
    }

    /// Whether the state holds what that event did.
    #[must_use]
    pub fn has_reached(&self, token: &Token) -> bool {
        self.next(&token.log) > token.offset
    }

    /// The state of one log; none where nothing of it was applied.
    #[must_use]
    pub fn of(&self, log: &LogName) -> Option<&F::State> {
        self.parts.get(log).map(|part| &part.state)
    }

    /// What all logs together come to, at the places that were reached: changes to the fold meanwhile are
    /// not in it.
    #[must_use]
    pub fn view(&self) -> View<F::State> {
        let mut state = self.fold.begin();
        for part in self.parts.values() {
            self.fold.merge(&mut state, &part.state);
        }
        let places = self.parts.iter();
        View {
            state,
            places: places
                .map(|(log, part)| (log.clone(), part.progress))
                .collect(),
        }
    }

    /// BLAKE3 of the view's state: the same on every node that has reached the same places of the same logs.
    #[must_use]
    pub fn hash(&self) -> Hash {
        let mut bytes = Vec::new();
        self.fold.encode(&self.view().state, &mut bytes);
        *blake3::hash(&bytes).as_bytes()
    }

    /// A log's state and place as bytes; none where nothing of it was applied.
    #[must_use]
    pub fn snapshot(&self, log: &LogName) -> Option<Vec<u8>> {
        let part = self.parts.get(log)?;
        let mut state = Vec::new();
        self.fold.encode(&part.state, &mut state);
        Some(snapshot::encode(
            &self.fold,
            log,
            (&part.progress, part.mark),
            &state,
        ))
    }

    /// Goes on from a snapshot of a log, whose reader shows whether it is of that log: the log still has the
    /// event before the place, unless retention has removed it. The reader is then at the place.
    ///
    /// # Errors
    /// See [`SnapshotError`]; the fold is as it was, and the reader anywhere.
    pub fn restore<D: Disk>(
        &mut self,
        log: &LogName,
        bytes: &[u8],
        disk: D,
    ) -> Result<Reader<D>, SnapshotError> {
        let (progress, mark, version, state) = snapshot::decode(&self.fold, log, bytes)?;
        let state = match version == F::VERSION {
            true => self.fold.decode(state).ok_or(SnapshotError::State)?,
            false => {
                let migrated = self.fold.migrate(version, state);
                migrated.ok_or(SnapshotError::Version(version))?
            }
        };
        let reader = snapshot::check(log, (&progress, mark), disk)?;
        let part = Part {
            state,
            progress,
            mark,
        };
        self.parts.insert(log.clone(), part);
        Ok(reader)
    }
}

impl<S> Part<S> {
    fn begin<F: Fold<State = S>>(fold: &F) -> Self {
        Self {
            state: fold.begin(),
            progress: Progress::default(),
            mark: Mark::default(),
        }
    }
}

/// A state, and the places that it is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View<S> {
    /// What all logs come to.
    pub state: S,
    /// Each log's place.
    pub places: BTreeMap<LogName, Progress>,
}

#[cfg(test)]
mod tests;
