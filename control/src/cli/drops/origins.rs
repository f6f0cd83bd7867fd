//! `virga drops --origins`: whose packets are dropped, each second.

use super::{Failure, PATIENCE};
use crate::{
    capture::{
        asked::{Asked, RATE},
        line::{Counts, Line},
        origins::{Origins, Seen, Share, Who},
    },
    cli::{client::ClientError, print_json},
    mesh::Mesh,
};
use serde::Serialize;
use std::io::{self, Write};
use tokio::time::timeout;

/// Lines of a table.
const ORIGINS_SHOWN: usize = 10;
/// The node tells so often how many there were: four times a second.
const COUNTS_A_TABLE: u32 = 4;

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    who: Who,
    #[serde(flatten)]
    share: Share,
}

#[derive(Serialize)]
struct Table {
    /// Since watching began.
    seconds: u64,
    /// Packets that were dropped since the last table.
    dropped: u64,
    /// Of those, not even drawn for: above the rate, or without room.
    missed: u64,
    /// Those of most, estimated where not every one was seen.
    origins: Vec<Row>,
    /// Samples of origins beyond those that are told apart.
    without_place: u64,
    /// Why those of the NIC path, which is there, are not among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    nic_refused: Option<String>,
}

/// Until it is stopped, or so many seconds have passed.
pub(super) async fn watch(
    mesh: &Mesh,
    (seconds, is_json): (Option<u64>, bool),
) -> Result<(), Failure> {
    let asked = Asked {
        verdict: Some("drop".to_owned()),
        rate: Some(RATE),
        one_in: Some(0),
        seconds,
        ..Asked::default()
    };
    let mut capture = mesh.capture(&asked).await?;
    if !is_json {
        let text = format!(
            "place, reason, origin, channel, packets: by samples, at most {RATE} a second, picked at random; \
             +- is how far off a count may be, 95 times of 100"
        );
        // Whoever closed standard error goes without.
        let _unheard = writeln!(io::stderr(), "{text}");
    }
    let (mut origins, mut before) = (Origins::default(), Counts::default());
    let (mut counted, mut tables, mut nic_refused) = (0, 0, None);
    loop {
        let silent = |_| ClientError::Silent {
            seconds: PATIENCE.as_secs(),
        };
        let next = timeout(PATIENCE, capture.next_line()).await;
        let Some(line) = next.map_err(silent)? else {
            return Err(ClientError::Stopped { arrived: 0 }.into());
        };
        let (now, is_last) = match line? {
            Line::Begun(begun) => {
                nic_refused = begun.nic_refused;
                if let Some(why) = &nic_refused {
                    // Whoever closed standard error goes without.
                    let _unheard = writeln!(io::stderr(), "{why}");
                }
                continue;
            }
            Line::Packet(packet) => {
                origins.note(&packet);
                continue;
            }
            Line::Counts(now) => (now, false),
            Line::Ended(ended) => (ended.counts, true),
        };
        counted += 1;
        if is_last || counted == COUNTS_A_TABLE {
            (counted, tables) = (0, tables + 1);
            let dropped = now.matched.saturating_sub(before.matched);
            let table = Table {
                seconds: tables,
                dropped,
                missed: now.missed().saturating_sub(before.missed()),
                origins: (origins
                    .top(ORIGINS_SHOWN, Seen::between(&before, &now))
                    .into_iter())
                .map(|(who, share)| Row { who, share })
                .collect(),
                without_place: origins.without_place,
                nic_refused: nic_refused.clone(),
            };
            match is_json {
                _ if table.dropped == 0 => {}
                true => print_json(&table)?,
                false => print(&table)?,
            }
            (origins, before) = (Origins::default(), now);
        }
        if is_last {
            return Ok(());
        }
    }
}

fn print(table: &Table) -> Result<(), Failure> {
    let mut text = Vec::new();
    write!(text, "{:>5} s  {} dropped", table.seconds, table.dropped)?;
    match table.missed {
        0 => writeln!(text)?,
        missed => writeln!(text, ", {missed} of them not sampled")?,
    }
    for Row { who, share } in &table.origins {
        let name = who.origin_name.as_ref().or(who.origin.as_ref());
        let name = name.map_or("no header", String::as_str);
        let error = match share.error {
            Some(0) => String::new(),
            Some(error) => format!(" +- {error}"),
            None => " +- ?".to_owned(),
        };
        writeln!(
            text,
            "         {:<10} {:<16} {name:<16} {:<24} {:>10}{error}",
            who.place.name(),
            who.reason,
            who.channel.as_deref().unwrap_or("-"),
            share.packets
        )?;
    }
    if table.without_place > 0 {
        writeln!(
            text,
            "         and {} samples of origins beyond those",
            table.without_place
        )?;
    }
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    Ok(out.flush()?)
}
