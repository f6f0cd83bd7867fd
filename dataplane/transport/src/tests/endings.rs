//! How messages, streams and sessions end: by deadline, reset, and after all is through.

use super::sim::{MS, SECOND, Sim, Weather, spec};
use crate::{
    CloseReason, Event, Fate, Mode, NodeLimits, OpenError, Receipt, SendError, Taken, limits,
};
use virga_ebpf::header::StreamId;

/// Queues messages that expire `for_ns` from now.
fn send_for(sim: &mut Sim, stream: StreamId, messages: &[Vec<u8>], for_ns: u64) -> Taken {
    let (now_ns, id) = (sim.now_ns, sim.ids[1]);
    let messages = messages.iter().map(Vec::as_slice);
    sim.nodes[0].send_all(now_ns, id, stream, messages, Some(now_ns + for_ns))
}

fn expired(sim: &Sim) -> u64 {
    let messages = |event: &Event| match event {
        Event::Expired { messages, .. } => *messages,
        _ => 0,
    };
    sim.told[0].iter().map(messages).sum()
}

/// What waits behind a full window is given up when its time is over; the rest arrives, in order.
#[test]
fn a_message_may_expire_unsent() {
    for mode in Mode::ALL {
        let mut sim = Sim::pair(&NodeLimits::default());
        let stream = sim.open(0, 1, &spec("a", mode));
        sim.send(0, 1, stream, b"opened").unwrap();
        sim.run(50 * MS);
        sim.network.is_cut = true;
        // These fill the window, and the last of them is partly sent.
        for n in 0..200u8 {
            sim.send(0, 1, stream, &[n; 1_000]).unwrap();
        }
        sim.transmit();
        let urgent: Vec<_> = (0..50u8).map(|n| vec![n; 300]).collect();
        let taken = send_for(&mut sim, stream, &urgent, 20 * MS);
        assert_eq!((taken.messages, taken.refused), (50, None));
        sim.send(0, 1, stream, b"patient").unwrap();
        assert_eq!(expired(&sim), 0);
        sim.run(19 * MS);
        assert_eq!(expired(&sim), 0, "{mode:?}: not before its time");
        sim.run(3 * MS);
        assert_eq!(expired(&sim), 50, "{mode:?}: the owner is told");
        assert_eq!(sim.nodes[0].counters().messages_expired, 50);
        sim.network.is_cut = false;
        let is_patient = |m: &Vec<u8>| m == b"patient";
        assert!(sim.run_until(60 * SECOND, |sim| sim.messages(1).iter().any(is_patient)));
        sim.run(5 * SECOND);
        let got = sim.messages(1);
        assert!(
            !got.iter().any(|m| m.len() == 300),
            "{mode:?}: none went out"
        );
        let whole = got.iter().filter(|m| m.len() == 1_000).count();
        if mode.is_reliable() {
            assert_eq!(whole, 200, "{mode:?}");
        }
        // What was given up takes no credit and no room.
        for _ in 0..3 {
            sim.told[1].clear();
            let large = vec![9; limits::MESSAGE_BYTES_MAX];
            sim.send(0, 1, stream, &large).unwrap();
            assert!(sim.run_until(60 * SECOND, |sim| sim.messages(1) == [large.clone()]));
        }
    }
}

/// An ordered message that has begun to travel arrives whole, however late.
#[test]
fn what_is_partly_sent_is_not_cut_out_of_a_reliable_stream() {
    for mode in [Mode::Ordered, Mode::Unordered] {
        let mut sim = Sim::new(3, 2, &NodeLimits::default(), Weather::STORM);
        sim.connect(0, 1);
        let stream = sim.open(0, 1, &spec("a", mode));
        let large = vec![vec![1; 400_000], vec![2; 10], vec![3; 10]];
        let _all = send_for(&mut sim, stream, &large, 50 * MS);
        sim.send(0, 1, stream, b"last").unwrap();
        assert!(sim.run_until(300 * SECOND, |sim| sim.messages(1).len() == 2));
        let mut got = sim.messages(1);
        got.sort_by_key(Vec::len);
        assert_eq!(got, [b"last".to_vec(), large[0].clone()], "{mode:?}");
        assert_eq!(expired(&sim), 2);
        let (now_ns, id) = (sim.now_ns, sim.ids[1]);
        sim.nodes[0].finish_stream(now_ns, id, stream).unwrap();
        let finished = |e: &Event| matches!(e, Event::StreamFinished { .. });
        assert!(sim.run_until(60 * SECOND, |sim| sim.told[1].iter().any(finished)));
    }
}

