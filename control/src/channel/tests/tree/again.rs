//! What nodes tell each other and is lost: it is said again, and not without end. Who has no part in trees heeds none of it.

use super::*;
use crate::channel::tree::wire::Why;

impl Grove {
    /// Carries everything but what is lost of what nodes tell each other about trees: from whom, to whom, and what.
    pub(super) fn settle_losing(
        &mut self,
        is_lost: &mut impl FnMut((usize, usize), &What) -> bool,
    ) {
        let mut moved = true;
        while moved {
            moved = false;
            for at in 0..self.net.sides.len() {
                moved |= self.net.carry_from(at);
                while let Some(event) = self.net.sides[at].node.poll() {
                    moved = true;
                    if let Event::Control { peer, message } = &event
                        && let Ok(Message::Tree(said)) = Message::parse(message)
                        && is_lost((self.number(&peer.to_string()), at), &said.what)
                    {
                        continue;
                    }
                    self.hand(at, event);
                }
            }
        }
    }

    pub(super) fn pass_losing(
        &mut self,
        milliseconds: u64,
        mut is_lost: impl FnMut((usize, usize), &What) -> bool,
    ) {
        for _ in 0..milliseconds {
            self.tick(&[]);
            self.settle_losing(&mut is_lost);
        }
    }

    pub(super) fn is_struck(&self, relay: usize) -> bool {
        self.entry(0).roster[&self.id(relay)].branch.is_struck()
    }

    pub(super) fn is_relayed(&self, child: usize) -> bool {
        self.relayed().values().flatten().any(|&at| at == child)
    }
}

#[test]
fn while_nothing_is_published_a_child_is_told_of_its_relay_ever_less_often() {
    let mut grove = Grove::new(7);
    grove.say(1);
    let mut told = 0;
    grove.pass_losing(20_000, |_, what| {
        told += usize::from(matches!(what, What::Redirect(_)));
        false
    });
    // Four children: first, and after a half, 1, 2, 4 and 8 seconds.
    assert_eq!(told, 4 * 6);
    for _ in 0..2 {
        grove.say(1);
        grove.net.pass(100);
    }
    assert_eq!(grove.relayed().values().map(Vec::len).sum::<usize>(), 4);
}

#[test]
fn a_child_that_has_not_heard_of_its_relay_is_told_again_once_something_is_published() {
    let mut grove = Grove::new(7);
    grove.say(1);
    let child = 3;
    grove.pass_losing(20_000, |(_, to), what| {
        to == child && matches!(what, What::Redirect(_))
    });
    assert_eq!(RELAYS.map(|relay| grove.feeds(relay, child)), [0, 0]);
    // And that is lost as well.
    let mut is_first = true;
    let mut lost = |(_, to): (usize, usize), what: &What| {
        to == child && matches!(what, What::Redirect(_)) && std::mem::take(&mut is_first)
    };
    grove.say(1);
    grove.pass_losing(3_000, &mut lost);
    assert!(!is_first, "it was said");
    assert!(!grove.is_relayed(child), "nothing has come by it");
    for _ in 0..2 {
        grove.say(1);
        grove.net.pass(100);
    }
    assert!(grove.is_relayed(child));
    grove.net.pass(5_000);
    grove.all_heard(0..grove.said);
    assert_eq!(grove.counts(Reason::RelayFailed), 0);
}

#[test]
fn what_a_relay_is_to_stop_is_said_again_until_it_has_said_that_it_did() {
    let mut grove = Grove::grown(7);
    let (relay, children) = grove.branch();
    let child = children[0];
    let number = grove.entry(0).roster[&grove.id(child)].branch.number();
    grove.put(child, 0, number, What::Back(0, Why::Gone));
    // Neither its publisher's word comes to the relay nor the child's.
    grove.settle_losing(&mut |(_, to), what| {
        to == relay && matches!(what, What::Strike(_) | What::Leave(_))
    });
    assert!(grove.is_struck(relay));
    assert_eq!(grove.feeds(relay, child), 1);
    // Now it does, and the answer is lost.
    grove.pass_losing(600, |(_, to), what| to == 0 && *what == What::Struck);
    assert_eq!(grove.feeds(relay, child), 0);
    assert!(grove.is_struck(relay));
    grove.net.pass(600);
    assert!(!grove.is_struck(relay));
    let mut said = 0;
    grove.pass_losing(5_000, |_, what| {
        said += usize::from(matches!(what, What::Strike(_)));
        false
    });
    assert_eq!(said, 0);
}

#[test]
fn a_relay_that_does_not_say_for_long_that_it_has_stopped_something_serves_nobody() {
    let mut grove = Grove::grown(7);
    let (relay, children) = grove.branch();
    let number = grove.entry(0).roster[&grove.id(children[0])]
        .branch
        .number();
    let lost = |(_, to): (usize, usize), what: &What| {
        to == relay && matches!(what, What::Strike(_) | What::Leave(_))
    };
    grove.put(children[0], 0, number, What::Back(0, Why::Gone));
    grove.pass_losing(4_000, lost);
    assert!(grove.relayed()[&relay].contains(&children[1]));
    grove.pass_losing(2_000, lost);
    assert!(!grove.relayed().contains_key(&relay));
}

#[test]
fn who_has_no_fan_out_heeds_nothing_of_trees() {
    let mut channels = signed(7, 2);
    let stranger = 6;
    channels[stranger][0].fan_out = 0;
    let mut grove = Grove::of(channels);
    grove.grow();
    let relay = grove.id(1);
    let (other, publisher) = (grove.id(3), entity(0));
    for from in [0, 1, 2] {
        for what in [
            What::Able(2),
            What::Redirect(relay),
            What::Feed(publisher),
            What::Leave(publisher),
            What::Ended(publisher, Why::Gone),
            What::Mark(other, 1),
            What::Newest(1),
            What::Have(1),
            What::Back(1, Why::Gone),
            What::Alone,
            What::Gap(1..2),
            What::Hole(1..2),
            What::Strike(other),
            What::Struck,
        ] {
            let number = u64::from(!matches!(what, What::Able(_)));
            grove.put(from, stranger, number, what);
        }
    }
    let mut answers = Vec::new();
    grove.settle_losing(&mut |(from, to), what| {
        if from == stranger {
            answers.push((to, what.clone()));
        }
        false
    });
    // It says no to its publisher, which names it a relay, and to all who take it for one.
    let of = |at| {
        let answers = answers.iter().filter(move |(to, _)| *to == at);
        answers.map(|(_, what)| what).collect::<Vec<_>>()
    };
    let refused = What::Ended(entity(0), Why::Refused);
    assert!(
        matches!(of(0)[..], [What::Back(_, Why::Refused), no] if *no == refused),
        "{answers:?}"
    );
    assert_eq!((of(1), of(2)), (vec![&refused], vec![&refused]));
    assert_eq!(answers.len(), 4);
    let service = &grove.net.sides[stranger].service;
    assert_eq!(service.trees.due_ns(), None);
    let mut roster = service.entries[0].roster.values();
    assert!(roster.all(|remote| remote.feeds.is_empty()));
    let sessions = service.sessions.values();
    let mut inbound = sessions.flat_map(|session| session.inbound.values());
    assert!(inbound.all(|inbound| inbound.relay.is_none()));
    let said = grove.said;
    grove.say(10);
    grove.net.pass(6_000);
    grove.all_heard(said..said + 10);
}
