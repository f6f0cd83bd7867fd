//! Frames of a packet's clear payload: no bytes panic, and what is taken keeps its own rules.

use virga_transport::frame::{Frame, Frames};

/// Reads such a payload.
pub fn run(payload: &[u8]) {
    let mut taken = 0;
    for frame in Frames::new(payload) {
        match frame {
            Ok(Frame::Ack(ack)) => {
                let mut below = ack.largest.checked_add(1);
                for (first, last) in ack.ranges() {
                    assert!(first <= last, "a range is not empty");
                    assert!(below.is_some_and(|below| last < below), "ranges descend");
                    below = Some(first);
                }
            }
            Ok(frame) => assert!(format!("{frame:?}").len() > 2),
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return;
            }
        }
        taken += 1;
        assert!(taken <= payload.len(), "every frame takes a byte at least");
    }
}
