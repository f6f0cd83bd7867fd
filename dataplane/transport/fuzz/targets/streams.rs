//! Streams between two honest nodes, driven by a list of operations over a network that loses, repeats,
//! reorders and changes, with keys that are soon worn: what arrives is what was sent, as the stream's mode
//! promises; once the network is calm all that is reliable has arrived, but for what expired unsent and
//! for streams that an end gave up, and no credit is lost.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{MS, Network};
use arbitrary::Arbitrary;
use virga_ebpf::header::StreamId;
use virga_transport::{ChannelName, CloseReason, Event, Mode, NodeLimits, StreamSpec};

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
    /// With a deadline.
    SendUntil {
        stream: u8,
        bytes: u16,
        ms: u8,
    },
    Finish(u8),
    /// The sender gives a stream up.
    Reset(u8),
    /// The receiver does.
    Refuse(u8),
    /// The sender wants to end the session after all that is queued.
    Drain,
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
    /// One of the ends gave it up.
    given_up: bool,
}

/// Messages tell which they are: the first bytes are the number, the rest follows from it.
fn message(number: usize, bytes: usize) -> Vec<u8> {
    let number = u32::try_from(number).expect("few messages");
    let mut all: Vec<u8> = number.to_be_bytes().to_vec();
    all.extend((0..bytes).map(|at| (at as u32).wrapping_mul(31).wrapping_add(number) as u8));
    all
}

/// What the sender was told of its stream's messages that went away unsent.
fn expired(events: &[Event], of: StreamId) -> usize {
    let count = |event: &Event| match event {
        Event::Expired {
            stream, messages, ..
        } if *stream == of => *messages,
        _ => 0,
    };
    usize::try_from(events.iter().map(count).sum::<u64>()).expect("few messages")
}

fn check(streams: &[Stream], events: &[Vec<Event>], is_over: bool) {
    let mut came: BTreeMap<StreamId, Vec<usize>> = BTreeMap::new();
    let mut over = BTreeSet::new();
    for event in &events[1] {
        if let Event::StreamFinished { stream, .. } | Event::StreamReset { stream, .. } = event {
            assert!(over.insert(*stream), "{stream:?} ends once");
        }
        let Event::Message { stream, event, .. } = event else {
            continue;
        };
        assert!(
            !over.contains(stream),
            "nothing follows the end of {stream:?}"
        );
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
            assert!(came.is_sorted(), "in order: {came:?}");
        }
        let unsent = expired(&events[0], stream.id);
        assert!(came.len() + unsent <= stream.sent.len());
        if is_over && stream.mode != Mode::Unreliable && !stream.given_up {
            assert_eq!(
                came.len() + unsent,
                stream.sent.len(),
                "all of {:?} {:?} arrive",
                stream.mode,
                stream.id
            );
        }
    }
}

/// Why a node's sessions ended.
fn closed(events: &[Event]) -> Vec<CloseReason> {
    let reason = |event: &Event| match event {
        Event::Closed { reason, .. } => Some(*reason),
        _ => None,
    };
    events.iter().filter_map(reason).collect()
}

/// Does what an input says.
pub fn run(input: &[u8]) {
    let Some(acts) = super::read::<Vec<Act>>(input) else {
        return;
    };
    let limits = NodeLimits {
        rekey_after_packets: 60,
        ..NodeLimits::default()
    };
    let mut network = Network::with_limits(2, &limits);
    let [sender, receiver] = [0, 1].map(|index| network.id(index));
    let mut is_draining = false;
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
                if streams.len() < 16 && !is_draining {
                    let id = network.nodes[0]
                        .open_stream(now_ns, receiver, &spec)
                        .expect("few streams");
                    streams.push(Stream {
                        id,
                        mode,
                        sent: Vec::new(),
                        finished: false,
                        given_up: false,
                    });
                }
            }
            Act::Send { stream, .. }
            | Act::SendLarge { stream, .. }
            | Act::SendUntil { stream, .. } => {
                let count = streams.len();
                let Some(stream) = streams.get_mut(at(stream, count)) else {
                    continue;
                };
                let (bytes, deadline_ns) = match act {
                    Act::SendLarge { kibibytes, .. } => (usize::from(*kibibytes) * 1024, None),
                    Act::Send { bytes, .. } => (usize::from(bytes % 3_000), None),
                    Act::SendUntil { bytes, ms, .. } => (
                        usize::from(bytes % 30_000),
                        Some(now_ns + u64::from(*ms) * MS),
                    ),
                    _ => (0, None),
                };
                let event = message(stream.sent.len(), bytes);
                let taken = network.nodes[0].send_all(
                    now_ns,
                    receiver,
                    stream.id,
                    [&event[..]],
                    deadline_ns,
                );
                // Else full, or over.
                if taken.messages == 1 {
                    assert!(!stream.finished, "nothing follows the end");
                    stream.sent.push(bytes);
                }
            }
            Act::Reset(n) => {
                let count = streams.len();
                if let Some(stream) = streams.get_mut(at(n, count)) {
                    let reset = network.nodes[0].reset_stream(now_ns, receiver, stream.id);
                    stream.given_up |= reset.is_ok();
                    stream.finished |= reset.is_ok();
                }
            }
            Act::Refuse(n) => {
                let count = streams.len();
                if let Some(stream) = streams.get_mut(at(n, count)) {
                    let refused = network.nodes[1].refuse_stream(now_ns, sender, stream.id);
                    stream.given_up |= refused.is_ok();
                }
            }
            Act::Drain => {
                let deadline_ns = now_ns + 100_000 * MS;
                let drained = network.nodes[0].drain(now_ns, receiver, deadline_ns);
                assert!(drained.is_ok() || is_draining, "there is a session");
                is_draining = true;
                for stream in &mut streams {
                    stream.finished = true;
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
        network.read(0);
        network.read(1);
        let ends = [0, 1].map(|index| closed(&network.events[index]));
        assert!(
            is_draining || ends == [[], []],
            "nobody broke the protocol: {ends:?}"
        );
    }
    check(&streams, &network.events, false);
    for (from, to, mut datagram) in wire {
        network.give(from, to, &mut datagram);
    }
    network.settle();
    check(&streams, &network.events, true);
    if is_draining {
        assert_eq!(closed(&network.events[0]), [CloseReason::Local]);
    }
    // A node says what it keeps in a build for fuzzing.
    #[cfg(fuzzing)]
    for (near, far) in [(0, 1), (1, 0)].into_iter().filter(|_| !is_draining) {
        let peer = network.id(far);
        assert_eq!(network.nodes[near].kept(peer), (0, 0), "all is told");
        let (used, _, _) = network.nodes[near].credit(peer);
        let (_, highest, read) = network.nodes[far].credit(network.id(near));
        assert_eq!((used, highest), (highest, read), "no credit is lost");
    }
}
