//! What is published: this machine's live metrics, read from /proc.

use std::{fs, io};

/// Number of the last event.
pub const LAST: u64 = u64::MAX;

/// Files whose lines become events, one after the other.
const FILES: [&str; 5] = [
    "/proc/loadavg",
    "/proc/stat",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/uptime",
];

/// Reads one line of one file after the other, anew each time around.
pub struct Source {
    lines: Vec<String>,
}

impl Source {
    /// A source that has read nothing yet.
    pub fn new() -> Self {
        Self { lines: Vec::new() }
    }

    /// The next event: its number, where the line is from, and the line.
    pub fn event(&mut self, number: u64) -> io::Result<Vec<u8>> {
        if self.lines.is_empty() {
            for file in FILES {
                let text = fs::read_to_string(file)?;
                let line = |l: &str| {
                    format!(
                        "{file}: {}",
                        l.split_whitespace().collect::<Vec<_>>().join(" ")
                    )
                };
                self.lines
                    .extend(text.lines().map(line).filter(|l| l.len() < 900));
            }
            self.lines.reverse();
        }
        let line = self.lines.pop().unwrap_or_default();
        Ok(format!("{number} {line}").into_bytes())
    }
}

/// The number of an event.
pub fn number(event: &[u8]) -> Option<u64> {
    std::str::from_utf8(event)
        .ok()?
        .split(' ')
        .next()?
        .parse()
        .ok()
}
