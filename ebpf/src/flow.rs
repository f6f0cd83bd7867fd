//! The flow cache: what guard, policy and route decided together for one flow.

#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes and clocks are cut to slots and ticks on purpose"
)]

use crate::{
    header::Fields,
    limits::{FLOW_SLOTS, NEXT_HOPS_MAX, SEEN_TICK_SHIFT},
};

/// One slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// [`crate::tables::Settings::generation`] when it was decided; 0 in an empty slot.
    pub generation: u64,
    /// The header's words of origin, of destination, and of subprotocol, channel and subnet.
    pub header: [u64; 3],
    /// Its ingress neighbour.
    pub neighbour: u32,
    /// Number of its route, or [`crate::tables::ROUTE_LOCAL`]; never [`crate::tables::ROUTE_NONE`].
    pub route: u32,
    /// Number of that route's primary next hop; [`Flow::NO_HOP`] where there is none.
    pub primary: u16,
    /// 1 if the channel has a rate.
    pub rated: u16,
    /// The tick in which its verdict ends, or [`Flow::NO_END`].
    pub until: u32,
}

impl Flow {
    /// In place of a next hop's number: there is none.
    pub const NO_HOP: u16 = u16::MAX;
    /// In place of a tick: only another generation ends it.
    pub const NO_END: u32 = u32::MAX;

    /// The tick of a time; all times after the first 36 years have the same.
    #[inline(always)]
    #[must_use]
    pub const fn tick(ns: u64) -> u32 {
        let tick = ns >> SEEN_TICK_SHIFT;
        if tick < Self::NO_END as u64 {
            tick as u32
        } else {
            Self::NO_END - 1
        }
    }

    /// What the header says of a packet's flow.
    #[inline(always)]
    #[must_use]
    pub fn words<H: Fields>(header: &H) -> [u64; 3] {
        [header.word(3), header.word(2), header.word(1)]
    }

    /// Whether it is the packet's flow, decided in this generation.
    #[inline(always)]
    #[must_use]
    pub fn is_of<H: Fields>(&self, generation: u64, header: &H, neighbour: u32) -> bool {
        let [a, b, c] = self.header;
        let [origin, destination, rest] = Self::words(header);
        let differs = (a ^ origin)
            | (b ^ destination)
            | (c ^ rest)
            | (self.generation ^ generation)
            | (self.neighbour ^ neighbour) as u64;
        differs == 0
    }

    /// The slot of a packet's flow.
    #[inline(always)]
    #[must_use]
    pub fn slot<H: Fields>(key: u64, header: &H) -> u32 {
        let to = (key ^ header.destination().0).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let from = header.origin_hash().0 ^ header.word(1);
        let h = (to ^ from).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (h >> 40) as u32 & (FLOW_SLOTS - 1)
    }
}

const _: () = assert!(NEXT_HOPS_MAX <= Flow::NO_HOP as u32);
const _: () = assert!(size_of::<Flow>() == 48);
