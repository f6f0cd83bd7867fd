//! A socket in a LAN: on the interface that has an address, and on no other.

use crate::limits::BUFFER_BYTES;
use socket2::{Domain, Protocol, SockAddr, Type};
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
};

/// mDNS's port.
pub const PORT: u16 = 5_353;
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
/// What RFC 6762, section 11, has messages carry.
const HOPS: u32 = 255;
/// The kernel's list of IPv6 addresses: address, number of the interface, and more, in hexadecimal.
const ADDRESSES_V6: &str = "/proc/net/if_inet6";

/// See the [module](self).
#[derive(Debug)]
pub struct Socket {
    socket: UdpSocket,
    group: SocketAddr,
}

impl Socket {
    /// Joins the LAN in which this node has an address.
    ///
    /// # Errors
    /// In words: what the system said, and what that means.
    pub fn open(address: IpAddr) -> Result<Self, String> {
        let domain = match address {
            IpAddr::V4(_) => Domain::IPV4,
            IpAddr::V6(_) => Domain::IPV6,
        };
        let kind = Type::DGRAM.nonblocking().cloexec();
        let socket = socket2::Socket::new(domain, kind, Some(Protocol::UDP));
        let socket = socket.map_err(|error| format!("no socket: {error}"))?;
        let group = match address {
            IpAddr::V4(ip) => open_v4(&socket, ip)?,
            IpAddr::V6(ip) => open_v6(&socket, ip)?,
        };
        Ok(Self {
            socket: socket.into(),
            group,
        })
    }

    /// A message that waits, with who sent it; none where nothing does.
    ///
    /// # Errors
    /// The system's.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, SocketAddr)>> {
        match self.socket.recv_from(buffer) {
            Ok(received) => Ok(Some(received)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Says something to all in the LAN. What the kernel has no room for is lost, as on a network.
    ///
    /// # Errors
    /// The system's.
    pub fn send(&self, words: &[u8]) -> io::Result<()> {
        match self.socket.send_to(words, self.group) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}

/// Other programs of this host may speak mDNS, too: all that let others do so get each message.
fn bind(socket: &socket2::Socket, group: SocketAddr) -> Result<(), String> {
    let shared = socket.set_reuse_address(true);
    let shared = shared.and_then(|()| socket.set_reuse_port(true));
    let shared = shared.and_then(|()| socket.set_recv_buffer_size(BUFFER_BYTES));
    shared.map_err(|error| format!("the socket cannot be set up: {error}"))?;
    socket.bind(&SockAddr::from(group)).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::AddrInUse => "; another program has it for itself",
            _ => "",
        };
        format!("UDP port {PORT}: {error}{why}")
    })
}

fn absent(error: &io::Error) -> String {
    format!("no interface that is up has this address: {error}")
}

fn open_v4(socket: &socket2::Socket, ip: Ipv4Addr) -> Result<SocketAddr, String> {
    let group = SocketAddrV4::new(GROUP_V4, PORT).into();
    bind(socket, group)?;
    socket
        .join_multicast_v4(&GROUP_V4, &ip)
        .map_err(|error| absent(&error))?;
    // Nothing of other interfaces, whoever has joined the group there.
    let set = socket.set_multicast_all_v4(false);
    let set = set.and_then(|()| socket.set_multicast_if_v4(&ip));
    let set = set.and_then(|()| socket.set_multicast_ttl_v4(HOPS));
    set.map_err(|error| format!("the socket cannot be set up: {error}"))?;
    Ok(group)
}

fn open_v6(socket: &socket2::Socket, ip: Ipv6Addr) -> Result<SocketAddr, String> {
    let listed = fs::read_to_string(ADDRESSES_V6);
    let listed = listed.map_err(|error| format!("{ADDRESSES_V6}: {error}"))?;
    let interface = interface_of(&listed, ip);
    let interface = interface.ok_or("no interface has this address")?;
    let group = SocketAddrV6::new(GROUP_V6, PORT, 0, interface).into();
    let only = socket.set_only_v6(true);
    only.map_err(|error| format!("the socket cannot be set up: {error}"))?;
    bind(socket, group)?;
    let joined = socket.join_multicast_v6(&GROUP_V6, interface);
    joined.map_err(|error| absent(&error))?;
    let set = socket.set_multicast_all_v6(false);
    let set = set.and_then(|()| socket.set_multicast_if_v6(interface));
    let set = set.and_then(|()| socket.set_multicast_hops_v6(HOPS));
    set.map_err(|error| format!("the socket cannot be set up: {error}"))?;
    Ok(group)
}

/// The number of the interface that has an address, in the kernel's list.
fn interface_of(listed: &str, ip: Ipv6Addr) -> Option<u32> {
    let hex = format!("{:032x}", u128::from(ip));
    let mut lines = listed.lines().map(str::split_whitespace);
    let mut line = lines.find(|line| line.clone().next() == Some(&hex))?;
    u32::from_str_radix(line.nth(1)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_of_an_ipv6_address_is_found() {
        let listed = "00000000000000000000000000000001 01 80 10 80       lo\n\
                      fd780001000000000000000000000002 1f 40 00 80     eth0\n";
        let of = |text: &str| interface_of(listed, text.parse().unwrap());
        assert_eq!((of("fd78:1::2"), of("::1")), (Some(0x1f), Some(1)));
        assert_eq!(of("fd78:1::3"), None);
    }

    #[test]
    fn an_address_that_no_interface_has_is_said() {
        let absent = Socket::open("203.0.113.1".parse().unwrap()).unwrap_err();
        assert!(
            absent.contains("no interface") || absent.contains("port 5353"),
            "{absent}"
        );
    }
}
