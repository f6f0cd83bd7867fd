//! `virga sub`: a channel's events on standard output.

mod replay;

use super::{
    Failure, block_on,
    client::{ClientError, Target},
    confirmations,
};
use crate::{
    hex,
    mesh::{Cursor, Delivery},
};
use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    time::Duration,
};
use tokio::time::{Instant, timeout_at};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Standard error tells which publishers have confirmed the subscription, and each change of that."
)]
pub(super) struct Arguments {
    /// The channel's full name, or with --prefix the first levels of many; `$node` stands for the node's name.
    channel: String,
    /// Subscribe to the channel of that name and all below it.
    #[arg(long)]
    prefix: bool,
    /// End after so many events.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Fail when that many, or with no --count one, have not come after so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// Read the channel's log from there on, and go on with what comes: start, end, an offset,
    /// after:OFFSET, or time:SECONDS since 1970. Where this node does not keep the channel, a node that does is read.
    #[arg(long, value_name = "CURSOR")]
    from: Option<Cursor>,
    /// The same, from the place that this file holds, which is rewritten with the last event that was
    /// printed, and its log; where there is no such file yet, from --from, or the start. A reader that is killed may
    /// print the last few events again.
    #[arg(long, value_name = "FILE", conflicts_with = "prefix")]
    position: Option<PathBuf>,
    /// Read the log that NODE keeps, from --from, or the start: a peer's name, this node's own, or a node's id. Where several nodes keep one,
    /// any is read without it, and from then on the one that --position tells.
    #[arg(long, value_name = "NODE", conflicts_with = "prefix")]
    at: Option<String>,
    /// Print a JSON object a line: channel, entity, sequence, received_unix_ns (of a log: channel, offset,
    /// origin, time_unix_ns), and the event as `text`, or as `hex` when it is not UTF-8.
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// Print the events as they were published, with nothing before, between or after them.
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    block_on(async {
        match arguments.from.is_some() || arguments.position.is_some() || arguments.at.is_some() {
            true => replay::run(arguments).await,
            false => subscribe(arguments).await,
        }
    })
}

async fn subscribe(arguments: &Arguments) -> Result<(), Failure> {
    let mesh = arguments.target.open().await?;
    let name = mesh.channel_name(&arguments.channel).await?.to_string();
    let mut events = match arguments.prefix {
        true => mesh.subscribe_prefix(&name).await?,
        false => mesh.subscribe(&name).await?,
    };
    let kind = match arguments.prefix {
        true => "prefix",
        false => "channel",
    };
    // It ends with this command at the latest.
    let _telling = tokio::spawn(confirmations::tell(mesh, kind, name));
    let mut count = Count::new(arguments);
    while !count.is_reached() {
        let Some(delivery) = count.within(events.next_delivery()).await? else {
            return Err(count.stopped().into());
        };
        print(&delivery?, arguments)?;
        count.add();
    }
    Ok(())
}

/// How many have come, of how many, and how long the next may take.
struct Count {
    start: Instant,
    deadline: Option<Instant>,
    wanted: Option<u64>,
    arrived: u64,
}

impl Count {
    fn new(arguments: &Arguments) -> Self {
        let start = Instant::now();
        Self {
            start,
            deadline: arguments.timeout.and_then(|s| deadline(start, s)),
            wanted: arguments.count,
            arrived: 0,
        }
    }

    fn is_reached(&self) -> bool {
        self.wanted.is_some_and(|wanted| self.arrived >= wanted)
    }

    const fn add(&mut self) {
        self.arrived += 1;
    }

    const fn stopped(&self) -> ClientError {
        ClientError::Stopped {
            arrived: self.arrived,
        }
    }

    /// Waits for the next no longer than it may take.
    async fn within<T>(&self, next: impl Future<Output = T>) -> Result<T, ClientError> {
        // Without --count, whatever comes after the first may take its time.
        let deadline = self.deadline;
        let deadline = deadline.filter(|_| self.wanted.is_some() || self.arrived == 0);
        let Some(deadline) = deadline else {
            return Ok(next.await);
        };
        timeout_at(deadline, next)
            .await
            .map_err(|_| ClientError::Timeout {
                arrived: self.arrived,
                wanted: self.wanted.unwrap_or(1),
                seconds: self.start.elapsed().as_secs_f64(),
            })
    }
}

/// None: later than any clock here can tell.
fn deadline(start: Instant, seconds: u64) -> Option<Instant> {
    start.checked_add(Duration::from_secs(seconds))
}

/// An event in a JSON object.
#[derive(serde::Serialize)]
struct Shown<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

impl<'a> Shown<'a> {
    fn of(payload: &'a [u8]) -> Self {
        let text = std::str::from_utf8(payload).ok();
        let hex = text.is_none().then(|| hex::encode_bytes(payload));
        Self { text, hex }
    }
}

#[derive(serde::Serialize)]
struct Line<'a> {
    channel: &'a str,
    entity: String,
    sequence: u64,
    received_unix_ns: u64,
    #[serde(flatten)]
    event: Shown<'a>,
}

fn print(delivery: &Delivery, arguments: &Arguments) -> Result<(), Failure> {
    let channel = delivery.channel.as_str();
    let line = Line {
        channel,
        entity: hex::encode(&delivery.entity),
        sequence: delivery.sequence,
        received_unix_ns: delivery.received_unix_ns,
        event: Shown::of(&delivery.payload),
    };
    write_event(channel, &delivery.payload, &line, arguments)
}

/// One write and a flush an event, so that whoever reads the other end has it at once.
fn write_event(
    channel: &str,
    payload: &[u8],
    json: &impl serde::Serialize,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let mut line = Vec::with_capacity(payload.len() + 64);
    if arguments.json {
        serde_json::to_writer(&mut line, json)?;
    } else {
        if arguments.prefix && !arguments.raw {
            line.extend_from_slice(channel.as_bytes());
            line.push(b'\t');
        }
        match arguments.raw || !io::stdout().is_terminal() {
            true => line.extend_from_slice(payload),
            false => line.extend_from_slice(shown(payload).as_bytes()),
        }
    }
    if !arguments.raw {
        line.push(b'\n');
    }
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    Ok(out.flush()?)
}

/// What a terminal would obey is written out: whoever publishes shall not command it.
pub(super) fn shown(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(payload);
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() && !matches!(c, '\t' | '\n') {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_orders_from_an_event() {
        assert_eq!(shown(b"a\tb\nc"), "a\tb\nc");
        assert_eq!(
            shown("\u{1b}]0;x\u{7}\r \u{9b}".as_bytes()),
            "\\u{1b}]0;x\\u{7}\\r \\u{9b}"
        );
        assert_eq!(shown(&[b'x', 0xff, b'\x1b']), "x\u{fffd}\\u{1b}");
    }

    #[test]
    fn a_deadline_beyond_all_time_is_none() {
        let start = Instant::now();
        assert_eq!(
            deadline(start, 2).map(|at| at - start),
            Some(Duration::from_secs(2))
        );
        assert_eq!(deadline(start, u64::MAX), None);
    }
}
