//! `virga pub`: events from the command line or standard input.

use super::{
    Failure, block_on,
    client::{ClientError, Target},
    print_json,
};
use crate::{api::publish::Published, mesh::Publisher};
use std::{
    io::{self, BufRead as _, Write as _},
    time::Duration,
};
use tokio::sync::mpsc;

/// Lines of standard input that are read ahead.
const LINES_MAX: usize = 1_024;
/// Waits shorter than this are made up for later: timers are no finer.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// A sender that is later than this does not catch up: it would burst.
const LATE_MAX: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The channel's full name.
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
    /// Print the result as a JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    block_on(async {
        let mesh = arguments.target.open().await?;
        let publisher = mesh.publisher(&arguments.channel).await?;
        let sent = match &arguments.data {
            Some(data) => repeat(&publisher, data, arguments).await,
            None => lines(&publisher, arguments.rate).await,
        };
        // The node's own words come first: they say why the connection broke.
        let published = publisher.finish().await?;
        sent?;
        tell(&published, arguments)
    })
}

async fn repeat(publisher: &Publisher, data: &str, arguments: &Arguments) -> Result<(), Failure> {
    let mut pace = Pace::new(arguments.rate);
    for _ in 0..arguments.count {
        pace.wait().await;
        publisher.publish(data.as_bytes()).await?;
    }
    Ok(())
}

async fn lines(publisher: &Publisher, rate: Option<u32>) -> Result<(), Failure> {
    let (sender, mut receiver) = mpsc::channel::<io::Result<Vec<u8>>>(LINES_MAX);
    std::thread::spawn(move || {
        for line in io::stdin().lock().split(b'\n') {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let mut pace = Pace::new(rate);
    while let Some(line) = receiver.recv().await {
        pace.wait().await;
        publisher.publish(&line?).await?;
    }
    Ok(())
}

fn tell(published: &Published, arguments: &Arguments) -> Result<(), Failure> {
    if arguments.json {
        print_json(published)?;
    } else {
        let Published {
            published,
            subscribers,
            ..
        } = published;
        writeln!(
            io::stderr(),
            "published {published} events; subscribers at the end: {subscribers}"
        )?;
    }
    if published.refused > 0 {
        let Published {
            refused,
            event_bytes_max,
            ..
        } = *published;
        return Err(ClientError::Refused {
            refused,
            event_bytes_max,
        }
        .into());
    }
    Ok(())
}

/// Spreads events over time.
struct Pace {
    interval: Option<Duration>,
    due: tokio::time::Instant,
}

impl Pace {
    fn new(rate: Option<u32>) -> Self {
        let interval = rate.map(|rate| Duration::from_secs(1) / rate);
        Self {
            interval,
            due: tokio::time::Instant::now(),
        }
    }

    async fn wait(&mut self) {
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
