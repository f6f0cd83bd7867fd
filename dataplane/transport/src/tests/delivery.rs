//! What is sent arrives: in order, once, whole, whatever the network does.

use super::sim::{MS, SECOND, Sim, Weather, config, spec};
use crate::{DropReason, Event, Mode, NodeLimits, SendError, limits};

fn message(index: usize, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| u8::try_from((index * 31 + at * 7) % 251).unwrap())
        .collect()
}

#[test]
fn events_and_messages_arrive() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let (sure, quick) = (
        spec("log/a", Mode::Ordered),
        spec("metrics/a", Mode::Unreliable),
    );
    let (sure_id, quick_id) = (sim.open(0, 1, &sure), sim.open(0, 1, &quick));
    sim.send(0, 1, sure_id, b"sure").unwrap();
    sim.send(0, 1, quick_id, b"quick").unwrap();
    let (now_ns, id) = (sim.now_ns, sim.ids[1]);
    sim.nodes[0].send_control(now_ns, id, b"control").unwrap();
    sim.run(50 * MS);
    let peer = sim.ids[0];
    let opened = |stream, spec: &crate::StreamSpec| Event::StreamOpened {
        peer,
        stream,
        name: spec.name.clone(),
        salt: 0,
        mode: spec.mode,
    };
    assert_eq!(
        sim.told[1],
        [
            Event::Control {
                peer,
                message: b"control"[..].into()
            },
            opened(sure_id, &sure),
            Event::Message {
                peer,
                stream: sure_id,
                event: b"sure"[..].into()
            },
            opened(quick_id, &quick),
            Event::Message {
                peer,
                stream: quick_id,
                event: b"quick"[..].into()
            },
        ]
    );
}

#[test]
fn waiting_events_share_a_packet_and_a_lone_one_does_not_wait() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let stream = sim.open(0, 1, &spec("metrics/a", Mode::Unreliable));
    sim.send(0, 1, stream, b"first").unwrap();
    assert_eq!(sim.transmit(), 1, "a lone event goes at once");
    for n in 0..20u8 {
        sim.send(0, 1, stream, &[n; 40]).unwrap();
    }
    sim.keep_wire = true;
    assert_eq!(
        sim.transmit(),
        1,
        "20 events of 40 bytes and an open frame fit one packet"
    );
    assert_eq!(
        sim.wire[0].1[46..48],
        20u16.to_be_bytes(),
        "event_count is true"
    );
    sim.run(50 * MS);
    assert_eq!(sim.messages(1).len(), 21);
}

#[test]
fn a_storm_changes_no_byte_and_no_order() {
    for seed in 0..4 {
        let mut sim = Sim::new(seed, 2, &NodeLimits::default(), Weather::STORM);
        sim.connect(0, 1);
        let streams = [
            sim.open(0, 1, &spec("a", Mode::Ordered)),
            sim.open(0, 1, &spec("b", Mode::Ordered)),
        ];
        let back = sim.open(1, 0, &spec("c", Mode::Ordered));
        let sent: Vec<_> = (0..120).map(|n| message(n, n * 13 % 3_000)).collect();
        for (n, bytes) in sent.iter().enumerate() {
            sim.send(0, 1, streams[n % 2], bytes).unwrap();
            sim.send(1, 0, back, bytes).unwrap();
        }
        let done = sim.run_until(300 * SECOND, |sim| {
            sim.messages(1).len() == sent.len() && sim.messages(0).len() == sent.len()
        });
        assert!(
            done,
            "seed {seed}: {} of {}",
            sim.messages(1).len(),
            sent.len()
        );
        for (which, &id) in streams.iter().enumerate() {
            let got = sim.told[1].iter().filter_map(|event| match event {
                Event::Message { stream, event, .. } if *stream == id => Some(event),
                _ => None,
            });
            let expected: Vec<_> = sent.iter().skip(which).step_by(2).collect();
            assert_eq!(got.collect::<Vec<_>>(), expected, "seed {seed}");
        }
        assert_eq!(sim.messages(0), sent, "seed {seed}");
        assert!(
            sim.nodes[0]
                .sessions()
                .next()
                .unwrap()
                .retransmitted_packets
                > 0
        );
        assert!(sim.dropped(1, DropReason::Forged) + sim.dropped(1, DropReason::Replayed) > 0);
    }
}

