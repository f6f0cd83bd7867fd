//! Memory that this process and the kernel both see: the frames, and the four rings of an AF_XDP socket
//! (linux/if_xdp.h; Documentation/networking/af_xdp.rst).
//!
//! A ring has one producer and one consumer, each with an index of its own that only grows: entries between
//! them belong to the consumer, all others to the producer. An index is given away with release and looked at
//! with acquire ordering, so that what it stands for is seen with it.
#![allow(unsafe_code)]

use rustix::{
    mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap},
    net::xdp::XdpRingOffset,
};
use std::{
    io,
    marker::PhantomData,
    os::fd::BorrowedFd,
    ptr::{NonNull, null_mut},
    sync::atomic::{AtomicU32, Ordering},
};

/// Set in a ring's flags while the kernel waits to be called (`XDP_RING_NEED_WAKEUP`).
const NEED_WAKEUP: u32 = 1;

/// Mapped memory, unmapped with this.
#[derive(Debug)]
pub(super) struct Region {
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory belongs to no thread; what may be done with it is said where it is done.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Zeroed memory of this process.
    pub(super) fn anonymous(bytes: usize) -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at an address that the kernel picks touches no other.
        let at = unsafe { mmap_anonymous(null_mut(), bytes, protection, flags) }?;
        Self::of(at, bytes)
    }

    /// A ring of a socket.
    fn of_socket(socket: BorrowedFd<'_>, offset: u64, bytes: usize) -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        let flags = flags | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address that the kernel picks touches no other.
        let at = unsafe { mmap(null_mut(), bytes, protection, flags, socket, offset) }?;
        Self::of(at, bytes)
    }

    fn of(at: *mut core::ffi::c_void, bytes: usize) -> io::Result<Self> {
        match NonNull::new(at.cast()) {
            Some(at) => Ok(Self { at, bytes }),
            None => Err(io::ErrorKind::OutOfMemory.into()),
        }
    }

    /// Where the kernel finds it.
    pub(super) fn address(&self) -> u64 {
        self.at.as_ptr().addr() as u64
    }

    /// Bytes of it.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// `bytes` bytes from `from` on; `None` where they do not lie within.
    ///
    /// # Safety
    /// Nobody else, the kernel included, uses them as long as the slice lives.
    #[expect(
        clippy::mut_from_ref,
        reason = "frames are owned one by one, not all together"
    )]
    pub(super) unsafe fn slice(&self, from: usize, bytes: usize) -> Option<&mut [u8]> {
        let end = from.checked_add(bytes)?;
        if end > self.bytes {
            return None;
        }
        // SAFETY: within the mapping, as just checked; initialised, as mapped memory is; not used by others,
        // as the caller says.
        Some(unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr().add(from), bytes) })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped by this, and all that pointed into it borrowed it. It fails for wrong arguments only.
        let _unmapped = unsafe { munmap(self.at.as_ptr().cast(), self.bytes) };
    }
}

/// One entry of a receive or transmit ring (`struct xdp_desc`).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Descriptor {
    /// Where the packet begins in the frames' memory.
    pub(super) address: u64,
    /// Its bytes.
    pub(super) bytes: u32,
    /// Always 0: a packet is one frame.
    pub(super) options: u32,
}

/// What may lie in a ring: any bytes are a value.
pub(super) trait Plain: Copy {}
impl Plain for u64 {}
impl Plain for Descriptor {}

/// One of a socket's rings, from either side.
#[derive(Debug)]
pub(super) struct Ring<T> {
    region: Region,
    producer: usize,
    consumer: usize,
    flags: usize,
    entries: usize,
    size: u32,
    /// This side's own index.
    own: u32,
    holds: PhantomData<T>,
}

