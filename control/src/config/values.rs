//! Single values: from text or number to a type, or what is wrong with it.

use super::{LinkTags, PeerSubnet, problem::suggest};
use crate::hex;
use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};
use virga_ebpf::{
    header::{NodeId, Subnet},
    subnet::{SubnetPrefix, Visibility},
};

/// Bytes of a node's name; it names a directory, a socket and a channel level.
pub(super) const NAME_BYTES_MAX: usize = 32;
/// Bytes of a network id; it goes into the handshake's prologue.
pub(super) const NETWORK_BYTES_MAX: usize = 255;
/// Bytes of an interface's name: IFNAMSIZ without the final zero.
const INTERFACE_BYTES_MAX: usize = 15;
/// Bytes of a Unix socket's path: `sun_path` without the final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What is wrong with a value, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(super) what: String,
    pub(super) fix: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.fix)
    }
}

pub(super) fn fault<T>(what: impl Into<String>, fix: impl Into<String>) -> Result<T, Fault> {
    Err(Fault {
        what: what.into(),
        fix: fix.into(),
    })
}

/// The name of a node or an entity.
pub(super) fn name(text: &str) -> Result<String, Fault> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(allowed) {
        let what = format!("{text:?} is not a name");
        return fault(what, format!("use 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -"));
    }
    Ok(text.into())
}

pub(super) fn network(text: &str) -> Result<String, Fault> {
    if text.is_empty() || text.len() > NETWORK_BYTES_MAX || text.chars().any(char::is_control) {
        let what = format!("{text:?} is not a network id");
        return fault(
            what,
            format!("use 1 to {NETWORK_BYTES_MAX} printable bytes"),
        );
    }
    Ok(text.into())
}

/// An address that a UDP socket can listen on.
pub(super) fn listen(text: &str) -> Result<SocketAddr, Fault> {
    const EXAMPLE: &str =
        "write an IP address and a port, such as \"10.77.1.2:4783\" or \"[fd00::2]:4783\"";
    let Ok(address) = text.parse::<SocketAddr>() else {
        return fault(format!("{text:?} is not an IP address and port"), EXAMPLE);
    };
    if address.port() == 0 {
        return fault("port 0 is no port", EXAMPLE);
    }
    let ip = address.ip();
    let is_broadcast = matches!(address, SocketAddr::V4(v4) if v4.ip().is_broadcast());
    if ip.is_multicast() || is_broadcast {
        return fault(format!("{ip} is not one host's address"), EXAMPLE);
    }
    if let SocketAddr::V6(v6) = address {
        if v6.ip().to_ipv4_mapped().is_some() {
            let what = format!("{ip} is an IPv4 address written as IPv6");
            return fault(what, "write the IPv4 address itself");
        }
        if v6.ip().is_unicast_link_local() {
            let what = format!("{ip} means another host on each link");
            return fault(what, "write an address of wider scope, such as fd00::2");
        }
    }
    Ok(address)
}

/// An address that packets can be sent to.
pub(super) fn address(text: &str) -> Result<SocketAddr, Fault> {
    let address = listen(text)?;
    if address.ip().is_unspecified() {
        return fault(
            format!("{} is no destination", address.ip()),
            "write the peer's own address",
        );
    }
    Ok(address)
}

pub(super) fn subnet(text: &str) -> Result<Subnet, Fault> {
    match text.parse::<Ipv4Addr>() {
        Ok(levels) => Ok(Subnet(levels.to_bits())),
        Err(_) => fault(
            format!("{text:?} is not a subnet"),
            "write four levels of 0 to 255, such as \"1.0.0.0\"",
        ),
    }
}

pub(super) fn link_tags(text: &str) -> Result<LinkTags, Fault> {
    match LinkTags::ALL.into_iter().find(|one| one.name() == text) {
        Some(link_tags) => Ok(link_tags),
        None => fault(
            format!("{text:?} does not say whether there are link tags"),
            suggest(text, LinkTags::ALL.map(LinkTags::name)),
        ),
    }
}

/// A peer's subnet, and how many leading bits what it carries shares with that: all of its levels, unless a
/// length says otherwise.
pub(super) fn peer_subnet(text: &str) -> Result<PeerSubnet, Fault> {
    const EXAMPLE: &str = "write its subnet, such as \"1.2.0.0\", or with how many leading bits what it carries shares, \"1.2.0.0/8\"";
    let (levels, bits) = match text.split_once('/') {
        Some((levels, bits)) => (levels, Some(bits)),
        None => (text, None),
    };
    let subnet = subnet(levels)?;
    let mask = match bits {
        Some(bits) => mask(bits, EXAMPLE)?,
        None => subnet.mask(),
    };
    Ok(PeerSubnet { subnet, mask })
}

