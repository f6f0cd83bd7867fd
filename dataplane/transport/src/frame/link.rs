//! The keepalive of the link between neighbours.

use super::coding::{Reader, write_varint};

const HEARS: u8 = 1;
const ASKS: u8 = 2;

/// What neighbours tell each other of the link between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkFrame {
    /// The sender hears the receiver.
    pub hears: bool,
    /// It wants an answer at once.
    pub asks: bool,
    /// It sends this often, in microseconds.
    pub interval_us: u64,
    /// How many it has sent in this session, this one included.
    pub number: u64,
}

impl LinkFrame {
    /// Appends all but the type.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let hears = if self.hears { HEARS } else { 0 };
        let asks = if self.asks { ASKS } else { 0 };
        out.push(hears | asks);
        write_varint(out, self.interval_us);
        write_varint(out, self.number);
    }

    /// Reads all but the type; none where it is cut off, and within that none where a flag is unknown.
    pub(super) fn read(r: &mut Reader<'_>) -> Option<Option<Self>> {
        let flags = r.byte()?;
        let frame = Self {
            hears: flags & HEARS != 0,
            asks: flags & ASKS != 0,
            interval_us: r.varint()?,
            number: r.varint()?,
        };
        Some((flags & !(HEARS | ASKS) == 0).then_some(frame))
    }
}
