//! `virga log`: the logs below a folder, looked into, checked, exported, filled.
//!
//! All but `import` only read, also while another process writes the log; `replicas` asks a running node.

mod import;
mod order;
mod replicas;
mod show;
mod sign;
mod tail;

use super::{Failure, counted, print_json};
use std::{
    io::{self, Write as _},
    path::PathBuf,
};
use virga_state::{
    Cursor, LogName, NameError, OpenError,
    fork::ForkProof,
    io::{folder::Folder, open},
    verify::{self, Depth, Report},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the logs.
    Ls(List),
    /// Print a log's events, each on a line.
    Cat(show::Cat),
    /// Print a log's events and those that come, each on a line.
    Tail(tail::Arguments),
    /// Print a log's events as JSON objects, one a line, which `import` takes; then check the log's signatures.
    Export(show::Export),
    /// Append events from standard input, JSON objects as `export` prints them, one a line.
    Import(import::Arguments),
    /// Check every byte of a log, and every signature.
    Verify(Which),
    /// Say how the replicas of a log on several nodes stand, as a running node knows.
    Replicas(replicas::Arguments),
    /// Say how much a log holds.
    Stats(Stats),
    /// Say which of two signed events was before the other, by what their entities had observed.
    Order(order::Arguments),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// The folder that holds the logs.
    #[arg(long, value_name = "FOLDER")]
    logs: PathBuf,
    /// Print a JSON object a log.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Stats {
    #[command(flatten)]
    log: OneLog,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Which {
    #[command(flatten)]
    log: OneLog,
    /// Fail if any event is not signed.
    #[arg(long)]
    signed: bool,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct OneLog {
    /// The log's name.
    #[arg(value_parser = log_name)]
    name: LogName,
    /// The folder that holds the logs.
    #[arg(long, value_name = "FOLDER")]
    logs: PathBuf,
}

pub(super) fn log_name(text: &str) -> Result<LogName, NameError> {
    LogName::parse(text)
}

/// Where reading begins, and how far it goes.
#[derive(Debug, clap::Args)]
struct Range {
    /// Begin there: start, end, an offset, after:OFFSET, or time:SECONDS since 1970.
    #[arg(long, value_name = "CURSOR", default_value_t = Cursor::Start, allow_negative_numbers = true)]
    from: Cursor,
    /// End after so many events.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// Why a log could not be used.
#[derive(Debug, thiserror::Error)]
enum LogError {
    /// It could not be opened.
    #[error("the log {name}: {source}")]
    Open { name: LogName, source: OpenError },
    /// The folder could not be listed.
    #[error("the folder {}: {source}", folder.display())]
    Folder { folder: PathBuf, source: io::Error },
}

impl OneLog {
    fn read(&self) -> Result<Folder, LogError> {
        open::read(&self.logs, &self.name).map_err(self.failed())
    }

    fn failed(&self) -> impl FnOnce(OpenError) -> LogError + use<'_> {
        |source| LogError::Open {
            name: self.name.clone(),
            source,
        }
    }

    fn report(&self, depth: Depth) -> Result<Report, LogError> {
        let folder = self.read()?;
        verify::verify(&folder, &self.name, depth).map_err(self.failed())
    }
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Ls(list) => ls(list),
        Command::Cat(cat) => show::cat(cat),
        Command::Tail(arguments) => tail::run(arguments),
        Command::Export(export) => show::export(export),
        Command::Import(arguments) => import::run(arguments),
        Command::Verify(which) => verify(which),
        Command::Stats(which) => stats(which),
        Command::Replicas(arguments) => replicas::run(arguments),
        Command::Order(arguments) => order::run(arguments),
    }
}

#[derive(serde::Serialize)]
struct Facts<'a> {
    name: &'a str,
    first: u64,
    end: u64,
    segments: u64,
    bytes: u64,
    /// Which of its files it does not have, or not so that it can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<&'static str>,
}

fn ls(list: &List) -> Result<(), Failure> {
    let folder = |source| LogError::Folder {
        folder: list.logs.clone(),
        source,
    };
    let names = open::list(&list.logs)
        .map_err(folder)
        .map_err(Failure::runtime)?;
    let mut has_failed = false;
    for name in names {
        let logs = list.logs.clone();
        let log = OneLog { name, logs };
        let report = match log.report(Depth::Headers) {
            Ok(report) => report,
            Err(error) => {
                has_failed = true;
                writeln!(io::stderr(), "virga: {error}")?;
                continue;
            }
        };
        let missing = report.is_manifest_lost.then_some("manifest");
        if list.json {
            print_json(&Facts {
                name: log.name.as_str(),
                first: report.first_offset,
                end: report.end,
                segments: report.segments,
                bytes: report.bytes,
                missing,
            })?;
        } else {
            let Report {
                first_offset,
                end,
                segments,
                bytes,
                ..
            } = report;
            let missing = missing.map_or_else(String::new, |file| {
                format!("\tno {file}: it is made anew when the log is written next")
            });
            let line = format!(
                "{}\t{first_offset}..{end}\t{segments} segments\t{bytes} bytes{missing}",
                log.name
            );
            writeln!(io::stdout(), "{line}")?;
        }
    }
    match has_failed {
        true => Err(Failure::Told(1)),
        false => Ok(()),
    }
}

