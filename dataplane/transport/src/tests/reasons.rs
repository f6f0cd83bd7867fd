//! Every drop reason, made to happen.

use super::sim::{MS, SECOND, Sim, Weather, config, source, spec};
use crate::{
    DropReason, Handled, Mode, Node, NodeConfig, NodeLimits, Pattern, Pq,
    frame::{Frame, VARINT_MAX},
    limits::{
        EVENTS_UNREAD_MAX, MESSAGE_BYTES_MAX, REASSEMBLY_BYTES_MAX, REASSEMBLY_MESSAGES_MAX,
        RECEIVE_RANGES_MAX,
    },
};
use virga_ebpf::{hash, header::Flags};

const DATA: Flags = Flags::RELIABLE;

fn limits() -> NodeLimits {
    NodeLimits::default()
}

/// A datagram that node 0 sent to node 1 over an established session, and the two.
fn pair_and_packet() -> (Sim, Vec<u8>) {
    let mut sim = Sim::pair(&limits());
    let packet = sealed(&mut sim, (Flags::CONTROL, 0, 0, 0), &[Frame::Ping]);
    (sim, packet)
}

fn sealed(sim: &mut Sim, label: (Flags, u32, u16, usize), frames: &[Frame<'_>]) -> Vec<u8> {
    let mut payload = Vec::new();
    for frame in frames {
        frame.write(&mut payload);
    }
    let id = sim.ids[1];
    sim.nodes[0].seal_raw(id, label, &payload)
}

/// The initiation of a node that was configured otherwise, and who receives it.
fn initiation(change: impl Fn(&mut NodeConfig), receiver: &NodeLimits) -> (Sim, Vec<u8>) {
    let mut sim = Sim::new(1, 2, receiver, Weather::CALM);
    let mut other = config(0, 2, 1, &limits());
    change(&mut other);
    sim.nodes[0] = Node::new(other, 0).unwrap();
    sim.keep_wire = true;
    let id = sim.ids[1];
    sim.nodes[0].connect(0, id).unwrap();
    sim.transmit();
    let bytes = sim.wire[0].1.clone();
    (sim, bytes)
}

fn changed(mut datagram: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    datagram[at] = value;
    datagram
}

fn open(salt: u32) -> (Frame<'static>, u16) {
    (
        Frame::Open {
            salt,
            mode: Mode::Ordered,
            name: "a",
        },
        hash::channel_hash(salt, "a").0,
    )
}

/// A datagram for a node, and the nodes.
fn case(reason: DropReason) -> (Sim, usize, Vec<u8>) {
    let to_1 = |(sim, bytes): (Sim, Vec<u8>)| (sim, 1, bytes);
    let packet = |at: usize, value: u8| {
        let (sim, bytes) = pair_and_packet();
        (sim, 1, changed(bytes, at, value))
    };
    let first = |at: usize, value: u8| {
        let (sim, bytes) = initiation(|_| {}, &limits());
        (sim, 1, changed(bytes, at, value))
    };
    match reason {
        DropReason::Truncated => (Sim::pair(&limits()), 1, vec![0; 63]),
        DropReason::Magic => packet(0, 0),
        DropReason::Version => packet(2, 9),
        DropReason::Priority => packet(4, 8),
        DropReason::PayloadLength => packet(45, 1),
        DropReason::NotForUs => packet(20, 0),
        DropReason::Origin => packet(30, 0),
        DropReason::Subprotocol => packet(9, 1),
        DropReason::KeyPhase => packet(7, 9),
        DropReason::UnknownSession => packet(33, 0),
        DropReason::Forged => packet(70, 0),
        DropReason::HandshakeMalformed => first(64, 99),
        DropReason::HandshakeSuite => first(65, 99),
        DropReason::HandshakePskGeneration => first(66, 99),
        DropReason::HandshakeTag => first(90, 99),
        DropReason::HandshakePeer => to_1(initiation(|c| c.entity_key = [9; 32], &limits())),
        DropReason::HandshakeNoise => to_1(initiation(|c| c.network_id = "x".into(), &limits())),
        DropReason::HandshakeCookie => to_1(initiation(
            |_| {},
            &NodeLimits {
                handshakes_per_second: 0,
                ..limits()
            },
        )),
        DropReason::HandshakeStopping
        | DropReason::HandshakeReplayed
        | DropReason::HandshakeRepeated
        | DropReason::HandshakeSimultaneous
        | DropReason::HandshakeStale
        | DropReason::HandshakeRate
        | DropReason::HandshakeFull
        | DropReason::HandshakeUnasked
        | DropReason::HandshakeNodeKey
        | DropReason::HandshakePolicy
        | DropReason::ResetToken => handshake_case(reason),
        _ => sealed_case(reason),
    }
}

fn handshake_case(reason: DropReason) -> (Sim, usize, Vec<u8>) {
    match reason {
        DropReason::HandshakeRate => {
            let strict = NodeLimits {
                handshakes_per_second: 0,
                handshakes_per_second_per_source: 0,
                ..limits()
            };
            let (mut sim, bytes) = initiation(|_| {}, &strict);
            let from = source(0);
            let _ = sim.nodes[1].handle(0, from, &mut bytes.clone());
            sim.run(6 * MS);
            let again = sim
                .wire
                .iter()
                .rfind(|(from, _)| *from == 0)
                .unwrap()
                .1
                .clone();
            let _ = sim.nodes[1].handle(sim.now_ns, from, &mut again.clone());
            (sim, 1, again)
        }
        DropReason::HandshakeSimultaneous => {
            let mut sim = Sim::new(1, 2, &limits(), Weather::CALM);
            sim.keep_wire = true;
            let lower = usize::from(sim.ids[1] < sim.ids[0]);
            let ids = sim.ids.clone();
            sim.nodes[lower].connect(0, ids[1 - lower]).unwrap();
            sim.nodes[1 - lower].connect(0, ids[lower]).unwrap();
            sim.transmit();
            let bytes = sim
                .wire
                .iter()
                .find(|(from, _)| *from == 1 - lower)
                .unwrap()
                .1
                .clone();
            (sim, lower, bytes)
        }
        DropReason::HandshakeFull => {
            let one = NodeLimits {
                sessions_max: 1,
                half_open_max: 1,
                ..limits()
            };
            let mut sim = Sim::new(1, 3, &one, Weather::CALM);
            sim.connect(0, 1);
            sim.keep_wire = true;
            let (now_ns, id) = (sim.now_ns, sim.ids[1]);
            sim.nodes[2].connect(now_ns, id).unwrap();
            sim.transmit();
            let bytes = sim.wire[0].1.clone();
            (sim, 1, bytes)
        }
        DropReason::HandshakeNodeKey => {
            // Node 2 says that it is node 0.
            let ik = |c: &mut NodeConfig| c.handshake.pattern = Some(Pattern::Ik);
            let mut liar = config(2, 3, 1, &limits());
            ik(&mut liar);
            liar.entity_key = config(0, 2, 1, &limits()).entity_key;
            let (mut sim, _) = initiation(ik, &limits());
            let id = sim.ids[1];
            let mut liar = Node::new(liar, 0).unwrap();
            liar.lie_about_id(sim.ids[0]);
            liar.connect(0, id).unwrap();
            let mut bytes = Vec::new();
            let _ = liar.poll_transmit(0, &mut bytes);
            sim.wire.clear();
            (sim, 1, bytes)
        }
        DropReason::HandshakePolicy => {
            let required = |c: &mut NodeConfig| c.handshake.pq = Pq::Required;
            let (sim, bytes) = initiation(required, &limits());
            (sim, 1, bytes)
        }
        DropReason::HandshakeStopping => {
            let (mut sim, bytes) = initiation(|_| {}, &limits());
            sim.nodes[1].stop(0, SECOND);
            (sim, 1, bytes)
        }
        DropReason::HandshakeRepeated => {
            let (mut sim, bytes) = initiation(|_| {}, &limits());
            assert_eq!(sim.give(1, &bytes), Handled::Accepted);
            (sim, 1, bytes)
        }
        DropReason::HandshakeStale => {
            let (mut sim, bytes) = initiation(|_| {}, &limits());
            sim.nodes[0] = Node::new(config(0, 2, 9, &limits()), 0).unwrap();
            sim.connect(0, 1);
            sim.run(limits().handshake_deadline_ns);
            (sim, 1, bytes)
        }
        DropReason::ResetToken => {
            let (mut sim, packet) = pair_and_packet();
            let session = u64::from_be_bytes(packet[32..40].try_into().unwrap());
            let id = sim.ids[0];
            let reset = sim.nodes[1].forge_reset(id, virga_ebpf::header::SessionId(session));
            (sim, 0, reset)
        }
        _ => {
            let mut sim = Sim::new(1, 2, &limits(), Weather::CALM);
            sim.keep_wire = true;
            sim.connect(0, 1);
            let (at, to) = if reason == DropReason::HandshakeReplayed {
                (0, 1)
            } else {
                (1, 0)
            };
            let bytes = sim.wire[at].1.clone();
            (sim, to, bytes)
        }
    }
}

/// Packets whose seal is right and whose content is not.
fn sealed_case(reason: DropReason) -> (Sim, usize, Vec<u8>) {
    if reason == DropReason::BeforeProof {
        let mut sim = Sim::new(1, 2, &limits(), Weather::CALM);
        let id = sim.ids[1];
        sim.nodes[0].connect(0, id).unwrap();
        while sim.nodes[0].sessions().count() == 0 {
            sim.step(SECOND);
        }
        let (frame, channel) = open(0);
        let bytes = sealed(&mut sim, (DATA, 2, channel, 0), &[frame]);
        return (sim, 1, bytes);
    }
    if reason == DropReason::Kem {
        let mut sim = Sim::new(1, 2, &limits(), Weather::CALM);
        for n in 0..2 {
            let mut hybrid = config(n, 2, 1, &limits());
            hybrid.handshake.pq = Pq::Required;
            sim.nodes[usize::from(n)] = Node::new(hybrid, 0).unwrap();
        }
        let id = sim.ids[1];
        sim.nodes[0].connect(0, id).unwrap();
        while sim.nodes[0].sessions().count() == 0 {
            sim.step(SECOND);
        }
        let (part, bytes) = (0, &[0; 9][..]);
        let bytes = sealed(
            &mut sim,
            (Flags::CONTROL, 0, 0, 0),
            &[Frame::Kem { part, bytes }],
        );
        return (sim, 1, bytes);
    }
    if reason == DropReason::Proof {
        let mut sim = Sim::new(1, 2, &limits(), Weather::CALM);
        let id = sim.ids[1];
        sim.nodes[0].connect(0, id).unwrap();
        while sim.nodes[0].sessions().count() == 0 {
            sim.step(SECOND);
        }
        let (entity, signature, reset_token) = ([1; 32], [2; 64], [3; 16]);
        let proof = crate::frame::Proof {
            entity,
            signature,
            reset_token,
        };
        let bytes = sealed(&mut sim, (Flags::CONTROL, 0, 0, 0), &[Frame::Proof(proof)]);
        return (sim, 1, bytes);
    }
    let streams_max = match reason {
        DropReason::StreamsFull => 1,
        _ => 64,
    };
    let mut sim = Sim::pair(&NodeLimits {
        streams_max,
        ..limits()
    });
    let stream = sim.open(0, 1, &spec("a", Mode::Ordered)).0;
    sim.send(0, 1, virga_ebpf::header::StreamId(stream), b"x")
        .unwrap();
    sim.run(50 * MS);
    let (frame, channel) = open(0);
    let label = (DATA, stream, channel, 0);
    let bytes = match reason {
        DropReason::Replayed => {
            let bytes = sealed(&mut sim, label, &[frame]);
            assert_eq!(sim.give(1, &bytes), Handled::Accepted);
            bytes
        }
        DropReason::TooOld => {
            let bytes = sealed(&mut sim, label, &[frame]);
            let id = sim.ids[1];
            sim.nodes[0].skip(id, 1 << 40);
            let newest = sealed(&mut sim, label, &[frame]);
            assert_eq!(
                sim.give(1, &newest),
                Handled::Accepted,
                "any jump forward is legal"
            );
            bytes
        }
        DropReason::FrameMalformed => sealed(&mut sim, label, &[Frame::Close]),
        DropReason::NeverSent => {
            let mut payload = Vec::new();
            crate::frame::write_ack(&mut payload, &[(1 << 40, 1 + (1 << 40))], 0);
            let id = sim.ids[1];
            sim.nodes[0].seal_raw(id, (Flags::CONTROL, 0, 0, 0), &payload)
        }
        DropReason::ChannelMismatch => sealed(&mut sim, (DATA, stream + 2, 7, 0), &[frame]),
        DropReason::StreamChannel => {
            let (other, other_channel) = open(1);
            sealed(&mut sim, (DATA, stream, other_channel, 0), &[other])
        }
        DropReason::UnknownStream => {
            let data = Frame::Stream {
                offset: 0,
                bytes: b"x",
            };
            sealed(&mut sim, (DATA, stream + 2, channel, 0), &[data])
        }
        DropReason::StreamsFull => sealed(&mut sim, (DATA, stream + 2, channel, 0), &[frame]),
        DropReason::StreamClosed => {
            let (now_ns, id) = (sim.now_ns, sim.ids[0]);
            let stream = virga_ebpf::header::StreamId(stream);
            sim.nodes[1].refuse_stream(now_ns, id, stream).unwrap();
            sealed(
                &mut sim,
                label,
                &[Frame::Stream {
                    offset: 5,
                    bytes: b"more",
                }],
            )
        }
        DropReason::Credit => {
            let offset = VARINT_MAX - 10;
            sealed(
                &mut sim,
                label,
                &[Frame::Stream {
                    offset,
                    bytes: b"far",
                }],
            )
        }
        DropReason::Overlap => {
            let loose = Frame::Open {
                salt: 0,
                mode: Mode::Unordered,
                name: "a",
            };
            let part = |offset, back, bytes| Frame::Part {
                offset,
                back,
                bytes,
            };
            let label = (DATA, stream + 2, channel, 0);
            let bytes = sealed(&mut sim, label, &[loose, part(0, 0, &[0, 0, 0, 8])]);
            assert_eq!(sim.give(1, &bytes), Handled::Accepted);
            sealed(&mut sim, label, &[part(6, 0, b"another")])
        }
        DropReason::Unfinished => {
            // More that never end than are kept: the oldest give way, and the session goes on.
            let quick = Frame::Open {
                salt: 0,
                mode: Mode::Unreliable,
                name: "a",
            };
            let count = u64::try_from(REASSEMBLY_MESSAGES_MAX).unwrap() + 9;
            let total = u64::try_from(MESSAGE_BYTES_MAX).unwrap();
            for message in 0..count {
                let fragment = Frame::Fragment {
                    message,
                    total,
                    offset: 7,
                    bytes: b"x",
                };
                let label = (Flags::NONE, stream + 2, channel, 0);
                let bytes = sealed(&mut sim, label, &[quick, fragment]);
                assert_eq!(sim.give(1, &bytes), Handled::Accepted);
                let (messages, bytes) = sim.nodes[1].unfinished(sim.ids[0]);
                assert!(messages <= REASSEMBLY_MESSAGES_MAX && bytes <= REASSEMBLY_BYTES_MAX);
            }
            sealed(&mut sim, (Flags::CONTROL, 0, 0, 0), &[Frame::Ping])
        }
        DropReason::Fragments => {
            for n in 0..u64::try_from(RECEIVE_RANGES_MAX).unwrap() {
                let offset = 7 + 2 * n;
                let fragment = Frame::Stream {
                    offset,
                    bytes: b"x",
                };
                let bytes = sealed(&mut sim, label, &[fragment]);
                assert_eq!(sim.give(1, &bytes), Handled::Accepted);
            }
            let (offset, bytes) = (600_000, &b"x"[..]);
            let one_more = sealed(&mut sim, label, &[Frame::Stream { offset, bytes }]);
            assert_eq!(
                sim.give(1, &one_more),
                Handled::Dropped(DropReason::Fragments)
            );
            let next = Frame::Stream {
                offset: 5,
                bytes: &[0; 4],
            };
            let next = sealed(&mut sim, label, &[next]);
            assert_eq!(
                sim.give(1, &next),
                Handled::Accepted,
                "what is next is taken"
            );
            let fragment = Frame::Stream { offset, bytes };
            let bytes = sealed(&mut sim, label, &[fragment]);
            assert_eq!(
                sim.give(1, &bytes),
                Handled::Accepted,
                "and that makes room"
            );
            let fragment = Frame::Stream {
                offset: offset + 2,
                bytes: b"x",
            };
            sealed(&mut sim, label, &[fragment])
        }
        DropReason::Entries => super::bounds::crowd(&mut sim),
        DropReason::EventQueueFull => {
            sim.deaf.push(1);
            let quick = Frame::Open {
                salt: 0,
                mode: Mode::Unreliable,
                name: "a",
            };
            for _ in 0..=EVENTS_UNREAD_MAX {
                let frames = [quick, Frame::Event { bytes: b"x" }];
                let bytes = sealed(&mut sim, (Flags::NONE, stream + 2, channel, 1), &frames);
                assert_eq!(sim.give(1, &bytes), Handled::Accepted);
            }
            sealed(&mut sim, (Flags::CONTROL, 0, 0, 0), &[Frame::Ping])
        }
        DropReason::Draining => {
            let (now_ns, id) = (sim.now_ns, sim.ids[0]);
            sim.nodes[1].close(now_ns, id);
            sealed(&mut sim, label, &[frame])
        }
        other => panic!("{other:?} has no case"),
    };
    (sim, 1, bytes)
}

#[test]
fn every_reason_can_happen_and_is_counted() {
    for &reason in DropReason::ALL {
        let (mut sim, at, datagram) = case(reason);
        let before = sim.dropped(at, reason);
        let handled = sim.give(at, &datagram);
        match reason {
            // Counted beside the packet that carried it, or given to the case itself.
            DropReason::EventQueueFull | DropReason::HandshakeRate | DropReason::Unfinished => {
                assert!(sim.dropped(at, reason) > 0)
            }
            _ => {
                assert_eq!(handled, Handled::Dropped(reason), "{}", reason.name());
                assert_eq!(sim.dropped(at, reason), before + 1, "{}", reason.name());
            }
        }
    }
}
