//! The mesh header: 64 bytes, one cache line, big-endian.
//!
//! ```text
//!        0       1       2       3       4       5       6       7
//!    +-------+-------+-------+-------+-------+-------+-------+-------+
//!  0 |     magic     |version| flags |priorit|hop_lim|hop_cnt|key_pha|
//!    +---------------+-------+-------+-------+-------+-------+-------+
//!  8 |  subprotocol  | channel_hash  |            subnet             |
//!    +---------------+---------------+-------------------------------+
//! 16 |                          destination                          |
//!    +---------------------------------------------------------------+
//! 24 |                          origin_hash                          |
//!    +---------------------------------------------------------------+
//! 32 |                          session_id                           |
//!    +-------------------------------+---------------+---------------+
//! 40 |           stream_id           |  payload_len  |  event_count  |
//!    +-------------------------------+---------------+---------------+
//! 48 |                           sequence                            |
//!    +---------------------------------------------------------------+
//! 56 |                           link_tag                            |
//!    +---------------------------------------------------------------+
//! ```
//!
//! `hop_limit`, `hop_count` and `link_tag` change in flight; everything else is authenticated end
//! to end as the AEAD's associated data ([`Header::associated_data`]). A forwarder cannot
//! authenticate any of it: `origin_hash` and `channel_hash` are filters, not proof.

use crate::limits::{HEADER_BYTES, HOP_LIMIT_MAX, PRIORITY_MAX};

/// First two bytes of every mesh packet: `VR`.
pub const MAGIC: u16 = 0x5652;
/// The only header version there is.
pub const VERSION: u8 = 1;
/// Priority of control traffic, the highest class.
pub const PRIORITY_CONTROL: u8 = 7;

/// Byte offset of each field that is read or written in place.
pub mod offset {
    /// `hop_limit`, one byte.
    pub const HOP_LIMIT: usize = 5;
    /// `hop_count`, one byte.
    pub const HOP_COUNT: usize = 6;
    /// `subprotocol`, two bytes.
    pub const SUBPROTOCOL: usize = 8;
    /// `channel_hash`, two bytes.
    pub const CHANNEL_HASH: usize = 10;
    /// `subnet`, four bytes.
    pub const SUBNET: usize = 12;
    /// `destination`, eight bytes.
    pub const DESTINATION: usize = 16;
    /// `origin_hash`, eight bytes.
    pub const ORIGIN_HASH: usize = 24;
    /// `session_id`, eight bytes.
    pub const SESSION_ID: usize = 32;
    /// `stream_id`, four bytes.
    pub const STREAM_ID: usize = 40;
    /// `payload_len`, two bytes.
    pub const PAYLOAD_LEN: usize = 44;
    /// `event_count`, two bytes.
    pub const EVENT_COUNT: usize = 46;
    /// `sequence`, eight bytes.
    pub const SEQUENCE: usize = 48;
    /// `link_tag`, eight bytes.
    pub const LINK_TAG: usize = 56;
}

const _: () = assert!(offset::LINK_TAG + 8 == HEADER_BYTES);
const _: () = assert!(offset::HOP_LIMIT % 2 == 1 && offset::HOP_COUNT == offset::HOP_LIMIT + 1);

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty), $width:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        #[cfg(not(target_arch = "bpf"))]
        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, concat!("{:0", $width, "x}"), self.0)
            }
        }
    };
}

newtype! {
    /// A node: keyed hash of its X25519 public key, see [`crate::hash::node_id`].
    NodeId(u64), "16"
}
newtype! {
    /// A sending entity: keyed hash of its ed25519 public key, see [`crate::hash::origin_hash`].
    OriginHash(u64), "16"
}
newtype! {
    /// A channel: keyed hash of its salt and full name; 0 is a member's own control traffic.
    ChannelHash(u16), "4"
}
newtype! {
    /// A session as its receiver names it; the low 8 bits name the owning worker.
    SessionId(u64), "16"
}
newtype! {
    /// A stream within a session; 0 is the session's control stream.
    StreamId(u32), "8"
}
newtype! {
    /// A subnet: four levels of 8 bits, most significant first.
    Subnet(u32), "8"
}

