//! `virga log import`.

use super::{
    Failure, OneLog, counted,
    sign::{Author, SignError},
};
use crate::{
    cause,
    keys::{self, EntityKey, KeyKind},
};
use std::{
    io::{self, BufRead as _, Read as _, Write as _},
    path::PathBuf,
};
use virga_ebpf::header::OriginHash;
use virga_state::{
    AppendError, Durability, Link, Options, Retention,
    io::{
        clock,
        driver::{Driver, Way},
        open::OpenLog,
    },
    limits::{EVENT_BYTES_MAX, SEGMENT_BYTES},
};

/// Bytes of the longest line: an event in which every byte is written out, and the rest of the line.
const LINE_BYTES_MAX: u64 = 6 * EVENT_BYTES_MAX as u64 + 4_096;

/// How far ahead of this machine's clock the time of an event may be: clocks differ, and a log's times never go back.
const TIME_AHEAD_NS_MAX: u64 = 24 * 3_600 * 1_000_000_000;

const MADE_BY_SIGNING: &str = "what is signed here gets its `entity`, `observed`, `parent` and `time_unix_ns` here: leave them out";

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    log: OneLog,
    /// What an event survives once it counts as appended: `synced` loss of power, `flushed` the end of
    /// this process, `memory` neither.
    #[arg(long, value_name = "MODE", default_value_t)]
    durability: Durability,
    /// Bytes of a segment of the log.
    #[arg(long, value_name = "BYTES", default_value_t = SEGMENT_BYTES)]
    segment_bytes: u64,
    /// Remove the oldest segments as long as so many events are left.
    #[arg(long, value_name = "N")]
    keep_events: Option<u64>,
    /// Remove the oldest segments while they have more bytes than this, the newest one aside.
    #[arg(long, value_name = "BYTES")]
    keep_bytes: Option<u64>,
    /// Remove segments whose events are all older than this, such as 24h or 30days.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    keep_for: Option<std::time::Duration>,
    /// Sign the events with this key, of the entity that says them; a line is then `text` or `hex` alone.
    #[arg(long, value_name = "FILE")]
    sign_with: Option<PathBuf>,
}

/// A line: `text` or `hex`, and what else `export` prints, as far as it is there.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// Where it was in the log that it comes from; here it gets an offset of its own.
    #[serde(rename = "offset")]
    _offset: Option<u64>,
    time_unix_ns: Option<u64>,
    entity: Option<String>,
    #[serde(default)]
    observed: u64,
    #[serde(default)]
    parent: u64,
    text: Option<String>,
    hex: Option<String>,
}

impl Line {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() as u64 > LINE_BYTES_MAX {
            return Err(format!(
                "it is longer than {LINE_BYTES_MAX} bytes, which no event is"
            ));
        }
        // An array would be taken for its members in their order.
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return Err("it is no event: an event is a JSON object".into());
        }
        serde_json::from_slice(bytes)
            .map_err(|error| format!("it is no event: {}", cause::chain(&error)))
    }

    fn payload(&self) -> Result<Vec<u8>, String> {
        match (&self.text, &self.hex) {
            (Some(text), None) => Ok(text.as_bytes().to_vec()),
            (None, Some(hex)) => bytes_of(hex).ok_or_else(|| "`hex` is not hexadecimal".into()),
            _ => Err("write the event as `text` or as `hex`, one of them".into()),
        }
    }

    /// Whether it says nothing that a signature says.
    fn is_plain(&self) -> bool {
        let is_told = self.entity.is_some() || self.time_unix_ns.is_some();
        !is_told && self.observed == 0 && self.parent == 0
    }

    /// When it was, or now. One far ahead would be the time of all that is appended to the log until then.
    fn time(&self, now_unix_ns: u64) -> Result<u64, String> {
        match self.time_unix_ns {
            None => Ok(now_unix_ns),
            Some(time) if time > now_unix_ns.saturating_add(TIME_AHEAD_NS_MAX) => Err(format!(
                "`time_unix_ns` {time} is more than a day ahead of this machine's clock, at {now_unix_ns}, and no later event of the log could have an earlier time: correct the line or the clock, or leave `time_unix_ns` out"
            )),
            Some(time) => Ok(time),
        }
    }

    fn link(&self) -> Result<Link, String> {
        let entity = match &self.entity {
            None => 0,
            Some(text) => bytes_of(text)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u64::from_be_bytes)
                .ok_or_else(|| format!("`entity` is 16 hexadecimal digits, not {text:?}"))?,
        };
        Ok(Link {
            entity: OriginHash(entity),
            observed: self.observed,
            parent: self.parent,
        })
    }
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2);
    let byte = |pair: &[u8]| {
        let is_pair = pair.len() == 2 && pair.iter().all(u8::is_ascii_hexdigit);
        let pair = std::str::from_utf8(pair).ok().filter(|_| is_pair)?;
        u8::from_str_radix(pair, 16).ok()
    };
    pairs.map(byte).collect()
}

