//! What neighbours say about ways: its bytes, and that there is one form of each.

use super::*;
use crate::channel::Lost;

const HOP: Hop = Hop {
    node: NodeId(0x0102_0304_0506_0708),
    rtt_us: Some(9),
    loss_ppm: None,
    answered_us: Some(10),
};

fn bytes(said: &Said) -> Vec<u8> {
    let mut out = Vec::new();
    said.write(&mut out);
    out
}

#[test]
fn published_vectors() {
    let ask = Said::Ask {
        number: 0x1112_1314_1516_1718,
        destination: NodeId(5),
        hops: 31,
    };
    let asked = b"\x00\x11\x12\x13\x14\x15\x16\x17\x18\x00\x00\x00\x00\x00\x00\x00\x05\x1f";
    assert_eq!(bytes(&ask), asked);
    let way = Way {
        end: End::Silent,
        hops: vec![HOP],
    };
    let answer = Said::Answer { number: 3, way };
    let answered = b"\x01\x00\x00\x00\x00\x00\x00\x00\x03\x03\
        \x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x00\x09\xff\xff\xff\xff\x00\x00\x00\x0a";
    assert_eq!(bytes(&answer), answered);
    for (said, bytes) in [(ask, &asked[..]), (answer, answered)] {
        assert_eq!(Said::parse(bytes), Some(said));
        for length in 0..bytes.len() {
            // An answer may have no hops.
            let is_one = bytes[0] == 1 && length == ANSWER_BYTES;
            let parsed = Said::parse(&bytes[..length]);
            assert_eq!(parsed.is_some(), is_one, "{length}");
        }
        assert_eq!(Said::parse(&[bytes, &[0]].concat()), None);
    }
}

#[test]
fn every_end_is_read_and_nothing_is_longer_than_the_longest() {
    for end in End::ALL {
        let hops = vec![HOP; usize::from(HOPS_MAX)];
        let way = Way { end, hops };
        let said = Said::Answer { number: 1, way };
        let mut written = bytes(&said);
        assert_eq!(written.len(), TRACE_BYTES_MAX);
        assert_eq!(Said::parse(&written), Some(said));
        written.extend([0; HOP_BYTES]);
        assert_eq!(Said::parse(&written), None);
    }
    let mut unknown = bytes(&Said::Answer {
        number: 1,
        way: Way::ends(End::TooLong),
    });
    unknown[9] += 1;
    assert_eq!(Said::parse(&unknown), None);
    let too_far = [&[0; 17][..], &[HOPS_MAX + 1]].concat();
    assert_eq!(Said::parse(&too_far), None);
}

#[test]
fn what_is_measured_fits_and_what_is_not_is_not_zero() {
    let measured = |rtt_us, to_ppm| {
        let lost = Lost {
            to_ppm,
            from_ppm: Some(9),
        };
        Some(Measured { rtt_us, lost })
    };
    let node = NodeId(1);
    let hop = Hop::new(node, measured(u64::MAX, Some(20_000)), Some(5));
    assert_eq!(
        (hop.rtt_us, hop.loss_ppm),
        (Some(UNKNOWN - 1), Some(20_000))
    );
    assert_eq!(Hop::new(node, measured(7, None), None).loss_ppm, None);
    assert_eq!(Hop::new(node, None, None).rtt_us, None);
}

#[test]
fn what_waits_to_be_followed_is_bounded() {
    let inbox = Inbox::default();
    let said = |number| Said::Answer {
        number,
        way: Way::ends(End::Arrived),
    };
    let told = (0..2 * WAITING_MAX as u64).filter(|&n| inbox.tell(NodeId(1), said(n)));
    assert_eq!(told.count(), WAITING_MAX);
    assert_eq!(inbox.take().len(), WAITING_MAX);
    assert!(inbox.take().is_empty() && inbox.tell(NodeId(1), said(0)));
}
