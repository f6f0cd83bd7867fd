//! Frames: what a sealed payload is made of. Parsing is total: any bytes give frames or an error.
//!
//! Numbers are big-endian; `v` is a variable-length number (RFC 9000, section 16), `n*` a length
//! and that many bytes.
//!
//! | type | frame | fields | where |
//! |---|---|---|---|
//! | 0 | padding | | anywhere |
//! | 1 | ping | | control |
//! | 2 | ack | largest `v`, delay in µs `v`, ranges − 1 `v`, length − 1 `v`, then (gap − 1 `v`, length − 1 `v`) each | control |
//! | 3 | proof | entity key 32, signature 64, reset token 16 | control |
//! | 4 | rekey | epoch `v`, X25519 public key 32 | control |
//! | 5 | rekey ack | epoch `v`, X25519 public key 32 | control |
//! | 6 | rekey wanted | | control |
//! | 7 | close | | control |
//! | 8 | session credit | bytes in all `v` | control |
//! | 9 | stream credit | stream `v`, bytes in all `v` | control |
//! | 10 | refuse | stream `v` | control |
//! | 11 | reset | stream `v`, final offset `v` | control |
//! | 12 | path challenge | token 8 | control |
//! | 13 | path response | token 8 | control |
//! | 14 | link | flags 1 (1: hears, 2: asks), interval in µs `v`, number `v` | control |
//! | 15 | kem | part 1 (0 or 1), bytes `2*` | control |
//! | 16 | open | salt 4, mode 1 (0 unreliable, 1 ordered, 2 unordered, 3 signed), name `1*` | data |
//! | 17 | stream | offset `v`, bytes `2*` | data, and the control stream |
//! | 18 | event | bytes `2*` | data |
//! | 19 | fin | final offset `v` | data |
//! | 20 | part | offset `v`, back `v`, bytes `2*` | data |
//! | 21 | events | size `v`, count `v`, count × size bytes | data |
//! | 22 | fragment | message `v`, total `v`, offset `v`, bytes `2*` | data |

mod ack;
mod coding;
mod kem;
mod link;

pub use ack::Ack;
pub(crate) use ack::write_ack;
pub(crate) use coding::{VARINT_MAX, varint_bytes};
pub use link::LinkFrame;

use crate::{event::Mode, limits::MESSAGE_BYTES_MAX, name};
use ack::read_ack;
use coding::{Reader, write_length, write_numbers, write_varint};
use kem::{read_kem, write_kem};
use thiserror::Error;
use virga_ebpf::header::StreamId;

/// One byte that means nothing.
pub(crate) const PADDING: u8 = 0;
const PING: u8 = 1;
const ACK: u8 = 2;
const PROOF: u8 = 3;
const REKEY: u8 = 4;
const REKEY_ACK: u8 = 5;
const REKEY_WANTED: u8 = 6;
const CLOSE: u8 = 7;
const SESSION_CREDIT: u8 = 8;
const STREAM_CREDIT: u8 = 9;
const REFUSE: u8 = 10;
const RESET: u8 = 11;
const PATH_CHALLENGE: u8 = 12;
const PATH_RESPONSE: u8 = 13;
const LINK: u8 = 14;
const KEM: u8 = 15;
const OPEN: u8 = 16;
const STREAM: u8 = 17;
const EVENT: u8 = 18;
const FIN: u8 = 19;
const PART: u8 = 20;
const EVENTS: u8 = 21;
const FRAGMENT: u8 = 22;

/// Why a payload is not a row of frames: the peer's fault, and nothing of it was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// A frame reaches past the payload's end.
    #[error("the frame at byte {at} is cut off")]
    Truncated {
        /// Where it starts.
        at: usize,
    },
    /// A type that is not in the table.
    #[error("the frame at byte {at} has the unknown type {kind}")]
    Unknown {
        /// Where it starts.
        at: usize,
        /// Its type.
        kind: u8,
    },
    /// A field with a value that it may not have.
    #[error("the frame at byte {at} has an impossible {field}")]
    Field {
        /// Where it starts.
        at: usize,
        /// Which field.
        field: &'static str,
    },
}

/// A proof of an entity, on the control stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The entity's ed25519 public key.
    pub entity: [u8; 32],
    /// Its signature over the handshake.
    pub signature: [u8; 64],
    /// What this node will answer when it has lost the session.
    pub reset_token: [u8; 16],
}

