//! Addresses of a router's documents: plain HTTP at an IPv4 address, and nothing else.

use crate::limits::URL_BYTES_MAX;
use std::net::{Ipv4Addr, SocketAddrV4};

const SCHEME: &str = "http://";

/// Where a document is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// The host and its port.
    pub host: SocketAddrV4,
    /// What is asked for there.
    pub path: String,
}

impl Url {
    /// Reads one; none where it is of another kind.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let rest = strip(text.trim(), SCHEME)?;
        let (host, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let host = match host.parse() {
            Ok(host) => host,
            Err(_) => SocketAddrV4::new(host.parse::<Ipv4Addr>().ok()?, 80),
        };
        let is_possible = host.port() != 0 && is_path(path);
        is_possible.then(|| Self {
            host,
            path: path.to_owned(),
        })
    }

    /// What a document there calls `reference`, at the same host.
    #[must_use]
    pub fn join(&self, reference: &str) -> Option<Self> {
        let reference = reference.trim();
        if let Some(url) = Self::parse(reference) {
            return Some(url).filter(|url| url.host.ip() == self.host.ip());
        }
        if reference.contains("://") || reference.is_empty() {
            return None;
        }
        let path = match reference.starts_with('/') {
            true => reference.to_owned(),
            false => {
                let before = self.path.split('?').next()?;
                let folder = before.rfind('/').map_or("/", |at| &before[..=at]);
                format!("{folder}{reference}")
            }
        };
        is_path(&path).then_some(Self { path, ..*self })
    }
}

/// What is behind a scheme, which may be written in any case.
fn strip<'a>(text: &'a str, scheme: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(scheme.len())?;
    head.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// Whether it can stand in a request as it is.
fn is_path(path: &str) -> bool {
    let is_plain = path
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'#');
    is_plain && path.starts_with('/') && path.len() <= URL_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Option<String> {
        Url::parse(text).map(|url| format!("{}{}", url.host, url.path))
    }

    #[test]
    fn plain_http_at_an_address_is_read_and_nothing_else() {
        let read = |text| url(text).unwrap_or_default();
        assert_eq!(
            read("http://10.0.0.1:5000/root.xml"),
            "10.0.0.1:5000/root.xml"
        );
        assert_eq!(read(" HTTP://10.0.0.1 "), "10.0.0.1:80/");
        for other in [
            "",
            "http://",
            "https://10.0.0.1/",
            "http://router.lan/",
            "http://[::1]/",
            "http://10.0.0.1:0/",
            "http://10.0.0.1:99999/",
            "http://user@10.0.0.1/",
            "http://10.0.0.1/a b",
            "http://10.0.0.1/a\r\nHost: b",
            "http://10.0.0.1/#a",
            "http://10.0.0.1/\u{e4}",
            "httpä//10.0.0.1/",
        ] {
            assert_eq!(url(other), None, "{other:?}");
        }
        assert_eq!(url(&format!("http://10.0.0.1/{}", "a".repeat(600))), None);
    }

    #[test]
    fn references_stay_at_the_host() {
        let base = Url::parse("http://10.0.0.1:5000/a/root.xml?b=/c").unwrap();
        let joined = |reference| {
            base.join(reference)
                .map(|url| format!("{}{}", url.host, url.path))
        };
        for (reference, whole) in [
            ("/ctl", Some("10.0.0.1:5000/ctl")),
            ("ctl", Some("10.0.0.1:5000/a/ctl")),
            ("http://10.0.0.1:80/x", Some("10.0.0.1:80/x")),
            ("http://10.0.0.2/x", None),
            ("https://10.0.0.1/x", None),
            ("file:///etc/passwd", None),
            ("/a b", None),
            ("", None),
        ] {
            assert_eq!(joined(reference).as_deref(), whole, "{reference:?}");
        }
    }
}
