//! Loss detection by hand: sequences and times against RFC 9002's rules.

use super::*;
use crate::{
    config::Congestion,
    frame::{Frame, Frames, write_ack},
    io::clock::Clock,
    limits::{DATAGRAM_BYTES_MIN, WINDOW_SEGMENTS_MIN},
    received::Received,
};

const MS: u64 = 1_000_000;

/// One direction of a session.
struct Line {
    recovery: Recovery,
    path: Path,
}

impl Line {
    fn new() -> Self {
        Self {
            recovery: Recovery::new(),
            path: Path::new(0, Congestion::Cubic, DATAGRAM_BYTES_MIN, 0),
        }
    }

    fn send(&mut self, sequence: u64, time_ns: u64) {
        let content = Content {
            range: (sequence, sequence + 1),
            ..Content::default()
        };
        let departure = self.path.on_sent(time_ns, 1_000, 1_000);
        self.recovery.on_sent(Sent {
            sequence,
            time_ns,
            bytes: 1_000,
            window_bytes: 1_000,
            departure,
            content,
        });
    }

    /// What an acknowledgement of `sequences` makes acknowledged and lost.
    fn ack(&mut self, now_ns: u64, sequences: &[u64]) -> Result<(Vec<u64>, Vec<u64>), NeverSent> {
        let mut received = Received::default();
        sequences.iter().for_each(|&s| received.insert(s));
        let mut bytes = Vec::new();
        write_ack(&mut bytes, received.ranges(), 0);
        let Some(Ok(Frame::Ack(frame))) = Frames::new(&bytes).next() else {
            panic!("not an ack")
        };
        let (mut acked, mut lost) = (Vec::new(), Vec::new());
        let path = &mut self.path;
        self.recovery
            .on_ack(now_ns, &frame, 100_000, path, &mut acked, &mut lost)?;
        let names = |contents: Vec<Content>| contents.iter().map(|c| c.range.0).collect();
        Ok((names(acked), names(lost)))
    }

    fn timeout(&self) -> Option<u64> {
        self.recovery.timeout(&self.path)
    }

    fn on_timeout(&mut self, now_ns: u64, lost: &mut Vec<Content>) -> Due {
        self.recovery.on_timeout(now_ns, &mut self.path, lost)
    }

    fn window(&self) -> u64 {
        self.path.status(None).window_bytes
    }

    fn in_flight(&self) -> u64 {
        self.path.status(None).in_flight_bytes
    }
}

#[test]
fn three_newer_packets_make_one_lost() {
    let mut r = Line::new();
    for s in 0..5 {
        r.send(s, 0);
    }
    assert_eq!(r.ack(10 * MS, &[1, 2]), Ok((vec![1, 2], vec![])));
    assert_eq!(r.ack(11 * MS, &[1, 2, 3]), Ok((vec![3], vec![0])));
    assert_eq!(r.recovery.outstanding(), 1);
    assert_eq!(
        r.ack(12 * MS, &[0, 4]),
        Ok((vec![4, 0], vec![])),
        "0 was only late"
    );
    assert_eq!((r.recovery.outstanding(), r.in_flight()), (0, 0));
    assert_eq!(r.timeout(), None);
}

#[test]
fn nine_eighths_of_a_round_trip_make_one_lost() {
    let mut r = Line::new();
    r.send(0, 0);
    r.send(1, 0);
    assert_eq!(r.ack(80 * MS, &[1]), Ok((vec![1], vec![])));
    assert_eq!(r.timeout(), Some(90 * MS));
    let mut lost = Vec::new();
    assert_eq!(r.on_timeout(89 * MS, &mut lost), Due::Nothing);
    assert_eq!(r.on_timeout(90 * MS, &mut lost), Due::Lost);
    assert_eq!(lost.len(), 1);
}

#[test]
fn probes_back_off_and_lose_nothing() {
    let mut r = Line::new();
    r.send(0, 0);
    let mut waits = Vec::new();
    let mut now_ns = 0;
    for _ in 0..3 {
        let at = r.timeout().unwrap();
        waits.push(at - now_ns);
        now_ns = at;
        let mut again = Vec::new();
        assert_eq!(r.on_timeout(now_ns, &mut again), Due::Probe);
        assert_eq!(again.len(), 1);
    }
    assert_eq!(waits, [305 * MS, 610 * MS, 1_220 * MS]);
    assert_eq!(r.recovery.outstanding(), 1);
    assert_eq!(r.ack(now_ns + MS, &[0]), Ok((vec![0], vec![])));
}

