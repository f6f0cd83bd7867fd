//! The route of every destination: lines of 64 bytes, so that a look-up in memory too large for any cache
//! waits for one of them, rarely for two.
//!
//! ```text
//! word 0-5   six node ids
//! word 6     routes of the first four: 16 bits each, lowest first; a route's number and one, 0 is none
//! word 7     routes of the last two, 32 bits of 0
//! ```
//!
//! A node id has two lines (Pagh, Rodler: Cuckoo Hashing; lines of several: Dietzfelbinger, Weidling), of which
//! the second holds it only where the first was full. At most half of all entries are used, far below the
//! 0.99 at which placing fails with lines of six; who picks ids does not know the key.

use crate::{
    header::NodeId,
    limits::{DESTINATION_LINES_MIN, DESTINATIONS_PER_LINE},
};

/// Eight words, see the module.
pub type Line = [u64; 8];

/// Entries of a line.
pub const ENTRIES: usize = 6;
const BITS: usize = 16;
const ROUTE: u64 = (1 << BITS) - 1;

/// Lines that so many destinations are promised a place in.
#[must_use]
pub const fn lines_for(destinations: u32) -> u32 {
    let lines = destinations.div_ceil(DESTINATIONS_PER_LINE);
    if lines < DESTINATION_LINES_MIN {
        DESTINATION_LINES_MIN
    } else {
        lines
    }
}

/// The two lines that a node id may be in, of `lines`. The mixing is that of MurmurHash3 (Appleby).
#[inline(always)]
#[must_use]
pub const fn lines_of(key: u64, lines: u32, id: NodeId) -> [u32; 2] {
    let mut h = id.0 ^ key;
    h = (h ^ h >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ h >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^= h >> 33;
    [scaled(h & 0xffff_ffff, lines), scaled(h >> 32, lines)]
}

/// 32 bits of hash as a number below `lines`.
#[inline(always)]
const fn scaled(hash: u64, lines: u32) -> u32 {
    ((hash * lines as u64) >> 32) as u32
}

/// What entry `n` stores of its route: the number and one, or 0 where the entry is unused.
#[inline(always)]
const fn stored(line: &Line, n: usize) -> u32 {
    (line[ENTRIES + n / 4] >> (BITS * (n % 4)) & ROUTE) as u32
}

/// The number of the route in entry `n`, if that is used.
#[inline(always)]
#[must_use]
pub const fn route(line: &Line, n: usize) -> Option<u32> {
    stored(line, n).checked_sub(1)
}

/// What a line stores of the route to a node: its number and one, or 0 where it has none.
#[inline(always)]
#[must_use]
pub fn find(line: &Line, id: NodeId) -> u32 {
    for n in 0..ENTRIES {
        if line[n] == id.0 && stored(line, n) != 0 {
            return stored(line, n);
        }
    }
    0
}

/// Names the route in entry `n`.
#[cfg(not(target_arch = "bpf"))]
pub(crate) fn set_route(line: &mut Line, n: usize, number: Option<u32>) {
    let (word, shift) = (ENTRIES + n / 4, BITS * (n % 4));
    let stored = number.map_or(0, |number| u64::from(number) + 1);
    debug_assert!(stored <= ROUTE, "limits.rs keeps route numbers below");
    line[word] = line[word] & !(ROUTE << shift) | stored << shift;
}
