//! The daemon's own log: lines to standard error. A line that cannot be written is counted, and ends nothing.

use std::{
    io::{self, Write},
    sync::atomic::{AtomicU64, Ordering},
};
use tracing_subscriber::EnvFilter;

static LOST: AtomicU64 = AtomicU64::new(0);

/// How many lines could not be written since the process began: the disk is full, or whoever read them is gone.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Begins it; `RUST_LOG` says how many lines.
pub(super) fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    // A second daemon in one process (a test) keeps the first one's log.
    let _already_started = builder
        .with_writer(|| Lines(io::stderr()))
        .with_target(false)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .try_init();
}

/// Takes one whole line at a time; counts those that the one behind does not take.
struct Lines<W>(W);

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.write_all(line).is_err() {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // Standard error keeps nothing back.
        Ok(())
    }
}
