//! A frame's first bytes as an XDP program reads and writes them.

use aya_ebpf::programs::XdpContext;
use virga_ebpf::{header::Words, rewrite::Put};

/// The first `BYTES` of a frame. What is read is read once, at that place: the compiler, which is told that
/// it is volatile, neither cuts a word into bytes nor keeps one for later.
#[derive(Clone, Copy)]
pub(crate) struct Front<const BYTES: usize>(*mut u8);

/// A word wherever it lies.
#[repr(C, packed)]
struct Packed<T>(T);

impl<const BYTES: usize> Front<BYTES> {
    /// `None` where the frame is shorter.
    #[inline(always)]
    pub(crate) fn of(ctx: &XdpContext) -> Option<Self> {
        if ctx.data() + BYTES > ctx.data_end() {
            return None;
        }
        Some(Self(ctx.data() as *mut u8))
    }

    /// # Safety
    /// A `T` from `at` on lies within the first `BYTES`.
    #[inline(always)]
    unsafe fn read<T>(self, at: usize) -> T {
        // SAFETY: the frame has these bytes.
        let Packed(value) = unsafe { self.0.add(at).cast::<Packed<T>>().read_volatile() };
        value
    }
}

impl<const BYTES: usize> Words for Front<BYTES> {
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

impl<const BYTES: usize> Put for Front<BYTES> {
    #[inline(always)]
    fn window<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        if offset + N > BYTES {
            return None;
        }
        // SAFETY: `N` bytes from `offset` lie within the first; nobody reads while they are borrowed.
        Some(unsafe { &mut *self.0.add(offset).cast::<[u8; N]>() })
    }
}
