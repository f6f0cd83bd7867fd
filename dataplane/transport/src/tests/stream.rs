//! Stream halves against each other, without packets.

use super::fragments::Contradiction;
use super::*;
use crate::limits::{
    EVENT_HELD_BYTES, MESSAGE_BYTES_MAX, REASSEMBLY_BYTES_MAX, REASSEMBLY_MESSAGES_MAX,
    REASSEMBLY_NS_MAX, RECEIVE_STARTS_MAX, SHARED_BYTES_MIN, STREAM_SPARE_BYTES,
    STREAM_WINDOW_BYTES,
};
use crate::name::ChannelName;
use bytes::Bytes;
use proptest::prelude::*;

/// Gives bytes to a receiver as a session does, and what it hands out at once.
fn give(
    receiver: &mut ReceiveBytes,
    most: usize,
    start: u64,
    back: u64,
    bytes: &[u8],
) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    let is_passed = receiver.pass(start, bytes, most, |mut several, count| {
        if count == 1 {
            return messages.push(several.to_vec());
        }
        for _ in 0..count {
            let length = u32::from_be_bytes(*several.first_chunk().unwrap());
            drop(several.split_to(MESSAGE_PREFIX_BYTES));
            messages.push(several.split_to(length as usize).to_vec());
        }
        assert!(several.is_empty());
    });
    assert_eq!(is_passed.unwrap(), !messages.is_empty());
    assert!(messages.len() <= most);
    if messages.is_empty() {
        receiver.write(start, back, bytes).unwrap();
    }
    messages
}

/// Moves chunks from one half to the other; `fate` says what becomes of each.
fn carry(mode: Mode, messages: &[Vec<u8>], fates: &[u8]) -> Vec<Vec<u8>> {
    let (mut sender, mut receiver) = (SendBytes::new(), ReceiveBytes::new(mode));
    for message in messages {
        sender.push(message.as_slice().into(), Terms::NONE);
    }
    let mut credit = u64::MAX;
    sender.admit(usize::MAX / 2, &mut credit);
    let (mut late, mut ready, mut read) = (Vec::new(), Vec::new(), Vec::new());
    let mut place = 0;
    let mut fates = fates.iter().copied().chain(core::iter::repeat(0));
    while !sender.is_all_acked() {
        if let Some((start, end, _)) = sender.take_chunk(100) {
            let back = start - sender.message_start(start);
            let mut bytes = Vec::new();
            sender.copy(start, end, &mut bytes);
            match fates.next().unwrap_or(0) {
                1 => drop(sender.on_lost(start, end)),
                2 => late.push((start, end, back, bytes)),
                fate => {
                    let most = [usize::MAX, 0, 1, 2][place % 4];
                    place += 1;
                    for _ in 0..=(fate == 3).into() {
                        ready.extend(give(&mut receiver, most, start, back, &bytes));
                    }
                    assert_eq!(sender.on_acked(start, end), []);
                }
            }
        } else if let Some((start, end, back, bytes)) = late.pop() {
            receiver.write(start, back, &bytes).unwrap();
            assert_eq!(sender.on_acked(start, end), []);
        }
        let waiting = std::iter::from_fn(|| receiver.read().unwrap());
        ready.extend(waiting.map(|message| message.to_vec()));
        for message in ready.drain(..) {
            receiver.consumed += (message.len() + MESSAGE_PREFIX_BYTES) as u64;
            if receiver.raise() {
                sender.grant(receiver.granted());
            }
            read.push(message);
        }
    }
    read
}

proptest! {
    #[test]
    fn bytes_and_order_are_equal(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..20),
        fates in prop::collection::vec(0u8..4, 0..100),
    ) {
        prop_assert_eq!(&carry(Mode::Ordered, &messages, &fates), &messages);
        let mut unordered = carry(Mode::Unordered, &messages, &fates);
        let mut expected = messages;
        unordered.sort();
        expected.sort();
        prop_assert_eq!(unordered, expected);
    }
}

