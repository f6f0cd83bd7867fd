//! The frames that nearly all are: to one host, no VLAN tag, IPv4 without options and whole or IPv6 without extension
//! headers, UDP.
//!
//! Each of their headers is at a place that the compiler knows, so that the NIC path reads a field where it needs it
//! and carries none along: it has ten registers, and what does not fit is written to memory and read again. What is
//! read and what is refused is the same as in [`crate::frame`].

#![expect(
    clippy::cast_possible_truncation,
    reason = "header sizes are small constants, a traffic class is eight bits of sixteen"
)]

use crate::{
    frame::{
        ETHERNET_BYTES, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAGMENT, IPV4_BYTES, IPV6_BYTES,
        MESH_BYTES, Outside, PROTOCOL_UDP, UDP_BYTES, ends,
    },
    header::{Within, Words},
    limits::HEADER_BYTES,
    reason::Reason,
    tables::{Address, Neighbour, Settings, Tables},
};

const IP: usize = ETHERNET_BYTES;
/// Offset of the mesh header behind IPv4.
pub const OVER_IPV4: usize = IP + IPV4_BYTES + UDP_BYTES;
/// Offset of the mesh header behind IPv6.
pub const OVER_IPV6: usize = IP + IPV6_BYTES + UDP_BYTES;

/// See the module; `MESH` is [`OVER_IPV4`] or [`OVER_IPV6`], and `W` has the first [`Plain::BYTES`] of the frame.
#[derive(Clone, Copy, Debug)]
pub struct Plain<W, const MESH: usize> {
    words: W,
    frame_bytes: usize,
}

impl<W, const MESH: usize> Plain<W, MESH> {
    /// Bytes of all headers.
    pub const BYTES: usize = MESH + HEADER_BYTES;
    const UDP: usize = MESH - UDP_BYTES;
    const IS_IPV6: bool = MESH == OVER_IPV6;
}

impl<W: Words + Copy, const MESH: usize> Plain<W, MESH> {
    /// A frame of so many bytes, if it is one of these.
    #[inline(always)]
    pub fn of(words: W, frame_bytes: usize) -> Option<Self> {
        const IPV4_AND_VERSION: u32 = (ETHERTYPE_IPV4 as u32) << 16 | 0x4500;
        const FRAGMENT_AND_PROTOCOL: u32 = (FRAGMENT as u32) << 16 | 0xff;
        const IPV6_AND_VERSION: u32 = (ETHERTYPE_IPV6 as u32) << 16 | 0x6000;
        let first = words.be32(IP - 2);
        let is_plain = words.byte(0) & 1 == 0
            && if Self::IS_IPV6 {
                first & 0xffff_f000 == IPV6_AND_VERSION && words.byte(IP + 6) == PROTOCOL_UDP
            } else {
                first & 0xffff_ff00 == IPV4_AND_VERSION
                    && words.be32(IP + 6) & FRAGMENT_AND_PROTOCOL == PROTOCOL_UDP as u32
            };
        is_plain.then_some(Self { words, frame_bytes })
    }

    /// Its first bytes.
    #[inline(always)]
    pub const fn words(&self) -> W {
        self.words
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
        if u32::from(self.words.be16(Self::UDP + 2)) != settings.port {
            return None;
        }
        let (source, target) = (self.source(), self.target());
        if Self::IS_IPV6 && (source.is_v4() || target.is_v4()) {
            return None;
        }
        let neighbour = ends(tables, settings, (ifindex, 0), source, target)?;
        Some(self.check().map(|()| neighbour))
    }

    #[inline(always)]
    fn check(&self) -> Result<(), Reason> {
        let total = self.total();
        if total < Self::UDP - IP + MESH_BYTES || IP + total > self.frame_bytes {
            return Err(Reason::Truncated);
        }
        if usize::from(self.words.be16(Self::UDP + 4)) != total - (Self::UDP - IP) {
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
        if Self::IS_IPV6 {
            IPV6_BYTES + usize::from(self.words.be16(IP + 4))
        } else {
            usize::from(self.words.be16(IP + 2))
        }
    }

    #[inline(always)]
    fn source(&self) -> Address {
        self.address(IP + if Self::IS_IPV6 { 8 } else { 12 })
    }

    #[inline(always)]
    fn target(&self) -> Address {
        self.address(IP + if Self::IS_IPV6 { 24 } else { 16 })
    }

    #[inline(always)]
    fn address(&self, at: usize) -> Address {
        if Self::IS_IPV6 {
            let (high, low) = (self.words.be64(at), self.words.be64(at + 8));
            Address { high, low }
        } else {
            Address::v4(self.words.be32(at).to_be_bytes())
        }
    }
}

impl<W: Words + Copy, const MESH: usize> Outside for Plain<W, MESH> {
    #[inline(always)]
    fn mesh(&self) -> usize {
        MESH
    }
    #[inline(always)]
    fn ends_sum(&self) -> u64 {
        // Both ports are one word: its halves count the same.
        let word = |at| u64::from(self.words.be32(at));
        let ports = word(Self::UDP);
        if Self::IS_IPV6 {
            self.source().sum() + self.target().sum() + ports
        } else {
            word(IP + 12) + word(IP + 16) + ports
        }
    }
    #[inline(always)]
    fn checksum(&self) -> u16 {
        self.words.be16(Self::UDP + 6)
    }
    #[inline(always)]
    fn traffic_class(&self) -> u8 {
        if Self::IS_IPV6 {
            (self.words.be16(IP) >> 4) as u8
        } else {
            self.words.byte(IP + 1)
        }
    }
    #[inline(always)]
    fn udp_payload_bytes(&self) -> u16 {
        self.words
            .be16(Self::UDP + 4)
            .wrapping_sub(UDP_BYTES as u16)
    }
    #[inline(always)]
    fn trailing(&self) -> usize {
        self.frame_bytes - IP - self.total()
    }
}
