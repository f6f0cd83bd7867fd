//! What a fallback connection brings before and after its two ends have met: a hello that is not as it should be never
//! ends in a meeting, and frames are read as they were written however the stream is cut.

use arbitrary::Arbitrary;
use bytes::{BufMut as _, Bytes, BytesMut};
use virga_carrier::{
    Keyring, Target,
    limits::FRAME_BYTES_MAX,
    wire::{self, Frame},
};
use virga_ebpf::{
    header::{Header, NodeId},
    limits::HEADER_BYTES,
};
use x25519_dalek::{PublicKey, StaticSecret};

#[derive(Arbitrary, Debug)]
enum Part {
    /// Any bytes.
    Raw(Vec<u8>),
    /// A frame with a length in front.
    Frame(Vec<u8>),
    /// A packet whose header says its length, changed at one place.
    Packet { payload: u8, at: u16, by: u8 },
}

#[derive(Arbitrary, Debug)]
struct Input {
    /// What somebody says first instead of a hello.
    first: Vec<u8>,
    /// Which message of a true hello is changed, where and by what.
    changed: (u8, u8, u8),
    parts: Vec<Part>,
    /// How much of the stream comes at once.
    reads: Vec<u8>,
    /// An address to dial.
    target: String,
}

const IDS: [NodeId; 2] = [NodeId(1), NodeId(2)];

fn keyring(at: usize) -> Keyring {
    let secret = |at: usize| [if at == 0 { 11 } else { 12 }; 32];
    let public = PublicKey::from(&StaticSecret::from(secret(1 - at))).to_bytes();
    let own = (IDS[at], &secret(at));
    Keyring::new(own, ("fuzz", &[9; 32]), [(IDS[1 - at], public)])
}

/// A hello of which a message is changed: whether both ends take it.
fn meet((message, at, by): (u8, u8, u8)) -> bool {
    let change = |number: u8, words: &mut [u8]| {
        if message % 3 == number {
            words[usize::from(at) % words.len()] ^= by;
        }
    };
    let (dials, listens) = (keyring(0), keyring(1));
    let first = dials.begin(IDS[1], [5; 32]);
    let mut heard = first;
    change(0, &mut heard);
    let Ok((peer, mut second)) = listens.answer(&heard, [6; 32]) else {
        return false;
    };
    let said = second;
    change(1, &mut second);
    let Ok(mut third) = dials.finish(IDS[1], &first, &second) else {
        return false;
    };
    change(2, &mut third);
    listens.check(peer, &heard, &said, &third).is_ok()
}

/// Every frame of a stream that comes in pieces; none from what is no frame on.
fn frames(stream: &[u8], reads: &[u8]) -> Vec<Bytes> {
    let (mut buffer, mut rest, mut all) = (BytesMut::new(), stream, Vec::new());
    let mut sizes = reads.iter().map(|size| usize::from(*size) + 1);
    while !rest.is_empty() {
        let size = sizes.next().unwrap_or(rest.len()).min(rest.len());
        buffer.put_slice(&rest[..size]);
        rest = &rest[size..];
        loop {
            match wire::take(&mut buffer) {
                Ok(Some(frame)) => all.push(frame),
                Ok(None) => break,
                Err(_) => return all,
            }
        }
    }
    all
}

/// Does what an input says.
pub fn run(input: &[u8]) {
    let Some(input) = super::read::<Input>(input) else {
        return;
    };
    let listens = keyring(1);
    if let Ok((peer, second)) = listens.answer(&input.first, [6; 32]) {
        // It says whose it is, and has proven nothing.
        let proven = listens.check(peer, &input.first, &second, &second[32..]);
        assert!(peer == IDS[0] && proven.is_err());
    }
    assert_eq!(meet(input.changed), input.changed.2 == 0);

    let mut stream = Vec::new();
    for part in &input.parts {
        let framed = match part {
            Part::Raw(bytes) => {
                stream.extend(bytes);
                continue;
            }
            Part::Frame(bytes) => bytes.clone(),
            Part::Packet { payload, at, by } => {
                let header = Header {
                    payload_len: (*payload).into(),
                    ..Header::default()
                };
                let mut packet = header.encode().to_vec();
                packet.resize(HEADER_BYTES + usize::from(*payload), 7);
                let at = usize::from(*at) % packet.len();
                packet[at] ^= by;
                packet
            }
        };
        stream.extend(
            u16::try_from(framed.len())
                .unwrap_or(u16::MAX)
                .to_be_bytes(),
        );
        stream.extend(framed);
    }
    let all = frames(&stream, &input.reads);
    assert_eq!(all, frames(&stream, &[]), "however it is cut");
    let mut written = Vec::new();
    for frame in all {
        assert!(frame.len() <= FRAME_BYTES_MAX);
        written.extend(u16::try_from(frame.len()).unwrap_or(u16::MAX).to_be_bytes());
        written.extend(&frame);
        if let Ok(Frame::Packet(packet)) = wire::parse(frame) {
            let header = packet.first_chunk().map(Header::decode);
            let payload = header.map_or(0, |header| header.payload_len.into());
            assert_eq!(packet.len(), HEADER_BYTES + payload);
        }
    }
    assert!(stream.starts_with(&written), "as it came");

    if let Ok(target) = Target::parse(&input.target) {
        assert_eq!(Target::parse(&target.to_string()), Ok(target));
    }
}
