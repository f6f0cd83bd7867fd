//! `virga pub --report`, `--quorum` and `--fail-fast`: publishes that say where they arrived.

use super::{
    Failure,
    client::{ClientError, failed},
    counted,
    lines::{self, Line},
    print_json,
    publish::{Pace, complain},
};
use crate::{
    api::fanout::{BYTES_MAX, EVENTS_MAX, NodeReport, Report},
    channel::{Plan, Policy, tally::WITHIN_DEFAULT},
    mesh::{ChannelPublisher, FanOutError},
};
use std::{
    io::{self, Write as _},
    num::NonZeroUsize,
    time::Duration,
};
use virga_transport::limits::MESSAGE_BYTES_MAX;

#[derive(Debug, clap::Args)]
pub(super) struct Confirmation {
    /// Wait until the subscribing nodes have acknowledged the events, and print what became of them at each.
    /// On an unreliable channel nothing is acknowledged: what was handed to a node's session counts.
    #[arg(long)]
    report: bool,
    /// The same; succeed as soon as all events have arrived at so many nodes.
    #[arg(long, value_name = "N", conflicts_with = "fail_fast")]
    quorum: Option<NonZeroUsize>,
    /// The same; publish nothing more after the first event that does not arrive somewhere.
    #[arg(long)]
    fail_fast: bool,
    /// Events that one node may have unacknowledged, with --report, --quorum or --fail-fast.
    #[arg(long, value_name = "N")]
    in_flight: Option<NonZeroUsize>,
}

impl Confirmation {
    /// How to publish, where a report is wanted at all.
    pub(super) fn plan(&self, within: Option<Duration>) -> Option<Plan> {
        let policy = match (self.quorum, self.fail_fast) {
            (Some(nodes), _) => Policy::Quorum(nodes.get()),
            (None, true) => Policy::FailFast,
            (None, false) if self.report || self.in_flight.is_some() => Policy::BestEffort,
            (None, false) => return None,
        };
        Some(Plan {
            policy,
            in_flight_max: self
                .in_flight
                .map_or(Plan::default().in_flight_max, Into::into),
            within: within.unwrap_or(WITHIN_DEFAULT),
        })
    }
}

/// What is published.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    /// This, so many times.
    Data(&'a str, u64),
    /// Each line of standard input.
    Lines,
}

/// Events that one report will be about, and what became of those before.
struct Pieces {
    publisher: ChannelPublisher,
    pace: Pace,
    events_max: usize,
    events: Vec<Vec<u8>>,
    bytes: usize,
    total: Report,
}

/// Publishes everything, piece by piece, and says what became of it, also where that ends early.
pub(super) async fn run(
    publisher: ChannelPublisher,
    source: Source<'_>,
    rate: Option<u32>,
    json: bool,
) -> Result<(), Failure> {
    let mut pieces = Pieces {
        publisher,
        pace: Pace::new(rate),
        events_max: if rate.is_some() { 1 } else { EVENTS_MAX },
        events: Vec::new(),
        bytes: 0,
        total: Report {
            is_met: true,
            ..Report::default()
        },
    };
    let published = match source {
        Source::Data(data, count) => pieces.repeat(data, count).await.map(|()| 0),
        Source::Lines => pieces.lines().await,
    };
    let total = &pieces.total;
    if json {
        print_json(total)?;
    } else {
        tell(total)?;
    }
    match published? {
        0 => Ok(()),
        refused => Err(ClientError::Refused {
            refused,
            event_bytes_max: MESSAGE_BYTES_MAX,
        }
        .into()),
    }
}

impl Pieces {
    async fn repeat(&mut self, data: &str, count: u64) -> Result<(), Failure> {
        for _ in 0..count {
            self.push(data.as_bytes().to_vec()).await?;
        }
        self.publish().await
    }

    /// Gives how many lines were too long.
    async fn lines(&mut self) -> Result<u64, Failure> {
        let mut lines = lines::read_ahead(io::stdin(), MESSAGE_BYTES_MAX);
        let mut too_long = 0;
        while let Some(batch) = lines.recv().await {
            for line in batch.map_err(failed("read standard input"))? {
                match line {
                    Line::Event(event) => self.push(event).await?,
                    Line::TooLong { number } => {
                        too_long += 1;
                        complain(number, MESSAGE_BYTES_MAX, too_long)?;
                    }
                }
            }
            self.publish().await?;
        }
        Ok(too_long)
    }

    async fn push(&mut self, event: Vec<u8>) -> Result<(), Failure> {
        if self.events.len() == self.events_max || self.bytes + event.len() > BYTES_MAX {
            self.publish().await?;
        }
        self.bytes += event.len();
        self.events.push(event);
        Ok(())
    }

    async fn publish(&mut self) -> Result<(), Failure> {
        if self.events.is_empty() {
            return Ok(());
        }
        self.pace.wait().await;
        self.bytes = 0;
        let events = std::mem::take(&mut self.events);
        match self.publisher.publish_batch(events).await {
            Ok(report) => {
                add(&mut self.total, &report);
                Ok(())
            }
            Err(FanOutError::NotMet(report)) => {
                add(&mut self.total, &report);
                Err(Failure::runtime(FanOutError::NotMet(report)))
            }
            Err(FanOutError::Mesh(error)) => Err(error.into()),
        }
    }
}

fn add(total: &mut Report, report: &Report) {
    total.is_met &= report.is_met;
    total.published += report.published;
    total.withheld += report.withheld;
    total.programs = report.programs;
    for node in &report.nodes {
        let Some(known) = total.nodes.iter_mut().find(|known| known.node == node.node) else {
            total.nodes.push(node.clone());
            continue;
        };
        let (sum, more) = (&mut known.outcome, &node.outcome);
        sum.sent += more.sent;
        sum.acknowledged += more.acknowledged;
        sum.expired += more.expired;
        sum.lost += more.lost;
        sum.pending += more.pending;
        if more.reason.is_some() {
            sum.reason.clone_from(&more.reason);
        }
    }
}

fn tell(total: &Report) -> io::Result<()> {
    let mut out = io::stderr();
    writeln!(
        out,
        "published {} to {} and {} on this node",
        counted(total.published, "event"),
        counted(total.nodes.len() as u64, "node"),
        counted(total.programs as u64, "program")
    )?;
    for NodeReport {
        node,
        name,
        outcome,
    } in &total.nodes
    {
        let mut words = format!("{name} ({node}): {} sent", outcome.sent);
        for (events, what) in [
            (outcome.acknowledged, "acknowledged"),
            (outcome.expired, "expired"),
            (outcome.lost, "lost"),
            (outcome.pending, "not acknowledged yet"),
        ] {
            if events > 0 {
                words += &format!(", {events} {what}");
            }
        }
        if let Some(reason) = &outcome.reason {
            words += &format!(" ({reason})");
        }
        writeln!(out, "{words}")?;
    }
    Ok(())
}
