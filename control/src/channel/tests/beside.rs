//! Neighbours that were reached through NATs: each end takes the other for one in its own time.

use super::*;
use crate::{
    nat,
    routes::{self, Heard},
};

const SESSION_AGAIN_MS: u64 = 5_000;

/// Two that have a session, and what each is told about routes.
fn net() -> (Net, [routes::Inbox; 2]) {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    let inboxes = [routes::Inbox::default(), routes::Inbox::default()];
    let sides = std::mem::take(&mut net.sides).into_iter().zip(&inboxes);
    net.sides = sides
        .map(|(side, inbox)| Side {
            service: side
                .service
                .routing(Some(inbox))
                .crossing(Some(&nat::Inbox::default())),
            ..side
        })
        .collect();
    net.subscribe(1, only("a"), &Inbox::with_room(10));
    (net, inboxes)
}

impl Net {
    /// A node takes the other one for a neighbour, or no more; nothing is carried.
    fn follow(&mut self, at: u8, punched: &[NodeId]) {
        let Side { node, service } = &mut self.sides[usize::from(at)];
        let beside = service.beside();
        let now: BTreeSet<NodeId> = punched.iter().copied().collect();
        let before = std::mem::replace(&mut service.neighbours, now.clone());
        service.routes.punched = now;
        service.neighbours_followed(self.now_ns, node, (&before, &beside));
    }

    /// A node says something about routes.
    fn say_routes(&mut self, at: u8) {
        let Side { node, service } = &mut self.sides[usize::from(at)];
        let other = id(1 - at);
        let session = service.sessions[&other].number;
        service.say_routes(self.now_ns, node, (other, session), vec![at]);
        self.settle();
    }
}

fn all(inbox: &routes::Inbox) -> Vec<&'static str> {
    let heard = std::iter::from_fn(|| inbox.pop());
    heard
        .map(|(_, heard)| match heard {
            Heard::Began { .. } => "began",
            Heard::Said(_) => "said",
            Heard::Ended => "ended",
        })
        .collect()
}

#[test]
fn whichever_end_follows_first_neither_speaks_of_routes_before_both_do() {
    for first in [0, 1] {
        let (mut net, inboxes) = net();
        let second = 1 - first;
        net.follow(first, &[id(second)]);
        net.settle();
        net.pass(20);
        assert!(inboxes.iter().all(|inbox| all(inbox).is_empty()));
        // What is said too soon is counted.
        net.say_routes(first);
        assert_eq!(net.count(second.into(), Reason::RoutesStranger), 1);
        net.follow(second, &[id(first)]);
        assert_eq!(all(&inboxes[usize::from(second)]), ["began"]);
        net.settle();
        for at in [0, 1] {
            net.say_routes(at);
        }
        assert_eq!(all(&inboxes[usize::from(first)]), ["began", "said"]);
        assert_eq!(all(&inboxes[usize::from(second)]), ["said"]);
        let refused = [0, 1].map(|at| net.count(at, Reason::NatRefused));
        assert_eq!(refused, [0, 0]);
    }
}

#[test]
fn one_that_ceased_to_be_a_neighbour_says_so_anew_before_it_counts() {
    let (mut net, inboxes) = net();
    for at in [0, 1] {
        net.follow(at, &[id(1 - at)]);
    }
    net.settle();
    for inbox in &inboxes {
        assert_eq!(all(inbox), ["began"]);
    }
    for at in [0, 1] {
        net.follow(at, &[]);
        assert_eq!(all(&inboxes[usize::from(at)]), ["ended"]);
    }
    net.settle();
    net.follow(0, &[id(1)]);
    net.settle();
    assert!(inboxes.iter().all(|inbox| all(inbox).is_empty()));
    net.follow(1, &[id(0)]);
    net.settle();
    for inbox in &inboxes {
        assert_eq!(all(inbox), ["began"]);
    }
}

#[test]
fn one_end_that_ceases_and_begins_again_alone_is_answered_and_told_all_anew() {
    for at in [0, 1] {
        let (mut net, inboxes) = net();
        for at in [0, 1] {
            net.follow(at, &[id(1 - at)]);
        }
        net.settle();
        for inbox in &inboxes {
            assert_eq!(all(inbox), ["began"]);
        }
        net.follow(at, &[]);
        net.follow(at, &[id(1 - at)]);
        net.settle();
        for inbox in &inboxes {
            assert_eq!(all(inbox), ["began"]);
        }
        for at in [0, 1] {
            net.say_routes(at);
        }
        for inbox in &inboxes {
            assert_eq!(all(inbox), ["said"]);
        }
        let lost = [0, 1].map(|at| net.count(at, Reason::RoutesStranger));
        assert_eq!(lost, [0, 0]);
    }
}

#[test]
fn a_session_that_begins_anew_counts_once_both_have_said_so_in_it() {
    let (mut net, inboxes) = net();
    net.follow(0, &[id(1)]);
    let Side { node, service } = &mut net.sides[0];
    service.leave(net.now_ns, node, &[id(1)].into());
    net.settle();
    net.pass(SESSION_AGAIN_MS);
    assert!(net.sides[0].service.sessions.contains_key(&id(1)));
    // Only one of the two takes the other for a neighbour: nothing has begun there.
    assert!(!all(&inboxes[0]).contains(&"began"));
    net.follow(1, &[id(0)]);
    net.settle();
    for at in [0, 1] {
        net.say_routes(at);
    }
    for inbox in &inboxes {
        assert_eq!(all(inbox), ["began", "said"]);
    }
    let lost = [0, 1].map(|at| net.count(at, Reason::RoutesStranger));
    assert_eq!(lost, [0, 0]);
}
