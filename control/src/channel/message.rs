//! What nodes tell each other about channels, on a session's control stream.
//!
//! ```text
//! subscribe, unsubscribe   version 1 | type 1 | request 4 | kind 1 | length 1 | name
//! ack                      version 1 | type 1 | request 4 | answer 1 | granted 4
//! ack, with answer 6       version 1 | type 1 | request 4 | answer 1 | length 4 | text
//! hold, release            version 1 | type 1 | length 1 | name
//! token                    version 1 | type 1 | chain (see `rights::chain`)
//! revocations              version 1 | type 1 | signed list (see `rights::revocation`)
//! statement                version 1 | type 1 | signed words about the sender (see `capability::statement`)
//! membership               version 1 | type 1 | signed membership of the sender (see `membership`)
//! about evidence           see `admissions::wire`
//! link tags                version 1 | type 1 | said 1 | parity 1, where a key is meant | key 16, where one is told
//! channel                  version 1 | type 1 | signed declaration (see `rights::declaration`)
//! identity                 version 1 | type 1 | placement or succession (see `rights::identity`)
//! routes                   version 1 | type 1 | items (see `virga_routing::message`)
//! trace                    version 1 | type 1 | what is asked or answered (see `trace`)
//! replica                  version 1 | type 1 | part of a message about a log (see `replicas::wire`)
//! discovery                version 1 | type 1 | what is said of other nodes (see `virga_discovery::wire`)
//! lost                     version 1 | type 1 | lost 4: of a million packets of the receiver's keepalive
//! tree                     version 1 | type 1 | about events that other nodes pass on (see `tree::wire`)
//! nat                      version 1 | type 1 | what is said of ways through NATs (see `virga_nat::wire`)
//! again                    version 1 | type 1: of channels and identities some found no room
//! ```
//! Big-endian; one way to write each message; what is unknown, too short or too long is refused.

use super::tree::wire as tree;
use crate::{
    admissions::{Publication, wire::PUBLICATION_BYTES_MAX},
    capability::statement::STATEMENT_BYTES_MAX,
    membership::MEMBERSHIP_BYTES,
    replicas::wire::{self, Part},
    rights::{
        Fault, Refusal, chain::CHAIN_BYTES_MAX, declaration::DECLARATION_BYTES_MAX,
        identity::IDENTITY_BYTES_MAX, revocation::LIST_BYTES_MAX,
    },
    tags::Said,
    trace,
};
use thiserror::Error;
use virga_ebpf::tag::TagKey;
use virga_transport::ChannelName;

/// First byte of every message.
pub const VERSION: u8 = 1;
/// Bytes of the largest message.
pub const MESSAGE_BYTES_MAX: usize = 2 + LIST_BYTES_MAX;

/// Bytes of the longest words of a refusal.
pub const WORDS_BYTES_MAX: usize = 1_024;

const _: () = assert!(CHAIN_BYTES_MAX <= LIST_BYTES_MAX && 6 + 255 <= LIST_BYTES_MAX);
const _: () = assert!(STATEMENT_BYTES_MAX <= LIST_BYTES_MAX);
const _: () = assert!(2 + 9 + WORDS_BYTES_MAX <= MESSAGE_BYTES_MAX);
const _: () = assert!(PUBLICATION_BYTES_MAX <= LIST_BYTES_MAX);
const _: () = assert!(DECLARATION_BYTES_MAX <= LIST_BYTES_MAX);
const _: () = assert!(IDENTITY_BYTES_MAX <= LIST_BYTES_MAX);
const _: () = assert!(virga_routing::limits::MESSAGE_BYTES_MAX <= LIST_BYTES_MAX);
const _: () = assert!(virga_discovery::wire::MESSAGE_BYTES_MAX <= LIST_BYTES_MAX);
const _: () = assert!(virga_nat::wire::MESSAGE_BYTES_MAX <= LIST_BYTES_MAX);
const _: () = assert!(trace::TRACE_BYTES_MAX <= LIST_BYTES_MAX);
const _: () = assert!(wire::BYTES_MAX <= LIST_BYTES_MAX);
const _: () = assert!(tree::BYTES_MAX <= LIST_BYTES_MAX);