/// A message that was lost keeps no other waiting; all arrive, each once and whole.
#[test]
fn unordered_messages_arrive_as_soon_as_they_are_whole() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let stream = sim.open(0, 1, &spec("a", Mode::Unordered));
    sim.send(0, 1, stream, b"open").unwrap();
    sim.run(50 * MS);
    sim.network.is_cut = true;
    sim.send(0, 1, stream, b"lost at first").unwrap();
    sim.transmit();
    sim.network.is_cut = false;
    sim.send(0, 1, stream, b"next").unwrap();
    sim.run(8 * MS);
    assert_eq!(sim.messages(1), [&b"open"[..], b"next"]);
    sim.run(SECOND);
    assert_eq!(sim.messages(1).last().unwrap(), b"lost at first");

    for seed in 0..4 {
        let mut sim = Sim::new(seed, 2, &NodeLimits::default(), Weather::STORM);
        sim.connect(0, 1);
        let stream = sim.open(0, 1, &spec("a", Mode::Unordered));
        let mut sent: Vec<_> = (0..150).map(|n| message(n, n * 37 % 5_000)).collect();
        for bytes in &sent {
            sim.send(0, 1, stream, bytes).unwrap();
            sim.run(MS);
        }
        let (now_ns, id) = (sim.now_ns, sim.ids[1]);
        sim.nodes[0].finish_stream(now_ns, id, stream).unwrap();
        let finished = |e: &Event| matches!(e, Event::StreamFinished { .. });
        assert!(sim.run_until(300 * SECOND, |sim| sim.told[1].iter().any(finished)));
        let mut got = sim.messages(1);
        assert_ne!(got, sent, "seed {seed}: none overtook another");
        got.sort();
        sent.sort();
        assert_eq!(got, sent, "seed {seed}");
        sim.run(20 * SECOND);
        let (a, b) = (
            sim.nodes[0].sessions().next(),
            sim.nodes[1].sessions().next(),
        );
        assert_eq!(
            (a.unwrap().streams_sending, b.unwrap().streams_receiving),
            (0, 0)
        );
    }
}

/// A large unreliable message needs every one of its packets: on a calm path all arrive.
#[test]
fn large_unreliable_messages_are_cut_and_put_together() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let stream = sim.open(0, 1, &spec("blobs", Mode::Unreliable));
    let largest = limits::MESSAGE_BYTES_MAX;
    let sizes = [5, 1_300, 0, largest, 64, 64, 1_140, 900, 3_000, largest];
    let sent: Vec<_> = (0..sizes.len()).map(|n| message(n, sizes[n])).collect();
    for bytes in &sent {
        while sim.send(0, 1, stream, bytes).is_err() {
            sim.run(MS);
        }
    }
    assert!(sim.run_until(60 * SECOND, |sim| sim.messages(1).len() == sent.len()));
    assert_eq!(sim.messages(1), sent);
    assert_eq!(sim.nodes[1].counters().dropped_total(), 0);
    let too_large = sim.send(0, 1, stream, &vec![0; largest + 1]);
    assert_eq!(too_large, Err(SendError::TooLarge { max_bytes: largest }));
}

/// Those that lost a fragment are given up: in time, in bounded memory, and counted.
#[test]
fn unreliable_messages_that_lost_a_fragment_are_given_up() {
    let mut sim = Sim::new(9, 2, &NodeLimits::default(), Weather::STORM);
    sim.connect(0, 1);
    let stream = sim.open(0, 1, &spec("blobs", Mode::Unreliable));
    let sent: Vec<_> = (0..300).map(|n| message(n, 2_000 + n)).collect();
    for bytes in &sent {
        while sim.send(0, 1, stream, bytes).is_err() {
            sim.run(MS);
        }
        sim.run(20 * MS);
        let (messages, _) = sim.nodes[1].unfinished(sim.ids[0]);
        assert!(messages <= limits::REASSEMBLY_MESSAGES_MAX);
    }
    sim.run(20 * SECOND);
    let got = sim.messages(1);
    assert!((60..280).contains(&got.len()), "{} arrived", got.len());
    assert!(got.iter().all(|message| sent.contains(message)), "whole");
    assert_eq!(sim.nodes[1].unfinished(sim.ids[0]), (0, 0));
    assert!(sim.dropped(1, DropReason::Unfinished) > 10);
    assert!(sim.closed(1).is_empty());
}

