//! How events travel through the socket, both ways; integers big-endian.
//!
//! ```text
//! published   length 4 | event
//! delivered   length 4 | name length 1 | name | entity 32 | sequence 8 | received 8 | event
//! kept        length 4 | 1 1 | name length 1 | name | origin 8 | offset 8 | time 8 | event
//! gap         length 4 | 2 1 | which kept events are not given, and why
//! opened      length 4 | 3 1 | name length 1 | name | log 16 | node 8
//! place       length 4 | 4 1 | name length 1 | name | next 8 | end 8
//! ended       length 4 | 0 1 | why the node ended the subscription, or the replay
//! ```
//! `length` counts what follows it; `received` and `time` are Unix time in nanoseconds. A replay has the
//! frames `opened`, `kept`, `gap` and `ended`, a subscription the others. `opened` says whose log the events of a
//! channel are from then on. Only who asks for places gets `place`, at the begin and behind each part of a log: events
//! below `next` were given, or a gap stands for them, and the log ended at `end` when it was found. Nothing of a part
//! follows a gap. Nodes give each other events of logs as `kept` and `gap`.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use thiserror::Error;
use virga_ebpf::header::{NodeId, OriginHash};
use virga_state::{format::LogId, limits::EVENT_BYTES_MAX};
use virga_transport::{ChannelName, limits::MESSAGE_BYTES_MAX};

/// Bytes of a length.
pub const LENGTH_BYTES: usize = 4;
/// Bytes of the largest frame, its length not counted.
pub const FRAME_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Bytes of a delivery beside its name and event.
const DELIVERED_BYTES: usize = 1 + 32 + 8 + 8;

/// Bytes of a kept event beside its name and payload.
const KEPT_BYTES: usize = 1 + 1 + 8 + 8 + 8;
/// Kinds of frames; what begins with another byte and is no replay's is a delivery.
const ENDED: u8 = 0;
const KEPT: u8 = 1;
const GAP: u8 = 2;
const OPENED: u8 = 3;
const PLACE: u8 = 4;

const _: () = assert!(MESSAGE_BYTES_MAX + DELIVERED_BYTES + 255 <= FRAME_BYTES_MAX);
const _: () = assert!(EVENT_BYTES_MAX + KEPT_BYTES + 255 <= FRAME_BYTES_MAX);

/// Why bytes are not frames; the sender is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Longer than any frame may be.
    #[error("a frame of {bytes} bytes is announced; at most {FRAME_BYTES_MAX} are allowed")]
    TooLong {
        /// How long it says it is.
        bytes: usize,
    },
    /// The stream ended within a frame.
    #[error("the stream ends within a frame, when {bytes} bytes of it were there")]
    Cut {
        /// What was there of it.
        bytes: usize,
    },
    /// A delivery that is too short or has no valid name.
    #[error("the frame is neither a delivery nor a kept event")]
    Delivery,
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: BytesMut,
    /// Of a frame that is skipped: what was thrown away, and what is still to come.
    skipped_bytes: usize,
    skip_bytes: usize,
}

impl Frames {
    /// Takes in what arrived.
    pub fn extend(&mut self, bytes: &[u8]) {
        let skip = self.skip_bytes.min(bytes.len());
        self.skip_bytes -= skip;
        self.skipped_bytes += skip;
        self.buffer.extend_from_slice(&bytes[skip..]);
    }

