//! Where a peer is dialled: `tcp://HOST:PORT`, `ws://HOST[:PORT]/PATH` or `wss://HOST[:PORT]/PATH`.

use rustls::pki_types::ServerName;
use std::{fmt, net::Ipv6Addr};
use tokio_tungstenite::tungstenite::http::Uri;

/// Longest host name (RFC 1035).
const HOST_BYTES_MAX: usize = 253;
/// Longest path.
const PATH_BYTES_MAX: usize = 1_024;

/// What carries packets beside UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Plain TCP.
    Tcp,
    /// WebSocket.
    Ws,
    /// WebSocket over TLS.
    Wss,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Ws, Self::Wss];

    /// As addresses spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    /// The port where none is said.
    const fn port(self) -> Option<u16> {
        match self {
            Self::Tcp => None,
            Self::Ws => Some(80),
            Self::Wss => Some(443),
        }
    }
}

/// One address to dial.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// How.
    pub kind: Kind,
    /// A name or an IP address, the latter without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
    /// What is asked for; empty for plain TCP.
    pub path: String,
}

impl Target {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it, to follow the text itself.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((kind, rest)) = Kind::ALL.into_iter().find_map(|kind| {
            let rest = text.strip_prefix(kind.name())?.strip_prefix("://")?;
            Some((kind, rest))
        }) else {
            return Err("does not begin with tcp://, ws:// or wss://".into());
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = split(authority)?;
        let port = match (port, kind.port()) {
            (Some(port), _) if !port.bytes().all(|b| b.is_ascii_digit()) => None,
            (Some(port), _) => port.parse().ok().filter(|&port| port != 0),
            (None, known) => known,
        };
        let port = port.ok_or("has no port between 1 and 65535")?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
        if host.is_empty() || host.len() > HOST_BYTES_MAX || !host.chars().all(is_plain) {
            return Err("has no host that could be looked up".into());
        }
        if kind == Kind::Wss && ServerName::try_from(host).is_err() {
            return Err("has no host that a certificate could name".into());
        }
        let path = match (kind, path) {
            (Kind::Tcp, "") => "",
            (Kind::Tcp, _) => return Err("has a path, which plain TCP does not know".into()),
            (_, "") => "/",
            (_, path) => path,
        };
        // RFC 3986 has these nowhere in a path.
        let is_sent = |b: u8| b.is_ascii_graphic() && !b"#<>`\\^|".contains(&b);
        let target = Self {
            kind,
            host: host.to_owned(),
            port,
            path: path.to_owned(),
        };
        let is_carried = path.len() <= PATH_BYTES_MAX && path.bytes().all(is_sent);
        // As WebSocket's handshake will read it.
        let is_asked = kind == Kind::Tcp || target.to_string().parse::<Uri>().is_ok();
        match is_carried && is_asked {
            true => Ok(target),
            false => Err("has a path that no request could carry".into()),
        }
    }

    /// Host and port as a request names them.
    #[must_use]
    pub fn authority(&self) -> String {
        match self.host.parse::<Ipv6Addr>() {
            Ok(_) => format!("[{}]:{}", self.host, self.port),
            Err(_) => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, path) = (self.kind.name(), &self.path);
        write!(out, "{kind}://{}{path}", self.authority())
    }
}

/// Host, and port where one is said.
fn split(authority: &str) -> Result<(&str, Option<&str>), String> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("has a [ without a ]")?;
        host.parse::<Ipv6Addr>()
            .map_err(|_| "has no IPv6 address between [ and ]")?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err("has something other than a port after ]".into()),
        };
    }
    Ok(match authority.rsplit_once(':') {
        Some((host, _)) if host.contains(':') => {
            return Err("has an IPv6 address without [ and ]".into());
        }
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, kind, host, port, path) in [
            ("tcp://10.0.0.2:4783", Kind::Tcp, "10.0.0.2", 4783, ""),
            ("tcp://[fd00::2]:1", Kind::Tcp, "fd00::2", 1, ""),
            (
                "ws://edge.example:80/virga",
                Kind::Ws,
                "edge.example",
                80,
                "/virga",
            ),
            (
                "wss://edge.example:443/a/b?c=d",
                Kind::Wss,
                "edge.example",
                443,
                "/a/b?c=d",
            ),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!((target.kind, target.port), (kind, port), "{text}");
            assert_eq!((&*target.host, &*target.path), (host, path), "{text}");
            assert_eq!(target.to_string(), text);
        }
        let short = Target::parse("wss://edge.example").unwrap();
        assert_eq!(short.to_string(), "wss://edge.example:443/");
    }

    #[test]
    fn what_cannot_be_dialled_is_refused() {
        for text in [
            "",
            "http://a",
            "tcp://a",
            "tcp://a:0",
            "tcp://a:65536",
            "tcp://:1",
            "tcp://a:1/x",
            "tcp://fd00::2:1",
            "tcp://[fd00::2:1",
            "tcp://[x]:1",
            "ws://a b",
            "ws://a/b c",
            "ws://user@a/",
            "ws://a/\r\nx",
            "ws://a/#b",
            "ws://[::1]x",
            "tcp://a:+80",
            "ws://a:",
            "ws://a/<b>",
            "ws://a/`b",
            "ws://a/b\\c",
            "ws://a/^b",
            "ws://a/b|c",
            "wss://a..b",
            "wss://-a",
        ] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }
}
