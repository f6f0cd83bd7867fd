//! What is wrong with a configuration file, and where.

use super::FILE_BYTES_MAX;
use std::{collections::BTreeSet, fmt, io, ops::Range, path::PathBuf};

/// Why a configuration was refused. Nothing of it is in use.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is larger than any configuration.
    #[error("{}: larger than the {} MiB that a configuration file may have; is it the right file?",
        path.display(), FILE_BYTES_MAX >> 20)]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// It holds something else than text.
    #[error("{}:{line}: {what}: the configuration file is not text; is it the right file?", path.display())]
    NotText {
        /// Which.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// What stands there.
        what: &'static str,
    },
    /// It breaks rules: all of them, in the file's order.
    #[error("{}", list(path, problems))]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// At least one.
        problems: Vec<Problem>,
    },
}

impl ConfigError {
    /// What is wrong, rule by rule; empty when it could not be read as text.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Read { .. } | Self::TooLarge { .. } | Self::NotText { .. } => &[],
            Self::Invalid { problems, .. } => problems,
        }
    }
}

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// The key, such as `node.listen` or `peers[0].via`; empty when it is about the whole file.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)?;
        if !self.fix.is_empty() {
            write!(f, "; {}", self.fix)?;
        }
        Ok(())
    }
}

fn list(path: &std::path::Path, problems: &[Problem]) -> String {
    let count = match problems.len() {
        1 => "one problem".into(),
        n => format!("{n} problems"),
    };
    let mut text = format!("{count} in the configuration file {}", path.display());
    for problem in problems {
        let Problem { line, column, .. } = problem;
        text.push_str(&format!(
            "\n  {}:{line}:{column}: {problem}",
            path.display()
        ));
    }
    text
}

/// A table of the file: where it stands and what its keys are called in messages.
#[derive(Clone, Debug)]
pub(super) struct Section {
    path: String,
    span: Range<usize>,
}

impl Section {
    pub(super) fn new(path: impl Into<String>, span: Range<usize>) -> Self {
        Self {
            path: path.into(),
            span,
        }
    }

    pub(super) fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }
}

/// Collects problems while the rules run.
pub(super) struct Report<'a> {
    text: &'a str,
    problems: Vec<(usize, Problem)>,
    /// Keys that were there with the wrong type: reported, and not missing.
    mistyped: BTreeSet<String>,
}

impl<'a> Report<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            problems: Vec::new(),
            mistyped: BTreeSet::new(),
        }
    }

    pub(super) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// The line, counted from 1, that a span starts on.
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        position(self.text, span.start).0
    }

    /// Notes one broken rule at `span`, in bytes of the file.
    pub(super) fn add(
        &mut self,
        span: Range<usize>,
        key: impl Into<String>,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let start = span.start.min(self.text.len());
        let (line, column) = position(self.text, start);
        let (key, what, fix) = (key.into(), what.into(), fix.into());
        self.problems.push((
            start,
            Problem {
                line,
                column,
                key,
                what,
                fix,
            },
        ));
    }

    /// Notes a value of the wrong type, and that its key is not missing.
    pub(super) fn add_mistyped(&mut self, span: Range<usize>, key: &str, what: &str, fix: String) {
        self.mistyped.insert(key.into());
        self.add(span, key, what, fix);
    }

    /// Whether a value of the wrong type stood there.
    pub(super) fn is_mistyped(&self, key: &str) -> bool {
        self.mistyped.contains(key)
    }

    /// The value of a key that must be there.
    pub(super) fn required<T>(
        &mut self,
        section: &Section,
        key: &str,
        value: Option<T>,
        example: &str,
    ) -> Option<T> {
        let key = section.key(key);
        if value.is_none() && !self.is_mistyped(&key) {
            let short = key.rsplit('.').next().unwrap_or_default();
            let fix = format!("add a line such as: {short} = {example}");
            self.add(section.span.clone(), &key, "is missing", fix);
        }
        value
    }

    /// Everything noted, in the file's order.
    pub(super) fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|(start, _)| *start);
        self.problems
            .into_iter()
            .map(|(_, problem)| problem)
            .collect()
    }
}

/// A file's bytes as text, or the line that is none, and what stands there.
pub(super) fn text(bytes: &[u8]) -> Result<&str, (usize, &'static str)> {
    let line = |end: usize| {
        bytes
            .iter()
            .take(end)
            .filter(|byte| **byte == b'\n')
            .count()
            + 1
    };
    let text = std::str::from_utf8(bytes)
        .map_err(|error| (line(error.valid_up_to()), "bytes that are not UTF-8"))?;
    match text.find('\0') {
        Some(place) => Err((line(place), "a zero byte")),
        None => Ok(text),
    }
}

/// Line and column, both counted from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    (line, before[line_start..].chars().count() + 1)
}

/// The most similar of `known`, when it is similar enough to be what was meant.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let distance_max = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= distance_max)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// What to do about an unknown word: the nearest known one, or all of them.
pub(super) fn suggest<'k>(word: &str, known: impl IntoIterator<Item = &'k str> + Clone) -> String {
    if let Some(near) = nearest(word, known.clone()) {
        return format!("did you mean `{near}`?");
    }
    let all: Vec<String> = known.into_iter().map(|word| format!("`{word}`")).collect();
    match all.is_empty() {
        true => "there is none to choose from".into(),
        false => format!("known are {}", all.join(", ")),
    }
}
