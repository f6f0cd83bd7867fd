//! A disk in memory, of which the content can be changed behind a log's back.

use std::{cell::RefCell, collections::BTreeMap, io, rc::Rc};

use virga_state::disk::{Disk, DiskFile};

type Content = Rc<RefCell<Vec<u8>>>;

/// A log's folder.
#[derive(Clone, Debug, Default)]
pub struct Memory(Rc<RefCell<BTreeMap<String, Content>>>);

/// A file of it.
#[derive(Debug)]
pub struct MemoryFile(Content);

fn place(at: u64) -> io::Result<usize> {
    usize::try_from(at).map_err(io::Error::other)
}

impl Memory {
    /// The names of all files, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.0.borrow().keys().cloned().collect()
    }

    /// Changes a file's content, if it is there.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(content) = self.0.borrow().get(name) {
            change(&mut content.borrow_mut());
        }
    }
}

impl Disk for Memory {
    type File = MemoryFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }
    fn open(&self, name: &str) -> io::Result<MemoryFile> {
        let content = self.0.borrow().get(name).cloned();
        content
            .map(MemoryFile)
            .ok_or(io::ErrorKind::NotFound.into())
    }
    fn make(&self, name: &str, bytes: u64) -> io::Result<MemoryFile> {
        let content = Content::new(RefCell::new(vec![0; place(bytes)?]));
        self.0.borrow_mut().insert(name.to_owned(), content.clone());
        Ok(MemoryFile(content))
    }
    fn store(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let content = Content::new(RefCell::new(content.to_vec()));
        self.0.borrow_mut().insert(name.to_owned(), content);
        Ok(())
    }
    fn rename(&self, name: &str, by: &str) -> io::Result<()> {
        let mut files = self.0.borrow_mut();
        let content = files.remove(by).ok_or(io::ErrorKind::NotFound)?;
        files.insert(name.to_owned(), content);
        Ok(())
    }
    fn sync_folder(&self) -> io::Result<()> {
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.borrow_mut().remove(name);
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.borrow().len() as u64)
    }
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let content = self.0.borrow();
        let rest = content.get(place(at)?..).unwrap_or_default();
        let read = rest.len().min(into.len());
        into[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<usize> {
        let (mut content, at) = (self.0.borrow_mut(), place(at)?);
        let end = at
            .checked_add(bytes.len())
            .ok_or(io::ErrorKind::StorageFull)?;
        if content.len() < end {
            content.resize(end, 0);
        }
        content[at..end].copy_from_slice(bytes);
        Ok(bytes.len())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn cut(&self, bytes: u64) -> io::Result<()> {
        self.0.borrow_mut().resize(place(bytes)?, 0);
        Ok(())
    }
    fn reserve(&self, bytes: u64) -> io::Result<()> {
        self.cut(bytes.max(self.bytes()?))
    }
}
