//! `virga trace --flow`: how long a channel's events stay in each stage of their way through the node.

use crate::{
    cli::{
        Failure, block_on,
        client::{ClientError, Target},
        print_json,
    },
    flow::{Asked, Report, StageTimes, explanation, meaning, name, reason},
    mesh::Flow,
};
use std::{
    io::{self, Write},
    time::Duration,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};
use virga_transport::flow::{Stage, Untimed};

/// A node that answers at all has told something by then.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where neither an end nor a count is asked for.
const SECONDS: u64 = 10;

#[derive(Debug, clap::Args)]
pub(super) struct FlowArguments {
    /// In place of a node: time events of this channel, stage by stage, those that are published here and those that
    /// arrive.
    #[arg(long, value_name = "CHANNEL")]
    flow: Option<String>,
    /// Only what this entity has published: its name, its public key, or the 16 hex digits that headers call it by.
    #[arg(long, value_name = "ENTITY", requires = "flow")]
    entity: Option<String>,
    /// End after so many seconds. Default: 10, if there is no --count.
    #[arg(long, value_name = "N", requires = "flow", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// End once a stage has so many times.
    #[arg(long, value_name = "N", requires = "flow", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Each worker times a stage at most so often a second. Default: 200.
    #[arg(long, value_name = "N", requires = "flow")]
    rate: Option<u32>,
}

impl FlowArguments {
    fn asked(&self) -> Asked {
        let usual = self.count.is_none().then_some(SECONDS);
        Asked {
            channel: self.flow.clone().unwrap_or_default(),
            origin: self.entity.clone(),
            rate: self.rate,
            count: self.count,
            seconds: self.seconds.or(usual),
        }
    }
}

pub(super) fn run(
    arguments: &FlowArguments,
    target: &Target,
    is_json: bool,
) -> Result<(), Failure> {
    block_on(async {
        let mesh = target.open().await?;
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        let flow = mesh.flow(&arguments.asked()).await?;
        let report = follow(flow, (interrupt, terminate)).await?;
        match is_json {
            true => print_json(&report),
            false => {
                let mut text = Vec::new();
                write(&mut text, &report)?;
                Ok(io::stdout().lock().write_all(&text)?)
            }
        }
    })
}

/// Reads reports until the last; whoever ends it before has the newest. Letting go of the flow ends it at the node.
async fn follow(
    mut flow: Flow,
    (mut interrupt, mut terminate): (Signal, Signal),
) -> Result<Report, Failure> {
    let mut newest = Report::default();
    loop {
        let next = tokio::select! {
            next = timeout(PATIENCE, flow.next_report()) => next,
            _ = interrupt.recv() => return Ok(newest),
            _ = terminate.recv() => return Ok(newest),
        };
        let silent = |_| ClientError::Silent {
            seconds: PATIENCE.as_secs(),
        };
        let Some(report) = next.map_err(silent)? else {
            let arrived = newest.received;
            return Err(ClientError::Stopped { arrived }.into());
        };
        newest = report.map_err(ClientError::from)?;
        if newest.ended.is_some() {
            return Ok(newest);
        }
    }
}

/// Microseconds, to a tenth.
fn us(ns: u64) -> String {
    let tenths = ns.div_ceil(100);
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn write(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let Report {
        published,
        sent,
        received,
        ..
    } = report;
    let (seconds, tenths) = (report.elapsed_ms / 1_000, report.elapsed_ms % 1_000 / 100);
    writeln!(
        out,
        "in {seconds}.{tenths} s {published} events were published here ({sent} times to another node), and {received} came"
    )?;
    for (title, stages) in [
        ("published here", &report.publishing),
        ("arriving", &report.receiving),
    ] {
        writeln!(
            out,
            "\n{title:<14} {:>9} {:>9} {:>10} {:>10} {:>10}  microseconds",
            "timed", "not timed", "p50", "p99", "max"
        )?;
        for stage in stages {
            write_stage(out, stage)?;
        }
    }
    writeln!(out, "\noutside this node")?;
    if report.paths.is_empty() {
        writeln!(out, "  no session with a node that subscribes or publishes")?;
    }
    for path in &report.paths {
        let name = path.name.as_deref().unwrap_or(&path.node);
        match path.rtt_us {
            Some(us) => writeln!(out, "  path to {name}: round trip {us} us, smoothed")?,
            None => writeln!(out, "  path to {name}: not measured")?,
        }
    }
    Ok(())
}

fn write_stage(out: &mut impl Write, stage: &StageTimes) -> io::Result<()> {
    let known = Stage::ALL.into_iter().find(|one| name(*one) == stage.stage);
    let meaning = known.map_or("", meaning);
    let missed = stage.not_timed.map_or("-".to_owned(), |n| n.to_string());
    let times = match stage.count {
        0 => ["-".to_owned(), "-".to_owned(), "-".to_owned()],
        _ => [stage.p50_ns, stage.p99_ns, stage.max_ns].map(us),
    };
    let [p50, p99, max] = times;
    let StageTimes {
        stage,
        count,
        why_not,
        ..
    } = stage;
    writeln!(
        out,
        "  {stage:<12} {count:>9} {missed:>9} {p50:>10} {p99:>10} {max:>10}  {meaning}"
    )?;
    for (name, count) in why_not {
        let known = Untimed::ALL.into_iter().find(|why| reason(*why) == name);
        let why = match known {
            Some(why) => explanation(why),
            None => name.as_str(),
        };
        writeln!(out, "    not timed {why} ({count})")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Path;
    use std::collections::BTreeMap;

    #[test]
    fn a_table_has_a_line_for_each_stage_and_says_what_is_outside() {
        let stage = |stage, count| StageTimes {
            stage: name(stage).to_owned(),
            count,
            not_timed: (stage == Stage::Queue).then_some(9),
            why_not: BTreeMap::new(),
            p50_ns: 1_234,
            p99_ns: 20_000,
            max_ns: 64,
        };
        let mut report = Report {
            elapsed_ms: 1_250,
            published: 12,
            sent: 12,
            publishing: vec![stage(Stage::Queue, 3)],
            receiving: vec![stage(Stage::Deliver, 0)],
            ..Report::default()
        };
        let text = |report: &Report| {
            let mut text = Vec::new();
            write(&mut text, report).unwrap();
            String::from_utf8(text).unwrap()
        };
        let told = text(&report);
        let lines: Vec<Vec<&str>> = told
            .lines()
            .map(|line| line.split_whitespace().take(6).collect())
            .collect();
        assert!(told.starts_with("in 1.2 s 12 events"), "{told}");
        assert_eq!(lines[3], ["queue", "3", "9", "1.3", "20.0", "0.1"]);
        assert_eq!(lines[6], ["deliver", "0", "-", "-", "-", "-"]);
        assert!(told.contains("no session"), "{told}");
        report.receiving[0].why_not = [("xsk".to_owned(), 7)].into();
        let told = text(&report);
        let line = told.lines().nth(7).unwrap();
        assert!(line.starts_with("    not timed on xsk: "), "{told}");
        assert!(line.ends_with(" (7)"), "{told}");
        report.paths.push(Path {
            node: "00000000000000aa".into(),
            name: Some("b".into()),
            rtt_us: Some(120),
        });
        assert!(text(&report).contains("path to b: round trip 120 us"));
    }
}
