//! What gateways say, how it is held, and what it lets through.

use super::{
    held::{Beside, Versions},
    statement::Head,
    *,
};
use crate::{
    config::{Entity, SubnetGateway},
    keys::{EntityKey, Secret},
};
use std::collections::BTreeSet;
use virga_ebpf::{
    decide::{Arrival, Verdict, decide},
    header::{ChannelHash, Header, MAGIC, NodeId, OriginHash, Subnet, VERSION},
    image::{ChannelRules, Image, Link, Place, Via},
    limits::HEADER_BYTES,
    memory::MemoryTables,
    publish::Publisher,
    reason::Reason,
    subnet::{SubnetPrefix, Visibility},
    tables::{Address, NextHop, Pair, mix},
};

mod through;
mod withdrawn;

const LIFE_S: u32 = 30;
const ONE: SubnetPrefix = Subnet(0x0100_0000).with_descendants();
const TWO: SubnetPrefix = Subnet(0x0200_0000).with_descendants();

fn key(number: u8) -> EntityKey {
    EntityKey::from(Secret::new([number; 32]))
}

fn at(seconds: u64) -> Now {
    Now {
        unix_ms: 1_000_000_000 + seconds * 1_000,
        monotonic_ns: (77 + seconds) * 1_000_000_000,
    }
}

fn pair(number: u64) -> Pair {
    let channel = u16::try_from(number % 50_000).unwrap() + 1;
    Pair::new(OriginHash(mix(5, number)), ChannelHash(channel))
}

fn pairs(numbers: std::ops::Range<u64>) -> BTreeSet<Pair> {
    numbers.map(pair).collect()
}

fn gateway(number: u8, prefix: SubnetPrefix) -> SubnetGateway {
    let entity = Entity::from_key(key(number).public);
    SubnetGateway { entity, prefix }
}

/// Of a node in ONE: 2 and 3 are gateways of TWO.
fn filters() -> Filters {
    let gateways = [gateway(1, ONE), gateway(2, TWO), gateway(3, TWO)];
    Filters::new(ONE, &gateways)
}

fn signer(number: u8) -> Signer {
    Signer::new(key(number), TWO, LIFE_S)
}

fn salts(now: Now) -> impl FnMut() -> [u64; 2] {
    let mut drawn = 0;
    move || {
        drawn += 1;
        [mix(drawn, now.unix_ms), mix(drawn + 1, now.unix_ms)]
    }
}

/// All that one says that is alone in its subnet.
fn all_said(signer: &mut Signer, pairs: &BTreeSet<Pair>, now: Now) -> Vec<Statement> {
    signer.next(pairs, 0, &Beside::default(), now, salts(now))
}

/// The same where it is one statement at most.
fn says(signer: &mut Signer, pairs: &BTreeSet<Pair>, now: Now) -> Option<Statement> {
    let mut said = all_said(signer, pairs, now);
    let last = said.pop();
    assert_eq!(said, []);
    last
}

fn take(filters: &mut Filters, statement: &Statement, now: Now) -> Result<Taken, Refused> {
    filters.take(statement.as_bytes(), now, |_| true)
}

/// Whether TWO admits a pair, as these tables have it.
fn admits(filters: &Filters, pair: &Pair, now: Now) -> bool {
    let crossings = filters.crossings(pair, now);
    crossings.iter().any(|one| one.words.starts_with("pass"))
}

#[test]
fn what_is_written_is_read_and_a_flipped_bit_is_noticed() {
    let mut one = signer(2);
    let filter = says(&mut one, &pairs(0..9), at(0)).unwrap();
    let list = says(&mut one, &pairs(2..9), at(1)).unwrap();
    assert!(matches!(list.said(), Said::Withdrawn { pairs: gone, .. } if *gone == pairs(0..2)));
    for written in [filter, list] {
        let bytes = written.as_bytes();
        assert_eq!(
            Statement::parse(bytes).unwrap().verify(),
            Ok(written.clone())
        );
        // All bits around the fields' ends, and some of the lines between.
        let bits = (0..bytes.len() * 8).filter(|bit| *bit < 1_000 || bit % 997 == 0);
        for bit in bits {
            let mut changed = bytes.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            let read = Statement::parse(&changed).ok();
            assert!(read.is_none_or(|read| read.verify().is_err()), "bit {bit}");
        }
        for length in (0..bytes.len()).step_by(61) {
            assert!(Statement::parse(&bytes[..length]).is_err());
        }
    }
}

