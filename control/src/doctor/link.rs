//! One link by netlink, synchronously: its state, kind, XDP programs, and XDP features.

use super::interface::{AttachedProgram, FactsError, XdpFeatures, XdpMode};
use rtnetlink::{
    packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached},
    },
    sys::{Socket, SocketAddr},
};
use std::{fs::File, io, os::fd::AsRawFd as _, path::Path};

/// `NETLINK_ROUTE` and `NETLINK_GENERIC`.
const ROUTE: isize = 0;
const GENERIC: isize = 16;

/// What the kernel says of a link.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) ifindex: u32,
    pub(super) is_up: bool,
    pub(super) has_carrier: bool,
    pub(super) mtu: u32,
    pub(super) kind: Option<String>,
    pub(super) rx_queues: u32,
    pub(super) tx_queues: u32,
    pub(super) programs: Vec<AttachedProgram>,
    /// Index of the other end or the lower device.
    pub(super) peer: Option<u32>,
    /// What this namespace calls the other one that it is in; `None`: it is in this one.
    pub(super) peer_namespace: Option<i32>,
    pub(super) name: String,
}

/// How a link is asked for.
pub(super) enum Wanted<'a> {
    Name(&'a str),
    Index(u32),
}

/// Asks for one link.
pub(super) fn read(wanted: &Wanted<'_>) -> Result<Link, FactsError> {
    let mut message = LinkMessage::default();
    match wanted {
        Wanted::Name(name) => message
            .attributes
            .push(LinkAttribute::IfName((*name).into())),
        Wanted::Index(index) => message.header.index = *index,
    }
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let payload = NetlinkPayload::from(RouteNetlinkMessage::GetLink(message));
    let mut request = NetlinkMessage::new(header, payload);
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let answer = exchange(ROUTE, &bytes).map_err(FactsError::Netlink)?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|error| FactsError::Netlink(io::Error::other(error.to_string())))?;
    match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(digest(link)),
        NetlinkPayload::Error(error) => Err(match error.to_io() {
            error if error.raw_os_error() == Some(libc::ENODEV) => FactsError::Missing,
            error => FactsError::Netlink(error),
        }),
        _ => Err(FactsError::Netlink(io::ErrorKind::InvalidData.into())),
    }
}

fn digest(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        ifindex: message.header.index,
        is_up: flags.contains(LinkFlags::Up),
        has_carrier: flags.contains(LinkFlags::LowerUp),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::NumRxQueues(queues) => link.rx_queues = queues,
            LinkAttribute::NumTxQueues(queues) => link.tx_queues = queues,
            LinkAttribute::Link(index) => link.peer = Some(index),
            LinkAttribute::LinkNetNsId(id) => link.peer_namespace = Some(id),
            LinkAttribute::LinkInfo(info) => {
                link.kind = info.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            LinkAttribute::Xdp(xdp) => link.programs = programs(&xdp),
            _ => {}
        }
    }
    link
}

fn programs(xdp: &[LinkXdp]) -> Vec<AttachedProgram> {
    let attached = xdp.iter().find_map(|xdp| match xdp {
        LinkXdp::Attached(attached) => Some(*attached),
        _ => None,
    });
    let several = attached == Some(XdpAttached::Multiple);
    let program = |mode, id: u32| {
        Some(AttachedProgram {
            mode,
            id,
            name: None,
        })
    };
    let found = xdp.iter().filter_map(|xdp| match (xdp, attached) {
        (LinkXdp::ProgId(id), Some(XdpAttached::Driver)) => program(XdpMode::Native, *id),
        (LinkXdp::ProgId(id), Some(XdpAttached::SocketBuffer)) => program(XdpMode::Generic, *id),
        (LinkXdp::ProgId(id), Some(XdpAttached::Hardware)) => program(XdpMode::Offloaded, *id),
        (LinkXdp::DrvProgId(id), _) if several => program(XdpMode::Native, *id),
        (LinkXdp::SkbProgId(id), _) if several => program(XdpMode::Generic, *id),
        (LinkXdp::HwProgId(id), _) if several => program(XdpMode::Offloaded, *id),
        _ => None,
    });
    found.collect()
}

/// What /run/netns calls the namespace that this one knows by a number.
pub(super) fn namespace_name(id: i32) -> Option<String> {
    let entries = std::fs::read_dir("/run/netns").ok()?.flatten();
    let is_it = |path: &Path| {
        let file = File::open(path).ok()?;
        let fd = file.as_raw_fd().to_ne_bytes();
        (namespace_id(&fd)? == id).then_some(())
    };
    let found = entries
        .map(|entry| entry.path())
        .find(|path| is_it(path).is_some())?;
    Some(found.file_name()?.to_string_lossy().into_owned())
}

/// What this namespace calls another, of which there is a file descriptor.
fn namespace_id(fd: &[u8; 4]) -> Option<i32> {
    // Numbers of `linux/rtnetlink.h` and `linux/net_namespace.h`.
    const GET_NAMESPACE_ID: u16 = 90;
    const ID: u16 = 1;
    const FD: u16 = 3;
    let answer = request(ROUTE, GET_NAMESPACE_ID, [0; FAMILY_HEADER_BYTES], FD, fd)?;
    let id = attribute(&answer, ID)?;
    Some(i32::from_ne_bytes(id.try_into().ok()?))
}