impl<T: Plain> Ring<T> {
    /// Maps a ring of `size` entries, a power of two, which lies at `page` of the socket.
    pub(super) fn map(
        socket: BorrowedFd<'_>,
        page: u64,
        offsets: &XdpRingOffset,
        size: u32,
    ) -> io::Result<Self> {
        let place = |offset: u64| usize::try_from(offset).map_err(io::Error::other);
        let entries = place(offsets.desc)?;
        let bytes = entries + size as usize * size_of::<T>();
        let flags = offsets.flags.ok_or(io::ErrorKind::Unsupported)?;
        let (producer, consumer) = (place(offsets.producer)?, place(offsets.consumer)?);
        let flags = place(flags)?;
        let is_within = [producer, consumer, flags]
            .iter()
            .all(|index| index % 4 == 0 && index + 4 <= entries);
        if !size.is_power_of_two() || !is_within || entries % align_of::<T>() != 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self {
            region: Region::of_socket(socket, page, bytes)?,
            producer,
            consumer,
            flags,
            entries,
            size,
            own: 0,
            holds: PhantomData,
        })
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        // SAFETY: aligned and within the mapping, as checked when it was mapped; the kernel, too, uses it as
        // one atomic word.
        unsafe { &*self.region.at.as_ptr().add(at).cast::<AtomicU32>() }
    }

    fn entry(&self, index: u32) -> *mut T {
        let place = (index & (self.size - 1)) as usize;
        // SAFETY: the masked place lies within the entries, which end the mapping.
        unsafe {
            self.region
                .at
                .as_ptr()
                .add(self.entries)
                .cast::<T>()
                .add(place)
        }
    }

    /// Whether the other side, the kernel, waits to be called.
    pub(super) fn needs_wakeup(&self) -> bool {
        self.word(self.flags).load(Ordering::Relaxed) & NEED_WAKEUP != 0
    }

    /// The producer's side: how many more entries it holds.
    pub(super) fn free(&self) -> u32 {
        let taken = self.word(self.consumer).load(Ordering::Acquire);
        self.size - self.own.wrapping_sub(taken).min(self.size)
    }

    /// The producer's side: adds an entry, which the other side sees with [`Self::publish`]. There must
    /// be a free one.
    pub(super) fn push(&mut self, value: T) {
        debug_assert!(self.free() > 0);
        // SAFETY: a free entry is the producer's alone.
        unsafe { self.entry(self.own).write(value) };
        self.own = self.own.wrapping_add(1);
    }

    /// The producer's side: gives away what was added.
    pub(super) fn publish(&self) {
        self.word(self.producer).store(self.own, Ordering::Release);
    }

    /// The consumer's side: the next entry.
    pub(super) fn pop(&mut self) -> Option<T> {
        if self.word(self.producer).load(Ordering::Acquire) == self.own {
            return None;
        }
        // SAFETY: entries before the producer's index are the consumer's alone.
        let value = unsafe { self.entry(self.own).read() };
        self.own = self.own.wrapping_add(1);
        Some(value)
    }

    /// The consumer's side: gives back what was taken.
    pub(super) fn release(&self) {
        self.word(self.consumer).store(self.own, Ordering::Release);
    }
}

#[cfg(test)]
impl<T: Plain> Ring<T> {
    /// A ring that no kernel serves.
    pub(super) fn alone(size: u32) -> io::Result<Self> {
        const ENTRIES: usize = 64;
        Ok(Self {
            region: Region::anonymous(ENTRIES + size as usize * size_of::<T>())?,
            producer: 0,
            consumer: 4,
            flags: 8,
            entries: ENTRIES,
            size,
            own: 0,
            holds: PhantomData,
        })
    }

    /// The other side: takes what was published, `count` at most.
    pub(super) fn take(&mut self, count: usize) -> Vec<T> {
        let published = self.word(self.producer).load(Ordering::Acquire);
        let taken = self.word(self.consumer);
        let from = taken.load(Ordering::Acquire);
        let there = published.wrapping_sub(from) as usize;
        let values = (0..count.min(there)).map(|n| {
            let index = from.wrapping_add(u32::try_from(n).unwrap());
            // SAFETY: an entry that was published and not taken yet.
            unsafe { self.entry(index).read() }
        });
        let values: Vec<T> = values.collect();
        let count = u32::try_from(values.len()).unwrap();
        taken.store(from.wrapping_add(count), Ordering::Release);
        values
    }

    /// The other side: adds an entry, which there must be room for.
    pub(super) fn give(&mut self, value: T) {
        let index = self.word(self.producer).load(Ordering::Acquire);
        // SAFETY: a free entry is the producer's alone, as which this acts.
        unsafe { self.entry(index).write(value) };
        let next = index.wrapping_add(1);
        self.word(self.producer).store(next, Ordering::Release);
    }

    /// The other side: whether it waits to be called.
    pub(super) fn ask(&mut self, asks: bool) {
        let flags = if asks { NEED_WAKEUP } else { 0 };
        self.word(self.flags).store(flags, Ordering::Relaxed);
    }
}
