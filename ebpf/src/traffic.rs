//! Traffic for tests and measurements: a generator, a sink, and the least that a forwarder can do.
//!
//! What is sent and what is measured is in the library; here are the maps and the packet's bounds.
//! Built by `scripts/build-ebpf` into `prebuilt/traffic.bpf.o`.
#![no_std]
#![no_main]
#![deny(unsafe_op_in_unsafe_fn)]
#![allow(missing_docs, clippy::cast_possible_truncation)]

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
    btf_maps::{Array, DevMap, PerCpuArray, ProgramArray},
    helpers::{bpf_ktime_get_ns, bpf_xdp_adjust_tail, generated::bpf_xdp_store_bytes},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use virga_ebpf::{
    frame::{Bytes, ETHERNET_BYTES},
    header::{Header, offset},
    limits::HEADER_BYTES,
    replay::{FRAME_BYTES, MESH, MESH_IPV6, MESH_TAGGED, ORIGIN_STEP, Replay},
    sink::{self, BUCKETS, Counts, Kind},
    tag::link_tag,
    workload::{CAPTURED_BYTES_MAX, Captured, Lane, Workload, write},
};

mod packet;
use packet::Packet;

#[btf_map(name = "workload")]
static WORKLOAD: Array<Workload, 1> = Array::new();
#[btf_map(name = "lanes")]
static LANES: PerCpuArray<Lane, 1> = PerCpuArray::new();
#[btf_map(name = "egress")]
static EGRESS: DevMap<1> = DevMap::new();
/// The loader makes room for as many as it sends.
#[btf_map(name = "captured")]
static CAPTURED: Array<Captured, 1> = Array::new();
#[btf_map(name = "sink_port")]
static SINK_PORT: Array<u32, 1> = Array::new();
#[btf_map(name = "sink_counts")]
static SINK_COUNTS: PerCpuArray<Counts, 1> = PerCpuArray::new();
#[btf_map(name = "sink_latency")]
static SINK_LATENCY: PerCpuArray<u64, { BUCKETS as usize }> = PerCpuArray::new();
/// Next sequence of each flow; the loader makes room for as many as it follows. A flow's packets come
/// in on one CPU as long as its path keeps their order.
#[btf_map(name = "sink_flows")]
static SINK_FLOWS: Array<u64, 1> = Array::new();

#[btf_map(name = "replay")]
static REPLAY: Array<Replay, 1> = Array::new();
/// The program that a replayed frame is given to.
#[btf_map(name = "replay_target")]
static TARGET: ProgramArray<1> = ProgramArray::new();

