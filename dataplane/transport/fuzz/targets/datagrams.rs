//! A network that replays, changes and forges datagrams between two honest nodes: nothing panics, nothing
//! grows, and a message still arrives.

use super::{MS, Network, address};
use arbitrary::Arbitrary;
use virga_ebpf::header::{Flags, Header, SessionId, StreamId};
use virga_transport::{ChannelName, Event, Mode, StreamSpec};

#[derive(Arbitrary, Debug)]
enum Act {
    /// Any bytes.
    Raw(Vec<u8>),
    /// Any payload behind a header that is well formed.
    Forged {
        flags: u8,
        subprotocol: u8,
        key_phase: u8,
        stream: u32,
        sequence: u64,
        session: Option<u64>,
        payload: Vec<u8>,
    },
    /// One that was seen before.
    Replayed(u8),
    /// One that was seen before, but for a byte.
    Changed(u8, u16, u8),
    /// One that was seen before, cut.
    Cut(u8, u16),
    /// Honest traffic.
    Honest(u8),
    /// Time.
    Wait(u8),
}

fn spec() -> StreamSpec {
    StreamSpec {
        name: ChannelName::parse("fuzz").expect("a name"),
        salt: 0,
        priority: 3,
        mode: Mode::Ordered,
    }
}

/// Does what an input says.
pub fn run(input: &[u8]) {
    let Some(acts) = super::read::<Vec<Act>>(input) else {
        return;
    };
    let mut network = Network::connected(2);
    let (sender, receiver) = (network.id(0), network.id(1));
    let stream = network.nodes[0]
        .open_stream(network.now_ns, receiver, &spec())
        .expect("a session");
    let mut seen: Vec<Vec<u8>> = Vec::new();
    let mut sent = 0;
    let session = |network: &Network| network.nodes[1].sessions().next().map(|s| s.session.0);
    for act in acts.iter().take(64) {
        let mut hostile = match act {
            Act::Raw(bytes) => bytes.clone(),
            Act::Forged {
                flags,
                subprotocol,
                key_phase,
                stream,
                sequence,
                session: id,
                payload,
            } => {
                let header = Header {
                    flags: Flags(*flags),
                    subprotocol: (*subprotocol).into(),
                    key_phase: *key_phase,
                    destination: receiver,
                    origin_hash: network.nodes[0].origin(),
                    session_id: SessionId(id.or(session(&network)).unwrap_or_default()),
                    stream_id: StreamId(*stream),
                    sequence: *sequence,
                    payload_len: u16::try_from(payload.len()).unwrap_or(u16::MAX),
                    ..Header::default()
                };
                [&header.encode()[..], payload].concat()
            }
            Act::Replayed(n) | Act::Changed(n, ..) | Act::Cut(n, _) => {
                let Some(mut datagram) = seen.get(usize::from(*n) % seen.len().max(1)).cloned()
                else {
                    continue;
                };
                match *act {
                    Act::Changed(_, at, by) => {
                        let at = usize::from(at) % datagram.len();
                        datagram[at] ^= by;
                    }
                    Act::Cut(_, to) => datagram.truncate(to.into()),
                    _ => {}
                }
                datagram
            }
            Act::Honest(n) => {
                if network.nodes[0]
                    .send(network.now_ns, receiver, stream, &[*n; 40])
                    .is_ok()
                {
                    sent += 1;
                }
                while let Some((to, datagrams)) = network.take(0) {
                    for mut datagram in datagrams {
                        seen.push(datagram.clone());
                        network.give(0, to, &mut datagram);
                    }
                }
                continue;
            }
            Act::Wait(ms) => {
                network.advance(u64::from(*ms) * MS);
                continue;
            }
        };
        // From somewhere else, with everything else as it may be.
        network.give(7, 1, &mut hostile);
        assert!(
            network.nodes[1].sessions().count() <= 8,
            "hostile datagrams hold no state"
        );
    }
    assert_ne!(address(7), address(0));
    network.nodes[0]
        .send(network.now_ns, receiver, stream, b"last")
        .expect("the session lives");
    sent += 1;
    network.settle();
    let messages: Vec<_> = network.events[1]
        .iter()
        .filter_map(|event| match event {
            Event::Message { peer, event, .. } if *peer == sender => Some(event.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(messages.len(), sent, "each honest message arrives, once");
    assert_eq!(messages.last().map(|m| &m[..]), Some(&b"last"[..]));
}