#[test]
fn the_largest_message_passes() {
    let messages = vec![vec![7; MESSAGE_BYTES_MAX]; 3];
    for mode in [Mode::Ordered, Mode::Unordered] {
        assert_eq!(carry(mode, &messages, &[1, 2, 0, 3, 2, 1, 1]), messages);
    }
}

#[test]
fn a_message_is_admitted_whole_or_not_at_all() {
    let mut sender = SendBytes::new();
    sender.push((&[1; 96]).into(), Terms::NONE);
    sender.push((&[2; 96]).into(), Terms::NONE);
    let mut credit = 150;
    sender.admit(1_000, &mut credit);
    assert_eq!((sender.admitted(), credit), (100, 50));
    assert!(sender.waits_for_credit());
    assert_eq!(sender.take_chunk(1_000), Some((0, 100, false)));
    assert_eq!(sender.take_chunk(1_000), None);
    credit = 100;
    sender.admit(1_000, &mut credit);
    assert_eq!(sender.take_chunk(1_000), Some((100, 200, false)));
    assert_eq!(sender.messages_in(0, 200), 2);
    assert_eq!(sender.messages_in(50, 150), 1);
}

#[test]
fn a_receiver_holds_no_more_than_it_granted() {
    let mut receiver = ReceiveBytes::new(Mode::Ordered);
    let far = STREAM_WINDOW_BYTES - 1;
    assert_eq!(receiver.write(far, 0, &[1]), Ok(far + 1));
    assert_eq!(receiver.write(far, 0, &[1, 2]), Err(StreamFault::Credit));
    assert_eq!(receiver.read(), Ok(None));
    receiver.write(0, 0, &u32::MAX.to_be_bytes()).unwrap();
    assert_eq!(receiver.read(), Err(StreamFault::Message));
}

#[test]
fn closed_streams_are_remembered_in_few_ranges() {
    let mut closed = Closed::default();
    for index in (0..1_000u32).rev() {
        closed.insert(StreamId(index * 2 + 1));
    }
    assert!(closed.contains(StreamId(1_999)) && !closed.contains(StreamId(2_001)));
    assert_eq!((closed.indices.len(), closed.count), (1, 1_000));
    let ahead = u32::try_from(STREAMS_AHEAD_MAX).unwrap() * 2;
    assert!(closed.allows(StreamId(2_021 + ahead), 10));
    assert!(!closed.allows(StreamId(2_023 + ahead), 10));
}

/// A hole lets a stream's buffer grow to its window; what was read leaves no room behind.
#[test]
fn a_stream_keeps_no_room_for_what_was_read() {
    let message = |bytes: usize| {
        let length = u32::try_from(bytes).unwrap().to_be_bytes();
        [&length[..], &vec![1; bytes]].concat()
    };
    for rest in [&[][..], &[0]] {
        let mut receiver = ReceiveBytes::new(Mode::Ordered);
        let bytes = [message(MESSAGE_BYTES_MAX), message(9), rest.to_vec()].concat();
        receiver.write(1, 0, &bytes[1..]).unwrap();
        assert!(receiver.buffered().capacity() > MESSAGE_BYTES_MAX);
        receiver.write(0, 0, &bytes[..1]).unwrap();
        while receiver.read().unwrap().is_some() {}
        assert_eq!(receiver.buffered().len(), rest.len());
        let capacity = receiver.buffered().capacity();
        assert!(capacity <= 2 * STREAM_SPARE_BYTES, "{capacity}");
    }
}

