//! What a log needs of a disk. [`crate::io::folder`] is the real one; tests have one that forgets.

use std::io;

/// A log's folder, open for one writer.
pub trait Disk {
    /// A file of it.
    type File: DiskFile + std::fmt::Debug;

    /// The names of all files.
    ///
    /// # Errors
    /// What the system said.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens a file.
    ///
    /// # Errors
    /// What the system said; `NotFound` where there is none.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Makes a file of so many zeros, in place of one that may be there; when this returns, the file is on disk, and
    /// whether under that name is known after [`Disk::sync_folder`].
    ///
    /// # Errors
    /// What the system said.
    fn make(&self, name: &str, bytes: u64) -> io::Result<Self::File>;

    /// Puts a file in another's place, under its name: before either of both is there, and which after a crash is known
    /// once [`Disk::sync_folder`] has returned.
    ///
    /// # Errors
    /// What the system said: which of both is there after a crash is then not known.
    fn rename(&self, name: &str, by: &str) -> io::Result<()>;

    /// When this returns, all files have for good the names that they have now.
    ///
    /// # Errors
    /// What the system said.
    fn sync_folder(&self) -> io::Result<()>;

    /// Makes a small file with this content, in place of one that may be there: wholly or not at
    /// all, and when is the system's business.
    ///
    /// # Errors
    /// What the system said.
    fn store(&self, name: &str, content: &[u8]) -> io::Result<()>;

    /// Removes a file, if it is there; when it is gone for good is the system's business.
    ///
    /// # Errors
    /// What the system said.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes a file of so many zeros, in place of one that may be there; when this returns, file
    /// and folder entry are on disk.
    ///
    /// # Errors
    /// What the system said.
    fn create(&self, name: &str, bytes: u64) -> io::Result<Self::File> {
        let file = self.make(name, bytes)?;
        self.sync_folder()?;
        Ok(file)
    }

    /// Puts a file in another's place, under its name; when this returns that is so for good, and before either of
    /// both is there.
    ///
    /// # Errors
    /// What the system said: which of both is there after a crash is then not known.
    fn replace(&self, name: &str, by: &str) -> io::Result<()> {
        self.rename(name, by)?;
        self.sync_folder()
    }
}

/// An open file.
pub trait DiskFile {
    /// Its length.
    ///
    /// # Errors
    /// What the system said.
    fn bytes(&self) -> io::Result<u64>;

    /// Reads what is there, perhaps less than asked for; 0 at the end.
    ///
    /// # Errors
    /// What the system said.
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize>;

    /// Writes, perhaps less than asked for.
    ///
    /// # Errors
    /// What the system said.
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<usize>;

    /// When this returns, all that was written before is on disk.
    ///
    /// # Errors
    /// What the system said: what was written may then be lost, also if a later call succeeds.
    fn sync(&self) -> io::Result<()>;

    /// Ends the file there; when is the system's business.
    ///
    /// # Errors
    /// What the system said.
    fn cut(&self, bytes: u64) -> io::Result<()>;

    /// Takes room on the disk for so many bytes of it, where it has less: zeros behind its end. When that is known after a
    /// crash is the system's business.
    ///
    /// # Errors
    /// What the system said; nothing was taken then.
    fn reserve(&self, bytes: u64) -> io::Result<()>;

    /// Reads until `into` is full or the file ends; gives what was read.
    ///
    /// # Errors
    /// What the system said.
    fn read_full(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut read = 0;
        while read < into.len() {
            match self.read_at(at + read as u64, &mut into[read..]) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    /// Writes all.
    ///
    /// # Errors
    /// What the system said; `WriteZero` where it takes nothing.
    fn write_full(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while written < bytes.len() {
            match self.write_at(at + written as u64, &bytes[written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