/// Which channels a subscription means.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pattern {
    /// This one.
    Channel(ChannelName),
    /// This one and all below it.
    Prefix(ChannelName),
}

impl Pattern {
    /// The subscriptions to many that mean a channel.
    pub(crate) fn around(name: &ChannelName) -> impl Iterator<Item = Self> + '_ {
        let text = name.as_str();
        let ends = text.match_indices('/').map(|(at, _)| at);
        let levels = ends.chain([text.len()]).map(|end| &text[..end]);
        levels
            .filter_map(|level| ChannelName::parse(level).ok())
            .map(Self::Prefix)
    }

    /// Whether the channel is meant.
    #[must_use]
    pub fn matches(&self, channel: &ChannelName) -> bool {
        match self {
            Self::Channel(name) => name == channel,
            Self::Prefix(prefix) => channel.is_within(prefix),
        }
    }

    /// The name in it.
    #[must_use]
    pub const fn name(&self) -> &ChannelName {
        match self {
            Self::Channel(name) | Self::Prefix(name) => name,
        }
    }

    /// `channel` or `prefix`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Channel(_) => "channel",
            Self::Prefix(_) => "prefix",
        }
    }
}

/// How a publisher answers a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This many channels are delivered from now on.
    Granted(u32),
    /// The publisher has no such channel.
    UnknownChannel,
    /// The subscriber's entity has no right to any of them.
    NotAuthorised,
    /// The publisher's own entity may not publish on any of them.
    NotPublished,
    /// The subscriber has too many subscriptions there.
    TooMany,
    /// The channel requires a token, and no token of the subscriber's gives the right.
    Token(Fault),
    /// What is vouched for of the subscriber's entity is not what the channel asks for: which part of
    /// its filter failed, in words.
    Capability(String),
    /// The subscriber asks more often than it may; it asks again later.
    TooOften,
}

impl Answer {
    /// The answer to whoever may have none of the channels for this.
    #[must_use]
    pub fn refused(refusal: &Refusal) -> Self {
        if refusal.fault() != Fault::Capability {
            return Self::Token(refusal.fault());
        }
        let mut words = refusal.to_string();
        while words.len() > WORDS_BYTES_MAX {
            words.pop();
        }
        Self::Capability(words)
    }

    /// A word for people.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Granted(_) => "granted",
            Self::UnknownChannel => "unknown_channel",
            Self::NotAuthorised => "not_authorised",
            Self::NotPublished => "not_published",
            Self::TooMany => "too_many",
            Self::Token(fault) => fault.name(),
            Self::Capability(_) => Fault::Capability.name(),
            Self::TooOften => "too_often",
        }
    }

    fn code(&self) -> (u8, u32) {
        match self {
            Self::Granted(channels) => (0, *channels),
            Self::UnknownChannel => (1, 0),
            Self::NotAuthorised => (2, 0),
            Self::NotPublished => (3, 0),
            Self::TooMany => (4, 0),
            Self::Token(fault) => (5, *fault as u32),
            Self::Capability(words) => (6, u32::try_from(words.len()).unwrap_or(u32::MAX)),
            Self::TooOften => (7, 0),
        }
    }

    /// What follows the numbers.
    fn words(&self) -> &str {
        match self {
            Self::Capability(words) => words,
            _ => "",
        }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Deliver these from now on.
    Subscribe {
        /// Comes back in the acknowledgement.
        request: u32,
        /// Which ones.
        pattern: Pattern,
    },
    /// Deliver these no more.
    Unsubscribe {
        /// Comes back in the acknowledgement.
        request: u32,
        /// Exactly what was subscribed to before.
        pattern: Pattern,
    },
    /// The answer to either.
    Ack {
        /// What is answered.
        request: u32,
        /// How.
        answer: Answer,
    },
    /// Pause: a subscriber of this reliable channel is slow.
    Hold(ChannelName),
    /// Go on.
    Release(ChannelName),
    /// Says what the sender's entity may do.
    Token(Vec<u8>),
    /// What an issuer has taken back.
    Revocations(Vec<u8>),
    /// What the sender's entity is and has, by an issuer's word or its own.
    Statement(Vec<u8>),
    /// Signed: the subnet that the sender's node is in.
    Membership(Vec<u8>),
    /// About evidence that forwarders need.
    Publication(Publication),
    /// What a neighbour says of the link tags between both.
    LinkTags(Said),
    /// A channel that an authority has declared.
    Channel(Vec<u8>),
    /// Where an entity is, or which key it has now.
    Identity(Vec<u8>),
    /// What a neighbour says about routes.
    Routes(Vec<u8>),
    /// Which other nodes there are, and who of them lives.
    Discovery(Vec<u8>),
    /// Of a million packets of the link's keepalive that the receiver sends, so many do not come.
    Lost(u32),
    /// Where nodes behind NATs are, and whether they were reached.
    Nat(Vec<u8>),
    /// Which way packets go.
    Trace(trace::Said),
    /// About a log that several nodes hold or read.
    Replica(Part),
    /// About a channel's events that other nodes pass on.
    Tree(tree::Said),
    /// Show all channels and identities again.
    Again,
}

