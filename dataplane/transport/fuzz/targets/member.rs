//! A member with a hostile program: authentic packets with any frames. Its session may end; nothing panics
//! or grows, and another member's session goes on.

use super::{
    MS, Network,
    transport::{ChannelName, Event, Mode, StreamSpec, limits::REASSEMBLY_BYTES_MAX},
};
use arbitrary::Arbitrary;
use virga_ebpf::header::Flags;

#[derive(Arbitrary, Debug)]
enum Act {
    /// A sealed packet.
    Packet {
        is_control: bool,
        is_reliable: bool,
        is_fin: bool,
        stream: u8,
        channel: u16,
        events: u8,
        payload: Vec<u8>,
    },
    /// Sequences that are never sent.
    Skip(u16),
    /// The node opens a stream to the hostile member and sends on it.
    Send(u8, u16),
    /// What the node wants to say goes to nobody.
    Unheard,
    /// Time.
    Wait(u16),
}

fn spec(mode: Mode) -> StreamSpec {
    StreamSpec {
        name: ChannelName::parse("fuzz").expect("a name"),
        salt: 0,
        priority: 3,
        mode,
    }
}

/// Does what an input says.
pub fn run(input: &[u8]) {
    let Some(acts) = super::read::<Vec<Act>>(input) else {
        return;
    };
    // Node 0 is the one that is attacked, by node 1; node 2 is honest.
    let mut network = Network::connected(3);
    let ids = [0, 1, 2].map(|index| network.id(index));
    let mut streams = Vec::new();
    for act in acts.iter().take(64) {
        // A session that has ended has no keys to seal with.
        let is_live = network.nodes[1].sessions().any(|s| s.peer == ids[0]);
        match act {
            Act::Packet {
                is_control,
                is_reliable,
                is_fin,
                stream,
                channel,
                events,
                payload,
            } if is_live => {
                let flag = |is_set, flag| if is_set { flag } else { Flags(0) };
                let flags = flag(*is_control, Flags::CONTROL)
                    .with(flag(*is_reliable, Flags::RELIABLE))
                    .with(flag(*is_fin, Flags::FIN));
                let payload = &payload[..payload.len().min(1_100)];
                let mut packet = network.nodes[1].seal_raw(
                    ids[0],
                    (flags, u32::from(*stream), *channel, usize::from(*events)),
                    payload,
                );
                network.give(1, 0, &mut packet);
            }
            Act::Skip(sequences) if is_live => network.nodes[1].skip(ids[0], u64::from(*sequences)),
            Act::Packet { .. } | Act::Skip(_) => {}
            Act::Send(which, bytes) => {
                let now_ns = network.now_ns;
                let mode =
                    [Mode::Ordered, Mode::Unordered, Mode::Unreliable][usize::from(which % 3)];
                if streams.len() < 8
                    && let Ok(stream) = network.nodes[0].open_stream(now_ns, ids[1], &spec(mode))
                {
                    streams.push(stream);
                }
                if let Some(&stream) = streams.get(usize::from(*which) % streams.len().max(1)) {
                    // It may be refused, gone or full.
                    let _is_queued = network.nodes[0].send(
                        now_ns,
                        ids[1],
                        stream,
                        &vec![1; usize::from(*bytes) % 5_000],
                    );
                }
            }
            Act::Unheard => while network.take(0).is_some() {},
            Act::Wait(ms) => network.advance(u64::from(*ms % 2_000) * MS),
        }
        let attacked = &network.nodes[0];
        let now = attacked.sessions().count();
        assert!(now <= 8, "{now} sessions of two peers");
        if attacked.sessions().any(|s| s.peer == ids[1]) {
            let (messages, bytes) = attacked.unfinished(ids[1]);
            assert!(
                bytes <= REASSEMBLY_BYTES_MAX,
                "{bytes} bytes of {messages} unfinished messages"
            );
            let (packets, matters) = attacked.kept(ids[1]);
            assert!(
                packets <= 64 * 64 && matters <= 64 * 1_100,
                "{packets} packets, {matters} matters"
            );
        }
        network.events[0].clear();
    }
    let stream = network.nodes[2].open_stream(network.now_ns, ids[0], &spec(Mode::Ordered));
    let Ok(stream) = stream else {
        // So much time has passed that the session idled out.
        return;
    };
    network.nodes[2]
        .send(network.now_ns, ids[0], stream, b"unharmed")
        .expect("an empty queue");
    for _ in 0..2_000 {
        for from in [0, 2] {
            while let Some((to, datagrams)) = network.take(from) {
                for mut datagram in datagrams {
                    network.give(from, to, &mut datagram);
                }
            }
        }
        let is_whole = |e: &Event| matches!(e, Event::Message { peer, event, .. } if *peer == ids[2] && event[..] == *b"unharmed");
        if network.events[0].iter().any(is_whole) {
            return;
        }
        network.advance(5 * MS);
    }
    panic!("the honest member's message did not arrive");
}
