//! What a log is called, and the folder that it therefore has.

use crate::limits::NAME_BYTES_MAX;
use std::fmt;
use thiserror::Error;

/// Stands for `/` in a folder's name: no name holds it.
const SLASH: &str = "+";

/// A log's name: a channel's full name, by the same rules.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogName(Box<str>);

/// Why a text is no log's name; nothing was touched.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Empty, or longer than [`NAME_BYTES_MAX`].
    #[error("a log's name has 1 to {NAME_BYTES_MAX} bytes, not {0}")]
    Length(usize),
    /// Another character than the allowed ones.
    #[error("a log's name is made of a-z A-Z 0-9 - _ . / and holds no {0:?}")]
    Character(char),
    /// A slash at the beginning or the end, or two in a row.
    #[error("a log's name neither begins nor ends with a slash, and has no two in a row")]
    Slash,
    /// A level that a file system takes for a folder itself or the one above.
    #[error("no level of a log's name is `.` or `..`")]
    Dots,
}

impl LogName {
    /// Checks a name.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn parse(name: &str) -> Result<Self, NameError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(NameError::Length(name.len()));
        }
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if let Some(other) = name.chars().find(|c| !is_allowed(*c)) {
            return Err(NameError::Character(other));
        }
        for level in name.split('/') {
            match level {
                "" => return Err(NameError::Slash),
                "." | ".." => return Err(NameError::Dots),
                _ => {}
            }
        }
        Ok(Self(name.into()))
    }

    /// The name of the log that has this folder.
    ///
    /// # Errors
    /// When no log has such a folder.
    pub fn of_folder(folder: &str) -> Result<Self, NameError> {
        if folder.contains('/') {
            return Err(NameError::Slash);
        }
        Self::parse(&folder.replace(SLASH, "/"))
    }

    /// The name of its folder: one level, whatever the name.
    #[must_use]
    pub fn folder(&self) -> String {
        self.0.replace('/', SLASH)
    }

    /// As it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leaves_the_folder() {
        for (name, error) in [
            ("", NameError::Length(0)),
            ("..", NameError::Dots),
            (".", NameError::Dots),
            ("a/../../etc", NameError::Dots),
            ("/etc", NameError::Slash),
            ("a/", NameError::Slash),
            ("a//b", NameError::Slash),
            ("a\0b", NameError::Character('\0')),
            ("a+b", NameError::Character('+')),
            ("ä", NameError::Character('ä')),
        ] {
            assert_eq!(LogName::parse(name), Err(error), "{name:?}");
        }
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        assert_eq!(LogName::parse(&long), Err(NameError::Length(256)));
    }

    #[test]
    fn a_folder_is_one_level_and_says_the_name() {
        for name in ["a", "a/b", "metrics/edge-a", "...", "a/.b", "a..b/c"] {
            let parsed = LogName::parse(name).unwrap();
            assert!(!parsed.folder().contains('/'));
            assert_eq!(LogName::of_folder(&parsed.folder()), Ok(parsed));
        }
        assert_ne!(
            LogName::parse("a/b").unwrap().folder(),
            LogName::parse("a_b").unwrap().folder()
        );
        assert!(LogName::of_folder("a/b").is_err());
        assert!(LogName::of_folder("..").is_err());
    }
}