/// One frame, borrowing the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Asks for an acknowledgement.
    Ping,
    /// Acknowledges sequences.
    Ack(Ack<'a>),
    /// Proves the sender's entity.
    Proof(Proof),
    /// Proposes the next key epoch.
    Rekey {
        /// Its number.
        epoch: u64,
        /// The sender's fresh X25519 public key.
        public: [u8; 32],
    },
    /// Accepts the next key epoch.
    RekeyAck {
        /// Its number.
        epoch: u64,
        /// The sender's fresh X25519 public key.
        public: [u8; 32],
    },
    /// Asks the other side to propose new keys.
    RekeyWanted,
    /// Asks whether the peer is where this is sent to.
    PathChallenge {
        /// Nobody can guess it.
        token: [u8; 8],
    },
    /// Answers a challenge, from there.
    PathResponse {
        /// The challenge's.
        token: [u8; 8],
    },
    /// The keepalive of the link between neighbours.
    Link(LinkFrame),
    /// Half of an ML-KEM key, or of a ciphertext and its confirmation.
    Kem {
        /// Which half.
        part: u8,
        /// The half.
        bytes: &'a [u8],
    },
    /// Ends the session.
    Close,
    /// Grants bytes over all data streams, counted from the session's start.
    SessionCredit {
        /// In all.
        bytes: u64,
    },
    /// Grants bytes of one stream, counted from its start.
    StreamCredit {
        /// Which stream.
        stream: StreamId,
        /// In all.
        bytes: u64,
    },
    /// The receiver wants no more of a stream.
    Refuse {
        /// Which stream.
        stream: StreamId,
    },
    /// The sender gives a stream up.
    Reset {
        /// Which stream.
        stream: StreamId,
        /// How much of the session's credit it has used.
        offset: u64,
    },
    /// Names the stream's channel.
    Open {
        /// The channel's salt.
        salt: u32,
        /// What it promises of its messages.
        mode: Mode,
        /// The channel's full name, valid.
        name: &'a str,
    },
    /// Bytes of an ordered stream, or of the control stream.
    Stream {
        /// Where they stand in it.
        offset: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// Bytes of an unordered stream.
    Part {
        /// Where they stand in it.
        offset: u64,
        /// How far before that the message starts that the first of them belongs to.
        back: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// One unreliable message.
    Event {
        /// The message.
        bytes: &'a [u8],
    },
    /// Unreliable messages of one size, which is not 0.
    Events {
        /// Bytes of each.
        size: usize,
        /// All of them, one after the other.
        bytes: &'a [u8],
    },
    /// A piece of an unreliable message that no packet takes whole.
    Fragment {
        /// The message's number, counted over the stream.
        message: u64,
        /// Bytes of the message, at most [`MESSAGE_BYTES_MAX`].
        total: u64,
        /// Where this piece stands in it; it ends within it.
        offset: u64,
        /// The piece, not empty.
        bytes: &'a [u8],
    },
    /// A stream's end.
    Fin {
        /// Bytes in all.
        offset: u64,
    },
}

impl Frame<'_> {
    /// Appends the frame. Acknowledgements are written by [`write_ack`].
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Ping => out.push(PING),
            Self::Ack(ack) => {
                out.push(ACK);
                write_varint(out, ack.largest);
                write_varint(out, ack.delay_us);
                write_varint(out, ack.ranges - 1);
                out.extend_from_slice(ack.encoded);
            }
            Self::Proof(ref proof) => {
                out.push(PROOF);
                out.extend_from_slice(&proof.entity);
                out.extend_from_slice(&proof.signature);
                out.extend_from_slice(&proof.reset_token);
            }
            Self::Rekey { epoch, ref public } => write_key(out, REKEY, epoch, public),
            Self::RekeyAck { epoch, ref public } => write_key(out, REKEY_ACK, epoch, public),
            Self::RekeyWanted => out.push(REKEY_WANTED),
            Self::PathChallenge { ref token } => write_token(out, PATH_CHALLENGE, token),
            Self::PathResponse { ref token } => write_token(out, PATH_RESPONSE, token),
            Self::Link(link) => {
                out.push(LINK);
                link.write(out);
            }
            Self::Kem { part, bytes } => write_kem(out, part, bytes),
            Self::Close => out.push(CLOSE),
            Self::SessionCredit { bytes } => write_numbers(out, SESSION_CREDIT, &[bytes]),
            Self::StreamCredit { stream, bytes } => {
                write_numbers(out, STREAM_CREDIT, &[stream.0.into(), bytes]);
            }
            Self::Refuse { stream } => write_numbers(out, REFUSE, &[stream.0.into()]),
            Self::Reset { stream, offset } => {
                write_numbers(out, RESET, &[stream.0.into(), offset]);
            }
            Self::Open { salt, mode, name } => {
                out.push(OPEN);
                out.extend_from_slice(&salt.to_be_bytes());
                out.push(mode as u8);
                out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
                out.extend_from_slice(name.as_bytes());
            }
            Self::Stream { offset, bytes } => {
                write_numbers(out, STREAM, &[offset]);
                write_length(out, bytes.len());
                out.extend_from_slice(bytes);
            }
            Self::Part {
                offset,
                back,
                bytes,
            } => {
                write_part_start(out, offset, back, bytes.len());
                out.extend_from_slice(bytes);
            }
            Self::Event { bytes } => {
                write_event_start(out, bytes.len());
                out.extend_from_slice(bytes);
            }
            Self::Events { size, bytes } => {
                write_events_start(out, size, bytes.len() / size.max(1));
                out.extend_from_slice(bytes);
            }
            Self::Fragment {
                message,
                total,
                offset,
                bytes,
            } => {
                write_fragment_start(out, message, total, offset, bytes.len());
                out.extend_from_slice(bytes);
            }
            Self::Fin { offset } => write_numbers(out, FIN, &[offset]),
        }
    }

    /// Whether only control packets (stream 0, channel 0) may carry it.
    pub(crate) const fn is_control(&self) -> bool {
        !self.is_data() && !matches!(self, Self::Stream { .. })
    }

    /// Whether only data packets may carry it.
    pub(crate) const fn is_data(&self) -> bool {
        matches!(
            self,
            Self::Open { .. }
                | Self::Part { .. }
                | Self::Event { .. }
                | Self::Events { .. }
                | Self::Fragment { .. }
                | Self::Fin { .. }
        )
    }

    /// Unreliable messages that end in it.
    pub(crate) fn events(&self) -> usize {
        match self {
            Self::Event { .. } => 1,
            Self::Events { size, bytes } => bytes.len() / size,
            Self::Fragment {
                total,
                offset,
                bytes,
                ..
            } => usize::from(offset + bytes.len() as u64 == *total),
            _ => 0,
        }
    }
}