#[test]
fn what_has_another_form_is_refused() {
    let head = Head {
        signer: key(2).public,
        prefix: TWO,
        version: 1,
        expires_s: 1,
    };
    let of = |head, said| {
        let signed = Statement::sign(head, said, &key(2));
        Statement::parse(signed.as_bytes()).map(|_| ())
    };
    let lines = |count| Said::Filter {
        salt: [0; 2],
        lines: vec![[1; 8]; count],
    };
    assert_eq!(of(head, lines(64)), Ok(()));
    assert_eq!(of(head, lines(512)), Ok(()));
    for count in [0, 63, 65, 192, 1_023] {
        assert!(of(head, lines(count)).is_err(), "{count} lines");
    }
    let most = u64::try_from(statement::WITHDRAWN_MAX).unwrap();
    let list = |base, pairs| Said::Withdrawn { base, pairs };
    assert_eq!(of(head, list(0, pairs(0..most))), Ok(()));
    assert!(of(head, list(1, pairs(0..most))).is_err());
    assert!(of(head, list(0, pairs(0..most + 1))).is_err());
    assert!(of(head, list(0, BTreeSet::new())).is_err());
    let prefix = SubnetPrefix {
        subnet: Subnet(0x0200_0001),
        ..TWO
    };
    assert!(of(Head { prefix, ..head }, lines(64)).is_err());
}

#[test]
fn an_older_version_never_replaces_a_newer_one_and_is_counted() {
    let mut one = signer(2);
    let old = says(&mut one, &pairs(0..3), at(0)).unwrap();
    let new = says(&mut one, &pairs(0..4), at(1)).unwrap();
    let mut filters = filters();
    assert_eq!(take(&mut filters, &new, at(2)), Ok(Taken::New));
    assert_eq!(take(&mut filters, &new, at(2)), Ok(Taken::Known));
    assert_eq!(take(&mut filters, &old, at(2)), Err(Refused::Old));
    assert!(admits(&filters, &pair(3), at(2)));
    let status = filters.status(&key(1).public, at(2));
    assert_eq!(status.refused.get("old"), Some(&1));
    assert_eq!(status.filters[1].version, new.head().version);
    assert_eq!(status.filters[1].expires_in_s, Some(29));
}

#[test]
fn only_a_gateways_word_about_its_own_subnet_counts() {
    let mut filters = filters();
    let stranger = says(&mut signer(7), &pairs(0..3), at(0)).unwrap();
    assert_eq!(take(&mut filters, &stranger, at(0)), Err(Refused::Signer));
    let elsewhere = says(&mut Signer::new(key(1), TWO, LIFE_S), &pairs(0..3), at(0)).unwrap();
    assert_eq!(take(&mut filters, &elsewhere, at(0)), Err(Refused::Signer));
    let mut forged = says(&mut signer(2), &pairs(0..3), at(0))
        .unwrap()
        .as_bytes()
        .to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert_eq!(filters.take(&forged, at(0), |_| true), Err(Refused::Forged));
    // Nobody's signature is looked at before the sender's budget is.
    assert_eq!(filters.take(&forged, at(0), |_| false), Err(Refused::Busy));
    assert_eq!(
        filters.take(b"virga", at(0), |_| true),
        Err(Refused::Malformed)
    );
    let long = Signer::new(key(2), TWO, LIFE_S_MAX + 3_600);
    let long = says(&mut { long }, &pairs(0..3), at(0)).unwrap();
    assert_eq!(take(&mut filters, &long, at(0)), Err(Refused::Ahead));
    assert!(!admits(&filters, &pair(0), at(0)));
}

