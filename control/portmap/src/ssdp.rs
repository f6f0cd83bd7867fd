//! SSDP: which routers of the LAN speak UPnP, and where each describes itself.

use crate::{
    Failure, Route,
    limits::{ANSWERS_MAX, DATAGRAM_BYTES_MAX, ROUTERS_MAX, SEARCH, SEARCH_MORE},
    url::Url,
};
use socket2::{Domain, Protocol, Type};
use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1_900);
/// What is looked for; a router of the second version answers for the first as well, or should.
const TARGETS: [&str; 3] = [
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
];
/// What the answers of such are for.
const OWN: [&str; 3] = [
    "InternetGatewayDevice:",
    "WANIPConnection:",
    "WANPPPConnection:",
];

/// A search.
fn request(target: &str) -> String {
    format!(
        "M-SEARCH * HTTP/1.1\r\nHOST: {GROUP}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {target}\r\n\r\n"
    )
}

/// Where the router of the default route describes itself, as it says; none where another host answers, or names another
/// address, or a question to be asked there: that may be any page of the router's.
#[must_use]
pub fn location(answer: &[u8], from: Ipv4Addr, route: &Route) -> Option<Url> {
    // What a router calls itself may be in any character set.
    let answer = String::from_utf8_lossy(answer);
    let mut lines = answer.split("\r\n");
    let mut status = lines.next()?.split_ascii_whitespace();
    let is_answer = status.next()?.starts_with("HTTP/1.") && status.next()? == "200";
    let value = |name: &str| {
        let mut lines = lines.clone().take_while(|line| !line.is_empty());
        lines.find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let target = value("st").filter(|target| OWN.iter().any(|own| target.contains(own)));
    target.filter(|_| is_answer)?;
    let url = Url::parse(value("location")?)?;
    let is_own = *url.host.ip() == from && from == route.gateway;
    (is_own && !url.path.contains('?')).then_some(url)
}

/// Asks the LAN, and hears the router of the default route alone.
///
/// # Errors
/// It does not answer.
pub async fn search(route: &Route) -> Result<Vec<Url>, Failure> {
    let socket = socket2::Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((route.own, 0)).into())?;
    socket.set_multicast_if_v4(&route.own)?;
    socket.set_multicast_ttl_v4(2)?;
    let socket = UdpSocket::from_std(socket.into())?;
    for target in TARGETS {
        socket.send_to(request(target).as_bytes(), GROUP).await?;
    }
    hear(&socket, route, SEARCH).await
}

