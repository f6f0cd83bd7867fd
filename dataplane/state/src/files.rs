//! A log's actions, performed on a disk one after the other.

use crate::{
    Log,
    action::Action,
    disk::{Disk, DiskFile},
    format::{MANIFEST_NAME, index_name, segment_name},
};
use std::{collections::VecDeque, io};

/// Files that are held open: the one that is written to, the one before, the one made ahead.
const OPEN_MAX: usize = 3;

/// A log's folder, and the files of it that are written to.
#[derive(Debug)]
pub struct Files<D: Disk> {
    disk: D,
    manifest: D::File,
    segments: VecDeque<(u32, D::File)>,
}

impl<D: Disk> Files<D> {
    /// Of a log that was recovered.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(disk: D) -> io::Result<Self> {
        let manifest = disk.open(MANIFEST_NAME)?;
        let segments = VecDeque::with_capacity(OPEN_MAX);
        Ok(Self {
            disk,
            manifest,
            segments,
        })
    }

    /// The folder.
    pub const fn disk(&self) -> &D {
        &self.disk
    }

    /// The file of a segment.
    ///
    /// # Errors
    /// What the system said.
    pub fn segment(&mut self, number: u32) -> io::Result<&D::File> {
        let held = self.segments.iter().position(|(n, _)| *n == number);
        let at = match held {
            Some(at) => at,
            None => {
                let file = self.disk.open(&segment_name(number))?;
                self.hold(number, file)
            }
        };
        let found = self.segments.get(at).map(|(_, file)| file);
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Lets go of a segment: another file takes its place.
    pub(crate) fn let_go(&mut self, number: u32) {
        self.segments.retain(|(held, _)| *held != number);
    }

    /// Lets go of all segments: they were changed beside this.
    pub(crate) fn release(&mut self) {
        self.segments.clear();
    }

    fn hold(&mut self, number: u32, file: D::File) -> usize {
        if self.segments.len() == OPEN_MAX {
            self.segments.pop_front();
        }
        self.segments.push_back((number, file));
        self.segments.len() - 1
    }

    /// Does what the log asks for.
    ///
    /// # Errors
    /// What the system said; the log has to be told.
    pub fn perform(&mut self, action: &Action<'_>) -> io::Result<usize> {
        match action {
            Action::Create { segment, bytes } => {
                self.let_go(*segment);
                let file = self.disk.create(&segment_name(*segment), *bytes)?;
                self.hold(*segment, file);
                Ok(0)
            }
            Action::Reserve { segment, bytes } => {
                self.segment(*segment)?.reserve(*bytes)?;
                Ok(0)
            }
            Action::Write {
                segment,
                at,
                bytes,
                sync,
            } => {
                let file = self.segment(*segment)?;
                let written = file.write_at(*at, bytes)?;
                if *sync && written == bytes.len() {
                    file.sync()?;
                }
                Ok(written)
            }
            Action::Sync { segment } => self.segment(*segment)?.sync().map(|()| 0),
            Action::Finish {
                segment,
                bytes,
                index,
            } => {
                self.segment(*segment)?.cut(*bytes)?;
                self.disk.store(&index_name(*segment), index)?;
                Ok(0)
            }
            Action::Mark { at, bytes } => {
                self.manifest.write_full(*at, &bytes[..])?;
                self.manifest.sync()?;
                Ok(0)
            }
            Action::Remove { segment } => {
                self.segments.retain(|(number, _)| number != segment);
                self.disk.remove(&segment_name(*segment))?;
                self.disk.remove(&index_name(*segment))?;
                Ok(0)
            }
        }
    }

    /// Performs the log's next action; false where there is none now.
    pub fn step(&mut self, log: &mut Log, now_unix_ns: u64) -> bool {
        let Some(action) = log.poll_action(now_unix_ns) else {
            return false;
        };
        let result = self.perform(&action);
        log.complete(now_unix_ns, result);
        true
    }
}