/// Pieces of messages in any order: each message is whole as soon as its last byte is there.
#[test]
fn an_unordered_message_waits_for_no_other() {
    let mut receiver = ReceiveBytes::new(Mode::Unordered);
    let messages = [&b"first"[..], b"", b"the third", b"x"];
    let mut row = Vec::new();
    let mut starts = Vec::new();
    for message in messages {
        starts.push(row.len() as u64);
        row.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        row.extend(message);
    }
    let mut give = |from: usize, to: usize| {
        let offset = from as u64;
        let start = starts.iter().rfind(|&&start| start <= offset).unwrap();
        receiver
            .write(offset, offset - start, &row[from..to])
            .unwrap();
        let mut read = Vec::new();
        while let Some(message) = receiver.read().unwrap() {
            read.push(message);
        }
        read
    };
    // The end of the third, of which the length is missing, and all of the fourth.
    assert!(give(18, row.len()).is_empty());
    assert_eq!(give(9, 13), [messages[1]]);
    assert_eq!(give(13, 17), [messages[3]], "where it starts is known now");
    assert_eq!(give(17, 18), [messages[2]]);
    assert!(give(2, 9).is_empty());
    assert_eq!(give(0, 2), [messages[0]]);
    assert_eq!((receiver.base(), receiver.unread()), (row.len() as u64, 0));
    assert!(receiver.buffered().is_empty());
}

#[test]
fn unordered_messages_that_overlap_are_a_fault() {
    let row = [&[0, 0, 0, 8][..], &[0; 8]].concat();
    let fault = |pieces: &[(u64, u64, usize)]| {
        let mut receiver = ReceiveBytes::new(Mode::Unordered);
        let write = |&(offset, back, bytes): &(u64, u64, usize)| {
            let from = usize::try_from(offset).unwrap();
            receiver.write(offset, back, &row[from..from + bytes])
        };
        pieces.iter().map(write).find_map(Result::err)
    };
    let overlap = Some(StreamFault::Overlap);
    assert_eq!(fault(&[(0, 0, 6), (7, 1, 2)]), overlap, "it starts within");
    assert_eq!(fault(&[(7, 1, 2), (0, 0, 6)]), overlap, "the same, later");
    assert_eq!(
        fault(&[(4, 0, 4), (0, 0, 4)]),
        overlap,
        "one within is whole"
    );
    assert_eq!(fault(&[(0, 0, 12), (0, 0, 12)]), None, "the same again");
}

/// More starts than are kept are no fault: what brings them is to travel again, and leaves no trace.
#[test]
fn starts_without_end_are_put_off() {
    let starts = u64::try_from(RECEIVE_STARTS_MAX).unwrap() + 9;
    let mut receiver = ReceiveBytes::new(Mode::Unordered);
    let fault = (0..starts).find_map(|back| receiver.write(starts, back, &[1]).err());
    assert_eq!(fault, Some(StreamFault::Fragments));
    let mut entries = 0;
    receiver.recount(&mut entries);
    assert!((RECEIVE_STARTS_MAX..=RECEIVE_STARTS_MAX + 1).contains(&entries));
    let highest = receiver.highest;
    let again = receiver.write(2 * starts, 0, &[1]);
    assert_eq!(
        (again, receiver.highest),
        (Err(StreamFault::Fragments), highest)
    );
}

/// Whole messages that nobody reads take no more room than their bytes, in whatever order they came.
#[test]
fn whole_messages_that_wait_are_kept_as_ranges() {
    let mut receiver = ReceiveBytes::new(Mode::Unordered);
    let mut entries = 0;
    for n in (0..10_000).rev() {
        receiver.write(4 * n, 0, &[0; 4]).unwrap();
    }
    receiver.recount(&mut entries);
    assert_eq!(entries, 4, "bytes, whole, unread, and the next start");
    for _ in 0..10_000 {
        assert_eq!(receiver.read().unwrap().as_deref(), Some(&[][..]));
    }
    receiver.recount(&mut entries);
    assert_eq!((receiver.read(), entries), (Ok(None), 1));
}

