//! `virga tune`: a router's host settings, with the reason of each, and their undoing.
//!
//! - [`setting`]: what can be read and set. [`facts`]: what there is. [`plan`]: what is wanted, and why.
//! - [`state`]: the previous values, written before each change, for `--undo`.
//!
//! Groups are applied in an order in which each sees what the former left: changing queues changes
//! interrupts and tables. Undoing goes backwards.

mod facts;
mod plan;
mod setting;
mod state;

use crate::{doctor::interface::FactsError, hw::Since, io::ethtool::Ethtool};
use facts::Facts;
use setting::{Action, Setting};
use state::{Place, State};
use std::{
    fmt, io,
    path::{Path, PathBuf},
};

pub(crate) use facts::cpu_list;
pub(crate) use plan::Plan;

/// Where previous values are kept.
pub const STATE_FOLDER: &str = "/var/lib/virga/tune";

/// What belongs together, in the order of applying.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Group {
    /// How many queues (ethtool -L).
    Queues,
    /// How many frames a ring holds (ethtool -G).
    Rings,
    /// How flows spread over queues (ethtool -X, -N rx-flow-hash).
    Rss,
    /// The mesh's port to a queue of its own (ethtool -N); with --steer.
    Steer,
    /// What keeps XDP from seeing packets as they are (ethtool -K).
    Offloads,
    /// How long a frame waits for its interrupt (ethtool -C).
    Coalesce,
    /// Which core serves which queue (/proc/irq).
    Irq,
    /// Polling by timer, and by sockets.
    BusyPoll,
    /// The cores' clock.
    Governor,
    /// Pages of 2 MiB; with --hugepages.
    Hugepages,
    /// Cores that do nothing else: no work of the kernel's, no new interrupts; the rest is printed, to be done by hand. With --cpus.
    Isolation,
}

impl Group {
    /// All, in order.
    pub const ALL: [Self; 11] = [
        Self::Queues,
        Self::Rings,
        Self::Rss,
        Self::Steer,
        Self::Offloads,
        Self::Coalesce,
        Self::Irq,
        Self::BusyPoll,
        Self::Governor,
        Self::Hugepages,
        Self::Isolation,
    ];
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Queues => "queues",
            Self::Rings => "rings",
            Self::Rss => "rss",
            Self::Steer => "steer",
            Self::Offloads => "offloads",
            Self::Coalesce => "coalesce",
            Self::Irq => "irq",
            Self::BusyPoll => "busy-poll",
            Self::Governor => "governor",
            Self::Hugepages => "hugepages",
            Self::Isolation => "isolation",
        })
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) groups: Vec<Group>,
    /// The cores that serve the interface; all that are online when not said.
    pub(crate) cpus: Option<Vec<u32>>,
    pub(crate) steer: Option<u32>,
    pub(crate) hugepages: Option<u32>,
    pub(crate) state_folder: PathBuf,
}

impl Options {
    fn cpus<'a>(&'a self, facts: &'a Facts) -> &'a [u32] {
        self.cpus.as_deref().unwrap_or(&facts.online)
    }
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TuneError {
    #[error("{0}: {1}; see `ip -brief link`")]
    Interface(String, FactsError),
    #[error("the driver cannot be asked: {0}")]
    Ethtool(io::Error),
    #[error("driver {0} runs no XDP programs: name the interface below, whose card receives")]
    NoXdp(String),
    #[error("CPU {0} is not online: choose among {1}")]
    Offline(u32, String),
    #[error(
        "{} cannot be used: {said}; put it right, or remove it and set what it lists by hand",
        path.display()
    )]
    State { path: PathBuf, said: String },
    #[error(
        "{0} was changed before it was made anew: `virga tune {0} --undo` first, for what was changed of the host"
    )]
    MadeAnew(String),
    #[error(
        "{} is of a {interface} in another network namespace (inode {namespace}): run this there, or say --state FOLDER \
         for this one's own; where that namespace is no more: `virga tune {interface} --forget`",
        path.display()
    )]
    Elsewhere {
        interface: String,
        namespace: u64,
        path: PathBuf,
    },
    #[error("this boot or network namespace cannot be told from another: {0}")]
    Place(io::Error),
}

