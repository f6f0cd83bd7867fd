//! `virga sub`: a channel's events on standard output.

use super::{
    Failure, block_on,
    client::{ClientError, Target},
    confirmations,
};
use crate::{hex, mesh::Delivery};
use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};
use tokio::time::{Instant, timeout_at};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Standard error tells which publishers have confirmed the subscription, and each change of that."
)]
pub(super) struct Arguments {
    /// The channel's full name, or with --prefix the first levels of many.
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
    /// Print a JSON object a line: channel, entity, sequence, received_unix_ns, and the event as
    /// `text`, or as `hex` when it is not UTF-8.
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
        let mesh = arguments.target.open().await?;
        let mut events = match arguments.prefix {
            true => mesh.subscribe_prefix(&arguments.channel).await?,
            false => mesh.subscribe(&arguments.channel).await?,
        };
        let kind = match arguments.prefix {
            true => "prefix",
            false => "channel",
        };
        // It ends with this command at the latest.
        let _telling = tokio::spawn(confirmations::tell(mesh, kind, arguments.channel.clone()));
        let start = Instant::now();
        let deadline = arguments.timeout.and_then(|s| deadline(start, s));
        let mut arrived = 0;
        while arguments.count.is_none_or(|count| arrived < count) {
            // Without --count, whatever comes after the first may take its time.
            let deadline = deadline.filter(|_| arguments.count.is_some() || arrived == 0);
            let next = events.next_delivery();
            let next = match deadline {
                None => next.await,
                Some(deadline) => timeout_at(deadline, next).await.map_err(|_| {
                    let (wanted, seconds) =
                        (arguments.count.unwrap_or(1), start.elapsed().as_secs_f64());
                    ClientError::Timeout {
                        arrived,
                        wanted,
                        seconds,
                    }
                })?,
            };
            let Some(delivery) = next else {
                return Err(ClientError::Stopped { arrived }.into());
            };
            print(&delivery?, arguments)?;
            arrived += 1;
        }
        Ok(())
    })
}

/// None: later than any clock here can tell.
fn deadline(start: Instant, seconds: u64) -> Option<Instant> {
    start.checked_add(Duration::from_secs(seconds))
}

#[derive(serde::Serialize)]
struct Line<'a> {
    channel: &'a str,
    entity: String,
    sequence: u64,
    received_unix_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

/// One write and a flush an event, so that whoever reads the other end has it at once.
fn print(delivery: &Delivery, arguments: &Arguments) -> Result<(), Failure> {
    let mut line = Vec::with_capacity(delivery.payload.len() + 64);
    let channel = delivery.channel.as_str();
    if arguments.json {
        let text = std::str::from_utf8(&delivery.payload).ok();
        let line_json = Line {
            channel,
            entity: hex::encode(&delivery.entity),
            sequence: delivery.sequence,
            received_unix_ns: delivery.received_unix_ns,
            text,
            hex: text.is_none().then(|| hex::encode_bytes(&delivery.payload)),
        };
        serde_json::to_writer(&mut line, &line_json)?;
    } else {
        if arguments.prefix && !arguments.raw {
            line.extend_from_slice(channel.as_bytes());
            line.push(b'\t');
        }
        match arguments.raw || !io::stdout().is_terminal() {
            true => line.extend_from_slice(&delivery.payload),
            false => line.extend_from_slice(shown(&delivery.payload).as_bytes()),
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
