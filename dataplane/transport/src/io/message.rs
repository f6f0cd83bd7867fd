//! The bytes around a datagram: socket addresses, control messages, and what a multishot `recvmsg`
//! writes before the payload. All of it in the machine's own byte order, but for addresses' fields.

use super::driver::Stamp;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Bytes of the largest socket address, padded.
pub(super) const NAME_BYTES: usize = 32;
/// Bytes of all control messages that a received datagram may come with.
pub(super) const CONTROL_BYTES: usize = 208;
/// Bytes of `struct io_uring_recvmsg_out`: lengths of name, control messages and payload; flags.
const OUT_BYTES: usize = 16;
/// Where the payload begins: on a cache line.
pub(super) const PAYLOAD_AT: usize = OUT_BYTES + NAME_BYTES + CONTROL_BYTES;
/// Bytes of the control message that asks for segmentation.
pub(super) const SEGMENT_CONTROL_BYTES: usize = CMSG_DATA_AT + 8;

const _: () = assert!(PAYLOAD_AT.is_multiple_of(64));
const _: () = assert!(size_of::<libc::sockaddr_in6>() <= NAME_BYTES);

/// `struct cmsghdr`: length (of a word), level, type; then the data, padded to words.
const WORD: usize = size_of::<usize>();
const CMSG_DATA_AT: usize = WORD + 8;

const _: () = assert!(size_of::<libc::cmsghdr>() == CMSG_DATA_AT);

/// What came with a datagram, or with a run of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) source: SocketAddr,
    pub(super) ifindex: u32,
    /// Bytes of the payload, from [`PAYLOAD_AT`] on.
    pub(super) bytes: usize,
    /// Bytes of each datagram but the last; never 0.
    pub(super) segment_bytes: usize,
    pub(super) stamp: Stamp,
}

/// Reads what the kernel wrote into a buffer before the payload; `None` when it is not a whole
/// datagram of IPv4 or IPv6.
pub(super) fn received(buffer: &[u8]) -> Option<Received> {
    let [name_bytes, control_bytes, payload_bytes, flags] =
        [0, 4, 8, 12].map(|at| field::<4>(buffer, at).map(u32::from_ne_bytes));
    let truncated = (libc::MSG_TRUNC | libc::MSG_CTRUNC).cast_unsigned();
    if flags? & truncated != 0 {
        return None;
    }
    let name = buffer.get(OUT_BYTES..OUT_BYTES + NAME_BYTES)?;
    let source = read_address(name.get(..usize::try_from(name_bytes?).ok()?)?)?;
    let control = buffer.get(OUT_BYTES + NAME_BYTES..PAYLOAD_AT)?;
    let control = control.get(..usize::try_from(control_bytes?).ok()?)?;
    let bytes = usize::try_from(payload_bytes?).ok()?;
    if bytes > buffer.len().checked_sub(PAYLOAD_AT)? {
        return None;
    }
    let mut received = Received {
        source,
        ifindex: 0,
        bytes,
        segment_bytes: bytes.max(1),
        stamp: Stamp::Untold,
    };
    read_control(control, &mut received);
    Some(received)
}

fn read_control(mut control: &[u8], received: &mut Received) {
    while let Some((level, kind, data, rest)) = control_message(control) {
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let size = field::<4>(data, 0).map(u32::from_ne_bytes);
                if let Some(size @ 1..) = size.and_then(|size| usize::try_from(size).ok()) {
                    received.segment_bytes = size;
                }
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                received.ifindex = field::<4>(data, 0).map_or(0, u32::from_ne_bytes);
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                received.ifindex = field::<4>(data, 16).map_or(0, u32::from_ne_bytes);
            }
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                received.stamp = since_1970_ns(data).map_or(Stamp::Untold, Stamp::At);
            }
            _ => {}
        }
        control = rest;
    }
}

/// `struct timespec`: seconds and nanoseconds, a word each.
fn since_1970_ns(time: &[u8]) -> Option<u64> {
    let word = |at| u64::try_from(isize::from_ne_bytes(field(time, at)?)).ok();
    let (seconds, ns) = (word(0)?, word(WORD)?);
    Some(seconds.saturating_mul(1_000_000_000).saturating_add(ns))
}

/// The first control message's level, type and data, and what follows it.
fn control_message(control: &[u8]) -> Option<(i32, i32, &[u8], &[u8])> {
    let length = usize::from_ne_bytes(field(control, 0)?);
    let level = i32::from_ne_bytes(field(control, WORD)?);
    let kind = i32::from_ne_bytes(field(control, WORD + 4)?);
    let data = control.get(CMSG_DATA_AT..length)?;
    let next = length.next_multiple_of(WORD).min(control.len());
    Some((level, kind, data, &control[next..]))
}

/// The control message that has the kernel cut a run into datagrams of `segment_bytes`.
pub(super) fn segment_control(segment_bytes: u16) -> [u8; SEGMENT_CONTROL_BYTES] {
    let mut control = [0; SEGMENT_CONTROL_BYTES];
    let length = CMSG_DATA_AT + size_of::<u16>();
    control[..WORD].copy_from_slice(&length.to_ne_bytes());
    control[WORD..WORD + 4].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
    control[WORD + 4..CMSG_DATA_AT].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
    control[CMSG_DATA_AT..length].copy_from_slice(&segment_bytes.to_ne_bytes());
    control
}

/// Family (of two bytes), port, then for IPv6 flow, address and scope, for IPv4 the address.
fn read_address(name: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(field(name, 0)?));
    let port = u16::from_be_bytes(field(name, 2)?);
    match family {
        libc::AF_INET => {
            let ip = Ipv4Addr::from(field::<4>(name, 4)?);
            Some(SocketAddrV4::new(ip, port).into())
        }
        libc::AF_INET6 => {
            let flow = u32::from_be_bytes(field(name, 4)?);
            let ip = Ipv6Addr::from(field::<16>(name, 8)?);
            let scope = u32::from_ne_bytes(field(name, 24)?);
            Some(SocketAddrV6::new(ip, port, flow, scope).into())
        }
        _ => None,
    }
}

