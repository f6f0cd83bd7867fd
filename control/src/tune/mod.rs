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
use state::State;
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
    /// Cores that do nothing else: printed, to be done by hand; with --cpus.
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
    let (facts, state) = ready(interface, options)?;
    let mut all = Plan::default();
    for group in &options.groups {
        let plan = plan::plan(*group, &facts, options, &state);
        all.steps.extend(plan.steps);
        all.notes.extend(plan.notes);
    }
    Ok(all)
}

/// Changes it, each previous value written first. A refused change is left out and told of.
pub(crate) fn apply(interface: &str, options: &Options) -> Result<(Plan, Vec<Done>), TuneError> {
    let (mut facts, mut state) = ready(interface, options)?;
    let ethtool = Ethtool::open(interface).map_err(TuneError::Ethtool)?;
    let (mut all, mut done) = (Plan::default(), Vec::new());
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
            let result = action.perform().map_err(|error| error.to_string());
            match &result {
                Ok(said) => {
                    // The rule's number is how it is taken away again.
                    let rule = setting::rule_id(said).map(|id| format!("rule {id}"));
                    if let (Setting::Steer(_), Some(rule)) = (&step.setting, rule) {
                        state.came_from(&step.setting, rule);
                    }
                }
                Err(_) => state = former,
            }
            state.save(&options.state_folder, interface)?;
            done.push(Done {
                action,
                from: step.from.clone(),
                result: result.map(drop),
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

/// Looks, and refuses what cannot be meant.
fn ready(interface: &str, options: &Options) -> Result<(Facts, State), TuneError> {
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
    let state = State::load(&options.state_folder, interface)?;
    if state
        .as_ref()
        .is_some_and(|state| state.ifindex != facts.ifindex)
    {
        return Err(TuneError::MadeAnew(interface.to_owned()));
    }
    let state = state.unwrap_or_else(|| State::new(facts.ifindex));
    Ok((facts, state))
}

/// Puts every previous value back, the latest first. What is refused stays in the state file.
/// With it, how much is gone because the interface is.
pub(crate) fn undo(interface: &str, folder: &Path) -> Result<(Vec<Done>, usize), TuneError> {
    let Some(mut state) = State::load(folder, interface)? else {
        return Ok((Vec::new(), 0));
    };
    let there = facts::gather(interface).ok();
    let is_the_same = there.is_some_and(|facts| facts.ifindex == state.ifindex);
    let ethtool = Ethtool::open(interface).map_err(TuneError::Ethtool)?;
    let (mut gone, mut results) = (0, vec![None; state.changes.len()]);
    // Twice, for what a card forgets when something else of it is put back.
    for is_first in [true, false] {
        for (change, result) in state.changes.iter().zip(&mut results).rev() {
            let is_of_a_former = change.setting.is_of_the_interface() && !is_the_same;
            gone += usize::from(is_of_a_former && is_first);
            let action = change.setting.action(interface, &change.from);
            let now = change.setting.read(&ethtool);
            let is_back = now.as_deref() == Some(change.from.as_str())
                || (now.is_none() && *result == Some(Ok(())));
            if is_of_a_former || is_back || action == Action::Nothing {
                continue;
            }
            let said = action.perform().map_err(|error| error.to_string());
            *result = Some(said.map(drop));
        }
    }
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
    Ok((done, gone))
}
