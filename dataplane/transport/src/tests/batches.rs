//! Many messages at once: how many are taken, and how many are kept for who does not read.

use super::sim::{MS, SECOND, Sim, spec};
use crate::{DropReason, Event, Mode, NodeLimits, SendError, limits};

/// The same bytes never follow each other.
fn message(index: usize, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| u8::try_from((index * 31 + at * 7) % 251).unwrap())
        .collect()
}

/// Empty ones take room as well; and of a batch the first are taken, in order, while the rest stays the caller's.
#[test]
fn a_batch_is_taken_as_far_as_there_is_room() {
    let mut sim = Sim::pair(&NodeLimits::default());
    for (mode, bytes) in [
        (Mode::Unreliable, 0),
        (Mode::Unreliable, 100),
        (Mode::Ordered, 100),
    ] {
        let stream = sim.open(0, 1, &spec("metrics/a", mode));
        let all: Vec<Vec<u8>> = (0..70_000).map(|n| message(n, bytes)).collect();
        let (mut at, mut calls) = (0, 0);
        while at < all.len() {
            let (now_ns, peer) = (sim.now_ns, sim.ids[1]);
            let rest = all[at..].iter().map(Vec::as_slice);
            let taken = sim.nodes[0].send_all(now_ns, peer, stream, rest, None);
            at += taken.messages;
            calls += 1;
            match taken.refused {
                Some(error) => assert_eq!(error, SendError::Full),
                None => assert_eq!(at, all.len()),
            }
            assert!(at > 0 && calls < 1_000);
            sim.told[0].clear();
            sim.run(100 * MS);
            assert!(at == all.len() || sim.told[0].contains(&Event::Writable { peer }));
        }
        assert!(calls > 1, "one call took all");
        sim.run(SECOND);
        // More empty ones may come at once than the receiver keeps.
        let came = sim.messages(1);
        let lost = usize::try_from(sim.dropped(1, DropReason::EventQueueFull)).unwrap();
        assert_eq!(came.len(), all.len() - if bytes == 0 { lost } else { 0 });
        assert!(bytes == 0 || came == all, "{mode:?}, {bytes} bytes");
        sim.told[1].clear();
    }
}

/// Those that came together are counted one by one.
#[test]
fn unread_unreliable_messages_are_bounded_and_the_rest_counted() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let stream = sim.open(0, 1, &spec("metrics/a", Mode::Unreliable));
    let sent: Vec<Vec<u8>> = (0..5_000).map(|n| message(n, 24)).collect();
    sim.deaf.push(1);
    for message in &sent {
        sim.send(0, 1, stream, message).unwrap();
    }
    sim.run(SECOND);
    // The stream's opening is an event, too.
    let kept = limits::EVENTS_UNREAD_MAX - 1;
    assert_eq!(sim.nodes[1].unread(), kept + 1);
    let lost = sim.dropped(1, DropReason::EventQueueFull);
    assert_eq!(lost, (sent.len() - kept) as u64);
    sim.deaf.clear();
    sim.run(SECOND);
    assert!(sim.messages(1) == sent[..kept]);
    sim.send(0, 1, stream, b"after").unwrap();
    sim.run(SECOND);
    assert_eq!(sim.messages(1).last().unwrap(), b"after");
}

/// Ordered messages are handed out from the packets that they came in, and those that must wait are kept.
#[test]
fn ordered_messages_of_any_size_come_through_a_reader_that_pauses() {
    let mut sim = Sim::pair(&NodeLimits::default());
    let stream = sim.open(0, 1, &spec("log", Mode::Ordered));
    let sizes = [0, 1, 100, 1_024, 9_000, 40_000];
    let all: Vec<Vec<u8>> = (0..12_000)
        .map(|n| message(n, sizes[n % 6 * (n % 7 / 6)]))
        .collect();
    let mut at = 0;
    for turn in 0..600 {
        let (now_ns, peer) = (sim.now_ns, sim.ids[1]);
        let rest = all[at..].iter().map(Vec::as_slice);
        at += sim.nodes[0]
            .send_all(now_ns, peer, stream, rest, None)
            .messages;
        sim.deaf.clear();
        if turn % 3 > 0 {
            sim.deaf.push(1);
        }
        sim.listen();
        sim.run(10 * MS);
        assert!(sim.nodes[1].unread() <= limits::EVENTS_UNREAD_MAX);
    }
    sim.deaf.clear();
    sim.listen();
    sim.run(SECOND);
    assert_eq!(at, all.len());
    assert!(sim.messages(1) == all);
}
