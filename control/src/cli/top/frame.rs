//! One frame: what is seen of a node between two looks at it.

use super::{Sample, cores};
use crate::{
    api::status::{OneWorker, SessionStatus},
    drops,
};
use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::Line,
    widgets::{Cell, Paragraph, Row, Table, Widget},
};

/// Kinds of drops that are shown.
const DROPS_MAX: usize = 12;
/// Columns of a bar.
const BAR: usize = 20;

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);

/// Cells of a table, the first row its head.
struct Block {
    title: &'static str,
    head: Vec<&'static str>,
    widths: Vec<u16>,
    rows: Vec<Vec<String>>,
}

impl Block {
    fn lines(&self) -> u16 {
        // Its title's line, its head's, and one that is empty.
        u16::try_from(self.rows.len() + 3).unwrap_or(u16::MAX)
    }
}

/// Lines that all of it needs.
pub(super) fn lines(before: &Sample, now: &Sample) -> u16 {
    blocks(before, now)
        .iter()
        .fold(2, |lines: u16, block| lines.saturating_add(block.lines()))
}

/// Draws as much of it as there is room for.
pub(super) fn draw(before: &Sample, now: &Sample, area: Rect, buffer: &mut Buffer) {
    let blocks = blocks(before, now);
    let heights = blocks.iter().map(|block| Constraint::Length(block.lines()));
    let heights: Vec<Constraint> = std::iter::once(Constraint::Length(2))
        .chain(heights)
        .chain([Constraint::Fill(1)])
        .collect();
    let areas = Layout::vertical(heights).split(area);
    Paragraph::new(Line::styled(title(now), BOLD)).render(areas[0], buffer);
    for (block, &area) in blocks.into_iter().zip(&areas[1..]) {
        let [name, table] =
            Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
        Paragraph::new(Line::styled(block.title, BOLD)).render(name, buffer);
        let head = Row::new(block.head).style(Style::new().add_modifier(Modifier::DIM));
        let rows = block
            .rows
            .into_iter()
            .map(|row| Row::new(row.into_iter().map(Cell::from)));
        let widths = block.widths.into_iter().map(Constraint::Length);
        let table_of_it = Table::new(rows, widths).header(head);
        Widget::render(table_of_it, table, buffer);
    }
}

fn title(now: &Sample) -> String {
    let node = &now.status.node;
    let established = now.status.sessions.iter().filter(|s| is_live(s)).count();
    format!(
        "{} {}  {}  up {} s  forwarding: {}  {established} of {} peers live  (q ends)",
        node.name,
        node.id,
        node.version,
        node.uptime_s,
        now.status.forwarding.mode,
        now.routes.routes.len(),
    )
}

fn is_live(session: &SessionStatus) -> bool {
    session.state == "established"
}

fn blocks(before: &Sample, now: &Sample) -> [Block; 4] {
    [
        peers(before, now),
        dropped(before, now),
        workers(before, now),
        all_cores(before, now),
    ]
}

/// A count's growth a second.
fn rate(before: u64, now: u64, seconds: f64) -> f64 {
    // Counts begin anew with the daemon.
    let new = now.checked_sub(before).unwrap_or(now);
    match seconds > 0.0 {
        #[allow(clippy::cast_precision_loss, reason = "it is shown in three digits")]
        true => new as f64 / seconds,
        false => 0.0,
    }
}

