//! Takes what differs from the leader's log out of a replica's, and keeps it aside.
//!
//! The copies are on disk for good before anything is cut; then the last segment goes first, emptied before it
//! is removed. A crash in between leaves a log that ends somewhere behind the cut: it differs still, and is cut
//! again.

use super::Store;
use crate::{
    catalog::OpenError,
    disk::{Disk, DiskFile},
    format::{BATCH_HEADER_BYTES, BatchHeader, SEGMENT_HEADER_BYTES, index_name, segment_name},
    limits::READ_BYTES,
    sparse::SIZE_BYTES,
    walk::{self, Window},
};
use std::io;

/// What was cut off a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutOff {
    /// Offset of the first event that is not in the log any more.
    pub from: u64,
    /// Of the first after the last.
    pub to: u64,
    /// The files beside the log that have these events, as the segments had them.
    pub kept: Vec<String>,
}

/// Ends the files of a log at the begin of the batch at an offset. The log has to be opened again.
pub(super) fn cut<D: Disk>(store: &mut Store<'_, D>, offset: u64) -> Result<CutOff, OpenError> {
    let (disk, log) = (store.files.disk(), &*store.log);
    let mut kept = Vec::new();
    let mut due = Vec::new();
    for segment in log.segments() {
        let next = log.segments().iter().find(|s| s.number > segment.number);
        if next.is_some_and(|next| next.first_offset <= offset) {
            continue;
        }
        let name = segment_name(segment.number);
        let file = disk.open(&name).map_err(OpenError::io(&name))?;
        let position = match segment.first_offset >= offset {
            true => 0,
            false => position(&file, log.id(), offset).map_err(OpenError::io(&name))?,
        };
        let aside = keep_aside(disk, &file, segment.number, position);
        kept.extend(aside.map_err(OpenError::io(&name))?);
        due.push((segment.number, position, file));
    }
    for (number, position, file) in due.into_iter().rev() {
        let name = segment_name(number);
        let cut = file.cut(position).and_then(|()| file.sync());
        cut.map_err(OpenError::io(&name))?;
        let gone = (position == 0).then_some(name);
        for name in gone.into_iter().chain([index_name(number)]) {
            disk.remove(&name).map_err(OpenError::io(&name))?;
        }
    }
    let (from, to) = (offset, log.end());
    store.files.release();
    Ok(CutOff { from, to, kept })
}

/// Where the batch begins that an offset is the first of.
fn position<F: DiskFile>(file: &F, id: &crate::format::LogId, offset: u64) -> io::Result<u64> {
    let (mut window, mut at) = (Window::new(), SEGMENT_HEADER_BYTES as u64);
    loop {
        let bytes = window.read(file, at, BATCH_HEADER_BYTES + SIZE_BYTES)?;
        match BatchHeader::parse(bytes, id) {
            Ok(header) if header.first_offset < offset => {
                at += walk::records_range(&header).end as u64;
            }
            // What cannot be read is behind what is kept.
            Ok(_) | Err(_) => return Ok(at),
        }
    }
}

/// Copies what is in a segment from a place on; gives the copy's name where there is anything.
fn keep_aside<D: Disk>(
    disk: &D,
    file: &D::File,
    number: u32,
    from: u64,
) -> io::Result<Option<String>> {
    let mut window = Window::new();
    let end = walk::used_end(&mut window, file, from)?;
    if end == from {
        return Ok(None);
    }
    let names = disk.list()?;
    let name = |copy: u32| format!("{number:010}.cut-{from}-{copy}");
    let mut free = (1..u32::MAX).map(name).filter(|name| !names.contains(name));
    let name = free.next().ok_or(io::ErrorKind::AlreadyExists)?;
    let copy = disk.create(&name, end - from)?;
    let (mut at, mut part) = (from, vec![0; READ_BYTES]);
    while at < end {
        let most = usize::try_from(end - at).unwrap_or(READ_BYTES);
        let most = most.min(READ_BYTES);
        let read = file.read_full(at, &mut part[..most])?;
        if read == 0 {
            break;
        }
        copy.write_full(at - from, &part[..read])?;
        at += read as u64;
    }
    copy.sync()?;
    Ok(Some(name))
}
