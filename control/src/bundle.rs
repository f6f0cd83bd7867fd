//! One archive for support: what a node is told, what it does and what it runs on, without its keys.
//!
//! - [`gather`]: what goes in; each part that cannot be had is said, and the rest is there all the same.
//! - [`redact`]: what must not: every part goes through it on its way in.
//!
//! It is a gzipped tar archive of at most [`BUNDLE_BYTES_MAX`] bytes of content.

pub mod gather;
pub mod redact;

use flate2::{Compression, write::GzEncoder};
use redact::Redactor;
use std::{
    fmt::{Display, Write as _},
    io::{self, Write},
    time::{SystemTime, UNIX_EPOCH},
};

/// Bytes of one part; of a log it is the end that stays, of all else the beginning.
pub const PART_BYTES_MAX: usize = 4 << 20;
/// Bytes of all parts together, before they are compressed.
pub const BUNDLE_BYTES_MAX: usize = 32 << 20;

/// Bytes at the beginning of a log's end in which a secret may lie that begins before them; they go.
const CUT_BYTES_MAX: usize = 4 << 10;
/// Bytes that are read of a log's end.
const LOG_BYTES_MAX: usize = PART_BYTES_MAX + CUT_BYTES_MAX;

const _: () = assert!(PART_BYTES_MAX < BUNDLE_BYTES_MAX);

/// Which end of a part that is too long stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The beginning.
    Beginning,
    /// The end, as of a log.
    End,
}

/// A part, cleaned and cut.
struct Part {
    name: String,
    content: Vec<u8>,
    is_cut: bool,
}

/// What was gathered.
#[derive(Default)]
pub struct Bundle {
    redactor: Redactor,
    parts: Vec<Part>,
    lacks: Vec<String>,
    bytes: usize,
    /// Why logs stay out.
    unsearched: Option<String>,
}

impl Bundle {
    /// What is looked for in each part from now on.
    pub fn redactor(&mut self) -> &mut Redactor {
        &mut self.redactor
    }

    /// Leaves logs out from now on: a secret that may be in them is not known here.
    pub fn distrust_logs(&mut self, why: &str) {
        self.unsearched.get_or_insert_with(|| why.to_owned());
    }

    /// Adds the end of a log, of which [`LOG_BYTES_MAX`] were read.
    pub fn add_log(&mut self, name: &str, content: &[u8]) {
        if let Some(why) = &self.unsearched {
            let why = format!("left out, as a key that may be in it cannot be looked for: {why}");
            return self.lack(name, why);
        }
        let mut cleaned = self.redactor.clean(content);
        let is_cut = content.len() >= LOG_BYTES_MAX;
        if is_cut {
            drop(cleaned.drain(..CUT_BYTES_MAX.min(cleaned.len())));
        }
        self.put(name, cleaned, (Keep::End, is_cut));
    }

    /// Adds a part.
    pub fn add(&mut self, name: &str, content: &[u8], keep: Keep) {
        // Cleaned before it is cut, so that no cut goes through a key.
        let cleaned = self.redactor.clean(content);
        self.put(name, cleaned, (keep, false));
    }

    fn put(&mut self, name: &str, mut content: Vec<u8>, (keep, is_cut): (Keep, bool)) {
        let room = PART_BYTES_MAX.min(BUNDLE_BYTES_MAX - self.bytes);
        let is_cut = is_cut || content.len() > room;
        match keep {
            Keep::Beginning => content.truncate(room),
            Keep::End => drop(content.drain(..content.len().saturating_sub(room))),
        }
        self.bytes += content.len();
        self.parts.push(Part {
            name: name.to_owned(),
            content,
            is_cut,
        });
    }

    /// Adds a value as JSON.
    pub fn add_json(&mut self, name: &str, value: &impl serde::Serialize) {
        match serde_json::to_vec_pretty(value) {
            Ok(json) => self.add(name, &json, Keep::Beginning),
            Err(error) => self.lack(name, error),
        }
    }

    /// Notes that a part could not be had.
    pub fn lack(&mut self, name: &str, why: impl Display) {
        let why = self.redactor.clean(why.to_string().as_bytes());
        let why = String::from_utf8_lossy(&why);
        self.lacks.push(format!("{name}: {why}"));
    }

    /// What could not be had, and why.
    #[must_use]
    pub fn lacks(&self) -> &[String] {
        &self.lacks
    }

    /// Writes the archive; everything in it lies below `folder`. Returns how many parts it has.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(mut self, out: impl Write, folder: &str, now: SystemTime) -> io::Result<usize> {
        let contents = self.contents();
        self.parts.insert(
            0,
            Part {
                name: "README.txt".to_owned(),
                content: contents.into_bytes(),
                is_cut: false,
            },
        );
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut archive = tar::Builder::new(GzEncoder::new(out, Compression::default()));
        for part in &self.parts {
            let mut header = tar::Header::new_gnu();
            header.set_size(part.content.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(seconds);
            let path = format!("{folder}/{}", part.name);
            archive.append_data(&mut header, path, part.content.as_slice())?;
        }
        archive.into_inner()?.finish()?.flush()?;
        Ok(self.parts.len())
    }

    /// The list of what is there and what is not.
    fn contents(&self) -> String {
        let mut text = String::from(
            "A bundle for support, made by `virga bundle`. Keys are left out; names, addresses, public keys and\n\
             channels are not: give it only to whom you would tell those.\n\n",
        );
        for part in &self.parts {
            let cut = match part.is_cut {
                true => ", cut to that",
                false => "",
            };
            // A string takes what is written to it.
            let _written = writeln!(text, "{}: {} bytes{cut}", part.name, part.content.len());
        }
        for lack in &self.lacks {
            let _written = writeln!(text, "not there: {lack}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn a_bundle_is_bounded_whatever_is_put_in_and_says_what_was_cut() {
        let mut bundle = Bundle::default();
        let long = vec![b'x'; PART_BYTES_MAX];
        bundle.add("log", &[&long, &b"end"[..]].concat(), Keep::End);
        for n in 0..20 {
            bundle.add(&n.to_string(), &long, Keep::Beginning);
        }
        bundle.lack("status.json", "nobody answers");
        assert_eq!(bundle.bytes, BUNDLE_BYTES_MAX);
        let mut file = Vec::new();
        assert_eq!(
            bundle.write(&mut file, "bundle", UNIX_EPOCH).unwrap(),
            1 + 21
        );
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file.as_slice()));
        let mut entries = archive.entries().unwrap();
        let mut read = || {
            let mut entry = entries.next().unwrap().unwrap();
            let path = entry.path().unwrap().into_owned();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            (path.display().to_string(), content)
        };
        let (path, contents) = read();
        assert_eq!(path, "bundle/README.txt");
        assert!(contents.contains("log: 4194304 bytes, cut to that\n"));
        assert!(contents.contains("\n19: 0 bytes, cut to that\n"));
        assert!(contents.contains("not there: status.json: nobody answers\n"));
        let (path, log) = read();
        assert_eq!((path.as_str(), log.len()), ("bundle/log", PART_BYTES_MAX));
        assert!(log.ends_with("xend"));
    }
}