/// Bits of the `flags` byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Flags(pub u8);

impl Flags {
    /// No flag set.
    pub const NONE: Self = Self(0);
    /// A handshake, cookie or reset message: the payload starts with a clear prefix.
    pub const HANDSHAKE: Self = Self(1);
    /// The session's own control traffic.
    pub const CONTROL: Self = Self(1 << 1);
    /// Lost data of this stream travels again.
    pub const RELIABLE: Self = Self(1 << 2);
    /// The sender closes the session with this packet.
    pub const FIN: Self = Self(1 << 3);
    /// An echo: a header alone whose destination is its sender, given to a neighbour so that this sends it back;
    /// see [`crate::tables::Echo`].
    pub const ECHO: Self = Self(1 << 4);

    /// Whether every bit of `other` is set in `self`.
    #[inline(always)]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One mesh header, decoded. [`Header::decode`] and [`Header::encode`] are each other's inverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// [`MAGIC`], or the packet is not a mesh packet.
    pub magic: u16,
    /// [`VERSION`].
    pub version: u8,
    /// What kind of packet this is.
    pub flags: Flags,
    /// Class 0 to 7; 7 is control.
    pub priority: u8,
    /// Hops left; changes in flight, clamped to [`HOP_LIMIT_MAX`] by forwarders.
    pub hop_limit: u8,
    /// Hops made; changes in flight, decides nothing.
    pub hop_count: u8,
    /// Low byte of the session's key epoch.
    pub key_phase: u8,
    /// Registry number of what the payload carries; data is 0.
    pub subprotocol: u16,
    /// Which channel the packet claims.
    pub channel_hash: ChannelHash,
    /// The sender's subnet.
    pub subnet: Subnet,
    /// The node that shall open the packet.
    pub destination: NodeId,
    /// The entity that claims to have sent it.
    pub origin_hash: OriginHash,
    /// Chosen by the receiver; 0 in a first handshake message.
    pub session_id: SessionId,
    /// Stream within the session.
    pub stream_id: StreamId,
    /// Bytes after the header, AEAD tag included.
    pub payload_len: u16,
    /// Events batched in this packet.
    pub event_count: u16,
    /// Packet number: one counter a session direction, never reused.
    pub sequence: u64,
    /// 0, or the tag between two neighbours; changes in flight.
    pub link_tag: u64,
}

impl Default for Header {
    fn default() -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            flags: Flags::NONE,
            priority: 0,
            hop_limit: HOP_LIMIT_MAX,
            hop_count: 0,
            key_phase: 0,
            subprotocol: 0,
            channel_hash: ChannelHash(0),
            subnet: Subnet(0),
            destination: NodeId(0),
            origin_hash: OriginHash(0),
            session_id: SessionId(0),
            stream_id: StreamId(0),
            payload_len: 0,
            event_count: 0,
            sequence: 0,
            link_tag: 0,
        }
    }
}

