//! The XDP program: reads a frame, decides by the mesh header, and forwards, delivers or drops.
//!
//! Everything that decides is in the library; here are the maps, the bounds check against `data_end`,
//! and the bytes that are written. Built by `scripts/build-ebpf` into `prebuilt/virga.bpf.o`.
#![no_std]
#![no_main]
#![deny(unsafe_op_in_unsafe_fn)]
#![allow(missing_docs, clippy::cast_possible_truncation)]

use core::{cell::Cell, mem::MaybeUninit};

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX},
    btf_maps::{Array, DevMap, PerCpuArray, XskMap},
    helpers::{
        bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_xdp_adjust_head, bpf_xdp_adjust_tail,
        generated::bpf_jiffies64,
    },
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use virga_ebpf::{
    decide::{Verdict, decide_from},
    directory::{Line, lines_for},
    flow::Flow,
    frame::{self, Bytes, Frame, Outer, Outside},
    header::{ChannelHash, Fields, Header},
    limits::{
        CHANNELS, DESTINATIONS_MAX, ECHO_SLOTS, EXPORT_PLACES, FILTER_PLACES, FLOW_SLOTS,
        FLOWS_PER_VALUE, LINES_MAX, NEIGHBOUR_SLOTS, NEXT_HOPS_MAX, PAIR_LINES_MAX, PORTS_MAX,
        RATE_BUCKETS, ROUTES_MAX, SEEN_SLOTS, SEEN_SLOTS_PER_VALUE, XSK_PORTS, XSKS_MAX,
    },
    pair_set,
    plain::{OVER_IPV4, OVER_IPV6, Plain},
    reason::{COUNTERS, Counter, Outcome},
    rewrite::{self, Put},
    subnet::Exports,
    tables::{ChannelPolicy, Echo, Filter, Neighbour, NextHop, Route, Settings, Tables, XskPort},
};

mod front;
mod packet;
mod samples;
use front::Front;
use packet::Packet;

/// The map's data starts on a page, so that a line of guard, exact set or directory is one cache line.
const MMAPABLE: usize = 1 << 10;

/// What user space writes; no map that is looked up in, but a variable at an address that the program knows.
#[unsafe(link_section = ".bss")]
#[unsafe(no_mangle)]
static mut SETTINGS: MaybeUninit<Settings> = MaybeUninit::zeroed();

#[inline(always)]
fn settings() -> &'static Settings {
    // SAFETY: all zeros are settings, too. User space may write while a word is read; this is then old or new.
    unsafe { &*(&raw const SETTINGS).cast::<Settings>() }
}

#[btf_map(name = "neighbours")]
static NEIGHBOURS: Array<Neighbour, { NEIGHBOUR_SLOTS as usize }> = Array::new();
#[btf_map(name = "hs_buckets")]
static HANDSHAKE_BUCKETS: Array<u64, { NEIGHBOUR_SLOTS as usize }> = Array::new();
#[btf_map(name = "echoes")]
static ECHOES: Array<Echo, { ECHO_SLOTS as usize }> = Array::new();
#[btf_map(name = "guard_lines")]
static GUARD_LINES: Array<[u64; 8], { LINES_MAX as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "filters")]
static FILTERS: Array<Filter, { FILTER_PLACES as usize }> = Array::new();
#[btf_map(name = "pairs")]
static PAIRS: Array<pair_set::Line, { 2 * PAIR_LINES_MAX as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "channels")]
static CHANNEL_POLICIES: Array<ChannelPolicy, { CHANNELS as usize }> = Array::new();
#[btf_map(name = "exports")]
static EXPORTS: Array<Exports, { EXPORT_PLACES as usize }> = Array::new();
#[btf_map(name = "rate_buckets")]
static RATES: Array<u64, { RATE_BUCKETS as usize }> = Array::new();
#[btf_map(name = "destinations")]
static DESTINATIONS: Array<Line, { lines_for(DESTINATIONS_MAX) as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "routes")]
static ROUTES: Array<Route, { ROUTES_MAX as usize }> = Array::new();
#[btf_map(name = "next_hops")]
static NEXT_HOPS: Array<NextHop, { NEXT_HOPS_MAX as usize }> = Array::new();
#[btf_map(name = "egress")]
static EGRESS: DevMap<{ PORTS_MAX as usize }> = DevMap::new();
#[btf_map(name = "xsk_ports")]
static PORTS: Array<XskPort, { XSK_PORTS as usize }> = Array::new();
#[btf_map(name = "xsks")]
static XSKS: XskMap<{ XSKS_MAX as usize }> = XskMap::new();
#[btf_map(name = "flows")]
static FLOWS: PerCpuArray<
    [Flow; FLOWS_PER_VALUE as usize],
    { (FLOW_SLOTS / FLOWS_PER_VALUE) as usize },
