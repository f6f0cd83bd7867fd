//! Channel names: what may be a name, what lies within what, and how placeholders expand.

use crate::limits::CHANNEL_NAME_BYTES_MAX;
use core::fmt;
use thiserror::Error;
use virga_ebpf::{hash, header::ChannelHash};

/// Why a text is not a channel name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("a channel name cannot be empty")]
    Empty,
    /// Longer than [`CHANNEL_NAME_BYTES_MAX`].
    #[error("the channel name has {bytes} bytes; at most {CHANNEL_NAME_BYTES_MAX} are allowed")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// A byte outside the alphabet.
    #[error("{found:?} at byte {at} is not allowed in a channel name (a-z A-Z 0-9 - _ . /)")]
    Alphabet {
        /// What was found.
        found: char,
        /// Its byte offset.
        at: usize,
    },
    /// A slash at either end, or two in a row.
    #[error("the channel name {name:?} has a leading, trailing or double slash")]
    Slash {
        /// The name in question.
        name: String,
    },
    /// A `$placeholder` that means nothing here.
    #[error("{placeholder:?} is not a placeholder; `$node` is the only one")]
    Placeholder {
        /// What followed the `$`, with it.
        placeholder: String,
    },
}

/// A valid channel name: 1 to 255 bytes of `a-z A-Z 0-9 - _ . /`, case-sensitive, with no leading,
/// trailing or double slash.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(Box<str>);

impl ChannelName {
    /// Checks `name` as it stands; placeholders are refused, see [`ChannelName::expand`].
    ///
    /// # Errors
    /// Says which rule is broken, and where.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        check(name)?;
        Ok(Self(name.into()))
    }

    /// Replaces each `$node` in `template` by `node_name`, then checks the result.
    ///
    /// A placeholder is `$` and all following letters, digits and underscores.
    ///
    /// # Errors
    /// An unknown placeholder, or what [`ChannelName::parse`] says of the expanded name.
    pub fn expand(template: &str, node_name: &str) -> Result<Self, NameError> {
        let mut parts = template.split('$');
        let mut name = String::from(parts.next().unwrap_or_default());
        for part in parts {
            let word_bytes = part
                .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .unwrap_or(part.len());
            let (word, rest) = part.split_at(word_bytes);
            if word != "node" {
                return Err(NameError::Placeholder {
                    placeholder: format!("${word}"),
                });
            }
            name.push_str(node_name);
            name.push_str(rest);
        }
        Self::parse(&name)
    }

    /// The name's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `prefix` or lies below it: `sensors/lidar` holds itself and
    /// `sensors/lidar/front`, not `sensors/lidarx`.
    #[must_use]
    pub fn is_within(&self, prefix: &Self) -> bool {
        match self.0.strip_prefix(&*prefix.0) {
            Some(rest) => rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }

    /// What a header calls this channel.
    #[must_use]
    pub fn hash(&self, salt: u32) -> ChannelHash {
        hash::channel_hash(salt, &self.0)
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The rules on a name, without an allocation: also what the frame parser asks.
pub(crate) fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > CHANNEL_NAME_BYTES_MAX {
        return Err(NameError::TooLong { bytes: name.len() });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if let Some((at, found)) = name.char_indices().find(|&(_, c)| !allowed(c)) {
        return Err(NameError::Alphabet { found, at });
    }
    if name.split('/').any(str::is_empty) {
        return Err(NameError::Slash { name: name.into() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ChannelName {
        ChannelName::parse(text).unwrap()
    }

    #[test]
    fn what_is_a_name() {
        for good in ["a", "metrics/edge-a", "A/b_c/d.e/0", &"x".repeat(255)] {
            assert_eq!(name(good).as_str(), good);
        }
        assert_eq!(ChannelName::parse(""), Err(NameError::Empty));
        let long = "x".repeat(256);
        assert_eq!(
            ChannelName::parse(&long),
            Err(NameError::TooLong { bytes: 256 })
        );
        for bad in ["/", "/a", "a/", "a//b"] {
            assert!(
                matches!(ChannelName::parse(bad), Err(NameError::Slash { .. })),
                "{bad}"
            );
        }
        for (bad, found, at) in [("a b", ' ', 1), ("aé", 'é', 1), ("$node", '$', 0)] {
            assert_eq!(
                ChannelName::parse(bad),
                Err(NameError::Alphabet { found, at })
            );
        }
    }

    #[test]
    fn a_prefix_holds_itself_and_what_lies_below() {
        let prefix = name("sensors/lidar");
        assert!(prefix.is_within(&prefix));
        assert!(name("sensors/lidar/front").is_within(&prefix));
        assert!(!name("sensors/lidarx").is_within(&prefix));
        assert!(!name("sensors").is_within(&prefix));
        assert!(!name("Sensors/lidar").is_within(&prefix));
    }

    #[test]
    fn placeholders_expand_before_the_check() {
        assert_eq!(
            ChannelName::expand("metrics/$node", "edge-a").unwrap(),
            name("metrics/edge-a")
        );
        assert_eq!(
            ChannelName::expand("$node/$node.x", "n").unwrap(),
            name("n/n.x")
        );
        let unknown = ChannelName::expand("metrics/$nodes", "edge-a");
        assert_eq!(
            unknown,
            Err(NameError::Placeholder {
                placeholder: "$nodes".into()
            })
        );
        assert!(matches!(
            ChannelName::expand("$node", ""),
            Err(NameError::Empty)
        ));
        assert!(matches!(
            ChannelName::expand("$node", "a//b"),
            Err(NameError::Slash { .. })
        ));
    }
}
