//! `virga peers`: how packets get to each peer, and what is known of the links to neighbours.

use super::{Failure, block_on, client::Target, percent, print_json, status};
use crate::{api::status::PeerStatus, daemon::path::KeepaliveStatus};
use std::io::{self, Write};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    block_on(async {
        let peers = status::ask(&arguments.target).await?.peers;
        if arguments.json {
            return print_json(&peers);
        }
        let mut text = Vec::new();
        for peer in &peers {
            write(&mut text, peer)?;
        }
        Ok(io::stdout().lock().write_all(&text)?)
    })
}

fn write(out: &mut impl Write, peer: &PeerStatus) -> io::Result<()> {
    let path = match &peer.over {
        Some(over) => format!("{} over {over}", peer.path),
        None if peer.path == "none" => "no live next hop".to_owned(),
        None => peer.path.clone(),
    };
    let session = match &peer.session {
        Some(state) => format!("session {state}"),
        None => peer.ended.as_ref().map_or_else(
            || "no session".to_owned(),
            |why| format!("no session (the last one ended: {why})"),
        ),
    };
    let rtt = peer
        .rtt_us
        .map_or_else(String::new, |us| format!(", round trip {us} us"));
    let lost = peer.lost_ppm.and_then(|ppm| u32::try_from(ppm).ok());
    let lost = lost.map_or_else(String::new, |ppm| format!(", {} lost", percent(ppm)));
    writeln!(
        out,
        "{} {}: {path}; {session}{rtt}{lost}",
        peer.name, peer.id
    )?;
    if !peer.path_why.is_empty() {
        writeln!(out, "  {}: {}", peer.path, peer.path_why)?;
    }
    if let (Some(transport), Some(why)) = (&peer.transport, &peer.transport_why) {
        writeln!(out, "  carried by {transport}: {why}")?;
    }
    if let Some(state) = &peer.member {
        writeln!(out, "  member: {state} for {} s", peer.member_s)?;
    }
    if let Some(origin) = &peer.found {
        writeln!(out, "  found: {origin}")?;
    }
    if let Some(found) = &peer.link {
        writeln!(out, "  link: {}", link(found))?;
    }
    if let Some(tags) = &peer.tags {
        writeln!(out, "  link tags: {}", status::tags(tags))?;
    }
    Ok(())
}

/// What a link's keepalive has found, in words.
pub(super) fn link(found: &KeepaliveStatus) -> String {
    let seconds = found.since_ms / 1_000;
    let state = match found.state.as_str() {
        "off" => return "not watched (keepalive_ms = 0)".to_owned(),
        "unknown" => {
            return "not known: no session, or the neighbour does not speak the keepalive"
                .to_owned();
        }
        "up" => format!("up for {seconds} s"),
        dead => format!("dead for {seconds} s ({dead})"),
    };
    let last = match found.detections {
        0 => String::new(),
        _ => format!(", the last time after {} ms without a packet", found.gap_ms),
    };
    let back = found
        .lost_back_ppm
        .map_or_else(String::new, |ppm| format!(", {} of late", percent(ppm)));
    format!(
        "{state}; found dead {} times{last}; a packet each {} ms, the {} answers, dead after {} ms; {} of {} missed{back}",
        found.detections,
        found.interval_ms,
        match found.answers.as_str() {
            "nic" => "NIC path",
            _ => "worker",
        },
        found.detect_ms,
        found.missed,
        found.missed + found.received
    )
}
