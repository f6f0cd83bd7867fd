//! What a replica has to know after whatever happened to it: on disk for good before anything is said that
//! rests on it.
//!
//! ```text
//! file `replica`: slot 0 at 0 | slot 1 at 4096, written in turn; big-endian
//!
//!  0  8 magic "virgarep"            24  8 epoch: nothing of an earlier one is heard any more
//!  8  4 version 1                   32  8 voted: who may lead it, as far as this replica is concerned
//! 12  1 1: it is whole              40  8 settled: the last epoch whose log it had, up to where it began
//! 13  1 1: it has voted             48  8 committed: at least so far the log is
//! 14  2 zeros                       56 16 the log's id
//! 16  8 generation                  72  4 CRC-32C of bytes 0 to 72
//! ```
//! A slot is within one sector: it is written or not. One that cannot be read was damaged later.

use crate::{
    catalog::OpenError,
    disk::{Disk, DiskFile},
    format::{Fault, LogId, array_at, is_zero, u32_at, u64_at},
};
use std::io;
use virga_ebpf::header::NodeId;

/// The file's name.
pub const PROMISE_NAME: &str = "replica";
const MAGIC: &[u8; 8] = b"virgarep";
const VERSION: u32 = 1;
const SLOT_BYTES: usize = 76;
const SLOTS_AT: [u64; 2] = [0, 4096];

const _: () = assert!(SLOT_BYTES == 8 + 4 + 1 + 1 + 2 + 8 + 8 + 8 + 8 + 8 + 16 + 4);
const _: () = assert!(SLOT_BYTES <= 512);

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promise {
    /// Whether all that this replica ever promised and acknowledged is here.
    pub is_whole: bool,
    /// See the module.
    pub epoch: u64,
    /// See the module.
    pub voted: Option<NodeId>,
    /// See the module.
    pub settled: u64,
    /// See the module.
    pub committed: u64,
}

/// The file, open.
#[derive(Debug)]
pub(super) struct PromiseFile<D: Disk> {
    file: D::File,
    id: LogId,
    generation: u64,
}

impl<D: Disk> PromiseFile<D> {
    /// Reads it, and makes it where there is none: the replica is then not whole. Nor is it where a slot is
    /// damaged: what was promised in it is not known any more.
    pub(super) fn open(disk: &D, id: LogId) -> Result<(Self, Promise), OpenError> {
        let is_there = disk.list().map_err(OpenError::io(PROMISE_NAME))?;
        let is_there = is_there.iter().any(|name| name == PROMISE_NAME);
        let file = match is_there {
            true => disk.open(PROMISE_NAME),
            false => disk.create(PROMISE_NAME, SLOTS_AT[1] + SLOT_BYTES as u64),
        };
        let file = file.map_err(OpenError::io(PROMISE_NAME))?;
        let mut found: Option<(u64, Promise)> = None;
        let mut is_damaged = false;
        for at in SLOTS_AT {
            let mut slot = [0; SLOT_BYTES];
            let read = file.read_full(at, &mut slot);
            let read = read.map_err(OpenError::io(PROMISE_NAME))?;
            match parse(&slot[..read], &id) {
                Ok(slot) if found.is_none_or(|(generation, _)| generation < slot.0) => {
                    found = Some(slot);
                }
                Ok(_) | Err(Fault::Zero) => {}
                Err(fault @ (Fault::Version(_) | Fault::OtherLog)) => {
                    let file = PROMISE_NAME.to_owned();
                    return Err(OpenError::Fault { file, fault });
                }
                Err(_) => is_damaged = true,
            }
        }
        let (generation, mut promise) = found.unwrap_or_default();
        if is_damaged {
            (promise.is_whole, promise.settled) = (false, 0);
        }
        let file = Self {
            file,
            id,
            generation,
        };
        Ok((file, promise))
    }

    /// Returns when it is on disk for good.
    pub(super) fn keep(&mut self, promise: &Promise) -> io::Result<()> {
        self.generation += 1;
        let at = SLOTS_AT[usize::from(self.generation % 2 == 1)];
        let slot = encode(self.generation, promise, &self.id);
        self.file.write_full(at, &slot)?;
        self.file.sync()
    }
}

fn encode(generation: u64, promise: &Promise, id: &LogId) -> [u8; SLOT_BYTES] {
    let mut out = Vec::with_capacity(SLOT_BYTES);
    out.extend(MAGIC);
    out.extend(VERSION.to_be_bytes());
    out.extend([
        promise.is_whole.into(),
        promise.voted.is_some().into(),
        0,
        0,
    ]);
    let voted = promise.voted.map_or(0, |node| node.0);
    let numbers = [
        generation,
        promise.epoch,
        voted,
        promise.settled,
        promise.committed,
    ];
    out.extend(numbers.into_iter().flat_map(u64::to_be_bytes));
    out.extend(id);
    out.extend(crc32c::crc32c(&out).to_be_bytes());
    array_at(&out, 0)
}

fn parse(bytes: &[u8], id: &LogId) -> Result<(u64, Promise), Fault> {
    if is_zero(bytes) {
        return Err(Fault::Zero);
    }
    let bytes: &[u8; SLOT_BYTES] = bytes.first_chunk().ok_or(Fault::Short)?;
    if &bytes[..8] != MAGIC {
        return Err(Fault::Magic);
    }
    if crc32c::crc32c(&bytes[..72]) != u32_at(bytes, 72) {
        return Err(Fault::Checksum);
    }
    match u32_at(bytes, 8) {
        VERSION => {}
        version => return Err(Fault::Version(version)),
    }
    if &bytes[56..72] != id {
        return Err(Fault::OtherLog);
    }
    let promise = Promise {
        is_whole: bytes[12] == 1,
        epoch: u64_at(bytes, 24),
        voted: (bytes[13] == 1).then(|| NodeId(u64_at(bytes, 32))),
        settled: u64_at(bytes, 40),
        committed: u64_at(bytes, 48),
    };
    Ok((u64_at(bytes, 16), promise))
}