#[test]
fn large_messages_pass_and_larger_are_refused() {
    let weather = Weather {
        loss: 5,
        ..Weather::STORM
    };
    let mut sim = Sim::new(7, 2, &NodeLimits::default(), weather);
    sim.connect(0, 1);
    let stream = sim.open(0, 1, &spec("blobs", Mode::Ordered));
    let sent: Vec<_> = (0..3)
        .map(|n| message(n, limits::MESSAGE_BYTES_MAX))
        .collect();
    for bytes in &sent {
        while sim.send(0, 1, stream, bytes) == Err(SendError::Full) {
            sim.run(10 * MS);
        }
    }
    let too_large = sim.send(0, 1, stream, &vec![0; limits::MESSAGE_BYTES_MAX + 1]);
    assert_eq!(
        too_large,
        Err(SendError::TooLarge {
            max_bytes: limits::MESSAGE_BYTES_MAX
        })
    );
    assert!(sim.run_until(300 * SECOND, |sim| sim.messages(1).len() == 3));
    assert_eq!(sim.messages(1), sent);
}

#[test]
fn unreliable_events_are_lost_not_repeated_and_never_doubled() {
    let mut sim = Sim::new(3, 2, &NodeLimits::default(), Weather::STORM);
    sim.connect(0, 1);
    let stream = sim.open(0, 1, &spec("metrics/a", Mode::Unreliable));
    for n in 0..500u32 {
        sim.send(0, 1, stream, &n.to_be_bytes()).unwrap();
        sim.run(MS);
    }
    sim.run(SECOND);
    let mut got = sim.messages(1);
    let arrived = got.len();
    assert!((300..480).contains(&arrived), "{arrived} of 500 arrived");
    got.sort();
    got.dedup();
    assert_eq!(got.len(), arrived, "none twice");
}

#[test]
fn a_peer_that_stops_reading_stops_its_sender_and_holds_little() {
    for mode in [Mode::Ordered, Mode::Unordered] {
        stop_reading(mode);
    }
}

fn stop_reading(mode: Mode) {
    let mut sim = Sim::pair(&NodeLimits::default());
    let stream = sim.open(0, 1, &spec("log", mode));
    let other = sim.open(0, 1, &spec("other", Mode::Ordered));
    sim.deaf.push(1);
    let (mut sent, big) = (0, vec![5; 10_000]);
    for _ in 0..500 {
        match sim.send(0, 1, stream, &big) {
            Ok(()) => sent += 1,
            Err(error) => assert_eq!(error, SendError::Full),
        }
        sim.run(10 * MS);
    }
    let window = usize::try_from(limits::STREAM_WINDOW_BYTES).unwrap();
    assert!(
        sent * 10_004 <= window + limits::STREAM_QUEUE_BYTES,
        "{sent} were taken"
    );
    assert!(sim.nodes[0].counters().sends_refused > 0);
    sim.send(0, 1, other, b"another stream still flows")
        .unwrap();
    let (now_ns, id) = (sim.now_ns, sim.ids[1]);
    sim.nodes[0]
        .send_control(now_ns, id, b"and control")
        .unwrap();
    sim.run(SECOND);
    sim.deaf.clear();
    assert!(sim.run_until(60 * SECOND, |sim| sim.messages(1).len() == sent + 1));
    assert!(sim.told[0].contains(&Event::Writable { peer: sim.ids[1] }));
    assert!(
        sim.told[1]
            .iter()
            .any(|e| matches!(e, Event::Control { .. }))
    );
}

#[test]
fn a_full_event_queue_is_refused_to_the_caller() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let stream = sim.open(0, 1, &spec("metrics/a", Mode::Unreliable));
    let taken = (0..99_999)
        .take_while(|_| sim.send(0, 1, stream, &[1; 64]).is_ok())
        .count();
    let each = 64 + limits::EVENT_HELD_BYTES;
    assert_eq!(taken, limits::STREAM_QUEUE_BYTES / each);
    assert_eq!(sim.send(0, 1, stream, &[1; 64]), Err(SendError::Full));
    sim.run(SECOND);
    assert!(sim.told[0].contains(&Event::Writable { peer: sim.ids[1] }));
    assert_eq!(sim.messages(1).len(), taken);
    assert!(
        sim.runs.iter().any(|&(bytes, segment)| bytes > 5 * segment),
        "runs for GSO"
    );
}

#[test]
fn a_finished_stream_ends_after_its_last_message() {
    for weather in [Weather::CALM, Weather::STORM] {
        let mut sim = Sim::new(5, 2, &NodeLimits::default(), weather);
        sim.connect(0, 1);
        let stream = sim.open(0, 1, &spec("log", Mode::Ordered));
        for n in 0..50 {
            sim.send(0, 1, stream, &message(n, 500)).unwrap();
        }
        let (now_ns, id) = (sim.now_ns, sim.ids[1]);
        sim.nodes[0].finish_stream(now_ns, id, stream).unwrap();
        assert_eq!(sim.send(0, 1, stream, b"late"), Err(SendError::NoStream));
        let finished = Event::StreamFinished {
            peer: sim.ids[0],
            stream,
        };
        assert!(sim.run_until(60 * SECOND, |sim| sim.told[1].back() == Some(&finished)));
        assert_eq!(sim.messages(1).len(), 50);
        sim.run(10 * SECOND);
        let (a, b) = (
            sim.nodes[0].sessions().next(),
            sim.nodes[1].sessions().next(),
        );
        assert_eq!(
            (a.unwrap().streams_sending, b.unwrap().streams_receiving),
            (0, 0)
        );
    }
}

