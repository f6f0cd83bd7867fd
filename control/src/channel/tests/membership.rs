//! Membership: what it takes to subscribe, and what becomes of rosters when nodes cannot reach each other.

use super::*;

/// What one side has to say now reaches the others; what they make of it stays with them.
fn half_trip(net: &mut Net, from: usize, to: usize) {
    net.carry_from(from);
    let Side { node, service } = &mut net.sides[to];
    while let Some(event) = node.poll() {
        service.on_event(net.now_ns, node, event);
    }
}

#[test]
fn to_subscribe_takes_one_round_trip_and_so_does_to_leave() {
    let channels = [channel("a", &[0], &[1]), channel("b", &[0], &[1])];
    let mut net = Net::new(2, &channels);
    let inbox = Inbox::with_room(100);
    // There is a session already.
    net.subscribe(1, only("b"), &inbox);

    let subscriber = net.try_subscribe(1, only("a"), &inbox).unwrap();
    assert_eq!(net.roster(0, "a"), 0);
    half_trip(&mut net, 1, 0);
    assert_eq!(net.roster(0, "a"), 1);
    half_trip(&mut net, 0, 1);
    let of_a = |net: &Net| {
        let subscriptions = net.status(1).subscriptions.into_iter();
        subscriptions
            .filter(|s| s.name == "a")
            .map(|s| s.state)
            .collect::<Vec<_>>()
    };
    assert_eq!(of_a(&net), ["granted"]);
    net.say(0, "a", &["x"]);
    assert_eq!(inbox.texts(), ["x"]);

    net.command(1, Command::Unsubscribe(subscriber));
    half_trip(&mut net, 1, 0);
    assert_eq!(net.roster(0, "a"), 0);
}

#[test]
fn after_a_partition_rosters_say_what_is_wanted_now() {
    let mut net = Net::new(3, &[channel("a", &[0], &[1, 2])]);
    let inboxes: [Inbox; 2] = std::array::from_fn(|_| Inbox::with_room(100));
    let leaves = net.subscribe(1, only("a"), &inboxes[0]);
    assert_eq!(net.roster(0, "a"), 1);

    net.is_cut = true;
    net.command(1, Command::Unsubscribe(leaves));
    net.try_subscribe(2, only("a"), &inboxes[1]).unwrap();
    let idle_ms = NodeLimits::default().idle_ns_max / MS;
    net.pass(idle_ms + 1_000);
    assert_eq!(net.roster(0, "a"), 0, "the vanished are reaped");

    net.is_cut = false;
    let again_ms = NodeLimits::default().backoff_ns_max / MS;
    net.pass(2 * again_ms);
    assert_eq!(net.roster(0, "a"), 1);
    net.say(0, "a", &["x"]);
    assert!(inboxes[0].texts().is_empty());
    assert_eq!(inboxes[1].texts(), ["x"]);
}
