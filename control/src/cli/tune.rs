//! `virga tune`: host settings for a router, printed, applied or undone.

use super::Failure;
use crate::tune::{self, Group, Options, Plan, TuneError};
use std::{
    io::{self, Write as _},
    path::PathBuf,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The interface whose card receives.
    interface: String,
    /// Change it; without, what would be changed is printed. Previous values are kept for --undo.
    #[arg(long, conflicts_with = "undo")]
    apply: bool,
    /// Put back what --apply changed.
    #[arg(long)]
    undo: bool,
    /// Drop what is noted for --undo, and change nothing.
    #[arg(long, conflicts_with_all = ["apply", "undo"])]
    forget: bool,
    /// These groups only.
    #[arg(long, value_enum, value_name = "GROUP", value_delimiter = ',')]
    only: Vec<Group>,
    /// Not these groups.
    #[arg(long, value_enum, value_name = "GROUP", value_delimiter = ',')]
    skip: Vec<Group>,
    /// The cores that serve the interface, such as 1-3; otherwise all.
    #[arg(long, value_name = "LIST", value_parser = cpus)]
    cpus: Option<Cpus>,
    /// Send the mesh's port to this queue alone.
    #[arg(long, value_name = "QUEUE")]
    steer: Option<u32>,
    /// This many pages of 2 MiB for AF_XDP sockets.
    #[arg(long, value_name = "PAGES")]
    hugepages: Option<u32>,
    /// Where previous values are kept.
    #[arg(long, value_name = "FOLDER", default_value = tune::STATE_FOLDER)]
    state: PathBuf,
}

/// Numbers of cores.
#[derive(Clone, Debug)]
struct Cpus(Vec<u32>);

fn cpus(list: &str) -> Result<Cpus, String> {
    let cpus = tune::cpu_list(list);
    cpus.map(Cpus).ok_or_else(|| "a list such as 1-3,6".into())
}

impl From<TuneError> for Failure {
    fn from(error: TuneError) -> Self {
        match error {
            TuneError::Ethtool(_) | TuneError::State { .. } | TuneError::Place(_) => {
                Self::Runtime(error.into())
            }
            _ => Self::Usage(error.into()),
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let interface = arguments.interface.as_str();
    if arguments.undo {
        return undo(interface, &arguments.state);
    }
    if arguments.forget {
        let forgotten = tune::forget(interface, &arguments.state)?;
        let changes = super::counted(forgotten as u64, "change");
        writeln!(io::stdout().lock(), "{changes} forgotten, none put back")?;
        return Ok(());
    }
    let is_wanted = |group: &Group| {
        let is_named = arguments.only.is_empty() || arguments.only.contains(group);
        is_named && !arguments.skip.contains(group)
    };
    let options = Options {
        groups: Group::ALL.into_iter().filter(is_wanted).collect(),
        cpus: arguments.cpus.clone().map(|cpus| cpus.0),
        steer: arguments.steer,
        hugepages: arguments.hugepages,
        state_folder: arguments.state.clone(),
    };
    if !arguments.apply {
        let plan = tune::dry_run(interface, &options)?;
        write_plan(interface, &plan)?;
        let last = match plan.steps.len() {
            0 => "nothing to change".into(),
            changes => format!("{changes} changes, none made: add --apply"),
        };
        writeln!(io::stdout().lock(), "{last}")?;
        return Ok(());
    }
    let (plan, done) = tune::apply(interface, &options)?;
    write_plan(interface, &plan)?;
    tell(
        &done,
        "changed",
        &format!(
            "; --undo puts back what {} lists",
            arguments.state.display()
        ),
    )
}

fn undo(interface: &str, folder: &std::path::Path) -> Result<(), Failure> {
    let tune::Undone {
        done,
        gone,
        forgotten,
    } = tune::undo(interface, folder)?;
    let mut out = io::stdout().lock();
    for change in done.iter().filter(|change| change.result.is_ok()) {
        writeln!(out, "{}   # was {}", change.action, change.from)?;
    }
    if gone > 0 {
        writeln!(
            out,
            "# {gone} more went with the interface that they were of"
        )?;
    }
    write_forgotten(&mut out, forgotten)?;
    drop(out);
    tell(&done, "put back", "")
}

/// What the last boot has put back.
fn write_forgotten(out: &mut impl io::Write, forgotten: usize) -> io::Result<()> {
    if forgotten == 0 {
        return Ok(());
    }
    writeln!(
        out,
        "# {forgotten} changed before this machine was booted: that has put them back"
    )
}

/// Commands by group, each with its reason; then what is left alone.
fn write_plan(interface: &str, plan: &Plan) -> io::Result<()> {
    let mut out = io::stdout().lock();
    write_forgotten(&mut out, plan.forgotten)?;
    for step in &plan.steps {
        let action = step.setting.action(interface, &step.to);
        writeln!(out, "{:<11}{action}", step.group)?;
        writeln!(
            out,
            "{:<11}# {} -> {}: {}",
            "", step.from, step.to, step.why
        )?;
    }
    for (group, note) in &plan.notes {
        writeln!(out, "{group:<11}# {note}")?;
    }
    Ok(())
}

/// The last line, and every refusal.
fn tell(done: &[tune::Done], verb: &str, more: &str) -> Result<(), Failure> {
    let mut refused = 0;
    for change in done {
        if let Err(said) = &change.result {
            refused += 1;
            eprintln!("virga: refused: {}: {said}", change.action);
        }
    }
    let mut out = io::stdout().lock();
    match done.len() - refused {
        0 => writeln!(out, "nothing {verb}")?,
        count => writeln!(out, "{count} {verb}{more}")?,
    }
    match refused {
        0 => Ok(()),
        _ => Err(Failure::Told(1)),
    }
}
