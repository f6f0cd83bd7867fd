//! `virga log cat` and `virga log export`.

use super::{Failure, OneLog, Range, audit};
use crate::{cli::subscribe::shown, hex};
use std::io::{self, IsTerminal as _, Write};
use virga_state::{Event, ReadError, Reader, format::Fault, verify::Depth};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Cat {
    #[command(flatten)]
    log: OneLog,
    #[command(flatten)]
    range: Range,
    #[command(flatten)]
    shape: Shape,
}

/// How an event is printed.
#[derive(Debug, clap::Args)]
pub(super) struct Shape {
    /// Print the events as they were appended, with nothing before, between or after them.
    #[arg(long)]
    raw: bool,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Export {
    #[command(flatten)]
    log: OneLog,
    #[command(flatten)]
    range: Range,
    /// Fail if any event of the log is not signed.
    #[arg(long)]
    signed: bool,
}

#[derive(serde::Serialize)]
struct Line<'a> {
    offset: u64,
    time_unix_ns: u64,
    entity: String,
    observed: u64,
    parent: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

pub(super) fn cat(cat: &Cat) -> Result<(), Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    each(&cat.log, &cat.range, |event| {
        print(&mut out, event, &cat.shape)
    })?;
    Ok(out.flush()?)
}

/// Prints an event, to a terminal without what would control it.
pub(super) fn print(out: &mut impl Write, event: &Event<'_>, shape: &Shape) -> io::Result<()> {
    match !shape.raw && io::stdout().is_terminal() {
        true => out.write_all(shown(event.payload).as_bytes())?,
        false => out.write_all(event.payload)?,
    }
    match shape.raw {
        true => Ok(()),
        false => out.write_all(b"\n"),
    }
}

pub(super) fn export(export: &Export) -> Result<(), Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let exported = each(&export.log, &export.range, |event| {
        let text = std::str::from_utf8(event.payload).ok();
        let line = Line {
            offset: event.offset,
            time_unix_ns: event.time_unix_ns,
            entity: format!("{:016x}", event.link.entity.0),
            observed: event.link.observed,
            parent: event.link.parent,
            text,
            hex: text.is_none().then(|| hex::encode_bytes(event.payload)),
        };
        serde_json::to_writer(&mut out, &line)?;
        out.write_all(b"\n")
    });
    // Where some cannot be read, what is signed of the rest is looked at all the same.
    let is_whole = match exported {
        Err(Failure::Told(_)) => false,
        exported => exported.map(|()| true)?,
    };
    out.flush()?;
    let report = export.log.report(Depth::Content);
    let report = report.map_err(Failure::runtime)?;
    // Other flaws were told where they were met.
    for flaw in &report.flaws {
        if matches!(flaw.fault, Fault::Signature(_)) {
            writeln!(io::stderr(), "virga: {flaw}")?;
        }
    }
    let is_audited = audit(&report, export.signed)? && report.audit.bad_signatures == 0;
    match is_whole && is_audited {
        true => Ok(()),
        false => Err(Failure::Told(1)),
    }
}

/// Every event of a range. What cannot be read is told, the rest is given, and then it is a failure.
fn each(
    log: &OneLog,
    range: &Range,
    mut print: impl FnMut(&Event<'_>) -> io::Result<()>,
) -> Result<(), Failure> {
    let folder = log.read().map_err(Failure::runtime)?;
    let reader = Reader::open(folder, &log.name, range.from);
    let mut reader = reader.map_err(log.failed()).map_err(Failure::runtime)?;
    let mut has_failed = false;
    let mut count = 0;
    while range.count.is_none_or(|max| count < max) {
        match reader.next_event() {
            Ok(None) => break,
            Ok(Some(event)) => {
                print(&event)?;
                count += 1;
            }
            Err(error @ ReadError::Io { .. }) => return Err(Failure::runtime(error)),
            Err(error) => {
                has_failed = true;
                writeln!(io::stderr(), "virga: {error}")?;
            }
        }
    }
    match has_failed {
        true => Err(Failure::Told(1)),
        false => Ok(()),
    }
}