/// Appends the start of a stream frame, whose `length` bytes the caller appends.
pub(crate) fn write_stream_start(out: &mut Vec<u8>, offset: u64, length: usize) {
    write_numbers(out, STREAM, &[offset]);
    write_length(out, length);
}

/// Appends the start of a part frame, whose `length` bytes the caller appends.
pub(crate) fn write_part_start(out: &mut Vec<u8>, offset: u64, back: u64, length: usize) {
    write_numbers(out, PART, &[offset, back]);
    write_length(out, length);
}

/// Appends the start of an event frame, whose `length` bytes the caller appends.
pub(crate) fn write_event_start(out: &mut Vec<u8>, length: usize) {
    out.push(EVENT);
    write_length(out, length);
}

/// Bytes that an event frame needs beside its event.
pub(crate) const EVENT_OVERHEAD: usize = 1 + 2;

/// Appends the start of an events frame, whose `count` events of `size` bytes the caller appends.
pub(crate) fn write_events_start(out: &mut Vec<u8>, size: usize, count: usize) {
    write_numbers(out, EVENTS, &[size as u64, count as u64]);
}

/// How many events of `size` bytes, which is not 0, one events frame takes of `room` bytes.
pub(crate) const fn events_in(room: usize, size: usize) -> usize {
    let beside_count = 1 + varint_bytes(size as u64);
    let most = room.saturating_sub(beside_count) / size;
    room.saturating_sub(beside_count + varint_bytes(most as u64)) / size
}

/// Appends the start of a fragment frame, whose `length` bytes the caller appends.
pub(crate) fn write_fragment_start(
    out: &mut Vec<u8>,
    message: u64,
    total: u64,
    offset: u64,
    length: usize,
) {
    write_numbers(out, FRAGMENT, &[message, total, offset]);
    write_length(out, length);
}

/// Bytes that a fragment frame needs beside its data.
pub(crate) const fn fragment_overhead(message: u64, total: u64, offset: u64) -> usize {
    1 + varint_bytes(message) + varint_bytes(total) + varint_bytes(offset) + 2
}

/// Bytes that a part frame needs beside its data.
pub(crate) const fn part_overhead(offset: u64, back: u64) -> usize {
    stream_overhead(offset) + varint_bytes(back)
}

/// Bytes that a stream frame at `offset` needs beside its data.
pub(crate) const fn stream_overhead(offset: u64) -> usize {
    1 + varint_bytes(offset) + 2
}

fn write_token(out: &mut Vec<u8>, kind: u8, token: &[u8; 8]) {
    out.push(kind);
    out.extend_from_slice(token);
}

fn write_key(out: &mut Vec<u8>, kind: u8, epoch: u64, public: &[u8; 32]) {
    write_numbers(out, kind, &[epoch]);
    out.extend_from_slice(public);
}

/// The frames of a payload in order; ends after the first error. Padding is skipped.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    reader: Reader<'a>,
    failed: bool,
}

impl<'a> Frames<'a> {
    /// Reads `payload` from its start.
    #[must_use]
    pub const fn new(payload: &'a [u8]) -> Self {
        Self {
            reader: Reader {
                bytes: payload,
                at: 0,
            },
            failed: false,
        }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        loop {
            let at = self.reader.at;
            let kind = self.reader.byte()?;
            if kind == PADDING {
                continue;
            }
            let frame = match read_body(&mut self.reader, kind, at) {
                Ok(Some(frame)) => Ok(frame),
                Ok(None) => Err(FrameError::Truncated { at }),
                Err(error) => Err(error),
            };
            self.failed = frame.is_err();
            return Some(frame);
        }
    }
}

