//! What a proven peer can make a node keep has a bound.

use super::sim::{MS, SECOND, Sim, Weather, config, spec};
use crate::{
    CloseReason, DropReason, Event, Handled, Mode, Node, NodeLimits, SendError, Share,
    frame::{Frame, VARINT_MAX, write_ack},
    limits::{
        CLASS_QUEUE_BYTES, EVENT_HELD_BYTES, RECEIVE_RANGES_MAX, SESSION_ENTRIES_MAX,
        SESSION_WINDOW_BYTES, STREAM_QUEUE_BYTES, STREAM_WINDOW_BYTES, UNACKNOWLEDGED_MAX,
    },
};
use std::collections::BTreeSet;
use virga_ebpf::{
    hash,
    header::{Flags, Header, StreamId},
    limits::HEADER_BYTES,
};

/// Gives node 1 what node 0 seals by hand.
fn give(sim: &mut Sim, label: (Flags, u32, u16, usize), frame: &Frame<'_>) {
    let mut payload = Vec::new();
    frame.write(&mut payload);
    let id = sim.ids[1];
    let bytes = sim.nodes[0].seal_raw(id, label, &payload);
    let _ = sim.give(1, &bytes);
}

fn open(name: &str, mode: Mode) -> Frame<'_> {
    let salt = 0;
    Frame::Open { salt, mode, name }
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
    let mut one = Vec::new();
    write_ack(&mut one, &[(0, 1)], 0);
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

/// A member acknowledges all that was sent to it before it arrives: it is found out before it was sent much.
#[test]
fn who_acknowledges_what_has_not_arrived_is_left() {
    for seed in 0..20 {
        let mut sim = Sim::new(seed, 2, &NodeLimits::default(), Weather::CALM);
        sim.connect(0, 1);
        sim.keep_wire = true;
        sim.network.is_cut = true;
        let stream = sim.open(0, 1, &spec("log", Mode::Ordered));
        let id = sim.ids[0];
        let mut lies = 0;
        let sequence_of = |(from, bytes): &(usize, Vec<u8>)| {
            let header = Header::decode(bytes[..HEADER_BYTES].try_into().unwrap());
            (*from == 0).then_some(header.sequence)
        };
        while sim.is_connected(0, 1) {
            while sim.send(0, 1, stream, &[7; 1_000]).is_ok() {}
            sim.transmit();
            let newest = sim.wire.iter().filter_map(sequence_of).max();
            let mut payload = Vec::new();
            write_ack(&mut payload, &[(0, newest.unwrap_or(0) + 1)], 0);
            let lie = sim.nodes[1].seal_raw(id, (Flags::CONTROL, 0, 0, 0), &payload);
            let _ = sim.give(0, &lie);
            sim.listen();
            sim.now_ns += MS;
            lies += 1;
            assert!(lies < 50, "seed {seed}");
        }
        assert_eq!(sim.closed(0), [CloseReason::Violation], "seed {seed}");
        assert_eq!(sim.dropped(0, DropReason::NeverSent), 1);
        let sent = sim.nodes[0].counters().sent_datagrams;
        assert!(sent < 2_000, "{sent} packets for a liar, seed {seed}");
    }
}

/// Honest ends never meet what is left out, and it is few.
#[test]
fn sequences_left_out_cost_honest_ends_little() {
    let weather = Weather {
        loss: 5,
        reordering: 20,
        late_ns: 20 * MS,
        duplication: 5,
        ..Weather::CALM
    };
    let mut sim = Sim::new(3, 2, &NodeLimits::default(), weather);
    sim.connect(0, 1);
    sim.keep_wire = true;
    let stream = sim.open(0, 1, &spec("log", Mode::Ordered));
    for _ in 0..200 {
        while sim.send(0, 1, stream, &[7; 1_000]).is_ok() {}
        sim.run(100 * MS);
    }
    let headers = sim.wire.iter().filter(|(from, _)| *from == 0);
    let headers = headers.map(|(_, b)| Header::decode(b[..HEADER_BYTES].try_into().unwrap()));
    let sequences: BTreeSet<u64> = headers.map(|h| h.sequence).collect();
    let newest = *sequences.last().unwrap();
    let left_out = newest + 1 - *sequences.first().unwrap() - sequences.len() as u64;
    assert!(newest > 5_000, "{newest}");
    assert!(
        left_out > 5 && left_out < newest / 200,
        "{left_out} of {newest}"
    );
    assert!(sim.is_connected(0, 1) && sim.is_connected(1, 0));
    assert_eq!(sim.dropped(0, DropReason::NeverSent), 0);
}