/// Hears so many answers of the router's, for so long; others', and what is none, keep nobody from it, and it no longer:
/// while there is more to be read a timeout alone is not looked at.
async fn hear(socket: &UdpSocket, route: &Route, longest: Duration) -> Result<Vec<Url>, Failure> {
    let mut until = Instant::now() + longest;
    let (mut found, mut bytes) = (Vec::<Url>::new(), [0; DATAGRAM_BYTES_MAX]);
    let mut answers = 0;
    while answers < ANSWERS_MAX && Instant::now() < until {
        let Ok(received) = timeout_at(until, socket.recv_from(&mut bytes)).await else {
            break;
        };
        let (count, from) = received?;
        if from.ip() != route.gateway {
            continue;
        }
        let answer = bytes.get(..count).unwrap_or_default();
        let Some(url) = location(answer, route.gateway, route) else {
            continue;
        };
        answers += 1;
        until = until.min(Instant::now() + SEARCH_MORE);
        if found.len() < ROUTERS_MAX && !found.contains(&url) {
            found.push(url);
        }
    }
    match found.is_empty() {
        true => Err(Failure::Silent),
        false => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route() -> Route {
        Route {
            gateway: Ipv4Addr::new(10, 1, 0, 1),
            own: Ipv4Addr::new(10, 1, 0, 2),
        }
    }

    fn answer(location: &str, target: &str) -> String {
        format!(
            "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nst: {target}\r\nLocation: {location}\r\n\r\n"
        )
    }

    #[test]
    fn a_router_is_asked_where_it_answers_from_and_nowhere_else() {
        let at = |from: &str, location_is: &str, target: &str| {
            let answer = answer(location_is, target);
            location(answer.as_bytes(), from.parse().unwrap(), &route()).is_some()
        };
        let (igd, own) = (TARGETS[0], "http://10.1.0.1:5000/root.xml");
        assert!(at("10.1.0.1", own, igd));
        // Another host, at its own address, or at the router's; a page with a question; one outside;
        assert!(!at("10.1.0.9", "http://10.1.0.9/a", TARGETS[1]));
        assert!(!at("10.1.0.1", "http://10.1.0.9/a", igd));
        assert!(!at("10.1.0.1", "http://10.1.0.1/admin?reboot", igd));
        // One outside; this node itself; something else than a router.
        assert!(!at("10.1.0.9", own, igd));
        assert!(!at("10.2.0.1", "http://10.2.0.1/a", igd));
        assert!(!at("8.8.8.8", "http://8.8.8.8/a", igd));
        assert!(!at("10.1.0.2", "http://10.1.0.2/a", igd));
        assert!(!at(
            "10.1.0.1",
            own,
            "urn:schemas-upnp-org:device:MediaServer:1"
        ));
        assert!(!at("10.1.0.1", "https://10.1.0.1/a", igd));
    }

    #[test]
    fn what_is_no_answer_is_passed_over() {
        let whole = answer("http://10.1.0.1:5000/root.xml", TARGETS[0]);
        let from = route().gateway;
        let is = |bytes: &[u8]| location(bytes, from, &route()).is_some();
        assert!(is(whole.as_bytes()));
        assert!(!is(whole.replace("200", "404").as_bytes()));
        assert!(!is(whole
            .replace("HTTP/1.1 200 OK", "NOTIFY * HTTP/1.1")
            .as_bytes()));
        assert!(!is(whole.replace("Location", "Elsewhere").as_bytes()));
        // Its name is in another character set.
        let (head, rest) = whole.split_at(whole.find("st:").unwrap());
        let named = [head.as_bytes(), b"SERVER: Fran\xe7ois\r\n", rest.as_bytes()].concat();
        assert!(is(&named));
        // Behind the head there is no header.
        assert!(!is(whole.replace("st:", "\r\nst:").as_bytes()));
    }

    #[tokio::test]
    async fn rubbish_of_other_hosts_keeps_nobody_from_the_routers_answer() {
        let gateway = Ipv4Addr::new(127, 53, 51, 30);
        let route = Route {
            gateway,
            own: Ipv4Addr::LOCALHOST,
        };
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let to = socket.local_addr().unwrap();
        let own = answer("http://127.53.51.30:5000/root.xml", TARGETS[0]);
        for last in [31, 30] {
            let host = UdpSocket::bind((Ipv4Addr::new(127, 53, 51, last), 0))
                .await
                .unwrap();
            let rubbish = [own.as_bytes(), b"rubbish"];
            for n in 0..=ANSWERS_MAX {
                let which = if last == 30 { 1 } else { n % 2 };
                host.send_to(rubbish[which], to).await.unwrap();
            }
            if last == 30 {
                host.send_to(own.as_bytes(), to).await.unwrap();
            }
        }
        let found = hear(&socket, &route, Duration::from_secs(20))
            .await
            .unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(*found[0].host.ip(), gateway);
    }

    /// However much more there is: a host that sends as fast as this reads keeps it from nothing else.
    #[tokio::test]
    async fn what_comes_when_the_time_is_over_is_not_read() {
        let gateway = Ipv4Addr::new(127, 53, 51, 37);
        let route = Route {
            gateway,
            own: Ipv4Addr::LOCALHOST,
        };
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let host = UdpSocket::bind((gateway, 0)).await.unwrap();
        let own = answer("http://127.53.51.37:5000/root.xml", TARGETS[0]);
        let to = socket.local_addr().unwrap();
        host.send_to(own.as_bytes(), to).await.unwrap();
        let found = hear(&socket, &route, Duration::ZERO).await;
        assert!(matches!(found, Err(Failure::Silent)), "{found:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _read = location(&bytes, route().gateway, &route());
        }
    }
}
