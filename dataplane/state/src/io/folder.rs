//! A log's folder on a real disk.
//!
//! A log's files are regular files of its own folder: a symbolic link, a FIFO, a socket or a device under the name of one
//! is refused, since what is behind it is not the log's to wait for, to write or to cut.

use crate::disk::{Disk, DiskFile};
use rustix::{
    fs::{FallocateFlags, FlockOperation, OFlags, fallocate, fcntl_getfl, fcntl_setfl, flock},
    io::{Errno, retry_on_intr},
};
use std::{
    fs::{self, DirBuilder, File, FileType, OpenOptions},
    io,
    os::unix::fs::{
        DirBuilderExt as _, FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
};

const LOCK_NAME: &str = "lock";
/// What `stat(2)` counts a file's room in.
const BLOCK_BYTES: u64 = 512;

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
        make_folder(path)?;
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(0o600);
        let lock = open_regular(&path.join(LOCK_NAME), &mut options)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self {
            path: path.to_owned(),
            folder: open_folder(path)?,
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
            folder: open_folder(path)?,
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

/// Makes a folder, and those above it that are missing: when this returns, all are there for good.
///
/// Each is synced before the next is made, so that where a crash cut this short only the lowest one that is there can be
/// unsynced.
fn make_folder(path: &Path) -> io::Result<()> {
    let mut folders = Vec::new();
    for folder in path.ancestors().filter(|p| !p.as_os_str().is_empty()) {
        folders.push(folder);
        if folder.is_dir() {
            break;
        }
    }
    for folder in folders.into_iter().rev() {
        let is_new = !folder.is_dir();
        if is_new {
            match DirBuilder::new().mode(0o700).create(folder) {
                // Another process made it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
                made => made?,
            }
        }
        let above = match folder.parent() {
            None => continue,
            Some(above) if above.as_os_str().is_empty() => Path::new("."),
            Some(above) => above,
        };
        match open_folder(above).and_then(|above| above.sync_all()) {
            // Nobody makes a log's folder where nothing may be read or written.
            Err(error) if !is_new && is_not_ours(&error) => {}
            synced => synced?,
        }
    }
    Ok(())
}

fn is_not_ours(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            // What a file system says that knows no sync, as one that is read only.
            | io::ErrorKind::InvalidInput
    )
}

/// Opens a folder, and waits for nothing else that may be there.
fn open_folder(path: &Path) -> io::Result<File> {
    let directory = i32::try_from(OFlags::DIRECTORY.bits()).map_err(io::Error::other)?;
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(directory).open(path)
}

/// Opens a regular file; see the module for what is none.
fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // Else a FIFO is waited for until somebody opens its other end.
    let careful = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let careful = i32::try_from(careful.bits()).map_err(io::Error::other)?;
    let file = match options.custom_flags(careful).open(path) {
        Ok(file) => file,
        Err(error) => {
            let found = path.symlink_metadata().map(|found| found.file_type());
            let foreign = found.ok().filter(|found| !found.is_file());
            return Err(foreign.map_or(error, |found| refused(path, found)));
        }
    };
    let found = file.metadata()?.file_type();
    if !found.is_file() {
        return Err(refused(path, found));
    }
    // io_uring may give EAGAIN where a file is not to be waited for.
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

fn allocate(file: &File, bytes: u64) -> Result<(), Errno> {
    retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, bytes))
}

fn refused(path: &Path, found: FileType) -> io::Error {
    let what = match found {
        found if found.is_symlink() => "a symbolic link",
        found if found.is_dir() => "a folder",
        found if found.is_fifo() => "a FIFO",
        found if found.is_socket() => "a socket",
        _ => "a device",
    };
    io::Error::other(format!(
        "{} is {what}, and a log has regular files only: put the file itself there, or move this out of the log's folder",
        path.display()
    ))
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
        let mut options = OpenOptions::new();
        options.read(true).write(self.lock.is_some());
        open_regular(&self.path.join(name), &mut options)
    }

    fn make(&self, name: &str, bytes: u64) -> io::Result<File> {
        self.check_writer()?;
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options.create(true).truncate(true).mode(0o600);
        let file = open_regular(&path, &mut options)?;
        let made = match allocate(&file, bytes) {
            // This file system cannot: room is then found while writing.
            Err(Errno::OPNOTSUPP) => file.set_len(bytes),
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
        open_regular(&new, &mut options)?.write_all_at(content, 0)?;
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

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        let had = self.metadata()?;
        // Where all of it is there, XFS asks a full disk for it nevertheless.
        if had.len() >= bytes && had.blocks() >= bytes.div_ceil(BLOCK_BYTES) {
            return Ok(());
        }
        match allocate(self, bytes) {
            // As in `make`.
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(error) => {
                // A part that it took is needed elsewhere; the first error says what is wrong.
                let _second = self.set_len(had.len());
                Err(error.into())
            }
        }
    }
}
