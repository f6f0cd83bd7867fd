//! Frames: encode and decode are inverse, and no bytes can make the parser panic.

use super::*;
use crate::{limits::ACK_RANGES_MAX, ranges::RangeSet};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Owned {
    Fixed(Frame<'static>),
    Ack(Vec<(u64, u64)>, u64),
    Open(u32, Mode, String),
    Stream(u64, Vec<u8>),
    Part(u64, u64, Vec<u8>),
    Event(Vec<u8>),
    Events(usize, Vec<u8>),
    Fragment(u64, u64, u64, Vec<u8>),
    Kem(u8, Vec<u8>),
}

impl Owned {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Fixed(frame) => frame.write(out),
            Self::Ack(ranges, delay) => write_ack(out, ranges, *delay),
            Self::Open(salt, mode, name) => {
                Frame::Open {
                    salt: *salt,
                    mode: *mode,
                    name,
                }
                .write(out);
            }
            Self::Stream(offset, bytes) => Frame::Stream {
                offset: *offset,
                bytes,
            }
            .write(out),
            Self::Part(offset, back, bytes) => Frame::Part {
                offset: *offset,
                back: *back,
                bytes,
            }
            .write(out),
            Self::Event(bytes) => Frame::Event { bytes }.write(out),
            Self::Kem(part, bytes) => Frame::Kem { part: *part, bytes }.write(out),
            Self::Events(size, bytes) => Frame::Events { size: *size, bytes }.write(out),
            Self::Fragment(message, total, offset, bytes) => Frame::Fragment {
                message: *message,
                total: *total,
                offset: *offset,
                bytes,
            }
            .write(out),
        }
    }

    fn same(&self, frame: &Frame<'_>) -> bool {
        match (self, frame) {
            (Self::Fixed(a), b) => a == b,
            (Self::Ack(ranges, delay), Frame::Ack(ack)) => {
                let sent: Vec<_> = ranges.iter().rev().map(|&(s, e)| (s, e - 1)).collect();
                let read: Vec<_> = ack.ranges().collect();
                ack.delay_us == *delay && sent == read
            }
            (Self::Open(a, b, c), Frame::Open { salt, mode, name }) => {
                (a, b, c.as_str()) == (salt, mode, *name)
            }
            (Self::Stream(a, b), Frame::Stream { offset, bytes }) => a == offset && b == bytes,
            (
                Self::Part(a, b, c),
                Frame::Part {
                    offset,
                    back,
                    bytes,
                },
            ) => (a, b) == (offset, back) && c == bytes,
            (Self::Event(a), Frame::Event { bytes }) => a == bytes,
            (Self::Kem(a, b), Frame::Kem { part, bytes }) => a == part && b == bytes,
            (Self::Events(a, b), Frame::Events { size, bytes }) => a == size && b == bytes,
            (
                Self::Fragment(a, b, c, d),
                Frame::Fragment {
                    message,
                    total,
                    offset,
                    bytes,
                },
            ) => (a, b, c) == (message, total, offset) && d == bytes,
            _ => false,
        }
    }
}

fn number() -> impl Strategy<Value = u64> + Clone {
    prop_oneof![0..64u64, 0..20_000u64, 0..=VARINT_MAX / 2]
}

