//! What a node says of itself, signed by itself.
//!
//! ```text
//! offset  size  field
//!      0     5  "virga"
//!      5     1  type, 13
//!      6     1  version, 1
//!      7    34  length 2, node_key 32     X25519 public key; the node's id is its hash
//!     41    34  length 2, entity_key 32   ed25519 public key; the signature is its
//!     75    34  length 2, network 32      BLAKE2s-MAC(key "virga network v1", the mesh's name)
//!    109     6  length 2, subnet 4
//!    115    10  length 2, instance 8      drawn when the node starts: a life of the node
//!    125    10  length 2, sequence 8      a higher one counts; only the node makes it
//!    135    10  length 2, issued 8        Unix seconds
//!    145     6  length 2, lifetime 4      seconds from then, exclusive; at most 1,800
//!    151     -  length 2, name            1 to 32 of a-z, 0-9 and -
//!      -     -  length 2, addresses       each: 4 | IPv4 4 | port 2, or 6 | IPv6 16 | port 2; at most 8
//!    end    64  ed25519 signature (RFC 8032) over all before it
//! ```
//! Big-endian, the encoding of all signed objects; one way to write each.

use crate::{
    limits::{ADDRESSES_MAX, CLOCK_SKEW_S, LIFETIME_S, NAME_BYTES_MAX},
    reason::Reason,
    source::is_name,
};
use ed25519_dalek::{Signature, VerifyingKey};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use virga_ebpf::{
    hash,
    header::{NodeId, Subnet},
};

/// What every record begins with: magic, type, version.
pub const PREFIX: &[u8; 7] = b"virga\x0d\x01";
/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;
const ADDRESS_BYTES_MAX: usize = 1 + 16 + 2;
const FIXED_BYTES: usize = 151;
/// Bytes of the longest record.
pub const RECORD_BYTES_MAX: usize =
    FIXED_BYTES + 2 + NAME_BYTES_MAX + 2 + ADDRESSES_MAX * ADDRESS_BYTES_MAX + SIGNATURE_BYTES;

/// What a record says of the mesh that it is made in.
#[must_use]
pub fn network(name: &str) -> [u8; 32] {
    hash::keyed(b"virga network v1", &[name.as_bytes()])
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// X25519 public key of the node.
    pub node_key: [u8; 32],
    /// ed25519 public key of its entity, which signs.
    pub entity_key: [u8; 32],
    /// The mesh, see [`network`].
    pub network: [u8; 32],
    /// The node's subnet.
    pub subnet: Subnet,
    /// Drawn when the node starts.
    pub instance: u64,
    /// A higher one counts.
    pub sequence: u64,
    /// When it was said, in Unix seconds.
    pub issued_s: u64,
    /// For how long it counts.
    pub lifetime_s: u32,
    /// What the node calls itself.
    pub name: String,
    /// Where it can be reached, the best first.
    pub addresses: Vec<SocketAddr>,
}

/// A claim with a signature, of which the form is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    claim: Claim,
    node: NodeId,
    bytes: Box<[u8]>,
}

/// Whether packets can be sent to an address, wherever it is read.
#[must_use]
pub fn is_reachable(address: &SocketAddr) -> bool {
    let ip = address.ip();
    let is_one_host = match ip {
        IpAddr::V4(ip) => !ip.is_broadcast(),
        IpAddr::V6(ip) => is_wide(&ip),
    };
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && is_one_host
}

/// An address that means the same host on each link, and no IPv4 address.
fn is_wide(ip: &Ipv6Addr) -> bool {
    ip.to_ipv4_mapped().is_none() && !ip.is_unicast_link_local()
}

fn address_bytes(addresses: &[SocketAddr]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in addresses {
        match address.ip() {
            IpAddr::V4(ip) => {
                bytes.push(4);
                bytes.extend(ip.octets());
            }
            IpAddr::V6(ip) => {
                bytes.push(6);
                bytes.extend(ip.octets());
            }
        }
        bytes.extend(address.port().to_be_bytes());
    }
    bytes
}

