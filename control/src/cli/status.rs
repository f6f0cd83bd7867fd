//! `virga status`: what a running node is doing.

mod logs;
mod tree;

use super::{
    Failure, block_on,
    client::{ClientError, Target},
    counted, print_json,
};
use crate::{
    admissions::Verdict,
    api::status::{Count, OneWorker, PathStatus, SessionStatus, Status, TimesStatus, Verdicts},
    channel::status::ChannelStatus,
    daemon::flood::AdmissionsStatus,
    drops::{self, Place},
    filters::FiltersStatus,
    nat::PortMappingStatus,
    tags::TagsStatus,
};
use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Duration,
};

/// A node that answers at all has done so by then.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print everything as a JSON object.
    #[arg(long)]
    json: bool,
    /// Print how long the work takes too, and what each worker's driver does.
    #[arg(long, short)]
    verbose: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    block_on(async {
        let status = ask(&arguments.target).await?;
        if arguments.json {
            return print_json(&status);
        }
        let mut text = Vec::new();
        write(&mut text, &status)?;
        if arguments.verbose {
            write_details(&mut text, &status)?;
        }
        Ok(io::stdout().lock().write_all(&text)?)
    })
}

/// Asks a running node.
pub(super) async fn ask(target: &Target) -> Result<Status, ClientError> {
    let asking = async {
        let mesh = target.open().await?;
        Ok::<_, ClientError>(mesh.status().await?)
    };
    let answer = tokio::time::timeout(PATIENCE, asking).await;
    answer.map_err(|_| ClientError::Silent {
        seconds: PATIENCE.as_secs(),
    })?
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
    if status.nat.is_on {
        writeln!(out, "  NAT: {}: {}", status.nat.class, status.nat.why)?;
        write_port_mapping(out, &status.nat.port_mapping)?;
    }
    if node.unwritten > 0 {
        writeln!(
            out,
            "  problem: {} cannot be written to the state folder, and a restart would forget what peers have said; make room there",
            counted(node.unwritten, "declared channel")
        )?;
    }
    if node.log_lines_lost > 0 {
        writeln!(
            out,
            "  problem: {} lines of its log could not be written: its disk is full, or whoever read them is gone",
            node.log_lines_lost
        )?;
    }
    writeln!(
        out,
        "driver: {} ({})",
        status.socket.driver, status.socket.why
    )?;
    write_workers(out, status)?;
    write_forwarding(out, status)?;
    write_admissions(out, status)?;
    write_filters(out, &status.admissions.filters)?;
    write_sessions(out, status)?;
    write_channels(out, status)?;
    logs::write(out, &status.logs)?;
    let title = "drops at this node's end";
    write_reasons(out, title, &status.transport.drops, Place::Sessions)?;
    write_lost(out, status)?;
    let title = "drops and refusals of the channels";
    write_reasons(out, title, &status.channel_reasons, Place::Channels)
}

fn write_port_mapping(out: &mut impl Write, mapping: &PortMappingStatus) -> io::Result<()> {
    if !mapping.is_on {
        return Ok(());
    }
    let panicked = match mapping.panics {
        0 => String::new(),
        count => format!("; what keeps it has panicked, times: {count}"),
    };
    let (Some(protocol), Some(external)) = (&mapping.protocol, &mapping.external) else {
        return writeln!(out, "  port mapping: none: {}{panicked}", mapping.why);
    };
    let lease = match mapping.lease_left_s {
        Some(seconds) => format!("{seconds} s of its lease left"),
        None => "without an end".to_owned(),
    };
    let why = &mapping.why;
    writeln!(
        out,
        "  port mapping: {external} by {protocol}, {lease}: {why}{panicked}"
    )
}

fn write_details(out: &mut impl Write, status: &Status) -> io::Result<()> {
    for one in &status.workers {
        let (number, socket, done) = (one.number, &one.socket, &one.worker);
        writeln!(
            out,
            "worker {number}, driver {}: {}",
            socket.driver, socket.why
        )?;
        for (way, io) in [("in", &socket.received), ("out", &socket.sent)] {
            writeln!(
                out,
                "  {way}: {}, {} bytes, in {} batches, {} in offloaded runs",
                counted(io.datagrams, "packet"),
                io.bytes,
                io.batches,
                io.segments
            )?;
        }
        for (name, count) in &socket.figures {
            writeln!(out, "  {name}: {count}")?;
        }
        writeln!(
            out,
            "  {} turns, {} commands, {} handed over, {} taken over",
            done.turns, done.commands, done.handed_over, done.taken_over
        )?;
        for (name, times) in &one.times {
            write_times(out, name, times)?;
        }
        for (class, times) in &one.class_times {
            write_times(out, &format!("class {class} until sent"), &times.sent_after)?;
            if times.acked_after.count > 0 {
                let name = format!("class {class} until acknowledged");
                write_times(out, &name, &times.acked_after)?;
            }
        }
    }
    for (class, one) in &status.transport.classes {
        writeln!(
            out,
            "class {class}: {}, {} bytes, {} out; {}, {} bytes, {} in; {} again, {} bytes; {} bytes wait",
            counted(one.sent_packets, "packet"),
            one.sent_bytes,
            counted(one.sent_events, "event"),
            counted(one.received_packets, "packet"),
            one.received_bytes,
            counted(one.received_events, "event"),
            counted(one.retransmitted_packets, "packet"),
            one.retransmitted_bytes,
            one.queued_bytes,
        )?;
    }
    writeln!(out, "programs on this node")?;
    write_times(out, "delivery_wait", &status.delivery_wait)
}

