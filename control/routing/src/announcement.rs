//! What a destination says of itself, signed by itself.
//!
//! ```text
//! offset  size  field
//!      0     5  "virga"
//!      5     1  type, 12
//!      6     1  version, 1
//!      7    34  length 2, node_key 32     X25519 public key; the node's id is its hash
//!     41    34  length 2, entity_key 32   ed25519 public key; the signature is its
//!     75     3  length 2, announced 1     0: the node itself; 8, 16, 24, 32: leading bits of its subnet
//!     78     6  length 2, subnet 4        the node's own
//!     84    10  length 2, seqno 8         a higher one counts; only the destination makes it
//!     94    10  length 2, not_after 8     Unix seconds, exclusive
//!    104    34  length 2, network 32      BLAKE2s-MAC(key "virga network v1", the mesh's name)
//!    138    64  ed25519 signature (RFC 8032) over all before it
//! ```
//! Big-endian, the encoding of all signed objects; one way to write each.

use ed25519_dalek::{Signature, VerifyingKey};
use thiserror::Error;
use virga_ebpf::{
    hash,
    header::{NodeId, Subnet},
    subnet::SubnetPrefix,
};

/// Bytes of every announcement.
pub const ANNOUNCEMENT_BYTES: usize = SIGNED_BYTES + SIGNATURE_BYTES;
/// Bytes that are signed.
pub const SIGNED_BYTES: usize = 138;
/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;
/// What every announcement begins with: magic, type, version.
pub const PREFIX: &[u8; 7] = b"virga\x0c\x01";

/// What an announcement says of the mesh that it is made in.
#[must_use]
pub fn network(name: &str) -> [u8; 32] {
    hash::keyed(b"virga network v1", &[name.as_bytes()])
}

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// One node.
    Node(NodeId),
    /// All nodes of a subnet and of those that lie in it.
    Subnet(SubnetPrefix),
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(node) => node.fmt(f),
            Self::Subnet(SubnetPrefix { subnet, mask }) => {
                let [a, b, c, d] = subnet.0.to_be_bytes();
                write!(f, "{a}.{b}.{c}.{d}/{}", mask.leading_ones())
            }
        }
    }
}

/// What is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The mesh that it is said in, see [`network`].
    pub network: [u8; 32],
    /// X25519 public key of the node that says it.
    pub node_key: [u8; 32],
    /// ed25519 public key of its entity, which signs.
    pub entity_key: [u8; 32],
    /// The node's subnet.
    pub subnet: Subnet,
    /// Leading bits of it that are announced as one destination, whole levels; 0: the node itself.
    pub announced: u8,
    /// A higher one counts. A subnet's is not above its time, see [`crate::limits::AHEAD_S`].
    pub seqno: u64,
    /// Until when, exclusive, in Unix seconds.
    pub not_after_s: u64,
}

/// Whose word an announcement is, as it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speaker {
    /// X25519 public key of the node.
    pub node_key: [u8; 32],
    /// ed25519 public key of its entity.
    pub entity_key: [u8; 32],
    /// The node's subnet.
    pub subnet: Subnet,
}

impl Speaker {
    /// The node's id.
    #[must_use]
    pub fn node(&self) -> NodeId {
        hash::node_id(&self.node_key)
    }
}

/// Why a node does not believe an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Doubt {
    /// It is of nobody that this node knows. Said before any signature is looked at.
    #[error("it is of a node that is not known here")]
    Stranger,
    /// The key that it names has not signed it.
    #[error("its signature is not its destination's")]
    Forged,
    /// The node is known, and in another subnet.
    #[error("its node is in another subnet")]
    Elsewhere,
}

/// This node's word, and whose it takes.
pub trait Authority {
    /// The mesh, see [`network`]: an announcement counts in no other, though keys may be members of two.
    fn network(&self) -> [u8; 32];
    /// This node's X25519 public key.
    fn node_key(&self) -> [u8; 32];
    /// Its entity's ed25519 public key.
    fn entity_key(&self) -> [u8; 32];
    /// A signature by that entity.
    fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES];
    /// Whether announcements may be of such a node: it is known here, with that entity, in that subnet.
    /// No signature is looked at.
    ///
    /// # Errors
    /// [`Doubt`]; never [`Doubt::Forged`], which counts against who brought it: this node may only not know
    /// what others know.
    fn knows(&self, speaker: &Speaker) -> Result<(), Doubt>;

    /// Whether an announcement is of a node that is known here, and signed by its entity. The cheap question
    /// comes first: anybody can send anything.
    ///
    /// # Errors
    /// [`Doubt`].
    fn check(&self, announcement: &Announcement) -> Result<(), Doubt> {
        self.knows(&announcement.speaker())?;
        match self.is_signed(announcement) {
            true => Ok(()),
            false => Err(Doubt::Forged),
        }
    }

    /// Whether the key that an announcement names has signed it, whoever that is.
    fn is_signed(&self, announcement: &Announcement) -> bool {
        let signature = Signature::from_bytes(&announcement.signature());
        let key = VerifyingKey::from_bytes(&announcement.entity_key());
        key.is_ok_and(|key| key.verify_strict(announcement.signed(), &signature).is_ok())
    }
}

