//! `virga pub`: events from the command line or standard input.

use super::{
    Failure, block_on,
    client::{ClientError, Target, failed},
    counted,
    fan_out::{self, Source},
    lines::{self, Line},
    print_json,
};
use crate::{
    api::publish::Published,
    mesh::{Mesh, Publisher},
};
use std::{
    io::{self, Write as _},
    time::Duration,
};

/// Lines that are complained of one by one.
const COMPLAINTS_MAX: u64 = 10;
/// Waits shorter than this are made up for later: timers are no finer.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// A sender that is later than this does not catch up: it would burst.
const LATE_MAX: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Ends with 0 also when nobody has subscribed, with a warning; --subscribers makes that a failure. \
                  Lines longer than the channel's largest event are refused, counted, and make it end with 1."
)]
pub(super) struct Arguments {
    /// The channel's full name; `$node` stands for the node's name.
    channel: String,
    /// Publish this; otherwise each line of standard input is an event.
    #[arg(long, value_name = "TEXT")]
    data: Option<String>,
    /// How often --data is published.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "data")]
    count: u64,
    /// Events a second at most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Give up an event that was not sent to a subscriber this long after the node got it: 50ms, 2s. With
    /// --report, --quorum or --fail-fast (10s there, if not said): wait this long for acknowledgements.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    deadline: Option<Duration>,
    /// Wait until the channel has so many subscribers (other nodes, and programs on this one), and
    /// fail without publishing when it does not come to that.
    #[arg(long, value_name = "N")]
    subscribers: Option<usize>,
    /// How long to wait for --subscribers.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 10,
        requires = "subscribers"
    )]
    timeout: u64,
    /// Print the result as a JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    confirmation: fan_out::Confirmation,
    #[command(flatten)]
    target: Target,
}

/// What was done with the input, whatever became of it later.
#[derive(Clone, Copy, Debug, Default)]
struct Handed {
    /// Events given to the node.
    events: u64,
    /// Lines that were not: too long for an event of the channel.
    too_long: u64,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    block_on(async {
        let mesh = arguments.target.open().await?;
        if let Some(count) = arguments.subscribers {
            wait_for_subscribers(&mesh, count, arguments).await?;
        }
        let channel = &arguments.channel;
        if let Some(plan) = arguments.confirmation.plan(arguments.deadline) {
            let publisher = mesh.channel_publisher(channel, plan).await?;
            let source = match &arguments.data {
                Some(data) => Source::Data(data, arguments.count),
                None => Source::Lines,
            };
            return fan_out::run(publisher, source, arguments.rate, arguments.json).await;
        }
        let publisher = match arguments.deadline {
            Some(within) => mesh.publisher_within(channel, within).await?,
            None => mesh.publisher(channel).await?,
        };
        let mut handed = Handed::default();
        let sent = match &arguments.data {
            Some(data) => repeat(&publisher, data, arguments, &mut handed).await,
            None => lines(&publisher, arguments.rate, &mut handed).await,
        };
        // The node's own words come first: they say why the connection broke.
        match publisher.finish().await {
            Ok(mut published) => {
                published.refused += handed.too_long;
                tell(&published, arguments)?;
                sent
            }
            Err(source) => Err(ClientError::Interrupted {
                handed: handed.events,
                source,
            }
            .into()),
        }
    })
}

async fn wait_for_subscribers(
    mesh: &Mesh,
    wanted: usize,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let channel = &arguments.channel;
    let limit = Duration::from_secs(arguments.timeout);
    let waiting = mesh.wait_for_subscribers(channel, wanted);
    if let Ok(found) = tokio::time::timeout(limit, waiting).await {
        found?;
        return Ok(());
    }
    Err(ClientError::Subscribers {
        channel: channel.clone(),
        found: mesh.subscribers(channel).await?,
        wanted,
        seconds: arguments.timeout,
    }
    .into())
}

async fn repeat(
    publisher: &Publisher,
    data: &str,
    arguments: &Arguments,
    handed: &mut Handed,
) -> Result<(), Failure> {
    let mut pace = Pace::new(arguments.rate);
    for _ in 0..arguments.count {
        pace.wait().await;
        publisher.publish(data.as_bytes()).await?;
        handed.events += 1;
    }
    Ok(())
}

