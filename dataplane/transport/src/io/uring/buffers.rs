//! The receive buffers that the kernel picks from: a ring of descriptions that both sides see, and
//! the memory that they describe.
#![allow(unsafe_code)]

use crate::io::message::PAYLOAD_AT;
use io_uring::{Submitter, types::BufRingEntry};
use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    io,
    ptr::NonNull,
    sync::atomic::{AtomicU16, Ordering},
};

/// Buffers of a ring: runs that may wait for the worker. A power of two.
pub(super) const BUFFERS: u16 = 64;
/// Those that the kernel has from the start. It fills them in turn: few stay in the processor's cache, and as
/// many more are given each time that they did not suffice.
pub(super) const BUFFERS_FIRST: u16 = 16;
/// Bytes of one: the largest run that the kernel coalesces, and what comes before it.
pub(super) const BUFFER_BYTES: usize = PAYLOAD_AT + 65_536;
/// The only group of buffers.
pub(super) const GROUP: u16 = 0;
/// What the kernel wants the ring of descriptions aligned to.
const PAGE_BYTES: usize = 4_096;

const RING_BYTES: usize = BUFFERS as usize * size_of::<BufRingEntry>();
/// Where the first buffer begins: on a page of its own.
const DATA_AT: usize = RING_BYTES.next_multiple_of(PAGE_BYTES);
const MEMORY_BYTES: usize = DATA_AT + BUFFERS as usize * BUFFER_BYTES;

const _: () = assert!(BUFFERS.is_power_of_two());
const _: () = assert!(BUFFERS_FIRST >= 1 && BUFFERS_FIRST <= BUFFERS);
const _: () = assert!(BUFFER_BYTES.is_multiple_of(64));
const _: () = assert!(BUFFER_BYTES <= u32::MAX as usize);

/// Memory of the ring and its buffers. Pages that no datagram ever reached cost nothing.
#[derive(Debug)]
pub(super) struct Buffers {
    memory: NonNull<u8>,
    /// Descriptions written so far; the ring's index is its low bits.
    tail: u16,
    /// Buffers that are in use, on either side: the first ones.
    used: u16,
}

impl Buffers {
    const LAYOUT: Layout = match Layout::from_size_align(MEMORY_BYTES, PAGE_BYTES) {
        Ok(layout) => layout,
        Err(_) => panic!("a power of two, and far from the largest size"),
    };

    /// Memory that no kernel knows yet.
    pub(super) fn new() -> Self {
        // SAFETY: the layout's size is not 0.
        let memory = unsafe { alloc_zeroed(Self::LAYOUT) };
        let Some(memory) = NonNull::new(memory) else {
            handle_alloc_error(Self::LAYOUT)
        };
        Self {
            memory,
            tail: 0,
            used: 0,
        }
    }

    /// Tells the kernel of the ring and gives it the first buffers.
    pub(super) fn register(&mut self, submitter: &Submitter<'_>) -> io::Result<()> {
        let address = self.memory.as_ptr() as u64;
        // SAFETY: the ring's memory is page-aligned, holds BUFFERS descriptions, and lives as long
        // as `self`, which `Uring` drops after the io_uring that it is registered with.
        unsafe { submitter.register_buf_ring_with_flags(address, BUFFERS, GROUP, 0)? };
        self.grow();
        Ok(())
    }

    /// Buffers that are in use, the kernel's and those that it has filled.
    pub(super) const fn used(&self) -> u16 {
        self.used
    }

    /// Gives the kernel as many again as are in use, as far as there are more.
    pub(super) fn grow(&mut self) {
        let more = self.used.max(BUFFERS_FIRST).min(BUFFERS - self.used);
        for buffer in self.used..self.used + more {
            self.give_back(buffer);
        }
        self.used += more;
        self.publish();
    }

    /// What the kernel wrote into a buffer that a completion handed over.
    pub(super) fn bytes(&mut self, buffer: u16, bytes: usize) -> Option<&mut [u8]> {
        if buffer >= BUFFERS || bytes > BUFFER_BYTES {
            return None;
        }
        let at = DATA_AT + usize::from(buffer) * BUFFER_BYTES;
        // SAFETY: `at + bytes` is within the memory, checked above, which was zeroed when it was
        // allocated. The kernel writes into a buffer only between being given it and completing the
        // receive that took it; this one was handed over and is not given back while borrowed.
        unsafe {
            let start = self.memory.as_ptr().add(at);
            Some(std::slice::from_raw_parts_mut(start, bytes))
        }
    }

    /// Gives a buffer to the kernel, which sees it after the next [`Buffers::publish`].
    pub(super) fn give_back(&mut self, buffer: u16) {
        debug_assert!(buffer < BUFFERS);
        let at = DATA_AT + usize::from(buffer) * BUFFER_BYTES;
        let index = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY: the buffer's start is within the memory for each of the BUFFERS buffers.
        let address = unsafe { self.memory.as_ptr().add(at) } as u64;
        // SAFETY: the first RING_BYTES of the memory are BUFFERS descriptions, page-aligned; the
        // kernel reads only those between its head and the published tail, and this one is not yet
        // published: at most BUFFERS buffers are ever given. `set_*` leave the tail, which shares
        // the first description's memory, alone.
        let entry = unsafe { &mut *self.memory.as_ptr().cast::<BufRingEntry>().add(index) };
        entry.set_addr(address);
        entry.set_len(u32::try_from(BUFFER_BYTES).unwrap_or(0));
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    /// How often a buffer was given to the kernel.
    #[cfg(test)]
    pub(super) fn given(&self) -> u16 {
        self.tail
    }

    /// Shows the kernel what was given back.
    pub(super) fn publish(&mut self) {
        let base = self.memory.as_ptr().cast::<BufRingEntry>();
        // SAFETY: `base` is the first description, zeroed when allocated.
        let tail = unsafe { BufRingEntry::tail(base) }.cast_mut();
        // SAFETY: the tail is an aligned u16 within the memory, which lives as long as `self`; both
        // sides access it atomically.
        let tail = unsafe { AtomicU16::from_ptr(tail) };
        // The descriptions come before the tail that shows them.
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout. The kernel copies into buffers only within calls of
        // `io_uring_enter` on the ring that they are registered with, and that was closed before.
        unsafe { dealloc(self.memory.as_ptr(), Self::LAYOUT) };
    }
}
