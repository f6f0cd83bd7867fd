//! Names as the wire carries them: keyed, domain-separated BLAKE2s (RFC 7693), host side only.
//!
//! | value | key | message | kept |
//! |---|---|---|---|
//! | [`origin_hash`] | `virga origin v1` | ed25519 public key, 32 bytes | first 8 bytes |
//! | [`node_id`] | `virga node v1` | X25519 public key, 32 bytes | first 8 bytes |
//! | [`channel_hash`] | `virga channel v1` | salt (4 bytes, big-endian) and full name | first 2 bytes, 0 becoming 1 |
//!
//! Vectors, made with Python: `hashlib.blake2s(message, key=domain).hexdigest()`, cut to what is kept.
//!
//! | function | of | value |
//! |---|---|---|
//! | `origin_hash` | `000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f` | `aad90796a5433828` |
//! | `origin_hash` | `d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a` (RFC 8032, 7.1, test 1) | `a6d660efaa258623` |
//! | `origin_hash` | `ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff` | `cb1dc10a92b1c5e2` |
//! | `node_id` | `000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f` | `47da1799bfde12dd` |
//! | `node_id` | `8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a` (RFC 7748, 6.1, Alice) | `4e926874570ba48a` |
//! | `node_id` | `ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff` | `aafdabc9fea7cebe` |
//! | `channel_hash` | `metrics/edge-a`, salt 0 | `727e` |
//! | `channel_hash` | `metrics/edge-a`, salt 1 | `f05a` |
//! | `channel_hash` | `a`, salt 0 | `244f` |
//! | `channel_hash` | `a`, salt 39503: the hash itself is 0 | `0001` |

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

    /// The table at this file's head.
    #[test]
    fn published_vectors() {
        let key = |digits: &str| -> [u8; 32] {
            core::array::from_fn(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap())
        };
        let mut vectors = 0;
        for row in include_str!("hash.rs").lines() {
            let cells: Vec<&str> = row.split(" | ").collect();
            let &["//!", function, of, value] = &cells[..] else {
                continue;
            };
            // What stands in backquotes; what follows is for people, but for a salt.
            let quoted = |cell: &str| cell.split('`').nth(1).unwrap_or_default().to_owned();
            let (of, rest) = (
                quoted(of),
                of.rsplit_once("salt ").map_or("", |(_, salt)| salt),
            );
            let is = match function {
                "`origin_hash`" => format!("{:016x}", origin_hash(&key(&of)).0),
                "`node_id`" => format!("{:016x}", node_id(&key(&of)).0),
                "`channel_hash`" => {
                    let salt = rest.split(':').next().unwrap().parse().unwrap();
                    format!("{:04x}", channel_hash(salt, &of).0)
                }
                _ => continue,
            };
            assert_eq!(is, quoted(value), "{row}");
            vectors += 1;
        }
        assert_eq!(vectors, 10);
    }

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