impl Header {
    /// Reads every field; checks nothing, see [`crate::decide::check`].
    #[inline(always)]
    #[must_use]
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        bytes.decoded()
    }

    /// The 64 bytes of the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut b = [0; HEADER_BYTES];
        b[0..2].copy_from_slice(&self.magic.to_be_bytes());
        b[2] = self.version;
        b[3] = self.flags.0;
        b[4] = self.priority;
        b[offset::HOP_LIMIT] = self.hop_limit;
        b[offset::HOP_COUNT] = self.hop_count;
        b[7] = self.key_phase;
        b[8..10].copy_from_slice(&self.subprotocol.to_be_bytes());
        b[10..12].copy_from_slice(&self.channel_hash.0.to_be_bytes());
        b[12..16].copy_from_slice(&self.subnet.0.to_be_bytes());
        b[16..24].copy_from_slice(&self.destination.0.to_be_bytes());
        b[24..32].copy_from_slice(&self.origin_hash.0.to_be_bytes());
        b[32..40].copy_from_slice(&self.session_id.0.to_be_bytes());
        b[40..44].copy_from_slice(&self.stream_id.0.to_be_bytes());
        b[44..46].copy_from_slice(&self.payload_len.to_be_bytes());
        b[46..48].copy_from_slice(&self.event_count.to_be_bytes());
        b[48..56].copy_from_slice(&self.sequence.to_be_bytes());
        b[56..64].copy_from_slice(&self.link_tag.to_be_bytes());
        b
    }

    /// The first 56 bytes of the wire, all but the link tag, as seven words in little-endian order.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 7] {
        let first = (self.magic as u64) << 48
            | (self.version as u64) << 40
            | (self.flags.0 as u64) << 32
            | (self.priority as u64) << 24
            | (self.hop_limit as u64) << 16
            | (self.hop_count as u64) << 8
            | self.key_phase as u64;
        let channel = (self.subprotocol as u64) << 48
            | (self.channel_hash.0 as u64) << 32
            | self.subnet.0 as u64;
        let payload = (self.stream_id.0 as u64) << 32
            | (self.payload_len as u64) << 16
            | self.event_count as u64;
        [
            first.swap_bytes(),
            channel.swap_bytes(),
            self.destination.0.swap_bytes(),
            self.origin_hash.0.swap_bytes(),
            self.session_id.0.swap_bytes(),
            payload.swap_bytes(),
            self.sequence.swap_bytes(),
        ]
    }

    /// The header as both ends authenticate it: `hop_limit`, `hop_count` and `link_tag` zeroed.
    #[must_use]
    pub fn associated_data(bytes: &[u8; HEADER_BYTES]) -> [u8; HEADER_BYTES] {
        let mut b = *bytes;
        b[offset::HOP_LIMIT] = 0;
        b[offset::HOP_COUNT] = 0;
        b[offset::LINK_TAG..].fill(0);
        b
    }

    /// Whether this is a handshake, cookie or reset message.
    #[inline(always)]
    pub const fn is_handshake(&self) -> bool {
        self.flags.contains(Flags::HANDSHAKE)
    }

    /// Whether this is what a node sends to itself by way of a neighbour.
    #[inline(always)]
    pub const fn is_echo(&self) -> bool {
        self.flags.contains(Flags::ECHO)
    }
}

/// Bytes that are read a word at a time, at places that the caller knows to be there.
pub trait Words {
    /// One byte.
    fn byte(&self, at: usize) -> u8;
    /// Two bytes, big-endian.
    fn be16(&self, at: usize) -> u16;
    /// Four bytes, big-endian.
    fn be32(&self, at: usize) -> u32;
    /// Eight bytes, little-endian.
    fn le64(&self, at: usize) -> u64;
    /// Eight bytes, big-endian.
    #[inline(always)]
    fn be64(&self, at: usize) -> u64 {
        self.le64(at).swap_bytes()
    }
}

impl<const N: usize> Words for [u8; N] {
    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        self[at]
    }
    #[inline(always)]
    fn be16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self[at], self[at + 1]])
    }
    #[inline(always)]
    fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes([self[at], self[at + 1], self[at + 2], self[at + 3]])
    }
    #[inline(always)]
    fn le64(&self, at: usize) -> u64 {
        u64::from_le_bytes([
            self[at],
            self[at + 1],
            self[at + 2],
            self[at + 3],
            self[at + 4],
            self[at + 5],
            self[at + 6],
            self[at + 7],
        ])
    }
}

impl<W: Words + ?Sized> Words for &W {
    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        (**self).byte(at)
    }
    #[inline(always)]
    fn be16(&self, at: usize) -> u16 {
        (**self).be16(at)
    }
    #[inline(always)]
    fn be32(&self, at: usize) -> u32 {
        (**self).be32(at)
    }
    #[inline(always)]
    fn le64(&self, at: usize) -> u64 {
        (**self).le64(at)
    }
}

/// The bytes from `AT` on.
#[derive(Clone, Copy, Debug)]
pub struct Within<W, const AT: usize>(pub W);

