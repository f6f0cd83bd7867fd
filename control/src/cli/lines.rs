//! Lines of standard input, read ahead on a thread of their own; no line is held that is longer than
//! an event may be.

use std::{
    io::{self, BufRead, BufReader, Read},
    thread,
};
use tokio::sync::mpsc;

/// Bytes that are read at once.
const READ_BYTES: usize = 64 * 1024;
/// Batches that are read ahead.
const BATCHES_MAX: usize = 8;

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// An event, without the line's end.
    Event(Vec<u8>),
    /// More than an event may hold; it was thrown away.
    TooLong {
        /// Which line, from 1.
        number: u64,
    },
}

/// All lines that are there at once, in order.
pub(super) type Batch = io::Result<Vec<Line>>;

/// Reads lines of at most so many bytes on a thread of its own.
pub(super) fn read_ahead(
    input: impl Read + Send + 'static,
    line_bytes_max: usize,
) -> mpsc::Receiver<Batch> {
    let (batches, read) = mpsc::channel(BATCHES_MAX);
    thread::spawn(move || {
        let mut lines = Lines {
            input: BufReader::with_capacity(READ_BYTES, input),
            line_bytes_max,
            number: 0,
        };
        while let Some(batch) = lines.next_batch().transpose() {
            let is_last = batch.is_err();
            if batches.blocking_send(batch).is_err() || is_last {
                return;
            }
        }
    });
    read
}

struct Lines<R> {
    input: BufReader<R>,
    line_bytes_max: usize,
    number: u64,
}

impl<R: Read> Lines<R> {
    /// The next line, and all that the buffer holds after it.
    fn next_batch(&mut self) -> io::Result<Option<Vec<Line>>> {
        let Some(first) = self.next_line()? else {
            return Ok(None);
        };
        let mut batch = vec![first];
        while self.input.buffer().contains(&b'\n') {
            batch.extend(self.next_line()?);
        }
        Ok(Some(batch))
    }

    fn next_line(&mut self) -> io::Result<Option<Line>> {
        let mut line = Vec::new();
        // The largest line and its end.
        let bytes_max = u64::try_from(self.line_bytes_max + 1).unwrap_or(u64::MAX);
        let bytes = (&mut self.input)
            .take(bytes_max)
            .read_until(b'\n', &mut line)?;
        if bytes == 0 {
            return Ok(None);
        }
        self.number += 1;
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() > self.line_bytes_max {
            self.input.skip_until(b'\n')?;
            let number = self.number;
            return Ok(Some(Line::TooLong { number }));
        }
        Ok(Some(Line::Event(line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(input: &'static [u8], line_bytes_max: usize) -> Vec<Line> {
        let mut batches = read_ahead(input, line_bytes_max);
        let mut lines = Vec::new();
        while let Some(batch) = batches.blocking_recv() {
            lines.extend(batch.unwrap());
        }
        lines
    }

    fn event(text: &str) -> Line {
        Line::Event(text.into())
    }

    #[test]
    fn lines_up_to_the_limit_are_events_and_longer_ones_are_skipped_whole() {
        let too_long = |number| Line::TooLong { number };
        assert_eq!(all(b"", 3), []);
        assert_eq!(all(b"abc\n\nab", 3), [event("abc"), event(""), event("ab")]);
        assert_eq!(
            all(b"abcd\nabc\nabcdefgh\nx\nabcd", 3),
            [
                too_long(1),
                event("abc"),
                too_long(3),
                event("x"),
                too_long(5)
            ]
        );
        assert_eq!(all(b"abc", 3), [event("abc")]);
    }

    #[test]
    fn a_failure_to_read_ends_the_lines_with_its_error() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::InvalidData.into())
            }
        }
        let mut batches = read_ahead((&b"one\n"[..]).chain(Broken), 9);
        assert_eq!(batches.blocking_recv().unwrap().unwrap(), [event("one")]);
        assert!(batches.blocking_recv().unwrap().is_err());
        assert!(batches.blocking_recv().is_none());
    }
}
