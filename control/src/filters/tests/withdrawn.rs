//! A pair that was withdrawn passes no node that has heard it, whatever was missed, whoever else signs there.

use super::*;

fn beside(filters: &Filters, number: u8, now: Now) -> Beside {
    filters.beside(TWO, &key(number).public, now)
}

/// What a gateway of TWO says that has heard what `filters` holds; it is taken in as well.
fn say(
    signer: &mut Signer,
    number: u8,
    pairs: &BTreeSet<Pair>,
    filters: &mut Filters,
    now: Now,
) -> Vec<Statement> {
    let said = signer.next(pairs, 0, &beside(filters, number, now), now, salts(now));
    for one in &said {
        assert_eq!(take(filters, one, now), Ok(Taken::New));
    }
    said
}

#[test]
fn a_list_whose_filter_was_missed_closes_the_subnet_until_the_filter_comes() {
    let mut one = signer(2);
    let first = says(&mut one, &pairs(0..2), at(0)).unwrap();
    let gone = says(&mut one, &pairs(1..2), at(1)).unwrap();
    let missed = says(&mut one, &pairs(1..3), at(2)).unwrap();
    let later = says(&mut one, &pairs(2..3), at(3)).unwrap();
    let mut filters = filters();
    for one in [&first, &gone, &later] {
        assert!(!filters.is_short(at(3)));
        assert_eq!(take(&mut filters, one, at(3)), Ok(Taken::New));
    }
    assert!(!admits(&filters, &pair(0), at(3)));
    assert!(filters.is_short(at(3)));
    assert_eq!(filters.foreign(at(3)).filters[&TWO].expires_ns, 1);
    assert_eq!(take(&mut filters, &missed, at(3)), Ok(Taken::New));
    assert!(!filters.is_short(at(3)));
    let passing = [0, 1, 2].map(|number| admits(&filters, &pair(number), at(3)));
    assert_eq!(passing, [false, false, true]);
}

#[test]
fn of_two_gateways_the_clock_that_is_ahead_does_not_win() {
    let (mut right, mut ahead) = (signer(2), signer(3));
    let mut filters = filters();
    let hour = 3_600;
    let mut theirs = at(0);
    theirs.unix_ms += hour * 1_000;
    // 3 is an hour ahead, signs, and is heard of no more.
    let there = says(&mut ahead, &pairs(0..2), theirs).unwrap();
    say(&mut right, 2, &pairs(0..2), &mut filters, at(0));
    take(&mut filters, &there, at(0)).unwrap();
    let list = say(&mut right, 2, &pairs(1..2), &mut filters, at(1));
    assert_eq!(list.len(), 1);
    // Grants and refreshes of 2 count, and none of them ends what it has withdrawn.
    for (seconds, upto) in (2..120).step_by(9).zip(3..) {
        say(&mut right, 2, &pairs(1..upto), &mut filters, at(seconds));
        let passing = [0, 1, upto - 1].map(|n| admits(&filters, &pair(n), at(seconds)));
        assert_eq!(passing, [false, true, true], "after {seconds} s");
    }
}

#[test]
fn what_one_gateway_withdrew_an_ignorant_ones_filter_does_not_bring_back() {
    let (mut knows, mut ignorant) = (signer(2), signer(3));
    let mut filters = filters();
    say(&mut knows, 2, &pairs(0..2), &mut filters, at(0));
    say(&mut knows, 2, &pairs(1..2), &mut filters, at(1));
    for seconds in (2..150).step_by(11) {
        let said = ignorant.next(
            &pairs(0..2),
            0,
            &Beside::default(),
            at(seconds),
            salts(at(seconds)),
        );
        for one in said {
            take(&mut filters, &one, at(seconds)).unwrap();
        }
        assert!(!admits(&filters, &pair(0), at(seconds)));
        say(&mut knows, 2, &pairs(1..2), &mut filters, at(seconds));
        let passing = [0, 1].map(|n| admits(&filters, &pair(n), at(seconds)));
        assert_eq!(passing, [false, true], "after {seconds} s");
        // One that is told now knows as much.
        let mut fresh = super::filters();
        for one in filters.lacking(&[], at(seconds)) {
            take(&mut fresh, one, at(seconds)).unwrap();
        }
        assert!(!admits(&fresh, &pair(0), at(seconds)));
    }
    // It gives the pair again, and so does the other.
    let both = pairs(0..2);
    say(&mut knows, 2, &both, &mut filters, at(200));
    assert!(admits(&filters, &pair(0), at(200)));
}