#[derive(serde::Serialize)]
struct Checked<'a> {
    name: &'a str,
    segments: u64,
    batches: u64,
    events: u64,
    bytes: u64,
    first: u64,
    end: u64,
    first_time_unix_ns: Option<u64>,
    last_time_unix_ns: Option<u64>,
    chain: Option<String>,
    unfinished_bytes: u64,
    flaws: u64,
    compacted_segments: u64,
    removed_events: u64,
    removed_bytes: u64,
    /// Of a log that was checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    signed: Option<Signed>,
}

#[derive(serde::Serialize)]
struct Signed {
    events: u64,
    batches: u64,
    bad: u64,
    refused: u64,
    waiting: u64,
    forks: usize,
}

impl<'a> Checked<'a> {
    fn new(name: &'a LogName, report: &Report, depth: Depth) -> Self {
        let audit = &report.audit;
        let signed = Signed {
            events: audit.signed_events,
            batches: audit.signed_batches,
            bad: audit.bad_signatures,
            refused: audit.refused_batches,
            waiting: audit.waiting_batches,
            forks: audit.forks.len(),
        };
        Self {
            name: name.as_str(),
            segments: report.segments,
            batches: report.batches,
            events: report.events,
            bytes: report.bytes,
            first: report.first_offset,
            end: report.end,
            first_time_unix_ns: report.first_time,
            last_time_unix_ns: report.last_time,
            chain: report.chain.map(|chain| crate::hex::encode(&chain)),
            unfinished_bytes: report.unfinished_bytes,
            flaws: report.flaw_count,
            compacted_segments: report.compacted_segments,
            removed_events: report.removed_events,
            removed_bytes: report.removed_bytes,
            signed: (depth == Depth::Content).then_some(signed),
        }
    }

    fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let Self {
            segments,
            batches,
            events,
            bytes,
            first,
            end,
            ..
        } = self;
        writeln!(
            out,
            "{}: {events} events ({first}..{end}) in {batches} batches",
            self.name
        )?;
        writeln!(out, "{segments} segments of {bytes} bytes")?;
        if let (Some(first), Some(last)) = (self.first_time_unix_ns, self.last_time_unix_ns) {
            writeln!(out, "from {} to {}", time(first), time(last))?;
        }
        if let Some(chain) = &self.chain {
            writeln!(out, "chain {chain}")?;
        }
        if let Some(signed) = &self.signed {
            let Signed {
                events, batches, ..
            } = signed;
            let of = self.events;
            writeln!(
                out,
                "{events} of {of} events are signed, in {batches} batches"
            )?;
        }
        if self.compacted_segments > 0 {
            let (events, bytes) = (self.removed_events, self.removed_bytes);
            let segments = counted(self.compacted_segments, "segment");
            writeln!(
                out,
                "compaction took {events} events and {bytes} bytes out of {segments}"
            )?;
        }
        if self.unfinished_bytes > 0 {
            let bytes = self.unfinished_bytes;
            writeln!(
                out,
                "{bytes} bytes of a write that is under way, or was cut short"
            )?;
        }
        Ok(())
    }
}

/// A time in nanoseconds since 1970, for people.
fn time(unix_ns: u64) -> String {
    let since = std::time::Duration::from_nanos(unix_ns);
    humantime::format_rfc3339_nanos(std::time::UNIX_EPOCH + since).to_string()
}

fn verify(which: &Which) -> Result<(), Failure> {
    let report = which.log.report(Depth::Content).map_err(Failure::runtime)?;
    for flaw in &report.flaws {
        writeln!(io::stderr(), "virga: {flaw}")?;
    }
    print_checked((&which.log, which.json), &report, Depth::Content)?;
    match audit(&report, which.signed)? && report.flaw_count == 0 {
        true => Ok(()),
        false => Err(Failure::Told(1)),
    }
}

/// Tells of forks, and of unsigned events where there shall be none; whether there is nothing to tell.
fn audit(report: &Report, must_be_signed: bool) -> io::Result<bool> {
    for fork in &report.audit.forks {
        writeln!(io::stderr(), "virga: {}", told(fork))?;
    }
    for (batches, why) in [
        (
            report.audit.refused_batches,
            "without an order: what is said there of other events is not so, or there was no room to look at more",
        ),
        (
            report.audit.waiting_batches,
            "after events that are not in this log",
        ),
    ] {
        if batches > 0 {
            let batches = counted(batches, "signature");
            writeln!(io::stderr(), "virga: {batches} {why}")?;
        }
    }
    let unsigned = report.events.saturating_sub(report.audit.signed_events);
    let is_missing = must_be_signed && unsigned > 0;
    if is_missing {
        writeln!(
            io::stderr(),
            "virga: {}",
            counted(unsigned, "unsigned event")
        )?;
    }
    Ok(report.audit.forks.is_empty() && !is_missing)
}

/// A fork in words, with what proves it.
fn told(fork: &ForkProof) -> String {
    let (one, other) = (&fork.one, &fork.other);
    format!(
        "the entity {} signed two things that contradict each other, from its event {} on {} on: {} and {}",
        crate::hex::encode(&one.statement.entity),
        fork.from(),
        one.statement.channel,
        crate::hex::encode_bytes(&one.encode()),
        crate::hex::encode_bytes(&other.encode()),
    )
}

fn stats(which: &Stats) -> Result<(), Failure> {
    let report = which.log.report(Depth::Headers).map_err(Failure::runtime)?;
    print_checked((&which.log, which.json), &report, Depth::Headers)
}

fn print_checked(
    (log, json): (&OneLog, bool),
    report: &Report,
    depth: Depth,
) -> Result<(), Failure> {
    let checked = Checked::new(&log.name, report, depth);
    match json {
        true => print_json(&checked),
        false => Ok(checked.print()?),
    }
}
