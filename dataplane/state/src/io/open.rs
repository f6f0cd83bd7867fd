//! A log by its name, below a folder that holds logs.

use super::{clock, folder::Folder};
use crate::{
    Finding, Log, LogName, OpenError, Options,
    files::Files,
    format::{LogId, MANIFEST_NAME, segment_of},
    recover,
};
use std::{fs::DirEntry, io, path::Path};

/// A log that this process writes.
#[derive(Debug)]
pub struct OpenLog {
    /// What to append to.
    pub log: Log,
    /// Where its actions are performed.
    pub files: Files<Folder>,
    /// What was found when it was opened.
    pub findings: Vec<Finding>,
}

impl OpenLog {
    /// Opens a log for writing, and makes it where there is none: `fresh_id` then tells it from others.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(
        logs: &Path,
        name: &LogName,
        options: Options,
        fresh_id: LogId,
    ) -> Result<Self, OpenError> {
        let path = logs.join(name.folder());
        let folder = Folder::lock(&path).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => OpenError::Locked,
            _ => {
                let file = path.display().to_string();
                OpenError::Io { file, source }
            }
        })?;
        let (state, findings) = recover(&folder, name, fresh_id)?;
        let files = Files::open(folder).map_err(OpenError::io(MANIFEST_NAME))?;
        let log = Log::new(state, options);
        Ok(Self {
            log,
            files,
            findings,
        })
    }

    /// Performs all that is to be done now, one after the other.
    pub fn settle(&mut self) {
        while self.files.step(&mut self.log, clock::now_unix_ns()) {}
    }

    /// Writes and syncs all that was appended, and marks where the log ends.
    ///
    /// # Errors
    /// Why it ended before.
    pub fn close(mut self) -> io::Result<()> {
        self.log.close();
        self.settle();
        match self.log.failure() {
            Some(failure) => Err(io::Error::other(failure.to_owned())),
            None if self.log.is_closed() => Ok(()),
            None => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}

/// Opens a log's folder for reading, whoever writes it.
///
/// # Errors
/// See [`OpenError`].
pub fn read(logs: &Path, name: &LogName) -> Result<Folder, OpenError> {
    let path = logs.join(name.folder());
    Folder::read(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => OpenError::None,
        _ => {
            let file = path.display().to_string();
            OpenError::Io { file, source }
        }
    })
}

/// The names of all logs below a folder, in order; also of one that has lost its manifest and has segments.
///
/// # Errors
/// What the system said.
pub fn list(logs: &Path) -> io::Result<Vec<LogName>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(logs)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_str().and_then(|name| LogName::of_folder(name).ok());
        names.extend(name.filter(|_| is_log(&entry.path())));
    }
    names.sort();
    Ok(names)
}

fn is_log(folder: &Path) -> bool {
    let is_of_log = |entry: io::Result<DirEntry>| {
        let name = entry.map(|entry| entry.file_name()).unwrap_or_default();
        let is_of_log = |name| name == MANIFEST_NAME || segment_of(name).is_some();
        name.to_str().is_some_and(is_of_log)
    };
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.any(is_of_log))
}
