//! Generated traffic: which packet comes next, and its bytes.
//!
//! A [`Workload`] says what is sent, a [`Lane`] how far one CPU has come with it. The generator in the
//! kernel (`src/traffic.rs`) and the one that writes files go through the same [`Lane::step`] and
//! [`write`]. Payloads are zeros, but for the time of sending where that is asked for: nothing is
//! sealed, so no end node opens it, and forwarders cannot tell.

#![expect(
    clippy::cast_possible_truncation,
    reason = "frames are at most FRAME_BYTES_MAX long, and strangers' numbers are cut on purpose"
)]

use crate::{
    frame::UDP_BYTES,
    header::{ChannelHash, Header, NodeId, OriginHash, SessionId, StreamId, Subnet},
    limits::{HEADER_BYTES, TAG_BYTES},
    reason::Counter,
    rewrite::{self, Put, Sent, fold, halves},
    tables::NextHop,
};

/// Sizes in one turn of a [`Workload`].
pub const SIZES_MAX: usize = 16;
/// Largest frame: what native XDP takes without fragments, and one page of a test run holds.
pub const FRAME_BYTES_MAX: u16 = 3_072;
/// Flows of one workload; also how many a sink can follow.
pub const FLOWS_MAX: u32 = 1 << 20;
/// First 24 bits of every generated session: `gen`.
pub const SESSION_MARK: u64 = 0x6765_6e00_0000_0000;
/// First 16 bits of every stranger's origin.
pub const STRANGER_MARK: u64 = 0xdead_0000_0000_0000;
/// Bits behind the point of [`Workload::interval`].
pub const INTERVAL_SHIFT: u32 = 8;
/// A late generator makes up for so much where nothing else is said, as fast as it can: the kernel's own
/// pause between two calls is half of that.
pub const BURST_NS: u32 = 50_000_000;

/// Bytes of a captured frame that is sent again.
pub const CAPTURED_BYTES_MAX: usize = 2_044;
/// Captured frames that are sent in turn.
pub const CAPTURED_MAX: u32 = 1 << 16;

const SESSION_MARK_MASK: u64 = 0xffff_ff00_0000_0000;
const STRANGER_MARK_MASK: u64 = 0xffff_0000_0000_0000;
const PERMILLE: u32 = 1_000;

const _: () = assert!(SIZES_MAX.is_power_of_two());
const _: () = assert!(
    FLOWS_MAX < u32::MAX,
    "a stream's number is its flow's plus one"
);

/// What is sent. The one value of the generator's `workload` map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Workload {
    /// Outer headers: from whom, to whom, with which tag and port.
    pub hop: NextHop,
    /// Destination of flow 0.
    pub destination: NodeId,
    /// Added to the destination from one flow to the next; 0 sends all to one.
    pub destination_step: u64,
    /// Who the authorised packets claim to come from.
    pub origin: OriginHash,
    /// Nanoseconds from one packet of a lane to its next, with [`INTERVAL_SHIFT`] bits behind the
    /// point; 0 does not wait.
    pub interval: u64,
    /// The channel they claim.
    pub channel: u32,
    /// Their subnet.
    pub subnet: Subnet,
    /// Upper half of every sequence, so that two runs within a second are no duplicates.
    pub run: u32,
    /// Of a thousand packets, how many are of origins that nobody knows, a new one each.
    pub hostile_permille: u32,
    /// 1 writes the time of sending into the payload.
    pub stamped: u32,
    /// How many of `sizes` there are, 1 to [`SIZES_MAX`].
    pub size_count: u32,
    /// Bytes of the frames that the generator is given: what it cuts to size.
    pub frame_bytes: u32,
    /// Nanoseconds that a late generator makes up for, as fast as it can.
    pub burst_ns: u32,
    /// Bytes of each frame, link header included, check sequence not; taken in turn, see [`Turns`].
    pub sizes: [u16; SIZES_MAX],
}

/// How far a lane has come with one class of its packets. Each flow has its turn, then each again; from one
/// of its turns to the next a flow goes on by one size, so that every flow has all sizes, and every class
/// the same share of each, whatever the numbers of flows and of sizes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Turns {
    /// The next flow, counted from the lane's first.
    pub flow: u32,
    /// Packets that each flow has had: its next sequence's lower half.
    pub round: u32,
    /// Place of the next size.
    pub size_at: u32,
    /// Place of the size that this round began with.
    pub round_size_at: u32,
}

