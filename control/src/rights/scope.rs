//! What a right is for: a channel or a whole subtree, and the operations on it.

use super::signed::ObjectError;
use std::fmt;
use virga_ebpf::hash;
use virga_transport::ChannelName;

/// Names up to this long stand in a link as they are, longer ones as their digest: a link of 256 bytes
/// has no room for a name of 255.
pub const NAME_BYTES_MAX: usize = 104;
const DIGEST_BYTES: usize = 32;

/// What may be done on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Operation {
    /// Publish events.
    Publish,
    /// Get its events.
    Subscribe,
    /// Change the channel's own settings.
    Admin,
    /// Give what one has to others.
    Delegate,
}

impl Operation {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Publish, Self::Subscribe, Self::Admin, Self::Delegate];

    /// Its word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Admin => "admin",
            Self::Delegate => "delegate",
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Publish => 1,
            Self::Subscribe => 2,
            Self::Admin => 4,
            Self::Delegate => 8,
        }
    }
}

/// A set of operations, never empty.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Operations(u8);

impl Operations {
    /// `None` for an empty set.
    #[must_use]
    pub fn new(operations: &[Operation]) -> Option<Self> {
        let bits = operations.iter().fold(0, |bits, one| bits | one.bit());
        (bits != 0).then_some(Self(bits))
    }

    /// Whether it is one of them.
    #[must_use]
    pub const fn contains(self, operation: Operation) -> bool {
        self.0 & operation.bit() != 0
    }

    /// Whether all of these are among the others.
    #[must_use]
    pub const fn is_within(self, others: Self) -> bool {
        self.0 & !others.0 == 0
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Operation> {
        Operation::ALL
            .into_iter()
            .filter(move |one| self.contains(*one))
    }

    pub(super) const fn byte(self) -> u8 {
        self.0
    }

    pub(super) fn from_byte(byte: u8) -> Result<Self, ObjectError> {
        let known = Operation::ALL.iter().fold(0, |bits, one| bits | one.bit());
        let what = match byte {
            0 => "are none".to_owned(),
            _ if byte & !known != 0 => format!("are {byte:#04x}, of which some are unknown"),
            _ => return Ok(Self(byte)),
        };
        Err(ObjectError::Field {
            field: "operations",
            what,
        })
    }
}

impl fmt::Display for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Operation::name).collect();
        f.write_str(&names.join(", "))
    }
}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Operations({self})")
    }
}

/// How far a scope goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// That one channel.
    Channel,
    /// It and all below it.
    Subtree,
}

/// A channel, or a subtree of channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    target: Target,
    reach: Reach,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Name(ChannelName),
    /// A name longer than [`NAME_BYTES_MAX`].
    Digest([u8; DIGEST_BYTES]),
}

/// A channel's name with the digests of those of its levels that are too long to stand in a scope as they
/// are: what many scopes are asked about is digested once.
#[derive(Clone, Debug)]
pub struct Levels {
    name: ChannelName,
    /// Of each prefix that is longer than [`NAME_BYTES_MAX`], the shortest first.
    long: Vec<[u8; DIGEST_BYTES]>,
}

impl Levels {
    /// Of this channel.
    #[must_use]
    pub fn of(name: &ChannelName) -> Self {
        let long = prefixes(name.as_str()).filter(|prefix| prefix.len() > NAME_BYTES_MAX);
        Self {
            long: long.map(digest).collect(),
            name: name.clone(),
        }
    }

    /// The whole name.
    #[must_use]
    pub const fn name(&self) -> &ChannelName {
        &self.name
    }

    /// Each level's text, and its digest where it is long.
    fn iter(&self) -> impl Iterator<Item = (&str, Option<&[u8; DIGEST_BYTES]>)> {
        let text = self.name.as_str();
        let short = prefixes(text).take_while(|prefix| prefix.len() <= NAME_BYTES_MAX);
        let long = prefixes(text).skip_while(|prefix| prefix.len() <= NAME_BYTES_MAX);
        let digests = self.long.iter().map(Some);
        short.map(|prefix| (prefix, None)).chain(long.zip(digests))
    }
}

