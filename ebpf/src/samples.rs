//! Samples as the XDP program takes them: before the frame is rewritten, and told once it is known what became of it.

use aya_ebpf::{
    btf_maps::{Array, PerCpuArray, RingBuf},
    helpers::{
        bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_xdp_load_bytes,
    },
    macros::btf_map,
    programs::XdpContext,
};
use virga_ebpf::{
    header::Header,
    limits::{SAMPLE_BYTES_MAX, SAMPLE_RING_BYTES},
    sample::{Order, SampleHead, Tally},
};

#[btf_map(name = "sampling")]
static SAMPLING: Array<Order, 1> = Array::new();
#[btf_map(name = "sampled")]
static SAMPLED: PerCpuArray<Tally, 1> = PerCpuArray::new();
/// Where a sample is put together: it is too large for the stack.
#[btf_map(name = "sample_space")]
static SPACE: PerCpuArray<Space, 1> = PerCpuArray::new();
#[btf_map(name = "samples")]
static SAMPLES: RingBuf<(), { SAMPLE_RING_BYTES as usize }> = RingBuf::new();

/// User space looks by itself: waking it up would cost more than the sample.
const NO_WAKEUP: u64 = 1;
const HEAD_BYTES: usize = size_of::<SampleHead>();
/// Room for a sample's bytes: a power of two, as a mask is what the verifiers of all kernels follow.
const ROOM: usize = SAMPLE_BYTES_MAX.next_power_of_two();

/// A `Sample`, with more room than it takes.
#[repr(C)]
struct Space {
    head: SampleHead,
    bytes: [u8; ROOM],
}

/// Keeps what came, if it is asked for: how many bytes of it, 0 of a packet that is no sample. `counter` is
/// what it counts at if all goes well.
#[inline(always)]
pub(crate) fn take(
    ctx: &XdpContext,
    frame_bytes: usize,
    header: Option<&Header>,
    counter: u32,
) -> usize {
    let Some(order) = SAMPLING.get(0) else {
        return 0;
    };
    let ifindex = ctx.ingress_ifindex() as u32;
    if order.until_ns == 0 || !order.wants(counter, ifindex, header) {
        return 0;
    }
    let (Some(tally), Some(space)) = (SAMPLED.get_ptr_mut(0), SPACE.get_ptr_mut(0)) else {
        return 0;
    };
    // SAFETY: values of the maps, this CPU's own; the helpers have no arguments.
    let (tally, space, now_ns, random) = unsafe {
        (
            &mut *tally,
            &mut *space,
            bpf_ktime_get_ns(),
            bpf_get_prandom_u32(),
        )
    };
    if order.until_ns < now_ns || !tally.admits(order, now_ns, random) {
        return 0;
    }
    let asked = (order.bytes as usize).min(SAMPLE_BYTES_MAX);
    let kept = bounded(asked.min(frame_bytes));
    // SAFETY: `kept` bytes are in the frame and have room; the context is the one that the program was called with.
    let read =
        unsafe { bpf_xdp_load_bytes(ctx.ctx, 0, space.bytes.as_mut_ptr().cast(), kept as u32) };
    if read != 0 {
        tally.no_room += 1;
        return 0;
    }
    space.head = SampleHead {
        at_ns: now_ns,
        ifindex,
        counter,
        frame_bytes: frame_bytes as u32,
        one_in: order.weight(),
        // SAFETY: a helper without arguments.
        cpu: unsafe { bpf_get_smp_processor_id() },
        reserved: 0,
    };
    kept
}

/// Tells of what [`take`] kept, and what became of it.
#[inline(always)]
pub(crate) fn tell(kept: usize, counter: u32) {
    let (Some(tally), Some(space)) = (SAMPLED.get_ptr_mut(0), SPACE.get_ptr_mut(0)) else {
        return;
    };
    // SAFETY: values of the maps, this CPU's own; the slice ends within the value.
    let (tally, told) = unsafe {
        (*space).head.counter = counter;
        let bytes = core::slice::from_raw_parts(space.cast::<u8>(), HEAD_BYTES + bounded(kept));
        (&mut *tally, bytes)
    };
    match SAMPLES.output_untyped::<[u8]>(told, NO_WAKEUP) {
        Ok(()) => tally.taken += 1,
        Err(_) => tally.no_room += 1,
    }
}

/// The same number, of 1 to [`ROOM`] bytes, in words that the verifier follows: that of Linux 6.1 learns no lower bound
/// from a comparison with 0.
#[inline(always)]
fn bounded(bytes: usize) -> usize {
    (bytes.wrapping_sub(1) & (ROOM - 1)) + 1
}