#[test]
fn what_is_unknown_or_over_is_closed() {
    let mut filters = filters();
    let closed = filters.foreign(at(0));
    assert_eq!(closed.filters.keys().collect::<Vec<_>>(), [&TWO]);
    assert_eq!(closed.filters[&TWO].expires_ns, 1);
    let filter = says(&mut signer(2), &pairs(0..3), at(0)).unwrap();
    take(&mut filters, &filter, at(0)).unwrap();
    let end_ns = at(u64::from(LIFE_S)).monotonic_ns;
    assert_eq!(filters.foreign(at(1)).filters[&TWO].expires_ns, end_ns);
    assert!(admits(&filters, &pair(0), at(29)));
    assert!(!admits(&filters, &pair(0), at(30)));
    assert_eq!(filters.foreign(at(30)), closed);
    let late = says(&mut signer(3), &pairs(0..3), at(0)).unwrap();
    assert_eq!(take(&mut filters, &late, at(30)), Err(Refused::Expired));
}

#[test]
fn a_gateway_signs_a_filter_for_what_is_added_and_a_list_for_what_is_taken_back() {
    let mut one = signer(2);
    let first = says(&mut one, &pairs(0..9), at(0)).unwrap();
    assert!(matches!(first.said(), Said::Filter { .. }));
    assert!(says(&mut one, &pairs(0..9), at(1)).is_none());
    let list = says(&mut one, &pairs(1..9), at(2)).unwrap();
    assert!(matches!(list.said(), Said::Withdrawn { pairs: gone, .. } if *gone == pairs(0..1)));
    assert_eq!(list.head().expires_s, first.head().expires_s);
    assert!(says(&mut one, &pairs(1..9), at(3)).is_none());
    // Given again: only a filter ends a list.
    let again = says(&mut one, &pairs(0..9), at(4)).unwrap();
    assert!(matches!(again.said(), Said::Filter { .. }));
    // A third of its life later without any change, and right then.
    assert_eq!(one.due_ns(), at(14).monotonic_ns);
    let refreshed = says(&mut one, &pairs(0..9), at(14)).unwrap();
    assert!(matches!(refreshed.said(), Said::Filter { .. }));
    let versions = [&first, &list, &again, &refreshed].map(|one| one.head().version);
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    // More than a list holds.
    let many = says(&mut one, &pairs(0..5_000), at(15)).unwrap();
    assert!(matches!(many.said(), Said::Filter { .. }));
    // What the new filter holds of them by chance goes on a list before it.
    let fewer = all_said(&mut one, &pairs(3_000..5_000), at(16));
    let fewer = fewer.last().unwrap();
    assert!(matches!(fewer.said(), Said::Filter { .. }));
}

#[test]
fn changes_close_to_each_other_are_said_together_and_versions_rise_whatever_the_clock_says() {
    let mut one = signer(2);
    let first = says(&mut one, &pairs(0..1), at(9)).unwrap();
    let mut soon = at(9);
    soon.monotonic_ns += 1_000_000;
    assert!(says(&mut one, &pairs(0..2), soon).is_none());
    assert_eq!(one.due_ns(), at(9).monotonic_ns + 50_000_000);
    let mut later = soon;
    (later.monotonic_ns, later.unix_ms) = (one.due_ns(), 5_000);
    let both = says(&mut one, &pairs(0..3), later).unwrap();
    assert_eq!(both.head().version, first.head().version + 1);
    // Others hold what it said in an earlier run.
    later.monotonic_ns += 1_000_000_000;
    let after = one.next(
        &pairs(0..3),
        1 << 50,
        &Beside::default(),
        later,
        salts(later),
    );
    assert_eq!(after[0].head().version, (1 << 50) + 1);
}

