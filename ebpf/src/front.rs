//! A frame's first bytes as an XDP program reads and writes them.

use aya_ebpf::programs::XdpContext;
use virga_ebpf::{header::Words, plain::PLAIN_BYTES, rewrite::Put};

/// The first [`PLAIN_BYTES`] of a frame. What is read is read once, at that place: the compiler, which is told that
/// it is volatile, neither cuts a word into bytes nor keeps one for later.
#[derive(Clone, Copy)]
pub(crate) struct Front(*mut u8);

/// A word wherever it lies.
#[repr(C, packed)]
struct Packed<T>(T);

impl Front {
    /// `None` where the frame is shorter.
    #[inline(always)]
    pub(crate) fn of(ctx: &XdpContext) -> Option<Self> {
        if ctx.data() + PLAIN_BYTES > ctx.data_end() {
            return None;
        }
        Some(Self(ctx.data() as *mut u8))
    }

    /// # Safety
    /// A `T` from `at` on lies within the first [`PLAIN_BYTES`].
    #[inline(always)]
    unsafe fn read<T>(self, at: usize) -> T {
        // SAFETY: the frame has these bytes.
        let Packed(value) = unsafe { self.0.add(at).cast::<Packed<T>>().read_volatile() };
        value
    }
}

impl Words for Front {
    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        // SAFETY: as the trait's caller says.
        unsafe { self.read(at) }
    }
    #[inline(always)]
    fn be16(&self, at: usize) -> u16 {
        // SAFETY: as the trait's caller says.
        u16::from_be(unsafe { self.read(at) })
    }
    #[inline(always)]
    fn be32(&self, at: usize) -> u32 {
        // SAFETY: as the trait's caller says.
        u32::from_be(unsafe { self.read(at) })
    }
    #[inline(always)]
    fn le64(&self, at: usize) -> u64 {
        // SAFETY: as the trait's caller says.
        u64::from_le(unsafe { self.read(at) })
    }
}

impl Put for Front {
    #[inline(always)]
    fn window<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        if offset + N > PLAIN_BYTES {
            return None;
        }
        // SAFETY: `N` bytes from `offset` lie within the first; nobody reads while they are borrowed.
        Some(unsafe { &mut *self.0.add(offset).cast::<[u8; N]>() })
    }
}