    /// The next whole frame, without its length.
    ///
    /// # Errors
    /// [`FrameError::TooLong`]: the stream can be read on after [`Frames::skip`].
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(length) = self.buffer.first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let bytes = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if bytes > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong { bytes });
        }
        if self.buffer.len() < LENGTH_BYTES + bytes {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_BYTES);
        Ok(Some(self.buffer.split_to(bytes).freeze()))
    }

    /// Throws the next frame away, also what is still to come of it.
    pub fn skip(&mut self) {
        let Some(length) = self.buffer.first_chunk::<LENGTH_BYTES>() else {
            return;
        };
        let bytes = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let all = bytes.saturating_add(LENGTH_BYTES);
        self.skipped_bytes = all.min(self.buffer.len());
        self.skip_bytes = all - self.skipped_bytes;
        self.buffer.advance(self.skipped_bytes);
    }

    /// Checks that the stream ended between two frames.
    ///
    /// # Errors
    /// [`FrameError::Cut`].
    pub fn end(&self) -> Result<(), FrameError> {
        match (self.buffer.len(), self.skip_bytes) {
            (0, 0) => Ok(()),
            (0, _) => Err(FrameError::Cut {
                bytes: self.skipped_bytes,
            }),
            (bytes, _) => Err(FrameError::Cut { bytes }),
        }
    }
}

/// Appends an event as it is published. What a length cannot say is cut: no channel carries nearly as
/// much, and so it is refused like any other that is too large.
pub fn write_event(out: &mut BytesMut, event: &[u8]) {
    let length = u32::try_from(event.len()).unwrap_or(u32::MAX);
    out.put_u32(length);
    let bytes = usize::try_from(length).unwrap_or(usize::MAX);
    out.extend_from_slice(&event[..bytes.min(event.len())]);
}

/// An event as a subscriber outside the daemon gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The channel's full name.
    pub channel: ChannelName,
    /// The proven ed25519 public key of the entity that published it.
    pub entity: [u8; 32],
    /// Counts the events of one stream as they arrive, from 1; a gap is what the node had no room for. Starts anew with each
    /// session, and within one with each stream: a lower number than before is no old event. On an ordered or signed channel
    /// none comes again while the subscription lasts. A node's own events count on over all sessions. What lasts is a
    /// log's [offset](KeptEvent::offset).
    pub sequence: u64,
    /// Unix time in nanoseconds at which the node got it.
    pub received_unix_ns: u64,
    /// What was published.
    pub payload: Bytes,
}

impl Delivered {
    /// Appends it as a frame.
    pub fn write(&self, out: &mut BytesMut) {
        let name = self.channel.as_str().as_bytes();
        let bytes = DELIVERED_BYTES + name.len() + self.payload.len();
        out.reserve(LENGTH_BYTES + bytes);
        out.put_u32(u32::try_from(bytes).unwrap_or(u32::MAX));
        out.put_u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(name);
        out.extend_from_slice(&self.entity);
        out.put_u64(self.sequence);
        out.put_u64(self.received_unix_ns);
        out.extend_from_slice(&self.payload);
    }

    /// Reads a frame, without its length.
    ///
    /// # Errors
    /// [`FrameError::Delivery`].
    pub fn parse(mut frame: Bytes) -> Result<Self, FrameError> {
        let short = |_| FrameError::Delivery;
        let name_bytes = usize::from(frame.try_get_u8().map_err(short)?);
        if frame.len() < name_bytes {
            return Err(FrameError::Delivery);
        }
        let name = frame.split_to(name_bytes);
        let name = std::str::from_utf8(&name).map_err(|_| FrameError::Delivery)?;
        let channel = ChannelName::parse(name).map_err(|_| FrameError::Delivery)?;
        let mut entity = [0; 32];
        frame.try_copy_to_slice(&mut entity).map_err(short)?;
        Ok(Self {
            channel,
            entity,
            sequence: frame.try_get_u64().map_err(short)?,
            received_unix_ns: frame.try_get_u64().map_err(short)?,
            payload: frame,
        })
    }
}

/// An event that a log gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptEvent {
    /// The channel's full name.
    pub channel: ChannelName,
    /// The keyed hash of the entity that published it.
    pub origin: OriginHash,
    /// Its place in the log.
    pub offset: u64,
    /// Unix time in nanoseconds at which the log got it.
    pub time_unix_ns: u64,
    /// What was published.
    pub payload: Bytes,
}

