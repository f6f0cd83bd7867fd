//! What counts as a membership, and what does not.

use super::*;
use crate::{
    keys::Secret,
    rights::{List, revocation::Entry},
};

const NOW_S: u64 = 1_000_000;
const PLACE: PeerSubnet = PeerSubnet {
    subnet: Subnet(0x0101_0000),
    mask: 0xff00_0000,
};

fn key(number: u8) -> EntityKey {
    EntityKey::from(Secret::new([number; 32]))
}

fn claim(version: u64) -> Claim {
    Claim {
        subject: key(1).public,
        version,
        not_before_s: NOW_S,
        not_after_s: NOW_S + 100,
        place: PLACE,
    }
}

fn vouch(known: &Memberships, asked: PeerSubnet, now_s: u64) -> Result<(), Unvouched> {
    let revocations = Revocations::default();
    let issuers = [key(9).public];
    let trust = Trust {
        issuers: &issuers,
        now_s,
        revocations: &revocations,
    };
    known.vouch(&key(1).public, asked, &trust)
}

fn known(claims: impl IntoIterator<Item = Claim>) -> Memberships {
    let mut known = Memberships::default();
    for claim in claims {
        known.learn(Membership::issue(claim, 0, &key(9)));
    }
    known
}

#[test]
fn what_is_written_is_read_and_every_flipped_bit_is_noticed() {
    let written = Membership::issue(claim(7), 3, &key(9));
    let read = Membership::parse(written.as_bytes()).unwrap();
    assert_eq!(read.verify(), Ok(written.clone()));
    let bytes = written.as_bytes();
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        let read = Membership::parse(&changed).ok();
        assert!(read.is_none_or(|read| read.verify().is_err()), "bit {bit}");
    }
    for length in 0..bytes.len() {
        assert!(Membership::parse(&bytes[..length]).is_err());
    }
}

#[test]
fn it_counts_in_its_time_and_place() {
    let all = known([claim(1)]);
    assert_eq!(vouch(&all, PLACE, NOW_S), Ok(()));
    let early = Unvouched::NotYetValid { seconds: 31 };
    assert_eq!(vouch(&all, PLACE, NOW_S - 31), Err(early));
    let late = Unvouched::Expired { seconds: 0 };
    assert_eq!(vouch(&all, PLACE, NOW_S + 100), Err(late));
    let narrower = PeerSubnet {
        mask: 0xffff_0000,
        ..PLACE
    };
    assert_eq!(vouch(&all, narrower, NOW_S), Ok(()));
    let wider = PeerSubnet { mask: 0, ..PLACE };
    let other = PeerSubnet {
        subnet: Subnet(0x0102_0000),
        ..PLACE
    };
    for asked in [wider, other] {
        let said = PLACE;
        let elsewhere = Unvouched::Elsewhere { said, asked };
        assert_eq!(vouch(&all, asked, NOW_S), Err(elsewhere));
    }
    assert_eq!(vouch(&known([]), PLACE, NOW_S), Err(Unvouched::Nobody));
}

#[test]
fn the_latest_of_an_issuer_counts_however_they_come() {
    let moved = Claim {
        place: PeerSubnet {
            subnet: Subnet(0x0200_0000),
            ..PLACE
        },
        ..claim(2)
    };
    for all in [known([claim(1), moved]), known([moved, claim(1)])] {
        assert_eq!(all.len(), 1);
        assert!(vouch(&all, PLACE, NOW_S).is_err());
        assert_eq!(vouch(&all, moved.place, NOW_S), Ok(()));
    }
}

#[test]
fn only_trusted_issuers_count_and_what_they_take_back_does_not() {
    let mut all = Memberships::default();
    all.learn(Membership::issue(claim(1), 0, &key(8)));
    let stranger = Unvouched::Issuer(key(8).public);
    assert_eq!(vouch(&all, PLACE, NOW_S), Err(stranger));
    let good = Membership::issue(claim(1), 0, &key(9));
    let id = good.id();
    all.learn(good);
    assert_eq!(vouch(&all, PLACE, NOW_S), Ok(()));

    let list = List::new(key(9).public);
    let list = list.revoke(Entry::Link(id), NOW_S + 200, NOW_S).unwrap();
    let mut revocations = Revocations::default();
    revocations.learn(List::parse(&list.sign(&key(9))).unwrap());
    let issuers = [key(9).public];
    let trust = Trust {
        issuers: &issuers,
        now_s: NOW_S,
        revocations: &revocations,
    };
    let refused = all.vouch(&key(1).public, PLACE, &trust);
    assert!(matches!(refused, Err(Unvouched::Revoked(_))), "{refused:?}");
    let nobody = Trust {
        issuers: &[],
        ..trust
    };
    let stranger = all.vouch(&key(5).public, PLACE, &nobody);
    assert_eq!(stranger, Ok(()), "nobody is asked");
}
