//! A disk that keeps what was synced, and of all else any part.

use crate::disk::{Disk, DiskFile};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io,
    rc::Rc,
};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Piece {
    Write(usize, Vec<u8>),
    Cut(usize),
}

impl Piece {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Write(at, bytes) => {
                let end = at + bytes.len();
                if to.len() < end {
                    to.resize(end, 0);
                }
                to[*at..end].copy_from_slice(bytes);
            }
            Self::Cut(bytes) => to.resize(*bytes, 0),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Content {
    on_disk: Vec<u8>,
    now: Vec<u8>,
    unsynced: Vec<Piece>,
    /// Whether its name may be lost.
    is_unnamed: bool,
}

/// A file that has another's name since.
#[derive(Clone, Debug)]
struct Renamed {
    name: String,
    by: String,
    before: Option<Content>,
}

/// How the disk behaves.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) sync_fails: bool,
    /// It says that it has synced, and has not.
    pub(crate) sync_lies: bool,
    pub(crate) write_bytes_max: Option<usize>,
    pub(crate) is_full: bool,
}

#[derive(Debug, Default)]
struct Inner {
    files: BTreeMap<String, Content>,
    /// Removed, and perhaps there again after a crash.
    removed: BTreeMap<String, Content>,
    /// Put in another's place, which is perhaps there again after a crash; in their order.
    renamed: Vec<Renamed>,
    faults: Faults,
    syncs: u64,
    /// After so many more changes the power is gone: none is made any more.
    changes_left: Option<u64>,
    read_bytes: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Forgetful(Rc<RefCell<Inner>>);

#[derive(Debug)]
pub(crate) struct OpenFile {
    disk: Forgetful,
    name: String,
}

impl Forgetful {
    pub(crate) fn set(&self, faults: Faults) {
        self.0.borrow_mut().faults = faults;
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.0.borrow().syncs
    }

    pub(crate) fn read_bytes(&self) -> u64 {
        self.0.borrow().read_bytes
    }

    /// Makes so many more changes, and then none before the crash.
    pub(crate) fn die_after(&self, changes: u64) {
        self.0.borrow_mut().changes_left = Some(changes);
    }

    /// The power was there all the time: what was written is as it was.
    pub(crate) fn revive(&self) {
        self.0.borrow_mut().changes_left = None;
    }