/// Every other byte of many streams, as many packets as are taken; gives the one that is too much.
pub(super) fn crowd(sim: &mut Sim) -> Vec<u8> {
    let (id, name) = (sim.ids[1], "a");
    let channel = hash::channel_hash(0, name).0;
    let full = SESSION_ENTRIES_MAX / RECEIVE_RANGES_MAX;
    for number in 0..=full {
        let stream = 1_000 + 2 * u32::try_from(number).unwrap();
        let mut payload = Vec::new();
        open(name, Mode::Ordered).write(&mut payload);
        for n in 0..RECEIVE_RANGES_MAX as u64 {
            let (offset, bytes) = (1 + 2 * n, &b"x"[..]);
            Frame::Stream { offset, bytes }.write(&mut payload);
            if payload.len() < 1_100 && n + 1 < RECEIVE_RANGES_MAX as u64 {
                continue;
            }
            let label = (Flags::RELIABLE, stream, channel, 0);
            let packet = sim.nodes[0].seal_raw(id, label, &payload);
            payload.clear();
            if number == full {
                return packet;
            }
            assert_eq!(sim.give(1, &packet), Handled::Accepted, "stream {number}");
        }
    }
    unreachable!("the last stream is one too many")
}

/// Holes in many streams: bounded over all of them, and then the session ends.
#[test]
fn a_peer_that_leaves_holes_everywhere_is_left() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let too_much = crowd(&mut sim);
    assert!(sim.is_connected(1, 0));
    let reason = DropReason::Entries;
    assert_eq!(sim.give(1, &too_much), Handled::Dropped(reason));
    sim.run(SECOND);
    assert_eq!(sim.closed(1), [CloseReason::Violation]);
    assert_eq!(sim.dropped(1, reason), 1);
}

/// What a refused or given up stream kept is free again.
#[test]
fn streams_that_are_over_leave_room_for_others() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let _too_much = crowd(&mut sim);
    while sim.nodes[1].poll().is_some() {}
    let id = sim.ids[0];
    let now_ns = sim.now_ns;
    for number in 0..4 {
        let stream = StreamId(1_000 + 2 * number);
        if number % 2 == 0 {
            sim.nodes[1].refuse_stream(now_ns, id, stream).unwrap();
        } else {
            let offset = 2 * RECEIVE_RANGES_MAX as u64;
            let reset = Frame::Reset { stream, offset };
            give(&mut sim, (Flags::CONTROL, 0, 0, 0), &reset);
        }
    }
    let channel = hash::channel_hash(0, "a").0;
    for number in 0..3 {
        let stream = 3_000 + 2 * number;
        let label = (Flags::RELIABLE, stream, channel, 0);
        let (salt, mode, name) = (0, Mode::Ordered, "a");
        give(&mut sim, label, &Frame::Open { salt, mode, name });
        for n in 0..RECEIVE_RANGES_MAX as u64 {
            let (offset, bytes) = (1 + 2 * n, &b"x"[..]);
            give(&mut sim, label, &Frame::Stream { offset, bytes });
        }
    }
    assert!(sim.is_connected(1, 0));
}

/// Honest traffic never meets that bound, however many small messages are lost, late and unread.
#[test]
fn honest_holes_are_no_fault() {
    let weather = Weather {
        latency_ns: 50 * MS,
        loss: 30,
        reordering: 50,
        late_ns: 100 * MS,
        ..Weather::CALM
    };
    let mut sim = Sim::new(5, 2, &NodeLimits::default(), weather);
    sim.connect(0, 1);
    let modes = [Mode::Ordered, Mode::Unordered].into_iter().cycle();
    let streams: Vec<_> = modes
        .take(16)
        .map(|mode| sim.open(0, 1, &spec("log", mode)))
        .collect();
    for round in 0..400u32 {
        // The owner sleeps for half of the time.
        sim.deaf = if round % 100 < 50 { vec![1] } else { vec![] };
        for &stream in &streams {
            sim.send(0, 1, stream, &round.to_be_bytes()).unwrap();
            sim.run(MS / 2);
        }
    }
    sim.deaf.clear();
    sim.listen();
    let all = 400 * streams.len();
    assert!(sim.run_until(300 * SECOND, |s| s.messages(1).len() == all));
    assert!(sim.closed(1).is_empty());
    for reason in [DropReason::Entries, DropReason::Fragments] {
        assert_eq!(sim.dropped(1, reason), 0);
    }
}

