//! `virga routes`: which neighbour leads to which node, and by whose word.

use super::{Failure, block_on, client::Target, counted, percent, print_json};
use crate::routes::{LinkStatus, RouteStatus, RoutesStatus};
use std::io::{self, Write};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    block_on(async {
        let mesh = arguments.target.open().await?;
        let routes = mesh.routes().await?;
        match arguments.json {
            true => print_json(&routes),
            false => {
                let mut text = Vec::new();
                write(&mut text, &routes)?;
                Ok(io::stdout().lock().write_all(&text)?)
            }
        }
    })
}

fn write(out: &mut impl Write, status: &RoutesStatus) -> io::Result<()> {
    for route in &status.routes {
        write_route(out, route)?;
    }
    if !status.is_enabled {
        return writeln!(out, "no routes are learned: [routing] enabled is not set");
    }
    for link in &status.links {
        let LinkStatus { peer, cost, .. } = link;
        let rtt = link
            .rtt_us
            .map_or_else(|| "not measured".into(), |us| format!("{us} us"));
        let lost = |ppm: Option<u32>| ppm.map_or_else(|| "not measured".into(), percent);
        let (there, back) = (lost(link.loss_ppm), lost(link.loss_back_ppm));
        writeln!(
            out,
            "link to {peer}: cost {cost}, round trip {rtt}, lost there {there}, back {back}"
        )?;
    }
    if status.is_quiet {
        writeln!(
            out,
            "it has started: it leads nowhere until its neighbours know"
        )?;
    }
    for node in &status.twins {
        writeln!(out, "two nodes have the keys of {node}")?;
    }
    for (reason, &count) in &status.refused {
        writeln!(out, "refused as {reason}: {}", counted(count, "item"))?;
    }
    writeln!(
        out,
        "{} known, {} sent",
        counted(
            u64::try_from(status.destinations).unwrap_or(u64::MAX),
            "destination"
        ),
        counted(status.messages, "message")
    )
}

fn write_route(out: &mut impl Write, route: &RouteStatus) -> io::Result<()> {
    let RouteStatus { name, by, .. } = route;
    let Some(primary) = &route.primary else {
        return writeln!(out, "{name} {}: not reached", route.destination);
    };
    write!(out, "{name} {}: over {primary}", route.destination)?;
    if let Some(backup) = &route.backup {
        write!(out, ", backup {backup}")?;
    }
    write!(out, ", {by}")?;
    if let (Some(metric), Some(seqno), Some(age_s)) = (route.metric, route.seqno, route.age_s) {
        write!(out, ", metric {metric}, number {seqno}, for {age_s} s")?;
    }
    match &route.follows {
        Some(follows) if *follows != route.destination => writeln!(out, ", as {follows}"),
        _ => writeln!(out),
    }
}
