//! Places in a log.

use std::{fmt, str::FromStr};
use thiserror::Error;

/// Where reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// At the first event that is kept.
    Start,
    /// Behind the last event that there is.
    End,
    /// At this event.
    Offset(u64),
    /// Behind this event: where a reader goes on that has dealt with it.
    After(u64),
    /// At the first event that is no older, in nanoseconds since 1970.
    Time(u64),
}

/// A text that is no cursor.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no place in a log: write start, end, an event's offset, after:OFFSET, or time:SECONDS since 1970"
)]
pub struct NoCursor(String);

impl FromStr for Cursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Self, NoCursor> {
        let none = || NoCursor(text.to_owned());
        let number = |text: &str| text.parse().map_err(|_| none());
        match text.split_once(':') {
            None => match text {
                "start" => Ok(Self::Start),
                "end" => Ok(Self::End),
                _ => number(text).map(Self::Offset),
            },
            Some(("after", offset)) => number(offset).map(Self::After),
            Some(("time", seconds)) => parse_seconds(seconds).map(Self::Time).ok_or_else(none),
            Some(_) => Err(none()),
        }
    }
}

/// Seconds with up to nine digits behind a point, as nanoseconds.
fn parse_seconds(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !is_digits(whole) || !is_digits(part) || part.len() > 9 {
        return None;
    }
    let nanoseconds: u64 = format!("{part:0<9}").parse().ok()?;
    let whole: u64 = whole.parse().ok()?;
    whole.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::End => f.write_str("end"),
            Self::Offset(offset) => write!(f, "{offset}"),
            Self::After(offset) => write!(f, "after:{offset}"),
            Self::Time(ns) => write!(f, "time:{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_is_written() {
        for cursor in [
            Cursor::Start,
            Cursor::End,
            Cursor::Offset(7),
            Cursor::After(u64::MAX),
            Cursor::Time(1_700_000_000_000_000_001),
        ] {
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
        assert_eq!("time:2.5".parse(), Ok(Cursor::Time(2_500_000_000)));
        for wrong in [
            "",
            "first",
            "-1",
            "after:",
            "time:",
            "time:1.",
            "time:1.0000000001",
            "x:1",
        ] {
            assert!(wrong.parse::<Cursor>().is_err(), "{wrong}");
        }
    }
}
