//! Streams between two honest nodes, driven by a list of operations over a network that loses, repeats,
//! reorders and changes: what arrives is what was sent, as the stream's mode promises, and once the
//! network is calm all that is reliable has arrived.
#![no_main]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use virga_ebpf::header::StreamId;
use virga_transport::{ChannelName, Event, Mode, StreamSpec};
use virga_transport_fuzz::{MS, Network};

#[derive(Arbitrary, Debug)]
enum Act {
    Open {
        mode: u8,
        priority: u8,
    },
    Send {
        stream: u8,
        bytes: u16,
    },
    SendLarge {
        stream: u8,
        kibibytes: u8,
    },
    Finish(u8),
    /// Datagrams enter the network.
    Emit,
    /// The network does something with a datagram.
    Deliver(u8),
    Lose(u8),
    Repeat(u8),
    Change(u8, u16),
    Wait(u8),
}

/// A stream as its sender knows it.
struct Stream {
    id: StreamId,
    mode: Mode,
    sent: Vec<usize>,
    finished: bool,
}

/// Messages tell which they are: the first bytes are the number, the rest follows from it.
fn message(number: usize, bytes: usize) -> Vec<u8> {
    let number = u32::try_from(number).expect("few messages");
    let mut all: Vec<u8> = number.to_be_bytes().to_vec();
    all.extend((0..bytes).map(|at| (at as u32).wrapping_mul(31).wrapping_add(number) as u8));
    all
}

fn check(streams: &[Stream], events: &[Event], is_over: bool) {
    let mut came: BTreeMap<StreamId, Vec<usize>> = BTreeMap::new();
    for event in events {
        let Event::Message { stream, event, .. } = event else {
            continue;
        };
        let of = streams
            .iter()
            .find(|s| s.id == *stream)
            .expect("a stream that was opened");
        let (number, _) = event.split_first_chunk::<4>().expect("a number");
        let number = u32::from_be_bytes(*number) as usize;
        assert!(
            event[..] == message(number, of.sent[number])[..],
            "message {number} of {stream:?} is whole"
        );
        came.entry(*stream).or_default().push(number);
    }
    for stream in streams {
        let came = came.remove(&stream.id).unwrap_or_default();
        let all = BTreeSet::from_iter(came.iter().copied());
        assert_eq!(all.len(), came.len(), "none comes twice");
        if stream.mode == Mode::Ordered {
            assert!(came.iter().copied().eq(0..came.len()), "in order: {came:?}");
        }
        if is_over && stream.mode != Mode::Unreliable {
            assert_eq!(
                came.len(),
                stream.sent.len(),
                "all of {:?} {:?} arrive",
                stream.mode,
                stream.id
            );
        }
    }
}

fuzz_target!(|acts: Vec<Act>| {
    let mut network = Network::connected(2);
    let receiver = network.id(1);
    let mut streams: Vec<Stream> = Vec::new();
    let mut wire: VecDeque<(usize, usize, Vec<u8>)> = VecDeque::new();
    for act in acts.iter().take(256) {
        let now_ns = network.now_ns;
        let at = |n: &u8, count: usize| usize::from(*n) % count.max(1);
        match act {
            Act::Open { mode, priority } => {
                let mode =
                    [Mode::Ordered, Mode::Unordered, Mode::Unreliable][usize::from(mode % 3)];
                let spec = StreamSpec {
                    name: ChannelName::parse("fuzz").expect("a name"),
                    salt: 0,
                    priority: priority % 7,
                    mode,
                };
                if streams.len() < 16 {
                    let id = network.nodes[0]
                        .open_stream(now_ns, receiver, &spec)
                        .expect("few streams");
                    streams.push(Stream {
                        id,
                        mode,
                        sent: Vec::new(),
                        finished: false,
                    });
                }
            }
            Act::Send { stream, .. } | Act::SendLarge { stream, .. } => {
                let count = streams.len();
                let Some(stream) = streams.get_mut(at(stream, count)) else {
                    continue;
                };
                let bytes = match act {
                    Act::SendLarge { kibibytes, .. } => usize::from(*kibibytes) * 1024,
                    Act::Send { bytes, .. } => usize::from(bytes % 3_000),
                    _ => 0,
                };
                let event = message(stream.sent.len(), bytes);
                // Full, or finished.
                if network.nodes[0]
                    .send(now_ns, receiver, stream.id, &event)
                    .is_ok()
                {
                    assert!(!stream.finished, "nothing follows the end");
                    stream.sent.push(bytes);
                }
            }
            Act::Finish(n) => {
                let count = streams.len();
                if let Some(stream) = streams.get_mut(at(n, count)) {
                    let _is_first = network.nodes[0].finish_stream(now_ns, receiver, stream.id);
                    stream.finished = true;
                }
            }
            Act::Emit => {
                for from in 0..2 {
                    while wire.len() < 512
                        && let Some((to, datagrams)) = network.take(from)
                    {
                        wire.extend(datagrams.into_iter().map(|d| (from, to, d)));
                    }
                }
            }
            Act::Deliver(n) | Act::Repeat(n) => {
                let place = at(n, wire.len());
                let taken = match act {
                    Act::Repeat(_) => wire.get(place).cloned(),
                    _ => wire.remove(place),
                };
                if let Some((from, to, mut datagram)) = taken {
                    network.give(from, to, &mut datagram);
                }
            }
            Act::Lose(n) => {
                wire.remove(at(n, wire.len()));
            }
            Act::Change(n, byte) => {
                let place = at(n, wire.len());
                if let Some((_, _, datagram)) = wire.get_mut(place) {
                    let byte = usize::from(*byte) % datagram.len();
                    datagram[byte] ^= 0x55;
                }
            }
            Act::Wait(ms) => network.advance(u64::from(ms % 100) * MS),
        }
        let is_closed = |e: &Event| matches!(e, Event::Closed { .. });
        assert!(
            !network.events.concat().iter().any(is_closed),
            "nobody broke the protocol"
        );
    }
    check(&streams, &network.events[1], false);
    for (from, to, mut datagram) in wire {
        network.give(from, to, &mut datagram);
    }
    network.settle();
    check(&streams, &network.events[1], true);
});