/// `a`, `a/b`, `a/b/c` of `a/b/c`.
fn prefixes(text: &str) -> impl Iterator<Item = &str> {
    let ends = text.match_indices('/').map(|(at, _)| at);
    ends.chain([text.len()]).map(|end| &text[..end])
}

/// At which level of a channel's name a scope's name ends, and how far it goes from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cover {
    level: usize,
    reach: Reach,
}

impl Cover {
    /// Whether nothing is covered by this that the other does not.
    pub(super) fn is_within(self, other: Self) -> bool {
        match other.reach {
            Reach::Subtree => self.level >= other.level,
            Reach::Channel => self == other,
        }
    }
}

impl Scope {
    /// That channel, or it and all below it.
    #[must_use]
    pub fn new(name: &ChannelName, reach: Reach) -> Self {
        let text = name.as_str();
        let target = if text.len() <= NAME_BYTES_MAX {
            Target::Name(name.clone())
        } else {
            Target::Digest(digest(text))
        };
        Self { target, reach }
    }

    /// Whether the channel is meant.
    #[must_use]
    pub fn covers(&self, channel: &ChannelName) -> bool {
        self.cover(&Levels::of(channel)).is_some()
    }

    /// Whether this, which means the channel, means nothing at it or below it that the other does not.
    #[must_use]
    pub fn is_within(&self, other: &Self, channel: &ChannelName) -> bool {
        let levels = Levels::of(channel);
        match (self.cover(&levels), other.cover(&levels)) {
            (Some(own), Some(others)) => own.is_within(others),
            _ => false,
        }
    }

    /// How the channel is meant, if it is.
    pub(super) fn cover(&self, channel: &Levels) -> Option<Cover> {
        let mut levels = channel.iter().enumerate();
        let (level, (prefix, _)) = levels.find(|(_, level)| self.is_named(*level))?;
        let is_whole = prefix.len() == channel.name.as_str().len();
        let is_meant = self.reach == Reach::Subtree || is_whole;
        let reach = self.reach;
        is_meant.then_some(Cover { level, reach })
    }

    fn is_named(&self, (text, digest): (&str, Option<&[u8; DIGEST_BYTES]>)) -> bool {
        match &self.target {
            Target::Name(name) => name.as_str() == text,
            Target::Digest(found) => digest == Some(found),
        }
    }

    /// The first byte: what follows, a name (0) or a digest (1), and for a subtree 2 more.
    pub(super) fn encode(&self) -> Vec<u8> {
        let subtree = match self.reach {
            Reach::Channel => 0,
            Reach::Subtree => 2,
        };
        match &self.target {
            Target::Name(name) => [&[subtree], name.as_str().as_bytes()].concat(),
            Target::Digest(digest) => [&[subtree | 1], &digest[..]].concat(),
        }
    }

    pub(super) fn parse(field: &[u8]) -> Result<Self, ObjectError> {
        let fault = |what: &str| ObjectError::Field {
            field: "scope",
            what: what.to_owned(),
        };
        let (&kind, rest) = field.split_first().ok_or_else(|| fault("is empty"))?;
        let reach = match kind & 2 {
            0 => Reach::Channel,
            _ => Reach::Subtree,
        };
        let target = match kind & !2 {
            0 if rest.len() > NAME_BYTES_MAX => {
                return Err(fault("has a name where its digest belongs"));
            }
            0 => {
                let text = std::str::from_utf8(rest).map_err(|_| fault("is not text"))?;
                let name = ChannelName::parse(text)
                    .map_err(|error| fault(&format!("is no channel: {error}")))?;
                Target::Name(name)
            }
            1 => Target::Digest(
                rest.try_into()
                    .map_err(|_| fault("has a digest of another size"))?,
            ),
            _ => return Err(fault("has an unknown kind")),
        };
        Ok(Self { target, reach })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Name(name) => write!(f, "{name}")?,
            Target::Digest(digest) => {
                write!(f, "(name with digest {})", crate::hex::encode(digest))?
            }
        }
        match self.reach {
            Reach::Channel => Ok(()),
            Reach::Subtree => f.write_str(" and all below it"),
        }
    }
}

fn digest(name: &str) -> [u8; DIGEST_BYTES] {
    hash::keyed(b"virga channel digest v1", &[name.as_bytes()])
}
