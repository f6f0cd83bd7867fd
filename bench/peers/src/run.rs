//! Rounds: each system's turn beside Virga's, and the figures.

use std::{net::SocketAddr, path::Path, thread, time::Duration};

use virga_bench::{
    report::{Entry, skipped},
    rounds::median,
};

use crate::{
    end::{Args, Done, Problem, Role, Workload},
    stage::{self, End, Process},
    system::Name,
};

/// How long a flow runs before it is measured, and is measured.
const WARM_UP: Duration = Duration::from_millis(400);
const WINDOW: Duration = Duration::from_millis(800);
/// The cores of sender and receiver.
const CORES: [usize; 2] = [0, 1];

const SYSTEMS: [Name; 3] = [Name::Quinn, Name::Nats, Name::Plain];

const WORKLOADS: [(Workload, &str); 4] = [
    (Workload::Single, "million events/s"),
    (Workload::Batch, "million events/s"),
    (Workload::Reliable, "GB/s"),
    (Workload::RoundTrip, "µs, p50"),
];

/// Names of a system's entries, in the order of the workloads.
fn names(system: Name) -> [&'static str; 4] {
    macro_rules! names {
        ($system:literal) => {
            [
                concat!("peers.", $system, ".single_64b"),
                concat!("peers.", $system, ".batch_64x64b"),
                concat!("peers.", $system, ".reliable_1k"),
                concat!("peers.", $system, ".rtt_64b"),
            ]
        };
    }
    match system {
        Name::Virga => names!("virga"),
        Name::Nats => names!("nats"),
        Name::Quinn => names!("quinn"),
        Name::Plain => names!("plain"),
    }
}

/// Why a system cannot be measured, where it cannot.
fn missing(system: Name) -> Option<&'static str> {
    match system {
        Name::Nats if stage::find("nats-server").is_none() => {
            Some("nats-server is not installed (Debian: nats-server)")
        }
        _ => None,
    }
}

/// Measures.
pub(crate) fn measure(rounds: u32, only: Option<Name>) -> Result<Vec<Entry>, Problem> {
    if only == Some(Name::Virga) {
        return Err(
            "virga is what the others are measured beside: --only takes one of those".into(),
        );
    }
    let cores = thread::available_parallelism()?.get();
    if cores < CORES.len() {
        return Err(format!("sender and receiver want a core each, and there is {cores}").into());
    }
    let folder = tempfile::Builder::new().prefix("virga-peers-").tempdir()?;
    stage::write_certificate(folder.path())?;
    let mut entries = Vec::new();
    for system in SYSTEMS {
        if only.is_some_and(|only| only != system) {
            continue;
        }
        if let Some(reason) = missing(system) {
            skipped(&format!("peers.{}", system.text()), reason);
            continue;
        }
        for ((workload, unit), name) in WORKLOADS.into_iter().zip(names(system)) {
            match beside(folder.path(), system, workload, rounds) {
                Ok(figures) => entries.push(figures.entry(name, unit, workload)),
                Err(error) => skipped(name, error),
            }
        }
    }
    Ok(entries)
}

/// What a turn gives: the figure, and the share of what was sent that did not come.
struct Turn {
    figure: f64,
    lost: f64,
}

/// Ours, theirs, and the rounds' own ratios.
#[derive(Default)]
struct Figures {
    ours: Vec<f64>,
    lost: Vec<f64>,
    theirs: Vec<f64>,
    ratios: Vec<f64>,
}

impl Figures {
    fn entry(&self, name: &'static str, unit: &'static str, workload: Workload) -> Entry {
        let entry = Entry::new(name, unit, median(&self.ours))
            .beside(median(&self.theirs))
            .ratio(median(&self.ratios));
        match workload {
            Workload::RoundTrip => entry.spread(&self.ours),
            Workload::Reliable => entry.spread(&self.ratios),
            Workload::Single | Workload::Batch => {
                entry.spread(&self.ratios).lost(median(&self.lost))
            }
        }
    }
}

fn beside(
    folder: &Path,
    system: Name,
    workload: Workload,
    rounds: u32,
) -> Result<Figures, Problem> {
    let mut figures = Figures::default();
    for _ in 0..rounds {
        let ours = turn(folder, Name::Virga, workload)?;
        let theirs = turn(folder, system, workload)?;
        figures.ours.push(ours.figure);
        figures.lost.push(ours.lost);
        figures.theirs.push(theirs.figure);
        figures.ratios.push(ours.figure / theirs.figure);
    }
    Ok(figures)
}

/// One turn of one system: its processes are started, measured and ended.
fn turn(folder: &Path, system: Name, workload: Workload) -> Result<Turn, Problem> {
    let at = [stage::free()?, stage::free()?];
    let server: Option<(Process, SocketAddr)> = match system {
        Name::Nats => {
            let at = stage::free()?;
            Some((stage::nats_server(folder, at, CORES[1])?, at))
        }
        Name::Virga | Name::Quinn | Name::Plain => None,
    };
    let next = |other: SocketAddr| server.as_ref().map_or(other, |(_, at)| *at);
    let args = |role, core, listen, next| Args {
        system,
        role,
        workload,
        core,
        listen,
        next,
        folder: folder.to_path_buf(),
    };
    let mut receiver = End::start(&args(Role::Receive, CORES[1], at[1], next(at[0])))?;
    let mut sender = End::start(&args(Role::Send, CORES[0], at[0], next(at[1])))?;
    thread::sleep(WARM_UP);
    let before = [sender.done()?, receiver.done()?];
    thread::sleep(WINDOW);
    let after = [sender.done()?, receiver.done()?];
    figure(workload, &before, &after).map_err(|e| format!("{}: {e}", system.text()).into())
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

/// What came in the window, in the workload's unit.
fn figure(
    workload: Workload,
    [sender, receiver]: &[Done; 2],
    [sender_after, receiver_after]: &[Done; 2],
) -> Result<Turn, Problem> {
    if workload == Workload::RoundTrip {
        let mut all = sender_after.round_trips_ns.clone();
        all.sort_unstable();
        let middle = all.get(all.len() / 2).ok_or("no answer came")?;
        return Ok(Turn {
            figure: float(*middle) / 1e3,
            lost: 0.0,
        });
    }
    let taken = float(receiver_after.taken.saturating_sub(receiver.taken));
    let bytes = float(
        receiver_after
            .taken_bytes
            .saturating_sub(receiver.taken_bytes),
    );
    let sent = float(sender_after.sent.saturating_sub(sender.sent));
    let elapsed_ns = float(
        receiver_after
            .elapsed_ns
            .saturating_sub(receiver.elapsed_ns),
    );
    if taken == 0.0 || elapsed_ns == 0.0 {
        return Err("nothing came".into());
    }
    Ok(Turn {
        figure: match workload {
            Workload::Reliable => bytes / elapsed_ns,
            _ => taken * 1e3 / elapsed_ns,
        },
        // What was under way when the window began came in it too.
        lost: (1.0 - taken / sent.max(taken)).max(0.0),
    })
}
