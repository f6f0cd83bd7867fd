//! The frame that nearly all are: to one host, no VLAN tag, IPv4 without options and whole, UDP.
//!
//! Each of its headers is at a place that the compiler knows, so that the NIC path reads a field where it needs it
//! and carries none along: it has ten registers, and what does not fit is written to memory and read again. What is
//! read and what is refused is the same as in [`crate::frame`].

#![expect(
    clippy::cast_possible_truncation,
    reason = "header sizes are small constants"
)]

use crate::{
    frame::{
        ETHERNET_BYTES, ETHERTYPE_IPV4, FRAGMENT, IPV4_BYTES, MESH_BYTES, Outside, PROTOCOL_UDP,
        UDP_BYTES, ends,
    },
    header::{Within, Words},
    reason::Reason,
    tables::{Address, Neighbour, Settings, Tables},
};

const IP: usize = ETHERNET_BYTES;
const UDP: usize = IP + IPV4_BYTES;
const MESH: usize = UDP + UDP_BYTES;
/// Bytes of all headers.
pub const PLAIN_BYTES: usize = UDP + MESH_BYTES;

/// See the module; `W` has the first [`PLAIN_BYTES`] of the frame.
#[derive(Clone, Copy, Debug)]
pub struct Plain<W> {
    words: W,
    frame_bytes: usize,
}

impl<W: Words + Copy> Plain<W> {
    /// A frame of so many bytes, if it is one of these.
    #[inline(always)]
    pub fn of(words: W, frame_bytes: usize) -> Option<Self> {
        const ETHERTYPE_AND_VERSION: u32 = (ETHERTYPE_IPV4 as u32) << 16 | 0x4500;
        const FRAGMENT_AND_PROTOCOL: u32 = (FRAGMENT as u32) << 16 | 0xff;
        let is_plain = words.byte(0) & 1 == 0
            && words.be32(IP - 2) & 0xffff_ff00 == ETHERTYPE_AND_VERSION
            && words.be32(IP + 6) & FRAGMENT_AND_PROTOCOL == PROTOCOL_UDP as u32;
        is_plain.then_some(Self { words, frame_bytes })
    }

    /// Its mesh header, of which nothing is checked yet.
    #[inline(always)]
    pub const fn header(&self) -> Within<W, MESH> {
        Within(self.words)
    }

    /// The neighbour that it is from, if one is there. `None` is not ours.
    ///
    /// # Errors
    /// In which way it is malformed.
    #[inline(always)]
    pub fn neighbour<'t, T: Tables>(
        &self,
        tables: &'t T,
        settings: &Settings,
        ifindex: u32,
    ) -> Option<Result<Option<&'t Neighbour>, Reason>> {
        if u32::from(self.words.be16(UDP + 2)) != settings.port {
            return None;
        }
        let (source, target) = (self.address(IP + 12), self.address(IP + 16));
        let neighbour = ends(tables, settings, (ifindex, 0), source, target)?;
        Some(self.check().map(|()| neighbour))
    }

    #[inline(always)]
    fn check(&self) -> Result<(), Reason> {
        let total = self.total();
        if total < IPV4_BYTES + MESH_BYTES || IP + total > self.frame_bytes {
            return Err(Reason::Truncated);
        }
        if usize::from(self.words.be16(UDP + 4)) != total - IPV4_BYTES {
            return Err(Reason::Length);
        }
        if self.checksum() == 0 {
            return Err(Reason::ZeroChecksum);
        }
        Ok(())
    }

    /// Bytes of the IP packet.
    #[inline(always)]
    fn total(&self) -> usize {
        usize::from(self.words.be16(IP + 2))
    }

    #[inline(always)]
    fn address(&self, at: usize) -> Address {
        Address::v4(self.words.be32(at).to_be_bytes())
    }
}

impl<W: Words + Copy> Outside for Plain<W> {
    #[inline(always)]
    fn mesh(&self) -> usize {
        MESH
    }
    #[inline(always)]
    fn ends_sum(&self) -> u64 {
        // Both ports are one word: its halves count the same.
        let word = |at| u64::from(self.words.be32(at));
        word(IP + 12) + word(IP + 16) + word(UDP)
    }
    #[inline(always)]
    fn checksum(&self) -> u16 {
        self.words.be16(UDP + 6)
    }
    #[inline(always)]
    fn traffic_class(&self) -> u8 {
        self.words.byte(IP + 1)
    }
    #[inline(always)]
    fn udp_payload_bytes(&self) -> u16 {
        self.words.be16(UDP + 4).wrapping_sub(UDP_BYTES as u16)
    }
    #[inline(always)]
    fn trailing(&self) -> usize {
        self.frame_bytes - IP - self.total()
    }
}