/// The frame after its type byte; `None` when it is cut off.
fn read_body<'a>(r: &mut Reader<'a>, kind: u8, at: usize) -> Result<Option<Frame<'a>>, FrameError> {
    let impossible = |field| FrameError::Field { at, field };
    match kind {
        ACK => return read_ack(r, at),
        OPEN => return read_open(r, at),
        KEM => return read_kem(r, at),
        _ => {}
    }
    let mut frame = || -> Option<Result<Frame<'a>, FrameError>> {
        let frame = match kind {
            PING => Frame::Ping,
            PROOF => Frame::Proof(Proof {
                entity: r.array()?,
                signature: r.array()?,
                reset_token: r.array()?,
            }),
            REKEY => Frame::Rekey {
                epoch: r.varint()?,
                public: r.array()?,
            },
            REKEY_ACK => Frame::RekeyAck {
                epoch: r.varint()?,
                public: r.array()?,
            },
            REKEY_WANTED => Frame::RekeyWanted,
            PATH_CHALLENGE => Frame::PathChallenge { token: r.array()? },
            PATH_RESPONSE => Frame::PathResponse { token: r.array()? },
            LINK => match LinkFrame::read(r)? {
                Some(link) => Frame::Link(link),
                None => return Some(Err(impossible("flags"))),
            },
            CLOSE => Frame::Close,
            SESSION_CREDIT => Frame::SessionCredit { bytes: r.varint()? },
            STREAM_CREDIT | REFUSE | RESET => {
                let Ok(stream) = u32::try_from(r.varint()?) else {
                    return Some(Err(impossible("stream")));
                };
                let stream = StreamId(stream);
                match kind {
                    STREAM_CREDIT => Frame::StreamCredit {
                        stream,
                        bytes: r.varint()?,
                    },
                    REFUSE => Frame::Refuse { stream },
                    _ => Frame::Reset {
                        stream,
                        offset: r.varint()?,
                    },
                }
            }
            STREAM => {
                let offset = r.varint()?;
                let bytes = r.sized()?;
                if offset + bytes.len() as u64 > VARINT_MAX {
                    return Some(Err(impossible("offset")));
                }
                Frame::Stream { offset, bytes }
            }
            PART => {
                let (offset, back) = (r.varint()?, r.varint()?);
                let bytes = r.sized()?;
                if offset + bytes.len() as u64 > VARINT_MAX || back > offset {
                    return Some(Err(impossible("offset")));
                }
                Frame::Part {
                    offset,
                    back,
                    bytes,
                }
            }
            EVENT => Frame::Event { bytes: r.sized()? },
            EVENTS => {
                let (size, count) = (r.varint()?, r.varint()?);
                let total = size.checked_mul(count).map(usize::try_from);
                let (Ok(size), Some(Ok(total @ 1..))) = (usize::try_from(size), total) else {
                    return Some(Err(impossible("size")));
                };
                let bytes = r.take(total)?;
                Frame::Events { size, bytes }
            }
            FRAGMENT => {
                let (message, total, offset) = (r.varint()?, r.varint()?, r.varint()?);
                let bytes = r.sized()?;
                let end = offset + bytes.len() as u64;
                if total > MESSAGE_BYTES_MAX as u64 || end > total || bytes.is_empty() {
                    return Some(Err(impossible("total")));
                }
                Frame::Fragment {
                    message,
                    total,
                    offset,
                    bytes,
                }
            }
            FIN => Frame::Fin {
                offset: r.varint()?,
            },
            _ => return Some(Err(FrameError::Unknown { at, kind })),
        };
        Some(Ok(frame))
    };
    frame().transpose()
}

fn read_open<'a>(r: &mut Reader<'a>, at: usize) -> Result<Option<Frame<'a>>, FrameError> {
    let mut fields = || Some((r.array()?, r.byte()?, r.short()?));
    let Some((salt, mode, name)) = fields() else {
        return Ok(None);
    };
    let name = core::str::from_utf8(name)
        .ok()
        .filter(|name| name::check(name).is_ok());
    let Some(name) = name else {
        return Err(FrameError::Field {
            at,
            field: "channel name",
        });
    };
    let mode = Mode::ALL.get(usize::from(mode)).copied();
    let mode = mode.ok_or(FrameError::Field { at, field: "mode" })?;
    Ok(Some(Frame::Open {
        salt: u32::from_be_bytes(salt),
        mode,
        name,
    }))
}

#[cfg(test)]
#[path = "tests/frame.rs"]
mod tests;