/// A reliable unordered stream's frames that exceed what was granted, or contradict what was said: each
/// ends the session, with its reason.
#[test]
fn an_unordered_stream_s_lies_end_the_session() {
    let part = |offset, back, bytes| Frame::Part {
        offset,
        back,
        bytes,
    };
    let fin = |offset| Frame::Fin { offset };
    let whole = part(0, 0, &[0, 0, 0, 4, 1, 2, 3, 4]);
    let cases: &[(&str, &[Frame<'_>], DropReason)] = &[
        (
            "beyond the stream's grant",
            &[part(STREAM_WINDOW_BYTES, 0, b"x")],
            DropReason::Credit,
        ),
        (
            "the highest offset there is",
            &[part(VARINT_MAX - 1, VARINT_MAX - 1, b"x")],
            DropReason::Credit,
        ),
        (
            "a message larger than any",
            &[part(0, 0, &[0, 16, 0, 1])],
            DropReason::Credit,
        ),
        (
            "an end before what was sent",
            &[whole, fin(7)],
            DropReason::Credit,
        ),
        (
            "an end beyond the session's grant",
            &[whole, fin(SESSION_WINDOW_BYTES + 1)],
            DropReason::Credit,
        ),
        (
            "more after the end",
            &[part(4, 4, &[1, 2, 3]), fin(8), part(8, 0, b"x")],
            DropReason::Credit,
        ),
        (
            "a start within another message",
            &[part(0, 0, &[0, 0, 0, 9, 1]), part(6, 0, b"x")],
            DropReason::Overlap,
        ),
        (
            "a message around another's start",
            &[part(6, 0, b"x"), part(0, 0, &[0, 0, 0, 9, 1])],
            DropReason::Overlap,
        ),
    ];
    for &(name, frames, reason) in cases {
        let mut sim = Sim::pair(&NodeLimits::default());
        let (id, channel) = (sim.ids[1], hash::channel_hash(0, "a").0);
        let mut last = Handled::Accepted;
        for frame in frames {
            assert_eq!(last, Handled::Accepted, "{name}");
            let mut payload = Vec::new();
            open("a", Mode::Unordered).write(&mut payload);
            frame.write(&mut payload);
            let label = (Flags::RELIABLE, 1_000, channel, 0);
            let bytes = sim.nodes[0].seal_raw(id, label, &payload);
            last = sim.give(1, &bytes);
        }
        assert_eq!(last, Handled::Dropped(reason), "{name}");
        sim.run(SECOND);
        assert_eq!(sim.closed(1), [CloseReason::Violation], "{name}");
    }
}

/// Several unordered streams, each within its own grant, may not use more than the session's.
#[test]
fn unordered_streams_share_the_session_s_grant() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let (id, channel) = (sim.ids[1], hash::channel_hash(0, "a").0);
    let full = u32::try_from(SESSION_WINDOW_BYTES / STREAM_WINDOW_BYTES).unwrap();
    for number in 0..=full {
        let offset = if number < full {
            STREAM_WINDOW_BYTES - 1
        } else {
            0
        };
        let mut payload = Vec::new();
        open("a", Mode::Unordered).write(&mut payload);
        let (back, bytes) = (0, &b"x"[..]);
        Frame::Part {
            offset,
            back,
            bytes,
        }
        .write(&mut payload);
        let label = (Flags::RELIABLE, 1_000 + 2 * number, channel, 0);
        let bytes = sim.nodes[0].seal_raw(id, label, &payload);
        let expected = match number < full {
            true => Handled::Accepted,
            false => Handled::Dropped(DropReason::Credit),
        };
        assert_eq!(sim.give(1, &bytes), expected, "stream {number}");
    }
    sim.run(SECOND);
    assert_eq!(sim.closed(1), [CloseReason::Violation]);
    let closed = sim.nodes[1].counters().closed;
    assert_eq!(closed[CloseReason::Violation as usize], 1);
}

/// Who grants more than there is gets no more than the windows and queues here allow; what it takes back
/// is not taken back.
#[test]
fn credit_without_end_overflows_nothing() {
    for mode in [Mode::Ordered, Mode::Unordered] {
        let mut sim = Sim::pair(&NodeLimits::default());
        let stream = sim.open(0, 1, &spec("log", mode));
        sim.send(0, 1, stream, b"first").unwrap();
        sim.run(SECOND);
        sim.network.is_cut = true;
        let id = sim.ids[0];
        let no_stream = StreamId(77);
        for bytes in [VARINT_MAX, VARINT_MAX - 1, 0] {
            for frame in [
                Frame::SessionCredit { bytes },
                Frame::StreamCredit { stream, bytes },
                Frame::StreamCredit {
                    stream: no_stream,
                    bytes,
                },
            ] {
                let mut payload = Vec::new();
                frame.write(&mut payload);
                let label = (Flags::CONTROL, 0, 0, 0);
                let bytes = sim.nodes[1].seal_raw(id, label, &payload);
                assert_eq!(sim.give(0, &bytes), Handled::Accepted, "{frame:?}");
            }
        }
        let mut queued = 0;
        while sim.send(0, 1, stream, &[7; 1_000]).is_ok() {
            queued += 1_004;
        }
        assert!(queued <= STREAM_QUEUE_BYTES, "{queued}");
        sim.transmit();
        let status = sim.nodes[0].sessions().next().unwrap();
        assert!(status.path.in_flight_bytes <= status.path.window_bytes + 2_500);
        assert!(sim.is_connected(0, 1));
    }
}

/// However small they are, a class's messages take no more than its room.
#[test]
fn what_is_kept_of_each_message_counts_for_its_class() {
    let mut sim = Sim::pair(&NodeLimits::default());
    sim.network.is_cut = true;
    let mut taken = 0;
    for name in ["a", "b", "c", "d", "e", "f"] {
        let stream = sim.open(0, 1, &spec(name, Mode::Unreliable));
        while taken <= CLASS_QUEUE_BYTES / EVENT_HELD_BYTES {
            match sim.send(0, 1, stream, b"") {
                Ok(()) => taken += 1,
                Err(SendError::Full) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert_eq!(taken, CLASS_QUEUE_BYTES / EVENT_HELD_BYTES);
    // All of it is free again once it has gone.
    sim.network.is_cut = false;
    sim.run(20 * SECOND);
    let queued: usize = sim.nodes[0].classes().map(|(_, _, queued)| queued).sum();
    assert_eq!(queued, 0);
}

/// Streams come and go all the time: what is kept of those that are over does not grow.
#[test]
fn nothing_is_kept_of_streams_that_are_over() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let id = sim.ids[1];
    for round in 0..50 {
        let stream = sim.open(0, 1, &spec("a", Mode::ALL[round % Mode::ALL.len()]));
        sim.send(0, 1, stream, b"all there is").unwrap();
        sim.run(20 * MS);
        let now_ns = sim.now_ns;
        let over = match round % 2 {
            0 => sim.nodes[0].finish_stream(now_ns, id, stream),
            _ => sim.nodes[0].reset_stream(now_ns, id, stream),
        };
        over.unwrap();
        sim.run(50 * MS);
        assert_eq!(sim.nodes[0].ends_to_send(id), 0, "round {round}");
    }
    let status = sim.nodes[0].sessions().next().unwrap();
    assert_eq!(status.streams_sending, 0);
}

/// Peers are spread by chance: a worker that got more than its part of the node's sessions has places for them.
#[test]
fn every_peer_of_a_worker_gets_its_session() {
    const NODES: u8 = 25;
    let limits = NodeLimits {
        sessions_max: 24,
        half_open_max: 20,
        ..NodeLimits::default()
    };
    let mut sim = Sim::new(1, NODES, &limits, Weather::CALM);
    let ids = sim.ids.clone();
    let owned = |share: Share| ids[1..].iter().filter(|&&id| share.owns(id)).count();
    let share = Share::split(8).max_by_key(|&share| owned(share)).unwrap();
    assert!(owned(share) > limits.sessions_max / 8, "it got too few");
    let mut own = config(0, NODES, 1, &limits);
    own.share = share;
    sim.nodes[0] = Node::new(own, 0).unwrap();
    let (own_id, peers) = ids.split_first().unwrap();
    for (peer, &id) in (1..).zip(peers) {
        if share.owns(id) {
            sim.nodes[peer].connect(0, *own_id).unwrap();
        }
    }
    sim.run(10 * SECOND);
    for (peer, &id) in (1..).zip(peers) {
        assert_eq!(sim.is_connected(0, peer), share.owns(id), "{peer}");
    }
}