async fn lines(
    publisher: &Publisher,
    rate: Option<u32>,
    handed: &mut Handed,
) -> Result<(), Failure> {
    let line_bytes_max = publisher.event_bytes_max();
    let mut lines = lines::read_ahead(io::stdin(), line_bytes_max);
    let mut pace = Pace::new(rate);
    loop {
        let batch = tokio::select! {
            // There may be nothing to read for a long time.
            () = publisher.ended() => return Ok(()),
            batch = lines.recv() => batch,
        };
        let Some(batch) = batch else {
            return Ok(());
        };
        for line in batch.map_err(failed("read standard input"))? {
            match line {
                Line::Event(event) => {
                    pace.wait().await;
                    publisher.publish(&event).await?;
                    handed.events += 1;
                }
                Line::TooLong { number } => {
                    handed.too_long += 1;
                    complain(number, line_bytes_max, handed.too_long)?;
                }
            }
        }
    }
}

pub(super) fn complain(number: u64, line_bytes_max: usize, count: u64) -> io::Result<()> {
    if count > COMPLAINTS_MAX {
        return Ok(());
    }
    let more = match count == COMPLAINTS_MAX {
        true => "; further ones are only counted",
        false => "",
    };
    writeln!(
        io::stderr(),
        "virga: line {number} is not published: it is longer than the {line_bytes_max} bytes of the channel's largest event{more}"
    )
}

fn tell(published: &Published, arguments: &Arguments) -> Result<(), Failure> {
    let Published {
        published: events,
        lost,
        expired,
        refused,
        unheard,
        subscribers,
        event_bytes_max,
    } = *published;
    if arguments.json {
        print_json(published)?;
    } else {
        let mut words = format!("published {}", counted(events, "event"));
        if events > unheard {
            words += &format!("; the last went to {}", counted(subscribers, "subscriber"));
        }
        if lost > 0 {
            words += &format!("; lost {lost} on the way to a subscriber");
        }
        if expired > 0 {
            words += &format!("; {expired} more expired before a subscriber had room");
        }
        if refused > 0 {
            words += &format!("; refused {refused}");
        }
        writeln!(io::stderr(), "{words}")?;
    }
    if unheard > 0 {
        writeln!(
            io::stderr(),
            "virga: warning: {unheard} of {} reached nobody: {} had no subscriber then; --subscribers 1 waits for one",
            counted(events, "event"),
            arguments.channel
        )?;
    }
    if refused > 0 {
        return Err(ClientError::Refused {
            refused,
            event_bytes_max,
        }
        .into());
    }
    Ok(())
}

/// A number of milliseconds or seconds, such as `50ms` or `2s`; at least a millisecond, at most a day.
fn duration(text: &str) -> Result<Duration, String> {
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        _ => return Err("write a number and `ms` or `s`, such as 50ms or 2s".into()),
    };
    let ms = number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(unit_ms));
    match ms {
        Some(ms @ 1..=86_400_000) => Ok(Duration::from_millis(ms)),
        _ => Err("write 1ms to 86400s".into()),
    }
}

/// Spreads events over time.
pub(super) struct Pace {
    interval: Option<Duration>,
    due: tokio::time::Instant,
}

impl Pace {
    pub(super) fn new(rate: Option<u32>) -> Self {
        let interval = rate.map(|rate| Duration::from_secs(1) / rate);
        Self {
            interval,
            due: tokio::time::Instant::now(),
        }
    }

    pub(super) async fn wait(&mut self) {
        let Some(interval) = self.interval else {
            return;
        };
        let now = tokio::time::Instant::now();
        self.due = self.due.max(now.checked_sub(LATE_MAX).unwrap_or(now));
        if self.due.saturating_duration_since(now) >= WAIT_MIN {
            tokio::time::sleep_until(self.due).await;
        }
        self.due += interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        for (text, ms) in [
            ("1ms", 1),
            ("50ms", 50),
            ("2s", 2_000),
            ("86400s", 86_400_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)));
        }
        for wrong in [
            "",
            "5",
            "ms",
            "0s",
            "-1s",
            "1m",
            "5 ms",
            "86401s",
            "99999999999999999999s",
        ] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }
}