#[test]
fn the_window_doubles_then_shrinks_once_a_round_trip() {
    let mut r = Line::new();
    let start = r.window();
    let mut sequence = 0;
    while r.path.may_send(0) {
        r.send(sequence, 0);
        sequence += 1;
    }
    r.ack(10 * MS, &[0, 1]).unwrap();
    assert_eq!(r.window(), start + 2_000);
    let grown = r.window();
    r.ack(11 * MS, &[0, 1, 5]).unwrap();
    let shrunk = r.window();
    assert!(shrunk <= grown * 7 / 10 + 1_000, "2 was lost");
    r.ack(12 * MS, &[8]).unwrap();
    assert_eq!(
        r.window(),
        shrunk,
        "more losses of the same round trip count once"
    );
}

#[test]
fn an_acknowledgement_of_the_future_is_refused() {
    let mut r = Line::new();
    r.send(0, 0);
    assert_eq!(r.ack(MS, &[100_000]), Err(NeverSent));
    assert_eq!(r.recovery.outstanding(), 1);
}

/// A sequence that was left out is nobody's to acknowledge, and does not count among the newer ones.
#[test]
fn an_acknowledgement_of_what_was_left_out_is_refused() {
    let mut generator = Generator::new(&[5; 32], b"skip");
    let mut r = Line::new();
    let (mut sequence, mut left_out) = (0, None);
    while left_out.is_none_or(|s| sequence < s + 3) {
        r.send(sequence, 0);
        r.recovery.choose_skip(sequence, &mut generator);
        let next = r.recovery.next_sequence(sequence);
        left_out = left_out.or((next > sequence + 1).then_some(sequence + 1));
        sequence = next;
    }
    let left_out = left_out.unwrap();
    let before: Vec<u64> = (0..left_out - 1).collect();
    assert!(r.ack(10 * MS, &before).is_ok());
    // Two newer ones, the second three sequences on: not lost yet.
    let newer = [left_out + 1, left_out + 2];
    assert_eq!(r.ack(10 * MS, &newer), Ok((newer.to_vec(), vec![])));
    let all: Vec<u64> = (0..=left_out).collect();
    assert_eq!(r.ack(11 * MS, &all), Err(NeverSent));
}

/// A round trip of 10 ms makes a probe time-out of 35 ms (RFC 9002, 6.2.1 with our delay).
#[test]
fn losses_over_three_probe_times_start_the_window_anew() {
    for (last_ms, acked, is_persistent) in
        [(170, None, true), (100, None, false), (170, Some(2), false)]
    {
        let mut r = Line::new();
        r.send(0, 0);
        r.ack(10 * MS, &[0]).unwrap();
        for (sequence, at_ms) in [(1, 20), (2, 60), (3, last_ms), (4, 200), (5, 200), (6, 200)] {
            r.send(sequence, at_ms * MS);
        }
        if let Some(sequence) = acked {
            // Loss by time is not due yet, so that this only makes a gap.
            r.ack(61 * MS, &[sequence]).unwrap();
        }
        r.ack(210 * MS, &[6]).unwrap();
        let is_least = r.window() == WINDOW_SEGMENTS_MIN * DATAGRAM_BYTES_MIN as u64;
        assert_eq!(
            is_least, is_persistent,
            "{last_ms} ms, {acked:?} acknowledged"
        );
    }
}

/// What was taken for lost and arrives: the window is as before, and next time one waits longer.
#[test]
fn a_packet_that_was_only_late_changes_nothing_for_long() {
    let mut r = Line::new();
    for sequence in 0..10 {
        r.send(sequence, 0);
    }
    r.ack(10 * MS, &[1, 2]).unwrap();
    let before = r.window();
    assert_eq!(r.ack(11 * MS, &[3, 4, 5]), Ok((vec![3, 4, 5], vec![0])));
    assert!(r.window() < (before + 3_000) * 8 / 10);
    r.ack(12 * MS, &[0]).unwrap();
    assert!(r.window() >= before, "the reduction is undone");
    assert_eq!(r.in_flight(), 4_000);
    assert_eq!(
        (
            r.path.status(None).lost_packets,
            r.path.status(None).spurious_losses
        ),
        (1, 1)
    );
    // Five newer ones were acknowledged then: six are needed now.
    for sequence in 10..20 {
        r.send(sequence, 13 * MS);
    }
    let some = [6, 7, 8, 9, 11, 12, 13, 14, 15];
    assert!(r.ack(14 * MS, &some).unwrap().1.is_empty());
    assert_eq!(r.ack(14 * MS, &[16]), Ok((vec![16], vec![10])));
    // Sixteen true losses in a row, and all is as at the start.
    let mut sequence = 20;
    for round in 2..20 {
        for n in 0..10 {
            r.send(sequence + n, 20 * round * MS);
        }
        let got: Vec<u64> = (1..10).map(|n| sequence + n).collect();
        r.ack((20 * round + 10) * MS, &got).unwrap();
        sequence += 10;
    }
    assert_eq!(r.recovery.packet_threshold, PACKET_THRESHOLD);
    assert_eq!(r.recovery.time_threshold, TIME_THRESHOLD_EIGHTHS);
}

