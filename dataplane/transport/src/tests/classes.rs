//! Classes: the urgent goes first, and nobody starves.

use super::sim::{MS, SECOND, Sim, spec};
use crate::{Event, Mode, NodeLimits, StreamSpec};
use virga_ebpf::{
    header::{Header, StreamId},
    limits::HEADER_BYTES,
};

const MODES: [Mode; 4] = Mode::ALL;

fn classed(priority: u8, mode: Mode) -> StreamSpec {
    StreamSpec {
        priority,
        ..spec("a", mode)
    }
}

/// Puts as much into each stream as it takes.
fn fill(sim: &mut Sim, streams: &[StreamId]) {
    for &stream in streams {
        while sim.send(0, 1, stream, &[7; 1_000]).is_ok() {}
    }
}

/// Bytes that arrived on a stream.
fn arrived(sim: &Sim, of: StreamId) -> usize {
    let bytes = |event: &Event| match event {
        Event::Message { stream, event, .. } if *stream == of => event.len(),
        _ => 0,
    };
    sim.told[1].iter().map(bytes).sum()
}

#[test]
fn of_a_full_session_each_class_gets_its_share() {
    for mode in MODES {
        let mut sim = Sim::pair(&NodeLimits::default());
        let streams: Vec<_> = (0..7)
            .map(|class| sim.open(0, 1, &classed(class, mode)))
            .collect();
        fill(&mut sim, &streams);
        sim.run(50 * MS);
        sim.told[1].clear();
        for _ in 0..50 {
            fill(&mut sim, &streams);
            sim.run(MS);
        }
        let shares: Vec<_> = streams.iter().map(|&s| arrived(&sim, s)).collect();
        let all: usize = shares.iter().sum();
        assert!(all > 300_000, "{all} bytes in all");
        for (class, &share) in shares.iter().enumerate() {
            let fair = all * (class + 1) / 28;
            let near = fair * 3 / 4..fair * 5 / 4;
            assert!(near.contains(&share), "{mode:?}: {shares:?}");
        }
    }
}

/// While bulk fills the window, control and an urgent message are through after a round trip, and bulk
/// goes on while urgent messages never end.
#[test]
fn bulk_keeps_nobody_waiting_and_is_kept_waiting_by_nobody() {
    for mode in MODES {
        let mut sim = Sim::pair(&NodeLimits::default());
        let bulk: Vec<_> = (0..3).map(|_| sim.open(0, 1, &classed(0, mode))).collect();
        let urgent = sim.open(0, 1, &classed(6, Mode::Ordered));
        fill(&mut sim, &bulk);
        sim.send(0, 1, urgent, b"opened").unwrap();
        sim.run(100 * MS);
        for round in 0..10 {
            fill(&mut sim, &bulk);
            sim.told[1].clear();
            let (now_ns, id) = (sim.now_ns, sim.ids[1]);
            sim.nodes[0].send_control(now_ns, id, b"control").unwrap();
            sim.send(0, 1, urgent, b"now").unwrap();
            // One way is 5 ms: at most one there and back until the window has room, and then there.
            sim.run(16 * MS);
            let control = |e: &Event| matches!(e, Event::Control { .. });
            assert!(sim.told[1].iter().any(control), "{mode:?}, round {round}");
            assert_eq!(arrived(&sim, urgent), 3, "{mode:?}, round {round}");
            assert!(sim.messages(1).len() > 2, "{mode:?}: bulk goes on");
        }
        sim.told[1].clear();
        for _ in 0..60 {
            fill(&mut sim, &[urgent]);
            fill(&mut sim, &bulk);
            sim.run(MS);
        }
        for &stream in &bulk {
            let all: Vec<_> = bulk.iter().map(|&s| arrived(&sim, s)).collect();
            assert!(arrived(&sim, stream) > 0, "{mode:?}: {all:?}");
        }
    }
}

/// The end of a stream of which all is sent takes no room in the window, and waits for none.
#[test]
fn an_end_does_not_wait_for_the_window() {
    for mode in MODES {
        let mut sim = Sim::pair(&NodeLimits::default());
        let bulk = sim.open(0, 1, &classed(6, Mode::Ordered));
        let short = sim.open(0, 1, &classed(0, mode));
        sim.send(0, 1, short, b"all").unwrap();
        sim.run(SECOND);
        fill(&mut sim, &[bulk]);
        sim.transmit();
        let (now_ns, id) = (sim.now_ns, sim.ids[1]);
        sim.nodes[0].finish_stream(now_ns, id, short).unwrap();
        // No acknowledgement is back before 10 ms.
        sim.run(6 * MS);
        let is_over =
            |e: &Event| matches!(e, Event::StreamFinished { stream, .. } if *stream == short);
        assert!(sim.told[1].iter().any(is_over), "{mode:?}");
    }
}