/// Why bytes are not a message; the sender is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Ends before it should.
    #[error("the message is too short")]
    Short,
    /// Goes on after it should have ended.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    /// Another version than [`VERSION`].
    #[error("version {0} is not known")]
    Version(u8),
    /// A type, kind or answer that there is not.
    #[error("{field} {value} is not known")]
    Unknown {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: u8,
    },
    /// The name breaks the rules for names.
    #[error("the channel name is not valid")]
    Name,
    /// Words that are too long, or cannot be shown.
    #[error("the words are not valid")]
    Words,
    /// What it says about evidence has another form.
    #[error("what it says about evidence cannot be read")]
    Publication,
    /// It says that more was lost than was sent.
    #[error("{0} of a million packets cannot be lost")]
    Lost(u32),
    /// What it asks or answers about the way of packets has another form.
    #[error("what it says about the way of packets cannot be read")]
    Trace,
    /// What it says about a log has another form.
    #[error("what it says about a log cannot be read")]
    Replica,
    /// What it says about events that others pass on has another form.
    #[error("what it says about events that others pass on cannot be read")]
    Tree,
}

impl Message {
    /// The bytes of the message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        match self {
            Self::Subscribe { request, pattern } => write_pattern(&mut out, 1, *request, pattern),
            Self::Unsubscribe { request, pattern } => write_pattern(&mut out, 2, *request, pattern),
            Self::Ack { request, answer } => {
                let (code, granted) = answer.code();
                out.push(3);
                out.extend(request.to_be_bytes());
                out.push(code);
                out.extend(granted.to_be_bytes());
                out.extend(answer.words().as_bytes());
            }
            Self::Hold(name) => {
                out.push(4);
                write_name(&mut out, name);
            }
            Self::Release(name) => {
                out.push(5);
                write_name(&mut out, name);
            }
            Self::Token(chain) => {
                out.push(6);
                out.extend(chain);
            }
            Self::Revocations(list) => {
                out.push(7);
                out.extend(list);
            }
            Self::Statement(statement) => {
                out.push(8);
                out.extend(statement);
            }
            Self::Membership(membership) => {
                out.push(9);
                out.extend(membership);
            }
            Self::Publication(publication) => publication.write(&mut out),
            Self::Channel(declaration) => {
                out.push(10);
                out.extend(declaration);
            }
            Self::Identity(signed) => {
                out.push(16);
                out.extend(signed);
            }
            Self::Routes(items) => {
                out.push(24);
                out.extend(items);
            }
            Self::Discovery(said) => {
                out.push(30);
                out.extend(said);
            }
            Self::Nat(said) => {
                out.push(32);
                out.extend(said);
            }
            Self::Again => out.push(19),
            Self::Lost(ppm) => {
                out.push(31);
                out.extend(ppm.to_be_bytes());
            }
            Self::Trace(said) => {
                out.push(28);
                said.write(&mut out);
            }
            Self::Replica(part) => {
                out.push(29);
                part.write(&mut out);
            }
            Self::Tree(said) => {
                out.push(33);
                said.write(&mut out);
            }
            Self::LinkTags(said) => {
                out.push(11);
                match said {
                    Said::Check { parity, key } => {
                        out.extend([0, *parity]);
                        out.extend(key.to_bytes());
                    }
                    Said::Unchecked => out.push(1),
                    Said::Tagged { parity } => out.extend([2, *parity]),
                    Said::Untagged => out.push(3),
                }
            }
        }
        out
    }

    /// Reads one message, all of `bytes`.
    ///
    /// # Errors
    /// See [`MessageError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, MessageError> {
        let mut rest = Rest(bytes);
        match rest.byte()? {
            VERSION => {}
            version => return Err(MessageError::Version(version)),
        }
        let message = match rest.byte()? {
            1 => {
                let (request, pattern) = (rest.u32()?, rest.pattern()?);
                Self::Subscribe { request, pattern }
            }
            2 => {
                let (request, pattern) = (rest.u32()?, rest.pattern()?);
                Self::Unsubscribe { request, pattern }
            }
            3 => {
                let (request, answer) = (rest.u32()?, rest.answer()?);
                Self::Ack { request, answer }
            }
            4 => Self::Hold(rest.name()?),
            5 => Self::Release(rest.name()?),
            6 => Self::Token(rest.all(CHAIN_BYTES_MAX)?),
            7 => Self::Revocations(rest.all(LIST_BYTES_MAX)?),
            8 => Self::Statement(rest.all(STATEMENT_BYTES_MAX)?),
            9 => Self::Membership(rest.all(MEMBERSHIP_BYTES)?),
            11 => Self::LinkTags(rest.said()?),
            kind if Publication::is_type(kind) => {
                let said = Publication::parse(kind, &rest.all(PUBLICATION_BYTES_MAX)?);
                Self::Publication(said.ok_or(MessageError::Publication)?)
            }
            10 => Self::Channel(rest.all(DECLARATION_BYTES_MAX)?),
            16 => Self::Identity(rest.all(IDENTITY_BYTES_MAX)?),
            24 => Self::Routes(rest.all(virga_routing::limits::MESSAGE_BYTES_MAX)?),
            30 => Self::Discovery(rest.all(virga_discovery::wire::MESSAGE_BYTES_MAX)?),
            32 => Self::Nat(rest.all(virga_nat::wire::MESSAGE_BYTES_MAX)?),
            19 => Self::Again,
            31 => match rest.u32()? {
                ppm @ 0..=1_000_000 => Self::Lost(ppm),
                more => return Err(MessageError::Lost(more)),
            },
            28 => {
                let said = trace::Said::parse(&rest.all(trace::TRACE_BYTES_MAX)?);
                Self::Trace(said.ok_or(MessageError::Trace)?)
            }
            29 => {
                let part = Part::parse(&rest.all(wire::BYTES_MAX)?);
                Self::Replica(part.ok_or(MessageError::Replica)?)
            }
            33 => {
                let said = tree::Said::parse(&rest.all(tree::BYTES_MAX)?);
                Self::Tree(said.ok_or(MessageError::Tree)?)
            }
            value => {
                let field = "type";
                return Err(MessageError::Unknown { field, value });
            }
        };
        match rest.0.len() {
            0 => Ok(message),
            trailing => Err(MessageError::Trailing(trailing)),
        }
    }
}

