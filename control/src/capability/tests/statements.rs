//! Statements: one way to write each, signed to the last bit, and of all the latest counts.

use super::*;
use crate::{
    capability::statement::{By, Claim, Discounted, STATEMENT_BYTES_MAX},
    keys::{EntityKey, Secret},
    rights::{List, Revocations, chain::CLOCK_SKEW_S_MAX, revocation::Entry},
};
use proptest::{collection::vec, prelude::*};

const NOW_S: u64 = 1_800_000_000;

fn key(number: u8) -> EntityKey {
    Secret::new([number; 32]).into()
}

fn claim(subject: u8, version: u64, all: &[&str]) -> Claim {
    Claim {
        subject: key(subject).public,
        version,
        not_before_s: NOW_S,
        not_after_s: NOW_S + 100,
        capabilities: capabilities(all),
    }
}

fn issued() -> Statement {
    Statement::issue(
        claim(2, 1, &["hardware.gpu", "software.cuda=12.4"]),
        7,
        &key(1),
    )
}

fn read(bytes: &[u8]) -> Option<Statement> {
    Statement::parse(bytes).ok()?.verify().ok()
}

#[test]
fn what_is_written_is_read_and_nothing_shorter_longer_or_changed() {
    let announced = Statement::announce(claim(9, 3, &["a=1"]), &key(2));
    assert_eq!(
        announced.claim().subject,
        key(2).public,
        "whoever signs is meant"
    );
    for one in [issued(), announced] {
        let bytes = one.as_bytes();
        assert_eq!(read(bytes), Some(one.clone()));
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_none(), "{length}");
        }
        assert!(read(&[bytes, &[0]].concat()).is_none());
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&changed).is_none(), "bit {bit}");
        }
    }
}

#[test]
fn the_largest_has_no_more_bytes_than_it_may() {
    let name = |n: usize| format!("{n:02}{}={}", "k".repeat(62), "v".repeat(64));
    let all: Vec<String> = (0..CAPABILITIES_MAX).map(name).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let largest = Statement::issue(claim(2, 1, &all), 0, &key(1));
    assert_eq!(largest.as_bytes().len(), STATEMENT_BYTES_MAX);
    assert_eq!(read(largest.as_bytes()), Some(largest));
}

#[test]
fn a_statement_counts_by_its_issuer_in_its_time_until_it_is_revoked() {
    let (one, issuers) = (issued(), [key(1).public]);
    let none = Revocations::default();
    let counts = |now_s| one.counts(&issuers, now_s, &none);
    assert_eq!(counts(NOW_S), Ok(()));
    assert_eq!(counts(NOW_S - CLOCK_SKEW_S_MAX), Ok(()));
    let seconds = CLOCK_SKEW_S_MAX + 1;
    assert_eq!(
        counts(NOW_S - seconds),
        Err(Discounted::NotYetValid { seconds })
    );
    assert_eq!(counts(NOW_S + 99), Ok(()));
    assert_eq!(counts(NOW_S + 101), Err(Discounted::Expired { seconds: 1 }));
    let issuer = key(1).public;
    assert_eq!(
        one.counts(&[key(3).public], NOW_S, &none),
        Err(Discounted::Issuer(issuer))
    );
    let own = Statement::announce(claim(1, 1, &["a"]), &key(1));
    assert_eq!(own.counts(&issuers, NOW_S, &none), Err(Discounted::Itself));

    let list = List::new(issuer);
    let revoke = |entry| list.revoke(entry, u64::MAX, NOW_S).unwrap();
    for (list, is_revoked) in [
        (revoke(Entry::Link(one.id())), true),
        (revoke(Entry::Subject(key(2).public)), true),
        (revoke(Entry::Subject(key(3).public)), false),
        (list.begin_generation(7).unwrap(), false),
        (list.begin_generation(8).unwrap(), true),
    ] {
        let mut revocations = Revocations::default();
        revocations.learn(list);
        let counts = one.counts(&issuers, NOW_S, &revocations);
        assert_eq!(matches!(counts, Err(Discounted::Revoked(_))), is_revoked);
    }
}

/// Published vector: bytes before the signature by hand, signature and id made once with Python
/// (`cryptography`, `hashlib.blake2s(message, key=b"virga statement v1")`).
#[test]
fn published_vector() {
    let seed: [u8; 32] = std::array::from_fn(|i| u8::try_from(i).unwrap());
    let issuer = EntityKey::from(Secret::new(seed));
    let claim = Claim {
        subject: [0x22; 32],
        version: 5,
        not_before_s: 1_800_000_000,
        not_after_s: 1_800_086_400,
        capabilities: capabilities(&["hardware.gpu", "software.cuda=12.4"]),
    };
    let one = Statement::issue(claim, 7, &issuer);
    assert_eq!(crate::hex::encode_bytes(one.as_bytes()), VECTOR);
    assert_eq!(one.id().to_string(), VECTOR_ID);
}

const VECTOR: &str = concat!(
    "76697267610301002003a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8002022",
    "2222222222222222222222222222222222222222222222222222222222222200080000000000000005000800",
    "0000006b49d2000008000000006b4b2380000400000007000d0c68617264776172652e67707500120d736f66",
    "74776172652e6375646131322e348ac14a8de0437336dbf68d47d76ebcb5b8451b5c12c72c83a9372f2e2836",
    "a003486f59eec87ecb36af51853865d266290b968aee5724ef8b7fb82a9db6b7e708",
);
const VECTOR_ID: &str = "c3c802db1ef6f27881841429180b48e4";

/// Few signers and versions, so that they meet.
fn few() -> impl Strategy<Value = Vec<Statement>> {
    let one = (1u8..3, 1u8..3, 1u64..4, 0usize..2, any::<bool>());
    let one = one.prop_map(|(signer, subject, version, what, is_own)| {
        let claim = claim(subject, version, &[["a", "b"][what]]);
        match is_own {
            true => Statement::announce(claim, &key(subject)),
            false => Statement::issue(claim, 0, &key(signer)),
        }
    });
    vec(one, 0..6)
}

fn all(statements: &[Statement]) -> Statements {
    let mut all = Statements::default();
    for one in statements {
        all.learn(one.clone());
    }
    all
}

fn merged(left: &Statements, right: &Statements) -> Statements {
    let mut both = left.clone();
    both.merge(right.clone());
    both
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn merging_is_commutative_associative_and_idempotent(a in few(), b in few(), c in few()) {
        let (a, b, c) = (all(&a), all(&b), all(&c));
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        prop_assert_eq!(merged(&a, &a), a.clone());
    }

    #[test]
    fn the_latest_of_each_signer_is_left(statements in few()) {
        let known = all(&statements);
        for one in &statements {
            let by: By = one.by();
            let mut left = known.about(&one.claim().subject).filter(|left| left.by() == by);
            prop_assert!(left.next().is_some_and(|left| left.claim().version >= one.claim().version));
            prop_assert!(left.next().is_none());
            prop_assert!(known.has(one));
        }
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..300)) {
        let mut bytes = bytes;
        let _refused = Statement::parse(&bytes);
        bytes.splice(0..0, *b"virga\x03\x01\x00\x20");
        let _refused = Statement::parse(&bytes);
    }
}