/// What the driver's XDP can do (`netdev` family, since kernel 6.3; `None` before).
pub(super) fn xdp_features(ifindex: u32) -> Option<XdpFeatures> {
    // Numbers of `linux/genetlink.h` and `linux/netdev.h`.
    const CONTROL_FAMILY: u16 = 16;
    const GET_FAMILY: u8 = 3;
    const FAMILY_ID: u16 = 1;
    const FAMILY_NAME: u16 = 2;
    const DEVICE_GET: u8 = 1;
    const DEVICE_IFINDEX: u16 = 1;
    const DEVICE_XDP_FEATURES: u16 = 3;
    let answer = generic(CONTROL_FAMILY, GET_FAMILY, FAMILY_NAME, b"netdev\0")?;
    let family = u16::from_ne_bytes(attribute(&answer, FAMILY_ID)?.try_into().ok()?);
    let answer = generic(family, DEVICE_GET, DEVICE_IFINDEX, &ifindex.to_ne_bytes())?;
    let bits = u64::from_ne_bytes(attribute(&answer, DEVICE_XDP_FEATURES)?.try_into().ok()?);
    Some(XdpFeatures(bits))
}

const NETLINK_HEADER_BYTES: usize = 16;
/// Of a generic netlink message; and of what a namespace is asked for with, padded.
const FAMILY_HEADER_BYTES: usize = 4;
const ATTRIBUTE_HEADER_BYTES: usize = 4;

/// A generic netlink request with one attribute; the answer's attributes.
fn generic(family: u16, command: u8, attribute: u16, value: &[u8]) -> Option<Vec<u8>> {
    request(GENERIC, family, [command, 1, 0, 0], attribute, value)
}

/// A request with one attribute; the attributes of an answer that is no error.
fn request(
    protocol: isize,
    kind: u16,
    header: [u8; FAMILY_HEADER_BYTES],
    attribute: u16,
    value: &[u8],
) -> Option<Vec<u8>> {
    // `linux/netlink.h`.
    const ERROR: u16 = 2;
    let attribute_bytes = ATTRIBUTE_HEADER_BYTES + value.len();
    let bytes = NETLINK_HEADER_BYTES + FAMILY_HEADER_BYTES + attribute_bytes.next_multiple_of(4);
    let mut request = Vec::with_capacity(bytes);
    request.extend_from_slice(&u32::try_from(bytes).ok()?.to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(&header);
    request.extend_from_slice(&u16::try_from(attribute_bytes).ok()?.to_ne_bytes());
    request.extend_from_slice(&attribute.to_ne_bytes());
    request.extend_from_slice(value);
    request.resize(bytes, 0);
    let answer = exchange(protocol, &request).ok()?;
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let attributes = answer.get(NETLINK_HEADER_BYTES + FAMILY_HEADER_BYTES..)?;
    (kind != ERROR).then(|| attributes.to_vec())
}

/// The value of the first attribute of that kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (header, _) = attributes.split_first_chunk::<ATTRIBUTE_HEADER_BYTES>()?;
        let bytes = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = attributes.get(ATTRIBUTE_HEADER_BYTES..bytes)?;
        if u16::from_ne_bytes([header[2], header[3]]) == wanted {
            return Some(value);
        }
        attributes = attributes.get(bytes.next_multiple_of(4)..)?;
    }
}

/// Sends one request and takes one answer; the kernel answers at once.
fn exchange(protocol: isize, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(request, 0)?;
    Ok(socket.recv_from_full()?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_and_cut_ones_are_not() {
        let attributes = [5, 0, 1, 0, 7, 0, 0, 0, 6, 0, 2, 0, 8, 9];
        assert_eq!(attribute(&attributes, 1), Some(&[7][..]));
        assert_eq!(attribute(&attributes, 2), Some(&[8, 9][..]));
        assert_eq!(attribute(&attributes, 3), None);
        assert_eq!(attribute(&attributes[..13], 2), None);
        assert_eq!(attribute(&[0, 0, 1, 0], 1), None);
        assert_eq!(attribute(&[], 1), None);
    }

    #[test]
    fn one_or_several_programs() {
        let one = [
            LinkXdp::Attached(XdpAttached::Driver),
            LinkXdp::ProgId(7),
            LinkXdp::DrvProgId(7),
        ];
        let native = AttachedProgram {
            mode: XdpMode::Native,
            id: 7,
            name: None,
        };
        assert_eq!(programs(&one), [native]);
        let several = [
            LinkXdp::Attached(XdpAttached::Multiple),
            LinkXdp::DrvProgId(7),
            LinkXdp::SkbProgId(8),
        ];
        let modes: Vec<_> = programs(&several)
            .iter()
            .map(|found| (found.mode, found.id))
            .collect();
        assert_eq!(modes, [(XdpMode::Native, 7), (XdpMode::Generic, 8)]);
        assert_eq!(programs(&[LinkXdp::Attached(XdpAttached::None)]), []);
    }
}