/// A subnet and all that lie in it, or any other number of leading bits.
pub(crate) fn subnet_prefix(text: &str) -> Result<SubnetPrefix, Fault> {
    const EXAMPLE: &str =
        "write a subnet and how many leading bits count (1 to 32), such as \"1.0.0.0/8\"";
    let Some((levels, bits)) = text.split_once('/') else {
        return fault(format!("{text:?} has no /length"), EXAMPLE);
    };
    let Subnet(levels) = subnet(levels)?;
    let mask = mask(bits, EXAMPLE)?;
    if mask == 0 {
        let what = format!("{text:?} is everywhere");
        return fault(what, "write visibility = \"global\", and no export_to");
    }
    if levels & !mask != 0 {
        let first = Ipv4Addr::from_bits(levels & mask);
        return fault(
            format!("{text:?} has bits set after its first {bits}"),
            format!("write \"{first}/{bits}\""),
        );
    }
    Ok(SubnetPrefix {
        subnet: Subnet(levels),
        mask,
    })
}

/// The mask of so many leading bits.
fn mask(bits: &str, fix: &str) -> Result<u32, Fault> {
    let is_number = !bits.is_empty() && bits.bytes().all(|byte| byte.is_ascii_digit());
    match bits.parse::<u32>() {
        Ok(length @ 0..=32) if is_number => Ok(u32::MAX.checked_shl(32 - length).unwrap_or(0)),
        _ => fault(format!("{bits:?} is not a length"), fix),
    }
}

/// How far a channel goes among subnets.
pub(crate) fn visibility(text: &str) -> Result<Visibility, Fault> {
    match text {
        "subnet-local" => Ok(Visibility::SubnetLocal),
        "parent-visible" => Ok(Visibility::ParentVisible),
        "exported" => Ok(Visibility::Exported),
        "global" => Ok(Visibility::Global),
        _ => fault(
            format!("{text:?} is no visibility"),
            "write \"subnet-local\", \"parent-visible\", \"exported\" or \"global\"",
        ),
    }
}

/// A visibility as files have it.
pub(crate) const fn visibility_word(visibility: Visibility) -> &'static str {
    match visibility {
        Visibility::SubnetLocal => "subnet-local",
        Visibility::ParentVisible => "parent-visible",
        Visibility::Exported => "exported",
        Visibility::Global => "global",
    }
}

/// A subnet's levels, as files have them.
pub(crate) fn subnet_word(subnet: Subnet) -> String {
    Ipv4Addr::from_bits(subnet.0).to_string()
}

/// A subnet with its length, as files have it.
pub(crate) fn prefix_word(prefix: &SubnetPrefix) -> String {
    let levels = Ipv4Addr::from_bits(prefix.subnet.0);
    format!("{levels}/{}", prefix.mask.leading_ones())
}

pub(super) fn interface(text: &str) -> Result<String, Fault> {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    let bad_length = text.is_empty() || text.len() > INTERFACE_BYTES_MAX;
    if bad_length || text == "." || text == ".." || text.contains(bad) {
        let what = format!("{text:?} is not an interface name");
        return fault(what, "`ip -brief link` lists the interfaces there are");
    }
    Ok(text.into())
}

pub(super) fn socket(text: &str) -> Result<PathBuf, Fault> {
    let path = Path::new(text);
    if !path.is_absolute() || text.len() > SOCKET_PATH_BYTES_MAX || text.contains('\0') {
        let what = format!("{text:?} is no place for a socket");
        return fault(
            what,
            format!("write an absolute path of at most {SOCKET_PATH_BYTES_MAX} bytes"),
        );
    }
    Ok(path.into())
}

/// A whole number within bounds.
pub(super) fn number<T: TryFrom<i64>>(value: i64, min: i64, max: i64) -> Result<T, Fault> {
    match T::try_from(value) {
        Ok(number) if (min..=max).contains(&value) => Ok(number),
        _ => fault(
            format!("{value} is out of range"),
            format!("use {min} to {max}"),
        ),
    }
}

/// An X25519 public key that contributes to a shared secret.
pub(super) fn node_key(text: &str) -> Result<[u8; 32], Fault> {
    const FIX: &str = "paste the node key that `virga id` prints on that node";
    let key = key(text, FIX)?;
    if is_low_order(&key) {
        return fault("is a point of low order, which no honest node has", FIX);
    }
    Ok(key)
}

/// What headers call a node, for one whose key the first contact tells.
pub(super) fn node_id(text: &str) -> Result<NodeId, Fault> {
    const FIX: &str =
        "paste the node id that `virga id` prints on that node, or its node key as `node_key`";
    read_node_id(text).map_or_else(|| fault("is not 16 hex digits", FIX), Ok)
}

/// A node's id, of 16 hex digits.
pub(crate) fn read_node_id(text: &str) -> Option<NodeId> {
    let is_id = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    u64::from_str_radix(text, 16)
        .ok()
        .filter(|_| is_id)
        .map(NodeId)
}