/// Pieces in any order, from several messages at once; nothing is held once all are whole.
#[test]
fn fragments_become_the_message_that_was_cut() {
    let mut held = Reassembly::default();
    let whole: Vec<u8> = (0..=255).collect();
    let piece = |message, offset: usize, end: usize| Fragment {
        message,
        total: 256,
        offset: offset as u64,
        bytes: &whole[offset..end],
    };
    let stream = StreamId(2);
    let mut give = |now_ns, fragment| held.insert(now_ns, stream, fragment);
    assert_eq!(give(0, piece(7, 200, 256)), Ok((None, 0)));
    assert_eq!(give(1, piece(8, 0, 128)), Ok((None, 0)));
    assert_eq!(give(2, piece(7, 0, 100)), Ok((None, 0)));
    assert_eq!(
        give(3, piece(7, 100, 200)),
        Ok((Some(whole.clone().into()), 0))
    );
    assert_eq!(
        give(4, piece(8, 127, 256)),
        Err(Contradiction),
        "a byte twice"
    );
    let other_total = Fragment {
        total: 257,
        ..piece(8, 128, 256)
    };
    assert_eq!(give(5, other_total), Err(Contradiction), "another length");
    assert_eq!(held.held(), (1, 256));
    assert_eq!(held.timeout(), Some(1 + REASSEMBLY_NS_MAX));
    assert_eq!(held.on_timeout(REASSEMBLY_NS_MAX), 0);
    assert_eq!(held.on_timeout(1 + REASSEMBLY_NS_MAX), 1);
    assert_eq!((held.held(), held.timeout()), ((0, 0), None));
}

/// Pieces far smaller than any packet's: what they cost beside their bytes is bounded.
#[test]
fn crumbs_of_a_message_are_refused() {
    let mut held = Reassembly::default();
    let mut crumbs = 0;
    let refused = (0..MESSAGE_BYTES_MAX as u64).find_map(|at| {
        let fragment = Fragment {
            message: 1,
            total: MESSAGE_BYTES_MAX as u64,
            offset: 2 * at,
            bytes: b"x",
        };
        crumbs += 1;
        held.insert(0, StreamId(2), fragment).err()
    });
    assert_eq!(refused, Some(Contradiction));
    assert!(crumbs <= MESSAGE_BYTES_MAX / 256 + 20, "{crumbs}");
}

/// Messages that never end: as many as may be, and as many bytes as may be, the oldest giving way.
#[test]
fn what_never_ends_takes_bounded_memory() {
    for total in [2, MESSAGE_BYTES_MAX as u64 / 3, MESSAGE_BYTES_MAX as u64] {
        let mut held = Reassembly::default();
        let mut given_up = 0;
        for message in 0..1_000 {
            let fragment = Fragment {
                message,
                total,
                offset: 1,
                bytes: b"x",
            };
            let (whole, others) = held.insert(message, StreamId(2), fragment).unwrap();
            assert_eq!(whole, None);
            given_up += others;
            let (messages, bytes) = held.held();
            assert!(messages <= REASSEMBLY_MESSAGES_MAX && bytes <= REASSEMBLY_BYTES_MAX);
        }
        let kept = held.held().0 as u64;
        assert_eq!(given_up + kept, 1_000);
        assert_eq!(
            held.timeout(),
            Some(1_000 - kept + REASSEMBLY_NS_MAX),
            "the newest stay"
        );
        assert_eq!(held.on_stream_over(StreamId(4)), 0);
        assert_eq!(held.on_stream_over(StreamId(2)), kept);
    }
}

