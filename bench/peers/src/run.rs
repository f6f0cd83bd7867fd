//! Rounds: each system's turn beside Virga's, and the figures.

use std::{net::SocketAddr, path::Path, thread, time::Duration};

use virga_bench::{
    report::{Entry, remark, skipped},
    rounds::median,
};

use crate::{
    end::{Args, Done, Problem, Role, Workload},
    nebula::{Hosts, INNER, Nebula, OUTER},
    relay,
    stage::{self, End, Process},
    system::Name,
};

/// How long a flow runs before it is measured, and is measured.
pub(crate) const WARM_UP: Duration = Duration::from_millis(400);
pub(crate) const WINDOW: Duration = Duration::from_millis(800);
/// The cores of sender and receiver.
pub(crate) const CORES: [usize; 2] = [0, 1];

const SYSTEMS: [Name; 6] = [
    Name::NetMesh,
    Name::Zenoh,
    Name::Nats,
    Name::Quinn,
    Name::Nebula,
    Name::Plain,
];

/// What a system is given, each with its unit. Only net-mesh takes batches whose events stay apart.
const fn workloads(system: Name) -> [(Workload, &'static str); 4] {
    let many = match system {
        Name::NetMesh => Workload::Batch,
        _ => Workload::Packed,
    };
    [
        (Workload::Single, "million events/s"),
        (many, "million events/s"),
        (Workload::Reliable, "GB/s"),
        (Workload::RoundTrip, "µs, p50"),
    ]
}

/// Names of a system's entries, in the order of the workloads.
const fn names(system: Name) -> [&'static str; 4] {
    macro_rules! names {
        ($system:literal, $many:literal) => {
            [
                concat!("peers.", $system, ".single_64b"),
                concat!("peers.", $system, $many),
                concat!("peers.", $system, ".reliable_1k"),
                concat!("peers.", $system, ".rtt_64b"),
            ]
        };
    }
    match system {
        Name::Virga => names!("virga", ".batch_64x64b"),
        Name::NetMesh => names!("net_mesh", ".batch_64x64b"),
        Name::Zenoh => names!("zenoh", ".packed_64x64b"),
        Name::Nats => names!("nats", ".packed_64x64b"),
        Name::Quinn => names!("quinn", ".packed_64x64b"),
        Name::Nebula => names!("nebula", ".packed_64x64b"),
        Name::Plain => names!("plain", ".packed_64x64b"),
    }
}

/// Why a system cannot be measured, where it cannot.
fn missing(system: Name) -> Option<String> {
    match system {
        _ if !system.is_built() => Some("its crates were not built in".to_owned()),
        Name::Nats => absent("nats-server", "nats-server"),
        Name::Nebula if !rustix::process::geteuid().is_root() => {
            Some("network namespaces want root".to_owned())
        }
        Name::Nebula if !Path::new("/dev/net/tun").exists() => {
            Some("there is no /dev/net/tun".to_owned())
        }
        Name::Nebula => absent("nebula", "nebula").or_else(|| absent("nebula-cert", "nebula")),
        _ => None,
    }
}

fn absent(program: &str, package: &str) -> Option<String> {
    let is_absent = stage::find(program).is_none();
    is_absent.then(|| format!("{program} is not installed (Debian: {package})"))
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
        for ((workload, unit), name) in workloads(system).into_iter().zip(names(system)) {
            match beside(folder.path(), system, workload, rounds) {
                Ok(figures) => {
                    remark(name, figures.theirs_in_words(workload));
                    entries.push(figures.entry(name, unit, workload));
                }
                Err(error) => skipped(name, error),
            }
        }
        if system == Name::NetMesh {
            let name = "peers.net_mesh.relay";
            match relay::beside(folder.path(), rounds) {
                Ok(entry) => entries.push(entry),
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
    theirs_lost: Vec<f64>,
    ratios: Vec<f64>,
}

impl Figures {
    /// What the table has no room for: how far the other's rounds lie apart, and what it lost.
    fn theirs_in_words(&self, workload: Workload) -> String {
        let low = self.theirs.iter().copied().fold(f64::INFINITY, f64::min);
        let high = self.theirs.iter().copied().fold(0.0, f64::max);
        let rounds = format!("the other's rounds: {low:.3} to {high:.3}");
        match workload {
            Workload::Reliable | Workload::RoundTrip => rounds,
            _ => format!("{rounds}, {:.1} % lost", median(&self.theirs_lost) * 100.0),
        }
    }

    fn entry(&self, name: &'static str, unit: &'static str, workload: Workload) -> Entry {
        let entry = Entry::new(name, unit, median(&self.ours))
            .beside(median(&self.theirs))
            .ratio(median(&self.ratios));
        match workload {
            Workload::RoundTrip => entry.spread(&self.ours),
            Workload::Reliable => entry.spread(&self.ratios),
            Workload::Single | Workload::Batch | Workload::Packed => {
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
    // Ours runs on the same two hosts, without the tunnel.
    let hosts = match system {
        Name::Nebula => Some(Hosts::join()?),
        _ => None,
    };
    let mut figures = Figures::default();
    for _ in 0..rounds {
        let ours = turn(folder, Name::Virga, workload, hosts.as_ref())?;
        let theirs = turn(folder, system, workload, hosts.as_ref())?;
        figures.ours.push(ours.figure);
        figures.lost.push(ours.lost);
        figures.theirs.push(theirs.figure);
        figures.theirs_lost.push(theirs.lost);
        figures.ratios.push(ours.figure / theirs.figure);
    }
    Ok(figures)
}

/// One turn of one system: its processes are started, measured and ended.
fn turn(
    folder: &Path,
    system: Name,
    workload: Workload,
    hosts: Option<&Hosts>,
) -> Result<Turn, Problem> {
    let mut at = [stage::free()?, stage::free()?];
    let mut nebula = None;
    if let Some(hosts) = hosts {
        let is_tunnel = system == Name::Nebula;
        let addresses = if is_tunnel { INNER } else { OUTER };
        for (at, address) in at.iter_mut().zip(addresses) {
            at.set_ip(address.into());
        }
        if is_tunnel {
            nebula = Some(Nebula::start(folder, hosts, CORES)?);
        }
    }
    let namespace = |end: usize| hosts.map(|hosts| hosts.namespaces[end].as_str());
    let server: Option<(Process, SocketAddr)> = match system {
        Name::Nats => {
            let at = stage::free()?;
            Some((stage::nats_server(folder, at, CORES[1])?, at))
        }
        _ => None,
    };
    let next = |other: SocketAddr| server.as_ref().map_or(other, |(_, at)| *at);
    let args = |role, core, listen, next| Args {
        system,
        role,
        workload,
        core,
        listen,
        next,
        far: None,
        folder: folder.to_path_buf(),
        said: Vec::new(),
    };
    let to_receive = args(Role::Receive, CORES[1], at[1], next(at[0]));
    let mut receiver = End::start(&to_receive, namespace(1))?;
    let mut to_send = args(Role::Send, CORES[0], at[0], next(at[1]));
    to_send.said.push(receiver.said.clone());
    let mut sender = End::start(&to_send, namespace(0))?;
    thread::sleep(WARM_UP);
    let before = [sender.done()?, receiver.done()?];
    thread::sleep(WINDOW);
    let after = [sender.done()?, receiver.done()?];
    drop(nebula);
    figure(workload, &before, &after).map_err(|e| format!("{}: {e}", system.text()).into())
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub(crate) fn float(count: u64) -> f64 {
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
