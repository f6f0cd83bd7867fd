//! Addresses that are no use.

use super::*;
use crate::is_private;

#[tokio::test]
async fn an_outer_address_that_nobody_can_send_to_is_told_nobody_and_the_reason_is_said() {
    for (n, (outer, why)) in (18..).zip([
        ("192.168.1.7", "RFC 1918"),
        ("100.127.0.1", "RFC 6598"),
        ("192.0.0.2", "DS-Lite"),
        ("169.254.3.4", "RFC 3927"),
        ("127.0.0.1", "loopback"),
        ("224.0.0.5", "multicast"),
    ]) {
        let router = Router {
            outer: outer.parse().unwrap(),
            ..Router::default()
        };
        let (_router, route, _tasks) = start(n, router).await;
        let (now, mut keeper) = (Instant::now(), keeper(Instant::now()));
        keeper.turn(now, true, Ok(route)).await;
        assert_held(&keeper, Protocol::Pcp);
        assert_eq!(keeper.shown().announced(), None, "{outer}");
        let State::Held(held) = &keeper.shown().state else {
            panic!("{:?}", keeper.shown());
        };
        let said = held.useless().unwrap();
        assert!(said.contains(why), "{outer}: {said}");
    }
    assert!(!is_private(OUTER));
}
