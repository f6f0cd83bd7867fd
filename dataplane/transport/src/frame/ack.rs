//! Acknowledgements: which sequences were opened.

use super::{
    ACK, Frame, FrameError,
    coding::{Reader, write_varint},
};
use crate::limits::ACK_RANGES_MAX;

/// An acknowledgement: the sequences that were opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack<'a> {
    /// Newest sequence opened.
    pub largest: u64,
    /// How long its acknowledgement waited.
    pub delay_us: u64,
    pub(super) ranges: u64,
    pub(super) encoded: &'a [u8],
}

impl Ack<'_> {
    /// The acknowledged sequences as inclusive (first, last), newest first; checked when parsed.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut reader = Reader {
            bytes: self.encoded,
            at: 0,
        };
        let mut last = Some(self.largest);
        (0..self.ranges).map_while(move |_| {
            let end = last?;
            let start = end.checked_sub(reader.varint()?)?;
            last = reader
                .varint()
                .and_then(|gap| start.checked_sub(gap)?.checked_sub(2));
            Some((start, end))
        })
    }
}

/// Appends an acknowledgement of the newest [`ACK_RANGES_MAX`] of `received`: ascending ranges, start and end.
pub(crate) fn write_ack(out: &mut Vec<u8>, received: &[(u64, u64)], delay_us: u64) {
    let Some(&(_, end)) = received.last() else {
        return;
    };
    out.push(ACK);
    write_varint(out, end - 1);
    write_varint(out, delay_us);
    let count = received.len().min(ACK_RANGES_MAX);
    write_varint(out, count as u64 - 1);
    let mut above: Option<u64> = None;
    for &(start, end) in received.iter().rev().take(count) {
        if let Some(above) = above {
            write_varint(out, above - end - 1);
        }
        write_varint(out, end - start - 1);
        above = Some(start);
    }
}

pub(super) fn read_ack<'a>(r: &mut Reader<'a>, at: usize) -> Result<Option<Frame<'a>>, FrameError> {
    let impossible = FrameError::Field { at, field: "range" };
    let (Some(largest), Some(delay_us), Some(more)) = (r.varint(), r.varint(), r.varint()) else {
        return Ok(None);
    };
    if more >= ACK_RANGES_MAX as u64 {
        return Err(impossible);
    }
    let start = r.at;
    let mut last = largest;
    for range in 0..=more {
        let Some(length) = r.varint() else {
            return Ok(None);
        };
        let first = last.checked_sub(length).ok_or(impossible)?;
        if range < more {
            let Some(gap) = r.varint() else {
                return Ok(None);
            };
            last = first
                .checked_sub(gap)
                .and_then(|n| n.checked_sub(2))
                .ok_or(impossible)?;
        }
    }
    let encoded = &r.bytes[start..r.at];
    Ok(Some(Frame::Ack(Ack {
        largest,
        delay_us,
        ranges: more + 1,
        encoded,
    })))
}