> = PerCpuArray::new();
#[btf_map(name = "seen")]
static SEEN: PerCpuArray<
    [u64; SEEN_SLOTS_PER_VALUE as usize],
    { (SEEN_SLOTS / SEEN_SLOTS_PER_VALUE) as usize },
> = PerCpuArray::new();
#[btf_map(name = "counters")]
static COUNTS: PerCpuArray<Counter, { COUNTERS as usize }> = PerCpuArray::new();

/// The tables of the library, over the maps above.
struct Maps;

/// A map value as a cell.
///
/// # Safety
/// `value` points to a map value, which lives as long as the program. Other CPUs may write shared
/// ones; the words read are then old or new, which the callers are written for.
#[inline(always)]
unsafe fn cell<'a, T>(value: *mut T) -> &'a Cell<T> {
    // SAFETY: as above; `Cell<T>` has the layout of `T`.
    unsafe { &*value.cast::<Cell<T>>() }
}

impl Tables for Maps {
    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }
    #[inline(always)]
    fn jiffies(&self) -> u64 {
        // SAFETY: a helper without arguments, of which the kernel's verifier makes one load.
        unsafe { bpf_jiffies64() }
    }
    #[inline(always)]
    fn neighbour(&self, slot: u32) -> Option<&Neighbour> {
        NEIGHBOURS.get(slot)
    }
    #[inline(always)]
    fn handshake_bucket(&self, neighbour: u32) -> Option<&Cell<u64>> {
        // SAFETY: a value of the map.
        HANDSHAKE_BUCKETS
            .get_ptr_mut(neighbour)
            .map(|p| unsafe { cell(p) })
    }
    #[inline(always)]
    fn exact_ns(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_ns() }
    }
    #[inline(always)]
    fn echo(&self, place: u32) -> Option<&Cell<Echo>> {
        // SAFETY: a value of the map.
        ECHOES.get_ptr_mut(place).map(|p| unsafe { cell(p) })
    }
    #[inline(always)]
    fn filter(&self, place: u32) -> Option<&Filter> {
        FILTERS.get(place)
    }
    #[inline(always)]
    fn guard_line(&self, line: u32) -> Option<&[u64; 8]> {
        GUARD_LINES.get(line)
    }
    #[inline(always)]
    fn pair_line(&self, line: u32) -> Option<&pair_set::Line> {
        PAIRS.get(line)
    }
    #[inline(always)]
    fn channel(&self, hash: ChannelHash) -> Option<&ChannelPolicy> {
        CHANNEL_POLICIES.get(u32::from(hash.0))
    }
    #[inline(always)]
    fn exports(&self, place: u32) -> Option<&Exports> {
        EXPORTS.get(place)
    }
    #[inline(always)]
    fn rate_bucket(&self, slot: u32) -> Option<&Cell<u64>> {
        // SAFETY: a value of the map.
        RATES.get_ptr_mut(slot).map(|p| unsafe { cell(p) })
    }
    #[inline(always)]
    fn destinations(&self, line: u32) -> Option<&Line> {
        DESTINATIONS.get(line)
    }
    #[inline(always)]
    fn route(&self, number: u32) -> Option<&Route> {
        ROUTES.get(number)
    }
    #[inline(always)]
    fn next_hop(&self, number: u32) -> Option<&NextHop> {
        NEXT_HOPS.get(number)
    }
    #[inline(always)]
    fn flow(&self, slot: u32) -> Option<&Cell<Flow>> {
        let within = (slot & (FLOWS_PER_VALUE - 1)) as usize;
        let value = FLOWS.get_ptr_mut(slot / FLOWS_PER_VALUE)?;
        // SAFETY: the masked place lies within the value, which is this CPU's own.
        Some(unsafe { cell(value.cast::<Flow>().add(within)) })
    }
    #[inline(always)]
    fn seen(&self, slot: u32) -> Option<&Cell<u64>> {
        let within = (slot & (SEEN_SLOTS_PER_VALUE - 1)) as usize;
        let value = SEEN.get_ptr_mut(slot / SEEN_SLOTS_PER_VALUE)?;
        // SAFETY: the masked place lies within the value, which is this CPU's own.
        Some(unsafe { cell(value.cast::<u64>().add(within)) })
    }
}

