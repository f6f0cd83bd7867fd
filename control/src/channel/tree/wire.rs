//! What the publisher of a channel, the nodes that pass its events on and those that get them so tell each other.
//!
//! ```text
//! said     kind 1 | name length 1 | name | number 8 | what follows
//! kind 0   able: nodes that it takes 2, under number 0      relay to publisher
//! kind 1   redirect: the relay's node 8                     publisher to child
//! kind 2   feed: the publisher's entity 32                  child to relay
//! kind 3   leave: the publisher's entity 32                 child to relay
//! kind 4   ended: the publisher's entity 32 | why 1         relay to child
//! kind 5   mark: the child's node 8, its assignment 8       relay to publisher
//! kind 6   newest: number of the next event 8               publisher to relay, under the mark's number
//! kind 7   have: number of the next event 8                 child to publisher
//! kind 8   back: number of the next event 8 | why 1         child to publisher
//! kind 9   alone                                            publisher to child
//! kind 10  gap: from 8 | to 8                               child to publisher
//! kind 11  hole: from 8 | to 8                              publisher to child
//! kind 12  strike: the child's node 8                       publisher to relay
//! kind 13  struck                                           relay to publisher
//! ```
//! Big-endian. `number` is that of the assignment, which its publisher gives each pair of a relay and a child anew; a
//! mark's is its relay's. Events themselves travel on the relay's ordinary stream of the channel, as they were signed.

use std::ops::Range;
use virga_ebpf::header::NodeId;
use virga_transport::ChannelName;

/// Bytes of the longest.
pub const BYTES_MAX: usize = 2 + 255 + 8 + 33;

/// Why a node does not get events by another, or no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Something is missing before what the relay brings.
    Gap,
    /// What the relay brings is not what the publisher signed.
    Forged,
    /// The session or stream that they came by is gone.
    Gone,
    /// That node does not pass these events on, or not to this one.
    Refused,
    /// That node has no room.
    Full,
}

impl Why {
    const ALL: [Self; 5] = [
        Self::Gap,
        Self::Forged,
        Self::Gone,
        Self::Refused,
        Self::Full,
    ];
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Passes events on to so many nodes.
    Able(u16),
    /// Get them from this node.
    Redirect(NodeId),
    /// Pass on what this entity publishes.
    Feed([u8; 32]),
    /// No more.
    Leave([u8; 32]),
    /// It is not passed on, or no more.
    Ended([u8; 32], Why),
    /// Which event comes next? This child asks to have what follows passed on, by this assignment.
    Mark(NodeId, u64),
    /// This one, of all that were published.
    Newest(u64),
    /// All events before this one are there.
    Have(u64),
    /// So they are, and the publisher shall send the others itself.
    Back(u64, Why),
    /// The publisher sends by itself, from now on.
    Alone,
    /// These have not come.
    Gap(Range<u64>),
    /// They were never published.
    Hole(Range<u64>),
    /// Pass nothing more on to this child, by this assignment.
    Strike(NodeId),
    /// Nothing more is.
    Struck,
}

/// One message about a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Which channel.
    pub channel: ChannelName,
    /// Which assignment, or mark.
    pub number: u64,
    /// What of it.
    pub what: What,
}