fn write_times(out: &mut impl Write, name: &str, times: &TimesStatus) -> io::Result<()> {
    let us = |ns: u64| format!("{}.{:01} us", ns / 1_000, ns % 1_000 / 100);
    writeln!(
        out,
        "  {name}: {} times; half within {}, 99 % within {}, 99.9 % within {}, all within {}",
        times.count,
        us(times.p50_ns),
        us(times.p99_ns),
        us(times.p999_ns),
        us(times.max_ns)
    )
}

/// Datagrams that were lost between the NIC and the sessions, or the sessions and the NIC.
fn write_lost(out: &mut impl Write, status: &Status) -> io::Result<()> {
    write_reasons(
        out,
        "lost at this node's sockets",
        &status.lost(),
        Place::Sockets,
    )
}

/// Nothing where no channel asks its publishers for anything.
fn write_admissions(out: &mut impl Write, status: &Status) -> io::Result<()> {
    let held = &status.admissions;
    let none = AdmissionsStatus {
        filters: held.filters.clone(),
        ..AdmissionsStatus::default()
    };
    if *held == none {
        return Ok(());
    }
    let refused = held
        .verdicts
        .iter()
        .filter(|(name, _)| *name != Verdict::Admitted.name());
    let refused: String = refused
        .map(|(name, count)| {
            let tokens = held.tokens_refused.get(name).copied().unwrap_or_default();
            format!("; {count} refused: {name} ({})", counted(tokens, "token"))
        })
        .collect();
    writeln!(
        out,
        "admitted by what was shown: {} of {} in the guard, by {} and {}; {} told{refused}",
        counted(held.pairs, "pair"),
        counted(held.holders, "holder"),
        counted(held.tokens, "token"),
        counted(held.statements, "statement"),
        counted(held.neighbours, "neighbour"),
    )
}

/// Nothing where no gateway of a subnet is named.
fn write_filters(out: &mut impl Write, held: &FiltersStatus) -> io::Result<()> {
    let Some(own) = &held.own else {
        return Ok(());
    };
    let refused = held.refused.iter();
    let refused: String = refused
        .map(|(name, count)| format!("; {count} refused: {name}"))
        .collect();
    writeln!(
        out,
        "subnets: exact pairs within {own}, filters of the others{refused}"
    )?;
    for one in &held.filters {
        let by = one.gateway.get(..16).unwrap_or(&one.gateway);
        let state = match (one.expires_in_s, one.version) {
            (_, 0) => {
                writeln!(out, "  {} by {by}: nothing heard", one.subnet)?;
                continue;
            }
            (None, _) => "ended".to_owned(),
            (Some(seconds), _) => format!("ends in {seconds} s"),
        };
        let role = match (one.is_own, one.is_used) {
            (true, _) => ", this node's own",
            (false, true) => ", in use",
            (false, false) => "",
        };
        let excess = match one.is_overfull {
            true => ", more pairs than it is made for",
            false => "",
        };
        writeln!(
            out,
            "  {} by {by}: version {}, {state}, {}, {:.1} % full, {:.4} % false positives estimated, {} withdrawn{role}{excess}",
            one.subnet,
            one.version,
            counted(one.banks, "bank"),
            one.fill * 100.0,
            one.false_positive_rate * 100.0,
            counted(one.withdrawn, "pair"),
        )?;
    }
    Ok(())
}

