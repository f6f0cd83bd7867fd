//! What a proven peer can make a node keep has a bound.

use super::sim::{SECOND, Sim, spec};
use crate::{
    DropReason, Event, Handled, Mode, NodeLimits,
    frame::{Frame, write_ack},
    limits::UNACKNOWLEDGED_MAX,
    ranges::RangeSet,
};
use virga_ebpf::{
    hash,
    header::{Flags, StreamId},
};

/// Gives node 1 what node 0 seals by hand.
fn give(sim: &mut Sim, label: (Flags, u32, u16, usize), frame: &Frame<'_>) {
    let mut payload = Vec::new();
    frame.write(&mut payload);
    let id = sim.ids[1];
    let bytes = sim.nodes[0].seal_raw(id, label, &payload);
    let _ = sim.give(1, &bytes);
}

/// Sends what node 1 wants to send now, to nobody.
fn lose_all(sim: &mut Sim) {
    let mut run = Vec::new();
    while sim.nodes[1].poll_transmit(sim.now_ns, &mut run).is_some() {
        run.clear();
    }
}

/// A peer opens a stream, has it refused, and gives it up: over and over, acknowledging nothing.
#[test]
fn a_peer_that_acknowledges_nothing_is_told_a_bounded_number_of_things() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let name = "a";
    let open = Frame::Open {
        salt: 0,
        mode: Mode::Ordered,
        name,
    };
    let channel = hash::channel_hash(0, name).0;
    let id = sim.ids[0];
    let rounds = u32::try_from(UNACKNOWLEDGED_MAX).unwrap() + 2_000;
    for number in 1..=rounds {
        let stream = StreamId(2 * number);
        give(&mut sim, (Flags::RELIABLE, stream.0, channel, 0), &open);
        while sim.nodes[1].poll().is_some() {}
        sim.nodes[1].refuse_stream(sim.now_ns, id, stream).unwrap();
        lose_all(&mut sim);
        let reset = Frame::Reset { stream, offset: 0 };
        give(&mut sim, (Flags::CONTROL, 0, 0, 0), &reset);
        while sim.nodes[1].poll().is_some() {}
        lose_all(&mut sim);
    }
    assert_eq!(sim.nodes[1].kept(id), (UNACKNOWLEDGED_MAX, 0));

    // A probe still goes out; once the peer answers it, all is well again.
    sim.run(2 * SECOND);
    assert_eq!(sim.nodes[1].kept(id), (0, 0));
    assert!(sim.is_connected(0, 1) && sim.is_connected(1, 0));
    let stream = sim.open(1, 0, &spec("log", Mode::Ordered));
    sim.send(1, 0, stream, b"still here").unwrap();
    sim.run(SECOND);
    assert_eq!(sim.messages(0), [b"still here"]);
    let refused = |e: &Event| matches!(e, Event::StreamRefused { .. });
    assert!(!sim.told[0].iter().any(refused));
}

/// What an acknowledgement costs its reader does not go by its bytes: one a packet is taken.
#[test]
fn a_packet_of_many_acknowledgements_is_refused() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let id = sim.ids[1];
    let mut received = RangeSet::default();
    received.insert(0, 1);
    let mut one = Vec::new();
    write_ack(&mut one, &received, 0);
    let label = (Flags::CONTROL, 0, 0, 0);
    for (count, expected) in [
        (1, Handled::Accepted),
        (2, Handled::Dropped(DropReason::FrameMalformed)),
    ] {
        let bytes = sim.nodes[0].seal_raw(id, label, &one.repeat(count));
        assert_eq!(sim.give(1, &bytes), expected, "{count}");
    }
    assert!(sim.is_connected(1, 0));
}