    fn change(&self) -> io::Result<()> {
        match &mut self.0.borrow_mut().changes_left {
            Some(0) => Err(io::Error::from_raw_os_error(libc::EIO)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Takes the power away: of what was not synced, `keep` says of each piece whether it is there.
    pub(crate) fn crash(&self, mut keep: impl FnMut() -> bool) {
        let mut inner = self.0.borrow_mut();
        inner.changes_left = None;
        for (name, content) in std::mem::take(&mut inner.removed) {
            if keep() && !inner.files.contains_key(&name) {
                inner.files.insert(name, content);
            }
        }
        let mut stayed = BTreeSet::new();
        for Renamed { name, by, before } in std::mem::take(&mut inner.renamed).into_iter().rev() {
            // Where a later one is there, so is what it took the place of.
            if keep() || stayed.contains(&name) {
                stayed.insert(name);
                continue;
            }
            if let Some(content) = inner.files.remove(&name) {
                inner.files.insert(by, content);
            }
            inner.files.extend(before.map(|before| (name, before)));
        }
        inner.files.retain(|_, content| {
            for piece in std::mem::take(&mut content.unsynced) {
                if keep() {
                    piece.apply(&mut content.on_disk);
                }
            }
            content.now.clone_from(&content.on_disk);
            !std::mem::take(&mut content.is_unnamed) || keep()
        });
    }

    /// Everything as it is, what is not synced too, on a disk of its own.
    pub(crate) fn copy_unsynced(&self) -> Self {
        let inner = self.0.borrow();
        Self(Rc::new(RefCell::new(Inner {
            files: inner.files.clone(),
            ..Inner::default()
        })))
    }

    pub(crate) fn content(&self, name: &str) -> Vec<u8> {
        self.0.borrow().files[name].now.clone()
    }

    pub(crate) fn put(&self, name: &str, content: Vec<u8>) {
        let content = Content {
            on_disk: content.clone(),
            now: content,
            ..Content::default()
        };
        self.0.borrow_mut().files.insert(name.into(), content);
    }

    /// The same; its name may be lost.
    fn put_unnamed(&self, name: &str, content: Vec<u8>) {
        self.put(name, content);
        let mut inner = self.0.borrow_mut();
        if let Some(content) = inner.files.get_mut(name) {
            content.is_unnamed = true;
        }
    }

    pub(crate) fn flip(&self, name: &str, at: usize, bits: u8) {
        let mut content = self.content(name);
        content[at] ^= bits;
        self.put(name, content);
    }
}

impl Disk for Forgetful {
    type File = OpenFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.borrow().files.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<OpenFile> {
        match self.0.borrow().files.contains_key(name) {
            true => Ok(OpenFile {
                disk: self.clone(),
                name: name.into(),
            }),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn make(&self, name: &str, bytes: u64) -> io::Result<OpenFile> {
        self.change()?;
        if self.0.borrow().faults.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.put_unnamed(name, vec![0; usize::try_from(bytes).unwrap()]);
        self.open(name)
    }

    fn store(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.change()?;
        self.put_unnamed(name, content.into());
        Ok(())
    }

    fn rename(&self, name: &str, by: &str) -> io::Result<()> {
        self.change()?;
        let mut inner = self.0.borrow_mut();
        let content = inner.files.remove(by).ok_or(io::ErrorKind::NotFound)?;
        let before = inner.files.insert(name.into(), content);
        let (name, by) = (name.into(), by.into());
        inner.renamed.push(Renamed { name, by, before });
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.change()?;
        let mut inner = self.0.borrow_mut();
        inner.removed.clear();
        inner.renamed.clear();
        for content in inner.files.values_mut() {
            content.is_unnamed = false;
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change()?;
        let mut inner = self.0.borrow_mut();
        if let Some(content) = inner.files.remove(name) {
            inner.removed.insert(name.into(), content);
        }
        Ok(())
    }
}

impl OpenFile {
    fn with<T>(&self, f: impl FnOnce(&mut Content, &Faults) -> T) -> io::Result<T> {
        let mut inner = self.disk.0.borrow_mut();
        let faults = inner.faults;
        let content = inner.files.get_mut(&self.name);
        let content = content.ok_or(io::ErrorKind::NotFound)?;
        Ok(f(content, &faults))
    }
}

impl DiskFile for OpenFile {
    fn bytes(&self) -> io::Result<u64> {
        self.with(|content, _| content.now.len() as u64)
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let at = usize::try_from(at).unwrap();
        let read = self.with(|content, _| {
            let rest = content.now.get(at..).unwrap_or_default();
            let read = rest.len().min(into.len());
            into[..read].copy_from_slice(&rest[..read]);
            read
        })?;
        self.disk.0.borrow_mut().read_bytes += read as u64;
        Ok(read)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<usize> {
        self.disk.change()?;
        let at = usize::try_from(at).unwrap();
        self.with(|content, faults| {
            if faults.is_full && at + bytes.len() > content.now.len() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let bytes = &bytes[..bytes
                .len()
                .min(faults.write_bytes_max.unwrap_or(usize::MAX))];
            let mut from = 0;
            while from < bytes.len() {
                let to = bytes.len().min((at + from) / SECTOR * SECTOR + SECTOR - at);
                let piece = Piece::Write(at + from, bytes[from..to].to_vec());
                piece.apply(&mut content.now);
                content.unsynced.push(piece);
                from = to;
            }
            Ok(bytes.len())
        })?
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.change()?;
        self.disk.0.borrow_mut().syncs += 1;
        self.with(|content, faults| {
            if faults.sync_fails {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            if !faults.sync_lies {
                for piece in content.unsynced.drain(..) {
                    piece.apply(&mut content.on_disk);
                }
            }
            Ok(())
        })?
    }

    fn cut(&self, bytes: u64) -> io::Result<()> {
        self.disk.change()?;
        let bytes = usize::try_from(bytes).unwrap();
        self.with(|content, _| {
            content.now.resize(bytes, 0);
            content.unsynced.push(Piece::Cut(bytes));
        })
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        let bytes = usize::try_from(bytes).unwrap();
        let (had, is_full) = self.with(|content, faults| (content.now.len(), faults.is_full))?;
        match bytes > had {
            true if is_full => Err(io::ErrorKind::StorageFull.into()),
            true => self.cut(bytes as u64),
            false => self.disk.change(),
        }
    }
}
