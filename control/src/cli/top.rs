//! `virga top`: a running node, live: its peers and the ways to them, its links, what it drops, and its cores.

mod cores;
mod frame;
mod view;

use super::{Failure, block_on, client::ClientError, client::Target};
use crate::{api::status::Status, mesh::Mesh, routes::RoutesStatus};
use cores::Core;
use ratatui::{buffer::Buffer, crossterm::event, layout::Rect};
use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};
use view::{Next, Silent, View};

/// How often the node is asked, where it is not said.
const EVERY: Duration = Duration::from_secs(1);
/// A node that answers at all has done so by then.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often keys are looked for, whatever the node does, and the screen is drawn.
const KEYS_EVERY: Duration = Duration::from_millis(100);
/// An answer that is not there by then is said to be missing.
const SOON: Duration = Duration::from_secs(1);
/// Columns of a frame that is printed.
const ONCE_WIDTH: u16 = 120;

/// Keys: space stops and goes on, `s` sorts the peers by another column, arrows and page keys scroll them, `q` ends.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print one frame of a second as text, and end.
    #[arg(long)]
    once: bool,
    /// Ask the node each so many seconds.
    #[arg(long, value_name = "SECONDS", conflicts_with = "once", value_parser = seconds)]
    every: Option<Duration>,
    #[command(flatten)]
    target: Target,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = text.parse().ok();
    let seconds = seconds.filter(|seconds| (0.1..=3_600.0).contains(seconds));
    let seconds = seconds.ok_or("not a number of seconds from 0.1 to 3600")?;
    Ok(Duration::from_secs_f64(seconds))
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
                let every = arguments.every.unwrap_or(EVERY);
                let ended = watch(&mesh, before, every, &mut terminal).await;
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
    let view = View::default();
    let area = Rect::new(0, 0, ONCE_WIDTH, frame::lines(before, now));
    let mut buffer = Buffer::empty(area);
    frame::draw(before, now, &view, area, &mut buffer);
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
    every: Duration,
    terminal: &mut ratatui::DefaultTerminal,
) -> Result<(), Failure> {
    let ask = || {
        Box::pin(async {
            tokio::time::sleep(every).await;
            Sample::take(mesh).await
        })
    };
    let mut now = before.clone();
    let mut view = View {
        is_live: true,
        ..View::default()
    };
    let (mut asking, mut why) = (ask(), None);
    // From when on the node owes an answer.
    let mut due = Instant::now() + every;
    loop {
        let owed = due.elapsed();
        view.silent = (why.is_some() || owed >= SOON).then(|| Silent {
            seconds: owed.as_secs(),
            why: why.clone(),
        });
        terminal
            .draw(|shown| frame::draw(&before, &now, &view, shown.area(), shown.buffer_mut()))?;
        // Anything else, such as another size, is shown at once.
        while event::poll(Duration::ZERO)? {
            if view.take(&event::read()?) == Next::End {
                return Ok(());
            }
        }
        let Ok(answer) = tokio::time::timeout(KEYS_EVERY, &mut asking).await else {
            continue;
        };
        asking = ask();
        match answer {
            Ok(next) => {
                (why, due) = (None, Instant::now() + every);
                if !view.is_paused {
                    (before, now) = (now, next);
                }
            }
            // It is being started again, perhaps: what was seen last stays, and it is asked on.
            Err(error) => why = Some(error.to_string()),
        }
    }
}
