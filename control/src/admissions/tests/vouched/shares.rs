//! What is over its share, as issuers are named while a node runs, and after a restart.

use super::*;

fn held_of(held: &Store) -> [usize; 2] {
    [held.tokens().count(), held.statements().count()]
}

fn show(held: &mut Store, holder: u8, until_s: u64) -> Result<Taken, Verdict> {
    let words = Words {
        holder,
        until_s,
        ..WORDS
    };
    held.take(&token(&words), NOW_S)
}

/// Tokens have half of the room, also where no statement takes any of the other half.
#[test]
fn tokens_leave_statements_their_half() {
    let mut held = asking();
    held.set_most(24, 1_000_000);
    let words = |holder| Words { holder, ..WORDS };
    for holder in 2..14 {
        held.take(&token(&words(holder)), NOW_S).unwrap();
    }
    assert_eq!(held.take(&token(&words(20)), NOW_S), Err(Verdict::Full));
    for issuer in [100, 101] {
        for about in 2..8 {
            held.take(&piece(&statement(issuer, about, 1, GPU)), NOW_S)
                .unwrap();
        }
    }
    assert_eq!(held.size(), (24, 12));
}

/// A channel that asks for tokens, and one that asks for statements from now on.
fn with_statements(held: &mut Store) {
    let both = [channel("a", &[100]), vouched_by(&[100, 101])];
    follow(held, Some(OWN), &both, &Retired::default());
}

fn of_tokens_alone() -> Store {
    let tokens = [channel("a", &[100])];
    let mut held = Store::new(Some(key(OWN).public), &tokens, 1_000);
    held.set_most(12, 1_000_000);
    held
}

#[test]
fn tokens_over_their_half_stay_until_they_end_and_no_more_are_taken_until_then() {
    let mut held = of_tokens_alone();
    for holder in 2..14 {
        let until_s = NOW_S + if holder < 9 { DAY_S } else { 2 * DAY_S };
        show(&mut held, holder, until_s).unwrap();
    }
    with_statements(&mut held);
    assert_eq!((held_of(&held), held.pairs().len()), ([12, 0], 12));
    let says = |held: &mut Store| fill(held, 2, GPU);
    let late = Words {
        holder: 20,
        until_s: NOW_S + 2 * DAY_S,
        ..WORDS
    };
    assert_eq!(held.take(&token(&late), NOW_S), Err(Verdict::Full));
    assert_eq!(says(&mut held), 0, "there is no room at all");
    // What is over the half has ended: there is room for statements up to their issuer's share, and for one token.
    held.pass(NOW_S + DAY_S);
    assert_eq!(held_of(&held), [5, 0]);
    assert_eq!(says(&mut held), 3);
    held.take(&token(&late), NOW_S + DAY_S).unwrap();
    let more = Words { nonce: 1, ..late };
    assert_eq!(held.take(&token(&more), NOW_S + DAY_S), Err(Verdict::Full));
    assert_eq!(held_of(&held), [6, 3]);
}

/// What the maps admit would pass no more after a restart, and of statements earlier ones could count again.
#[test]
fn what_is_over_its_share_is_held_after_a_restart_as_well() {
    for are_tokens in [true, false] {
        let mut held = of_tokens_alone();
        let mut again = of_tokens_alone();
        if are_tokens {
            for holder in 2..14 {
                show(&mut held, holder, NOW_S + DAY_S).unwrap();
            }
        } else {
            let alone = [vouched_by(&[100])];
            follow(&mut held, Some(OWN), &alone, &Retired::default());
            assert_eq!(fill(&mut held, 2, GPU), 12);
        }
        for store in [&mut held, &mut again] {
            with_statements(store);
        }
        let pieces: Vec<Piece> = ids(&held)
            .iter()
            .map(|id| held.piece(*id).unwrap())
            .collect();
        again.recall(pieces, NOW_S);
        assert_eq!(again.pairs(), held.pairs());
        assert_eq!((ids(&again), held_of(&again)), (ids(&held), held_of(&held)));
        // Shares hold for what comes from then on.
        again.set_most(if are_tokens { 24 } else { 36 }, 1_000_000);
        let full = match are_tokens {
            true => show(&mut again, 20, NOW_S + DAY_S).unwrap_err(),
            false => again
                .take(&piece(&statement(100, 50, 1, GPU)), NOW_S)
                .unwrap_err(),
        };
        assert_eq!(full, Verdict::Full);
        again
            .take(&piece(&statement(101, 50, 1, GPU)), NOW_S)
            .unwrap();
    }
}