#[inline(always)]
fn count(counter: u32, bytes: usize) {
    if let Some(value) = COUNTS.get_ptr_mut(counter) {
        // SAFETY: a value of the map, this CPU's own.
        unsafe {
            (*value).packets += 1;
            (*value).bytes += bytes as u64;
        }
    }
}

/// Forwards, delivers or drops one frame. Not a function of its own within the program: its return costs 7 ns where the
/// kernel guards it (SRSO).
#[xdp]
#[inline(always)]
pub(crate) fn virga(ctx: XdpContext) -> u32 {
    let packet = Packet::new(&ctx);
    let bytes = packet.len();
    let settings = settings();
    let ifindex = ctx.ingress_ifindex() as u32;
    let (counter, action) = if let Some(plain) = plain_of::<OVER_IPV4, OVER_IPV4_BYTES>(&ctx, bytes)
    {
        meet_plain(&ctx, settings, ifindex, &plain)
    } else if let Some(plain) = plain_of::<OVER_IPV6, OVER_IPV6_BYTES>(&ctx, bytes) {
        meet_plain(&ctx, settings, ifindex, &plain)
    } else {
        match frame::parse(&packet, &Maps, settings, ifindex) {
            Frame::NotOurs => (Outcome::Pass.counter(), XDP_PASS),
            Frame::Malformed(reason) => (reason.counter(), XDP_DROP),
            Frame::Mesh(outer, header, neighbour) => {
                meet(&ctx, settings, &outer, header, neighbour, None::<Packet>)
            }
        }
    };
    count(counter, bytes);
    action
}

const OVER_IPV4_BYTES: usize = Plain::<(), OVER_IPV4>::BYTES;
const OVER_IPV6_BYTES: usize = Plain::<(), OVER_IPV6>::BYTES;

/// The frame, of so many bytes, if it is a plain one with the mesh header at `MESH`, the last of its first `FRONT` bytes.
#[inline(always)]
fn plain_of<const MESH: usize, const FRONT: usize>(
    ctx: &XdpContext,
    bytes: usize,
) -> Option<Plain<Front<FRONT>, MESH>> {
    Plain::of(Front::of(ctx)?, bytes)
}

/// What becomes of a plain frame: its counter, and what the kernel is told.
#[inline(always)]
fn meet_plain<const MESH: usize, const FRONT: usize>(
    ctx: &XdpContext,
    settings: &Settings,
    ifindex: u32,
    plain: &Plain<Front<FRONT>, MESH>,
) -> (u32, u32) {
    match plain.neighbour(&Maps, settings, ifindex) {
        None => (Outcome::Pass.counter(), XDP_PASS),
        Some(Err(reason)) => (reason.counter(), XDP_DROP),
        Some(Ok(neighbour)) => {
            let (header, front) = (plain.header(), plain.words());
            meet(ctx, settings, plain, &header, neighbour, Some(front))
        }
    }
}

/// What becomes of a mesh packet: its counter, and what the kernel is told.
#[inline(always)]
fn meet<O: Outside, H: Fields, F: Put>(
    ctx: &XdpContext,
    settings: &Settings,
    outside: &O,
    header: &H,
    neighbour: Option<&Neighbour>,
    front: Option<F>,
) -> (u32, u32) {
    let bytes = u32::from(outside.udp_payload_bytes());
    match decide_from(&Maps, settings, header, bytes, neighbour) {
        Verdict::Local => deliver(ctx),
        Verdict::Echo => (Outcome::Echo.counter(), XDP_DROP),
        Verdict::Drop(reason) => (reason.counter(), XDP_DROP),
        Verdict::Forward(next_hop) => send(ctx, outside, header, next_hop, front),
    }
}

/// What is left to do with a frame once it is decided upon. Its numbers are none that a packet or a table has: the
/// compiler would keep one in place of the other, and the verifier of Linux 6.1 does not follow that they are equal.
#[repr(u32)]
enum Next<'a> {
    /// Nothing: the counter, and what the kernel is told.
    Leave(u32, u32) = 0x100,
    /// It is for this node.
    Deliver = 0x101,
    /// It is sent on.
    Send(Outer, &'a NextHop) = 0x102,
}

