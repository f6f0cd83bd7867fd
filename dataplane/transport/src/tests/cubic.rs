//! CUBIC against the figures of RFC 9438.

use super::*;

const SEGMENT: u64 = 1_000;
const RTT_NS: u64 = 100_000_000;

/// A path in avoidance that loses each packet of number `period`: the average window in segments,
/// as RFC 9438, 5.1 counts it.
fn average_window(period: u64) -> f64 {
    let mut cubic = Cubic::new(SEGMENT);
    let mut now_ns = RTT_NS;
    cubic.on_congestion(now_ns, SEGMENT);
    let (mut since_loss, mut losses, mut windows, mut rounds) = (0, 0u64, 0.0, 0.0);
    while losses < 60 {
        let window = cubic.window() / SEGMENT;
        let sent_ns = now_ns;
        now_ns += RTT_NS;
        if losses >= 20 {
            windows += cubic.window() as f64 / SEGMENT as f64;
            rounds += 1.0;
        }
        let mut is_lost = false;
        for n in 0..window {
            since_loss += 1;
            if since_loss >= period {
                since_loss = 0;
                is_lost = true;
                continue;
            }
            cubic.on_acked(&Acked {
                now_ns: sent_ns + RTT_NS * (n + 1) / window,
                sent_ns: sent_ns + 1,
                bytes: SEGMENT,
                segment: SEGMENT,
                rtt_ns: RTT_NS,
                is_limited_by_owner: false,
            });
        }
        if is_lost {
            losses += 1;
            cubic.on_congestion(now_ns, SEGMENT);
        }
    }
    windows / rounds
}

/// RFC 9438, 5.1, table 1: a round trip of 0.1 s, C = 0.4.
#[test]
fn average_windows_are_the_published_ones() {
    for (period, published) in [(10_000, 187.0), (100_000, 1_054.0), (1_000_000, 5_926.0)] {
        let measured = average_window(period);
        let off = (measured - published).abs() / published;
        assert!(off < 0.1, "{measured:.0} where {published} is published");
    }
}

/// RFC 9438, 4.3: where CUBIC is slower than Reno, it does as Reno: 12 and 38 segments at one loss in
/// 100 and in 1,000 packets (RFC 9438, 5.1, table 1).
#[test]
fn short_paths_get_at_least_what_reno_would() {
    for (period, published) in [(100, 12.0), (1_000, 38.0)] {
        let measured = average_window(period);
        assert!(
            measured > published * 0.9,
            "{measured:.1} where {published} is published"
        );
    }
}

#[test]
fn k_is_the_time_back_to_the_window_before() {
    let mut cubic = Cubic::new(SEGMENT);
    cubic.window = 100_000.0;
    cubic.on_congestion(0, SEGMENT);
    // RFC 9438, 4.2: the cube root of (100 - 70) / 0.4.
    assert!((cubic.k_s - 4.217).abs() < 0.001, "{}", cubic.k_s);
    assert_eq!(cubic.window(), 70_000);
    // Fast convergence, 4.7: less than before, so room is left for others.
    cubic.window = 90_000.0;
    cubic.on_congestion(0, SEGMENT);
    assert!((cubic.most - 76_500.0).abs() < 1.0, "{}", cubic.most);
}

#[test]
fn what_was_taken_for_lost_and_arrives_is_undone() {
    let mut cubic = Cubic::new(SEGMENT);
    cubic.window = 100_000.0;
    cubic.on_congestion(5, SEGMENT);
    assert!(!cubic.is_slow_start() && cubic.is_recovering(5));
    cubic.undo();
    assert_eq!(cubic.window(), 100_000);
    assert!(cubic.is_slow_start() && !cubic.is_recovering(5));
    cubic.undo();
    assert_eq!(cubic.window(), 100_000, "once");
}