/// How far one CPU has come. A value of the per-CPU map `lanes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Lane {
    /// First of the flows that this lane sends.
    pub first_flow: u32,
    /// How many it sends, each in turn.
    pub flows: u32,
    /// Whose turn it is among the authorised packets.
    pub members: Turns,
    /// The same among the hostile ones.
    pub strangers: Turns,
    /// Thousandths of a hostile packet that are due.
    pub hostile_credit: u32,
    /// Always 0.
    pub reserved: u32,
    /// Number of the next stranger.
    pub stranger: u64,
    /// It stops when it has sent so many.
    pub limit: u64,
    /// When the next packet is due, in the unit of [`Workload::interval`].
    pub due: u64,
    /// Sent, with the workload's origin.
    pub authorised: Counter,
    /// Sent, with a stranger's origin.
    pub hostile: Counter,
}

const _: () = assert!(size_of::<Workload>() == 104 + 4 * 8 + 8 * 4 + 2 * SIZES_MAX);
const _: () = assert!(size_of::<Lane>() == 4 * 4 + 2 * 16 + 3 * 8 + 2 * 16);

/// A captured frame, to be sent as it is. A value of the generator's `captured` map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Captured {
    /// How many of `frame` there are; those of an Ethernet header to [`CAPTURED_BYTES_MAX`].
    pub bytes: u32,
    /// The frame.
    pub frame: [u8; CAPTURED_BYTES_MAX],
}

const _: () = assert!(size_of::<Captured>() == 4 + CAPTURED_BYTES_MAX);
const _: () = assert!(CAPTURED_BYTES_MAX <= FRAME_BYTES_MAX as usize);

/// One packet to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the frame.
    pub frame_bytes: u16,
    /// Its mesh header.
    pub header: Header,
}

impl Workload {
    /// Smallest frame that a sealed payload of nothing travels in.
    #[inline(always)]
    #[must_use]
    pub const fn frame_bytes_min(hop: &NextHop) -> u16 {
        (rewrite::headers_bytes(hop) + HEADER_BYTES + TAG_BYTES) as u16
    }

    /// Largest of its sizes.
    #[must_use]
    pub fn frame_bytes_max(&self) -> u16 {
        self.sizes.iter().copied().max().unwrap_or(0)
    }
}

impl Lane {
    /// Packets sent.
    #[inline(always)]
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.authorised.packets + self.hostile.packets
    }

    /// Whether a packet may go now. Where it may, the next one's time is set.
    #[inline(always)]
    pub fn is_due(&mut self, workload: &Workload, now_ns: u64) -> bool {
        if workload.interval == 0 {
            return true;
        }
        let now = now_ns << INTERVAL_SHIFT;
        let earliest = now.saturating_sub(u64::from(workload.burst_ns) << INTERVAL_SHIFT);
        if self.due < earliest {
            self.due = earliest;
        }
        if self.due > now {
            return false;
        }
        self.due += workload.interval;
        true
    }

    /// Number of the next captured frame; counts it as sent.
    #[inline(always)]
    pub fn step_captured(&mut self, bytes_of: impl Fn(u32) -> Option<u32>) -> Option<u32> {
        let number = self.first_flow + self.members.flow;
        let bytes = bytes_of(number)?;
        self.members.next(self.flows, 1);
        count(&mut self.authorised, bytes as u16);
        Some(number)
    }

    /// The next packet; counts it as sent.
    #[inline(always)]
    pub fn step(&mut self, workload: &Workload) -> Step {
        let (flows, size_count) = (self.flows, workload.size_count);
        let run = u64::from(workload.run) << 32;
        self.hostile_credit += workload.hostile_permille;
        let (turn, origin_hash, sequence, counter) = if self.hostile_credit >= PERMILLE {
            self.hostile_credit -= PERMILLE;
            let number = self.stranger;
            self.stranger += 1;
            let turn = self.strangers.next(flows, size_count);
            let origin = stranger(number);
            (turn, origin, number & 0xffff_ffff, &mut self.hostile)
        } else {
            let turn = self.members.next(flows, size_count);
            let sequence = u64::from(turn.round);
            (turn, workload.origin, sequence, &mut self.authorised)
        };
        let frame_bytes = workload.sizes[turn.size_at as usize & (SIZES_MAX - 1)];
        count(counter, frame_bytes);
        let flow = self.first_flow + turn.flow;
        let outer_bytes = rewrite::headers_bytes(&workload.hop) + HEADER_BYTES;
        let destination = u64::from(flow).wrapping_mul(workload.destination_step);
        let header = Header {
            channel_hash: ChannelHash(workload.channel as u16),
            subnet: workload.subnet,
            destination: NodeId(workload.destination.0.wrapping_add(destination)),
            origin_hash,
            session_id: SessionId(SESSION_MARK | u64::from(flow)),
            stream_id: StreamId(flow + 1),
            payload_len: frame_bytes.wrapping_sub(outer_bytes as u16),
            event_count: 1,
            sequence: run | sequence,
            ..Header::default()
        };
        Step {
            frame_bytes,
            header,
        }
    }
}

