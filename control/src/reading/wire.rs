//! What is asked and given about a log that another node keeps, as messages in parts ([`crate::replicas::wire`]).
//!
//! ```text
//! ask      version 1 | want 1 | reader 8 | log 16 | cursor 1 | value 8, where `want` is 3 or 4 also: feed 32 | after 8 | to 8
//! events   version 1 | 0 1    | log 16 | next 8 | frames `kept` and `gap` (see `api::frames`)
//! batches  version 1 | 0 1    | log 16 | next 8 | of each batch: bytes 4 | message (see `virga_state::bundle`)
//! refusal  version 1 | code 1 | words
//! ```
//! Big-endian. `want` is 0 to open the log, which is answered at once by where its next event is, 1 for events, which
//! is answered when there are some, 2 to end, and 3 for signed batches of a feed, behind so many of its events and up to
//! one, which is answered at once, by none where they have to be looked for further on; 4 is the same where others name
//! these events, and is answered of what the node knows to have without looking for it. A reader's number is its own among
//! those of its node. A log of zeros in a question is any; else the one with that id is meant and no other. `next` is where
//! to go on.

use bytes::Bytes;
use virga_state::{Cursor, batch::FeedId, format::LogId, history::Wanted};

/// First byte of every message.
const VERSION: u8 = 1;
/// Bytes of a question.
pub const ASK_BYTES: usize = 35;
/// Bytes of what says which batches are wanted.
pub const WANTED_BYTES: usize = 48;
/// Bytes of what is in front of the events of an answer.
const GIVEN_HEAD_BYTES: usize = 26;
/// Bytes of a refusal's words.
pub const WORDS_BYTES_MAX: usize = 1_024;

const ANY_LOG: LogId = [0; 16];

/// What a reader asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Where it begins.
    Open,
    /// Events.
    Events,
    /// Nothing more.
    End,
    /// Batches of a feed, with their signatures.
    Batches(Wanted),
    /// The same, of what the node knows to have.
    Named(Wanted),
}

impl Want {
    const fn code(self) -> u8 {
        match self {
            Self::Open => 0,
            Self::Events => 1,
            Self::End => 2,
            Self::Batches(_) => 3,
            Self::Named(_) => 4,
        }
    }
}

/// A reader's question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// What for.
    pub want: Want,
    /// Who, among the readers of its node.
    pub reader: u64,
    /// Of which log of the channel, where it must be that one.
    pub log: Option<LogId>,
    /// From where on.
    pub cursor: Cursor,
}

impl Ask {
    /// The bytes of it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (cursor, value) = match self.cursor {
            Cursor::Start => (0, 0),
            Cursor::End => (1, 0),
            Cursor::Offset(offset) => (2, offset),
            Cursor::After(offset) => (3, offset),
            Cursor::Time(ns) => (4, ns),
        };
        let mut out = vec![VERSION, self.want.code()];
        out.extend(self.reader.to_be_bytes());
        out.extend(self.log.unwrap_or(ANY_LOG));
        out.push(cursor);
        out.extend(u64::to_be_bytes(value));
        if let Want::Batches(wanted) | Want::Named(wanted) = self.want {
            let Wanted { feed, after, to } = wanted;
            out.extend(feed.0);
            out.extend(after.to_be_bytes());
            out.extend(to.to_be_bytes());
        }
        out
    }

    /// Reads one; none where the bytes have not this form.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (bytes, wanted) = bytes.split_first_chunk::<ASK_BYTES>()?;
        let (&[VERSION, want], rest) = bytes.split_first_chunk()? else {
            return None;
        };
        let want = match (want, wanted) {
            (0, []) => Want::Open,
            (1, []) => Want::Events,
            (2, []) => Want::End,
            (3, wanted) => Want::Batches(wanted_of(wanted)?),
            (4, wanted) => Want::Named(wanted_of(wanted)?),
            _ => return None,
        };
        let (reader, rest) = rest.split_first_chunk()?;
        let (log, rest) = rest.split_first_chunk::<16>()?;
        let (&[cursor], rest) = rest.split_first_chunk()?;
        let value = u64::from_be_bytes(rest.try_into().ok()?);
        let cursor = match (cursor, value) {
            (0, 0) => Cursor::Start,
            (1, 0) => Cursor::End,
            (2, offset) => Cursor::Offset(offset),
            (3, offset) => Cursor::After(offset),
            (4, ns) => Cursor::Time(ns),
            _ => return None,
        };
        Some(Self {
            want,
            reader: u64::from_be_bytes(*reader),
            log: Some(*log).filter(|log| *log != ANY_LOG),
            cursor,
        })
    }
}