#[test]
fn a_refused_stream_is_told_to_its_sender_and_costs_no_credit() {
    let mut sim = Sim::pair(&NodeLimits::default());
    sim.network.weather.jitter_ns = 10 * MS;
    for _ in 0..30 {
        let stream = sim.open(0, 1, &spec("log", Mode::Ordered));
        for n in 0..40 {
            sim.send(0, 1, stream, &message(n, 10_000)).unwrap();
        }
        sim.run_until(SECOND, |sim| {
            sim.told[1]
                .iter()
                .any(|e| matches!(e, Event::Message { .. }))
        });
        let (now_ns, id) = (sim.now_ns, sim.ids[0]);
        sim.nodes[1].refuse_stream(now_ns, id, stream).unwrap();
        sim.run(SECOND);
        let refused = Event::StreamRefused {
            peer: sim.ids[1],
            stream,
        };
        assert!(sim.told[0].contains(&refused));
        assert_eq!(sim.send(0, 1, stream, b"more"), Err(SendError::NoStream));
        sim.told[1].clear();
    }
    assert!(sim.dropped(1, DropReason::StreamClosed) > 0);
    let status = sim.nodes[1].sessions().next().unwrap();
    assert_eq!(status.streams_receiving, 0);
    let stream = sim.open(0, 1, &spec("log", Mode::Ordered));
    sim.send(0, 1, stream, b"credit is left").unwrap();
    sim.run(SECOND);
    assert_eq!(sim.messages(1), [b"credit is left"]);
}

#[test]
fn hundreds_of_streams_of_large_messages_never_wait_for_each_other() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let streams: Vec<_> = (0..40)
        .map(|_| sim.open(0, 1, &spec("log", Mode::Ordered)))
        .collect();
    for &stream in &streams {
        sim.send(0, 1, stream, &message(1, 200_000)).unwrap();
    }
    assert!(sim.run_until(120 * SECOND, |sim| sim.messages(1).len() == streams.len()));
}

/// Empty messages cost hardly any credit, so that their number is bounded apart.
#[test]
fn a_million_empty_messages_are_held_as_bytes_not_as_events() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let stream = sim.open(0, 1, &spec("log", Mode::Ordered));
    sim.deaf.push(1);
    let mut sent = 0;
    for _ in 0..50_000 {
        sent += usize::from(sim.send(0, 1, stream, b"").is_ok());
    }
    sim.run(5 * SECOND);
    assert_eq!(sim.nodes[1].unread(), limits::EVENTS_UNREAD_MAX);
    let (now_ns, id) = (sim.now_ns, sim.ids[1]);
    sim.nodes[0].finish_stream(now_ns, id, stream).unwrap();
    sim.deaf.clear();
    let finished = Event::StreamFinished {
        peer: sim.ids[0],
        stream,
    };
    assert!(sim.run_until(60 * SECOND, |sim| sim.told[1].contains(&finished)));
    assert_eq!(sim.messages(1).len(), sent);
}

/// What is left of the credit before it is raised takes the largest message.
#[test]
fn large_messages_of_any_size_never_wait_for_each_other() {
    let largest = limits::MESSAGE_BYTES_MAX;
    for first in [
        1,
        131_064,
        131_072,
        largest - 8,
        largest - 5,
        largest - 4,
        largest,
    ] {
        let mut sim = Sim::pair(&NodeLimits::default());
        let stream = sim.open(0, 1, &spec("log", Mode::Ordered));
        for bytes in [first, largest, largest] {
            while sim.send(0, 1, stream, &vec![1; bytes]) == Err(SendError::Full) {
                sim.run(MS);
            }
            let (id, control) = (sim.ids[1], vec![2; bytes]);
            while sim.nodes[0].send_control(sim.now_ns, id, &control) == Err(SendError::Full) {
                sim.run(MS);
            }
        }
        let controls = |s: &Sim| {
            let is_control = |e: &&Event| matches!(e, Event::Control { .. });
            s.told[1].iter().filter(is_control).count()
        };
        let all = |s: &Sim| s.messages(1).len() == 3 && controls(s) == 3;
        assert!(sim.run_until(60 * SECOND, all), "after {first} bytes");
    }
}

