//! Keys, values, and sets of them.
//!
//! A capability is a key, and perhaps a value: `hardware.gpu`, `software.cuda=12.4`. What a value is
//! follows from how it is written:
//!
//! | value | such as | compares as |
//! |---|---|---|
//! | number | `12`, `-3`, `0.25` | exact decimal, 18 digits before the point and 9 after it |
//! | version | `12.4.1`, `1.0.0-rc.1`, `v12.4` | by precedence (semver.org 2.0.0, section 11) |
//! | text | anything else | equal or not, to the byte |
//!
//! Where one of two values is a version, a number beside it is read as one, too, with 0 for what is
//! missing: 12 is 12.0.0. So `12.10` is less than `12.9`, and `v12.10` is not.

use std::{cmp::Ordering, fmt};
use thiserror::Error;

/// Bytes of the longest key.
pub const KEY_BYTES_MAX: usize = 64;
/// Bytes of the longest value.
pub const VALUE_BYTES_MAX: usize = 64;
/// Capabilities of the largest set.
pub const CAPABILITIES_MAX: usize = 64;

const FRACTION_DIGITS_MAX: usize = 9;
const WHOLE_DIGITS_MAX: usize = 18;

/// Why a text is no capability.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CapabilityError {
    /// It has no characters where some are needed.
    #[error("the {0} is empty")]
    Empty(&'static str),
    /// It has too many.
    #[error("the {what} has {bytes} bytes, and may have {bytes_max}")]
    Long {
        /// Key or value.
        what: &'static str,
        /// How many it has.
        bytes: usize,
        /// How many it may have.
        bytes_max: usize,
    },
    /// A key with a character or a level that keys do not have.
    #[error("{0:?} is no key: keys are levels of a-z 0-9 - _ with single dots between")]
    Key(String),
    /// The filters' own words.
    #[error("{0:?} is a word of filters, and no key")]
    Keyword(String),
    /// A value that cannot be shown.
    #[error("the value {0:?} has a control character")]
    Control(String),
    /// The same key again.
    #[error("{0} is there twice")]
    Twice(Key),
    /// More than a set holds.
    #[error("there are more than {CAPABILITIES_MAX} capabilities")]
    Many,
}

/// What something is called: levels of `a-z 0-9 - _` with single dots between.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<str>);