fn addresses(mut bytes: &[u8]) -> Option<Vec<SocketAddr>> {
    let mut all = Vec::new();
    while let Some((&family, rest)) = bytes.split_first() {
        let (ip, rest) = match family {
            4 => {
                let (ip, rest) = rest.split_first_chunk::<4>()?;
                (IpAddr::from(*ip), rest)
            }
            6 => {
                let (ip, rest) = rest.split_first_chunk::<16>()?;
                (IpAddr::from(*ip), rest)
            }
            _ => return None,
        };
        let (port, rest) = rest.split_first_chunk()?;
        let address = SocketAddr::new(ip, u16::from_be_bytes(*port));
        if all.len() == ADDRESSES_MAX || !is_reachable(&address) || all.contains(&address) {
            return None;
        }
        all.push(address);
        bytes = rest;
    }
    Some(all)
}

/// Takes fields one by one.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk()?;
        let (field, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        self.0 = rest;
        Some(field)
    }

    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.next()?.try_into().ok()
    }
}

impl Record {
    /// Signs one; none where the claim has a form that none may have.
    #[must_use]
    pub fn issue(claim: &Claim, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Option<Self> {
        let mut bytes = PREFIX.to_vec();
        let addresses = address_bytes(&claim.addresses);
        let fields: [&[u8]; 10] = [
            &claim.node_key,
            &claim.entity_key,
            &claim.network,
            &claim.subnet.0.to_be_bytes(),
            &claim.instance.to_be_bytes(),
            &claim.sequence.to_be_bytes(),
            &claim.issued_s.to_be_bytes(),
            &claim.lifetime_s.to_be_bytes(),
            claim.name.as_bytes(),
            &addresses,
        ];
        for field in fields {
            bytes.extend(u16::try_from(field.len()).ok()?.to_be_bytes());
            bytes.extend(field);
        }
        let signature = sign(&bytes);
        bytes.extend(signature);
        Self::parse(&bytes)
    }

    /// Reads one, all of `bytes`; none where the form is not right. Nothing is known of the signature.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > RECORD_BYTES_MAX {
            return None;
        }
        let (signed, _) = bytes.split_last_chunk::<SIGNATURE_BYTES>()?;
        let mut fields = Fields(signed.strip_prefix(PREFIX)?);
        let claim = Claim {
            node_key: fields.fixed()?,
            entity_key: fields.fixed()?,
            network: fields.fixed()?,
            subnet: Subnet(u32::from_be_bytes(fields.fixed()?)),
            instance: u64::from_be_bytes(fields.fixed()?),
            sequence: u64::from_be_bytes(fields.fixed()?),
            issued_s: u64::from_be_bytes(fields.fixed()?),
            lifetime_s: u32::from_be_bytes(fields.fixed()?),
            name: String::from_utf8(fields.next()?.to_vec()).ok()?,
            addresses: addresses(fields.next()?)?,
        };
        let is_right = fields.0.is_empty()
            && is_name(&claim.name)
            && (1..=LIFETIME_S).contains(&claim.lifetime_s);
        is_right.then(|| Self {
            node: hash::node_id(&claim.node_key),
            claim,
            bytes: bytes.into(),
        })
    }

    /// Whether its entity has signed it, for this network, and it counts now; the cheap questions first.
    ///
    /// # Errors
    /// Why it does not.
    pub fn check(&self, network: &[u8; 32], unix_s: u64) -> Result<(), Reason> {
        if self.claim.network != *network {
            return Err(Reason::OtherNetwork);
        }
        if !self.counts(unix_s) {
            return Err(Reason::Expired);
        }
        match self.is_signed() {
            true => Ok(()),
            false => Err(Reason::Forged),
        }
    }

    /// Whether it counts at a time.
    #[must_use]
    pub fn counts(&self, unix_s: u64) -> bool {
        let (issued_s, lifetime_s) = (self.claim.issued_s, u64::from(self.claim.lifetime_s));
        let begins_s = issued_s.saturating_sub(CLOCK_SKEW_S);
        let ends_s = issued_s.saturating_add(lifetime_s + CLOCK_SKEW_S);
        (begins_s..ends_s).contains(&unix_s)
    }

    fn is_signed(&self) -> bool {
        let Some((signed, signature)) = self.bytes.split_last_chunk() else {
            return false;
        };
        let key = VerifyingKey::from_bytes(&self.claim.entity_key);
        let signature = Signature::from_bytes(signature);
        key.is_ok_and(|key| key.verify_strict(signed, &signature).is_ok())
    }

    /// The node that it is about.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// What it says.
    #[must_use]
    pub const fn claim(&self) -> &Claim {
        &self.claim
    }

    /// All of it.
    #[must_use]
    pub const fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
