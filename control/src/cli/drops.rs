//! `virga drops`: what a node drops while one looks, by reason, and what to do about it.

mod origins;

use super::{
    Failure, block_on,
    client::{ClientError, Target},
    print_json,
};
use crate::{
    drops::{self, Kind, page},
    mesh::Mesh,
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// A node that answers at all has done so by then.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the node is asked.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print what was dropped since the node's start, and end.
    #[arg(long, conflicts_with = "seconds")]
    once: bool,
    /// Print every reason that there is, what it means and what to do about it, as a page; asks no node.
    #[arg(long, conflicts_with_all = ["once", "seconds", "json", "socket", "node"])]
    reasons: bool,
    /// Show who the drops are of, by samples of them: each second a table of the origins with the most.
    #[arg(long, conflicts_with_all = ["once", "reasons"])]
    origins: bool,
    /// Watch for so long. Default: until it is stopped.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Print a JSON object a second with drops (with --once: one).
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// One kind of drop, as JSON has it.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    kind: &'a Kind,
    /// Since the node's start.
    count: u64,
    /// Within the last second.
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<u64>,
    meaning: &'static str,
    fix: Option<&'static str>,
}

#[derive(Serialize)]
struct Report<'a> {
    /// Since watching began.
    seconds: u64,
    drops: Vec<Row<'a>>,
}

impl<'a> Row<'a> {
    fn of(kind: &'a Kind, count: u64, new: Option<u64>) -> Self {
        Self {
            kind,
            count,
            new,
            meaning: kind.meaning(),
            fix: kind.fix(),
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.reasons {
        return Ok(io::stdout().lock().write_all(page::page().as_bytes())?);
    }
    block_on(async {
        let mesh = arguments.target.open().await?;
        match (arguments.once, arguments.origins) {
            (true, _) => once(&mesh, arguments.json).await,
            (_, true) => origins::watch(&mesh, (arguments.seconds, arguments.json)).await,
            _ => watch(&mesh, arguments).await,
        }
    })
}

async fn ask(mesh: &Mesh) -> Result<BTreeMap<Kind, u64>, ClientError> {
    let answer = timeout(PATIENCE, mesh.status()).await;
    let status = answer.map_err(|_| ClientError::Silent {
        seconds: PATIENCE.as_secs(),
    })??;
    Ok(drops::counts(&status))
}

async fn once(mesh: &Mesh, is_json: bool) -> Result<(), Failure> {
    let counts = ask(mesh).await?;
    let mut rows: Vec<Row<'_>> = counts
        .iter()
        .map(|(kind, &count)| Row::of(kind, count, None))
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.count));
    if is_json {
        return print_json(&Report {
            seconds: 0,
            drops: rows,
        });
    }
    let mut text = Vec::new();
    if rows.is_empty() {
        writeln!(text, "nothing was dropped since the node's start")?;
    }
    for row in &rows {
        writeln!(text, "{} {:>12}", title(row.kind), row.count)?;
        explain(&mut text, row)?;
    }
    Ok(io::stdout().lock().write_all(&text)?)
}

async fn watch(mesh: &Mesh, arguments: &Arguments) -> Result<(), Failure> {
    let mut before = ask(mesh).await?;
    let began = Instant::now();
    if !arguments.json {
        // Whoever closed standard error goes without.
        let _unheard = writeln!(
            io::stderr(),
            "watching for drops; --once prints those since the node's start"
        );
    }
    let mut explained = BTreeSet::new();
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.tick().await;
    loop {
        tick.tick().await;
        let now = ask(mesh).await?;
        let new = drops::since(&before, &now);
        let seconds = began.elapsed().as_secs();
        let each = new.iter();
        let rows = each.map(|(kind, &new)| Row::of(kind, now[kind], Some(new)));
        let report = Report {
            seconds,
            drops: rows.collect(),
        };
        match arguments.json {
            _ if report.drops.is_empty() => {}
            true => print_json(&report)?,
            false => print(&report, &mut explained)?,
        }
        before = now;
        if arguments.seconds.is_some_and(|most| seconds >= most) {
            return Ok(());
        }
    }
}

/// A line for each kind; what it means, with its first.
fn print(report: &Report<'_>, explained: &mut BTreeSet<Kind>) -> Result<(), Failure> {
    let mut text = Vec::new();
    for row in &report.drops {
        let (title, new) = (title(row.kind), row.new.unwrap_or(0));
        let (seconds, count) = (report.seconds, row.count);
        writeln!(
            text,
            "{seconds:>5} s  {title} {new:>10} new {count:>12} in all"
        )?;
        if explained.insert(row.kind.clone()) {
            explain(&mut text, row)?;
        }
    }
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    Ok(out.flush()?)
}

fn title(kind: &Kind) -> String {
    let reason = match &kind.channel {
        Some(channel) => format!("{} ({channel})", kind.reason),
        None => kind.reason.clone(),
    };
    format!("{:<10} {reason:<26}", kind.place.name())
}

fn explain(out: &mut impl Write, row: &Row<'_>) -> io::Result<()> {
    if !row.meaning.is_empty() {
        writeln!(out, "         {}", row.meaning)?;
    }
    match row.fix {
        Some(fix) => writeln!(out, "         fix: {fix}"),
        None => Ok(()),
    }
}