#[test]
fn no_later_filter_lets_a_withdrawn_pair_through_by_chance() {
    let (mut one, mut filters) = (signer(2), filters());
    // A filter that is as full as it becomes, and many that were taken back: by chance alone one in 1,500 hits.
    let all = pairs(0..2_600);
    say(&mut one, 2, &all, &mut filters, at(0));
    let left = pairs(1_000..2_600);
    say(&mut one, 2, &left, &mut filters, at(1));
    for seconds in (11..400).step_by(10) {
        let said = say(&mut one, 2, &left, &mut filters, at(seconds));
        assert!(
            said.iter()
                .any(|one| matches!(one.said(), Said::Filter { .. }))
        );
        let foreign = filters.foreign(at(seconds));
        let through = (0..1_000)
            .filter(|&n| admits_in(&foreign, &pair(n)))
            .count();
        assert_eq!(through, 0, "after {seconds} s");
    }
    assert_eq!((one.excess(), one.unlisted()), (None, 0));
}

fn admits_in(foreign: &Foreign, pair: &Pair) -> bool {
    let filter = &foreign.filters[&TWO];
    let banks = u32::try_from(filter.lines.len() / 64).unwrap();
    let guard = virga_ebpf::guard::Guard {
        info: virga_ebpf::tables::GuardInfo {
            salt: filter.salt,
            bank_mask: banks - 1,
            reserved: 0,
        },
        lines: filter.lines.clone(),
    };
    guard.is_hit(pair) && !foreign.denied.contains(&(TWO, *pair))
}

#[test]
fn a_filter_that_is_too_full_says_so_and_goes_with_a_list_of_what_it_lets_through() {
    let (mut one, mut filters) = (signer(2), filters());
    let all = pairs(0..60_100);
    say(&mut one, 2, &all, &mut filters, at(0));
    let left = pairs(100..60_100);
    say(&mut one, 2, &left, &mut filters, at(1));
    let said = say(&mut one, 2, &left, &mut filters, at(11));
    let [list, filter] = said.as_slice() else {
        panic!("{} statements", said.len());
    };
    let base = filter.head().version;
    assert!(matches!(list.said(), Said::Withdrawn { base: of, .. } if *of == base));
    assert!(list.head().version > base);
    let foreign = filters.foreign(at(11));
    assert!((0..100).all(|n| !admits_in(&foreign, &pair(n))));
    assert!(one.excess().is_some_and(|rate| rate > 0.1));
    let status = filters.status(&key(1).public, at(11));
    assert!(status.filters[1].is_overfull);
}

#[test]
fn a_gateway_that_begins_anew_keeps_to_what_it_withdrew() {
    let (mut one, mut filters) = (signer(2), filters());
    say(&mut one, 2, &pairs(0..2), &mut filters, at(0));
    let mut ignorant = signer(3);
    say(&mut one, 2, &pairs(1..2), &mut filters, at(1));
    say(&mut ignorant, 3, &pairs(0..2), &mut filters, at(2));
    let kept: Vec<_> = filters.statements().into_iter().cloned().collect();
    let mut again = super::filters();
    for statement in &kept {
        take(&mut again, statement, at(3)).unwrap();
    }
    assert_eq!(again.foreign(at(3)), filters.foreign(at(3)));
    let mut one = signer(2);
    one.recall(again.withdrawn_by(TWO, &key(2).public, at(3)), at(3));
    let newest = again.newest(TWO, &key(2).public);
    let beside = beside(&again, 2, at(3));
    for one in one.next(&pairs(1..2), newest, &beside, at(3), salts(at(3))) {
        take(&mut again, &one, at(3)).unwrap();
        assert!(!admits(&again, &pair(0), at(3)));
    }
    assert!(admits(&again, &pair(1), at(3)));
}

#[test]
fn a_clock_that_is_set_right_ends_what_is_over() {
    let mut filters = filters();
    let filter = says(&mut signer(2), &pairs(0..1), at(0)).unwrap();
    take(&mut filters, &filter, at(0)).unwrap();
    let mut slept = at(1);
    slept.unix_ms += 3_600_000;
    filters.settle(at(1));
    assert!(admits(&filters, &pair(0), at(1)));
    filters.settle(slept);
    assert!(!admits(&filters, &pair(0), slept));
}
