//! What a log's folder holds, by manifest and headers alone, without changing anything.

use crate::{
    LogName,
    disk::{Disk, DiskFile},
    format::{
        BATCH_HEADER_BYTES, BatchHeader, Fault, LogId, MANIFEST_NAME, MANIFEST_SLOT_BYTES,
        MANIFEST_SLOTS_AT, Manifest, SEGMENT_HEADER_BYTES, SegmentHeader, is_compacting,
        segment_name, segment_of,
    },
    sparse::SIZE_BYTES,
};
use std::io;
use thiserror::Error;

/// Why a log cannot be opened or read; nothing was changed.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The system refused something.
    #[error("{file}: {source}")]
    Io {
        /// Which file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what its name says.
    #[error("{file}: {fault}")]
    Fault {
        /// Which file.
        file: String,
        /// How so.
        fault: Fault,
    },
    /// Another log's folder was renamed to this.
    #[error("the folder holds the log {found}, not {wanted}: give the folder its name back")]
    Name {
        /// By its manifest.
        found: LogName,
        /// By the folder.
        wanted: LogName,
    },
    /// Neither the manifest nor any segment says which log it is.
    #[error(
        "neither the manifest nor any segment can be read: the folder is left as it is; put back a copy of `manifest`"
    )]
    Identity,
    /// Replicas hold a log whole.
    #[error(
        "compaction has taken events of segment {0}, and a log that is on several nodes is whole on each: move the folder aside, and the log begins anew, or keep it on this node alone"
    )]
    Compacted(u32),
    /// Another process writes it.
    #[error("another process has the log open for writing")]
    Locked,
    /// There is no such log.
    #[error("there is no log here")]
    None,
}

impl OpenError {
    pub(crate) fn io(file: &str) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io {
            file: file.to_owned(),
            source,
        }
    }
}

/// A segment's file.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// As in the file's name.
    pub number: u32,
    /// Its length.
    pub bytes: u64,
    /// What it says of itself.
    pub header: Result<SegmentHeader, Fault>,
    /// What its first batch says.
    pub first: Result<BatchHeader, Fault>,
}

impl Found {
    /// Offset of its first event, where header or first batch can be read.
    #[must_use]
    pub fn first_offset(&self) -> Option<u64> {
        let header = self.header.map(|header| header.first_offset);
        header.or(self.first.map(|batch| batch.first_offset)).ok()
    }

    /// Whether anything was ever written to it.
    #[must_use]
    pub fn is_used(&self) -> bool {
        let is_zero = matches!((&self.header, &self.first), (Err(Fault::Zero), Err(_)));
        self.bytes > 0 && !is_zero
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// The newest slot that can be read.
    pub manifest: Option<Manifest>,
    /// What is wrong with a slot that should be there.
    pub manifest_fault: Option<Fault>,
    /// Which log it is; unknown only where there is nothing.
    pub id: Option<LogId>,
    /// All segments from the first that is kept, by their numbers.
    pub segments: Vec<Found>,
    /// Segments before the first that is kept.
    pub leftovers: Vec<u32>,
    /// Files of a compaction that is under way, or was cut short.
    pub compacting: Vec<String>,
}

impl Catalog {
    /// Looks into a folder.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn read<D: Disk>(disk: &D, name: &LogName) -> Result<Self, OpenError> {
        let files = disk.list().map_err(OpenError::io("the log's folder"))?;
        let mut numbers: Vec<u32> = files.iter().filter_map(|file| segment_of(file)).collect();
        numbers.sort_unstable();
        let (manifest, manifest_fault) = match files.iter().any(|file| file == MANIFEST_NAME) {
            true => read_manifest(disk)?,
            false => (None, None),
        };
        if let Some(manifest) = &manifest
            && manifest.name != *name
        {
            let (found, wanted) = (manifest.name.clone(), name.clone());
            return Err(OpenError::Name { found, wanted });
        }
        let mut id = manifest.as_ref().map(|manifest| manifest.id);
        let first = manifest.as_ref().map_or(0, |m| m.first_segment);
        let mut segments = Vec::new();
        let mut leftovers = Vec::new();
        for number in numbers {
            if number < first {
                leftovers.push(number);
            } else {
                segments.push(read_segment(disk, number, &mut id)?);
            }
        }
        if id.is_none() && segments.iter().any(Found::is_used) {
            return Err(OpenError::Identity);
        }
        let compacting = files.into_iter().filter(|file| is_compacting(file));
        Ok(Self {
            manifest,
            manifest_fault,
            id,
            segments,
            leftovers,
            compacting: compacting.collect(),
        })
    }

    /// The segments that hold, or may hold, events.
    pub fn used(&self) -> impl Iterator<Item = &Found> {
        self.segments.iter().filter(|found| found.is_used())
    }
}

fn read_manifest<D: Disk>(disk: &D) -> Result<(Option<Manifest>, Option<Fault>), OpenError> {
    let file = disk.open(MANIFEST_NAME);
    let file = file.map_err(OpenError::io(MANIFEST_NAME))?;
    let mut newest: Option<Manifest> = None;
    let mut fault = None;
    for at in MANIFEST_SLOTS_AT {
        let mut bytes = [0; MANIFEST_SLOT_BYTES];
        let read = file.read_full(at, &mut bytes);
        let read = read.map_err(OpenError::io(MANIFEST_NAME))?;
        match Manifest::parse(&bytes[..read]) {
            Ok(slot) => {
                if newest
                    .as_ref()
                    .is_none_or(|n| n.generation < slot.generation)
                {
                    newest = Some(slot);
                }
            }
            Err(Fault::Zero | Fault::Short) => {}
            Err(found @ Fault::Version(_)) => {
                return Err(OpenError::Fault {
                    file: MANIFEST_NAME.into(),
                    fault: found,
                });
            }
            Err(found) => fault = Some(found),
        }
    }
    Ok((newest, fault))
}

fn read_segment<D: Disk>(
    disk: &D,
    number: u32,
    id: &mut Option<LogId>,
) -> Result<Found, OpenError> {
    let name = segment_name(number);
    let file = disk.open(&name).map_err(OpenError::io(&name))?;
    let bytes = file.bytes().map_err(OpenError::io(&name))?;
    let mut head = [0; SEGMENT_HEADER_BYTES + BATCH_HEADER_BYTES + SIZE_BYTES];
    let read = file.read_full(0, &mut head).map_err(OpenError::io(&name))?;
    let mut header = SegmentHeader::parse(&head[..read]);
    let refused = |fault| OpenError::Fault {
        file: name.clone(),
        fault,
    };
    match header {
        Err(fault @ Fault::Version(_)) => return Err(refused(fault)),
        Ok(found) if *id.get_or_insert(found.id) != found.id => {
            return Err(refused(Fault::OtherLog));
        }
        Ok(found) if found.number != number => header = Err(Fault::Number),
        _ => {}
    }
    let batch = head[..read].get(SEGMENT_HEADER_BYTES..).unwrap_or_default();
    let first = match id {
        Some(id) => BatchHeader::parse(batch, id),
        None => Err(Fault::OtherLog),
    };
    Ok(Found {
        number,
        bytes,
        header,
        first,
    })
}
