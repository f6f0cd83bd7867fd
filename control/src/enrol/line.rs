//! The line: `virga1:` and base64url (RFC 4648) without padding of these bytes, numbers big-endian.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | when the invitation ends, in seconds of Unix time |
//! | 8 | 32 | the inviting node's public key |
//! | 40 | 32 | the secret |
//! | 72 | 16 | where it waits: IPv6, or IPv4 mapped into it |
//! | 88 | 2 | the TCP port there |
//! | 90 | 4 | CRC32C of all before, for lines that were not copied whole |

use crate::keys::Secret;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use zeroize::Zeroizing;

/// What every line begins with; the digit is the version of the exchange.
pub(crate) const LABEL: &str = "virga1:";
const BYTES: usize = 94;
const CHECKED: usize = BYTES - 4;
/// Base64 has four characters for three bytes, and no padding here.
const CHARACTERS: usize = (BYTES * 4).div_ceil(3);

/// What one line says.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// Where who invites waits.
    pub address: SocketAddr,
    /// Its node key, the public half.
    pub node_key: [u8; 32],
    /// Who knows it may join.
    pub secret: Secret,
    /// When it ends, in seconds of Unix time.
    pub ends_s: u64,
}

/// Why a text is no invitation. Nothing was sent to anybody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Something else.
    #[error("this is no invitation: one begins with `{LABEL}`, as `virga invite` prints it")]
    Label,
    /// Not all of it, or more.
    #[error(
        "the invitation is not whole: it has {characters} characters after `{LABEL}` where {CHARACTERS} belong; copy the line again"
    )]
    Length {
        /// How many it has.
        characters: usize,
    },
    /// Some characters are wrong.
    #[error(
        "the invitation was damaged on its way: its checksum does not fit; copy the line again"
    )]
    Damaged,
}

impl Invitation {
    /// The line; whoever reads it may join.
    #[must_use]
    pub fn line(&self) -> Zeroizing<String> {
        let bytes = self.bytes();
        let mut line = Zeroizing::new(String::with_capacity(LABEL.len() + CHARACTERS));
        line.push_str(LABEL);
        URL_SAFE_NO_PAD.encode_string(&bytes[..], &mut line);
        line
    }

    /// Also what both ends of the exchange must have alike.
    pub(super) fn bytes(&self) -> Zeroizing<[u8; BYTES]> {
        let ip = match self.address.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let mut bytes = Zeroizing::new([0; BYTES]);
        bytes[..8].copy_from_slice(&self.ends_s.to_be_bytes());
        bytes[8..40].copy_from_slice(&self.node_key);
        bytes[40..72].copy_from_slice(self.secret.expose());
        bytes[72..88].copy_from_slice(&ip.octets());
        bytes[88..90].copy_from_slice(&self.address.port().to_be_bytes());
        let sum = crc32c::crc32c(&bytes[..CHECKED]);
        bytes[CHECKED..].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Reads a line, with whatever white space came along.
    ///
    /// # Errors
    /// [`LineError`].
    pub fn parse(text: &str) -> Result<Self, LineError> {
        let digits = text.trim().strip_prefix(LABEL).ok_or(LineError::Label)?;
        let characters = digits.chars().count();
        if characters != CHARACTERS {
            return Err(LineError::Length { characters });
        }
        // The decoder wants room for whole groups of three bytes.
        let mut bytes = Zeroizing::new([0; BYTES.next_multiple_of(3)]);
        let decoded = URL_SAFE_NO_PAD.decode_slice(digits, &mut bytes[..]);
        if decoded != Ok(BYTES) {
            return Err(LineError::Damaged);
        }
        let (checked, sum) = bytes[..BYTES].split_at(CHECKED);
        if crc32c::crc32c(checked).to_be_bytes() != sum {
            return Err(LineError::Damaged);
        }
        let array = |at: usize| -> [u8; 32] { std::array::from_fn(|n| bytes[at + n]) };
        let ip = Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|n| bytes[72 + n]));
        let port = u16::from_be_bytes([bytes[88], bytes[89]]);
        Ok(Self {
            address: SocketAddr::new(ip.to_canonical(), port),
            node_key: array(8),
            secret: Secret::new(array(40)),
            ends_s: u64::from_be_bytes(std::array::from_fn(|n| bytes[n])),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invitation(address: &str) -> Invitation {
        Invitation {
            address: address.parse().unwrap(),
            node_key: [7; 32],
            secret: Secret::new([9; 32]),
            ends_s: 1_800_000_000,
        }
    }

    #[test]
    fn a_line_says_what_was_put_into_it() {
        for address in ["192.0.2.7:4783", "[2001:db8::7]:9"] {
            let line = invitation(address).line();
            assert_eq!(line.len(), LABEL.len() + CHARACTERS);
            let read = Invitation::parse(&format!("  {}\n", *line)).unwrap();
            assert_eq!(read.address, address.parse().unwrap());
            assert_eq!(read.node_key, [7; 32]);
            assert!(read.secret == Secret::new([9; 32]));
            assert_eq!(read.ends_s, 1_800_000_000);
        }
    }

    #[test]
    fn no_other_line_is_taken_for_it() {
        let line = invitation("192.0.2.7:4783").line();
        let error = |text: &str| Invitation::parse(text).unwrap_err();
        assert_eq!(error(""), LineError::Label);
        assert_eq!(error(&line[LABEL.len()..]), LineError::Label);
        let characters = CHARACTERS - 1;
        assert_eq!(
            error(&line[..line.len() - 1]),
            LineError::Length { characters }
        );
        for place in LABEL.len()..line.len() {
            for other in ["A", "B", "_", "!", "ü"] {
                let mut wrong = line.to_string();
                wrong.replace_range(place..=place, other);
                assert!(
                    wrong == *line || Invitation::parse(&wrong).is_err(),
                    "{wrong}"
                );
            }
        }
    }
}