/// An announcement, of which the form is right. What else is known of it, its holder says.
#[derive(Clone, PartialEq, Eq)]
pub struct Announcement {
    destination: Destination,
    origin: NodeId,
    bytes: [u8; ANNOUNCEMENT_BYTES],
}

impl std::fmt::Debug for Announcement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (destination, seqno) = (self.destination, self.seqno());
        write!(
            f,
            "Announcement({destination} by {}, number {seqno})",
            self.origin
        )
    }
}

/// What an announcement is about; none where no announcement can say that.
fn destination_of(origin: NodeId, subnet: Subnet, announced: u8) -> Option<Destination> {
    match announced {
        0 => Some(Destination::Node(origin)),
        8 | 16 | 24 | 32 => {
            let mask = u32::MAX << (32 - u32::from(announced));
            // It has that many levels.
            let is_in = subnet.mask() >= mask;
            let subnet = Subnet(subnet.0 & mask);
            is_in.then_some(Destination::Subnet(SubnetPrefix { subnet, mask }))
        }
        _ => None,
    }
}

impl Announcement {
    /// Signs one; none where the claim's subnet has not the levels that it announces.
    #[must_use]
    pub fn issue(claim: &Claim, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Option<Self> {
        let origin = hash::node_id(&claim.node_key);
        let destination = destination_of(origin, claim.subnet, claim.announced)?;
        let mut bytes = Vec::with_capacity(ANNOUNCEMENT_BYTES);
        bytes.extend(PREFIX);
        let (subnet, announced) = (claim.subnet.0.to_be_bytes(), [claim.announced]);
        let (seqno, not_after) = (claim.seqno.to_be_bytes(), claim.not_after_s.to_be_bytes());
        let fields: [&[u8]; 7] = [
            &claim.node_key,
            &claim.entity_key,
            &announced,
            &subnet,
            &seqno,
            &not_after,
            &claim.network,
        ];
        for field in fields {
            let length = u16::try_from(field.len()).ok()?;
            bytes.extend(length.to_be_bytes());
            bytes.extend(field);
        }
        let signature = sign(&bytes);
        bytes.extend(signature);
        let bytes = bytes.try_into().ok()?;
        Some(Self {
            destination,
            origin,
            bytes,
        })
    }

    /// Reads one, all of `bytes`; none where the form is not right. Nothing is known of the signature.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; ANNOUNCEMENT_BYTES] = bytes.try_into().ok()?;
        let lengths = [
            (7, 32),
            (41, 32),
            (75, 1),
            (78, 4),
            (84, 8),
            (94, 8),
            (104, 32),
        ];
        let is_right = |&(at, length): &(usize, u8)| bytes[at..at + 2] == [0, length];
        if !bytes.starts_with(PREFIX) || !lengths.iter().all(is_right) {
            return None;
        }
        let mut read = Self {
            destination: Destination::Node(NodeId(0)),
            origin: NodeId(0),
            bytes,
        };
        read.origin = hash::node_id(&read.node_key());
        read.destination = destination_of(read.origin, read.subnet(), bytes[77])?;
        Some(read)
    }

    fn part<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|i| self.bytes[at + i])
    }

    /// Where it leads.
    #[must_use]
    pub const fn destination(&self) -> Destination {
        self.destination
    }

    /// The node that says it.
    #[must_use]
    pub const fn origin(&self) -> NodeId {
        self.origin
    }

    /// Whose word it is, as it says.
    #[must_use]
    pub fn speaker(&self) -> Speaker {
        Speaker {
            node_key: self.node_key(),
            entity_key: self.entity_key(),
            subnet: self.subnet(),
        }
    }

    /// That node's X25519 public key.
    #[must_use]
    pub fn node_key(&self) -> [u8; 32] {
        self.part(9)
    }

    /// Whose signature is on it.
    #[must_use]
    pub fn entity_key(&self) -> [u8; 32] {
        self.part(43)
    }

    /// The node's subnet.
    #[must_use]
    pub fn subnet(&self) -> Subnet {
        Subnet(u32::from_be_bytes(self.part(80)))
    }

    /// A higher one counts.
    #[must_use]
    pub fn seqno(&self) -> u64 {
        u64::from_be_bytes(self.part(86))
    }

    /// Until when, exclusive, in Unix seconds.
    #[must_use]
    pub fn not_after_s(&self) -> u64 {
        u64::from_be_bytes(self.part(96))
    }

    /// The mesh that it is said in, see [`network`].
    #[must_use]
    pub fn network(&self) -> [u8; 32] {
        self.part(106)
    }

    /// What was signed.
    #[must_use]
    pub fn signed(&self) -> &[u8] {
        &self.bytes[..SIGNED_BYTES]
    }

    /// The signature.
    #[must_use]
    pub fn signature(&self) -> [u8; SIGNATURE_BYTES] {
        self.part(SIGNED_BYTES)
    }

    /// All of it.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; ANNOUNCEMENT_BYTES] {
        &self.bytes
    }
}
