//! What a relay may not be sent yet: it waits, and is given up when nobody waits for it any longer.

use super::*;

/// What never comes to a relay: that it is to pass nothing more on.
fn is_stop(relay: usize) -> impl FnMut((usize, usize), &What) -> bool {
    move |(_, to), what| to == relay && matches!(what, What::Strike(_) | What::Leave(_))
}

impl Grove {
    fn is_barred(&self, relay: usize) -> bool {
        self.entry(0).roster[&self.id(relay)].is_barred()
    }

    /// A node unsubscribes; nothing is carried yet.
    fn leave(&mut self, at: usize) {
        let ids = self.net.sides[at].service.subscribers.keys();
        let id = *ids.last().unwrap();
        self.net.command(at, Command::Unsubscribe(id));
    }

    /// Publishes events of so many bytes that have two seconds, and says what becomes of them.
    fn publish_tallied(&mut self, count: u64, bytes: usize, in_flight_max: usize) -> Arc<Tally> {
        let plan = Plan {
            policy: Policy::BestEffort,
            in_flight_max,
            within: Duration::from_secs(600),
        };
        let tally = Arc::new(Tally::new(plan, count, true));
        let text = "x".repeat(bytes);
        let batches = (0..count).map(|_| batch(&mut self.feed, 0, &text));
        let batch = Batch::new(batches.collect(), Box::new(|_| {}))
            .within(Some(Duration::from_secs(2)))
            .tallied(Some(Arc::clone(&tally)));
        let channel = name("a");
        self.net.command(0, Command::Publish { channel, batch });
        tally
    }
}

/// There is no more room: in bytes, and in events that may be unacknowledged.
#[test]
fn what_is_kept_for_a_relay_that_is_not_reached_makes_room_when_its_time_is_over() {
    for (bytes, in_flight_max) in [(50_000, 1_000), (10, 21)] {
        let mut grove = Grove::grown(7);
        let (relay, children) = grove.branch();
        let id = grove.id(relay);
        grove.net.cut_off = Some(relay);
        let _report = grove.publish(1);
        grove.net.pass(10);
        grove.leave(children[0]);
        grove.net.pass(1_100);
        assert!(grove.is_barred(relay));
        let at_relay = |tally: &Tally| {
            let outcome = tally.now().nodes[&id].clone();
            (outcome.pending, outcome.expired)
        };
        let first = grove.publish_tallied(21, bytes, in_flight_max);
        grove.net.pass(1_900);
        assert_eq!(at_relay(&first), (21, 0));
        assert_eq!(grove.net.count(0, Reason::Expired), 0);
        grove.net.pass(200);
        let dropped = grove.entry(0).counters.dropped;
        let second = grove.publish_tallied(3, bytes, in_flight_max);
        assert_eq!(at_relay(&first), (0, 21));
        assert_eq!(at_relay(&second), (3, 0), "it waits for nothing");
        assert_eq!(grove.net.count(0, Reason::Expired), 21);
        assert_eq!(grove.entry(0).counters.dropped, dropped + 21);
    }
}