/// Only when all that the reduction answered has arrived is it undone.
#[test]
fn one_true_loss_keeps_the_reduction() {
    let mut r = Line::new();
    for sequence in 0..10 {
        r.send(sequence, 0);
    }
    r.ack(10 * MS, &[5, 6, 7, 8]).unwrap();
    let reduced = r.window();
    r.ack(11 * MS, &[0, 1, 2, 3]).unwrap();
    assert!(r.window() < reduced + 2_000, "4 is still lost");
    r.ack(12 * MS, &[4]).unwrap();
    assert!(r.window() > reduced + 2_000);
}

/// One packet in a hundred is lost, and a window is on its way: what an acknowledgement costs goes by what
/// it tells, not by the window.
#[test]
fn acknowledgements_cost_the_same_in_any_window() {
    /// Nanoseconds of an acknowledgement of eight packets, with so many on their way: the least of some.
    fn cost_ns(window: u64) -> u64 {
        let turn = || {
            let mut r = Line::new();
            let (mut sequence, mut received) = (0, Received::default());
            let acks = 2_000;
            let (clock, mut spent_ns) = (Clock::start(), 0);
            for n in 1..=acks {
                while sequence < 8 * n + window {
                    r.send(sequence, sequence * 10_000);
                    sequence += 1;
                }
                let arrived = (8 * (n - 1)..8 * n).filter(|s| s % 100 != 7);
                arrived.for_each(|s| received.insert(s));
                let mut bytes = Vec::new();
                write_ack(&mut bytes, received.ranges(), 0);
                let Some(Ok(Frame::Ack(ack))) = Frames::new(&bytes).next() else {
                    panic!("not an ack")
                };
                let (mut acked, mut lost) = (Vec::new(), Vec::new());
                let path = &mut r.path;
                let now_ns = (8 * n + window) * 10_000;
                let began_ns = clock.now_ns();
                r.recovery
                    .on_ack(now_ns, &ack, u64::MAX, path, &mut acked, &mut lost)
                    .unwrap();
                spent_ns += clock.now_ns() - began_ns;
            }
            spent_ns / acks
        };
        (0..5).map(|_| turn()).min().unwrap()
    }
    let (small, large) = (cost_ns(16), cost_ns(16_000));
    assert!(
        large < 10 * small,
        "{large} ns, and {small} ns in a small window"
    );
}

/// A hostile or broken peer that acknowledges at random: nothing is counted twice.
#[test]
fn acknowledgements_in_any_order_leave_the_books_balanced() {
    let mut dice = Generator::new(&[3; 32], b"acks");
    let mut r = Line::new();
    let (mut sequence, mut now_ns) = (0, 0);
    for _ in 0..5_000 {
        now_ns += dice.below(20) * MS;
        for _ in 0..dice.below(4) {
            r.send(sequence, now_ns);
            sequence += 1 + dice.below(2);
        }
        let some: Vec<u64> = (0..dice.below(6))
            .map(|_| sequence.saturating_sub(dice.below(40)))
            .collect();
        if !some.is_empty() {
            r.ack(now_ns, &some).unwrap();
        }
        if r.timeout().is_some_and(|at| at <= now_ns) {
            r.on_timeout(now_ns, &mut Vec::new());
        }
        let flying = r
            .recovery
            .sent
            .iter()
            .filter(|(f, _)| *f == Fate::Flying)
            .count();
        assert_eq!(r.recovery.outstanding(), flying);
        // What is done with is gone, but for what overtook a packet that still flies.
        let front = r.recovery.sent.front().map(|(fate, _)| *fate);
        assert!(matches!(front, None | Some(Fate::Flying)));
        let lost = r.recovery.late.len();
        assert_eq!(r.in_flight(), flying as u64 * 1_000);
        assert!(lost <= LOST_KEPT_MAX + 1);
    }
}
