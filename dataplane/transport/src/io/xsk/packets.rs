//! Outer headers: taken off what comes in, put on what goes out.

use std::net::{IpAddr, SocketAddr};
use virga_ebpf::{
    frame::delivered,
    rewrite::{self, fold},
    tables::NextHop,
};

/// UDP's number in an IP header.
const PROTOCOL_UDP: u64 = 17;
/// Bytes of a UDP header.
const UDP_BYTES: u16 = 8;

/// Where a packet comes from, and its UDP payload. The NIC path has read it and found it well formed; what is
/// not, is `None`.
pub(super) fn payload(frame: &mut [u8]) -> Option<(SocketAddr, &mut [u8])> {
    let outer = delivered(&*frame)?;
    let source = SocketAddr::new(IpAddr::from(outer.source), outer.source_port);
    let end = outer.mesh + usize::from(outer.udp_payload_bytes);
    Some((source, frame.get_mut(outer.mesh..end)?))
}

/// Writes a packet of this node's own to a next hop, with a whole checksum: no NIC fills it in. Its bytes;
/// `None` where it does not fit.
pub(super) fn write(
    frame: &mut [u8],
    next_hop: &NextHop,
    source_port: u16,
    payload: &[u8],
) -> Option<u32> {
    let udp_payload_bytes = u16::try_from(payload.len()).ok()?;
    if next_hop.outer_bytes(u32::from(udp_payload_bytes)) > next_hop.mtu {
        return None;
    }
    let headers = rewrite::headers_bytes(next_hop);
    let end = headers + payload.len();
    frame.get_mut(headers..end)?.copy_from_slice(payload);
    // Source, target and target port are in the next hop's sum; the length counts twice (RFC 768).
    let length = u64::from(udp_payload_bytes) + u64::from(UDP_BYTES);
    let words = u64::from(next_hop.sum) + u64::from(source_port) + PROTOCOL_UDP + 2 * length;
    let checksum = match !fold(words + sum(payload)) {
        0 => 0xffff,
        checksum => checksum,
    };
    let sent = rewrite::Sent {
        traffic_class: 0,
        udp_payload_bytes,
        source_port,
        checksum,
        hop_limit: 0,
        hop_count: 0,
        link_tag: 0,
    };
    rewrite::write_outer(frame, next_hop, &sent)?;
    u32::try_from(end).ok()
}

/// Sum of 16-bit words, not folded; an odd byte counts as followed by 0.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let words = words.iter().map(|w| u64::from(u32::from_be_bytes(*w)));
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    words.sum::<u64>() + u64::from(u32::from_be_bytes(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next_hop(source: &str, target: &str, vlan: u16) -> NextHop {
        let address = |text: &str| text.parse::<IpAddr>().unwrap().into();
        NextHop {
            source: address(source),
            target: address(target),
            port: 4783,
            mtu: 1_500,
            vlan,
            target_mac: [2, 0, 0, 0, 0, 9],
            ..NextHop::default()
        }
        .completed()
    }

    /// The checksum over pseudo header, UDP header and payload, word by word (RFC 768, RFC 8200): right is 0.
    fn checksum(addresses: &[u8], udp: &[u8]) -> u16 {
        let length = u32::try_from(udp.len()).unwrap().to_be_bytes();
        let mut bytes = [addresses, &length, &[0, 0, 0, 17], udp].concat();
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        let mut sum = 0u32;
        for word in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([word[0], word[1]]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_its_checksum_is_whole() {
        for (hop, addresses_at, udp_at) in [
            (next_hop("10.0.0.1", "10.0.0.2", 0), 26..34, 34),
            (next_hop("10.0.0.1", "10.0.0.2", 5), 30..38, 38),
            (next_hop("fd00::1", "fd00::2", 0), 22..54, 54),
            (next_hop("fd00::1", "fd00::2", 9), 26..58, 58),
        ] {
            for bytes in [64, 65, 66, 67, 80, 1_200, 1_333] {
                let mesh: Vec<u8> = (0..bytes)
                    .map(|n| u8::try_from(n * 7 % 256).unwrap())
                    .collect();
                let mut frame = [0xee; 2_048];
                let end = write(&mut frame, &hop, 4_799, &mesh).unwrap();
                let frame = &mut frame[..end as usize];
                assert_eq!(frame[..6], hop.target_mac);
                assert_eq!(checksum(&frame[addresses_at.clone()], &frame[udp_at..]), 0);
                let (source, read) = payload(frame).unwrap();
                assert_eq!(source, SocketAddr::new(hop.source.into(), 4_799));
                assert_eq!(read, &mesh);
            }
        }
    }

    #[test]
    fn what_does_not_fit_the_mtu_or_the_frame_is_not_written() {
        let hop = next_hop("10.0.0.1", "10.0.0.2", 0);
        let mut frame = [0; 2_048];
        assert!(write(&mut frame, &hop, 1, &[0; 1_472]).is_some());
        assert!(write(&mut frame, &hop, 1, &[0; 1_473]).is_none());
        let wide = NextHop { mtu: 9_000, ..hop };
        assert!(write(&mut frame, &wide, 1, &[0; 2_006]).is_some());
        assert!(write(&mut frame, &wide, 1, &[0; 2_007]).is_none());
    }

    #[test]
    fn frames_that_no_nic_path_would_hand_over_are_not_read() {
        let hop = next_hop("10.0.0.1", "10.0.0.2", 0);
        let mut frame = [0; 200];
        let end = write(&mut frame, &hop, 1, &[7; 100]).unwrap() as usize;
        for cut in 0..end {
            let mut short = frame;
            assert!(payload(&mut short[..cut]).is_none(), "{cut} bytes");
        }
        // Every single byte of the headers wrong: read or not, never out of bounds.
        for at in 0..end - 100 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut wrong = frame;
                wrong[at] = value;
                if let Some((_, read)) = payload(&mut wrong[..end]) {
                    assert!(read.len() <= 100, "{at} {value}");
                }
            }
        }
    }
}
