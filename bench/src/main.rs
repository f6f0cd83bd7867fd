//! `virga-bench`: what the whole system costs, each figure beside a reference measured in the same run.
//!
//! - [`virga_bench::world`]: the tables and frames that are measured with.
//! - [`rounds`]: the median of alternating rounds.
//! - [`report`]: the table, the JSON; [`page`]: the results page.
//! - one module a measurement: [`xdp`], [`guard`], [`forward`] (over the chains of [`stage`]), [`transport`],
//!   [`fanout`], [`log`], [`failover`], [`growth`].

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

mod cpus;
#[path = "../../control/examples/demo/diamond.rs"]
mod diamond;
mod failover;
mod fanout;
mod forward;
mod growth;
mod guard;
#[path = "../../control/examples/demo/hosts.rs"]
mod hosts;
mod interrupt;
mod log;
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "the routers' tests use all of it, and want no other errors"
)]
mod mesh;
mod stage;
mod transport;
mod xdp;
mod xdp_tools;

use report::{Entry, Skip};
use virga_bench::{page, report, rounds, world};

/// A measurement: its name, what it measures, and how.
type Measurement = (&'static str, fn(u32) -> Result<Vec<Entry>, Skip>);

/// In the order of `all`.
const MEASUREMENTS: [Measurement; 8] = [
    ("xdp", xdp::measure),
    ("guard", guard::measure),
    ("forward", forward::measure),
    ("transport", transport::measure),
    ("fanout", fanout::measure),
    ("log", log::measure),
    ("failover", failover::measure),
    ("mesh", growth::measure),
];

/// What holds for all figures of the page.
const NOTES: [(&str, &str); 3] = [
    (
        "forwarding",
        "NIC: veth pairs between network namespaces; mode: native XDP; generator, router and sink on one core but for \
         the mixes with hostile traffic (generator on one, router and sink on another); frames of 122 bytes (an empty \
         sealed payload) where the name says nothing else",
    ),
    (
        "transport",
        "sender and receiver are workers with a core each and the default driver, io_uring where the kernel has it; the \
         application is a service on its worker's thread, so that no event crosses threads, but for \
         transport.single_64b_outside, where programs of their own publish and subscribe through the Mesh API; nothing \
         polls: a worker without work sleeps in the kernel",
    ),
    (
        "time",
        "of the runs in the kernel the fixed cost of their system calls, measured in each round, is taken off",
    ),
];

/// Measures the whole system, each figure beside a reference in the same run.
#[derive(Debug, Parser)]
struct Options {
    /// `xdp`, `guard`, `forward`, `transport`, `fanout`, `log`, `failover`, `mesh`, or `all`.
    #[arg(value_parser = ["xdp", "guard", "forward", "transport", "fanout", "log", "failover", "mesh", "all"])]
    name: String,
    /// Alternating rounds; the figures are their medians. `forward` makes 9 at most, `transport` 11, `fanout` 7, `log` and `failover` 9, `mesh` one.
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Write a results page into this folder: Markdown, and plots as SVG.
    #[arg(long, value_name = "FOLDER")]
    page: Option<PathBuf>,
    /// Print the entries as JSON, one line, and the table on standard error.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Err(problem) = interrupt::listen() {
        eprintln!("virga-bench: signals cannot be listened for: {problem}");
        return ExitCode::FAILURE;
    }
    let mut entries = Vec::new();
    let mut measured = 0;
    for (name, measure) in MEASUREMENTS {
        if options.name != "all" && options.name != name {
            continue;
        }
        let figures = measure(options.rounds).and_then(|f| interrupt::check().map(|()| f));
        match figures {
            Ok(more) => {
                measured += 1;
                entries.extend(more);
            }
            Err(Skip::Missing(reason)) => report::skipped(name, reason),
            Err(Skip::Failed(reason)) => {
                eprintln!("virga-bench {name}: {reason}");
                return ExitCode::FAILURE;
            }
        }
    }
    report::print(&entries, options.json);
    if let Some(folder) = &options.page {
        let command = format!("scripts/bench {} --page FOLDER", options.name);
        if let Err(problem) = page::write(folder, &entries, &command, &NOTES) {
            eprintln!("virga-bench: the results page: {problem}");
            return ExitCode::FAILURE;
        }
    }
    if measured == 0 {
        return ExitCode::from(3);
    }
    ExitCode::SUCCESS
}