/// Equal messages share one frame; one that is larger than any packet is cut.
#[test]
fn waiting_events_are_written_in_few_bytes() {
    let mut events = SendEvents::default();
    for _ in 0..64 {
        events.push(&[7; 64], NO_DEADLINE);
    }
    events.push(&[8; 5_000], NO_DEADLINE);
    events.push(&[], NO_DEADLINE);
    let mut out = Vec::new();
    let written = events.write(&mut out, 4_200);
    assert_eq!((written.messages, out.len()), (64, 5 + 64 * 64));
    assert!(events.fits(4_200, 4_200) && !events.fits(4_100, 4_200));
    let mut packets = 0;
    let mut bytes = 0;
    while !events.is_empty() {
        out.clear();
        bytes += events.write(&mut out, 1_152).bytes;
        assert!(out.len() <= 1_152);
        packets += 1;
    }
    assert_eq!(
        (packets, bytes, events.held()),
        (5, 5_000 + 2 * EVENT_HELD_BYTES, 0)
    );
}

#[test]
fn deadlines_of_many_messages_are_looked_at_less_often() {
    for mode in [Mode::Ordered, Mode::Unreliable] {
        let mut stream = SendStream::new(&StreamSpec {
            name: ChannelName::parse("a").unwrap(),
            salt: 0,
            priority: 0,
            mode,
        });
        assert_eq!(stream.next_deadline_ns(5), NO_DEADLINE);
        stream.push(b"x".into(), Terms::NONE);
        assert_eq!(stream.next_deadline_ns(5), NO_DEADLINE);
        stream.push(b"x".into(), Terms::until(7));
        assert_eq!(stream.next_deadline_ns(5), 5 + EXPIRE_EVERY_NS);
        for _ in 0..30_000 {
            stream.push(b"x".into(), Terms::until(9));
        }
        let every_ns = 30_002 * EXPIRE_A_MESSAGE_NS;
        assert_eq!(stream.next_deadline_ns(5), 5 + every_ns);
        assert_eq!(stream.expire(10).messages, 30_001);
    }
}

/// Kept as they are or copied, some given up: what comes out is what went in.
#[test]
fn messages_of_all_sizes_are_sent_as_they_are() {
    let sizes = [0, 1, 40, 511, 512, 1_024, 2_048, 5_000, 70_000];
    let messages: Vec<Bytes> = (0..200u8)
        .map(|n| vec![n; sizes[usize::from(n) % sizes.len()]].into())
        .collect();
    let is_shared = |message: &&Bytes| !message.is_empty() && !message.is_unique();
    for some_expire in [false, true] {
        let mut sender = SendBytes::new();
        let mut expected = Vec::new();
        for (n, message) in messages.iter().enumerate() {
            let payload = match n % 2 {
                0 => Payload::Shared(message),
                _ => Payload::Borrowed(message),
            };
            let expires = some_expire && n % 5 == 4;
            let deadline_ns = if expires { 7 } else { NO_DEADLINE };
            sender.push(payload, Terms::until(deadline_ns));
            if !expires {
                expected.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
                expected.extend_from_slice(message);
            }
        }
        let mut shared = messages.iter().filter(is_shared);
        assert!(shared.all(|message| message.len() >= SHARED_BYTES_MIN));
        assert_eq!(messages.iter().filter(is_shared).count(), 55);
        let mut sent = Vec::new();
        if some_expire {
            // One has begun to go out when others expire.
            let (start, end) = (0, 300);
            let mut credit = u64::MAX;
            sender.admit(300, &mut credit);
            assert_eq!(sender.take_chunk(300), Some((start, end, false)));
            sender.copy(start, end, &mut sent);
            assert_eq!(sender.expire(8).messages, 40);
        }
        assert_eq!(sender.held(), expected.len());
        sender.admit_all();
        while let Some((start, end, _)) = sender.take_chunk(1 + sent.len() % 1_500) {
            sender.copy(start, end, &mut sent);
            // What is acknowledged goes, wherever that ends.
            let _none = sender.on_acked(0, start);
        }
        assert!(sent == expected);
        let _none = sender.on_acked(0, expected.len() as u64);
        assert!(sender.is_all_acked());
        assert_eq!(messages.iter().filter(is_shared).count(), 0);
        assert_eq!(sender.held(), 0);
    }
}