fn write_pattern(out: &mut Vec<u8>, kind: u8, request: u32, pattern: &Pattern) {
    out.push(kind);
    out.extend(request.to_be_bytes());
    out.push(match pattern {
        Pattern::Channel(_) => 0,
        Pattern::Prefix(_) => 1,
    });
    write_name(out, pattern.name());
}

fn write_name(out: &mut Vec<u8>, name: &ChannelName) {
    let name = name.as_str().as_bytes();
    // A valid name has 1 to 255 bytes.
    out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.extend(name);
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], MessageError> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(MessageError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    /// What is left, which has a reader of its own.
    fn all(&mut self, bytes_max: usize) -> Result<Vec<u8>, MessageError> {
        match self.0.len() {
            0 => Err(MessageError::Short),
            bytes if bytes > bytes_max => Err(MessageError::Trailing(bytes - bytes_max)),
            bytes => self.take(bytes).map(<[u8]>::to_vec),
        }
    }

    fn byte(&mut self) -> Result<u8, MessageError> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, MessageError> {
        let bytes = self.take(4)?.first_chunk().ok_or(MessageError::Short)?;
        Ok(u32::from_be_bytes(*bytes))
    }

    fn name(&mut self) -> Result<ChannelName, MessageError> {
        let bytes = self.byte()?;
        let text = std::str::from_utf8(self.take(bytes.into())?).map_err(|_| MessageError::Name)?;
        ChannelName::parse(text).map_err(|_| MessageError::Name)
    }

    /// Text that can be shown to people as it is.
    fn words(&mut self, bytes: u32) -> Result<String, MessageError> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        if bytes > WORDS_BYTES_MAX {
            return Err(MessageError::Words);
        }
        let words = std::str::from_utf8(self.take(bytes)?).map_err(|_| MessageError::Words)?;
        match words.chars().any(char::is_control) {
            true => Err(MessageError::Words),
            false => Ok(words.to_owned()),
        }
    }

    fn said(&mut self) -> Result<Said, MessageError> {
        match self.byte()? {
            0 => {
                let parity = self.parity()?;
                let key = self.take(16)?.first_chunk().ok_or(MessageError::Short)?;
                let key = TagKey::from_bytes(key);
                Ok(Said::Check { parity, key })
            }
            1 => Ok(Said::Unchecked),
            2 => Ok(Said::Tagged {
                parity: self.parity()?,
            }),
            3 => Ok(Said::Untagged),
            value => {
                let field = "said of link tags";
                Err(MessageError::Unknown { field, value })
            }
        }
    }

    fn parity(&mut self) -> Result<u8, MessageError> {
        match self.byte()? {
            parity @ (0 | 1) => Ok(parity),
            value => {
                let field = "parity";
                Err(MessageError::Unknown { field, value })
            }
        }
    }

    fn pattern(&mut self) -> Result<Pattern, MessageError> {
        let kind = self.byte()?;
        let name = self.name()?;
        match kind {
            0 => Ok(Pattern::Channel(name)),
            1 => Ok(Pattern::Prefix(name)),
            value => {
                let field = "kind";
                Err(MessageError::Unknown { field, value })
            }
        }
    }

    fn answer(&mut self) -> Result<Answer, MessageError> {
        let (value, granted) = (self.byte()?, self.u32()?);
        let answer = match (value, granted) {
            (0, granted) => Answer::Granted(granted),
            (1, 0) => Answer::UnknownChannel,
            (2, 0) => Answer::NotAuthorised,
            (3, 0) => Answer::NotPublished,
            (4, 0) => Answer::TooMany,
            (5, fault) => {
                let index = usize::try_from(fault).unwrap_or(usize::MAX);
                let fault = Fault::ALL.get(index).ok_or(MessageError::Unknown {
                    field: "token's fault",
                    value,
                })?;
                Answer::Token(*fault)
            }
            (6, bytes) => Answer::Capability(self.words(bytes)?),
            (7, 0) => Answer::TooOften,
            _ => {
                let field = "answer";
                return Err(MessageError::Unknown { field, value });
            }
        };
        Ok(answer)
    }
}

#[cfg(test)]
mod tests;