/// The same, in its place while somebody asks for samples.
#[xdp]
pub(crate) fn virga_sample(ctx: XdpContext) -> u32 {
    let packet = Packet::new(&ctx);
    let bytes = packet.len();
    let ifindex = ctx.ingress_ifindex() as u32;
    let settings = settings();
    let (header, next) = match frame::parse(&packet, &Maps, settings, ifindex) {
        Frame::NotOurs => (None, Next::Leave(Outcome::Pass.counter(), XDP_PASS)),
        Frame::Malformed(reason) => (None, Next::Leave(reason.counter(), XDP_DROP)),
        Frame::Mesh(outer, header, neighbour) => {
            let bytes = u32::from(outer.udp_payload_bytes);
            let header = Header::decode(header);
            let next = match decide_from(&Maps, settings, &header, bytes, neighbour) {
                Verdict::Local => Next::Deliver,
                Verdict::Echo => Next::Leave(Outcome::Echo.counter(), XDP_DROP),
                Verdict::Drop(reason) => Next::Leave(reason.counter(), XDP_DROP),
                Verdict::Forward(next_hop) => Next::Send(outer, next_hop),
            };
            (Some(header), next)
        }
    };
    let expected = match &next {
        Next::Leave(counter, _) => *counter,
        Next::Deliver => Outcome::Local.counter(),
        Next::Send(_, next_hop) if next_hop.ifindex == ifindex => Outcome::Transmit.counter(),
        Next::Send(..) => Outcome::Redirect.counter(),
    };
    let kept = samples::take(&ctx, bytes, header.as_ref(), expected);
    let (counter, action) = match (next, &header) {
        (Next::Leave(counter, action), _) => (counter, action),
        (Next::Deliver, _) => deliver(&ctx),
        (Next::Send(outer, next_hop), Some(header)) => {
            send(&ctx, &outer, header, next_hop, None::<Packet>)
        }
        (Next::Send(..), None) => (Outcome::Aborted.counter(), XDP_ABORTED),
    };
    count(counter, bytes);
    if kept > 0 {
        samples::tell(kept, counter);
    }
    action
}

/// Lets every frame through: for redirect targets whose driver needs a program of its own.
#[xdp]
pub(crate) fn virga_pass(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

/// Hands a packet for this node to the socket of its queue, or to the kernel's stack where there is none.
#[inline(always)]
fn deliver(ctx: &XdpContext) -> (u32, u32) {
    const PASS: (u32, u32) = (Outcome::Local.counter(), XDP_PASS);
    let ifindex = ctx.ingress_ifindex() as u32;
    let port = PORTS.get(XskPort::entry(ifindex));
    let Some(place) = port.and_then(|p| p.socket(ifindex, ctx.rx_queue_index())) else {
        return PASS;
    };
    match XSKS.redirect(place, u64::from(XDP_PASS)) {
        Ok(action) => (Outcome::Xsk.counter(), action),
        Err(_) => PASS,
    }
}

/// Writes the outer headers for the next hop and sends the frame there. `front` is where the headers are that are read.
#[inline(always)]
fn send<O: Outside, H: Fields, F: Put>(
    ctx: &XdpContext,
    outside: &O,
    header: &H,
    next_hop: &NextHop,
    front: Option<F>,
) -> (u32, u32) {
    const ABORTED: (u32, u32) = (Outcome::Aborted.counter(), XDP_ABORTED);
    let sent = rewrite::sent(outside, header, next_hop);
    let trailing = outside.trailing();
    let grows = rewrite::headers_bytes(next_hop) as i32 - outside.mesh() as i32;
    let written = match front {
        Some(mut front) if trailing == 0 && grows == 0 => write(&mut front, next_hop, &sent),
        _ => {
            // SAFETY: the context is the one that the program was called with.
            if trailing != 0 && unsafe { bpf_xdp_adjust_tail(ctx.ctx, -(trailing as i32)) } != 0 {
                return ABORTED;
            }
            // SAFETY: as above.
            if grows != 0 && unsafe { bpf_xdp_adjust_head(ctx.ctx, -grows) } != 0 {
                return ABORTED;
            }
            write(&mut Packet::new(ctx), next_hop, &sent)
        }
    };
    if written.is_none() {
        return ABORTED;
    }
    if next_hop.ifindex == ctx.ingress_ifindex() as u32 {
        return (Outcome::Transmit.counter(), XDP_TX);
    }
    match EGRESS.redirect(next_hop.egress, 0) {
        Ok(action) => (Outcome::Redirect.counter(), action),
        Err(_) => ABORTED,
    }
}

/// The outer headers, and what changes in the mesh header.
#[inline(always)]
fn write<F: Put>(frame: &mut F, next_hop: &NextHop, sent: &rewrite::Sent) -> Option<()> {
    let mesh = rewrite::write_outer(frame, next_hop, sent)?;
    rewrite::write_mesh(frame, mesh, sent)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