fn frame() -> impl Strategy<Value = Owned> {
    let stream = any::<u32>().prop_map(StreamId);
    let key = (number(), any::<[u8; 32]>());
    let ranges = prop::collection::vec((0u64..1_000_000, 1u64..50), 1..30).prop_map(|pairs| {
        let mut set = RangeSet::default();
        for (start, length) in pairs {
            set.insert(start, start + length);
        }
        set.iter().collect()
    });
    prop_oneof![
        Just(Owned::Fixed(Frame::Ping)),
        Just(Owned::Fixed(Frame::RekeyWanted)),
        Just(Owned::Fixed(Frame::Close)),
        any::<[u8; 8]>().prop_map(|token| Owned::Fixed(Frame::PathChallenge { token })),
        any::<[u8; 8]>().prop_map(|token| Owned::Fixed(Frame::PathResponse { token })),
        (any::<[bool; 2]>(), 0..=VARINT_MAX, 0..=VARINT_MAX).prop_map(
            |([hears, asks], interval_us, number)| {
                let link = LinkFrame {
                    hears,
                    asks,
                    interval_us,
                    number,
                };
                Owned::Fixed(Frame::Link(link))
            }
        ),
        key.clone()
            .prop_map(|(epoch, public)| Owned::Fixed(Frame::Rekey { epoch, public })),
        key.prop_map(|(epoch, public)| Owned::Fixed(Frame::RekeyAck { epoch, public })),
        number().prop_map(|bytes| Owned::Fixed(Frame::SessionCredit { bytes })),
        (stream.clone(), number())
            .prop_map(|(stream, bytes)| Owned::Fixed(Frame::StreamCredit { stream, bytes })),
        stream
            .clone()
            .prop_map(|stream| Owned::Fixed(Frame::Refuse { stream })),
        (stream, number())
            .prop_map(|(stream, offset)| Owned::Fixed(Frame::Reset { stream, offset })),
        number().prop_map(|offset| Owned::Fixed(Frame::Fin { offset })),
        (any::<[u8; 32]>(), any::<[u8; 32]>(), any::<[u8; 16]>()).prop_map(|(entity, half, t)| {
            let mut signature = [0; 64];
            signature[..32].copy_from_slice(&half);
            Owned::Fixed(Frame::Proof(Proof {
                entity,
                signature,
                reset_token: t,
            }))
        }),
        (ranges, number()).prop_map(|(r, d)| Owned::Ack(r, d)),
        (
            any::<u32>(),
            prop::sample::select(&Mode::ALL[..]),
            "[a-z]{1,9}(/[A-Z0-9._-]{1,9}){0,3}"
        )
            .prop_map(|(salt, mode, name)| Owned::Open(salt, mode, name)),
        (number(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(offset, bytes)| Owned::Stream(offset, bytes)),
        (number(), 0..3u64, prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(offset, part, bytes)| Owned::Part(offset, offset * part / 2, bytes)),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Owned::Event),
        (0..2u8, prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(part, bytes)| Owned::Kem(part, bytes)),
        (1usize..9, 1usize..70)
            .prop_map(|(size, count)| Owned::Events(size, vec![7; size * count])),
        (number(), 0..1_000_000u64, 1usize..40).prop_map(|(n, at, bytes)| Owned::Fragment(
            n,
            at + 48,
            at,
            vec![7; bytes]
        )),
    ]
}

proptest! {
    #[test]
    fn encode_and_decode_are_inverse(frames in prop::collection::vec(frame(), 0..12)) {
        let mut payload = Vec::new();
        for frame in &frames {
            frame.write(&mut payload);
            payload.push(PADDING);
        }
        let read: Result<Vec<_>, _> = Frames::new(&payload).collect();
        let read = read.unwrap();
        prop_assert_eq!(read.len(), frames.len());
        for (sent, got) in frames.iter().zip(&read) {
            prop_assert!(sent.same(got), "{:?} became {:?}", sent, got);
        }
    }

    #[test]
    fn cut_frames_are_errors_or_fewer(frames in prop::collection::vec(frame(), 1..4), cut in 1usize..50) {
        let mut payload = Vec::new();
        for frame in &frames {
            frame.write(&mut payload);
        }
        payload.truncate(payload.len().saturating_sub(cut));
        let read = Frames::new(&payload).take_while(Result::is_ok).count();
        prop_assert!(read < frames.len());
    }

    #[test]
    fn arbitrary_bytes_never_panic(payload in prop::collection::vec(any::<u8>(), 0..1500)) {
        for frame in Frames::new(&payload).flatten() {
            if let Frame::Ack(ack) = frame {
                prop_assert!(ack.ranges().count() <= ACK_RANGES_MAX);
            }
        }
    }

    #[test]
    fn likely_bytes_never_panic(payload in prop::collection::vec(
        prop_oneof![0u8..20, Just(0xff), Just(0x40), Just(0xc0), any::<u8>()], 0..300)) {
        for frame in Frames::new(&payload).flatten() {
            if let Frame::Ack(ack) = frame {
                prop_assert!(ack.ranges().all(|(first, last)| first <= last));
            }
        }
    }
}

#[test]
fn errors_say_where() {
    let mut errors = Vec::new();
    for payload in [
        &[PING, 200][..],
        &[PING, FIN],
        &[OPEN, 0, 0, 0, 0, 4, 1, b'a'],
        &[ACK, 0, 0, 0, 1],
        &[KEM, 2, 0, 0],
    ] {
        errors.push(Frames::new(payload).find_map(Result::err).unwrap());
    }
    assert_eq!(
        errors,
        [
            FrameError::Unknown { at: 1, kind: 200 },
            FrameError::Truncated { at: 1 },
            FrameError::Field {
                at: 0,
                field: "mode"
            },
            FrameError::Field {
                at: 0,
                field: "range"
            },
            FrameError::Field {
                at: 0,
                field: "part"
            },
        ]
    );
}
