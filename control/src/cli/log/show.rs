//! `virga log cat` and `virga log export`.

use super::{Failure, OneLog, Range};
use crate::{cli::subscribe::shown, hex};
use std::io::{self, IsTerminal as _, Write as _};
use virga_state::{Event, ReadError, Reader};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Cat {
    #[command(flatten)]
    log: OneLog,
    #[command(flatten)]
    range: Range,
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
    let is_shown = !cat.raw && io::stdout().is_terminal();
    each(&cat.log, &cat.range, |event| {
        match is_shown {
            true => out.write_all(shown(event.payload).as_bytes())?,
            false => out.write_all(event.payload)?,
        }
        match cat.raw {
            true => Ok(()),
            false => out.write_all(b"\n"),
        }
    })?;
    Ok(out.flush()?)
}

pub(super) fn export(export: &Export) -> Result<(), Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    each(&export.log, &export.range, |event| {
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
    })?;
    Ok(out.flush()?)
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
