//! Names as the wire carries them: keyed, domain-separated BLAKE2s (RFC 7693), host side only.
//!
//! | value | key | message | kept |
//! |---|---|---|---|
//! | [`origin_hash`] | `virga origin v1` | ed25519 public key, 32 bytes | first 8 bytes |
//! | [`node_id`] | `virga node v1` | X25519 public key, 32 bytes | first 8 bytes |
//! | [`channel_hash`] | `virga channel v1` | salt (4 bytes, big-endian) and full name | first 2 bytes, 0 becoming 1 |

use crate::header::{ChannelHash, NodeId, OriginHash};
use blake2::{
    Blake2sMac256,
    digest::{FixedOutput, KeyInit, Update},
};

/// BLAKE2s-256 keyed with `domain` over the parts of `message` in order.
///
/// # Panics
/// When `domain` is longer than 32 bytes, BLAKE2s's largest key: a bug of the caller.
#[must_use]
pub fn keyed(domain: &[u8], message: &[&[u8]]) -> [u8; 32] {
    let mut mac = match <Blake2sMac256 as KeyInit>::new_from_slice(domain) {
        Ok(mac) => mac,
        Err(_) => panic!("a BLAKE2s key holds at most 32 bytes, not {}", domain.len()),
    };
    for part in message {
        mac.update(part);
    }
    mac.finalize_fixed().into()
}

/// What the header calls an entity.
#[must_use]
pub fn origin_hash(ed25519_public_key: &[u8; 32]) -> OriginHash {
    OriginHash(first_8(keyed(b"virga origin v1", &[ed25519_public_key])))
}

/// What the header calls a node.
#[must_use]
pub fn node_id(x25519_public_key: &[u8; 32]) -> NodeId {
    NodeId(first_8(keyed(b"virga node v1", &[x25519_public_key])))
}

/// What the header calls a channel. 0 stays free for a member's own control traffic.
#[must_use]
pub fn channel_hash(salt: u32, name: &str) -> ChannelHash {
    let hash = keyed(b"virga channel v1", &[&salt.to_be_bytes(), name.as_bytes()]);
    ChannelHash(u16::from_be_bytes([hash[0], hash[1]]).max(1))
}

const fn first_8(hash: [u8; 32]) -> u64 {
    u64::from_be_bytes([
        hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7],
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published vectors: made once with Python's `hashlib.blake2s(message, key=domain)`.
    #[test]
    fn published_vectors() {
        let key: [u8; 32] = core::array::from_fn(|i| u8::try_from(i).unwrap());
        assert_eq!(origin_hash(&key).0, ORIGIN_VECTOR);
        assert_eq!(node_id(&key).0, NODE_VECTOR);
        assert_eq!(channel_hash(0, "metrics/edge-a").0, CHANNEL_VECTOR);
        assert_eq!(channel_hash(1, "metrics/edge-a").0, CHANNEL_SALTED_VECTOR);
    }

    const ORIGIN_VECTOR: u64 = 0xaad9_0796_a543_3828;
    const NODE_VECTOR: u64 = 0x47da_1799_bfde_12dd;
    const CHANNEL_VECTOR: u16 = 0x727e;
    const CHANNEL_SALTED_VECTOR: u16 = 0xf05a;

    #[test]
    fn no_name_hashes_to_the_control_channel() {
        let zero = (0u32..1_000_000).find(|&salt| {
            let h = keyed(b"virga channel v1", &[&salt.to_be_bytes(), b"a"]);
            h[0] == 0 && h[1] == 0
        });
        let salt = zero.expect("one in 65,536 salts gives zero");
        assert_eq!(channel_hash(salt, "a").0, 1);
    }
}
