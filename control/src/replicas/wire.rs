//! What nodes say about logs that several of them hold or read, in parts that a control message has room for.
//!
//! ```text
//! part        kind 1 | name length 1 | name | number 8 | total 4 | at 4 | bytes
//! kind 0      between replicas: see `virga_state::replica::message`
//! kind 1      submission: group 8 | acks 1 | events, each: length 4 | bytes
//! kind 2      answer: code 1 | node 8 | words
//! kind 3, 4   a reader's question, and what it is given: see `reading::wire`
//! ```
//! Big-endian. The parts of a message come one after the other, and those of two never mix: of each peer there is one
//! that is not whole. A submission's number comes back in its answer.

use bytes::Bytes;
use std::ops::Range;
use virga_ebpf::header::NodeId;
use virga_state::replica::{self, Acks};
use virga_transport::ChannelName;

/// Bytes of a message that one part has at most.
pub const PART_BYTES_MAX: usize = 16 * 1024;
/// Bytes of the longest part.
pub const BYTES_MAX: usize = 2 + 255 + 16 + PART_BYTES_MAX;
/// Bytes of the events of a submission at most, each with its length.
pub const EVENTS_BYTES_MAX: usize = 1_536 * 1024;
/// Bytes of the longest message.
pub const MESSAGE_BYTES_MAX: usize = replica::message::MESSAGE_BYTES_MAX;
/// Bytes of an answer's words.
pub const WORDS_BYTES_MAX: usize = 1_024;

const SUBMISSION_HEAD_BYTES: usize = 9;

const _: () = assert!(SUBMISSION_HEAD_BYTES + EVENTS_BYTES_MAX <= MESSAGE_BYTES_MAX);
const _: () = assert!(4 + virga_transport::limits::MESSAGE_BYTES_MAX <= EVENTS_BYTES_MAX);

/// Who speaks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A replica to another.
    Between,
    /// Who publishes to a replica.
    Submission,
    /// A replica to who publishes.
    Answer,
    /// Who reads a log to who keeps it.
    Read,
    /// Who keeps a log to who reads it.
    Given,
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Who speaks to whom.
    pub kind: Kind,
    /// Of which channel's log.
    pub channel: ChannelName,
    /// The message's.
    pub number: u64,
    /// Bytes of the message.
    pub total: u32,
    /// Where in it these are.
    pub at: u32,
    /// At most [`PART_BYTES_MAX`].
    pub bytes: Vec<u8>,
}

impl Part {
    /// Writes it behind other bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        let name = self.channel.as_str().as_bytes();
        // A valid name has 1 to 255 bytes.
        let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
        out.extend([self.kind as u8, length]);
        out.extend(name);
        out.extend(self.number.to_be_bytes());
        out.extend(self.total.to_be_bytes());
        out.extend(self.at.to_be_bytes());
        out.extend(&self.bytes);
    }

    /// Reads all of `bytes`; none where they have not this form.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[kind, length], rest) = bytes.split_first_chunk()?;
        let kind = match kind {
            0 => Kind::Between,
            1 => Kind::Submission,
            2 => Kind::Answer,
            3 => Kind::Read,
            4 => Kind::Given,
            _ => return None,
        };
        let (name, rest) = rest.split_at_checked(length.into())?;
        let name = std::str::from_utf8(name).ok()?;
        let channel = ChannelName::parse(name).ok()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (total, rest) = rest.split_first_chunk()?;
        let (at, rest) = rest.split_first_chunk()?;
        let part = Self {
            kind,
            channel,
            number: u64::from_be_bytes(*number),
            total: u32::from_be_bytes(*total),
            at: u32::from_be_bytes(*at),
            bytes: rest.to_vec(),
        };
        let is_bounded = part.end() <= part.total as usize
            && part.total as usize <= MESSAGE_BYTES_MAX
            && part.bytes.len() <= PART_BYTES_MAX;
        is_bounded.then_some(part)
    }

    fn end(&self) -> usize {
        self.at as usize + self.bytes.len()
    }
}

/// The parts of a message.
#[must_use]
pub fn split(kind: Kind, channel: &ChannelName, number: u64, message: &[u8]) -> Vec<Part> {
    let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    let part = |(n, bytes): (usize, &[u8])| Part {
        kind,
        channel: channel.clone(),
        number,
        total: size(message.len()),
        at: size(n * PART_BYTES_MAX),
        bytes: bytes.to_vec(),
    };
    message
        .chunks(PART_BYTES_MAX)
        .enumerate()
        .map(part)
        .collect()
}

/// A part does not follow what came before: something between them is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing;

/// What of a peer's message is there.
#[derive(Debug, Default)]
pub struct Assembly(Option<Part>);

impl Assembly {
    /// Adds the next part; gives the message once it is whole.
    ///
    /// # Errors
    /// [`Missing`]; what was there is given up.
    pub fn take(&mut self, part: Part) -> Result<Option<Part>, Missing> {
        let whole = match self.0.take() {
            _ if part.at == 0 => part,
            Some(mut begun) => {
                let is_next = begun.end() == part.at as usize
                    && (begun.kind, begun.number, begun.total)
                        == (part.kind, part.number, part.total)
                    && begun.channel == part.channel;
                if !is_next {
                    return Err(Missing);
                }
                begun.bytes.extend(part.bytes);
                begun
            }
            None => return Err(Missing),
        };
        if whole.end() < whole.total as usize {
            self.0 = Some(whole);
            return Ok(None);
        }
        Ok(Some(whole))
    }
}