impl KeptEvent {
    /// Appends an event as a frame.
    pub(crate) fn write(out: &mut BytesMut, channel: &ChannelName, event: &virga_state::Event<'_>) {
        let name = channel.as_str().as_bytes();
        let bytes = KEPT_BYTES + name.len() + event.payload.len();
        out.reserve(LENGTH_BYTES + bytes);
        out.put_u32(u32::try_from(bytes).unwrap_or(u32::MAX));
        out.put_u8(KEPT);
        out.put_u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(name);
        out.put_u64(event.link.entity.0);
        out.put_u64(event.offset);
        out.put_u64(event.time_unix_ns);
        out.extend_from_slice(event.payload);
    }

    /// Reads a frame, without its length and kind.
    fn parse(mut frame: Bytes) -> Option<Self> {
        let name_bytes = usize::from(frame.try_get_u8().ok()?);
        if frame.len() < name_bytes {
            return None;
        }
        let name = frame.split_to(name_bytes);
        let channel = ChannelName::parse(std::str::from_utf8(&name).ok()?).ok()?;
        Some(Self {
            channel,
            origin: OriginHash(frame.try_get_u64().ok()?),
            offset: frame.try_get_u64().ok()?,
            time_unix_ns: frame.try_get_u64().ok()?,
            payload: frame,
        })
    }
}

/// Which log a channel's events come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOpened {
    /// The channel's full name.
    pub channel: ChannelName,
    /// The log's id: another log of the same channel has another.
    pub log: LogId,
    /// The node that it is read at.
    pub node: NodeId,
}

impl LogOpened {
    /// Appends it as a frame.
    pub(crate) fn write(&self, out: &mut BytesMut) {
        let name = self.channel.as_str().as_bytes();
        let bytes = 1 + 1 + name.len() + 16 + 8;
        out.put_u32(u32::try_from(bytes).unwrap_or(u32::MAX));
        out.put_u8(OPENED);
        out.put_u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(name);
        out.extend_from_slice(&self.log);
        out.put_u64(self.node.0);
    }

    /// Reads a frame, without its length and kind.
    fn parse(mut frame: Bytes) -> Option<Self> {
        let name_bytes = usize::from(frame.try_get_u8().ok()?);
        if frame.len() != name_bytes + 16 + 8 {
            return None;
        }
        let name = frame.split_to(name_bytes);
        let channel = ChannelName::parse(std::str::from_utf8(&name).ok()?).ok()?;
        let mut log = LogId::default();
        frame.try_copy_to_slice(&mut log).ok()?;
        Some(Self {
            channel,
            log,
            node: NodeId(frame.try_get_u64().ok()?),
        })
    }
}

/// How far a log was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) channel: ChannelName,
    /// Where it goes on.
    pub(crate) next: u64,
    /// Where the log ended when it was found.
    pub(crate) end: u64,
}

impl Place {
    /// Appends it as a frame.
    pub(crate) fn write(&self, out: &mut BytesMut) {
        let name = self.channel.as_str().as_bytes();
        let bytes = 1 + 1 + name.len() + 8 + 8;
        out.put_u32(u32::try_from(bytes).unwrap_or(u32::MAX));
        out.put_u8(PLACE);
        out.put_u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(name);
        out.put_u64(self.next);
        out.put_u64(self.end);
    }

    /// Reads a frame, without its length and kind.
    fn parse(mut frame: Bytes) -> Option<Self> {
        let name_bytes = usize::from(frame.try_get_u8().ok()?);
        if frame.len() != name_bytes + 8 + 8 {
            return None;
        }
        let name = frame.split_to(name_bytes);
        let channel = ChannelName::parse(std::str::from_utf8(&name).ok()?).ok()?;
        Some(Self {
            channel,
            next: frame.try_get_u64().ok()?,
            end: frame.try_get_u64().ok()?,
        })
    }
}

/// A frame of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReplayFrame {
    Opened(LogOpened),
    Kept(KeptEvent),
    Gap(String),
    Place(Place),
    Ended(String),
}