fn wanted_of(bytes: &[u8]) -> Option<Wanted> {
    let (feed, rest) = bytes.split_first_chunk()?;
    let (after, to) = rest.split_first_chunk()?;
    Some(Wanted {
        feed: FeedId(*feed),
        after: u64::from_be_bytes(*after),
        to: u64::from_be_bytes(to.try_into().ok()?),
    })
}

/// Why nothing is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The node does not keep the channel.
    NotKept,
    /// The node's log of the channel is another one.
    OtherLog,
    /// The reader's entity may not subscribe.
    NoRight,
    /// Too many read there; it may be asked again later.
    Full,
    /// The log cannot be read.
    Failed,
    /// The log has no more of the batches.
    NoMore,
}

impl Refusal {
    /// Every one there is, by code less one.
    pub const ALL: [Self; 6] = [
        Self::NotKept,
        Self::OtherLog,
        Self::NoRight,
        Self::Full,
        Self::Failed,
        Self::NoMore,
    ];
}

/// What a node that keeps a log answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// Events, in order; none where it was asked to open the log.
    Events {
        /// Of this log.
        log: LogId,
        /// Where to go on.
        next: u64,
        /// The events.
        frames: Bytes,
    },
    /// None, and why.
    Refused(Refusal, String),
}

impl Given {
    /// Whether that begins an answer that has a log's events.
    #[must_use]
    pub fn has_events(bytes: &[u8]) -> bool {
        bytes.starts_with(&[VERSION, 0])
    }

    /// The bytes of it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        match self {
            Self::Events { log, next, frames } => {
                out.push(0);
                out.extend(log);
                out.extend(next.to_be_bytes());
                out.extend(frames);
            }
            Self::Refused(refusal, words) => {
                let place = Refusal::ALL.iter().position(|known| known == refusal);
                let code = place.and_then(|place| u8::try_from(place + 1).ok());
                out.push(code.unwrap_or(u8::MAX));
                let shown = words.chars().filter(|c| !c.is_control());
                let mut bytes = 0;
                let fit = shown.take_while(|c| {
                    bytes += c.len_utf8();
                    bytes <= WORDS_BYTES_MAX
                });
                out.extend(fit.collect::<String>().into_bytes());
            }
        }
        out
    }

    /// Reads one; none where the bytes have not this form. The frames are not looked at.
    #[must_use]
    pub fn parse(bytes: Bytes) -> Option<Self> {
        let (&[VERSION, code], rest) = bytes.split_first_chunk()? else {
            return None;
        };
        if code == 0 {
            let (log, rest) = rest.split_first_chunk()?;
            let (next, _) = rest.split_first_chunk()?;
            return Some(Self::Events {
                log: *log,
                next: u64::from_be_bytes(*next),
                frames: bytes.slice(GIVEN_HEAD_BYTES..),
            });
        }
        let refusal = Refusal::ALL.get(usize::from(code) - 1)?;
        let words = std::str::from_utf8(rest).ok()?;
        if words.len() > WORDS_BYTES_MAX || words.chars().any(char::is_control) {
            return None;
        }
        Some(Self::Refused(*refusal, words.to_owned()))
    }
}

/// Batches in one answer at most: those that bytes allow, each with its signature, are fewer.
const BATCHES_MAX: usize = 4_096;

/// The bytes of batches.
#[must_use]
pub fn encode_batches(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        // A message has what the transport carries at most.
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        out.extend(length.to_be_bytes());
        out.extend(message);
    }
    out
}