#[test]
fn a_withdrawal_ends_when_its_own_gateway_admits_the_pair_again_and_no_other() {
    let (mut two, mut three) = (signer(2), signer(3));
    let both = pairs(0..2);
    let mut filters = filters();
    let mut say = |statement: Option<Statement>, seconds| {
        take(&mut filters, &statement.unwrap(), at(seconds)).unwrap();
        [0, 1].map(|number| admits(&filters, &pair(number), at(seconds)))
    };
    assert_eq!(say(says(&mut two, &both, at(0)), 0), [true, true]);
    assert_eq!(say(says(&mut two, &pairs(1..2), at(1)), 1), [false, true]);
    // 3 has not heard yet that it was taken back.
    assert_eq!(say(says(&mut three, &both, at(2)), 2), [false, true]);
    assert_eq!(say(says(&mut three, &pairs(1..2), at(3)), 3), [false, true]);
    assert_eq!(say(says(&mut two, &both, at(4)), 4), [false, true]);
    assert_eq!(say(says(&mut three, &both, at(5)), 5), [true, true]);
}

#[test]
fn in_whatever_order_it_comes_the_same_is_held() {
    let (mut two, mut three) = (signer(2), signer(3));
    let said = [
        says(&mut two, &pairs(0..5), at(0)).unwrap(),
        says(&mut three, &pairs(0..6), at(1)).unwrap(),
        says(&mut two, &pairs(1..5), at(2)).unwrap(),
        says(&mut three, &pairs(2..6), at(3)).unwrap(),
        says(&mut two, &pairs(1..7), at(4)).unwrap(),
        says(&mut two, &pairs(3..7), at(5)).unwrap(),
    ];
    let after = |order: &mut dyn Iterator<Item = usize>| {
        let mut filters = filters();
        for place in order {
            // Old ones are refused.
            let _taken = take(&mut filters, &said[place], at(6));
        }
        filters
    };
    let held = |filters: &Filters| {
        let mut all: Vec<Statement> = filters.statements().into_iter().cloned().collect();
        all.sort_by_key(|one| (one.head().signer, one.head().version));
        (all, filters.foreign(at(6)).denied)
    };
    let expected = held(&after(&mut (0..6)));
    assert_eq!(expected.0.len(), 4);
    assert_eq!(expected.1.len(), 2 + 2 - 1);
    for seed in 0..200 {
        let mut order: Vec<usize> = (0..6).chain(0..6).collect();
        order.sort_by_key(|&n| mix(seed, n as u64));
        let all = after(&mut order.into_iter());
        assert_eq!(held(&all), expected, "seed {seed}");
        // One that begins with nothing is told as much as counts, and no more.
        let mut other = filters();
        for one in all.lacking(&[], at(6)) {
            assert_eq!(take(&mut other, one, at(6)), Ok(Taken::New));
        }
        assert_eq!(held(&other), expected, "seed {seed}");
        let same: Vec<Versions> = other.versions().collect();
        assert_eq!(all.lacking(&same, at(6)).len(), 0);
    }
}

#[test]
fn a_subnet_whose_withdrawn_pairs_find_no_room_is_closed() {
    let most = u64::try_from(statement::WITHDRAWN_MAX).unwrap();
    let prefix = |n: u8| Subnet(u32::from(n) << 24).with_descendants();
    let gateways = (2..=66_u8).map(|n| (n, prefix(n)));
    let mut all: Vec<SubnetGateway> = gateways.map(|(n, p)| gateway(n, p)).collect();
    all.push(gateway(1, prefix(66)));
    let mut filters = Filters::new(ONE, &all);
    for (number, prefix) in (2..=66).map(|n| (n, prefix(n))).chain([(1, prefix(66))]) {
        let mut signer = Signer::new(key(number), prefix, LIFE_S);
        let from = u64::from(number) * most;
        let filter = says(&mut signer, &pairs(from..from + most + 1), at(0)).unwrap();
        take(&mut filters, &filter, at(0)).unwrap();
        let list = says(&mut signer, &pairs(from + most..from + most + 1), at(1)).unwrap();
        take(&mut filters, &list, at(1)).unwrap();
    }
    let foreign = filters.foreign(at(1));
    assert_eq!(foreign.denied.len(), 64 * statement::WITHDRAWN_MAX);
    let closed = foreign
        .filters
        .iter()
        .filter(|(_, one)| one.expires_ns == 1);
    let closed: Vec<_> = closed.map(|(prefix, _)| *prefix).collect();
    assert_eq!(closed, [prefix(66)]);
}
