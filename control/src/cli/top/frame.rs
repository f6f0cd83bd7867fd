//! One frame: what is seen of a node between two looks at it.

use super::{
    Sample, cores,
    view::{Order, View},
};
use crate::{
    api::status::{OneWorker, SessionStatus},
    drops,
    routes::RouteStatus,
};
use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{self, Paragraph, Row, Table, Widget},
};
use std::cell::Cell;

/// Kinds of drops that are shown.
const DROPS_MAX: usize = 12;
/// Columns of a bar.
const BAR: usize = 20;

/// Lines of peers that there is room for, however small the terminal.
const PEERS_MIN: u16 = 3;

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const GOOD: Style = Style::new().fg(Color::Green);
const WORTH_A_LOOK: Style = Style::new().fg(Color::Yellow);
const BAD: Style = Style::new().fg(Color::Red);

/// Cells of a table, the first row its head.
struct Block {
    title: String,
    head: Vec<&'static str>,
    widths: Vec<u16>,
    rows: Vec<Vec<widgets::Cell<'static>>>,
}

/// Text in a style.
fn cell(text: impl Into<String>, style: Style) -> widgets::Cell<'static> {
    widgets::Cell::from(text.into()).style(style)
}

/// Text as it is.
fn plain(text: impl Into<String>) -> widgets::Cell<'static> {
    cell(text, Style::new())
}

impl Block {
    fn lines(&self) -> u16 {
        // Its title's line, its head's, and one that is empty.
        u16::try_from(self.rows.len() + 3).unwrap_or(u16::MAX)
    }
}

/// Lines that all of it needs, without that of the keys.
pub(super) fn lines(before: &Sample, now: &Sample) -> u16 {
    blocks(before, now, &View::default())
        .iter()
        .fold(2, |lines: u16, block| lines.saturating_add(block.lines()))
}

/// Draws as much of it as there is room for: where it is little, the peers are scrolled through.
pub(super) fn draw(before: &Sample, now: &Sample, view: &View, area: Rect, buffer: &mut Buffer) {
    let mut blocks = blocks(before, now, view);
    let keys = u16::from(view.is_live);
    let others: u16 = blocks[1..].iter().map(Block::lines).sum();
    let room = area.height.saturating_sub(others + 2 + keys + 3);
    scroll(&mut blocks[0], &view.past, room.max(PEERS_MIN));
    let heights = blocks.iter().map(|block| Constraint::Length(block.lines()));
    let heights: Vec<Constraint> = std::iter::once(Constraint::Length(2))
        .chain(heights)
        .chain([Constraint::Fill(1)])
        .collect();
    let [above, last] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(keys)]).areas(area);
    let areas = Layout::vertical(heights).split(above);
    Paragraph::new(title(now, view)).render(areas[0], buffer);
    for (block, &area) in blocks.into_iter().zip(&areas[1..]) {
        let [name, table] =
            Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
        Paragraph::new(Line::styled(block.title, BOLD)).render(name, buffer);
        let head = Row::new(block.head).style(Style::new().add_modifier(Modifier::DIM));
        let rows = block.rows.into_iter().map(Row::new);
        let widths = block.widths.into_iter().map(Constraint::Length);
        let table_of_it = Table::new(rows, widths).header(head);
        Widget::render(table_of_it, table, buffer);
    }
    if view.is_live {
        let keys = "q end   space stop and go on   s sort   arrows and page keys scroll the peers";
        let style = Style::new().add_modifier(Modifier::DIM);
        Paragraph::new(Line::styled(keys, style)).render(last, buffer);
    }
}

/// Leaves so many rows of the peers, and says which where that is not all. Nothing is scrolled past the last.
fn scroll(peers: &mut Block, past: &Cell<usize>, room: u16) {
    let (all, room) = (peers.rows.len(), usize::from(room));
    past.set(past.get().min(all.saturating_sub(room)));
    if all <= room {
        return;
    }
    let past = past.get();
    peers.rows.drain(..past);
    peers.rows.truncate(room);
    peers.title += &format!(" ({} to {} of {all})", past + 1, past + room);
}

fn title(now: &Sample, view: &View) -> Vec<Line<'static>> {
    let node = &now.status.node;
    let established = now.status.sessions.iter().filter(|s| is_live(s)).count();
    let text = format!(
        "{} {}  {}  up {}  forwarding: {}  {established} of {} peers live",
        node.name,
        node.id,
        node.version,
        time(node.uptime_s),
        now.status.forwarding.mode,
        now.routes.routes.len(),
    );
    let (told, style) = match (&view.silent, &now.status.forwarding.problem) {
        (Some(silent), _) => {
            let why = silent.why.iter().map(|why| format!(": {why}"));
            let why: String = why.collect();
            let text = format!("no answer for {} s, asking on{why}", silent.seconds);
            (text, BAD)
        }
        (None, _) if view.is_paused => ("stopped: space goes on".to_owned(), WORTH_A_LOOK),
        (None, Some(problem)) => (problem.clone(), BAD),
        (None, None) => (String::new(), BOLD),
    };
    vec![Line::styled(text, BOLD), Line::styled(told, style)]
}