impl Turns {
    /// Whose turn it is; goes on to the next.
    #[inline(always)]
    fn next(&mut self, flows: u32, size_count: u32) -> Self {
        let now = *self;
        self.flow += 1;
        let mut size_at = self.size_at;
        if self.flow >= flows {
            self.flow = 0;
            self.round = self.round.wrapping_add(1);
            size_at = self.round_size_at;
        }
        size_at += 1;
        if size_at >= size_count {
            size_at = 0;
        }
        if self.flow == 0 {
            self.round_size_at = size_at;
        }
        self.size_at = size_at;
        now
    }
}

/// The `number`th origin that nobody knows.
#[inline(always)]
#[must_use]
pub const fn stranger(number: u64) -> OriginHash {
    OriginHash(STRANGER_MARK | number & !STRANGER_MARK_MASK)
}

#[inline(always)]
fn count(counter: &mut Counter, frame_bytes: u16) {
    counter.packets += 1;
    counter.bytes += u64::from(frame_bytes);
}

/// Whether a generator made this session.
#[inline(always)]
#[must_use]
pub const fn is_generated(session: SessionId) -> bool {
    session.0 & SESSION_MARK_MASK == SESSION_MARK
}

/// Whether a generator made this origin up.
#[inline(always)]
#[must_use]
pub const fn is_stranger(origin: OriginHash) -> bool {
    origin.0 & STRANGER_MARK_MASK == STRANGER_MARK
}

/// Writes all headers of a packet into a frame of its size, and the time of sending where the workload
/// wants it. The rest of the payload is left as it is, and must be zeros. `None` where the frame is
/// too short.
#[inline(always)]
pub fn write<F: Put + ?Sized>(
    frame: &mut F,
    workload: &Workload,
    step: &Step,
    now_ns: u64,
) -> Option<()> {
    let hop = &workload.hop;
    let udp_payload_bytes = (step.frame_bytes).wrapping_sub(rewrite::headers_bytes(hop) as u16);
    let stamp = if workload.stamped == 1 { now_ns } else { 0 };
    let sent = sent(hop, udp_payload_bytes, &step.header, stamp);
    let mesh = rewrite::write_outer(frame, hop, &sent)?;
    frame.put(mesh, &step.header.encode())?;
    if workload.stamped == 1 {
        frame.put(mesh + HEADER_BYTES, &stamp.to_be_bytes())?;
    }
    Some(())
}

/// What the UDP header says: the checksum is of the whole packet (RFC 768), from its fields; of the
/// payload only the stamp is not zero.
#[inline(always)]
fn sent(hop: &NextHop, udp_payload_bytes: u16, header: &Header, stamp: u64) -> Sent {
    let source_port = match hop.source_port {
        0 => rewrite::source_port(header.session_id),
        fixed => fixed as u16,
    };
    let udp_bytes = u64::from(udp_payload_bytes) + UDP_BYTES as u64;
    // The length counts twice: in the pseudo-header, and in the UDP header.
    let sum = u64::from(hop.sum) + u64::from(source_port) + 17 + 2 * udp_bytes;
    let checksum = match !fold(sum + header_sum(header) + halves(stamp)) {
        0 => 0xffff,
        checksum => checksum,
    };
    Sent {
        traffic_class: 0,
        udp_payload_bytes,
        source_port,
        checksum,
        hop_limit: header.hop_limit,
        hop_count: header.hop_count,
        link_tag: header.link_tag,
    }
}

/// Sum of the header's 16-bit words, not folded: 32 bits at once, as both halves count the same.
#[inline(always)]
const fn header_sum(h: &Header) -> u64 {
    h.magic as u64
        + ((h.version as u64) << 8)
        + h.flags.0 as u64
        + ((h.priority as u64) << 8)
        + h.hop_limit as u64
        + ((h.hop_count as u64) << 8)
        + h.key_phase as u64
        + h.subprotocol as u64
        + h.channel_hash.0 as u64
        + h.subnet.0 as u64
        + halves(h.destination.0)
        + halves(h.origin_hash.0)
        + halves(h.session_id.0)
        + h.stream_id.0 as u64
        + h.payload_len as u64
        + h.event_count as u64
        + halves(h.sequence)
        + halves(h.link_tag)
}