/// A finished stream whose last messages expire ends all the same.
#[test]
fn a_stream_of_which_all_expired_still_ends() {
    for mode in Mode::ALL {
        let mut sim = Sim::pair(&NodeLimits::default());
        let stream = sim.open(0, 1, &spec("a", mode));
        sim.send(0, 1, stream, b"opened").unwrap();
        sim.run(50 * MS);
        let taken = send_for(&mut sim, stream, &vec![vec![1; 100]; 5], 0);
        assert_eq!(taken.messages, 5);
        let (now_ns, id) = (sim.now_ns, sim.ids[1]);
        sim.nodes[0].finish_stream(now_ns, id, stream).unwrap();
        sim.run(SECOND);
        assert_eq!(sim.messages(1), [b"opened"], "{mode:?}");
        assert_eq!(expired(&sim), 5, "{mode:?}");
        let finished = |e: &Event| matches!(e, Event::StreamFinished { .. });
        assert!(sim.told[1].iter().any(finished), "{mode:?}");
        let status = sim.nodes[0].sessions().next().unwrap();
        assert_eq!(status.streams_sending, 0, "{mode:?}");
    }
}

#[test]
fn a_reset_stream_is_gone_and_gives_all_back() {
    for mode in Mode::ALL {
        let mut sim = Sim::pair(&NodeLimits::default());
        let mut resets = 0;
        for _ in 0..20 {
            let stream = sim.open(0, 1, &spec("a", mode));
            while sim.send(0, 1, stream, &[1; 60_000]).is_ok() {}
            sim.run(30 * MS);
            let (now_ns, id) = (sim.now_ns, sim.ids[1]);
            sim.nodes[0].reset_stream(now_ns, id, stream).unwrap();
            assert_eq!(
                sim.nodes[0].reset_stream(now_ns, id, stream),
                Err(SendError::NoStream)
            );
            assert_eq!(sim.send(0, 1, stream, b"late"), Err(SendError::NoStream));
            sim.run(SECOND);
            let reset = |e: &&Event| matches!(e, Event::StreamReset { .. });
            resets += sim.told[1].iter().filter(reset).count();
            sim.told[1].clear();
            let ends = [0, 1].map(|at| sim.nodes[at].sessions().next().unwrap());
            assert_eq!((ends[0].streams_sending, ends[1].streams_receiving), (0, 0));
        }
        assert_eq!(resets, 20, "{mode:?}");
        // 20 streams of 2 MiB: more than the session's credit and the class's room.
        let stream = sim.open(0, 1, &spec("a", mode));
        sim.send(0, 1, stream, &vec![2; limits::MESSAGE_BYTES_MAX])
            .unwrap();
        assert!(sim.run_until(60 * SECOND, |sim| sim.messages(1).len() == 1));
        assert!(sim.closed(0).is_empty() && sim.closed(1).is_empty());
    }
}

#[test]
fn a_drained_session_closes_once_the_peer_has_everything() {
    let mut sim = Sim::new(5, 2, &NodeLimits::default(), Weather::STORM);
    sim.connect(0, 1);
    let streams = Mode::ALL.map(|mode| sim.open(0, 1, &spec("a", mode)));
    for n in 0..100u8 {
        for stream in streams {
            sim.send(0, 1, stream, &[n; 2_000]).unwrap();
        }
    }
    let (now_ns, id) = (sim.now_ns, sim.ids[1]);
    sim.nodes[0].send_control(now_ns, id, b"bye").unwrap();
    sim.nodes[0]
        .drain(now_ns, id, now_ns + 600 * SECOND)
        .unwrap();
    assert_eq!(
        sim.nodes[0].open_stream(now_ns, id, &spec("b", Mode::Ordered)),
        Err(OpenError::NoSession(id))
    );
    assert_eq!(sim.send(0, 1, streams[0], b"x"), Err(SendError::NoStream));
    assert_eq!(
        sim.nodes[0].send_control(now_ns, id, b"x"),
        Err(SendError::NoSession)
    );
    assert!(sim.run_until(600 * SECOND, |sim| !sim.closed(0).is_empty()));
    assert_eq!(sim.closed(0), [CloseReason::Local]);
    sim.run(SECOND);
    let arrived = |of: StreamId| {
        let is_of = |e: &&Event| matches!(e, Event::Message { stream, .. } if *stream == of);
        sim.told[1].iter().filter(is_of).count()
    };
    assert_eq!([arrived(streams[1]), arrived(streams[2])], [100, 100]);
    let control = |e: &Event| matches!(e, Event::Control { .. });
    assert!(sim.told[1].iter().any(control));
}

