//! One sealed packet, and the key that seals and opens it.

use virga_ebpf::{
    header::Header,
    limits::{HEADER_BYTES, TAG_BYTES},
};
use virga_transport::keys::{PacketKey, Role};

use crate::world;

/// A packet that `key` has sealed.
pub struct Sealed {
    /// Seals and opens: one direction has one key.
    pub key: PacketKey,
    /// The packet's header.
    pub header: [u8; HEADER_BYTES],
    /// Number that it was sealed with.
    pub sequence: u64,
    /// Header, sealed payload, tag.
    pub packet: Vec<u8>,
}

impl Sealed {
    /// A packet with a payload of so many bytes. Panics above what a header can say.
    #[must_use]
    pub fn new(payload_bytes: usize) -> Self {
        let sequence = 1;
        let header = Header {
            sequence,
            payload_len: u16::try_from(payload_bytes + TAG_BYTES).expect("a packet's size"),
            ..world::header()
        }
        .encode();
        let key = PacketKey::new(&[7; 32], Role::Initiator);
        let mut packet = header.to_vec();
        packet.resize(HEADER_BYTES + payload_bytes, 0x5a);
        packet.resize(HEADER_BYTES + payload_bytes + TAG_BYTES, 0);
        key.seal(sequence, &mut packet);
        Self {
            key,
            header,
            sequence,
            packet,
        }
    }

    /// Opens what follows the header, in place, and gives the bytes of the clear payload. Panics where
    /// it is not what was sealed.
    pub fn open(&self, sealed: &mut [u8]) -> usize {
        match self.key.open(&self.header, self.sequence, sealed) {
            Ok(clear) => clear.len(),
            Err(forged) => panic!("{forged:?}"),
        }
    }
}