/// Why importing ended.
#[derive(Debug, thiserror::Error)]
enum ImportError {
    /// A line is no event.
    #[error("line {number}: {why}; the lines before it are in the log")]
    Line { number: u64, why: String },
    /// The log took no more.
    #[error("the log took no more at line {number}: {source}")]
    Append { number: u64, source: AppendError },
    /// What was appended could not be written.
    #[error("the log could not be closed: {0}")]
    Close(io::Error),
    /// Standard input could not be read.
    #[error("cannot read standard input: {0}")]
    Input(io::Error),
    /// Nothing can be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// There is no randomness.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let log = &arguments.log;
    let key = arguments.sign_with.as_deref();
    let key = key
        .map(|path| keys::read(KeyKind::Entity, path))
        .transpose()?;
    let mut fresh_id = [0; 16];
    getrandom::fill(&mut fresh_id)
        .map_err(|error| Failure::runtime(ImportError::Random(error.to_string())))?;
    let opened = OpenLog::open(&log.logs, &log.name, arguments.options(), fresh_id);
    let opened = opened.map_err(log.failed()).map_err(Failure::runtime)?;
    for finding in &opened.findings {
        writeln!(io::stderr(), "virga: {finding}")?;
    }
    let author = key.map(|key| Author::open(log, opened.files.disk(), &EntityKey::from(key)));
    let author = author.transpose().map_err(ImportError::Sign);
    let mut author = author.map_err(Failure::runtime)?;
    let first = opened.log.end();
    let mut logs = [opened];
    let mut driver = Driver::open(Way::Auto);
    let imported = import(&mut logs, &mut driver, author.as_mut());
    driver.settle(&mut logs);
    let [opened] = logs;
    let end = opened.log.end();
    let closed = opened.close().map_err(ImportError::Close);
    imported.and(closed).map_err(Failure::runtime)?;
    let said = counted(end - first, "event");
    writeln!(io::stderr(), "appended {said}: {first}..{end}")?;
    Ok(())
}

impl Arguments {
    fn options(&self) -> Options {
        let nanoseconds = |d: std::time::Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        Options {
            durability: self.durability,
            segment_bytes: self.segment_bytes,
            retention: Retention {
                events_max: self.keep_events,
                bytes_max: self.keep_bytes,
                age_ns_max: self.keep_for.map(nanoseconds),
            },
        }
    }
}

fn import(
    logs: &mut [OpenLog; 1],
    driver: &mut Driver,
    mut author: Option<&mut Author>,
) -> Result<(), ImportError> {
    let mut number = 0;
    let imported = lines(logs, driver, author.as_deref_mut(), &mut number);
    // What came before a line that is no event is in the log, also if it still waits for a signature.
    let signed = author.map_or(Ok(()), |author| author.sign(logs, driver));
    imported.and(signed.map_err(|source| ImportError::Append { number, source }))
}

/// Every line until standard input ends; counts them.
fn lines(
    logs: &mut [OpenLog; 1],
    driver: &mut Driver,
    mut author: Option<&mut Author>,
    number: &mut u64,
) -> Result<(), ImportError> {
    let mut input = io::stdin().lock();
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let mut line = (&mut input).take(LINE_BYTES_MAX + 1);
        line.read_until(b'\n', &mut bytes)
            .map_err(ImportError::Input)?;
        if bytes.is_empty() {
            return Ok(());
        }
        *number += 1;
        let number = *number;
        let line = Line::parse(&bytes).map_err(|why| ImportError::Line { number, why })?;
        let failed = |why| ImportError::Line { number, why };
        let (link, payload) = (
            line.link().map_err(failed)?,
            line.payload().map_err(failed)?,
        );
        if let Some(author) = &mut author {
            if !line.is_plain() {
                return Err(failed(MADE_BY_SIGNING.into()));
            }
            let pushed = author.push(logs, driver, payload);
            pushed.map_err(|source| ImportError::Append { number, source })?;
            continue;
        }
        let time = line.time(clock::now_unix_ns()).map_err(failed)?;
        loop {
            match logs[0].log.append(time, &link, &payload) {
                Ok(_) => break,
                Err(AppendError::Full) if driver.round(logs) => {}
                Err(source) => return Err(ImportError::Append { number, source }),
            }
        }
    }
}
