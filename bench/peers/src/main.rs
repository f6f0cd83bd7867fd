//! `virga-peers`: Virga beside other systems, in one run: the same payloads, the same cores, encrypted where they can.
//!
//! - [`run`]: rounds over systems and workloads, alternating with Virga; the figures.
//! - [`relay`]: net-mesh's relay beside ours.
//! - [`stage`]: an end as a process of its own, asked what it has done; certificates; a NATS server. [`nebula`]: two hosts with a tunnel.
//! - [`end`]: what runs in such a process: [`system`] has one module a system.
//!
//! Sender and receiver are a process each, all of its threads on one core; a server between has the receiver's core. Figures are of what came at the receiver, by its clock; round trips by the
//! asker's. Every wait has an end, and ends are killed by their id.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use virga_bench::{page, report};

mod end;
mod nebula;
mod relay;
mod run;
mod stage;
mod system;

/// What holds for all figures of the page.
const NOTES: [(&str, &str); 4] = [
    (
        "ends",
        "a process each over loopback, the sender on core 0, the receiver on core 1, a server between (NATS) on core 1; \
         nebula's and ours beside it in two network namespaces joined by a veth pair; all encrypted but `plain`",
    ),
    (
        "batch, packed",
        "`batch`: 64 events in one call, each an event at the receiver; `packed`: the application puts 64 into one message, \
         or into as few datagrams as hold them, ours too",
    ),
    (
        "reliable",
        "a reliable stream of net-mesh's, a stream of quinn's, TCP for zenoh, nebula and `plain`; of NATS a slow subscriber can lose",
    ),
    (
        "relay",
        "single events that arrive by a relay in user space, a second of its processor's time: it has core 1, both ends have \
         core 0; a packet of net-mesh's holds one event, one of ours those that were queued by then",
    ),
];

/// Measures Virga beside other systems.
#[derive(Debug, Parser)]
struct Options {
    /// Alternating rounds; the figures are their medians.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// One system only.
    #[arg(long)]
    only: Option<system::Name>,
    /// Write a results page into this folder.
    #[arg(long, value_name = "FOLDER")]
    page: Option<PathBuf>,
    /// Print the entries as JSON, one line, and the table on standard error.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    end: Option<Part>,
}

#[derive(Debug, clap::Subcommand)]
enum Part {
    /// One end of one system: started by this program itself.
    #[command(hide = true)]
    End(end::Args),
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(Part::End(args)) = &options.end {
        return match end::run(args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("virga-peers end {:?} {:?}: {error}", args.system, args.role);
                ExitCode::FAILURE
            }
        };
    }
    let entries = match run::measure(options.rounds, options.only) {
        Ok(entries) => entries,
        Err(error) => {
            eprintln!("virga-peers: {error}");
            return ExitCode::FAILURE;
        }
    };
    report::print(&entries, options.json);
    if let Some(folder) = &options.page
        && let Err(error) = page::write(
            folder,
            &entries,
            "scripts/bench peers --page FOLDER",
            &NOTES,
        )
    {
        eprintln!("virga-peers: the results page: {error}");
        return ExitCode::FAILURE;
    }
    if entries.is_empty() {
        return ExitCode::from(3);
    }
    ExitCode::SUCCESS
}
