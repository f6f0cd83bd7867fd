//! A leader's batches, read from its files as they are.

use crate::{
    Log,
    disk::{Disk, DiskFile},
    format::{
        BATCH_HEADER_BYTES, BatchHeader, COMPACTED_VERSION, Fault, SEGMENT_HEADER_BYTES,
        SegmentHeader, first_chain, segment_name,
    },
    limits::FETCH_BYTES,
    log::Boundary,
    sparse::SIZE_BYTES,
    walk::Window,
};
use std::{collections::VecDeque, io};

/// What a leader has for a follower.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// These are behind that place.
    Batches(Vec<u8>),
    /// The log has not that chain there.
    Diverges,
    /// The log begins only here.
    Gone(Boundary),
}

/// Goes from batch to batch.
#[derive(Debug)]
pub(super) struct Walker<D: Disk> {
    at: Boundary,
    segment: u32,
    file: D::File,
    position: u64,
    window: Window,
}

impl<D: Disk> Walker<D> {
    /// At the begin of the segment that an offset is in, or of an earlier one where that one's header cannot be
    /// read; none where the log begins behind it.
    fn before(log: &Log, disk: &D, offset: u64) -> io::Result<Option<Self>> {
        let segments = log.segments().iter().rev();
        let mut failed = None;
        for found in segments.filter(|segment| segment.first_offset <= offset) {
            // What cannot be read says nothing; but before the first segment there is nothing.
            let is_first = log.segments().front() == Some(found) && found.first_offset == 0;
            let begin = is_first.then(|| Boundary {
                offset: 0,
                chain: first_chain(log.id()),
            });
            match Self::enter(disk, found.number, begin) {
                Ok(walker) => return Ok(Some(walker)),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// At a segment's begin; where its header cannot be read, what was before it says where that is.
    fn enter(disk: &D, segment: u32, before: Option<Boundary>) -> io::Result<Self> {
        let file = disk.open(&segment_name(segment))?;
        let mut header = [0; SEGMENT_HEADER_BYTES];
        let read = file.read_full(0, &mut header)?;
        let at = match SegmentHeader::parse(&header[..read]) {
            Ok(header) => Boundary {
                offset: header.first_offset,
                chain: header.chain,
            },
            Err(fault) => before.ok_or_else(|| damaged(segment, 0, &fault))?,
        };
        if before.is_some_and(|before| before != at) {
            return Err(damaged(segment, 0, &Fault::Order));
        }
        Ok(Self {
            at,
            segment,
            file,
            position: SEGMENT_HEADER_BYTES as u64,
            window: Window::new(),
        })
    }

    /// The next batch's bytes, and goes behind it.
    fn next(&mut self, log: &Log, disk: &D) -> io::Result<Vec<u8>> {
        let segments = log.segments();
        let next = segments.iter().find(|s| s.number > self.segment);
        if let Some(next) = next.filter(|next| next.first_offset <= self.at.offset) {
            *self = Self::enter(disk, next.number, Some(self.at))?;
        }
        let (segment, position) = (self.segment, self.position);
        let wanted = BATCH_HEADER_BYTES + SIZE_BYTES;
        let head = self.window.read(&self.file, position, wanted)?;
        let header = match BatchHeader::parse(head, log.id()) {
            Ok(header) if header.sparse_bytes.is_some() => Err(Fault::Compacted),
            parsed => parsed,
        };
        let header = header.map_err(|fault| damaged(segment, position, &fault))?;
        let bytes = BATCH_HEADER_BYTES + header.bytes;
        let batch = self.window.read(&self.file, position, bytes)?;
        let batch = batch.get(..bytes).unwrap_or_default().to_vec();
        if header.first_offset != self.at.offset || !header.continues(&self.at.chain, &batch) {
            return Err(damaged(segment, position, &Fault::Order));
        }
        self.at = Boundary {
            offset: header.end(),
            chain: header.chain,
        };
        self.position += bytes as u64;
        Ok(batch)
    }
}

fn damaged(segment: u32, at: u64, fault: &Fault) -> io::Error {
    let text = format!("segment {segment} cannot be read at {at}: {fault}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Up to a message of what is behind a place and on disk for good here; `place` is where it was read to the last
/// time.
pub(super) fn serve<D: Disk>(
    log: &Log,
    disk: &D,
    place: &mut Option<Walker<D>>,
    at: Boundary,
    is_probe: bool,
) -> io::Result<Served> {
    let limit = log.readable();
    let known = log.ends().rev().find(|end| end.offset == at.offset);
    if at.offset > limit || known.is_some_and(|known| *known != at) {
        return Ok(Served::Diverges);
    }
    if known.is_some() && (at.offset == limit || is_probe) {
        return Ok(Served::Batches(Vec::new()));
    }
    let is_there = |held: &Walker<D>| {
        let is_kept = log.segments().iter().any(|s| s.number == held.segment);
        held.at == at && is_kept
    };
    let mut walker = match place.take().filter(is_there) {
        Some(mut walker) => {
            // What was read ahead may since have been written.
            walker.window.clear();
            walker
        }
        None => match Walker::before(log, disk, at.offset)? {
            Some(walker) => walker,
            None => {
                let first = log.segments().front().map(|s| s.number);
                return match first {
                    Some(first) => Ok(Served::Gone(Walker::<D>::enter(disk, first, None)?.at)),
                    None if log.boundary() == at => Ok(Served::Batches(Vec::new())),
                    None if log.end() > at.offset => Ok(Served::Gone(log.boundary())),
                    None => Ok(Served::Diverges),
                };
            }
        },
    };
    while walker.at.offset < at.offset && walker.at.offset < limit {
        walker.next(log, disk)?;
    }
    if walker.at != at {
        return Ok(Served::Diverges);
    }
    let mut bytes = Vec::new();
    while !is_probe && walker.at.offset < limit && bytes.len() < FETCH_BYTES {
        bytes.extend(walker.next(log, disk)?);
    }
    *place = Some(walker);
    Ok(Served::Batches(bytes))
}

/// The first segment that compaction has taken events of.
pub(super) fn compacted<D: Disk>(log: &Log, disk: &D) -> io::Result<Option<u32>> {
    for segment in log.segments() {
        let file = disk.open(&segment_name(segment.number))?;
        let mut header = [0; SEGMENT_HEADER_BYTES];
        let read = file.read_full(0, &mut header)?;
        // What cannot be read is dealt with as damage.
        let header = SegmentHeader::parse(&header[..read]);
        if header.is_ok_and(|header| header.version == COMPACTED_VERSION) {
            return Ok(Some(segment.number));
        }
    }
    Ok(None)
}

/// Where batches end from the last one at or before an offset on, as far as they can be read; and why no further.
pub(super) fn ends<D: Disk>(
    log: &Log,
    disk: &D,
    from: u64,
) -> io::Result<(VecDeque<Boundary>, Option<io::Error>)> {
    let first = log.segments().front().map(|s| s.first_offset);
    let from = from.max(first.unwrap_or(0));
    let mut ends = VecDeque::new();
    let mut walker = match Walker::before(log, disk, from) {
        Ok(Some(walker)) => walker,
        Ok(None) => return Ok(([log.boundary()].into(), None)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok((ends, Some(error))),
        Err(error) => return Err(error),
    };
    ends.push_back(walker.at);
    while walker.at.offset < log.end() {
        match walker.next(log, disk) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Ok((ends, Some(error)));
            }
            Err(error) => return Err(error),
        }
        if walker.at.offset <= from {
            ends.clear();
        }
        ends.push_back(walker.at);
    }
    Ok((ends, None))
}
