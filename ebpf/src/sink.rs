//! What becomes of generated traffic at its end: counted, and its loss, order and latency measured.

use crate::{
    frame::{
        Bytes, ETHERNET_BYTES, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, IPV4_BYTES,
        IPV6_BYTES, UDP_BYTES, VLAN_TAG_BYTES,
    },
    header::{Header, MAGIC},
    limits::HEADER_BYTES,
    workload::{is_generated, is_stranger},
};

const PROTOCOL_UDP: u8 = 17;

/// Each power of two of nanoseconds is cut into so many buckets, as a power of two.
const SUB_BUCKET_BITS: u32 = 4;
/// Buckets of the latency histogram.
pub const BUCKETS: u32 = (64 - SUB_BUCKET_BITS + 1) << SUB_BUCKET_BITS;

/// What one CPU of a sink has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "bpf"), derive(Hash))]
#[repr(C)]
pub struct Counts {
    /// Generated packets of the workload's origin.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Generated packets of strangers: nothing on the way has refused them.
    pub strangers: u64,
    /// Mesh packets that no generator made.
    pub others: u64,
    /// Packets of flows with a number above what this sink follows.
    pub untracked: u64,
    /// Sequences that were passed over, less those that came late.
    pub missing: u64,
    /// Packets behind a later one of their flow (or repeated: that looks the same).
    pub late: u64,
    /// Packets that carried their time of sending.
    pub stamped: u64,
}

const _: () = assert!(size_of::<Counts>() == 8 * 8);

/// The mesh header of a frame for that UDP port, and where it stands. `None` is anything else.
#[inline(always)]
pub fn read<B: Bytes + ?Sized>(frame: &B, port: u16) -> Option<(Header, usize)> {
    let ethernet = frame.at::<ETHERNET_BYTES>(0)?;
    let ethertype = u16::from_be_bytes([ethernet[12], ethernet[13]]);
    if ethertype != ETHERTYPE_VLAN {
        return network(frame, ETHERNET_BYTES, ethertype, port);
    }
    let tag = frame.at::<VLAN_TAG_BYTES>(ETHERNET_BYTES)?;
    let ethertype = u16::from_be_bytes([tag[2], tag[3]]);
    network(frame, ETHERNET_BYTES + VLAN_TAG_BYTES, ethertype, port)
}

#[inline(always)]
fn network<B: Bytes + ?Sized>(
    frame: &B,
    at: usize,
    ethertype: u16,
    port: u16,
) -> Option<(Header, usize)> {
    let (protocol, udp) = match ethertype {
        ETHERTYPE_IPV4 => {
            let ip = frame.at::<IPV4_BYTES>(at)?;
            if ip[0] != 0x45 {
                return None;
            }
            (ip[9], at + IPV4_BYTES)
        }
        ETHERTYPE_IPV6 => (frame.at::<IPV6_BYTES>(at)?[6], at + IPV6_BYTES),
        _ => return None,
    };
    let ports = frame.at::<UDP_BYTES>(udp)?;
    if protocol != PROTOCOL_UDP || u16::from_be_bytes([ports[2], ports[3]]) != port {
        return None;
    }
    let mesh = udp + UDP_BYTES;
    let header = Header::decode(frame.at::<HEADER_BYTES>(mesh)?);
    (header.magic == MAGIC).then_some((header, mesh))
}

/// What a packet is to the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Generated, with the workload's origin: its flow's number.
    Authorised(u32),
    /// Generated, with a made-up origin.
    Stranger,
    /// Made by no generator.
    Other,
}

/// Tells what a header is to the sink.
#[inline(always)]
#[must_use]
pub const fn kind(header: &Header) -> Kind {
    if !is_generated(header.session_id) {
        return Kind::Other;
    }
    if is_stranger(header.origin_hash) {
        return Kind::Stranger;
    }
    Kind::Authorised(header.stream_id.0.wrapping_sub(1))
}

impl Counts {
    /// Counts a packet of a flow. `expected` is the flow's next sequence, 0 before its first; a run
    /// starts at the sequence whose lower half is 0, so what is lost before the first packet counts.
    #[inline(always)]
    pub fn follow(&mut self, expected: &mut u64, sequence: u64) {
        let is_same_run = *expected >> 32 == sequence >> 32;
        let next = if is_same_run {
            *expected
        } else {
            sequence & !0xffff_ffff
        };
        if sequence < next {
            self.late += 1;
            self.missing = self.missing.wrapping_sub(1);
            return;
        }
        self.missing = self.missing.wrapping_add(sequence - next);
        *expected = sequence + 1;
    }

    /// Adds another CPU's counts. What one CPU has missed another may have received late, so `missing`
    /// is right only in the sum.
    pub fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.strangers += other.strangers;
        self.others += other.others;
        self.untracked += other.untracked;
        self.missing = self.missing.wrapping_add(other.missing);
        self.late += other.late;
        self.stamped += other.stamped;
    }
}

/// The histogram's bucket of a latency: exact below 16 ns, then at most a sixteenth wide.
#[inline(always)]
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "what is left after the shift has five bits"
)]
pub const fn bucket(ns: u64) -> u32 {
    if ns < 1 << SUB_BUCKET_BITS {
        return ns as u32;
    }
    let exponent = 63 - ns.leading_zeros();
    let shift = exponent - SUB_BUCKET_BITS;
    (shift << SUB_BUCKET_BITS) + (ns >> shift) as u32
}

/// The smallest latency of a bucket, and the smallest above it.
#[must_use]
pub const fn bucket_bounds(bucket: u32) -> (u64, u64) {
    let sub = 1 << SUB_BUCKET_BITS;
    if bucket < 2 * sub {
        return (bucket as u64, bucket as u64 + 1);
    }
    let shift = (bucket >> SUB_BUCKET_BITS) - 1;
    let mantissa = (bucket - (shift << SUB_BUCKET_BITS)) as u64;
    (
        mantissa << shift,
        match (mantissa + 1).checked_mul(1 << shift) {
            Some(above) => above,
            None => u64::MAX,
        },
    )
}
