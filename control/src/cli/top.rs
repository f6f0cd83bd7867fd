//! `virga top`: a running node, live: its peers and the ways to them, its links, what it drops, and its cores.

mod cores;
mod frame;

use super::{Failure, block_on, client::ClientError, client::Target};
use crate::{api::status::Status, mesh::Mesh, routes::RoutesStatus};
use cores::Core;
use ratatui::{
    buffer::Buffer,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    layout::Rect,
};
use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// How often the node is asked.
const EVERY: Duration = Duration::from_secs(1);
/// A node that answers at all has done so by then.
const PATIENCE: Duration = Duration::from_secs(10);
/// Columns of a frame that is printed.
const ONCE_WIDTH: u16 = 120;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print one frame of a second as text, and end.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    target: Target,
}

/// What there was to see at one time.
#[derive(Clone, Debug)]
struct Sample {
    at: Instant,
    status: Status,
    routes: RoutesStatus,
    /// None where the kernel does not tell.
    cores: Vec<Core>,
}

impl Sample {
    async fn take(mesh: &Mesh) -> Result<Self, ClientError> {
        let asking = async {
            let (status, routes) = (mesh.status().await?, mesh.routes().await?);
            Ok::<_, ClientError>((status, routes))
        };
        let answer = tokio::time::timeout(PATIENCE, asking).await;
        let (status, routes) = answer.map_err(|_| ClientError::Silent {
            seconds: PATIENCE.as_secs(),
        })??;
        Ok(Self {
            at: Instant::now(),
            status,
            routes,
            cores: cores::read(),
        })
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if !arguments.once && !io::stdout().is_terminal() {
        let text = "standard output is no terminal: print one frame with --once, or use `virga status --json`";
        return Err(Failure::Usage(text.into()));
    }
    block_on(async {
        let mesh = arguments.target.open().await?;
        let before = Sample::take(&mesh).await?;
        match arguments.once {
            true => {
                tokio::time::sleep(EVERY).await;
                let now = Sample::take(&mesh).await?;
                Ok(io::stdout()
                    .lock()
                    .write_all(text(&before, &now).as_bytes())?)
            }
            false => {
                let mut terminal = ratatui::try_init()?;
                let ended = watch(&mesh, before, &mut terminal).await;
                // Whatever ended it, the terminal is as it was.
                let restored = ratatui::try_restore();
                ended?;
                Ok(restored?)
            }
        }
    })
}

/// A frame as lines.
fn text(before: &Sample, now: &Sample) -> String {
    let area = Rect::new(0, 0, ONCE_WIDTH, frame::lines(before, now));
    let mut buffer = Buffer::empty(area);
    frame::draw(before, now, area, &mut buffer);
    let mut text = String::new();
    for y in 0..area.height {
        let line: String = (0..area.width).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

async fn watch(
    mesh: &Mesh,
    mut before: Sample,
    terminal: &mut ratatui::DefaultTerminal,
) -> Result<(), Failure> {
    let mut now = before.clone();
    loop {
        let until = Instant::now() + EVERY;
        loop {
            terminal.draw(|shown| frame::draw(&before, &now, shown.area(), shown.buffer_mut()))?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !event::poll(left)? {
                break;
            }
            // Anything else, such as another size, is shown at once.
            if is_end(&event::read()?) {
                return Ok(());
            }
        }
        let next = Sample::take(mesh).await?;
        (before, now) = (now, next);
    }
}

fn is_end(event: &Event) -> bool {
    let Event::Key(key) = event else {
        return false;
    };
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && match key.code {
            KeyCode::Char('q') | KeyCode::Esc => true,
            KeyCode::Char('c') => is_control,
            _ => false,
        }
}