/// Seconds as people say them.
fn time(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

fn is_live(session: &SessionStatus) -> bool {
    session.state == "established"
}

fn blocks(before: &Sample, now: &Sample, view: &View) -> [Block; 4] {
    [
        peers(before, now, view.order),
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

fn peers(before: &Sample, now: &Sample, order: Order) -> Block {
    let seconds = (now.at - before.at).as_secs_f64();
    let session = |sample: &Sample, peer: &str| {
        let mut sessions = sample.status.sessions.iter();
        sessions.find(|s| s.peer == peer).cloned()
    };
    let row = |route: &RouteStatus| {
        let (then, session) = (
            session(before, &route.destination),
            session(now, &route.destination),
        );
        let counted = |count: fn(&SessionStatus) -> u64| {
            let now = session.as_ref()?;
            // Another session has other counts.
            let then = then.as_ref().filter(|then| now.session == then.session);
            Some(rate(then.map_or(0, count), count(now), seconds))
        };
        let link = now.routes.links.iter().find(|link| link.peer == route.name);
        let rtt = session.as_ref().and_then(|s| s.rtt_us);
        let (sent, received) = (counted(|s| s.sent_packets), counted(|s| s.received_packets));
        let bits = |bytes: Option<f64>| or_dash(bytes.map(|bytes| short(bytes * 8.0)));
        let state = session.as_ref().map(|s| s.state.clone());
        let style = match &session {
            Some(session) if is_live(session) => GOOD,
            Some(_) => WORTH_A_LOOK,
            None => Style::new(),
        };
        let cells = vec![
            plain(route.name.clone()),
            cell(or_dash(state), style),
            plain(or_dash(route.primary.as_ref())),
            plain(or_dash(route.backup.as_ref())),
            plain(route.by.clone()),
            plain(or_dash(route.metric.or(link.map(|link| link.cost)))),
            plain(or_dash(rtt)),
            plain(or_dash(link.and_then(|link| link.loss_ppm))),
            plain(or_dash(sent.map(short))),
            plain(bits(counted(|s| s.sent_bytes))),
            plain(or_dash(received.map(short))),
            plain(bits(counted(|s| s.received_bytes))),
        ];
        #[allow(clippy::cast_precision_loss, reason = "microseconds to be compared")]
        let rank = match order {
            Order::Listed => None,
            Order::Sent => sent,
            Order::Received => received,
            Order::RoundTrip => rtt.map(|rtt| rtt as f64),
        };
        (rank.unwrap_or(-1.0), cells)
    };
    let mut rows: Vec<_> = now.routes.routes.iter().map(row).collect();
    // What is equal stays as it is listed.
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    Block {
        title: format!("Peers and the ways to them{}", order.words()),
        head: vec![
            "peer", "session", "over", "backup", "by", "metric", "rtt us", "loss ppm", "sent/s",
            "bit/s", "recv/s", "bit/s",
        ],
        widths: vec![14, 12, 10, 10, 9, 7, 7, 8, 7, 7, 7, 7],
        rows: rows.into_iter().map(|(_, cells)| cells).collect(),
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
        let new = new_of(kind);
        let style = if new > 0 { BAD } else { Style::new() };
        vec![
            plain(kind.place.name()),
            cell(reason, style),
            plain(count.to_string()),
            cell(new.to_string(), style),
        ]
    });
    Block {
        title: "Drops by reason (virga drops says what to do about each)".to_owned(),
        head: vec!["where", "reason", "since start", "new"],
        widths: vec![12, 40, 14, 10],
        rows: rows.collect(),
    }
}

fn bar(hundredths: u64) -> widgets::Cell<'static> {
    let full = usize::try_from(hundredths).unwrap_or(100).min(100) * BAR / 100;
    let style = match hundredths {
        0..60 => GOOD,
        60..85 => WORTH_A_LOOK,
        _ => BAD,
    };
    cell(
        format!("{}{}", "#".repeat(full), ".".repeat(BAR - full)),
        style,
    )
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
            plain(worker.number.to_string()),
            plain(or_dash(worker.core)),
            bar(load),
            plain(format!("{load} %")),
            plain(worker.sessions.to_string()),
            plain(short(per_second(|w| w.socket.received.datagrams))),
            plain(short(per_second(|w| w.socket.sent.datagrams))),
            plain(short(per_second(|w| w.worker.forwarded))),
        ]
    });
    Block {
        title: "Workers".to_owned(),
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
            plain(core.number.to_string()),
            bar(busy),
            plain(format!("{busy} %")),
            plain(format!("{softirq} %")),
        ])
    });
    Block {
        title: "This machine's cores (packets that the NIC path forwards count as softirq)"
            .to_owned(),
        head: vec!["core", "", "busy", "softirq"],
        widths: vec![5, 20, 6, 8],
        rows: rows.collect(),
    }
}

#[cfg(test)]
mod tests;
