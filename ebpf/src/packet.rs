//! A frame as an XDP program has it.

use aya_ebpf::programs::XdpContext;
use virga_ebpf::{frame::Bytes, rewrite::Put};

/// The frame between `data` and `data_end`.
pub(crate) struct Packet {
    start: usize,
    end: usize,
}

impl Packet {
    #[inline(always)]
    pub(crate) fn new(ctx: &XdpContext) -> Self {
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
        }
    }
}

impl Put for Packet {
    #[inline(always)]
    fn window<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        let from = self.start + offset;
        if from + N > self.end {
            return None;
        }
        // SAFETY: `N` bytes from `from` lie within the frame, as just checked.
        Some(unsafe { &mut *(from as *mut [u8; N]) })
    }
}

impl Bytes for Packet {
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        let from = self.start + offset;
        if from + N > self.end {
            return None;
        }
        // SAFETY: `N` bytes from `from` lie within the frame, as just checked.
        Some(unsafe { &*(from as *const [u8; N]) })
    }
    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.start
    }
}