impl ReplayFrame {
    /// Reads a frame, without its length.
    ///
    /// # Errors
    /// [`FrameError::Delivery`].
    pub(crate) fn parse(mut frame: Bytes) -> Result<Self, FrameError> {
        let words = |frame: &[u8]| String::from_utf8_lossy(frame).into_owned();
        match frame.try_get_u8() {
            Ok(ENDED) => Ok(Self::Ended(words(&frame))),
            Ok(GAP) => Ok(Self::Gap(words(&frame))),
            Ok(OPENED) => {
                let opened = LogOpened::parse(frame).ok_or(FrameError::Delivery)?;
                Ok(Self::Opened(opened))
            }
            Ok(PLACE) => {
                let place = Place::parse(frame).ok_or(FrameError::Delivery)?;
                Ok(Self::Place(place))
            }
            Ok(KEPT) => {
                let event = KeptEvent::parse(frame).ok_or(FrameError::Delivery)?;
                Ok(Self::Kept(event))
            }
            _ => Err(FrameError::Delivery),
        }
    }
}

/// Appends what is said in place of kept events.
pub(crate) fn write_gap(out: &mut BytesMut, why: &str) {
    write_words(out, GAP, why);
}

fn write_words(out: &mut BytesMut, kind: u8, words: &str) {
    out.put_u32(u32::try_from(1 + words.len()).unwrap_or(u32::MAX));
    out.put_u8(kind);
    out.extend_from_slice(words.as_bytes());
}

/// Appends the last frame of a subscription that the node ends.
pub fn write_end(out: &mut BytesMut, why: &str) {
    write_words(out, ENDED, why);
}