impl<W: Words, const AT: usize> Words for Within<W, AT> {
    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        self.0.byte(AT + at)
    }
    #[inline(always)]
    fn be16(&self, at: usize) -> u16 {
        self.0.be16(AT + at)
    }
    #[inline(always)]
    fn be32(&self, at: usize) -> u32 {
        self.0.be32(AT + at)
    }
    #[inline(always)]
    fn le64(&self, at: usize) -> u64 {
        self.0.le64(AT + at)
    }
}

/// A header, decoded or as bytes. What is asked of bytes is read where it is asked for: the NIC path has few registers,
/// and most packets are decided on by few fields.
pub trait Fields {
    /// [`Header::magic`].
    fn magic(&self) -> u16;
    /// [`Header::version`].
    fn version(&self) -> u8;
    /// [`Header::flags`].
    fn flags(&self) -> Flags;
    /// [`Header::priority`].
    fn priority(&self) -> u8;
    /// [`Header::hop_limit`].
    fn hop_limit(&self) -> u8;
    /// [`Header::hop_count`].
    fn hop_count(&self) -> u8;
    /// [`Header::key_phase`].
    fn key_phase(&self) -> u8;
    /// [`Header::subprotocol`].
    fn subprotocol(&self) -> u16;
    /// [`Header::channel_hash`].
    fn channel_hash(&self) -> ChannelHash;
    /// [`Header::subnet`].
    fn subnet(&self) -> Subnet;
    /// [`Header::destination`].
    fn destination(&self) -> NodeId;
    /// [`Header::origin_hash`].
    fn origin_hash(&self) -> OriginHash;
    /// [`Header::session_id`].
    fn session_id(&self) -> SessionId;
    /// [`Header::stream_id`].
    fn stream_id(&self) -> StreamId;
    /// [`Header::payload_len`].
    fn payload_len(&self) -> u16;
    /// [`Header::event_count`].
    fn event_count(&self) -> u16;
    /// [`Header::sequence`].
    fn sequence(&self) -> u64;
    /// [`Header::link_tag`].
    fn link_tag(&self) -> u64;

    /// The header's eight bytes from `8 * n` on, in little-endian order; not the link tag.
    fn word(&self, n: usize) -> u64;

    /// The same of all: what a link tag covers.
    #[inline(always)]
    fn words(&self) -> [u64; 7] {
        [
            self.word(0),
            self.word(1),
            self.word(2),
            self.word(3),
            self.word(4),
            self.word(5),
            self.word(6),
        ]
    }
    /// Whether magic, version and priority are such as a packet must have.
    #[inline(always)]
    fn starts_well(&self) -> bool {
        const MASK: u64 = u64::from_le_bytes([0xff, 0xff, 0xff, 0, !PRIORITY_MAX, 0, 0, 0]);
        const RIGHT: u64 = {
            let [high, low] = MAGIC.to_be_bytes();
            u64::from_le_bytes([high, low, VERSION, 0, 0, 0, 0, 0])
        };
        self.word(0) & MASK == RIGHT
    }
    /// All of them.
    #[inline(always)]
    fn decoded(&self) -> Header {
        Header {
            magic: self.magic(),
            version: self.version(),
            flags: self.flags(),
            priority: self.priority(),
            hop_limit: self.hop_limit(),
            hop_count: self.hop_count(),
            key_phase: self.key_phase(),
            subprotocol: self.subprotocol(),
            channel_hash: self.channel_hash(),
            subnet: self.subnet(),
            destination: self.destination(),
            origin_hash: self.origin_hash(),
            session_id: self.session_id(),
            stream_id: self.stream_id(),
            payload_len: self.payload_len(),
            event_count: self.event_count(),
            sequence: self.sequence(),
            link_tag: self.link_tag(),
        }
    }
}

