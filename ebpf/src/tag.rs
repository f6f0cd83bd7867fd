//! The link tag: who put a packet on the link between two neighbours.
//!
//! It is SipHash-1-3 (Aumasson, Bernstein: "SipHash: a fast short-input PRF"; the variant with one round a
//! word and three at the end) over the header's first 56 bytes as they are sent on that link, under a key
//! that only the two neighbours know, one a link and direction. The receiver chooses the keys. It holds two,
//! told apart by the tag's first bit, so that the next one is in place before the sender turns to it.
//!
//! A tag says nothing of who made the packet, and covers no payload: that is the AEAD's, at the end nodes.
//! A packet that was seen on a link can be sent there again as it is, as long as its key is in use: then it
//! is a duplicate to whoever forwards it, and a replay to the session that it is for.

use crate::header::{Fields, Header};

/// Words that a tag covers: the header without the tag itself.
pub const WORDS: usize = 7;
/// Where the key's parity is in a tag.
const PARITY_SHIFT: u32 = 63;

/// Key of the tags on one link in one direction.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TagKey(pub [u64; 2]);

impl TagKey {
    /// From SipHash's 16 key bytes.
    #[must_use]
    pub const fn from_bytes(b: &[u8; 16]) -> Self {
        Self([
            u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            u64::from_le_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
        ])
    }

    /// SipHash's 16 key bytes.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        let Self([a, b]) = self;
        ((b as u128) << 64 | a as u128).to_le_bytes()
    }
}

impl core::fmt::Debug for TagKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("TagKey(..)")
    }
}

/// SipHash's state.
#[derive(Clone, Copy)]
struct State([u64; 4]);

impl State {
    #[inline(always)]
    const fn new(TagKey([k0, k1]): &TagKey) -> Self {
        Self([
            *k0 ^ 0x736f_6d65_7073_6575,
            *k1 ^ 0x646f_7261_6e64_6f6d,
            *k0 ^ 0x6c79_6765_6e65_7261,
            *k1 ^ 0x7465_6462_7974_6573,
        ])
    }

    #[inline(always)]
    const fn round(self) -> Self {
        let Self([v0, v1, v2, v3]) = self;
        let v0 = v0.wrapping_add(v1);
        let v2 = v2.wrapping_add(v3);
        let v1 = v1.rotate_left(13) ^ v0;
        let v3 = v3.rotate_left(16) ^ v2;
        let v0 = v0.rotate_left(32).wrapping_add(v3);
        let v2 = v2.wrapping_add(v1);
        let v1 = v1.rotate_left(17) ^ v2;
        let v3 = v3.rotate_left(21) ^ v0;
        Self([v0, v1, v2.rotate_left(32), v3])
    }

    /// One word of the message, with one round.
    #[inline(always)]
    const fn take(self, word: u64) -> Self {
        let Self([v0, v1, v2, v3]) = self;
        let Self([v0, v1, v2, v3]) = Self([v0, v1, v2, v3 ^ word]).round();
        Self([v0 ^ word, v1, v2, v3])
    }

    /// The hash, after three rounds.
    #[inline(always)]
    const fn finish(self) -> u64 {
        let Self([v0, v1, v2, v3]) = self;
        let Self([v0, v1, v2, v3]) = Self([v0, v1, v2 ^ 0xff, v3]).round().round().round();
        v0 ^ v1 ^ v2 ^ v3
    }
}

/// SipHash-1-3 of 56 bytes, given as little-endian words.
#[inline(always)]
const fn hash(key: &TagKey, words: &[u64; WORDS]) -> u64 {
    let [a, b, c, d, e, f, g] = *words;
    let state = State::new(key).take(a).take(b).take(c).take(d);
    let state = state.take(e).take(f).take(g);
    // The last word ends in the message's length.
    state.take((WORDS as u64 * 8) << 56).finish()
}

/// The tag of a header, whatever it carries as one, under the key of `parity` (its lowest bit).
#[inline(always)]
#[must_use]
pub const fn link_tag(keys: &[TagKey; 2], parity: u64, header: &Header) -> u64 {
    link_tag_of(keys, parity, &header.words())
}