/// This CPU's lane.
#[inline(always)]
fn lane<'a>() -> Option<&'a mut Lane> {
    // SAFETY: a value of the map, this CPU's own; a test run is not preempted by another.
    LANES.get_ptr_mut(0).map(|lane| unsafe { &mut *lane })
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Cuts the frame to `bytes`.
#[inline(always)]
fn cut(ctx: &XdpContext, workload: &Workload, bytes: u32) -> Option<()> {
    let delta = bytes as i32 - workload.frame_bytes as i32;
    // SAFETY: the context is the one that the program was called with.
    if delta != 0 && unsafe { bpf_xdp_adjust_tail(ctx.ctx, delta) } != 0 {
        return None;
    }
    Some(())
}

/// Whether this lane sends a packet now, and the time, where anything asks for it.
#[inline(always)]
fn admit(lane: &mut Lane, workload: &Workload) -> Option<u64> {
    let now = if workload.interval != 0 || workload.stamped == 1 {
        now_ns()
    } else {
        0
    };
    (lane.sent() < lane.limit && lane.is_due(workload, now)).then_some(now)
}

/// Makes a live test run's frame the next packet of the workload, and sends it. The frame is one that
/// was sent before, changed on its way: all headers are written.
#[xdp]
pub(crate) fn virga_generate(ctx: XdpContext) -> u32 {
    generate(&ctx).unwrap_or(XDP_ABORTED)
}

#[inline(always)]
fn generate(ctx: &XdpContext) -> Option<u32> {
    let workload = WORKLOAD.get(0)?;
    let lane = lane()?;
    let Some(now) = admit(lane, workload) else {
        return Some(XDP_DROP);
    };
    let step = lane.step(workload);
    cut(ctx, workload, u32::from(step.frame_bytes))?;
    write(&mut Packet::new(ctx), workload, &step, now)?;
    EGRESS.redirect(0, 0).ok()
}

/// Makes a live test run's frame the next captured one, and sends it.
#[xdp]
pub(crate) fn virga_resend(ctx: XdpContext) -> u32 {
    resend(&ctx).unwrap_or(XDP_ABORTED)
}

#[inline(always)]
fn resend(ctx: &XdpContext) -> Option<u32> {
    let (lane, workload) = (lane()?, WORKLOAD.get(0)?);
    if admit(lane, workload).is_none() {
        return Some(XDP_DROP);
    }
    let number = lane.step_captured(|number| CAPTURED.get(number).map(|c| c.bytes))?;
    let captured = CAPTURED.get(number)?;
    let bytes = captured.bytes;
    // One comparison before and one after the cut: the compiler makes one of two that stand together, by a
    // difference of which the verifier of 6.1 learns nothing about the number.
    if bytes < ETHERNET_BYTES as u32 {
        return None;
    }
    cut(ctx, workload, bytes)?;
    if bytes as usize > CAPTURED_BYTES_MAX {
        return None;
    }
    let from = captured.frame.as_ptr().cast_mut().cast();
    // SAFETY: the context is the one that the program was called with, and `bytes` of the map's value
    // are read, which has as many.
    if unsafe { bpf_xdp_store_bytes(ctx.ctx, 0, from, bytes) } != 0 {
        return None;
    }
    EGRESS.redirect(0, 0).ok()
}

/// Counts and drops mesh packets; lets everything else through.
#[xdp]
pub(crate) fn virga_sink(ctx: XdpContext) -> u32 {
    let packet = Packet::new(&ctx);
    let Some(port) = SINK_PORT.get(0) else {
        return XDP_ABORTED;
    };
    let Some((header, mesh)) = sink::read(&packet, *port as u16) else {
        return XDP_PASS;
    };
    let Some(counts) = SINK_COUNTS.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: a value of the map, this CPU's own.
    let counts = unsafe { &mut *counts };
    match sink::kind(&header) {
        Kind::Other => counts.others += 1,
        Kind::Stranger => counts.strangers += 1,
        Kind::Authorised(flow) => {
            counts.packets += 1;
            counts.bytes += packet.len() as u64;
            match SINK_FLOWS.get_ptr_mut(flow) {
                // SAFETY: a value of the map; see there for who writes it.
                Some(expected) => counts.follow(unsafe { &mut *expected }, header.sequence),
                None => counts.untracked += 1,
            }
            measure(&packet, mesh, counts);
        }
    }
    XDP_DROP
}

/// Enters a stamped packet into the histogram.
#[inline(always)]
fn measure(packet: &Packet, mesh: usize, counts: &mut Counts) {
    let Some(stamp) = packet.at::<8>(mesh + HEADER_BYTES) else {
        return;
    };
    let stamp = u64::from_be_bytes(*stamp);
    if stamp == 0 {
        return;
    }
    counts.stamped += 1;
    let latency = now_ns().saturating_sub(stamp);
    if let Some(bucket) = SINK_LATENCY.get_ptr_mut(sink::bucket(latency)) {
        // SAFETY: a value of the map, this CPU's own.
        unsafe { *bucket += 1 };
    }
}

/// Writes the same frame, with a new sequence, and gives it to the program in `replay_target`: a test
/// run leaves its frame as the last run sent it on, a hop less and already seen.
#[xdp]
pub(crate) fn virga_replay(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + FRAME_BYTES > ctx.data_end() {
        return XDP_ABORTED;
    }
    let Some(replay) = REPLAY.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: a value of the map, which one test run uses; the frame has `FRAME_BYTES` bytes, as just checked.
    let replay = unsafe {
        (*replay).sequence += 1;
        *(start as *mut [u64; FRAME_BYTES / 8]) = (*replay).frame;
        &*replay
    };
    let end = ctx.data_end();
    let is_varied = match replay.mesh as usize {
        MESH => vary::<MESH>(start, end, replay),
        MESH_TAGGED => vary::<MESH_TAGGED>(start, end, replay),
        MESH_IPV6 => vary::<MESH_IPV6>(start, end, replay),
        _ => false,
    };
    if replay.tagged == 1 {
        // SAFETY: the frame has `FRAME_BYTES` bytes, as just checked, and the mesh header at `MESH` ends before.
        unsafe {
            let header = Header::decode(&*((start + MESH) as *const [u8; HEADER_BYTES]));
            let tag = link_tag(&[replay.tag_key; 2], 0, &header);
            *((start + MESH + offset::LINK_TAG) as *mut [u8; 8]) = tag.to_be_bytes();
        }
    }
    if is_varied {
        // SAFETY: the context is the one that the program was called with.
        unsafe { TARGET.tail_call(&ctx, 0) };
    }
    XDP_ABORTED
}

/// Writes what changes from run to run into the mesh header at `AT`; whether the frame is long enough.
#[inline(always)]
fn vary<const AT: usize>(start: usize, end: usize, replay: &Replay) -> bool {
    if start + AT + HEADER_BYTES > end {
        return false;
    }
    let sequence = replay.sequence;
    let destination = replay.destination + (sequence & replay.destination_mask);
    let origin = replay.origin ^ (sequence & replay.origin_mask).wrapping_mul(ORIGIN_STEP);
    let put = |at: usize, word: u64| {
        // SAFETY: within the mesh header, which lies within the frame, as just checked.
        unsafe { *((start + AT + at) as *mut [u8; 8]) = word.to_be_bytes() };
    };
    put(offset::SEQUENCE, sequence & replay.sequence_mask);
    put(offset::DESTINATION, destination);
    put(offset::ORIGIN_HASH, origin);
    true
}

/// Sends every frame to another interface as it is: the least that a forwarder in XDP can do.
#[xdp]
pub(crate) fn virga_redirect(_ctx: XdpContext) -> u32 {
    EGRESS.redirect(0, 0).unwrap_or(XDP_ABORTED)
}

/// Does nothing: what a program costs that is run at all.
#[xdp]
pub(crate) fn virga_null(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