/// Within a class no stream gets a packet more than one ahead of the others, at any time.
#[test]
fn streams_of_one_class_are_served_in_turn() {
    let mut sim = Sim::pair(&NodeLimits::default());
    sim.keep_wire = true;
    let streams: Vec<_> = (0..8)
        .map(|_| sim.open(0, 1, &classed(3, Mode::Ordered)))
        .collect();
    for &stream in &streams {
        sim.send(0, 1, stream, &vec![1; 500_000]).unwrap();
    }
    assert!(sim.run_until(60 * SECOND, |sim| sim.messages(1).len() == streams.len()));
    let mut packets = vec![0u32; streams.len()];
    let data = sim.wire.iter().filter(|(from, _)| *from == 0);
    for (_, datagram) in data {
        let header = Header::decode(datagram[..HEADER_BYTES].try_into().unwrap());
        let Some(at) = streams.iter().position(|&s| s == header.stream_id) else {
            continue;
        };
        // A message's last packet is short, and nothing follows it.
        let ahead = packets
            .iter()
            .map(|&others| packets[at] - others.min(packets[at]));
        assert!(ahead.max() <= Some(1), "{packets:?}, and one more of {at}");
        packets[at] += 1;
    }
    assert!(packets.iter().all(|&n| n > 300), "{packets:?}");
}

#[test]
fn each_class_counts_its_packets_bytes_and_events_at_both_ends() {
    let mut sim = Sim::pair(&NodeLimits::default());
    for (class, count) in [(1, 3), (6, 5)] {
        let stream = sim.open(0, 1, &classed(class, Mode::Ordered));
        for _ in 0..count {
            sim.send(0, 1, stream, &[7; 100]).unwrap();
        }
    }
    let queued = |sim: &Sim| -> Vec<usize> { sim.nodes[0].classes().map(|c| c.2).collect() };
    let waiting = queued(&sim);
    assert!(waiting[1] >= 300 && waiting[6] >= 500, "{waiting:?}");
    assert_eq!(waiting[0] + waiting[7], 0);
    sim.run(SECOND);
    assert_eq!(queued(&sim), [0; 8]);
    let counted = |node: usize| -> Vec<_> { sim.nodes[node].classes().map(|c| c.1).collect() };
    let (sent, received) = (counted(0), counted(1));
    for (class, events) in [(1, 3), (6, 5)] {
        assert_eq!(sent[class].sent_events, events);
        assert_eq!(received[class].received_events, events);
        assert_eq!(sent[class].sent_packets, received[class].received_packets);
        assert_eq!(sent[class].sent_bytes, received[class].received_bytes);
        assert!(sent[class].sent_bytes > 100 * events);
        assert_eq!(sent[class].retransmitted_packets, 0);
    }
    assert!(sent[7].sent_packets > 0 && received[7].received_packets > 0);
    assert_eq!(sent[3], crate::ClassCounters::default());
}

#[test]
fn messages_are_followed_until_they_are_sent_and_acknowledged() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let reliable = sim.open(0, 1, &classed(2, Mode::Unordered));
    let unreliable = sim.open(0, 1, &classed(5, Mode::Unreliable));
    for _ in 0..10 {
        for stream in [reliable, unreliable] {
            // Of one call's messages the last; of those that come meanwhile none.
            sim.send(0, 1, stream, &[7; 100]).unwrap();
            sim.send(0, 1, stream, &[7; 100]).unwrap();
        }
        sim.run(SECOND);
    }
    // More than a window: the last byte goes out after an acknowledgement.
    let bulk = sim.open(0, 1, &classed(6, Mode::Ordered));
    sim.send(0, 1, bulk, &vec![7; 500_000]).unwrap();
    let queued = |sim: &Sim| sim.nodes[0].sessions().map(|s| s.queued_bytes).sum::<u64>();
    assert!(queued(&sim) >= 500_000);
    sim.run(10 * SECOND);
    assert_eq!(queued(&sim), 0);

    let of = |class: u8| {
        let mut all = sim.nodes[0].class_times();
        let (_, times) = all.find(|(c, _)| *c == class).unwrap();
        (times.sent_after.summary(), times.acked_after.summary())
    };
    let (sent, acked) = of(2);
    assert_eq!((sent.count, acked.count), (10, 10));
    // Sent at once; the round trip takes 10 ms.
    assert!(
        sent.max_ns < MS && acked.p50_ns >= 10 * MS,
        "{sent:?} {acked:?}"
    );
    let (sent, acked) = of(5);
    assert_eq!((sent.count, acked.count), (10, 0));
    let (sent, acked) = of(6);
    assert_eq!((sent.count, acked.count), (1, 1));
    assert!(
        sent.max_ns > 9 * MS && acked.max_ns > sent.max_ns,
        "{sent:?} {acked:?}"
    );
    assert_eq!(of(1).0.count, 0);
    assert_eq!(
        sim.nodes[1]
            .class_times()
            .map(|c| c.1.sent_after.summary().count)
            .sum::<u64>(),
        0
    );
    let times = sim.nodes[0].sessions().find_map(|s| s.round_trips).unwrap();
    assert!(times.count >= 10 && times.p50_ns > 9 * MS, "{times:?}");
}
