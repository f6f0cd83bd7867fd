//! `virga status`: what a running node is doing.

use super::{Failure, block_on, client::Target, print_json};
use crate::api::status::{Count, Status, Verdicts};
use std::{
    collections::BTreeMap,
    io::{self, Write},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print everything as a JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    block_on(async {
        let status = arguments.target.open().await?.status().await?;
        if arguments.json {
            return print_json(&status);
        }
        let mut text = Vec::new();
        write(&mut text, &status)?;
        Ok(io::stdout().lock().write_all(&text)?)
    })
}

fn write(out: &mut impl Write, status: &Status) -> io::Result<()> {
    let node = &status.node;
    writeln!(
        out,
        "node {} of network {:?}, version {}",
        node.name, node.network, node.version
    )?;
    writeln!(out, "  id {}, origin {}", node.id, node.origin)?;
    writeln!(
        out,
        "  listens on {}, process {}, up {} s",
        node.listen, node.pid, node.uptime_s
    )?;
    write_forwarding(out, status)?;
    write_sessions(out, status)?;
    write_channels(out, status)?;
    writeln!(out, "drops at this node's end")?;
    write_reasons(out, &status.transport.drops)?;
    writeln!(out, "drops and refusals of the channels")?;
    write_reasons(out, &status.channel_reasons)
}

fn write_forwarding(out: &mut impl Write, status: &Status) -> io::Result<()> {
    let forwarding = &status.forwarding;
    writeln!(out, "forwarding: {} ({})", forwarding.mode, forwarding.why)?;
    if let Some(problem) = &forwarding.problem {
        writeln!(out, "  problem: {problem}")?;
    }
    for on in &forwarding.interfaces {
        writeln!(
            out,
            "  {}: {} program {}",
            on.interface, on.xdp_mode, on.program
        )?;
    }
    for link in &forwarding.links {
        let interface = link.interface.as_deref().unwrap_or("no route");
        // User space sends through the kernel, which finds link-layer addresses by itself.
        let is_resolved = link.resolved || forwarding.nic.is_none();
        let state = match (link.down, is_resolved) {
            (true, _) => "taken down",
            (false, true) => "ready",
            (false, false) => "link-layer address unknown",
        };
        writeln!(
            out,
            "  next hop {} at {} ({interface}): {state}",
            link.peer, link.address
        )?;
    }
    if let Some(guard) = &forwarding.guard {
        writeln!(
            out,
            "  guard: {} pairs in {} banks, {:.1} % full, {:.4} % false positives estimated",
            guard.pairs,
            guard.banks,
            guard.fill * 100.0,
            guard.false_positive_rate * 100.0
        )?;
    }
    if let Some(nic) = &forwarding.nic {
        writeln!(out, "verdicts in the NIC path")?;
        write_verdicts(out, nic)?;
    }
    writeln!(out, "verdicts in user space")?;
    write_verdicts(out, &status.userspace)
}

fn write_verdicts(out: &mut impl Write, verdicts: &Verdicts) -> io::Result<()> {
    let all = verdicts
        .outcomes
        .iter()
        .map(|(name, count)| (name.clone(), count));
    let drops = verdicts
        .drops
        .iter()
        .map(|(name, count)| (format!("drop: {name}"), count));
    for (name, Count { packets, bytes }) in all.chain(drops).filter(|(_, count)| count.packets > 0)
    {
        writeln!(out, "  {name:<32}{packets:>14} packets{bytes:>16} bytes")?;
    }
    Ok(())
}

fn write_sessions(out: &mut impl Write, status: &Status) -> io::Result<()> {
    writeln!(out, "sessions: {}", status.sessions.len())?;
    for session in &status.sessions {
        let name = if session.name.is_empty() {
            &session.peer
        } else {
            &session.name
        };
        writeln!(
            out,
            "  {name}: {}, epoch {}, {} packets out, {} in, {} retransmitted, round trip {} us, {} s old",
            session.state,
            session.epoch,
            session.sent_packets,
            session.received_packets,
            session.retransmitted_packets,
            session.rtt_us,
            session.age_s
        )?;
    }
    Ok(())
}

fn write_channels(out: &mut impl Write, status: &Status) -> io::Result<()> {
    writeln!(out, "channels: {}", status.channels.len())?;
    for channel in &status.channels {
        let rights = match (channel.may_publish, channel.may_subscribe) {
            (true, true) => "may publish and subscribe",
            (true, false) => "may publish",
            (false, true) => "may subscribe",
            (false, false) => "passes by",
        };
        writeln!(
            out,
            "  {} (hash {}): {rights}; {} published, subscribed {} nodes; {} delivered, subscribed {} programs here; {} dropped",
            channel.name,
            channel.hash,
            channel.published,
            channel.remote_subscribers,
            channel.delivered,
            channel.local_subscribers,
            channel.dropped
        )?;
    }
    for subscription in &status.subscriptions {
        let (kind, name) = (&subscription.kind, &subscription.name);
        writeln!(
            out,
            "  subscribed to {kind} {name} at {}: {}",
            subscription.peer, subscription.state
        )?;
    }
    Ok(())
}

/// What happened at all; the rest is in `--json`.
fn write_reasons(out: &mut impl Write, reasons: &BTreeMap<String, u64>) -> io::Result<()> {
    let mut counted = reasons.iter().filter(|(_, count)| **count > 0).peekable();
    if counted.peek().is_none() {
        return writeln!(out, "  none");
    }
    for (reason, count) in counted {
        writeln!(out, "  {reason:<32}{count:>14}")?;
    }
    Ok(())
}
