//! Publishes that are tallied: what is acknowledged, what is lost, and how much may be under way.

use super::*;
use crate::channel::{FanOut, Plan, Policy, Tally};

const PATIENT: Plan = Plan {
    policy: Policy::BestEffort,
    in_flight_max: 64,
    within: Duration::from_secs(60),
};

/// Publishes numbers, without carrying anything yet.
fn publish(net: &mut Net, plan: Plan, count: usize) -> (Arc<Tally>, Answer) {
    let answer = Answer::default();
    let told = Arc::clone(&answer.0);
    let done = Box::new(move |report| *told.lock().unwrap() = Some(report));
    let tally = Arc::new(Tally::new(plan, count as u64, true));
    let batch = Batch::new(texts(0..count), done)
        .within(Some(plan.within))
        .tallied(Some(Arc::clone(&tally)));
    let channel = name("a");
    net.command(0, Command::Publish { channel, batch });
    (tally, answer)
}

/// Sent, acknowledged, lost or expired, and pending, at a node.
fn counts(result: &FanOut, number: u8) -> [u64; 4] {
    let outcome = &result.nodes[&id(number)];
    let failed = outcome.lost + outcome.expired;
    [outcome.sent, outcome.acknowledged, failed, outcome.pending]
}

#[test]
fn what_each_node_acknowledged_is_told() {
    let mut net = Net::new(3, &[channel("a", &[0], &[0, 1, 2])]);
    let inboxes: [Inbox; 3] = std::array::from_fn(|_| Inbox::with_room(100));
    for (at, inbox) in inboxes.iter().enumerate() {
        net.subscribe(at, only("a"), inbox);
    }
    let (tally, answer) = publish(&mut net, PATIENT, 5);
    assert!(answer.is_there(), "it is on its way");
    assert_eq!(counts(&tally.now(), 1), [5, 0, 0, 5]);
    net.settle();
    net.pass(20);
    let result = tally.now();
    for number in [1, 2] {
        assert_eq!(counts(&result, number), [5, 5, 0, 0]);
    }
    assert_eq!((result.published, result.programs), (5, 1));
    assert_eq!(inboxes[2].texts().len(), 5);
}

#[test]
fn so_many_are_under_way_to_a_node_and_no_more() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    let inbox = Inbox::with_room(100);
    net.subscribe(1, only("a"), &inbox);
    let plan = Plan {
        in_flight_max: 2,
        ..PATIENT
    };
    let (tally, answer) = publish(&mut net, plan, 7);
    net.is_cut = true;
    net.settle();
    assert_eq!(counts(&tally.now(), 1), [2, 0, 0, 2]);
    assert!(!answer.is_there());
    net.is_cut = false;
    net.pass(2_000);
    assert_eq!(counts(&tally.now(), 1), [7, 7, 0, 0]);
    let all: Vec<String> = (0..7).map(|n| n.to_string()).collect();
    assert_eq!(inbox.texts(), all, "each once, in order");
}

#[test]
fn what_a_node_refuses_leaves_or_has_no_time_for_failed_there() {
    let mut other = channel("a", &[0], &[1, 2]);
    let ours = other.clone();
    other.mode = Mode::Unreliable;
    let mut net = Net::with(&[vec![ours.clone()], vec![ours], vec![other]]);
    let inboxes: [Inbox; 2] = std::array::from_fn(|_| Inbox::with_room(100));
    let id_1 = net.subscribe(1, only("a"), &inboxes[0]);
    net.subscribe(2, only("a"), &inboxes[1]);
    let (tally, _answer) = publish(&mut net, PATIENT, 3);
    net.settle();
    net.pass(20);
    let result = tally.now();
    assert_eq!(counts(&result, 1), [3, 3, 0, 0]);
    assert_eq!(counts(&result, 2), [3, 0, 3, 0]);
    assert_eq!(result.nodes[&id(2)].reason.as_deref(), Some("peer_refused"));

    // One event at a time, and the node does not answer: the next one's time is over first.
    net.is_cut = true;
    let plan = Plan {
        in_flight_max: 1,
        within: Duration::from_millis(50),
        policy: Policy::FailFast,
    };
    let (tally, answer) = publish(&mut net, plan, 3);
    net.pass(60);
    assert!(answer.is_there());
    let result = tally.now();
    assert_eq!(counts(&result, 1), [1, 0, 1, 1]);
    assert_eq!(result.withheld, 1, "the third was not begun");
    assert_eq!(result.nodes[&id(1)].reason.as_deref(), Some("expired"));
    assert!(!result.is_met);
    net.is_cut = false;
    net.pass(2_000);
    assert_eq!(
        counts(&tally.now(), 1),
        [1, 1, 1, 0],
        "it arrived after all"
    );

    // A node that leaves while events are on their way to it.
    net.is_cut = true;
    let (tally, _answer) = publish(&mut net, PATIENT, 2);
    let now_ns = net.now_ns;
    net.sides[0].node.close(now_ns, id(1));
    net.settle();
    assert_eq!(counts(&tally.now(), 1), [2, 0, 2, 0]);
    assert_eq!(
        tally.now().nodes[&id(1)].reason.as_deref(),
        Some("peer_gone")
    );
    net.command(1, Command::Unsubscribe(id_1));
}