/// The same of the header's words.
#[inline(always)]
#[must_use]
pub const fn link_tag_of(keys: &[TagKey; 2], parity: u64, words: &[u64; WORDS]) -> u64 {
    let parity = parity & 1;
    let hash = hash(&keys[parity as usize], words);
    hash & !(1 << PARITY_SHIFT) | parity << PARITY_SHIFT
}

/// Whether a header carries the tag that it must have.
#[inline(always)]
#[must_use]
pub fn is_right<H: Fields>(keys: &[TagKey; 2], header: &H) -> bool {
    let tag = header.link_tag();
    link_tag_of(keys, tag >> PARITY_SHIFT, &header.words()) == tag
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{header::NodeId, limits::HEADER_BYTES};

    /// The key of SipHash's reference vectors: the bytes 0 to 15.
    const KEY: TagKey = TagKey::from_bytes(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);

    /// SipHash-1-3 of a message of any length, padded as its paper says.
    fn padded(message: &[u8]) -> u64 {
        let mut state = State::new(&KEY);
        let (words, rest) = message.as_chunks();
        for word in words {
            state = state.take(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        last[7] = u8::try_from(message.len() & 0xff).unwrap();
        state.take(u64::from_le_bytes(last)).finish()
    }

    fn counted() -> [u8; HEADER_BYTES] {
        core::array::from_fn(|i| u8::try_from(i).unwrap())
    }

    #[test]
    fn the_reference_vectors_of_siphash_1_3() {
        // Key 00..0f, message 00, 01, ...: as Rust's standard library and the siphasher crate test them.
        let message = counted();
        for (bytes, expected) in [
            (0, [0xdc, 0xc4, 0x0f, 0x05, 0x58, 0x01, 0xac, 0xab]),
            (15, [0x56, 0x99, 0x51, 0x2a, 0x6d, 0xd8, 0x20, 0xd3]),
            (56, [0x75, 0x6d, 0x3c, 0x24, 0xdb, 0xc0, 0xbc, 0xb4]),
            (63, [0xa8, 0xb3, 0xbb, 0xb7, 0x62, 0x90, 0x19, 0x9d]),
        ] {
            let got = padded(&message[..bytes]);
            assert_eq!(got, u64::from_le_bytes(expected), "{bytes}");
        }
    }

    #[test]
    fn a_tag_is_the_vector_of_56_bytes_behind_its_parity() {
        let header = Header::decode(&counted());
        let vector = u64::from_le_bytes([0x75, 0x6d, 0x3c, 0x24, 0xdb, 0xc0, 0xbc, 0xb4]);
        let keys = [TagKey::default(), KEY];
        assert_eq!(link_tag(&keys, 1, &header), vector | 1 << 63);
        let keys = [KEY, TagKey::default()];
        assert_eq!(link_tag(&keys, 0, &header), vector & !(1 << 63));
    }

    #[test]
    fn any_changed_bit_is_noticed_and_so_is_the_other_key() {
        let keys = [KEY, TagKey([1, 2])];
        let header = Header {
            destination: NodeId(7),
            sequence: 9,
            ..Header::default()
        };
        for parity in [0, 1] {
            let link_tag = link_tag(&keys, parity, &header);
            let right = Header { link_tag, ..header };
            assert!(is_right(&keys, &right));
            assert!(!is_right(&[keys[1], keys[0]], &right));
            for bit in 0..HEADER_BYTES * 8 {
                let mut bytes = right.encode();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(!is_right(&keys, &Header::decode(&bytes)), "{bit}");
            }
        }
        assert!(!is_right(&keys, &header), "no tag at all");
    }

    #[test]
    fn a_key_is_its_bytes_and_is_not_printed() {
        assert_eq!(KEY, TagKey([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]));
        assert_eq!(TagKey::from_bytes(&KEY.to_bytes()), KEY);
        assert_eq!(format!("{KEY:?}"), "TagKey(..)");
    }
}