/// Reads batches; none where the bytes have not this form. The messages are not looked at.
#[must_use]
pub fn parse_batches(frames: &Bytes) -> Option<Vec<Bytes>> {
    let (mut messages, mut at) = (Vec::new(), 0);
    while at < frames.len() {
        let (length, rest) = frames.get(at..)?.split_first_chunk()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        if length > rest.len() || messages.len() >= BATCHES_MAX {
            return None;
        }
        messages.push(frames.slice(at + 4..at + 4 + length));
        at += 4 + length;
    }
    Some(messages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asks() -> Vec<Ask> {
        let cursors = [
            Cursor::Start,
            Cursor::End,
            Cursor::Offset(7),
            Cursor::After(u64::MAX),
            Cursor::Time(1),
        ];
        let wanted = Wanted {
            feed: FeedId([5; 32]),
            after: 1,
            to: u64::MAX,
        };
        let wants = [
            Want::Open,
            Want::Events,
            Want::End,
            Want::Batches(wanted),
            Want::Named(wanted),
        ];
        let logs = [None, Some([3; 16])];
        let all = wants
            .into_iter()
            .flat_map(|want| cursors.map(|cursor| (want, cursor)));
        let all = all.flat_map(|(want, cursor)| {
            logs.map(|log| Ask {
                want,
                reader: 9,
                log,
                cursor,
            })
        });
        all.collect()
    }

    #[test]
    fn questions_and_answers_are_read_as_they_are_written() {
        for ask in asks() {
            let bytes = ask.encode();
            assert_eq!(Ask::parse(&bytes), Some(ask));
            assert_eq!(Ask::parse(&bytes[1..]), None);
            assert_eq!(Ask::parse(&bytes[..bytes.len() - 1]), None);
            assert_eq!(Ask::parse(&[&bytes[..], b"x"].concat()), None);
        }
        let mut given = vec![Given::Events {
            log: [1; 16],
            next: u64::MAX,
            frames: Bytes::from_static(b"frames"),
        }];
        given.extend(Refusal::ALL.map(|refusal| Given::Refused(refusal, "why".into())));
        for given in given {
            assert_eq!(Given::parse(given.encode().into()), Some(given));
        }
        let long = Given::Refused(Refusal::Failed, "\u{e9}\n".repeat(WORDS_BYTES_MAX));
        let read = Given::parse(long.encode().into()).unwrap();
        let words = "\u{e9}".repeat(WORDS_BYTES_MAX / 2);
        assert_eq!(read, Given::Refused(Refusal::Failed, words));
        assert_eq!(Given::parse(Bytes::from_static(&[1, 1, b'\n'])), None);
        assert_eq!(Given::parse(Bytes::from_static(&[2, 1])), None);
    }

    #[test]
    fn batches_are_read_as_they_are_written_and_no_cut_of_them_is() {
        let messages = [b"one".to_vec(), Vec::new(), vec![3; 70_000]];
        let frames = Bytes::from(encode_batches(&messages));
        let read = parse_batches(&frames).unwrap();
        assert_eq!(read, messages);
        for end in [1, 3, 5, 10, frames.len() - 1] {
            assert_eq!(parse_batches(&frames.slice(..end)), None, "{end}");
        }
        assert_eq!(parse_batches(&Bytes::new()), Some(Vec::new()));
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_the_same(bytes in prop::collection::vec(0..6_u8, 0..40)) {
            if let Some(ask) = Ask::parse(&bytes) {
                prop_assert_eq!(ask.encode(), bytes.clone());
            }
            if let Some(given) = Given::parse(bytes.clone().into()) {
                prop_assert_eq!(given.encode(), bytes);
            }
        }

        #[test]
        fn changed_questions_are_read_as_what_they_say(place in 0..ASK_BYTES, byte: u8, which in 0..50_usize) {
            let mut bytes = asks()[which].encode();
            bytes[place] = byte;
            if let Some(ask) = Ask::parse(&bytes) {
                prop_assert_eq!(ask.encode(), bytes);
            }
        }
    }
}