/// Writes a socket address, and gives its length.
pub(super) fn write_address(address: SocketAddr, name: &mut [u8; NAME_BYTES]) -> usize {
    let family = match address {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    // Families are small numbers.
    let family = u16::try_from(family).unwrap_or(0);
    *name = [0; NAME_BYTES];
    name[..2].copy_from_slice(&family.to_ne_bytes());
    name[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address {
        SocketAddr::V4(address) => {
            name[4..8].copy_from_slice(&address.ip().octets());
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(address) => {
            name[4..8].copy_from_slice(&address.flowinfo().to_be_bytes());
            name[8..24].copy_from_slice(&address.ip().octets());
            name[24..28].copy_from_slice(&address.scope_id().to_ne_bytes());
            size_of::<libc::sockaddr_in6>()
        }
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (CMSG_DATA_AT + data.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(WORD), 0);
        bytes
    }

    fn buffer(source: SocketAddr, control: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut name = [0; NAME_BYTES];
        let name_bytes = write_address(source, &mut name);
        let lengths = [name_bytes, control.len(), payload.len(), 0];
        let lengths = lengths.map(|n| u32::try_from(n).unwrap().to_ne_bytes());
        let mut bytes = lengths.concat();
        bytes.extend(name);
        bytes.extend(control);
        bytes.resize(PAYLOAD_AT, 0);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn addresses_are_read_as_they_were_written() {
        for text in ["192.0.2.7:4783", "[2001:db8::1]:9", "[fe80::1%3]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            let mut name = [0xFF; NAME_BYTES];
            let length = write_address(address, &mut name);
            assert_eq!(read_address(&name[..length]), Some(address));
            assert_eq!(
                read_address(&name[..length - 1]).is_some(),
                address.is_ipv4()
            );
        }
        assert_eq!(read_address(&[1, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn a_run_comes_with_its_segment_size_and_interface() {
        let source = "192.0.2.7:4783".parse().unwrap();
        let mut control = message(libc::SOL_SOCKET, 99, b"whatever");
        let time = [7isize, 9].map(isize::to_ne_bytes).concat();
        let stamp = message(libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS, &time);
        control.extend(stamp);
        control.extend(message(libc::SOL_UDP, libc::UDP_GRO, &3i32.to_ne_bytes()));
        let pktinfo = [7u32.to_ne_bytes(), [0; 4], [0; 4]].concat();
        control.extend(message(libc::IPPROTO_IP, libc::IP_PKTINFO, &pktinfo));
        let expected = Received {
            source,
            ifindex: 7,
            bytes: 5,
            segment_bytes: 3,
            stamp: Stamp::At(7_000_000_009),
        };
        assert_eq!(
            received(&buffer(source, &control, b"onetw")),
            Some(expected)
        );
    }

    #[test]
    fn a_single_datagram_is_its_own_segment_and_an_empty_one_is_a_datagram_too() {
        let source = "[2001:db8::1]:9".parse().unwrap();
        let pktinfo = [&[0; 16][..], &9u32.to_ne_bytes()].concat();
        let control = message(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &pktinfo);
        let one = received(&buffer(source, &control, b"12345")).unwrap();
        assert_eq!((one.ifindex, one.bytes, one.segment_bytes), (9, 5, 5));
        let empty = received(&buffer(source, &[], b"")).unwrap();
        assert_eq!((empty.bytes, empty.segment_bytes), (0, 1));
    }

    #[test]
    fn a_time_that_cannot_be_read_is_none_and_one_that_is_too_large_is_the_last() {
        let time = |seconds: isize, ns: isize| [seconds, ns].map(isize::to_ne_bytes).concat();
        assert_eq!(since_1970_ns(&time(1, 5)), Some(1_000_000_005));
        assert_eq!(since_1970_ns(&time(isize::MAX, 5)), Some(u64::MAX));
        assert_eq!(since_1970_ns(&time(-1, 5)), None);
        assert_eq!(since_1970_ns(&time(1, 5)[1..]), None);
    }

    #[test]
    fn nothing_that_is_cut_short_is_taken_and_nothing_panics() {
        let source = "192.0.2.7:4783".parse().unwrap();
        let control = message(libc::SOL_UDP, libc::UDP_GRO, &0i32.to_ne_bytes());
        let whole = buffer(source, &control, b"12345");
        assert_eq!(received(&whole).unwrap().segment_bytes, 5);
        for length in 0..whole.len() {
            assert_eq!(received(&whole[..length]), None, "{length}");
        }
        for flag in [libc::MSG_TRUNC, libc::MSG_CTRUNC] {
            let mut cut = whole.clone();
            cut[12..16].copy_from_slice(&flag.to_ne_bytes());
            assert_eq!(received(&cut), None);
        }
        // Any control length that a broken kernel could claim, and any byte anywhere.
        for at in 0..PAYLOAD_AT {
            for byte in [0, 1, 0x7F, 0xFF] {
                let mut odd = whole.clone();
                odd[at] = byte;
                let _any = received(&odd);
            }
        }
    }

    #[test]
    fn the_segment_control_message_reads_as_one() {
        let control = segment_control(1_200);
        let (level, kind, data, rest) = control_message(&control).unwrap();
        assert_eq!((level, kind), (libc::SOL_UDP, libc::UDP_SEGMENT));
        assert_eq!(data, 1_200u16.to_ne_bytes());
        assert!(rest.is_empty());
    }
}