/// Opens `count` streams from node 0, each filled to its brim, and refuses every one of them.
fn refuse_full_streams(sim: &mut Sim, count: usize) {
    for _ in 0..count {
        let stream = sim.open(0, 1, &spec("forbidden", Mode::Ordered));
        while sim.send(0, 1, stream, &[1; 65_532]).is_ok() {}
    }
    refuse_all(sim);
}

/// Node 1 refuses every stream that it hears of.
fn refuse_all(sim: &mut Sim) {
    let peer = sim.ids[0];
    for _ in 0..400 {
        sim.run(MS);
        for event in std::mem::take(&mut sim.told[1]) {
            if let Event::StreamOpened { stream, .. } = event {
                let now_ns = sim.now_ns;
                sim.nodes[1].refuse_stream(now_ns, peer, stream).unwrap();
            }
        }
    }
}

#[test]
fn refused_streams_give_the_sessions_credit_back() {
    let mut sim = Sim::pair(&NodeLimits::default());
    for _ in 0..6 {
        refuse_full_streams(&mut sim, 4);
    }
    let stream = sim.open(0, 1, &spec("allowed", Mode::Ordered));
    sim.send(0, 1, stream, b"hello").unwrap();
    assert!(sim.run_until(SECOND, |s| s.messages(1) == [b"hello"]));
    assert_eq!(sim.nodes[0].sessions().next().unwrap().streams_sending, 1);
}

#[test]
fn a_refusal_makes_the_other_streams_writable() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let waiting = sim.open(0, 1, &spec("allowed", Mode::Ordered));
    for _ in 0..8 {
        let stream = sim.open(0, 1, &spec("forbidden", Mode::Ordered));
        while sim.send(0, 1, stream, &[1; 65_532]).is_ok() {}
    }
    assert_eq!(sim.send(0, 1, waiting, b"x"), Err(SendError::Full));
    refuse_all(&mut sim);
    let writable = |e: &Event| matches!(e, Event::Writable { .. });
    assert!(sim.told[0].iter().any(writable));
    assert_eq!(sim.send(0, 1, waiting, b"x"), Ok(()));
}

/// A sender that may open more streams than its receiver takes is told which ones are not.
#[test]
fn streams_beyond_the_receivers_bound_are_refused_and_the_rest_flows() {
    for opener in 0..2 {
        let few = NodeLimits {
            streams_max: 2,
            ..NodeLimits::default()
        };
        let mut sim = Sim::new(1, 2, &NodeLimits::default(), Weather::CALM);
        let reader = 1 - opener;
        let number = u8::try_from(reader).unwrap();
        sim.nodes[reader] = crate::Node::new(config(number, 2, 1, &few), 0).unwrap();
        sim.connect(0, 1);
        let open = |sim: &mut Sim| {
            let stream = sim.open(opener, reader, &spec("log", Mode::Ordered));
            sim.send(opener, reader, stream, b"first").unwrap();
            stream
        };
        for _ in 0..1_000 {
            open(&mut sim);
        }
        sim.run(5 * SECOND);
        let refused = |e: &&Event| matches!(e, Event::StreamRefused { .. });
        assert_eq!(sim.told[opener].iter().filter(refused).count(), 998);
        assert_eq!(sim.messages(reader).len(), 2);
        let opened = |event: &Event| match event {
            Event::StreamOpened { stream, .. } => Some(*stream),
            _ => None,
        };
        let taken: Vec<_> = sim.told[reader].iter().filter_map(opened).collect();
        assert_eq!(taken.len(), 2);
        let before = sim.nodes[opener].sessions().next().unwrap();
        assert_eq!(before.streams_sending, 2);
        sim.run(100 * SECOND);
        let after = sim.nodes[opener].sessions().next().unwrap();
        assert_eq!(after.retransmitted_packets, before.retransmitted_packets);
        // One that is finished makes room for another.
        let (now_ns, id) = (sim.now_ns, sim.ids[reader]);
        sim.nodes[opener]
            .finish_stream(now_ns, id, taken[0])
            .unwrap();
        sim.run(SECOND);
        open(&mut sim);
        sim.send(opener, reader, taken[1], b"second").unwrap();
        sim.run(SECOND);
        assert_eq!(sim.messages(reader).len(), 4);
        assert!(sim.closed(0).is_empty() && sim.closed(1).is_empty());
    }
}
