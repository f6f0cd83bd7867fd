//! io_uring: writes, each with the sync that follows it, of several logs in one call.
//!
//! A call does not return before the kernel has answered every request of it, which is what the
//! `unsafe` code below rests on.
#![allow(unsafe_code)]

use crate::{disk::DiskFile as _, limits::RING_REQUESTS};
use io_uring::{
    IoUring, opcode, squeue,
    types::{Fd, FsyncFlags},
};
use std::{fs::File, io, os::fd::AsRawFd as _};

/// One write.
#[derive(Debug)]
pub(super) struct Write<'a> {
    pub(super) file: &'a File,
    pub(super) at: u64,
    pub(super) bytes: &'a [u8],
    pub(super) sync: bool,
}

impl Write<'_> {
    /// Performs it by system calls of its own.
    pub(super) fn perform(&self) -> io::Result<usize> {
        self.file.write_full(self.at, self.bytes)?;
        if self.sync {
            self.file.sync()?;
        }
        Ok(self.bytes.len())
    }
}

/// User data of a sync: the write's place, and this.
const SYNC: u64 = 1 << 32;

/// See the module.
pub(super) struct Ring(IoUring);

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring")
    }
}

impl Ring {
    pub(super) fn open() -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().build(RING_REQUESTS)?;
        Ok(Self(ring))
    }

    /// Performs the writes, all at once as far as there is room; an answer each, in their order.
    pub(super) fn write(&mut self, writes: &[Write<'_>]) -> Vec<io::Result<usize>> {
        let mut answers = Vec::with_capacity(writes.len());
        for some in writes.chunks(RING_REQUESTS as usize / 2) {
            answers.extend(self.write_some(some));
        }
        answers
    }

    fn write_some(&mut self, writes: &[Write<'_>]) -> Vec<io::Result<usize>> {
        let mut answers: Vec<_> = writes.iter().map(|_| Answer::default()).collect();
        let mut due = 0;
        let mut queue = self.0.submission();
        for (place, write) in (0u64..).zip(writes) {
            for request in requests(write, place) {
                // SAFETY: the request points to `write.bytes`, which outlives this call; it ends
                // only when the kernel has answered.
                due += usize::from(unsafe { queue.push(&request) }.is_ok());
            }
        }
        drop(queue);
        while due > 0 {
            if let Err(error) = self.0.submit_and_wait(due)
                && !matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::ResourceBusy
                )
                && error.raw_os_error() != Some(libc::EAGAIN)
            {
                // Requests may be under way that point to the caller's bytes.
                eprintln!("virga: io_uring ended: {error}");
                std::process::abort();
            }
            for completion in self.0.completion() {
                due = due.saturating_sub(1);
                let place = usize::try_from(completion.user_data() & (SYNC - 1));
                if let Some(answer) = place.ok().and_then(|place| answers.get_mut(place)) {
                    match completion.user_data() & SYNC {
                        0 => answer.written = Some(completion.result()),
                        _ => answer.synced = Some(completion.result()),
                    }
                }
            }
        }
        let results = answers.iter().zip(writes);
        results
            .map(|(answer, write)| answer.result(write))
            .collect()
    }
}

fn requests(write: &Write<'_>, place: u64) -> impl Iterator<Item = squeue::Entry> {
    let file = Fd(write.file.as_raw_fd());
    // A longer one is continued by whoever asked for it.
    let bytes = u32::try_from(write.bytes.len()).unwrap_or(u32::MAX);
    let first = opcode::Write::new(file, write.bytes.as_ptr(), bytes).offset(write.at);
    let mut first = first.build().user_data(place);
    if write.sync {
        // A write that takes less than all breaks the link, and the sync is not made.
        first = first.flags(squeue::Flags::IO_LINK);
    }
    let sync = opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC);
    let sync = sync.build().user_data(place | SYNC);
    std::iter::once(first).chain(write.sync.then_some(sync))
}

#[derive(Debug, Default)]
struct Answer {
    written: Option<i32>,
    synced: Option<i32>,
}

impl Answer {
    fn result(&self, write: &Write<'_>) -> io::Result<usize> {
        let written = match self.written {
            Some(errno @ ..=-1) => return Err(io::Error::from_raw_os_error(-errno)),
            Some(written) => usize::try_from(written).unwrap_or(0),
            None => return Err(io::Error::other("io_uring had no room for the write")),
        };
        if !write.sync || written < write.bytes.len() {
            return Ok(written);
        }
        match self.synced {
            Some(0) => Ok(written),
            Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
            None => Err(io::Error::other("io_uring had no room for the sync")),
        }
    }
}