/// A number in four characters and a letter.
fn short(number: f64) -> String {
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.into_iter().find(|&(unit, _)| number >= unit) {
        Some((unit, letter)) => format!("{:.1}{letter}", number / unit),
        None => format!("{number:.0}"),
    }
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

fn peers(before: &Sample, now: &Sample) -> Block {
    let seconds = (now.at - before.at).as_secs_f64();
    let rows = now.routes.routes.iter().map(|route| {
        let session = |sample: &Sample| {
            let mut sessions = sample.status.sessions.iter();
            sessions.find(|s| s.peer == route.destination).cloned()
        };
        let (then, session) = (session(before), session(now));
        let counted = |count: fn(&SessionStatus) -> u64, unit: f64| {
            let now = session.as_ref().map(count);
            // Another session has other counts.
            let is_same = |then: &&SessionStatus| {
                session
                    .as_ref()
                    .is_some_and(|now| now.session == then.session)
            };
            let then = then.as_ref().filter(is_same).map_or(0, count);
            or_dash(now.map(|now| short(rate(then, now, seconds) * unit)))
        };
        let link = now.routes.links.iter().find(|link| link.peer == route.name);
        let rtt = session.as_ref().and_then(|s| s.rtt_us);
        vec![
            route.name.clone(),
            session
                .as_ref()
                .map_or_else(|| "-".into(), |s| s.state.clone()),
            or_dash(route.primary.as_ref()),
            or_dash(route.backup.as_ref()),
            route.by.clone(),
            or_dash(route.metric.or(link.map(|link| link.cost))),
            or_dash(rtt),
            or_dash(link.map(|link| link.loss_ppm)),
            counted(|s| s.sent_packets, 1.0),
            counted(|s| s.sent_bytes, 8.0),
            counted(|s| s.received_packets, 1.0),
            counted(|s| s.received_bytes, 8.0),
        ]
    });
    Block {
        title: "Peers and the ways to them",
        head: vec![
            "peer", "session", "over", "backup", "by", "metric", "rtt us", "loss ppm", "sent/s",
            "bit/s", "recv/s", "bit/s",
        ],
        widths: vec![14, 12, 10, 10, 9, 7, 7, 8, 7, 7, 7, 7],
        rows: rows.collect(),
    }
}

fn dropped(before: &Sample, now: &Sample) -> Block {
    let counts = drops::counts(&now.status);
    let new = drops::since(&drops::counts(&before.status), &counts);
    let mut rows: Vec<_> = counts.iter().collect();
    let new_of = |kind| new.get(kind).copied().unwrap_or(0);
    rows.sort_by_key(|&(kind, &count)| std::cmp::Reverse((new_of(kind), count)));
    let rows = rows.into_iter().take(DROPS_MAX).map(|(kind, count)| {
        let reason = match &kind.channel {
            Some(channel) => format!("{} ({channel})", kind.reason),
            None => kind.reason.clone(),
        };
        vec![
            kind.place.name().to_owned(),
            reason,
            count.to_string(),
            new_of(kind).to_string(),
        ]
    });
    Block {
        title: "Drops by reason",
        head: vec!["where", "reason", "since start", "new"],
        widths: vec![12, 40, 14, 10],
        rows: rows.collect(),
    }
}

fn bar(hundredths: u64) -> String {
    let full = usize::try_from(hundredths).unwrap_or(100).min(100) * BAR / 100;
    format!("{}{}", "#".repeat(full), ".".repeat(BAR - full))
}

fn workers(before: &Sample, now: &Sample) -> Block {
    let seconds = (now.at - before.at).as_secs_f64();
    let rows = now.status.workers.iter().map(|worker| {
        let then = before
            .status
            .workers
            .iter()
            .find(|w| w.number == worker.number);
        let per_second = |count: fn(&OneWorker) -> u64| {
            let now = count(worker);
            // Nothing is known of the time before.
            rate(then.map_or(now, count), now, seconds)
        };
        let load = per_second(|w| w.cpu_ns) / 1e7;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 100"
        )]
        let load = load.clamp(0.0, 100.0) as u64;
        vec![
            worker.number.to_string(),
            or_dash(worker.core),
            bar(load),
            format!("{load} %"),
            worker.sessions.to_string(),
            short(per_second(|w| w.socket.received.datagrams)),
            short(per_second(|w| w.socket.sent.datagrams)),
            short(per_second(|w| w.worker.forwarded)),
        ]
    });
    Block {
        title: "Workers",
        head: vec![
            "worker",
            "core",
            "",
            "load",
            "sessions",
            "recv/s",
            "sent/s",
            "forwarded/s",
        ],
        widths: vec![7, 5, 20, 6, 9, 9, 9, 12],
        rows: rows.collect(),
    }
}

fn all_cores(before: &Sample, now: &Sample) -> Block {
    let rows = now.cores.iter().filter_map(|&core| {
        let (busy, softirq) = cores::load(&before.cores, core)?;
        Some(vec![
            core.number.to_string(),
            bar(busy),
            format!("{busy} %"),
            format!("{softirq} %"),
        ])
    });
    Block {
        title: "This machine's cores (packets that the NIC path forwards count as softirq)",
        head: vec!["core", "", "busy", "softirq"],
        widths: vec![5, 20, 6, 8],
        rows: rows.collect(),
    }
}

#[cfg(test)]
mod tests;