/// Why the node ended the subscription, when that is what a frame says.
#[must_use]
pub fn parse_end(frame: &[u8]) -> Option<String> {
    let why = frame.strip_prefix(&[ENDED])?;
    Some(String::from_utf8_lossy(why).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered() -> Delivered {
        Delivered {
            channel: ChannelName::parse("a/b").unwrap(),
            entity: [7; 32],
            sequence: 1,
            received_unix_ns: u64::MAX,
            payload: Bytes::from_static(b"payload"),
        }
    }

    #[test]
    fn a_replays_frames_are_read_as_they_are_written() {
        let channel = ChannelName::parse("a/b").unwrap();
        let link = virga_state::Link {
            entity: OriginHash(9),
            observed: 0,
            parent: 0,
        };
        let event = virga_state::Event {
            offset: 5,
            time_unix_ns: u64::MAX,
            link,
            payload: b"payload",
        };
        let opened = LogOpened {
            channel: channel.clone(),
            log: [7; 16],
            node: NodeId(1),
        };
        let place = Place {
            channel: channel.clone(),
            next: 6,
            end: u64::MAX,
        };
        let mut all = BytesMut::new();
        opened.write(&mut all);
        place.write(&mut all);
        KeptEvent::write(&mut all, &channel, &event);
        write_gap(&mut all, "gap");
        write_end(&mut all, "end");
        let mut frames = Frames::default();
        frames.extend(&all);
        let mut next = || frames.next_frame().unwrap().unwrap();
        let first = next();
        assert_eq!(
            ReplayFrame::parse(first.clone()),
            Ok(ReplayFrame::Opened(opened))
        );
        for cut in 0..first.len() {
            let cut = ReplayFrame::parse(first.slice(..cut));
            assert!(!matches!(cut, Ok(ReplayFrame::Opened(_))));
        }
        let second = next();
        let read = ReplayFrame::parse(second.clone());
        assert_eq!(read, Ok(ReplayFrame::Place(place)));
        for cut in 0..second.len() {
            let cut = ReplayFrame::parse(second.slice(..cut));
            assert_eq!(cut, Err(FrameError::Delivery));
        }
        let kept = next();
        let read = KeptEvent {
            channel,
            origin: OriginHash(9),
            offset: 5,
            time_unix_ns: u64::MAX,
            payload: Bytes::from_static(b"payload"),
        };
        assert_eq!(
            ReplayFrame::parse(kept.clone()),
            Ok(ReplayFrame::Kept(read))
        );
        assert_eq!(
            ReplayFrame::parse(next()),
            Ok(ReplayFrame::Gap("gap".into()))
        );
        assert_eq!(
            ReplayFrame::parse(next()),
            Ok(ReplayFrame::Ended("end".into()))
        );
        for cut in 0..kept.len() - b"payload".len() {
            let cut = ReplayFrame::parse(kept.slice(..cut));
            assert_eq!(cut, Err(FrameError::Delivery));
        }
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let mut all = BytesMut::new();
        for event in [&b"one"[..], b"", b"three"] {
            write_event(&mut all, event);
        }
        for cut in 1..all.len() {
            let mut frames = Frames::default();
            let mut out = Vec::new();
            for piece in all.chunks(cut) {
                frames.extend(piece);
                while let Some(frame) = frames.next_frame().unwrap() {
                    out.push(frame);
                }
            }
            assert_eq!(out, [&b"one"[..], b"", b"three"]);
            assert_eq!(frames.end(), Ok(()));
        }
    }

    #[test]
    fn a_cut_and_an_endless_frame_are_errors() {
        let mut frames = Frames::default();
        frames.extend(&[0, 0, 0, 2, 1]);
        assert_eq!(frames.next_frame(), Ok(None));
        assert_eq!(frames.end(), Err(FrameError::Cut { bytes: 5 }));
        let mut frames = Frames::default();
        frames.extend(&u32::MAX.to_be_bytes());
        assert!(matches!(
            frames.next_frame(),
            Err(FrameError::TooLong { .. })
        ));
    }

    #[test]
    fn an_end_is_no_delivery_and_a_delivery_no_end() {
        let mut out = BytesMut::new();
        write_end(&mut out, "too slow");
        delivered().write(&mut out);
        let mut frames = Frames::default();
        frames.extend(&out);
        let end = frames.next_frame().unwrap().unwrap();
        assert_eq!(parse_end(&end).as_deref(), Some("too slow"));
        assert_eq!(Delivered::parse(end), Err(FrameError::Delivery));
        assert_eq!(parse_end(&frames.next_frame().unwrap().unwrap()), None);
        assert_eq!(parse_end(b""), None);
    }

    #[test]
    fn a_frame_that_is_too_long_is_skipped_however_it_is_cut() {
        let mut all = BytesMut::new();
        write_event(&mut all, b"before");
        write_event(&mut all, &vec![7; FRAME_BYTES_MAX + 1]);
        write_event(&mut all, b"after");
        for cut in [1_000, 65_536, all.len()] {
            let mut frames = Frames::default();
            let (mut out, mut skipped) = (Vec::new(), 0);
            for piece in all.chunks(cut) {
                frames.extend(piece);
                loop {
                    match frames.next_frame() {
                        Ok(Some(frame)) => out.push(frame),
                        Ok(None) => break,
                        Err(_) => {
                            frames.skip();
                            skipped += 1;
                        }
                    }
                }
                assert!(frames.buffer.len() <= cut + LENGTH_BYTES);
            }
            assert_eq!((out, skipped), (vec!["before".into(), "after".into()], 1));
            assert_eq!(frames.end(), Ok(()));
        }
        let mut frames = Frames::default();
        frames.extend(&u32::MAX.to_be_bytes());
        frames.skip();
        frames.extend(b"six");
        assert_eq!(frames.end(), Err(FrameError::Cut { bytes: 7 }));
    }

    #[test]
    fn a_delivery_is_read_as_it_was_written_and_nothing_shorter_than_its_head() {
        let mut out = BytesMut::new();
        delivered().write(&mut out);
        let mut frames = Frames::default();
        frames.extend(&out);
        let frame = frames.next_frame().unwrap().unwrap();
        assert_eq!(Delivered::parse(frame.clone()), Ok(delivered()));
        for cut in 0..DELIVERED_BYTES + 3 {
            assert_eq!(
                Delivered::parse(frame.slice(..cut)),
                Err(FrameError::Delivery)
            );
        }
    }
}