/// Nothing where there is one that stays on no core: its figures are the node's.
fn write_workers(out: &mut impl Write, status: &Status) -> io::Result<()> {
    if matches!(&status.workers[..], [] | [OneWorker { core: None, .. }]) {
        return Ok(());
    }
    let lines = status.workers.iter().map(|one| {
        let core = match (one.core, &*one.core_why) {
            (None, _) => String::new(),
            (Some(core), "") => format!(" on core {core}"),
            (Some(core), why) => format!(" on core {core} ({why})"),
        };
        let done = &one.worker;
        let handed_over = match (done.handed_over, done.hand_over_full) {
            (0, 0) => String::new(),
            (over, 0) => format!("; {over} handed over"),
            (over, full) => format!("; {over} handed over, {full} lost as the other was busy"),
        };
        format!(
            "  worker {}{core}: {}, {} in, {} out{handed_over}",
            one.number,
            counted(one.sessions, "session"),
            counted(one.socket.received.datagrams, "packet"),
            one.socket.sent.datagrams,
        )
    });
    let title = format!("workers: {} ({})", status.workers.len(), status.steering);
    write_lines(out, &title, lines)
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
        if let Some(why) = &link.unvouched {
            let subnet = &link.subnet;
            writeln!(out, "    subnet {subnet}: control traffic only ({why})")?;
        }
        writeln!(out, "    link tags: {}", tags(&link.tags))?;
        writeln!(out, "    link: {}", super::peers::link(&link.keepalive))?;
    }
    if let Some(guard) = &forwarding.guard {
        writeln!(
            out,
            "  guard: {} in {}, {:.1} % full, {:.4} % false positives estimated",
            counted(guard.pairs, "pair"),
            counted(guard.banks, "bank"),
            guard.fill * 100.0,
            guard.false_positive_rate * 100.0
        )?;
    }
    if let Some(nic) = &forwarding.nic {
        write_verdicts(out, "verdicts in the NIC path", nic)?;
    }
    write_verdicts(out, "verdicts in user space", &status.userspace)
}

/// Both directions of a link.
pub(super) fn tags(tags: &TagsStatus) -> String {
    let one = |is_so, word: &str, why: &Option<String>| {
        let no = if is_so { "" } else { "not " };
        let why = why.as_ref().map(|why| format!(" ({why})"));
        format!("{no}{word}{}", why.unwrap_or_default())
    };
    let checked = one(tags.checked, "checked", &tags.checked_why);
    let sent = one(tags.sent, "sent", &tags.sent_why);
    format!("{checked}, {sent}")
}

/// Whether packets to a peer go straight, and why.
fn way_line(status: &Status, peer: &str) -> String {
    let mut peers = status.peers.iter();
    let found = peers.find(|one| one.name == peer && !one.path_why.is_empty());
    found.map_or_else(String::new, |one| {
        format!("\n    {}: {}", one.path, one.path_why)
    })
}

/// What was decided at all; the rest is in `--json`.
fn write_verdicts(out: &mut impl Write, title: &str, verdicts: &Verdicts) -> io::Result<()> {
    let all = verdicts
        .outcomes
        .iter()
        .map(|(name, count)| (name.clone(), count));
    let drops = verdicts
        .drops
        .iter()
        .map(|(name, count)| (format!("drop: {name}"), count));
    let counted = all.chain(drops).filter(|(_, count)| count.packets > 0);
    let lines = counted.map(|(name, Count { packets, bytes })| {
        let unit = if *packets == 1 { "packet" } else { "packets" };
        format!("  {name:<32}{packets:>14} {unit:<7}{bytes:>16} bytes")
    });
    write_lines(out, title, lines)
}

fn write_sessions(out: &mut impl Write, status: &Status) -> io::Result<()> {
    let lines = status.sessions.iter().map(|session| {
        let name = if session.name.is_empty() {
            &session.peer
        } else {
            &session.name
        };
        let round_trip = session
            .rtt_us
            .map_or_else(|| "unmeasured".to_owned(), |us| format!("{us} us"));
        let within = session.round_trips.map_or_else(String::new, |times| {
            format!(" (99 % within {} us)", times.p99_ns / 1_000)
        });
        format!(
            "  {name}: {}, {}, epoch {}, {} out, {} in, {} retransmitted, round trip {round_trip}{within}, {} s old",
            session.state,
            began(session),
            session.epoch,
            counted(session.sent_packets, "packet"),
            session.received_packets,
            session.retransmitted_packets,
            session.age_s
        ) + &path_line(&session.path)
            + &way_line(status, &session.name)
    });
    write_lines(out, "sessions", lines)?;
    for conflict in &status.transport.conflicts {
        let (peer, why, fix) = (&conflict.peer, &conflict.why, &conflict.fix);
        writeln!(out, "  no session with {peer}: {why}; {fix}")?;
    }
    for line in refused_handshakes(status) {
        writeln!(out, "  {line}")?;
    }
    Ok(())
}