/// One change, done or not.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) action: Action,
    /// The value before.
    pub(crate) from: String,
    pub(crate) result: Result<(), String>,
}

/// What would be changed.
pub(crate) fn dry_run(interface: &str, options: &Options) -> Result<Plan, TuneError> {
    let (facts, state, forgotten) = ready(interface, options)?;
    let mut all = Plan {
        forgotten,
        ..Plan::default()
    };
    for group in &options.groups {
        let plan = plan::plan(*group, &facts, options, &state);
        all.steps.extend(plan.steps);
        all.notes.extend(plan.notes);
    }
    Ok(all)
}

/// Changes it, each previous value written first. A refused change is left out and told of.
pub(crate) fn apply(interface: &str, options: &Options) -> Result<(Plan, Vec<Done>), TuneError> {
    let (mut facts, mut state, forgotten) = ready(interface, options)?;
    let ethtool = Ethtool::open(interface).map_err(TuneError::Ethtool)?;
    let mut done = Vec::new();
    let mut all = Plan {
        forgotten,
        ..Plan::default()
    };
    for setting in facts.fragile() {
        if let Some(now) = setting.read(&ethtool).filter(|now| !now.is_empty()) {
            state.guard(setting, now);
        }
    }
    for group in &options.groups {
        let plan = plan::plan(*group, &facts, options, &state);
        for step in &plan.steps {
            let former = state.clone();
            state.note(&step.setting, &step.from, &step.to);
            state.save(&options.state_folder, interface)?;
            let action = step.setting.action(interface, &step.to);
            let result = match (&step.setting, action.perform()) {
                // The rule's number is how it is taken away again.
                (Setting::Steer(_), Ok(said)) => added_rule(&said, &ethtool, &facts)
                    .map(|id| state.came_from(&step.setting, format!("rule {id}"))),
                (_, result) => result.map(drop).map_err(|error| error.to_string()),
            };
            if result.is_err() {
                state = former;
            }
            facts.rules = ethtool.rules().ok();
            state.save(&options.state_folder, interface)?;
            done.push(Done {
                action,
                from: step.from.clone(),
                result,
            });
        }
        if !plan.steps.is_empty() {
            facts = facts::gather(interface)?;
        }
        all.steps.extend(plan.steps);
        all.notes.extend(plan.notes);
    }
    state.settle(|setting| setting.read(&ethtool));
    state.save(&options.state_folder, interface)?;
    Ok((all, done))
}

/// The number of the rule that was just added: as the tool says, or else as the card does.
fn added_rule(said: &str, ethtool: &Ethtool, before: &Facts) -> Result<u32, String> {
    let is_new = |id: &u32| before.rules.as_ref().is_some_and(|r| !r.contains(id));
    let on_card = || ethtool.rules().ok()?.into_iter().find(is_new);
    setting::rule_id(said).or_else(on_card).ok_or_else(|| {
        let name = &before.interface;
        format!("the rule is there, but nothing tells its number: see `ethtool -n {name}`")
    })
}

/// Looks, and refuses what cannot be meant. With it, how many changes a boot has undone.
fn ready(interface: &str, options: &Options) -> Result<(Facts, State, usize), TuneError> {
    let facts = facts::gather(interface)?;
    let native = facts.profile.and_then(|profile| profile.native.value());
    if native == Some(&Since::Never) {
        return Err(TuneError::NoXdp(facts.driver));
    }
    let offline = |cpu: &&u32| !facts.online.contains(cpu);
    if let Some(cpu) = options.cpus.iter().flatten().find(offline) {
        let online: Vec<String> = facts.online.iter().map(u32::to_string).collect();
        return Err(TuneError::Offline(*cpu, online.join(",")));
    }
    let here = Place::here(facts.ifindex).map_err(TuneError::Place)?;
    let Some(state) = State::load(&options.state_folder, interface)? else {
        return Ok((facts, State::new(here), 0));
    };
    if state.of.boot != here.boot {
        return Ok((facts, State::new(here), state.changes.len()));
    }
    is_here(&state, &here, interface, &options.state_folder)?;
    if state.of.ifindex != here.ifindex {
        return Err(TuneError::MadeAnew(interface.to_owned()));
    }
    Ok((facts, state, 0))
}

