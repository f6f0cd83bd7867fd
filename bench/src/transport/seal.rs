//! A whole packet sealed and opened, beside bare `ring` on the same bytes.

use std::{hint::black_box, time::Instant};

use virga_bench::sealed::Sealed;
use virga_ebpf::{header::Header, limits::HEADER_BYTES};

use super::bare::Ring;
use crate::{
    report::{Entry, Skip, failed},
    rounds::median,
};

/// Packets of one round.
const PACKETS: u64 = 4_000;

const CASES: [(&str, usize, f64); 2] = [
    ("transport.seal_64", 64, 1.10),
    ("transport.seal_1400", 1_400, 1.03),
];

/// Measures.
pub(super) fn measure(rounds: u32) -> Result<Vec<Entry>, Skip> {
    let mut entries = Vec::new();
    for (name, payload_bytes, asked) in CASES {
        let (mut ours, mut reference, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let one = whole_packets(payload_bytes)?;
            let other = bare(payload_bytes)?;
            ours.push(one);
            reference.push(other);
            ratios.push(one / other);
        }
        let most = asked * median(&reference);
        entries.push(
            Entry::new(name, "ns a packet sealed and opened", median(&ours))
                .beside(median(&reference))
                .ratio(median(&ratios))
                .limit(most),
        );
    }
    Ok(entries)
}

/// Header written, payload sealed; header read, payload opened. Nanoseconds a packet.
fn whole_packets(payload_bytes: usize) -> Result<f64, Skip> {
    let sealed = Sealed::new(payload_bytes);
    let mut packet = sealed.packet.clone();
    let start = Instant::now();
    for sequence in 1..=PACKETS {
        let header = Header {
            sequence,
            ..Header::decode(&sealed.header)
        };
        packet[..HEADER_BYTES].copy_from_slice(&header.encode());
        sealed.key.seal(sequence, black_box(&mut packet));
        let (header, rest) = packet
            .split_first_chunk_mut::<HEADER_BYTES>()
            .ok_or_else(|| failed("a packet without a header"))?;
        let read = Header::decode(header);
        let clear = sealed.key.open(header, read.sequence, black_box(rest));
        if clear.map(<[u8]>::len) != Ok(payload_bytes) {
            return Err(failed("what was sealed does not open"));
        }
    }
    Ok(each(start))
}

fn bare(payload_bytes: usize) -> Result<f64, Skip> {
    let ring = Ring::new();
    let mut packet = Sealed::new(payload_bytes).packet;
    let start = Instant::now();
    for number in 1..=PACKETS {
        ring.seal(number, black_box(&mut packet));
        if ring.open(number, black_box(&mut packet)) != Some(payload_bytes) {
            return Err(failed("what was sealed does not open"));
        }
    }
    Ok(each(start))
}

fn each(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e9 / f64::from(u32::try_from(PACKETS).unwrap_or(u32::MAX))
}

/// Gigabytes a second that `ring` alone seals on a core, in packets of a size.
pub(super) fn ring_rate(core: usize, payload_bytes: usize) -> f64 {
    let (sealed, mut packet) = (Ring::new(), Sealed::new(payload_bytes).packet);
    let seconds = std::thread::scope(|scope| {
        let measured = scope.spawn(move || {
            let _pinned = core_affinity::set_for_current(core_affinity::CoreId { id: core });
            let start = Instant::now();
            for number in 1..=PACKETS * 4 {
                sealed.seal(number, black_box(&mut packet));
            }
            start.elapsed().as_secs_f64()
        });
        measured.join().unwrap_or(f64::NAN)
    });
    let bytes = f64::from(u32::try_from(PACKETS * 4 * payload_bytes as u64).unwrap_or(u32::MAX));
    bytes / seconds / 1e9
}
