//! How many bytes of a frame are headers: Ethernet, IP, UDP or TCP, and the mesh's own where it is for the mesh's
//! port. What follows is somebody's data, and told only to those who ask for it.

use virga_ebpf::{
    frame::{
        Bytes, ETHERNET_BYTES, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN,
        ETHERTYPE_VLAN, IPV6_BYTES, UDP_BYTES, VLAN_TAG_BYTES,
    },
    limits::{HEADER_BYTES, IPV6_EXTENSIONS_MAX, VLAN_TAGS_MAX},
};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// RFC 826, of IPv4 over Ethernet.
const ARP_BYTES: usize = 28;

/// What headers end with.
enum End {
    /// The mesh's, which begins here.
    Mesh(usize),
    /// Another, which ends here.
    Other(usize),
}

/// Bytes of headers; no more than the frame has.
#[must_use]
pub fn bytes(frame: &[u8], port: u16) -> usize {
    let end = match walk(frame, port) {
        Some(End::Mesh(at)) => at + HEADER_BYTES,
        Some(End::Other(at)) => at,
        None => ETHERNET_BYTES,
    };
    end.min(frame.len())
}

/// Where the mesh's own header begins, in a frame for its port.
#[must_use]
pub fn mesh(frame: &[u8], port: u16) -> Option<usize> {
    match walk(frame, port)? {
        End::Mesh(at) => Some(at),
        End::Other(_) => None,
    }
}

/// `None`: it ends before its headers do, or they cannot be told.
fn walk(frame: &[u8], port: u16) -> Option<End> {
    let word = |at: usize| frame.at::<2>(at).map(|b| u16::from_be_bytes(*b));
    let mut at = ETHERNET_BYTES;
    let mut ethertype = word(at - 2)?;
    for _ in 0..VLAN_TAGS_MAX {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_SERVICE_VLAN {
            break;
        }
        at += VLAN_TAG_BYTES;
        ethertype = word(at - 2)?;
    }
    let (protocol, at) = match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, at)?,
        ETHERTYPE_IPV6 => ipv6(frame, at)?,
        _ => return Some(End::Other(at + ARP_BYTES)),
    };
    Some(match protocol {
        Some(UDP) if word(at)? == port || word(at + 2)? == port => End::Mesh(at + UDP_BYTES),
        Some(UDP) => End::Other(at + UDP_BYTES),
        Some(TCP) => End::Other(at + usize::from(frame.get(at + 12)? >> 4) * 4),
        _ => End::Other(at),
    })
}

/// The protocol of what follows, where its header is in this frame, and where that begins.
fn ipv4(frame: &[u8], at: usize) -> Option<(Option<u8>, usize)> {
    let ip = frame.at::<20>(at)?;
    let is_later = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff != 0;
    let end = at + usize::from(ip[0] & 0x0f) * 4;
    Some(((!is_later).then_some(ip[9]), end))
}

fn ipv6(frame: &[u8], at: usize) -> Option<(Option<u8>, usize)> {
    let mut next = *frame.get(at + 6)?;
    let mut at = at + IPV6_BYTES;
    for _ in 0..IPV6_EXTENSIONS_MAX {
        let extension = match next {
            0 | 43 | 44 | 51 | 60 | 135 => frame.at::<4>(at)?,
            _ => break,
        };
        let bytes = match next {
            44 => 8,
            51 => usize::from(extension[1]) * 4 + 8,
            _ => usize::from(extension[1]) * 8 + 8,
        };
        let is_later = next == 44 && u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0;
        next = extension[0];
        at += bytes;
        if is_later {
            return Some((None, at));
        }
    }
    Some((Some(next), at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PORT: u16 = 4783;

    fn frame(ethertype: u16, network: &[u8], transport: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend(ethertype.to_be_bytes());
        frame.extend(network);
        frame.extend(transport);
        frame.extend([0x5a; 1_000]);
        frame
    }

    fn v4(protocol: u8, fragment: u16) -> Vec<u8> {
        let mut ip = vec![0; 20];
        (ip[0], ip[9]) = (0x45, protocol);
        ip[6..8].copy_from_slice(&fragment.to_be_bytes());
        ip
    }

    fn v6(next: u8) -> Vec<u8> {
        let mut ip = vec![0; 40];
        (ip[0], ip[6]) = (0x60, next);
        ip
    }

    fn ports(source: u16, target: u16) -> Vec<u8> {
        [source.to_be_bytes(), target.to_be_bytes()].concat()
    }

    #[test]
    fn headers_end_where_the_data_begins() {
        let mesh = ports(50_000, PORT);
        let mut tcp = ports(443, 50_000);
        tcp.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x80]);
        let cases = [
            (frame(ETHERTYPE_IPV4, &v4(UDP, 0), &mesh), 14 + 20 + 8 + 64),
            (frame(ETHERTYPE_IPV6, &v6(UDP), &mesh), 14 + 40 + 8 + 64),
            (frame(ETHERTYPE_IPV4, &v4(UDP, 0), &ports(53, 5_353)), 42),
            (frame(ETHERTYPE_IPV4, &v4(UDP, 7), &mesh), 34),
            (frame(ETHERTYPE_IPV4, &v4(TCP, 0), &tcp), 34 + 32),
            (frame(ETHERTYPE_IPV4, &v4(1, 0), &mesh), 34),
            (frame(0x0806, &[], &[]), 42),
            (
                frame(
                    ETHERTYPE_VLAN,
                    &[0, 5, 8, 0],
                    &[v4(UDP, 0), mesh.clone()].concat(),
                ),
                18 + 20 + 8 + 64,
            ),
            (
                frame(
                    ETHERTYPE_IPV6,
                    &v6(60),
                    &[vec![UDP; 1], vec![0; 7], mesh].concat(),
                ),
                14 + 40 + 8 + 8 + 64,
            ),
        ];
        for (number, (frame, end)) in cases.into_iter().enumerate() {
            assert_eq!(bytes(&frame, PORT), end, "case {number}");
            assert!(bytes(&frame[..20], PORT) <= 20, "case {number} cut short");
        }
    }

    proptest! {
        #[test]
        fn no_frame_has_more_headers_than_bytes(frame in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(bytes(&frame, PORT) <= frame.len());
        }
    }
}