/// Refuses what was changed in another network namespace: an interface of that name is another one there.
fn is_here(state: &State, here: &Place, interface: &str, folder: &Path) -> Result<(), TuneError> {
    if state.of.namespace == here.namespace {
        return Ok(());
    }
    Err(TuneError::Elsewhere {
        interface: interface.to_owned(),
        namespace: state.of.namespace,
        path: state::path(folder, interface),
    })
}

/// What came of putting things back.
#[derive(Debug, Default)]
pub(crate) struct Undone {
    pub(crate) done: Vec<Done>,
    /// Changes that are gone because the interface is.
    pub(crate) gone: usize,
    /// Changes that the last boot has undone.
    pub(crate) forgotten: usize,
}

/// Drops the notes of what was changed, and changes nothing; how many they were.
pub(crate) fn forget(interface: &str, folder: &Path) -> Result<usize, TuneError> {
    let Some(mut state) = State::load(folder, interface)? else {
        return Ok(0);
    };
    let count = std::mem::take(&mut state.changes).len();
    state.save(folder, interface)?;
    Ok(count)
}

/// Puts every previous value back, the latest first. What is refused stays in the state file.
pub(crate) fn undo(interface: &str, folder: &Path) -> Result<Undone, TuneError> {
    let there = match facts::gather(interface) {
        Ok(facts) => Some(facts),
        Err(TuneError::Interface(_, FactsError::Missing)) => None,
        Err(error) => return Err(error),
    };
    let Some(mut state) = State::load(folder, interface)? else {
        let missing = || TuneError::Interface(interface.to_owned(), FactsError::Missing);
        return there.map(|_| Undone::default()).ok_or_else(missing);
    };
    let ifindex = there.map_or(0, |facts| facts.ifindex);
    let here = Place::here(ifindex).map_err(TuneError::Place)?;
    if state.of.boot != here.boot {
        let forgotten = forget(interface, folder)?;
        return Ok(Undone {
            forgotten,
            ..Undone::default()
        });
    }
    is_here(&state, &here, interface, folder)?;
    let ethtool = Ethtool::open(interface).map_err(TuneError::Ethtool)?;
    let (results, gone) = put_back(interface, &state, &ethtool, ifindex);
    let (mut done, mut kept) = (Vec::new(), Vec::new());
    for (change, result) in std::mem::take(&mut state.changes)
        .into_iter()
        .zip(results)
        .rev()
    {
        let Some(result) = result else { continue };
        done.push(Done {
            action: change.setting.action(interface, &change.from),
            from: change.to.clone(),
            result: result.clone(),
        });
        if result.is_err() {
            kept.insert(0, change);
        }
    }
    state.changes = kept;
    state.save(folder, interface)?;
    Ok(Undone {
        done,
        gone,
        forgotten: 0,
    })
}

/// The result of each change that had to be put back, and how many went with the interface.
fn put_back(
    interface: &str,
    state: &State,
    ethtool: &Ethtool,
    ifindex: u32,
) -> (Vec<Option<Result<(), String>>>, usize) {
    let is_the_same = state.of.ifindex == ifindex;
    let (mut gone, mut results) = (0, vec![None; state.changes.len()]);
    // Twice, for what a card forgets when something else of it is put back.
    for is_first in [true, false] {
        for (change, result) in state.changes.iter().zip(&mut results).rev() {
            let is_of_a_former = change.setting.is_of_the_interface() && !is_the_same;
            gone += usize::from(is_of_a_former && is_first);
            let action = change.setting.action(interface, &change.from);
            let now = change.setting.read(ethtool);
            let is_back = now.as_deref() == Some(change.from.as_str())
                || (now.is_none() && *result == Some(Ok(())))
                || setting::is_missing_rule(&change.from, ethtool.rules().ok().as_deref());
            if is_of_a_former || is_back || action == Action::Nothing {
                continue;
            }
            let said = action.perform().map_err(|error| error.to_string());
            *result = Some(said.map(drop));
        }
    }
    (results, gone)
}