macro_rules! fields {
    ($($name:ident: $kind:ty = |$b:ident| $read:expr),* $(,)?) => {
        impl Fields for Header {
            $(#[inline(always)]
            fn $name(&self) -> $kind {
                self.$name
            })*
            #[inline(always)]
            fn word(&self, n: usize) -> u64 {
                Self::words(self)[n]
            }
            #[inline(always)]
            fn starts_well(&self) -> bool {
                self.magic == MAGIC && self.version == VERSION && self.priority <= PRIORITY_MAX
            }
        }

        impl<W: Words> Fields for W {
            $(#[inline(always)]
            fn $name(&self) -> $kind {
                let $b = self;
                $read
            })*
            #[inline(always)]
            fn word(&self, n: usize) -> u64 {
                self.le64(8 * n)
            }
        }
    };
}
fields! {
    magic: u16 = |b| b.be16(0),
    version: u8 = |b| b.byte(2),
    flags: Flags = |b| Flags(b.byte(3)),
    priority: u8 = |b| b.byte(4),
    hop_limit: u8 = |b| b.byte(offset::HOP_LIMIT),
    hop_count: u8 = |b| b.byte(offset::HOP_COUNT),
    key_phase: u8 = |b| b.byte(7),
    subprotocol: u16 = |b| b.be16(offset::SUBPROTOCOL),
    channel_hash: ChannelHash = |b| ChannelHash(b.be16(offset::CHANNEL_HASH)),
    subnet: Subnet = |b| Subnet(b.be32(offset::SUBNET)),
    destination: NodeId = |b| NodeId(b.be64(offset::DESTINATION)),
    origin_hash: OriginHash = |b| OriginHash(b.be64(offset::ORIGIN_HASH)),
    session_id: SessionId = |b| SessionId(b.be64(offset::SESSION_ID)),
    stream_id: StreamId = |b| StreamId(b.be32(offset::STREAM_ID)),
    payload_len: u16 = |b| b.be16(offset::PAYLOAD_LEN),
    event_count: u16 = |b| b.be16(offset::EVENT_COUNT),
    sequence: u64 = |b| b.be64(offset::SEQUENCE),
    link_tag: u64 = |b| b.be64(offset::LINK_TAG),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte its own value, so that a field read from the wrong place shows.
    fn counted() -> [u8; HEADER_BYTES] {
        core::array::from_fn(|i| u8::try_from(i).unwrap())
    }

    #[test]
    fn every_field_is_where_the_drawing_says() {
        let h = Header::decode(&counted());
        assert_eq!(h.magic, 0x0001);
        assert_eq!((h.version, h.flags.0, h.priority), (2, 3, 4));
        assert_eq!((h.hop_limit, h.hop_count, h.key_phase), (5, 6, 7));
        assert_eq!(h.subprotocol, 0x0809);
        assert_eq!(h.channel_hash.0, 0x0a0b);
        assert_eq!(h.subnet.0, 0x0c0d_0e0f);
        assert_eq!(h.destination.0, 0x1011_1213_1415_1617);
        assert_eq!(h.origin_hash.0, 0x1819_1a1b_1c1d_1e1f);
        assert_eq!(h.session_id.0, 0x2021_2223_2425_2627);
        assert_eq!(h.stream_id.0, 0x2829_2a2b);
        assert_eq!((h.payload_len, h.event_count), (0x2c2d, 0x2e2f));
        assert_eq!(h.sequence, 0x3031_3233_3435_3637);
        assert_eq!(h.link_tag, 0x3839_3a3b_3c3d_3e3f);
    }

    #[test]
    fn encode_is_the_inverse_of_decode() {
        assert_eq!(Header::decode(&counted()).encode(), counted());
    }

    #[test]
    fn words_are_the_bytes_before_the_link_tag() {
        let words = Header::decode(&counted()).words();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(bytes, counted()[..offset::LINK_TAG]);
    }

    #[test]
    fn associated_data_leaves_out_what_changes_in_flight_and_nothing_else() {
        let plain = counted();
        let ad = Header::associated_data(&plain);
        let changed: Vec<usize> = (0..HEADER_BYTES).filter(|&i| ad[i] != plain[i]).collect();
        let expected: Vec<usize> = [5, 6].into_iter().chain(56..64).collect();
        assert_eq!(changed, expected);
    }
}
