//! Loss detection by hand: sequences and times against RFC 9002's rules.

use super::*;
use crate::{
    frame::{Frame, Frames, write_ack},
    ranges::RangeSet,
};

const MS: u64 = 1_000_000;

fn send(recovery: &mut Recovery, sequence: u64, time_ns: u64) {
    let content = Content {
        range: (sequence, sequence + 1),
        ..Content::default()
    };
    recovery.on_sent(Sent {
        sequence,
        time_ns,
        window_bytes: 1_000,
        content,
    });
}

/// What an acknowledgement of `sequences` makes acknowledged and lost.
fn ack(
    recovery: &mut Recovery,
    now_ns: u64,
    sequences: &[u64],
) -> Result<(Vec<u64>, Vec<u64>), NeverSent> {
    let mut set = RangeSet::default();
    for &s in sequences {
        set.insert(s, s + 1);
    }
    let mut bytes = Vec::new();
    write_ack(&mut bytes, &set, 0);
    let Some(Ok(Frame::Ack(frame))) = Frames::new(&bytes).next() else {
        panic!("not an ack")
    };
    let (mut acked, mut lost) = (Vec::new(), Vec::new());
    recovery.on_ack(now_ns, &frame, 100, &Path::new(), &mut acked, &mut lost)?;
    let names = |contents: Vec<Content>| contents.iter().map(|c| c.range.0).collect();
    Ok((names(acked), names(lost)))
}

#[test]
fn three_newer_packets_make_one_lost() {
    let mut r = Recovery::new();
    for s in 0..5 {
        send(&mut r, s, 0);
    }
    assert_eq!(ack(&mut r, 10 * MS, &[1, 2]), Ok((vec![1, 2], vec![])));
    assert_eq!(ack(&mut r, 11 * MS, &[1, 2, 3]), Ok((vec![3], vec![0])));
    assert_eq!(r.outstanding(), 1);
    assert_eq!(
        ack(&mut r, 12 * MS, &[0, 4]),
        Ok((vec![4], vec![])),
        "0 is forgotten"
    );
    assert_eq!((r.outstanding(), r.in_flight_bytes), (0, 0));
    assert_eq!(r.timeout(), None);
}

#[test]
fn nine_eighths_of_a_round_trip_make_one_lost() {
    let mut r = Recovery::new();
    send(&mut r, 0, 0);
    send(&mut r, 1, 0);
    assert_eq!(ack(&mut r, 80 * MS, &[1]), Ok((vec![1], vec![])));
    assert_eq!(r.timeout(), Some(90 * MS));
    let mut lost = Vec::new();
    assert_eq!(r.on_timeout(89 * MS, &mut lost), Due::Nothing);
    assert_eq!(r.on_timeout(90 * MS, &mut lost), Due::Lost);
    assert_eq!(lost.len(), 1);
}

#[test]
fn probes_back_off_and_lose_nothing() {
    let mut r = Recovery::new();
    send(&mut r, 0, 0);
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
    assert_eq!(r.outstanding(), 1);
    assert_eq!(ack(&mut r, now_ns + MS, &[0]), Ok((vec![0], vec![])));
}

#[test]
fn the_window_doubles_then_halves_once_a_round_trip() {
    let mut r = Recovery::new();
    let start = r.window_bytes;
    let mut sequence = 0;
    while r.may_send(&Path::new()) {
        send(&mut r, sequence, 0);
        sequence += 1;
    }
    ack(&mut r, 10 * MS, &[0, 1]).unwrap();
    assert_eq!(r.window_bytes, start + 2_000);
    let grown = r.window_bytes;
    ack(&mut r, 11 * MS, &[0, 1, 5]).unwrap();
    let halved = r.window_bytes;
    assert!(halved <= grown.div_ceil(2) + 1_000, "2 was lost");
    ack(&mut r, 12 * MS, &[8]).unwrap();
    assert_eq!(
        r.window_bytes, halved,
        "more losses of the same round trip count once"
    );
}

#[test]
fn an_acknowledgement_of_the_future_is_refused() {
    let mut r = Recovery::new();
    send(&mut r, 0, 0);
    assert_eq!(ack(&mut r, MS, &[100]), Err(NeverSent));
    assert_eq!(r.outstanding(), 1);
}

/// A round trip of 10 ms makes a probe time-out of 35 ms (RFC 9002, 6.2.1 with our delay).
#[test]
fn losses_over_three_probe_times_start_the_window_anew() {
    for (last_ms, acked, is_persistent) in
        [(170, None, true), (100, None, false), (170, Some(2), false)]
    {
        let mut r = Recovery::new();
        send(&mut r, 0, 0);
        ack(&mut r, 10 * MS, &[0]).unwrap();
        for (sequence, at_ms) in [(1, 20), (2, 60), (3, last_ms), (4, 200), (5, 200), (6, 200)] {
            send(&mut r, sequence, at_ms * MS);
        }
        if let Some(sequence) = acked {
            // Loss by time is not due yet, so that this only makes a gap.
            ack(&mut r, 61 * MS, &[sequence]).unwrap();
        }
        ack(&mut r, 210 * MS, &[6]).unwrap();
        let is_least = r.window_bytes == WINDOW_BYTES_MIN;
        assert_eq!(
            is_least, is_persistent,
            "{last_ms} ms, {acked:?} acknowledged"
        );
    }
}