/// Whether no honest node has this X25519 public key.
pub(crate) fn is_low_order(key: &[u8; 32]) -> bool {
    // Any scalar shows a point of low order: the product is zero (RFC 7748, section 6.1).
    let scalar = x25519_dalek::StaticSecret::from([1; 32]);
    let product = scalar.diffie_hellman(&x25519_dalek::PublicKey::from(*key));
    !product.was_contributory()
}

/// Whether no honest entity has this ed25519 public key.
pub(crate) fn is_weak(key: &[u8; 32]) -> bool {
    ed25519_dalek::VerifyingKey::from_bytes(key).map_or(true, |point| point.is_weak())
}

/// An ed25519 public key that strict verification accepts.
pub(super) fn entity_key(text: &str) -> Result<[u8; 32], Fault> {
    const FIX: &str = "paste the entity key that `virga id` prints on that node";
    let key = key(text, FIX)?;
    match ed25519_dalek::VerifyingKey::from_bytes(&key) {
        Ok(point) if point.is_weak() => fault("is a weak key, which no honest entity has", FIX),
        Ok(_) => Ok(key),
        Err(_) => fault("is not a point of the curve", FIX),
    }
}

fn key(text: &str, fix: &str) -> Result<[u8; 32], Fault> {
    hex::decode(text).or_else(|error| fault(error.to_string(), fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnet_prefixes() {
        let prefix = |levels, mask| {
            Ok(SubnetPrefix {
                subnet: Subnet(levels),
                mask,
            })
        };
        assert_eq!(subnet_prefix("1.0.0.0/8"), prefix(0x0100_0000, 0xff00_0000));
        assert_eq!(subnet_prefix("1.2.3.4/32"), prefix(0x0102_0304, u32::MAX));
        assert_eq!(subnet_prefix("0.0.0.0/32"), prefix(0, u32::MAX));
        let everywhere = subnet_prefix("0.0.0.0/0").unwrap_err();
        assert!(everywhere.fix.contains("\"global\""), "{everywhere}");
        for bad in [
            "1.0.0.0",
            "1.0.0/8",
            "1.0.0.0/33",
            "1.0.0.0/+8",
            "1.0.0.0/",
            "1.2.0.0/8",
            "256.0.0.0/8",
        ] {
            assert!(subnet_prefix(bad).is_err(), "{bad}");
        }
        let fix = subnet_prefix("1.2.0.0/8").unwrap_err().fix;
        assert_eq!(fix, "write \"1.0.0.0/8\"");
    }

    #[test]
    fn a_peers_subnet_carries_its_own_levels_unless_a_length_says_otherwise() {
        let peer = |levels, mask| {
            Ok(PeerSubnet {
                subnet: Subnet(levels),
                mask,
            })
        };
        assert_eq!(peer_subnet("1.2.0.0"), peer(0x0102_0000, 0xffff_0000));
        assert_eq!(peer_subnet("1.2.0.0/8"), peer(0x0102_0000, 0xff00_0000));
        assert_eq!(peer_subnet("1.2.3.4/0"), peer(0x0102_0304, 0));
        assert_eq!(peer_subnet("0.0.0.0"), peer(0, 0));
        for bad in ["1.2", "1.2.0.0/33", "1.2.0.0/", "a"] {
            assert!(peer_subnet(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses() {
        assert!(address("10.0.0.1:4783").is_ok() && address("[fd00::2]:4783").is_ok());
        assert!(listen("0.0.0.0:4783").is_ok() && address("0.0.0.0:4783").is_err());
        for bad in [
            "10.0.0.1",
            "host:1",
            "10.0.0.1:0",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "[ff02::1]:1",
            "",
        ] {
            assert!(listen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_of_low_order_are_refused() {
        let zero = "00".repeat(32);
        let one = format!("01{}", "00".repeat(31));
        assert!(node_key(&zero).unwrap_err().what.contains("low order"));
        assert!(node_key(&one).unwrap_err().what.contains("low order"));
        assert!(entity_key(&one).unwrap_err().what.contains("weak"));
        let off_curve = format!("02{}", "00".repeat(31));
        assert!(
            entity_key(&off_curve)
                .unwrap_err()
                .what
                .contains("not a point")
        );
        assert!(node_key("abc").unwrap_err().what.contains("3 characters"));
    }

    #[test]
    fn names_and_paths() {
        assert!(name("edge-a2").is_ok());
        for bad in ["", "Edge", "a_b", "a/b", &"a".repeat(33)] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert!(interface("eth0.100").is_ok());
        for bad in ["", ".", "..", "a/b", "a b", "sixteen-letters!"] {
            assert!(interface(bad).is_err(), "{bad}");
        }
        assert!(socket("/run/virga/a.sock").is_ok());
        assert!(socket("run/a.sock").is_err() && socket(&format!("/{}", "a".repeat(107))).is_err());
        assert!(network("demo").is_ok() && network("").is_err() && network("a\nb").is_err());
        assert_eq!(number::<u8>(6, 0, 6), Ok(6));
        assert!(number::<u8>(7, 0, 6).is_err() && number::<u32>(-1, 0, 9).is_err());
    }
}
