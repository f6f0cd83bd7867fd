//! Which router packets leave by, and from which address.

use crate::limits::ROUTES_MAX;
use std::{
    fs::File,
    io::{self, BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
};

/// The kernel's table of routes, of the namespace that the process is in.
const TABLE: &str = "/proc/net/route";
const IS_UP: u32 = 1;
const HAS_GATEWAY: u32 = 2;

/// The way to the Internet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The router.
    pub gateway: Ipv4Addr,
    /// The address that this machine has towards it.
    pub own: Ipv4Addr,
}

impl Route {
    /// Reads it; in words why there is none.
    ///
    /// # Errors
    /// What to do about it.
    pub fn read() -> Result<Self, String> {
        let table = File::open(TABLE);
        let table = table.map_err(|error| format!("{TABLE} cannot be read: {error}"))?;
        let lines = BufReader::new(table).lines().map_while(Result::ok);
        let gateway =
            parse(lines).ok_or("there is no default route by IPv4, and so no router to ask")?;
        let own = own(gateway);
        let own = own
            .map_err(|error| format!("no address of this machine's leads to {gateway}: {error}"))?;
        Ok(Self { gateway, own })
    }

    /// Whether this machine still has that address towards the router.
    #[must_use]
    pub fn is_own(&self) -> bool {
        own(self.gateway).is_ok_and(|own| own == self.own)
    }
}

/// The address towards a router; nothing is sent to find it.
fn own(gateway: Ipv4Addr) -> io::Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((gateway, crab_nat::GATEWAY_PORT))?;
    match socket.local_addr()? {
        SocketAddr::V4(own) => Ok(*own.ip()),
        SocketAddr::V6(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}

/// The router of the best default route. The kernel lists routes by their destination, so that a table of any length need
/// not be read whole.
fn parse(lines: impl Iterator<Item = String>) -> Option<Ipv4Addr> {
    let mut best = None::<(u32, Ipv4Addr)>;
    for line in lines.skip(1).take(ROUTES_MAX) {
        let Some((destination, gateway, flags, metric, mask)) = fields(&line) else {
            continue;
        };
        let is_default = (destination, mask) == (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED);
        let is_usable = flags & IS_UP != 0 && flags & HAS_GATEWAY != 0;
        if is_default && is_usable && best.is_none_or(|(least, _)| metric < least) {
            best = Some((metric, gateway));
        }
    }
    best.map(|(_, gateway)| gateway)
}

/// Destination, gateway, flags, metric and mask.
fn fields(line: &str) -> Option<(Ipv4Addr, Ipv4Addr, u32, u32, Ipv4Addr)> {
    let mut words = line.split_whitespace().skip(1);
    // The kernel prints what is in memory in network order as a number of its own order.
    let address = |word: &str| {
        let number = u32::from_str_radix(word, 16).ok()?;
        Some(Ipv4Addr::from(number.to_ne_bytes()))
    };
    let destination = address(words.next()?)?;
    let gateway = address(words.next()?)?;
    let flags = u32::from_str_radix(words.next()?, 16).ok()?;
    let metric = words.nth(2)?.parse().ok()?;
    let mask = address(words.next()?)?;
    Some((destination, gateway, flags, metric, mask))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::is_private;

    fn hex(ip: [u8; 4]) -> String {
        format!("{:08X}", u32::from_ne_bytes(ip))
    }

    #[test]
    fn the_router_is_that_of_the_default_route_with_the_least_metric() {
        let line = |to, by, flags: u32, metric: u32, mask| {
            format!(
                "eth0\t{}\t{}\t{flags:04X}\t0\t0\t{metric}\t{}\t0\t0\t0\n",
                hex(to),
                hex(by),
                hex(mask)
            )
        };
        let none = [0; 4];
        let table =
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
                .to_owned()
                + &line(none, [10, 0, 0, 1], 3, 600, none)
                + &line(none, [192, 168, 1, 1], 3, 100, none)
                + &line(none, [192, 168, 1, 9], 2, 1, none)
                + &line([192, 168, 1, 0], none, 1, 100, [255, 255, 255, 0])
                + "a line of another kind\n";
        let gateway = |table: &str| parse(table.lines().map(str::to_owned));
        assert_eq!(gateway(&table), Some(Ipv4Addr::new(192, 168, 1, 1)));
        // Another network at hand is no other way out; a table without an end is not read to it.
        let more = line([172, 17, 0, 0], none, 1, 0, [255, 255, 0, 0]);
        assert_eq!(gateway(&(table.clone() + &more)), gateway(&table));
        let endless = table.lines().map(str::to_owned);
        let endless = endless.chain(std::iter::repeat(more));
        assert_eq!(parse(endless), gateway(&table));
        assert_eq!(gateway(""), None);
    }

    #[test]
    fn private_addresses_are_those_that_nobody_outside_can_send_to() {
        for (ip, is) in [
            ("10.1.2.3", true),
            ("172.31.0.1", true),
            ("192.168.0.1", true),
            ("100.64.0.1", true),
            ("100.128.0.1", false),
            ("169.254.1.1", true),
            ("192.0.0.2", true),
            ("192.0.1.1", false),
            ("198.19.0.1", true),
            ("203.0.113.10", true),
            ("0.0.0.0", true),
            ("255.255.255.255", true),
            ("224.0.0.1", true),
            ("127.0.0.1", true),
            ("8.8.8.8", false),
        ] {
            assert_eq!(is_private(ip.parse().unwrap()), is, "{ip}");
        }
    }
}