#[test]
fn a_drain_ends_in_time_and_says_that_not_all_came_through() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let stream = sim.open(0, 1, &spec("a", Mode::Ordered));
    sim.send(0, 1, stream, b"x").unwrap();
    sim.run(50 * MS);
    sim.network.is_cut = true;
    sim.send(0, 1, stream, b"never").unwrap();
    let (now_ns, id) = (sim.now_ns, sim.ids[1]);
    sim.nodes[0].drain(now_ns, id, now_ns + 2 * SECOND).unwrap();
    sim.run(SECOND);
    assert!(sim.closed(0).is_empty());
    sim.run(SECOND + MS);
    assert_eq!(sim.closed(0), [CloseReason::Unfinished]);

    // An idle session has nothing to wait for; where there is none, there is nothing to drain.
    let mut sim = Sim::pair(&NodeLimits::default());
    let (now_ns, id) = (sim.now_ns, sim.ids[1]);
    sim.nodes[0].drain(now_ns, id, now_ns + SECOND).unwrap();
    sim.run(50 * MS);
    assert_eq!(sim.closed(0), [CloseReason::Local]);
    let again = sim.nodes[0].drain(sim.now_ns, id, sim.now_ns + SECOND);
    assert_eq!(again, Err(SendError::NoSession));
    sim.run(60 * SECOND);
    assert!(!sim.is_connected(0, 1), "it is not tried again");
}

/// What a burst needed is given back once the session has been quiet for a while.
#[test]
fn an_idle_session_keeps_no_room_for_what_was_sent() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let streams = Mode::ALL.map(|mode| sim.open(0, 1, &spec("a", mode)));
    for stream in streams {
        sim.send(0, 1, stream, &vec![1; limits::MESSAGE_BYTES_MAX])
            .unwrap();
    }
    assert!(sim.run_until(60 * SECOND, |sim| sim.messages(1).len() == streams.len()));
    assert!(sim.nodes[0].queue_bytes(sim.ids[1]) > limits::MESSAGE_BYTES_MAX);
    sim.run(5 * SECOND);
    assert_eq!(sim.nodes[0].queue_bytes(sim.ids[1]), 0);
}

/// Sends a message with a receipt; it expires `for_ns` from now.
fn send_with_receipt(sim: &mut Sim, stream: StreamId, number: u64, for_ns: Option<u64>) {
    let (now_ns, id) = (sim.now_ns, sim.ids[1]);
    let deadline_ns = for_ns.map(|for_ns| now_ns + for_ns);
    let receipt = Receipt(number.try_into().unwrap());
    sim.nodes[0]
        .send_with_receipt(now_ns, (id, stream), &[7; 300], deadline_ns, receipt)
        .unwrap();
}

fn receipts(sim: &Sim) -> Vec<(u64, Fate)> {
    let of = |event: &Event| match event {
        Event::Receipt { receipt, fate, .. } => Some((receipt.0.get(), *fate)),
        _ => None,
    };
    sim.told[0].iter().filter_map(of).collect()
}

/// A receipt comes once the other node has the message, in the order of the stream, and not before.
#[test]
fn a_receipt_says_that_the_peer_has_the_message() {
    for mode in [Mode::Ordered, Mode::Unordered] {
        let mut sim = Sim::pair(&NodeLimits::default());
        let stream = sim.open(0, 1, &spec("a", mode));
        sim.network.is_cut = true;
        for number in 1..=20 {
            send_with_receipt(&mut sim, stream, number, None);
        }
        sim.run(200 * MS);
        assert_eq!(receipts(&sim), [], "{mode:?}: nothing has come through");
        sim.network.is_cut = false;
        assert!(sim.run_until(60 * SECOND, |sim| receipts(sim).len() == 20));
        let each: Vec<_> = (1..=20).map(|n| (n, Fate::Acknowledged)).collect();
        assert_eq!(receipts(&sim), each, "{mode:?}");
        assert_eq!(sim.messages(1).len(), 20, "{mode:?}");
    }
}

/// What expired is told by its own receipt, and an unreliable stream gives none.
#[test]
fn a_receipt_says_that_a_message_expired() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let stream = sim.open(0, 1, &spec("a", Mode::Ordered));
    sim.network.is_cut = true;
    for _ in 0..200 {
        sim.send(0, 1, stream, &[1; 1_000]).unwrap();
    }
    sim.transmit();
    send_with_receipt(&mut sim, stream, 1, Some(5 * MS));
    send_with_receipt(&mut sim, stream, 2, None);
    sim.run(20 * MS);
    assert_eq!(receipts(&sim), [(1, Fate::Expired)]);
    sim.network.is_cut = false;
    assert!(sim.run_until(60 * SECOND, |sim| receipts(sim).len() == 2));
    assert_eq!(receipts(&sim)[1], (2, Fate::Acknowledged));

    let mut sim = Sim::pair(&NodeLimits::default());
    let stream = sim.open(0, 1, &spec("a", Mode::Unreliable));
    send_with_receipt(&mut sim, stream, 1, None);
    sim.run(SECOND);
    assert_eq!((sim.messages(1).len(), receipts(&sim)), (1, Vec::new()));
}