impl Key {
    /// Reads a key.
    ///
    /// # Errors
    /// [`CapabilityError`].
    pub fn parse(text: &str) -> Result<Self, CapabilityError> {
        bounded("key", text, KEY_BYTES_MAX)?;
        let is_level = |level: &str| {
            let mut bytes = level.bytes();
            !level.is_empty() && bytes.all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
        };
        if !text.split('.').all(is_level) {
            return Err(CapabilityError::Key(text.to_owned()));
        }
        if is_keyword(text) {
            return Err(CapabilityError::Keyword(text.to_owned()));
        }
        Ok(Self(text.into()))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The words that filters join their parts with.
pub(super) fn is_keyword(text: &str) -> bool {
    matches!(text, "and" | "or" | "not")
}

fn bounded(what: &'static str, text: &str, bytes_max: usize) -> Result<(), CapabilityError> {
    match text.len() {
        0 => Err(CapabilityError::Empty(what)),
        bytes if bytes > bytes_max => Err(CapabilityError::Long {
            what,
            bytes,
            bytes_max,
        }),
        _ => Ok(()),
    }
}

/// A value, read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    text: Box<str>,
    reading: Reading,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Reading {
    Text,
    Number {
        billionths: i128,
        /// What it is beside a version.
        version: Option<semver::Version>,
    },
    Version(semver::Version),
}

impl Value {
    /// Reads a value.
    ///
    /// # Errors
    /// [`CapabilityError`].
    pub fn parse(text: &str) -> Result<Self, CapabilityError> {
        bounded("value", text, VALUE_BYTES_MAX)?;
        if text.chars().any(char::is_control) {
            return Err(CapabilityError::Control(text.to_owned()));
        }
        Ok(Self {
            text: text.into(),
            reading: Reading::of(text),
        })
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is before or after others of its kind.
    #[must_use]
    pub const fn is_ordered(&self) -> bool {
        !matches!(self.reading, Reading::Text)
    }

    /// How it compares; `None` where the two have nothing in common.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        match (&self.reading, &other.reading) {
            (
                Reading::Number {
                    billionths: left, ..
                },
                Reading::Number {
                    billionths: right, ..
                },
            ) => Some(left.cmp(right)),
            (Reading::Text, Reading::Text) => (self.text == other.text).then_some(Ordering::Equal),
            (left, right) => Some(left.version()?.cmp_precedence(right.version()?)),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Reading {
    fn of(text: &str) -> Self {
        if let Some(billionths) = billionths(text) {
            let version = padded_version(text);
            return Self::Number {
                billionths,
                version,
            };
        }
        let version = match text.strip_prefix('v') {
            Some(rest) => padded_version(rest),
            None => semver::Version::parse(text).ok(),
        };
        version.map_or(Self::Text, Self::Version)
    }

    const fn version(&self) -> Option<&semver::Version> {
        match self {
            Self::Text => None,
            Self::Number { version, .. } => version.as_ref(),
            Self::Version(version) => Some(version),
        }
    }
}

/// `12` and `12.4` with the zeros that a version has.
fn padded_version(text: &str) -> Option<semver::Version> {
    if let Ok(version) = semver::Version::parse(text) {
        return Some(version);
    }
    let zeros = match text.matches('.').count() {
        0 => ".0.0",
        1 => ".0",
        _ => return None,
    };
    semver::Version::parse(&format!("{text}{zeros}")).ok()
}

/// A decimal number in billionths.
fn billionths(text: &str) -> Option<i128> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let is_digits = |text: &str, most: usize| {
        (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
    };
    if !is_digits(whole, WHOLE_DIGITS_MAX) || !is_digits(fraction, FRACTION_DIGITS_MAX) {
        return None;
    }
    let number: i128 = format!("{whole}{fraction:0<FRACTION_DIGITS_MAX$}")
        .parse()
        .ok()?;
    Some(if digits.len() < text.len() {
        -number
    } else {
        number
    })
}

/// One thing that an entity is, or has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// What it is called.
    pub key: Key,
    /// How much, or which; a tag has none.
    pub value: Option<Value>,
}

impl Capability {
    /// Reads `key` or `key=value`.
    ///
    /// # Errors
    /// [`CapabilityError`].
    pub fn parse(text: &str) -> Result<Self, CapabilityError> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(Value::parse(value.trim())?)),
            None => (text, None),
        };
        let key = Key::parse(key.trim())?;
        Ok(Self { key, value })
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key)?;
        match &self.value {
            Some(value) => write!(f, "={value}"),
            None => Ok(()),
        }
    }
}

/// What one entity has: each key once, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(Vec<Capability>);

impl Capabilities {
    /// These, in any order.
    ///
    /// # Errors
    /// [`CapabilityError::Twice`], [`CapabilityError::Many`].
    pub fn new(mut all: Vec<Capability>) -> Result<Self, CapabilityError> {
        if all.len() > CAPABILITIES_MAX {
            return Err(CapabilityError::Many);
        }
        all.sort_by(|one, other| one.key.cmp(&other.key));
        match all.windows(2).find(|pair| pair[0].key == pair[1].key) {
            Some(pair) => Err(CapabilityError::Twice(pair[0].key.clone())),
            None => Ok(Self(all)),
        }
    }

    /// What is called so.
    #[must_use]
    pub fn of(&self, key: &Key) -> Option<&Capability> {
        let place = self.0.binary_search_by(|one| one.key.cmp(key)).ok()?;
        self.0.get(place)
    }

    /// All of them, by key.
    #[must_use]
    pub fn as_slice(&self) -> &[Capability] {
        &self.0
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, one) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{one}")?;
        }
        Ok(())
    }
}
