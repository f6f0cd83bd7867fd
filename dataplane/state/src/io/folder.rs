//! A log's folder on a real disk.

use crate::disk::{Disk, DiskFile};
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

const LOCK_NAME: &str = "lock";

/// See the module.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    folder: File,
    /// Held while this is; none where nothing is written.
    lock: Option<File>,
}

impl Folder {
    /// Makes the folder if need be, and locks it against all other writers.
    ///
    /// # Errors
    /// What the system said; `WouldBlock` where another writer has it.
    pub fn lock(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        if let Some(above) = path.parent() {
            File::open(above)?.sync_all()?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path.join(LOCK_NAME))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self {
            path: path.to_owned(),
            folder: File::open(path)?,
            lock: Some(lock),
        })
    }

    /// Opens the folder of a log that perhaps another process writes; nothing is changed by it.
    ///
    /// # Errors
    /// What the system said.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            folder: File::open(path)?,
            lock: None,
        })
    }

    /// Another handle of the same writer, which holds the lock as well.
    ///
    /// # Errors
    /// What the system said.
    pub fn share(&self) -> io::Result<Self> {
        Ok(Self {
            path: self.path.clone(),
            folder: self.folder.try_clone()?,
            lock: self.lock.as_ref().map(File::try_clone).transpose()?,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn check_writer(&self) -> io::Result<()> {
        match self.lock {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        }
    }
}

impl Disk for Folder {
    type File = File;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // What is not UTF-8 is none of a log's files.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(self.lock.is_some())
            .open(self.path.join(name))
    }

    fn make(&self, name: &str, bytes: u64) -> io::Result<File> {
        self.check_writer()?;
        let path = self.path.join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        let made = match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            // This file system cannot: room is then found while writing.
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes),
            allocated => allocated.map_err(io::Error::from),
        };
        if let Err(error) = made.and_then(|()| file.sync_all()) {
            // The room that it took is needed elsewhere; the first error says what is wrong.
            let _second = fs::remove_file(&path);
            return Err(error);
        }
        Ok(file)
    }

    fn store(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.check_writer()?;
        let path = self.path.join(name);
        let new = self.path.join(format!("{name}.new"));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(&new)?.write_all_at(content, 0)?;
        fs::rename(new, path)
    }

    fn rename(&self, name: &str, by: &str) -> io::Result<()> {
        self.check_writer()?;
        fs::rename(self.path.join(by), self.path.join(name))
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.folder.sync_all()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.check_writer()?;
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

impl DiskFile for File {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, into, at)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::write_at(self, bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn cut(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }
}
