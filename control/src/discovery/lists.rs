//! A file that lists nodes, one a line, and is read again when it changes.

use crate::config::discovery::pinned_of;
use std::{
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
};
use virga_discovery::{Found, Origin, Source, source::Listed};

/// A file has no more bytes than this.
const BYTES_MAX: u64 = 1 << 20;

/// See the [module](self).
#[derive(Debug)]
pub struct ListFile {
    path: PathBuf,
    listed: Listed,
    /// What was read last, or why it could not be.
    read: Option<Result<String, String>>,
}

impl ListFile {
    /// The file at `path`; it may be there only later.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            listed: Listed::new(Origin::File),
            read: None,
        }
    }

    /// Reads it again. Where it cannot be read, what it said before counts.
    fn look(&mut self) {
        let read = read(&self.path).map_err(|error| error.to_string());
        if self.read.as_ref() == Some(&read) {
            return;
        }
        let path = self.path.display();
        match &read {
            Ok(text) => {
                let (all, wrong) = pinned_of(text);
                for what in wrong {
                    tracing::warn!(%path, "a line of the file of [discovery] does not count: {what}");
                }
                tracing::info!(%path, nodes = all.len(), "read the nodes of the file of [discovery]");
                self.listed.set(all);
            }
            Err(error) => tracing::warn!(
                %path, %error,
                "the file of [discovery] cannot be read, and what it said before counts; it is tried again"
            ),
        }
        self.read = Some(read);
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let mut most = fs::File::open(path)?.take(BYTES_MAX + 1);
    most.read_to_string(&mut text)?;
    match most.limit() {
        0 => Err(io::Error::other("it is larger than 1 MiB")),
        _ => Ok(text),
    }
}

impl Source for ListFile {
    fn origin(&self) -> Origin {
        self.listed.origin()
    }

    fn poll(&mut self, max: usize) -> Vec<Found> {
        self.look();
        self.listed.poll(max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hex,
        keys::{EntityKey, NodeKey, Secret},
    };

    #[test]
    fn what_is_wrong_in_a_line_keeps_no_other_line_from_counting_and_changes_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nodes");
        let mut file = ListFile::new(&path);
        assert_eq!(file.poll(9), [], "it is not there");
        let node = NodeKey::from(Secret::new([5; 32]));
        let entity = EntityKey::from(Secret::new([6; 32]));
        let keys = [&node.public, &entity.public].map(hex::encode).join(" ");
        fs::write(
            &path,
            format!("# nodes\nnonsense\nhub {keys} 10.0.0.1:4783 # it\n"),
        )
        .unwrap();
        let found = file.poll(9);
        assert!(
            matches!(&found[..], [Found::Pinned(pinned)] if pinned.name == "hub"),
            "{found:?}"
        );
        assert_eq!(file.poll(9), []);
        fs::write(&path, "").unwrap();
        assert_eq!(file.poll(9), [Found::Unpinned(node.id)]);
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert_eq!(file.poll(9), []);
    }
}