impl Said {
    /// Writes it behind other bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        let kind = match &self.what {
            What::Able(_) => 0,
            What::Redirect(_) => 1,
            What::Feed(_) => 2,
            What::Leave(_) => 3,
            What::Ended(..) => 4,
            What::Mark(..) => 5,
            What::Newest(_) => 6,
            What::Have(_) => 7,
            What::Back(..) => 8,
            What::Alone => 9,
            What::Gap(_) => 10,
            What::Hole(_) => 11,
            What::Strike(_) => 12,
            What::Struck => 13,
        };
        let name = self.channel.as_str().as_bytes();
        // A valid name has 1 to 255 bytes.
        out.extend([kind, u8::try_from(name.len()).unwrap_or(u8::MAX)]);
        out.extend(name);
        out.extend(self.number.to_be_bytes());
        match &self.what {
            What::Able(places) => out.extend(places.to_be_bytes()),
            What::Redirect(node) | What::Strike(node) => out.extend(node.0.to_be_bytes()),
            What::Feed(entity) | What::Leave(entity) => out.extend(entity),
            What::Ended(entity, why) => {
                out.extend(entity);
                out.push(*why as u8);
            }
            What::Mark(child, assignment) => {
                out.extend(child.0.to_be_bytes());
                out.extend(assignment.to_be_bytes());
            }
            What::Alone | What::Struck => {}
            What::Newest(next) | What::Have(next) => out.extend(next.to_be_bytes()),
            What::Back(next, why) => {
                out.extend(next.to_be_bytes());
                out.push(*why as u8);
            }
            What::Gap(events) | What::Hole(events) => {
                out.extend(events.start.to_be_bytes());
                out.extend(events.end.to_be_bytes());
            }
        }
    }

    /// Reads all of `bytes`; none where they have not this form.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[kind, length], rest) = bytes.split_first_chunk()?;
        let (name, rest) = rest.split_at_checked(length.into())?;
        let channel = ChannelName::parse(std::str::from_utf8(name).ok()?).ok()?;
        let (number, rest) = rest.split_first_chunk()?;
        let number = u64::from_be_bytes(*number);
        let what = match (kind, rest) {
            (0, &[high, low]) if number == 0 => What::Able(u16::from_be_bytes([high, low])),
            (1, _) => What::Redirect(NodeId(u64_of(rest)?)),
            (2, _) => What::Feed(rest.try_into().ok()?),
            (3, _) => What::Leave(rest.try_into().ok()?),
            (4, [entity @ .., why]) => What::Ended(entity.try_into().ok()?, why_of(*why)?),
            (5, _) => {
                let (child, assignment) = rest.split_at_checked(8)?;
                What::Mark(NodeId(u64_of(child)?), u64_of(assignment)?)
            }
            (6, _) => What::Newest(u64_of(rest)?),
            (7, _) => What::Have(u64_of(rest)?),
            (8, [next @ .., why]) => What::Back(u64_of(next)?, why_of(*why)?),
            (9, []) => What::Alone,
            (10, _) => What::Gap(range_of(rest)?),
            (11, _) => What::Hole(range_of(rest)?),
            (12, _) => What::Strike(NodeId(u64_of(rest)?)),
            (13, []) => What::Struck,
            _ => return None,
        };
        Some(Self {
            channel,
            number,
            what,
        })
    }
}

/// All of `bytes` as a number.
fn u64_of(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// The same as two, of which the second is larger.
fn range_of(bytes: &[u8]) -> Option<Range<u64>> {
    let (start, end) = bytes.split_at_checked(8)?;
    let events = u64_of(start)?..u64_of(end)?;
    (!events.is_empty()).then_some(events)
}

fn why_of(byte: u8) -> Option<Why> {
    Why::ALL.get(usize::from(byte)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_read_as_it_was_written_and_nothing_else_is() {
        let entity = [5; 32];
        let all = [
            What::Able(8),
            What::Redirect(NodeId(7)),
            What::Feed(entity),
            What::Leave(entity),
            What::Mark(NodeId(7), 3),
            What::Newest(9),
            What::Have(9),
            What::Alone,
            What::Gap(3..5),
            What::Hole(3..5),
            What::Strike(NodeId(7)),
            What::Struck,
        ];
        let reasons = Why::ALL.into_iter();
        let reasons = reasons.flat_map(|why| [What::Ended(entity, why), What::Back(9, why)]);
        for what in all.into_iter().chain(reasons) {
            let number = u64::from(!matches!(what, What::Able(_)));
            let said = Said {
                channel: ChannelName::parse("a/b").unwrap(),
                number,
                what,
            };
            let mut bytes = Vec::new();
            said.write(&mut bytes);
            assert!(bytes.len() <= BYTES_MAX);
            assert_eq!(Said::parse(&bytes), Some(said.clone()));
            for end in 0..bytes.len() {
                assert_eq!(Said::parse(&bytes[..end]), None, "{said:?} cut at {end}");
            }
            bytes.push(0);
            assert_eq!(Said::parse(&bytes), None, "{said:?} and more");
        }
    }

    #[test]
    fn what_cannot_be_is_not_read() {
        let said = |what| Said {
            channel: ChannelName::parse("a").unwrap(),
            number: 1,
            what,
        };
        let empty = said(What::Gap(5..5));
        let numbered = said(What::Able(1));
        for said in [empty, numbered] {
            let mut bytes = Vec::new();
            said.write(&mut bytes);
            assert_eq!(Said::parse(&bytes), None, "{said:?}");
        }
        let mut bytes = Vec::new();
        said(What::Back(1, Why::Full)).write(&mut bytes);
        *bytes.last_mut().unwrap() = 5;
        assert_eq!(Said::parse(&bytes), None, "there is no such reason");
    }
}
