//! One way to write each message, and nothing else is read.

use super::*;

fn name(text: &str) -> ChannelName {
    ChannelName::parse(text).unwrap()
}

fn one_of_each() -> Vec<Message> {
    let answers = [
        Answer::Granted(7),
        Answer::UnknownChannel,
        Answer::NotAuthorised,
        Answer::NotPublished,
        Answer::TooMany,
        Answer::TooOften,
        Answer::Token(Fault::Missing),
        Answer::Token(Fault::Revoked),
        Answer::Capability("".into()),
        Answer::Capability("é".repeat(WORDS_BYTES_MAX / 2)),
    ];
    let acks = answers.map(|answer| Message::Ack { request: 9, answer });
    let mut all = vec![
        Message::Subscribe {
            request: 1,
            pattern: Pattern::Channel(name("a/b")),
        },
        Message::Unsubscribe {
            request: u32::MAX,
            pattern: Pattern::Prefix(name(&"x".repeat(255))),
        },
        Message::Hold(name("a")),
        Message::Release(name("a")),
        Message::LinkTags(Said::Check {
            parity: 1,
            key: TagKey([5, 6]),
        }),
        Message::LinkTags(Said::Unchecked),
        Message::LinkTags(Said::Tagged { parity: 0 }),
        Message::LinkTags(Said::Untagged),
        Message::Lost(1_000_000),
    ];
    all.extend(acks);
    all
}

#[test]
fn what_is_said_of_trees_is_read_and_nothing_shorter_or_longer() {
    let said = tree::Said {
        channel: name(&"x".repeat(255)),
        number: u64::MAX,
        what: tree::What::Ended([7; 32], tree::Why::Full),
    };
    let mut bytes = Message::Tree(said.clone()).encode();
    assert_eq!(bytes[..4], [1, 33, 4, 255]);
    assert_eq!(Message::parse(&bytes), Ok(Message::Tree(said)));
    bytes.push(0);
    assert_eq!(Message::parse(&bytes), Err(MessageError::Trailing(1)));
    for end in 3..bytes.len() - 1 {
        assert_eq!(Message::parse(&bytes[..end]), Err(MessageError::Tree));
    }
}

#[test]
fn published_vectors() {
    let pattern = Pattern::Prefix(name("ab"));
    let subscribe = Message::Subscribe {
        request: 0x0102_0304,
        pattern,
    };
    assert_eq!(subscribe.encode(), [1, 1, 1, 2, 3, 4, 1, 2, b'a', b'b']);
    let ack = Message::Ack {
        request: 5,
        answer: Answer::Granted(6),
    };
    assert_eq!(ack.encode(), [1, 3, 0, 0, 0, 5, 0, 0, 0, 0, 6]);
    assert_eq!(Message::Hold(name("z")).encode(), [1, 4, 1, b'z']);
    assert_eq!(Message::Token(vec![8, 9]).encode(), [1, 6, 8, 9]);
    assert_eq!(Message::Revocations(vec![8, 9]).encode(), [1, 7, 8, 9]);
    assert_eq!(Message::Statement(vec![8, 9]).encode(), [1, 8, 8, 9]);
    assert_eq!(Message::Membership(vec![8, 9]).encode(), [1, 9, 8, 9]);
    let key: [u8; 16] = std::array::from_fn(|i| u8::try_from(i).unwrap());
    let check = Said::Check {
        parity: 1,
        key: TagKey::from_bytes(&key),
    };
    let bytes = [&[1, 11, 0, 1][..], &key].concat();
    assert_eq!(Message::LinkTags(check).encode(), bytes);
    let tagged = Message::LinkTags(Said::Tagged { parity: 1 });
    assert_eq!(tagged.encode(), [1, 11, 2, 1]);
    assert_eq!(Message::Channel(vec![8, 9]).encode(), [1, 10, 8, 9]);
    assert_eq!(Message::Identity(vec![8, 9]).encode(), [1, 16, 8, 9]);
    assert_eq!(Message::Routes(vec![8, 9]).encode(), [1, 24, 8, 9]);
    assert_eq!(Message::Lost(0x1_0203).encode(), [1, 31, 0, 1, 2, 3]);
    let more = Message::Lost(1_000_001).encode();
    assert_eq!(Message::parse(&more), Err(MessageError::Lost(1_000_001)));
    let way = Message::Trace(trace::Said::Answer {
        number: 7,
        way: trace::Way::ends(trace::End::NoRoute),
    });
    let bytes = [1, 28, 1, 0, 0, 0, 0, 0, 0, 0, 7, 1];
    assert_eq!(way.encode(), bytes);
    assert_eq!(Message::parse(&bytes), Ok(way));
    assert_eq!(Message::parse(&bytes[..11]), Err(MessageError::Trace));
}

#[test]
fn words_that_cannot_be_shown_are_refused() {
    let ack = |words: &str| {
        let answer = Answer::Capability(words.into());
        Message::parse(&Message::Ack { request: 1, answer }.encode())
    };
    assert!(ack("a > 1").is_ok());
    assert_eq!(ack("\u{1b}[2J"), Err(MessageError::Words));
    let long = "x".repeat(WORDS_BYTES_MAX + 1);
    assert_eq!(ack(&long), Err(MessageError::Words));
}

#[test]
fn tokens_lists_and_statements_are_bounded() {
    for (kind, bytes_max) in [
        (6, CHAIN_BYTES_MAX),
        (7, LIST_BYTES_MAX),
        (8, STATEMENT_BYTES_MAX),
        (10, DECLARATION_BYTES_MAX),
        (16, IDENTITY_BYTES_MAX),
    ] {
        let of = |bytes| Message::parse(&[&[1, kind], &vec![0; bytes][..]].concat());
        assert_eq!(of(0), Err(MessageError::Short));
        assert!(of(bytes_max).is_ok_and(|m| m.encode().len() == 2 + bytes_max));
        assert_eq!(of(bytes_max + 1), Err(MessageError::Trailing(1)));
    }
}

#[test]
fn what_is_written_is_read_and_nothing_shorter_or_longer() {
    for message in one_of_each() {
        let bytes = message.encode();
        assert!(bytes.len() <= MESSAGE_BYTES_MAX);
        assert_eq!(Message::parse(&bytes), Ok(message));
        for cut in 0..bytes.len() {
            assert!(Message::parse(&bytes[..cut]).is_err(), "{cut}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(Message::parse(&longer), Err(MessageError::Trailing(1)));
    }
}

#[test]
fn what_is_read_is_written_the_same_for_any_bytes() {
    // Every one-byte change of every message: refused, or another message with that very encoding.
    for bytes in one_of_each().iter().map(Message::encode) {
        for at in 0..bytes.len() {
            for value in 0..=u8::MAX {
                let mut changed = bytes.clone();
                changed[at] = value;
                if let Ok(message) = Message::parse(&changed) {
                    assert_eq!(message.encode(), changed);
                }
            }
        }
    }
}

#[test]
fn a_prefix_means_what_lies_below() {
    let prefix = Pattern::Prefix(name("sensors/lidar"));
    assert!(prefix.matches(&name("sensors/lidar/front")));
    assert!(!prefix.matches(&name("sensors/lidarx")));
    assert!(!Pattern::Channel(name("sensors")).matches(&name("sensors/lidar")));
}