/// Events that shall be appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// Which nodes hold the log, as the publisher has it: a hash.
    pub group: u64,
    /// What the publisher waits for.
    pub acks: Acks,
    /// As they are published.
    pub events: Vec<Bytes>,
}

impl Submission {
    /// The bytes of it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.group.to_be_bytes().to_vec();
        out.push(self.acks as u8);
        for event in &self.events {
            out.extend(u32::try_from(event.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend(event);
        }
        out
    }

    /// Reads one; none where the bytes have not this form.
    #[must_use]
    pub fn parse(bytes: Vec<u8>) -> Option<Self> {
        let bytes = Bytes::from(bytes);
        let (group, rest) = bytes.split_first_chunk()?;
        let acks = *Acks::ALL.get(usize::from(*rest.first()?))?;
        let mut events = Vec::new();
        let mut at = SUBMISSION_HEAD_BYTES;
        while at < bytes.len() {
            let range = event_at(&bytes, at)?;
            at = range.end;
            events.push(bytes.slice(range));
        }
        Some(Self {
            group: u64::from_be_bytes(*group),
            acks,
            events,
        })
    }
}

fn event_at(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let (length, rest) = bytes.get(at..)?.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    (length <= rest.len()).then_some(at + 4..at + 4 + length)
}

/// What became of a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// As many replicas have all of it as were asked for.
    Kept,
    /// Nothing was appended: this node does not lead; who does, as far as it knows.
    Follows(Option<NodeId>),
    /// Nothing was appended: there is no room now.
    Full,
    /// It was appended, and then another began to lead: it may be in the log or not.
    Unknown,
    /// Nothing was appended: the publisher has another list of replicas.
    OtherGroup,
    /// Nothing was appended, and will not be: why.
    Refused(String),
}

impl Answer {
    /// The bytes of it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (code, node, words) = match self {
            Self::Kept => (0, 0, ""),
            Self::Follows(node) => (1, node.map_or(0, |node| node.0), ""),
            Self::Full => (2, 0, ""),
            Self::Unknown => (3, 0, ""),
            Self::OtherGroup => (4, 0, ""),
            Self::Refused(words) => (5, 0, words.as_str()),
        };
        let mut out = vec![code];
        out.extend(node.to_be_bytes());
        let words = words.char_indices();
        out.extend(
            words
                .take_while(|(at, char)| at + char.len_utf8() <= WORDS_BYTES_MAX)
                .flat_map(|(_, char)| char.to_string().into_bytes()),
        );
        out
    }

    /// Reads one; none where the bytes have not this form.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (code, rest) = bytes.split_first()?;
        let (node, words) = rest.split_first_chunk()?;
        let node = u64::from_be_bytes(*node);
        if words.len() > WORDS_BYTES_MAX || *code != 5 && !words.is_empty() {
            return None;
        }
        match code {
            0 => Some(Self::Kept),
            1 => Some(Self::Follows((node != 0).then_some(NodeId(node)))),
            2 => Some(Self::Full),
            3 => Some(Self::Unknown),
            4 => Some(Self::OtherGroup),
            5 => Some(Self::Refused(String::from_utf8(words.to_vec()).ok()?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> ChannelName {
        ChannelName::parse("alarms").unwrap()
    }

    fn message(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|n| u8::try_from(n % 251).unwrap()).collect()
    }

    #[test]
    fn a_message_comes_together_from_its_parts_and_not_from_some() {
        let message = message(3 * PART_BYTES_MAX + 5);
        let parts = split(Kind::Submission, &name(), 7, &message);
        assert_eq!(parts.len(), 4);
        let mut assembly = Assembly::default();
        for (n, part) in parts.iter().enumerate() {
            let mut bytes = Vec::new();
            part.write(&mut bytes);
            assert!(bytes.len() <= BYTES_MAX);
            assert_eq!(Part::parse(&bytes).as_ref(), Some(part));
            let whole = assembly.take(part.clone()).unwrap();
            assert_eq!(whole.map(|w| w.bytes), (n == 3).then(|| message.clone()));
        }
        for missing in 0..3 {
            let mut assembly = Assembly::default();
            let some = parts.iter().enumerate().filter(|(n, _)| *n != missing);
            let results = some.map(|(_, part)| assembly.take(part.clone()));
            let results: Vec<_> = results.collect();
            assert!(results.contains(&Err(Missing)));
            assert!(!results.iter().any(|result| matches!(result, Ok(Some(_)))));
        }
        let mut large = parts[0].clone();
        large.total = u32::MAX;
        let mut bytes = Vec::new();
        large.write(&mut bytes);
        assert_eq!(Part::parse(&bytes), None);
    }

    #[test]
    fn submissions_and_answers_are_read_as_they_are_written() {
        let submission = Submission {
            group: 5,
            acks: Acks::All,
            events: vec![
                Bytes::from_static(b"one"),
                Bytes::new(),
                Bytes::from_static(b"three"),
            ],
        };
        let bytes = submission.encode();
        assert_eq!(Submission::parse(bytes.clone()), Some(submission));
        assert_eq!(Submission::parse(bytes[..bytes.len() - 1].to_vec()), None);
        let answers = [
            Answer::Kept,
            Answer::Follows(None),
            Answer::Follows(Some(NodeId(9))),
            Answer::Full,
            Answer::Unknown,
            Answer::OtherGroup,
            Answer::Refused("no right".into()),
        ];
        for answer in answers {
            assert_eq!(Answer::parse(&answer.encode()), Some(answer));
        }
        let long = Answer::Refused("\u{e9}".repeat(WORDS_BYTES_MAX)).encode();
        assert!(Answer::parse(&long).is_some());
        assert_eq!(Answer::parse(&[6, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