/// How a session's keys were agreed on.
fn began(session: &SessionStatus) -> String {
    let kem = if session.hybrid { " + ML-KEM-768" } else { "" };
    format!("{}{kem}", session.pattern)
}

/// The path of a session, on a line of its own.
fn path_line(path: &PathStatus) -> String {
    format!(
        "\n    datagrams of {} bytes, {} ({}): {} of {} bytes in flight, {} lost, {} of them only late",
        path.datagram_bytes,
        path.congestion,
        path.phase,
        path.in_flight_bytes,
        path.window_bytes,
        counted(path.lost_packets, "packet"),
        path.spurious_losses
    )
}

/// Why a session may not come up, as far as this node refused what others asked: most often both ends do.
fn refused_handshakes(status: &Status) -> Vec<String> {
    use virga_transport::DropReason::{
        HandshakeNoise, HandshakePeer, HandshakePskGeneration, HandshakeTag,
    };
    let is_up = |session: &SessionStatus| session.state == "established";
    if !status.sessions.is_empty() && status.sessions.iter().all(is_up) {
        return Vec::new();
    }
    let told = [
        HandshakePskGeneration,
        HandshakeTag,
        HandshakePeer,
        HandshakeNoise,
    ]
    .into_iter()
    .filter_map(|reason| {
        let count = *status.transport.drops.get(reason.name())?;
        let refused = || {
            let handshakes = counted(count, "handshake");
            format!(
                "{handshakes} refused here ({}): {}",
                reason.name(),
                reason.meaning()
            )
        };
        (count > 0).then(refused)
    });
    told.collect()
}

fn write_channels(out: &mut impl Write, status: &Status) -> io::Result<()> {
    let lines = status.channels.iter().map(|channel| {
        let rights = match (channel.may_publish, channel.may_subscribe) {
            (true, true) => "may publish and subscribe",
            (true, false) => "may publish",
            (false, true) => "may subscribe",
            (false, false) => "passes by",
        };
        format!(
            "  {} (hash {}): {rights}; {} published, {} subscribed; {} delivered, {} subscribed here; {} dropped",
            channel.name,
            channel.hash,
            channel.published,
            counted(channel.remote_subscribers, "node"),
            channel.delivered,
            counted(channel.local_subscribers, "program"),
            channel.dropped
        ) + &pauses(channel)
            + &tree::lines(channel, status)
    });
    write_lines(out, "channels", lines)?;
    for subscriber in &status.subscribers {
        if let Some(unread_ms) = subscriber.unread_ms {
            writeln!(
                out,
                "  slow subscriber {} of {} {}: {} bytes queued, nothing read for {} s",
                subscriber.id,
                subscriber.kind,
                subscriber.name,
                subscriber.queued_bytes,
                unread_ms / 1_000
            )?;
        }
    }
    for subscription in &status.subscriptions {
        let (kind, name) = (&subscription.kind, &subscription.name);
        let words = match subscription.words.as_str() {
            "" => String::new(),
            words => format!(" ({words})"),
        };
        writeln!(
            out,
            "  subscribed to {kind} {name} at {}: {}{words}",
            subscription.peer_name, subscription.state
        )?;
    }
    Ok(())
}

/// A line for each side that has a reliable channel wait.
fn pauses(channel: &ChannelStatus) -> String {
    let mut lines = String::new();
    if let Some(paused_ms) = channel.paused_ms {
        let seconds = paused_ms / 1_000;
        lines += &format!("\n    paused for {seconds} s by a program here that does not keep up");
    }
    if channel.remote_holding > 0 {
        let nodes = counted(channel.remote_holding, "node");
        lines += &format!("\n    paused by {nodes} with a program that does not keep up");
    }
    lines
}

/// What happened at all; the rest is in `--json`.
fn write_reasons(
    out: &mut impl Write,
    title: &str,
    reasons: &BTreeMap<String, u64>,
    place: Place,
) -> io::Result<()> {
    let counted = reasons.iter().filter(|(_, count)| **count > 0);
    let lines = counted.map(|(reason, count)| {
        let meaning = drops::meaning(place, reason);
        format!("  {reason:<26}{count:>12}  {meaning}")
    });
    write_lines(out, title, lines)
}

/// A title and what is below it; without anything there the title says so.
fn write_lines(
    out: &mut impl Write,
    title: &str,
    lines: impl Iterator<Item = String>,
) -> io::Result<()> {
    let mut lines = lines.peekable();
    if lines.peek().is_none() {
        return writeln!(out, "{title}: none");
    }
    writeln!(out, "{title}:")?;
    for line in lines {
        writeln!(out, "{line}")?;
    }
    Ok(())
}
